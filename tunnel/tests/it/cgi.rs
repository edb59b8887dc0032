//! The CGI names that integrations call, as they call them.

use crate::{
    device::{self, Device},
    world::{PASSWORD, USER, World, password, send_from, within},
};
use bytes::Bytes;
use homing_protocol::api::tunnel::MoveState;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;

/// What an integration gets, from an address of its own.
async fn call(world: &World, from: u8, request: http::request::Builder, body: &str) -> (StatusCode, String) {
    let request = request.header("host", "127.0.0.1").body(Bytes::from(body.to_owned())).unwrap();
    let response = within(send_from([127, 0, 0, from], world.internal, request)).await;
    let status = response.status();
    assert_eq!(response.headers()["cache-control"], "no-store");
    let body = within(response.into_body().collect()).await.unwrap().to_bytes();
    let text = String::from_utf8(body.to_vec()).unwrap();
    // That is how integrations tell.
    assert_eq!(text.contains("error"), !status.is_success(), "{status} {text}");
    (status, text)
}

async fn get(world: &World, path: &str) -> (StatusCode, String) {
    call(world, 60, Request::get(path).header("authorization", password()), "").await
}

fn register(extra: &str) -> String {
    format!(
        "/admin/dispatch.cgi?action=register&user={USER}&pass={PASSWORD}&mac=00408C702009&oak=C0FFEE123456{extra}"
    )
}

/// Goal: steps 1 and 2 as an integration does them: no header, its user and password in the address, twice if it likes.
#[tokio::test]
async fn step_1_register_by_dispatch_cgi() {
    let world = World::new().await;
    let server = format!("&server={},192.0.2.99:8443", world.external);
    for _ in 0..2 {
        let (status, text) = call(&world, 61, Request::get(register(&server)), "").await;
        assert_eq!((status, text.as_str()), (StatusCode::OK, "00408c702009 registered\n"));
    }
    let (serial, relayed) = &world.dispatcher.relayed()[0];
    assert_eq!((serial.to_string().as_str(), relayed.oak.label().as_str()), ("00408C702009", device::OAK));
    // What the device is delivered with, as nothing else was sent.
    assert!(relayed.user == "root" && relayed.password.matches("pass"));

    // By a form, in the ways that labels are typed, with the device's own user and password.
    let form = format!(
        "action=register&user={USER}&pass={PASSWORD}&mac=4.00408c702010&oak=c0ff-ee12-3456&device_user=admin&device_pass=a%26b"
    );
    let post =
        Request::post("/admin/dispatch.cgi").header("content-type", "application/x-www-form-urlencoded");
    assert_eq!(call(&world, 61, post, &form).await.0, StatusCode::OK);
    let (_, relayed) = world.dispatcher.relayed().pop().unwrap();
    assert!(relayed.user == "admin" && relayed.password.matches("a&b"));
    // Who has said otherwise who it is means the device's.
    let path = "/admin/dispatch.cgi?action=register&user=root&pass=secret-of-the-camera&mac=00408C702011&oak=C0FFEE123456";
    assert_eq!(get(&world, path).await.0, StatusCode::OK);
    let (_, relayed) = world.dispatcher.relayed().pop().unwrap();
    assert!(relayed.user == "root" && relayed.password.matches("secret-of-the-camera"));
}

#[tokio::test]
async fn dispatch_cgi_says_what_is_wrong() {
    let world = World::new().await;
    for (path, part) in [
        ("/admin/dispatch.cgi", "action is missing"),
        ("/admin/dispatch.cgi?action=explode", "register"),
        ("/admin/dispatch.cgi?action=register&oak=C0FFEE123456", "mac is missing"),
        ("/admin/dispatch.cgi?action=register&mac=00408C70200&oak=C0FFEE123456", "bad-serial-number"),
        ("/admin/dispatch.cgi?action=register&mac=00408C702009&oak=12", "bad-oak"),
        (
            "/admin/dispatch.cgi?action=register&mac=00408C702009&oak=C0FFEE123456&server=10.0.0.7:8081",
            "public addresses are",
        ),
        ("/admin/reconnect.cgi?client=4.00408c702009", "not-found"),
        ("/admin/restart.cgi?client=4.00408c702009", "not-found"),
        ("/admin/redirect.cgi?client=4.00408c702009", "server is missing"),
        ("/admin/redirect.cgi?server=a:1", "client is missing"),
        ("/admin/redirect.cgi?client=4.00408c702009&server=sts.example:8443", "not-found"),
    ] {
        let (status, text) = get(&world, path).await;
        assert!(!status.is_success() && text.contains(part), "{path}: {status} {text}");
        assert!(!text.contains("C0FFEE"), "{text}");
    }
    assert!(world.dispatcher.relayed().is_empty());
}

/// Goal: a line for each device that is connected, in the form that integrations split.
#[tokio::test]
async fn status_cgi_lists_who_is_connected() {
    let world = World::new().await;
    let total = |count: usize| format!("\nTotal number of clients: {count}\n");
    assert_eq!(get(&world, "/admin/status.cgi").await.1, total(0));
    world.ready("00408C702009").await;
    world.register(&Device::new("00408C702010")).await;
    let (_, text) = get(&world, "/admin/status.cgi").await;
    let (line, rest) = text.split_once('\n').unwrap();
    assert_eq!(rest, total(1));
    let fields: Vec<(&str, &str)> = line.split(' ').map(|field| field.split_once('=').unwrap()).collect();
    let names: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["id", "srcaddr", "accepted", "v", "rx", "tx", "connected"]);
    assert_eq!(fields[0].1.split_once('.'), Some(("4", "00408c702009")));
    assert!(fields[1].1.parse::<std::net::SocketAddr>().unwrap().ip().is_loopback());
    assert!(fields[4].1.parse::<u64>().unwrap() > 0);
    // 2022-01-10T12:45:40.875571Z
    let connected = fields[6].1;
    assert!(connected.parse::<jiff::Timestamp>().is_ok() && connected.len() == 27, "{connected}");
}

#[tokio::test]
async fn redirect_reconnect_and_restart_are_orders() {
    let world = World::new().await;
    let (device, serving) = world.ready("00408C702009").await;
    let (status, text) = get(&world, "/admin/reconnect.cgi?client=4.00408c702009").await;
    assert_eq!((status, text.as_str()), (StatusCode::OK, "00408c702009 reconnects\n"));
    within(serving).await.unwrap();
    world.device_until(device.serial, |device| !device.connected).await;
    world.connect(&device).await;
    device.lock.lock().unwrap().restarts = Some(0);
    assert_eq!(get(&world, "/admin/restart.cgi?client=00408C702009").await.0, StatusCode::OK);
    assert_eq!(device.lock.lock().unwrap().restarts, Some(1));

    let path = "/admin/redirect.cgi?client=4.00408c702009&server=sts2.example:8443";
    assert_eq!(get(&world, path).await.0, StatusCode::OK);
    let moving = world.device_until(device.serial, |device| device.moving.is_some()).await.moving.unwrap();
    assert_eq!(moving.servers, ["sts2.example:8443"]);
    assert_ne!(moving.state, MoveState::Moved, "it stays until it is there");
    let home = format!("/admin/redirect.cgi?client=4.00408c702009&server={}", world.external);
    assert_eq!(get(&world, &home).await.0, StatusCode::OK);
    world.device_until(device.serial, |device| device.moving.is_none()).await;
}

/// Goal: the same guard as everywhere: nobody is let in without the password, guessing is slowed, and no web page has a
/// browser call these.
#[tokio::test]
async fn the_cgis_are_guarded() {
    let world = World::new().await;
    let names = ["dispatch", "status", "redirect", "reconnect", "restart"];
    for (index, name) in names.into_iter().enumerate() {
        let from = 70 + index as u8;
        for query in ["", "?user=vms&pass=guess", "?user=&pass="] {
            let request = Request::get(format!("/admin/{name}.cgi{query}"));
            assert_eq!(call(&world, from, request, "").await.0, StatusCode::UNAUTHORIZED, "{name}{query}");
        }
        for (header, value) in [("sec-fetch-site", "cross-site"), ("origin", "https://elsewhere.example")] {
            let request = Request::get(format!("/admin/{name}.cgi")).header("authorization", password());
            let refused = call(&world, from, request.header(header, value), "").await;
            assert_eq!(refused.0, StatusCode::FORBIDDEN, "{name} {header}");
        }
    }
    let mut looked_at = 0;
    for _ in 0..20 {
        let request = Request::get("/admin/status.cgi?user=vms&pass=guess");
        looked_at += usize::from(call(&world, 90, request, "").await.0 == StatusCode::UNAUTHORIZED);
    }
    assert!(looked_at < 10, "{looked_at} of 20 guesses were looked at");
    let request =
        Request::builder().method(Method::GET).uri(format!("/admin/status.cgi?user={USER}&pass={PASSWORD}"));
    assert_eq!(call(&world, 91, request, "").await.0, StatusCode::OK);
}
