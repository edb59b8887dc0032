//! Step 8, add: a device behind a tunnel server in the same process is asked by ONVIF, and its channels become
//! cameras.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use homing_protocol::SerialNumber;
use homing_protocol::api::ProblemDetail;
use homing_protocol::api::recording::{CameraState, DeviceAddress, Hardware, NewHardware};
use homing_protocol::digest::DigestGuard;
use homing_protocol::onvif::device::{DeviceInformation, Service, Services};
use homing_protocol::onvif::media2::{self, Profile, Profiles, StreamUri, VideoEncoder, VideoSource};
use homing_protocol::onvif::{DeviceRequest, MEDIA2_NS, Message as _};
use homing_protocol::secret::Credentials;
use homing_protocol::soap::{Envelope, Fault};
use homing_recording::connect::{BoxFuture, ConnectError, DeviceConnector, Stream};
use http::{Request, Response, StatusCode, header};
use tokio::net::TcpStream;

use crate::recorder::{Recorder, config};
use crate::source::{GROUP, Script, Source, assert_consecutive, clip};

const SERIAL: &str = "00408C702009";

/// A tunnel server in process with one device: two channels, of which one is H.265 too.
struct Tunnel {
    name: &'static str,
    guard: DigestGuard,
    source: String,
    connected: AtomicBool,
    /// Whether it has RTSP over WebSocket.
    websocket: AtomicBool,
    /// Whether it has RTSP over HTTP.
    http: AtomicBool,
    streams: AtomicUsize,
    /// What the device's password is now, where the tunnel server is asked for it.
    password: OnceLock<&'static str>,
    home: tokio::runtime::Handle,
}

impl Tunnel {
    fn new(name: &'static str, source: &Source, home: &tokio::runtime::Runtime) -> Arc<Self> {
        Arc::new(Tunnel {
            name,
            guard: DigestGuard::new("device", [5; 32]),
            source: source.url.clone(),
            connected: AtomicBool::new(false),
            websocket: AtomicBool::new(false),
            http: AtomicBool::new(false),
            streams: AtomicUsize::new(0),
            password: OnceLock::new(),
            home: home.handle().clone(),
        })
    }

    fn answer(&self, request: &Request<Bytes>) -> Response<Bytes> {
        let authorization = request.headers().get(header::AUTHORIZATION).map(|value| value.to_str().unwrap());
        let password = |user: &str| (user == "root").then(|| "sesame".into());
        let (method, path) = (request.method().as_str(), request.uri().path());
        if self.guard.check(method, path, authorization, password, 0).is_err() {
            let mut refusal = Response::builder().status(StatusCode::UNAUTHORIZED);
            for challenge in self.guard.challenges(0, false) {
                refusal = refusal.header(header::WWW_AUTHENTICATE, challenge);
            }
            return refusal.body(Bytes::new()).unwrap();
        }
        let envelope = Envelope::parse(request.body()).unwrap();
        let body = match DeviceRequest::parse(&envelope).unwrap() {
            DeviceRequest::GetDeviceInformation(_) => DeviceInformation {
                manufacturer: "Maker".into(),
                model: "E 2".into(),
                serial_number: SERIAL.to_lowercase(),
                ..DeviceInformation::default()
            }
            .to_element(),
            DeviceRequest::GetServices(_) => Services(vec![Service {
                namespace: MEDIA2_NS.into(),
                xaddr: "http://192.168.0.90/media2".into(),
                capabilities: None,
                version: (26, 6),
            }])
            .to_element(),
            DeviceRequest::GetMediaServiceCapabilities(_) => media2::ServiceCapabilities {
                rtsp_web_socket_uri: self.websocket.load(Ordering::Relaxed).then(|| "/rtsp".into()),
                ..Default::default()
            }
            .to_element(),
            DeviceRequest::GetProfiles(_) => Profiles(profiles()).to_element(),
            DeviceRequest::GetStreamUri(asked)
                if asked.protocol == "RtspOverHttp" && !self.http.load(Ordering::Relaxed) =>
            {
                let fault = Fault::receiver(&["ActionNotSupported"], "no such transport");
                return Response::new(fault.to_xml(envelope.version).into());
            }
            DeviceRequest::GetStreamUri(asked) => {
                // The site's own address, with a port that means nothing here, and with a password.
                StreamUri(format!("rtsp://root:sesame@192.168.0.90:8554/{}", asked.profile_token))
                    .to_element()
            }
            other => panic!("{}", other.name()),
        };
        Response::new(Envelope::new(body).to_xml().into())
    }

    fn check(&self) -> Result<(), ConnectError> {
        if self.connected.load(Ordering::Relaxed) {
            return Ok(());
        }
        let message = "it has no uplink; check its power".to_owned();
        Err(ConnectError::Reported(ProblemDetail { code: "not-connected".into(), message, step: None }))
    }
}

fn profiles() -> Vec<Profile> {
    let profile = |token: &str, source: &str, encoding: &str, width| Profile {
        token: token.into(),
        video_source: Some(VideoSource { source_token: source.into(), ..VideoSource::default() }),
        video_encoder: Some(VideoEncoder {
            encoding: encoding.into(),
            size: (width, 100),
            ..VideoEncoder::default()
        }),
        ..Profile::default()
    };
    vec![profile("a-265", "a", "H265", 640), profile("a", "a", "H264", 320), profile("b", "b", "H264", 320)]
}

impl DeviceConnector for Tunnel {
    fn serves(&self, device: &DeviceAddress) -> bool {
        matches!(device, DeviceAddress::Tunnel { server, .. } if server == self.name)
    }

    fn connect<'a>(
        &'a self,
        _device: &'a DeviceAddress,
        port: u16,
    ) -> BoxFuture<'a, Result<Box<dyn Stream>, ConnectError>> {
        Box::pin(async move {
            self.check()?;
            assert_eq!(port, 554, "through a tunnel RTSP has its own port");
            let thread = std::thread::current();
            assert_eq!(thread.name(), Some("home"), "a session runs where its tunnel does");
            self.streams.fetch_add(1, Ordering::Relaxed);
            let address = self.source.trim_start_matches("rtsp://").split('/').next().unwrap().to_owned();
            Ok(Box::new(TcpStream::connect(address).await.unwrap()) as Box<dyn Stream>)
        })
    }

    fn request<'a>(
        &'a self,
        _device: &'a DeviceAddress,
        request: Request<Bytes>,
    ) -> BoxFuture<'a, Result<Response<Bytes>, ConnectError>> {
        Box::pin(async move {
            self.check()?;
            Ok(self.answer(&request))
        })
    }

    fn credentials<'a>(&'a self, _device: &'a DeviceAddress) -> BoxFuture<'a, Option<Credentials>> {
        Box::pin(async { self.password.get().map(|password| Credentials::new("root", *password)) })
    }

    fn runtime(&self, _device: &DeviceAddress) -> Option<tokio::runtime::Handle> {
        Some(self.home.clone())
    }
}

fn home() -> tokio::runtime::Runtime {
    let mut home = tokio::runtime::Builder::new_multi_thread();
    home.worker_threads(1).thread_name("home").enable_all().build().unwrap()
}

/// Goal: hardware follows its device to another tunnel server: the same cameras record on there, after a restart too.
#[tokio::test(flavor = "multi_thread")]
async fn hardware_follows_its_device_to_another_tunnel_server() {
    let script = || Script { is_added: true, many: Some(clip()), speed: 5, ..Script::default() };
    let (before, after) = (Source::start(script()).await, Source::start(script()).await);
    let home = home();
    let (sts, other) = (Tunnel::new("sts", &before, &home), Tunnel::new("other", &after, &home));
    sts.connected.store(true, Ordering::Relaxed);
    [&sts, &other].iter().for_each(|tunnel| tunnel.websocket.store(true, Ordering::Relaxed));
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let recorder = async |folder: Arc<tempfile::TempDir>| {
        let config = config(folder.path());
        Recorder::with(folder, config, vec![sts.clone(), other.clone()]).await
    };
    let recording = recorder(folder).await;
    let device = DeviceAddress::Tunnel { server: "sts".into(), serial: SERIAL.parse().unwrap() };
    let new = NewHardware { device, user: "root".into(), password: "sesame".into(), name: "Gate".into() };
    let new = serde_json::to_value(&new).unwrap();
    let (status, _, body) = recording.send("POST", "/api/v1/hardware", Some(new)).await;
    assert_eq!(status, StatusCode::CREATED);
    let hardware: Hardware = serde_json::from_slice(&body).unwrap();
    let camera = hardware.cameras[0].id;
    recording.wait_for_recorded(camera, 2.0).await;

    let path = format!("/api/v1/hardware/{}", hardware.id);
    let follow = async |recording: &Recorder, server: &str| {
        recording.send("PATCH", &path, Some(serde_json::json!({ "server": server }))).await.0
    };
    assert_eq!(follow(&recording, "nowhere").await, StatusCode::BAD_REQUEST);
    sts.connected.store(false, Ordering::Relaxed);
    before.end().await;
    recording.wait_for_state(camera, CameraState::Error).await;
    other.connected.store(true, Ordering::Relaxed);
    assert_eq!(follow(&recording, "other").await, StatusCode::OK);
    recording.wait_for_state(camera, CameraState::Recording).await;
    let streams = other.streams.load(Ordering::Relaxed);
    assert!(streams >= 1);

    let recording = recorder(recording.stop().await).await;
    recording.wait_for_state(camera, CameraState::Recording).await;
    assert!(other.streams.load(Ordering::Relaxed) > streams);
    recording.stop().await;
    after.end().await;
    tokio::task::spawn_blocking(move || drop(home)).await.unwrap();
}

/// Goal: step 8 add. Wrong credentials, an absent device and one without RTSP over WebSocket or HTTP are told as
/// such; each channel becomes a camera that records over the device's own connection, on its own runtime; when the device is away
/// the tunnel server's reason is shown.
#[tokio::test(flavor = "multi_thread")]
async fn step_8_add() {
    let source =
        Source::start(Script { is_added: true, many: Some(clip()), speed: 5, ..Script::default() }).await;
    let home = home();
    let tunnel = Tunnel::new("sts", &source, &home);
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let recorder = Recorder::with(folder.clone(), config(folder.path()), vec![tunnel.clone()]).await;
    let add = async |serial: &str, password: &str| -> Result<Hardware, (u16, ProblemDetail)> {
        let serial: SerialNumber = serial.parse().unwrap();
        let device = DeviceAddress::Tunnel { server: "sts".into(), serial };
        let new =
            NewHardware { device, user: "root".into(), password: password.into(), name: "Encoder".into() };
        let body = serde_json::to_value(&new).unwrap();
        let (status, _, body) = recorder.send("POST", "/api/v1/hardware", Some(body)).await;
        if status == StatusCode::CREATED {
            return Ok(serde_json::from_slice(&body).unwrap());
        }
        let problem: homing_protocol::api::Problem = serde_json::from_slice(&body).unwrap();
        Err((status.as_u16(), problem.error))
    };
    let (status, problem) = add(SERIAL, "sesame").await.unwrap_err();
    assert_eq!((status, problem.code.as_str()), (503, "not-connected"));
    assert!(problem.message.contains("check its power"), "{problem:?}");
    tunnel.connected.store(true, Ordering::Relaxed);
    let (_, problem) = add(SERIAL, "wrong").await.unwrap_err();
    assert_eq!(
        (problem.code.as_str(), problem.step),
        ("wrong-credentials", Some(homing_protocol::Step::Add))
    );
    let (_, problem) = add("ACCC8E000001", "sesame").await.unwrap_err();
    assert_eq!(problem.code, "wrong-serial");
    let (status, problem) = add(SERIAL, "sesame").await.unwrap_err();
    assert_eq!((status, problem.code.as_str()), (422, "no-rtsp-over-websocket"));
    assert!(problem.message.contains("site agent"), "{problem:?}");
    assert!(problem.message.contains("nor over HTTP (the device answers: "), "{problem:?}");
    tunnel.http.store(true, Ordering::Relaxed);

    let hardware = add(SERIAL, "sesame").await.unwrap();
    assert_eq!((hardware.serial.to_string().as_str(), hardware.model.as_str()), (SERIAL, "Maker E 2"));
    let names: Vec<&str> = hardware.cameras.iter().map(|camera| camera.name.as_str()).collect();
    assert_eq!(names, ["Encoder 1", "Encoder 2"]);
    for camera in &hardware.cameras {
        recorder.wait_for_recorded(camera.id, 2.0).await;
        assert!(assert_consecutive(&recorder.export_all(camera.id).await) >= 2 * GROUP);
    }
    assert_eq!(tunnel.streams.load(Ordering::Relaxed), 2);

    tunnel.connected.store(false, Ordering::Relaxed);
    source.end().await;
    let camera = recorder.wait_for_state(hardware.cameras[0].id, CameraState::Error).await;
    assert!(camera.status.problem.is_some());
    recorder.stop().await;
    tokio::task::spawn_blocking(move || drop(home)).await.unwrap();
}

/// Goal: a password that was changed at the device is learnt from its tunnel server, and remembered.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_password_is_learnt_from_the_tunnel_server() {
    let script = Script {
        is_added: true,
        many: Some(clip()),
        speed: 5,
        login: Some(("root", "changed")),
        ..Script::default()
    };
    let source = Source::start(script).await;
    let home = home();
    let tunnel = || {
        let tunnel = Tunnel::new("sts", &source, &home);
        tunnel.connected.store(true, Ordering::Relaxed);
        tunnel.websocket.store(true, Ordering::Relaxed);
        tunnel
    };
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let knows = tunnel();
    knows.password.set("changed").unwrap();
    let recorder = Recorder::with(folder.clone(), config(folder.path()), vec![knows]).await;
    let device = DeviceAddress::Tunnel { server: "sts".into(), serial: SERIAL.parse().unwrap() };
    let new = NewHardware { device, user: "root".into(), password: "sesame".into(), name: "Encoder".into() };
    let (status, _, body) =
        recorder.send("POST", "/api/v1/hardware", Some(serde_json::to_value(&new).unwrap())).await;
    assert_eq!(status, StatusCode::CREATED);
    let hardware: Hardware = serde_json::from_slice(&body).unwrap();
    let camera = hardware.cameras[0].id;
    recorder.wait_for_recorded(camera, 1.0).await;
    recorder.stop().await;

    let recorder = Recorder::with(folder.clone(), config(folder.path()), vec![tunnel()]).await;
    recorder.wait_for_state(camera, CameraState::Recording).await;
    recorder.stop().await;
    source.end().await;
    tokio::task::spawn_blocking(move || drop(home)).await.unwrap();
}
