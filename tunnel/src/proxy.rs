//! The forward proxy of the internal address: `GET http://SERIAL/…` and `CONNECT SERIAL:554`.
//!
//! | request | becomes |
//! |---|---|
//! | any method, absolute form, host a serial number | the same request through the device's uplink, bodies streamed |
//! | `CONNECT SERIAL:554` | RTSP over WebSocket through the uplink, as plain RTSP to the client |
//!
//! Invariant: nothing of the proxy's own (credentials, hop-by-hop headers) reaches a device, and nothing but devices is
//! reached. An answer of the proxy itself is a [`Problem`] that names the device, its state and its step.

use crate::{
    config::Config,
    guard::{Denied, Guard},
    metrics::Metrics,
    reach::TunnelHandle,
    splice::Splice,
};
use axum::{body::Body, response::IntoResponse};
use homing_base::{Live, Stop, crowd::network, http::Failure, rate::Rate};
use homing_protocol::{SerialNumber, Step, api::Problem};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header, uri::Authority,
};
use hyper::{body::Incoming, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use std::{net::IpAddr, sync::Arc, time::Duration};
use tokio::{net::TcpStream, time::Instant};

/// RTSP's port: what CONNECT reaches. (HTTP goes by absolute form.)
const RTSP_PORT: u16 = 554;
const HTTP_PORT: u16 = 80;

/// Between the answer to CONNECT and the connection being ours.
const UPGRADE_DEADLINE: Duration = Duration::from_secs(10);

/// An idle RTSP connection whose client has silently gone is noticed by this.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);

/// Told to who asks while we stop.
const BACK_AFTER: Duration = Duration::from_secs(4);

/// How both doors ask for user and password (RFC 7617).
pub(crate) const CHALLENGE_TEXT: &str = "Basic realm=\"homing tunnel\", charset=\"UTF-8\"";
pub(crate) const CHALLENGE: HeaderValue = HeaderValue::from_static(CHALLENGE_TEXT);

/// What concerns one connection (RFC 9110 §7.6.1), and what is the proxy's own.
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// The proxy; cheap to clone.
#[derive(Clone)]
pub(crate) struct Proxy {
    pub tunnel: TunnelHandle,
    pub guard: Arc<Guard>,
    pub metrics: Arc<Metrics>,
    pub rates: Arc<Rates>,
    pub stop: Stop,
}

/// How often somebody asks, and a device is asked.
pub(crate) struct Rates {
    config: Live<Config>,
    by_network: Rate<IpAddr>,
    by_device: Rate<SerialNumber>,
}

impl Rates {
    pub fn new(config: Live<Config>) -> Self {
        Rates { config, by_network: Rate::default(), by_device: Rate::default() }
    }
}

impl Proxy {
    /// Whether a request is for the proxy, not for the API.
    pub fn is_for(request: &Request<Incoming>) -> bool {
        request.method() == Method::CONNECT || request.uri().authority().is_some()
    }

    /// Takes a request of an address, the API's as well as the proxy's.
    ///
    /// # Errors
    /// The answer to one too many.
    pub fn admit(&self, peer: IpAddr) -> Result<(), Response<Body>> {
        let pace = self.rates.config.get().limits.requests_of_network();
        let admitted = self.rates.by_network.admit(&network(peer), pace, Instant::now());
        admitted.map_err(|wait| {
            self.metrics.limited("requests-per-address").inc();
            let message =
                "Too many requests from this address: [tunnel.limits] requests_per_second_per_address.";
            later(StatusCode::TOO_MANY_REQUESTS, Problem::new("too-many-requests", message), wait)
        })
    }

    /// Takes a request to a device.
    fn admit_to(&self, serial: SerialNumber) -> Result<(), Response<Body>> {
        if self.stop.is_leaving() {
            let message = "This tunnel server is about to stop, and takes no new requests.";
            let problem = Problem::at(Step::Tunnel, "stopping", message);
            return Err(later(StatusCode::SERVICE_UNAVAILABLE, problem, BACK_AFTER));
        }
        let pace = self.rates.config.get().limits.requests_to_device();
        let admitted = self.rates.by_device.admit(&serial, pace, Instant::now());
        admitted.map_err(|wait| {
            self.metrics.limited("requests-per-device").inc();
            let message = format!(
                "Too many requests to the device {serial}: [tunnel.limits] requests_per_second_per_device."
            );
            later(
                StatusCode::TOO_MANY_REQUESTS,
                Problem::at(Step::Tunnel, "too-many-requests", message),
                wait,
            )
        })
    }

    /// Answers one request.
    pub async fn answer(&self, peer: IpAddr, request: Request<Incoming>) -> Response<Body> {
        let response = match self.checked(peer, request).await {
            Ok(response) => response,
            Err(failure) => failure.into_response(),
        };
        self.metrics.proxied(response.status());
        response
    }

    async fn checked(&self, peer: IpAddr, request: Request<Incoming>) -> Result<Response<Body>, Failure> {
        let credentials = request.headers().get(header::PROXY_AUTHORIZATION);
        if let Err(denied) = self.guard.check(peer, credentials) {
            return Ok(refuse(denied));
        }
        let authority = request.uri().authority().ok_or_else(|| Failure::bad_request("Which device?"))?;
        let serial = device(authority)?;
        let port = authority.port_u16();
        if let Err(response) = self.admit_to(serial) {
            return Ok(response);
        }
        match (request.method(), port) {
            (&Method::CONNECT, Some(RTSP_PORT)) => self.connect(serial, peer, request).await,
            (&Method::CONNECT, _) => Err(forbidden(format!(
                "CONNECT reaches port {RTSP_PORT} (RTSP) of a device and no other; for HTTP send the request itself to \
                 the proxy: GET http://{}/…",
                serial.host()
            ))),
            (_, None | Some(HTTP_PORT)) => self.forward(serial, request).await,
            (_, Some(port)) => Err(forbidden(format!(
                "A device's HTTP is reached at port {HTTP_PORT} through this proxy, not at {port}."
            ))),
        }
    }

    /// `GET http://SERIAL/…`: streamed both ways, with back-pressure.
    async fn forward(
        &self,
        serial: SerialNumber,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Failure> {
        if request.uri().scheme_str().is_some_and(|scheme| scheme != "http") {
            return Err(forbidden("The way to the device is encrypted already: ask for http://.".to_owned()));
        }
        let (mut parts, body) = request.into_parts();
        strip(&mut parts.headers);
        // Answered by us, as soon as the body is read.
        parts.headers.remove(header::EXPECT);
        parts.extensions = http::Extensions::new();
        let answered = self.tunnel.request_streaming(serial, Request::from_parts(parts, body)).await;
        let mut response = answered.map_err(|error| {
            tracing::debug!(step = %Step::Tunnel, %serial, %error, "request through the proxy");
            Failure::new(error.status(), error.problem())
        })?;
        strip(response.headers_mut());
        *response.version_mut() = http::Version::HTTP_11;
        Ok(response.map(Body::new))
    }

    /// `CONNECT SERIAL:554`: the stream is opened before the answer, so that a failure can be told.
    async fn connect(
        &self,
        serial: SerialNumber,
        peer: IpAddr,
        mut request: Request<Incoming>,
    ) -> Result<Response<Body>, Failure> {
        let link = self.tunnel.open_rtsp(serial).await.map_err(|error| {
            tracing::debug!(step = %Step::Tunnel, %serial, %error, "CONNECT through the proxy");
            Failure::new(error.status(), error.problem())
        })?;
        let upgrade = hyper::upgrade::on(&mut request);
        let stop = self.stop.clone();
        let splicing = async move {
            let Ok(Ok(upgraded)) = tokio::time::timeout(UPGRADE_DEADLINE, upgrade).await else { return };
            let Some((client, early)) = on_this_worker(upgraded) else { return };
            tokio::select! {
                (ended, result) = Splice::new(client, early, link.stream) => {
                    tracing::debug!(%serial, %peer, ?ended, ?result, "RTSP through the proxy ended");
                }
                () = stop.cancelled() => (),
            }
        };
        self.stop.spawn_on(splicing, &link.worker);
        Ok(Response::new(Body::empty()))
    }
}

/// Takes the client's socket out of the HTTP server and onto the runtime of the device.
fn on_this_worker(upgraded: Upgraded) -> Option<(TcpStream, bytes::Bytes)> {
    let parts = upgraded
        .downcast::<TokioIo<TcpStream>>()
        .inspect_err(|_| tracing::error!("the internal address serves something else than TCP"))
        .ok()?;
    let moved = parts.io.into_inner().into_std().and_then(TcpStream::from_std);
    let client = moved.inspect_err(|error| tracing::warn!(%error, "connection lost")).ok()?;
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE_IDLE);
    // Without it an idle client that vanished holds its stream until the device ends it.
    let _ = socket2::SockRef::from(&client).set_tcp_keepalive(&keepalive);
    Some((client, parts.read_buf))
}

/// The device that an authority names.
fn device(authority: &Authority) -> Result<SerialNumber, Failure> {
    // As a host name may be written: anything else that people write of a serial number is no URL.
    let host = authority.host();
    host.parse().map_err(|_| {
        forbidden(format!(
            "This proxy reaches devices by their serial numbers, such as http://00408c702009/; {host:?} is none."
        ))
    })
}

fn forbidden(message: String) -> Failure {
    Failure::new(StatusCode::FORBIDDEN, Problem::new("forbidden", message))
}

/// Removes what concerns one connection only, by name or because `Connection` names it.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

fn refuse(denied: Denied) -> Response<Body> {
    if let Denied::TooMany(wait) = denied {
        return too_many(wait);
    }
    let message = "The proxy wants the tunnel server's user and password (Proxy-Authorization: Basic).";
    let problem = Problem::new("unauthorized", message);
    let mut response = Failure::new(StatusCode::PROXY_AUTHENTICATION_REQUIRED, problem).into_response();
    response.headers_mut().insert(header::PROXY_AUTHENTICATE, CHALLENGE);
    response
}

/// What an address is told that guesses passwords.
pub(crate) fn too_many(wait: Duration) -> Response<Body> {
    let message = "Too many wrong passwords from this address; try again in a while.";
    later(StatusCode::TOO_MANY_REQUESTS, Problem::new("too-many-attempts", message), wait)
}

/// A refusal for now.
fn later(status: StatusCode, problem: Problem, wait: Duration) -> Response<Body> {
    let mut response = Failure::new(status, problem).into_response();
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_concerns_one_connection_is_stripped_and_the_rest_is_not() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, X-Mine , bad name"),
            ("keep-alive", "timeout=5"),
            ("x-mine", "1"),
            ("proxy-authorization", "Basic dm1zOnNlc2FtZQ=="),
            ("proxy-connection", "close"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("authorization", "Digest username=\"root\""),
            ("content-length", "5"),
            ("cookie", "a=b"),
        ] {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        strip(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["authorization", "content-length", "cookie"]);
    }

    #[test]
    fn only_serial_numbers_are_reached() {
        let name = |authority: &'static str| device(&Authority::from_static(authority));
        for good in ["00408c702009", "00408C702009:554", "00-40-8c-70-20-09", "00408c702009:80"] {
            assert_eq!(name(good).unwrap().to_string(), "00408C702009", "{good}");
        }
        for bad in
            ["localhost:554", "127.0.0.1", "[::1]:554", "metadata.internal", "00408c70200", "1.2.3.4:554"]
        {
            assert_eq!(name(bad).unwrap_err().status, StatusCode::FORBIDDEN, "{bad}");
        }
    }
}
