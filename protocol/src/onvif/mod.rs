//! The ONVIF messages that Homing uses, each to make and to parse, request and response.
//!
//! | module | service | used in step |
//! |---|---|---|
//! | [`device`] | device management: who are you, what can you do | 5 dispatch, 8 add |
//! | [`security`] | advanced security: trust anchors | 5 dispatch |
//! | [`uplink`] | where to dial | 5 dispatch |
//! | [`media2`] | streams | 8 add |
//! | [`media`] | the same of devices without Media2: where RTSP over HTTP is | 8 add |
//!
//! A client makes a [`Request`], posts [`Request::to_xml`] to the service's address and gives the
//! answer to [`Request::parse_answer`]. A device gives what it was posted to [`DeviceRequest::parse`]
//! and is then one `match`.
//!
//! Not a whole ONVIF: elements that nobody here reads are skipped, and not written.

pub mod device;
pub mod media;
pub mod media2;
pub mod security;
pub mod uplink;

use crate::soap::{Element, Envelope, Fault, SoapError};

/// Namespace of the device management service.
pub const DEVICE_NS: &str = "http://www.onvif.org/ver10/device/wsdl";
/// Namespace of the media service that Media2 came after.
pub const MEDIA_NS: &str = "http://www.onvif.org/ver10/media/wsdl";
/// Namespace of the Media2 service.
pub const MEDIA2_NS: &str = "http://www.onvif.org/ver20/media/wsdl";
/// Namespace of the uplink service.
pub const UPLINK_NS: &str = "http://www.onvif.org/ver10/uplink/wsdl";
/// Namespace of the security service.
pub const SECURITY_NS: &str = "http://www.onvif.org/ver10/advancedsecurity/wsdl";
/// Namespace of ONVIF's common types.
pub const SCHEMA_NS: &str = "http://www.onvif.org/ver10/schema";

/// Where every ONVIF device has its device service (Core §5.1.1); the other addresses are asked for
/// there, and these are what devices of ours answer.
pub const DEVICE_PATH: &str = "/onvif/device_service";
/// Where our devices have their Media2 service.
pub const MEDIA2_PATH: &str = "/onvif/media2_service";
/// Where our devices have their uplink service.
pub const UPLINK_PATH: &str = "/onvif/uplink_service";
/// Where our devices have their security service.
pub const SECURITY_PATH: &str = "/onvif/security_service";

/// Who may ask: ONVIF Core §5.9.4.1. A user of level administrator may ask for everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AccessClass {
    /// Anybody, without a password.
    PreAuth,
    /// READ_SYSTEM and READ_SYSTEM_SENSITIVE: user, operator, administrator.
    ReadSystem,
    /// READ_MEDIA: user, operator, administrator.
    ReadMedia,
    /// READ_SYSTEM_SECRET: administrator.
    ReadSystemSecret,
    /// WRITE_SYSTEM and UNRECOVERABLE: administrator.
    WriteSystem,
}

/// A message body that can be written and read.
pub trait Message: Sized {
    /// The namespace of the message's element.
    const NAMESPACE: &'static str;
    /// The local name of the message's element.
    const NAME: &'static str;

    /// The body element.
    fn to_element(&self) -> Element;

    /// Reads the body element, whose name has been checked.
    fn from_element(element: &Element) -> Result<Self, Invalid>;
}

/// A message that asks for an answer.
pub trait Request: Message {
    /// The answer.
    type Answer: Message;
    /// Who may ask.
    const ACCESS: AccessClass;

    /// The SOAP action: the `action` parameter of the content type, for clients that want one.
    fn action() -> String {
        format!("{}/{}", Self::NAMESPACE, Self::NAME)
    }

    /// The message to post, SOAP 1.2.
    fn to_xml(&self) -> String {
        Envelope::new(self.to_element()).to_xml()
    }

    /// Reads what came back.
    fn parse_answer(document: &[u8]) -> Result<Self::Answer, CallError> {
        let body = Envelope::parse(document)?.into_result()?;
        if !body.is(Self::Answer::NAMESPACE, Self::Answer::NAME) {
            return Err(CallError::Unexpected {
                expected: Self::Answer::NAME,
                found: body.name().chars().take(64).collect(),
            });
        }
        Ok(Self::Answer::from_element(&body)?)
    }
}

/// Why a device's answer is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Not a SOAP message.
    #[error(transparent)]
    Soap(#[from] SoapError),
    /// The device says no, and why.
    #[error("the device answers: {0}")]
    Fault(#[from] Fault),
    /// Something is missing in the answer, or is not what it should be.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The answer to another question.
    #[error("expected {expected}, found {found}")]
    Unexpected {
        /// The answer's name.
        expected: &'static str,
        /// What stood there.
        found: String,
    },
}

/// A message of the right name with something wrong in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}: {what}")]
pub struct Invalid {
    /// The message.
    pub message: &'static str,
    /// What is missing or unreadable.
    pub what: String,
}

impl Invalid {
    fn new<M: Message>(what: impl Into<String>) -> Self {
        Invalid { message: M::NAME, what: what.into() }
    }
}

/// A required text.
fn required<M: Message>(element: &Element, namespace: &str, name: &str) -> Result<String, Invalid> {
    match element.text_of(namespace, name) {
        Some(text) => Ok(text.to_owned()),
        None => Err(Invalid::new::<M>(format!("no {name}"))),
    }
}

/// An optional text; an empty element is as good as none.
fn optional(element: &Element, namespace: &str, name: &str) -> Option<String> {
    element.text_of(namespace, name).filter(|text| !text.is_empty()).map(str::to_owned)
}

/// `xs:boolean`
fn boolean(text: &str) -> Option<bool> {
    match text.trim() {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}

/// Messages without content.
macro_rules! empty_message {
    ($($(#[$doc:meta])* $name:ident, $namespace:expr, $local:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name;

        impl $crate::onvif::Message for $name {
            const NAMESPACE: &'static str = $namespace;
            const NAME: &'static str = $local;

            fn to_element(&self) -> $crate::soap::Element {
                $crate::soap::Element::new(Self::NAMESPACE, Self::NAME)
            }

            fn from_element(_: &$crate::soap::Element) -> Result<Self, $crate::onvif::Invalid> {
                Ok(Self)
            }
        }
    )*};
}
use empty_message;

/// Which answer belongs to which request, and who may ask.
macro_rules! requests {
    ($($request:ty => $answer:ty, $access:ident;)*) => {$(
        impl $crate::onvif::Request for $request {
            type Answer = $answer;
            const ACCESS: $crate::onvif::AccessClass = $crate::onvif::AccessClass::$access;
        }
    )*};
}
use requests;

macro_rules! device_request {
    ($($variant:ident($type:ty) $doc:literal;)*) => {
        /// Every request that a device of ours answers.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum DeviceRequest {
            $(#[doc = $doc] $variant($type),)*
        }

        impl DeviceRequest {
            /// Reads a request. The fault is what to answer when there is none: the device does not
            /// know the request, or something in it is wrong.
            pub fn parse(envelope: &Envelope) -> Result<DeviceRequest, Fault> {
                let body = &envelope.body;
                $(if body.is(<$type>::NAMESPACE, <$type>::NAME) {
                    return <$type>::from_element(body)
                        .map(DeviceRequest::$variant)
                        .map_err(|invalid| Fault::sender(&["InvalidArgs"], invalid.to_string()));
                })*
                let name: String = body.name().chars().take(64).collect();
                Err(Fault::receiver(
                    &["ActionNotSupported", "NotSupported"],
                    format!("this device does not answer {name}"),
                ))
            }

            /// Who may ask.
            pub fn access(&self) -> AccessClass {
                match self {
                    $(DeviceRequest::$variant(_) => <$type>::ACCESS,)*
                }
            }

            /// The request's name, for logs and errors.
            pub fn name(&self) -> &'static str {
                match self {
                    $(DeviceRequest::$variant(_) => <$type>::NAME,)*
                }
            }

            /// The namespace of the service that the request belongs to.
            pub fn namespace(&self) -> &'static str {
                match self {
                    $(DeviceRequest::$variant(_) => <$type>::NAMESPACE,)*
                }
            }
        }
    };
}

device_request! {
    GetDeviceInformation(device::GetDeviceInformation) "Maker, model, firmware, serial number.";
    GetSystemDateAndTime(device::GetSystemDateAndTime) "The device's clock.";
    GetServices(device::GetServices) "The services and their addresses.";
    GetCapabilities(device::GetCapabilities) "The same in the way of older clients.";
    GetDeviceServiceCapabilities(device::GetServiceCapabilities) "What the device service can do.";
    SetUser(device::SetUser) "Changes an administrator's password.";
    SystemReboot(device::SystemReboot) "Restarts the device.";
    GetMediaServiceCapabilities(media2::GetServiceCapabilities) "What Media2 can do: RTSP over WebSocket.";
    GetProfiles(media2::GetProfiles) "The streams.";
    GetStreamUri(media2::GetStreamUri) "The RTSP address of a stream.";
    GetUplinkServiceCapabilities(uplink::GetServiceCapabilities) "What the uplink service can do.";
    GetUplinks(uplink::GetUplinks) "The configured uplinks and their states.";
    SetUplink(uplink::SetUplink) "Adds or changes an uplink.";
    DeleteUplink(uplink::DeleteUplink) "Removes an uplink.";
    GetSecurityServiceCapabilities(security::GetServiceCapabilities) "What the security service can do.";
    UploadCertificate(security::UploadCertificate) "Stores a certificate.";
    GetAllCertificates(security::GetAllCertificates) "The stored certificates.";
    DeleteCertificate(security::DeleteCertificate) "Removes a certificate.";
    CreateCertPathValidationPolicy(security::CreateCertPathValidationPolicy) "Makes certificates trust anchors.";
    GetAllCertPathValidationPolicies(security::GetAllCertPathValidationPolicies) "The policies.";
    DeleteCertPathValidationPolicy(security::DeleteCertPathValidationPolicy) "Removes a policy.";
}

#[cfg(test)]
mod tests;
