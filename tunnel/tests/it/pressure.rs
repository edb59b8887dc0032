//! Hostile peers at both addresses: floods, silence, bytes that come one by one. Whatever they do, the device beside them
//! is answered as before, and memory stays bounded.
//!
//! Floods come from threads of their own, as from machines of their own; the server and the device beside have one. What
//! is compared is the answers of a device at the attacked server with those of one at another, asked in turn, so that a
//! slow or busy machine is no failure.

use crate::{
    device::Device,
    world::{DEADLINE, World, password, within},
};
use bytes::Bytes;
use homing_base::crowd::Networks;
use homing_protocol::SerialNumber;
use http::{Request, StatusCode};
use std::{
    net::SocketAddr,
    sync::Arc,
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

/// No single answer may take so much longer than beside no attack: what a flood has before it is stopped.
const SLOWEST: Duration = Duration::from_secs(2);

/// Growth of the process that any attack may cause; other tests run in it at the same time.
const MEMORY_MAX_KB: u64 = 96 << 10;

/// TLS as a device does it, to say what no device says behind it.
pub async fn tls(config: Arc<rustls::ClientConfig>, to: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(to).await?;
    TlsConnector::from(config).connect(to.ip().into(), tcp).await
}

/// Reads a head of HTTP/1.1.
pub async fn head(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(from.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Resident memory of this process.
fn memory_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// How long one device takes to answer, beside an attack on its server and beside none: a second server, on a thread of its
/// own, answers for the machine and for whatever else runs on it.
struct Beside<'w> {
    world: &'w World,
    serial: SerialNumber,
    quiet: mpsc::Sender<oneshot::Sender<Duration>>,
    memory_kb: u64,
}

async fn ask(world: &World, serial: SerialNumber) -> Duration {
    let asked = Instant::now();
    let request = Request::builder().uri("/headers").body(Bytes::new()).unwrap();
    let answer = within(world.handle.request(serial, request)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    within(answer.into_body().collect(4096)).await.unwrap();
    asked.elapsed()
}

/// A world where nothing happens; it ends with the sender.
fn quiet_world(serial: SerialNumber) -> mpsc::Sender<oneshot::Sender<Duration>> {
    let (asks, mut asked) = mpsc::channel::<oneshot::Sender<Duration>>(1);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let world = World::new().await;
            let _device = world.ready(&serial.to_string()).await;
            while let Some(answer) = asked.recv().await {
                let _ = answer.send(ask(&world, serial).await);
            }
        });
    });
    asks
}

impl<'w> Beside<'w> {
    async fn new(world: &'w World, serial: SerialNumber) -> Self {
        let beside = Beside { world, serial, quiet: quiet_world(serial), memory_kb: 0 };
        beside.ask_quiet().await;
        Beside { memory_kb: memory_kb(), ..beside }
    }

    async fn ask_quiet(&self) -> Duration {
        let (answer, answered) = oneshot::channel();
        self.quiet.send(answer).await.unwrap();
        within(answered).await.unwrap()
    }

    /// Asks both in turn until `over`, and compares.
    async fn notices_nothing_until(&self, attack: &str, mut over: impl FnMut() -> bool) {
        let (mut times, mut quiet) = (Vec::new(), Vec::new());
        let began = Instant::now();
        while !over() || times.len() < 50 {
            times.push(ask(self.world, self.serial).await);
            quiet.push(self.ask_quiet().await);
            assert!(began.elapsed() < DEADLINE, "{attack} goes on");
            tokio::task::yield_now().await;
        }
        let usual_and_slowest = |mut times: Vec<Duration>| {
            times.sort_unstable();
            (times[times.len() / 2], times[times.len() - 1])
        };
        let (usual, slowest) = usual_and_slowest(times);
        let (usual_quiet, slowest_quiet) = usual_and_slowest(quiet);
        let bound = usual_quiet * 10 + Duration::from_millis(5);
        assert!(usual < bound, "{attack}: answered in {usual:?}, beside none in {usual_quiet:?}");
        assert!(slowest < SLOWEST + slowest_quiet, "{attack}: one was answered in {slowest:?}");
        let grown = memory_kb().saturating_sub(self.memory_kb);
        assert!(grown < MEMORY_MAX_KB, "{attack}: {grown} kB more memory");
    }
}

struct Flood {
    name: &'static str,
    /// After a request was seen on stream 1.
    begin: Vec<u8>,
    piece: Vec<u8>,
    /// Whether the server ends the uplink.
    ends: bool,
}

fn floods() -> Vec<Flood> {
    let flood = |name, begin: Vec<u8>, piece: Vec<u8>| Flood { name, begin, piece, ends: true };
    let ok = frame(1, 4, 1, &[0x88]);
    // content-length: 5, and a body that is another.
    let five = frame(1, 4, 1, &[0x88, 0x0f, 0x0d, 0x01, b'5']);
    let setting = |id: u8, value: u32| [&[0, id][..], &value.to_be_bytes()].concat();
    let windows = [frame(4, 0, 0, &setting(4, 1)), frame(4, 0, 0, &setting(4, 1 << 30))].concat();
    let tables = [frame(4, 0, 0, &setting(1, 0)), frame(4, 0, 0, &setting(1, 1 << 24))].concat();
    let padded = frame(0, 8, 1, &[&[255][..], &[0; 255]].concat());
    vec![
        flood("rapid reset", ok.clone(), frame(3, 0, 1, &[0, 0, 0, 8])),
        flood("promises", ok.clone(), frame(5, 4, 1, &[0, 0, 0, 2, 0x82, 0x84, 0x86])),
        flood("CONTINUATION without end", frame(1, 0, 1, &[0x88]), frame(9, 0, 1, &[])),
        flood("CONTINUATION in bulk", frame(1, 0, 1, &[0x88]), frame(9, 0, 1, &[0x40; 16_384])),
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
        flood("streams that nobody opened", ok.clone(), frame(1, 5, 2, &[0x88])),
        Flood { ends: false, ..flood("a body longer than it says", five, frame(0, 0, 1, &[7; 16_384])) },
        flood("padding", ok, padded),
    ]
}

/// A device that floods, in a thread of its own; `true` if it was stopped.
fn attack(config: Arc<rustls::ClientConfig>, to: SocketAddr, flood: &Flood) -> std::thread::JoinHandle<bool> {
    let (begin, piece) = (flood.begin.clone(), flood.piece.repeat(65_536_usize.div_ceil(flood.piece.len())));
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let flooding = async {
            let mut tls = tls(config, to).await?;
            tls.write_all(UPGRADE).await?;
            head(&mut tls).await?;
            tls.write_all(&frame(4, 0, 0, &[])).await?;
            until_asked(&mut tls).await?;
            tls.write_all(&begin).await?;
            let (mut reader, mut writer) = tokio::io::split(tls);
            let writing = async { while writer.write_all(&piece).await.is_ok() {} };
            let reading = async {
                let mut away = vec![0; 65_536];
                while reader.read(&mut away).await.is_ok_and(|count| count > 0) {}
            };
            tokio::select! { () = writing => (), () = reading => () }
            std::io::Result::Ok(())
        };
        runtime.block_on(async { tokio::time::timeout(ATTACK, flooding).await.is_ok() })
    })
}

/// Reads HTTP/2 until a request was seen.
async fn until_asked(peer: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> std::io::Result<()> {
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
    let world = World::new().await;
    let (good, serving) = world.ready("00408C702009").await;
    let hostile = Device::new("00408C70200A");
    world.register(&hostile).await;
    world.dispatcher.vouch(hostile.serial, hostile.fingerprint).await;
    let beside = Beside::new(&world, good.serial).await;
    for flood in floods() {
        let name = flood.name;
        let attacker = attack(hostile.tls(&world.trust_anchor()), world.external, &flood);
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
    let world = World::with(true, |config| config.limits.exempt = Networks::default()).await;
    let (good, _) = world.ready("00408C702009").await;
    let newcomer = Device::new("00408C70200A");
    world.register(&newcomer).await;
    world.dispatcher.vouch(newcomer.serial, newcomer.fingerprint).await;
    let beside = Beside::new(&world, good.serial).await;
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

/// Goal: who sends a byte now and then, to look alive, is let go at every door and at every stage.
#[tokio::test]
async fn a_byte_now_and_then_does_not_hold_a_connection() {
    let world = World::new().await;
    let (good, _) = world.ready("00408C702009").await;
    let beside = Beside::new(&world, good.serial).await;
    let hello = [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(), &[7; 501]].concat();
    let request =
        format!("GET /api/v1/devices HTTP/1.1\r\nAuthorization: {}\r\nX: {:0500}\r\n", password(), 7);
    let mut drips = JoinSet::new();
    drips.spawn(drip("TLS", TcpStream::connect(world.external).await.unwrap(), hello));
    drips.spawn(drip("HTTP", TcpStream::connect(world.internal).await.unwrap(), request.into_bytes()));
    let inside = tls(good.tls(&world.trust_anchor()), world.external).await.unwrap();
    drips.spawn(drip("upgrade", inside, [UPGRADE, &[b'a'; 500]].concat()[2..].to_vec()));
    while let Some(dripped) = within(drips.join_next()).await {
        let (stage, lasted) = dripped.unwrap();
        assert!(lasted < Duration::from_secs(16), "{stage}: held for {lasted:?}");
    }
    beside.notices_nothing_until("dripping", || true).await;
}

/// Sends a byte now and then until nobody listens any more.
async fn drip(
    stage: &'static str,
    mut peer: impl AsyncRead + AsyncWrite + Unpin,
    bytes: Vec<u8>,
) -> (&'static str, Duration) {
    let began = Instant::now();
    for byte in bytes {
        let closed = async {
            peer.write_all(&[byte]).await?;
            peer.flush().await?;
            peer.read_u8().await
        };
        match tokio::time::timeout(Duration::from_millis(200), closed).await {
            // Nothing was said: it is still there.
            Err(_) => (),
            Ok(_) => return (stage, began.elapsed()),
        }
    }
    panic!("{stage}: every byte was taken");
}

/// Goal: a device that answers a byte at a time, on every stream that it has, delays itself alone.
#[tokio::test]
async fn a_device_that_answers_byte_by_byte_delays_nobody_else() {
    let world = World::new().await;
    let (good, _) = world.ready("00408C702009").await;
    let (slow, _) = world.ready("00408C70200A").await;
    let beside = Beside::new(&world, good.serial).await;
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
