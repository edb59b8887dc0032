//! How much bandwidth and storage an installation needs: one calculation, for `homing plan` and for the page.
//!
//! From the bitrate of a camera's stream (given, or estimated from its picture) to what goes over the sites' lines, what
//! arrives at the centre, and what is stored. [`Overhead`] is what the way costs: RTP, RTSP, WebSocket, HTTP/2, TLS, TCP
//! and IP. Its numbers come from the standards and from what the programs do; the lab test
//! `video_passes_in_every_layout_and_the_plan_says_what_the_wire_carries` holds them against the counters of a network interface.
//!
//! Not here: what is in use now. Invariant: every figure is of what was wished or of a constant that is documented here.

use anyhow::ensure;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Bits of an H.264 picture per pixel in an ordinary scene. Known as the Kush gauge (K. Amerasinghe, "H.264 for the rest
/// of us", Adobe 2010): pixels × pictures a second × motion (1, 2, 4) × 0.07. A camera that does not move sees less change
/// than a film, so that an ordinary scene is his lowest rank here, a busy one his second.
const H264_BITS_PER_PIXEL: f64 = 0.07;
/// H.265 for the same picture. Verification tests found 59 % saved against H.264 (Tan et al., IEEE TCSVT 26 (2016) 76);
/// encoders in cameras, which have no time, reach less.
const H265_TO_H264: f64 = 0.65;
/// Bits per pixel of a JPEG that is good to very good, up to excellent: 0.5 to 1.5 (G. K. Wallace, CACM 34 (1991) 4, 30).
const JPEG_BITS_PER_PIXEL: f64 = 0.75;
/// An estimate is right within this factor, up and down, mostly: encoders, noise at night and scenes differ so much.
const SPREAD: f64 = 2.0;

/// What is left free of a line, as a part of it: for what must be sent again, for key frames that come together, and for
/// catching up after a disturbance.
pub const SPARE: f64 = 0.2;

/// What RTP packets of a camera carry at most: a usual MTU less the headers.
const RTP_PAYLOAD: f64 = 1388.0;
/// RTP header 12 (RFC 3550 §5.1), FU indicator and header 2 (RFC 6184 §5.8), RTSP interleaving 4 (RFC 2326 §10.12).
const PER_RTP_PACKET: f64 = 12.0 + 2.0 + 4.0;
/// WebSocket header 4 (RFC 6455 §5.2), HTTP/2 frame header 9 (RFC 9113 §4.1), TLS 1.3 record header 5, type 1 and tag 16
/// (RFC 8446 §5.2).
const PER_MESSAGE: f64 = 4.0 + 9.0 + 22.0;
/// TCP header with time stamps (RFC 9293, RFC 7323).
const TCP_HEADER: f64 = 32.0;
/// What a TCP segment carries by IPv4 on Ethernet; 20 less by IPv6.
const SEGMENT: f64 = 1448.0;
/// An acknowledgement is sent for every other segment (RFC 9293 §3.8.6.3), and for what comes alone; fewer where the
/// receiver's network card joins segments.
const SEGMENTS_PER_ACKNOWLEDGEMENT: f64 = 2.0;
/// RTCP reports, RTSP keep-alives, PING of the uplink: bytes a second of a camera, each way.
const SIGNALLING: f64 = 60.0;

/// Bytes that a recording has beyond a frame's own: its entry in the fragment (ISO/IEC 14496-12 §8.8.8).
pub const STORED_PER_FRAME: f64 = 12.0;

/// Sound packets a second: 20 ms each, as most cameras send G.711.
const SOUND_PACKETS: f64 = 50.0;

/// What the camera encodes with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// What the recording server records.
    #[default]
    H264,
    /// Through the tunnel for other recorders.
    H265,
    /// Through the tunnel for other recorders.
    Mjpeg,
}

/// How much moves in the picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scene {
    /// A corridor or a store room: mostly nothing.
    Quiet,
    /// A shop, an entrance, a yard.
    #[default]
    Normal,
    /// A street, a crowd, trees in the wind, rain, noise at night.
    Busy,
}

/// What is planned. The white paper's example where nothing is said: 50 sites of four cameras, H.264 at 8 pictures a
/// second and 500 kbit/s.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Wish {
    /// Remote sites.
    pub sites: u32,
    /// Cameras at each of them.
    pub cameras: u32,
    /// Video of one camera, as its encoder is set, kbit/s. Estimated where a resolution is given instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kbit: Option<u32>,
    /// Pixels across, for an estimate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<u32>,
    /// Pixels down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub height: Option<u32>,
    /// Pictures a second.
    pub fps: f64,
    /// Encoding.
    pub codec: Codec,
    /// How much moves.
    pub scene: Scene,
    /// Sound of one camera, kbit/s; 64 is G.711.
    pub audio_kbit: u32,
    /// Whether the lines are IPv6.
    pub ipv6: bool,
    /// How long recordings are kept.
    pub days: u32,
}

/// The white paper's bitrate, kbit/s.
const KBIT: u32 = 500;

impl Default for Wish {
    fn default() -> Self {
        Wish {
            sites: 50,
            cameras: 4,
            kbit: None,
            width: None,
            height: None,
            fps: 8.0,
            codec: Codec::H264,
            scene: Scene::Normal,
            audio_kbit: 0,
            ipv6: false,
            days: 30,
        }
    }
}

/// What it comes to. Rates are bits a second of IP packets (what a provider's line carries), sizes are bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Plan {
    /// What was wished, with the bitrate that was reckoned with.
    pub wish: Wish,
    /// Each camera.
    pub camera: Camera,
    /// Each site's line.
    pub site: Line,
    /// The centre's line. There, what sites send up comes down.
    pub centre: Line,
    /// The recordings.
    pub storage: Storage,
}

/// One camera's stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Camera {
    /// Video, as the camera encodes it.
    pub video_bps: u64,
    /// Sound.
    pub audio_bps: u64,
    /// Both, on the line.
    pub wire_bps: u64,
    /// What the way adds, in per cent of video and sound.
    pub overhead_percent: f64,
    /// Within which the video's bitrate will probably be; only where it was estimated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimate: Option<Range>,
}

/// From, to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Range {
    /// A quieter scene, a better encoder.
    pub low_bps: u64,
    /// A busier scene, a simpler encoder, noise at night.
    pub high_bps: u64,
}

/// What a line carries while every camera streams.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Line {
    /// Away from here: the video, at a site; acknowledgements, at the centre.
    pub upstream_bps: u64,
    /// To here.
    pub downstream_bps: u64,
    /// The line to order, in the direction of the video: a fifth of it stays free.
    pub order_bps: u64,
}

/// What is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Storage {
    /// Of one camera in a day.
    pub per_camera_day_bytes: u64,
    /// Of all cameras in a day.
    pub per_day_bytes: u64,
    /// Of all cameras in `days`.
    pub total_bytes: u64,
}

/// What the way costs, for one camera.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Overhead {
    /// IP header: 20 or 40.
    ip_header: f64,
}

impl Overhead {
    /// For lines with IPv4 or IPv6.
    pub fn new(ipv6: bool) -> Self {
        Overhead { ip_header: if ipv6 { 40.0 } else { 20.0 } }
    }

    /// Bytes a second on the line for `payload` bytes a second of encoded video or sound that come in `frames` a second.
    ///
    /// A frame's last RTP packet and its last TCP segment are half full on average; a camera hands over a frame at a time,
    /// which goes on as one message where it is not longer than the agent reads at once.
    pub fn wire(&self, payload: f64, frames: f64) -> f64 {
        let frame = payload / frames;
        let packets = if frame <= RTP_PAYLOAD { 1.0 } else { frame / RTP_PAYLOAD + 0.5 };
        let message = frame + packets * PER_RTP_PACKET + PER_MESSAGE;
        frames * (message + self.segments(message) * (TCP_HEADER + self.ip_header))
    }

    /// Bytes a second of acknowledgements, the other way, at most.
    pub fn acknowledgements(&self, payload: f64, frames: f64) -> f64 {
        let each = (self.segments(payload / frames) / SEGMENTS_PER_ACKNOWLEDGEMENT).max(1.0);
        frames * each * (TCP_HEADER + self.ip_header)
    }

    fn segments(&self, bytes: f64) -> f64 {
        let carried = SEGMENT + 20.0 - self.ip_header;
        if bytes <= carried { 1.0 } else { bytes / carried + 0.5 }
    }
}

impl Wish {
    /// Calculates.
    ///
    /// # Errors
    /// What cannot be meant, by the names that the command's flags and the API's parameters share.
    pub fn plan(mut self) -> anyhow::Result<Plan> {
        self.check()?;
        let estimated = self.estimate_kbit();
        let kbit = self.kbit.or(estimated).unwrap_or(KBIT);
        let estimate = self.kbit.is_none().then_some(estimated).flatten().map(|kbit| Range {
            low_bps: (f64::from(kbit) * 1000.0 / SPREAD) as u64,
            high_bps: (f64::from(kbit) * 1000.0 * SPREAD) as u64,
        });
        self.kbit = Some(kbit);

        let bytes = |kbit: u32| f64::from(kbit) * 1000.0 / 8.0;
        let (video, sound) = (bytes(kbit), bytes(self.audio_kbit));
        let way = Overhead::new(self.ipv6);
        let mut up = way.wire(video, self.fps) + SIGNALLING;
        let mut down = way.acknowledgements(video, self.fps) + SIGNALLING;
        let mut stored = video + self.fps * STORED_PER_FRAME;
        if sound > 0.0 {
            up += way.wire(sound, SOUND_PACKETS);
            down += way.acknowledgements(sound, SOUND_PACKETS);
            stored += sound + SOUND_PACKETS * STORED_PER_FRAME;
        }
        let (sites, cameras) = (f64::from(self.sites), f64::from(self.cameras));
        let line = |up: f64, down: f64| Line {
            upstream_bps: (up * 8.0).round() as u64,
            downstream_bps: (down * 8.0).round() as u64,
            order_bps: (up.max(down) * 8.0 / (1.0 - SPARE)).round() as u64,
        };
        let day = stored * 86_400.0;
        Ok(Plan {
            camera: Camera {
                video_bps: (video * 8.0) as u64,
                audio_bps: (sound * 8.0) as u64,
                wire_bps: (up * 8.0).round() as u64,
                overhead_percent: ((up / (video + sound) - 1.0) * 1000.0).round() / 10.0,
                estimate,
            },
            site: line(up * cameras, down * cameras),
            centre: line(down * cameras * sites, up * cameras * sites),
            storage: Storage {
                per_camera_day_bytes: day as u64,
                per_day_bytes: (day * cameras * sites) as u64,
                total_bytes: (day * cameras * sites * f64::from(self.days)) as u64,
            },
            wish: self,
        })
    }

    fn check(&self) -> anyhow::Result<()> {
        let within = |name: &str, value: f64, least: f64, most: f64| {
            ensure!(
                (least..=most).contains(&value),
                "{name} is {value}: from {least} to {most} can be planned"
            );
            Ok(())
        };
        within("sites", self.sites.into(), 1.0, 100_000.0)?;
        within("cameras", self.cameras.into(), 1.0, 1000.0)?;
        within("fps", self.fps, 0.1, 120.0)?;
        within("days", self.days.into(), 1.0, 3650.0)?;
        within("audio_kbit", self.audio_kbit.into(), 0.0, 1000.0)?;
        within("kbit", self.kbit.unwrap_or(KBIT).into(), 8.0, 200_000.0)?;
        ensure!(
            self.width.is_some() == self.height.is_some(),
            "width and height belong together: 1920 and 1080, say"
        );
        for (name, pixels) in [("width", self.width), ("height", self.height)] {
            within(name, pixels.unwrap_or(1920).into(), 16.0, 16_384.0)?;
        }
        Ok(())
    }

    /// What a stream of such pictures needs, roughly.
    fn estimate_kbit(&self) -> Option<u32> {
        let pixels = f64::from(self.width?) * f64::from(self.height?);
        let motion = match self.scene {
            Scene::Quiet => 0.5,
            Scene::Normal => 1.0,
            Scene::Busy => 2.0,
        };
        let per_pixel = match self.codec {
            Codec::H264 => H264_BITS_PER_PIXEL * motion,
            Codec::H265 => H264_BITS_PER_PIXEL * H265_TO_H264 * motion,
            // Each picture stands alone: what matters is how much is in it, not how much moves.
            Codec::Mjpeg => JPEG_BITS_PER_PIXEL * motion.clamp(0.7, 2.0),
        };
        Some(((pixels * self.fps * per_pixel / 1000.0).round() as u32).max(8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what the white paper says of its example holds, and the way's cost is on top of it.
    #[test]
    fn the_white_papers_example_is_the_default() {
        let plan = Wish::default().plan().unwrap();
        assert_eq!((plan.camera.video_bps, plan.camera.audio_bps), (500_000, 0));
        assert!((2_000_000..2_200_000).contains(&plan.site.upstream_bps), "{:?}", plan.site);
        assert!((100_000_000..110_000_000).contains(&plan.centre.downstream_bps), "{:?}", plan.centre);
        assert!((5.0..9.0).contains(&plan.camera.overhead_percent), "{:?}", plan.camera);
        // A fifth is left free.
        assert_eq!(plan.centre.order_bps, (plan.centre.downstream_bps as f64 / 0.8).round() as u64);
        assert!(plan.site.downstream_bps < plan.site.upstream_bps / 20, "{:?}", plan.site);
        // 200 cameras × 5.4 GB a day.
        assert!((1.08e12..1.1e12).contains(&(plan.storage.per_day_bytes as f64)), "{:?}", plan.storage);
        assert_eq!(plan.storage.total_bytes / plan.storage.per_day_bytes, 30);
    }

    /// Goal: an estimate is of the size that cameras of this kind have, and says how rough it is.
    #[test]
    fn a_bitrate_is_estimated_from_the_picture() {
        let of = |codec, scene| {
            let wish =
                Wish { width: Some(1920), height: Some(1080), fps: 25.0, codec, scene, ..Wish::default() };
            wish.plan().unwrap().camera
        };
        let normal = of(Codec::H264, Scene::Normal);
        assert_eq!(normal.video_bps, 3_629_000);
        let range = normal.estimate.unwrap();
        assert_eq!((range.low_bps, range.high_bps), (1_814_500, 7_258_000));
        let quiet = of(Codec::H264, Scene::Quiet).video_bps;
        let (h265, busy) = (of(Codec::H265, Scene::Normal).video_bps, of(Codec::H264, Scene::Busy).video_bps);
        assert!(quiet < h265 && h265 < normal.video_bps && normal.video_bps < busy);
        assert!(of(Codec::Mjpeg, Scene::Normal).video_bps > 10 * normal.video_bps / 2);
        // What is known is not estimated.
        let known = Wish { width: Some(1920), height: Some(1080), kbit: Some(2000), ..Wish::default() };
        let camera = known.plan().unwrap().camera;
        assert_eq!((camera.video_bps, camera.estimate), (2_000_000, None));
    }

    /// Goal: small frames cost more, sound most of all, and IPv6 a little more than IPv4.
    #[test]
    fn the_way_costs_more_the_smaller_the_frames() {
        let percent = |wish: Wish| wish.plan().unwrap().camera.overhead_percent;
        let large = percent(Wish { kbit: Some(8000), ..Wish::default() });
        let small = percent(Wish { fps: 30.0, ..Wish::default() });
        let sound = percent(Wish { audio_kbit: 64, ..Wish::default() });
        let six = percent(Wish { ipv6: true, ..Wish::default() });
        let usual = percent(Wish::default());
        assert!(
            large < usual && usual < six && six < small && usual < sound,
            "{large} {usual} {six} {small} {sound}"
        );
        assert!(large > 4.0, "no way is for nothing: {large}");
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_its_name() {
        let refused = |wish: Wish| wish.plan().unwrap_err().to_string();
        assert!(refused(Wish { sites: 0, ..Wish::default() }).starts_with("sites is 0"));
        assert!(refused(Wish { fps: f64::NAN, ..Wish::default() }).starts_with("fps"));
        assert!(refused(Wish { width: Some(640), ..Wish::default() }).contains("height"));
        assert!(refused(Wish { kbit: Some(0), ..Wish::default() }).starts_with("kbit"));
    }
}
