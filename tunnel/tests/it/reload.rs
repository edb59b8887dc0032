//! Another configuration while the tunnel server runs: what may change does at once, no uplink is lost, what may not is named,
//! and what is wrong changes nothing.

use crate::{
    device::Device,
    world::{PASSWORD, USER, World, send_from, within},
};
use bytes::Bytes;
use homing_base::client::basic;
use homing_protocol::secret::Credentials;
use http::{Request, StatusCode};

async fn status_with(world: &World, password: &str) -> StatusCode {
    let request = Request::get("/api/v1/devices")
        .header("host", "x")
        .header("authorization", basic(&Credentials::new(USER, password)))
        .body(Bytes::new())
        .unwrap();
    within(send_from([127, 0, 0, 1], world.internal, request)).await.status()
}

#[tokio::test]
async fn limits_and_passwords_change_and_no_uplink_is_lost() {
    let world = World::with(true, |config| config.limits.uplinks = 1).await;
    let (_, serving) = world.ready("00408C702009").await;
    let second = Device::new("00408C70200A");
    world.register(&second).await;
    world.dispatcher.vouch(second.serial, second.fingerprint).await;
    let error = within(second.dial(world.external, &world.trust_anchor())).await.unwrap_err();
    assert!(error.to_string().contains("503"), "{error}");

    let mut now = world.config.clone();
    now.limits.uplinks = 2;
    now.password = "another-password-6161".into();
    now.external = "127.0.0.1:1".parse().unwrap();
    now.limits.stalled_ms += 1;
    let reloaded = world.reloader.reload(&world.config, &now, &[]).unwrap();
    assert_eq!(reloaded.changed, ["limits.uplinks", "password"]);
    let mut restart = reloaded.restart;
    restart.sort();
    assert_eq!(restart, ["external", "limits.stalled_ms"]);
    world.connect(&second).await;
    assert!(!serving.is_finished());
    assert_eq!(status_with(&world, PASSWORD).await, StatusCode::UNAUTHORIZED);
    assert_eq!(status_with(&world, "another-password-6161").await, StatusCode::OK);

    // What this process has told itself elsewhere is kept.
    let mut again = now.clone();
    again.password = "a-third-password-7272".into();
    let reloaded = world.reloader.reload(&now, &again, &["password"]).unwrap();
    assert_eq!((reloaded.changed.len(), reloaded.restart), (0, vec!["password".to_owned()]));
    assert_eq!(status_with(&world, "another-password-6161").await, StatusCode::OK);
}

#[tokio::test]
async fn what_is_wrong_changes_nothing_and_is_named() {
    let world = World::new().await;
    let (device, serving) = world.ready("00408C702009").await;
    for (break_it, said) in [
        (
            (|config| config.dispatcher.address = "http://x".into()) as fn(&mut homing_tunnel::Config),
            "https://",
        ),
        (|config| config.dispatcher.trust_anchor = "/nowhere.pem".into(), "/nowhere.pem"),
        (|config| config.limits.uplinks = 0, "at least 1"),
        (|config| config.user = "a:b".into(), "colon"),
    ] {
        let mut now = world.config.clone();
        now.password = "another-password-6161".into();
        break_it(&mut now);
        let error = world.reloader.reload(&world.config, &now, &[]).unwrap_err();
        assert!(format!("{error:#}").contains(said), "{error:#}");
        assert_eq!(status_with(&world, PASSWORD).await, StatusCode::OK);
    }
    assert!(!serving.is_finished() && world.handle.device(device.serial).unwrap().connected);
}

/// Goal: a new password at the dispatcher is taken over without a restart, and the registration that waited goes through.
#[tokio::test]
async fn step_2_relay_goes_on_with_the_new_password_of_the_dispatcher_account() {
    let world = World::with(true, |config| config.dispatcher.password = "the-old-one".into()).await;
    let device = Device::new("00408C702009");
    let (status, answer) = world.register(&device).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
    let mut now = world.config.clone();
    now.dispatcher.password = crate::dispatcher::PASSWORD.into();
    let reloaded = world.reloader.reload(&world.config, &now, &[]).unwrap();
    assert_eq!(reloaded.changed, ["dispatcher.password"]);
    world.dispatcher.relayed_times(1).await;
}
