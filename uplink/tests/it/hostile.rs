//! Garbage, silence and lies at both ends: a clear error for whoever can act on it, and nothing else.

use crate::world::*;
use bytes::Bytes;
use homing_uplink::*;
use http::{HeaderMap, Response};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

const UPGRADE: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c-reverse\r\n\r\n";

/// Goal: a hundred peers that connect and say nothing do not delay the device after them.
#[tokio::test]
async fn a_hundred_silent_connections_do_not_delay_the_next() {
    let mut server = Server::start().await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(server.address).await.expect("a connection"));
    }
    let began = std::time::Instant::now();
    let pair = server.default_pair(Carrier::Native).await;
    within("an answer", pair.uplink.request(get("/hello"))).await.expect("an answer");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    pair.end().await;
    server.end().await;
}

/// Goal: silence ends with the deadline, at every stage.
#[tokio::test]
async fn silence_is_cut_off_at_every_stage() {
    let limits = AcceptLimits { deadline: Duration::from_millis(200), ..Default::default() };
    let mut server = Server::start_with(TlsPolicy::Tls13, limits, 10).await;
    let mut tcp = TcpStream::connect(server.address).await.expect("a connection");
    let error =
        within("the deadline", server.arrivals.recv()).await.expect("the loop runs").expect_err("silence");
    assert!(matches!(error, AcceptError::Timeout { .. }), "{error}");
    assert_eq!(within("the close", tcp.read(&mut [0])).await.unwrap_or(0), 0);

    let mut tls = raw_tls(&server, &Identity::device("00408C702009")).await;
    tls.write_all(&UPGRADE[..20]).await.expect("written");
    let error = within("the deadline", server.arrivals.recv())
        .await
        .expect("the loop runs")
        .expect_err("half a head");
    assert!(matches!(error, AcceptError::Timeout { .. }), "{error}");
    server.end().await;
}

/// Goal: what is not TLS, or not an uplink, is refused with what is wrong.
#[tokio::test]
async fn garbage_is_refused_by_name() {
    let mut server = Server::start().await;
    let mut tcp = TcpStream::connect(server.address).await.expect("a connection");
    tcp.write_all(&[b'x'; 3000]).await.expect("written");
    let error =
        within("an error", server.arrivals.recv()).await.expect("the loop runs").expect_err("garbage");
    assert!(matches!(error, AcceptError::Tls { .. }), "{error}");

    let device = Identity::device("00408C702009");
    for (head, status, what) in [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), "426", "Connection"),
        (b"\x00\x01\x02\r\n\r\n".to_vec(), "400", "not an HTTP"),
        (vec![b'A'; 9000], "431", "longer than"),
        ([b"GET / HTTP/1.1\r\nX: ".to_vec(), vec![b'a'; 9000]].concat(), "431", "longer than"),
    ] {
        let mut tls = raw_tls(&server, &device).await;
        tls.write_all(&head).await.expect("written");
        let mut answer = Vec::new();
        within("an answer", tls.read_to_end(&mut answer)).await.expect("an orderly close");
        let answer = String::from_utf8(answer).expect("text");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(what), "{answer}");
        let error =
            within("an error", server.arrivals.recv()).await.expect("the loop runs").expect_err("garbage");
        assert!(error.to_string().contains(what), "{error}");
    }

    let mut tls = raw_tls(&server, &device).await;
    tls.write_all(&UPGRADE[..30]).await.expect("written");
    tls.shutdown().await.expect("closed");
    let error =
        within("an error", server.arrivals.recv()).await.expect("the loop runs").expect_err("half a head");
    assert!(matches!(error, AcceptError::Gone { .. }), "{error}");
    server.end().await;
}

/// Goal: a device that is admitted and then talks nonsense ends its own uplink.
#[tokio::test]
async fn nonsense_after_the_upgrade_ends_the_uplink() {
    let mut server = Server::start().await;
    let device = Identity::device("00408C702009");
    let websocket =
        b"GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: h2c-reverse\r\n\r\n";
    let lie = [[0x82, 0xFF].as_slice(), &[0xFF; 8], &[0; 4]].concat();
    let text = [0x81, 0x80, 0, 0, 0, 0];
    for (head, nonsense, what) in [
        (UPGRADE, [0xFF; 100].as_slice(), "HTTP/2"),
        (websocket, &lie, "claims 18446744073709551615 bytes"),
        (websocket, &text, "text frame"),
        (websocket, &[0x82, 0x01, 0], "not masked"),
    ] {
        let mut tls = raw_tls(&server, &device).await;
        tls.write_all(head).await.expect("written");
        let (_uplink, driver) = server.next().await.accept(Default::default()).await.expect("an uplink");
        tls.write_all(nonsense).await.expect("written");
        let reason = within("the end", driver.run(CancellationToken::new())).await;
        assert!(reason.to_string().contains(what), "{reason}");
    }
    server.end().await;
}

/// Goal: a device whose WebSocket lies breaks that stream and no other.
#[tokio::test]
async fn a_websocket_that_lies_breaks_alone() {
    async fn lie(incoming: Incoming) {
        let bytes: &[u8] = match incoming.request.uri().path() {
            "/text" => &[0x81, 0x02, b'h', b'i'],
            "/long" => &[0x82, 0x7F, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF],
            "/masked" => &[0x82, 0x81, 1, 2, 3, 4, 5],
            "/short" => &[0x82, 0x05, b'h', b'i'],
            _ => return answer(incoming).await,
        };
        let mut sender = incoming.respond_streaming(Response::new(())).expect("sent");
        sender.send(Bytes::from_static(bytes)).await.expect("sent");
        sender.finish().expect("sent");
    }
    let mut server = Server::start().await;
    let pair = server.pair(Carrier::Native, Default::default(), lie).await;
    for (path, what) in
        [("/text", "text frame"), ("/long", "claims"), ("/masked", "masked"), ("/short", "unexpected end")]
    {
        let mut stream = pair.uplink.open_websocket(path, "x", HeaderMap::new()).await.expect("a WebSocket");
        let error = within("an error", stream.read_to_end(&mut Vec::new())).await.expect_err("a lie");
        assert!(error.to_string().contains(what), "{path}: {error}");
        within("an answer", pair.uplink.request(get("/hello"))).await.expect("an answer");
    }
    pair.end().await;
    server.end().await;
}

/// Goal: a device tells a server that is none from one that refuses.
#[tokio::test]
async fn a_device_names_what_is_no_uplink_server() {
    let identity = Identity::server();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(identity.server_config(TlsPolicy::Tls13)));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let device = Identity::device("00408C702009");
    let address = UplinkAddress::new("localhost", port).expect("an address");
    let dialer = Dialer::new(address, device.client_config(&identity));
    for (answer, what) in [
        (b"SSH-2.0-x\r\n\r\n".as_slice(), "not an HTTP/1.1 head"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "does not change the protocol"),
        (b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", "does not change the protocol"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 1000000\r\n\r\ntry la\x1bter", "503: try la ter"),
        (b"", "closed the connection"),
    ] {
        let serving = async {
            let (tcp, _) = listener.accept().await.expect("a connection");
            let mut tls = acceptor.accept(tcp).await.expect("TLS");
            assert!(tls.read(&mut [0; 1000]).await.expect("a head") > 0);
            tls.write_all(answer).await.expect("written");
            tls.shutdown().await.expect("closed");
            let _ = tls.read(&mut [0]).await;
        };
        let (error, ()) = within("an error", async { tokio::join!(dialer.dial(), serving) }).await;
        let error = error.expect_err("no uplink server").to_string();
        assert!(error.contains(what), "{error}");
    }
    let silent = Dialer { deadline: Duration::from_millis(200), ..dialer };
    let error = silent.dial().await.expect_err("silence").to_string();
    assert!(error.contains("TLS handshake"), "{error}");
}
