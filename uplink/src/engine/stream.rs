//! One stream of an uplink, as its connection keeps it.
//!
//! Invariant: it is forgotten ([`Stream::is_done`]) once nobody holds a half of it and nothing of it is to be sent.

use super::Broken;
use crate::body::Chunk;
use bytes::BytesMut;
use http::{HeaderMap, Response, StatusCode, header};
use std::collections::VecDeque;
use std::task::Waker;

/// Received bytes are handed out in pieces of at most this.
const PIECE_MAX: usize = 64 * 1024;

/// Smallest piece while the reader is behind, so that tiny frames do not each take one.
const PIECE_BEHIND: usize = 16 * 1024;

pub(super) struct Stream {
    pub id: u32,
    /// Somebody holds the half that reads, the one that writes.
    pub is_read: bool,
    pub is_written: bool,
    pub broken: Option<Broken>,

    pub send_window: i64,
    /// What windows have not let through.
    pub queue: VecDeque<Chunk>,
    /// The end is queued, or sent; it is sent.
    pub end_queued: bool,
    pub end_sent: bool,
    pub writer: Option<Waker>,

    /// A head has come; it waits in `head` until it is taken.
    pub has_head: bool,
    pub head: Option<Box<Response<()>>>,
    is_answer_to_head: bool,
    /// Bytes of body that the head has promised.
    content_left: Option<u64>,
    pub receive_window: i64,
    /// Read, and not given back as credit yet.
    pub taken: i64,
    pub received: VecDeque<BytesMut>,
    pub receive_ended: bool,
    pub reader: Option<Waker>,
}

impl Stream {
    pub fn new(
        id: u32,
        send_window: i64,
        receive_window: i64,
        end_sent: bool,
        is_answer_to_head: bool,
    ) -> Self {
        Self {
            id,
            is_read: true,
            is_written: true,
            broken: None,
            send_window,
            queue: VecDeque::new(),
            end_queued: end_sent,
            end_sent,
            writer: None,
            has_head: false,
            head: None,
            is_answer_to_head,
            content_left: None,
            receive_window,
            taken: 0,
            received: VecDeque::new(),
            receive_ended: false,
            reader: None,
        }
    }

    /// Both directions have ended, or it was broken off.
    pub fn is_closed(&self) -> bool {
        self.broken.is_some() || (self.receive_ended && self.end_sent)
    }

    /// Whether it can be forgotten.
    pub fn is_done(&self) -> bool {
        !self.is_read && !self.is_written && self.is_closed()
    }

    /// The first head that is one.
    pub fn put_head(&mut self, status: StatusCode, headers: HeaderMap) -> Result<(), &'static str> {
        let length = match headers.get(header::CONTENT_LENGTH) {
            None => None,
            Some(length) => {
                let digits =
                    length.to_str().ok().filter(|length| length.bytes().all(|byte| byte.is_ascii_digit()));
                Some(digits.and_then(|digits| digits.parse().ok()).ok_or("its content-length is no number")?)
            }
        };
        let has_no_body = self.is_answer_to_head || matches!(status.as_u16(), 204 | 304);
        self.content_left = if has_no_body { Some(0) } else { length };
        let mut response = Response::new(());
        *response.status_mut() = status;
        *response.version_mut() = http::Version::HTTP_2;
        *response.headers_mut() = headers;
        self.head = Some(Box::new(response));
        self.has_head = true;
        self.wake_reader();
        Ok(())
    }

    /// Whether so many bytes of body may come now; they count.
    pub fn expects(&mut self, count: u64) -> bool {
        if !self.has_head || self.receive_ended {
            return self.broken.is_some();
        }
        match &mut self.content_left {
            None => true,
            Some(left) if *left < count => false,
            Some(left) => {
                *left -= count;
                true
            }
        }
    }

    /// Takes a piece of body; so many bytes of input, this piece among them, are at hand.
    pub fn receive(&mut self, piece: &[u8], at_hand: usize) {
        if !self.is_read || self.broken.is_some() || piece.is_empty() {
            return;
        }
        let mut left = piece;
        if let Some(last) = self.received.back_mut() {
            let room = (last.capacity() - last.len()).min(left.len());
            last.extend_from_slice(&left[..room]);
            left = &left[room..];
        }
        if !left.is_empty() {
            let at_least = if self.received.is_empty() { 0 } else { PIECE_BEHIND };
            let mut next = BytesMut::with_capacity(at_hand.min(PIECE_MAX).max(at_least).max(left.len()));
            next.extend_from_slice(left);
            self.received.push_back(next);
        }
        self.wake_reader();
    }

    /// The end of what is received; false if there should be more.
    pub fn end_receiving(&mut self) -> bool {
        if self.broken.is_some() {
            return true;
        }
        if !self.has_head || self.receive_ended || self.content_left.is_some_and(|left| left > 0) {
            return false;
        }
        self.receive_ended = true;
        self.wake_reader();
        true
    }

    /// Nothing more is sent, or received; what was received before can still be read.
    pub fn break_off(&mut self, why: Broken) {
        if self.is_closed() {
            return;
        }
        self.queue = VecDeque::new();
        self.broken = Some(why);
        self.wake_reader();
        self.wake_sender();
    }

    pub fn wake_sender(&mut self) {
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }

    fn wake_reader(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}
