//! Attacks on the chain of trust, as `docs/security.md` lists them: what somebody gets who has a site's network,
//! a dispatcher of his own, or an account's password.

use crate::{
    device::{Borrowed, Device, PASSWORD, Quirks},
    flow::{Agent, Tunnel},
    world::*,
};
use homing_agent::DispatcherConfig;
use homing_base::{
    Stop,
    tls::{LEAF_LIFE, Leaf, PrivateCa},
};
use homing_protocol::{
    SerialNumber,
    api::dispatcher::{NewRegistration, RegistrationState as State},
    oak::{Challenge, PROOF_PATH, ProofRequest},
    onvif::{self, Request as _, uplink},
};
use homing_uplink::{AcceptLimits, Acceptor, TlsPolicy, Uplink, UplinkSettings, server_tls_config};
use http::{Request, header};
use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::mpsc};

/// Somebody who is let in where a dispatcher should be: a device that trusts him dials him.
struct Rogue {
    address: SocketAddr,
    trust: String,
    arrivals: mpsc::Receiver<Uplink>,
    stop: Stop,
}

impl Rogue {
    async fn start(folder: &Path) -> Rogue {
        let ca = Arc::new(PrivateCa::open(folder, "rogue").unwrap());
        let trust = ca.trust_anchor().to_owned();
        let leaf = Leaf::issued_by(ca, vec!["127.0.0.1".into()], LEAF_LIFE).unwrap();
        let tls = server_tls_config(leaf, TlsPolicy::Tls13).unwrap();
        let acceptor = Acceptor::new(Arc::new(tls), AcceptLimits::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, arrivals) = mpsc::channel(4);
        let stop = Stop::new();
        let rogue = Rogue { address, trust, arrivals, stop: stop.clone() };
        stop.clone().spawn(async move {
            let serving = async {
                loop {
                    let (tcp, peer) = listener.accept().await.unwrap();
                    let arrival = acceptor.accept(tcp, peer).await.unwrap();
                    let (uplink, driver) = arrival.accept(UplinkSettings::default()).await.unwrap();
                    let token = stop.token().clone();
                    stop.spawn(driver.run(token));
                    sender.send(uplink).await.unwrap();
                }
            };
            stop.token().run_until_cancelled(serving).await;
        });
        rogue
    }

    /// The next device that believes it is at its dispatcher.
    async fn arrival(&mut self) -> Uplink {
        tokio::time::timeout(DEADLINE, self.arrivals.recv()).await.unwrap().unwrap()
    }

    async fn stop(self) {
        assert!(self.stop.drain(Duration::from_secs(5)).await);
    }
}

/// Goal: who has seen a proof (on a connection of his own, at a rogue dispatcher) cannot use it.
#[tokio::test]
async fn step_5_dispatch_a_replayed_proof_is_a_wrong_one() {
    let (_folder, world, sts) = world_with_account().await;
    let device = device(OAK);
    let _uplink = world.phone_home(&device).await.unwrap();
    let new = Sts::registration(OAK, PASSWORD, &world.trust);
    let (put, _) = tokio::join!(sts.put(&new), sts.until_state(State::Dispatched));
    put.unwrap();
    let seen = device.proof.lock().unwrap().clone().expect("it was asked");

    sts.delete().await.unwrap();
    let quirks = Quirks { borrows: Some(Borrowed::Seen(seen)), ..Quirks::default() };
    let thief = Device::new(SERIAL, OTHER_OAK, PASSWORD, quirks);
    let _thief = world.phone_home(&thief).await.unwrap();
    world.until_metric("devices 2").await;
    sts.put(&new).await.unwrap();
    world.until_metric(r#"dispatches_total{result="wrong-oak"} 1"#).await;
    assert!(thief.uplinks.borrow().is_empty());
    world.stop().await;
}

/// Goal: who stands between the device and the dispatcher, trusted by the device, passes the question on and
/// the answer back; the proof holds for the device's connection to him, not for his to the dispatcher.
#[tokio::test]
async fn step_5_dispatch_a_proof_that_is_relayed_by_a_man_in_the_middle_is_a_wrong_one() {
    let (folder, world, sts) = world_with_account().await;
    let mut rogue = Rogue::start(folder.path()).await;
    let device = device(OAK);
    let never = tokio_util::sync::CancellationToken::new();
    let caught = device.dial(&format!("https://{}/", rogue.address), &rogue.trust, &never).await.unwrap();
    let quirks = Quirks { borrows: Some(Borrowed::Asked(rogue.arrival().await)), ..Quirks::default() };
    let thief = Device::new(SERIAL, OTHER_OAK, PASSWORD, quirks);
    let _thief = world.phone_home(&thief).await.unwrap();
    world.until_metric("devices 1").await;

    let put = sts.put(&Sts::registration(OAK, PASSWORD, &world.trust)).await.unwrap();
    assert_eq!((put.state, put.problem.unwrap().code.as_str()), (State::Refused, "wrong-oak"));
    assert!(device.proof.lock().unwrap().is_some(), "the true device answered, and its answer was passed on");
    assert!(thief.uplinks.borrow().is_empty());
    rogue.stop().await;
    caught.await.unwrap();
    world.stop().await;
}

/// Goal: a dispatcher that the device trusts, and that is not honest, gets a proof that is good for nothing
/// else, and cannot send the device anywhere: that takes the camera's password, which it does not learn.
#[tokio::test]
async fn step_5_dispatch_by_a_rogue_dispatcher_fails_for_want_of_the_camera_s_password() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start(folder.path()).await;
    let mut rogue = Rogue::start(folder.path()).await;
    let data = folder.path().join("agent");
    let (address, trust_anchor) = (rogue.address.to_string(), rogue.trust.clone());
    let agent = Agent::start_with(&data, &world, OAK, |config| {
        config.dispatchers = vec![DispatcherConfig { address, trust_anchor }];
    })
    .await;
    agent.press().await;
    let uplink = rogue.arrival().await;
    let ask = async |path: &str, body: Vec<u8>, authorization: Option<&str>| {
        let mut question = Request::post(path).header(header::HOST, SERIAL.host());
        if let Some(authorization) = authorization {
            question = question.header(header::AUTHORIZATION, authorization);
        }
        let answer = uplink.request(question.body(body.into()).unwrap()).await.unwrap();
        let (head, body) = answer.into_parts();
        let body = body.collect(1 << 16).await.unwrap();
        (head, String::from_utf8_lossy(&body).into_owned())
    };
    let set = uplink::SetUplink(uplink::Configuration {
        remote_address: "https://rogue.example/".into(),
        ..uplink::Configuration::default()
    });
    let guess = homing_base::client::basic(&homing_protocol::secret::Credentials::new("root", "guess"));
    for authorization in [None, Some(guess.as_str())] {
        let (head, _) = ask(onvif::UPLINK_PATH, set.to_xml().into(), authorization).await;
        assert_eq!(head.status, 401);
        let challenges: Vec<_> = head.headers.get_all(header::WWW_AUTHENTICATE).iter().collect();
        assert!(!challenges.is_empty());
        // A password is never asked for in a form that whoever asks could use again.
        assert!(challenges.iter().all(|challenge| challenge.to_str().unwrap().starts_with("Digest ")));
    }
    let question = serde_json::to_vec(&ProofRequest { challenge: Challenge([7; 32]) }).unwrap();
    let (_, proof) = ask(PROOF_PATH, question, None).await;
    for secret in [OAK.label(), OAK.label().replace('-', ""), PASSWORD.to_owned()] {
        assert!(!proof.contains(&secret));
    }
    assert!(!data.join("uplinks.json").exists(), "nothing was set");
    agent.stop().await;
    rogue.stop().await;
    world.stop().await;
}

/// Goal: who has an account's password, and no label, can neither take the account's devices anywhere nor read
/// a secret; what he breaks is told, and mended by registering again.
#[tokio::test]
async fn step_5_dispatch_a_stolen_account_s_password_takes_no_device_away() {
    let folder = tempfile::tempdir().unwrap();
    let password = account(folder.path(), "shop").await;
    let world = World::start(folder.path()).await;
    let sts = world.sts("shop", &password);
    let device = device(OAK);
    let _uplink = world.phone_home(&device).await.unwrap();
    let right = Sts::registration(OAK, PASSWORD, &world.trust);
    let (put, _) = tokio::join!(sts.put(&right), sts.until_state(State::Dispatched));
    put.unwrap();
    let owner = device.uplinks.borrow().clone();

    let thief = world.sts("shop", &password);
    let shown = serde_json::to_string(&thief.get().await.unwrap()).unwrap();
    for secret in [OAK.label(), OAK.label().replace('-', ""), PASSWORD.to_owned()] {
        assert!(!shown.contains(&secret));
    }
    let mut elsewhere = Sts::registration(OTHER_OAK, PASSWORD, &world.trust);
    elsewhere.servers = vec!["127.0.0.66:9".into()];
    let _ = thief.put(&elsewhere).await;
    // The device comes back: it is asked, and proves another OAK than the thief's.
    let _uplink = world.phone_home(&device).await.unwrap();
    let refused =
        sts.until(|told| told.problem.as_ref().is_some_and(|problem| problem.code == "wrong-oak")).await;
    assert_eq!(refused.state, State::Refused);
    assert_eq!(*device.uplinks.borrow(), owner, "sent nowhere else");

    let (put, _) = tokio::join!(sts.put(&right), sts.until_state(State::Dispatched));
    assert_eq!(put.unwrap().state, State::Dispatched, "mended by its owner");
    world.stop().await;
}

/// Goal: nor can he with a device of his own making, which proves the OAK that he has registered: the tunnel server
/// believes no key that was not vouched for by its own registration, and says what has happened.
#[tokio::test(flavor = "multi_thread")]
async fn step_5_dispatch_a_stolen_account_and_a_forged_device_take_no_device_s_place() {
    let folder = tempfile::tempdir().unwrap();
    let password = account(folder.path(), "shop").await;
    let world = World::start(folder.path()).await;
    let tunnel = Tunnel::start(folder.path(), &world, "shop", &password).await;
    let agent = Agent::start(&folder.path().join("agent"), &world, OAK).await;
    tunnel.register(SERIAL, OAK, PASSWORD).await.unwrap();
    agent.press().await;
    tunnel.until_ready().await;

    let thief = world.sts("shop", &password);
    let own = NewRegistration {
        voucher_key: "the thief's own".into(),
        ..Sts::registration(OTHER_OAK, PASSWORD, &world.trust)
    };
    thief.put(&own).await.unwrap();
    let forged = Device::new(SERIAL, OTHER_OAK, PASSWORD, Quirks::default());
    let _forged = world.phone_home(&forged).await.unwrap();
    let told = tunnel.until("told", |device| device.problem.is_some()).await;
    assert_eq!((told.connected, told.problem.unwrap().code.as_str()), (true, "foreign-registration"));
    assert_eq!(
        thief.get().await.unwrap().fingerprint,
        Some(forged.fingerprint().to_string()),
        "it was tried"
    );
    assert!(tunnel.handle.device(SERIAL).unwrap().connected);
    let mut actions = Vec::new();
    let each = |entry: &homing_dispatcher::audit::Entry| actions.push(entry.action.clone());
    homing_dispatcher::audit::read(folder.path(), Some(SERIAL), each).await.unwrap();
    assert!(actions.iter().any(|action| action == "key-changed"), "{actions:?}");
    agent.stop().await;
    tunnel.stop().await;
    world.stop().await;
}

/// Goal: neighbours' serial numbers, registered by somebody who holds none of their labels, keep nobody out.
#[tokio::test]
async fn step_2_relay_who_registers_a_neighbour_s_serial_numbers_keeps_nobody_out() {
    let folder = tempfile::tempdir().unwrap();
    let (thief, owner) = (account(folder.path(), "thief").await, account(folder.path(), "owner").await);
    let world = World::start(folder.path()).await;
    let (thief, owner) = (world.sts("thief", &thief), world.sts("owner", &owner));
    assert_eq!(SERIAL, SerialNumber::new([0x00, 0x40, 0x8C, 0x70, 0x20, 0x09]));
    thief.put(&Sts::registration(OTHER_OAK, PASSWORD, &world.trust)).await.unwrap();
    owner.put(&Sts::registration(OAK, PASSWORD, &world.trust)).await.unwrap();
    let device = device(OAK);
    let _uplink = world.phone_home(&device).await.unwrap();
    owner.until_state(State::Dispatched).await;
    let (status, code, _) = refusal(thief.put(&Sts::registration(OTHER_OAK, PASSWORD, &world.trust)).await);
    assert_eq!((status, code.as_str()), (409, "claimed-by-another-account"));
    world.stop().await;
}
