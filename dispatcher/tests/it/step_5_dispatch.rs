//! Step 5, dispatch, after step 4: in both orders, and everything that can be wrong with a device.

use crate::{
    device::{Device, PASSWORD, Quirks},
    world::*,
};
use homing_protocol::{Step, api::dispatcher::RegistrationState as State, onvif};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// What holds after step 5, whatever came before.
async fn assert_dispatched(world: &World, sts: &Sts, device: &Arc<Device>) {
    let registration = sts.get().await.unwrap();
    assert_eq!((registration.state, registration.step), (State::Dispatched, Step::Dispatch));
    assert_eq!(registration.fingerprint, Some(device.fingerprint().to_string()));
    assert_eq!(registration.problem, None);
    let uplinks = device.uplinks.borrow().clone();
    let addresses: Vec<_> = uplinks.iter().map(|set| set.remote_address.as_str()).collect();
    assert_eq!(addresses, ["https://127.0.0.1:9/", "https://127.0.0.2:9/"]);
    let trusted = device.trusted_by(uplinks[0].cert_path_validation_policy_id.as_ref().unwrap());
    assert_eq!(trusted.replace(['\n', '\r'], ""), world.trust.replace(['\n', '\r'], ""));
}

/// A: registered first, then the device phones home.
#[tokio::test]
async fn step_5_dispatch_in_scenario_a_the_device_is_dispatched_as_it_arrives() {
    let (_folder, world, sts) = world_with_account().await;
    let device = device(OAK);
    sts.put(&Sts::registration(OAK, PASSWORD, &world.trust)).await.unwrap();
    let _uplink = world.phone_home(&device).await.unwrap();
    let began = Instant::now();
    let told = sts.until(|change| change.fingerprint.is_some()).await;
    assert_eq!(told.state, State::Dispatching, "the key is told before the device is sent away");
    sts.until_state(State::Dispatched).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_dispatched(&world, &sts, &device).await;
    world.stop().await;
}

/// C: the device waits, and is dispatched within a second of its registration, whose answer says so.
#[tokio::test]
async fn step_5_dispatch_in_scenario_c_the_waiting_device_is_dispatched_within_a_second() {
    let (_folder, world, sts) = world_with_account().await;
    let device = device(OAK);
    let new = Sts::registration(OAK, PASSWORD, &world.trust);
    // The quickest of some: a busy machine slows some of them down, what we wait for ourselves all.
    let mut quickest = Duration::MAX;
    let mut uplinks = Vec::new();
    for _ in 0..4 {
        uplinks.push(world.phone_home(&device).await.unwrap());
        let began = Instant::now();
        let (put, _) = tokio::join!(sts.put(&new), sts.until_state(State::Dispatched));
        quickest = quickest.min(began.elapsed());
        assert_eq!(put.unwrap().state, State::Dispatched);
        assert_dispatched(&world, &sts, &device).await;
        sts.delete().await.unwrap();
    }
    assert!(quickest < Duration::from_secs(1), "{quickest:?}");
    world.stop().await;
}

/// A tunnel server with a certificate of the public web: the device is told an address and no policy.
#[tokio::test]
async fn step_5_dispatch_without_a_trust_anchor_the_device_trusts_what_browsers_do() {
    let (_folder, world, sts) = world_with_account().await;
    let device = device(OAK);
    let mut new = Sts::registration(OAK, PASSWORD, "");
    new.servers = vec!["sts.example:8443".into()];
    sts.put(&new).await.unwrap();
    let _uplink = world.phone_home(&device).await.unwrap();
    sts.until_state(State::Dispatched).await;
    let uplinks = device.uplinks.borrow().clone();
    assert_eq!(uplinks[0].remote_address, "https://sts.example:8443/");
    assert_eq!(uplinks[0].cert_path_validation_policy_id, None);
    world.stop().await;
}

/// A device that is dispatched again (its tunnel server moved back, say) does not fill up with anchors.
#[tokio::test]
async fn step_5_dispatch_a_device_that_returns_is_relayed_and_dispatched_again() {
    let (_folder, world, sts) = world_with_account().await;
    let device = device(OAK);
    let new = Sts::registration(OAK, PASSWORD, &world.trust);
    let first = world.phone_home(&device).await.unwrap();
    let (put, _) = tokio::join!(sts.put(&new), sts.until_state(State::Dispatched));
    put.unwrap();
    let kept = device.kept();

    let _second = world.phone_home(&device).await.unwrap();
    assert!(
        first.await.unwrap().to_string().contains("closed"),
        "the newest uplink of a key replaces the older"
    );
    let returned = sts.until_state(State::Returned).await;
    assert_eq!(returned.fingerprint, Some(device.fingerprint().to_string()));
    let (put, _) = tokio::join!(sts.put(&new), sts.until_state(State::Dispatched));
    assert_eq!(put.unwrap().state, State::Dispatched);
    assert_eq!(device.kept(), kept);
    world.stop().await;
}

/// A tunnel server that does not answer delays its devices, and does not lose them.
#[tokio::test]
async fn step_5_dispatch_goes_on_when_the_tunnel_server_does_not_acknowledge() {
    let (_folder, world, sts) = world_with_account().await;
    let device = device(OAK);
    let _uplink = world.phone_home(&device).await.unwrap();
    let put = sts.put(&Sts::registration(OAK, PASSWORD, &world.trust)).await.unwrap();
    assert_eq!(put.state, State::Dispatched);
    world.stop().await;
}

/// Whatever the owner can mend is told by a code and a sentence, at registration where the device waits.
async fn refused(device: &Arc<Device>, oak: homing_protocol::Oak, password: &str, code: &str, says: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let secret = account(folder.path(), "shop").await;
    let world = World::start(folder.path()).await;
    let sts = world.sts("shop", &secret);
    let _uplink = world.phone_home(device).await.unwrap();
    let new = Sts::registration(oak, password, &world.trust);
    // The second ends with the test: the key may never be announced.
    let put = tokio::select! {
        put = sts.put(&new) => put.unwrap(),
        _ = sts.until_state(State::Dispatched) => panic!("dispatched"),
    };
    let problem = put.problem.expect("a problem");
    assert_eq!((put.state, problem.code.as_str()), (State::Refused, code), "{}", problem.message);
    assert_eq!(problem.step, Some(Step::Dispatch));
    for word in says.iter().chain(&["00408C702009"]) {
        assert!(problem.message.contains(word), "{word}: {}", problem.message);
    }
    assert!(device.uplinks.borrow().is_empty(), "nothing was set");

    // Corrected, the same uplink is dispatched.
    if code == "wrong-oak" || code == "wrong-credentials" {
        let new = Sts::registration(OAK, PASSWORD, &world.trust);
        let (put, _) = tokio::join!(sts.put(&new), sts.until_state(State::Dispatched));
        assert_eq!(put.unwrap().state, State::Dispatched);
    }
    world.stop().await;
}

#[tokio::test]
async fn step_5_dispatch_a_wrong_oak_is_refused_in_scenario_c() {
    refused(&device(OAK), OTHER_OAK, PASSWORD, "wrong-oak", &["OAK on its label"]).await;
}

#[tokio::test]
async fn step_5_dispatch_a_wrong_camera_password_is_refused() {
    refused(&device(OAK), OAK, "wrong", "wrong-credentials", &["user name and password"]).await;
}

#[tokio::test]
async fn step_5_dispatch_a_wrong_serial_number_is_refused() {
    let quirks = Quirks { tells_serial: Some("ACCC8E000001".into()), ..Quirks::default() };
    let device = Device::new(SERIAL, OAK, PASSWORD, quirks);
    refused(&device, OAK, PASSWORD, "wrong-serial", &["ACCC8E000001", "label"]).await;
}

#[tokio::test]
async fn step_5_dispatch_a_device_without_the_services_is_refused_by_name() {
    for (namespace, name) in [(onvif::SECURITY_NS, "Security"), (onvif::UPLINK_NS, "Uplink")] {
        let device =
            Device::new(SERIAL, OAK, PASSWORD, Quirks { lacks: Some(namespace), ..Quirks::default() });
        refused(&device, OAK, PASSWORD, "device-lacks-service", &[name]).await;
    }
}

/// A: the refusal comes as a change, and a corrected registration is carried out.
#[tokio::test]
async fn step_5_dispatch_a_wrong_oak_is_refused_in_scenario_a() {
    let (_folder, world, sts) = world_with_account().await;
    let put = sts.put(&Sts::registration(OTHER_OAK, PASSWORD, &world.trust)).await.unwrap();
    assert_eq!(put.state, State::Waiting);
    let _uplink = world.phone_home(&device(OAK)).await.unwrap();
    let refused = sts.until_state(State::Refused).await;
    assert_eq!(refused.problem.unwrap().code, "wrong-oak");
    let new = Sts::registration(OAK, PASSWORD, &world.trust);
    let (put, _) = tokio::join!(sts.put(&new), sts.until_state(State::Dispatched));
    assert_eq!(put.unwrap().state, State::Dispatched);
    world.stop().await;
}

/// A device that goes away in the middle waits again, with the reason.
#[tokio::test]
async fn step_5_dispatch_a_device_that_goes_away_meanwhile_is_waited_for() {
    let (_folder, world, sts) = world_with_account().await;
    let silent = Device::new(SERIAL, OAK, PASSWORD, Quirks { silent: true, ..Quirks::default() });
    sts.put(&Sts::registration(OAK, PASSWORD, &world.trust)).await.unwrap();
    let leave = CancellationToken::new();
    let address = format!("https://{}/", world.external);
    let _gone = silent.dial(&address, &world.trust, &leave).await.unwrap();
    silent.asked.notified().await;
    leave.cancel();
    let waiting = sts.until(|change| change.problem.is_some()).await;
    assert_eq!(waiting.state, State::Waiting);
    assert_eq!(waiting.problem.unwrap().code, "device-gone");

    let _uplink = world.phone_home(&device(OAK)).await.unwrap();
    sts.until_state(State::Dispatched).await;
    world.stop().await;
}

/// Somebody else's key that claims a known serial number proves nothing, takes nobody's place, and does
/// not keep the true device from being dispatched, whoever comes first.
#[tokio::test]
async fn step_5_dispatch_somebody_else_s_key_with_a_known_serial_number_is_not_bound() {
    for stranger_first in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let password = account(folder.path(), "shop").await;
        let world = World::start(folder.path()).await;
        let sts = world.sts("shop", &password);
        let (stranger, device) = (device(OTHER_OAK), device(OAK));
        let order = if stranger_first { [&stranger, &device] } else { [&device, &stranger] };
        let mut uplinks = Vec::new();
        for each in order {
            uplinks.push(world.phone_home(each).await.unwrap());
        }
        let new = Sts::registration(OAK, PASSWORD, &world.trust);
        let (put, _) = tokio::join!(sts.put(&new), sts.until_state(State::Dispatched));
        assert_eq!(put.unwrap().state, State::Dispatched);
        assert_dispatched(&world, &sts, &device).await;
        assert!(stranger.uplinks.borrow().is_empty());
        assert!(uplinks.iter().all(|uplink| !uplink.is_finished()), "both stay");
        world.stop().await;
    }
}

/// Who comes while the device is being dispatched may be the same one after a reset, so its tunnel server is asked
/// for the registration again; a stranger gets no more than that.
#[tokio::test]
async fn step_5_dispatch_a_stranger_who_comes_meanwhile_gets_nothing() {
    let (_folder, world, sts) = world_with_account().await;
    let (stranger, device) = (device(OTHER_OAK), device(OAK));
    sts.put(&Sts::registration(OAK, PASSWORD, &world.trust)).await.unwrap();
    let _device = world.phone_home(&device).await.unwrap();
    // Its key is announced, and nothing acknowledged yet.
    let announced = async { while sts.get().await.unwrap().fingerprint.is_none() {} };
    tokio::time::timeout(DEADLINE, announced).await.unwrap();
    let _stranger = world.phone_home(&stranger).await.unwrap();
    world.until_metric("devices 2").await;
    let own = Some(device.fingerprint().to_string());
    assert_eq!(sts.until_state(State::Returned).await.fingerprint, own);
    let new = Sts::registration(OAK, PASSWORD, &world.trust);
    let (put, dispatched) = tokio::join!(sts.put(&new), sts.until_state(State::Dispatched));
    put.unwrap();
    assert_eq!(dispatched.fingerprint, own);
    assert!(stranger.uplinks.borrow().is_empty());
    world.stop().await;
}

/// A silent stranger does not delay the true device either.
#[tokio::test]
async fn step_5_dispatch_a_silent_stranger_does_not_delay_the_device() {
    let (_folder, world, sts) = world_with_account().await;
    let silent = Device::new(SERIAL, OTHER_OAK, PASSWORD, Quirks { silent: true, ..Quirks::default() });
    let device = device(OAK);
    let _first = world.phone_home(&silent).await.unwrap();
    let _second = world.phone_home(&device).await.unwrap();
    let new = Sts::registration(OAK, PASSWORD, &world.trust);
    let began = Instant::now();
    let (put, _) = tokio::join!(sts.put(&new), sts.until_state(State::Dispatched));
    assert_eq!(put.unwrap().state, State::Dispatched);
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    world.stop().await;
}

/// Guessing the OAK of a waiting device is slowed down, also for who does not wait for the answer.
#[tokio::test]
async fn step_5_dispatch_guessing_an_oak_is_slowed() {
    let (_folder, world, sts) = world_with_account().await;
    let _uplink = world.phone_home(&device(OAK)).await.unwrap();
    let guess = |number| {
        let oak = homing_protocol::Oak::new([number, 0, 0, 0, 0, 0]);
        Sts::registration(oak, PASSWORD, &world.trust)
    };
    for number in 0..6 {
        assert_eq!(sts.put(&guess(number)).await.unwrap().problem.unwrap().code, "wrong-oak");
    }
    let (status, code, message) = refusal(sts.put(&guess(6)).await);
    assert_eq!((status, code.as_str()), (429, "slow-down"));
    assert!(message.contains("different OAKs"), "{message}");
    let again = sts.put(&guess(5)).await.unwrap();
    assert_eq!(again.problem.unwrap().code, "wrong-oak", "the same again is no guess");
    world.stop().await;
}

/// A device that is refused and comes back again and again is not logged in to each time: it would lock
/// its user out. A corrected registration is tried at once.
#[tokio::test]
async fn step_5_dispatch_a_refused_device_is_not_tried_at_every_return() {
    let (_folder, world, sts) = world_with_account().await;
    let device = device(OAK);
    sts.put(&Sts::registration(OAK, "wrong", &world.trust)).await.unwrap();
    let mut uplinks = Vec::new();
    for tries in 1..=3 {
        uplinks.push(world.phone_home(&device).await.unwrap());
        world.until_metric(&format!(r#"dispatches_total{{result="wrong-credentials"}} {tries}"#)).await;
    }
    uplinks.push(world.phone_home(&device).await.unwrap());
    world.until_metric("postponed_total 1").await;

    let new = Sts::registration(OAK, PASSWORD, &world.trust);
    let (put, _) = tokio::join!(sts.put(&new), sts.until_state(State::Dispatched));
    assert_eq!(put.unwrap().state, State::Dispatched);
    world.stop().await;
}

/// What a disabled account has registered is not dispatched to it.
#[tokio::test]
async fn step_5_dispatch_nothing_is_sent_to_a_disabled_account() {
    let (folder, world, sts) = world_with_account().await;
    sts.put(&Sts::registration(OAK, PASSWORD, &world.trust)).await.unwrap();
    homing_dispatcher::accounts::disable(folder.path(), "shop").await.unwrap();
    let device = device(OAK);
    let first = world.phone_home(&device).await.unwrap();
    let _second = world.phone_home(&device).await.unwrap();
    first.await.unwrap();

    homing_dispatcher::accounts::enable(folder.path(), "shop").await.unwrap();
    assert_eq!(sts.get().await.unwrap().state, State::Waiting);
    assert!(device.uplinks.borrow().is_empty());
    let new = Sts::registration(OAK, PASSWORD, &world.trust);
    let (put, _) = tokio::join!(sts.put(&new), sts.until_state(State::Dispatched));
    assert_eq!(put.unwrap().state, State::Dispatched);
    world.stop().await;
}

/// Between any two steps the dispatcher may restart.
#[tokio::test]
async fn step_5_dispatch_a_restart_between_registration_and_arrival_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let password = account(folder.path(), "shop").await;
    let world = World::start(folder.path()).await;
    let trust = world.trust.clone();
    world.sts("shop", &password).put(&Sts::registration(OAK, PASSWORD, &trust)).await.unwrap();
    world.stop().await;

    let world = World::start(folder.path()).await;
    assert_eq!(world.trust, trust, "devices go on trusting it");
    let sts = world.sts("shop", &password);
    let device = device(OAK);
    let _uplink = world.phone_home(&device).await.unwrap();
    sts.until_state(State::Dispatched).await;
    assert_dispatched(&world, &sts, &device).await;
    world.stop().await;

    let world = World::start(folder.path()).await;
    assert_eq!(world.sts("shop", &password).get().await.unwrap().state, State::Dispatched);
    world.stop().await;
}

/// Nothing that is secret is in a log line, at any level, nor in the files, whatever happened.
#[tokio::test]
async fn step_5_dispatch_secrets_are_in_no_log_and_in_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let account_password = account(folder.path(), "shop").await;
    let world = World::start(folder.path()).await;
    let sts = world.sts("shop", &account_password);
    let oak = homing_protocol::Oak::new([0xDE, 0xAD, 0xBE, 0xA7, 0x5E, 0xC7]);
    let (right, wrong) = ("a password in no other test", "another password in no other test");
    let device = Device::new(SERIAL, oak.clone(), right, Quirks::default());
    let _uplink = world.phone_home(&device).await.unwrap();
    assert_eq!(
        sts.put(&Sts::registration(oak.clone(), wrong, &world.trust)).await.unwrap().state,
        State::Refused
    );
    let new = Sts::registration(oak.clone(), right, &world.trust);
    let (put, _) = tokio::join!(sts.put(&new), sts.until_state(State::Dispatched));
    assert_eq!(put.unwrap().state, State::Dispatched);

    let basic = homing_base::client::basic(&homing_protocol::secret::Credentials::new(
        "shop",
        account_password.clone(),
    ));
    let label = oak.label();
    let bare = label.replace('-', "");
    let secrets = [right, wrong, &label, &bare, &bare.to_lowercase(), account_password.expose(), &basic];
    assert!(LOG.find("device dispatched").is_some(), "the log is captured");
    for secret in secrets {
        assert_eq!(LOG.find(secret), None, "in the log");
        for entry in std::fs::read_dir(folder.path()).unwrap() {
            let path = entry.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "in {}", path.display());
        }
    }
    world.stop().await;
}
