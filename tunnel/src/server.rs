//! The tunnel server's life: open, run, stop.
//!
//! 1. [`bind`] checks the configuration, opens data, private CA and both sockets. Nothing is answered yet.
//! 2. [`Bound::run`] serves until the role stops: devices outside, the VMS inside, the dispatcher's changes.
//! 3. When it is asked to leave, it refuses what is new and gives the rest time (`leave.rs`).
//! 4. When it stops, both addresses close and each device is told in order. What was answered is on disk already.

use crate::{
    api::{self, Api, ServerFacts},
    callbacks::Callbacks,
    config::{Config, Plain},
    devices::Devices,
    dispatcher::Dispatcher,
    errands::Errands,
    figures, gateway,
    guard::Guard,
    history::History,
    leave::leave,
    metrics::Metrics,
    proxy::{Proxy, Rates},
    public,
    reach::TunnelHandle,
    registrations::Registrations,
    relay::Relay,
    reload::Reloader,
    sites::Sites,
    uplinks::Uplinks,
};
use anyhow::Context;
use homing_base::{
    Live, Ops, Stop, Workers,
    http::{self, Wire},
    tls::{Files, LEAF_LIFE, Leaf, PrivateCa, expiry, server_config_for},
    vault,
};
use homing_protocol::secret::Credentials;
use homing_uplink::UplinkAddress;
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};
use tokio::net::TcpListener;

/// A tunnel server whose files and sockets are open.
pub struct Bound {
    config: Live<Config>,
    ops: Ops,
    workers: Workers,
    external: TcpListener,
    internal: TcpListener,
    gateway: gateway::Bound,
    facts: Arc<ServerFacts>,
    leaf: Arc<Leaf>,
    ca: Arc<PrivateCa>,
    /// The internal address's certificate, where it speaks HTTPS.
    vms_leaf: Option<Arc<Leaf>>,
    devices: Arc<Devices>,
    relay: Arc<Relay>,
    errands: Arc<Errands>,
    callbacks: Arc<Callbacks>,
    neighbours: Arc<str>,
    metrics: Arc<Metrics>,
    guard: Arc<Guard>,
    handle: TunnelHandle,
    _lock: std::fs::File,
}

/// Opens a tunnel server.
///
/// # Errors
/// What is wrong with the configuration, the data folder or an address, and what to check.
pub async fn bind(config: Config, ops: &Ops, workers: &Workers) -> anyhow::Result<Bound> {
    config.check()?;
    let lock = vault::claim_folder(&config.data)?;
    let external = homing_base::listen::bind(config.external, "[tunnel] external, for devices")?;
    let internal = homing_base::listen::bind(config.internal, "[tunnel] internal, for the VMS")?;
    // Connections inherit it: a reader that has stopped is dropped by the kernel.
    socket2::SockRef::from(&internal)
        .set_tcp_user_timeout(Some(config.limits.stalled()))
        .context("[tunnel.limits] stalled_ms")?;
    let gateway = gateway::bind(&config.gateway)?;
    let external_addr = external.local_addr().context("external address")?;
    let public = config.public_addresses(external_addr)?;
    let authorities: Vec<String> = public.iter().map(UplinkAddress::authority).collect();

    let ca = Arc::new(PrivateCa::open(&config.data, "tunnel")?);
    let leaf = certificate(&config, &public, &ca)?;
    let internal_addr = internal.local_addr().context("internal address")?;
    let vms_leaf = vms_certificate(&config, internal_addr, gateway.rtsps_addr(), &public, &ca)?;
    let store = Registrations::open(&config.data).await?;
    let history = History::open(&config.data).await?;
    let voucher_key = store.voucher_key().await?;
    let period = figures::period(config.limits.uplink_settings().ping_interval);
    let sites = Sites::open(store.pool(), config.bandwidth, period).await?;
    let (replaces, uplinks) = (config.replace_default_passwords, config.limits.uplinks);
    let devices = Arc::new(Devices::open(store, history, sites, replaces, uplinks).await?);
    let metrics = Arc::new(Metrics::default());
    metrics.register(ops, &devices);
    let dispatcher = Dispatcher::new(
        &config.dispatcher,
        authorities.clone(),
        Arc::clone(&leaf),
        voucher_key,
        Arc::clone(&metrics),
    )?;
    let guard = Arc::new(Guard::new(config.credentials(), config.vms.credentials));
    let config = Live::new(config);
    let relay = Arc::new(Relay::new(Arc::clone(&devices), dispatcher, config.clone()));
    let errands = Arc::new(Errands::new(Arc::clone(&devices), authorities.clone(), config.clone()));
    let neighbours = homing_base::tls::pem_or_file(&config.get().vms.neighbours_trust_anchor);
    let neighbours: Arc<str> =
        neighbours.context("[tunnel.vms] neighbours_trust_anchor")?.unwrap_or_default().into();
    let callbacks = Arc::new(Callbacks::new(
        &config.get().callbacks,
        &config.get().name,
        Arc::clone(&devices),
        Arc::clone(&relay),
        authorities.clone(),
        Arc::clone(&neighbours),
    )?);
    let name = config.get().name.clone();
    let handle = TunnelHandle::new(&name, Arc::clone(&devices));
    let facts = Arc::new(ServerFacts { name, external: external_addr, public: authorities });
    let (ops, workers) = (ops.clone(), workers.clone());
    Ok(Bound {
        config,
        ops,
        workers,
        external,
        internal,
        gateway,
        facts,
        leaf,
        ca,
        vms_leaf,
        devices,
        relay,
        errands,
        callbacks,
        neighbours,
        metrics,
        guard,
        handle,
        _lock: lock,
    })
}

/// The external certificate, and with it what devices are told to trust: browsers' anchors, where a certificate is given
/// and none with it.
pub(crate) fn certificate(
    config: &Config,
    public: &[UplinkAddress],
    ca: &Arc<PrivateCa>,
) -> anyhow::Result<Arc<Leaf>> {
    if !config.certificate.as_os_str().is_empty() {
        let anchor = Some(config.trust_anchor.as_path()).filter(|path| !path.as_os_str().is_empty());
        let by_name = |address: &&UplinkAddress| address.host().parse::<std::net::IpAddr>().is_err();
        if let (None, Some(address)) = (anchor, public.iter().find(|address| !by_name(address))) {
            anyhow::bail!(
                "[tunnel] trust_anchor is missing: without it devices trust what browsers trust, which is for DNS \
                 names, and public has {}",
                address.authority()
            );
        }
        let leaf = Leaf::from_files_with_anchor(&config.certificate, &config.private_key, anchor);
        return leaf.context("[tunnel] certificate");
    }
    let names = public.iter().map(|address| address.host().to_owned()).collect();
    Leaf::issued_by(Arc::clone(ca), names, LEAF_LIFE)
}

/// What the VMS is shown, at the internal address and at RTSPS.
fn vms_certificate(
    config: &Config,
    internal: SocketAddr,
    rtsps: Option<SocketAddr>,
    public: &[UplinkAddress],
    ca: &Arc<PrivateCa>,
) -> anyhow::Result<Option<Arc<Leaf>>> {
    let vms = &config.vms;
    let files = Files { certificate: &vms.certificate, key: &vms.private_key, key_name: "private_key" };
    let mut names = vms.known_as(internal);
    let further = match rtsps {
        Some(rtsps) if !rtsps.ip().is_unspecified() => vec![rtsps.ip().to_canonical().to_string()],
        // On every address: by the names that are known of this machine.
        Some(_) => public.iter().map(|address| address.host().to_owned()).collect(),
        None => Vec::new(),
    };
    for name in further {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    vms.tls.leaf(|| Ok(Arc::clone(ca)), names, files).context("[tunnel.vms]")
}

impl Bound {
    /// Where devices dial in.
    pub fn external_addr(&self) -> SocketAddr {
        self.facts.external
    }

    /// Where the VMS asks.
    ///
    /// # Panics
    /// Never: the socket is open.
    pub fn internal_addr(&self) -> SocketAddr {
        self.internal.local_addr().expect("a socket that is open has an address")
    }

    /// Where RTSP clients connect; none: nowhere.
    pub fn rtsp_addr(&self) -> Option<SocketAddr> {
        self.gateway.rtsp_addr()
    }

    /// The same inside TLS.
    pub fn rtsps_addr(&self) -> Option<SocketAddr> {
        self.gateway.rtsps_addr()
    }

    /// How who is on this machine reaches the internal address: its URL, and for HTTPS whom to trust there (PEM; empty:
    /// what browsers trust).
    pub fn internal_url(&self) -> (String, String) {
        let mut address = self.internal_addr();
        if address.ip().is_unspecified() {
            address.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        // Nobody listens there, and the certificate may be for other names.
        let plain = address.ip().to_canonical().is_loopback() && self.config.get().vms.plain != Plain::Nobody;
        match self.vms_leaf.as_ref().filter(|_| !plain) {
            Some(leaf) => (format!("https://{address}"), leaf.trust_anchor()),
            None => (format!("http://{address}"), String::new()),
        }
    }

    /// The tunnel server in process.
    pub fn handle(&self) -> TunnelHandle {
        self.handle.clone()
    }

    /// What changes its configuration while it runs.
    pub fn reloader(&self) -> Reloader {
        Reloader {
            config: self.config.clone(),
            devices: Arc::clone(&self.devices),
            relay: Arc::clone(&self.relay),
            guard: Arc::clone(&self.guard),
            leaf: Arc::clone(&self.leaf),
            vms_leaf: self.vms_leaf.clone(),
        }
    }

    /// Serves until the role stops. What it has spawned is in `stop`: drain it to wait for the last connection.
    ///
    /// # Errors
    /// When the external certificate cannot be used.
    pub async fn run(self, stop: Stop) -> anyhow::Result<()> {
        let tls = homing_uplink::server_tls_config(
            Arc::clone(&self.leaf) as Arc<dyn rustls::server::ResolvesServerCert>,
            self.config.get().tls_policy(),
        )
        .context("external certificate")?;
        let uplinks = Arc::new(Uplinks::new(
            Arc::new(tls),
            Arc::clone(&self.devices),
            Arc::clone(&self.metrics),
            self.workers.clone(),
            self.config.clone(),
            self.facts.public.clone(),
            Arc::clone(&self.callbacks),
        ));
        let (internal, vms) = (self.internal_addr(), self.config.get().vms.clone());
        for warning in vms.warnings(internal) {
            tracing::warn!("{warning}");
        }
        let guard = self.guard;
        let api = Api {
            devices: Arc::clone(&self.devices),
            relay: Arc::clone(&self.relay),
            tunnel: self.handle.clone(),
            metrics: Arc::clone(&self.metrics),
            guard: Arc::clone(&guard),
            stop: stop.clone(),
            server: Arc::clone(&self.facts),
            plain: vms.plain,
            known_as: vms.known_as(internal).into(),
            factory: Credentials::new(vms.device_user.clone(), vms.device_password.clone()),
            neighbours: self.neighbours,
        };
        let gateway = self.gateway.run(
            &self.config.get(),
            self.handle.clone(),
            Arc::clone(&self.metrics),
            // Without HTTPS there is no other.
            Arc::clone(self.vms_leaf.as_ref().unwrap_or(&self.leaf)),
            &stop,
        )?;
        let rates = Arc::new(Rates::new(self.config.clone()));
        let limits = self.config.get().limits.internal(self.metrics.limited("connections-per-address"));
        let metrics = Arc::clone(&self.metrics);
        let proxy = Proxy {
            tunnel: self.handle,
            devices: Arc::clone(&self.devices),
            guard,
            metrics,
            rates,
            ca: self.ca,
            tls_1_2: vms.tls_1_2,
            stop: stop.clone(),
        };
        let tls = match &self.vms_leaf {
            Some(leaf) => Some(server_config_for(Arc::clone(leaf), vms.tls_1_2, &[b"h2", b"http/1.1"])?),
            None => None,
        };
        // Who may not come without TLS is told so, and why.
        let wire =
            Wire { tls, plain: true, http2: true, home: Some(crate::proxy::home(Arc::clone(&self.devices))) };
        let period = figures::period(self.config.get().limits.uplink_settings().ping_interval);
        let service = api::service(api, proxy, &self.ops);
        self.ops.report("tunnel", Ok(()));
        let certificates = {
            let (relay, inside) = (Arc::clone(&self.relay), self.vms_leaf.clone());
            Arc::new(move || {
                let inside = inside.iter().flat_map(|leaf| leaf.expiries("the internal address"));
                relay.dispatcher().certificates().into_iter().chain(inside).collect()
            })
        };
        stop.spawn(expiry::watch("tunnel", self.ops.clone(), certificates, stop.clone()));
        tracing::info!(
            name = self.facts.name,
            external = %self.facts.external,
            public = ?self.facts.public,
            internal = ?self.internal.local_addr().ok(),
            "tunnel server runs"
        );
        let public = self.config.get().public_addresses(self.facts.external)?;
        let vms_leaf_fresh = async {
            if let Some(leaf) = self.vms_leaf {
                leaf.keep_fresh(stop.clone()).await;
            }
        };
        tokio::join!(
            public::watch(
                public,
                self.facts.external,
                Arc::clone(&self.leaf),
                self.ops.clone(),
                stop.clone()
            ),
            uplinks.run(self.external, &stop),
            gateway,
            http::serve_on(self.internal, service, wire, limits, stop.clone()),
            leave(Arc::clone(&self.devices), self.config, self.ops, stop.clone()),
            self.relay.run(&stop),
            self.relay.follow_changes(&stop),
            self.errands.run(&stop),
            self.callbacks.run(&stop),
            figures::run(Arc::clone(&self.devices), self.metrics, period, &stop),
            self.devices.history().run(&stop),
            self.devices.sites().run(&stop),
            self.devices.history().end_with(&stop),
            self.leaf.keep_fresh(stop.clone()),
            vms_leaf_fresh,
            self.devices.store().vault().keep(stop.clone()),
        );
        Ok(())
    }
}
