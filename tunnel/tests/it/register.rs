//! Steps 1 and 2: registering a device, and what the dispatcher has to say.

use crate::{
    device::{self, Device},
    dispatcher::Mode,
    world::{World, code, form, within},
};
use homing_protocol::{
    Step,
    api::{Problem, dispatcher::RegistrationState, tunnel::RelayState},
};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use std::time::Duration;

#[tokio::test]
async fn step_1_register_refuses_what_is_no_serial_number_or_no_oak_with_the_reason() {
    let world = World::new().await;
    for (serial, oak, expected) in [
        ("00408C70200", device::OAK, "bad-serial-number"),
        ("O0408C702009", device::OAK, "bad-serial-number"),
        ("FFFFFFFFFFFF", device::OAK, "bad-serial-number"),
        ("00408C702009", "C0FF-EE12-345", "bad-oak"),
        ("00408C702009", "", "bad-oak"),
    ] {
        let (status, answer) = world.api(Method::POST, "/api/v1/devices", Some(form(serial, oak))).await;
        assert_eq!((status, code(&answer)), (StatusCode::BAD_REQUEST, expected), "{answer}");
        assert_eq!(answer["error"]["step"], "register");
    }
    for wrong in [
        json!({ "serial": "00408C702009", "oak": device::OAK, "user": "root" }),
        json!({ "serial": "00408C702009", "oak": device::OAK, "user": "", "password": "x" }),
        json!({ "serial": "00408C702009", "oak": device::OAK, "user": "root", "password": "x", "extra": 1 }),
        json!({ "serial": "00408C702009", "oak": device::OAK, "user": "root", "password": "x", "name": "n".repeat(65) }),
        json!("geheim"),
    ] {
        let (status, answer) = world.api(Method::POST, "/api/v1/devices", Some(wrong)).await;
        assert_eq!((status, code(&answer)), (StatusCode::BAD_REQUEST, "bad-request"), "{answer}");
        assert!(!answer.to_string().contains("geheim"));
    }
    assert!(world.dispatcher.relayed().is_empty());
    assert_eq!(world.api(Method::GET, "/api/v1/devices", None).await.1, json!([]));
}

#[tokio::test]
async fn step_2_relay_brings_address_and_trust_anchor_to_the_dispatcher_and_the_device_is_red() {
    let world = World::new().await;
    let mut events = world.handle.subscribe();
    let typed = json!({
        "serial": "00:40:8c:70:20:09", "oak": "c0ffee123456", "user": "root", "password": device::PASSWORD,
        "name": " Entrance ", "description": "above the door",
    });
    let (status, answer) = world.api(Method::POST, "/api/v1/devices", Some(typed)).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    assert_eq!(answer["serial"], "00408C702009");
    assert_eq!(
        (&answer["name"], &answer["step"], &answer["relay"]),
        (&json!("Entrance"), &json!("relay"), &json!("waiting"))
    );
    assert_eq!(answer["connected"], false);

    let [(serial, relayed)] = &world.dispatcher.relayed()[..] else { panic!("relayed once") };
    assert_eq!(serial.to_string(), "00408C702009");
    assert_eq!(relayed.servers, [world.external.to_string()]);
    assert_eq!(relayed.trust_anchor, world.trust_anchor());
    assert_eq!((relayed.user.as_str(), relayed.oak.label().as_str()), ("root", device::OAK));
    assert!(relayed.password.matches(device::PASSWORD));

    let homing_tunnel::Event::Device(shown) = within(events.next()).await.unwrap() else {
        panic!("a device")
    };
    assert_eq!((shown.step, shown.relay, shown.connected), (Step::Relay, RelayState::Waiting, false));
    let (_, server) = world.api(Method::GET, "/api/v1/server", None).await;
    assert_eq!(server["dispatcher_problem"], json!(null));
    assert_eq!((&server["name"], &server["public"]), (&json!("sts-1"), &json!([world.external.to_string()])));

    let again = form("00408C702009", device::OAK);
    let (status, answer) = world.api(Method::POST, "/api/v1/devices", Some(again)).await;
    assert_eq!((status, code(&answer)), (StatusCode::CONFLICT, "already-registered"));
    assert_eq!(world.dispatcher.relayed().len(), 1);
}

#[tokio::test]
async fn step_2_relay_what_the_dispatcher_refuses_is_passed_on_and_nothing_is_kept() {
    let world = World::new().await;
    let device = Device::new("00408C702009");
    let mut events = world.handle.subscribe();
    for (mode, status, expected) in [
        (
            Mode::Refuse(
                StatusCode::FORBIDDEN,
                "wrong-oak",
                "The OAK is not the device's: read the label again.",
            ),
            StatusCode::FORBIDDEN,
            "wrong-oak",
        ),
        (
            Mode::Refuse(
                StatusCode::CONFLICT,
                "claimed-by-another-account",
                "Somebody else has this device.",
            ),
            StatusCode::CONFLICT,
            "claimed-by-another-account",
        ),
        (
            Mode::RefuseInStep5("wrong-credentials", "The device refused the log-in."),
            StatusCode::CONFLICT,
            "wrong-credentials",
        ),
    ] {
        world.dispatcher.answer_with(mode);
        let (got, answer) = world.register(&device).await;
        assert_eq!((got, code(&answer)), (status, expected), "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().len() > 10);
        let (status, _) = world.api(Method::GET, "/api/v1/devices/00408C702009", None).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
    }
    // The one that the dispatcher had taken in is released there.
    world.dispatcher.released(device.serial).await;

    world.dispatcher.answer_with(Mode::Accept);
    let (status, answer) = world.register(&device).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    // The refusals were never shown: the first event is of the registration that was accepted.
    let homing_tunnel::Event::Device(first) = within(events.next()).await.unwrap() else {
        panic!("a device")
    };
    assert_eq!(first.relay, RelayState::Waiting);
}

#[tokio::test]
async fn step_2_relay_is_kept_and_tried_again_while_the_dispatcher_is_away() {
    let mut world = World::with(false, |_| ()).await;
    let device = Device::new("00408C702009");
    let (status, answer) = world.register(&device).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
    assert_eq!((&answer["relay"], &answer["step"]), (&json!("pending"), &json!("register")));
    assert_eq!(answer["problem"]["code"], "dispatcher-unreachable");
    let (_, server) = world.api(Method::GET, "/api/v1/server", None).await;
    assert_eq!(server["dispatcher_problem"]["code"], "dispatcher-unreachable");
    assert_eq!(world.metric("homing_tunnel_relay_pending"), 1.0);
    assert_eq!(world.metric("homing_tunnel_dispatcher_reachable"), 0.0);

    // It is still to be relayed after a restart.
    world.restart().await;
    let kept = world.device_until(device.serial, |_| true).await;
    assert_eq!(kept.relay, RelayState::Pending);

    world.start_dispatcher();
    let relayed = world.device_until(device.serial, |device| device.relay == RelayState::Waiting).await;
    assert_eq!((relayed.step, relayed.problem), (Step::Relay, None));
    assert!(world.dispatcher.relayed()[0].1.password.matches(device::PASSWORD));
    let (_, server) = world.api(Method::GET, "/api/v1/server", None).await;
    assert_eq!(server["dispatcher_problem"], json!(null));
    assert_eq!(world.metric("homing_tunnel_relay_pending"), 0.0);
}

#[tokio::test]
async fn a_dispatcher_that_is_back_is_no_problem_any_more_although_it_has_nothing_to_say() {
    let mut world = World::with(false, |_| ()).await;
    let says = async |world: &World, expected: Value| {
        within(async {
            loop {
                let (_, server) = world.api(Method::GET, "/api/v1/server", None).await;
                if server["dispatcher_problem"]["code"] == expected {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    };
    says(&world, json!("dispatcher-unreachable")).await;
    world.start_dispatcher();
    says(&world, Value::Null).await;
}

#[tokio::test]
async fn step_2_relay_with_an_account_that_the_dispatcher_does_not_know_is_kept_and_shown_so() {
    let world = World::with(true, |config| config.dispatcher.password = "old".into()).await;
    let device = Device::new("00408C702009");
    let (status, answer) = world.register(&device).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
    assert_eq!(answer["problem"]["code"], "unknown-account");
    assert!(answer["problem"]["message"].as_str().unwrap().contains("[tunnel.dispatcher] account"));
    let (_, server) = world.api(Method::GET, "/api/v1/server", None).await;
    assert_eq!(server["dispatcher_problem"]["code"], "unknown-account");
}

#[tokio::test]
async fn step_5_dispatch_that_failed_is_shown_and_a_corrected_registration_is_relayed_again() {
    let world = World::new().await;
    let device = Device::new("00408C702009");
    world.register(&device).await;
    let problem = Problem::at(Step::Dispatch, "wrong-oak", "The OAK is not the device's.").error;
    let state = RegistrationState::Refused;
    world.dispatcher.announce(device.serial, state, Step::PhoneHome, None, Some(problem.clone())).await;
    let refused = world.device_until(device.serial, |device| device.relay == RelayState::Refused).await;
    assert_eq!((refused.problem, refused.step), (Some(problem), Step::PhoneHome));

    let path = "/api/v1/devices/00408C702009";
    let correct: homing_protocol::Oak = "1111-2222-3333".parse().unwrap();
    let change = json!({ "oak": correct, "password": "the right one" });
    let (status, answer) = world.api(Method::PATCH, path, Some(change)).await;
    assert_eq!(
        (status, &answer["relay"], &answer["problem"]),
        (StatusCode::OK, &json!("waiting"), &json!(null)),
        "{answer}"
    );
    let (_, relayed) = world.dispatcher.relayed().pop().unwrap();
    assert_eq!(relayed.oak.label(), "1111-2222-3333");
    assert!(relayed.password.matches("the right one"));
    let (_, credentials) = world.api(Method::GET, &format!("{path}/credentials"), None).await;
    assert_eq!(credentials, json!({ "user": "root", "password": "the right one" }));

    // A name is our own business.
    let (status, answer) = world.api(Method::PATCH, path, Some(json!({ "name": "Exit" }))).await;
    assert_eq!((status, &answer["name"]), (StatusCode::OK, &json!("Exit")));
    assert_eq!(world.dispatcher.relayed().len(), 2);
    let (status, _) = world.api(Method::PATCH, path, Some(json!({ "serial": "00408C000000" }))).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn step_2_relay_is_repeated_by_itself_for_a_device_that_came_back_to_the_dispatcher() {
    let world = World::new().await;
    let (device, _) = world.ready("00408C702009").await;
    world.dispatcher.announce(device.serial, RegistrationState::Returned, Step::PhoneHome, None, None).await;
    world.dispatcher.relayed_times(2).await;
    let (_, again) = world.dispatcher.relayed().pop().unwrap();
    assert!(again.password.matches(device::PASSWORD));
    assert_eq!(again.oak.label(), device::OAK);
}

#[tokio::test]
async fn step_2_relay_is_repeated_when_the_dispatcher_has_forgotten_what_it_was_to_do() {
    let mut world = World::new().await;
    let device = Device::new("00408C702009");
    world.register(&device).await;
    world.dispatcher.announce(device.serial, RegistrationState::Waiting, Step::Relay, None, None).await;
    world.stop_dispatcher().await;
    world.dispatcher.forget();
    world.start_dispatcher();
    world.dispatcher.relayed_times(2).await;
    let waiting = world.device_until(device.serial, |device| device.relay == RelayState::Waiting).await;
    assert_eq!(waiting.problem, None);
    // And changes are followed from its new beginning.
    world.dispatcher.vouch(device.serial, device.fingerprint).await;
    world.connect(&device).await;
}

#[tokio::test]
async fn deleting_releases_the_claim_even_if_the_dispatcher_is_away_then_and_ends_the_uplink() {
    let mut world = World::new().await;
    let (device, serving) = world.ready("00408C702009").await;
    world.stop_dispatcher().await;
    let mut events = world.handle.subscribe();
    let path = "/api/v1/devices/00408C702009";
    assert_eq!(world.api(Method::DELETE, path, None).await.0, StatusCode::NO_CONTENT);
    assert_eq!(world.api(Method::GET, path, None).await.0, StatusCode::NOT_FOUND);
    assert_eq!(world.api(Method::DELETE, path, None).await.0, StatusCode::NOT_FOUND);
    within(serving).await.unwrap();
    loop {
        if within(events.next()).await.unwrap() == homing_tunnel::Event::Removed(device.serial) {
            break;
        }
    }
    within(device.dial(world.external, &world.trust_anchor()))
        .await
        .expect_err("its key is not welcome any more");

    world.restart().await;
    world.start_dispatcher();
    world.dispatcher.released(device.serial).await;
}
