//! When to ping and when to give a silent peer up: pure, time is given.
//!
//! The server pings, which is also the packet that the device waits for (ONVIF Uplink 26.06: a device that gets
//! nothing for 30 s closes). Anything received counts as a sign of life, not only the pong, which may queue
//! behind video. A device only listens: it is the same with no pings.

use std::time::Duration;
use tokio::time::Instant;

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Send a ping and ask again at once.
    Ping,
    /// Ask again at this time.
    WaitUntil(Instant),
    /// Nothing came for so long: the peer is gone.
    Dead { silent: Duration },
}

#[derive(Debug)]
pub(crate) struct Liveness {
    /// None: never ping.
    interval: Option<Duration>,
    dead_after: Duration,
    next_ping: Instant,
    pinged_at: Option<Instant>,
}

impl Liveness {
    /// For a server: the first ping is due at once.
    pub fn pinging(now: Instant, interval: Duration, dead_after: Duration) -> Self {
        Self { interval: Some(interval), dead_after, next_ping: now, pinged_at: None }
    }

    /// For a device.
    pub fn listening(now: Instant, dead_after: Duration) -> Self {
        Self { interval: None, dead_after, next_ping: now, pinged_at: None }
    }

    pub fn next(&mut self, now: Instant, last_received: Instant) -> Command {
        let silent = now.saturating_duration_since(last_received);
        if silent >= self.dead_after {
            return Command::Dead { silent };
        }
        let dead_at = last_received + self.dead_after;
        match self.interval {
            // HTTP/2 knows one ping at a time: while one is out, only the deadline counts.
            Some(interval) if self.pinged_at.is_none() => {
                if now >= self.next_ping {
                    self.pinged_at = Some(now);
                    self.next_ping = now + interval;
                    return Command::Ping;
                }
                Command::WaitUntil(self.next_ping.min(dead_at))
            }
            _ => Command::WaitUntil(dead_at),
        }
    }

    /// Whether a ping is out.
    pub fn is_waiting(&self) -> bool {
        self.pinged_at.is_some()
    }

    /// A pong came: the round-trip time.
    pub fn handle_pong(&mut self, now: Instant) -> Option<Duration> {
        self.pinged_at.take().map(|sent| now.saturating_duration_since(sent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);
    const DEAD: Duration = Duration::from_secs(25);

    #[test]
    fn a_peer_that_answers_is_pinged_at_the_interval() {
        let t0 = Instant::now();
        let mut liveness = Liveness::pinging(t0, INTERVAL, DEAD);
        let mut now = t0;
        for round in 0..5 {
            assert_eq!(liveness.next(now, now), Command::Ping, "round {round}");
            let pong = now + Duration::from_millis(20);
            assert_eq!(liveness.handle_pong(pong), Some(Duration::from_millis(20)));
            assert_eq!(liveness.next(pong, pong), Command::WaitUntil(now + INTERVAL));
            now += INTERVAL;
        }
    }

    #[test]
    fn silence_ends_it_after_exactly_the_limit() {
        let t0 = Instant::now();
        let mut liveness = Liveness::pinging(t0, INTERVAL, DEAD);
        assert_eq!(liveness.next(t0, t0), Command::Ping);
        assert_eq!(liveness.next(t0, t0), Command::WaitUntil(t0 + DEAD));
        assert_eq!(liveness.next(t0 + DEAD, t0), Command::Dead { silent: DEAD });
    }

    #[test]
    fn data_counts_as_life_although_the_pong_is_late() {
        let t0 = Instant::now();
        let mut liveness = Liveness::pinging(t0, INTERVAL, DEAD);
        liveness.next(t0, t0);
        let data = t0 + Duration::from_secs(24);
        assert_eq!(liveness.next(t0 + DEAD, data), Command::WaitUntil(data + DEAD));
    }

    #[test]
    fn a_device_never_pings() {
        let t0 = Instant::now();
        let mut liveness = Liveness::listening(t0, DEAD);
        assert_eq!(liveness.next(t0, t0), Command::WaitUntil(t0 + DEAD));
        assert_eq!(liveness.next(t0 + DEAD, t0), Command::Dead { silent: DEAD });
    }
}
