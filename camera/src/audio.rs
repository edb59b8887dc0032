//! The sound of the simulated camera: a soft tone, another one every second, as G.711 µ-law.
//!
//! As with the pictures, what is heard is a function of the time alone: sample `p` is the one that is
//! due `p / 8000` seconds after [`crate::scene::EPOCH_MS`]. Pure.

use std::f32::consts::TAU;

/// Samples per second; the clock of the RTP timestamps.
pub const RATE_HZ: u64 = 8000;

/// Samples in one packet: 40 ms. Shorter packets cost a wake-up each at every hop.
pub const PACKET_SAMPLES: u64 = 320;

/// A pentatonic scale, so that any two tones that follow each other sound well. Hz.
const TONES_HZ: [f32; 8] = [261.6, 329.6, 392.0, 440.0, 523.3, 440.0, 392.0, 293.7];

/// Of full scale.
const VOLUME: f32 = 0.12;

/// Samples `start` to `start +` [`PACKET_SAMPLES`], in µ-law.
pub fn packet(start: u64) -> Vec<u8> {
    (start..start + PACKET_SAMPLES).map(|at| ulaw((sample(at) * 32_767.0) as i16)).collect()
}

/// One sample, −1.0 to 1.0.
fn sample(at: u64) -> f32 {
    let tone_hz = TONES_HZ[(at / RATE_HZ) as usize % TONES_HZ.len()];
    let t = (at % RATE_HZ) as f32 / RATE_HZ as f32;
    // Swells and fades within its second, so that no tone begins or ends with a click.
    let envelope = (t / 0.02).min(1.0) * ((1.0 - t) / 0.25).min(1.0);
    VOLUME * envelope * ((t * tone_hz * TAU).sin() + 0.25 * (t * tone_hz * 2.0 * TAU).sin())
}

/// ITU-T G.711, µ-law.
fn ulaw(linear: i16) -> u8 {
    const BIAS: i32 = 0x84;
    const CLIP: i32 = 32_635;
    let sign = if linear < 0 { 0x80 } else { 0 };
    let magnitude = i32::from(linear).abs().min(CLIP) + BIAS;
    // The position of the highest bit, which BIAS puts at 7 or above.
    let exponent = 24 - magnitude.leading_zeros() as i32;
    let mantissa = magnitude >> (exponent + 3) & 0x0F;
    !(sign | exponent << 4 | mantissa) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// G.711, table 2a: the ends of the scale, silence, and a value of each sign between.
    #[test]
    fn known_codes_of_mu_law() {
        for (linear, code) in
            [(0, 0xFF), (-1, 0x7F), (32_767, 0x80), (-32_768, 0x00), (1000, 0xCE), (-1000, 0x4E)]
        {
            assert_eq!(ulaw(linear), code, "{linear}");
        }
    }

    #[test]
    fn the_tone_changes_every_second_and_is_never_loud() {
        let second =
            |index: u64| -> Vec<f32> { (index * RATE_HZ..(index + 1) * RATE_HZ).map(sample).collect() };
        let crossings = |samples: &[f32]| samples.windows(2).filter(|w| w[0] < 0.0 && w[1] >= 0.0).count();
        for index in 0..16 {
            let samples = second(index);
            let expected = TONES_HZ[index as usize % TONES_HZ.len()];
            assert!((crossings(&samples) as f32 - expected).abs() < 3.0, "second {index}");
            assert!(samples.iter().all(|sample| sample.abs() < 0.2));
            assert!(samples.iter().any(|sample| sample.abs() > 0.05));
        }
        assert_eq!(packet(12_345 * PACKET_SAMPLES).len(), PACKET_SAMPLES as usize);
    }
}
