//! What the proxy gives of a device: its ports, HTTP and TLS inside CONNECT, WebSockets, and logging in in a client's place.

use crate::{
    device,
    world::{World, code, password, text, through, within},
};
use bytes::Bytes;
use homing_base::tls::client_config;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::json;
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

const DEVICE: &str = "/api/v1/devices/00408C702009";

async fn connect(world: &World, target: &str) -> (u16, TcpStream) {
    let mut tcp = TcpStream::connect(world.internal).await.unwrap();
    let head = format!("CONNECT {target} HTTP/1.1\r\nHost: x\r\nProxy-Authorization: {}\r\n\r\n", password());
    tcp.write_all(head.as_bytes()).await.unwrap();
    let answer = head_of(&mut tcp).await;
    (answer[9..12].parse().unwrap(), tcp)
}

async fn head_of(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(within(stream.read_u8()).await.unwrap());
    }
    String::from_utf8(answer).unwrap()
}

/// HTTP/1.1 on a stream that is there.
async fn client<S>(stream: S) -> hyper::client::conn::http1::SendRequest<Full<Bytes>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) =
        within(hyper::client::conn::http1::handshake(TokioIo::new(stream))).await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "a test's client")]
    tokio::spawn(connection);
    sender
}

fn inside(method: Method, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let request = Request::builder().method(method).uri(path).header("host", "00408c702009");
    request.body(Full::new(body.into())).unwrap()
}

async fn set_access(world: &World, access: serde_json::Value) {
    let (status, answer) = world.api(Method::PATCH, DEVICE, Some(json!({ "access": access }))).await;
    assert_eq!((status, &answer["access"]), (StatusCode::OK, &access), "{answer}");
}

/// Goal: inside CONNECT to 80 and to 443 a client speaks HTTP/1.1 with the device, request after request.
#[tokio::test]
async fn http_and_https_inside_connect_reach_the_device() {
    let world = World::new().await;
    world.ready("00408C702009").await;
    let (status, plain) = connect(&world, "00408c702009:80").await;
    assert_eq!(status, 200);
    let (status, tcp) = connect(&world, "4.00408c702009:443").await;
    assert_eq!(status, 200);
    let config = Arc::new(client_config(Some(&world.trust_anchor())).unwrap());
    let name = ServerName::try_from("00408c702009").unwrap();
    let tls = within(tokio_rustls::TlsConnector::from(config).connect(name, tcp)).await.unwrap();
    for mut client in [client(plain).await, client(tls).await] {
        for round in 0..3 {
            let sent = vec![round; 100_000];
            let back =
                within(client.send_request(inside(Method::POST, "/echo", sent.clone()))).await.unwrap();
            assert!(within(back.into_body().collect()).await.unwrap().to_bytes() == sent);
        }
        let seen = within(client.send_request(inside(Method::GET, "/headers", ""))).await.unwrap();
        assert!(!text(seen).await.contains("proxy-authorization"));
        // It leads to this device and nowhere else.
        let other = inside(Method::GET, "http://00408c702010/headers", "");
        let refused = within(client.send_request(other)).await.unwrap();
        assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    }
    for (target, expected) in
        [("00408c702009:8080", 403), ("00408c702010:80", 502), ("00408c702010:443", 502)]
    {
        assert_eq!(connect(&world, target).await.0, expected, "{target}");
    }
}

/// Goal: which ports a device has at the proxy is what its access says, survives a restart, and goes with it.
#[tokio::test]
async fn the_ports_are_the_devices_own() {
    let mut world = World::new().await;
    let (device, _) = world.ready("00408C702009").await;
    let ports = json!([{ "port": 8080, "service": "http" }, { "port": 8554, "service": "rtsp" }]);
    set_access(&world, json!({ "ports": ports, "add_credentials": false })).await;
    world.restart().await;
    world.connect(&device).await;
    let get = async |uri: &str| world.send(through(Method::GET, uri, "")).await;
    assert_eq!(get("http://00408c702009:8080/headers").await.status(), StatusCode::OK);
    let refused = get("http://00408c702009/headers").await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    let message = text(refused).await;
    assert!(message.contains("8080") && !message.contains("8554"), "{message}");
    for (target, expected) in
        [("00408c702009:8554", 200), ("00408c702009:8080", 200), ("00408c702009:554", 403)]
    {
        assert_eq!(connect(&world, target).await.0, expected, "{target}");
    }
    let (_, handover) = world.api(Method::GET, &format!("{DEVICE}/handover"), None).await;
    assert_eq!(handover["access"]["ports"], ports);
    for wrong in [
        json!({ "ports": [{ "port": 0, "service": "http" }] }),
        json!({ "ports": [{ "port": 80, "service": "http" }, { "port": 80, "service": "rtsp" }] }),
        json!({ "ports": [{ "port": 80, "service": "telnet" }] }),
        json!({ "ports": (1..=17).map(|port| json!({ "port": port, "service": "http" })).collect::<Vec<_>>() }),
    ] {
        let (status, answer) = world.api(Method::PATCH, DEVICE, Some(json!({ "access": wrong }))).await;
        assert_eq!((status, code(&answer)), (StatusCode::BAD_REQUEST, "bad-request"), "{wrong}");
    }
}

/// Goal: with `add_credentials` a client needs none of the device's own, for short requests, long ones and WebSockets;
/// without, the device's own refusal is the client's.
#[tokio::test]
async fn the_proxy_logs_in_where_it_is_told_to_and_nowhere_else() {
    let world = World::new().await;
    let (device, _) = world.ready("00408C702009").await;
    let guarded = "http://00408c702009/guarded";
    let refused = world.send(through(Method::GET, guarded, "")).await;
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    assert!(refused.headers().contains_key("www-authenticate"), "the client's to answer");

    let access = json!({ "ports": [{ "port": 80, "service": "http" }], "add_credentials": true });
    set_access(&world, access).await;
    let asked = || device.lock.lock().unwrap().asked;
    for round in 0..3 {
        let before = asked();
        let mut request = through(Method::GET, guarded, "");
        // Whatever a client believes the password to be.
        request.headers_mut().insert("authorization", "Basic bm86bm8=".parse().unwrap());
        let answer = world.send(request).await;
        assert_eq!((answer.status(), text(answer).await.as_str()), (StatusCode::OK, "let in"));
        assert_eq!(asked() - before, if round == 0 { 2 } else { 1 }, "the challenge is remembered");
    }
    for size in [10, 60_000, 3_000_000] {
        let sent = vec![5; size];
        let answer =
            world.send(through(Method::POST, "http://00408c702009/guarded-echo", sent.clone())).await;
        assert_eq!(answer.status(), StatusCode::OK, "{size}");
        assert!(within(answer.into_body().collect()).await.unwrap().to_bytes() == sent, "{size}");
    }
    let (head, _) = websocket(&world, "/guarded-ws").await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");

    // A password that is not the device's any more is told as what it is.
    device.lock.lock().unwrap().password = "another".into();
    let answer = world.send(through(Method::GET, guarded, "")).await;
    assert_eq!(answer.status(), StatusCode::BAD_GATEWAY);
    let told = text(answer).await;
    assert!(told.contains("does not let the proxy in") && !told.contains(device::PASSWORD), "{told}");
    // Nothing is sent where nothing was asked.
    let seen = text(world.send(through(Method::GET, "http://00408c702009/headers", "")).await).await;
    assert!(!seen.contains("authorization"), "{seen}");
}

async fn websocket(world: &World, path: &str) -> (String, TcpStream) {
    let mut tcp = TcpStream::connect(world.internal).await.unwrap();
    let head = format!(
        "GET http://00408c702009{path} HTTP/1.1\r\nHost: x\r\nProxy-Authorization: {}\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: chat\r\n\r\n",
        password()
    );
    tcp.write_all(head.as_bytes()).await.unwrap();
    (head_of(&mut tcp).await, tcp)
}

/// Goal: a WebSocket is opened through the proxy and its frames are the two ends' own.
#[tokio::test]
async fn a_websocket_is_passed_on() {
    let world = World::new().await;
    world.ready("00408C702009").await;
    let (head, mut tcp) = websocket(&world, "/ws").await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let lower = head.to_ascii_lowercase();
    // RFC 6455 §1.3's own example.
    assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
    assert!(lower.contains("sec-websocket-protocol: chat") && lower.contains("upgrade: websocket"), "{head}");
    // Masked with zeros, as a client may; the answer is not masked.
    for size in [1usize, 125] {
        let payload = vec![b'x'; size];
        let mut frame = vec![0x82, 0x80 | size as u8, 0, 0, 0, 0];
        frame.extend(&payload);
        tcp.write_all(&frame).await.unwrap();
        let mut back = vec![0; 2 + size];
        within(tcp.read_exact(&mut back)).await.unwrap();
        assert_eq!((back[0], back[1]), (0x82, size as u8));
        assert!(back[2..] == payload);
    }
    // A close goes there and comes back; then the connection ends.
    tcp.write_all(&[0x88, 0x80, 0, 0, 0, 0]).await.unwrap();
    let mut rest = Vec::new();
    within(tcp.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest.first(), Some(&0x88), "{rest:?}");

    let (head, _) = websocket(&world, "/headers").await;
    assert!(head.starts_with("HTTP/1.1 404 "), "the device's own refusal: {head}");
}

/// Goal: an upload may take longer than a device may take to answer, if only it goes on.
#[tokio::test]
async fn a_long_upload_is_not_a_late_answer() {
    let world = World::with(true, |config| config.limits.response_ms = 400).await;
    world.ready("00408C702009").await;
    let pieces = futures_util::stream::unfold(0, async |count: usize| {
        // Slow, not waiting for anything.
        tokio::time::sleep(Duration::from_millis(100)).await;
        (count < 10).then(|| (Ok::<_, Infallible>(Frame::data(Bytes::from(vec![1; 1000]))), count + 1))
    });
    let tcp = TcpStream::connect(world.internal).await.unwrap();
    let (mut sender, connection) =
        within(hyper::client::conn::http1::handshake(TokioIo::new(tcp))).await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "a test's client")]
    tokio::spawn(connection);
    let request = through(Method::POST, "http://00408c702009/count", "");
    let answer =
        within(sender.send_request(request.map(|_| StreamBody::new(Box::pin(pieces))))).await.unwrap();
    assert_eq!((answer.status(), text(answer).await.as_str()), (StatusCode::OK, "10000"));
}
