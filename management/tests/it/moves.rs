//! A device goes to another tunnel server or to another owner; what only an administrator may see.

use crate::fake::{PASSWORD, Site, device, serial};
use axum::http::{Method, StatusCode};
use homing_protocol::api::{
    Expiry,
    dispatcher::Contested,
    tunnel::{Connection, MoveState, Moving},
};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

fn path(what: &str) -> String {
    format!("/api/v1/devices/{}{what}", serial(1))
}

/// One device, connected at the first of two tunnel servers.
async fn with_a_device(name: &str) -> Site {
    let site = Site::start_with_two().await;
    site.tunnel.put(device(serial(1), name));
    site.tunnel.connect(serial(1), true);
    site.until_device("connected", |device| device["connected"] == true).await;
    site
}

/// One device, connected at both tunnel servers.
async fn kept_by_both() -> Site {
    let site = with_a_device("Gate").await;
    let asked_for = Some(json!({"tunnel_server": "other", "keep": true}));
    let (status, kept) = site.call(Method::PUT, &path("/move"), asked_for).await;
    assert_eq!(status, StatusCode::OK, "{kept}");
    site.second.connect(serial(1), true);
    site.until_device("at both", |device| device["tunnel_server"] == "other" && device["connected"] == true)
        .await;
    site
}

fn asked(tunnel: &crate::fake::FakeTunnel) -> Vec<String> {
    std::mem::take(&mut *tunnel.asked.lock().unwrap())
}

async fn move_to_other(site: &Site) -> (StatusCode, Value) {
    site.call(Method::PUT, &path("/move"), Some(json!({"tunnel_server": "other"}))).await
}

/// The device reaches the other server: what the tunnel servers' event streams tell then.
async fn arrive(site: &Site) {
    let mut left = site.tunnel.devices.lock().unwrap()[&serial(1)].clone();
    left.connected = false;
    left.moving = left.moving.map(|moving| Moving { state: MoveState::Moved, ..moving });
    site.tunnel.put(left);
    site.second.connect(serial(1), true);
    site.until_device("there", |device| device["tunnel_server"] == "other" && device["connected"] == true)
        .await;
    site.until_device("moved", |device| device["word"] == "Moved").await;
}

/// The goal: both servers are told of each other, and one of them lets the device go without a word of harm to the other.
#[tokio::test]
async fn a_device_is_kept_by_two_tunnel_servers_until_it_leaves_one() {
    let site = with_a_device("Gate").await;
    let asked_for = Some(json!({"tunnel_server": "other", "keep": true}));
    let (status, kept) = site.call(Method::PUT, &path("/move"), asked_for).await;
    assert_eq!((status, &kept["moving"]["keep"]), (StatusCode::OK, &json!(true)), "{kept}");
    let serial_1 = serial(1);
    let told = asked(&site.tunnel);
    assert!(told[0].starts_with(&format!("move {serial_1} to other.example:8443")), "{told:?}");
    assert!(told[0].ends_with(" keeping it"), "{told:?}");
    let told = asked(&site.second);
    assert_eq!(told[0], format!("register {serial_1} {}", "a".repeat(64)));
    assert!(
        told[1].starts_with(&format!("move {serial_1} to ")) && told[1].ends_with(" keeping it"),
        "{told:?}"
    );

    let (status, problem) = site.call(Method::DELETE, &path("/move"), None).await;
    assert_eq!((status, &problem["error"]["code"]), (StatusCode::CONFLICT, &json!("kept-by-both")));
    let (status, problem) = site.call(Method::DELETE, &path(""), None).await;
    assert_eq!((status, &problem["error"]["code"]), (StatusCode::CONFLICT, &json!("kept-by-both")));
    let (status, problem) = site.call(Method::DELETE, &path("?tunnel_server=sts"), None).await;
    assert_eq!((status, &problem["error"]["code"]), (StatusCode::CONFLICT, &json!("not-there-yet")));
    assert_eq!((asked(&site.tunnel), asked(&site.second)), (vec![], vec![]), "nobody is told anything");

    site.second.connect(serial_1, true);
    let there = |device: &Value| device["tunnel_server"] == "other" && device["connected"] == true;
    site.until_device("there", there).await;
    let correction = json!({"password": "corrected"});
    assert_eq!(site.call(Method::PATCH, &path(""), Some(correction)).await.0, StatusCode::OK);
    let told = ["password corrected own false".to_owned()];
    assert_eq!((asked(&site.tunnel), asked(&site.second)), (told.to_vec(), told.to_vec()), "both are told");
    let (status, body) = site.call(Method::DELETE, &path("?tunnel_server=sts"), None).await;
    assert_eq!(status, StatusCode::NO_CONTENT, "{body}");
    assert_eq!(
        asked(&site.second),
        [format!("undo {serial_1}")],
        "first: it tells the device to forget the other"
    );
    assert_eq!(asked(&site.tunnel), [format!("unregister {serial_1}")]);
    let now = site.until_device("left", |device| device["tunnel_server"] == "other").await;
    assert_eq!(now["moving"], Value::Null);
}

/// The goal: both tunnel servers are told in the right order, the page sees where the device is, and undoing brings
/// it back the same way.
#[tokio::test]
async fn a_device_moves_to_another_tunnel_server_and_back() {
    let site = with_a_device("Gate").await;
    let (status, moving) = move_to_other(&site).await;
    assert_eq!(status, StatusCode::OK, "{moving}");
    assert_eq!(
        (&moving["tunnel_server"], &moving["moving"]["state"], &moving["moving"]["tunnel_server"]),
        (&json!("sts"), &json!("trying"), &json!("other"))
    );
    let serial_1 = serial(1);
    assert_eq!(
        asked(&site.tunnel),
        [format!("move {serial_1} to other.example:8443 trusting anchor of other account shop")]
    );
    assert_eq!(asked(&site.second), [format!("register {serial_1} {}", "a".repeat(64))]);
    let (status, problem) = move_to_other(&site).await;
    assert_eq!((status, &problem["error"]["code"]), (StatusCode::CONFLICT, &json!("already-moving")));

    arrive(&site).await;
    let now = site.get(&path("")).await;
    assert_eq!((&now["tunnel_server"], &now["state"]), (&json!("other"), &json!("yellow")));
    let left = site.until_device("left", |device| device["tunnel_server"] == "sts").await;
    assert_eq!((&left["state"], &left["word"]), (&json!("grey"), &json!("Moved")));

    let mut there = site.second.devices.lock().unwrap()[&serial_1].clone();
    there.own_password = true;
    site.second.put(there);
    let (status, body) = site.call(Method::DELETE, &path("/move"), None).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let told = [format!("undo {serial_1}"), "password own-secret own true".to_owned()];
    assert_eq!(asked(&site.tunnel), told, "it comes back with the password that it got there");
    assert_eq!(
        asked(&site.second),
        [format!("move {serial_1} to sts.example:8443 trusting anchor of sts account home")]
    );
    let audit = site.get("/api/v1/audit").await;
    assert_eq!(
        (&audit[0]["action"], &audit[0]["detail"], &audit[1]["action"], &audit[1]["detail"]),
        (&json!("undo-move"), &json!("back to sts"), &json!("move-device"), &json!("from sts to other"))
    );
    site.end().await;
}

/// The goal: recording goes on at the other tunnel server, also when the device comes back.
#[tokio::test]
async fn hardware_follows_its_device() {
    let site = with_a_device("Gate").await;
    site.call(Method::POST, "/api/v1/hardware", Some(json!({"serial": serial(1)}))).await;
    move_to_other(&site).await;
    let looked_for = async |server: &str| {
        let followed = async {
            while site.get("/api/v1/hardware").await[0]["device"]["server"] != server {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(crate::fake::DEADLINE, followed).await.expect("hardware follows");
    };
    // While both tunnels stand, it stays where it is.
    site.second.connect(serial(1), true);
    site.until_device("there", |device| device["tunnel_server"] == "other" && device["connected"] == true)
        .await;
    assert_eq!(site.get("/api/v1/hardware").await[0]["device"]["server"], "sts");
    arrive(&site).await;
    looked_for("other").await;
    assert_eq!(site.get(&path("")).await["state"], "green");
    site.second.connect(serial(1), false);
    site.tunnel.connect(serial(1), true);
    looked_for("sts").await;
    assert_eq!(*site.recording.followed.lock().unwrap(), ["other", "sts"], "once each");
    site.end().await;
}

/// The goal: where one of two tunnel servers that keep a device fails, recording goes on by the other.
#[tokio::test]
async fn recording_goes_on_by_the_other_where_one_of_two_tunnel_servers_fails() {
    let site = kept_by_both().await;
    site.call(Method::POST, "/api/v1/hardware", Some(json!({"serial": serial(1)}))).await;
    let recorded_by = async || site.get("/api/v1/hardware").await[0]["device"]["server"].clone();
    assert_eq!(recorded_by().await, "sts");

    site.stop_tunnel().await;
    let followed = async {
        while recorded_by().await != "other" {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(crate::fake::DEADLINE, followed).await.expect("hardware follows");
    let carried = site.get(&path("")).await;
    assert_eq!(
        (&carried["tunnel_server"], &carried["state"], &carried["connected"]),
        (&json!("other"), &json!("green"), &json!(true))
    );
    assert_eq!(*site.recording.followed.lock().unwrap(), ["other"], "once");
    site.end().await;
}

/// The goal: a device's history is that of all tunnel servers that it is registered at, the newest first, each connection
/// with its own; one that is away hides none of the others'.
#[tokio::test]
async fn a_devices_history_is_that_of_all_its_tunnel_servers() {
    let site = kept_by_both().await;
    let began = |tunnel: &crate::fake::FakeTunnel, at: &[&str]| {
        let mut history = tunnel.history.lock().unwrap();
        let one = history[0].clone();
        *history = at.iter().map(|at| Connection { since: at.parse().unwrap(), ..one.clone() }).collect();
    };
    let [first, second, third, fourth] =
        ["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z", "2026-01-04T00:00:00Z"];
    began(&site.tunnel, &[fourth, second]);
    began(&site.second, &[third, first]);
    let told = async || {
        let history = site.get(&path("/history")).await;
        let one = |one: &Value| (one["tunnel_server"].clone(), one["since"].clone());
        history.as_array().unwrap().iter().map(one).collect::<Vec<_>>()
    };
    let one = |server: &str, since: &str| (json!(server), json!(since));
    let all = [one("sts", fourth), one("other", third), one("sts", second), one("other", first)];
    assert_eq!(told().await, all);

    site.stop_tunnel().await;
    site.until_server("sts", |server| server["reachable"] == false).await;
    assert_eq!(told().await, [one("other", third), one("other", first)]);
    site.end().await;
}

/// The goal: a device that has not gone yet just stays, and the other server forgets it.
#[tokio::test]
async fn a_move_that_has_not_begun_is_undone_without_a_trace() {
    let site = with_a_device("Gate").await;
    site.tunnel.connect(serial(1), false);
    site.until_device("away", |device| device["connected"] == false).await;
    let (_, moving) = move_to_other(&site).await;
    assert_eq!(moving["moving"]["state"], "queued");
    asked(&site.second);
    let (status, body) = site.call(Method::DELETE, &path("/move"), None).await;
    assert_eq!((status, body.get("moving")), (StatusCode::OK, None), "{body}");
    // First it is on its way from there: the claim that both have is not released with the registration.
    let told = asked(&site.second);
    assert!(
        told.len() == 2 && told[0].starts_with("move ") && told[1].starts_with("unregister "),
        "{told:?}"
    );
    assert_eq!(site.get("/api/v1/devices").await.as_array().unwrap().len(), 1);
    let (status, problem) = site.call(Method::DELETE, &path("/move"), None).await;
    assert_eq!((status, &problem["error"]["code"]), (StatusCode::CONFLICT, &json!("not-moving")));
    site.end().await;
}

/// The goal: when the other server refuses the device, the old one is told that it stays; and where the other server
/// is away, the old one is told nothing at all.
#[tokio::test]
async fn one_half_that_fails_takes_the_other_back() {
    let site = with_a_device("Sealed").await;
    let (status, problem) = move_to_other(&site).await;
    assert_eq!(
        (status, &problem["error"]["code"]),
        (StatusCode::UNPROCESSABLE_ENTITY, &json!("wrong-oak")),
        "{problem}"
    );
    let told = asked(&site.tunnel);
    assert!(told.len() == 2 && told[0].starts_with("move ") && told[1].starts_with("undo "), "{told:?}");
    assert!(site.get(&path("")).await.get("moving").is_none());
    let audit = site.get("/api/v1/audit").await;
    assert!(audit[0]["detail"].as_str().unwrap().contains("failed: no: wrong-oak"), "{}", audit[0]);

    for (to, code) in [("sts", "already-there"), ("nowhere", "not-found")] {
        let (_, problem) = site.call(Method::PUT, &path("/move"), Some(json!({"tunnel_server": to}))).await;
        assert_eq!(problem["error"]["code"], code);
    }
    site.second.server.lock().unwrap().public.clear();
    let (_, problem) = move_to_other(&site).await;
    assert_eq!(problem["error"]["code"], "no-public-address");
    assert!(asked(&site.tunnel).is_empty());
    site.end().await;
}

/// The goal: what a move leaves behind can be released by itself, and what is where the device is stays.
#[tokio::test]
async fn the_registration_that_a_move_left_behind_is_released_alone() {
    let site = with_a_device("Gate").await;
    site.call(Method::POST, "/api/v1/hardware", Some(json!({"serial": serial(1)}))).await;
    move_to_other(&site).await;
    arrive(&site).await;
    asked(&site.second);
    let label = json!({"serial": serial(1), "oak": "0123-4567-89AB", "user": "root", "password": "pass", "tunnel_server": "sts"});
    let (status, problem) = site.call(Method::POST, "/api/v1/devices", Some(label)).await;
    assert_eq!((status, &problem["error"]["code"]), (StatusCode::CONFLICT, &json!("already-registered")));
    let left = path("?tunnel_server=sts");
    assert_eq!(site.call(Method::DELETE, &left, None).await.0, StatusCode::NO_CONTENT);
    assert_eq!(site.call(Method::DELETE, &left, None).await.0, StatusCode::NOT_FOUND);
    assert!(asked(&site.second).is_empty());
    assert_eq!(site.get(&path("")).await["tunnel_server"], "other");
    site.end().await;
}

#[tokio::test]
async fn a_device_is_offered_to_another_account_and_the_offer_withdrawn() {
    let site = with_a_device("Gate").await;
    let offer = async |account: &str| {
        site.call(Method::PUT, &path("/offer"), Some(json!({"account": account}))).await
    };
    assert_eq!(offer(" harbour ").await.0, StatusCode::NO_CONTENT);
    assert_eq!(offer("").await.0, StatusCode::BAD_REQUEST);
    let (status, problem) = offer("nobody").await;
    assert_eq!((status, &problem["error"]["code"]), (StatusCode::NOT_FOUND, &json!("unknown-account")));
    assert_eq!(site.call(Method::DELETE, &path("/offer"), None).await.0, StatusCode::NO_CONTENT);
    let serial = serial(1);
    assert_eq!(asked(&site.tunnel), [format!("offer {serial} to harbour"), format!("withdraw {serial}")]);
    let audit = site.get("/api/v1/audit").await;
    let done: Vec<_> = audit.as_array().unwrap().iter().map(|entry| &entry["action"]).take(3).collect();
    assert_eq!(done, ["withdraw-offer", "offer-device", "offer-device"]);
    site.end().await;
}

/// The goal: a password is shown for a reason that is written down, and in a browser only to who signs for it.
#[tokio::test]
async fn a_devices_password_is_shown_for_a_reason() {
    let site = with_a_device("Gate").await;
    let show = path("/password");
    let (status, problem) = site.call(Method::POST, &show, Some(json!({"reason": " "}))).await;
    assert_eq!(
        (status, &problem["error"]["code"]),
        (StatusCode::UNPROCESSABLE_ENTITY, &json!("reason-wanted"))
    );
    // A token alone shows none.
    let (status, problem) = site.call(Method::POST, &show, Some(json!({"reason": "its own page"}))).await;
    assert_eq!((status, &problem["error"]["code"]), (StatusCode::FORBIDDEN, &json!("wrong-password")));
    let confirmed = json!({"reason": "its own page", "current": PASSWORD});
    let (status, shown) = site.call(Method::POST, &show, Some(confirmed)).await;
    assert_eq!(
        (status, shown),
        (StatusCode::OK, json!({"user": "root", "password": "device-secret", "own": false}))
    );

    let cookie = site.sign_in().await;
    let own = [("cookie", cookie.as_str()), ("sec-fetch-site", "same-origin")];
    for (current, expected) in [
        (Value::Null, StatusCode::FORBIDDEN),
        (json!("no"), StatusCode::FORBIDDEN),
        (json!(PASSWORD), StatusCode::OK),
    ] {
        let body = json!({"reason": "from the page", "current": current});
        assert_eq!(site.raw(Method::POST, &show, &own, Some(body)).await.0, expected);
    }
    let audit = site.get("/api/v1/audit").await;
    let shown = audit.as_array().unwrap().iter().filter(|entry| entry["action"] == "show-password");
    let shown: Vec<_> = shown.map(|entry| (entry["object"].clone(), entry["detail"].clone())).collect();
    let object = json!(serial(1).to_string());
    assert_eq!(shown, [(object.clone(), json!("from the page")), (object, json!("its own page"))]);
    assert!(!audit.to_string().contains("device-secret"));
    site.end().await;
}

#[tokio::test]
async fn the_owner_sees_who_else_wants_a_device_and_whether_its_password_is_its_own() {
    let site = with_a_device("Gate").await;
    let mut wanted = site.tunnel.devices.lock().unwrap()[&serial(1)].clone();
    wanted.contested = Some(Contested { attempts: 3, last: Timestamp::UNIX_EPOCH });
    wanted.own_password = true;
    site.tunnel.put(wanted);
    let device = site.until_device("contested", |device| device["contested"].is_object()).await;
    assert_eq!(device["contested"], json!({"attempts": 3, "last": "1970-01-01T00:00:00Z"}));
    assert_eq!(device["own_password"], true);
    site.end().await;
}

/// The goal: a certificate that somebody must renew is told with what to do, to people and to a monitoring system.
#[tokio::test]
async fn certificates_that_end_are_told_with_what_to_do() {
    let site = Site::start_with_two().await;
    let now = Timestamp::now();
    let expiry = |what: &str, days: i64, renews: bool| Expiry {
        what: what.into(),
        expires: now + SignedDuration::from_hours(24 * days),
        renews,
    };
    site.tunnel.server.lock().unwrap().certificates =
        vec![expiry("certificate of the external address", 400, true), expiry("the dispatcher's", 12, false)];
    // A tunnel server is asked about itself every few seconds.
    let told = async {
        loop {
            let all = site.get("/api/v1/certificates").await;
            if all.as_array().unwrap().len() >= 2 {
                return all;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let all = tokio::time::timeout(crate::fake::DEADLINE, told).await.expect("they are told");
    assert_eq!(
        (&all[0]["server"], &all[0]["what"]),
        (&json!("tunnel server sts"), &json!("the dispatcher's"))
    );
    assert!(all[0]["advice"].as_str().unwrap().contains("put a new certificate"), "{all}");
    assert!(all[1].get("advice").is_none(), "{all}");
    let metrics = site.call(Method::GET, "/metrics", None).await.1;
    let line = format!(
        "homing_management_certificate_expires_seconds{{server=\"tunnel server sts\",what=\"the dispatcher's\"}} {}",
        (now + SignedDuration::from_hours(24 * 12)).as_second()
    );
    assert!(metrics.as_str().unwrap().contains(&line), "{metrics}");
    site.end().await;
}
