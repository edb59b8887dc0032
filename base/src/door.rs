//! Who waits to be let in at a listener that faces the Internet: strangers, until they have shown who they are.
//!
//! There are so many places, of which one network has half at most; so many handshakes a second for a network, and for
//! all together. When every place is taken, who has been there for longest is pushed out: one who means it needs a
//! fraction of a second, one who is silent would have stayed for ten. So accepting never waits.
//!
//! A [`Reception`] is such a door before a listener that also has room for many who are known.
//!
//! Invariant: a place is taken until its [`Place`] is left or dropped, and memory is proportional to the places.

use crate::{
    crowd::{Admission, Crowd, Networks, network},
    rate::{Pace, Rate, Turns},
};
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a handshake may wait for its turn; devices give up after 15 s.
const TURN_DEADLINE: Duration = Duration::from_secs(5);

/// What strangers may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoorLimits {
    /// Places; a network has half of them.
    pub places: usize,
    /// Handshakes of one network.
    pub by_network: Pace,
    /// Handshakes of all together, a second; more wait for their turn. 0: no limit.
    pub handshakes_per_second: u32,
    /// Who is not counted by network.
    pub exempt: Networks,
}

/// Why somebody is turned away, before a byte was exchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Turned {
    /// Its network has half of the places.
    #[error("its network has as many connections under way as it may")]
    Crowded,
    /// Its network comes too often.
    #[error("its network makes more connections a second than it may")]
    TooFast,
    /// All together come too often for the next one to be served in time.
    #[error("more connect than can be served in time")]
    Overrun,
    /// Somebody newer needed its place.
    #[error("it took too long while others waited")]
    PushedOut,
}

impl Turned {
    /// In a word, for metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Turned::Crowded => "too-many-from-network",
            Turned::TooFast => "too-fast-from-network",
            Turned::Overrun => "too-fast",
            Turned::PushedOut => "pushed-out",
        }
    }
}

/// The door of one listener.
#[derive(Default)]
pub struct Door {
    inside: Mutex<Inside>,
    rate: Rate<IpAddr>,
    turns: Turns,
}

#[derive(Default)]
struct Inside {
    next: u64,
    /// The oldest first.
    places: BTreeMap<u64, CancellationToken>,
    by_network: HashMap<IpAddr, usize>,
}

/// A stranger's place.
pub struct Place {
    door: Arc<Door>,
    number: u64,
    network: Option<IpAddr>,
    pushed_out: CancellationToken,
    is_left: AtomicBool,
}

impl Door {
    /// Takes a place.
    ///
    /// # Errors
    /// When the network has too many, or comes too fast.
    pub fn enter(self: &Arc<Self>, peer: IpAddr, limits: &DoorLimits, now: Instant) -> Result<Place, Turned> {
        let network = (!limits.exempt.contain(peer)).then(|| network(peer));
        if let Some(network) = &network {
            self.rate.admit(network, limits.by_network, now).map_err(|_| Turned::TooFast)?;
        }
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(network) = network {
            let count = inside.by_network.entry(network).or_insert(0);
            if *count >= limits.places.div_ceil(2) {
                return Err(Turned::Crowded);
            }
            *count += 1;
        }
        while inside.places.len() >= limits.places.max(1) {
            let Some((_, oldest)) = inside.places.pop_first() else { break };
            oldest.cancel();
        }
        let (number, pushed_out) = (inside.next, CancellationToken::new());
        inside.next += 1;
        inside.places.insert(number, pushed_out.clone());
        let is_left = AtomicBool::new(false);
        Ok(Place { door: Arc::clone(self), number, network, pushed_out, is_left })
    }

    /// Returns when it is this handshake's turn.
    ///
    /// # Errors
    /// When that would take too long.
    pub async fn turn(&self, limits: &DoorLimits) -> Result<(), Turned> {
        let wait = self.turns.take(limits.handshakes_per_second, TURN_DEADLINE, Instant::now());
        let wait = wait.map_err(|_| Turned::Overrun)?;
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        Ok(())
    }
}

impl Place {
    /// Returns when somebody newer needs it.
    pub async fn pushed_out(&self) {
        self.pushed_out.cancelled().await;
    }

    /// It is no stranger any more: it needs no place, and is not pushed out.
    pub fn leave(&self) {
        if self.is_left.swap(true, Ordering::Relaxed) {
            return;
        }
        let mut inside = self.door.inside.lock().unwrap_or_else(PoisonError::into_inner);
        inside.places.remove(&self.number);
        let Some(network) = self.network else { return };
        if let Some(count) = inside.by_network.get_mut(&network) {
            *count -= 1;
            if *count == 0 {
                inside.by_network.remove(&network);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Connections a second of one network to a [`Reception`], this machine excepted; ten seconds' worth at once. A third of
/// what one processor can do of TLS handshakes.
const CONNECTIONS_PER_SECOND: u32 = 1000;

/// TLS handshakes a second at a [`Reception`], of all; more wait for their turn.
const HANDSHAKES_PER_SECOND: u32 = 2000;

/// A listener for people and programs: room for those who are known, and as much again for those who are not yet, so that
/// these keep nobody out.
pub struct Reception {
    connections: usize,
    crowd: Arc<Crowd>,
    door: Arc<Door>,
    strangers: DoorLimits,
}

impl Reception {
    /// For so many who are known, and so many of one network, known or not.
    pub fn new(connections: usize, by_network: usize) -> Self {
        let strangers = DoorLimits {
            places: connections,
            by_network: Pace::per_second(CONNECTIONS_PER_SECOND),
            handshakes_per_second: HANDSHAKES_PER_SECOND,
            exempt: Networks::local(),
        };
        Reception { connections, crowd: Crowd::new(by_network), door: Arc::default(), strangers }
    }

    /// Connections at once, known or not.
    pub fn room(&self) -> usize {
        self.connections.saturating_mul(2)
    }

    /// Takes a connection: what it is counted by until it ends, and its place until it is known.
    ///
    /// # Errors
    /// When its network has too many, or comes too fast.
    pub fn admit(&self, peer: IpAddr) -> Result<(Admission, Place), Turned> {
        let admission = self.crowd.admit(peer).ok_or(Turned::Crowded)?;
        Ok((admission, self.door.enter(peer, &self.strangers, Instant::now())?))
    }

    /// Returns when it is a handshake's turn.
    ///
    /// # Errors
    /// When that would take too long.
    pub async fn turn(&self) -> Result<(), Turned> {
        self.door.turn(&self.strangers).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> DoorLimits {
        DoorLimits {
            places: 4,
            by_network: Pace::per_second(2),
            handshakes_per_second: 0,
            exempt: Networks::default(),
        }
    }

    fn peer(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[tokio::test]
    async fn the_newest_finds_room_and_the_oldest_gives_way() {
        let (door, limits, now) = (Arc::new(Door::default()), limits(), Instant::now());
        let enter = |last| door.enter(peer(last), &limits, now);
        let first = enter(1).unwrap();
        let rest: Vec<_> = [2, 3, 4].into_iter().map(|last| enter(last).unwrap()).collect();
        let newest = enter(5).unwrap();
        rest[0].leave();
        let known = enter(6).unwrap();
        tokio::time::timeout(Duration::from_secs(5), first.pushed_out()).await.expect("it is pushed out");
        assert!(!rest[0].pushed_out.is_cancelled() && !newest.pushed_out.is_cancelled());
        drop((first, rest, newest, known));
        let inside = door.inside.lock().unwrap();
        assert!(inside.places.is_empty() && inside.by_network.is_empty());
    }

    #[test]
    fn a_network_has_half_and_so_many_a_second_unless_it_is_exempt() {
        let (door, mut limits, now) = (Arc::new(Door::default()), limits(), Instant::now());
        let kept: Vec<_> = (0..2).map(|_| door.enter(peer(1), &limits, now).unwrap()).collect();
        assert_eq!(door.enter(peer(1), &limits, now).err(), Some(Turned::Crowded));
        drop(kept);
        let entered = (0..100).map(|_| door.enter(peer(1), &limits, now).err()).filter(Option::is_none);
        assert_eq!(entered.count(), 17);
        assert_eq!(door.enter(peer(1), &limits, now).err(), Some(Turned::TooFast));
        assert!(door.enter(peer(2), &limits, now).is_ok());
        limits.exempt = serde_json::from_str("[\"192.0.2.0/25\"]").unwrap();
        let kept: Vec<_> = (0..4).map(|_| door.enter(peer(1), &limits, now)).collect();
        assert!(kept.iter().all(Result::is_ok));
    }
}
