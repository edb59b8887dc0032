//! What surrounds an agent in a test: servers for it to dial, a camera behind it, an ONVIF client.

use bytes::Bytes;
use homing_agent::{Bound, CameraConfig, Config, DispatcherConfig, Status, bind};
use homing_protocol::digest::{BasicPolicy, ClientAuth};
use homing_protocol::onvif::{security, uplink as tup};
use homing_protocol::secret::Credentials;
use homing_protocol::{Oak, SerialNumber};
use homing_uplink::{
    AcceptLimits, Acceptor, EndReason, Exporter, OpenError, PeerIdentity, TlsPolicy, Uplink, UplinkSettings,
    WebSocketStream, server_tls_config,
};
use http::{HeaderMap, Request, StatusCode, header};
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub const SERIAL: &str = "00408C702009";
pub const OAK: &str = "0A1B-2C3D-4E5F";

/// Everything in these tests happens well within it.
const DEADLINE: Duration = Duration::from_secs(20);

/// Waits for something that must happen.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what} did not happen in time"))
}

pub fn camera_credentials() -> Credentials {
    Credentials::new("root", "sesame")
}

/// A certificate authority of a server's owner.
pub struct Authority {
    certificate: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        Authority { certificate, issuer: rcgen::Issuer::new(params, key) }
    }

    pub fn der(&self) -> Vec<u8> {
        self.certificate.der().to_vec()
    }

    pub fn pem(&self) -> String {
        self.certificate.pem()
    }
}

#[derive(Debug)]
struct OneCertificate(Arc<rustls::sign::CertifiedKey>);

impl rustls::server::ResolvesServerCert for OneCertificate {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// A server that devices dial: dispatcher or tunnel server.
pub struct Server {
    listener: TcpListener,
    acceptor: Acceptor,
    pub addr: SocketAddr,
    pub authority: Authority,
}

/// A device that has dialled.
pub struct Device {
    pub uplink: Uplink,
    pub identity: PeerIdentity,
    pub exporter: Exporter,
    driver: JoinHandle<EndReason>,
}

impl Server {
    pub async fn new() -> Server {
        Server::at("127.0.0.1:0".parse().unwrap(), "127.0.0.1").await
    }

    /// Its certificate is for `name`, whatever its address is.
    pub async fn at(addr: SocketAddr, name: &str) -> Server {
        let authority = Authority::new();
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
        let leaf = params.signed_by(&key, &authority.issuer).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = homing_uplink::crypto_provider();
        let key = rustls::sign::CertifiedKey::from_der(vec![leaf.der().clone()], key, &provider).unwrap();
        let tls = server_tls_config(Arc::new(OneCertificate(Arc::new(key))), TlsPolicy::Tls13).unwrap();
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        Server { listener, acceptor: Acceptor::new(Arc::new(tls), AcceptLimits::default()), addr, authority }
    }

    /// The next device that asks; those that break off are passed over.
    pub async fn accept(&self) -> Device {
        soon("a device's call", async {
            loop {
                let (tcp, peer) = self.listener.accept().await.unwrap();
                let Ok(arrival) = self.acceptor.accept(tcp, peer).await else { continue };
                let identity = arrival.peer_identity.clone().unwrap();
                let exporter = arrival.exporter();
                let Ok((uplink, driver)) = arrival.accept(UplinkSettings::default()).await else { continue };
                let driver = tokio::task::spawn_local(driver.run(CancellationToken::new()));
                return Device { uplink, identity, exporter, driver };
            }
        })
        .await
    }

    /// Refuses the next device as a tunnel server does that does not know its key.
    pub async fn refuse(&self, reason: &str) {
        soon("a device's call", async {
            let (tcp, peer) = self.listener.accept().await.unwrap();
            self.acceptor.accept(tcp, peer).await.unwrap().refuse(403, reason).await;
        })
        .await;
    }

    /// Sees that a device that dials goes away by itself during TLS.
    pub async fn is_not_trusted(&self) {
        soon("a device's call", async {
            let (tcp, peer) = self.listener.accept().await.unwrap();
            self.acceptor.accept(tcp, peer).await.expect_err("the device trusts this server");
        })
        .await;
    }

    /// Fails the test if anybody connects within a moment.
    pub async fn expect_silence(&self) {
        let called = timeout(Duration::from_millis(300), self.listener.accept()).await;
        assert!(called.is_err(), "somebody connected");
    }

    pub fn config(&self) -> DispatcherConfig {
        DispatcherConfig { address: self.addr.to_string(), trust_anchor: self.authority.pem() }
    }

    pub fn address(&self) -> String {
        format!("https://{}/", self.addr)
    }
}

impl Device {
    /// Waits until the device has closed the uplink.
    pub async fn gone(self) -> EndReason {
        soon("the end of the uplink", self.driver).await.unwrap()
    }

    pub fn close(&self) {
        self.uplink.close(EndReason::Closed("the test has had enough".into()));
    }

    /// An ONVIF call with HTTP Digest where it is asked for.
    pub async fn call<R: homing_protocol::onvif::Request>(
        &self,
        path: &str,
        request: &R,
        credentials: &Credentials,
    ) -> Result<R::Answer, String> {
        let asked = self.post(path, "application/soap+xml", request.to_xml(), credentials).await;
        let (_, body) = asked?;
        R::parse_answer(&body).map_err(|error| error.to_string())
    }

    /// A request with HTTP Digest where it is asked for; status and body.
    pub async fn post(
        &self,
        path: &str,
        kind: &str,
        body: String,
        credentials: &Credentials,
    ) -> Result<(StatusCode, Bytes), String> {
        let mut auth = ClientAuth::new(BasicPolicy::Refuse);
        loop {
            let mut builder = Request::post(path).header(header::CONTENT_TYPE, kind);
            if let Some(value) = auth.authorize("POST", path, credentials).unwrap() {
                builder = builder.header(header::AUTHORIZATION, value);
            }
            let answer = self.uplink.request(builder.body(Bytes::from(body.clone())).unwrap());
            let answer = soon("an answer", answer).await.map_err(|error| error.to_string())?;
            let status = answer.status();
            if status == StatusCode::UNAUTHORIZED {
                let challenges = answer.headers().get_all(header::WWW_AUTHENTICATE);
                let challenges: Vec<&str> = challenges.iter().map(|c| c.to_str().unwrap()).collect();
                auth.handle_challenge(challenges).map_err(|error| error.to_string())?;
                continue;
            }
            let body = answer.into_body().collect(1 << 20).await.map_err(|error| error.to_string())?;
            return Ok((status, body));
        }
    }

    /// A WebSocket.
    pub async fn open(&self, path: &str, subprotocol: &str) -> Result<WebSocketStream, OpenError> {
        soon("a WebSocket", self.uplink.open_websocket(path, subprotocol, HeaderMap::new())).await
    }

    /// A plain request; status and body.
    pub async fn request(&self, request: Request<Bytes>) -> (StatusCode, String) {
        let answer = soon("an answer", self.uplink.request(request)).await.unwrap();
        let status = answer.status();
        let body = soon("the body", answer.into_body().collect(1 << 20)).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    /// Step 5 as a dispatcher does it, after proof and log-in.
    pub async fn send_to(&self, server: &Server) -> Result<(), String> {
        self.send_to_trusting(&server.address(), server.authority.der()).await
    }

    pub async fn send_to_trusting(&self, address: &str, anchor: Vec<u8>) -> Result<(), String> {
        use homing_protocol::onvif::{SECURITY_PATH, UPLINK_PATH};
        let user = camera_credentials();
        let upload = security::UploadCertificate { certificate: anchor, ..Default::default() };
        let uploaded = self.call(SECURITY_PATH, &upload, &user).await?;
        let create = security::CreateCertPathValidationPolicy {
            trust_anchors: vec![uploaded.certificate_id],
            ..Default::default()
        };
        let policy = self.call(SECURITY_PATH, &create, &user).await?;
        let all = self.call(SECURITY_PATH, &security::GetAllCertificates, &user).await?;
        let own = all.0.iter().find(|certificate| certificate.has_private_key).unwrap();
        assert_eq!(own.content, self.identity.certificate_der, "the device's own certificate is listed");
        let set = tup::SetUplink(tup::Configuration {
            remote_address: address.to_owned(),
            certificate_id: Some(own.certificate_id.clone()),
            user_level: vec!["Administrator".into()],
            cert_path_validation_policy_id: Some(policy.policy_id),
            ..Default::default()
        });
        self.call(UPLINK_PATH, &set, &user).await.map(|_| ())
    }
}

/// An agent that runs.
pub struct Agent {
    pub status: watch::Receiver<Status>,
    pub page: SocketAddr,
    stop: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Agent {
    pub async fn start(config: Config) -> Agent {
        let bound: Bound = bind(config).await.unwrap();
        let (status, page, stop) = (bound.status(), bound.page_addr(), CancellationToken::new());
        assert_eq!(bound.press_url(), format!("http://{page}/press"));
        let running = tokio::task::spawn_local(bound.run(stop.clone()));
        Agent { status, page, stop, running }
    }

    pub async fn press(&self) {
        let (status, _) = http(self.page, "POST", "/press", &[]).await;
        assert_eq!(status, 200);
    }

    /// Waits until the light shows this word.
    pub async fn shows(&mut self, word: &str) {
        let waiting = self.status.wait_for(|status| status.light.word == word);
        if timeout(DEADLINE, waiting).await.is_err() {
            panic!("the light does not show {word:?}: {:#?}", *self.status.borrow());
        }
    }

    /// Waits until some status is shown.
    pub async fn shows_that(&mut self, what: &str, matches: impl FnMut(&Status) -> bool) {
        let waiting = self.status.wait_for(matches);
        if timeout(DEADLINE, waiting).await.is_err() {
            panic!("{what} is not shown: {:#?}", *self.status.borrow());
        }
    }

    /// Ends it, and sees that it ends in order.
    pub async fn stop(self) {
        self.stop.cancel();
        soon("the agent's end", self.running).await.unwrap().unwrap();
    }
}

/// A configuration with short intervals, a free port, and a camera where nothing listens.
pub fn config(data: &Path, dispatchers: &[&Server]) -> Config {
    let mut config = Config {
        data: data.join("agent"),
        serial: Some(SERIAL.parse::<SerialNumber>().unwrap()),
        oak: Some(OAK.parse::<Oak>().unwrap()),
        retry_first_ms: 20,
        retry_max_ms: 100,
        dispatchers: dispatchers.iter().map(|server| server.config()).collect(),
        cameras: vec![camera_at("127.0.0.1:1".parse().unwrap())],
        ..Config::default()
    };
    config.page.listen = "127.0.0.1:0".parse().unwrap();
    config
}

pub fn camera_at(addr: SocketAddr) -> CameraConfig {
    CameraConfig {
        rtsp: format!("rtsp://root:sesame@{addr}/stream").as_str().into(),
        ..CameraConfig::default()
    }
}

/// A camera that answers every DESCRIBE, so that the light may be green.
pub async fn good_camera() -> CameraConfig {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let _ = tcp.read(&mut request).await;
            let _ = tcp.write_all(b"RTSP/1.0 200 OK\r\nCSeq: 1\r\n\r\n").await;
        }
    });
    camera_at(addr)
}

/// One HTTP request to the page; status and the whole answer.
pub async fn http(addr: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let host = addr.to_string();
    let mut headers = headers.to_vec();
    if !headers.iter().any(|(name, _)| *name == "Host") {
        headers.push(("Host", &host));
    }
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    soon("the page's answer", async {
        let mut tcp = TcpStream::connect(addr).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n");
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await.unwrap();
        (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
    })
    .await
}

/// Runs a test on one thread with a folder of its own.
pub fn story<F: Future<Output = ()>>(test: impl FnOnce(tempfile::TempDir) -> F) {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test(folder));
}
