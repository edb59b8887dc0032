//! CPU and memory of tunnel server and recording server in one process, with 100 cameras of 500 kbit/s
//! behind 100 agents.
//!
//! The whole flow is the real one. Cameras (which share an encoder) and agents are this process; what
//! is measured is `homing server`, once everything is recorded. The floor is what bare TLS costs for the
//! same bits, from the benchmark `relay` where that ran before, so that the figure can be read on any
//! machine.

use crate::{
    report::Figure,
    server::Server,
    whole::{block_on, cpu_s_within},
};
use anyhow::ensure;
use homing_agent::{CameraConfig, DispatcherConfig};
use homing_base::Stop;
use std::time::Duration;

const CAMERAS: u16 = 100;
const MEASURED: Duration = Duration::from_secs(60);
/// Past the first files and their index.
const SETTLE: Duration = Duration::from_secs(20);
/// CPU seconds for an hour of a camera.
const BAR_CPU_S: f64 = 3.0;
/// MB of memory for a camera.
const BAR_MB: f64 = 0.5;

/// Measures.
pub fn run() -> anyhow::Result<Vec<Figure>> {
    block_on(async {
        let server = tokio::task::spawn_blocking(Server::start).await?;
        let before = server.process.memory_kb();
        let stop = Stop::new();
        let cameras = homing_camera::Config {
            rtsp: ([127, 0, 0, 1], 0).into(),
            http: ([127, 0, 0, 1], 0).into(),
            password: "bench-camera".into(),
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
        let with = server.process.memory_kb();
        stop.drain(Duration::from_secs(10)).await;
        tokio::task::spawn_blocking(move || drop(server)).await?;

        let camera_hours = f64::from(CAMERAS) * MEASURED.as_secs_f64() / 3600.0;
        let each_mb = (with as f64 - before as f64) / f64::from(CAMERAS) / 1000.0;
        Ok(vec![
            Figure::with_bar(
                "tunnel and recording, for a camera's hour",
                cpu / camera_hours,
                "CPU-s",
                BAR_CPU_S,
            ),
            Figure::with_bar(format!("each of {CAMERAS} recorded cameras"), each_mb, "MB", BAR_MB),
            Figure::plain("the whole process with them", with as f64 / 1000.0, "MB"),
        ])
    })
}
