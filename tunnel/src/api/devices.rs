//! The devices, in JSON: registered, looked at, corrected, sent away and called back, ordered about.

use super::{Api, Guarded, OneDevice, Refused, Serial, Trusted, Unreached, read, to_its_end};
use crate::{orders, relay::not_registered};
use axum::{Json, body::Body, extract::State};
use homing_base::http::Failure;
use homing_protocol::{
    Oak, Secret, SerialNumber, Step,
    api::{
        Problem,
        dispatcher::Offer,
        tunnel::{Access, ChangeDevice, Connection, Device, Figures, Move, NewDevice},
    },
    secret::Credentials,
};
use http::{HeaderMap, StatusCode, header};
use serde::Deserialize;

/// All devices
#[utoipa::path(get, path = "/api/v1/devices",
    responses((status = 200, body = Vec<Device>), Guarded))]
pub(super) async fn all(State(api): State<Api>) -> Json<Vec<Device>> {
    Json(api.devices.all())
}

/// A device
#[utoipa::path(get, path = "/api/v1/devices/{serial}", params(Serial),
    responses((status = 200, body = Device), OneDevice, Guarded))]
pub(super) async fn one(State(api): State<Api>, Serial(serial): Serial) -> Result<Json<Device>, Failure> {
    api.devices.get(serial).map(Json).ok_or_else(|| not_registered(serial))
}

/// A device's last connections, the newest first
#[utoipa::path(get, path = "/api/v1/devices/{serial}/history", params(Serial),
    responses((status = 200, body = Vec<Connection>), OneDevice, Guarded))]
pub(super) async fn history(
    State(api): State<Api>,
    Serial(serial): Serial,
) -> Result<Json<Vec<Connection>>, Failure> {
    api.devices.get(serial).ok_or_else(|| not_registered(serial))?;
    Ok(Json(api.devices.history().of(serial).await?))
}

/// Of every device that is connected, what changes all the time
#[utoipa::path(get, path = "/api/v1/figures", responses((status = 200, body = Vec<Figures>), Guarded))]
pub(super) async fn figures(State(api): State<Api>) -> Json<Vec<Figures>> {
    Json(api.devices.figures())
}

/// Registers a device: steps 1 and 2
#[utoipa::path(post, path = "/api/v1/devices", request_body = NewDevice,
    responses((status = 201, description = "Registered and relayed", body = Device),
        (status = 202, description = "Registered, and relayed as soon as the dispatcher is reached", body = Device),
        OneDevice, Refused, Guarded))]
pub(super) async fn register(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<Device>), Failure> {
    let new: Typed = read(&headers, body).await?;
    let new = NewDevice {
        serial: serial_number(&new.serial)?,
        oak: oak(&new.oak)?,
        user: new.user,
        password: new.password,
        name: new.name,
        description: new.description,
        access: new.access,
        fingerprint: new.fingerprint,
        own_password: new.own_password,
        proposed_password: new.proposed_password,
    };
    let stop = api.stop.clone();
    let (device, relayed) =
        to_its_end(&api.stop, async move { api.relay.register(new, &stop).await }).await?;
    let status = if relayed { StatusCode::CREATED } else { StatusCode::ACCEPTED };
    Ok((status, Json(device)))
}

/// Renames a device, or corrects its registration
#[utoipa::path(patch, path = "/api/v1/devices/{serial}", params(Serial), request_body = ChangeDevice,
    responses((status = 200, body = Device), OneDevice, Refused, Guarded))]
pub(super) async fn change(
    State(api): State<Api>,
    Serial(serial): Serial,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Device>, Failure> {
    let change: ChangeDevice = read(&headers, body).await?;
    let stop = api.stop.clone();
    to_its_end(&api.stop, async move { api.relay.change(serial, change, &stop).await }).await.map(Json)
}

/// Forgets a device, and releases its claim
#[utoipa::path(delete, path = "/api/v1/devices/{serial}", params(Serial),
    responses((status = 204), OneDevice, Guarded))]
pub(super) async fn remove(State(api): State<Api>, Serial(serial): Serial) -> Result<StatusCode, Failure> {
    let stop = api.stop.clone();
    to_its_end(&api.stop, async move { api.relay.remove(serial, &stop).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What holds a secret stays nowhere on its way.
type Unstored<T> = ([(header::HeaderName, &'static str); 1], Json<T>);

fn secretly<T>(secret: T) -> Unstored<T> {
    ([(header::CACHE_CONTROL, "no-store")], Json(secret))
}

/// A device's own user and password
#[utoipa::path(get, path = "/api/v1/devices/{serial}/credentials", params(Serial),
    responses((status = 200, body = Credentials), OneDevice, Guarded))]
pub(super) async fn credentials(
    State(api): State<Api>,
    Trusted(peer): Trusted,
    Serial(serial): Serial,
) -> Result<Unstored<Credentials>, Failure> {
    let credentials = api.relay.credentials(serial).await?;
    tracing::info!(%serial, by = api.guard.user(), %peer, "the device's user and password were shown");
    Ok(secretly(credentials))
}

/// What another tunnel server needs to admit a device
#[utoipa::path(get, path = "/api/v1/devices/{serial}/handover", params(Serial),
    responses((status = 200, body = NewDevice), OneDevice, Guarded))]
pub(super) async fn handover(
    State(api): State<Api>,
    Trusted(peer): Trusted,
    Serial(serial): Serial,
) -> Result<Unstored<NewDevice>, Failure> {
    let handover = api.relay.handover(serial).await?;
    tracing::info!(%serial, by = api.guard.user(), %peer, "the device's OAK, user and password were handed over");
    Ok(secretly(handover))
}

/// Sends a device to another tunnel server
#[utoipa::path(put, path = "/api/v1/devices/{serial}/move", params(Serial), request_body = Move,
    responses((status = 200, body = Device), OneDevice, Refused, Guarded))]
pub(super) async fn send(
    State(api): State<Api>,
    Serial(serial): Serial,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Device>, Failure> {
    let order: Move = read(&headers, body).await?;
    let stop = api.stop.clone();
    to_its_end(&api.stop, async move { api.relay.send(serial, order, &stop).await }).await.map(Json)
}

/// Calls a device back
#[utoipa::path(delete, path = "/api/v1/devices/{serial}/move", params(Serial),
    responses((status = 200, body = Device), OneDevice, Guarded))]
pub(super) async fn call_back(
    State(api): State<Api>,
    Serial(serial): Serial,
) -> Result<Json<Device>, Failure> {
    let stop = api.stop.clone();
    to_its_end(&api.stop, async move { api.relay.call_back(serial, &stop).await }).await.map(Json)
}

/// Lets another account take a device over
#[utoipa::path(put, path = "/api/v1/devices/{serial}/offer", params(Serial), request_body = Offer,
    responses((status = 204), OneDevice, Refused, Unreached, Guarded))]
pub(super) async fn offer(
    State(api): State<Api>,
    Serial(serial): Serial,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Failure> {
    api.relay.offer(serial, read(&headers, body).await?, &api.stop).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Withdraws an offer
#[utoipa::path(delete, path = "/api/v1/devices/{serial}/offer", params(Serial),
    responses((status = 204), OneDevice, Refused, Unreached, Guarded))]
pub(super) async fn withdraw(State(api): State<Api>, Serial(serial): Serial) -> Result<StatusCode, Failure> {
    api.relay.withdraw(serial, &api.stop).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Ends a device's uplinks: it dials again
#[utoipa::path(post, path = "/api/v1/devices/{serial}/reconnect", params(Serial),
    responses((status = 204), OneDevice, Unreached, Guarded))]
pub(super) async fn reconnect(State(api): State<Api>, Serial(serial): Serial) -> Result<StatusCode, Failure> {
    orders::reconnect(&api.tunnel, &api.devices, serial)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Has a device restart
#[utoipa::path(post, path = "/api/v1/devices/{serial}/restart", params(Serial),
    responses((status = 204), OneDevice, Unreached, Guarded))]
pub(super) async fn restart(State(api): State<Api>, Serial(serial): Serial) -> Result<StatusCode, Failure> {
    to_its_end(&api.stop, async move { orders::restart(&api.tunnel, &api.devices, serial).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A registration as it was typed: what is wrong with the numbers is said in words, not as a fault of the JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Typed {
    serial: String,
    oak: Secret,
    user: String,
    password: Secret,
    #[serde(default)]
    name: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    access: Access,
    #[serde(default)]
    fingerprint: Option<String>,
    #[serde(default)]
    own_password: bool,
    #[serde(default)]
    proposed_password: Option<Secret>,
}

pub(super) fn serial_number(text: &str) -> Result<SerialNumber, Failure> {
    text.parse().map_err(|error| typed_wrong("bad-serial-number", &error))
}

pub(super) fn oak(text: &Secret) -> Result<Oak, Failure> {
    text.expose().parse().map_err(|error| typed_wrong("bad-oak", &error))
}

fn typed_wrong(code: &str, error: &dyn std::error::Error) -> Failure {
    Failure::new(StatusCode::BAD_REQUEST, Problem::at(Step::Register, code, error.to_string()))
}
