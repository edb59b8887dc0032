//! Bodies of requests and responses in an uplink, received ([`Body`]) and sent ([`BodySender`]).
//!
//! Back-pressure is HTTP/2's: what the reader has not taken stays within its stream's window and slows nobody else;
//! a sender waits until its stream has credit. No codec is visible in any signature.

use crate::halves::{Broken, Receiver, Sender};
use crate::websocket;
use bytes::{Buf, Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Largest DATA payload that we send: with its 9 bytes of head it fills one TLS record, which makes it 10 to 19 %
/// cheaper to receive.
pub(crate) const DATA_MAX: usize = 16_384 - 9;

/// Why a body broke off.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The peer broke it off, or the uplink ended.
    #[error("the body broke off: {0}")]
    Broken(String),
    /// More than the reader was ready to collect.
    #[error("the body is longer than {limit} bytes")]
    TooLong {
        /// The limit that was given, in bytes.
        limit: usize,
    },
}

impl From<Broken> for BodyError {
    fn from(Broken(why): Broken) -> Self {
        Self::Broken(why)
    }
}

/// A body that is received, chunk by chunk; also an [`http_body::Body`].
///
/// Dropping it early cancels its stream.
#[derive(Default)]
pub struct Body {
    source: Source,
}

#[derive(Default)]
enum Source {
    #[default]
    Empty,
    Bytes(Bytes),
    Stream(Receiver),
}

impl Body {
    pub(crate) fn received(stream: Receiver) -> Self {
        Self { source: Source::Stream(stream) }
    }

    /// The next chunk; none at the end. Taking a chunk gives its credit back to the sender.
    pub async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        std::future::poll_fn(|cx| self.poll_chunk(cx)).await
    }

    /// As [`next`](Self::next), for hand-written futures.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        match &mut self.source {
            Source::Empty => Poll::Ready(None),
            Source::Bytes(bytes) => {
                let bytes = std::mem::take(bytes);
                self.source = Source::Empty;
                Poll::Ready((!bytes.is_empty()).then_some(Ok(bytes)))
            }
            Source::Stream(stream) => stream.poll_data(cx).map_err(BodyError::from),
        }
    }

    /// The whole body, of at most `limit` bytes.
    pub async fn collect(mut self, limit: usize) -> Result<Bytes, BodyError> {
        let mut first = Bytes::new();
        let mut rest = BytesMut::new();
        while let Some(chunk) = self.next().await {
            let chunk = chunk?;
            if first.len() + rest.len() + chunk.len() > limit {
                return Err(BodyError::TooLong { limit });
            }
            match (first.is_empty(), rest.is_empty()) {
                (true, true) => first = chunk,
                (false, true) => {
                    rest.extend_from_slice(&std::mem::take(&mut first));
                    rest.extend_from_slice(&chunk);
                }
                _ => rest.extend_from_slice(&chunk),
            }
        }
        Ok(if rest.is_empty() { first } else { rest.freeze() })
    }

    /// Whether it is known that nothing (more) comes.
    pub fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Bytes(bytes) => bytes.is_empty(),
            Source::Stream(stream) => stream.is_end_stream(),
        }
    }

    pub(crate) fn into_stream(self) -> Option<Receiver> {
        match self.source {
            Source::Stream(stream) => Some(stream),
            _ => None,
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self { source: if bytes.is_empty() { Source::Empty } else { Source::Bytes(bytes) } }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.poll_chunk(cx).map(|chunk| chunk.map(|chunk| chunk.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        Self::is_end_stream(self)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Bytes(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Stream(_) => SizeHint::default(),
        }
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Body")
    }
}

/// Sends a body. Dropping it without [`finish`](Self::finish) resets the stream, so that the receiver sees that
/// something is missing.
pub struct BodySender {
    stream: Sender,
    finished: bool,
}

impl BodySender {
    pub(crate) fn new(stream: Sender) -> Self {
        Self { stream, finished: false }
    }

    /// Sends `data`; waits while the stream has no credit.
    pub async fn send(&mut self, mut data: Bytes) -> Result<(), BodyError> {
        while !data.is_empty() {
            let want = data.len().min(DATA_MAX);
            std::future::poll_fn(|cx| self.stream.poll_credit(cx, want)).await?;
            self.stream.send_data(Chunk::from(data.split_to(want)), false)?;
        }
        Ok(())
    }

    /// Ready when the stream has credit for a piece, see [`start_send`](Self::start_send).
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        self.stream.poll_credit(cx, DATA_MAX).map_err(BodyError::from)
    }

    /// Sends `data` without waiting, once [`poll_ready`](Self::poll_ready) says so. What there is no credit for stays in
    /// memory until there is: pieces of 16 kB at most.
    pub fn start_send(&mut self, data: Bytes) -> Result<(), BodyError> {
        Ok(self.stream.send_data(Chunk::from(data), false)?)
    }

    /// Sends everything of `body`, then the end. An error of the body resets the stream.
    pub async fn send_all<B>(self, body: B) -> Result<(), BodyError>
    where
        B: http_body::Body<Data = Bytes>,
        B::Error: std::fmt::Display,
    {
        self.send_all_telling(body, || ()).await
    }

    /// The same; `sent` is called for each piece that has gone out.
    pub(crate) async fn send_all_telling<B>(mut self, body: B, sent: impl Fn()) -> Result<(), BodyError>
    where
        B: http_body::Body<Data = Bytes>,
        B::Error: std::fmt::Display,
    {
        let mut body = std::pin::pin!(body);
        while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
            let frame = frame.map_err(|error| BodyError::Broken(error.to_string()))?;
            if let Ok(data) = frame.into_data() {
                self.send(data).await?;
                sent();
            }
        }
        self.finish()
    }

    /// The end of the body.
    pub fn finish(mut self) -> Result<(), BodyError> {
        self.finished = true;
        Ok(self.stream.send_data(Chunk::default(), true)?)
    }

    /// Comes back when the receiver has gone away.
    pub async fn closed(&mut self) {
        std::future::poll_fn(|cx| self.stream.poll_gone(cx)).await;
    }
}

impl Drop for BodySender {
    fn drop(&mut self) {
        if !self.finished {
            self.stream.cancel();
        }
    }
}

impl std::fmt::Debug for BodySender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BodySender")
    }
}

/// What is queued in HTTP/2: an optional WebSocket frame head, then bytes; so a frame needs no copy to get its head.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    head: [u8; websocket::HEAD_MAX],
    head_at: u8,
    head_end: u8,
    body: Bytes,
}

impl Chunk {
    pub fn with_head(head: [u8; websocket::HEAD_MAX], size: usize, body: Bytes) -> Self {
        Self { head, head_at: 0, head_end: size as u8, body }
    }

    pub fn len(&self) -> usize {
        self.head().len() + self.body.len()
    }

    /// Moves the first `count` bytes to `out`.
    pub fn take(&mut self, count: usize, out: &mut Vec<u8>) {
        let from_head = count.min(self.head().len());
        out.extend_from_slice(&self.head()[..from_head]);
        out.extend_from_slice(&self.body[..count - from_head]);
        self.advance(count);
    }

    fn head(&self) -> &[u8] {
        &self.head[usize::from(self.head_at)..usize::from(self.head_end)]
    }
}

impl From<Bytes> for Chunk {
    fn from(body: Bytes) -> Self {
        Self { body, ..Self::default() }
    }
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.len()
    }

    fn chunk(&self) -> &[u8] {
        if self.head().is_empty() { &self.body } else { self.head() }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let parts = [self.head(), &self.body];
        let filled = parts.into_iter().filter(|part| !part.is_empty());
        slices.iter_mut().zip(filled).map(|(slice, part)| *slice = IoSlice::new(part)).count()
    }

    fn advance(&mut self, count: usize) {
        let from_head = count.min(self.head().len());
        self.head_at += from_head as u8;
        self.body.advance(count - from_head);
    }
}
