//! A tunnel server with its dispatcher, and what a VMS does at its internal address.

use crate::{
    device::{self, Device},
    dispatcher::{self, Dispatcher},
};
use bytes::Bytes;
use homing_base::{Ops, Stop, Workers, client::basic};
use homing_protocol::{
    SerialNumber,
    api::tunnel::{self, NewDevice},
    secret::Credentials,
};
use homing_tunnel::{Config, Event, Reloader, TunnelHandle};
use homing_uplink::EndReason;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::{net::SocketAddr, time::Duration};
use tokio::{net::TcpSocket, task::JoinHandle};

pub const USER: &str = "vms";
pub const PASSWORD: &str = "internal-password-5150";

/// For every wait: long enough for a busy machine, short enough to fail.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Everything that a test needs; stops it all when it is dropped.
pub struct World {
    pub folder: tempfile::TempDir,
    pub dispatcher: Dispatcher,
    dispatcher_role: Stop,
    pub role: Stop,
    pub ops: Ops,
    pub external: SocketAddr,
    pub internal: SocketAddr,
    pub handle: TunnelHandle,
    /// The internal address, as it is printed.
    pub internal_url: String,
    /// The RTSP gateway, where the configuration has one.
    pub rtsp: Option<SocketAddr>,
    pub rtsps: Option<SocketAddr>,
    /// As it was started, and how that is changed.
    pub config: Config,
    pub reloader: Reloader,
    running: Option<JoinHandle<anyhow::Result<()>>>,
    /// The devices' tasks.
    pub site: Stop,
    adjust: Adjust,
}

/// What a world's configuration has of its own.
type Adjust = std::sync::Arc<dyn Fn(&mut Config) + Send + Sync>;

impl World {
    /// Dispatcher and tunnel server run.
    pub async fn new() -> Self {
        Self::with(true, |_| ()).await
    }

    /// As said: with a dispatcher that runs or not, and a configuration of its own.
    pub async fn with(dispatcher_runs: bool, adjust: impl Fn(&mut Config) + Send + Sync + 'static) -> Self {
        let adjust: Adjust = std::sync::Arc::new(adjust);
        let folder = tempfile::tempdir().unwrap();
        let dispatcher = Dispatcher::new(folder.path());
        let dispatcher_role = Stop::new();
        if dispatcher_runs {
            dispatcher.start(&dispatcher_role);
        }
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let (role, ops) = (Stop::new(), Ops::new());
        let Started { handle, external, internal, internal_url, config, reloader, rtsp, rtsps, running } =
            start(folder.path(), &dispatcher, nowhere, nowhere, &ops, &role, &adjust).await;
        World {
            folder,
            dispatcher,
            dispatcher_role,
            role,
            ops,
            external,
            internal,
            handle,
            internal_url,
            rtsp,
            rtsps,
            config,
            reloader,
            running: Some(running),
            site: Stop::new(),
            adjust,
        }
    }

    /// Ends the tunnel server in order and starts it again on the same addresses and data.
    pub async fn restart(&mut self) {
        self.stop_tunnel().await;
        self.role = Stop::new();
        self.ops = Ops::new();
        let started = start(
            self.folder.path(),
            &self.dispatcher,
            self.external,
            self.internal,
            &self.ops,
            &self.role,
            &self.adjust,
        )
        .await;
        (self.rtsp, self.rtsps) = (started.rtsp, started.rtsps);
        (self.handle, self.running) = (started.handle, Some(started.running));
        (self.config, self.reloader) = (started.config, started.reloader);
    }

    /// Ends the tunnel server, and checks that nothing of it is left.
    pub async fn stop_tunnel(&mut self) {
        let drained = self.role.drain(DEADLINE).await;
        assert!(drained, "{} tasks are left", self.role.running());
        if let Some(running) = self.running.take() {
            within(running).await.unwrap().unwrap();
        }
    }

    pub async fn stop_dispatcher(&mut self) {
        assert!(self.dispatcher_role.drain(DEADLINE).await);
    }

    pub fn start_dispatcher(&mut self) {
        self.dispatcher_role = Stop::new();
        self.dispatcher.start(&self.dispatcher_role);
    }

    /// The certificate that devices are told to trust.
    pub fn trust_anchor(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("tunnel/tunnel-ca.pem")).unwrap()
    }

    /// A request to the API with the right password.
    pub async fn api(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let body = body.map_or_else(Bytes::new, |body| body.to_string().into());
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "tunnel")
            .header("authorization", password())
            .header("content-type", "application/json")
            .body(body)
            .unwrap();
        let response = self.send(request).await;
        let status = response.status();
        let body = within(response.into_body().collect()).await.unwrap().to_bytes();
        (
            status,
            if body.is_empty() {
                Value::Null
            } else {
                serde_json::from_slice(&body).unwrap_or_else(|_| panic!("{body:?}"))
            },
        )
    }

    /// A request as it stands, over a connection of its own; the body is streamed.
    pub async fn send(&self, request: Request<Bytes>) -> Response<Incoming> {
        within(send_from([127, 0, 0, 1], self.internal, request)).await
    }

    /// Step 1 for a device.
    pub async fn register(&self, device: &Device) -> (StatusCode, Value) {
        let new = new_device(device);
        self.api(Method::POST, "/api/v1/devices", Some(serde_json::to_value(&new).unwrap())).await
    }

    /// Registered, vouched for, connected.
    pub async fn ready(&self, serial: &str) -> (Device, JoinHandle<EndReason>) {
        let device = Device::new(serial);
        let serving = self.make_ready(&device).await;
        (device, serving)
    }

    /// The same without RTSP, over WebSocket or HTTP.
    pub async fn ready_without_rtsp(&self, serial: &str) -> Device {
        let mut device = Device::new(serial);
        device.has_websocket = false;
        self.make_ready(&device).await;
        device
    }

    /// The same for this device.
    pub async fn make_ready(&self, device: &Device) -> JoinHandle<EndReason> {
        let (status, answer) = self.register(device).await;
        assert_eq!(status, StatusCode::CREATED, "{answer}");
        self.dispatcher.vouch(device.serial, device.fingerprint).await;
        self.connect(device).await
    }

    /// Steps 6 and 7.
    pub async fn connect(&self, device: &Device) -> JoinHandle<EndReason> {
        let dialed = within(device.dial(self.external, &self.trust_anchor())).await.unwrap();
        let serving = device.serve(dialed, &self.site);
        self.device_until(device.serial, |device| device.connected).await;
        serving
    }

    /// Waits until a device is as it should be.
    pub async fn device_until(
        &self,
        serial: SerialNumber,
        condition: impl Fn(&tunnel::Device) -> bool,
    ) -> tunnel::Device {
        let mut events = self.handle.subscribe();
        let waiting = async {
            loop {
                match events.next().await {
                    Some(Event::Device(device)) if device.serial == serial && condition(&device) => {
                        return (*device).clone();
                    }
                    Some(_) => (),
                    None => panic!("the events ended"),
                }
            }
        };
        let found = tokio::time::timeout(DEADLINE, waiting).await;
        found.unwrap_or_else(|_| panic!("still {:?}", self.handle.device(serial)))
    }

    /// One number from /metrics.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.ops.metrics();
        let line = text.lines().find(|line| line.split(' ').next() == Some(name));
        line.unwrap_or_else(|| panic!("no {name} in\n{text}")).rsplit(' ').next().unwrap().parse().unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.role.stop();
        self.site.stop();
        self.dispatcher_role.stop();
    }
}

struct Started {
    handle: TunnelHandle,
    external: SocketAddr,
    internal: SocketAddr,
    internal_url: String,
    rtsp: Option<SocketAddr>,
    rtsps: Option<SocketAddr>,
    config: Config,
    reloader: Reloader,
    running: JoinHandle<anyhow::Result<()>>,
}

async fn start(
    folder: &std::path::Path,
    dispatcher: &Dispatcher,
    external: SocketAddr,
    internal: SocketAddr,
    ops: &Ops,
    role: &Stop,
    adjust: &Adjust,
) -> Started {
    let mut config = Config {
        name: "sts-1".into(),
        external,
        internal,
        user: USER.into(),
        password: PASSWORD.into(),
        data: folder.join("tunnel"),
        dispatcher: homing_tunnel::Dispatcher {
            address: format!("https://{}", dispatcher.address),
            trust_anchor: dispatcher.trust_anchor(),
            account: dispatcher::ACCOUNT.into(),
            password: dispatcher::PASSWORD.into(),
        },
        ..Config::default()
    };
    config.limits.retry_first_ms = 50;
    config.limits.retry_longest_ms = 400;
    adjust(&mut config);
    let bound = homing_tunnel::bind(config.clone(), ops, &Workers::current()).await.unwrap();
    Started {
        handle: bound.handle(),
        external: bound.external_addr(),
        internal: bound.internal_addr(),
        internal_url: bound.internal_url().0,
        config,
        reloader: bound.reloader(),
        rtsp: bound.rtsp_addr(),
        rtsps: bound.rtsps_addr(),
        running: role.spawn(bound.run(role.clone())),
    }
}

pub fn new_device(device: &Device) -> NewDevice {
    let password = device.lock.lock().unwrap().password.clone();
    NewDevice {
        name: "Entrance".into(),
        ..NewDevice::new(device.serial, device::OAK.parse().unwrap(), device::USER, password)
    }
}

/// `Basic …` of the internal address.
pub fn password() -> String {
    basic(&Credentials::new(USER, PASSWORD))
}

/// A request from one of loopback's many addresses.
pub async fn send_from(from: [u8; 4], to: SocketAddr, request: Request<Bytes>) -> Response<Incoming> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    let tcp = socket.connect(to).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await.unwrap();
    // Ends with the response's body.
    #[expect(clippy::disallowed_methods, reason = "a test's client")]
    tokio::spawn(connection.with_upgrades());
    sender.send_request(request.map(Full::new)).await.unwrap()
}

pub async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future).await.expect("not in time")
}

/// The body of an API problem.
pub fn code(answer: &Value) -> &str {
    answer["error"]["code"].as_str().unwrap_or_else(|| panic!("{answer}"))
}

/// A request to the proxy.
pub fn through(method: Method, uri: &str, body: impl Into<Bytes>) -> Request<Bytes> {
    let request = Request::builder().method(method).uri(uri).header("proxy-authorization", password());
    request.body(body.into()).unwrap()
}

/// The whole body of an answer.
pub async fn text(response: Response<Incoming>) -> String {
    let body = within(response.into_body().collect()).await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

/// A registration as a browser's form would send it.
pub fn form(serial: &str, oak: &str) -> Value {
    json!({ "serial": serial, "oak": oak, "user": device::USER, "password": device::PASSWORD })
}
