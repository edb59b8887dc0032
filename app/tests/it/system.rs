//! The whole on loopback, as `homing demo` runs it: scenario C with everything that people get wrong,
//! hostile peers on every port, secrets, and the end.

use crate::harness::{DATA, Demo, Folder, Http, Process, homing, seconds, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::{
    fs, io,
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

/// Connections that say nothing, on one port.
const SILENT: usize = 100;
/// How long a good connection may wait for its first answer while they are there.
const UNDELAYED: Duration = Duration::from_millis(1500);
/// What a flood on one port may leave behind in memory, in kB (allocators keep some).
const MEMORY_KB: u64 = 12_000;

/// The goal: whatever is in the way of a demo is named at once, with what to do, and nothing is left behind.
#[test]
fn a_demo_that_cannot_start_says_why_and_leaves_nothing() {
    let folder = Folder::new();
    let temporary = folder.join("tmp");
    fs::create_dir(&temporary).unwrap();
    let refused = |arguments: &[&str]| {
        let output = Command::new(homing()).arg("demo").args(arguments).env("TMPDIR", &temporary).output();
        let output = output.unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let said = refused(&["--port", &port]);
    assert!(said.contains(&port) && said.contains("--port"), "{said}");
    assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0, "the temporary folder is left");

    let data = folder.join("data");
    let _demo = Demo::start(&data, &["--cameras", "1"]);
    let said = refused(&["--port", "0", "--data", data.to_str().unwrap()]);
    assert!(said.contains("another process") && said.contains(data.to_str().unwrap()), "{said}");
}

/// The goal, scenario C: the device phones home and waits, then it is registered; every mistake on the
/// way is refused with its reason where it is made, and the right entry works within a moment.
#[test]
fn scenario_c_press_phone_home_and_then_register_with_mistakes() {
    let folder = Folder::new();
    let demo = Demo::start(&folder.join("data"), &["--cameras", "1"]);
    let label = demo.info["cameras"][0].clone();
    let text = |key: &str| label[key].as_str().expect("text").to_owned();
    let entry = |serial: &str, oak: &str, password: &str| json!({"serial": serial, "oak": oak, "user": text("user"), "password": password, "name": "Mine"});
    let refused = |asked: &Value| -> Value {
        let answer = demo.api.request("POST", "/api/v1/devices", Some(asked)).unwrap();
        assert!((400..500).contains(&answer.status), "{}: {}", answer.status, answer.text());
        answer.value().unwrap()["error"].clone()
    };
    let (serial, oak, password) = (text("serial"), text("oak"), text("password"));

    // Steps 3 and 4.
    press(&text("press"));

    let mistyped = refused(&entry("0040-8C70-20", &oak, &password));
    assert_eq!(
        (&mistyped["code"], &mistyped["step"]),
        (&json!("bad-serial"), &json!("register")),
        "{mistyped}"
    );
    let mistyped = refused(&entry(&serial, "0123-4567", &password));
    assert_eq!(mistyped["code"], "bad-oak", "{mistyped}");

    // The device is there, so that a wrong OAK is told at once. It may still be on its way.
    let problem = wait_for("a wrong OAK is refused", seconds(20), || {
        let answer = demo.api.request(
            "POST",
            "/api/v1/devices",
            Some(&entry(&serial, "0000-0000-0000", &password)),
        )?;
        if answer.status < 400 {
            demo.api.request("DELETE", &format!("/api/v1/devices/{serial}"), None)?;
            return Err(io::Error::other(answer.text()));
        }
        answer.value()
    });
    assert_eq!(problem.pointer("/error/code"), Some(&json!("wrong-oak")), "{problem}");
    let problem = refused(&entry(&serial, &oak, "not the password"));
    assert_eq!(
        (&problem["code"], &problem["step"]),
        (&json!("wrong-credentials"), &json!("dispatch")),
        "{problem}"
    );
    assert!(!problem.to_string().contains("not the password"));
    assert_eq!(demo.api.json("/api/v1/devices").unwrap(), json!([]), "nothing refused is kept");

    // As people type it; steps 1, 2, 5, 6, 7.
    let typed = format!("{} ", serial.to_lowercase());
    demo.api
        .post("/api/v1/devices", &entry(&typed, &oak.to_lowercase().replace('-', " "), &password))
        .unwrap();
    let registered = Instant::now();
    wait_for_state(&demo.api, &serial, "yellow", seconds(10));
    println!("ready {:.1} s after registration", registered.elapsed().as_secs_f64());
    let again = refused(&entry(&serial, &oak, &password));
    assert!(again["message"].as_str().is_some_and(|text| text.contains("already")), "{again}");

    // Step 8.
    demo.api.post("/api/v1/hardware", &json!({"serial": serial})).unwrap();
    wait_for_state(&demo.api, &serial, "green", seconds(5));
    demo.wait_for_recording(jiff::Timestamp::now(), seconds(20));
}

/// The goal: 100 connections that say nothing, on any port, delay nobody and cost little.
#[test]
fn silence_on_every_port_delays_nobody() {
    let folder = Folder::new();
    let demo = Demo::start(&folder.join("data"), &["--cameras", "2"]);
    demo.wait_for_recording(jiff::Timestamp::now(), seconds(60));
    for port in ports_of(&demo.process) {
        let kind = Kind::of(&port);
        let before = demo.process.memory_kb(DATA);
        let silent: Vec<TcpStream> = (0..SILENT).map(|_| TcpStream::connect(&port).unwrap()).collect();
        let started = Instant::now();
        kind.greet(&port)
            .unwrap_or_else(|error| panic!("{port} ({kind:?}) with {SILENT} silent peers: {error}"));
        let took = started.elapsed();
        println!("{port} {kind:?}: {took:?}, {} kB", demo.process.memory_kb(DATA).saturating_sub(before));
        assert!(took < UNDELAYED, "{port} ({kind:?}) answered after {took:?}, behind {SILENT} silent peers");
        drop(silent);
        assert_memory(&demo, before, &port);
    }
}

/// The goal: garbage on any port ends in a closed connection, nothing crashes, nobody else notices, and
/// memory is given back. (That no line of level ERROR is logged is seen to by the harness.)
#[test]
fn garbage_on_every_port_is_survived() {
    let folder = Folder::new();
    let mut demo = Demo::start(&folder.join("data"), &["--cameras", "2"]);
    demo.wait_for_recording(jiff::Timestamp::now(), seconds(60));
    for port in ports_of(&demo.process) {
        let kind = Kind::of(&port);
        let before = demo.process.memory_kb(DATA);
        for round in 0..10 {
            for garbage in garbage(round) {
                let mut stream = TcpStream::connect(&port).unwrap();
                stream.set_write_timeout(Some(seconds(5))).unwrap();
                stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
                // Whether it is taken or refused in the middle is the server's choice.
                let _ = stream.write_all(&garbage);
                let _ = stream.shutdown(Shutdown::Write);
                let _ = stream.read(&mut [0; 4096]);
            }
        }
        assert!(demo.process.status().is_none(), "garbage on {port} ({kind:?}) ended the server");
        kind.greet(&port).unwrap_or_else(|error| panic!("{port} ({kind:?}) after garbage: {error}"));
        assert_memory(&demo, before, &port);
    }
    demo.wait_for_recording(jiff::Timestamp::now(), seconds(20));
}

/// The goal: Ctrl-C ends the demo within two seconds, and nothing is left of it.
#[test]
fn the_demo_ends_at_once_and_leaves_nothing() {
    let folder = Folder::new();
    let mut command = Command::new(homing());
    command.args(["demo", "--port", "0", "--cameras", "1"]).env("TMPDIR", folder.path());
    let mut process = Process::spawn("homing demo", &mut command);
    let data = wait_for("the demo makes its folder and describes itself", seconds(60), || {
        let entries = fs::read_dir(folder.path())?.filter_map(|entry| Some(entry.ok()?.path()));
        let described = entries.into_iter().find(|path| path.join("demo.json").is_file());
        described.ok_or_else(|| io::Error::other("no demo.json yet"))
    });
    let info: Value = wait_for("demo.json is whole", seconds(5), || {
        serde_json::from_slice(&fs::read(data.join("demo.json"))?).map_err(io::Error::other)
    });
    assert!(info["url"].is_string());

    let started = Instant::now();
    kill_process(Pid::from_raw(process.id() as i32).expect("a process"), Signal::INT).unwrap();
    let status = wait_for("the demo ends after Ctrl-C", seconds(5), || process.status().ok_or("it runs"));
    assert!(status.success(), "{status}");
    assert!(started.elapsed() < seconds(2), "it took {:?}", started.elapsed());
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Presses a device's one-click button.
#[track_caller]
pub fn press(url: &str) {
    let (origin, path) = url.split_at(url.find("/press").or_else(|| url.rfind('/')).expect("a path"));
    let answer = Http::new(origin).request("POST", path, None).unwrap();
    assert!((200..300).contains(&answer.status), "{url}: {} {}", answer.status, answer.text());
}

#[track_caller]
fn wait_for_state(api: &Http, serial: &str, state: &str, within: Duration) {
    wait_for(&format!("{serial} is {state}"), within, || {
        let device = api.json(&format!("/api/v1/devices/{serial}"))?;
        if device["state"] == state { Ok(()) } else { Err(io::Error::other(device.to_string())) }
    });
}

/// Waits until memory is near what it was, give or take what an allocator keeps.
#[track_caller]
fn assert_memory(demo: &Demo, before_kb: u64, port: &str) {
    wait_for(&format!("memory is given back after a flood on {port}"), seconds(15), || {
        let now = demo.process.memory_kb(DATA);
        if now < before_kb + MEMORY_KB { Ok(()) } else { Err(format!("{now} kB, before {before_kb} kB")) }
    });
}

/// What a port answers to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Tls,
    Http,
    Rtsp,
}

impl Kind {
    #[track_caller]
    fn of(port: &str) -> Kind {
        let kinds = [Kind::Tls, Kind::Rtsp, Kind::Http];
        let found = kinds.into_iter().find(|kind| kind.greet(port).is_ok());
        found.unwrap_or_else(|| panic!("{port} answers neither TLS nor RTSP nor HTTP"))
    }

    /// Says hello as a good peer would, and waits for the beginning of an answer.
    fn greet(self, port: &str) -> io::Result<()> {
        let mut stream = TcpStream::connect(port)?;
        stream.set_read_timeout(Some(seconds(5)))?;
        let mut begins = match self {
            Kind::Tls => {
                client_hello()?.write_tls(&mut stream)?;
                vec![0; 2]
            }
            Kind::Http => {
                stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
                vec![0; 7]
            }
            Kind::Rtsp => {
                stream.write_all(b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n")?;
                vec![0; 7]
            }
        };
        stream.read_exact(&mut begins)?;
        let as_expected = match self {
            // A handshake record of TLS: the server's hello.
            Kind::Tls => begins == [0x16, 0x03],
            Kind::Http => begins == b"HTTP/1.",
            Kind::Rtsp => begins == b"RTSP/1.",
        };
        if as_expected { Ok(()) } else { Err(io::Error::other(format!("answered {begins:02x?}"))) }
    }
}

/// A TLS client that has something to say first. Nothing is verified, since nothing is read on.
fn client_hello() -> io::Result<rustls::ClientConnection> {
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = "localhost".try_into().map_err(io::Error::other)?;
    rustls::ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)
}

/// What no good peer sends: noise, and the beginnings of each protocol gone wrong.
fn garbage(round: u64) -> Vec<Vec<u8>> {
    let noise = |length: usize| -> Vec<u8> {
        let mut state = 0x9E37_79B9_7F4A_7C15 ^ (round + 1) << 20 ^ length as u64;
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        std::iter::repeat_with(next).take(length).collect()
    };
    let with_noise = |start: &[u8], length: usize| [start, &noise(length)].concat();
    vec![
        noise(1 + round as usize * 97),
        // TLS records that lie about their size, or hold a hello of noise.
        with_noise(b"\x16\x03\x01\xff\xff", 70_000),
        with_noise(b"\x16\x03\x01\x00\x80\x01\x00\x00\x7c\x03\x03", 120),
        // Heads without an end, a body that never comes, lengths that do not fit.
        with_noise(b"GET / HTTP/1.1\r\nx: ", 200_000),
        b"GET /".repeat(50_000),
        b"POST /api/v1/session HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999999999999\r\n\r\n{".to_vec(),
        b"POST /api/v1/session HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n"
            .to_vec(),
        b"CONNECT 000000000000:554 HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(),
        // RTSP, truncated, with a lying body and with interleaved packets before anything was set up.
        b"DESCRIBE rtsp://a/b RTSP/1.0\r\nCSeq: 1\r\nContent-Length: 4294967295\r\n\r\nv=0".to_vec(),
        with_noise(b"$\x00\xff\xff", 3000),
        b"SETUP rtsp://a/stream/track1 RTSP/1.0\r\nCSeq: 99999999999999\r\nTransport: ;;;=".to_vec(),
        // HTTP/2 where nobody has asked for it, with frames of noise.
        with_noise(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 5000),
        Vec::new(),
    ]
}

/// Where a process listens.
fn ports_of(process: &Process) -> Vec<String> {
    let listing = crate::harness::output(Command::new("ss").args(["-ltnpH"]));
    let listing = String::from_utf8(listing).unwrap();
    let own = format!("pid={},", process.id());
    let lines = listing.lines().filter(|line| line.contains(&own));
    let ports: Vec<String> =
        lines.filter_map(|line| line.split_whitespace().nth(3)).map(str::to_owned).collect();
    assert!(ports.len() >= 7, "page, two of the dispatcher, two of the tunnel server, cameras: {ports:?}");
    ports
}
