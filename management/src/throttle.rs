//! Slows down who guesses passwords: a pure table of failures.
//!
//! Each key (an address, a user's name) has some failures free; after that every failure doubles the
//! wait before the next attempt is even looked at. A success clears the key. Nobody is locked out for
//! good: whoever knows the password waits at most the longest wait.
//!
//! Invariant: the table holds at most [`KEYS`] keys; when it is full, the key that has waited out
//! longest makes room.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// Keys remembered at once. An attacker with more addresses than this is slowed by the user's key.
const KEYS: usize = 10_000;

/// A key that has not failed for so long starts anew.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);

/// How one kind of key is slowed.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Failures without any wait.
    pub free: u32,
    /// The first wait; doubled by each further failure.
    pub first: Duration,
    /// The longest wait.
    pub longest: Duration,
}

/// By address: whoever sits there tries by hand or by program.
pub const BY_ADDRESS: Pace =
    Pace { free: 5, first: Duration::from_secs(2), longest: Duration::from_secs(900) };

/// By user: many addresses may guess at one user, but must not be able to keep that user out for long.
pub const BY_USER: Pace = Pace { free: 10, first: Duration::from_secs(1), longest: Duration::from_secs(30) };

struct Failures {
    count: u32,
    last: Instant,
    until: Instant,
}

/// The failures of one kind of key.
pub struct Throttle {
    pace: Pace,
    keys: HashMap<String, Failures>,
}

impl Throttle {
    /// No failure yet.
    pub fn new(pace: Pace) -> Self {
        Throttle { pace, keys: HashMap::new() }
    }

    /// How long this key has to wait before an attempt is looked at; `None` if it may try now.
    pub fn wait(&self, now: Instant, key: &str) -> Option<Duration> {
        self.keys.get(key)?.until.checked_duration_since(now).filter(|wait| !wait.is_zero())
    }

    /// An attempt was wrong.
    pub fn failed(&mut self, now: Instant, key: &str) {
        if !self.keys.contains_key(key) && self.keys.len() >= KEYS {
            self.make_room(now);
        }
        let entry = self.keys.entry(key.to_owned()).or_insert(Failures { count: 0, last: now, until: now });
        if now.duration_since(entry.last) > FORGOTTEN_AFTER {
            entry.count = 0;
        }
        entry.count = entry.count.saturating_add(1);
        entry.last = now;
        let Some(beyond) = entry.count.checked_sub(self.pace.free + 1) else { return };
        let wait = self.pace.first.saturating_mul(1u32.checked_shl(beyond.min(20)).unwrap_or(u32::MAX));
        entry.until = now + wait.min(self.pace.longest);
    }

    /// An attempt was right.
    pub fn succeeded(&mut self, key: &str) {
        self.keys.remove(key);
    }

    fn make_room(&mut self, now: Instant) {
        self.keys.retain(|_, failures| now.duration_since(failures.last) <= FORGOTTEN_AFTER);
        if self.keys.len() >= KEYS {
            let oldest =
                self.keys.iter().min_by_key(|(_, failures)| failures.until).map(|(key, _)| key.clone());
            oldest.and_then(|key| self.keys.remove(&key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_end_with_a_success() {
        let start = Instant::now();
        let mut throttle = Throttle::new(BY_ADDRESS);
        for _ in 0..BY_ADDRESS.free {
            throttle.failed(start, "a");
            assert_eq!(throttle.wait(start, "a"), None);
        }
        let mut waits = Vec::new();
        for _ in 0..12 {
            throttle.failed(start, "a");
            waits.push(throttle.wait(start, "a").unwrap().as_secs());
        }
        assert_eq!(waits[..4], [2, 4, 8, 16]);
        assert_eq!(*waits.last().unwrap(), 900);
        assert_eq!(throttle.wait(start, "b"), None);
        assert_eq!(throttle.wait(start + Duration::from_secs(900), "a"), None);
        throttle.succeeded("a");
        assert_eq!(throttle.wait(start, "a"), None);
    }

    #[test]
    fn old_failures_are_forgotten() {
        let start = Instant::now();
        let mut throttle = Throttle::new(BY_USER);
        for _ in 0..20 {
            throttle.failed(start, "a");
        }
        let later = start + FORGOTTEN_AFTER + Duration::from_secs(1);
        throttle.failed(later, "a");
        assert_eq!(throttle.wait(later, "a"), None);
    }

    #[test]
    fn a_flood_of_keys_stays_bounded_and_keeps_who_must_still_wait() {
        let start = Instant::now();
        let mut throttle = Throttle::new(BY_ADDRESS);
        for _ in 0..10 {
            throttle.failed(start, "guesser");
        }
        for index in 0..KEYS + 500 {
            throttle.failed(start, &index.to_string());
        }
        assert!(throttle.keys.len() <= KEYS);
        assert!(throttle.wait(start, "guesser").is_some());
    }
}
