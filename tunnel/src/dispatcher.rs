//! Our end of the dispatcher's API: the calls, and whether it can be reached.
//!
//! What a failure means is decided here once: a dispatcher that cannot be reached or does not know our account is
//! tried again ([`Failed::Later`]), one that says no is believed ([`Failed::Refused`]).

use crate::{config, metrics::Metrics, registrations::Secrets};
use anyhow::ensure;
use homing_base::{
    Live,
    client::{ApiClient, Auth, CallError},
    tls::{Leaf, expiry},
};
use homing_protocol::{
    Secret, SerialNumber, Step,
    api::{
        Expiry, Problem, ProblemDetail,
        dispatcher::{Arrived, Changes, NewRegistration, Offer, Registration},
    },
    secret::Credentials,
    voucher::is_voucher,
};
use homing_uplink::Fingerprint;
use http::{Method, StatusCode};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::Notify;

/// How long the dispatcher may hold back an answer to `changes`; well below what proxies between cut off.
const CHANGES_WAIT: Duration = Duration::from_secs(25);

/// The dispatcher of this tunnel server.
pub(crate) struct Dispatcher {
    there: Live<There>,
    /// What devices are told to dial, and to trust there.
    servers: Vec<String>,
    leaf: Arc<Leaf>,
    /// What it signs its word about our devices' keys with.
    voucher_key: Secret,
    problem: Mutex<Option<ProblemDetail>>,
    /// The last question for changes failed.
    is_silent: AtomicBool,
    recovered: Notify,
    metrics: Arc<Metrics>,
}

/// As the configuration says.
struct There {
    client: ApiClient,
    address: String,
    account: String,
    /// PEM of what we trust there; none: the public web's.
    trust: Option<String>,
}

impl There {
    fn new(config: &config::Dispatcher) -> anyhow::Result<Self> {
        ensure!(
            config.address.starts_with("https://"),
            "[tunnel.dispatcher] address is {:?}: passwords and OAKs go there, so it must begin with https://",
            config.address
        );
        let account = Credentials::new(config.account.clone(), config.password.clone());
        let trust = config.trust_anchor_pem()?;
        let client = ApiClient::new("dispatcher", &config.address, &Auth::Basic(account), trust.as_deref())?;
        Ok(There { client, address: config.address.clone(), account: config.account.clone(), trust })
    }
}

/// Why a call did not succeed.
#[derive(Debug)]
pub(crate) enum Failed {
    /// Unreachable, in trouble, or our account is unknown to it: to be tried again.
    Later(ProblemDetail),
    /// It says no, and why.
    Refused(StatusCode, Problem),
}

impl Dispatcher {
    /// # Errors
    /// When the address or the trust anchor cannot be read.
    pub fn new(
        config: &config::Dispatcher,
        servers: Vec<String>,
        leaf: Arc<Leaf>,
        voucher_key: Secret,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        Ok(Dispatcher {
            there: Live::new(There::new(config)?),
            servers,
            leaf,
            voucher_key,
            problem: Mutex::default(),
            is_silent: AtomicBool::new(false),
            recovered: Notify::new(),
            metrics,
        })
    }

    /// Another address, account or trust anchor from the next call on.
    ///
    /// # Errors
    /// As [`Dispatcher::new`]; then nothing has changed.
    pub fn reload(&self, config: &config::Dispatcher) -> anyhow::Result<()> {
        self.there.set(There::new(config)?);
        // What was wrong may be mended.
        self.recovered.notify_one();
        Ok(())
    }

    /// Its address, as configured.
    pub fn address(&self) -> String {
        self.there.get().address.clone()
    }

    /// Our account there.
    pub fn account(&self) -> String {
        self.there.get().account.clone()
    }

    /// What devices are told to dial.
    pub fn servers(&self) -> &[String] {
        &self.servers
    }

    /// What devices are told to trust.
    pub fn trust_anchor(&self) -> String {
        self.leaf.trust_anchor()
    }

    /// Certificates of the external address, and of what we rely on.
    pub fn certificates(&self) -> Vec<Expiry> {
        let mut all = self.leaf.expiries("the external address");
        let there = self.there.get();
        all.extend(there.client.certificate("certificate of the dispatcher"));
        let trust = there.trust.as_deref().unwrap_or_default();
        all.extend(expiry::of_pem("[tunnel.dispatcher] trust_anchor", trust, false));
        all
    }

    /// What is wrong between us and it.
    pub fn problem(&self) -> Option<ProblemDetail> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns when the dispatcher was away and is back.
    pub async fn recovered(&self) {
        self.recovered.notified().await;
    }

    /// Step 2: relays a registration. The answer may take some seconds, when the device is there already.
    pub async fn register(&self, serial: SerialNumber, secrets: &Secrets) -> Result<Registration, Failed> {
        let registration = NewRegistration {
            oak: secrets.oak.clone(),
            user: secrets.credentials.user.clone(),
            password: secrets.credentials.password.clone(),
            servers: self.servers.clone(),
            trust_anchor: self.trust_anchor(),
            voucher_key: self.voucher_key.clone(),
        };
        let path = format!("/api/v1/registrations/{serial}");
        let answer = self.there.get().client.send::<_, Registration>(Method::PUT, &path, &registration).await;
        let told = answer.map_err(|error| self.failed(error))?;
        self.reached();
        if told.serial != serial {
            let cause = format!("an answer about {} to a registration of {serial}", told.serial);
            return Err(self.later("unexpected", format!("{} gave {cause}.", self.there.get().client.peer())));
        }
        Ok(self.checked(told))
    }

    /// Without a voucher that is not ours: what has one can be believed.
    fn checked(&self, mut told: Registration) -> Registration {
        let key = told.fingerprint.as_deref().unwrap_or_default();
        let is_ours = |voucher: &String| is_voucher(&self.voucher_key, told.serial, key, voucher);
        told.voucher = told.voucher.filter(is_ours);
        told
    }

    /// Releases a claim. One that the dispatcher does not know is as good as released.
    pub async fn release(&self, serial: SerialNumber) -> Result<(), Failed> {
        let path = format!("/api/v1/registrations/{serial}");
        match self.there.get().client.send::<_, serde_json::Value>(Method::DELETE, &path, &()).await {
            Ok(_) => {
                self.reached();
                Ok(())
            }
            Err(CallError::Refused { status: StatusCode::NOT_FOUND, .. }) => Ok(()),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Another account may take a device over.
    pub async fn offer(&self, serial: SerialNumber, to: &str) -> Result<(), Failed> {
        let (path, offer) = (format!("/api/v1/registrations/{serial}/offer"), Offer { to: to.to_owned() });
        let told = self.there.get().client.send::<_, serde_json::Value>(Method::PUT, &path, &offer).await;
        told.map(|_| self.reached()).map_err(|error| self.failed(error))
    }

    /// It may no longer.
    pub async fn withdraw(&self, serial: SerialNumber) -> Result<(), Failed> {
        let path = format!("/api/v1/registrations/{serial}/offer");
        let told = self.there.get().client.send::<_, serde_json::Value>(Method::DELETE, &path, &()).await;
        told.map(|_| self.reached()).map_err(|error| self.failed(error))
    }

    /// Step 7 of a device that came by another way than by the dispatcher.
    pub async fn arrived(&self, serial: SerialNumber, key: Fingerprint) -> Result<Registration, Failed> {
        let path = format!("/api/v1/registrations/{serial}/arrived");
        let arrived = Arrived { fingerprint: key.to_string() };
        let told = self.there.get().client.send(Method::PUT, &path, &arrived).await;
        let told: Registration = told.inspect(|_| self.reached()).map_err(|error| self.failed(error))?;
        Ok(self.checked(told))
    }

    /// Step 5: what has changed after `after`, which acknowledges everything up to there. Held back until there is
    /// something.
    pub async fn changes(&self, after: u64) -> Result<Changes, Failed> {
        // Of one that could not be reached, it counts that it answers, not when something has changed.
        let wait = match self.is_silent.load(Ordering::Relaxed) {
            true => Duration::ZERO,
            false => CHANGES_WAIT,
        };
        let path = format!("/api/v1/changes?after={after}&wait_s={}", wait.as_secs());
        let told = self.there.get().client.wait::<Changes>(&path, wait).await;
        self.is_silent.store(told.is_err(), Ordering::Relaxed);
        match told.map_err(|error| self.failed(error)) {
            Ok(told) => {
                self.reached();
                let changes = told.changes.into_iter().map(|told| self.checked(told)).collect();
                Ok(Changes { changes, ..told })
            }
            // No dispatcher refuses this to an account that it knows.
            Err(Failed::Refused(status, problem)) => {
                let message = format!(
                    "{} answered {status}: {}",
                    self.there.get().client.peer(),
                    problem.error.message
                );
                Err(self.later("unexpected", message))
            }
            Err(later) => Err(later),
        }
    }

    fn failed(&self, error: CallError) -> Failed {
        let message = error.to_string();
        match error {
            CallError::Refused { status, problem, .. } => match status {
                StatusCode::UNAUTHORIZED => {
                    let hint = "check [tunnel.dispatcher] account and password";
                    self.later("unknown-account", format!("{message} — {hint}"))
                }
                // Who was wrong too often is not looked at for a while.
                StatusCode::TOO_MANY_REQUESTS
                    if self.problem().is_some_and(|problem| problem.code == "unknown-account") =>
                {
                    self.later("unknown-account", message)
                }
                // It is there, and in trouble with this one call.
                status if status.is_server_error() => {
                    self.reached();
                    Failed::Later(Problem::at(Step::Relay, "dispatcher-error", message).error)
                }
                status => {
                    self.reached();
                    Failed::Refused(status, *problem)
                }
            },
            CallError::Unreachable { .. } => self.later("dispatcher-unreachable", message),
            CallError::Unexpected { .. } => self.later("unexpected", message),
        }
    }

    fn later(&self, code: &str, message: String) -> Failed {
        let detail = Problem::at(Step::Relay, code, message).error;
        let mut problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if problem.as_ref().is_none_or(|before| before.code != detail.code) {
            tracing::warn!(step = %Step::Relay, code, problem = detail.message, "dispatcher");
        }
        *problem = Some(detail.clone());
        self.metrics.dispatcher_reachable.set(0);
        Failed::Later(detail)
    }

    fn reached(&self) {
        let mut problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if problem.take().is_some() {
            tracing::info!(step = %Step::Relay, dispatcher = self.address(), "dispatcher reached again");
            self.recovered.notify_one();
        }
        self.metrics.dispatcher_reachable.set(1);
    }
}
