//! The RTSP gateway: what viewers get, and what devices are asked.

use crate::{
    camera::{Camera, HOST, VIDEO_SSRC},
    device::Device,
    player::{Player, picture},
    world::{World, within},
};
use bytes::Bytes;
use homing_base::tls;
use homing_media::{
    rtp::{self, Rtcp},
    rtsp::{Method, RtpInfo, Transport},
};
use homing_tunnel::{Config, GatewayUser};
use rustls::pki_types::ServerName;
use std::{sync::Arc, time::Duration};
use tokio::net::{TcpStream, UdpSocket};

const SERIAL: &str = "00408C702009";

pub fn gateway(config: &mut Config) {
    config.gateway.rtsp = "127.0.0.1:0".into();
    config.gateway.linger_ms = 100;
}

/// A tunnel server with a gateway, and a device with a camera.
pub async fn world(adjust: fn(&mut Config)) -> (World, Device, Camera) {
    let world = World::with(true, adjust).await;
    let (device, _) = world.ready(SERIAL).await;
    device.camera.switch_on();
    let camera = device.camera.clone();
    (world, device, camera)
}

/// The goal: a viewer gets exactly the camera's packets, by URLs that lead to the gateway, and learns nothing of the
/// camera's address and password; the camera is asked for its own URLs, with its own user.
#[tokio::test]
async fn a_viewer_gets_what_the_camera_sends_by_urls_that_lead_here() {
    let (world, device, camera) = world(gateway).await;
    let mut player = Player::new(&world, &device).await;
    let options = player.ask(Method::Options, &[]).await;
    assert!(options.headers.get("Public").unwrap().contains("GET_PARAMETER"));
    let described = player.ask(Method::Describe, &[("Accept", "application/sdp")]).await;
    assert_eq!(described.headers.get("Content-Base"), Some(format!("{}/", player.url).as_str()));
    let sdp = String::from_utf8(described.body.to_vec()).unwrap();
    assert!(!sdp.contains(HOST) && !sdp.contains("meta"), "{sdp}");
    let tracks = player.describe().await;
    let base = player.url.clone();
    assert_eq!(
        tracks,
        [format!("{base}/live/trackID=0"), format!("{base}/live/trackID=1")]
            .map(|url| url.replace("/live", ""))
    );
    let asked = camera.asked();
    let setups: Vec<&str> =
        asked.iter().filter(|(method, _)| *method == Method::Setup).map(|(_, url)| url.as_str()).collect();
    assert_eq!(
        setups,
        ["rtsp://192.168.77.7/live/video", "rtsp://192.168.77.7/live/audio", "rtsp://192.168.77.7/live/meta"]
    );
    assert!(asked.iter().all(|(method, _)| *method != Method::Play), "before anybody plays");

    player.prepare().await;
    let (answer, first) = tokio::join!(player.ask(Method::Play, &[]), async {
        camera.plays(1).await;
        camera.sender_report();
        camera.sound(7);
        camera.picture(0, false);
        camera.picture(1, true)
    });
    assert_eq!(answer.status, 200);
    let info = RtpInfo::parse_all(answer.headers.get("RTP-Info").unwrap());
    assert_eq!(
        (info[0].url.as_str(), info[0].seq, info[0].rtptime),
        (tracks[0].as_str(), Some(first), Some(3600))
    );
    assert_eq!(info[1].url, tracks[1]);

    let report = player.packet().await.unwrap();
    assert_eq!(report.channel, 1);
    assert_eq!(
        Rtcp::parse(&report.payload).unwrap().sender_report.unwrap().rtp,
        4711,
        "first what ties it to time"
    );
    for step in 0..3 {
        assert_eq!(player.picture().await, (first.wrapping_add(step), 1));
    }
    camera.sound(8);
    let sound = player.packet().await.unwrap();
    assert_eq!((sound.channel, sound.payload.len()), (2, rtp::HEADER_LEN + 320));
    assert_eq!(world.metric("homing_tunnel_gateway_viewers"), 1.0);
    assert_eq!(player.ask(Method::GetParameter, &[]).await.status, 200);

    assert_eq!(player.ask(Method::Teardown, &[]).await.status, 200);
    camera.plays(0).await;
    assert!(camera.asked().iter().any(|(method, _)| *method == Method::Teardown));
}

/// The goal: one stream through the uplink, however many watch; who comes late begins at once, with the key picture of
/// the group that is on, and misses nothing from there.
#[tokio::test]
async fn all_viewers_share_one_stream_and_late_ones_begin_with_a_key_picture() {
    let (world, device, camera) = world(gateway).await;
    let mut early = Player::new(&world, &device).await;
    let (_, _) = tokio::join!(early.play(), async {
        camera.plays(1).await;
        camera.picture(1, true)
    });
    for number in 2..10 {
        camera.picture(number, false);
    }
    let second = camera.picture(10, true);
    camera.picture(11, false);
    while early.picture().await.1 != 11 {}

    // The same stream by its own path, over channels of its own choice, without sound.
    let mut late = Player::at(world.rtsp.unwrap(), &format!("/{SERIAL}/live")).await;
    let tracks = late.describe().await;
    assert_eq!(late.set_up(&tracks[0], "RTP/AVP/TCP;unicast;interleaved=6-7").await.status, 200);
    let answer = late.ask(Method::Play, &[]).await;
    assert_eq!(RtpInfo::parse_all(answer.headers.get("RTP-Info").unwrap())[0].seq, Some(second));
    let mut seen = Vec::new();
    camera.picture(12, false);
    while seen.last().is_none_or(|(_, number)| *number != 12) {
        let packet = late.packet().await.unwrap();
        assert_eq!(packet.channel, 6, "sound was not asked for");
        seen.push(picture(&packet));
    }
    let expected = [(0, 10), (1, 10), (2, 10), (3, 11), (4, 12)]
        .map(|(step, number)| (second.wrapping_add(step), number));
    assert_eq!(seen, expected);
    assert_eq!((camera.connections(), world.metric("homing_tunnel_gateway_streams")), (1, 1.0));

    drop(early);
    camera.picture(13, false);
    assert_eq!(picture(&late.packet().await.unwrap()).1, 13, "the other goes on");
    drop(late);
    camera.plays(0).await;
    // The next one opens it anew.
    let mut next = Player::new(&world, &device).await;
    tokio::join!(next.play(), async {
        camera.plays(1).await;
        camera.picture(20, true);
    });
    assert_eq!(next.picture().await.1, 20);
    assert_eq!(camera.connections(), 2);
}

/// The goal: when the device goes, its viewers are told so and closed; when it is back, they only have to ask again.
#[tokio::test]
async fn when_the_device_goes_viewers_are_told_and_it_comes_back_by_itself() {
    let (world, device, camera) = world(gateway).await;
    let mut player = Player::new(&world, &device).await;
    tokio::join!(player.play(), async {
        camera.plays(1).await;
        camera.picture(1, true);
    });
    for _ in 0..3 {
        player.picture().await;
    }
    device.cut();
    player.end().await;
    let last = player.rest().pop().unwrap();
    assert_eq!((last.channel, &last.payload[..]), (1, &rtp::goodbye(VIDEO_SSRC)[..]));

    let mut player = Player::new(&world, &device).await;
    world.device_until(device.serial, |device| !device.connected).await;
    let refused = player.ask(Method::Describe, &[]).await;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(
        refused.reason.contains(SERIAL) && refused.reason.contains("is not connected"),
        "{}",
        refused.reason
    );

    world.connect(&device).await;
    tokio::join!(player.play(), async {
        camera.plays(1).await;
        camera.picture(9, true);
    });
    assert_eq!(player.picture().await.1, 9);
}

/// The goal: what cannot be had is refused with the status that it has in RTSP, in words that say what to check.
#[tokio::test]
async fn refusals_are_statuses_with_words() {
    let (world, device, camera) = world(gateway).await;
    let at = async |path: &str| Player::at(world.rtsp.unwrap(), path).await;
    let describe = async |path: &str| at(path).await.ask(Method::Describe, &[]).await;
    let refused = describe("/ACCC8E000000").await;
    assert_eq!((refused.status, refused.reason.contains("ACCC8E000000")), (404, true), "{refused:?}");
    assert_eq!(describe("/camera1").await.status, 404);

    let mut player = Player::new(&world, &device).await;
    assert_eq!(player.ask(Method::Describe, &[("Accept", "text/html")]).await.status, 406);
    let tracks = player.describe().await;
    for transport in
        ["RTP/SAVP;unicast;client_port=4000-4001", "RTP/AVP;multicast;port=4000-4001", "nonsense"]
    {
        assert_eq!(player.set_up(&tracks[0], transport).await.status, 461, "{transport}");
    }
    assert_eq!(player.set_up(&player.url.clone(), "RTP/AVP/TCP").await.status, 459);
    assert_eq!(player.set_up(&tracks[1].replace("=1", "=7"), "RTP/AVP/TCP").await.status, 404);
    assert_eq!(player.ask(Method::Play, &[]).await.status, 454);
    assert_eq!(player.set_up(&tracks[0], "RTP/AVP/TCP").await.status, 200);
    assert_eq!(player.ask(Method::Play, &[("Range", "clock=20261122T000000Z-")]).await.status, 457);
    let replay = player.ask(Method::Play, &[("Require", "onvif-replay")]).await;
    assert_eq!((replay.status, replay.headers.get("Unsupported")), (551, Some("onvif-replay")));
    for (method, status) in
        [(Method::Pause, 405), (Method::Record, 405), (Method::Other("DANCE".into()), 501)]
    {
        assert_eq!(player.ask(method, &[]).await.status, status);
    }
    player.session = Some("somebody-elses".into());
    assert_eq!(player.ask(Method::Play, &[]).await.status, 454);
    drop(player);
    camera.plays(0).await;

    camera.refuse(Method::Describe, 404);
    let refused = describe(&format!("/{SERIAL}/gone")).await;
    assert_eq!((refused.status, refused.reason.contains("DESCRIBE with 404")), (404, true), "{refused:?}");
    camera.refuse(Method::Record, 404);
    camera.set_password("changed at the site");
    let refused = describe(&format!("/{SERIAL}/other")).await;
    assert_eq!(
        (refused.status, refused.reason.contains("refuses the user and password")),
        (502, true),
        "{refused:?}"
    );
    assert!(!format!("{refused:?}").contains(crate::device::PASSWORD));
    // Players that try again in a loop do not lock us out at the device.
    let connections = camera.connections();
    assert_eq!(describe(&format!("/{SERIAL}/other")).await.status, 502);
    assert_eq!(camera.connections(), connections);

    let plain = world.ready_without_rtsp("00408C70200A").await;
    let refused = describe(&format!("/{}/live", plain.serial)).await;
    assert_eq!((refused.status, refused.reason.contains("RTSP over WebSocket")), (501, true), "{refused:?}");
}

/// The goal: nobody watches without a user of the gateway; where it has users of its own, the internal address's is none
/// of them; who guesses is cut off and slowed.
#[tokio::test]
async fn nobody_watches_without_a_password() {
    fn with_users(config: &mut Config) {
        gateway(config);
        config.gateway.users =
            vec![GatewayUser { name: "wall".into(), password: "of monitors, sixteen".into() }];
    }
    let (world, device, camera) = world(with_users).await;
    let mut player = Player::new(&world, &device).await;
    let url = player.url.clone();
    for method in [Method::Describe, Method::Setup, Method::Play, Method::Teardown, Method::GetParameter] {
        let refused = player.ask_once(method, &url, &[]).await;
        let challenges: Vec<&str> = refused.headers.get_all("WWW-Authenticate").collect();
        assert_eq!(refused.status, 401);
        assert!(challenges.iter().any(|text| text.contains("SHA-256")), "{challenges:?}");
        assert!(challenges.iter().any(|text| text.contains("MD5")), "{challenges:?}");
        assert!(challenges.iter().all(|text| text.starts_with("Digest ")), "{challenges:?}");
    }
    assert_eq!(player.ask(Method::Describe, &[]).await.status, 401, "the internal address's user");
    assert_eq!(camera.connections(), 0);
    let mut player = Player::new(&world, &device).await;
    player.credentials = homing_protocol::secret::Credentials::new("wall", "of monitors, sixteen");
    player.describe().await;
    // One that was right is not slowed by others; so it guesses from elsewhere.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 9], 0).into()).unwrap();
    let mut guesser = Player::over(Box::new(socket.connect(world.rtsp.unwrap()).await.unwrap()), url.clone());
    guesser.credentials.password = "guess".into();
    guesser.ask(Method::Describe, &[]).await;
    let mut statuses = Vec::new();
    while statuses.len() < 20 && statuses.last() != Some(&403) {
        statuses.push(guesser.ask_once(Method::Describe, &url, &[]).await.status);
        if statuses.iter().filter(|status| **status == 401).count() == 4 {
            break;
        }
    }
    guesser.end().await;
    assert!(world.metric("homing_tunnel_gateway_refused_total{status=\"4xx\"}") >= 3.0);
    player.describe().await;
}

/// The goal: a client that insists on UDP gets RTP and RTCP at its ports, from the ports that it was told, and from no
/// others than configured; one that offers TCP, too, gets TCP.
#[tokio::test]
async fn who_insists_on_udp_gets_udp() {
    let (world, device, camera) = world(gateway).await;
    let mut player = Player::new(&world, &device).await;
    let tracks = player.describe().await;
    let both =
        player.set_up(&tracks[0], "RTP/AVP;unicast;client_port=4000-4001,RTP/AVP/TCP;interleaved=0-1").await;
    assert!(Transport::parse(both.headers.get("Transport").unwrap()).tcp);
    drop(player);

    let mut player = Player::new(&world, &device).await;
    let tracks = player.describe().await;
    let (rtp_socket, rtcp_socket) =
        (UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let ports = [&rtp_socket, &rtcp_socket].map(|socket| socket.local_addr().unwrap().port());
    let answer = player
        .set_up(
            &tracks[0],
            &format!("RTP/AVP;unicast;destination=127.0.0.8;client_port={}-{}", ports[0], ports[1]),
        )
        .await;
    let transport = Transport::parse(answer.headers.get("Transport").unwrap());
    assert!(transport.udp && transport.client_port == Some((ports[0], ports[1])), "{answer:?}");
    let (from_rtp, from_rtcp) = transport.server_port.unwrap();
    assert_eq!((from_rtp % 2, from_rtcp), (0, from_rtp + 1));
    let (answer, first) = tokio::join!(player.ask(Method::Play, &[]), async {
        camera.plays(1).await;
        camera.picture(1, true)
    });
    assert_eq!(answer.status, 200);
    camera.sender_report();
    let mut buffer = [0; 2048];
    for step in 0..3 {
        let (length, from) = within(rtp_socket.recv_from(&mut buffer)).await.unwrap();
        assert_eq!(from.port(), from_rtp);
        let packet = rtp::Packet::parse(&Bytes::copy_from_slice(&buffer[..length])).unwrap();
        assert_eq!(packet.sequence, first.wrapping_add(step));
    }
    let (length, from) = within(rtcp_socket.recv_from(&mut buffer)).await.unwrap();
    assert_eq!(
        (from.port(), Rtcp::parse(&buffer[..length]).unwrap().sender_report.is_some()),
        (from_rtcp, true)
    );
    // It ends with the connection.
    drop(player);
    camera.plays(0).await;
}

/// The goal: the same inside TLS, to clients that trust the tunnel server's CA and compare the address with the
/// certificate, which is neither the one that devices dial nor the internal one.
#[tokio::test]
async fn rtsps() {
    let (world, device, camera) = world(|config| {
        gateway(config);
        config.gateway.rtsps = "127.0.0.2:0".into();
    })
    .await;
    let trust = tls::client_config(Some(&world.trust_anchor())).unwrap();
    let gateway = world.rtsps.unwrap();
    let tcp = TcpStream::connect(gateway).await.unwrap();
    let name = ServerName::from(gateway.ip());
    let stream = tokio_rustls::TlsConnector::from(Arc::new(trust)).connect(name, tcp).await.unwrap();
    let mut player = Player::over(Box::new(stream), format!("rtsps://{gateway}/{}", device.serial));
    tokio::join!(player.play(), async {
        camera.plays(1).await;
        camera.picture_of(5, true, 60_000);
    });
    for _ in 0..3 {
        assert_eq!(player.picture().await.1, 5);
    }
    let tracks = player.session.clone();
    assert!(tracks.is_some());
    assert_eq!(player.ask(Method::Teardown, &[]).await.status, 200);
}

/// The goal: when the tunnel server stops, viewers and streams end at once, and the device is told.
#[tokio::test]
async fn it_stops_in_order() {
    let (mut world, device, camera) = world(gateway).await;
    let mut player = Player::new(&world, &device).await;
    tokio::join!(player.play(), async {
        camera.plays(1).await;
        camera.picture(1, true);
    });
    let begun = tokio::time::Instant::now();
    world.stop_tunnel().await;
    player.end().await;
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}
