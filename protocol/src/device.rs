//! A registered device's state, as the administrator sees it.

use serde::{Deserialize, Serialize};

/// The colour of a registered device, DESIGN section 2.
///
/// A device that was added keeps its green while it is away, with a mark: plain green would hide the
/// outage, red would look as if it had never been set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceState {
    /// Registered, not connected.
    Red,
    /// Connected, not added to a recording server.
    Yellow,
    /// Added to a recording server, and connected.
    Green,
    /// Added to a recording server, not connected now.
    GreenOffline,
    /// It went to another tunnel server; this registration is only kept so that it can come back.
    Moved,
}

impl DeviceState {
    /// The state that follows from the two facts.
    pub const fn of(connected: bool, added: bool) -> Self {
        match (connected, added) {
            (false, false) => DeviceState::Red,
            (true, false) => DeviceState::Yellow,
            (true, true) => DeviceState::Green,
            (false, true) => DeviceState::GreenOffline,
        }
    }

    /// `red`, `yellow`, `green` or `grey`; whether a green device is away is told apart by `connected`.
    pub const fn colour(self) -> &'static str {
        match self {
            DeviceState::Red => "red",
            DeviceState::Yellow => "yellow",
            DeviceState::Green | DeviceState::GreenOffline => "green",
            DeviceState::Moved => "grey",
        }
    }

    /// The word beside the colour.
    pub const fn word(self) -> &'static str {
        match self {
            DeviceState::Red => "Not connected",
            DeviceState::Yellow => "Ready to add",
            DeviceState::Green => "Connected",
            DeviceState::GreenOffline => "Offline",
            DeviceState::Moved => "Moved",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_of_an_added_device_is_not_plain_green() {
        assert_eq!(DeviceState::of(false, false), DeviceState::Red);
        assert_eq!(DeviceState::of(true, false), DeviceState::Yellow);
        assert_eq!(DeviceState::of(true, true), DeviceState::Green);
        assert_eq!(DeviceState::of(false, true), DeviceState::GreenOffline);
        assert_ne!(DeviceState::Green.word(), DeviceState::GreenOffline.word());
    }
}
