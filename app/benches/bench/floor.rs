//! The floor: what a relay costs that does nothing but TLS on one side and TCP on the other.
//!
//! A process of its own, started as `bench floor CERTIFICATE KEY SINK BUFFER_BYTES COPIES`: prints the port that it listens
//! at, terminates TLS, connects to the sink and copies both ways. One thread, and buffers as large as is
//! best for what is measured: cheaper than anything that also knows whose stream it is. [`Bare`] is that process with its devices and its sink.

use crate::{
    devices::{Camera, DEVICE_BYTES_PER_S, Sending},
    harness::{DATA, Folder, Process, seconds},
    whole::{PSS, cpu_s_within, median},
};
use anyhow::{Context, ensure};
use rcgen::{CertificateParams, KeyPair};
use std::{
    fs,
    io::Write,
    net::SocketAddr,
    process::{Command, ExitCode},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, copy_bidirectional_with_sizes},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    rustls::{
        RootCertStore, ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

/// Of each direction, for the least CPU.
pub const LARGE_BUFFERS: usize = 64 * 1024;
/// Of each direction, for the least memory that still carries packets.
pub const SMALL_BUFFERS: usize = 2 * 1024;

/// After switching a load on or off, until every burst is on its way.
const SWITCHED: Duration = Duration::from_secs(2);

/// Of [`Load::beside`].
const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(12);

/// Cameras that send through a relay, and what comes out of it.
pub struct Load {
    /// How many there are.
    pub connections: u32,
    /// Whether they send.
    pub sending: Sending,
    /// Bytes that came out so far.
    pub received: Arc<AtomicU64>,
}

impl Load {
    /// CPU seconds that a relay takes for each GB, and the MB that it carries a second, of cameras that send as
    /// fast as they can.
    pub async fn bulk(&self, relay: &Process, time: Duration) -> [f64; 2] {
        self.sending.store(true, Ordering::Relaxed);
        tokio::time::sleep(SWITCHED / 2).await;
        let (began, before) = (tokio::time::Instant::now(), self.received.load(Ordering::Relaxed));
        let cpu = cpu_s_within(relay, time).await;
        let bytes = (self.received.load(Ordering::Relaxed) - before) as f64;
        let elapsed = began.elapsed().as_secs_f64();
        self.sending.store(false, Ordering::Relaxed);
        tokio::time::sleep(SWITCHED / 2).await;
        [cpu / (bytes / 1e9), bytes / 1e6 / elapsed]
    }

    /// Share of a core that a relay takes to carry everything for a while.
    pub async fn cores(&self, relay: &Process, time: Duration) -> anyhow::Result<f64> {
        self.sending.store(true, Ordering::Relaxed);
        tokio::time::sleep(SWITCHED).await;
        let before = self.received.load(Ordering::Relaxed);
        let cpu = cpu_s_within(relay, time).await;
        let received = self.received.load(Ordering::Relaxed) - before;
        self.sending.store(false, Ordering::Relaxed);
        tokio::time::sleep(SWITCHED).await;
        let expected = u64::from(self.connections) * DEVICE_BYTES_PER_S * time.as_secs();
        ensure!(
            received * 100 > expected * 97,
            "only {received} of {expected} bytes arrived: the machine is too busy to measure"
        );
        Ok(cpu / time.as_secs_f64())
    }

    /// What a server takes to carry everything, and the bare relay in its turns: % of a core, the median of some rounds.
    pub async fn beside(&self, server: &Process, bare: &Bare) -> anyhow::Result<[f64; 2]> {
        let (mut ours, mut floor) = (Vec::new(), Vec::new());
        for round in 1..=ROUNDS {
            floor.push(100.0 * bare.load.cores(&bare.process, ROUND).await?);
            ours.push(100.0 * self.cores(server, ROUND).await?);
            println!(
                "round {round}: {:.1} %, the bare relay {:.1} % of a core",
                ours[round - 1],
                floor[round - 1]
            );
        }
        Ok([median(ours), median(floor)])
    }
}

/// The bare relay with its connections; ends when it is dropped.
pub struct Bare {
    /// The relay.
    pub process: Process,
    /// What it carries.
    pub load: Load,
    /// Its memory (data, and all) before the first connection, in kB.
    pub empty_kb: [u64; 2],
    /// Where what it carries comes out, with cameras that answer.
    pub outlets: Vec<TcpStream>,
    _connections: JoinSet<()>,
    _folder: Folder,
}

impl Bare {
    /// Starts it and connects so many devices, which do not send yet. Each has two buffers of so many bytes
    /// in the relay.
    pub async fn start(connections: u32, buffers: usize, camera: Camera) -> anyhow::Result<Bare> {
        Bare::start_with(connections, 1, buffers, camera).await
    }

    /// One device, what it sends copied to so many connections.
    pub async fn copying(copies: u32, camera: Camera) -> anyhow::Result<Bare> {
        let mut bare = Bare::start_with(1, copies, LARGE_BUFFERS, camera).await?;
        bare.load.connections = copies;
        Ok(bare)
    }

    async fn start_with(
        connections: u32,
        copies: u32,
        buffers: usize,
        camera: Camera,
    ) -> anyhow::Result<Bare> {
        let folder = Folder::new();
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec!["localhost".to_owned()])?.self_signed(&key)?;
        let (certificate_file, key_file) = (folder.join("floor.pem"), folder.join("floor.key"));
        fs::write(&certificate_file, certificate.pem())?;
        fs::write(&key_file, key.serialize_pem())?;

        let sink = TcpListener::bind("127.0.0.1:0").await?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("floor").args([&certificate_file, &key_file]).args([
            sink.local_addr()?.to_string(),
            buffers.to_string(),
            copies.to_string(),
        ]);
        let mut process = Process::spawn("bare relay", &mut command);
        let (process, port) = tokio::task::spawn_blocking(move || {
            let line = process.wait_for_line("port ", seconds(10));
            (process, line.trim_start_matches("port ").parse::<u16>())
        })
        .await?;
        let port = port.context("the bare relay's port")?;
        let empty_kb = [DATA, PSS].map(|field| process.memory_kb(field));

        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone())?;
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        let policy = homing_uplink::TlsPolicy::Tls13;
        let tls = homing_uplink::client_tls_config(roots, vec![certificate.der().clone()], key, policy);
        let connector = TlsConnector::from(Arc::new(tls.map_err(anyhow::Error::msg)?));
        let load = Load { connections, sending: Sending::default(), received: Arc::default() };
        let (mut tasks, mut outlets) = (JoinSet::new(), Vec::new());
        for number in 0..u64::from(connections) {
            let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
            tcp.set_nodelay(true)?;
            let tls = connector.connect("localhost".try_into()?, tcp).await?;
            for _ in 0..copies {
                let (stream, _) = sink.accept().await?;
                match camera {
                    Camera::Answers => outlets.push(stream),
                    _ => drop(tasks.spawn(count(stream, load.received.clone()))),
                }
            }
            tasks.spawn(camera.run(tls, load.sending.clone(), number * 7919));
        }
        Ok(Bare { process, load, empty_kb, outlets, _connections: tasks, _folder: folder })
    }
}

/// Reads to the end, and counts.
pub async fn count(mut stream: impl AsyncRead + Unpin, received: Arc<AtomicU64>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        received.fetch_add(length as u64, Ordering::Relaxed);
    }
}

/// The process.
pub fn main(arguments: &[String]) -> ExitCode {
    let [certificate, key, sink, buffers, copies] = arguments else {
        eprintln!("floor CERTIFICATE KEY SINK BUFFER_BYTES COPIES");
        return ExitCode::from(2);
    };
    let chain = vec![CertificateDer::from_pem_file(certificate).unwrap()];
    let key = PrivateKeyDer::from_pem_file(key).unwrap();
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let sink: SocketAddr = sink.parse().unwrap();
    let buffers: usize = buffers.parse().unwrap();
    let copies: usize = copies.parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("port {}", listener.local_addr().unwrap().port());
        std::io::stdout().flush().unwrap();
        let mut relays = JoinSet::new();
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            relays.spawn(async move {
                tcp.set_nodelay(true).unwrap();
                let mut tls = acceptor.accept(tcp).await.unwrap();
                if copies > 1 {
                    return copy_to_many(tls, sink, copies, buffers).await;
                }
                let mut tcp = TcpStream::connect(sink).await.unwrap();
                tcp.set_nodelay(true).unwrap();
                // Ends with the load.
                let _ = copy_bidirectional_with_sizes(&mut tls, &mut tcp, buffers, buffers).await;
            });
        }
    })
}

/// What is read is written to every connection to the sink, one after the other; nothing comes back.
async fn copy_to_many(mut from: impl AsyncRead + Unpin, sink: SocketAddr, copies: usize, buffer: usize) {
    let mut sinks = Vec::new();
    for _ in 0..copies {
        let tcp = TcpStream::connect(sink).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        sinks.push(tcp);
    }
    let mut buffer = vec![0; buffer];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        for sink in &mut sinks {
            // Ends with the load.
            if sink.write_all(&buffer[..length]).await.is_err() {
                return;
            }
        }
    }
}
