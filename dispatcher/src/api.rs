//! What tunnel servers ask (step 2): `homing_protocol::api::dispatcher`, over HTTPS with an account.

use crate::{
    accounts::{Gate, Refused},
    devices::Devices,
    metrics::Metrics,
    store::{AccountId, Generation, PutError, Rules, Store},
};
use axum::{
    Json, Router,
    body::Bytes,
    extract::{ConnectInfo, DefaultBodyLimit, FromRequestParts, Path, Query, State},
    http::{HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
    routing::get,
};
use homing_base::{
    client::parse_basic,
    http::Failure,
    throttle::{Throttle, Tolerance},
};
use homing_protocol::{
    Oak, Secret, SerialNumber, Step,
    api::{
        Problem,
        dispatcher::{Changes, NewRegistration, Registration, RegistrationState},
    },
};
use serde::Deserialize;
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, timeout};

/// A registration with its trust anchor; nobody needs more.
const BODY_LIMIT_BYTES: usize = 64 * 1024;

/// Characters of a device's user and of its password; what tunnel servers take, too.
const CREDENTIAL_LONGEST: usize = 256;

/// How long a registration's answer waits for a device that is already here.
const DISPATCH_WAIT: Duration = Duration::from_secs(8);

/// The longest that an answer about changes is held back.
const CHANGES_WAIT_S: u64 = 60;

/// Different OAKs for one serial number from one account: typing errors are free, guessing is hopeless.
const OAKS_PER_DEVICE: Tolerance =
    Tolerance { free: 5, first: Duration::from_secs(10), longest: Duration::from_secs(3600) };

/// Last OAKs remembered at once, 70 bytes each; when full all are forgotten, and cost a try again.
const OAKS_REMEMBERED: usize = 10_000;

/// What the handlers share.
pub(crate) struct Api {
    pub store: Arc<Store>,
    pub devices: Arc<Devices>,
    pub gate: Gate,
    pub metrics: Metrics,
    pub rules: Rules,
    guesses: Guesses,
}

impl Api {
    pub fn new(store: Arc<Store>, devices: Arc<Devices>, metrics: Metrics, rules: Rules) -> Self {
        let gate = Gate::new(store.pool().clone());
        Api { store, devices, gate, metrics, rules, guesses: Guesses::new() }
    }

    pub fn router(self: Arc<Self>) -> Router {
        Router::new()
            .route("/api/v1/registrations/{serial}", get(show).put(register).delete(release))
            .route("/api/v1/changes", get(changes))
            .layer(DefaultBodyLimit::max(BODY_LIMIT_BYTES))
            .with_state(self)
    }
}

/// An account whose credentials were right.
struct Account(AccountId);

impl FromRequestParts<Arc<Api>> for Account {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Response> {
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
        let header = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let (Some(peer), Some(credentials)) = (peer, header.and_then(parse_basic)) else {
            return Err(unauthorized());
        };
        match api.gate.pass(peer, &credentials).await {
            Ok(account) => {
                api.metrics.request("ok");
                Ok(Account(account))
            }
            Err(Refused::Wrong) => {
                api.metrics.request("unknown-account");
                tracing::warn!(%peer, "API request with a wrong account or password");
                Err(unauthorized())
            }
            Err(Refused::Later(wait)) => {
                api.metrics.request("slowed");
                Err(later(wait, "too many wrong passwords for this account from this address"))
            }
            Err(Refused::Internal(error)) => Err(Failure::from(error).into_response()),
        }
    }
}

/// `PUT /api/v1/registrations/{serial}`
async fn register(
    State(api): State<Arc<Api>>,
    Account(account): Account,
    Path(serial): Path<String>,
    body: Bytes,
) -> Result<Json<Registration>, Response> {
    let serial = parse_serial(&serial).map_err(Failure::into_response)?;
    let new = parse_registration(&body).map_err(Failure::into_response)?;
    if let Err(wait) = api.guesses.admit(account, serial, &new.oak) {
        return Err(later(wait, "too many different OAKs for this device"));
    }
    let generation = match api.store.put(account, serial, &new, api.rules).await {
        Ok(generation) => generation,
        Err(error) => return Err(refused(serial, error).into_response()),
    };
    tracing::info!(%serial, step = %Step::Relay, "registration taken");
    api.devices.room.wake(serial);
    let registration = api.settled(account, serial, generation).await.map_err(Failure::into_response)?;
    if registration.state == RegistrationState::Dispatched {
        api.guesses.handle_right(account, serial);
    }
    Ok(Json(registration))
}

impl Api {
    /// Waits until the devices that are here and claim this number have been tried, for a few seconds.
    async fn settled(
        &self,
        account: AccountId,
        serial: SerialNumber,
        generation: Generation,
    ) -> Result<Registration, Failure> {
        let mut progress = self.store.progress(account);
        let settle = async {
            while self.devices.room.untried(serial, generation) > 0 {
                let registration = self.store.get(account, serial).await?;
                if registration.is_none_or(|now| now.state == RegistrationState::Dispatched) {
                    break;
                }
                // Never fails: the store keeps the other end.
                let _ = progress.changed().await;
            }
            anyhow::Ok(())
        };
        tokio::select! {
            // In time or not: the answer says how far it is.
            settled = timeout(DISPATCH_WAIT, settle) => settled.unwrap_or(Ok(()))?,
            () = self.devices.stop.cancelled() => {}
        }
        self.store.get(account, serial).await?.ok_or_else(|| not_registered(serial))
    }
}

/// `GET /api/v1/registrations/{serial}`
async fn show(
    State(api): State<Arc<Api>>,
    Account(account): Account,
    Path(serial): Path<String>,
) -> Result<Json<Registration>, Failure> {
    let serial = parse_serial(&serial)?;
    api.store.get(account, serial).await?.map(Json).ok_or_else(|| not_registered(serial))
}

/// `DELETE /api/v1/registrations/{serial}`
async fn release(
    State(api): State<Arc<Api>>,
    Account(account): Account,
    Path(serial): Path<String>,
) -> Result<StatusCode, Failure> {
    let serial = parse_serial(&serial)?;
    if !api.store.delete(account, serial).await? {
        return Err(not_registered(serial));
    }
    tracing::info!(%serial, step = %Step::Relay, "registration deleted, claim released");
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangesQuery {
    #[serde(default)]
    after: u64,
    #[serde(default)]
    wait_s: u64,
}

/// `GET /api/v1/changes`: acknowledges everything up to `after`, then waits for what comes after it.
async fn changes(
    State(api): State<Arc<Api>>,
    Account(account): Account,
    Query(query): Query<ChangesQuery>,
) -> Result<Json<Changes>, Failure> {
    let mut progress = api.store.progress(account);
    api.store.acknowledge(account, query.after);
    let wait = Duration::from_secs(query.wait_s.min(CHANGES_WAIT_S));
    let deadline = tokio::time::sleep(wait);
    tokio::pin!(deadline);
    loop {
        progress.mark_unchanged();
        let changes = api.store.changes(account, query.after).await?;
        if !changes.changes.is_empty() || changes.last != query.after {
            return Ok(Json(changes));
        }
        tokio::select! {
            _ = progress.changed() => {}
            () = deadline.as_mut() => return Ok(Json(changes)),
            () = api.devices.stop.cancelled() => return Ok(Json(changes)),
        }
    }
}

/// Keeps an account from guessing the OAK of a device that waits.
///
/// Counted is what is registered, not what came of it: whoever hangs up before the answer would not be
/// counted otherwise, and a stranger's failures would be.
struct Guesses {
    /// Random, for this process alone.
    key: [u8; 32],
    /// Keyed hash of the last OAK.
    last: Mutex<HashMap<(AccountId, SerialNumber), [u8; 32]>>,
    throttle: Throttle<(AccountId, SerialNumber)>,
}

impl Guesses {
    fn new() -> Self {
        let mut key = [0; 32];
        rand::Rng::fill(&mut rand::rng(), &mut key);
        Guesses { key, last: Mutex::default(), throttle: Throttle::new(OAKS_PER_DEVICE) }
    }

    /// Counts an OAK that differs from the last one; the time to wait if there were too many.
    fn admit(&self, account: AccountId, serial: SerialNumber, oak: &Oak) -> Result<(), Duration> {
        let (device, digest) = ((account, serial), self.digest(oak));
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.get(&device) == Some(&digest) {
            return Ok(());
        }
        let now = Instant::now();
        let wait = self.throttle.wait(&device, now);
        if !wait.is_zero() {
            return Err(wait);
        }
        self.throttle.handle_wrong(&device, now);
        if last.len() >= OAKS_REMEMBERED {
            last.clear();
        }
        last.insert(device, digest);
        Ok(())
    }

    /// The device proved that it knows this one.
    fn handle_right(&self, account: AccountId, serial: SerialNumber) {
        self.throttle.handle_right(&(account, serial));
    }

    fn digest(&self, oak: &Oak) -> [u8; 32] {
        use hmac::{Hmac, Mac};
        let mac = Hmac::<sha2::Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        mac.chain_update(Secret::new(oak.label()).expose()).finalize().into_bytes().into()
    }
}

fn parse_serial(text: &str) -> Result<SerialNumber, Failure> {
    text.parse()
        .map_err(|error: homing_protocol::serial::ParseHexError| Failure::bad_request(error.to_string()))
}

/// Reads a registration and checks what its types cannot.
fn parse_registration(body: &[u8]) -> Result<NewRegistration, Failure> {
    let new: NewRegistration = serde_json::from_slice(body)
        .map_err(|error| Failure::bad_request(format!("registration: {error}")))?;
    let printable = |text: &str| !text.chars().any(char::is_control);
    let sized = |text: &str| text.chars().count() <= CREDENTIAL_LONGEST && printable(text);
    if new.user.is_empty() || !sized(&new.user) || !sized(new.password.expose()) {
        let rule = format!(
            "the device's user has 1 to {CREDENTIAL_LONGEST} printable characters, its password at most \
             {CREDENTIAL_LONGEST}"
        );
        return Err(Failure::bad_request(rule));
    }
    if !(1..=4).contains(&new.servers.len()) {
        return Err(Failure::bad_request("give 1 to 4 addresses of the tunnel server"));
    }
    for server in &new.servers {
        let address = format!("https://{server}/").parse::<homing_uplink::UplinkAddress>();
        if server.contains('/') || address.is_err() {
            let shown: String = server.chars().take(100).collect();
            let rule = format!("{shown:?} is no address of a tunnel server: write it as host:port");
            return Err(Failure::bad_request(rule));
        }
    }
    if new.trust_anchor.trim().is_empty() {
        let is_ip = |server: &&String| {
            let address = format!("https://{server}/").parse::<homing_uplink::UplinkAddress>();
            address.is_ok_and(|address| address.host().parse::<std::net::IpAddr>().is_ok())
        };
        if let Some(server) = new.servers.iter().find(is_ip) {
            let rule = format!("{server} needs a trust anchor: what browsers trust is for DNS names");
            return Err(Failure::bad_request(rule));
        }
        return Ok(new);
    }
    homing_uplink::roots_from_pem(new.trust_anchor.as_bytes())
        .map_err(|error| Failure::bad_request(format!("trust anchor: {error}")))?;
    Ok(new)
}

fn refused(serial: SerialNumber, error: PutError) -> Failure {
    match error {
        PutError::Claimed(since) => {
            // Date alone: who the other owner is, and when exactly, is not this one's business.
            let date = since.strftime("%Y-%m-%d");
            let message = format!(
                "{serial} is claimed by another account since {date}: its owner must delete it there first"
            );
            let problem = Problem::at(Step::Relay, "claimed-by-another-account", message);
            Failure::new(StatusCode::CONFLICT, problem)
        }
        PutError::Limit(limit) => {
            let message = format!("the account has {limit} registrations, which is its limit");
            Failure::new(StatusCode::FORBIDDEN, Problem::at(Step::Relay, "too-many-registrations", message))
        }
        PutError::WrongOak => {
            let message =
                format!("the OAK is not the one that the manufacturer gave {serial}: look at its label");
            Failure::new(StatusCode::UNPROCESSABLE_ENTITY, Problem::at(Step::Relay, "wrong-oak", message))
        }
        PutError::Unlisted => {
            let message =
                format!("no manufacturer's list at this dispatcher has {serial}: compare it with the label");
            Failure::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                Problem::at(Step::Relay, "unknown-serial", message),
            )
        }
        PutError::Internal(error) => Failure::from(error),
    }
}

fn not_registered(serial: SerialNumber) -> Failure {
    Failure::not_found(format!("{serial} is not registered by this account"))
}

fn unauthorized() -> Response {
    let problem = Problem::at(
        Step::Relay,
        "unknown-account",
        "the dispatcher does not know this account and password: check both, and that the account is not disabled",
    );
    let challenge = [(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"dispatcher\""))];
    (StatusCode::UNAUTHORIZED, challenge, Json(problem)).into_response()
}

fn later(wait: Duration, why: &str) -> Response {
    let seconds = wait.as_secs() + 1;
    let problem = Problem::at(Step::Relay, "slow-down", format!("{why}: try again in {seconds} s"));
    let retry = [(header::RETRY_AFTER, HeaderValue::from(seconds))];
    (StatusCode::TOO_MANY_REQUESTS, retry, Json(problem)).into_response()
}
