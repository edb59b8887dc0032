//! H.264 by openh264: constrained baseline, one thread, no frame is ever skipped or reordered.
//!
//! The encoder is told which pictures become key frames; it decides nothing by itself but the
//! quantiser, with which it keeps to the bit rate. Parameter sets go before every key frame.

use crate::scene::canvas::Canvas;
use anyhow::{Context, bail};
use homing_media::h264::{NAL_PPS, NAL_SPS, ParameterSets, annexb_nals, nal_type};
use openh264::{
    OpenH264API, Timestamp,
    encoder::{
        BitRate, Complexity, EncoderConfig, FrameRate, IntraFramePeriod, RateControlMode, UsageType,
        VuiConfig,
    },
    formats::YUVSlices,
};

/// How often a picture that openh264 skipped, to save bits, is given to it again. Each time it counts a
/// picture's worth of bits as saved, so that it gives in after a few.
const SKIPS_IN_A_ROW: usize = 50;

/// An encoder of one stream.
pub struct Encoder {
    inner: openh264::encoder::Encoder,
    /// The first picture is a key frame in any case, and openh264 does not want to be told so.
    started: bool,
    stream: Vec<u8>,
}

impl Encoder {
    /// An encoder for so many bits and frames per second.
    ///
    /// # Errors
    /// When openh264 cannot be set up.
    pub fn new(bitrate_bps: u32, fps: u32) -> anyhow::Result<Encoder> {
        let config = EncoderConfig::new()
            .bitrate(BitRate::from_bps(bitrate_bps))
            .max_frame_rate(FrameRate::from_hz(fps as f32))
            .rate_control_mode(RateControlMode::Bitrate)
            // Without this openh264 complains on stderr that it cannot keep the bit rate; what it skips
            // is given to it again.
            .skip_frames(true)
            .usage_type(UsageType::CameraVideoRealTime)
            .complexity(Complexity::Low)
            // Key frames come when they are asked for, and at no other time.
            .intra_frame_period(IntraFramePeriod::from_num_frames(0))
            .scene_change_detect(false)
            .num_threads(1)
            .vui(VuiConfig::bt709());
        let inner = openh264::encoder::Encoder::with_api_config(OpenH264API::from_source(), config)
            .context("cannot set up the H.264 encoder")?;
        Ok(Encoder { inner, started: false, stream: Vec::new() })
    }

    /// Encodes one picture; gives its NAL units as a byte stream (H.264 annex B). `time_ms` rises.
    ///
    /// # Errors
    /// When openh264 refuses the picture, such as for its size.
    pub fn encode(&mut self, picture: &Canvas, key: bool, time_ms: u64) -> anyhow::Result<&[u8]> {
        if key && self.started {
            self.inner.force_intra_frame();
        }
        self.started = true;
        let (width, height) = (picture.width(), picture.height());
        let [y, u, v] = picture.planes();
        let slices = YUVSlices::new((y, u, v), (width, height), (width, width / 2, width / 2));
        self.stream.clear();
        for _ in 0..SKIPS_IN_A_ROW {
            let encoded = self
                .inner
                .encode_at(&slices, Timestamp::from_millis(time_ms))
                .with_context(|| format!("openh264 does not encode a picture of {width}×{height}"))?;
            encoded.write_vec(&mut self.stream);
            if !self.stream.is_empty() {
                return Ok(&self.stream);
            }
        }
        bail!("openh264 skipped a picture {SKIPS_IN_A_ROW} times")
    }

    /// The parameter sets of the streams that an encoder with these settings makes.
    ///
    /// # Errors
    /// As [`Encoder::new`] and [`Encoder::encode`].
    pub fn parameter_sets(
        bitrate_bps: u32,
        fps: u32,
        width: usize,
        height: usize,
    ) -> anyhow::Result<ParameterSets> {
        let mut encoder = Encoder::new(bitrate_bps, fps)?;
        let stream = encoder.encode(&Canvas::new(width, height), true, 0)?;
        let of_type = |wanted: u8| annexb_nals(stream).find(move |nal| nal_type(nal) == wanted);
        let sps = of_type(NAL_SPS).context("openh264 made no sequence parameter set")?;
        let pps = of_type(NAL_PPS).context("openh264 made no picture parameter set")?;
        ParameterSets::new(sps, &[pps]).context("openh264's parameter sets cannot be read")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        scene::{Place, Scene, Timing},
        strip,
    };
    use homing_media::h264::{NAL_IDR, Reordering};
    use openh264::{decoder::Decoder, formats::YUVSource};

    const FPS: u32 = 8;
    const BITRATE_BPS: u32 = 500_000;

    /// Goal: what a camera sends can be accounted for, frame by frame, after compression: 40 s of each
    /// place, over changes of light, read back exactly; and it costs about what was asked for.
    #[test]
    fn every_frame_number_survives_compression() {
        for place in Place::ALL {
            let mut scene = Scene::new("Any camera", Some(place), 640, 360, Timing { fps: FPS });
            let mut encoder = Encoder::new(BITRATE_BPS, FPS).unwrap();
            let mut decoder = Decoder::new().unwrap();
            let (first, count) = (80_000_000, 320);
            let mut bytes = 0;
            for frame in first..first + count {
                let key = frame % (2 * FPS) == 0;
                let stream = encoder.encode(scene.draw(frame), key, u64::from(frame) * 125).unwrap();
                bytes += stream.len();
                let coded_key = annexb_nals(stream).any(|nal| nal_type(nal) == NAL_IDR);
                assert_eq!(coded_key, key, "{place:?}: key frame where it was asked for, frame {frame}");
                let decoded = decoder.decode(stream).unwrap().expect("every frame gives a picture at once");
                let (width, height) = decoded.dimensions();
                let stride = decoded.strides().0;
                let luma: Vec<u8> =
                    decoded.y().chunks(stride).take(height).flat_map(|row| &row[..width]).copied().collect();
                assert_eq!(strip::read(&luma, width, height), Some(frame), "{place:?}");
            }
            let bps = bytes as f64 * 8.0 * f64::from(FPS) / f64::from(count);
            let ratio = bps / f64::from(BITRATE_BPS);
            assert!((0.8..1.2).contains(&ratio), "{place:?}: {bps:.0} bit/s instead of {BITRATE_BPS}");
        }
    }

    /// Goal: decoders may show each picture at once, and SDP tells them so before the first.
    #[test]
    fn parameter_sets_promise_no_reordering() {
        let sets = Encoder::parameter_sets(BITRATE_BPS, FPS, 640, 360).unwrap();
        assert_eq!((sets.width(), sets.height()), (640, 360));
        assert_eq!(sets.reordering(), Reordering::Never);
        let stream_sets = {
            let mut encoder = Encoder::new(BITRATE_BPS, FPS).unwrap();
            let mut scene = Scene::new("x", None, 640, 360, Timing { fps: FPS });
            let stream = encoder.encode(scene.draw(77), true, 1234).unwrap();
            annexb_nals(stream).find(|nal| nal_type(nal) == NAL_SPS).unwrap().to_vec()
        };
        assert_eq!(sets.sps()[..], stream_sets[..], "the same in SDP and in the stream");
    }
}
