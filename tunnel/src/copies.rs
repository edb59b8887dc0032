//! Two devices that share one key: a stolen or a cloned one (step 7). Pure.
//!
//! A device's newest uplink replaces its older one, because that is most often dead. Two that hold one key push each
//! other off, again and again, each from its own address. A device that changes its address once, or comes back after
//! its router has, does not look so: the address goes back and forth.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

/// Changes from one address to another that still stood. Each of two devices is back at least twice then.
const CHANGES: usize = 4;

/// Within which they must be.
const WITHIN: Duration = Duration::from_secs(300);

/// The latest addresses that replaced another one.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    latest: Vec<(Instant, IpAddr)>,
}

impl Copies {
    /// An uplink from `from` was replaced by one from `to`, while it stood. The two addresses, once it is clear that
    /// two devices are there.
    pub fn handle_replaced(&mut self, now: Instant, from: IpAddr, to: IpAddr) -> Option<(IpAddr, IpAddr)> {
        if from == to {
            return None;
        }
        self.latest.retain(|(at, _)| now.duration_since(*at) < WITHIN);
        if self.latest.last().is_some_and(|(_, last)| *last != from) {
            self.latest.clear();
        }
        self.latest.push((now, to));
        if self.latest.len() > CHANGES {
            self.latest.remove(0);
        }
        let back_and_forth = self
            .latest
            .iter()
            .rev()
            .enumerate()
            .all(|(age, (_, address))| *address == if age % 2 == 0 { to } else { from });
        (self.latest.len() == CHANGES && back_and_forth).then_some((from, to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1));
    const C: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 1));

    #[test]
    fn step_7_two_devices_with_one_key_are_told_from_one_that_moves() {
        let began = Instant::now();
        let told = |changes: &[(u64, IpAddr, IpAddr)]| {
            let mut copies = Copies::default();
            changes
                .iter()
                .filter_map(|(s, from, to)| {
                    copies.handle_replaced(began + Duration::from_secs(*s), *from, *to)
                })
                .last()
        };
        assert_eq!(told(&[(0, A, B), (3, B, A), (6, A, B)]), None);
        assert_eq!(told(&[(0, A, B), (3, B, A), (6, A, B), (9, B, A)]), Some((B, A)));
        assert_eq!(told(&[(0, A, A), (1, A, A), (2, A, A), (3, A, A), (4, A, A)]), None, "one address");
        assert_eq!(told(&[(0, A, B), (3, B, C), (6, C, A), (9, A, B)]), None, "it travels");
        assert_eq!(told(&[(0, A, B), (200, B, A), (400, A, B), (600, B, A)]), None, "two lines, by turns");
    }
}
