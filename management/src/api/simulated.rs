//! Labels of simulated cameras: what a newcomer to the demo would otherwise read off a box, and a
//! finger for their one-click buttons (step 3). Empty outside the demo.

use super::Path;
use crate::{App, gate::Caller, views};
use anyhow::Context;
use axum::{
    Json,
    extract::State,
    http::{HeaderName, StatusCode, header},
};
use bytes::Bytes;
use homing_base::http::Failure;
use homing_protocol::{Label, Secret, SerialNumber, api::Problem};
use http_body_util::Full;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::Serialize;
use std::time::Duration;
use utoipa::ToSchema;

/// A finger is quick; the agent is on this machine.
const PRESS_DEADLINE: Duration = Duration::from_secs(5);

/// A simulated camera's label.
#[derive(Serialize, ToSchema)]
pub struct SimulatedCamera {
    /// The camera's name.
    name: String,
    /// Serial number.
    serial: String,
    /// OAK. A secret outside the demo.
    oak: String,
    /// Factory user.
    user: String,
    /// Factory password.
    #[schema(value_type = String)]
    password: Secret,
}

/// Labels of simulated cameras
#[utoipa::path(get, path = "/api/v1/simulated-cameras", tag = "system",
    responses((status = 200, body = [SimulatedCamera])))]
pub async fn list(State(app): State<App>) -> Json<Vec<SimulatedCamera>> {
    let label = |camera: &crate::config::SimulatedCamera| SimulatedCamera {
        name: camera.name.clone(),
        serial: camera.serial.to_string(),
        oak: camera.oak.label(),
        user: camera.user.clone(),
        password: camera.password.clone(),
    };
    Json(app.simulated.iter().map(label).collect())
}

/// The QR code on a simulated camera's label
#[utoipa::path(get, path = "/api/v1/simulated-cameras/{serial}/label.svg", tag = "system",
    params(("serial" = String, Path, description = "Serial number")),
    responses((status = 200, content_type = "image/svg+xml", description = "Serial number and OAK as a QR code"),
        (status = 404, body = views::Problem)))]
pub async fn label(
    State(app): State<App>,
    Path(serial): Path<String>,
) -> Result<([(HeaderName, &'static str); 1], String), Failure> {
    let camera = find(&app, &serial)?;
    let label = Label { serial: camera.serial, oak: camera.oak.clone() };
    Ok(([(header::CONTENT_TYPE, "image/svg+xml")], label.to_svg()))
}

/// Press a simulated camera's one-click button
#[utoipa::path(post, path = "/api/v1/simulated-cameras/{serial}/press", tag = "system",
    params(("serial" = String, Path, description = "Serial number")),
    responses((status = 204, description = "Pressed"), (status = 404, body = views::Problem),
        (status = 502, body = views::Problem)))]
pub async fn press(
    State(app): State<App>,
    caller: Caller,
    Path(serial): Path<String>,
) -> Result<StatusCode, Failure> {
    let camera = find(&app, &serial)?;
    post(&camera.press).await.map_err(|error| {
        let message = format!("The simulated camera {} did not answer: {error:#}.", camera.name);
        Failure::new(StatusCode::BAD_GATEWAY, Problem::new("not-pressed", message))
    })?;
    app.record(&caller, "press", &camera.serial.to_string(), "").await?;
    Ok(StatusCode::NO_CONTENT)
}

fn find<'a>(app: &'a App, serial: &str) -> Result<&'a crate::config::SimulatedCamera, Failure> {
    let serial: Option<SerialNumber> = serial.parse().ok();
    app.simulated
        .iter()
        .find(|camera| Some(camera.serial) == serial)
        .ok_or_else(|| Failure::not_found("There is no simulated camera with this serial number."))
}

async fn post(url: &str) -> anyhow::Result<()> {
    let request = http::Request::post(url).body(Full::<Bytes>::default()).context("its press address")?;
    let client: Client<HttpConnector, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let response = tokio::time::timeout(PRESS_DEADLINE, client.request(request))
        .await
        .with_context(|| format!("no answer within {} s", PRESS_DEADLINE.as_secs()))??;
    anyhow::ensure!(response.status().is_success(), "status {}", response.status());
    Ok(())
}
