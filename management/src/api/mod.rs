//! The JSON API: every route with its page in the OpenAPI document, declared together.
//!
//! | module | what |
//! |---|---|
//! | [`devices`] | registered devices and tunnel servers: steps 1 to 7 |
//! | [`moves`] | a device goes to another tunnel server, or to another owner |
//! | [`hardware`] | Add Hardware: step 8 |
//! | [`cameras`] | live, timeline, playback, export: passed on to the recording role |
//! | [`account`] | signing in and out, users, sessions, API tokens |
//! | [`servers`] | tunnel servers: the dialogs, and the figures of their devices |
//! | [`sites`] | places with one Internet connection: what they use, and their limits |
//! | [`events`] | server-sent events for browsers |
//! | [`records`] | the audit log, and certificates that end |
//! | [`plan`] | bandwidth and storage, reckoned |
//! | [`simulated`] | labels of simulated cameras, for the demo |

pub mod account;
pub mod cameras;
pub mod devices;
pub mod events;
pub mod hardware;
pub mod moves;
pub mod plan;
pub mod records;
pub mod servers;
pub mod simulated;
pub mod sites;

use crate::{App, accounts::AccountError};
use axum::{
    Json,
    extract::{FromRequest, FromRequestParts, Request, rejection::JsonRejection},
    http::{StatusCode, request::Parts},
};
use homing_base::{
    client::CallError,
    http::{Failure, unreadable},
};
use homing_protocol::api::Problem;
use serde::de::DeserializeOwned;
use utoipa::{
    OpenApi,
    openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme},
};
use utoipa_axum::{router::OpenApiRouter, routes};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Homing",
        description = "The management server's API. Send an API token as `Authorization: Bearer …`, or use a \
                       browser's session. Every answer that is not a success is a `Problem`; decide by its code.",
        license(name = "MIT OR Apache-2.0")
    ),
    components(schemas(crate::views::Problem)),
    tags(
        (name = "devices", description = "Remote connect services: tunnel servers and registered devices"),
        (name = "hardware", description = "Add Hardware"),
        (name = "cameras", description = "Live, timeline, playback, export"),
        (name = "account", description = "Signing in, users, API tokens"),
        (name = "system", description = "Events, audit log, simulated cameras"),
    ),
    security(("token" = []), ("session" = []))
)]
struct Document;

/// All routes, and the document that describes them.
pub fn routes() -> (axum::Router<App>, utoipa::openapi::OpenApi) {
    let (router, mut document) = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(devices::list, devices::register))
        .routes(routes!(devices::one, devices::change, devices::unregister))
        .routes(routes!(devices::show_password))
        .routes(routes!(moves::begin, moves::undo))
        .routes(routes!(moves::offer, moves::withdraw_offer))
        .routes(routes!(servers::list, servers::add))
        .routes(routes!(servers::test))
        .routes(routes!(servers::change, servers::remove))
        .routes(routes!(servers::refresh))
        .routes(routes!(servers::figures))
        .routes(routes!(sites::list))
        .routes(routes!(sites::put, sites::remove))
        .routes(routes!(servers::history))
        .routes(routes!(hardware::list, hardware::add))
        .routes(routes!(hardware::remove))
        .routes(routes!(hardware::recording_servers))
        .routes(routes!(cameras::list))
        .routes(routes!(cameras::one, cameras::change))
        .routes(routes!(cameras::live))
        .routes(routes!(cameras::timeline))
        .routes(routes!(cameras::init))
        .routes(routes!(cameras::fragment))
        .routes(routes!(cameras::recording))
        .routes(routes!(account::sign_in, account::whoami, account::sign_out))
        .routes(routes!(account::sessions))
        .routes(routes!(account::end_session))
        .routes(routes!(account::users, account::add_user))
        .routes(routes!(account::remove_user))
        .routes(routes!(account::set_password))
        .routes(routes!(account::tokens, account::add_token))
        .routes(routes!(account::remove_token))
        .routes(routes!(events::stream))
        .routes(routes!(records::list))
        .routes(routes!(records::certificates))
        .routes(routes!(plan::reckon))
        .routes(routes!(simulated::list))
        .routes(routes!(simulated::label))
        .routes(routes!(simulated::press))
        .split_for_parts();
    let components = document.components.get_or_insert_default();
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
    components.add_security_scheme("token", SecurityScheme::Http(bearer));
    let cookie = ApiKeyValue::with_description(
        "homing_session",
        "Set by POST /api/v1/session; its name ends with the port on plain HTTP",
    );
    components.add_security_scheme("session", SecurityScheme::ApiKey(ApiKey::Cookie(cookie)));
    (router, document)
}

/// A JSON body, refused with a [`Problem`] that says what is wrong with it.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(body)) => Ok(Body(body)),
            Err(rejection) => {
                let message = match &rejection {
                    // Its own text begins with a sentence about deserialising that helps nobody.
                    JsonRejection::JsonDataError(error) => std::error::Error::source(error)
                        .map_or_else(|| rejection.body_text(), |cause| cause.to_string()),
                    _ => rejection.body_text(),
                };
                Err(Failure::new(rejection.status(), Problem::new("bad-request", unreadable(&message))))
            }
        }
    }
}

/// Parameters in the path, refused with a [`Problem`].
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let path = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        path.map(|path| Path(path.0)).map_err(|rejection| Failure::bad_request(rejection.body_text()))
    }
}

/// Parameters in the query, refused with a [`Problem`].
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let query = axum::extract::Query::<T>::from_request_parts(parts, state).await;
        query.map(|query| Query(query.0)).map_err(|rejection| Failure::bad_request(rejection.body_text()))
    }
}

/// What a tunnel server refused, passed through; what is between us and it, as 502.
fn passed_through(error: CallError) -> Failure {
    match error {
        CallError::Refused { status, problem, peer } => match status.as_u16() {
            // Nor is the caller forbidden anything: its address is entered with http://.
            403 if problem.error.code == "https-only" => Failure::new(StatusCode::BAD_GATEWAY, *problem),
            // Our own user and password there are wrong: nothing that the caller could mend by signing in.
            401 | 403 => {
                let message =
                    format!("{peer} refused this management server's user and password; check [management]");
                Failure::new(StatusCode::BAD_GATEWAY, Problem::new("tunnel-server-refused-log-in", message))
            }
            _ => Failure::new(status, *problem),
        },
        CallError::Unreachable { .. } => Failure::new(
            StatusCode::BAD_GATEWAY,
            Problem::new("tunnel-server-unreachable", error.to_string()),
        ),
        CallError::Unexpected { .. } => {
            Failure::new(StatusCode::BAD_GATEWAY, Problem::new("tunnel-server-unexpected", error.to_string()))
        }
    }
}

fn account_failure(error: AccountError) -> Failure {
    let (status, code) = match &error {
        AccountError::Internal(_) => return Failure::from(anyhow::Error::new(error)),
        AccountError::Unsuitable(_) => (StatusCode::UNPROCESSABLE_ENTITY, "unsuitable"),
        AccountError::Taken(_) => (StatusCode::CONFLICT, "taken"),
        AccountError::Unknown(_) => (StatusCode::NOT_FOUND, "not-found"),
        AccountError::LastUser => (StatusCode::CONFLICT, "last-user"),
        AccountError::WrongPassword => (StatusCode::FORBIDDEN, "wrong-password"),
    };
    let mut message = error.to_string();
    if let Some(first) = message.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    if !message.ends_with('.') {
        message.push('.');
    }
    Failure::new(status, Problem::new(code, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_whole() {
        let (_, document) = routes();
        let json = serde_json::to_value(&document).unwrap();
        assert!(json["openapi"].as_str().unwrap().starts_with("3.1"));
        let mut references = Vec::new();
        collect_references(&json, &mut references);
        assert!(references.len() > 20);
        for reference in references {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(json.pointer(pointer).is_some(), "{reference} leads nowhere");
        }
        for (path, item) in &document.paths.paths {
            let item = serde_json::to_value(item).unwrap();
            for (method, operation) in item.as_object().unwrap() {
                let told = |key: &str| operation.get(key).is_some_and(|value| !value.is_null());
                assert!(told("summary") && told("tags") && told("responses"), "{method} {path}");
            }
        }
    }

    fn collect_references(value: &serde_json::Value, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(object) => {
                if let Some(reference) = object.get("$ref").and_then(|value| value.as_str()) {
                    found.push(reference.to_owned());
                }
                object.values().for_each(|value| collect_references(value, found));
            }
            serde_json::Value::Array(array) => {
                array.iter().for_each(|value| collect_references(value, found))
            }
            _ => (),
        }
    }
}
