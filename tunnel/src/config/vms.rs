//! The `[tunnel.vms]` and `[tunnel.callbacks]` tables: how a VMS speaks to the internal address, and what it is asked and
//! told.

use anyhow::ensure;
use homing_base::tls::Https;
use homing_protocol::Secret;
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, path::PathBuf};

/// VMSs that are called back.
const CALLBACKS_MAX: usize = 4;

/// The `[tunnel.vms]` table: how a VMS speaks to the internal address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Vms {
    /// HTTPS, and with which certificate.
    pub tls: Https,
    /// Who may speak plain HTTP.
    pub plain: Plain,
    /// Whether clients may speak TLS 1.2.
    pub tls_1_2: bool,
    /// For [`Https::Own`]: further DNS names and addresses in the certificate.
    pub names: Vec<String>,
    /// For [`Https::Files`]: PEM certificate chain.
    pub certificate: PathBuf,
    /// For [`Https::Files`]: PEM private key.
    pub private_key: PathBuf,
    /// Whether user and password are asked for.
    pub credentials: bool,
    /// What a device has that an integration registers without saying: its user.
    pub device_user: String,
    /// And its password.
    pub device_password: Secret,
    /// Whom devices are to trust at the tunnel servers that an integration sends them to: PEM, or a file of it; empty:
    /// what browsers trust.
    pub neighbours_trust_anchor: String,
}

/// The `[tunnel.callbacks]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Callbacks {
    /// Addresses that are called.
    pub urls: Vec<String>,
    /// User for them; empty: none.
    pub user: String,
    /// Password for them.
    pub password: Secret,
    /// PEM, or a file of it; empty: what browsers trust.
    pub trust_anchor: String,
    /// For each call.
    pub timeout_ms: u64,
    /// First interval between attempts.
    pub retry_first_ms: u64,
    /// Longest interval between attempts.
    pub retry_longest_ms: u64,
    /// What becomes of a device when nobody answers `client_hello`.
    pub unanswered: Unanswered,
}

/// What becomes of a device about which nobody answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unanswered {
    /// It is let in.
    Accept,
    /// It is refused, and tries again.
    Refuse,
}

/// Who may speak plain HTTP to the internal address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Plain {
    /// Nobody.
    Nobody,
    /// Who is on this machine.
    Loopback,
    /// Everybody.
    Everywhere,
}

impl Default for Vms {
    fn default() -> Self {
        Vms {
            tls: Https::Own,
            plain: Plain::Loopback,
            tls_1_2: false,
            names: Vec::new(),
            certificate: PathBuf::new(),
            private_key: PathBuf::new(),
            credentials: true,
            device_user: "root".to_owned(),
            device_password: "pass".into(),
            neighbours_trust_anchor: String::new(),
        }
    }
}

impl Default for Callbacks {
    fn default() -> Self {
        Callbacks {
            urls: Vec::new(),
            user: String::new(),
            password: Secret::default(),
            trust_anchor: String::new(),
            timeout_ms: 3000,
            retry_first_ms: 1000,
            retry_longest_ms: 60_000,
            unanswered: Unanswered::Accept,
        }
    }
}

impl Vms {
    pub(super) fn check(&self, internal: SocketAddr) -> anyhow::Result<()> {
        let files = [&self.certificate, &self.private_key].map(|path| !path.as_os_str().is_empty());
        ensure!(
            files == [self.tls == Https::Files; 2],
            "[tunnel.vms] certificate and private_key go with tls = \"files\", both of them"
        );
        ensure!(
            self.tls != Https::Off || self.plain != Plain::Nobody,
            "[tunnel.vms] tls = \"off\" and plain = \"nobody\": nobody could speak to the internal address"
        );
        ensure!(
            self.tls != Https::Off || self.plain == Plain::Everywhere || internal.ip().is_loopback(),
            "[tunnel.vms] tls = \"off\", and internal is {internal}: passwords would cross the network readably. Set \
             tls = \"own\", or plain = \"everywhere\" where the network is trusted"
        );
        Ok(())
    }

    /// What the administrator is told at every start, a sentence without a full stop each.
    pub fn warnings(&self, internal: SocketAddr) -> Vec<String> {
        let mut warnings = Vec::new();
        if !self.credentials {
            warnings.push(format!(
                "[tunnel.vms] credentials = false: whoever reaches {internal} registers, moves and looks through every \
                 device without a password; nothing but the firewall keeps strangers away"
            ));
        }
        if self.plain == Plain::Everywhere && !internal.ip().is_loopback() {
            warnings.push(format!(
                "[tunnel.vms] plain = \"everywhere\": passwords, of devices too, cross the network of {internal} readably \
                 when a client speaks plain HTTP"
            ));
        }
        if self.tls == Https::Own && self.names.is_empty() && internal.ip().is_unspecified() {
            warnings.push(format!(
                "[tunnel.vms] names is empty, and internal is {internal}: its certificate says localhost alone, which no \
                 VMS on another machine takes; give the names and addresses that it calls"
            ));
        }
        warnings
    }

    /// Names and addresses under which the internal address is known.
    pub(crate) fn known_as(&self, internal: SocketAddr) -> Vec<String> {
        let mut names = self.names.clone();
        if !internal.ip().is_unspecified() {
            names.push(internal.ip().to_canonical().to_string());
        }
        for name in ["localhost", "127.0.0.1", "::1"].map(str::to_owned) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }
}

impl Callbacks {
    pub(super) fn check(&self) -> anyhow::Result<()> {
        ensure!(
            self.urls.len() <= CALLBACKS_MAX,
            "[tunnel.callbacks] urls has {} addresses; at most {CALLBACKS_MAX} are called",
            self.urls.len()
        );
        ensure!(
            (1..=60_000).contains(&self.timeout_ms) && self.retry_first_ms > 0,
            "[tunnel.callbacks] timeout_ms is from 1 to 60000, and retry_first_ms at least 1"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, tests::good};

    #[test]
    fn what_would_show_passwords_is_refused_or_warned_about() {
        let config = |internal: &str, vms: Vms| Config { internal: internal.parse().unwrap(), vms, ..good() };
        let inside = "10.0.0.7:8081";
        let refused = |vms: Vms, part: &str| {
            let message = config(inside, vms).check().unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        };
        refused(Vms { tls: Https::Off, ..Vms::default() }, "readably");
        refused(Vms { tls: Https::Off, plain: Plain::Nobody, ..Vms::default() }, "nobody could");
        refused(Vms { tls: Https::Files, certificate: "a.pem".into(), ..Vms::default() }, "both of them");
        refused(Vms { private_key: "a.key".into(), ..Vms::default() }, "go with tls");
        config("127.0.0.1:8081", Vms { tls: Https::Off, ..Vms::default() }).check().unwrap();

        let warned = |internal: &str, vms: Vms| {
            let config = config(internal, vms);
            config.check().unwrap();
            config.vms.warnings(config.internal).concat()
        };
        assert_eq!(warned(inside, Vms::default()), "");
        let open = Vms { plain: Plain::Everywhere, ..Vms::default() };
        assert!(warned(inside, open.clone()).contains("readably"));
        assert_eq!(warned("127.0.0.1:8081", open), "");
        let mut trusting = Config { password: Secret::default(), ..good() };
        trusting.vms.credentials = false;
        trusting.check().unwrap();
        assert!(trusting.vms.warnings(trusting.internal).concat().contains("without a password"));
    }

    #[test]
    fn a_certificate_that_fits_no_other_machine_is_warned_about() {
        let warned = |internal: &str, vms: Vms| vms.warnings(internal.parse().unwrap()).concat();
        let named = Vms { names: vec!["sts.example".into()], ..Vms::default() };
        for everywhere in ["0.0.0.0:8081", "[::]:8081"] {
            assert!(warned(everywhere, Vms::default()).contains("names is empty"));
            assert_eq!(warned(everywhere, named.clone()), "");
        }
    }
}
