//! Security (`tas`): ONVIF Security Service Specification §5.2 and §5.4, as far as a tunnel server's
//! trust anchor goes: upload a certificate, make it the anchor of a policy, name the policy in
//! [`SetUplink`](super::uplink::SetUplink).

use super::{Invalid, Message, SECURITY_NS as NS, boolean, empty_message, optional, requests, required};
use crate::soap::Element;
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};

empty_message! {
    /// Asks what the service can do.
    GetServiceCapabilities, NS, "GetServiceCapabilities";
    /// Asks for the stored certificates.
    GetAllCertificates, NS, "GetAllCertificates";
    /// Asks for the policies.
    GetAllCertPathValidationPolicies, NS, "GetAllCertPathValidationPolicies";
    /// The answer to [`DeleteCertificate`].
    CertificateDeleted, NS, "DeleteCertificateResponse";
    /// The answer to [`DeleteCertPathValidationPolicy`].
    PolicyDeleted, NS, "DeleteCertPathValidationPolicyResponse";
}

requests! {
    GetServiceCapabilities => ServiceCapabilities, PreAuth;
    UploadCertificate => CertificateUploaded, WriteSystem;
    GetAllCertificates => Certificates, ReadSystemSecret;
    DeleteCertificate => CertificateDeleted, WriteSystem;
    CreateCertPathValidationPolicy => PolicyCreated, WriteSystem;
    GetAllCertPathValidationPolicies => Policies, ReadSystemSecret;
    DeleteCertPathValidationPolicy => PolicyDeleted, WriteSystem;
}

/// The answer to [`GetServiceCapabilities`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceCapabilities {
    /// How many certificates can be stored.
    pub maximum_number_of_certificates: u32,
    /// How many policies can be made.
    pub maximum_number_of_policies: u32,
}

impl ServiceCapabilities {
    /// The element that also stands in [`Service::capabilities`](super::device::Service::capabilities).
    pub fn element(self) -> Element {
        Element::new(NS, "Capabilities")
            .child(
                Element::new(NS, "KeystoreCapabilities")
                    .attribute("MaximumNumberOfCertificates", self.maximum_number_of_certificates.to_string())
                    .attribute("X.509Versions", "3")
                    .attribute(
                        "MaximumNumberOfCertificationPathValidationPolicies",
                        self.maximum_number_of_policies.to_string(),
                    ),
            )
            .child(Element::new(NS, "TLSServerCapabilities"))
    }
}

impl Message for ServiceCapabilities {
    const NAMESPACE: &'static str = NS;
    const NAME: &'static str = "GetServiceCapabilitiesResponse";

    fn to_element(&self) -> Element {
        Element::new(NS, Self::NAME).child(self.element())
    }

    fn from_element(element: &Element) -> Result<Self, Invalid> {
        let keystore = element.find(NS, "Capabilities").and_then(|c| c.find(NS, "KeystoreCapabilities"));
        let number = |name| {
            let number = keystore.and_then(|keystore| keystore.get_attribute(name));
            number.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
        };
        Ok(ServiceCapabilities {
            maximum_number_of_certificates: number("MaximumNumberOfCertificates"),
            maximum_number_of_policies: number("MaximumNumberOfCertificationPathValidationPolicies"),
        })
    }
}

/// Base64 as XML allows it, with line breaks.
fn decode<M: Message>(element: &Element, name: &str) -> Result<Vec<u8>, Invalid> {
    let mut text = required::<M>(element, NS, name)?;
    text.retain(|character| !character.is_ascii_whitespace());
    BASE64.decode(text).map_err(|_| Invalid::new::<M>(format!("{name} is not base64")))
}

/// Stores a certificate without its key: a trust anchor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UploadCertificate {
    /// DER.
    pub certificate: Vec<u8>,
    /// A name for it.
    pub alias: Option<String>,
    /// The device must hold the private key already.
    pub private_key_required: bool,
}

impl Message for UploadCertificate {
    const NAMESPACE: &'static str = NS;
    const NAME: &'static str = "UploadCertificate";

    fn to_element(&self) -> Element {
        Element::new(NS, Self::NAME)
            .child(Element::with_text(NS, "Certificate", BASE64.encode(&self.certificate)))
            .with_children(self.alias.as_ref().map(|alias| Element::with_text(NS, "Alias", alias)))
            .child(Element::with_text(NS, "PrivateKeyRequired", self.private_key_required.to_string()))
    }

    fn from_element(element: &Element) -> Result<Self, Invalid> {
        Ok(UploadCertificate {
            certificate: decode::<Self>(element, "Certificate")?,
            alias: optional(element, NS, "Alias"),
            private_key_required: element
                .text_of(NS, "PrivateKeyRequired")
                .and_then(boolean)
                .unwrap_or(false),
        })
    }
}

/// The answer to [`UploadCertificate`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificateUploaded {
    /// The certificate's key in the device.
    pub certificate_id: String,
    /// The key of its public key in the device.
    pub key_id: String,
}

impl Message for CertificateUploaded {
    const NAMESPACE: &'static str = NS;
    const NAME: &'static str = "UploadCertificateResponse";

    fn to_element(&self) -> Element {
        Element::new(NS, Self::NAME)
            .child(Element::with_text(NS, "CertificateID", &self.certificate_id))
            .child(Element::with_text(NS, "KeyID", &self.key_id))
    }

    fn from_element(element: &Element) -> Result<Self, Invalid> {
        Ok(CertificateUploaded {
            certificate_id: required::<Self>(element, NS, "CertificateID")?,
            key_id: optional(element, NS, "KeyID").unwrap_or_default(),
        })
    }
}

/// A certificate in a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certificate {
    /// Its key.
    pub certificate_id: String,
    /// The key of its public key.
    pub key_id: String,
    /// Its name.
    pub alias: Option<String>,
    /// DER.
    pub content: Vec<u8>,
    /// The device holds the private key: it can authenticate itself with this certificate.
    pub has_private_key: bool,
}

/// The answer to [`GetAllCertificates`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certificates(pub Vec<Certificate>);

impl Message for Certificates {
    const NAMESPACE: &'static str = NS;
    const NAME: &'static str = "GetAllCertificatesResponse";

    fn to_element(&self) -> Element {
        Element::new(NS, Self::NAME).with_children(self.0.iter().map(|certificate| {
            let alias = certificate.alias.as_ref();
            Element::new(NS, "Certificate")
                .child(Element::with_text(NS, "CertificateID", &certificate.certificate_id))
                .child(Element::with_text(NS, "KeyID", &certificate.key_id))
                .with_children(alias.map(|alias| Element::with_text(NS, "Alias", alias)))
                .child(Element::with_text(NS, "CertificateContent", BASE64.encode(&certificate.content)))
                .child(Element::with_text(NS, "HasPrivateKey", certificate.has_private_key.to_string()))
        }))
    }

    fn from_element(element: &Element) -> Result<Self, Invalid> {
        let certificate = |certificate: &Element| {
            Ok(Certificate {
                certificate_id: required::<Self>(certificate, NS, "CertificateID")?,
                key_id: optional(certificate, NS, "KeyID").unwrap_or_default(),
                alias: optional(certificate, NS, "Alias"),
                content: decode::<Self>(certificate, "CertificateContent")?,
                has_private_key: certificate.text_of(NS, "HasPrivateKey").and_then(boolean).unwrap_or(false),
            })
        };
        element.find_all(NS, "Certificate").map(certificate).collect::<Result<_, _>>().map(Certificates)
    }
}

/// Removes a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteCertificate {
    /// Its key.
    pub certificate_id: String,
}

impl Message for DeleteCertificate {
    const NAMESPACE: &'static str = NS;
    const NAME: &'static str = "DeleteCertificate";

    fn to_element(&self) -> Element {
        Element::new(NS, Self::NAME).child(Element::with_text(NS, "CertificateID", &self.certificate_id))
    }

    fn from_element(element: &Element) -> Result<Self, Invalid> {
        required::<Self>(element, NS, "CertificateID")
            .map(|certificate_id| DeleteCertificate { certificate_id })
    }
}

/// Makes certificates trust anchors under one name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CreateCertPathValidationPolicy {
    /// A name for the policy.
    pub alias: Option<String>,
    /// Keys of certificates, at least one: a server's chain must lead to one of them.
    pub trust_anchors: Vec<String>,
}

fn anchors_to_elements(anchors: &[String]) -> impl Iterator<Item = Element> {
    anchors
        .iter()
        .map(|id| Element::new(NS, "TrustAnchor").child(Element::with_text(NS, "CertificateID", id)))
}

fn anchors_from_element<M: Message>(element: &Element) -> Result<Vec<String>, Invalid> {
    let anchors: Vec<String> = element
        .find_all(NS, "TrustAnchor")
        .map(|anchor| required::<M>(anchor, NS, "CertificateID"))
        .collect::<Result<_, _>>()?;
    if anchors.is_empty() { Err(Invalid::new::<M>("no TrustAnchor")) } else { Ok(anchors) }
}

impl Message for CreateCertPathValidationPolicy {
    const NAMESPACE: &'static str = NS;
    const NAME: &'static str = "CreateCertPathValidationPolicy";

    fn to_element(&self) -> Element {
        Element::new(NS, Self::NAME)
            .with_children(self.alias.as_ref().map(|alias| Element::with_text(NS, "Alias", alias)))
            .child(Element::new(NS, "Parameters"))
            .with_children(anchors_to_elements(&self.trust_anchors))
    }

    fn from_element(element: &Element) -> Result<Self, Invalid> {
        Ok(CreateCertPathValidationPolicy {
            alias: optional(element, NS, "Alias"),
            trust_anchors: anchors_from_element::<Self>(element)?,
        })
    }
}

/// The answer to [`CreateCertPathValidationPolicy`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyCreated {
    /// The policy's key.
    pub policy_id: String,
}

impl Message for PolicyCreated {
    const NAMESPACE: &'static str = NS;
    const NAME: &'static str = "CreateCertPathValidationPolicyResponse";

    fn to_element(&self) -> Element {
        Element::new(NS, Self::NAME).child(Element::with_text(
            NS,
            "CertPathValidationPolicyID",
            &self.policy_id,
        ))
    }

    fn from_element(element: &Element) -> Result<Self, Invalid> {
        required::<Self>(element, NS, "CertPathValidationPolicyID")
            .map(|policy_id| PolicyCreated { policy_id })
    }
}

/// A policy in a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Its key.
    pub policy_id: String,
    /// Its name.
    pub alias: Option<String>,
    /// Keys of certificates.
    pub trust_anchors: Vec<String>,
}

/// The answer to [`GetAllCertPathValidationPolicies`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policies(pub Vec<Policy>);

impl Message for Policies {
    const NAMESPACE: &'static str = NS;
    const NAME: &'static str = "GetAllCertPathValidationPoliciesResponse";

    fn to_element(&self) -> Element {
        Element::new(NS, Self::NAME).with_children(self.0.iter().map(|policy| {
            let alias = policy.alias.as_ref();
            Element::new(NS, "CertPathValidationPolicy")
                .child(Element::with_text(NS, "CertPathValidationPolicyID", &policy.policy_id))
                .with_children(alias.map(|alias| Element::with_text(NS, "Alias", alias)))
                .child(Element::new(NS, "Parameters"))
                .with_children(anchors_to_elements(&policy.trust_anchors))
        }))
    }

    fn from_element(element: &Element) -> Result<Self, Invalid> {
        let policy = |policy: &Element| {
            Ok(Policy {
                policy_id: required::<Self>(policy, NS, "CertPathValidationPolicyID")?,
                alias: optional(policy, NS, "Alias"),
                trust_anchors: anchors_from_element::<Self>(policy)?,
            })
        };
        element.find_all(NS, "CertPathValidationPolicy").map(policy).collect::<Result<_, _>>().map(Policies)
    }
}

/// Removes a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteCertPathValidationPolicy {
    /// Its key.
    pub policy_id: String,
}

impl Message for DeleteCertPathValidationPolicy {
    const NAMESPACE: &'static str = NS;
    const NAME: &'static str = "DeleteCertPathValidationPolicy";

    fn to_element(&self) -> Element {
        Element::new(NS, Self::NAME).child(Element::with_text(
            NS,
            "CertPathValidationPolicyID",
            &self.policy_id,
        ))
    }

    fn from_element(element: &Element) -> Result<Self, Invalid> {
        required::<Self>(element, NS, "CertPathValidationPolicyID")
            .map(|policy_id| DeleteCertPathValidationPolicy { policy_id })
    }
}
