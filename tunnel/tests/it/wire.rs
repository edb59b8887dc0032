//! How the internal address is spoken to: HTTP and HTTPS, HTTP/1.1 and HTTP/2, with and without credentials.

use crate::{
    device::Device,
    world::{PASSWORD, USER, World, code, form, password, send_from, text, within},
};
use bytes::Bytes;
use homing_base::tls::{Https, client_config};
use homing_tunnel::Plain;
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, ext::Protocol};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use serde_json::Value;
use std::sync::Arc;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

/// TLS to the internal address, as a client that trusts the tunnel server's CA.
pub async fn tls(world: &World, alpn: &[u8]) -> TlsStream<TcpStream> {
    let mut config = client_config(Some(&world.trust_anchor())).unwrap();
    config.alpn_protocols = vec![alpn.to_vec()];
    let tcp = TcpStream::connect(world.internal).await.unwrap();
    let name = ServerName::try_from(world.internal.ip().to_string()).unwrap();
    let tls = within(tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp)).await.unwrap();
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(alpn));
    tls
}

type Client2 = hyper::client::conn::http2::SendRequest<Full<Bytes>>;

/// HTTP/2 over TLS.
async fn http2(world: &World) -> Client2 {
    let io = TokioIo::new(tls(world, b"h2").await);
    let (sender, connection) =
        within(hyper::client::conn::http2::handshake(TokioExecutor::new(), io)).await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "a test's client")]
    tokio::spawn(connection);
    sender
}

async fn ask(client: &mut Client2, request: Request<Bytes>) -> Response<Incoming> {
    let answered = within(client.send_request(request.map(Full::new))).await.unwrap();
    assert_eq!(answered.version(), Version::HTTP_2);
    answered
}

fn through(method: Method, uri: &str) -> http::request::Builder {
    Request::builder().method(method).uri(uri).header("proxy-authorization", password())
}

/// Goal: by HTTP/2 the API and the proxy are what they are by HTTP/1.1, many requests at once on one connection.
#[tokio::test]
async fn api_and_proxy_speak_http_2() {
    let world = World::new().await;
    world.ready("00408C702009").await;
    let mut client = http2(&world).await;
    let api = Request::get(format!("https://{}/api/v1/devices", world.internal));
    let api = api.header("authorization", password()).body(Bytes::new()).unwrap();
    let devices: Value = serde_json::from_str(&text(ask(&mut client, api).await).await).unwrap();
    assert_eq!(devices[0]["serial"], "00408C702009");
    let stranger = Request::get(format!("https://{}/api/v1/devices", world.internal));
    let refused = ask(&mut client, stranger.body(Bytes::new()).unwrap()).await;
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);

    // An answer without an end beside others.
    let endless = through(Method::GET, "http://00408c702009/endless").body(Bytes::new()).unwrap();
    let mut endless = ask(&mut client, endless).await.into_body();
    let sent = Bytes::from(vec![7; 300_000]);
    let echo = through(Method::POST, "http://4.00408c702009/echo").body(sent.clone()).unwrap();
    let back = ask(&mut client, echo).await.into_body();
    assert!(within(back.collect()).await.unwrap().to_bytes() == sent);
    assert!(within(endless.frame()).await.unwrap().unwrap().into_data().unwrap().len() > 1000);
    let denied = Request::get("http://00408c702009/headers").body(Bytes::new()).unwrap();
    assert_eq!(ask(&mut client, denied).await.status(), StatusCode::PROXY_AUTHENTICATION_REQUIRED);

    // CONNECT is a stream.
    let connect = through(Method::CONNECT, "00408c702009:554").body(Bytes::new()).unwrap();
    let mut answer = ask(&mut client, connect).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let mut rtsp = TokioIo::new(within(hyper::upgrade::on(&mut answer)).await.unwrap());
    rtsp.write_all(b"OPTIONS * RTSP/1.0\r\n\r\n").await.unwrap();
    let mut back = [0; 22];
    within(rtsp.read_exact(&mut back)).await.unwrap();
    assert_eq!(&back, b"OPTIONS * RTSP/1.0\r\n\r\n");
    let elsewhere = through(Method::CONNECT, "127.0.0.1:554").body(Bytes::new()).unwrap();
    assert_eq!(ask(&mut client, elsewhere).await.status(), StatusCode::FORBIDDEN);
}

/// Goal: by HTTP/2, too, a WebSocket is opened through the proxy (RFC 8441 §4), its frames are the two ends' own, and nobody
/// opens one without the password.
#[tokio::test]
async fn a_websocket_is_passed_on_by_http_2() {
    let world = World::new().await;
    world.ready("00408C702009").await;
    let mut client = http2(&world).await;
    // Its answer comes behind the server's settings, which allow extended CONNECT.
    let api = Request::get(format!("https://{}/api/v1/server", world.internal));
    ask(&mut client, api.body(Bytes::new()).unwrap()).await;
    let websocket = |path: &str, protocol: &'static str| {
        Request::connect(format!("http://00408c702009{path}"))
            .extension(Protocol::from_static(protocol))
            .header("sec-websocket-version", "13")
            .header("sec-websocket-protocol", "chat")
    };
    let with_password = |request: http::request::Builder| {
        request.header("proxy-authorization", password()).body(Bytes::new()).unwrap()
    };
    let denied = ask(&mut client, websocket("/ws", "websocket").body(Bytes::new()).unwrap()).await;
    assert_eq!(denied.status(), StatusCode::PROXY_AUTHENTICATION_REQUIRED);
    let other = ask(&mut client, with_password(websocket("/ws", "connect-udp"))).await;
    assert_eq!(other.status(), StatusCode::FORBIDDEN);
    let missing = ask(&mut client, with_password(websocket("/headers", "websocket"))).await;
    assert_eq!(missing.status(), StatusCode::NOT_FOUND, "the device's own refusal");

    let mut answer = ask(&mut client, with_password(websocket("/ws", "websocket"))).await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["sec-websocket-protocol"], "chat");
    for of_http_1 in ["upgrade", "connection", "sec-websocket-accept"] {
        assert!(!answer.headers().contains_key(of_http_1), "{answer:?}");
    }
    let mut stream = TokioIo::new(within(hyper::upgrade::on(&mut answer)).await.unwrap());
    // Masked with zeros, as a client may; the answer is not masked.
    for size in [1_usize, 125] {
        let payload = vec![b'x'; size];
        stream.write_all(&[&[0x82, 0x80 | size as u8, 0, 0, 0, 0][..], &payload].concat()).await.unwrap();
        let mut back = vec![0; 2 + size];
        within(stream.read_exact(&mut back)).await.unwrap();
        assert_eq!((back[0], back[1]), (0x82, size as u8));
        assert!(back[2..] == payload);
    }
    // A close goes there and comes back; then the stream ends, and the connection does not.
    stream.write_all(&[0x88, 0x80, 0, 0, 0, 0]).await.unwrap();
    let mut rest = Vec::new();
    within(stream.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest.first(), Some(&0x88), "{rest:?}");
    let after = through(Method::GET, "http://00408c702009/headers").body(Bytes::new()).unwrap();
    assert_eq!(ask(&mut client, after).await.status(), StatusCode::OK);
}

/// Goal: HTTP/2 without TLS, by its preface; however its bytes come, and not mistaken for a method that begins alike.
#[tokio::test]
async fn http_2_is_known_by_its_preface() {
    let world = World::new().await;
    let tcp = TcpStream::connect(world.internal).await.unwrap();
    let (mut client, connection) =
        within(hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp))).await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "a test's client")]
    tokio::spawn(connection);
    let api = Request::get(format!("http://{}/api/v1/server", world.internal));
    let api = api.header("authorization", password()).body(Bytes::new()).unwrap();
    assert_eq!(ask(&mut client, api).await.status(), StatusCode::OK);

    for beginning in ["P", "PR", "PRO"] {
        let mut tcp = TcpStream::connect(world.internal).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        tcp.write_all(beginning.as_bytes()).await.unwrap();
        tokio::task::yield_now().await;
        let rest = &"PROPFIND /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"[beginning.len()..];
        tcp.write_all(rest.as_bytes()).await.unwrap();
        let mut answer = String::new();
        within(tcp.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    }
}

/// Goal: RTSP inside CONNECT inside TLS is the same bytes as without.
#[tokio::test]
async fn connect_works_inside_https() {
    let world = World::new().await;
    world.ready("00408C702009").await;
    let mut tls = tls(&world, b"http/1.1").await;
    let head = format!(
        "CONNECT 00408c702009:554 HTTP/1.1\r\nHost: x\r\nProxy-Authorization: {}\r\n\r\n",
        password()
    );
    tls.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(within(tls.read_u8()).await.unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 200 "));
    let sent: Vec<u8> = (0..200_000u32).map(|index| (index / 7) as u8).collect();
    let (mut reader, mut writer) = tokio::io::split(tls);
    let mut back = vec![0; sent.len()];
    let (wrote, read) = within(async {
        tokio::join!(
            async {
                writer.write_all(&sent).await?;
                writer.flush().await
            },
            reader.read_exact(&mut back)
        )
    })
    .await;
    wrote.unwrap();
    read.unwrap();
    assert!(back == sent);
}

/// Goal: who may not speak plain HTTP is told what to do instead, and gets nothing, right password or not.
#[tokio::test]
async fn plain_http_is_refused_in_words_where_it_is_not_allowed() {
    let world = World::with(true, |config| config.vms.plain = Plain::Nobody).await;
    let (status, answer) = world.api(Method::GET, "/api/v1/server", None).await;
    assert_eq!((status, code(&answer)), (StatusCode::FORBIDDEN, "https-only"));
    let proxied = through(Method::GET, "http://00408c702009/headers").body(Bytes::new()).unwrap();
    assert_eq!(world.send(proxied).await.status(), StatusCode::FORBIDDEN);
    let mut client = http2(&world).await;
    let api = Request::get(format!("https://{}/api/v1/server", world.internal));
    let api = api.header("authorization", password()).body(Bytes::new()).unwrap();
    assert_eq!(ask(&mut client, api).await.status(), StatusCode::OK);
    drop(world);

    let world = World::with(true, |config| config.vms.tls = Https::Off).await;
    assert_eq!(world.api(Method::GET, "/api/v1/server", None).await.0, StatusCode::OK);
}

/// Goal: without credentials everything works but secrets, and no page from elsewhere has a browser do things here.
#[tokio::test]
async fn without_credentials_everybody_is_let_in_and_nobody_is_shown_a_secret() {
    let open = |config: &mut homing_tunnel::Config| {
        config.vms.credentials = false;
        config.vms.names = vec!["tunnel".into()];
    };
    let world = World::with(true, open).await;
    let registered =
        world.api(Method::POST, "/api/v1/devices", Some(form("00408C702010", crate::device::OAK)));
    assert_eq!(registered.await.0, StatusCode::CREATED);
    let device = Device::new("00408C702009");
    world.make_ready(&device).await;
    let get = async |uri: &str, headers: &[(&str, &str)]| {
        let mut request =
            Request::get(uri).header("host", headers.first().map_or("127.0.0.1", |(host, _)| host));
        for (name, value) in headers.iter().skip(1) {
            request = request.header(*name, *value);
        }
        within(send_from([127, 0, 0, 50], world.internal, request.body(Bytes::new()).unwrap())).await.status()
    };
    assert_eq!(get("/api/v1/devices", &[]).await, StatusCode::OK);
    assert_eq!(get("http://00408c702009/headers", &[]).await, StatusCode::OK);
    for secret in ["credentials", "handover"] {
        let path = format!("/api/v1/devices/00408C702009/{secret}");
        assert_eq!(get(&path, &[]).await, StatusCode::UNAUTHORIZED);
        let right = homing_base::client::basic(&homing_protocol::secret::Credentials::new(USER, PASSWORD));
        let known = [("127.0.0.1", ""), ("authorization", right.as_str())];
        assert_eq!(get(&path, &known).await, StatusCode::OK);
    }
    assert_eq!(get("/api/v1/devices", &[("rebound.example", "")]).await, StatusCode::FORBIDDEN);
    assert_eq!(get("/api/v1/devices", &[("localhost:8081", "")]).await, StatusCode::OK);
}
