//! RTSP over WebSocket through a device's uplink: where it is, and how it is opened.
//!
//! The path is Media2's `RTSPWebSocketUri`: first GetServices with capabilities, which modern devices answer in one
//! exchange; then Media2's own GetServiceCapabilities. Where the device wants its user and password for these or for the
//! WebSocket itself, it gets them by Digest.
//!
//! Not here: RTSP itself, which is the client's and the device's own business.

use bytes::Bytes;
use homing_base::onvif::{ANSWER_LIMIT_BYTES, Carrier, Device, DeviceError};
use homing_protocol::{
    digest::{BasicPolicy, ClientAuth, ClientError},
    onvif::{self, device, media2},
    secret::Credentials,
};
use homing_uplink::{OpenError, RequestError, Uplink, WebSocketStream};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use std::time::Duration;

/// For each question to the device.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// The subprotocol of RTSP over WebSocket (ONVIF Streaming Specification).
const SUBPROTOCOL: &str = "rtsp.onvif.org";

/// Opens the WebSocket. `credentials` are looked up when the device wants them.
pub(crate) async fn open(
    uplink: &Uplink,
    path: &str,
    credentials: impl Future<Output = Result<Credentials, String>>,
) -> Result<WebSocketStream, Refused> {
    let opened = uplink.open_websocket(path, SUBPROTOCOL, HeaderMap::new()).await;
    let Err(OpenError::Refused { status: StatusCode::UNAUTHORIZED, mut challenges, .. }) = opened else {
        return opened.map_err(Refused::from);
    };
    let credentials = credentials.await?;
    // Digest covers the method. Here that is CONNECT; a device that passes the request on to a WebSocket server of
    // HTTP/1.1 checks it as GET.
    for method in ["CONNECT", "GET"] {
        let mut auth = ClientAuth::new(BasicPolicy::Allow);
        let unanswerable = |error: ClientError| Refused::from(error.to_string());
        auth.handle_challenge(challenges.iter().map(String::as_str)).map_err(unanswerable)?;
        let mut headers = HeaderMap::new();
        if let Some(value) = auth.authorize(method, path, &credentials).map_err(unanswerable)? {
            headers.insert(header::AUTHORIZATION, sensitive(&value)?);
        }
        match uplink.open_websocket(path, SUBPROTOCOL, headers).await {
            Err(OpenError::Refused { status: StatusCode::UNAUTHORIZED, challenges: again, .. }) => {
                challenges = again
            }
            opened => return opened.map_err(Refused::from),
        }
    }
    let cause = "it refused the registered user name or password".to_owned();
    Err(Refused { cause, kind: NoRtsp::WrongCredentials })
}

/// Why there is no RTSP.
pub(crate) struct Refused {
    /// In words.
    pub cause: String,
    pub kind: NoRtsp,
}

/// What kind of refusal, for a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRtsp {
    /// The device took too long.
    Timeout,
    /// It has no RTSP over WebSocket.
    Unsupported,
    /// It does not take the registered user and password.
    WrongCredentials,
    /// Something else.
    Failed,
}

impl From<String> for Refused {
    fn from(cause: String) -> Self {
        Refused { cause, kind: NoRtsp::Failed }
    }
}

impl From<OpenError> for Refused {
    fn from(error: OpenError) -> Self {
        let kind = match error {
            OpenError::Request(RequestError::Timeout { .. } | RequestError::NoFreeStream { .. }) => {
                NoRtsp::Timeout
            }
            OpenError::NotSupported => NoRtsp::Unsupported,
            _ => NoRtsp::Failed,
        };
        Refused { cause: error.to_string(), kind }
    }
}

/// An `Authorization` that is shown in no log.
fn sensitive(value: &str) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_str(value).map_err(|error| error.to_string())?;
    value.set_sensitive(true);
    Ok(value)
}

/// The path to open a WebSocket at, or why there is none.
pub(crate) async fn websocket_path(
    uplink: &Uplink,
    host: String,
    credentials: Credentials,
) -> Result<String, Refused> {
    // Basic is all that some devices know; it travels inside TLS, to a key that was vouched for.
    let mut device = Device::new(Through(uplink), host, credentials, ANSWER_DEADLINE).allow_basic();
    let services = device.services().await;
    let mut media2_path = onvif::MEDIA2_PATH.to_owned();
    if let Ok(services) = &services {
        let named = services.find(onvif::MEDIA2_NS);
        let capabilities = named.and_then(|service| service.capabilities.as_ref());
        let told = capabilities.map(media2::ServiceCapabilities::from_capabilities);
        if let Some(uri) = told.and_then(|told| told.rtsp_web_socket_uri) {
            return Ok(device::path_of(&uri));
        }
        media2_path = device::media2_path(services)
            .ok_or_else(|| unsupported("it has no Media2 service, and so no RTSP over WebSocket"))?;
    }
    let capabilities = device.call(&media2_path, &media2::GetServiceCapabilities).await;
    match capabilities.map(|told| told.rtsp_web_socket_uri) {
        Ok(Some(uri)) => Ok(device::path_of(&uri)),
        Ok(None) => {
            Err(unsupported("it does not offer RTSP over WebSocket (Media2 names no RTSPWebSocketUri)"))
        }
        // What went wrong first is what to look at.
        Err(error) => Err(unasked("where it has RTSP", &services.err().unwrap_or(error))),
    }
}

/// The URL of the stream that a device names first: its best H.264 profile, or else its first one.
pub(crate) async fn first_stream(
    uplink: &Uplink,
    host: String,
    credentials: Credentials,
) -> Result<String, Refused> {
    let failed = |error: DeviceError<String>| unasked("which stream it has", &error);
    let mut device = Device::new(Through(uplink), host, credentials, ANSWER_DEADLINE).allow_basic();
    let services = device.services().await.map_err(failed)?;
    let media = device::media2_path(&services)
        .ok_or_else(|| unsupported("it has no Media2 service, so that a path must be given"))?;
    let profiles = device.call(&media, &media2::GetProfiles::all()).await.map_err(failed)?.0;
    let best = media2::best_profiles(&profiles).first().copied().or(profiles.first());
    let best = best.ok_or_else(|| Refused::from("it has no media profile; make one in it".to_owned()))?;
    Ok(device.call(&media, &media2::GetStreamUri::rtsp(&best.token)).await.map_err(failed)?.0)
}

fn unsupported(cause: &str) -> Refused {
    Refused { cause: cause.to_owned(), kind: NoRtsp::Unsupported }
}

fn unasked(what: &str, error: &DeviceError<String>) -> Refused {
    let kind = match error {
        DeviceError::Timeout(_) => NoRtsp::Timeout,
        DeviceError::WrongCredentials => NoRtsp::WrongCredentials,
        _ => NoRtsp::Failed,
    };
    Refused { cause: format!("{what} could not be asked: {error}"), kind }
}

/// Carries requests through a device's uplink.
pub(crate) struct Through<'a>(pub &'a Uplink);

impl Carrier for Through<'_> {
    type Error = String;

    async fn carry(&self, request: Request<Bytes>) -> Result<Response<Bytes>, String> {
        let response = self.0.request(request).await.map_err(|error| error.to_string())?;
        let (head, body) = response.into_parts();
        let body = body.collect(ANSWER_LIMIT_BYTES).await.map_err(|error| error.to_string())?;
        Ok(Response::from_parts(head, body))
    }
}
