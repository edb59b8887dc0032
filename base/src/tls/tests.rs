//! Certificates as clients see them: rustls, OpenSSL, a clock that stands at 1970, anchors of before and after.

use super::*;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{ServerName, UnixTime};
use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, SystemTime},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn handshake(leaf: Arc<Leaf>, trust: &str, name: &str) -> std::io::Result<()> {
    let (client, server) = tokio::io::duplex(65536);
    let acceptor = tokio_rustls::TlsAcceptor::from(server_config(leaf).unwrap());
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client_config(Some(trust)).unwrap()));
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let (served, connected) = tokio::join!(acceptor.accept(server), async {
        let mut tls = connector.connect(name, client).await?;
        tls.write_all(b"x").await?;
        tls.flush().await?;
        std::io::Result::Ok(tls)
    });
    let _open = connected?;
    let mut byte = [0u8];
    let mut served: tokio_rustls::server::TlsStream<_> = served?;
    served.read_exact(&mut byte).await?;
    Ok(())
}

#[tokio::test]
async fn a_client_trusts_its_ca_for_the_names_in_the_leaf_and_a_renewed_leaf_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Arc::new(PrivateCa::open(folder.path(), "tunnel").unwrap());
    let names = vec!["127.0.0.1".to_owned(), "sts.example".to_owned()];
    let leaf = Leaf::issued_by(ca.clone(), names, LEAF_LIFE).unwrap();

    handshake(leaf.clone(), &ca.trust_anchor(), "127.0.0.1").await.unwrap();
    handshake(leaf.clone(), &ca.trust_anchor(), "sts.example").await.unwrap();
    handshake(leaf.clone(), &ca.trust_anchor(), "other.example").await.unwrap_err();

    let other = PrivateCa::open(folder.path(), "other").unwrap();
    handshake(leaf.clone(), &other.trust_anchor(), "127.0.0.1").await.unwrap_err();

    let before = leaf.certificate();
    leaf.renew().unwrap();
    assert_ne!(leaf.certificate(), before);
    let reopened = PrivateCa::open(folder.path(), "tunnel").unwrap();
    assert_eq!(reopened.trust_anchor(), ca.trust_anchor());
    handshake(leaf, &reopened.trust_anchor(), "127.0.0.1").await.unwrap();
}

fn certificates(pem: &str) -> Vec<String> {
    let ders = CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap);
    ders.map(|der| expiry::to_pem(&der)).collect()
}

/// OpenSSL's opinion: another implementation than the one that devices of ours have.
fn openssl_verifies(folder: &Path, anchor: &str, leaf: &Leaf) -> bool {
    let shown = leaf.chain_pem();
    let [leaf, behind] = certificates(&shown).try_into().unwrap();
    for (name, pem) in [("anchor", anchor), ("leaf", &leaf), ("behind", &behind)] {
        fs::write(folder.join(name), pem).unwrap();
    }
    let verify = ["verify", "-CAfile", "anchor", "-untrusted", "behind", "-purpose", "sslserver", "leaf"];
    let output = Command::new("openssl").args(verify).current_dir(folder).output().expect("openssl is there");
    output.status.success()
}

/// Goal: nobody is locked out by a new CA: not who knows only the old, not who knows only the new, not who was given both.
#[tokio::test]
async fn a_new_ca_is_trusted_by_those_who_know_only_the_old_one_and_by_those_who_know_only_the_new() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Arc::new(PrivateCa::open(folder.path(), "tunnel").unwrap());
    let leaf = Leaf::issued_by(ca.clone(), vec!["sts.example".to_owned()], LEAF_LIFE).unwrap();
    let old = ca.trust_anchor();
    assert!(!ca.renew_if_due(SystemTime::now()).unwrap());
    let years = |years: u64| SystemTime::now() + Duration::from_secs(years * 365 * 86_400);
    assert!(!ca.renew_if_due(years(6)).unwrap(), "it is too early");
    assert!(ca.renew_if_due(years(7)).unwrap());
    let both = ca.trust_anchor();
    let [new, kept] = certificates(&both).try_into().unwrap();
    assert_eq!(kept, certificates(&old)[0]);

    // What was issued before is still trusted by who has the anchors of today.
    for anchors in [&old, &both] {
        handshake(leaf.clone(), anchors, "sts.example").await.unwrap();
    }
    leaf.renew().unwrap();
    for anchors in [&old, &new, &both] {
        handshake(leaf.clone(), anchors, "sts.example").await.unwrap();
        assert!(openssl_verifies(folder.path(), anchors, &leaf), "{anchors}");
    }
    // After a restart as before it.
    let reopened = Arc::new(PrivateCa::open(folder.path(), "tunnel").unwrap());
    assert_eq!(reopened.trust_anchor(), both);
    let leaf = Leaf::issued_by(reopened.clone(), vec!["sts.example".to_owned()], LEAF_LIFE).unwrap();
    handshake(leaf.clone(), &old, "sts.example").await.unwrap();
    // And once more: the one before the last is forgotten.
    reopened.renew().unwrap();
    leaf.renew().unwrap();
    handshake(leaf.clone(), &new, "sts.example").await.unwrap();
    handshake(leaf.clone(), &old, "sts.example").await.unwrap_err();
}

/// Goal: whichever file a renewal was cut short before, the CA can be opened and those who trusted it still do.
#[tokio::test]
async fn a_ca_renewal_that_was_cut_short_leaves_one_that_issues() {
    let folder = tempfile::tempdir().unwrap();
    let ca = PrivateCa::open(folder.path(), "tunnel").unwrap();
    let old = ca.trust_anchor();
    let key = fs::read(folder.path().join("tunnel-ca.key")).unwrap();
    ca.renew().unwrap();
    // The key is written last; so it was cut short before that.
    crate::vault::write_private(&folder.path().join("tunnel-ca.key"), &key).unwrap();
    let names = vec!["sts.example".to_owned()];
    for anchors_are_old in [false, true] {
        if anchors_are_old {
            fs::write(folder.path().join("tunnel-ca.pem"), &old).unwrap();
        }
        let ca = Arc::new(PrivateCa::open(folder.path(), "tunnel").unwrap());
        let leaf = Leaf::issued_by(ca.clone(), names.clone(), LEAF_LIFE).unwrap();
        handshake(leaf.clone(), &old, "sts.example").await.unwrap();
        handshake(leaf.clone(), &ca.trust_anchor(), "sts.example").await.unwrap();
        assert!(openssl_verifies(folder.path(), &old, &leaf));
    }
}

/// Goal: a device whose clock has lost its battery connects: what we issue was always valid.
#[test]
fn what_we_issue_is_valid_for_a_clock_that_stands_at_1970() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Arc::new(PrivateCa::open(folder.path(), "tunnel").unwrap());
    ca.renew().unwrap();
    let leaf = Leaf::issued_by(ca.clone(), vec!["sts.example".to_owned()], LEAF_LIFE).unwrap();
    let shown: Vec<_> =
        CertificateDer::pem_slice_iter(leaf.chain_pem().as_bytes()).map(Result::unwrap).collect();
    for anchor in certificates(&ca.trust_anchor()) {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(anchor.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let name = ServerName::try_from("sts.example").unwrap();
        let at = |seconds: u64| {
            let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
            verifier.verify_server_cert(&shown[0], &shown[1..], &name, &[], now)
        };
        let today = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        at(86_400).unwrap();
        at(today).unwrap();
        at(today + 31 * 86_400).unwrap_err();
    }
}

/// Goal: certificates that somebody else renews are shown without a restart, and half of a renewal is not.
#[tokio::test]
async fn files_are_read_again_when_they_have_changed() {
    let folder = tempfile::tempdir().unwrap();
    let (chain, key) = (folder.path().join("chain.pem"), folder.path().join("key.pem"));
    let mut anchors = Vec::new();
    let mut write = |number: u64, with_key: bool| {
        let made = rcgen::generate_simple_self_signed(vec!["sts.example".to_owned()]).unwrap();
        let files = [(&chain, made.cert.pem()), (&key, made.signing_key.serialize_pem())];
        for (path, text) in &files[..if with_key { 2 } else { 1 }] {
            fs::write(path, text).unwrap();
            // Writes of a test may fall into one tick of the file system's clock.
            let written = SystemTime::now() + Duration::from_secs(number);
            fs::File::open(path).unwrap().set_modified(written).unwrap();
        }
        anchors.push(made.cert.pem());
        anchors.last().cloned().unwrap()
    };
    let first = write(0, true);
    let leaf = Leaf::from_files(&chain, &key).unwrap();
    handshake(leaf.clone(), &first, "sts.example").await.unwrap();
    assert!(!leaf.refresh().unwrap(), "nothing has changed");

    write(10, false);
    let error = format!("{:#}", leaf.refresh().unwrap_err());
    assert!(error.contains("do not belong together"), "{error}");
    handshake(leaf.clone(), &first, "sts.example").await.unwrap();
    let second = write(20, true);
    assert!(leaf.refresh().unwrap());
    handshake(leaf.clone(), &second, "sts.example").await.unwrap();
    handshake(leaf.clone(), &first, "sts.example").await.unwrap_err();
}

/// Goal: what somebody has to do is told 30 days before; what Homing renews, only when it did not.
#[test]
fn warnings_come_30_days_before_what_we_did_not_issue_ends() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let told = |days: i64, renews: bool| {
        let expires = jiff::Timestamp::from_second(1_800_000_000 + days * 86_400).unwrap();
        expiry::advice(&homing_protocol::api::Expiry { what: "it".into(), expires, renews }, now)
    };
    assert_eq!(told(31, false), None);
    assert!(told(29, false).unwrap().contains("does not renew itself"));
    assert!(told(-1, false).unwrap().contains("has ended"));
    assert_eq!(told(10, true), None);
    assert!(told(2, true).unwrap().contains("should have been renewed"));
}

/// Goal: a monitoring system reads when each certificate of a role ends.
#[tokio::test]
async fn metrics_say_when_certificates_end() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Arc::new(PrivateCa::open(folder.path(), "tunnel").unwrap());
    let leaf = Leaf::issued_by(ca, vec!["sts.example".to_owned()], LEAF_LIFE).unwrap();
    let (ops, stop) = (crate::Ops::new(), crate::Stop::new());
    stop.stop();
    expiry::watch("tunnel", ops.clone(), Arc::new(move || leaf.expiries("the external address")), stop).await;
    let metrics = ops.metrics();
    let value = |what: &str| {
        let start =
            format!("homing_tunnel_certificate_expires_seconds{{what=\"{what} of the external address\"}} ");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&start));
        line.unwrap_or_else(|| panic!("{what} in {metrics}")).parse::<u64>().unwrap()
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let days = |what| (value(what) - now).div_ceil(86_400);
    assert_eq!((days("certificate"), days("CA certificate")), (30, 3650));
}
