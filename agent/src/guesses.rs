//! Guessing the device's password is slow, at the page and through uplinks alike: one attempt after the other, and after
//! a wrong one nobody's turn comes for a while.
//!
//! Each door has its own [`Turns`]: the page, all dispatchers together, and each uplink to a tunnel server, so that
//! nobody waits for who guesses elsewhere. Invariant: an attempt that is broken off gains nothing; the time runs on.

use homing_protocol::digest::Refusal;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

/// After a wrong password. With many connections at once guessing is no faster.
pub const WRONG_DELAY: Duration = Duration::from_millis(500);

/// Whose turn it is at one door.
pub struct Turns {
    /// When the next attempt is looked at.
    next: Mutex<Instant>,
}

impl Turns {
    /// The first attempt is looked at at once.
    pub fn new() -> Self {
        Turns { next: Mutex::new(Instant::now()) }
    }

    /// Looks at one attempt when its turn has come.
    pub async fn look<T>(&self, check: impl FnOnce() -> Result<T, Refusal>) -> Result<T, Refusal> {
        let mut next = self.next.lock().await;
        // A timer takes a millisecond even when its time is over.
        if *next > Instant::now() {
            sleep_until(*next).await;
        }
        let checked = check();
        if matches!(checked, Err(Refusal::Wrong)) {
            *next = Instant::now() + WRONG_DELAY;
        }
        checked
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Goal: many attempts at once are no faster than one after the other, broken off or not, and right ones cost nothing.
    #[tokio::test]
    async fn many_guesses_at_once_are_looked_at_one_after_the_other() {
        tokio::time::pause();
        let (turns, looked_at) = (Arc::new(Turns::new()), Arc::new(AtomicU32::new(0)));
        let begun = Instant::now();
        for _ in 0..100 {
            turns.look(|| Ok(())).await.unwrap();
        }
        assert_eq!(begun.elapsed(), Duration::ZERO);
        for round in 0..20 {
            let guesses = (0..50).map(|_| {
                let (turns, looked_at) = (Arc::clone(&turns), Arc::clone(&looked_at));
                let guess = async move {
                    turns
                        .look(|| {
                            looked_at.fetch_add(1, Ordering::Relaxed);
                            Err::<(), _>(Refusal::Wrong)
                        })
                        .await
                };
                tokio::time::timeout(WRONG_DELAY / 10, guess)
            });
            guesses.collect::<tokio::task::JoinSet<_>>().join_all().await;
            assert!(looked_at.load(Ordering::Relaxed) <= 1 + (round + 1) / 10, "{round}: {looked_at:?}");
        }
    }
}
