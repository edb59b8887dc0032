//! Who is at the other end: certificates, exporters, tokens, refusals.

use crate::world::*;
use homing_uplink::*;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use std::sync::Arc;

/// Goal: both ends derive the same secret from a connection, and another one from the next.
#[tokio::test]
async fn the_exporter_is_equal_at_both_ends_and_differs_per_connection() {
    let mut server = Server::start().await;
    let device = Identity::device("00408C702009");
    let mut seen = Vec::new();
    for carrier in [Carrier::Native, Carrier::WebSocket, Carrier::Native] {
        let dialer = server.dialer(carrier, &device);
        let dialing = server.tasks.spawn(async move { dialer.dial().await });
        let arrival = server.next().await;
        let theirs = arrival.exporter();
        let (uplink, driver) = arrival.accept(UplinkSettings::default()).await.expect("an uplink");
        let dialed = within("an uplink", dialing).await.expect("no panic").expect("an uplink");
        let ours = dialed.exporter();
        let secret = ours.export(b"EXPORTER-test", b"context").expect("a secret");
        assert_eq!(theirs.export(b"EXPORTER-test", b"context"), Ok(secret));
        assert_ne!(theirs.export(b"EXPORTER-test", b"other").expect("a secret"), secret);
        assert_eq!(
            dialed.server_fingerprint(),
            Fingerprint::of_certificate(&server.identity.certificate).ok()
        );
        assert!(!seen.contains(&secret));
        seen.push(secret);

        drop((dialed, ours));
        uplink.close(EndReason::Replaced);
        assert_eq!(within("the end", driver.run(Default::default())).await, EndReason::Replaced);
        assert_eq!(
            theirs.export(b"EXPORTER-test", b"context"),
            Err(ExporterError),
            "a closed uplink exports nothing"
        );
    }
    server.end().await;
}

/// Goal: the server knows the device by its key, and sees what it claims.
#[tokio::test]
async fn an_arrival_says_who_came() {
    let mut server = Server::start().await;
    let device = Identity::device("00408C702009");
    for carrier in [Carrier::Native, Carrier::WebSocket] {
        let mut dialer = server.dialer(carrier, &device);
        dialer.token = BearerToken::new("t0ken");
        dialer.user_agent = "agent/1".to_owned();
        let dialing = server.tasks.spawn(async move { dialer.dial().await });
        let arrival = server.next().await;
        let identity = arrival.peer_identity.as_ref().expect("a certificate");
        assert_eq!(identity.serial_number.as_deref(), Some("00408C702009"));
        assert_eq!(identity.common_name.as_deref(), Some("camera"));
        assert_eq!(Ok(identity.fingerprint), Fingerprint::of_certificate(&device.certificate));
        assert_eq!(arrival.bearer_token().map(BearerToken::secret), Some("t0ken"));
        assert_eq!((arrival.path.as_str(), arrival.user_agent()), ("/up", Some("agent/1")));
        assert_eq!(arrival.host(), Some(format!("localhost:{}", server.address.port()).as_str()));
        assert_eq!(arrival.carrier(), carrier);
        drop(arrival);
        let gone = within("the end", dialing).await.expect("no panic").expect_err("dropped");
        assert!(matches!(gone, DialError::Tls { .. }), "{gone}");
    }
    server.end().await;
}

/// Goal: why a server refuses reaches the person at the device.
#[tokio::test]
async fn the_reason_of_a_refusal_reaches_the_device() {
    let mut server = Server::start().await;
    let device = Identity::device("00408C702009");
    for carrier in [Carrier::Native, Carrier::WebSocket] {
        let dialer = server.dialer(carrier, &device);
        let dialing = server.tasks.spawn(async move { dialer.dial().await });
        let arrival = server.next().await;
        within("the refusal", arrival.refuse(403, "this key is not vouched for; press the button again"))
            .await;
        let error = within("the refusal", dialing).await.expect("no panic").expect_err("refused");
        let DialError::Refused { status, reason, .. } = &error else { panic!("{error}") };
        assert_eq!((*status, reason.as_str()), (403, "this key is not vouched for; press the button again"));
    }
    server.end().await;
}

/// What a clock says that has never been set.
#[derive(Debug)]
struct Year1970;

impl rustls::time_provider::TimeProvider for Year1970 {
    fn current_time(&self) -> Option<rustls::pki_types::UnixTime> {
        Some(rustls::pki_types::UnixTime::since_unix_epoch(std::time::Duration::from_secs(86_400)))
    }
}

/// Goal: a device tells an impostor, and says what to check.
#[tokio::test]
async fn a_server_that_is_not_trusted_is_refused_with_a_clear_error() {
    let mut server = Server::start().await;
    let device = Identity::device("00408C702009");
    let mut dialer = server.dialer(Carrier::Native, &device);
    dialer.tls = device.client_config(&Identity::server());
    let error = dialer.dial().await.expect_err("not trusted");
    assert!(matches!(error, DialError::Untrusted { .. }), "{error}");
    assert!(error.to_string().contains("trust anchor"), "{error}");
    let at_server =
        within("the error", server.arrivals.recv()).await.expect("the loop runs").expect_err("TLS failed");
    assert!(matches!(at_server, AcceptError::Tls { .. }), "{at_server}");

    // A machine without a battery for its clock.
    let mut dialer = server.dialer(Carrier::Native, &device);
    let mut tls = (*dialer.tls).clone();
    tls.time_provider = Arc::new(Year1970);
    dialer.tls = Arc::new(tls);
    let error = dialer.dial().await.expect_err("not valid yet");
    assert!(matches!(error, DialError::SlowClock { .. }) && error.to_string().contains("clock"), "{error}");
    let _ = within("the error", server.arrivals.recv()).await;

    let mut dialer = server.dialer(Carrier::Native, &device);
    dialer.address = UplinkAddress::new("127.0.0.2", server.address.port()).expect("an address");
    let error = dialer.dial().await.expect_err("another name or no listener there");
    assert!(matches!(error, DialError::WrongName { .. } | DialError::Tcp { .. }), "{error}");
    dialer.address = UplinkAddress::new("nowhere.invalid", 443).expect("an address");
    let error = dialer.dial().await.expect_err("no such name");
    assert!(matches!(error, DialError::NameLookup { .. }), "{error}");
    dialer.address = UplinkAddress::new("127.0.0.1", 1).expect("an address");
    let error = dialer.dial().await.expect_err("nothing listens");
    assert!(matches!(error, DialError::Tcp { .. }), "{error}");
    server.end().await;
}

/// Goal: a trusted certificate under another name is told apart from an untrusted one.
#[tokio::test]
async fn a_certificate_for_another_name_is_named_as_such() {
    let server = Server::start().await;
    let device = Identity::device("00408C702009");
    let mut dialer = server.dialer(Carrier::Native, &device);
    // The machine's own name for the loopback address in IPv4-mapped form is not in the certificate.
    dialer.address = UplinkAddress::new("::ffff:127.0.0.1", server.address.port()).expect("an address");
    let error = dialer.dial().await.expect_err("another name");
    assert!(matches!(error, DialError::WrongName { .. }), "{error}");
    server.end().await;
}

/// Goal: nobody gets in with a certificate without its key, or without any.
#[tokio::test]
async fn a_certificate_without_its_key_does_not_get_in() {
    let mut server = Server::start().await;
    let (device, thief) = (Identity::device("00408C702009"), Identity::device("00408C702009"));
    let roots = roots_from_pem(server.identity.certificate_pem.as_bytes()).expect("anchors");
    let key = crypto_provider().key_provider.load_private_key(thief.private_key()).expect("a key");
    let stolen = SingleCertAndKey::from(CertifiedKey::new(vec![device.certificate.clone()], key));
    let builder = rustls::ClientConfig::builder_with_provider(crypto_provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    for tls in [builder.clone().with_client_cert_resolver(Arc::new(stolen)), builder.with_no_client_auth()] {
        let mut dialer = server.dialer(Carrier::Native, &device);
        dialer.tls = Arc::new(tls);
        let error = within("the refusal", dialer.dial()).await.expect_err("no entry");
        assert!(matches!(error, DialError::Tls { .. }), "{error}");
        let refused = within("the refusal", server.arrivals.recv()).await.expect("the loop runs");
        assert!(matches!(refused, Err(AcceptError::Tls { .. })), "{refused:?}");
    }
    server.end().await;
}
