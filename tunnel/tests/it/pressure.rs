//! Hostile peers at both addresses: floods, silence, bytes that come one by one. Whatever they do, the device beside them
//! is answered as before, and memory stays bounded.
//!
//! Floods come from threads of their own, as from machines of their own; the server and the device beside have one. What
//! is compared is the answers of a device at the attacked server with those of one at another, asked in turn, so that a
//! slow or busy machine is no failure.

use crate::{
    device::Device,
    player::Player,
    world::{DEADLINE, World, password, within},
};
use bytes::Bytes;
use futures_util::future::join_all;
use homing_base::{crowd::Networks, tls::client_config};
use homing_protocol::SerialNumber;
use homing_tunnel::Config;
use http::{Request, StatusCode};
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// The head that begins an uplink.
pub const UPGRADE: &[u8] =
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c-reverse\r\n\r\n";

/// How long an attacker goes on that nobody stops.
const ATTACK: Duration = Duration::from_millis(1500);

/// Work of a thread at a time, or rest.
const PIECE: Duration = Duration::from_micros(200);

/// No single answer may take so much longer than beside no attack: what a flood has before it is stopped.
const SLOWEST: Duration = Duration::from_secs(2);

/// Growth of the process that any attack may cause.
const MEMORY_MAX_KB: u64 = 32 << 10;

/// Whether this is the test's own process; else it is run in one, and passed there: memory is told by process, and other
/// tests have theirs.
pub fn is_alone(test: &str) -> bool {
    const ALONE: &str = "HOMING_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let mut own = std::process::Command::new(std::env::current_exe().unwrap());
    let ended = own.args(["--exact", test, "--nocapture"]).env(ALONE, "1").output().unwrap();
    let said = [ended.stdout, ended.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(ended.status.success() && said.contains("1 passed"), "{said}");
    false
}

/// TLS as a device does it, to say what no device says behind it.
pub async fn tls(config: Arc<rustls::ClientConfig>, to: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(to).await?;
    TlsConnector::from(config).connect(to.ip().into(), tcp).await
}

/// TLS as a VMS does it.
pub fn vms_tls(world: &World) -> rustls::ClientConfig {
    client_config(Some(&world.trust_anchor())).unwrap()
}

/// Reads a head of HTTP/1.1.
pub async fn head(from: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(from.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// A frame of HTTP/2.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Resident memory of this process.
fn memory_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// What is asked beside an attack.
#[derive(Clone, Copy, Debug)]
pub enum Ask {
    /// A device, through its uplink.
    Device,
    /// To be let in at the external address, as a device that dials.
    Dial,
    /// The internal address, by HTTP and by HTTPS.
    Http,
    Https,
    /// The gateway, what a device has to show.
    Rtsp,
    Rtsps,
}

/// Something at every listener.
const EVERYWHERE: &[Ask] = &[Ask::Device, Ask::Dial, Ask::Http, Ask::Https, Ask::Rtsp, Ask::Rtsps];

/// Opens every listener.
fn every_listener(config: &mut Config) {
    config.gateway.rtsp = "127.0.0.1:0".into();
    config.gateway.rtsps = "127.0.0.1:0".into();
    config.gateway.greeting_ms = 10_000;
}

/// Who asks.
struct Neighbour {
    serial: SerialNumber,
    newcomer: Arc<rustls::ClientConfig>,
    vms: Arc<rustls::ClientConfig>,
}

impl Neighbour {
    async fn of(world: &World, serial: SerialNumber) -> Self {
        let newcomer = Device::new("00408C70200F");
        world.register(&newcomer).await;
        world.dispatcher.vouch(newcomer.serial, newcomer.fingerprint).await;
        Neighbour { serial, newcomer: newcomer.tls(&world.trust_anchor()), vms: vms_tls(world).into() }
    }

    /// How long it takes to be answered.
    async fn ask(&self, world: &World, what: Ask) -> Duration {
        let asked = Instant::now();
        within(async {
            match what {
                Ask::Device => {
                    let request = Request::builder().uri("/headers").body(Bytes::new()).unwrap();
                    let answer = world.handle.request(self.serial, request).await.unwrap();
                    assert_eq!(answer.status(), StatusCode::OK);
                    answer.into_body().collect(4096).await.unwrap();
                }
                Ask::Dial => {
                    let mut uplink = tls(Arc::clone(&self.newcomer), world.external).await.unwrap();
                    uplink.write_all(UPGRADE).await.unwrap();
                    assert!(head(&mut uplink).await.unwrap().starts_with("HTTP/1.1 101 "));
                }
                Ask::Http => get(TcpStream::connect(world.internal).await.unwrap()).await,
                Ask::Https => get(tls(Arc::clone(&self.vms), world.internal).await.unwrap()).await,
                Ask::Rtsp => {
                    let path = format!("/{}", self.serial);
                    drop(Player::at(world.rtsp.unwrap(), &path).await.describe().await);
                }
                Ask::Rtsps => {
                    let gateway = world.rtsps.unwrap();
                    let inside = tls(Arc::clone(&self.vms), gateway).await.unwrap();
                    let url = format!("rtsps://{gateway}/{}", self.serial);
                    drop(Player::over(Box::new(inside), url).describe().await);
                }
            }
        })
        .await;
        asked.elapsed()
    }
}

/// A request of a VMS's.
async fn get(mut io: impl AsyncRead + AsyncWrite + Unpin) {
    let request = format!(
        "GET /api/v1/server HTTP/1.1\r\nHost: tunnel\r\nAuthorization: {}\r\nConnection: close\r\n\r\n",
        password()
    );
    io.write_all(request.as_bytes()).await.unwrap();
    assert!(head(&mut io).await.unwrap().starts_with("HTTP/1.1 200 "));
}

/// How long what is asked takes, beside an attack on its server and beside none: a second server, on a thread of its own,
/// answers for the machine and for whatever else runs on it.
pub struct Beside<'w> {
    world: &'w World,
    neighbour: Neighbour,
    asks: &'static [Ask],
    quiet: mpsc::Sender<(Ask, oneshot::Sender<Duration>)>,
    quiet_works: Arc<AtomicBool>,
    memory_kb: u64,
}

/// A world where nothing happens; it ends with the sender.
fn quiet_world(
    serial: SerialNumber,
    works: Arc<AtomicBool>,
) -> mpsc::Sender<(Ask, oneshot::Sender<Duration>)> {
    let (asks, mut asked) = mpsc::channel::<(Ask, oneshot::Sender<Duration>)>(1);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let world = World::with(true, every_listener).await;
            let (device, _) = world.ready(&serial.to_string()).await;
            device.camera.switch_on();
            let neighbour = Neighbour::of(&world, serial).await;
            let mut working = JoinSet::new();
            working.spawn(async move {
                loop {
                    let rest = if works.load(Ordering::Relaxed) { Duration::ZERO } else { PIECE };
                    tokio::time::sleep(rest).await;
                    let began = Instant::now();
                    while works.load(Ordering::Relaxed) && began.elapsed() < PIECE {
                        std::hint::spin_loop();
                    }
                    tokio::task::yield_now().await;
                }
            });
            while let Some((what, answer)) = asked.recv().await {
                let _ = answer.send(neighbour.ask(&world, what).await);
            }
        });
    });
    asks
}

impl<'w> Beside<'w> {
    pub async fn new(world: &'w World, serial: SerialNumber, asks: &'static [Ask]) -> Self {
        let neighbour = Neighbour::of(world, serial).await;
        let quiet_works = Arc::new(AtomicBool::new(false));
        let quiet = quiet_world(serial, Arc::clone(&quiet_works));
        let beside = Beside { world, neighbour, asks, quiet, quiet_works, memory_kb: 0 };
        for what in asks {
            beside.ask_quiet(*what).await;
        }
        Beside { memory_kb: memory_kb(), ..beside }
    }

    async fn ask_quiet(&self, what: Ask) -> Duration {
        let (answer, answered) = oneshot::channel();
        self.quiet.send((what, answer)).await.unwrap();
        within(answered).await.unwrap()
    }

    /// Whether the quiet server's thread is busy, too. A thread that works waits for its turn where one that has slept does
    /// not: beside a flood that is let pass, as a long upload is, that is no answer's delay by the flood.
    pub fn quiet_works(&self, works: bool) {
        self.quiet_works.store(works, Ordering::Relaxed);
    }

    /// Asks both in turn until `over`, and compares.
    pub async fn notices_nothing_until(&self, attack: &str, mut over: impl FnMut() -> bool) {
        let mut asked = vec![(Vec::new(), Vec::new()); self.asks.len()];
        let began = Instant::now();
        while !over() || asked[0].0.len() < 50 {
            for (what, (times, quiet)) in self.asks.iter().zip(&mut asked) {
                times.push(self.neighbour.ask(self.world, *what).await);
                quiet.push(self.ask_quiet(*what).await);
            }
            assert!(began.elapsed() < DEADLINE, "{attack} goes on");
            tokio::task::yield_now().await;
        }
        let usual_and_slowest = |mut times: Vec<Duration>| {
            times.sort_unstable();
            (times[times.len() / 2], times[times.len() - 1])
        };
        for (what, (times, quiet)) in self.asks.iter().zip(asked) {
            let (usual, slowest) = usual_and_slowest(times);
            let (usual_quiet, slowest_quiet) = usual_and_slowest(quiet);
            let bound = usual_quiet * 10 + Duration::from_millis(5);
            assert!(
                usual < bound,
                "{attack}, {what:?}: answered in {usual:?}, beside none in {usual_quiet:?}"
            );
            assert!(slowest < SLOWEST + slowest_quiet, "{attack}, {what:?}: one was answered in {slowest:?}");
        }
        let grown = memory_kb().saturating_sub(self.memory_kb);
        assert!(grown < MEMORY_MAX_KB, "{attack}: {grown} kB more memory");
    }
}

pub struct Flood {
    pub name: &'static str,
    /// Opens stream 1.
    pub begin: Vec<u8>,
    pub piece: Vec<u8>,
    /// Whether the server ends the connection.
    pub ends: bool,
}

/// What can be done with stream 1 and beside it, once it has a head of these fields.
pub fn floods(head: &[u8]) -> Vec<Flood> {
    let flood = |name, begin: Vec<u8>, piece: Vec<u8>| Flood { name, begin, piece, ends: true };
    let ok = frame(1, 4, 1, head);
    // content-length: 5, and a body that is another.
    let five = frame(1, 4, 1, &[head, &[0x0f, 0x0d, 0x01, b'5']].concat());
    let setting = |id: u8, value: u32| [&[0, id][..], &value.to_be_bytes()].concat();
    let windows = [frame(4, 0, 0, &setting(4, 1)), frame(4, 0, 0, &setting(4, 1 << 30))].concat();
    let tables = [frame(4, 0, 0, &setting(1, 0)), frame(4, 0, 0, &setting(1, 1 << 24))].concat();
    let padded = frame(0, 8, 1, &[&[255][..], &[0; 255]].concat());
    vec![
        flood("rapid reset", ok.clone(), frame(3, 0, 1, &[0, 0, 0, 8])),
        flood("promises", ok.clone(), frame(5, 4, 1, &[0, 0, 0, 2, 0x82, 0x84, 0x86])),
        flood("CONTINUATION without end", frame(1, 0, 1, head), frame(9, 0, 1, &[])),
        flood("CONTINUATION in bulk", frame(1, 0, 1, head), frame(9, 0, 1, &[0x40; 16_384])),
        flood("PING", ok.clone(), frame(6, 0, 0, &[7; 8])),
        flood("answers to no PING", ok.clone(), frame(6, 1, 0, &[7; 8])),
        flood("SETTINGS", ok.clone(), frame(4, 0, 0, &[])),
        flood("windows that change", ok.clone(), windows),
        flood("tables that change", ok.clone(), tables),
        flood("answers to no SETTINGS", ok.clone(), frame(4, 1, 0, &[])),
        flood("WINDOW_UPDATE by one", ok.clone(), frame(8, 0, 0, &[0, 0, 0, 1])),
        flood("WINDOW_UPDATE of a stream", ok.clone(), frame(8, 0, 1, &[0, 0, 0, 1])),
        flood("WINDOW_UPDATE of nothing", ok.clone(), frame(8, 0, 1, &[0, 0, 0, 0])),
        flood("a window beyond all", ok.clone(), frame(8, 0, 0, &[0x7f, 0xff, 0xff, 0xff])),
        flood("PRIORITY", ok.clone(), frame(2, 0, 3, &[0, 0, 0, 0, 16])),
        flood("empty DATA", ok.clone(), frame(0, 0, 1, &[])),
        flood("tiny DATA", ok.clone(), frame(0, 0, 1, &[7])),
        flood("GOAWAY", ok.clone(), frame(7, 0, 0, &[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0])),
        flood("what nobody knows", ok.clone(), frame(200, 0, 0, &[])),
        flood("a length that lies", ok.clone(), vec![0xff; 64]),
        flood("streams that nobody opened", ok.clone(), frame(1, 5, 2, head)),
        // What is over for its stream may be on its way; HTTP/2 lets it pass.
        Flood { ends: false, ..flood("a body longer than it says", five, frame(0, 0, 1, &[7; 16_384])) },
        flood("padding", ok, padded),
    ]
}

/// Floods over a connection that `open` opens, in a thread of its own; `true` if it was stopped.
pub fn attack<S: AsyncRead + AsyncWrite>(
    flood: &Flood,
    open: impl Future<Output = io::Result<S>> + Send + 'static,
) -> std::thread::JoinHandle<bool> {
    let (begin, piece) = (flood.begin.clone(), flood.piece.repeat(65_536_usize.div_ceil(flood.piece.len())));
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let flooding = async {
            let (mut reader, mut writer) = tokio::io::split(open.await?);
            let writing = async {
                writer.write_all(&begin).await?;
                loop {
                    writer.write_all(&piece).await?;
                }
            };
            let reading = async {
                let mut away = vec![0; 65_536];
                while reader.read(&mut away).await? > 0 {}
                io::Result::Ok(())
            };
            tokio::select! { ended = writing => ended, ended = reading => ended }
        };
        runtime.block_on(async { tokio::time::timeout(ATTACK, flooding).await.is_ok() })
    })
}

/// An uplink that was asked for something.
async fn uplink(config: Arc<rustls::ClientConfig>, to: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
    let mut tls = tls(config, to).await?;
    tls.write_all(UPGRADE).await?;
    head(&mut tls).await?;
    tls.write_all(&frame(4, 0, 0, &[])).await?;
    until_asked(&mut tls).await?;
    Ok(tls)
}

/// Reads HTTP/2 until a request was seen.
async fn until_asked(peer: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
    peer.read_exact(&mut [0; 24]).await?;
    loop {
        let mut head = [0; 9];
        peer.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        peer.read_exact(&mut vec![0; length as usize]).await?;
        if head[3] == 1 {
            return Ok(());
        }
    }
}

/// Goal: whatever frames a device floods the server with, its own uplink ends, and nobody else notices.
#[tokio::test]
async fn a_device_may_flood_as_it_likes_and_the_one_beside_it_notices_nothing() {
    if !is_alone("pressure::a_device_may_flood_as_it_likes_and_the_one_beside_it_notices_nothing") {
        return;
    }
    let world = World::new().await;
    let (good, serving) = world.ready("00408C702009").await;
    let hostile = Device::new("00408C70200A");
    world.register(&hostile).await;
    world.dispatcher.vouch(hostile.serial, hostile.fingerprint).await;
    let beside = Beside::new(&world, good.serial, &[Ask::Device]).await;
    // The head of its answer: 200.
    for flood in floods(&[0x88]) {
        let name = flood.name;
        let attacker = attack(&flood, uplink(hostile.tls(&world.trust_anchor()), world.external));
        world.device_until(hostile.serial, |device| device.connected).await;
        // It is asked for something, so that it has a stream to misuse; what it answers does not matter.
        let (handle, serial) = (world.handle.clone(), hostile.serial);
        let asking = world.site.spawn(async move {
            let request = Request::builder().uri("/hello").body(Bytes::new()).unwrap();
            if let Ok(answer) = handle.request(serial, request).await {
                let _ = answer.into_body().collect(1 << 20).await;
            }
        });
        let connected = || world.handle.device(hostile.serial).unwrap().connected;
        beside.quiet_works(!flood.ends);
        beside.notices_nothing_until(name, || !connected()).await;
        let stopped = attacker.join().unwrap();
        assert!(stopped || !flood.ends, "{name}: nobody stopped it");
        asking.abort();
    }
    assert!(!serving.is_finished());
}

/// Goal: ten thousand connections that say nothing, from a hundred networks, cost little, and a device that comes then is
/// let in at once.
#[tokio::test]
async fn ten_thousand_silent_connections_keep_nobody_out() {
    if !is_alone("pressure::ten_thousand_silent_connections_keep_nobody_out") {
        return;
    }
    let world = World::with(true, |config| config.limits.exempt = Networks::default()).await;
    let (good, _) = world.ready("00408C702009").await;
    let newcomer = Device::new("00408C70200A");
    world.register(&newcomer).await;
    world.dispatcher.vouch(newcomer.serial, newcomer.fingerprint).await;
    let beside = Beside::new(&world, good.serial, &[Ask::Device]).await;
    let external = world.external;
    let attacker = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut silent = Vec::new();
        runtime.block_on(async {
            for index in 0..10_000_u32 {
                let socket = TcpSocket::new_v4().unwrap();
                socket.bind(SocketAddr::from(([127, 0, 1, (index % 100) as u8 + 1], 0))).unwrap();
                silent.extend(socket.connect(external).await.and_then(TcpStream::into_std));
            }
        });
        silent
    });
    beside.notices_nothing_until("silence", || attacker.is_finished()).await;
    let silent = attacker.join().unwrap();
    assert_eq!(silent.len(), 10_000);
    let began = Instant::now();
    world.connect(&newcomer).await;
    assert!(began.elapsed() < Duration::from_secs(5), "let in after {:?}", began.elapsed());
    assert!(world.metric("homing_tunnel_refused_total{reason=\"pushed-out\"}") > 5000.0);
    beside.notices_nothing_until("silence that stays", || true).await;
}

/// Goal: who sends a byte now and then, to look alive, is let go at every listener and at every stage; and while
/// hundreds do so, nobody else notices, at any of them.
#[tokio::test]
async fn a_byte_now_and_then_does_not_hold_a_connection() {
    if !is_alone("pressure::a_byte_now_and_then_does_not_hold_a_connection") {
        return;
    }
    /// At each stage.
    const DRIPS: usize = 60;
    let world = World::with(true, every_listener).await;
    let (good, _) = world.ready("00408C702009").await;
    good.camera.switch_on();
    let beside = Beside::new(&world, good.serial, EVERYWHERE).await;
    let (external, internal) = (world.external, world.internal);
    let (rtsp, rtsps) = (world.rtsp.unwrap(), world.rtsps.unwrap());
    let hello = [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(), &[7; 501]].concat();
    let authorization = format!("Authorization: {}\r\nX: {:0500}\r\n", password(), 7);
    let http = format!("GET /api/v1/devices HTTP/1.1\r\n{authorization}").into_bytes();
    let describe = format!("DESCRIBE rtsp://x/{} RTSP/1.0\r\nX: {:0500}\r\n", good.serial, 7).into_bytes();
    // The preface, and settings without end.
    let http2 = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\x3f\xfc\x04".as_slice(), &[0; 500]].concat();
    let upgrade = [&UPGRADE[..UPGRADE.len() - 2], b"X: ", &[b'a'; 500]].concat();
    let stages = [
        ("TLS", external, None, hello.clone()),
        ("upgrade", external, Some(good.tls(&world.trust_anchor())), upgrade),
        ("HTTP", internal, None, http.clone()),
        ("HTTP/2", internal, None, http2),
        ("HTTPS", internal, None, hello.clone()),
        ("HTTP inside TLS", internal, Some(vms_tls(&world).into()), http),
        ("RTSP", rtsp, None, describe.clone()),
        ("RTSPS", rtsps, None, hello),
        ("RTSP inside TLS", rtsps, Some(vms_tls(&world).into()), describe),
    ];
    let attacker = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let all = stages.iter().flat_map(|stage| std::iter::repeat_n(stage, DRIPS));
        runtime.block_on(join_all(all.map(async |(stage, to, config, bytes)| {
            let lasted = match config {
                Some(config) => drip(tls(Arc::clone(config), *to).await.unwrap(), bytes).await,
                None => drip(TcpStream::connect(*to).await.unwrap(), bytes).await,
            };
            (*stage, lasted)
        })))
    });
    let mut most = 0.0_f64;
    let over = || {
        most = most.max(world.metric("homing_tunnel_gateway_connections"));
        attacker.is_finished()
    };
    beside.notices_nothing_until("dripping", over).await;
    assert!(most >= (3 * DRIPS) as f64, "{most} at once");
    for (stage, lasted) in attacker.join().unwrap() {
        let lasted = lasted.unwrap_or_else(|| panic!("{stage}: every byte was taken"));
        assert!(lasted < Duration::from_secs(16), "{stage}: held for {lasted:?}");
        assert!(lasted > Duration::from_secs(5), "{stage}: let go after {lasted:?}, beside nothing");
    }
}

/// Sends a byte now and then until nobody listens any more; `None` if that never was so.
async fn drip(mut peer: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8]) -> Option<Duration> {
    let began = Instant::now();
    for byte in bytes {
        let closed = async {
            peer.write_all(&[*byte]).await?;
            peer.flush().await?;
            loop {
                // What it says does not matter.
                peer.read_u8().await?;
            }
        };
        let closed: Result<io::Result<()>, _> =
            tokio::time::timeout(Duration::from_millis(200), closed).await;
        if closed.is_ok() {
            return Some(began.elapsed());
        }
    }
    None
}

/// Goal: a device that answers a byte at a time, on every stream that it has, delays itself alone.
#[tokio::test]
async fn a_device_that_answers_byte_by_byte_delays_nobody_else() {
    if !is_alone("pressure::a_device_that_answers_byte_by_byte_delays_nobody_else") {
        return;
    }
    let world = World::new().await;
    let (good, _) = world.ready("00408C702009").await;
    let (slow, _) = world.ready("00408C70200A").await;
    let beside = Beside::new(&world, good.serial, &[Ask::Device]).await;
    let mut bodies = Vec::new();
    for _ in 0..64 {
        let request = Request::builder().uri("/trickle").body(Bytes::new()).unwrap();
        bodies.push(within(world.handle.request(slow.serial, request)).await.unwrap().into_body());
    }
    let ends = Instant::now() + Duration::from_secs(1);
    beside.notices_nothing_until("trickle", || Instant::now() > ends).await;
    let came = within(bodies[0].next()).await.unwrap().unwrap();
    assert!(!came.is_empty(), "it still trickles");
}
