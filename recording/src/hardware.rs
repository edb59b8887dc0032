//! Add Hardware (step 8): ask a device who it is and what it shows, and make cameras of its channels.
//!
//! 1. ONVIF GetDeviceInformation, GetServices, Media2 GetProfiles and GetStreamUri, as the given user; for a plain
//!    RTSP address a session is opened and closed instead. Through a tunnel it must have RTSP over WebSocket or HTTP.
//! 2. Of each channel (video source) the best H.264 profile is taken.
//!
//! Not here: storing what was found.
//!
//! Every failure names the device, and what to check; the API shows it as it is.

use std::time::Duration;

use bytes::Bytes;
use homing_base::http::Failure;
use homing_base::onvif::{Carrier, Device, DeviceError};
use homing_base::rtsp::SessionError;
use homing_protocol::api::Problem;
use homing_protocol::api::recording::{DeviceAddress, NewHardware};
use homing_protocol::onvif::device::{GetDeviceInformation, Services, media2_path};
use homing_protocol::onvif::media2::{self, GetProfiles, GetStreamUri};
use homing_protocol::onvif::{DEVICE_PATH, MEDIA2_NS, MEDIA2_PATH};
use homing_protocol::secret::Credentials;
use homing_protocol::{SerialNumber, Step};
use http::{Request, Response, StatusCode};
use sha2::{Digest as _, Sha256};

use crate::camera::RTSP_PORT;
use crate::connect::{ConnectError, Connectors, describe};
use crate::rtsp::{self, OpenError};

/// For each question.
const CALL_DEADLINE: Duration = Duration::from_secs(15);

/// Channels of one device; larger encoders are several devices.
const MAX_CHANNELS: usize = 64;

/// What a device told of itself.
pub(crate) struct Found {
    pub serial: SerialNumber,
    pub model: String,
    /// Name and stream URL.
    pub channels: Vec<(String, String)>,
}

/// Carries requests to one device.
struct ToDevice<'a> {
    connectors: &'a Connectors,
    device: &'a DeviceAddress,
}

impl Carrier for ToDevice<'_> {
    type Error = ConnectError;

    async fn carry(&self, request: Request<Bytes>) -> Result<Response<Bytes>, ConnectError> {
        self.connectors.request(self.device, request).await
    }
}

/// Asks a device.
///
/// # Errors
/// With the status and the words for whoever adds it.
pub(crate) async fn ask(connectors: &Connectors, new: &NewHardware) -> Result<Found, Failure> {
    let credentials = Credentials::new(new.user.clone(), new.password.clone());
    if let DeviceAddress::Rtsp { url } = &new.device {
        return ask_rtsp(connectors, new, url, credentials).await;
    }
    let host = match &new.device {
        DeviceAddress::Tunnel { serial, .. } => serial.host(),
        DeviceAddress::Direct { host } => host.clone(),
        DeviceAddress::Rtsp { url } => url.clone(),
    };
    let carrier = ToDevice { connectors, device: &new.device };
    let mut device = Device::new(carrier, host, credentials, CALL_DEADLINE);
    let failed = |error: DeviceError<ConnectError>| device_failure(new, &error);

    let information = device.call(DEVICE_PATH, &GetDeviceInformation).await.map_err(failed)?;
    let serial = serial(&new.device, &information.serial_number)?;
    let services = device.services().await.map_err(failed)?;
    let media = media2_path(&services).unwrap_or_else(|| MEDIA2_PATH.to_owned());
    let profiles = device.call(&media, &GetProfiles::all()).await.map_err(failed)?;
    if let (DeviceAddress::Tunnel { .. }, Some(profile)) = (&new.device, profiles.0.first()) {
        check_rtsp(&mut device, &services, &media, &profile.token, new).await?;
    }
    let mut best = media2::best_profiles(&profiles.0);
    best.truncate(MAX_CHANNELS);
    if best.is_empty() {
        let message = format!("{} has no H.264 stream; switch one on in it", describe(&new.device));
        return Err(failure(StatusCode::UNPROCESSABLE_ENTITY, "no-video", message));
    }
    let mut channels = Vec::with_capacity(best.len());
    for (number, profile) in (1..).zip(&best) {
        let answer = device.call(&media, &GetStreamUri::rtsp(&profile.token)).await.map_err(failed)?;
        let name = if best.len() == 1 { new.name.clone() } else { format!("{} {number}", new.name) };
        channels.push((name, stream_url(&new.device, &answer.0)?));
    }
    let model = [information.manufacturer.as_str(), information.model.as_str()].join(" ");
    Ok(Found { serial, model: model.trim().chars().take(200).collect(), channels })
}

/// Pictures come through a tunnel by RTSP over WebSocket or HTTP; a device with neither is named here, not when its
/// recording stays empty.
async fn check_rtsp(
    device: &mut Device<ToDevice<'_>>,
    services: &Services,
    media: &str,
    profile: &str,
    new: &NewHardware,
) -> Result<(), Failure> {
    let Some(named) = services.find(MEDIA2_NS) else { return Ok(()) };
    let told = match &named.capabilities {
        Some(told) => media2::ServiceCapabilities::from_capabilities(told),
        None => match device.call(media, &media2::GetServiceCapabilities).await {
            Ok(told) => told,
            Err(error) => return Err(device_failure(new, &error)),
        },
    };
    if told.rtsp_web_socket_uri.is_some() {
        return Ok(());
    }
    let cause = match device.call(media, &GetStreamUri::rtsp_over_http(profile)).await {
        Ok(_) => return Ok(()),
        Err(cause @ (DeviceError::Answer(_) | DeviceError::Status(_))) => cause,
        Err(error) => return Err(device_failure(new, &error)),
    };
    let message = format!(
        "{} has no RTSP over WebSocket, nor over HTTP ({cause}), by which pictures come through a tunnel; check its \
         firmware, or put a site agent in front of it",
        describe(&new.device)
    );
    Err(failure(StatusCode::UNPROCESSABLE_ENTITY, "no-rtsp-over-websocket", message))
}

async fn ask_rtsp(
    connectors: &Connectors,
    new: &NewHardware,
    url: &str,
    credentials: Credentials,
) -> Result<Found, Failure> {
    let parsed = parse_rtsp(url)?;
    let open = async {
        let port = parsed.port().unwrap_or(RTSP_PORT);
        let stream = connectors.connect(&new.device, port).await.map_err(|error| connect_failure(&error))?;
        let (session, _) =
            rtsp::open(stream, url, credentials).await.map_err(|error| session_failure(&error))?;
        session.close().await;
        Ok(())
    };
    tokio::time::timeout(CALL_DEADLINE, open).await.unwrap_or_else(|_| {
        let message = format!("{url} did not answer within {} s", CALL_DEADLINE.as_secs());
        Err(failure(StatusCode::GATEWAY_TIMEOUT, "no-answer", message))
    })?;
    let channels = vec![(new.name.clone(), url.to_owned())];
    Ok(Found { serial: made_up_serial(url), model: "RTSP".to_owned(), channels })
}

/// An RTSP URL is sent as it was told, in a request's first line: what is no one word would begin another header.
fn fits_a_line(url: &str) -> bool {
    !url.chars().any(|c| c.is_control() || c.is_whitespace())
}

fn parse_rtsp(url: &str) -> Result<url::Url, Failure> {
    let wrong =
        |what: &str| failure(StatusCode::BAD_REQUEST, "bad-address", format!("the RTSP address {what}"));
    let parsed = url::Url::parse(url).map_err(|error| wrong(&format!("is no URL: {error}")))?;
    if parsed.scheme() != "rtsp" {
        return Err(wrong("must begin with rtsp://"));
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err(wrong("must not hold user and password; give them in their own fields"));
    }
    if !fits_a_line(url) {
        return Err(wrong("holds spaces or control characters; write them as %20 and so on"));
    }
    if parsed.host_str().is_none_or(str::is_empty) {
        return Err(wrong("names no host"));
    }
    Ok(parsed)
}

/// A device's own serial number where it is a MAC address; through a tunnel it must be the registered one.
fn serial(device: &DeviceAddress, told: &str) -> Result<SerialNumber, Failure> {
    let told_serial = told.trim().parse::<SerialNumber>().ok();
    match device {
        DeviceAddress::Tunnel { serial, .. } if told_serial == Some(*serial) => Ok(*serial),
        DeviceAddress::Tunnel { serial, .. } => {
            let told: String = told.chars().take(40).collect();
            let message = format!(
                "the device behind {serial} says that its serial number is {told:?}; check its registration"
            );
            Err(failure(StatusCode::CONFLICT, "wrong-serial", message))
        }
        // Other makers number their devices as they like.
        _ => Ok(told_serial.unwrap_or_else(|| made_up_serial(&format!("{}/{told}", describe(device))))),
    }
}

/// A locally administered address: for what has none of its own.
fn made_up_serial(of: &str) -> SerialNumber {
    let hash = Sha256::digest(of);
    SerialNumber::new([hash[0] & 0xfc | 2, hash[1], hash[2], hash[3], hash[4], hash[5]])
}

/// The URL that the device names, without user and password. Its host is the site's, and is only said back
/// to the device; for a device on the LAN it must at least be a URL.
fn stream_url(device: &DeviceAddress, told: &str) -> Result<String, Failure> {
    let unusable = || {
        let told: String = told.chars().take(100).collect();
        let message = format!("{} names a stream address that is unusable: {told:?}", describe(device));
        failure(StatusCode::BAD_GATEWAY, "bad-stream-address", message)
    };
    let url = url::Url::parse(told.trim()).map_err(|_| unusable())?;
    if url.scheme() != "rtsp" || url.host_str().is_none() || !fits_a_line(told.trim()) {
        return Err(unusable());
    }
    if url.username().is_empty() && url.password().is_none() {
        return Ok(told.trim().to_owned());
    }
    let mut bare = url;
    let stripped = bare.set_username("").and_then(|()| bare.set_password(None));
    stripped.map(|()| bare.to_string()).map_err(|()| unusable())
}

fn device_failure(new: &NewHardware, error: &DeviceError<ConnectError>) -> Failure {
    let device = describe(&new.device);
    match error {
        DeviceError::Carrier(error) => connect_failure(error),
        DeviceError::Timeout(_) => {
            failure(StatusCode::GATEWAY_TIMEOUT, "no-answer", format!("{device}: {error}"))
        }
        DeviceError::WrongCredentials => {
            let message = format!(
                "{device} does not accept the user name and password; check both, and that the user is an administrator"
            );
            failure(StatusCode::UNPROCESSABLE_ENTITY, "wrong-credentials", message)
        }
        other => {
            let message = format!("{device}: {other}; check that ONVIF is switched on in it");
            failure(StatusCode::BAD_GATEWAY, "unexpected-answer", message)
        }
    }
}

fn connect_failure(error: &ConnectError) -> Failure {
    let status = match error {
        ConnectError::UnknownServer(_) | ConnectError::RtspOnly(_) => StatusCode::BAD_REQUEST,
        ConnectError::NotConnected { .. } | ConnectError::Reported(_) => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_GATEWAY,
    };
    failure(status, error.code(), error.to_string())
}

fn session_failure(error: &OpenError) -> Failure {
    let problem = error.problem();
    let status = match error {
        OpenError::Session(SessionError::WrongCredentials) | OpenError::NoVideo(_) => {
            StatusCode::UNPROCESSABLE_ENTITY
        }
        OpenError::Session(SessionError::Timeout { .. }) => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::BAD_GATEWAY,
    };
    failure(status, &problem.code, problem.message)
}

fn failure(status: StatusCode, code: &str, message: String) -> Failure {
    Failure::new(status, Problem::at(Step::Add, code, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a device through a tunnel must be the registered one; others get a stable number of their own.
    #[test]
    fn serial_numbers() {
        let serial_number: SerialNumber = "00408C702009".parse().unwrap();
        let tunnel = DeviceAddress::Tunnel { server: "sts".into(), serial: serial_number };
        assert_eq!(serial(&tunnel, "00:40:8c:70:20:09").unwrap(), serial_number);
        let error = serial(&tunnel, "ACCC8E000000").unwrap_err().problem.error;
        assert_eq!((error.code.as_str(), error.step), ("wrong-serial", Some(Step::Add)));
        let direct = DeviceAddress::Direct { host: "10.0.0.9".into() };
        let made_up = serial(&direct, "DS-2CD2042-I").unwrap();
        assert_eq!(made_up, serial(&direct, "DS-2CD2042-I").unwrap());
        assert_eq!(made_up.mac()[0] & 3, 2, "locally administered, not multicast");
    }

    /// Goal: passwords never stay in addresses.
    #[test]
    fn addresses_without_passwords() {
        let direct = DeviceAddress::Direct { host: "cam".into() };
        assert_eq!(stream_url(&direct, "rtsp://root:pass@cam:554/a?b=1").unwrap(), "rtsp://cam:554/a?b=1");
        assert_eq!(stream_url(&direct, "rtsp://cam/a").unwrap(), "rtsp://cam/a");
        assert_eq!(stream_url(&direct, "http://cam/a").unwrap_err().problem.error.code, "bad-stream-address");
        let refused = parse_rtsp("rtsp://root:secret@cam/a").unwrap_err().problem.error;
        assert!(refused.message.contains("own fields") && !refused.message.contains("secret"));
        // URL parsers skip line ends; a request's first line does not.
        let split = "rtsp://cam/a RTSP/1.0\r\nX-Mine: 1";
        assert!(stream_url(&direct, split).is_err() && parse_rtsp(split).is_err());
        assert!(stream_url(&direct, "rtsp://cam/a\nb").is_err() && parse_rtsp("rtsp://cam/a\tb").is_err());
        assert!(parse_rtsp("http://cam/").is_err() && parse_rtsp("rtsp:///x").is_err());
    }
}
