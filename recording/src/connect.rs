//! The way to a device: byte streams (RTSP) and HTTP requests (ONVIF), over the LAN, through a tunnel
//! server's HTTP proxy, or through a tunnel server in the same process.
//!
//! [`DeviceConnector`] is the seam; `Connectors` chooses by the device's address. Behind it nobody knows
//! how a camera is connected.
//!
//! Not here: retrying, authentication to the device, what is said to it.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use homing_base::http::Failure;
use homing_base::onvif::ANSWER_LIMIT_BYTES;
use homing_protocol::SerialNumber;
use homing_protocol::api::recording::{DeviceAddress, Way};
use homing_protocol::api::{Problem, ProblemDetail};
use homing_protocol::secret::Credentials;
use http::{Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::config::TunnelServer;

pub use homing_base::rtsp::Stream;

/// For a TCP connection, and for a proxy to answer CONNECT.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// The longest answer to CONNECT.
const CONNECT_ANSWER_LIMIT: usize = 8 * 1024;

/// A future in a box, as object-safe traits need it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Reaches devices.
pub trait DeviceConnector: Send + Sync + 'static {
    /// Whether this connector is the way to that device.
    fn serves(&self, device: &DeviceAddress) -> bool;

    /// Opens a byte stream to a TCP port of the device (554 for RTSP).
    fn connect<'a>(
        &'a self,
        device: &'a DeviceAddress,
        port: u16,
    ) -> BoxFuture<'a, Result<Box<dyn Stream>, ConnectError>>;

    /// Sends an HTTP request to the device, whose URI is a path, and brings back the whole answer.
    fn request<'a>(
        &'a self,
        device: &'a DeviceAddress,
        request: Request<Bytes>,
    ) -> BoxFuture<'a, Result<Response<Bytes>, ConnectError>>;

    /// The device's user and password as they are known on the way to it, when it refuses those that we have.
    fn credentials<'a>(&'a self, device: &'a DeviceAddress) -> BoxFuture<'a, Option<Credentials>> {
        let _ = device;
        Box::pin(std::future::ready(None))
    }

    /// The runtime on which the device's streams are at home; a session there wakes no other thread.
    /// Asked before each [`DeviceConnector::connect`].
    fn runtime(&self, device: &DeviceAddress) -> Option<tokio::runtime::Handle> {
        let _ = device;
        None
    }
}

/// Why a device cannot be reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The network says no.
    #[error("{peer} cannot be reached ({cause}); check that it has power and network, and its address")]
    Unreachable {
        /// Address.
        peer: String,
        /// What the network said.
        cause: String,
    },
    /// The tunnel server is there, the device's uplink is not.
    #[error(
        "{serial} is not connected to the tunnel server {server}; check the device's power and its site's Internet connection"
    )]
    NotConnected {
        /// The device.
        serial: SerialNumber,
        /// The tunnel server's name.
        server: String,
    },
    /// The tunnel server does not let us.
    #[error(
        "the tunnel server {server} refuses us (HTTP {status}); check its user and password at the management server"
    )]
    Refused {
        /// The tunnel server's name.
        server: String,
        /// Its answer's status.
        status: u16,
    },
    /// The device is there, and nothing listens at that port.
    #[error("{peer} accepts no connection ({cause}); check that its RTSP and ONVIF services are switched on")]
    Closed {
        /// The device.
        peer: String,
        /// What was answered.
        cause: String,
    },
    /// The tunnel server says why, better than we could.
    #[error("{}", .0.message)]
    Reported(ProblemDetail),
    /// No way is known to that address.
    #[error("no tunnel server called {0:?} is known here; check the tunnel servers of the management server")]
    UnknownServer(String),
    /// No ONVIF at such an address.
    #[error("{0} is an RTSP address; it has no other services")]
    RtspOnly(String),
    /// An answer that is none.
    #[error("{peer} gave an answer that is not HTTP ({cause})")]
    Unexpected {
        /// Who.
        peer: String,
        /// What was wrong.
        cause: String,
    },
}

impl ConnectError {
    /// A word for programs.
    pub fn code(&self) -> &str {
        match self {
            Self::Reported(problem) => &problem.code,
            Self::Unreachable { .. } => "device-unreachable",
            Self::NotConnected { .. } => "device-not-connected",
            Self::Refused { .. } => "tunnel-server-refuses",
            Self::Closed { .. } => "device-refuses",
            Self::UnknownServer(_) => "unknown-tunnel-server",
            Self::RtspOnly(_) => "no-onvif",
            Self::Unexpected { .. } => "unexpected-answer",
        }
    }

    /// For the API.
    pub fn problem(&self) -> ProblemDetail {
        match self {
            Self::Reported(problem) => problem.clone(),
            other => ProblemDetail { code: other.code().to_owned(), message: other.to_string(), step: None },
        }
    }
}

/// All ways, in order of preference.
#[derive(Clone)]
pub(crate) struct Connectors {
    all: Arc<[Arc<dyn DeviceConnector>]>,
    servers: Arc<ProxyConnector>,
}

impl Connectors {
    /// `in_process` first, then the configured tunnel servers, then the LAN.
    pub fn new(in_process: Vec<Arc<dyn DeviceConnector>>, servers: &[TunnelServer]) -> anyhow::Result<Self> {
        let mut all = in_process;
        let servers = Arc::new(ProxyConnector::new(servers)?);
        all.push(servers.clone());
        all.push(Arc::new(DirectConnector));
        Ok(Self { all: all.into(), servers })
    }

    /// From now on the devices of this tunnel server are reached so.
    pub fn set_way(&self, name: &str, way: &Way) -> anyhow::Result<()> {
        self.servers.set(name, way)
    }

    /// The devices of this tunnel server are not reached any more.
    pub fn forget_way(&self, name: &str) {
        self.servers.lock_for_change().remove(name);
    }

    fn to(&self, device: &DeviceAddress) -> Result<&dyn DeviceConnector, ConnectError> {
        let way = self.all.iter().find(|connector| connector.serves(device));
        way.map(AsRef::as_ref).ok_or_else(|| match device {
            DeviceAddress::Tunnel { server, .. } => ConnectError::UnknownServer(server.clone()),
            other => ConnectError::UnknownServer(describe(other)),
        })
    }

    /// Whether there is a way to it; not whether it answers.
    pub fn check(&self, device: &DeviceAddress) -> Result<(), Failure> {
        let problem =
            |error: ConnectError| Failure::new(StatusCode::BAD_REQUEST, Problem { error: error.problem() });
        self.to(device).map(|_| ()).map_err(problem)
    }

    pub async fn connect(&self, device: &DeviceAddress, port: u16) -> Result<Box<dyn Stream>, ConnectError> {
        self.to(device)?.connect(device, port).await
    }

    pub async fn request(
        &self,
        device: &DeviceAddress,
        request: Request<Bytes>,
    ) -> Result<Response<Bytes>, ConnectError> {
        self.to(device)?.request(device, request).await
    }

    pub async fn credentials(&self, device: &DeviceAddress) -> Option<Credentials> {
        self.to(device).ok()?.credentials(device).await
    }

    pub fn runtime(&self, device: &DeviceAddress) -> Option<tokio::runtime::Handle> {
        self.to(device).ok()?.runtime(device)
    }
}

/// For messages: never with a user name or password.
pub(crate) fn describe(device: &DeviceAddress) -> String {
    match device {
        DeviceAddress::Tunnel { server, serial } => format!("{serial} at {server}"),
        DeviceAddress::Direct { host } => host.clone(),
        DeviceAddress::Rtsp { url } => url.clone(),
    }
}

/// Devices on this server's own network.
pub struct DirectConnector;

impl DirectConnector {
    /// Host, and the port where one is stated.
    fn host(device: &DeviceAddress) -> Option<(String, Option<u16>)> {
        let split = |authority: &str| match authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !host.ends_with(':') => {
                Some((host.to_owned(), Some(port.parse().ok()?)))
            }
            _ => Some((authority.to_owned(), None)),
        };
        match device {
            DeviceAddress::Direct { host } => split(host),
            DeviceAddress::Rtsp { url } => {
                let url = url::Url::parse(url).ok()?;
                Some((url.host_str()?.to_owned(), url.port()))
            }
            DeviceAddress::Tunnel { .. } => None,
        }
    }
}

impl DeviceConnector for DirectConnector {
    fn serves(&self, device: &DeviceAddress) -> bool {
        !matches!(device, DeviceAddress::Tunnel { .. })
    }

    fn connect<'a>(
        &'a self,
        device: &'a DeviceAddress,
        port: u16,
    ) -> BoxFuture<'a, Result<Box<dyn Stream>, ConnectError>> {
        Box::pin(async move {
            let (host, _) =
                Self::host(device).ok_or_else(|| ConnectError::UnknownServer(describe(device)))?;
            Ok(Box::new(dial(&host, port).await?) as Box<dyn Stream>)
        })
    }

    fn request<'a>(
        &'a self,
        device: &'a DeviceAddress,
        request: Request<Bytes>,
    ) -> BoxFuture<'a, Result<Response<Bytes>, ConnectError>> {
        Box::pin(async move {
            let DeviceAddress::Direct { host: peer } = device else {
                return Err(ConnectError::RtspOnly(describe(device)));
            };
            let (host, port) =
                Self::host(device).ok_or_else(|| ConnectError::UnknownServer(describe(device)))?;
            let stream = dial(&host, port.unwrap_or(80)).await?;
            exchange(stream, request, peer).await
        })
    }
}

/// Devices behind tunnel servers that run elsewhere: `CONNECT SERIAL:554` and `POST http://SERIAL/…`.
pub struct ProxyConnector {
    servers: RwLock<HashMap<String, Arc<Proxy>>>,
}

struct Proxy {
    name: String,
    host: String,
    port: u16,
    /// None where it asks for none.
    authorization: Option<header::HeaderValue>,
    tls: Option<TlsConnector>,
}

impl ProxyConnector {
    /// For these tunnel servers.
    ///
    /// # Errors
    /// When an address or a password cannot be written into a request.
    pub fn new(servers: &[TunnelServer]) -> anyhow::Result<Self> {
        let known = Self { servers: RwLock::default() };
        for server in servers {
            let way = Way {
                url: format!("http://{}", server.proxy),
                user: server.user.clone(),
                password: server.password.clone(),
                trust_anchor: String::new(),
            };
            let set = known.set(&server.name, &way);
            set.with_context(|| format!("[[recording.tunnel_servers]] {:?}", server.name))?;
        }
        Ok(known)
    }

    fn set(&self, name: &str, way: &Way) -> anyhow::Result<()> {
        let url = url::Url::parse(&way.url).with_context(|| format!("address {:?}", way.url))?;
        let host = url.host_str().with_context(|| format!("address {:?} has no host", way.url))?;
        let tls = match url.scheme() {
            "http" => None,
            "https" => {
                let trust = Some(way.trust_anchor.as_str()).filter(|pem| !pem.trim().is_empty());
                Some(TlsConnector::from(Arc::new(homing_base::tls::client_config(trust)?)))
            }
            _ => anyhow::bail!("address {:?} is neither http nor https", way.url),
        };
        let credentials = Credentials { user: way.user.clone(), password: way.password.clone() };
        let authorization = (!way.user.is_empty()).then(|| {
            let basic = homing_base::client::basic(&credentials);
            let mut value = header::HeaderValue::from_str(&basic).context("user and password")?;
            value.set_sensitive(true);
            anyhow::Ok(value)
        });
        let proxy = Proxy {
            name: name.to_owned(),
            host: host.to_owned(),
            port: url.port_or_known_default().unwrap_or(80),
            authorization: authorization.transpose()?,
            tls,
        };
        self.lock_for_change().insert(name.to_owned(), Arc::new(proxy));
        Ok(())
    }

    fn lock_for_change(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<String, Arc<Proxy>>> {
        self.servers.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, server: &str) -> Option<Arc<Proxy>> {
        self.servers.read().unwrap_or_else(PoisonError::into_inner).get(server).cloned()
    }

    fn to(&self, device: &DeviceAddress) -> Result<(Arc<Proxy>, SerialNumber), ConnectError> {
        match device {
            DeviceAddress::Tunnel { server, serial } => {
                let proxy = self.find(server).ok_or_else(|| ConnectError::UnknownServer(server.clone()))?;
                Ok((proxy, *serial))
            }
            other => Err(ConnectError::UnknownServer(describe(other))),
        }
    }
}

impl DeviceConnector for ProxyConnector {
    fn serves(&self, device: &DeviceAddress) -> bool {
        matches!(device, DeviceAddress::Tunnel { server, .. } if self.find(server).is_some())
    }

    fn connect<'a>(
        &'a self,
        device: &'a DeviceAddress,
        port: u16,
    ) -> BoxFuture<'a, Result<Box<dyn Stream>, ConnectError>> {
        Box::pin(async move {
            let (proxy, serial) = self.to(device)?;
            let opened = tokio::time::timeout(CONNECT_DEADLINE, proxy.open(serial, port)).await;
            let stream = opened.unwrap_or_else(|_| {
                let peer = format!("tunnel server {}", proxy.name);
                Err(ConnectError::Unreachable { peer, cause: "no answer to CONNECT in time".into() })
            })?;
            Ok(stream)
        })
    }

    fn request<'a>(
        &'a self,
        device: &'a DeviceAddress,
        mut request: Request<Bytes>,
    ) -> BoxFuture<'a, Result<Response<Bytes>, ConnectError>> {
        Box::pin(async move {
            let (proxy, serial) = self.to(device)?;
            let path = request.uri().path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
            let absolute = format!("http://{}{path}", serial.host());
            *request.uri_mut() = absolute.parse::<Uri>().map_err(|error| ConnectError::Unexpected {
                peer: serial.to_string(),
                cause: error.to_string(),
            })?;
            if let Some(authorization) = &proxy.authorization {
                request.headers_mut().insert(header::PROXY_AUTHORIZATION, authorization.clone());
            }
            let stream = proxy.dial().await?;
            let response = exchange(stream, request, &format!("tunnel server {}", proxy.name)).await?;
            // The device's own answers have other statuses than the proxy's.
            proxy.check(response.status(), response.body(), serial)?;
            Ok(response)
        })
    }

    fn credentials<'a>(&'a self, device: &'a DeviceAddress) -> BoxFuture<'a, Option<Credentials>> {
        Box::pin(async move {
            let (proxy, serial) = self.to(device).ok()?;
            let path = format!("/api/v1/devices/{serial}/credentials");
            let mut request = Request::get(path).header(header::HOST, &proxy.host).body(Bytes::new()).ok()?;
            if let Some(authorization) = &proxy.authorization {
                request.headers_mut().insert(header::AUTHORIZATION, authorization.clone());
            }
            let asking = async {
                let stream = proxy.dial().await?;
                exchange(stream, request, &format!("tunnel server {}", proxy.name)).await
            };
            match asking.await {
                Ok(answer) => serde_json::from_slice(answer.body()).ok(),
                Err(error) => {
                    tracing::debug!(%serial, %error, "its password could not be asked for");
                    None
                }
            }
        })
    }
}

impl Proxy {
    async fn dial(&self) -> Result<Box<dyn Stream>, ConnectError> {
        let tcp = dial(&self.host, self.port).await?;
        let Some(tls) = &self.tls else { return Ok(Box::new(tcp)) };
        let plain = self.host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let failed =
            |cause: String| ConnectError::Unreachable { peer: format!("tunnel server {}", self.name), cause };
        let name =
            rustls::pki_types::ServerName::try_from(plain).map_err(|error| failed(error.to_string()))?;
        let handshake = tokio::time::timeout(CONNECT_DEADLINE, tls.connect(name, tcp)).await;
        let stream = handshake
            .map_err(|_| failed("TLS did not come about in time".to_owned()))?
            .map_err(|error| failed(format!("TLS failed: {error}")))?;
        Ok(Box::new(stream))
    }

    async fn open(&self, serial: SerialNumber, port: u16) -> Result<Box<dyn Stream>, ConnectError> {
        let mut stream = self.dial().await?;
        let peer = format!("tunnel server {}", self.name);
        let lost =
            |error: io::Error| ConnectError::Unreachable { peer: peer.clone(), cause: error.to_string() };
        let host = serial.host();
        let mut head =
            BytesMut::from(format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n").as_bytes());
        if let Some(authorization) = &self.authorization {
            head.extend_from_slice(b"Proxy-Authorization: ");
            head.extend_from_slice(authorization.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(b"\r\n");
        stream.write_all(&head).await.map_err(lost)?;
        // The proxy sends nothing after a good answer until the device does, and the device waits for us: so
        // reading in large pieces takes nothing away from the stream.
        let mut answer = Vec::with_capacity(1024);
        let head = loop {
            if let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            if answer.len() >= CONNECT_ANSWER_LIMIT || stream.read_buf(&mut answer).await.map_err(lost)? == 0
            {
                return Err(ConnectError::Unexpected { peer, cause: "no answer to CONNECT".into() });
            }
        };
        let Some(status) = parse_status(&answer) else {
            return Err(ConnectError::Unexpected { peer, cause: "not an answer to CONNECT".into() });
        };
        if status.is_success() {
            if head != answer.len() {
                return Err(ConnectError::Unexpected {
                    peer,
                    cause: "bytes after the answer to CONNECT".into(),
                });
            }
            return Ok(stream);
        }
        let len = content_length(&answer[..head]).min(CONNECT_ANSWER_LIMIT);
        while answer.len() < head + len && stream.read_buf(&mut answer).await.map_err(lost)? > 0 {}
        self.check(status, &answer[head..], serial)?;
        Err(ConnectError::Closed { peer: serial.to_string(), cause: format!("HTTP {status}") })
    }

    /// What the proxy itself refuses, mostly with a reason.
    fn check(&self, status: StatusCode, body: &[u8], serial: SerialNumber) -> Result<(), ConnectError> {
        if status == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            return Err(ConnectError::Refused { server: self.name.clone(), status: status.as_u16() });
        }
        // Devices do not answer in this form.
        if let Some(problem) =
            (!status.is_success()).then(|| serde_json::from_slice::<Problem>(body).ok()).flatten()
        {
            return Err(ConnectError::Reported(problem.error));
        }
        match status {
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                Err(ConnectError::NotConnected { serial, server: self.name.clone() })
            }
            _ => Ok(()),
        }
    }
}

/// 0 where there is none.
fn content_length(head: &[u8]) -> usize {
    let head = String::from_utf8_lossy(head);
    let value = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then_some(value)
    });
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

/// `HTTP/1.1 200 …`
fn parse_status(answer: &[u8]) -> Option<StatusCode> {
    let line = answer.split(|&b| b == b'\r').next()?;
    let mut words = line.split(|&b| b == b' ');
    words.next().filter(|version| version.starts_with(b"HTTP/1."))?;
    StatusCode::from_bytes(words.next()?).ok()
}

async fn dial(host: &str, port: u16) -> Result<TcpStream, ConnectError> {
    let peer = || format!("{host}:{port}");
    let plain = host.trim_start_matches('[').trim_end_matches(']');
    match tokio::time::timeout(CONNECT_DEADLINE, TcpStream::connect((plain, port))).await {
        Ok(Ok(stream)) => {
            let _ = stream.set_nodelay(true);
            Ok(stream)
        }
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Err(ConnectError::Closed { peer: peer(), cause: error.to_string() })
        }
        Ok(Err(error)) => Err(ConnectError::Unreachable { peer: peer(), cause: error.to_string() }),
        Err(_) => Err(ConnectError::Unreachable { peer: peer(), cause: "no answer in time".into() }),
    }
}

/// One HTTP/1.1 exchange; the caller has the deadline. The connection is not kept: a device is asked a few
/// questions when it is added, then never again.
async fn exchange(
    stream: impl Stream + 'static,
    request: Request<Bytes>,
    peer: &str,
) -> Result<Response<Bytes>, ConnectError> {
    let lost =
        |error: hyper::Error| ConnectError::Unexpected { peer: peer.to_owned(), cause: error.to_string() };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
    let exchange = async {
        let response = sender.send_request(request.map(Full::new)).await.map_err(lost)?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, ANSWER_LIMIT_BYTES)
            .collect()
            .await
            .map_err(|error| ConnectError::Unexpected { peer: peer.to_owned(), cause: error.to_string() })?;
        Ok(Response::from_parts(head, body.to_bytes()))
    };
    // Driven here rather than in a task of its own: it ends with the exchange.
    tokio::pin!(exchange, connection);
    let mut is_driven = true;
    loop {
        tokio::select! {
            answer = &mut exchange => return answer,
            _ = &mut connection, if is_driven => is_driven = false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    const SERIAL: &str = "00408C702009";

    fn device() -> DeviceAddress {
        DeviceAddress::Tunnel { server: "sts".into(), serial: SERIAL.parse().unwrap() }
    }

    /// A proxy that gives one answer, and the head of what it was asked.
    async fn proxy(answer: &'static str) -> (Connectors, impl Future<Output = String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = TunnelServer {
            name: "sts".into(),
            proxy: listener.local_addr().unwrap().to_string(),
            user: "vms".into(),
            password: "secret".into(),
        };
        let asked = async move {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.windows(4).any(|window| window == b"\r\n\r\n") {
                assert!(tcp.read_buf(&mut head).await.unwrap() > 0);
            }
            tcp.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8(head).unwrap()
        };
        (Connectors::new(Vec::new(), &[server]).unwrap(), asked)
    }

    /// Goal: a stream to a device is a CONNECT with our password, and what comes after the answer is the device's.
    #[tokio::test]
    async fn connects_through_the_proxy() {
        let (connectors, asked) = proxy("HTTP/1.1 200 Connected\r\n\r\n").await;
        let device = device();
        let (stream, head) = tokio::join!(connectors.connect(&device, 554), asked);
        stream.unwrap();
        assert!(
            head.starts_with("CONNECT 00408c702009:554 HTTP/1.1\r\nHost: 00408c702009:554\r\n"),
            "{head}"
        );
        assert!(head.contains("Proxy-Authorization: Basic dm1zOnNlY3JldA==\r\n"), "{head}");
    }

    /// Goal: a request to a device names it by its serial number.
    #[tokio::test]
    async fn asks_through_the_proxy() {
        let (connectors, asked) = proxy("HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno").await;
        let request =
            Request::post("/onvif/device_service").header("host", "x").body(Bytes::from("hello")).unwrap();
        let device = device();
        let (response, head) = tokio::join!(connectors.request(&device, request), asked);
        assert!(head.starts_with("POST http://00408c702009/onvif/device_service HTTP/1.1\r\n"), "{head}");
        // The device's own refusal is passed on, to be answered.
        let response = response.unwrap();
        assert_eq!((response.status().as_u16(), &response.body()[..]), (401, &b"no"[..]));
    }

    /// Goal: what the proxy refuses is told apart from what the device refuses.
    #[tokio::test]
    async fn refusals() {
        for (answer, code) in [
            ("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "tunnel-server-refuses"),
            ("HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\n\r\n", "device-not-connected"),
            (
                "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 56\r\n\r\n\
                 {\"error\":{\"code\":\"not-connected\",\"message\":\"it is away\"}}",
                "not-connected",
            ),
            ("HTTP/1.1 404 Not Found\r\n\r\n", "device-refuses"),
            ("SSH-2.0-x\r\n\r\n", "unexpected-answer"),
            ("HTTP/1.1 200 OK\r\n\r\nmore", "unexpected-answer"),
        ] {
            let (connectors, asked) = proxy(answer).await;
            let device = device();
            let (stream, _) = tokio::join!(connectors.connect(&device, 554), asked);
            let error = stream.err().expect(answer);
            assert_eq!(error.code(), code, "{answer}: {error}");
            assert!(!error.to_string().contains("secret"));
        }
        let other = DeviceAddress::Tunnel { server: "elsewhere".into(), serial: SERIAL.parse().unwrap() };
        let connectors = Connectors::new(Vec::new(), &[]).unwrap();
        let error = connectors.connect(&other, 554).await.err().unwrap();
        assert_eq!(error, ConnectError::UnknownServer("elsewhere".into()));
    }

    /// Goal: hosts with and without port, and IPv6.
    #[test]
    fn direct_addresses() {
        let host = |host: &str| DirectConnector::host(&DeviceAddress::Direct { host: host.into() }).unwrap();
        assert_eq!(host("10.0.0.9"), ("10.0.0.9".into(), None));
        assert_eq!(host("camera.local:8080"), ("camera.local".into(), Some(8080)));
        assert_eq!(host("[fe80::1]:81"), ("[fe80::1]".into(), Some(81)));
        assert_eq!(host("[fe80::1]"), ("[fe80::1]".into(), None));
        let rtsp = DeviceAddress::Rtsp { url: "rtsp://cam:8554/a".into() };
        assert_eq!(DirectConnector::host(&rtsp), Some(("cam".into(), Some(8554))));
    }
}
