//! SOAP 1.2 envelopes and faults (1.1 is understood too), as ONVIF Core §5 uses them.
//!
//! Not here: what stands in the body ([`crate::onvif`]), HTTP ([`CONTENT_TYPE`] is all of it).
//! Headers are kept but not obeyed: `wsa:Action` and its like repeat what the body says.

pub mod wsse;
pub mod xml;

pub use xml::{Element, XmlError};

/// Namespace of SOAP 1.2.
pub const SOAP_12: &str = "http://www.w3.org/2003/05/soap-envelope";
/// Namespace of SOAP 1.1.
pub const SOAP_11: &str = "http://schemas.xmlsoap.org/soap/envelope/";
/// Namespace of ONVIF's fault subcodes (`ter:`).
pub const ONVIF_ERROR: &str = "http://www.onvif.org/ver10/error";
/// `Content-Type` of a SOAP 1.2 message.
pub const CONTENT_TYPE: &str = "application/soap+xml; charset=utf-8";

/// Which SOAP an envelope is written in; a device answers in the version it was asked in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SoapVersion {
    /// What ONVIF requires.
    #[default]
    V12,
    /// What some older clients send.
    V11,
}

impl SoapVersion {
    /// The version's namespace.
    pub const fn namespace(self) -> &'static str {
        match self {
            SoapVersion::V12 => SOAP_12,
            SoapVersion::V11 => SOAP_11,
        }
    }

    /// The version's `Content-Type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            SoapVersion::V12 => CONTENT_TYPE,
            SoapVersion::V11 => "text/xml; charset=utf-8",
        }
    }
}

/// A SOAP message: what stands in its header, and the one element in its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The version.
    pub version: SoapVersion,
    /// The header blocks.
    pub header: Vec<Element>,
    /// The first element of the body.
    pub body: Element,
}

/// Why something is not a SOAP message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SoapError {
    /// Not even XML that is read here.
    #[error(transparent)]
    Xml(#[from] XmlError),
    /// XML, but not an envelope with a body with an element.
    #[error("not a SOAP message: {0}")]
    NotSoap(&'static str),
}

impl Envelope {
    /// A SOAP 1.2 message without header.
    pub fn new(body: Element) -> Self {
        Envelope { version: SoapVersion::V12, header: Vec::new(), body }
    }

    /// A message in the version of the one that it answers.
    pub fn answer(version: SoapVersion, body: Element) -> Self {
        Envelope { version, header: Vec::new(), body }
    }

    /// Reads a message.
    pub fn parse(document: &[u8]) -> Result<Envelope, SoapError> {
        let root = Element::parse(document)?;
        let version = match (root.name(), root.namespace()) {
            ("Envelope", SOAP_12) => SoapVersion::V12,
            ("Envelope", SOAP_11) => SoapVersion::V11,
            _ => return Err(SoapError::NotSoap("no SOAP envelope")),
        };
        let header =
            root.find(version.namespace(), "Header").map(|h| h.children().to_vec()).unwrap_or_default();
        let body = root
            .find(version.namespace(), "Body")
            .ok_or(SoapError::NotSoap("no body"))?
            .children()
            .first()
            .ok_or(SoapError::NotSoap("an empty body"))?
            .clone();
        Ok(Envelope { version, header, body })
    }

    /// Writes the message.
    pub fn to_xml(&self) -> String {
        let namespace = self.version.namespace();
        let mut root = Element::new(namespace, "Envelope");
        if !self.header.is_empty() {
            root = root.child(Element::new(namespace, "Header").with_children(self.header.iter().cloned()));
        }
        let is_fault = self.body.is(namespace, "Fault");
        root.child(Element::new(namespace, "Body").child(self.body.clone())).to_xml_declaring(if is_fault {
            &[ONVIF_ERROR]
        } else {
            &[]
        })
    }

    /// The body, or the fault that stands there.
    pub fn into_result(self) -> Result<Element, Fault> {
        match Fault::parse(&self.body) {
            Some(fault) => Err(fault),
            None => Ok(self.body),
        }
    }
}

/// Whose fault a fault is; SOAP 1.2 §5.4.6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultCode {
    /// The request was wrong.
    Sender,
    /// The device could not.
    Receiver,
    /// `VersionMismatch`, `MustUnderstand`, `DataEncodingUnknown`, or nothing known.
    Other,
}

/// A SOAP fault.
///
/// Subcodes are local names (`InvalidArgVal`, `NoProfile`): peers differ in prefixes, ONVIF defines
/// them all in one namespace.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{}", reason, subcode_list(subcodes))]
pub struct Fault {
    /// Whose fault.
    pub code: FaultCode,
    /// From general to particular; at most two in ONVIF.
    pub subcodes: Vec<String>,
    /// For a person.
    pub reason: String,
}

fn subcode_list(subcodes: &[String]) -> String {
    if subcodes.is_empty() { String::new() } else { format!(" ({})", subcodes.join("/")) }
}

/// Subcodes further down than this are not looked for.
const MAX_SUBCODES: usize = 4;

impl Fault {
    /// The request was wrong.
    pub fn sender(subcodes: &[&str], reason: impl Into<String>) -> Self {
        Fault::new(FaultCode::Sender, subcodes, reason)
    }

    /// The device could not.
    pub fn receiver(subcodes: &[&str], reason: impl Into<String>) -> Self {
        Fault::new(FaultCode::Receiver, subcodes, reason)
    }

    fn new(code: FaultCode, subcodes: &[&str], reason: impl Into<String>) -> Self {
        Fault { code, subcodes: subcodes.iter().map(|s| (*s).to_owned()).collect(), reason: reason.into() }
    }

    /// The request needs a user (ONVIF Core §5.12.2); sent with HTTP status 401 and a challenge.
    pub fn not_authorized(reason: impl Into<String>) -> Self {
        Fault::sender(&["NotAuthorized"], reason)
    }

    /// Whether any of the subcodes is this one.
    pub fn has_subcode(&self, name: &str) -> bool {
        self.subcodes.iter().any(|subcode| subcode == name)
    }

    /// The HTTP status that a fault travels with (SOAP 1.2 part 2, §7.5.2.2).
    pub fn http_status(&self) -> u16 {
        match self.code {
            FaultCode::Sender => 400,
            FaultCode::Receiver | FaultCode::Other => 500,
        }
    }

    /// The body element.
    pub fn to_element(&self, version: SoapVersion) -> Element {
        let namespace = version.namespace();
        let code = match (self.code, version) {
            (FaultCode::Sender, SoapVersion::V12) => "Sender",
            (FaultCode::Sender, SoapVersion::V11) => "Client",
            (FaultCode::Receiver, SoapVersion::V12) => "Receiver",
            (_, SoapVersion::V11) => "Server",
            (FaultCode::Other, SoapVersion::V12) => "VersionMismatch",
        };
        match version {
            SoapVersion::V12 => {
                let subcodes = self.subcodes.iter().rev().fold(None, |inner: Option<Element>, name| {
                    Some(
                        Element::new(namespace, "Subcode")
                            .child(Element::with_text(namespace, "Value", format!("ter:{name}")))
                            .with_children(inner),
                    )
                });
                let text = Element::with_text(namespace, "Text", &self.reason);
                Element::new(namespace, "Fault")
                    .child(
                        Element::new(namespace, "Code")
                            .child(Element::with_text(namespace, "Value", format!("env:{code}")))
                            .with_children(subcodes),
                    )
                    .child(Element::new(namespace, "Reason").child(text.attribute_ns(
                        "http://www.w3.org/XML/1998/namespace",
                        "lang",
                        "en",
                    )))
            }
            // SOAP 1.1 §4.4: unqualified children, subcodes behind dots.
            SoapVersion::V11 => {
                let code = std::iter::once(code)
                    .chain(self.subcodes.iter().map(String::as_str))
                    .collect::<Vec<_>>()
                    .join(".");
                Element::new(namespace, "Fault")
                    .child(Element::with_text("", "faultcode", format!("soap:{code}")))
                    .child(Element::with_text("", "faultstring", &self.reason))
            }
        }
    }

    /// The whole message.
    pub fn to_xml(&self, version: SoapVersion) -> String {
        Envelope::answer(version, self.to_element(version)).to_xml()
    }

    /// Reads a body element, if it is a fault.
    pub fn parse(body: &Element) -> Option<Fault> {
        fn local(qname: &str) -> &str {
            qname.rsplit(':').next().unwrap_or(qname).trim()
        }
        let code_of = |name: &str| match name {
            "Sender" | "Client" => FaultCode::Sender,
            "Receiver" | "Server" => FaultCode::Receiver,
            _ => FaultCode::Other,
        };
        if body.is(SOAP_12, "Fault") {
            let code = body.find(SOAP_12, "Code");
            let mut subcodes = Vec::new();
            let mut next = code.and_then(|code| code.find(SOAP_12, "Subcode"));
            while let Some(subcode) = next.filter(|_| subcodes.len() < MAX_SUBCODES) {
                subcodes.extend(subcode.text_of(SOAP_12, "Value").map(|value| local(value).to_owned()));
                next = subcode.find(SOAP_12, "Subcode");
            }
            let reason = body.find(SOAP_12, "Reason").and_then(|reason| reason.text_of(SOAP_12, "Text"));
            Some(Fault {
                code: code_of(local(code.and_then(|c| c.text_of(SOAP_12, "Value")).unwrap_or_default())),
                subcodes,
                reason: reason.unwrap_or_default().to_owned(),
            })
        } else if body.is(SOAP_11, "Fault") {
            let text = |name: &'static str| body.text_of("", name).or_else(|| body.text_of(SOAP_11, name));
            let mut codes = local(text("faultcode").unwrap_or_default()).split('.').peekable();
            let code = codes.peek().map_or(FaultCode::Other, |code| code_of(code));
            // Devices write `ter:NotAuthorized` there, too.
            codes.next_if(|first| code != FaultCode::Other || first.is_empty());
            Some(Fault {
                code,
                subcodes: codes.take(MAX_SUBCODES).map(str::to_owned).collect(),
                reason: text("faultstring").unwrap_or_default().to_owned(),
            })
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn envelopes_in_either_version_and_any_prefix() {
        for (namespace, version) in [(SOAP_12, SoapVersion::V12), (SOAP_11, SoapVersion::V11)] {
            let xml = format!(
                r#"<X:Envelope xmlns:X="{namespace}"><X:Header><h xmlns="urn:h"/></X:Header>
                   <X:Body> <b xmlns="urn:b">1</b> </X:Body></X:Envelope>"#
            );
            let envelope = Envelope::parse(xml.as_bytes()).unwrap();
            assert_eq!(envelope.version, version);
            assert!(envelope.header[0].is("urn:h", "h") && envelope.body.is("urn:b", "b"));
            assert_eq!(Envelope::parse(envelope.to_xml().as_bytes()).unwrap(), envelope);
        }
        for (xml, message) in [
            ("<Envelope/>", "not a SOAP message: no SOAP envelope"),
            (r#"<Envelope xmlns="http://www.w3.org/2003/05/soap-envelope"/>"#, "not a SOAP message: no body"),
            (
                r#"<Envelope xmlns="http://www.w3.org/2003/05/soap-envelope"><Body/></Envelope>"#,
                "not a SOAP message: an empty body",
            ),
        ] {
            assert_eq!(Envelope::parse(xml.as_bytes()).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn faults_keep_their_codes_through_either_version() {
        for version in [SoapVersion::V12, SoapVersion::V11] {
            for fault in [
                Fault::sender(&["InvalidArgVal", "NoProfile"], "no profile \"<7>\""),
                Fault::receiver(&["ActionNotSupported"], "not here"),
                Fault::sender(&[], ""),
            ] {
                let xml = fault.to_xml(version);
                let read = Envelope::parse(xml.as_bytes()).unwrap().into_result().unwrap_err();
                assert_eq!(read, fault, "{xml}");
            }
        }
        let fault = Fault::not_authorized("user name or password is wrong");
        assert!(fault.to_xml(SoapVersion::V12).contains("xmlns:ter="), "text values need their prefix");
        assert_eq!(fault.to_string(), "user name or password is wrong (NotAuthorized)");
        assert_eq!(fault.http_status(), 400);
    }

    /// As gSOAP devices write them.
    #[test]
    fn a_fault_from_a_camera() {
        let xml = r#"<?xml version="1.0" encoding="UTF-8"?>
            <SOAP-ENV:Envelope xmlns:SOAP-ENV="http://www.w3.org/2003/05/soap-envelope" xmlns:ter="http://www.onvif.org/ver10/error">
            <SOAP-ENV:Body><SOAP-ENV:Fault><SOAP-ENV:Code><SOAP-ENV:Value>SOAP-ENV:Sender</SOAP-ENV:Value>
            <SOAP-ENV:Subcode><SOAP-ENV:Value>ter:NotAuthorized</SOAP-ENV:Value></SOAP-ENV:Subcode></SOAP-ENV:Code>
            <SOAP-ENV:Reason><SOAP-ENV:Text xml:lang="en">Sender not Authorized</SOAP-ENV:Text></SOAP-ENV:Reason>
            </SOAP-ENV:Fault></SOAP-ENV:Body></SOAP-ENV:Envelope>"#;
        let fault = Envelope::parse(xml.as_bytes()).unwrap().into_result().unwrap_err();
        assert_eq!(fault, Fault::not_authorized("Sender not Authorized"));
    }

    #[test]
    fn a_fault_of_soap_11_with_onvif_s_code_in_its_place() {
        let xml = r#"<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><s:Fault>
            <faultcode>ter:NotAuthorized</faultcode><faultstring>no</faultstring></s:Fault></s:Body></s:Envelope>"#;
        let fault = Envelope::parse(xml.as_bytes()).unwrap().into_result().unwrap_err();
        assert!(fault.has_subcode("NotAuthorized"), "{fault:?}");
    }

    proptest! {
        #[test]
        fn any_body_survives(body in xml::tests::any_element()) {
            let envelope = Envelope::new(body);
            prop_assert_eq!(Envelope::parse(envelope.to_xml().as_bytes()).unwrap(), envelope);
        }
    }
}
