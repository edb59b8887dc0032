//! A dispatcher that does what the test says: the other side of `protocol/src/api/dispatcher.rs`.

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, put},
};
use homing_base::{
    Stop,
    client::parse_basic,
    http::Failure,
    tls::{LEAF_LIFE, Leaf, PrivateCa},
};
use homing_protocol::{
    Secret, SerialNumber, Step,
    api::{
        Problem, ProblemDetail, Target,
        dispatcher::{Arrived, Changes, NewRegistration, Offer, Registration, RegistrationState},
    },
    voucher::voucher,
};
use homing_uplink::Fingerprint;
use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::watch;

pub const ACCOUNT: &str = "shop";
pub const PASSWORD: &str = "account-password-7391";

/// What a registration is answered with.
#[derive(Clone)]
pub enum Mode {
    /// Nobody is there yet: scenarios A and B.
    Accept,
    /// The device is there with this key: step 5 is carried out before the answer (scenarios C and D).
    Dispatch(Fingerprint),
    /// Refused at once.
    Refuse(StatusCode, &'static str, &'static str),
    /// Refused in step 5, while the request waits.
    RefuseInStep5(&'static str, &'static str),
}

/// The script and what was heard.
#[derive(Clone)]
pub struct Dispatcher {
    inner: Arc<Mutex<Inner>>,
    seq: Arc<watch::Sender<u64>>,
    acknowledged: Arc<watch::Sender<u64>>,
    heard: Arc<watch::Sender<usize>>,
    ca: Arc<PrivateCa>,
    pub address: SocketAddr,
}

struct Inner {
    mode: Mode,
    known: HashMap<SerialNumber, Registration>,
    relayed: Vec<(SerialNumber, NewRegistration)>,
    released: HashSet<SerialNumber>,
    offers: HashMap<SerialNumber, String>,
    arrived: Vec<(SerialNumber, String)>,
    is_foreign: bool,
}

impl Dispatcher {
    /// Not listening yet; `address` is where it will.
    pub fn new(folder: &std::path::Path) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Dispatcher {
            inner: Arc::new(Mutex::new(Inner {
                mode: Mode::Accept,
                known: HashMap::new(),
                relayed: Vec::new(),
                released: HashSet::new(),
                offers: HashMap::new(),
                arrived: Vec::new(),
                is_foreign: false,
            })),
            seq: Arc::new(watch::Sender::new(0)),
            acknowledged: Arc::new(watch::Sender::new(0)),
            heard: Arc::new(watch::Sender::new(0)),
            ca: Arc::new(PrivateCa::open(folder, "dispatcher").unwrap()),
            address: free.local_addr().unwrap(),
        }
    }

    pub fn trust_anchor(&self) -> String {
        self.ca.trust_anchor()
    }

    /// Begins to listen; it ends with `stop`.
    pub fn start(&self, stop: &Stop) {
        let listener = homing_base::listen::bind(self.address, "test dispatcher").unwrap();
        let leaf = Leaf::issued_by(self.ca.clone(), vec!["127.0.0.1".into()], LEAF_LIFE).unwrap();
        let tls = homing_base::tls::server_config(leaf).unwrap();
        let router = Router::new()
            .route("/api/v1/registrations/{serial}", put(register).delete(release))
            .route("/api/v1/registrations/{serial}/offer", put(offer).delete(withdraw))
            .route("/api/v1/registrations/{serial}/arrived", put(arrived))
            .route("/api/v1/changes", get(changes))
            .layer(axum::Extension(stop.clone()))
            .with_state(self.clone());
        stop.spawn(homing_base::http::serve(listener, router, Some(tls), stop.clone()));
    }

    pub fn answer_with(&self, mode: Mode) {
        self.inner.lock().unwrap().mode = mode;
    }

    /// From now on what is told is of somebody else's registrations.
    pub fn is_foreign(&self) {
        self.inner.lock().unwrap().is_foreign = true;
    }

    /// What was relayed, in order.
    pub fn relayed(&self) -> Vec<(SerialNumber, NewRegistration)> {
        self.inner.lock().unwrap().relayed.clone()
    }

    /// Waits until so many registrations were relayed.
    pub async fn relayed_times(&self, times: usize) {
        self.until(|inner| inner.relayed.len() >= times, "registrations to be relayed").await;
    }

    /// Waits until a claim is released.
    pub async fn released(&self, serial: SerialNumber) {
        self.until(|inner| inner.released.contains(&serial), "a claim to be released").await;
    }

    /// Waits until a claim is offered to this account, or to none.
    pub async fn offered(&self, serial: SerialNumber, to: Option<&str>) {
        let offered = |inner: &Inner| inner.offers.get(&serial).map(String::as_str) == to;
        self.until(offered, "a claim to be offered").await;
    }

    /// Waits until an arrival is reported; the key.
    pub async fn arrival(&self, serial: SerialNumber) -> String {
        let of = |inner: &Inner| inner.arrived.iter().find(|(of, _)| *of == serial).cloned();
        self.until(|inner| of(inner).is_some(), "an arrival").await;
        of(&self.inner.lock().unwrap()).unwrap().1
    }

    /// Another account has taken a device over; comes back when it is acknowledged.
    pub async fn transfer(&self, serial: SerialNumber, next: Target) {
        let told = self.tell(serial, RegistrationState::Transferred, Step::Tunnel, None, None);
        let told = Registration { next: Some(next), seq: told.seq + 1, ..told };
        let seq = told.seq;
        self.inner.lock().unwrap().known.insert(serial, told);
        self.seq.send_replace(seq);
        self.acknowledged_up_to(seq).await;
    }

    async fn until(&self, condition: impl Fn(&Inner) -> bool, what: &str) {
        let mut heard = self.heard.subscribe();
        let waiting = heard.wait_for(|_| condition(&self.inner.lock().unwrap()));
        tokio::time::timeout(Duration::from_secs(20), waiting)
            .await
            .unwrap_or_else(|_| panic!("waited for {what}"))
            .unwrap();
    }

    /// A change; comes back when the tunnel server has acknowledged it.
    pub async fn announce(
        &self,
        serial: SerialNumber,
        state: RegistrationState,
        step: Step,
        fingerprint: Option<Fingerprint>,
        problem: Option<ProblemDetail>,
    ) {
        let seq = self.tell(serial, state, step, fingerprint, problem).seq;
        self.acknowledged_up_to(seq).await;
    }

    /// Step 5 as it succeeds.
    pub async fn vouch(&self, serial: SerialNumber, fingerprint: Fingerprint) {
        self.announce(serial, RegistrationState::Dispatching, Step::Dispatch, Some(fingerprint), None).await;
        self.announce(serial, RegistrationState::Dispatched, Step::Dispatch, Some(fingerprint), None).await;
    }

    async fn acknowledged_up_to(&self, seq: u64) {
        let mut acknowledged = self.acknowledged.subscribe();
        let waiting = acknowledged.wait_for(|acknowledged| *acknowledged >= seq);
        tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("no acknowledgement").unwrap();
    }

    /// Forgets everything, as a restored database does.
    pub fn forget(&self) {
        self.inner.lock().unwrap().known.clear();
        self.acknowledged.send_replace(0);
        self.seq.send_replace(0);
    }

    fn tell(
        &self,
        serial: SerialNumber,
        state: RegistrationState,
        step: Step,
        fingerprint: Option<Fingerprint>,
        problem: Option<ProblemDetail>,
    ) -> Registration {
        let mut inner = self.inner.lock().unwrap();
        let seq = *self.seq.borrow() + 1;
        let fingerprint = fingerprint.map(|fingerprint| fingerprint.to_string());
        let of = |(of, new): &&(SerialNumber, NewRegistration)| *of == serial && !new.voucher_key.is_empty();
        let key = inner.relayed.iter().rfind(of).map(|(_, new)| new.voucher_key.clone());
        let vouched = |key: Secret| Some(voucher(&key, serial, fingerprint.as_deref()?));
        let voucher = key.and_then(vouched).filter(|_| !inner.is_foreign);
        let since = jiff::Timestamp::now();
        let told = Registration {
            serial,
            state,
            fingerprint,
            voucher,
            problem,
            step,
            since,
            seq,
            next: None,
            contested: None,
        };
        inner.known.insert(serial, told.clone());
        drop(inner);
        self.seq.send_replace(seq);
        told
    }
}

fn check(headers: &HeaderMap) -> Result<(), Failure> {
    let given = headers.get("authorization").and_then(|value| value.to_str().ok()).and_then(parse_basic);
    if given.is_some_and(|given| given.user == ACCOUNT && given.password.matches(PASSWORD)) {
        return Ok(());
    }
    let problem = Problem::at(Step::Relay, "unknown-account", "The account is not known here.");
    Err(Failure::new(StatusCode::UNAUTHORIZED, problem))
}

async fn register(
    State(this): State<Dispatcher>,
    Path(serial): Path<SerialNumber>,
    headers: HeaderMap,
    Json(registration): Json<NewRegistration>,
) -> Result<Json<Registration>, Response> {
    check(&headers).map_err(IntoResponse::into_response)?;
    let mode = {
        let mut inner = this.inner.lock().unwrap();
        inner.relayed.push((serial, registration));
        inner.released.remove(&serial);
        inner.mode.clone()
    };
    this.heard.send_modify(|heard| *heard += 1);
    let told = match mode {
        Mode::Accept => this.tell(serial, RegistrationState::Waiting, Step::Relay, None, None),
        Mode::Dispatch(key) => {
            let told = this.tell(serial, RegistrationState::Dispatching, Step::Dispatch, Some(key), None);
            this.acknowledged_up_to(told.seq).await;
            this.tell(serial, RegistrationState::Dispatched, Step::Dispatch, Some(key), None)
        }
        Mode::Refuse(status, code, message) => {
            return Err(Failure::new(status, Problem::at(Step::Relay, code, message)).into_response());
        }
        Mode::RefuseInStep5(code, message) => {
            let problem = Problem::at(Step::Dispatch, code, message).error;
            this.tell(serial, RegistrationState::Refused, Step::PhoneHome, None, Some(problem))
        }
    };
    Ok(Json(told))
}

async fn release(
    State(this): State<Dispatcher>,
    Path(serial): Path<SerialNumber>,
    headers: HeaderMap,
) -> Result<StatusCode, Failure> {
    check(&headers)?;
    let mut inner = this.inner.lock().unwrap();
    inner.released.insert(serial);
    inner.known.remove(&serial);
    drop(inner);
    this.heard.send_modify(|heard| *heard += 1);
    Ok(StatusCode::NO_CONTENT)
}

async fn offer(
    State(this): State<Dispatcher>,
    Path(serial): Path<SerialNumber>,
    headers: HeaderMap,
    Json(offer): Json<Offer>,
) -> Result<StatusCode, Failure> {
    check(&headers)?;
    if offer.to == "nobody" {
        let problem = Problem::new("unknown-account", "There is no such account.");
        return Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, problem));
    }
    this.inner.lock().unwrap().offers.insert(serial, offer.to);
    this.heard.send_modify(|heard| *heard += 1);
    Ok(StatusCode::NO_CONTENT)
}

async fn withdraw(
    State(this): State<Dispatcher>,
    Path(serial): Path<SerialNumber>,
    headers: HeaderMap,
) -> Result<StatusCode, Failure> {
    check(&headers)?;
    this.inner.lock().unwrap().offers.remove(&serial);
    this.heard.send_modify(|heard| *heard += 1);
    Ok(StatusCode::NO_CONTENT)
}

async fn arrived(
    State(this): State<Dispatcher>,
    Path(serial): Path<SerialNumber>,
    headers: HeaderMap,
    Json(arrived): Json<Arrived>,
) -> Result<Json<Registration>, Failure> {
    check(&headers)?;
    this.inner.lock().unwrap().arrived.push((serial, arrived.fingerprint.clone()));
    this.heard.send_modify(|heard| *heard += 1);
    let key = arrived.fingerprint.parse().ok();
    Ok(Json(this.tell(serial, RegistrationState::Dispatched, Step::Dispatch, key, None)))
}

#[derive(serde::Deserialize)]
struct After {
    after: u64,
    wait_s: u64,
}

async fn changes(
    State(this): State<Dispatcher>,
    axum::Extension(stop): axum::Extension<Stop>,
    Query(asked): Query<After>,
    headers: HeaderMap,
) -> Result<Json<Changes>, Failure> {
    check(&headers)?;
    this.acknowledged.send_if_modified(|acknowledged| {
        let more = asked.after > *acknowledged;
        *acknowledged = asked.after.max(*acknowledged);
        more
    });
    let mut seq = this.seq.subscribe();
    // Also when it is behind: a dispatcher that has forgotten says so at once.
    let moved = seq.wait_for(|seq| *seq != asked.after);
    let wait = Duration::from_secs(asked.wait_s);
    let _ = stop.token().run_until_cancelled(tokio::time::timeout(wait, moved)).await;
    let last = *this.seq.borrow();
    let inner = this.inner.lock().unwrap();
    let mut changes: Vec<_> =
        inner.known.values().filter(|told| told.seq > asked.after && told.seq <= last).cloned().collect();
    changes.sort_by_key(|told| told.seq);
    Ok(Json(Changes { changes, last }))
}
