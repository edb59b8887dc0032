//! A future beside a busy one in the same task, polled only when it was woken itself.
//!
//! An uplink's task wakes for every packet. Stops, timers and pings are rare, and asking each of them every time is a
//! measurable part of a packet's cost.

use futures_util::task::AtomicWaker;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// Polls `future` at first, and then only after its own waker was called.
pub(crate) struct Gated<F> {
    gate: Arc<Gate>,
    future: Pin<Box<F>>,
}

struct Gate {
    woken: AtomicBool,
    task: AtomicWaker,
}

impl<F: Future> Gated<F> {
    pub fn new(future: F) -> Self {
        let gate = Gate { woken: AtomicBool::new(true), task: AtomicWaker::new() };
        Self { gate: Arc::new(gate), future: Box::pin(future) }
    }

    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<F::Output> {
        // First registered, then looked: a call between the two is not missed.
        self.gate.task.register(cx.waker());
        if !self.gate.woken.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        let waker = Waker::from(Arc::clone(&self.gate));
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }
}

impl Wake for Gate {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.task.wake();
    }
}
