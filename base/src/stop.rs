//! How a role ends: one token that says so, one tracker that knows what is still running.
//!
//! Invariant: a task spawned through [`Stop::spawn`] is either finished or still counted; when
//! [`Stop::drain`] returns `true`, nothing of the role is left.

use std::{future::Future, time::Duration};
use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long a role may take to end after it was asked to; then its tasks are abandoned with the
/// process.
pub const DRAIN_DEADLINE: Duration = Duration::from_millis(1000);

/// Cheap to clone; all clones are the same role.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    token: CancellationToken,
    tasks: TaskTracker,
}

impl Stop {
    /// A role that runs.
    pub fn new() -> Self {
        Self::default()
    }

    /// A part of this role that can end by itself; it ends at the latest with the whole. Its tasks
    /// are counted by the whole.
    pub fn child(&self) -> Stop {
        Stop { token: self.token.child_token(), tasks: self.tasks.clone() }
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

        let stuck = Stop::new();
        stuck.spawn(std::future::pending::<()>());
        assert!(!stuck.drain(Duration::from_secs(1)).await);
        assert_eq!(stuck.running(), 1);
    }
}
