//! No device is ever stranded: several addresses at once, moves, resets, and servers that stay away; with the
//! dispatcher, real tunnel servers and the real site agent.

use crate::{
    device::PASSWORD,
    flow::{Agent, Tunnel},
    world::*,
};
use homing_base::client::CallError;
use homing_protocol::{
    Secret, Step,
    api::{
        Target,
        dispatcher::RegistrationState,
        tunnel::{Device, Move, MoveState, NewDevice, RelayState},
    },
};
use http::Method;
use std::{net::SocketAddr, path::Path};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// An address that leads to a server, or nowhere.
struct Line {
    address: SocketAddr,
    to: watch::Sender<Option<SocketAddr>>,
    _end: DropGuard,
}

impl Line {
    /// To nowhere.
    async fn new() -> Line {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (to, end) = (watch::Sender::new(None), CancellationToken::new());
        let (leads, ended) = (to.clone(), end.clone());
        let leading = async move {
            let mut lines = JoinSet::new();
            loop {
                let (mut device, _) = listener.accept().await.unwrap();
                let mut leads = leads.subscribe();
                lines.spawn(async move {
                    let Some(server) = *leads.borrow_and_update() else { return };
                    let Ok(mut server) = TcpStream::connect(server).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut device, &mut server) => (),
                        _ = leads.changed() => (),
                    }
                });
            }
        };
        #[expect(clippy::disallowed_methods, reason = "ends with Line")]
        tokio::spawn(ended.run_until_cancelled_owned(leading));
        Line { address, to, _end: end.drop_guard() }
    }

    /// From now on; what it carries is cut.
    fn lead(&self, to: Option<SocketAddr>) {
        self.to.send_replace(to);
    }
}

impl Tunnel {
    fn metric(&self, name: &str) -> u64 {
        let (text, name) = (self.ops.metrics(), format!("homing_tunnel_{name} "));
        let line = text.lines().find_map(|line| line.strip_prefix(&name).map(str::to_owned));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    /// As another tunnel server's administrator writes it down.
    fn target(&self, folder: &Path, account: &str) -> Target {
        let trust_anchor = format!("tunnel-of-{account}/tunnel-ca.pem");
        let trust_anchor = std::fs::read_to_string(folder.join(trust_anchor)).unwrap();
        Target { servers: vec![self.external.to_string()], trust_anchor }
    }

    async fn send(&self, target: Target, account: Option<&str>) -> Result<Device, CallError> {
        let order = Move { target, account: account.map(str::to_owned), keep: false };
        self.api.send(Method::PUT, &format!("/api/v1/devices/{SERIAL}/move"), &order).await
    }

    async fn keep(&self, beside: &Tunnel) -> Result<Device, CallError> {
        let trust_anchor = std::fs::read_to_string(beside.data.join("tunnel-ca.pem")).unwrap();
        let target = Target { servers: vec![beside.external.to_string()], trust_anchor };
        let order = Move { target, account: Some("shop".to_owned()), keep: true };
        self.api.send(Method::PUT, &format!("/api/v1/devices/{SERIAL}/move"), &order).await
    }

    async fn call_back(&self) -> Result<Device, CallError> {
        self.api.send(Method::DELETE, &format!("/api/v1/devices/{SERIAL}/move"), &()).await
    }

    async fn handover(&self) -> NewDevice {
        self.api.get(&format!("/api/v1/devices/{SERIAL}/handover")).await.unwrap()
    }

    async fn take_over(&self, device: &NewDevice) -> Result<Device, CallError> {
        self.api.send(Method::POST, "/api/v1/devices", device).await
    }

    async fn until_move(&self, state: MoveState) -> Device {
        let is = |device: &Device| device.moving.as_ref().is_some_and(|moving| moving.state == state);
        self.until(&format!("{state:?}"), is).await
    }

    async fn until_uplinks(&self, number: u64) {
        self.until(&format!("with {number} uplinks"), |_| self.metric("uplinks") == number).await;
    }
}

/// Two addresses that lead to one server: both uplinks stand, neither pushes the other off, and losing either loses
/// nothing.
#[tokio::test]
async fn step_7_tunnel_two_addresses_of_one_server_are_held_in_parallel() {
    let folder = tempfile::tempdir().unwrap();
    let password = account(folder.path(), "shop").await;
    let world = World::start(folder.path()).await;
    let lines = [Line::new().await, Line::new().await];
    let public = lines.each_ref().map(|line| line.address.to_string());
    let tunnel = Tunnel::start_with(folder.path(), &world, "shop", &password, |config| {
        config.public = public.to_vec();
    })
    .await;
    lines.iter().for_each(|line| line.lead(Some(tunnel.external)));
    let agent = Agent::start(&folder.path().join("agent"), &world, OAK).await;
    tunnel.register(SERIAL, OAK, PASSWORD).await.unwrap();
    agent.press().await;
    tunnel.until_ready().await;
    tunnel.until_uplinks(2).await;
    world.until_metric("devices 0").await;
    let since = tunnel.handle.device(SERIAL).unwrap().since;

    for (cut, other) in [(0, 1), (1, 0)] {
        let admitted = tunnel.metric("uplinks_admitted_total");
        let mut events = tunnel.handle.subscribe();
        lines[cut].lead(None);
        tunnel.until_uplinks(1).await;
        tunnel.until_ready().await;
        lines[cut].lead(Some(tunnel.external));
        tunnel.until_uplinks(2).await;
        tunnel.until_ready().await;
        assert_eq!(tunnel.metric("uplinks_admitted_total"), admitted + 1, "line {other} stood all the time");
        let now = tunnel.handle.device(SERIAL).unwrap();
        assert_eq!(now.since, since, "connected all the time");
        let told = async {
            loop {
                let Some(homing_tunnel::Event::Device(told)) = events.next().await else { panic!() };
                assert!(told.connected, "told as offline: {told:?}");
                if Device::clone(&told).peer == now.peer {
                    return;
                }
            }
        };
        tokio::time::timeout(DEADLINE, told).await.unwrap();
    }
    assert_eq!(tunnel.handle.device(SERIAL).unwrap().step, Step::Tunnel);
    agent.stop().await;
    tunnel.stop().await;
    world.stop().await;
}

/// Steps 1 to 7 at the first of two tunnel servers.
struct Site {
    folder: tempfile::TempDir,
    world: World,
    first: Tunnel,
    second: Tunnel,
    agent: Agent,
    passwords: [Secret; 2],
}

impl Site {
    async fn new() -> Site {
        let folder = tempfile::tempdir().unwrap();
        let passwords = [account(folder.path(), "alpha").await, account(folder.path(), "beta").await];
        let world = World::start(folder.path()).await;
        let first = Tunnel::start(folder.path(), &world, "alpha", &passwords[0]).await;
        let second = Tunnel::start(folder.path(), &world, "beta", &passwords[1]).await;
        let agent = Agent::start(&folder.path().join("agent"), &world, OAK).await;
        first.register(SERIAL, OAK, PASSWORD).await.unwrap();
        agent.press().await;
        first.until_ready().await;
        world.until_metric("devices 0").await;
        Site { folder, world, first, second, agent, passwords }
    }

    fn target_first(&self) -> Target {
        self.first.target(self.folder.path(), "alpha")
    }

    fn target_second(&self) -> Target {
        self.second.target(self.folder.path(), "beta")
    }

    async fn stop(self) {
        self.agent.stop().await;
        self.first.stop().await;
        self.second.stop().await;
        self.world.stop().await;
    }
}

fn dialled(tunnel: &Tunnel) -> String {
    format!("https://{}/", tunnel.external)
}

/// A device whose dispatchers are all down keeps its tunnel, can be moved to another server that its key was handed to,
/// and back.
#[tokio::test]
async fn step_6_connect_a_move_and_its_undoing_need_no_dispatcher() {
    let site = Site::new().await;
    let (first, second) = (&site.first, &site.second);
    let Site { world, .. } = &site;
    world.stop.stop();
    first.until_ready().await;

    let handover = first.handover().await;
    assert!(handover.fingerprint.is_some() && handover.oak == OAK && handover.password.matches(PASSWORD));
    let kept = second.take_over(&handover).await.unwrap();
    assert_eq!((kept.relay, kept.connected), (RelayState::Pending, false));
    first.send(site.target_second(), None).await.unwrap();
    let moved = first.until("let go", |device| !device.connected).await;
    second.until("there", |device| device.connected && device.step == Step::Tunnel).await;
    assert_eq!(moved.moving.unwrap().state, MoveState::Moved);
    assert_eq!(moved.problem, None, "a move is no outage");
    assert_eq!(site.agent.dials().await, [dialled(second)]);

    // Undone: it is expected back, and comes.
    let expected = first.call_back().await.unwrap();
    assert_eq!((expected.moving, expected.connected), (None, false));
    second.send(site.target_first(), None).await.unwrap();
    second.until("let go", |device| !device.connected).await;
    first.until("back", |device| device.connected && device.moving.is_none()).await;
    assert_eq!(site.agent.dials().await, [dialled(first)]);

    // And once more, without a word to the first: it is here, so it is not moved any more.
    first.send(site.target_second(), None).await.unwrap();
    second.until("there again", |device| device.connected && device.moving.is_none()).await;
    first.until_move(MoveState::Moved).await;
    second.send(site.target_first(), None).await.unwrap();
    first.until("back again", |device| device.connected && device.moving.is_none()).await;
    second.until_move(MoveState::Moved).await;
    site.stop().await;
}

/// Two tunnel servers of one account keep a device: it holds a tunnel to both, finds back to both when it is dispatched
/// anew, and leaves one of them without losing the other or the claim.
#[tokio::test]
async fn step_7_tunnel_two_tunnel_servers_keep_a_device() {
    let folder = tempfile::tempdir().unwrap();
    let password = account(folder.path(), "shop").await;
    let world = World::start(folder.path()).await;
    let first = Tunnel::start(folder.path(), &world, "shop", &password).await;
    let data = folder.path().join("second");
    let second =
        Tunnel::start_with(folder.path(), &world, "shop", &password, |config| config.data = data).await;
    let agent = Agent::start(&folder.path().join("agent"), &world, OAK).await;
    first.register(SERIAL, OAK, PASSWORD).await.unwrap();
    agent.press().await;
    first.until_ready().await;

    first.keep(&second).await.unwrap();
    second.take_over(&first.handover().await).await.unwrap();
    second.keep(&first).await.unwrap();
    let is_kept = |device: &Device| {
        device.connected && device.moving.as_ref().is_some_and(|moving| moving.state == MoveState::Both)
    };
    let at_both = async || {
        world.until_metric("devices 0").await;
        first.until("kept by the first", is_kept).await;
        second.until("kept by the second", is_kept).await;
        let mut both = [dialled(&first), dialled(&second)];
        both.sort();
        // What was so before the dispatch is shown until it is looked at again.
        let dialling = async {
            loop {
                let mut dials = agent.dials().await;
                dials.sort();
                if dials == both {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, dialling).await.expect("it does not dial both");
        first.until("kept by the first", is_kept).await;
        second.until("kept by the second", is_kept).await;
    };
    at_both().await;
    dispatched_anew(&world, &agent).await;
    at_both().await;

    second.call_back().await.unwrap();
    let left: Result<serde_json::Value, _> =
        first.api.send(Method::DELETE, &format!("/api/v1/devices/{SERIAL}"), &()).await;
    left.unwrap();
    second.until("alone", |device| device.connected && device.moving.is_none()).await;
    // Whose it is the dispatcher knows still: it is sent to the second.
    dispatched_anew(&world, &agent).await;
    second.until_ready().await;
    assert_eq!(agent.dials().await, [dialled(&second)]);
    for tunnel in [first, second] {
        tunnel.stop().await;
    }
    agent.stop().await;
    world.stop().await;
}

/// Steps 3 to 5 of a device that was dispatched before.
async fn dispatched_anew(world: &World, agent: &Agent) {
    let dispatched = || {
        let text = world.ops.metrics();
        let of = |line: &str| {
            line.strip_prefix("homing_dispatcher_dispatches_total{result=\"ok\"} ")?.parse::<u64>().ok()
        };
        text.lines().find_map(of).unwrap_or_default()
    };
    let before = dispatched();
    agent.press().await;
    let waiting = async {
        while dispatched() == before {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, waiting).await.expect("not dispatched anew");
}

/// A move of a device that is away waits for it, over a restart of the tunnel server.
#[tokio::test]
async fn step_6_connect_a_move_is_queued_for_a_device_that_is_offline() {
    let mut site = Site::new().await;
    let (handover, target) = (site.first.handover().await, site.target_second());
    site.agent.stop().await;
    site.first.until("offline", |device| !device.connected).await;
    let queued = site.first.send(target, None).await.unwrap();
    assert_eq!(queued.moving.unwrap().state, MoveState::Queued);

    let at = site.first.external;
    site.first.stop().await;
    let again = |config: &mut homing_tunnel::Config| config.external = at;
    site.first =
        Tunnel::start_with(site.folder.path(), &site.world, "alpha", &site.passwords[0], again).await;
    site.first.until_move(MoveState::Queued).await;
    // The claim is free, as the dispatcher knows of no offer.
    site.world.stop.stop();
    site.second.take_over(&handover).await.unwrap();
    site.agent = Agent::start(&site.folder.path().join("agent"), &site.world, OAK).await;
    site.second.until("there", |device| device.connected).await;
    site.first.until("let go", |device| !device.connected).await;
    site.first.until_move(MoveState::Moved).await;
    assert_eq!(site.agent.dials().await, [dialled(&site.second)]);
    site.stop().await;
}

/// A server that is not reached: the tunnel here stands, the device says why, and it goes on trying; or it is undone,
/// and the device forgets.
#[tokio::test]
async fn step_6_connect_a_move_in_vain_loses_nothing_and_can_be_undone() {
    let site = Site::new().await;
    let (first, second) = (&site.first, &site.second);
    let line = Line::new().await;
    let target = Target { servers: vec![line.address.to_string()], ..site.target_second() };
    for _ in 0..2 {
        first.send(target.clone(), None).await.unwrap();
        let why = |device: &Device| device.moving.as_ref().is_some_and(|moving| moving.problem.is_some());
        let stuck = first.until("stuck", why).await;
        assert!(stuck.connected);
        let moving = stuck.moving.unwrap();
        assert_eq!(moving.state, MoveState::Trying);
        let problem = moving.problem.unwrap();
        assert_eq!(problem.code, "move-not-reached");
        assert!(problem.message.contains(&line.address.to_string()), "{}", problem.message);
        first.until_ready().await;
        assert_eq!(site.agent.dials().await.len(), 2);

        assert_eq!(first.call_back().await.unwrap().moving, None);
        let forgetting = async {
            while site.agent.dials().await != [dialled(first)] {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, forgetting).await.expect("it still dials there");
        first.until_ready().await;
    }

    // A stranger there: refused, in the tunnel server's words. Then the server knows it.
    line.lead(Some(second.external));
    first.send(target, None).await.unwrap();
    let strange = |device: &Device| {
        let problem = device.moving.as_ref().and_then(|moving| moving.problem.as_ref());
        problem.is_some_and(|problem| problem.message.contains("does not know the key"))
    };
    first.until("refused there", strange).await;
    site.world.stop.stop();
    second.take_over(&first.handover().await).await.unwrap();
    second.until("there", |device| device.connected).await;
    first.until("let go", |device| !device.connected).await;
    first.until_move(MoveState::Moved).await;
    site.stop().await;
}

/// The claim goes with the device: offered to the other server's account, taken over, told by both.
#[tokio::test]
async fn steps_1_register_to_7_tunnel_a_move_between_two_accounts_takes_the_claim_along() {
    let site = Site::new().await;
    let (first, second) = (&site.first, &site.second);
    let handover = first.handover().await;
    let (status, code, _) = refusal(second.take_over(&handover).await);
    assert_eq!((status, code.as_str()), (409, "claimed-by-another-account"), "not offered yet");
    first.send(site.target_second(), Some("beta")).await.unwrap();
    second.take_over(&handover).await.unwrap();
    second.until_ready().await;
    first.until("let go", |device| !device.connected).await;
    first.until_move(MoveState::Moved).await;
    let beta = site.world.sts("beta", &site.passwords[1]);
    beta.until(|told| told.state == RegistrationState::Dispatched).await;
    let alpha = site.world.sts("alpha", &site.passwords[0]);
    alpha.until(|told| told.state == RegistrationState::Transferred).await;

    // It is the other account's now: deleting it here takes nothing away there.
    let _: () = first.api.send(Method::DELETE, &format!("/api/v1/devices/{SERIAL}"), &()).await.unwrap();
    second.until_ready().await;
    assert_eq!(beta.get().await.unwrap().state, RegistrationState::Dispatched);
    site.stop().await;
}

/// A device that was reset to factory default has a new key, is dispatched again, and its old key is a stranger's.
#[tokio::test]
async fn steps_3_press_to_7_tunnel_after_a_factory_reset_with_a_new_key() {
    let mut site = Site::new().await;
    let before = site.first.handover().await.fingerprint.unwrap();
    site.agent.reset().await;
    site.first.until("offline", |device| !device.connected).await;
    site.agent = Agent::start(&site.folder.path().join("agent"), &site.world, OAK).await;
    site.agent.press().await;
    site.first.until_ready().await;
    assert_ne!(site.first.handover().await.fingerprint.unwrap(), before);
    site.stop().await;
}

/// A device whose tunnel server stays away asks its dispatchers, unpressed, and is sent on to where that is now.
#[tokio::test]
async fn steps_4_phone_home_to_7_tunnel_a_device_that_lost_its_tunnel_server_falls_back_and_is_sent_on() {
    let folder = tempfile::tempdir().unwrap();
    let password = account(folder.path(), "shop").await;
    let world = World::start(folder.path()).await;
    let tunnel = Tunnel::start(folder.path(), &world, "shop", &password).await;
    let data = folder.path().join("agent");
    let agent = Agent::start_with(&data, &world, OAK, |config| config.fallback_s = 1).await;
    tunnel.register(SERIAL, OAK, PASSWORD).await.unwrap();
    agent.press().await;
    tunnel.until_ready().await;
    world.until_metric("devices 0").await;
    let before = dialled(&tunnel);
    tunnel.stop().await;
    world.until_metric("devices 1").await;

    // The same server, at another address.
    let tunnel = Tunnel::start(folder.path(), &world, "shop", &password).await;
    assert_ne!(dialled(&tunnel), before);
    tunnel.until_ready().await;
    let forgetting = async {
        while agent.dials().await != [dialled(&tunnel)] {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, forgetting).await.expect("it still dials the old address");
    agent.stop().await;
    tunnel.stop().await;
    world.stop().await;
}
