//! The forward proxy of the internal address: `GET http://SERIAL/…` and `CONNECT SERIAL:port`, in HTTP/1.1 and HTTP/2.
//!
//! | request | becomes |
//! |---|---|
//! | any method, absolute form, host a serial number | the same request through the device's uplink, bodies streamed |
//! | the same with `Upgrade: websocket`, or extended CONNECT | a WebSocket through the uplink, frames as they are (`websocket.rs`) |
//! | `CONNECT SERIAL:554` | RTSP over WebSocket or HTTP through the uplink, as plain RTSP to the client (`connect.rs`) |
//! | `CONNECT SERIAL:80` | HTTP/1.1 inside it, each request as above |
//! | `CONNECT SERIAL:443` | the same inside TLS, which ends here |
//!
//! The ports are the device's `Access`; with `add_credentials` the proxy logs in to it (`login.rs`). A serial number may
//! be written as integrations write it, `4.00408c702009`.
//!
//! Invariant: nothing of the proxy's own (credentials, hop-by-hop headers) reaches a device, and nothing but devices is
//! reached. An answer of the proxy itself is a [`Problem`] that names the device, its state and its step.

mod connect;
mod login;
mod websocket;

use crate::{
    config::Config,
    devices::Devices,
    guard::{Denied, Guard},
    metrics::Metrics,
    reach::{ReachError, TunnelHandle},
};
use axum::{body::Body, response::IntoResponse};
use homing_base::{
    Live, Stop,
    crowd::network,
    http::{Failure, Home},
    rate::Rate,
    tls::PrivateCa,
};
use homing_protocol::{
    SerialNumber, Step,
    api::{
        Problem,
        tunnel::{Access, Service},
    },
};
use homing_uplink::strip_hop_by_hop;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header, uri::Authority};
use hyper::body::Incoming;
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

const HTTP_PORT: u16 = 80;

/// What integrations put in front of a serial number.
pub(crate) const CLIENT_ID: &str = "4.";

/// Told to who asks while we stop.
const BACK_AFTER: Duration = Duration::from_secs(4);

/// How both doors ask for user and password (RFC 7617).
pub(crate) const CHALLENGE_TEXT: &str = "Basic realm=\"homing tunnel\", charset=\"UTF-8\"";
pub(crate) const CHALLENGE: HeaderValue = HeaderValue::from_static(CHALLENGE_TEXT);

/// The proxy; cheap to clone.
#[derive(Clone)]
pub(crate) struct Proxy {
    pub tunnel: TunnelHandle,
    pub devices: Arc<Devices>,
    pub guard: Arc<Guard>,
    pub metrics: Arc<Metrics>,
    pub rates: Arc<Rates>,
    /// For TLS inside CONNECT.
    pub ca: Arc<PrivateCa>,
    pub tls_1_2: bool,
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
        let authority = request.uri().authority();
        // In HTTP/2 every request has one, the API's too.
        let is_ours = request.version() == http::Version::HTTP_2
            && authority.is_some_and(|authority| device(authority).is_err());
        request.method() == Method::CONNECT || (authority.is_some() && !is_ours)
    }

    /// Takes a request of an address, the API's as well as the proxy's; the answer to one too many.
    pub fn refusal(&self, peer: IpAddr) -> Option<Response<Body>> {
        let pace = self.rates.config.get().limits.requests_of_network();
        let wait = self.rates.by_network.admit(&network(peer), pace, Instant::now()).err()?;
        self.metrics.limited("requests-per-address").inc();
        let message = "Too many requests from this address: [tunnel.limits] requests_per_second_per_address.";
        Some(later(StatusCode::TOO_MANY_REQUESTS, Problem::new("too-many-requests", message), wait))
    }

    /// Takes a request to a device; the answer to one too many.
    fn refusal_of(&self, serial: SerialNumber) -> Option<Response<Body>> {
        if self.stop.is_leaving() {
            let message = "This tunnel server is about to stop, and takes no new requests.";
            let problem = Problem::at(Step::Tunnel, "stopping", message);
            return Some(later(StatusCode::SERVICE_UNAVAILABLE, problem, BACK_AFTER));
        }
        let pace = self.rates.config.get().limits.requests_to_device();
        let wait = self.rates.by_device.admit(&serial, pace, Instant::now()).err()?;
        self.metrics.limited("requests-per-device").inc();
        let message = format!(
            "Too many requests to the device {serial}: [tunnel.limits] requests_per_second_per_device."
        );
        let problem = Problem::at(Step::Tunnel, "too-many-requests", message);
        Some(later(StatusCode::TOO_MANY_REQUESTS, problem, wait))
    }

    /// Answers one request.
    pub async fn answer(&self, peer: SocketAddr, request: Request<Incoming>) -> Response<Body> {
        let response = match self.checked(peer, request).await {
            Ok(response) => response,
            Err(failure) => failure.into_response(),
        };
        self.metrics.proxied(response.status());
        response
    }

    async fn checked(&self, peer: SocketAddr, request: Request<Incoming>) -> Result<Response<Body>, Failure> {
        let credentials = request.headers().get(header::PROXY_AUTHORIZATION);
        if let Err(denied) = self.guard.check(peer.ip(), credentials) {
            return Ok(refuse(denied));
        }
        let authority = request.uri().authority().ok_or_else(|| Failure::bad_request("Which device?"))?;
        let serial = device(authority)?;
        let access = self.devices.access(serial).ok_or(ReachError::NotRegistered(serial))?;
        let port = authority.port_u16();
        if let Some(response) = self.refusal_of(serial) {
            return Ok(response);
        }
        let is_connect = request.method() == Method::CONNECT && !websocket::is_asked(&request);
        match (is_connect, access.at(port.unwrap_or(HTTP_PORT))) {
            (true, Some(service)) if port.is_some() => self.connect(serial, service, peer, request).await,
            (false, Some(Service::Http)) => self.forward(serial, &access, request).await,
            (true, _) => Err(refuse_port(serial, &access, "CONNECT reaches", |_| true)),
            (false, _) => {
                let is_http = |service| service == Service::Http;
                Err(refuse_port(serial, &access, "Requests for http:// reach", is_http))
            }
        }
    }

    /// `GET http://SERIAL/…`: streamed both ways, with back-pressure.
    async fn forward(
        &self,
        serial: SerialNumber,
        access: &Access,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Failure> {
        if request.uri().scheme_str().is_some_and(|scheme| scheme != "http" && scheme != "ws") {
            let message = format!(
                "The way to the device is encrypted already: ask for http://, or CONNECT {}:443.",
                serial.host()
            );
            return Err(forbidden(message));
        }
        if websocket::is_asked(&request) {
            return self.pass_websocket(serial, access, request).await;
        }
        let (mut parts, body) = request.into_parts();
        strip(&mut parts.headers);
        // Answered by us, as soon as the body is read.
        parts.headers.remove(header::EXPECT);
        parts.extensions = http::Extensions::new();
        let request = Request::from_parts(parts, body);
        let answered = match access.add_credentials {
            true => self.request_logged_in(serial, request).await,
            false => self.tunnel.request_streaming(serial, request).await.map_err(Failure::from),
        };
        let mut response = answered.inspect_err(|failure| {
            tracing::debug!(
                step = %Step::Tunnel, %serial, problem = failure.problem.error.message, "request through the proxy"
            );
        })?;
        strip(response.headers_mut());
        *response.version_mut() = http::Version::HTTP_11;
        Ok(response.map(Body::new))
    }
}

/// The device that an authority names.
fn device(authority: &Authority) -> Result<SerialNumber, Failure> {
    // As a host name may be written: anything else that people write of a serial number is no URL.
    let host = authority.host();
    host.strip_prefix(CLIENT_ID).unwrap_or(host).parse().map_err(|_| {
        forbidden(format!(
            "This proxy reaches devices by their serial numbers, such as http://00408c702009/; {host:?} is none."
        ))
    })
}

/// Connections of a client that asks for one device are served on the thread of its uplink.
pub(crate) fn home(devices: Arc<Devices>) -> Home {
    Arc::new(move |first| {
        let serial = serial_in_first_line(first)?;
        Some(devices.connected(serial)?.worker.clone())
    })
}

/// `GET http://00408c702009/… HTTP/1.1`, `CONNECT 00408c702009:554 HTTP/1.1`: as far as it is there.
fn serial_in_first_line(first: &[u8]) -> Option<SerialNumber> {
    let target = first.split(|byte| *byte == b' ').nth(1)?;
    let target = target.strip_prefix(b"http://").unwrap_or(target);
    let host = target.split(|byte| matches!(byte, b'/' | b':')).next()?;
    let host = std::str::from_utf8(host).ok()?;
    host.strip_prefix(CLIENT_ID).unwrap_or(host).parse().ok()
}

/// A port that the device's policy does not have, or not for this.
fn refuse_port(
    serial: SerialNumber,
    access: &Access,
    what: &str,
    usable: impl Fn(Service) -> bool,
) -> Failure {
    let ports = access.ports.iter().filter(|known| usable(known.service));
    let ports: Vec<String> = ports.map(|known| known.port.to_string()).collect();
    let ports = if ports.is_empty() { "none".to_owned() } else { ports.join(", ") };
    forbidden(format!("{what} these ports of {serial} and no other, as its access says: {ports}."))
}

fn forbidden(message: String) -> Failure {
    Failure::new(StatusCode::FORBIDDEN, Problem::new("forbidden", message))
}

/// Leaves out what is for us, and what concerns one connection only.
fn strip(headers: &mut HeaderMap) {
    strip_hop_by_hop(headers);
    headers.remove(header::PROXY_AUTHORIZATION);
    headers.remove(header::PROXY_AUTHENTICATE);
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
    use http::HeaderName;

    #[test]
    fn whom_a_connection_is_for_is_told_by_its_first_line() {
        let serial = "00408C702009".parse().ok();
        for (line, found) in [
            ("GET http://00408c702009/axis-cgi/jpg HTTP/1.1\r\nHost: x", serial),
            ("GET http://4.00408c702009:80/ HTTP/1.1", serial),
            ("CONNECT 00408C702009:554 HTTP/1.1", serial),
            ("GET /api/v1/devices HTTP/1.1", None),
            ("GET http://example.com/ HTTP/1.1", None),
            ("PRI * HTTP/2.0", None),
            ("GET", None),
            ("", None),
        ] {
            assert_eq!(serial_in_first_line(line.as_bytes()), found, "{line}");
        }
    }

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
        for good in
            ["00408c702009", "00408C702009:554", "00-40-8c-70-20-09", "00408c702009:80", "4.00408c702009:80"]
        {
            assert_eq!(name(good).unwrap().to_string(), "00408C702009", "{good}");
        }
        for bad in [
            "localhost:554",
            "127.0.0.1",
            "[::1]:554",
            "metadata.internal",
            "00408c70200",
            "1.2.3.4:554",
            "5.00408c702009",
        ] {
            assert_eq!(name(bad).unwrap_err().status, StatusCode::FORBIDDEN, "{bad}");
        }
    }
}
