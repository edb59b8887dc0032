//! RTSP over HTTP through a device's uplink, for devices without WebSocket: two requests that a cookie ties together
//! (ONVIF Streaming Specification §5.1.1.4; docs/decisions, 025).
//!
//! 1. GET; its answer is what the device sends, RTSP and interleaved RTP, without end.
//! 2. POST; its body is what we send, in base64. It may be answered never.
//!
//! GET is challenged and repeated first. POST is logged in by the same challenge; should the device want another one, POST
//! is repeated with what was sent, for as long as the device has said nothing and can have taken nothing.
//!
//! Back-pressure: what is not read stays within the stream's window; what is written waits for credit.
//!
//! Not here: where it is (`rtsp.rs`), and RTSP itself.

use crate::rtsp::{NoRtsp, ROUNDS, Refused, sensitive};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Buf as _, Bytes};
use futures_util::future::BoxFuture;
use homing_protocol::{
    digest::{BasicPolicy, ClientAuth, ClientError},
    secret::Credentials,
};
use homing_uplink::{Body, BodySender, OpenError, PendingAnswer, Uplink};
use http::{HeaderMap, Method, Request, StatusCode, header};
use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const CONTENT_TYPE: &str = "application/x-rtsp-tunnelled";

/// What ties GET and POST together.
const COOKIE: &str = "x-sessioncookie";

/// Sent in one piece; in base64 it is a third longer, and then one DATA frame.
const PIECE_MAX: usize = 12 * 1024;

/// What was sent and is kept for a second POST: requests until the first answer. Of more, POST is not repeated.
const KEPT_MAX_BYTES: usize = 16 * 1024;

/// RTSP over HTTP to a device, as `AsyncRead` and `AsyncWrite`.
///
/// 1. Made when the device has answered GET ([`TunnelHandle::open_rtsp`](crate::TunnelHandle::open_rtsp)).
/// 2. Bytes both ways. Reading also sees to POST: a device that refuses it is an error of the reader.
/// 3. Shutting the writing side down ends POST; the end of GET reads as the end.
/// 4. Dropping it cancels both requests.
pub struct RtspOverHttp {
    get: Body,
    /// Received, not yet read.
    payload: Bytes,
    post: Post,
    /// For a second POST, for as long as there may be one.
    kept: Option<Box<Kept>>,
    /// Who waits for the second POST to be on its way.
    reader: Option<Waker>,
    writer: Option<Waker>,
}

enum Post {
    Open(BodySender, PendingAnswer),
    /// It was challenged.
    Repeated(BoxFuture<'static, Result<(BodySender, PendingAnswer), Refused>>),
    /// This end has closed, after which the answer says nothing.
    Closed(#[expect(dead_code, reason = "dropping it breaks off what is on its way")] Option<PendingAnswer>),
}

struct Kept {
    asking: Asking,
    sent: Vec<u8>,
}

/// Opens RTSP over HTTP at `path`.
pub(crate) async fn open(
    uplink: &Uplink,
    path: &str,
    host: String,
    credentials: Credentials,
) -> Result<RtspOverHttp, Refused> {
    let mut asking = Asking {
        uplink: uplink.clone(),
        path: path.to_owned(),
        host,
        cookie: format!("{:016x}", rand::random::<u64>()),
        auth: ClientAuth::new(BasicPolicy::Allow),
        credentials,
    };
    let get = asking.get().await?;
    let (body, answer) = asking.post().await?;
    Ok(RtspOverHttp {
        get,
        payload: Bytes::new(),
        post: Post::Open(body, answer),
        kept: Some(Box::new(Kept { asking, sent: Vec::new() })),
        reader: None,
        writer: None,
    })
}

/// What both requests have in common.
struct Asking {
    uplink: Uplink,
    path: String,
    host: String,
    cookie: String,
    auth: ClientAuth,
    credentials: Credentials,
}

impl Asking {
    /// Its answer's body, which is the device's side of the session.
    async fn get(&mut self) -> Result<Body, Refused> {
        for _ in 0..ROUNDS {
            let request = self.request(Method::GET)?.map(|()| Bytes::new());
            let answer = self.uplink.request(request).await.map_err(OpenError::from)?;
            if answer.status() == StatusCode::UNAUTHORIZED {
                self.handle_challenge(answer.headers())?;
                continue;
            }
            self.auth.handle_accepted();
            let is_rtsp = answer.headers().get(header::CONTENT_TYPE).is_none_or(|kind| kind == CONTENT_TYPE);
            return match answer.status() {
                StatusCode::OK if is_rtsp => Ok(answer.into_body()),
                StatusCode::OK => Err(Refused {
                    cause: format!("it answers GET {} with something else", self.path),
                    kind: NoRtsp::Unsupported,
                }),
                status => Err(self.refused(&Method::GET, status)),
            };
        }
        Err(Refused::wrong_credentials())
    }

    /// Begins POST; its body is our side of the session.
    async fn post(&mut self) -> Result<(BodySender, PendingAnswer), Refused> {
        let request = self.request(Method::POST)?;
        Ok(self.uplink.begin(request).await.map_err(OpenError::from)?)
    }

    /// No length of the body: QuickTime's 32767, which is not meant, is an error in HTTP/2 (RFC 9113 §8.1.1).
    fn request(&mut self, method: Method) -> Result<Request<()>, Refused> {
        let kind = if method == Method::GET { header::ACCEPT } else { header::CONTENT_TYPE };
        let authorization = self.auth.authorize(method.as_str(), &self.path, &self.credentials);
        let authorization = authorization.map_err(unanswerable)?;
        let mut request = Request::builder()
            .method(method)
            .uri(&self.path)
            .header(header::HOST, &self.host)
            .header(COOKIE, &self.cookie)
            .header(kind, CONTENT_TYPE)
            .header(header::PRAGMA, "no-cache")
            .header(header::CACHE_CONTROL, "no-cache");
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, sensitive(&authorization)?);
        }
        request.body(()).map_err(|error| Refused::from(error.to_string()))
    }

    fn handle_challenge(&mut self, headers: &HeaderMap) -> Result<(), Refused> {
        let challenges = headers.get_all(header::WWW_AUTHENTICATE);
        let challenges = challenges.iter().filter_map(|value| value.to_str().ok());
        self.auth.handle_challenge(challenges).map_err(unanswerable)
    }

    fn refused(&self, method: &Method, status: StatusCode) -> Refused {
        let kind = match status.as_u16() {
            404 | 405 | 501 => NoRtsp::Unsupported,
            _ => NoRtsp::Failed,
        };
        Refused { cause: format!("it answers {method} {} with {status}", self.path), kind }
    }
}

fn unanswerable(error: ClientError) -> Refused {
    match error {
        ClientError::WrongCredentials => Refused::wrong_credentials(),
        error => Refused::from(error.to_string()),
    }
}

impl RtspOverHttp {
    /// The next bytes as they were received; none at the end.
    pub(crate) fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if !self.payload.is_empty() {
            return Poll::Ready(Some(Ok(std::mem::take(&mut self.payload))));
        }
        match self.get.poll_chunk(cx) {
            Poll::Ready(Some(Ok(chunk))) => {
                // It speaks, so it has taken POST.
                self.kept = None;
                Poll::Ready(Some(Ok(chunk)))
            }
            Poll::Ready(ended) => Poll::Ready(ended.map(|ended| ended.map_err(broken))),
            Poll::Pending => match self.poll_post(cx) {
                Ok(is_open) => {
                    if !is_open {
                        self.reader = Some(cx.waker().clone());
                    }
                    Poll::Pending
                }
                Err(error) => Poll::Ready(Some(Err(error))),
            },
        }
    }

    /// Sends the beginning of `data` when there is credit, and takes it off `data`.
    pub(crate) fn poll_send(&mut self, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<()>> {
        let count = ready!(Pin::new(self).poll_write(cx, data))?;
        data.advance(count);
        Poll::Ready(Ok(()))
    }

    /// Sees to what the device says to POST. False while it is repeated.
    fn poll_post(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        loop {
            match &mut self.post {
                Post::Closed(_) => return Ok(true),
                Post::Open(_, answer) => {
                    let Poll::Ready(head) = answer.poll_head(cx) else { return Ok(true) };
                    let head = head.map_err(broken)?;
                    if head.status().is_success() {
                        self.kept = None;
                        continue;
                    }
                    let is_challenge = head.status() == StatusCode::UNAUTHORIZED;
                    let Some(kept) = self.kept.take().filter(|_| is_challenge) else {
                        return Err(broken(format!("the device refuses POST with {}", head.status())));
                    };
                    self.post = Post::Repeated(Box::pin(kept.repeat(head.into_parts().0.headers)));
                }
                Post::Repeated(repeating) => {
                    let Poll::Ready(repeated) = repeating.as_mut().poll(cx) else { return Ok(false) };
                    self.post = Post::Closed(None);
                    let wakers = [self.reader.take(), self.writer.take()];
                    wakers.into_iter().flatten().for_each(Waker::wake);
                    let (body, answer) = repeated.map_err(|refused| broken(refused.cause))?;
                    self.post = Post::Open(body, answer);
                }
            }
        }
    }

    /// Waits for credit.
    fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&mut BodySender>> {
        // A device may break off what it wants a log-in for.
        let may_be_challenged = match &mut self.post {
            Post::Open(body, _) => matches!(body.poll_ready(cx), Poll::Ready(Err(_))),
            Post::Repeated(_) => true,
            Post::Closed(_) => false,
        };
        if may_be_challenged && !self.poll_post(cx)? {
            self.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        match &mut self.post {
            Post::Open(body, _) => {
                ready!(body.poll_ready(cx)).map_err(broken)?;
                Poll::Ready(Ok(body))
            }
            _ => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }
}

impl Kept {
    async fn repeat(
        mut self: Box<Self>,
        challenge: HeaderMap,
    ) -> Result<(BodySender, PendingAnswer), Refused> {
        self.asking.handle_challenge(&challenge)?;
        let (mut body, answer) = self.asking.post().await?;
        body.send(encoded(&self.sent)).await.map_err(|error| Refused::from(error.to_string()))?;
        Ok((body, answer))
    }
}

/// In base64 by itself, to a multiple of four characters, so that the device can decode it without what follows.
fn encoded(piece: &[u8]) -> Bytes {
    STANDARD.encode(piece).into()
}

impl AsyncRead for RtspOverHttp {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(chunk) = ready!(this.poll_chunk(cx)) {
            this.payload = chunk?;
            let count = this.payload.len().min(buf.remaining());
            buf.put_slice(&this.payload.split_to(count));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for RtspOverHttp {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let piece = &buf[..buf.len().min(PIECE_MAX)];
        let body = ready!(this.poll_writable(cx))?;
        if !piece.is_empty() {
            body.start_send(encoded(piece)).map_err(broken)?;
        }
        this.kept = this.kept.take().filter(|kept| kept.sent.len() + piece.len() <= KEPT_MAX_BYTES);
        if let Some(kept) = &mut this.kept {
            kept.sent.extend_from_slice(piece);
        }
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The uplink sends what is queued without being asked.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Post::Repeated(_) = this.post
            && !this.poll_post(cx)?
        {
            this.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        match std::mem::replace(&mut this.post, Post::Closed(None)) {
            Post::Open(body, answer) => {
                this.post = Post::Closed(Some(answer));
                Poll::Ready(body.finish().map_err(broken))
            }
            closed => {
                this.post = closed;
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl fmt::Debug for RtspOverHttp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RtspOverHttp")
    }
}

fn broken(cause: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, cause.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use super::*;

    /// Goal: a device decodes what has come, whatever it is cut into, and waits for nothing that comes later.
    #[test]
    fn each_piece_is_base64_by_itself() {
        let sent: Vec<u8> = (0..=255).cycle().take(3 * PIECE_MAX).collect();
        let (mut rest, mut characters) = (&sent[..], Vec::new());
        for size in (1..100).chain([PIECE_MAX]) {
            let (piece, after) = rest.split_at(size);
            let encoded = encoded(piece);
            assert_eq!((encoded.len() % 4, STANDARD.decode(&encoded).unwrap() == piece), (0, true), "{size}");
            characters.extend_from_slice(&encoded);
            rest = after;
        }
        // Four by four, as a device does that knows nothing of pieces.
        let decoded: Vec<u8> = characters.chunks(4).flat_map(|four| STANDARD.decode(four).unwrap()).collect();
        assert!(decoded == sent[..sent.len() - rest.len()]);
    }
}
