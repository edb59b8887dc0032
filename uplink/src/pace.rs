//! How fast the answers of a device may be taken: an allowance in bytes, which somebody else grants.
//!
//! Reading is held back, so that the credit of the device's streams is not renewed and it slows down by HTTP/2's own
//! means: nothing is dropped, no other uplink waits, and pings and heads of answers pass.
//!
//! Invariant: without a limit it costs one relaxed load for each piece that is read. A reader that found no allowance is
//! woken by the next grant, or when the limit ends.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

/// Shared by all streams of a device, whichever of its uplinks they go through.
#[derive(Debug, Default)]
pub struct Pace {
    limited: AtomicBool,
    /// Bytes; below nothing after a piece that was larger than what was left.
    allowance: AtomicI64,
    waiting: Mutex<Vec<Waker>>,
}

impl Pace {
    /// From now on only what is granted is taken.
    pub fn limit(&self) {
        if !self.limited.swap(true, Ordering::AcqRel) {
            self.allowance.store(0, Ordering::Release);
        }
    }

    /// From now on everything is taken as it comes.
    pub fn unlimit(&self) {
        self.limited.store(false, Ordering::Release);
        self.wake();
    }

    /// Bytes that may be taken now; below nothing: to be made up for first.
    pub fn allowance(&self) -> i64 {
        self.allowance.load(Ordering::Acquire)
    }

    /// Grants bytes.
    pub fn grant(&self, bytes: i64) {
        if self.allowance.fetch_add(bytes, Ordering::AcqRel) + bytes > 0 {
            self.wake();
        }
    }

    /// Whether the next piece may be read.
    pub(crate) fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_ready() {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // A grant between the look and the lock has woken nobody.
        if self.is_ready() {
            return Poll::Ready(());
        }
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// A piece was read.
    pub(crate) fn took(&self, bytes: usize) {
        if self.limited.load(Ordering::Relaxed) {
            self.allowance.fetch_sub(i64::try_from(bytes).unwrap_or(i64::MAX), Ordering::AcqRel);
        }
    }

    fn is_ready(&self) -> bool {
        !self.limited.load(Ordering::Relaxed) || self.allowance.load(Ordering::Acquire) > 0
    }

    fn wake(&self) {
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        waiting.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    #[test]
    fn what_is_granted_is_taken_and_a_large_piece_is_made_up_for() {
        let (pace, cx) = (Pace::default(), &mut Context::from_waker(Waker::noop()));
        pace.took(1000);
        assert!(pace.poll_ready(cx).is_ready() && pace.allowance() == 0, "no limit, no account");
        pace.limit();
        assert!(pace.poll_ready(cx).is_pending());
        pace.grant(10);
        assert!(pace.poll_ready(cx).is_ready());
        pace.took(100);
        assert!(pace.poll_ready(cx).is_pending());
        assert_eq!(pace.waiting.lock().unwrap().len(), 1, "a reader waits once");
        pace.grant(90);
        assert!(pace.poll_ready(cx).is_pending(), "made up for, and nothing to take");
        pace.unlimit();
        assert!(pace.poll_ready(cx).is_ready());
    }
}
