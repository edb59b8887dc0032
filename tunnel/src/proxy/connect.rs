//! `CONNECT SERIAL:port`: RTSP, HTTP, or HTTP inside TLS, as the device's access says.
//!
//! An uplink carries requests, not connections (ONVIF Uplink 26.06 §5.1): what a client sends inside CONNECT to 80 or 443
//! is therefore served here, request by request. TLS ends here as well, with a certificate of the tunnel server's own CA
//! for the device's serial number: the device's own could be shown by nobody else, and from here on it is the uplink
//! that encrypts (docs/decisions, 019).

use super::{Proxy, device, forbidden};
use crate::splice::Splice;
use anyhow::Context;
use axum::{body::Body, response::IntoResponse};
use homing_base::{
    http::{Failure, serve_stream},
    tls::{LEAF_LIFE, Leaf, server_config_for},
};
use homing_protocol::{SerialNumber, Step, api::tunnel::Service};
use http::{Request, Response, header};
use hyper::{
    body::Incoming,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::TokioIo;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

/// Between the answer to CONNECT and the connection being ours; and for TLS inside it.
const UPGRADE_DEADLINE: Duration = Duration::from_secs(10);

/// An idle RTSP connection whose client has silently gone is noticed by this.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);

impl Proxy {
    /// What can fail is done before the answer, so that it can be told.
    pub(super) async fn connect(
        &self,
        serial: SerialNumber,
        service: Service,
        peer: SocketAddr,
        mut request: Request<Incoming>,
    ) -> Result<Response<Body>, Failure> {
        let upgrade = hyper::upgrade::on(&mut request);
        match service {
            Service::Rtsp => self.connect_rtsp(serial, peer, upgrade).await?,
            Service::Http => {
                self.tunnel.connected(serial)?;
                let this = self.clone();
                self.stop.spawn(async move {
                    if let Some(client) = upgraded(upgrade).await {
                        this.serve_inside(serial, peer, TokioIo::new(client)).await;
                    }
                });
            }
            Service::Https => {
                self.tunnel.connected(serial)?;
                let acceptor = tokio_rustls::TlsAcceptor::from(self.shown_for(serial)?);
                let this = self.clone();
                self.stop.spawn(async move {
                    let Some(client) = upgraded(upgrade).await else { return };
                    let shaken = acceptor.accept(TokioIo::new(client));
                    match tokio::time::timeout(UPGRADE_DEADLINE, shaken).await {
                        Ok(Ok(tls)) => this.serve_inside(serial, peer, tls).await,
                        Ok(Err(error)) => tracing::debug!(%serial, %peer, %error, "TLS inside CONNECT"),
                        Err(_) => tracing::debug!(%serial, %peer, "TLS inside CONNECT not in time"),
                    }
                });
            }
        }
        Ok(Response::new(Body::empty()))
    }

    async fn connect_rtsp(
        &self,
        serial: SerialNumber,
        peer: SocketAddr,
        upgrade: OnUpgrade,
    ) -> Result<(), Failure> {
        let link = self.tunnel.open_rtsp(serial).await.inspect_err(|error| {
            tracing::debug!(step = %Step::Tunnel, %serial, %error, "CONNECT through the proxy");
        })?;
        let stop = self.stop.clone();
        let splicing = async move {
            let Some(client) = upgraded(upgrade).await else { return };
            let spliced = async {
                match on_this_worker(client) {
                    Ok((tcp, early)) => Splice::new(tcp, early, link.stream).await,
                    Err(other) => Splice::new(TokioIo::new(other), Default::default(), link.stream).await,
                }
            };
            tokio::select! {
                (ended, result) = spliced => {
                    tracing::debug!(%serial, %peer, ?ended, ?result, "RTSP through the proxy ended");
                }
                () = stop.cancelled() => (),
            }
        };
        self.stop.spawn_on(splicing, &link.worker);
        Ok(())
    }

    /// HTTP/1.1 inside a CONNECT: every request goes to this device.
    async fn serve_inside<I>(self, serial: SerialNumber, peer: SocketAddr, io: I)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let stop = self.stop.clone();
        let answer = move |request: Request<Incoming>| {
            let this = self.clone();
            async move {
                let response = match this.inside(serial, request).await {
                    Ok(response) => response,
                    Err(failure) => failure.into_response(),
                };
                this.metrics.proxied(response.status());
                response
            }
        };
        serve_stream(io, peer, answer, stop).await;
    }

    async fn inside(
        &self,
        serial: SerialNumber,
        mut request: Request<Incoming>,
    ) -> Result<Response<Body>, Failure> {
        let named = request.uri().authority().cloned();
        if let Some(other) = named.filter(|named| !device(named).is_ok_and(|named| named == serial)) {
            return Err(forbidden(format!("This connection leads to {serial}, not to {other}.")));
        }
        if request.method() == http::Method::CONNECT {
            return Err(forbidden("There is no CONNECT inside CONNECT.".to_owned()));
        }
        if let Some(response) = self.refusal_of(serial) {
            return Ok(response);
        }
        // The path alone: which port or scheme the client believes in is not the device's business.
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = path.map_or_else(|| http::Uri::from_static("/"), http::Uri::from);
        request
            .headers_mut()
            .entry(header::HOST)
            .or_insert(serial.host().parse().map_err(anyhow::Error::from)?);
        // It may have been changed since.
        let access = self.devices.access(serial).unwrap_or_default();
        self.forward(serial, &access, request).await
    }

    /// Our TLS in the device's name.
    fn shown_for(&self, serial: SerialNumber) -> anyhow::Result<Arc<rustls::ServerConfig>> {
        let host = serial.host();
        let bytes: Vec<&str> = (0..host.len()).step_by(2).filter_map(|at| host.get(at..at + 2)).collect();
        let names = vec![host.clone(), bytes.join("-")];
        let leaf =
            Leaf::issued_by(Arc::clone(&self.ca), names, LEAF_LIFE).context("certificate for a device")?;
        server_config_for(leaf, self.tls_1_2, &[b"http/1.1"])
    }
}

async fn upgraded(upgrade: OnUpgrade) -> Option<Upgraded> {
    tokio::time::timeout(UPGRADE_DEADLINE, upgrade).await.ok()?.ok()
}

/// Takes a plain client's socket out of the HTTP server and onto the runtime of the device, where a packet costs no switch
/// between threads. A client that comes in TLS or HTTP/2 stays where it is.
fn on_this_worker(upgraded: Upgraded) -> Result<(TcpStream, bytes::Bytes), Upgraded> {
    let parts = upgraded.downcast::<TokioIo<TcpStream>>()?;
    let tcp = parts.io.into_inner();
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE_IDLE);
    // Without it an idle client that vanished holds its stream until the device ends it.
    let _ = socket2::SockRef::from(&tcp).set_tcp_keepalive(&keepalive);
    let moved = tcp.into_std().and_then(TcpStream::from_std);
    Ok((moved.expect("a socket that a runtime had, another one takes"), parts.read_buf))
}
