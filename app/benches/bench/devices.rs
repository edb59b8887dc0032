//! A tunnel server with many simulated devices, without cameras: `homing tunnel` as a process, a
//! dispatcher that vouches for everybody, and devices that are nothing but an uplink.
//!
//! The dispatcher is simulated because it has no part in what is measured here; the tunnel server, its
//! keys, its database and its proxy are the real ones.

use crate::{
    harness::{Folder, Process, homing, seconds, wait_for},
    rtsp_camera,
};
use anyhow::Context;
use axum::{
    Json, Router,
    extract::{Path, Query, State},
    routing::{get, put},
};
use homing_base::{Stop, tls};
use homing_protocol::{
    SerialNumber, Step,
    api::dispatcher::{Changes, NewRegistration, Registration, RegistrationState},
    onvif::{self, Message as _, device, media2},
    soap::{Envelope, SoapVersion},
};
use homing_uplink::{Dialer, Fingerprint, Incoming, TlsPolicy, client_tls_config, roots_from_pem};
use http::{Method, Response};
use rcgen::{CertificateParams, DnType, KeyPair};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// The internal address's password.
pub const PASSWORD: &str = "bench-internal-password";
/// Frames a second.
pub const FPS: u64 = 8;
/// A camera's frame: 500 kbit/s at 8 frames a second.
pub const FRAME_BYTES: usize = 500_000 / 8 / FPS as usize;
/// A packet of it, as RTP over Ethernet has them, with its interleaved head.
pub const PACKET_BYTES: usize = 1404;
/// Registrations under way at once; each waits for the disk.
const REGISTERED_AT_ONCE: usize = 16;
/// Devices that dial at once: below what a tunnel server lets in from one network.
const DIALED_AT_ONCE: usize = 128;
/// Where the simulated devices serve RTSP over WebSocket.
const RTSP_PATH: &str = "/rtsp";

/// What one device sends a second, in bytes.
pub const DEVICE_BYTES_PER_S: u64 = FRAME_BYTES as u64 * FPS;

/// Written at once by a camera that sends as fast as it can, in bytes.
const BULK_WRITE: usize = 64 * 1024;

/// What is asked of a camera that answers, and what it answers: as long as small RTSP and CGI messages are.
pub const SMALL_REQUEST: &[u8] = b"GET_PARAMETER /camera RTSP/1.0\r\nCSeq: 7\r\nSession: 12345678\r\n\r\n";
/// See [`SMALL_REQUEST`].
pub const SMALL_ANSWER: &[u8] = b"RTSP/1.0 200 OK\r\nCSeq: 7\r\nSession: 12345678\r\n\r\n";

/// Whether simulated cameras send now.
pub type Sending = Arc<AtomicBool>;

/// What simulated cameras do on their connections.
#[derive(Clone, Copy)]
pub enum Camera {
    /// Send video of 500 kbit/s.
    Video,
    /// Send as fast as they can.
    Bulk,
    /// Answer small requests.
    Answers,
    /// As [`Camera::Video`], in packets that are RTP.
    Rtp,
    /// The same, once RTSP was spoken.
    Rtsp,
}

impl Camera {
    /// Until the connection ends. `phase` spreads the frames of many.
    pub async fn run(self, mut on: impl AsyncRead + AsyncWrite + Unpin, sending: Sending, phase: u64) {
        match self {
            Camera::Video => send_frames(on, sending, phase).await,
            Camera::Rtp => rtsp_camera::send(on, sending).await,
            Camera::Rtsp => {
                if rtsp_camera::answer_until_play(&mut on).await.is_ok() {
                    rtsp_camera::send(on, sending).await;
                }
            }
            Camera::Bulk => {
                let bytes = vec![0x24; BULK_WRITE];
                loop {
                    while !sending.load(Ordering::Relaxed) {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    if on.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
            }
            Camera::Answers => {
                let mut request = [0; SMALL_REQUEST.len()];
                while on.read_exact(&mut request).await.is_ok() {
                    if on.write_all(SMALL_ANSWER).await.is_err() || on.flush().await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

/// Sends frames, packet by packet, in bursts, while `sending`; ends with the connection.
async fn send_frames(mut to: impl AsyncWrite + Unpin, sending: Sending, phase: u64) {
    let packet = [0x24u8; PACKET_BYTES];
    let start = tokio::time::Instant::now() + Duration::from_micros(phase % (1_000_000 / FPS));
    let mut frames = tokio::time::interval_at(start, Duration::from_micros(1_000_000 / FPS));
    loop {
        frames.tick().await;
        if !sending.load(Ordering::Relaxed) {
            continue;
        }
        let mut left = FRAME_BYTES;
        while left > 0 {
            let length = left.min(PACKET_BYTES);
            if to.write_all(&packet[..length]).await.is_err() {
                return;
            }
            left -= length;
        }
        if to.flush().await.is_err() {
            return;
        }
    }
}

/// Keys and trust of one simulated device.
struct Device {
    serial: SerialNumber,
    certificate: rustls::pki_types::CertificateDer<'static>,
    key: rustls::pki_types::PrivateKeyDer<'static>,
    fingerprint: String,
}

fn device(number: u32) -> anyhow::Result<Device> {
    let [a, b, c, d] = number.to_be_bytes();
    let serial = SerialNumber::new([2, 0xBE, a, b, c, d]);
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 5]), serial.to_string());
    let certificate = params.self_signed(&key)?.der().clone();
    let fingerprint = Fingerprint::of_certificate(&certificate)?.to_string();
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
    Ok(Device { serial, certificate, key, fingerprint })
}

/// A dispatcher that vouches for everybody at once.
struct Voucher {
    fingerprints: HashMap<SerialNumber, String>,
    trust_anchor: Mutex<String>,
}

async fn register(
    State(voucher): State<Arc<Voucher>>,
    Path(serial): Path<SerialNumber>,
    Json(new): Json<NewRegistration>,
) -> Json<Registration> {
    *voucher.trust_anchor.lock().unwrap() = new.trust_anchor;
    let fingerprint = voucher.fingerprints.get(&serial).cloned();
    let signed = |key: &String| homing_protocol::voucher::voucher(&new.voucher_key, serial, key);
    Json(Registration {
        serial,
        state: RegistrationState::Dispatched,
        voucher: fingerprint.as_ref().map(signed),
        fingerprint,
        problem: None,
        step: Step::Dispatch,
        since: jiff::Timestamp::now(),
        seq: 1,
        next: None,
        contested: None,
    })
}

async fn changes(Query(query): Query<HashMap<String, u64>>) -> Json<Changes> {
    tokio::time::sleep(Duration::from_secs(query.get("wait_s").copied().unwrap_or(25))).await;
    Json(Changes { changes: Vec::new(), last: query.get("after").copied().unwrap_or(0) })
}

/// The tunnel server and its devices; everything ends with it.
pub struct World {
    /// `homing tunnel`.
    pub server: Process,
    /// The internal address.
    pub internal: String,
    /// The RTSP gateway.
    pub rtsp: String,
    /// The devices' serial numbers.
    pub serials: Vec<SerialNumber>,
    /// Whether the devices' cameras send, once somebody watches.
    pub sending: Sending,
    external: String,
    camera: Camera,
    devices: Vec<Device>,
    /// One a device, made when it first connects: it keeps the TLS session.
    dialers: Vec<Dialer>,
    /// Cuts the uplinks that stand, by the device's place in the list, as a power cut at the devices does.
    cut: BTreeMap<usize, CancellationToken>,
    /// Those whose uplink stands, as the devices know.
    connected: Arc<Mutex<BTreeSet<SerialNumber>>>,
    voucher: Arc<Voucher>,
    stop: Stop,
    config: PathBuf,
    _folder: Folder,
}

impl World {
    /// A tunnel server at which so many devices are registered; none is connected.
    pub async fn start(count: u32, camera: Camera) -> anyhow::Result<World> {
        let folder = Folder::new();
        let stop = Stop::new();
        let devices: Vec<Device> = (0..count).map(device).collect::<anyhow::Result<_>>()?;
        let fingerprints = devices.iter().map(|device| (device.serial, device.fingerprint.clone())).collect();
        let voucher = Arc::new(Voucher { fingerprints, trust_anchor: Default::default() });

        let ca = Arc::new(tls::PrivateCa::open(folder.path(), "dispatcher")?);
        let anchor = ca.trust_anchor();
        let leaf = tls::Leaf::issued_by(ca, vec!["127.0.0.1".to_owned()], Duration::from_secs(86_400))?;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let api = listener.local_addr()?;
        let router = Router::new()
            .route("/api/v1/registrations/{serial}", put(register))
            .route("/api/v1/changes", get(changes))
            .with_state(voucher.clone());
        stop.spawn(homing_base::http::serve(listener, router, Some(tls::server_config(leaf)?), stop.clone()));

        let (external, internal, rtsp) = (free_address()?, free_address()?, free_address()?);
        let config = folder.join("tunnel.toml");
        let anchor_file = folder.join("anchor.pem");
        fs::write(&anchor_file, anchor)?;
        fs::write(
            &config,
            format!(
                "[tunnel]\nexternal = '{external}'\ninternal = '{internal}'\npassword = '{PASSWORD}'\n\
                 data = '{}'\n[tunnel.dispatcher]\naddress = 'https://{api}'\ntrust_anchor = '{}'\n\
                 account = 'bench'\npassword = 'bench'\n[tunnel.limits]\nuplinks = {count}\n\
                 [tunnel.gateway]\nrtsp = '{rtsp}'\n[log]\nfilter = 'warn'\n",
                folder.join("tunnel").display(),
                anchor_file.display(),
            ),
        )?;
        fs::set_permissions(&config, fs::Permissions::from_mode(0o600))?;
        let server = Self::spawn(&config);

        let serials = devices.iter().map(|device| device.serial).collect();
        let world = World {
            server,
            internal,
            rtsp,
            serials,
            sending: Sending::default(),
            external,
            camera,
            devices,
            dialers: Vec::new(),
            cut: BTreeMap::new(),
            connected: Arc::default(),
            voucher,
            stop,
            config,
            _folder: folder,
        };
        world.register_all().await?;
        Ok(world)
    }

    fn spawn(config: &std::path::Path) -> Process {
        let mut command = std::process::Command::new(homing());
        Process::spawn("homing tunnel", command.arg("tunnel").arg("--config").arg(config))
    }

    /// Ends the tunnel server as a crash does (SIGKILL), and starts it again.
    pub async fn crash(&mut self) -> anyhow::Result<()> {
        self.server.kill();
        self.cut_all_but(0);
        self.server = Self::spawn(&self.config);
        let http = self.http();
        tokio::task::spawn_blocking(move || wait_until_it_answers(&http)).await.context("after the crash")
    }

    /// The internal address, with its password.
    fn http(&self) -> crate::harness::Http {
        crate::harness::Http::new(&format!("http://{}", self.internal)).basic("vms", PASSWORD)
    }

    async fn register_all(&self) -> anyhow::Result<()> {
        let (http, serials) = (self.http(), self.serials.clone());
        tokio::task::spawn_blocking(move || {
            wait_until_it_answers(&http);
            std::thread::scope(|scope| {
                for some in serials.chunks(serials.len().div_ceil(REGISTERED_AT_ONCE)) {
                    let http = http.clone();
                    scope.spawn(move || {
                        for serial in some {
                            let new = serde_json::json!({
                                "serial": serial, "oak": "0000-0000-0000", "user": "root", "password": "bench"
                            });
                            http.post("/api/v1/devices", &new).unwrap();
                        }
                    });
                }
            });
        })
        .await
        .context("registering")
    }

    /// Connects every device that is not, a few at a time, and waits until all are. How long it took.
    pub async fn connect_all(&mut self) -> anyhow::Result<Duration> {
        if self.dialers.is_empty() {
            let anchor = self.voucher.trust_anchor.lock().unwrap().clone();
            for device in &self.devices {
                let tls = client_tls_config(
                    roots_from_pem(anchor.as_bytes()).map_err(anyhow::Error::msg)?,
                    vec![device.certificate.clone()],
                    device.key.clone_key(),
                    TlsPolicy::Tls13,
                );
                let tls = tls.map_err(anyhow::Error::msg)?;
                self.dialers.push(Dialer::new(self.external.parse()?, Arc::new(tls)));
            }
        }
        let began = tokio::time::Instant::now();
        let missing = self.dialers.iter().enumerate().filter(|(number, _)| !self.cut.contains_key(number));
        let mut missing =
            missing.map(|(number, dialer)| (number, dialer.clone())).collect::<Vec<_>>().into_iter();
        // In tasks of their own: those who are connected already are to have their turn.
        let mut dialing = JoinSet::new();
        loop {
            while dialing.len() < DIALED_AT_ONCE
                && let Some((number, dialer)) = missing.next()
            {
                dialing.spawn(async move { (number, dialer.dial().await) });
            }
            let Some(dialed) = dialing.join_next().await else { break };
            let (number, dialed) = dialed?;
            let (sending, connected, stop) =
                (self.sending.clone(), self.connected.clone(), self.stop.clone());
            let (dialed, cut, camera) = (dialed?, CancellationToken::new(), self.camera);
            self.cut.insert(number, cut.clone());
            let serial = self.serials[number];
            connected.lock().unwrap().insert(serial);
            self.stop.spawn(async move {
                let service = move |incoming| answer(incoming, camera, sending.clone(), number as u64 * 7919);
                let serving = dialed.serve(Arc::new(service), Default::default(), stop.token().clone());
                // None: dropped, which closes the socket without a word.
                let ended = cut.run_until_cancelled(serving).await;
                connected.lock().unwrap().remove(&serial);
                if let Some(ended) = ended.filter(|_| !stop.is_stopped() && !cut.is_cancelled()) {
                    eprintln!("a device's uplink ended: {ended}");
                }
            });
        }
        Ok(began.elapsed())
    }

    /// Cuts the uplinks of all devices but the first `kept`.
    pub fn cut_all_but(&mut self, kept: usize) {
        self.cut.split_off(&kept).into_values().for_each(|cut| cut.cancel());
    }

    /// Which devices are connected, as the tunnel server says.
    async fn told_connected(&self) -> anyhow::Result<BTreeSet<SerialNumber>> {
        let http = self.http();
        let devices = tokio::task::spawn_blocking(move || http.json("/api/v1/devices")).await??;
        let devices = devices.as_array().context("a list of devices")?;
        let connected = devices.iter().filter(|device| device["connected"] == true);
        Ok(connected
            .map(|device| serde_json::from_value(device["serial"].clone()))
            .collect::<Result<_, _>>()?)
    }

    /// The devices that the tunnel server says are connected and are not, or the other way round.
    pub async fn told_wrongly(&self) -> anyhow::Result<usize> {
        let told = self.told_connected().await?;
        Ok(told.symmetric_difference(&self.connected.lock().unwrap()).count())
    }

    /// Waits until the tunnel server says that so many are connected; how long that took.
    pub async fn until_told(&self, count: usize, within: Duration) -> anyhow::Result<Duration> {
        let began = tokio::time::Instant::now();
        loop {
            let told = self.told_connected().await?.len();
            if told == count {
                return Ok(began.elapsed());
            }
            anyhow::ensure!(
                began.elapsed() < within,
                "{told} instead of {count} devices are said to be connected"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// How many devices are connected.
    pub fn connected(&self) -> usize {
        self.connected.lock().unwrap().len()
    }

    /// The header that lets a VMS through the proxy.
    pub fn proxy_authorization() -> String {
        use base64::Engine;
        let credentials = base64::engine::general_purpose::STANDARD.encode(format!("vms:{PASSWORD}"));
        format!("proxy-authorization: Basic {credentials}\r\n")
    }

    /// Opens RTSP to a device as a VMS does: `CONNECT SERIAL:554` at the proxy.
    pub async fn watch(&self, serial: SerialNumber) -> anyhow::Result<TcpStream> {
        let mut stream = TcpStream::connect(&self.internal).await?;
        stream.set_nodelay(true)?;
        let host = serial.host();
        let request =
            format!("CONNECT {host}:554 HTTP/1.1\r\nhost: {host}:554\r\n{}\r\n", Self::proxy_authorization());
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.context("the proxy's answer")?);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        anyhow::ensure!(head.starts_with("HTTP/1.1 200"), "CONNECT: {head}");
        Ok(stream)
    }

    /// Ends devices and server.
    pub async fn end(mut self) {
        self.stop.drain(Duration::from_secs(5)).await;
        tokio::task::spawn_blocking(move || self.server.terminate(seconds(15))).await.unwrap();
    }
}

fn wait_until_it_answers(http: &crate::harness::Http) {
    wait_for("the tunnel server answers", seconds(20), || http.json("/api/v1/devices"));
}

/// A device that knows where its RTSP is, and serves nothing but its camera there.
async fn answer(incoming: Incoming, camera: Camera, sending: Sending, phase: u64) {
    if incoming.protocol() == Some("websocket") {
        if let Ok(stream) = incoming.accept_websocket("rtsp.onvif.org") {
            camera.run(stream, sending, phase).await;
        }
        return;
    }
    if incoming.request.method() != Method::POST {
        let length = Response::builder().header(http::header::CONTENT_LENGTH, SMALL_ANSWER.len());
        let _ = incoming.respond(length.body(SMALL_ANSWER.into()).expect("a response"));
        return;
    }
    let _ = incoming.respond(Response::new(services().into()));
}

/// The answer to GetServices, which is all that it is asked.
fn services() -> String {
    let capabilities = media2::ServiceCapabilities {
        rtsp_web_socket_uri: Some(RTSP_PATH.to_owned()),
        ..media2::ServiceCapabilities::default()
    };
    let media2 = device::Service {
        namespace: onvif::MEDIA2_NS.to_owned(),
        xaddr: onvif::MEDIA2_PATH.to_owned(),
        capabilities: Some(capabilities.element()),
        version: (26, 6),
    };
    Envelope::answer(SoapVersion::V12, device::Services(vec![media2]).to_element()).to_xml()
}

/// An address that is free now. (The tunnel server must know its own before it starts.)
fn free_address() -> anyhow::Result<String> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}
