//! Another configuration while the tunnel server runs: what may change does at once, no uplink is lost, what may not is named,
//! and what is wrong changes nothing.

use crate::{
    device::Device,
    world::{PASSWORD, USER, World, send_from, within},
};
use bytes::Bytes;
use homing_base::{
    client::basic,
    tls::{Https, look},
};
use homing_protocol::secret::Credentials;
use homing_tunnel::Config;
use http::{Request, StatusCode};
use std::{
    fs::File,
    io::Write,
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::{Duration, SystemTime},
};
use tokio::net::TcpStream;

async fn status_with(world: &World, password: &str) -> StatusCode {
    let request = Request::get("/api/v1/devices")
        .header("host", "x")
        .header("authorization", basic(&Credentials::new(USER, password)))
        .body(Bytes::new())
        .unwrap();
    within(send_from([127, 0, 0, 1], world.internal, request)).await.status()
}

#[tokio::test]
async fn limits_and_passwords_change_and_no_uplink_is_lost() {
    let world = World::with(true, |config| config.limits.uplinks = 1).await;
    let (_, serving) = world.ready("00408C702009").await;
    let second = Device::new("00408C70200A");
    world.register(&second).await;
    world.dispatcher.vouch(second.serial, second.fingerprint).await;
    let error = within(second.dial(world.external, &world.trust_anchor())).await.unwrap_err();
    assert!(error.to_string().contains("503"), "{error}");

    let mut now = world.config.clone();
    now.limits.uplinks = 2;
    now.password = "another-password-6161".into();
    now.external = "127.0.0.1:1".parse().unwrap();
    now.limits.stalled_ms += 1;
    let reloaded = world.reloader.reload(&world.config, &now, &[]).unwrap();
    assert_eq!(reloaded.changed, ["limits.uplinks", "password"]);
    let mut restart = reloaded.restart;
    restart.sort();
    assert_eq!(restart, ["external", "limits.stalled_ms"]);
    world.connect(&second).await;
    assert!(!serving.is_finished());
    assert_eq!(status_with(&world, PASSWORD).await, StatusCode::UNAUTHORIZED);
    assert_eq!(status_with(&world, "another-password-6161").await, StatusCode::OK);

    // What this process has told itself elsewhere is kept.
    let mut again = now.clone();
    again.password = "a-third-password-7272".into();
    let reloaded = world.reloader.reload(&now, &again, &["password"]).unwrap();
    assert_eq!((reloaded.changed.len(), reloaded.restart), (0, vec!["password".to_owned()]));
    assert_eq!(status_with(&world, "another-password-6161").await, StatusCode::OK);
}

#[tokio::test]
async fn what_is_wrong_changes_nothing_and_is_named() {
    let world = World::new().await;
    let (device, serving) = world.ready("00408C702009").await;
    for (break_it, said) in [
        (
            (|config| config.dispatcher.address = "http://x".into()) as fn(&mut homing_tunnel::Config),
            "https://",
        ),
        (|config| config.dispatcher.trust_anchor = "/nowhere.pem".into(), "/nowhere.pem"),
        (|config| config.limits.uplinks = 0, "at least 1"),
        (|config| config.user = "a:b".into(), "colon"),
    ] {
        let mut now = world.config.clone();
        now.password = "another-password-6161".into();
        break_it(&mut now);
        let error = world.reloader.reload(&world.config, &now, &[]).unwrap_err();
        assert!(format!("{error:#}").contains(said), "{error:#}");
        assert_eq!(status_with(&world, PASSWORD).await, StatusCode::OK);
    }
    assert!(!serving.is_finished() && world.handle.device(device.serial).unwrap().connected);
}

/// Goal: a new password at the dispatcher is taken over without a restart, and the registration that waited goes through.
#[tokio::test]
async fn step_2_relay_goes_on_with_the_new_password_of_the_dispatcher_account() {
    let world = World::with(true, |config| config.dispatcher.password = "the-old-one".into()).await;
    let device = Device::new("00408C702009");
    let (status, answer) = world.register(&device).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
    let mut now = world.config.clone();
    now.dispatcher.password = crate::dispatcher::PASSWORD.into();
    let reloaded = world.reloader.reload(&world.config, &now, &[]).unwrap();
    assert_eq!(reloaded.changed, ["dispatcher.password"]);
    world.dispatcher.relayed_times(1).await;
}

/// Certificates for this name in the files that [`files`] names, written at this time.
fn renew(folder: &Path, name: &str, at: SystemTime) {
    for listener in ["external", "internal"] {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        let pems = [("chain", made.cert.pem()), ("key", made.signing_key.serialize_pem())];
        for (what, pem) in pems {
            let path = folder.join(format!("{listener}-{what}.pem"));
            let mut file =
                File::options().write(true).create(true).truncate(true).mode(0o600).open(path).unwrap();
            file.write_all(pem.as_bytes()).unwrap();
            file.set_modified(at).unwrap();
        }
    }
}

fn files(config: &mut Config) {
    std::fs::create_dir_all(&config.data).unwrap();
    let at = |name: &str| config.data.join(name);
    (config.vms.certificate, config.vms.private_key) = (at("internal-chain.pem"), at("internal-key.pem"));
    (config.certificate, config.private_key) = (at("external-chain.pem"), at("external-key.pem"));
    config.vms.tls = Https::Files;
    config.public = vec!["before.example:0".into()];
    renew(&config.data, "before.example", SystemTime::UNIX_EPOCH);
}

async fn shown(at: SocketAddr) -> Vec<String> {
    within(look(within(TcpStream::connect(at)).await.unwrap(), "x.example")).await.unwrap().names
}

/// Goal: certificates in PEM files are read at once, those of the external address and those of the internal.
#[tokio::test]
async fn renewed_certificates_are_shown_at_once_at_both_addresses() {
    let world = World::with(true, files).await;
    for address in [world.external, world.internal] {
        assert_eq!(shown(address).await, ["before.example"], "{address}");
    }
    renew(&world.config.data, "after.example", SystemTime::UNIX_EPOCH + Duration::from_secs(1));
    world.reloader.reload(&world.config, &world.config, &[]).unwrap();
    for address in [world.external, world.internal] {
        assert_eq!(shown(address).await, ["after.example"], "{address}");
    }
}
