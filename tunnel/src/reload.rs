//! Another configuration while the tunnel server runs: no uplink is lost.
//!
//! What may change is [`MAY_CHANGE`]; each part reads it where it needs it, so there is little to do here. Certificates in
//! PEM files are read again, too.
//!
//! Invariant: all of it, or nothing. What is wrong is found before anything has changed.

use crate::{
    config::{Config, MAY_CHANGE},
    devices::Devices,
    guard::Guard,
    relay::Relay,
};
use anyhow::Context;
use homing_base::{Live, live::Reloaded, tls::Leaf};
use std::sync::Arc;

/// Changes a tunnel server's configuration; cheap to clone.
#[derive(Clone)]
pub struct Reloader {
    pub(crate) config: Live<Config>,
    pub(crate) devices: Arc<Devices>,
    pub(crate) relay: Arc<Relay>,
    pub(crate) guard: Arc<Guard>,
    pub(crate) leaf: Arc<Leaf>,
    /// Of the internal address; none where it speaks no TLS.
    pub(crate) vms_leaf: Option<Arc<Leaf>>,
}

impl Reloader {
    /// Takes over what differs between two readings of the file, except keys in `kept`, and may change. Which keys did, and
    /// which need a restart, is in the answer.
    ///
    /// # Errors
    /// What is wrong with the new configuration, or a file that it names; then the one before goes on.
    pub fn reload(&self, before: &Config, now: &Config, kept: &[&str]) -> anyhow::Result<Reloaded<Config>> {
        let running = self.config.get();
        // The gateway read user and password at its start, if it has no users of its own.
        let gateway = &running.gateway;
        let is_gateways = !(gateway.rtsp.is_empty() && gateway.rtsps.is_empty()) && gateway.users.is_empty();
        let stays = |key: &str| kept.contains(&key) || (is_gateways && ["user", "password"].contains(&key));
        let may_change: Vec<&str> = MAY_CHANGE.iter().copied().filter(|key| !stays(key)).collect();
        let reloaded = Reloaded::of(&*running, before, now, &may_change)?;
        let config = &reloaded.config;
        config.check()?;
        self.leaf.refresh().context("[tunnel] certificate")?;
        if let Some(leaf) = &self.vms_leaf {
            leaf.refresh().context("[tunnel.vms] certificate")?;
        }
        if config.dispatcher != running.dispatcher {
            self.relay.dispatcher().reload(&config.dispatcher)?;
        }
        self.guard.set(config.credentials());
        self.devices.set_replaces_passwords(config.replace_default_passwords);
        self.devices.set_uplinks_max(config.limits.uplinks);
        self.config.set(config.clone());
        Ok(reloaded)
    }
}
