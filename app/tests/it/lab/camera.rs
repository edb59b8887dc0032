//! The camera in the site: GStreamer's RTSP server, and its account of what it sent.

use super::Host;
use crate::harness::{Process, root, seconds};
use serde::Deserialize;

/// The camera's user.
pub const USER: &str = "root";
/// The camera's password: unusual enough to be found wherever it should not be.
pub const PASSWORD: &str = "Lab-Camera-4711";
/// Pictures a second, unless told otherwise.
pub const FPS: u32 = 25;
/// Pictures from key frame to key frame.
pub const GOP: u32 = 50;

/// What the camera sends.
#[derive(Clone, Copy, Debug)]
pub struct Encoding {
    /// Pictures a second.
    pub fps: u32,
    /// Pictures from key frame to key frame.
    pub gop: u32,
    /// What its encoder is told to keep to.
    pub kbit: u32,
    /// A-law, too.
    pub audio: bool,
}

impl Default for Encoding {
    fn default() -> Self {
        Encoding { fps: FPS, gop: GOP, kbit: 500, audio: true }
    }
}

/// One picture that the camera handed to the network.
#[derive(Clone, Debug, Deserialize)]
pub struct Sent {
    /// Counts on over all sessions.
    pub frame: u64,
    /// RTP timestamp, 90 kHz.
    pub rtp: u32,
    /// When, in seconds since 1970.
    pub time: f64,
    /// Whether it begins a group of pictures.
    pub key: bool,
    /// Of its slices.
    pub bytes: u64,
    /// SHA-256 of its slices, first 16 hex digits.
    pub sha256: String,
}

/// The running camera.
pub struct Camera {
    process: Process,
    /// `rtsp://…` with user and password.
    pub url: String,
}

impl Camera {
    /// Starts one on a host's own address `127.0.0.1:PORT`, or wherever `address` says.
    pub fn start(host: &Host, address: &str, port: u16, encoding: Encoding) -> Camera {
        let script = root().join("app/tests/it/lab/camera.py").display().to_string();
        let port = port.to_string();
        let [fps, gop, kbit] = [encoding.fps, encoding.gop, encoding.kbit].map(|number| number.to_string());
        let mut arguments = vec![
            &*script,
            "--address",
            address,
            "--port",
            &port,
            "--user",
            USER,
            "--password",
            PASSWORD,
            "--fps",
            &fps,
            "--gop",
            &gop,
            "--kbit",
            &kbit,
        ];
        arguments.extend(encoding.audio.then_some("--audio"));
        let mut process = host.spawn("/usr/bin/python3", &arguments);
        process.wait_for_line("ready", seconds(20));
        Camera { process, url: format!("rtsp://{USER}:{PASSWORD}@{address}:{port}/stream") }
    }

    /// Every picture that it has sent so far.
    pub fn sent(&self) -> Vec<Sent> {
        let lines = self.process.log();
        lines
            .iter()
            .filter(|line| line.starts_with('{'))
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}
