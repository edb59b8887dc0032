//! The JSON that browsers and scripts are given: what the OpenAPI document describes.
//!
//! Where people are told more or less than another role's API tells, there is a view of it here, with that role's field
//! names: a test holds it to the type in `protocol::api`.

use homing_protocol::{
    DeviceState, Step,
    api::{ProblemDetail, recording, tunnel},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The body of every answer that is not a success.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// What is wrong.
    pub error: ProblemView,
}

/// What is wrong, for programs and for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ProblemDetail)]
pub struct ProblemView {
    /// A word for programs, in kebab case.
    pub code: String,
    /// A sentence for people: what happened, with whom, and what to check.
    pub message: String,
    /// The step of the connection flow that failed, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub step: Option<Step>,
}

impl From<ProblemDetail> for ProblemView {
    fn from(problem: ProblemDetail) -> Self {
        ProblemView { code: problem.code, message: problem.message, step: problem.step }
    }
}

/// A registered device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Device {
    /// Serial number, twelve upper case hex digits.
    pub serial: String,
    /// Name.
    pub name: String,
    /// Description.
    pub description: String,
    /// The place with one Internet connection where it is, if that was entered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// The device's user.
    pub user: String,
    /// `red`: registered, not connected. `yellow`: connected, not added. `green`: added to a recording
    /// server; see `connected` for whether it is there now. `grey`: it went to another tunnel server.
    #[schema(example = "yellow")]
    pub state: String,
    /// The word beside the colour.
    #[schema(example = "Ready to add")]
    pub word: String,
    /// Whether there is an uplink now.
    pub connected: bool,
    /// The last step of the connection flow that was carried out.
    #[schema(value_type = String, example = "tunnel")]
    pub step: Step,
    /// Its number, 1 to 8.
    pub step_number: u8,
    /// How the registration stands with the dispatcher: `pending`, `waiting`, `dispatching`,
    /// `dispatched`, `refused`.
    #[schema(value_type = String, example = "dispatched")]
    pub relay: tunnel::RelayState,
    /// Since when it is connected, or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub since: Option<Timestamp>,
    /// The address that the uplink came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Round-trip time of the last PING, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt_ms: Option<u32>,
    /// Bytes received over the present uplink.
    pub bytes_in: u64,
    /// Bytes sent over the present uplink.
    pub bytes_out: u64,
    /// What went wrong last, until it goes right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<ProblemView>,
    /// The tunnel server that it is registered at.
    pub tunnel_server: String,
    /// Its hardware's number, once added.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hardware: Option<i64>,
    /// On its way to another tunnel server, or there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moving: Option<Moving>,
    /// Others have tried to register it, at the dispatcher.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contested: Option<Contested>,
    /// Whether its factory default password was replaced by one of its own; `password` shows it.
    pub own_password: bool,
    /// Received over the last seconds, bits a second. Of now where one device or `figures` is asked for.
    pub bps_in: u64,
    /// Sent over the last seconds, bits a second.
    pub bps_out: u64,
    /// Every uplink that stands, the best first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uplinks: Vec<Uplink>,
    /// What went wrong last, also when it has gone right since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_problem: Option<PastProblem>,
}

/// One uplink of a device that stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Uplink {
    /// Where it comes from.
    pub peer: String,
    /// What the device dialled, `host:port`, as it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dialled: Option<String>,
    /// Since when it stands.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// Round-trip time of the last PING, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_ms: Option<u32>,
    /// Streams in use now.
    pub streams: u32,
}

/// Something that went wrong, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PastProblem {
    /// When it was noticed.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// A word for programs.
    pub code: String,
    /// A sentence for people.
    pub message: String,
    /// The step of the connection flow that failed, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub step: Option<Step>,
}

/// What is entered about a place with one Internet connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SiteChange {
    /// What its Internet connection carries towards us, in Mbit/s; left out: not known, and no warning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream_mbit: Option<f64>,
    /// What its devices may send together through one tunnel server, in Mbit/s; left out: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_mbit: Option<f64>,
    /// Serial numbers of the devices that are there.
    #[serde(default)]
    pub devices: Vec<String>,
}

/// A place with one Internet connection, over all tunnel servers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// Its name.
    pub name: String,
    /// What its Internet connection carries towards us, in Mbit/s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream_mbit: Option<f64>,
    /// What its devices may send together through one tunnel server, in Mbit/s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_mbit: Option<f64>,
    /// Serial numbers of the devices that are there.
    pub devices: Vec<String>,
    /// What its devices send now, in bits a second.
    pub bps: u64,
    /// The same over the last minute.
    pub minute_bps: u64,
    /// From which share of `upstream_mbit` on it counts as full, in percent, as the tunnel servers are configured; none
    /// while none of them can be reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warn_percent: Option<u8>,
    /// `unknown`: its upstream was not declared, or no tunnel server can be reached; `room`; `full`: the last minute was
    /// above the warning's share.
    #[schema(value_type = String, example = "room")]
    pub state: tunnel::SiteState,
    /// Names of the tunnel servers that do not know of it yet as it stands here: they cannot be reached, or refuse it.
    pub untold: Vec<String>,
}

/// What was entered is kept, and told to these as soon as they can be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Untold {
    /// Names of tunnel servers.
    #[schema(example = json!(["North"]))]
    pub untold: Vec<String>,
}

/// What changes all the time about a device that is connected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Figures {
    /// Whose.
    pub serial: String,
    /// The tunnel server that carries it.
    pub tunnel_server: String,
    /// Round-trip time of the last PING, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_ms: Option<u32>,
    /// Bytes received over the present uplinks.
    pub bytes_in: u64,
    /// Bytes sent over the present uplinks.
    pub bytes_out: u64,
    /// Received over the last seconds, bits a second.
    pub bps_in: u64,
    /// Sent over the last seconds, bits a second.
    pub bps_out: u64,
}

/// One uplink of a device, from its beginning to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Connection {
    /// The tunnel server that it led to.
    #[schema(example = "North")]
    pub tunnel_server: String,
    /// As that tunnel server tells.
    #[serde(flatten)]
    pub connection: tunnel::Connection,
}

/// A move to another tunnel server, as it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Moving {
    /// `queued`: the device is offline, and is told when it comes back. `trying`: it was told; its tunnel here stands
    /// until it is there. `moved`: it is there. `both`: it is there and stays here.
    #[schema(value_type = String, example = "trying")]
    pub state: tunnel::MoveState,
    /// It is to stay here as well.
    pub keep: bool,
    /// The tunnel server it goes to, by its name, where this management server knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnel_server: Option<String>,
    /// Where to, `host:port`.
    pub servers: Vec<String>,
    /// When the state was entered.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// Why it does not go on, as the device says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<ProblemView>,
}

/// Others have tried to register a device of ours.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Contested {
    /// How often, since it was registered here.
    pub attempts: u32,
    /// When last.
    #[schema(value_type = String, format = DateTime)]
    pub last: Timestamp,
}

impl Device {
    /// What follows from the tunnel server's knowledge, and from whether it was added (step 8).
    pub fn new(tunnel_server: &str, device: &tunnel::Device, hardware: Option<i64>) -> Self {
        let moved = device.moving.as_ref().is_some_and(|moving| moving.state == tunnel::MoveState::Moved);
        let state = match moved && !device.connected {
            true => DeviceState::Moved,
            false => DeviceState::of(device.connected, hardware.is_some()),
        };
        // A device that was added and then reset begins again at step 3: that is what matters then.
        let on_its_way_again = !device.connected && device.relay != tunnel::RelayState::Dispatched;
        let step = if hardware.is_some() && !on_its_way_again { Step::Add } else { device.step };
        Device {
            serial: device.serial.to_string(),
            name: device.name.clone(),
            description: device.description.clone(),
            site: device.site.clone(),
            user: device.user.clone(),
            state: state.colour().to_owned(),
            word: state.word().to_owned(),
            connected: device.connected,
            step,
            step_number: step.number(),
            relay: device.relay,
            since: device.since,
            peer: device.peer.clone(),
            rtt_ms: device.rtt_ms,
            bytes_in: device.bytes_in,
            bytes_out: device.bytes_out,
            problem: device.problem.clone().map(Into::into),
            tunnel_server: tunnel_server.to_owned(),
            hardware,
            moving: device.moving.as_ref().map(|moving| Moving {
                state: moving.state,
                keep: moving.keep,
                tunnel_server: None,
                servers: moving.servers.clone(),
                since: moving.since,
                problem: moving.problem.clone().map(Into::into),
            }),
            contested: device
                .contested
                .as_ref()
                .map(|contested| Contested { attempts: contested.attempts, last: contested.last }),
            own_password: device.own_password,
            bps_in: device.bps_in,
            bps_out: device.bps_out,
            uplinks: device.uplinks.iter().map(Uplink::of).collect(),
            last_problem: device.last_problem.as_ref().map(|past| PastProblem {
                at: past.at,
                code: past.problem.code.clone(),
                message: past.problem.message.clone(),
                step: past.problem.step,
            }),
        }
    }

    /// Whether the device went elsewhere, and only its registration is left here.
    pub fn moved(&self) -> bool {
        self.word == DeviceState::Moved.word()
    }
}

impl Uplink {
    fn of(uplink: &tunnel::Uplink) -> Self {
        let tunnel::Uplink { peer, dialled, since, rtt_ms, streams } = uplink.clone();
        Uplink { peer, dialled, since, rtt_ms, streams }
    }
}

/// A tunnel server, as this management server sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TunnelServer {
    /// Its name.
    pub name: String,
    /// Its internal address.
    pub url: String,
    /// Whether its event stream is open.
    pub reachable: bool,
    /// Since when it is reachable, or not.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// Where it listens for devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external: Option<String>,
    /// What devices are told to dial.
    pub public: Vec<String>,
    /// Its dispatcher's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dispatcher: Option<String>,
    /// What is wrong between us and it, or between it and its dispatcher.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<ProblemView>,
    /// Registered devices.
    pub devices: usize,
    /// Registered devices that are connected now.
    pub connected: usize,
    /// Its account at the dispatcher; empty while it has not been reached.
    pub account: String,
    /// Anything worth knowing.
    pub description: String,
    /// What devices dial, as the administrator entered it; empty where that was left to the tunnel server.
    pub external_address: String,
    /// The user that it is asked as; empty: it asks for none.
    pub user: String,
    /// SHA-256 of what its certificate is trusted by, where that is not the public web's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trusted: Option<String>,
    /// Whether it stands in the configuration file, and is changed only there.
    pub configured: bool,
}

/// A certificate that somebody relies on, and when it ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Certificate {
    /// Of which server: `management server`, `tunnel server NAME`.
    pub server: String,
    /// Which one: `certificate of the external address`.
    pub what: String,
    /// When it ends.
    #[schema(value_type = String, format = DateTime)]
    pub expires: Timestamp,
    /// Whether Homing renews it by itself.
    pub renews: bool,
    /// What to do, if something has to be done now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// A recording server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RecordingServer {
    /// Its name.
    pub name: String,
    /// Whether it answers.
    pub reachable: bool,
    /// What is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<ProblemView>,
    /// Devices added to it.
    pub hardware: usize,
    /// Their channels.
    pub cameras: usize,
}

/// A device that was added to a recording server, with its channels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Hardware {
    /// Stable for as long as the hardware exists.
    pub id: i64,
    /// Name.
    pub name: String,
    /// How it is reached.
    pub device: DeviceAddress,
    /// Serial number.
    pub serial: String,
    /// Manufacturer and model.
    pub model: String,
    /// One a channel.
    pub cameras: Vec<Camera>,
}

/// How a recording server reaches a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "via", rename_all = "kebab-case", deny_unknown_fields)]
pub enum DeviceAddress {
    /// Through a tunnel server.
    Tunnel {
        /// The tunnel server's name.
        server: String,
        /// The device's serial number.
        serial: String,
    },
    /// On the recording server's own network.
    Direct {
        /// `host` or `host:port`.
        host: String,
    },
    /// On the recording server's own network, an RTSP server without ONVIF.
    Rtsp {
        /// Its URL.
        url: String,
    },
}

/// One channel of a hardware.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Camera {
    /// Stable for as long as the camera exists; never used again.
    pub id: i64,
    /// The hardware that it is a channel of.
    pub hardware: i64,
    /// Serial number of the device.
    pub serial: String,
    /// Name.
    pub name: String,
    /// How it is now.
    pub status: CameraStatus,
}

/// Whether a camera delivers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CameraStatus {
    /// `connecting`, `recording` or `error`.
    #[schema(value_type = String, example = "recording")]
    pub state: recording::CameraState,
    /// Since when.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// Why it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<ProblemView>,
    /// Over the last seconds, bits a second. Not in events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bitrate_bps: Option<u64>,
    /// When the last frame arrived. Not in events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_frame: Option<Timestamp>,
}

/// What can be changed on a camera.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CameraChange {
    /// What people call it.
    pub name: String,
}

/// What was recorded, and what was not, in order. Together ranges and gaps cover the time from `start`
/// to `end`, as far as the camera existed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Timeline {
    /// As asked for, or the camera's first moment.
    #[schema(value_type = String, format = DateTime)]
    pub start: Timestamp,
    /// As asked for, or now.
    #[schema(value_type = String, format = DateTime)]
    pub end: Timestamp,
    /// Footage without interruption.
    pub ranges: Vec<TimelineRange>,
    /// No footage.
    pub gaps: Vec<TimelineGap>,
}

/// Footage without interruption.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TimelineRange {
    /// Its first frame.
    #[schema(value_type = String, format = DateTime)]
    pub start: Timestamp,
    /// The end of its last frame.
    #[schema(value_type = String, format = DateTime)]
    pub end: Timestamp,
}

/// No footage, and why.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TimelineGap {
    /// The end of the last frame before it.
    #[schema(value_type = String, format = DateTime)]
    pub start: Timestamp,
    /// The first frame after it.
    #[schema(value_type = String, format = DateTime)]
    pub end: Timestamp,
    /// A word for programs.
    #[schema(example = "connection-lost")]
    pub code: String,
    /// A sentence for people.
    pub message: String,
}

impl Camera {
    /// As it is put on the board: without what changes with every frame, or each change of nothing
    /// would be told to every browser.
    pub fn calm(camera: &recording::Camera) -> Self {
        let status = &camera.status;
        Camera {
            id: camera.id,
            hardware: camera.hardware,
            serial: camera.serial.to_string(),
            name: camera.name.clone(),
            status: CameraStatus {
                state: status.state,
                since: status.since,
                problem: status.problem.clone().map(Into::into),
                bitrate_bps: None,
                last_frame: None,
            },
        }
    }
}

impl Hardware {
    /// As it is put on the board: its cameras are things of their own there.
    pub fn calm(hardware: &recording::Hardware) -> Self {
        Hardware {
            id: hardware.id,
            name: hardware.name.clone(),
            device: match &hardware.device {
                recording::DeviceAddress::Tunnel { server, serial } => {
                    DeviceAddress::Tunnel { server: server.clone(), serial: serial.to_string() }
                }
                recording::DeviceAddress::Direct { host } => DeviceAddress::Direct { host: host.clone() },
                recording::DeviceAddress::Rtsp { url } => DeviceAddress::Rtsp { url: url.clone() },
            },
            serial: hardware.serial.to_string(),
            model: hardware.model.clone(),
            cameras: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use homing_protocol::SerialNumber;
    use serde_json::json;

    fn at_the_tunnel_server(connected: bool, relay: tunnel::RelayState, step: Step) -> tunnel::Device {
        tunnel::Device {
            serial: SerialNumber::new([0, 0x40, 0x8C, 0x70, 0x20, 0x09]),
            name: "Gate".into(),
            description: String::new(),
            site: None,
            user: "root".into(),
            step,
            relay,
            connected,
            since: None,
            peer: None,
            rtt_ms: None,
            bytes_in: 0,
            bytes_out: 0,
            problem: None,
            moving: None,
            contested: None,
            own_password: false,
            access: Default::default(),
            bps_in: 0,
            bps_out: 0,
            uplinks: Vec::new(),
            last_problem: None,
        }
    }

    #[test]
    fn colour_word_and_step_follow_from_uplink_and_hardware() {
        use tunnel::RelayState::{Dispatched, Waiting};
        for (connected, relay, step, hardware, expected) in [
            (false, Waiting, Step::Relay, None, ("red", "Not connected", Step::Relay)),
            (true, Dispatched, Step::Tunnel, None, ("yellow", "Ready to add", Step::Tunnel)),
            (true, Dispatched, Step::Tunnel, Some(1), ("green", "Connected", Step::Add)),
            (false, Dispatched, Step::Tunnel, Some(1), ("green", "Offline", Step::Add)),
            (false, Waiting, Step::PhoneHome, Some(1), ("green", "Offline", Step::PhoneHome)),
        ] {
            let device = Device::new("sts", &at_the_tunnel_server(connected, relay, step), hardware);
            assert_eq!((device.state.as_str(), device.word.as_str(), device.step), expected);
            assert_eq!(device.step_number, expected.2.number());
        }
    }

    /// Read as `protocol` types it, written by that, read and written by the view: nothing is lost.
    fn assert_described<Typed, View>(sent: serde_json::Value)
    where
        Typed: serde::de::DeserializeOwned + Serialize,
        View: serde::de::DeserializeOwned + Serialize,
    {
        let typed = serde_json::to_value(serde_json::from_value::<Typed>(sent.clone()).unwrap()).unwrap();
        assert_eq!(typed, sent);
        let described = serde_json::to_value(serde_json::from_value::<View>(typed).unwrap()).unwrap();
        assert_eq!(described, sent);
    }

    #[test]
    fn timelines_and_changes_are_described_as_the_recording_server_has_them() {
        assert_described::<recording::CameraChange, CameraChange>(json!({"name": "Gate"}));
        assert_described::<recording::Timeline, Timeline>(json!({
            "start": "2026-11-21T12:00:00Z", "end": "2026-11-21T13:00:00Z",
            "ranges": [{"start": "2026-11-21T12:00:00Z", "end": "2026-11-21T12:30:00Z"}],
            "gaps": [{"start": "2026-11-21T12:30:00Z", "end": "2026-11-21T13:00:00Z",
                "code": "connection-lost", "message": "The device went away."}],
        }));
    }

    /// A field that `protocol` has and the view has not would be missing from the document.
    #[test]
    fn hardware_is_described_as_the_recording_server_sends_it() {
        let sent = json!({
            "id": 1, "name": "Gate", "device": {"via": "tunnel", "server": "sts", "serial": "00408C702009"},
            "serial": "00408C702009", "model": "Homing Simulated",
            "cameras": [{"id": 2, "hardware": 1, "serial": "00408C702009", "name": "Gate", "status": {
                "state": "error", "since": "2026-11-21T12:00:00Z", "bitrate_bps": 512_000u64,
                "last_frame": "2026-11-21T12:00:00Z",
                "problem": {"code": "away", "message": "The device is away.", "step": "tunnel"}}}],
        });
        assert_described::<recording::Hardware, Hardware>(sent);
    }
}
