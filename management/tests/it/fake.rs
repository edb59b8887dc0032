//! A tunnel server and a recording role that do what a test says, and a management server between them.

use axum::{
    Json, Router,
    extract::{Path, Query, State, WebSocketUpgrade, ws::Message},
    http::{HeaderMap, Method, Request, StatusCode, header},
    response::{
        Response,
        sse::{Event, Sse},
    },
    routing::{get, post, put},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use homing_base::{Ops, Stop, http::Failure, tls};
use homing_management::{Bound, Config, config};
use homing_protocol::{
    SerialNumber, Step,
    api::{
        Problem,
        dispatcher::Offer,
        recording,
        tunnel::{
            ChangeDevice, Connection, Device, Figures, Move, MoveState, Moving, NewDevice, RelayState,
            Server, SiteChange,
        },
    },
    secret::Credentials,
};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{net::TcpListener, sync::broadcast};

/// For anything that a test waits for.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// For what must not wait until something is looked at again, which is after 5 s.
pub const AT_ONCE: Duration = Duration::from_secs(3);

pub const PASSWORD: &str = "correct horse battery";

// A tunnel server

#[derive(Clone)]
pub struct FakeTunnel {
    pub devices: Arc<Mutex<BTreeMap<SerialNumber, Device>>>,
    /// What it says of itself.
    pub server: Arc<Mutex<Server>>,
    pub sites: Arc<Mutex<BTreeMap<String, SiteChange>>>,
    /// What it was asked about moves, offers and registrations, in order.
    pub asked: Arc<Mutex<Vec<String>>>,
    /// What it tells as the history of any device.
    pub history: Arc<Mutex<Vec<Connection>>>,
    /// Name and data of every event.
    log: Arc<Mutex<Vec<(String, String)>>>,
    /// Ids from before this life are not known; a test counts it up.
    pub life: Arc<Mutex<u32>>,
    changed: broadcast::Sender<()>,
    stop: Stop,
}

impl FakeTunnel {
    pub fn new(name: &str, account: &str) -> Self {
        FakeTunnel {
            devices: Arc::default(),
            server: Arc::new(Mutex::new(server(name, account))),
            sites: Arc::default(),
            asked: Arc::default(),
            history: Arc::new(Mutex::new(one_that_stands_and_one_that_ended())),
            log: Arc::default(),
            life: Arc::default(),
            changed: broadcast::channel(64).0,
            stop: Stop::new(),
        }
    }

    fn note(&self, what: String) {
        self.asked.lock().unwrap().push(what);
    }

    /// A device is new or has changed; its event stream tells.
    pub fn put(&self, device: Device) {
        let json = serde_json::to_string(&device).unwrap();
        self.devices.lock().unwrap().insert(device.serial, device);
        self.tell("device", json);
    }

    pub fn remove(&self, serial: SerialNumber) {
        self.devices.lock().unwrap().remove(&serial);
        self.tell("removed", json!({ "serial": serial }).to_string());
    }

    fn tell(&self, name: &str, data: String) {
        self.log.lock().unwrap().push((name.into(), data));
        let _ = self.changed.send(());
    }

    pub fn connect(&self, serial: SerialNumber, connected: bool) {
        let mut device = self.devices.lock().unwrap()[&serial].clone();
        device.connected = connected;
        device.step = if connected { Step::Tunnel } else { device.step };
        device.relay = RelayState::Dispatched;
        device.since = Some(Timestamp::now());
        device.peer = connected.then(|| "192.0.2.7:40000".into());
        self.put(device);
    }

    /// Serves until `stop`, on a given port or any.
    pub async fn serve(&self, port: u16, stop: Stop) -> u16 {
        let listener = homing_base::listen::bind(([127, 0, 0, 1], port).into(), "fake tunnel").unwrap();
        let port = listener.local_addr().unwrap().port();
        let router = FakeTunnel { stop: stop.clone(), ..self.clone() }.router();
        stop.clone().spawn(homing_base::http::serve(listener, router, None, stop));
        port
    }

    /// Serves HTTPS until `stop`, with a certificate for `localhost` by a CA of its own, whose PEM comes back.
    pub async fn serve_tls(&self, folder: &std::path::Path, stop: Stop) -> (u16, String) {
        let listener = homing_base::listen::bind(([127, 0, 0, 1], 0).into(), "fake tunnel").unwrap();
        let port = listener.local_addr().unwrap().port();
        let ca = Arc::new(tls::PrivateCa::open(folder, "tunnel").unwrap());
        let anchor = ca.trust_anchor();
        let leaf = tls::Leaf::issued_by(ca, vec!["localhost".into()], tls::LEAF_LIFE).unwrap();
        let config = tls::server_config(leaf).unwrap();
        let router = FakeTunnel { stop: stop.clone(), ..self.clone() }.router();
        stop.clone().spawn(homing_base::http::serve(listener, router, Some(config), stop));
        (port, anchor)
    }

    fn router(&self) -> Router {
        Router::new()
            .route(
                "/api/v1/server",
                get(async |State(tunnel): State<FakeTunnel>| Json(tunnel.server.lock().unwrap().clone())),
            )
            .route("/api/v1/devices", get(list).post(register))
            .route("/api/v1/devices/{serial}", get(one).delete(unregister).patch(change))
            .route("/api/v1/devices/{serial}/credentials", get(credentials))
            .route("/api/v1/devices/{serial}/history", get(history))
            .route("/api/v1/figures", get(figures))
            .merge(crate::sites::routes())
            .route("/api/v1/devices/{serial}/handover", get(handover))
            .route("/api/v1/devices/{serial}/move", put(begin_move).delete(undo_move))
            .route("/api/v1/devices/{serial}/offer", put(offer).delete(withdraw_offer))
            .route("/api/v1/events", get(events))
            .layer(axum::middleware::map_request(only_the_vms))
            .with_state(self.clone())
    }
}

async fn only_the_vms<B>(request: Request<B>) -> Result<Request<B>, Failure> {
    let value = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    match value.and_then(homing_base::client::parse_basic) {
        Some(given) if given == Credentials::new("vms", "sesame") => Ok(request),
        _ => Err(Failure::new(StatusCode::UNAUTHORIZED, Problem::new("unauthorised", "who are you?"))),
    }
}

fn server(name: &str, account: &str) -> Server {
    Server {
        name: name.into(),
        external: "0.0.0.0:8443".into(),
        public: vec![format!("{name}.example:8443")],
        dispatcher: "https://dispatcher.example".into(),
        dispatcher_problem: None,
        account: account.into(),
        trust_anchor: format!("anchor of {name}"),
        certificates: Vec::new(),
    }
}

async fn list(State(tunnel): State<FakeTunnel>) -> Json<Vec<Device>> {
    Json(tunnel.devices.lock().unwrap().values().cloned().collect())
}

/// An OAK of zeros is wrong, one of ones finds no dispatcher.
async fn register(
    State(tunnel): State<FakeTunnel>,
    Json(new): Json<NewDevice>,
) -> Result<(StatusCode, Json<Device>), Failure> {
    let refuse =
        |status, code: &str| Err(Failure::new(status, Problem::at(Step::Relay, code, format!("no: {code}"))));
    if tunnel.devices.lock().unwrap().contains_key(&new.serial) {
        return refuse(StatusCode::CONFLICT, "already-registered");
    }
    let (status, relay) = match new.oak.label().as_str() {
        "0000-0000-0000" => return refuse(StatusCode::UNPROCESSABLE_ENTITY, "wrong-oak"),
        "1111-1111-1111" => (StatusCode::ACCEPTED, RelayState::Pending),
        _ => (StatusCode::CREATED, RelayState::Waiting),
    };
    let key = new.fingerprint.as_deref().unwrap_or("-");
    tunnel.note(format!("register {} {key}", new.serial));
    let mut device = device(new.serial, &new.name);
    device.relay = relay;
    device.user = new.user;
    tunnel.put(device.clone());
    Ok((status, Json(device)))
}

/// With figures as they are now; those in lists are old.
async fn one(State(tunnel): State<FakeTunnel>, Path(serial): Path<SerialNumber>) -> Json<Device> {
    let device = tunnel.devices.lock().unwrap()[&serial].clone();
    Json(Device { bytes_in: 4711, ..device })
}

async fn change(
    State(tunnel): State<FakeTunnel>,
    Path(serial): Path<SerialNumber>,
    Json(change): Json<ChangeDevice>,
) -> Result<Json<Device>, Failure> {
    let mut device = tunnel.devices.lock().unwrap()[&serial].clone();
    device.name = change.name.unwrap_or(device.name);
    device.user = change.user.unwrap_or(device.user);
    if change.oak.is_some_and(|oak| oak.label() == "0000-0000-0000") {
        let problem = Problem::at(Step::Relay, "wrong-oak", "no: wrong-oak");
        return Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, problem));
    }
    if let Some(password) = &change.password {
        device.own_password = change.own_password;
        tunnel.note(format!("password {} own {}", password.expose(), change.own_password));
        device.relay = RelayState::Waiting;
        device.problem = None;
    }
    tunnel.put(device.clone());
    Ok(Json(device))
}

/// As typed, with a key; a device called "Sealed" has an OAK that the others refuse.
async fn handover(State(tunnel): State<FakeTunnel>, Path(serial): Path<SerialNumber>) -> Json<NewDevice> {
    let device = tunnel.devices.lock().unwrap()[&serial].clone();
    let oak = if device.name == "Sealed" { "0000-0000-0000" } else { "0123-4567-89AB" };
    let password = if device.own_password { "own-secret" } else { "device-secret" };
    Json(NewDevice {
        name: device.name,
        description: device.description,
        fingerprint: Some("a".repeat(64)),
        own_password: device.own_password,
        ..NewDevice::new(serial, oak.parse().unwrap(), device.user, password)
    })
}

async fn begin_move(
    State(tunnel): State<FakeTunnel>,
    Path(serial): Path<SerialNumber>,
    Json(to): Json<Move>,
) -> Json<Device> {
    tunnel.note(format!(
        "move {serial} to {} trusting {} account {}{}",
        to.target.servers.join(","),
        to.target.trust_anchor,
        to.account.as_deref().unwrap_or("-"),
        if to.keep { " keeping it" } else { "" },
    ));
    let mut device = tunnel.devices.lock().unwrap()[&serial].clone();
    let state = if device.connected { MoveState::Trying } else { MoveState::Queued };
    device.moving = Some(Moving {
        state,
        keep: to.keep,
        servers: to.target.servers,
        since: Timestamp::now(),
        problem: None,
    });
    tunnel.put(device.clone());
    Json(device)
}

async fn undo_move(State(tunnel): State<FakeTunnel>, Path(serial): Path<SerialNumber>) -> Json<Device> {
    tunnel.note(format!("undo {serial}"));
    let mut device = tunnel.devices.lock().unwrap()[&serial].clone();
    device.moving = None;
    tunnel.put(device.clone());
    Json(device)
}

/// The account "nobody" is not known.
async fn offer(
    State(tunnel): State<FakeTunnel>,
    Path(serial): Path<SerialNumber>,
    Json(offer): Json<Offer>,
) -> Result<StatusCode, Failure> {
    if offer.to == "nobody" {
        let problem = Problem::new("unknown-account", "There is no account called \"nobody\".");
        return Err(Failure::new(StatusCode::NOT_FOUND, problem));
    }
    tunnel.note(format!("offer {serial} to {}", offer.to));
    Ok(StatusCode::NO_CONTENT)
}

async fn withdraw_offer(State(tunnel): State<FakeTunnel>, Path(serial): Path<SerialNumber>) -> StatusCode {
    tunnel.note(format!("withdraw {serial}"));
    StatusCode::NO_CONTENT
}

async fn unregister(State(tunnel): State<FakeTunnel>, Path(serial): Path<SerialNumber>) -> StatusCode {
    tunnel.note(format!("unregister {serial}"));
    tunnel.remove(serial);
    StatusCode::NO_CONTENT
}

async fn history(State(tunnel): State<FakeTunnel>) -> Json<Vec<Connection>> {
    Json(tunnel.history.lock().unwrap().clone())
}

fn one_that_stands_and_one_that_ended() -> Vec<Connection> {
    let ended = Connection {
        since: Timestamp::UNIX_EPOCH,
        until: Some(Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_secs(60)),
        peer: "192.0.2.7:39999".into(),
        dialled: Some("sts.example:8443".into()),
        code: Some("silent".into()),
        reason: Some("nothing came from the other end for 25 s".into()),
        bytes_in: 1000,
        bytes_out: 20,
    };
    let stands = Connection { until: None, code: None, reason: None, ..ended.clone() };
    vec![stands, ended]
}

/// Of every device that is connected.
async fn figures(State(tunnel): State<FakeTunnel>) -> Json<Vec<Figures>> {
    let devices = tunnel.devices.lock().unwrap();
    let connected = devices.values().filter(|device| device.connected);
    let figures = |device: &Device| Figures {
        serial: device.serial,
        rtt_ms: Some(12),
        bytes_in: 4711,
        bytes_out: 42,
        bps_in: 500_000,
        bps_out: 1000,
    };
    Json(connected.map(figures).collect())
}

async fn credentials(Path(_): Path<SerialNumber>) -> Json<Credentials> {
    Json(Credentials::new("root", "device-secret"))
}

/// As a tunnel server does: everything and `ready`, or on after what was seen.
async fn events(
    State(tunnel): State<FakeTunnel>,
    Query(asked): Query<BTreeMap<String, String>>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let life = tunnel.life.lock().unwrap().to_string();
    let changed = tunnel.changed.subscribe();
    let after = asked.get("after").and_then(|after| after.strip_prefix(&format!("{life}-"))?.parse().ok());
    let event = |name: &str, data: &str| Event::default().event(name).data(data);
    let (next, first) = match after {
        Some(after) => (after, vec![event("resumed", "{}")]),
        None => {
            let next = tunnel.log.lock().unwrap().len();
            let mut first =
                vec![event("reset", &json!({ "missed": asked.contains_key("after") }).to_string())];
            let devices = tunnel.devices.lock().unwrap();
            first.extend(
                devices.values().map(|device| event("device", &serde_json::to_string(device).unwrap())),
            );
            first.push(event("ready", "{}").id(format!("{life}-{next}")));
            (next, first)
        }
    };
    let token = tunnel.stop.token().clone();
    let changes = stream::unfold((tunnel, changed, next, life), async |(tunnel, mut changed, next, life)| {
        loop {
            let told = tunnel.log.lock().unwrap().get(next).cloned();
            match told {
                Some((name, data)) => {
                    let event = Event::default().event(name).data(data).id(format!("{life}-{}", next + 1));
                    return Some((event, (tunnel, changed, next + 1, life)));
                }
                None => changed.recv().await.ok()?,
            }
        }
    });
    Sse::new(stream::iter(first).chain(changes).take_until(token.cancelled_owned()).map(Ok))
}

pub fn serial(last: u8) -> SerialNumber {
    SerialNumber::new([0, 0x40, 0x8C, 0x70, 0x20, last])
}

pub fn device(serial: SerialNumber, name: &str) -> Device {
    Device {
        serial,
        name: name.into(),
        description: String::new(),
        site: None,
        user: "root".into(),
        step: Step::Relay,
        relay: RelayState::Waiting,
        connected: false,
        since: None,
        peer: None,
        rtt_ms: None,
        bytes_in: 0,
        bytes_out: 0,
        problem: None,
        moving: None,
        contested: None,
        own_password: false,
        access: Default::default(),
        bps_in: 0,
        bps_out: 0,
        uplinks: Vec::new(),
        last_problem: None,
    }
}

// A recording role

#[derive(Clone, Default)]
pub struct FakeRecording {
    pub hardware: Arc<Mutex<Vec<recording::Hardware>>>,
    /// Where hardware was told that its device is, in order.
    pub followed: Arc<Mutex<Vec<String>>>,
    /// The way to the devices of each tunnel server, by its name.
    pub ways: Arc<Mutex<BTreeMap<String, recording::Way>>>,
    /// Headers of the last request that was passed on.
    pub seen: Arc<Mutex<HeaderMap>>,
}

impl FakeRecording {
    pub fn router(&self) -> Router {
        self.base_router().merge(self.media_router())
    }

    pub fn base_router(&self) -> Router {
        Router::new()
            .route("/api/v1/hardware", get(hardware).post(add))
            .route("/api/v1/tunnel-servers/{name}", put(set_way).delete(forget_way))
            .route("/api/v1/hardware/{id}", axum::routing::delete(remove).patch(follow))
            .route("/api/v1/cameras", get(cameras))
            .route("/api/v1/cameras/{id}", get(camera).patch(camera))
            .with_state(self.clone())
    }

    fn media_router(&self) -> Router {
        Router::new()
            .route("/api/v1/cameras/{id}/live", get(live))
            .route("/api/v1/cameras/{id}/timeline", get(async || Json(json!({"ranges": [], "gaps": []}))))
            .route("/api/v1/cameras/{id}/recording.mp4", get(async || "mp4"))
            .route("/api/v1/cameras/{id}/init/{init}", get(async |Path(ids): Path<(i64, i64)>| Json(ids)))
            .route("/api/v1/cameras/{id}/fragment", get(async || "moof"))
            .with_state(self.clone())
    }
}

async fn hardware(State(recording): State<FakeRecording>) -> Json<Vec<recording::Hardware>> {
    Json(recording.hardware.lock().unwrap().clone())
}

async fn add(
    State(recording): State<FakeRecording>,
    Json(new): Json<recording::NewHardware>,
) -> Result<(StatusCode, Json<recording::Hardware>), Failure> {
    if !new.password.matches("device-secret") {
        let problem = Problem::at(Step::Add, "wrong-credentials", "The device refused user and password.");
        return Err(Failure::new(StatusCode::BAD_GATEWAY, problem));
    }
    let recording::DeviceAddress::Tunnel { serial, .. } = new.device else { panic!("{new:?}") };
    let mut all = recording.hardware.lock().unwrap();
    let id = all.len() as i64 + 1;
    let camera = recording::Camera {
        id: id * 10,
        hardware: id,
        serial,
        name: new.name.clone(),
        status: recording::CameraStatus {
            state: recording::CameraState::Recording,
            since: Timestamp::now(),
            problem: None,
            bitrate_bps: 500_000,
            last_frame: Some(Timestamp::now()),
        },
    };
    let added = recording::Hardware {
        id,
        name: new.name,
        device: new.device,
        serial,
        model: "Homing Simulated".into(),
        cameras: vec![camera],
    };
    all.push(added.clone());
    Ok((StatusCode::CREATED, Json(added)))
}

async fn remove(State(recording): State<FakeRecording>, Path(id): Path<i64>) -> Result<StatusCode, Failure> {
    let mut all = recording.hardware.lock().unwrap();
    let before = all.len();
    all.retain(|hardware| hardware.id != id);
    if all.len() == before { Err(Failure::not_found("no such hardware")) } else { Ok(StatusCode::NO_CONTENT) }
}

async fn set_way(
    State(recording): State<FakeRecording>,
    Path(name): Path<String>,
    Json(way): Json<recording::Way>,
) -> StatusCode {
    recording.ways.lock().unwrap().insert(name, way);
    StatusCode::NO_CONTENT
}

async fn forget_way(State(recording): State<FakeRecording>, Path(name): Path<String>) -> StatusCode {
    recording.ways.lock().unwrap().remove(&name);
    StatusCode::NO_CONTENT
}

async fn follow(
    State(recording): State<FakeRecording>,
    Path(id): Path<i64>,
    Json(change): Json<recording::HardwareChange>,
) -> Json<recording::Hardware> {
    recording.followed.lock().unwrap().push(change.server.clone());
    let mut all = recording.hardware.lock().unwrap();
    let hardware = all.iter_mut().find(|hardware| hardware.id == id).unwrap();
    let serial = hardware.serial;
    hardware.device = recording::DeviceAddress::Tunnel { server: change.server, serial };
    Json(hardware.clone())
}

async fn cameras(State(recording): State<FakeRecording>, headers: HeaderMap) -> Json<Vec<recording::Camera>> {
    *recording.seen.lock().unwrap() = headers;
    Json(recording.hardware.lock().unwrap().iter().flat_map(|hardware| hardware.cameras.clone()).collect())
}

async fn camera(
    State(recording): State<FakeRecording>,
    Path(id): Path<i64>,
) -> Result<Json<recording::Camera>, Failure> {
    let all = recording.hardware.lock().unwrap();
    let found = all.iter().flat_map(|hardware| &hardware.cameras).find(|camera| camera.id == id);
    found.cloned().map(Json).ok_or_else(|| Failure::not_found("no such camera"))
}

async fn live(
    Path(id): Path<i64>,
    axum::Extension(mut leave): axum::Extension<homing_base::Leave>,
    upgrade: WebSocketUpgrade,
) -> Response {
    upgrade.on_upgrade(async move |mut socket| {
        let start = json!({"type": "start", "camera": id}).to_string();
        let _ = socket.send(Message::Text(start.into())).await;
        let _ = socket.send(Message::Binary(Bytes::from_static(b"moof"))).await;
        tokio::select! {
            () = leave.withdrawn() => (),
            _ = socket.recv() => (),
        }
    })
}

// A management server between them

pub struct Site {
    pub tunnel: FakeTunnel,
    /// Another tunnel server, with another account at the dispatcher; see [`Site::start_with_two`].
    pub second: FakeTunnel,
    pub recording: FakeRecording,
    pub tunnel_port: u16,
    pub address: std::net::SocketAddr,
    pub token: String,
    pub presses: Arc<Mutex<u32>>,
    tunnel_stop: Mutex<Stop>,
    stop: Stop,
    folder: tempfile::TempDir,
}

impl Site {
    pub async fn start() -> Site {
        Site::start_with(|_| ()).await
    }

    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Site {
        let recording = FakeRecording::default();
        let router = recording.router();
        Site::start_around(recording, router, change).await
    }

    /// With a second tunnel server, called `other`.
    pub async fn start_with_two() -> Site {
        let second = FakeTunnel::new("other", "shop");
        let stop = Stop::new();
        let port = second.serve(0, stop.clone()).await;
        let mut site = Site::start_with(|config| {
            config.tunnel_servers.push(config::TunnelServer {
                name: "other".into(),
                url: format!("http://127.0.0.1:{port}"),
                ..config.tunnel_servers[0].clone()
            });
        })
        .await;
        site.stop.spawn({
            let all = site.stop.clone();
            async move {
                all.cancelled().await;
                stop.drain(DEADLINE).await;
            }
        });
        site.second = second;
        let both = async {
            while site
                .get("/api/v1/tunnel-servers")
                .await
                .as_array()
                .unwrap()
                .iter()
                .any(|s| s["reachable"] == false)
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(DEADLINE, both).await.expect("both tunnel servers are reached");
        site
    }

    pub async fn start_around(
        recording: FakeRecording,
        router: Router,
        change: impl FnOnce(&mut Config),
    ) -> Site {
        let folder = tempfile::tempdir().unwrap();
        let stop = Stop::new();
        let tunnel = FakeTunnel::new("sts", "home");
        let tunnel_stop = stop.child();
        let tunnel_port = tunnel.serve(0, tunnel_stop.clone()).await;
        let presses = Arc::new(Mutex::new(0));
        let press = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let press_address = press.local_addr().unwrap();
        let pressed = presses.clone();
        let button = post(async move || *pressed.lock().unwrap() += 1);
        stop.spawn(homing_base::http::serve(
            press,
            Router::new().route("/press", button),
            None,
            stop.clone(),
        ));

        let mut config = Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            data: folder.path().join("management"),
            first_password: PASSWORD.into(),
            tunnel_servers: vec![config::TunnelServer {
                name: "sts".into(),
                url: format!("http://127.0.0.1:{tunnel_port}"),
                user: "vms".into(),
                password: "sesame".into(),
                ..config::TunnelServer::default()
            }],
            simulated_cameras: vec![config::SimulatedCamera {
                name: "Spare".into(),
                serial: serial(9),
                oak: "0123-4567-89AB".parse().unwrap(),
                user: "root".into(),
                password: "pass".into(),
                press: format!("http://{press_address}/press"),
            }],
            ..Config::default()
        };
        change(&mut config);
        let ops = Ops::new();
        let bound: Bound = homing_management::bind(config, router, &ops).await.unwrap();
        let address = bound.addr();
        assert!(bound.first_start().is_some_and(|first| first.password.matches(PASSWORD)));
        let token = bound.create_token("admin", "test").await.unwrap().expose().to_owned();
        let run = bound.run(stop.clone(), ops);
        stop.spawn(async move { run.await.unwrap() });
        Site {
            tunnel,
            second: FakeTunnel::new("none", ""),
            recording,
            tunnel_port,
            address,
            token,
            presses,
            tunnel_stop: Mutex::new(tunnel_stop),
            stop,
            folder,
        }
    }

    /// The management server's data folder.
    pub fn data(&self) -> std::path::PathBuf {
        self.folder.path().join("management")
    }

    pub async fn stop_tunnel(&self) {
        let stop = self.tunnel_stop.lock().unwrap().clone();
        stop.stop();
    }

    pub async fn restart_tunnel(&self) {
        let stop = self.stop.child();
        *self.tunnel_stop.lock().unwrap() = stop.clone();
        self.tunnel.serve(self.tunnel_port, stop).await;
    }

    /// With the API token.
    pub async fn call(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let bearer = format!("Bearer {}", self.token);
        let answer = self.raw(method, path, &[("authorization", &bearer)], body).await;
        (answer.0, answer.2)
    }

    pub async fn get(&self, path: &str) -> Value {
        let (status, body) = self.call(Method::GET, path, None).await;
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
        body
    }

    pub async fn raw(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> (StatusCode, HeaderMap, Value) {
        let client: Client<HttpConnector, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = match body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                body.to_string()
            }
            None => String::new(),
        };
        let answered = client.request(request.body(Full::from(body)).unwrap());
        let response = tokio::time::timeout(DEADLINE, answered).await.unwrap().unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let value = serde_json::from_slice(&body)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&body).into_owned()));
        (head.status, head.headers, value)
    }

    /// Signs in as the administrator and gives the cookie to send.
    pub async fn sign_in(&self) -> String {
        let body = json!({"user": "admin", "password": PASSWORD});
        let (status, headers, answer) = self.raw(Method::POST, "/api/v1/session", &[], Some(body)).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        let cookie = headers[header::SET_COOKIE].to_str().unwrap();
        cookie.split(';').next().unwrap().to_owned()
    }

    /// Waits until the one device is in this state.
    pub async fn until_device(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let waiting = async {
            loop {
                let devices = self.get("/api/v1/devices").await;
                if let Some(device) = devices.as_array().unwrap().iter().find(|device| holds(device)) {
                    return device.clone();
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let waited = tokio::time::timeout(DEADLINE, waiting).await;
        match waited {
            Ok(device) => device,
            Err(_) => panic!("{what}: {}", self.get("/api/v1/devices").await),
        }
    }

    pub async fn end(self) {
        assert!(self.stop.drain(Duration::from_secs(5)).await, "{} tasks are left", self.stop.running());
    }
}
