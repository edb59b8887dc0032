//! RTSP client: one session with one camera over any byte stream (RFC 2326, RTP interleaved).
//!
//! 1. [`Session::describe`]: OPTIONS, DESCRIBE; [`Session::set_up`] for each track that is wanted; [`Session::play`].
//!    Each has a deadline, and Basic or Digest is answered when asked for.
//! 2. [`Session::next`] gives RTP and RTCP packets; in between it keeps the session alive, answers what the
//!    server asks, and notices a camera that has fallen silent.
//! 3. [`Session::close`] says TEARDOWN.
//!
//! Not here: what the packets mean, which tracks are wanted, connecting and trying again: that is the recording
//! server's business, or the RTSP gateway's.
//!
//! Invariant: no step waits for ever, and memory is bounded by the decoder's limits.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use homing_media::rtsp::{
    DecodeError, Decoder, DecoderLimits, Interleaved, Message, Method, Request, Response, SessionId,
    Transport,
};
use homing_media::sdp::{Presentation, SdpError};
use homing_protocol::api::ProblemDetail;
use homing_protocol::digest::{BasicPolicy, ClientAuth, ClientError};
use homing_protocol::secret::Credentials;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, Sleep};

/// What a session runs over.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// For each request of the set-up.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// Without a byte for so long the camera counts as gone. A camera that sends one frame in 10 s is slow, one
/// that sends nothing in 15 s is dead: sender reports come in between.
const SILENCE: Duration = Duration::from_secs(15);

/// How often silence and keepalives are looked at; a timer per packet would cost more than the packet.
const TICK: Duration = Duration::from_secs(5);

/// For a request or a report to leave: a peer that takes nothing is dead.
const SEND_DEADLINE: Duration = Duration::from_secs(10);

/// For TEARDOWN: a courtesy, which must not delay a stop.
const TEARDOWN_DEADLINE: Duration = Duration::from_millis(300);

/// Room for a read. A camera's frame comes in one or two pieces of this size; between reads the buffer is
/// empty and its memory is used again.
const READ_BYTES: usize = 32 * 1024;

/// Packets that may come before the answer to PLAY; more are dropped, oldest first.
const EARLY_PACKETS: usize = 64;

/// A challenge, an expired nonce, and the answer.
const AUTH_ROUNDS: usize = 3;

const USER_AGENT: &str = concat!("Homing/", env!("CARGO_PKG_VERSION"));

/// What to do with a server's `Session` timeout and keepalives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum KeepalivePolicy {
    /// GET_PARAMETER where OPTIONS names it, else OPTIONS.
    #[default]
    AsOffered,
    /// OPTIONS: after a server has refused GET_PARAMETER that it had offered.
    Options,
}

/// Why there is no stream, or no longer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SessionError {
    /// The camera ended the connection in this step.
    #[error(
        "the camera closed the connection ({step}); check whether it restarted, or serves too many viewers"
    )]
    Closed {
        /// What was under way.
        step: &'static str,
    },
    /// The connection broke in this step.
    #[error("the connection to the camera broke ({step}): {cause}")]
    Broken {
        /// What was under way.
        step: &'static str,
        /// What the system said.
        cause: String,
    },
    /// A request was not answered in time.
    #[error("the camera did not answer {step} within {} s; check its load and the network", .after.as_secs())]
    Timeout {
        /// What was asked.
        step: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// It plays, and nothing comes.
    #[error("the camera sent nothing for {} s; check its power and the network", SILENCE.as_secs())]
    Silent,
    /// User name or password is wrong.
    #[error("the camera does not accept the user name and password; correct them in its hardware")]
    WrongCredentials,
    /// A log-in that this client does not know.
    #[error("the camera asks for a log-in that is not supported: {0}")]
    Challenge(ClientError),
    /// A request was refused.
    #[error("the camera answers {step} with {status} {reason}{}", hint(*.status))]
    Status {
        /// What was asked.
        step: &'static str,
        /// The RTSP status.
        status: u16,
        /// Its words.
        reason: String,
    },
    /// What came is not RTSP.
    #[error("{0}; check that the address and port are the camera's RTSP server")]
    Protocol(#[from] DecodeError),
    /// The SDP cannot be used.
    #[error("the camera's description of its stream is unusable: {0}")]
    Sdp(#[from] SdpError),
    /// UDP was chosen.
    #[error(
        "the camera wants to send over UDP, which does not go through a tunnel; allow RTP over RTSP (TCP) in it"
    )]
    NoTcp,
    /// TEARDOWN or REDIRECT from the camera.
    #[error("the camera ended the stream")]
    Ended,
}

fn hint(status: u16) -> &'static str {
    match status {
        403 => "; the user may not watch this stream: give it the right to in the camera",
        404 => {
            "; the stream is gone: was a profile removed in the camera? Remove the hardware and add it again"
        }
        453 | 503 => "; the camera serves as many viewers as it can: end others, or raise its limit",
        461 => "; allow RTP over RTSP (TCP) in the camera",
        _ => "",
    }
}

impl SessionError {
    fn code(&self) -> &'static str {
        match self {
            Self::Closed { .. } | Self::Broken { .. } => "connection-lost",
            Self::Timeout { .. } => "no-answer",
            Self::Silent => "camera-silent",
            Self::WrongCredentials => "wrong-credentials",
            Self::Challenge(_) => "unsupported-login",
            Self::Status { status: 404, .. } => "no-such-stream",
            Self::Status { .. } => "camera-refuses",
            Self::Protocol(_) => "not-rtsp",
            Self::Sdp(_) => "no-video",
            Self::NoTcp => "no-tcp",
            Self::Ended => "stream-ended",
        }
    }

    /// The same for an API, with a code.
    pub fn problem(&self) -> ProblemDetail {
        ProblemDetail { code: self.code().to_owned(), message: self.to_string(), step: None }
    }
}

/// A session, described and then playing.
pub struct Session {
    wire: Wire,
    control: String,
    id: SessionId,
    is_playing: bool,
    keepalive: KeepalivePolicy,
    has_get_parameter: bool,
    keepalive_cseq: Option<u32>,
    keepalive_due: Instant,
    heard: Instant,
    tick: std::pin::Pin<Box<Sleep>>,
    early: VecDeque<Interleaved>,
}

/// What a camera offers at a URL.
#[derive(Clone, Debug)]
pub struct Description {
    /// What was understood of it.
    pub presentation: Presentation,
    /// As the camera wrote it.
    pub sdp: Bytes,
}

/// The channels of a track's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channels {
    /// Of RTP.
    pub rtp: u8,
    /// Of RTCP.
    pub rtcp: u8,
}

/// What [`Session::next`] gives.
pub enum Event {
    /// An RTP or RTCP packet.
    Packet(Interleaved),
    /// Nothing came for a few seconds, or it is time to send receiver reports: [`Session::send`].
    Tick,
}

impl Session {
    /// Begins: asks what there is at a URL.
    ///
    /// # Errors
    /// See [`SessionError`].
    pub async fn describe(
        stream: Box<dyn Stream>,
        url: &str,
        credentials: Credentials,
    ) -> Result<(Self, Description), SessionError> {
        let mut wire = Wire::new(stream, credentials);
        let mut early = VecDeque::new();
        let options = wire.exchange("OPTIONS", Method::Options, url, &[], &mut early).await?;
        let has_get_parameter =
            options.headers.get("Public").is_some_and(|list| list.contains("GET_PARAMETER"));

        let accept = [("Accept", "application/sdp".to_owned())];
        let described = success(
            "DESCRIBE",
            wire.exchange("DESCRIBE", Method::Describe, url, &accept, &mut early).await?,
        )?;
        let presentation = Presentation::from_response(url, &described)?;
        let (now, id) = (Instant::now(), SessionId { id: String::new(), timeout_s: 60 });
        let session = Self {
            wire,
            control: presentation.control.clone(),
            is_playing: false,
            keepalive: KeepalivePolicy::default(),
            has_get_parameter,
            keepalive_cseq: None,
            keepalive_due: now + keepalive_interval(&id),
            id,
            heard: now,
            tick: Box::pin(tokio::time::sleep_until(now + TICK)),
            early,
        };
        Ok((session, Description { presentation, sdp: described.body }))
    }

    /// Sets the track of that control URL up (none: the only one), asking for `channel` and the next one. Which channels
    /// the camera has taken is its answer.
    ///
    /// # Errors
    /// [`SessionError::Status`] when it refuses this track: others may still be had.
    pub async fn set_up(&mut self, control: Option<&str>, channel: u8) -> Result<Channels, SessionError> {
        let mut headers = vec![("Transport", Transport::interleaved(channel).to_string())];
        headers.extend(self.session_header());
        let url = control.unwrap_or(&self.control);
        let answer = self.wire.exchange("SETUP", Method::Setup, url, &headers, &mut self.early).await?;
        let answer = success("SETUP", answer)?;
        let transport = answer.headers.get("Transport").map(Transport::parse).unwrap_or_default();
        if !transport.tcp && transport.interleaved.is_none() {
            return Err(SessionError::NoTcp);
        }
        if self.id.id.is_empty()
            && let Some(id) = answer.headers.get("Session").and_then(SessionId::parse)
        {
            self.keepalive_due = Instant::now() + keepalive_interval(&id);
            self.id = id;
        }
        // A server that does not name the channels uses the ones it was asked for.
        let (rtp, rtcp) = transport.interleaved.unwrap_or((channel, channel + 1));
        Ok(Channels { rtp, rtcp })
    }

    /// Starts what was set up.
    ///
    /// # Errors
    /// See [`SessionError`].
    pub async fn play(&mut self) -> Result<(), SessionError> {
        let mut headers = vec![("Range", "npt=0.000-".to_owned())];
        headers.extend(self.session_header());
        let (url, early) = (&self.control, &mut self.early);
        success("PLAY", self.wire.exchange("PLAY", Method::Play, url, &headers, early).await?)?;
        (self.is_playing, self.heard) = (true, Instant::now());
        Ok(())
    }

    /// The next packet, or a tick every few seconds.
    ///
    /// # Errors
    /// When the stream is over, for whatever reason. Dropping the future loses nothing but its wait.
    pub async fn next(&mut self) -> Result<Event, SessionError> {
        if let Some(packet) = self.early.pop_front() {
            return Ok(Event::Packet(packet));
        }
        loop {
            while let Some(message) = self.wire.decode()? {
                match message {
                    Message::Interleaved(packet) => return Ok(Event::Packet(packet)),
                    Message::Response(answer) => self.handle_answer(&answer),
                    Message::Request(request) => self.answer_server(&request).await?,
                }
            }
            tokio::select! {
                // Data first: a tick can wait.
                biased;
                read = self.wire.read("playing") => {
                    read?;
                    self.heard = Instant::now();
                }
                () = self.tick.as_mut() => {
                    let now = Instant::now();
                    self.tick.as_mut().reset(now + TICK);
                    if self.is_playing && now - self.heard >= SILENCE {
                        return Err(SessionError::Silent);
                    }
                    if now >= self.keepalive_due {
                        self.send_keepalive().await?;
                    }
                    return Ok(Event::Tick);
                }
            }
        }
    }

    /// Whether [`Session::next`] has a packet without waiting for the network: so that a caller can do once
    /// per read what need not be done once per packet.
    pub fn has_buffered(&self) -> bool {
        !self.early.is_empty() || self.wire.buf.len() >= 4
    }

    /// Sends RTCP on a channel.
    pub async fn send(&mut self, channel: u8, payload: Bytes) -> Result<(), SessionError> {
        let mut out = BytesMut::with_capacity(payload.len() + 4);
        if (Interleaved { channel, payload }).encode(&mut out) {
            self.wire.write("receiver report", &out).await?;
        }
        Ok(())
    }

    /// Ends the session as the standard wants it, and the stream in order: through an uplink, one that is dropped takes
    /// along what was written last. Waits no longer than a courtesy deserves.
    pub async fn close(mut self) {
        let headers = self.session_header();
        let Ok((_, out)) = self.wire.request(Method::Teardown, &self.control.clone(), &headers) else {
            return;
        };
        let farewell = async {
            self.wire.write("TEARDOWN", &out).await?;
            let _ = self.wire.stream.shutdown().await;
            loop {
                self.wire.buf.clear();
                self.wire.read("TEARDOWN").await?;
            }
        };
        // Ends with the peer's end of the stream, at the latest with the deadline.
        let _: Result<Result<(), SessionError>, _> = tokio::time::timeout(TEARDOWN_DEADLINE, farewell).await;
    }

    async fn send_keepalive(&mut self) -> Result<(), SessionError> {
        let method = match self.keepalive {
            KeepalivePolicy::AsOffered if self.has_get_parameter => Method::GetParameter,
            _ => Method::Options,
        };
        let headers = self.session_header();
        let (cseq, out) = self.wire.request(method, &self.control.clone(), &headers)?;
        self.keepalive_cseq = Some(cseq);
        self.keepalive_due = Instant::now() + keepalive_interval(&self.id);
        self.wire.write("keepalive", &out).await
    }

    fn handle_answer(&mut self, answer: &Response) {
        if answer.headers.cseq() != self.keepalive_cseq || self.keepalive_cseq.is_none() {
            return;
        }
        self.keepalive_cseq = None;
        match answer.status {
            401 => {
                // The nonce has expired: once more, with the new one. Wrong by now or not, the stream is on.
                if self.wire.auth.handle_challenge(answer.headers.get_all("WWW-Authenticate")).is_ok() {
                    self.keepalive_due = Instant::now();
                }
            }
            405 | 501 | 551 => self.keepalive = KeepalivePolicy::Options,
            200..=299 => self.wire.auth.handle_accepted(),
            status => tracing::debug!(status, "answer to a keepalive"),
        }
    }

    /// Servers ask too: OPTIONS to see whether we live, ANNOUNCE when something changes.
    async fn answer_server(&mut self, request: &Request) -> Result<(), SessionError> {
        if matches!(request.method, Method::Teardown | Method::Redirect) {
            return Err(SessionError::Ended);
        }
        let status = match request.method {
            Method::Options | Method::GetParameter | Method::SetParameter | Method::Announce => 200,
            _ => 501,
        };
        let mut out = BytesMut::new();
        Response::new(status, request.headers.cseq()).encode(&mut out);
        self.wire.write("answer", &out).await
    }

    fn session_header(&self) -> Vec<(&'static str, String)> {
        if self.id.id.is_empty() { Vec::new() } else { vec![("Session", self.id.id.clone())] }
    }
}

/// Half the server's timeout: one may get lost.
fn keepalive_interval(id: &SessionId) -> Duration {
    Duration::from_secs(u64::from(id.timeout_s / 2).clamp(5, 60))
}

fn success(step: &'static str, answer: Response) -> Result<Response, SessionError> {
    if answer.is_success() {
        return Ok(answer);
    }
    let reason = answer.reason.chars().take(100).collect();
    Err(SessionError::Status { step, status: answer.status, reason })
}

/// The stream with its decoder and its credentials.
struct Wire {
    stream: Box<dyn Stream>,
    buf: BytesMut,
    decoder: Decoder,
    cseq: u32,
    auth: ClientAuth,
    credentials: Credentials,
}

impl Wire {
    fn new(stream: Box<dyn Stream>, credentials: Credentials) -> Self {
        // Cameras that drop part of a packet under load go on with the next one.
        let limits = DecoderLimits { resync_bytes: 256 * 1024, ..DecoderLimits::default() };
        Self {
            stream,
            buf: BytesMut::with_capacity(READ_BYTES),
            decoder: Decoder::new(limits),
            cseq: 0,
            // RTSP inside the site, or inside the tunnel: what Basic shows, the stream shows too.
            auth: ClientAuth::new(BasicPolicy::Allow),
            credentials,
        }
    }

    /// A request and its answer; a challenge in between is answered.
    async fn exchange(
        &mut self,
        step: &'static str,
        method: Method,
        url: &str,
        headers: &[(&'static str, String)],
        early: &mut VecDeque<Interleaved>,
    ) -> Result<Response, SessionError> {
        let exchange = async {
            for _ in 0..AUTH_ROUNDS {
                let (cseq, out) = self.request(method.clone(), url, headers)?;
                self.write(step, &out).await?;
                let answer = self.answer(step, cseq, early).await?;
                if answer.status != 401 {
                    self.auth.handle_accepted();
                    return Ok(answer);
                }
                let challenged = self.auth.handle_challenge(answer.headers.get_all("WWW-Authenticate"));
                challenged.map_err(|error| match error {
                    ClientError::WrongCredentials => SessionError::WrongCredentials,
                    other => SessionError::Challenge(other),
                })?;
            }
            Err(SessionError::WrongCredentials)
        };
        let done = tokio::time::timeout(REQUEST_DEADLINE, exchange).await;
        done.unwrap_or(Err(SessionError::Timeout { step, after: REQUEST_DEADLINE }))
    }

    fn request(
        &mut self,
        method: Method,
        url: &str,
        headers: &[(&'static str, String)],
    ) -> Result<(u32, BytesMut), SessionError> {
        self.cseq += 1;
        let authorization =
            self.auth.authorize(method.as_str(), url, &self.credentials).map_err(SessionError::Challenge)?;
        let mut request = Request::new(method, url, self.cseq).header("User-Agent", USER_AGENT);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        if let Some(authorization) = authorization {
            request = request.header("Authorization", authorization);
        }
        let mut out = BytesMut::with_capacity(512);
        request.encode(&mut out);
        Ok((self.cseq, out))
    }

    /// The answer to that request. Servers without `CSeq` in their answers exist; then the next answer is it.
    async fn answer(
        &mut self,
        step: &'static str,
        cseq: u32,
        early: &mut VecDeque<Interleaved>,
    ) -> Result<Response, SessionError> {
        loop {
            while let Some(message) = self.decode()? {
                match message {
                    Message::Response(answer) if answer.status == 100 => {}
                    Message::Response(answer) if answer.headers.cseq().is_none_or(|of| of == cseq) => {
                        return Ok(answer);
                    }
                    Message::Interleaved(packet) => {
                        if early.len() == EARLY_PACKETS {
                            early.pop_front();
                        }
                        // A copy: it must not keep the read buffer from being used again.
                        let payload = Bytes::copy_from_slice(&packet.payload);
                        early.push_back(Interleaved { payload, ..packet });
                    }
                    Message::Response(_) | Message::Request(_) => {}
                }
            }
            self.read(step).await?;
        }
    }

    fn decode(&mut self) -> Result<Option<Message>, SessionError> {
        Ok(self.decoder.decode(&mut self.buf)?)
    }

    async fn read(&mut self, step: &'static str) -> Result<(), SessionError> {
        // With everything taken out and dropped this finds the same memory again.
        self.buf.reserve(READ_BYTES / 2);
        match self.stream.read_buf(&mut self.buf).await {
            Ok(0) => Err(SessionError::Closed { step }),
            Ok(_) => Ok(()),
            Err(error) => Err(SessionError::Broken { step, cause: error.to_string() }),
        }
    }

    async fn write(&mut self, step: &'static str, bytes: &[u8]) -> Result<(), SessionError> {
        let sent = tokio::time::timeout(SEND_DEADLINE, async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        });
        match sent.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(SessionError::Broken { step, cause: error.to_string() }),
            Err(_) => Err(SessionError::Timeout { step, after: SEND_DEADLINE }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::DuplexStream;

    const SDP: &str = "v=0\r\na=control:*\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:video\r\n\
                       m=audio 0 RTP/AVP 8\r\na=control:audio\r\n";
    const URL: &str = "rtsp://camera/stream";

    /// The camera's end of a connection: reads a request, writes what the test says.
    struct Peer {
        stream: DuplexStream,
        buf: BytesMut,
        decoder: Decoder,
    }

    impl Peer {
        fn new() -> (Self, Box<dyn Stream>) {
            let (ours, theirs) = tokio::io::duplex(64 * 1024);
            (Self { stream: ours, buf: BytesMut::new(), decoder: Decoder::default() }, Box::new(theirs))
        }

        async fn message(&mut self) -> Message {
            loop {
                match self.decoder.decode(&mut self.buf).unwrap() {
                    Some(message) => return message,
                    None => assert!(self.stream.read_buf(&mut self.buf).await.unwrap() > 0, "closed"),
                }
            }
        }

        async fn request(&mut self) -> Request {
            loop {
                if let Message::Request(request) = self.message().await {
                    return request;
                }
            }
        }

        async fn answer(&mut self, to: &Request, answer: impl FnOnce(Response) -> Response) {
            let mut out = BytesMut::new();
            answer(Response::new(200, to.headers.cseq())).encode(&mut out);
            self.stream.write_all(&out).await.unwrap();
        }

        /// An ordinary camera, up to and with PLAY; gives the URLs of SETUP.
        async fn play(&mut self) -> Vec<String> {
            let mut set_up = Vec::new();
            loop {
                let request = self.request().await;
                if request.method == Method::Setup {
                    set_up.push(request.uri.clone());
                }
                let is_play = request.method == Method::Play;
                self.answer(&request, |answer| match request.method {
                    Method::Options => answer.header("Public", "DESCRIBE, SETUP, PLAY, GET_PARAMETER"),
                    Method::Describe => answer.body("application/sdp", SDP),
                    Method::Setup => {
                        let transport = request.headers.get("Transport").unwrap();
                        answer.header("Transport", transport).header("Session", "7;timeout=60")
                    }
                    _ => answer,
                })
                .await;
                if is_play {
                    return set_up;
                }
            }
        }
    }

    fn credentials() -> Credentials {
        Credentials::new("root", "pass")
    }

    /// Both tracks, as a recorder does.
    async fn open(stream: Box<dyn Stream>) -> Result<(Session, Vec<Channels>), SessionError> {
        let (mut session, description) = Session::describe(stream, URL, credentials()).await?;
        let mut channels = Vec::new();
        for (track, channel) in description.presentation.tracks.iter().zip([0, 2]) {
            channels.push(session.set_up(track.control.as_deref(), channel).await?);
        }
        session.play().await?;
        Ok((session, channels))
    }

    async fn playing() -> (Peer, Session) {
        let (mut peer, stream) = Peer::new();
        let (session, _) = tokio::join!(open(stream), peer.play());
        (peer, session.unwrap().0)
    }

    /// Goal: set-up asks for each track by its own URL, on channels of its own, in one session.
    #[tokio::test(start_paused = true)]
    async fn sets_up_both_tracks() {
        let (mut peer, stream) = Peer::new();
        let (opened, asked) = tokio::join!(open(stream), peer.play());
        let (session, channels) = opened.unwrap();
        assert_eq!(channels, [Channels { rtp: 0, rtcp: 1 }, Channels { rtp: 2, rtcp: 3 }]);
        assert_eq!(asked, ["rtsp://camera/stream/video", "rtsp://camera/stream/audio"]);
        let (request, ()) = tokio::join!(peer.request(), session.close());
        assert_eq!((request.method, request.headers.get("Session")), (Method::Teardown, Some("7")));
    }

    /// Goal: a camera that falls silent is noticed, and not before its time.
    #[tokio::test(start_paused = true)]
    async fn silence_ends_the_session() {
        let (peer, mut session) = playing().await;
        let begun = Instant::now();
        let error = loop {
            match session.next().await {
                Ok(_) => assert!(begun.elapsed() < Duration::from_secs(20)),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, SessionError::Silent) && begun.elapsed() >= SILENCE, "{error}");
        assert_eq!(error.problem().code, "camera-silent");
        drop(peer);
    }

    /// Goal: keepalives come in time; a server that refuses the method it had offered gets another one; and a server's
    /// own questions are answered.
    #[tokio::test(start_paused = true)]
    async fn keeps_the_session_alive() {
        let (mut peer, mut session) = playing().await;
        let camera = async {
            let mut methods = Vec::new();
            let mut packets = tokio::time::interval(Duration::from_secs(3));
            let begun = Instant::now();
            while methods.len() < 3 {
                tokio::select! {
                    request = peer.request() => {
                        let status = if request.method == Method::GetParameter { 501 } else { 200 };
                        peer.answer(&request, |answer| Response { status, ..answer }).await;
                        methods.push(request.method);
                    }
                    _ = packets.tick() => peer.stream.write_all(b"$\x01\0\x01x").await.unwrap(),
                }
            }
            (methods, begun.elapsed())
        };
        let recorder = async {
            loop {
                session.next().await.unwrap();
            }
        };
        let (methods, after) = tokio::select! {
            done = camera => done,
            () = recorder => unreachable!(),
        };
        assert_eq!(methods, [Method::GetParameter, Method::Options, Method::Options]);
        assert!(after >= Duration::from_secs(90) && after < Duration::from_secs(110), "{after:?}");

        let mut question = BytesMut::new();
        Request::new(Method::Options, URL, 99).encode(&mut question);
        peer.stream.write_all(&question).await.unwrap();
        let answered = async {
            loop {
                if let Message::Response(answer) = peer.message().await {
                    return answer.headers.cseq();
                }
            }
        };
        tokio::select! {
            cseq = answered => assert_eq!(cseq, Some(99)),
            event = async { loop { session.next().await.unwrap(); } } => event,
        }
    }

    /// Goal: each way in which a camera refuses has its own words.
    #[tokio::test(start_paused = true)]
    async fn refusals() {
        async fn refused(answer: impl Fn(&Request, Response) -> Response) -> SessionError {
            let (mut peer, stream) = Peer::new();
            let camera = async {
                loop {
                    let request = peer.request().await;
                    peer.answer(&request, |plain| answer(&request, plain)).await;
                }
            };
            tokio::select! {
                opened = open(stream) => opened.err().expect("an error"),
                () = camera => unreachable!(),
            }
        }
        let described = |sdp: &'static str| {
            move |request: &Request, answer: Response| match request.method {
                Method::Describe => answer.body("application/sdp", sdp),
                _ => answer,
            }
        };
        let error = refused(described("v=0\r\n")).await;
        assert_eq!(error.problem().code, "no-video");
        let error = refused(described(SDP)).await;
        assert!(matches!(error, SessionError::NoTcp), "no Transport header: {error}");
        let error = refused(|_, answer| Response { status: 404, ..answer }).await;
        assert_eq!(error.problem().code, "no-such-stream");
        let basic = |_: &Request, answer: Response| {
            Response { status: 401, ..answer }.header("WWW-Authenticate", "Basic realm=\"camera\"")
        };
        assert!(matches!(refused(basic).await, SessionError::WrongCredentials));
        let odd = |_: &Request, answer: Response| {
            Response { status: 401, ..answer }.header("WWW-Authenticate", "Negotiate")
        };
        assert_eq!(refused(odd).await.problem().code, "unsupported-login");
    }

    /// Goal: a server that says nothing, or is none, does not hold us up.
    #[tokio::test(start_paused = true)]
    async fn no_answer_and_no_rtsp() {
        let (peer, stream) = Peer::new();
        let error = open(stream).await.err().expect("an error");
        assert!(matches!(error, SessionError::Timeout { step: "OPTIONS", .. }), "{error}");
        drop(peer);
        let (mut peer, stream) = Peer::new();
        peer.stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        let error = open(stream).await.err().expect("an error");
        assert_eq!(error.problem().code, "not-rtsp", "{error}");
    }

    /// Goal: packets that overtake the answer to PLAY are not lost.
    #[tokio::test(start_paused = true)]
    async fn packets_before_the_answer() {
        let (mut peer, stream) = Peer::new();
        let camera = async {
            loop {
                let request = peer.request().await;
                if request.method == Method::Play {
                    peer.stream.write_all(b"$\0\0\x02ab").await.unwrap();
                    peer.answer(&request, |answer| answer).await;
                    return;
                }
                peer.answer(&request, |answer| match request.method {
                    Method::Describe => answer.body("application/sdp", SDP),
                    Method::Setup => answer.header("Transport", request.headers.get("Transport").unwrap()),
                    _ => answer,
                })
                .await;
            }
        };
        let (session, ()) = tokio::join!(open(stream), camera);
        let Ok(Event::Packet(packet)) = session.unwrap().0.next().await else { panic!("no packet") };
        assert_eq!((packet.channel, &packet.payload[..]), (0, &b"ab"[..]));
    }
}
