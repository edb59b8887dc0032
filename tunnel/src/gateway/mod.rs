//! The RTSP gateway: `rtsp://host:8554/SERIAL[/path…]` for any RTSP client (step 7, seen from the VMS).
//!
//! ```text
//!  VLC, ffmpeg, VMS ──▶ viewer.rs ─▶ dialogue.rs ─▶ door.rs            who may
//!        ▲                  │            ├──▶ url.rs, sdp.rs           what is meant, rewritten
//!        └── TCP, TLS       │            └──▶ streams.rs ─▶ upstream.rs ─▶ uplink ─▶ device
//!        └── udp.rs ◀───────┴─────── hub.rs ◀──────────────────┘       one stream, all its viewers
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`viewer`] | one client: bytes and time |
//! | [`dialogue`] | what its requests are answered with |
//! | [`door`] | users, Digest, guessing |
//! | [`streams`], [`upstream`] | one stream for each device and path, and the RTSP session that it comes by |
//! | [`hub`] | what came, and each viewer's place in it |
//! | [`url`], [`sdp`] | pure: URLs and descriptions that lead here |
//! | [`udp`] | ports of viewers that insist on UDP |
//!
//! Not here: the RTSP client (`base/src/rtsp.rs`), recordings.
//!
//! Invariant: one upstream packet is kept once, however many watch; what one viewer does is noticed by no other, and by
//! no device.

mod dialogue;
mod door;
mod hub;
mod sdp;
mod streams;
mod udp;
mod upstream;
mod url;
mod viewer;

use crate::{
    config::{Config, Gateway as Limits, GatewayUser},
    metrics::Metrics,
    reach::TunnelHandle,
};
use door::Door;
use homing_base::{
    Stop,
    door::{Place, Reception, Turned},
    listen,
    tls::{self, Leaf},
};
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use streams::Streams;
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use viewer::{Counted, Outcome, Viewer};

/// For a client's TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A gateway whose sockets are open.
pub(crate) struct Bound {
    rtsp: Option<TcpListener>,
    rtsps: Option<TcpListener>,
}

/// What all its connections share.
struct Shared {
    door: Door,
    streams: Arc<Streams>,
    reception: Reception,
    stop: Stop,
}

/// Opens what is configured; nothing, by default.
pub(crate) fn bind(config: &Limits) -> anyhow::Result<Bound> {
    let open = |key: &str, address: &str| {
        let address = Limits::address(key, address)?;
        address.map(|address| listen::bind(address, &format!("[tunnel.gateway] {key}"))).transpose()
    };
    Ok(Bound { rtsp: open("rtsp", &config.rtsp)?, rtsps: open("rtsps", &config.rtsps)? })
}

impl Bound {
    /// Where RTSP clients connect.
    pub fn rtsp_addr(&self) -> Option<SocketAddr> {
        self.rtsp.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// The same inside TLS.
    pub fn rtsps_addr(&self) -> Option<SocketAddr> {
        self.rtsps.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Serves until the role stops.
    ///
    /// # Errors
    /// When the certificate cannot be used.
    pub fn run(
        self,
        config: &Config,
        tunnel: TunnelHandle,
        metrics: Arc<Metrics>,
        leaf: Arc<Leaf>,
        stop: &Stop,
    ) -> anyhow::Result<impl Future<Output = ()> + use<>> {
        let limits = config.gateway.clone();
        let acceptor = TlsAcceptor::from(tls::server_config_for(leaf, config.vms.tls_1_2, &[b"http/1.1"])?);
        let own = GatewayUser { name: config.user.clone(), password: config.password.clone() };
        let users = if limits.users.is_empty() { vec![own] } else { limits.users.clone() };
        let connections = limits.connections;
        if self.rtsp.is_some() || self.rtsps.is_some() {
            tracing::info!(
                rtsp = ?self.rtsp_addr(), rtsps = ?self.rtsps_addr(), users = users.len(), "RTSP gateway runs"
            );
        }
        let shared = Arc::new(Shared {
            door: Door::new(&users),
            streams: Streams::new(tunnel, limits, metrics, stop.clone()),
            reception: Reception::new(connections, connections / 2),
            stop: stop.clone(),
        });
        Ok(async move {
            let plain = serve(self.rtsp, None, Arc::clone(&shared));
            let encrypted = serve(self.rtsps, Some(acceptor), shared);
            tokio::join!(plain, encrypted);
        })
    }
}

async fn serve(listener: Option<TcpListener>, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let Some(listener) = listener else { return };
    let (stop, room) = (shared.stop.clone(), shared.reception.room());
    listen::accept_loop(listener, room, stop, move |tcp, peer| {
        let (shared, tls) = (Arc::clone(&shared), tls.clone());
        async move {
            let (_admission, place) = match shared.reception.admit(peer.ip()) {
                Ok(admitted) => admitted,
                Err(reason) => return tracing::debug!(%peer, %reason, "an RTSP client's connection closed"),
            };
            let (stop, place) = (shared.stop.clone(), Arc::new(place));
            tokio::select! {
                () = Box::pin(connection(tcp, peer, tls, Arc::clone(&place), shared)) => (),
                () = place.pushed_out() => tracing::debug!(%peer, "an RTSP client was closed: {}", Turned::PushedOut),
                () = stop.cancelled() => (),
            }
        }
    })
    .await;
}

async fn connection(
    tcp: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    place: Arc<Place>,
    shared: Arc<Shared>,
) {
    let _counted = Counted::new(&shared.streams.metrics.gateway_connections);
    let Ok(local) = tcp.local_addr() else { return };
    viewer::prepare(&tcp);
    let Some(tls) = tls else {
        let mut viewer = Viewer::new(tcp, Arc::clone(&shared), place, peer, local, true);
        let Outcome::Move(worker, request) = viewer.run(None).await else { return };
        let moved = viewer.map(TcpStream::into_std);
        let stop = shared.stop.clone();
        let at_home = async move {
            let Ok(Ok(mut viewer)) = moved.map(|viewer| viewer.map(TcpStream::from_std)) else { return };
            let place = viewer.place();
            tokio::select! {
                _ = viewer.run(Some(request)) => (),
                () = place.pushed_out() => (),
                () = stop.cancelled() => (),
            }
        };
        // The connection is counted here until it ends there.
        let _ = shared.stop.spawn_on(at_home, &worker).await;
        return;
    };
    let encrypted = async {
        tcp.peek(&mut [0]).await?;
        shared.reception.turn().await.map_err(io::Error::other)?;
        tls.accept(tcp).await
    };
    match timeout(HANDSHAKE, encrypted).await {
        // Its session cannot move to another runtime; what it costs is the encryption anyway.
        Ok(Ok(stream)) => {
            Viewer::new(stream, shared, place, peer, local, false).run(None).await;
        }
        Ok(Err(error)) => tracing::debug!(%peer, %error, "an RTSP client's TLS handshake failed"),
        Err(_) => tracing::debug!(%peer, "an RTSP client's TLS handshake took too long"),
    }
}
