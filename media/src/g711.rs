//! G.711 (ITU-T), the telephone codec that cameras use for sound: tables both ways.
//!
//! Not here: RTP (the payload is the samples, RFC 3551 §4.5.14) and storage, for which see `flac`: browsers
//! and players refuse G.711 in MP4.

/// Which of the two companding laws.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Law {
    /// PCMU, North America and Japan; RTP payload type 0.
    Mu,
    /// PCMA, elsewhere; RTP payload type 8.
    A,
}

impl Law {
    /// The 16-bit linear value of one byte.
    pub fn decode(self, byte: u8) -> i16 {
        let table = match self {
            Self::Mu => &MU,
            Self::A => &A,
        };
        table[usize::from(byte)]
    }

    /// Appends the linear values of a packet's payload.
    pub fn decode_into(self, payload: &[u8], out: &mut Vec<i16>) {
        out.extend(payload.iter().map(|&byte| self.decode(byte)));
    }

    /// The byte whose value is nearest to a linear sample.
    pub fn encode(self, sample: i16) -> u8 {
        match self {
            Self::Mu => {
                let sign = if sample < 0 { 0x00 } else { 0x80 };
                let biased = (i32::from(sample).abs() + 0x84).min(0x7fff);
                let exponent = 31 - (biased as u32 >> 7).leading_zeros(); // biased ≥ 132, so ≥ 1 after the shift
                let mantissa = biased >> (exponent + 3) & 0x0f;
                sign | (!(exponent << 4 | mantissa as u32) & 0x7f) as u8
            }
            Self::A => {
                let sign = if sample < 0 { 0x00 } else { 0x80 };
                // The negative half is mirrored at -1, G.711 table 1a.
                let magnitude = if sample < 0 { !sample } else { sample } as u32;
                let exponent = (magnitude >> 8).checked_ilog2().map_or(0, |log| log + 1);
                let mantissa = magnitude >> if exponent == 0 { 4 } else { exponent + 3 } & 0x0f;
                (sign | (exponent << 4 | mantissa) as u8) ^ 0x55
            }
        }
    }
}

static MU: [i16; 256] = mu_table();
static A: [i16; 256] = a_table();

const fn mu_table() -> [i16; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let inverted = !byte & 0xff;
        let (exponent, mantissa) = (inverted >> 4 & 7, inverted & 0x0f);
        let magnitude = (((mantissa << 3) + 0x84) << exponent) - 0x84;
        table[byte as usize] = if inverted & 0x80 != 0 { -magnitude } else { magnitude } as i16;
        byte += 1;
    }
    table
}

const fn a_table() -> [i16; 256] {
    let mut table = [0; 256];
    let mut byte: i32 = 0;
    while byte < 256 {
        let plain = byte ^ 0x55;
        let (exponent, mantissa) = (plain >> 4 & 7, plain & 0x0f);
        let magnitude =
            if exponent == 0 { (mantissa << 4) + 8 } else { ((mantissa << 4) + 0x108) << (exponent - 1) };
        table[byte as usize] = if plain & 0x80 != 0 { magnitude } else { -magnitude } as i16;
        byte += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the corner values of G.711's tables.
    #[test]
    fn corner_values() {
        for (byte, value) in [(0x00, -32_124), (0x80, 32_124), (0x7f, 0), (0xff, 0), (0xfe, 8), (0xef, 132)] {
            assert_eq!(Law::Mu.decode(byte), value, "{byte:02x}");
        }
        for (byte, value) in [(0x55, -8), (0xd5, 8), (0x2a, -32_256), (0xaa, 32_256), (0x80, 5_504)] {
            assert_eq!(Law::A.decode(byte), value, "{byte:02x}");
        }
    }

    /// Goal: encoding finds the nearest value: exact for table values, within half a step for all others.
    #[test]
    fn encode_is_inverse() {
        for law in [Law::Mu, Law::A] {
            for byte in 0..=255u8 {
                let value = law.decode(byte);
                assert_eq!(law.decode(law.encode(value)), value, "{law:?} {byte:02x}");
            }
            for sample in i16::MIN..=i16::MAX {
                let error = (i32::from(law.decode(law.encode(sample))) - i32::from(sample)).abs();
                let allowed = 8 + i32::from(sample).abs() / 30;
                assert!(error <= allowed, "{law:?} {sample}: off by {error}");
            }
        }
    }
}
