//! Where in a stream of RTP packets somebody may join: what begins a picture that needs no other.
//!
//! Looked at packet by packet, without putting pictures together: parameter sets and the first slice of a key picture
//! are told by the first bytes of a payload (RFC 6184 §5, RFC 7798 §4.4).
//!
//! Not here: decoding, and intra refresh, where there is no such picture.

use crate::h264::{NAL_IDR, NAL_SPS, nal_type};

/// How a stream's pictures are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    /// At an IDR picture, with the parameter sets before it.
    H264,
    /// At an IRAP picture, with the parameter sets before it.
    H265,
    /// At every packet: pictures that stand alone (JPEG), and encodings that are not looked into.
    Anywhere,
}

/// H.264 aggregation of NAL units, without decoding order number.
const STAP_A: u8 = 24;
/// H.264 fragment of a NAL unit.
const FU_A: u8 = 28;
/// H.265 intra random access points.
const IRAP: std::ops::RangeInclusive<u8> = 16..=21;
/// H.265 video and sequence parameter sets.
const PARAMETER_SETS: std::ops::RangeInclusive<u8> = 32..=33;
/// H.265 aggregation of NAL units.
const AP: u8 = 48;
/// H.265 fragment of a NAL unit.
const FU: u8 = 49;

impl Join {
    /// For an encoding name of an SDP, upper case.
    pub fn of_encoding(encoding: &str) -> Self {
        match encoding {
            "H264" => Self::H264,
            "H265" | "HEVC" => Self::H265,
            _ => Self::Anywhere,
        }
    }

    /// Whether an RTP payload belongs to the beginning of a picture that one can join at.
    pub fn is_key(self, payload: &[u8]) -> bool {
        match self {
            Self::Anywhere => true,
            Self::H264 => {
                let key = |nal: u8| matches!(nal, NAL_IDR | NAL_SPS);
                match nal_type(payload) {
                    STAP_A => units(&payload[1..]).any(|unit| key(nal_type(unit))),
                    FU_A => payload.get(1).is_some_and(|head| head & 0x80 != 0 && key(head & 0x1f)),
                    kind => key(kind),
                }
            }
            Self::H265 => {
                let key = |nal: u8| IRAP.contains(&nal) || PARAMETER_SETS.contains(&nal);
                let kind = |unit: &[u8]| unit.first().map_or(0, |head| head >> 1 & 0x3f);
                match kind(payload) {
                    AP => units(payload.get(2..).unwrap_or_default()).any(|unit| key(kind(unit))),
                    FU => payload.get(2).is_some_and(|head| head & 0x80 != 0 && key(head & 0x3f)),
                    kind => key(kind),
                }
            }
        }
    }
}

/// The NAL units of an aggregation, each with a 16-bit length before it.
fn units(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk::<2>()?;
        let (unit, after) = after.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        rest = after;
        Some(unit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Goal: key pictures and parameter sets are found in every packetisation, and nothing else is taken for one.
    #[test]
    fn beginnings() {
        for (payload, key) in [
            (&[0x65, 1][..], true),
            (&[0x67, 1], true),
            (&[0x41, 1], false),
            (&[0x06, 1], false),
            (&[0x7c, 0x85, 1], true),
            (&[0x7c, 0x45, 1], false),
            (&[0x7c, 0x81, 1], false),
            (&[0x78, 0, 1, 0x09, 0, 2, 0x67, 1], true),
            (&[0x78, 0, 1, 0x09, 0, 2, 0x41, 1], false),
            (&[0x78, 0, 9, 0x67], false),
            (&[], false),
        ] {
            assert_eq!(Join::H264.is_key(payload), key, "H.264 {payload:x?}");
        }
        for (payload, key) in [
            (&[0x26, 1, 0][..], true),
            (&[0x40, 1], true),
            (&[0x02, 1], false),
            (&[0x62, 1, 0x93], true),
            (&[0x62, 1, 0x13], false),
            (&[0x60, 1, 0, 2, 0x42, 1], true),
            (&[0x60, 1, 0, 2, 0x02, 1], false),
            (&[0x60], false),
        ] {
            assert_eq!(Join::H265.is_key(payload), key, "H.265 {payload:x?}");
        }
        assert!(Join::of_encoding("JPEG").is_key(&[]));
    }

    proptest! {
        /// Goal: no payload makes it panic.
        #[test]
        fn arbitrary_payloads(payload in proptest::collection::vec(any::<u8>(), 0..40)) {
            for join in [Join::H264, Join::H265, Join::Anywhere] {
                let _ = join.is_key(&payload);
            }
        }
    }
}
