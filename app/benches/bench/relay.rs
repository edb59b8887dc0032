//! CPU of a tunnel server that relays 200 cameras of 500 kbit/s to a VMS, against a bare TLS relay that
//! carries the same packets in the same bursts.
//!
//! Both stand all the time with all their connections; they are measured in turn, several times, so
//! that whatever else the machine does meets both.

use crate::{
    devices::{DEVICE_BYTES_PER_S, Sending, World, send_frames},
    harness::{Folder, Process, seconds},
    report::Figure,
    whole::{block_on, cpu_s_within, median},
};
use anyhow::{Context, ensure};
use rcgen::{CertificateParams, KeyPair};
use std::{
    fs,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsConnector;

const CAMERAS: u32 = 200;
const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(12);
/// After switching over, until every burst is on its way.
const SETTLE: Duration = Duration::from_secs(2);
/// What a relay may cost, as a multiple of the floor.
const BAR: f64 = 1.45;

/// One kind of relay with its connections.
struct Side<'a> {
    process: &'a Process,
    sending: Sending,
    received: Arc<AtomicU64>,
}

impl Side<'_> {
    /// Share of a core that it takes to carry everything for a while.
    async fn measure(&self) -> anyhow::Result<f64> {
        self.sending.store(true, Ordering::Relaxed);
        tokio::time::sleep(SETTLE).await;
        let before = self.received.load(Ordering::Relaxed);
        let cpu = cpu_s_within(self.process, ROUND).await;
        let received = self.received.load(Ordering::Relaxed) - before;
        self.sending.store(false, Ordering::Relaxed);
        tokio::time::sleep(SETTLE).await;
        let expected = u64::from(CAMERAS) * DEVICE_BYTES_PER_S * ROUND.as_secs();
        ensure!(
            received * 100 > expected * 97,
            "only {received} of {expected} bytes arrived: the machine is too busy to measure"
        );
        Ok(cpu / ROUND.as_secs_f64())
    }
}

/// Measures.
pub fn run() -> anyhow::Result<Vec<Figure>> {
    block_on(async {
        let mut tasks = JoinSet::new();
        let world = World::start(CAMERAS).await?;
        world.connect_all().await?;
        let tunnel =
            Side { process: &world.server, sending: world.sending.clone(), received: Arc::default() };
        for serial in &world.serials {
            let stream = world.watch(*serial).await?;
            tasks.spawn(count(stream, tunnel.received.clone()));
        }

        let folder = Folder::new();
        let (received, sending) = (Arc::<AtomicU64>::default(), Sending::default());
        let process = start_floor(&folder, received.clone(), &sending, &mut tasks).await?;
        let floor = Side { process: &process, sending, received };

        let (mut ours, mut bare) = (Vec::new(), Vec::new());
        for round in 1..=ROUNDS {
            bare.push(floor.measure().await?);
            ours.push(tunnel.measure().await?);
            println!(
                "round {round}: tunnel server {:.3}, bare relay {:.3} of a core",
                ours[round - 1],
                bare[round - 1]
            );
        }
        ensure!(world.connected() == CAMERAS as usize, "uplinks were lost while measuring");
        tasks.shutdown().await;
        drop(process);
        world.end().await;
        let figure = Figure::plain(
            format!("{CAMERAS} × 500 kbit/s, CPU of the relay"),
            100.0 * median(ours),
            "% of a core",
        );
        Ok(vec![figure.against("bare tokio-rustls", 100.0 * median(bare)).ratio_bar(BAR)])
    })
}

/// Starts the bare relay and its devices; what comes out is counted in `received`.
async fn start_floor(
    folder: &Folder,
    received: Arc<AtomicU64>,
    sending: &Sending,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<Process> {
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec!["localhost".to_owned()])?.self_signed(&key)?;
    let (certificate_file, key_file) = (folder.join("floor.pem"), folder.join("floor.key"));
    fs::write(&certificate_file, certificate.pem())?;
    fs::write(&key_file, key.serialize_pem())?;

    let sink = TcpListener::bind("127.0.0.1:0").await?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("floor").args([&certificate_file, &key_file]).arg(sink.local_addr()?.to_string());
    let mut process = Process::spawn("bare relay", &mut command);
    let (process, port) = tokio::task::spawn_blocking(move || {
        let line = process.wait_for_line("port ", seconds(10));
        (process, line.trim_start_matches("port ").parse::<u16>())
    })
    .await?;
    let port = port.context("the bare relay's port")?;

    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.der().clone())?;
    let tls = homing_uplink::client_tls_config(
        roots,
        vec![certificate.der().clone()],
        rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?,
        homing_uplink::TlsPolicy::Tls13,
    )
    .map_err(anyhow::Error::msg)?;
    let connector = TlsConnector::from(Arc::new(tls));
    for number in 0..u64::from(CAMERAS) {
        let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
        tcp.set_nodelay(true)?;
        let tls = connector.connect("localhost".try_into()?, tcp).await?;
        let (stream, _) = sink.accept().await?;
        tasks.spawn(count(stream, received.clone()));
        tasks.spawn(send_frames(tls, sending.clone(), number * 7919));
    }
    Ok(process)
}

/// Reads to the end, and counts.
async fn count(mut stream: impl AsyncRead + Unpin, received: Arc<AtomicU64>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        received.fetch_add(length as u64, Ordering::Relaxed);
    }
}
