//! What a hundred cameras of one source cost: one encoder, and the socket writes.
//!
//! `cargo bench -p homing-camera --bench cost`. Prints figures for people and holds no bar: they depend on the
//! machine. What the whole costs is `cargo xtask bench`.

// Helpers that are shared with the tests, a program for people at a terminal.
#![allow(clippy::unwrap_used, clippy::print_stdout, dead_code)]

#[path = "../tests/it/harness.rs"]
mod harness;

use harness::{Running, Viewer, config};
use homing_base::Stop;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;

/// How many cameras and for how long.
const CAMERAS: u16 = 100;
const TIME: Duration = Duration::from_secs(20);

fn main() {
    let runtime = |name: &str| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name(name)
            .enable_all()
            .build()
            .unwrap()
    };
    let (cameras, viewers) = (runtime("cam"), runtime("view"));
    let stop = Stop::new();
    let running: Vec<_> = cameras.block_on(async {
        let mut running = Vec::new();
        for config in config("costs").fleet(CAMERAS).unwrap() {
            running.push(Running::start_in(config, &stop).await);
        }
        running
    });
    let connections: Vec<_> = viewers.block_on(async {
        // All at once: each is given its key frame, the same one, within a second.
        let starts = running.iter().map(Viewer::play);
        futures_util::future::join_all(starts).await.into_iter().map(|(viewer, _)| viewer.tcp).collect()
    });
    let received = viewers.block_on(async {
        let mut readers = tokio::task::JoinSet::new();
        let (before, started) = ((cpu_s("cam"), cpu_s("camera-source")), Instant::now());
        let end = started + TIME;
        for mut tcp in connections {
            readers.spawn(async move {
                let (mut buffer, mut bytes) = (vec![0; 65_536], 0usize);
                while let Ok(Ok(read)) = tokio::time::timeout_at(end.into(), tcp.read(&mut buffer)).await {
                    assert!(read > 0, "a camera has cut its viewer");
                    bytes += read;
                }
                bytes
            });
        }
        let bytes: usize = readers.join_all().await.into_iter().sum();
        let elapsed = started.elapsed().as_secs_f64();
        let (serving, encoding) = (cpu_s("cam") - before.0, cpu_s("camera-source") - before.1);
        println!(
            "{CAMERAS} cameras, {:.0} kbit/s each:",
            bytes as f64 * 8.0 / 1000.0 / elapsed / f64::from(CAMERAS)
        );
        println!(
            "  drawing and encoding: {:.2} % of a core, {:.2} ms a frame",
            100.0 * encoding / elapsed,
            1000.0 * encoding / elapsed / 8.0
        );
        println!("  serving: {:.3} % of a core per camera", 100.0 * serving / elapsed / f64::from(CAMERAS));
        bytes
    });
    assert!(received > 0);
    assert!(cameras.block_on(stop.drain(Duration::from_secs(5))));
}

/// CPU time of this process's threads of a name so far, in seconds.
fn cpu_s(name: &str) -> f64 {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let ticks: u64 = threads
        .filter_map(|thread| {
            let folder = thread.ok()?.path();
            let found = std::fs::read_to_string(folder.join("comm")).ok()?;
            let stat = std::fs::read_to_string(folder.join("stat")).ok()?;
            let fields: Vec<&str> = stat.rsplit(") ").next()?.split(' ').collect();
            (found.trim() == name)
                .then(|| fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap())
        })
        .sum();
    // The kernel's clock ticks 100 times a second on every Linux that we know of.
    ticks as f64 / 100.0
}
