//! A tunnel server with many simulated devices, without cameras: `homing tunnel` as a process, a
//! dispatcher that vouches for everybody, and devices that are nothing but an uplink.
//!
//! The dispatcher is simulated because it has no part in what is measured here; the tunnel server, its
//! keys, its database and its proxy are the real ones.

use crate::harness::{Folder, Process, homing, seconds, wait_for};
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
    collections::HashMap,
    fs,
    os::unix::fs::PermissionsExt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

/// The internal address's password.
pub const PASSWORD: &str = "bench-internal-password";
/// Frames a second.
const FPS: u64 = 8;
/// A camera's frame: 500 kbit/s at 8 frames a second.
const FRAME_BYTES: usize = 500_000 / 8 / FPS as usize;
/// A packet of it, as RTP over Ethernet has them, with its interleaved head.
const PACKET_BYTES: usize = 1404;
/// Where the simulated devices serve RTSP over WebSocket.
const RTSP_PATH: &str = "/rtsp";

/// What one device sends a second, in bytes.
pub const DEVICE_BYTES_PER_S: u64 = FRAME_BYTES as u64 * FPS;

/// Whether simulated cameras send now.
pub type Sending = Arc<AtomicBool>;

/// Sends frames, packet by packet, in bursts, while `sending`; ends with the connection.
pub async fn send_frames(mut to: impl AsyncWrite + Unpin, sending: Sending, phase: u64) {
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
    trust_anchor: std::sync::Mutex<String>,
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
    /// The devices' serial numbers.
    pub serials: Vec<SerialNumber>,
    /// Whether the devices' cameras send, once somebody watches.
    pub sending: Sending,
    external: String,
    devices: Vec<Device>,
    connected: Arc<AtomicUsize>,
    voucher: Arc<Voucher>,
    stop: Stop,
    _folder: Folder,
}

impl World {
    /// A tunnel server at which so many devices are registered; none is connected.
    pub async fn start(count: u32) -> anyhow::Result<World> {
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

        let (external, internal) = (free_address()?, free_address()?);
        let config = folder.join("tunnel.toml");
        let anchor_file = folder.join("anchor.pem");
        fs::write(&anchor_file, anchor)?;
        fs::write(
            &config,
            format!(
                "[tunnel]\nexternal = '{external}'\ninternal = '{internal}'\npassword = '{PASSWORD}'\n\
                 data = '{}'\n[tunnel.dispatcher]\naddress = 'https://{api}'\ntrust_anchor = '{}'\n\
                 account = 'bench'\npassword = 'bench'\n",
                folder.join("tunnel").display(),
                anchor_file.display(),
            ),
        )?;
        fs::set_permissions(&config, fs::Permissions::from_mode(0o600))?;
        let mut command = std::process::Command::new(homing());
        let server = Process::spawn("homing tunnel", command.arg("tunnel").arg("--config").arg(&config));

        let serials = devices.iter().map(|device| device.serial).collect();
        let world = World {
            server,
            internal,
            serials,
            sending: Sending::default(),
            external,
            devices,
            connected: Arc::default(),
            voucher,
            stop,
            _folder: folder,
        };
        world.register_all().await?;
        Ok(world)
    }

    async fn register_all(&self) -> anyhow::Result<()> {
        let (internal, serials) = (self.internal.clone(), self.serials.clone());
        tokio::task::spawn_blocking(move || {
            let http = crate::harness::Http::new(&format!("http://{internal}")).basic("vms", PASSWORD);
            wait_for("the tunnel server answers", seconds(20), || http.json("/api/v1/devices"));
            for serial in serials {
                let new = serde_json::json!({"serial": serial, "oak": "0000-0000-0000", "user": "root", "password": "bench"});
                http.post("/api/v1/devices", &new).unwrap();
            }
        })
        .await
        .context("registering")
    }

    /// Connects every device, and waits until all are.
    pub async fn connect_all(&self) -> anyhow::Result<()> {
        let anchor = self.voucher.trust_anchor.lock().unwrap().clone();
        for (number, device) in self.devices.iter().enumerate() {
            let tls = client_tls_config(
                roots_from_pem(anchor.as_bytes()).map_err(anyhow::Error::msg)?,
                vec![device.certificate.clone()],
                device.key.clone_key(),
                TlsPolicy::Tls13,
            )
            .map_err(anyhow::Error::msg)?;
            let dialer = Dialer::new(self.external.parse()?, Arc::new(tls));
            let dialed = dialer.dial().await?;
            let (sending, connected, stop) =
                (self.sending.clone(), self.connected.clone(), self.stop.clone());
            connected.fetch_add(1, Ordering::Relaxed);
            self.stop.spawn(async move {
                let service = move |incoming| answer(incoming, sending.clone(), number as u64 * 7919);
                let ended = dialed.serve(Arc::new(service), Default::default(), stop.token().clone()).await;
                connected.fetch_sub(1, Ordering::Relaxed);
                if !stop.is_stopped() {
                    eprintln!("a device's uplink ended: {ended}");
                }
            });
        }
        Ok(())
    }

    /// How many devices are connected.
    pub fn connected(&self) -> usize {
        self.connected.load(Ordering::Relaxed)
    }

    /// Opens RTSP to a device as a VMS does: `CONNECT SERIAL:554` at the proxy.
    pub async fn watch(&self, serial: SerialNumber) -> anyhow::Result<TcpStream> {
        use base64::Engine;
        let credentials = base64::engine::general_purpose::STANDARD.encode(format!("vms:{PASSWORD}"));
        let mut stream = TcpStream::connect(&self.internal).await?;
        let host = serial.host();
        let request = format!(
            "CONNECT {host}:554 HTTP/1.1\r\nhost: {host}:554\r\nproxy-authorization: Basic {credentials}\r\n\r\n"
        );
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

/// A device that knows where its RTSP is, and serves nothing but frames there.
async fn answer(incoming: Incoming, sending: Sending, phase: u64) {
    if incoming.protocol() == Some("websocket") {
        if let Ok(stream) = incoming.accept_websocket("rtsp.onvif.org") {
            send_frames(stream, sending, phase).await;
        }
        return;
    }
    if incoming.request.method() != Method::POST {
        let _ = incoming.respond(Response::new("a simulated device".into()));
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
