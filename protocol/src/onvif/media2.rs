//! Media2 (`tr2`): ONVIF Media2 Service Specification §5.

use super::{
    Invalid, MEDIA2_NS as NS, Message, SCHEMA_NS as TT, boolean, empty_message, optional, requests, required,
};
use crate::soap::Element;
use std::collections::BTreeMap;

empty_message! {
    /// Asks what the service can do.
    GetServiceCapabilities, NS, "GetServiceCapabilities";
}

requests! {
    GetServiceCapabilities => ServiceCapabilities, PreAuth;
    GetProfiles => Profiles, ReadMedia;
    GetStreamUri => StreamUri, ReadMedia;
}

/// The answer to [`GetServiceCapabilities`]: how media can be had.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceCapabilities {
    /// RTSP at all.
    pub rtsp_streaming: bool,
    /// RTP interleaved in the RTSP connection.
    pub rtp_rtsp_tcp: bool,
    /// Where RTSP over WebSocket is served: a path, or an address of which only the path counts.
    pub rtsp_web_socket_uri: Option<String>,
    /// `GetSnapshotUri` is answered.
    pub snapshot_uri: bool,
    /// How many profiles there can be.
    pub maximum_number_of_profiles: u32,
}

impl ServiceCapabilities {
    /// The element that also stands in [`Service::capabilities`](super::device::Service::capabilities).
    pub fn element(&self) -> Element {
        let mut streaming = Element::new(NS, "StreamingCapabilities")
            .attribute("RTSPStreaming", self.rtsp_streaming.to_string())
            .attribute("RTPMulticast", "false")
            .attribute("RTP_RTSP_TCP", self.rtp_rtsp_tcp.to_string())
            .attribute("NonAggregateControl", "false");
        if let Some(uri) = &self.rtsp_web_socket_uri {
            streaming = streaming.attribute("RTSPWebSocketUri", uri);
        }
        Element::new(NS, "Capabilities")
            .attribute("SnapshotUri", self.snapshot_uri.to_string())
            .child(
                Element::new(NS, "ProfileCapabilities")
                    .attribute("MaximumNumberOfProfiles", self.maximum_number_of_profiles.to_string()),
            )
            .child(streaming)
    }

    /// Reads the `Capabilities` element, from either place.
    pub fn from_capabilities(capabilities: &Element) -> Self {
        let streaming = capabilities.find(NS, "StreamingCapabilities");
        let profiles = capabilities.find(NS, "ProfileCapabilities");
        let flag = |of: Option<&Element>, name| {
            of.and_then(|of| of.get_attribute(name)).and_then(boolean).unwrap_or(false)
        };
        ServiceCapabilities {
            rtsp_streaming: flag(streaming, "RTSPStreaming"),
            rtp_rtsp_tcp: flag(streaming, "RTP_RTSP_TCP"),
            rtsp_web_socket_uri: streaming
                .and_then(|streaming| streaming.get_attribute("RTSPWebSocketUri"))
                .filter(|uri| !uri.is_empty())
                .map(str::to_owned),
            snapshot_uri: flag(Some(capabilities), "SnapshotUri"),
            maximum_number_of_profiles: profiles
                .and_then(|profiles| profiles.get_attribute("MaximumNumberOfProfiles"))
                .and_then(|number| number.trim().parse().ok())
                .unwrap_or(0),
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
        element
            .find(NS, "Capabilities")
            .map(Self::from_capabilities)
            .ok_or_else(|| Invalid::new::<Self>("no Capabilities"))
    }
}

/// Asks for the profiles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GetProfiles {
    /// Only the profile with this token.
    pub token: Option<String>,
    /// Which configurations to include: `VideoSource`, `VideoEncoder`, `AudioEncoder`, … or `All`.
    pub types: Vec<String>,
}

impl GetProfiles {
    /// Every profile with all of its configurations.
    pub fn all() -> Self {
        GetProfiles { token: None, types: vec!["All".into()] }
    }
}

impl Message for GetProfiles {
    const NAMESPACE: &'static str = NS;
    const NAME: &'static str = "GetProfiles";

    fn to_element(&self) -> Element {
        Element::new(NS, Self::NAME)
            .with_children(self.token.as_ref().map(|token| Element::with_text(NS, "Token", token)))
            .with_children(self.types.iter().map(|kind| Element::with_text(NS, "Type", kind)))
    }

    fn from_element(element: &Element) -> Result<Self, Invalid> {
        Ok(GetProfiles {
            token: optional(element, NS, "Token"),
            types: element.find_all(NS, "Type").map(|kind| kind.text().to_owned()).collect(),
        })
    }
}

/// A media profile: one stream of one channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// Its key.
    pub token: String,
    /// Its name.
    pub name: String,
    /// The channel that it shows.
    pub video_source: Option<VideoSource>,
    /// How video is encoded.
    pub video_encoder: Option<VideoEncoder>,
    /// How audio is encoded.
    pub audio_encoder: Option<AudioEncoder>,
}

/// A channel, as a profile refers to it. Profiles with the same `source_token` show the same channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VideoSource {
    /// The key of the configuration.
    pub token: String,
    /// Its name.
    pub name: String,
    /// The key of the channel.
    pub source_token: String,
    /// Width and height of the picture in pixels; zeros where unknown.
    pub size: (u32, u32),
}

/// The video encoder of a profile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VideoEncoder {
    /// The key of the configuration.
    pub token: String,
    /// Its name.
    pub name: String,
    /// An IANA media subtype: `H264`, `H265`, `JPEG`.
    pub encoding: String,
    /// Width and height in pixels.
    pub size: (u32, u32),
    /// Frames per second and kbit/s that the encoder keeps below.
    pub rate_limit: Option<(u32, u32)>,
}

/// The audio encoder of a profile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AudioEncoder {
    /// The key of the configuration.
    pub token: String,
    /// Its name.
    pub name: String,
    /// An IANA media subtype: `MPEG4-GENERIC`, `PCMU`.
    pub encoding: String,
    /// kbit/s.
    pub bitrate_kbps: u32,
    /// kHz.
    pub sample_rate_khz: u32,
}

/// The answer to [`GetProfiles`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profiles(pub Vec<Profile>);

impl Message for Profiles {
    const NAMESPACE: &'static str = NS;
    const NAME: &'static str = "GetProfilesResponse";

    fn to_element(&self) -> Element {
        Element::new(NS, Self::NAME).with_children(self.0.iter().map(Profile::to_element))
    }

    fn from_element(element: &Element) -> Result<Self, Invalid> {
        element.find_all(NS, "Profiles").map(Profile::from_element).collect::<Result<_, _>>().map(Profiles)
    }
}

fn text(name: &str, value: impl ToString) -> Element {
    Element::with_text(TT, name, value.to_string())
}

fn configuration(name: &str, token: &str, label: &str) -> Element {
    Element::new(NS, name).attribute("token", token).child(text("Name", label)).child(text("UseCount", 1))
}

fn number(of: &Element, name: &str) -> u32 {
    // Some devices write 25.0 where the schema says int.
    let value = of.text_of(TT, name).and_then(|value| value.parse::<f64>().ok()).unwrap_or(0.0);
    value as u32
}

fn token_and_name(of: &Element) -> (String, String) {
    (
        of.get_attribute("token").unwrap_or_default().to_owned(),
        of.text_of(TT, "Name").unwrap_or_default().to_owned(),
    )
}

impl Profile {
    fn to_element(&self) -> Element {
        let source = self.video_source.as_ref().map(|source| {
            configuration("VideoSource", &source.token, &source.name)
                .child(text("SourceToken", &source.source_token))
                .child(
                    Element::new(TT, "Bounds")
                        .attribute("x", "0")
                        .attribute("y", "0")
                        .attribute("width", source.size.0.to_string())
                        .attribute("height", source.size.1.to_string()),
                )
        });
        let video = self.video_encoder.as_ref().map(|encoder| {
            let rate = encoder.rate_limit.map(|(frames, kbps)| {
                Element::new(TT, "RateControl")
                    .child(text("FrameRateLimit", frames))
                    .child(text("BitrateLimit", kbps))
            });
            configuration("VideoEncoder", &encoder.token, &encoder.name)
                .child(text("Encoding", &encoder.encoding))
                .child(
                    Element::new(TT, "Resolution")
                        .child(text("Width", encoder.size.0))
                        .child(text("Height", encoder.size.1)),
                )
                .with_children(rate)
                .child(text("Quality", 1))
        });
        let audio = self.audio_encoder.as_ref().map(|encoder| {
            configuration("AudioEncoder", &encoder.token, &encoder.name)
                .child(text("Encoding", &encoder.encoding))
                .child(text("Bitrate", encoder.bitrate_kbps))
                .child(text("SampleRate", encoder.sample_rate_khz))
        });
        Element::new(NS, "Profiles")
            .attribute("token", &self.token)
            .attribute("fixed", "true")
            .child(Element::with_text(NS, "Name", &self.name))
            .child(
                Element::new(NS, "Configurations")
                    .with_children(source)
                    .with_children(video)
                    .with_children(audio),
            )
    }

    fn from_element(element: &Element) -> Result<Self, Invalid> {
        let token = element.get_attribute("token").unwrap_or_default();
        if token.is_empty() {
            return Err(Invalid::new::<Profiles>("a profile without token"));
        }
        let found = |name| element.find(NS, "Configurations").and_then(|set| set.find(NS, name));
        let video_source = found("VideoSource").map(|source| {
            let (token, name) = token_and_name(source);
            let bound = |name| {
                let bounds = source.find(TT, "Bounds")?;
                bounds.get_attribute(name)?.trim().parse().ok()
            };
            VideoSource {
                token,
                name,
                source_token: source.text_of(TT, "SourceToken").unwrap_or_default().to_owned(),
                size: (bound("width").unwrap_or(0), bound("height").unwrap_or(0)),
            }
        });
        let video_encoder = found("VideoEncoder").map(|encoder| {
            let (token, name) = token_and_name(encoder);
            VideoEncoder {
                token,
                name,
                encoding: encoder.text_of(TT, "Encoding").unwrap_or_default().to_owned(),
                size: encoder
                    .find(TT, "Resolution")
                    .map_or((0, 0), |size| (number(size, "Width"), number(size, "Height"))),
                rate_limit: encoder
                    .find(TT, "RateControl")
                    .map(|rate| (number(rate, "FrameRateLimit"), number(rate, "BitrateLimit"))),
            }
        });
        let audio_encoder = found("AudioEncoder").map(|encoder| {
            let (token, name) = token_and_name(encoder);
            AudioEncoder {
                token,
                name,
                encoding: encoder.text_of(TT, "Encoding").unwrap_or_default().to_owned(),
                bitrate_kbps: number(encoder, "Bitrate"),
                sample_rate_khz: number(encoder, "SampleRate"),
            }
        });
        Ok(Profile {
            token: token.to_owned(),
            name: element.text_of(NS, "Name").unwrap_or_default().to_owned(),
            video_source,
            video_encoder,
            audio_encoder,
        })
    }
}

/// One H.264 profile per video source, the one with the most pixels; in the order of the sources. A profile that says
/// nothing of its encoding (a site agent's: only the stream itself tells) counts as the smallest.
pub fn best_profiles(profiles: &[Profile]) -> Vec<&Profile> {
    let mut order: Vec<&str> = Vec::new();
    let mut best: BTreeMap<&str, &Profile> = BTreeMap::new();
    let pixels = |profile: &Profile| {
        profile
            .video_encoder
            .as_ref()
            .map_or(0, |encoder| u64::from(encoder.size.0) * u64::from(encoder.size.1))
    };
    let may_be_h264 = |profile: &&Profile| match &profile.video_encoder {
        Some(encoder) => encoder.encoding.eq_ignore_ascii_case("H264"),
        None => profile.video_source.is_some(),
    };
    for profile in profiles.iter().filter(may_be_h264) {
        let source = profile.video_source.as_ref().map_or("", |source| source.source_token.as_str());
        if !order.contains(&source) {
            order.push(source);
        }
        let current = best.entry(source).or_insert(profile);
        if pixels(profile) > pixels(current) {
            *current = profile;
        }
    }
    order.into_iter().filter_map(|source| best.get(source).copied()).collect()
}

/// Asks for the RTSP address of a profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GetStreamUri {
    /// `RTSP` for RTP interleaved in TCP, which is what goes through an uplink.
    pub protocol: String,
    /// The profile.
    pub profile_token: String,
}

impl GetStreamUri {
    /// RTP over RTSP over TCP.
    pub fn rtsp(profile_token: impl Into<String>) -> Self {
        GetStreamUri { protocol: "RTSP".into(), profile_token: profile_token.into() }
    }

    /// RTP over RTSP over HTTP (ONVIF Streaming Specification §5.1.1.4).
    pub fn rtsp_over_http(profile_token: impl Into<String>) -> Self {
        GetStreamUri { protocol: "RtspOverHttp".into(), profile_token: profile_token.into() }
    }
}

impl Message for GetStreamUri {
    const NAMESPACE: &'static str = NS;
    const NAME: &'static str = "GetStreamUri";

    fn to_element(&self) -> Element {
        Element::new(NS, Self::NAME)
            .child(Element::with_text(NS, "Protocol", &self.protocol))
            .child(Element::with_text(NS, "ProfileToken", &self.profile_token))
    }

    fn from_element(element: &Element) -> Result<Self, Invalid> {
        Ok(GetStreamUri {
            protocol: optional(element, NS, "Protocol").unwrap_or_else(|| "RTSP".into()),
            profile_token: required::<Self>(element, NS, "ProfileToken")?,
        })
    }
}

/// The answer to [`GetStreamUri`]. Carries no user and password; its host is the site's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamUri(pub String);

impl Message for StreamUri {
    const NAMESPACE: &'static str = NS;
    const NAME: &'static str = "GetStreamUriResponse";

    fn to_element(&self) -> Element {
        Element::new(NS, Self::NAME).child(Element::with_text(NS, "Uri", &self.0))
    }

    fn from_element(element: &Element) -> Result<Self, Invalid> {
        required::<Self>(element, NS, "Uri").map(StreamUri)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(token: &str, source: &str, encoding: &str, width: u32) -> Profile {
        Profile {
            token: token.into(),
            video_source: Some(VideoSource { source_token: source.into(), ..VideoSource::default() }),
            video_encoder: Some(VideoEncoder {
                encoding: encoding.into(),
                size: (width, 100),
                ..VideoEncoder::default()
            }),
            ..Profile::default()
        }
    }

    /// Goal: of each channel the largest H.264 profile, channels in the device's order.
    #[test]
    fn one_profile_per_channel() {
        let profiles = [
            profile("b-small", "b", "H264", 640),
            profile("a-265", "a", "H265", 3840),
            profile("a-small", "a", "H264", 640),
            profile("b-large", "b", "H264", 1920),
            profile("a-large", "a", "h264", 1280),
            Profile { token: "audio".into(), ..Profile::default() },
        ];
        let best: Vec<&str> = best_profiles(&profiles).iter().map(|profile| profile.token.as_str()).collect();
        assert_eq!(best, ["b-large", "a-large"]);
        assert!(best_profiles(&profiles[1..2]).is_empty());

        let silent = Profile { video_encoder: None, ..profile("silent", "a", "", 0) };
        assert_eq!(best_profiles(std::slice::from_ref(&silent))[0].token, "silent");
        assert_eq!(best_profiles(&[silent, profiles[2].clone()])[0].token, "a-small");
    }
}
