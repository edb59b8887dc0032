//! Places with one Internet connection: what their devices send, against what the connection was declared to carry, and
//! a limit that their devices share.
//!
//! Which devices are at a site is kept by serial number, registered here or not yet: a device that moves between tunnel
//! servers which know the same sites stays at its site. A limit is of this tunnel server.
//!
//! Sharing is max-min fair: every few milliseconds a site's bytes are granted in equal parts to those devices that can
//! use them; who wants less than its part leaves the rest to the others. Reading is held back ([`Pace`]), so that devices
//! slow down and nothing is dropped.
//!
//! The lock of [`Sites`] is taken within that of the devices, never around it.
//!
//! Invariant: devices without a limit cost nothing here, and a site without devices at work costs a look in each tick.

use crate::config::Bandwidth;
use anyhow::Context;
use homing_base::Stop;
use homing_protocol::{
    SerialNumber,
    api::tunnel::{Site, SiteChange, SiteState},
};
use homing_uplink::Pace;
use sqlx::{Row, SqlitePool};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::Notify, time::MissedTickBehavior};

/// Between grants. A device waits so long at most for its part.
const TICK: Duration = Duration::from_millis(20);

/// What a device may save up while it sends less than its part.
const BURST: Duration = Duration::from_millis(200);

/// At least so much, so that a piece of an answer does not put a device into debt for long. Bytes.
const BURST_LEAST: i64 = 32 * 1024;

/// All sites.
pub(crate) struct Sites {
    pool: SqlitePool,
    bandwidth: Bandwidth,
    /// Looks that the warning averages over.
    looks: usize,
    inner: Mutex<Inner>,
    /// Limits have changed.
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    sites: BTreeMap<String, Place>,
    by_device: HashMap<SerialNumber, String>,
    /// Of every registered device at a site.
    paces: HashMap<SerialNumber, Arc<Pace>>,
}

#[derive(Default)]
struct Place {
    site: SiteChange,
    /// Bits a second at the last looks.
    looks: VecDeque<u64>,
    full: bool,
}

impl Sites {
    /// As they were left. `period` is between two looks at what devices send.
    pub async fn open(pool: SqlitePool, bandwidth: Bandwidth, period: Duration) -> anyhow::Result<Self> {
        let mut inner = Inner::default();
        let rows = sqlx::query("SELECT name, site FROM site").fetch_all(&pool).await.context("sites")?;
        for row in rows {
            let (name, json): (String, String) = (row.try_get("name")?, row.try_get("site")?);
            let site: SiteChange = serde_json::from_str(&json).with_context(|| format!("site {name}"))?;
            inner.put(name, site);
        }
        let looks = bandwidth.warn_after().as_millis().div_ceil(period.as_millis().max(1));
        let looks = usize::try_from(looks).unwrap_or(1).clamp(1, 10_000);
        Ok(Sites { pool, bandwidth, looks, inner: Mutex::new(inner), changed: Notify::new() })
    }

    /// How fast a device's answers may be taken, from now on, as its site says.
    pub fn admit(&self, serial: SerialNumber, pace: &Arc<Pace>) {
        let mut inner = self.lock();
        inner.paces.insert(serial, Arc::clone(pace));
        inner.apply(serial);
        drop(inner);
        self.changed.notify_one();
    }

    /// A device is registered no more. It is still at its site.
    pub fn forget(&self, serial: SerialNumber) {
        self.lock().paces.remove(&serial);
    }

    /// A device's site.
    pub fn of(&self, serial: SerialNumber) -> Option<String> {
        self.lock().by_device.get(&serial).cloned()
    }

    /// Every site.
    pub fn all(&self) -> Vec<Site> {
        let inner = self.lock();
        inner.sites.iter().map(|(name, place)| place.view(name, self.bandwidth.warn_percent)).collect()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.lock().sites.is_empty()
    }

    /// Enters a site, or changes it. Devices that were at another site are at this one now. Those that have come or gone
    /// come back.
    pub async fn put(&self, name: &str, site: SiteChange) -> anyhow::Result<Vec<SerialNumber>> {
        let (changed, devices) = {
            let mut inner = self.lock();
            let (losers, devices) = inner.put(name.to_owned(), site);
            let names = losers.into_iter().chain([name.to_owned()]);
            (names.filter_map(|name| inner.stored(&name)).collect::<Vec<_>>(), devices)
        };
        self.changed.notify_one();
        for (name, site) in changed {
            sqlx::query("INSERT OR REPLACE INTO site VALUES ($1, $2)")
                .bind(name)
                .bind(serde_json::to_string(&site)?)
                .execute(&self.pool)
                .await
                .context("sites")?;
        }
        Ok(devices)
    }

    /// Forgets a site; its devices, which come back, are at none. None if there is no such site.
    pub async fn remove(&self, name: &str) -> anyhow::Result<Option<Vec<SerialNumber>>> {
        let removed = self.lock().remove(name);
        self.changed.notify_one();
        sqlx::query("DELETE FROM site WHERE name = $1")
            .bind(name)
            .execute(&self.pool)
            .await
            .context("sites")?;
        Ok(removed)
    }

    /// Takes what each device sends now, in bits a second. Those that have become full, or are full no more, come back.
    pub fn look(&self, bps: impl Fn(SerialNumber) -> u64) -> Vec<Site> {
        let mut inner = self.lock();
        let mut news = Vec::new();
        for (name, place) in &mut inner.sites {
            let now = place.site.devices.iter().map(|serial| bps(*serial)).sum();
            if place.look(now, self.looks, self.bandwidth.warn_percent) {
                news.push(place.view(name, self.bandwidth.warn_percent));
            }
        }
        drop(inner);
        for site in &news {
            let (use_mbit, upstream_mbit) =
                (site.minute_bps as f64 / 1e6, site.upstream_mbit.unwrap_or_default());
            match site.state {
                SiteState::Full => {
                    tracing::warn!(site = site.name, use_mbit, upstream_mbit, "upstream is nearly full");
                }
                _ => tracing::info!(site = site.name, use_mbit, upstream_mbit, "upstream has room again"),
            }
        }
        news
    }

    /// Sites with a declared upstream, those that are nearly full, and those with a limit.
    pub fn counts(&self) -> (usize, usize, usize) {
        let inner = self.lock();
        let count = |holds: fn(&Place) -> bool| inner.sites.values().filter(|place| holds(place)).count();
        (
            count(|place| place.site.upstream_mbit.is_some()),
            count(|place| place.full),
            count(|place| place.site.limit_mbit.is_some()),
        )
    }

    /// Grants each site's bytes until the role stops.
    pub async fn run(&self, stop: &Stop) {
        loop {
            let mut limited = self.limited();
            if limited.is_empty() {
                tokio::select! {
                    () = self.changed.notified() => continue,
                    () = stop.cancelled() => return,
                }
            }
            let mut ticks = tokio::time::interval(TICK);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut last = ticks.tick().await;
            loop {
                tokio::select! {
                    now = ticks.tick() => {
                        let elapsed = now.saturating_duration_since(last).min(BURST);
                        limited.iter_mut().for_each(|limited| limited.grant(elapsed));
                        last = now;
                    }
                    () = self.changed.notified() => break,
                    () = stop.cancelled() => return,
                }
            }
        }
    }

    fn limited(&self) -> Vec<Limited> {
        let inner = self.lock();
        let limited = inner.sites.values().filter_map(|place| {
            let bytes_per_second = place.site.limit_mbit? * 1e6 / 8.0;
            let shares = place.site.devices.iter().filter_map(|serial| inner.paces.get(serial).cloned());
            Some(Limited { bytes_per_second, shares: shares.collect(), rest: 0.0 })
        });
        limited.filter(|limited| !limited.shares.is_empty()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Names of other sites that have lost devices to it, and all devices that were or are at it.
    fn put(&mut self, name: String, mut site: SiteChange) -> (Vec<String>, Vec<SerialNumber>) {
        site.devices.sort_unstable();
        site.devices.dedup();
        let before = self.sites.get(&name).map(|place| place.site.devices.clone()).unwrap_or_default();
        let mut losers = Vec::new();
        for serial in &site.devices {
            let at = self.by_device.insert(*serial, name.clone());
            if let Some(other) = at.filter(|at| *at != name)
                && let Some(place) = self.sites.get_mut(&other)
            {
                place.site.devices.retain(|known| known != serial);
                losers.push(other);
            }
        }
        for serial in before.iter().filter(|serial| !site.devices.contains(serial)) {
            self.by_device.remove(serial);
        }
        let devices: Vec<SerialNumber> = before.into_iter().chain(site.devices.iter().copied()).collect();
        self.sites.entry(name).or_default().site = site;
        devices.iter().for_each(|serial| self.apply(*serial));
        (losers, devices)
    }

    fn remove(&mut self, name: &str) -> Option<Vec<SerialNumber>> {
        let place = self.sites.remove(name)?;
        for serial in &place.site.devices {
            self.by_device.remove(serial);
            self.apply(*serial);
        }
        Some(place.site.devices)
    }

    fn stored(&self, name: &str) -> Option<(String, SiteChange)> {
        self.sites.get(name).map(|place| (name.to_owned(), place.site.clone()))
    }

    fn apply(&self, serial: SerialNumber) {
        let Some(pace) = self.paces.get(&serial) else { return };
        let site = self.by_device.get(&serial).and_then(|name| self.sites.get(name));
        match site.and_then(|place| place.site.limit_mbit) {
            Some(_) => pace.limit(),
            None => pace.unlimit(),
        }
    }
}

impl Place {
    /// Whether it has become full, or is full no more.
    fn look(&mut self, bps: u64, looks: usize, warn_percent: u8) -> bool {
        if self.looks.len() >= looks {
            self.looks.pop_front();
        }
        self.looks.push_back(bps);
        let before = self.full;
        self.full = match self.site.upstream_mbit {
            None => false,
            Some(upstream) => {
                let percent = self.minute_bps() as f64 / (upstream * 1e6) * 100.0;
                // Once full it takes a tenth less to be full no more, so that it is not told with every look.
                let least = f64::from(warn_percent) - if before { 10.0 } else { 0.0 };
                percent >= least && (before || self.looks.len() >= looks)
            }
        };
        before != self.full
    }

    fn minute_bps(&self) -> u64 {
        self.looks.iter().sum::<u64>() / self.looks.len().max(1) as u64
    }

    fn view(&self, name: &str, warn_percent: u8) -> Site {
        let SiteChange { upstream_mbit, limit_mbit, devices } = self.site.clone();
        let state = match (self.full, upstream_mbit) {
            (true, _) => SiteState::Full,
            (false, Some(_)) => SiteState::Room,
            (false, None) => SiteState::Unknown,
        };
        Site {
            name: name.to_owned(),
            upstream_mbit,
            limit_mbit,
            devices,
            bps: self.looks.back().copied().unwrap_or_default(),
            minute_bps: self.minute_bps(),
            warn_percent,
            state,
        }
    }
}

/// A site whose devices share a limit.
struct Limited {
    bytes_per_second: f64,
    shares: Vec<Arc<Pace>>,
    /// Parts of a byte.
    rest: f64,
}

impl Limited {
    fn grant(&mut self, elapsed: Duration) {
        let budget = self.bytes_per_second * elapsed.as_secs_f64() + self.rest;
        self.rest = budget.fract();
        let burst = ((self.bytes_per_second * BURST.as_secs_f64()) as i64).max(BURST_LEAST);
        let allowances: Vec<i64> = self.shares.iter().map(|pace| pace.allowance()).collect();
        for (pace, granted) in self.shares.iter().zip(share(budget as i64, burst, &allowances)) {
            if granted > 0 {
                pace.grant(granted);
            }
        }
    }
}

/// Max-min fair: equal parts, and what one cannot use is the others'. Nobody gets above `burst`.
fn share(budget: i64, burst: i64, allowances: &[i64]) -> Vec<i64> {
    let room: Vec<i64> = allowances.iter().map(|allowance| (burst - allowance).max(0)).collect();
    let mut order: Vec<usize> = (0..room.len()).collect();
    order.sort_by_key(|index| room[*index]);
    let (mut left, mut granted) = (budget, vec![0; room.len()]);
    for (position, index) in order.iter().enumerate() {
        let parts = i64::try_from(order.len() - position).unwrap_or(i64::MAX);
        granted[*index] = room[*index].min(left / parts);
        left -= granted[*index];
    }
    granted
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    #[test]
    fn who_wants_less_than_its_part_leaves_the_rest_to_the_others() {
        assert_eq!(share(90, 100, &[0, 0, 0]), [30, 30, 30]);
        assert_eq!(share(90, 100, &[90, 0, 0]), [10, 40, 40], "a small one has what it can use");
        assert_eq!(share(90, 100, &[100, 100, -500]), [0, 0, 90], "the last one has everything");
        assert_eq!(share(90, 100, &[100, 100]), [0, 0], "nothing is saved up beyond the burst");
        assert_eq!(share(0, 100, &[]), [0; 0]);
    }

    #[test]
    fn never_more_than_there_is_and_who_got_less_than_another_is_full() {
        let mut random = rand::rngs::SmallRng::seed_from_u64(7);
        for _ in 0..1000 {
            let budget = random.random_range(0..100_000);
            let count = random.random_range(1..20);
            let allowances: Vec<i64> = (0..count).map(|_| random.random_range(-50_000..40_000)).collect();
            let granted = share(budget, 32_000, &allowances);
            assert!(granted.iter().sum::<i64>() <= budget);
            let most = granted.iter().max().copied().unwrap_or_default();
            for (allowance, granted) in allowances.iter().zip(&granted) {
                assert!(*granted >= 0 && (*granted == 0 || allowance + granted <= 32_000));
                // Or there is but a rest of the division between them.
                assert!(most - granted <= 20 || allowance + granted >= 32_000, "{allowances:?} {budget}");
            }
        }
    }

    #[test]
    fn full_is_told_after_a_while_and_once_and_so_is_room() {
        let mut place = Place {
            site: SiteChange { upstream_mbit: Some(10.0), ..SiteChange::default() },
            ..Place::default()
        };
        let told: Vec<bool> = [9, 9, 9, 9, 8, 7, 1].map(|mbit| place.look(mbit * 1_000_000, 3, 80)).to_vec();
        assert_eq!(told, [false, false, true, false, false, false, true]);
        assert!(!place.full);
        let mut short = Place { site: place.site.clone(), ..Place::default() };
        assert!(!short.look(20_000_000, 3, 80) && !short.look(1_000_000, 3, 80), "a peak is no use");
    }
}
