//! The lab by itself, with no program of ours: its walls stand, its watch sees, its camera counts.

use super::{
    Host,
    camera::{self, Camera, Encoding},
    layout::{
        CENTRAL, DISPATCHER, DISPATCHER_API_PORT, EXTERNAL_PORT, GATEWAY_PORT, INTERNAL_PORT, Layout, PUBLIC,
        UDP_PORTS,
    },
    pictures::{assert_as_sent, pictures},
    topology::{FromOutside, Lab, SITE_PUBLIC, SITE_PUBLIC_AFTERWARDS, name_for},
};
use crate::harness::{Folder, output, seconds, wait_for};
use std::{
    io::{Read, Write},
    net::{TcpStream, UdpSocket},
    path::Path,
    process::Command,
};

/// The goal: in each layout, exactly the connections of docs/network.md are possible, and the site's watch counts exactly
/// those that come from outside.
#[test]
fn only_the_connections_of_the_document_are_possible() {
    for layout in Layout::ALL {
        let lab = Lab::new(layout);
        let listen = |address: &str, port: u16| lab.tunnel().listen(&format!("{address}:{port}"));
        let external = listen(layout.external(), EXTERNAL_PORT);
        let internal = listen(layout.internal(), INTERNAL_PORT);
        let _gateway = listen(layout.internal(), GATEWAY_PORT);
        let _in_the_way = [listen("0.0.0.0", 22), listen("0.0.0.0", 8080)];
        let _nobody_comes_here = lab.central().listen("0.0.0.0:8080");
        let dispatcher = lab.internet().listen(&format!("{DISPATCHER}:{DISPATCHER_API_PORT}"));

        let _out = lab.site().connect(&format!("{PUBLIC}:{EXTERNAL_PORT}")).expect("the site reaches it");
        let (_, peer) = external.accept().unwrap();
        assert_eq!(peer.ip().to_string(), SITE_PUBLIC, "masqueraded");
        for port in [INTERNAL_PORT, GATEWAY_PORT] {
            let reached = lab.central().connect(&format!("{}:{port}", layout.internal()));
            reached.expect("the VMS reaches it");
        }
        assert_eq!(internal.accept().unwrap().1.ip().to_string(), CENTRAL);
        let _relayed = lab.tunnel().connect(&format!("{DISPATCHER}:{DISPATCHER_API_PORT}")).expect("out");
        assert_eq!(dispatcher.accept().unwrap().1.ip().to_string(), PUBLIC);

        lab.betray_the_centre();
        // Side by side: a firewall answers by silence.
        let walls = layout.walls(&lab);
        std::thread::scope(|scope| {
            for (from, name, to) in &walls {
                scope.spawn(move || {
                    assert!(from.connect(to).is_err(), "{layout:?}: {name} connected to {to}");
                });
            }
        });

        // All that so far went outwards or against a wall of the centre.
        assert_eq!(lab.arrivals(), FromOutside::default(), "{layout:?}");
        let after_probe = lab.prove_the_watch_sees();
        assert!(after_probe.tcp >= 2 && after_probe.dropped >= 2, "{after_probe:?}");
        let _again = lab.site().connect(&format!("{PUBLIC}:{EXTERNAL_PORT}")).unwrap();
        assert_eq!(lab.arrivals(), after_probe, "an outward connection is not counted");
    }
}

/// The goal: with the rules of the document for it, the public address leads back from inside; without, it does not.
#[test]
fn the_public_address_leads_back_where_the_firewall_turns_it_around() {
    let lab = Lab::new(Layout::TwoAdaptors);
    let external = lab.tunnel().listen(&format!("{}:{EXTERNAL_PORT}", Layout::TwoAdaptors.external()));
    let dial = || lab.tunnel().connect(&format!("{PUBLIC}:{EXTERNAL_PORT}"));
    assert!(dial().is_err());
    lab.load("firewall1", "# Leads back");
    let _there = dial().expect("turned around");
    external.accept().unwrap();
}

/// The goal: with the rules of the document for it, the RTSP gateway's UDP passes once the player has sent something, and
/// nothing passes that it did not ask for; without, nothing does.
#[test]
fn udp_passes_for_players_that_ask_for_it() {
    for layout in [Layout::TwoAdaptors, Layout::OneAdaptor] {
        let lab = Lab::new(layout);
        let socket = |host: Host, address: &str, port: u16| {
            let socket = host.inside(|| UdpSocket::bind((address, port)).unwrap());
            socket.set_read_timeout(Some(seconds(1))).unwrap();
            socket
        };
        let gateway = socket(lab.tunnel(), layout.internal(), UDP_PORTS[1]);
        let player = socket(lab.central(), CENTRAL, 6970);
        let arrives = |from: &UdpSocket, to: &UdpSocket| {
            from.send_to(b"hello", to.local_addr().unwrap()).unwrap();
            to.recv_from(&mut [0; 5]).is_ok()
        };
        assert!(!arrives(&player, &gateway), "{layout:?}: without the rules");
        layout.let_udp_through(&lab);
        assert!(!arrives(&gateway, &player), "{layout:?}: unasked");
        assert!(arrives(&player, &gateway) && arrives(&gateway, &player), "{layout:?}");
        let beyond = socket(lab.tunnel(), layout.internal(), UDP_PORTS[1] + 1);
        assert!(!arrives(&player, &beyond), "{layout:?}: beyond the range");
    }
}

/// The goal: with a new public address old flows are dead, and new ones come from there.
#[test]
fn a_new_public_address_ends_old_flows() {
    let lab = Lab::new(Layout::TwoAdaptors);
    let external = lab.tunnel().listen(&format!("{}:{EXTERNAL_PORT}", Layout::TwoAdaptors.external()));
    let dial = || lab.site().connect(&format!("{PUBLIC}:{EXTERNAL_PORT}")).unwrap();
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
    let lab = Lab::new(Layout::TwoAdaptors);
    let folder = Folder::new();
    let camera = Camera::start(&lab.site(), "127.0.0.1", 8554, Encoding::default());
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
    drop(Lab::new(Layout::TwoAdaptors));
    assert!(!exists(&stale), "{stale} should have been removed");

    let forgetful = std::panic::catch_unwind(|| {
        let lab = Lab::new(Layout::TwoAdaptors);
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
