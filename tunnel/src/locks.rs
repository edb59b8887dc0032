//! One operation on one device at a time.

use homing_protocol::SerialNumber;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::OwnedMutexGuard;

/// One operation on one device at a time.
#[derive(Default)]
pub(crate) struct Locks(Mutex<HashMap<SerialNumber, Arc<tokio::sync::Mutex<()>>>>);

impl Locks {
    /// Locks that nobody holds are forgotten when there are more than this.
    const KEPT: usize = 1024;

    /// Waits until nobody else is at it.
    pub async fn lock(&self, serial: SerialNumber) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if locks.len() > Self::KEPT {
                locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            }
            Arc::clone(locks.entry(serial).or_default())
        };
        lock.lock_owned().await
    }
}
