//! Tunnel servers as an administrator adds, tests, edits, renames and removes them, and what is shown of their devices.

use crate::fake::{DEADLINE, FakeTunnel, Site, device, serial};
use axum::{
    Router,
    http::{Method, StatusCode},
};
use homing_base::{Stop, http::Failure};
use homing_protocol::api::Problem;
use serde_json::{Value, json};
use std::time::Duration;

const SERVERS: &str = "/api/v1/tunnel-servers";

fn north(url: &str) -> Value {
    json!({"name": "North", "description": "DMZ, rack 4", "url": url, "external_address": "north.example:8443",
        "user": "vms", "password": "sesame"})
}

impl Site {
    pub async fn until_server(&self, name: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let waiting = async {
            let mut ticks = tokio::time::interval(Duration::from_millis(10));
            loop {
                ticks.tick().await;
                let all = self.get(SERVERS).await;
                let found =
                    all.as_array().unwrap().iter().find(|server| server["name"] == name && holds(server));
                if let Some(found) = found {
                    return found.clone();
                }
            }
        };
        let waited = tokio::time::timeout(DEADLINE, waiting).await;
        waited.unwrap_or_else(|_| panic!("{name} is not as it should be"))
    }

    async fn test_of(&self, server: Value) -> Value {
        let (status, tested) =
            self.call(Method::POST, &format!("{SERVERS}/test"), Some(json!({ "server": server }))).await;
        assert_eq!(status, StatusCode::OK, "{tested}");
        tested
    }
}

/// Goal: one that is added on the page is used like one of the file: its devices are shown with the server that carries
/// them, recorded, and recorded on after a rename; what is used is not removed.
#[tokio::test]
async fn a_tunnel_server_is_added_renamed_refreshed_and_removed() {
    let site = Site::start().await;
    let stop = Stop::new();
    let second = FakeTunnel::new("north", "shop");
    let url = format!("http://127.0.0.1:{}", second.serve(0, stop.clone()).await);
    second.put(device(serial(2), "Barn"));

    let (status, added) = site.call(Method::POST, SERVERS, Some(north(&url))).await;
    assert_eq!(status, StatusCode::CREATED, "{added}");
    assert_eq!((&added["configured"], &added["description"]), (&json!(false), &json!("DMZ, rack 4")));
    assert!(!added.to_string().contains("sesame"));
    let reached = site.until_server("North", |server| server["reachable"] == true).await;
    assert_eq!((&reached["devices"], &reached["public"]), (&json!(1), &json!(["north.example:8443"])));
    assert!(reached.get("problem").is_none(), "{reached}");
    second.connect(serial(2), true);
    let carried = site.until_device("it is carried", |device| device["connected"] == true).await;
    assert_eq!(carried["tunnel_server"], "North");
    let way = site.recording.ways.lock().unwrap()["North"].clone();
    assert!(way.url == url && way.user == "vms" && way.password.matches("sesame"));

    // Its figures are of now, and its history is the tunnel server's.
    let figures = site.get("/api/v1/figures").await;
    assert_eq!((&figures[0]["tunnel_server"], &figures[0]["bps_in"]), (&json!("North"), &json!(500_000)));
    let history = site.get(&format!("/api/v1/devices/{}/history", serial(2))).await;
    assert_eq!((history[0].get("code"), &history[1]["code"]), (None, &json!("silent")));

    // Taken names and addresses, and what stands in the file.
    let again = json!({"name": "sts", "url": "http://127.0.0.1:1"});
    for (method, path, body, code) in [
        (Method::POST, SERVERS.to_owned(), again, "taken"),
        (Method::POST, SERVERS.to_owned(), json!({"name": "Twice", "url": url}), "taken"),
        (
            Method::PUT,
            format!("{SERVERS}/sts"),
            json!({"name": "x", "url": "http://127.0.0.1:1"}),
            "in-configuration",
        ),
    ] {
        let (status, problem) = site.call(method, &path, Some(body)).await;
        assert_eq!((status, &problem["error"]["code"]), (StatusCode::CONFLICT, &json!(code)));
    }

    // Recorded, then renamed: without the password, which is kept for the same address and user alone.
    let hardware = json!({"serial": serial(2).to_string()});
    let (status, answer) = site.call(Method::POST, "/api/v1/hardware", Some(hardware)).await;
    assert!(status.is_success(), "{answer}");
    let renamed = json!({"name": "South", "url": url, "user": "vms"});
    let elsewhere = json!({"name": "South", "url": "http://127.0.0.1:1", "user": "vms"});
    let (status, problem) = site.call(Method::PUT, &format!("{SERVERS}/North"), Some(elsewhere)).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{problem}");
    let (status, answer) = site.call(Method::PUT, &format!("{SERVERS}/North"), Some(renamed)).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    site.until_server("South", |server| server["reachable"] == true).await;
    assert!(site.get(SERVERS).await.as_array().unwrap().iter().all(|server| server["name"] != "North"));
    let moved = site.until_device("it is at South", |device| device["tunnel_server"] == "South").await;
    assert_eq!(moved["word"], "Connected");
    assert_eq!(site.recording.ways.lock().unwrap().keys().collect::<Vec<_>>(), ["South", "sts"]);
    let known = site.recording.hardware.lock().unwrap()[0].clone();
    assert!(
        matches!(known.device, homing_protocol::api::recording::DeviceAddress::Tunnel { server, .. } if server == "South")
    );

    // Refreshed: what was not told is seen.
    second.devices.lock().unwrap().insert(serial(3), device(serial(3), "Silo"));
    let (status, _) = site.call(Method::POST, &format!("{SERVERS}/South/refresh"), None).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    site.until_server("South", |server| server["devices"] == 2).await;

    let south = format!("{SERVERS}/South");
    let (status, problem) = site.call(Method::DELETE, &south, None).await;
    assert_eq!((status, &problem["error"]["code"]), (StatusCode::CONFLICT, &json!("still-used")));
    let (status, _) = site.call(Method::DELETE, &format!("/api/v1/hardware/{}", known.id), None).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(site.call(Method::DELETE, &south, None).await.0, StatusCode::NO_CONTENT);
    assert!(site.get("/api/v1/devices").await.as_array().unwrap().is_empty());
    assert_eq!(site.recording.ways.lock().unwrap().keys().collect::<Vec<_>>(), ["sts"]);
    let audit = site.get("/api/v1/audit").await.to_string();
    for action in ["add-tunnel-server", "change-tunnel-server", "remove-tunnel-server"] {
        assert!(audit.contains(action), "{audit}");
    }
    assert!(!audit.contains("sesame"));
    assert!(stop.drain(DEADLINE).await);
    site.end().await;
}

/// Goal: the test says which step fails and what to do about it, sends the password to nobody who is not trusted, and
/// stores nothing.
#[tokio::test]
async fn the_test_says_what_is_wrong_and_what_to_do() {
    let site = Site::start().await;
    let (stop, folder) = (Stop::new(), tempfile::tempdir().unwrap());
    let second = FakeTunnel::new("north", "shop");
    let plain = second.serve(0, stop.clone()).await;
    let (secure, anchor) = second.serve_tls(folder.path(), stop.clone()).await;
    let listener = homing_base::listen::bind(([127, 0, 0, 1], 0).into(), "another program").unwrap();
    let other = listener.local_addr().unwrap().port();
    stop.spawn(homing_base::http::serve(listener, Router::new(), None, stop.clone()));
    // A tunnel server that is asked from another machine.
    let listener = homing_base::listen::bind(([127, 0, 0, 1], 0).into(), "encrypted alone").unwrap();
    let encrypted = listener.local_addr().unwrap().port();
    let refused = async || Failure::new(StatusCode::FORBIDDEN, Problem::new("https-only", "Use https://."));
    let refusing = Router::new().fallback(refused);
    stop.spawn(homing_base::http::serve(listener, refusing, None, stop.clone()));
    let closed = homing_base::listen::bind(([127, 0, 0, 1], 0).into(), "closed").unwrap();
    let nobody = closed.local_addr().unwrap().port();
    drop(closed);

    let with = |key: &str, value: &str| {
        let mut server = north(&format!("http://127.0.0.1:{plain}"));
        server[key] = value.into();
        server
    };
    for (server, code, advice) in [
        (with("url", "127.0.0.1:8081"), "bad-address", "https://10.1.2.3:8081"),
        (with("url", "http://nowhere.invalid:8081"), "unknown-host", "DNS"),
        (with("url", &format!("http://127.0.0.1:{nobody}")), "refused", "internal in its [tunnel]"),
        (with("url", &format!("http://127.0.0.1:{other}")), "not-a-tunnel-server", "another program"),
        (with("url", &format!("http://127.0.0.1:{secure}")), "is-tls", "https://"),
        (
            with("url", &format!("http://127.0.0.1:{encrypted}")),
            "https-only",
            &format!("https://127.0.0.1:{encrypted}."),
        ),
        (with("url", &format!("https://localhost:{plain}")), "not-tls", "http://"),
        (with("password", "wrong"), "wrong-credentials", "user and password"),
        (with("user", ""), "credentials-wanted", "use credentials"),
        (with("external_address", "old.example:8443"), "other-external-address", "north.example:8443"),
    ] {
        let tested = site.test_of(server).await;
        assert_eq!((&tested["ok"], &tested["code"]), (&json!(false), &json!(code)), "{tested}");
        assert!(tested["message"].as_str().unwrap().contains(advice), "{tested}");
    }

    // A private CA: the fingerprint is shown, and trusting it is enough; the name still counts.
    let mut server = with("url", &format!("https://localhost:{secure}"));
    let tested = site.test_of(server.clone()).await;
    assert_eq!(tested["code"], "not-trusted", "{tested}");
    let shown = &tested["certificate"];
    assert_eq!(shown["trust_anchor"].as_str().unwrap().trim(), anchor.trim());
    assert_eq!(
        shown["fingerprint"].as_str(),
        homing_base::tls::fingerprint_of_pem(&anchor).as_deref(),
        "of the CA, which stays when certificates are renewed"
    );
    server["trust_anchor"] = shown["trust_anchor"].clone();
    let tested = site.test_of(server.clone()).await;
    assert_eq!((&tested["ok"], &tested["name"]), (&json!(true), &json!("north")), "{tested}");
    server["url"] = format!("https://127.0.0.1:{secure}").into();
    let tested = site.test_of(server.clone()).await;
    assert_eq!(tested["code"], "wrong-name", "{tested}");
    assert!(tested["message"].as_str().unwrap().contains("localhost, not for 127.0.0.1"), "{tested}");

    assert_eq!(site.get(SERVERS).await.as_array().unwrap().len(), 1, "nothing was stored");
    // And it works as tested.
    server["url"] = format!("https://localhost:{secure}").into();
    assert_eq!(site.call(Method::POST, SERVERS, Some(server)).await.0, StatusCode::CREATED);
    let reached = site.until_server("North", |server| server["reachable"] == true).await;
    assert_eq!(reached["trusted"], shown["fingerprint"]);
    assert!(stop.drain(DEADLINE).await);
    site.end().await;
}
