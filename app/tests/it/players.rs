//! The RTSP gateway and players that are not ours: ffmpeg, GStreamer and curl, over TCP and UDP, several at once.
//!
//! What a player has decoded tells by itself whether anything is missing: the simulated camera writes its frame numbers
//! into the picture. (live555's `openRTSP` is in no package of Debian 12, nor is VLC there built with it. Its version of
//! 2026.06.24 was tried by hand: it plays over TCP and over UDP, and is refused with a wrong password. How it logs in is a
//! test of `protocol/src/digest/tests.rs`.)

use crate::harness::{Demo, Folder, output, seconds};
use homing_camera::strip;
use jiff::Timestamp;
use std::{
    fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

const WIDTH: usize = 640;
const HEIGHT: usize = 360;
/// Pictures that each player is to show.
const PICTURES: usize = 24;
/// For a player to connect and show them: 3 s of video, on a busy machine.
const SHOWN: Duration = seconds(60);
/// How long a device may take from the start of the demo to its first recorded frame.
const FIRST_FRAME: Duration = seconds(60);

/// A running demo and where its first camera is watched.
struct Cinema {
    _demo: Demo,
    folder: Folder,
    /// Without user and password.
    url: String,
    user: String,
    password: String,
    /// `host:port/SERIAL`.
    place: String,
}

impl Cinema {
    fn open() -> Cinema {
        let folder = Folder::new();
        let demo = Demo::start(&folder.join("data"), &["--cameras", "2"]);
        demo.wait_for_recording(Timestamp::now(), FIRST_FRAME);
        let place = format!("{}/{}", demo.text("/tunnel/rtsp"), demo.text("/cameras/0/serial"));
        let (user, password) =
            (demo.text("/tunnel/user").to_owned(), demo.text("/tunnel/password").to_owned());
        Cinema { url: format!("rtsp://{place}"), place, user, password, _demo: demo, folder }
    }

    fn ffmpeg(&self, transport: &str) -> Command {
        let mut command = Command::new("ffmpeg");
        command.args(["-v", "error", "-xerror", "-rtsp_transport", transport, "-i"]);
        command.arg(format!("rtsp://{}:{}@{}", self.user, self.password, self.place));
        command.args(["-map", "0:v:0", "-fps_mode", "passthrough", "-frames:v", &PICTURES.to_string()]);
        command.args(["-f", "rawvideo", "-pix_fmt", "gray", "-y"]);
        command
    }

    fn gstreamer(&self, transport: &str) -> Command {
        let mut command = Command::new("gst-launch-1.0");
        command.args(["-q", "rtspsrc", "latency=0", "drop-on-latency=false"]);
        command.args([format!("location={}", self.url), format!("protocols={transport}")]);
        command.args([format!("user-id={}", self.user), format!("user-pw={}", self.password)]);
        command.args(["!", "rtph264depay", "!", "h264parse", "!", "avdec_h264", "!", "videoconvert"]);
        command.args(["!", "video/x-raw,format=GRAY8", "!", "identity"]);
        command.arg(format!("eos-after={}", PICTURES + 1));
        command.args(["!", "filesink", "sync=false"]);
        command
    }
}

/// The goal: each player shows the camera's pictures without one missing, over TCP and over UDP, while all of them watch
/// at the same time; every one begins at once.
#[test]
fn ffmpeg_and_gstreamer_miss_no_picture() {
    let cinema = Cinema::open();
    let mut watching = Vec::new();
    for (name, mut command) in [
        ("ffmpeg over TCP", cinema.ffmpeg("tcp")),
        ("ffmpeg over UDP", cinema.ffmpeg("udp")),
        ("GStreamer over TCP", cinema.gstreamer("tcp")),
        ("GStreamer over UDP", cinema.gstreamer("udp")),
    ] {
        let (shown, said) = (cinema.folder.join(name), cinema.folder.join(&format!("{name}.log")));
        match name.split(' ').next() {
            Some("ffmpeg") => command.arg(&shown),
            _ => command.arg(format!("location={}", shown.display())),
        };
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&said).unwrap());
        watching.push((name, command.spawn().unwrap(), shown, said));
    }
    let begun = Instant::now();
    for (name, mut player, shown, said) in watching {
        let status = loop {
            if let Some(status) = player.try_wait().unwrap() {
                break Some(status);
            }
            if begun.elapsed() > SHOWN {
                let _ = player.kill();
                let _ = player.wait();
                break None;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let said = fs::read_to_string(said).unwrap();
        assert!(status.is_some_and(|status| status.success()), "{name}: {status:?}\n{said}");
        let raw = fs::read(&shown).unwrap();
        let pictures = raw.chunks_exact(WIDTH * HEIGHT);
        let numbers: Vec<u32> = pictures
            .map(|picture| {
                strip::read(picture, WIDTH, HEIGHT).unwrap_or_else(|| panic!("{name}: unreadable"))
            })
            .collect();
        assert!(numbers.len() >= PICTURES, "{name}: {numbers:?}");
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{name}: {numbers:?}");
    }
}

/// The goal: what a player is refused its user can read: wrong password, unknown device; and curl asks what there is.
#[test]
fn players_show_what_is_wrong() {
    let mut cinema = Cinema::open();
    let said = |command: &mut Command| {
        let output = command.arg("-").stdin(Stdio::null()).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let options = output(Command::new("curl").args(["--silent", "--show-error", "--include", &cinema.url]));
    let options = String::from_utf8(options).unwrap();
    assert!(options.starts_with("RTSP/1.0 200 OK") && options.contains("DESCRIBE"), "{options}");

    let place = std::mem::replace(&mut cinema.place, "127.0.0.1:1/x".to_owned());
    let (host, _) = place.split_once('/').unwrap();
    cinema.place = format!("{host}/ACCC8E000000");
    let unknown = said(&mut cinema.ffmpeg("tcp"));
    assert!(unknown.contains("404") && unknown.contains("ACCC8E000000"), "{unknown}");
    cinema.place = place;
    let password = std::mem::replace(&mut cinema.password, "guess".to_owned());
    let wrong = said(&mut cinema.ffmpeg("tcp"));
    assert!(wrong.contains("401") && !wrong.contains(&password), "{wrong}");
}
