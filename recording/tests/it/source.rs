//! A scripted camera: RTSP over TCP, H.264 from a clip that ffmpeg made, G.711 sound if asked for, and whatever
//! misbehaviour a test wants. Every picture of the clip differs from the others, so that a recording tells
//! which pictures it holds.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::BytesMut;
use homing_media::h264::{Packetizer, annexb_nals, nal_type};
use homing_media::rtp;
use homing_media::rtsp::{Decoder, Message, Method, Request, Response, SessionId, Transport};
use homing_protocol::digest::DigestGuard;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::ffmpeg;

/// Pictures per second of media time.
pub const FPS: u32 = 10;
/// Pictures from key frame to key frame.
pub const GROUP: usize = 10;
/// Pictures in the clip; then it begins again.
pub const CLIP: usize = 60;

/// Six seconds of moving picture.
pub struct Clip {
    /// NAL units of each picture.
    units: Vec<Vec<Vec<u8>>>,
    sprop: String,
    /// For MIME types.
    pub codec: String,
    fps: u32,
    group: usize,
    /// What ffmpeg makes of each picture.
    pub pictures: Vec<String>,
}

/// Made once per test run.
pub fn clip() -> &'static Clip {
    static CLIP_ONCE: OnceLock<Clip> = OnceLock::new();
    CLIP_ONCE.get_or_init(|| {
        let clip = Clip::make(&format!("testsrc2=size=320x240:rate={FPS}:duration=6"), FPS, GROUP, &[]);
        let distinct: std::collections::HashSet<&String> = clip.pictures.iter().collect();
        assert_eq!(
            (clip.pictures.len(), distinct.len()),
            (CLIP, CLIP),
            "every picture must differ from the others"
        );
        clip
    })
}

impl Clip {
    /// Of one of ffmpeg's sources.
    pub fn make(source: &str, fps: u32, group: usize, encoder: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clip.h264");
        let x264 = format!("keyint={group}:min-keyint={group}:scenecut=0:bframes=0:aud=1:repeat-headers=1");
        #[rustfmt::skip]
        let arguments = [
            &["-v", "error", "-f", "lavfi", "-i", source, "-c:v", "libx264", "-pix_fmt", "yuv420p", "-x264-params", &x264],
            encoder,
            &["-f", "h264", path.to_str().unwrap()],
        ].concat();
        ffmpeg::run("ffmpeg", &arguments);
        let stream = std::fs::read(&path).unwrap();
        let mut units: Vec<Vec<Vec<u8>>> = Vec::new();
        for nal in annexb_nals(&stream) {
            match nal_type(nal) {
                9 => units.push(Vec::new()),
                _ => units.last_mut().unwrap().push(nal.to_vec()),
            }
        }
        let pictures = ffmpeg::pictures(&path);
        assert_eq!(units.len(), pictures.len());
        let set = |kind| units[0].iter().find(|nal| nal_type(nal) == kind).unwrap();
        use base64::Engine as _;
        let base64 = |nal: &[u8]| base64::engine::general_purpose::STANDARD.encode(nal);
        let sprop = format!("{},{}", base64(set(7)), base64(set(8)));
        let codec = homing_media::h264::ParameterSets::from_sprop(&sprop).unwrap().codec();
        Clip { units, sprop, codec, fps, group, pictures }
    }
}

/// Asserts that a file holds pictures of the clip without any missing between the first and the last, and
/// gives how many.
pub fn assert_consecutive(file: &Path) -> usize {
    let pictures = ffmpeg::pictures(file);
    let number = |hash: &String| {
        clip().pictures.iter().position(|picture| picture == hash).expect("a picture of the clip")
    };
    let numbers: Vec<usize> = pictures.iter().map(number).collect();
    for pair in numbers.windows(2) {
        assert_eq!(pair[1], (pair[0] + 1) % CLIP, "pictures are missing or out of order: {numbers:?}");
    }
    numbers.len()
}

/// How a connection misbehaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// It does not.
    #[default]
    None,
    /// Closes after so many pictures.
    CloseAfter(usize),
    /// Closes in the middle of an interleaved packet after so many pictures.
    CutAfter(usize),
    /// Leaves a packet out of that picture.
    LoseIn(usize),
    /// Sends packets whose payload lies about its sizes before that picture.
    LieBefore(usize),
    /// Sends an interleaved header that claims more than follows, then goes on with the next packet.
    GarbageBefore(usize),
}

/// What a source is like.
#[derive(Clone, Default)]
pub struct Script {
    /// Sound, PCMU.
    pub sound: bool,
    /// Seconds of media time per second; 0 is 1.
    pub speed: u32,
    /// Pictures over all connections, then nothing more; 0 is endless.
    pub pictures: usize,
    /// Digest is asked for.
    pub login: Option<(&'static str, &'static str)>,
    /// It is added already: there is no first connection of Add Hardware, which gets no pictures.
    pub is_added: bool,
    /// Every connection gets the whole of that clip, by itself: many cameras in one.
    pub many: Option<&'static Clip>,
    /// For the connections after that of Add Hardware, one each.
    pub faults: Vec<Fault>,
}

/// A running camera.
pub struct Source {
    pub url: String,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    script: Script,
    guard: DigestGuard,
    connections: AtomicUsize,
    sent: AtomicUsize,
    /// Of the connection that sent last.
    latest: Mutex<Sent>,
    requests: Mutex<Vec<Method>>,
    is_mute: watch::Sender<bool>,
}

/// What one connection has sent.
#[derive(Default)]
struct Sent {
    /// The recorder's end and ours.
    ports: (u16, u16),
    /// Pictures over all connections before its first.
    before: usize,
    bytes: u64,
    /// After each picture: bytes of this connection so far, pictures over all connections.
    pictures: Vec<(u64, usize)>,
}

/// What one connection sent and the recorder has read.
#[derive(Clone, Copy, Debug)]
pub struct Read {
    /// Pictures sent over all connections before the first of this one.
    pub before: usize,
    /// And with the last one of it that was read in full.
    pub until: usize,
}

impl Source {
    pub async fn start(script: Script) -> Self {
        clip();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, script)
    }

    /// At the address of one that has ended.
    pub async fn restart(url: &str, script: Script) -> Self {
        let port: u16 = url.rsplit(':').next().unwrap().split('/').next().unwrap().parse().unwrap();
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(([127, 0, 0, 1], port).into()).unwrap();
        Self::on(socket.listen(16).unwrap(), script)
    }

    fn on(listener: TcpListener, script: Script) -> Self {
        let url = format!("rtsp://127.0.0.1:{}/stream", listener.local_addr().unwrap().port());
        let guard = DigestGuard::new("source", [3; 32]);
        let shared = Arc::new(Shared {
            script,
            guard,
            connections: AtomicUsize::new(0),
            sent: AtomicUsize::new(0),
            latest: Mutex::default(),
            requests: Mutex::default(),
            is_mute: watch::Sender::new(false),
        });
        let of_task = shared.clone();
        // A test's own task, ended by `end` or with the test's runtime.
        #[expect(clippy::disallowed_methods)]
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let shared = of_task.clone();
                connections.spawn(async move {
                    let _ = Connection::new(tcp, shared).serve().await;
                });
            }
        });
        Self { url, shared, task }
    }

    /// Pictures sent so far, over all connections.
    pub fn sent(&self) -> usize {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// How far a recorder has read that stands still now (SIGSTOP): the kernel holds the rest.
    pub fn read_by_stopped_recorder(&self) -> Read {
        let sent = self.shared.latest.lock().unwrap();
        let (theirs, ours) = sent.ports;
        let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
        // proc(5): number, local address, remote address, state, tx_queue:rx_queue, all in hexadecimal.
        let unread = sockets.lines().find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let is_port = |field: &str, port: u16| field.ends_with(&format!(":{port:04X}"));
            let is_theirs = is_port(fields[1], theirs) && is_port(fields[2], ours);
            is_theirs.then(|| u64::from_str_radix(fields[4].split(':').nth(1).unwrap(), 16).unwrap())
        });
        let read = sent.bytes - unread.expect("the recorder is connected");
        let whole = sent.pictures.iter().rev().find(|(bytes, _)| *bytes <= read);
        Read { before: sent.before, until: whole.map_or(sent.before, |last| last.1) }
    }

    /// Connections that have played so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Methods asked for so far.
    pub fn requests(&self) -> Vec<Method> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// Leaves new connections without any answer, until it is to answer again.
    pub fn mute(&self, is_mute: bool) {
        self.shared.is_mute.send_replace(is_mute);
    }

    /// Ends at once, with all connections.
    pub async fn end(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

struct Connection {
    tcp: TcpStream,
    shared: Arc<Shared>,
    buf: BytesMut,
    decoder: Decoder,
    sent_bytes: u64,
}

impl Connection {
    fn new(tcp: TcpStream, shared: Arc<Shared>) -> Self {
        tcp.set_nodelay(true).unwrap();
        Self { tcp, shared, buf: BytesMut::new(), decoder: Decoder::default(), sent_bytes: 0 }
    }

    async fn serve(mut self) -> std::io::Result<()> {
        loop {
            let Some(request) = self.request().await? else { return Ok(()) };
            let _ = self.shared.is_mute.subscribe().wait_for(|is_mute| !is_mute).await;
            let play = request.method == Method::Play;
            if self.answer(&request).await? && play {
                return self.play().await;
            }
        }
    }

    async fn request(&mut self) -> std::io::Result<Option<Request>> {
        loop {
            match self.decoder.decode(&mut self.buf).map_err(std::io::Error::other)? {
                Some(Message::Request(request)) => return Ok(Some(request)),
                Some(_) => {}
                None => {
                    if self.tcp.read_buf(&mut self.buf).await? == 0 {
                        return Ok(None);
                    }
                }
            }
        }
    }

    async fn answer(&mut self, request: &Request) -> std::io::Result<bool> {
        self.shared.requests.lock().unwrap().push(request.method.clone());
        let cseq = request.headers.cseq();
        let authorization = request.headers.get("Authorization");
        let login = self.shared.script.login;
        let password = |user: &str| login.filter(|login| login.0 == user).map(|login| login.1.into());
        let admitted = login.is_none()
            || request.method == Method::Options
            || self
                .shared
                .guard
                .check(request.method.as_str(), &request.uri, authorization, password, 0)
                .is_ok();
        let mut answer = Response::new(if admitted { 200 } else { 401 }, cseq);
        if !admitted {
            for challenge in self.shared.guard.challenges(0, false) {
                answer = answer.header("WWW-Authenticate", challenge);
            }
        } else {
            let session = SessionId { id: "12345678".into(), timeout_s: 60 };
            answer = match request.method {
                Method::Options => answer.header("Public", "DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER"),
                Method::Describe => answer.body("application/sdp", self.sdp()),
                Method::Setup => {
                    let asked = Transport::parse(request.headers.get("Transport").unwrap());
                    answer.header("Transport", asked.to_string()).header("Session", session.to_string())
                }
                _ => answer.header("Session", session.id),
            };
        }
        let mut out = BytesMut::new();
        answer.encode(&mut out);
        self.tcp.write_all(&out).await?;
        self.sent_bytes += out.len() as u64;
        Ok(admitted)
    }

    fn clip(&self) -> &'static Clip {
        self.shared.script.many.unwrap_or_else(clip)
    }

    fn sdp(&self) -> String {
        let sound = if self.shared.script.sound { "m=audio 0 RTP/AVP 0\r\na=control:audio\r\n" } else { "" };
        format!(
            "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=Scripted\r\nt=0 0\r\na=control:*\r\nm=video 0 RTP/AVP 96\r\n\
             a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1;sprop-parameter-sets={}\r\n\
             a=framerate:{}\r\na=control:video\r\n{sound}",
            self.clip().sprop,
            self.clip().fps
        )
    }

    /// Sends pictures at their time, and answers what is asked in between.
    async fn play(mut self) -> std::io::Result<()> {
        let script = self.shared.script.clone();
        let number = self.shared.connections.fetch_add(1, Ordering::Relaxed);
        // Add Hardware only tries; it gets no picture.
        let number = number + usize::from(script.is_added);
        let is_trial = number == 0;
        let fault = number.checked_sub(1).and_then(|at| script.faults.get(at)).copied().unwrap_or_default();
        let mut packetizer = Packetizer::new(
            96,
            0x1111 + number as u32,
            65_500,
            if script.many.is_some() { 1400 } else { 400 },
        );
        let mut sound = Sound::new(number as u32);
        let clip = self.clip();
        let mut alone = number * 7 * clip.group;
        // A connection begins with the key frame that is next in the clip.
        let first = self.shared.sent.load(Ordering::Relaxed).next_multiple_of(GROUP);
        self.shared.sent.store(first, Ordering::Relaxed);
        let ports = (self.tcp.peer_addr()?.port(), self.tcp.local_addr()?.port());
        let mut ticks = tokio::time::interval(Duration::from_millis(1000) / clip.fps / script.speed.max(1));
        let mut out = BytesMut::new();
        for picture in 0.. {
            // The last picture stays: nothing more is sent, but the connection lives.
            let total = if script.many.is_some() { alone } else { self.shared.sent.load(Ordering::Relaxed) };
            let is_over = is_trial || script.pictures > 0 && total >= script.pictures;
            tokio::select! {
                _ = ticks.tick(), if !is_over => {}
                request = self.request() => {
                    let Some(request) = request? else { return Ok(()) };
                    self.answer(&request).await?;
                    continue;
                }
            }
            out.clear();
            match fault {
                Fault::CloseAfter(after) if picture == after => return Ok(()),
                Fault::CutAfter(after) if picture == after => {
                    self.tcp.write_all(&[b'$', 0, 4, 0, 0x80, 96]).await?;
                    return Ok(());
                }
                Fault::LieBefore(before) if picture == before => lies(&mut out),
                Fault::GarbageBefore(before) if picture == before => {
                    out.extend_from_slice(&[0x80, 0x60, 0xff, 0xff, 0x12]);
                }
                _ => {}
            }
            let nals = clip.units[total % clip.units.len()].iter().map(Vec::as_slice);
            let mut packets = 0;
            packetizer.packetize(nals, picture as u32 * 90_000 / clip.fps, |head, payload| {
                packets += 1;
                if fault != Fault::LoseIn(picture) || packets != 2 {
                    interleave(&mut out, 0, head, payload);
                }
            });
            assert!(fault != Fault::LoseIn(picture) || packets >= 2, "picture {picture} is one packet only");
            if script.sound {
                sound.send(&mut out);
            }
            self.tcp.write_all(&out).await?;
            alone = total + 1;
            self.shared.sent.store(total + 1, Ordering::Relaxed);
            self.sent_bytes += out.len() as u64;
            let mut latest = self.shared.latest.lock().unwrap();
            if picture == 0 {
                *latest = Sent { ports, before: first, ..Sent::default() };
            }
            latest.bytes = self.sent_bytes;
            latest.pictures.push((self.sent_bytes, total + 1));
        }
        Ok(())
    }
}

fn interleave(out: &mut BytesMut, channel: u8, head: &[u8], payload: &[u8]) {
    let framing = homing_media::rtsp::interleaved_head(channel, head.len() + payload.len()).unwrap();
    out.extend_from_slice(&framing);
    out.extend_from_slice(head);
    out.extend_from_slice(payload);
}

/// A packet with an impossible header, one with an impossible extension, one with impossible padding, and
/// payloads whose inner sizes reach over their ends. Their sequence numbers are the stream's past, so that
/// the well-formed ones among them are stale.
fn lies(out: &mut BytesMut) {
    let head = rtp::header(false, 96, 65_000, 0, 0x1111);
    for (first, payload) in [(0x40, &[1u8, 2][..]), (0x9f, &[3]), (0xa0, &[200]), (0xbf, &[0xff; 4])] {
        let mut head = head;
        head[0] = first;
        interleave(out, 0, &head, payload);
    }
    interleave(out, 0, &[0x80], &[]);
    interleave(out, 1, &[0x80, 200, 0xff, 0xff], &[1, 2]);
    interleave(out, 99, &head, &[24, 0xff, 0xff, 1]);
}

/// A tone in packets of 20 ms.
struct Sound {
    ssrc: u32,
    sequence: u16,
    timestamp: u32,
}

impl Sound {
    fn new(number: u32) -> Self {
        Self { ssrc: 0x2222 + number, sequence: 100, timestamp: 5_000 }
    }

    /// As much as goes with a picture.
    fn send(&mut self, out: &mut BytesMut) {
        for _ in 0..50 / FPS {
            let payload: Vec<u8> = (0..160)
                .map(|n| {
                    let angle = f64::from(self.timestamp + n) * 0.35;
                    homing_media::g711::Law::Mu.encode((angle.sin() * 8_000.0) as i16)
                })
                .collect();
            let head = rtp::header(false, 0, self.sequence, self.timestamp, self.ssrc);
            interleave(out, 2, &head, &payload);
            self.sequence = self.sequence.wrapping_add(1);
            self.timestamp += 160;
        }
    }
}
