//! Devices: a key, an uplink, and a little ONVIF, HTTP and RTSP over WebSocket behind it.

use crate::{
    camera::Camera,
    over_http::{self, OverHttp},
};
use bytes::Bytes;
use homing_base::Stop;
use homing_protocol::{
    Secret, SerialNumber,
    digest::DigestGuard,
    onvif::{DeviceRequest, MEDIA2_NS, Message, device, media2},
    soap::{CONTENT_TYPE, Envelope, Fault},
};
use homing_uplink::{
    DialError, DialedUplink, Dialer, EndReason, Fingerprint, Incoming, ServeSettings, TlsPolicy,
    UplinkAddress, client_tls_config, roots_from_pem,
};
use http::{Method, Response, StatusCode};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::watch,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

pub const USER: &str = "root";
pub const PASSWORD: &str = "device-password-4242";
pub const OAK: &str = "C0FF-EE12-3456";

/// Where the devices of these tests have RTSP: nowhere that one could guess.
const RTSP_PATH: &str = "/stream/rtsp-over-websocket?v=2";

/// How a device's password can be changed, and what becomes of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Change {
    /// Not at all.
    #[default]
    No,
    Onvif,
    Vapix,
    /// It is changed, and the uplink is cut before the answer.
    ThenCut,
    /// The uplink is cut before it is changed.
    CutBefore,
}

/// The user's password.
#[derive(Debug)]
pub struct Lock {
    pub password: String,
    pub change: Change,
    /// Log-ins and changes that were tried.
    pub asked: usize,
    /// How often it was restarted, if it can be.
    pub restarts: Option<usize>,
}

/// A device before it dials.
#[derive(Clone)]
pub struct Device {
    pub lock: Arc<Mutex<Lock>>,
    pub serial: SerialNumber,
    pub fingerprint: Fingerprint,
    certificate: CertificateDer<'static>,
    key: Arc<Vec<u8>>,
    /// RTSP streams that have ended, as the device saw it.
    pub streams_ended: Arc<watch::Sender<usize>>,
    /// What its RTSP leads to, once switched on; else bytes come back.
    pub camera: Camera,
    /// Whether it has RTSP over WebSocket.
    pub has_websocket: bool,
    /// Its RTSP over HTTP, if it has that.
    pub over_http: Option<OverHttp>,
    /// Cancelled to cut the uplink.
    line: Arc<Mutex<CancellationToken>>,
}

impl Device {
    /// A device with a new key, whose certificate says `serial`.
    pub fn new(serial: &str) -> Self {
        let serial: SerialNumber = serial.parse().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CustomDnType(vec![2, 5, 4, 5]), serial.to_string());
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Device {
            lock: Arc::new(Mutex::new(Lock {
                password: PASSWORD.into(),
                change: Change::No,
                asked: 0,
                restarts: None,
            })),
            serial,
            fingerprint: Fingerprint::of_certificate(&certificate).unwrap(),
            certificate,
            key: Arc::new(key.serialize_der()),
            streams_ended: Arc::default(),
            camera: Camera::default(),
            has_websocket: true,
            over_http: None,
            line: Arc::default(),
        }
    }

    /// Cuts its uplink.
    pub fn cut(&self) {
        self.line.lock().unwrap().cancel();
    }

    /// What it trusts, and shows; it remembers sessions, as a device does that stays up.
    pub fn tls(&self, trust_anchor: &str) -> Arc<rustls::ClientConfig> {
        let roots = roots_from_pem(trust_anchor.as_bytes()).unwrap();
        let key = PrivateKeyDer::try_from(self.key.to_vec()).unwrap();
        let tls = client_tls_config(roots, vec![self.certificate.clone()], key, TlsPolicy::Tls13).unwrap();
        Arc::new(tls)
    }

    /// How it dials.
    pub fn dialer(&self, address: SocketAddr, trust_anchor: &str) -> Dialer {
        let address = UplinkAddress::new(&address.ip().to_string(), address.port()).unwrap();
        Dialer::new(address, self.tls(trust_anchor))
    }

    /// Step 6: dials.
    pub async fn dial(&self, address: SocketAddr, trust_anchor: &str) -> Result<DialedUplink, DialError> {
        self.dialer(address, trust_anchor).dial().await
    }

    /// Step 7, its end: serves until the uplink ends.
    pub fn serve(&self, uplink: DialedUplink, stop: &Stop) -> JoinHandle<EndReason> {
        let token = stop.token().clone();
        let guard = Arc::new(DigestGuard::new("device", [9; 32]));
        let (ended, lock, line) = (self.streams_ended.clone(), self.lock.clone(), token.child_token());
        let cut = line.clone();
        *self.line.lock().unwrap() = line.clone();
        let (camera, has_websocket, over_http) =
            (self.camera.clone(), self.has_websocket, self.over_http.clone());
        let service = Arc::new(move |incoming: Incoming| {
            let (guard, streams_ended) = (guard.clone(), ended.clone());
            let (lock, line, camera) = (lock.clone(), line.clone(), camera.clone());
            let over_http = over_http.clone();
            let door = Door { guard, lock, line, camera, has_websocket, over_http, streams_ended };
            async move { answer(incoming, &door).await }
        });
        stop.spawn(uplink.serve(service, ServeSettings::default(), cut))
    }
}

/// What a request has to get through.
pub struct Door {
    pub guard: Arc<DigestGuard>,
    lock: Arc<Mutex<Lock>>,
    /// Cancelled to cut the uplink.
    line: CancellationToken,
    pub camera: Camera,
    has_websocket: bool,
    over_http: Option<OverHttp>,
    pub streams_ended: Arc<watch::Sender<usize>>,
}

impl Door {
    /// Takes a new password, in the way that was asked; `false` if that is not this device's.
    async fn change(&self, way: Change, password: String) -> bool {
        let change = {
            let mut lock = self.lock.lock().unwrap();
            if lock.change == way || (way == Change::Onvif && lock.change == Change::ThenCut) {
                lock.password = password;
            }
            lock.change
        };
        if matches!(change, Change::ThenCut | Change::CutBefore) {
            self.line.cancel();
            std::future::pending::<()>().await;
        }
        change == way
    }
}

async fn answer(mut incoming: Incoming, guard: &Door) {
    let path = incoming.request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
    match (incoming.request.method().clone(), path.as_str()) {
        (Method::CONNECT, RTSP_PATH) => {
            assert_eq!(incoming.subprotocols().collect::<Vec<_>>(), ["rtsp.onvif.org"]);
            // As a device does whose WebSocket server speaks HTTP/1.1.
            let Some(incoming) = authenticated(incoming, guard, "GET", RTSP_PATH) else { return };
            let stream = incoming.accept_websocket("rtsp.onvif.org").unwrap();
            if guard.camera.is_on() {
                guard.camera.serve(stream).await;
            } else {
                echo(stream).await;
            }
            guard.streams_ended.send_modify(|ended| *ended += 1);
        }
        (Method::GET | Method::POST, over_http::PATH) if guard.over_http.is_some() => {
            guard.over_http.clone().unwrap().serve(incoming, guard).await;
        }
        // A WebSocket of its own, for whoever asks; with the password at another path.
        (Method::CONNECT, "/ws" | "/guarded-ws") => {
            let incoming = match path.as_str() {
                "/ws" => Some(incoming),
                _ => authenticated(incoming, guard, "GET", &path),
            };
            let Some(incoming) = incoming else { return };
            echo(incoming.accept_websocket("chat").unwrap()).await;
        }
        (Method::POST, "/onvif/device_service" | "/onvif/media2" | over_http::MEDIA1) => {
            services(incoming, guard, &path).await
        }
        (Method::POST, "/axis-cgi/pwdgrp.cgi") => {
            let Some(mut incoming) = authenticated(incoming, guard, "POST", &path) else { return };
            let body = std::mem::take(incoming.request.body_mut()).collect(4096).await.unwrap();
            let form = String::from_utf8(body.to_vec()).unwrap();
            let new = form.strip_prefix("action=update&user=root&pwd=").unwrap().to_owned();
            let said = if guard.change(Change::Vapix, new).await { "Modified account" } else { "Error: no" };
            let _ = incoming.respond(Response::new(Bytes::from(said)));
        }
        (Method::GET, "/headers") => {
            let headers = incoming.request.headers().iter();
            let text: String =
                headers.map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap())).collect();
            let _ = incoming.respond(Response::new(Bytes::from(text)));
        }
        (Method::GET | Method::HEAD, "/guarded") => {
            let method = incoming.request.method().to_string();
            let Some(incoming) = authenticated(incoming, guard, &method, &path) else { return };
            let _ = incoming.respond(Response::new(Bytes::from_static(b"let in")));
        }
        (Method::POST | Method::HEAD, "/guarded-echo") => {
            let method = incoming.request.method().to_string();
            let Some(mut incoming) = authenticated(incoming, guard, &method, &path) else { return };
            let body = std::mem::take(incoming.request.body_mut());
            if let Ok(sender) = incoming.respond_streaming(Response::new(())) {
                let _ = sender.send_all(body).await;
            }
        }
        // Answers when it has everything.
        (Method::POST, "/count") => {
            let mut body = std::mem::take(incoming.request.body_mut());
            let mut count = 0;
            while let Some(Ok(chunk)) = body.next().await {
                count += chunk.len();
            }
            let _ = incoming.respond(Response::new(Bytes::from(count.to_string())));
        }
        (Method::POST, "/echo") => {
            let body = std::mem::take(incoming.request.body_mut());
            if let Ok(sender) = incoming.respond_streaming(Response::new(())) {
                let _ = sender.send_all(body).await;
            }
        }
        // Bytes without end, as fast as they are taken.
        (Method::GET, "/endless") => {
            let Ok(mut sender) = incoming.respond_streaming(Response::new(())) else { return };
            let piece = Bytes::from(vec![7; 32 * 1024]);
            while sender.send(piece.clone()).await.is_ok() {}
        }
        // A byte now and then, without end.
        (Method::GET, "/trickle") => {
            let Ok(mut sender) = incoming.respond_streaming(Response::new(())) else { return };
            while sender.send(Bytes::from_static(b".")).await.is_ok() {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        }
        (Method::GET, "/silent") => std::future::pending().await,
        _ => {
            let mut response = Response::new(Bytes::from_static(b"the device says: no such path"));
            *response.status_mut() = StatusCode::NOT_FOUND;
            let _ = incoming.respond(response);
        }
    }
}

/// RTSP is the VMS's and the camera's business: here it is bytes that come back.
pub async fn echo(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        if buffer.starts_with(b"FLOOD") {
            let piece = vec![9; 64 * 1024];
            while stream.write_all(&piece).await.is_ok() {}
            return;
        }
        if stream.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    let _ = stream.shutdown().await;
}

/// The request, if it comes with the device's user and password; else it is answered with a challenge.
pub fn authenticated(incoming: Incoming, door: &Door, method: &str, path: &str) -> Option<Incoming> {
    let now = jiff::Timestamp::now().as_second() as u64;
    let authorization = incoming.request.headers().get("authorization").and_then(|value| value.to_str().ok());
    let (guard, mut lock) = (&door.guard, door.lock.lock().unwrap());
    lock.asked += 1;
    let password = |user: &str| (user == USER).then(|| Secret::from(lock.password.as_str()));
    let Err(refusal) = guard.check(method, path, authorization, password, now) else { return Some(incoming) };
    let mut response = Response::builder().status(StatusCode::UNAUTHORIZED);
    for challenge in guard.challenges(now, refusal == homing_protocol::digest::Refusal::Stale) {
        response = response.header("www-authenticate", challenge);
    }
    let _ = incoming.respond(response.body(Bytes::new()).unwrap());
    None
}

/// GetServices, GetDeviceInformation and perhaps SetUser, for whoever has the device's password.
async fn services(incoming: Incoming, guard: &Door, path: &str) {
    let Some(mut incoming) = authenticated(incoming, guard, "POST", path) else { return };
    let body = std::mem::take(incoming.request.body_mut()).collect(65536).await.unwrap();
    let envelope = Envelope::parse(&body).unwrap();
    let respond = |status: u16, xml: String| {
        let response = Response::builder().status(status).header("content-type", CONTENT_TYPE);
        let _ = incoming.respond(response.body(Bytes::from(xml)).unwrap());
    };
    let answer = |element| Envelope::answer(envelope.version, element).to_xml();
    let media1 = guard.over_http.as_ref().filter(|over_http| over_http.has_media1_alone());
    if let Some(element) = media1.and_then(|over_http| over_http::media1(&envelope, over_http)) {
        return respond(200, answer(element));
    }
    match DeviceRequest::parse(&envelope).unwrap() {
        DeviceRequest::GetServices(_) if media1.is_some() => {
            return respond(200, answer(over_http::services().to_element()));
        }
        DeviceRequest::GetServices(_) => (),
        DeviceRequest::GetDeviceInformation(_) => {
            let information =
                device::DeviceInformation { serial_number: "00408C702009".into(), ..Default::default() };
            return respond(200, answer(information.to_element()));
        }
        DeviceRequest::SystemReboot(_) => {
            let restarts = &mut guard.lock.lock().unwrap().restarts;
            return match restarts {
                Some(restarts) => {
                    *restarts += 1;
                    respond(200, answer(device::Rebooting::default().to_element()));
                }
                None => respond(
                    500,
                    Fault::receiver(&["ActionNotSupported"], "not here").to_xml(envelope.version),
                ),
            };
        }
        DeviceRequest::SetUser(ask) => {
            let new = ask.user.password.expose().to_owned();
            return match guard.change(Change::Onvif, new).await {
                true => respond(200, answer(device::UserSet.to_element())),
                false => {
                    let fault = Fault::receiver(&["ActionNotSupported"], "not here");
                    respond(500, fault.to_xml(envelope.version));
                }
            };
        }
        DeviceRequest::GetProfiles(_) => {
            let video_source = Some(media2::VideoSource::default());
            let profile = media2::Profile { token: "live".into(), video_source, ..Default::default() };
            return respond(200, answer(media2::Profiles(vec![profile]).to_element()));
        }
        DeviceRequest::GetStreamUri(ask) if ask.protocol == "RtspOverHttp" => {
            return match &guard.over_http {
                Some(over_http) => respond(200, answer(media2::StreamUri(over_http.uri()).to_element())),
                None => {
                    let fault = Fault::receiver(&["ActionNotSupported"], "not here");
                    respond(500, fault.to_xml(envelope.version));
                }
            };
        }
        DeviceRequest::GetStreamUri(_) => {
            let uri = format!("rtsp://root:{PASSWORD}@{}/live", crate::camera::HOST);
            return respond(200, answer(media2::StreamUri(uri).to_element()));
        }
        DeviceRequest::GetMediaServiceCapabilities(_) => {
            return respond(200, answer(media2::ServiceCapabilities::default().to_element()));
        }
        other => panic!("{other:?}"),
    }
    let media2 = media2::ServiceCapabilities {
        rtsp_web_socket_uri: guard.has_websocket.then(|| format!("ws://192.168.1.7{RTSP_PATH}")),
        ..Default::default()
    };
    let services = device::Services(vec![device::Service {
        namespace: MEDIA2_NS.to_owned(),
        xaddr: "http://192.168.1.7/onvif/media2".to_owned(),
        capabilities: Some(media2.element()),
        version: (2, 0),
    }]);
    respond(200, answer(services.to_element()));
}
