//! The picture of the simulated camera: a place with life in it, under a clock, a name and a number.
//!
//! What a picture shows is a function of the camera's name, size and *frame number* alone: the frame
//! number says at what time it was taken ([`Timing`]), so that two processes, or one that was
//! restarted, draw the same picture for the same number. Pure, but for the buffers it keeps.
//!
//! ```text
//! ┌──────────────────────────────────────────────┐
//! │ ▌ Loading dock      2026-01-31 12:00:00.4 UTC│  name and clock
//! │                                              │
//! │   a place: light, things that stand, things  │
//! │   that move                                  │
//! │                                              │
//! │ FRAME 1234567      ▐█ █▐ ▌█ strip ▌█▐█▐▌ █▐  │  number as text, number as blocks
//! └──────────────────────────────────────────────┘
//! ```

pub mod canvas;
mod font;
mod light;
mod places;

pub use places::Place;

use crate::strip;
use canvas::{Canvas, Grain, Rgb, rect, text_width};
use jiff::{Timestamp, tz::TimeZone};
use light::{DAY_S, Light};
use places::View;

/// When frame number 0 was due: 2026-01-01T00:00:00Z, in milliseconds of Unix time.
///
/// At 8 frames per second the 32-bit number lasts until the year 2043.
pub const EPOCH_MS: i64 = 1_767_225_600_000;

/// How often the background is painted anew, in seconds; the light changes no faster than that.
const BACKGROUND_S: u64 = 2;

/// Width of a column of the overlay's font, in points.
const DOT: f32 = 2.0;

/// Which frame is due when: frame `n` is due `n / fps` seconds after [`EPOCH_MS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Frames per second.
    pub fps: u32,
}

impl Timing {
    /// When a frame is due, in microseconds of Unix time.
    pub fn due_us(self, frame: u32) -> i64 {
        EPOCH_MS * 1000 + (i64::from(frame) * 1_000_000).div_euclid(i64::from(self.fps.max(1)))
    }

    /// The latest frame that is due at a time (microseconds of Unix time).
    pub fn frame_at(self, unix_us: i64) -> u32 {
        let since = (unix_us - EPOCH_MS * 1000).max(0);
        (i128::from(since) * i128::from(self.fps) / 1_000_000) as u32
    }
}

/// Draws one camera's pictures.
#[derive(Debug)]
pub struct Scene {
    name: String,
    place: Place,
    timing: Timing,
    seed: u32,
    hue: f32,
    grain: Grain,
    background: Canvas,
    /// Which stretch of [`BACKGROUND_S`] seconds the background was painted for.
    painted: Option<u64>,
    picture: Canvas,
}

impl Scene {
    /// A camera of this name that looks at this place, or, without one, at a place chosen by its name.
    /// Sizes are in pixels, even.
    pub fn new(name: &str, place: Option<Place>, width: usize, height: usize, timing: Timing) -> Scene {
        // FNV-1a: the same name has the same colours in every version and on every machine.
        let seed = name
            .bytes()
            .fold(0x811C_9DC5u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        let canvas = Canvas::new(width, height);
        Scene {
            name: name.to_owned(),
            place: place.unwrap_or(Place::ALL[seed as usize / 7 % 4]),
            timing,
            seed,
            hue: (seed >> 8 & 0xFFFF) as f32 / 65536.0,
            grain: Grain::new(canvas.width(), GRAIN),
            picture: canvas.clone(),
            background: canvas,
            painted: None,
        }
    }

    /// Draws the picture with this number.
    pub fn draw(&mut self, frame: u32) -> &Canvas {
        let due_us = self.timing.due_us(frame);
        let stretch = due_us as u64 / (BACKGROUND_S * 1_000_000);
        if self.painted != Some(stretch) {
            let view = self.view((stretch * BACKGROUND_S) as f64);
            places::paint_set(self.place, &mut self.background, &view);
            self.painted = Some(stretch);
        }
        self.picture.copy_from(&self.background);
        let view = self.view(due_us as f64 / 1e6);
        places::paint_life(self.place, &mut self.picture, &view);
        self.picture.grain(&self.grain, frame);
        self.overlay(frame, due_us);
        &self.picture
    }

    /// The view at a time (seconds of Unix time).
    fn view(&self, unix_s: f64) -> View {
        let part = (unix_s / DAY_S + f64::from(self.seed & 0xFFFF) / 65536.0).rem_euclid(1.0);
        View {
            light: Light::at(part as f32),
            seed: self.seed & 0xFFFF,
            hue: self.hue,
            time: unix_s.rem_euclid(86_400.0) as f32,
        }
    }

    fn overlay(&mut self, frame: u32, due_us: i64) {
        let (white, accent) = (Rgb::hex(0xFFFFFF), Rgb::hsl(self.hue, 0.75, 0.6));
        let picture = &mut self.picture;
        let width = picture.points();
        picture.fill(rect(0.0, 0.0, width, 26.0), Rgb::hex(0x0B0F16), 0.72);
        picture.fill(rect(0.0, 0.0, 4.0, 26.0), accent, 1.0);
        let clock = clock(due_us);
        let clock_x = width - text_width(&clock, DOT) - 6.0;
        let room = ((clock_x - 24.0) / text_width(" ", DOT)).max(0.0) as usize;
        picture.text((14.0, 6.0), DOT, &self.name.chars().take(room).collect::<String>(), white);
        picture.text((clock_x, 6.0), DOT, &clock, Rgb::hex(0xDCE3EE));

        let top = canvas::HEIGHT * 41.0 / 45.0;
        picture.fill(rect(0.0, top, width, canvas::HEIGHT - top), Rgb::hex(0x0B0F16), 1.0);
        picture.text((14.0, top + 9.0), DOT, &format!("FRAME {frame}"), Rgb::hex(0xDCE3EE));
        let (columns, rows) = (picture.width(), picture.height());
        strip::write(picture.luma_mut(), columns, rows, frame);
    }
}

/// Steps of luma by which the sensor's noise moves a pixel at most: what makes a real camera's
/// picture cost bits even when nothing moves.
const GRAIN: i8 = 5;

/// `2026-01-31 12:00:00.4 UTC`
fn clock(unix_us: i64) -> String {
    let time = Timestamp::from_microsecond(unix_us).unwrap_or(Timestamp::UNIX_EPOCH).to_zoned(TimeZone::UTC);
    let tenths = time.subsec_nanosecond() / 100_000_000;
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}.{tenths} UTC",
        time.year(),
        time.month(),
        time.day(),
        time.hour(),
        time.minute(),
        time.second()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TIMING: Timing = Timing { fps: 8 };

    #[test]
    fn the_number_is_in_the_picture_at_every_usual_size() {
        for (width, height) in [(640, 360), (320, 240), (1280, 720), (854, 480), (1920, 1080)] {
            let mut scene = Scene::new("Front door", None, width, height, TIMING);
            let picture = scene.draw(7_654_321);
            assert_eq!((picture.width(), picture.height()), (width, height));
            assert_eq!(strip::read(picture.planes()[0], width, height), Some(7_654_321), "{width}×{height}");
        }
    }

    #[test]
    fn a_picture_depends_on_name_and_number_alone() {
        let draw = |name: &str, frame: u32| Scene::new(name, None, 640, 360, TIMING).draw(frame).clone();
        let mut runs_on = Scene::new("Yard", None, 640, 360, TIMING);
        let _ = runs_on.draw(1000);
        assert_eq!(runs_on.draw(1001).planes(), draw("Yard", 1001).planes(), "after a restart");
        assert_ne!(draw("Yard", 1001).planes(), draw("Yard", 1002).planes(), "something moves");
        assert_ne!(draw("Yard", 1001).planes(), draw("Gate", 1001).planes(), "cameras differ");
    }

    #[test]
    fn the_clock_shows_utc_with_tenths() {
        assert_eq!(clock(EPOCH_MS * 1000 + 3_723_456_789), "2026-01-01 01:02:03.4 UTC");
        assert_eq!(TIMING.due_us(5), EPOCH_MS * 1000 + 625_000);
    }

    proptest! {
        #[test]
        fn frames_go_with_time(frame: u32, fps in 1u32..=60) {
            let timing = Timing { fps };
            prop_assert_eq!(timing.frame_at(timing.due_us(frame) + 1), frame);
        }
    }
}
