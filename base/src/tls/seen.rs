//! The ordinary verifier of a server's certificate, which remembers what it has accepted.

use super::{expiry, verifier::Verifier};
use anyhow::Context;
use arc_swap::ArcSwapOption;
use homing_protocol::api::Expiry;
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::aws_lc_rs,
    pki_types::CertificateDer,
};
use std::sync::Arc;

/// What a server has shown, after it was verified as always.
#[derive(Debug, Default)]
pub struct Seen {
    certificate: ArcSwapOption<CertificateDer<'static>>,
}

impl Seen {
    /// A verifier for these roots, and what it has seen.
    pub(super) fn verifier(roots: RootCertStore) -> anyhow::Result<(Arc<Verifier>, Arc<Seen>)> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let algorithms = provider.signature_verification_algorithms;
        let ordinary = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        let ordinary = ordinary.context("trust anchors")?;
        let seen = Arc::new(Seen::default());
        let sees = Arc::clone(&seen);
        let verifier = Verifier {
            judge: Box::new(move |end_entity, intermediates, name, now| {
                ordinary.verify_server_cert(end_entity, intermediates, name, &[], now)?;
                sees.certificate.store(Some(Arc::new(end_entity.clone().into_owned())));
                Ok(())
            }),
            algorithms,
        };
        Ok((Arc::new(verifier), seen))
    }

    /// When the certificate ends that the server showed last; none before that.
    pub fn expiry(&self, what: &str) -> Option<Expiry> {
        let certificate = self.certificate.load_full()?;
        expiry::of(what, &certificate, expiry::is_ours(&certificate))
    }
}
