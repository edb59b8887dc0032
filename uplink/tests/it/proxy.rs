//! The site's HTTP proxy: CONNECT, with and without credentials.

use crate::world::*;
use homing_uplink::*;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A proxy that wants `u` and `p`, and puts through to what is asked for.
async fn proxy(tasks: &TaskTracker, stop: &CancellationToken) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(tcp.read_u8().await.expect("a head"));
            }
            let head = String::from_utf8(head).expect("text");
            let target = head.split(' ').nth(1).expect("a target").to_owned();
            assert!(head.starts_with(&format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n")), "{head}");
            if !head.contains("\r\nProxy-Authorization: Basic dTpw\r\n") {
                let answer = b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\n\r\n";
                tcp.write_all(answer).await.expect("written");
                continue;
            }
            tcp.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.expect("written");
            let mut out = TcpStream::connect(target).await.expect("the server");
            let _ = tokio::io::copy_bidirectional(&mut tcp, &mut out).await;
        }
    }));
    address
}

/// Goal: an uplink through a proxy with credentials; without them the installer is told what is missing.
#[tokio::test]
async fn uplinks_run_through_the_sites_proxy() {
    let mut server = Server::start().await;
    let address = proxy(&server.tasks, &server.stop).await;
    let device = Identity::device("00408C702009");
    let mut dialer = server.dialer(Carrier::Native, &device);
    let site_proxy = HttpProxy::new(address.ip().to_string(), address.port());
    dialer.proxy = Some(site_proxy.clone());
    let error = within("the refusal", dialer.dial()).await.expect_err("no credentials");
    assert!(matches!(error, DialError::ProxyRefused { status: 407, .. }), "{error}");
    assert!(error.to_string().contains("user and password"), "{error}");

    dialer.proxy = Some(site_proxy.with_credentials("u", "p"));
    let stop = CancellationToken::new();
    let serve_stop = stop.clone();
    let device = server.tasks.spawn(async move {
        let dialed = within("an uplink", dialer.dial()).await.expect("an uplink");
        dialed.serve(std::sync::Arc::new(answer), Default::default(), serve_stop).await
    });
    let (uplink, driver) = server.next().await.accept(Default::default()).await.expect("an uplink");
    let driving = server.tasks.spawn(driver.run(CancellationToken::new()));
    within("an answer", uplink.request(get("/hello"))).await.expect("an answer");
    stop.cancel();
    assert_eq!(within("the end", device).await.expect("no panic"), EndReason::Stopped);
    assert_eq!(within("the end", driving).await.expect("no panic"), EndReason::PeerClosed);
    server.end().await;
}

/// Goal: what is no proxy, and a proxy that is not there, are told apart.
#[tokio::test]
async fn what_is_no_proxy_is_named() {
    let server = Server::start().await;
    let device = Identity::device("00408C702009");
    let mut dialer = server.dialer(Carrier::Native, &device);
    dialer.proxy = Some(HttpProxy::new("127.0.0.1", server.address.port()));
    let error = within("an error", dialer.dial()).await.expect_err("no proxy");
    assert!(matches!(error, DialError::NotAProxy { .. }), "{error}");
    dialer.proxy = Some(HttpProxy::new("127.0.0.1", 1));
    let error = within("an error", dialer.dial()).await.expect_err("nothing listens");
    assert!(matches!(error, DialError::Tcp { .. }), "{error}");
    server.end().await;
}
