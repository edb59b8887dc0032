//! TLS sessions that are resumed: cheaper for both ends, and never more than a way to be oneself again.
//!
//! The session is in the ticket that the device keeps, sealed under a key of this process; the server keeps nothing. In it is
//! the device's certificate, whose key decides at each return as if it had been shown anew.

use crate::{
    device::Device,
    pressure::{UPGRADE, head, tls},
    world::{World, within},
};
use http::{Method, StatusCode};
use rustls::{ClientConfig, HandshakeKind};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Dials with what is remembered: whether the session was resumed, and the status.
async fn dial(world: &World, config: &Arc<ClientConfig>) -> (HandshakeKind, String) {
    let mut tls = within(tls(Arc::clone(config), world.external)).await.unwrap();
    tls.write_all(UPGRADE).await.unwrap();
    let head = within(head(&mut tls)).await.unwrap();
    let kind = tls.get_ref().1.handshake_kind().unwrap();
    // The ticket has come by now: before the answer, in the same order.
    let _ = tls.shutdown().await;
    let _ = within(tls.read_to_end(&mut Vec::new())).await;
    (kind, head.split(' ').nth(1).unwrap().to_owned())
}

#[tokio::test]
async fn step_7_tunnel_a_device_that_comes_back_resumes_its_session() {
    let mut world = World::new().await;
    let (device, _) = world.ready("00408C702009").await;
    let config = device.tls(&world.trust_anchor());
    assert_eq!(dial(&world, &config).await, (HandshakeKind::Full, "101".to_owned()));
    for _ in 0..3 {
        assert_eq!(dial(&world, &config).await, (HandshakeKind::Resumed, "101".to_owned()));
    }
    // The key of tickets is kept nowhere: whoever has it is every device.
    world.restart().await;
    assert_eq!(dial(&world, &config).await, (HandshakeKind::Full, "101".to_owned()));
}

/// Goal: no ticket lets a device in that has lost its welcome, or as somebody else.
#[tokio::test]
async fn step_7_tunnel_a_ticket_is_worth_no_more_than_the_key_that_it_was_given_for() {
    let world = World::new().await;
    let (released, _) = world.ready("00408C702009").await;
    let (rekeyed, _) = world.ready("00408C70200A").await;
    let (first, second) = (released.tls(&world.trust_anchor()), rekeyed.tls(&world.trust_anchor()));
    for config in [&first, &second] {
        dial(&world, config).await;
        assert_eq!(dial(&world, config).await, (HandshakeKind::Resumed, "101".to_owned()));
    }
    let path = format!("/api/v1/devices/{}", released.serial);
    let (status, _) = world.api(Method::DELETE, &path, None).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(dial(&world, &first).await, (HandshakeKind::Resumed, "403".to_owned()));

    // Reset, and dispatched with its new key: the old one's tickets are as worthless as the old key.
    let anew = Device::new("00408C70200A");
    world.dispatcher.vouch(anew.serial, anew.fingerprint).await;
    world.connect(&anew).await;
    assert_eq!(dial(&world, &second).await, (HandshakeKind::Resumed, "403".to_owned()));
    assert!(world.handle.device(anew.serial).unwrap().connected);

    // Somebody else's ticket is somebody else.
    let thief = Device::new("00408C70200B");
    let mut with_ticket = ClientConfig::clone(&second);
    with_ticket.client_auth_cert_resolver =
        thief.tls(&world.trust_anchor()).client_auth_cert_resolver.clone();
    assert_eq!(dial(&world, &Arc::new(with_ticket)).await.1, "403");
}
