//! Uplink (`tup`): ONVIF Uplink Specification 26.06 §6, where a device is told where to dial.

use super::{Invalid, Message, UPLINK_NS as NS, boolean, empty_message, optional, requests, required};
use crate::soap::{Element, Fault};
use std::{fmt, str::FromStr};

empty_message! {
    /// Asks what the service can do.
    GetServiceCapabilities, NS, "GetServiceCapabilities";
    /// Asks for the configured uplinks.
    GetUplinks, NS, "GetUplinks";
    /// The answer to [`SetUplink`].
    UplinkSet, NS, "SetUplinkResponse";
    /// The answer to [`DeleteUplink`].
    UplinkDeleted, NS, "DeleteUplinkResponse";
}

requests! {
    GetServiceCapabilities => ServiceCapabilities, PreAuth;
    GetUplinks => Uplinks, ReadSystem;
    SetUplink => UplinkSet, WriteSystem;
    DeleteUplink => UplinkDeleted, WriteSystem;
}

/// The answer to [`GetServiceCapabilities`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceCapabilities {
    /// How many uplinks can be configured.
    pub max_uplinks: u32,
    /// `https` (native h2c-reverse), `wss` (the same over a WebSocket).
    pub protocols: Vec<String>,
    /// `mTLS`, `AccessToken`.
    pub authorization_modes: Vec<String>,
    /// Media can be streamed through the uplink.
    pub streaming_over_uplink: bool,
}

impl ServiceCapabilities {
    /// The element that also stands in [`Service::capabilities`](super::device::Service::capabilities).
    pub fn element(&self) -> Element {
        Element::new(NS, "Capabilities")
            .attribute("MaxUplinks", self.max_uplinks.to_string())
            .attribute("Protocols", self.protocols.join(" "))
            .attribute("AuthorizationModes", self.authorization_modes.join(" "))
            .attribute("StreamingOverUplink", self.streaming_over_uplink.to_string())
    }

    /// Reads that element.
    pub fn from_capabilities(capabilities: &Element) -> Self {
        let list = |name| {
            let list = capabilities.get_attribute(name).unwrap_or_default();
            list.split_ascii_whitespace().map(str::to_owned).collect()
        };
        ServiceCapabilities {
            max_uplinks: capabilities
                .get_attribute("MaxUplinks")
                .and_then(|number| number.trim().parse().ok())
                .unwrap_or(0),
            protocols: list("Protocols"),
            authorization_modes: list("AuthorizationModes"),
            streaming_over_uplink: capabilities
                .get_attribute("StreamingOverUplink")
                .and_then(boolean)
                .unwrap_or(false),
        }
    }
}

impl Message for ServiceCapabilities {
    const NAMESPACE: &'static str = NS;
    const NAME: &'static str = "GetServiceCapabilitiesResponse";

    fn to_element(&self) -> Element {
        Element::new(NS, Self::NAME).child(self.element())
    }

    fn from_element(element: &Element) -> Result<Self, Invalid> {
        let capabilities =
            element.find(NS, "Capabilities").ok_or_else(|| Invalid::new::<Self>("no Capabilities"))?;
        Ok(ServiceCapabilities::from_capabilities(capabilities))
    }
}

/// State of an uplink, as its device sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionStatus {
    /// Not connected, waiting to try again.
    Offline,
    /// On its way.
    Connecting,
    /// Up.
    Connected,
}

impl fmt::Display for ConnectionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ConnectionStatus::Offline => "Offline",
            ConnectionStatus::Connecting => "Connecting",
            ConnectionStatus::Connected => "Connected",
        })
    }
}

impl FromStr for ConnectionStatus {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "Offline" => Ok(ConnectionStatus::Offline),
            "Connecting" => Ok(ConnectionStatus::Connecting),
            // The WSDL's documentation says "Online" in one place.
            "Connected" | "Online" => Ok(ConnectionStatus::Connected),
            _ => Err(()),
        }
    }
}

/// One uplink (§6.1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// `https://host:port/path` for native h2c-reverse, `wss://…` for WebSocket. The key: setting an
    /// address again changes that uplink.
    pub remote_address: String,
    /// The certificate with which the device authenticates itself: mutual TLS. Excludes
    /// `authorization_server`.
    pub certificate_id: Option<String>,
    /// The level that requests through this uplink have: `Administrator`, `Operator`, `User`.
    pub user_level: Vec<String>,
    /// Read only.
    pub status: Option<ConnectionStatus>,
    /// How the server's certificate is validated; see
    /// [`CreateCertPathValidationPolicy`](super::security::CreateCertPathValidationPolicy).
    pub cert_path_validation_policy_id: Option<String>,
    /// Where an access token comes from.
    pub authorization_server: Option<String>,
    /// Read only: what is wrong, for a person.
    pub error: Option<String>,
}

impl Configuration {
    fn to_element(&self) -> Element {
        let text =
            |name, value: &Option<String>| value.as_ref().map(|value| Element::with_text(NS, name, value));
        Element::new(NS, "Configuration")
            .child(Element::with_text(NS, "RemoteAddress", &self.remote_address))
            .with_children(text("CertificateID", &self.certificate_id))
            .child(Element::with_text(NS, "UserLevel", self.user_level.join(" ")))
            .with_children(text("Status", &self.status.map(|status| status.to_string())))
            .with_children(text("CertPathValidationPolicyID", &self.cert_path_validation_policy_id))
            .with_children(text("AuthorizationServer", &self.authorization_server))
            .with_children(text("Error", &self.error))
    }

    fn from_element<M: Message>(element: &Element) -> Result<Self, Invalid> {
        let levels = element.text_of(NS, "UserLevel").unwrap_or_default();
        Ok(Configuration {
            remote_address: required::<M>(element, NS, "RemoteAddress")?,
            certificate_id: optional(element, NS, "CertificateID"),
            user_level: levels.split_ascii_whitespace().map(str::to_owned).collect(),
            status: element.text_of(NS, "Status").and_then(|status| status.parse().ok()),
            cert_path_validation_policy_id: optional(element, NS, "CertPathValidationPolicyID"),
            authorization_server: optional(element, NS, "AuthorizationServer"),
            error: optional(element, NS, "Error"),
        })
    }
}

/// The answer to [`GetUplinks`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uplinks(pub Vec<Configuration>);

impl Message for Uplinks {
    const NAMESPACE: &'static str = NS;
    const NAME: &'static str = "GetUplinksResponse";

    fn to_element(&self) -> Element {
        Element::new(NS, Self::NAME).with_children(self.0.iter().map(Configuration::to_element))
    }

    fn from_element(element: &Element) -> Result<Self, Invalid> {
        element
            .find_all(NS, "Configuration")
            .map(Configuration::from_element::<Self>)
            .collect::<Result<_, _>>()
            .map(Uplinks)
    }
}

/// Adds or changes an uplink (§6.3).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetUplink(pub Configuration);

impl Message for SetUplink {
    const NAMESPACE: &'static str = NS;
    const NAME: &'static str = "SetUplink";

    fn to_element(&self) -> Element {
        Element::new(NS, Self::NAME).child(self.0.to_element())
    }

    fn from_element(element: &Element) -> Result<Self, Invalid> {
        let configuration =
            element.find(NS, "Configuration").ok_or_else(|| Invalid::new::<Self>("no Configuration"))?;
        Configuration::from_element::<Self>(configuration).map(SetUplink)
    }
}

/// Removes an uplink (§6.4).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteUplink {
    /// The key.
    pub remote_address: String,
}

impl Message for DeleteUplink {
    const NAMESPACE: &'static str = NS;
    const NAME: &'static str = "DeleteUplink";

    fn to_element(&self) -> Element {
        Element::new(NS, Self::NAME).child(Element::with_text(NS, "RemoteAddress", &self.remote_address))
    }

    fn from_element(element: &Element) -> Result<Self, Invalid> {
        required::<Self>(element, NS, "RemoteAddress").map(|remote_address| DeleteUplink { remote_address })
    }
}

/// The faults of §6.3 and §6.4, with their subcodes.
pub mod fault {
    use super::Fault;

    /// No certificate is stored under the `CertificateID`.
    pub fn unknown_certificate(id: &str) -> Fault {
        Fault::sender(&["InvalidArgVal", "CertificateID"], format!("no certificate {id:?}"))
    }

    /// No policy is stored under the `CertPathValidationPolicyID`.
    pub fn unknown_policy(id: &str) -> Fault {
        Fault::sender(
            &["InvalidArgVal", "CertPathValidationPolicyID"],
            format!("no certificate path validation policy {id:?}"),
        )
    }

    /// There is no such authorization server.
    pub fn unknown_authorization_server(token: &str) -> Fault {
        Fault::sender(
            &["InvalidArgVal", "AuthorizationServerConfigurationToken"],
            format!("no authorization server {token:?}"),
        )
    }

    /// Neither a certificate nor an authorization server is named.
    pub fn missing_authentication() -> Fault {
        Fault::sender(&["InvalidArgs", "MissingAuthentication"], "CertificateID is required")
    }

    /// Both are named.
    pub fn ambiguous_authentication() -> Fault {
        Fault::sender(
            &["InvalidArgs", "AmbiguousAuthentication"],
            "CertificateID and AuthorizationServer exclude each other",
        )
    }

    /// The scheme of the address is not one that the device dials.
    pub fn protocol_not_supported() -> Fault {
        Fault::sender(
            &["InvalidArgs", "ProtocolNotSupported"],
            "the address must begin with https:// or wss://",
        )
    }

    /// No uplink has this address.
    pub fn unknown_address(address: &str) -> Fault {
        Fault::sender(&["InvalidArgVal", "Address"], format!("no uplink to {address:?}"))
    }
}
