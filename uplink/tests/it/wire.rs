//! TLS under an uplink: against the other API of rustls, through networks that cut and spoil, and with TLS 1.2.

use crate::world::*;
use homing_uplink::*;
use rustls::CipherSuite;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

const UPGRADE: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c-reverse\r\n\r\n";

/// A device's TLS configuration with one cipher suite only.
fn with_suite(server: &Server, device: &Identity, suite: CipherSuite) -> rustls::ClientConfig {
    let mut provider = (*crypto_provider()).clone();
    provider.cipher_suites.retain(|candidate| candidate.suite() == suite);
    rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots_from_pem(server.identity.certificate_pem.as_bytes()).expect("anchors"))
        .with_client_auth_cert(vec![device.certificate.clone()], device.private_key())
        .expect("a configuration")
}

/// Goal: what we export is what rustls exports, with either hash; in TLS 1.2 we say that there is nothing.
#[tokio::test]
async fn the_exporter_is_that_of_rustls() {
    let mut server = Server::start_with_policy(TlsPolicy::Tls12AndUp).await;
    let device = Identity::device("00408C702009");
    for (suite, exports) in [
        (CipherSuite::TLS13_AES_128_GCM_SHA256, true),
        (CipherSuite::TLS13_AES_256_GCM_SHA384, true),
        (CipherSuite::TLS13_CHACHA20_POLY1305_SHA256, true),
        (CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, false),
    ] {
        let tcp = TcpStream::connect(server.address).await.expect("a connection");
        let connector = TlsConnector::from(Arc::new(with_suite(&server, &device, suite)));
        let mut tls = connector.connect("localhost".try_into().expect("a name"), tcp).await.expect("TLS");
        tls.write_all(UPGRADE).await.expect("written");
        let exporter = server.next().await.exporter();
        assert_eq!(exporter.export(b"EXPORTER-x", b""), Err(ExporterError), "the arrival was dropped");

        let tcp = TcpStream::connect(server.address).await.expect("a connection");
        let mut tls = connector.connect("localhost".try_into().expect("a name"), tcp).await.expect("TLS");
        tls.write_all(UPGRADE).await.expect("written");
        let arrival = server.next().await;
        for (label, context) in [(b"EXPORTER-x".as_slice(), b"context".as_slice()), (b"EXPORTER-y", b"")] {
            let theirs =
                tls.get_ref().1.export_keying_material([0; 32], label, Some(context)).expect("exported");
            assert_eq!(
                arrival.exporter().export(label, context).ok(),
                exports.then_some(theirs),
                "{suite:?}"
            );
        }
    }
    server.end().await;
}

/// Goal: a device that speaks TLS 1.2 only is served where the policy allows it, and refused where not.
#[tokio::test]
async fn old_devices_are_served_where_the_policy_allows_it() {
    let suite = CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256;
    let device = Identity::device("00408C702009");
    for policy in [TlsPolicy::Tls12AndUp, TlsPolicy::Tls13] {
        let mut server = Server::start_with_policy(policy).await;
        let mut dialer = server.dialer(Carrier::Native, &device);
        dialer.tls = Arc::new(with_suite(&server, &device, suite));
        let dialing = server.tasks.spawn(async move { dialer.dial().await });
        if policy == TlsPolicy::Tls12AndUp {
            let (uplink, driver) = server.next().await.accept(Default::default()).await.expect("an uplink");
            let dialed = within("an uplink", dialing).await.expect("no panic").expect("an uplink");
            let serving = dialed.serve(Arc::new(answer), Default::default(), server.stop.clone());
            let (serving, driving) =
                (server.tasks.spawn(serving), server.tasks.spawn(driver.run(server.stop.clone())));
            within("an answer", uplink.request(get("/hello"))).await.expect("an answer");
            server.stop.cancel();
            within("both ends", async { (serving.await, driving.await) }).await.0.expect("no panic");
        } else {
            let error = within("the refusal", dialing).await.expect("no panic").expect_err("no TLS 1.2");
            assert!(error.to_string().contains("ProtocolVersion"), "{error}");
        }
        server.end().await;
    }
}

/// A relay to the server, which handles what passes with `spoil`, in pieces of `piece` bytes.
async fn relay(
    server: &Server,
    piece: usize,
    spoil: impl Fn(usize, &mut [u8]) + Clone + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (target, tasks, stop) = (server.address, server.tasks.clone(), server.stop.clone());
    server.tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
        while let Ok((device, _)) = listener.accept().await {
            let server = TcpStream::connect(target).await.expect("the server");
            device.set_nodelay(true).expect("set");
            server.set_nodelay(true).expect("set");
            let (device, server) = (device.into_split(), server.into_split());
            for (mut from, mut to) in [(device.0, server.1), (server.0, device.1)] {
                let spoil = spoil.clone();
                tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
                    let (mut buffer, mut passed) = (vec![0; piece], 0);
                    while let Ok(count @ 1..) = from.read(&mut buffer).await {
                        spoil(passed, &mut buffer[..count]);
                        passed += count;
                        if to.write_all(&buffer[..count]).await.is_err() {
                            break;
                        }
                        tokio::task::yield_now().await;
                    }
                }));
            }
        }
    }));
    address
}

/// Goal: wherever the network cuts, TLS and everything above it come through whole.
#[tokio::test]
async fn uplinks_survive_a_network_that_cuts_everything_to_pieces() {
    let mut server = Server::start().await;
    let device = Identity::device("00408C702009");
    for (piece, carrier) in
        [(1, Carrier::Native), (1, Carrier::WebSocket), (7, Carrier::Native), (1500, Carrier::WebSocket)]
    {
        let address = relay(&server, piece, |_, _| {}).await;
        let mut dialer = server.dialer(carrier, &device);
        let scheme = if carrier == Carrier::Native { "https" } else { "wss" };
        dialer.address = format!("{scheme}://localhost:{}/", address.port()).parse().expect("an address");
        let dialing = server.tasks.spawn(async move { dialer.dial().await });
        let (uplink, driver) = server.next().await.accept(Default::default()).await.expect("an uplink");
        let dialed = within("an uplink", dialing).await.expect("no panic").expect("an uplink");
        let stop = CancellationToken::new();
        let serving =
            server.tasks.spawn(dialed.serve(Arc::new(answer), Default::default(), CancellationToken::new()));
        let driving = server.tasks.spawn(driver.run(stop.clone()));
        let data: bytes::Bytes = (0..8_000_u32).map(|n| (n % 251) as u8).collect();
        let request = http::Request::post("/echo").body(data.clone()).expect("a request");
        let echo = within("an answer", uplink.request(request)).await.expect("an answer").into_body();
        assert!(within("the echo", echo.collect(100_000)).await.expect("a body") == data);
        stop.cancel();
        assert_eq!(within("the end", driving).await.expect("no panic"), EndReason::Stopped);
        assert_eq!(within("the end", serving).await.expect("no panic"), EndReason::PeerClosed);
    }
    server.end().await;
}

/// Goal: a spoilt byte anywhere ends its connection with an error at both ends, and nothing else.
#[tokio::test]
async fn a_spoilt_byte_ends_its_connection_and_nothing_else() {
    let mut server = Server::start().await;
    let device = Identity::device("00408C702009");
    // Handshake, upgrade and HTTP/2, each at many places; both directions are spoilt.
    for place in (0..120_usize).map(|n| n * 37) {
        let spoil = move |passed: usize, bytes: &mut [u8]| {
            if let Some(byte) = place.checked_sub(passed).and_then(|at: usize| bytes.get_mut(at)) {
                *byte ^= 0x55;
            }
        };
        let address = relay(&server, 4096, spoil).await;
        let mut dialer = server.dialer(Carrier::Native, &device);
        dialer.address = UplinkAddress::new("localhost", address.port()).expect("an address");
        let device_end = server.tasks.spawn(async move {
            let dialed = dialer.dial().await.map_err(|error| error.to_string())?;
            Ok::<_, String>(
                dialed.serve(Arc::new(answer), Default::default(), CancellationToken::new()).await,
            )
        });
        if let Ok(arrival) = within("an arrival", server.arrivals.recv()).await.expect("the loop runs") {
            let (uplink, driver) = arrival.accept(Default::default()).await.expect("an uplink");
            let driving = server.tasks.spawn(driver.run(CancellationToken::new()));
            // Enough to pass every place.
            let request = http::Request::post("/echo").body(vec![7; 6000].into()).expect("a request");
            if let Ok(response) = within("an answer", uplink.request(request)).await {
                let _ = within("the body", response.into_body().collect(10_000)).await;
            }
            uplink.close(EndReason::Stopped);
            within("the end", driving).await.expect("no panic");
        }
        let _ = within("the end", device_end).await.expect("no panic");
    }
    let pair = server.default_pair(Carrier::Native).await;
    within("an answer", pair.uplink.request(get("/hello"))).await.expect("an answer");
    pair.end().await;
    server.end().await;
}

/// Goal: a peer that changes its keys in the middle is followed (RFC 8446 §4.6.3).
#[tokio::test]
async fn a_key_update_is_followed() {
    let mut server = Server::start().await;
    let mut tls = raw_tls(&server, &Identity::device("00408C702009")).await;
    tls.write_all(&UPGRADE[..30]).await.expect("written");
    tls.get_mut().1.refresh_traffic_keys().expect("TLS 1.3");
    tls.write_all(&UPGRADE[30..]).await.expect("written");
    let arrival = server.next().await;
    arrival.refuse(403, "but with new keys").await;
    let mut answer = String::new();
    within("an answer", tls.read_to_string(&mut answer)).await.expect("an orderly close");
    assert!(answer.ends_with("but with new keys"), "{answer}");
    server.end().await;
}

/// Goal: a driver or a dialled uplink that is dropped closes its connection, whoever holds an exporter or a handle.
#[tokio::test]
async fn what_is_dropped_is_closed() {
    let mut server = Server::start().await;
    let dialer = server.dialer(Carrier::Native, &Identity::device("00408C702009"));
    for drop_driver in [true, false] {
        let dialer = dialer.clone();
        let dialing = server.tasks.spawn(async move { dialer.dial().await });
        let arrival = server.next().await;
        let exporter = arrival.exporter();
        let (uplink, driver) = arrival.accept(Default::default()).await.expect("an uplink");
        let dialed = within("an uplink", dialing).await.expect("no panic").expect("an uplink");
        let device_exporter = dialed.exporter();
        if drop_driver {
            drop(driver);
            assert_eq!(within("the end", uplink.closed()).await, EndReason::Stopped);
            assert_eq!(exporter.export(b"EXPORTER-x", b""), Err(ExporterError));
            let serving = dialed.serve(Arc::new(answer), Default::default(), CancellationToken::new());
            let reason = within("the end", serving).await;
            assert!(matches!(reason, EndReason::PeerClosed | EndReason::Io(_)), "{reason}");
        } else {
            drop(dialed);
            assert_eq!(device_exporter.export(b"EXPORTER-x", b""), Err(ExporterError));
            let reason = within("the end", driver.run(CancellationToken::new())).await;
            assert!(matches!(reason, EndReason::PeerClosed | EndReason::Io(_)), "{reason}");
        }
    }
    server.end().await;
}

/// Goal: on a `wss:` uplink pings are answered, and a close frame is an orderly end.
#[tokio::test]
async fn a_websocket_carrier_answers_pings_and_ends_with_a_close() {
    let mut server = Server::start().await;
    let mut tls = raw_tls(&server, &Identity::device("00408C702009")).await;
    let head =
        b"GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: h2c-reverse\r\n\r\n";
    tls.write_all(head).await.expect("written");
    let (_uplink, driver) = server.next().await.accept(Default::default()).await.expect("an uplink");
    let driving = server.tasks.spawn(driver.run(CancellationToken::new()));
    tls.write_all(b"\x89\x82\0\0\0\0hi\x88\x82\0\0\0\0\x03\xe8after").await.expect("written");
    assert_eq!(within("the end", driving).await.expect("no panic"), EndReason::PeerClosed);
    let mut received = Vec::new();
    within("an orderly close", tls.read_to_end(&mut received)).await.expect("an orderly close");
    assert!(received.ends_with(b"\x8a\x02hi\x88\x02\x03\xe8"), "{received:?}");
    server.end().await;
}
