//! From the simulated camera to a pixel in Chromium: `homing demo`, the page, one camera live.
//!
//! A frame's number says when it was due; the page's script reads the number of every frame that the
//! browser presents, and the time. Encoding, RTSP, agent, tunnel, recording server, WebSocket, decoder:
//! all of it is in the figure.

use crate::{
    harness::{Demo, Folder, seconds},
    report::Figure,
    webdriver::{Browser, STRIP},
    whole::median,
};
use anyhow::ensure;
use homing_camera::scene::Timing;
use std::{collections::HashMap, time::Duration};

const TIMING: Timing = Timing { fps: 8 };
const WATCHED: Duration = Duration::from_secs(40);
/// The median may be at most this.
const BAR_MS: f64 = 150.0;

/// Puts every frame that is presented into `window.seen`, with the time in ms since 1970.
const WATCH: &str = "
    const video = document.querySelector('video');
    const canvas = document.createElement('canvas');
    const context = canvas.getContext('2d', {willReadFrequently: true});
    window.seen = [];
    const look = () => {
        const shown = performance.timeOrigin + performance.now();
        [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
        context.drawImage(video, 0, 0);
        const frame = readStrip(context.getImageData(0, 0, canvas.width, canvas.height));
        if (frame !== null) window.seen.push([frame, shown]);
        video.requestVideoFrameCallback(look);
    };
    video.requestVideoFrameCallback(look);";

/// Measures.
pub fn run() -> anyhow::Result<Vec<Figure>> {
    let folder = Folder::new();
    let demo = Demo::start(&folder.join("data"), &["--cameras", "2"]);
    let camera = demo.wait_for_recording(jiff::Timestamp::now(), seconds(60))["id"].clone();
    let browser = Browser::start(1280, 900);
    browser.sign_in(demo.text("/url"), demo.text("/user"), demo.text("/password"));
    browser.open(&format!("{}/#/camera/{camera}", demo.text("/url").trim_end_matches('/')));
    crate::harness::wait_for("a live picture", seconds(30), || browser.frame("video"));
    browser.run(&format!("{}{WATCH}", STRIP.replace("export function", "function")), &[])?;
    std::thread::sleep(WATCHED);
    let seen: Vec<(u32, f64)> = serde_json::from_value(browser.run("return window.seen", &[])?)?;

    let mut first_shown: HashMap<u32, f64> = HashMap::new();
    for (frame, shown) in seen {
        first_shown.entry(frame).or_insert(shown);
    }
    let expected = WATCHED.as_secs() as usize * TIMING.fps as usize;
    ensure!(
        first_shown.len() * 10 > expected * 9,
        "only {} of {expected} frames were seen",
        first_shown.len()
    );
    let latency = |(frame, shown): (&u32, &f64)| shown - TIMING.due_us(*frame) as f64 / 1000.0;
    let mut latencies: Vec<f64> = first_shown.iter().map(latency).collect();
    latencies.sort_by(f64::total_cmp);
    let p95 = latencies[latencies.len() * 95 / 100];
    Ok(vec![
        Figure::with_bar("send to pixel, median", median(latencies), "ms", BAR_MS),
        Figure::plain("send to pixel, 95th percentile", p95, "ms"),
    ])
}
