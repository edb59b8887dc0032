//! Against an HTTP/2 stack that is not ours: Node's, as device (`device.js`) and as server (`server.js`).

use crate::world::*;
use bytes::Bytes;
use homing_uplink::*;
use http::{HeaderMap, Request};
use std::process::Stdio;
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio_util::sync::CancellationToken;

/// A Node script with certificates in a folder of its own; killed when dropped.
struct Node {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    _folder: tempfile::TempDir,
}

impl Node {
    fn start(script: &str, identity: &Identity, trusted: &Identity, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in [
            ("cert.pem", &identity.certificate_pem),
            ("key.pem", &identity.key.serialize_pem()),
            ("ca.pem", &trusted.certificate_pem),
        ] {
            std::fs::write(folder.path().join(name), text).expect("written");
        }
        let child = Command::new("node")
            .arg(format!("{}/tests/it/{script}", env!("CARGO_MANIFEST_DIR")))
            .args(arguments)
            .current_dir(folder.path())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(error) => panic!(
                "node does not start ({error}): install the Debian package nodejs, version 20.12 or later"
            ),
        };
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { child, lines, _folder: folder }
    }

    async fn line(&mut self) -> String {
        within("a line from node", self.lines.next_line()).await.expect("text").expect("node goes on")
    }
}

/// Goal: a device with another HTTP/2 stack answers requests, uploads and a WebSocket through our server's end.
#[tokio::test]
async fn a_device_made_with_node_works_with_our_server() {
    let mut server = Server::start().await;
    let port = server.address.port().to_string();
    let device = Identity::device("00408C702009");
    let mut node = Node::start("device.js", &device, &server.identity, &[&port]);
    let arrival = server.next().await;
    assert_eq!(arrival.path, "/node");
    assert_eq!(
        arrival.peer_identity.as_ref().map(|it| it.fingerprint),
        Fingerprint::of_certificate(&device.certificate).ok()
    );
    let (uplink, driver) = arrival.accept(Default::default()).await.expect("an uplink");
    let stop = CancellationToken::new();
    let driving = server.tasks.spawn(driver.run(stop.clone()));

    let response = within("an answer", uplink.request(get("/hello"))).await.expect("an answer");
    assert_eq!(response.headers()["x-path"], "/hello");
    assert_eq!(response.into_body().collect(100).await.expect("a body"), "hello from node");

    let data: Bytes = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    let request = Request::post("/echo").body(Body::from(data.clone())).expect("a request");
    let echo = within("an answer", uplink.request_streaming(request)).await.expect("an answer").into_body();
    assert!(within("the echo", echo.collect(2_000_000)).await.expect("a body") == data);

    let opening = uplink.open_websocket("/rtsp", "rtsp.onvif.org", HeaderMap::new());
    let mut stream = within("a WebSocket", opening).await.expect("a WebSocket");
    let mut echoed = vec![0; 300_000];
    let (mut reader, mut writer) = tokio::io::split(&mut stream);
    let exchange = async { tokio::join!(writer.write_all(&data[..300_000]), reader.read_exact(&mut echoed)) };
    let (written, read) = within("the echo", exchange).await;
    written.and(read).expect("an echo");
    assert!(echoed == data[..300_000]);
    stream.shutdown().await.expect("closed");
    assert_eq!(within("the end", stream.read(&mut [0])).await.expect("the end"), 0);

    stop.cancel();
    assert_eq!(within("the end", driving).await.expect("no panic"), EndReason::Stopped);
    assert_eq!(node.line().await, "closed");
    assert!(within("the end of node", node.child.wait()).await.expect("it ran").success());
    server.end().await;
}

/// Goal: our device's end is what another HTTP/2 stack expects of a server, WebSocket included.
#[tokio::test]
async fn a_server_made_with_node_works_with_our_device() {
    let (identity, device) = (Identity::server(), Identity::device("00408C702009"));
    for carrier in ["https", "wss"] {
        let mut node = Node::start("server.js", &identity, &device, &[]);
        let port = node.line().await;
        let address = format!("{carrier}://localhost:{port}/up").parse().expect("an address");
        let dialer = Dialer::new(address, device.client_config(&identity));
        let dialed = within("an uplink", dialer.dial()).await.expect("an uplink");
        let serving = dialed.serve(Arc::new(answer), Default::default(), CancellationToken::new());
        let story = async {
            assert_eq!(node.line().await, "admitted 00408C702009");
            assert_eq!(node.line().await, "GET /hello: 200 hello");
            assert_eq!(node.line().await, "POST /echo: 200 500000 equal");
            assert_eq!(node.line().await, "CONNECT /echo: 200 rtsp.onvif.org OPTIONS * RTSP/1.0");
            assert_eq!(node.line().await, "CONNECT /nothing: 404");
            node.child.wait().await.expect("it ran").success()
        };
        let (reason, success) = within("the story", async { tokio::join!(serving, story) }).await;
        assert_eq!(reason, EndReason::PeerClosed);
        assert!(success);
    }
}
