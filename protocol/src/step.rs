//! The eight steps of the connection flow, as one type.
//!
//! The number and the name are the same in code, in logs (`step=4 phone-home`), in the API and on the
//! page. `docs/connection-flow.md` describes each step; a test holds the two together.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, str::FromStr};

/// How far a device has come on its way from a label to a picture.
///
/// Ordered: a later step is greater. What a step means, who carries it out and what can go wrong is
/// in `docs/connection-flow.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(rename_all = "kebab-case"))]
#[repr(u8)]
pub enum Step {
    /// 1, administrator → STS: serial number, OAK and credentials are entered.
    Register = 1,
    /// 2, STS → dispatcher: the registration is relayed.
    Relay = 2,
    /// 3, installer → device: the one-click button.
    Press = 3,
    /// 4, device → dispatcher: uplink to one of the dispatchers on the device's list.
    PhoneHome = 4,
    /// 5, dispatcher → device: OAK proof, log-in, trust anchor and address of the STS.
    Dispatch = 5,
    /// 6, device → STS: the device leaves the dispatcher and dials the STS.
    Connect = 6,
    /// 7, device ⇄ STS: mutual TLS with exactly the key that the dispatcher vouched for.
    Tunnel = 7,
    /// 8, administrator → recording server: Add Hardware, Remote connect hardware.
    Add = 8,
}

impl Step {
    /// Every step, in order.
    pub const ALL: [Step; 8] = [
        Step::Register,
        Step::Relay,
        Step::Press,
        Step::PhoneHome,
        Step::Dispatch,
        Step::Connect,
        Step::Tunnel,
        Step::Add,
    ];

    /// 1 to 8.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The name used in logs, URLs, the API and documents.
    pub const fn name(self) -> &'static str {
        match self {
            Step::Register => "register",
            Step::Relay => "relay",
            Step::Press => "press",
            Step::PhoneHome => "phone-home",
            Step::Dispatch => "dispatch",
            Step::Connect => "connect",
            Step::Tunnel => "tunnel",
            Step::Add => "add",
        }
    }

    /// The step with this number.
    pub fn from_number(number: u8) -> Option<Step> {
        Step::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }
}

/// `5 dispatch`
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.number(), self.name())
    }
}

/// A name that is no step's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no step of the connection flow is called {0:?}")]
pub struct UnknownStep(String);

impl FromStr for Step {
    type Err = UnknownStep;

    fn from_str(name: &str) -> Result<Self, UnknownStep> {
        Step::ALL
            .into_iter()
            .find(|step| step.name() == name)
            .ok_or_else(|| UnknownStep(name.chars().take(32).collect()))
    }
}

impl Serialize for Step {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Step {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = std::borrow::Cow::<str>::deserialize(deserializer)?;
        name.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_lead_back_to_the_step() {
        for (index, step) in Step::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(step.number()), index + 1);
            assert_eq!(Step::from_number(step.number()), Some(step));
            assert_eq!(step.name().parse(), Ok(step));
            let json = serde_json::to_string(&step).unwrap();
            assert_eq!(serde_json::from_str::<Step>(&json).unwrap(), step);
        }
        assert_eq!(Step::from_number(0), None);
        assert_eq!(Step::from_number(9), None);
        assert!("Dispatch".parse::<Step>().is_err());
        assert_eq!(Step::PhoneHome.to_string(), "4 phone-home");
    }
}
