//! What a management server can be told, and what it refuses to be told.

use anyhow::{Context, bail, ensure};
use homing_base::tls::{self, Files, Https};
use homing_protocol::{Oak, Secret, SerialNumber, secret::Credentials};
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, path::PathBuf, sync::Arc};

/// The reference file: every key, its meaning and its default.
pub const REFERENCE: &str = include_str!("../management.toml");

/// Configuration of a management server; each field is explained in `management/management.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the page and the API are served.
    pub listen: SocketAddr,
    /// Database and own CA.
    pub data: PathBuf,
    /// HTTPS or not.
    pub tls: Https,
    /// For [`Https::Files`]: the certificate chain.
    pub certificate: PathBuf,
    /// For [`Https::Files`]: its private key.
    pub key: PathBuf,
    /// For [`Https::Own`]: names and addresses in the certificate.
    pub names: Vec<String>,
    /// Allows plain HTTP on addresses other than loopback.
    pub plain_beyond_loopback: bool,
    /// The password of `admin` at the first start; random where empty.
    pub first_password: Secret,
    /// What the recording server of this process is called.
    pub recording_server: String,
    /// Minutes until an unused session ends.
    pub session_idle_min: u32,
    /// Hours until any session ends.
    pub session_hours: u32,
    /// Days that the audit log is kept.
    pub audit_days: u32,
    /// Where devices are registered.
    pub tunnel_servers: Vec<TunnelServer>,
    /// For the demo.
    pub simulated_cameras: Vec<SimulatedCamera>,
}

/// A tunnel server and how to log in to its internal address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TunnelServer {
    /// What the page and the recording server call it.
    pub name: String,
    /// Anything worth knowing.
    #[serde(default)]
    pub description: String,
    /// Its internal address, `http://host:port` or `https://host:port`.
    pub url: String,
    /// What devices are told to dial, `host:port`, as far as the administrator knows; compared with what it says itself.
    #[serde(default)]
    pub external: String,
    /// User of its internal address; empty: it asks for none.
    #[serde(default)]
    pub user: String,
    /// That user's password.
    #[serde(default)]
    pub password: Secret,
    /// What its certificate is trusted by, with `https`: a PEM file or PEM text; empty: the public web's.
    #[serde(default)]
    pub trust_anchor: String,
}

impl TunnelServer {
    /// Its user and password.
    pub fn credentials(&self) -> Credentials {
        Credentials::new(self.user.clone(), self.password.clone())
    }

    /// The PEM text of the trust anchor; none means the public web's.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn trust_anchor_pem(&self) -> anyhow::Result<Option<String>> {
        let place = || format!("management.tunnel_servers {:?}: trust_anchor", self.name);
        tls::pem_or_file(&self.trust_anchor).with_context(place)
    }
}

/// The label of a simulated camera.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimulatedCamera {
    /// Its name.
    pub name: String,
    /// Serial number on the label.
    pub serial: SerialNumber,
    /// OAK on the label.
    pub oak: Oak,
    /// Factory user.
    #[serde(default)]
    pub user: String,
    /// Factory password.
    #[serde(default)]
    pub password: Secret,
    /// Where a POST presses its button.
    pub press: String,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            data: PathBuf::from("/var/lib/homing/management"),
            tls: Https::Off,
            certificate: PathBuf::new(),
            key: PathBuf::new(),
            names: vec!["localhost".into(), "127.0.0.1".into()],
            plain_beyond_loopback: false,
            first_password: Secret::default(),
            recording_server: "Recording server".into(),
            session_idle_min: 720,
            session_hours: 168,
            audit_days: 400,
            tunnel_servers: Vec::new(),
            simulated_cameras: Vec::new(),
        }
    }
}

impl Config {
    /// Refuses what cannot work or would expose passwords, before anything is opened.
    ///
    /// # Errors
    /// Says which key is wrong and what to write instead.
    pub fn check(&self) -> anyhow::Result<()> {
        if self.tls == Https::Off && !self.listen.ip().is_loopback() && !self.plain_beyond_loopback {
            bail!(
                "management.listen = {}: without HTTPS the page is served on loopback only; set tls = \"own\" or \
                 \"files\", or plain_beyond_loopback = true behind a proxy that speaks HTTPS",
                self.listen
            );
        }
        ensure!(self.session_idle_min > 0, "management.session_idle_min: at least 1");
        ensure!(self.session_hours > 0, "management.session_hours: at least 1");
        let first = self.first_password.expose();
        ensure!(
            first.is_empty() || first.chars().count() >= crate::accounts::SHORTEST_PASSWORD,
            "management.first_password: at least {} characters",
            crate::accounts::SHORTEST_PASSWORD
        );
        for (index, server) in self.tunnel_servers.iter().enumerate() {
            ensure!(!server.name.is_empty(), "management.tunnel_servers: a name is empty");
            ensure!(
                self.tunnel_servers[..index].iter().all(|other| other.name != server.name),
                "management.tunnel_servers: two are called {:?}",
                server.name
            );
        }
        Ok(())
    }

    /// The certificate to serve with, or `None` for plain HTTP.
    ///
    /// # Errors
    /// When files are missing, do not belong together, or the key can be read by others.
    pub(crate) fn leaf(&self) -> anyhow::Result<Option<Arc<tls::Leaf>>> {
        let files = Files { certificate: &self.certificate, key: &self.key, key_name: "key" };
        let ca = || tls::PrivateCa::open(&self.data, "management").map(Arc::new);
        self.tls.leaf(ca, self.names.clone(), files).context("management")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_file_is_the_default() {
        let reference = homing_base::config::reference_value(REFERENCE).unwrap();
        let reference: Config = toml::Value::Table(reference).try_into().unwrap();
        assert_eq!(reference, Config::default());
        // And no key is missing from it.
        let all = toml::Table::try_from(Config::default()).unwrap();
        let known = homing_base::config::reference_value(REFERENCE).unwrap();
        assert_eq!(all.keys().collect::<Vec<_>>(), known.keys().collect::<Vec<_>>());
    }

    #[test]
    fn plain_http_beyond_loopback_is_refused_unless_said_so() {
        let open = Config { listen: "0.0.0.0:8080".parse().unwrap(), ..Config::default() };
        let error = open.check().unwrap_err().to_string();
        assert!(error.contains("loopback only") && error.contains("plain_beyond_loopback"), "{error}");
        Config { plain_beyond_loopback: true, ..open.clone() }.check().unwrap();
        Config { tls: Https::Own, ..open }.check().unwrap();
        Config::default().check().unwrap();
    }

    #[test]
    fn debug_output_holds_no_secret() {
        let config = Config {
            first_password: "sesame-sesame".into(),
            tunnel_servers: vec![TunnelServer {
                name: "sts".into(),
                url: "http://127.0.0.1:1".into(),
                user: "vms".into(),
                password: "sesame-sts".into(),
                ..TunnelServer::default()
            }],
            ..Config::default()
        };
        assert!(!format!("{config:?}").contains("sesame"));
    }
}
