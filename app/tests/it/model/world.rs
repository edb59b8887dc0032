//! The real thing: one dispatcher, two owners with a tunnel server each, site agents, and between them links
//! that can be cut. All in this process, on real sockets.
//!
//! Each device has an address of its own (a site), and so has each tunnel server: what is slowed down for one
//! must not slow down its neighbours.

use homing_agent::{CameraConfig, Config, DispatcherConfig, control};
use homing_base::{
    Ops, Stop, Workers,
    client::{ApiClient, Auth, CallError},
    stop::DRAIN_DEADLINE,
};
use homing_dispatcher::accounts;
use homing_protocol::{
    Oak, Secret, SerialNumber,
    api::{
        Target,
        tunnel::{self, Device, NewDevice},
    },
    secret::Credentials,
};
use homing_tunnel::TunnelHandle;
use http::Method;
use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// A device's password at its camera.
const PASSWORD: &str = "p4ss of the camera";

/// Names of the two owners' accounts.
pub const OWNERS: [&str; 2] = ["alpha", "beta"];

/// Whatever has not ended by then hangs.
const DEADLINE: Duration = Duration::from_secs(30);

/// A way for TCP connections that can be cut.
pub struct Link {
    /// Where it begins.
    pub address: SocketAddr,
    connections: Arc<Mutex<Option<CancellationToken>>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Link {
    /// Leads to `target`, where its connections come from `source`.
    pub async fn new(target: SocketAddr, source: Ipv4Addr) -> Link {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let link = Link {
            address: listener.local_addr().unwrap(),
            connections: Arc::new(Mutex::new(Some(CancellationToken::new()))),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        let (connections, stop, tasks) = (link.connections.clone(), link.stop.clone(), link.tasks.clone());
        link.tasks.spawn(async move {
            while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
                let (near, _) = accepted.unwrap();
                let Some(open) = connections.lock().unwrap().as_ref().map(CancellationToken::child_token)
                else {
                    continue;
                };
                tasks.spawn(open.run_until_cancelled_owned(carry(near, target, source)));
            }
        });
        link
    }

    /// Ends every connection and lets none through.
    pub fn cut(&self) {
        if let Some(open) = self.connections.lock().unwrap().take() {
            open.cancel();
        }
    }

    /// Lets connections through again.
    pub fn mend(&self) {
        self.connections.lock().unwrap().get_or_insert_with(CancellationToken::new);
    }

    async fn end(&self) {
        self.cut();
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn carry(mut near: TcpStream, target: SocketAddr, source: Ipv4Addr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::V4(SocketAddrV4::new(source, 0))).unwrap();
    let Ok(mut far) = socket.connect(target).await else { return };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    // Its end is the connection's end.
    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
}

/// A role that runs.
struct Running {
    stop: Stop,
    task: Task,
}

impl Running {
    async fn end(self) {
        assert!(self.stop.drain(2 * DRAIN_DEADLINE).await, "{} tasks left", self.stop.running());
        self.task.await.unwrap().unwrap();
    }
}

/// The dispatcher.
pub struct Dispatcher {
    config: homing_dispatcher::Config,
    pub trust: String,
    workers: Workers,
    running: Option<Running>,
}

impl Dispatcher {
    pub async fn start(folder: &Path) -> Dispatcher {
        let config = homing_dispatcher::Config {
            external: free_port(),
            api: free_port(),
            names: vec!["127.0.0.1".into()],
            data: folder.join("dispatcher"),
            ..homing_dispatcher::Config::default()
        };
        let mut dispatcher =
            Dispatcher { config, trust: String::new(), workers: Workers::start(2).unwrap(), running: None };
        dispatcher.open().await;
        dispatcher
    }

    async fn open(&mut self) {
        let bound = homing_dispatcher::bind(self.config.clone(), &Ops::new(), &self.workers).await.unwrap();
        self.trust = bound.trust_anchor().unwrap().to_owned();
        let stop = Stop::new();
        self.running = Some(Running { stop: stop.clone(), task: keep(bound.run(stop)) });
    }

    pub async fn restart(&mut self) {
        self.end().await;
        self.open().await;
    }

    pub async fn end(&mut self) {
        self.running.take().unwrap().end().await;
    }

    pub async fn account(&self, name: &str) -> Secret {
        accounts::create(&self.config.data, name).await.unwrap()
    }

    pub fn external(&self) -> SocketAddr {
        self.config.external
    }
}

/// A tunnel server with its two links: devices' way in, and its own way to the dispatcher.
pub struct Tunnel {
    config: homing_tunnel::Config,
    pub entrance: Link,
    pub relay: Link,
    api: ApiClient,
    handle: TunnelHandle,
    workers: Workers,
    running: Option<Running>,
}

impl Tunnel {
    pub async fn start(number: usize, folder: &Path, dispatcher: &Dispatcher) -> Tunnel {
        let name = OWNERS[number];
        let password = dispatcher.account(name).await;
        let (external, internal) = (free_port(), free_port());
        let entrance = Link::new(external, Ipv4Addr::LOCALHOST).await;
        let relay = Link::new(dispatcher.config.api, Ipv4Addr::new(127, 1, 0, number as u8 + 1)).await;
        let mut config = homing_tunnel::Config {
            external,
            internal,
            public: vec![entrance.address.to_string()],
            password: "the password of the vms".into(),
            data: folder.join(name),
            dispatcher: homing_tunnel::Dispatcher {
                address: format!("https://{}", relay.address),
                trust_anchor: dispatcher.trust.clone(),
                account: name.into(),
                password,
            },
            ..homing_tunnel::Config::default()
        };
        config.limits.retry_first_ms = 50;
        config.limits.retry_longest_ms = 400;
        let credentials = Credentials::new(config.user.clone(), config.password.clone());
        let auth = Auth::Basic(credentials);
        let api = ApiClient::new("tunnel server", &format!("http://{internal}"), &auth, None).unwrap();
        let workers = Workers::start(1).unwrap();
        let (handle, running) = open(&config, &workers).await;
        Tunnel { config, entrance, relay, api, handle, workers, running: Some(running) }
    }

    pub async fn restart(&mut self) {
        self.end().await;
        let (handle, running) = open(&self.config, &self.workers).await;
        (self.handle, self.running) = (handle, Some(running));
    }

    pub async fn end(&mut self) {
        self.running.take().unwrap().end().await;
    }

    pub async fn end_links(&self) {
        self.entrance.end().await;
        self.relay.end().await;
    }

    /// Step 1.
    pub async fn register(
        &self,
        serial: SerialNumber,
        oak: Oak,
        right_password: bool,
    ) -> Result<Device, CallError> {
        let password = if right_password { PASSWORD } else { "wrong" };
        let new = NewDevice::new(serial, oak, "root", password);
        self.api.send(Method::POST, "/api/v1/devices", &new).await
    }

    /// Corrects OAK and password.
    pub async fn correct(&self, serial: SerialNumber, oak: Oak) -> Result<Device, CallError> {
        let change = serde_json::json!({ "oak": oak.label(), "password": PASSWORD });
        self.api.send(Method::PATCH, &format!("/api/v1/devices/{serial}"), &change).await
    }

    pub async fn release(&self, serial: SerialNumber) -> Result<serde_json::Value, CallError> {
        self.api.send(Method::DELETE, &format!("/api/v1/devices/{serial}"), &()).await
    }

    /// Sends a device to another tunnel server, and tells that one of it, as management does.
    pub async fn hand_over(&self, serial: SerialNumber, to: &Tunnel, account: &str) -> Result<(), CallError> {
        let there: tunnel::Server = to.api.get("/api/v1/server").await?;
        let target = Target { servers: there.public, trust_anchor: there.trust_anchor };
        let path = |what: &str| format!("/api/v1/devices/{serial}/{what}");
        let asked = tunnel::Move { target, account: Some(account.to_owned()), keep: false };
        let _: Device = self.api.send(Method::PUT, &path("move"), &asked).await?;
        let device: NewDevice = self.api.get(&path("handover")).await?;
        let _: Device = to.api.send(Method::POST, "/api/v1/devices", &device).await?;
        Ok(())
    }

    /// Whether it says that it cannot reach the dispatcher.
    pub async fn misses_the_dispatcher(&self) -> bool {
        let server: tunnel::Server = self.api.get("/api/v1/server").await.unwrap();
        server.dispatcher_problem.is_some()
    }

    pub fn device(&self, serial: SerialNumber) -> Option<Device> {
        self.handle.device(serial)
    }
}

async fn open(config: &homing_tunnel::Config, workers: &Workers) -> (TunnelHandle, Running) {
    let bound = homing_tunnel::bind(config.clone(), &Ops::new(), workers).await.unwrap();
    let (handle, stop) = (bound.handle(), Stop::new());
    (handle, Running { stop: stop.clone(), task: keep(bound.run(stop)) })
}

/// A device: a site agent with a label. Its camera is away; up to step 7 nobody asks it.
pub struct Site {
    pub serial: SerialNumber,
    pub oak: Oak,
    config: Config,
    /// Its way to the dispatcher.
    pub way: Link,
    status: watch::Receiver<homing_agent::Status>,
    running: Option<Agent>,
}

impl Site {
    pub async fn start(number: u16, folder: &Path, dispatcher: &Dispatcher) -> Site {
        let [high, low] = number.to_be_bytes();
        let serial = SerialNumber::new([2, 0, 0, 0, high, low]);
        let oak = Oak::new([7, 7, 7, 7, high, low]);
        let way = Link::new(dispatcher.external(), Ipv4Addr::new(127, 2 + high, low, 1)).await;
        let mut config = Config {
            data: folder.join(format!("site-{number}")),
            serial: Some(serial),
            oak: Some(oak.clone()),
            retry_first_ms: 20,
            retry_max_ms: 200,
            fallback_s: 1,
            dispatchers: vec![DispatcherConfig {
                address: way.address.to_string(),
                trust_anchor: dispatcher.trust.clone(),
            }],
            cameras: vec![CameraConfig {
                rtsp: "rtsp://127.0.0.1:1/".into(),
                user: "root".into(),
                password: PASSWORD.into(),
                ..CameraConfig::default()
            }],
            ..Config::default()
        };
        config.page.listen = "127.0.0.1:0".parse().unwrap();
        let (status, running) = run(&config).await;
        Site { serial, oak, config, way, status, running: Some(running) }
    }

    /// Step 3.
    pub async fn press(&self) {
        let config = self.config.clone();
        tokio::task::spawn_blocking(move || control::press(&config)).await.unwrap().unwrap();
    }

    /// Off and on again.
    pub async fn restart(&mut self) {
        self.stop().await;
        let (status, running) = run(&self.config).await;
        (self.status, self.running) = (status, Some(running));
    }

    /// Factory default, and on again: a new key, nothing remembered.
    pub async fn reset(&mut self) {
        self.stop().await;
        let config = self.config.clone();
        tokio::task::spawn_blocking(move || control::reset(&config)).await.unwrap().unwrap();
        let (status, running) = run(&self.config).await;
        (self.status, self.running) = (status, Some(running));
    }

    pub async fn end(&mut self) {
        self.stop().await;
        self.way.end().await;
    }

    async fn stop(&mut self) {
        let (stop, running) = self.running.take().unwrap();
        stop.cancel();
        tokio::time::timeout(DEADLINE, running).await.unwrap().unwrap().unwrap();
    }

    pub fn status(&self) -> homing_agent::Status {
        self.status.borrow().clone()
    }
}

type Task = JoinHandle<anyhow::Result<()>>;
type Agent = (CancellationToken, Task);

async fn run(config: &Config) -> (watch::Receiver<homing_agent::Status>, Agent) {
    let (bound, stop) = (homing_agent::bind(config.clone()).await.unwrap(), CancellationToken::new());
    let status = bound.status();
    (status, (stop.clone(), keep(bound.run(stop))))
}

#[expect(clippy::disallowed_methods, reason = "awaited when the role or the site ends")]
fn keep(role: impl Future<Output = anyhow::Result<()>> + Send + 'static) -> Task {
    tokio::spawn(role)
}

/// A port that stays free while its role restarts: below those that connections are given.
fn free_port() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    loop {
        let address = SocketAddr::from(([127, 0, 0, 1], NEXT.fetch_add(1, Ordering::Relaxed)));
        if std::net::TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// A folder in memory, where there is one: it is the order of writes that counts here, not the disk.
pub fn folder() -> tempfile::TempDir {
    let memory = PathBuf::from("/dev/shm");
    let place = if memory.is_dir() { memory } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("homing-model-").tempdir_in(place).unwrap()
}
