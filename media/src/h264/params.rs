//! Parameter sets of an H.264 stream, and what they say: size, profile, reordering; the `avcC` made of them.
//!
//! Not here: pictures. Sequence parameter sets are parsed by `h264-reader`; this module strips what
//! cameras wrongly leave at their end (start codes, zeros), and never changes them except on request
//! ([`ParameterSets::without_reordering`]).
//!
//! Invariant: a [`ParameterSets`] always holds one parsed SPS and at least one PPS.

use bytes::Bytes;
use h264_reader::nal::WritableNal;
use h264_reader::nal::sps::{BitstreamRestrictions, PicOrderCntType, SeqParameterSet, VuiParameters};
use h264_reader::rbsp::{BitReader, ByteReader};

/// One sequence parameter set with the picture parameter sets that go with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterSets {
    sps: Bytes,
    pps: Vec<Bytes>,
    width: u16,
    height: u16,
    frame_ms: Option<u32>,
    chroma: [u8; 3],
    reordering: Reordering,
}

/// What the SPS says about frames that are shown in another order than they are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reordering {
    /// There are none.
    Never,
    /// At most so many wait for a later one.
    UpTo(u32),
    /// Not a word: decoders that care for correctness wait until their buffer is full.
    Unstated,
}

/// Why parameter sets cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParameterSetError {
    /// Nothing of that kind was given.
    #[error("no H.264 {0} parameter set")]
    Missing(&'static str),
    /// Could not be parsed.
    #[error("unusable H.264 sequence parameter set: {0}")]
    Sps(String),
    /// Larger than an `avcC` can hold.
    #[error("H.264 parameter sets larger than 65,535 bytes")]
    TooLong,
    /// `sprop-parameter-sets` is not base64.
    #[error("sprop-parameter-sets is not base64")]
    NotBase64,
}

impl ParameterSets {
    /// From NAL units with their header byte, without start codes. Of several picture parameter sets with
    /// the same id the last counts.
    ///
    /// # Errors
    /// When the SPS cannot be parsed or a kind is missing.
    pub fn new(sps: &[u8], pps: &[impl AsRef<[u8]>]) -> Result<Self, ParameterSetError> {
        let sps = trim(sps);
        if sps.len() < 4 {
            return Err(ParameterSetError::Missing("sequence"));
        }
        let mut kept: Vec<Bytes> = Vec::with_capacity(pps.len());
        for pps in pps.iter().map(|pps| trim(pps.as_ref())).filter(|pps| pps.len() >= 2) {
            kept.retain(|other| pps_id(other) != pps_id(pps));
            kept.push(Bytes::copy_from_slice(pps));
        }
        if kept.is_empty() {
            return Err(ParameterSetError::Missing("picture"));
        }
        if kept.len() > 255 || kept.iter().any(|pps| pps.len() > 0xffff) || sps.len() > 0xffff {
            return Err(ParameterSetError::TooLong);
        }
        let parsed = parse_sps(sps)?;
        let (width, height) = parsed
            .pixel_dimensions()
            .ok()
            .and_then(|(w, h)| Some((u16::try_from(w).ok()?, u16::try_from(h).ok()?)))
            .filter(|&(w, h)| w > 0 && h > 0)
            .ok_or_else(|| ParameterSetError::Sps("impossible picture size".into()))?;
        let chroma = &parsed.chroma_info;
        Ok(Self {
            width,
            height,
            frame_ms: parsed.fps().filter(|fps| (0.1..=240.0).contains(fps)).map(|fps| (1000.0 / fps) as u32),
            chroma: [
                chroma.chroma_format.to_u32() as u8,
                chroma.bit_depth_luma_minus8,
                chroma.bit_depth_chroma_minus8,
            ],
            reordering: reordering(&parsed),
            sps: Bytes::copy_from_slice(sps),
            pps: kept,
        })
    }

    /// From the SDP's `sprop-parameter-sets` (RFC 6184 §8.1): base64, separated by commas.
    ///
    /// # Errors
    /// As [`ParameterSets::new`], and when it is not base64.
    pub fn from_sprop(value: &str) -> Result<Self, ParameterSetError> {
        use base64::Engine as _;
        use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
        // Padding is missing or doubled in some cameras' answers.
        const LENIENT: GeneralPurpose = GeneralPurpose::new(
            &base64::alphabet::STANDARD,
            GeneralPurposeConfig::new()
                .with_decode_padding_mode(DecodePaddingMode::Indifferent)
                .with_decode_allow_trailing_bits(true),
        );
        let (mut sps, mut pps) = (None, Vec::new());
        for set in value.split(',').map(str::trim).filter(|set| !set.is_empty()) {
            let nal = LENIENT.decode(set).map_err(|_| ParameterSetError::NotBase64)?;
            // A whole `Annex B` stream, or a start code in front, was seen too.
            for nal in super::annexb_nals(&nal) {
                match super::nal_type(nal) {
                    super::NAL_SPS => sps = Some(nal.to_vec()),
                    super::NAL_PPS => pps.push(nal.to_vec()),
                    _ => {}
                }
            }
        }
        Self::new(&sps.ok_or(ParameterSetError::Missing("sequence"))?, &pps)
    }

    /// The sequence parameter set, with its NAL header.
    pub fn sps(&self) -> &Bytes {
        &self.sps
    }

    /// The picture parameter sets, with their NAL headers.
    pub fn pps(&self) -> &[Bytes] {
        &self.pps
    }

    /// Visible width in pixels, after cropping.
    pub fn width(&self) -> u16 {
        self.width
    }

    /// Visible height in pixels, after cropping.
    pub fn height(&self) -> u16 {
        self.height
    }

    /// Time between two frames in milliseconds, where the SPS states it. Cameras often state nonsense.
    pub fn frame_ms(&self) -> Option<u32> {
        self.frame_ms
    }

    /// What is known about reordering.
    pub fn reordering(&self) -> Reordering {
        self.reordering
    }

    /// For MIME types: `avc1.` and profile, constraints and level in hex (RFC 6381 §3.3).
    pub fn codec(&self) -> String {
        format!("avc1.{:02X}{:02X}{:02X}", self.sps[1], self.sps[2], self.sps[3])
    }

    /// `AVCDecoderConfigurationRecord`, ISO/IEC 14496-15 §5.3.3.1, with the tail of the High profiles.
    pub fn avcc(&self) -> Vec<u8> {
        let mut out = vec![1, self.sps[1], self.sps[2], self.sps[3], 0xfc | 3, 0xe0 | 1];
        let mut put = |nal: &[u8]| {
            out.extend((nal.len() as u16).to_be_bytes()); // checked in `new`
            out.extend(nal);
        };
        put(&self.sps);
        let (first, rest) = self.pps.split_first().expect("`new` saw to one PPS at least");
        let first_at = 6 + 2 + self.sps.len();
        put(first);
        rest.iter().for_each(|pps| put(pps));
        out.insert(first_at, self.pps.len() as u8);
        if matches!(self.sps[1], 100 | 110 | 122 | 144 | 244) {
            out.extend([0xfc | self.chroma[0] & 3, 0xf8 | self.chroma[1] & 7, 0xf8 | self.chroma[2] & 7, 0]);
        }
        out
    }

    /// The same stream with a promise that no frame is reordered, so that decoders show each at once
    /// instead of filling their buffer first (H.264 E.2.1, `max_num_reorder_frames` 0).
    ///
    /// `None`: the SPS already says something, or cannot be changed safely. The promise is not ours to
    /// make: the caller must have reason to believe it (no B slice seen, no timestamp out of order) and
    /// must take it back, with a new initialisation segment, when it turns out false.
    pub fn without_reordering(&self) -> Option<Self> {
        if self.reordering != Reordering::Unstated {
            return None;
        }
        let mut sps = parse_sps(&self.sps).ok()?;
        let max_dec_frame_buffering = sps.max_num_ref_frames;
        sps.vui_parameters.get_or_insert_with(VuiParameters::default).bitstream_restrictions =
            Some(BitstreamRestrictions {
                motion_vectors_over_pic_boundaries_flag: true,
                // The values that E.2.1 infers when nothing is said.
                max_bytes_per_pic_denom: 2,
                max_bits_per_mb_denom: 1,
                log2_max_mv_length_horizontal: 15,
                log2_max_mv_length_vertical: 15,
                max_num_reorder_frames: 0,
                max_dec_frame_buffering,
            });
        let header = h264_reader::nal::NalHeader::new(self.sps[0]).ok()?;
        let changed = Self::new(&sps.to_vec_with_header(header), &self.pps).ok()?;
        // Written and read again it must be what was meant.
        (parse_sps(&changed.sps).ok()? == sps).then_some(changed)
    }
}

fn parse_sps(nal: &[u8]) -> Result<SeqParameterSet, ParameterSetError> {
    let bits = BitReader::new(ByteReader::skipping_h264_header(nal));
    SeqParameterSet::from_bits(bits).map_err(|error| ParameterSetError::Sps(format!("{error:?}")))
}

fn reordering(sps: &SeqParameterSet) -> Reordering {
    let stated = sps.vui_parameters.as_ref().and_then(|vui| vui.bitstream_restrictions.as_ref());
    match stated {
        Some(stated) if stated.max_num_reorder_frames == 0 => Reordering::Never,
        Some(stated) => Reordering::UpTo(stated.max_num_reorder_frames),
        // §8.2.1.3: with this type, output order is decoding order.
        None if matches!(sps.pic_order_cnt, PicOrderCntType::TypeTwo) => Reordering::Never,
        None => Reordering::Unstated,
    }
}

/// Without what follows the NAL unit: trailing zeros, or the next start code and whatever comes after it.
fn trim(nal: &[u8]) -> &[u8] {
    let end = super::find_start_code(nal).unwrap_or(nal.len());
    let end = nal[..end].iter().rposition(|&b| b != 0).map_or(0, |last| last + 1);
    &nal[..end]
}

/// `pic_parameter_set_id`, the first field of a PPS.
fn pps_id(nal: &[u8]) -> Option<u32> {
    super::read_ue(&nal[1..], 0).map(|(id, _)| id)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: size, profile, reordering and avcC of cameras' real parameter sets.
    #[test]
    fn facts_of_real_cameras() {
        let table = [
            // Dahua: High, trailing zeros on both.
            ("Z2QAHqwsaoLA9puCgIKgAAADACAAAAMD0IAA,aO4xshsA", "avc1.64001E", 704, 480),
            // GW: a start code left at the end of both.
            ("Z00AKpWoHgCJ+WbgICAgQAAAAAE=,aO48gAAAAAE=", "avc1.4D002A", 1920, 1080),
            // IPCAM: another nal_ref_idc.
            ("J00AII1qBQB5oQAAAwABAAADACiE,KO48gA==", "avc1.4D0020", 1280, 960),
            ("Z0IAKZY1QPAET8s3AQEBQAAAAwBAAAAHoQ==,aM4xsg==", "avc1.420029", 1920, 1080),
        ];
        for (sprop, codec, width, height) in table {
            let sets = ParameterSets::from_sprop(sprop).unwrap();
            assert_eq!((sets.codec().as_str(), sets.width(), sets.height()), (codec, width, height));
            let avcc = sets.avcc();
            assert_eq!(avcc[..6], [1, sets.sps()[1], sets.sps()[2], sets.sps()[3], 0xff, 0xe1]);
            let high = sets.sps()[1] == 100;
            let plain = 6 + 2 + sets.sps().len() + 1 + 2 + sets.pps()[0].len();
            assert_eq!(avcc.len(), plain + if high { 4 } else { 0 });
            if high {
                assert_eq!(avcc[plain..], [0xfd, 0xf8, 0xf8, 0]);
            }
            assert_ne!(sets.sps().last(), Some(&0));
        }
    }

    /// Goal: the promise of no reordering changes that and nothing else, and is made once only.
    #[test]
    fn without_reordering_changes_one_thing() {
        let before = ParameterSets::from_sprop("Z2QAHqwsaoLA9puCgIKgAAADACAAAAMD0IAA,aO4xshsA").unwrap();
        assert_eq!(before.reordering(), Reordering::Unstated);
        let after = before.without_reordering().unwrap();
        assert_eq!(after.reordering(), Reordering::Never);
        assert_eq!(
            (after.width(), after.height(), after.codec()),
            (before.width(), before.height(), before.codec())
        );
        assert_eq!(after.pps(), before.pps());
        assert_eq!(after.without_reordering(), None);
        let mut a = parse_sps(before.sps()).unwrap();
        let mut b = parse_sps(after.sps()).unwrap();
        let restrictions =
            |sps: &mut SeqParameterSet| sps.vui_parameters.as_mut().unwrap().bitstream_restrictions.take();
        assert_eq!((restrictions(&mut a), restrictions(&mut b).unwrap().max_num_reorder_frames), (None, 0));
        assert_eq!(a, b);
    }

    /// Goal: what cannot be used is refused by name.
    #[test]
    fn unusable_sets() {
        let none: &[&[u8]] = &[];
        let sps = ParameterSets::from_sprop("Z00AH5WoFAFuQA==,aO48gA==").unwrap().sps().clone();
        assert_eq!(ParameterSets::new(&sps, none), Err(ParameterSetError::Missing("picture")));
        assert_eq!(ParameterSets::new(&[], &[b"hh"]), Err(ParameterSetError::Missing("sequence")));
        assert!(matches!(ParameterSets::new(&[0x67, 1, 2, 3, 4], &[b"hh"]), Err(ParameterSetError::Sps(_))));
        assert_eq!(ParameterSets::from_sprop("?"), Err(ParameterSetError::NotBase64));
        assert_eq!(ParameterSets::from_sprop(""), Err(ParameterSetError::Missing("sequence")));
        for len in 0..sps.len() {
            let _ = ParameterSets::new(&sps[..len], &[b"\x68\xee\x3c\x80"]);
        }
    }
}
