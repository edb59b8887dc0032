//! Step 5, dispatch: from a device that only claims to be somebody to one that knows its owner's tunnel server.
//!
//! [`ask`], [`find_proven`], [`Attempt::begin`] and [`Attempt::dispatch`] are the whole of it, in the order of
//! `docs/connection-flow.md`. Everything before the log-in assumes that the device may be somebody else's: it is asked
//! for the OAK proof, once, and nothing is shown to it. A device of another make has no proof; `vouch.rs` says whether
//! its key is believed. Who may try when is decided in `devices.rs`, whose device it is in `claims.rs`.

use crate::{
    config::DeviceKeys,
    devices::Seat,
    metrics::Metrics,
    store::{DeviceSecrets, Entered, Job, Store},
    vouch::{Claim, Doubt, vouch},
};
use bytes::Bytes;
use homing_base::onvif::{
    ANSWER_LIMIT_BYTES, Carrier, Device, DeviceError,
    uplinks::{TellError, Uplinks},
};
use homing_protocol::{
    Oak, SerialNumber, Step,
    api::{ProblemDetail, dispatcher::RegistrationState as State},
    oak::{Challenge, EXPORTER_LABEL, PROOF_PATH, Proof, ProofAnswer, ProofKey, ProofRequest},
    onvif::{
        self,
        device::{GetDeviceInformation, GetSystemDateAndTime, SetSystemDateAndTime},
    },
};
use homing_uplink::{BodyError, Fingerprint, Uplink};
use http::{Request, Response, StatusCode, header};
use std::{net::IpAddr, time::Duration};
use tokio::{sync::Semaphore, time::timeout};

/// For each exchange with the device.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// How long the tunnel server may take to acknowledge the device's key. A device that arrives there
/// before its key is refused once and tries again: late is better than never.
const ACKNOWLEDGE_DEADLINE: Duration = Duration::from_secs(5);

/// Characters of a device's own words that are passed on.
const SHOWN: usize = 200;

/// The longest answer to a challenge.
const PROOF_LIMIT_BYTES: usize = 1024;

/// A device's clock may be off by as much: public CAs begin their certificates an hour in the past.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(3600);

/// Proof keys being derived at once: 8 MiB and tens of milliseconds each.
pub(crate) const DERIVATIONS_AT_ONCE: usize = 4;
static DERIVATIONS: Semaphore = Semaphore::const_new(DERIVATIONS_AT_ONCE);

/// Why a device was not dispatched; the text names device and step, and says what to check.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DispatchError {
    #[error(
        "the device {serial} at {peer} does not know the OAK that was registered: check the OAK on its \
         label, and that the serial number is that device's; if both are right it is another device that uses the \
         number: press the button of the true one, then register it again"
    )]
    WrongOak { serial: SerialNumber, peer: IpAddr },
    #[error(
        "the device at {peer} that claims to be {serial} gave no OAK proof ({found}), and {lacks}: check that it \
         is a device made for Homing, or behind a site agent; one of another make must be on the manufacturer's list \
         that the dispatcher's operator has imported"
    )]
    NoProof { serial: SerialNumber, peer: IpAddr, found: String, lacks: &'static str },
    #[error(
        "the device at {peer} that claims to be {serial} is of another make, and nobody vouches for its key ({why}): \
         ask the dispatcher's operator for the manufacturer's CA (device_anchors), or put a site agent in front of it"
    )]
    NotVouched { serial: SerialNumber, peer: IpAddr, why: &'static str },
    #[error(
        "the device at {peer} says that its serial number is {told}, not {serial}: check the serial number \
         on the label"
    )]
    WrongSerial { serial: SerialNumber, peer: IpAddr, told: String },
    #[error(
        "the device {serial} at {peer} does not accept the registered user name and password: check them \
         at the device, and that the user is an administrator"
    )]
    WrongCredentials { serial: SerialNumber, peer: IpAddr },
    #[error(
        "the device {serial} at {peer} has no {lacks}, which dispatch needs: check its firmware, or put a \
         site agent in front of it"
    )]
    Lacks { serial: SerialNumber, peer: IpAddr, lacks: &'static str },
    #[error(
        "the device {serial} at {peer} does not list the certificate that it connected with: check its \
         firmware"
    )]
    UnknownKey { serial: SerialNumber, peer: IpAddr },
    #[error("the device {serial} at {peer} refused while {doing}: {answer}")]
    Refused { serial: SerialNumber, peer: IpAddr, doing: &'static str, answer: String },
    #[error(
        "the device {serial} at {peer} went away while {doing} ({reason}); it is tried again when it comes back"
    )]
    Gone { serial: SerialNumber, peer: IpAddr, doing: &'static str, reason: String },
    #[error(
        "the device {serial} at {peer} did not answer within {} s while {doing}; it is tried again when it \
         comes back",
        ANSWER_DEADLINE.as_secs()
    )]
    Timeout { serial: SerialNumber, peer: IpAddr, doing: &'static str },
    #[error("the registration was replaced or deleted meanwhile")]
    Withdrawn,
    #[error("{0:#}")]
    Internal(#[from] anyhow::Error),
}

impl DispatchError {
    /// The word for programs, and the value of the metric's label.
    pub fn code(&self) -> &'static str {
        match self {
            DispatchError::WrongOak { .. } => "wrong-oak",
            DispatchError::NoProof { .. } => "no-oak-proof",
            DispatchError::NotVouched { .. } => "key-not-vouched",
            DispatchError::WrongSerial { .. } => "wrong-serial",
            DispatchError::WrongCredentials { .. } => "wrong-credentials",
            DispatchError::Lacks { .. } => "device-lacks-service",
            DispatchError::UnknownKey { .. } => "device-key-unknown",
            DispatchError::Refused { .. } => "device-refused",
            DispatchError::Gone { .. } => "device-gone",
            DispatchError::Timeout { .. } => "timeout",
            DispatchError::Withdrawn => "withdrawn",
            DispatchError::Internal(_) => "internal",
        }
    }

    /// Whether trying the same again may help.
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            DispatchError::Gone { .. } | DispatchError::Timeout { .. } | DispatchError::Internal(_)
        )
    }

    /// What the tunnel server is told.
    pub fn problem(&self) -> ProblemDetail {
        let message = match self {
            DispatchError::Internal(_) => "the dispatcher could not do this; its log says why".to_owned(),
            error => error.to_string(),
        };
        ProblemDetail { code: self.code().to_owned(), message, step: Some(Step::Dispatch) }
    }
}

/// What a device answered to the challenge. It is asked once a connection; whatever is registered later is compared with
/// this.
pub(crate) enum Answer {
    /// That it knows an OAK, on this very connection.
    Proof { challenge: Challenge, exported: [u8; 32], proof: Proof },
    /// It has no answer to such a question; what came instead. One of another make answers whatever it answers to a
    /// path that it does not know.
    Missing(String),
}

/// The key that proofs are made with; tens of milliseconds of another thread, after those who came before.
pub(crate) async fn derive(serial: SerialNumber, oak: Oak) -> anyhow::Result<ProofKey> {
    let _permit = DERIVATIONS.acquire().await.expect("never closed");
    Ok(tokio::task::spawn_blocking(move || oak.proof_key(serial)).await?)
}

/// 5.1: a device answers a challenge on this very connection.
pub(crate) async fn ask(device: &Seat) -> Result<Answer, DispatchError> {
    let (serial, peer) = (device.serial, device.address());
    let doing = "proving its OAK";
    let gone = |reason| DispatchError::Gone { serial, peer, doing, reason };
    let mut random = [0; 32];
    rand::Rng::fill(&mut rand::rng(), &mut random);
    let challenge = Challenge(random);
    let question = serde_json::to_vec(&ProofRequest { challenge: challenge.clone() });
    let request = Request::post(PROOF_PATH)
        .header(header::HOST, serial.host())
        .header(header::CONTENT_TYPE, "application/json")
        .body(Bytes::from(question.expect("plain values are JSON")))
        .expect("constant parts");
    let exchange = async {
        let response = device.uplink.request(request).await.map_err(|error| error.to_string())?;
        if response.status() != StatusCode::OK {
            return Ok(Err(format!("HTTP status {}", response.status())));
        }
        match response.into_body().collect(PROOF_LIMIT_BYTES).await {
            Ok(body) => Ok(serde_json::from_slice(&body).map_err(|_| "another page".to_owned())),
            Err(BodyError::TooLong { .. }) => Ok(Err("another page".to_owned())),
            Err(error) => Err(error.to_string()),
        }
    };
    let answer: Result<ProofAnswer, String> = timeout(ANSWER_DEADLINE, exchange)
        .await
        .map_err(|_| DispatchError::Timeout { serial, peer, doing })?
        .map_err(gone)?;
    let answer = match answer {
        Ok(answer) => answer,
        Err(found) => return Ok(Answer::Missing(found)),
    };
    if answer.serial != serial {
        return Err(DispatchError::WrongSerial { serial, peer, told: answer.serial.to_string() });
    }
    let exported = device.exporter.export(EXPORTER_LABEL, b"").map_err(|error| gone(error.to_string()))?;
    Ok(Answer::Proof { challenge, exported, proof: answer.proof })
}

/// 5.1: the first of these registrations that the device is proven to be the device of.
pub(crate) async fn find_proven<'a>(
    store: &Store,
    keys: DeviceKeys,
    device: &Seat,
    answer: &Answer,
    jobs: &[&'a Job],
) -> Result<Proven<'a>, DispatchError> {
    let (serial, peer) = (device.serial, device.address());
    let (challenge, exported, proof) = match answer {
        Answer::Proof { challenge, exported, proof } => (challenge, exported, proof),
        Answer::Missing(found) => return find_vouched_for(store, keys, device, found, jobs).await,
    };
    for job in jobs {
        let Some(secrets) = &job.secrets else { continue };
        let key = derive(serial, secrets.oak.clone()).await?;
        if key.verify(serial, challenge, exported, proof) {
            return Ok(Proven { job, secrets, key: Some(key) });
        }
    }
    Err(DispatchError::WrongOak { serial, peer })
}

/// 5.1, without a proof: the manufacturer says what the OAK is, and whose the key.
async fn find_vouched_for<'a>(
    store: &Store,
    keys: DeviceKeys,
    device: &Seat,
    found: &str,
    jobs: &[&'a Job],
) -> Result<Proven<'a>, DispatchError> {
    let (serial, peer) = (device.serial, device.address());
    let listed = store.listed(serial).await?;
    let mut doubt = Doubt::WrongOak;
    for job in jobs {
        let Some(secrets) = &job.secrets else { continue };
        let (key, oak, bound) = (device.fingerprint, &secrets.oak, job.fingerprint.as_deref());
        match vouch(keys, listed.as_ref(), &Claim { key, issued: device.issued, oak, bound }) {
            Ok(by) => {
                tracing::info!(%serial, %peer, step = %Step::Dispatch, by, "a device of another make is vouched for");
                return Ok(Proven { job, secrets, key: None });
            }
            Err(because) => doubt = because,
        }
    }
    let found = found.to_owned();
    Err(match doubt {
        Doubt::ProofRequired => {
            let lacks = "this dispatcher takes no devices without (device_keys)";
            DispatchError::NoProof { serial, peer, found, lacks }
        }
        Doubt::Unlisted => {
            DispatchError::NoProof { serial, peer, found, lacks: "it is on no manufacturer's list here" }
        }
        Doubt::WrongOak => DispatchError::WrongOak { serial, peer },
        Doubt::Key(why) => DispatchError::NotVouched { serial, peer, why },
    })
}

/// A registration that the device is proven to be the device of.
pub(crate) struct Proven<'a> {
    pub job: &'a Job,
    secrets: &'a DeviceSecrets,
    /// None where the manufacturer vouched for it.
    key: Option<ProofKey>,
}

/// One device, and the registration that it has proven.
pub(crate) struct Attempt<'a> {
    store: &'a Store,
    metrics: &'a Metrics,
    device: &'a Seat,
    job: &'a Job,
    secrets: &'a DeviceSecrets,
}

impl<'a> Attempt<'a> {
    /// From here on the registration has the claim, its state is this attempt's to change, and no other device is
    /// tried for it.
    pub async fn begin(
        store: &'a Store,
        metrics: &'a Metrics,
        device: &'a Seat,
        proven: Proven<'a>,
    ) -> Result<Self, DispatchError> {
        let Proven { job, secrets, key } = proven;
        let begun = store.prove(job.serial, job.generation, &secrets.oak, key.as_ref()).await?;
        begun.map(|_| Attempt { store, metrics, device, job, secrets }).ok_or(DispatchError::Withdrawn)
    }

    /// Step 5, from the log-in to the forgotten secrets.
    pub async fn dispatch(&self) -> Result<(), DispatchError> {
        let mut session = self.log_in().await?;
        self.check_clock(&mut session).await?;
        self.announce_key().await?;
        self.send_on(&mut session).await?;
        self.forget_secrets().await
    }

    /// 5.2: it takes the registered credentials, and has the registered serial number.
    async fn log_in(&self) -> Result<Device<Through<'a>>, DispatchError> {
        let serial = self.job.serial;
        let carrier = Through(&self.device.uplink);
        let credentials = self.secrets.credentials.clone();
        let mut session = Device::new(carrier, serial.host(), credentials, ANSWER_DEADLINE);
        let information = session.call(onvif::DEVICE_PATH, &GetDeviceInformation).await;
        let told = information.map_err(|error| self.failed("logging in", error))?.serial_number;
        if told.parse::<SerialNumber>() != Ok(serial) {
            let peer = self.device.address();
            return Err(DispatchError::WrongSerial { serial, peer, told: shown(&told) });
        }
        if !session.is_guarded() {
            // Its owner's camera all the same; but whoever is at the site can turn it away.
            self.metrics.noted("open");
            tracing::warn!(%serial, peer = %self.device.address(), step = %Step::Dispatch,
                "the device asks nobody for a password: set one at the device, and correct its registration");
        }
        Ok(session)
    }

    /// A device whose clock is far off finds no certificate valid, and dates its pictures wrongly: it is set right.
    async fn check_clock(&self, session: &mut Device<Through<'a>>) -> Result<(), DispatchError> {
        let (serial, peer, step) = (self.job.serial, self.device.address(), Step::Dispatch);
        let clock = match session.call(onvif::DEVICE_PATH, &GetSystemDateAndTime).await {
            Ok(clock) => clock,
            Err(error @ (DeviceError::Carrier(_) | DeviceError::Timeout(_))) => {
                return Err(self.failed("telling the time", error));
            }
            Err(_) => return Ok(()),
        };
        let now = jiff::Timestamp::now();
        let Some(told) = clock.utc.filter(|told| told.duration_since(now).unsigned_abs() > CLOCK_TOLERANCE)
        else {
            return Ok(());
        };
        let set = SetSystemDateAndTime { utc: now, daylight_savings: clock.daylight_savings };
        match session.call(onvif::DEVICE_PATH, &set).await {
            Ok(_) => {
                self.metrics.noted("clock-set");
                tracing::warn!(%serial, %peer, %step, %told, by_ntp = clock.by_ntp,
                    "the device's clock was wrong and is set by hand now: look at its time server");
            }
            Err(error) => {
                self.metrics.noted("clock-wrong");
                tracing::warn!(%serial, %peer, %step, %told, %error,
                    "the device's clock is wrong and cannot be set: it may find no certificate valid");
            }
        }
        Ok(())
    }

    /// 5.3: the tunnel server knows whom to expect, before the device is sent there.
    async fn announce_key(&self) -> Result<(), DispatchError> {
        let fingerprint = Some(self.device.fingerprint.to_string());
        let announced = self.entered(State::Dispatching, Step::PhoneHome, fingerprint);
        let seq = self.store.enter(self.job.generation, &[State::Dispatching], announced).await?;
        let seq = seq.ok_or(DispatchError::Withdrawn)?;
        let mut progress = self.store.progress(self.job.account);
        let acknowledged =
            async { progress.wait_for(|progress| progress.acknowledged >= seq).await.map(drop) };
        tokio::select! {
            acknowledged = timeout(ACKNOWLEDGE_DEADLINE, acknowledged) => if acknowledged.is_err() {
                tracing::warn!(serial = %self.job.serial, step = %Step::Dispatch,
                    "the tunnel server has not acknowledged the device's key; going on without");
            },
            reason = self.device.uplink.closed() => {
                return Err(self.gone("waiting for its tunnel server", reason.to_string()));
            }
        }
        // Meanwhile it may have been taken over, or deleted.
        let still = self.entered(State::Dispatching, Step::PhoneHome, None);
        let stands = self.store.enter(self.job.generation, &[State::Dispatching], still).await?;
        stands.map(drop).ok_or(DispatchError::Withdrawn)
    }

    /// 5.4 and 5.5: the device can trust the tunnel server, and that one alone, and knows where to dial.
    async fn send_on(&self, session: &mut Device<Through<'a>>) -> Result<(), DispatchError> {
        let is_own =
            |certificate: &[u8]| Fingerprint::of_certificate(certificate) == Ok(self.device.fingerprint);
        let telling = async {
            let mut uplinks = Uplinks::find(session).await?;
            uplinks.send_to(&self.job.target.servers, &self.job.target.trust_anchor, is_own).await
        };
        let (serial, peer) = (self.job.serial, self.device.address());
        telling.await.map_err(|error| match error {
            TellError::Lacks(lacks) => DispatchError::Lacks { serial, peer, lacks },
            TellError::UnknownKey => DispatchError::UnknownKey { serial, peer },
            TellError::TrustAnchor(error) => {
                DispatchError::Internal(anyhow::anyhow!("registered trust anchor: {error}"))
            }
            TellError::Call { doing, error } => self.failed(doing, error),
        })
    }

    /// 5.6: nothing secret of the device is kept here.
    async fn forget_secrets(&self) -> Result<(), DispatchError> {
        let fingerprint = Some(self.device.fingerprint.to_string());
        let dispatched = self.entered(State::Dispatched, Step::Dispatch, fingerprint);
        let entered = self.store.enter(self.job.generation, &[State::Dispatching], dispatched).await?;
        entered.map(drop).ok_or(DispatchError::Withdrawn)
    }

    fn entered(&self, state: State, step: Step, fingerprint: Option<String>) -> Entered {
        Entered { state, step, fingerprint, problem: None }
    }

    fn gone(&self, doing: &'static str, reason: String) -> DispatchError {
        DispatchError::Gone { serial: self.job.serial, peer: self.device.address(), doing, reason }
    }

    fn timed_out(&self, doing: &'static str) -> DispatchError {
        DispatchError::Timeout { serial: self.job.serial, peer: self.device.address(), doing }
    }

    fn failed(&self, doing: &'static str, error: DeviceError<String>) -> DispatchError {
        let (serial, peer) = (self.job.serial, self.device.address());
        match error {
            DeviceError::Carrier(reason) => self.gone(doing, reason),
            DeviceError::Timeout(_) => self.timed_out(doing),
            DeviceError::WrongCredentials => DispatchError::WrongCredentials { serial, peer },
            error => DispatchError::Refused { serial, peer, doing, answer: shown(&error.to_string()) },
        }
    }
}

/// What a device says, as far as it goes into a message: short, and without line breaks for a log.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(SHOWN).collect()
}

/// Carries requests through a device's uplink.
struct Through<'a>(&'a Uplink);

impl Carrier for Through<'_> {
    type Error = String;

    async fn carry(&self, request: Request<Bytes>) -> Result<Response<Bytes>, String> {
        let response = self.0.request(request).await.map_err(|error| error.to_string())?;
        let (head, body) = response.into_parts();
        let body = body.collect(ANSWER_LIMIT_BYTES).await.map_err(|error| error.to_string())?;
        Ok(Response::from_parts(head, body))
    }
}
