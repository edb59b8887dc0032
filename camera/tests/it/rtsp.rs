//! The stream looked at closely, viewers that misbehave, and faults on demand.

use crate::harness::{PATIENCE, Received, Running, Viewer, config, eventually};
use homing_camera::{
    Config,
    scene::{EPOCH_MS, Timing},
};
use homing_media::rtsp::Method;
use std::time::{Duration, Instant};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Goal: a receiver knows what comes first and at what time of day it was taken, before it comes.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_packet_is_announced_with_its_time() {
    let camera = Running::start(Config { key_interval_s: 60, ..config("announced") }).await;
    let asked = Instant::now();
    let (mut viewer, info) = Viewer::play(&camera).await;
    assert!(asked.elapsed() < Duration::from_secs(1), "at once, not at the next key frame of the interval");
    let [video, audio] = &info[..] else { panic!("{info:?}") };
    assert!(video.url.ends_with("/video") && audio.url.ends_with("/audio"));

    let Some(Received::Report(1, report)) = viewer.packet().await else { panic!("no report first") };
    let Some(Received::Video(first)) = viewer.packet().await else { panic!("no picture second") };
    assert_eq!((Some(first.sequence), Some(first.timestamp)), (video.seq, video.rtptime));
    assert_eq!((first.ssrc, first.timestamp), (report.ssrc, report.rtp));
    assert_eq!(first.payload[0] & 0x1f, 7, "begins with the parameter sets");

    // NTP time back to microseconds of Unix time; the frame's number gives the same moment.
    let seconds = (report.ntp >> 32) as i64 - 2_208_988_800;
    let taken_us = seconds * 1_000_000 + (((report.ntp & 0xFFFF_FFFF) * 1_000_000) >> 32) as i64;
    let timing = Timing { fps: 8 };
    let frame = timing.frame_at(taken_us + 1000);
    assert!((timing.due_us(frame) - taken_us).abs() <= 1, "exactly when the frame was due");
    let now_us = std::time::UNIX_EPOCH.elapsed().unwrap().as_micros() as i64;
    assert!((0..2_000_000).contains(&(now_us - taken_us)), "and that is now");
    eventually("accounting", || !camera.handle.sessions()[0].frames.is_empty()).await;
    assert_eq!(*camera.handle.sessions()[0].frames[0].start(), frame);

    loop {
        match viewer.packet().await.expect("the stream goes on") {
            Received::Audio(packet) => {
                assert_eq!((Some(packet.sequence), Some(packet.timestamp)), (audio.seq, audio.rtptime));
                let samples = packet.timestamp.wrapping_sub(sample_at(taken_us)).cast_signed();
                assert!((-800..800).contains(&samples), "sound of the picture's time: {samples} samples off");
                break;
            }
            Received::Report(3, _) | Received::Video(_) => {}
            other => panic!("{other:?}"),
        }
    }

    // A second viewer does not wait for the interval's end either, a minute from now.
    let (mut second, _) = Viewer::play(&camera).await;
    assert!(matches!(second.packet().await, Some(Received::Report(1, _))));
    let Some(Received::Video(first)) = second.packet().await else { panic!("no picture second") };
    assert_eq!(first.payload[0] & 0x1f, 7, "begins with the parameter sets");
    camera.finish().await;
}

/// The RTP timestamp that sound of that time has.
fn sample_at(unix_us: i64) -> u32 {
    ((unix_us - EPOCH_MS * 1000) / 125) as u32
}

/// Goal: one viewer that stops reading is cut, and another one loses nothing by it.
#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_that_does_not_read_is_cut_alone() {
    let heavy = Config { width: 1280, height: 720, bitrate_bps: 8_000_000, ..config("heavy") };
    let camera = Running::start(heavy).await;
    let (_stuck, _) = Viewer::play(&camera).await;
    let (mut good, _) = Viewer::play(&camera).await;
    let deadline = Instant::now() + 3 * PATIENCE;
    let mut expected = None;
    while !camera.handle.sessions()[0].ended {
        assert!(Instant::now() < deadline, "the stuck viewer is still there");
        if let Received::Video(packet) = good.packet().await.expect("the good viewer stays") {
            assert!(expected.is_none_or(|sequence| packet.sequence == sequence), "a packet is missing");
            expected = Some(packet.sequence.wrapping_add(1));
        }
    }
    let sessions = camera.handle.sessions();
    assert!(!sessions[1].ended);
    assert_eq!(sessions[1].frames.len(), 1, "not one frame left out: {:?}", sessions[1].frames);
    camera.finish().await;
}

/// Goal: silence and garbage on the port delay nobody, and end in a closed connection.
#[tokio::test(flavor = "multi_thread")]
async fn silence_and_garbage_delay_nobody() {
    let camera = Running::start(config("besieged")).await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(camera.rtsp).await.unwrap());
    }
    let long_header = [b"DESCRIBE rtsp://x/live RTSP/1.0\r\nX: ".as_slice(), &[b'x'; 20_000]].concat();
    let endless_body = b"SET_PARAMETER rtsp://x/live RTSP/1.0\r\nCSeq: 1\r\nContent-Length: 99999999\r\n\r\n";
    for garbage in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS client hello",
        b"\0\0\0\0\0\0\0\0",
        b"DESCRIBE\r\n\r\n",
        b"DESCRIBE rtsp://x/live RTSP/1.0\r\n\r\n",
        &long_header,
        endless_body,
    ] {
        let mut tcp = TcpStream::connect(camera.rtsp).await.unwrap();
        tcp.write_all(garbage).await.unwrap();
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(5), tcp.read_to_end(&mut answer)).await;
        assert!(
            ended.is_ok(),
            "still open after {:?}",
            String::from_utf8_lossy(&garbage[..20.min(garbage.len())])
        );
    }
    let asked = Instant::now();
    let (mut viewer, _) = Viewer::play(&camera).await;
    assert!(viewer.packet().await.is_some());
    assert!(asked.elapsed() < Duration::from_secs(2), "the 101st waited {:?}", asked.elapsed());
    drop(silent);
    camera.finish().await;
}

/// Goal: who says nothing is given up, though only after the deadline.
#[tokio::test(flavor = "multi_thread")]
async fn who_never_asks_is_given_up() {
    let camera = Running::start(config("patient")).await;
    let mut tcp = TcpStream::connect(camera.rtsp).await.unwrap();
    let started = Instant::now();
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(2 * PATIENCE, tcp.read_to_end(&mut rest)).await;
    assert!(ended.is_ok_and(|read| read.is_ok()));
    assert!(started.elapsed() > Duration::from_secs(8), "{:?}", started.elapsed());
    camera.finish().await;
}

/// Goal: the faults that tests ask for are the faults that they get.
#[tokio::test(flavor = "multi_thread")]
async fn faults_on_demand() {
    let camera = Running::start(config("faulty")).await;
    let (mut viewer, _) = Viewer::play(&camera).await;
    assert!(viewer.packet().await.is_some());

    camera.handle.stop_sending(true);
    // What was under way may still come; then there is silence.
    while viewer.hears_anything(Duration::from_millis(700)).await {}
    assert_eq!(
        viewer.ask(Method::GetParameter, "", &[]).await.status,
        200,
        "requests are answered all the same"
    );
    camera.handle.stop_sending(false);
    eventually("a second run of frames", || camera.handle.sessions()[0].frames.len() == 2).await;
    let runs = &camera.handle.sessions()[0].frames;
    assert!(runs[1].start() - runs[0].end() > 4, "a gap of at least half a second: {runs:?}");

    camera.handle.cut();
    while viewer.message().await.is_some() {}
    eventually("the cut viewer is gone", || camera.handle.sessions()[0].ended).await;
    let (mut again, _) = Viewer::play(&camera).await;
    assert!(again.packet().await.is_some(), "new viewers are welcome");
    assert!(!camera.handle.sessions()[1].ended);
    camera.finish().await;
}

/// Goal: after TEARDOWN the connection is quiet and can be used again.
#[tokio::test(flavor = "multi_thread")]
async fn teardown_ends_the_stream_only() {
    let camera = Running::start(config("torn down")).await;
    let (mut viewer, _) = Viewer::play(&camera).await;
    assert_eq!(viewer.ask(Method::Teardown, "", &[]).await.status, 200);
    assert!(camera.handle.sessions()[0].ended);
    assert!(!viewer.hears_anything(Duration::from_millis(500)).await);
    assert_eq!(viewer.ask(Method::Options, "", &[]).await.status, 200);
    camera.finish().await;
}
