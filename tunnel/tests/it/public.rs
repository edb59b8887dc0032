//! Addresses: by IPv4, IPv6 and DNS name; and what is said of public ones that devices will not find us by.

use crate::{
    device::Device,
    player::Player,
    pressure::head,
    world::{self, *},
};
use homing_base::{
    client::{ApiClient, Auth},
    tls::client_config,
};
use homing_protocol::{
    api::tunnel::{Device as Seen, Server},
    secret::Credentials,
};
use homing_tunnel::{Config, setup};
use homing_uplink::{Dialer, UplinkAddress};
use hyper::StatusCode;
use rustls::pki_types::ServerName;
use std::{net::SocketAddr, path::Path, sync::Arc};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

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
    for host in ["::1", "127.0.0.1", "localhost"] {
        let address = UplinkAddress::new(host, port).unwrap();
        let uplink = within(Dialer::new(address, device.tls(&world.trust_anchor())).dial()).await;
        let uplink = uplink.unwrap_or_else(|error| panic!("{host}: {error}"));
        let serving = device.serve(uplink, &world.site);
        let connected = world.device_until(device.serial, |device| device.connected).await;
        let dialled = [format!("[{host}]:{port}"), format!("{host}:{port}")];
        assert!(dialled.contains(connected.uplinks[0].dialled.as_ref().unwrap()), "{connected:?}");
        serving.abort();
        world.device_until(device.serial, |device| !device.connected).await;
    }
}

/// Goal: a server that has IPv6 alone, outside and inside, is as good as another: a device finds it, a VMS uses its API, its
/// proxy and its gateway, plain and encrypted, and every URL that is printed can be used as it stands.
#[tokio::test]
async fn device_and_vms_use_a_server_that_has_ipv6_alone() {
    let world = World::with(true, |config| {
        let any: SocketAddr = "[::1]:0".parse().unwrap();
        (config.external, config.internal) = (any, any);
        (config.gateway.rtsp, config.gateway.rtsps) = (any.to_string(), any.to_string());
    })
    .await;
    let plain = format!("http://{}", world.internal);
    assert!(plain.starts_with("http://[::1]:"), "{plain}");
    assert_eq!(world.internal_url, plain);
    let anchor = world.trust_anchor();
    let auth = Auth::Basic(Credentials::new(USER, PASSWORD));
    let client = |base: &str| ApiClient::new("tunnel", base, &auth, Some(&anchor)).unwrap();

    let device = Device::new("00408C702009");
    let new = serde_json::to_value(new_device(&device)).unwrap();
    let made: Seen = client(&plain).send(http::Method::POST, "/api/v1/devices", &new).await.unwrap();
    assert_eq!(made.serial, device.serial);
    let own = world.external.to_string();
    assert!(own.starts_with("[::1]:"), "{own}");
    assert_eq!(world.dispatcher.relayed()[0].1.servers, [own.as_str()], "what the device is told to dial");
    world.dispatcher.vouch(device.serial, device.fingerprint).await;
    world.connect(&device).await;
    for base in [plain.clone(), plain.replace("http:", "https:")] {
        let server: Server = client(&base).get("/api/v1/server").await.unwrap();
        assert_eq!((server.external.as_str(), &server.public[..]), (own.as_str(), &[own.clone()][..]));
    }
    let seen = world.handle.device(device.serial).unwrap();
    assert!(seen.peer.unwrap().starts_with("[::1]:"));
    assert_eq!(seen.uplinks[0].dialled.as_ref(), Some(&own));

    let trust = Arc::new(client_config(Some(&anchor)).unwrap());
    let tls = async |to: SocketAddr| {
        let tcp = TcpStream::connect(to).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(&trust));
        within(connector.connect(ServerName::from(to.ip()), tcp)).await.unwrap()
    };
    let proxied = async |mut io: Box<dyn crate::player::Io>| {
        let request = format!(
            "GET http://00408c702009/headers HTTP/1.1\r\nHost: x\r\nProxy-Authorization: {}\r\n\r\n",
            world::password()
        );
        io.write_all(request.as_bytes()).await.unwrap();
        assert!(within(head(&mut io)).await.unwrap().starts_with("HTTP/1.1 200 "));
    };
    proxied(Box::new(TcpStream::connect(world.internal).await.unwrap())).await;
    proxied(Box::new(tls(world.internal).await)).await;
    let mut rtsp = TcpStream::connect(world.internal).await.unwrap();
    let connect = format!(
        "CONNECT 00408c702009:554 HTTP/1.1\r\nHost: x\r\nProxy-Authorization: {}\r\n\r\n",
        world::password()
    );
    rtsp.write_all(connect.as_bytes()).await.unwrap();
    assert!(within(head(&mut rtsp)).await.unwrap().starts_with("HTTP/1.1 200 "));
    rtsp.write_all(b"OPTIONS").await.unwrap();
    within(rtsp.read_exact(&mut [0; 7])).await.unwrap();

    device.camera.switch_on();
    let (gateway, encrypted) = (world.rtsp.unwrap(), world.rtsps.unwrap());
    let url = |scheme: &str, gateway: SocketAddr| format!("{scheme}://[::1]:{}/00408C702009", gateway.port());
    let mut players = [
        Player::over(Box::new(TcpStream::connect(gateway).await.unwrap()), url("rtsp", gateway)),
        Player::over(Box::new(tls(encrypted).await), url("rtsps", encrypted)),
    ];
    for player in &mut players {
        let tracks = player.describe().await;
        assert_eq!(tracks[0], format!("{}/trackID=0", player.url));
        let (played, _) = tokio::join!(player.play(), async {
            device.camera.plays(1).await;
            device.camera.picture(1, true)
        });
        assert!(played.headers.get("RTP-Info").unwrap().contains(&player.url), "{played:?}");
        assert_eq!(player.picture().await.1, 1);
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
