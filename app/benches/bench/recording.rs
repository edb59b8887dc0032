//! CPU and memory of tunnel server and recording server in one process, with 100 cameras of 500 kbit/s
//! behind 100 agents.
//!
//! The whole flow is the real one. Cameras (which share an encoder) and agents are this process; what
//! is measured is `homing server`, once everything is recorded. The floor is a bare TLS relay that carries
//! as many bits, so that the figure can be read on any machine.

use crate::{
    devices::Camera,
    floor::{Bare, LARGE_BUFFERS},
    harness::DATA,
    report::Figure,
    server::Server,
    whole::{PSS, block_on, cpu_s_within},
};
use anyhow::ensure;
use homing_agent::{CameraConfig, DispatcherConfig};
use homing_base::Stop;
use std::time::Duration;

const CAMERAS: u16 = 100;
const MEASURED: Duration = Duration::from_secs(60);
const FLOOR_MEASURED: Duration = Duration::from_secs(12);
/// Until the memory that passwords took to check has been given back.
const STARTED: Duration = Duration::from_secs(10);
/// Past the first files and their index.
const SETTLE: Duration = Duration::from_secs(20);
/// CPU seconds for an hour of a camera.
const BAR_CPU_S: f64 = 3.0;
/// MB of memory for a camera.
const BAR_MB: f64 = 0.5;

/// What the server takes with all cameras.
struct Taken {
    /// CPU seconds for an hour of one camera.
    cpu_s: f64,
    /// Data of the process with no camera, and with all, in kB.
    data_kb: [u64; 2],
    /// Memory of the process with all, in kB.
    memory_kb: u64,
}

/// Measures.
pub fn run() -> anyhow::Result<Vec<Figure>> {
    block_on(async {
        let floor = Bare::start(CAMERAS.into(), LARGE_BUFFERS, Camera::Video).await?;
        let bare_cpu_s = for_a_camera_hour(floor.load.cores(&floor.process, FLOOR_MEASURED).await?);
        drop(floor);
        let video = measure(false).await?;
        let with_sound = measure(true).await?;

        let [before, with] = video.data_kb.map(|kb| kb as f64);
        Ok(vec![
            Figure::with_bar("tunnel and recording, for a camera's hour", video.cpu_s, "CPU-s", BAR_CPU_S)
                .against("bare tokio-rustls", bare_cpu_s),
            Figure::plain("the same with sound: 50 packets a second", with_sound.cpu_s, "CPU-s")
                .against("bare tokio-rustls, no sound", bare_cpu_s),
            Figure::with_bar(
                format!("each of {CAMERAS} recorded cameras"),
                (with - before) / f64::from(CAMERAS) / 1000.0,
                "MB",
                BAR_MB,
            ),
            Figure::plain("the whole process with them", video.memory_kb as f64 / 1000.0, "MB"),
        ])
    })
}

/// Of a share of a core that all cameras take together.
fn for_a_camera_hour(cores: f64) -> f64 {
    cores * 3600.0 / f64::from(CAMERAS)
}

/// Starts a server and its cameras, waits until all are recorded, and looks at it for a while.
async fn measure(audio: bool) -> anyhow::Result<Taken> {
    let server = tokio::task::spawn_blocking(Server::start).await?;
    tokio::time::sleep(STARTED).await;
    let before = server.process.memory_kb(DATA);
    let stop = Stop::new();
    let cameras = homing_camera::Config {
        rtsp: ([127, 0, 0, 1], 0).into(),
        http: ([127, 0, 0, 1], 0).into(),
        password: "bench-camera".into(),
        audio,
        ..homing_camera::Config::default()
    };
    let mut labels = Vec::new();
    for (number, config) in cameras.fleet(CAMERAS)?.into_iter().enumerate() {
        let camera = homing_camera::bind(config).await?;
        let agent = homing_agent::bind(homing_agent::Config {
            data: server.folder.join(&format!("agent-{number}")),
            serial: Some(camera.serial()),
            dispatchers: vec![DispatcherConfig {
                address: server.dispatcher.clone(),
                trust_anchor: server.anchor.display().to_string(),
            }],
            cameras: vec![CameraConfig {
                rtsp: camera.rtsp_url().into(),
                user: camera.credentials().user.clone(),
                password: camera.credentials().password.clone(),
                ..CameraConfig::default()
            }],
            page: homing_agent::config::PageConfig {
                listen: ([127, 0, 0, 1], 0).into(),
                ..Default::default()
            },
            ..homing_agent::Config::default()
        })
        .await?;
        let label = agent.label();
        labels.push((label.serial.to_string(), label.oak.label(), agent.press_url()));
        stop.spawn(camera.run(stop.clone()));
        stop.spawn(agent.run(stop.token().clone()));
    }
    let (server, recorded) = tokio::task::spawn_blocking(move || {
        for (serial, oak, press) in labels {
            server.register(&serial, &oak, "root", "bench-camera");
            let (origin, path) = press.split_at(press.rfind('/').expect("a path"));
            let pressed = crate::harness::Http::new(origin).request("POST", path, None).unwrap();
            assert_eq!(pressed.status, 200, "{}", pressed.text());
        }
        let recorded = server.add_all(CAMERAS.into(), Duration::from_secs(180));
        (server, recorded)
    })
    .await?;
    ensure!(recorded == usize::from(CAMERAS), "{recorded} cameras are recorded");

    tokio::time::sleep(SETTLE).await;
    let cpu = cpu_s_within(&server.process, MEASURED).await;
    let with = server.process.memory_kb(DATA);
    let whole = server.process.memory_kb(PSS);
    stop.drain(Duration::from_secs(10)).await;
    tokio::task::spawn_blocking(move || drop(server)).await?;

    Ok(Taken {
        cpu_s: for_a_camera_hour(cpu / MEASURED.as_secs_f64()),
        data_kb: [before, with],
        memory_kb: whole,
    })
}
