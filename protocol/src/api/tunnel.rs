//! What a VMS asks a tunnel server on its internal address (steps 1 and 8).
//!
//! Basic authentication with the tunnel server's user and password; the same credentials, as
//! `Proxy-Authorization`, open the forward proxy (`GET http://SERIAL/…`, `CONNECT SERIAL:554`).
//!
//! | request | answer |
//! |---|---|
//! | `GET /api/v1/server` | [`Server`] |
//! | `GET /api/v1/devices`, `GET /api/v1/devices/{serial}` | [`Device`], all or one |
//! | `POST /api/v1/devices` [`NewDevice`] | [`Device`]: 201 relayed, 202 kept because the dispatcher cannot be reached; a problem when the dispatcher refused, and then nothing is kept |
//! | `PATCH /api/v1/devices/{serial}` [`ChangeDevice`] | [`Device`] |
//! | `DELETE /api/v1/devices/{serial}` | nothing; the claim is released |
//! | `PUT /api/v1/devices/{serial}/move` [`Move`] | [`Device`]: it is told to dial there as soon as it is connected, and let go once it is there |
//! | `DELETE /api/v1/devices/{serial}/move` | [`Device`]: stays here, or comes back |
//! | `PUT /api/v1/devices/{serial}/offer` [`super::dispatcher::Offer`], `DELETE` | nothing; another account may take the device over, at the dispatcher |
//! | `GET /api/v1/devices/{serial}/handover` | [`NewDevice`] with its secrets, for another tunnel server; in the log |
//! | `GET /api/v1/devices/{serial}/history` | [`Connection`], the last 50, the newest first |
//! | `GET /api/v1/figures` | [`Figures`] of every device that is connected |
//! | `GET /api/v1/devices/{serial}/credentials` | [`crate::secret::Credentials`] for Add Hardware |
//! | `POST /api/v1/devices/{serial}/reconnect` | nothing; its uplinks end, and it dials again |
//! | `POST /api/v1/devices/{serial}/restart` | nothing; the device was told to restart (ONVIF SystemReboot) |
//! | `GET /api/v1/statistics` | [`Statistics`] |
//! | `GET /api/v1/sites` | [`Site`], all |
//! | `PUT /api/v1/sites/{name}` [`SiteChange`], `DELETE` | nothing |
//! | `GET /api/v1/events` | server-sent events, see below |
//!
//! **Events.** `device` with a [`Device`], `removed` with `{"serial": …}`, `site` with a [`Site`] that has become nearly
//! full, or has room again; each has an id. A stream that is opened with
//! the last id that was seen (`Last-Event-ID`, as browsers do by themselves, or `?after=`) begins with `resumed` and goes
//! on after that one. Without an id, or where what came after it is not kept any more (the server keeps four for
//! each device that can be connected, never fewer than 4096, and none over a restart), it begins with [`Reset`]: forget everything; then one `device` each, without ids, and `ready`, whose
//! id is the first to resume from. A reader that falls behind is dropped, and opens it again with its last id.
//!
//! Problem codes: `bad-serial-number`, `bad-oak`, `bad-request`, `already-registered`, `not-found`, `unauthorized`,
//! `too-many-attempts`, and what the dispatcher refuses with. In a device's `problem` also: `dispatcher-unreachable`,
//! `dispatcher-error`, `unknown-account`, `transferred`, `not-offered-here` (step 2), `foreign-registration` (step 5),
//! `unknown-key`, `uplink-lost`, `two-devices` (step 7), `default-password`. In a move's: `move-not-reached`,
//! `move-refused`; of a move: `already-moved`. From the proxy: `not-registered`, `not-connected`, `device-failed`,
//! `device-timeout`, `forbidden`.

use super::ProblemDetail;
use crate::{Oak, Secret, SerialNumber, Step};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A registration, step 1.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewDevice {
    /// Serial number on the label.
    pub serial: SerialNumber,
    /// OAK on the label.
    pub oak: Oak,
    /// The device's user.
    pub user: String,
    /// That user's password.
    pub password: Secret,
    /// What people call it; the serial number where empty. At most 64 characters.
    #[serde(default)]
    pub name: String,
    /// Anything worth knowing. At most 256 characters.
    #[serde(default)]
    pub description: String,
    /// What the proxy gives of it.
    #[serde(default, skip_serializing_if = "Access::is_default")]
    pub access: Access,
    /// Hex SHA-256 of the device's key, where another tunnel server of the same owner vouches for it: the device is
    /// then admitted without having been dispatched here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// With `fingerprint`: that tunnel server gave the device its password, instead of a factory default.
    #[serde(default)]
    pub own_password: bool,
    /// With `fingerprint`: the device may have been told this password instead; what it knows is found out when it comes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proposed_password: Option<Secret>,
}

impl NewDevice {
    /// What is on a device's label and its own user and password; everything else by default.
    pub fn new(serial: SerialNumber, oak: Oak, user: impl Into<String>, password: impl Into<Secret>) -> Self {
        NewDevice {
            serial,
            oak,
            user: user.into(),
            password: password.into(),
            name: String::new(),
            description: String::new(),
            access: Access::default(),
            fingerprint: None,
            own_password: false,
            proposed_password: None,
        }
    }
}

/// What the internal address's proxy gives of a device, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Access {
    /// The ports that it can be reached at, and what answers there; at most 16. By default 80, 443 and 554.
    pub ports: Vec<Port>,
    /// Whether the proxy logs in to the device with the registered user and password, in place of whatever
    /// `Authorization` a client sends. Whoever may use the proxy is the device's administrator then.
    pub add_credentials: bool,
}

/// A port of a device at the proxy. (Through an uplink there are none: a device has one HTTP service, and RTSP in it.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// 1 to 65535.
    #[cfg_attr(feature = "openapi", schema(minimum = 1))]
    pub port: u16,
    /// What answers there.
    pub service: Service,
}

/// What a device gives at a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Service {
    /// Its HTTP service, in absolute form or inside CONNECT.
    Http,
    /// The same inside TLS, which the tunnel server ends.
    Https,
    /// RTSP, inside CONNECT.
    Rtsp,
}

impl Default for Access {
    fn default() -> Self {
        let port = |port, service| Port { port, service };
        let ports = vec![port(80, Service::Http), port(443, Service::Https), port(554, Service::Rtsp)];
        Access { ports, add_credentials: false }
    }
}

impl Access {
    /// Whether nobody has changed anything.
    pub fn is_default(&self) -> bool {
        *self == Access::default()
    }

    /// What answers at a port.
    pub fn at(&self, port: u16) -> Option<Service> {
        self.ports.iter().find(|known| known.port == port).map(|known| known.service)
    }
}

/// Sends a device to another tunnel server, which must know it already (a registration with its `fingerprint`).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Move {
    /// Where to.
    pub target: super::Target,
    /// The other server's dispatcher account, to which the claim is offered; none if that is this one's, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// The device stays here as well: it holds a tunnel to both. The other server is told the same about this one, so
    /// that whichever the dispatcher sends it to sends it to the other.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep: bool,
}

/// How far a move is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum MoveState {
    /// The device is offline; it is told when it comes back.
    Queued,
    /// It was told, and tries the other server; its tunnel here stands until it is there.
    Trying,
    /// It is there, and was told to forget this server. The registration here is kept until it is deleted, so that
    /// the move can be undone.
    Moved,
    /// It is there and stays here.
    Both,
}

/// A move, as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Moving {
    /// How far.
    pub state: MoveState,
    /// It is to stay here as well.
    #[serde(default)]
    pub keep: bool,
    /// Where to, `host:port`.
    pub servers: Vec<String>,
    /// When the state was entered.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub since: Timestamp,
    /// Why it does not go on, as the device says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<ProblemDetail>,
}

/// What can be changed on a registration. A corrected OAK, user or password of a device that has not been dispatched
/// is relayed again.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ChangeDevice {
    /// The OAK, where it was mistyped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oak: Option<Oak>,
    /// The device's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// That user's password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// With `password`: another tunnel server of the same owner gave the device that password.
    #[serde(default)]
    pub own_password: bool,
    /// A new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// A new description.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// What the proxy gives of it, as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,
}

/// How the registration stands with the dispatcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum RelayState {
    /// The dispatcher could not be reached yet; it is tried again.
    Pending,
    /// The dispatcher waits for the device.
    Waiting,
    /// The device is at the dispatcher.
    Dispatching,
    /// The dispatcher has vouched for the device's key.
    Dispatched,
    /// The dispatcher refused; see the last error.
    Refused,
}

/// A registered device as its tunnel server sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Device {
    /// Serial number.
    pub serial: SerialNumber,
    /// Name.
    pub name: String,
    /// Description.
    pub description: String,
    /// The place with one Internet connection where it is, if that was entered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// The device's user; the password is asked for separately.
    pub user: String,
    /// The last step that was carried out: 1 to 7.
    pub step: Step,
    /// How the registration stands with the dispatcher.
    pub relay: RelayState,
    /// Whether there is an uplink now; a device has one for each public address of its tunnel server that it reaches.
    pub connected: bool,
    /// Since when it is connected, or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
    pub since: Option<Timestamp>,
    /// The address that the uplink came from; of several, the one by the best public address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Round-trip time of the last PING, in milliseconds, at least 1; at most one keepalive period (10 s) old.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_ms: Option<u32>,
    /// Bytes received from the device over the present uplinks.
    pub bytes_in: u64,
    /// Bytes sent to the device over the present uplinks.
    pub bytes_out: u64,
    /// Received from it over the last seconds, in bits a second. Events do not come for it: see `GET /api/v1/figures`.
    #[serde(default)]
    pub bps_in: u64,
    /// Sent to it over the last seconds, in bits a second.
    #[serde(default)]
    pub bps_out: u64,
    /// Every uplink that stands, the best first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uplinks: Vec<Uplink>,
    /// What went wrong last, until it goes right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<ProblemDetail>,
    /// On its way to another tunnel server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<Moving>,
    /// Others have tried to register it, at the dispatcher.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contested: Option<super::dispatcher::Contested>,
    /// Whether its factory default password was replaced by one of its own, which `credentials` shows.
    #[serde(default)]
    pub own_password: bool,
    /// What the proxy gives of it.
    #[serde(default)]
    pub access: Access,
    /// What went wrong last, and when; also when it has gone right since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_problem: Option<PastProblem>,
}

/// One uplink of a device that stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Uplink {
    /// Where it comes from.
    pub peer: String,
    /// What the device dialled, `host:port`, as it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dialled: Option<String>,
    /// Since when it stands.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub since: Timestamp,
    /// Round-trip time of the last PING, in milliseconds, at least 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_ms: Option<u32>,
    /// Streams in use now.
    pub streams: u32,
}

/// Something that went wrong, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PastProblem {
    /// When it was noticed.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub at: Timestamp,
    /// What it was, with its step.
    #[serde(flatten)]
    pub problem: ProblemDetail,
}

/// What changes all the time about a device that is connected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Figures {
    /// Whose.
    pub serial: SerialNumber,
    /// As in [`Device`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_ms: Option<u32>,
    /// As in [`Device`].
    pub bytes_in: u64,
    /// As in [`Device`].
    pub bytes_out: u64,
    /// As in [`Device`].
    pub bps_in: u64,
    /// As in [`Device`].
    pub bps_out: u64,
}

/// One uplink of a device, from its beginning to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Connection {
    /// When it began.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub since: Timestamp,
    /// When it ended; none while it stands, or when that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
    pub until: Option<Timestamp>,
    /// Where it came from.
    pub peer: String,
    /// What the device dialled, `host:port`, as it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dialled: Option<String>,
    /// Why it ended, none while it stands: `device-closed`, `silent`, `broken`, `protocol-error`, `flooded`,
    /// `replaced`, `server-stopped`, `server-closed`, `server-crashed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The same as a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Bytes received from the device; of one that stands, see [`Device`].
    pub bytes_in: u64,
    /// Bytes sent to the device.
    pub bytes_out: u64,
}

/// Data of the event `reset`: what follows is everything, from the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Reset {
    /// An id was given, and what came after it is not known any more: changes were missed.
    pub missed: bool,
}

/// What the tunnel server carries, in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Statistics {
    /// Devices that are registered.
    pub registered: u64,
    /// Of these, still to be relayed to the dispatcher.
    pub pending: u64,
    /// Devices that are connected.
    pub connected: u64,
    /// Uplinks that stand; a device can have several.
    pub uplinks: u64,
    /// Streams through them.
    pub streams: u64,
    /// Bytes received from devices since the server started.
    pub bytes_in: u64,
    /// Bytes sent to devices since the server started.
    pub bytes_out: u64,
}

/// Sites at one server.
pub const SITES_MAX: usize = 10_000;

/// Devices at one site; more would not fit into the longest request that a tunnel server reads.
pub const SITE_DEVICES_MAX: usize = 4_000;

/// Characters of a site's name.
const SITE_NAME_MAX: usize = 64;

/// Mbit/s of a site: from a modem to a data centre.
const SITE_RATES: std::ops::RangeInclusive<f64> = 0.01..=1_000_000.0;

/// What is entered about a place with one Internet connection.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct SiteChange {
    /// What its Internet connection carries towards us, in Mbit/s; none: not known, and no warning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream_mbit: Option<f64>,
    /// What its devices may send together through this tunnel server, in Mbit/s; none: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_mbit: Option<f64>,
    /// Which devices are there. One that was at another site is there no more.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub devices: Vec<SerialNumber>,
}

impl SiteChange {
    /// Whether it is one, under this name.
    ///
    /// # Errors
    /// What to enter instead.
    pub fn check(&self, name: &str) -> Result<(), &'static str> {
        if name.trim().is_empty()
            || name.chars().count() > SITE_NAME_MAX
            || name.chars().any(char::is_control)
        {
            return Err("A site's name has 1 to 64 characters, in one line.");
        }
        if self.devices.len() > SITE_DEVICES_MAX {
            return Err("A site has 4,000 devices at most; enter it as several.");
        }
        match [self.upstream_mbit, self.limit_mbit]
            .into_iter()
            .flatten()
            .any(|mbit| !SITE_RATES.contains(&mbit))
        {
            true => Err("upstream_mbit and limit_mbit are in Mbit/s, from 0.01 on."),
            false => Ok(()),
        }
    }
}

/// Whether a site's connection has room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum SiteState {
    /// It was not declared what it carries.
    Unknown,
    /// It has room.
    Room,
    /// It was above the warning's share of what it carries, on average over the last minute.
    Full,
}

/// A place with one Internet connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Site {
    /// Its name.
    pub name: String,
    /// As in [`SiteChange`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream_mbit: Option<f64>,
    /// As in [`SiteChange`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_mbit: Option<f64>,
    /// Which devices are there, registered here or not.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub devices: Vec<SerialNumber>,
    /// What its devices send now, in bits a second as the line carries them: with TLS, TCP and IP, estimated.
    pub bps: u64,
    /// The same over the last minute.
    pub minute_bps: u64,
    /// From which share of `upstream_mbit` on it counts as full, in percent.
    pub warn_percent: u8,
    /// Whether it has room.
    pub state: SiteState,
}

/// The tunnel server itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Server {
    /// Its name.
    pub name: String,
    /// Where it listens for devices.
    pub external: String,
    /// What devices are told to dial.
    pub public: Vec<String>,
    /// The dispatcher's address.
    pub dispatcher: String,
    /// What is wrong between it and the dispatcher (unreachable, unknown account), if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dispatcher_problem: Option<ProblemDetail>,
    /// Its account at the dispatcher.
    #[serde(default)]
    pub account: String,
    /// PEM that devices are told to trust here.
    #[serde(default)]
    pub trust_anchor: String,
    /// Certificates of it and of what it relies on.
    #[serde(default)]
    pub certificates: Vec<super::Expiry>,
}
