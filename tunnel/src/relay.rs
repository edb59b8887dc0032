//! Steps 1 and 2: taking a registration in and relaying it to the dispatcher; and hearing from it what became of it.
//!
//! Lifecycle of a registration here:
//! 1. `register` stores it (not shown yet, but the key that the dispatcher may vouch for during step 2 is welcome).
//! 2. The dispatcher accepts: shown. It refuses: forgotten, and the refusal passed on. It cannot be reached: shown as
//!    pending, and relayed by [`Relay::run`] at growing, jittered intervals.
//! 3. What the dispatcher says later comes by `changes`; asking for more acknowledges what was stored.
//! 4. A device that came back to the dispatcher is pending again: relayed from the sealed store.
//! 5. `remove` forgets it at once; the claim is released when the dispatcher can be reached.
//!
//! Invariant: one call about one device at a time (`locks.rs`), except `changes`, which must be heard while a relay is
//! under way: the dispatcher waits for its acknowledgement before it answers.

use crate::{
    config::Config,
    devices::Devices,
    dispatcher::{Dispatcher, Failed},
    passwords::Password,
    record::{Record, Standing},
    registrations::Secrets,
};
use futures_util::StreamExt;
use homing_base::{Live, Stop, http::Failure};
use homing_protocol::{
    SerialNumber, Step,
    api::{
        Problem, ProblemDetail,
        dispatcher::RegistrationState,
        tunnel::{ChangeDevice, Device, NewDevice},
    },
    secret::Credentials,
};
use homing_uplink::{Backoff, Fingerprint};
use http::StatusCode;
use std::{sync::Arc, time::Duration};
use tokio::{sync::OwnedMutexGuard, time::Instant};

/// Calls at once when many registrations are relayed after an outage; the others wait.
const RELAYED_AT_ONCE: usize = 4;

/// A dispatcher that answers `changes` with nothing sooner than this is not asked again at once.
const EMPTY_ANSWER_PAUSE: Duration = Duration::from_secs(1);

const NAME_MAX: usize = 64;
const DESCRIPTION_MAX: usize = 256;
/// RFC 7617 has no limit; no device takes more.
const CREDENTIAL_MAX: usize = 256;
const PORTS_MAX: usize = 16;

/// Registrations on their way.
pub(crate) struct Relay {
    devices: Arc<Devices>,
    dispatcher: Dispatcher,
    config: Live<Config>,
}

impl Relay {
    pub fn new(devices: Arc<Devices>, dispatcher: Dispatcher, config: Live<Config>) -> Self {
        Relay { devices, dispatcher, config }
    }

    /// The devices.
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// One operation on one device at a time.
    pub async fn lock(&self, serial: SerialNumber) -> OwnedMutexGuard<()> {
        self.devices.locks.lock(serial).await
    }

    /// The dispatcher.
    pub fn dispatcher(&self) -> &Dispatcher {
        &self.dispatcher
    }

    /// Step 1, and step 2 with it. `true` beside the device if it was relayed, `false` if it is still to be.
    ///
    /// # Errors
    /// What cannot be registered; what the dispatcher refused, with its code and message. Nothing is kept then.
    pub async fn register(&self, new: NewDevice, stop: &Stop) -> Result<(Device, bool), Failure> {
        let NewDevice { serial, oak, user, password, name, description, access, .. } = new;
        let secrets = Secrets { oak, credentials: Credentials::new(user.clone(), password) };
        let mut standing = match new.fingerprint {
            None => Standing::registered(),
            Some(key) => Standing::handed_over(self.adopt(serial, &key)?),
        };
        let proposed = new.proposed_password.filter(|_| standing.adopted);
        standing.password = match proposed {
            Some(_) => Password::Unknown,
            None if new.own_password && standing.adopted => Password::Own,
            None => self.password_state(&secrets),
        };
        let (name, description) = (tidy(&name), tidy(&description));
        let record = Record { serial, name, description, user, access, standing };
        check(&record, &secrets)?;
        let _lock = self.lock(serial).await;
        if !self.devices.add(record, &secrets).await? {
            let message = format!(
                "{serial} is already registered at this tunnel server; change it, or delete it first."
            );
            let problem = Problem::at(Step::Register, "already-registered", message);
            return Err(Failure::new(StatusCode::CONFLICT, problem));
        }
        if let Some(proposed) = proposed {
            self.devices.store().propose_password(serial, &proposed).await?;
        }
        tracing::info!(step = %Step::Register, %serial, "registered");
        let relayed = match self.relay(serial, &secrets, stop).await {
            Relayed::Accepted => true,
            Relayed::Later => false,
            Relayed::Refused { failure, stored_there } => {
                self.devices.remove(serial, stored_there).await?;
                // Before the answer: who is told that nothing is kept may have it registered elsewhere next.
                if stored_there && !self.release(serial, stop).await {
                    self.devices.for_dispatcher.notify_one();
                }
                return Err(failure);
            }
        };
        let device = self.devices.settle(serial).ok_or_else(|| not_registered(serial))?;
        // A device that was handed over may have come while this was under way.
        if self.devices.standing(serial).is_some_and(|standing| standing.is_to_tell()) {
            self.devices.for_dispatcher.notify_one();
        }
        Ok((device, relayed))
    }

    fn password_state(&self, secrets: &Secrets) -> Password {
        Password::registered(&secrets.credentials, &self.config.get().default_passwords)
    }

    /// The key that another tunnel server vouches for.
    fn adopt(&self, serial: SerialNumber, key: &str) -> Result<Fingerprint, Failure> {
        let refuse =
            |message: String| Failure::new(StatusCode::BAD_REQUEST, Problem::new("bad-request", message));
        let key = key.parse().map_err(|_| refuse("The fingerprint is not 64 hex digits.".to_owned()))?;
        match self.devices.owner(key).filter(|owner| *owner != serial) {
            Some(owner) => Err(refuse(format!("That fingerprint is the key of {owner}."))),
            None => Ok(key),
        }
    }

    /// Renames a device, or corrects its OAK, user or password; a device that has not been dispatched is then relayed
    /// again.
    ///
    /// # Errors
    /// As [`Relay::register`]; what was registered before is kept then.
    pub async fn change(
        &self,
        serial: SerialNumber,
        change: ChangeDevice,
        stop: &Stop,
    ) -> Result<Device, Failure> {
        let _lock = self.lock(serial).await;
        let before = self.devices.record(serial).ok_or_else(|| not_registered(serial))?;
        let secrets = self.secrets(serial).await?;
        let corrects = change.oak.is_some() || change.user.is_some() || change.password.is_some();
        let user = change.user.unwrap_or_else(|| before.user.clone());
        let password = change.password.unwrap_or(secrets.credentials.password);
        let record = Record {
            name: change.name.map_or(before.name, |name| tidy(&name)),
            description: change.description.map_or(before.description, |text| tidy(&text)),
            user: user.clone(),
            access: change.access.unwrap_or(before.access),
            ..before
        };
        let secrets =
            Secrets { oak: change.oak.unwrap_or(secrets.oak), credentials: Credentials::new(user, password) };
        check(&record, &secrets)?;
        let dispatched = record.standing.relay == homing_protocol::api::tunnel::RelayState::Dispatched;
        if corrects && !dispatched {
            match self.relay(serial, &secrets, stop).await {
                Relayed::Refused { failure, .. } => return Err(failure),
                Relayed::Later => self.devices.for_dispatcher.notify_one(),
                Relayed::Accepted => (),
            }
        }
        let changed = self.devices.replace(record, &secrets).await?.ok_or_else(|| not_registered(serial))?;
        if !corrects {
            return Ok(changed);
        }
        let password = if change.own_password {
            Password::Own
        } else if self.devices.store().proposed_password(serial).await?.is_some() {
            // It may have been told a password of its own, and that is found out when it comes.
            Password::Unknown
        } else {
            self.password_state(&secrets)
        };
        self.devices.change(serial, |standing| standing.password = password).await?;
        self.devices.get(serial).ok_or_else(|| not_registered(serial))
    }

    /// Forgets a device, ends its uplink and releases its claim; the last is tried again if the dispatcher is away.
    ///
    /// # Errors
    /// When it is not registered.
    pub async fn remove(&self, serial: SerialNumber, stop: &Stop) -> Result<(), Failure> {
        let _lock = self.lock(serial).await;
        let record = self.devices.record(serial).ok_or_else(|| not_registered(serial))?;
        // One that moves within one account is claimed for the other server, too.
        let shared = record.standing.errand.is_shared();
        if !self.devices.remove(serial, !shared).await? {
            return Err(not_registered(serial));
        }
        tracing::info!(step = %Step::Register, %serial, "registration deleted");
        // Nobody waits for a dispatcher that is known to be away.
        if !shared && (self.dispatcher.problem().is_some() || !self.release(serial, stop).await) {
            self.devices.for_dispatcher.notify_one();
        }
        Ok(())
    }

    /// Relays what is pending and releases what is to be, until the role stops.
    pub async fn run(&self, stop: &Stop) {
        let mut backoff = Backoff::new(self.config.get().limits.backoff());
        while !stop.is_stopped() {
            let outcome = self.relay_all(stop).await;
            let pause = match outcome {
                Ok(true) => {
                    backoff.reset();
                    None
                }
                Ok(false) => Some(backoff.next_interval()),
                Err(error) => {
                    tracing::error!(step = %Step::Relay, error = format!("{error:#}"), "registrations");
                    Some(backoff.next_interval())
                }
            };
            let pause = async {
                match pause {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = pause => (),
                () = self.devices.for_dispatcher.notified() => (),
                () = self.dispatcher.recovered() => (),
                () = stop.cancelled() => return,
            }
        }
    }

    /// Follows the dispatcher's changes until the role stops (step 5, seen from here).
    pub async fn follow_changes(&self, stop: &Stop) {
        let mut backoff = Backoff::new(self.config.get().limits.backoff());
        while !stop.is_stopped() {
            let began = Instant::now();
            let pause = tokio::select! {
                followed = self.next_changes() => match followed {
                    Ok(true) => {
                        backoff.reset();
                        continue;
                    }
                    // Nothing happened: at once if it was held back as agreed.
                    Ok(false) => EMPTY_ANSWER_PAUSE.saturating_sub(began.elapsed()),
                    Err(error) => {
                        tracing::debug!(step = %Step::Relay, error = format!("{error:#}"), "changes");
                        backoff.next_interval()
                    }
                },
                () = stop.cancelled() => return,
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => (),
                () = stop.cancelled() => return,
            }
        }
    }

    /// One `changes` request; `true` if there were any.
    async fn next_changes(&self) -> anyhow::Result<bool> {
        let after = self.devices.store().acknowledged().await?;
        let changes = match self.dispatcher.changes(after).await {
            Ok(changes) => changes,
            Err(Failed::Later(problem)) => anyhow::bail!(problem.message),
            Err(Failed::Refused(status, problem)) => anyhow::bail!("{status}: {}", problem.error.message),
        };
        if changes.last < after {
            tracing::warn!(
                step = %Step::Relay, after, last = changes.last,
                "the dispatcher has forgotten its changes (was its database restored?); \
                 registrations that wait there are relayed again"
            );
            self.devices.dispatcher_forgot().await?;
            self.devices.for_dispatcher.notify_one();
            return Ok(true);
        }
        if changes.last == after && changes.changes.is_empty() {
            return Ok(false);
        }
        for told in &changes.changes {
            let code = told.problem.as_ref().map(|problem| problem.code.as_str());
            tracing::info!(step = %told.step, serial = %told.serial, state = ?told.state, code, "told by the dispatcher");
        }
        self.devices.hear_changes(&changes).await?;
        if changes.changes.iter().any(|told| told.state == RegistrationState::Returned) {
            self.devices.for_dispatcher.notify_one();
        }
        Ok(true)
    }

    /// Tries everything once; `false` if something is left. One goes ahead: if the dispatcher cannot be reached, the
    /// others do not wait for that as well.
    async fn relay_all(&self, stop: &Stop) -> anyhow::Result<bool> {
        let mut pending = self.devices.to_tell().into_iter();
        let releases = self.devices.store().to_release().await?;
        let mut all = match pending.next() {
            Some(first) => self.tell(first, stop).await?,
            None => true,
        };
        let relays = futures_util::stream::iter(pending).map(async |serial| {
            if self.dispatcher.problem().is_some() {
                return Ok(false);
            }
            self.tell(serial, stop).await
        });
        let relayed: Vec<anyhow::Result<bool>> = relays.buffer_unordered(RELAYED_AT_ONCE).collect().await;
        for relayed in relayed {
            all &= relayed?;
        }
        for serial in releases {
            let _lock = self.lock(serial).await;
            // It may have been registered again while we waited.
            if self.devices.get(serial).is_some() {
                continue;
            }
            if !self.release(serial, stop).await {
                return Ok(false);
            }
        }
        Ok(all)
    }

    /// Everything that the dispatcher is still to be told of one device; `false` if something is left.
    async fn tell(&self, serial: SerialNumber, stop: &Stop) -> anyhow::Result<bool> {
        let _lock = self.lock(serial).await;
        let standing = || self.devices.standing(serial);
        if standing().is_some_and(|standing| standing.is_pending())
            && !self.relay_pending(serial, stop).await?
        {
            return Ok(false);
        }
        if standing().is_some_and(|standing| standing.has_arrived())
            && !self.report_arrival(serial, stop).await?
        {
            return Ok(false);
        }
        match standing().as_ref().and_then(Standing::to_offer) {
            Some(account) => self.offer_later(serial, account, stop).await,
            None => Ok(true),
        }
    }

    async fn relay_pending(&self, serial: SerialNumber, stop: &Stop) -> anyhow::Result<bool> {
        let Some(secrets) = self.devices.store().secrets(serial).await? else { return Ok(true) };
        match self.relay(serial, &secrets, stop).await {
            Relayed::Accepted => Ok(true),
            Relayed::Later => Ok(false),
            Relayed::Refused { failure, .. } if self.may_pass(serial, &failure) => {
                self.devices
                    .change(serial, |standing| standing.relay_later(failure.problem.error.clone()))
                    .await?;
                Ok(false)
            }
            Relayed::Refused { failure, .. } => {
                self.devices
                    .change(serial, |standing| standing.relay_refused(failure.problem.error.clone()))
                    .await?;
                Ok(true)
            }
        }
    }

    /// Whether a refusal may end by itself: after some time, or when the server that a device was handed over by has
    /// offered its claim.
    fn may_pass(&self, serial: SerialNumber, failure: &Failure) -> bool {
        let adopted = || self.devices.standing(serial).is_some_and(|standing| standing.adopted);
        failure.status == StatusCode::TOO_MANY_REQUESTS
            || (failure.problem.error.code == "claimed-by-another-account" && adopted())
    }

    /// Step 2 for one registration. What is heard of it is stored; a refusal is for the caller to act on.
    async fn relay(&self, serial: SerialNumber, secrets: &Secrets, stop: &Stop) -> Relayed {
        let answer = tokio::select! {
            answer = self.dispatcher.register(serial, secrets) => answer,
            () = stop.cancelled() => return Relayed::Later,
        };
        let stored = match answer {
            Ok(told) => {
                tracing::info!(step = %Step::Relay, %serial, state = ?told.state, "relayed");
                if told.state == RegistrationState::Refused {
                    let problem = told.problem.clone().unwrap_or_else(|| unexplained(serial));
                    let failure = Failure::new(StatusCode::CONFLICT, Problem { error: problem });
                    return Relayed::Refused { failure, stored_there: true };
                }
                self.devices.hear(&told).await.map(|()| Relayed::Accepted)
            }
            Err(Failed::Refused(status, mut problem)) => {
                tracing::info!(
                    step = %Step::Relay, %serial, code = problem.error.code, "the dispatcher refused"
                );
                problem.error.step.get_or_insert(Step::Relay);
                return Relayed::Refused { failure: Failure::new(status, problem), stored_there: false };
            }
            Err(Failed::Later(problem)) => {
                tracing::info!(step = %Step::Relay, %serial, code = problem.code, "not relayed yet");
                let noted =
                    self.devices.change(serial, |standing| standing.relay_later(problem.clone())).await;
                noted.map(|()| Relayed::Later)
            }
        };
        stored.unwrap_or_else(|error| {
            tracing::error!(step = %Step::Relay, %serial, error = format!("{error:#}"), "not stored");
            Relayed::Later
        })
    }

    /// Releases a claim; `false` if it is to be tried again.
    async fn release(&self, serial: SerialNumber, stop: &Stop) -> bool {
        let answer = tokio::select! {
            answer = self.dispatcher.release(serial) => answer,
            () = stop.cancelled() => return false,
        };
        match answer {
            Ok(()) => (),
            // It says that the claim is not ours to release: trying again would not change that.
            Err(Failed::Refused(status, problem)) => {
                tracing::warn!(%serial, %status, code = problem.error.code, "claim not released");
            }
            Err(Failed::Later(problem)) => {
                tracing::info!(%serial, code = problem.code, "claim not released yet");
                return false;
            }
        }
        match self.devices.store().released(serial).await {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(%serial, error = format!("{error:#}"), "not stored");
                false
            }
        }
    }

    /// The secrets of one registration.
    pub async fn secrets(&self, serial: SerialNumber) -> Result<Secrets, Failure> {
        self.devices.store().secrets(serial).await?.ok_or_else(|| not_registered(serial))
    }

    /// The device's own user and password, for step 8.
    pub async fn credentials(&self, serial: SerialNumber) -> Result<Credentials, Failure> {
        self.devices.record(serial).ok_or_else(|| not_registered(serial))?;
        Ok(self.secrets(serial).await?.credentials)
    }
}

/// What became of relaying.
enum Relayed {
    Accepted,
    Later,
    Refused {
        failure: Failure,
        /// The dispatcher keeps the registration although it refused it, so it is to be released there.
        stored_there: bool,
    },
}

/// What a 404 says.
pub(crate) fn not_registered(serial: SerialNumber) -> Failure {
    Failure::not_found(format!(
        "No device with the serial number {serial} is registered at this tunnel server."
    ))
}

fn unexplained(serial: SerialNumber) -> ProblemDetail {
    let message = format!("The dispatcher refused the device {serial} and did not say why.");
    Problem::at(Step::Dispatch, "refused", message).error
}

fn tidy(text: &str) -> String {
    text.trim().to_owned()
}

fn check(record: &Record, secrets: &Secrets) -> Result<(), Failure> {
    let refuse = |message: String| {
        Err(Failure::new(StatusCode::BAD_REQUEST, Problem::at(Step::Register, "bad-request", message)))
    };
    for (what, text, most) in [
        ("name", record.name.as_str(), NAME_MAX),
        ("description", record.description.as_str(), DESCRIPTION_MAX),
        ("user", record.user.as_str(), CREDENTIAL_MAX),
        ("password", secrets.credentials.password.expose(), CREDENTIAL_MAX),
    ] {
        if text.chars().count() > most {
            return refuse(format!("The {what} has more than {most} characters."));
        }
        if text
            .chars()
            .any(|character| character.is_control() && !(what == "description" && character == '\n'))
        {
            return refuse(format!("The {what} holds a control character."));
        }
    }
    let ports = &record.access.ports;
    let is_twice = |index: usize| ports[..index].iter().any(|earlier| earlier.port == ports[index].port);
    if ports.len() > PORTS_MAX || ports.iter().any(|port| port.port == 0) || (0..ports.len()).any(is_twice) {
        return refuse(format!("The ports are at most {PORTS_MAX}, each of them once, and from 1 to 65535."));
    }
    if record.user.is_empty() {
        return refuse(
            "The device's user is missing: the dispatcher logs in to the device with it.".to_owned(),
        );
    }
    Ok(())
}
