//! Steps 1 to 7 with nothing scripted: the dispatcher, a real tunnel server and the real site agent.

use crate::{device::PASSWORD, world::*};
use homing_agent::{CameraConfig, Config, DispatcherConfig, control};
use homing_base::{
    Ops, Stop, Workers,
    client::{ApiClient, Auth, CallError},
    stop::DRAIN_DEADLINE,
};
use homing_protocol::{
    Oak, Secret, SerialNumber, Step,
    api::tunnel::{Device, NewDevice, RelayState},
    secret::Credentials,
};
use homing_tunnel::TunnelHandle;
use http::{Method, Request};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// An agent that runs, in front of a camera that is away: up to step 7 the agent alone is asked.
pub struct Agent {
    config: Config,
    stop: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Agent {
    pub async fn start(data: &Path, world: &World, oak: Oak) -> Agent {
        Agent::start_with(data, world, oak, |_| ()).await
    }

    pub async fn start_with(data: &Path, world: &World, oak: Oak, change: impl FnOnce(&mut Config)) -> Agent {
        let mut config = Config {
            data: data.to_owned(),
            serial: Some(SERIAL),
            oak: Some(oak),
            retry_first_ms: 20,
            retry_max_ms: 200,
            dispatchers: vec![DispatcherConfig {
                address: world.external.to_string(),
                trust_anchor: world.trust.clone(),
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
        change(&mut config);
        let (bound, stop) = (homing_agent::bind(config.clone()).await.unwrap(), CancellationToken::new());
        #[expect(clippy::disallowed_methods, reason = "awaited in Agent::stop")]
        let running = tokio::spawn(bound.run(stop.clone()));
        Agent { config, stop, running }
    }

    /// Step 3.
    pub async fn press(&self) {
        let config = self.config.clone();
        tokio::task::spawn_blocking(move || control::press(&config)).await.unwrap().unwrap();
    }

    /// Factory default: a new key, nothing remembered, and not running.
    pub async fn reset(self) {
        let config = self.config.clone();
        self.stop().await;
        tokio::task::spawn_blocking(move || control::reset(&config)).await.unwrap().unwrap();
    }

    /// What its page shows.
    pub async fn status(&self) -> serde_json::Value {
        let config = self.config.clone();
        tokio::task::spawn_blocking(move || control::status(&config)).await.unwrap().unwrap()
    }

    /// The addresses that it dials.
    pub async fn dials(&self) -> Vec<String> {
        let status = self.status().await;
        let uplinks = status["uplinks"].as_array().unwrap().iter();
        uplinks.map(|uplink| uplink["address"].as_str().unwrap().to_owned()).collect()
    }

    pub async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(DEADLINE, self.running).await.unwrap().unwrap().unwrap();
    }
}

/// A tunnel server that runs.
pub struct Tunnel {
    pub external: SocketAddr,
    pub handle: TunnelHandle,
    pub api: ApiClient,
    pub ops: Ops,
    pub data: PathBuf,
    stop: Stop,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Tunnel {
    pub async fn start(data: &Path, world: &World, account: &str, password: &Secret) -> Tunnel {
        Tunnel::start_with(data, world, account, password, |_| ()).await
    }

    pub async fn start_with(
        data: &Path,
        world: &World,
        account: &str,
        password: &Secret,
        change: impl FnOnce(&mut homing_tunnel::Config),
    ) -> Tunnel {
        let mut config = homing_tunnel::Config {
            external: "127.0.0.1:0".parse().unwrap(),
            internal: "127.0.0.1:0".parse().unwrap(),
            user: "vms".into(),
            password: "the password of the vms".into(),
            data: data.join(format!("tunnel-of-{account}")),
            dispatcher: homing_tunnel::Dispatcher {
                address: format!("https://{}", world.api),
                trust_anchor: world.trust.clone(),
                account: account.into(),
                password: password.clone(),
            },
            ..homing_tunnel::Config::default()
        };
        config.limits.retry_first_ms = 50;
        config.limits.retry_longest_ms = 400;
        change(&mut config);
        let credentials = Credentials::new(config.user.clone(), config.password.clone());
        let (ops, data) = (Ops::new(), config.data.clone());
        let bound = homing_tunnel::bind(config, &ops, &Workers::current()).await.unwrap();
        let (external, handle) = (bound.external_addr(), bound.handle());
        let base = format!("http://{}", bound.internal_addr());
        let api = ApiClient::new("tunnel server", &base, &Auth::Basic(credentials), None).unwrap();
        let stop = Stop::new();
        #[expect(clippy::disallowed_methods, reason = "awaited in Tunnel::stop")]
        let running = tokio::spawn(bound.run(stop.clone()));
        Tunnel { external, handle, api, ops, data, stop, running }
    }

    /// Step 1, and step 2 with it.
    pub async fn register(
        &self,
        serial: SerialNumber,
        oak: Oak,
        password: &str,
    ) -> Result<Device, CallError> {
        let new =
            NewDevice { name: "Front door".to_owned(), ..NewDevice::new(serial, oak, "root", password) };
        self.api.send(Method::POST, "/api/v1/devices", &new).await
    }

    pub async fn correct(&self, change: serde_json::Value) -> Result<Device, CallError> {
        self.api.send(Method::PATCH, &format!("/api/v1/devices/{SERIAL}"), &change).await
    }

    /// Waits until the device is as wanted.
    pub async fn until(&self, what: &str, wanted: impl Fn(&Device) -> bool) -> Device {
        let watching = async {
            loop {
                if let Some(device) = self.handle.device(SERIAL).filter(&wanted) {
                    return device;
                }
                tokio::task::yield_now().await;
            }
        };
        let watched = tokio::time::timeout(DEADLINE, watching).await;
        watched.unwrap_or_else(|_| panic!("not {what}: {:#?}", self.handle.device(SERIAL)))
    }

    /// Step 7: it is there, and a request through the tunnel reaches it.
    pub async fn until_ready(&self) {
        let device = self.until("ready", |device| device.connected && device.step == Step::Tunnel).await;
        assert_eq!((device.relay, device.problem), (RelayState::Dispatched, None));
        let request = Request::get("/nothing-here").body(bytes::Bytes::new()).unwrap();
        let answer = tokio::time::timeout(DEADLINE, self.handle.request(SERIAL, request)).await.unwrap();
        answer.expect("an answer of the agent");
    }

    pub async fn stop(self) {
        assert!(self.stop.drain(DRAIN_DEADLINE).await, "{} tasks left", self.stop.running());
        self.running.await.unwrap().unwrap();
    }
}

/// A dispatcher with one account, and a whole tunnel server with that account.
pub async fn world_with_tunnel() -> (tempfile::TempDir, World, Tunnel) {
    let folder = tempfile::tempdir().unwrap();
    let password = account(folder.path(), "shop").await;
    let world = World::start(folder.path()).await;
    let tunnel = Tunnel::start(folder.path(), &world, "shop", &password).await;
    (folder, world, tunnel)
}

/// A: 1 2 3 4 5 6 7. Nothing goes wrong.
#[tokio::test]
async fn steps_1_register_to_7_tunnel_in_scenario_a() {
    let (folder, world, tunnel) = world_with_tunnel().await;
    let agent = Agent::start(&folder.path().join("agent"), &world, OAK).await;
    let registered = tunnel.register(SERIAL, OAK, PASSWORD).await.unwrap();
    assert_eq!((registered.relay, registered.step), (RelayState::Waiting, Step::Relay));
    agent.press().await;
    tunnel.until_ready().await;
    world.until_metric("devices 0").await;
    agent.stop().await;
    tunnel.stop().await;
    world.stop().await;
}

/// C: 3 4 1 2 5 6 7, after everything that can be wrong with a registration; each is refused at step 1, and
/// nothing is kept.
#[tokio::test]
async fn steps_3_press_4_phone_home_then_1_register_to_7_tunnel_in_scenario_c_after_mistakes() {
    let (folder, world, tunnel) = world_with_tunnel().await;
    let agent = Agent::start(&folder.path().join("agent"), &world, OAK).await;
    agent.press().await;
    world.until_metric("devices 1").await;
    for (oak, password, code) in [(OTHER_OAK, PASSWORD, "wrong-oak"), (OAK, "wrong", "wrong-credentials")] {
        let refused = tunnel.register(SERIAL, oak, password).await;
        assert_eq!(refusal(refused).1, code);
        assert!(tunnel.handle.device(SERIAL).is_none(), "kept");
    }
    let began = std::time::Instant::now();
    tunnel.register(SERIAL, OAK, PASSWORD).await.unwrap();
    tunnel.until_ready().await;
    assert!(began.elapsed() < std::time::Duration::from_secs(3), "{:?}", began.elapsed());
    world.until_metric("devices 0").await;
    agent.stop().await;
    tunnel.stop().await;
    world.stop().await;
}

/// A, with a wrong OAK and then a wrong password: told when the device comes, and mended in place.
#[tokio::test]
async fn step_5_dispatch_in_scenario_a_is_refused_and_corrected_at_the_tunnel_server() {
    let (folder, world, tunnel) = world_with_tunnel().await;
    let agent = Agent::start(&folder.path().join("agent"), &world, OAK).await;
    tunnel.register(SERIAL, OTHER_OAK, "wrong").await.unwrap();
    agent.press().await;
    let refused = tunnel.until("refused", |device| device.relay == RelayState::Refused).await;
    assert_eq!(refused.problem.unwrap().code, "wrong-oak");
    let still = tunnel.correct(serde_json::json!({ "oak": OAK.label() })).await;
    assert_eq!(refusal(still).1, "wrong-credentials");
    let change = serde_json::json!({ "oak": OAK.label(), "password": PASSWORD });
    tunnel.correct(change).await.unwrap();
    tunnel.until_ready().await;
    agent.stop().await;
    tunnel.stop().await;
    world.stop().await;
}

/// A stranger with somebody else's serial number neither gets in nor gets in the way: before the device
/// comes, while it is connected, and at the tunnel server.
#[tokio::test]
async fn steps_4_phone_home_to_7_tunnel_a_stranger_with_a_known_serial_number_changes_nothing() {
    let (folder, world, tunnel) = world_with_tunnel().await;
    let stranger = Agent::start(&folder.path().join("stranger"), &world, OTHER_OAK).await;
    tunnel.register(SERIAL, OAK, PASSWORD).await.unwrap();
    stranger.press().await;
    tunnel.until("refused", |device| device.relay == RelayState::Refused).await;
    let agent = Agent::start(&folder.path().join("agent"), &world, OAK).await;
    agent.press().await;
    tunnel.until_ready().await;
    // The agent has left; were it still there, it would just be dispatched once more.
    world.until_metric("devices 1").await;

    stranger.stop().await;
    let stranger = Agent::start(&folder.path().join("stranger"), &world, OTHER_OAK).await;
    stranger.press().await;
    // It looks as if the device had returned after a reset. But that is connected: its secrets are not sent again.
    let code = |device: &Device| device.problem.as_ref().map(|problem| problem.code.clone());
    tunnel
        .until("doubted", |device| device.connected && code(device).as_deref() == Some("another-key"))
        .await;
    world.until_metric(r#"dispatches_total{result="wrong-oak"} 1"#).await;

    let never = CancellationToken::new();
    let other = device(OTHER_OAK);
    let trust = std::fs::read_to_string(folder.path().join("tunnel-of-shop/tunnel-ca.pem")).unwrap();
    let refused = other.dial(&format!("https://{}/", tunnel.external), &trust, &never).await.unwrap_err();
    assert!(refused.to_string().contains("403"), "{refused}");
    assert!(tunnel.handle.device(SERIAL).unwrap().connected);
    stranger.stop().await;
    tunnel.until("believed again", |device| device.connected && device.problem.is_none()).await;
    agent.stop().await;
    tunnel.stop().await;
    world.stop().await;
}

/// What another owner has claimed is refused at step 1, until that one deletes it.
#[tokio::test]
async fn step_2_relay_a_device_of_another_owner_is_refused_until_it_is_released() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (account(folder.path(), "alpha").await, account(folder.path(), "beta").await);
    let world = World::start(folder.path()).await;
    let first = Tunnel::start(folder.path(), &world, "alpha", &first).await;
    let second = Tunnel::start(folder.path(), &world, "beta", &second).await;
    let agent = Agent::start(&folder.path().join("agent"), &world, OAK).await;
    first.register(SERIAL, OAK, PASSWORD).await.unwrap();
    agent.press().await;
    first.until_ready().await;
    let (status, code, message) = refusal(second.register(SERIAL, OAK, PASSWORD).await);
    assert_eq!((status, code.as_str()), (409, "claimed-by-another-account"), "{message}");
    let _: () = first.api.send(Method::DELETE, &format!("/api/v1/devices/{SERIAL}"), &()).await.unwrap();
    second.register(SERIAL, OAK, PASSWORD).await.unwrap();
    agent.press().await;
    second.until_ready().await;
    agent.stop().await;
    first.stop().await;
    second.stop().await;
    world.stop().await;
}

/// Each server restarts between any two steps, the dispatcher is away at step 1, and nothing is lost.
#[tokio::test]
async fn steps_1_register_to_7_tunnel_with_a_restart_of_either_server_between_any_two() {
    let folder = tempfile::tempdir().unwrap();
    let password = account(folder.path(), "shop").await;
    let world = World::start(folder.path()).await;
    let (external, api) = (world.external, world.api);
    let tunnel = Tunnel::start(folder.path(), &world, "shop", &password).await;
    let at = tunnel.external;
    let again = |config: &mut homing_tunnel::Config| config.external = at;
    let agent = Agent::start(&folder.path().join("agent"), &world, OAK).await;
    let same = |config: &mut homing_dispatcher::Config| (config.external, config.api) = (external, api);

    world.stop().await;
    let kept = tunnel.register(SERIAL, OAK, PASSWORD).await.unwrap();
    assert_eq!(kept.relay, RelayState::Pending);
    tunnel.until("said why", |device| device.problem.is_some()).await;
    let world = World::start_with(folder.path(), same).await;
    tunnel.until("relayed", |device| device.relay == RelayState::Waiting).await;

    world.stop().await;
    let world = World::start_with(folder.path(), same).await;
    tunnel.stop().await;
    let tunnel = Tunnel::start_with(folder.path(), &world, "shop", &password, again).await;
    agent.press().await;
    tunnel.until_ready().await;

    tunnel.stop().await;
    world.stop().await;
    let world = World::start_with(folder.path(), same).await;
    let tunnel = Tunnel::start_with(folder.path(), &world, "shop", &password, again).await;
    tunnel.until_ready().await;
    agent.stop().await;
    tunnel.stop().await;
    world.stop().await;
}
