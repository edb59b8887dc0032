//! The `[recording]` table of the configuration file; `reference.toml` is its reference.

use std::path::PathBuf;

use anyhow::ensure;
use homing_protocol::Secret;
use serde::{Deserialize, Serialize};

/// The reference file: every key with its default and what it does.
pub const REFERENCE: &str = include_str!("../reference.toml");

/// How a recording server is set up. Every key's meaning is in [`REFERENCE`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Folder of footage, database and master key.
    pub data: PathBuf,
    /// Days after which footage is deleted; 0: never.
    pub retention_days: u32,
    /// 10⁹ bytes of footage per camera; 0: no limit.
    pub retention_gb_per_camera: f64,
    /// 10⁹ bytes of footage in all; 0: no limit.
    pub retention_gb: f64,
    /// Seconds per file.
    pub file_s: u32,
    /// Longest fragment, seconds.
    pub fragment_s: u32,
    /// Milliseconds between writing and securing.
    pub sync_ms: u64,
    /// 10⁶ bytes that may wait for the disk.
    pub queue_mb: usize,
    /// Live viewers at once.
    pub viewers: usize,
    /// Tunnel servers in other processes.
    pub tunnel_servers: Vec<TunnelServer>,
}

/// A tunnel server whose HTTP proxy leads to its devices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TunnelServer {
    /// As in `DeviceAddress::Tunnel`.
    pub name: String,
    /// `host:port` of its internal address.
    pub proxy: String,
    /// Its user.
    pub user: String,
    /// That user's password.
    pub password: Secret,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            data: "/var/lib/homing/recording".into(),
            retention_days: 30,
            retention_gb_per_camera: 0.0,
            retention_gb: 0.0,
            file_s: 60,
            fragment_s: 4,
            sync_ms: 2000,
            queue_mb: 64,
            viewers: 1000,
            tunnel_servers: Vec::new(),
        }
    }
}

impl Config {
    /// What the types cannot say.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        ensure!((1..=3600).contains(&self.file_s), "[recording] file_s must be between 1 and 3600");
        ensure!((1..=60).contains(&self.fragment_s), "[recording] fragment_s must be between 1 and 60");
        ensure!((10..=60_000).contains(&self.sync_ms), "[recording] sync_ms must be between 10 and 60000");
        ensure!(self.queue_mb >= 1, "[recording] queue_mb must be at least 1");
        ensure!(
            self.retention_gb >= 0.0 && self.retention_gb_per_camera >= 0.0,
            "[recording] retention_gb and retention_gb_per_camera cannot be negative"
        );
        for server in &self.tunnel_servers {
            ensure!(
                server.proxy.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()),
                "[recording] proxy of the tunnel server {:?} must be host:port",
                server.name
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the reference file names every key and its true default.
    #[test]
    fn the_reference_file_is_the_default() {
        let reference = homing_base::config::reference_value(REFERENCE).unwrap();
        assert_eq!(reference.len(), 10, "every key is documented");
        let config: Config = reference.try_into().unwrap();
        assert_eq!(config, Config::default());
        config.check().unwrap();
    }

    /// Goal: values that cannot work are refused with the key's name.
    #[test]
    fn impossible_values() {
        let refused = |config: Config| config.check().unwrap_err().to_string();
        assert!(refused(Config { file_s: 0, ..Config::default() }).contains("file_s"));
        assert!(refused(Config { retention_gb: -1.0, ..Config::default() }).contains("retention_gb"));
        let server = TunnelServer {
            name: "a".into(),
            proxy: "nowhere".into(),
            user: "u".into(),
            password: "p".into(),
        };
        assert!(refused(Config { tunnel_servers: vec![server], ..Config::default() }).contains("host:port"));
    }
}
