//! The engine against frames made by hand: what a device may do, and what it may not. Against other stacks: `tests/it`.

use super::frame::{self, Head};
use super::{Broken, Code, Engine, Receiver, Sender, hpack};
use crate::EndReason;
use crate::body::Chunk;
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::task::noop_waker;
use http::{Method, Request, StatusCode};
use proptest::prelude::*;
use std::task::{Context, Poll};

const WINDOW: u32 = 100_000;
const STREAMS: usize = 8;
const OUT_MAX: usize = 50_000;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::write(kind, flags, stream, payload, &mut bytes);
    bytes
}

fn settings(settings: &[(u16, u32)]) -> Vec<u8> {
    let of =
        |(name, value): &(u16, u32)| [name.to_be_bytes().to_vec(), value.to_be_bytes().to_vec()].concat();
    frame(frame::SETTINGS, 0, 0, &settings.iter().flat_map(of).collect::<Vec<u8>>())
}

fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    headers.iter().for_each(|(name, value)| hpack::encode(name, value.as_bytes(), false, &mut block));
    block
}

fn head(stream: u32, flags: u8, headers: &[(&str, &str)]) -> Vec<u8> {
    frame(frame::HEADERS, frame::END_HEADERS | flags, stream, &block(headers))
}

fn ok(stream: u32) -> Vec<u8> {
    head(stream, 0, &[(":status", "200")])
}

fn data(stream: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    frame(frame::DATA, flags, stream, payload)
}

/// The frames of what the engine sends, its preface left out.
fn frames(mut bytes: &[u8]) -> Vec<(Head, Vec<u8>)> {
    bytes = bytes.strip_prefix(frame::PREFACE).unwrap_or(bytes);
    let mut frames = Vec::new();
    while let Some((first, rest)) = bytes.split_first_chunk() {
        let head = Head::parse(first);
        frames.push((head, rest[..head.length].to_vec()));
        bytes = &rest[head.length..];
    }
    assert_eq!(bytes, b"");
    frames
}

fn engine() -> Engine {
    let engine = Engine::new(WINDOW, 10 * WINDOW, STREAMS, OUT_MAX);
    engine.receive(&settings(&[])).unwrap();
    engine.take_out();
    engine
}

fn open(engine: &Engine, method: Method, end: bool) -> (Receiver, Sender) {
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = "http://device/path".parse().unwrap();
    engine.open(&request, None, end).now_or_never().expect("a free stream").unwrap()
}

fn get(engine: &Engine) -> (Receiver, Sender) {
    open(engine, Method::GET, true)
}

fn status(receiver: &mut Receiver) -> Option<Result<StatusCode, Broken>> {
    Some(receiver.head().now_or_never()?.map(|response| response.status()))
}

/// What has come; and how it goes on: not yet, the end, or an error.
type Read = (Vec<u8>, Option<Result<(), Broken>>);

fn read(receiver: &mut Receiver) -> Read {
    let (waker, mut bytes) = (noop_waker(), Vec::new());
    let mut cx = Context::from_waker(&waker);
    loop {
        match receiver.poll_data(&mut cx) {
            Poll::Ready(Some(Ok(piece))) => bytes.extend_from_slice(&piece),
            Poll::Ready(Some(Err(broken))) => return (bytes, Some(Err(broken))),
            Poll::Ready(None) => return (bytes, Some(Ok(()))),
            Poll::Pending => return (bytes, None),
        }
    }
}

/// The DATA that goes out now, and whether it is the end.
fn sent(engine: &Engine) -> (Vec<u8>, bool) {
    let (mut bytes, mut end) = (Vec::new(), false);
    loop {
        let out = frames(&engine.take_out());
        if out.is_empty() {
            return (bytes, end);
        }
        for (head, payload) in out {
            if head.kind == frame::DATA {
                assert!(!end);
                bytes.extend(payload);
                end = head.has(frame::END_STREAM);
            }
        }
    }
}

fn resets(engine: &Engine) -> Vec<(u32, u32)> {
    let out = frames(&engine.take_out());
    let of = out.iter().filter(|(head, _)| head.kind == frame::RST_STREAM);
    of.map(|(head, payload)| (head.stream, frame::number(payload).unwrap())).collect()
}

#[test]
fn it_begins_with_large_windows_and_without_a_table() {
    let out = Engine::new(WINDOW, 10 * WINDOW, STREAMS, OUT_MAX).take_out();
    assert!(out.starts_with(frame::PREFACE));
    let frames = frames(&out);
    let [(first, told), (second, more)] = &frames[..] else { panic!("{frames:?}") };
    assert_eq!((first.kind, second.kind, second.stream), (frame::SETTINGS, frame::WINDOW_UPDATE, 0));
    assert_eq!(frame::number(more), Some(10 * WINDOW - 65_535));
    for (name, value) in
        [(frame::INITIAL_WINDOW_SIZE, WINDOW), (frame::HEADER_TABLE_SIZE, 0), (frame::ENABLE_PUSH, 0)]
    {
        let setting = [name.to_be_bytes().as_slice(), &value.to_be_bytes()].concat();
        assert!(told.chunks(6).any(|told| told == setting), "{name}");
    }
}

/// Goal: an answer in every shape that the standard allows: padded, with a priority, in pieces, after a 103, with trailers.
#[test]
fn answers_come_in_every_shape() {
    let engine = engine();
    let (mut receiver, _sender) = get(&engine);
    let answer = block(&[(":status", "200"), ("server", "x")]);
    let (first, second) = answer.split_at(3);
    let bytes = [
        head(1, 0, &[(":status", "103"), ("link", "</x>")]),
        frame(frame::PRIORITY, 0, 1, &[0; 5]),
        frame(
            frame::HEADERS,
            frame::PADDED | frame::WITH_PRIORITY,
            1,
            &[&[2, 0, 0, 0, 0, 9], first, &[0, 0]].concat(),
        ),
        frame(frame::CONTINUATION, frame::END_HEADERS, 1, second),
        data(1, 0, b"one "),
        data(1, frame::PADDED, b"\x03two \0\0\0"),
        frame(200, 0xFF, 1, b"unknown"),
        data(1, 0, b""),
        data(1, 0, b"three"),
        head(1, frame::END_STREAM, &[("x-checksum", "1")]),
    ];
    engine.receive(&bytes.concat()).unwrap();
    let response = receiver.head().now_or_never().unwrap().unwrap();
    assert_eq!(
        (response.status(), response.headers()["server"].as_bytes()),
        (StatusCode::OK, b"x".as_slice())
    );
    assert_eq!(read(&mut receiver), (b"one two three".to_vec(), Some(Ok(()))));
}

/// Goal: what a device does wrong on one stream breaks that one, which it is told, and no other.
#[test]
fn a_malformed_answer_breaks_its_own_stream() {
    let long = "x".repeat(20_000);
    let wrong: [Vec<u8>; 12] = [
        data(1, 0, b"before the head"),
        head(1, 0, &[("server", "no status")]),
        head(1, frame::END_STREAM, &[(":status", "100")]),
        head(1, 0, &[(":status", "101")]),
        [ok(1), ok(1)].concat(),
        [ok(1), head(1, 0, &[("trailer", "without the end")])].concat(),
        head(1, 0, &[(":status", "200"), ("connection", "close")]),
        head(1, 0, &[(":status", "200"), ("content-length", "+5")]),
        [head(1, 0, &[(":status", "200"), ("content-length", "3")]), data(1, 0, b"four")].concat(),
        [head(1, 0, &[(":status", "200"), ("content-length", "3")]), data(1, frame::END_STREAM, b"tw")]
            .concat(),
        [head(1, 0, &[(":status", "204")]), data(1, 0, b"a body")].concat(),
        [
            frame(frame::HEADERS, 0, 1, &block(&[(":status", "200"), ("a", &long)])[..16_000]),
            frame(frame::CONTINUATION, 0, 1, &block(&[(":status", "200"), ("a", &long)])[16_000..]),
            frame(frame::CONTINUATION, frame::END_HEADERS, 1, &block(&[("b", &long)])[..15_000]),
        ]
        .concat(),
    ];
    for (number, wrong) in wrong[..11].iter().enumerate() {
        let engine = engine();
        let (mut first, _sender) = get(&engine);
        let (mut second, _other) = get(&engine);
        engine.take_out();
        engine.receive(wrong).unwrap_or_else(|fault| panic!("{number}: {fault:?}"));
        assert_eq!(resets(&engine), [(1, Code::PROTOCOL_ERROR.0)], "{number}");
        let _ = status(&mut first);
        let (_, end) = read(&mut first);
        assert!(matches!(end, Some(Err(Broken::Malformed(_)))), "{number}: {end:?}");
        engine.receive(&[ok(3), data(3, frame::END_STREAM, b"fine")].concat()).unwrap();
        assert_eq!(status(&mut second), Some(Ok(StatusCode::OK)), "{number}");
        assert_eq!(read(&mut second), (b"fine".to_vec(), Some(Ok(()))), "{number}");
    }
    // A block that is cut in the middle of a header ends the connection: nobody knows what its table holds.
    let cut = engine();
    let _stream = get(&cut);
    assert!(cut.receive(&wrong[11]).is_err());
}

/// Goal: what is wrong with the connection ends it, and says what.
#[test]
fn what_breaks_the_connection_is_named() {
    let endless: Vec<u8> = (0..100).flat_map(|_| frame(frame::CONTINUATION, 0, 1, &[0; 1000])).collect();
    for (wrong, what) in [
        (frame(frame::PUSH_PROMISE, 4, 1, &[0, 0, 0, 2]), "pushes"),
        (ok(2), "never opened"),
        (ok(5), "never opened"),
        (data(0, 0, b"x"), "wrong kind"),
        (frame(frame::PING, 0, 1, &[0; 8]), "wrong kind"),
        (frame(frame::PING, 0, 0, &[0; 7]), "size"),
        (frame(frame::SETTINGS, 0, 0, &[0; 5]), "size"),
        (frame(frame::SETTINGS, frame::ACK, 0, &[0; 6]), "size"),
        (frame(frame::RST_STREAM, 0, 1, &[0; 3]), "size"),
        (frame(frame::WINDOW_UPDATE, 0, 0, &[0; 4]), "range"),
        (frame(frame::WINDOW_UPDATE, 0, 0, &[0x7F, 0xFF, 0xFF, 0xFF]), "range"),
        (settings(&[(frame::INITIAL_WINDOW_SIZE, 0x8000_0000)]), "range"),
        (settings(&[(frame::MAX_FRAME_SIZE, 100)]), "range"),
        (settings(&[(frame::ENABLE_PUSH, 1)]), "range"),
        (settings(&[(frame::ENABLE_CONNECT_PROTOCOL, 2)]), "range"),
        (frame(frame::HEADERS, frame::END_HEADERS, 1, &[0xFF, 0xFF, 0xFF, 0xFF]), "decoded"),
        (frame(frame::HEADERS, frame::END_HEADERS | frame::PADDED, 1, &[9, 0x88]), "padding"),
        (frame(frame::CONTINUATION, frame::END_HEADERS, 1, &[0x88]), "continued"),
        ([frame(frame::HEADERS, 0, 1, &[]), frame(frame::PING, 0, 0, &[0; 8])].concat(), "continued"),
        ([frame(frame::HEADERS, 0, 1, &[]), endless].concat(), "no end"),
        (vec![0xFF; 9], "longer"),
        (frame(frame::GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 11]), "too much"),
    ] {
        let engine = engine();
        let _stream = get(&engine);
        let fault = engine.receive(&wrong).expect_err(what);
        assert!(fault.reason.to_string().contains(what), "{what}: {fault:?}");
    }
    let engine = Engine::new(WINDOW, 10 * WINDOW, STREAMS, OUT_MAX);
    assert!(engine.receive(&frame(frame::PING, 0, 0, &[0; 8])).is_err(), "SETTINGS come first");
}

/// Goal: a device that sends beyond a stream's window is stopped; credit comes back as the reader reads, and only then.
#[test]
fn credit_is_given_back_when_it_is_read() {
    let engine = engine();
    let (mut receiver, _sender) = get(&engine);
    let half = vec![7; WINDOW as usize / 2];
    let bytes: Vec<u8> = half.chunks(16_000).flat_map(|piece| data(1, 0, piece)).collect();
    engine.receive(&ok(1)).unwrap();
    engine.take_out();
    for _ in 0..10 {
        engine.receive(&bytes).unwrap();
        assert!(engine.take_out().is_empty(), "nothing was read yet");
        assert_eq!(read(&mut receiver).0, half);
        let out = frames(&engine.take_out());
        let credit: u32 = out
            .iter()
            .filter(|(head, _)| head.kind == frame::WINDOW_UPDATE && head.stream == 1)
            .map(|(_, more)| frame::number(more).unwrap())
            .sum();
        assert_eq!(credit, WINDOW / 2);
    }
    engine.receive(&[bytes.clone(), bytes.clone(), data(1, 0, b"one more")].concat()).unwrap();
    assert_eq!(resets(&engine), [(1, Code::FLOW_CONTROL_ERROR.0)]);
}

/// Goal: we send within the device's windows, whatever it does to them, each byte once and in order.
#[test]
fn what_is_sent_stays_within_the_windows() {
    let engine = engine();
    let (_receiver, mut sender) = open(&engine, Method::POST, false);
    engine.take_out();
    let body: Bytes = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
    sender.send_data(Chunk::from(body.clone()), true).unwrap();
    let (mut received, mut end) = sent(&engine);
    assert_eq!(received.len(), 65_535, "both windows");
    assert!(!sender.has_credit(1));
    engine.receive(&frame(frame::WINDOW_UPDATE, 0, 0, &100_000_u32.to_be_bytes())).unwrap();
    assert_eq!(sent(&engine).0, b"", "the stream's window is still closed");
    engine.receive(&settings(&[(frame::INITIAL_WINDOW_SIZE, 65_536)])).unwrap();
    received.extend(sent(&engine).0);
    assert_eq!(received.len(), 65_536);
    // A window below nothing.
    engine.receive(&settings(&[(frame::INITIAL_WINDOW_SIZE, 0)])).unwrap();
    engine.receive(&frame(frame::WINDOW_UPDATE, 0, 1, &65_536_u32.to_be_bytes())).unwrap();
    assert_eq!(sent(&engine).0, b"");
    engine.receive(&frame(frame::WINDOW_UPDATE, 0, 1, &1_000_000_u32.to_be_bytes())).unwrap();
    engine.receive(&frame(frame::WINDOW_UPDATE, 0, 0, &1_000_000_u32.to_be_bytes())).unwrap();
    let rest = sent(&engine);
    received.extend(rest.0);
    end |= rest.1;
    assert!(end && received == body);
    assert!(sender.send_data(Chunk::default(), false).is_ok());
}

/// Goal: one stream that sends all the time leaves the others their turn, and what waits for the socket is bounded.
#[test]
fn streams_share_what_goes_out() {
    let engine = engine();
    engine.receive(&settings(&[(frame::INITIAL_WINDOW_SIZE, 10_000_000)])).unwrap();
    engine.receive(&frame(frame::WINDOW_UPDATE, 0, 0, &10_000_000_u32.to_be_bytes())).unwrap();
    let mut streams: Vec<_> = (0..4).map(|_| open(&engine, Method::POST, false)).collect();
    engine.take_out();
    for (_, sender) in &mut streams {
        sender.send_data(Chunk::from(Bytes::from(vec![1; 1_000_000])), false).unwrap();
    }
    let mut shares = [0; 4];
    for _ in 0..8 {
        let out = engine.take_out();
        assert!(out.len() < OUT_MAX + 17_000, "{}", out.len());
        frames(&out).iter().for_each(|(head, _)| shares[head.stream as usize / 2] += head.length);
    }
    let [least, most] = [shares.iter().min().unwrap(), shares.iter().max().unwrap()];
    assert!(most - least <= 4 * 16_384, "{shares:?}");
}

/// Goal: the limits on streams, ours and the device's, hold; a stream that is dropped is cancelled, forgotten and free.
#[test]
fn streams_are_limited_and_forgotten() {
    let engine = engine();
    let request = Request::new(());
    let mut streams: Vec<_> = (0..STREAMS).map(|_| get(&engine)).collect();
    assert!(engine.open(&request, None, true).now_or_never().is_none());
    engine.receive(&settings(&[(frame::MAX_CONCURRENT_STREAMS, 2)])).unwrap();
    engine.take_out();
    streams.truncate(2);
    assert_eq!(engine.streams(), 2);
    assert_eq!(resets(&engine).len(), STREAMS - 2);
    assert!(engine.open(&request, None, true).now_or_never().is_none());
    engine.receive(&[ok(1), data(1, frame::END_STREAM, b"done")].concat()).unwrap();
    drop(streams);
    assert_eq!(engine.streams(), 0);
    assert_eq!(resets(&engine), [(3, Code::CANCEL.0)], "the other one was over");
    // What still comes of them is nothing.
    engine.receive(&[ok(3), data(3, 0, b"late"), frame(frame::RST_STREAM, 0, 3, &[0; 4])].concat()).unwrap();
}

/// Goal: a device that leaves takes no more requests; what it has begun it may end.
#[test]
fn a_goodbye_lets_what_is_begun_end() {
    let engine = engine();
    let (mut first, _sender) = get(&engine);
    let (mut second, _other) = get(&engine);
    engine.receive(&frame(frame::GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0])).unwrap();
    assert_eq!(status(&mut second), Some(Err(Broken::Ended(EndReason::PeerClosed))));
    let refused = engine.open(&Request::new(()), None, true).now_or_never().unwrap();
    assert_eq!(refused.err(), Some(Broken::Ended(EndReason::PeerClosed)));
    engine.take_out();
    assert_eq!(engine.wants_end(), None);
    engine.receive(&[ok(1), data(1, frame::END_STREAM, b"last words")].concat()).unwrap();
    assert_eq!(status(&mut first), Some(Ok(StatusCode::OK)));
    assert_eq!(read(&mut first), (b"last words".to_vec(), Some(Ok(()))));
    drop((first, _sender, second, _other));
    engine.take_out();
    assert_eq!(engine.wants_end(), Some(EndReason::PeerClosed));
}

/// Goal: the answer to HEAD has a length and no body.
#[test]
fn an_answer_to_head_has_no_body() {
    let engine = engine();
    let (mut receiver, _sender) = open(&engine, Method::HEAD, true);
    engine.receive(&head(1, frame::END_STREAM, &[(":status", "200"), ("content-length", "5000")])).unwrap();
    assert_eq!(status(&mut receiver), Some(Ok(StatusCode::OK)));
    assert_eq!(read(&mut receiver), (Vec::new(), Some(Ok(()))));
}

/// Goal: a device that asks and never reads is given up before its answers fill the memory.
#[test]
fn answers_that_nobody_reads_are_bounded() {
    let engine = engine();
    let pings = frame(frame::PING, 0, 0, &[0; 8]).repeat(100);
    let fault = (0..1000).find_map(|_| engine.receive(&pings).err()).expect("an end");
    assert!(matches!(fault.reason, EndReason::Flooded { .. } | EndReason::Protocol(_)), "{fault:?}");
    assert!(engine.take_out().len() < 250_000);
}

/// Goal: an uplink on which nothing happens holds no buffer, whatever has happened before.
#[test]
fn an_idle_uplink_holds_nothing() {
    let engine = engine();
    for round in 0..50_u32 {
        let (mut receiver, sender) = get(&engine);
        let stream = 1 + 2 * round;
        let answer =
            [ok(stream), data(stream, 0, &[1; 10_000]), data(stream, frame::END_STREAM, &[])].concat();
        let (first, second) = answer.split_at(5000);
        engine.receive(first).unwrap();
        engine.receive(second).unwrap();
        assert_eq!(status(&mut receiver), Some(Ok(StatusCode::OK)));
        assert_eq!(read(&mut receiver).0.len(), 10_000);
        drop((receiver, sender));
        engine.take_out();
    }
    let state = engine.0.state.lock().unwrap();
    assert_eq!((state.out.capacity(), state.streams.capacity(), state.held()), (0, 0, 0));
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..60),
        Just(block(&[(":status", "200"), ("server", "x")])),
        Just(vec![0; 16_000]),
        Just(vec![0, 0, 0, 1]),
    ];
    let kind = prop_oneof![4 => Just(frame::DATA), 3 => Just(frame::HEADERS), 3 => 2_u8..12];
    let flags = prop_oneof![Just(0), Just(1), Just(4), Just(5), any::<u8>()];
    let stream = prop_oneof![4 => Just(1_u32), 2 => Just(3), 1 => Just(0), 1 => 0_u32..20];
    (kind, flags, stream, payload)
        .prop_map(|(kind, flags, stream, payload)| frame(kind, flags, stream, &payload))
}

/// What can be seen of an engine after it has received something.
fn outcome(pieces: &[&[u8]]) -> (bool, Vec<u8>, Vec<Read>) {
    let engine = engine();
    let mut streams = [get(&engine), open(&engine, Method::POST, false)];
    let fault = pieces.iter().find_map(|piece| engine.receive(piece).err());
    {
        let state = engine.0.state.lock().unwrap();
        assert!(state.held() <= 2 * (WINDOW as usize + 65_536) + 90_000, "{} bytes are held", state.held());
        assert!(state.out.len() < OUT_MAX + 70_000);
    }
    let read = streams.each_mut().map(|(receiver, _)| read(receiver));
    (fault.is_some(), engine.take_out(), read.to_vec())
}

proptest! {
    /// Goal: whatever frames come, however they are cut, nothing panics, nothing grows, and the cuts make no difference.
    #[test]
    fn any_frames_however_cut_come_to_the_same(
        frames in prop::collection::vec(any_frame(), 0..40),
        cut in prop_oneof![Just(1_usize), Just(8), Just(9), 1_usize..5000],
    ) {
        let bytes = frames.concat();
        let whole = outcome(&[&bytes]);
        let pieces: Vec<&[u8]> = bytes.chunks(cut).collect();
        prop_assert_eq!(whole, outcome(&pieces));
    }

    #[test]
    fn garbage_does_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        outcome(&[&bytes]);
    }
}

/// Goal: what was on its way when a stream ended is let pass, as much as all windows of an uplink hold; a device that goes on
/// sending what nobody can take loses its uplink.
#[test]
fn data_that_nobody_can_take_is_let_pass_for_a_while() {
    let engine = engine();
    let (mut receiver, _sender) = get(&engine);
    engine.receive(&head(1, 0, &[(":status", "200"), ("content-length", "5")])).unwrap();
    assert_eq!(status(&mut receiver).unwrap().unwrap(), StatusCode::OK);
    let piece = data(1, 0, &[7; 1000]);
    engine.receive(&piece).unwrap();
    assert!(read(&mut receiver).1.unwrap().is_err(), "longer than it says");
    drop(receiver);
    let passed = (0..20_000).take_while(|_| {
        engine.take_out();
        engine.receive(&piece).is_ok()
    });
    let passed = passed.count();
    assert!((4_096..12_000).contains(&passed), "{passed}");
}
