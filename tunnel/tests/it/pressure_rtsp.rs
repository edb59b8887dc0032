//! The RTSP gateway under pressure: what some do, others do not notice, and it costs no more than was agreed.

use crate::{
    gateway::{gateway, world},
    player::{Player, picture},
    world::within,
};
use homing_media::rtsp::Method;
use homing_tunnel::Config;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};

/// The goal: clients that say nothing, or a byte now and then, or OPTIONS for ever, are given up after the time that they
/// have for a password; meanwhile somebody else is served as if they were not there.
#[tokio::test]
async fn slow_loris_is_given_up_and_nobody_notices() {
    fn impatient(config: &mut Config) {
        gateway(config);
        config.gateway.greeting_ms = 1500;
    }
    let (world, device, camera) = world(impatient).await;
    let address = world.rtsp.unwrap();
    let mut idlers = tokio::task::JoinSet::new();
    for number in 0..300 {
        idlers.spawn(async move {
            let mut tcp = TcpStream::connect(address).await.unwrap();
            let begun = Instant::now();
            let request = b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n";
            let mut answers = [0; 512];
            for turn in 0.. {
                let sent = match number % 3 {
                    0 => Ok(()),
                    1 => tcp.write_all(&request[turn % 10..turn % 10 + 1]).await,
                    _ => tcp.write_all(request).await,
                };
                let read = tokio::time::timeout(Duration::from_millis(100), tcp.read(&mut answers)).await;
                if sent.is_err() || matches!(read, Ok(Ok(0) | Err(_))) {
                    break;
                }
            }
            begun.elapsed()
        });
    }
    let begun = Instant::now();
    let mut player = Player::new(&world, &device).await;
    tokio::join!(player.play(), async {
        camera.plays(1).await;
        camera.picture(1, true);
    });
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    let mut number = 1;
    while let Some(ended) = tokio::time::timeout(Duration::from_millis(20), idlers.join_next())
        .await
        .unwrap_or(Some(Ok(Duration::ZERO)))
    {
        let lived = ended.unwrap();
        assert!(lived < Duration::from_secs(6), "{lived:?}");
        number += 1;
        let sent = Instant::now();
        camera.picture(number, false);
        while player.picture().await.1 != number {}
        assert!(sent.elapsed() < Duration::from_millis(500), "{:?}", sent.elapsed());
    }
    assert_eq!(world.metric("homing_tunnel_gateway_connections"), 1.0);
}

/// The goal: a viewer that never reads is dropped after its time, one that is slow goes on at a key picture, with
/// everything that it missed counted; a third one beside them gets every packet, and the camera never waits. What is kept
/// for all of them is bounded by the configuration, and nothing is when they have gone.
#[tokio::test]
async fn a_viewer_that_does_not_read_holds_up_nobody() {
    fn impatient(config: &mut Config) {
        gateway(config);
        config.gateway.stalled_ms = 3000;
    }
    let (world, device, camera) = world(impatient).await;
    let mut good = Player::new(&world, &device).await;
    tokio::join!(good.play(), async {
        camera.plays(1).await;
        camera.picture(1, true);
    });
    let (mut slow, mut never) = (Player::new(&world, &device).await, Player::new(&world, &device).await);
    slow.play().await;
    never.play().await;
    assert_eq!(world.metric("homing_tunnel_gateway_viewers"), 3.0);

    // 30 MB: more than any buffer on the way holds.
    let (mut sequence, mut last) = (None, 1);
    let queued = || world.metric("homing_tunnel_gateway_queued_bytes");
    let mut most = 0.0_f64;
    for number in 2..1000 {
        camera.picture_of(number, number % 50 == 0, 30_000);
        while last != number {
            let (next, picture) = good.picture().await;
            assert!(sequence.is_none_or(|before: u16| before.wrapping_add(1) == next), "at {picture}");
            (sequence, last) = (Some(next), picture);
        }
        most = most.max(queued());
    }
    // One stream, and for each viewer what is gathered at once and a unit, 64 KiB each.
    let bound = world.config.gateway.kept_bytes + 3 * 2 * 65_536;
    assert!(most <= bound as f64, "{most} bytes were kept, where {bound} are allowed");
    assert!(most > 1e6, "{most} bytes: it was not weighed");
    // The slow one reads on: what was in its way, then a gap, then a key picture's first packet.
    let (mut before, mut gaps) = (slow.picture().await, 0);
    while before.1 != 999 {
        let packet = slow.packet().await.unwrap();
        let now = picture(&packet);
        if now.0 != before.0.wrapping_add(1) {
            assert_eq!((packet.payload[12], now.1 % 50), (0x67, 0), "after a gap comes a key picture");
            gaps += 1;
        }
        before = now;
    }
    assert!(gaps >= 1, "it was not slow enough to be of use");
    assert!(world.metric("homing_tunnel_gateway_dropped_packets_total") > 100.0);

    let gone = async {
        while world.metric("homing_tunnel_gateway_viewers") > 2.0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    within(gone).await;
    drop((never, slow, good));
    let forgotten = async {
        while queued() > 0.0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    within(forgotten).await;
}

/// The goal: every limit is kept: connections of one address, streams of one device, length of a request, requests
/// within a second; and an HTTP client is told so instead of waiting.
#[tokio::test]
async fn limits_hold() {
    fn narrow(config: &mut Config) {
        gateway(config);
        config.gateway.connections = 20;
        config.gateway.streams_per_device = 2;
    }
    let (world, device, camera) = world(narrow).await;
    let address = world.rtsp.unwrap();
    let mut held = Vec::new();
    for path in ["/a", "/b"] {
        let mut player = Player::at(address, &format!("/{}{path}", device.serial)).await;
        player.describe().await;
        held.push(player);
    }
    let mut third = Player::at(address, &format!("/{}/c", device.serial)).await;
    let refused = third.ask(Method::Describe, &[]).await;
    assert_eq!((refused.status, refused.reason.contains("streams_per_device")), (453, true), "{refused:?}");
    drop(third);
    let mut shared = Player::at(address, &format!("/{}/a", device.serial)).await;
    shared.describe().await;
    assert_eq!(camera.connections(), 2);

    let closed = async |bytes: &[u8]| {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        let _ = tcp.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = within(tcp.read_to_end(&mut answer)).await;
        String::from_utf8_lossy(&answer).into_owned()
    };
    let long = format!("DESCRIBE rtsp://h/{} RTSP/1.0\r\nX: {}", device.serial, "a".repeat(9000));
    closed(long.as_bytes()).await;
    closed(b"DESCRIBE rtsp://h/x RTSP/1.0\r\nCSeq: 1\r\nContent-Length: 99999999\r\n\r\n").await;
    closed(&b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n".repeat(5000)).await;
    closed(&[0x80; 4000]).await;
    closed(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(closed(b"OPTIONS * RTSP/1.0\r\n\r\n").await.starts_with("RTSP/1.0 400 "));

    // Half of all connections are one address's: three are held.
    let silent: Vec<TcpStream> = {
        let mut silent = Vec::new();
        for _ in 0..7 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        silent
    };
    let until = async {
        while world.metric("homing_tunnel_gateway_connections") < 10.0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(until).await;
    assert_eq!(closed(b"").await, "", "the eleventh is closed");
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 3], 0).into()).unwrap();
    let elsewhere = socket.connect(address).await.unwrap();
    let mut elsewhere = Player::over(Box::new(elsewhere), format!("rtsp://{address}/{}", device.serial));
    assert_eq!(elsewhere.ask(Method::Options, &[]).await.status, 200, "another address has its own half");
    drop((silent, held));
}
