//! The HTTP listener: ONVIF device and Media2 services, a little VAPIX, a page for people, `/healthz` and
//! `/metrics`.
//!
//! Everything needs the camera's user by HTTP Digest, except the ONVIF requests that ONVIF gives to
//! anybody (access class PRE_AUTH: the clock, the list of services). Addresses in answers name the
//! host that the request was sent to, as cameras do; behind a proxy or an uplink that is not the
//! camera's own, and only their path counts.

use crate::{camera::Camera, rtsp::STREAM_PATH, vapix};
use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Query, Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    middleware::{self, Next},
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use homing_protocol::{
    digest::{Refusal, Rfc2069Policy},
    onvif::{
        AccessClass, DEVICE_NS, DEVICE_PATH, DeviceRequest, MEDIA2_NS, MEDIA2_PATH, Message, device,
        media2::{self, AudioEncoder, Profile, Profiles, StreamUri, VideoEncoder, VideoSource},
    },
    soap::{CONTENT_TYPE, Envelope, Fault, SoapVersion},
};
use jiff::Timestamp;
use std::{collections::HashMap, net::SocketAddr, sync::Arc};

/// The longest request body; real SOAP requests have 2 kB.
const BODY_LIMIT_BYTES: usize = 64 * 1024;

/// The one profile's token.
const PROFILE: &str = "main";

/// What the requests are answered from.
#[derive(Clone)]
pub(crate) struct Site {
    pub camera: Arc<Camera>,
    pub rtsp: SocketAddr,
    pub http: SocketAddr,
}

/// Every page and service.
pub(crate) fn router(site: Site) -> Router {
    let site = Arc::new(site);
    // SOAP authenticates by request, not by path.
    let services = Router::new().route(DEVICE_PATH, post(soap)).route(MEDIA2_PATH, post(soap));
    Router::new()
        .route("/", get(page))
        .route("/axis-cgi/param.cgi", get(parameters).post(parameters))
        .route(vapix::USERS_PATH, post(users))
        .fallback(async || StatusCode::NOT_FOUND)
        // Behind the password like everything else here.
        .merge(site.camera.ops.router("Digest", |_| true).with_state(()))
        .layer(middleware::from_fn_with_state(site.clone(), guard))
        .merge(services)
        .layer(DefaultBodyLimit::max(BODY_LIMIT_BYTES))
        .with_state(site)
}

/// Lets nobody by without the password.
async fn guard(State(site): State<Arc<Site>>, request: Request, next: Next) -> Response {
    match check(&site.camera, request.method(), request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => challenge(&site.camera, refusal, refusal.to_string().into_response()),
    }
}

fn check(camera: &Camera, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    camera.check(Rfc2069Policy::Refuse, method.as_str(), target, authorization).map(drop)
}

fn challenge(camera: &Camera, refusal: Refusal, mut response: Response) -> Response {
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    for value in camera.challenges(refusal) {
        let value = HeaderValue::try_from(value).expect("a challenge is plain text");
        response.headers_mut().append(header::WWW_AUTHENTICATE, value);
    }
    response
}

async fn soap(
    State(site): State<Arc<Site>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let envelope = Envelope::parse(&body);
    let version = envelope.as_ref().map_or(SoapVersion::V12, |envelope| envelope.version);
    let request = match &envelope {
        Ok(envelope) => DeviceRequest::parse(envelope),
        Err(error) => Err(Fault::sender(&["WellFormed"], error.to_string())),
    };
    // What cannot be read or is not known needs the password, too: strangers learn nothing, and
    // clients that send an empty body first, only to be challenged, are.
    if request.as_ref().map_or(AccessClass::ReadSystem, DeviceRequest::access) != AccessClass::PreAuth
        && let Err(refusal) = check(&site.camera, &method, &uri, &headers)
    {
        let fault = Fault::not_authorized(refusal.to_string());
        return challenge(&site.camera, refusal, soap_fault(&fault, version));
    }
    match request.and_then(|request| site.answer(&request, &host(&uri, &headers, site.http))) {
        Ok(body) => {
            let body = Envelope::answer(version, body).to_xml();
            ([(header::CONTENT_TYPE, version.content_type())], body).into_response()
        }
        Err(fault) => soap_fault(&fault, version),
    }
}

fn soap_fault(fault: &Fault, version: SoapVersion) -> Response {
    let status = StatusCode::from_u16(fault.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let kind = if version == SoapVersion::V12 { CONTENT_TYPE } else { version.content_type() };
    (status, [(header::CONTENT_TYPE, kind)], fault.to_xml(version)).into_response()
}

/// Host and port that the request was sent to, as far as it says so.
fn host(uri: &Uri, headers: &HeaderMap, own: SocketAddr) -> http::uri::Authority {
    let named =
        headers.get(header::HOST).and_then(|host| host.to_str().ok()).and_then(|host| host.parse().ok());
    let is_plain = |authority: &http::uri::Authority| !authority.as_str().contains('@');
    uri.authority()
        .cloned()
        .or(named)
        .filter(is_plain)
        .unwrap_or_else(|| own.to_string().parse().expect("a socket address is an authority"))
}

impl Site {
    fn answer(
        &self,
        request: &DeviceRequest,
        host: &http::uri::Authority,
    ) -> Result<homing_protocol::soap::Element, Fault> {
        Ok(match request {
            DeviceRequest::GetDeviceInformation(_) => device::DeviceInformation {
                manufacturer: vapix::BRAND.into(),
                model: vapix::MODEL.into(),
                firmware_version: env!("CARGO_PKG_VERSION").into(),
                serial_number: self.camera.serial.to_string(),
                hardware_id: vapix::MODEL.into(),
            }
            .to_element(),
            DeviceRequest::GetSystemDateAndTime(_) => {
                device::SystemDateAndTime::kept_by_ntp(Timestamp::now()).to_element()
            }
            DeviceRequest::GetServices(asked) => services(host, asked.include_capability).to_element(),
            DeviceRequest::GetCapabilities(_) => device::Capabilities {
                device_xaddr: format!("http://{host}{DEVICE_PATH}"),
                media_xaddr: None,
            }
            .to_element(),
            DeviceRequest::GetDeviceServiceCapabilities(_) => device_capabilities().to_element(),
            DeviceRequest::GetMediaServiceCapabilities(_) => media_capabilities().to_element(),
            DeviceRequest::GetProfiles(asked) => {
                require_profile(asked.token.as_deref().unwrap_or(PROFILE))?;
                Profiles(vec![self.profile()]).to_element()
            }
            DeviceRequest::GetStreamUri(asked) => {
                require_profile(&asked.profile_token)?;
                if asked.protocol != "RTSP" {
                    let reason = format!("only RTSP, with RTP inside, not {}", asked.protocol);
                    return Err(Fault::sender(&["InvalidArgVal", "InvalidStreamSetup"], reason));
                }
                let name = host.host();
                StreamUri(format!("rtsp://{name}:{}{STREAM_PATH}", self.rtsp.port())).to_element()
            }
            DeviceRequest::SetUser(asked) => {
                if !self.camera.set_password(&asked.user) {
                    let reason = "there is no such user, or no password";
                    return Err(Fault::sender(&["InvalidArgVal", "UsernameMissing"], reason));
                }
                device::UserSet.to_element()
            }
            // There is no hardware that would be away for a while.
            DeviceRequest::SystemReboot(_) => {
                tracing::info!("told to restart");
                device::Rebooting { message: "Simulated: nothing restarts.".to_owned() }.to_element()
            }
            other => {
                let reason = format!("a simulated camera does not answer {}", other.name());
                return Err(Fault::receiver(&["ActionNotSupported", "NotSupported"], reason));
            }
        })
    }

    fn profile(&self) -> Profile {
        let settings = self.camera.source.settings();
        let size = (settings.width as u32, settings.height as u32);
        let audio = AudioEncoder {
            token: "audio".into(),
            name: "Tone".into(),
            encoding: "PCMU".into(),
            bitrate_kbps: 64,
            sample_rate_khz: 8,
        };
        Profile {
            token: PROFILE.into(),
            name: self.camera.name.clone(),
            video_source: Some(VideoSource {
                token: "source".into(),
                name: self.camera.name.clone(),
                source_token: "0".into(),
                size,
            }),
            video_encoder: Some(VideoEncoder {
                token: "video".into(),
                name: "H.264".into(),
                encoding: "H264".into(),
                size,
                rate_limit: Some((settings.fps, settings.bitrate_bps.div_ceil(1000))),
            }),
            audio_encoder: settings.audio.then_some(audio),
        }
    }
}

fn require_profile(token: &str) -> Result<(), Fault> {
    if token == PROFILE {
        return Ok(());
    }
    Err(Fault::sender(&["InvalidArgVal", "NoProfile"], "the only profile is called main"))
}

fn device_capabilities() -> device::ServiceCapabilities {
    device::ServiceCapabilities { http_digest: true, username_token: false }
}

fn media_capabilities() -> media2::ServiceCapabilities {
    media2::ServiceCapabilities {
        rtsp_streaming: true,
        rtp_rtsp_tcp: true,
        rtsp_web_socket_uri: None,
        snapshot_uri: false,
        maximum_number_of_profiles: 1,
    }
}

fn services(host: &http::uri::Authority, include_capability: bool) -> device::Services {
    let service = |namespace: &str, path: &str, capabilities| device::Service {
        namespace: namespace.into(),
        xaddr: format!("http://{host}{path}"),
        capabilities: Some(capabilities).filter(|_| include_capability),
        version: (20, 12),
    };
    device::Services(vec![
        service(DEVICE_NS, DEVICE_PATH, device_capabilities().element()),
        service(MEDIA2_NS, MEDIA2_PATH, media_capabilities().element()),
    ])
}

async fn parameters(
    State(site): State<Arc<Site>>,
    Query(query): Query<HashMap<String, String>>,
) -> impl IntoResponse {
    let all = vapix::parameters(&site.camera, site.rtsp.port());
    let answer =
        vapix::answer(&all, query.get("action").map(String::as_str), query.get("group").map(String::as_str));
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], answer)
}

/// By POST alone, so that no password is in a URL.
async fn users(State(site): State<Arc<Site>>, form: String) -> Result<Html<String>, StatusCode> {
    // A form is written as a query is.
    let query = Uri::try_from(format!("/?{form}")).map_err(|_| StatusCode::BAD_REQUEST)?;
    let Query(form) = Query::try_from_uri(&query).map_err(|_| StatusCode::BAD_REQUEST)?;
    Ok(Html(vapix::change_user(&site.camera, form)))
}

async fn page(State(site): State<Arc<Site>>, uri: Uri, headers: HeaderMap) -> Html<String> {
    let settings = site.camera.source.settings();
    let escape = |text: &str| {
        text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
    };
    let host = host(&uri, &headers, site.http);
    Html(format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>{name}</title>\
         <style>:root{{color-scheme:light dark}}body{{font:16px/1.5 system-ui;max-width:34rem;margin:12vh auto;\
         padding:0 1.5rem}}dl{{display:grid;grid-template-columns:max-content 1fr;gap:.4rem 1.5rem}}dt{{opacity:.65}}\
         dd{{margin:0}}code{{font-size:.95em}}</style>\
         <h1>{name}</h1><p>A simulated camera: real H.264 over real RTSP, of a place that does not exist.</p><dl>\
         <dt>Serial number<dd><code>{serial}</code>\
         <dt>Stream<dd><code>rtsp://{host}:{rtsp}{STREAM_PATH}</code>\
         <dt>Picture<dd>{width}×{height}, {fps} frames per second, {kbps} kbit/s\
         <dt>Sound<dd>{sound}\
         <dt>ONVIF<dd><code>{DEVICE_PATH}</code></dl></html>",
        name = escape(&site.camera.name),
        serial = site.camera.serial,
        host = escape(host.host()),
        rtsp = site.rtsp.port(),
        width = settings.width,
        height = settings.height,
        fps = settings.fps,
        kbps = settings.bitrate_bps / 1000,
        sound = if settings.audio { "a tone, another one every second" } else { "none" },
    ))
}
