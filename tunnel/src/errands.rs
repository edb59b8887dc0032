//! What is done at a device as soon as its uplink stands: it is sent to another tunnel server, or told to forget one; and
//! if it stays, it gets a password of its own (`passwords.rs`).
//!
//! A move, from the device's point of view: it is told where else to dial ([`MoveState::Trying`]) and dials there while
//! its uplink here stands. When it says that it is connected there, it is told to forget us. Until then nothing is lost
//! whatever goes wrong; what the device says is wrong is shown.
//!
//! Invariant: one task for a device at a time; it ends when nothing is left to do, or the device is gone. What it has
//! reached is on disk before the device is told the next thing, so that a restart at any instant goes on from there.

use crate::{
    config::Config,
    devices::{Connected, Devices},
    events::Event,
    moves::{Errand, Move},
    passwords::{self, Outcome},
    rtsp::Through,
};
use anyhow::Context;
use homing_base::{
    Live, Stop,
    onvif::{
        Device, DeviceError,
        uplinks::{TellError, Uplinks},
    },
};
use homing_protocol::{
    SerialNumber, Step,
    api::{Problem, ProblemDetail, Target, tunnel::MoveState},
    onvif::uplink::{Configuration, ConnectionStatus},
};
use homing_uplink::{Backoff, BackoffSettings, Fingerprint, UplinkAddress};
use jiff::Timestamp;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::Notify;

/// For each question to the device.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// How long a device may take to end the uplinks that it was told to forget.
const LET_GO_DEADLINE: Duration = Duration::from_secs(5);

/// Between looks at how far it is, and between attempts.
const PACE: BackoffSettings = BackoffSettings {
    first: Duration::from_millis(250),
    max: Duration::from_secs(20),
    jitter: 0.2,
    stable_after: Duration::from_secs(3600),
};

/// Between looks whether a device that is kept by two servers is at both.
const KEPT_PACE: Duration = Duration::from_secs(10);

/// Between attempts at one of those that refuses the user and password.
const KEPT_REFUSED_PACE: Duration = Duration::from_secs(600);

/// Characters of a device's own words that are shown.
const SHOWN: usize = 200;

/// Runs the errands of all devices.
pub(crate) struct Errands {
    devices: Arc<Devices>,
    /// Our public addresses.
    public: Vec<String>,
    config: Live<Config>,
    /// Devices with an errand under way, and what tells it that something has changed.
    under_way: Mutex<HashMap<SerialNumber, Arc<Notify>>>,
}

/// Why an errand does not go on.
enum Hitch {
    /// To be shown, and tried again.
    Problem(ProblemDetail),
    /// The same: the device does not take the registered user and password.
    WrongCredentials(ProblemDetail),
    /// It was changed, or the device has gone: look again.
    Changed,
    /// To be tried again.
    Later,
    /// Our own disk.
    Internal(anyhow::Error),
}

impl From<anyhow::Error> for Hitch {
    fn from(error: anyhow::Error) -> Self {
        Hitch::Internal(error)
    }
}

impl Errands {
    pub fn new(devices: Arc<Devices>, public: Vec<String>, config: Live<Config>) -> Self {
        Errands { devices, public, config, under_way: Mutex::default() }
    }

    /// Runs errands until the role stops. Whatever makes one due is an event of its device.
    pub async fn run(self: Arc<Self>, stop: &Stop) {
        let mut events = self.devices.subscribe();
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = stop.cancelled() => return,
            };
            match event {
                Some(Event::Device(device)) => self.attend(device.serial, stop),
                Some(Event::Removed(_) | Event::Site(_)) => (),
                None => events = self.devices.subscribe(),
            }
        }
    }

    fn attend(self: &Arc<Self>, serial: SerialNumber, stop: &Stop) {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(changed) = under_way.get(&serial) {
            return changed.notify_one();
        }
        let Some((connected, _)) = self.devices.errand(serial) else { return };
        let changed = Arc::new(Notify::new());
        under_way.insert(serial, Arc::clone(&changed));
        let (this, stopped) = (Arc::clone(self), stop.token().clone());
        let running = async move {
            stopped.run_until_cancelled(this.carry_out_all(serial, &changed)).await;
        };
        stop.spawn_on(running, &connected.worker);
    }

    async fn carry_out_all(&self, serial: SerialNumber, changed: &Notify) {
        let mut pace = Backoff::new(PACE);
        loop {
            let due = {
                let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
                let due = self.devices.errand(serial);
                if due.is_none() {
                    under_way.remove(&serial);
                }
                due
            };
            let Some((connected, standing)) = due else { return };
            let (errand, key) = (&standing.errand, standing.fingerprint);
            let carried_out = async {
                if errand.is_done() {
                    return self.replace_password(serial, &connected).await;
                }
                let mut device = self.log_in(serial, &connected).await?;
                let mut uplinks = Uplinks::find(&mut device).await.map_err(hitch)?;
                if !errand.forget.is_empty() {
                    return self.forget(serial, &mut uplinks, &errand.forget).await;
                }
                match (&errand.moving, key) {
                    (Some(moving), Some(key)) => {
                        self.send(serial, &connected, &mut uplinks, moving, (key, errand, changed)).await
                    }
                    _ => Ok(()),
                }
            };
            let target = errand.moving.as_ref().map(|moving| &moving.target);
            let mut is_refused = false;
            match Box::pin(carried_out).await {
                // What a cut connection does to a call is no problem of the device.
                Err(_) if connected.uplink.is_closed() => {
                    tokio::time::sleep(PACE.first).await;
                    continue;
                }
                Ok(()) | Err(Hitch::Changed) => continue,
                Err(Hitch::Later) => (),
                Err(Hitch::Problem(problem)) => self.show(serial, target, problem).await,
                Err(Hitch::WrongCredentials(problem)) => {
                    self.show(serial, target, problem).await;
                    is_refused = true;
                }
                Err(Hitch::Internal(error)) => {
                    tracing::error!(%serial, error = format!("{error:#}"), "errand");
                }
            }
            // A move ends; one that is kept would be refused for years, and cameras lock out who is wrong too often.
            let is_kept = errand.moving.as_ref().is_some_and(|moving| moving.keep);
            let pause = if is_refused && is_kept { KEPT_REFUSED_PACE } else { pace.next_interval() };
            tokio::select! {
                () = tokio::time::sleep(pause) => (),
                () = self.until_other(serial, errand, changed) => pace.reset(),
                _ = connected.uplink.closed() => (),
            }
        }
    }

    /// Only of one that stays: the other server has been handed the password that it has now.
    async fn replace_password(&self, serial: SerialNumber, connected: &Connected) -> Result<(), Hitch> {
        let known = &self.config.get().default_passwords;
        match passwords::replace(&self.devices, serial, &connected.uplink, known).await? {
            Outcome::Done => Ok(()),
            Outcome::Left(problem) => {
                tracing::warn!(%serial, problem = problem.message, "factory default password");
                self.devices.warn(serial, problem);
                Ok(())
            }
            Outcome::Later(reason) => {
                tracing::info!(%serial, reason, "its password is looked at later");
                Err(Hitch::Later)
            }
        }
    }

    /// As the administrator that was registered.
    async fn log_in<'a>(
        &self,
        serial: SerialNumber,
        connected: &'a Connected,
    ) -> anyhow::Result<Device<Through<'a>>> {
        let secrets = self.devices.store().secrets(serial).await?;
        let credentials = secrets.context("its registration was deleted")?.credentials;
        // Basic is all that some devices know; it travels inside TLS, to a key that was vouched for.
        let carrier = Through(&connected.uplink);
        Ok(Device::new(carrier, serial.host(), credentials, ANSWER_DEADLINE).allow_basic())
    }

    /// The device forgets what it was told on a move that was undone.
    async fn forget(
        &self,
        serial: SerialNumber,
        uplinks: &mut Uplinks<'_, Through<'_>>,
        addresses: &[String],
    ) -> Result<(), Hitch> {
        for listed in uplinks.list().await.map_err(hitch)? {
            if leads_to(&listed, addresses) && !leads_to(&listed, &self.public) {
                uplinks.delete(&listed.remote_address).await.map_err(hitch)?;
                tracing::info!(%serial, address = listed.remote_address, "told to forget a tunnel server");
            }
        }
        let forgotten = |forget: &mut Vec<String>| forget.retain(|address| !addresses.contains(address));
        self.devices.change(serial, |standing| forgotten(&mut standing.errand.forget)).await?;
        Ok(())
    }

    /// The move, from telling it to letting it go.
    async fn send(
        &self,
        serial: SerialNumber,
        connected: &Connected,
        uplinks: &mut Uplinks<'_, Through<'_>>,
        moving: &Move,
        (key, errand, changed): (Fingerprint, &Errand, &Notify),
    ) -> Result<(), Hitch> {
        let (target, servers) = (&moving.target, moving.target.servers.join(", "));
        let there = |listed: &[Configuration]| {
            let mut to_target = listed.iter().filter(|listed| leads_to(listed, &target.servers));
            to_target.any(|listed| listed.status == Some(ConnectionStatus::Connected))
        };
        let is_own = |der: &[u8]| Fingerprint::of_certificate(der) == Ok(key);
        let mut listed = uplinks.list().await.map_err(hitch)?;
        if !there(&listed) {
            // On disk first: what it may have been told, it is told to forget if this is undone.
            self.enter(serial, moving, MoveState::Trying).await?;
            uplinks.send_to(&target.servers, &target.trust_anchor, is_own).await.map_err(hitch)?;
            tracing::info!(step = %Step::Connect, %serial, servers, "told where to dial from now on");
        }
        let mut pace = Backoff::new(PACE);
        while !there(&listed) {
            tokio::select! {
                () = tokio::time::sleep(pace.next_interval()) => (),
                () = self.until_other(serial, errand, changed) => return Err(Hitch::Changed),
                _ = connected.uplink.closed() => return Err(Hitch::Changed),
            }
            listed = uplinks.list().await.map_err(hitch)?;
            if !listed.iter().any(|listed| leads_to(listed, &target.servers)) {
                // Whatever made it forget: a dispatch that was under way, a restart.
                uplinks.send_to(&target.servers, &target.trust_anchor, is_own).await.map_err(hitch)?;
                tracing::info!(step = %Step::Connect, %serial, servers, "told again where to dial from now on");
            }
            let said = listed.iter().filter(|listed| leads_to(listed, &target.servers));
            if let Some(error) = said.filter_map(|listed| listed.error.as_deref()).next() {
                let message = format!("The device does not reach {servers}: {}", shown(error));
                let problem = Problem::at(Step::Connect, "move-not-reached", message).error;
                self.show(serial, Some(target), problem).await;
            }
        }
        if moving.keep {
            if moving.state != MoveState::Both {
                tracing::info!(step = %Step::Tunnel, %serial, servers, "is at the other tunnel server, too");
            }
            self.enter(serial, moving, MoveState::Both).await?;
            tokio::select! {
                () = tokio::time::sleep(KEPT_PACE) => (),
                () = self.until_other(serial, errand, changed) => (),
                _ = connected.uplink.closed() => (),
            }
            return Ok(());
        }
        self.enter(serial, moving, MoveState::Moved).await?;
        tracing::info!(step = %Step::Tunnel, %serial, servers, "is at the other tunnel server");
        let let_go = self.let_go(connected, uplinks, &listed).await;
        if let Err(hitch) = let_go {
            self.enter(serial, moving, MoveState::Trying).await?;
            return Err(hitch);
        }
        let (is_gone, now) = (self.devices.connected(serial).is_none(), Timestamp::now());
        self.devices.change(serial, |standing| standing.let_go(target, is_gone, now)).await?;
        Ok(())
    }

    /// It forgets us, the address that we talk through last, and ends its uplinks.
    async fn let_go(
        &self,
        connected: &Connected,
        uplinks: &mut Uplinks<'_, Through<'_>>,
        listed: &[Configuration],
    ) -> Result<(), Hitch> {
        let here = connected.dialled.clone().into_iter().collect::<Vec<_>>();
        let ours = listed.iter().filter(|listed| leads_to(listed, &self.public) || leads_to(listed, &here));
        let (last, others): (Vec<_>, Vec<_>) = ours.partition(|ours| leads_to(ours, &here));
        for ours in others.into_iter().chain(last) {
            uplinks.delete(&ours.remote_address).await.map_err(hitch)?;
        }
        let _ = tokio::time::timeout(LET_GO_DEADLINE, connected.uplink.closed()).await;
        Ok(())
    }

    /// Returns when something else is to be done than this errand.
    async fn until_other(&self, serial: SerialNumber, errand: &Errand, changed: &Notify) {
        while self.devices.errand(serial).is_some_and(|(_, now)| now.errand.is_same(errand)) {
            changed.notified().await;
        }
    }

    async fn enter(&self, serial: SerialNumber, moving: &Move, state: MoveState) -> anyhow::Result<()> {
        let enter = |moving: &mut Move| moving.enter(state, Timestamp::now());
        self.devices.change(serial, |standing| standing.errand.with(&moving.target, enter)).await
    }

    async fn show(&self, serial: SerialNumber, target: Option<&Target>, problem: ProblemDetail) {
        let Some(target) = target else { return };
        let noted = self.devices.change(serial, |standing| {
            standing.errand.with(target, |moving| moving.problem = Some(problem.clone()));
        });
        if let Err(error) = noted.await {
            tracing::error!(%serial, error = format!("{error:#}"), "not stored");
        }
    }
}

/// What went wrong with the device, to be shown.
fn hitch(error: TellError<String>) -> Hitch {
    let said = shown(&error.to_string());
    let message = format!("The device cannot be told where to dial: {said}");
    let problem = Problem::at(Step::Connect, "move-refused", message).error;
    match error {
        TellError::Call { error: DeviceError::WrongCredentials, .. } => Hitch::WrongCredentials(problem),
        _ => Hitch::Problem(problem),
    }
}

/// Whether an uplink of the device's list leads to one of these, `host:port`.
fn leads_to(listed: &Configuration, addresses: &[String]) -> bool {
    let address = listed.remote_address.parse::<UplinkAddress>().map(|address| address.authority());
    address.is_ok_and(|address| addresses.contains(&address))
}

/// What a device says, as far as it goes into a message: short, and without line breaks for a log.
fn shown(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(SHOWN).collect()
}
