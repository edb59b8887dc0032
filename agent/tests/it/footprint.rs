//! What the program costs at a site: resident memory with one camera streaming, and CPU per gigabyte.
//!
//! Ignored unless asked for, because it needs the small build:
//! `cargo build -p homing-agent --profile agent`, then
//! `AGENT_BINARY=target/agent/homing-agent cargo test -p homing-agent -- --ignored footprint --nocapture`.

#![allow(clippy::print_stdout)] // figures are what it is for

use crate::world::{Server, config, soon, story};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// The bar: docs/performance.md.
const RESIDENT_MAX_KB: u64 = 12 * 1024;

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn kilobytes(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// User and system time in seconds.
    fn cpu_s(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
    }
}

/// Goal: a camera's processor and memory are enough for the agent.
#[test]
#[ignore = "needs the small build, see the module"]
fn footprint_with_one_camera_streaming() {
    story(|folder| async move {
        let (dispatcher, sts) = (Server::new().await, Server::new().await);
        let camera = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let agent_config = config(folder.path(), &[&dispatcher]);
        let anchor = folder.path().join("anchor.pem");
        std::fs::write(&anchor, dispatcher.authority.pem()).unwrap();
        let file = folder.path().join("agent.toml");
        let text = format!(
            "data = {:?}\nserial = \"00408C702009\"\n[[dispatchers]]\naddress = \"{}\"\ntrust_anchor = {anchor:?}\n\
             [[cameras]]\nrtsp = \"rtsp://root:sesame@{}/stream\"\n[page]\nlisten = \"127.0.0.1:0\"\n",
            agent_config.data,
            dispatcher.addr,
            camera.local_addr().unwrap()
        );
        std::fs::write(&file, text).unwrap();
        let binary = std::env::var("AGENT_BINARY").expect("AGENT_BINARY names the program");
        let binary = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(binary);
        let program = |command: &str| {
            let mut program = Command::new(&binary);
            program.arg(command).arg("--config").arg(&file).stdout(Stdio::null());
            program
        };
        let agent = Running(program("run").spawn().unwrap());
        soon("the press", async {
            while !program("press").stderr(Stdio::null()).status().unwrap().success() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        let device = dispatcher.accept().await;
        println!("waiting at the dispatcher: {} kB", agent.kilobytes("VmRSS"));
        let proof =
            homing_protocol::oak::ProofRequest { challenge: homing_protocol::oak::Challenge([1; 32]) };
        let proof = http::Request::post(homing_protocol::oak::PROOF_PATH)
            .body(serde_json::to_vec(&proof).unwrap().into())
            .unwrap();
        assert!(device.request(proof).await.0.is_success());
        device.send_to(&sts).await.unwrap();
        let at_sts = sts.accept().await;
        device.gone().await;
        println!("connected: {} kB", agent.kilobytes("VmRSS"));

        for (kbps, packet) in [(500, 1400), (4_000, 1400), (40_000, 1400)] {
            let mut rtsp = at_sts.open("/rtsp", "rtsp.onvif.org").await.unwrap();
            rtsp.write_all(b"PLAY").await.unwrap();
            let mut tcp = loop {
                let (mut tcp, _) = soon("the stream", camera.accept()).await.unwrap();
                let mut first = [0; 512];
                let count = tcp.read(&mut first).await.unwrap();
                if first[..count] == *b"PLAY" {
                    break tcp;
                }
                tcp.write_all(b"RTSP/1.0 200 OK\r\n\r\n").await.unwrap();
            };
            let (began, cpu) = (Instant::now(), agent.cpu_s());
            let sending = async {
                // Eight frames a second, every sixteenth ten times as large, a write for each packet.
                let mut frame = 0_u32;
                let unit = kbps * 1000 / 8 / 8 * 16 / 25;
                let mut tick = tokio::time::interval(Duration::from_millis(125));
                while began.elapsed() < Duration::from_secs(20) {
                    tick.tick().await;
                    let mut left = if frame.is_multiple_of(16) { unit * 10 } else { unit };
                    while left > 0 {
                        let size = left.min(packet);
                        tcp.write_all(&vec![7; size]).await.unwrap();
                        left -= size;
                    }
                    frame += 1;
                }
            };
            let mut received = 0_usize;
            let receiving = async {
                let mut buffer = vec![0; 64 * 1024];
                loop {
                    received += rtsp.read(&mut buffer).await.unwrap();
                }
            };
            tokio::select! {
                () = sending => {}
                () = receiving => {}
            }
            let (resident, peak) = (agent.kilobytes("VmRSS"), agent.kilobytes("VmHWM"));
            println!(
                "{kbps} kbit/s: {resident} kB resident (peak {peak}), {:.2} % of a core, {:.2} CPU-s per GB",
                (agent.cpu_s() - cpu) / began.elapsed().as_secs_f64() * 100.0,
                (agent.cpu_s() - cpu) / received as f64 * 1e9
            );
            assert!(resident <= RESIDENT_MAX_KB, "{resident} kB");
        }
    });
}
