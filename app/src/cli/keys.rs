//! `homing rotate-keys`: new keys for stored secrets, while the roles run.
//!
//! Not here: the rotation itself. The role that holds a folder carries it out, so that nobody else has to hold its keys.

use super::print;
use crate::config;
use anyhow::bail;
use homing_base::vault;
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// For a running role to take the request: it looks every second.
const DEADLINE: Duration = Duration::from_secs(10);

/// Asks every role of the configuration file that stores secrets.
pub(super) fn rotate(file: &Path) -> anyhow::Result<()> {
    let config = config::load(file)?;
    let folders: Vec<(&str, &Path)> = [
        config.dispatcher.as_ref().map(|role| ("dispatcher", role.data.as_path())),
        config.tunnel.as_ref().map(|role| ("tunnel", role.data.as_path())),
        config.recording.as_ref().map(|role| ("recording", role.data.as_path())),
        config.management.as_ref().map(|role| ("management", role.data.as_path())),
    ]
    .into_iter()
    .flatten()
    .filter(|(_, folder)| folder.is_dir())
    .collect();
    if folders.is_empty() {
        bail!("no role of {} has stored anything on this machine yet", file.display());
    }
    for (_, folder) in &folders {
        vault::request_rotation(folder)?;
    }
    let began = Instant::now();
    for (role, folder) in folders {
        while vault::is_requested(folder) && began.elapsed() < DEADLINE {
            std::thread::sleep(Duration::from_millis(50));
        }
        print(&match vault::is_requested(folder) {
            false => format!(
                "{role}: a new key is in use; stored secrets are sealed anew in the background, its log says when the old key is destroyed\n"
            ),
            true => format!("{role}: it does not run, and will rotate its keys when it starts\n"),
        });
    }
    Ok(())
}
