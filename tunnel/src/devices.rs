//! Every registered device: how it is now, in memory, and what must survive, on disk.
//!
//! Invariant: an event is sent for every change that the API would show, in order, and within the same lock, so that a
//! follower and a reader never disagree. What the dispatcher is told we have stored is stored. A device has one uplink
//! for each of our public addresses at most, so that two addresses that lead here do not push each other off.
//! The lock is never held across an await; `writing` is, but only on the disk.
//!
//! Not here: talking to the dispatcher (`relay.rs`) or to devices (`uplinks.rs`, `reach.rs`).

use crate::{
    copies::Copies,
    events::{Event, EventId, Events, Journal},
    figures::Meter,
    history::{History, Remembered, Session},
    locks::Locks,
    moves::Move,
    passwords::Password,
    record::{Record, Standing},
    registrations::{Registrations, Secrets},
    rtsp::RtspWay,
    sites::Sites,
};
use homing_protocol::{
    SerialNumber, Step,
    api::{
        Problem, ProblemDetail,
        dispatcher::{Changes, Registration},
        tunnel::{self, Access, Device, Figures, PastProblem, RelayState, SiteChange},
    },
    digest::ClientAuth,
};
use homing_uplink::{EndReason, Fingerprint, Pace, Uplink, UplinkStats};
use jiff::Timestamp;
use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Instant,
};
use tokio::{
    runtime::Handle,
    sync::{Notify, OnceCell},
};

/// Every registered device.
pub(crate) struct Devices {
    store: Registrations,
    history: History,
    sites: Sites,
    inner: Mutex<Inner>,
    events: Journal,
    /// One change of standings at a time: read here, written to disk, then shown.
    writing: tokio::sync::Mutex<()>,
    /// Whose uplink stands since the last commit of these, and who makes the next.
    newly_tunnelled: Mutex<Vec<SerialNumber>>,
    storing_tunnelled: tokio::sync::Mutex<()>,
    /// For whoever changes a registration in several steps.
    pub locks: Locks,
    /// There is something for the dispatcher.
    pub for_dispatcher: Notify,
    /// Factory default passwords are replaced.
    replaces_passwords: AtomicBool,
    /// So many may be connected at once.
    uplinks_max: AtomicUsize,
}

#[derive(Default)]
struct Inner {
    entries: BTreeMap<SerialNumber, Entry>,
    /// The keys that the dispatcher vouched for.
    keys: HashMap<Fingerprint, SerialNumber>,
}

struct Entry {
    record: Record,
    /// Step 2 of a new registration is under way; it is not shown, but its key is welcome.
    provisional: bool,
    /// The best first; one for each [`Connected::via`].
    uplinks: Vec<Arc<Connected>>,
    /// Since when it is connected, or not.
    since: Option<Timestamp>,
    /// Why it is not connected, as far as it was seen here.
    lost: Option<ProblemDetail>,
    /// What is wrong with it while it is connected.
    warning: Option<ProblemDetail>,
    /// What went wrong last, whether or not it has gone right since.
    last_problem: Option<PastProblem>,
    pace: Arc<Pace>,
    copies: Copies,
}

/// A device's uplink that stands (step 7).
pub(crate) struct Connected {
    /// To reach the device.
    pub uplink: Uplink,
    /// The worker that everything of this device runs on.
    pub worker: Handle,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// What the device dialled, `host:port`, as it says.
    pub dialled: Option<String>,
    /// Which of our public addresses that is, best first; none: another one, all of which are alike.
    pub via: Option<usize>,
    /// How much it carries.
    pub meter: Meter,
    /// By what it carries RTSP, once asked for.
    pub rtsp_way: OnceCell<RtspWay>,
    /// URL of the stream that it names first, once asked for.
    pub first_stream: OnceCell<String>,
    /// The proxy's last log-in that was accepted, for the next request.
    pub login: Mutex<Option<ClientAuth>>,
}

/// Why a device that dialled is not admitted (step 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stranger {
    /// No dispatcher vouched for its key.
    UnknownKey,
    /// The key belongs to another device than its certificate says.
    OtherName {
        /// Whose key it is.
        owner: SerialNumber,
    },
}

impl Devices {
    /// As they were left.
    pub async fn open(
        store: Registrations,
        history: History,
        sites: Sites,
        replaces_passwords: bool,
        uplinks_max: usize,
    ) -> anyhow::Result<Self> {
        let mut inner = Inner::default();
        let mut remembered = history.remembered().await?;
        for record in store.all().await? {
            let Remembered { since, problem } = remembered.remove(&record.serial).unwrap_or_default();
            inner.index_key(record.serial, None, record.standing.fingerprint);
            let entry = Entry { since, last_problem: problem, ..Entry::new(record, false) };
            sites.admit(entry.record.serial, &entry.pace);
            inner.entries.insert(entry.record.serial, entry);
        }
        let devices = Devices {
            store,
            history,
            sites,
            inner: Mutex::new(inner),
            events: Journal::new(),
            writing: tokio::sync::Mutex::new(()),
            newly_tunnelled: Mutex::default(),
            storing_tunnelled: tokio::sync::Mutex::new(()),
            locks: Locks::default(),
            for_dispatcher: Notify::new(),
            replaces_passwords: AtomicBool::new(replaces_passwords),
            uplinks_max: AtomicUsize::new(uplinks_max),
        };
        devices.keep_events(&devices.lock());
        Ok(devices)
    }

    /// From now on so many may be connected at once.
    pub fn set_uplinks_max(&self, uplinks: usize) {
        self.uplinks_max.store(uplinks, Ordering::Relaxed);
        self.keep_events(&self.lock());
    }

    /// As many as those make that can go and come.
    fn keep_events(&self, inner: &Inner) {
        self.events.keep_for(inner.entries.len().min(self.uplinks_max.load(Ordering::Relaxed)));
    }

    /// From now on factory default passwords are replaced, or left.
    pub fn set_replaces_passwords(&self, replaces: bool) {
        self.replaces_passwords.store(replaces, Ordering::Relaxed);
    }

    /// The store, for what needs no memory: secrets, claims to release.
    pub fn store(&self) -> &Registrations {
        &self.store
    }

    /// What became of their connections.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Which devices share an Internet connection.
    pub fn sites(&self) -> &Sites {
        &self.sites
    }

    /// How fast a device's answers may be taken, through whichever of its uplinks.
    pub fn pace(&self, serial: SerialNumber) -> Arc<Pace> {
        self.lock().entries.get(&serial).map(|entry| Arc::clone(&entry.pace)).unwrap_or_default()
    }

    /// Takes what every device sends now to its site, and tells of sites that are full.
    pub fn look_at_sites(&self) {
        if self.sites.is_empty() {
            return;
        }
        let bps: HashMap<SerialNumber, u64> = {
            let inner = self.lock();
            let connected = inner.entries.iter().filter(|(_, entry)| !entry.uplinks.is_empty());
            let sent = |entry: &Entry| entry.uplinks.iter().map(|connected| connected.meter.line_bps()).sum();
            connected.map(|(serial, entry)| (*serial, sent(entry))).collect()
        };
        for site in self.sites.look(|serial| bps.get(&serial).copied().unwrap_or_default()) {
            self.events.push(Event::Site(Arc::new(site)));
        }
    }

    /// Enters a site, or changes it.
    pub async fn put_site(&self, name: &str, site: SiteChange) -> anyhow::Result<()> {
        let changed = self.sites.put(name, site).await?;
        self.tell_all(&changed);
        Ok(())
    }

    /// Forgets a site; its devices are at none. `false` if there is none.
    pub async fn remove_site(&self, name: &str) -> anyhow::Result<bool> {
        let changed = self.sites.remove(name).await?;
        self.tell_all(changed.as_deref().unwrap_or_default());
        Ok(changed.is_some())
    }

    fn tell_all(&self, serials: &[SerialNumber]) {
        let inner = self.lock();
        serials.iter().filter_map(|serial| inner.entries.get(serial)).for_each(|entry| self.tell(entry));
    }

    // What people ask

    /// All that are registered.
    pub fn all(&self) -> Vec<Device> {
        self.lock()
            .entries
            .values()
            .filter(|entry| !entry.provisional)
            .map(|entry| self.view(entry))
            .collect()
    }

    /// One.
    pub fn get(&self, serial: SerialNumber) -> Option<Device> {
        self.lock().entries.get(&serial).filter(|entry| !entry.provisional).map(|entry| self.view(entry))
    }

    /// What changes all the time, of each that is connected.
    pub fn figures(&self) -> Vec<Figures> {
        let inner = self.lock();
        let connected =
            inner.entries.values().filter(|entry| !entry.provisional && !entry.uplinks.is_empty());
        connected.map(|entry| entry.figures(&entry.stats())).collect()
    }

    /// What the proxy gives of one.
    pub fn access(&self, serial: SerialNumber) -> Option<Access> {
        self.lock().entries.get(&serial).map(|entry| entry.record.access.clone())
    }

    /// Follows them from now on.
    pub fn subscribe(&self) -> Events {
        let inner = self.lock();
        let first = inner.entries.values().filter(|entry| !entry.provisional);
        self.events.follow(first.map(|entry| Arc::new(self.view(entry))).collect())
    }

    /// Follows them on after an event; `None` where that cannot be done without missing some.
    pub fn subscribe_after(&self, after: EventId) -> Option<Events> {
        self.events.follow_after(after)
    }

    // Steps 1 and 2

    /// Step 1: takes a new registration in, not shown until [`Devices::settle`]. `false` if it is there already.
    pub async fn add(&self, record: Record, secrets: &Secrets) -> anyhow::Result<bool> {
        let _writing = self.writing.lock().await;
        if self.lock().entries.contains_key(&record.serial) {
            return Ok(false);
        }
        self.store.insert(&record, secrets).await?;
        let mut inner = self.lock();
        inner.index_key(record.serial, None, record.standing.fingerprint);
        let entry = Entry::new(record, true);
        self.sites.admit(entry.record.serial, &entry.pace);
        inner.entries.insert(entry.record.serial, entry);
        self.keep_events(&inner);
        Ok(true)
    }

    /// The device that a key belongs to.
    pub fn owner(&self, fingerprint: Fingerprint) -> Option<SerialNumber> {
        self.lock().keys.get(&fingerprint).copied()
    }

    /// Shows a new registration: it is kept.
    pub fn settle(&self, serial: SerialNumber) -> Option<Device> {
        let mut inner = self.lock();
        let entry = inner.entries.get_mut(&serial)?;
        entry.provisional = false;
        self.tell(entry);
        Some(self.view(entry))
    }

    /// What people have entered, to be changed.
    pub fn record(&self, serial: SerialNumber) -> Option<Record> {
        self.lock().entries.get(&serial).filter(|entry| !entry.provisional).map(|entry| entry.record.clone())
    }

    /// Replaces what people have entered; the standing is left alone.
    pub async fn replace(&self, record: Record, secrets: &Secrets) -> anyhow::Result<Option<Device>> {
        let _writing = self.writing.lock().await;
        self.store.replace(&record, secrets).await?;
        let mut inner = self.lock();
        let Some(entry) = inner.entries.get_mut(&record.serial) else { return Ok(None) };
        let standing = entry.record.standing.clone();
        entry.record = Record { standing, ..record };
        entry.warning = None;
        self.tell(entry);
        Ok(Some(self.view(entry)))
    }

    /// Forgets a registration and ends its uplink; with `release` its claim is still to be released at the dispatcher.
    /// `false` if there is none.
    pub async fn remove(&self, serial: SerialNumber, release: bool) -> anyhow::Result<bool> {
        let _writing = self.writing.lock().await;
        if !self.lock().entries.contains_key(&serial) {
            return Ok(false);
        }
        self.store.remove(serial, release).await?;
        let mut inner = self.lock();
        let Some(entry) = inner.entries.remove(&serial) else { return Ok(false) };
        inner.index_key(serial, entry.record.standing.fingerprint, None);
        self.history.forget(serial);
        self.sites.forget(serial);
        if !entry.provisional {
            self.events.push(Event::Removed(serial));
        }
        self.keep_events(&inner);
        for connected in entry.uplinks {
            connected.uplink.close(EndReason::Closed("the device's registration was deleted".to_owned()));
        }
        Ok(true)
    }

    /// Those of which something is still to be told to the dispatcher.
    pub fn to_tell(&self) -> Vec<SerialNumber> {
        let inner = self.lock();
        let pending = inner.entries.values().filter(|entry| {
            let standing = &entry.record.standing;
            // Who is connected is not at the dispatcher as well, with another key: its secrets stay here.
            let is_here = !entry.uplinks.is_empty() && standing.is_doubted();
            !entry.provisional && standing.is_to_tell() && !is_here
        });
        pending.map(|entry| entry.record.serial).collect()
    }

    /// How far one has come.
    pub fn standing(&self, serial: SerialNumber) -> Option<Standing> {
        self.lock().entries.get(&serial).map(|entry| entry.record.standing.clone())
    }

    // What changes how far they have come: on disk first, then shown.

    /// Steps 2 and 5: the dispatcher's answer about one registration.
    pub async fn hear(&self, told: &Registration) -> anyhow::Result<()> {
        self.update(&[told.serial], None, |_, standing| standing.hear(told)).await
    }

    /// Step 5: the dispatcher's changes. When this has come back they are stored and may be acknowledged.
    pub async fn hear_changes(&self, changes: &Changes) -> anyhow::Result<()> {
        let told: HashMap<_, _> = changes.changes.iter().map(|told| (told.serial, told)).collect();
        let serials: Vec<_> = told.keys().copied().collect();
        let hear = |serial: SerialNumber, standing: &mut Standing| {
            if let Some(told) = told.get(&serial) {
                standing.hear_change(told);
            }
        };
        self.update(&serials, Some(changes.last), hear).await
    }

    /// The dispatcher's sequence of changes began anew.
    pub async fn dispatcher_forgot(&self) -> anyhow::Result<()> {
        let serials: Vec<_> = self.lock().entries.keys().copied().collect();
        self.update(&serials, Some(0), |_, standing| standing.dispatcher_forgot()).await
    }

    /// Changes one device's standing.
    pub async fn change(&self, serial: SerialNumber, change: impl Fn(&mut Standing)) -> anyhow::Result<()> {
        self.update(&[serial], None, |_, standing| change(standing)).await
    }

    /// Step 7: its uplink stands. Thousands come at once, and are stored in as few commits as the disk is quick.
    pub async fn tunnelled(&self, serial: SerialNumber) -> anyhow::Result<()> {
        let lock = || self.newly_tunnelled.lock().unwrap_or_else(PoisonError::into_inner);
        lock().push(serial);
        let _turn = self.storing_tunnelled.lock().await;
        let serials = std::mem::take(&mut *lock());
        if serials.is_empty() {
            // Who had the turn before has stored this one, too.
            return Ok(());
        }
        let now = Timestamp::now();
        let stored = self.update(&serials, None, |_, standing| standing.tunnelled(now)).await;
        if stored.is_err() {
            // The others may be luckier.
            lock().extend(serials.into_iter().filter(|other| *other != serial));
        }
        stored
    }

    async fn update(
        &self,
        serials: &[SerialNumber],
        acknowledged: Option<u64>,
        change: impl Fn(SerialNumber, &mut Standing),
    ) -> anyhow::Result<()> {
        let _writing = self.writing.lock().await;
        let changed: Vec<(SerialNumber, Standing)> = {
            let inner = self.lock();
            let entries = serials.iter().filter_map(|serial| inner.entries.get(serial));
            let changed = entries.filter_map(|entry| {
                let mut standing = entry.record.standing.clone();
                change(entry.record.serial, &mut standing);
                (standing != entry.record.standing).then_some((entry.record.serial, standing))
            });
            changed.collect()
        };
        if changed.is_empty() && acknowledged.is_none() {
            return Ok(());
        }
        self.store.save(&changed, acknowledged).await?;
        let mut inner = self.lock();
        for (serial, standing) in changed {
            let old = inner.entries.get(&serial).and_then(|entry| entry.record.standing.fingerprint);
            inner.index_key(serial, old, standing.fingerprint);
            let Some(entry) = inner.entries.get_mut(&serial) else { continue };
            if old != standing.fingerprint {
                // The old key is no longer this device's.
                for connected in &entry.uplinks {
                    let reason = EndReason::Closed("the dispatcher vouched for another key".to_owned());
                    connected.uplink.close(reason);
                }
            }
            let problem =
                standing.problem.clone().filter(|_| standing.problem != entry.record.standing.problem);
            entry.record.standing = standing;
            if let Some(problem) = problem {
                self.remember(entry, problem);
            }
            self.tell(entry);
        }
        Ok(())
    }

    // Step 7

    /// Whose key this is. `claimed` is the serial number in the certificate.
    pub fn admit(
        &self,
        fingerprint: Fingerprint,
        claimed: Option<SerialNumber>,
    ) -> Result<SerialNumber, Stranger> {
        let mut inner = self.lock();
        match inner.keys.get(&fingerprint) {
            Some(&owner) if claimed.is_none_or(|claimed| claimed == owner) => Ok(owner),
            Some(&owner) => Err(Stranger::OtherName { owner }),
            None => {
                // Whoever looks at the device it says it is should know: most likely it was reset.
                let entry = claimed.and_then(|claimed| inner.entries.get_mut(&claimed));
                if let Some(entry) = entry.filter(|entry| entry.uplinks.is_empty() && !entry.provisional)
                    // Once: repeating it is no event.
                    && entry.lost.as_ref().is_none_or(|lost| lost.code != "unknown-key")
                {
                    let message = "A device that says it is this one came with a key that the dispatcher has not \
                                   vouched for. If it was reset, press its button.";
                    let problem = Problem::at(Step::Tunnel, "unknown-key", message).error;
                    entry.lost = Some(problem.clone());
                    self.remember(entry, problem);
                    self.tell(entry);
                }
                Err(Stranger::UnknownKey)
            }
        }
    }

    /// Its uplink stands: shown as connected at once, and the older uplink by the same address ends. None if its key
    /// has lost its welcome meanwhile. What this returns is to be given to [`Devices::disconnect`].
    pub fn connect(&self, fingerprint: Fingerprint, connected: Connected) -> Option<Session> {
        let mut inner = self.lock();
        let serial = inner.keys.get(&fingerprint).copied()?;
        let entry = inner.entries.get_mut(&serial)?;
        let session = self.history.began(serial, connected.peer, connected.dialled.clone());
        if entry.uplinks.is_empty() {
            entry.since = Some(Timestamp::now());
            entry.warning = None;
        }
        let connected_from = connected.peer.ip().to_canonical();
        let connected = Arc::new(connected);
        match entry.uplinks.iter_mut().find(|older| older.via == connected.via) {
            Some(older) => {
                let older = std::mem::replace(older, connected);
                let (from, to) = (older.peer.ip().to_canonical(), connected_from);
                if !older.uplink.is_closed()
                    && let Some((one, other)) = entry.copies.handle_replaced(Instant::now(), from, to)
                {
                    let warning = copied(serial, one, other);
                    entry.warning = Some(warning.clone());
                    self.remember(entry, warning);
                }
                older.uplink.close(EndReason::Replaced);
            }
            None => entry.uplinks.push(connected),
        }
        entry.uplinks.sort_by_key(|connected| connected.via.unwrap_or(usize::MAX));
        entry.lost = None;
        self.tell(entry);
        Some(session)
    }

    /// An uplink has ended. The device is connected for as long as another stands; nothing changes if a newer one has
    /// taken its place.
    pub fn disconnect(&self, serial: SerialNumber, session: Session, ended: &Uplink, reason: &EndReason) {
        self.history.ended(session, reason, &ended.stats());
        let mut inner = self.lock();
        let Some(entry) = inner.entries.get_mut(&serial) else { return };
        let before = entry.uplinks.len();
        entry.uplinks.retain(|connected| !connected.uplink.is_same(ended));
        if entry.uplinks.len() == before {
            return;
        }
        if entry.uplinks.is_empty() {
            if entry.record.standing.is_doubted() {
                // It is here no more: who waits at the dispatcher may be it.
                self.for_dispatcher.notify_one();
            }
            entry.since = Some(Timestamp::now());
            if *reason != EndReason::Stopped {
                let message = format!("The uplink ended: {reason}. The device dials again by itself.");
                let lost = Problem::at(Step::Tunnel, "uplink-lost", message).error;
                entry.lost = Some(lost.clone());
                self.remember(entry, lost);
            }
        }
        self.tell(entry);
    }

    /// The best uplink of a connected device.
    pub fn connected(&self, serial: SerialNumber) -> Option<Arc<Connected>> {
        self.lock().entries.get(&serial)?.uplinks.first().cloned()
    }

    /// Something is wrong with a device that is connected. It is not tried again until it connects anew.
    pub fn warn(&self, serial: SerialNumber, warning: ProblemDetail) {
        let mut inner = self.lock();
        let Some(entry) = inner.entries.get_mut(&serial) else { return };
        entry.warning = Some(warning.clone());
        self.remember(entry, warning);
        self.tell(entry);
    }

    /// What is to be done at a device, if it is connected.
    pub fn errand(&self, serial: SerialNumber) -> Option<(Arc<Connected>, Standing)> {
        let inner = self.lock();
        let entry = inner.entries.get(&serial)?;
        let standing = &entry.record.standing;
        let looks = self.replaces_passwords.load(Ordering::Relaxed)
            && standing.password == Password::Unknown
            && entry.warning.is_none();
        if standing.errand.is_done() && (!looks || standing.errand.is_moved()) {
            return None;
        }
        Some((Arc::clone(entry.uplinks.first()?), entry.record.standing.clone()))
    }

    /// Calls `each` for every uplink that stands.
    pub fn for_each_connected(&self, mut each: impl FnMut(&Connected)) {
        let inner = self.lock();
        inner.entries.values().flat_map(|entry| &entry.uplinks).for_each(|connected| each(connected));
    }

    /// How many devices are connected.
    pub fn count_connected(&self) -> usize {
        self.lock().entries.values().filter(|entry| !entry.uplinks.is_empty()).count()
    }

    /// Ends a device's uplinks; `false` if there are none.
    pub fn hang_up(&self, serial: SerialNumber, reason: &str) -> bool {
        let inner = self.lock();
        let uplinks = inner.entries.get(&serial).map_or(&[][..], |entry| &entry.uplinks);
        for connected in uplinks {
            connected.uplink.close(EndReason::Closed(reason.to_owned()));
        }
        !uplinks.is_empty()
    }

    /// Numbers of registrations, and of those still to be relayed.
    pub fn counts(&self) -> (usize, usize) {
        let inner = self.lock();
        let pending = |entry: &&Entry| entry.record.standing.is_pending();
        (inner.entries.len(), inner.entries.values().filter(pending).count())
    }

    /// Something went wrong: that stays known when it has gone right again.
    fn remember(&self, entry: &mut Entry, problem: ProblemDetail) {
        let past = PastProblem { at: Timestamp::now(), problem };
        entry.last_problem = Some(past.clone());
        self.history.problem(entry.record.serial, past);
    }

    fn view(&self, entry: &Entry) -> Device {
        Device { site: self.sites.of(entry.record.serial), ..entry.view() }
    }

    fn tell(&self, entry: &Entry) {
        if !entry.provisional {
            self.events.push(Event::Device(Arc::new(self.view(entry))));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// One key a device, one device a key: who was vouched for last has it.
    fn index_key(&mut self, serial: SerialNumber, old: Option<Fingerprint>, new: Option<Fingerprint>) {
        if let Some(old) = old
            && self.keys.get(&old) == Some(&serial)
        {
            self.keys.remove(&old);
        }
        if let Some(new) = new {
            self.keys.insert(new, serial);
        }
    }
}

/// What is told of a device whose key is used twice.
fn copied(serial: SerialNumber, one: IpAddr, other: IpAddr) -> ProblemDetail {
    tracing::warn!(step = %Step::Tunnel, %serial, %one, %other, "two devices use one key");
    let message = format!(
        "Two devices use the key of this one and push each other off, at {one} and at {other}: one of them is a copy. \
         Reset the true one to factory default, which makes a new key, and press its button; the copy is refused then."
    );
    Problem::at(Step::Tunnel, "two-devices", message).error
}

impl Entry {
    fn new(record: Record, provisional: bool) -> Self {
        Entry {
            record,
            provisional,
            uplinks: Vec::new(),
            since: None,
            lost: None,
            warning: None,
            last_problem: None,
            pace: Arc::default(),
            copies: Copies::default(),
        }
    }

    fn stats(&self) -> Vec<UplinkStats> {
        self.uplinks.iter().map(|connected| connected.uplink.stats()).collect()
    }

    fn figures(&self, stats: &[UplinkStats]) -> Figures {
        let bps = || self.uplinks.iter().map(|connected| connected.meter.bps());
        Figures {
            serial: self.record.serial,
            rtt_ms: stats.first().and_then(rtt_ms),
            bytes_in: stats.iter().map(|stats| stats.bytes_in).sum(),
            bytes_out: stats.iter().map(|stats| stats.bytes_out).sum(),
            bps_in: bps().map(|(received, _)| received).sum(),
            bps_out: bps().map(|(_, sent)| sent).sum(),
        }
    }

    fn view(&self) -> Device {
        let Record { serial, name, description, user, access, standing } = &self.record;
        let stats = self.stats();
        let figures = self.figures(&stats);
        let connected = !stats.is_empty();
        let problem = standing.problem.clone().or_else(|| self.lost.clone());
        Device {
            serial: *serial,
            name: if name.is_empty() { serial.to_string() } else { name.clone() },
            description: description.clone(),
            site: None,
            user: user.clone(),
            step: if connected { Step::Tunnel } else { standing.step },
            relay: if connected { RelayState::Dispatched } else { standing.relay },
            connected,
            since: self.since,
            peer: self.uplinks.first().map(|connected| connected.peer.to_string()),
            rtt_ms: figures.rtt_ms,
            bytes_in: figures.bytes_in,
            bytes_out: figures.bytes_out,
            bps_in: figures.bps_in,
            bps_out: figures.bps_out,
            uplinks: self
                .uplinks
                .iter()
                .zip(&stats)
                .map(|(connected, stats)| connected.view(stats))
                .collect(),
            // Who has moved is not missed here.
            problem: if connected {
                let alarms = standing.is_doubted() || standing.is_misused();
                standing.problem.as_ref().filter(|_| alarms).or(self.warning.as_ref()).cloned()
            } else {
                problem.filter(|_| !standing.errand.is_moved())
            },
            moving: standing.errand.moving.as_ref().map(Move::view),
            contested: standing.contested.clone(),
            own_password: standing.password == Password::Own,
            access: access.clone(),
            last_problem: self.last_problem.clone(),
        }
    }
}

impl Connected {
    fn view(&self, stats: &UplinkStats) -> tunnel::Uplink {
        tunnel::Uplink {
            peer: self.peer.to_string(),
            dialled: self.dialled.clone(),
            since: Timestamp::try_from(stats.connected_since).unwrap_or(Timestamp::UNIX_EPOCH),
            rtt_ms: rtt_ms(stats),
            streams: u32::try_from(stats.streams).unwrap_or(u32::MAX),
        }
    }
}

/// At least 1: what was measured is not nothing.
fn rtt_ms(stats: &UplinkStats) -> Option<u32> {
    let rounded = |rtt: std::time::Duration| (rtt.as_micros() + 500) / 1000;
    stats.rtt.map(|rtt| u32::try_from(rounded(rtt)).unwrap_or(u32::MAX).max(1))
}
