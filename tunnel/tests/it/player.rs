//! An RTSP client of the gateway, as a test needs it.

use crate::{
    device::Device,
    world::{PASSWORD, USER, World, within},
};
use bytes::BytesMut;
use homing_media::{
    rtp::Packet,
    rtsp::{Decoder, Interleaved, Message, Method, Request, Response},
};
use homing_protocol::{
    digest::{BasicPolicy, ClientAuth},
    secret::Credentials,
};
use std::{collections::VecDeque, net::SocketAddr};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Io for S {}

pub struct Player {
    io: Box<dyn Io>,
    pub url: String,
    pub credentials: Credentials,
    auth: ClientAuth,
    input: BytesMut,
    decoder: Decoder,
    packets: VecDeque<Interleaved>,
    pub session: Option<String>,
    cseq: u32,
}

impl Player {
    /// Connected to the gateway, to watch what a device names first.
    pub async fn new(world: &World, device: &Device) -> Self {
        Self::at(world.rtsp.unwrap(), &format!("/{}", device.serial)).await
    }

    pub async fn at(gateway: SocketAddr, path: &str) -> Self {
        let tcp = TcpStream::connect(gateway).await.unwrap();
        Self::over(Box::new(tcp), format!("rtsp://{gateway}{path}"))
    }

    pub fn over(io: Box<dyn Io>, url: String) -> Self {
        Player {
            io,
            url,
            credentials: Credentials::new(USER, PASSWORD),
            auth: ClientAuth::new(BasicPolicy::Refuse),
            input: BytesMut::new(),
            decoder: Decoder::default(),
            packets: VecDeque::new(),
            session: None,
            cseq: 0,
        }
    }

    /// A request of the stream's URL and its answer; a challenge is answered.
    pub async fn ask(&mut self, method: Method, headers: &[(&str, &str)]) -> Response {
        self.ask_at(method, &self.url.clone(), headers).await
    }

    pub async fn ask_at(&mut self, method: Method, url: &str, headers: &[(&str, &str)]) -> Response {
        for _ in 0..2 {
            let answer = self.ask_once(method.clone(), url, headers).await;
            let challenges: Vec<&str> = answer.headers.get_all("WWW-Authenticate").collect();
            if answer.status != 401 || self.auth.handle_challenge(challenges).is_err() {
                return answer;
            }
        }
        panic!("challenged again and again");
    }

    pub async fn ask_once(&mut self, method: Method, url: &str, headers: &[(&str, &str)]) -> Response {
        self.cseq += 1;
        let mut request = Request::new(method, url, self.cseq);
        if let Some(authorization) =
            self.auth.authorize(request.method.as_str(), url, &self.credentials).unwrap()
        {
            request = request.header("Authorization", authorization);
        }
        if let Some(session) = &self.session {
            request = request.header("Session", session);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut out = BytesMut::new();
        request.encode(&mut out);
        self.io.write_all(&out).await.unwrap();
        loop {
            match within(self.message()).await.expect("an answer, not the end") {
                Message::Interleaved(packet) => self.packets.push_back(packet),
                Message::Response(answer) => {
                    assert_eq!(answer.headers.cseq(), Some(self.cseq), "{answer:?}");
                    return answer;
                }
                Message::Request(request) => panic!("{request:?}"),
            }
        }
    }

    /// DESCRIBE; gives the control URLs of the tracks.
    pub async fn describe(&mut self) -> Vec<String> {
        let answer = self.ask(Method::Describe, &[("Accept", "application/sdp")]).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let sdp = String::from_utf8(answer.body.to_vec()).unwrap();
        let tracks = sdp.split("m=").skip(1);
        tracks
            .map(|track| track.split("a=control:").nth(1).unwrap().lines().next().unwrap().to_owned())
            .collect()
    }

    /// SETUP of one track.
    pub async fn set_up(&mut self, url: &str, transport: &str) -> Response {
        let answer = self.ask_at(Method::Setup, url, &[("Transport", transport)]).await;
        if let Some(session) = answer.headers.get("Session") {
            self.session = Some(session.split(';').next().unwrap().to_owned());
        }
        answer
    }

    /// DESCRIBE and SETUP of all tracks, over TCP.
    pub async fn prepare(&mut self) {
        for (number, track) in self.describe().await.iter().enumerate() {
            let transport = format!("RTP/AVP/TCP;unicast;interleaved={}-{}", 2 * number, 2 * number + 1);
            let answer = self.set_up(track, &transport).await;
            assert_eq!((answer.status, answer.headers.get("Transport")), (200, Some(transport.as_str())));
        }
    }

    /// All of it; gives the answer to PLAY.
    pub async fn play(&mut self) -> Response {
        self.prepare().await;
        let answer = self.ask(Method::Play, &[("Range", "npt=0.000-")]).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer
    }

    /// The next packet; none at the end.
    pub async fn packet(&mut self) -> Option<Interleaved> {
        if let Some(packet) = self.packets.pop_front() {
            return Some(packet);
        }
        match within(self.message()).await? {
            Message::Interleaved(packet) => Some(packet),
            other => panic!("{other:?}"),
        }
    }

    /// The next packet of video: sequence number and picture.
    pub async fn picture(&mut self) -> (u16, u32) {
        loop {
            let packet = self.packet().await.expect("a packet, not the end");
            if packet.channel == 0 {
                return picture(&packet);
            }
        }
    }

    /// Reads until the other side closes.
    pub async fn end(&mut self) {
        while let Some(message) = within(self.message()).await {
            if let Message::Interleaved(packet) = message {
                self.packets.push_back(packet);
            }
        }
    }

    /// What came and was not looked at.
    pub fn rest(&mut self) -> Vec<Interleaved> {
        self.packets.drain(..).collect()
    }

    async fn message(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = self.decoder.decode(&mut self.input).unwrap() {
                return Some(message);
            }
            match self.io.read_buf(&mut self.input).await {
                Ok(1..) => (),
                Ok(0) | Err(_) => return None,
            }
        }
    }
}

/// Sequence number and picture of a packet of video.
pub fn picture(packet: &Interleaved) -> (u16, u32) {
    let parsed = Packet::parse(&packet.payload).unwrap();
    let number = parsed.payload.last_chunk::<4>().unwrap();
    (parsed.sequence, u32::from_be_bytes(*number))
}
