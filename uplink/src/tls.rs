//! TLS of an uplink: mutual, 1.3 unless told otherwise, AES-128-GCM first.
//!
//! The server takes *any* well-formed client certificate and verifies only that the device holds its key
//! ([`AnyDeviceKey`]); whom to admit is decided from the key's [`Fingerprint`] after the handshake, so that a
//! refusal can say why. The device trusts exactly the anchors that it is given.
//!
//! Not here: where keys and certificates come from and where they are kept. Flow steps 4 (phone home) and 7 (tunnel).

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::aws_lc_rs as provider;
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::ResolvesServerCert;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, LazyLock};

/// Subject attribute `serialNumber` (X.520), where a device's factory certificate has its serial number.
const OID_SERIAL_NUMBER: &str = "2.5.4.5";

/// TLS sessions a device keeps for resumption: one uplink per server, two or three servers.
const CLIENT_SESSIONS: usize = 8;

/// Certificates between a device's and its manufacturer's root; two are usual.
pub const INTERMEDIATES_MAX: usize = 4;

static TLS13_ONLY: [&rustls::SupportedProtocolVersion; 1] = [&rustls::version::TLS13];

/// Which TLS versions to speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsPolicy {
    /// TLS 1.3.
    #[default]
    Tls13,
    /// TLS 1.2 too, for old devices; with extended master secret (RFC 7627), so that the exporter is bound to the
    /// connection.
    Tls12AndUp,
}

impl TlsPolicy {
    fn versions(self) -> &'static [&'static rustls::SupportedProtocolVersion] {
        match self {
            Self::Tls13 => &TLS13_ONLY,
            Self::Tls12AndUp => rustls::ALL_VERSIONS,
        }
    }
}

/// SHA-256 over a public key (DER SubjectPublicKeyInfo): what a device is known by. Printed as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub [u8; 32]);

/// The text is not a fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key fingerprint is 64 hexadecimal digits")]
pub struct FingerprintError;

impl Fingerprint {
    /// The fingerprint of a DER SubjectPublicKeyInfo.
    pub fn of_public_key(spki_der: &[u8]) -> Self {
        Self(sha256(spki_der))
    }

    /// The fingerprint of a certificate's public key.
    pub fn of_certificate(certificate_der: &[u8]) -> Result<Self, CertificateError> {
        let (_, certificate) =
            x509_parser::parse_x509_certificate(certificate_der).map_err(|_| CertificateError)?;
        Ok(Self::of_public_key(certificate.public_key().raw))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        let (pairs, rest) = text.trim().as_bytes().as_chunks::<2>();
        if pairs.len() != 32 || !rest.is_empty() || !pairs.as_flattened().iter().all(u8::is_ascii_hexdigit) {
            return Err(FingerprintError);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(pairs) {
            let text = std::str::from_utf8(pair).map_err(|_| FingerprintError)?;
            *byte = u8::from_str_radix(text, 16).map_err(|_| FingerprintError)?;
        }
        Ok(Self(bytes))
    }
}

/// A certificate that cannot be parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the certificate is not valid X.509 DER")]
pub struct CertificateError;

/// Who is at the other end, as its certificate says. Only the possession of the key is proved; names are claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The end-entity certificate.
    pub certificate_der: Vec<u8>,
    /// The certificates that it has shown behind that one, towards whoever issued it; at most
    /// [`INTERMEDIATES_MAX`].
    pub intermediates_der: Vec<Vec<u8>>,
    /// Of its public key.
    pub fingerprint: Fingerprint,
    /// Subject attribute `serialNumber` (2.5.4.5), if there is one.
    pub serial_number: Option<String>,
    /// Subject attribute `commonName`, if there is one.
    pub common_name: Option<String>,
}

impl PeerIdentity {
    /// Reads a DER certificate; without those behind it.
    pub fn from_certificate(der: &[u8]) -> Result<Self, CertificateError> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).map_err(|_| CertificateError)?;
        let subject = certificate.subject();
        let serial_number = subject
            .iter_attributes()
            .find(|attribute| attribute.attr_type().to_id_string() == OID_SERIAL_NUMBER)
            .and_then(|attribute| attribute.as_str().ok())
            .map(str::to_owned);
        let common_name =
            subject.iter_common_name().next().and_then(|name| name.as_str().ok()).map(str::to_owned);
        Ok(Self {
            certificate_der: der.to_vec(),
            intermediates_der: Vec::new(),
            fingerprint: Fingerprint::of_public_key(certificate.public_key().raw),
            serial_number,
            common_name,
        })
    }
}

/// The TLS configuration of a server that devices dial: client certificate mandatory, any key welcome (see
/// [`AnyDeviceKey`]), AES-128-GCM preferred, sessions resumable without state at the server.
pub fn server_tls_config(
    certificates: Arc<dyn ResolvesServerCert>,
    policy: TlsPolicy,
) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(policy.versions())?
        .with_client_cert_verifier(Arc::new(AnyDeviceKey::default()))
        .with_cert_resolver(certificates);
    // OpenSSL's default puts AES-256 first, which costs both ends 12 % more per byte.
    config.ignore_client_order = true;
    config.require_ems = true;
    config.ticketer = provider::Ticketer::new()?;
    config.send_tls13_tickets = 1;
    Ok(config)
}

/// The TLS configuration of a device: trusts `roots` only, shows `chain` and proves to hold `key`.
pub fn client_tls_config(
    roots: RootCertStore,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    policy: TlsPolicy,
) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(policy.versions())?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    config.require_ems = true;
    config.resumption = rustls::client::Resumption::in_memory_sessions(CLIENT_SESSIONS);
    Ok(config)
}

/// The trust anchors in a PEM text; an error says what is wrong. At least one must be there.
pub fn roots_from_pem(pem: &[u8]) -> Result<RootCertStore, rustls::Error> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| rustls::Error::General(format!("not PEM: {error}")))?;
        roots.add(certificate)?;
    }
    if roots.is_empty() {
        return Err(rustls::Error::General("there is no certificate in the PEM text".to_owned()));
    }
    Ok(roots)
}

/// aws-lc-rs with AES-128-GCM first: 12 % cheaper per byte than AES-256-GCM, half the cost of ChaCha20 where the
/// processor has AES instructions.
pub fn crypto_provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let mut provider = provider::default_provider();
        provider.cipher_suites.sort_by_key(|suite| !format!("{:?}", suite.suite()).contains("AES_128_GCM"));
        Arc::new(provider)
    });
    Arc::clone(&PROVIDER)
}

/// Accepts any well-formed client certificate, expired or self-signed alike, and verifies that the client holds
/// its key. Whom to admit is the caller's decision, from [`PeerIdentity::fingerprint`].
#[derive(Debug)]
pub struct AnyDeviceKey {
    algorithms: WebPkiSupportedAlgorithms,
}

impl Default for AnyDeviceKey {
    fn default() -> Self {
        Self { algorithms: crypto_provider().signature_verification_algorithms }
    }
}

impl ClientCertVerifier for AnyDeviceKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        match x509_parser::parse_x509_certificate(end_entity) {
            Ok(_) => Ok(ClientCertVerified::assertion()),
            Err(_) => Err(rustls::CertificateError::BadEncoding.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// For the WebSocket handshake only, where RFC 6455 §1.3 asks for it and nothing hangs on its strength.
pub(crate) fn sha1(bytes: &[u8]) -> [u8; 20] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, bytes);
    digest.as_ref().try_into().expect("SHA-1 has 20 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::PublicKeyData as _;

    #[test]
    fn a_fingerprint_prints_as_it_parses() {
        let fingerprint = Fingerprint(std::array::from_fn(|at| at as u8 * 8));
        assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
        assert_eq!(fingerprint.to_string().to_uppercase().parse(), Ok(fingerprint));
        for wrong in ["", "00", &"g0".repeat(32), &"é".repeat(32), &"00".repeat(33), &"+1".repeat(32)] {
            assert_eq!(wrong.parse::<Fingerprint>(), Err(FingerprintError), "{wrong}");
        }
    }

    #[test]
    fn the_subject_of_a_certificate_names_the_device() {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "camera");
        params.distinguished_name.push(rcgen::DnType::CustomDnType(vec![2, 5, 4, 5]), "00408C702009");
        let certificate = params.self_signed(&key).expect("a certificate");
        let identity = PeerIdentity::from_certificate(certificate.der()).expect("an identity");
        assert_eq!(identity.serial_number.as_deref(), Some("00408C702009"));
        assert_eq!(identity.common_name.as_deref(), Some("camera"));
        assert_eq!(identity.fingerprint, Fingerprint::of_public_key(&key.subject_public_key_info()));
        assert_eq!(PeerIdentity::from_certificate(b"garbage"), Err(CertificateError));
    }

    #[test]
    fn aes_128_comes_first() {
        let suites = &crypto_provider().cipher_suites;
        assert_eq!(suites[0].suite(), rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    }
}
