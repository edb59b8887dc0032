//! The page with the one-click button and the light: step 3, for whoever stands at the site.
//!
//! | request | who may | what |
//! |---|---|---|
//! | `GET /` | anybody who can reach it | the button and the light; where it is bound to loopback the details too |
//! | `POST /press` | anybody who can reach it | the button: it has no password, as a button has none |
//! | `GET /light` | anybody who can reach it | colour and word, JSON |
//! | `GET /status` | loopback, else the camera's user and password | everything but the label, JSON |
//! | `GET /details` | loopback, else the camera's user and password | the page with the details |
//! | `GET /healthz`, `GET /metrics` | loopback, else the camera's user and password | for monitoring, see `ops` |
//! | `GET /label` | the camera's user and password, always | serial number, OAK and QR code |
//!
//! A browser on the same network may have been sent here by another site: requests under a host name that
//! is not ours (DNS rebinding) and presses from other origins are refused.
//!
//! Invariant: one client costs one of [`MAX_CONNECTIONS`] and at most [`HEAD_DEADLINE`] of silence; no
//! body is read.

mod html;
mod ops;

use crate::Label;
use crate::guesses::Turns;
use crate::onvif::Services;
use crate::state::Event;
use bytes::Bytes;
use homing_protocol::digest::Refusal;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Browsers at once; a further one waits in the kernel's queue until a silent one is closed.
const MAX_CONNECTIONS: usize = 256;

/// For the head of a request, and between two requests.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);

const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";

/// The page and its socket.
pub struct Page {
    listener: TcpListener,
    shared: Arc<Shared>,
}

struct Shared {
    services: Arc<Services>,
    addr: SocketAddr,
    host_names: Vec<String>,
    turns: Turns,
}

impl Page {
    /// A page on an open socket; `host_names` are names under which browsers may call it.
    pub fn new(
        listener: TcpListener,
        addr: SocketAddr,
        host_names: Vec<String>,
        services: Arc<Services>,
    ) -> Self {
        Page { listener, shared: Arc::new(Shared { services, addr, host_names, turns: Turns::new() }) }
    }

    /// Serves until told to stop; comes back when every connection is closed.
    pub async fn run(self, stop: CancellationToken) {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let tasks = TaskTracker::new();
        loop {
            let permit = Arc::clone(&permits).acquire_owned().await.expect("never closed");
            let tcp = tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((tcp, _)) => tcp,
                    Err(error) => {
                        tracing::warn!(%error, "page: cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(200)).await;
                        continue;
                    }
                },
                () = stop.cancelled() => break,
            };
            let (shared, stop) = (Arc::clone(&self.shared), stop.clone());
            tasks.spawn(async move {
                let service = service_fn(|request| {
                    let shared = Arc::clone(&shared);
                    async move { Ok::<_, Infallible>(shared.answer(request).await) }
                });
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_DEADLINE)
                    .max_buf_size(16 * 1024)
                    .serve_connection(TokioIo::new(tcp), service);
                let mut connection = std::pin::pin!(connection);
                let ended = tokio::select! {
                    ended = connection.as_mut() => ended,
                    () = stop.cancelled() => {
                        connection.as_mut().graceful_shutdown();
                        tokio::time::timeout(Duration::from_secs(1), connection).await.unwrap_or(Ok(()))
                    }
                };
                if let Err(error) = ended {
                    tracing::debug!(%error, "page: connection broke");
                }
                drop(permit);
            });
        }
        tasks.close();
        tasks.wait().await;
    }
}

impl Shared {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if !self.is_our_host(request.headers()) {
            return text(
                StatusCode::MISDIRECTED_REQUEST,
                "this page is called by its address; to use a name, add it to page.host_names",
            );
        }
        let path = request.uri().path();
        let get = request.method() == Method::GET;
        match path {
            "/press" if request.method() == Method::POST => self.press(request.headers()).await,
            "/press" => text(StatusCode::METHOD_NOT_ALLOWED, "POST presses the button"),
            _ if !get => text(StatusCode::METHOD_NOT_ALLOWED, "GET only"),
            "/" => self.page(self.is_private()),
            "/page.css" => whole(StatusCode::OK, "text/css", html::STYLE.to_owned()),
            "/page.js" => whole(StatusCode::OK, "text/javascript", html::SCRIPT.to_owned()),
            "/light" => json(&self.services.status.borrow().light),
            "/status" | "/details" | "/label" | "/healthz" | "/metrics" => {
                let open = self.is_private() && path != "/label";
                if !open && let Err(response) = self.authenticate(&request).await {
                    return response;
                }
                match path {
                    "/status" => json(&*self.services.status.borrow()),
                    "/details" => self.page(true),
                    "/healthz" => {
                        let (status, body) = ops::health(&self.services.status.borrow());
                        text(status, &body)
                    }
                    "/metrics" => {
                        whole(StatusCode::OK, ops::FORMAT, ops::metrics(&self.services.status.borrow()))
                    }
                    _ => self.label(),
                }
            }
            _ => text(StatusCode::NOT_FOUND, "there is nothing here"),
        }
    }

    /// Step 3.
    async fn press(&self, headers: &HeaderMap) -> Response<Full<Bytes>> {
        if !is_same_origin(headers) {
            return text(StatusCode::FORBIDDEN, "another site may not press this button");
        }
        if self.services.dispatchers == 0 {
            return text(StatusCode::CONFLICT, "no dispatcher is configured: add a [[dispatchers]] table");
        }
        // The loop that reads it ends only with the agent, which ends this page too.
        let _ = self.services.events.send(Event::Pressed).await;
        json(&serde_json::json!({ "pressed": true }))
    }

    fn page(&self, details: bool) -> Response<Full<Bytes>> {
        let status = self.services.status.borrow().clone();
        whole(StatusCode::OK, HTML, html::page(&status, details))
    }

    fn label(&self) -> Response<Full<Bytes>> {
        let identity = &self.services.identity;
        let label = Label { serial: identity.serial, oak: identity.oak.clone() };
        whole(StatusCode::OK, HTML, html::label(&label))
    }

    /// Bound to loopback: who can reach it is on this machine.
    fn is_private(&self) -> bool {
        self.addr.ip().is_loopback()
    }

    async fn authenticate(&self, request: &Request<Incoming>) -> Result<(), Response<Full<Bytes>>> {
        let headers = request.headers();
        let checked = self.services.check(request.method(), request.uri(), headers, &self.turns).await;
        let Err(refusal) = checked else { return Ok(()) };
        if refusal == Refusal::Wrong {
            tracing::info!("page: wrong user or password");
        }
        let mut response = text(StatusCode::UNAUTHORIZED, "the camera's user and password are needed");
        self.services.add_challenges(refusal, response.headers_mut());
        Err(response)
    }

    /// An address is the page's own wherever it leads; a name can be made to lead here by anybody.
    fn is_our_host(&self, headers: &HeaderMap) -> bool {
        let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else { return false };
        let name = match host.strip_prefix('[') {
            Some(six) => six.split(']').next().unwrap_or_default(),
            None => host.split(':').next().unwrap_or_default(),
        };
        let is_address = name.parse::<IpAddr>().is_ok();
        is_address
            || name.eq_ignore_ascii_case("localhost")
            || self.host_names.iter().any(|ours| ours.eq_ignore_ascii_case(name))
    }
}

/// Whether a request comes from the page itself, or from no browser at all.
fn is_same_origin(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    if text("sec-fetch-site").is_some_and(|site| !matches!(site, "same-origin" | "none")) {
        return false;
    }
    match (text("origin"), text("host")) {
        (None, _) => true,
        (Some(origin), Some(host)) => {
            origin.strip_prefix("http://").is_some_and(|o| o.eq_ignore_ascii_case(host))
        }
        (Some(_), None) => false,
    }
}

fn json(value: &impl serde::Serialize) -> Response<Full<Bytes>> {
    whole(StatusCode::OK, JSON, serde_json::to_string(value).expect("plain data"))
}

fn text(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    whole(status, TEXT, text.to_owned())
}

fn whole(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    for (name, value) in [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
             form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        ),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        let header = |(name, value): &(&'static str, &str)| {
            (header::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        list.iter().map(header).collect()
    }

    #[test]
    fn other_sites_cannot_press_the_button() {
        for (list, allowed) in [
            (&[("host", "127.0.0.1:8089")][..], true),
            (&[("host", "127.0.0.1:8089"), ("origin", "http://127.0.0.1:8089")], true),
            (&[("host", "127.0.0.1:8089"), ("origin", "http://evil.example")], false),
            (&[("host", "127.0.0.1:8089"), ("origin", "https://127.0.0.1:8089")], false),
            (&[("host", "127.0.0.1:8089"), ("origin", "null")], false),
            (&[("host", "127.0.0.1:8089"), ("sec-fetch-site", "cross-site")], false),
            (&[("host", "127.0.0.1:8089"), ("sec-fetch-site", "same-origin")], true),
        ] {
            assert_eq!(is_same_origin(&headers(list)), allowed, "{list:?}");
        }
    }
}
