//! RTSP through a device's uplink: where it is, by what it is carried, and how it is opened.
//!
//! WebSocket where the device offers it. The path is Media2's `RTSPWebSocketUri`: first GetServices with capabilities,
//! which modern devices answer in one exchange; then Media2's own GetServiceCapabilities. Else HTTP (`rtsp_over_http.rs`),
//! at the path that GetStreamUri names for it. Where the device wants its user and password for these or for the carrier
//! itself, it gets them by Digest.
//!
//! Not here: RTSP itself, which is the client's and the device's own business.

use crate::rtsp_over_http::{self, RtspOverHttp};
use bytes::Bytes;
use homing_base::onvif::{ANSWER_LIMIT_BYTES, Carrier, Device, DeviceError};
use homing_protocol::{
    digest::{BasicPolicy, ClientAuth, ClientError},
    onvif::{self, device, media, media2},
    secret::Credentials,
};
use homing_uplink::{OpenError, RequestError, Uplink, WebSocketStream};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// For each question to the device.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// The subprotocol of RTSP over WebSocket (ONVIF Streaming Specification).
const SUBPROTOCOL: &str = "rtsp.onvif.org";

/// A challenge, an expired nonce, and the answer.
pub(crate) const ROUNDS: usize = 3;

/// By what a device carries RTSP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RtspWay {
    WebSocket {
        path: String,
    },
    Http {
        path: String,
        /// Why not by WebSocket.
        no_websocket: String,
    },
}

/// RTSP with interleaved RTP, as over TCP: `AsyncRead + AsyncWrite`.
#[derive(Debug)]
pub enum RtspStream {
    /// RTSP over WebSocket.
    WebSocket(WebSocketStream),
    /// RTSP over HTTP.
    Http(RtspOverHttp),
}

/// Opens RTSP. `credentials` are looked up when the device wants them.
pub(crate) async fn open(
    uplink: &Uplink,
    way: &RtspWay,
    host: String,
    credentials: impl Future<Output = Result<Credentials, String>>,
) -> Result<RtspStream, Refused> {
    match way {
        RtspWay::WebSocket { path } => {
            open_websocket(uplink, path, credentials).await.map(RtspStream::WebSocket)
        }
        RtspWay::Http { path, no_websocket } => {
            let opened = rtsp_over_http::open(uplink, path, host, credentials.await?).await;
            opened.map(RtspStream::Http).map_err(|refused| refused.after(no_websocket))
        }
    }
}

/// `credentials` are looked up when the device wants them.
async fn open_websocket(
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
    Err(Refused::wrong_credentials())
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
    /// It has RTSP neither over WebSocket nor over HTTP.
    Unsupported,
    /// It does not take the registered user and password.
    WrongCredentials,
    /// Something else.
    Failed,
}

impl Refused {
    pub(crate) fn wrong_credentials() -> Self {
        let cause = "it refused the registered user name or password".to_owned();
        Refused { cause, kind: NoRtsp::WrongCredentials }
    }

    /// By HTTP, and why not by WebSocket.
    fn after(self, no_websocket: &str) -> Self {
        Refused { cause: format!("{no_websocket}, nor RTSP over HTTP ({})", self.cause), ..self }
    }
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
pub(crate) fn sensitive(value: &str) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_str(value).map_err(|error| error.to_string())?;
    value.set_sensitive(true);
    Ok(value)
}

/// By what the device carries RTSP, and where; or why there is none.
pub(crate) async fn find(
    uplink: &Uplink,
    host: String,
    credentials: Credentials,
) -> Result<RtspWay, Refused> {
    // Basic is all that some devices know; it travels inside TLS, to a key that was vouched for.
    let mut device = Device::new(Through(uplink), host, credentials, ANSWER_DEADLINE).allow_basic();
    let services = device.services().await;
    let no_websocket = match uplink.offers_websocket().await.map_err(OpenError::from)? {
        false => OpenError::NotSupported.to_string(),
        true => match websocket_path(&mut device, &services).await {
            Ok(path) => return Ok(RtspWay::WebSocket { path }),
            Err(Refused { cause, kind: NoRtsp::Unsupported }) => cause,
            Err(refused) => return Err(refused),
        },
    };
    match http_path(&mut device, services.as_ref().ok()).await {
        Ok(path) => Ok(RtspWay::Http { path, no_websocket }),
        Err(refused) => Err(refused.after(&no_websocket)),
    }
}

type Services = Result<device::Services, DeviceError<String>>;

async fn websocket_path(device: &mut Device<Through<'_>>, services: &Services) -> Result<String, Refused> {
    let mut media2_path = onvif::MEDIA2_PATH.to_owned();
    if let Ok(services) = services {
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
        Err(error) => Err(unasked("where it has RTSP", services.as_ref().err().unwrap_or(&error))),
    }
}

/// Of its first profile: a device answers RTSP for any of its URLs there.
async fn http_path(
    device: &mut Device<Through<'_>>,
    services: Option<&device::Services>,
) -> Result<String, Refused> {
    let failed = |error: DeviceError<String>| match error {
        DeviceError::Answer(_) | DeviceError::Status(_) => unsupported(&error.to_string()),
        error => unasked("where it has it", &error),
    };
    let no_profile = || Refused::from("it has no media profile; make one in it".to_owned());
    let media2_path = match services {
        Some(services) => device::media2_path(services),
        None => Some(onvif::MEDIA2_PATH.to_owned()),
    };
    let uri = if let Some(path) = media2_path {
        let profiles = device.call(&path, &media2::GetProfiles::all()).await.map_err(failed)?.0;
        let token = &profiles.first().ok_or_else(no_profile)?.token;
        device.call(&path, &media2::GetStreamUri::rtsp_over_http(token)).await.map_err(failed)?.0
    } else if let Some(media) = services.and_then(|services| services.find(onvif::MEDIA_NS)) {
        let path = device::path_of(&media.xaddr);
        let profiles = device.call(&path, &media::GetProfiles).await.map_err(failed)?.0;
        let token = profiles.first().ok_or_else(no_profile)?;
        device.call(&path, &media::GetStreamUri::rtsp_over_http(token)).await.map_err(failed)?.0
    } else {
        return Err(unsupported("it has no media service"));
    };
    Ok(device::path_of(&uri))
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

impl RtspStream {
    /// The next bytes as they were received, without copying them; none at the end.
    pub(crate) fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        match self {
            RtspStream::WebSocket(stream) => stream.poll_chunk(cx),
            RtspStream::Http(stream) => stream.poll_chunk(cx),
        }
    }

    /// Sends the beginning of `data` when there is credit, and takes it off `data`.
    pub(crate) fn poll_send(&mut self, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<()>> {
        match self {
            RtspStream::WebSocket(stream) => stream.poll_send(cx, data),
            RtspStream::Http(stream) => stream.poll_send(cx, data),
        }
    }
}

impl AsyncRead for RtspStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            RtspStream::WebSocket(stream) => Pin::new(stream).poll_read(cx, buf),
            RtspStream::Http(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for RtspStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            RtspStream::WebSocket(stream) => Pin::new(stream).poll_write(cx, buf),
            RtspStream::Http(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            RtspStream::WebSocket(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            RtspStream::Http(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        matches!(self, RtspStream::WebSocket(_))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            RtspStream::WebSocket(stream) => Pin::new(stream).poll_flush(cx),
            RtspStream::Http(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            RtspStream::WebSocket(stream) => Pin::new(stream).poll_shutdown(cx),
            RtspStream::Http(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
