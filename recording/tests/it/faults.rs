//! Cameras that misbehave, and cameras that go away.

use homing_media::rtsp::Method;
use homing_protocol::api::recording::CameraState;

use crate::ffmpeg;
use crate::recorder::{Recorder, wait_for};
use crate::source::{Clip, Fault, GROUP, Script, Source, assert_consecutive};

fn script(faults: &[Fault]) -> Script {
    Script { speed: 10, faults: faults.to_vec(), ..Script::default() }
}

/// Goal: a wrong password, and an address where no camera is, are told when the hardware is added.
#[tokio::test(flavor = "multi_thread")]
async fn refused_when_added() {
    let source = Source::start(Script { login: Some(("root", "sesame")), ..script(&[]) }).await;
    let recorder = Recorder::start().await;
    let (code, message) = recorder.add(&source.url, ("root", "wrong")).await.unwrap_err();
    assert_eq!(code, "wrong-credentials", "{message}");
    let (code, message) = recorder.add("rtsp://127.0.0.1:1/x", ("", "")).await.unwrap_err();
    assert!(code == "device-refuses" && message.contains("127.0.0.1:1"), "{code}: {message}");
    let (code, _) = recorder.add("rtsp://a:b@127.0.0.1/x", ("", "")).await.unwrap_err();
    assert_eq!(code, "bad-address");
    let camera = recorder.add(&source.url, ("root", "sesame")).await.unwrap().cameras[0].id;
    recorder.wait_for_state(camera, CameraState::Recording).await;
    recorder.stop().await;
    assert!(source.requests().contains(&Method::Teardown));
    source.end().await;
}

/// Goal: an outage is a gap with its cause on the timeline; the camera comes back by itself, and the export is
/// true to the wall clock.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_a_gap_with_a_cause() {
    let source = Source::start(Script { speed: 1, ..script(&[]) }).await;
    let url = source.url.clone();
    let recorder = Recorder::start().await;
    let camera = recorder.add_camera(&url).await;
    recorder.wait_for_recorded(camera, 1.9).await;
    source.end().await;
    let view = recorder.wait_for_state(camera, CameraState::Error).await;
    let problem = view.status.problem.expect("a reason");
    assert!(["connection-lost", "device-refuses"].contains(&problem.code.as_str()), "{problem:?}");
    assert!(problem.message.contains("check"), "{problem:?}");

    tokio::time::sleep(std::time::Duration::from_secs(1)).await; // the outage itself
    let source = Source::restart(&url, Script { speed: 1, is_added: true, ..script(&[]) }).await;
    recorder.device_connected(view.serial).await;
    recorder.wait_for_recorded(camera, 4.0).await;
    let timeline = recorder.timeline(camera).await;
    let [before, after] = timeline.ranges[..] else { panic!("{timeline:?}") };
    let gap = timeline.gaps.iter().find(|gap| gap.start == before.end).expect("the outage is a gap");
    assert_eq!((gap.end, gap.code.as_str()), (after.start, "connection-lost"), "{timeline:?}");

    let file = recorder.export(camera, before.start, after.end).await;
    ffmpeg::decodes(&file);
    let times = ffmpeg::times(&file);
    let pause = times.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
    let lasting = 0.1 + gap.end.duration_since(gap.start).as_secs_f64();
    assert!((pause - lasting).abs() < 0.01, "a gap of {lasting} s is {pause} s in the export");
    recorder.stop().await;
    source.end().await;
}

/// Goal: a stopped server is a cause, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_is_a_gap_with_a_cause() {
    let source = Source::start(Script { speed: 1, ..script(&[]) }).await;
    let recorder = Recorder::start().await;
    let camera = recorder.add_camera(&source.url).await;
    recorder.wait_for_recorded(camera, 1.0).await;
    let folder = recorder.stop().await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await; // the outage itself
    let recorder = Recorder::open(folder).await;
    wait_for(|| async { (recorder.timeline(camera).await.ranges.len() == 2).then_some(()) }).await;
    let timeline = recorder.timeline(camera).await;
    let gap =
        timeline.gaps.iter().find(|gap| gap.start == timeline.ranges[0].end).expect("the stop is a gap");
    assert_eq!(gap.code, "server-stopped");
    recorder.stop().await;
    source.end().await;
}

/// Goal: a lost packet costs the pictures up to the next key frame and nothing else; what is recorded decodes, the
/// loss is counted, and where it is long enough to be seen it is a gap.
#[tokio::test(flavor = "multi_thread")]
async fn lost_packets() {
    for (lost_in, dropped, gaps) in [(25, 5, 0), (20, 10, 1)] {
        let source = Source::start(Script { pictures: 60, ..script(&[Fault::LoseIn(lost_in)]) }).await;
        let recorder = Recorder::start().await;
        let camera = recorder.add_camera(&source.url).await;
        recorder.wait_for_picture_at(camera, 5.9).await;
        let ops = recorder.ops.clone();
        let recorder = Recorder::open(recorder.stop().await).await;
        let figures = ops.metrics();
        for (name, expected) in [("lost_packets", 1), ("dropped_frames", dropped)] {
            assert!(figures.contains(&format!("homing_recording_{name}_total {expected}\n")), "{figures}");
        }
        let file = recorder.export_all(camera).await;
        ffmpeg::decodes(&file);
        assert_eq!(ffmpeg::pictures(&file).len(), 60 - dropped);
        let timeline = recorder.timeline(camera).await;
        let lost: Vec<_> = timeline.gaps.iter().filter(|gap| gap.code == "packets-lost").collect();
        assert_eq!((lost.len(), timeline.ranges.len()), (gaps, 1 + gaps), "{timeline:?}");
        recorder.stop().await;
        source.end().await;
    }
}

/// Goal: packets that lie about their sizes, and garbage between packets, are counted and change nothing.
#[tokio::test(flavor = "multi_thread")]
async fn lies_and_garbage() {
    for fault in [Fault::LieBefore(15), Fault::GarbageBefore(15)] {
        let source = Source::start(Script { pictures: 40, sound: true, ..script(&[fault]) }).await;
        let recorder = Recorder::start().await;
        let camera = recorder.add_camera(&source.url).await;
        recorder.wait_for_picture_at(camera, 3.9).await;
        let ops = recorder.ops.clone();
        let recorder = Recorder::open(recorder.stop().await).await;
        let malformed = if fault == Fault::LieBefore(15) { 5 } else { 0 };
        let figures = ops.metrics();
        assert!(figures.contains(&format!("malformed_packets_total {malformed}\n")), "{fault:?}: {figures}");
        let file = recorder.export_all(camera).await;
        ffmpeg::decodes(&file);
        assert_eq!(assert_consecutive(&file), 40, "{fault:?}");
        recorder.stop().await;
        source.end().await;
    }
}

/// Goal: a connection that ends in the middle of a packet ends the session with a clear reason, and recording goes
/// on over the next one.
#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_stream() {
    let faults = [Fault::CutAfter(25), Fault::CloseAfter(12)];
    let source = Source::start(Script { speed: 1, ..script(&faults) }).await;
    let recorder = Recorder::start().await;
    let camera = recorder.add_camera(&source.url).await;
    wait_for(|| async { (source.connections() == 4).then_some(()) }).await;
    recorder.wait_for_recorded(camera, 5.0).await;
    let timeline = recorder.timeline(camera).await;
    assert_eq!(timeline.ranges.len(), 3, "{timeline:?}");
    for gap in timeline.gaps.iter().filter(|gap| gap.start > timeline.ranges[0].start) {
        assert!(gap.code == "connection-lost" && gap.message.contains("closed the connection"), "{gap:?}");
    }
    let file = recorder.export_all(camera).await;
    ffmpeg::decodes(&file);
    // 25, then from the next key frame 12.
    assert!(ffmpeg::pictures(&file).len() > 25 + 12 + GROUP);
    recorder.stop().await;
    source.end().await;
}

/// Goal: footage that cannot be written is said in the health, is a gap with its cause, costs nothing else, and
/// recording goes on by itself once there is room.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_takes_nothing() {
    let source = Source::start(script(&[])).await;
    let recorder = Recorder::start().await;
    // A file where the camera's folder should be: nothing can be written.
    let in_the_way = recorder.folder.path().join("footage/1");
    std::fs::write(&in_the_way, b"").unwrap();
    let camera = recorder.add_camera(&source.url).await;
    wait_for(|| async { recorder.ops.health(true).1.contains("footage cannot be written").then_some(()) })
        .await;
    assert_eq!(recorder.camera(camera).await.status.state, CameraState::Recording);
    assert!(recorder.metric("homing_recording_write_errors_total") >= 1.0);
    std::fs::remove_file(&in_the_way).unwrap();
    recorder.wait_for_recorded(camera, 3.0).await;
    assert_eq!(recorder.ops.health(true).1, "ok\n");
    let timeline = recorder.timeline(camera).await;
    let gap = timeline.gaps.iter().find(|gap| gap.code == "disk-failed").expect("the gap's cause");
    assert!(gap.message.contains("could not be written"), "{gap:?}");
    assert_consecutive(&recorder.export_all(camera).await);
    recorder.stop().await;
    source.end().await;
}

/// Goal: a camera whose picture changes (another size) is recorded on, live viewers and exports included.
#[tokio::test(flavor = "multi_thread")]
async fn a_camera_that_is_set_to_another_size() {
    let source = Source::start(Script { pictures: 30, ..script(&[]) }).await;
    let url = source.url.clone();
    let recorder = Recorder::start().await;
    let camera = recorder.add_camera(&url).await;
    recorder.wait_for_picture_at(camera, 2.9).await;
    source.end().await;
    let view = recorder.wait_for_state(camera, CameraState::Error).await;
    let other: &'static Clip =
        Box::leak(Box::new(Clip::make("testsrc2=size=160x120:rate=10:duration=3", 10, GROUP, &[])));
    let source = Source::restart(&url, Script { is_added: true, many: Some(other), ..script(&[]) }).await;
    recorder.device_connected(view.serial).await;
    recorder.wait_for_recorded(camera, 6.0).await;
    let file = recorder.export_all(camera).await;
    let arguments = ["-v", "error", "-select_streams", "v", "-show_entries", "frame=width", "-of", "csv=p=0"];
    let widths = ffmpeg::run("ffprobe", &[&arguments[..], &[file.to_str().unwrap()]].concat());
    let count = |width: &str| widths.lines().filter(|line| line.trim_end_matches(',') == width).count();
    assert_eq!(count("320"), 30);
    assert!(count("160") >= 20, "{widths}");
    recorder.stop().await;
    source.end().await;
}
