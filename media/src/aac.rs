//! AAC over RTP (RFC 3640, mode AAC-hbr) and what its configuration says.
//!
//! Not here: decoding, and the other modes of RFC 3640 (AAC-lbr, CELP), which cameras do not use.
//!
//! Invariant: each frame given out lay whole in one packet, or in consecutive packets without loss.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::rtp::{Arrival, Packet};

/// How access units lie in packets, and the decoder's configuration: from the SDP's `fmtp` line (RFC 3640 §4.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AacFormat {
    /// `AudioSpecificConfig`, ISO/IEC 14496-3 §1.6.2.1; passed to decoders as it came.
    pub config: Bytes,
    /// Samples per second, of the core codec.
    pub sample_rate: u32,
    /// Channels; 0 where the configuration leaves it to the stream.
    pub channels: u8,
    /// 2 is AAC-LC, what cameras send.
    pub object_type: u8,
    /// Samples per frame, 1024 or 960.
    pub frame_samples: u32,
    /// `sizelength`: bits of an AU header that hold the unit's size.
    pub size_bits: u8,
    /// `indexlength` and `indexdeltalength`: bits of an AU header after the size, in the first and the others.
    pub index_bits: (u8, u8),
}

/// Why an AAC stream cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AacError {
    /// The SDP has no `config`, or it is not hexadecimal.
    #[error("AAC without a usable config parameter")]
    NoConfig,
    /// The configuration uses reserved values.
    #[error("AAC configuration {0} makes no sense")]
    Config(String),
    /// AU headers larger than 32 bits, or empty.
    #[error("AAC AU headers of {0} + {1} bits")]
    HeaderBits(u8, u8),
}

/// ISO/IEC 14496-3 table 1.18.
const SAMPLE_RATES: [u32; 13] =
    [96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 7_350];

impl AacFormat {
    /// From the `AudioSpecificConfig`, with the AU header layout of AAC-hbr (13 + 3 bits).
    ///
    /// # Errors
    /// When the configuration is too short or uses reserved values.
    pub fn new(config: &[u8]) -> Result<Self, AacError> {
        let unusable =
            || AacError::Config(config.iter().take(16).map(|byte| format!("{byte:02x}")).collect());
        let mut at = 0;
        let mut bits = |count: usize| -> Result<u32, AacError> {
            let mut value = 0;
            for _ in 0..count {
                let byte = config.get(at / 8).ok_or_else(unusable)?;
                value = value << 1 | u32::from(byte >> (7 - at % 8) & 1);
                at += 1;
            }
            Ok(value)
        };
        let object_type = match bits(5)? {
            31 => 32 + bits(6)?,
            kind => kind,
        };
        let sample_rate = match bits(4)? {
            15 => bits(24)?,
            index => *SAMPLE_RATES.get(index as usize).ok_or_else(unusable)?,
        };
        let channels = bits(4)?;
        // GASpecificConfig begins with frameLengthFlag; only for the types that have one.
        let is_short = matches!(object_type, 1..=4) && bits(1)? == 1;
        if object_type == 0 || sample_rate == 0 || channels > 7 {
            return Err(unusable());
        }
        Ok(Self {
            config: Bytes::copy_from_slice(config),
            sample_rate,
            channels: if channels == 7 { 8 } else { channels as u8 },
            object_type: object_type as u8,
            frame_samples: if is_short { 960 } else { 1024 },
            size_bits: 13,
            index_bits: (3, 3),
        })
    }

    /// For MIME types: `mp4a.40.` and the object type (RFC 6381 §3.3).
    pub fn codec(&self) -> String {
        format!("mp4a.40.{}", self.object_type)
    }
}

/// One AAC frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AacFrame {
    /// RTP time of its first sample, in samples, wrapping.
    pub timestamp: u32,
    /// A raw data block, without ADTS header.
    pub data: Bytes,
}

/// Frames out of packets.
#[derive(Debug)]
pub struct AacDepacketizer {
    format: AacFormat,
    ready: VecDeque<AacFrame>,
    arena: BytesMut,
    /// Size, time and so far collected bytes (in the arena) of a unit that spans packets.
    fragment: Option<(usize, u32)>,
    malformed_packets: u64,
}

/// More units than any packet holds.
const MAX_UNITS: usize = 64;

/// Frames share buffers of this size.
const ARENA_BYTES: usize = 16 * 1024;

impl AacDepacketizer {
    /// For a stream of that format.
    ///
    /// # Errors
    /// When the AU headers cannot be read with it.
    pub fn new(format: AacFormat) -> Result<Self, AacError> {
        let widest = format.index_bits.0.max(format.index_bits.1);
        if format.size_bits == 0 || format.size_bits > 16 || widest > 16 {
            return Err(AacError::HeaderBits(format.size_bits, widest));
        }
        Ok(Self {
            format,
            ready: VecDeque::new(),
            arena: BytesMut::new(),
            fragment: None,
            malformed_packets: 0,
        })
    }

    /// Packets that contradict RFC 3640, so far.
    pub fn malformed_packets(&self) -> u64 {
        self.malformed_packets
    }

    /// Takes the next packet.
    pub fn push(&mut self, packet: &Packet, arrival: Arrival) {
        match arrival {
            Arrival::Stale => return,
            Arrival::InOrder => {}
            Arrival::AfterLoss(_) | Arrival::Restarted => self.abandon_fragment(),
        }
        if self.take_payload(packet).is_none() {
            self.malformed_packets += 1;
            self.abandon_fragment();
        }
    }

    /// The next frame.
    pub fn pop(&mut self) -> Option<AacFrame> {
        self.ready.pop_front()
    }

    fn abandon_fragment(&mut self) {
        if self.fragment.take().is_some() {
            self.arena.clear();
        }
    }

    /// RFC 3640 §3.2: the length of all AU headers in bits, the headers, the units. `None`: contradictory.
    fn take_payload(&mut self, packet: &Packet) -> Option<()> {
        let (length, rest) = packet.payload.split_first_chunk::<2>()?;
        let header_bits = usize::from(u16::from_be_bytes(*length));
        let (headers, mut data) = rest.split_at_checked(header_bits.div_ceil(8))?;
        let mut at = 0;
        let mut timestamp = packet.timestamp;
        for unit in 0..MAX_UNITS {
            let index_bits =
                usize::from(if unit == 0 { self.format.index_bits.0 } else { self.format.index_bits.1 });
            let size_bits = usize::from(self.format.size_bits);
            if at + size_bits + index_bits > header_bits {
                // Less than a header is left; none at all is a packet without units.
                return (unit > 0 && data.is_empty()).then_some(());
            }
            let size = read_bits(headers, at, size_bits)?;
            let skipped = read_bits(headers, at + size_bits, index_bits)?;
            if unit > 0 && skipped != 0 {
                return None; // interleaved units
            }
            at += size_bits + index_bits;
            if unit == 0 && size > data.len() {
                return self.take_fragment(size, timestamp, data, packet.marker);
            }
            self.abandon_fragment();
            let (frame, after) = data.split_at_checked(size)?;
            if !frame.is_empty() {
                self.append(frame);
                self.ready.push_back(AacFrame { timestamp, data: self.arena.split().freeze() });
            }
            timestamp = timestamp.wrapping_add(self.format.frame_samples);
            data = after;
        }
        None
    }

    /// A unit larger than its packet: its header comes again in each packet, the marker ends it (§3.1).
    fn take_fragment(&mut self, size: usize, timestamp: u32, data: &[u8], is_last: bool) -> Option<()> {
        if self.fragment != Some((size, timestamp)) {
            self.abandon_fragment();
            self.fragment = Some((size, timestamp));
        }
        self.append(data);
        if self.arena.len() > size || is_last && self.arena.len() != size {
            return None;
        }
        if self.arena.len() == size {
            self.fragment = None;
            self.ready.push_back(AacFrame { timestamp, data: self.arena.split().freeze() });
        }
        Some(())
    }

    fn append(&mut self, bytes: &[u8]) {
        if self.arena.capacity() == 0 {
            self.arena = BytesMut::with_capacity(ARENA_BYTES);
        }
        self.arena.extend_from_slice(bytes);
    }
}

fn read_bits(bytes: &[u8], at: usize, count: usize) -> Option<usize> {
    (at..at + count).try_fold(0, |value, at| {
        let byte = bytes.get(at / 8)?;
        Some(value << 1 | usize::from(byte >> (7 - at % 8) & 1))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet(sequence: u16, marker: bool, payload: &[u8]) -> Packet {
        Packet {
            marker,
            payload_type: 97,
            sequence,
            timestamp: 5000,
            ssrc: 1,
            payload: Bytes::copy_from_slice(payload),
        }
    }

    fn depacketizer() -> AacDepacketizer {
        AacDepacketizer::new(AacFormat::new(&[0x14, 0x08]).unwrap()).unwrap()
    }

    fn frames(depacketizer: &mut AacDepacketizer) -> Vec<(u32, Vec<u8>)> {
        std::iter::from_fn(|| depacketizer.pop())
            .map(|frame| (frame.timestamp, frame.data.to_vec()))
            .collect()
    }

    /// Goal: the configurations of the captured cameras.
    #[test]
    fn configurations() {
        let facts = |config: &[u8]| AacFormat::new(config).map(|f| (f.sample_rate, f.channels, f.codec()));
        assert_eq!(facts(&[0x14, 0x08]), Ok((16_000, 1, "mp4a.40.2".into())));
        assert_eq!(facts(&[0x11, 0x90, 0x56, 0xe5, 0x00]), Ok((48_000, 2, "mp4a.40.2".into())));
        assert_eq!(facts(&[0x14, 0x90]), Ok((12_000, 2, "mp4a.40.2".into())));
        assert_eq!(AacFormat::new(&[0x14, 0x0c]).unwrap().frame_samples, 960);
        assert_eq!(facts(&[0x16, 0x88]), Err(AacError::Config("1688".into())));
        assert_eq!(facts(&[0x14]), Err(AacError::Config("14".into())));
    }

    /// Goal: one unit, several units, and a unit over several packets.
    #[test]
    fn units() {
        let mut aac = depacketizer();
        aac.push(&packet(1, true, &[0, 16, 0, 3 << 3, 1, 2, 3]), Arrival::InOrder);
        assert_eq!(frames(&mut aac), [(5000, vec![1, 2, 3])]);
        aac.push(&packet(2, true, &[0, 32, 0, 2 << 3, 0, 1 << 3, 1, 2, 3]), Arrival::InOrder);
        assert_eq!(frames(&mut aac), [(5000, vec![1, 2]), (6024, vec![3])]);
        aac.push(&packet(3, false, &[0, 16, 0, 5 << 3, 1, 2]), Arrival::InOrder);
        aac.push(&packet(4, true, &[0, 16, 0, 5 << 3, 3, 4, 5]), Arrival::InOrder);
        assert_eq!(frames(&mut aac), [(5000, vec![1, 2, 3, 4, 5])]);
        aac.push(&packet(5, false, &[0, 16, 0, 5 << 3, 1, 2]), Arrival::InOrder);
        aac.push(&packet(7, true, &[0, 16, 0, 1 << 3, 9]), Arrival::AfterLoss(1));
        assert_eq!(frames(&mut aac), [(5000, vec![9])]);
        assert_eq!(aac.malformed_packets(), 0);
    }

    /// Goal: sizes that do not fit are counted and cost their packet.
    #[test]
    fn lying_sizes() {
        let lies: [&[u8]; 7] = [
            &[],
            &[0],
            &[0xff, 0xff, 1, 2],
            &[0, 0, 1],
            &[0, 32, 0, 1 << 3, 0, 9 << 3, 1],
            &[0, 16, 0, 1 << 3, 1, 2],
            &[0, 32, 0, 1 << 3, 0, 1 << 3 | 1, 1, 2],
        ];
        for lie in lies {
            let mut aac = depacketizer();
            aac.push(&packet(1, true, lie), Arrival::InOrder);
            assert_eq!(aac.malformed_packets(), 1, "{lie:?}");
            frames(&mut aac);
            aac.push(&packet(2, true, &[0, 16, 0, 1 << 3, 7]), Arrival::InOrder);
            assert_eq!(frames(&mut aac), [(5000, vec![7])], "{lie:?}");
        }
    }

    proptest! {
        /// Goal: any bytes, no panic, bounded memory.
        #[test]
        fn arbitrary_payloads(payloads in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..60), any::<bool>()), 0..20)) {
            let mut aac = depacketizer();
            for (payload, marker) in payloads {
                aac.push(&packet(1, marker, &payload), Arrival::InOrder);
                prop_assert!(aac.arena.len() < 8192);
                frames(&mut aac);
            }
        }
    }
}
