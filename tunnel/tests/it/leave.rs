//! The end in order, and the return: who streams has time, who comes is told when to come again, who is closed is not closed
//! with all others, and a crowd that comes back is let in without anybody else noticing.

use crate::{
    device::Device,
    gateway,
    player::Player,
    world::{DEADLINE, World, code, password, within},
};
use bytes::Bytes;
use homing_media::rtsp::Method;
use homing_uplink::{BackoffSettings, DialError, EndReason, Incoming, Keep};
use http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};

/// `CONNECT` to a device.
async fn stream(world: &World, device: &Device) -> TcpStream {
    let mut tcp = TcpStream::connect(world.internal).await.unwrap();
    let target = format!("{}:554", device.serial.host());
    let head =
        format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nProxy-Authorization: {}\r\n\r\n", password());
    tcp.write_all(head.as_bytes()).await.unwrap();
    assert!(within(crate::pressure::head(&mut tcp)).await.unwrap().starts_with("HTTP/1.1 200 "));
    tcp
}

async fn echoes(tcp: &mut TcpStream) {
    tcp.write_all(b"OPTIONS").await.unwrap();
    let mut back = [0; 7];
    within(tcp.read_exact(&mut back)).await.unwrap();
    assert_eq!(&back, b"OPTIONS");
}

fn leave(world: &World) -> JoinHandle<()> {
    let role = world.role.clone();
    world.site.spawn(async move { role.leave().await })
}

/// Goal: a server that is told to stop refuses what is new with a word when to come again, says so to its monitoring, and
/// ends as soon as the last stream has.
#[tokio::test]
async fn streams_have_time_to_end_and_who_comes_is_told_when_to_come_again() {
    let world = World::with(true, |config| {
        config.public = vec!["127.0.0.1:0".into(), "second.example:8443".into()];
    })
    .await;
    let (device, serving) = world.ready("00408C702009").await;
    let newcomer = Device::new("00408C70200A");
    world.register(&newcomer).await;
    world.dispatcher.vouch(newcomer.serial, newcomer.fingerprint).await;
    let mut viewer = stream(&world, &device).await;
    let leaving = leave(&world);
    within(world.role.leaving()).await;

    let refused = within(newcomer.dial(world.external, &world.trust_anchor())).await.unwrap_err();
    let DialError::Refused { status: 503, reason, retry_after: Some(after), .. } = refused else {
        panic!("{refused}");
    };
    assert!(reason.contains("about to stop") && after.as_secs() > 0, "{reason} {after:?}");
    let mut by_hand =
        within(crate::pressure::tls(newcomer.tls(&world.trust_anchor()), world.external)).await.unwrap();
    by_hand.write_all(crate::pressure::UPGRADE).await.unwrap();
    let said = within(crate::pressure::head(&mut by_hand)).await.unwrap();
    assert!(said.contains("Homing-Uplinks: ") && said.contains("second.example:8443"), "{said}");

    let request = Request::get("http://00408c702009/headers").header(header::PROXY_AUTHORIZATION, password());
    let response = world.send(request.body(Bytes::new()).unwrap()).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(response.headers().contains_key(header::RETRY_AFTER));
    let body = within(response.into_body().collect()).await.unwrap().to_bytes();
    assert_eq!(code(&serde_json::from_slice(&body).unwrap()), "stopping");
    let (health, said) = world.ops.health(true);
    assert!(health == StatusCode::SERVICE_UNAVAILABLE && said.contains("about to stop"), "{said}");

    echoes(&mut viewer).await;
    assert!(!leaving.is_finished() && !serving.is_finished());
    drop(viewer);
    within(leaving).await.unwrap();
    assert_eq!(within(serving).await.unwrap(), EndReason::PeerClosed);
}

/// Goal: who watches through the gateway watches on, and nobody begins to.
#[tokio::test]
async fn who_watches_has_time_to_end_and_nobody_begins() {
    let (world, device, camera) = gateway::world(gateway::gateway).await;
    let (mut viewer, mut late) = (Player::new(&world, &device).await, Player::new(&world, &device).await);
    let (_, _) = tokio::join!(viewer.play(), async {
        camera.plays(1).await;
        camera.picture(1, true)
    });
    let leaving = leave(&world);
    within(world.role.leaving()).await;
    let refused = late.ask(Method::Describe, &[("Accept", "application/sdp")]).await;
    assert_eq!(refused.status, 503, "{refused:?}");
    camera.picture(2, true);
    while viewer.picture().await.1 != 2 {}
    assert!(!leaving.is_finished());
    drop(viewer);
    within(leaving).await.unwrap();
}

/// Goal: who never ends does not hold the server up for longer than it was given; and nobody's use is no wait.
#[tokio::test]
async fn who_does_not_end_is_cut_off_and_where_nobody_streams_nobody_waits() {
    let world = World::with(true, |config| config.limits.drain_s = 1).await;
    let (device, serving) = world.ready("00408C702009").await;
    let mut viewer = stream(&world, &device).await;
    let began = Instant::now();
    within(leave(&world)).await.unwrap();
    assert!((1000..8000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    within(serving).await.unwrap();
    let mut rest = Vec::new();
    let _ = within(viewer.read_to_end(&mut rest)).await;

    let idle = World::with(true, |config| config.limits.drain_s = 3600).await;
    let (_, serving) = idle.ready("00408C702009").await;
    within(leave(&idle)).await.unwrap();
    within(serving).await.unwrap();
}

/// A device that comes back by itself, and when it was there.
async fn keep(world: &World, device: &Device, came: &Arc<Mutex<Vec<Instant>>>) {
    let answer = Arc::new(async |incoming: Incoming| drop(incoming.respond(Response::new(Bytes::new()))));
    let dialer = device.dialer(world.external, &world.trust_anchor());
    let (mut keep, mut states) = Keep::new(dialer, answer);
    keep.backoff = BackoffSettings { stable_after: Duration::ZERO, ..BackoffSettings::default() };
    let (stop, came) = (world.site.token().child_token(), Arc::clone(came));
    world.site.spawn(keep.run(stop));
    world.site.spawn(async move {
        while states.changed().await.is_ok() {
            if states.borrow_and_update().is_connected() {
                came.lock().unwrap().push(Instant::now());
            }
        }
    });
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < DEADLINE * 3, "{what}: not in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The share of them that came within the fullest stretch of so long.
fn fullest(times: &[Instant], stretch: Duration) -> f64 {
    let within =
        |first: &Instant| times.iter().filter(|at| **at >= *first && **at - *first < stretch).count();
    times.iter().map(within).max().unwrap_or(0) as f64 / times.len() as f64
}

/// Goal: after an end in order and after a crash, hundreds of devices are all back soon, not all in the same moment, and one
/// that is there already is answered as before.
#[tokio::test]
async fn hundreds_come_back_spread_over_time_and_who_is_there_is_answered() {
    const DEVICES: usize = 300;
    let mut world = World::new().await;
    let came = Arc::new(Mutex::new(Vec::new()));
    for index in 0..DEVICES {
        let device = Device::new(&format!("00408C71{index:04X}"));
        world.register(&device).await;
        world.dispatcher.vouch(device.serial, device.fingerprint).await;
        keep(&world, &device, &came).await;
    }
    until("all are there", || came.lock().unwrap().len() == DEVICES).await;
    for in_order in [true, false] {
        let ended = Instant::now();
        if in_order {
            within(leave(&world)).await.unwrap();
            // Closed wave by wave; no two waves are one.
            assert!(ended.elapsed() > Duration::from_millis(500), "{:?}", ended.elapsed());
        }
        came.lock().unwrap().clear();
        world.restart().await;
        let (good, _) = world.ready(if in_order { "00408C702009" } else { "00408C70200A" }).await;
        let mut slowest = Duration::ZERO;
        let serial = good.serial;
        while came.lock().unwrap().len() < DEVICES {
            let asked = Instant::now();
            let request = Request::get("/headers").body(Bytes::new()).unwrap();
            assert!(within(world.handle.request(serial, request)).await.is_ok());
            slowest = slowest.max(asked.elapsed());
            assert!(ended.elapsed() < DEADLINE * 3, "{} are back", came.lock().unwrap().len());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let (back, times) = (ended.elapsed(), came.lock().unwrap().clone());
        let fullest = fullest(&times, Duration::from_millis(300));
        assert!(fullest < 0.6, "{fullest} of all within 0.3 s");
        assert!(back < Duration::from_secs(30), "all are back after {back:?}");
        assert!(slowest < Duration::from_secs(2), "one request took {slowest:?}");
        assert!(world.metric("homing_tunnel_uplinks") >= DEVICES as f64);
    }
}
