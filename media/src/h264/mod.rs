//! H.264 over RTP (RFC 6184) and in MP4 (ISO/IEC 14496-15): parameter sets, packets to access units and back.
//!
//! An access unit here is one picture in AVCC form: each NAL unit with a four-byte length before it. Parameter
//! sets, delimiters and filler are not in it; they live in [`ParameterSets`] and so in the sample entry.
//!
//! Not here: decoding. Of a slice only its type is looked at.

mod depacketize;
mod packetize;
mod params;

pub use depacketize::{AccessUnit, Counters, Depacketizer, MAX_ACCESS_UNIT_BYTES};
pub use packetize::Packetizer;
pub use params::{ParameterSetError, ParameterSets, Reordering};

/// Coded slice of a picture that refers to others, `nal_unit_type`, H.264 table 7-1.
pub const NAL_SLICE: u8 = 1;
/// Coded slice of an instantaneous decoder refresh picture: a key frame.
pub const NAL_IDR: u8 = 5;
/// Supplemental enhancement information.
pub const NAL_SEI: u8 = 6;
/// Sequence parameter set.
pub const NAL_SPS: u8 = 7;
/// Picture parameter set.
pub const NAL_PPS: u8 = 8;
/// Access unit delimiter.
pub const NAL_DELIMITER: u8 = 9;
/// End of sequence (10), of stream (11), filler data (12): of no use in a file.
const NAL_FILLER: u8 = 12;

/// The type of a NAL unit by its header byte; 0 when it is empty.
pub fn nal_type(nal: &[u8]) -> u8 {
    nal.first().map_or(0, |header| header & 0x1f)
}

/// The NAL units of a byte stream with start codes (H.264 annex B), without trailing zeros. Bytes before the
/// first start code are a NAL unit too.
pub fn annexb_nals(mut stream: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        while !stream.is_empty() {
            let (nal, rest) = match find_start_code(stream) {
                Some(at) => (&stream[..at], &stream[at + 3..]),
                None => (stream, &stream[stream.len()..]),
            };
            stream = rest;
            let end = nal.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1);
            if end > 0 {
                return Some(&nal[..end]);
            }
        }
        None
    })
}

/// Whether a sample in AVCC form is whole: its lengths add up exactly. Tells a torn write from a good one.
pub fn is_avcc(mut sample: &[u8]) -> bool {
    while !sample.is_empty() {
        let Some((length, rest)) = sample.split_first_chunk::<4>() else { return false };
        let length = u32::from_be_bytes(*length) as usize;
        if length == 0 || length > rest.len() || rest[0] & 0x80 != 0 {
            return false;
        }
        sample = &rest[length..];
    }
    true
}

fn find_start_code(bytes: &[u8]) -> Option<usize> {
    bytes.windows(3).position(|window| window == [0, 0, 1])
}

/// Whether a slice is bidirectionally predicted (type 1 or 6, H.264 table 7-6): a sign that output order
/// differs from decoding order.
fn is_b_slice(nal: &[u8]) -> bool {
    let Some(body) = nal.get(1..) else { return false };
    let slice_type = read_ue(body, 0).and_then(|(_, at)| read_ue(body, at));
    matches!(slice_type, Some((1 | 6, _)))
}

/// An unsigned Exp-Golomb value (§9.1) at a bit position, with the position after it. Only for the first few
/// bytes of a NAL unit, where no emulation prevention byte can be.
fn read_ue(bytes: &[u8], at: usize) -> Option<(u32, usize)> {
    let bit = |at: usize| bytes.get(at / 8).map(|byte| byte >> (7 - at % 8) & 1);
    let mut zeros = 0;
    while bit(at + zeros)? == 0 {
        zeros += 1;
        if zeros > 24 {
            return None;
        }
    }
    let mut value = 1u32;
    for offset in 0..zeros {
        value = value << 1 | u32::from(bit(at + zeros + 1 + offset)?);
    }
    Some((value - 1, at + 2 * zeros + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: start codes of three and four bytes, in front or not, end NAL units.
    #[test]
    fn annexb() {
        let stream = [0, 0, 0, 1, 0x67, 1, 0, 0, 1, 0x68, 2, 0, 0, 0, 1, 0x65, 0, 3, 0, 0];
        let nals: Vec<&[u8]> = annexb_nals(&stream).collect();
        assert_eq!(nals, [&[0x67, 1][..], &[0x68, 2], &[0x65, 0, 3]]);
        assert_eq!(annexb_nals(&[0x67, 9]).collect::<Vec<_>>(), [&[0x67, 9]]);
        assert_eq!(annexb_nals(&[]).count(), 0);
        assert_eq!(annexb_nals(&[0, 0, 1, 0, 0, 1]).count(), 0);
    }

    /// Goal: a torn or zeroed sample is told from a whole one.
    #[test]
    fn avcc_shape() {
        assert!(is_avcc(&[0, 0, 0, 2, 0x65, 9, 0, 0, 0, 1, 0x41]));
        assert!(!is_avcc(&[0, 0, 0, 2, 0x65]));
        assert!(!is_avcc(&[0; 16]));
        assert!(!is_avcc(&[0, 0, 0]));
    }

    /// Goal: Exp-Golomb values and slice types.
    #[test]
    fn slice_types() {
        assert_eq!(read_ue(&[0b1000_0000], 0), Some((0, 1)));
        assert_eq!(read_ue(&[0b0010_1000], 0), Some((4, 5)));
        assert_eq!(read_ue(&[0; 8], 0), None);
        assert_eq!(read_ue(&[0b0010_0000], 3), None);
        // first_mb 0, slice_type 6 (B), 5 (P), 1 (B).
        assert!(is_b_slice(&[0x01, 0b1001_1100]));
        assert!(!is_b_slice(&[0x41, 0b1001_1000]));
        assert!(is_b_slice(&[0x01, 0b1010_0000]));
        assert!(!is_b_slice(&[0x01]));
    }
}
