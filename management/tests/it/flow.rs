//! Steps 1 and 8 as a person starts them, and the states between as a browser sees them.

use crate::fake::{AT_ONCE, DEADLINE, Site, device, serial};
use axum::http::{Method, Request, StatusCode, header};
use bytes::Bytes;
use homing_management::sse::{Event, Parser};
use homing_protocol::api::tunnel::RelayState;
use http_body_util::{BodyExt, Empty};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};
use std::collections::VecDeque;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A browser's event stream.
pub struct Events {
    body: hyper::body::Incoming,
    parser: Parser,
    waiting: VecDeque<Event>,
}

impl Events {
    pub async fn open(site: &Site, (name, value): (&str, &str)) -> Events {
        let client: Client<HttpConnector, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let request = Request::get(format!("http://{}/api/v1/events", site.address))
            .header(name, value)
            .body(Empty::new())
            .unwrap();
        let response = client.request(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
        Events { body: response.into_body(), parser: Parser::default(), waiting: VecDeque::new() }
    }

    /// The next event of this name that is as wanted.
    pub async fn until(&mut self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let waiting = async {
            loop {
                while let Some(event) = self.waiting.pop_front() {
                    let value = serde_json::from_str(&event.data).unwrap();
                    if event.name == name && wanted(&value) {
                        return value;
                    }
                }
                let frame = self.body.frame().await.expect("the stream ended").unwrap();
                if let Ok(bytes) = frame.into_data() {
                    self.waiting.extend(self.parser.feed(&bytes).unwrap());
                }
            }
        };
        tokio::time::timeout(DEADLINE, waiting).await.unwrap_or_else(|_| panic!("no event {name}"))
    }

    pub async fn until_end(&mut self) {
        while let Some(Ok(_)) = self.body.frame().await {}
    }
}

#[tokio::test]
async fn register_and_add_from_red_to_green_while_a_browser_watches() {
    let site = Site::start().await;
    let cookie = site.sign_in().await;
    let mut events = Events::open(&site, ("cookie", &cookie)).await;
    events.until("tunnel-server", |server| server["reachable"] == true).await;

    // Step 1, as typed from the label.
    let label = json!({"serial": "00:40:8c:70:20:09", "oak": "0123 4567 89ab", "user": "root", "password": "pass", "name": "Gate"});
    let (status, registered) = site.call(Method::POST, "/api/v1/devices", Some(label.clone())).await;
    assert_eq!(status, StatusCode::CREATED, "{registered}");
    assert_eq!(
        (&registered["serial"], &registered["state"], &registered["step"]),
        (&json!("00408C702009"), &json!("red"), &json!("relay"))
    );
    events.until("device", |device| device["state"] == "red" && device["word"] == "Not connected").await;
    let (status, again) = site.call(Method::POST, "/api/v1/devices", Some(label)).await;
    assert_eq!((status, again["error"]["code"].as_str()), (StatusCode::CONFLICT, Some("already-registered")));

    // Not yet connected: step 8 says so, and what to do.
    let add = json!({"serial": "00408C702009"});
    let (status, refused) = site.call(Method::POST, "/api/v1/hardware", Some(add.clone())).await;
    assert_eq!(
        (status, refused["error"]["code"].as_str(), refused["error"]["step"].as_str()),
        (StatusCode::CONFLICT, Some("not-connected"), Some("add"))
    );

    // Step 3 by the demo's finger; steps 4 to 7 are the others'.
    let (status, body) = site.call(Method::POST, "/api/v1/simulated-cameras/00408C702009/press", None).await;
    assert_eq!((status, *site.presses.lock().unwrap()), (StatusCode::NO_CONTENT, 1), "{body}");
    let code = site.get("/api/v1/simulated-cameras/00408C702009/label.svg").await;
    assert!(code.as_str().is_some_and(|code| code.starts_with("<svg xmlns")), "{code}");
    site.tunnel.connect(serial(9), true);
    let yellow = events.until("device", |device| device["state"] == "yellow").await;
    assert_eq!(
        (&yellow["step"], &yellow["step_number"], &yellow["connected"]),
        (&json!("tunnel"), &json!(7), &json!(true))
    );

    // Step 8.
    let (status, hardware) = site.call(Method::POST, "/api/v1/hardware", Some(add.clone())).await;
    assert_eq!((status, &hardware["name"]), (StatusCode::CREATED, &json!("Gate")), "{hardware}");
    let green = &site.get("/api/v1/devices").await[0];
    assert_eq!(
        (&green["state"], &green["word"], &green["step"], &green["hardware"]),
        (&json!("green"), &json!("Connected"), &json!("add"), &hardware["id"])
    );
    events.until("device", |device| device["state"] == "green").await;
    let (status, refused) = site.call(Method::POST, "/api/v1/hardware", Some(add)).await;
    assert_eq!((status, refused["error"]["code"].as_str()), (StatusCode::CONFLICT, Some("already-added")));

    // An outage of an added device is not plain green.
    site.tunnel.connect(serial(9), false);
    let offline =
        events.until("device", |device| device["connected"] == false && device["state"] == "green").await;
    assert_eq!(offline["word"], "Offline");

    // Back the way it came: first the hardware, then the registration.
    let (status, refused) = site.call(Method::DELETE, "/api/v1/devices/00408C702009", None).await;
    assert_eq!((status, refused["error"]["code"].as_str()), (StatusCode::CONFLICT, Some("still-added")));
    let path = format!("/api/v1/hardware/{}", hardware["id"]);
    assert_eq!(site.call(Method::DELETE, &path, None).await.0, StatusCode::NO_CONTENT);
    events.until("hardware-removed", |gone| gone["key"].as_str() == Some("1")).await;
    assert_eq!(
        site.call(Method::DELETE, "/api/v1/devices/00408C702009", None).await.0,
        StatusCode::NO_CONTENT
    );
    events.until("device-removed", |gone| gone["key"] == "sts/00408C702009").await;

    let audit = site.get("/api/v1/audit").await;
    let done: Vec<&str> = audit
        .as_array()
        .unwrap()
        .iter()
        .rev()
        .filter(|entry| entry["object"] == "00408C702009")
        .map(|entry| entry["action"].as_str().unwrap())
        .collect();
    assert_eq!(done, ["register-device", "register-device", "press", "add-hardware", "unregister-device"]);
    site.end().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_registration_is_told_at_once_and_clearly() {
    let site = Site::start().await;
    for (serial, oak, status, code, text) in [
        ("00408C70200", "0123-4567-89AB", 422, "bad-serial", "11 digits where there should be 12"),
        ("O0408C702009", "0123-4567-89AB", 422, "bad-serial", "'O' is not one of"),
        ("00408C702009", "0123-4567", 422, "bad-oak", "8 digits where there should be 12"),
        ("00408C702009", "0000-0000-0000", 422, "wrong-oak", "no: wrong-oak"),
    ] {
        let body = json!({"serial": serial, "oak": oak, "user": "root", "password": "pass"});
        let (answered, problem) = site.call(Method::POST, "/api/v1/devices", Some(body)).await;
        assert_eq!((answered.as_u16(), problem["error"]["code"].as_str()), (status, Some(code)), "{problem}");
        assert!(problem["error"]["message"].as_str().unwrap().contains(text), "{problem}");
        assert!(problem["error"]["step"].is_string());
    }
    let pending =
        json!({"serial": "00408C702009", "oak": "1111-1111-1111", "user": "root", "password": "pass"});
    let (status, device) = site.call(Method::POST, "/api/v1/devices", Some(pending)).await;
    assert_eq!((status, &device["relay"]), (StatusCode::ACCEPTED, &json!("pending")));
    site.end().await;
}

/// The goal: a registration that the dispatcher refused is corrected where it stands: its name stays, nothing is
/// typed twice, and the audit log says what was corrected without saying a secret.
#[tokio::test]
async fn a_refused_registration_is_corrected_in_place() {
    let site = Site::start().await;
    let mut refused = device(serial(1), "Gate");
    refused.relay = RelayState::Refused;
    site.tunnel.put(refused);
    site.until_device("it is refused", |device| device["relay"] == "refused").await;
    let path = format!("/api/v1/devices/{}", serial(1));
    for (change, code) in [(json!({"oak": "12"}), "bad-oak"), (json!({"oak": "0000-0000-0000"}), "wrong-oak")]
    {
        let (status, problem) = site.call(Method::PATCH, &path, Some(change)).await;
        assert_eq!((status.as_u16(), &problem["error"]["code"]), (422, &json!(code)));
    }
    let change = json!({"user": "admin", "password": "device-secret"});
    let (status, device) = site.call(Method::PATCH, &path, Some(change)).await;
    assert_eq!((status, &device["relay"]), (StatusCode::OK, &json!("waiting")), "{device}");
    assert_eq!((&device["name"], &device["user"]), (&json!("Gate"), &json!("admin")));
    let audit = site.get("/api/v1/audit").await;
    assert_eq!(audit[0]["detail"], "corrected: user, password");
    assert!(!audit.to_string().contains("device-secret"));
    site.end().await;
}

/// The goal: the figures of one device are those of now, not of its last change of state.
#[tokio::test]
async fn one_devices_figures_are_of_now() {
    let site = Site::start().await;
    site.tunnel.put(device(serial(1), "Gate"));
    site.until_device("it is known", |device| device["bytes_in"] == 0).await;
    assert_eq!(site.get(&format!("/api/v1/devices/{}", serial(1))).await["bytes_in"], 4711);
    site.end().await;
}

#[tokio::test]
async fn several_devices_are_added_at_once_with_one_result_each() {
    let site = Site::start().await;
    for last in 1..=3 {
        site.tunnel.put(device(serial(last), &format!("Camera {last}")));
        if last != 2 {
            site.tunnel.connect(serial(last), true);
        }
    }
    site.until_device("three devices", |device| {
        device["serial"] == serial(3).to_string() && device["connected"] == true
    })
    .await;
    let serials: Vec<String> = (1..=4).map(|last| serial(last).to_string()).collect();
    let (status, added) =
        site.call(Method::POST, "/api/v1/hardware", Some(json!({"serials": serials}))).await;
    assert_eq!(status, StatusCode::OK, "{added}");
    let results: Vec<Option<&str>> =
        added.as_array().unwrap().iter().map(|result| result["problem"]["code"].as_str()).collect();
    assert_eq!(results, [None, Some("not-connected"), None, Some("not-found")]);
    assert_eq!(site.get("/api/v1/cameras").await.as_array().unwrap().len(), 2);
    site.end().await;
}

#[tokio::test]
async fn a_tunnel_server_that_goes_is_shown_so_and_comes_back_by_itself() {
    let site = Site::start().await;
    site.tunnel.put(device(serial(1), "Gate"));
    site.tunnel.connect(serial(1), true);
    site.until_device("connected", |device| device["connected"] == true).await;
    let cookie = site.sign_in().await;
    let mut events = Events::open(&site, ("cookie", &cookie)).await;
    events.until("ready", |_| true).await;

    site.stop_tunnel().await;
    let gone = events.until("tunnel-server", |server| server["reachable"] == false).await;
    assert_eq!(gone["problem"]["code"], "tunnel-server-unreachable");
    let device = site.get("/api/v1/devices/00408C702001").await;
    assert_eq!(
        (&device["connected"], &device["problem"]["code"]),
        (&json!(false), &json!("tunnel-server-unreachable"))
    );
    let label =
        json!({"serial": "00408C702009", "oak": "0123-4567-89AB", "user": "root", "password": "pass"});
    let (status, problem) = site.call(Method::POST, "/api/v1/devices", Some(label)).await;
    assert_eq!(
        (status, problem["error"]["code"].as_str()),
        (StatusCode::BAD_GATEWAY, Some("tunnel-server-unreachable"))
    );

    site.restart_tunnel().await;
    events.until("tunnel-server", |server| server["reachable"] == true).await;
    site.until_device("connected again", |device| device["connected"] == true && device["problem"].is_null())
        .await;
    site.end().await;
}

/// Goal: what happens at a tunnel server while it cannot be reached is told when it can, each of it and in order; unless
/// the tunnel server began anew, and then nothing of before is left.
#[tokio::test]
async fn what_happened_during_a_cut_is_not_missed() {
    let site = Site::start().await;
    let called = |name: &str| device(serial(1), name);
    site.tunnel.put(called("Before"));
    site.tunnel.put(device(serial(2), "Goes"));
    site.until_device("it is known", |device| device["name"] == "Goes").await;
    let cookie = site.sign_in().await;
    let mut events = Events::open(&site, ("cookie", &cookie)).await;
    events.until("ready", |_| true).await;
    for life in 0..2 {
        site.stop_tunnel().await;
        events.until("tunnel-server", |server| server["reachable"] == false).await;
        site.tunnel.put(called("Meanwhile"));
        match life {
            0 => site.tunnel.remove(serial(2)),
            _ => *site.tunnel.life.lock().unwrap() += 1,
        }
        site.tunnel.put(called(&format!("After {life}")));
        site.restart_tunnel().await;
        let mut names = Vec::new();
        while names.last().is_none_or(|name| *name != format!("After {life}")) {
            let told = events.until("device", |device| device["problem"].is_null()).await;
            names.push(told["name"].as_str().unwrap().to_owned());
        }
        match life {
            0 => assert_eq!(names[names.len() - 2], "Meanwhile", "{names:?}"),
            _ => assert!(!names.contains(&"Meanwhile".to_owned()), "{names:?}"),
        }
        let devices = site.get("/api/v1/devices").await;
        assert_eq!(devices.as_array().unwrap().len(), 1, "{devices}");
    }
    site.end().await;
}

#[tokio::test]
async fn a_tunnel_server_that_knows_us_not_says_what_to_check() {
    let site = Site::start_with(|config| config.tunnel_servers[0].password = "wrong".into()).await;
    let cookie = site.sign_in().await;
    let mut events = Events::open(&site, ("cookie", &cookie)).await;
    let server = events.until("tunnel-server", |server| server["problem"].is_object()).await;
    assert_eq!(server["problem"]["code"], "tunnel-server-refused-log-in");
    assert!(!server.to_string().contains("wrong"));
    site.end().await;
}

#[tokio::test]
async fn cameras_are_the_recording_roles_own_answers_without_the_callers_secrets() {
    let site = Site::start().await;
    site.tunnel.put(device(serial(1), "Gate"));
    site.tunnel.connect(serial(1), true);
    site.until_device("connected", |device| device["connected"] == true).await;
    site.call(Method::POST, "/api/v1/hardware", Some(json!({"serial": "00408C702001"}))).await;

    assert_eq!(site.get("/api/v1/cameras").await[0]["id"], 10);
    let seen = site.recording.seen.lock().unwrap().clone();
    assert!(!seen.contains_key(header::AUTHORIZATION) && !seen.contains_key(header::COOKIE));
    assert_eq!(site.get("/api/v1/cameras/10").await["name"], "Gate");
    assert_eq!(site.get("/api/v1/cameras/10/init/3").await, json!([10, 3]));
    assert_eq!(site.call(Method::GET, "/api/v1/cameras/11", None).await.0, StatusCode::NOT_FOUND);
    assert_eq!(site.get("/api/v1/cameras/10/recording.mp4?start=a&end=b").await, "mp4");
    let audit = site.get("/api/v1/audit?limit=1").await;
    assert_eq!(
        (&audit[0]["action"], &audit[0]["object"], &audit[0]["detail"]),
        (&json!("export-recording"), &json!("10"), &json!("start=a&end=b"))
    );
    site.end().await;
}

#[tokio::test]
async fn live_is_a_websocket_through_the_gate() {
    let site = Site::start().await;
    let cookie = site.sign_in().await;
    let mut tcp = tokio::net::TcpStream::connect(site.address).await.unwrap();
    let request = format!(
        "GET /api/v1/cameras/7/live HTTP/1.1\r\nHost: {0}\r\nOrigin: http://{0}\r\nCookie: {cookie}\r\n\
         Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        site.address
    );
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = async {
        while !answer.ends_with(b"moof") {
            let mut chunk = [0u8; 1024];
            let count = tcp.read(&mut chunk).await.unwrap();
            assert!(count > 0, "{}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&chunk[..count]);
        }
    };
    tokio::time::timeout(DEADLINE, read).await.unwrap();
    let text = String::from_utf8_lossy(&answer);
    assert!(text.starts_with("HTTP/1.1 101 "), "{text}");
    assert!(text.contains(r#"{"camera":7,"type":"start"}"#), "{text}");

    // Who signs out elsewhere, and be it in another tab, does not go on watching here.
    let own = [("cookie", cookie.as_str()), ("sec-fetch-site", "same-origin")];
    let (status, _, _) = site.raw(Method::DELETE, "/api/v1/session", &own, None).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let ended = tokio::time::timeout(AT_ONCE, tcp.read_to_end(&mut answer)).await;
    assert!(ended.is_ok(), "live goes on");
    site.end().await;
}
