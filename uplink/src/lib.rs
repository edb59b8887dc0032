//! ONVIF Uplink 26.06, both ends: a device behind a NAT dials out, and its server sends it HTTP requests.
//!
//! ```text
//! device: Dialer::dial ──TCP, TLS 1.3, both authenticated──▶ server: Acceptor::accept
//!         GET / Upgrade: h2c-reverse ─────────────────────▶  Arrival::accept (or refuse, with the reason)
//!         DialedUplink::serve (HTTP/2 server) ◀───requests── Uplink::request, Uplink::open_websocket
//! ```
//!
//! | to | use |
//! |---|---|
//! | keep an uplink up | [`Keep`], or [`Dialer`] and [`DialedUplink::serve`] with a [`Service`] |
//! | take devices | [`Acceptor`], [`Arrival`], [`UplinkDriver`] |
//! | reach a device | [`Uplink`], [`WebSocketStream`] |
//! | know who it is | [`PeerIdentity`], [`Fingerprint`], [`Exporter`] |
//!
//! Both ways of ONVIF to carry it are there: native `h2c-reverse`, and a WebSocket with that subprotocol (`wss:`).
//!
//! HTTP/2 runs on the bytes of `transport.rs`: at the server's end by our own codec (`engine/`), which keeps nothing while an
//! uplink is idle; at the device's by the `h2` crate (`serve.rs`). Streams of both are the same from outside (`halves.rs`).
//!
//! Not here: which devices to admit, what requests mean, where keys are kept. Nothing here knows of Homing.

#![forbid(unsafe_code)]

mod accept;
mod address;
mod backoff;
mod body;
mod dial;
mod engine;
mod exporter;
mod flood;
mod gate;
mod halves;
mod hop;
mod keep;
mod liveness;
mod pace;
mod serve;
mod stream;
mod tls;
mod tls_stream;
mod transport;
mod upgrade;
mod uplink;
pub mod websocket;

pub use accept::{AcceptError, AcceptLimits, Acceptor, Arrival, Later};
pub use address::{AddressError, Carrier, HttpProxy, UplinkAddress};
pub use backoff::{Backoff, BackoffSettings};
pub use body::{Body, BodyError, BodySender};
pub use dial::{DialError, DialedUplink, Dialer};
pub use flood::FloodGuard;
pub use hop::strip_hop_by_hop;
pub use keep::{Keep, UplinkState};
pub use pace::Pace;
pub use serve::{Incoming, RespondError, ServeSettings, Service, UplinkInfo};
pub use stream::WebSocketStream;
pub use tls::{
    AnyDeviceKey, CertificateError, Fingerprint, FingerprintError, INTERMEDIATES_MAX, PeerIdentity,
    TlsPolicy, client_tls_config, crypto_provider, roots_from_pem, server_tls_config,
};
pub use tls_stream::HandshakeError;
pub use transport::{Exporter, ExporterError};
pub use upgrade::{BearerToken, HeadError};
pub use uplink::{OpenError, PendingAnswer, RequestError, Uplink, UplinkDriver, UplinkSettings, UplinkStats};

pub(crate) use upgrade::shown;
pub use upgrade::websocket_accept;

/// Why an uplink ended, at either end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndReason {
    /// The other end closed it in order.
    #[error("the other end closed the uplink")]
    PeerClosed,
    /// Nothing came from the other end, no answer to a ping either.
    #[error("nothing came from the other end for {seconds} s")]
    Silent {
        /// How long.
        seconds: u64,
    },
    /// TCP or TLS failed.
    #[error("the connection broke: {0}")]
    Io(String),
    /// The other end broke HTTP/2's rules, or said that we did.
    #[error("HTTP/2 failed: {0}")]
    Protocol(String),
    /// The other end sent control frames beyond every use, and kept its worker from the others.
    #[error("the other end flooded the uplink with {frames}: it is broken, or hostile")]
    Flooded {
        /// The kind that was too many.
        frames: &'static str,
    },
    /// The same device connected again.
    #[error("the device connected again, which replaced this uplink")]
    Replaced,
    /// This end was told to stop.
    #[error("this end is stopping")]
    Stopped,
    /// This end closed it for a reason of its own.
    #[error("{0}")]
    Closed(String),
}
