//! RTSP of devices that have no WebSocket: by HTTP.

use crate::{
    device::{Device, PASSWORD, USER},
    gateway::gateway,
    over_http::OverHttp,
    player::Player,
    proxy::connect,
    world::{World, within},
};
use bytes::Bytes;
use homing_media::rtsp::Method;
use homing_protocol::secret::Credentials;
use homing_tunnel::{NoRtsp, ReachError, RtspStream};
use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SERIAL: &str = "00408C702009";

async fn ready(world: &World, over_http: OverHttp) -> (Device, OverHttp) {
    let mut device = Device::new(SERIAL);
    device.has_websocket = false;
    device.over_http = Some(over_http.clone());
    world.make_ready(&device).await;
    (device, over_http)
}

async fn open(world: &World, device: &Device) -> RtspStream {
    within(world.handle.open_rtsp(device.serial)).await.unwrap().stream
}

/// What GET and POST are on the first time: GET is challenged, POST is logged in by the same challenge.
fn in_order() -> [(http::Method, bool); 3] {
    [(http::Method::GET, false), (http::Method::GET, true), (http::Method::POST, true)]
}

/// Goal: whoever watches by the gateway does not notice how the device carries RTSP.
#[tokio::test]
async fn a_viewer_gets_the_pictures_of_a_device_without_websocket() {
    let world = World::with(true, gateway).await;
    let (device, over_http) = ready(&world, OverHttp::default()).await;
    device.camera.switch_on();
    let mut player = Player::new(&world, &device).await;
    assert_eq!(player.describe().await.len(), 2);
    player.prepare().await;
    let (played, first) = tokio::join!(player.ask(Method::Play, &[]), async {
        device.camera.plays(1).await;
        device.camera.picture(1, true)
    });
    assert_eq!(played.status, 200);
    for step in 0..3 {
        assert_eq!(player.picture().await, (first.wrapping_add(step), 1));
    }
    assert_eq!(over_http.asked(), in_order());
    assert_eq!(player.ask(Method::Teardown, &[]).await.status, 200);
    device.camera.plays(0).await;
    within(device.streams_ended.subscribe().wait_for(|ended| *ended == 1)).await.unwrap();
}

/// Goal: a client of the proxy speaks RTSP with the device, wherever that names its path, until it closes.
#[tokio::test]
async fn connect_is_rtsp_over_http_where_there_is_no_websocket() {
    for over_http in [OverHttp::default(), OverHttp::with_media1()] {
        let world = World::new().await;
        let (device, over_http) = ready(&world, over_http).await;
        device.camera.switch_on();
        let (answer, tcp) = connect(&world, "00408C702009:554").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let mut player = Player::over(Box::new(tcp), "rtsp://192.168.77.7/live".into());
        player.credentials = Credentials::new(USER, PASSWORD);
        let options = player.ask(Method::Options, &[]).await;
        assert!(options.headers.get("Public").unwrap().contains("DESCRIBE"));
        assert_eq!(player.describe().await.len(), 3);
        assert_eq!(over_http.asked(), in_order());
        drop(player);
        within(device.streams_ended.subscribe().wait_for(|ended| *ended == 1)).await.unwrap();
    }
}

/// Goal: either side ends in order: nothing that was sent before is lost, and the other one sees an end.
#[tokio::test]
async fn either_side_ends_it_in_order() {
    let world = World::new().await;
    let (device, over_http) = ready(&world, OverHttp::default()).await;
    let sent: Vec<u8> = (0..100_000u32).map(|index| (index / 3) as u8).collect();
    let (mut reader, mut writer) = tokio::io::split(open(&world, &device).await);
    let (wrote, read) = within(async {
        tokio::join!(
            async {
                for piece in sent.chunks(997) {
                    writer.write_all(piece).await?;
                }
                writer.shutdown().await
            },
            async {
                let mut back = Vec::new();
                reader.read_to_end(&mut back).await.map(|_| back)
            }
        )
    })
    .await;
    wrote.unwrap();
    assert!(read.unwrap() == sent);
    assert!(over_http.post_ended().await);

    let (_, mut tcp) = connect(&world, "00408C702009:554").await;
    within(tcp.write_all(b"said before")).await.unwrap();
    let mut back = [0; 11];
    within(tcp.read_exact(&mut back)).await.unwrap();
    over_http.hang_up();
    assert_eq!(within(tcp.read(&mut back)).await.unwrap(), 0);
    within(device.streams_ended.subscribe().wait_for(|ended| *ended == 2)).await.unwrap();
}

/// Goal: a device that wants another log-in for POST, when something was sent, gets it, and nothing is missing.
#[tokio::test]
async fn a_post_that_is_challenged_is_repeated_with_what_was_sent() {
    let world = World::new().await;
    let (device, over_http) = ready(&world, OverHttp::default()).await;
    over_http.be_wary();
    let mut stream = open(&world, &device).await;
    within(stream.write_all(b"OPTIONS")).await.unwrap();
    let mut back = [0; 9];
    let read = async {
        stream.read_exact(&mut back[..7]).await.unwrap();
        stream.write_all(b" *").await.unwrap();
        stream.read_exact(&mut back[7..]).await.unwrap();
    };
    within(read).await;
    assert_eq!(&back, b"OPTIONS *");
    assert_eq!(over_http.asked()[2..], [(http::Method::POST, true), (http::Method::POST, true)]);
}

/// Goal: who has RTSP by neither way is told of both, in one sentence, and which answer was whose.
#[tokio::test]
async fn a_device_that_has_neither_is_refused_with_both_reasons() {
    let world = World::with(true, gateway).await;
    let bare = world.ready_without_rtsp("00408C70200A").await;
    let (gone, _) = ready(&world, OverHttp::gone()).await;
    for (device, what) in [(bare, "not here"), (gone, "/axis-media/by-http?profile=live with 404 Not Found")]
    {
        let refused = within(world.handle.open_rtsp(device.serial)).await.unwrap_err();
        assert!(matches!(refused, ReachError::Rtsp { kind: NoRtsp::Unsupported, .. }), "{refused:?}");
        let words = refused.to_string();
        assert!(
            words.contains("does not offer RTSP over WebSocket (Media2 names no RTSPWebSocketUri)"),
            "{words}"
        );
        assert!(words.contains(", nor RTSP over HTTP (") && words.contains(what), "{words}");
        let (answer, _) = connect(&world, &format!("{}:554", device.serial)).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
        let mut player = Player::at(world.rtsp.unwrap(), &format!("/{}/live", device.serial)).await;
        assert_eq!(player.ask(Method::Describe, &[]).await.status, 501);
    }
    let wrong = world.handle.device(SERIAL.parse().unwrap()).unwrap();
    assert!(wrong.connected, "and stays connected");
}

/// Goal: a device that does not read what is sent stops its sender, and nobody else.
#[tokio::test]
async fn a_device_that_takes_nothing_stops_who_sends() {
    let world = World::new().await;
    let (device, over_http) = ready(&world, OverHttp::default()).await;
    let (mut reader, mut writer) = tokio::io::split(open(&world, &device).await);
    over_http.hold_back(true);
    let sent = vec![7; 8 << 20];
    let mut sending = std::pin::pin!(writer.write_all(&sent));
    let others = async {
        for _ in 0..20 {
            let request = Request::post("/echo").body(Bytes::from_static(b"others go on")).unwrap();
            let answer = world.handle.request(device.serial, request).await.unwrap();
            assert_eq!(answer.into_body().collect(100).await.unwrap(), "others go on");
        }
    };
    tokio::select! {
        biased;
        sent = &mut sending => panic!("8 MB were taken that nobody reads: {sent:?}"),
        () = within(others) => (),
    }
    over_http.hold_back(false);
    let mut back = vec![0; sent.len()];
    let (sending, reading) = within(async { tokio::join!(sending, reader.read_exact(&mut back)) }).await;
    sending.unwrap();
    reading.unwrap();
    assert!(back == sent);
}
