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
    /// What it has not, and cannot do without.
    #[error("it has no {0}")]
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
    /// How its uplinks dial: `https`, or `wss` where it knows nothing else.
    scheme: &'static str,
}

impl<'d, C: Carrier> Uplinks<'d, C> {
    /// Finds the services.
    ///
    /// # Errors
    /// When one is missing, or the device does not answer.
    pub async fn find(device: &'d mut Device<C>) -> Result<Self, TellError<C::Error>> {
        let doing = "telling its services";
        let services = device.services().await.map_err(|error| TellError::Call { doing, error })?;
        let find = |namespace, lacks| services.find(namespace).ok_or(TellError::Lacks(lacks));
        let uplink = find(onvif::UPLINK_NS, "ONVIF Uplink service")?;
        let security = find(onvif::SECURITY_NS, "ONVIF Security service")?;
        let (security, path) = (path_of(&security.xaddr), path_of(&uplink.xaddr));
        let capabilities = match &uplink.capabilities {
            Some(told) => uplink::ServiceCapabilities::from_capabilities(told),
            // One that does not tell does what every device must.
            None => device.call(&path, &uplink::GetServiceCapabilities).await.unwrap_or_default(),
        };
        let scheme = scheme(&capabilities).map_err(TellError::Lacks)?;
        Ok(Uplinks { device, security, uplink: path, scheme })
    }

    /// Tells it where to dial (the first of `servers`, and as many more as it has room for), and to trust
    /// `trust_anchor` (PEM) alone there; empty: what browsers trust. It shows the certificate there that `is_own`
    /// recognises by its DER.
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
        for (index, server) in servers.iter().enumerate() {
            let configuration = uplink::Configuration {
                remote_address: format!("{}://{server}/", self.scheme),
                certificate_id: Some(certificate.clone()),
                user_level: vec![USER_LEVEL.to_owned()],
                cert_path_validation_policy_id: policy.clone(),
                ..uplink::Configuration::default()
            };
            let set =
                self.uplink("taking its tunnel server's address", &uplink::SetUplink(configuration)).await;
            match set {
                // One address is a tunnel; the others are there in case.
                Err(TellError::Call { error: DeviceError::Answer(answer), .. }) if index > 0 => {
                    tracing::warn!(device = self.device.host, server, %answer, "device takes no further address");
                    break;
                }
                set => set.map(drop)?,
            }
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

/// How a device dials that has these uplinks, or what it lacks.
fn scheme(capabilities: &uplink::ServiceCapabilities) -> Result<&'static str, &'static str> {
    let lists = |list: &[String], word: &str| list.iter().any(|entry| entry.eq_ignore_ascii_case(word));
    let uplink::ServiceCapabilities { protocols, authorization_modes, .. } = capabilities;
    if !(authorization_modes.is_empty() || lists(authorization_modes, "mTLS")) {
        return Err("uplink that shows a client certificate (mTLS)");
    }
    match () {
        () if protocols.is_empty() || lists(protocols, "https") => Ok("https"),
        () if lists(protocols, "wss") => Ok("wss"),
        () => Err("uplink by https or wss"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a device is told what it can dial, and what it lacks is named.
    #[test]
    fn a_device_is_told_what_it_can_dial() {
        let capabilities = |protocols: &str, modes: &str| uplink::ServiceCapabilities {
            protocols: protocols.split_whitespace().map(str::to_owned).collect(),
            authorization_modes: modes.split_whitespace().map(str::to_owned).collect(),
            ..Default::default()
        };
        for (protocols, modes, scheme) in [
            ("", "", Ok("https")),
            ("wss https", "AccessToken mTLS", Ok("https")),
            ("WSS", "MTLS", Ok("wss")),
            ("quic", "mTLS", Err("uplink by https or wss")),
            ("https", "AccessToken", Err("uplink that shows a client certificate (mTLS)")),
        ] {
            assert_eq!(super::scheme(&capabilities(protocols, modes)), scheme, "{protocols} {modes}");
        }
    }
}
