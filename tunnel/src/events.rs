//! What happens to devices, as a sequence that can be followed, left, and followed on: all devices first, then every
//! change.
//!
//! Invariant: an [`Events`] that was followed to any point knows the state at that point. One that fell further behind
//! than is kept ends instead of leaving something out: it never holds up what it watches. An [`EventId`] of another life
//! of the server is never taken for one of this.

mod kept;

use homing_protocol::{
    SerialNumber,
    api::tunnel::{Device, Site},
};
use kept::Kept;
use std::{
    collections::VecDeque,
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch;

/// Changes kept for who follows slowly, or was away, however few devices there are.
const KEPT_MIN: usize = 4096;

/// Changes kept for each device, or a few thousand that go and come in a second would leave nothing to follow on from: all
/// of them may do so twice.
const KEPT_PER_DEVICE: usize = 4;

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A device is registered, or something about it has changed.
    Device(Arc<Device>),
    /// A device's registration was deleted.
    Removed(SerialNumber),
    /// A site has become nearly full, or has room again.
    Site(Arc<Site>),
}

/// A place in the sequence: after which event. Printed as `EPOCH-NUMBER`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventId {
    /// Which life of the server: random.
    epoch: u64,
    /// How many events there have been in it.
    number: u64,
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}", self.epoch, self.number)
    }
}

/// A text that is no event's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the id of an event")]
pub struct NoEventId;

impl FromStr for EventId {
    type Err = NoEventId;

    fn from_str(text: &str) -> Result<Self, NoEventId> {
        let (epoch, number) = text.split_once('-').ok_or(NoEventId)?;
        let epoch = u64::from_str_radix(epoch, 16).map_err(|_| NoEventId)?;
        Ok(EventId { epoch, number: number.parse().map_err(|_| NoEventId)? })
    }
}

/// The sequence itself.
#[derive(Debug)]
pub(crate) struct Journal {
    epoch: u64,
    kept: Arc<Mutex<Kept>>,
    /// How many events there have been; the newest kept is the last of them.
    count: watch::Sender<u64>,
}

impl Journal {
    pub fn new() -> Self {
        let kept = Arc::new(Mutex::new(Kept::new(KEPT_MIN)));
        Journal { epoch: rand::random(), kept, count: watch::Sender::new(0) }
    }

    /// From now on so many devices may go and come.
    pub fn keep_for(&self, devices: usize) {
        lock(&self.kept).set_limit(KEPT_MIN.max(KEPT_PER_DEVICE * devices));
    }

    /// Something happened.
    pub fn push(&self, event: Event) {
        let mut kept = lock(&self.kept);
        kept.push(event);
        self.count.send_modify(|count| *count += 1);
    }

    /// Follows from now on; `first` is everything that there is now.
    pub fn follow(&self, first: VecDeque<Arc<Device>>) -> Events {
        let count = self.count.subscribe();
        let number = *count.borrow();
        Events { first, after: EventId { epoch: self.epoch, number }, kept: Arc::clone(&self.kept), count }
    }

    /// Follows on after an event; `None` if what came after it is not kept, or not of this life.
    pub fn follow_after(&self, after: EventId) -> Option<Events> {
        let kept = lock(&self.kept);
        let count = self.count.subscribe();
        let last = *count.borrow();
        let first = last - kept.len() as u64;
        let is_here = after.epoch == self.epoch && (first..=last).contains(&after.number);
        is_here.then(|| Events { first: VecDeque::new(), after, kept: Arc::clone(&self.kept), count })
    }
}

/// Follows the devices.
#[derive(Debug)]
pub struct Events {
    first: VecDeque<Arc<Device>>,
    after: EventId,
    kept: Arc<Mutex<Kept>>,
    count: watch::Receiver<u64>,
}

impl Events {
    /// The next event; first one for every device that there is. `None` when this follower was too slow, or the tunnel
    /// server has ended: subscribe again.
    pub async fn next(&mut self) -> Option<Event> {
        if let Some(device) = self.next_there() {
            return Some(Event::Device(device));
        }
        loop {
            {
                let kept = lock(&self.kept);
                let ahead = *self.count.borrow_and_update() - self.after.number;
                if ahead > 0 {
                    let at = kept.len().checked_sub(usize::try_from(ahead).ok()?)?;
                    self.after.number += 1;
                    return kept.get(at);
                }
            }
            self.count.changed().await.ok()?;
        }
    }

    /// The next of the devices that there were when this was opened.
    pub(crate) fn next_there(&mut self) -> Option<Arc<Device>> {
        self.first.pop_front()
    }

    /// To go on from here later.
    pub fn id(&self) -> EventId {
        self.after
    }
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removed(number: u8) -> Event {
        Event::Removed(SerialNumber::new([0, 0x40, 0x8C, 0, 0, number]))
    }

    /// Goal: who was away for a while is told everything that happened, in order, and who was away too long, or comes
    /// from another life, is told so.
    #[tokio::test]
    async fn who_was_away_goes_on_where_it_was_or_is_told_that_it_cannot() {
        let journal = Journal::new();
        let mut events = journal.follow(VecDeque::new());
        journal.push(removed(1));
        assert_eq!(events.next().await, Some(removed(1)));
        let id: EventId = events.id().to_string().parse().unwrap();
        drop(events);
        journal.push(removed(2));
        journal.push(removed(3));
        let mut events = journal.follow_after(id).unwrap();
        assert_eq!(events.next().await, Some(removed(2)));
        assert_eq!(events.next().await, Some(removed(3)));
        assert!(journal.follow_after(events.id()).is_some(), "nothing has happened since");

        let to_come = EventId { number: 4, ..id };
        assert!(journal.follow_after(to_come).is_none(), "never told");
        assert!(Journal::new().follow_after(EventId { number: 0, ..id }).is_none(), "another life");
        for _ in 0..KEPT_MIN - 2 {
            journal.push(removed(4));
        }
        assert!(journal.follow_after(id).is_some(), "just kept");
        journal.push(removed(4));
        assert!(journal.follow_after(id).is_none(), "too long ago");
        assert_eq!(lock(&journal.kept).len(), KEPT_MIN);
    }

    /// Goal: as much is kept as so many devices make who go and come twice; and no more than that, when they are fewer.
    #[tokio::test]
    async fn what_is_kept_grows_with_the_devices_and_shrinks() {
        let journal = Journal::new();
        journal.keep_for(3000);
        let before = journal.follow(VecDeque::new()).id();
        for _ in 0..4 * 3000 {
            journal.push(removed(1));
        }
        assert!(journal.follow_after(before).is_some());
        journal.push(removed(1));
        assert!(journal.follow_after(before).is_none());
        let mut events = journal.follow_after(EventId { number: 12_000, ..before }).unwrap();
        journal.keep_for(2000);
        assert_eq!(lock(&journal.kept).len(), 8000);
        assert_eq!(events.next().await, Some(removed(1)), "the newest stay");
        journal.keep_for(1);
        assert_eq!(lock(&journal.kept).len(), KEPT_MIN);
    }

    /// Goal: a follower that is too slow ends, and so does one whose server has ended.
    #[tokio::test]
    async fn a_follower_that_is_too_slow_ends() {
        let journal = Journal::new();
        let mut slow = journal.follow(VecDeque::new());
        for _ in 0..=KEPT_MIN {
            journal.push(removed(1));
        }
        assert_eq!(slow.next().await, None);
        let mut events = journal.follow(VecDeque::new());
        journal.push(removed(2));
        drop(journal);
        assert_eq!(events.next().await, Some(removed(2)));
        assert_eq!(events.next().await, None);
    }

    #[test]
    fn ids_are_read_as_they_are_printed_and_nothing_else_is() {
        let id = EventId { epoch: 0xfeed, number: 7 };
        assert_eq!(id.to_string(), "000000000000feed-7");
        assert_eq!(id.to_string().parse(), Ok(id));
        for wrong in ["", "7", "-", "feed-", "x-7", "feed-7-7", "feed--7"] {
            assert_eq!(wrong.parse::<EventId>(), Err(NoEventId), "{wrong}");
        }
    }
}
