//! HTTP/1.1 for the roles' APIs and pages: deadlines, limits, optional TLS, answers that are problems.

use crate::{Stop, listen};
use axum::{
    Json, Router,
    extract::ConnectInfo,
    http::{Request, StatusCode},
    response::{IntoResponse, Response},
};
use homing_protocol::api::Problem;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, future::Future, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tower::ServiceExt;

/// Connections at once on one listener; more wait in the kernel.
pub const CONNECTION_LIMIT: usize = 1024;

/// For a TLS handshake, and for a request's head to arrive whole.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);

/// The longest request head.
const HEAD_LIMIT_BYTES: usize = 16 * 1024;

/// Serves a router until the role stops; see [`serve_with`].
pub async fn serve(
    listener: TcpListener,
    router: Router,
    tls: Option<Arc<rustls::ServerConfig>>,
    stop: Stop,
) {
    let answer = move |request: Request<Incoming>| {
        let router = router.clone();
        async move {
            let Ok(response) = router.oneshot(request.map(axum::body::Body::new)).await;
            response
        }
    };
    serve_with(listener, answer, tls, stop).await;
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
    let acceptor = tls.map(tokio_rustls::TlsAcceptor::from);
    let loop_stop = stop.clone();
    listen::accept_loop(listener, CONNECTION_LIMIT, loop_stop, move |tcp: TcpStream, peer| {
        let (acceptor, answer, stop) = (acceptor.clone(), answer.clone(), stop.clone());
        async move {
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
