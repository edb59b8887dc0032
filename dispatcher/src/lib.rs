//! The dispatcher: where a device phones first, and is told where its owner's tunnel server is.
//!
//! | module | what | step |
//! |---|---|---|
//! | [`accounts`] | who may register devices here | 2 relay |
//! | `gate`, `limits` | who is let in, and what it may do | 2 relay |
//! | [`attempts`] | wrong secrets: counted, slowed, shown | 2, 4, 5 |
//! | `api` | what tunnel servers and the operator ask | 2 relay |
//! | `devices` | who has phoned home and waits | 4 phone-home |
//! | `dispatch` | OAK proof, log-in, trust anchor, address | 5 dispatch |
//! | `vouch` | whose key is believed without a proof | 5 dispatch |
//! | [`lists`] | manufacturers' lists: the OAK of every device that left the factory | 2 relay |
//! | [`audit`] | who did what, in a log that only grows | 2, 5 |
//! | `claims`, `offers` | who of several accounts has a device, and how it goes to another | 2, 5 |
//! | `store` | registrations, their secrets sealed and then forgotten | 2, 5 |
//!
//! Not here: the tunnel. A device is at the dispatcher for seconds, or waits idle for its registration.

pub mod accounts;
mod api;
pub mod attempts;
pub mod audit;
mod claims;
mod config;
mod devices;
mod dispatch;
mod gate;
mod limits;
pub mod lists;
mod metrics;
mod offers;
mod store;
mod vouch;

pub use claims::release;
pub use config::{Config, DeviceKeys, MAY_CHANGE, REFERENCE};

use anyhow::Context;
use attempts::Counted;
use axum::{
    extract::Request,
    http::{HeaderMap, header},
};
use devices::{Devices, Room};
use homing_base::{
    Live, Ops, Stop, Workers,
    crowd::Crowd,
    http, listen,
    live::Reloaded,
    rate::Rate,
    throttle::{Throttle, Tolerance},
    tls::{LEAF_LIFE, Leaf, PrivateCa, expiry, server_config},
    vault,
};
use homing_protocol::Secret;
use homing_uplink::{AcceptLimits, Acceptor, TlsPolicy, server_tls_config};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use store::Store;
use tokio::{net::TcpListener, time::Instant};

/// How often offers and signposts are looked through.
const SWEPT_EVERY: Duration = Duration::from_secs(3600);

/// A dispatcher whose sockets and files are open; [`run`](Self::run) it.
pub struct Bound {
    config: Live<Config>,
    crowd: Arc<Crowd>,
    external: TcpListener,
    api: TcpListener,
    external_addr: SocketAddr,
    api_addr: SocketAddr,
    ca: Option<Arc<PrivateCa>>,
    leaf: Arc<Leaf>,
    store: Arc<Store>,
    manufacturers: vouch::Manufacturers,
    metrics: metrics::Metrics,
    ops: Ops,
    workers: Workers,
    _lock: std::fs::File,
}

/// Opens database, keys and sockets. Port 0 takes a free one.
///
/// # Errors
/// Names the key of the configuration, the file or the address, and what to check.
pub async fn bind(config: Config, ops: &Ops, workers: &Workers) -> anyhow::Result<Bound> {
    config.check()?;
    let lock = vault::claim_folder(&config.data)?;
    let (ca, leaf) = certificate(&config).context("certificate of the dispatcher")?;
    let manufacturers = vouch::Manufacturers::open(&config.device_anchors)?;
    let store = Arc::new(Store::open(&config.data).await.context("dispatcher")?);
    let external = listen::bind(config.external, "[dispatcher] external, for devices")?;
    let api = listen::bind(config.api, "[dispatcher] api, for tunnel servers")?;
    Ok(Bound {
        external_addr: external.local_addr()?,
        api_addr: api.local_addr()?,
        crowd: Crowd::new(config.connections_per_address),
        config: Live::new(config),
        external,
        api,
        ca,
        leaf,
        store,
        manufacturers,
        metrics: metrics::Metrics::register(ops),
        ops: ops.clone(),
        workers: workers.clone(),
        _lock: lock,
    })
}

/// Whether a request carries the token that the configuration sets; an empty one opens nothing.
fn is_sent(token: &Secret, headers: &HeaderMap) -> bool {
    let sent = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let sent = sent.and_then(|value| value.strip_prefix("Bearer "));
    !token.is_empty() && sent.is_some_and(|sent| token.matches(sent))
}

fn certificate(config: &Config) -> anyhow::Result<(Option<Arc<PrivateCa>>, Arc<Leaf>)> {
    if !config.certificate.as_os_str().is_empty() {
        return Ok((None, Leaf::from_files(&config.certificate, &config.private_key)?));
    }
    let ca = Arc::new(PrivateCa::open(&config.data, "dispatcher")?);
    let leaf = Leaf::issued_by(ca.clone(), config.names.clone(), LEAF_LIFE)?;
    Ok((Some(ca), leaf))
}

impl Bound {
    /// Where devices dial in.
    pub fn external_addr(&self) -> SocketAddr {
        self.external_addr
    }

    /// Where tunnel servers register devices.
    pub fn api_addr(&self) -> SocketAddr {
        self.api_addr
    }

    /// PEM of its own CA, which devices and tunnel servers are to trust; none if the certificate was
    /// given by configuration, and then they trust whoever issued that.
    pub fn trust_anchor(&self) -> Option<String> {
        self.ca.as_ref().map(|ca| ca.trust_anchor())
    }

    /// What changes its configuration while it runs.
    pub fn reloader(&self) -> Reloader {
        Reloader { config: self.config.clone(), crowd: Arc::clone(&self.crowd), leaf: Arc::clone(&self.leaf) }
    }

    /// Serves until told to stop; connections then end within the role's drain deadline.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub async fn run(self, stop: Stop) -> anyhow::Result<()> {
        let config = self.config.get();
        let policy = if config.tls_1_2 { TlsPolicy::Tls12AndUp } else { TlsPolicy::Tls13 };
        let device_tls = server_tls_config(self.leaf.clone(), policy).context("TLS for devices")?;
        let api_tls = server_config(self.leaf.clone())?;
        let counted = Counted::open(self.store.writer().clone(), self.metrics.clone()).await?;
        let counted = Arc::new(counted);
        let devices = Arc::new(Devices {
            store: self.store.clone(),
            acceptor: Acceptor::new(Arc::new(device_tls), AcceptLimits::default()),
            metrics: self.metrics.clone(),
            counted: counted.clone(),
            workers: self.workers,
            crowd: self.crowd,
            rate: Rate::default(),
            config: self.config.clone(),
            stop: stop.clone(),
            room: Room::new(),
            told: Throttle::new(Tolerance::LOG),
            manufacturers: self.manufacturers,
        });
        let vault = self.store.vault().clone();
        stop.spawn(housekeeping(self.store.clone(), counted.clone(), stop.clone()));
        let api =
            Arc::new(api::Api::new(self.config.clone(), self.store, devices.clone(), counted, self.metrics));
        let live = self.config;
        let knows = move |request: &Request| is_sent(&live.get().metrics_token, request.headers());
        let router = api.router().merge(self.ops.router("Bearer", knows));
        tracing::info!(external = %self.external_addr, api = %self.api_addr, "dispatcher is ready");
        self.ops.report("dispatcher", Ok(()));
        stop.spawn(self.leaf.clone().keep_fresh(stop.clone()));
        stop.spawn(vault.keep(stop.clone()));
        let certificates = {
            let leaf = self.leaf;
            Arc::new(move || leaf.expiries("devices and tunnel servers"))
        };
        stop.spawn(expiry::watch("dispatcher", self.ops.clone(), certificates, stop.clone()));
        let handle = move |tcp, peer| devices.clone().handle(tcp, peer);
        tokio::join!(
            http::serve(self.api, router, Some(api_tls), stop.clone()),
            listen::accept_loop(self.external, config.connections, stop, handle),
        );
        Ok(())
    }
}

/// Changes a dispatcher's configuration while it runs; cheap to clone.
#[derive(Clone)]
pub struct Reloader {
    config: Live<Config>,
    crowd: Arc<Crowd>,
    leaf: Arc<Leaf>,
}

impl Reloader {
    /// Takes over what differs between two readings of the file and may change ([`MAY_CHANGE`]); certificates in PEM files
    /// are read again, too. Which keys did, and which need a restart, is in the answer.
    ///
    /// # Errors
    /// What is wrong with the new configuration; then the one before goes on.
    pub fn reload(&self, before: &Config, now: &Config) -> anyhow::Result<Reloaded<Config>> {
        let reloaded = Reloaded::of(&*self.config.get(), before, now, MAY_CHANGE)?;
        reloaded.config.check()?;
        self.leaf.refresh().context("[dispatcher] certificate")?;
        self.crowd.set_limit(reloaded.config.connections_per_address);
        self.config.set(reloaded.config.clone());
        Ok(reloaded)
    }
}

/// Writes counts that nobody waits for, and forgets offers and signposts that have had their time.
async fn housekeeping(store: Arc<Store>, counted: Arc<Counted>, stop: Stop) {
    let mut swept = Instant::now();
    loop {
        let is_last = tokio::select! {
            () = tokio::time::sleep(attempts::WRITTEN_EVERY) => false,
            () = stop.cancelled() => true,
        };
        let mut done = counted.write().await;
        if swept.elapsed() >= SWEPT_EVERY {
            swept = Instant::now();
            done = done.and(store.sweep().await);
        }
        if let Err(error) = done {
            tracing::error!(error = format!("{error:#}"), "the dispatcher's database was not tidied");
        }
        if is_last {
            return;
        }
    }
}
