//! A camera on free ports, a viewer over plain RTSP, and other people's programs.

use bytes::{Bytes, BytesMut};
use homing_base::Stop;
use homing_camera::{Bound, Config, Handle};
use homing_media::{
    rtp::{Packet, Rtcp, SenderReport},
    rtsp::{Decoder, DecoderLimits, Message, Method, Request, Response, RtpInfo, SessionId},
};
use homing_protocol::{
    digest::{BasicPolicy, ClientAuth},
    secret::Credentials,
};
use std::{
    net::SocketAddr,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// For anything that a camera does.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A camera that runs.
pub struct Running {
    pub rtsp: SocketAddr,
    pub http: SocketAddr,
    pub url: String,
    pub credentials: Credentials,
    pub handle: Handle,
    stop: Stop,
}

/// A configuration on free ports, whose stream no other test shares.
pub fn config(name: &str) -> Config {
    Config {
        name: name.into(),
        rtsp: ([127, 0, 0, 1], 0).into(),
        http: ([127, 0, 0, 1], 0).into(),
        password: "sesame".into(),
        ..Config::default()
    }
}

impl Running {
    pub async fn start(config: Config) -> Running {
        Running::start_in(config, &Stop::new()).await
    }

    /// Starts a camera as a part of a role.
    pub async fn start_in(config: Config, stop: &Stop) -> Running {
        let bound: Bound = homing_camera::bind(config).await.unwrap();
        let running = Running {
            rtsp: bound.rtsp_addr(),
            http: bound.http_addr(),
            url: bound.rtsp_url(),
            credentials: bound.credentials().clone(),
            handle: bound.handle(),
            stop: stop.clone(),
        };
        stop.spawn(bound.run(stop.clone()));
        running
    }

    /// Ends the camera; nothing of it may be left.
    pub async fn finish(self) {
        assert!(self.stop.drain(PATIENCE).await, "{} tasks are left", self.stop.running());
        assert!(self.handle.sessions().iter().all(|session| session.ended));
    }

    /// The stream's address with user and password, as other programs want it.
    pub fn url_with(&self, password: &str) -> String {
        self.url.replace("rtsp://", &format!("rtsp://root:{password}@"))
    }
}

/// A command line's words; none of them may hold a space.
pub fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

/// Runs a program to its end, which must come before the deadline.
pub async fn run(package: &'static str, program: &'static str, arguments: Vec<String>) -> Output {
    let work = tokio::task::spawn_blocking(move || {
        Command::new(program)
            .args(&arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("{program}: {error}; the Debian package is {package}"))
    });
    tokio::time::timeout(Duration::from_secs(60), work).await.expect("it ends in time").unwrap()
}

/// Waits until something holds.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A viewer of our own, for what other programs do not do: misbehave, and look closely.
pub struct Viewer {
    /// The bare connection.
    pub tcp: TcpStream,
    decoder: Decoder,
    input: BytesMut,
    auth: ClientAuth,
    credentials: Credentials,
    url: String,
    cseq: u32,
    session: Option<String>,
    /// What came while an answer was waited for.
    early: Vec<(u8, Bytes)>,
}

impl Viewer {
    pub async fn connect(camera: &Running) -> Viewer {
        Viewer {
            tcp: TcpStream::connect(camera.rtsp).await.unwrap(),
            decoder: Decoder::new(DecoderLimits::default()),
            input: BytesMut::new(),
            auth: ClientAuth::new(BasicPolicy::Refuse),
            credentials: camera.credentials.clone(),
            url: camera.url.clone(),
            cseq: 0,
            session: None,
            early: Vec::new(),
        }
    }

    /// Connects and plays the pictures on channels 0 and 1, the sound on 2 and 3.
    pub async fn play(camera: &Running) -> (Viewer, Vec<RtpInfo>) {
        let mut viewer = Viewer::connect(camera).await;
        assert_eq!(viewer.ask(Method::Describe, "", &[]).await.status, 200);
        for (track, channels) in [("/video", "0-1"), ("/audio", "2-3")] {
            let transport = format!("RTP/AVP/TCP;unicast;interleaved={channels}");
            let answer = viewer.ask(Method::Setup, track, &[("Transport", &transport)]).await;
            assert_eq!(answer.status, 200);
            let session = SessionId::parse(answer.headers.get("Session").unwrap()).unwrap();
            viewer.session = Some(session.id);
        }
        let answer = viewer.ask(Method::Play, "", &[]).await;
        assert_eq!(answer.status, 200);
        let info = RtpInfo::parse_all(answer.headers.get("RTP-Info").unwrap());
        (viewer, info)
    }

    /// Sends a request, and once more where it is challenged.
    pub async fn ask(&mut self, method: Method, path: &str, headers: &[(&str, &str)]) -> Response {
        let answer = self.ask_once(method.clone(), path, headers).await;
        if answer.status != 401
            || self.auth.handle_challenge(answer.headers.get_all("WWW-Authenticate")).is_err()
        {
            return answer;
        }
        let answer = self.ask_once(method, path, headers).await;
        self.auth.handle_accepted();
        answer
    }

    async fn ask_once(&mut self, method: Method, path: &str, headers: &[(&str, &str)]) -> Response {
        self.cseq += 1;
        let uri = format!("{}{path}", self.url);
        let authorization = self.auth.authorize(method.as_str(), &uri, &self.credentials).unwrap();
        let mut request = Request::new(method, uri, self.cseq);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        for (name, value) in [("Authorization", authorization), ("Session", self.session.clone())] {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        let mut bytes = BytesMut::new();
        request.encode(&mut bytes);
        self.tcp.write_all(&bytes).await.unwrap();
        loop {
            match self.message().await.expect("an answer") {
                Message::Response(response) => {
                    assert_eq!(response.headers.cseq(), Some(self.cseq));
                    return response;
                }
                Message::Interleaved(data) => self.early.push((data.channel, data.payload)),
                Message::Request(request) => panic!("a request from a camera: {request:?}"),
            }
        }
    }

    /// The next message; `None` at the end of the connection.
    pub async fn message(&mut self) -> Option<Message> {
        let read = async {
            loop {
                if let Some(message) = self.decoder.decode(&mut self.input).unwrap() {
                    return Some(message);
                }
                match self.tcp.read_buf(&mut self.input).await {
                    Ok(0) | Err(_) => return None,
                    Ok(_) => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, read).await.expect("something in time")
    }

    /// The next packet of the stream, with its channel; `None` at the end of the connection.
    pub async fn packet(&mut self) -> Option<Received> {
        let (channel, payload) = if self.early.is_empty() {
            match self.message().await? {
                Message::Interleaved(data) => (data.channel, data.payload),
                other => panic!("not a part of the stream: {other:?}"),
            }
        } else {
            self.early.remove(0)
        };
        Some(match channel {
            0 => Received::Video(Packet::parse(&payload).unwrap()),
            2 => Received::Audio(Packet::parse(&payload).unwrap()),
            1 | 3 => Received::Report(channel, Rtcp::parse(&payload).unwrap().sender_report.unwrap()),
            _ => panic!("channel {channel}"),
        })
    }

    /// Whether anything comes within a time; what comes is thrown away.
    pub async fn hears_anything(&mut self, within: Duration) -> bool {
        matches!(tokio::time::timeout(within, self.tcp.read_buf(&mut self.input)).await, Ok(Ok(1..)))
    }
}

/// A packet, by its channel.
#[derive(Debug)]
pub enum Received {
    Video(Packet),
    Audio(Packet),
    Report(u8, SenderReport),
}
