//! Limits by address and by device: who is beyond one is told what HTTP can tell, nobody else is touched, and it is counted.

use crate::{
    device::Device,
    pressure::{UPGRADE, head, tls},
    world::{World, code, send_from, through, within},
};
use bytes::Bytes;
use homing_base::crowd::Networks;
use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

/// A connection from one of loopback's many addresses.
async fn from(source: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((source, 0).into()).unwrap();
    within(socket.connect(to)).await.unwrap()
}

/// Whether it is closed without a word.
async fn is_closed(mut tcp: TcpStream) -> bool {
    !matches!(within(tcp.read(&mut [0])).await, Ok(1..))
}

/// Goal: an address that connects all the time is turned away before TLS, and a device elsewhere is not.
#[tokio::test]
async fn who_connects_too_often_is_turned_away_and_a_device_elsewhere_is_not() {
    let world = World::with(true, |config| {
        config.limits.handshakes_per_second_per_address = 1;
        config.limits.exempt = Networks::default();
    })
    .await;
    let device = Device::new("00408C702009");
    world.register(&device).await;
    world.dispatcher.vouch(device.serial, device.fingerprint).await;
    // Ten seconds' worth at once.
    let mut kept = Vec::new();
    for _ in 0..10 {
        kept.push(from([127, 0, 0, 2], world.external).await);
    }
    assert!(is_closed(from([127, 0, 0, 2], world.external).await).await);
    assert!(world.metric("homing_tunnel_refused_total{reason=\"too-fast-from-network\"}") >= 1.0);
    world.connect(&device).await;
}

/// Goal: a device that is asked too often is spared, with an answer that says when to ask again; the next one is asked.
#[tokio::test]
async fn requests_to_one_device_are_limited_and_to_the_next_are_not() {
    let world = World::with(true, |config| config.limits.requests_per_second_per_device = 1).await;
    world.ready("00408C702009").await;
    world.ready("00408C70200A").await;
    let mut refused = None;
    for _ in 0..30 {
        let response = world.send(through(Method::GET, "http://00408c702009/headers", "")).await;
        if response.status() == StatusCode::TOO_MANY_REQUESTS {
            refused = Some(response);
            break;
        }
        assert_eq!(response.status(), StatusCode::OK);
    }
    let response = refused.expect("thirty requests at once, where one a second may come");
    assert!(response.headers().contains_key(header::RETRY_AFTER));
    let body = within(response.into_body().collect()).await.unwrap().to_bytes();
    let answer: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(code(&answer), "too-many-requests");
    assert!(answer["error"]["message"].as_str().unwrap().contains("requests_per_second_per_device"));
    assert_eq!(world.metric("homing_tunnel_limited_total{limit=\"requests-per-device\"}"), 1.0);
    assert_eq!(
        world.send(through(Method::GET, "http://00408c70200a/headers", "")).await.status(),
        StatusCode::OK
    );
}

/// Goal: one script in a loop does not keep the VMS out.
#[tokio::test]
async fn requests_of_one_address_are_limited_and_of_the_next_are_not() {
    let world = World::with(true, |config| config.limits.requests_per_second_per_address = 2).await;
    let ask = async |source| {
        let request = Request::get("/healthz").header("host", "x").body(Bytes::new()).unwrap();
        within(send_from(source, world.internal, request)).await
    };
    let mut statuses = Vec::new();
    for _ in 0..40 {
        statuses.push(ask([127, 0, 0, 2]).await.status());
    }
    let passed = statuses.iter().take_while(|status| **status == StatusCode::OK).count();
    assert!((20..40).contains(&passed), "{passed} passed");
    assert_eq!(statuses[passed], StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(ask([127, 0, 0, 3]).await.status(), StatusCode::OK);
    assert!(world.metric("homing_tunnel_limited_total{limit=\"requests-per-address\"}") >= 1.0);
}

/// Goal: connections of one address to the internal one are limited, and the next address finds room.
#[tokio::test]
async fn connections_of_one_address_are_limited_on_the_internal_one() {
    let world = World::with(true, |config| config.limits.internal_connections_per_address = 3).await;
    let mut kept = Vec::new();
    for _ in 0..3 {
        kept.push(from([127, 0, 0, 2], world.internal).await);
    }
    assert!(is_closed(from([127, 0, 0, 2], world.internal).await).await);
    assert_eq!(world.metric("homing_tunnel_limited_total{limit=\"connections-per-address\"}"), 1.0);
    let (status, _) = world.api(Method::GET, "/api/v1/devices", None).await;
    assert_eq!(status, StatusCode::OK);
}

/// Goal: a head without end is answered 431 at both addresses.
#[tokio::test]
async fn heads_that_are_too_long_are_refused_by_name() {
    let world = World::new().await;
    let (device, _) = world.ready("00408C702009").await;
    let mut inside = TcpStream::connect(world.internal).await.unwrap();
    let long = [b"GET / HTTP/1.1\r\nHost: x\r\nX: ".as_slice(), &[b'a'; 20_000]].concat();
    inside.write_all(&long).await.unwrap();
    assert!(within(head(&mut inside)).await.unwrap().starts_with("HTTP/1.1 431 "));

    let mut outside = within(tls(device.tls(&world.trust_anchor()), world.external)).await.unwrap();
    let long = [&UPGRADE[..UPGRADE.len() - 2], b"X: ", &[b'a'; 10_000]].concat();
    outside.write_all(&long).await.unwrap();
    assert!(within(head(&mut outside)).await.unwrap().starts_with("HTTP/1.1 431 "));
    drop(outside);
    let counted = async {
        while !world.ops.metrics().contains("homing_tunnel_refused_total{reason=\"not-an-uplink\"} 1") {
            tokio::task::yield_now().await;
        }
    };
    within(counted).await;
}
