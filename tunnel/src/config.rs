//! The `[tunnel]` table of the configuration file; `tunnel/tunnel.toml` is its reference.
//!
//! Not here: opening anything. Invariant: what [`Config::check`] lets pass, [`crate::bind`] can at least try.

mod vms;

pub use vms::{Callbacks, Plain, Unanswered, Vms};

use crate::guard::PASSWORD_MIN;
use anyhow::{Context, bail, ensure};
use homing_base::{crowd::Networks, door::DoorLimits, http, rate::Pace, tls};
use homing_protocol::{Secret, secret::Credentials};
use homing_uplink::{BackoffSettings, TlsPolicy, UplinkAddress, UplinkSettings};
use prometheus_client::metrics::counter::Counter;
use serde::{Deserialize, Serialize};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

/// The reference file: every key with its default and what it does.
pub const REFERENCE: &str = include_str!("../tunnel.toml");

/// The dispatcher takes so many addresses with a registration.
const PUBLIC_ADDRESSES_MAX: usize = 4;

/// What cameras are delivered with.
const DEFAULT_PASSWORDS: [&str; 14] = [
    "root:pass",
    "root:root",
    "root:admin",
    "root:12345",
    "admin:",
    "admin:admin",
    "admin:1234",
    "admin:12345",
    "admin:123456",
    "admin:password",
    "admin:4321",
    "admin:9999",
    "admin:888888",
    "service:service",
];

/// How a tunnel server is set up. Every key's meaning is in [`REFERENCE`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What it is called.
    pub name: String,
    /// Where devices dial in.
    pub external: SocketAddr,
    /// Where the VMS asks.
    pub internal: SocketAddr,
    /// What devices are told to dial, `host:port`.
    pub public: Vec<String>,
    /// User of the internal address.
    pub user: String,
    /// Password of that user.
    pub password: Secret,
    /// Folder of database, master key and private CA.
    pub data: PathBuf,
    /// PEM certificate chain of the external address; empty: the private CA's.
    pub certificate: PathBuf,
    /// PEM private key of `certificate`.
    pub private_key: PathBuf,
    /// PEM file that devices shall trust; only with `certificate`.
    pub trust_anchor: PathBuf,
    /// Whether devices may speak TLS 1.2.
    pub tls_1_2: bool,
    /// Whether devices with a factory default password get one of their own.
    pub replace_default_passwords: bool,
    /// What counts as factory default, `user:password`.
    pub default_passwords: Vec<String>,
    /// The dispatcher that registrations are relayed to.
    pub dispatcher: Dispatcher,
    /// The RTSP gateway.
    pub gateway: Gateway,
    /// What sites may send, and when to warn.
    pub bandwidth: Bandwidth,
    /// How the internal address is spoken to.
    pub vms: Vms,
    /// What a VMS is asked and told.
    pub callbacks: Callbacks,
    /// Sizes and times.
    pub limits: Limits,
}

/// The `[tunnel.gateway]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gateway {
    /// Where RTSP clients connect, `address:port`; empty: nowhere.
    pub rtsp: String,
    /// The same inside TLS.
    pub rtsps: String,
    /// Who may watch; none: the user of the internal address.
    pub users: Vec<GatewayUser>,
    /// Whether a client that wants UDP gets it.
    pub udp: bool,
    /// First and last port that UDP is sent from; 0: any free ones.
    pub udp_ports: [u16; 2],
    /// Connections at once, of those who have given a password; as many of others.
    pub connections: usize,
    /// Streams from devices at once.
    pub streams: usize,
    /// Streams from one device at once.
    pub streams_per_device: usize,
    /// Kept of each stream, for viewers that come late or are slow.
    pub kept_bytes: usize,
    /// A stream is ended so long after its last viewer.
    pub linger_ms: u64,
    /// A client that has not given user and password for so long is dropped.
    pub greeting_ms: u64,
    /// A viewer that takes nothing for so long is dropped.
    pub stalled_ms: u64,
}

/// A user of the RTSP gateway.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayUser {
    /// Its name.
    pub name: String,
    /// Its password.
    pub password: Secret,
}

/// The `[tunnel.dispatcher]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dispatcher {
    /// `https://host:port` of its API.
    pub address: String,
    /// Path of a PEM file, or PEM text; empty: the public web's.
    pub trust_anchor: String,
    /// The dispatcher account.
    pub account: String,
    /// The account's password.
    pub password: Secret,
}

/// The `[tunnel.bandwidth]` table.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bandwidth {
    /// From which share of its declared upstream on a site counts as full.
    pub warn_percent: u8,
    /// Over how long that is averaged.
    pub warn_after_ms: u64,
}

impl Default for Bandwidth {
    fn default() -> Self {
        Bandwidth { warn_percent: 80, warn_after_ms: 60_000 }
    }
}

impl Bandwidth {
    pub(crate) fn warn_after(&self) -> Duration {
        Duration::from_millis(self.warn_after_ms)
    }
}

/// The `[tunnel.limits]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Uplinks at once.
    pub uplinks: usize,
    /// Connections at once that are not admitted yet.
    pub arriving: usize,
    /// TLS handshakes a second with all devices together; 0: no limit.
    pub handshakes_per_second: u32,
    /// Connections a second from one network on the external address; 0: no limit.
    pub handshakes_per_second_per_address: u32,
    /// Networks that are not counted on the external address.
    pub exempt: Networks,
    /// Streams at once through one uplink.
    pub streams_per_uplink: u32,
    /// Bytes that a stream may hold for a reader that stops.
    pub stream_window_bytes: u32,
    /// Between PINGs.
    pub ping_interval_ms: u64,
    /// A device that sent nothing for so long is gone.
    pub dead_after_ms: u64,
    /// How long a device may take to begin its answer.
    pub response_ms: u64,
    /// A reader on the internal address that takes nothing for so long is dropped.
    pub stalled_ms: u64,
    /// Connections at once on the internal address, of those who got an answer that was no refusal; as many of others.
    pub internal_connections: usize,
    /// Connections at once on the internal address from one network.
    pub internal_connections_per_address: usize,
    /// Requests a second from one network on the internal address; 0: no limit.
    pub requests_per_second_per_address: u32,
    /// Requests a second to one device through the proxy; 0: no limit.
    pub requests_per_second_per_device: u32,
    /// How long streams have to end when the server is told to stop.
    pub drain_s: u64,
    /// First interval between attempts to reach the dispatcher.
    pub retry_first_ms: u64,
    /// Longest interval between attempts to reach the dispatcher.
    pub retry_longest_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            name: "tunnel".to_owned(),
            external: SocketAddr::from(([0, 0, 0, 0], 8443)),
            internal: SocketAddr::from(([127, 0, 0, 1], 8081)),
            public: Vec::new(),
            user: "vms".to_owned(),
            password: Secret::default(),
            data: "/var/lib/homing/tunnel".into(),
            certificate: PathBuf::new(),
            private_key: PathBuf::new(),
            trust_anchor: PathBuf::new(),
            tls_1_2: false,
            replace_default_passwords: true,
            default_passwords: DEFAULT_PASSWORDS.map(str::to_owned).to_vec(),
            dispatcher: Dispatcher::default(),
            gateway: Gateway::default(),
            bandwidth: Bandwidth::default(),
            vms: Vms::default(),
            callbacks: Callbacks::default(),
            limits: Limits::default(),
        }
    }
}

impl Default for Gateway {
    fn default() -> Self {
        Gateway {
            rtsp: String::new(),
            rtsps: String::new(),
            users: Vec::new(),
            udp: true,
            udp_ports: [0, 0],
            connections: 4096,
            streams: 1000,
            streams_per_device: 32,
            kept_bytes: 4 << 20,
            linger_ms: 5000,
            greeting_ms: 15_000,
            stalled_ms: 10_000,
        }
    }
}

impl Default for Dispatcher {
    fn default() -> Self {
        Dispatcher {
            address: "https://127.0.0.1:7444".to_owned(),
            trust_anchor: String::new(),
            account: String::new(),
            password: Secret::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            uplinks: 10_000,
            arriving: 1024,
            handshakes_per_second: 2000,
            handshakes_per_second_per_address: 100,
            exempt: Networks::local(),
            streams_per_uplink: 64,
            stream_window_bytes: 1 << 20,
            ping_interval_ms: 10_000,
            dead_after_ms: 25_000,
            response_ms: 90_000,
            stalled_ms: 30_000,
            internal_connections: 2048,
            internal_connections_per_address: 1024,
            requests_per_second_per_address: 2000,
            requests_per_second_per_device: 100,
            drain_s: 20,
            retry_first_ms: 1000,
            retry_longest_ms: 60_000,
        }
    }
}

/// Keys of `[tunnel]` that a reload changes; what settles an uplink counts for those that come from then on. The others
/// need a restart.
pub const MAY_CHANGE: &[&str] = &[
    "user",
    "password",
    "replace_default_passwords",
    "default_passwords",
    "dispatcher",
    "limits.uplinks",
    "limits.arriving",
    "limits.handshakes_per_second",
    "limits.handshakes_per_second_per_address",
    "limits.exempt",
    "limits.streams_per_uplink",
    "limits.stream_window_bytes",
    "limits.ping_interval_ms",
    "limits.dead_after_ms",
    "limits.response_ms",
    "limits.requests_per_second_per_address",
    "limits.requests_per_second_per_device",
    "limits.drain_s",
    "limits.retry_first_ms",
    "limits.retry_longest_ms",
];

impl Config {
    /// What the types cannot say.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        refuse_one_address_for_both(self.external, self.internal)?;
        ensure!(
            !self.user.is_empty() && !self.user.contains(':'),
            "[tunnel] user is {:?}: it must not be empty and, for HTTP Basic authentication, not hold a colon",
            self.user
        );
        ensure!(
            self.password.expose().chars().count() >= PASSWORD_MIN
                || (self.password.is_empty() && !self.vms.credentials),
            "[tunnel] password {}: whoever knows it reaches every device, so it has at least {PASSWORD_MIN} characters. \
             There is no default; \"openssl rand -base64 24\" makes one",
            if self.password.is_empty() { "is empty" } else { "is too short" }
        );
        ensure!(
            self.certificate.as_os_str().is_empty() == self.private_key.as_os_str().is_empty(),
            "[tunnel] certificate and private_key belong together: give both, or neither"
        );
        ensure!(
            !self.certificate.as_os_str().is_empty() || self.trust_anchor.as_os_str().is_empty(),
            "[tunnel] trust_anchor goes with certificate: for the private CA's devices are told by themselves"
        );
        ensure!(
            !self.dispatcher.account.is_empty() && !self.dispatcher.password.is_empty(),
            "[tunnel.dispatcher] account and password are needed to register devices at {}; \
             who runs the dispatcher gives them out",
            self.dispatcher.address
        );
        self.check_public_count()?;
        ensure!(
            self.default_passwords.iter().all(|known| known.contains(':')),
            "[tunnel] default_passwords: each is \"user:password\""
        );
        self.gateway.check()?;
        ensure!(
            (11..=100).contains(&self.bandwidth.warn_percent),
            "[tunnel.bandwidth] warn_percent is {}: it is between 11 and 100",
            self.bandwidth.warn_percent
        );
        let gateway_asks = !self.gateway.users.is_empty() || !self.password.is_empty();
        let has_gateway = !self.gateway.rtsp.is_empty() || !self.gateway.rtsps.is_empty();
        ensure!(
            gateway_asks || !has_gateway,
            "[tunnel] password is empty: the RTSP gateway needs it, or users of its own in [[tunnel.gateway.users]]"
        );
        self.vms.check(self.internal)?;
        self.callbacks.check()?;
        let limits = &self.limits;
        ensure!(
            limits.uplinks > 0 && limits.arriving > 0 && limits.streams_per_uplink > 0,
            "[tunnel.limits] uplinks, arriving and streams_per_uplink must be at least 1"
        );
        ensure!(
            limits.internal_connections > 0 && limits.internal_connections_per_address > 0,
            "[tunnel.limits] internal_connections and internal_connections_per_address must be at least 1"
        );
        ensure!(
            limits.ping_interval_ms > 0 && limits.ping_interval_ms < limits.dead_after_ms,
            "[tunnel.limits] dead_after_ms must be longer than ping_interval_ms"
        );
        Ok(())
    }

    pub(crate) fn check_public_count(&self) -> anyhow::Result<()> {
        ensure!(
            self.public.len() <= PUBLIC_ADDRESSES_MAX,
            "[tunnel] public has {} addresses; at most {PUBLIC_ADDRESSES_MAX} can be told to a device",
            self.public.len()
        );
        Ok(())
    }

    /// What devices are told to dial, once the external port is known.
    ///
    /// # Errors
    /// When an address cannot be read, or there is none that a device could dial.
    pub(crate) fn public_addresses(&self, external: SocketAddr) -> anyhow::Result<Vec<UplinkAddress>> {
        let own = [external.to_string()];
        if self.public.is_empty() && external.ip().is_unspecified() {
            bail!(
                "[tunnel] public is empty and external is {external}, which no device can dial: \
                 give the host name or IP address that devices reach, such as \"sts.example.com:{}\"",
                external.port()
            );
        }
        let given = if self.public.is_empty() { own.as_slice() } else { &self.public };
        let parsed = given.iter().map(|text| {
            let with_port = text.strip_suffix(":0").map(|host| format!("{host}:{}", external.port()));
            with_port.as_ref().unwrap_or(text).parse().context("[tunnel] public")
        });
        parsed.collect()
    }

    /// Who may use the internal address.
    pub(crate) fn credentials(&self) -> Credentials {
        Credentials::new(self.user.clone(), self.password.clone())
    }

    pub(crate) fn tls_policy(&self) -> TlsPolicy {
        if self.tls_1_2 { TlsPolicy::Tls12AndUp } else { TlsPolicy::Tls13 }
    }
}

impl Gateway {
    fn check(&self) -> anyhow::Result<()> {
        for (key, address) in [("rtsp", &self.rtsp), ("rtsps", &self.rtsps)] {
            Self::address(key, address)?;
        }
        for user in &self.users {
            ensure!(
                !user.name.is_empty() && user.password.expose().chars().count() >= PASSWORD_MIN,
                "[[tunnel.gateway.users]] {:?}: the name must not be empty, and the password has at least \
                 {PASSWORD_MIN} characters",
                user.name
            );
            let twice = self.users.iter().filter(|other| other.name == user.name).count();
            ensure!(twice == 1, "[[tunnel.gateway.users]] {:?} is there twice", user.name);
        }
        let [first, last] = self.udp_ports;
        ensure!(
            (first == 0 && last == 0) || (first > 0 && last > first),
            "[tunnel.gateway] udp_ports is [{first}, {last}]: give the first and the last of a range, or [0, 0]"
        );
        ensure!(
            self.connections > 1 && self.streams > 0 && self.streams_per_device > 0,
            "[tunnel.gateway] connections must be at least 2, streams and streams_per_device at least 1"
        );
        Ok(())
    }

    /// One of the two addresses; none: it is not listened there.
    pub(crate) fn address(key: &str, address: &str) -> anyhow::Result<Option<SocketAddr>> {
        if address.is_empty() {
            return Ok(None);
        }
        let parsed = address.parse().with_context(|| {
            format!("[tunnel.gateway] {key} is {address:?}; it is an IP address and a port, such as \"127.0.0.1:8554\"")
        });
        parsed.map(Some)
    }
}

impl Dispatcher {
    /// The PEM text of the trust anchor; none means the public web's.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn trust_anchor_pem(&self) -> anyhow::Result<Option<String>> {
        tls::pem_or_file(&self.trust_anchor).context("[tunnel.dispatcher] trust_anchor")
    }
}

impl Limits {
    pub(crate) fn uplink_settings(&self) -> UplinkSettings {
        UplinkSettings {
            stream_window: self.stream_window_bytes,
            max_streams: self.streams_per_uplink,
            ping_interval: Duration::from_millis(self.ping_interval_ms),
            dead_after: Duration::from_millis(self.dead_after_ms),
            response_deadline: Duration::from_millis(self.response_ms),
            ..UplinkSettings::default()
        }
    }

    pub(crate) fn door(&self) -> DoorLimits {
        DoorLimits {
            places: self.arriving,
            by_network: Pace::per_second(self.handshakes_per_second_per_address),
            handshakes_per_second: self.handshakes_per_second,
            exempt: self.exempt.clone(),
        }
    }

    /// Of the internal address; connections beyond are counted.
    pub(crate) fn internal(&self, turned_away: Counter) -> http::Limits {
        http::Limits {
            connections: self.internal_connections,
            by_network: self.internal_connections_per_address,
            turned_away,
        }
    }

    pub(crate) fn requests_of_network(&self) -> Pace {
        Pace::per_second(self.requests_per_second_per_address)
    }

    pub(crate) fn requests_to_device(&self) -> Pace {
        Pace::per_second(self.requests_per_second_per_device)
    }

    pub(crate) fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_s)
    }

    pub(crate) fn backoff(&self) -> BackoffSettings {
        BackoffSettings {
            first: Duration::from_millis(self.retry_first_ms),
            max: Duration::from_millis(self.retry_longest_ms),
            ..BackoffSettings::default()
        }
    }

    pub(crate) fn stalled(&self) -> Duration {
        Duration::from_millis(self.stalled_ms)
    }
}

/// Devices dial the external address from anywhere, the VMS asks at the internal one: on one socket, the Internet
/// would be in front of the proxy and the API.
pub(crate) fn refuse_one_address_for_both(external: SocketAddr, internal: SocketAddr) -> anyhow::Result<()> {
    // Port 0 takes two free ones.
    if external.port() != internal.port() || external.port() == 0 {
        return Ok(());
    }
    let everywhere = |ip: IpAddr, other: IpAddr| match ip {
        // An IPv6 socket for all addresses takes IPv4 connections, too.
        IpAddr::V6(ip) => ip.is_unspecified(),
        IpAddr::V4(ip) => ip == Ipv4Addr::UNSPECIFIED && other.is_ipv4(),
    };
    let (outside, inside) = (external.ip().to_canonical(), internal.ip().to_canonical());
    if outside == inside || everywhere(outside, inside) || everywhere(inside, outside) {
        bail!(
            "[tunnel] external is {external} and internal is {internal}, which is the same IP address and port: \
             devices on the Internet would stand in front of the proxy and the API. Give internal an address of the \
             surveillance network or loopback, or another port that the firewall keeps closed"
        );
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(super) fn good() -> Config {
        Config {
            password: "correct horse 16".into(),
            dispatcher: Dispatcher {
                account: "shop".into(),
                password: "battery".into(),
                ..Dispatcher::default()
            },
            ..Config::default()
        }
    }

    #[test]
    fn the_reference_file_is_the_default() {
        let mut reference = homing_base::config::reference_value(REFERENCE).unwrap();
        let table = reference.remove("tunnel").unwrap();
        let mut documented = table.as_table().unwrap().clone();
        assert!(reference.is_empty());
        assert_eq!(table.try_into::<Config>().unwrap(), Config::default());
        let every_key = toml::Table::try_from(Config::default()).unwrap();
        for (name, of) in &every_key {
            let written = documented.remove(name).unwrap_or_else(|| panic!("{name} is not documented"));
            if let Some(of) = of.as_table() {
                assert_eq!(written.as_table().unwrap().len(), of.len(), "[tunnel.{name}] is not complete");
            }
        }
    }

    #[test]
    fn internal_and_external_on_one_address_is_refused_with_an_explanation() {
        for (external, internal, refused) in [
            ("127.0.0.1:8443", "127.0.0.1:8443", true),
            ("0.0.0.0:8443", "127.0.0.1:8443", true),
            ("192.0.2.1:8443", "0.0.0.0:8443", true),
            ("[::]:8443", "127.0.0.1:8443", true),
            ("127.0.0.1:8443", "[::]:8443", true),
            ("[::]:8443", "[::1]:8443", true),
            ("[::ffff:127.0.0.1]:8443", "127.0.0.1:8443", true),
            ("0.0.0.0:8443", "[::1]:8443", false),
            ("192.0.2.1:8443", "192.0.2.2:8443", false),
            ("0.0.0.0:8443", "0.0.0.0:8444", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
        ] {
            let config =
                Config { external: external.parse().unwrap(), internal: internal.parse().unwrap(), ..good() };
            let checked = config.check();
            assert_eq!(checked.is_err(), refused, "{external} {internal}");
            if let Err(error) = checked {
                assert!(error.to_string().contains("same IP address and port"), "{error}");
            }
        }
    }

    #[test]
    fn what_is_missing_is_said() {
        good().check().unwrap();
        let message = |config: Config| config.check().unwrap_err().to_string();
        assert!(message(Config { password: Secret::default(), ..good() }).contains("password is empty"));
        let short = message(Config { password: "correct horse 1".into(), ..good() });
        assert!(short.contains("too short") && short.contains("openssl rand"), "{short}");
        assert!(!short.contains("correct horse"));
        assert!(message(Config { user: "a:b".into(), ..good() }).contains("colon"));
        assert!(message(Config { certificate: "chain.pem".into(), ..good() }).contains("belong together"));
        assert!(message(Config { dispatcher: Dispatcher::default(), ..good() }).contains("account"));
        assert!(message(Config { public: vec!["a:1".into(); 5], ..good() }).contains("at most 4"));
        let limits = Limits { dead_after_ms: 5000, ..Limits::default() };
        assert!(message(Config { limits, ..good() }).contains("dead_after_ms"));
        assert!(!format!("{:?}", good()).contains("horse"));
        let gateway = |gateway: Gateway| message(Config { gateway, ..good() });
        assert!(gateway(Gateway { rtsp: "8554".into(), ..Gateway::default() }).contains("127.0.0.1:8554"));
        assert!(gateway(Gateway { udp_ports: [9, 8], ..Gateway::default() }).contains("udp_ports"));
        let user = GatewayUser { name: "wall".into(), password: "of monitors, sixteen".into() };
        let users = vec![user.clone(), user];
        assert!(gateway(Gateway { users, ..Gateway::default() }).contains("twice"));
    }

    #[test]
    fn public_addresses_are_what_a_device_can_dial() {
        let bound: SocketAddr = "127.0.0.1:4711".parse().unwrap();
        let dialled = |public: &[&str], external: SocketAddr| {
            let public = public.iter().map(|text| (*text).to_owned()).collect();
            let addresses = Config { public, ..good() }.public_addresses(external)?;
            anyhow::Ok(addresses.iter().map(UplinkAddress::authority).collect::<Vec<_>>())
        };
        assert_eq!(dialled(&[], bound).unwrap(), ["127.0.0.1:4711"]);
        assert_eq!(
            dialled(&["sts.example:0", "[2001:db8::1]:443"], bound).unwrap(),
            ["sts.example:4711", "[2001:db8::1]:443"]
        );
        assert!(
            dialled(&[], "0.0.0.0:4711".parse().unwrap())
                .unwrap_err()
                .to_string()
                .contains("no device can dial")
        );
        assert!(format!("{:#}", dialled(&["http://x"], bound).unwrap_err()).contains("public"));
    }
}
