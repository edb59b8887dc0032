//! What a device is ordered to do, and what the server carries in all.

use crate::{
    device::Device,
    world::{World, code, within},
};
use http::{Method, StatusCode};

/// Goal: ordered to dial again, the device loses its uplink, and has another as soon as it dials.
#[tokio::test]
async fn a_device_is_ordered_to_dial_again() {
    let world = World::new().await;
    let (device, serving) = world.ready("00408C702009").await;
    let path = "/api/v1/devices/00408C702009/reconnect";
    assert_eq!(world.api(Method::POST, path, None).await.0, StatusCode::NO_CONTENT);
    within(serving).await.unwrap();
    let gone = world.device_until(device.serial, |device| !device.connected).await;
    assert!(gone.problem.unwrap().message.contains("ordered to dial again"));
    let (status, answer) = world.api(Method::POST, path, None).await;
    assert_eq!((status, code(&answer)), (StatusCode::BAD_GATEWAY, "not-connected"));
    world.connect(&device).await;
}

/// Goal: a restart is told to the device itself, with its password; one that has no such order, or is not there, is
/// named.
#[tokio::test]
async fn a_device_is_ordered_to_restart() {
    let world = World::new().await;
    let (device, _) = world.ready("00408C702009").await;
    let path = "/api/v1/devices/00408C702009/restart";
    let (status, answer) = world.api(Method::POST, path, None).await;
    assert_eq!((status, code(&answer)), (StatusCode::BAD_GATEWAY, "device-failed"), "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("does not restart"), "{answer}");
    device.lock.lock().unwrap().restarts = Some(0);
    assert_eq!(world.api(Method::POST, path, None).await.0, StatusCode::NO_CONTENT);
    assert_eq!(device.lock.lock().unwrap().restarts, Some(1));
    world.register(&Device::new("00408C702010")).await;
    for (serial, status, expected) in [
        ("00408C702010", StatusCode::BAD_GATEWAY, "not-connected"),
        ("00408C702011", StatusCode::NOT_FOUND, "not-found"),
    ] {
        let path = format!("/api/v1/devices/{serial}/restart");
        let (answered, answer) = world.api(Method::POST, &path, None).await;
        assert_eq!((answered, code(&answer)), (status, expected));
    }
}

/// Goal: the sums are of all devices, and bytes of uplinks that have ended stay counted.
#[tokio::test]
async fn statistics_are_of_everything() {
    let world = World::new().await;
    let (device, serving) = world.ready("00408C702009").await;
    world.register(&Device::new("00408C702010")).await;
    let statistics = async || world.api(Method::GET, "/api/v1/statistics", None).await.1;
    let sums = statistics().await;
    assert_eq!(
        (&sums["registered"], &sums["connected"], &sums["uplinks"]),
        (&2.into(), &1.into(), &1.into())
    );
    let before = sums["bytes_in"].as_u64().unwrap();
    assert!(before > 0);
    world.site.stop();
    within(serving).await.unwrap();
    world.device_until(device.serial, |device| !device.connected).await;
    let sums = statistics().await;
    assert_eq!(
        (&sums["registered"], &sums["connected"], &sums["uplinks"]),
        (&2.into(), &0.into(), &0.into())
    );
    assert!(sums["bytes_in"].as_u64().unwrap() >= before);
}
