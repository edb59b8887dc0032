//! What the agent shows: the light with its colour and word, the step reached, every uplink's state.
//!
//! Pure: [`Status::of`] makes it from facts. The page, `homing-agent status` and the log show nothing else.
//! No secret is in it.

use crate::state::Phase;
use homing_protocol::{SerialNumber, Step};
use homing_uplink::UplinkState;
use serde::Serialize;

/// Everything that is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Whose.
    pub serial: Option<SerialNumber>,
    /// The light.
    pub light: Light,
    /// The step of the connection flow that is under way, or the last one reached.
    pub step: Option<Step>,
    /// What is wrong beside what the light says, one sentence each.
    pub warnings: Vec<String>,
    /// Until when the button keeps the device phoning.
    pub window_until: Option<jiff::Timestamp>,
    /// The dispatcher that is dialled or connected.
    pub dispatcher: Option<Connection>,
    /// The tunnel servers.
    pub uplinks: Vec<Connection>,
    /// The cameras.
    pub cameras: Vec<CameraStatus>,
}

/// The light beside the button.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Light {
    /// The colour.
    pub colour: Colour,
    /// The word for it.
    pub word: &'static str,
    /// A sentence: what is going on, or what is wrong and what to check.
    pub message: String,
}

impl Default for Light {
    fn default() -> Self {
        Light { colour: Colour::Grey, word: "Starting", message: String::new() }
    }
}

/// A colour, for people who see them; the word says the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Colour {
    /// Nothing to do.
    Grey,
    /// Blinking: on its way.
    Blue,
    /// Waiting for somebody.
    Amber,
    /// As it should be.
    Green,
    /// Something is wrong.
    Red,
}

/// An uplink, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Connection {
    /// Where to.
    pub address: String,
    /// `Offline`, `Connecting` or `Connected`, ONVIF's words.
    pub state: &'static str,
    /// Why it is not connected.
    pub error: Option<String>,
}

impl Connection {
    /// From what `uplink` says.
    pub fn of(address: &str, state: &UplinkState) -> Self {
        let word = match state {
            UplinkState::Offline { .. } => "Offline",
            UplinkState::Connecting { .. } => "Connecting",
            UplinkState::Connected { .. } => "Connected",
        };
        Connection { address: address.to_owned(), state: word, error: state.error().map(str::to_owned) }
    }

    /// Whether it is.
    pub fn is_connected(&self) -> bool {
        self.state == "Connected"
    }
}

/// A camera, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CameraStatus {
    /// Its name.
    pub name: String,
    /// `host:port` of its RTSP server.
    pub address: String,
    /// What the last look at it found.
    #[serde(flatten)]
    pub health: CameraHealth,
}

/// What a look at a camera found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(tag = "state", content = "error", rename_all = "kebab-case")]
pub enum CameraHealth {
    /// Not looked at yet.
    #[default]
    Unknown,
    /// It answers, and takes user and password.
    Good,
    /// It does not answer, or refuses: what to check.
    Bad(String),
}

/// The facts.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// Whose.
    pub serial: SerialNumber,
    /// With its dispatchers.
    pub phase: Phase,
    /// The address of the dispatcher that is dialled, connected or next, if there is one on the list.
    pub dispatcher: Option<&'a str>,
    /// Why the last dispatcher was not reached, or let go.
    pub dispatcher_error: Option<&'a str>,
    /// When the window ends, if it is open.
    pub window_until: Option<jiff::Timestamp>,
    /// The window has ended without a dispatch.
    pub window_missed: bool,
    /// The dispatchers are asked because no tunnel server was reached for long.
    pub falling_back: bool,
    /// The tunnel servers.
    pub uplinks: Vec<Connection>,
    /// The cameras.
    pub cameras: Vec<CameraStatus>,
}

impl Status {
    /// What to show of these facts.
    pub fn of(facts: Facts<'_>) -> Status {
        let light = light(&facts);
        let connected = facts.uplinks.iter().any(Connection::is_connected);
        let (step, state) = match facts.phase {
            Phase::Dialing => (Some(Step::PhoneHome), Some("Connecting")),
            Phase::Waiting { .. } => (Some(Step::PhoneHome), Some("Offline")),
            Phase::Connected { .. } => (Some(Step::PhoneHome), Some("Connected")),
            Phase::Idle | Phase::Leaving if connected => (Some(Step::Tunnel), None),
            Phase::Idle | Phase::Leaving => ((!facts.uplinks.is_empty()).then_some(Step::Connect), None),
        };
        let mut warnings: Vec<String> = facts
            .cameras
            .iter()
            .filter_map(|camera| match &camera.health {
                CameraHealth::Bad(error) => Some(error.clone()),
                _ => None,
            })
            .collect();
        if connected {
            let lost = facts.uplinks.iter().filter(|uplink| !uplink.is_connected());
            warnings.extend(
                lost.filter_map(|uplink| uplink.error.as_ref().map(|e| format!("{}: {e}", uplink.address))),
            );
        }
        if facts.falling_back {
            warnings.push("No tunnel server was reached for long: asking the dispatchers again.".into());
        }
        warnings.retain(|warning| !light.message.contains(warning.as_str()));
        Status {
            serial: Some(facts.serial),
            light,
            step,
            warnings,
            window_until: facts.window_until,
            dispatcher: facts.dispatcher.zip(state).map(|(address, state)| Connection {
                address: address.to_owned(),
                state,
                error: facts.dispatcher_error.map(str::to_owned),
            }),
            uplinks: facts.uplinks,
            cameras: facts.cameras,
        }
    }
}

fn light(facts: &Facts<'_>) -> Light {
    let light = |colour, word, message: String| Light { colour, word, message: sentence(message) };
    let dispatcher = facts.dispatcher.unwrap_or("the dispatcher");
    let bad_camera = facts.cameras.iter().find_map(|camera| match &camera.health {
        CameraHealth::Bad(error) => Some(error.clone()),
        _ => None,
    });
    let for_fallback_only = facts.falling_back && facts.window_until.is_none();
    match facts.phase {
        // What is wrong then is that no tunnel server is reached; see below.
        _ if for_fallback_only => {}
        Phase::Connected { .. } => {
            return light(
                Colour::Amber,
                "Waiting for registration",
                format!(
                    "Connected to {dispatcher}. Register this device with the number and key on its label."
                ),
            );
        }
        Phase::Dialing | Phase::Waiting { .. } => {
            return match facts.dispatcher_error {
                Some(error) => light(Colour::Red, "No dispatcher reached", format!("{error}. Trying again.")),
                None => light(Colour::Blue, "Looking for a dispatcher", format!("Calling {dispatcher}.")),
            };
        }
        Phase::Idle | Phase::Leaving => {}
    }
    if let Some(uplink) = facts.uplinks.iter().find(|uplink| uplink.is_connected()) {
        return match bad_camera {
            Some(error) => light(Colour::Red, "Camera not reached", error),
            None => light(Colour::Green, "Connected", format!("Connected to {}.", uplink.address)),
        };
    }
    if let Some(uplink) = facts.uplinks.iter().find(|uplink| uplink.error.is_some()) {
        let error = uplink.error.as_deref().unwrap_or_default();
        return light(
            Colour::Red,
            "No tunnel server reached",
            format!("{error}. Trying again; if this device has moved to another owner, press the button."),
        );
    }
    if let Some(uplink) = facts.uplinks.first() {
        return light(Colour::Blue, "Connecting", format!("Calling {}.", uplink.address));
    }
    if let Some(error) = bad_camera {
        return light(Colour::Red, "Camera not reached", error);
    }
    match (facts.dispatcher, facts.window_missed) {
        (None, _) => light(
            Colour::Grey,
            "Not configured",
            "No dispatcher is configured: add a [[dispatchers]] table.".into(),
        ),
        (Some(_), true) => light(
            Colour::Grey,
            "Idle",
            "Nobody registered this device in time. Press the button to try again.".into(),
        ),
        (Some(_), false) => light(Colour::Grey, "Idle", "Press the button to connect this device.".into()),
    }
}

/// Errors begin in lower case, sentences do not.
fn sentence(mut text: String) -> String {
    if let Some(first) = text.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn facts() -> Facts<'static> {
        Facts {
            serial: SerialNumber::new([0, 0x40, 0x8C, 0x70, 0x20, 9]),
            phase: Phase::Idle,
            dispatcher: Some("https://dispatcher:443/"),
            dispatcher_error: None,
            window_until: None,
            window_missed: false,
            falling_back: false,
            uplinks: vec![],
            cameras: vec![],
        }
    }

    fn uplink(state: &'static str, error: Option<&str>) -> Connection {
        Connection { address: "https://sts:8443/".into(), state, error: error.map(str::to_owned) }
    }

    fn camera(health: CameraHealth) -> CameraStatus {
        CameraStatus { name: "Camera".into(), address: "10.0.0.9:554".into(), health }
    }

    fn colour_and_word(facts: Facts<'_>) -> (Colour, &'static str) {
        let light = Status::of(facts).light;
        (light.colour, light.word)
    }

    /// The installer leaves when the light is green: it must be green only when a picture can be had.
    #[test]
    fn the_light_tells_the_flow() {
        let waiting = Phase::Waiting { until: Duration::ZERO };
        let at_dispatcher = Phase::Connected { since: Duration::ZERO };
        let bad = || vec![camera(CameraHealth::Bad("camera not reached at 10.0.0.9:554".into()))];
        for (facts, expected) in [
            (facts(), (Colour::Grey, "Idle")),
            (Facts { dispatcher: None, ..facts() }, (Colour::Grey, "Not configured")),
            (Facts { phase: Phase::Dialing, ..facts() }, (Colour::Blue, "Looking for a dispatcher")),
            (
                Facts { phase: waiting, dispatcher_error: Some("x"), ..facts() },
                (Colour::Red, "No dispatcher reached"),
            ),
            (Facts { phase: at_dispatcher, ..facts() }, (Colour::Amber, "Waiting for registration")),
            (Facts { uplinks: vec![uplink("Connecting", None)], ..facts() }, (Colour::Blue, "Connecting")),
            (
                Facts { uplinks: vec![uplink("Offline", Some("x"))], ..facts() },
                (Colour::Red, "No tunnel server reached"),
            ),
            (Facts { uplinks: vec![uplink("Connected", None)], ..facts() }, (Colour::Green, "Connected")),
            (
                Facts { uplinks: vec![uplink("Connected", None)], cameras: bad(), ..facts() },
                (Colour::Red, "Camera not reached"),
            ),
            (Facts { cameras: bad(), ..facts() }, (Colour::Red, "Camera not reached")),
            (
                Facts {
                    uplinks: vec![uplink("Offline", Some("x"))],
                    phase: at_dispatcher,
                    falling_back: true,
                    ..facts()
                },
                (Colour::Red, "No tunnel server reached"),
            ),
        ] {
            assert_eq!(colour_and_word(facts.clone()), expected, "{facts:?}");
        }
    }

    #[test]
    fn one_lost_server_of_two_is_a_warning() {
        let uplinks = vec![uplink("Connected", None), uplink("Offline", Some("no route"))];
        let status = Status::of(Facts { uplinks, ..facts() });
        assert_eq!(status.light.colour, Colour::Green);
        assert_eq!(status.step, Some(Step::Tunnel));
        assert_eq!(status.warnings, ["https://sts:8443/: no route"]);
    }

    #[test]
    fn as_json_for_scripts() {
        let status = Status::of(Facts { cameras: vec![camera(CameraHealth::Good)], ..facts() });
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["serial"], "00408C702009");
        assert_eq!(json["light"]["colour"], "grey");
        assert_eq!(json["cameras"][0]["state"], "good");
        assert_eq!(json["step"], serde_json::Value::Null);
    }
}
