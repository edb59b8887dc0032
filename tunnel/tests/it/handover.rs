//! Devices on their way between two tunnel servers: what the VMS asks, and what the dispatcher is told. The move of a
//! real agent is in `dispatcher/tests/it/stranded.rs`.

use crate::{
    device::{self, Device},
    dispatcher::Mode,
    world::{World, code, new_device, within},
};
use homing_protocol::{
    Step,
    api::{
        Target,
        dispatcher::RegistrationState,
        tunnel::{MoveState, RelayState},
    },
};
use http::{Method, StatusCode};
use serde_json::{Value, json};

fn of(device: &Device, what: &str) -> String {
    format!("/api/v1/devices/{}/{what}", device.serial)
}

impl World {
    fn elsewhere(&self) -> Target {
        Target { servers: vec!["192.0.2.1:8443".into()], trust_anchor: self.trust_anchor() }
    }

    async fn send_to(&self, device: &Device, target: &Target, account: Option<&str>) -> (StatusCode, Value) {
        let order = json!({ "target": target, "account": account });
        self.api(Method::PUT, &of(device, "move"), Some(order)).await
    }

    async fn take_over(&self, device: &Device) -> (StatusCode, Value) {
        let mut new = new_device(device);
        new.fingerprint = Some(device.fingerprint.to_string());
        self.api(Method::POST, "/api/v1/devices", Some(serde_json::to_value(&new).unwrap())).await
    }
}

#[tokio::test]
async fn step_7_tunnel_a_device_that_is_handed_over_is_admitted_at_once_and_the_dispatcher_learns_it_later() {
    let mut world = World::with(false, |_| ()).await;
    let device = Device::new("00408C702009");
    assert_eq!(world.take_over(&device).await.0, StatusCode::ACCEPTED);
    world.connect(&device).await;
    let here = world.handle.device(device.serial).unwrap();
    assert_eq!((here.step, here.connected), (Step::Tunnel, true));

    // Its old server has not offered the claim yet; the refusal passes.
    let claimed = (StatusCode::CONFLICT, "claimed-by-another-account", "Claimed since yesterday.");
    world.dispatcher.answer_with(Mode::Refuse(claimed.0, claimed.1, claimed.2));
    world.start_dispatcher();
    world.dispatcher.relayed_times(2).await;
    world.dispatcher.answer_with(Mode::Accept);
    assert_eq!(world.dispatcher.arrival(device.serial).await, device.fingerprint.to_string());
    world.restart().await;
    world.connect(&device).await;
}

#[tokio::test]
async fn step_2_relay_a_key_that_is_handed_over_is_checked() {
    let world = World::new().await;
    let device = Device::new("00408C702009");
    world.take_over(&device).await;
    let other = Device::new("00408C702010");
    for (key, says) in [("no key", "64 hex digits"), (&*device.fingerprint.to_string(), "is the key of")] {
        let mut new = new_device(&other);
        new.fingerprint = Some(key.to_owned());
        let new = serde_json::to_value(&new).unwrap();
        let (status, answer) = world.api(Method::POST, "/api/v1/devices", Some(new)).await;
        assert_eq!((status, code(&answer)), (StatusCode::BAD_REQUEST, "bad-request"));
        assert!(answer.to_string().contains(says), "{answer}");
    }
    assert!(world.handle.device(other.serial).is_none());
}

#[tokio::test]
async fn a_claim_is_offered_with_the_move_and_withdrawn_with_it_even_if_the_dispatcher_was_away() {
    let mut world = World::new().await;
    let (device, _serving) = world.ready("00408C702009").await;
    let elsewhere = world.elsewhere();
    let (status, answer) = world.send_to(&device, &elsewhere, Some("nobody")).await;
    assert_eq!((status, code(&answer)), (StatusCode::UNPROCESSABLE_ENTITY, "unknown-account"));
    assert_eq!(world.handle.device(device.serial).unwrap().moving, None, "nothing is changed");

    assert_eq!(world.send_to(&device, &elsewhere, Some("other")).await.0, StatusCode::OK);
    world.dispatcher.offered(device.serial, Some("other")).await;
    assert_eq!(world.api(Method::DELETE, &of(&device, "move"), None).await.0, StatusCode::OK);
    world.dispatcher.offered(device.serial, None).await;

    world.stop_dispatcher().await;
    assert_eq!(world.send_to(&device, &elsewhere, Some("other")).await.0, StatusCode::OK);
    world.restart().await;
    world.start_dispatcher();
    world.dispatcher.offered(device.serial, Some("other")).await;
}

#[tokio::test]
async fn offers_are_passed_on_to_the_dispatcher() {
    let mut world = World::new().await;
    let (device, _serving) = world.ready("00408C702009").await;
    let path = of(&device, "offer");
    let offer = |to: &str| Some(json!({ "to": to }));
    assert_eq!(world.api(Method::PUT, &path, offer("other")).await.0, StatusCode::NO_CONTENT);
    world.dispatcher.offered(device.serial, Some("other")).await;
    assert_eq!(world.api(Method::DELETE, &path, None).await.0, StatusCode::NO_CONTENT);
    world.dispatcher.offered(device.serial, None).await;
    let (status, answer) = world.api(Method::PUT, &path, offer("nobody")).await;
    assert_eq!((status, code(&answer)), (StatusCode::UNPROCESSABLE_ENTITY, "unknown-account"));
    world.stop_dispatcher().await;
    let (status, answer) = world.api(Method::PUT, &path, offer("other")).await;
    assert_eq!((status, code(&answer)), (StatusCode::BAD_GATEWAY, "dispatcher-unreachable"));
}

#[tokio::test]
async fn a_device_that_another_account_took_over_is_sent_there_and_one_that_cannot_be_told_says_why() {
    let world = World::new().await;
    let (device, _serving) = world.ready("00408C702009").await;
    let (status, _) = world.api(Method::PUT, &of(&device, "offer"), Some(json!({ "to": "other" }))).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    world.dispatcher.transfer(device.serial, world.elsewhere()).await;
    let told = |device: &homing_protocol::api::tunnel::Device| {
        device.moving.as_ref().is_some_and(|moving| moving.problem.is_some())
    };
    let stuck = world.device_until(device.serial, told).await;
    assert_eq!((stuck.connected, stuck.relay), (true, RelayState::Dispatched));
    let moving = stuck.moving.unwrap();
    assert_eq!((moving.state, moving.servers), (MoveState::Queued, world.elsewhere().servers));
    let problem = moving.problem.unwrap();
    assert_eq!((problem.code.as_str(), problem.step), ("move-refused", Some(Step::Connect)));
    assert!(problem.message.contains("no ONVIF Uplink service"), "{}", problem.message);

    // One that never came has nothing to be moved.
    let absent = Device::new("00408C702010");
    world.register(&absent).await;
    world.dispatcher.transfer(absent.serial, world.elsewhere()).await;
    let gone = world.handle.device(absent.serial).unwrap();
    assert_eq!((gone.moving, gone.problem.unwrap().code.as_str()), (None, "transferred"));
}

/// Goal: who has the dispatcher account's password can let the dispatcher say what he likes; the device stays where it
/// is, with its key, and what was said is shown.
#[tokio::test]
async fn what_is_done_with_the_accounts_password_alone_moves_no_device_and_binds_no_other_key() {
    let world = World::new().await;
    let (device, serving) = world.ready("00408C702009").await;
    let shows = |code: &'static str| {
        let serial = device.serial;
        let told = move |device: &homing_protocol::api::tunnel::Device| {
            device.problem.as_ref().is_some_and(|problem| problem.code == code)
        };
        world.device_until(serial, told)
    };
    world.dispatcher.is_foreign();
    world.dispatcher.vouch(device.serial, homing_uplink::Fingerprint([7; 32])).await;
    assert!(shows("foreign-registration").await.connected);
    world.dispatcher.transfer(device.serial, world.elsewhere()).await;
    let kept = shows("not-offered-here").await;
    assert!(kept.connected && kept.moving.is_none());
    assert!(!serving.is_finished());
    let (_, handover) = world.api(Method::GET, &of(&device, "handover"), None).await;
    assert_eq!(handover["fingerprint"], device.fingerprint.to_string());
}

/// Goal: a registration that was relayed again, for somebody who was not the device, is forgotten at the dispatcher as
/// soon as the device is back by itself.
#[tokio::test]
async fn step_2_relay_what_was_relayed_again_in_vain_is_forgotten_when_the_device_is_back() {
    let world = World::new().await;
    let (device, serving) = world.ready("00408C702009").await;
    world.site.stop();
    within(serving).await.unwrap();
    world.device_until(device.serial, |device| !device.connected).await;
    for state in [RegistrationState::Returned, RegistrationState::Refused] {
        world.dispatcher.announce(device.serial, state, Step::PhoneHome, None, None).await;
        world.dispatcher.relayed_times(2).await;
    }
    let dialed = within(device.dial(world.external, &world.trust_anchor())).await.unwrap();
    let _serving = device.serve(dialed, &homing_base::Stop::new());
    assert_eq!(world.dispatcher.arrival(device.serial).await, device.fingerprint.to_string());
}

#[tokio::test]
async fn what_no_device_could_dial_is_no_target() {
    let world = World::new().await;
    let (device, _serving) = world.ready("00408C702009").await;
    let (good, own) = (world.elsewhere(), world.external.to_string());
    let servers = |servers: &[&str]| Target {
        servers: servers.iter().map(|server| (*server).to_owned()).collect(),
        ..good.clone()
    };
    for (target, says) in [
        (servers(&[]), "1 to 4"),
        (servers(&["a:1"; 5]), "1 to 4"),
        (servers(&["a b"]), "host:port"),
        (servers(&["http://a:1"]), "host:port"),
        (servers(&["https://a:1/path"]), "another tunnel server"),
        (servers(&[&own]), "another tunnel server"),
        (Target { trust_anchor: "x".into(), ..good.clone() }, "PEM"),
        (Target { trust_anchor: String::new(), ..good.clone() }, "trust_anchor"),
    ] {
        let (status, answer) = world.send_to(&device, &target, None).await;
        assert_eq!((status, code(&answer)), (StatusCode::BAD_REQUEST, "bad-request"), "{target:?}");
        assert!(answer.to_string().contains(says), "{says}: {answer}");
    }
    let stranger = Device::new("00408C702010");
    assert_eq!(world.send_to(&stranger, &good, None).await.0, StatusCode::NOT_FOUND);
    for (method, what) in [
        (Method::DELETE, "move"),
        (Method::GET, "handover"),
        (Method::GET, "credentials"),
        (Method::DELETE, "offer"),
    ] {
        let (status, answer) = world.api(method, &of(&stranger, what), None).await;
        assert_eq!((status, code(&answer)), (StatusCode::NOT_FOUND, "not-found"), "{what}");
    }
}

#[tokio::test]
async fn a_handover_is_what_another_tunnel_server_takes() {
    let world = World::new().await;
    let (device, _serving) = world.ready("00408C702009").await;
    let (status, handover) = world.api(Method::GET, &of(&device, "handover"), None).await;
    assert_eq!(status, StatusCode::OK);
    let mut expected = new_device(&device);
    expected.fingerprint = Some(device.fingerprint.to_string());
    assert_eq!(handover, serde_json::to_value(&expected).unwrap());
    assert_eq!(handover["password"], device::PASSWORD);
    let (_, server) = world.api(Method::GET, "/api/v1/server", None).await;
    assert_eq!(server["account"], crate::dispatcher::ACCOUNT);
    assert_eq!(server["trust_anchor"].as_str().unwrap(), world.trust_anchor());
}

#[tokio::test]
async fn the_openapi_document_is_for_everybody_and_names_every_request_and_its_refusals() {
    let world = World::new().await;
    let request = http::Request::get("/api/openapi.json").header("host", "tunnel").body(bytes::Bytes::new());
    let answer = world.send(request.unwrap()).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let body = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
    let document: Value = serde_json::from_slice(&body).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let named: usize = paths.values().map(|methods| methods.as_object().unwrap().len()).sum();
    assert_eq!((paths.len(), named), (15, 21), "{paths:#?}");
    for methods in paths.values().flat_map(|methods| methods.as_object().unwrap().values()) {
        for status in ["401", "429"] {
            assert!(methods["responses"][status].is_object(), "{methods:#}");
        }
    }
    for (method, path) in [(Method::GET, "%FF"), (Method::GET, "x"), (Method::DELETE, "%2F/move")] {
        let (status, answer) = world.api(method, &format!("/api/v1/devices/{path}"), None).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
    }
}
