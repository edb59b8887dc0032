//! The device's end against RFC 9113, rule by rule: `conformance.py` is the server that is dialled, and breaks one rule on
//! each uplink; here is the table of what must come back.
//!
//! Not here: floods (`flood`), and whole exchanges as they should be (`exchange`, `node`).

use crate::world::*;
use Came::{Closed, Reset, ResetAndClosed, Served};
use homing_uplink::*;
use serde_json::Value;
use std::process::Stdio;
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

// RFC 9113 §7.
const NO_ERROR: u64 = 0;
const PROTOCOL_ERROR: u64 = 1;
const FLOW_CONTROL_ERROR: u64 = 3;
const STREAM_CLOSED: u64 = 5;
const FRAME_SIZE_ERROR: u64 = 6;
const REFUSED_STREAM: u64 = 7;
const COMPRESSION_ERROR: u64 = 9;

/// What came back, when no requests were answered any more or the last one was.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Came {
    /// Requests are answered as if nothing had been sent.
    Served,
    /// RST_STREAM with this code on the stream that the case is about; requests on others are answered.
    Reset(u64),
    /// GOAWAY with this code, or none, and the end of TLS.
    Closed(Option<u64>),
    /// RST_STREAM with the first code, and when another request came GOAWAY with the second.
    ResetAndClosed(u64, u64),
}

/// One rule.
struct Case {
    /// Of RFC 9113 if no other is named.
    section: &'static str,
    /// What is sent, as `conformance.py` calls it.
    sent: &'static str,
    /// Any of these.
    must: Vec<Came>,
    /// What the script saw beyond that.
    told: &'static str,
}

fn case(section: &'static str, sent: &'static str, must: Vec<Came>) -> Case {
    Case { section, sent, must, told: "" }
}

/// Ignored, or answered with this.
fn served(section: &'static str, sent: &'static str, told: &'static str) -> Case {
    Case { section, sent, must: vec![Served], told }
}

/// A connection error. "A generic error code (such as PROTOCOL_ERROR or INTERNAL_ERROR) can always be used in place of more
/// specific error codes" (§5.4): so PROTOCOL_ERROR is right too, and no other.
fn connection(code: u64) -> Vec<Came> {
    vec![Closed(Some(code)), Closed(Some(PROTOCOL_ERROR))]
}

/// A stream error, which "an endpoint MAY choose to treat as a connection error" (§5.4.1); codes as in [`connection`].
fn stream(code: u64) -> Vec<Came> {
    [vec![Reset(code), Reset(PROTOCOL_ERROR)], connection(code)].concat()
}

/// A malformed request (§8.1.1).
fn malformed(section: &'static str, sent: &'static str) -> Case {
    case(section, sent, stream(PROTOCOL_ERROR))
}

/// In the order of the script.
#[rustfmt::skip]
fn table() -> Vec<Case> {
    vec![
        // A GOAWAY "MAY be omitted in this case".
        case("3.4", "a preface with one wrong octet", vec![Closed(None), Closed(Some(PROTOCOL_ERROR))]),
        case("3.4", "a preface without SETTINGS behind it", vec![Closed(None), Closed(Some(PROTOCOL_ERROR))]),

        served("4.1", "an unknown frame type", ""),
        served("4.1", "PING with flags that it does not have", ""),
        served("4.1", "the reserved bit before a stream identifier", ""),
        case("5.5", "an unknown frame type amid a field block", connection(PROTOCOL_ERROR)),
        served("4.2", "DATA of SETTINGS_MAX_FRAME_SIZE", "200, 16384 octets"),
        case("4.2", "DATA larger than SETTINGS_MAX_FRAME_SIZE", stream(FRAME_SIZE_ERROR)),
        case("4.2", "HEADERS larger than SETTINGS_MAX_FRAME_SIZE", connection(FRAME_SIZE_ERROR)),
        case("4.3", "an index beyond HPACK's tables", connection(COMPRESSION_ERROR)),
        case("4.3, RFC 7541 5.2", "a Huffman code padded by more than 7 bits", connection(COMPRESSION_ERROR)),
        case("4.3, RFC 7541 6.3", "a table larger than SETTINGS_HEADER_TABLE_SIZE", connection(COMPRESSION_ERROR)),
        case("4.3", "a field block that breaks off", connection(COMPRESSION_ERROR)),

        case("5.1", "DATA on an idle stream", connection(PROTOCOL_ERROR)),
        case("5.1", "RST_STREAM on an idle stream", connection(PROTOCOL_ERROR)),
        case("5.1", "WINDOW_UPDATE on an idle stream", connection(PROTOCOL_ERROR)),
        case("5.1", "CONTINUATION on an idle stream", connection(PROTOCOL_ERROR)),
        served("5.1", "PRIORITY on an idle stream", ""),
        case("5.1", "DATA on a half-closed stream", stream(STREAM_CLOSED)),
        case("5.1", "HEADERS on a half-closed stream", stream(STREAM_CLOSED)),
        served("5.1", "WINDOW_UPDATE and PRIORITY on a half-closed stream", ""),
        case("6.1", "DATA on a closed stream", stream(STREAM_CLOSED)),
        case("5.1.1", "HEADERS on a closed stream", connection(STREAM_CLOSED)),
        served("5.1", "WINDOW_UPDATE, PRIORITY and RST_STREAM on a closed stream", ""),
        case("6.1", "DATA on a stream that was reset", stream(STREAM_CLOSED)),
        case("5.1.1", "HEADERS on a stream that was reset", connection(STREAM_CLOSED)),
        case("5.1.1", "a request on an even stream", connection(PROTOCOL_ERROR)),
        case("5.1.1", "a request on a lower stream than before", connection(PROTOCOL_ERROR)),
        // The choice between the two is the device's.
        Case { told: "limit 64", ..case("5.1.2", "one stream more than SETTINGS_MAX_CONCURRENT_STREAMS",
            vec![Reset(REFUSED_STREAM), Reset(PROTOCOL_ERROR)]) },

        // RFC 9113 has nothing on it any more; in RFC 7540 §5.3.1 it was a stream error.
        case("5.3.2", "PRIORITY that depends on itself", [vec![Served], stream(PROTOCOL_ERROR)].concat()),
        case("5.3.2", "HEADERS that depend on themselves", [vec![Served], stream(PROTOCOL_ERROR)].concat()),
        case("6.3", "PRIORITY on stream 0", connection(PROTOCOL_ERROR)),
        case("6.3", "PRIORITY of 4 octets", stream(FRAME_SIZE_ERROR)),

        case("6.1", "DATA on stream 0", connection(PROTOCOL_ERROR)),
        case("6.1", "DATA with more padding than payload", connection(PROTOCOL_ERROR)),
        case("6.2", "HEADERS on stream 0", connection(PROTOCOL_ERROR)),
        case("6.2", "HEADERS with more padding than payload", connection(PROTOCOL_ERROR)),
        served("6.2", "padding and a priority, as they may be", "200, 6 octets"),

        case("6.4", "RST_STREAM on stream 0", connection(PROTOCOL_ERROR)),
        case("6.4", "RST_STREAM of 3 octets", connection(FRAME_SIZE_ERROR)),
        served("7", "RST_STREAM with an unknown error code", ""),

        case("6.5", "SETTINGS on a stream", connection(PROTOCOL_ERROR)),
        case("6.5", "SETTINGS with ACK and a payload", connection(FRAME_SIZE_ERROR)),
        case("6.5", "SETTINGS of 3 octets", connection(FRAME_SIZE_ERROR)),
        case("6.5.2", "SETTINGS_ENABLE_PUSH of 2", connection(PROTOCOL_ERROR)),
        case("6.5.2", "SETTINGS_INITIAL_WINDOW_SIZE of 2^31", connection(FLOW_CONTROL_ERROR)),
        case("6.5.2", "SETTINGS_MAX_FRAME_SIZE of 16383", connection(PROTOCOL_ERROR)),
        case("6.5.2", "SETTINGS_MAX_FRAME_SIZE of 2^24", connection(PROTOCOL_ERROR)),
        served("6.5.2", "an unknown setting", ""),

        served("6.7", "PING", "00686f6d696e67ff"),
        served("6.7", "PING with ACK, unasked", "not answered"),
        case("6.7", "PING on a stream", connection(PROTOCOL_ERROR)),
        case("6.7", "PING of 6 octets", connection(FRAME_SIZE_ERROR)),

        case("6.8", "GOAWAY on a stream", connection(PROTOCOL_ERROR)),
        case("6.8", "GOAWAY of 7 octets", connection(FRAME_SIZE_ERROR)),
        // The request is answered, then the device goes in order.
        Case { told: "200, 6 octets", ..case("6.8", "GOAWAY while a request is under way",
            vec![Closed(Some(NO_ERROR))]) },

        case("6.9", "WINDOW_UPDATE of 0 on the connection", connection(PROTOCOL_ERROR)),
        case("6.9", "WINDOW_UPDATE of 0 on a stream", stream(PROTOCOL_ERROR)),
        case("6.9", "WINDOW_UPDATE of 3 octets", connection(FRAME_SIZE_ERROR)),
        case("6.9.1", "more than 2^31-1 of window on the connection", connection(FLOW_CONTROL_ERROR)),
        case("6.9.1", "more than 2^31-1 of window on a stream", stream(FLOW_CONTROL_ERROR)),
        case("6.9.2", "more than 2^31-1 of window by SETTINGS", connection(FLOW_CONTROL_ERROR)),
        served("6.9.1", "a stream's window of 1, then 2 more twice", "[1, 3, 5]"),
        served("6.9.2", "a stream's window that becomes negative", "[3, 3, 4]"),
        served("6.9.1", "the connection's window, then 10 more", "[65535, 65545]"),
        case("6.9.1", "more DATA than the stream's window", stream(FLOW_CONTROL_ERROR)),

        case("6.10", "CONTINUATION behind a complete field block", connection(PROTOCOL_ERROR)),
        case("6.2", "PING amid a field block", connection(PROTOCOL_ERROR)),
        case("6.2", "HEADERS of another stream amid a field block", connection(PROTOCOL_ERROR)),
        case("6.2", "CONTINUATION of another stream", connection(PROTOCOL_ERROR)),
        case("6.10", "CONTINUATION on stream 0", connection(PROTOCOL_ERROR)),
        served("6.10", "three CONTINUATIONs, one of them empty", "200, 5 octets"),

        malformed("8.1", "trailers without END_STREAM"),
        malformed("8.1", "trailers with a pseudo-header field"),
        malformed("8.1.1", "content-length 1 with 6 octets"),
        malformed("8.1.1", "content-length 10 with 6 octets"),
        malformed("8.1.1", "content-length 10 without a body"),
        served("8.1.1", "content-length 10 with as much in two frames", "200, 10 octets"),
        malformed("8.2.1", "an uppercase field name"),
        malformed("8.2.1", "a space in a field name"),
        malformed("8.2.1", "a colon in a field name"),
        malformed("8.2.1", "a line feed in a field value"),
        malformed("8.2.1", "a space before a field value"),
        malformed("8.2.2", "connection"),
        malformed("8.2.2", "transfer-encoding"),
        malformed("8.2.2", "te: gzip"),
        served("8.2.2", "te: trailers", "200, 5 octets"),
        malformed("8.3", "an unknown pseudo-header field"),
        malformed("8.3", ":status in a request"),
        malformed("8.3", "a pseudo-header field behind a regular one"),
        malformed("8.3.1", "no :method"),
        malformed("8.3.1", "no :scheme"),
        malformed("8.3.1", "no :path"),
        malformed("8.3.1", "neither :path nor :authority"),
        malformed("8.3.1", "an empty :path"),
        malformed("8.3", ":method twice"),
        malformed("8.3", ":path twice"),
        case("8.4", "PUSH_PROMISE", connection(PROTOCOL_ERROR)),
        malformed("8.5", "CONNECT with :scheme and :path"),
        malformed("RFC 8441 4", ":protocol with GET"),
        malformed("RFC 8441 4", "extended CONNECT without :path"),

        served("3.4", "nothing that is forbidden", ""),
    ]
}

/// Where the `h2` crate (0.4.20) does other than it must: what comes instead, and why that harms nobody here.
const DEVIATIONS: [(&str, Came, &str); 4] = [
    (
        "a preface without SETTINGS behind it",
        Served,
        "it takes any frame for the first; the values by default count until SETTINGS come, and nothing waits for them",
    ),
    (
        "HEADERS that depend on themselves",
        ResetAndClosed(PROTOCOL_ERROR, PROTOCOL_ERROR),
        "it resets the stream without decoding the field block, against §4.3, and knows HPACK's tables no more: the server \
         that sent it loses its own uplink, which dials again; nobody needs priorities, which RFC 9113 has deprecated",
    ),
    (
        "trailers with a pseudo-header field",
        Served,
        "it ignores the field; no service is given trailers at all",
    ),
    (
        "neither :path nor :authority",
        Served,
        "it makes that a request for `/`, which our code cannot tell from one; a service answers it as such",
    ),
];

/// What the script's line says of this case, or what is wrong with it.
fn came(line: &Value) -> Option<Came> {
    let code = |name: &str| line[name].as_u64();
    if line["silent"] != false || line["other_resets"] != 0 {
        return None;
    }
    match (line["served"].as_bool()?, line["closed"].as_str(), code("reset"), code("goaway")) {
        (true, None, None, None) => Some(Served),
        (true, None, Some(reset), None) => Some(Reset(reset)),
        (false, Some("orderly"), None, goaway) => Some(Closed(goaway)),
        (false, Some("orderly"), Some(reset), Some(goaway)) => Some(ResetAndClosed(reset, goaway)),
        _ => None,
    }
}

impl Case {
    /// What is wrong with what came, or with how the device saw the end of it.
    fn fault(&self, line: &Value, end: &EndReason) -> Option<String> {
        let fault = |what: &str| Some(format!("{}: {}: {what}: {line}, {end:?}", self.section, self.sent));
        let Some(came) = came(line) else { return fault("no clear answer") };
        let deviation = DEVIATIONS.iter().find(|(sent, ..)| *sent == self.sent);
        match deviation {
            Some((_, instead, _)) if self.must.contains(instead) => return fault("is no deviation"),
            Some((_, instead, why)) if came != *instead => {
                return fault(&format!("deviates otherwise, or no more ({why})"));
            }
            None if !self.must.contains(&came) => return fault("is not what must come"),
            _ => {}
        }
        if line["told"] != self.told {
            return fault("tells something else");
        }
        let as_seen = match came {
            Served | Reset(_) | Closed(Some(NO_ERROR)) => matches!(end, EndReason::PeerClosed),
            Closed(_) | ResetAndClosed(..) => matches!(end, EndReason::Protocol(_)),
        };
        if as_seen { None } else { fault("ends otherwise at the device") }
    }
}

/// Goal: whatever a server does that it must not, the device answers as RFC 9113 says, and is there again on its next uplink.
#[tokio::test]
async fn the_device_keeps_every_rule_of_http_2() {
    let (identity, device) = (Identity::server(), Identity::device("00408C702009"));
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in [
        ("cert.pem", &identity.certificate_pem),
        ("key.pem", &identity.key.serialize_pem()),
        ("ca.pem", &device.certificate_pem),
    ] {
        std::fs::write(folder.path().join(name), text).expect("written");
    }
    let mut python = Command::new("/usr/bin/python3")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/conformance.py"))
        .current_dir(folder.path())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("python3 with hyperframe and hpack: install the Debian package python3-h2");
    let mut lines = BufReader::new(python.stdout.take().expect("piped")).lines();
    let port = within("a port", lines.next_line()).await.expect("text").expect("a port");
    let address = format!("https://localhost:{port}/up").parse().expect("an address");
    let dialer = Dialer::new(address, device.client_config(&identity));
    let service = Arc::new(answer);

    let mut faults = Vec::new();
    for case in table() {
        let dialed = within(case.sent, dialer.dial()).await.expect("an uplink");
        let serving = dialed.serve(Arc::clone(&service), Default::default(), CancellationToken::new());
        let both = async { tokio::join!(serving, lines.next_line()) };
        let (end, line) = within(case.sent, both).await;
        let line = line.expect("text").expect("the script goes on");
        let line: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(
            line["case"], case.sent,
            "the table and the script have the same cases, in the same order"
        );
        faults.extend(case.fault(&line, &end));
    }
    assert!(within("the end of python", python.wait()).await.expect("it ran").success());
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}
