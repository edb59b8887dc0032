//! Several accounts and one device: who gets it (steps 2 and 5), and how it goes from one to the other.

use crate::{
    device::{Device, PASSWORD, Quirks},
    world::*,
};
use homing_base::client::CallError;
use homing_protocol::api::dispatcher::{
    Arrived, NewRegistration, Offer, Registration, RegistrationState as State,
};
use http::Method;
use std::sync::atomic::Ordering;

/// A dispatcher with the accounts `a1`, `a2` and so on, and their tunnel servers; the folder goes when it is dropped.
async fn world_with_accounts<const N: usize>() -> (tempfile::TempDir, World, [Sts; N]) {
    let folder = tempfile::tempdir().unwrap();
    let mut passwords = Vec::new();
    for number in 1..=N {
        passwords.push(account(folder.path(), &format!("a{number}")).await);
    }
    let world = World::start(folder.path()).await;
    let sts = std::array::from_fn(|at| world.sts(&format!("a{}", at + 1), &passwords[at]));
    (folder, world, sts)
}

async fn put(sts: &Sts, new: &NewRegistration) -> Registration {
    sts.put(new).await.unwrap()
}

async fn offer(sts: &Sts, to: &str) -> Result<(), CallError> {
    let path = format!("/api/v1/registrations/{SERIAL}/offer");
    sts.api.send(Method::PUT, &path, &Offer { to: to.into() }).await
}

async fn arrived(sts: &Sts, fingerprint: &str) -> Result<Registration, CallError> {
    let path = format!("/api/v1/registrations/{SERIAL}/arrived");
    sts.api.send(Method::PUT, &path, &Arrived { fingerprint: fingerprint.into() }).await
}

/// Goal: the operator takes a claim away, for whoever holds the label; the account is told, and it is in the audit log.
#[tokio::test]
async fn step_2_relay_a_claim_is_released_by_the_operator() {
    let folder = tempfile::tempdir().unwrap();
    let (owner, next) = (account(folder.path(), "owner").await, account(folder.path(), "next").await);
    let world = World::start(folder.path()).await;
    let (owner, next) = (world.sts("owner", &owner), world.sts("next", &next));
    let new = Sts::registration(OAK, PASSWORD, &world.trust);
    let nobody = homing_dispatcher::release(folder.path(), SERIAL, "sold").await.unwrap_err().to_string();
    assert!(nobody.contains("nobody has claimed"), "{nobody}");
    let device = device(OAK);
    let _uplink = world.phone_home(&device).await.unwrap();
    let (dispatched, _) = tokio::join!(put(&owner, &new), owner.until_state(State::Dispatched));
    assert_eq!(dispatched.state, State::Dispatched);
    assert_eq!(refusal(next.put(&new).await).1, "claimed-by-another-account");

    let from = homing_dispatcher::release(folder.path(), SERIAL, "sold").await.unwrap();
    assert_eq!(from, "owner");
    let told = owner.get().await.unwrap();
    assert_eq!((told.state, told.problem.unwrap().code.as_str()), (State::Refused, "released-by-operator"));
    let _uplink = world.phone_home(&device).await.unwrap();
    let (_, dispatched) = tokio::join!(put(&next, &new), next.until_state(State::Dispatched));
    assert_eq!(dispatched.fingerprint, Some(device.fingerprint().to_string()));
    let mut told = Vec::new();
    let each =
        |entry: &homing_dispatcher::audit::Entry| told.push((entry.action.clone(), entry.detail.clone()));
    homing_dispatcher::audit::read(folder.path(), Some(SERIAL), each).await.unwrap();
    assert!(told.contains(&("released".into(), "owner: sold".into())), "{told:?}");
    world.stop().await;
}

/// Goal: whoever registers a neighbour's device first, with whatever OAK, does not keep the owner out; the device is
/// asked once, and the squatters learn that they were wrong.
#[tokio::test]
async fn step_5_dispatch_squatters_do_not_keep_the_owner_out_in_scenario_a() {
    let (_folder, world, sts) = world_with_accounts::<4>().await;
    let wrong = Sts::registration(OTHER_OAK, PASSWORD, &world.trust);
    for squatter in &sts[..3] {
        assert_eq!(put(squatter, &wrong).await.state, State::Waiting);
    }
    let mine = put(&sts[3], &Sts::registration(OAK, PASSWORD, &world.trust)).await;
    assert_eq!((mine.state, mine.contested.unwrap().attempts), (State::Waiting, 3));
    assert_eq!(sts[0].get().await.unwrap().contested.unwrap().attempts, 3);

    let device = device(OAK);
    let _uplink = world.phone_home(&device).await.unwrap();
    let told = sts[3].until_state(State::Dispatched).await;
    assert_eq!(told.fingerprint, Some(device.fingerprint().to_string()));
    assert_eq!(device.proofs.load(Ordering::SeqCst), 1);
    for squatter in &sts[..3] {
        let refused = squatter.until_state(State::Refused).await;
        assert_eq!((refused.problem.unwrap().code.as_str(), refused.fingerprint), ("wrong-oak", None));
        assert_eq!(refusal(squatter.put(&wrong).await).1, "claimed-by-another-account");
    }
    world.stop().await;
}

/// Goal: the same where the device waits: it is asked once, however many try it, and none of them slows it.
#[tokio::test]
async fn step_5_dispatch_squatters_do_not_keep_the_owner_out_in_scenario_c() {
    let (_folder, world, sts) = world_with_accounts::<7>().await;
    let device = device(OAK);
    let _uplink = world.phone_home(&device).await.unwrap();
    for (number, squatter) in sts[..6].iter().enumerate() {
        for guess in 0..4 {
            let oak = homing_protocol::Oak::new([number as u8, guess, 0, 0, 0, 0]);
            let refused = put(squatter, &Sts::registration(oak, PASSWORD, &world.trust)).await;
            assert_eq!(
                (refused.state, refused.problem.unwrap().code.as_str()),
                (State::Refused, "wrong-oak")
            );
        }
    }
    let began = std::time::Instant::now();
    let new = Sts::registration(OAK, PASSWORD, &world.trust);
    let (mine, _) = tokio::join!(put(&sts[6], &new), sts[6].until_state(State::Dispatched));
    assert_eq!(mine.state, State::Dispatched);
    assert!(began.elapsed() < std::time::Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(device.proofs.load(Ordering::SeqCst), 1, "asked once");
    world.stop().await;
}

/// Goal: who has the right OAK too, but comes later, is told so; and what was sealed of its secrets is gone.
#[tokio::test]
async fn step_5_dispatch_the_oldest_of_those_with_the_right_oak_gets_the_device() {
    let (_folder, world, sts) = world_with_accounts::<2>().await;
    let new = Sts::registration(OAK, PASSWORD, &world.trust);
    put(&sts[0], &new).await;
    put(&sts[1], &new).await;
    let _uplink = world.phone_home(&device(OAK)).await.unwrap();
    sts[0].until_state(State::Dispatched).await;
    let refused = sts[1].until_state(State::Refused).await;
    assert_eq!(refused.problem.unwrap().code, "claimed-by-another-account");
    world.stop().await;
}

/// Goal: a device goes to another account when both want it: the owner learns where to, the other has its key at once;
/// then the device comes to the dispatcher, and is dispatched to its new owner.
#[tokio::test]
async fn step_5_dispatch_a_device_that_was_transferred_is_dispatched_to_its_new_owner() {
    let (_folder, world, [old, new]) = world_with_accounts().await;
    let device = device(OAK);
    let registration = Sts::registration(OAK, PASSWORD, &world.trust);
    assert_eq!(refusal(offer(&old, "a2").await).0, 404);
    put(&old, &registration).await;
    assert_eq!(refusal(offer(&old, "a2").await).1, "unproven");
    let first = world.phone_home(&device).await.unwrap();
    old.until_state(State::Dispatched).await;
    for nonsense in ["a1", "", "no name"] {
        assert_eq!(refusal(offer(&old, nonsense).await).0, 400, "{nonsense:?}");
    }
    offer(&old, "nobody-has-this-name").await.unwrap();
    offer(&old, "a2").await.unwrap();

    let theirs = NewRegistration { servers: vec!["127.0.0.3:9".into()], ..registration };
    let wrong = NewRegistration { oak: OTHER_OAK, ..theirs.clone() };
    assert_eq!(refusal(new.put(&wrong).await).1, "wrong-oak");
    let taken = put(&new, &theirs).await;
    assert_eq!(taken.fingerprint, Some(device.fingerprint().to_string()));
    let gone = old.until_state(State::Transferred).await;
    assert_eq!(gone.next.unwrap().servers, theirs.servers);
    assert_eq!(refusal(offer(&old, "a2").await).0, 404);
    // It sits here still: its proof is known, and its new owner's servers are set.
    let told = new.until_state(State::Dispatched).await;
    assert_eq!(told.fingerprint, Some(device.fingerprint().to_string()));
    let set = device.uplinks.borrow().last().unwrap().remote_address.clone();
    assert_eq!(set, "https://127.0.0.3:9/");
    old.delete().await.unwrap();
    assert_eq!(refusal(old.put(&theirs).await).1, "claimed-by-another-account");
    drop(first);
    world.stop().await;
}

/// Goal: a device that moves from server to server by itself never comes here: its new owner says so, by the key, and
/// its secrets are forgotten.
#[tokio::test]
async fn step_2_relay_a_device_that_was_transferred_and_has_arrived_is_forgotten() {
    let (_folder, world, [old, new]) = world_with_accounts().await;
    let device = device(OAK);
    let registration = Sts::registration(OAK, PASSWORD, &world.trust);
    put(&old, &registration).await;
    let uplink = world.phone_home(&device).await.unwrap();
    old.until_state(State::Dispatched).await;
    uplink.abort();
    world.until_metric("devices 0").await;
    offer(&old, "a2").await.unwrap();
    assert_eq!(put(&new, &registration).await.state, State::Waiting);
    assert_eq!(refusal(arrived(&new, "00").await).1, "other-key");
    assert_eq!(refusal(arrived(&old, &device.fingerprint().to_string()).await).0, 404);
    let here = arrived(&new, &device.fingerprint().to_string()).await.unwrap();
    assert_eq!(here.state, State::Dispatched);
    assert_eq!(arrived(&new, &device.fingerprint().to_string()).await.unwrap(), here, "said again");
    world.stop().await;
}

/// Goal: a wrong password is the owner's alone to mend: its claim stands, and who squats meanwhile is refused.
#[tokio::test]
async fn step_5_dispatch_a_proven_oak_is_a_claim_though_the_password_was_wrong() {
    let (_folder, world, [owner, other]) = world_with_accounts().await;
    let device = Device::new(SERIAL, OAK, PASSWORD, Quirks::default());
    let _uplink = world.phone_home(&device).await.unwrap();
    let refused = put(&owner, &Sts::registration(OAK, "wrong", &world.trust)).await;
    assert_eq!(refused.problem.unwrap().code, "wrong-credentials");
    let new = Sts::registration(OAK, PASSWORD, &world.trust);
    assert_eq!(refusal(other.put(&new).await).1, "claimed-by-another-account");
    let (put, _) = tokio::join!(put(&owner, &new), owner.until_state(State::Dispatched));
    assert_eq!(put.state, State::Dispatched);
    world.stop().await;
}
