//! Reaching a device through its uplink: for the proxy, and in process for a recording server beside us.
//!
//! Invariant: every failure names the device, its state and the step it has reached, and what to check.

use crate::{
    devices::{Connected, Devices},
    events::Events,
    registrations::relay_word,
    rtsp::{self, NoRtsp, RtspStream},
};
use bytes::Bytes;
use homing_base::http::Failure;
use homing_protocol::{
    SerialNumber, Step,
    api::{
        Problem,
        tunnel::{Device, MoveState, RelayState},
    },
    secret::Credentials,
};
use homing_uplink::{Body, RequestError};
use http::{Request, Response, StatusCode};
use std::sync::Arc;
use tokio::runtime::Handle;

/// The tunnel server in process: what its internal address offers, without a socket between. Cheap to clone; stays
/// usable, and says that nothing is connected, after the server has ended.
#[derive(Clone)]
pub struct TunnelHandle {
    name: Arc<str>,
    devices: Arc<Devices>,
}

/// An RTSP connection to a device: bytes both ways, as over TCP.
#[derive(Debug)]
pub struct RtspLink {
    /// RTSP with interleaved RTP; `AsyncRead + AsyncWrite`. Each write is a packet of its own: gather them.
    pub stream: RtspStream,
    /// The single-threaded runtime that everything of this device runs on: spawn what reads from `stream` there, and
    /// a frame costs no switch between threads.
    pub worker: Handle,
}

/// Why a device was not reached.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// Its serial number is not registered here.
    #[error("No device with the serial number {0} is registered at this tunnel server.")]
    NotRegistered(SerialNumber),
    /// There is no uplink.
    #[error("{device} is not connected; {state} {check}")]
    NotConnected {
        /// Serial number and name.
        device: String,
        /// How far it has come.
        state: String,
        /// What to check.
        check: String,
    },
    /// There is an uplink, and the request failed.
    #[error("{device} is connected ({}), but {error}.", Step::Tunnel)]
    Request {
        /// Serial number and name.
        device: String,
        /// Why.
        error: RequestError,
    },
    /// There is an uplink, and RTSP was not to be had.
    #[error("{device} is connected ({}), but gives no RTSP: {cause}.", Step::Tunnel)]
    Rtsp {
        /// Serial number and name.
        device: String,
        /// Why.
        cause: String,
        /// The same for a status.
        kind: NoRtsp,
    },
}

impl ReachError {
    /// The status of a proxy's answer: 400 for a request that cannot be sent, 504 when the device took too long, else
    /// 502.
    pub fn status(&self) -> StatusCode {
        match self {
            ReachError::Request { error: RequestError::Invalid(_), .. } => StatusCode::BAD_REQUEST,
            ReachError::Request {
                error: RequestError::Timeout { .. } | RequestError::NoFreeStream { .. },
                ..
            }
            | ReachError::Rtsp { kind: NoRtsp::Timeout, .. } => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::BAD_GATEWAY,
        }
    }

    /// The same as a message of the API: `not-registered`, `not-connected`, `device-failed`, `device-timeout`.
    pub fn problem(&self) -> Problem {
        let (step, code) = match self {
            ReachError::NotRegistered(_) => (Step::Register, "not-registered"),
            ReachError::NotConnected { .. } => (Step::Tunnel, "not-connected"),
            _ if self.status() == StatusCode::GATEWAY_TIMEOUT => (Step::Tunnel, "device-timeout"),
            _ => (Step::Tunnel, "device-failed"),
        };
        Problem::at(step, code, self.to_string())
    }
}

impl From<ReachError> for Failure {
    fn from(error: ReachError) -> Self {
        Failure::new(error.status(), error.problem())
    }
}

impl TunnelHandle {
    pub(crate) fn new(name: &str, devices: Arc<Devices>) -> Self {
        TunnelHandle { name: name.into(), devices }
    }

    /// The tunnel server's name, as configured.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How a device is now; `None` if it is not registered.
    pub fn device(&self, serial: SerialNumber) -> Option<Device> {
        self.devices.get(serial)
    }

    /// Follows all devices from now on.
    pub fn subscribe(&self) -> Events {
        self.devices.subscribe()
    }

    /// Sends a request to a device and waits for the head of its answer. The URI may be a path alone. The device may
    /// ask for its own user and password (Digest): that is the caller's to answer.
    ///
    /// # Errors
    /// See [`ReachError`].
    pub async fn request(
        &self,
        serial: SerialNumber,
        request: Request<Bytes>,
    ) -> Result<Response<Body>, ReachError> {
        let connected = self.connected(serial)?;
        connected.uplink.request(request).await.map_err(|error| self.request_failed(serial, error))
    }

    /// As [`TunnelHandle::request`], with a body that is sent as it comes, with back-pressure.
    ///
    /// # Errors
    /// See [`ReachError`].
    pub async fn request_streaming<B>(
        &self,
        serial: SerialNumber,
        request: Request<B>,
    ) -> Result<Response<Body>, ReachError>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::fmt::Display + Send,
    {
        let connected = self.connected(serial)?;
        let answered = connected.uplink.request_streaming(request).await;
        answered.map_err(|error| self.request_failed(serial, error))
    }

    /// Opens RTSP to a device: RTSP over WebSocket (`rtsp.onvif.org`) by extended CONNECT, or else RTSP over HTTP. What the
    /// device has, and where, is asked once per uplink, with the registered credentials.
    ///
    /// # Errors
    /// See [`ReachError`].
    pub async fn open_rtsp(&self, serial: SerialNumber) -> Result<RtspLink, ReachError> {
        let connected = self.connected(serial)?;
        let way = connected.rtsp_way.get_or_try_init(|| async {
            rtsp::find(&connected.uplink, serial.host(), self.credentials(serial).await?).await
        });
        let opened = match way.await {
            Ok(way) => rtsp::open(&connected.uplink, way, serial.host(), self.credentials(serial)).await,
            Err(refused) => Err(refused),
        };
        let stream = opened.map_err(|refused| self.no_rtsp(serial, refused))?;
        Ok(RtspLink { stream, worker: connected.worker.clone() })
    }

    /// The URL of the stream that a device names first, as it names it; asked once per uplink.
    pub(crate) async fn first_stream(&self, serial: SerialNumber) -> Result<String, ReachError> {
        let connected = self.connected(serial)?;
        let asked = connected.first_stream.get_or_try_init(|| async {
            rtsp::first_stream(&connected.uplink, serial.host(), self.credentials(serial).await?).await
        });
        asked.await.cloned().map_err(|refused| self.no_rtsp(serial, refused))
    }

    fn no_rtsp(&self, serial: SerialNumber, rtsp::Refused { cause, kind }: rtsp::Refused) -> ReachError {
        ReachError::Rtsp { device: self.called(serial), cause, kind }
    }

    /// The runtime that everything of this device runs on; `None` while it is not connected.
    pub fn worker(&self, serial: SerialNumber) -> Option<Handle> {
        Some(self.devices.connected(serial)?.worker.clone())
    }

    /// A device's own user and password as they are now, for who reaches it with older ones.
    ///
    /// # Errors
    /// When it is not registered, or its password cannot be read.
    pub async fn credentials(&self, serial: SerialNumber) -> Result<Credentials, String> {
        let secrets = self.devices.store().secrets(serial).await.map_err(|error| format!("{error:#}"))?;
        Ok(secrets.ok_or("its registration was deleted")?.credentials)
    }

    /// The best uplink of a device.
    pub(crate) fn connected(&self, serial: SerialNumber) -> Result<Arc<Connected>, ReachError> {
        self.devices.connected(serial).ok_or_else(|| match self.devices.get(serial) {
            None => ReachError::NotRegistered(serial),
            Some(device) => not_connected(&device),
        })
    }

    fn request_failed(&self, serial: SerialNumber, error: RequestError) -> ReachError {
        match (error, self.devices.get(serial)) {
            (RequestError::Ended(_), Some(device)) if !device.connected => not_connected(&device),
            (error, device) => {
                let device = device.map_or_else(|| serial.to_string(), |device| called(&device));
                ReachError::Request { device, error }
            }
        }
    }

    fn called(&self, serial: SerialNumber) -> String {
        self.devices.get(serial).map_or_else(|| serial.to_string(), |device| called(&device))
    }
}

fn called(device: &Device) -> String {
    if device.name == device.serial.to_string() {
        format!("The device {}", device.serial)
    } else {
        format!("The device {} ({})", device.serial, device.name)
    }
}

fn not_connected(device: &Device) -> ReachError {
    if let Some(moving) = device.moving.as_ref().filter(|moving| moving.state == MoveState::Moved) {
        return ReachError::NotConnected {
            device: called(device),
            state: format!("it was moved to another tunnel server, {}.", moving.servers.join(", ")),
            check: "Reach it there.".to_owned(),
        };
    }
    let check = match (&device.problem, device.relay) {
        (Some(problem), _) => problem.message.clone(),
        (None, RelayState::Pending) => {
            "It is not known at the dispatcher yet; that is tried by itself.".to_owned()
        }
        (None, RelayState::Waiting) => "Press its button.".to_owned(),
        (None, RelayState::Dispatching) => "The dispatcher is about to send it here.".to_owned(),
        (None, RelayState::Dispatched | RelayState::Refused) => {
            "Check its power and its network, then what its own page says.".to_owned()
        }
    };
    let since = device.since.map_or(String::new(), |since| format!(" since {since:.0}"));
    ReachError::NotConnected {
        device: called(device),
        state: format!(
            "its last step was {}{since}, at the dispatcher it is {}.",
            device.step,
            relay_word(device.relay)
        ),
        check,
    }
}
