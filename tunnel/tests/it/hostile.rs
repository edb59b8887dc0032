//! Garbage and silence on both addresses.

use crate::{
    device::Device,
    player::Player,
    world::{World, code, form, within},
};
use homing_base::crowd::Networks;
use homing_media::rtsp;
use http::{Method, StatusCode};
use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
};

#[tokio::test]
async fn a_hundred_silent_connections_do_not_delay_the_next_good_one() {
    let world = World::new().await;
    let device = Device::new("00408C702009");
    world.register(&device).await;
    world.dispatcher.vouch(device.serial, device.fingerprint).await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(world.external).await.unwrap());
        silent.push(TcpStream::connect(world.internal).await.unwrap());
    }
    let began = tokio::time::Instant::now();
    world.connect(&device).await;
    let (status, _) = world.api(Method::GET, "/api/v1/devices", None).await;
    assert_eq!(status, StatusCode::OK);
    assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
}

#[tokio::test]
async fn one_network_cannot_keep_devices_of_another_out() {
    let world = World::with(true, |config| {
        config.limits.arriving = 8;
        config.limits.exempt = Networks::default();
    })
    .await;
    let device = Device::new("00408C702009");
    world.register(&device).await;
    world.dispatcher.vouch(device.serial, device.fingerprint).await;
    let mut silent = Vec::new();
    for _ in 0..32 {
        silent.push(from_address([127, 0, 0, 2], world.external).await);
    }
    let began = tokio::time::Instant::now();
    world.connect(&device).await;
    assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
    assert!(world.metric("homing_tunnel_refused_total{reason=\"too-many-from-network\"}") > 0.0);
}

/// The goal: who has not shown who it is keeps no VMS out, neither by silence nor by guessing, however many addresses it
/// has; and who is known stays.
#[tokio::test]
async fn strangers_keep_no_vms_out() {
    let world = World::with(true, |config| {
        config.limits.internal_connections = 8;
        config.limits.internal_connections_per_address = 8;
        config.gateway.connections = 8;
        config.gateway.rtsp = "127.0.0.1:0".into();
    })
    .await;
    let (device, _) = world.ready("00408C702009").await;
    device.camera.switch_on();
    let gateway = world.rtsp.unwrap();

    let asks = |credentials: &str| {
        format!("GET /api/v1/devices HTTP/1.1\r\nHost: x\r\nAuthorization: {credentials}\r\n\r\n")
    };
    let (right, wrong) = (asks(&crate::world::password()), asks("Basic Z3Vlc3M6Z3Vlc3M="));
    let mut known = TcpStream::connect(world.internal).await.unwrap();
    assert_eq!(status_of(&mut known, &right).await, 200);
    let mut watching = Player::at(gateway, "/00408C702009").await;
    watching.describe().await;

    let mut strangers = Vec::new();
    for index in 0..120_u8 {
        // Each address has 4 of 8 places.
        let from = [127, 0, 0, 10 + index / 4];
        for to in [world.internal, gateway] {
            let mut stranger = from_address(from, to).await;
            if to == world.internal && index % 2 == 0 {
                let _ = stranger.write_all(wrong.as_bytes()).await;
            }
            strangers.push(stranger);
        }
    }
    let mut newcomer = TcpStream::connect(world.internal).await.unwrap();
    assert_eq!(status_of(&mut newcomer, &right).await, 200);
    let mut player = Player::at(gateway, "/00408C702009").await;
    player.describe().await;
    assert_eq!(status_of(&mut known, &right).await, 200);
    assert_eq!(watching.ask(rtsp::Method::GetParameter, &[]).await.status, 200);
    drop(strangers);
}

/// A connection from one of loopback's many addresses.
async fn from_address(from: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    socket.connect(to).await.unwrap()
}

/// The status that a request is answered with on a connection that goes on.
async fn status_of(tcp: &mut TcpStream, request: &str) -> u16 {
    tcp.write_all(request.as_bytes()).await.unwrap();
    let (mut answer, mut chunk) = (Vec::new(), [0; 1024]);
    loop {
        let count = within(tcp.read(&mut chunk)).await.unwrap();
        assert!(count > 0, "closed: {}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&chunk[..count]);
        let text = String::from_utf8_lossy(&answer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        if body.len() == length.parse::<usize>().unwrap() {
            return head.split(' ').nth(1).unwrap().parse().unwrap();
        }
    }
}

#[tokio::test]
async fn garbage_is_answered_or_closed_and_nothing_else_happens() {
    let world = World::new().await;
    let (device, serving) = world.ready("00408C702009").await;
    let long = [b"GET / HTTP/1.1\r\nX: ".as_slice(), &[b'a'; 100_000]].concat();
    let garbage: [&[u8]; 8] = [
        b"\x00\x01\x02\x03",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\xff\xff",
        &[0xFF; 10_000],
        &long,
        b"CONNECT :554 HTTP/1.1\r\n\r\n",
        b"GET http:///x HTTP/1.1\r\n\r\n",
    ];
    for address in [world.external, world.internal] {
        for bytes in garbage {
            let mut tcp = TcpStream::connect(address).await.unwrap();
            let _ = tcp.write_all(bytes).await;
            let _ = tcp.shutdown().await;
            let mut answer = Vec::new();
            let _ = within(tcp.read_to_end(&mut answer)).await;
        }
    }
    let (status, answer) = world.api(Method::GET, "/api/v1/devices", None).await;
    assert_eq!((status, answer.as_array().unwrap().len()), (StatusCode::OK, 1));
    assert!(!serving.is_finished());
    assert!(world.handle.device(device.serial).unwrap().connected);
    let endless = format!("{{\"serial\": \"{}\"}}", "0".repeat(100_000));
    let (status, answer) = world.api(Method::POST, "/api/v1/devices", Some(endless.into())).await;
    assert_eq!((status, code(&answer)), (StatusCode::BAD_REQUEST, "bad-request"));
}

#[tokio::test]
async fn a_device_beyond_the_limit_is_told_so() {
    let world = World::with(true, |config| config.limits.uplinks = 1).await;
    world.ready("00408C702009").await;
    let second = Device::new("00408C702010");
    world.register(&second).await;
    world.dispatcher.vouch(second.serial, second.fingerprint).await;
    let error = within(second.dial(world.external, &world.trust_anchor())).await.unwrap_err();
    assert!(error.to_string().contains("503"), "{error}");
    assert_eq!(world.metric("homing_tunnel_refused_total{reason=\"full\"}"), 1.0);
}

#[tokio::test]
async fn a_registration_ends_well_although_the_browser_left_half_way() {
    let world = World::new().await;
    let body = form("00408C702009", crate::device::OAK).to_string();
    let mut tcp = TcpStream::connect(world.internal).await.unwrap();
    let head = format!(
        "POST /api/v1/devices HTTP/1.1\r\nHost: x\r\nAuthorization: {}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        crate::world::password(),
        body.len()
    );
    tcp.write_all(head.as_bytes()).await.unwrap();
    world.dispatcher.relayed_times(1).await;
    drop(tcp);
    world.device_until("00408C702009".parse().unwrap(), |_| true).await;
    let again = form("00408C702009", crate::device::OAK);
    let (status, answer) = world.api(Method::POST, "/api/v1/devices", Some(again)).await;
    assert_eq!((status, code(&answer)), (StatusCode::CONFLICT, "already-registered"));
}

/// A way to `to` on which connections come from `source`.
async fn way_from(source: [u8; 4], to: SocketAddr, ways: &mut JoinSet<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    ways.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = from_address(source, to).await;
            connections.spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
        }
    });
    address
}

/// Goal: a stolen key in use at another place is told, while the device goes on; and a device that comes back from
/// one place as often as that is not taken for two.
#[tokio::test]
async fn step_7_tunnel_two_devices_with_one_key_are_told() {
    let world = World::new().await;
    let mut ways = JoinSet::new();
    let home = way_from([127, 0, 0, 2], world.external, &mut ways).await;
    let elsewhere = way_from([127, 0, 0, 3], world.external, &mut ways).await;
    let device = Device::new("00408C702009");
    world.register(&device).await;
    world.dispatcher.vouch(device.serial, device.fingerprint).await;
    let dial = async |way| {
        let dialed = within(device.dial(way, &world.trust_anchor())).await.unwrap();
        let from = if way == home { "127.0.0.2:" } else { "127.0.0.3:" };
        drop(device.serve(dialed, &world.site));
        world
            .device_until(device.serial, |seen| seen.peer.as_ref().is_some_and(|peer| peer.starts_with(from)))
            .await;
    };
    for _ in 0..6 {
        dial(home).await;
    }
    assert_eq!(world.handle.device(device.serial).unwrap().problem, None);
    for way in [elsewhere, home, elsewhere, home] {
        dial(way).await;
    }
    let told = world.device_until(device.serial, |seen| seen.problem.is_some()).await;
    let problem = told.problem.unwrap();
    assert_eq!((told.connected, problem.code.as_str()), (true, "two-devices"));
    assert!(
        problem.message.contains("127.0.0.2") && problem.message.contains("127.0.0.3"),
        "{}",
        problem.message
    );
}
