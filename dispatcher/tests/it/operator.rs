//! What an account may do, and what its operator sees and sets: accounts, limits, attempts (step 2).

use crate::{device::PASSWORD, world::*};
use homing_base::client::CallError;
use homing_dispatcher::{accounts, attempts, audit, lists};
use homing_protocol::api::dispatcher::{NewRegistration, Registration};
use http::Method;
use serde_json::{Value, json};
use std::time::Duration;

const TOKEN: &str = "a token of the operator";

fn with_token(config: &mut homing_dispatcher::Config) {
    config.operator_token = TOKEN.into();
}

/// Goal: an operator makes, limits, disables and lists accounts by the API, and nobody else does.
#[tokio::test]
async fn step_2_relay_accounts_are_the_operator_s_to_make() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start_with(folder.path(), with_token).await;
    let operator = world.operator(TOKEN);
    let made: Value =
        operator.send(Method::POST, "/api/v1/accounts", &json!({"name": "shop"})).await.unwrap();
    let password = homing_protocol::Secret::new(made["password"].as_str().unwrap());
    let again: Result<Value, CallError> =
        operator.send(Method::POST, "/api/v1/accounts", &json!({"name": "shop"})).await;
    assert_eq!(refusal(again).1, "taken");
    let sts = world.sts("shop", &password);
    let new = Sts::registration(OAK, PASSWORD, &world.trust);
    sts.put(&new).await.unwrap();

    let path = "/api/v1/accounts/shop";
    let change = json!({"devices": 1, "per_minute": 3, "servers": ["127.0.0.1"]});
    let account: Value = operator.send(Method::PATCH, path, &change).await.unwrap();
    assert_eq!((&account["devices"], &account["registrations"]), (&json!(1), &json!(1)));
    let refused = sts.put(&new).await;
    assert_eq!(refusal(refused).1, "server-not-allowed", "127.0.0.2");
    let here = NewRegistration { servers: vec!["127.0.0.1:9".into()], ..new };
    let other: Result<Registration, _> =
        sts.api.send(Method::PUT, "/api/v1/registrations/00408C702010", &here).await;
    assert_eq!(refusal(other).1, "too-many-registrations");
    sts.put(&here).await.unwrap();
    let (status, code, message) = refusal(sts.put(&here).await);
    assert_eq!((status, code.as_str()), (429, "slow-down"));
    assert!(message.contains("3 registrations a minute"), "{message}");
    let _: Value = operator.send(Method::PATCH, path, &json!({"per_minute": null})).await.unwrap();
    let admitted = async { while sts.put(&here).await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(10), admitted).await.expect("ten a second, as configured");

    let _: Value = operator.send(Method::PATCH, path, &json!({"disabled": true})).await.unwrap();
    assert_eq!(refusal(sts.get().await).0, 401);
    let _: Value = operator.send(Method::PATCH, path, &json!({"disabled": false})).await.unwrap();
    let second: Value = operator.send(Method::POST, &format!("{path}/password"), &()).await.unwrap();
    assert_eq!(refusal(sts.get().await).0, 401, "the old password");
    let second = homing_protocol::Secret::new(second["password"].as_str().unwrap());
    world.sts("shop", &second).get().await.unwrap();
    for wrong in [json!({"devices": 0}), json!({"nonsense": 1})] {
        assert_eq!(refusal(operator.send::<_, Value>(Method::PATCH, path, &wrong).await).0, 400);
    }
    assert_eq!(refusal(operator.get::<Value>("/api/v1/accounts/nobody").await).0, 404);
    for closed in [world.operator("another token, which is wrong"), sts.api.clone()] {
        let (status, code, _) = refusal(closed.get::<Value>("/api/v1/accounts").await);
        assert_eq!((status, code.as_str()), (401, "unknown-token"));
    }
    world.stop().await;
    let world = World::start(folder.path()).await;
    assert_eq!(refusal(world.operator("").get::<Value>("/api/v1/accounts").await).0, 401, "closed");
    world.stop().await;
}

/// Goal: a stolen account shows itself: where it sends devices for the first time is in the audit log; what it sends
/// them to is not the dispatcher's own network.
#[tokio::test]
async fn step_2_relay_a_new_destination_is_audited_and_a_senseless_one_refused() {
    let (folder, world, sts) = world_with_account().await;
    let new = Sts::registration(OAK, PASSWORD, &world.trust);
    for _ in 0..2 {
        sts.put(&new).await.unwrap();
    }
    for (server, said) in [("0.0.0.0:443", "unspecified"), ("[fe80::1]:443", "link-local")] {
        let bad = NewRegistration { servers: vec![server.into()], ..new.clone() };
        let (status, code, message) = refusal(sts.put(&bad).await);
        assert_eq!((status, code.as_str()), (400, "bad-request"));
        assert!(message.contains(said) && message.contains(server), "{message}");
    }
    world.stop().await;
    let mut told = Vec::new();
    audit::read(folder.path(), None, |entry| told.push((entry.action.clone(), entry.detail.clone())))
        .await
        .unwrap();
    let used: Vec<&str> = told
        .iter()
        .filter(|(action, _)| action == "destination-used")
        .map(|(_, detail)| detail.as_str())
        .collect();
    assert_eq!((used.len(), &used[..2]), (3, &["127.0.0.1:9", "127.0.0.2:9"][..]), "{told:?}");
    assert!(used[2].starts_with("trust anchor "));
}

/// Goal: wrong OAKs of one account over many devices are slowed, a restart forgives nothing, and the operator sees who
/// guesses what.
#[tokio::test]
async fn step_2_relay_guessing_over_many_devices_is_slowed_and_shown_through_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let password = account(folder.path(), "shop").await;
    let list: String = (0..40).map(|number| format!("00408C7030{number:02},0A1B-2C3D-4E5F,Dome\n")).collect();
    lists::import(folder.path(), "factory.csv", list.as_bytes(), lists::OnFault::Stop).await.unwrap();
    let world = World::start_with(folder.path(), with_token).await;
    let guess = async |world: &World, device: u8, oak: u8| {
        let new = Sts::registration(homing_protocol::Oak::new([oak; 6]), PASSWORD, &world.trust);
        let path = format!("/api/v1/registrations/00408C7030{device:02}");
        let put: Result<Registration, _> =
            world.sts("shop", &password).api.send(Method::PUT, &path, &new).await;
        refusal(put).1
    };
    for device in 0..40 {
        for oak in 0..5 {
            assert_eq!(guess(&world, device, oak).await, "wrong-oak");
        }
    }
    assert_eq!(guess(&world, 0, 5).await, "slow-down", "one device");
    world.stop().await;

    let world = World::start_with(folder.path(), with_token).await;
    assert_eq!(guess(&world, 0, 5).await, "slow-down", "after a restart");
    // One more, and the account is slowed for all devices.
    let seen = refusal(world.sts("shop", &"wrong".into()).get().await);
    assert_eq!(seen.0, 401);
    let unlisted = Sts::registration(OAK, PASSWORD, &world.trust);
    world.sts("shop", &password).put(&unlisted).await.unwrap();
    let corrected = Sts::registration(OTHER_OAK, PASSWORD, &world.trust);
    world.sts("shop", &password).put(&corrected).await.unwrap();
    assert_eq!(refusal(world.sts("shop", &password).put(&unlisted).await).1, "slow-down", "the account");

    let shown: Vec<Value> = world.operator(TOKEN).get("/api/v1/attempts").await.unwrap();
    let count = |what: &str, who: &str| {
        let found = shown.iter().find(|one| one["what"] == what && one["who"] == who);
        found.unwrap_or_else(|| panic!("no {what} {who} in {shown:?}"))["count"].clone()
    };
    assert_eq!(count("oak-by-account", "shop"), 201);
    assert_eq!(count("oak-by-account-and-device", "shop 00408C703007"), 5);
    assert_eq!(count("oak-for-device", "00408C703007"), 5);
    assert_eq!(count("password-for-account", "shop"), 1);
    let metrics = world.ops.metrics();
    assert!(metrics.contains(r#"wrong_secrets_total{what="oak-for-device"} 1"#), "{metrics}");
    world.stop().await;
    assert_eq!(accounts::list(folder.path()).await.unwrap()[0].wrong_oaks, 201);
    let listed = attempts::list(folder.path()).await.unwrap();
    assert!(listed[0].to_string().contains("oak-by"), "{}", listed[0]);
}
