//! The orders in which things happen: scenarios B and D (A and C are in `flow.rs`), and what comes in between.

use crate::{
    device::PASSWORD,
    flow::{Agent, Tunnel, world_with_tunnel},
    world::*,
};
use homing_agent::DispatcherConfig;
use homing_dispatcher::Config;
use homing_protocol::{api::dispatcher::RegistrationState as State, api::tunnel::RelayState};
use std::path::{Path, PathBuf};

const CUSTOM: &str = "a password that the owner has chosen";

/// What the dispatcher has sealed of the device.
async fn sealed(data: &Path) -> Vec<u8> {
    let path = format!("sqlite:{}", data.join("dispatcher.sqlite").display());
    let pool = sqlx::SqlitePool::connect(&path).await.unwrap();
    let (sealed,): (Vec<u8>,) =
        sqlx::query_as("SELECT secrets FROM registration").fetch_one(&pool).await.unwrap();
    pool.close().await;
    sealed
}

/// The dispatcher's files that hold these bytes, its write-ahead log among them.
fn files_with(data: &Path, needle: &[u8]) -> Vec<PathBuf> {
    let files = std::fs::read_dir(data).unwrap().map(|entry| entry.unwrap().path());
    let holds = |path: &PathBuf| {
        path.is_file() && std::fs::read(path).unwrap().windows(needle.len()).any(|window| window == needle)
    };
    files.filter(holds).collect()
}

fn assert_gone(data: &Path, sealed: &[u8]) {
    let nowhere = Vec::<PathBuf>::new();
    assert_eq!(files_with(data, sealed), nowhere, "sealed");
    for clear in [CUSTOM, "0A1B-2C3D-4E5F", "0a1b2c3d4e5f"] {
        assert_eq!(files_with(data, clear.as_bytes()), nowhere, "in clear");
    }
}

fn custom(config: &mut homing_agent::Config) {
    config.cameras[0].password = CUSTOM.into();
}

/// At the same addresses as before.
async fn again(data: &Path, world: World) -> World {
    let (external, api) = (world.external, world.api);
    world.stop().await;
    World::start_with(data, |config: &mut Config| (config.external, config.api) = (external, api)).await
}

/// B: 1 2 3 4 5 6 7 with custom credentials. They are kept, sealed, while the device is offline and the dispatcher
/// restarts, and are in none of its files after dispatch.
#[tokio::test]
async fn steps_1_register_to_7_tunnel_in_scenario_b_custom_credentials_are_kept_and_then_gone() {
    let (folder, world, tunnel) = world_with_tunnel().await;
    tunnel.register(SERIAL, OAK, CUSTOM).await.unwrap();
    let sealed = sealed(folder.path()).await;
    assert!(!files_with(folder.path(), &sealed).is_empty(), "the test finds what is there");
    assert_eq!(files_with(folder.path(), CUSTOM.as_bytes()), Vec::<PathBuf>::new());

    let world = again(folder.path(), world).await;
    assert!(!files_with(folder.path(), &sealed).is_empty(), "kept over a restart");
    let agent = Agent::start_with(&folder.path().join("agent"), &world, OAK, custom).await;
    agent.press().await;
    tunnel.until_ready().await;
    world.until_metric("devices 0").await;
    assert_gone(folder.path(), &sealed);
    agent.stop().await;
    tunnel.stop().await;
    world.stop().await;
    assert_gone(folder.path(), &sealed);
}

/// D: 3 4 1 2 5 6 7 with custom credentials, mistyped first: both are gone after dispatch.
#[tokio::test]
async fn steps_3_press_to_7_tunnel_in_scenario_d_custom_credentials_are_gone_after_dispatch() {
    let (folder, world, sts) = world_with_account().await;
    let device = crate::device::Device::new(SERIAL, OAK, CUSTOM, crate::device::Quirks::default());
    let _uplink = world.phone_home(&device).await.unwrap();
    let mistyped = sts.put(&Sts::registration(OAK, PASSWORD, &world.trust)).await.unwrap();
    assert_eq!(mistyped.problem.unwrap().code, "wrong-credentials");
    let sealed = sealed(folder.path()).await;
    assert!(!files_with(folder.path(), &sealed).is_empty(), "the test finds what is there");
    let new = Sts::registration(OAK, CUSTOM, &world.trust);
    let (put, _) = tokio::join!(sts.put(&new), sts.until_state(State::Dispatched));
    assert_eq!(put.unwrap().state, State::Dispatched);
    assert_gone(folder.path(), &sealed);
    world.stop().await;
    assert_gone(folder.path(), &sealed);
}

/// Pressed again before the device is registered, and once more when it is long there: nothing is different.
#[tokio::test]
async fn step_3_press_twice_is_as_good_as_once() {
    let (folder, world, tunnel) = world_with_tunnel().await;
    let agent = Agent::start(&folder.path().join("agent"), &world, OAK).await;
    agent.press().await;
    world.until_metric("devices 1").await;
    agent.press().await;
    tunnel.register(SERIAL, OAK, PASSWORD).await.unwrap();
    tunnel.until_ready().await;
    agent.press().await;
    tunnel.until_ready().await;
    assert!(tunnel.handle.device(SERIAL).unwrap().connected);
    agent.stop().await;
    tunnel.stop().await;
    world.stop().await;
}

/// The device waits at one dispatcher, which goes away; it is registered at the next on its list while it is on its
/// way there.
#[tokio::test]
async fn step_4_phone_home_registered_while_on_its_way_between_two_dispatchers() {
    let (first_folder, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let password = account(folder.path(), "shop").await;
    let (first, world) = (World::start(first_folder.path()).await, World::start(folder.path()).await);
    let tunnel = Tunnel::start(folder.path(), &world, "shop", &password).await;
    let both = |config: &mut homing_agent::Config| {
        let next =
            DispatcherConfig { address: world.external.to_string(), trust_anchor: world.trust.clone() };
        config.dispatchers.push(next);
    };
    let agent = Agent::start_with(&folder.path().join("agent"), &first, OAK, both).await;
    agent.press().await;
    // It takes them in turn, with jitter: wherever it is, it is sent on its way.
    let arrived = async {
        loop {
            for (world, name) in [(&first, "first"), (&world, "second")] {
                if world.ops.metrics().contains("homing_dispatcher_devices 1\n") {
                    return name;
                }
            }
            tokio::task::yield_now().await;
        }
    };
    let at = tokio::time::timeout(DEADLINE, arrived).await.unwrap();
    let (registered, ()) = tokio::join!(tunnel.register(SERIAL, OAK, PASSWORD), first.stop());
    assert!(registered.is_ok(), "{at}: {registered:?}");
    tunnel.until_ready().await;
    agent.stop().await;
    tunnel.stop().await;
    world.stop().await;
}

/// The dispatcher restarts while the device waits there: it comes back, and is registered and dispatched.
#[tokio::test]
async fn steps_4_phone_home_to_7_tunnel_with_a_restart_of_the_dispatcher_while_the_device_waits() {
    let (folder, world, tunnel) = world_with_tunnel().await;
    let agent = Agent::start(&folder.path().join("agent"), &world, OAK).await;
    agent.press().await;
    world.until_metric("devices 1").await;
    let world = again(folder.path(), world).await;
    world.until_metric("devices 1").await;
    tunnel.register(SERIAL, OAK, PASSWORD).await.unwrap();
    tunnel.until_ready().await;
    agent.stop().await;
    tunnel.stop().await;
    world.stop().await;
}

/// The tunnel server is down when the device is dispatched: the device tries it until it is back, and its key is known
/// there by then. The dispatcher restarts meanwhile.
#[tokio::test]
async fn step_6_connect_the_tunnel_server_is_down_when_the_device_arrives() {
    let folder = tempfile::tempdir().unwrap();
    let password = account(folder.path(), "shop").await;
    let world = World::start(folder.path()).await;
    let tunnel = Tunnel::start(folder.path(), &world, "shop", &password).await;
    let at = tunnel.external;
    let registered = tunnel.register(SERIAL, OAK, PASSWORD).await.unwrap();
    assert_eq!(registered.relay, RelayState::Waiting);
    tunnel.stop().await;
    let agent = Agent::start(&folder.path().join("agent"), &world, OAK).await;
    agent.press().await;
    world.until_metric(r#"dispatches_total{result="ok"} 1"#).await;
    let world = again(folder.path(), world).await;
    let tunnel =
        Tunnel::start_with(folder.path(), &world, "shop", &password, |config| config.external = at).await;
    tunnel.until_ready().await;
    agent.stop().await;
    tunnel.stop().await;
    world.stop().await;
}
