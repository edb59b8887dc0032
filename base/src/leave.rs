//! Whether somebody who was let in may stay: for answers that go on for long after the question.
//!
//! The role that lets people in puts a [`Leave`] into the extensions of a request that it passes on; the role that
//! answers ends its answer when the leave is withdrawn. Neither needs to know more of the other.

use crate::Stop;
use std::future::Future;
use tokio::sync::watch;

/// Stands until it is withdrawn. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Leave(watch::Receiver<()>);

impl Leave {
    /// A leave that is withdrawn when `ended` is; that is watched for as long as anybody keeps the leave.
    pub fn until(stop: &Stop, ended: impl Future<Output = ()> + Send + 'static) -> Leave {
        let (standing, leave) = watch::channel(());
        let role = stop.clone();
        stop.spawn(async move {
            tokio::select! {
                () = ended => (),
                () = standing.closed() => (),
                () = role.cancelled() => (),
            }
        });
        Leave(leave)
    }

    /// Comes back when it is withdrawn.
    pub async fn withdrawn(&mut self) {
        while self.0.changed().await.is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn it_stands_until_withdrawn_and_leaves_no_task() {
        let stop = Stop::new();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let mut leave = Leave::until(&stop, async { drop(ended.await) });
        tokio::time::timeout(Duration::from_millis(20), leave.withdrawn()).await.unwrap_err();
        drop(end);
        leave.withdrawn().await;

        let kept = Leave::until(&stop, std::future::pending());
        drop(kept);
        let gone = async {
            while stop.running() > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), gone).await.expect("a task is left");
    }
}
