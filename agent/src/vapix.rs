//! The one VAPIX operation that the agent answers itself: `oak.cgi`, by which a device shows its OAK to its own
//! administrator when the label is lost. Anything else of VAPIX is the camera's.
//!
//! The OAK belongs to whoever has the device and its password. It is not shown to dispatchers: they ask for a
//! proof, and would learn with it what they are to be convinced of.

use crate::guesses::Turns;
use crate::onvif::Services;
use bytes::Bytes;
use http::request::Parts;
use http::{Method, Response, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};

/// Where it is asked for.
pub const OAK_PATH: &str = "/axis-cgi/oak.cgi";

/// Longest request.
pub const REQUEST_MAX: usize = 4 * 1024;

/// What is spoken here.
const VERSION: &str = "1.0";

/// Errors of VAPIX's JSON interfaces.
const METHOD_NOT_HTTP: u32 = 2002;
const VERSION_NOT_SUPPORTED: u32 = 2003;
const METHOD_NOT_SUPPORTED: u32 = 2004;
const NO_JSON: u32 = 4000;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ask {
    #[serde(default)]
    api_version: String,
    context: Option<String>,
    method: String,
}

/// Answers a request for the OAK.
pub async fn answer(services: &Services, head: &Parts, body: &[u8], turns: &Turns) -> Response<Bytes> {
    if let Err(refusal) = services.check(&head.method, &head.uri, &head.headers, turns).await {
        let mut response = Response::new(Bytes::from_static(b"the device's user and password are needed"));
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        services.add_challenges(refusal, response.headers_mut());
        return response;
    }
    let answer = match serde_json::from_slice::<Ask>(body) {
        _ if head.method != Method::POST => failure(METHOD_NOT_HTTP, "POST asks for the OAK"),
        Ok(ask) => {
            let mut answer = carry_out(services, &ask);
            answer["method"] = json!(ask.method);
            if let Some(context) = ask.context {
                answer["context"] = json!(context);
            }
            answer
        }
        Err(_) => failure(NO_JSON, "the request is no JSON with apiVersion and method"),
    };
    let builder = Response::builder()
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CACHE_CONTROL, "no-store");
    builder.body(Bytes::from(answer.to_string())).expect("constants")
}

fn carry_out(services: &Services, ask: &Ask) -> Value {
    match ask.method.as_str() {
        "getSupportedVersions" => json!({ "apiVersion": VERSION, "data": { "apiVersions": [VERSION] } }),
        "getOAK" if ask.api_version.split('.').next() != VERSION.split('.').next() => {
            failure(VERSION_NOT_SUPPORTED, "version 1.0 is spoken here")
        }
        "getOAK" => {
            tracing::info!("the OAK was shown to who has the camera's password");
            json!({ "apiVersion": VERSION, "data": { "oak": services.identity.oak.label() } })
        }
        _ => failure(METHOD_NOT_SUPPORTED, "there are getOAK and getSupportedVersions"),
    }
}

fn failure(code: u32, message: &str) -> Value {
    json!({ "apiVersion": VERSION, "error": { "code": code, "message": message } })
}
