//! What a server shows before anybody trusts it: for a person who compares the fingerprint and then decides.
//!
//! Invariant: nothing is sent through the connection but the handshake, with a key of no meaning for servers that want one;
//! it is closed once the server has shown itself.

use super::{expiry, verifier::Verifier};
use anyhow::Context;
use rustls::{
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use x509_parser::extensions::GeneralName;

/// What a server has shown, and nobody has verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// PEM of the last certificate of its chain: its private CA's, where it has one.
    pub anchor: String,
    /// SHA-256 of that, in upper case hex with colons, as other programs print it.
    pub fingerprint: String,
    /// Its own certificate.
    pub certificate: CertificateDer<'static>,
    /// DNS names and IP addresses that its own certificate is for.
    pub names: Vec<String>,
}

/// Looks at what a server shows for `host` on a connection to it.
///
/// # Errors
/// When it speaks no TLS, or shows nothing that can be read.
pub async fn look(tcp: TcpStream, host: &str) -> anyhow::Result<Shown> {
    let ours = rcgen::generate_simple_self_signed(vec!["looks".to_owned()]).context("a key to show")?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let chain: Arc<Mutex<Vec<CertificateDer<'static>>>> = Arc::default();
    let looks = Arc::clone(&chain);
    // Takes any chain, and keeps it; the server must have its key all the same.
    let looker = Verifier {
        judge: Box::new(move |end_entity, intermediates, _, _| {
            let chain = std::iter::once(end_entity).chain(intermediates);
            *looks.lock().unwrap_or_else(PoisonError::into_inner) =
                chain.map(|der| der.clone().into_owned()).collect();
            Ok(())
        }),
        algorithms: provider.signature_verification_algorithms,
    };
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(looker))
        .with_client_auth_cert(
            vec![ours.cert.der().clone()],
            PrivateKeyDer::Pkcs8(ours.signing_key.serialize_der().into()),
        )?;
    let name = ServerName::try_from(host.to_owned()).context("host")?;
    let connected = TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
    let chain = chain.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let (Some(own), Some(last)) = (chain.first(), chain.last()) else {
        connected?;
        anyhow::bail!("it showed no certificate");
    };
    Ok(Shown {
        anchor: expiry::to_pem(last),
        fingerprint: fingerprint(last),
        certificate: own.clone(),
        names: names(own)?,
    })
}

/// SHA-256 of the first certificate of a PEM text, as in [`Shown::fingerprint`].
pub fn fingerprint_of_pem(pem: &str) -> Option<String> {
    use rustls::pki_types::pem::PemObject;
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    Some(fingerprint(&der))
}

fn fingerprint(der: &[u8]) -> String {
    let hash = ::aws_lc_rs::digest::digest(&::aws_lc_rs::digest::SHA256, der);
    let bytes: Vec<String> = hash.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
    bytes.join(":")
}

fn names(der: &[u8]) -> anyhow::Result<Vec<String>> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).context("certificate")?;
    let Some(alternative) = certificate.subject_alternative_name().context("certificate")? else {
        return Ok(Vec::new());
    };
    let name = |name: &GeneralName| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|ip| std::net::IpAddr::from(ip).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|ip| std::net::IpAddr::from(ip).to_string()),
        },
        _ => None,
    };
    Ok(alternative.value.general_names.iter().filter_map(name).collect())
}
