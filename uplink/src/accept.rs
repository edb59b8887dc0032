//! The server's door: TLS, the upgrade head, then admit or refuse (ONVIF Uplink 26.06 §5.1).
//!
//! The accept loop stays the caller's: permit, `accept()`, spawn, and only then [`Acceptor::accept`], which has its own
//! deadline. So a silent peer costs a permit for ten seconds and delays nobody.
//!
//! Not here: whom to admit. Flow steps 4 (phone home, at the dispatcher) and 7 (tunnel, at the tunnel server).

use crate::address::Carrier;
use crate::tls::PeerIdentity;
use crate::tls_stream::{HandshakeError, TlsStream, capturing};
use crate::transport::{CloseOnDrop, Exporter, Transport};
use crate::upgrade::{self, BearerToken, HeadError, UpgradeRequest};
use crate::uplink::{Uplink, UplinkDriver, UplinkSettings};
use crate::websocket::Role;
use crate::{EndReason, shown};
use bytes::{Bytes, BytesMut};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longest reason that a refusal carries, in bytes.
const REASON_MAX: usize = 1024;

/// What a server allows a peer before it knows it.
#[derive(Clone, Copy, Debug)]
pub struct AcceptLimits {
    /// For TLS and the upgrade head together. 10 s.
    pub deadline: Duration,
    /// TCP_USER_TIMEOUT: how long sent bytes may stay unacknowledged before the kernel gives up. 30 s.
    pub tcp_user_timeout: Duration,
}

impl Default for AcceptLimits {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(10), tcp_user_timeout: Duration::from_secs(30) }
    }
}

/// When, and where else, a device may try again that cannot be served now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Later {
    /// In whole seconds; at least one is said.
    pub retry_after: Duration,
    /// Other addresses of the server, `host:port`. A device dials only what it was told by who may tell it, so this is no
    /// more than a hint which of these to try first.
    pub elsewhere: Vec<String>,
}

/// Why a connection did not become an arrival. The peer has been told what HTTP or TLS can tell.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The TLS handshake failed: no client certificate, an old version, not TLS at all.
    #[error("TLS handshake with {peer} failed: {error}")]
    Tls {
        /// Its address.
        peer: SocketAddr,
        /// What rustls or the socket says.
        error: HandshakeError,
    },
    /// What came through TLS is not the head of an uplink.
    #[error("{peer} connected, but {error}")]
    Head {
        /// Its address.
        peer: SocketAddr,
        /// What is wrong.
        error: HeadError,
    },
    /// The peer went away.
    #[error("{peer} went away before it asked for an uplink: {error}")]
    Gone {
        /// Its address.
        peer: SocketAddr,
        /// How it did.
        error: io::Error,
    },
    /// TLS and head took too long.
    #[error("{peer} did not complete TLS and its uplink request within {} s", deadline.as_secs())]
    Timeout {
        /// Its address.
        peer: SocketAddr,
        /// [`AcceptLimits::deadline`].
        deadline: Duration,
    },
}

impl AcceptError {
    /// In a word, for metrics: `tls-too-old`, `no-common-cipher`, `not-trusted`, `wrong-clock`, `no-certificate`, `tls`,
    /// `not-an-uplink`, `gone`, `timeout`.
    pub fn reason(&self) -> &'static str {
        use rustls::{AlertDescription as Alert, Error, PeerIncompatible as Incompatible};
        match self {
            AcceptError::Tls { error: HandshakeError::Tls(error), .. } => match error {
                Error::NoCertificatesPresented => "no-certificate",
                Error::PeerIncompatible(
                    Incompatible::Tls12NotOffered
                    | Incompatible::Tls12NotOfferedOrEnabled
                    | Incompatible::SupportedVersionsExtensionRequired,
                ) => "tls-too-old",
                Error::PeerIncompatible(
                    Incompatible::NoCipherSuitesInCommon | Incompatible::NoKxGroupsInCommon,
                ) => "no-common-cipher",
                Error::AlertReceived(Alert::CertificateExpired) => "wrong-clock",
                // Libraries differ in which of them they send; the last is for another CA of the same name.
                Error::AlertReceived(
                    Alert::UnknownCA
                    | Alert::BadCertificate
                    | Alert::CertificateUnknown
                    | Alert::UnsupportedCertificate
                    | Alert::DecryptError,
                ) => "not-trusted",
                _ => "tls",
            },
            AcceptError::Tls { error: HandshakeError::Io(_), .. } => "tls",
            AcceptError::Head { .. } => "not-an-uplink",
            AcceptError::Gone { .. } => "gone",
            AcceptError::Timeout { .. } => "timeout",
        }
    }

    /// What to do about it, where somebody can do something: a device that will come again and fail again.
    pub fn advice(&self) -> Option<&'static str> {
        Some(match self.reason() {
            "tls-too-old" => {
                "it knows no TLS 1.3: give it newer firmware, or let TLS 1.2 in by the configuration (tls_1_2 = true)"
            }
            "no-common-cipher" => "it offers no cipher that is still safe: give it newer firmware",
            "not-trusted" => {
                "it does not trust our certificate, or not for the name that it dials: check its trust anchor, and the \
                 names in the certificate; a device that was dispatched is dispatched anew after a factory reset"
            }
            "wrong-clock" => {
                "our certificate is not valid by its clock: set the device's clock (NTP), or renew our certificate"
            }
            "no-certificate" => "it shows no certificate of its own: it has no key, or is no device",
            _ => return None,
        })
    }
}

/// Takes devices' connections; one for each listener, shared by its tasks.
#[derive(Clone)]
pub struct Acceptor {
    tls: Arc<rustls::ServerConfig>,
    limits: AcceptLimits,
}

impl Acceptor {
    /// An acceptor with this TLS configuration, see [`server_tls_config`](crate::server_tls_config).
    pub fn new(tls: Arc<rustls::ServerConfig>, limits: AcceptLimits) -> Self {
        Self { tls: capturing(&tls), limits }
    }

    /// Does the TLS handshake and reads the upgrade head, within the deadline. To be called in the connection's own task.
    pub async fn accept(&self, tcp: TcpStream, peer: SocketAddr) -> Result<Arrival, AcceptError> {
        let deadline = self.limits.deadline;
        let accepting = self.accept_unhurried(tcp, peer);
        // On the heap for the time it takes: a handshake's future is large, an uplink's task should not be.
        timeout(deadline, Box::pin(accepting)).await.unwrap_or(Err(AcceptError::Timeout { peer, deadline }))
    }

    async fn accept_unhurried(&self, tcp: TcpStream, peer: SocketAddr) -> Result<Arrival, AcceptError> {
        prepare_socket(&tcp, self.limits.tcp_user_timeout);
        let tls = TlsStream::accept(Arc::clone(&self.tls), tcp).await;
        let transport = Transport::new(tls.map_err(|error| AcceptError::Tls { peer, error })?);
        match read_head(&transport, UpgradeRequest::parse).await {
            Ok((request, early)) => {
                let peer_identity = transport.peer_identity();
                let transport = CloseOnDrop(transport);
                Ok(Arrival { peer, path: request.path.clone(), peer_identity, request, transport, early })
            }
            Err(ReadHeadError::Io(error)) => Err(AcceptError::Gone { peer, error }),
            Err(ReadHeadError::Head(error)) => {
                refuse(transport, error.status(), &error.to_string()).await;
                Err(AcceptError::Head { peer, error })
            }
        }
    }
}

/// A device that asks for an uplink: look at it, then [`accept`](Self::accept) or [`refuse`](Self::refuse) it.
/// Dropping it closes the connection without an answer.
#[derive(Debug)]
pub struct Arrival {
    /// Where it comes from; behind NAT, its router.
    pub peer: SocketAddr,
    /// Path and query that it asked for, without the token.
    pub path: String,
    /// Who it is by its client certificate; the possession of the key is proved, names are claims.
    pub peer_identity: Option<PeerIdentity>,
    request: UpgradeRequest,
    transport: CloseOnDrop,
    early: Bytes,
}

impl Arrival {
    /// Its access token, from `Authorization: Bearer` or the query parameter of RFC 6750 §2.3.
    pub fn bearer_token(&self) -> Option<&BearerToken> {
        self.request.token.as_ref()
    }

    /// Native or WebSocket.
    pub fn carrier(&self) -> Carrier {
        self.request.carrier
    }

    /// The `Host` header that it sent: how it calls us.
    pub fn host(&self) -> Option<&str> {
        self.request.host.as_deref()
    }

    /// The `User-Agent` that it sent; unverified, at most 200 characters.
    pub fn user_agent(&self) -> Option<&str> {
        self.request.user_agent.as_deref()
    }

    /// The TLS exporter of this connection, to bind a proof to it; stays usable while the uplink stands.
    pub fn exporter(&self) -> Exporter {
        self.transport.0.exporter()
    }

    /// Answers with an HTTP status (4xx or 5xx) and the reason as text, then closes TLS in order, so that the device
    /// can show why. Takes a second if the device does not read.
    pub async fn refuse(self, status: u16, reason: &str) {
        refuse(self.transport.0.clone(), status, reason).await;
    }

    /// Answers `503` with the reason, when to come again (`Retry-After`) and where else to dial (`Homing-Uplinks`): for a
    /// server that is about to stop, or full.
    pub async fn refuse_for_now(self, reason: &str, later: &Later) {
        let mut headers = format!("Retry-After: {}\r\n", later.retry_after.as_secs().max(1));
        if !later.elsewhere.is_empty() {
            headers.push_str(&format!("{}: {}\r\n", upgrade::UPLINKS_HEADER, later.elsewhere.join(", ")));
        }
        refuse_with(self.transport.0.clone(), 503, &headers, reason).await;
    }

    /// Answers `101` and begins HTTP/2. Nothing happens until the driver runs.
    pub async fn accept(self, settings: UplinkSettings) -> Result<(Uplink, UplinkDriver), EndReason> {
        let Self { request, transport: connection, early, .. } = self;
        let mut transport = connection.0.clone();
        let io_failed = |error: io::Error| EndReason::Io(error.to_string());
        transport.write_all(request.switching_protocols().as_bytes()).await.map_err(io_failed)?;
        transport.flush().await.map_err(io_failed)?;
        // What a device sends before the 101 is over would be HTTP/2; WebSocket frames begin after it too.
        transport.begin(early, (request.carrier == Carrier::WebSocket).then_some(Role::Server), true);
        Ok(UplinkDriver::begin(connection, settings))
    }
}

pub(crate) enum ReadHeadError {
    Io(io::Error),
    Head(HeadError),
}

/// Reads a head of at most [`upgrade::HEAD_MAX`] bytes, and returns what came behind it too.
pub(crate) async fn read_head<H>(
    transport: &Transport,
    parse: impl Fn(&[u8]) -> Result<Option<(H, usize)>, HeadError>,
) -> Result<(H, Bytes), ReadHeadError> {
    let mut transport = transport.clone();
    let mut bytes = BytesMut::with_capacity(1024);
    loop {
        if transport.read_buf(&mut bytes).await.map_err(ReadHeadError::Io)? == 0 {
            return Err(ReadHeadError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        if let Some((head, length)) = parse(&bytes).map_err(ReadHeadError::Head)? {
            return Ok((head, bytes.freeze().slice(length..)));
        }
    }
}

async fn refuse(transport: Transport, status: u16, reason: &str) {
    refuse_with(transport, status, "", reason).await;
}

/// `headers`: whole lines, each with its end.
async fn refuse_with(mut transport: Transport, status: u16, headers: &str, reason: &str) {
    let reason = &reason[..reason.floor_char_boundary(REASON_MAX)];
    // It is gathered now and sent by closing; if the device has gone there is nobody to tell.
    let _ = transport.write_all(upgrade::refusal(status, headers, &shown(reason)).as_bytes()).await;
    transport.close().await;
}

/// No delay for small packets, and a limit on unacknowledged ones; failures cost latency, not function.
pub(crate) fn prepare_socket(tcp: &TcpStream, user_timeout: Duration) {
    let _ = tcp.set_nodelay(true);
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let _ = socket2::SockRef::from(tcp).set_tcp_user_timeout(Some(user_timeout));
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = user_timeout;
}
