//! A small HTTP/1.1 client for tests: one connection a request, answers read to their end.
//!
//! Connections are made by a function, so that the same client speaks from inside a network
//! namespace. No TLS: what a test asks is asked of addresses that a VMS or a browser uses.

use serde_json::Value;
use std::{
    io::{self, Read, Write},
    net::TcpStream,
    sync::Arc,
    time::Duration,
};

/// Patience with an answer.
const DEADLINE: Duration = Duration::from_secs(30);

/// Makes a connection to `host:port`.
pub type Connect = Arc<dyn Fn(&str) -> io::Result<TcpStream> + Send + Sync>;

/// A client of one server.
#[derive(Clone)]
pub struct Http {
    authority: String,
    headers: Vec<(&'static str, String)>,
    connect: Connect,
}

/// What a server answered.
pub struct Answer {
    /// 200, 404, …
    pub status: u16,
    /// Name, in lower case, and value.
    pub headers: Vec<(String, String)>,
    /// Decoded of its transfer coding.
    pub body: Vec<u8>,
}

impl Http {
    /// A client of `http://host:port`.
    pub fn new(url: &str) -> Http {
        Http::through(url, Arc::new(|authority| TcpStream::connect(authority)))
    }

    /// A client whose connections are made by `connect`.
    pub fn through(url: &str, connect: Connect) -> Http {
        let authority = url.strip_prefix("http://").unwrap_or_else(|| panic!("not plain HTTP: {url}"));
        let authority = authority.split('/').next().expect("one part at least").to_owned();
        Http { authority, headers: Vec::new(), connect }
    }

    /// With one header more, from now on.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Http {
        self.headers.push((name, value.into()));
        self
    }

    /// With a bearer token from now on.
    #[must_use]
    pub fn bearer(self, token: &str) -> Http {
        self.header("authorization", format!("Bearer {token}"))
    }

    /// With a user and a password (Basic) from now on.
    #[must_use]
    pub fn basic(self, user: &str, password: &str) -> Http {
        use base64::Engine;
        let both = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        self.header("authorization", format!("Basic {both}"))
    }

    /// Signs in at a management server as a browser would; the same client with a new API token.
    #[must_use]
    #[track_caller]
    pub fn sign_in(self, user: &str, password: &str) -> Http {
        let asked = serde_json::json!({"user": user, "password": password});
        let answer = self.request("POST", "/api/v1/session", Some(&asked)).and_then(Answer::success).unwrap();
        let cookie = answer.header("set-cookie").and_then(|cookie| cookie.split(';').next());
        let cookie = cookie.expect("a cookie").to_owned();
        let session = self.clone().header("cookie", cookie).header("x-homing-request", "1");
        let token = session
            .post("/api/v1/tokens", &serde_json::json!({"name": "test", "current": password}))
            .unwrap();
        self.bearer(token["token"].as_str().expect("a token"))
    }

    /// Sends a request; a body is sent as JSON.
    ///
    /// # Errors
    /// When there is no connection, or no answer that can be understood in time.
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> io::Result<Answer> {
        let mut stream = (self.connect)(&self.authority)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut head =
            format!("{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", self.authority);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() {
            head += "content-type: application/json\r\n";
        }
        head += &format!("content-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(head.as_bytes())?;
        let mut bytes = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        // Not every server closes when it was asked to.
        while !is_whole(&bytes) {
            match stream.read(&mut buffer)? {
                0 => break,
                length => bytes.extend_from_slice(&buffer[..length]),
            }
        }
        parse(&bytes)
    }

    /// GET, and whatever comes.
    ///
    /// # Errors
    /// As [`Http::request`].
    pub fn get(&self, path: &str) -> io::Result<Answer> {
        self.request("GET", path, None)
    }

    /// GET of a JSON document.
    ///
    /// # Errors
    /// Also when the answer is not a success.
    pub fn json(&self, path: &str) -> io::Result<Value> {
        self.get(path)?.success()?.value()
    }

    /// POST of a JSON document, answered with one (or with nothing).
    ///
    /// # Errors
    /// Also when the answer is not a success; the server's own words are in the message.
    pub fn post(&self, path: &str, body: &Value) -> io::Result<Value> {
        self.request("POST", path, Some(body))?.success()?.value()
    }
}

impl Answer {
    /// A header's value; its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as text, for messages.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Itself, when the status is 2xx.
    ///
    /// # Errors
    /// With status and body otherwise.
    pub fn success(self) -> io::Result<Answer> {
        match self.status {
            200..=299 => Ok(self),
            status => Err(io::Error::other(format!("status {status}: {}", self.text()))),
        }
    }

    /// The body as JSON; null when it is empty.
    ///
    /// # Errors
    /// When it is something else.
    pub fn value(&self) -> io::Result<Value> {
        if self.body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&self.body)
            .map_err(|error| io::Error::other(format!("{error}: {}", self.text())))
    }
}

/// Whether nothing is missing of an answer that says how long it is; one that does not lasts until
/// the connection ends.
fn is_whole(bytes: &[u8]) -> bool {
    let Ok((head, end)) = parse_head(bytes) else { return false };
    let body = bytes.len() - end;
    match head.header("content-length").map(str::parse::<usize>) {
        Some(Ok(length)) => body >= length,
        _ if head.header("transfer-encoding") == Some("chunked") => bytes.ends_with(b"\r\n0\r\n\r\n"),
        _ => [204, 304].contains(&head.status),
    }
}

fn broken(bytes: &[u8], what: &str) -> io::Error {
    let start = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
    io::Error::new(io::ErrorKind::InvalidData, format!("{what}: {start:?}"))
}

/// An answer without its body, and where that begins.
fn parse_head(bytes: &[u8]) -> io::Result<(Answer, usize)> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.ok_or_else(|| broken(bytes, "no end of head"))?;
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| broken(bytes, "head is not text"))?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok());
    let status = status.ok_or_else(|| broken(bytes, "no status"))?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Ok((Answer { status, headers, body: Vec::new() }, end + 4))
}

fn parse(bytes: &[u8]) -> io::Result<Answer> {
    let broken = |what: &str| broken(bytes, what);
    let (mut answer, end) = parse_head(bytes)?;
    answer.body = bytes[end..].to_vec();
    if answer.header("transfer-encoding") == Some("chunked") {
        answer.body = unchunk(&answer.body).ok_or_else(|| broken("broken off in the middle of a chunk"))?;
    } else if let Some(length) = answer.header("content-length") {
        let length = length.parse::<usize>().map_err(|_| broken("content-length"))?;
        if answer.body.len() != length {
            return Err(broken(&format!("{} of {length} bytes came", answer.body.len())));
        }
    }
    Ok(answer)
}

fn unchunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|two| two == b"\r\n")?;
        let size = std::str::from_utf8(&rest[..end]).ok()?.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        rest = &rest[end + 2..];
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size + 2..)?;
    }
}

/// The goal: an answer that was cut short is never taken for a whole one.
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_answers_are_read_and_cut_ones_are_refused() {
        let chunked =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n";
        assert_eq!(parse(chunked).unwrap().body, b"abcde");
        let sized = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno";
        assert_eq!(parse(sized).unwrap().text(), "no");
        assert!(parse(sized).unwrap().success().is_err());
        assert!(is_whole(chunked) && is_whole(sized));
        for (whole, cut) in [(&chunked[..], 12), (&sized[..], 1), (&sized[..], 10)] {
            let part = &whole[..whole.len() - cut];
            assert!(parse(part).is_err() && !is_whole(part));
        }
    }
}
