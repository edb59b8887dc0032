//! RTSP messages (RFC 2326): types, writing them, and the headers that carry structure.
//!
//! Pure: no sockets. Reading from a byte stream is [`Decoder`] in `decode.rs`. Both ends use the same
//! types: the recording server's client sends [`Request`]s and gets [`Response`]s, the simulated camera
//! the other way round; RTP and RTCP travel between them as [`Interleaved`] data (§10.12).
//!
//! Not here: who answers what (that is a role's business), authentication (homing-protocol), RTSP 2.0.
//!
//! Invariant: what `encode` writes, [`Decoder`] reads back as an equal value (property-tested), and no
//! header or start line can be smuggled in by a value that holds a line break: such bytes are left out.

mod decode;
mod fields;

pub use decode::{DecodeError, Decoder, DecoderLimits};
pub use fields::{RtpInfo, SessionId, Transport};

use bytes::{BufMut, Bytes, BytesMut};

/// One unit of an RTSP connection's byte stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A request, from either side (servers send some too, `ANNOUNCE` or `OPTIONS` for instance).
    Request(Request),
    /// An answer.
    Response(Response),
    /// RTP or RTCP.
    Interleaved(Interleaved),
}

/// Embedded binary data, RFC 2326 §10.12: `$`, channel, 16-bit length, payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interleaved {
    /// Channel as agreed in SETUP: even for RTP, odd for RTCP by habit, not by law.
    pub channel: u8,
    /// A slice of the read buffer, not a copy.
    pub payload: Bytes,
}

/// The four bytes before an interleaved payload. `None`: the payload is longer than the 65,535 bytes that fit.
pub fn interleaved_head(channel: u8, payload_len: usize) -> Option<[u8; 4]> {
    let [hi, lo] = u16::try_from(payload_len).ok()?.to_be_bytes();
    Some([b'$', channel, hi, lo])
}

/// Request methods, RFC 2326 §10. Methods are case-sensitive.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names are the standard's
pub enum Method {
    Options,
    Describe,
    Announce,
    Setup,
    Play,
    Pause,
    Teardown,
    GetParameter,
    SetParameter,
    Redirect,
    Record,
    /// Anything else that is a token.
    Other(String),
}

impl Method {
    /// As on the wire.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Options => "OPTIONS",
            Self::Describe => "DESCRIBE",
            Self::Announce => "ANNOUNCE",
            Self::Setup => "SETUP",
            Self::Play => "PLAY",
            Self::Pause => "PAUSE",
            Self::Teardown => "TEARDOWN",
            Self::GetParameter => "GET_PARAMETER",
            Self::SetParameter => "SET_PARAMETER",
            Self::Redirect => "REDIRECT",
            Self::Record => "RECORD",
            Self::Other(name) => name,
        }
    }

    /// The method of that name.
    pub fn from_name(name: &str) -> Self {
        match name {
            "OPTIONS" => Self::Options,
            "DESCRIBE" => Self::Describe,
            "ANNOUNCE" => Self::Announce,
            "SETUP" => Self::Setup,
            "PLAY" => Self::Play,
            "PAUSE" => Self::Pause,
            "TEARDOWN" => Self::Teardown,
            "GET_PARAMETER" => Self::GetParameter,
            "SET_PARAMETER" => Self::SetParameter,
            "REDIRECT" => Self::Redirect,
            "RECORD" => Self::Record,
            other => Self::Other(other.to_owned()),
        }
    }
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Header lines in order of appearance; names compare without regard to case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The first value of that name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v)
    }

    /// Every value of that name (`WWW-Authenticate` comes once per scheme).
    pub fn get_all<'a, 'n>(&'a self, name: &'n str) -> impl Iterator<Item = &'a str> + use<'a, 'n> {
        self.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v)
    }

    /// All lines, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(n, v)| (n.as_str(), v.as_str()))
    }

    /// Adds a line, keeping those of the same name.
    pub fn append(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.push((name.into(), value.into()));
    }

    /// How many lines there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `CSeq` (§12.17), by which an answer finds its request.
    pub fn cseq(&self) -> Option<u32> {
        self.get("CSeq")?.trim().parse().ok()
    }
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub method: Method,
    /// Absolute URL, or `*`. Carried as text: cameras use URLs that no URL parser accepts.
    pub uri: String,
    /// All header lines except `Content-Length`, which `encode` writes from the body.
    pub headers: Headers,
    /// Empty for most.
    pub body: Bytes,
}

impl Request {
    /// A request with its sequence number.
    pub fn new(method: Method, uri: impl Into<String>, cseq: u32) -> Self {
        let mut headers = Headers::default();
        headers.append("CSeq", cseq.to_string());
        Self { method, uri: uri.into(), headers, body: Bytes::new() }
    }

    /// Adds a header line.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.append(name, value);
        self
    }

    /// Appends the wire form.
    pub fn encode(&self, out: &mut BytesMut) {
        put_clean(out, self.method.as_str(), true);
        out.put_u8(b' ');
        put_clean(out, &self.uri, true);
        out.put_slice(b" RTSP/1.0\r\n");
        put_rest(out, &self.headers, &self.body);
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// 100 to 599 by the standard; what the peer sent is passed on.
    pub status: u16,
    /// Text for people.
    pub reason: String,
    /// All header lines except `Content-Length`, which `encode` writes from the body.
    pub headers: Headers,
    /// The presentation description in the answer to DESCRIBE.
    pub body: Bytes,
}

impl Response {
    /// An answer to the request with that `CSeq`, with the standard's reason phrase.
    pub fn new(status: u16, cseq: Option<u32>) -> Self {
        let mut headers = Headers::default();
        if let Some(cseq) = cseq {
            headers.append("CSeq", cseq.to_string());
        }
        Self { status, reason: reason_phrase(status).to_owned(), headers, body: Bytes::new() }
    }

    /// Adds a header line.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.append(name, value);
        self
    }

    /// Sets the body and its `Content-Type`.
    #[must_use]
    pub fn body(mut self, content_type: &str, body: impl Into<Bytes>) -> Self {
        self.headers.append("Content-Type", content_type);
        self.body = body.into();
        self
    }

    /// 2xx.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Appends the wire form.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_slice(format!("RTSP/1.0 {:03} ", self.status).as_bytes());
        put_clean(out, &self.reason, false);
        out.put_slice(b"\r\n");
        put_rest(out, &self.headers, &self.body);
    }
}

impl Interleaved {
    /// Appends the wire form. `false`, and nothing written: the payload is over 65,535 bytes long.
    #[must_use]
    pub fn encode(&self, out: &mut BytesMut) -> bool {
        let Some(head) = interleaved_head(self.channel, self.payload.len()) else {
            return false;
        };
        out.put_slice(&head);
        out.put_slice(&self.payload);
        true
    }
}

fn put_rest(out: &mut BytesMut, headers: &Headers, body: &[u8]) {
    for (name, value) in headers.iter() {
        if name.eq_ignore_ascii_case("Content-Length") {
            continue; // one that contradicts the body would desynchronise the peer
        }
        put_clean(out, name, true);
        out.put_slice(b": ");
        put_clean(out, value, false);
        out.put_slice(b"\r\n");
    }
    if !body.is_empty() {
        out.put_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
    }
    out.put_slice(b"\r\n");
    out.put_slice(body);
}

/// Text that may come from outside (a URL from a camera's SDP), without what could end a line or a word.
fn put_clean(out: &mut BytesMut, text: &str, one_word: bool) {
    for &byte in text.as_bytes() {
        let ends_a_word = matches!(byte, b' ' | b'\t');
        let kept = if ends_a_word { !one_word } else { !byte.is_ascii_control() };
        if kept {
            out.put_u8(byte);
        }
    }
}

/// RFC 2326 §7.1.1, as far as a server here needs it.
fn reason_phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        200 => "OK",
        301 => "Moved Permanently",
        302 => "Moved Temporarily",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        413 => "Request Entity Too Large",
        414 => "Request-URI Too Large",
        415 => "Unsupported Media Type",
        453 => "Not Enough Bandwidth",
        454 => "Session Not Found",
        455 => "Method Not Valid in This State",
        457 => "Invalid Range",
        459 => "Aggregate Operation Not Allowed",
        461 => "Unsupported Transport",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "RTSP Version Not Supported",
        551 => "Option not supported",
        _ => "Unknown",
    }
}
