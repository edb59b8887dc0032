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
