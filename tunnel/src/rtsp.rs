//! RTSP over WebSocket through a device's uplink: where it is, and how it is opened.
//!
//! The path is Media2's `RTSPWebSocketUri`: first GetServices with capabilities, which modern devices answer in one
//! exchange; then Media2's own GetServiceCapabilities. Where the device wants its user and password for these or for the
//! WebSocket itself, it gets them by Digest.
//!
//! Not here: RTSP itself, which is the client's and the device's own business.

use bytes::Bytes;
use homing_protocol::{
    digest::{BasicPolicy, ClientAuth, ClientError},
    onvif::{self, device, media2},
    secret::Credentials,
    soap,
};
use homing_uplink::{OpenError, RequestError, Uplink, WebSocketStream};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};

/// The longest SOAP answer that is read.
const ANSWER_MAX_BYTES: usize = 256 * 1024;

/// A challenge, an answer, and once more for a nonce that expired between.
const ATTEMPTS: usize = 3;

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
    Err(Refused::from("it refused the registered user name or password".to_owned()))
}

/// Why there is no RTSP.
pub(crate) struct Refused {
    /// In words.
    pub cause: String,
    /// The device took too long.
    pub timeout: bool,
}

impl From<String> for Refused {
    fn from(cause: String) -> Self {
        Refused { cause, timeout: false }
    }
}

impl From<OpenError> for Refused {
    fn from(error: OpenError) -> Self {
        let timeout = matches!(
            error,
            OpenError::Request(RequestError::Timeout { .. } | RequestError::NoFreeStream { .. })
        );
        Refused { cause: error.to_string(), timeout }
    }
}

/// An `Authorization` that is shown in no log.
fn sensitive(value: &str) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_str(value).map_err(|error| error.to_string())?;
    value.set_sensitive(true);
    Ok(value)
}

/// The path to open a WebSocket at; or why there is none, in words.
pub(crate) async fn websocket_path(uplink: &Uplink, credentials: &Credentials) -> Result<String, String> {
    // Basic is all that some devices know; it travels inside TLS, to a key that was vouched for.
    let mut client = Client { uplink, credentials, auth: ClientAuth::new(BasicPolicy::Allow) };
    let services = client.call(onvif::DEVICE_PATH, &device::GetServices { include_capability: true }).await;
    let mut media2_path = onvif::MEDIA2_PATH.to_owned();
    if let Ok(services) = &services {
        let named = services.find(onvif::MEDIA2_NS);
        let capabilities = named.and_then(|service| service.capabilities.as_ref());
        let told = capabilities.map(media2::ServiceCapabilities::from_capabilities);
        if let Some(uri) = told.and_then(|told| told.rtsp_web_socket_uri) {
            return Ok(device::path_of(&uri).to_owned());
        }
        if let Some(path) = device::media2_path(services) {
            path.clone_into(&mut media2_path);
        }
    }
    let capabilities = client.call(&media2_path, &media2::GetServiceCapabilities).await;
    match capabilities.map(|told| told.rtsp_web_socket_uri) {
        Ok(Some(uri)) => Ok(device::path_of(&uri).to_owned()),
        Ok(None) => {
            Err("it does not offer RTSP over WebSocket (Media2 names no RTSPWebSocketUri)".to_owned())
        }
        // What went wrong first is what to look at.
        Err(error) => Err(services.err().unwrap_or(error)),
    }
}

struct Client<'a> {
    uplink: &'a Uplink,
    credentials: &'a Credentials,
    auth: ClientAuth,
}

impl Client<'_> {
    async fn call<R: onvif::Request>(&mut self, path: &str, request: &R) -> Result<R::Answer, String> {
        let body = Bytes::from(request.to_xml());
        for _ in 0..ATTEMPTS {
            let (status, challenges, answer) = self.post(path, body.clone()).await?;
            if status == StatusCode::UNAUTHORIZED {
                let challenges = challenges.iter().map(String::as_str);
                self.auth.handle_challenge(challenges).map_err(|error| format!("{}: {error}", R::NAME))?;
                continue;
            }
            self.auth.handle_accepted();
            // Faults come with 400 or 500, and say more than the status.
            return R::parse_answer(&answer).map_err(|error| match status.is_success() {
                true => format!("{}: {error}", R::NAME),
                false => format!("{}: status {status}: {error}", R::NAME),
            });
        }
        Err(format!("{}: user name or password refused", R::NAME))
    }

    async fn post(&mut self, path: &str, body: Bytes) -> Result<(StatusCode, Vec<String>, Bytes), String> {
        let authorization =
            self.auth.authorize("POST", path, self.credentials).map_err(|error| error.to_string())?;
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = path.parse().map_err(|_| format!("its path {path:?} is none"))?;
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(soap::CONTENT_TYPE));
        if let Some(value) = authorization {
            headers.insert(header::AUTHORIZATION, sensitive(&value)?);
        }
        let response = self.uplink.request(request).await.map_err(|error| error.to_string())?;
        let (parts, body) = response.into_parts();
        let challenges = parts.headers.get_all(header::WWW_AUTHENTICATE).iter();
        let challenges = challenges.filter_map(|value| value.to_str().ok()).map(str::to_owned).collect();
        let body = body.collect(ANSWER_MAX_BYTES).await.map_err(|error| error.to_string())?;
        Ok((parts.status, challenges, body))
    }
}
