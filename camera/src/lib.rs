//! The simulated camera: for the demo, for system tests, for benchmarks, and to be run alone.
//!
//! It is honest: a real RTSP server with real H.264 and G.711, real HTTP with ONVIF and a little
//! VAPIX, and passwords that are asked for. What it shows is drawn; every picture carries its frame
//! number as text and as a strip of blocks that [`strip::read`] reads back, so that a test can say
//! exactly which frames a recording holds.
//!
//! | module | what |
//! |---|---|
//! | [`scene`], [`strip`] | the picture; the frame number in it |
//! | [`audio`] | the tone |
//! | [`encoder`], [`source`] | H.264; one encoded stream for all cameras that are alike |
//! | `rtsp` | the stream to viewers |
//! | `http`, `vapix` | ONVIF, `param.cgi`, a page |
//! | `camera` | what they share; accounting and faults for tests |
//! | [`config`] | what a camera is told |
//!
//! Not here: the uplink. A camera of this kind stands behind a site agent, as real ones do.
//!
//! # Life
//!
//! 1. [`bind`] checks the configuration, makes or finds the source, opens both sockets.
//! 2. [`Bound::run`] serves until the role stops.
//! 3. The source's thread runs while somebody watches, and ends with the last camera that uses it.

pub mod audio;
mod camera;
pub mod config;
pub mod encoder;
mod http;
mod rtsp;
pub mod scene;
pub mod source;
pub mod strip;
mod vapix;

pub use camera::{Handle, SessionReport};
pub use config::Config;

use anyhow::Context;
use camera::Camera;
use homing_base::{Stop, listen};
use homing_protocol::{SerialNumber, secret::Credentials};
use source::Source;
use std::{net::SocketAddr, sync::Arc};
use tokio::net::TcpListener;

/// A camera whose sockets are open and whose addresses are known.
#[derive(Debug)]
pub struct Bound {
    camera: Arc<Camera>,
    rtsp: (TcpListener, SocketAddr),
    http: (TcpListener, SocketAddr),
}

/// Checks the configuration, prepares the stream and opens the sockets.
///
/// # Errors
/// Names the key or the address, and what to check.
pub async fn bind(config: Config) -> anyhow::Result<Bound> {
    let of_camera = || format!("camera {:?}", config.name);
    let settings = config.settings().with_context(of_camera)?;
    // Encodes a picture, which takes too long for a runtime's worker.
    let source = tokio::task::spawn_blocking(move || Source::shared(&settings))
        .await
        .context("preparing the stream")?
        .with_context(of_camera)?;
    let open = |address, purpose| -> anyhow::Result<_> {
        let listener = listen::bind(address, purpose)?;
        let address = listener.local_addr().context("a socket without address")?;
        Ok((listener, address))
    };
    let rtsp = open(config.rtsp, "RTSP of a simulated camera").with_context(of_camera)?;
    let http = open(config.http, "HTTP of a simulated camera").with_context(of_camera)?;
    let password = match config.password.is_empty() {
        true => format!("{:016x}", rand::random::<u64>()).into(),
        false => config.password.clone(),
    };
    let credentials = Credentials { user: config.user.clone(), password };
    Ok(Bound { camera: Arc::new(Camera::new(&config, credentials, source)), rtsp, http })
}

impl Bound {
    /// Where RTSP is served.
    pub fn rtsp_addr(&self) -> SocketAddr {
        self.rtsp.1
    }

    /// Where HTTP is served.
    pub fn http_addr(&self) -> SocketAddr {
        self.http.1
    }

    /// The stream's address, without user and password.
    pub fn rtsp_url(&self) -> String {
        format!("rtsp://{}{}", self.rtsp.1, rtsp::STREAM_PATH)
    }

    /// The name in the picture.
    pub fn name(&self) -> &str {
        &self.camera.name
    }

    /// The serial number.
    pub fn serial(&self) -> SerialNumber {
        self.camera.serial
    }

    /// User and password; the password was made up if the configuration has none.
    pub fn credentials(&self) -> Credentials {
        self.camera.credentials()
    }

    /// Accounting and faults, for tests.
    pub fn handle(&self) -> Handle {
        Handle(self.camera.clone())
    }

    /// Serves until the role stops. Connections are tasks of the role: drain it to wait for them.
    pub async fn run(self, stop: Stop) {
        let site = http::Site { camera: self.camera.clone(), rtsp: self.rtsp.1, http: self.http.1 };
        tokio::join!(
            rtsp::serve(self.rtsp.0, self.camera, stop.clone()),
            homing_base::http::serve(self.http.0, http::router(site), None, stop),
        );
    }
}
