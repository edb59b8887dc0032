//! The external address: devices dial in (step 6), prove their key and get their tunnel (step 7).
//!
//! A connection's life: accept, a place at the door, a task on the worker that it will stay on, its first byte, its turn,
//! TLS and the upgrade's head under one deadline, then the look-up of its key; only then is it an uplink, and the place is
//! free for the next arrival. Accepting never waits.
//!
//! Invariant: a stranger's connection costs a place, one handshake and one head, for ten seconds at most, and strangers
//! of one network have half of the places; nothing that they say is used but to word the refusal (docs/decisions, 001).

use crate::{
    callbacks::{Callbacks, Verdict},
    config::Config,
    devices::{Connected, Devices, Stranger},
    figures::Meter,
    history::Session,
    metrics::Metrics,
};
use homing_base::{
    Live, Stop, Workers,
    crowd::network,
    door::{Door, Place, Turned},
    throttle::{Throttle, Tolerance},
};
use homing_protocol::{SerialNumber, Step};
use homing_uplink::{
    AcceptLimits, Acceptor, Arrival, Fingerprint, Later, PeerIdentity, Uplink, UplinkAddress, UplinkDriver,
    UplinkSettings,
};
use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Handle,
    sync::OnceCell,
    time::{Instant, timeout},
};

/// Pause after `accept` failed for want of descriptors or memory, so that the loop does not spin.
const ACCEPT_FAILED_PAUSE: Duration = Duration::from_millis(200);

/// For a connection to say anything at all.
const FIRST_BYTE_DEADLINE: Duration = Duration::from_secs(10);

/// Told to devices that come while we stop, or have no room. Those of ours spread theirs over twice as long.
const COME_BACK_AFTER: Duration = Duration::from_secs(5);

/// An uplink that was admitted and is to be run.
struct Standing {
    serial: SerialNumber,
    peer: SocketAddr,
    uplink: Uplink,
    driver: UplinkDriver,
    /// Where the VMS sends it.
    redirect: Option<String>,
    session: Session,
    counted: Counted,
}

/// One of the uplinks that stand.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The door for devices.
pub(crate) struct Uplinks {
    devices: Arc<Devices>,
    metrics: Arc<Metrics>,
    workers: Workers,
    acceptor: Acceptor,
    config: Live<Config>,
    /// Connections that are not admitted yet.
    door: Arc<Door>,
    /// Uplinks that stand.
    standing: Arc<AtomicUsize>,
    /// Our public addresses, `host:port`, best first.
    public: Vec<String>,
    /// Who is asked about devices that come.
    callbacks: Arc<Callbacks>,
    /// Networks of whose failures the log has told lately.
    told: Throttle<IpAddr>,
}

impl Uplinks {
    pub fn new(
        tls: Arc<rustls::ServerConfig>,
        devices: Arc<Devices>,
        metrics: Arc<Metrics>,
        workers: Workers,
        config: Live<Config>,
        public: Vec<String>,
        callbacks: Arc<Callbacks>,
    ) -> Self {
        Uplinks {
            devices,
            metrics,
            workers,
            acceptor: Acceptor::new(tls, AcceptLimits::default()),
            config,
            door: Arc::default(),
            standing: Arc::default(),
            public,
            callbacks,
            told: Throttle::new(Tolerance::LOG),
        }
    }

    /// Takes devices until the role stops.
    pub async fn run(self: Arc<Self>, listener: TcpListener, stop: &Stop) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted.and_then(|(tcp, peer)| Ok((tcp.into_std()?, peer))),
                () = stop.cancelled() => return,
            };
            let (tcp, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accept failed; waiting before the next try");
                    tokio::select! {
                        () = tokio::time::sleep(ACCEPT_FAILED_PAUSE) => continue,
                        () = stop.cancelled() => return,
                    }
                }
            };
            let place = match self.door.enter(peer.ip(), &self.config.get().limits.door(), Instant::now()) {
                Ok(place) => place,
                Err(turned) => {
                    self.turn_away(peer, turned);
                    continue;
                }
            };
            let (this, worker, stop_it) = (Arc::clone(&self), self.workers.next(), stop.clone());
            let on = worker.clone();
            let arriving = async move {
                let admitted = tokio::select! {
                    admitted = this.admit(tcp, peer, worker, &stop_it) => admitted,
                    () = place.pushed_out() => return this.turn_away(peer, Turned::PushedOut),
                    () = stop_it.cancelled() => return,
                };
                drop::<Place>(place);
                if let Some(standing) = admitted {
                    // A task of its own: arriving needs ten times the memory of standing, for a moment.
                    let stop = stop_it.clone();
                    stop_it.spawn(async move { this.stand(standing, stop).await });
                }
            };
            stop.spawn_on(arriving, &on);
        }
    }

    /// Without a byte: whoever floods shall cost as little as possible.
    fn turn_away(&self, peer: SocketAddr, turned: Turned) {
        self.metrics.refuse(turned.reason());
        if self.is_news(peer.ip()) {
            tracing::info!(step = %Step::Connect, %peer, "turned away: {turned}; see [tunnel.limits]");
        }
    }

    /// Whether the log has not told of this network lately.
    fn is_news(&self, peer: IpAddr) -> bool {
        let (network, now) = (network(peer), Instant::now());
        let is_news = self.told.wait(&network, now).is_zero();
        if is_news {
            self.told.handle_wrong(&network, now);
        }
        is_news
    }

    /// Steps 6 and 7: TLS and the upgrade's head; then the key decides.
    async fn admit(
        &self,
        tcp: std::net::TcpStream,
        peer: SocketAddr,
        worker: Handle,
        stop: &Stop,
    ) -> Option<Standing> {
        let arrival = self.arrive(tcp, peer).await?;
        let (fingerprint, serial) = match self.look_up(&arrival) {
            Ok(found) => found,
            Err((word, reason)) => {
                self.metrics.refuse(word);
                arrival.refuse(403, &reason).await;
                return None;
            }
        };
        let verdict = self.callbacks.hello(serial).await;
        if verdict == Verdict::Refuse {
            self.metrics.refuse("by-the-vms");
            tracing::info!(step = %Step::Tunnel, %serial, %peer, "refused: the VMS does not take it");
            arrival.refuse(403, "The VMS of this tunnel server does not take this device now.").await;
            return None;
        }
        let limits = &self.config.get().limits;
        let dialled = dialled(&arrival);
        if stop.is_leaving() {
            self.metrics.refuse("stopping");
            let elsewhere = self.public.iter().filter(|ours| Some(*ours) != dialled.as_ref()).cloned();
            let reason = "This tunnel server is about to stop. Come back in a while, or dial another.";
            let later = Later { retry_after: COME_BACK_AFTER, elsewhere: elsewhere.collect() };
            arrival.refuse_for_now(reason, &later).await;
            return None;
        }
        let counted = Counted(Arc::clone(&self.standing));
        if counted.0.fetch_add(1, Ordering::Relaxed) >= limits.uplinks {
            self.metrics.refuse("full");
            if self.is_news(peer.ip()) {
                tracing::error!(step = %Step::Tunnel, %serial, %peer, "limit of uplinks reached: [tunnel.limits] uplinks");
            }
            let reason = "This tunnel server has as many devices as it may have; its administrator was told.";
            let later = Later { retry_after: COME_BACK_AFTER, elsewhere: Vec::new() };
            arrival.refuse_for_now(reason, &later).await;
            return None;
        }
        let via = self.public.iter().position(|ours| Some(ours) == dialled.as_ref());
        let settings = UplinkSettings { pace: Some(self.devices.pace(serial)), ..limits.uplink_settings() };
        let (uplink, driver) = match arrival.accept(settings).await {
            Ok(accepted) => accepted,
            Err(reason) => {
                self.metrics.refuse("gone");
                tracing::debug!(step = %Step::Tunnel, %serial, %peer, %reason, "gone before it was admitted");
                return None;
            }
        };
        let connected = Connected {
            uplink: uplink.clone(),
            worker,
            peer,
            dialled,
            via,
            meter: Meter::new(Instant::now()),
            rtsp_way: OnceCell::new(),
            first_stream: OnceCell::new(),
            login: Mutex::default(),
        };
        let Some(session) = self.devices.connect(fingerprint, connected) else {
            tracing::info!(step = %Step::Tunnel, %serial, %peer, "no longer welcome");
            return None;
        };
        self.metrics.uplinks_admitted.inc();
        tracing::info!(step = %Step::Tunnel, %serial, %peer, "uplink stands");
        let redirect = match verdict {
            Verdict::Redirect(server) => Some(server),
            _ => None,
        };
        Some(Standing { serial, peer, uplink, driver, session, redirect, counted })
    }

    /// Step 7, for as long as it lasts.
    async fn stand(&self, standing: Standing, stop: Stop) {
        let Standing { serial, peer, uplink, driver, session, redirect, counted } = standing;
        let noting = async {
            if let Err(error) = self.devices.tunnelled(serial).await {
                tracing::error!(%serial, error = format!("{error:#}"), "not stored");
            }
            if let Some(server) = redirect {
                self.callbacks.redirect(serial, server, &stop).await;
            }
            if self.devices.standing(serial).is_some_and(|standing| standing.is_to_tell()) {
                self.devices.for_dispatcher.notify_one();
            }
        };
        // The end is told when it comes, however long a disk takes to note the beginning.
        let carrying = async {
            let reason = driver.run(stop.token().clone()).await;
            self.metrics.uplink_ended(&uplink.stats(), &reason);
            drop(counted);
            self.devices.disconnect(serial, session, &uplink, &reason);
            tracing::info!(step = %Step::Tunnel, %serial, %peer, %reason, "uplink ended");
        };
        tokio::join!(Box::pin(carrying), Box::pin(noting));
    }

    /// Step 6, seen from here.
    async fn arrive(&self, tcp: std::net::TcpStream, peer: SocketAddr) -> Option<Arrival> {
        // From here the socket belongs to this worker's runtime.
        let tcp = TcpStream::from_std(tcp)
            .inspect_err(|error| tracing::warn!(%peer, %error, "connection lost at once"))
            .ok()?;
        // Who is silent takes nobody's turn.
        if !matches!(timeout(FIRST_BYTE_DEADLINE, tcp.readable()).await, Ok(Ok(()))) {
            self.metrics.refuse("silent");
            return None;
        }
        let turn = self.door.turn(&self.config.get().limits.door()).await;
        turn.inspect_err(|turned| self.turn_away(peer, *turned)).ok()?;
        match self.acceptor.accept(tcp, peer).await {
            Ok(arrival) => {
                tracing::debug!(step = %Step::Connect, %peer, carrier = ?arrival.carrier(), "a device dialled");
                Some(arrival)
            }
            Err(error) => {
                self.metrics.refuse(error.reason());
                if let Some(advice) = error.advice()
                    && self.is_news(peer.ip())
                {
                    tracing::info!(%peer, step = %Step::Connect, %error, "refused: {advice}");
                }
                // Scanners do this all day.
                tracing::debug!(step = %Step::Connect, %peer, %error, "connection refused");
                None
            }
        }
    }

    /// Whose key it is; or why it is refused, in a word for metrics and in a sentence for the installer: the device
    /// shows it.
    fn look_up(&self, arrival: &Arrival) -> Result<(Fingerprint, SerialNumber), (&'static str, String)> {
        let Some(identity) = &arrival.peer_identity else {
            return Err((
                "no-certificate",
                "A device shows a certificate of its own here; this one has none.".into(),
            ));
        };
        let (peer, fingerprint, claimed) = (arrival.peer, identity.fingerprint, claimed(identity));
        let claims = claimed.map_or_else(|| "no serial number".to_owned(), |serial| serial.to_string());
        match self.devices.admit(fingerprint, claimed) {
            Ok(serial) => Ok((fingerprint, serial)),
            Err(Stranger::UnknownKey) => {
                tracing::info!(
                    step = %Step::Tunnel, %peer, %fingerprint, claims,
                    "refused: the dispatcher has not vouched for this key"
                );
                let reason = format!(
                    "This tunnel server does not know the key of this device ({claims}): its dispatcher has not \
                     vouched for it. Check that the device is registered here, then press its button."
                );
                Err(("unknown-key", reason))
            }
            Err(Stranger::OtherName { owner }) => {
                tracing::warn!(
                    step = %Step::Tunnel, %peer, %fingerprint, %owner, claims,
                    "refused: the key belongs to another device than its certificate says"
                );
                let reason = format!(
                    "The certificate says {claims}, but its key was vouched for as another device's. \
                     Reset the device, so that it makes a key of its own, and press its button."
                );
                Err(("other-name", reason))
            }
        }
    }
}

/// What the device dialled, as we write addresses.
fn dialled(arrival: &Arrival) -> Option<String> {
    Some(arrival.host()?.parse::<UplinkAddress>().ok()?.authority())
}

/// The serial number that the certificate claims, where it has one of ours.
fn claimed(identity: &PeerIdentity) -> Option<SerialNumber> {
    let names = [&identity.serial_number, &identity.common_name];
    names.into_iter().flatten().find_map(|name| SerialNumber::find_in(name))
}
