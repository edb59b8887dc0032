//! Benchmarks of the whole: `cargo xtask bench`.
//!
//! | name | what | module |
//! |---|---|---|
//! | `relay` | CPU of a tunnel server that relays 200 cameras, against a bare TLS relay | [`relay`] |
//! | `idle` | memory of a tunnel server for each idle uplink | [`idle`] |
//! | `reconnect` | CPU and time when 5,000 devices come back at once | [`reconnect`] |
//! | `latency` | what the tunnel adds to a small request | [`latency`] |
//! | `bulk` | CPU for each GB of one stream | [`bulk`] |
//! | `viewers` | CPU of the RTSP gateway with 200 viewers on one camera, against plain copying | [`viewers`] |
//! | `crowd` | 20,000 idle uplinks for ten minutes; only when asked for | [`crowd`] |
//! | `recording` | CPU and memory of tunnel and recording server in one process | [`recording`] |
//! | `live` | from the camera to a pixel in Chromium | [`live`] |
//! | `agent` | size and memory of the agent | [`agent`] |
//! | `dispatch` | a thousand devices at one dispatcher | [`dispatch`] |
//!
//! What is measured is always another process, a release build; the load is made here. Figures of
//! different machines cannot be compared, ratios can: each is taken against a floor measured in the
//! same run. Results go to `docs/performance.md`; a figure that misses its bar fails the run.

// Helpers that the harness shares with the tests, a program for people at a terminal.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout, dead_code, unused_imports)]

mod agent;
mod bulk;
mod crowd;
mod devices;
mod dispatch;
mod floor;
mod idle;
mod latency;
mod live;
mod reconnect;
mod recording;
mod relay;
mod report;
mod rtsp_camera;
mod server;
mod viewers;
mod whole;

#[path = "../../tests/it/harness/mod.rs"]
mod harness;
#[path = "../../../dispatcher/tests/it/device.rs"]
mod scripted;
#[path = "../../tests/it/webdriver.rs"]
mod webdriver;

use report::Figure;
use std::process::ExitCode;

/// A benchmark gives its figures; a fault of the measurement itself is an error.
type Benchmark = fn() -> anyhow::Result<Vec<Figure>>;

const BENCHMARKS: [(&str, Benchmark); 11] = [
    ("relay", relay::run),
    ("idle", idle::run),
    ("reconnect", reconnect::run),
    ("latency", latency::run),
    ("bulk", bulk::run),
    ("viewers", viewers::run),
    ("crowd", crowd::run),
    ("recording", recording::run),
    ("live", live::run),
    ("agent", agent::run),
    ("dispatch", dispatch::run),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    match arguments.split_first().map(|(word, rest)| (word.as_str(), rest)) {
        Some(("floor", rest)) => return floor::main(rest),
        Some(("crowd-part", rest)) => return crowd::main(rest),
        _ => {}
    }
    if let Some(unknown) = arguments.iter().find(|name| BENCHMARKS.iter().all(|(known, _)| known != name)) {
        let names: Vec<&str> = BENCHMARKS.iter().map(|(name, _)| *name).collect();
        eprintln!("no benchmark {unknown:?}; there are {}", names.join(", "));
        return ExitCode::from(2);
    }
    let mut missed = 0;
    for (name, benchmark) in BENCHMARKS {
        // It takes a quarter of an hour.
        let by_itself = name == "crowd";
        let chosen = arguments.iter().any(|chosen| chosen == name);
        if !chosen && (by_itself || !arguments.is_empty()) {
            continue;
        }
        println!("── {name}");
        let figures = match benchmark() {
            Ok(figures) => figures,
            Err(error) => {
                eprintln!("{name} could not be measured: {error:#}");
                return ExitCode::FAILURE;
            }
        };
        for figure in &figures {
            println!("{figure}");
            missed += usize::from(!figure.meets_its_bar());
        }
        report::write(name, &figures);
    }
    if missed > 0 {
        eprintln!("{missed} figure(s) missed their bar");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
