//! Who may use the internal address: one user and password, guessing slowed per address; or everybody, if
//! the administrator says so, for all but secrets.
//!
//! An address that has been wrong too often is not looked at for a while, right or wrong (429), so that guessing is as
//! slow with many connections as with one. An address that was right lately is not locked out by others' mistakes from
//! there (a script beside the VMS, everybody behind one NAT): the right pair passes, wrong ones are refused the same
//! way, counted and logged. There the length of the password is what holds (`config.rs` wants [`PASSWORD_MIN`]).

use homing_base::{
    Live,
    client::parse_basic,
    crowd::network,
    throttle::{Throttle, Tolerance},
};
use homing_protocol::{Secret, secret::Credentials};
use http::HeaderValue;
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Shortest password of the internal address, in characters: with random ones 95 bits, beyond all guessing.
pub(crate) const PASSWORD_MIN: usize = 16;

/// Addresses remembered as right; when full they are all forgotten, and are right again with their next request.
const TRUSTED_MAX: usize = 1024;

/// How long an address is remembered as right after its last right request.
const TRUSTED_FOR: Duration = Duration::from_secs(600);

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
    credentials: Live<Credentials>,
    /// Whether anybody is asked.
    asks: bool,
    attempts: Attempts,
}

/// Who was right and who was wrong lately, by address.
pub(crate) struct Attempts {
    throttle: Throttle<IpAddr>,
    /// When each was last right.
    trusted: Mutex<HashMap<IpAddr, Instant>>,
    logged: Throttle<IpAddr>,
}

impl Default for Attempts {
    fn default() -> Self {
        Attempts {
            throttle: Throttle::new(Tolerance::LOG_IN),
            trusted: Mutex::default(),
            logged: Throttle::new(Tolerance::LOG),
        }
    }
}

impl Attempts {
    /// How long this address is not looked at; zero: it is.
    pub fn wait(&self, peer: IpAddr, now: Instant) -> Duration {
        let wait = self.throttle.wait(&network(peer), now);
        if wait.is_zero() || self.is_trusted(peer, now) { Duration::ZERO } else { wait }
    }

    /// It was right, and is for a while not locked out by others' mistakes from there.
    pub fn handle_right(&self, peer: IpAddr) {
        let (peer, mut trusted) = (peer.to_canonical(), self.trusted());
        if trusted.len() >= TRUSTED_MAX && !trusted.contains_key(&peer) {
            trusted.clear();
        }
        trusted.insert(peer, Instant::now());
    }

    /// It was wrong; what to answer. From an address that is looked at because it was right, wrong ones are refused all
    /// the same, and told to the operator.
    pub fn handle_wrong(&self, peer: IpAddr, now: Instant) -> Denied {
        let slowed = !self.throttle.wait(&network(peer), now).is_zero();
        self.throttle.handle_wrong(&network(peer), now);
        if !slowed {
            return Denied::Wrong;
        }
        if self.logged.wait(&peer, now).is_zero() {
            self.logged.handle_wrong(&peer, now);
            tracing::warn!(%peer, "wrong passwords from an address that has the right one; look what else runs there");
        }
        Denied::TooMany(self.throttle.wait(&network(peer), now))
    }

    fn is_trusted(&self, peer: IpAddr, now: Instant) -> bool {
        let right = self.trusted().get(&peer.to_canonical()).copied();
        right.is_some_and(|right| now.saturating_duration_since(right) < TRUSTED_FOR)
    }

    fn trusted(&self) -> std::sync::MutexGuard<'_, HashMap<IpAddr, Instant>> {
        self.trusted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guard {
    pub fn new(credentials: Credentials, asks: bool) -> Self {
        Guard { credentials: Live::new(credentials), asks, attempts: Attempts::default() }
    }

    /// Lets in who has these from now on.
    pub fn set(&self, credentials: Credentials) {
        if *self.credentials.get() != credentials {
            self.credentials.set(credentials);
            // Who was right was so with another password.
            self.attempts.trusted().clear();
        }
    }

    /// The user that there is.
    pub fn user(&self) -> String {
        self.credentials.get().user.clone()
    }

    /// Whether anybody is asked for user and password.
    pub fn asks(&self) -> bool {
        self.asks
    }

    /// Whether somebody with this header may come in.
    pub fn check(&self, peer: IpAddr, header: Option<&HeaderValue>) -> Result<(), Denied> {
        if self.asks { self.check_always(peer, header) } else { Ok(()) }
    }

    /// Whether the header's user and password are the right ones, also where nobody else is asked for them.
    pub fn check_always(&self, peer: IpAddr, header: Option<&HeaderValue>) -> Result<(), Denied> {
        let offered = header.and_then(|value| value.to_str().ok()).and_then(parse_basic);
        self.check_pair(peer, &offered.ok_or(Denied::Missing)?)
    }

    /// The same for a user and password that came otherwise.
    pub fn check_pair(&self, peer: IpAddr, offered: &Credentials) -> Result<(), Denied> {
        let now = Instant::now();
        let wait = self.attempts.wait(peer, now);
        if !wait.is_zero() {
            return Err(Denied::TooMany(wait));
        }
        if self.is(offered) && !self.credentials.get().password.is_empty() {
            self.attempts.handle_right(peer);
            return Ok(());
        }
        Err(self.attempts.handle_wrong(peer, now))
    }

    /// Whether these are the user and password, without a word about who asks.
    pub fn is(&self, pair: &Credentials) -> bool {
        // Both are compared, whatever the first says.
        let right = self.credentials.get();
        let user = Secret::new(right.user.clone()).matches(&pair.user);
        user & right.password.matches(pair.password.expose())
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
        Guard::new(Credentials::new("vms", "sesame"), true)
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

    /// Goal: who asks nobody still shows no secret to a stranger; a password that was not set is nobody's.
    #[test]
    fn where_nobody_is_asked_secrets_are_for_who_knows_the_password() {
        let guard = Guard::new(Credentials::new("vms", "sesame"), false);
        assert_eq!(guard.check(LAPTOP.into(), None), Ok(()));
        assert_eq!(guard.check_always(LAPTOP.into(), None), Err(Denied::Missing));
        assert_eq!(guard.check_pair(VMS.into(), &Credentials::new("vms", "sesame")), Ok(()));
        let unset = Guard::new(Credentials::new("vms", ""), false);
        assert_eq!(unset.check_pair(VMS.into(), &Credentials::new("vms", "")), Err(Denied::Wrong));
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
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_was_right_is_not_locked_out_guesses_there_are_refused_and_trust_ends() {
        let guard = guard();
        assert_eq!(check(&guard, VMS, "vms", "sesame"), Ok(()));
        let guesses = (0..100).filter(|_| check(&guard, VMS, "vms", "guess") == Err(Denied::Wrong)).count();
        assert!(guesses < 10, "{guesses} guesses were answered");
        assert!(matches!(check(&guard, VMS, "vms", "guess"), Err(Denied::TooMany(_))));
        assert_eq!(check(&guard, VMS, "vms", "sesame"), Ok(()));
        // A VMS that is there stays there, whatever goes on beside it.
        for _ in 0..20 {
            tokio::time::advance(TRUSTED_FOR / 10).await;
            assert!(check(&guard, VMS, "vms", "guess").is_err());
            assert_eq!(check(&guard, VMS, "vms", "sesame"), Ok(()));
        }
        // One that has gone leaves nobody a way in.
        for _ in 0..100 {
            tokio::time::advance(TRUSTED_FOR / 20).await;
            let _ = check(&guard, VMS, "vms", "guess");
        }
        for _ in 0..100 {
            let _ = check(&guard, VMS, "vms", "guess");
        }
        assert!(matches!(check(&guard, VMS, "vms", "sesame"), Err(Denied::TooMany(_))), "right or wrong");
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
