//! Reading RTSP messages from a byte stream.
//!
//! The caller owns the buffer: it reads from its connection into a `BytesMut`, calls
//! [`Decoder::decode`] until that gives `None`, and reads again. Payloads and bodies are slices of that
//! buffer, nothing is copied; once they are dropped, `BytesMut::reserve` takes the same memory again.
//!
//! Tolerated, because real cameras do it: line breaks between messages, LF without CR, header names in
//! any case, folded lines, lines without a colon, and (see [`DecoderLimits::resync_bytes`]) garbage
//! between messages. Not tolerated: what would need guessing about sizes.
//!
//! Invariant: the outcome does not depend on how the stream was cut into reads, and no more than the
//! limits is ever waited for; the caller's buffer is bounded by
//! `max(header_bytes + body_bytes, 65,539)` plus one read.

use bytes::{Buf, Bytes, BytesMut};

use super::{Headers, Interleaved, Message, Method, Request, Response};

/// What is accepted from a peer.
#[derive(Clone, Debug)]
pub struct DecoderLimits {
    /// Start line and headers of one message, in bytes. Default 16,384.
    pub header_bytes: usize,
    /// Header lines of one message. Default 64.
    pub header_lines: usize,
    /// Body of one message, in bytes. Default 262,144 (the largest SDP seen has 4,000).
    pub body_bytes: usize,
    /// How many bytes of garbage may be skipped in search of the next message before the connection is
    /// given up; counted anew after each good message. Some cameras drop part of an interleaved packet
    /// when their send buffer is full, and go on with the next. 0 makes the first stray byte an error,
    /// as a server should. Default 0.
    pub resync_bytes: usize,
    /// While searching, only a `$` followed by a channel below this counts. Default 4.
    pub resync_channels: u8,
}

impl Default for DecoderLimits {
    fn default() -> Self {
        Self {
            header_bytes: 16 * 1024,
            header_lines: 64,
            body_bytes: 256 * 1024,
            resync_bytes: 0,
            resync_channels: 4,
        }
    }
}

/// Why a connection cannot be read any further. There is no way back from any of these but a new connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Something else is listening there, an HTTP server most likely.
    #[error("the peer does not speak RTSP but said {0:?}")]
    NotRtsp(String),
    /// The first byte is neither a message nor interleaved data.
    #[error("neither an RTSP message nor interleaved data, after skipping {skipped} bytes")]
    LostSync {
        /// Bytes thrown away before giving up.
        skipped: usize,
    },
    /// Start line and headers exceed [`DecoderLimits::header_bytes`].
    #[error("RTSP headers of more than {0} bytes")]
    HeadersTooLong(usize),
    /// More than [`DecoderLimits::header_lines`].
    #[error("more than {0} RTSP header lines")]
    TooManyHeaders(usize),
    /// A start line or header that is not text, or a start line with the wrong number of words.
    #[error("malformed RTSP start line or header: {0:?}")]
    Malformed(String),
    /// `Content-Length` is not a number, or two of them differ.
    #[error("unusable Content-Length {0:?}")]
    ContentLength(String),
    /// Body exceeds [`DecoderLimits::body_bytes`].
    #[error("an RTSP body of {length} bytes, more than the {limit} accepted")]
    BodyTooLong {
        /// What the peer announced.
        length: u64,
        /// What is accepted.
        limit: usize,
    },
}

/// Cuts a byte stream into [`Message`]s.
#[derive(Debug, Default)]
pub struct Decoder {
    limits: DecoderLimits,
    /// A head that was read, while its body is still on the way.
    pending: Option<(Message, usize)>,
    /// Bytes already searched for the end of the head.
    searched: usize,
    skipped_now: usize,
    skipped_total: u64,
}

impl Decoder {
    /// A decoder for the start of a connection.
    pub fn new(limits: DecoderLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Bytes of garbage skipped since the start of the connection, for statistics.
    pub fn skipped_bytes(&self) -> u64 {
        self.skipped_total
    }

    /// Whether `buf` and the decoder hold the beginning of a message: the end of the stream here is a
    /// truncation, not an orderly close.
    pub fn is_mid_message(&self, buf: &BytesMut) -> bool {
        self.pending.is_some() || !buf.is_empty()
    }

    /// Takes the next message off the front of `buf`; `None` asks for more bytes.
    ///
    /// # Errors
    /// See [`DecodeError`]. The connection is unusable afterwards.
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Option<Message>, DecodeError> {
        loop {
            if let Some((_, length)) = &self.pending {
                if buf.len() < *length {
                    return Ok(None);
                }
                if let Some((message, length)) = self.pending.take() {
                    self.skipped_now = 0;
                    return Ok(Some(with_body(message, buf.split_to(length).freeze())));
                }
            }
            match buf.first() {
                None => return Ok(None),
                Some(b'$') => {
                    let &[_, channel, hi, lo, ..] = &buf[..] else {
                        return Ok(None);
                    };
                    let length = usize::from(u16::from_be_bytes([hi, lo]));
                    if self.skipped_now > 0 && channel >= self.limits.resync_channels {
                        self.skip(buf, 1)?;
                        continue;
                    }
                    if buf.len() < 4 + length {
                        return Ok(None);
                    }
                    buf.advance(4);
                    self.skipped_now = 0;
                    return Ok(Some(Message::Interleaved(Interleaved {
                        channel,
                        payload: buf.split_to(length).freeze(),
                    })));
                }
                Some(b'\r' | b'\n') if self.searched == 0 => buf.advance(1),
                Some(b'A'..=b'Z') => match self.not_a_start_line(buf) {
                    None => {
                        if !self.read_head(buf)? {
                            return Ok(None);
                        }
                    }
                    Some(reason @ DecodeError::NotRtsp(_)) => return Err(reason),
                    Some(reason) if self.limits.resync_bytes == 0 => return Err(reason),
                    Some(_) => self.skip_to_candidate(buf)?,
                },
                Some(_) => self.skip_to_candidate(buf)?,
            }
        }
    }

    /// Throws away what cannot begin a message.
    fn skip_to_candidate(&mut self, buf: &mut BytesMut) -> Result<(), DecodeError> {
        let next = buf.iter().skip(1).position(|&b| b == b'$' || b == b'R');
        self.skip(buf, next.map_or(buf.len(), |at| at + 1))
    }

    /// Throws garbage away, as far as the limit allows.
    fn skip(&mut self, buf: &mut BytesMut, count: usize) -> Result<(), DecodeError> {
        self.searched = 0;
        self.skipped_now += count;
        self.skipped_total += count as u64;
        if self.skipped_now > self.limits.resync_bytes {
            return Err(DecodeError::LostSync { skipped: self.skipped_now - count });
        }
        buf.advance(count);
        Ok(())
    }

    /// `buf` begins with what may be a start line. True: a head was read.
    fn read_head(&mut self, buf: &mut BytesMut) -> Result<bool, DecodeError> {
        let Some(head_len) = self.find_head_end(buf)? else {
            return Ok(false);
        };
        self.searched = 0;
        let head = buf.split_to(head_len);
        let (message, length) = parse_head(&head, &self.limits)?;
        self.pending = Some((message, length));
        Ok(true)
    }

    /// Whether what is there of the first line already rules out an RTSP start line: so that an HTTP
    /// server or garbage is named at once, not after 16 kB of waiting.
    fn not_a_start_line(&self, buf: &[u8]) -> Option<DecodeError> {
        let lost = Some(DecodeError::LostSync { skipped: self.skipped_now });
        if buf.starts_with(b"RTSP/") || b"RTSP/".starts_with(buf) {
            return None;
        }
        // In the middle of garbage a capital letter is no sign of a request.
        if self.skipped_now > 0 {
            return lost;
        }
        let method_len =
            buf.iter().take(33).take_while(|b| b.is_ascii_uppercase() || matches!(b, b'_' | b'-')).count();
        let is_http = buf.starts_with(b"HTTP/");
        if method_len > 32 || !is_http && buf.get(method_len).is_some_and(|&b| b != b' ') {
            return lost;
        }
        let line_end = buf.iter().take(self.limits.header_bytes).position(|&b| b == b'\n');
        let line = buf[..line_end.unwrap_or(0)].trim_ascii_end();
        let shown = || String::from_utf8_lossy(&line[..line.len().min(60)]).into_owned();
        if is_http && line_end.is_some() {
            return Some(DecodeError::NotRtsp(shown()));
        }
        if line_end.is_some() {
            let version = line.rsplit(|&b| b == b' ').next().unwrap_or_default();
            if version.starts_with(b"HTTP/") {
                return Some(DecodeError::NotRtsp(shown()));
            }
            if !version.starts_with(b"RTSP/") {
                return lost;
            }
        }
        None
    }

    /// Length of start line and headers with the empty line that ends them.
    fn find_head_end(&mut self, buf: &[u8]) -> Result<Option<usize>, DecodeError> {
        // Three bytes back: the end may be split over two reads.
        let from = self.searched.saturating_sub(3);
        let within = &buf[..buf.len().min(self.limits.header_bytes)];
        let mut at = from;
        while let Some(newline) = within[at..].iter().position(|&b| b == b'\n') {
            at += newline + 1;
            match &within[at..] {
                [b'\n', ..] => return Ok(Some(at + 1)),
                [b'\r', b'\n', ..] => return Ok(Some(at + 2)),
                _ => {}
            }
        }
        if buf.len() >= self.limits.header_bytes {
            return Err(DecodeError::HeadersTooLong(self.limits.header_bytes));
        }
        self.searched = buf.len();
        Ok(None)
    }
}

fn with_body(mut message: Message, bytes: Bytes) -> Message {
    match &mut message {
        Message::Request(request) => request.body = bytes,
        Message::Response(response) => response.body = bytes,
        Message::Interleaved(_) => {}
    }
    message
}

/// Start line and headers, up to and with the empty line; gives the message without its body, and the body's length.
fn parse_head(head: &[u8], limits: &DecoderLimits) -> Result<(Message, usize), DecodeError> {
    let malformed =
        |text: &[u8]| DecodeError::Malformed(String::from_utf8_lossy(&text[..text.len().min(80)]).into());
    let mut lines = head.split(|&b| b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let start = lines.next().unwrap_or_default();
    let start_text = std::str::from_utf8(start).map_err(|_| malformed(start))?;

    let mut headers = Headers::default();
    for line in lines.filter(|line| !line.is_empty()) {
        // Not UTF-8: some cameras put their name in a local encoding into Server. Nothing depends on it.
        let line = String::from_utf8_lossy(line);
        if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = headers.0.last_mut() {
                value.push(' ');
                value.push_str(line.trim());
            }
            continue;
        }
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        if headers.len() == limits.header_lines {
            return Err(DecodeError::TooManyHeaders(limits.header_lines));
        }
        headers.append(name.trim(), value.trim());
    }
    let length = content_length(&headers, limits)?;
    headers.0.retain(|(name, _)| !name.eq_ignore_ascii_case("Content-Length"));

    let body = Bytes::new();
    let message = if start_text.starts_with("RTSP/") {
        let mut words = start_text.splitn(3, ' ').skip(1);
        let status =
            words.next().and_then(|code| code.trim().parse().ok()).ok_or_else(|| malformed(start))?;
        let reason = words.next().unwrap_or_default().trim().to_owned();
        Message::Response(Response { status, reason, headers, body })
    } else {
        // The URL is everything between method and version: some clients leave spaces in it.
        let (method, rest) = start_text.split_once(' ').ok_or_else(|| malformed(start))?;
        let (uri, _version) = rest.trim_end().rsplit_once(' ').ok_or_else(|| malformed(start))?;
        let uri = uri.trim().to_owned();
        if uri.is_empty() {
            return Err(malformed(start));
        }
        Message::Request(Request { method: Method::from_name(method), uri, headers, body })
    };
    Ok((message, length))
}

fn content_length(headers: &Headers, limits: &DecoderLimits) -> Result<usize, DecodeError> {
    let mut values = headers.get_all("Content-Length");
    let Some(first) = values.next() else {
        return Ok(0);
    };
    if let Some(other) = values.find(|other| *other != first) {
        return Err(DecodeError::ContentLength(format!("{first}, {other}")));
    }
    // u64::from_str accepts a leading plus sign.
    let length: u64 = first
        .parse()
        .ok()
        .filter(|_| first.bytes().all(|b| b.is_ascii_digit()))
        .ok_or_else(|| DecodeError::ContentLength(first.chars().take(40).collect()))?;
    usize::try_from(length)
        .ok()
        .filter(|&length| length <= limits.body_bytes)
        .ok_or(DecodeError::BodyTooLong { length, limit: limits.body_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode_all(limits: DecoderLimits, pieces: &[&[u8]]) -> Result<(Vec<Message>, bool), DecodeError> {
        let mut decoder = Decoder::new(limits);
        let mut buf = BytesMut::new();
        let mut messages = Vec::new();
        for piece in pieces {
            buf.extend_from_slice(piece);
            while let Some(message) = decoder.decode(&mut buf)? {
                messages.push(message);
            }
        }
        Ok((messages, decoder.is_mid_message(&buf)))
    }

    fn resync() -> DecoderLimits {
        DecoderLimits { resync_bytes: 1000, ..DecoderLimits::default() }
    }

    /// Goal: every captured answer is read, whole and cut at every byte, to the same end.
    #[test]
    fn captured_answers_at_every_split() {
        let mut seen = 0;
        for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/rtsp")).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            if !text.starts_with("RTSP/") {
                continue;
            }
            // The captures were saved with LF; both line ends must do. Their bodies' lengths count CRLF.
            let (head, body) = text
                .replace("\r\n", "\n")
                .split_once("\n\n")
                .map(|(h, b)| (h.to_owned(), b.replace('\n', "\r\n")))
                .unwrap();
            for line_end in ["\n", "\r\n"] {
                let head: String = head
                    .lines()
                    .filter(|line| !line.starts_with("Content-Length"))
                    .flat_map(|line| [line, line_end])
                    .collect();
                let wire =
                    format!("{head}Content-Length: {}{line_end}{line_end}{body}", body.len()).into_bytes();
                let (whole, rest) = decode_all(DecoderLimits::default(), &[&wire]).unwrap();
                let [Message::Response(response)] = &whole[..] else { panic!("{path:?}: {whole:?}") };
                assert!(!rest);
                assert_eq!(response.status, 200);
                assert!(response.headers.cseq().is_some(), "{path:?}");
                assert_eq!(response.body, body.as_bytes());
                for at in 0..wire.len() {
                    let cut = decode_all(DecoderLimits::default(), &[&wire[..at], &wire[at..]]).unwrap();
                    assert_eq!(cut.0, whole, "{path:?} cut at {at}");
                }
                seen += 1;
            }
        }
        assert!(seen >= 40, "only {seen} captures found");
    }

    /// Goal: garbage after an incomplete packet costs that packet, not the connection.
    #[test]
    fn resynchronises_within_its_limit() {
        let wire = b"$\x00\x00\x02ab\x80\x60\x7f$\xf0\xffARTSP/1.0 200 OK\r\nCSeq: 4\r\n\r\n$\x01\x00\x01c";
        for at in 0..wire.len() {
            let (messages, _) = decode_all(resync(), &[&wire[..at], &wire[at..]]).unwrap();
            let [Message::Interleaved(first), Message::Response(response), Message::Interleaved(last)] =
                &messages[..]
            else {
                panic!("cut at {at}: {messages:?}")
            };
            assert_eq!(
                (&first.payload[..], response.headers.cseq(), &last.payload[..]),
                (&b"ab"[..], Some(4), &b"c"[..])
            );
        }
        for garbage in [0x05, b'U', b'$', b'R'] {
            let error = decode_all(resync(), &[&[1], &vec![garbage; 1005]]).unwrap_err();
            assert!(matches!(error, DecodeError::LostSync { skipped: 1..=1000 }), "{error}");
        }
        let strict = decode_all(DecoderLimits::default(), &[b"\x00"]);
        assert_eq!(strict.unwrap_err(), DecodeError::LostSync { skipped: 0 });
    }

    /// Goal: a peer that lies about sizes, or is no RTSP peer, is named as such at once.
    #[test]
    fn hostile_input_has_a_name() {
        let fail = |wire: &[u8]| decode_all(DecoderLimits::default(), &[wire]).unwrap_err();
        assert!(
            matches!(fail(b"HTTP/1.1 400 Bad Request\r\n"), DecodeError::NotRtsp(said) if said.starts_with("HTTP/1.1 400"))
        );
        assert!(matches!(fail(b"GET / HTTP/1.1\r\n"), DecodeError::NotRtsp(_)));
        assert!(matches!(fail(b"SSH-2.0-OpenSSH_9\r\n"), DecodeError::LostSync { .. }));
        assert!(matches!(fail(&[b'A'; 40]), DecodeError::LostSync { .. }));
        let tolerant = decode_all(resync(), &[b"HTTP/1.1 400 Bad Request\r\n"]);
        assert!(matches!(tolerant, Err(DecodeError::NotRtsp(_))), "{tolerant:?}");
        let long = [b"OPTIONS * RTSP/1.0\r\nX: ".as_slice(), &[b'x'; 16 * 1024]].concat();
        assert_eq!(fail(&long), DecodeError::HeadersTooLong(16 * 1024));
        let many = format!("OPTIONS * RTSP/1.0\r\n{}\r\n", "a: b\r\n".repeat(65));
        assert_eq!(fail(many.as_bytes()), DecodeError::TooManyHeaders(64));
        let head = |length: &str| format!("RTSP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n");
        assert!(matches!(
            fail(head("99999999").as_bytes()),
            DecodeError::BodyTooLong { length: 99_999_999, .. }
        ));
        assert!(matches!(fail(head("99999999999999999999").as_bytes()), DecodeError::ContentLength(_)));
        assert!(matches!(fail(head("+5").as_bytes()), DecodeError::ContentLength(_)));
        assert!(matches!(fail(head("-1").as_bytes()), DecodeError::ContentLength(_)));
        assert!(matches!(fail(head("3\r\nContent-Length: 4").as_bytes()), DecodeError::ContentLength(_)));
        assert!(matches!(fail(b"RTSP/1.0 abc OK\r\n\r\n"), DecodeError::Malformed(_)));
    }

    /// Goal: the end of the stream inside a message is told from an orderly end.
    #[test]
    fn truncation_is_visible() {
        for wire in [
            &b"RTSP/1.0 200"[..],
            b"RTSP/1.0 200 OK\r\nContent-Length: 9\r\n\r\nabc",
            b"$\x00\x00\x09abc",
            b"$",
        ] {
            let (messages, rest) = decode_all(DecoderLimits::default(), &[wire]).unwrap();
            assert!(messages.is_empty() && rest, "{wire:?}");
        }
    }

    /// Goal: reading does not copy, and the buffer's memory is used again.
    #[test]
    fn buffer_is_reused() {
        let mut decoder = Decoder::default();
        let mut buf = BytesMut::with_capacity(4096);
        let mut starts = std::collections::HashSet::new();
        for _ in 0..1000 {
            buf.reserve(1504);
            buf.extend_from_slice(&[b'$', 0, 5, 0xdc]);
            buf.extend_from_slice(&[7; 1500]);
            let before = buf.as_ptr() as usize + 4;
            let Some(Message::Interleaved(data)) = decoder.decode(&mut buf).unwrap() else { panic!() };
            assert_eq!(data.payload.as_ptr() as usize, before);
            starts.insert(before);
        }
        assert!(starts.len() <= 3, "{} places", starts.len());
    }

    fn arb_message() -> impl Strategy<Value = Message> {
        let headers =
            proptest::collection::vec(("[A-Za-z][A-Za-z-]{0,12}", "[!-~]([ -~]{0,20}[!-~])?"), 0..5)
                .prop_map(|lines| {
                    let mut headers = Headers::default();
                    for (name, value) in
                        lines.into_iter().filter(|(n, _)| !n.eq_ignore_ascii_case("content-length"))
                    {
                        headers.append(name, value);
                    }
                    headers
                });
        let body = proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from);
        prop_oneof![
            ("[A-Z]{1,10}", "rtsp://[a-z0-9/?=&]{1,20}", headers.clone(), body.clone()).prop_map(
                |(method, uri, headers, body)| {
                    Message::Request(Request { method: Method::from_name(&method), uri, headers, body })
                }
            ),
            (100u16..600, "[A-Za-z]{1,10}( [A-Za-z]{1,5})?", headers, body).prop_map(
                |(status, reason, headers, body)| {
                    Message::Response(Response { status, reason, headers, body })
                }
            ),
            (any::<u8>(), proptest::collection::vec(any::<u8>(), 0..60)).prop_map(|(channel, payload)| {
                Message::Interleaved(Interleaved { channel, payload: payload.into() })
            }),
        ]
    }

    proptest! {
        /// Goal: what is written is read back, whatever the cut.
        #[test]
        fn round_trip_at_every_split(messages in proptest::collection::vec(arb_message(), 1..4)) {
            let mut wire = BytesMut::new();
            for message in &messages {
                match message {
                    Message::Request(request) => request.encode(&mut wire),
                    Message::Response(response) => response.encode(&mut wire),
                    Message::Interleaved(data) => prop_assert!(data.encode(&mut wire)),
                }
            }
            for at in 0..=wire.len() {
                let (read, rest) = decode_all(DecoderLimits::default(), &[&wire[..at], &wire[at..]]).unwrap();
                prop_assert_eq!(&read, &messages);
                prop_assert!(!rest);
            }
        }

        /// Goal: garbage never panics, and the result does not depend on the cut.
        #[test]
        fn garbage_at_every_split(wire in proptest::collection::vec(prop_oneof![any::<u8>(), Just(b'$'), Just(b'R'), Just(b'\n'), Just(b'A'), Just(b' ')], 0..80)) {
            for limits in [DecoderLimits::default(), resync()] {
                let bytes: Vec<&[u8]> = wire.chunks(1).collect();
                let whole = decode_all(limits.clone(), &[&wire]);
                let by_byte = decode_all(limits, &bytes);
                match (whole, by_byte) {
                    (Ok(whole), Ok(by_byte)) => prop_assert_eq!(whole.0, by_byte.0),
                    (Err(_), Err(_)) => {}
                    (whole, by_byte) => prop_assert!(false, "{whole:?} or {by_byte:?}"),
                }
            }
        }

        /// Goal: no value can forge a header line.
        #[test]
        fn no_header_injection(value in "[a-z\r\n: ]{0,30}") {
            let mut wire = BytesMut::new();
            Request::new(Method::Options, format!("rtsp://h/{value}"), 1).header("X", value).encode(&mut wire);
            let (read, _) = decode_all(DecoderLimits::default(), &[&wire]).unwrap();
            let [Message::Request(request)] = &read[..] else { panic!("{read:?}") };
            prop_assert_eq!(request.headers.len(), 2);
        }
    }
}
