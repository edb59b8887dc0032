//! What passes through: RTSP in a WebSocket to the camera's RTSP port, HTTP to its HTTP port.

use crate::world::{Agent, Device, Server, camera_at, config, soon, story};
use bytes::Bytes;
use http::{Request, StatusCode};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

/// The next connection that is not the agent's own look at the camera.
async fn next_stream(listener: &TcpListener) -> (TcpStream, Vec<u8>) {
    soon("a connection to the camera", async {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut first = vec![0; 4096];
            let count = tcp.read(&mut first).await.unwrap();
            first.truncate(count);
            if !String::from_utf8_lossy(&first).contains("User-Agent: homing-agent") {
                return (tcp, first);
            }
            let _ = tcp.write_all(b"RTSP/1.0 200 OK\r\nCSeq: 1\r\n\r\n").await;
        }
    })
    .await
}

/// Through the tunnel.
async fn connected(
    folder: &tempfile::TempDir,
    cameras: Vec<homing_agent::CameraConfig>,
) -> (Agent, Device, Server) {
    let (dispatcher, sts) = (Server::new().await, Server::new().await);
    let mut config = config(folder.path(), &[&dispatcher]);
    config.cameras = cameras;
    let agent = Agent::start(config).await;
    agent.press().await;
    dispatcher.accept().await.send_to(&sts).await.unwrap();
    let device = sts.accept().await;
    (agent, device, sts)
}

fn get(path: &str) -> Request<Bytes> {
    Request::get(path).body(Bytes::new()).unwrap()
}

/// Goal: RTSP runs both ways through the tunnel, and either end's close reaches the other.
#[test]
fn rtsp_is_spliced_and_closes_with_either_end() {
    story(|folder| async move {
        let (camera, addr) = listener().await;
        let (agent, device, _sts) = connected(&folder, vec![camera_at(addr)]).await;

        let mut rtsp = device.open("/rtsp", "rtsp.onvif.org").await.unwrap();
        rtsp.write_all(b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n").await.unwrap();
        let (mut at_camera, first) = next_stream(&camera).await;
        assert_eq!(first, b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n");
        // More than every buffer and window on the way.
        let video: Vec<u8> = (0..3_000_000_u32).map(|n| ((n * 7) >> 3) as u8).collect();
        let sent = video.clone();
        let sending = tokio::task::spawn_local(async move {
            at_camera.write_all(&sent).await.unwrap();
            at_camera
        });
        let mut received = vec![0; video.len()];
        soon("the video", rtsp.read_exact(&mut received)).await.unwrap();
        assert!(received == video);
        drop(sending.await.unwrap());
        assert_eq!(soon("the camera's close", rtsp.read(&mut received)).await.unwrap(), 0);

        let mut rtsp = device.open("/rtsp", "rtsp.onvif.org").await.unwrap();
        rtsp.write_all(b"OPTIONS * RTSP/1.0\r\n\r\n").await.unwrap();
        let (mut at_camera, _) = next_stream(&camera).await;
        drop(rtsp);
        assert_eq!(soon("the tunnel's close", at_camera.read(&mut received)).await.unwrap_or(0), 0);
        agent.stop().await;
    });
}

/// Goal: a viewer that does not read stops its own camera, and nothing else.
#[test]
fn a_stalled_viewer_slows_nobody_else() {
    story(|folder| async move {
        let (camera, addr) = listener().await;
        let (agent, device, _sts) = connected(&folder, vec![camera_at(addr)]).await;
        let mut stalled = device.open("/rtsp", "rtsp.onvif.org").await.unwrap();
        stalled.write_all(b"OPTIONS * RTSP/1.0\r\n\r\n").await.unwrap();
        let (at_camera, _) = next_stream(&camera).await;
        // Until the kernel and everything on the way are full.
        let chunk = vec![0; 64 * 1024];
        let mut written = 0_usize;
        loop {
            match tokio::time::timeout(std::time::Duration::from_millis(300), at_camera.writable()).await {
                Err(_) => break,
                Ok(ready) => ready.unwrap(),
            }
            written += at_camera.try_write(&chunk).unwrap_or(0);
            assert!(written < 64 << 20, "nothing holds the camera back");
        }
        let mut rtsp = device.open("/rtsp", "rtsp.onvif.org").await.unwrap();
        rtsp.write_all(b"OPTIONS * RTSP/1.0\r\n\r\n").await.unwrap();
        let (mut other, _) = next_stream(&camera).await;
        other.write_all(b"picture").await.unwrap();
        let mut received = [0; 7];
        soon("the other viewer's picture", rtsp.read_exact(&mut received)).await.unwrap();
        assert_eq!(&received, b"picture");
        agent.stop().await;
    });
}

/// Goal: a dead camera is said to be one, with its address.
#[test]
fn a_dead_camera_is_told_with_its_address() {
    story(|folder| async move {
        let (camera, addr) = listener().await;
        drop(camera);
        let mut config = camera_at(addr);
        config.http = format!("http://{addr}");
        let (mut agent, device, _sts) = connected(&folder, vec![config]).await;
        let error = device.open("/rtsp", "rtsp.onvif.org").await.unwrap_err().to_string();
        assert!(error.contains("502"), "{error}");
        let (status, body) = device.request(get("/index.html")).await;
        assert_eq!(status, StatusCode::BAD_GATEWAY);
        assert!(body.starts_with(&format!("Camera not reached at {addr}: ")), "{body}");
        let address = addr.to_string();
        agent
            .shows_that("the dead camera", |status| status.warnings.iter().any(|w| w.contains(&address)))
            .await;
        let error = device.open("/rtsp", "chat").await.unwrap_err().to_string();
        assert!(error.contains("400"), "{error}");
        let error = device.open("/other", "rtsp.onvif.org").await.unwrap_err().to_string();
        assert!(error.contains("501"), "{error}");
        agent.stop().await;
    });
}

/// Goal: with several cameras the request says which one; a dead one is told in RTSP.
#[test]
fn rtsp_finds_the_camera_that_the_request_names() {
    story(|folder| async move {
        let (one, one_addr) = listener().await;
        let (two, two_addr) = listener().await;
        let (dead, dead_addr) = listener().await;
        drop(dead);
        let cameras = [one_addr, two_addr, dead_addr].map(camera_at).to_vec();
        let (agent, device, _sts) = connected(&folder, cameras).await;
        for (camera, addr) in [(&two, two_addr), (&one, one_addr)] {
            let mut rtsp = device.open("/rtsp", "rtsp.onvif.org").await.unwrap();
            let request = format!("DESCRIBE rtsp://{addr}/stream RTSP/1.0\r\nCSeq: 1\r\n\r\n");
            // In pieces, as a network may deliver it.
            for piece in request.as_bytes().chunks(11) {
                rtsp.write_all(piece).await.unwrap();
            }
            let (_tcp, first) = next_stream(camera).await;
            assert_eq!(String::from_utf8(first).unwrap(), request);
        }
        let mut rtsp = device.open("/rtsp", "rtsp.onvif.org").await.unwrap();
        let request = format!("DESCRIBE rtsp://{dead_addr}/stream RTSP/1.0\r\nCSeq: 5\r\n\r\n");
        rtsp.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        soon("the answer", rtsp.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.starts_with("RTSP/1.0 503 ") && answer.contains("CSeq: 5"), "{answer}");
        assert!(answer.contains(&dead_addr.to_string()), "{answer}");
        agent.stop().await;
    });
}

/// Goal: the camera's own page and interfaces are reached as on its network, bodies streamed.
#[test]
fn http_is_passed_on_to_the_camera() {
    story(|folder| async move {
        let (camera, addr) = listener().await;
        let mut config = camera_at("127.0.0.1:1".parse().unwrap());
        config.http = format!("http://{addr}");
        let (agent, device, _sts) = connected(&folder, vec![config]).await;

        let serving = tokio::task::spawn_local(async move {
            let (mut tcp, _) = camera.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"body of the request") {
                assert!(tcp.read_buf(&mut request).await.unwrap() > 0);
            }
            let answer = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Digest realm=\"cam\"\r\nConnection: close\r\n\
                          Transfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n";
            tcp.write_all(answer.as_bytes()).await.unwrap();
            (tcp, String::from_utf8(request).unwrap())
        });
        let request = Request::post("http://00408c702009/axis-cgi/x.cgi?a=1")
            .header("content-length", "19")
            .header("authorization", "Digest username=\"root\"")
            .body(Bytes::from_static(b"body of the request"))
            .unwrap();
        let answer = soon("the head", device.uplink.request(request)).await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(answer.headers()["www-authenticate"], "Digest realm=\"cam\"");
        assert!(!answer.headers().contains_key("transfer-encoding"));
        let mut body = answer.into_body();
        assert_eq!(soon("the first piece", body.next()).await.unwrap().unwrap(), "first");
        let (mut tcp, request) = serving.await.unwrap();
        assert!(request.starts_with("POST /axis-cgi/x.cgi?a=1 HTTP/1.1\r\n"), "{request}");
        assert!(request.contains(&format!("host: {addr}\r\n")), "{request}");
        assert!(request.contains("authorization: Digest username=\"root\"\r\n"), "{request}");
        tcp.write_all(b"6\r\nsecond\r\n0\r\n\r\n").await.unwrap();
        assert_eq!(soon("the rest", body.collect(1000)).await.unwrap(), "second");
        agent.stop().await;
    });
}

/// Goal: without an HTTP address there is nothing to pass to, and that is said.
#[test]
fn http_without_a_configured_address_is_not_found() {
    story(|folder| async move {
        let (agent, device, _dispatcher) =
            connected(&folder, vec![camera_at("127.0.0.1:1".parse().unwrap())]).await;
        let (status, body) = device.request(get("/")).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert!(body.contains("no \"http\" address is configured"), "{body}");
        agent.stop().await;
    });
}

/// Goal: a dispatcher, rogue or taken over, reaches nothing behind the agent, whatever it knows.
#[test]
fn a_dispatcher_reaches_neither_the_cameras_video_nor_its_page() {
    story(|folder| async move {
        let (_camera, addr) = listener().await;
        let dispatcher = Server::new().await;
        let mut config = config(folder.path(), &[&dispatcher]);
        config.cameras =
            vec![homing_agent::CameraConfig { http: format!("http://{addr}"), ..camera_at(addr) }];
        let agent = Agent::start(config).await;
        agent.press().await;
        let device = dispatcher.accept().await;
        let refused = device.open("/rtsp", "rtsp.onvif.org").await.unwrap_err();
        assert!(refused.to_string().contains("403"), "{refused}");
        for path in ["/", "/axis-cgi/pwdgrp.cgi", "/onvif/snapshot"] {
            let (status, text) = device.request(get(path)).await;
            assert_eq!(status, StatusCode::FORBIDDEN, "{path}");
            assert!(text.contains("through tunnel servers only"), "{text}");
        }
        agent.stop().await;
    });
}

/// Goal: a viewer, made to by whoever answers in the camera's place, does not show the password to the site's network.
#[test]
fn a_password_in_clear_does_not_go_onto_the_sites_network() {
    const IN_CLEAR: &str = "Basic cm9vdDpzZXNhbWU=";
    story(|folder| async move {
        let (camera, addr) = listener().await;
        let config = homing_agent::CameraConfig { http: format!("http://{addr}"), ..camera_at(addr) };
        let (agent, device, _sts) = connected(&folder, vec![config]).await;

        let mut rtsp = device.open("/rtsp", "rtsp.onvif.org").await.unwrap();
        let request = format!("DESCRIBE rtsp://c/ RTSP/1.0\r\nCSeq: 2\r\nAuthorization: {IN_CLEAR}\r\n\r\n");
        rtsp.write_all(format!("OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n{request}").as_bytes()).await.unwrap();
        let mut answer = String::new();
        soon("the refusal", rtsp.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.starts_with("RTSP/1.0 403 ") && answer.contains("CSeq: 2\r\n"), "{answer}");
        assert!(answer.contains("allow_basic = true"), "{answer}");

        let request = Request::get("/").header("authorization", IN_CLEAR).body(Bytes::new()).unwrap();
        let (status, text) = device.request(request).await;
        assert_eq!(status, StatusCode::FORBIDDEN);
        assert!(text.contains("allow_basic = true"), "{text}");

        // Nor is anybody asked for it.
        let asked = device.request(get("/"));
        let at_camera = async {
            let (mut tcp, first) = next_stream(&camera).await;
            assert!(!String::from_utf8_lossy(&first).contains("Basic"), "{first:?}");
            let answer = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\n\r\n";
            tcp.write_all(answer.as_bytes()).await.unwrap();
            tcp
        };
        let ((status, text), _camera) = tokio::join!(asked, async {
            // The stream of before, which ended.
            let (_tcp, first) = next_stream(&camera).await;
            assert!(!String::from_utf8_lossy(&first).contains("Basic"), "{first:?}");
            at_camera.await
        });
        assert_eq!(status, StatusCode::BAD_GATEWAY);
        assert!(text.contains("allow_basic = true"), "{text}");
        agent.stop().await;
    });
}
