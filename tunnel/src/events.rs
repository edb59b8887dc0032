//! What happens to devices, as a stream: all devices first, then every change.
//!
//! Invariant: an [`Events`] that was followed to any point knows the state at that point. One that fell behind ends
//! instead of leaving something out, and is opened anew: it never holds up what it watches.

use homing_protocol::{SerialNumber, api::tunnel::Device};
use std::{collections::VecDeque, sync::Arc};
use tokio::sync::broadcast;

/// Changes kept for a follower that is slow; one that is further behind has to begin anew. Some 300 bytes each.
pub(crate) const EVENTS_KEPT: usize = 4096;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A device is registered, or something about it has changed.
    Device(Arc<Device>),
    /// A device's registration was deleted.
    Removed(SerialNumber),
}

/// Follows the devices from now on.
#[derive(Debug)]
pub struct Events {
    first: VecDeque<Arc<Device>>,
    then: broadcast::Receiver<Event>,
}

impl Events {
    pub(crate) fn new(first: VecDeque<Arc<Device>>, then: broadcast::Receiver<Event>) -> Self {
        Events { first, then }
    }

    /// The next event; first one for every device that there is. `None` when this follower was too slow, or the tunnel
    /// server has ended: subscribe again.
    pub async fn next(&mut self) -> Option<Event> {
        match self.first.pop_front() {
            Some(device) => Some(Event::Device(device)),
            None => self.then.recv().await.ok(),
        }
    }
}
