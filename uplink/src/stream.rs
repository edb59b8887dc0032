//! A WebSocket inside an uplink as a byte pipe: RFC 8441 extended CONNECT carrying RFC 6455 binary frames.
//!
//! That is how RTSP runs to a device (`rtsp.onvif.org`). Reading hands out slices of what was received; writing puts
//! each write into one frame. Credit is given back to the peer as the reader takes its bytes, so that a reader that
//! stops holds at most its stream's window.

use crate::body::{Body, Chunk, DATA_MAX};
use crate::halves::{Broken, Receiver, Sender};
use crate::websocket::{Decoder, HEAD_MAX, Mask, Opcode, Role, Step, control_frame, mask_key, write_head};
use bytes::{Buf as _, Bytes, BytesMut};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

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
    recv: Option<Receiver>,
    send: Sender,
    role: Role,
    decoder: Decoder,
    subprotocol: Option<String>,
    /// Decoded, not yet read.
    payload: Bytes,
    read_ended: bool,
    /// An error for the next read: this one had bytes to hand out.
    failed: Option<io::Error>,
    write_ended: bool,
}

impl WebSocketStream {
    pub(crate) fn new(body: Body, send: Sender, role: Role, subprotocol: Option<String>) -> Self {
        let recv = body.into_stream();
        Self {
            read_ended: recv.is_none(),
            recv,
            send,
            role,
            decoder: Decoder::new(role),
            subprotocol,
            payload: Bytes::new(),
            failed: None,
            write_ended: false,
        }
    }

    /// The subprotocol that both ends agreed on.
    pub fn subprotocol(&self) -> Option<&str> {
        self.subprotocol.as_deref()
    }

    /// The next bytes as they were received, without copying them where they were not masked; none at the end.
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
        while self.payload.is_empty() {
            if let Some(error) = self.failed.take() {
                return Poll::Ready(Err(error));
            }
            if self.read_ended {
                return Poll::Ready(Ok(false));
            }
            let data = match &mut self.recv {
                Some(recv) => ready!(recv.poll_data(cx)),
                None => None,
            };
            match data {
                Some(Ok(data)) => self.decode(data),
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => {
                    self.read_ended = true;
                    if !self.decoder.is_at_boundary() {
                        return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                    }
                }
            }
        }
        Poll::Ready(Ok(true))
    }

    /// Decodes what has come, in place; answers pings.
    fn decode(&mut self, data: Bytes) {
        let Self { decoder, send, role, read_ended, write_ended, .. } = self;
        // Ours alone, unless it is a part of what a device's codec holds.
        let mut data = data.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        let (length, decoded) = decoder.decode_in_place(&mut data, |step, payload| match step {
            // A peer that takes nothing gets no pong either: they are sent with credit only, so that pings cannot pile them up.
            Step::Ping => {
                let pong = control_frame(*role, Opcode::Pong, payload);
                if !*write_ended && send.has_credit(pong.len()) {
                    // It fails if the stream is broken, which reading notices.
                    let _ = send.send_data(Chunk::from(Bytes::from(pong)), false);
                }
            }
            // Answered when this end stops writing: the peer still wants what is on its way (RFC 6455 §5.5.1).
            Step::Close => *read_ended = true,
            Step::Head | Step::Payload(_) | Step::Pong => {}
        });
        data.truncate(length);
        self.payload = data.freeze();
        if let Err(error) = decoded {
            self.read_ended = true;
            // The peer may have gone by now; what it did wrong is what counts.
            let _ = self.close_writing(error.close_code());
            self.failed = Some(io::Error::new(io::ErrorKind::InvalidData, error));
        }
    }

    fn poll_writable(&mut self, cx: &mut Context<'_>, length: usize) -> Poll<io::Result<()>> {
        if self.write_ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.send.poll_credit(cx, length + HEAD_MAX).map_err(broken)
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
            self.send.cancel();
        }
    }
}

impl std::fmt::Debug for WebSocketStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebSocketStream").field("subprotocol", &self.subprotocol).finish_non_exhaustive()
    }
}

fn broken(Broken(why): Broken) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, why)
}
