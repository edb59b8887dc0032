//! What browsers are shown of the world: the present state of everything, and its changes as they
//! happen.
//!
//! Invariant: a subscriber that applies its snapshot and then every change, in order, has exactly the
//! board's content. Snapshot and subscription are one step under one lock, and changes are sent under
//! the same lock.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::broadcast;

/// Changes kept for a subscriber that is behind. One that is further behind than this is given a new
/// snapshot instead of what it missed.
const CHANGES: usize = 1024;

/// What a thing is; also the name of its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A [`crate::views::TunnelServer`].
    TunnelServer,
    /// A [`crate::views::Device`].
    Device,
    /// A [`crate::views::RecordingServer`].
    RecordingServer,
    /// A [`crate::views::Hardware`], without its cameras' states.
    Hardware,
    /// A [`crate::views::Camera`].
    Camera,
}

impl Kind {
    /// As in the name of an event.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::TunnelServer => "tunnel-server",
            Kind::Device => "device",
            Kind::RecordingServer => "recording-server",
            Kind::Hardware => "hardware",
            Kind::Camera => "camera",
        }
    }
}

/// A thing is new or has changed, or is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What it is.
    pub kind: Kind,
    /// Which one: unique among its kind.
    pub key: String,
    /// Its JSON, or nothing when it is gone.
    pub json: Option<Arc<str>>,
}

type Items = BTreeMap<(Kind, String), Arc<str>>;

/// The board. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub struct Board {
    items: Arc<Mutex<Items>>,
    changes: broadcast::Sender<Change>,
}

impl Board {
    /// With nothing on it.
    pub fn new() -> Self {
        Board { items: Arc::default(), changes: broadcast::channel(CHANGES).0 }
    }

    /// Puts a thing on the board; tells subscribers if it differs from what is there.
    pub fn put(&self, kind: Kind, key: &str, thing: &impl serde::Serialize) {
        let json: Arc<str> =
            serde_json::to_string(thing).expect("views have string keys and no failing fields").into();
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        let place = (kind, key.to_owned());
        if items.get(&place).is_some_and(|present| *present == json) {
            return;
        }
        items.insert(place, json.clone());
        // Nobody listening is no error.
        let _ = self.changes.send(Change { kind, key: key.to_owned(), json: Some(json) });
    }

    /// Takes a thing off the board.
    pub fn remove(&self, kind: Kind, key: &str) {
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        if items.remove(&(kind, key.to_owned())).is_some() {
            let _ = self.changes.send(Change { kind, key: key.to_owned(), json: None });
        }
    }

    /// Takes every thing of a kind off the board whose key is not wanted.
    pub fn retain(&self, kind: Kind, wanted: impl Fn(&str) -> bool) {
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        items.retain(|(present, key), _| {
            let stays = *present != kind || wanted(key);
            if !stays {
                let _ = self.changes.send(Change { kind, key: key.clone(), json: None });
            }
            stays
        });
    }

    /// Everything on the board, and every change from now on.
    pub fn subscribe(&self) -> (Vec<Change>, broadcast::Receiver<Change>) {
        let items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = items
            .iter()
            .map(|((kind, key), json)| Change { kind: *kind, key: key.clone(), json: Some(json.clone()) })
            .collect();
        (snapshot, self.changes.subscribe())
    }
}

impl Default for Board {
    fn default() -> Self {
        Board::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscriber_ends_with_the_boards_content() {
        let board = Board::new();
        board.put(Kind::Device, "a", &1);
        board.put(Kind::Device, "b", &1);
        board.put(Kind::Camera, "a", &1);
        let (snapshot, mut changes) = board.subscribe();
        let mut seen: BTreeMap<_, _> =
            snapshot.into_iter().map(|change| ((change.kind, change.key), change.json.unwrap())).collect();

        board.put(Kind::Device, "a", &1);
        board.put(Kind::Device, "a", &2);
        board.remove(Kind::Device, "x");
        board.put(Kind::Hardware, "h", &1);
        board.retain(Kind::Device, |key| key == "a");
        let mut count = 0;
        while let Ok(change) = changes.try_recv() {
            count += 1;
            let place = (change.kind, change.key);
            match change.json {
                Some(json) => seen.insert(place, json),
                None => seen.remove(&place),
            };
        }
        assert_eq!(count, 3, "what did not change is not told");
        assert_eq!(seen, *board.items.lock().unwrap());
        assert_eq!(seen.len(), 3);
    }
}
