//! The halves of a stream, whichever codec it is of: our own at the server's end, `h2` at the device's.

use crate::body::Chunk;
use crate::engine;
use crate::pace::Pace;
use bytes::Bytes;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// Why a stream goes no further, in words for an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Broken(pub String);

impl From<engine::Broken> for Broken {
    fn from(broken: engine::Broken) -> Self {
        Self(broken.to_string())
    }
}

impl From<h2::Error> for Broken {
    fn from(error: h2::Error) -> Self {
        Self(describe(&error))
    }
}

/// An error of `h2` in words.
pub(crate) fn describe(error: &h2::Error) -> String {
    let by = if error.is_remote() { "the peer" } else { "this end" };
    match error.reason() {
        Some(h2::Reason::NO_ERROR) if error.is_go_away() => format!("{by} closed the uplink"),
        Some(h2::Reason::CANCEL) if error.is_reset() => format!("{by} cancelled the stream"),
        Some(reason) if error.is_reset() => format!("{by} reset the stream: {}", reason.description()),
        Some(reason) if error.is_go_away() => format!("{by} ended the uplink: {}", reason.description()),
        _ => error.to_string(),
    }
}

pub(crate) enum Receiver {
    /// Of a stream that we opened, and how fast it may be taken.
    Opened(engine::Receiver, Option<Arc<Pace>>),
    /// Of a stream that we serve.
    Served(h2::RecvStream),
}

impl Receiver {
    /// The next bytes, never none of them; their credit is given back.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        match self {
            Self::Opened(receiver, pace) => {
                if let Some(pace) = pace {
                    ready!(pace.poll_ready(cx));
                }
                let data = ready!(receiver.poll_data(cx));
                if let (Some(pace), Some(Ok(data))) = (pace, &data) {
                    pace.took(data.len());
                }
                Poll::Ready(data.map(|data| data.map_err(Broken::from)))
            }
            Self::Served(stream) => loop {
                let Some(data) = ready!(stream.poll_data(cx)?) else { return Poll::Ready(None) };
                // Only an error of ours could make this fail; the stream's own errors come from poll_data.
                let _ = stream.flow_control().release_capacity(data.len());
                if !data.is_empty() {
                    return Poll::Ready(Some(Ok(data)));
                }
            },
        }
    }

    pub fn is_end_stream(&self) -> bool {
        match self {
            Self::Opened(receiver, _) => receiver.is_end_stream(),
            Self::Served(stream) => stream.is_end_stream(),
        }
    }
}

pub(crate) enum Sender {
    /// Of a stream that we opened.
    Opened(engine::Sender),
    /// Of a stream that we serve.
    Served(h2::SendStream<Chunk>),
}

impl Sender {
    /// Ready when the stream may send at least a byte. A caller that then sends `want` bytes leaves at most those queued.
    ///
    /// The reservation is never larger than what is about to be sent: idle streams that hold reservations
    /// starve the others of the connection's window.
    pub fn poll_credit(&mut self, cx: &mut Context<'_>, want: usize) -> Poll<Result<(), Broken>> {
        let stream = match self {
            Self::Opened(sender) => return sender.poll_credit(cx).map_err(Broken::from),
            Self::Served(stream) => stream,
        };
        stream.reserve_capacity(want);
        while stream.capacity() == 0 {
            match ready!(stream.poll_capacity(cx)?) {
                Some(_) => {}
                None => return Poll::Ready(Err(h2::Error::from(h2::Reason::STREAM_CLOSED).into())),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Whether so many bytes would go out at once.
    pub fn has_credit(&mut self, size: usize) -> bool {
        match self {
            Self::Opened(sender) => sender.has_credit(size),
            Self::Served(stream) => {
                stream.reserve_capacity(size);
                stream.capacity() >= size
            }
        }
    }

    /// Sends, or queues until there is credit.
    pub fn send_data(&mut self, chunk: Chunk, end: bool) -> Result<(), Broken> {
        match self {
            Self::Opened(sender) => Ok(sender.send_data(chunk, end)?),
            Self::Served(stream) => Ok(stream.send_data(chunk, end)?),
        }
    }

    /// Breaks the stream off.
    pub fn cancel(&mut self) {
        match self {
            Self::Opened(sender) => sender.cancel(),
            Self::Served(stream) => stream.send_reset(h2::Reason::CANCEL),
        }
    }

    /// Ready when the receiver has gone away.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Opened(sender) => sender.poll_gone(cx),
            // Ready with a reason or with an error: gone either way.
            Self::Served(stream) => stream.poll_reset(cx).map(drop),
        }
    }
}
