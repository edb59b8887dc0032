//! When to try again: pure arithmetic, no clock and no sleep.
//!
//! ONVIF Uplink 26.06 asks a device to retry with ascending intervals that differ from device to device
//! (3, 6, 12, 24, 30, 30 … here, 2, 4, 8, 16, 30 … there), so that thousands of devices that lost one
//! server do not come back in step. A [`Backoff`] doubles from [`BackoffSettings::first`] to
//! [`BackoffSettings::max`] and scales every interval by a jitter factor.
//!
//! Invariant: an interval is never longer than `max` and never shorter than `first × (1 − jitter)`.

use rand::Rng;
use std::time::Duration;

/// The shape of a sequence of intervals.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BackoffSettings {
    /// The first interval, before jitter.
    pub first: Duration,
    /// No interval is longer.
    pub max: Duration,
    /// Each interval is shortened by a random share of up to this, 0.0 to 1.0.
    pub jitter: f64,
    /// A connection that held this long starts the sequence over.
    pub stable_after: Duration,
}

impl Default for BackoffSettings {
    /// 3, 6, 12, 24, 30, 30 … seconds, each shortened by up to a half: those who were cut off together spread as far as
    /// they can while intervals still ascend, as the standard wants it. Reset after a minute.
    fn default() -> Self {
        Self {
            first: Duration::from_secs(3),
            max: Duration::from_secs(30),
            jitter: 0.5,
            stable_after: Duration::from_secs(60),
        }
    }
}

/// Counts failed attempts and says how long to wait before the next one.
///
/// ```
/// use homing_uplink::{Backoff, BackoffSettings};
/// let mut backoff = Backoff::new(BackoffSettings { jitter: 0.0, ..Default::default() });
/// let seconds: Vec<_> = (0..6).map(|_| backoff.next_interval().as_secs()).collect();
/// assert_eq!(seconds, [3, 6, 12, 24, 30, 30]);
/// ```
#[derive(Clone, Debug)]
pub struct Backoff {
    settings: BackoffSettings,
    failures: u32,
}

impl Backoff {
    /// A sequence at its start.
    pub fn new(settings: BackoffSettings) -> Self {
        Self { settings, failures: 0 }
    }

    /// The interval to wait now; the one after it is longer.
    pub fn next_interval(&mut self) -> Duration {
        self.next_interval_with(rand::rng().random::<f64>())
    }

    /// As [`next_interval`](Self::next_interval), with the random number (0.0 to 1.0) given.
    pub fn next_interval_with(&mut self, random: f64) -> Duration {
        // Past 2^16 the limit has long been reached; the cap keeps the shift defined.
        let factor = 1_u32 << self.failures.min(16);
        self.failures = self.failures.saturating_add(1);
        let interval = self.settings.first.saturating_mul(factor).min(self.settings.max);
        let jitter = self.settings.jitter.clamp(0.0, 1.0);
        interval.mul_f64(1.0 - jitter * random.clamp(0.0, 1.0))
    }

    /// A connection ended that had held for `held`: a stable one starts the sequence over.
    pub fn handle_connection_end(&mut self, held: Duration) {
        if held >= self.settings.stable_after {
            self.reset();
        }
    }

    /// Starts over.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// How many intervals were handed out since the start or the last reset.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_stable_connection_starts_the_sequence_over_and_a_short_one_does_not() {
        let mut backoff = Backoff::new(BackoffSettings { jitter: 0.0, ..Default::default() });
        for _ in 0..4 {
            backoff.next_interval();
        }
        backoff.handle_connection_end(Duration::from_secs(59));
        assert_eq!(backoff.next_interval(), Duration::from_secs(30));
        backoff.handle_connection_end(Duration::from_secs(60));
        assert_eq!(backoff.next_interval(), Duration::from_secs(3));
    }

    #[test]
    fn two_devices_do_not_come_back_in_step() {
        let sequence = || {
            let mut backoff = Backoff::new(BackoffSettings::default());
            (0..8).map(|_| backoff.next_interval()).collect::<Vec<_>>()
        };
        assert_ne!(sequence(), sequence());
    }

    proptest! {
        #[test]
        fn intervals_stay_within_their_bounds(randoms in proptest::collection::vec(0.0..=1.0_f64, 1..40)) {
            let settings = BackoffSettings::default();
            let mut backoff = Backoff::new(settings);
            for random in randoms {
                let interval = backoff.next_interval_with(random);
                prop_assert!(interval <= settings.max);
                prop_assert!(interval >= settings.first.mul_f64(0.49));
            }
        }
    }
}
