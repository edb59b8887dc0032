//! A small FLAC encoder (RFC 9639), to store G.711 sound without loss in a form that browsers open.
//!
//! Mono, 16 bits, fixed predictors of order 0 to 4, one Rice partition, wasted bits: G.711 has 14 or 13
//! significant bits of 16, and decoded G.711 comes out smaller than the 16 bits suggest. Blocks of any size
//! up to [`MAX_BLOCK`], each a frame that is decoded by itself, as MP4 wants its samples.
//!
//! Not here: a decoder, stereo, linear prediction. The container is `mp4`.

/// The largest block, in samples.
pub const MAX_BLOCK: usize = 4096;

/// The smallest block but for the last one of a stream (RFC 9639 §8.2).
pub const MIN_BLOCK: usize = 16;

/// Encodes consecutive blocks of one stream.
#[derive(Clone, Debug)]
pub struct FlacEncoder {
    sample_rate: u32,
    next_sample: u64,
}

impl FlacEncoder {
    /// For mono sound of that rate, 1 to 1,048,575 Hz.
    pub fn new(sample_rate: u32) -> Self {
        Self { sample_rate, next_sample: 0 }
    }

    /// The STREAMINFO block's content, RFC 9639 §8.2, for a stream of such a rate: sizes and checksum unknown.
    pub fn stream_info(sample_rate: u32) -> [u8; 34] {
        let mut info = [0; 34];
        info[0..2].copy_from_slice(&(MIN_BLOCK as u16).to_be_bytes());
        info[2..4].copy_from_slice(&(MAX_BLOCK as u16).to_be_bytes());
        // 20 bits of sample rate, 3 of channels - 1, 5 of bits per sample - 1, 36 of total samples.
        let packed = u64::from(sample_rate & 0xf_ffff) << 44 | 15 << 36;
        info[10..18].copy_from_slice(&packed.to_be_bytes());
        info
    }

    /// Encodes one block as a frame. At most [`MAX_BLOCK`] samples are taken; an empty block gives an empty
    /// frame, which must not be stored.
    pub fn encode(&mut self, block: &[i16]) -> Vec<u8> {
        let block = &block[..block.len().min(MAX_BLOCK)];
        if block.is_empty() {
            return Vec::new();
        }
        let mut out = BitVec { bytes: Vec::with_capacity(block.len() + 24), pending: 0, pending_bits: 0 };
        self.put_header(&mut out, block.len());
        put_subframe(&mut out, block);
        out.align();
        let crc = crc16(&out.bytes);
        out.bytes.extend(crc.to_be_bytes());
        self.next_sample += block.len() as u64;
        out.bytes
    }

    /// Whether a frame is as it was written: its checksum is right.
    pub fn is_whole(frame: &[u8]) -> bool {
        frame.len() > 2 && crc16(frame) == 0
    }

    /// §9.1.
    fn put_header(&self, out: &mut BitVec, len: usize) {
        // Sync code, blocks of variable size.
        out.bytes.extend([0xff, 0xf9]);
        // Block size in 16 bits at the end of the header; sample rate here where there is a code for it.
        let rate_code = match self.sample_rate {
            8_000 => 4,
            16_000 => 5,
            22_050 => 6,
            24_000 => 7,
            32_000 => 8,
            44_100 => 9,
            48_000 => 10,
            96_000 => 11,
            _ => 0,
        };
        out.bytes.extend([0x70 | rate_code, 4 << 1]);
        put_coded_number(&mut out.bytes, self.next_sample & 0xf_ffff_ffff);
        out.bytes.extend(((len - 1) as u16).to_be_bytes());
        let crc = crc8(&out.bytes);
        out.bytes.push(crc);
    }
}

/// §9.2.
fn put_subframe(out: &mut BitVec, block: &[i16]) {
    let all = block.iter().fold(0, |bits, &sample| bits | sample);
    let first = i32::from(block[0]);
    if block.iter().all(|&sample| i32::from(sample) == first) {
        out.put(0, 8); // constant
        out.put(first as u32 & 0xffff, 16);
        return;
    }
    let wasted = all.trailing_zeros(); // not all are 0, so below 16
    let depth = 16 - wasted;
    let samples: Vec<i32> = block.iter().map(|&sample| i32::from(sample >> wasted)).collect();
    let plan = Plan::choose(&samples).filter(|plan| {
        plan.bits + plan.order as u64 * u64::from(depth) + 10 < samples.len() as u64 * u64::from(depth)
    });
    let kind = plan.as_ref().map_or(1, |plan| 8 | plan.order as u32); // verbatim or fixed
    out.put(kind << 1 | u32::from(wasted > 0), 8);
    if wasted > 0 {
        out.put(1, wasted); // unary: wasted - 1 zeros and a one
    }
    let mask = (1u32 << depth) - 1;
    let warm_up = plan.as_ref().map_or(samples.len(), |plan| plan.order);
    for &sample in &samples[..warm_up] {
        out.put(sample as u32 & mask, depth);
    }
    if let Some(plan) = plan {
        out.put(0, 6); // Rice parameters of four bits, one partition
        out.put(plan.parameter, 4);
        for residual in plan.residual {
            let (quotient, rest) = (residual >> plan.parameter, residual & ((1 << plan.parameter) - 1));
            out.put_zeros(quotient);
            out.put(1 << plan.parameter | rest, plan.parameter + 1);
        }
    }
}

/// Fixed predictors are of order 0 to 4.
const ORDERS: usize = 5;

/// One way to encode a block: what a fixed predictor leaves over, and the best Rice parameter for it.
struct Plan {
    order: usize,
    parameter: u32,
    /// Folded to unsigned, §9.2.7.
    residual: Vec<u32>,
    /// What the residual takes.
    bits: u64,
}

impl Plan {
    /// The predictor that leaves the least over, and for it the parameter that takes the fewest bits.
    fn choose(samples: &[i32]) -> Option<Plan> {
        let order = smallest_residual(samples)?;
        let mut residual = samples.to_vec();
        for done in 0..order {
            // The differences of the warm-up samples themselves are of no use.
            for at in (done + 1..residual.len()).rev() {
                residual[at] -= residual[at - 1];
            }
        }
        let residual: Vec<u32> =
            residual[order..].iter().map(|&value| (value << 1 ^ value >> 31).cast_unsigned()).collect();
        let cost = |parameter: u32| -> u64 {
            residual.iter().map(|&value| u64::from(value >> parameter) + 1 + u64::from(parameter)).sum()
        };
        // A residual that falls off as Rice codes want it has its best parameter near the mean's logarithm.
        let mean = residual.iter().map(|&value| u64::from(value)).sum::<u64>() / residual.len() as u64;
        let near = mean.max(1).ilog2();
        let (parameter, bits) = (near.saturating_sub(1)..=near + 1)
            .map(|parameter| parameter.min(14))
            .map(|parameter| (parameter, cost(parameter)))
            .min_by_key(|&(_, bits)| bits)?;
        Some(Plan { order, parameter, residual, bits })
    }
}

/// The order of the predictor with the smallest sum of differences, over the samples that all can predict;
/// none for a block that is too short for one.
fn smallest_residual(samples: &[i32]) -> Option<usize> {
    let mut sums = [0u64; ORDERS];
    for window in samples.windows(ORDERS) {
        let [a, b, c, d, e] = *window else { return None };
        let differences = [e, e - d, e - 2 * d + c, e - 3 * d + 3 * c - b, e - 4 * d + 6 * c - 4 * b + a];
        for (sum, difference) in sums.iter_mut().zip(differences) {
            *sum += u64::from(difference.unsigned_abs());
        }
    }
    let long_enough = samples.len() >= ORDERS;
    if !long_enough {
        return None;
    }
    (0..ORDERS).min_by_key(|&order| sums[order])
}

struct BitVec {
    bytes: Vec<u8>,
    /// Bits that do not fill a byte yet, the last one lowest; what is above them has been written.
    pending: u64,
    /// How many those are, below 8.
    pending_bits: u32,
}

impl BitVec {
    /// The lowest `count` bits of `value`, 32 at most.
    fn put(&mut self, value: u32, count: u32) {
        self.pending = self.pending << count | u64::from(value) & ((1 << count) - 1);
        self.pending_bits += count;
        while self.pending_bits >= 8 {
            self.pending_bits -= 8;
            self.bytes.push((self.pending >> self.pending_bits) as u8);
        }
    }

    fn put_zeros(&mut self, mut count: u32) {
        while count > 0 {
            let take = count.min(32);
            self.put(0, take);
            count -= take;
        }
    }

    fn align(&mut self) {
        if self.pending_bits > 0 {
            self.put(0, 8 - self.pending_bits);
        }
    }
}

/// §9.1.5: like UTF-8, up to 36 bits.
fn put_coded_number(out: &mut Vec<u8>, number: u64) {
    if number < 0x80 {
        out.push(number as u8);
        return;
    }
    // So many bytes follow the first, with 6 bits each; the first holds 6 - following more.
    let bits = u64::BITS - number.leading_zeros();
    let following = (1..=6).find(|&n| bits <= 6 * n + 6 - n).unwrap_or(6);
    out.push((0xff00u16 >> (following + 1)) as u8 | (number >> (6 * following)) as u8);
    for n in (0..following).rev() {
        out.push(0x80 | (number >> (6 * n)) as u8 & 0x3f);
    }
}

fn crc8(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ byte, |crc, _| if crc & 0x80 != 0 { crc << 1 ^ 0x07 } else { crc << 1 })
    })
}

fn crc16(bytes: &[u8]) -> u16 {
    static TABLE: [u16; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let mut crc = (byte as u16) << 8;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 0x8000 != 0 { crc << 1 ^ 0x8005 } else { crc << 1 };
                bit += 1;
            }
            table[byte] = crc;
            byte += 1;
        }
        table
    };
    bytes.iter().fold(0, |crc, &byte| crc << 8 ^ TABLE[usize::from((crc >> 8) as u8 ^ byte)])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: numbers of every length are coded as the standard's table says.
    #[test]
    fn coded_numbers() {
        let coded = |number| {
            let mut out = Vec::new();
            put_coded_number(&mut out, number);
            out
        };
        assert_eq!(coded(0x7f), [0x7f]);
        assert_eq!(coded(0x80), [0xc2, 0x80]);
        assert_eq!(coded(0x7ff), [0xdf, 0xbf]);
        assert_eq!(coded(0x800), [0xe0, 0xa0, 0x80]);
        assert_eq!(coded(0x1_0000), [0xf0, 0x90, 0x80, 0x80]);
        assert_eq!(coded(0xf_ffff_ffff), [0xfe, 0xbf, 0xbf, 0xbf, 0xbf, 0xbf, 0xbf]);
    }

    /// Goal: the checksums' published check values (RFC 9639 uses polynomials 0x07 and 0x8005, start 0).
    #[test]
    fn checksums() {
        assert_eq!(crc8(b"123456789"), 0xf4);
        assert_eq!(crc16(b"123456789"), 0xfee8);
    }

    /// Goal: silence costs next to nothing, and speech-like sound less than its 16 bits.
    #[test]
    fn sizes() {
        let mut encoder = FlacEncoder::new(8_000);
        assert!(encoder.encode(&[0; 320]).len() < 20);
        let tone: Vec<i16> = (0..320)
            .map(|n| {
                crate::g711::Law::Mu
                    .decode(crate::g711::Law::Mu.encode(((f64::from(n) * 0.3).sin() * 3000.0) as i16))
            })
            .collect();
        assert!(encoder.encode(&tone).len() < 400);
        assert!(encoder.encode(&[]).is_empty());
        assert_eq!(encoder.next_sample, 640);
        let frame = encoder.encode(&tone);
        assert!(FlacEncoder::is_whole(&frame) && !FlacEncoder::is_whole(&frame[..frame.len() - 1]));
        assert!(!FlacEncoder::is_whole(&[]));
    }
}
