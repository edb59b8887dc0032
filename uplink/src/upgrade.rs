//! The HTTP/1.1 heads at the start of an uplink (ONVIF Uplink 26.06 §5.1), pure: to parse and to make.
//!
//! The device sends one `GET` that asks to change to `h2c-reverse`, or to a WebSocket with that subprotocol; the
//! server answers `101`, or an ordinary status with the reason as text. The same parser reads the answer of an
//! HTTP `CONNECT` proxy.
//!
//! Invariant: whatever is parsed here is at most [`HEAD_MAX`] bytes with at most [`HEADERS_MAX`] headers, and nothing that
//! the peer sent gets into an error text unescaped. Flow steps 4 (phone home) and 6 (connect).

use crate::address::{Carrier, UplinkAddress};
use crate::tls::sha1;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::fmt;

/// Longest head that is read, in bytes; a longer one is refused with 431.
pub const HEAD_MAX: usize = 8192;

/// Most header lines.
pub const HEADERS_MAX: usize = 64;

/// What an uplink is called in `Upgrade` and `Sec-WebSocket-Protocol`.
pub const PROTOCOL: &str = "h2c-reverse";

/// In a refusal for now: other addresses of the server, `host:port`, separated by commas.
pub const UPLINKS_HEADER: &str = "Homing-Uplinks";

/// RFC 6455 §1.3.
const WEBSOCKET_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A secret access token (RFC 6750); does not show itself.
#[derive(Clone, PartialEq, Eq)]
pub struct BearerToken(String);

impl BearerToken {
    /// A token; `None` if it has characters that RFC 6750 §2.1 does not allow.
    pub fn new(token: impl Into<String>) -> Option<Self> {
        let token = token.into();
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
        (!token.is_empty() && token.bytes().all(allowed)).then_some(Self(token))
    }

    /// The token itself, to be compared in constant time.
    pub fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BearerToken(…)")
    }
}

/// What a device asked for.
#[derive(Debug)]
pub(crate) struct UpgradeRequest {
    pub carrier: Carrier,
    /// Path and query without the token.
    pub path: String,
    pub host: Option<String>,
    pub user_agent: Option<String>,
    pub token: Option<BearerToken>,
    /// `Sec-WebSocket-Key` as it came; empty for a native uplink.
    websocket_key: String,
}

/// Why a head is not the beginning of an uplink; `status` is what to answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// Not HTTP/1.1.
    #[error("what came is not an HTTP/1.1 head: {0}")]
    NotHttp(String),
    /// Over 8 kB or 64 header lines.
    #[error("the head is longer than {HEAD_MAX} bytes or {HEADERS_MAX} lines")]
    TooLong,
    /// An HTTP request, but for something else.
    #[error("not an uplink request: {0}")]
    NotUplink(String),
}

impl HeadError {
    /// The HTTP status that answers it.
    pub fn status(&self) -> u16 {
        match self {
            Self::NotHttp(_) => 400,
            Self::TooLong => 431,
            Self::NotUplink(_) => 426,
        }
    }
}

impl UpgradeRequest {
    /// Parses the head at the beginning of `bytes`: `None` if it is not complete, else the request and the head's length.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, HeadError> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        let length = match parsed(request.parse(bytes), bytes.len())? {
            Some(length) => length,
            None => return Ok(None),
        };
        let headers = Headers(request.headers);
        let method = request.method.unwrap_or_default();
        let target = request.path.unwrap_or_default();
        let refuse = |what: String| Err(HeadError::NotUplink(what));
        if method != "GET" {
            return refuse(format!("the method is {}, not GET", shown(method)));
        }
        if !headers.has_token("connection", "upgrade") {
            return refuse("there is no Connection: upgrade".to_owned());
        }
        let (carrier, websocket_key) = if headers.has_token("upgrade", PROTOCOL) {
            (Carrier::Native, String::new())
        } else if headers.has_token("upgrade", "websocket") {
            if !headers.has_token("sec-websocket-protocol", PROTOCOL) {
                return refuse(format!("the WebSocket does not offer the subprotocol {PROTOCOL}"));
            }
            if headers.get("sec-websocket-version") != Some("13") {
                return refuse("the WebSocket version is not 13".to_owned());
            }
            let key = headers.get("sec-websocket-key").unwrap_or_default();
            if BASE64.decode(key).map(|key| key.len()) != Ok(16) {
                return refuse("Sec-WebSocket-Key is not 16 bytes in base64".to_owned());
            }
            (Carrier::WebSocket, key.to_owned())
        } else {
            return refuse(format!("Upgrade is neither {PROTOCOL} nor websocket"));
        };
        let (path, query_token) = take_access_token(target);
        let header_token = headers.get("authorization").and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        let token = match header_token.or(query_token.as_deref()) {
            None => None,
            Some(token) => match BearerToken::new(token) {
                Some(token) => Some(token),
                None => return refuse("the access token has characters that a token cannot have".to_owned()),
            },
        };
        let owned = |name| headers.get(name).map(|value| value.chars().take(200).collect::<String>());
        let (host, user_agent) = (owned("host"), owned("user-agent"));
        Ok(Some((Self { carrier, path, host, user_agent, token, websocket_key }, length)))
    }

    /// The `101` that changes the protocol.
    pub fn switching_protocols(&self) -> String {
        match self.carrier {
            Carrier::Native => {
                format!(
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {PROTOCOL}\r\n\r\n"
                )
            }
            Carrier::WebSocket => format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Accept: {}\r\nSec-WebSocket-Protocol: {PROTOCOL}\r\n\r\n",
                websocket_accept(&self.websocket_key)
            ),
        }
    }
}

/// The head that a device sends to `address`. `websocket_key` is used with [`Carrier::WebSocket`] only.
pub(crate) fn upgrade_request(
    address: &UplinkAddress,
    token: Option<&BearerToken>,
    user_agent: &str,
    websocket_key: &str,
) -> String {
    let mut head = format!("GET {} HTTP/1.1\r\nHost: {}\r\n", address.path(), address.authority());
    if !user_agent.is_empty() {
        head.push_str(&format!("User-Agent: {user_agent}\r\n"));
    }
    if let Some(token) = token {
        head.push_str(&format!("Authorization: Bearer {}\r\n", token.secret()));
    }
    match address.carrier() {
        Carrier::Native => head.push_str(&format!("Connection: Upgrade\r\nUpgrade: {PROTOCOL}\r\n\r\n")),
        Carrier::WebSocket => head.push_str(&format!(
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: {websocket_key}\r\nSec-WebSocket-Protocol: {PROTOCOL}\r\n\r\n"
        )),
    }
    head
}

/// A fresh `Sec-WebSocket-Key`.
pub(crate) fn websocket_key() -> String {
    BASE64.encode(rand::random::<[u8; 16]>())
}

/// The `Sec-WebSocket-Accept` that answers a key (RFC 6455 §4.2.2).
pub fn websocket_accept(key: &str) -> String {
    BASE64.encode(sha1(format!("{key}{WEBSOCKET_GUID}").as_bytes()))
}

/// The answer of a server or proxy to the first request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ResponseHead {
    pub status: u16,
    /// The reason phrase, made printable.
    pub phrase: String,
    pub content_length: Option<usize>,
    /// In seconds; a date is not understood.
    pub retry_after: Option<u64>,
    upgrade: bool,
    websocket: bool,
    websocket_accept: Option<String>,
}

impl ResponseHead {
    /// As [`UpgradeRequest::parse`].
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, HeadError> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let length = match parsed(response.parse(bytes), bytes.len())? {
            Some(length) => length,
            None => return Ok(None),
        };
        let headers = Headers(response.headers);
        let head = Self {
            status: response.code.unwrap_or_default(),
            phrase: shown(response.reason.unwrap_or_default()),
            content_length: headers.get("content-length").and_then(|value| value.parse().ok()),
            retry_after: headers.get("retry-after").and_then(|value| value.trim().parse().ok()),
            upgrade: headers.has_token("upgrade", PROTOCOL),
            websocket: headers.has_token("upgrade", "websocket")
                && headers.has_token("sec-websocket-protocol", PROTOCOL),
            websocket_accept: headers.get("sec-websocket-accept").map(str::to_owned),
        };
        Ok(Some((head, length)))
    }

    /// Checks that a `101` changes to what was asked for.
    pub fn check_switched(&self, carrier: Carrier, websocket_key: &str) -> Result<(), HeadError> {
        let switched = match carrier {
            Carrier::Native => self.upgrade,
            Carrier::WebSocket => {
                self.websocket && self.websocket_accept.as_deref() == Some(&websocket_accept(websocket_key))
            }
        };
        if self.status == 101 && switched {
            return Ok(());
        }
        Err(HeadError::NotUplink(format!(
            "the answer {} does not change the protocol to {PROTOCOL}",
            self.status
        )))
    }
}

/// A whole answer that refuses, with the reason as text for the device to show.
pub(crate) fn refusal(status: u16, headers: &str, reason: &str) -> String {
    let phrase = http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    let upgrade = if status == 426 { format!("Upgrade: {PROTOCOL}\r\n") } else { String::new() };
    format!(
        "HTTP/1.1 {status} {}\r\n{upgrade}{headers}Connection: close\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Content-Length: {}\r\n\r\n{reason}",
        phrase.unwrap_or("Refused"),
        reason.len(),
    )
}

/// The head that asks a proxy for a connection.
pub(crate) fn connect_request(authority: &str, authorization: Option<&str>) -> String {
    let authorization =
        authorization.map(|value| format!("Proxy-Authorization: {value}\r\n")).unwrap_or_default();
    format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{authorization}\r\n")
}

/// Text from a peer, fit for a log line or a page: printable, at most 500 characters.
pub(crate) fn shown(text: &str) -> String {
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    text.trim().chars().take(500).map(printable).collect()
}

fn parsed(result: httparse::Result<usize>, have: usize) -> Result<Option<usize>, HeadError> {
    match result {
        Ok(httparse::Status::Complete(length)) if length <= HEAD_MAX => Ok(Some(length)),
        Ok(httparse::Status::Partial) if have < HEAD_MAX => Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => Err(HeadError::TooLong),
        Err(error) => Err(HeadError::NotHttp(error.to_string())),
    }
}

/// Takes `access_token=…` (RFC 6750 §2.3) out of the target's query.
fn take_access_token(target: &str) -> (String, Option<String>) {
    let Some((path, query)) = target.split_once('?') else { return (target.to_owned(), None) };
    let (mut token, mut rest) = (None, Vec::new());
    for pair in query.split('&') {
        match pair.strip_prefix("access_token=") {
            Some(value) => token = Some(percent_decoded(value)),
            None => rest.push(pair),
        }
    }
    let path = if rest.is_empty() { path.to_owned() } else { format!("{path}?{}", rest.join("&")) };
    (path, token)
}

fn percent_decoded(value: &str) -> String {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let hex = after.first_chunk::<2>().and_then(|two| std::str::from_utf8(two).ok());
        match hex.and_then(|two| u8::from_str_radix(two, 16).ok()) {
            Some(decoded) if byte == b'%' => {
                bytes.push(decoded);
                rest = &after[2..];
            }
            _ => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

struct Headers<'a>(&'a [httparse::Header<'a>]);

impl<'a> Headers<'a> {
    fn get(&self, name: &str) -> Option<&'a str> {
        let header = self.0.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(header.value).ok().map(str::trim)
    }

    /// Whether a comma-separated header, on one or several lines, has this token.
    fn has_token(&self, name: &str, token: &str) -> bool {
        self.0
            .iter()
            .filter(|header| header.name.eq_ignore_ascii_case(name))
            .filter_map(|header| std::str::from_utf8(header.value).ok())
            .any(|value| value.split(',').any(|item| item.trim().eq_ignore_ascii_case(token)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(head: &str) -> Result<UpgradeRequest, HeadError> {
        UpgradeRequest::parse(head.as_bytes()).map(|parsed| parsed.expect("a complete head").0)
    }

    #[test]
    fn the_accept_key_is_that_of_rfc_6455_section_1_3() {
        assert_eq!(websocket_accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn what_a_device_sends_is_what_the_server_understands() {
        let token = BearerToken::new("abc.DEF").expect("a token");
        for address in ["https://sts.example:8443/up?x=1", "wss://[::1]/up?x=1"] {
            let address: UplinkAddress = address.parse().expect("an address");
            let key = websocket_key();
            let request =
                parse(&upgrade_request(&address, Some(&token), "agent/1", &key)).expect("an uplink");
            assert_eq!(request.carrier, address.carrier());
            assert_eq!(request.path, "/up?x=1");
            assert_eq!(request.host, Some(address.authority()));
            assert_eq!(request.token.as_ref(), Some(&token));
            let answer = request.switching_protocols();
            let (head, length) =
                ResponseHead::parse(answer.as_bytes()).expect("an answer").expect("complete");
            assert_eq!(length, answer.len());
            assert_eq!(head.check_switched(address.carrier(), &key), Ok(()));
        }
    }

    #[test]
    fn the_token_may_come_as_query_parameter_and_is_kept_out_of_the_path() {
        let request =
            parse("GET /up?a=b&access_token=s%2Fcret&c HTTP/1.1\r\nconnection: keep-alive, Upgrade\r\nupgrade: h2c-reverse\r\n\r\n")
                .expect("an uplink");
        assert_eq!(request.path, "/up?a=b&c");
        assert_eq!(request.token.as_ref().map(BearerToken::secret), Some("s/cret"));
        assert!(!format!("{request:?}").contains("cret"));
    }

    #[test]
    fn other_requests_are_refused_with_what_is_wrong() {
        for (head, reason) in [
            ("GET / HTTP/1.1\r\n\r\n", "Connection"),
            ("POST / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c-reverse\r\n\r\n", "POST"),
            ("GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", "neither"),
            ("GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", "subprotocol"),
            ("\x16\x03\x01\r\n\r\n", "not an HTTP"),
        ] {
            let error = parse(head).expect_err(head).to_string();
            assert!(error.contains(reason), "{head:?}: {error}");
        }
        let websocket = "GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: h2c-reverse\r\n";
        assert!(parse(&format!("{websocket}Sec-WebSocket-Version: 8\r\n\r\n")).is_err());
        assert!(
            parse(&format!("{websocket}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n\r\n")).is_err()
        );
    }

    #[test]
    fn heads_without_end_are_cut_off() {
        let mut head = b"GET / HTTP/1.1\r\nX: ".to_vec();
        head.resize(HEAD_MAX - 1, b'a');
        assert!(matches!(UpgradeRequest::parse(&head), Ok(None)));
        head.push(b'a');
        assert!(matches!(UpgradeRequest::parse(&head), Err(HeadError::TooLong)));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(HEADERS_MAX + 1));
        assert!(matches!(UpgradeRequest::parse(many.as_bytes()), Err(HeadError::TooLong)));
    }

    #[test]
    fn a_refusal_carries_its_reason_and_nothing_else() {
        let text = refusal(403, "", "Unbekanntes Gerät");
        let (head, length) = ResponseHead::parse(text.as_bytes()).expect("an answer").expect("complete");
        assert_eq!((head.status, head.content_length), (403, Some(text.len() - length)));
        assert_eq!(&text[length..], "Unbekanntes Gerät");
        assert_eq!(shown(" a\r\nb\u{1b}c "), "a  b c");
    }

    proptest! {
        #[test]
        fn every_prefix_of_a_head_is_incomplete_and_no_input_panics(cut in 0..100_usize, noise in proptest::collection::vec(any::<u8>(), 0..100)) {
            let address: UplinkAddress = "wss://h/".parse().expect("an address");
            let head = upgrade_request(&address, None, "", &websocket_key());
            let cut = cut % head.len();
            prop_assert!(matches!(UpgradeRequest::parse(&head.as_bytes()[..cut]), Ok(None)));
            let mut spoilt = head.into_bytes();
            spoilt.truncate(cut);
            spoilt.extend_from_slice(&noise);
            let _ = UpgradeRequest::parse(&spoilt);
            let _ = ResponseHead::parse(&noise);
        }
    }
}
