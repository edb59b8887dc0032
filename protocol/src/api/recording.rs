//! What a management server asks a recording server (step 8 and everything after).

use super::ProblemDetail;
use crate::{Secret, SerialNumber};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How a recording server reaches a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "via", rename_all = "kebab-case", deny_unknown_fields)]
pub enum DeviceAddress {
    /// Through a tunnel server that the recording server knows by this name.
    Tunnel {
        /// The tunnel server's name.
        server: String,
        /// The device's serial number.
        serial: SerialNumber,
    },
    /// On the recording server's own network.
    Direct {
        /// `host` or `host:port` of the device's HTTP (ONVIF) service.
        host: String,
    },
    /// On the recording server's own network, an RTSP server without ONVIF. Its serial number is made
    /// from the URL: a locally administered address.
    Rtsp {
        /// `rtsp://host[:port]/path`, without user and password.
        url: String,
    },
}

/// `PATCH /api/v1/hardware/{id}`: its device went to another tunnel server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HardwareChange {
    /// The tunnel server's name.
    pub server: String,
}

/// `PUT /api/v1/tunnel-servers/{name}`: how the devices of a tunnel server are reached, until `DELETE` or the process
/// ends. The management server tells it at every start, and whenever it changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Way {
    /// Its internal address, `http://host:port` or `https://host:port`.
    pub url: String,
    /// Its user; empty: it asks for none.
    #[serde(default)]
    pub user: String,
    /// That user's password.
    #[serde(default)]
    pub password: Secret,
    /// PEM of what its certificate is trusted by, with `https`; empty: the public web's.
    #[serde(default)]
    pub trust_anchor: String,
}

/// Add Hardware.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewHardware {
    /// How to reach it.
    pub device: DeviceAddress,
    /// Its user.
    pub user: String,
    /// That user's password.
    pub password: Secret,
    /// What people call it.
    pub name: String,
}

/// A device that was added, with its channels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hardware {
    /// Stable for as long as the hardware exists.
    pub id: i64,
    /// Name.
    pub name: String,
    /// How it is reached.
    pub device: DeviceAddress,
    /// As the device told it.
    pub serial: SerialNumber,
    /// Manufacturer and model, as the device told them.
    pub model: String,
    /// One a channel.
    pub cameras: Vec<Camera>,
}

/// One channel of a hardware.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Camera {
    /// Stable for as long as the camera exists; never used again.
    pub id: i64,
    /// The hardware that it is a channel of.
    pub hardware: i64,
    /// Serial number of the device.
    pub serial: SerialNumber,
    /// Name.
    pub name: String,
    /// How it is now.
    pub status: CameraStatus,
}

/// Whether a camera delivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CameraState {
    /// Trying to reach it.
    Connecting,
    /// Frames arrive and are recorded.
    Recording,
    /// Away or refusing; `problem` says why; tried again by itself.
    Error,
}

/// How a camera is now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CameraStatus {
    /// Whether it delivers.
    pub state: CameraState,
    /// Since when.
    pub since: Timestamp,
    /// Why it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<ProblemDetail>,
    /// Over the last seconds, bits a second.
    pub bitrate_bps: u64,
    /// When the last frame arrived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_frame: Option<Timestamp>,
}

/// `PATCH /api/v1/cameras/{id}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CameraChange {
    /// What people call it.
    pub name: String,
}

/// `GET /api/v1/cameras/{id}/timeline`: what was recorded, and what was not, in order. Together the
/// ranges and the gaps cover the time from `start` to `end`, as far as the camera existed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timeline {
    /// As asked for, or the camera's first and last moment.
    pub start: Timestamp,
    /// As asked for, or now.
    pub end: Timestamp,
    /// Footage without interruption.
    pub ranges: Vec<TimelineRange>,
    /// No footage.
    pub gaps: Vec<TimelineGap>,
}

/// Footage without interruption.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineRange {
    /// Its first frame.
    pub start: Timestamp,
    /// The end of its last frame.
    pub end: Timestamp,
}

/// No footage, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineGap {
    /// The end of the last frame before it.
    pub start: Timestamp,
    /// The first frame after it.
    pub end: Timestamp,
    /// A word for programs: `connection-lost`, `packets-lost`, `server-stopped`, `expired`, … `unknown`.
    pub code: String,
    /// A sentence for people.
    pub message: String,
}

/// Header names of the answer to `GET /api/v1/cameras/{id}/fragment`.
pub mod fragment_headers {
    /// Time of the fragment's first frame, RFC 3339 with nanoseconds.
    pub const START: &str = "x-homing-start";
    /// Where its last frame ends.
    pub const END: &str = "x-homing-end";
    /// The initialisation segment that it needs: `GET /api/v1/cameras/{id}/init/{this}`.
    pub const INIT: &str = "x-homing-init";
    /// What to ask for next: `time=` of the following fragment. Absent when there is none yet. Later than
    /// `END` where there is a gap.
    pub const NEXT: &str = "x-homing-next";
    /// The MIME type with codecs of the initialisation segment, also on the answer to `init`.
    pub const MIME: &str = "x-homing-mime";
}

/// Text messages of `GET /api/v1/cameras/{id}/live` (WebSocket). After `start` the next binary message is
/// the initialisation segment, each one after that a fragment: the current group of pictures first, then a
/// frame each. Decode times are unix time × timescale.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum LiveMessage {
    /// A stream begins, or begins anew with other properties: make a new source buffer.
    Start {
        /// The camera.
        camera: i64,
        /// `video/mp4; codecs="…"`.
        mime: String,
        /// Time of the first frame that follows.
        time: Timestamp,
    },
    /// The camera delivers nothing; a `start` follows when it does again.
    Waiting {
        /// For programs.
        code: String,
        /// For people.
        reason: String,
    },
    /// This viewer was too slow; so many frames were left out, and it goes on with a key frame.
    Skipped {
        /// Left out.
        frames: u64,
    },
}
