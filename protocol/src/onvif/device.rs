//! Device management (`tds`): ONVIF Core §8.

use super::{
    DEVICE_NS as NS, Invalid, MEDIA2_NS, Message, SCHEMA_NS as TT, boolean, empty_message, optional,
    requests, required,
};
use crate::{secret::Credentials, soap::Element};
use jiff::{Timestamp, civil, tz::TimeZone};

empty_message! {
    /// Asks for maker, model, firmware and serial number.
    GetDeviceInformation, NS, "GetDeviceInformation";
    /// Asks for the device's clock.
    GetSystemDateAndTime, NS, "GetSystemDateAndTime";
    /// Asks what the device service can do.
    GetServiceCapabilities, NS, "GetServiceCapabilities";
    /// Asks for the addresses of services in the way of clients older than GetServices. Its list of
    /// categories is ignored: everything is answered.
    GetCapabilities, NS, "GetCapabilities";
    /// The answer to [`SetSystemDateAndTime`].
    SystemDateAndTimeSet, NS, "SetSystemDateAndTimeResponse";
    /// The answer to [`SetUser`].
    UserSet, NS, "SetUserResponse";
    /// Restarts the device (§8.3.5).
    SystemReboot, NS, "SystemReboot";
}

requests! {
    GetDeviceInformation => DeviceInformation, ReadSystem;
    GetSystemDateAndTime => SystemDateAndTime, PreAuth;
    SetSystemDateAndTime => SystemDateAndTimeSet, WriteSystem;
    GetServices => Services, PreAuth;
    GetCapabilities => Capabilities, PreAuth;
    GetServiceCapabilities => ServiceCapabilities, PreAuth;
    SetUser => UserSet, WriteSystem;
    SystemReboot => Rebooting, WriteSystem;
}

/// The answer to [`SystemReboot`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rebooting {
    /// What the device says about it, for people.
    pub message: String,
}

impl Message for Rebooting {
    const NAMESPACE: &'static str = NS;
    const NAME: &'static str = "SystemRebootResponse";

    fn to_element(&self) -> Element {
        Element::new(NS, Self::NAME).child(Element::with_text(NS, "Message", &self.message))
    }

    fn from_element(element: &Element) -> Result<Self, Invalid> {
        Ok(Rebooting { message: optional(element, NS, "Message").unwrap_or_default() })
    }
}

/// Changes an administrator's password (§8.4.5). The message could hold several users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetUser {
    /// Whose, and the new password.
    pub user: Credentials,
}

impl Message for SetUser {
    const NAMESPACE: &'static str = NS;
    const NAME: &'static str = "SetUser";

    fn to_element(&self) -> Element {
        Element::new(NS, Self::NAME).child(
            Element::new(NS, "User")
                .child(Element::with_text(TT, "Username", &self.user.user))
                .child(Element::with_text(TT, "Password", self.user.password.expose()))
                .child(Element::with_text(TT, "UserLevel", "Administrator")),
        )
    }

    fn from_element(element: &Element) -> Result<Self, Invalid> {
        let user = element.find(NS, "User").ok_or_else(|| Invalid::new::<Self>("no User"))?;
        let name = required::<Self>(user, TT, "Username")?;
        Ok(SetUser { user: Credentials::new(name, required::<Self>(user, TT, "Password")?) })
    }
}

/// The answer to [`GetDeviceInformation`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceInformation {
    /// The maker.
    pub manufacturer: String,
    /// The model.
    pub model: String,
    /// The version of the firmware.
    pub firmware_version: String,
    /// The serial number as the device writes it; parse it as
    /// [`SerialNumber`](crate::SerialNumber) before comparing.
    pub serial_number: String,
    /// The version of the hardware.
    pub hardware_id: String,
}

impl Message for DeviceInformation {
    const NAMESPACE: &'static str = NS;
    const NAME: &'static str = "GetDeviceInformationResponse";

    fn to_element(&self) -> Element {
        Element::new(NS, Self::NAME)
            .child(Element::with_text(NS, "Manufacturer", &self.manufacturer))
            .child(Element::with_text(NS, "Model", &self.model))
            .child(Element::with_text(NS, "FirmwareVersion", &self.firmware_version))
            .child(Element::with_text(NS, "SerialNumber", &self.serial_number))
            .child(Element::with_text(NS, "HardwareId", &self.hardware_id))
    }

    fn from_element(element: &Element) -> Result<Self, Invalid> {
        let text = |name| optional(element, NS, name).unwrap_or_default();
        Ok(DeviceInformation {
            manufacturer: text("Manufacturer"),
            model: text("Model"),
            firmware_version: text("FirmwareVersion"),
            serial_number: required::<Self>(element, NS, "SerialNumber")?,
            hardware_id: text("HardwareId"),
        })
    }
}

/// The answer to [`GetSystemDateAndTime`]: UTC only, whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemDateAndTime {
    /// The device's clock; `None` where it gives local time alone.
    pub utc: Option<Timestamp>,
    /// Whether NTP sets it; by hand otherwise.
    pub by_ntp: bool,
    /// Whether its local time has a summer time.
    pub daylight_savings: bool,
}

impl SystemDateAndTime {
    /// A clock that NTP keeps, and that knows UTC alone.
    pub fn kept_by_ntp(utc: Timestamp) -> Self {
        SystemDateAndTime { utc: Some(utc), by_ntp: true, daylight_savings: false }
    }
}

/// `DateTimeType`
fn kept_by(by_ntp: bool) -> &'static str {
    if by_ntp { "NTP" } else { "Manual" }
}

/// `tt:DateTime`
fn time_to_element(namespace: &str, time: Timestamp) -> Element {
    let number = |name, value: i64| Element::with_text(TT, name, value.to_string());
    let time = time.to_zoned(TimeZone::UTC).datetime();
    Element::new(namespace, "UTCDateTime")
        .child(
            Element::new(TT, "Time")
                .child(number("Hour", time.hour().into()))
                .child(number("Minute", time.minute().into()))
                .child(number("Second", time.second().into())),
        )
        .child(
            Element::new(TT, "Date")
                .child(number("Year", time.year().into()))
                .child(number("Month", time.month().into()))
                .child(number("Day", time.day().into())),
        )
}

fn time_from_element(utc: &Element) -> Option<Timestamp> {
    fn number<T: std::str::FromStr>(of: &Element, name: &str) -> Option<T> {
        of.text_of(TT, name)?.parse().ok()
    }
    let (time, date) = (utc.find(TT, "Time")?, utc.find(TT, "Date")?);
    let (hour, minute) = (number(time, "Hour")?, number(time, "Minute")?);
    let (year, month, day) = (number(date, "Year")?, number(date, "Month")?, number(date, "Day")?);
    let told = civil::DateTime::new(year, month, day, hour, minute, number(time, "Second")?, 0).ok()?;
    told.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
}

impl Message for SystemDateAndTime {
    const NAMESPACE: &'static str = NS;
    const NAME: &'static str = "GetSystemDateAndTimeResponse";

    fn to_element(&self) -> Element {
        Element::new(NS, Self::NAME).child(
            Element::new(NS, "SystemDateAndTime")
                .child(Element::with_text(TT, "DateTimeType", kept_by(self.by_ntp)))
                .child(Element::with_text(TT, "DaylightSavings", self.daylight_savings.to_string()))
                .with_children(self.utc.map(|utc| time_to_element(TT, utc))),
        )
    }

    fn from_element(element: &Element) -> Result<Self, Invalid> {
        let clock = element
            .find(NS, "SystemDateAndTime")
            .ok_or_else(|| Invalid::new::<Self>("no SystemDateAndTime"))?;
        Ok(SystemDateAndTime {
            utc: clock.find(TT, "UTCDateTime").and_then(time_from_element),
            by_ntp: clock.text_of(TT, "DateTimeType") == Some(kept_by(true)),
            daylight_savings: clock.text_of(TT, "DaylightSavings").and_then(boolean).unwrap_or(false),
        })
    }
}

/// Sets the device's clock by hand (Core §8.3.9); its time zone stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetSystemDateAndTime {
    /// What it shall be.
    pub utc: Timestamp,
    /// As [`SystemDateAndTime::daylight_savings`].
    pub daylight_savings: bool,
}

impl Message for SetSystemDateAndTime {
    const NAMESPACE: &'static str = NS;
    const NAME: &'static str = "SetSystemDateAndTime";

    fn to_element(&self) -> Element {
        Element::new(NS, Self::NAME)
            .child(Element::with_text(NS, "DateTimeType", kept_by(false)))
            .child(Element::with_text(NS, "DaylightSavings", self.daylight_savings.to_string()))
            .child(time_to_element(NS, self.utc))
    }

    fn from_element(element: &Element) -> Result<Self, Invalid> {
        let utc = element.find(NS, "UTCDateTime").and_then(time_from_element);
        Ok(SetSystemDateAndTime {
            utc: utc.ok_or_else(|| Invalid::new::<Self>("no UTCDateTime"))?,
            daylight_savings: element.text_of(NS, "DaylightSavings").and_then(boolean).unwrap_or(false),
        })
    }
}

/// Asks for the services and their addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GetServices {
    /// Whether to say what each can do, too.
    pub include_capability: bool,
}

impl Message for GetServices {
    const NAMESPACE: &'static str = NS;
    const NAME: &'static str = "GetServices";

    fn to_element(&self) -> Element {
        Element::new(NS, Self::NAME).child(Element::with_text(
            NS,
            "IncludeCapability",
            self.include_capability.to_string(),
        ))
    }

    fn from_element(element: &Element) -> Result<Self, Invalid> {
        let include = element.text_of(NS, "IncludeCapability").and_then(boolean);
        Ok(GetServices { include_capability: include.unwrap_or(false) })
    }
}

/// One service of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its namespace: which service it is.
    pub namespace: String,
    /// Its address. Behind a NAT it may be one that only the site can reach: use its path alone.
    pub xaddr: String,
    /// What it can do, where asked for: the service's own `Capabilities` element.
    pub capabilities: Option<Element>,
    /// The version of its specification, major and minor: `(26, 6)`.
    pub version: (u32, u32),
}

/// The answer to [`GetServices`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Services(pub Vec<Service>);

impl Services {
    /// The service of that namespace.
    pub fn find(&self, namespace: &str) -> Option<&Service> {
        self.0.iter().find(|service| service.namespace == namespace)
    }
}

impl Message for Services {
    const NAMESPACE: &'static str = NS;
    const NAME: &'static str = "GetServicesResponse";

    fn to_element(&self) -> Element {
        Element::new(NS, Self::NAME).with_children(self.0.iter().map(|service| {
            let capabilities = service
                .capabilities
                .clone()
                .map(|capabilities| Element::new(NS, "Capabilities").child(capabilities));
            Element::new(NS, "Service")
                .child(Element::with_text(NS, "Namespace", &service.namespace))
                .child(Element::with_text(NS, "XAddr", &service.xaddr))
                .with_children(capabilities)
                .child(
                    Element::new(NS, "Version")
                        .child(Element::with_text(TT, "Major", service.version.0.to_string()))
                        .child(Element::with_text(TT, "Minor", service.version.1.to_string())),
                )
        }))
    }

    fn from_element(element: &Element) -> Result<Self, Invalid> {
        let service = |service: &Element| {
            let version = |part| {
                let version = service.find(NS, "Version")?;
                version.text_of(TT, part)?.parse().ok()
            };
            Ok(Service {
                namespace: required::<Self>(service, NS, "Namespace")?,
                xaddr: required::<Self>(service, NS, "XAddr")?,
                capabilities: service.find(NS, "Capabilities").and_then(|c| c.children().first()).cloned(),
                version: (version("Major").unwrap_or(0), version("Minor").unwrap_or(0)),
            })
        };
        element.find_all(NS, "Service").map(service).collect::<Result<_, _>>().map(Services)
    }
}

/// The answer to [`GetCapabilities`], as far as clients need it to find their way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Address of the device service.
    pub device_xaddr: String,
    /// Address of the media service (`ver10/media`), where the device has one.
    pub media_xaddr: Option<String>,
}

impl Message for Capabilities {
    const NAMESPACE: &'static str = NS;
    const NAME: &'static str = "GetCapabilitiesResponse";

    fn to_element(&self) -> Element {
        let media = self.media_xaddr.as_ref().map(|xaddr| {
            Element::new(TT, "Media").child(Element::with_text(TT, "XAddr", xaddr)).child(
                Element::new(TT, "StreamingCapabilities").child(Element::with_text(
                    TT,
                    "RTP_RTSP_TCP",
                    "true",
                )),
            )
        });
        Element::new(NS, Self::NAME).child(
            Element::new(NS, "Capabilities")
                .child(Element::new(TT, "Device").child(Element::with_text(TT, "XAddr", &self.device_xaddr)))
                .with_children(media),
        )
    }

    fn from_element(element: &Element) -> Result<Self, Invalid> {
        let capabilities =
            element.find(NS, "Capabilities").ok_or_else(|| Invalid::new::<Self>("no Capabilities"))?;
        let xaddr = |name| capabilities.find(TT, name).and_then(|service| optional(service, TT, "XAddr"));
        Ok(Capabilities {
            device_xaddr: xaddr("Device").ok_or_else(|| Invalid::new::<Self>("no Device address"))?,
            media_xaddr: xaddr("Media"),
        })
    }
}

/// The answer to [`GetServiceCapabilities`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceCapabilities {
    /// HTTP Digest is understood.
    pub http_digest: bool,
    /// WS-Security UsernameToken is understood.
    pub username_token: bool,
}

impl ServiceCapabilities {
    /// The element that also stands in [`Service::capabilities`].
    pub fn element(self) -> Element {
        Element::new(NS, "Capabilities")
            .child(Element::new(NS, "Network"))
            .child(
                Element::new(NS, "Security")
                    .attribute("TLS1.2", "true")
                    .attribute("UsernameToken", self.username_token.to_string())
                    .attribute("HttpDigest", self.http_digest.to_string()),
            )
            .child(Element::new(NS, "System"))
    }
}

impl Message for ServiceCapabilities {
    const NAMESPACE: &'static str = NS;
    const NAME: &'static str = "GetServiceCapabilitiesResponse";

    fn to_element(&self) -> Element {
        Element::new(NS, Self::NAME).child(self.element())
    }

    fn from_element(element: &Element) -> Result<Self, Invalid> {
        let security = element.find(NS, "Capabilities").and_then(|c| c.find(NS, "Security"));
        let flag = |name| security.and_then(|s| s.get_attribute(name)).and_then(boolean).unwrap_or(false);
        Ok(ServiceCapabilities { http_digest: flag("HttpDigest"), username_token: flag("UsernameToken") })
    }
}

/// The path of the Media2 service that a device names, from its [`Services`].
pub fn media2_path(services: &Services) -> Option<String> {
    Some(path_of(&services.find(MEDIA2_NS)?.xaddr))
}

/// The path and query of an address that a device gave, `/` for an address without one.
///
/// A device gives the address that it has at its site, or a path alone, with or without the slash it begins with;
/// through an uplink only the path counts.
pub fn path_of(xaddr: &str) -> String {
    let xaddr = xaddr.trim();
    let path = match xaddr.split_once("//") {
        Some((scheme, rest)) if scheme.is_empty() || scheme.ends_with(':') => {
            &rest[rest.find(['/', '?']).unwrap_or(rest.len())..]
        }
        _ => xaddr,
    };
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}
