//! HTTP for the roles' APIs and pages: deadlines, limits, optional TLS, answers that are problems. HTTP/1.1, and HTTP/2
//! where a listener offers it ([`Wire`]).

use crate::{
    Stop,
    door::{Place, Reception, Turned},
    listen,
};
use axum::{
    BoxError, Json, Router,
    body::Body,
    extract::ConnectInfo,
    http::{Request, StatusCode},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use homing_protocol::api::Problem;
use homing_uplink::FloodGuard;
use hyper::{
    body::{Body as HttpBody, Frame, Incoming, SizeHint},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::metrics::counter::Counter;
use std::{
    convert::Infallible,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    runtime::Handle,
    time::Sleep,
};
use tower::ServiceExt;

/// Connections of a listener.
#[derive(Clone, Debug)]
pub struct Limits {
    /// At once, of those who got an answer that was no refusal; more wait in the kernel. As many again may not have come
    /// so far: where these are too many, the one that has taken longest is closed. 2048.
    pub connections: usize,
    /// Those of one network; more are closed at once. Half of all: as much as a whole control room behind one address
    /// needs, and never so much that the others find no room.
    pub by_network: usize,
    /// Counts who is closed for that.
    pub turned_away: Counter,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { connections: 2048, by_network: 1024, turned_away: Counter::default() }
    }
}

/// For a TLS handshake, and for a request's head to arrive whole.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);

/// The longest request head.
const HEAD_LIMIT_BYTES: usize = 16 * 1024;

/// For the body of a request to an API to arrive whole: they are small.
const BODY_DEADLINE: Duration = Duration::from_secs(30);

/// Streams at once on one connection of HTTP/2.
const HTTP2_STREAMS: u32 = 256;

/// What a client of HTTP/2 may send ahead of who reads it, on one stream and on all.
const HTTP2_WINDOWS: (u32, u32) = (256 * 1024, 1024 * 1024);

/// PINGs of HTTP/2, and the end of a connection whose peer does not answer them.
const HTTP2_PING: Duration = Duration::from_secs(20);

/// A connection of HTTP/2 that has asked for nothing in so long is ended in order; what it has under way goes on.
const HTTP2_IDLE: Duration = Duration::from_secs(60);

/// Of the first line, as much as tells whom it is for.
const FIRST_LINE_BYTES: usize = 128;

/// Between looks at the beginning of a connection that is not whole yet.
const FIRST_BYTES_PAUSE: Duration = Duration::from_millis(10);

/// How a listener is spoken to.
#[derive(Clone, Default)]
pub struct Wire {
    /// TLS, where it is offered.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// HTTP without TLS, on the same port. Who comes with it is told apart by [`Encrypted`].
    pub plain: bool,
    /// HTTP/2 beside 1.1: by ALPN, which `tls` must offer, or by its preface.
    pub http2: bool,
    /// Where a connection of HTTP/1.1 is served that begins so, if not where it was taken: beside what it asks for,
    /// neither has to be woken on another thread.
    pub home: Option<Home>,
}

/// Looks at the first bytes of a connection, as many as there are.
pub type Home = Arc<dyn Fn(&[u8]) -> Option<Handle> + Send + Sync>;

/// In a request's extensions: whether it came by TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encrypted(pub bool);

/// Serves a router until the role stops; see [`serve_with`]. A request's body has to arrive within 30 s.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    tls: Option<Arc<rustls::ServerConfig>>,
    stop: Stop,
) {
    serve_with(listener, move |request| by_router(router.clone(), request), tls, stop).await;
}

/// A router's answer to a request, whose body has to arrive within `BODY_DEADLINE`.
pub async fn by_router(router: Router, request: Request<Incoming>) -> Response {
    let Ok(response) = router.oneshot(request.map(in_time)).await;
    response
}

/// Without it a peer that announces a body and sends none would hold its connection for ever.
fn in_time(body: Incoming) -> Body {
    if body.is_end_stream() {
        return Body::empty();
    }
    Body::new(InTime { body, deadline: Box::pin(tokio::time::sleep(BODY_DEADLINE)) })
}

/// A body that breaks off at a deadline.
struct InTime {
    body: Incoming,
    deadline: Pin<Box<Sleep>>,
}

impl HttpBody for InTime {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err("the request's body did not arrive in time".into())));
        }
        Pin::new(&mut self.body).poll_frame(cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Serves HTTP/1.1, with upgrades and CONNECT, until the role stops; then running requests have until
/// the role's drain deadline. The peer's address is in the request's extensions as
/// [`ConnectInfo<SocketAddr>`].
pub async fn serve_with<A, F>(
    listener: TcpListener,
    answer: A,
    tls: Option<Arc<rustls::ServerConfig>>,
    stop: Stop,
) where
    A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let wire = Wire { plain: tls.is_none(), tls, http2: false, home: None };
    serve_on(listener, answer, wire, Limits::default(), stop).await;
}

/// As [`serve_with`], spoken to as `wire` says, within limits of the role's own.
pub async fn serve_on<A, F>(listener: TcpListener, answer: A, wire: Wire, limits: Limits, stop: Stop)
where
    A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let reception = Arc::new(Reception::new(limits.connections, limits.by_network));
    let (loop_stop, room) = (stop.clone(), reception.room());
    listen::accept_loop(listener, room, loop_stop, move |tcp: TcpStream, peer| {
        let (wire, answer, stop) = (wire.clone(), answer.clone(), stop.clone());
        let reception = Arc::clone(&reception);
        let admitted = reception.admit(peer.ip());
        if admitted.is_err() {
            limits.turned_away.inc();
        }
        async move {
            let (_admission, place) = match admitted {
                Ok(admitted) => admitted,
                Err(reason) => return tracing::debug!(%peer, %reason, "connection closed"),
            };
            let guest = Guest { peer, place: Some(Arc::new(place)) };
            let begun = async {
                let begun = tokio::time::timeout(HEAD_DEADLINE, begin(tcp, &wire, &reception)).await??;
                // Who has not begun by then is timed out where it was taken.
                let home = match &begun {
                    Begun::Plain(tcp) => {
                        tokio::time::timeout(HEAD_DEADLINE, home(tcp, &wire)).await.ok().flatten()
                    }
                    _ => None,
                };
                io::Result::Ok((begun, home))
            };
            let begun = tokio::select! {
                begun = begun => begun,
                () = guest.pushed_out() => Err(io::Error::other(Turned::PushedOut)),
                () = stop.cancelled() => return,
            };
            match begun {
                Ok((Begun::Plain(tcp), Some(home))) => at_home(tcp, guest, answer, stop, &home).await,
                Ok((Begun::Plain(tcp), None)) => connection(tcp, guest, Encrypted(false), answer, stop).await,
                Ok((Begun::Plain2(tcp), _)) => connection2(tcp, guest, Encrypted(false), answer, stop).await,
                Ok((Begun::Tls(tls), _)) => connection(*tls, guest, Encrypted(true), answer, stop).await,
                Ok((Begun::Tls2(tls), _)) => connection2(*tls, guest, Encrypted(true), answer, stop).await,
                Err(error) => tracing::debug!(%peer, %error, "no HTTP"),
            }
        }
    })
    .await;
}

/// The runtime that a connection is best served on.
async fn home(tcp: &TcpStream, wire: &Wire) -> Option<Handle> {
    let home = wire.home.as_ref()?;
    let mut bytes = [0; FIRST_LINE_BYTES];
    let count = tcp.peek(&mut bytes).await.ok()?;
    home(&bytes[..count])
}

/// Serves a connection there; it ends here, where it is counted.
async fn at_home<A, F>(tcp: TcpStream, guest: Guest, answer: A, stop: Stop, home: &Handle)
where
    A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    // A socket belongs to the runtime that it was made on.
    let Ok(tcp) = tcp.into_std() else { return };
    let its_stop = stop.clone();
    let serving = async move {
        match TcpStream::from_std(tcp) {
            Ok(tcp) => connection(tcp, guest, Encrypted(false), answer, its_stop).await,
            Err(error) => tracing::debug!(peer = %guest.peer, %error, "connection not moved"),
        }
    };
    // It fails only when that runtime ends, and then so does the process.
    let _ = stop.spawn_on(serving, home).await;
}

/// Who is served on a connection.
#[derive(Clone)]
struct Guest {
    peer: SocketAddr,
    /// Where it waits, if that is a listener's.
    place: Option<Arc<Place>>,
}

impl Guest {
    /// Tells a request's handler whose it is.
    fn introduce(&self, request: &mut Request<Incoming>, encrypted: Encrypted) {
        request.extensions_mut().insert(ConnectInfo(self.peer));
        request.extensions_mut().insert(encrypted);
    }

    /// Whose request is answered, and not with a refusal, is known from then on.
    async fn answered(self, answer: impl Future<Output = Response>) -> Result<Response, Infallible> {
        let response = answer.await;
        let is_refused = matches!(
            response.status(),
            StatusCode::UNAUTHORIZED
                | StatusCode::FORBIDDEN
                | StatusCode::PROXY_AUTHENTICATION_REQUIRED
                | StatusCode::TOO_MANY_REQUESTS
        );
        if let (false, Some(place)) = (is_refused, &self.place) {
            place.leave();
        }
        Ok(response)
    }

    /// Returns when a newer one needs its place.
    async fn pushed_out(&self) {
        match &self.place {
            Some(place) => place.pushed_out().await,
            None => std::future::pending().await,
        }
    }
}

/// What a connection turned out to be.
enum Begun {
    Plain(TcpStream),
    Plain2(TcpStream),
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
    Tls2(Box<tokio_rustls::server::TlsStream<TcpStream>>),
}

/// Up to where HTTP begins; TLS once it has its turn.
async fn begin(tcp: TcpStream, wire: &Wire, reception: &Reception) -> io::Result<Begun> {
    let first = match &wire.tls {
        None if !wire.http2 => First::Http1,
        Some(_) if !wire.plain => First::Tls,
        _ => first(&tcp).await?,
    };
    match (first, &wire.tls) {
        (First::Tls, Some(config)) => {
            // Only who begins has a turn.
            tcp.peek(&mut [0]).await?;
            reception.turn().await.map_err(io::Error::other)?;
            let tls = tokio_rustls::TlsAcceptor::from(Arc::clone(config)).accept(tcp).await?;
            let is_2 = wire.http2 && tls.get_ref().1.alpn_protocol() == Some(b"h2");
            Ok(if is_2 { Begun::Tls2(Box::new(tls)) } else { Begun::Tls(Box::new(tls)) })
        }
        (First::Http2, _) if wire.http2 => Ok(Begun::Plain2(tcp)),
        // Whatever else it is, HTTP/1.1 refuses it.
        _ => Ok(Begun::Plain(tcp)),
    }
}

#[derive(Clone, Copy)]
enum First {
    Tls,
    Http1,
    Http2,
}

/// What the first bytes are of; they stay where they are.
async fn first(tcp: &TcpStream) -> io::Result<First> {
    /// A handshake record (RFC 8446 §5.1).
    const HANDSHAKE: u8 = 22;
    /// Of HTTP/2's preface; no method of HTTP/1.1 begins so.
    const PREFACE: &[u8] = b"PRI";
    loop {
        let mut bytes = [0; PREFACE.len()];
        let count = tcp.peek(&mut bytes).await?;
        match bytes[..count] {
            [] => return Err(io::ErrorKind::UnexpectedEof.into()),
            [HANDSHAKE, ..] => return Ok(First::Tls),
            ref bytes if bytes == PREFACE => return Ok(First::Http2),
            ref bytes if !PREFACE.starts_with(bytes) => return Ok(First::Http1),
            // "P" may become PUT. Peeking does not wait for more.
            _ => tokio::time::sleep(FIRST_BYTES_PAUSE).await,
        }
    }
}

/// Serves one connection of HTTP/1.1 that is not a listener's: inside another one, say.
pub async fn serve_stream<I, A, F>(io: I, peer: SocketAddr, answer: A, stop: Stop)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    connection(io, Guest { peer, place: None }, Encrypted(false), answer, stop).await;
}

/// HTTP/2.
async fn connection2<I, A, F>(io: I, guest: Guest, encrypted: Encrypted, answer: A, stop: Stop)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let asked = Arc::new(AtomicUsize::new(0));
    let (counted, peer, by) = (Arc::clone(&asked), guest.peer, guest.clone());
    let service = service_fn(move |mut request| {
        counted.fetch_add(1, Ordering::Relaxed);
        by.introduce(&mut request, encrypted);
        by.clone().answered(answer(request))
    });
    let connection = hyper::server::conn::http2::Builder::new(ByRole(stop.clone()))
        .timer(TokioTimer::new())
        .max_concurrent_streams(HTTP2_STREAMS)
        .max_header_list_size(HEAD_LIMIT_BYTES as u32)
        .initial_stream_window_size(HTTP2_WINDOWS.0)
        .initial_connection_window_size(HTTP2_WINDOWS.1)
        .keep_alive_interval(HTTP2_PING)
        .keep_alive_timeout(HTTP2_PING)
        .enable_connect_protocol()
        .serve_connection(TokioIo::new(FloodGuard::new(io)), service);
    tokio::pin!(connection);
    let unasked = async {
        tokio::time::sleep(HEAD_DEADLINE).await;
        if asked.load(Ordering::Relaxed) > 0 {
            std::future::pending::<()>().await;
        }
    };
    let idle = async {
        let mut before = 0;
        loop {
            tokio::time::sleep(HTTP2_IDLE).await;
            let now = asked.load(Ordering::Relaxed);
            if now == before {
                return;
            }
            before = now;
        }
    };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = guest.pushed_out() => return tracing::debug!(%peer, "{}", Turned::PushedOut),
        // Not in order: its preface may be missing, and there is no order before.
        () = unasked => return tracing::debug!(%peer, "HTTP/2, and nothing asked in time"),
        () = idle => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = stop.cancelled() => Ok(()),
            }
        }
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "HTTP/2 connection ended");
    }
}

/// Runs what HTTP/2 has to run beside its connection as tasks of the role.
#[derive(Clone)]
struct ByRole(Stop);

impl<T> hyper::rt::Executor<T> for ByRole
where
    T: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, task: T) {
        self.0.spawn(task);
    }
}

async fn connection<I, A, F>(io: I, guest: Guest, encrypted: Encrypted, answer: A, stop: Stop)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let (peer, by) = (guest.peer, guest.clone());
    let service = service_fn(move |mut request| {
        by.introduce(&mut request, encrypted);
        by.clone().answered(answer(request))
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(HEAD_LIMIT_BYTES)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = guest.pushed_out() => return tracing::debug!(%peer, "{}", Turned::PushedOut),
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "HTTP connection ended");
    }
}

/// An answer that is a [`Problem`], with its status.
#[derive(Debug)]
pub struct Failure {
    /// 4xx for what the caller can mend, 5xx for what we must.
    pub status: StatusCode,
    /// What the caller is told.
    pub problem: Problem,
}

impl Failure {
    /// A failure with this status.
    pub fn new(status: StatusCode, problem: Problem) -> Self {
        Failure { status, problem }
    }

    /// 400: the request itself is wrong.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Failure::new(StatusCode::BAD_REQUEST, Problem::new("bad-request", message))
    }

    /// 404: there is no such thing; the message says what was looked for.
    pub fn not_found(message: impl Into<String>) -> Self {
        Failure::new(StatusCode::NOT_FOUND, Problem::new("not-found", message))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, Json(self.problem)).into_response()
    }
}

/// What serde says of a message that it cannot read, without what stands in that: it may be a password.
pub fn unreadable(error: &str) -> String {
    let expected = error.rfind(", expected ").map(|at| &error[at + ", expected ".len()..]);
    let begin = ["invalid type: ", "invalid value: "].iter().filter_map(|begin| error.find(begin)).min();
    match (begin, expected) {
        (Some(at), Some(expected)) => format!("{}this should be {expected}", &error[..at]),
        (Some(at), None) => format!("{}it cannot be read", &error[..at]),
        (None, _) => error.to_owned(),
    }
}

/// An error that the caller can do nothing about: logged whole, told in one sentence.
impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        tracing::error!(error = format!("{error:#}"), "request failed");
        Failure::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            Problem::new("internal", "The server could not do this; its log says why."),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Goal: what was sent is not said again.
    #[test]
    fn what_cannot_be_read_is_told_without_its_values() {
        let told = |json: &str| {
            let error = serde_json::from_str::<homing_protocol::secret::Credentials>(json).unwrap_err();
            unreadable(&error.to_string())
        };
        for json in [
            "\"sesame\"",
            "{\"user\":\"root\",\"password\":[\"sesame\"]}",
            "{\"user\":1234,\"password\":\"sesame\"}",
            "\"sesame, expected \"",
        ] {
            let told = told(json);
            assert!(!told.contains("sesame") && !told.contains("1234"), "{told}");
        }
        assert_eq!(told("\"x\""), "this should be struct Credentials at line 1 column 3");
        assert!(told("{\"usr\":1}").starts_with("unknown field `usr`"));
    }

    /// Goal: a stranger who announces a body and sends none, or a byte now and then, is let go.
    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_arrive_frees_its_connection() {
        let reading = async |body: Bytes| format!("{} bytes", body.len());
        let router = Router::new().route("/", axum::routing::post(reading));
        let (mut client, server) = tokio::io::duplex(4096);
        let peer = SocketAddr::from(([192, 0, 2, 1], 1));
        let answer = move |request| by_router(router.clone(), request);
        let served = connection(server, Guest { peer, place: None }, Encrypted(false), answer, Stop::new());
        let begun = tokio::time::Instant::now();
        let talking = async {
            let head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: ";
            client.write_all(&[head, b"2\r\n\r\nhi".as_slice()].concat()).await.unwrap();
            let mut answer = vec![0; 512];
            let length = client.read(&mut answer).await.unwrap();
            assert!(answer[..length].ends_with(b"2 bytes"), "a whole body is answered");

            client.write_all(&[head, b"100\r\n\r\n".as_slice()].concat()).await.unwrap();
            let mut answer = String::new();
            let (mut reader, mut writer) = tokio::io::split(client);
            let dripping = async {
                while writer.write_all(b"x").await.is_ok() {
                    tokio::time::sleep(Duration::from_secs(5)).await;
                }
            };
            tokio::select! {
                read = reader.read_to_string(&mut answer) => drop(read.unwrap()),
                () = dripping => (),
            }
            answer
        };
        let ended = tokio::time::timeout(BODY_DEADLINE * 2, async { tokio::join!(served, talking) });
        let ((), answer) = ended.await.expect("the connection is held");
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer:?}");
        assert!(begun.elapsed() < BODY_DEADLINE + HEAD_DEADLINE);
    }
}
