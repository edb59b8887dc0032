//! Certificates: a private CA, leaves that renew themselves, PEM files, and what clients trust.
//!
//! Invariant: a [`Leaf`] always holds a certificate that is valid now; it is replaced after two thirds
//! of its life, and connections that stand are not touched by that.

use crate::{
    Stop,
    vault::{refuse_readable_by_others, write_private},
};
use anyhow::Context;
use arc_swap::ArcSwap;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::{
    RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use std::{
    fmt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};
use time::OffsetDateTime;

/// A private CA is replaced by hand (or by its role) long before this.
const CA_LIFE: time::Duration = time::Duration::days(3650);

/// How long a leaf that we issue is valid.
pub const LEAF_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Certificates begin in the past: the peer's clock may be behind ours.
const CLOCK_SLACK: time::Duration = time::Duration::hours(24);

/// How often a leaf's age is looked at.
const RENEWAL_CHECK: Duration = Duration::from_secs(3600);

/// A private certificate authority: `NAME-ca.pem` and `NAME-ca.key` (0600) in a folder.
pub struct PrivateCa {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl PrivateCa {
    /// Opens the CA, or makes it.
    ///
    /// # Errors
    /// When its files cannot be read or made, or the key can be read by others.
    pub fn open(folder: &Path, name: &str) -> anyhow::Result<PrivateCa> {
        let (pem_path, key_path) =
            (folder.join(format!("{name}-ca.pem")), folder.join(format!("{name}-ca.key")));
        if !key_path.exists() {
            let key = KeyPair::generate().context("CA key")?;
            let pem = ca_params(name)?.self_signed(&key).context("CA certificate")?.pem();
            // The key last: a CA whose making was cut short is made again, not half used.
            write_private(&pem_path, pem.as_bytes())?;
            write_private(&key_path, key.serialize_pem().as_bytes())?;
        }
        refuse_readable_by_others(&key_path)?;
        let read = |path: &Path| {
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
        };
        let pem = read(&pem_path)?;
        let key = KeyPair::from_pem(&read(&key_path)?).with_context(|| key_path.display().to_string())?;
        let issuer = Issuer::from_ca_cert_pem(&pem, key).with_context(|| pem_path.display().to_string())?;
        Ok(PrivateCa { issuer, pem })
    }

    /// The trust anchor, for those who shall trust what this CA issues.
    pub fn trust_anchor(&self) -> &str {
        &self.pem
    }

    /// Issues a server certificate for these DNS names and IP addresses.
    ///
    /// # Errors
    /// When a name is no DNS name.
    pub fn issue(&self, names: &[String], life: Duration) -> anyhow::Result<Arc<CertifiedKey>> {
        let key = KeyPair::generate().context("leaf key")?;
        let mut params = CertificateParams::new(names).context("names in the certificate")?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        let common_name = names.first().map_or("homing", String::as_str);
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        params.not_before = OffsetDateTime::now_utc() - CLOCK_SLACK;
        params.not_after = OffsetDateTime::now_utc() + life;
        let leaf = params.signed_by(&key, &self.issuer).context("leaf certificate")?;
        let chain = vec![
            leaf.der().clone(),
            CertificateDer::from_pem_slice(self.pem.as_bytes()).context("CA certificate")?,
        ];
        certified(chain, PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?)
    }
}

fn ca_params(name: &str) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("Homing {name} CA"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = OffsetDateTime::now_utc() - CLOCK_SLACK;
    params.not_after = OffsetDateTime::now_utc() + CA_LIFE;
    Ok(params)
}

fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> anyhow::Result<Arc<CertifiedKey>> {
    let certified = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())
        .context("certificate and key do not belong together")?;
    Ok(Arc::new(certified))
}

/// The server certificate of one listener; replaceable while connections stand.
pub struct Leaf {
    current: ArcSwap<CertifiedKey>,
    source: Option<(Arc<PrivateCa>, Vec<String>, Duration)>,
    issued: ArcSwap<SystemTime>,
}

impl Leaf {
    /// A leaf issued by a private CA for these names, renewed by [`Leaf::keep_fresh`].
    ///
    /// # Errors
    /// See [`PrivateCa::issue`].
    pub fn issued_by(ca: Arc<PrivateCa>, names: Vec<String>, life: Duration) -> anyhow::Result<Arc<Leaf>> {
        let current = ca.issue(&names, life)?;
        Ok(Arc::new(Leaf {
            current: ArcSwap::new(current),
            source: Some((ca, names, life)),
            issued: ArcSwap::from_pointee(SystemTime::now()),
        }))
    }

    /// A certificate chain and its key from PEM files.
    ///
    /// # Errors
    /// When a file cannot be read, or the two do not belong together.
    pub fn from_files(chain: &Path, key: &Path) -> anyhow::Result<Arc<Leaf>> {
        let certificates: Vec<_> = CertificateDer::pem_file_iter(chain)
            .and_then(Iterator::collect)
            .with_context(|| format!("certificate chain {}", chain.display()))?;
        let private =
            PrivateKeyDer::from_pem_file(key).with_context(|| format!("private key {}", key.display()))?;
        Ok(Arc::new(Leaf {
            current: ArcSwap::new(certified(certificates, private)?),
            source: None,
            issued: ArcSwap::from_pointee(SystemTime::now()),
        }))
    }

    /// Replaces the leaf by a fresh one; only for leaves that a private CA issued.
    ///
    /// # Errors
    /// See [`PrivateCa::issue`].
    pub fn renew(&self) -> anyhow::Result<()> {
        if let Some((ca, names, life)) = &self.source {
            self.current.store(ca.issue(names, *life)?);
            self.issued.store(Arc::new(SystemTime::now()));
        }
        Ok(())
    }

    /// The certificate that is presented now.
    pub fn certificate(&self) -> CertificateDer<'static> {
        self.current.load().cert[0].clone()
    }

    /// Renews the leaf after two thirds of its life, until the role stops.
    pub async fn keep_fresh(self: Arc<Self>, stop: Stop) {
        let Some((_, _, life)) = self.source else { return };
        loop {
            tokio::select! {
                () = tokio::time::sleep(RENEWAL_CHECK.min(life / 6)) => (),
                () = stop.cancelled() => return,
            }
            if self.issued.load().elapsed().unwrap_or(life) < life * 2 / 3 {
                continue;
            }
            match self.renew() {
                Ok(()) => tracing::info!("server certificate renewed"),
                Err(error) => tracing::error!(error = format!("{error:#}"), "server certificate not renewed"),
            }
        }
    }
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Leaf")
    }
}

impl ResolvesServerCert for Leaf {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

/// A TLS 1.3 server without client certificates: for APIs and pages.
///
/// # Errors
/// When the crypto provider lacks what is asked of it.
pub fn server_config(leaf: Arc<Leaf>) -> anyhow::Result<Arc<rustls::ServerConfig>> {
    let mut config = rustls::ServerConfig::builder_with_provider(aws_lc_rs::default_provider().into())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(leaf);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// A TLS client: trusts exactly the anchors in `trust` (PEM), or the public web's where there is none.
///
/// # Errors
/// When the PEM holds no certificate.
pub fn client_config(trust: Option<&str>) -> anyhow::Result<rustls::ClientConfig> {
    let mut roots = RootCertStore::empty();
    match trust {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(pem) => {
            for anchor in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                roots.add(anchor.context("trust anchor")?).context("trust anchor")?;
            }
            anyhow::ensure!(!roots.is_empty(), "no certificate in the PEM text");
        }
    }
    Ok(rustls::ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::ServerName;
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

        handshake(leaf.clone(), ca.trust_anchor(), "127.0.0.1").await.unwrap();
        handshake(leaf.clone(), ca.trust_anchor(), "sts.example").await.unwrap();
        handshake(leaf.clone(), ca.trust_anchor(), "other.example").await.unwrap_err();

        let other = PrivateCa::open(folder.path(), "other").unwrap();
        handshake(leaf.clone(), other.trust_anchor(), "127.0.0.1").await.unwrap_err();

        let before = leaf.certificate();
        leaf.renew().unwrap();
        assert_ne!(leaf.certificate(), before);
        let reopened = PrivateCa::open(folder.path(), "tunnel").unwrap();
        assert_eq!(reopened.trust_anchor(), ca.trust_anchor());
        handshake(leaf, reopened.trust_anchor(), "127.0.0.1").await.unwrap();
    }
}
