//! A recording server in a folder of its own, asked through its router as management would.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use homing_base::{Ops, Stop, Workers};
use homing_protocol::api::recording::{Camera, CameraState, DeviceAddress, Hardware, NewHardware, Timeline};
use homing_recording::connect::DeviceConnector;
use homing_recording::{Bound, Config, Deps, bind};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;
use tower::ServiceExt as _;

/// Within this long everything that a test waits for happens, on a busy machine too.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Recorder {
    pub folder: Arc<tempfile::TempDir>,
    pub router: Router,
    pub ops: Ops,
    stop: Stop,
    running: tokio::task::JoinHandle<anyhow::Result<()>>,
}

/// What a test wants: everything at once.
pub fn config(folder: &Path) -> Config {
    Config { data: folder.to_owned(), sync_ms: 50, file_s: 5, ..Config::default() }
}

impl Recorder {
    pub async fn start() -> Self {
        Self::open(Arc::new(tempfile::tempdir().unwrap())).await
    }

    /// Goes on with a folder.
    pub async fn open(folder: Arc<tempfile::TempDir>) -> Self {
        let config = config(folder.path());
        Self::with(folder, config, Vec::new()).await
    }

    pub async fn with(
        folder: Arc<tempfile::TempDir>,
        config: Config,
        connectors: Vec<Arc<dyn DeviceConnector>>,
    ) -> Self {
        let ops = Ops::new();
        let workers = Workers::start(1).unwrap();
        let bound = bind(config, Deps { connectors, workers, ops: ops.clone() }).await.unwrap();
        let (router, stop) = (bound.router(), Stop::new());
        let running = Self::run(bound, stop.clone());
        Self { folder, router, ops, stop, running }
    }

    #[expect(clippy::disallowed_methods)] // awaited by `stop`
    fn run(bound: Bound, stop: Stop) -> tokio::task::JoinHandle<anyhow::Result<()>> {
        tokio::spawn(bound.run(stop))
    }

    /// As SIGTERM would; gives the folder for the next one.
    pub async fn stop(self) -> Arc<tempfile::TempDir> {
        self.stop.stop();
        self.running.await.unwrap().unwrap();
        self.folder
    }

    /// As management does when the device has a new uplink.
    pub async fn device_connected(&self, serial: homing_protocol::SerialNumber) {
        let (status, ..) = self.send("POST", &format!("/api/v1/devices/{serial}/connected"), None).await;
        assert_eq!(status, StatusCode::NO_CONTENT);
    }

    pub async fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<serde_json::Value>,
    ) -> (StatusCode, HeaderMap, Bytes) {
        let mut request = Request::builder().method(method).uri(path);
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        self.request(request.body(body).unwrap()).await
    }

    pub async fn request(&self, request: Request<Body>) -> (StatusCode, HeaderMap, Bytes) {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        (head.status, head.headers, body.collect().await.unwrap().to_bytes())
    }

    pub async fn get<A: DeserializeOwned>(&self, path: &str) -> A {
        let (status, _, body) = self.send("GET", path, None).await;
        assert_eq!(status, StatusCode::OK, "{path}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap()
    }

    /// Adds a plain RTSP camera. The error is the problem's code and message.
    pub async fn add(&self, url: &str, login: (&str, &str)) -> Result<Hardware, (String, String)> {
        let new = NewHardware {
            device: DeviceAddress::Rtsp { url: url.to_owned() },
            user: login.0.to_owned(),
            password: login.1.into(),
            name: "Yard".to_owned(),
        };
        let (status, _, body) =
            self.send("POST", "/api/v1/hardware", Some(serde_json::to_value(&new).unwrap())).await;
        let text = String::from_utf8_lossy(&body).into_owned();
        if status == StatusCode::CREATED {
            return Ok(serde_json::from_str(&text).unwrap());
        }
        let problem: homing_protocol::api::Problem = serde_json::from_str(&text).expect(&text);
        Err((problem.error.code, problem.error.message))
    }

    /// Adds a camera that needs no password; gives the camera.
    pub async fn add_camera(&self, url: &str) -> i64 {
        self.add(url, ("", "")).await.unwrap().cameras[0].id
    }

    pub async fn camera(&self, id: i64) -> Camera {
        self.get(&format!("/api/v1/cameras/{id}")).await
    }

    /// Everything that there is of a camera, the near future included: scripted cameras run fast.
    pub async fn timeline(&self, id: i64) -> Timeline {
        let end = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
        self.get(&format!("/api/v1/cameras/{id}/timeline?end={end}")).await
    }

    /// Seconds of footage.
    pub async fn recorded_s(&self, id: i64) -> f64 {
        let ranges = self.timeline(id).await.ranges;
        ranges.iter().map(|range| range.end.duration_since(range.start).as_secs_f64()).sum()
    }

    /// All footage of a camera as one file.
    pub async fn export_all(&self, id: i64) -> PathBuf {
        let ranges = self.timeline(id).await.ranges;
        let (first, last) = (ranges.first().expect("footage"), ranges.last().expect("footage"));
        self.export(id, first.start, last.end).await
    }

    pub async fn export(&self, id: i64, start: jiff::Timestamp, end: jiff::Timestamp) -> PathBuf {
        let path = format!("/api/v1/cameras/{id}/recording.mp4?start={start}&end={end}");
        let (status, headers, body) = self.send("GET", &path, None).await;
        assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
        assert_eq!(headers["content-length"], body.len().to_string());
        let file = self.folder.path().join(format!("export-{id}-{}.mp4", body.len()));
        std::fs::write(&file, body).unwrap();
        file
    }

    /// Waits until the camera is in that state.
    pub async fn wait_for_state(&self, id: i64, state: CameraState) -> Camera {
        wait_for(|| async {
            let camera = self.camera(id).await;
            (camera.status.state == state).then_some(camera)
        })
        .await
    }

    /// Waits until so many seconds are recorded and secured.
    pub async fn wait_for_recorded(&self, id: i64, seconds: f64) {
        wait_for(|| async { (self.recorded_s(id).await >= seconds).then_some(()) }).await;
    }

    /// Waits until the picture that is so many seconds after the first has arrived.
    pub async fn wait_for_picture_at(&self, id: i64, seconds: f64) {
        wait_for(|| async {
            let first = self.timeline(id).await.ranges.first()?.start;
            let last = self.camera(id).await.status.last_frame?;
            (last.duration_since(first).as_secs_f64() > seconds - 0.01).then_some(())
        })
        .await;
    }

    /// A figure of `/metrics`.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.ops.metrics();
        let line = text.lines().find(|line| line.split(' ').next() == Some(name));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).rsplit(' ').next().unwrap().parse().unwrap()
    }
}

/// Asks until there is an answer.
pub async fn wait_for<T, F: Future<Output = Option<T>>>(mut ask: impl FnMut() -> F) -> T {
    let waiting = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("it did not happen in time")
}
