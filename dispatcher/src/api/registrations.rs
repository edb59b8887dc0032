//! What tunnel servers ask (step 2): `homing_protocol::api::dispatcher`, over HTTPS with an account.

use super::{Account, Api, Body, Query, Refusals, Serial, bad_request, internal, later};
use crate::{
    accounts,
    attempts::What,
    claims::{self, PutError},
    limits,
    offers::OfferError,
    store::{AccountId, Generation},
};
use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use homing_base::{crowd::network, http::Failure};
use homing_protocol::{
    Oak, Secret, SerialNumber, Step,
    api::{
        Problem,
        dispatcher::{Arrived, Changes, NewRegistration, Offer, Registration, RegistrationState},
    },
};
use serde::Deserialize;
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::timeout;

/// Characters of a device's user and of its password; what tunnel servers take, too.
const CREDENTIAL_LONGEST: usize = 256;

/// How long a registration's answer waits for a device that is already here.
const DISPATCH_WAIT: Duration = Duration::from_secs(8);

/// The longest that an answer about changes is held back.
const CHANGES_WAIT_S: u64 = 60;

/// Last OAKs remembered at once, 70 bytes each; when full all are forgotten, and cost a try again.
const OAKS_REMEMBERED: usize = 10_000;

/// Register a device
///
/// Replaces the account's earlier registration of it. The answer waits a few seconds for a device that is there already.
#[utoipa::path(put, path = "/api/v1/registrations/{serial}", tag = "registrations", security(("account" = [])),
    params(("serial" = String, Path, description = "Serial number")), request_body = NewRegistration,
    responses(
        (status = 200, body = Registration),
        (status = 403, body = Problem, description = "`too-many-registrations`, `server-not-allowed`"),
        (status = 404, body = Problem, description = "`not-found`: deleted meanwhile"),
        (status = 409, body = Problem, description = "`claimed-by-another-account`, `contested`"),
        (status = 422, body = Problem, description = "`wrong-oak`, `unknown-serial`"), Refusals))]
pub(super) async fn register(
    State(api): State<Arc<Api>>,
    account: Account,
    Serial(serial): Serial,
    Body(new): Body<NewRegistration>,
) -> Result<Json<Registration>, Response> {
    check_registration(&new, api.may_be_loopback()).map_err(bad_request)?;
    let (name, limits, rules) = api.admit(account.id).await?;
    if let Some(server) = new.servers.iter().find(|server| !limits.allow(server)) {
        return Err(not_allowed(server));
    }
    let guess = Guess { account: &name, from: account.peer, serial };
    let is_other = api.admit_oak(account.id, &guess, &new.oak).await?;
    let generation = match api.store.put(account.id, serial, &new, rules).await {
        Ok(generation) => generation,
        Err(error) => {
            if matches!(error, PutError::WrongOak) && !is_other {
                api.count_wrong(&guess).await?;
            }
            return Err(refused(serial, error));
        }
    };
    tracing::info!(%serial, step = %Step::Relay, "registration taken");
    api.devices.room.wake(serial);
    let registration = api.settled(account.id, serial, generation).await.map_err(Failure::into_response)?;
    if registration.state == RegistrationState::Dispatched {
        api.counted.handle_right(What::OakByAccountAndDevice, &guess.of_device());
    }
    Ok(Json(registration))
}

/// Who has registered what.
struct Guess<'a> {
    account: &'a str,
    from: IpAddr,
    serial: SerialNumber,
}

impl Guess<'_> {
    fn of_device(&self) -> String {
        format!("{} {}", self.account, self.serial)
    }

    fn counters(&self) -> [(What, String); 3] {
        [
            (What::OakByAccountAndDevice, self.of_device()),
            (What::OakByAccount, self.account.to_owned()),
            (What::OakByNetwork, network(self.from).to_string()),
        ]
    }
}

impl Api {
    /// Keeps an account from guessing OAKs: whether this one differs from the last that it gave for the device. If it
    /// does, it is counted here, whatever comes of it: whoever hangs up before the answer would not be counted
    /// otherwise, and what strangers do who claim to be the device would.
    async fn admit_oak(&self, account: AccountId, guess: &Guess<'_>, oak: &Oak) -> Result<bool, Response> {
        let seen = self.last_oaks.compare(account, guess.serial, oak);
        if seen == Seen::Same {
            return Ok(false);
        }
        let wait = guess.counters().iter().map(|(what, who)| self.counted.wait(*what, who)).max();
        let wait = wait.unwrap_or_default();
        if !wait.is_zero() {
            self.metrics.request("slowed");
            return Err(later(wait, "too many different OAKs"));
        }
        self.last_oaks.keep(account, guess.serial, oak);
        if seen == Seen::Other {
            self.count_wrong(guess).await?;
        }
        Ok(seen == Seen::Other)
    }

    async fn count_wrong(&self, guess: &Guess<'_>) -> Result<(), Response> {
        for (what, who) in guess.counters() {
            self.counted.handle_wrong(what, &who);
        }
        self.counted.handle_wrong(What::OakForDevice, &guess.serial.to_string());
        self.counted.write().await.map_err(internal)
    }

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

/// One registration
#[utoipa::path(get, path = "/api/v1/registrations/{serial}", tag = "registrations", security(("account" = [])),
    params(("serial" = String, Path, description = "Serial number")),
    responses((status = 200, body = Registration), (status = 404, body = Problem), Refusals))]
pub(super) async fn show(
    State(api): State<Arc<Api>>,
    account: Account,
    Serial(serial): Serial,
) -> Result<Json<Registration>, Response> {
    let registration = api.store.get(account.id, serial).await.map_err(internal)?;
    registration.map(Json).ok_or_else(|| not_registered(serial).into_response())
}

/// Delete a registration, and release the claim
#[utoipa::path(delete, path = "/api/v1/registrations/{serial}", tag = "registrations", security(("account" = [])),
    params(("serial" = String, Path, description = "Serial number")),
    responses((status = 204), (status = 404, body = Problem), Refusals))]
pub(super) async fn release(
    State(api): State<Arc<Api>>,
    account: Account,
    Serial(serial): Serial,
) -> Result<StatusCode, Response> {
    if !api.store.delete(account.id, serial).await.map_err(internal)? {
        return Err(not_registered(serial).into_response());
    }
    api.devices.room.wake(serial);
    tracing::info!(%serial, step = %Step::Relay, "registration deleted");
    Ok(StatusCode::NO_CONTENT)
}

/// Offer a device to another account
///
/// That account takes it over by registering it with the right OAK, within seven days. The answer is the same whether
/// there is such an account or not.
#[utoipa::path(put, path = "/api/v1/registrations/{serial}/offer", tag = "registrations", security(("account" = [])),
    params(("serial" = String, Path, description = "Serial number")), request_body = Offer,
    responses((status = 204), (status = 404, body = Problem),
        (status = 409, body = Problem, description = "`unproven`"), Refusals))]
pub(super) async fn offer(
    State(api): State<Arc<Api>>,
    account: Account,
    Serial(serial): Serial,
    Body(Offer { to }): Body<Offer>,
) -> Result<StatusCode, Response> {
    let (name, ..) = api.admit(account.id).await?;
    if !accounts::is_usable(&to) || to == name {
        return Err(bad_request("to is the name of another account"));
    }
    api.store.offer(account.id, serial, &to).await.map_err(|error| not_offered(serial, error))?;
    Ok(StatusCode::NO_CONTENT)
}

/// Withdraw the offer
#[utoipa::path(delete, path = "/api/v1/registrations/{serial}/offer", tag = "registrations",
    security(("account" = [])), params(("serial" = String, Path, description = "Serial number")),
    responses((status = 204), (status = 404, body = Problem),
        (status = 409, body = Problem, description = "`unproven`"), Refusals))]
pub(super) async fn withdraw(
    State(api): State<Arc<Api>>,
    account: Account,
    Serial(serial): Serial,
) -> Result<StatusCode, Response> {
    api.store.withdraw_offer(account.id, serial).await.map_err(|error| not_offered(serial, error))?;
    Ok(StatusCode::NO_CONTENT)
}

/// The device has come to the account's tunnel server by another way
#[utoipa::path(put, path = "/api/v1/registrations/{serial}/arrived", tag = "registrations",
    security(("account" = [])), params(("serial" = String, Path, description = "Serial number")),
    request_body = Arrived,
    responses((status = 200, body = Registration), (status = 404, body = Problem),
        (status = 409, body = Problem, description = "`unproven`, `other-key`"), Refusals))]
pub(super) async fn arrived(
    State(api): State<Arc<Api>>,
    account: Account,
    Serial(serial): Serial,
    Body(arrived): Body<Arrived>,
) -> Result<Json<Registration>, Response> {
    let registration = api.store.arrived(account.id, serial, &arrived.fingerprint).await;
    // One with another key may be here, and was about to be dispatched by what is forgotten now.
    api.devices.room.wake(serial);
    registration.map(Json).map_err(|error| not_offered(serial, error))
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct ChangesQuery {
    /// The `last` of the answer before; acknowledges everything up to there.
    #[serde(default)]
    after: u64,
    /// Seconds to wait for a change where there is none yet, at most 60.
    #[serde(default)]
    wait_s: u64,
}

/// What has changed
///
/// Acknowledges everything up to `after`, then waits for what comes after it.
#[utoipa::path(get, path = "/api/v1/changes", tag = "registrations", security(("account" = [])),
    params(ChangesQuery), responses((status = 200, body = Changes), Refusals))]
pub(super) async fn changes(
    State(api): State<Arc<Api>>,
    Account { id: account, .. }: Account,
    Query(query): Query<ChangesQuery>,
) -> Result<Json<Changes>, Response> {
    let mut progress = api.store.progress(account);
    api.store.acknowledge(account, query.after);
    let wait = Duration::from_secs(query.wait_s.min(CHANGES_WAIT_S));
    let deadline = tokio::time::sleep(wait);
    tokio::pin!(deadline);
    loop {
        progress.mark_unchanged();
        let changes = api.store.changes(account, query.after).await.map_err(internal)?;
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

/// The last OAK that an account gave for a device, as a keyed hash.
pub(super) struct LastOaks {
    /// Random, for this process alone.
    key: [u8; 32],
    last: Mutex<HashMap<(AccountId, SerialNumber), [u8; 32]>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Seen {
    First,
    Same,
    Other,
}

impl LastOaks {
    pub(super) fn new() -> Self {
        let mut key = [0; 32];
        rand::Rng::fill(&mut rand::rng(), &mut key);
        LastOaks { key, last: Mutex::default() }
    }

    fn compare(&self, account: AccountId, serial: SerialNumber, oak: &Oak) -> Seen {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match last.get(&(account, serial)) {
            None => Seen::First,
            Some(digest) if *digest == self.digest(oak) => Seen::Same,
            Some(_) => Seen::Other,
        }
    }

    fn keep(&self, account: AccountId, serial: SerialNumber, oak: &Oak) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() >= OAKS_REMEMBERED {
            last.clear();
        }
        last.insert((account, serial), self.digest(oak));
    }

    fn digest(&self, oak: &Oak) -> [u8; 32] {
        use hmac::{Hmac, Mac};
        let mac = Hmac::<sha2::Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        mac.chain_update(Secret::new(oak.label()).expose()).finalize().into_bytes().into()
    }
}

/// Checks what the types cannot.
fn check_registration(new: &NewRegistration, may_be_loopback: bool) -> Result<(), String> {
    let printable = |text: &str| !text.chars().any(char::is_control);
    let sized = |text: &str| text.chars().count() <= CREDENTIAL_LONGEST && printable(text);
    if new.user.is_empty() || !sized(&new.user) || !sized(new.password.expose()) {
        return Err(format!(
            "the device's user has 1 to {CREDENTIAL_LONGEST} printable characters, its password at most \
             {CREDENTIAL_LONGEST}"
        ));
    }
    if !(1..=4).contains(&new.servers.len()) {
        return Err("give 1 to 4 addresses of the tunnel server".to_owned());
    }
    for server in &new.servers {
        let shown: String = server.chars().take(100).collect();
        let address = format!("https://{server}/").parse::<homing_uplink::UplinkAddress>();
        let Some(address) = address.ok().filter(|_| !server.contains('/')) else {
            return Err(format!("{shown:?} is no address of a tunnel server: write it as host:port"));
        };
        limits::check_destination(address.host(), may_be_loopback)
            .map_err(|kind| format!("{shown:?} is {kind}: devices are not sent there"))?;
        if new.trust_anchor.trim().is_empty() && address.host().parse::<IpAddr>().is_ok() {
            return Err(format!("{shown:?} needs a trust anchor: what browsers trust is for DNS names"));
        }
    }
    if new.trust_anchor.trim().is_empty() {
        return Ok(());
    }
    let roots = homing_uplink::roots_from_pem(new.trust_anchor.as_bytes());
    roots.map(drop).map_err(|error| format!("trust anchor: {error}"))
}

fn refused(serial: SerialNumber, error: PutError) -> Response {
    let (status, (code, message)) = match error {
        PutError::Claimed(since) => (StatusCode::CONFLICT, claims::claimed(serial, since)),
        PutError::Limit(limit) => {
            let message = format!("the account has {limit} registrations, which is its limit");
            (StatusCode::FORBIDDEN, ("too-many-registrations", message))
        }
        PutError::WrongOak => (StatusCode::UNPROCESSABLE_ENTITY, claims::wrong_oak(serial)),
        PutError::Unlisted => {
            let message =
                format!("no manufacturer's list at this dispatcher has {serial}: compare it with the label");
            (StatusCode::UNPROCESSABLE_ENTITY, ("unknown-serial", message))
        }
        PutError::Crowded => {
            let message = format!(
                "many accounts have registered {serial}, and none has proven its OAK: try again in a while"
            );
            (StatusCode::CONFLICT, ("contested", message))
        }
        PutError::Later(wait) => {
            return later(wait, "this account has pushed other registrations of the device out already");
        }
        PutError::Internal(error) => return internal(error),
    };
    Failure::new(status, Problem::at(Step::Relay, code, message)).into_response()
}

fn not_allowed(server: &str) -> Response {
    let shown: String = server.chars().take(100).collect();
    let message =
        format!("the account may not send devices to {shown:?}: the dispatcher's operator says where it may");
    let problem = Problem::at(Step::Relay, "server-not-allowed", message);
    Failure::new(StatusCode::FORBIDDEN, problem).into_response()
}

fn not_offered(serial: SerialNumber, error: OfferError) -> Response {
    let (code, message) = match error {
        OfferError::NotRegistered => return not_registered(serial).into_response(),
        OfferError::Unproven => {
            ("unproven", format!("{serial} is no claim of this account yet: no device has proven its OAK"))
        }
        OfferError::OtherKey => ("other-key", format!("{serial} has another key, or none that is known")),
        OfferError::Internal(error) => return internal(error),
    };
    Failure::new(StatusCode::CONFLICT, Problem::at(Step::Relay, code, message)).into_response()
}

fn not_registered(serial: SerialNumber) -> Failure {
    Failure::not_found(format!("{serial} is not registered by this account"))
}
