//! The dispatcher with the real site agent: steps 3 to 6, with the door of a tunnel server at the end.

use crate::{device::PASSWORD, world::*};
use homing_agent::{CameraConfig, Config, DispatcherConfig, control};
use homing_base::tls::{LEAF_LIFE, Leaf, PrivateCa};
use homing_protocol::api::dispatcher::{NewRegistration, RegistrationState as State};
use homing_uplink::{AcceptLimits, Acceptor, TlsPolicy, UplinkSettings, server_tls_config};
use std::{path::Path, sync::Arc};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// An agent that runs, in front of a camera that is away: step 5 asks the agent alone.
struct Agent {
    config: Config,
    stop: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Agent {
    async fn start(data: &Path, world: &World) -> Agent {
        let mut config = Config {
            data: data.join("agent"),
            serial: Some(SERIAL),
            oak: Some(OAK),
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
        let (bound, stop) = (homing_agent::bind(config.clone()).await.unwrap(), CancellationToken::new());
        #[expect(clippy::disallowed_methods, reason = "awaited in Agent::stop")]
        let running = tokio::spawn(bound.run(stop.clone()));
        Agent { config, stop, running }
    }

    /// Step 3.
    async fn press(&self) {
        let config = self.config.clone();
        tokio::task::spawn_blocking(move || control::press(&config)).await.unwrap().unwrap();
    }

    async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(DEADLINE, self.running).await.unwrap().unwrap().unwrap();
    }
}

/// A tunnel server's external door.
struct Door {
    listener: TcpListener,
    acceptor: Acceptor,
    trust: String,
}

impl Door {
    async fn open(data: &Path) -> Door {
        let ca = Arc::new(PrivateCa::open(data, "tunnel").unwrap());
        let leaf = Leaf::issued_by(ca.clone(), vec!["127.0.0.1".into()], LEAF_LIFE).unwrap();
        let tls = Arc::new(server_tls_config(leaf, TlsPolicy::Tls13).unwrap());
        Door {
            listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
            acceptor: Acceptor::new(tls, AcceptLimits::default()),
            trust: ca.trust_anchor().to_owned(),
        }
    }

    fn registration(&self, oak: homing_protocol::Oak, password: &str) -> NewRegistration {
        let servers = vec![self.listener.local_addr().unwrap().to_string()];
        NewRegistration { servers, ..Sts::registration(oak, password, &self.trust) }
    }

    /// The fingerprint of the key of whoever arrives; lets it in.
    async fn arrival(&self) -> String {
        let arriving = async {
            let (tcp, peer) = self.listener.accept().await.unwrap();
            let arrival = self.acceptor.accept(tcp, peer).await.unwrap();
            let fingerprint = arrival.peer_identity.clone().unwrap().fingerprint.to_string();
            let (_, driver) = arrival.accept(UplinkSettings::default()).await.unwrap();
            #[expect(clippy::disallowed_methods, reason = "ends with the agent")]
            tokio::spawn(driver.run(CancellationToken::new()));
            fingerprint
        };
        tokio::time::timeout(DEADLINE, arriving).await.expect("the agent at the tunnel server")
    }
}

/// After step 5 the agent is where it was sent, with the key that was announced, and has left here.
async fn assert_moved(world: &World, sts: &Sts, door: &Door) {
    let (registration, arrived) = tokio::join!(sts.until_state(State::Dispatched), door.arrival());
    assert_eq!(registration.fingerprint, Some(arrived));
    world.until_metric("devices 0").await;
}

/// A: 1 2 3 4 5 6.
#[tokio::test]
async fn step_5_dispatch_and_step_6_connect_of_an_agent_in_scenario_a() {
    let folder = tempfile::tempdir().unwrap();
    let password = account(folder.path(), "shop").await;
    let (world, door) = (World::start(folder.path()).await, Door::open(folder.path()).await);
    let sts = world.sts("shop", &password);
    let agent = Agent::start(folder.path(), &world).await;
    sts.put(&door.registration(OAK, PASSWORD)).await.unwrap();
    agent.press().await;
    assert_moved(&world, &sts, &door).await;
    agent.stop().await;
    world.stop().await;
}

/// C: 3 4 1 2 5 6, with everything wrong that can be corrected first.
#[tokio::test]
async fn step_5_dispatch_and_step_6_connect_of_an_agent_in_scenario_c_after_mistakes() {
    let folder = tempfile::tempdir().unwrap();
    let password = account(folder.path(), "shop").await;
    let (world, door) = (World::start(folder.path()).await, Door::open(folder.path()).await);
    let sts = world.sts("shop", &password);
    let agent = Agent::start(folder.path(), &world).await;
    agent.press().await;
    world.until_metric("devices 1").await;
    for (oak, password, code) in [(OTHER_OAK, PASSWORD, "wrong-oak"), (OAK, "wrong", "wrong-credentials")] {
        let refused = sts.put(&door.registration(oak, password)).await.unwrap();
        assert_eq!((refused.state, refused.problem.unwrap().code.as_str()), (State::Refused, code));
    }
    let right = door.registration(OAK, PASSWORD);
    let (put, ()) = tokio::join!(sts.put(&right), assert_moved(&world, &sts, &door));
    assert_eq!(put.unwrap().state, State::Dispatched);
    agent.stop().await;
    world.stop().await;
}
