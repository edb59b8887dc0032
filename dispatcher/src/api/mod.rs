//! The JSON API, every route with its page in the OpenAPI document (`GET /api/openapi.json`, for everybody: it says
//! nothing about this dispatcher).
//!
//! | module | who asks | credentials |
//! |---|---|---|
//! | [`registrations`] | tunnel servers (steps 2 and 5), `homing_protocol::api::dispatcher` | an account's, Basic |
//! | [`operator`] | the dispatcher's operator | `operator_token`, Bearer |

mod operator;
mod registrations;

use crate::{
    accounts,
    attempts::{Counted, What},
    claims::Rules,
    config::Config,
    devices::Devices,
    gate::{Gate, Refused},
    metrics::Metrics,
    store::{AccountId, Store},
};
use axum::{
    Json, Router,
    body::Bytes,
    extract::{ConnectInfo, DefaultBodyLimit, FromRequest, FromRequestParts, Request},
    http::{HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
    routing::get,
};
use homing_base::{
    Live,
    client::parse_basic,
    crowd::network,
    http::{Failure, unreadable},
    rate::{Pace, Rate},
};
use homing_protocol::{
    SerialNumber, Step,
    api::{self, Problem},
    serial::ParseHexError,
};
use registrations::LastOaks;
use serde::de::DeserializeOwned;
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;
use utoipa::{
    OpenApi,
    openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
};
use utoipa_axum::{router::OpenApiRouter, routes};

/// A registration with its trust anchor; nobody needs more.
const BODY_LIMIT_BYTES: usize = 64 * 1024;

/// What the handlers share.
pub(crate) struct Api {
    store: Arc<Store>,
    devices: Arc<Devices>,
    gate: Gate,
    metrics: Metrics,
    counted: Arc<Counted>,
    rate: Rate<AccountId>,
    last_oaks: LastOaks,
    config: Live<Config>,
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Homing dispatcher",
        description = "What tunnel servers and the operator ask a dispatcher. Every answer that is not a success is a \
                       `Problem`; decide by its code.",
        license(name = "MIT OR Apache-2.0")
    ),
    components(schemas(api::Problem)),
    tags(
        (name = "registrations", description = "Devices of an account"),
        (name = "operator", description = "Accounts, and who guesses"),
    )
)]
struct Document;

impl Api {
    pub fn new(
        config: Live<Config>,
        store: Arc<Store>,
        devices: Arc<Devices>,
        counted: Arc<Counted>,
        metrics: Metrics,
    ) -> Self {
        Api {
            gate: Gate::new(store.pool().clone(), counted.clone()),
            store,
            devices,
            metrics,
            counted,
            rate: Rate::default(),
            last_oaks: LastOaks::new(),
            config,
        }
    }

    /// Devices may be sent to this machine: it listens for them there alone.
    fn may_be_loopback(&self) -> bool {
        self.config.get().external.ip().is_loopback()
    }

    pub fn router(self: Arc<Self>) -> Router {
        let (router, document) = routes();
        router
            .route("/api/openapi.json", get(Json(document)))
            .layer(DefaultBodyLimit::max(BODY_LIMIT_BYTES))
            .with_state(self)
    }

    /// Takes one of the registrations that an account may send in a minute: its name, and what it may do.
    async fn admit(&self, account: AccountId) -> Result<(String, accounts::Limits, Rules), Response> {
        let (name, limits) = accounts::limits(self.store.pool(), account).await.map_err(internal)?;
        let config = self.config.get();
        let per_minute = limits.per_minute.unwrap_or(config.registrations_per_minute);
        self.rate.admit(&account, Pace::per_minute(per_minute.max(1)), Instant::now()).map_err(|wait| {
            self.metrics.request("slowed");
            later(wait, &format!("the account may send {per_minute} registrations a minute"))
        })?;
        let limit = limits.devices.unwrap_or(config.registrations_per_account);
        Ok((name, limits, Rules { limit, listed_only: config.listed_only }))
    }
}

fn routes() -> (Router<Arc<Api>>, utoipa::openapi::OpenApi) {
    let (router, mut document) = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(registrations::show, registrations::register, registrations::release))
        .routes(routes!(registrations::offer, registrations::withdraw))
        .routes(routes!(registrations::arrived))
        .routes(routes!(registrations::changes))
        .routes(routes!(operator::list, operator::add))
        .routes(routes!(operator::one, operator::change))
        .routes(routes!(operator::password))
        .routes(routes!(operator::attempts))
        .split_for_parts();
    let components = document.components.get_or_insert_default();
    for (name, scheme) in [("account", HttpAuthScheme::Basic), ("operator", HttpAuthScheme::Bearer)] {
        let scheme = SecurityScheme::Http(HttpBuilder::new().scheme(scheme).build());
        components.add_security_scheme(name, scheme);
    }
    (router, document)
}

/// What every request with credentials may be answered.
#[derive(utoipa::IntoResponses)]
#[expect(dead_code, reason = "a page of the OpenAPI document; the answers are made by their names below")]
enum Refusals {
    #[response(status = 400, description = "`bad-request`")]
    BadRequest(#[to_schema] Problem),
    #[response(status = 401, description = "`unknown-account`, `unknown-token`")]
    Unauthorized(#[to_schema] Problem),
    #[response(status = 429, description = "`slow-down`, with `Retry-After`")]
    SlowDown(#[to_schema] Problem),
}

/// An account whose credentials were right, and where it asks from.
#[derive(Clone, Copy)]
struct Account {
    id: AccountId,
    peer: IpAddr,
}

impl FromRequestParts<Arc<Api>> for Account {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Response> {
        let header = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let (Some(peer), Some(credentials)) = (peer(parts), header.and_then(parse_basic)) else {
            return Err(unauthorized());
        };
        match api.gate.pass(peer, &credentials).await {
            Ok(id) => {
                api.metrics.request("ok");
                Ok(Account { id, peer })
            }
            Err(Refused::Wrong) => {
                api.metrics.request("unknown-account");
                tracing::warn!(%peer, "API request with a wrong account or password");
                Err(unauthorized())
            }
            Err(Refused::Later(wait)) => {
                api.metrics.request("slowed");
                Err(later(wait, "too many wrong passwords from this address"))
            }
            Err(Refused::Internal(error)) => Err(internal(error)),
        }
    }
}

/// Whoever has the operator's token.
struct Operator;

impl FromRequestParts<Arc<Api>> for Operator {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Response> {
        let from = peer(parts).map(|peer| network(peer).to_string()).unwrap_or_default();
        let wait = api.counted.wait(What::PasswordByNetwork, &from);
        if !wait.is_zero() {
            return Err(later(wait, "too many wrong tokens from this address"));
        }
        if crate::is_sent(&api.config.get().operator_token, &parts.headers) {
            return Ok(Operator);
        }
        if parts.headers.contains_key(header::AUTHORIZATION) {
            api.counted.handle_wrong(What::PasswordByNetwork, &from);
        }
        let message = "this needs the token that [dispatcher] operator_token sets; without one it is closed";
        let challenge = [(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))];
        let problem = Json(Problem::new("unknown-token", message));
        Err((StatusCode::UNAUTHORIZED, challenge, problem).into_response())
    }
}

fn peer(parts: &Parts) -> Option<IpAddr> {
    parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip())
}

/// A parameter in the path, refused with a [`Problem`].
struct Path(String);

impl<S: Send + Sync> FromRequestParts<S> for Path {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let path = axum::extract::Path::<String>::from_request_parts(parts, state).await;
        path.map(|path| Path(path.0)).map_err(|rejection| bad_request(rejection.body_text()))
    }
}

/// The serial number in the path.
struct Serial(SerialNumber);

impl<S: Send + Sync> FromRequestParts<S> for Serial {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let Path(text) = Path::from_request_parts(parts, state).await?;
        text.parse().map(Serial).map_err(|error: ParseHexError| bad_request(error.to_string()))
    }
}

/// Parameters in the query, refused with a [`Problem`].
struct Query<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let query = axum::extract::Query::<T>::from_request_parts(parts, state).await;
        query.map(|query| Query(query.0)).map_err(|rejection| bad_request(rejection.body_text()))
    }
}

/// A JSON body, refused with a [`Problem`] that says what is wrong with it.
struct Body<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let body =
            Bytes::from_request(request, state).await.map_err(|rejection| match rejection.status() {
                StatusCode::PAYLOAD_TOO_LARGE => {
                    bad_request(format!("the request has more than {BODY_LIMIT_BYTES} bytes"))
                }
                _ => bad_request(rejection.body_text()),
            })?;
        serde_json::from_slice(&body).map(Body).map_err(|error| bad_request(unreadable(&error.to_string())))
    }
}

fn bad_request(message: impl Into<String>) -> Response {
    Failure::bad_request(message).into_response()
}

fn internal(error: anyhow::Error) -> Response {
    Failure::from(error).into_response()
}

fn unauthorized() -> Response {
    let problem = Problem::at(
        Step::Relay,
        "unknown-account",
        "the dispatcher does not know this account and password: check both, and that the account is not disabled",
    );
    let challenge = [(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"dispatcher\""))];
    (StatusCode::UNAUTHORIZED, challenge, Json(problem)).into_response()
}

fn later(wait: Duration, why: &str) -> Response {
    let seconds = wait.as_secs() + 1;
    let problem = Problem::at(Step::Relay, "slow-down", format!("{why}: try again in {seconds} s"));
    let retry = [(header::RETRY_AFTER, HeaderValue::from(seconds))];
    (StatusCode::TOO_MANY_REQUESTS, retry, Json(problem)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: every route is in the document, with all that it answers, and every reference leads somewhere.
    #[test]
    fn the_document_is_whole() {
        let (_, document) = routes();
        let json = serde_json::to_value(&document).unwrap();
        assert!(json["openapi"].as_str().unwrap().starts_with("3.1"));
        let text = json.to_string();
        let references: Vec<&str> =
            text.split("\"$ref\":\"#").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
        assert!(references.len() > 20);
        for reference in references {
            assert!(json.pointer(reference).is_some(), "{reference} leads nowhere");
        }
        let mut operations = 0;
        for (path, item) in json["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                operations += 1;
                let has = |key: &str| operation.get(key).is_some_and(|value| !value.is_null());
                assert!(has("summary") && has("tags") && has("security"), "{method} {path}");
                for status in ["401", "429"] {
                    assert!(operation["responses"].get(status).is_some(), "{method} {path} {status}");
                }
            }
        }
        assert_eq!(operations, 13);
    }
}
