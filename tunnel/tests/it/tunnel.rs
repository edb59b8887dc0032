//! Steps 6 and 7: devices dial in, and exactly the vouched-for key is admitted.

use crate::{
    device::Device,
    dispatcher::Mode,
    world::{World, within},
};
use homing_protocol::{
    Step,
    api::{
        dispatcher::RegistrationState,
        tunnel::{self, RelayState},
    },
};
use homing_uplink::{DialError, EndReason};
use http::StatusCode;

fn refusal(error: &DialError) -> (u16, &str) {
    match error {
        DialError::Refused { status, reason, .. } => (*status, reason),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn scenario_a_the_device_comes_after_it_was_registered() {
    let world = World::new().await;
    let device = Device::new("00408C702009");
    world.register(&device).await;
    world.dispatcher.vouch(device.serial, device.fingerprint).await;
    let dispatched = world.device_until(device.serial, |device| device.relay == RelayState::Dispatched).await;
    assert_eq!((dispatched.step, dispatched.connected), (Step::Dispatch, false));

    world.connect(&device).await;
    let ready = world.device_until(device.serial, |device| device.rtt_ms.is_some() || device.connected).await;
    assert_eq!((ready.step, ready.connected, ready.problem), (Step::Tunnel, true, None));
    assert!(ready.peer.unwrap().starts_with("127.0.0.1:"));
    assert_eq!(world.metric("homing_tunnel_uplinks"), 1.0);
    assert_eq!(world.metric("homing_tunnel_uplinks_admitted_total"), 1.0);
}

#[tokio::test]
async fn scenario_c_the_key_is_welcome_while_the_registration_is_still_being_relayed() {
    let world = World::new().await;
    let device = Device::new("00408C702009");
    world.dispatcher.answer_with(Mode::Dispatch(device.fingerprint));
    let (status, answer) = world.register(&device).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    assert_eq!((&answer["relay"], &answer["step"]), (&"dispatched".into(), &"dispatch".into()));
    world.connect(&device).await;
}

#[tokio::test]
async fn step_7_tunnel_refuses_a_key_that_nobody_vouched_for_and_says_why() {
    let world = World::new().await;
    let device = Device::new("00408C702009");
    let stranger = within(device.dial(world.external, &world.trust_anchor())).await.unwrap_err();
    let (status, reason) = refusal(&stranger);
    assert_eq!(status, 403);
    assert!(reason.contains("00408C702009") && reason.contains("press its button"), "{reason}");

    // Registered, but the dispatcher has not seen it yet: the same to the device, and shown to the administrator.
    world.register(&device).await;
    let unknown = within(device.dial(world.external, &world.trust_anchor())).await.unwrap_err();
    assert_eq!(refusal(&unknown), refusal(&stranger));
    let shown = world.device_until(device.serial, |device| device.problem.is_some()).await;
    assert_eq!(shown.problem.unwrap().code, "unknown-key");
    assert!(world.metric("homing_tunnel_refused_total{reason=\"unknown-key\"}") >= 2.0);

    world.dispatcher.vouch(device.serial, device.fingerprint).await;
    world.connect(&device).await;
}

#[tokio::test]
async fn step_7_tunnel_somebody_elses_key_with_a_known_serial_number_is_refused() {
    let world = World::new().await;
    let (device, serving) = world.ready("00408C702009").await;
    // A key of its own, and the serial number of a device that is here.
    let impostor = Device::new("00408C702009");
    assert_ne!(impostor.fingerprint, device.fingerprint);
    let error = within(impostor.dial(world.external, &world.trust_anchor())).await.unwrap_err();
    assert_eq!(refusal(&error).0, 403);

    // A key that was vouched for as another device's.
    let other = Device::new("00408C702010");
    world.register(&other).await;
    world.dispatcher.vouch(other.serial, impostor.fingerprint).await;
    let error = within(impostor.dial(world.external, &world.trust_anchor())).await.unwrap_err();
    let (status, reason) = refusal(&error);
    assert_eq!(status, 403);
    assert!(reason.contains("another device"), "{reason}");

    assert!(!serving.is_finished(), "the device itself was not touched");
    assert!(world.handle.device(device.serial).unwrap().connected);
    assert!(!world.handle.device(other.serial).unwrap().connected);
}

#[tokio::test]
async fn step_7_tunnel_the_newest_uplink_replaces_the_older_at_once() {
    let world = World::new().await;
    let (device, older) = world.ready("00408C702009").await;
    let newer =
        device.serve(within(device.dial(world.external, &world.trust_anchor())).await.unwrap(), &world.site);
    within(older).await.unwrap();
    let request = http::Request::builder().uri("/headers").body(bytes::Bytes::new()).unwrap();
    let response = within(world.handle.request(device.serial, request)).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(!newer.is_finished());
    assert!(world.handle.device(device.serial).unwrap().connected, "the older one's end does not count");
    assert_eq!(world.metric("homing_tunnel_uplinks"), 1.0);
}

#[tokio::test]
async fn step_7_tunnel_a_device_that_was_reset_loses_its_old_key_when_the_new_one_is_vouched_for() {
    let world = World::new().await;
    let (before, serving) = world.ready("00408C702009").await;
    let after = Device::new("00408C702009");
    world.dispatcher.announce(after.serial, RegistrationState::Returned, Step::PhoneHome, None, None).await;
    world.dispatcher.vouch(after.serial, after.fingerprint).await;
    within(serving).await.unwrap();
    let error = within(before.dial(world.external, &world.trust_anchor())).await.unwrap_err();
    assert_eq!(refusal(&error).0, 403);
    world.connect(&after).await;
}

#[tokio::test]
async fn step_7_tunnel_a_device_that_goes_is_shown_so_with_the_reason() {
    let world = World::with(true, |config| {
        config.limits.ping_interval_ms = 100;
        config.limits.dead_after_ms = 400;
    })
    .await;
    let (device, serving) = world.ready("00408C702009").await;
    world.site.stop();
    within(serving).await.unwrap();
    // That it was there is stored in its own time.
    let is_gone = |device: &tunnel::Device| !device.connected && device.step == Step::Tunnel;
    let gone = world.device_until(device.serial, is_gone).await;
    assert_eq!(gone.problem.unwrap().code, "uplink-lost");
    assert_eq!((gone.step, gone.relay), (Step::Tunnel, RelayState::Dispatched));
    assert!(gone.since.is_some());

    // One that falls silent without a word: its uplink is dialled, and nobody serves it.
    let silent = within(device.dial(world.external, &world.trust_anchor())).await.unwrap();
    world.device_until(device.serial, |device| device.connected).await;
    let gone = world.device_until(device.serial, |device| !device.connected).await;
    assert!(gone.problem.unwrap().message.contains("nothing came"));
    drop(silent);
}

#[tokio::test]
async fn a_restart_between_any_two_steps_keeps_what_was_reached() {
    let mut world = World::new().await;
    let device = Device::new("00408C702009");
    world.register(&device).await;
    world.restart().await;
    assert_eq!(world.handle.device(device.serial).unwrap().relay, RelayState::Waiting);

    world.dispatcher.vouch(device.serial, device.fingerprint).await;
    world.restart().await;
    let kept = world.handle.device(device.serial).unwrap();
    assert_eq!((kept.step, kept.relay), (Step::Dispatch, RelayState::Dispatched));

    let serving = world.connect(&device).await;
    world.stop_tunnel().await;
    let reason = within(serving).await.unwrap();
    assert_eq!(reason, EndReason::PeerClosed, "told in order");
    world.restart().await;
    let kept = world.handle.device(device.serial).unwrap();
    assert_eq!((kept.step, kept.connected), (Step::Tunnel, false));
    world.connect(&device).await;
    assert_eq!(world.dispatcher.relayed().len(), 1);
}
