//! Add Hardware, Remote connect hardware: step 8.

use super::{Body, Path, devices, passed_through};
use crate::{App, gate::Caller, views};
use axum::{
    Json,
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, stream};
use homing_base::http::Failure;
use homing_protocol::{
    Step,
    api::{
        Problem,
        recording::{DeviceAddress, Hardware, NewHardware},
    },
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Devices that are asked at once when several are added.
const AT_ONCE: usize = 4;

/// Devices in one request.
const AT_MOST: usize = 256;

/// Devices to add: one as `serial`, or several as `serials`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Add {
    /// One device's serial number. The answer is its hardware, or why it was not added.
    #[serde(default)]
    serial: Option<String>,
    /// Several devices' serial numbers, at most 256. The answer is a list with one result each.
    #[serde(default)]
    serials: Option<Vec<String>>,
    /// For one device: what to call the hardware; the registration's name where empty.
    #[serde(default)]
    name: Option<String>,
}

/// How it went with one of several devices.
#[derive(Debug, Serialize, ToSchema)]
pub struct Added {
    /// As it was asked for.
    serial: String,
    /// The hardware, if it was added.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<views::Hardware>)]
    hardware: Option<Hardware>,
    /// Why it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<views::ProblemView>,
}

/// All hardware, with its cameras
#[utoipa::path(get, path = "/api/v1/hardware", tag = "hardware",
    responses((status = 200, body = [views::Hardware])))]
pub async fn list(State(app): State<App>, request: Request) -> Response {
    app.recording.forward(request).await
}

/// Add remote connect devices to the recording server
///
/// A device must be registered, connected and not added yet. Each of its channels becomes a camera
/// and is recorded from then on.
#[utoipa::path(post, path = "/api/v1/hardware", tag = "hardware", request_body = Add,
    responses(
        (status = 201, body = views::Hardware, description = "`serial` was added"),
        (status = 200, body = [Added], description = "`serials`: one result each"),
        (status = 404, body = views::Problem), (status = 409, body = views::Problem),
        (status = 502, body = views::Problem)))]
pub async fn add(
    State(app): State<App>,
    caller: Caller,
    Body(asked): Body<Add>,
) -> Result<Response, Failure> {
    match asked {
        Add { serial: Some(serial), serials: None, name } => {
            let hardware = add_one(&app, &caller, &serial, name).await?;
            Ok((StatusCode::CREATED, Json(hardware)).into_response())
        }
        Add { serial: None, serials: Some(serials), name: None } if serials.len() <= AT_MOST => {
            let each = |serial: String| {
                let (app, caller) = (&app, &caller);
                async move {
                    match add_one(app, caller, &serial, None).await {
                        Ok(hardware) => Added { serial, hardware: Some(hardware), problem: None },
                        Err(failure) => {
                            Added { serial, hardware: None, problem: Some(failure.problem.error.into()) }
                        }
                    }
                }
            };
            let added: Vec<Added> = stream::iter(serials).map(each).buffered(AT_ONCE).collect().await;
            Ok(Json(added).into_response())
        }
        _ => Err(Failure::bad_request(format!(
            "Give one serial (with a name, if you like), or at most {AT_MOST} serials."
        ))),
    }
}

/// Remove hardware
///
/// Its cameras are no longer recorded. The device stays registered.
#[utoipa::path(delete, path = "/api/v1/hardware/{id}", tag = "hardware",
    params(("id" = i64, Path, description = "Hardware")),
    responses((status = 204, description = "Removed"), (status = 404, body = views::Problem)))]
pub async fn remove(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<i64>,
    request: Request,
) -> Result<Response, Failure> {
    let response = app.recording.forward(request).await;
    if response.status().is_success() {
        app.record(&caller, "remove-hardware", &id.to_string(), "").await?;
        app.refresh_hardware().await;
    }
    Ok(response)
}

/// All recording servers
#[utoipa::path(get, path = "/api/v1/recording-servers", tag = "hardware",
    responses((status = 200, body = [views::RecordingServer])))]
pub async fn recording_servers(State(app): State<App>) -> Json<Vec<views::RecordingServer>> {
    Json(app.world.recording_servers())
}

async fn add_one(
    app: &App,
    caller: &Caller,
    serial: &str,
    name: Option<String>,
) -> Result<Hardware, Failure> {
    let (serial, device) = devices::registered(app, serial)?;
    let conflict = |code: &str, message: String| {
        Failure::new(StatusCode::CONFLICT, Problem::at(Step::Add, code, message))
    };
    if device.hardware.is_some() {
        return Err(conflict(
            "already-added",
            format!("{serial} has been added to the recording server already."),
        ));
    }
    if !device.connected {
        let message = format!(
            "{serial} is not connected (last step: {}): press its one-click button, and check that its network \
             reaches the Internet.",
            device.step
        );
        return Err(conflict("not-connected", message));
    }
    let server = devices::tunnel_server(app, Some(&device.tunnel_server))?;
    let credentials = server.credentials(serial).await.map_err(passed_through)?;
    let hardware = NewHardware {
        device: DeviceAddress::Tunnel { server: server.name().to_owned(), serial },
        user: credentials.user,
        password: credentials.password,
        name: name.filter(|name| !name.trim().is_empty()).unwrap_or(device.name),
    };
    tracing::info!(%serial, step = %Step::Add, "adding hardware");
    let added = app.recording.add(&hardware).await;
    let detail = match &added {
        Ok(hardware) => format!("hardware {}, {} camera(s)", hardware.id, hardware.cameras.len()),
        Err(failure) => format!("failed: {}", failure.problem.error.message),
    };
    app.record(caller, "add-hardware", &serial.to_string(), &detail).await?;
    let added = added?;
    app.refresh_hardware().await;
    Ok(added)
}
