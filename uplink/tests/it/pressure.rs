//! One slow party never slows another: back-pressure per stream, limits on streams, memory within the windows.

use crate::world::*;
use homing_uplink::*;
use http::HeaderMap;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Goal: with all but one stream stalled, the last one still moves megabytes, and what is buffered stays in the windows.
#[tokio::test]
async fn readers_that_stop_slow_nobody_and_grow_nothing() {
    let mut server = Server::start().await;
    for carrier in [Carrier::Native, Carrier::WebSocket] {
        let settings = UplinkSettings { stream_window: 128 << 10, max_streams: 16, ..Default::default() };
        let window = u64::from(settings.stream_window);
        let pair = server.pair(carrier, (settings, Default::default()), answer).await;
        let mut stalled = Vec::new();
        for _ in 0..15 {
            stalled.push(pair.uplink.request(get("/endless")).await.expect("an answer"));
        }
        let mut moving = pair.uplink.request(get("/endless")).await.expect("an answer").into_body();
        let mut moved = 0;
        while moved < 20_000_000 {
            moved += within("a chunk", moving.next()).await.expect("endless").expect("a chunk").len() as u64;
        }
        let stats = pair.uplink.stats();
        assert_eq!(stats.streams, 16);
        let buffered = stats.bytes_in - moved;
        let allowed = 16 * window + moved / 100;
        assert!(buffered < allowed, "{buffered} bytes wait where {allowed} may");
        assert!(buffered > 8 * window, "the stalled streams did fill: {buffered}");
        drop((stalled, moving));
        pair.end().await;
    }
    server.end().await;
}

/// Goal: what a line is said to carry is what packets on Ethernet make of it: nearly 4 % more for what comes in bulk, a packet's
/// headers and TLS's for each small message that comes alone.
#[tokio::test]
async fn the_line_carries_more_than_what_is_in_it() {
    let mut server = Server::start().await;
    let pair = server.pair(Carrier::Native, Default::default(), answer).await;
    let mut bulk = pair.uplink.request(get("/endless")).await.expect("an answer").into_body();
    let mut moved = 0;
    while moved < 5_000_000 {
        moved += within("a chunk", bulk.next()).await.expect("endless").expect("a chunk").len();
    }
    let stats = pair.uplink.stats();
    let share = stats.line_in as f64 / stats.bytes_in as f64;
    assert!((1.036..1.045).contains(&share), "{share}");
    pair.end().await;

    let pair = server.pair(Carrier::Native, Default::default(), answer).await;
    let mut echo = pair.uplink.open_websocket("/echo", "x", HeaderMap::new()).await.expect("a WebSocket");
    let before = pair.uplink.stats();
    let mut buffer = [0; 160];
    for _ in 0..100 {
        within("written", echo.write_all(&[7; 160])).await.expect("written");
        within("an echo", echo.read_exact(&mut buffer)).await.expect("read");
    }
    let after = pair.uplink.stats();
    let beside = (after.line_in - before.line_in) - (after.bytes_in - before.bytes_in);
    // IP, TCP and a record of TLS; credit for what was sent may come by itself.
    assert!((100 * 74..100 * 74 * 2).contains(&beside), "{beside} for a hundred messages");
    drop(echo);
    pair.end().await;
    server.end().await;
}

/// Goal: the same for WebSockets, and a stalled one goes on where it stopped.
#[tokio::test]
async fn a_stalled_websocket_slows_nobody_and_loses_nothing() {
    let mut server = Server::start().await;
    let settings = UplinkSettings { stream_window: 64 << 10, ..Default::default() };
    let pair = server.pair(Carrier::Native, (settings, Default::default()), answer).await;
    let open = || pair.uplink.open_websocket("/echo", "x", HeaderMap::new());
    let (mut stalled_reader, mut stalled_writer) = tokio::io::split(open().await.expect("a WebSocket"));
    let data: Vec<u8> = (0..2_000_000_u32).map(|n| (n % 239) as u8).collect();
    let sent = data.clone();
    let writing = server.tasks.spawn(async move {
        stalled_writer.write_all(&sent).await.expect("written");
        stalled_writer.shutdown().await.expect("closed");
    });
    let mut other = open().await.expect("a WebSocket");
    let mut buffer = [0; 8192];
    for round in 0..200_u8 {
        within("written", other.write_all(&[round; 8192])).await.expect("written");
        within("an echo", other.read_exact(&mut buffer)).await.expect("read");
        assert_eq!(buffer, [round; 8192]);
    }
    assert!(!writing.is_finished(), "two megabytes do not fit into the buffers");
    let mut received = Vec::new();
    within("the rest", stalled_reader.read_to_end(&mut received)).await.expect("read");
    assert!(received == data);
    drop((stalled_reader, other));
    pair.end().await;
    server.end().await;
}

/// Goal: a sender that gets no credit waits, at the device too.
#[tokio::test]
async fn an_upload_that_the_device_does_not_read_waits() {
    let mut server = Server::start().await;
    let serve = ServeSettings { stream_window: 64 << 10, ..Default::default() };
    let pair = server.pair(Carrier::Native, (Default::default(), serve), answer).await;
    let endless = pair.uplink.request(get("/endless")).await.expect("an answer").into_body();
    let request = http::Request::post("/silent").body(endless).expect("a request");
    let uplink = pair.uplink.clone();
    let uploading = server.tasks.spawn(async move { uplink.request_streaming(request).await });
    for _ in 0..50 {
        within("an answer", pair.uplink.request(get("/hello"))).await.expect("an answer");
    }
    let out = pair.uplink.stats().bytes_out;
    assert!(out < 400_000, "{out} bytes were sent to a reader with 64 kB of window");
    uploading.abort();
    pair.end().await;
    server.end().await;
}

/// Goal: the limit on streams is named, and a freed stream is used by who waits.
#[tokio::test]
async fn one_stream_too_many_waits_and_then_says_so() {
    let mut server = Server::start().await;
    let settings =
        UplinkSettings { max_streams: 2, stream_deadline: Duration::from_millis(200), ..Default::default() };
    let pair = server.pair(Carrier::Native, (settings, Default::default()), answer).await;
    let first = pair.uplink.request(get("/endless")).await.expect("an answer");
    let _second = pair.uplink.request(get("/endless")).await.expect("an answer");
    let error = within("the limit", pair.uplink.request(get("/hello"))).await.expect_err("no stream");
    assert_eq!(error, RequestError::NoFreeStream { limit: 2, waited: Duration::from_millis(200) });
    let waiting = pair.uplink.request(get("/hello"));
    drop(first);
    within("a stream", waiting).await.expect("an answer");
    pair.end().await;
    server.end().await;
}

/// Goal: a device that does not answer costs its request, not the uplink.
#[tokio::test]
async fn a_request_without_answer_times_out_alone() {
    let mut server = Server::start().await;
    let settings = UplinkSettings { response_deadline: Duration::from_millis(200), ..Default::default() };
    let pair = server.pair(Carrier::Native, (settings, Default::default()), answer).await;
    let error = within("the deadline", pair.uplink.request(get("/silent"))).await.expect_err("no answer");
    assert_eq!(error, RequestError::Timeout { waited: Duration::from_millis(200) });
    assert_eq!(pair.uplink.stats().streams, 0);
    pair.uplink.request(get("/hello")).await.expect("an answer");
    pair.end().await;
    server.end().await;
}
