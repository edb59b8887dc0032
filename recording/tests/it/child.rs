//! A recording server as a process of its own: to be killed, or to be measured.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use axum::Router;
use homing_base::{Ops, Stop, Workers};
use homing_protocol::api::recording::{DeviceAddress, NewHardware};
use homing_recording::{Config, Deps, bind};
use http::Request;
use tower::ServiceExt as _;

const FOLDER: &str = "HOMING_TEST_RECORDER_FOLDER";
const URL: &str = "HOMING_TEST_RECORDER_URL";
const CAMERAS: &str = "HOMING_TEST_RECORDER_CAMERAS";

/// Starts this very program again, as a recording server that adds so many cameras of that URL to those of its
/// folder. `arguments` must lead it to [`run_if_asked`].
pub fn start(arguments: &[&str], folder: &Path, url: &str, cameras: usize) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(arguments)
        .env(FOLDER, folder)
        .env(URL, url)
        .env(CAMERAS, cameras.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// In the process that [`start`] started: records until it is killed. Else: returns at once.
pub fn run_if_asked() {
    let (Ok(folder), Ok(url), Ok(cameras)) =
        (std::env::var(FOLDER), std::env::var(URL), std::env::var(CAMERAS))
    else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(record(Path::new(&folder), &url, cameras.parse().unwrap()));
}

async fn record(folder: &Path, url: &str, cameras: usize) {
    let config = Config { data: folder.to_owned(), ..Config::default() };
    let deps = Deps { connectors: Vec::new(), workers: Workers::start(1).unwrap(), ops: Ops::new() };
    let bound = bind(config, deps).await.unwrap();
    let (router, stop) = (bound.router(), Stop::new());
    tokio::join!(add(router, url, cameras), async { bound.run(stop).await.unwrap() });
}

async fn add(router: Router, url: &str, cameras: usize) {
    for number in 0..cameras {
        let url = if number == 0 { url.to_owned() } else { format!("{url}?camera={number}") };
        let device = DeviceAddress::Rtsp { url };
        let new = NewHardware { device, user: String::new(), password: "".into(), name: "Yard".into() };
        let body = serde_json::to_string(&new).unwrap();
        let request = Request::post("/api/v1/hardware")
            .header("content-type", "application/json")
            .body(axum::body::Body::from(body));
        let _ = router.clone().oneshot(request.unwrap()).await.unwrap();
    }
}
