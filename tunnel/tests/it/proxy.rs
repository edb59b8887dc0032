//! The internal address: forward proxy, CONNECT, authentication.

use crate::{
    device::Device,
    world::{PASSWORD, USER, World, code, password, send_from, text, through, within},
};
use bytes::Bytes;
use homing_base::client::basic;
use homing_protocol::secret::Credentials;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

async fn problem(response: Response<Incoming>) -> serde_json::Value {
    serde_json::from_str(&text(response).await).unwrap()
}

/// `CONNECT`, and what came with the answer.
pub async fn connect(world: &World, target: &str) -> (String, TcpStream) {
    let mut tcp = TcpStream::connect(world.internal).await.unwrap();
    let head =
        format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nProxy-Authorization: {}\r\n\r\n", password());
    tcp.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(within(tcp.read_u8()).await.unwrap());
    }
    (String::from_utf8(answer).unwrap(), tcp)
}

#[tokio::test]
async fn a_request_reaches_the_device_without_what_is_the_proxys() {
    let world = World::new().await;
    world.ready("00408C702009").await;
    let mut request = through(Method::GET, "http://00408c702009/headers", "");
    for (name, value) in
        [("authorization", "Digest x"), ("connection", "x-hop"), ("x-hop", "1"), ("accept", "a/b")]
    {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let response = world.send(request).await;
    assert_eq!(response.status(), StatusCode::OK);
    let seen = text(response).await;
    assert!(seen.contains("authorization: Digest x\n") && seen.contains("accept: a/b\n"), "{seen}");
    for absent in ["proxy-authorization", "x-hop", "connection"] {
        assert!(!seen.contains(absent), "{seen}");
    }
    let response = world.send(through(Method::GET, "http://00-40-8c-70-20-09/nothing-here", "")).await;
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    assert_eq!(text(response).await, "the device says: no such path");
    assert_eq!(world.metric("homing_tunnel_proxy_requests_total{status=\"2xx\"}"), 1.0);
}

#[tokio::test]
async fn bodies_are_streamed_both_ways() {
    let world = World::new().await;
    world.ready("00408C702009").await;
    let sent: Vec<u8> = (0..5_000_000u32).map(|index| index as u8).collect();
    let response = world.send(through(Method::POST, "http://00408c702009/echo", sent.clone())).await;
    let body = within(response.into_body().collect()).await.unwrap().to_bytes();
    assert!(body == sent, "{} bytes came back", body.len());
}

#[tokio::test]
async fn a_failure_names_the_device_its_state_and_what_to_check() {
    let world = World::with(true, |config| config.limits.response_ms = 300).await;
    let (device, _) = world.ready("00408C702009").await;
    let waiting = Device::new("00408C702010");
    world.register(&waiting).await;

    let response = world.send(through(Method::GET, "http://00408c702010/", "")).await;
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    let answer = problem(response).await;
    assert_eq!((code(&answer), &answer["error"]["step"]), ("not-connected", &"tunnel".into()));
    let message = answer["error"]["message"].as_str().unwrap();
    for part in ["00408C702010", "Entrance", "2 relay", "waiting", "Press its button"] {
        assert!(message.contains(part), "{message}");
    }
    let response = world.send(through(Method::GET, "http://00408c702011/", "")).await;
    assert_eq!(
        (response.status(), code(&problem(response).await)),
        (StatusCode::BAD_GATEWAY, "not-registered")
    );

    let response = world.send(through(Method::GET, "http://00408c702009/silent", "")).await;
    assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
    let answer = problem(response).await;
    assert_eq!(code(&answer), "device-timeout");
    assert!(answer["error"]["message"].as_str().unwrap().contains(&device.serial.to_string()));

    for target in ["00408c702009:8080", "00408c702009:22", "127.0.0.1:554", "localhost:80"] {
        let (answer, _) = connect(&world, target).await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{target}: {answer}");
    }
    let (answer, _) = connect(&world, "00408c702010:554").await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    let response = world.send(through(Method::GET, "http://127.0.0.1/", "")).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
}

/// Goal: the proxy leads to registered devices and nowhere else, however an address of the inside is written.
#[tokio::test]
async fn the_proxy_reaches_nothing_but_devices() {
    let world = World::new().await;
    world.ready("00408C702009").await;
    let inside = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = inside.local_addr().unwrap().port();
    for host in
        ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "2130706433", "0x7f000001"]
    {
        let response = world.send(through(Method::GET, &format!("http://{host}:{port}/"), "")).await;
        assert!(response.status().is_client_error(), "{host}: {}", response.status());
        let (answer, _) = connect(&world, &format!("{host}:{port}")).await;
        assert!(answer.starts_with("HTTP/1.1 4"), "{host}: {answer}");
    }
    for uri in
        [format!("http://00408c702009@127.0.0.1:{port}/"), format!("http://127.0.0.1:{port}/00408c702009")]
    {
        let response = world.send(through(Method::GET, &uri, "")).await;
        assert!(response.status().is_client_error(), "{uri}: {}", response.status());
    }
    let came = tokio::time::timeout(std::time::Duration::from_millis(200), inside.accept()).await;
    assert!(came.is_err(), "somebody was let through");
}

/// From an address of its own, which has not been right before.
async fn status_from(world: &World, from: u8, request: Request<Bytes>) -> (StatusCode, http::HeaderMap) {
    let response = within(send_from([127, 0, 0, from], world.internal, request)).await;
    (response.status(), response.headers().clone())
}

#[tokio::test]
async fn every_door_wants_the_password() {
    let world = World::new().await;
    world.ready("00408C702009").await;
    let wrong = [None, Some("Bearer x".to_owned()), Some(basic(&Credentials::new(USER, "guess")))];
    let mut from = 10;
    for authorization in &wrong {
        for path in [
            "/api/v1/server",
            "/api/v1/devices",
            "/api/v1/devices/00408C702009/credentials",
            "/api/v1/events",
            "/somewhere",
        ] {
            let mut request = Request::builder().uri(path).header("host", "tunnel");
            if let Some(value) = authorization {
                request = request.header("authorization", value);
            }
            // The proxy's header opens nothing here.
            let request = request.header("proxy-authorization", password()).body(Bytes::new()).unwrap();
            from += 1;
            let (status, headers) = status_from(&world, from, request).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{path}");
            assert!(headers.contains_key("www-authenticate"));
        }
        let mut request = through(Method::GET, "http://00408c702009/headers", "");
        request.headers_mut().remove("proxy-authorization");
        request.headers_mut().insert("authorization", password().parse().unwrap());
        if let Some(value) = authorization {
            request.headers_mut().insert("proxy-authorization", value.parse().unwrap());
        }
        from += 1;
        let (status, headers) = status_from(&world, from, request).await;
        assert_eq!(status, StatusCode::PROXY_AUTHENTICATION_REQUIRED);
        assert!(headers.contains_key("proxy-authenticate"));
    }
    // A form in a page from elsewhere, sent by a browser that knows the password.
    let form = Request::post("/api/v1/devices")
        .header("authorization", password())
        .header("content-type", "text/plain");
    let body = crate::world::form("00408C702011", crate::device::OAK).to_string();
    let response = world.send(form.body(body.into()).unwrap()).await;
    assert_eq!(response.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    for path in ["/healthz", "/metrics"] {
        let request = Request::builder().uri(path).header("host", "tunnel").body(Bytes::new()).unwrap();
        let response = world.send(request).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        let page = text(response).await;
        assert!(!page.contains("00408C702009") && !page.contains(PASSWORD));
    }
}

#[tokio::test]
async fn guessing_is_slowed_at_both_doors_together_and_for_the_guesser_alone() {
    let world = World::new().await;
    let guess = basic(&Credentials::new(USER, "guess"));
    let mut looked_at = 0;
    for round in 0..20 {
        let mut request = through(Method::GET, "http://00408c702009/headers", "");
        let wrong = if round % 2 == 0 {
            request.headers_mut().insert("proxy-authorization", guess.parse().unwrap());
            StatusCode::PROXY_AUTHENTICATION_REQUIRED
        } else {
            request = Request::builder()
                .uri("/api/v1/server")
                .header("authorization", &guess)
                .body(Bytes::new())
                .unwrap();
            StatusCode::UNAUTHORIZED
        };
        let (status, headers) = status_from(&world, 99, request).await;
        looked_at += usize::from(status == wrong);
        assert_eq!(status == StatusCode::TOO_MANY_REQUESTS, headers.contains_key("retry-after"));
    }
    assert!((2..10).contains(&looked_at), "{looked_at} of 20 guesses were looked at");
    assert_eq!(world.api(Method::GET, "/api/v1/server", None).await.0, StatusCode::OK);
}

#[tokio::test]
async fn connect_is_rtsp_over_websocket_at_the_path_that_the_device_names() {
    let world = World::new().await;
    let (device, _) = world.ready("00408C702009").await;
    let (answer, mut tcp) = connect(&world, "00408C702009:554").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let mut sent = Vec::new();
    let mut received = Vec::new();
    for size in [1, 100, 1400, 16_384, 70_000, 5] {
        let piece: Vec<u8> = (0..size).map(|index| (index * 7 + size) as u8).collect();
        within(tcp.write_all(&piece)).await.unwrap();
        let mut back = vec![0; size];
        within(tcp.read_exact(&mut back)).await.unwrap();
        sent.extend(piece);
        received.extend(back);
    }
    assert!(sent == received);
    // Many small packets at once are still in order.
    let (mut reader, mut writer) = tcp.split();
    let burst: Vec<u8> = (0..200_000u32).map(|index| (index / 3) as u8).collect();
    let mut back = vec![0; burst.len()];
    let (wrote, read) = within(async {
        tokio::join!(
            async {
                for packet in burst.chunks(997) {
                    writer.write_all(packet).await?;
                }
                std::io::Result::Ok(())
            },
            reader.read_exact(&mut back)
        )
    })
    .await;
    wrote.unwrap();
    read.unwrap();
    assert!(back == burst);
    // The VMS closes: the device's stream ends as well.
    drop(tcp);
    within(device.streams_ended.subscribe().wait_for(|ended| *ended == 1)).await.unwrap();
}

#[tokio::test]
async fn a_reader_that_stays_stopped_is_dropped_and_the_uplink_is_not() {
    let world = World::with(true, |config| config.limits.stalled_ms = 500).await;
    let (device, serving) = world.ready("00408C702009").await;
    let (_, mut flooded) = connect(&world, "00408c702009:554").await;
    flooded.write_all(b"FLOOD").await.unwrap();
    within(device.streams_ended.subscribe().wait_for(|ended| *ended == 1)).await.unwrap();
    assert!(!serving.is_finished());
    drop(flooded);
}

#[tokio::test]
async fn in_process_the_same_stream_comes_with_its_worker() {
    let world = World::new().await;
    let (device, _) = world.ready("00408C702009").await;
    let link = within(world.handle.open_rtsp(device.serial)).await.unwrap();
    let mut stream = link.stream;
    let echoed = link.worker.spawn(async move {
        stream.write_all(b"OPTIONS * RTSP/1.0\r\n\r\n").await.unwrap();
        let mut back = [0; 22];
        stream.read_exact(&mut back).await.unwrap();
        back
    });
    assert_eq!(&within(echoed).await.unwrap(), b"OPTIONS * RTSP/1.0\r\n\r\n");
}

#[tokio::test]
async fn a_reader_that_stops_slows_no_other_and_costs_bounded_memory() {
    let world = World::new().await;
    let (device, _) = world.ready("00408C702009").await;
    // Readers that take nothing: of HTTP, and of RTSP.
    let mut stalled = Vec::new();
    for _ in 0..5 {
        stalled.push(world.send(through(Method::GET, "http://00408c702009/endless", "")).await);
    }
    let (_, mut flooded) = connect(&world, "00408c702009:554").await;
    flooded.write_all(b"FLOOD").await.unwrap();
    // What came does not grow any more: the device waits for credit.
    let bytes_in = || world.handle.device(device.serial).unwrap().bytes_in;
    let mut before = 0;
    within(async {
        while bytes_in() == 0 || bytes_in() != before {
            before = bytes_in();
            // Others go on meanwhile.
            let response =
                world.send(through(Method::POST, "http://00408c702009/echo", vec![1; 100_000])).await;
            assert_eq!(within(response.into_body().collect()).await.unwrap().to_bytes().len(), 100_000);
            before += bytes_in() - before;
        }
    })
    .await;
    assert!(before < 64 << 20, "{before} bytes for six readers that take nothing");
    // One that reads again gets more.
    let mut frame = stalled.remove(0).into_body();
    assert!(within(frame.frame()).await.unwrap().unwrap().into_data().unwrap().len() > 1000);
}
