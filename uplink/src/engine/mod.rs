//! HTTP/2 as the client of one uplink: the codec of the server's end (RFC 9113, with RFC 8441's extended CONNECT).
//!
//! [`connection`] is the protocol, [`stream`] what it keeps of each stream, [`frame`] and [`hpack`] are formats. Here is
//! what is held by others: the [`Engine`] for the driver and for whoever opens streams, and the halves of a stream,
//! [`Receiver`] and [`Sender`].
//!
//! Why not the `h2` crate, which the device's end uses: an idle connection of its holds three buffers (docs/decisions, 018).
//!
//! Not here: sockets, TLS and the carrier (`transport.rs`), pings' times (`liveness.rs`).
//!
//! Invariant: the lock is held for the time of one call, and never while another of ours is taken.

mod connection;
mod frame;
mod hpack;
mod huffman;
mod stream;
#[cfg(test)]
mod tests;

pub(crate) use connection::Fault;
pub(crate) use frame::Code;

use crate::EndReason;
use crate::body::Chunk;
use bytes::Bytes;
use connection::State;
use http::{Request, Response};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use tokio::sync::Notify;

/// Why a stream goes no further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// One end broke it off.
    Reset { by_peer: bool, code: Code },
    /// The device did not keep to HTTP on it.
    Malformed(&'static str),
    /// With the whole uplink.
    Ended(EndReason),
}

impl Broken {
    pub fn cancelled() -> Self {
        Self::Reset { by_peer: false, code: Code::CANCEL }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reset { by_peer, code } => {
                let by = if *by_peer { "the peer" } else { "this end" };
                match *code {
                    Code::CANCEL => write!(f, "{by} cancelled the stream"),
                    code => write!(f, "{by} reset the stream: {code}"),
                }
            }
            Self::Malformed(what) => write!(f, "the device's answer is not valid: {what}"),
            Self::Ended(reason) => write!(f, "{reason}"),
        }
    }
}

/// One connection; clones share it.
#[derive(Clone)]
pub(crate) struct Engine(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// A stream became free, settings came, or it has ended.
    changed: Notify,
    ponged: Notify,
}

impl Engine {
    /// Begins: preface and settings are to be sent. At most `streams_max` streams with a credit of `stream_window` bytes
    /// each; from `out_max` bytes to be sent on, streams wait.
    pub fn new(stream_window: u32, connection_window: u32, streams_max: usize, out_max: usize) -> Self {
        let state = State::new(stream_window, connection_window, streams_max, out_max);
        Self(Arc::new(Shared { state: Mutex::new(state), changed: Notify::new(), ponged: Notify::new() }))
    }

    fn lock(&self) -> Locked<'_> {
        Locked { state: self.0.state.lock().unwrap_or_else(PoisonError::into_inner), shared: &self.0 }
    }

    // For the driver.

    /// Registers the driver, which is woken when there is something to send, or to close.
    pub fn register(&self, driver: &Waker) {
        let state = &mut *self.lock().state;
        match &state.driver {
            Some(registered) if registered.will_wake(driver) => {}
            _ => state.driver = Some(driver.clone()),
        }
    }

    /// Takes what came; a fault is the end.
    pub fn receive(&self, bytes: &[u8]) -> Result<(), Fault> {
        self.lock().state.receive(bytes)
    }

    /// Takes what is to be sent now; streams that waited for room go on.
    pub fn take_out(&self) -> Vec<u8> {
        let state = &mut *self.lock().state;
        state.pump();
        std::mem::take(&mut state.out)
    }

    /// What a handle wants the end for; or that the peer said goodbye and nothing is left.
    pub fn wants_end(&self) -> Option<EndReason> {
        let state = &mut *self.lock().state;
        state.to_close.clone().or_else(|| state.is_over().then_some(EndReason::PeerClosed))
    }

    pub fn ping(&self) {
        self.lock().state.ping();
    }

    /// Waits for the answer to the ping.
    pub async fn ponged(&self) {
        self.0.ponged.notified().await;
    }

    /// From here everything fails with this reason; the first counts.
    pub fn end(&self, reason: EndReason) {
        self.lock().state.end(reason);
    }

    /// Queues the GOAWAY that says why.
    pub fn say_goodbye(&self, fault: Option<&Fault>) {
        self.lock().state.say_goodbye(fault);
    }

    // For handles.

    /// Asks the driver to end; the first reason counts.
    pub fn close(&self, reason: EndReason) {
        let state = &mut *self.lock().state;
        state.to_close.get_or_insert(reason);
        state.wake_driver();
    }

    pub fn ended(&self) -> Option<EndReason> {
        self.lock().state.ended.clone()
    }

    /// Waits for the end, and says why.
    pub async fn until_ended(&self) -> EndReason {
        self.until(|state| state.ended.clone()).await
    }

    /// Whether the device offers WebSocket, once it has said so.
    pub async fn offers_websocket(&self) -> Result<bool, EndReason> {
        self.until(|state| match &state.ended {
            Some(reason) => Some(Err(reason.clone())),
            None => state.offers_websocket().map(Ok),
        })
        .await
    }

    /// Opens a stream with a request's head, when there may be one more. `end`: there is no body.
    pub async fn open(
        &self,
        request: &Request<()>,
        protocol: Option<&str>,
        end: bool,
    ) -> Result<(Receiver, Sender), Broken> {
        let id = self.until(|state| state.open(request, protocol, end)).await?;
        Ok((Receiver { engine: self.clone(), id }, Sender { engine: self.clone(), id }))
    }

    /// Streams in use now.
    pub fn streams(&self) -> usize {
        self.lock().state.streams.len()
    }

    /// Streams at once, by our limit and the device's.
    pub fn streams_max(&self) -> usize {
        self.lock().state.streams_max()
    }

    async fn until<T>(&self, mut look: impl FnMut(&mut State) -> Option<T>) -> T {
        loop {
            let changed = self.0.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            if let Some(found) = look(&mut self.lock().state) {
                return found;
            }
            changed.await;
        }
    }
}

/// The state; when it is given back, those are told who wait for a change of it.
struct Locked<'a> {
    state: MutexGuard<'a, State>,
    shared: &'a Shared,
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if std::mem::take(&mut self.state.is_changed) {
            self.shared.changed.notify_waiters();
        }
        if std::mem::take(&mut self.state.is_ponged) {
            self.shared.ponged.notify_one();
        }
    }
}

/// The half of a stream that receives. Dropped before the end it breaks the stream off.
pub(crate) struct Receiver {
    engine: Engine,
    id: u32,
}

impl Receiver {
    /// The head of the answer, once.
    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<()>, Broken>> {
        let state = &mut *self.engine.lock().state;
        let Some(stream) = state.stream(self.id) else { return Poll::Ready(Err(Broken::cancelled())) };
        if let Some(head) = stream.head.take() {
            return Poll::Ready(Ok(*head));
        }
        if let Some(broken) = &stream.broken {
            return Poll::Ready(Err(broken.clone()));
        }
        stream.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// [`poll_head`](Self::poll_head) as a future.
    pub async fn head(&mut self) -> Result<Response<()>, Broken> {
        std::future::poll_fn(|cx| self.poll_head(cx)).await
    }

    /// What has come, in one piece; none at the end. Its credit is given back.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        let state = &mut *self.engine.lock().state;
        let Some(stream) = state.stream(self.id) else { return Poll::Ready(None) };
        if let Some(piece) = stream.received.pop_front() {
            if stream.received.is_empty() {
                stream.received = Default::default();
            }
            state.taken(self.id, piece.len());
            return Poll::Ready(Some(Ok(piece.freeze())));
        }
        if stream.receive_ended {
            return Poll::Ready(None);
        }
        if let Some(broken) = &stream.broken {
            return Poll::Ready(Some(Err(broken.clone())));
        }
        match &stream.reader {
            Some(registered) if registered.will_wake(cx.waker()) => {}
            _ => stream.reader = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Whether it is known that nothing more comes.
    pub fn is_end_stream(&self) -> bool {
        let state = &mut *self.engine.lock().state;
        state.stream(self.id).is_none_or(|stream| stream.receive_ended && stream.received.is_empty())
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.engine.lock().state.drop_reader(self.id);
    }
}

/// The half of a stream that sends. Dropped before the end it does not break the stream off, unless the other half is gone.
pub(crate) struct Sender {
    engine: Engine,
    id: u32,
}

impl Sender {
    /// Ready when at least a byte may be sent. What is sent beyond that waits in the stream.
    pub fn poll_credit(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let state = &mut *self.engine.lock().state;
        let at = state.streams.binary_search_by_key(&self.id, |stream| stream.id);
        let Ok(at) = at else { return Poll::Ready(Err(Broken::cancelled())) };
        if let Some(broken) = &state.streams[at].broken {
            return Poll::Ready(Err(broken.clone()));
        }
        if state.has_credit(&state.streams[at], 1) {
            return Poll::Ready(Ok(()));
        }
        state.streams[at].writer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Whether so many bytes would go out at once.
    pub fn has_credit(&self, size: usize) -> bool {
        let state = &*self.engine.lock().state;
        let mut streams = state.streams.iter();
        streams.find(|stream| stream.id == self.id).is_some_and(|stream| state.has_credit(stream, size))
    }

    pub fn send_data(&mut self, chunk: Chunk, end: bool) -> Result<(), Broken> {
        self.engine.lock().state.send(self.id, chunk, end)
    }

    pub fn cancel(&mut self) {
        self.engine.lock().state.reset(self.id, Code::CANCEL, Broken::cancelled());
    }

    /// Ready when the stream was broken off.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let state = &mut *self.engine.lock().state;
        let Some(stream) = state.stream(self.id).filter(|stream| stream.broken.is_none()) else {
            return Poll::Ready(());
        };
        stream.writer = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.engine.lock().state.drop_writer(self.id);
    }
}
