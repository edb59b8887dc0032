//! What happens in the demo by itself: all cameras but the last are registered, press their buttons a
//! few seconds apart, and are added once they are ready.
//!
//! All of it goes through the management server's API and the agents' buttons, as a script's would. A
//! camera that was added in an earlier run is left alone.

use super::{CameraDescription, Description};
use anyhow::{Context, anyhow};
use homing_base::{
    Stop,
    client::{ApiClient, Auth, CallError},
};
use homing_protocol::SerialNumber;
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;
use std::time::Duration;

/// Between one button and the next, so that the flow can be watched.
const BETWEEN_PRESSES: Duration = Duration::from_secs(3);

/// Between looks at the devices' states.
const LOOK: Duration = Duration::from_millis(500);

/// How long a device stays yellow before it is added, so that yellow is seen.
const SEEN_YELLOW: Duration = Duration::from_secs(2);

#[derive(Deserialize)]
struct TunnelServer {
    reachable: bool,
}

#[derive(Deserialize)]
struct Device {
    serial: SerialNumber,
    state: String,
}

/// Tells the story until its end or the demo's.
pub(super) async fn tell(demo: Description, stop: Stop) {
    let told = tokio::select! {
        told = story(&demo) => told,
        () = stop.leaving() => return,
    };
    // Whoever leaves hears no more of the servers that leave with him.
    if let Err(error) = told
        && !stop.is_leaving()
    {
        tracing::error!(error = format!("{error:#}"), "the demo's cameras were not all set up");
    }
}

async fn story(demo: &Description) -> anyhow::Result<()> {
    let api = ApiClient::new("management server", &demo.url, &Auth::Bearer(demo.token.clone()), None)?;
    let (_, by_themselves) = demo.cameras.split_last().context("at least one camera")?;
    let known = known(&api).await?;
    let new: Vec<&CameraDescription> = by_themselves
        .iter()
        .filter(|camera| {
            !known.iter().any(|device| device.serial == camera.serial && device.state == "green")
        })
        .collect();
    let is_registered =
        |camera: &CameraDescription| known.iter().any(|device| device.serial == camera.serial);
    for camera in new.iter().filter(|camera| !is_registered(camera)) {
        register(&api, camera).await.with_context(|| format!("registering {}", camera.name))?;
    }
    tokio::try_join!(press_all(&new), add_all(&api, &new))?;
    Ok(())
}

/// The devices of an earlier run: known as soon as the management server has reached the tunnel server.
async fn known(api: &ApiClient) -> anyhow::Result<Vec<Device>> {
    loop {
        let servers: Vec<TunnelServer> = api.get("/api/v1/tunnel-servers").await?;
        if servers.iter().all(|server| server.reachable) {
            return Ok(api.get("/api/v1/devices").await?);
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn register(api: &ApiClient, camera: &CameraDescription) -> anyhow::Result<()> {
    let registration = json!({
        "serial": camera.serial, "oak": camera.oak, "user": camera.user, "password": camera.password,
        "name": camera.name, "description": "Simulated camera",
    });
    let _: serde_json::Value = api.send(Method::POST, "/api/v1/devices", &registration).await?;
    Ok(())
}

async fn press_all(cameras: &[&CameraDescription]) -> anyhow::Result<()> {
    for camera in cameras {
        tokio::time::sleep(BETWEEN_PRESSES).await;
        let (base, path) = camera
            .press
            .match_indices('/')
            .nth(2)
            .map(|(at, _)| camera.press.split_at(at))
            .ok_or_else(|| anyhow!("{} is no address", camera.press))?;
        let agent = ApiClient::new("site agent", base, &Auth::Nobody, None)?;
        let _: serde_json::Value = agent
            .send(Method::POST, path, &())
            .await
            .with_context(|| format!("pressing the button of {}", camera.name))?;
    }
    Ok(())
}

async fn add_all(api: &ApiClient, cameras: &[&CameraDescription]) -> anyhow::Result<()> {
    let mut left: Vec<SerialNumber> = cameras.iter().map(|camera| camera.serial).collect();
    while !left.is_empty() {
        tokio::time::sleep(LOOK).await;
        let devices: Vec<Device> = api.get("/api/v1/devices").await?;
        for device in devices.iter().filter(|device| device.state != "red") {
            let Some(index) = left.iter().position(|serial| *serial == device.serial) else { continue };
            if device.state == "yellow" {
                tokio::time::sleep(SEEN_YELLOW).await;
                let hardware = json!({ "serial": device.serial });
                match api.send::<_, serde_json::Value>(Method::POST, "/api/v1/hardware", &hardware).await {
                    Ok(_) => (),
                    // Added in an earlier run; the management server had only just started when it said yellow.
                    Err(CallError::Refused { status: StatusCode::CONFLICT, .. }) => (),
                    Err(error) => return Err(error).with_context(|| format!("adding {}", device.serial)),
                }
            }
            left.swap_remove(index);
        }
    }
    Ok(())
}
