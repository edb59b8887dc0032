//! The recording server's HTTP API, under `/api/v1`. Who may ask is decided before a request comes here.
//!
//! | route | answer |
//! |---|---|
//! | `GET`, `POST /hardware`, `DELETE /hardware/{id}` | step 8, and what was added |
//! | `PATCH /hardware/{id}` | the device went to another tunnel server; its cameras go on there |
//! | `PUT`, `DELETE /tunnel-servers/{name}` | how the devices of a tunnel server are reached |
//! | `GET /cameras`, `GET`, `PATCH /cameras/{id}` | cameras with their state |
//! | `GET /cameras/{id}/live` | WebSocket, see `live.rs`; ends when the [`Leave`] of the request is withdrawn |
//! | `GET /cameras/{id}/timeline?start=&end=` | what was recorded, and the gaps with their causes |
//! | `GET /cameras/{id}/init/{init}`, `/fragment?time=` | playback, a group of pictures at a time |
//! | `GET /cameras/{id}/recording.mp4?start=&end=` | export; ranges |
//!
//! Times are RFC 3339 or seconds since 1970, with a fraction if need be.

use std::ops::Range;

use axum::Json;
use axum::Router;
use axum::body::Body;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{Extension, Path, Query, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, post, put};
use homing_base::Leave;
use homing_base::http::Failure;
use homing_media::time::{Ticks, ticks_from_nanos};
use homing_protocol::SerialNumber;
use homing_protocol::api::Problem;
use homing_protocol::api::recording::{
    Camera, CameraChange, Hardware, HardwareChange, NewHardware, Timeline, Way, fragment_headers,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use jiff::Timestamp;
use serde::Deserialize;

use crate::export::{Export, LONGEST};
use crate::server::Server;
use crate::writer::timestamp;
use crate::{live, now};

/// All routes.
pub(crate) fn router(server: Server) -> Router {
    let cameras = Router::new()
        .route("/", get(camera).patch(change_camera))
        .route("/live", get(live))
        .route("/timeline", get(timeline))
        .route("/init/{init}", get(init))
        .route("/fragment", get(fragment))
        .route("/recording.mp4", get(recording));
    let api = Router::new()
        .route("/hardware", get(hardware).post(add_hardware))
        .route("/hardware/{id}", delete(delete_hardware).patch(change_hardware))
        .route("/cameras", get(all_cameras))
        .route("/devices/{serial}/connected", post(device_connected))
        .route("/tunnel-servers/{name}", put(set_way).delete(forget_way))
        .nest("/cameras/{id}", cameras);
    Router::new().nest("/api/v1", api).with_state(server)
}

async fn hardware(State(server): State<Server>) -> Json<Vec<Hardware>> {
    Json(server.hardware())
}

async fn add_hardware(
    State(server): State<Server>,
    new: Result<Json<NewHardware>, JsonRejection>,
) -> Result<(StatusCode, Json<Hardware>), Failure> {
    let Json(new) = new.map_err(|rejection| Failure::bad_request(rejection.body_text()))?;
    Ok((StatusCode::CREATED, Json(server.add(new).await?)))
}

async fn delete_hardware(State(server): State<Server>, Path(id): Path<i64>) -> Result<StatusCode, Failure> {
    server.delete(id).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn change_hardware(
    State(server): State<Server>,
    Path(id): Path<i64>,
    change: Result<Json<HardwareChange>, JsonRejection>,
) -> Result<Json<Hardware>, Failure> {
    let Json(change) = change.map_err(|rejection| Failure::bad_request(rejection.body_text()))?;
    Ok(Json(server.follow(id, &change.server).await?))
}

async fn set_way(
    State(server): State<Server>,
    Path(name): Path<String>,
    way: Result<Json<Way>, JsonRejection>,
) -> Result<StatusCode, Failure> {
    let Json(way) = way.map_err(|rejection| Failure::bad_request(rejection.body_text()))?;
    let set = server.shared.connectors.set_way(&name, &way);
    set.map_err(|error| Failure::bad_request(format!("The tunnel server {name:?}: {error:#}.")))?;
    Ok(StatusCode::NO_CONTENT)
}

async fn forget_way(State(server): State<Server>, Path(name): Path<String>) -> StatusCode {
    server.shared.connectors.forget_way(&name);
    StatusCode::NO_CONTENT
}

async fn device_connected(State(server): State<Server>, Path(serial): Path<SerialNumber>) -> StatusCode {
    server.device_connected(serial);
    StatusCode::NO_CONTENT
}

async fn all_cameras(State(server): State<Server>) -> Json<Vec<Camera>> {
    Json(server.cameras())
}

async fn camera(State(server): State<Server>, Path(id): Path<i64>) -> Result<Json<Camera>, Failure> {
    Ok(Json(server.camera(id)?.view()))
}

async fn change_camera(
    State(server): State<Server>,
    Path(id): Path<i64>,
    change: Result<Json<CameraChange>, JsonRejection>,
) -> Result<Json<Camera>, Failure> {
    let Json(change) = change.map_err(|rejection| Failure::bad_request(rejection.body_text()))?;
    Ok(Json(server.rename(id, &change.name).await?))
}

async fn live(
    State(server): State<Server>,
    Path(id): Path<i64>,
    leave: Option<Extension<Leave>>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, Failure> {
    let camera = server.camera(id)?;
    let Ok(permit) = server.viewers.clone().try_acquire_owned() else {
        let message =
            "As many viewers as this server takes are watching; its `viewers` setting says how many.";
        return Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, Problem::new("too-many-viewers", message)));
    };
    let (metrics, stop) = (server.shared.metrics.clone(), server.stop.clone());
    Ok(upgrade.on_upgrade(async move |socket| {
        let leave = leave.map(|Extension(leave)| leave);
        let served = stop.spawn(live::serve(socket, camera.hub.clone(), metrics, leave, stop.clone()));
        let _ = served.await;
        drop(permit);
    }))
}

/// `start` and `end`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Span {
    start: Option<String>,
    end: Option<String>,
}

async fn timeline(
    State(server): State<Server>,
    Path(id): Path<i64>,
    span: Result<Query<Span>, QueryRejection>,
) -> Result<Json<Timeline>, Failure> {
    let exists = server.existence(id).await?;
    let span = query(span)?;
    let extent = server.playback.extent(id).await?;
    let first = extent.map_or(exists.0, |extent| extent.0.min(exists.0));
    let start = span.start.as_deref().map(|text| parse_time("start", text)).transpose()?.unwrap_or(first);
    let end = span.end.as_deref().map(|text| parse_time("end", text)).transpose()?.unwrap_or_else(now);
    check_order(start, end)?;
    let plays_since = server.camera(id).ok().and_then(|camera| camera.plays_since());
    Ok(Json(server.playback.timeline(id, start, end, exists, plays_since).await?))
}

async fn init(
    State(server): State<Server>,
    Path((id, init)): Path<(i64, String)>,
) -> Result<Response, Failure> {
    let Some((mime, bytes)) = server.init(id, &init).await? else {
        return Err(Failure::not_found(format!("Camera {id} has no initialisation segment {init:?}.")));
    };
    let mut response = Body::from(bytes).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("video/mp4"));
    headers.insert(HeaderName::from_static(fragment_headers::MIME), header_value(&mime));
    // Its name is its content.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, max-age=31536000, immutable"));
    Ok(response)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct At {
    time: String,
}

async fn fragment(
    State(server): State<Server>,
    Path(id): Path<i64>,
    at: Result<Query<At>, QueryRejection>,
) -> Result<Response, Failure> {
    server.existence(id).await?;
    let time = parse_time("time", &query(at)?.time)?;
    let Some(group) = server.playback.group(id, time).await? else {
        return Err(nothing_there(&server, id, time).await?);
    };
    let mime = server.init(id, &group.init).await?.map(|(mime, _)| mime).unwrap_or_default();
    let mut response = Body::from(group.bytes).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("video/mp4"));
    let mut put =
        |name: &'static str, value: &str| headers.insert(HeaderName::from_static(name), header_value(value));
    put(fragment_headers::START, &timestamp(group.start).to_string());
    put(fragment_headers::END, &timestamp(group.end).to_string());
    put(fragment_headers::INIT, &group.init);
    put(fragment_headers::MIME, &mime);
    if let Some(next) = group.next {
        put(fragment_headers::NEXT, &timestamp(next).to_string());
    }
    Ok(response)
}

async fn recording(
    State(server): State<Server>,
    Path(id): Path<i64>,
    span: Result<Query<Span>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    server.existence(id).await?;
    let span = query(span)?;
    let (Some(start), Some(end)) = (&span.start, &span.end) else {
        return Err(Failure::bad_request("An export needs `start` and `end`."));
    };
    let (start, end) = (parse_time("start", start)?, parse_time("end", end)?);
    check_order(start, end)?;
    if end - start > LONGEST {
        return Err(Failure::bad_request("An export is 24 hours long at most; ask for it in parts."));
    }
    let Some(export) = server.playback.export(id, start, end).await? else {
        return Err(nothing_there(&server, id, start).await?);
    };
    let name = format!("camera-{id}-{}.mp4", timestamp(export.start).strftime("%Y%m%dT%H%M%SZ"));
    Ok(send(export, &name, &headers))
}

/// The whole, or the range that was asked for (RFC 9110 §14).
fn send(export: Export, name: &str, asked: &HeaderMap) -> Response {
    let len = export.len;
    let is_current = asked.get(header::IF_RANGE).is_none_or(|tag| tag.as_bytes() == export.etag.as_bytes());
    let range = asked.get(header::RANGE).filter(|_| is_current).and_then(|value| value.to_str().ok());
    let range = range.map_or(Asked::Whole, |range| parse_range(range, len));
    let mut response = match &range {
        Asked::Unsatisfiable => {
            let message = format!("The export has {len} bytes; the range lies outside.");
            Failure::new(StatusCode::RANGE_NOT_SATISFIABLE, Problem::new("range-outside", message))
                .into_response()
        }
        asked => {
            let bytes = if let Asked::Part(part) = asked { part.clone() } else { 0..len };
            let sent = bytes.end - bytes.start;
            let (etag, start, end) = (export.etag.clone(), export.start, export.end);
            let mut response = Body::from_stream(export.stream(bytes)).into_response();
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("video/mp4"));
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(sent));
            headers.insert(header::ETAG, header_value(&etag));
            headers.insert(
                header::CONTENT_DISPOSITION,
                header_value(&format!("attachment; filename=\"{name}\"")),
            );
            let mut put = |name: &'static str, ticks| {
                headers.insert(HeaderName::from_static(name), header_value(&timestamp(ticks).to_string()));
            };
            put(fragment_headers::START, start);
            put(fragment_headers::END, end);
            response
        }
    };
    let headers = response.headers_mut();
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    match range {
        Asked::Part(part) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let content_range = format!("bytes {}-{}/{len}", part.start, part.end - 1);
            response.headers_mut().insert(header::CONTENT_RANGE, header_value(&content_range));
        }
        Asked::Unsatisfiable => {
            headers.insert(header::CONTENT_RANGE, header_value(&format!("bytes */{len}")));
        }
        Asked::Whole => {}
    }
    response
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Asked {
    Whole,
    Part(Range<u64>),
    Unsatisfiable,
}

/// One range of bytes; several at once, and other units, are answered with the whole, as the standard allows.
fn parse_range(text: &str, len: u64) -> Asked {
    let Some((first, last)) = text.trim().strip_prefix("bytes=").and_then(|range| range.split_once('-'))
    else {
        return Asked::Whole;
    };
    let number = |text: &str| if text.is_empty() { Some(None) } else { text.parse::<u64>().ok().map(Some) };
    let (Some(first), Some(last)) = (number(first.trim()), number(last.trim())) else { return Asked::Whole };
    let part = match (first, last) {
        (Some(first), Some(last)) if first > last => return Asked::Whole,
        (Some(first), last) => first..last.map_or(len, |last| last.saturating_add(1).min(len)),
        (None, Some(count)) => len.saturating_sub(count)..len,
        (None, None) => return Asked::Whole,
    };
    if part.is_empty() { Asked::Unsatisfiable } else { Asked::Part(part) }
}

/// 404 that says what there is instead.
async fn nothing_there(server: &Server, camera: i64, time: Ticks) -> Result<Failure, Failure> {
    let hint = match (server.playback.next_after(camera, time).await?, server.playback.extent(camera).await?)
    {
        (Some(next), _) => format!("the next footage begins at {}", timestamp(next)),
        (None, Some((first, last))) => {
            format!("its footage reaches from {} to {}", timestamp(first), timestamp(last))
        }
        (None, None) => "it has no footage at all".to_owned(),
    };
    let message = format!("Camera {camera} has nothing recorded there; {hint}.");
    Ok(Failure::new(StatusCode::NOT_FOUND, Problem::new("nothing-recorded", message)))
}

fn query<T>(parsed: Result<Query<T>, QueryRejection>) -> Result<T, Failure> {
    parsed.map(|Query(value)| value).map_err(|rejection| Failure::bad_request(rejection.body_text()))
}

fn check_order(start: Ticks, end: Ticks) -> Result<(), Failure> {
    if start < end { Ok(()) } else { Err(Failure::bad_request("`start` must be before `end`.")) }
}

/// RFC 3339, or seconds since 1970.
fn parse_time(name: &str, text: &str) -> Result<Ticks, Failure> {
    // A plus sign in a query means a space, and people forget to escape it.
    let text = text.trim().replace(' ', "+");
    let nanos = match text.parse::<Timestamp>() {
        Ok(time) => Some(time.as_nanosecond()),
        Err(_) => seconds(&text),
    };
    nanos.map(ticks_from_nanos).ok_or_else(|| {
        let example = "2026-01-31T12:00:00Z, or seconds since 1970 such as 1769860800.25";
        Failure::bad_request(format!("`{name}` is not a time; write {example}."))
    })
}

/// Exact, where a floating-point number would not be.
fn seconds(text: &str) -> Option<i128> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let is_number = !whole.is_empty() && whole.len() <= 11 && fraction.len() <= 12;
    if !is_number || !whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanos: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    Some(whole.parse::<i128>().ok()? * 1_000_000_000 + nanos.parse::<i128>().ok()?)
}

fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: times as people and programs write them.
    #[test]
    fn times() {
        let ticks = |text: &str| parse_time("time", text).ok();
        let expected = Some(1_700_000_000 * 90_000 + 45_000);
        for text in [
            "2023-11-14T22:13:20.5Z",
            "2023-11-14T23:13:20.5+01:00",
            "2023-11-14T23:13:20.5 01:00",
            "1700000000.5",
        ] {
            assert_eq!(ticks(text), expected, "{text}");
        }
        for text in ["", "yesterday", "-5", "1e9", "1.2.3", "2023-11-14", "999999999999"] {
            assert_eq!(ticks(text), None, "{text}");
        }
    }

    /// Goal: ranges as RFC 9110 §14.1.2 describes them.
    #[test]
    fn byte_ranges() {
        for (text, expected) in [
            ("bytes=0-9", Asked::Part(0..10)),
            ("bytes=90-", Asked::Part(90..100)),
            ("bytes=-10", Asked::Part(90..100)),
            ("bytes=-1000", Asked::Part(0..100)),
            ("bytes=50-1000", Asked::Part(50..100)),
            ("bytes=100-", Asked::Unsatisfiable),
            ("bytes=-0", Asked::Unsatisfiable),
            ("bytes=5-2", Asked::Whole),
            ("bytes=0-1,5-6", Asked::Whole),
            ("bytes=-", Asked::Whole),
            ("lines=1-2", Asked::Whole),
        ] {
            assert_eq!(parse_range(text, 100), expected, "{text}");
        }
    }
}
