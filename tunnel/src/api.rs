//! The internal address: JSON API, event stream, `/healthz` and `/metrics` beside the proxy, on one HTTP/1.1 server.
//!
//! Every route has its page in the OpenAPI document, `GET /api/openapi.json`. The messages are in `protocol/src/api/tunnel.rs`. Everything wants user and password, but `/healthz` for a word and,
//! from this machine, `/metrics`.

use crate::{
    devices::Devices,
    events::{Event, Events},
    guard::{Denied, Guard},
    proxy::{CHALLENGE, CHALLENGE_TEXT, Proxy, too_many},
    relay::{Relay, not_registered},
};
use axum::{
    Json, Router,
    body::Body,
    extract::{ConnectInfo, FromRequestParts, Path, State},
    middleware::{self, Next},
    response::{IntoResponse, Response, Sse, sse},
    routing::get,
};
use futures_util::Stream;
use homing_base::{
    Ops, Stop,
    http::{Failure, by_router},
};
use homing_protocol::{
    Oak, Secret, SerialNumber, Step,
    api::{
        Problem,
        dispatcher::Offer,
        tunnel::{ChangeDevice, Connection, Device, Figures, Move, NewDevice, Server},
    },
    secret::Credentials,
};
use http::{HeaderMap, Request, StatusCode, header, request::Parts};
use hyper::body::Incoming;
use serde::{Deserialize, de::DeserializeOwned};
use std::{convert::Infallible, future::Future, net::SocketAddr, sync::Arc, time::Duration};
use utoipa::{
    OpenApi,
    openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
};
use utoipa_axum::{router::OpenApiRouter, routes};

/// The longest request body: a registration is far smaller.
const BODY_MAX_BYTES: usize = 16 * 1024;

/// A comment on an event stream that has nothing to tell, so that both ends notice when the other has gone.
const EVENTS_KEEPALIVE: Duration = Duration::from_secs(10);

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Homing tunnel server",
        description = "What a VMS asks at the internal address. Every answer that is not a success is a `Problem`; \
                       decide by its code.",
        license(name = "MIT OR Apache-2.0")
    ),
    components(schemas(Problem))
)]
struct Document;

/// A device in the path.
struct Serial(SerialNumber);

impl<S: Send + Sync> FromRequestParts<S> for Serial {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(text)) => serial_number(&text).map(Serial),
            Err(_) => Err(Failure::bad_request("The path holds no serial number.")),
        }
    }
}

/// What the handlers share.
#[derive(Clone)]
pub(crate) struct Api {
    pub devices: Arc<Devices>,
    pub relay: Arc<Relay>,
    pub guard: Arc<Guard>,
    pub stop: Stop,
    pub server: Arc<ServerFacts>,
}

/// What does not change about the server.
pub(crate) struct ServerFacts {
    pub name: String,
    pub external: SocketAddr,
    pub public: Vec<String>,
}

/// Answers a request on the internal address: the proxy's or the API's.
pub(crate) fn service(
    api: Api,
    proxy: Proxy,
    ops: &Ops,
) -> impl Fn(Request<Incoming>) -> std::pin::Pin<Box<dyn Future<Output = Response> + Send>>
+ Clone
+ Send
+ Sync
+ 'static {
    let guard = Arc::clone(&api.guard);
    let router = router(api).merge(ops.router(CHALLENGE_TEXT, move |request| {
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
        let credentials = request.headers().get(header::AUTHORIZATION);
        peer.is_some_and(|peer| guard.check(peer.0.ip(), credentials).is_ok())
    }));
    move |request| {
        let (router, proxy) = (router.clone(), proxy.clone());
        Box::pin(async move {
            if Proxy::is_for(&request) {
                let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
                let Some(peer) = peer else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
                return proxy.answer(peer, request).await;
            }
            by_router(router, request).await
        })
    }
}

fn router(api: Api) -> Router {
    let (router, document) = routes();
    router
        .fallback(async || Failure::not_found("There is nothing at this path; the API is under /api/v1."))
        .layer(middleware::from_fn_with_state(api.clone(), authenticate))
        // For everybody: it says nothing about this tunnel server.
        .route("/api/openapi.json", get(Json(document)))
        .with_state(api)
}

fn routes() -> (Router<Api>, utoipa::openapi::OpenApi) {
    let (router, mut document) = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(server))
        .routes(routes!(devices, register))
        .routes(routes!(device, change, remove))
        .routes(routes!(history))
        .routes(routes!(figures))
        .routes(routes!(credentials))
        .routes(routes!(handover))
        .routes(routes!(send, call_back))
        .routes(routes!(offer, withdraw))
        .routes(routes!(events))
        .split_for_parts();
    let basic = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Basic).build());
    document.components.get_or_insert_default().add_security_scheme("basic", basic);
    document.security = Some(vec![SecurityRequirement::new("basic", [""; 0])]);
    (router, document)
}

async fn authenticate(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: axum::extract::Request,
    next: Next,
) -> Response {
    match api.guard.check(peer.ip(), request.headers().get(header::AUTHORIZATION)) {
        Ok(()) => return next.run(request).await,
        Err(Denied::TooMany(wait)) => return too_many(wait),
        Err(Denied::Missing | Denied::Wrong) => (),
    }
    let message = "The tunnel server's user and password are wanted (Authorization: Basic).";
    let problem = Problem::new("unauthorized", message);
    let mut response = Failure::new(StatusCode::UNAUTHORIZED, problem).into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, CHALLENGE);
    response
}

#[utoipa::path(
    get,
    path = "/api/v1/server",
    responses(
        (status = 200, description = "This tunnel server", body = Server),
        (status = 401, description = "No or wrong password", body = Problem),
        (status = 429, description = "Too many wrong passwords", body = Problem),
    )
)]
async fn server(State(api): State<Api>) -> Json<Server> {
    let dispatcher = api.relay.dispatcher();
    Json(Server {
        name: api.server.name.clone(),
        external: api.server.external.to_string(),
        public: api.server.public.clone(),
        dispatcher: dispatcher.address().to_owned(),
        dispatcher_problem: dispatcher.problem(),
        account: dispatcher.account().to_owned(),
        trust_anchor: dispatcher.trust_anchor(),
        certificates: dispatcher.certificates(),
    })
}

#[utoipa::path(
    get,
    path = "/api/v1/devices",
    responses(
        (status = 200, description = "All devices", body = Vec<Device>),
        (status = 401, description = "No or wrong password", body = Problem),
        (status = 429, description = "Too many wrong passwords", body = Problem),
    )
)]
async fn devices(State(api): State<Api>) -> Json<Vec<Device>> {
    Json(api.devices.all())
}

#[utoipa::path(
    get,
    path = "/api/v1/devices/{serial}",
    params(("serial" = String, Path, description = "Serial number, twelve hexadecimal digits")),
    responses(
        (status = 200, description = "The device", body = Device),
        (status = 400, description = "The request is wrong", body = Problem),
        (status = 404, description = "Not registered here", body = Problem),
        (status = 401, description = "No or wrong password", body = Problem),
        (status = 429, description = "Too many wrong passwords", body = Problem),
    )
)]
async fn device(State(api): State<Api>, Serial(serial): Serial) -> Result<Json<Device>, Failure> {
    api.devices.get(serial).map(Json).ok_or_else(|| not_registered(serial))
}

#[utoipa::path(
    get,
    path = "/api/v1/devices/{serial}/history",
    params(("serial" = String, Path, description = "Serial number, twelve hexadecimal digits")),
    responses(
        (status = 200, description = "Its last connections, the newest first", body = Vec<Connection>),
        (status = 400, description = "The request is wrong", body = Problem),
        (status = 404, description = "Not registered here", body = Problem),
        (status = 401, description = "No or wrong password", body = Problem),
        (status = 429, description = "Too many wrong passwords", body = Problem),
    )
)]
async fn history(State(api): State<Api>, Serial(serial): Serial) -> Result<Json<Vec<Connection>>, Failure> {
    api.devices.get(serial).ok_or_else(|| not_registered(serial))?;
    Ok(Json(api.devices.history().of(serial).await?))
}

#[utoipa::path(
    get,
    path = "/api/v1/figures",
    responses(
        (status = 200, description = "Of every device that is connected, what changes all the time", body = Vec<Figures>),
        (status = 401, description = "No or wrong password", body = Problem),
        (status = 429, description = "Too many wrong passwords", body = Problem),
    )
)]
async fn figures(State(api): State<Api>) -> Json<Vec<Figures>> {
    Json(api.devices.figures())
}

/// Steps 1 and 2.
#[utoipa::path(
    post,
    path = "/api/v1/devices",
    request_body = NewDevice,
    responses(
        (status = 201, description = "Registered and relayed", body = Device),
        (status = 202, description = "Registered, and relayed as soon as the dispatcher is reached", body = Device),
        (status = 400, description = "The request is wrong", body = Problem),
        (status = 403, description = "The dispatcher allows no more", body = Problem),
        (status = 404, description = "Not registered here", body = Problem),
        (status = 409, description = "It is taken, or elsewhere", body = Problem),
        (status = 415, description = "Not JSON", body = Problem),
        (status = 422, description = "The dispatcher refuses it", body = Problem),
        (status = 429, description = "Too many wrong passwords or registrations", body = Problem),
        (status = 401, description = "No or wrong password", body = Problem),
    )
)]
async fn register(
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
        fingerprint: new.fingerprint,
    };
    let stop = api.stop.clone();
    let (device, relayed) =
        to_its_end(&api.stop, async move { api.relay.register(new, &stop).await }).await?;
    let status = if relayed { StatusCode::CREATED } else { StatusCode::ACCEPTED };
    Ok((status, Json(device)))
}

#[utoipa::path(
    patch,
    path = "/api/v1/devices/{serial}",
    params(("serial" = String, Path, description = "Serial number, twelve hexadecimal digits")),
    request_body = ChangeDevice,
    responses(
        (status = 200, description = "As it is now", body = Device),
        (status = 400, description = "The request is wrong", body = Problem),
        (status = 403, description = "The dispatcher allows no more", body = Problem),
        (status = 404, description = "Not registered here", body = Problem),
        (status = 409, description = "It is taken, or elsewhere", body = Problem),
        (status = 415, description = "Not JSON", body = Problem),
        (status = 422, description = "The dispatcher refuses it", body = Problem),
        (status = 429, description = "Too many wrong passwords or registrations", body = Problem),
        (status = 401, description = "No or wrong password", body = Problem),
    )
)]
async fn change(
    State(api): State<Api>,
    Serial(serial): Serial,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Device>, Failure> {
    let change: ChangeDevice = read(&headers, body).await?;
    let stop = api.stop.clone();
    to_its_end(&api.stop, async move { api.relay.change(serial, change, &stop).await }).await.map(Json)
}

#[utoipa::path(
    delete,
    path = "/api/v1/devices/{serial}",
    params(("serial" = String, Path, description = "Serial number, twelve hexadecimal digits")),
    responses(
        (status = 204, description = "Forgotten"),
        (status = 400, description = "The request is wrong", body = Problem),
        (status = 404, description = "Not registered here", body = Problem),
        (status = 401, description = "No or wrong password", body = Problem),
        (status = 429, description = "Too many wrong passwords", body = Problem),
    )
)]
async fn remove(State(api): State<Api>, Serial(serial): Serial) -> Result<StatusCode, Failure> {
    let stop = api.stop.clone();
    to_its_end(&api.stop, async move { api.relay.remove(serial, &stop).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What holds a secret stays nowhere on its way.
type Unstored<T> = ([(header::HeaderName, &'static str); 1], Json<T>);

fn secretly<T>(secret: T) -> Unstored<T> {
    ([(header::CACHE_CONTROL, "no-store")], Json(secret))
}

#[utoipa::path(
    get,
    path = "/api/v1/devices/{serial}/credentials",
    params(("serial" = String, Path, description = "Serial number, twelve hexadecimal digits")),
    responses(
        (status = 200, description = "The device's user and password", body = Credentials),
        (status = 400, description = "The request is wrong", body = Problem),
        (status = 404, description = "Not registered here", body = Problem),
        (status = 401, description = "No or wrong password", body = Problem),
        (status = 429, description = "Too many wrong passwords", body = Problem),
    )
)]
async fn credentials(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Serial(serial): Serial,
) -> Result<Unstored<Credentials>, Failure> {
    let credentials = api.relay.credentials(serial).await?;
    tracing::info!(%serial, by = api.guard.user(), %peer, "the device's user and password were shown");
    Ok(secretly(credentials))
}

#[utoipa::path(
    get,
    path = "/api/v1/devices/{serial}/handover",
    params(("serial" = String, Path, description = "Serial number, twelve hexadecimal digits")),
    responses(
        (status = 200, description = "What another tunnel server needs", body = NewDevice),
        (status = 400, description = "The request is wrong", body = Problem),
        (status = 404, description = "Not registered here", body = Problem),
        (status = 401, description = "No or wrong password", body = Problem),
        (status = 429, description = "Too many wrong passwords", body = Problem),
    )
)]
async fn handover(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Serial(serial): Serial,
) -> Result<Unstored<NewDevice>, Failure> {
    let handover = api.relay.handover(serial).await?;
    tracing::info!(%serial, by = api.guard.user(), %peer, "the device's OAK, user and password were handed over");
    Ok(secretly(handover))
}

#[utoipa::path(
    put,
    path = "/api/v1/devices/{serial}/move",
    params(("serial" = String, Path, description = "Serial number, twelve hexadecimal digits")),
    request_body = Move,
    responses(
        (status = 200, description = "As it is now", body = Device),
        (status = 400, description = "The request is wrong", body = Problem),
        (status = 403, description = "The dispatcher allows no more", body = Problem),
        (status = 404, description = "Not registered here", body = Problem),
        (status = 409, description = "It is taken, or elsewhere", body = Problem),
        (status = 415, description = "Not JSON", body = Problem),
        (status = 422, description = "The dispatcher refuses it", body = Problem),
        (status = 429, description = "Too many wrong passwords or registrations", body = Problem),
        (status = 401, description = "No or wrong password", body = Problem),
    )
)]
async fn send(
    State(api): State<Api>,
    Serial(serial): Serial,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Device>, Failure> {
    let order: Move = read(&headers, body).await?;
    let stop = api.stop.clone();
    to_its_end(&api.stop, async move { api.relay.send(serial, order, &stop).await }).await.map(Json)
}

#[utoipa::path(
    delete,
    path = "/api/v1/devices/{serial}/move",
    params(("serial" = String, Path, description = "Serial number, twelve hexadecimal digits")),
    responses(
        (status = 200, description = "As it is now", body = Device),
        (status = 400, description = "The request is wrong", body = Problem),
        (status = 404, description = "Not registered here", body = Problem),
        (status = 401, description = "No or wrong password", body = Problem),
        (status = 429, description = "Too many wrong passwords", body = Problem),
    )
)]
async fn call_back(State(api): State<Api>, Serial(serial): Serial) -> Result<Json<Device>, Failure> {
    let stop = api.stop.clone();
    to_its_end(&api.stop, async move { api.relay.call_back(serial, &stop).await }).await.map(Json)
}

#[utoipa::path(
    put,
    path = "/api/v1/devices/{serial}/offer",
    params(("serial" = String, Path, description = "Serial number, twelve hexadecimal digits")),
    request_body = Offer,
    responses(
        (status = 204, description = "Offered"),
        (status = 400, description = "The request is wrong", body = Problem),
        (status = 403, description = "The dispatcher allows no more", body = Problem),
        (status = 404, description = "Not registered here", body = Problem),
        (status = 409, description = "It is taken, or elsewhere", body = Problem),
        (status = 415, description = "Not JSON", body = Problem),
        (status = 422, description = "The dispatcher refuses it", body = Problem),
        (status = 429, description = "Too many wrong passwords or registrations", body = Problem),
        (status = 502, description = "The dispatcher is not reached", body = Problem),
        (status = 401, description = "No or wrong password", body = Problem),
    )
)]
async fn offer(
    State(api): State<Api>,
    Serial(serial): Serial,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Failure> {
    api.relay.offer(serial, read(&headers, body).await?, &api.stop).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(
    delete,
    path = "/api/v1/devices/{serial}/offer",
    params(("serial" = String, Path, description = "Serial number, twelve hexadecimal digits")),
    responses(
        (status = 204, description = "Withdrawn"),
        (status = 400, description = "The request is wrong", body = Problem),
        (status = 403, description = "The dispatcher allows no more", body = Problem),
        (status = 404, description = "Not registered here", body = Problem),
        (status = 409, description = "It is taken, or elsewhere", body = Problem),
        (status = 422, description = "The dispatcher refuses it", body = Problem),
        (status = 429, description = "Too many wrong passwords or registrations", body = Problem),
        (status = 502, description = "The dispatcher is not reached", body = Problem),
        (status = 401, description = "No or wrong password", body = Problem),
    )
)]
async fn withdraw(State(api): State<Api>, Serial(serial): Serial) -> Result<StatusCode, Failure> {
    api.relay.withdraw(serial, &api.stop).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[utoipa::path(
    get,
    path = "/api/v1/events",
    responses(
        (status = 200, description = "Every device, then every change", body = String, content_type = "text/event-stream"),
        (status = 401, description = "No or wrong password", body = Problem),
        (status = 429, description = "Too many wrong passwords", body = Problem),
    )
)]
async fn events(State(api): State<Api>) -> Sse<impl Stream<Item = Result<sse::Event, Infallible>>> {
    let following = (api.devices.subscribe(), api.stop.clone());
    let stream = futures_util::stream::unfold(following, |(mut events, stop)| async move {
        let event = next_event(&mut events, &stop).await?;
        Some((Ok(event), (events, stop)))
    });
    Sse::new(stream).keep_alive(sse::KeepAlive::new().interval(EVENTS_KEEPALIVE))
}

async fn next_event(events: &mut Events, stop: &Stop) -> Option<sse::Event> {
    let event = tokio::select! {
        event = events.next() => event?,
        () = stop.cancelled() => return None,
    };
    let event = match event {
        Event::Device(device) => sse::Event::default().event("device").json_data(&*device),
        Event::Removed(serial) => {
            sse::Event::default().event("removed").json_data(serde_json::json!({ "serial": serial }))
        }
    };
    event.ok()
}

/// Runs a change to its end, whether or not who asked for it is still there: a registration that was relayed and then
/// dropped half-way would be neither kept nor refused.
async fn to_its_end<T: Send + 'static>(
    stop: &Stop,
    change: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<T, Failure> {
    stop.spawn(change).await.map_err(|error| anyhow::anyhow!("the change did not end: {error}"))?
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
    fingerprint: Option<String>,
}

fn serial_number(text: &str) -> Result<SerialNumber, Failure> {
    text.parse().map_err(|error| typed_wrong("bad-serial-number", &error))
}

fn oak(text: &Secret) -> Result<Oak, Failure> {
    text.expose().parse().map_err(|error| typed_wrong("bad-oak", &error))
}

fn typed_wrong(code: &str, error: &dyn std::error::Error) -> Failure {
    Failure::new(StatusCode::BAD_REQUEST, Problem::at(Step::Register, code, error.to_string()))
}

async fn read<T: DeserializeOwned>(headers: &HeaderMap, body: Body) -> Result<T, Failure> {
    // A page from elsewhere can make a browser that knows the password send a form here, but not JSON.
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if !content_type.is_some_and(|value| value.starts_with("application/json")) {
        let problem = Problem::new("bad-request", "This request wants Content-Type: application/json.");
        return Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, problem));
    }
    let body = axum::body::to_bytes(body, BODY_MAX_BYTES).await.map_err(|_| {
        Failure::bad_request(format!(
            "The request's body broke off, or has more than {BODY_MAX_BYTES} bytes."
        ))
    })?;
    serde_json::from_slice(&body).map_err(|error| {
        // The text of serde's errors can quote a value, and a value can be a password.
        let place = format!("line {}, column {}", error.line(), error.column());
        let what = match error.classify() {
            serde_json::error::Category::Data => {
                "is not what this request takes (a field is missing, unknown, or no text)"
            }
            _ => "is not JSON",
        };
        Failure::bad_request(format!("The request's body {what}: {place}."))
    })
}
