//! Requests, streams and WebSockets through an uplink, over both carriers.

use crate::world::*;
use bytes::Bytes;
use homing_uplink::*;
use http::{HeaderMap, Request, StatusCode};
use std::{future::poll_fn, sync::Arc, time::Duration};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Notify;

const CARRIERS: [Carrier; 2] = [Carrier::Native, Carrier::WebSocket];

/// Goal: a request reaches the device and its answer comes back; statuses and missing answers too.
#[tokio::test]
async fn requests_are_answered_over_both_carriers() {
    let mut server = Server::start().await;
    for carrier in CARRIERS {
        let pair = server.default_pair(carrier).await;
        let response = within("an answer", pair.uplink.request(get("/hello"))).await.expect("an answer");
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.into_body().collect(100).await.expect("a body"), "hello");
        let missing = pair.uplink.request(get("/nothing")).await.expect("an answer");
        assert_eq!(missing.status(), StatusCode::NOT_FOUND);
        let dropped = pair.uplink.request(get("/dropped")).await.expect("an answer");
        assert_eq!(dropped.status(), StatusCode::INTERNAL_SERVER_ERROR);
        pair.end().await;
    }
    server.end().await;
}

/// Goal: heads as they come from an HTTP/1.1 proxy are made fit for HTTP/2.
#[tokio::test]
async fn heads_of_http_1_pass() {
    let mut server = Server::start().await;
    let pair = server.default_pair(Carrier::Native).await;
    let request = Request::get("/host")
        .header("Host", "00408c702009:80")
        .header("Connection", "keep-alive, X-Hop")
        .header("X-Hop", "1")
        .header("Transfer-Encoding", "chunked")
        .body(Bytes::new())
        .expect("a request");
    let response = pair.uplink.request(request).await.expect("an answer");
    assert_eq!(response.into_body().collect(100).await.expect("a body"), "00408c702009:80");
    pair.end().await;
    server.end().await;
}

/// Goal: bodies larger than every window come back unchanged, sent whole and as a stream.
#[tokio::test]
async fn bodies_stream_both_ways_over_both_carriers() {
    let mut server = Server::start().await;
    let data: Bytes = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    for carrier in CARRIERS {
        let pair = server.default_pair(carrier).await;
        let whole = Request::post("/echo").body(data.clone()).expect("a request");
        let echo = within("an answer", pair.uplink.request(whole)).await.expect("an answer").into_body();
        assert!(within("the body", echo.collect(4_000_000)).await.expect("a body") == data);

        let source = within(
            "an answer",
            pair.uplink.request(Request::post("/echo").body(data.clone()).expect("a request")),
        );
        let source = source.await.expect("an answer").into_body();
        let streaming = Request::post("/echo").body(source).expect("a request");
        let echo = within("an answer", pair.uplink.request_streaming(streaming))
            .await
            .expect("an answer")
            .into_body();
        assert!(within("the body", echo.collect(4_000_000)).await.expect("a body") == data);

        let long = pair.uplink.request(Request::post("/echo").body(data.clone()).expect("a request")).await;
        let error = long.expect("an answer").into_body().collect(1000).await;
        assert_eq!(error, Err(BodyError::TooLong { limit: 1000 }));
        pair.end().await;
    }
    server.end().await;
}

/// Goal: a request that is begun waits for its answer as long as the device likes, beyond every deadline; its body goes out
/// as the caller sends it, and so does its end.
#[tokio::test]
async fn a_request_that_is_begun_has_no_deadline() {
    let mut server = Server::start().await;
    let waited = Duration::from_millis(1);
    let impatient = UplinkSettings { response_deadline: waited, ..Default::default() };
    let late = Arc::new(Notify::new());
    let when = late.clone();
    let service = move |incoming| answer_late(incoming, when.clone());
    let pair = server.pair(Carrier::Native, (impatient, Default::default()), service).await;
    let begun = pair.uplink.begin(Request::post("/").body(()).expect("a request"));
    let (mut body, mut answer) = within("a stream", begun).await.expect("a stream");
    for _ in 0..3 {
        within("credit", poll_fn(|cx| body.poll_ready(cx))).await.expect("credit");
        body.start_send(Bytes::from_static(b"piece")).expect("sent");
    }
    body.finish().expect("sent");
    // Another one, by whose end the first one's would have come.
    let asked = within("a timeout", pair.uplink.request(get("/"))).await;
    assert_eq!(asked.expect_err("too late"), RequestError::Timeout { waited });
    late.notify_one();
    let head = within("an answer", poll_fn(|cx| answer.poll_head(cx))).await.expect("an answer");
    assert_eq!(head.headers()["x-received"], "15");
    pair.end().await;
    server.end().await;

    async fn answer_late(mut incoming: Incoming, late: Arc<Notify>) {
        if incoming.request.method() == "GET" {
            return std::future::pending().await;
        }
        let body = std::mem::take(incoming.request.body_mut());
        let received = body.collect(100).await.expect("a body");
        late.notified().await;
        let response = http::Response::builder().header("x-received", received.len());
        let _ = incoming.respond(response.body(Bytes::new()).expect("a response"));
    }
}

/// Goal: a WebSocket is a byte pipe, both ways, to its orderly end.
#[tokio::test]
async fn websockets_carry_bytes_over_both_carriers() {
    let mut server = Server::start().await;
    let data: Vec<u8> = (0..2_500_000_u32).map(|n| (n % 241) as u8).collect();
    for carrier in CARRIERS {
        let pair = server.default_pair(carrier).await;
        let opening = pair.uplink.open_websocket("/echo", "rtsp.onvif.org", HeaderMap::new());
        let stream = within("a WebSocket", opening).await.expect("a WebSocket");
        assert_eq!(stream.subprotocol(), Some("rtsp.onvif.org"));
        let (mut reader, mut writer) = tokio::io::split(stream);
        let sent = data.clone();
        let writing = server.tasks.spawn(async move {
            writer.write_all(&sent).await.expect("written");
            writer.shutdown().await.expect("closed");
        });
        let mut received = Vec::new();
        within("the echo", reader.read_to_end(&mut received)).await.expect("read");
        assert!(received == data);
        writing.await.expect("no panic");
        drop(reader);
        let refused = pair.uplink.open_websocket("/nothing", "rtsp.onvif.org", HeaderMap::new()).await;
        let reason = "no such path".to_owned();
        assert_eq!(
            refused.expect_err("refused"),
            OpenError::Refused { status: StatusCode::NOT_FOUND, challenges: Vec::new(), reason }
        );
        pair.end().await;
    }
    server.end().await;
}

/// Goal: pings within a WebSocket are answered, and bytes on both sides of one are not disturbed.
#[tokio::test]
async fn a_ping_within_a_websocket_is_answered() {
    /// Speaks WebSocket by hand: "ab", a ping, "c"; then reads the pong, masked as a client's.
    async fn by_hand(mut incoming: Incoming) {
        let mut body = std::mem::take(incoming.request.body_mut());
        let mut sender = incoming.respond_streaming(http::Response::new(())).expect("sent");
        sender.send(Bytes::from_static(b"\x02\x02ab\x89\x02hi\x80\x01c")).await.expect("sent");
        let mut pong = Vec::new();
        while pong.len() < 8 {
            pong.extend_from_slice(&body.next().await.expect("a pong").expect("a pong"));
        }
        let text = [pong[6] ^ pong[2], pong[7] ^ pong[3]];
        let verdict: &[u8] =
            if pong[..2] == [0x8A, 0x82] && text == *b"hi" { b"\x82\x01+" } else { b"\x82\x01-" };
        sender.send(Bytes::from_static(verdict)).await.expect("sent");
        sender.send(Bytes::from_static(b"\x88\x00")).await.expect("sent");
        sender.finish().expect("sent");
    }
    let mut server = Server::start().await;
    let pair = server.pair(Carrier::Native, Default::default(), by_hand).await;
    let mut stream = pair.uplink.open_websocket("/", "x", HeaderMap::new()).await.expect("a WebSocket");
    let mut text = String::new();
    within("the end", stream.read_to_string(&mut text)).await.expect("read");
    assert_eq!(text, "abc+");
    drop(stream);
    pair.end().await;
    server.end().await;
}

/// Goal: a device that answers at once, without wanting the body, has answered; also while the body is on its way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_overtakes_the_body_counts() {
    let mut server = Server::start().await;
    let pair = server.default_pair(Carrier::Native).await;
    for round in 0..500 {
        let request = Request::post("/nothing").body(Bytes::from(vec![1; 40_000])).expect("a request");
        let answered = within("an answer", pair.uplink.request(request)).await;
        let response = answered.unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
    }
    pair.end().await;
    server.end().await;
}
