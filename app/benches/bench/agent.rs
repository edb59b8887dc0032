//! The agent as it is delivered: size of the stripped program, memory with one camera that is recorded.

use crate::{
    harness::{Process, root},
    report::Figure,
    server::Server,
    whole::{block_on, status_kb},
};
use anyhow::{Context, ensure};
use homing_base::Stop;
use serde_json::Value;
use std::{fs, os::unix::fs::PermissionsExt, process::Command, time::Duration};

/// How long it has carried video when it is looked at.
const CARRIED: Duration = Duration::from_secs(20);
const BAR_SIZE_MB: f64 = 8.0;
const BAR_RESIDENT_MB: f64 = 12.0;

/// Measures.
pub fn run() -> anyhow::Result<Vec<Figure>> {
    let program = root().join("target/agent/homing-agent");
    ensure!(
        program.is_file(),
        "{}: build it first: cargo build --profile agent -p homing-agent",
        program.display()
    );
    let size = fs::metadata(&program)?.len();
    let resident = block_on(async move {
        let server = tokio::task::spawn_blocking(Server::start).await?;
        let stop = Stop::new();
        let camera = homing_camera::bind(homing_camera::Config {
            rtsp: ([127, 0, 0, 1], 0).into(),
            http: ([127, 0, 0, 1], 0).into(),
            password: "bench-camera".into(),
            ..homing_camera::Config::default()
        })
        .await?;
        let config = server.folder.join("agent.toml");
        let text = format!(
            "data = '{}'\nserial = '{}'\n[[dispatchers]]\naddress = '{}'\ntrust_anchor = '{}'\n\
             [[cameras]]\nrtsp = '{}'\n[page]\nlisten = '127.0.0.1:8099'\n",
            server.folder.join("agent").display(),
            camera.serial(),
            server.dispatcher,
            server.anchor.display(),
            camera.rtsp_url().replacen("rtsp://", "rtsp://root:bench-camera@", 1),
        );
        fs::write(&config, text)?;
        fs::set_permissions(&config, fs::Permissions::from_mode(0o600))?;
        stop.spawn(camera.run(stop.clone()));
        let measured = tokio::task::spawn_blocking(move || -> anyhow::Result<u64> {
            let mut agent = Process::spawn(
                "homing-agent",
                Command::new(&program).arg("run").arg("--config").arg(&config),
            );
            let command = |word: &str| Command::new(&program).arg(word).arg("--config").arg(&config).output();
            let status: Value = crate::harness::wait_for("the agent runs", Duration::from_secs(10), || {
                serde_json::from_slice(&command("status").map_err(|error| error.to_string())?.stdout)
                    .map_err(|error| error.to_string())
            });
            let label = String::from_utf8(command("label")?.stdout)?;
            let (serial, oak) = crate::harness::label(&label).context("the agent's label")?;
            ensure!(status["serial"] == *serial, "{status}");
            server.register(&serial, &oak, "root", "bench-camera");
            ensure!(command("press")?.status.success(), "the button");
            server.add_all(1, Duration::from_secs(30));
            std::thread::sleep(CARRIED);
            let resident = status_kb(&agent, "VmRSS");
            agent.terminate(Duration::from_secs(10));
            Ok(resident)
        })
        .await??;
        stop.drain(Duration::from_secs(5)).await;
        anyhow::Ok(measured)
    })?;
    Ok(vec![
        Figure::with_bar("the stripped program", size as f64 / 1e6, "MB", BAR_SIZE_MB),
        Figure::with_bar("resident with one camera", resident as f64 / 1000.0, "MB", BAR_RESIDENT_MB),
    ])
}
