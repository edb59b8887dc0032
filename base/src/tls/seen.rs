//! The ordinary verifier of a server's certificate, which remembers what it has accepted.

use super::expiry;
use anyhow::Context;
use arc_swap::ArcSwapOption;
use homing_protocol::api::Expiry;
use rustls::{
    DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use std::sync::Arc;

/// What a server has shown, after it was verified as always.
#[derive(Debug)]
pub struct Seen {
    verifier: Arc<WebPkiServerVerifier>,
    certificate: ArcSwapOption<CertificateDer<'static>>,
}

impl Seen {
    pub(super) fn new(roots: RootCertStore) -> anyhow::Result<Seen> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        Ok(Seen { verifier: verifier.context("trust anchors")?, certificate: ArcSwapOption::empty() })
    }

    /// When the certificate ends that the server showed last; none before that.
    pub fn expiry(&self, what: &str) -> Option<Expiry> {
        let certificate = self.certificate.load_full()?;
        expiry::of(what, &certificate, expiry::is_ours(&certificate))
    }
}

impl ServerCertVerifier for Seen {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified =
            self.verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        self.certificate.store(Some(Arc::new(end_entity.clone().into_owned())));
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
