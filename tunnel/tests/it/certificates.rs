//! Certificates of somebody else's on the external address: what devices are told, and what the administrator is.

use crate::{device::Device, world::*};
use homing_tunnel::Config;
use hyper::{Method, StatusCode};

/// As certbot leaves it: a chain and a key, and nothing to hand out.
fn public_certificate(config: &mut Config) {
    config.public = vec!["sts.example:0".into()];
    std::fs::create_dir_all(&config.data).unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["sts.example".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(2037, 1, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    (config.certificate, config.private_key) = (config.data.join("chain.pem"), config.data.join("key.pem"));
    std::fs::write(&config.certificate, certificate.pem()).unwrap();
    std::fs::write(&config.private_key, key.serialize_pem()).unwrap();
}

/// Goal: with files and no trust anchor the registration says that browsers' anchors count; API and metrics say when
/// each certificate ends that somebody has to replace, and what the dispatcher showed.
#[tokio::test]
async fn step_2_relay_a_certificate_of_the_public_web_needs_no_trust_anchor() {
    let mut world = World::with(true, public_certificate).await;
    let (status, answer) = world.register(&Device::new("00408C702009")).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    let [(_, relayed)] = &world.dispatcher.relayed()[..] else { panic!("relayed once") };
    assert_eq!(relayed.trust_anchor, "");
    assert_eq!(relayed.servers, [format!("sts.example:{}", world.external.port())]);

    let (_, server) = world.api(Method::GET, "/api/v1/server", None).await;
    let told = |what: &str| {
        let all = server["certificates"].as_array().unwrap();
        let found = all.iter().find(|expiry| expiry["what"] == what);
        let found = found.unwrap_or_else(|| panic!("{what} in {server}"));
        (found["expires"].as_str().unwrap().to_owned(), found["renews"].as_bool().unwrap())
    };
    let ours = told("certificate of the external address");
    assert_eq!(ours, ("2037-01-01T00:00:00Z".to_owned(), false));
    assert!(told("certificate of the dispatcher").1, "a CA of Homing issued it");
    assert!(!told("[tunnel.dispatcher] trust_anchor").1, "nobody but the administrator replaces it");
    let line =
        "homing_tunnel_certificate_expires_seconds{what=\"certificate of the external address\"} 2114380800";
    assert!(world.ops.metrics().contains(line), "{}", world.ops.metrics());
    world.stop_tunnel().await;
}

/// Goal: where no browser's anchor could count, the start is refused with what to write.
#[tokio::test]
async fn an_ip_address_needs_a_trust_anchor() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config {
        data: folder.path().to_owned(),
        password: "correct horse battery".into(),
        external: "127.0.0.1:0".parse().unwrap(),
        internal: "127.0.0.1:0".parse().unwrap(),
        ..Config::default()
    };
    (config.dispatcher.account, config.dispatcher.password) = ("shop".into(), "battery".into());
    public_certificate(&mut config);
    config.public = vec!["127.0.0.1:0".into()];
    let workers = homing_base::Workers::current();
    let bound = homing_tunnel::bind(config, &homing_base::Ops::new(), &workers).await;
    let error = format!("{:#}", bound.err().unwrap());
    assert!(error.contains("[tunnel] trust_anchor is missing"), "{error}");
}
