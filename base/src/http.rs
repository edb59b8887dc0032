//! HTTP/1.1 for the roles' APIs and pages: deadlines, limits, optional TLS, answers that are problems.

use crate::{Stop, crowd::Crowd, listen};
use axum::{
    BoxError, Json, Router,
    body::Body,
    extract::ConnectInfo,
    http::{Request, StatusCode},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use homing_protocol::api::Problem;
use hyper::{
    body::{Body as HttpBody, Frame, Incoming, SizeHint},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::metrics::counter::Counter;
use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time::Sleep,
};
use tower::ServiceExt;

/// Connections of a listener.
#[derive(Clone, Debug)]
pub struct Limits {
    /// At once; more wait in the kernel. 2048.
    pub connections: usize,
    /// Those of one network; more are closed at once. Half of all: as much as a whole control room behind one address
    /// needs, and never so much that the others find no room.
    pub by_network: usize,
    /// Counts those.
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
    serve_within(listener, answer, tls, Limits::default(), stop).await;
}

/// As [`serve_with`], within limits of the role's own.
pub async fn serve_within<A, F>(
    listener: TcpListener,
    answer: A,
    tls: Option<Arc<rustls::ServerConfig>>,
    limits: Limits,
    stop: Stop,
) where
    A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let acceptor = tls.map(tokio_rustls::TlsAcceptor::from);
    let (loop_stop, crowd) = (stop.clone(), Crowd::new(limits.by_network));
    listen::accept_loop(listener, limits.connections, loop_stop, move |tcp: TcpStream, peer| {
        let (acceptor, answer, stop) = (acceptor.clone(), answer.clone(), stop.clone());
        let admission = crowd.admit(peer.ip());
        if admission.is_none() {
            limits.turned_away.inc();
        }
        async move {
            let Some(_admission) = admission else {
                tracing::debug!(%peer, "too many connections from this network");
                return;
            };
            let Some(acceptor) = acceptor else {
                return connection(tcp, peer, answer, stop).await;
            };
            let handshake = tokio::time::timeout(HEAD_DEADLINE, acceptor.accept(tcp));
            let shaken = tokio::select! {
                shaken = handshake => shaken,
                () = stop.cancelled() => return,
            };
            match shaken {
                Ok(Ok(tls)) => connection(tls, peer, answer, stop).await,
                Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
                Err(_) => tracing::debug!(%peer, "TLS handshake not finished in time"),
            }
        }
    })
    .await;
}

async fn connection<I, A, F>(io: I, peer: SocketAddr, answer: A, stop: Stop)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        let answered = answer(request);
        async move { Ok::<_, Infallible>(answered.await) }
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
        let served = connection(server, peer, answer, Stop::new());
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
