//! Who may use the internal address: one user and password, wrong ones slowed per address.
//!
//! An address that was wrong waits before it is looked at again, right or wrong, so that guessing is as slow with many
//! connections as with one. An address that has once been right is not slowed by others' mistakes from there: a VMS is
//! not locked out by a script beside it.

use homing_base::client::parse_basic;
use homing_protocol::{Secret, secret::Credentials};
use http::HeaderValue;
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Addresses that are remembered; when full, the one seen longest ago is forgotten.
const ADDRESSES_MAX: usize = 4096;

/// After the first wrong password; doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// An attempt that would have to wait longer than this is refused unseen.
const PATIENCE: Duration = Duration::from_secs(10);

/// Mistakes are forgiven after this.
const FORGIVEN: Duration = Duration::from_secs(600);

/// Why somebody is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// No credentials, or not Basic.
    Missing,
    /// Wrong ones.
    Wrong,
    /// Too many wrong ones from this address.
    TooMany,
}

/// Checks Basic credentials.
pub(crate) struct Guard {
    credentials: Credentials,
    addresses: Mutex<HashMap<IpAddr, Standing>>,
}

struct Standing {
    wrong: u32,
    /// The next attempt is looked at then.
    next: Instant,
    seen: Instant,
    /// The very address that was right last.
    trusted: Option<IpAddr>,
}

impl Guard {
    pub fn new(credentials: Credentials) -> Self {
        Guard { credentials, addresses: Mutex::default() }
    }

    /// Waits where it must, then says whether the header's user and password are the right ones.
    pub async fn check(&self, peer: IpAddr, header: Option<&HeaderValue>) -> Result<(), Denied> {
        let offered = header.and_then(|value| value.to_str().ok()).and_then(parse_basic);
        let offered = offered.ok_or(Denied::Missing)?;
        let peer = peer.to_canonical();
        let at = self.turn(peer).ok_or(Denied::TooMany)?;
        if let Some(at) = at {
            tokio::time::sleep_until(at).await;
        }
        // Both are compared, whatever the first says.
        let user = Secret::new(self.credentials.user.clone()).matches(&offered.user);
        let right = user & self.credentials.password.matches(offered.password.expose());
        self.note(peer, right);
        if right { Ok(()) } else { Err(Denied::Wrong) }
    }

    /// When this attempt is looked at: now (`Some(None)`), later, or not at all. Each attempt has a turn of its own.
    fn turn(&self, peer: IpAddr) -> Option<Option<Instant>> {
        let now = Instant::now();
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(standing) = addresses.get_mut(&network(peer)) else { return Some(None) };
        if standing.trusted == Some(peer) || standing.wrong == 0 {
            return Some(None);
        }
        if now.duration_since(standing.seen) > FORGIVEN {
            standing.wrong = 0;
            return Some(None);
        }
        let at = standing.next.max(now);
        if at.duration_since(now) > PATIENCE {
            return None;
        }
        standing.next = at + pause(standing.wrong);
        Some(Some(at))
    }

    fn note(&self, peer: IpAddr, right: bool) {
        let now = Instant::now();
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let network = network(peer);
        if !addresses.contains_key(&network) && addresses.len() >= ADDRESSES_MAX {
            let oldest = addresses.iter().min_by_key(|(_, standing)| standing.seen).map(|(peer, _)| *peer);
            oldest.and_then(|oldest| addresses.remove(&oldest));
        }
        let standing =
            addresses.entry(network).or_insert(Standing { wrong: 0, next: now, seen: now, trusted: None });
        standing.seen = now;
        if right {
            standing.trusted = Some(peer);
        } else {
            standing.wrong = standing.wrong.saturating_add(1);
            standing.next = standing.next.max(now + pause(standing.wrong));
        }
    }
}

fn pause(wrong: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << wrong.saturating_sub(1).min(16)).min(LONGEST_PAUSE)
}

/// What is slowed as one: somebody with IPv6 has a whole network of addresses.
fn network(peer: IpAddr) -> IpAddr {
    match peer {
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use homing_base::client::basic;

    const LAPTOP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const VMS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn guard() -> Guard {
        Guard::new(Credentials::new("vms", "sesame"))
    }

    fn header(user: &str, password: &str) -> HeaderValue {
        HeaderValue::from_str(&basic(&Credentials::new(user, password))).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn the_right_pair_and_nothing_else() {
        let guard = guard();
        for (index, (user, password, answer)) in [
            ("vms", "sesame", Ok(())),
            ("vms", "Sesame", Err(Denied::Wrong)),
            ("VMS", "sesame", Err(Denied::Wrong)),
            ("", "", Err(Denied::Wrong)),
            ("vms", "sesame2", Err(Denied::Wrong)),
        ]
        .into_iter()
        .enumerate()
        {
            let peer = IpAddr::from([192, 0, 2, 10 + index as u8]);
            assert_eq!(guard.check(peer, Some(&header(user, password))).await, answer, "{user}:{password}");
        }
        assert_eq!(guard.check(LAPTOP, None).await, Err(Denied::Missing));
        let bearer = HeaderValue::from_static("Bearer x");
        assert_eq!(guard.check(LAPTOP, Some(&bearer)).await, Err(Denied::Missing));
    }

    #[tokio::test(start_paused = true)]
    async fn guessing_is_slow_with_many_connections_too_and_slows_nobody_else() {
        let guard = guard();
        let began = Instant::now();
        for _ in 0..5 {
            assert_eq!(guard.check(LAPTOP, Some(&header("vms", "guess"))).await, Err(Denied::Wrong));
        }
        // 0.1 + 0.2 + 0.4 + 0.8 s of waiting for five.
        assert!(began.elapsed() >= Duration::from_millis(1500), "{:?}", began.elapsed());

        let wrong = header("vms", "guess");
        let at_once =
            futures_util::future::join_all((0..50).map(|_| guard.check(LAPTOP, Some(&wrong)))).await;
        let looked_at = at_once.iter().filter(|answer| **answer == Err(Denied::Wrong)).count();
        assert!(looked_at <= 8, "{looked_at} of 50 guesses were looked at within {PATIENCE:?}");

        let before = Instant::now();
        assert_eq!(guard.check(VMS, Some(&header("vms", "sesame"))).await, Ok(()));
        assert_eq!(before.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_was_right_is_not_locked_out_by_a_script_beside_it() {
        let guard = guard();
        assert_eq!(guard.check(VMS, Some(&header("vms", "sesame"))).await, Ok(()));
        for _ in 0..20 {
            let _ = guard.check(VMS, Some(&header("vms", "guess"))).await;
        }
        let before = Instant::now();
        assert_eq!(guard.check(VMS, Some(&header("vms", "sesame"))).await, Ok(()));
        assert_eq!(before.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn the_list_of_addresses_is_bounded() {
        let guard = guard();
        for index in 0..ADDRESSES_MAX as u32 + 100 {
            guard.note(IpAddr::V4((0x0A00_0000 + index).into()), false);
        }
        assert_eq!(guard.addresses.lock().unwrap().len(), ADDRESSES_MAX);
    }
}
