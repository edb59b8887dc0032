//! Slows down those who guess: wrong passwords, wrong OAKs.
//!
//! A few mistakes are free; each further one doubles the time until the next try counts. Whoever gets it
//! right, or stays away for long, begins anew. Time is given, so that it needs no clock of its own.
//!
//! Not here: what to do meanwhile. Callers refuse (429 with `Retry-After`) or wait.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Guessers remembered at once. When it is full the one that has been quiet for longest is forgotten: a
/// crowd of addresses costs memory for this many and no more.
const REMEMBERED: usize = 10_000;

/// How mistakes are paid for.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Mistakes that cost nothing.
    pub free: u32,
    /// The wait after the first mistake beyond those; doubled by each further one.
    pub first: Duration,
    /// The longest wait. A guesser that was quiet for four times as long is forgotten.
    pub longest: Duration,
}

impl Tolerance {
    /// For people and programs that log in: five mistakes free, then 1 s up to a minute.
    pub const LOG_IN: Tolerance =
        Tolerance { free: 5, first: Duration::from_secs(1), longest: Duration::from_secs(60) };

    /// The wait after so many mistakes.
    pub fn pause(&self, count: u32) -> Duration {
        match count.checked_sub(self.free) {
            None | Some(0) => Duration::ZERO,
            Some(beyond) => {
                let doubled = 1u32 << (beyond - 1).min(20);
                self.first.saturating_mul(doubled).min(self.longest)
            }
        }
    }
}

impl Tolerance {
    /// For what is logged about somebody who tries again all day: at once, then less and less often.
    pub const LOG: Tolerance =
        Tolerance { free: 0, first: Duration::from_secs(600), longest: Duration::from_secs(24 * 3600) };
}

struct Mistakes {
    count: u32,
    last: Instant,
}

/// Who has made how many mistakes lately; `K` is whatever a guesser cannot change at will.
pub struct Throttle<K> {
    tolerance: Tolerance,
    mistakes: Mutex<HashMap<K, Mistakes>>,
}

impl<K: Eq + Hash + Clone> Throttle<K> {
    /// Nobody has made a mistake yet.
    pub fn new(tolerance: Tolerance) -> Self {
        Throttle { tolerance, mistakes: Mutex::default() }
    }

    /// How long until this one may try again; zero: now.
    pub fn wait(&self, key: &K, now: Instant) -> Duration {
        let mistakes = self.mistakes.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(made) = mistakes.get(key) else { return Duration::ZERO };
        self.tolerance.pause(made.count).saturating_sub(now.saturating_duration_since(made.last))
    }

    /// It was wrong.
    pub fn handle_wrong(&self, key: &K, now: Instant) {
        let mut mistakes = self.mistakes.lock().unwrap_or_else(PoisonError::into_inner);
        if mistakes.len() >= REMEMBERED && !mistakes.contains_key(key) {
            let quietest = mistakes.iter().min_by_key(|(_, made)| made.last).map(|(key, _)| key.clone());
            quietest.and_then(|key| mistakes.remove(&key));
        }
        let made = mistakes.entry(key.clone()).or_insert(Mistakes { count: 0, last: now });
        if now.saturating_duration_since(made.last) > self.tolerance.longest * 4 {
            made.count = 0;
        }
        made.count = made.count.saturating_add(1);
        made.last = now;
    }

    /// It was right: what came before is forgiven.
    pub fn handle_right(&self, key: &K) {
        self.mistakes.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_mistakes_are_free_and_each_further_one_doubles_the_wait() {
        let throttle = Throttle::new(Tolerance::LOG_IN);
        let now = Instant::now();
        let second = Duration::from_secs(1);
        for _ in 0..5 {
            assert_eq!(throttle.wait(&"a", now), Duration::ZERO);
            throttle.handle_wrong(&"a", now);
        }
        assert_eq!(throttle.wait(&"a", now), Duration::ZERO);
        for expected in [1, 2, 4, 8, 16, 32, 60, 60] {
            throttle.handle_wrong(&"a", now);
            assert_eq!(throttle.wait(&"a", now), second * expected);
        }
        assert_eq!(throttle.wait(&"a", now + second * 59), second);
        assert_eq!(throttle.wait(&"b", now), Duration::ZERO);

        throttle.handle_wrong(&"a", now + second * 241);
        assert_eq!(throttle.wait(&"a", now + second * 241), Duration::ZERO, "forgotten after a while");
        for _ in 0..10 {
            throttle.handle_wrong(&"a", now);
        }
        throttle.handle_right(&"a");
        assert_eq!(throttle.wait(&"a", now), Duration::ZERO);
    }

    #[test]
    fn a_crowd_of_guessers_costs_bounded_memory() {
        let throttle = Throttle::new(Tolerance::LOG_IN);
        let now = Instant::now();
        for guesser in 0..REMEMBERED as u64 + 100 {
            throttle.handle_wrong(&guesser, now + Duration::from_millis(guesser));
        }
        assert_eq!(throttle.mistakes.lock().unwrap().len(), REMEMBERED);
    }
}
