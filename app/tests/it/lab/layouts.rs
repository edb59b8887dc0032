//! Each layout of docs/network.md from the button to recorded video, through the rules that stand there; and what that
//! costs on the site's line, against what `homing plan` says.

use super::{
    camera::{Encoding, GOP},
    layout::{DISPATCHER_API_PORT, DISPATCHER_IPV6, DISPATCHER_PORT, EXTERNAL_IPV6, GATEWAY_PORT, Layout},
    pictures::{assert_as_sent, assert_none_missing, pictures, slices},
    topology::{Lab, SITE_IPV6},
    world::World,
};
use crate::harness::{seconds, wait_for};
use homing_management::plan::{Overhead, STORED_PER_FRAME};
use jiff::{SignedDuration, Timestamp};

/// How long the line is watched.
const WATCHED: SignedDuration = SignedDuration::from_secs(15);
/// How far the plan may be from the wire.
const TOLERANCE: f64 = 0.02;
/// A-law: bytes a second, and packets of as many samples as the camera's source makes at a time.
const SOUND: f64 = 8000.0;
const SOUND_PACKETS: f64 = SOUND / 1024.0;
/// The camera sends an access unit delimiter ahead of each picture, in a packet of its own: bytes.
const DELIMITER: f64 = 2.0;

/// What the site's line carried, against the plan.
struct Line {
    what: String,
    payload: f64,
    up: f64,
    planned_up: f64,
    down: f64,
    planned_down: f64,
}

/// The goal: in each of the three layouts a device presses, is dispatched, added and recorded, picture by picture, and is
/// watched by ffmpeg beside the VMS through the RTSP gateway, over TCP and UDP, while nothing else is reachable. The lines of the three sites carry what the plan says, within a few per cent: a usual
/// stream with sound, the white paper's, and a large one.
#[test]
fn video_passes_in_every_layout_and_the_plan_says_what_the_wire_carries() {
    let sound = Encoding::default();
    let white_paper = Encoding { fps: 8, gop: 16, kbit: 500, audio: false };
    let large = Encoding { fps: 25, gop: GOP, kbit: 2500, audio: false };
    let lines: Vec<Line> = std::thread::scope(|scope| {
        let all = Layout::ALL.into_iter().zip([sound, white_paper, large]);
        let running: Vec<_> =
            all.map(|(layout, encoding)| scope.spawn(move || pass(layout, encoding))).collect();
        running.into_iter().map(|one| one.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).collect()
    });
    for Line { what, payload, up, planned_up, down, planned_down } in &lines {
        println!(
            "{what}: payload {payload:.0} B/s; up {up:.0} (+{:.1} %), planned {planned_up:.0} (+{:.1} %); \
             down {down:.0}, planned {planned_down:.0}",
            (up / payload - 1.0) * 100.0,
            (planned_up / payload - 1.0) * 100.0
        );
    }
    for line in lines {
        assert!((line.up / line.planned_up - 1.0).abs() < TOLERANCE, "{}: not as planned", line.what);
        assert!(line.down < 1.3 * line.planned_down, "{}: more downwards than planned", line.what);
    }
}

fn pass(layout: Layout, encoding: Encoding) -> Line {
    let lab = Lab::new(layout);
    let from_outside = lab.prove_the_watch_sees();
    let mut world = World::build(&lab, encoding);
    world.register().unwrap();
    world.agent("press").unwrap();
    world.wait_for_device("yellow", "tunnel", seconds(30));
    let camera = world.add();
    let first = wait_for("a first frame is recorded", seconds(30), || world.last_frame(camera));
    wait_for("the start is over", seconds(30), || {
        world.recorded_until(camera, first + SignedDuration::from_secs(4))
    });

    let (began, before) = (Timestamp::now(), lab.carried());
    wait_for("the line was watched", seconds(60), || world.recorded_until(camera, began + WATCHED));
    let (ended, after) = (Timestamp::now(), lab.carried());

    // What is not secured yet is in no export.
    let secured = began + WATCHED + SignedDuration::from_secs(5);
    wait_for("what was watched is on disk", seconds(30), || world.recorded_until(camera, secured));
    let export = world.export(camera, began, began + WATCHED);
    let (recorded, stored) = (pictures(&export), std::fs::metadata(&export).unwrap().len() as f64);
    let sent = world.camera.sent();
    let start = assert_as_sent(&recorded, &sent, 0.05);
    assert!(recorded.len() as u32 >= encoding.fps * 14, "{layout:?}: {} pictures", recorded.len());
    layout.let_udp_through(&lab);
    for transport in ["tcp", "udp"] {
        let units = encoding.fps * 5;
        let seen = slices(&world.watch(transport, units));
        assert_eq!(seen.len(), units as usize, "{layout:?}: over {transport}");
        assert_none_missing(&seen, &world.camera.sent());
    }
    assert_eq!(lab.arrivals().begun(), from_outside.begun(), "{layout:?}: somebody connected to the site");
    lab.betray_the_centre();
    let walls = layout.walls(&lab);
    std::thread::scope(|scope| {
        for (from, name, to) in &walls {
            scope.spawn(move || assert!(from.connect(to).is_err(), "{layout:?}: {name} connected to {to}"));
        }
    });
    world.end();

    let second = |moment: Timestamp| moment.as_microsecond() as f64 / 1e6;
    let within: Vec<u64> = sent
        .iter()
        .filter(|picture| (second(began)..second(ended)).contains(&picture.time))
        .map(|picture| picture.bytes)
        .collect();
    let took = second(ended) - second(began);
    let (video, fps) = (within.iter().sum::<u64>() as f64 / took, f64::from(encoding.fps));
    let mut streams = vec![(video, fps), (DELIMITER * fps, fps)];
    if encoding.audio {
        streams.push((SOUND, SOUND_PACKETS));
    } else {
        let frames = &sent[start..start + recorded.len()];
        let planned = frames.iter().map(|frame| frame.bytes as f64 + STORED_PER_FRAME).sum::<f64>();
        assert!(
            (stored / planned - 1.0).abs() < TOLERANCE,
            "{layout:?}: {stored} B stored, planned {planned}"
        );
    }
    let way = Overhead::new(false);
    let sum =
        |of: &dyn Fn(f64, f64) -> f64| streams.iter().map(|(bytes, frames)| of(*bytes, *frames)).sum::<f64>();
    Line {
        what: format!("{layout:?} {encoding:?}"),
        payload: sum(&|bytes, _| bytes),
        up: (after.0 - before.0) as f64 / took,
        planned_up: sum(&|bytes, frames| way.wire(bytes, frames)),
        down: (after.1 - before.1) as f64 / took,
        planned_down: sum(&|bytes, frames| way.acknowledgements(bytes, frames)),
    }
}

/// The goal: a site that has IPv6 reaches a tunnel server that has it, without any translation, and is recorded picture by
/// picture; by IPv6, too, nobody reaches anything else, and nobody connects to the site.
#[test]
fn a_device_comes_over_ipv6() {
    let lab = Lab::with_ipv6();
    let dispatcher = lab.internet().listen(&format!("[{DISPATCHER_IPV6}]:{DISPATCHER_API_PORT}"));
    lab.tunnel().connect(&dispatcher.local_addr().unwrap().to_string()).expect("out to the dispatcher");

    let mut world = World::build(&lab, Encoding::default());
    let from_outside = lab.arrivals();
    world.register().unwrap();
    world.agent("press").unwrap();
    let device = world.wait_for_device("yellow", "tunnel", seconds(30));
    let peer = device["peer"].as_str().unwrap_or_default();
    assert!(peer.starts_with(&format!("[{SITE_IPV6}]:")), "{device}");
    let camera = world.add();
    let first = wait_for("a first frame is recorded", seconds(30), || world.last_frame(camera));
    let (start, end) = (first + SignedDuration::from_secs(1), first + SignedDuration::from_secs(6));
    let secured = end + SignedDuration::from_secs(5);
    wait_for("a while is on disk", seconds(60), || world.recorded_until(camera, secured));
    let recorded = pictures(&world.export(camera, start, end));
    assert!(recorded.len() as u32 >= Encoding::default().fps * 4, "{} pictures", recorded.len());
    assert_as_sent(&recorded, &world.camera.sent(), 0.05);
    assert_eq!(lab.arrivals().begun(), from_outside.begun(), "somebody connected to the site");

    let (site, internet, tunnel) = (lab.site(), lab.internet(), lab.tunnel());
    let _in_the_way = [22, GATEWAY_PORT].map(|port| tunnel.listen(&format!("[{EXTERNAL_IPV6}]:{port}")));
    let _also = lab.internet().listen(&format!("[{DISPATCHER_IPV6}]:{DISPATCHER_PORT}"));
    let _camera = site.listen("[::]:554");
    let walls = [
        (&site, EXTERNAL_IPV6, 22),
        (&site, EXTERNAL_IPV6, GATEWAY_PORT),
        (&internet, EXTERNAL_IPV6, GATEWAY_PORT),
        (&internet, SITE_IPV6, 554),
        (&tunnel, SITE_IPV6, 554),
        (&tunnel, DISPATCHER_IPV6, DISPATCHER_PORT),
    ];
    std::thread::scope(|scope| {
        for (from, to, port) in walls {
            scope.spawn(move || assert!(from.connect(&format!("[{to}]:{port}")).is_err(), "[{to}]:{port}"));
        }
    });
    assert!(lab.arrivals().tcp > from_outside.tcp, "the watch sees IPv6");
    world.end();
}
