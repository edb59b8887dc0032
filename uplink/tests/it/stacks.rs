//! The server's end against two more HTTP/2 stacks that are not ours, as devices: Python's h2 (`device.py`) over both
//! carriers, and nghttp2's server behind a device that only passes bytes on.

use crate::world::*;
use bytes::Bytes;
use homing_uplink::*;
use http::{HeaderMap, Request, StatusCode};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

/// Goal: a device with Python's h2 answers requests, uploads and a WebSocket, natively and through a WebSocket; it pads,
/// sends trailers, uses a header table where it may, and checks what it gets strictly.
#[tokio::test]
async fn a_device_made_with_python_works_over_both_carriers() {
    for carrier in ["native", "websocket"] {
        let mut server = Server::start().await;
        let device = Identity::device("00408C702009");
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in [
            ("cert.pem", &device.certificate_pem),
            ("key.pem", &device.key.serialize_pem()),
            ("ca.pem", &server.identity.certificate_pem),
        ] {
            std::fs::write(folder.path().join(name), text).expect("written");
        }
        let mut python = Command::new("/usr/bin/python3")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/device.py"))
            .args([&server.address.port().to_string(), carrier])
            .current_dir(folder.path())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("python3 with h2: install the Debian package python3-h2");
        let mut lines = BufReader::new(python.stdout.take().expect("piped")).lines();
        let arrival = server.next().await;
        assert_eq!(arrival.path, "/python");
        let (uplink, driver) = arrival.accept(Default::default()).await.expect("an uplink");
        let stop = CancellationToken::new();
        let driving = server.tasks.spawn(driver.run(stop.clone()));

        for _ in 0..20 {
            let response = within("an answer", uplink.request(get("/hello"))).await.expect("an answer");
            assert_eq!(response.headers()["x-path"], "/hello");
            assert_eq!(response.headers()["server"], "python");
            assert_eq!(response.into_body().collect(100).await.expect("a body"), "hello from python");
        }
        let data: Bytes = (0..600_000_u32).map(|n| (n % 251) as u8).collect();
        let request = Request::post("/echo").body(data.clone()).expect("a request");
        let echo = within("an answer", uplink.request(request)).await.expect("an answer").into_body();
        assert!(within("the echo", echo.collect(1_000_000)).await.expect("a body") == data);

        let opening = uplink.open_websocket("/rtsp", "rtsp.onvif.org", HeaderMap::new());
        let mut stream = within("a WebSocket", opening).await.expect("a WebSocket");
        let mut echoed = vec![0; 100_000];
        let (mut reader, mut writer) = tokio::io::split(&mut stream);
        let exchange =
            async { tokio::join!(writer.write_all(&data[..100_000]), reader.read_exact(&mut echoed)) };
        let (written, read) = within("the echo", exchange).await;
        written.and(read).expect("an echo");
        assert!(echoed == data[..100_000]);
        stream.shutdown().await.expect("closed");
        assert_eq!(within("the end", stream.read(&mut [0])).await.expect("the end"), 0);
        drop(stream);

        // One that is not read to its end: cancelled, and the others go on.
        let request = Request::post("/echo").body(data.clone()).expect("a request");
        drop(within("an answer", uplink.request(request)).await.expect("an answer"));
        within("an answer", uplink.request(get("/hello"))).await.expect("an answer");
        assert_eq!(uplink.stats().streams, 0);

        stop.cancel();
        assert_eq!(within("the end", driving).await.expect("no panic"), EndReason::Stopped);
        let line = within("a line", lines.next_line()).await.expect("text");
        assert_eq!(line.as_deref(), Some("closed 0"), "{carrier}");
        assert!(within("the end of python", python.wait()).await.expect("it ran").success());
        server.end().await;
    }
}

/// Goal: nghttp2's server, with padding, trailers and few streams at once, is a device like any other.
#[tokio::test]
async fn the_server_of_nghttp2_works_as_a_device() {
    let mut server = Server::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let large: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 249) as u8).collect();
    std::fs::write(folder.path().join("large"), &large).expect("written");
    std::fs::write(folder.path().join("small"), "hello").expect("written");
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = free.local_addr().expect("an address").port();
    drop(free);
    let _nghttpd = Command::new("nghttpd")
        .args([
            "--no-tls",
            "--echo-upload",
            "--padding=100",
            "--trailer=x-sum: 1",
            "--max-concurrent-streams=10",
        ])
        .args(["--address=127.0.0.1", "--header-table-size=0", "--htdocs"])
        .arg(folder.path())
        .arg(port.to_string())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("nghttpd: install the Debian package nghttp2-server");
    let began = Instant::now();
    let mut behind = loop {
        match TcpStream::connect(("127.0.0.1", port)).await {
            Ok(tcp) => break tcp,
            Err(error) => assert!(began.elapsed() < DEADLINE, "nghttpd does not listen: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let mut tls = raw_tls(&server, &Identity::device("00408C702009")).await;
    let head = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c-reverse\r\n\r\n";
    tls.write_all(head).await.expect("written");
    let (uplink, driver) = server.next().await.accept(Default::default()).await.expect("an uplink");
    let stop = CancellationToken::new();
    let driving = server.tasks.spawn(driver.run(stop.clone()));
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(within("the 101", tls.read_u8()).await.expect("the 101"));
    }
    server.tasks.spawn(async move {
        // Ends with either of them.
        let _ = tokio::io::copy_bidirectional(&mut tls, &mut behind).await;
    });

    let asked = (0..40).map(|_| uplink.request(get("/large")));
    for response in within("answers", futures_util::future::join_all(asked.take(10))).await {
        let body = response.expect("an answer").into_body();
        assert!(within("the body", body.collect(4_000_000)).await.expect("a body") == large);
    }
    let waiting = (0..40).map(async |_| {
        let response = uplink.request(get("/small")).await.expect("a free stream, in the end");
        response.into_body().collect(100).await.expect("a body")
    });
    for body in within("answers", futures_util::future::join_all(waiting)).await {
        assert_eq!(body, "hello");
    }
    let missing = within("an answer", uplink.request(get("/missing"))).await.expect("an answer");
    assert_eq!(missing.status(), StatusCode::NOT_FOUND);
    drop(missing);
    let request = Request::post("/echo").body(Bytes::from(large.clone())).expect("a request");
    let echo = within("an answer", uplink.request(request)).await.expect("an answer").into_body();
    assert!(within("the echo", echo.collect(4_000_000)).await.expect("a body") == large);
    let head = Request::head("/large").body(Bytes::new()).expect("a request");
    let response = within("an answer", uplink.request(head)).await.expect("an answer");
    assert_eq!(response.headers()["content-length"], "3000000");
    assert_eq!(response.into_body().collect(10).await.expect("no body"), "");
    stop.cancel();
    assert_eq!(within("the end", driving).await.expect("no panic"), EndReason::Stopped);
    server.end().await;
}
