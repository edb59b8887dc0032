//! Devices that phone home (step 4), and when each of them is dispatched (step 5, in `dispatch.rs`).
//!
//! A device that is let in takes a seat and waits for a registration of the serial number that it claims.
//! Several keys may claim one number, and several accounts register it; all are tried, and the OAK proof decides.
//!
//! Invariants:
//! - a seat belongs to a key: the key's newest uplink replaces its older one, and nobody else's;
//! - every seat is asked for one proof, and tries each generation of a registration at most once;
//! - what a device that proved nothing does to a registration is a word in its status: the attempt that
//!   holds the proof is never interrupted by another's failure.

use crate::{
    attempts::{Counted, What},
    config::Config,
    dispatch::{self, Answer, Attempt, DispatchError},
    metrics::Metrics,
    store::{Entered, Generation, Job, Store},
    vouch::Manufacturers,
};
use homing_base::{
    Live, Stop, Workers,
    crowd::{Crowd, network},
    rate::{Pace, Rate},
    throttle::{Throttle, Tolerance},
};
use homing_protocol::{
    SerialNumber, Step,
    api::{
        ProblemDetail,
        dispatcher::{ANOTHER_KEY, RegistrationState as State},
    },
};
use homing_uplink::{
    Acceptor, Arrival, EndReason, Exporter, Fingerprint, PeerIdentity, Uplink, UplinkDriver, UplinkSettings,
};
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::TcpStream,
    sync::{Notify, OnceCell},
    time::Instant,
};

/// Keys that may claim one serial number at a time, in all and from one site. When there are more,
/// [`gives_way`] says who leaves; it may come again.
const SEATS_PER_SERIAL: usize = 16;
const SEATS_PER_SITE: usize = 4;

/// Tries of one key for one registration that it had proven and that were refused. A device that comes back again and
/// again must not be logged in to with the same wrong password until it locks its user out.
const REFUSED: Tolerance =
    Tolerance { free: 2, first: Duration::from_secs(60), longest: Duration::from_secs(3600) };

/// A dispatcher asks little of a device: small windows, few streams.
const SETTINGS: UplinkSettings = UplinkSettings {
    stream_window: 64 << 10,
    max_streams: 8,
    send_buffer: 64 << 10,
    ping_interval: Duration::from_secs(10),
    dead_after: Duration::from_secs(25),
    stream_deadline: Duration::from_secs(5),
    response_deadline: Duration::from_secs(10),
    pace: None,
};

/// A device that is connected and waits.
pub(crate) struct Seat {
    /// As its certificate claims.
    pub serial: SerialNumber,
    /// Of the key that it has proved to hold.
    pub fingerprint: Fingerprint,
    /// Whether a manufacturer has issued the certificate, or why that does not count.
    pub issued: Result<(), &'static str>,
    pub peer: SocketAddr,
    pub uplink: Uplink,
    pub exporter: Exporter,
    /// Something may have to be done for it.
    wake: Notify,
    /// What it answered to the challenge: it is asked once, however many accounts register it.
    answer: OnceCell<Answer>,
    /// The newest generation of those that it has tried last.
    tried: AtomicI64,
}

impl Seat {
    /// Where it comes from; behind NAT, its router.
    pub fn address(&self) -> IpAddr {
        self.peer.ip().to_canonical()
    }

    fn has_tried(&self, generation: Generation) -> bool {
        self.tried.load(Ordering::Acquire) >= generation.0
    }
}

/// Everything about devices; one for the process.
pub(crate) struct Devices {
    pub store: Arc<Store>,
    pub acceptor: Acceptor,
    pub metrics: Metrics,
    pub counted: Arc<Counted>,
    pub workers: Workers,
    pub crowd: Arc<Crowd>,
    pub rate: Rate<IpAddr>,
    pub config: Live<Config>,
    pub stop: Stop,
    pub room: Room,
    /// Networks of whose failures the log has told lately.
    pub told: Throttle<IpAddr>,
    pub manufacturers: Manufacturers,
}

/// Who is here.
pub(crate) struct Room {
    seats: Mutex<HashMap<SerialNumber, Vec<Arc<Seat>>>>,
    refused: Throttle<(Fingerprint, Generation)>,
    /// That somebody has returned is written while he is in the room, and taken back while nobody is.
    returning: tokio::sync::Mutex<()>,
}

impl Room {
    pub fn new() -> Self {
        Room { seats: Mutex::default(), refused: Throttle::new(REFUSED), returning: Default::default() }
    }

    /// A registration has come or gone.
    pub fn wake(&self, serial: SerialNumber) {
        let seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        seats.get(&serial).into_iter().flatten().for_each(|seat| seat.wake.notify_one());
    }

    fn is_empty(&self, serial: SerialNumber) -> bool {
        !self.seats.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&serial)
    }

    /// Devices that claim this number and have not tried this generation yet.
    pub fn untried(&self, serial: SerialNumber, generation: Generation) -> usize {
        let seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        seats.get(&serial).into_iter().flatten().filter(|seat| !seat.has_tried(generation)).count()
    }

    fn enter(&self, seat: Arc<Seat>) {
        let mut leaves = Vec::new();
        {
            let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
            let row = seats.entry(seat.serial).or_default();
            leaves.extend(row.extract_if(.., |other| other.fingerprint == seat.fingerprint));
            let others: Vec<_> = row
                .iter()
                .map(|other| (network(other.address()), other.tried.load(Ordering::Acquire) > 0))
                .collect();
            leaves.extend(gives_way(&others, network(seat.address())).map(|leaving| row.remove(leaving)));
            row.push(seat);
        }
        for seat in leaves {
            seat.uplink.close(EndReason::Replaced);
        }
    }

    fn leave(&self, seat: &Arc<Seat>) {
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(row) = seats.get_mut(&seat.serial) {
            row.retain(|other| !Arc::ptr_eq(other, seat));
            if row.is_empty() {
                seats.remove(&seat.serial);
            }
        }
    }
}

/// Which of those who claim a serial number (their site, and whether they have failed already; oldest
/// first) leaves for a newcomer, if one has to.
///
/// A stranger with many keys pushes out his own: those of the newcomer's site if that has its share, else
/// those of the site that has most. Who has failed goes first.
fn gives_way(others: &[(IpAddr, bool)], newcomer: IpAddr) -> Option<usize> {
    let seats_of = |site: IpAddr| others.iter().filter(|(other, _)| *other == site).count();
    let crowded = if seats_of(newcomer) >= SEATS_PER_SITE {
        newcomer
    } else if others.len() >= SEATS_PER_SERIAL {
        others.iter().map(|(site, _)| *site).max_by_key(|site| seats_of(*site))?
    } else {
        return None;
    };
    let failed = others.iter().position(|other| *other == (crowded, true));
    failed.or_else(|| others.iter().position(|(site, _)| *site == crowded))
}

impl Devices {
    /// One connection from its first byte to its end, on a worker of its own choice.
    pub async fn handle(self: Arc<Self>, tcp: TcpStream, peer: SocketAddr) {
        let worker = self.workers.next();
        // A socket belongs to the runtime that it was made on; its uplink is to live on the worker.
        let Ok(socket) = tcp.into_std() else { return };
        let stop = self.stop.clone();
        let task = stop.spawn_on(
            async move {
                match TcpStream::from_std(socket) {
                    Ok(tcp) => self.connection(tcp, peer).await,
                    Err(error) => tracing::warn!(%peer, %error, "connection not taken over by a worker"),
                }
            },
            &worker,
        );
        // It fails only when the worker ends, and then so does the process.
        let _ = task.await;
    }

    async fn connection(&self, tcp: TcpStream, peer: SocketAddr) {
        let config = self.config.get();
        let is_counted = !config.exempt.contain(peer.ip());
        let pace = Pace::per_second(config.handshakes_per_second_per_address);
        if is_counted && self.rate.admit(&network(peer.ip()), pace, Instant::now()).is_err() {
            self.metrics.refused("too-fast-from-address");
            tracing::debug!(%peer, "more connections a second than an address may make");
            return;
        }
        let Some(_admission) = self.crowd.admit(peer.ip()) else {
            self.metrics.refused("too-many-from-address");
            tracing::debug!(%peer, "too many connections from this address");
            return;
        };
        let arrival = tokio::select! {
            arrival = self.acceptor.accept(tcp, peer) => arrival,
            () = self.stop.cancelled() => return,
        };
        let arrival = match arrival {
            Ok(arrival) => arrival,
            Err(error) => {
                self.metrics.refused(error.reason());
                if let Some(advice) = error.advice()
                    && self.told.wait(&network(peer.ip()), Instant::now()).is_zero()
                {
                    self.told.handle_wrong(&network(peer.ip()), Instant::now());
                    tracing::info!(%peer, step = %Step::PhoneHome, %error, "refused: {advice}");
                }
                tracing::debug!(%peer, %error, "not an uplink");
                return;
            }
        };
        match claimed_serial(&arrival) {
            Ok((serial, identity)) => {
                let issued = self.manufacturers.check(identity);
                let key = identity.fingerprint;
                self.phone_home(arrival, serial, key, issued).await;
            }
            Err(reason) => {
                self.metrics.refused("no-serial-number");
                tracing::info!(%peer, step = %Step::PhoneHome, reason, "device refused");
                arrival.refuse(403, &reason).await;
            }
        }
    }

    /// Step 4: the device takes a seat, and keeps it for as long as its uplink stands.
    async fn phone_home(
        &self,
        arrival: Arrival,
        serial: SerialNumber,
        fingerprint: Fingerprint,
        issued: Result<(), &'static str>,
    ) {
        let (peer, exporter) = (arrival.peer, arrival.exporter());
        let (uplink, driver) = match arrival.accept(SETTINGS).await {
            Ok(accepted) => accepted,
            Err(reason) => {
                tracing::debug!(%serial, %peer, %reason, "device went away while it was let in");
                return;
            }
        };
        tracing::info!(%serial, %peer, step = %Step::PhoneHome, key = %fingerprint, "device phones home");
        self.metrics.arrived();
        let tried = AtomicI64::new(0);
        let (wake, answer) = (Notify::new(), OnceCell::new());
        let seat = Seat { serial, fingerprint, issued, peer, uplink, exporter, wake, answer, tried };
        let seat = Arc::new(seat);
        self.room.enter(seat.clone());
        let reason = self.run(driver, &seat).await;
        self.room.leave(&seat);
        self.metrics.left();
        if let Err(error) = self.tell_of_leaving(serial).await {
            tracing::error!(%serial, error = format!("{error:#}"), "registration not read");
        }
        tracing::info!(%serial, %peer, step = %Step::PhoneHome, %reason, "device has left");
    }

    async fn tell_of_leaving(&self, serial: SerialNumber) -> anyhow::Result<()> {
        // Whoever comes from here on finds what is written below.
        let _returning = self.room.returning.lock().await;
        let is_empty = self.room.is_empty(serial);
        for job in self.store.jobs(serial).await? {
            // Whoever waits for this device's try must not wait for ever.
            self.store.handle_change(job.account);
            if is_empty {
                self.store.nobody_has_returned(job.generation).await?;
            }
        }
        Ok(())
    }

    async fn run(&self, driver: UplinkDriver, seat: &Seat) -> EndReason {
        let stop = self.stop.token().clone();
        // Both to their end: a try that is cut off still writes down what it came to.
        let (reason, ()) = tokio::join!(Box::pin(driver.run(stop)), Box::pin(self.attend(seat)));
        reason
    }

    /// At arrival, and whenever its registration changes.
    async fn attend(&self, seat: &Seat) {
        let mut arriving = true;
        loop {
            match self.attend_once(seat, arriving).await {
                // Who came while another connection was being dispatched still has to be looked at.
                Ok(looked_at) => arriving &= !looked_at,
                Err(error) => {
                    tracing::error!(serial = %seat.serial, error = format!("{error:#}"), "registration not read");
                }
            }
            tokio::select! {
                () = seat.wake.notified() => {}
                _ = seat.uplink.closed() => return,
            }
        }
    }

    /// `false` when this is not the moment; something wakes the seat then.
    async fn attend_once(&self, seat: &Seat, arriving: bool) -> anyhow::Result<bool> {
        let jobs = self.store.jobs(seat.serial).await?;
        // Another connection is being dispatched, and wakes this one when that has ended.
        if jobs.iter().any(|job| job.state == State::Dispatching) {
            return Ok(false);
        }
        let untried: Vec<&Job> = jobs.iter().filter(|job| !seat.has_tried(job.generation)).collect();
        let Some(newest) = untried.iter().map(|job| job.generation).max() else { return Ok(true) };
        let with_secrets: Vec<&Job> = untried.iter().copied().filter(|job| job.secrets.is_some()).collect();
        let tried = match with_secrets.is_empty() {
            true => Tried::ToNoAvail,
            false => self.attempt(seat, &with_secrets).await?,
        };
        if tried == Tried::No {
            return Ok(false);
        }
        // Who sat here while another connection was dispatched has not come back.
        let returns = |job: &&&Job| matches!(job.state, State::Dispatched | State::Returned);
        let dispatched = untried.iter().find(returns).filter(|_| arriving && tried == Tried::ToNoAvail);
        if let Some(job) = dispatched {
            // With its own key it is the device. With another, only a proof can tell.
            let is_it = job.fingerprint.as_ref() == Some(&seat.fingerprint.to_string());
            let returned = Entered {
                state: State::Returned,
                step: Step::PhoneHome,
                fingerprint: None,
                problem: (!is_it).then(|| another_key(seat)),
            };
            let _returning = self.room.returning.lock().await;
            self.store.enter(job.generation, &[State::Dispatched, State::Returned], returned).await?;
        }
        seat.tried.store(newest.0, Ordering::Release);
        untried.iter().for_each(|job| self.store.handle_change(job.account));
        self.room.wake(seat.serial);
        Ok(true)
    }

    /// Step 5, and what came of it.
    async fn attempt(&self, seat: &Seat, jobs: &[&Job]) -> anyhow::Result<Tried> {
        let (serial, peer, step) = (seat.serial, seat.peer, Step::Dispatch);
        let from = network(seat.address()).to_string();
        let is_asked = seat.answer.initialized();
        if !is_asked && !self.pause(seat, self.counted.wait(What::ProofByNetwork, &from)).await {
            return Ok(Tried::No);
        }
        let proven = async {
            let answer = seat.answer.get_or_try_init(|| dispatch::ask(seat)).await?;
            dispatch::find_proven(&self.store, self.config.get().device_keys, seat, answer, jobs).await
        };
        let (error, concerned) = match Box::pin(proven).await {
            Ok(proven) => {
                let (job, key) = (proven.job, (seat.fingerprint, proven.job.generation));
                if !self.pause(seat, self.room.refused.wait(&key, Instant::now())).await {
                    return Ok(Tried::No);
                }
                let dispatched = async {
                    Attempt::begin(&self.store, &self.metrics, seat, proven).await?.dispatch().await
                };
                match Box::pin(dispatched).await {
                    Ok(()) => {
                        self.metrics.dispatched("ok");
                        tracing::info!(%serial, %peer, %step, "device dispatched");
                        return Ok(Tried::Yes);
                    }
                    // Another connection was faster, or the registration is gone: there is something else to look at.
                    Err(DispatchError::Withdrawn) => {
                        seat.wake.notify_one();
                        return Ok(Tried::No);
                    }
                    Err(error) => {
                        if !error.is_passing() {
                            self.room.refused.handle_wrong(&key, Instant::now());
                        }
                        (error, Some(job))
                    }
                }
            }
            Err(error) => {
                if !is_asked {
                    self.counted.handle_wrong(What::ProofByNetwork, &from);
                    self.counted.handle_wrong(What::ProofForDevice, &serial.to_string());
                }
                (error, None)
            }
        };
        let code = error.code();
        self.metrics.dispatched(code);
        tracing::warn!(%serial, %peer, %step, code, %error, "device not dispatched");
        let failed = || Entered {
            state: if error.is_passing() { State::Waiting } else { State::Refused },
            step: Step::PhoneHome,
            fingerprint: None,
            problem: Some(error.problem()),
        };
        match concerned {
            Some(job) => {
                self.store.enter(job.generation, &[State::Dispatching], failed()).await?;
            }
            // Somebody who proved nothing leaves the attempt of somebody who did alone.
            None => {
                for job in jobs {
                    let waiting = [State::Waiting, State::Refused, State::Returned];
                    self.store.enter(job.generation, &waiting, failed()).await?;
                }
            }
        }
        if error.is_passing() {
            // It comes back by itself, at its own intervals, and is tried then.
            seat.uplink.close(EndReason::Closed(format!("dispatch failed: {code}")));
        }
        Ok(if concerned.is_some() { Tried::Yes } else { Tried::ToNoAvail })
    }

    /// Waits for who has failed too often; `false` when it left meanwhile, or there is another registration to look at.
    async fn pause(&self, seat: &Seat, wait: Duration) -> bool {
        if wait.is_zero() {
            return true;
        }
        self.metrics.postponed();
        let (serial, peer, step) = (seat.serial, seat.peer, Step::Dispatch);
        tracing::info!(%serial, %peer, %step, wait_s = wait.as_secs(), "device has failed too often, and waits");
        tokio::select! {
            () = tokio::time::sleep(wait) => true,
            () = seat.wake.notified() => {
                seat.wake.notify_one();
                false
            }
            _ = seat.uplink.closed() => false,
        }
    }
}

/// What a tunnel server that has the device is told of somebody who says that he is it.
fn another_key(seat: &Seat) -> ProblemDetail {
    let message = format!(
        "a device at {} that says it is {} waits at the dispatcher with another key than the one that was dispatched: \
         if it was reset, it is dispatched anew; if not, somebody uses its serial number",
        seat.address(),
        seat.serial
    );
    ProblemDetail { code: ANOTHER_KEY.to_owned(), message, step: Some(Step::PhoneHome) }
}

/// Whether an attempt was made.
#[derive(PartialEq)]
enum Tried {
    /// One was made, for a registration that the device has proven.
    Yes,
    /// The device has proven nothing that is registered.
    ToNoAvail,
    /// Not yet.
    No,
}

/// The serial number in the certificate's subject, as its manufacturer writes it, and the certificate.
fn claimed_serial(arrival: &Arrival) -> Result<(SerialNumber, &PeerIdentity), String> {
    let identity = arrival.peer_identity.as_ref();
    let identity = identity.ok_or("this dispatcher needs the device's certificate")?;
    let mut names = [&identity.serial_number, &identity.common_name].into_iter().flatten();
    let serial = names.find_map(|name| SerialNumber::find_in(name));
    let serial =
        serial.ok_or("the subject of the device's certificate names no serial number that can be read")?;
    Ok((serial, identity))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_4_a_crowd_pushes_out_its_own() {
        let site = |number| IpAddr::from([192, 0, 2, number]);
        assert_eq!(gives_way(&[], site(1)), None);
        let mut row = vec![(site(1), false); SEATS_PER_SITE];
        assert_eq!(gives_way(&row, site(2)), None);
        assert_eq!(gives_way(&row, site(1)), Some(0), "the oldest");
        row[2].1 = true;
        assert_eq!(gives_way(&row, site(1)), Some(2), "who has failed");

        // The true device, alone at its site, against a crowd from many.
        let mut row = vec![(site(1), false)];
        row.extend((0..SEATS_PER_SERIAL as u8 - 1).map(|index| (site(2 + index / 3), false)));
        for newcomer in 1..9 {
            let leaves = gives_way(&row, site(newcomer)).unwrap();
            assert_ne!(leaves, 0, "{newcomer}");
        }
    }
}
