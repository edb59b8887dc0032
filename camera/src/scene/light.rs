//! Day and night: what the light is at a moment, and the sky that it comes from.
//!
//! A day lasts twelve minutes here, so that an hour of recordings has mornings and nights in it to
//! look for on a timeline. Cameras are spread over the day by their name.

use super::canvas::{Canvas, Rgb, rect};
use std::f32::consts::TAU;

/// Seconds from one sunrise to the next.
pub const DAY_S: f64 = 720.0;

/// Part of it between sunrise and sunset: summer, since more is to be seen by day.
const DAYLIGHT: f32 = 0.68;

/// The light at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Light {
    /// Height of the sun, −1.0 (midnight) to 1.0 (noon).
    elevation: f32,
    /// Part of the arc that sun or moon has passed, 0.0 (rises) to 1.0 (sets).
    arc: f32,
    /// 0.0 at night, 1.0 by day.
    pub day: f32,
    /// How much of the light comes from a low sun.
    warm: f32,
    /// What a white wall looks like.
    ambient: Rgb,
}

impl Light {
    /// The light when this part (0.0 to 1.0) of the time from one sunrise to the next has passed.
    pub fn at(passed: f32) -> Light {
        // As the sun goes: 0.0 midnight, 0.25 sunrise, 0.5 noon, 0.75 sunset.
        let part = if passed < DAYLIGHT {
            0.25 + 0.5 * passed / DAYLIGHT
        } else {
            0.75 + 0.5 * (passed - DAYLIGHT) / (1.0 - DAYLIGHT)
        };
        let elevation = ((part - 0.25) * TAU).sin();
        let day = smooth(-0.3, 0.35, elevation);
        let warm = (-(elevation / 0.28).powi(2)).exp();
        let ambient = Rgb::hex(0x4A5C8C).mix(Rgb::hex(0xFFFFFF), day).mix(Rgb::hex(0xFFB482), warm * 0.45);
        let arc = ((part - 0.25).rem_euclid(1.0) * 2.0).fract();
        Light { elevation, arc, day, warm, ambient }
    }

    /// How much artificial light there is, 0.0 by day to 1.0 at night.
    pub fn lamps(&self) -> f32 {
        smooth(0.62, 0.25, self.day)
    }

    /// A surface's colour in this light.
    pub fn on(&self, colour: Rgb) -> Rgb {
        colour.lit(self.ambient)
    }

    /// The same, with the haze of a distance: 0.0 near to 1.0 at the horizon.
    pub fn far(&self, colour: Rgb, distance: f32) -> Rgb {
        self.on(colour).mix(self.low(), distance)
    }

    /// The sky overhead.
    fn top(&self) -> Rgb {
        Rgb::hex(0x0A1230).mix(Rgb::hex(0x3D85CF), self.day).mix(Rgb::hex(0x54508C), self.warm * 0.55)
    }

    /// The sky at the horizon.
    pub fn low(&self) -> Rgb {
        Rgb::hex(0x26335F).mix(Rgb::hex(0xCBE4F2), self.day).mix(Rgb::hex(0xFFAA66), self.warm * 0.8)
    }

    /// Paints sky, stars, sun or moon down to the horizon.
    pub fn paint_sky(&self, canvas: &mut Canvas, horizon: f32) {
        let width = canvas.points();
        let everything = rect(0.0, 0.0, width, horizon);
        let (top, low) = (self.top(), self.low());
        canvas.blend_rows(everything, |y| top.mix(low, (y / horizon).powf(1.4)), |_, _, _| 1.0);

        let stars = smooth(0.35, 0.05, self.day);
        for index in 0..70 {
            let (x, y) = (random(7, index) * width, 24.0 + random(8, index) * (horizon - 60.0));
            let bright = stars * (0.25 + 0.7 * random(9, index)) * (1.0 - y / horizon);
            if bright > 0.02 {
                canvas.circle((x, y), 0.6 + 0.7 * random(10, index), Rgb::hex(0xF4F6FF), bright);
            }
        }

        let place =
            |height: f32| (width * (0.12 + 0.76 * self.arc), horizon + 20.0 - height * (horizon - 45.0));
        if self.elevation > -0.2 {
            let at = place(self.elevation);
            let disc = Rgb::hex(0xFFF6DC).mix(Rgb::hex(0xFFC46B), self.warm);
            canvas.glow(at, (150.0, 130.0), disc, 0.55);
            canvas.circle(at, 15.0, disc, 1.0);
        } else {
            let at = place(-self.elevation * 0.9);
            canvas.glow(at, (80.0, 80.0), Rgb::hex(0xC6D4FF), 0.35);
            canvas.circle(at, 11.0, Rgb::hex(0xE9ECF7), 1.0);
            for (dx, dy, radius) in [(-3.0, -2.0, 2.6), (4.0, 3.0, 2.0), (1.0, -6.0, 1.4)] {
                canvas.circle((at.0 + dx, at.1 + dy), radius, Rgb::hex(0xC5CBDF), 0.8);
            }
        }
    }
}

/// 0.0 up to the first edge, 1.0 from the second one, smooth between them. The edges may be swapped.
pub fn smooth(from: f32, to: f32, value: f32) -> f32 {
    let t = ((value - from) / (to - from)).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

/// A number from 0.0 to 1.0, always the same for the same arguments.
pub fn random(seed: u32, index: u32) -> f32 {
    let mut x = seed.wrapping_mul(0x9E37_79B1) ^ index.wrapping_mul(0x85EB_CA77) ^ 0x27D4_EB2F;
    x = (x ^ x >> 15).wrapping_mul(0x2C1B_3C6D);
    x = (x ^ x >> 12).wrapping_mul(0x297A_2D39);
    (x >> 8) as f32 / (1 << 24) as f32
}
