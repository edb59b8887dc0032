//! The eight steps of `docs/connection-flow.md` over real networks, with a camera that is not ours.

use super::{
    camera::{Encoding, FPS, GOP},
    layout::Layout,
    pictures::{assert_as_sent, pictures},
    topology::{Lab, SITE_PUBLIC, SITE_PUBLIC_AFTERWARDS},
    world::{SECRETS, World},
};
use crate::harness::{seconds, wait_for};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::io;

/// The goal, scenario A (offline when registered): register, relay, press, phone home, dispatch,
/// connect, tunnel, add; then every picture of a minute is in the export as the camera sent it; then
/// the site gets a new public address and the picture is back within 10 s, with the gap shown. At no
/// time does anybody connect towards the site, and nothing but loopback listens in it.
#[test]
fn scenario_a_from_register_to_add_and_a_minute_of_recording() {
    let lab = Lab::new(Layout::TwoAdaptors);
    let from_outside = lab.prove_the_watch_sees();
    let mut world = World::build(&lab, Encoding::default());
    let site_connections = || lab.site().run("ss", &["-tnH", "not", "dst", "127.0.0.0/8"]);

    // Steps 1 and 2. The device is offline, and stays so until somebody presses its button.
    let device = world.register().unwrap();
    assert_eq!((&device["state"], &device["step"]), (&json!("red"), &json!("relay")), "{device}");
    assert_eq!(site_connections(), "", "never pressed, and connected somewhere");

    // Steps 3 to 7.
    world.agent("press").unwrap();
    let device = world.wait_for_device("yellow", "tunnel", seconds(20));
    assert!(device["peer"].as_str().is_some_and(|peer| peer.starts_with(SITE_PUBLIC)), "{device}");

    // Step 8.
    let camera = world.add();
    let first = wait_for("a first frame is recorded", seconds(20), || world.last_frame(camera));
    let recorded_until = |moment: Timestamp| world.recorded_until(camera, moment);

    // A minute, compared slice by slice.
    let start = first + SignedDuration::from_secs(1);
    let end = start + SignedDuration::from_secs(60);
    let group = SignedDuration::from_secs(i64::from(GOP / FPS));
    wait_for("a minute is recorded", seconds(80), || recorded_until(end + group * 2));
    let recorded = pictures(&world.export(camera, start, end));
    let sent = world.camera.sent();
    let begins = assert_as_sent(&recorded, &sent, 0.02);
    assert!(sent[begins].key, "an export begins with a key frame");
    let second = |moment: Timestamp| moment.as_microsecond() as f64 / 1e6;
    let in_between = sent.iter().filter(|sent| (second(start)..second(end)).contains(&sent.time)).count();
    // It may begin up to a group earlier, with the key frame that its first picture needs.
    let most = in_between + GOP as usize + 2;
    assert!((in_between - 2..=most).contains(&recorded.len()), "{} of {in_between}", recorded.len());
    let duration = recorded[recorded.len() - 1].time - recorded[0].time;
    let sent_s = sent[begins + recorded.len() - 1].time - sent[begins].time;
    assert!((duration - sent_s).abs() < 0.1, "{duration} s in the file, {sent_s} s sent");

    // Another public address.
    lab.give_the_site_a_new_public_address();
    let changed = Timestamp::now();
    let back = wait_for("the picture is back after the new address", seconds(10), || {
        recorded_until(changed + SignedDuration::from_millis(500))
    });
    println!(
        "picture back {:.1} s after the new address",
        (back - changed).total(jiff::Unit::Second).unwrap()
    );
    let device = world.wait_for_device("green", "add", seconds(5));
    assert!(device["peer"].as_str().is_some_and(|peer| peer.starts_with(SITE_PUBLIC_AFTERWARDS)), "{device}");
    let timeline = format!("/api/v1/cameras/{camera}/timeline?start={start}&end={}", Timestamp::now());
    let gaps = wait_for("the timeline shows the gap, and why", seconds(10), || {
        let timeline = world.api.json(&timeline)?;
        let gaps = timeline["gaps"].as_array().cloned().unwrap_or_default();
        let explained = gaps.iter().any(|gap| gap["code"] == "connection-lost");
        if explained { Ok(gaps) } else { Err(io::Error::other(timeline.to_string())) }
    });
    assert_eq!(gaps.len(), 1, "one gap, and none in the minute before: {gaps:#?}");
    let begins: Timestamp = gaps[0]["start"].as_str().and_then(|at| at.parse().ok()).expect("a time");
    assert!(
        (begins - changed).total(jiff::Unit::Second).unwrap().abs() < 2.0,
        "changed {changed}: {gaps:#?}"
    );

    // Nobody came to the site, and nobody could have found anything there.
    assert_eq!(lab.arrivals().begun(), from_outside.begun(), "somebody connected towards the site");
    for listener in lab.site().listeners() {
        assert!(listener.starts_with("127.0.0.1:") || listener.starts_with("[::1]:"), "{listener} listens");
    }
    for line in world.logs() {
        assert!(!SECRETS.iter().any(|secret| line.contains(secret)), "a secret in the log: {line}");
        assert!(!line.contains(&world.label.1), "the OAK in the log: {line}");
    }
    world.end();
}

/// Goal: with everything set as it is installed, a device whose line is dead, without a FIN or an ICMP message from
/// anybody, is noticed in under 30 s, and says why; when the line is repaired it is back by itself.
#[test]
fn a_line_that_is_dead_is_noticed_in_under_30_seconds() {
    let lab = Lab::new(Layout::TwoAdaptors);
    let mut world = World::build(&lab, Encoding::default());
    world.register().unwrap();
    world.agent("press").unwrap();
    world.wait_for_device("yellow", "tunnel", seconds(30));
    lab.silence_the_site();
    let lost = wait_for("the device is said to be lost", seconds(30), || {
        let device = world.device()?;
        let code = device.pointer("/problem/code").and_then(Value::as_str);
        if code == Some("uplink-lost") { Ok(device) } else { Err(io::Error::other(device.to_string())) }
    });
    assert_eq!(lost["state"], "red", "{lost}");
    let why = lost.pointer("/problem/message").and_then(Value::as_str).unwrap_or_default();
    assert!(why.contains("nothing came from the other end"), "{why}");
    lab.repair_the_line();
    world.wait_for_device("yellow", "tunnel", seconds(60));
    world.end();
}
