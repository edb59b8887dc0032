//! What recorded cameras cost: CPU and memory of a recording server, with nothing else in its process.
//!
//! `cargo bench -p homing-recording --bench cost [CAMERAS]`. The cameras send 500 kbit/s, 8 pictures a second, a
//! key frame every 2 s, over TCP on loopback. Prints figures for people and holds no bar: they depend on the
//! machine. What the whole costs is `cargo xtask bench`.

// Helpers that are shared with the tests, a program for people at a terminal.
#![allow(clippy::unwrap_used, clippy::print_stdout, dead_code)]

#[path = "../tests/it/child.rs"]
mod child;
#[path = "../tests/it/ffmpeg.rs"]
mod ffmpeg;
#[path = "../tests/it/source.rs"]
mod source;

use std::time::{Duration, Instant};

use source::{Clip, Script, Source};

const SETTLE: Duration = Duration::from_secs(15);
const TIME: Duration = Duration::from_secs(60);

fn main() {
    child::run_if_asked();
    let cameras = std::env::args().filter_map(|argument| argument.parse().ok()).next().unwrap_or(100);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let alone = runtime.block_on(measure(1)).resident_mb;
    let cost = runtime.block_on(measure(cameras));
    let per_camera_hour = |cpu_s: f64| cpu_s * 3600.0 / TIME.as_secs_f64() / cameras as f64;
    println!(
        "{cameras} cameras: {:.2} CPU-seconds per camera-hour ({:.2} of them user), {:.2} MB per camera",
        per_camera_hour(cost.user_s + cost.system_s),
        per_camera_hour(cost.user_s),
        (cost.resident_mb - alone) / cameras as f64,
    );
}

struct Cost {
    user_s: f64,
    system_s: f64,
    resident_mb: f64,
}

async fn measure(cameras: usize) -> Cost {
    let encoder = ["-b:v", "500k", "-maxrate", "500k", "-bufsize", "1000k"];
    let noise = "testsrc2=size=640x360:rate=8:duration=20,noise=alls=20:allf=t";
    let clip: &'static Clip = Box::leak(Box::new(Clip::make(noise, 8, 16, &encoder)));
    let source = Source::start(Script { many: Some(clip), is_added: true, ..Script::default() }).await;
    let folder = tempfile::tempdir().unwrap();
    let mut child = child::start(&[], folder.path(), &source.url, cameras);
    let process = child.id();
    // Two connections each, one of them that of Add Hardware.
    while source.connections() < 2 * cameras {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(SETTLE).await;
    let (before, end) = (cpu_s(process), Instant::now() + TIME);
    let mut resident = 0.0f64;
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_secs(1)).await;
        resident = resident.max(resident_mb(process));
    }
    let after = cpu_s(process);
    child.kill().unwrap();
    child.wait().unwrap();
    source.end().await;
    Cost { user_s: after.0 - before.0, system_s: after.1 - before.1, resident_mb: resident }
}

/// Seconds of CPU time of a process: user, system.
fn cpu_s(process: u32) -> (f64, f64) {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let seconds = |field: usize| fields[field].parse::<f64>().unwrap() / 100.0;
    (seconds(11), seconds(12))
}

fn resident_mb(process: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1000.0
}
