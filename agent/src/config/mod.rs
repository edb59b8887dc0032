//! What the agent is told: one TOML file, the environment, or a value built in code (tests, `homing
//! demo`).
//!
//! [`REFERENCE`] documents every key; a test holds it equal to the defaults here. Checking what keys
//! mean together is [`Config::validate`], so that mistakes are told before a socket is opened.

mod load;

use anyhow::{Context, bail};
use homing_protocol::digest::BasicPolicy;
use homing_protocol::secret::Credentials;
use homing_protocol::{Oak, Secret, SerialNumber};
use homing_uplink::{HttpProxy, UplinkAddress};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde::{Deserialize, Deserializer};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;
use url::Url;

/// The commented configuration file.
pub const REFERENCE: &str = include_str!("agent.toml");

/// The whole configuration; keys and defaults as in [`REFERENCE`].
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Folder for key, label and uplinks.
    pub data: PathBuf,
    /// Serial number, for first start.
    #[serde(deserialize_with = "empty_is_none")]
    pub serial: Option<SerialNumber>,
    /// OAK, for first start.
    #[serde(deserialize_with = "empty_is_none")]
    pub oak: Option<Oak>,
    /// Maker, as ONVIF GetDeviceInformation says it.
    pub manufacturer: String,
    /// Model, as ONVIF GetDeviceInformation says it.
    pub model: String,
    /// How long the button keeps the device phoning, in seconds.
    pub press_window_s: u64,
    /// How long all tunnel servers must have been unreachable, in seconds.
    pub fallback_s: u64,
    /// First interval between attempts, in milliseconds.
    pub retry_first_ms: u64,
    /// Longest interval between attempts, in milliseconds.
    pub retry_max_ms: u64,
    /// The list of dispatchers.
    pub dispatchers: Vec<DispatcherConfig>,
    /// The channels.
    pub cameras: Vec<CameraConfig>,
    /// The page with the button.
    pub page: PageConfig,
    /// The site's HTTP proxy.
    pub proxy: ProxyConfig,
    /// The log; used by the program, not by the library.
    pub log: LogConfig,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            data: "/var/lib/homing-agent".into(),
            serial: None,
            oak: None,
            manufacturer: "Homing".into(),
            model: "Site agent".into(),
            press_window_s: 30 * 60,
            fallback_s: 10 * 60,
            retry_first_ms: 3_000,
            retry_max_ms: 30_000,
            dispatchers: Vec::new(),
            cameras: Vec::new(),
            page: PageConfig::default(),
            proxy: ProxyConfig::default(),
            log: LogConfig::default(),
        }
    }
}

/// One dispatcher.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DispatcherConfig {
    /// `host:port`, or an address with scheme and path.
    pub address: String,
    /// PEM file, PEM text, or empty for public authorities.
    pub trust_anchor: String,
}

/// One camera.
#[derive(Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CameraConfig {
    /// For people.
    pub name: String,
    /// `rtsp://user:password@host:port/path`.
    pub rtsp: Secret,
    /// If not in the address.
    pub user: String,
    /// If not in the address.
    pub password: Secret,
    /// `http://host:port`, or empty.
    pub http: String,
    /// Whether it may be shown the password in clear (HTTP Basic).
    pub allow_basic: bool,
}

impl std::fmt::Debug for CameraConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CameraConfig").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Default for CameraConfig {
    fn default() -> Self {
        CameraConfig {
            name: "Camera".into(),
            rtsp: Secret::default(),
            user: String::new(),
            password: Secret::default(),
            http: String::new(),
            allow_basic: false,
        }
    }
}

/// The page with the button.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PageConfig {
    /// Where it listens; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Names under which browsers may call it.
    pub host_names: Vec<String>,
}

impl Default for PageConfig {
    fn default() -> Self {
        PageConfig { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8089)), host_names: Vec::new() }
    }
}

/// The site's HTTP proxy.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProxyConfig {
    /// `host:port`, or empty for none.
    pub address: String,
    /// User, if it wants one.
    pub user: String,
    /// Password, if it wants one.
    pub password: Secret,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The log.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// Text or JSON.
    pub format: LogFormat,
    /// Level, or target=level pairs.
    pub filter: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig { format: LogFormat::default(), filter: "info".into() }
    }
}

impl Config {
    /// Reads a file and the environment's overrides (`HOMING_AGENT_…`).
    ///
    /// # Errors
    /// Names the file, the key and the nearest known key.
    pub fn load(path: &Path, environment: impl Iterator<Item = (String, String)>) -> anyhow::Result<Config> {
        load::load(path, environment)
    }

    /// Warns in the log when others can read the file at `path`, which holds the cameras' password.
    pub fn warn_if_open_to_others(path: &Path) {
        load::warn_if_open_to_others(path);
    }

    /// Checks everything that can be checked without a network.
    ///
    /// # Errors
    /// Names the key and what to write there.
    pub fn validate(&self) -> anyhow::Result<Valid> {
        if self.cameras.is_empty() {
            bail!("no camera: add a [[cameras]] table with rtsp = \"rtsp://user:password@host/path\"");
        }
        let cameras: Vec<Camera> = self
            .cameras
            .iter()
            .enumerate()
            .map(|(index, camera)| Camera::new(index, camera).with_context(|| format!("cameras.{index}")))
            .collect::<Result<_, _>>()?;
        let first = &cameras[0].credentials;
        if let Some(other) = cameras.iter().find(|camera| camera.credentials != *first) {
            bail!(
                "cameras.{}: another user or password than the first camera has; cameras behind one agent \
                 are registered as one device and must share them",
                other.index
            );
        }
        let dispatchers = self
            .dispatchers
            .iter()
            .enumerate()
            .map(|(index, one)| Dispatcher::new(one).with_context(|| format!("dispatchers.{index}")))
            .collect::<Result<_, _>>()?;
        let proxy = match self.proxy.address.as_str() {
            "" => None,
            address => {
                let proxy = HttpProxy::from_str(address).context("proxy.address")?;
                Some(match self.proxy.user.as_str() {
                    "" => proxy,
                    user => proxy.with_credentials(user, self.proxy.password.expose()),
                })
            }
        };
        if self.retry_first_ms == 0 || self.retry_max_ms < self.retry_first_ms {
            bail!("retry_first_ms must be at least 1 and at most retry_max_ms");
        }
        Ok(Valid { cameras, dispatchers, proxy })
    }

    /// How long the button keeps the device phoning.
    pub fn press_window(&self) -> Duration {
        Duration::from_secs(self.press_window_s)
    }
}

/// What a valid configuration amounts to.
#[derive(Debug)]
pub struct Valid {
    /// At least one.
    pub cameras: Vec<Camera>,
    /// In the order in which they are tried.
    pub dispatchers: Vec<Dispatcher>,
    /// The site's HTTP proxy.
    pub proxy: Option<HttpProxy>,
}

/// A camera that can be dialled.
#[derive(Clone, Debug)]
pub struct Camera {
    /// Its place in the list.
    pub index: usize,
    /// For people.
    pub name: String,
    /// `rtsp://host:port/path` without user and password: what is told to others.
    pub rtsp: Url,
    /// Host of its RTSP server, without brackets.
    pub host: String,
    /// Port of its RTSP server.
    pub port: u16,
    /// Its own user and password.
    pub credentials: Credentials,
    /// `host` and `port` of its HTTP server.
    pub http: Option<(String, u16)>,
    /// Whether it may be shown the password in clear.
    pub allow_basic: bool,
}

impl Camera {
    fn new(index: usize, config: &CameraConfig) -> anyhow::Result<Camera> {
        // Parse errors repeat no part of the URL: it has the password in it.
        let mut rtsp = Url::parse(config.rtsp.expose())
            .map_err(|error| anyhow::anyhow!("rtsp: {error}; write rtsp://user:password@host/path"))?;
        if rtsp.scheme() != "rtsp" {
            bail!("rtsp: the address must begin with rtsp://");
        }
        let host = host_of(&rtsp).context("rtsp: the address has no host")?;
        let decoded = |text: &str| {
            percent_encoding::percent_decode_str(text)
                .decode_utf8()
                .map(|text| text.into_owned())
                .map_err(|_| anyhow::anyhow!("rtsp: user or password is not UTF-8"))
        };
        let user = if config.user.is_empty() { decoded(rtsp.username())? } else { config.user.clone() };
        let password = match rtsp.password() {
            Some(password) if config.password.is_empty() => Secret::new(decoded(password)?),
            _ => config.password.clone(),
        };
        if user.is_empty() || password.is_empty() {
            bail!(
                "the camera's user and password are missing: write rtsp://user:password@host/path, or the \
                 keys user and password. They guard the device; a camera without a password is let be"
            );
        }
        let strip = rtsp.set_username("").and_then(|()| rtsp.set_password(None));
        strip.map_err(|()| anyhow::anyhow!("rtsp: the address has no host"))?;
        let http = match config.http.as_str() {
            "" => None,
            address => {
                let url = Url::parse(address).context("http")?;
                if url.scheme() != "http" {
                    bail!("http: the address must begin with http://");
                }
                if !url.username().is_empty() || url.password().is_some() {
                    bail!("http: user and password do not belong here; the camera asks for them itself");
                }
                let host = host_of(&url).context("http: the address has no host")?;
                Some((host, url.port().unwrap_or(80)))
            }
        };
        Ok(Camera {
            index,
            name: config.name.clone(),
            port: rtsp.port().unwrap_or(554),
            host,
            rtsp,
            credentials: Credentials { user, password },
            http,
            allow_basic: config.allow_basic,
        })
    }

    /// How the agent itself logs in to it.
    pub(crate) fn basic_policy(&self) -> BasicPolicy {
        if self.allow_basic { BasicPolicy::Allow } else { BasicPolicy::Refuse }
    }

    /// `host:port` of the RTSP server, for people.
    pub fn rtsp_authority(&self) -> String {
        authority(&self.host, self.port)
    }
}

/// `host:port`, with brackets around IPv6 addresses.
pub(crate) fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn host_of(url: &Url) -> Option<String> {
    let host = url.host_str()?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    (!host.is_empty()).then(|| host.to_owned())
}

/// A dispatcher that can be dialled.
#[derive(Clone, Debug)]
pub struct Dispatcher {
    /// Where.
    pub address: UplinkAddress,
    /// Whom its certificate must lead to.
    pub roots: RootCertStore,
}

impl Dispatcher {
    fn new(config: &DispatcherConfig) -> anyhow::Result<Dispatcher> {
        let address = config.address.parse()?;
        let mut roots = RootCertStore::empty();
        match config.trust_anchor.as_str() {
            "" => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
            given => {
                let text = if given.contains("-----BEGIN") {
                    given.to_owned()
                } else {
                    std::fs::read_to_string(given).with_context(|| {
                        format!(
                            "trust_anchor: cannot read {given}; copy it from the dispatcher, where it is \
                                 dispatcher-ca.pem in its data folder"
                        )
                    })?
                };
                for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
                    let certificate = certificate.context("trust_anchor: not PEM")?;
                    roots
                        .add(certificate)
                        .context("trust_anchor: not a certificate that can be an anchor")?;
                }
                if roots.is_empty() {
                    bail!("trust_anchor: there is no certificate in it");
                }
            }
        }
        Ok(Dispatcher { address, roots })
    }
}

/// An empty text is a key that is not given: so every key has a default to show.
fn empty_is_none<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr,
    T::Err: std::fmt::Display,
{
    match String::deserialize(deserializer)?.as_str() {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(serde::de::Error::custom),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn camera(rtsp: &str) -> CameraConfig {
        CameraConfig { rtsp: rtsp.into(), ..CameraConfig::default() }
    }

    #[test]
    fn user_and_password_come_from_the_url_and_never_leave_it() {
        let config = Config {
            cameras: vec![camera("rtsp://ro%6ft:p%40ss%3A@192.168.1.90/stream?x=1")],
            ..Config::default()
        };
        let camera = config.validate().unwrap().cameras.remove(0);
        assert_eq!(camera.credentials, Credentials::new("root", "p@ss:"));
        assert_eq!(camera.rtsp.as_str(), "rtsp://192.168.1.90/stream?x=1");
        assert_eq!((camera.host.as_str(), camera.port), ("192.168.1.90", 554));
        assert!(!format!("{config:?} {camera:?}").contains("p@ss"));
        let six = Camera::new(0, &self::camera("rtsp://a:b@[fe80::1]:8554/")).unwrap();
        assert_eq!(six.rtsp_authority(), "[fe80::1]:8554");
    }

    #[test]
    fn mistakes_are_told_with_the_key_and_without_the_password() {
        let with = |cameras: Vec<CameraConfig>| Config { cameras, ..Config::default() };
        let web = |http: &str| CameraConfig { http: http.into(), ..camera("rtsp://a:geheim@h/") };
        for (config, message) in [
            (Config::default(), "no camera"),
            (with(vec![camera("rtsp://host/x")]), "user and password are missing"),
            (with(vec![camera("http://a:geheim@h/")]), "begin with rtsp://"),
            (with(vec![camera("a:geheim@h")]), "rtsp"),
            (with(vec![camera("rtsp://a:geheim@h:99999/")]), "port"),
            (with(vec![web("https://h")]), "begin with http://"),
            (with(vec![web("http://a:geheim@h")]), "do not belong here"),
            (with(vec![camera("rtsp://a:geheim@h/"), camera("rtsp://a:b@h/")]), "must share them"),
        ] {
            let error = format!("{:#}", config.validate().unwrap_err());
            assert!(error.contains(message) && !error.contains("geheim"), "{error}");
        }
        let dispatcher = |address: &str, trust_anchor: &str| Config {
            dispatchers: vec![DispatcherConfig {
                address: address.into(),
                trust_anchor: trust_anchor.into(),
            }],
            ..with(vec![camera("rtsp://a:b@h/")])
        };
        for (config, message) in [
            (dispatcher("http://d/", ""), "dispatchers.0: "),
            (dispatcher("d:443", "/nowhere.pem"), "cannot read /nowhere.pem"),
            (dispatcher("d:443", "-----BEGIN NOTHING-----"), "trust_anchor"),
        ] {
            let error = format!("{:#}", config.validate().unwrap_err());
            assert!(error.contains(message), "{error}");
        }
        assert_eq!(dispatcher("d:443", "").validate().unwrap().dispatchers.len(), 1);
    }
}
