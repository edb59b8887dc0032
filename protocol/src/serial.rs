//! A device's serial number: its MAC address, as it stands on the label.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, str::FromStr};

/// A device's MAC address: twelve hexadecimal digits, printed upper case, `00408C702009`.
///
/// Parsing accepts what people type and copy: either case, with colons, dashes, dots or spaces. In
/// host names (the tunnel server's proxy) it is written in lower case by custom; see
/// [`SerialNumber::host`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = String, example = "00408C702009"))]
pub struct SerialNumber([u8; 6]);

impl SerialNumber {
    /// From the six bytes of the MAC address.
    pub const fn new(mac: [u8; 6]) -> Self {
        SerialNumber(mac)
    }

    /// The six bytes of the MAC address.
    pub const fn mac(self) -> [u8; 6] {
        self.0
    }

    /// The one serial number in a longer text: in the subject of its certificate a manufacturer writes it as he likes
    /// (`axis-b8a44f17aafa-eccp256-1`, `Camera 00:09:18:AA:BB:CC`). None where there are two, or none.
    pub fn find_in(text: &str) -> Option<SerialNumber> {
        if let Ok(serial) = text.parse() {
            return Some(serial);
        }
        let words = text.split(|c: char| c.is_whitespace() || "/,;=()".contains(c));
        let parts = text.split(|c: char| !c.is_ascii_alphanumeric());
        let mut found = words.chain(parts).filter_map(|word| word.parse().ok());
        let first = found.next()?;
        found.all(|other| other == first).then_some(first)
    }

    /// The serial number as a host name, lower case: what a URL parser makes of it anyway.
    pub fn host(self) -> String {
        self.to_string().to_ascii_lowercase()
    }
}

impl fmt::Display for SerialNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02X}"))
    }
}

impl fmt::Debug for SerialNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is no serial number or no OAK. Its message is for the person who typed it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseHexError {
    /// Something other than a hexadecimal digit or a separator.
    #[error("{what}: {found:?} is not one of 0–9 and A–F")]
    NotHex {
        /// What was being read: "serial number" or "OAK".
        what: &'static str,
        /// The first character that does not belong there.
        found: char,
    },
    /// Too few or too many digits.
    #[error("{what}: {digits} digits where there should be 12")]
    Length {
        /// What was being read.
        what: &'static str,
        /// How many hexadecimal digits were found (counting stops at 64).
        digits: usize,
    },
    /// A value that no label carries.
    #[error("serial number: {0} is no single device's MAC address")]
    Reserved(&'static str),
}

/// Reads twelve hexadecimal digits in either case, ignoring the separators that people and labels use.
pub(crate) fn twelve_hex_digits(text: &str, what: &'static str) -> Result<[u8; 6], ParseHexError> {
    let mut bytes = [0u8; 6];
    let mut digits = 0usize;
    for character in text.chars() {
        // Dashes as typed, and as word processors and PDF labels print them.
        if character.is_whitespace() || matches!(character, ':' | '-' | '.' | '_' | '‐' | '‑' | '–' | '—')
        {
            continue;
        }
        let value = character.to_digit(16).ok_or(ParseHexError::NotHex { what, found: character })?;
        if let Some(byte) = bytes.get_mut(digits / 2) {
            *byte = *byte << 4 | value as u8;
        }
        digits += 1;
        if digits >= 64 {
            break;
        }
    }
    if digits == 12 { Ok(bytes) } else { Err(ParseHexError::Length { what, digits }) }
}

impl FromStr for SerialNumber {
    type Err = ParseHexError;

    fn from_str(text: &str) -> Result<Self, ParseHexError> {
        let mac = twelve_hex_digits(text, "serial number")?;
        match mac {
            [0, 0, 0, 0, 0, 0] => Err(ParseHexError::Reserved("000000000000")),
            // The group bit: broadcast and multicast addresses belong to nobody's label.
            [first, ..] if first & 1 == 1 => Err(ParseHexError::Reserved("a multicast address")),
            mac => Ok(SerialNumber(mac)),
        }
    }
}

impl Serialize for SerialNumber {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SerialNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn people_type_it_in_many_ways() {
        for text in [
            "00408C702009",
            "00408c702009",
            "00:40:8C:70:20:09",
            "00-40-8c-70-20-09",
            "0040.8c70.2009",
            " 00408C 702009\t",
            "00408C–702009",
        ] {
            assert_eq!(text.parse::<SerialNumber>().unwrap().to_string(), "00408C702009", "{text:?}");
        }
    }

    #[test]
    fn what_is_refused_says_why() {
        for (text, message) in [
            ("00408C70200", "serial number: 11 digits where there should be 12"),
            ("00408C7020091", "serial number: 13 digits where there should be 12"),
            ("", "serial number: 0 digits where there should be 12"),
            ("O0408C702009", "serial number: 'O' is not one of 0–9 and A–F"),
            ("000000000000", "serial number: 000000000000 is no single device's MAC address"),
            ("FFFFFFFFFFFF", "serial number: a multicast address is no single device's MAC address"),
        ] {
            assert_eq!(text.parse::<SerialNumber>().unwrap_err().to_string(), message, "{text:?}");
        }
    }

    #[test]
    fn manufacturers_write_it_in_more_ways() {
        let serial = "B8A44F17AAFA".parse::<SerialNumber>().unwrap();
        for text in [
            "b8:a4:4f:17:aa:fa",
            "axis-b8a44f17aafa-eccp256-1",
            "Camera B8-A4-4F-17-AA-FA",
            "urn:dev:mac:b8a44f17aafa",
            "P3245 (b8a4.4f17.aafa), b8a44f17aafa",
        ] {
            assert_eq!(SerialNumber::find_in(text), Some(serial), "{text}");
        }
        for text in ["", "camera", "00408C702009 B8A44F17AAFA", "SN20160101AAWR123456789", "b8a44f17aaf"] {
            assert_eq!(SerialNumber::find_in(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,200}") {
            let found = SerialNumber::find_in(&text);
            if let Ok(serial) = text.parse::<SerialNumber>() {
                prop_assert_eq!(found, Some(serial));
                prop_assert_eq!(serial.to_string().parse::<SerialNumber>().unwrap(), serial);
                prop_assert_eq!(serial.host().parse::<SerialNumber>().unwrap(), serial);
            }
        }
    }
}
