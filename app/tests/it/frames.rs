//! Accounting for every frame: what the simulated camera showed is in the recording, exactly once and
//! in order, and stays there when the server is killed.
//!
//! The camera draws frame `n` at a known time and writes `n` into the picture
//! (`camera/src/strip.rs`), so that a decoded recording tells by itself what is missing, without
//! believing any clock or index of the recorder.

use crate::harness::{Demo, Folder, seconds};
use homing_camera::{scene::Timing, strip};
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

/// Pictures a second, seconds between key frames, and size of the demo's cameras.
const TIMING: Timing = Timing { fps: 8 };
const GOP_S: i64 = 2;
const WIDTH: usize = 640;
const HEIGHT: usize = 360;
/// From the camera's lens to the recorder's clock; a frame at the edge of an export may fall to
/// either side.
const EDGE: SignedDuration = SignedDuration::from_millis(500);
/// How long a device may take from the start of the demo to its first recorded frame.
const FIRST_FRAME: Duration = seconds(60);

/// What a decoded picture shows: its number, and a hash of all its pixels.
type Frames = Vec<(u32, [u8; 8])>;

/// The goal: over 60 s every frame is in the exported recording, once, in order.
#[test]
fn a_minute_is_complete_and_in_order() {
    let folder = Folder::new();
    let demo = Demo::start(&folder.join("data"), &["--cameras", "2"]);
    let camera = demo.wait_for_recording(Timestamp::now(), FIRST_FRAME)["id"].as_i64().unwrap();

    let start = Timestamp::now();
    let end = start + SignedDuration::from_secs(60);
    demo.wait_until_recorded(camera, end + SignedDuration::from_secs(2 * GOP_S));
    let frames = decode(&folder, &demo.export(camera, start, end));

    assert_contiguous(&frames);
    let (first, last) = (frames[0].0, frames[frames.len() - 1].0);
    assert!(first <= frame_at(start + EDGE), "the start is missing: it begins with frame {first}");
    assert!(last >= frame_at(end - EDGE), "the end is missing: it ends with frame {last}");
    assert!(frames.len() >= 59 * TIMING.fps as usize, "{} frames", frames.len());
}

/// The goal: killed at any moment, the server has lost at most one group of pictures when it is
/// started again, and nothing that could be exported before.
#[test]
fn a_killed_server_has_lost_at_most_one_group_of_pictures() {
    let seed = seed();
    let folder = Folder::new();
    let data = folder.join("data");
    let mut demo = Demo::start(&data, &["--cameras", "2"]);
    let camera = demo.wait_for_recording(Timestamp::now(), FIRST_FRAME)["id"].as_i64().unwrap();
    let mut kept = BTreeMap::new();

    for round in 0..2u64 {
        let start = Timestamp::now();
        let exported_until = start + SignedDuration::from_secs(10);
        demo.wait_until_recorded(camera, exported_until);
        let exported = decode(&folder, &demo.export(camera, start, exported_until));
        assert_contiguous(&exported);
        kept.extend(exported.iter().copied());
        // Anywhere in two groups of pictures.
        thread::sleep(Duration::from_millis((seed >> (16 * round)) % (2 * 1000 * GOP_S as u64)));

        let killed = Timestamp::now();
        demo.process.kill();
        demo = Demo::start(&data, &["--cameras", "2"]);
        let restarted = Timestamp::now();
        demo.wait_for_recording(restarted + SignedDuration::from_secs(GOP_S), FIRST_FRAME);

        let recovered = decode(&folder, &demo.export(camera, start, killed + EDGE));
        assert_contiguous(&recovered);
        let last = recovered[recovered.len() - 1].0;
        // One group, and the frame that was just on its way.
        let at_least = frame_at(killed) - GOP_S as u32 * TIMING.fps - 1;
        println!("seed {seed}, round {round}: {} of {} frames lost", frame_at(killed) - last, TIMING.fps * 2);
        assert!(last >= at_least, "seed {seed}: recorded until frame {last}, should be {at_least} at least");

        // What was set up before is not set up again.
        let audit = demo.api.json("/api/v1/audit").unwrap();
        let done = audit.as_array().unwrap().iter().filter(|entry| entry["action"] == "register-device");
        assert_eq!(done.count(), 1, "{audit}");

        // The timeline says that, and why, something is missing.
        let path = format!("/api/v1/cameras/{camera}/timeline?start={start}&end={}", Timestamp::now());
        let timeline = demo.api.json(&path).unwrap();
        let gaps = timeline["gaps"].as_array().expect("gaps");
        assert!(gaps.iter().any(|gap| gap["code"] == "server-crashed"), "seed {seed}: {timeline:#}");

        // Everything that was exported before, from all rounds, is still there and looks the same.
        let first = *kept.keys().next().unwrap();
        let all = demo.export(camera, time_of(first), exported_until);
        let all: BTreeMap<u32, [u8; 8]> = decode(&folder, &all).into_iter().collect();
        for (number, picture) in &kept {
            let found = all.get(number);
            assert!(found.is_some(), "seed {seed}: frame {number} was exported before the crash and is gone");
            assert_eq!(found, Some(picture), "seed {seed}: frame {number} looks different after the crash");
        }
    }
}

/// From the environment (`HOMING_TEST_SEED`), to see a failure again, or else from the clock.
fn seed() -> u64 {
    let given = std::env::var("HOMING_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| Timestamp::now().as_nanosecond() as u64 & 0xFFFF_FFFF);
    println!("again with HOMING_TEST_SEED={seed}");
    seed
}

fn frame_at(moment: Timestamp) -> u32 {
    TIMING.frame_at(moment.as_microsecond())
}

fn time_of(frame: u32) -> Timestamp {
    Timestamp::from_microsecond(TIMING.due_us(frame)).unwrap()
}

#[track_caller]
fn assert_contiguous(frames: &Frames) {
    assert!(!frames.is_empty(), "the recording holds no frame");
    for pair in frames.windows(2) {
        let (one, next) = (pair[0].0, pair[1].0);
        assert_eq!(next, one + 1, "frame {next} follows frame {one}");
    }
}

/// Decodes a recording with ffmpeg, which must not find the least error, and reads every picture.
#[track_caller]
fn decode(folder: &Folder, recording: &[u8]) -> Frames {
    let file = folder.join("recording.mp4");
    fs::write(&file, recording).unwrap();
    let complaints = folder.join("ffmpeg.log");
    let mut ffmpeg = Command::new("ffmpeg")
        .args(["-v", "error", "-xerror", "-err_detect", "explode", "-i"])
        .arg(&file)
        // Every picture that is there, as often as it is there, at its own time: in ticks of a guessed rate two may meet.
        .args(["-map", "0:v:0", "-fps_mode", "passthrough", "-enc_time_base", "-1"])
        .args(["-f", "rawvideo", "-pix_fmt", "gray", "-"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(fs::File::create(&complaints).unwrap())
        .spawn()
        .unwrap();
    let mut pictures = ffmpeg.stdout.take().expect("piped");
    let mut picture = vec![0; WIDTH * HEIGHT];
    let mut frames = Frames::new();
    while pictures.read_exact(&mut picture).is_ok() {
        let number = strip::read(&picture, WIDTH, HEIGHT);
        let number = number.unwrap_or_else(|| panic!("picture {} has no readable number", frames.len()));
        let hash: [u8; 32] = Sha256::digest(&picture).into();
        frames.push((number, *hash.first_chunk().expect("32 bytes")));
    }
    let status = ffmpeg.wait().unwrap();
    let complaints = fs::read_to_string(&complaints).unwrap();
    assert!(status.success() && complaints.is_empty(), "ffmpeg: {status}\n{complaints}");
    frames
}

/// The goal: the account itself notices a frame that is missing, doubled or out of order.
#[test]
fn the_account_notices_what_is_wrong() {
    let frames = |numbers: &[u32]| numbers.iter().map(|number| (*number, [0; 8])).collect::<Frames>();
    assert_contiguous(&frames(&[7, 8, 9]));
    for wrong in [&[7, 9][..], &[7, 7, 8], &[8, 7], &[]] {
        let wrong = frames(wrong);
        assert!(std::panic::catch_unwind(|| assert_contiguous(&wrong)).is_err(), "{wrong:?}");
    }
}
