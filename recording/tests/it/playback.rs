//! What was sent is what is recorded: export, playback, timeline.

use homing_protocol::api::recording::fragment_headers;
use http::{Request, StatusCode};

use crate::ffmpeg;
use crate::recorder::Recorder;
use crate::source::{CLIP, FPS, GROUP, Script, Source, assert_consecutive, clip};

const FAST: Script = Script {
    sound: false,
    speed: 20,
    pictures: 0,
    login: None,
    is_added: false,
    many: None,
    faults: Vec::new(),
};

/// Goal: every picture that a camera sent is in the export, in order, at its time; in one file of known length,
/// in pieces of any size, and after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn everything_sent_is_in_the_export() {
    let source = Source::start(Script { pictures: 203, sound: true, ..FAST }).await;
    let recorder = Recorder::start().await;
    let camera = recorder.add_camera(&source.url).await;
    // The last group of pictures has no end yet; stopping writes it.
    recorder.wait_for_picture_at(camera, 20.2).await;
    let recorder = Recorder::open(recorder.stop().await).await;

    let file = recorder.export_all(camera).await;
    ffmpeg::decodes(&file);
    assert_eq!(assert_consecutive(&file), 203);
    let streams = ffmpeg::streams(&file);
    let codecs: Vec<&str> = streams.iter().map(|stream| stream.0.as_str()).collect();
    assert_eq!(codecs, ["h264", "flac"]);
    for (codec, seconds) in &streams {
        assert!((seconds - 20.3).abs() < 0.1, "{codec}: {seconds} s");
    }
    for (number, time) in ffmpeg::times(&file).iter().enumerate() {
        assert!((time - number as f64 / f64::from(FPS)).abs() < 0.002, "picture {number} at {time} s");
    }

    let whole = std::fs::read(&file).unwrap();
    let range = recorder.timeline(camera).await.ranges[0];
    let path = format!("/api/v1/cameras/{camera}/recording.mp4?start={}&end={}", range.start, range.end);
    for (asked, from, to) in [
        ("bytes=0-99", 0, 100),
        ("bytes=1000-", 1000, whole.len()),
        ("bytes=-7", whole.len() - 7, whole.len()),
    ] {
        let request = Request::get(&path).header("range", asked).body(axum::body::Body::empty()).unwrap();
        let (status, headers, body) = recorder.request(request).await;
        assert_eq!(status, StatusCode::PARTIAL_CONTENT);
        assert_eq!(headers["content-range"], format!("bytes {from}-{}/{}", to - 1, whole.len()));
        assert!(body == whole[from..to], "{asked}");
    }
    let request =
        Request::get(&path).header("range", "bytes=99999999-").body(axum::body::Body::empty()).unwrap();
    assert_eq!(recorder.request(request).await.0, StatusCode::RANGE_NOT_SATISFIABLE);
    recorder.stop().await;
    source.end().await;
}

/// Goal: an export begins and ends with the pictures that were asked for, wherever the key frames are.
#[tokio::test(flavor = "multi_thread")]
async fn export_of_any_stretch() {
    let source = Source::start(Script { pictures: 120, sound: true, ..FAST }).await;
    let recorder = Recorder::start().await;
    let camera = recorder.add_camera(&source.url).await;
    recorder.wait_for_picture_at(camera, 11.9).await;
    let recorder = Recorder::open(recorder.stop().await).await;
    let begin = recorder.timeline(camera).await.ranges[0].start;
    for (first, last) in [(0, 5), (7, 8), (3, 64), (49, 51), (50, 60), (115, 120)] {
        // A tenth of a millisecond before the first picture, and before the one after the last.
        let at = |picture: i64| {
            begin + jiff::SignedDuration::from_micros(picture * 1_000_000 / i64::from(FPS) - 100)
        };
        let file = recorder.export(camera, at(first), at(last)).await;
        let expected: Vec<&String> = (first..last).map(|n| &clip().pictures[n as usize % CLIP]).collect();
        assert_eq!(
            ffmpeg::pictures(&file).iter().collect::<Vec<_>>(),
            expected,
            "pictures {first} to {last}"
        );
        ffmpeg::decodes(&file);
    }
    // Where there is nothing, the answer says what there is.
    for (start, end) in [("2020-01-01T00:00:00Z", "2020-01-02T00:00:00Z"), ("1577836800", "1577836801.5")] {
        let path = format!("/api/v1/cameras/{camera}/recording.mp4?start={start}&end={end}");
        let (status, _, body) = recorder.send("GET", &path, None).await;
        let text = String::from_utf8_lossy(&body);
        assert!(status == StatusCode::NOT_FOUND && text.contains("the next footage begins at"), "{text}");
    }
    for query in ["", "?start=1&end=zzz", "?start=5&end=4", "?start=0&end=999999", "?begin=1&end=2"] {
        let (status, _, body) =
            recorder.send("GET", &format!("/api/v1/cameras/{camera}/recording.mp4{query}"), None).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{query}: {}", String::from_utf8_lossy(&body));
    }
    let (status, ..) = recorder.send("GET", "/api/v1/cameras/999/recording.mp4?start=1&end=2", None).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    recorder.stop().await;
    source.end().await;
}

/// Goal: a player that asks for group after group gets every picture once, with absolute times, while recording
/// goes on.
#[tokio::test(flavor = "multi_thread")]
async fn playback_group_by_group() {
    let source = Source::start(Script { sound: true, ..FAST }).await;
    let recorder = Recorder::start().await;
    let camera = recorder.add_camera(&source.url).await;
    recorder.wait_for_recorded(camera, 13.0).await;
    let begin = recorder.timeline(camera).await.ranges[0].start;

    // From the middle of the second group on: the group that holds it is the first one given.
    let mut time = (begin + jiff::SignedDuration::from_millis(1_450)).to_string();
    let mut file = Vec::new();
    let mut starts = Vec::new();
    for _ in 0..10 {
        let path = format!("/api/v1/cameras/{camera}/fragment?time={time}");
        let (status, headers, body) = recorder.send("GET", &path, None).await;
        assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
        let header = |name: &str| headers[name].to_str().unwrap().to_owned();
        if file.is_empty() {
            let path = format!("/api/v1/cameras/{camera}/init/{}", header(fragment_headers::INIT));
            let (status, init_headers, init) = recorder.send("GET", &path, None).await;
            assert_eq!(status, StatusCode::OK);
            let mime = format!("video/mp4; codecs=\"{},flac\"", clip().codec);
            assert_eq!(init_headers[fragment_headers::MIME], mime);
            file.extend(init);
        }
        starts.push(header(fragment_headers::START).parse::<jiff::Timestamp>().unwrap());
        assert_eq!(header(fragment_headers::END), header(fragment_headers::NEXT));
        file.extend(body);
        time = header(fragment_headers::NEXT);
    }
    assert_eq!(starts[0], begin + jiff::SignedDuration::from_secs(1));
    let file_path = recorder.folder.path().join("played.mp4");
    std::fs::write(&file_path, file).unwrap();
    assert_eq!(assert_consecutive(&file_path), 10 * GROUP);
    let first = ffmpeg::run(
        "ffprobe",
        &[
            "-v",
            "error",
            "-select_streams",
            "v",
            "-show_entries",
            "stream=start_pts",
            "-of",
            "csv=p=0",
            file_path.to_str().unwrap(),
        ],
    );
    let expected = starts[0].as_nanosecond() * 90_000 / 1_000_000_000;
    assert_eq!(
        i128::from(first.trim().parse::<i64>().unwrap()),
        expected,
        "decode times are unix time × 90,000"
    );

    let (status, _, body) =
        recorder.send("GET", &format!("/api/v1/cameras/{camera}/fragment?time=9999999999"), None).await;
    let text = String::from_utf8_lossy(&body);
    assert!(status == StatusCode::NOT_FOUND && text.contains("its footage reaches from"), "{text}");
    let (status, ..) = recorder.send("GET", &format!("/api/v1/cameras/{camera}/init/0000"), None).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    recorder.stop().await;
    source.end().await;
}

/// Goal: hardware is listed, renamed, and forgotten; its footage stays.
#[tokio::test(flavor = "multi_thread")]
async fn hardware_comes_and_goes() {
    let source = Source::start(FAST).await;
    let recorder = Recorder::start().await;
    let hardware = recorder.add(&source.url, ("root", "pass")).await.unwrap();
    let camera = hardware.cameras[0].id;
    let (code, message) = recorder.add(&source.url, ("root", "pass")).await.unwrap_err();
    assert_eq!(code, "already-added", "{message}");
    recorder.wait_for_recorded(camera, 3.0).await;
    let view = recorder.camera(camera).await;
    assert!(view.status.bitrate_bps > 1_000 && view.status.last_frame.is_some(), "{view:?}");

    let path = format!("/api/v1/cameras/{camera}");
    let (status, _, body) = recorder.send("PATCH", &path, Some(serde_json::json!({"name": "Gate"}))).await;
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
    for bad in [serde_json::json!({"name": ""}), serde_json::json!({"nme": "x"})] {
        assert_eq!(recorder.send("PATCH", &path, Some(bad)).await.0, StatusCode::BAD_REQUEST);
    }
    let recorder = Recorder::open(recorder.stop().await).await;
    assert_eq!(recorder.camera(camera).await.name, "Gate");
    let listed: Vec<homing_protocol::api::recording::Hardware> = recorder.get("/api/v1/hardware").await;
    assert_eq!((listed.len(), listed[0].cameras.len(), listed[0].serial), (1, 1, hardware.serial));

    let path = format!("/api/v1/hardware/{}", hardware.id);
    assert_eq!(recorder.send("DELETE", &path, None).await.0, StatusCode::NO_CONTENT);
    assert_eq!(recorder.send("DELETE", &path, None).await.0, StatusCode::NOT_FOUND);
    let cameras: Vec<serde_json::Value> = recorder.get("/api/v1/cameras").await;
    assert!(cameras.is_empty());
    ffmpeg::decodes(&recorder.export_all(camera).await);
    // And it can be added anew, as another camera.
    let again = recorder.add(&source.url, ("root", "pass")).await.unwrap();
    assert!(again.cameras[0].id > camera);
    recorder.stop().await;
    source.end().await;
}
