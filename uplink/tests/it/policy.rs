//! The TLS policy: what a server speaks and what not, and what it says of a handshake that fails.

use crate::world::*;
use homing_uplink::*;
use rustls::client::{ClientConfig, Resumption};
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::process::Command;

#[derive(Debug)]
struct StandsAt(u64);

impl TimeProvider for StandsAt {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0)))
    }
}

/// A device of somebody else's make, with its own clock.
fn device_config(
    trusted: &Identity,
    clock: u64,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> ClientConfig {
    let device = Identity::device("00408C702009");
    let mut config = ClientConfig::builder_with_details(crypto_provider(), Arc::new(StandsAt(clock)))
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(roots_from_pem(trusted.certificate_pem.as_bytes()).expect("anchors"))
        .with_client_auth_cert(vec![device.certificate.clone()], device.private_key())
        .expect("a configuration");
    config.resumption = Resumption::disabled();
    config
}

/// Goal: an old device, one that does not trust us and one whose clock is wrong are told apart, with what to do.
#[tokio::test]
async fn a_handshake_that_fails_says_what_to_do() {
    let mut server = Server::start().await;
    let stranger = Identity::server();
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    // Certificates of rcgen end in the year 4096.
    let late = 80_000_000_000;
    for (trusted, clock, version, reason, advice) in [
        (&server.identity, now, &rustls::version::TLS12, "tls-too-old", "tls_1_2 = true"),
        (&stranger, now, &rustls::version::TLS13, "not-trusted", "check its trust anchor"),
        (&server.identity, late, &rustls::version::TLS13, "wrong-clock", "set the device's clock"),
    ] {
        let config = Arc::new(device_config(trusted, clock, &[version]));
        let tcp = TcpStream::connect(server.address).await.expect("a connection");
        let connecting =
            tokio_rustls::TlsConnector::from(config).connect("localhost".try_into().expect("a name"), tcp);
        if let Ok(mut tls) = connecting.await {
            let _ = tls.read(&mut [0; 16]).await;
        }
        let arrived = within("a failure", server.arrivals.recv()).await.expect("the loop runs");
        let error = arrived.expect_err("a handshake that cannot succeed");
        assert_eq!(error.reason(), reason, "{error}");
        assert!(error.advice().expect("advice").contains(advice), "{error}");
    }
    server.end().await;
}

/// Goal, against OpenSSL: nothing below TLS 1.3 by default; by policy TLS 1.2, with forward secrecy and AEAD alone.
#[tokio::test]
async fn tls_1_2_is_spoken_by_policy_and_then_with_safe_ciphers_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let device = Identity::device("00408C702009");
    let (certificate, key) = (folder.path().join("device.pem"), folder.path().join("device.key"));
    std::fs::write(&certificate, &device.certificate_pem).expect("written");
    std::fs::write(&key, device.key.serialize_pem()).expect("written");
    for policy in [TlsPolicy::Tls13, TlsPolicy::Tls12AndUp] {
        let server = Server::start_with_policy(policy).await;
        let by_policy = policy == TlsPolicy::Tls12AndUp;
        for (arguments, speaks) in [
            ("-tls1_3", true),
            ("-tls1_2 -cipher ECDHE-ECDSA-AES128-GCM-SHA256", by_policy),
            ("-tls1_2 -cipher ECDHE-ECDSA-CHACHA20-POLY1305", by_policy),
            ("-tls1_2 -cipher ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0", false),
            ("-tls1_2 -cipher AES128-GCM-SHA256:@SECLEVEL=0", false),
            ("-tls1_2 -cipher DHE-RSA-AES128-GCM-SHA256:@SECLEVEL=0", false),
            ("-tls1_1 -cipher DEFAULT:@SECLEVEL=0", false),
            ("-tls1 -cipher DEFAULT:@SECLEVEL=0", false),
        ] {
            let output = Command::new("openssl")
                .args([
                    "s_client",
                    "-connect",
                    &server.address.to_string(),
                    "-servername",
                    "localhost",
                    "-brief",
                ])
                .arg("-cert")
                .arg(&certificate)
                .arg("-key")
                .arg(&key)
                .args(arguments.split(' '))
                .stdin(std::process::Stdio::null())
                .output();
            let output = within("openssl", output).await.expect("openssl is there");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(said.contains("CONNECTION ESTABLISHED"), speaks, "{policy:?} {arguments}: {said}");
        }
        server.end().await;
    }
}
