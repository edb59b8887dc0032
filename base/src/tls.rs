//! Certificates: a private CA, leaves that renew themselves, PEM files, when they end, and what clients trust.
//!
//! | module | what |
//! |---|---|
//! | `ca` | the private CA, and its successor |
//! | `leaf` | what a listener shows |
//! | `https` | whether it does |
//! | [`expiry`] | when certificates end, and the warnings before |
//! | [`look()`] | what a server shows that nobody trusts yet |

mod ca;
pub mod expiry;
mod https;
mod leaf;
mod look;
mod seen;
mod verifier;

pub use ca::PrivateCa;
pub use https::{Files, Https};
pub use leaf::{LEAF_LIFE, Leaf};
pub use look::{Shown, fingerprint_of_pem, look};
pub use seen::Seen;

use anyhow::Context;
use rustls::{
    RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use std::sync::Arc;

fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> anyhow::Result<Arc<CertifiedKey>> {
    let certified = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())
        .context("certificate and key do not belong together")?;
    Ok(Arc::new(certified))
}

/// A TLS 1.3 server without client certificates: for APIs and pages.
///
/// # Errors
/// When the crypto provider lacks what is asked of it.
pub fn server_config(leaf: Arc<Leaf>) -> anyhow::Result<Arc<rustls::ServerConfig>> {
    server_config_for(leaf, false, &[b"http/1.1"])
}

/// The same with TLS 1.2 for clients that know nothing newer, and for these protocols of ALPN, the preferred one first.
///
/// # Errors
/// As [`server_config`].
pub fn server_config_for(
    leaf: Arc<Leaf>,
    tls_1_2: bool,
    alpn: &[&[u8]],
) -> anyhow::Result<Arc<rustls::ServerConfig>> {
    let versions = if tls_1_2 { rustls::ALL_VERSIONS } else { &[&rustls::version::TLS13] };
    let mut config = rustls::ServerConfig::builder_with_provider(aws_lc_rs::default_provider().into())
        .with_protocol_versions(versions)?
        .with_no_client_auth()
        .with_cert_resolver(leaf);
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}

/// A TLS client: trusts exactly the anchors in `trust` (PEM), or the public web's where there is none.
///
/// # Errors
/// When the PEM holds no certificate.
pub fn client_config(trust: Option<&str>) -> anyhow::Result<rustls::ClientConfig> {
    Ok(client_builder()?.with_root_certificates(roots(trust)?).with_no_client_auth())
}

/// The same, which remembers the certificate that the server showed last.
///
/// # Errors
/// As [`client_config`].
pub fn seeing_client_config(trust: Option<&str>) -> anyhow::Result<(rustls::ClientConfig, Arc<Seen>)> {
    let (verifier, seen) = Seen::verifier(roots(trust)?)?;
    let config = client_builder()?.dangerous().with_custom_certificate_verifier(verifier);
    Ok((config.with_no_client_auth(), seen))
}

/// PEM as it stands in a configuration: the text itself, or the path of a file with it; empty: none.
///
/// # Errors
/// When the file cannot be read.
pub fn pem_or_file(text: &str) -> anyhow::Result<Option<String>> {
    match text.trim() {
        "" => Ok(None),
        pem if pem.starts_with("-----BEGIN") => Ok(Some(pem.to_owned())),
        path => std::fs::read_to_string(path).with_context(|| format!("cannot read {path}")).map(Some),
    }
}

fn client_builder() -> anyhow::Result<rustls::ConfigBuilder<rustls::ClientConfig, rustls::WantsVerifier>> {
    let builder = rustls::ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into());
    Ok(builder.with_safe_default_protocol_versions()?)
}

fn roots(trust: Option<&str>) -> anyhow::Result<RootCertStore> {
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
    Ok(roots)
}

#[cfg(test)]
mod tests;
