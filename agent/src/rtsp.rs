//! RTSP through the uplink: a WebSocket (`rtsp.onvif.org`, RFC 8441) spliced to a camera's RTSP port.
//!
//! Bytes are looked at for two things only. With cameras at several addresses the first request line decides which
//! one is meant, by the host and port in its URL (which GetStreamUri gave), else by its path, else the first
//! camera. And a request with a password in clear (`clear.rs`) does not go onto the site's network, unless the
//! configuration allows it for this camera. The camera itself asks for user and password.
//!
//! Invariant: what is in flight is bounded by one read buffer and the stream's window in each direction,
//! and a reader that stops stops its camera, not the uplink.

use crate::camera::Cameras;
use crate::clear::Watch;
use crate::config::Camera;
use bytes::{Bytes, BytesMut};
use homing_uplink::{Incoming, WebSocketStream};
use http::{Response, StatusCode};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::io::poll_read_buf;
use url::Url;

/// The subprotocol of RTSP in a WebSocket, ONVIF Streaming §5.1.1.3.
pub const SUBPROTOCOL: &str = "rtsp.onvif.org";

/// Where the WebSocket is, as Media2 GetServiceCapabilities says it.
pub const PATH: &str = "/rtsp";

/// Read from the camera at once: a key frame in few pieces. Two of these live per stream at most.
const READ_SIZE: usize = 32 * 1024;

/// A buffer with less room than this is not read into.
const READ_MIN: usize = 4 * 1024;

/// The first request must have come within this time where it decides the camera.
const FIRST_LINE_DEADLINE: Duration = Duration::from_secs(10);

/// Longest beginning that is looked at for the first request.
const FIRST_MAX: usize = 4 * 1024;

/// Serves one WebSocket to its end.
pub async fn serve(cameras: &Cameras, incoming: Incoming) {
    if !incoming.subprotocols().any(|offered| offered == SUBPROTOCOL) {
        let text = format!("this WebSocket speaks {SUBPROTOCOL} only");
        return respond(incoming, StatusCode::BAD_REQUEST, text);
    }
    let list = cameras.list();
    let one_target = list.iter().all(|camera| (&camera.host, camera.port) == (&list[0].host, list[0].port));
    let ended = if one_target {
        let tcp = match cameras.connect(&list[0]).await {
            Ok(tcp) => tcp,
            Err(reason) => return respond(incoming, StatusCode::BAD_GATEWAY, reason),
        };
        match incoming.accept_websocket(SUBPROTOCOL) {
            Ok(websocket) => splice(&list[0], tcp, websocket, Bytes::new()).await,
            Err(error) => Err(io::Error::other(error)),
        }
    } else {
        match incoming.accept_websocket(SUBPROTOCOL) {
            Ok(websocket) => serve_chosen(cameras, websocket).await,
            Err(error) => Err(io::Error::other(error)),
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "RTSP stream broke");
    }
}

fn respond(incoming: Incoming, status: StatusCode, text: String) {
    tracing::debug!(%status, text, "RTSP refused");
    let mut response = Response::new(Bytes::from(text));
    *response.status_mut() = status;
    // It fails if the server has gone away, who then needs no answer.
    let _ = incoming.respond(response);
}

/// Lets the first request decide which camera is meant.
async fn serve_chosen(cameras: &Cameras, mut websocket: WebSocketStream) -> io::Result<()> {
    let mut first = BytesMut::new();
    let whole_head = async {
        while !first.windows(4).any(|window| window == b"\r\n\r\n") && first.len() < FIRST_MAX {
            match websocket.next_chunk().await {
                Some(chunk) => first.extend_from_slice(&chunk?),
                None => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            }
        }
        Ok(())
    };
    timeout(FIRST_LINE_DEADLINE, whole_head).await.map_err(|_| io::ErrorKind::TimedOut)??;
    let camera = choose(cameras.list(), &first);
    match cameras.connect(camera).await {
        Ok(tcp) => splice(camera, tcp, websocket, first.freeze()).await,
        Err(reason) => {
            // The WebSocket is open already: RTSP says it.
            websocket.write_all(answer(UNAVAILABLE, &first, &reason).as_bytes()).await?;
            websocket.shutdown().await
        }
    }
}

/// The camera that a request is for; see the module.
fn choose<'a>(cameras: &'a [Camera], head: &[u8]) -> &'a Camera {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let url = std::str::from_utf8(line)
        .ok()
        .and_then(|line| line.split(' ').nth(1))
        .and_then(|url| Url::parse(url).ok());
    let by = |matches: &dyn Fn(&Camera, &Url) -> bool| {
        let url = url.as_ref()?;
        cameras.iter().find(|camera| matches(camera, url))
    };
    by(&|camera, url| url.host_str() == camera.rtsp.host_str() && url.port().unwrap_or(554) == camera.port)
        // Tracks and a missing slash lie below the stream's path.
        .or_else(|| {
            by(&|camera, url| url.path().trim_end_matches('/') == camera.rtsp.path().trim_end_matches('/'))
        })
        .unwrap_or(&cameras[0])
}

/// RFC 2326 §11.3.11: the camera is away.
const UNAVAILABLE: &str = "503 Service Unavailable";

/// The words are in the status line, because that is what clients show.
const IN_CLEAR: &str = "403 Basic would show the password: set allow_basic = true for it in the site agent";

/// An answer in the camera's place.
fn answer(status: &str, request: &[u8], reason: &str) -> String {
    let head = String::from_utf8_lossy(request);
    let sequence: String = head
        .split("\r\n")
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("CSeq"))
        .map(|(_, value)| value.trim().chars().filter(char::is_ascii_digit).take(10).collect())
        .unwrap_or_default();
    format!(
        "RTSP/1.0 {status}\r\nCSeq: {sequence}\r\nContent-Type: text/plain\r\n\
         Content-Length: {}\r\n\r\n{reason}",
        reason.len()
    )
}

/// Passes bytes both ways until either end has had enough, then ends the other.
async fn splice(
    to: &Camera,
    mut camera: TcpStream,
    mut websocket: WebSocketStream,
    first: Bytes,
) -> io::Result<()> {
    let mut pipe = Pipe {
        buffer: BytesMut::new(),
        up: Bytes::new(),
        down: Bytes::new(),
        watch: (!to.allow_basic).then(Watch::default),
        camera_ended: false,
    };
    pipe.handle_chunk(first)?;
    let ended = poll_fn(|cx| pipe.poll(cx, &mut camera, &mut websocket)).await;
    // Both are told, whoever began; a peer that has gone cannot be.
    let _ = websocket.shutdown().await;
    let _ = camera.shutdown().await;
    ended
}

struct Pipe {
    /// What the next read from the camera goes into.
    buffer: BytesMut,
    /// Read from the camera, not sent yet.
    up: Bytes,
    /// Received from the tunnel, not written to the camera yet.
    down: Bytes,
    /// What comes from the tunnel goes through it, where a password in clear must not pass.
    watch: Option<Watch>,
    /// Or nothing is wanted of it any more.
    camera_ended: bool,
}

impl Pipe {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        camera: &mut TcpStream,
        websocket: &mut WebSocketStream,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(ended) = self.poll_up(cx, camera, websocket) {
            return Poll::Ready(ended);
        }
        self.poll_down(cx, camera, websocket)
    }

    /// Camera to tunnel, until one of them has to be waited for.
    fn poll_up(
        &mut self,
        cx: &mut Context<'_>,
        camera: &mut TcpStream,
        websocket: &mut WebSocketStream,
    ) -> Poll<io::Result<()>> {
        loop {
            while !self.up.is_empty() {
                std::task::ready!(websocket.poll_send(cx, &mut self.up))?;
            }
            if self.camera_ended {
                return Poll::Ready(Ok(()));
            }
            if self.buffer.capacity() - self.buffer.len() < READ_MIN {
                // Takes the old memory again once everything read into it has been sent.
                self.buffer.reserve(READ_SIZE);
            }
            self.camera_ended =
                std::task::ready!(poll_read_buf(Pin::new(&mut *camera), cx, &mut self.buffer))? == 0;
            // As many packets as were there go into one frame, without a copy.
            self.up = self.buffer.split().freeze();
        }
    }

    fn handle_chunk(&mut self, chunk: Bytes) -> io::Result<()> {
        let Some(watch) = &mut self.watch else {
            self.down = chunk;
            return Ok(());
        };
        match watch.handle_chunk(chunk)? {
            Ok(passed) => self.down = passed,
            Err(request) => {
                tracing::warn!(answer = IN_CLEAR, "a password in clear was not passed on to the camera");
                let mut last = BytesMut::from(&self.up[..]);
                last.extend_from_slice(answer(IN_CLEAR, &request, "").as_bytes());
                (self.up, self.camera_ended) = (last.freeze(), true);
            }
        }
        Ok(())
    }

    /// Tunnel to camera, until one of them has to be waited for.
    fn poll_down(
        &mut self,
        cx: &mut Context<'_>,
        camera: &mut TcpStream,
        websocket: &mut WebSocketStream,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.camera_ended {
                return self.poll_up(cx, camera, websocket);
            }
            while !self.down.is_empty() {
                let written = std::task::ready!(Pin::new(&mut *camera).poll_write(cx, &self.down))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                drop(self.down.split_to(written));
            }
            match std::task::ready!(websocket.poll_chunk(cx)) {
                Some(chunk) => self.handle_chunk(chunk?)?,
                None => return Poll::Ready(Ok(())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CameraConfig, Config};

    fn cameras(addresses: &[&str]) -> Vec<Camera> {
        let camera = |address: &&str| CameraConfig {
            rtsp: format!("rtsp://a:b@{address}").as_str().into(),
            ..CameraConfig::default()
        };
        let cameras = addresses.iter().map(camera).collect();
        Config { cameras, ..Config::default() }.validate().unwrap().cameras
    }

    #[test]
    fn the_first_request_decides_which_camera_is_meant() {
        let list = cameras(&["10.0.0.1/a", "10.0.0.2:8554/b", "[fe80::3]/c/d"]);
        let chosen = |line: &str| choose(&list, format!("{line}\r\nCSeq: 1\r\n\r\n").as_bytes()).index;
        for (line, index) in [
            ("DESCRIBE rtsp://10.0.0.1/a RTSP/1.0", 0),
            ("DESCRIBE rtsp://10.0.0.2:8554/x RTSP/1.0", 1),
            ("OPTIONS rtsp://[fe80::3]:554/ RTSP/1.0", 2),
            ("DESCRIBE rtsp://00408c702009/b/ RTSP/1.0", 1),
            ("DESCRIBE rtsp://10.0.0.2/c/d RTSP/1.0", 2),
            ("OPTIONS * RTSP/1.0", 0),
            ("\u{7f}\u{1}", 0),
            ("", 0),
        ] {
            assert_eq!(chosen(line), index, "{line}");
        }
        assert_eq!(choose(&list, &[0xFF; 30]).index, 0);
    }

    #[test]
    fn a_dead_camera_is_said_in_rtsp() {
        let said =
            answer(UNAVAILABLE, b"DESCRIBE rtsp://x/ RTSP/1.0\r\ncseq: 7\r\n\r\n", "Camera not reached");
        assert!(said.starts_with("RTSP/1.0 503 ") && said.contains("\r\nCSeq: 7\r\n"), "{said}");
        assert!(said.ends_with("Content-Length: 18\r\n\r\nCamera not reached"));
        assert!(
            !answer(UNAVAILABLE, b"X\r\nCSeq: 1\rY: z\r\n\r\n", "r").contains("Y"),
            "nothing is repeated blindly"
        );
    }
}
