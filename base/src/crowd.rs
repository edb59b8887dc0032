//! What one network may have of a listener, so that nobody can take all of it.
//!
//! Invariant: a connection is counted for as long as its [`Admission`] lives, and memory is proportional to the
//! connections that are counted.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

/// What one subscriber has: an IPv4 address, or an IPv6 /64. Whatever is counted or slowed by address is counted by
/// this: who has IPv6 has more addresses than could ever be remembered.
pub fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

/// Connections by network.
pub struct Crowd {
    limit: usize,
    counts: Mutex<HashMap<IpAddr, usize>>,
}

/// A counted connection.
pub struct Admission {
    crowd: Arc<Crowd>,
    network: IpAddr,
}

impl Crowd {
    /// Nobody is here; each network may have `limit` connections.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Crowd { limit, counts: Mutex::default() })
    }

    /// Counts a connection; `None` when its network has as many as it may.
    pub fn admit(self: &Arc<Self>, peer: IpAddr) -> Option<Admission> {
        let network = network(peer);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(network).or_insert(0);
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        Some(Admission { crowd: Arc::clone(self), network })
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut counts = self.crowd.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_subscriber_has_one_count_and_it_is_given_back() {
        let crowd = Crowd::new(2);
        let peer = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = crowd.admit(peer("2001:db8::1")).unwrap();
        let second = crowd.admit(peer("2001:db8::ffff")).unwrap();
        assert!(crowd.admit(peer("2001:db8::2")).is_none());
        assert!(crowd.admit(peer("2001:db8:0:1::1")).is_some());
        drop(first);
        assert!(crowd.admit(peer("2001:db8::2")).is_some());
        assert_eq!(network(peer("::ffff:192.0.2.1")), peer("192.0.2.1"));
        drop(second);
        assert!(crowd.counts.lock().unwrap().is_empty());
    }
}
