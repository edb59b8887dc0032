//! Our end of each tunnel server's API: one event stream that is kept open (steps 2 to 7 as they
//! happen), and the calls of steps 1 and 8.
//!
//! Invariant: [`World`] says that a tunnel server is reachable exactly while its event stream is open.
//! After a cut the stream goes on where it was, and every change in between is taken in, in order; where
//! the tunnel server does not know them any more, it tells everything anew.

use crate::{config, recording::Recording, sse, world::World};
use homing_base::{
    Stop,
    client::{ApiClient, Auth, CallError},
};
use homing_protocol::{
    SerialNumber,
    api::{
        ProblemDetail,
        dispatcher::Offer,
        tunnel::{
            ChangeDevice, Connection, Device, Figures, Move, NewDevice, Reset, Server, Site, SiteChange,
        },
    },
    secret::Credentials,
};
use http::Method;
use http_body_util::BodyExt;
use rand::Rng;
use serde::Deserialize;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::sync::watch;

/// Between attempts: grows from the first to the last, each with jitter.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(15);

/// A stream that stood so long was a good one: the next attempt begins with the first interval.
const STABLE: Duration = Duration::from_secs(30);

/// Event streams are kept alive by comments; one that is silent for so long is dead.
const SILENCE: Duration = Duration::from_secs(45);

/// How often a tunnel server is asked about itself (its dispatcher may have gone).
const SELF_CHECK: Duration = Duration::from_secs(5);

/// One tunnel server. Cheap to clone.
#[derive(Clone)]
pub struct TunnelServer {
    name: String,
    client: ApiClient,
    /// Told each time its event stream has opened.
    reached: Arc<watch::Sender<()>>,
}

impl TunnelServer {
    /// As configured.
    ///
    /// # Errors
    /// When its address cannot be read.
    pub fn new(config: &config::TunnelServer) -> anyhow::Result<Self> {
        let role = format!("tunnel server {:?}", config.name);
        let auth = if config.user.is_empty() { Auth::Nobody } else { Auth::Basic(config.credentials()) };
        let trust = config.trust_anchor_pem()?;
        let client = ApiClient::new(&role, &config.url, &auth, trust.as_deref())?;
        Ok(TunnelServer { name: config.name.clone(), client, reached: Arc::default() })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Changes each time it is reached again.
    pub fn reached(&self) -> watch::Receiver<()> {
        self.reached.subscribe()
    }

    /// Step 1.
    ///
    /// # Errors
    /// The tunnel server's own refusal, or that it cannot be reached.
    pub async fn register(&self, device: &NewDevice) -> Result<Device, CallError> {
        self.client.send(Method::POST, "/api/v1/devices", device).await
    }

    /// A device as it is now.
    ///
    /// # Errors
    /// As [`TunnelServer::register`].
    pub async fn device(&self, serial: SerialNumber) -> Result<Device, CallError> {
        self.client.get(&format!("/api/v1/devices/{serial}")).await
    }

    /// Renames a device, or corrects its registration.
    ///
    /// # Errors
    /// As [`TunnelServer::register`].
    pub async fn change(&self, serial: SerialNumber, change: &ChangeDevice) -> Result<Device, CallError> {
        self.client.send(Method::PATCH, &format!("/api/v1/devices/{serial}"), change).await
    }

    /// Releases a device.
    ///
    /// # Errors
    /// As [`TunnelServer::register`].
    pub async fn unregister(&self, serial: SerialNumber) -> Result<(), CallError> {
        self.client.send::<(), ()>(Method::DELETE, &format!("/api/v1/devices/{serial}"), &()).await
    }

    /// What it says of itself: where devices dial it, and whom they trust there.
    ///
    /// # Errors
    /// As [`TunnelServer::register`].
    pub async fn server(&self) -> Result<Server, CallError> {
        self.client.get("/api/v1/server").await
    }

    /// A registration with its secrets and the device's key, for another tunnel server.
    ///
    /// # Errors
    /// As [`TunnelServer::register`].
    pub async fn handover(&self, serial: SerialNumber) -> Result<NewDevice, CallError> {
        self.client.get(&format!("/api/v1/devices/{serial}/handover")).await
    }

    /// Has a device go to another tunnel server.
    ///
    /// # Errors
    /// As [`TunnelServer::register`].
    pub async fn begin_move(&self, serial: SerialNumber, to: &Move) -> Result<Device, CallError> {
        self.client.send(Method::PUT, &format!("/api/v1/devices/{serial}/move"), to).await
    }

    /// Has a device stay, or takes it in again.
    ///
    /// # Errors
    /// As [`TunnelServer::register`].
    pub async fn undo_move(&self, serial: SerialNumber) -> Result<Device, CallError> {
        self.client.send(Method::DELETE, &format!("/api/v1/devices/{serial}/move"), &()).await
    }

    /// Offers a device to another dispatcher account.
    ///
    /// # Errors
    /// As [`TunnelServer::register`].
    pub async fn offer(&self, serial: SerialNumber, offer: &Offer) -> Result<(), CallError> {
        self.client.send(Method::PUT, &format!("/api/v1/devices/{serial}/offer"), offer).await
    }

    /// Withdraws an offer.
    ///
    /// # Errors
    /// As [`TunnelServer::register`].
    pub async fn withdraw_offer(&self, serial: SerialNumber) -> Result<(), CallError> {
        self.client.send::<(), ()>(Method::DELETE, &format!("/api/v1/devices/{serial}/offer"), &()).await
    }

    /// The device's own user and password, for step 8 and for an administrator who asks.
    ///
    /// # Errors
    /// As [`TunnelServer::register`].
    pub async fn credentials(&self, serial: SerialNumber) -> Result<Credentials, CallError> {
        self.client.get(&format!("/api/v1/devices/{serial}/credentials")).await
    }

    /// What changes all the time about its devices that are connected.
    ///
    /// # Errors
    /// As [`TunnelServer::register`].
    pub async fn figures(&self) -> Result<Vec<Figures>, CallError> {
        self.client.get("/api/v1/figures").await
    }

    /// A device's last connections.
    ///
    /// # Errors
    /// As [`TunnelServer::register`].
    pub async fn history(&self, serial: SerialNumber) -> Result<Vec<Connection>, CallError> {
        self.client.get(&format!("/api/v1/devices/{serial}/history")).await
    }

    /// What it knows of sites.
    ///
    /// # Errors
    /// As [`TunnelServer::register`].
    pub async fn sites(&self) -> Result<Vec<Site>, CallError> {
        self.client.get("/api/v1/sites").await
    }

    /// Enters a site, or changes it.
    ///
    /// # Errors
    /// As [`TunnelServer::register`].
    pub async fn put_site(&self, name: &str, site: &SiteChange) -> Result<(), CallError> {
        self.client.send(Method::PUT, &site_path(name), site).await
    }

    /// Forgets a site.
    ///
    /// # Errors
    /// As [`TunnelServer::register`].
    pub async fn remove_site(&self, name: &str) -> Result<(), CallError> {
        self.client.send::<(), ()>(Method::DELETE, &site_path(name), &()).await
    }

    /// Keeps the event stream open until the role stops.
    pub async fn watch(self, world: World, recording: Recording, stop: Stop) {
        let mut seen = Seen::default();
        let mut retry = FIRST_RETRY;
        let mut told = String::new();
        loop {
            let began = tokio::time::Instant::now();
            let ended = tokio::select! {
                ended = self.follow(&world, &recording, &mut seen) => ended,
                () = stop.cancelled() => return,
            };
            let problem = match ended {
                Ok(never) => match never {},
                Err(error) => {
                    ProblemDetail { code: error.code().into(), message: error.to_string(), step: None }
                }
            };
            if began.elapsed() >= STABLE || told != problem.message {
                told.clone_from(&problem.message);
                tracing::warn!(tunnel = self.name, problem = problem.message, "tunnel server unreachable");
            }
            world.tunnel_lost(&self.name, problem);
            if began.elapsed() >= STABLE {
                retry = FIRST_RETRY;
            }
            let pause = retry.mul_f64(rand::rng().random_range(0.5..1.5));
            tokio::select! {
                () = tokio::time::sleep(pause) => (),
                () = stop.cancelled() => return,
            }
            retry = (retry * 2).min(LONGEST_RETRY);
        }
    }

    /// From opening the stream to its end, which is always an error.
    async fn follow(
        &self,
        world: &World,
        recording: &Recording,
        seen: &mut Seen,
    ) -> Result<std::convert::Infallible, Lost> {
        let mut stream = self.client.stream(&seen.path()).await?.into_body();
        let server: Server = self.client.get("/api/v1/server").await?;
        let mut server = Some(server);
        let mut parser = sse::Parser::default();
        let mut self_check = tokio::time::interval(SELF_CHECK);
        self_check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut silence = std::pin::pin!(tokio::time::sleep(SILENCE));
        loop {
            let frame = tokio::select! {
                frame = stream.frame() => frame,
                () = silence.as_mut() => return Err(self.lost("its event stream went silent")),
                _ = self_check.tick() => {
                    // A failure here is not yet a lost stream: that shows by itself, soon.
                    if let Ok(server) = self.client.get::<Server>("/api/v1/server").await {
                        world.tunnel_server(&self.name, server);
                    }
                    continue;
                }
            };
            let frame = frame
                .ok_or_else(|| self.lost("its event stream ended"))?
                .map_err(|error| self.lost(&format!("its event stream broke: {error}")))?;
            silence.as_mut().reset(tokio::time::Instant::now() + SILENCE);
            let Ok(bytes) = frame.into_data() else { continue };
            for event in parser.feed(&bytes).map_err(|error| self.lost(&error.to_string()))? {
                let happened = self.happened(seen, &event)?;
                if let Happened::Everything { resumed } = happened
                    && let Some(server) = server.take()
                {
                    tracing::info!(
                        tunnel = self.name,
                        devices = seen.devices.len(),
                        resumed,
                        "tunnel server reached"
                    );
                    world.tunnel_reached(&self.name, server, seen.devices.values().cloned().collect());
                    self.reached.send_replace(());
                }
                // Before that, it is part of everything.
                if server.is_some() {
                    continue;
                }
                match self.take_in(world, happened) {
                    Happened::Connected(serial) => recording.connected(serial).await,
                    Happened::Moved => recording.look(),
                    _ => (),
                }
            }
        }
    }

    /// What an event says; everything that was said is in `seen`.
    fn happened(&self, seen: &mut Seen, event: &sse::Event) -> Result<Happened, Lost> {
        #[derive(Deserialize)]
        struct Removed {
            serial: SerialNumber,
        }
        let strange = |error: serde_json::Error| {
            self.lost(&format!("its event {:?} is not of this API: {error}", event.name))
        };
        let happened = match event.name.as_str() {
            "reset" => {
                let reset: Reset = serde_json::from_str(&event.data).map_err(strange)?;
                if reset.missed {
                    tracing::warn!(tunnel = self.name, "what happened meanwhile is not known any more");
                }
                *seen = Seen::default();
                Happened::Other
            }
            "ready" => Happened::Everything { resumed: false },
            "resumed" => Happened::Everything { resumed: true },
            "device" => {
                let device: Device = serde_json::from_str(&event.data).map_err(strange)?;
                tracing::debug!(
                    tunnel = self.name, serial = %device.serial, step = %device.step, connected = device.connected,
                    "device changed"
                );
                seen.devices.insert(device.serial, device.clone());
                Happened::Changed(Box::new(device))
            }
            "removed" => {
                let removed: Removed = serde_json::from_str(&event.data).map_err(strange)?;
                seen.devices.remove(&removed.serial);
                Happened::Removed(removed.serial)
            }
            // A newer tunnel server may tell more.
            _ => Happened::Other,
        };
        if event.id.is_some() {
            seen.last.clone_from(&event.id);
        }
        Ok(happened)
    }

    /// Takes it into the world; what the recording server is to know of it comes back.
    fn take_in(&self, world: &World, happened: Happened) -> Happened {
        match happened {
            Happened::Changed(device) => {
                let (serial, left) = (device.serial, device.moving.is_some() && !device.connected);
                match world.device(&self.name, *device) {
                    true => Happened::Connected(serial),
                    false if left => Happened::Moved,
                    false => Happened::Other,
                }
            }
            Happened::Removed(serial) => {
                world.device_removed(&self.name, serial);
                Happened::Other
            }
            other => other,
        }
    }

    fn lost(&self, cause: &str) -> Lost {
        Lost::Stream { peer: self.client.peer().to_owned(), cause: cause.to_owned() }
    }
}

/// Names are people's: whatever is in them, the path has four parts.
fn site_path(name: &str) -> String {
    let escaped: String = name.bytes().map(|byte| format!("%{byte:02X}")).collect();
    format!("/api/v1/sites/{escaped}")
}

/// What a tunnel server has told, to go on from there.
#[derive(Default)]
struct Seen {
    /// As they were when it was heard last, whatever people are shown while it is away.
    devices: BTreeMap<SerialNumber, Device>,
    /// The last event's id.
    last: Option<String>,
}

impl Seen {
    fn path(&self) -> String {
        // It is the tunnel server's own word, and nothing else gets into an address.
        let is_plain = |id: &&String| id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        match self.last.as_ref().filter(is_plain) {
            Some(last) => format!("/api/v1/events?after={last}"),
            None => "/api/v1/events".to_owned(),
        }
    }
}

/// What an event is about.
enum Happened {
    /// All devices are known now, or again.
    Everything { resumed: bool },
    /// A device is new, or has changed.
    Changed(Box<Device>),
    /// A device is no longer registered.
    Removed(SerialNumber),
    /// For the recording server: a device has a new uplink.
    Connected(SerialNumber),
    /// For the recording server: a device that moves has left.
    Moved,
    /// Nothing to do.
    Other,
}

/// Why an event stream is not open.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("{peer}: {cause}; trying again")]
    Stream { peer: String, cause: String },
}

impl Lost {
    fn code(&self) -> &'static str {
        match self {
            Lost::Call(CallError::Refused { status, .. }) if status.as_u16() == 401 => {
                "tunnel-server-refused-log-in"
            }
            Lost::Call(CallError::Refused { .. }) => "tunnel-server-refused",
            Lost::Call(CallError::Unexpected { .. }) => "tunnel-server-unexpected",
            Lost::Call(CallError::Unreachable { .. }) | Lost::Stream { .. } => "tunnel-server-unreachable",
        }
    }
}
