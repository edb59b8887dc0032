//! How a role ends: one token that says so, one tracker that knows what is still running.
//!
//! Before it ends there may be time to leave in order: [`Stop::leave`] tells everybody, and waits for whoever holds a
//! [`Hold`]. What has nobody to wait for ends with the first word ([`Stop::first`]).
//!
//! Invariant: a task spawned through [`Stop::spawn`] is either finished or still counted; when
//! [`Stop::drain`] returns `true`, nothing of the role is left.

use std::{future::Future, time::Duration};
use tokio::task::JoinHandle;
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

/// How long a role may take to end after it was asked to; then its tasks are abandoned with the
/// process.
pub const DRAIN_DEADLINE: Duration = Duration::from_millis(1000);

/// Cheap to clone; all clones are the same role.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    leaving: CancellationToken,
    token: CancellationToken,
    tasks: TaskTracker,
    holds: TaskTracker,
}

/// Somebody is still to be served; [`Stop::leave`] waits until it is dropped. Its holder sets its own deadline.
#[derive(Debug)]
pub struct Hold(#[expect(dead_code, reason = "for its Drop")] TaskTrackerToken);

impl Stop {
    /// A role that runs.
    pub fn new() -> Self {
        Self::default()
    }

    /// A part of this role that can end by itself; it ends at the latest with the whole. Its tasks
    /// are counted by the whole.
    pub fn child(&self) -> Stop {
        Stop { leaving: self.leaving.child_token(), token: self.token.child_token(), ..self.clone() }
    }

    /// This role, for a part that nobody has to be waited for in: it ends as soon as the role is asked to leave.
    pub fn first(&self) -> Stop {
        let token = self.leaving.child_token();
        Stop { leaving: token.clone(), token, ..self.clone() }
    }

    /// Asks the role to leave, and waits until nobody holds it. It still runs then: drain it.
    pub async fn leave(&self) {
        self.leaving.cancel();
        self.holds.close();
        self.holds.wait().await;
    }

    /// Returns once the role was asked to leave, or to end.
    pub async fn leaving(&self) {
        self.leaving.cancelled().await;
    }

    /// Whether the role was asked to leave, or to end.
    pub fn is_leaving(&self) -> bool {
        self.leaving.is_cancelled()
    }

    /// Keeps [`Stop::leave`] waiting.
    pub fn hold(&self) -> Hold {
        Hold(self.holds.token())
    }

    /// Spawns a task that the role waits for when it ends. The task must itself watch
    /// [`Stop::cancelled`], or be short.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.tasks.spawn(task)
    }

    /// As [`Stop::spawn`], on another runtime (see [`crate::Workers`]).
    pub fn spawn_on<F>(&self, task: F, runtime: &tokio::runtime::Handle) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.tasks.spawn_on(task, runtime)
    }

    /// Asks the role to end.
    pub fn stop(&self) {
        self.leaving.cancel();
        self.token.cancel();
    }

    /// Returns once the role was asked to end.
    pub async fn cancelled(&self) {
        self.token.cancelled().await;
    }

    /// Whether the role was asked to end.
    pub fn is_stopped(&self) -> bool {
        self.token.is_cancelled()
    }

    /// The token alone, for libraries that know nothing of roles.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// How many tasks are still running.
    pub fn running(&self) -> usize {
        self.tasks.len()
    }

    /// Asks to end and waits until every task has, at most `deadline`. `false` if some are left.
    pub async fn drain(&self, deadline: Duration) -> bool {
        self.stop();
        self.tasks.close();
        tokio::time::timeout(deadline, self.tasks.wait()).await.is_ok()
    }
}

/// Returns at the first SIGINT or SIGTERM.
///
/// # Errors
/// When the handlers cannot be installed.
pub async fn signal() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => (),
        _ = terminate.recv() => (),
    }
    Ok(())
}

/// SIGHUP as it comes: read the configuration again.
///
/// # Errors
/// When the handler cannot be installed.
pub fn hangups() -> std::io::Result<tokio::signal::unix::Signal> {
    tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn draining_waits_for_tasks_and_tells_when_one_stays() {
        let role = Stop::new();
        let part = role.child();
        role.spawn({
            let role = role.clone();
            async move { role.cancelled().await }
        });
        part.stop();
        assert!(!role.is_stopped());
        assert!(role.drain(Duration::from_secs(1)).await);
        assert!(part.is_stopped());
        assert_eq!(role.running(), 0);

        let leaving = Stop::new();
        let (first, part, hold) = (leaving.first(), leaving.child(), leaving.hold());
        let left = tokio::time::timeout(Duration::from_secs(5), leaving.leave()).await;
        assert!(left.is_err(), "it waits for who holds it");
        assert!(first.is_stopped() && part.is_leaving() && !part.is_stopped() && !leaving.is_stopped());
        drop(hold);
        tokio::time::timeout(Duration::from_secs(5), leaving.leave()).await.expect("nobody holds it");
        first.stop();
        assert!(!leaving.is_stopped(), "a part ends itself alone");

        let stuck = Stop::new();
        stuck.spawn(std::future::pending::<()>());
        assert!(!stuck.drain(Duration::from_secs(1)).await);
        assert_eq!(stuck.running(), 1);
    }
}
