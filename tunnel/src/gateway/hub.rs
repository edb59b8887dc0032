//! One stream from a device, many viewers: what came is kept once, and each viewer has a place in it.
//!
//! What is kept reaches back to the beginning of the group of pictures before the one that is on now, as far as the
//! limit allows. So one who comes begins with the key picture of the group that is on (decision 017), one who is a
//! little slow misses nothing, and one who is slower than that goes on at the newest key picture and is told how much
//! it missed. Nobody waits for anybody.
//!
//! Invariant: memory is bounded by the limit and one unit, however many viewers there are; a viewer never sees packets
//! out of order, and after a gap the first thing that it sees is a key picture.

use super::viewer::Weighed;
use bytes::Bytes;
use homing_media::{rtp, rtsp::interleaved_head};
use prometheus_client::metrics::gauge::Gauge;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

/// Kept for viewers that are a little slow even where groups of pictures are short, in bytes.
const SLACK_BYTES: usize = 256 * 1024;

/// Packets that came together, ready to be written: each with its interleaved head, on the channels that we hand out
/// (2 n for RTP of track n, 2 n + 1 for its RTCP).
#[derive(Clone, Debug)]
pub(super) struct Unit {
    pub framed: Bytes,
    pub packets: u32,
}

impl Unit {
    /// Channel, and the packet with its head.
    pub fn packets(&self) -> impl Iterator<Item = (u8, Bytes)> {
        let mut rest = self.framed.clone();
        std::iter::from_fn(move || {
            let &[_, channel, high, low] = rest.first_chunk::<4>()?;
            let packet = rest.split_to((4 + usize::from(u16::from_be_bytes([high, low]))).min(rest.len()));
            Some((channel, packet))
        })
    }
}

/// The stream, as it goes on.
pub(super) struct Hub {
    limit_bytes: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Each with the number of packets before it.
    units: VecDeque<(u64, Unit)>,
    bytes: usize,
    weighed: Weighed,
    /// Units that are no longer there: the number of `units[0]`.
    first: u64,
    packets: u64,
    /// Where the newest group of pictures begins.
    key: Option<u64>,
    /// The device's last sender report of each track, with head.
    reports: Vec<Option<Bytes>>,
    ended: bool,
    /// One for each viewer.
    sleepers: Vec<Option<Sleeper>>,
}

#[derive(Default)]
struct Sleeper {
    waker: Option<Waker>,
    sleeps: bool,
}

impl State {
    fn next(&self) -> u64 {
        self.first + self.units.len() as u64
    }

    fn unit(&self, at: u64) -> Option<&(u64, Unit)> {
        self.units.get(usize::try_from(at.checked_sub(self.first)?).ok()?)
    }

    fn wake(&mut self) {
        for sleeper in self.sleepers.iter_mut().flatten().filter(|sleeper| sleeper.sleeps) {
            sleeper.sleeps = false;
            if let Some(waker) = &sleeper.waker {
                waker.wake_by_ref();
            }
        }
    }
}

impl Hub {
    /// For so many tracks; keeps about so much.
    pub fn new(tracks: usize, limit_bytes: usize) -> Self {
        let state = State { reports: vec![None; tracks], ..State::default() };
        Hub { limit_bytes, state: Mutex::new(state) }
    }

    /// Counts what it keeps.
    pub fn weighed(mut self, gauge: &Gauge) -> Self {
        self.state.get_mut().unwrap_or_else(PoisonError::into_inner).weighed = Weighed::new(gauge);
        self
    }

    /// Takes what came; gives its number.
    pub fn push(&self, unit: Unit) -> u64 {
        let state = &mut *self.lock();
        let number = state.next();
        state.bytes += unit.framed.len();
        let packets = state.packets;
        state.packets += u64::from(unit.packets);
        state.units.push_back((packets, unit));
        while state.bytes > self.limit_bytes && state.units.len() > 1 {
            Self::forget_first(state);
        }
        state.weighed.set(state.bytes);
        state.wake();
        number
    }

    /// A group of pictures begins with that unit.
    pub fn begin_group(&self, number: u64) {
        let state = &mut *self.lock();
        if state.key == Some(number) {
            return;
        }
        let before = state.key.replace(number).unwrap_or(state.first);
        while state.first < before && state.bytes > SLACK_BYTES {
            Self::forget_first(state);
        }
        state.weighed.set(state.bytes);
        // Those who wait for it.
        state.wake();
    }

    /// Remembers a track's sender report, with its head, for those who come later.
    pub fn report(&self, track: usize, framed: Bytes) {
        if let Some(report) = self.lock().reports.get_mut(track) {
            *report = Some(framed);
        }
    }

    /// RTCP BYE of each track that has sent something, with its head: for when the stream is over.
    pub fn goodbyes(&self) -> Vec<Bytes> {
        let state = self.lock();
        let mut sources: Vec<Option<u32>> = vec![None; state.reports.len()];
        for (channel, packet) in state.units.iter().rev().flat_map(|(_, unit)| unit.packets()) {
            if channel % 2 == 0
                && let Some(source @ None) = sources.get_mut(usize::from(channel / 2))
            {
                *source = rtp::Packet::parse(&packet.slice(4..)).ok().map(|packet| packet.ssrc);
            }
            if sources.iter().all(Option::is_some) {
                break;
            }
        }
        let known = sources.into_iter().enumerate().filter_map(|(track, ssrc)| Some((track, ssrc?)));
        known
            .filter_map(|(track, ssrc)| {
                let bye = rtp::goodbye(ssrc);
                let head = interleaved_head(2 * track as u8 + 1, bye.len())?;
                Some([&head[..], &bye].concat().into())
            })
            .collect()
    }

    /// The stream is over; what is there is still read.
    pub fn end(&self) {
        let state = &mut *self.lock();
        state.ended = true;
        state.wake();
    }

    /// A viewer that begins with a key picture.
    pub fn join(self: &Arc<Self>) -> Cursor {
        let mut state = self.lock();
        let slot = match state.sleepers.iter().position(Option::is_none) {
            Some(free) => free,
            None => {
                state.sleepers.push(None);
                state.sleepers.len() - 1
            }
        };
        state.sleepers[slot] = Some(Sleeper::default());
        let (at, number) = (state.first, state.packets);
        drop(state);
        Cursor { hub: Arc::clone(self), slot, at, packet: number, seeks_key: true, counts: false }
    }

    fn forget_first(state: &mut State) {
        if let Some((_, gone)) = state.units.pop_front() {
            state.bytes -= gone.framed.len();
            state.first += 1;
            state.key = state.key.filter(|&key| key >= state.first);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A viewer's place in the stream.
pub(super) struct Cursor {
    hub: Arc<Hub>,
    slot: usize,
    /// The next unit.
    at: u64,
    /// Number of the next packet: what is missing between this and what comes was missed.
    packet: u64,
    seeks_key: bool,
    /// It has begun, so that what it does not see is missed.
    counts: bool,
}

/// How a stream begins for one viewer, by track: RTP sequence number and timestamp, where they are known.
pub(super) type Beginning = Vec<Option<(u16, u32)>>;

impl Cursor {
    /// Waits for the key picture to begin with.
    pub fn poll_key(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let hub = Arc::clone(&self.hub);
        let mut state = hub.lock();
        if self.seek(&state) || state.ended {
            return Poll::Ready(());
        }
        self.sleep(&mut state, cx)
    }

    /// Begins with whatever comes next: there is no key picture, or none is needed.
    pub fn go_live(&mut self) {
        let state = self.hub.lock();
        (self.at, self.packet, self.seeks_key) = (state.next(), state.packets, false);
    }

    /// What this viewer's stream begins with, and the sender reports that go before.
    pub fn beginning(&self) -> (Beginning, Vec<Option<Bytes>>) {
        let state = self.hub.lock();
        let mut beginning: Beginning = vec![None; state.reports.len()];
        let ahead = state
            .units
            .iter()
            .skip(usize::try_from(self.at.saturating_sub(state.first)).unwrap_or(usize::MAX));
        for (channel, packet) in ahead.flat_map(|(_, unit)| unit.packets()) {
            if channel % 2 == 0
                && let Some(track @ None) = beginning.get_mut(usize::from(channel / 2))
                && let Ok(first) = rtp::Packet::parse(&packet.slice(4..))
            {
                *track = Some((first.sequence, first.timestamp));
            }
            if beginning.iter().all(Option::is_some) {
                break;
            }
        }
        (beginning, state.reports.clone())
    }

    /// Takes what is there, at most about `room` bytes, into `out`; gives the number of packets that this viewer missed
    /// before. `None`: the stream is over.
    pub fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        room: usize,
        out: &mut VecDeque<Unit>,
    ) -> Poll<Option<u64>> {
        let hub = Arc::clone(&self.hub);
        let mut state = hub.lock();
        if self.at < state.first && !self.seeks_key {
            self.seeks_key = true;
        }
        if self.seeks_key && !self.seek(&state) {
            return if state.ended { Poll::Ready(None) } else { self.sleep(&mut state, cx) };
        }
        let Some((packet, _)) = state.unit(self.at) else {
            return if state.ended { Poll::Ready(None) } else { self.sleep(&mut state, cx) };
        };
        let missed = if self.counts { packet - self.packet } else { 0 };
        self.counts = true;
        let mut taken = 0;
        while taken < room
            && let Some((packet, unit)) = state.unit(self.at)
        {
            taken += unit.framed.len();
            self.at += 1;
            self.packet = packet + u64::from(unit.packets);
            out.push_back(unit.clone());
        }
        Poll::Ready(Some(missed))
    }

    /// Goes to the newest key picture, if there is one ahead.
    fn seek(&mut self, state: &State) -> bool {
        match state.key.filter(|&key| key >= self.at) {
            Some(key) => {
                (self.at, self.seeks_key) = (key, false);
                true
            }
            None => false,
        }
    }

    fn sleep<T>(&self, state: &mut State, cx: &Context<'_>) -> Poll<T> {
        if let Some(sleeper) = state.sleepers.get_mut(self.slot).and_then(Option::as_mut) {
            sleeper.sleeps = true;
            if !sleeper.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                sleeper.waker = Some(cx.waker().clone());
            }
        }
        Poll::Pending
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        if let Some(sleeper) = self.hub.lock().sleepers.get_mut(self.slot) {
            *sleeper = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A packet of track 0 with that sequence number, of so many bytes.
    fn unit(sequence: u16, bytes: usize) -> Unit {
        let mut packet = rtp::header(true, 96, sequence, u32::from(sequence) * 100, 7).to_vec();
        packet.resize(bytes, 0);
        let mut framed = interleaved_head(0, bytes).unwrap().to_vec();
        framed.extend(packet);
        Unit { framed: framed.into(), packets: 1 }
    }

    fn sequence(unit: &Unit) -> u16 {
        let (_, packet) = unit.packets().next().unwrap();
        rtp::Packet::parse(&packet.slice(4..)).unwrap().sequence
    }

    /// What a viewer gets now: packets missed, sequence numbers.
    fn take(cursor: &mut Cursor) -> Option<(u64, Vec<u16>)> {
        let (mut out, mut cx) = (VecDeque::new(), Context::from_waker(Waker::noop()));
        match cursor.poll_next(&mut cx, usize::MAX, &mut out) {
            Poll::Ready(missed) => Some((missed?, out.iter().map(sequence).collect())),
            Poll::Pending => Some((0, Vec::new())),
        }
    }

    /// Pushes units; those in `keys` begin a group.
    fn push(hub: &Hub, numbers: std::ops::Range<u16>, keys: &[u16], bytes: usize) {
        for number in numbers {
            let at = hub.push(unit(number, bytes));
            if keys.contains(&number) {
                hub.begin_group(at);
            }
        }
    }

    /// Goal: one who comes late begins at once, with the key picture of the group that is on, and sees everything since.
    #[test]
    fn begins_with_the_group_that_is_on() {
        let hub = Arc::new(Hub::new(2, 1 << 20));
        let mut early = hub.join();
        push(&hub, 0..2, &[], 100);
        assert_eq!(take(&mut early), Some((0, vec![])), "nothing before a key picture");
        push(&hub, 2..12, &[2, 7], 100);
        let mut late = hub.join();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(late.poll_key(&mut cx).is_ready());
        assert_eq!(late.beginning().0, [Some((7, 700)), None]);
        assert_eq!(take(&mut late), Some((0, (7..12).collect())));
        push(&hub, 12..13, &[], 100);
        assert_eq!(take(&mut late), Some((0, vec![12])));
        hub.end();
        assert_eq!(take(&mut late), None);
    }

    /// Goal: who is a little slow misses nothing over a key picture; who is slower than what is kept goes on at the
    /// newest key picture, and every packet that it did not get is counted.
    #[test]
    fn the_slow_go_on_at_a_key_picture() {
        let hub = Arc::new(Hub::new(1, 200_000));
        push(&hub, 0..1, &[0], 1000);
        let (mut a_little, mut very) = (hub.join(), hub.join());
        assert_eq!(take(&mut a_little), Some((0, vec![0])));
        assert_eq!(take(&mut very), Some((0, vec![0])));
        push(&hub, 1..100, &[50], 1000);
        assert_eq!(take(&mut a_little), Some((0, (1..100).collect())));
        push(&hub, 100..1000, &[900], 1000);
        assert_eq!(take(&mut very), Some((899, (900..1000).collect())));
        push(&hub, 1000..1001, &[], 1000);
        assert_eq!(take(&mut very), Some((0, vec![1000])));
    }

    /// Goal: what is kept is bounded, with and without key pictures; and who fell behind where there is no key picture
    /// waits for the next one.
    #[test]
    fn memory_is_bounded() {
        let hub = Arc::new(Hub::new(1, 100_000));
        push(&hub, 0..1, &[0], 1000);
        let mut slow = hub.join();
        assert_eq!(take(&mut slow), Some((0, vec![0])));
        push(&hub, 1..5000, &[], 1000);
        assert!(hub.lock().bytes <= 100_000);
        assert_eq!(take(&mut slow), Some((0, vec![])));
        push(&hub, 5000..5010, &[5005], 1000);
        assert_eq!(take(&mut slow), Some((5004, (5005..5010).collect())));
        let keys: Vec<u16> = (5010..20_000).step_by(10).collect();
        let hub = Arc::new(Hub::new(1, 100_000_000));
        push(&hub, 5010..20_000, &keys, 1000);
        assert!(hub.lock().bytes <= SLACK_BYTES + 20 * 1100, "{} bytes", hub.lock().bytes);
    }

    /// Goal: a viewer that has gone leaves nothing.
    #[test]
    fn places_are_used_again() {
        let hub = Arc::new(Hub::new(1, 1000));
        drop((hub.join(), hub.join()));
        let _one = hub.join();
        assert_eq!(hub.lock().sleepers.len(), 2);
        assert_eq!(hub.lock().sleepers.iter().flatten().count(), 1);
    }
}
