//! Other people's players: they get in with the password alone, and decode every frame.

use crate::harness::{Running, config, run, words};
use homing_camera::{Config, strip};

/// Goal: ffmpeg plays over TCP with Digest, decodes without one error, and the frame numbers in its
/// pictures are complete, in order, and the ones that the camera says it sent.
#[tokio::test(flavor = "multi_thread")]
async fn ffmpeg_decodes_every_frame_in_order() {
    let camera = Running::start(Config { fps: 20, key_interval_s: 1, ..config("for ffmpeg") }).await;
    let wanted = 100;
    let arguments = words(&format!(
        "-v warning -xerror -rtsp_transport tcp -i {} -an -fps_mode passthrough -frames:v {wanted} \
         -f rawvideo -pix_fmt gray -",
        camera.url_with("sesame"),
    ));
    let output = run("ffmpeg", "ffmpeg", arguments).await;
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaints}");
    assert_eq!(complaints, "", "not one warning");

    let frames = frame_numbers(&output.stdout, 640, 360);
    assert_eq!(frames.len(), wanted);
    assert!(frames.windows(2).all(|pair| pair[1] == pair[0] + 1), "{frames:?}");
    let sent = camera.handle.sessions();
    let runs = &sent[0].frames;
    assert_eq!(runs.len(), 1, "without a gap: {runs:?}");
    assert_eq!(*runs[0].start(), frames[0], "the first that was sent is the first that was seen");
    assert!(runs[0].contains(frames.last().unwrap()));
    camera.finish().await;
}

/// Goal: ffprobe finds what the SDP promises: both streams, size, rate, no reordering.
#[tokio::test(flavor = "multi_thread")]
async fn ffprobe_finds_both_streams() {
    let camera = Running::start(config("for ffprobe")).await;
    let arguments = words(&format!(
        "-v error -rtsp_transport tcp {} -show_entries \
         stream=codec_name,profile,width,height,has_b_frames,r_frame_rate,sample_rate",
        camera.url_with("sesame"),
    ));
    let output = run("ffmpeg", "ffprobe", arguments).await;
    let found = String::from_utf8_lossy(&output.stdout);
    for line in [
        "codec_name=h264",
        "profile=Constrained Baseline",
        "width=640",
        "height=360",
        "has_b_frames=0",
        "r_frame_rate=8/1",
        "codec_name=pcm_mulaw",
        "sample_rate=8000",
    ] {
        assert!(found.contains(line), "{line} in {found} {}", String::from_utf8_lossy(&output.stderr));
    }
    camera.finish().await;
}

/// Goal: without the password there is no picture, and the program is told why.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_refused() {
    let camera = Running::start(config("not for everybody")).await;
    for url in [camera.url_with("sesam"), camera.url.clone()] {
        let arguments = words(&format!("-v error -rtsp_transport tcp {url}"));
        let output = run("ffmpeg", "ffprobe", arguments).await;
        assert!(!output.status.success());
        assert!(String::from_utf8_lossy(&output.stderr).contains("401"), "{output:?}");
    }
    assert!(camera.handle.sessions().is_empty());
    camera.finish().await;
}

/// Goal: a second player that shares no code with ffmpeg's RTSP gets the same.
#[tokio::test(flavor = "multi_thread")]
async fn gstreamer_plays_it_too() {
    let camera = Running::start(Config { fps: 20, ..config("for GStreamer") }).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("stream.264");
    // Every RTP packet is one buffer here; 300 of them are a few seconds.
    let arguments = words(&format!(
        "-q rtspsrc location={} user-id=root user-pw=sesame protocols=tcp ! application/x-rtp,media=video \
         ! identity eos-after=300 ! rtph264depay ! video/x-h264,stream-format=byte-stream,alignment=au \
         ! filesink location={}",
        camera.url,
        file.display(),
    ));
    let output = run("gstreamer1.0-tools, gstreamer1.0-plugins-good", "gst-launch-1.0", arguments).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let arguments = words(&format!(
        "-v error -xerror -i {} -fps_mode passthrough -f rawvideo -pix_fmt gray -",
        file.display(),
    ));
    let decoded = run("ffmpeg", "ffmpeg", arguments).await;
    assert!(decoded.status.success(), "{}", String::from_utf8_lossy(&decoded.stderr));
    let frames = frame_numbers(&decoded.stdout, 640, 360);
    assert!(frames.len() >= 30, "{} frames", frames.len());
    assert!(frames.windows(2).all(|pair| pair[1] == pair[0] + 1), "{frames:?}");
    camera.finish().await;
}

/// Goal: a page reads the same number from a canvas, whatever its size.
#[tokio::test(flavor = "multi_thread")]
async fn a_browser_reads_the_number_from_a_canvas() {
    let camera = Running::start(config("for a browser")).await;
    let folder = tempfile::tempdir().unwrap();
    for (width, height) in [(640, 360), (417, 235), (1280, 720)] {
        let file = folder.path().join("canvas.rgba");
        let arguments = words(&format!(
            "-v error -y -rtsp_transport tcp -i {} -frames:v 1 -vf scale={width}:{height} \
             -f rawvideo -pix_fmt rgba {}",
            camera.url_with("sesame"),
            file.display(),
        ));
        let output = run("ffmpeg", "ffmpeg", arguments).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let script = format!(
            "import {{ readStrip }} from '{}/src/strip.mjs';
             import {{ readFileSync }} from 'node:fs';
             const image = {{ data: readFileSync('{}'), width: {width}, height: {height} }};
             const blank = {{ ...image, data: new Uint8Array(image.data.length) }};
             console.log(readStrip(image), readStrip(blank));",
            env!("CARGO_MANIFEST_DIR"),
            file.display(),
        );
        let output = run("nodejs", "node", vec!["--input-type=module".into(), "-e".into(), script]).await;
        let sent = *camera.handle.sessions().last().unwrap().frames[0].start();
        let read = String::from_utf8_lossy(&output.stdout);
        assert_eq!(read.trim(), format!("{sent} null"), "{}", String::from_utf8_lossy(&output.stderr));
    }
    camera.finish().await;
}

/// The frame numbers of pictures in grey, one after the other.
fn frame_numbers(grey: &[u8], width: usize, height: usize) -> Vec<u32> {
    let pictures = grey.chunks_exact(width * height);
    assert!(pictures.remainder().is_empty());
    pictures.map(|picture| strip::read(picture, width, height).expect("a readable strip")).collect()
}
