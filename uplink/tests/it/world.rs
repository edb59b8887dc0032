//! A server with an accept loop, keys and certificates, and a device that answers a few paths.

use bytes::Bytes;
use homing_uplink::*;
use http::{Request, Response, StatusCode};
use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::SingleCertAndKey;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// No wait in a test is longer.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what} did not happen within {DEADLINE:?}"),
    }
}

/// A key and a self-signed certificate.
pub struct Identity {
    pub certificate: CertificateDer<'static>,
    pub certificate_pem: String,
    pub key: KeyPair,
}

impl Identity {
    pub fn server() -> Self {
        let params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]);
        Self::sign(params.expect("names"))
    }

    pub fn device(serial: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "camera");
        params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 5]), serial);
        Self::sign(params)
    }

    fn sign(params: CertificateParams) -> Self {
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        Self { certificate_pem: certificate.pem(), certificate: certificate.der().clone(), key }
    }

    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(self.key.serialize_der()).expect("a key")
    }

    pub fn server_config(&self, policy: TlsPolicy) -> rustls::ServerConfig {
        let key = crypto_provider().key_provider.load_private_key(self.private_key()).expect("a key");
        let resolver =
            SingleCertAndKey::from(rustls::sign::CertifiedKey::new(vec![self.certificate.clone()], key));
        server_tls_config(Arc::new(resolver), policy).expect("a configuration")
    }

    pub fn client_config(&self, trusted: &Self) -> Arc<rustls::ClientConfig> {
        let roots = roots_from_pem(trusted.certificate_pem.as_bytes()).expect("anchors");
        let chain = vec![self.certificate.clone()];
        Arc::new(
            client_tls_config(roots, chain, self.private_key(), TlsPolicy::Tls13).expect("a configuration"),
        )
    }
}

/// A server with an accept loop as a role has one: permit, accept, spawn, handshake under a deadline.
pub struct Server {
    pub address: SocketAddr,
    pub identity: Identity,
    pub arrivals: mpsc::Receiver<Result<Arrival, AcceptError>>,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
}

impl Server {
    pub async fn start() -> Self {
        Self::start_with_policy(TlsPolicy::Tls13).await
    }

    pub async fn start_with_policy(policy: TlsPolicy) -> Self {
        Self::start_with(policy, AcceptLimits::default(), 128).await
    }

    pub async fn start_with(policy: TlsPolicy, limits: AcceptLimits, handshakes_max: usize) -> Self {
        let identity = Identity::server();
        let acceptor = Acceptor::new(Arc::new(identity.server_config(policy)), limits);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (sender, arrivals) = mpsc::channel(256);
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let (loop_tasks, loop_stop) = (tasks.clone(), stop.clone());
        tasks.spawn(async move {
            let permits = Arc::new(Semaphore::new(handshakes_max));
            loop {
                let permit = Arc::clone(&permits).acquire_owned().await.expect("never closed");
                let Some(accepted) = loop_stop.run_until_cancelled(listener.accept()).await else { break };
                let Ok((tcp, peer)) = accepted else { continue };
                let (acceptor, sender, stop) = (acceptor.clone(), sender.clone(), loop_stop.clone());
                loop_tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
                    let arrival = acceptor.accept(tcp, peer).await;
                    drop(permit);
                    let _ = sender.send(arrival).await;
                }));
            }
        });
        Self { address, identity, arrivals, tasks, stop }
    }

    pub fn uplink_address(&self, carrier: Carrier) -> UplinkAddress {
        let scheme = match carrier {
            Carrier::Native => "https",
            Carrier::WebSocket => "wss",
        };
        format!("{scheme}://localhost:{}/up", self.address.port()).parse().expect("an address")
    }

    pub fn dialer(&self, carrier: Carrier, device: &Identity) -> Dialer {
        Dialer::new(self.uplink_address(carrier), device.client_config(&self.identity))
    }

    pub async fn next(&mut self) -> Arrival {
        within("an arrival", self.arrivals.recv()).await.expect("the loop runs").expect("an arrival")
    }

    /// A device dials, is admitted and serves `service`.
    pub async fn pair(
        &mut self,
        carrier: Carrier,
        settings: (UplinkSettings, ServeSettings),
        service: impl Service,
    ) -> Pair {
        let device = Identity::device("00408C702009");
        let dialer = self.dialer(carrier, &device);
        let stop_device = CancellationToken::new();
        let serve_stop = stop_device.clone();
        let device = self.tasks.spawn(async move {
            let dialed = dialer.dial().await.expect("an uplink");
            dialed.serve(Arc::new(service), settings.1, serve_stop).await
        });
        let arrival = self.next().await;
        let (uplink, driver) = arrival.accept(settings.0).await.expect("an uplink");
        let stop_server = CancellationToken::new();
        let server = self.tasks.spawn(driver.run(stop_server.clone()));
        Pair { uplink, server, device, stop_server, stop_device }
    }

    pub async fn default_pair(&mut self, carrier: Carrier) -> Pair {
        self.pair(carrier, Default::default(), answer).await
    }

    /// Nothing may be left when a test is over.
    pub async fn end(self) {
        self.stop.cancel();
        self.tasks.close();
        within("the end of every task", self.tasks.wait()).await;
    }
}

/// Both ends of one uplink.
pub struct Pair {
    pub uplink: Uplink,
    pub server: JoinHandle<EndReason>,
    pub device: JoinHandle<EndReason>,
    pub stop_server: CancellationToken,
    pub stop_device: CancellationToken,
}

impl Pair {
    /// Ends it from the server, as a stop does.
    pub async fn end(self) {
        self.stop_server.cancel();
        assert_eq!(within("the server's end", self.server).await.expect("no panic"), EndReason::Stopped);
        assert_eq!(within("the device's end", self.device).await.expect("no panic"), EndReason::PeerClosed);
    }
}

pub fn get(path: &str) -> Request<Bytes> {
    Request::get(path).body(Bytes::new()).expect("a request")
}

/// What the device of these tests answers.
pub async fn answer(mut incoming: Incoming) {
    let path = incoming.request.uri().path().to_owned();
    match (incoming.protocol(), path.as_str()) {
        (Some("websocket"), "/echo") => {
            let subprotocol = incoming.subprotocols().next().unwrap_or_default().to_owned();
            let mut stream = incoming.accept_websocket(&subprotocol).expect("a WebSocket");
            let mut buffer = vec![0; 16 * 1024];
            while let Ok(1..) = read_then_write(&mut stream, &mut buffer).await {}
            let _ = stream.shutdown().await;
        }
        (_, "/hello") => incoming.respond(Response::new("hello".into())).expect("sent"),
        (_, "/host") => {
            let authority = incoming.request.uri().authority().map_or("", |authority| authority.as_str());
            let authority = Bytes::copy_from_slice(authority.as_bytes());
            incoming.respond(Response::new(authority)).expect("sent");
        }
        (_, "/echo") => {
            let body = std::mem::take(incoming.request.body_mut());
            let sender = incoming.respond_streaming(Response::new(())).expect("sent");
            let _ = sender.send_all(body).await;
        }
        (_, "/endless") => {
            let mut sender = incoming.respond_streaming(Response::new(())).expect("sent");
            while sender.send(Bytes::from_static(&[7; 64 * 1024])).await.is_ok() {}
        }
        (_, "/silent") => std::future::pending().await,
        (_, "/dropped") => drop(incoming),
        _ => {
            let mut response = Response::new("no such path".into());
            *response.status_mut() = StatusCode::NOT_FOUND;
            incoming.respond(response).expect("sent");
        }
    }
}

async fn read_then_write(stream: &mut WebSocketStream, buffer: &mut [u8]) -> std::io::Result<usize> {
    let count = stream.read(buffer).await?;
    stream.write_all(&buffer[..count]).await?;
    Ok(count)
}

/// A raw TLS connection to the server, as a hostile device would make.
pub async fn raw_tls(server: &Server, device: &Identity) -> tokio_rustls::client::TlsStream<TcpStream> {
    let tcp = TcpStream::connect(server.address).await.expect("a connection");
    let connector = tokio_rustls::TlsConnector::from(device.client_config(&server.identity));
    connector.connect("localhost".try_into().expect("a name"), tcp).await.expect("TLS")
}
