//! Step 2, relay: who may register what, and what is told about it.

use crate::world::*;
use homing_base::client::CallError;
use homing_dispatcher::{
    accounts, audit,
    lists::{self, OnFault},
};
use homing_protocol::api::dispatcher::{Changes, Registration, RegistrationState};
use http::Method;
use std::time::Duration;

/// A registration waits, is told as a change, survives a restart, and is released.
#[tokio::test]
async fn step_2_relay_a_registration_waits_through_a_restart_until_it_is_released() {
    let folder = tempfile::tempdir().unwrap();
    let password = account(folder.path(), "shop").await;
    let world = World::start(folder.path()).await;
    let sts = world.sts("shop", &password);
    let new = Sts::registration(OAK, "x", &world.trust);
    let put = sts.put(&new).await.unwrap();
    assert_eq!((put.serial, put.state), (SERIAL, RegistrationState::Waiting));
    assert_eq!(sts.until_state(RegistrationState::Waiting).await, put);
    world.stop().await;

    let world = World::start(folder.path()).await;
    let sts = world.sts("shop", &password);
    assert_eq!(sts.get().await.unwrap(), put);
    sts.delete().await.unwrap();
    assert_eq!(refusal(sts.get().await).0, 404);
    assert_eq!(refusal(sts.delete().await).0, 404);
    world.stop().await;
}

/// What one account has claimed another cannot register, and learns the date alone; the owner learns of it.
#[tokio::test]
async fn step_2_relay_a_device_claimed_by_another_account_is_refused_with_the_date() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (account(folder.path(), "alpha").await, account(folder.path(), "beta").await);
    let list = format!("{SERIAL},{},Dome\n", OAK.label());
    lists::import(folder.path(), "factory.csv", list.as_bytes(), OnFault::Stop).await.unwrap();
    let world = World::start(folder.path()).await;
    let (first, second) = (world.sts("alpha", &first), world.sts("beta", &second));
    let new = Sts::registration(OAK, "x", &world.trust);
    assert_eq!(first.put(&new).await.unwrap().contested, None);

    let (status, code, message) = refusal(second.put(&new).await);
    assert_eq!((status, code.as_str()), (409, "claimed-by-another-account"));
    assert!(message.contains("since 2") && !message.contains("alpha"), "{message}");
    assert_eq!(refusal(second.get().await).0, 404);
    assert_eq!(refusal(second.delete().await).0, 404);
    let changes: Changes = second.api.get("/api/v1/changes").await.unwrap();
    assert_eq!(changes.changes, []);
    let told = first.until(|change| change.contested.is_some()).await;
    assert_eq!(told.contested.unwrap().attempts, 1);

    first.delete().await.unwrap();
    second.put(&new).await.unwrap();
    world.stop().await;
}

/// Goal: with a manufacturer's list a wrong OAK and a number that nobody made are refused before the device has
/// ever phoned, nothing is claimed by it, and who tried is in the audit log.
#[tokio::test]
async fn step_2_relay_a_listed_device_is_checked_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (account(folder.path(), "alpha").await, account(folder.path(), "beta").await);
    let list = format!("{SERIAL},{},Dome\n", OAK.label());
    lists::import(folder.path(), "factory.csv", list.as_bytes(), OnFault::Stop).await.unwrap();
    let world = World::start_with(folder.path(), |config| config.listed_only = true).await;
    let (first, second) = (world.sts("alpha", &first), world.sts("beta", &second));

    let (status, code, message) = refusal(first.put(&Sts::registration(OTHER_OAK, "x", &world.trust)).await);
    assert_eq!((status, code.as_str()), (422, "wrong-oak"), "{message}");
    assert_eq!(refusal(first.get().await).0, 404, "a wrong OAK claims nothing");
    let unlisted = "/api/v1/registrations/0040-8C70-0000";
    let new = Sts::registration(OAK, "x", &world.trust);
    let refused: Result<Registration, _> = first.api.send(Method::PUT, unlisted, &new).await;
    let (status, code, message) = refusal(refused);
    assert_eq!((status, code.as_str()), (422, "unknown-serial"), "{message}");
    first.put(&new).await.unwrap();
    for _ in 0..3 {
        assert_eq!(refusal(second.put(&new).await).1, "claimed-by-another-account");
    }
    first.delete().await.unwrap();
    world.stop().await;

    let mut told = Vec::new();
    audit::read(folder.path(), Some(SERIAL), |entry| told.push(format!("{} {}", entry.actor, entry.action)))
        .await
        .unwrap();
    assert_eq!(told, ["alpha claimed", "beta claim-refused", "alpha released"]);
}

/// Every request needs an account; a disabled one is none, at once.
#[tokio::test]
async fn step_2_relay_an_unknown_or_disabled_account_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let password = account(folder.path(), "shop").await;
    let world = World::start(folder.path()).await;
    for (name, password) in [("shop", &"wrong".into()), ("nobody", &password)] {
        let (status, code, message) = refusal(world.sts(name, password).get().await);
        assert_eq!((status, code.as_str()), (401, "unknown-account"));
        assert!(message.contains("check"), "{message}");
    }
    let sts = world.sts("shop", &password);
    assert_eq!(refusal(sts.get().await).0, 404);
    accounts::disable(folder.path(), "shop").await.unwrap();
    assert_eq!(refusal(sts.get().await).0, 401);
    let guesses = world.sts("shop", &"wrong".into());
    for _ in 0..5 {
        let _ = guesses.get().await;
    }
    assert_eq!(refusal(guesses.get().await).1, "slow-down");
    world.stop().await;
}

/// What is wrong in a registration is said, and nothing is kept of it.
#[tokio::test]
async fn step_2_relay_a_registration_that_cannot_work_is_refused_with_the_reason() {
    let (_folder, world, sts) = world_with_account().await;
    let good = serde_json::to_value(Sts::registration(OAK, "x", &world.trust)).unwrap();
    let long = "x".repeat(300);
    for (key, value, said) in [
        ("oak", serde_json::json!("0A1B-2C3D"), "OAK: 8 digits"),
        ("servers", serde_json::json!([]), "1 to 4 addresses"),
        ("servers", serde_json::json!(["a b"]), "host:port"),
        ("servers", serde_json::json!(["sts/path"]), "host:port"),
        ("trust_anchor", serde_json::json!("no PEM"), "trust anchor"),
        ("trust_anchor", serde_json::json!(""), "needs a trust anchor"),
        ("user", serde_json::json!(""), "user"),
        ("password", serde_json::json!(long), "password"),
        ("pasword", serde_json::json!("x"), "unknown field"),
    ] {
        let mut bad = good.clone();
        bad[key] = value;
        let path = format!("/api/v1/registrations/{SERIAL}");
        let answer: Result<Registration, CallError> = sts.api.send(Method::PUT, &path, &bad).await;
        let (status, code, message) = refusal(answer);
        assert_eq!((status, code.as_str()), (400, "bad-request"));
        assert!(message.contains(said), "{key}: {message}");
    }
    let answer: Result<Registration, CallError> =
        sts.api.send(Method::PUT, "/api/v1/registrations/0040", &good).await;
    assert!(refusal(answer).2.contains("4 digits where there should be 12"));
    assert_eq!(refusal(sts.get().await).0, 404);
    world.stop().await;
}

/// A question about changes is answered when there is one, and when the dispatcher stops.
#[tokio::test]
async fn step_2_relay_changes_are_told_at_once_and_a_stop_holds_nobody_back() {
    let (_folder, world, sts) = world_with_account().await;
    let asked: Changes = sts.api.get("/api/v1/changes?after=0&wait_s=0").await.unwrap();
    assert_eq!((asked.changes.len(), asked.last), (0, 0));
    let long = sts.api.wait::<Changes>("/api/v1/changes?after=0&wait_s=60", Duration::from_secs(60));
    let new = Sts::registration(OAK, "x", &world.trust);
    let began = std::time::Instant::now();
    let (changes, put) = tokio::join!(long, sts.put(&new));
    assert_eq!(changes.unwrap().changes, [put.unwrap()]);
    assert!(began.elapsed() < Duration::from_secs(5));

    let waiting = sts.api.wait::<Changes>("/api/v1/changes?after=1&wait_s=60", Duration::from_secs(60));
    let began = std::time::Instant::now();
    let (_, ()) = tokio::join!(waiting, async {
        sts.get().await.unwrap();
        world.stop().await;
    });
    assert!(began.elapsed() < Duration::from_secs(5));
}
