//! Telling a device where to dial and whom to trust there, by ONVIF Security and Uplink: the end of step 5 (a
//! dispatcher), and a move (a tunnel server).
//!
//! Invariant: doing the same again changes nothing at the device: what it has stored already is used again, so that
//! one that is told often does not fill up.
//!
//! Not here: who the device is, and when it may be told.

use super::{Carrier, Device, DeviceError};
use homing_protocol::onvif::{self, device::path_of, security, uplink};
use rustls::pki_types::{CertificateDer, pem::PemObject};

/// What requests through an uplink may do without a log-in of their own: view, not administer.
const USER_LEVEL: &str = "Operator";

/// The name of what is stored in the device.
const ALIAS: &str = "Homing tunnel server";

/// Why a device could not be told.
#[derive(Debug, thiserror::Error)]
pub enum TellError<E: std::fmt::Display> {
    /// It has no such service.
    #[error("it has no ONVIF {0} service")]
    Lacks(&'static str),
    /// It does not list the certificate that it connected with.
    #[error("it does not list the certificate that it connected with")]
    UnknownKey,
    /// What it shall trust is no PEM.
    #[error("the trust anchor cannot be read: {0}")]
    TrustAnchor(String),
    /// A call went wrong.
    #[error("{error} (while {doing})")]
    Call {
        /// What was asked of it, to complete "while …".
        doing: &'static str,
        /// What went wrong.
        error: DeviceError<E>,
    },
}

/// A device's uplinks, as an administrator of it sees them.
pub struct Uplinks<'d, C> {
    device: &'d mut Device<C>,
    security: String,
    uplink: String,
}

impl<'d, C: Carrier> Uplinks<'d, C> {
    /// Finds the services.
    ///
    /// # Errors
    /// When one is missing, or the device does not answer.
    pub async fn find(device: &'d mut Device<C>) -> Result<Self, TellError<C::Error>> {
        let doing = "telling its services";
        let services = device.services().await.map_err(|error| TellError::Call { doing, error })?;
        let path = |namespace, service| match services.find(namespace) {
            Some(found) => Ok(path_of(&found.xaddr)),
            None => Err(TellError::Lacks(service)),
        };
        let (security, uplink) = (path(onvif::SECURITY_NS, "Security")?, path(onvif::UPLINK_NS, "Uplink")?);
        Ok(Uplinks { device, security, uplink })
    }

    /// Tells it where to dial, and to trust `trust_anchor` (PEM) alone there; empty: what browsers trust. It shows the
    /// certificate there that `is_own` recognises by its DER.
    ///
    /// # Errors
    /// What the device refuses. What it was told until then it knows.
    pub async fn send_to(
        &mut self,
        servers: &[String],
        trust_anchor: &str,
        is_own: impl Fn(&[u8]) -> bool,
    ) -> Result<(), TellError<C::Error>> {
        let stored = self.security("listing its certificates", &security::GetAllCertificates).await?.0;
        let own = stored.iter().find(|certificate| is_own(&certificate.content));
        let certificate = own.ok_or(TellError::UnknownKey)?.certificate_id.clone();
        let policy = match trust_anchor.trim() {
            "" => None,
            pem => Some(self.trust(pem, &stored).await?),
        };
        for server in servers {
            let configuration = uplink::Configuration {
                remote_address: format!("https://{server}/"),
                certificate_id: Some(certificate.clone()),
                user_level: vec![USER_LEVEL.to_owned()],
                cert_path_validation_policy_id: policy.clone(),
                ..uplink::Configuration::default()
            };
            self.uplink("taking its tunnel server's address", &uplink::SetUplink(configuration)).await?;
        }
        Ok(())
    }

    /// The policy under which the device trusts these anchors alone.
    async fn trust(
        &mut self,
        pem: &str,
        stored: &[security::Certificate],
    ) -> Result<String, TellError<C::Error>> {
        let doing = "taking the trust anchor";
        let mut anchors = Vec::new();
        for anchor in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let anchor = anchor.map_err(|error| TellError::TrustAnchor(error.to_string()))?;
            if let Some(known) = stored.iter().find(|known| known.content == anchor.as_ref()) {
                anchors.push(known.certificate_id.clone());
                continue;
            }
            let upload = security::UploadCertificate {
                certificate: anchor.to_vec(),
                alias: Some(ALIAS.to_owned()),
                private_key_required: false,
            };
            anchors.push(self.security(doing, &upload).await?.certificate_id);
        }
        let policies = self.security(doing, &security::GetAllCertPathValidationPolicies).await?.0;
        if let Some(known) = policies.into_iter().find(|known| known.trust_anchors == anchors) {
            return Ok(known.policy_id);
        }
        let policy = security::CreateCertPathValidationPolicy {
            alias: Some(ALIAS.to_owned()),
            trust_anchors: anchors,
        };
        Ok(self.security(doing, &policy).await?.policy_id)
    }

    /// Where it dials, and how each of these stands.
    ///
    /// # Errors
    /// When the device does not answer.
    pub async fn list(&mut self) -> Result<Vec<uplink::Configuration>, TellError<C::Error>> {
        Ok(self.uplink("telling its uplinks", &uplink::GetUplinks).await?.0)
    }

    /// Tells it not to dial an address of its list any more. If the request came by that very uplink, the device may
    /// close it before its answer is through.
    ///
    /// # Errors
    /// When the device refuses, or does not answer.
    pub async fn delete(&mut self, remote_address: &str) -> Result<(), TellError<C::Error>> {
        let delete = uplink::DeleteUplink { remote_address: remote_address.to_owned() };
        self.uplink("forgetting a tunnel server's address", &delete).await.map(drop)
    }

    async fn security<Q: onvif::Request>(
        &mut self,
        doing: &'static str,
        question: &Q,
    ) -> Result<Q::Answer, TellError<C::Error>> {
        let answer = self.device.call(&self.security, question).await;
        answer.map_err(|error| TellError::Call { doing, error })
    }

    async fn uplink<Q: onvif::Request>(
        &mut self,
        doing: &'static str,
        question: &Q,
    ) -> Result<Q::Answer, TellError<C::Error>> {
        let answer = self.device.call(&self.uplink, question).await;
        answer.map_err(|error| TellError::Call { doing, error })
    }
}
