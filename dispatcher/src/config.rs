//! The `[dispatcher]` table of the configuration file; `dispatcher.toml` is its reference.

use anyhow::ensure;
use homing_base::crowd::Networks;
use homing_protocol::Secret;
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, path::PathBuf};

/// The reference file: every key with its default and what it does.
pub const REFERENCE: &str = include_str!("../dispatcher.toml");

/// Whoever has it can make accounts.
const OPERATOR_TOKEN_SHORTEST: usize = 20;

/// How a dispatcher is set up. Every key's meaning is in [`REFERENCE`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where devices dial in.
    pub external: SocketAddr,
    /// Where tunnel servers register devices.
    pub api: SocketAddr,
    /// Names and IP addresses for the certificate.
    pub names: Vec<String>,
    /// Folder of database, master key and private CA.
    pub data: PathBuf,
    /// PEM certificate chain; empty: the private CA's.
    pub certificate: PathBuf,
    /// PEM private key of `certificate`.
    pub private_key: PathBuf,
    /// Bearer token for `/metrics`; empty: only this machine reads them.
    pub metrics_token: Secret,
    /// Bearer token for the operator's part of the API; empty: there is none.
    pub operator_token: Secret,
    /// Whether devices may speak TLS 1.2.
    pub tls_1_2: bool,
    /// Devices connected at once.
    pub connections: usize,
    /// Devices connected at once from one IP address.
    pub connections_per_address: usize,
    /// Connections a second from one IP address; 0: no limit.
    pub handshakes_per_second_per_address: u32,
    /// Networks whose connections a second are not counted.
    pub exempt: Networks,
    /// Registrations that one account may have.
    pub registrations_per_account: u32,
    /// Registrations that one account may send in a minute.
    pub registrations_per_minute: u32,
    /// Whether only devices on a manufacturer's list may be registered.
    pub listed_only: bool,
    /// Which devices of other makes are dispatched.
    pub device_keys: DeviceKeys,
    /// PEM files of the CAs with which manufacturers issue their devices' certificates.
    pub device_anchors: Vec<PathBuf>,
}

/// Whose key is believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceKeys {
    /// Of devices that prove their OAK, and of no others.
    Proven,
    /// Also of those that are on a manufacturer's list and whose key the manufacturer vouches for.
    #[default]
    Vouched,
    /// Also of those that are on a manufacturer's list, when they first come.
    FirstUse,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            external: SocketAddr::from(([0, 0, 0, 0], 7443)),
            api: SocketAddr::from(([127, 0, 0, 1], 7444)),
            names: vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
            data: "/var/lib/homing/dispatcher".into(),
            certificate: PathBuf::new(),
            private_key: PathBuf::new(),
            metrics_token: Secret::default(),
            operator_token: Secret::default(),
            tls_1_2: false,
            connections: 10_000,
            connections_per_address: 256,
            handshakes_per_second_per_address: 100,
            exempt: Networks::local(),
            registrations_per_account: 10_000,
            registrations_per_minute: 600,
            listed_only: false,
            device_keys: DeviceKeys::default(),
            device_anchors: Vec::new(),
        }
    }
}

/// Keys of `[dispatcher]` that a reload changes; the others need a restart.
pub const MAY_CHANGE: &[&str] = &[
    "metrics_token",
    "operator_token",
    "connections_per_address",
    "handshakes_per_second_per_address",
    "exempt",
    "registrations_per_account",
    "registrations_per_minute",
    "listed_only",
    "device_keys",
];

impl Config {
    /// What the types cannot say.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        ensure!(
            self.certificate.as_os_str().is_empty() == self.private_key.as_os_str().is_empty(),
            "[dispatcher] certificate and private_key belong together: give both, or neither"
        );
        ensure!(
            !self.names.is_empty() || !self.certificate.as_os_str().is_empty(),
            "[dispatcher] names is empty: devices and tunnel servers check the certificate for the name they dial"
        );
        ensure!(
            self.device_keys != DeviceKeys::Proven || self.device_anchors.is_empty(),
            "[dispatcher] device_anchors are for devices that cannot prove their OAK, which device_keys = \"proven\" \
             refuses: write \"vouched\", or give none"
        );
        ensure!(
            self.connections > 0 && self.connections_per_address > 0,
            "[dispatcher] connections and connections_per_address must be at least 1"
        );
        let token = self.operator_token.expose().len();
        ensure!(
            token == 0 || token >= OPERATOR_TOKEN_SHORTEST,
            "[dispatcher] operator_token is too short: give at least {OPERATOR_TOKEN_SHORTEST} random characters, or none"
        );
        ensure!(
            self.registrations_per_account > 0 && self.registrations_per_minute > 0,
            "[dispatcher] registrations_per_account and registrations_per_minute must be at least 1"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_file_is_the_default() {
        let mut reference = homing_base::config::reference_value(REFERENCE).unwrap();
        let table = reference.remove("dispatcher").unwrap();
        assert_eq!(table.as_table().unwrap().len(), 18, "every key is documented");
        assert_eq!(table.try_into::<Config>().unwrap(), Config::default());
        assert!(reference.is_empty());
        Config::default().check().unwrap();
    }

    #[test]
    fn anchors_without_effect_are_refused() {
        let device_anchors = vec!["maker.pem".into()];
        let config = Config { device_keys: DeviceKeys::Proven, device_anchors, ..Config::default() };
        assert!(config.check().unwrap_err().to_string().contains("device_anchors"));
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let config = Config { certificate: "chain.pem".into(), ..Config::default() };
        assert!(config.check().unwrap_err().to_string().contains("belong together"));
        let config = Config { operator_token: "short".into(), ..Config::default() };
        assert!(config.check().unwrap_err().to_string().contains("operator_token"));
        let config = Config { names: Vec::new(), ..Config::default() };
        assert!(config.check().unwrap_err().to_string().contains("names"));
    }
}
