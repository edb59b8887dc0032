//! What people order a connected device to do: to dial again, or to restart.
//!
//! Not here: where it dials (`errands.rs`).

use crate::{devices::Devices, reach::TunnelHandle, relay::not_registered, rtsp::Through};
use homing_base::{
    http::Failure,
    onvif::{Device, DeviceError},
};
use homing_protocol::{
    SerialNumber, Step,
    api::Problem,
    onvif::{self, device::SystemReboot},
};
use http::{Method, StatusCode};
use std::time::Duration;

/// For each question to the device.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// VAPIX: for devices without ONVIF's way.
const RESTART_PATH: &str = "/axis-cgi/restart.cgi";

/// Ends a device's uplinks: it dials again by itself.
///
/// # Errors
/// When it is not registered, or not connected.
pub(crate) fn reconnect(
    tunnel: &TunnelHandle,
    devices: &Devices,
    serial: SerialNumber,
) -> Result<(), Failure> {
    devices.record(serial).ok_or_else(|| not_registered(serial))?;
    tunnel.connected(serial)?;
    devices.hang_up(serial, "it was ordered to dial again");
    tracing::info!(step = %Step::Tunnel, %serial, "ordered to dial again");
    Ok(())
}

/// Has a device restart, with the registered user and password.
///
/// # Errors
/// When it is not registered or not connected, or does not take the order.
pub(crate) async fn restart(
    tunnel: &TunnelHandle,
    devices: &Devices,
    serial: SerialNumber,
) -> Result<(), Failure> {
    devices.record(serial).ok_or_else(|| not_registered(serial))?;
    let connected = tunnel.connected(serial)?;
    let credentials = tunnel.credentials(serial).await.map_err(anyhow::Error::msg)?;
    // Basic is all that some devices know; it travels inside TLS, to a key that was vouched for.
    let mut device =
        Device::new(Through(&connected.uplink), serial.host(), credentials, ANSWER_DEADLINE).allow_basic();
    let mut told = device.call(onvif::DEVICE_PATH, &SystemReboot).await.map(drop);
    if let Err(DeviceError::Answer(_) | DeviceError::Status(_)) = told {
        let by_vapix = device.send(Method::GET, RESTART_PATH, "text/plain", Default::default()).await;
        if by_vapix.is_ok_and(|answer| answer.status().is_success()) {
            told = Ok(());
        }
    }
    match told {
        // Some are gone before they have answered.
        Err(DeviceError::Carrier(_) | DeviceError::Timeout(_)) if connected.uplink.is_closed() => (),
        Ok(()) => (),
        Err(error) => {
            let timeout = matches!(error, DeviceError::Timeout(_));
            let (status, code) = match timeout {
                true => (StatusCode::GATEWAY_TIMEOUT, "device-timeout"),
                false => (StatusCode::BAD_GATEWAY, "device-failed"),
            };
            let message = format!("The device {serial} is connected, but does not restart: {error}.");
            return Err(Failure::new(status, Problem::at(Step::Tunnel, code, message)));
        }
    }
    tracing::info!(step = %Step::Tunnel, %serial, "ordered to restart");
    Ok(())
}
