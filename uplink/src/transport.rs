//! The bytes under an uplink's HTTP/2: TLS over TCP, and for `wss:` binary WebSocket frames in it.
//!
//! A [`Transport`] is shared by the HTTP/2 codec, and by those who need it beside that: the TLS exporter, the byte counters,
//! the orderly close. The lock is held only within a poll. Our own codec takes what comes where it was decrypted
//! ([`Transport::poll_receive`]) and gives whole buffers ([`Transport::send`]); `h2` reads and writes it as a stream.
//!
//! Invariant: after [`Transport::close`] the socket is closed, whoever still holds a clone.

use crate::flood::{Allowance, Flood, Watched};
use crate::tls::{INTERMEDIATES_MAX, PeerIdentity};
use crate::tls_stream::{TlsStream, give_spare};
use crate::websocket::{self, Decoder, Opcode, Role, Step};
use bytes::{Buf as _, Bytes};
use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::time::Instant;

/// Largest piece that is put into one WebSocket frame: with its head it fills one TLS record of 16,384 bytes.
const WEBSOCKET_PIECE: usize = 16_384 - websocket::HEAD_MAX;

/// Pongs and closes on their way out to a peer that pings without reading: no more than this, in bytes.
const ANSWERS_MAX: usize = 16_384;

/// How long to wait for our last bytes and the TLS close to get out.
const CLOSE_DEADLINE: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub(crate) struct Transport(Arc<Shared>);

/// Closes the connection when it is dropped, whoever holds an [`Exporter`] of it.
#[derive(Debug)]
pub(crate) struct CloseOnDrop(pub Transport);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Shared {
    state: Mutex<State>,
    began: Instant,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    line_in: AtomicU64,
    /// Nanoseconds from `began` to the last byte received.
    last_in: AtomicU64,
    /// Flushing is left to [`Transport::poll_send`].
    gathering: AtomicBool,
}

struct State {
    /// None once closed.
    tls: Option<TlsStream>,
    /// Received together with the head, not yet read.
    early: Bytes,
    websocket: Option<Box<Framing>>,
    /// Of the HTTP/2 in it, where the codec does not count by itself.
    watched: Option<Watched>,
    /// What the peer has used it up with; the connection is over.
    flood: Option<Flood>,
}

/// State of the `wss:` carrier.
struct Framing {
    role: Role,
    decoder: Decoder,
    allowance: Allowance,
    /// The peer sent a close frame.
    ended: bool,
}

thread_local! {
    /// Where WebSocket frames are unmasked on their way to our codec.
    static UNMASKED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A TLS exporter (RFC 8446 §7.5) of one connection; cheap to clone, usable while the connection stands.
#[derive(Clone)]
pub struct Exporter(Transport);

/// The connection is gone, or speaks TLS 1.2, so that nothing can be exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nothing can be derived from the TLS connection: it is closed, or not TLS 1.3")]
pub struct ExporterError;

impl Exporter {
    /// 32 bytes that both ends of this connection, and nobody else, can compute for `label` and `context`.
    pub fn export(&self, label: &[u8], context: &[u8]) -> Result<[u8; 32], ExporterError> {
        self.0.lock().tls.as_ref().and_then(|tls| tls.export(label, context)).ok_or(ExporterError)
    }
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Transport")
    }
}

impl std::fmt::Debug for Exporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Exporter")
    }
}

impl Transport {
    pub fn new(tls: TlsStream) -> Self {
        let state =
            State { tls: Some(tls), early: Bytes::new(), websocket: None, watched: None, flood: None };
        Self(Arc::new(Shared {
            state: Mutex::new(state),
            began: Instant::now(),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            line_in: AtomicU64::new(0),
            last_in: AtomicU64::new(0),
            gathering: AtomicBool::new(false),
        }))
    }

    /// The head is over: `early` came behind it, and from here everything is in WebSocket frames if `websocket` is given.
    /// What is written from here is gathered until [`poll_send`](Self::poll_send), whatever the codec flushes.
    /// `we_are_client` in HTTP/2, that is, we have accepted the connection.
    pub fn begin(&self, early: Bytes, websocket: Option<Role>, we_are_client: bool) {
        let mut state = self.lock();
        state.early = early;
        state.watched = (!we_are_client).then(Watched::server);
        state.websocket = websocket.map(|role| {
            let (decoder, allowance) = (Decoder::new(role), Allowance::new());
            Box::new(Framing { role, decoder, allowance, ended: false })
        });
        self.0.gathering.store(true, Ordering::Relaxed);
    }

    /// Sends what was written. To be called after each poll of the codec; pending while the socket does not take it.
    pub fn poll_send(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.lock().tls {
            Some(tls) => tls.poll_send(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Receives once, and hands HTTP/2's bytes to `take`, where they are. How many came; none at the peer's orderly end.
    pub fn poll_receive(&self, cx: &mut Context<'_>, take: &mut dyn FnMut(&[u8])) -> Poll<io::Result<usize>> {
        let state = &mut *self.lock();
        let State { tls: Some(tls), early, websocket, flood, .. } = state else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        if websocket.as_ref().is_some_and(|framing| framing.ended) {
            return Poll::Ready(Ok(0));
        }
        let (mut count, mut answers, mut unframed) = (0, Vec::new(), Ok(()));
        let mut pass = |bytes: &[u8]| {
            count += bytes.len();
            match websocket {
                None => take(bytes),
                Some(framing) if unframed.is_ok() => unframed = framing.pass(bytes, &mut answers, take),
                Some(_) => {}
            }
        };
        if early.is_empty() {
            ready!(tls.poll_pass(cx, &mut pass))?;
        } else {
            pass(&std::mem::take(early));
        }
        if !answers.is_empty() && tls.outgoing().len() < ANSWERS_MAX {
            tls.outgoing().append(&mut answers);
        }
        self.0.received(count, tls.line_in());
        match unframed {
            Err(Unframed::Flood(by)) => {
                *flood = Some(by);
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, by.0)));
            }
            Err(Unframed::Frame(error)) => {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
            }
            Ok(()) => {}
        }
        let is_cut =
            count == 0 && websocket.as_ref().is_some_and(|framing| !framing.decoder.is_at_boundary());
        Poll::Ready(if is_cut { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(count) })
    }

    /// Takes over a buffer of HTTP/2 that is to be sent, once [`poll_send`](Self::poll_send) has sent what there was.
    pub fn send(&self, bytes: Vec<u8>) {
        self.0.bytes_out.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let state = &mut *self.lock();
        let Some(tls) = &mut state.tls else { return };
        match state.websocket.as_ref().map(|framing| framing.role) {
            None => tls.put_outgoing(bytes),
            Some(role) => {
                let mut rest = bytes.as_slice();
                while !rest.is_empty() {
                    let taken = write_frame(role, &[io::IoSlice::new(rest)], tls.outgoing());
                    rest = &rest[taken..];
                }
                give_spare(bytes);
            }
        }
    }

    /// What the peer has flooded us with, if it has.
    pub fn flood(&self) -> Option<Flood> {
        self.lock().flood
    }

    pub fn exporter(&self) -> Exporter {
        Exporter(self.clone())
    }

    pub fn peer_identity(&self) -> Option<PeerIdentity> {
        let state = self.lock();
        let (first, behind) = state.tls.as_ref()?.peer_certificates()?.split_first()?;
        let mut identity = PeerIdentity::from_certificate(first).ok()?;
        identity.intermediates_der = behind.iter().take(INTERMEDIATES_MAX).map(|der| der.to_vec()).collect();
        Some(identity)
    }

    pub fn bytes_in(&self) -> u64 {
        self.0.bytes_in.load(Ordering::Relaxed)
    }

    pub fn bytes_out(&self) -> u64 {
        self.0.bytes_out.load(Ordering::Relaxed)
    }

    /// See [`TlsStream::line_in`].
    pub fn line_in(&self) -> u64 {
        self.0.line_in.load(Ordering::Relaxed)
    }

    /// When the last byte came, or the connection began.
    pub fn last_received(&self) -> Instant {
        self.0.began + Duration::from_nanos(self.0.last_in.load(Ordering::Relaxed))
    }

    /// Sends what is left and the TLS close, waits for the peer's, then closes the socket; within [`CLOSE_DEADLINE`].
    pub async fn close(&self) {
        let mut this = self.clone();
        let closing = async {
            this.shutdown().await?;
            // Closing a socket with unread bytes resets the connection, which could overtake our last words.
            let mut rest = [0; 512];
            while this.read(&mut rest).await? > 0 {}
            io::Result::Ok(())
        };
        // An error or the deadline: the peer is gone, the socket is closed all the same.
        let _ = tokio::time::timeout(CLOSE_DEADLINE, closing).await;
        self.abort();
    }

    /// Closes the socket at once.
    pub fn abort(&self) {
        self.lock().tls = None;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn received(&self, count: usize, line_in: u64) {
        if count > 0 {
            self.bytes_in.fetch_add(count as u64, Ordering::Relaxed);
            self.line_in.store(line_in, Ordering::Relaxed);
            self.last_in.store(self.began.elapsed().as_nanos() as u64, Ordering::Relaxed);
        }
    }
}

impl State {
    /// Reads from TLS, or what came early.
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.early.has_remaining() {
            let count = self.early.len().min(buf.remaining());
            buf.put_slice(&self.early.split_to(count));
            return Poll::Ready(Ok(()));
        }
        self.tls()?.poll_read(cx, buf)
    }

    fn count(&mut self, counted: Result<(), Flood>) -> io::Result<()> {
        let Err(flood) = counted else { return Ok(()) };
        self.flood = Some(flood);
        Err(io::Error::new(io::ErrorKind::InvalidData, flood.0))
    }

    fn tls(&mut self) -> io::Result<&mut TlsStream> {
        self.tls.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Reads until there is payload, an end or nothing; how many bytes it took, heads included.
    fn poll_read_framed(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        let mut raw = 0;
        loop {
            if self.websocket.as_ref().is_some_and(|framing| framing.ended) {
                return Poll::Ready(Ok(raw));
            }
            let before = buf.filled().len();
            ready!(self.poll_read(cx, buf))?;
            let Self { tls: Some(tls), websocket: Some(framing), .. } = self else {
                return Poll::Ready(Ok(raw));
            };
            let fresh = &mut buf.filled_mut()[before..];
            if fresh.is_empty() {
                let in_order = framing.decoder.is_at_boundary();
                return Poll::Ready(if in_order {
                    Ok(raw)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                });
            }
            let length = fresh.len();
            raw += length;
            let mut answers = Vec::new();
            let (payload, decoded) = framing.read_frames(fresh, &mut answers);
            if tls.outgoing().len() < ANSWERS_MAX {
                tls.outgoing().append(&mut answers);
            }
            decoded.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            let counted = framing.allowance.receive_framing(length - payload, payload);
            buf.set_filled(before + payload);
            self.count(counted)?;
            if payload > 0 {
                return Poll::Ready(Ok(raw));
            }
        }
    }
}

/// Why WebSocket frames were not passed on.
enum Unframed {
    Frame(websocket::FrameError),
    Flood(Flood),
}

impl Framing {
    /// Decodes in place, and appends what is to be answered to pings and the close.
    fn read_frames(
        &mut self,
        fresh: &mut [u8],
        answers: &mut Vec<u8>,
    ) -> (usize, Result<(), websocket::FrameError>) {
        let Self { role, decoder, ended, .. } = self;
        decoder.decode_in_place(fresh, |step, body| {
            *ended |= step == Step::Close;
            let (opcode, body) = match step {
                Step::Ping => (Opcode::Pong, body),
                Step::Close => (Opcode::Close, body.get(..2).unwrap_or_default()),
                _ => return,
            };
            if answers.len() < ANSWERS_MAX {
                answers.extend(websocket::control_frame(*role, opcode, body));
            }
        })
    }

    /// Passes the payload of what came to `take`.
    fn pass(
        &mut self,
        bytes: &[u8],
        answers: &mut Vec<u8>,
        take: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Unframed> {
        UNMASKED.with_borrow_mut(|unmasked| {
            unmasked.clear();
            unmasked.extend_from_slice(bytes);
            let (length, decoded) = self.read_frames(unmasked, answers);
            take(&unmasked[..length]);
            decoded.map_err(Unframed::Frame)?;
            self.allowance.receive_framing(bytes.len() - length, length).map_err(Unframed::Flood)
        })
    }
}

/// Appends a frame with the beginning of `bufs`; returns how much it took.
fn write_frame(role: Role, bufs: &[io::IoSlice<'_>], outgoing: &mut Vec<u8>) -> usize {
    let length = bufs.iter().map(|buf| buf.len()).sum::<usize>().min(WEBSOCKET_PIECE);
    let key = websocket::mask_key(role);
    let mut head = [0; websocket::HEAD_MAX];
    let size = websocket::write_head(&mut head, Opcode::Binary, length, key);
    outgoing.extend_from_slice(&head[..size]);
    let start = outgoing.len();
    for buf in bufs {
        let room = length - (outgoing.len() - start);
        outgoing.extend_from_slice(&buf[..buf.len().min(room)]);
    }
    if let Some(key) = key {
        websocket::Mask::new(key).apply(&mut outgoing[start..]);
    }
    length
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.lock();
        let before = buf.filled().len();
        let count = if state.websocket.is_some() {
            ready!(state.poll_read_framed(cx, buf))?
        } else {
            ready!(state.poll_read(cx, buf))?;
            buf.filled().len() - before
        };
        self.0.received(count, state.tls()?.line_in());
        let counted =
            state.watched.as_mut().map_or(Ok(()), |watched| watched.receive(&buf.filled()[before..]));
        Poll::Ready(state.count(counted))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.lock();
        let role = state.websocket.as_ref().map(|framing| framing.role);
        let outgoing = ready!(state.tls()?.poll_outgoing(cx))?;
        let count = match role {
            Some(role) => write_frame(role, bufs, outgoing),
            None => {
                bufs.iter().for_each(|buf| outgoing.extend_from_slice(buf));
                bufs.iter().map(|buf| buf.len()).sum()
            }
        };
        if let Some(watched) = &mut state.watched {
            let mut left = count;
            for buf in bufs {
                let sent = buf.len().min(left);
                watched.send(&buf[..sent]);
                left -= sent;
            }
        }
        self.0.bytes_out.fetch_add(count as u64, Ordering::Relaxed);
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Does nothing once gathering: the codec flushes after each large frame, but a burst of them is to be one write.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.0.gathering.load(Ordering::Relaxed) { Poll::Ready(Ok(())) } else { self.poll_send(cx) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.lock().tls {
            Some(tls) => tls.poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }
}
