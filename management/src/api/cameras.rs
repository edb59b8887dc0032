//! Cameras: everything here is the recording role's answer, passed on as it is.

use super::Path;
use crate::{
    App,
    gate::{self, Caller},
    views,
};
use axum::{
    body::Body,
    extract::{Request, State},
    response::Response,
};
use futures_util::StreamExt;
use homing_base::http::Failure;

/// All cameras
#[utoipa::path(get, path = "/api/v1/cameras", tag = "cameras",
    responses((status = 200, body = [views::Camera])))]
pub async fn list(State(app): State<App>, request: Request) -> Response {
    app.recording.forward(request).await
}

/// One camera
#[utoipa::path(get, path = "/api/v1/cameras/{id}", tag = "cameras",
    params(("id" = i64, Path, description = "Camera")),
    responses((status = 200, body = views::Camera), (status = 404, body = views::Problem)))]
pub async fn one(State(app): State<App>, request: Request) -> Response {
    app.recording.forward(request).await
}

/// Change a camera
#[utoipa::path(patch, path = "/api/v1/cameras/{id}", tag = "cameras",
    params(("id" = i64, Path, description = "Camera")),
    request_body = views::CameraChange,
    responses((status = 200, body = views::Camera), (status = 404, body = views::Problem)))]
pub async fn change(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<i64>,
    request: Request,
) -> Result<Response, Failure> {
    let response = app.recording.forward(request).await;
    if response.status().is_success() {
        app.record(&caller, "change-camera", &id.to_string(), "").await?;
    }
    Ok(response)
}

/// Live video as a WebSocket
///
/// Text `{"type":"start","mime":…}`, a binary initialisation segment, then one binary fragment a frame
/// (ISO 14496-12), decode times in 90 kHz since 1970. Text `{"type":"waiting","reason":…}` and
/// `{"type":"skipped","frames":…}` between them.
#[utoipa::path(get, path = "/api/v1/cameras/{id}/live", tag = "cameras",
    params(("id" = i64, Path, description = "Camera")),
    responses((status = 101, description = "WebSocket"), (status = 404, body = views::Problem)))]
pub async fn live(State(app): State<App>, mut request: Request) -> Response {
    let leave = gate::leave(&app, request.headers());
    request.extensions_mut().insert(leave);
    app.recording.forward(request).await
}

/// What was recorded, and the gaps with their causes
///
/// Times are RFC 3339, or seconds since 1970.
#[utoipa::path(get, path = "/api/v1/cameras/{id}/timeline", tag = "cameras",
    params(("id" = i64, Path, description = "Camera"),
        ("start" = String, Query, description = "RFC 3339"), ("end" = String, Query, description = "RFC 3339")),
    responses((status = 200, body = views::Timeline), (status = 404, body = views::Problem)))]
pub async fn timeline(State(app): State<App>, request: Request) -> Response {
    app.recording.forward(request).await
}

/// An initialisation segment of a recording
#[utoipa::path(get, path = "/api/v1/cameras/{id}/init/{init}", tag = "cameras",
    params(("id" = i64, Path, description = "Camera"), ("init" = String, Path, description = "Its number, as fragments name it")),
    responses((status = 200, content_type = "video/mp4"), (status = 404, body = views::Problem)))]
pub async fn init(State(app): State<App>, request: Request) -> Response {
    app.recording.forward(request).await
}

/// One recorded group of pictures, at or after a moment
///
/// Headers: `x-homing-start` and `x-homing-end`, `x-homing-init` (the initialisation segment that it
/// needs), `x-homing-mime`, and `x-homing-next`, the `time` to ask for next.
#[utoipa::path(get, path = "/api/v1/cameras/{id}/fragment", tag = "cameras",
    params(("id" = i64, Path, description = "Camera"), ("time" = String, Query, description = "RFC 3339")),
    responses((status = 200, content_type = "video/mp4"), (status = 404, body = views::Problem)))]
pub async fn fragment(State(app): State<App>, request: Request) -> Response {
    app.recording.forward(request).await
}

/// A recording as one plain MP4
#[utoipa::path(get, path = "/api/v1/cameras/{id}/recording.mp4", tag = "cameras",
    params(("id" = i64, Path, description = "Camera"),
        ("start" = String, Query, description = "RFC 3339"), ("end" = String, Query, description = "RFC 3339")),
    responses((status = 200, content_type = "video/mp4"), (status = 404, body = views::Problem)))]
pub async fn recording(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<i64>,
    request: Request,
) -> Result<Response, Failure> {
    // Who took footage out, and which: before it leaves.
    let asked = request.uri().query().unwrap_or_default().to_owned();
    app.record(&caller, "export-recording", &id.to_string(), &asked).await?;
    let mut leave = gate::leave(&app, request.headers());
    let footage = app.recording.forward(request).await;
    // Cut off, its length is not what was announced: nobody takes it for the whole.
    let until = async move { leave.withdrawn().await };
    Ok(footage.map(|body| Body::from_stream(body.into_data_stream().take_until(Box::pin(until)))))
}
