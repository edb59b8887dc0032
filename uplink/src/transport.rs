//! The bytes under an uplink's HTTP/2: TLS over TCP, and for `wss:` binary WebSocket frames in it.
//!
//! A [`Transport`] is shared by the HTTP/2 codec, which reads and writes it, and by those who need it beside that: the
//! TLS exporter, the byte counters, the orderly close. The lock is held only within a poll.
//!
//! Invariant: after [`Transport::close`] the socket is closed, whoever still holds a clone.

use crate::tls::PeerIdentity;
use crate::websocket::{self, Decoder, Opcode, Role, Step};
use bytes::{Buf as _, Bytes};
use rustls::pki_types::CertificateDer;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsStream;

/// Largest piece that is put into one WebSocket frame: with its head it fills one TLS record of 16,384 bytes.
const WEBSOCKET_PIECE: usize = 16_384 - websocket::HEAD_MAX;

/// How long to wait for our last bytes and the TLS close to get out.
const CLOSE_DEADLINE: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub(crate) struct Transport(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    began: Instant,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    /// Nanoseconds from `began` to the last byte received.
    last_in: AtomicU64,
}

struct State {
    /// None once closed.
    tls: Option<TlsStream<TcpStream>>,
    /// Received together with the head, not yet read.
    early: Bytes,
    websocket: Option<Box<Framing>>,
}

/// State of the `wss:` carrier.
struct Framing {
    role: Role,
    decoder: Decoder,
    /// A frame on its way out, and how much of it is written.
    out: Vec<u8>,
    out_at: usize,
    /// The peer sent a close frame.
    ended: bool,
}

/// A TLS exporter (RFC 8446 §7.5) of one connection; cheap to clone, usable while the connection stands.
#[derive(Clone)]
pub struct Exporter(Transport);

/// The connection is gone, so that nothing can be exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the TLS connection is closed; nothing can be derived from it")]
pub struct ExporterError;

impl Exporter {
    /// 32 bytes that both ends of this connection, and nobody else, can compute for `label` and `context`.
    pub fn export(&self, label: &[u8], context: &[u8]) -> Result<[u8; 32], ExporterError> {
        let state = self.0.lock();
        let exported = match &state.tls {
            Some(TlsStream::Client(tls)) => {
                tls.get_ref().1.export_keying_material([0; 32], label, Some(context))
            }
            Some(TlsStream::Server(tls)) => {
                tls.get_ref().1.export_keying_material([0; 32], label, Some(context))
            }
            None => return Err(ExporterError),
        };
        exported.map_err(|_| ExporterError)
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
    pub fn new(tls: TlsStream<TcpStream>) -> Self {
        let state = State { tls: Some(tls), early: Bytes::new(), websocket: None };
        Self(Arc::new(Shared {
            state: Mutex::new(state),
            began: Instant::now(),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            last_in: AtomicU64::new(0),
        }))
    }

    /// The head is over: `early` came behind it, and from here everything is in WebSocket frames if `websocket` is given.
    pub fn begin(&self, early: Bytes, websocket: Option<Role>) {
        let mut state = self.lock();
        state.early = early;
        state.websocket = websocket.map(|role| {
            Box::new(Framing { role, decoder: Decoder::new(role), out: Vec::new(), out_at: 0, ended: false })
        });
    }

    pub fn exporter(&self) -> Exporter {
        Exporter(self.clone())
    }

    pub fn peer_identity(&self) -> Option<PeerIdentity> {
        let state = self.lock();
        let certificates: &[CertificateDer<'_>] = state.tls.as_ref()?.get_ref().1.peer_certificates()?;
        PeerIdentity::from_certificate(certificates.first()?).ok()
    }

    pub fn bytes_in(&self) -> u64 {
        self.0.bytes_in.load(Ordering::Relaxed)
    }

    pub fn bytes_out(&self) -> u64 {
        self.0.bytes_out.load(Ordering::Relaxed)
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
    fn received(&self, count: usize) {
        if count > 0 {
            self.bytes_in.fetch_add(count as u64, Ordering::Relaxed);
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
        Pin::new(self.tls()?).poll_read(cx, buf)
    }

    fn tls(&mut self) -> io::Result<&mut TlsStream<TcpStream>> {
        self.tls.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Reads until there is payload, an end or nothing.
    fn poll_read_framed(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        let mut raw = 0;
        loop {
            if self.websocket.as_ref().is_some_and(|framing| framing.ended) {
                return Poll::Ready(Ok(raw));
            }
            let before = buf.filled().len();
            ready!(self.poll_read(cx, buf))?;
            let Some(framing) = &mut self.websocket else { return Poll::Ready(Ok(0)) };
            let fresh = &mut buf.filled_mut()[before..];
            if fresh.is_empty() {
                let end = framing.decoder.is_at_boundary();
                return Poll::Ready(if end { Ok(raw) } else { Err(io::ErrorKind::UnexpectedEof.into()) });
            }
            raw += fresh.len();
            let payload = framing
                .read_frames(fresh)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            buf.set_filled(before + payload);
            if payload > 0 {
                return Poll::Ready(Ok(raw));
            }
        }
    }

    /// Writes the frame on its way out.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { tls: Some(tls), websocket: Some(framing), .. } = self else { return Poll::Ready(Ok(())) };
        while framing.out_at < framing.out.len() {
            let count = ready!(Pin::new(&mut *tls).poll_write(cx, &framing.out[framing.out_at..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            framing.out_at += count;
        }
        framing.out.clear();
        framing.out_at = 0;
        // An idle connection keeps no buffer.
        framing.out.shrink_to(0);
        Poll::Ready(Ok(()))
    }
}

impl Framing {
    /// Decodes in place; answers pings and the close.
    fn read_frames(&mut self, fresh: &mut [u8]) -> Result<usize, websocket::FrameError> {
        let Self { role, decoder, out, ended, .. } = self;
        decoder.decode_in_place(fresh, |step, body| {
            // A peer that pings without reading gets no more answers than fit into one frame's buffer.
            if out.len() > WEBSOCKET_PIECE {
                return;
            }
            match step {
                Step::Ping => out.extend(websocket::control_frame(*role, Opcode::Pong, body)),
                Step::Close => {
                    *ended = true;
                    out.extend(websocket::control_frame(
                        *role,
                        Opcode::Close,
                        body.get(..2).unwrap_or_default(),
                    ));
                }
                _ => {}
            }
        })
    }

    /// Puts a frame with the beginning of `bufs` behind what is on its way out; returns how much it took.
    fn write_frame(&mut self, bufs: &[io::IoSlice<'_>]) -> usize {
        let length = bufs.iter().map(|buf| buf.len()).sum::<usize>().min(WEBSOCKET_PIECE);
        let key = websocket::mask_key(self.role);
        let mut head = [0; websocket::HEAD_MAX];
        let size = websocket::write_head(&mut head, Opcode::Binary, length, key);
        self.out.reserve_exact(size + length);
        self.out.extend_from_slice(&head[..size]);
        let start = self.out.len();
        for buf in bufs {
            let room = length - (self.out.len() - start);
            self.out.extend_from_slice(&buf[..buf.len().min(room)]);
        }
        if let Some(key) = key {
            websocket::Mask::new(key).apply(&mut self.out[start..]);
        }
        length
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.lock();
        let count = if state.websocket.is_some() {
            let count = ready!(state.poll_read_framed(cx, buf))?;
            // Pongs and the answer to a close go out as far as the socket takes them; the next write sends the rest.
            let _ = state.poll_drain(cx)?;
            count
        } else {
            let before = buf.filled().len();
            ready!(state.poll_read(cx, buf))?;
            buf.filled().len() - before
        };
        self.0.received(count);
        Poll::Ready(Ok(()))
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
        let count = if state.websocket.is_some() {
            ready!(state.poll_drain(cx))?;
            let count = state.websocket.as_mut().map_or(0, |framing| framing.write_frame(bufs));
            // The frame is ours now: what the socket does not take at once goes out with the next write or flush.
            let _ = state.poll_drain(cx)?;
            count
        } else {
            ready!(Pin::new(state.tls()?).poll_write_vectored(cx, bufs))?
        };
        self.0.bytes_out.fetch_add(count as u64, Ordering::Relaxed);
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.lock();
        ready!(state.poll_drain(cx))?;
        Pin::new(state.tls()?).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.lock();
        ready!(state.poll_drain(cx))?;
        match &mut state.tls {
            Some(tls) => Pin::new(tls).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }
}
