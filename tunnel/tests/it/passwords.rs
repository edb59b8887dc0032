//! A device with a factory default password gets one of its own, and nothing is lost whenever it is interrupted.

use crate::{
    device::{Change, Device},
    world::{DEADLINE, World, within},
};
use http::{Method, StatusCode};

/// As it is delivered.
fn factory_default(change: Change) -> Device {
    let device = Device::new("00408C702009");
    {
        let mut lock = device.lock.lock().unwrap();
        (lock.password, lock.change) = ("pass".into(), change);
    }
    device
}

impl World {
    /// The password that an administrator is shown.
    async fn shown(&self, device: &Device) -> String {
        let path = format!("/api/v1/devices/{}/credentials", device.serial);
        let (status, credentials) = self.api(Method::GET, &path, None).await;
        assert_eq!(status, StatusCode::OK);
        credentials["password"].as_str().unwrap().to_owned()
    }

    /// Waits until the device has a password of its own, and the administrator is shown that one.
    async fn until_own(&self, device: &Device) {
        self.device_until(device.serial, |device| device.own_password).await;
        let has = device.lock.lock().unwrap().password.clone();
        assert_eq!(self.shown(device).await, has);
        assert!(has.len() >= 16 && has != "pass", "{has}");
        let said = format!("{:?}", self.handle.device(device.serial));
        assert!(!said.contains(&has));
    }
}

#[tokio::test]
async fn a_factory_default_password_is_replaced_by_onvif_or_vapix() {
    for change in [Change::Onvif, Change::Vapix] {
        let mut world = World::new().await;
        let device = factory_default(change);
        let _serving = world.make_ready(&device).await;
        world.until_own(&device).await;
        let own = world.shown(&device).await;
        world.restart().await;
        world.connect(&device).await;
        assert_eq!(world.shown(&device).await, own);
        assert!(world.handle.device(device.serial).unwrap().own_password);
    }
}

#[tokio::test]
async fn a_device_that_takes_no_new_password_is_left_alone_and_shown() {
    let world = World::new().await;
    let device = factory_default(Change::No);
    let serving = world.make_ready(&device).await;
    let warned = world.device_until(device.serial, |device| device.problem.is_some()).await;
    let problem = warned.problem.unwrap();
    assert!(warned.connected && !warned.own_password);
    assert_eq!(problem.code, "default-password");
    assert!(problem.message.contains("not here"), "{}", problem.message);
    assert_eq!(world.shown(&device).await, "pass");

    // After an update of its firmware, perhaps: when it connects again it is tried again.
    device.lock.lock().unwrap().change = Change::Onvif;
    world.site.stop();
    within(serving).await.unwrap();
    let site = homing_base::Stop::new();
    let dialed = within(device.dial(world.external, &world.trust_anchor())).await.unwrap();
    let _serving = device.serve(dialed, &site);
    world.until_own(&device).await;
    assert_eq!(world.handle.device(device.serial).unwrap().problem, None);
    site.stop();
}

#[tokio::test]
async fn a_device_that_is_cut_off_while_it_is_told_has_one_of_two_passwords_and_it_is_found_out_which() {
    for change in [Change::ThenCut, Change::CutBefore] {
        let mut world = World::new().await;
        let device = factory_default(change);
        let serving = world.make_ready(&device).await;
        within(serving).await.unwrap();
        world.device_until(device.serial, |device| !device.connected).await;
        assert_eq!(device.lock.lock().unwrap().password == "pass", change == Change::CutBefore);
        assert_eq!(world.shown(&device).await, "pass", "until the device has been seen to take the other");
        world.restart().await;
        device.lock.lock().unwrap().change = Change::Onvif;
        world.connect(&device).await;
        world.until_own(&device).await;
    }
}

#[tokio::test]
async fn who_guesses_the_password_that_is_just_being_replaced_does_not_lose_the_new_one() {
    let mut world = World::new().await;
    let device = factory_default(Change::ThenCut);
    let serving = world.make_ready(&device).await;
    within(serving).await.unwrap();
    world.device_until(device.serial, |device| !device.connected).await;
    let path = format!("/api/v1/devices/{}", device.serial);
    let correction = serde_json::json!({ "password": "a-wrong-guess" });
    assert_eq!(world.api(Method::PATCH, &path, Some(correction)).await.0, StatusCode::OK);
    world.restart().await;
    device.lock.lock().unwrap().change = Change::Onvif;
    world.connect(&device).await;
    world.until_own(&device).await;
}

#[tokio::test]
async fn a_password_that_somebody_chose_and_any_where_it_is_switched_off_are_left() {
    for (password, adjust) in [
        ("chosen", (|_| ()) as fn(&mut homing_tunnel::Config)),
        ("pass", |config| config.replace_default_passwords = false),
        ("pass", |config| config.default_passwords = vec!["root:other".into()]),
    ] {
        let world = World::with(true, adjust).await;
        let device = factory_default(Change::Onvif);
        device.lock.lock().unwrap().password = password.into();
        let _serving = world.make_ready(&device).await;
        // Something that takes longer than a look at its password: a whole other device.
        let other = Device::new("00408C702010");
        other.lock.lock().unwrap().change = Change::Onvif;
        let _other = world.make_ready(&other).await;
        assert_eq!(device.lock.lock().unwrap().asked, 0, "nothing was asked of it");
        assert_eq!(world.shown(&device).await, password);
        let shown = world.handle.device(device.serial).unwrap();
        assert!(shown.connected && !shown.own_password && shown.problem.is_none());
    }
}

#[tokio::test]
async fn a_password_that_is_corrected_to_the_default_is_replaced_too() {
    let world = World::new().await;
    let device = factory_default(Change::Onvif);
    device.lock.lock().unwrap().password = "chosen".into();
    let _serving = world.make_ready(&device).await;
    device.lock.lock().unwrap().password = "pass".into();
    let path = format!("/api/v1/devices/{}", device.serial);
    let correction = serde_json::json!({ "password": "pass" });
    let (status, _) = world.api(Method::PATCH, &path, Some(correction)).await;
    assert_eq!(status, StatusCode::OK);
    tokio::time::timeout(DEADLINE, world.until_own(&device)).await.unwrap();
}

#[tokio::test]
async fn a_device_that_was_cut_off_while_it_was_told_is_handed_over_with_both_passwords() {
    for change in [Change::ThenCut, Change::CutBefore] {
        let (old, new) = (World::new().await, World::new().await);
        let device = factory_default(change);
        let serving = old.make_ready(&device).await;
        within(serving).await.unwrap();
        old.device_until(device.serial, |device| !device.connected).await;
        device.lock.lock().unwrap().change = Change::Onvif;
        let path = format!("/api/v1/devices/{}/handover", device.serial);
        let (_, handover) = old.api(Method::GET, &path, None).await;
        let (status, answer) = new.api(Method::POST, "/api/v1/devices", Some(handover)).await;
        assert!(status.is_success(), "{answer}");
        let dialed = within(device.dial(new.external, &new.trust_anchor())).await.unwrap();
        let _serving = device.serve(dialed, &new.site);
        new.until_own(&device).await;
        let (_, handover) = new.api(Method::GET, &path, None).await;
        assert_eq!((&handover["own_password"], handover.get("proposed_password")), (&true.into(), None));
    }
}
