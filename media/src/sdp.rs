//! What an RTSP server offers: the SDP in its answer to DESCRIBE (RFC 4566, RFC 2326 appendix C).
//!
//! Lenient by design: lines are looked at one by one, and one that makes no sense is skipped, since
//! cameras write SDP as they please. A track that cannot be used is kept, with the reason.
//!
//! Not here: offers and answers, and writing SDP (the simulated camera's is a dozen fixed lines).
//!
//! Invariant: track and aggregate control URLs are ready to be sent as they are.

use std::str::FromStr;

use crate::aac::{AacError, AacFormat};
use crate::g711::Law;
use crate::h264::{ParameterSetError, ParameterSets};
use crate::rtsp::Response;

/// Lines and tracks beyond these are ignored: no camera comes near.
const MAX_LINES: usize = 2_000;
const MAX_TRACKS: usize = 16;

/// A described presentation.
#[derive(Clone, Debug, PartialEq)]
pub struct Presentation {
    /// The URL for PLAY, TEARDOWN and keepalives.
    pub control: String,
    /// In the order of their `m=` lines.
    pub tracks: Vec<Track>,
}

/// One `m=` section.
#[derive(Clone, Debug, PartialEq)]
pub struct Track {
    /// Video, audio, or something else.
    pub kind: TrackKind,
    /// RTP payload type of its first format.
    pub payload_type: u8,
    /// The encoding name, upper case: `H264`. Empty when neither stated nor static.
    pub encoding: String,
    /// RTP clock, Hz; 0 when not known.
    pub clock_rate: u32,
    /// What can be done with it.
    pub codec: Codec,
    /// The URL for SETUP; `None` when the server named none (then a single track is set up by
    /// [`Presentation::control`]).
    pub control: Option<String>,
    /// `a=framerate`, or the two vendors' spellings of it; frames per second.
    pub frame_rate: Option<f32>,
}

/// The media type of an `m=` line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrackKind {
    /// `video`
    Video,
    /// `audio`
    Audio,
    /// `application` (ONVIF metadata) and everything else.
    Other,
}

/// How a track is encoded.
#[derive(Clone, Debug, PartialEq)]
pub enum Codec {
    /// H.264; parameter sets where the SDP has usable ones, else they come in band.
    H264(Option<ParameterSets>),
    /// AAC.
    Aac(AacFormat),
    /// PCMU or PCMA.
    G711(Law),
    /// Anything that cannot be recorded, with the reason for people.
    Unsupported(String),
}

/// Why a description is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SdpError {
    /// The body is empty or binary.
    #[error("the answer to DESCRIBE holds no text")]
    NotText,
    /// No `m=` line at all.
    #[error("the answer to DESCRIBE describes no stream")]
    NoTracks,
}

impl Presentation {
    /// From the answer to a DESCRIBE of `request_url`. The base of relative URLs is `Content-Base`,
    /// `Content-Location` or the request's URL, in this order (RFC 2326 §C.1.1). `Content-Type` is not
    /// looked at: some cameras leave it out.
    ///
    /// # Errors
    /// When there is no stream in it.
    pub fn from_response(request_url: &str, response: &Response) -> Result<Self, SdpError> {
        let stated = ["Content-Base", "Content-Location"].iter().find_map(|name| response.headers.get(name));
        let base = match stated.map(str::trim).filter(|base| !base.is_empty()) {
            Some(base) if has_scheme(base) => base.to_owned(),
            Some(base) if base.starts_with('/') => request_url.to_owned(),
            // Anjvision leaves the scheme away.
            Some(base) => format!("rtsp://{base}"),
            None => request_url.to_owned(),
        };
        Self::parse(&response.body, &base)
    }

    /// From an SDP and the base of its relative URLs.
    ///
    /// # Errors
    /// When there is no stream in it.
    pub fn parse(sdp: &[u8], base: &str) -> Result<Self, SdpError> {
        let text = String::from_utf8_lossy(sdp);
        if text.trim().is_empty() {
            return Err(SdpError::NotText);
        }
        let mut session_control = None;
        let mut sections: Vec<Section> = Vec::new();
        for line in text.lines().take(MAX_LINES) {
            let Some((kind, value)) = line.trim_end().split_once('=') else { continue };
            let count = sections.len();
            match (kind.trim(), sections.last_mut()) {
                ("m", _) if count == MAX_TRACKS => break,
                ("m", _) => sections.push(Section::new(value)),
                ("a", Some(section)) => section.attribute(value),
                ("a", None) => {
                    if let Some(("control", url)) = value.split_once(':') {
                        session_control = Some(url.trim().to_owned());
                    }
                }
                _ => {}
            }
        }
        if sections.is_empty() {
            return Err(SdpError::NoTracks);
        }
        let control = session_control.map_or_else(|| base.to_owned(), |control| join(base, &control));
        // Relative to the base, not to the aggregate control URL: so all servers mean it.
        let tracks = sections.into_iter().map(|section| section.into_track(base)).collect();
        Ok(Self { control, tracks })
    }
}

/// An `m=` section as it is collected.
#[derive(Default)]
struct Section {
    media: String,
    payload_type: Option<u8>,
    rtp_map: Option<String>,
    format: Vec<(String, String)>,
    control: Option<String>,
    frame_rate: Option<f32>,
}

impl Section {
    /// `video 0 RTP/AVP 96`
    fn new(line: &str) -> Self {
        let mut words = line.split_ascii_whitespace();
        let media = words.next().unwrap_or_default().to_ascii_lowercase();
        Self { media, payload_type: words.nth(2).and_then(|word| word.parse().ok()), ..Self::default() }
    }

    fn attribute(&mut self, line: &str) {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.trim();
        match name.trim() {
            "control" => self.control = Some(value.to_owned()),
            "rtpmap" => {
                if let Some(map) = self.of_this_format(value) {
                    self.rtp_map = Some(map.to_owned());
                }
            }
            "fmtp" => {
                if let Some(parameters) = self.of_this_format(value) {
                    self.format = parameters
                        .split(';')
                        .filter_map(|parameter| parameter.split_once('='))
                        .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned()))
                        .collect();
                }
            }
            "framerate" | "x-framerate" => {
                self.frame_rate = f32::from_str(value)
                    .ok()
                    .filter(|rate| (0.01..=1000.0).contains(rate))
                    .or(self.frame_rate);
            }
            _ => {}
        }
    }

    /// `96 rest`: the rest, if it is about the section's first format.
    fn of_this_format<'a>(&self, value: &'a str) -> Option<&'a str> {
        let (format, rest) = value.split_once([' ', '\t'])?;
        (format.parse().ok() == self.payload_type).then_some(rest.trim())
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        self.format.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    fn into_track(self, base: &str) -> Track {
        let kind = match self.media.as_str() {
            "video" => TrackKind::Video,
            "audio" => TrackKind::Audio,
            _ => TrackKind::Other,
        };
        let (encoding, clock_rate, channels) = self.rtp_map();
        let codec = match (kind, encoding.as_str()) {
            (TrackKind::Video, "H264") => self.h264(),
            (TrackKind::Audio, "MPEG4-GENERIC") => self.aac().map_or_else(unsupported, Codec::Aac),
            (TrackKind::Audio, "PCMU" | "PCMA") if channels > 1 => {
                Codec::Unsupported(format!("{encoding} with {channels} channels"))
            }
            (TrackKind::Audio, "PCMU") => Codec::G711(Law::Mu),
            (TrackKind::Audio, "PCMA") => Codec::G711(Law::A),
            (_, "") => Codec::Unsupported("the camera does not name its encoding".into()),
            _ => Codec::Unsupported(format!(
                "{} is not supported; set the camera to {}",
                encoding,
                match kind {
                    TrackKind::Video => "H.264",
                    TrackKind::Audio => "AAC or G.711",
                    TrackKind::Other => "video or audio",
                }
            )),
        };
        Track {
            kind,
            payload_type: self.payload_type.unwrap_or_default(),
            encoding,
            clock_rate,
            codec,
            control: self.control.as_deref().map(|control| join(base, control)),
            frame_rate: self.frame_rate,
        }
    }

    /// Encoding name, clock rate, channels: as stated, else RFC 3551's static ones.
    fn rtp_map(&self) -> (String, u32, u8) {
        if let Some(map) = &self.rtp_map {
            let mut parts = map.split('/').map(str::trim);
            let name = parts.next().unwrap_or_default().to_ascii_uppercase();
            let clock = parts.next().and_then(|rate| rate.parse().ok()).unwrap_or_default();
            let channels = parts.next().and_then(|count| count.parse().ok()).unwrap_or(1);
            return (name, clock, channels);
        }
        let (name, clock) = match self.payload_type {
            Some(0) => ("PCMU", 8_000),
            Some(8) => ("PCMA", 8_000),
            Some(9) => ("G722", 8_000),
            Some(26) => ("JPEG", 90_000),
            Some(32) => ("MPV", 90_000),
            _ => ("", 0),
        };
        (name.to_owned(), clock, 1)
    }

    fn h264(&self) -> Codec {
        // Absent or unusable, they come in band: all cameras send them with each key frame.
        let sets = self.parameter("sprop-parameter-sets").map(ParameterSets::from_sprop);
        match sets {
            Some(Err(ParameterSetError::TooLong)) => unsupported(ParameterSetError::TooLong),
            sets => Codec::H264(sets.and_then(Result::ok)),
        }
    }

    fn aac(&self) -> Result<AacFormat, AacError> {
        let config = self.parameter("config").and_then(from_hex).ok_or(AacError::NoConfig)?;
        let mut format = AacFormat::new(&config)?;
        // Cameras that leave the layout away mean AAC-hbr.
        let bits = |name: &str, default: u8| {
            self.parameter(name).and_then(|value| value.parse().ok()).unwrap_or(default)
        };
        format.size_bits = bits("sizelength", 13);
        format.index_bits = (bits("indexlength", 3), bits("indexdeltalength", 3));
        Ok(format)
    }
}

fn unsupported(error: impl std::fmt::Display) -> Codec {
    Codec::Unsupported(error.to_string())
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if digits.is_empty() || !digits.len().is_multiple_of(2) || digits.len() > 1024 || !digits.is_ascii() {
        return None;
    }
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

fn has_scheme(url: &str) -> bool {
    url.split_once("://").is_some_and(|(scheme, _)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
    })
}

/// A control attribute in the sense that cameras give it: appended to the base, query and all, not
/// resolved as RFC 3986 would (`?channel=1&subtype=0/trackID=1` is what Dahua expects back).
fn join(base: &str, control: &str) -> String {
    if control == "*" || control.is_empty() {
        return base.to_owned();
    }
    if has_scheme(control) {
        return control.to_owned();
    }
    format!("{}/{}", base.strip_suffix('/').unwrap_or(base), control.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rtsp::{Decoder, Message};
    use bytes::{Bytes, BytesMut};
    use proptest::prelude::*;

    fn captured(name: &str) -> (String, Bytes) {
        let path = format!("{}/testdata/rtsp/{name}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap().replace("\r\n", "\n");
        if text.starts_with("v=") {
            return (String::new(), text.into());
        }
        let (head, body) = text.split_once("\n\n").unwrap();
        (head.to_owned(), body.to_owned().into())
    }

    fn describe(name: &str, request_url: &str) -> Presentation {
        let (head, body) = captured(name);
        let mut wire = BytesMut::from("RTSP/1.0 200 OK\r\n");
        for line in head.lines().skip(1).filter(|line| !line.starts_with("Content-Length")) {
            wire.extend_from_slice(format!("{line}\r\n").as_bytes());
        }
        wire.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
        wire.extend_from_slice(&body);
        let Some(Message::Response(response)) = Decoder::default().decode(&mut wire).unwrap() else {
            panic!()
        };
        Presentation::from_response(request_url, &response).unwrap()
    }

    fn summary(track: &Track) -> String {
        let codec = match &track.codec {
            Codec::H264(Some(sets)) => format!("{} {}x{}", sets.codec(), sets.width(), sets.height()),
            Codec::H264(None) => "sets in band".into(),
            Codec::Aac(format) => {
                format!("{} {} Hz {} ch", format.codec(), format.sample_rate, format.channels)
            }
            Codec::G711(law) => format!("{law:?} law"),
            Codec::Unsupported(_) => "unsupported".into(),
        };
        let rate = track.frame_rate.map(|rate| format!(" {rate} fps")).unwrap_or_default();
        format!("{:?} {}/{}: {codec}{rate}", track.kind, track.encoding, track.clock_rate)
    }

    /// Goal: what becomes of every captured camera.
    #[test]
    fn every_captured_camera() {
        #[rustfmt::skip]
        type Row = (&'static str, &'static str, &'static [(&'static str, &'static str)]);
        let table: &[Row] = &[
            (
                "anjvision_describe.txt",
                "rtsp://192.168.1.10:554/stream0/",
                &[("Video H265/90000: unsupported 5 fps", "rtsp://192.168.1.10:554/stream0/trackID=1")],
            ),
            (
                "anpviz_sdp.txt",
                "rtsp://h/",
                &[
                    ("Video H264/90000: avc1.4D401F 704x576 12 fps", "rtsp://h/trackID=1"),
                    ("Audio MPEG4-GENERIC/16000: mp4a.40.2 16000 Hz 1 ch", "rtsp://h/trackID=2"),
                ],
            ),
            (
                "bunny_describe.txt",
                "rtsp://wowzaec2demo.streamlock.net/vod/mp4:BigBuckBunny_115k.mov/",
                &[
                    (
                        "Audio MPEG4-GENERIC/12000: mp4a.40.2 12000 Hz 2 ch",
                        "rtsp://wowzaec2demo.streamlock.net/vod/mp4:BigBuckBunny_115k.mov/trackID=1",
                    ),
                    (
                        "Video H264/90000: avc1.42C01E 240x160 24 fps",
                        "rtsp://wowzaec2demo.streamlock.net/vod/mp4:BigBuckBunny_115k.mov/trackID=2",
                    ),
                ],
            ),
            (
                "dahua_describe_h264_aac_onvif.txt",
                "rtsp://192.168.5.111:554/cam/realmonitor?channel=1&subtype=1&unicast=true&proto=Onvif/",
                &[
                    (
                        "Video H264/90000: avc1.64001E 704x480 15 fps",
                        "rtsp://192.168.5.111:554/cam/realmonitor?channel=1&subtype=1&unicast=true&proto=Onvif/trackID=0",
                    ),
                    (
                        "Audio MPEG4-GENERIC/48000: mp4a.40.2 48000 Hz 1 ch",
                        "rtsp://192.168.5.111:554/cam/realmonitor?channel=1&subtype=1&unicast=true&proto=Onvif/trackID=1",
                    ),
                    (
                        "Other VND.ONVIF.METADATA/90000: unsupported",
                        "rtsp://192.168.5.111:554/cam/realmonitor?channel=1&subtype=1&unicast=true&proto=Onvif/trackID=4",
                    ),
                ],
            ),
            (
                "foscam_describe.txt",
                "rtsp://192.168.5.107:65534/videoMain/",
                &[
                    ("Video H264/90000: avc1.4D001F 1280x720", "rtsp://192.168.5.107:65534/videoMain/track1"),
                    ("Audio PCMU/8000: Mu law", "rtsp://192.168.5.107:65534/videoMain/track2"),
                ],
            ),
            (
                "geovision_sdp.txt",
                "rtsp://h/",
                &[
                    ("Video H264/90000: avc1.4D4032 2688x1520", "rtsp://192.168.5.237/media/video1/video"),
                    (
                        "Other VND.ONVIF.METADATA/90000: unsupported",
                        "rtsp://192.168.5.237/media/video1/metadata",
                    ),
                ],
            ),
            (
                "gw_main_describe.txt",
                "rtsp://192.168.1.110:5050/H264?channel=1&subtype=0&unicast=true&proto=Onvif",
                &[
                    (
                        "Video H264/90000: avc1.4D002A 1920x1080",
                        "rtsp://192.168.1.110:5050/H264?channel=1&subtype=0&unicast=true&proto=Onvif/video",
                    ),
                    (
                        "Audio PCMU/8000: Mu law",
                        "rtsp://192.168.1.110:5050/H264?channel=1&subtype=0&unicast=true&proto=Onvif/audio",
                    ),
                ],
            ),
            (
                "gw_sub_describe.txt",
                "rtsp://192.168.1.110:5049/H264?channel=1&subtype=1&unicast=true&proto=Onvif",
                &[(
                    "Video H264/90000: avc1.4D001E 720x480",
                    "rtsp://192.168.1.110:5049/H264?channel=1&subtype=1&unicast=true&proto=Onvif/video",
                )],
            ),
            (
                "h264dvr_describe.txt",
                "rtsp://127.0.0.1:554/camera",
                &[
                    (
                        "Video H264/90000: avc1.420029 1920x1080 25 fps",
                        "rtsp://127.0.0.1:554/camera/trackID=3",
                    ),
                    ("Audio PCMA/8000: A law", "rtsp://127.0.0.1:554/camera/trackID=4"),
                ],
            ),
            (
                "ipcam_describe.txt",
                "rtsp://h/",
                &[("Video H264/90000: avc1.4D0020 1280x960 25 fps", "rtsp://h/trackID=1")],
            ),
            (
                "missing_content_type_describe.txt",
                "rtsp://h/",
                &[
                    ("Video H264/90000: avc1.64000D 320x180", "rtsp://h/streamid=0"),
                    ("Audio MPEG4-GENERIC/48000: mp4a.40.2 48000 Hz 2 ch", "rtsp://h/streamid=1"),
                ],
            ),
        ];
        for (name, control, tracks) in table {
            let presentation = describe(name, "rtsp://h/");
            let got: Vec<(String, String)> = presentation
                .tracks
                .iter()
                .map(|track| (summary(track), track.control.clone().unwrap()))
                .collect();
            let expected: Vec<(String, String)> = tracks.iter().map(|&(a, b)| (a.into(), b.into())).collect();
            assert_eq!((presentation.control.as_str(), got), (*control, expected), "{name}");
        }
        let captures = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/rtsp")).unwrap();
        let descriptions = captures
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains("describe") || name.contains("sdp"));
        assert_eq!(descriptions.count(), table.len(), "a capture is missing in the table");
    }

    /// Goal: what is missing is said, for people.
    #[test]
    fn unusable_descriptions() {
        let parse = |text: &str| Presentation::parse(text.as_bytes(), "rtsp://h/x");
        assert_eq!(parse(" \r\n"), Err(SdpError::NotText));
        assert_eq!(parse("v=0\r\n"), Err(SdpError::NoTracks));
        let codec = |text: &str| parse(text).unwrap().tracks.remove(0).codec;
        let aac = "m=audio 0 RTP/AVP 97\na=rtpmap:97 MPEG4-GENERIC/48000\n";
        assert_eq!(codec(aac), Codec::Unsupported("AAC without a usable config parameter".into()));
        assert_eq!(
            codec(&format!("{aac}a=fmtp:97 config=1Z")),
            Codec::Unsupported("AAC without a usable config parameter".into())
        );
        assert_eq!(codec("m=video 0 RTP/AVP 96\na=rtpmap:96 H264/90000"), Codec::H264(None));
        let h265 = codec("m=video 0 RTP/AVP 96\na=rtpmap:96 H265/90000");
        assert_eq!(h265, Codec::Unsupported("H265 is not supported; set the camera to H.264".into()));
        assert!(matches!(codec("m=video"), Codec::Unsupported(_)));
        let single = parse("v=0\na=control:*\nm=video 0 RTP/AVP 96\n").unwrap();
        assert_eq!((single.control.as_str(), &single.tracks[0].control), ("rtsp://h/x", &None));
    }

    proptest! {
        /// Goal: any text, cut anywhere, gives an answer and never a panic.
        #[test]
        fn arbitrary_text(text in "([vmao]=[ -~]{0,30}\r?\n|a=(rtpmap|fmtp|control|framerate):[ -~]{0,30}\n|m=(audio|video) [0-9]{1,5} RTP/AVP [0-9]{1,4}\n){0,12}") {
            let _ = Presentation::parse(text.as_bytes(), "rtsp://h/");
        }
    }

    /// Goal: a description that ends anywhere is read as far as it goes.
    #[test]
    fn cut_at_every_byte() {
        for name in
            ["dahua_describe_h264_aac_onvif.txt", "missing_content_type_describe.txt", "gw_main_describe.txt"]
        {
            let (_, body) = captured(name);
            let mut tracks = 0;
            for at in 0..=body.len() {
                let now = Presentation::parse(&body[..at], "rtsp://h/").map_or(0, |p| p.tracks.len());
                assert!(now >= tracks, "{name} cut at {at}");
                tracks = now;
            }
        }
    }
}
