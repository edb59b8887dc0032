//! The lab by itself, with no program of ours: its walls stand, its watch sees, its camera counts.

use super::{
    camera::{self, Camera},
    pictures::{assert_as_sent, pictures},
    topology::{
        CENTRAL, DMZ_EXTERNAL, DMZ_INTERNAL, INTERNAL_PORT, Lab, PUBLIC, SITE_PUBLIC, SITE_PUBLIC_AFTERWARDS,
        TUNNEL_PORT, name_for,
    },
};
use crate::harness::{Folder, output, seconds, wait_for};
use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::Command,
};

/// The goal: exactly the connections of the picture are possible, and the site's watch counts exactly
/// those that come from outside.
#[test]
fn only_the_connections_of_the_picture_are_possible() {
    let lab = Lab::new();
    let external = lab.dmz().listen(&format!("{DMZ_EXTERNAL}:{TUNNEL_PORT}"));
    let internal = lab.dmz().listen(&format!("{DMZ_INTERNAL}:{INTERNAL_PORT}"));
    let _in_the_way = lab.dmz().listen("0.0.0.0:22");
    let _nobody_comes_here = lab.central().listen("0.0.0.0:80");

    let _out = lab.site().connect(&format!("{PUBLIC}:{TUNNEL_PORT}")).expect("the site reaches the DMZ");
    let (_, peer) = external.accept().unwrap();
    assert_eq!(peer.ip().to_string(), SITE_PUBLIC, "masqueraded");
    let _in =
        lab.central().connect(&format!("{DMZ_INTERNAL}:{INTERNAL_PORT}")).expect("central reaches the DMZ");
    assert_eq!(internal.accept().unwrap().1.ip().to_string(), CENTRAL);

    for (from, name, to) in [
        (lab.site(), "site", format!("{PUBLIC}:{INTERNAL_PORT}")),
        (lab.site(), "site", format!("{PUBLIC}:22")),
        (lab.internet(), "internet", format!("{CENTRAL}:80")),
        (lab.dmz(), "dmz", format!("{CENTRAL}:80")),
        (lab.dmz(), "dmz", format!("{SITE_PUBLIC}:554")),
        (lab.central(), "central", format!("{DMZ_INTERNAL}:22")),
        (lab.central(), "central", format!("{DMZ_EXTERNAL}:{TUNNEL_PORT}")),
        (lab.central(), "central", format!("{PUBLIC}:{TUNNEL_PORT}")),
    ] {
        assert!(from.connect(&to).is_err(), "{name} connected to {to}");
    }

    // All that so far went outwards or against a wall of the centre.
    assert_eq!(lab.arrivals(), super::topology::FromOutside::default());
    let after_probe = lab.prove_the_watch_sees();
    assert!(after_probe.tcp >= 2 && after_probe.dropped >= 2, "{after_probe:?}");
    let _again = lab.site().connect(&format!("{PUBLIC}:{TUNNEL_PORT}")).unwrap();
    assert_eq!(lab.arrivals(), after_probe, "an outward connection is not counted");
}

/// The goal: with a new public address old flows are dead, and new ones come from there.
#[test]
fn a_new_public_address_ends_old_flows() {
    let lab = Lab::new();
    let external = lab.dmz().listen(&format!("{DMZ_EXTERNAL}:{TUNNEL_PORT}"));
    let dial = || lab.site().connect(&format!("{PUBLIC}:{TUNNEL_PORT}")).unwrap();
    let mut old = dial();
    let (mut old_accepted, _) = external.accept().unwrap();
    say(&mut old, &mut old_accepted);

    lab.give_the_site_a_new_public_address();

    old.set_read_timeout(Some(seconds(1))).unwrap();
    wait_for("the old flow dies", seconds(10), || match old.write(b"still there?") {
        Err(error) => Ok(error),
        Ok(_) => Err("it can still be written to"),
    });
    let mut new = dial();
    let (mut new_accepted, peer) = external.accept().unwrap();
    assert_eq!(peer.ip().to_string(), SITE_PUBLIC_AFTERWARDS);
    say(&mut new, &mut new_accepted);
}

fn say(from: &mut TcpStream, to: &mut TcpStream) {
    from.write_all(b"hello").unwrap();
    to.set_read_timeout(Some(seconds(5))).unwrap();
    let mut heard = [0; 5];
    to.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"hello");
}

/// The goal: the account that the camera gives of its pictures is exact, with ffmpeg as the recorder;
/// and it lets nobody in who has not its password.
#[test]
fn the_camera_accounts_for_every_picture() {
    let lab = Lab::new();
    let folder = Folder::new();
    let camera = Camera::start(&lab.site(), "127.0.0.1", 8554, true);
    let file = folder.join("recording.mp4");
    let record = |url: &str| {
        let mut ffmpeg = lab.site().command("ffmpeg");
        ffmpeg.args([
            "-v",
            "error",
            "-rtsp_transport",
            "tcp",
            "-i",
            url,
            "-t",
            "5",
            "-c:v",
            "copy",
            "-c:a",
            "aac",
        ]);
        ffmpeg.arg(&file);
        ffmpeg
    };
    let refused = record(&camera.url.replace(camera::PASSWORD, "wrong")).output().unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("401"), "{refused:?}");

    output(&mut record(&camera.url));
    let recorded = pictures(&file);
    assert_eq!(recorded.len(), (5 * camera::FPS) as usize);
    let sent = camera.sent();
    // ffmpeg moves the picture against the sound once the camera's first RTCP report is in.
    let start = assert_as_sent(&recorded, &sent, 0.1);
    assert!(sent[start].key, "{:?}", sent[start]);
    assert!(
        std::panic::catch_unwind(|| assert_as_sent(&recorded, &without(&sent, start + 60), 0.1)).is_err()
    );
}

fn without(sent: &[camera::Sent], index: usize) -> Vec<camera::Sent> {
    let mut sent = sent.to_vec();
    sent.remove(index);
    sent
}

/// The goal: a lab that was killed is gone when the next one starts, and a lab that ended left nothing.
#[test]
fn nothing_is_left_of_a_lab() {
    // No process has this id: it is larger than any.
    let stale = name_for(4_194_305);
    output(Command::new("ip").args(["netns", "add", &stale]));
    let exists = |name: &str| Path::new("/run/netns").join(name).exists();
    assert!(exists(&stale));
    drop(Lab::new());
    assert!(!exists(&stale), "{stale} should have been removed");

    let forgetful = std::panic::catch_unwind(|| {
        let lab = Lab::new();
        let mut child = lab.site().command("sleep").arg("60").spawn().unwrap();
        wait_for("sleep starts there", seconds(5), || {
            let there = lab.site().run("ip", &["netns", "identify", &child.id().to_string()]);
            if there.contains("site") { Ok(()) } else { Err(there) }
        });
        drop(lab);
        child.wait().unwrap();
    });
    let message = forgetful.expect_err("a process was left behind");
    assert!(message.downcast_ref::<String>().is_some_and(|text| text.contains("in site")));
}
