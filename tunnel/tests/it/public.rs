//! Addresses: by IPv4, IPv6 and DNS name; and what is said of public ones that devices will not find us by.

use crate::{device::Device, world::*};
use homing_tunnel::{Config, setup};
use hyper::StatusCode;
use std::{net::SocketAddr, path::Path};

/// An address of this machine that nobody listens on now.
fn free(ip: &str) -> SocketAddr {
    let ip: std::net::IpAddr = ip.parse().unwrap();
    std::net::TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap()
}

fn config(data: &Path, external: SocketAddr, public: &[String]) -> Config {
    let mut config = Config {
        external,
        internal: "127.0.0.1:0".parse().unwrap(),
        public: public.to_vec(),
        password: "correct horse battery".into(),
        data: data.to_owned(),
        ..Config::default()
    };
    (config.dispatcher.account, config.dispatcher.password) = ("shop".into(), "battery".into());
    config
}

/// Goal: devices come by IPv4, by IPv6 and by a name, to one server.
#[tokio::test]
async fn step_6_connect_by_ipv4_ipv6_and_name() {
    let world = World::with(true, |config| {
        config.external = "[::]:0".parse().unwrap();
        config.public = vec!["[::1]:0".into(), "127.0.0.1:0".into(), "localhost:0".into()];
    })
    .await;
    let device = Device::new("00408C702009");
    let (status, answer) = world.register(&device).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    let port = world.external.port();
    let [(_, relayed)] = &world.dispatcher.relayed()[..] else { panic!("relayed once") };
    let expected = [format!("[::1]:{port}"), format!("127.0.0.1:{port}"), format!("localhost:{port}")];
    assert_eq!(relayed.servers, expected);
    world.dispatcher.vouch(device.serial, device.fingerprint).await;
    for address in ["::1", "127.0.0.1"] {
        let address = SocketAddr::new(address.parse().unwrap(), port);
        let uplink = within(device.dial(address, &world.trust_anchor())).await;
        let uplink = uplink.unwrap_or_else(|error| panic!("{address}: {error}"));
        let serving = device.serve(uplink, &world.site);
        world.device_until(device.serial, |device| device.connected).await;
        serving.abort();
        world.device_until(device.serial, |device| !device.connected).await;
    }
}

/// Goal: of a public address that leads back nothing is said; of one that leads nowhere, to another server, or has no
/// place in the DNS, what it is and what to check. That is the same before the server runs and while it does.
#[tokio::test]
async fn a_public_address_that_does_not_lead_back_is_told() {
    let (folder, another) = (tempfile::tempdir().unwrap(), World::new().await);
    let bound = free("127.0.0.1");
    let everywhere = SocketAddr::from(([0, 0, 0, 0], bound.port()));
    let look = async |public: &str| {
        let config = config(folder.path(), everywhere, &[public.replace("PORT", &bound.port().to_string())]);
        within(setup::look_at_public(&config)).await.unwrap()
    };
    for well in ["127.0.0.1:PORT", "localhost:PORT", "127.0.0.1:0"] {
        assert_eq!(look(well).await, Vec::<String>::new(), "{well}");
    }
    for (public, expected) in [
        (free("127.0.0.1").to_string(), "hairpin NAT"),
        (another.external.to_string(), "leads to another server"),
        ("no.such.name.invalid:PORT".to_owned(), "cannot be resolved here"),
    ] {
        let said = look(&public).await;
        assert!(said.len() == 1 && said[0].contains(expected), "{public}: {said:?}");
        assert!(said[0].contains(public.split(':').next().unwrap()), "{said:?}");
    }
    // The one that runs is looked at in its place.
    let data = another.folder.path().join("tunnel");
    let running = config(&data, another.external, &["localhost:0".to_owned()]);
    assert_eq!(setup::look_at_public(&running).await.unwrap(), Vec::<String>::new());
}

/// Goal: a server whose public addresses are not well starts all the same, and says so in `/healthz` to who may know;
/// with a certificate of somebody else's, also that a name is missing in it.
#[tokio::test]
async fn a_running_server_tells_what_is_wrong_with_its_public_addresses() {
    let mut world = World::with(true, |config| {
        config.public = vec!["localhost:0".into(), "127.0.0.1:9".into()];
        std::fs::create_dir_all(&config.data).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let names = vec!["sts.example".to_owned(), "127.0.0.1".to_owned()];
        let certificate = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        let at = |name: &str, text: String| {
            let path = config.data.join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        (config.certificate, config.private_key) =
            (at("chain.pem", certificate.pem()), at("key.pem", key.serialize_pem()));
        config.trust_anchor = config.certificate.clone();
    })
    .await;
    let told = within(async {
        loop {
            let (status, text) = world.ops.health(true);
            assert_eq!(status, StatusCode::OK, "{text}");
            if text.contains("warning") {
                return text;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(told.lines().count(), 3, "{told}");
    assert!(told.contains("the certificate has no name localhost"), "{told}");
    assert!(told.contains("public address 127.0.0.1:9 does not lead back"), "{told}");
    world.stop_tunnel().await;
}
