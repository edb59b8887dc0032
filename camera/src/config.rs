//! What one simulated camera is told.

use crate::{scene::Place, source::Settings};
use anyhow::{Context, ensure};
use homing_protocol::{Secret, SerialNumber};
use serde::Deserialize;
use std::net::SocketAddr;

/// The configuration of one simulated camera. Every key is optional; see [`REFERENCE`] for the file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Shown in the picture, in ONVIF and in RTSP. Default `"Camera"`.
    pub name: String,
    /// Serial number. Default `020000000001`, a locally administered MAC address.
    pub serial: SerialNumber,
    /// Where RTSP is served. Default `127.0.0.1:8554`; port 0 takes a free one.
    pub rtsp: SocketAddr,
    /// Where HTTP is served: ONVIF, VAPIX, a page. Default `127.0.0.1:8580`; port 0 takes a free one.
    pub http: SocketAddr,
    /// The one user. Default `"root"`.
    pub user: String,
    /// The user's password. Empty, which is the default: a random one at every start, see
    /// [`crate::Bound::credentials`].
    pub password: Secret,
    /// What the camera looks at: `"street"`, `"harbour"`, `"depot"` or `"hills"`. Empty, which is the
    /// default: one of them, chosen by the name.
    #[serde(deserialize_with = "place_or_empty")]
    pub place: Option<Place>,
    /// Width of the picture in pixels, even, 160 to 1920. Default 640.
    pub width: u16,
    /// Height of the picture in pixels, even, 120 to 1080. Default 360.
    pub height: u16,
    /// Frames per second, 1 to 30. Default 8.
    pub fps: u32,
    /// Seconds from one key frame to the next, 1 to 60. Default 2.
    pub key_interval_s: u32,
    /// Bits per second of the pictures, 64,000 to 8,000,000. Default 500,000.
    pub bitrate_bps: u32,
    /// Whether there is sound. Default `true`.
    pub audio: bool,
}

/// The configuration file with every key at its default, as [`homing_base::config::load`] reads it.
pub const REFERENCE: &str = include_str!("reference.toml");

impl Default for Config {
    fn default() -> Self {
        Config {
            name: "Camera".into(),
            serial: SerialNumber::new([2, 0, 0, 0, 0, 1]),
            rtsp: SocketAddr::from(([127, 0, 0, 1], 8554)),
            http: SocketAddr::from(([127, 0, 0, 1], 8580)),
            user: "root".into(),
            password: Secret::default(),
            place: None,
            width: 640,
            height: 360,
            fps: 8,
            key_interval_s: 2,
            bitrate_bps: 500_000,
            audio: true,
        }
    }
}

impl Config {
    /// So many cameras like this one, for load: consecutive serial numbers and ports (port 0 stays 0),
    /// everything else equal, so that all of them share one encoder.
    ///
    /// # Errors
    /// When ports or serial numbers run out.
    pub fn fleet(&self, count: u16) -> anyhow::Result<Vec<Config>> {
        let port = |address: SocketAddr, index: u16| -> anyhow::Result<SocketAddr> {
            let port = match address.port() {
                0 => 0,
                first => first.checked_add(index).with_context(|| {
                    format!("{count} cameras from port {first} on: there is no port above 65535")
                })?,
            };
            Ok(SocketAddr::new(address.ip(), port))
        };
        (0..count)
            .map(|index| {
                let [a, b, rest @ ..] = self.serial.mac();
                let number = u32::from_be_bytes(rest).checked_add(index.into()).with_context(|| {
                    format!("{count} cameras from serial number {} on: choose a lower one", self.serial)
                })?;
                let [c, d, e, f] = number.to_be_bytes();
                Ok(Config {
                    serial: SerialNumber::new([a, b, c, d, e, f]),
                    rtsp: port(self.rtsp, index)?,
                    http: port(self.http, index)?,
                    ..self.clone()
                })
            })
            .collect()
    }

    /// Checks the ranges and gives what the stream is made from.
    pub(crate) fn settings(&self) -> anyhow::Result<Settings> {
        let name_fits = (1..=64).contains(&self.name.chars().count());
        ensure!(
            name_fits && !self.name.contains(char::is_control),
            "name: 1 to 64 characters, none of them a control character"
        );
        ensure!(
            !self.user.is_empty() && !self.user.contains([':', '"']),
            "user: not empty, without colon and quote"
        );
        let in_range = |key: &str, value: u32, least: u32, most: u32| {
            ensure!((least..=most).contains(&value), "{key} = {value}: {least} to {most} are possible");
            Ok(())
        };
        in_range("width", self.width.into(), 160, 1920)?;
        in_range("height", self.height.into(), 120, 1080)?;
        ensure!(
            self.width.is_multiple_of(2) && self.height.is_multiple_of(2),
            "width and height must be even"
        );
        in_range("fps", self.fps, 1, 30)?;
        in_range("key_interval_s", self.key_interval_s, 1, 60)?;
        in_range("bitrate_bps", self.bitrate_bps, 64_000, 8_000_000)?;
        Ok(Settings {
            name: self.name.clone(),
            place: self.place,
            width: self.width.into(),
            height: self.height.into(),
            fps: self.fps,
            key_interval: self.fps * self.key_interval_s,
            bitrate_bps: self.bitrate_bps,
            audio: self.audio,
        })
    }
}

fn place_or_empty<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Place>, D::Error> {
    use serde::de::{IntoDeserializer, value::Error};
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    let place = Place::deserialize(IntoDeserializer::<Error>::into_deserializer(text.as_str()));
    place.map(Some).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;
    use homing_base::config;

    #[test]
    fn the_reference_is_the_default() {
        let reference = toml::Value::Table(config::reference_value(REFERENCE).unwrap());
        assert_eq!(reference.try_into::<Config>().unwrap(), Config::default());
    }

    #[test]
    fn places_are_named_or_left_out() {
        let place = |text: &str| toml::from_str::<Config>(text).map(|config| config.place);
        assert_eq!(place("place = 'harbour'").unwrap(), Some(Place::Harbour));
        assert_eq!(place("place = ''").unwrap(), None);
        assert!(place("place = 'moon'").unwrap_err().to_string().contains("moon"));
        assert!(toml::from_str::<Config>("plaice = ''").is_err());
    }

    #[test]
    fn a_fleet_differs_in_numbers_and_shares_the_rest() {
        let fleet = Config { http: ([127, 0, 0, 1], 0).into(), ..Config::default() }.fleet(300).unwrap();
        let last = fleet.last().unwrap();
        assert_eq!((last.rtsp.port(), last.http.port()), (8554 + 299, 0));
        assert_eq!(last.serial.to_string(), "02000000012C");
        assert_eq!(last.settings().unwrap(), fleet[0].settings().unwrap());
        let crowded = Config { rtsp: ([127, 0, 0, 1], 65_000).into(), ..Config::default() };
        assert!(crowded.fleet(600).unwrap_err().to_string().contains("65535"));
    }

    #[test]
    fn what_cannot_be_drawn_is_refused_with_the_range() {
        let refused = |config: Config| config.settings().unwrap_err().to_string();
        assert!(refused(Config { fps: 0, ..Config::default() }).contains("fps = 0: 1 to 30"));
        assert!(refused(Config { width: 641, ..Config::default() }).contains("even"));
        assert!(refused(Config { name: "a\r\nb".into(), ..Config::default() }).contains("name"));
        assert!(Config::default().settings().is_ok());
    }
}
