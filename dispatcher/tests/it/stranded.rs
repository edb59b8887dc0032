//! No device is ever stranded: several addresses at once, moves, resets, and servers that stay away; with the
//! dispatcher, real tunnel servers and the real site agent.

use crate::{
    device::PASSWORD,
    flow::{Agent, Tunnel},
    world::*,
};
use homing_protocol::{Step, api::tunnel::Device};
use std::net::SocketAddr;
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
