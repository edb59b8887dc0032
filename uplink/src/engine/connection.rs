//! The state of one HTTP/2 connection of which we are the client: bytes in, bytes out, wakers called; no sockets, no clock
//! but the allowance's.
//!
//! Flow control: the connection's window is given back as data comes, so that streams cannot take it from one another;
//! what is held is bounded by the streams' own windows, given back as their readers take it. What is to be sent goes
//! straight into one buffer while windows and [`State::out_max`] allow it, and waits with its stream otherwise.
//!
//! Invariant: what a peer can make us hold is its streams' windows, one header block, one frame, and a bounded number of
//! answers. While nothing is under way nothing is held. After [`State::end`] every stream is broken and none is opened.

mod receive;

use super::Broken;
use super::frame::{self, Code, Head};
use super::hpack;
use super::stream::Stream;
use crate::EndReason;
use crate::body::{Chunk, DATA_MAX};
use crate::flood::Allowance;
use http::{Method, Request};
use std::task::Waker;

/// What a window is before anybody has said anything (§6.9.2).
const WINDOW: i64 = 65_535;

/// Longest header list of an answer, in bytes as HPACK counts.
const HEADER_LIST_MAX: usize = 32 * 1024;

/// Answers (to pings, settings, broken streams) beyond what waits anyway, to a peer that reads nothing, in bytes.
const ANSWERS_MAX: usize = 64 * 1024;

/// Client's streams have odd numbers up to this (§5.1.1).
const STREAM_MAX: u32 = 0x7FFF_FFFF;

/// Why a connection cannot go on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub reason: EndReason,
    /// For the GOAWAY, if it makes sense to send one.
    code: Option<Code>,
}

impl Fault {
    fn new(code: Code, what: &str) -> Self {
        Self { reason: EndReason::Protocol(format!("{what} ({code})")), code: Some(code) }
    }
}

type Received = Result<(), Fault>;

/// What the peer has told of itself (§6.5.2), beginning with the defaults.
struct Peer {
    window: i64,
    frame_max: usize,
    streams_max: usize,
    offers_websocket: bool,
    /// Its first SETTINGS have come.
    is_known: bool,
}

/// A frame that has not come to its end, or a header block of several.
#[derive(Default)]
struct Partial {
    head: [u8; frame::HEAD],
    have: usize,
    frame: Option<Head>,
    /// Payload that is still to come.
    left: usize,
    /// Payload so far, of a frame that is looked at as a whole.
    payload: Vec<u8>,
    block: Option<Box<Block>>,
}

/// A header block that CONTINUATIONs are to follow.
struct Block {
    stream: u32,
    end_stream: bool,
    bytes: Vec<u8>,
    frames: usize,
}

pub(super) struct State {
    /// By number, ascending.
    pub streams: Vec<Stream>,
    next_stream: u32,
    peer: Peer,
    partial: Partial,
    decoder: hpack::Decoder,
    /// The next header block is to say that our table is empty.
    tell_no_table: bool,
    allowance: Allowance,
    /// To be sent.
    pub out: Vec<u8>,
    /// Bytes in `out` from which streams wait.
    out_max: usize,
    send_window: i64,
    receive_window: i64,
    connection_window: i64,
    stream_window: i64,
    streams_max: usize,
    /// Some stream has something queued.
    is_queued: bool,
    /// A ping of ours is out; one was answered.
    is_pinging: bool,
    is_settled: bool,
    /// The peer takes no more requests.
    is_going_away: bool,
    pub ended: Option<EndReason>,
    /// A handle wants the end.
    pub to_close: Option<EndReason>,
    pub driver: Option<Waker>,
    /// Those who wait for a stream, for settings, for the end, are to be told.
    pub is_changed: bool,
    /// The ping was answered.
    pub is_ponged: bool,
}

impl State {
    /// The beginning, with preface and settings in `out`.
    pub fn new(stream_window: u32, connection_window: u32, streams_max: usize, out_max: usize) -> Self {
        let mut out = crate::tls_stream::take_spare();
        out.extend_from_slice(frame::PREFACE);
        let settings = [
            (frame::HEADER_TABLE_SIZE, 0),
            (frame::ENABLE_PUSH, 0),
            (frame::INITIAL_WINDOW_SIZE, stream_window),
            (frame::MAX_HEADER_LIST_SIZE, HEADER_LIST_MAX as u32),
        ];
        let mut payload = Vec::with_capacity(6 * settings.len());
        for (name, value) in settings {
            payload.extend_from_slice(&name.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        }
        frame::write(frame::SETTINGS, 0, 0, &payload, &mut out);
        let more = connection_window - WINDOW as u32;
        if more > 0 {
            frame::write(frame::WINDOW_UPDATE, 0, 0, &more.to_be_bytes(), &mut out);
        }
        Self {
            streams: Vec::new(),
            next_stream: 1,
            peer: Peer {
                window: WINDOW,
                frame_max: frame::PAYLOAD_MAX,
                streams_max: usize::MAX,
                offers_websocket: false,
                is_known: false,
            },
            partial: Partial::default(),
            decoder: hpack::Decoder::default(),
            tell_no_table: true,
            allowance: Allowance::new(),
            out,
            out_max,
            send_window: WINDOW,
            receive_window: connection_window.into(),
            connection_window: connection_window.into(),
            stream_window: stream_window.into(),
            streams_max,
            is_queued: false,
            is_pinging: false,
            is_settled: false,
            is_going_away: false,
            ended: None,
            to_close: None,
            driver: None,
            is_changed: false,
            is_ponged: false,
        }
    }

    /// Whether the peer offers WebSocket. It may do so in later SETTINGS than the first; but before it answers a ping.
    pub fn offers_websocket(&self) -> Option<bool> {
        (self.peer.offers_websocket || self.is_settled).then_some(self.peer.offers_websocket)
    }

    /// Streams at once, by our limit and the peer's.
    pub fn streams_max(&self) -> usize {
        self.streams_max.min(self.peer.streams_max)
    }

    /// Whether the peer has said goodbye, and nothing is left to do.
    pub fn is_over(&self) -> bool {
        self.is_going_away && self.streams.is_empty() && self.out.is_empty()
    }

    pub fn stream(&mut self, id: u32) -> Option<&mut Stream> {
        let at = self.streams.binary_search_by_key(&id, |stream| stream.id).ok()?;
        self.streams.get_mut(at)
    }

    /// Bytes that are held of what was received.
    #[cfg(test)]
    pub fn held(&self) -> usize {
        let block = self.partial.block.as_ref().map_or(0, |block| block.bytes.capacity());
        let received = self.streams.iter().flat_map(|stream| &stream.received);
        self.partial.payload.capacity() + block + received.map(bytes::BytesMut::capacity).sum::<usize>()
    }

    pub fn wake_driver(&mut self) {
        if let Some(driver) = self.driver.take() {
            driver.wake();
        }
    }

    fn answer(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Received {
        if self.out.len() > self.out_max + ANSWERS_MAX {
            return Err(Fault::new(Code::ENHANCE_YOUR_CALM, "the peer asks without reading our answers"));
        }
        frame::write(kind, flags, stream, payload, self.out());
        Ok(())
    }

    fn out(&mut self) -> &mut Vec<u8> {
        if self.out.capacity() == 0 {
            self.out = crate::tls_stream::take_spare();
        }
        &mut self.out
    }

    // Requests and what is sent on them.

    /// Opens a stream with a request's head: its number; none while there are as many as may be.
    pub fn open(
        &mut self,
        request: &Request<()>,
        protocol: Option<&str>,
        end: bool,
    ) -> Option<Result<u32, Broken>> {
        if let Some(reason) = &self.ended {
            return Some(Err(Broken::Ended(reason.clone())));
        }
        if self.is_going_away || self.next_stream > STREAM_MAX {
            return Some(Err(Broken::Ended(EndReason::PeerClosed)));
        }
        if self.streams.len() >= self.streams_max() {
            return None;
        }
        let id = self.next_stream;
        self.next_stream += 2;
        let is_head = request.method() == Method::HEAD;
        self.streams.push(Stream::new(id, self.peer.window, self.stream_window, end, is_head));
        self.write_head(id, request, protocol, end);
        self.allowance.send_headers();
        self.wake_driver();
        Some(Ok(id))
    }

    fn write_head(&mut self, id: u32, request: &Request<()>, protocol: Option<&str>, end: bool) {
        let mut block = Vec::with_capacity(256);
        if std::mem::take(&mut self.tell_no_table) {
            hpack::encode_no_table(&mut block);
        }
        let uri = request.uri();
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let pseudo = [
            (":method", request.method().as_str()),
            (":scheme", uri.scheme_str().unwrap_or("http")),
            (":authority", uri.authority().map_or("device", |authority| authority.as_str())),
            (":path", path),
        ];
        for (name, value) in pseudo {
            hpack::encode(name, value.as_bytes(), false, &mut block);
        }
        if let Some(protocol) = protocol {
            hpack::encode(":protocol", protocol.as_bytes(), false, &mut block);
        }
        for (name, value) in request.headers() {
            let is_secret = value.is_sensitive() || *name == http::header::AUTHORIZATION;
            hpack::encode(name.as_str(), value.as_bytes(), is_secret, &mut block);
        }
        let frame_max = self.peer.frame_max;
        let mut pieces = block.chunks(frame_max).peekable();
        let (mut kind, mut flags) = (frame::HEADERS, if end { frame::END_STREAM } else { 0 });
        while let Some(piece) = pieces.next() {
            if pieces.peek().is_none() {
                flags |= frame::END_HEADERS;
            }
            frame::write(kind, flags, id, piece, self.out());
            (kind, flags) = (frame::CONTINUATION, 0);
        }
    }

    /// Whether a stream may send something now, and at least `size` bytes of it at once if that is given.
    pub fn has_credit(&self, stream: &Stream, size: usize) -> bool {
        let window = stream.send_window.min(self.send_window);
        stream.queue.is_empty() && window >= size.max(1) as i64 && self.out.len() < self.out_max
    }

    /// Sends what windows allow, and queues the rest.
    pub fn send(&mut self, id: u32, mut chunk: Chunk, end: bool) -> Result<(), Broken> {
        let at = self.streams.binary_search_by_key(&id, |stream| stream.id);
        let Some(stream) = at.ok().and_then(|at| self.streams.get_mut(at)) else {
            return Err(Broken::cancelled());
        };
        if let Some(broken) = &stream.broken {
            return Err(broken.clone());
        }
        stream.end_queued |= end;
        if stream.queue.is_empty() {
            while self.out.len() < self.out_max || chunk.len() == 0 {
                if !Self::write_data(
                    stream,
                    &mut chunk,
                    &mut self.send_window,
                    self.peer.frame_max,
                    &mut self.out,
                ) {
                    break;
                }
                self.allowance.send_data();
                if chunk.len() == 0 {
                    break;
                }
            }
        }
        if chunk.len() > 0 || stream.end_queued != stream.end_sent {
            stream.queue.push_back(chunk);
            self.is_queued = true;
        }
        self.wake_driver();
        Ok(())
    }

    /// One DATA frame of the beginning of `chunk`; false if the windows are closed.
    fn write_data(
        stream: &mut Stream,
        chunk: &mut Chunk,
        send_window: &mut i64,
        frame_max: usize,
        out: &mut Vec<u8>,
    ) -> bool {
        let window = stream.send_window.min(*send_window).max(0) as usize;
        let length = chunk.len().min(window).min(frame_max).min(DATA_MAX);
        if length == 0 && chunk.len() > 0 {
            return false;
        }
        let is_last = stream.end_queued && length == chunk.len() && stream.queue.is_empty();
        if out.capacity() == 0 {
            *out = crate::tls_stream::take_spare();
        }
        let flags = if is_last { frame::END_STREAM } else { 0 };
        Head { length, kind: frame::DATA, flags, stream: stream.id }.write(out);
        chunk.take(length, out);
        stream.send_window -= length as i64;
        *send_window -= length as i64;
        stream.end_sent |= is_last;
        true
    }

    /// Sends what is queued, a frame of each stream in turn, as far as windows and the buffer allow; then wakes those who
    /// have credit to send more.
    pub fn pump(&mut self) {
        let mut moved = self.is_queued;
        while std::mem::take(&mut moved) && self.out.len() < self.out_max {
            for stream in &mut self.streams {
                let Some(mut chunk) = stream.queue.pop_front() else { continue };
                let sent = Self::write_data(
                    stream,
                    &mut chunk,
                    &mut self.send_window,
                    self.peer.frame_max,
                    &mut self.out,
                );
                if sent {
                    self.allowance.send_data();
                }
                moved |= sent;
                if chunk.len() > 0 || !sent {
                    stream.queue.push_front(chunk);
                }
            }
        }
        self.is_queued = self.streams.iter().any(|stream| !stream.queue.is_empty());
        self.remove_done();
        if self.send_window > 0 && self.out.len() < self.out_max {
            for stream in &mut self.streams {
                if stream.send_window > 0 && stream.queue.is_empty() {
                    stream.wake_sender();
                }
            }
        }
    }

    /// Breaks a stream off.
    pub fn reset(&mut self, id: u32, code: Code, why: Broken) {
        let Some(stream) = self.stream(id) else { return };
        if !stream.is_closed() {
            stream.break_off(why);
            frame::write(frame::RST_STREAM, 0, id, &code.0.to_be_bytes(), self.out());
            self.wake_driver();
        }
    }

    /// A handle's reading half is gone: whatever still comes is not wanted.
    pub fn drop_reader(&mut self, id: u32) {
        let Some(stream) = self.stream(id) else { return };
        stream.is_read = false;
        stream.received.clear();
        if !stream.receive_ended {
            self.reset(id, Code::CANCEL, Broken::cancelled());
        }
        self.remove_done();
    }

    /// A handle's writing half is gone.
    pub fn drop_writer(&mut self, id: u32) {
        let Some(stream) = self.stream(id) else { return };
        stream.is_written = false;
        let is_complete = stream.end_queued;
        if !stream.is_read && !is_complete {
            self.reset(id, Code::CANCEL, Broken::cancelled());
        }
        self.remove_done();
    }

    /// Forgets the streams that nobody holds, and that have nothing to send.
    fn remove_done(&mut self) {
        let before = self.streams.len();
        self.streams.retain(|stream| !stream.is_done());
        if self.streams.len() < before {
            self.is_changed = true;
            if self.is_going_away {
                self.wake_driver();
            }
        }
        if self.streams.is_empty() {
            self.streams = Vec::new();
        }
    }

    /// Queues a ping, if none is out.
    pub fn ping(&mut self) {
        if !std::mem::replace(&mut self.is_pinging, true) {
            frame::write(frame::PING, 0, 0, &[0; 8], self.out());
            self.wake_driver();
        }
    }

    /// Gives back the credit of what a stream's reader has taken.
    pub fn taken(&mut self, id: u32, count: usize) {
        let window = self.stream_window;
        let Some(stream) = self.stream(id) else { return };
        stream.taken += count as i64;
        if stream.receive_ended || stream.taken < window / 2 {
            return;
        }
        let more = std::mem::take(&mut stream.taken);
        stream.receive_window += more;
        frame::write(frame::WINDOW_UPDATE, 0, id, &(more as u32).to_be_bytes(), self.out());
        self.wake_driver();
    }

    /// The end: every stream breaks. Only the first reason counts.
    pub fn end(&mut self, reason: EndReason) {
        let reason = self.ended.get_or_insert(reason).clone();
        for stream in &mut self.streams {
            stream.break_off(Broken::Ended(reason.clone()));
        }
        self.is_changed = true;
        self.remove_done();
        self.partial = Partial::default();
    }

    /// What the other end should hear of the end.
    pub fn say_goodbye(&mut self, fault: Option<&Fault>) {
        let code = fault.map_or(Some(Code::NO_ERROR), |fault| fault.code);
        if let Some(code) = code {
            // We have let the peer open no stream.
            let payload = [[0; 4], code.0.to_be_bytes()].concat();
            frame::write(frame::GOAWAY, 0, 0, &payload, self.out());
        }
    }
}
