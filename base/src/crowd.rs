//! What one network may have of a listener, so that nobody can take all of it.
//!
//! Invariant: a connection is counted for as long as its [`Admission`] lives, and memory is proportional to the
//! connections that are counted.

use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

/// What one subscriber has: an IPv4 address, or an IPv6 /64. Whatever is counted or slowed by address is counted by
/// this: who has IPv6 has more addresses than could ever be remembered.
pub fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

/// Networks of a configuration file: `["192.0.2.0/24", "2001:db8::/48"]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Networks(Vec<Network>);

impl Networks {
    /// This machine.
    pub fn local() -> Self {
        let v4 = Network { first: IpAddr::from([127, 0, 0, 0]), bits: 8 };
        Networks(vec![v4, Network { first: Ipv6Addr::LOCALHOST.into(), bits: 128 }])
    }

    /// Whether an address is in one of them.
    pub fn contain(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.0.iter().any(|network| network.contains(peer))
    }
}

/// `address/bits`; without bits, one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
struct Network {
    first: IpAddr,
    bits: u32,
}

impl Network {
    fn contains(self, peer: IpAddr) -> bool {
        match (self.first, peer) {
            (IpAddr::V4(first), IpAddr::V4(peer)) => {
                (first.to_bits() ^ peer.to_bits()).leading_zeros() >= self.bits
            }
            (IpAddr::V6(first), IpAddr::V6(peer)) => {
                (first.to_bits() ^ peer.to_bits()).leading_zeros() >= self.bits
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, bits) = text.split_once('/').map_or((text, None), |(first, bits)| (first, Some(bits)));
        let wrong = || "write a network as \"192.0.2.0/24\", \"2001:db8::/48\" or one address".to_owned();
        let first: IpAddr = first.trim().parse().map_err(|_| wrong())?;
        let most = if first.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), |bits| bits.trim().parse().map_err(|_| wrong()))?;
        if bits > most { Err(wrong()) } else { Ok(Network { first, bits }) }
    }
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> String {
        network.to_string()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.bits)
    }
}

/// Connections by network.
pub struct Crowd {
    limit: AtomicUsize,
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
        Arc::new(Crowd { limit: AtomicUsize::new(limit), counts: Mutex::default() })
    }

    /// From now on each network may have so many; nobody who is here is sent away.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Counts a connection; `None` when its network has as many as it may.
    pub fn admit(self: &Arc<Self>, peer: IpAddr) -> Option<Admission> {
        let network = network(peer);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(network).or_insert(0);
        if *count >= self.limit.load(Ordering::Relaxed) {
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

    #[test]
    fn networks_are_read_as_they_are_written() {
        let networks: Networks =
            serde_json::from_str(r#"["192.0.2.0/24", "2001:db8::/32", "10.1.2.3", "::1/128"]"#).unwrap();
        let of = |text: &str| networks.contain(text.parse().unwrap());
        for inside in ["192.0.2.255", "::ffff:192.0.2.1", "2001:db8:ffff::1", "10.1.2.3", "::1"] {
            assert!(of(inside), "{inside}");
        }
        for outside in ["192.0.3.0", "2001:db9::", "10.1.2.4", "::2"] {
            assert!(!of(outside), "{outside}");
        }
        assert_eq!(serde_json::to_string(&Networks::local()).unwrap(), r#"["127.0.0.0/8","::1/128"]"#);
        let all: Networks = serde_json::from_str(r#"["0.0.0.0/0"]"#).unwrap();
        assert!(all.contain([192, 0, 2, 1].into()));
        for wrong in ["192.0.2.0/33", "::/129", "here", "1.2.3.4/x"] {
            let error = serde_json::from_str::<Networks>(&format!("[{wrong:?}]")).unwrap_err();
            assert!(error.to_string().contains("write a network"), "{error}");
        }
    }
}
