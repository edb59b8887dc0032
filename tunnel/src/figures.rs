//! How much each uplink carries now: rates, from counters that the uplinks keep anyway.
//!
//! One task looks at all of them a few times within a keepalive period; moving bytes costs nothing here. An uplink's
//! [`Meter`] holds what the last look found.
//!
//! Invariant: a rate is at most one [`period`] old while the server runs, and none is told of less than half of one.

use crate::{devices::Devices, metrics::Metrics};
use homing_base::Stop;
use homing_uplink::UplinkStats;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, MissedTickBehavior};

/// Longest time between two looks.
const LONGEST_PERIOD: Duration = Duration::from_secs(5);

/// Rates of one uplink. Written by one task, read by all.
#[derive(Debug)]
pub(crate) struct Meter {
    began: Instant,
    /// Milliseconds from `began` to the last look, and what had been counted then.
    looked_ms: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    line_in: AtomicU64,
    bps_in: AtomicU64,
    bps_out: AtomicU64,
    line_bps: AtomicU64,
}

impl Meter {
    /// Of an uplink that begins now.
    pub fn new(now: Instant) -> Self {
        Meter {
            began: now,
            looked_ms: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            line_in: AtomicU64::new(0),
            bps_in: AtomicU64::new(0),
            bps_out: AtomicU64::new(0),
            line_bps: AtomicU64::new(0),
        }
    }

    /// Bits a second, received and sent.
    pub fn bps(&self) -> (u64, u64) {
        (self.bps_in.load(Ordering::Relaxed), self.bps_out.load(Ordering::Relaxed))
    }

    /// Bits a second received, as the line carries them.
    pub fn line_bps(&self) -> u64 {
        self.line_bps.load(Ordering::Relaxed)
    }

    /// Takes a look. `false` if the last one is too short ago for a rate.
    pub fn look(&self, now: Instant, shortest: Duration, stats: &UplinkStats) -> bool {
        let at = u64::try_from(now.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX);
        let elapsed = at.saturating_sub(self.looked_ms.load(Ordering::Relaxed));
        if u128::from(elapsed) < shortest.as_millis().max(1) {
            return false;
        }
        self.looked_ms.store(at, Ordering::Relaxed);
        for (bytes, before, bps) in [
            (stats.bytes_in, &self.bytes_in, &self.bps_in),
            (stats.bytes_out, &self.bytes_out, &self.bps_out),
            (stats.line_in, &self.line_in, &self.line_bps),
        ] {
            let moved = bytes.saturating_sub(before.swap(bytes, Ordering::Relaxed));
            bps.store(moved.saturating_mul(8000) / elapsed, Ordering::Relaxed);
        }
        true
    }
}

/// Between two looks, for a time between pings.
pub(crate) fn period(ping_interval: Duration) -> Duration {
    (ping_interval / 2).clamp(Duration::from_millis(1), LONGEST_PERIOD)
}

/// Looks until the role stops.
pub(crate) async fn run(devices: Arc<Devices>, metrics: Arc<Metrics>, period: Duration, stop: &Stop) {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => (),
            () = stop.cancelled() => return,
        }
        let now = Instant::now();
        devices.for_each_connected(|connected| {
            let stats = connected.uplink.stats();
            if connected.meter.look(now, period / 2, &stats)
                && let Some(rtt) = stats.rtt
            {
                metrics.round_trip.observe(rtt.as_secs_f64());
            }
        });
        devices.look_at_sites();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    fn stats(bytes_in: u64, bytes_out: u64) -> UplinkStats {
        let line_in = bytes_in + bytes_in / 10;
        UplinkStats {
            connected_since: SystemTime::now(),
            bytes_in,
            bytes_out,
            line_in,
            rtt: None,
            streams: 0,
        }
    }

    #[test]
    fn rates_are_of_the_last_period_and_fall_to_nothing() {
        let (t0, period) = (Instant::now(), Duration::from_secs(5));
        let meter = Meter::new(t0);
        assert!(!meter.look(t0 + Duration::from_secs(1), period / 2, &stats(1_000_000, 0)), "too early");
        assert_eq!(meter.bps(), (0, 0));
        assert!(meter.look(t0 + period, period / 2, &stats(312_500, 625)));
        assert_eq!((meter.bps(), meter.line_bps()), ((500_000, 1000), 550_000), "bits a second");
        assert!(meter.look(t0 + period * 2, period / 2, &stats(312_500, 1250)));
        assert_eq!(meter.bps(), (0, 1000));
    }

    #[test]
    fn looks_come_within_a_keepalive_period() {
        assert_eq!(period(Duration::from_secs(10)), Duration::from_secs(5));
        assert_eq!(period(Duration::from_secs(60)), LONGEST_PERIOD);
        assert_eq!(period(Duration::from_millis(100)), Duration::from_millis(50));
    }
}
