//! The device's end, until the uplink stands: name, TCP (or the site's proxy), TLS, upgrade.
//!
//! Each thing that can go wrong is a variant of [`DialError`], because an installer acts on it: a wrong name, a closed
//! firewall, a proxy that wants a password, a server that is not the one trusted, or one that refuses and says why.
//!
//! Not here: when to try again (`keep.rs`, `backoff.rs`). Flow steps 4 (phone home) and 6 (connect).

use crate::accept::{ReadHeadError, prepare_socket, read_head};
use crate::address::{Carrier, HttpProxy, UplinkAddress};
use crate::shown;
use crate::tls::Fingerprint;
use crate::tls_stream::{HandshakeError, TlsStream};
use crate::transport::{CloseOnDrop, Exporter, Transport};
use crate::upgrade::{self, BearerToken, HeadError, ResponseHead};
use crate::websocket::Role;
use bytes::{Bytes, BytesMut};
use rustls::pki_types::ServerName;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Once};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Most of a refusal's text that is read, in bytes.
const REFUSAL_MAX: usize = 2048;

/// How long a refusal's text may take after its head.
const REFUSAL_DEADLINE: Duration = Duration::from_secs(2);

/// One address is given at most this share of the deadline when a name has several.
const ADDRESS_SHARE: u32 = 3;

/// Why there is no uplink. The text names the peer and what to check.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name has no address, or the name server does not answer.
    #[error("the name {host} was not found: {error}; check the address and the site's name server")]
    NameLookup {
        /// Server or proxy.
        host: String,
        /// What the system says.
        error: io::Error,
    },
    /// TCP did not connect.
    #[error("no connection to {peer}: {error}; check that the site may connect to it")]
    Tcp {
        /// Server or proxy.
        peer: String,
        /// What the system says.
        error: io::Error,
    },
    /// The site's proxy did not put us through.
    #[error("the proxy {proxy} refused with {status} {reason}{}", if *status == 407 { "; it wants user and password" } else { "" })]
    ProxyRefused {
        /// Its address.
        proxy: String,
        /// Its HTTP status; 407 asks for credentials.
        status: u16,
        /// Its reason phrase.
        reason: String,
    },
    /// The site's proxy does not speak HTTP.
    #[error("the proxy {proxy} is none: {error}")]
    NotAProxy {
        /// Its address.
        proxy: String,
        /// What is wrong.
        error: String,
    },
    /// The server is not one that this device trusts: unknown issuer, expired.
    #[error("the certificate of {server} is not trusted: {error}; check the trust anchor and the clock")]
    Untrusted {
        /// Its address.
        server: String,
        /// What rustls says.
        error: String,
    },
    /// A certificate of a time to come: this machine's clock has stopped, or never knew the time.
    #[error(
        "the certificate of {server} begins later than this machine's clock says: the clock is slow; set it, by NTP"
    )]
    SlowClock {
        /// Its address.
        server: String,
    },
    /// The server is trusted, but under another name.
    #[error("the certificate of {server} is for another name: {error}")]
    WrongName {
        /// Its address.
        server: String,
        /// What rustls says.
        error: String,
    },
    /// Any other failure of TLS, the server's alert included.
    #[error("TLS with {server} failed: {error}")]
    Tls {
        /// Its address.
        server: String,
        /// What rustls says.
        error: String,
    },
    /// The server answered, and does not want this device.
    #[error("{server} refused with {status}: {reason}")]
    Refused {
        /// Its address.
        server: String,
        /// Its HTTP status.
        status: u16,
        /// What it says, bounded and printable.
        reason: String,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// Something listens there, but no uplink server.
    #[error("{server} is not an uplink server: {error}")]
    NotUplink {
        /// Its address.
        server: String,
        /// What is wrong.
        error: String,
    },
    /// It took too long.
    #[error("{server} did not complete the connection within {} s ({step})", deadline.as_secs())]
    Timeout {
        /// Its address.
        server: String,
        /// How far it got.
        step: &'static str,
        /// [`Dialer::deadline`].
        deadline: Duration,
    },
}

/// How to reach one server. All fields are public; [`Dialer::new`] sets the defaults.
#[derive(Clone, Debug)]
pub struct Dialer {
    /// Where to.
    pub address: UplinkAddress,
    /// Trust and key, see [`client_tls_config`](crate::client_tls_config).
    pub tls: Arc<rustls::ClientConfig>,
    /// The site's proxy, if it has one.
    pub proxy: Option<HttpProxy>,
    /// Access token to show.
    pub token: Option<BearerToken>,
    /// `User-Agent` to send; printable ASCII. Empty: none.
    pub user_agent: String,
    /// For everything until the uplink stands. 15 s.
    pub deadline: Duration,
    /// TCP_USER_TIMEOUT. 30 s.
    pub tcp_user_timeout: Duration,
    /// Ask the kernel for BBR, which keeps video flowing under loss where CUBIC does not. True.
    pub bbr: bool,
}

impl Dialer {
    /// A dialer with the defaults of its fields.
    pub fn new(address: UplinkAddress, tls: Arc<rustls::ClientConfig>) -> Self {
        Self {
            address,
            tls,
            proxy: None,
            token: None,
            user_agent: String::new(),
            deadline: Duration::from_secs(15),
            tcp_user_timeout: Duration::from_secs(30),
            bbr: true,
        }
    }

    /// Connects, and comes back when the server has admitted this device.
    pub async fn dial(&self) -> Result<DialedUplink, DialError> {
        let mut step = "looking up the name";
        let dialing = Box::pin(self.dial_unhurried(&mut step));
        if let Ok(dialed) = timeout(self.deadline, dialing).await {
            return dialed;
        }
        Err(DialError::Timeout { server: self.address.authority(), step, deadline: self.deadline })
    }

    async fn dial_unhurried(&self, step: &mut &'static str) -> Result<DialedUplink, DialError> {
        let tcp = match &self.proxy {
            None => self.connect(self.address.host(), self.address.port(), step).await?,
            Some(proxy) => {
                let tcp = self.connect(proxy.host(), proxy.port(), step).await?;
                *step = "asking the proxy";
                self.pass_proxy(tcp, proxy).await?
            }
        };
        let peer_addr =
            tcp.peer_addr().map_err(|error| DialError::Tcp { peer: self.address.authority(), error })?;
        *step = "TLS handshake";
        let host = self.address.host().to_owned();
        let name = ServerName::try_from(host).map_err(|error| self.not_found(error))?;
        let tls = TlsStream::connect(&self.tls, name, tcp).await;
        let transport = Transport::new(tls.map_err(|error| self.handshake_failed(error))?);
        *step = "waiting for the server to admit this device";
        let early = self.upgrade(&transport).await?;
        let websocket = (self.address.carrier() == Carrier::WebSocket).then_some(Role::Client);
        transport.begin(early, websocket, false);
        Ok(DialedUplink { transport: CloseOnDrop(transport), address: self.address.clone(), peer_addr })
    }

    /// TCP to the first address of the name that answers.
    async fn connect(&self, host: &str, port: u16, step: &mut &'static str) -> Result<TcpStream, DialError> {
        let not_found = |error| DialError::NameLookup { host: host.to_owned(), error };
        let addresses: Vec<_> = tokio::net::lookup_host((host, port)).await.map_err(not_found)?.collect();
        *step = "connecting";
        let share = if addresses.len() > 1 { self.deadline / ADDRESS_SHARE } else { self.deadline };
        let mut error = io::Error::from(io::ErrorKind::NotFound);
        for address in &addresses {
            match timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(tcp)) => {
                    prepare_socket(&tcp, self.tcp_user_timeout);
                    if self.bbr {
                        ask_for_bbr(&tcp);
                    }
                    return Ok(tcp);
                }
                Ok(Err(refused)) => error = refused,
                Err(_) => error = io::ErrorKind::TimedOut.into(),
            }
        }
        let peer = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        Err(DialError::Tcp { peer, error })
    }

    async fn pass_proxy(&self, mut tcp: TcpStream, proxy: &HttpProxy) -> Result<TcpStream, DialError> {
        let name = format!("{}:{}", proxy.host(), proxy.port());
        let lost = |error: io::Error| DialError::NotAProxy { proxy: name.clone(), error: error.to_string() };
        let request = upgrade::connect_request(&self.address.authority(), proxy.authorization().as_deref());
        tcp.write_all(request.as_bytes()).await.map_err(lost)?;
        let mut bytes = BytesMut::with_capacity(512);
        let head = loop {
            // Byte by byte would be exact; but nothing can follow the head before TLS begins, which is ours to do.
            if tcp.read_buf(&mut bytes).await.map_err(lost)? == 0 {
                return Err(lost(io::ErrorKind::UnexpectedEof.into()));
            }
            let parsed = ResponseHead::parse(&bytes);
            let parsed = parsed
                .map_err(|error| DialError::NotAProxy { proxy: name.clone(), error: error.to_string() })?;
            if let Some((head, _)) = parsed {
                break head;
            }
        };
        match head.status {
            200..=299 => Ok(tcp),
            status => Err(DialError::ProxyRefused { proxy: name, status, reason: head.phrase }),
        }
    }

    /// Sends the upgrade head and reads the answer; returns what came behind it.
    async fn upgrade(&self, transport: &Transport) -> Result<Bytes, DialError> {
        let key = upgrade::websocket_key();
        let request = upgrade::upgrade_request(&self.address, self.token.as_ref(), &self.user_agent, &key);
        let mut sending = transport.clone();
        sending.write_all(request.as_bytes()).await.map_err(|error| self.tls_failed(error))?;
        sending.flush().await.map_err(|error| self.tls_failed(error))?;
        let (head, early) = match read_head(transport, ResponseHead::parse).await {
            Ok(answer) => answer,
            // In TLS 1.3 a server's refusal of our certificate comes only now.
            Err(ReadHeadError::Io(error)) => return Err(self.tls_failed(error)),
            Err(ReadHeadError::Head(error)) => return Err(self.not_uplink(&error)),
        };
        match head.status {
            101 => {}
            400..=599 => {
                let reason = refusal_text(transport.clone(), early, &head).await;
                return Err(DialError::Refused {
                    server: self.address.authority(),
                    status: head.status,
                    reason,
                    retry_after: head.retry_after.map(Duration::from_secs),
                });
            }
            _ => {}
        }
        head.check_switched(self.address.carrier(), &key).map_err(|error| self.not_uplink(&error))?;
        Ok(early)
    }

    fn not_found(&self, error: rustls::pki_types::InvalidDnsNameError) -> DialError {
        DialError::NameLookup { host: self.address.host().to_owned(), error: io::Error::other(error) }
    }

    fn not_uplink(&self, error: &HeadError) -> DialError {
        DialError::NotUplink { server: self.address.authority(), error: error.to_string() }
    }

    fn handshake_failed(&self, error: HandshakeError) -> DialError {
        use rustls::CertificateError as Bad;
        use rustls::Error as Tls;
        let server = self.address.authority();
        match error {
            HandshakeError::Tls(Tls::InvalidCertificate(
                error @ (Bad::NotValidForName | Bad::NotValidForNameContext { .. }),
            )) => DialError::WrongName { server, error: error.to_string() },
            HandshakeError::Tls(Tls::InvalidCertificate(
                Bad::NotValidYet | Bad::NotValidYetContext { .. },
            )) => DialError::SlowClock { server },
            HandshakeError::Tls(Tls::InvalidCertificate(error)) => {
                DialError::Untrusted { server, error: error.to_string() }
            }
            HandshakeError::Tls(error) => DialError::Tls { server, error: error.to_string() },
            HandshakeError::Io(error) => self.tls_failed(error),
        }
    }

    fn tls_failed(&self, error: io::Error) -> DialError {
        let error = match error.kind() {
            io::ErrorKind::UnexpectedEof => "the server closed the connection".to_owned(),
            _ => error.to_string(),
        };
        DialError::Tls { server: self.address.authority(), error }
    }
}

/// An uplink whose server has admitted this device; [`serve`](Self::serve) it.
pub struct DialedUplink {
    pub(crate) transport: CloseOnDrop,
    pub(crate) address: UplinkAddress,
    peer_addr: SocketAddr,
}

impl DialedUplink {
    /// The TLS exporter of this connection.
    pub fn exporter(&self) -> Exporter {
        self.transport.0.exporter()
    }

    /// The server's address, or the proxy's.
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer_addr
    }

    /// What was dialled.
    pub fn address(&self) -> &UplinkAddress {
        &self.address
    }

    /// Of the server's key.
    pub fn server_fingerprint(&self) -> Option<Fingerprint> {
        self.transport.0.peer_identity().map(|identity| identity.fingerprint)
    }
}

impl std::fmt::Debug for DialedUplink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DialedUplink")
            .field("address", &self.address)
            .field("peer_addr", &self.peer_addr)
            .finish()
    }
}

/// The text of a refusal, bounded in length and time.
async fn refusal_text(mut transport: Transport, early: Bytes, head: &ResponseHead) -> String {
    let mut text = BytesMut::from(early);
    let want = head.content_length.unwrap_or(REFUSAL_MAX).min(REFUSAL_MAX);
    let reading =
        async { while text.len() < want && matches!(transport.read_buf(&mut text).await, Ok(1..)) {} };
    // What has come by then is shown.
    let _ = timeout(REFUSAL_DEADLINE, reading).await;
    text.truncate(want);
    transport.close().await;
    let text = shown(&String::from_utf8_lossy(&text));
    if text.is_empty() { head.phrase.clone() } else { text }
}

fn ask_for_bbr(tcp: &TcpStream) {
    static TOLD: Once = Once::new();
    #[cfg(target_os = "linux")]
    let asked = socket2::SockRef::from(tcp).set_tcp_congestion(b"bbr");
    #[cfg(not(target_os = "linux"))]
    let asked = {
        let _ = tcp;
        Err(io::Error::from(io::ErrorKind::Unsupported))
    };
    if let Err(error) = asked {
        TOLD.call_once(
            || tracing::info!(%error, "no BBR in this kernel: video suffers more from packet loss"),
        );
    }
}
