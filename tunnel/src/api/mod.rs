//! The internal address: JSON API, event stream, `/healthz` and `/metrics` beside the proxy, on one HTTP server.
//!
//! Every route has its page in the OpenAPI document, `GET /api/openapi.json`. The messages are in
//! `protocol/src/api/tunnel.rs`. Everything wants user and password, but `/healthz` for a word and, from this machine,
//! `/metrics`.

mod cgi;
mod devices;
mod events;
mod sites;

use crate::{
    config::Plain,
    devices::Devices,
    guard::{Denied, Guard},
    metrics::Metrics,
    proxy::{CHALLENGE, CHALLENGE_TEXT, Proxy, too_many},
    reach::TunnelHandle,
    relay::Relay,
};
use axum::{
    Json, Router,
    body::Body,
    extract::{ConnectInfo, FromRequestParts, Path, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use homing_base::{
    Ops, Stop,
    http::{Encrypted, Failure, by_router},
};
use homing_protocol::{
    SerialNumber,
    api::{
        Problem,
        tunnel::{Reset, Server, Statistics},
    },
    secret::Credentials,
};
use http::{HeaderMap, Request, StatusCode, header, request::Parts, uri::Authority};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};
use utoipa::{
    OpenApi,
    openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
};
use utoipa_axum::{router::OpenApiRouter, routes};

/// The longest request body: a site with all the devices that it may have.
const BODY_MAX_BYTES: usize = 64 * 1024;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Homing tunnel server",
        description = "What a VMS asks at the internal address. Every answer that is not a success is a `Problem`; \
                       decide by its code.",
        license(name = "MIT OR Apache-2.0")
    ),
    components(schemas(Problem, Reset))
)]
struct Document;

/// What may be answered to every request.
#[derive(utoipa::IntoResponses)]
#[expect(dead_code, reason = "pages of the OpenAPI document, as those below")]
enum Guarded {
    #[response(status = 401, description = "No or wrong password: `unauthorized`")]
    Unauthorized(#[to_schema] Problem),
    #[response(status = 429, description = "Too many wrong passwords, or registrations")]
    TooMany(#[to_schema] Problem),
}

/// What may be answered about one device.
#[derive(utoipa::IntoResponses)]
#[expect(dead_code, reason = "as above")]
enum OneDevice {
    #[response(
        status = 400,
        description = "The request is wrong: `bad-serial-number`, `bad-oak`, `bad-request`"
    )]
    Wrong(#[to_schema] Problem),
    #[response(status = 404, description = "Not registered here: `not-found`")]
    Unknown(#[to_schema] Problem),
}

/// How a change may be refused, by us or by the dispatcher.
#[derive(utoipa::IntoResponses)]
#[expect(dead_code, reason = "as above")]
enum Refused {
    #[response(status = 403, description = "The dispatcher allows no more, or the OAK is wrong")]
    Forbidden(#[to_schema] Problem),
    #[response(status = 409, description = "It is taken, or elsewhere")]
    Conflict(#[to_schema] Problem),
    #[response(status = 415, description = "Not JSON")]
    NotJson(#[to_schema] Problem),
    #[response(status = 422, description = "The dispatcher refuses it")]
    Unprocessable(#[to_schema] Problem),
}

/// Who has to be reached for it, and is not: the device or the dispatcher.
#[derive(utoipa::IntoResponses)]
#[expect(dead_code, reason = "as above")]
enum Unreached {
    #[response(status = 502, description = "`not-connected`, `device-failed`, `dispatcher-unreachable`")]
    BadGateway(#[to_schema] Problem),
    #[response(status = 504, description = "`device-timeout`")]
    Timeout(#[to_schema] Problem),
}

/// A device in the path.
#[derive(utoipa::IntoParams)]
#[into_params(names("serial"), parameter_in = Path)]
struct Serial(#[param(value_type = String)] SerialNumber);

impl<S: Send + Sync> FromRequestParts<S> for Serial {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(text)) => devices::serial_number(&text).map(Serial),
            Err(_) => Err(Failure::bad_request("The path holds no serial number.")),
        }
    }
}

/// What the handlers share.
#[derive(Clone)]
pub(crate) struct Api {
    pub devices: Arc<Devices>,
    pub relay: Arc<Relay>,
    pub tunnel: TunnelHandle,
    pub metrics: Arc<Metrics>,
    pub guard: Arc<Guard>,
    pub stop: Stop,
    pub server: Arc<ServerFacts>,
    /// Who may speak plain HTTP.
    pub plain: Plain,
    /// Names and addresses of the internal address.
    pub known_as: Arc<[String]>,
    /// User and password of a device that an integration registers without saying.
    pub factory: Credentials,
    /// PEM of whom devices are to trust where an integration sends them.
    pub neighbours: Arc<str>,
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
    let (guard, plain) = (Arc::clone(&api.guard), api.plain);
    let router = router(api).merge(ops.router(CHALLENGE_TEXT, move |request| {
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
        let credentials = request.headers().get(header::AUTHORIZATION);
        peer.is_some_and(|peer| guard.check(peer.0.ip(), credentials).is_ok())
    }));
    move |request| {
        let (router, proxy) = (router.clone(), proxy.clone());
        Box::pin(async move {
            let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0);
            let Some(peer) = peer else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
            if let Some(response) = proxy.refusal(peer.ip()) {
                return response;
            }
            if !may_be_plain(plain, peer) && request.extensions().get() != Some(&Encrypted(true)) {
                return https_only().into_response();
            }
            if Proxy::is_for(&request) {
                return proxy.answer(peer, request).await;
            }
            by_router(router, request).await
        })
    }
}

fn may_be_plain(plain: Plain, peer: SocketAddr) -> bool {
    match plain {
        Plain::Nobody => false,
        Plain::Loopback => peer.ip().to_canonical().is_loopback(),
        Plain::Everywhere => true,
    }
}

fn https_only() -> Failure {
    let message = "From here this address is spoken to by HTTPS: use https:// for the API, and an HTTPS proxy. (Its \
                   administrator may allow plain HTTP: [tunnel.vms] plain.)";
    Failure::new(StatusCode::FORBIDDEN, Problem::new("https-only", message))
}

fn router(api: Api) -> Router {
    let (router, document) = routes();
    router
        .fallback(async || Failure::not_found("There is nothing at this path; the API is under /api/v1."))
        .layer(middleware::from_fn_with_state(api.clone(), authenticate))
        // They have ways of their own to say who asks.
        .merge(cgi::routes(api.clone()))
        // For everybody: it says nothing about this tunnel server.
        .route("/api/openapi.json", get(Json(document)))
        .with_state(api)
}

fn routes() -> (Router<Api>, utoipa::openapi::OpenApi) {
    let (router, mut document) = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(server))
        .routes(routes!(statistics))
        .routes(routes!(devices::all, devices::register))
        .routes(routes!(devices::one, devices::change, devices::remove))
        .routes(routes!(devices::history))
        .routes(routes!(devices::figures))
        .routes(routes!(sites::all))
        .routes(routes!(sites::put, sites::remove))
        .routes(routes!(devices::credentials))
        .routes(routes!(devices::handover))
        .routes(routes!(devices::send, devices::call_back))
        .routes(routes!(devices::offer, devices::withdraw))
        .routes(routes!(devices::reconnect))
        .routes(routes!(devices::restart))
        .routes(routes!(events::events))
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
    if !api.guard.asks() && !is_known_host(&request, &api.known_as) {
        return unknown_host().into_response();
    }
    match api.guard.check(peer.ip(), request.headers().get(header::AUTHORIZATION)) {
        Ok(()) => next.run(request).await,
        Err(denied) => refuse(denied),
    }
}

/// Whether it was meant for us: a page from elsewhere, under a name of its own that leads here, has a browser do what it
/// likes where nobody is asked for a password.
fn is_known_host(request: &axum::extract::Request, known_as: &[String]) -> bool {
    let host = request.uri().authority().cloned().or_else(|| {
        request.headers().get(header::HOST).and_then(|value| Authority::try_from(value.as_bytes()).ok())
    });
    // Without one it is no browser.
    let Some(host) = host else { return true };
    let host = host.host().trim_start_matches('[').trim_end_matches(']');
    host.parse::<IpAddr>().is_ok() || known_as.iter().any(|known| known.eq_ignore_ascii_case(host))
}

fn unknown_host() -> Failure {
    let message = "This address is not known under that name: use its IP address, or add the name to [tunnel.vms] names.";
    Failure::new(StatusCode::FORBIDDEN, Problem::new("unknown-host", message))
}

fn refuse(denied: Denied) -> Response {
    if let Denied::TooMany(wait) = denied {
        return too_many(wait);
    }
    let message = "The tunnel server's user and password are wanted (Authorization: Basic).";
    let problem = Problem::new("unauthorized", message);
    let mut response = Failure::new(StatusCode::UNAUTHORIZED, problem).into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, CHALLENGE);
    response
}

/// Who knows user and password, also where nobody is asked for them: for what is secret.
struct Trusted(SocketAddr);

impl FromRequestParts<Api> for Trusted {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Response> {
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0);
        let peer = peer.ok_or_else(|| StatusCode::INTERNAL_SERVER_ERROR.into_response())?;
        let header = parts.headers.get(header::AUTHORIZATION);
        api.guard.check_always(peer.ip(), header).map(|()| Trusted(peer)).map_err(refuse)
    }
}

/// The tunnel server itself
#[utoipa::path(get, path = "/api/v1/server", responses((status = 200, body = Server), Guarded))]
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

/// What it carries, in all
#[utoipa::path(get, path = "/api/v1/statistics", responses((status = 200, body = Statistics), Guarded))]
async fn statistics(State(api): State<Api>) -> Json<Statistics> {
    Json(api.metrics.statistics(&api.devices))
}

/// Runs a change to its end, whether or not who asked for it is still there: a registration that was relayed and then
/// dropped half-way would be neither kept nor refused.
async fn to_its_end<T: Send + 'static>(
    stop: &Stop,
    change: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<T, Failure> {
    stop.spawn(change).await.map_err(|error| anyhow::anyhow!("the change did not end: {error}"))?
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
