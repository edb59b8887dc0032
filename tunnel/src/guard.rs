//! Who may use the internal address: one user and password, guessing slowed per address.
//!
//! An address that has been wrong too often is not looked at for a while, right or wrong (429), so that guessing is as
//! slow with many connections as with one. An address that was right is not slowed by others' mistakes from there: a VMS
//! is not locked out by a script beside it.

use homing_base::{
    client::parse_basic,
    crowd::network,
    throttle::{Throttle, Tolerance},
};
use homing_protocol::{Secret, secret::Credentials};
use http::HeaderValue;
use std::{
    collections::HashSet,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Addresses remembered as right; when full they are all forgotten, and are right again with their next request.
const TRUSTED_MAX: usize = 1024;

/// Why somebody is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// No credentials, or not Basic.
    Missing,
    /// Wrong ones.
    Wrong,
    /// Too many wrong ones from this address; how long until it is looked at again.
    TooMany(Duration),
}

/// Checks Basic credentials.
pub(crate) struct Guard {
    credentials: Credentials,
    attempts: Attempts,
}

/// Who was right and who was wrong lately, by address.
pub(crate) struct Attempts {
    throttle: Throttle<IpAddr>,
    trusted: Mutex<HashSet<IpAddr>>,
}

impl Default for Attempts {
    fn default() -> Self {
        Attempts { throttle: Throttle::new(Tolerance::LOG_IN), trusted: Mutex::default() }
    }
}

impl Attempts {
    /// How long this address is not looked at; zero: it is.
    pub fn wait(&self, peer: IpAddr, now: Instant) -> Duration {
        let wait = self.throttle.wait(&network(peer), now);
        if !wait.is_zero() && self.trusted().contains(&peer.to_canonical()) { Duration::ZERO } else { wait }
    }

    /// It was right, and is not slowed by others' mistakes from there.
    pub fn handle_right(&self, peer: IpAddr) {
        let mut trusted = self.trusted();
        if trusted.len() >= TRUSTED_MAX {
            trusted.clear();
        }
        trusted.insert(peer.to_canonical());
    }

    /// It was wrong.
    pub fn handle_wrong(&self, peer: IpAddr, now: Instant) {
        self.throttle.handle_wrong(&network(peer), now);
    }

    fn trusted(&self) -> std::sync::MutexGuard<'_, HashSet<IpAddr>> {
        self.trusted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guard {
    pub fn new(credentials: Credentials) -> Self {
        Guard { credentials, attempts: Attempts::default() }
    }

    /// The user that there is.
    pub fn user(&self) -> &str {
        &self.credentials.user
    }

    /// Whether the header's user and password are the right ones.
    pub fn check(&self, peer: IpAddr, header: Option<&HeaderValue>) -> Result<(), Denied> {
        let offered = header.and_then(|value| value.to_str().ok()).and_then(parse_basic);
        let offered = offered.ok_or(Denied::Missing)?;
        let now = Instant::now();
        let wait = self.attempts.wait(peer, now);
        if !wait.is_zero() {
            return Err(Denied::TooMany(wait));
        }
        // Both are compared, whatever the first says.
        let user = Secret::new(self.credentials.user.clone()).matches(&offered.user);
        if user & self.credentials.password.matches(offered.password.expose()) {
            self.attempts.handle_right(peer);
            return Ok(());
        }
        self.attempts.handle_wrong(peer, now);
        Err(Denied::Wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use homing_base::client::basic;
    use std::net::Ipv6Addr;

    const LAPTOP: [u8; 4] = [192, 0, 2, 1];
    const VMS: [u8; 4] = [192, 0, 2, 2];

    fn guard() -> Guard {
        Guard::new(Credentials::new("vms", "sesame"))
    }

    fn check(guard: &Guard, peer: impl Into<IpAddr>, user: &str, password: &str) -> Result<(), Denied> {
        let header = HeaderValue::from_str(&basic(&Credentials::new(user, password))).unwrap();
        guard.check(peer.into(), Some(&header))
    }

    #[test]
    fn the_right_pair_and_nothing_else() {
        let guard = guard();
        assert_eq!(check(&guard, VMS, "vms", "sesame"), Ok(()));
        for (user, password) in [("vms", "Sesame"), ("VMS", "sesame"), ("", ""), ("vms", "sesame2")] {
            assert_eq!(check(&guard, LAPTOP, user, password), Err(Denied::Wrong), "{user}:{password}");
        }
        assert_eq!(guard.check(LAPTOP.into(), None), Err(Denied::Missing));
        let bearer = HeaderValue::from_static("Bearer x");
        assert_eq!(guard.check(LAPTOP.into(), Some(&bearer)), Err(Denied::Missing));
    }

    #[tokio::test(start_paused = true)]
    async fn who_guesses_is_not_looked_at_for_a_while_and_nobody_else_notices() {
        let guard = guard();
        let guesses =
            (0..100).filter(|_| check(&guard, LAPTOP, "vms", "guess") == Err(Denied::Wrong)).count();
        assert!(guesses < 10, "{guesses} guesses were looked at");
        assert!(matches!(check(&guard, LAPTOP, "vms", "sesame"), Err(Denied::TooMany(_))), "right or wrong");
        assert_eq!(check(&guard, VMS, "vms", "sesame"), Ok(()));
        tokio::time::advance(Duration::from_secs(61)).await;
        assert_eq!(check(&guard, LAPTOP, "vms", "sesame"), Ok(()));
        // One that was right is not locked out by a script beside it.
        for _ in 0..20 {
            let _ = check(&guard, LAPTOP, "vms", "guess");
        }
        assert_eq!(check(&guard, LAPTOP, "vms", "sesame"), Ok(()));
    }

    #[test]
    fn a_network_of_ipv6_addresses_is_slowed_as_one() {
        let guard = guard();
        for host in 0..100 {
            let _ = check(&guard, Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, host), "vms", "guess");
        }
        let beside = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 1, 1);
        assert!(matches!(check(&guard, beside, "vms", "sesame"), Err(Denied::TooMany(_))));
        let elsewhere = Ipv6Addr::new(0x2001, 0xdb8, 0, 2, 0, 0, 1, 1);
        assert_eq!(check(&guard, elsewhere, "vms", "sesame"), Ok(()));
    }
}
