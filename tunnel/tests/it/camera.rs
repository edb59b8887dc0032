//! A camera behind a device: an RTSP server that does what the test says.
//!
//! Its pictures are numbered: a key picture is three packets (parameter sets, two slices), another one is one; the last
//! four bytes of each packet's payload are the picture's number.

use bytes::{Bytes, BytesMut};
use homing_media::{
    rtp::{self, SenderReport},
    rtsp::{Decoder, Interleaved, Message, Method, Request, Response},
};
use homing_protocol::{Secret, digest::DigestGuard};
use std::sync::{Arc, LazyLock, Mutex};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{broadcast, watch},
};

pub const VIDEO_SSRC: u32 = 0x0102_0304;
/// Where the camera says that it is: an address that nobody outside the site may see.
pub const HOST: &str = "192.168.77.7";

const SDP: &str = "v=0\r\no=- 1 1 IN IP4 192.168.77.7\r\ns=Door\r\nc=IN IP4 192.168.77.7\r\nt=0 0\r\n\
                   a=control:*\r\na=range:npt=now-\r\n\
                   m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:rtsp://192.168.77.7/live/video\r\n\
                   m=audio 0 RTP/AVP 0\r\na=control:audio\r\n\
                   m=application 0 RTP/AVP 107\r\na=rtpmap:107 vnd.onvif.metadata/90000\r\na=control:meta\r\n";

/// The camera; all clones are the same one.
#[derive(Clone)]
pub struct Camera(Arc<Inner>);

struct Inner {
    /// Large; most devices' cameras send nothing.
    feed: LazyLock<broadcast::Sender<Bytes>>,
    state: Mutex<State>,
    /// Sessions that play now.
    playing: watch::Sender<usize>,
    /// Connections that there were.
    connections: watch::Sender<usize>,
    guard: DigestGuard,
}

#[derive(Default)]
struct State {
    is_on: bool,
    asked: Vec<(Method, String)>,
    refuse: Option<(Method, u16)>,
    password: String,
    sequence: u16,
}

impl Default for Camera {
    fn default() -> Self {
        let state = State { password: crate::device::PASSWORD.into(), sequence: 65_000, ..State::default() };
        Camera(Arc::new(Inner {
            feed: LazyLock::new(|| broadcast::Sender::new(65_536)),
            state: Mutex::new(state),
            playing: watch::Sender::new(0),
            connections: watch::Sender::new(0),
            guard: DigestGuard::new("camera", [3; 32]),
        }))
    }
}

impl Camera {
    pub fn switch_on(&self) {
        self.0.state.lock().unwrap().is_on = true;
    }

    pub fn is_on(&self) -> bool {
        self.0.state.lock().unwrap().is_on
    }

    /// Answers this method with that status from now on.
    pub fn refuse(&self, method: Method, status: u16) {
        self.0.state.lock().unwrap().refuse = Some((method, status));
    }

    pub fn set_password(&self, password: &str) {
        self.0.state.lock().unwrap().password = password.into();
    }

    /// What it was asked, since it was asked for this last.
    pub fn asked(&self) -> Vec<(Method, String)> {
        std::mem::take(&mut self.0.state.lock().unwrap().asked)
    }

    pub fn connections(&self) -> usize {
        *self.0.connections.borrow()
    }

    /// Waits until so many sessions play.
    pub async fn plays(&self, sessions: usize) {
        let mut playing = self.0.playing.subscribe();
        crate::world::within(playing.wait_for(|now| *now == sessions)).await.unwrap();
    }

    /// Sends a picture; gives the sequence number of its first packet.
    pub fn picture(&self, number: u32, is_key: bool) -> u16 {
        self.picture_of(number, is_key, 16)
    }

    /// The same with so many bytes in each packet.
    pub fn picture_of(&self, number: u32, is_key: bool, bytes: usize) -> u16 {
        let slices: &[u8] = if is_key { &[0x67, 0x65, 0x65] } else { &[0x41] };
        let first = self.0.state.lock().unwrap().sequence;
        for (index, slice) in slices.iter().enumerate() {
            let sequence = {
                let mut state = self.0.state.lock().unwrap();
                state.sequence = state.sequence.wrapping_add(1);
                state.sequence.wrapping_sub(1)
            };
            let is_last = index + 1 == slices.len();
            let mut packet = rtp::header(is_last, 96, sequence, number * 3600, VIDEO_SSRC).to_vec();
            packet.push(*slice);
            packet.resize(rtp::HEADER_LEN + bytes - 4, 0);
            packet.extend(number.to_be_bytes());
            self.send(0, packet);
        }
        first
    }

    pub fn sound(&self, number: u16) {
        let mut packet = rtp::header(true, 0, number, u32::from(number) * 320, 9).to_vec();
        packet.extend([7; 320]);
        self.send(2, packet);
    }

    pub fn sender_report(&self) {
        let report = SenderReport { ssrc: VIDEO_SSRC, ntp: 0xe000_0000_0000_0001, rtp: 4711 };
        self.send(1, report.encode(1, 1, "camera"));
    }

    fn send(&self, channel: u8, payload: impl Into<Bytes>) {
        let mut framed = BytesMut::new();
        assert!(Interleaved { channel, payload: payload.into() }.encode(&mut framed));
        let _ = self.0.feed.send(framed.freeze());
    }

    /// Serves one connection.
    pub async fn serve(&self, stream: impl AsyncRead + AsyncWrite) {
        self.0.connections.send_modify(|count| *count += 1);
        let (mut reader, mut writer) = tokio::io::split(stream);
        let (mut decoder, mut input) = (Decoder::default(), BytesMut::new());
        let mut feed = None;
        loop {
            let next = async {
                match &mut feed {
                    Some((feed, _)) => broadcast::Receiver::<Bytes>::recv(feed).await.unwrap(),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                read = reader.read_buf(&mut input) => {
                    if !matches!(read, Ok(1..)) {
                        return;
                    }
                    while let Some(message) = decoder.decode(&mut input).unwrap() {
                        let Message::Request(request) = message else { continue };
                        let answer = self.answer(&request);
                        if request.method == Method::Play && answer.is_success() {
                            feed = Some((self.0.feed.subscribe(), Playing::new(&self.0.playing)));
                        }
                        let mut out = BytesMut::new();
                        answer.encode(&mut out);
                        if writer.write_all(&out).await.is_err() {
                            return;
                        }
                    }
                }
                framed = next => {
                    if writer.write_all(&framed).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    fn answer(&self, request: &Request) -> Response {
        let mut state = self.0.state.lock().unwrap();
        state.asked.push((request.method.clone(), request.uri.clone()));
        let answer = Response::new(200, request.headers.cseq()).header("Session", "4711;timeout=60");
        if request.method == Method::Options {
            return answer.header("Public", "DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER");
        }
        let password = |user: &str| (user == "root").then(|| Secret::from(state.password.as_str()));
        let given = request.headers.get("Authorization");
        if self.0.guard.check(request.method.as_str(), &request.uri, given, password, 1000).is_err() {
            let challenges = self.0.guard.challenges(1000, false).into_iter();
            let refused = Response::new(401, request.headers.cseq());
            return challenges
                .fold(refused, |answer, challenge| answer.header("WWW-Authenticate", challenge));
        }
        if let Some((method, status)) = &state.refuse
            && *method == request.method
        {
            return Response::new(*status, request.headers.cseq());
        }
        match request.method {
            Method::Describe => answer.body("application/sdp", SDP),
            // No camera is perfect: its metadata are described and cannot be had.
            Method::Setup if request.uri.ends_with("meta") => Response::new(415, request.headers.cseq()),
            Method::Setup => answer.header("Transport", request.headers.get("Transport").unwrap()),
            _ => answer,
        }
    }
}

/// Counts for as long as it lives.
struct Playing(watch::Sender<usize>);

impl Playing {
    fn new(playing: &watch::Sender<usize>) -> Self {
        playing.send_modify(|count| *count += 1);
        Playing(playing.clone())
    }
}

impl Drop for Playing {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}
