//! A WebSocket inside an uplink as a byte pipe: RFC 8441 extended CONNECT carrying RFC 6455 binary frames.
//!
//! That is how RTSP runs to a device (`rtsp.onvif.org`). Reading hands out slices of what was received; writing puts
//! each write into one frame. Credit is given back to the peer as the reader takes its bytes, so that a reader that
//! stops holds at most its stream's window.

use crate::body::{Body, Chunk, DATA_MAX, describe, poll_credit};
use crate::pace::Pace;
use crate::websocket::{Decoder, HEAD_MAX, Mask, Opcode, Role, Step, control_frame, mask_key, write_head};
use bytes::{Buf as _, Bytes, BytesMut};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;

/// Largest payload of a frame that we send: head and payload are one DATA frame, which is one TLS record.
const PAYLOAD_MAX: usize = DATA_MAX - HEAD_MAX;

/// A WebSocket through an uplink, as [`AsyncRead`] and [`AsyncWrite`].
///
/// 1. Made by `Uplink::open_websocket` or `Incoming::accept_websocket`.
/// 2. Bytes of binary frames, both ways; pings are answered.
/// 3. Shutting the writing side down sends a close frame and the end; the peer's close reads as the end.
/// 4. Dropping it before either end has closed resets the stream.
///
/// Each write is one frame, so writes should be gathered (`write_vectored`, [`poll_send`](Self::poll_send)).
pub struct WebSocketStream {
    recv: Option<h2::RecvStream>,
    send: h2::SendStream<Chunk>,
    role: Role,
    decoder: Decoder,
    subprotocol: Option<String>,
    /// Received, not yet decoded.
    input: Bytes,
    /// Decoded, not yet read.
    payload: Bytes,
    /// How fast it may be taken.
    pace: Option<Arc<Pace>>,
    /// Bytes of the last DATA frame, to be given back as credit once it is read.
    owed: usize,
    read_ended: bool,
    /// An error for the next read: this one had bytes to hand out.
    failed: Option<io::Error>,
    write_ended: bool,
    _permit: Option<OwnedSemaphorePermit>,
}

impl WebSocketStream {
    pub(crate) fn new(
        body: Body,
        send: h2::SendStream<Chunk>,
        role: Role,
        subprotocol: Option<String>,
    ) -> Self {
        let (recv, pace, permit) = body.into_stream();
        Self {
            read_ended: recv.is_none(),
            recv,
            send,
            role,
            decoder: Decoder::new(role),
            subprotocol,
            input: Bytes::new(),
            payload: Bytes::new(),
            pace,
            owed: 0,
            failed: None,
            write_ended: false,
            _permit: permit,
        }
    }

    /// The subprotocol that both ends agreed on.
    pub fn subprotocol(&self) -> Option<&str> {
        self.subprotocol.as_deref()
    }

    /// The next bytes as they were received, without copying them where they were not masked; none at the end.
    /// Taking more gives the credit of what was taken before back to the peer.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        match ready!(self.poll_payload(cx)) {
            Ok(true) => Poll::Ready(Some(Ok(std::mem::take(&mut self.payload)))),
            Ok(false) => Poll::Ready(None),
            Err(error) => Poll::Ready(Some(Err(error))),
        }
    }

    /// [`poll_chunk`](Self::poll_chunk) as a future.
    pub async fn next_chunk(&mut self) -> Option<io::Result<Bytes>> {
        std::future::poll_fn(|cx| self.poll_chunk(cx)).await
    }

    /// Sends the beginning of `data` as one frame when the stream has credit, and takes it off `data`. A server's frame
    /// is sent without copying.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<()>> {
        let length = data.len().min(PAYLOAD_MAX);
        ready!(self.poll_writable(cx, length))?;
        let payload = data.split_to(length);
        Poll::Ready(match mask_key(self.role) {
            None => self.send_frame(None, payload),
            Some(key) => {
                let mut masked = BytesMut::from(payload);
                Mask::new(key).apply(&mut masked);
                self.send_frame(Some(key), masked.freeze())
            }
        })
    }

    /// Fills `self.payload`; false at the end.
    fn poll_payload(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        while self.payload.is_empty() {
            if self.read_ended {
                return Poll::Ready(Ok(false));
            }
            if self.input.is_empty() && !ready!(self.poll_input(cx))? {
                self.read_ended = true;
                if !self.decoder.is_at_boundary() {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                continue;
            }
            self.decode()?;
        }
        Poll::Ready(Ok(true))
    }

    /// Receives the next DATA frame; false at the end of the stream.
    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let Some(recv) = &mut self.recv else { return Poll::Ready(Ok(false)) };
        if let Some(pace) = &self.pace {
            ready!(pace.poll_ready(cx));
        }
        if self.owed > 0 {
            // Only an error of ours could make this fail.
            let _ = recv.flow_control().release_capacity(std::mem::take(&mut self.owed));
        }
        match ready!(recv.poll_data(cx)) {
            Some(Ok(data)) => {
                self.owed = data.len();
                if let Some(pace) = &self.pace {
                    pace.took(data.len());
                }
                self.input = data;
                Poll::Ready(Ok(true))
            }
            Some(Err(error)) => Poll::Ready(Err(broken(error))),
            None => Poll::Ready(Ok(false)),
        }
    }

    /// Decodes input up to the next payload.
    fn decode(&mut self) -> io::Result<()> {
        while self.payload.is_empty() && !self.input.is_empty() {
            let (taken, step) = match self.decoder.step(&self.input) {
                Ok(step) => step,
                Err(error) => {
                    self.read_ended = true;
                    // The peer may have gone by now; what it did wrong is what counts.
                    let _ = self.close_writing(error.close_code());
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                }
            };
            let piece = self.input.split_to(taken);
            match step {
                Step::Head | Step::Pong => {}
                Step::Payload(None) => self.payload = piece,
                Step::Payload(Some(mut mask)) => {
                    let mut bytes = piece.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
                    mask.apply(&mut bytes);
                    self.payload = bytes.freeze();
                }
                Step::Ping => self.answer_ping()?,
                // Answered when this end stops writing: the peer still wants what is on its way (RFC 6455 §5.5.1).
                Step::Close => {
                    self.read_ended = true;
                    self.input = Bytes::new();
                }
            }
        }
        Ok(())
    }

    /// A peer that takes nothing gets no pong either: pongs are sent with credit only, so that pings cannot pile them up.
    fn answer_ping(&mut self) -> io::Result<()> {
        let pong = control_frame(self.role, Opcode::Pong, self.decoder.control());
        self.send.reserve_capacity(pong.len());
        if self.write_ended || self.send.capacity() < pong.len() {
            return Ok(());
        }
        self.send.send_data(Chunk::from(Bytes::from(pong)), false).map_err(broken)
    }

    fn poll_writable(&mut self, cx: &mut Context<'_>, length: usize) -> Poll<io::Result<()>> {
        if self.write_ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        poll_credit(&mut self.send, cx, length + HEAD_MAX).map_err(broken)
    }

    fn send_frame(&mut self, key: Option<[u8; 4]>, payload: Bytes) -> io::Result<()> {
        let mut head = [0; HEAD_MAX];
        let size = write_head(&mut head, Opcode::Binary, payload.len(), key);
        self.send.send_data(Chunk::with_head(head, size, payload), false).map_err(broken)
    }

    fn close_writing(&mut self, code: u16) -> io::Result<()> {
        if self.write_ended {
            return Ok(());
        }
        self.write_ended = true;
        let close = control_frame(self.role, Opcode::Close, &code.to_be_bytes());
        self.send.send_data(Chunk::from(Bytes::from(close)), true).map_err(broken)
    }
}

impl AsyncRead for WebSocketStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        // As much as is there: fewer, larger reads are what saves work above.
        while buf.remaining() > 0 {
            match this.poll_payload(cx) {
                Poll::Ready(Ok(true)) => {
                    let count = this.payload.len().min(buf.remaining());
                    buf.put_slice(&this.payload[..count]);
                    this.payload.advance(count);
                }
                Poll::Ready(Ok(false)) => break,
                Poll::Pending if buf.filled().len() == before => return Poll::Pending,
                Poll::Pending => break,
                Poll::Ready(Err(error)) if buf.filled().len() == before => return Poll::Ready(Err(error)),
                Poll::Ready(Err(error)) => {
                    this.failed = Some(error);
                    break;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for WebSocketStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let length = bufs.iter().map(|buf| buf.len()).sum::<usize>().min(PAYLOAD_MAX);
        if length == 0 {
            return Poll::Ready(Ok(0));
        }
        ready!(this.poll_writable(cx, length))?;
        let mut payload = BytesMut::with_capacity(length);
        for buf in bufs {
            let room = length - payload.len();
            payload.extend_from_slice(&buf[..buf.len().min(room)]);
        }
        let key = mask_key(this.role);
        if let Some(key) = key {
            Mask::new(key).apply(&mut payload);
        }
        this.send_frame(key, payload.freeze())?;
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection sends what is queued without being asked.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.get_mut().close_writing(1000))
    }
}

impl Drop for WebSocketStream {
    fn drop(&mut self) {
        if self.read_ended {
            // The peer ended in order, so do we; it fails if the uplink has gone, which ends the stream too.
            let _ = self.close_writing(1000);
        } else if !self.write_ended {
            self.send.send_reset(h2::Reason::CANCEL);
        }
    }
}

impl std::fmt::Debug for WebSocketStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebSocketStream").field("subprotocol", &self.subprotocol).finish_non_exhaustive()
    }
}

fn broken(error: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, describe(&error))
}
