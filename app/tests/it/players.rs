//! The RTSP gateway and players that are not ours: ffmpeg, GStreamer, live555's openRTSP and curl, over TCP, UDP and TLS,
//! several at once.
//!
//! What a player has decoded tells by itself whether anything is missing: the simulated camera writes its frame numbers
//! into the picture. (Debian 12 has no openRTSP, nor is VLC there built with live555: `cargo xtask test --only tools` fetches
//! it. How it logs in is a test of `protocol/src/digest/tests.rs`, too.)

use crate::harness::{Demo, Folder, Process, homing, output, root, seconds};
use homing_camera::strip;
use jiff::Timestamp;
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

const WIDTH: usize = 640;
const HEIGHT: usize = 360;
/// Pictures that each player is to show.
const PICTURES: usize = 24;
/// For a player to connect and show them: 3 s of video, on a busy machine.
const SHOWN: Duration = seconds(60);
/// How long openRTSP watches.
const OPEN_RTSP_S: u32 = 8;
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
    /// The same for RTSPS.
    place_inside_tls: String,
    /// The CA that its certificate is of.
    ca: PathBuf,
}

impl Cinema {
    fn open() -> Cinema {
        let folder = Folder::new();
        let demo = Demo::start(&folder.join("data"), &["--cameras", "2"]);
        demo.wait_for_recording(Timestamp::now(), FIRST_FRAME);
        let place = format!("{}/{}", demo.text("/tunnel/rtsp"), demo.text("/cameras/0/serial"));
        let place_inside_tls = format!("{}/{}", demo.text("/tunnel/rtsps"), demo.text("/cameras/0/serial"));
        let (user, password) =
            (demo.text("/tunnel/user").to_owned(), demo.text("/tunnel/password").to_owned());
        let (url, ca) = (format!("rtsp://{place}"), folder.join("data/tunnel/tunnel-ca.pem"));
        Cinema { url, place, place_inside_tls, ca, user, password, _demo: demo, folder }
    }

    fn ffmpeg(&self, transport: &str) -> Command {
        self.ffmpeg_of("rtsp", &self.place, transport)
    }

    /// Over TLS. (Debian 12's does not check certificates there, and has no option for it.)
    fn ffmpeg_inside_tls(&self) -> Command {
        self.ffmpeg_of("rtsps", &self.place_inside_tls, "tcp")
    }

    fn ffmpeg_of(&self, scheme: &str, place: &str, transport: &str) -> Command {
        let mut command = Command::new("ffmpeg");
        command.args(["-v", "error", "-xerror", "-rtsp_transport", transport, "-i"]);
        command.arg(format!("{scheme}://{}:{}@{place}", self.user, self.password));
        command.args(["-map", "0:v:0", "-fps_mode", "passthrough", "-frames:v", &PICTURES.to_string()]);
        command.args(["-f", "rawvideo", "-pix_fmt", "gray", "-y"]);
        command
    }

    fn gstreamer(&self, transport: &str) -> Command {
        let mut command = Command::new("gst-launch-1.0");
        command.arg("-q");
        self.pipeline(command, &self.url, transport)
    }

    /// Over TLS, to a server whose certificate is of this CA and names the address.
    fn gstreamer_inside_tls(&self, ca: &Path) -> Command {
        let mut command = Command::new("/usr/bin/python3");
        command.arg(root().join("app/tests/it/gstreamer.py")).arg(ca);
        self.pipeline(command, &format!("rtsps://{}", self.place_inside_tls), "tcp")
    }

    fn pipeline(&self, mut command: Command, url: &str, transport: &str) -> Command {
        command.args(["rtspsrc", "name=source", "latency=0", "drop-on-latency=false"]);
        command.args([format!("location={url}"), format!("protocols={transport}")]);
        command.args([format!("user-id={}", self.user), format!("user-pw={}", self.password)]);
        command.args(["!", "rtph264depay", "!", "h264parse", "!", "avdec_h264", "!", "videoconvert"]);
        command.args(["!", "video/x-raw,format=GRAY8", "!", "identity"]);
        command.arg(format!("eos-after={}", PICTURES + 1));
        command.args(["!", "filesink", "sync=false"]);
        command
    }

    /// Writes the pictures that come in [`OPEN_RTSP_S`] as they come.
    fn open_rtsp(&self, transport: &[&str]) -> Command {
        let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/openRTSP");
        let mut command =
            Command::new(if fetched.is_file() { fetched.as_path() } else { Path::new("openRTSP") });
        command.args(transport).args(["-V", "-v", "-b", "1000000", "-d", &OPEN_RTSP_S.to_string()]);
        command.args(["-u", &self.user, &self.password, &self.url]);
        command
    }
}

/// The numbers in pictures without colour, one after the other.
fn numbers(name: &str, raw: &[u8]) -> Vec<u32> {
    let read = |picture| strip::read(picture, WIDTH, HEIGHT).unwrap_or_else(|| panic!("{name}: unreadable"));
    raw.chunks_exact(WIDTH * HEIGHT).map(read).collect()
}

#[track_caller]
fn assert_complete(name: &str, numbers: &[u32]) {
    assert!(numbers.len() >= PICTURES, "{name}: {numbers:?}");
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{name}: {numbers:?}");
}

/// The goal: each player shows the camera's pictures without one missing, over TCP, UDP and TLS, while all of them watch
/// at the same time; every one begins at once. One that trusts another CA shows nothing.
#[test]
fn ffmpeg_and_gstreamer_miss_no_picture() {
    let cinema = Cinema::open();
    let mut watching = Vec::new();
    for (name, mut command) in [
        ("ffmpeg over TCP", cinema.ffmpeg("tcp")),
        ("ffmpeg over UDP", cinema.ffmpeg("udp")),
        ("GStreamer over TCP", cinema.gstreamer("tcp")),
        ("GStreamer over UDP", cinema.gstreamer("udp")),
        ("ffmpeg over TLS", cinema.ffmpeg_inside_tls()),
        ("GStreamer over TLS", cinema.gstreamer_inside_tls(&cinema.ca)),
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
        assert_complete(name, &numbers(name, &raw));
    }
    let another_ca = cinema.folder.join("data/dispatcher/dispatcher-ca.pem");
    let refused = cinema.gstreamer_inside_tls(&another_ca).arg("location=/dev/null").output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("Failed to connect"), "{said}");
}

/// The goal: live555, which most players and recorders of this field are built on, loses nothing either, over TCP and over
/// UDP, and ends in order; with a wrong password it is told so.
#[test]
fn open_rtsp_misses_no_picture() {
    let mut cinema = Cinema::open();
    for (name, transport) in [("openRTSP over TCP", &["-t"][..]), ("openRTSP over UDP", &[])] {
        let stream = cinema.folder.join(name);
        fs::write(&stream, output(&mut cinema.open_rtsp(transport))).unwrap();
        let mut decode = Command::new("ffmpeg");
        decode.args(["-v", "error", "-xerror", "-f", "h264", "-i"]).arg(&stream);
        decode.args(["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "gray", "-"]);
        assert_complete(name, &numbers(name, &output(&mut decode)));
    }
    let password = std::mem::replace(&mut cinema.password, "guess".to_owned());
    let refused = cinema.open_rtsp(&["-t"]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("401") && !said.contains(&password), "{said}");
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

/// The goal: with RTSPS as at the internal address, clients that know nothing newer than TLS 1.2 are refused, and served
/// where the administrator says so.
#[test]
fn rtsps_speaks_tls_1_2_where_the_internal_address_does() {
    let folder = Folder::new();
    let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (external, internal, rtsps) = (free(), free(), free());
    let file = folder.join("homing.toml");
    for tls_1_2 in [false, true] {
        let text = format!(
            "[tunnel]\nexternal = '{external}'\ninternal = '{internal}'\npassword = 'of-the-internal-address'\n\
             data = '{}'\ngateway.rtsps = '{rtsps}'\nvms.tls_1_2 = {tls_1_2}\n\
             dispatcher = {{ address = 'https://127.0.0.1:9', account = 'a', password = 'b' }}\n",
            folder.join("tunnel").display()
        );
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let mut command = Command::new(homing());
        let mut tunnel = Process::spawn("tunnel", command.args(["tunnel", "--config"]).arg(&file));
        tunnel.wait_for_line("tunnel server runs", seconds(30));
        let options = |version: &str| asked(&rtsps, version, &folder.join("tunnel/tunnel-ca.pem"));
        assert_eq!(options("-tls1_3").unwrap(), "RTSP/1.0 200 OK");
        match options("-tls1_2") {
            Ok(answer) => assert!(tls_1_2 && answer == "RTSP/1.0 200 OK", "{answer}"),
            Err(said) => assert!(!tls_1_2 && said.contains("alert protocol version"), "{said}"),
        }
        assert!(tunnel.terminate(seconds(10)).success());
    }
}

/// What a gateway answers to OPTIONS over this version of TLS, its first line; otherwise what OpenSSL said.
fn asked(gateway: &str, version: &str, ca: &Path) -> Result<String, String> {
    let mut openssl = Command::new("openssl");
    openssl.args(["s_client", "-quiet", "-verify_return_error", "-verify_ip", "127.0.0.1", version]);
    openssl.arg("-CAfile").arg(ca).args(["-connect", gateway]);
    let mut client =
        openssl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let request = format!("OPTIONS rtsps://{gateway}/ RTSP/1.0\r\nCSeq: 1\r\n\r\n");
    // It may have ended before it has read.
    let _ = client.stdin.as_mut().unwrap().write_all(request.as_bytes());
    let mut first = String::new();
    BufReader::new(client.stdout.take().unwrap()).read_line(&mut first).unwrap();
    let _ = client.kill();
    let said = client.wait_with_output().unwrap().stderr;
    if first.is_empty() {
        Err(String::from_utf8_lossy(&said).into_owned())
    } else {
        Ok(first.trim().to_owned())
    }
}
