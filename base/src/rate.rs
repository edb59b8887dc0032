//! So many a second, by key: handshakes by network, requests by device.
//!
//! A bucket by the generic cell rate algorithm: of each key one instant is kept, at which all of its past use will be paid
//! for. Time is given, so that it needs no clock of its own; so is the pace. One that changes begins anew.
//!
//! Not here: what to do with who comes too fast. Guessers are slowed by `throttle.rs`.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Keys that are kept at once. Who has paid is forgotten first; if nobody has, the next is let pass uncounted: a crowd
/// of addresses costs memory for this many and no more.
const KEPT: usize = 10_000;

/// How much, how fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    each: Duration,
    burst: u32,
}

impl Pace {
    /// So many a second in the long run, ten seconds' worth at once after a while without any: a whole site comes back
    /// after a power cut, a page asks for everything. 0: no limit.
    pub fn per_second(count: u32) -> Self {
        let each = Duration::from_secs(1).checked_div(count).unwrap_or_default();
        Pace { each, burst: count.saturating_mul(10) }
    }

    /// So many a minute, and a minute's worth at once. 0: no limit.
    pub fn per_minute(count: u32) -> Self {
        Pace { each: Duration::from_secs(60).checked_div(count).unwrap_or_default(), burst: count }
    }
}

/// Use by key.
pub struct Rate<K> {
    /// When all is paid for, and at which pace.
    paid: Mutex<HashMap<K, (Instant, Pace)>>,
}

impl<K> Default for Rate<K> {
    fn default() -> Self {
        Rate { paid: Mutex::default() }
    }
}

impl<K: Eq + Hash + Clone> Rate<K> {
    /// Takes one.
    ///
    /// # Errors
    /// How long until there is one; then none was taken.
    pub fn admit(&self, key: &K, pace: Pace, now: Instant) -> Result<(), Duration> {
        let Pace { each, burst } = pace;
        if each.is_zero() {
            return Ok(());
        }
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        if paid.len() >= KEPT && !paid.contains_key(key) {
            paid.retain(|_, (paid, _)| *paid > now);
            if paid.len() >= KEPT {
                return Ok(());
            }
        }
        let (due, at) = paid.entry(key.clone()).or_insert((now, pace));
        if *at != pace {
            (*due, *at) = (now, pace);
        }
        let wait = due.saturating_duration_since(now + each * (burst - 1));
        if !wait.is_zero() {
            return Err(wait);
        }
        *due = (*due).max(now) + each;
        Ok(())
    }
}

/// Turns for everybody in the order of asking.
#[derive(Default)]
pub struct Turns(Mutex<Option<Instant>>);

impl Turns {
    /// How long to wait for one's turn; zero: now.
    ///
    /// # Errors
    /// When that would be longer than `at_most`; then no turn was taken.
    pub fn take(&self, per_second: u32, at_most: Duration, now: Instant) -> Result<Duration, Duration> {
        if per_second == 0 {
            return Ok(Duration::ZERO);
        }
        let mut next = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = next.map_or(now, |next| next.max(now));
        let wait = turn - now;
        if wait > at_most {
            return Err(wait);
        }
        *next = Some(turn + Duration::from_secs(1) / per_second);
        Ok(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_so_many_a_second_and_nobody_else_is_touched() {
        let (rate, begin, pace) = (Rate::default(), Instant::now(), Pace::per_second(10));
        let admitted = |key, after_s| {
            let now = begin + Duration::from_secs(after_s);
            (0..1000).map_while(|_| rate.admit(&key, pace, now).ok()).count()
        };
        assert_eq!(admitted('a', 0), 100);
        assert_eq!(rate.admit(&'a', pace, begin), Err(Duration::from_millis(100)));
        assert_eq!(admitted('b', 0), 100);
        assert_eq!(admitted('a', 1), 10);
        assert_eq!(admitted('a', 3600), 100, "a burst at most");
        let changed = Pace::per_minute(3);
        let passed = (0..9).map_while(|_| rate.admit(&'b', changed, begin).ok()).count();
        assert_eq!(passed, 3, "another pace begins anew");
        let none = Pace::per_second(0);
        assert!((0..1000).all(|_| rate.admit(&'a', none, begin).is_ok()));
    }

    #[test]
    fn a_crowd_of_keys_costs_bounded_memory() {
        let (rate, begin, pace) = (Rate::default(), Instant::now(), Pace::per_second(10));
        for key in 0..KEPT as u64 * 3 {
            rate.admit(&key, pace, begin + Duration::from_micros(key)).unwrap();
        }
        assert_eq!(rate.paid.lock().unwrap().len(), KEPT);
        rate.admit(&u64::MAX, pace, begin + Duration::from_secs(9)).unwrap();
        assert_eq!(rate.paid.lock().unwrap().len(), 1, "who has paid is forgotten");
    }

    #[test]
    fn turns_come_in_order_and_the_queue_is_bounded() {
        let (turns, begin) = (Turns::default(), Instant::now());
        let second = Duration::from_secs(1);
        let waits: Vec<_> = (0..12).map(|_| turns.take(10, second, begin).is_ok()).collect();
        assert_eq!(waits.iter().filter(|taken| **taken).count(), 11);
        assert_eq!(turns.take(10, second, begin + second), Ok(second / 10));
        assert_eq!(turns.take(10, second, begin + second * 60), Ok(Duration::ZERO));
        assert_eq!(turns.take(0, Duration::ZERO, begin), Ok(Duration::ZERO));
    }
}
