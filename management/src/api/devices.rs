//! Registered devices and the tunnel servers that they are registered at: steps 1 to 7.

use super::{Body, Path, Query, account, passed_through};
use crate::{App, gate::Caller, tunnels, views};
use axum::{Json, extract::State, http::StatusCode};
use homing_base::{client::CallError, http::Failure};
use homing_protocol::{
    Oak, Secret, SerialNumber, Step,
    api::{
        Problem,
        tunnel::{self, ChangeDevice, NewDevice, RelayState},
    },
};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use utoipa::{IntoParams, ToSchema};

/// A page that shows one device does not wait longer for its figures.
const FIGURES_DEADLINE: Duration = Duration::from_secs(2);

/// A device to register, as an administrator types it from the label.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Register {
    /// The tunnel server to register it at; may be left out where there is only one.
    #[serde(default)]
    tunnel_server: Option<String>,
    /// Serial number on the label; any case, any separators.
    #[schema(example = "00408C702009")]
    serial: String,
    /// OAK on the label; any case, any separators.
    #[schema(example = "0123-4567-89AB")]
    #[schema(value_type = String)]
    oak: Secret,
    /// The device's user.
    user: String,
    /// That user's password.
    #[schema(value_type = String)]
    password: Secret,
    /// What people call it; the serial number where empty.
    #[serde(default)]
    name: String,
    /// Anything worth knowing.
    #[serde(default)]
    description: String,
}

/// What can be changed on a registration.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// The OAK, where it was mistyped.
    #[serde(default)]
    #[schema(example = "0123-4567-89AB")]
    #[schema(value_type = Option<String>)]
    oak: Option<Secret>,
    /// The device's user.
    #[serde(default)]
    user: Option<String>,
    /// That user's password.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    password: Option<Secret>,
    /// A new name, at most 64 characters.
    #[serde(default)]
    name: Option<String>,
    /// A new description, at most 256 characters.
    #[serde(default)]
    description: Option<String>,
}

/// Which registration, where a device has two.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct At {
    /// The tunnel server's name; where the device is, if left out.
    tunnel_server: Option<String>,
}

/// All registered devices
#[utoipa::path(get, path = "/api/v1/devices", tag = "devices",
    responses((status = 200, body = [views::Device]), (status = 401, body = views::Problem)))]
pub async fn list(State(app): State<App>) -> Json<Vec<views::Device>> {
    Json(app.world.devices())
}

/// One registered device
///
/// With its figures (round trip, bytes) as they are now; those in lists and events are of its last change.
#[utoipa::path(get, path = "/api/v1/devices/{serial}", tag = "devices",
    params(("serial" = String, Path, description = "Serial number")),
    responses((status = 200, body = views::Device), (status = 404, body = views::Problem)))]
pub async fn one(State(app): State<App>, Path(serial): Path<String>) -> Result<Json<views::Device>, Failure> {
    let (serial, known) = registered(&app, &serial)?;
    let server = tunnel_server(&app, Some(&known.tunnel_server))?;
    // A tunnel server that is away is shown so; what was last known of its device still stands.
    let now = tokio::time::timeout(FIGURES_DEADLINE, server.device(serial)).await;
    Ok(Json(now.ok().and_then(Result::ok).map_or(known, |device| app.world.view(server.name(), &device))))
}

/// Register a device
///
/// What the tunnel server or the dispatcher refuses (`wrong-oak`, `claimed-by-another-account`,
/// `already-registered`) is passed through, and then nothing is kept.
#[utoipa::path(post, path = "/api/v1/devices", tag = "devices", request_body = Register,
    responses(
        (status = 201, body = views::Device, description = "Registered"),
        (status = 202, body = views::Device, description = "Kept, and relayed as soon as the dispatcher can be reached"),
        (status = 409, body = views::Problem), (status = 422, body = views::Problem),
        (status = 502, body = views::Problem, description = "The tunnel server cannot be reached")))]
pub async fn register(
    State(app): State<App>,
    caller: Caller,
    Body(asked): Body<Register>,
) -> Result<(StatusCode, Json<views::Device>), Failure> {
    let serial: SerialNumber = asked.serial.parse().map_err(|error| mistyped("bad-serial", &error))?;
    let oak: Oak = asked.oak.expose().parse().map_err(|error| mistyped("bad-oak", &error))?;
    let server = tunnel_server(&app, asked.tunnel_server.as_deref())?;
    if let Some(known) = app.world.find(serial).filter(|known| known.tunnel_server != server.name()) {
        let message = format!(
            "{serial} is registered at the tunnel server {:?} already; move it from there, or release it first.",
            known.tunnel_server
        );
        let problem = Problem::at(Step::Register, "already-registered", message);
        return Err(Failure::new(StatusCode::CONFLICT, problem));
    }
    let device = NewDevice {
        name: asked.name,
        description: asked.description,
        ..NewDevice::new(serial, oak, asked.user, asked.password)
    };
    let answered = server.register(&device).await;
    let detail = match &answered {
        Ok(device) if device.relay == RelayState::Pending => {
            "kept until the dispatcher can be reached".to_owned()
        }
        Ok(_) => format!("at {}", server.name()),
        Err(error) => format!("refused: {error}"),
    };
    app.record(&caller, "register-device", &serial.to_string(), &detail).await?;
    let device = answered.map_err(passed_through)?;
    let status = if device.relay == RelayState::Pending { StatusCode::ACCEPTED } else { StatusCode::CREATED };
    // The event stream tells the same in a moment; who registered shall see it at once.
    app.world.device(server.name(), device.clone());
    let view = app.world.find(serial).unwrap_or_else(|| views::Device::new(server.name(), &device, None));
    Ok((status, Json(view)))
}

/// Rename a device, or correct its registration
///
/// With another OAK, user or password a device that was not yet dispatched is relayed again; what the
/// dispatcher refuses is passed through, and then nothing is changed.
#[utoipa::path(patch, path = "/api/v1/devices/{serial}", tag = "devices", request_body = Change,
    params(("serial" = String, Path, description = "Serial number")),
    responses((status = 200, body = views::Device), (status = 404, body = views::Problem),
        (status = 409, body = views::Problem), (status = 422, body = views::Problem)))]
pub async fn change(
    State(app): State<App>,
    caller: Caller,
    Path(serial): Path<String>,
    Body(asked): Body<Change>,
) -> Result<Json<views::Device>, Failure> {
    let (serial, before) = registered(&app, &serial)?;
    let server = tunnel_server(&app, Some(&before.tunnel_server))?;
    let oak = asked
        .oak
        .map(|oak| oak.expose().parse::<Oak>())
        .transpose()
        .map_err(|error| mistyped("bad-oak", &error))?;
    let change = ChangeDevice {
        oak,
        user: asked.user,
        password: asked.password,
        own_password: false,
        name: asked.name,
        description: asked.description,
        access: None,
    };
    let mut changed = Vec::new();
    changed.extend(change.oak.is_some().then_some("OAK"));
    changed.extend(change.user.is_some().then_some("user"));
    changed.extend(change.password.is_some().then_some("password"));
    let answered = change_all(&app, serial, &server, &change).await;
    let detail = match (&answered, changed.as_slice()) {
        (Ok(device), []) => format!("name: {}", device.name),
        (Ok(_), changed) => format!("corrected: {}", changed.join(", ")),
        (Err(error), _) => format!("refused: {error}"),
    };
    app.record(&caller, "change-device", &serial.to_string(), &detail).await?;
    let device = answered.map_err(passed_through)?;
    app.world.device(server.name(), device);
    Ok(Json(registered(&app, &serial.to_string())?.1))
}

/// Changes a registration; what is corrected, also at another server that keeps the device.
async fn change_all(
    app: &App,
    serial: SerialNumber,
    server: &tunnels::TunnelServer,
    change: &ChangeDevice,
) -> Result<tunnel::Device, CallError> {
    let changed = server.change(serial, change).await?;
    let keeps = |device: &views::Device| device.moving.as_ref().is_some_and(|moving| moving.keep);
    for other in app.world.registrations(serial) {
        if other.tunnel_server != server.name()
            && keeps(&other)
            && let Ok(other) = tunnel_server(app, Some(&other.tunnel_server))
        {
            app.world.device(other.name(), other.change(serial, change).await?);
        }
    }
    Ok(changed)
}

/// Unregister a device
///
/// The claim is released: another owner may register it. Refused while it is added to a recording
/// server. With `tunnel_server`, the registration that a device left behind there when it moved; or, of a device that two
/// tunnel servers keep, the one that it shall leave: the other goes on.
#[utoipa::path(delete, path = "/api/v1/devices/{serial}", tag = "devices",
    params(("serial" = String, Path, description = "Serial number"), At),
    responses((status = 204, description = "Released"), (status = 404, body = views::Problem),
        (status = 409, body = views::Problem)))]
pub async fn unregister(
    State(app): State<App>,
    caller: Caller,
    Path(serial): Path<String>,
    Query(at): Query<At>,
) -> Result<StatusCode, Failure> {
    let leaves = at.tunnel_server.is_some();
    let (serial, device) = match at.tunnel_server {
        None => registered(&app, &serial)?,
        Some(server) => registered_at(&app, &serial, &server)?,
    };
    let keeps = |device: &views::Device| device.moving.as_ref().is_some_and(|moving| moving.keep);
    let other = app.world.registrations(serial).into_iter();
    let other = other.filter(|other| other.tunnel_server != device.tunnel_server);
    let other = other.into_iter().next().filter(|other| keeps(other) || keeps(&device));
    let refused =
        |code: &str, message: String| Failure::new(StatusCode::CONFLICT, Problem::new(code, message));
    if let Some(other) = &other {
        let (here, there) = (&device.tunnel_server, &other.tunnel_server);
        if !leaves {
            let message = format!("{serial} is kept by {here:?} and {there:?}: say which it shall leave.");
            return Err(refused("kept-by-both", message));
        }
        if !keeps(&device) {
            let message = format!(
                "{here:?} does not know that {there:?} keeps {serial}, too: have it kept anew first."
            );
            return Err(refused("half-kept", message));
        }
        if !other.connected {
            let message = format!(
                "{serial} is not connected to {there:?}: it would be nowhere. Wait until it is there."
            );
            return Err(refused("not-there-yet", message));
        }
    }
    // What stayed behind when the device moved is nothing that is recorded; nor what another goes on with.
    if device.hardware.is_some() && !device.moved() && other.is_none() {
        let message = format!("{serial} is still added to a recording server; remove its hardware first.");
        return Err(refused("still-added", message));
    }
    let server = tunnel_server(&app, Some(&device.tunnel_server))?;
    if let Some(other) = other.filter(keeps) {
        // First: it tells the device to forget this one. Where the rest fails, it is asked for once more.
        let other = tunnel_server(&app, Some(&other.tunnel_server))?;
        app.world.device(other.name(), other.undo_move(serial).await.map_err(passed_through)?);
    }
    server.unregister(serial).await.map_err(passed_through)?;
    app.world.device_removed(server.name(), serial);
    app.record(&caller, "unregister-device", &serial.to_string(), &format!("from {}", server.name())).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Why somebody wants to see a password.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ShowPassword {
    /// For the audit log: at most 200 characters.
    #[schema(example = "The installer needs the camera's own page")]
    reason: String,
    /// The caller's own password: a browser may be unattended, and a token may be in anybody's hands.
    #[serde(default)]
    #[schema(value_type = String)]
    current: Option<Secret>,
}

/// A device's user and password.
#[derive(Serialize, ToSchema)]
pub struct DevicePassword {
    /// Its user.
    user: String,
    /// That user's password.
    #[schema(value_type = String)]
    password: Secret,
    /// Whether it is one of the device's own, in place of the factory default.
    own: bool,
}

/// Show a device's password
///
/// Who asked, when, and why is in the audit log before it is shown. The caller's own password is needed, with a token as
/// well: a stolen one alone opens no device.
#[utoipa::path(post, path = "/api/v1/devices/{serial}/password", tag = "devices", request_body = ShowPassword,
    params(("serial" = String, Path, description = "Serial number")),
    responses((status = 200, body = DevicePassword), (status = 403, body = views::Problem),
        (status = 404, body = views::Problem), (status = 422, body = views::Problem),
        (status = 429, body = views::Problem)))]
pub async fn show_password(
    State(app): State<App>,
    caller: Caller,
    Path(serial): Path<String>,
    Body(asked): Body<ShowPassword>,
) -> Result<Json<DevicePassword>, Failure> {
    let (serial, device) = registered(&app, &serial)?;
    let reason = asked.reason.trim();
    if reason.is_empty() || reason.chars().count() > 200 || reason.chars().any(char::is_control) {
        let message = "Say why, in one line of at most 200 characters: it goes into the audit log.";
        return Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, Problem::new("reason-wanted", message)));
    }
    account::confirm(&app, &caller, asked.current).await?;
    let server = tunnel_server(&app, Some(&device.tunnel_server))?;
    let answered = server.credentials(serial).await;
    let detail = match &answered {
        Ok(_) => reason.to_owned(),
        Err(error) => format!("{reason}; failed: {error}"),
    };
    app.record(&caller, "show-password", &serial.to_string(), &detail).await?;
    let credentials = answered.map_err(passed_through)?;
    Ok(Json(DevicePassword {
        user: credentials.user,
        password: credentials.password,
        own: device.own_password,
    }))
}

/// A registered device by its serial number as typed.
pub(super) fn registered(app: &App, serial: &str) -> Result<(SerialNumber, views::Device), Failure> {
    let serial: SerialNumber = serial.parse().map_err(|error| mistyped("bad-serial", &error))?;
    let device = app.world.find(serial).ok_or_else(|| {
        Failure::not_found(format!("No device with serial number {serial} is registered at a tunnel server."))
    })?;
    Ok((serial, device))
}

/// A device's registration at one tunnel server.
fn registered_at(app: &App, serial: &str, server: &str) -> Result<(SerialNumber, views::Device), Failure> {
    let (serial, _) = registered(app, serial)?;
    let mut all = app.world.registrations(serial).into_iter();
    let device = all.find(|device| device.tunnel_server == server).ok_or_else(|| {
        Failure::not_found(format!("{serial} is not registered at a tunnel server called {server:?}."))
    })?;
    Ok((serial, device))
}

pub(super) fn tunnel_server(app: &App, name: Option<&str>) -> Result<tunnels::TunnelServer, Failure> {
    if let Some(name) = name {
        let found = app.servers.get(name);
        return found
            .ok_or_else(|| Failure::not_found(format!("There is no tunnel server called {name:?}.")));
    }
    let mut all = app.servers.all().into_iter();
    match (all.next(), all.next()) {
        (Some(only), None) => Ok(only),
        (None, _) => {
            let message = "There is no tunnel server yet; add one under Remote connect services.";
            Err(Failure::new(StatusCode::CONFLICT, Problem::at(Step::Register, "no-tunnel-server", message)))
        }
        (Some(_), Some(_)) => {
            Err(Failure::bad_request("There are several tunnel servers: say which, as tunnel_server."))
        }
    }
}

/// 422 at step 1: what was typed is no serial number or no OAK. The text never repeats an OAK.
fn mistyped(code: &str, error: &dyn std::error::Error) -> Failure {
    Failure::new(StatusCode::UNPROCESSABLE_ENTITY, Problem::at(Step::Register, code, error.to_string()))
}
