//! Garbage, silence and strangers at both doors of the dispatcher.

use crate::{
    device::{Device, PASSWORD, Quirks},
    world::*,
};
use homing_protocol::api::dispatcher::RegistrationState as State;
use std::time::{Duration, Instant};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// 100 silent connections at each door, and garbage in between, do not delay the next good one.
#[tokio::test]
async fn step_4_phone_home_silence_and_garbage_delay_nobody() {
    let (_folder, world, sts) = world_with_account().await;
    let mut silent = Vec::new();
    for door in [world.external, world.api] {
        for index in 0..100 {
            let mut tcp = TcpStream::connect(door).await.unwrap();
            match index % 4 {
                0 => tcp.write_all(b"\x16\x03\x01\xff\xff\x01\x00").await.unwrap(),
                1 => tcp.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap(),
                _ => {}
            }
            silent.push(tcp);
        }
    }
    let began = Instant::now();
    let device = device(OAK);
    let _uplink = world.phone_home(&device).await.unwrap();
    let new = Sts::registration(OAK, PASSWORD, &world.trust);
    let (put, _) = tokio::join!(sts.put(&new), sts.until_state(State::Dispatched));
    assert_eq!(put.unwrap().state, State::Dispatched);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());

    // What is no TLS is closed at once.
    let mut answer = Vec::new();
    let closed = tokio::time::timeout(DEADLINE, silent[1].read_to_end(&mut answer)).await;
    assert!(closed.is_ok(), "garbage is kept");
    world.stop().await;
}

/// One address may have so many connections, and others are not touched by that.
#[tokio::test]
async fn step_4_phone_home_one_address_cannot_take_all_connections() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start_with(folder.path(), |config| config.connections_per_address = 2).await;
    let _first = world.phone_home(&device(OAK)).await.unwrap();
    let second = world.phone_home(&device(OAK)).await.unwrap();
    world.phone_home(&device(OAK)).await.expect_err("a third");
    let metrics = world.ops.metrics();
    assert!(
        metrics.contains(r#"homing_dispatcher_refused_total{reason="too-many-from-address"} 1"#),
        "{metrics}"
    );
    assert!(metrics.contains("homing_dispatcher_devices 2"), "{metrics}");
    second.abort();
    let again = async {
        while world.phone_home(&device(OAK)).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, again).await.expect("a place became free");
    world.stop().await;
}

/// A certificate that names no serial number is refused, in words for the installer.
#[tokio::test]
async fn step_4_phone_home_a_certificate_without_a_serial_number_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start(folder.path()).await;
    let pair = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "my camera");
    let nameless = Device::with_certificate(SERIAL, OAK, PASSWORD, Quirks::default(), params, pair);
    let error = world.phone_home(&nameless).await.unwrap_err().to_string();
    assert!(error.contains("403") && error.contains("serial number"), "{error}");
    world.stop().await;
}

/// More keys than seats claim one number: the true device gets in all the same.
#[tokio::test]
async fn step_4_phone_home_a_crowd_that_claims_one_serial_number_does_not_keep_the_device_out() {
    let (_folder, world, sts) = world_with_account().await;
    let mut crowd = Vec::new();
    for _ in 0..20 {
        let stranger = device(OTHER_OAK);
        crowd.push((world.phone_home(&stranger).await.unwrap(), stranger));
    }
    let device = device(OAK);
    let _uplink = world.phone_home(&device).await.unwrap();
    let new = Sts::registration(OAK, PASSWORD, &world.trust);
    let (put, _) = tokio::join!(sts.put(&new), sts.until_state(State::Dispatched));
    assert_eq!(put.unwrap().fingerprint, Some(device.fingerprint().to_string()));
    world.stop().await;
}
