//! A picture in YUV 4:2:0 and soft-edged shapes on it.
//!
//! Shapes are given in *points*: the picture is always 360 points high, so that a scene looks the same
//! at every size. Colours are given as RGB and kept as BT.709 with limited range, as the encoder
//! announces it. Invariant: nothing outside the picture is ever touched, whatever the coordinates.

use super::font;

/// Height of every picture in points.
pub const HEIGHT: f32 = 360.0;

/// A colour, each part 0.0 to 1.0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rgb(pub f32, pub f32, pub f32);

impl Rgb {
    /// From the usual `0xRRGGBB`.
    pub const fn hex(code: u32) -> Rgb {
        const fn part(code: u32, shift: u32) -> f32 {
            (code >> shift & 0xFF) as f32 / 255.0
        }
        Rgb(part(code, 16), part(code, 8), part(code, 0))
    }

    /// A colour of this hue (turns, 0.0 to 1.0), saturation and lightness.
    pub fn hsl(hue: f32, saturation: f32, lightness: f32) -> Rgb {
        let reach = saturation * lightness.min(1.0 - lightness);
        let part = |offset: f32| {
            let k = (offset + hue.rem_euclid(1.0) * 12.0) % 12.0;
            lightness - reach * (k - 3.0).min(9.0 - k).clamp(-1.0, 1.0)
        };
        Rgb(part(0.0), part(8.0), part(4.0))
    }

    /// Part of the way (0.0 to 1.0) to another colour.
    pub fn mix(self, other: Rgb, share: f32) -> Rgb {
        let part = |a: f32, b: f32| a + (b - a) * share.clamp(0.0, 1.0);
        Rgb(part(self.0, other.0), part(self.1, other.1), part(self.2, other.2))
    }

    /// As it looks in light of that colour.
    pub fn lit(self, light: Rgb) -> Rgb {
        Rgb((self.0 * light.0).min(1.0), (self.1 * light.1).min(1.0), (self.2 * light.2).min(1.0))
    }

    /// Luma and both chroma values, BT.709, limited range.
    fn yuv(self) -> [f32; 3] {
        let Rgb(r, g, b) = self;
        let luma = 0.2126 * r + 0.7152 * g + 0.0722 * b;
        [16.0 + 219.0 * luma, 128.0 + 224.0 * (b - luma) / 1.8556, 128.0 + 224.0 * (r - luma) / 1.5748]
    }
}

/// A rectangle in points.
#[derive(Clone, Copy, Debug)]
pub struct Rect {
    /// Left edge.
    pub x: f32,
    /// Top edge.
    pub y: f32,
    /// Width.
    pub w: f32,
    /// Height.
    pub h: f32,
}

/// Shorthand for a [`Rect`].
pub const fn rect(x: f32, y: f32, w: f32, h: f32) -> Rect {
    Rect { x, y, w, h }
}

/// A picture in YUV 4:2:0, planes without padding. Width and height are even.
#[derive(Clone, Debug)]
pub struct Canvas {
    width: usize,
    height: usize,
    /// Y, U, V.
    planes: [Vec<u8>; 3],
}

impl Canvas {
    /// A black picture. Odd sizes are rounded down to even ones.
    pub fn new(width: usize, height: usize) -> Canvas {
        let (width, height) = ((width & !1).max(2), (height & !1).max(2));
        let chroma = vec![128; width * height / 4];
        Canvas { width, height, planes: [vec![16; width * height], chroma.clone(), chroma] }
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Width in points.
    pub fn points(&self) -> f32 {
        self.width as f32 * HEIGHT / self.height as f32
    }

    /// The Y, U and V plane.
    pub fn planes(&self) -> [&[u8]; 3] {
        [&self.planes[0], &self.planes[1], &self.planes[2]]
    }

    /// The Y plane, to be written by other means than shapes.
    pub fn luma_mut(&mut self) -> &mut [u8] {
        &mut self.planes[0]
    }

    /// Becomes the other picture, which has the same size.
    pub fn copy_from(&mut self, other: &Canvas) {
        for (mine, theirs) in self.planes.iter_mut().zip(&other.planes) {
            mine.copy_from_slice(theirs);
        }
    }

    /// Blends a colour in. `coverage(x, y, size)` says how much of it (0.0 to 1.0) the sample at that
    /// point takes; `size` is the sample's edge in points, for soft edges.
    pub fn blend(&mut self, bounds: Rect, ink: Rgb, coverage: impl Fn(f32, f32, f32) -> f32) {
        self.blend_each(bounds, coverage, |_| ink);
    }

    /// As [`Canvas::blend`], the colour being a function of the height: one for each row of samples.
    pub fn blend_rows(
        &mut self,
        bounds: Rect,
        ink: impl Fn(f32) -> Rgb,
        coverage: impl Fn(f32, f32, f32) -> f32,
    ) {
        self.blend_each(bounds, coverage, ink);
    }

    fn blend_each(
        &mut self,
        bounds: Rect,
        coverage: impl Fn(f32, f32, f32) -> f32,
        ink: impl Fn(f32) -> Rgb,
    ) {
        let (width, height) = (self.width, self.height);
        let [luma, u, v] = &mut self.planes;
        for_each_sample(width, height, bounds, &coverage, &ink, |at, share, colour| {
            mix_into(&mut luma[at], colour[0], share);
        });
        for_each_sample(width / 2, height / 2, bounds, &coverage, &ink, |at, share, colour| {
            mix_into(&mut u[at], colour[1], share);
            mix_into(&mut v[at], colour[2], share);
        });
    }

    /// Fills a shape that is given by the signed distance (points, negative inside) to its edge.
    pub fn shape(&mut self, bounds: Rect, ink: Rgb, alpha: f32, distance: impl Fn(f32, f32) -> f32) {
        self.blend(bounds, ink, |x, y, size| alpha * (0.5 - distance(x, y) / size).clamp(0.0, 1.0));
    }

    /// A filled rectangle.
    pub fn fill(&mut self, area: Rect, ink: Rgb, alpha: f32) {
        self.rounded(area, 0.0, ink, alpha);
    }

    /// A filled rectangle with round corners.
    pub fn rounded(&mut self, area: Rect, radius: f32, ink: Rgb, alpha: f32) {
        let (half_w, half_h) = (area.w / 2.0, area.h / 2.0);
        let (cx, cy) = (area.x + half_w, area.y + half_h);
        self.shape(area, ink, alpha, |x, y| {
            let (dx, dy) = ((x - cx).abs() - half_w + radius, (y - cy).abs() - half_h + radius);
            length(dx.max(0.0), dy.max(0.0)) + dx.max(dy).min(0.0) - radius
        });
    }

    /// A filled ellipse.
    pub fn ellipse(&mut self, (cx, cy): (f32, f32), (rx, ry): (f32, f32), ink: Rgb, alpha: f32) {
        self.shape(rect(cx - rx, cy - ry, 2.0 * rx, 2.0 * ry), ink, alpha, |x, y| {
            (length((x - cx) / rx, (y - cy) / ry) - 1.0) * rx.min(ry)
        });
    }

    /// A filled circle.
    pub fn circle(&mut self, centre: (f32, f32), radius: f32, ink: Rgb, alpha: f32) {
        self.ellipse(centre, (radius, radius), ink, alpha);
    }

    /// A line with round ends.
    pub fn line(&mut self, from: (f32, f32), to: (f32, f32), thickness: f32, ink: Rgb, alpha: f32) {
        let half = thickness / 2.0;
        let (dx, dy) = (to.0 - from.0, to.1 - from.1);
        let square = (dx * dx + dy * dy).max(1e-6);
        let bounds = rect(
            from.0.min(to.0) - half,
            from.1.min(to.1) - half,
            dx.abs() + thickness,
            dy.abs() + thickness,
        );
        self.shape(bounds, ink, alpha, |x, y| {
            let along = (((x - from.0) * dx + (y - from.1) * dy) / square).clamp(0.0, 1.0);
            length(x - from.0 - along * dx, y - from.1 - along * dy) - half
        });
    }

    /// A filled convex polygon; its corners in the order in which a clock's hand passes them.
    pub fn convex(&mut self, corners: &[(f32, f32)], ink: Rgb, alpha: f32) {
        let reach = |part: fn(&(f32, f32)) -> f32| {
            let values = corners.iter().map(part);
            let least = values.clone().fold(f32::MAX, f32::min);
            (least, values.fold(f32::MIN, f32::max) - least)
        };
        let ((x, w), (y, h)) = (reach(|corner| corner.0), reach(|corner| corner.1));
        let edges = || corners.iter().zip(corners.iter().cycle().skip(1));
        self.shape(rect(x, y, w, h), ink, alpha, |x, y| {
            edges()
                .map(|(a, b)| {
                    let (ex, ey) = (b.0 - a.0, b.1 - a.1);
                    ((x - a.0) * ey - (y - a.1) * ex) / length(ex, ey).max(1e-6)
                })
                .fold(f32::MIN, f32::max)
        });
    }

    /// Everything below a line that is given by its height at each place.
    pub fn below(&mut self, bounds: Rect, ink: Rgb, top: impl Fn(f32) -> f32) {
        self.shape(bounds, ink, 1.0, |x, y| top(x) - y);
    }

    /// Light that fades to nothing at the radius.
    pub fn glow(&mut self, (cx, cy): (f32, f32), (rx, ry): (f32, f32), ink: Rgb, strength: f32) {
        if strength <= 0.01 {
            return;
        }
        self.blend(rect(cx - rx, cy - ry, 2.0 * rx, 2.0 * ry), ink, |x, y, _| {
            let near = 1.0 - length((x - cx) / rx, (y - cy) / ry);
            strength * near.max(0.0).powi(2)
        });
    }

    /// A line of text, its left top corner at `x`, `y`; a column of the font is `dot` points wide.
    pub fn text(&mut self, (x, y): (f32, f32), dot: f32, text: &str, ink: Rgb) {
        let glyphs: Vec<&font::Glyph> = text.chars().map(font::glyph).collect();
        let bounds = rect(x, y, text_width(text, dot), dot * font::ROWS as f32);
        self.blend(bounds, ink, |px, py, _| {
            let (column, row) = ((px - x) / dot, (py - y) / dot);
            if column < 0.0 || row < 0.0 || row >= font::ROWS as f32 {
                return 0.0;
            }
            let (index, column) = (column as usize / font::ADVANCE, column as usize % font::ADVANCE);
            match glyphs.get(index) {
                Some(glyph) if column < font::COLUMNS => {
                    f32::from(glyph[row as usize] >> (font::COLUMNS - 1 - column) & 1)
                }
                _ => 0.0,
            }
        });
    }

    /// What a camera's sensor adds: noise from a tile of a square power of two, shifted by frame.
    pub fn grain(&mut self, tile: &Grain, shift: u32) {
        let start = shift.wrapping_mul(0x9E37_79B1) as usize;
        for (row, line) in self.planes[0].chunks_exact_mut(self.width).enumerate() {
            let (above, offset) = (row.wrapping_mul(7919).wrapping_add(start), start >> 12);
            let noise = tile.line(above.wrapping_mul(613).wrapping_add(offset), line.len());
            for (pixel, noise) in line.iter_mut().zip(noise) {
                *pixel = pixel.saturating_add_signed(*noise);
            }
        }
    }
}

/// Visits the samples of a plane that a shape covers: index, share, colour as Y, U, V.
fn for_each_sample(
    columns: usize,
    rows: usize,
    bounds: Rect,
    coverage: impl Fn(f32, f32, f32) -> f32,
    ink: impl Fn(f32) -> Rgb,
    mut visit: impl FnMut(usize, f32, [f32; 3]),
) {
    let size = HEIGHT / rows as f32;
    let span = |start: f32, length: f32, limit: usize| {
        let first = (start / size - 1.0).floor().clamp(0.0, limit as f32) as usize;
        let last = ((start + length) / size + 1.0).ceil().clamp(0.0, limit as f32) as usize;
        first..last.max(first)
    };
    for row in span(bounds.y, bounds.h, rows) {
        let y = (row as f32 + 0.5) * size;
        let colour = ink(y).yuv();
        for column in span(bounds.x, bounds.w, columns) {
            let share = coverage((column as f32 + 0.5) * size, y, size);
            if share > 0.0 {
                visit(row * columns + column, share.min(1.0), colour);
            }
        }
    }
}

fn mix_into(sample: &mut u8, value: f32, share: f32) {
    let old = f32::from(*sample);
    *sample = (old + (value - old) * share + 0.5) as u8;
}

/// `f32::hypot` guards against overflow that cannot happen here, and takes ten times as long.
fn length(x: f32, y: f32) -> f32 {
    (x * x + y * y).sqrt()
}

/// Width of a line of text in points.
pub fn text_width(text: &str, dot: f32) -> f32 {
    (text.chars().count() * font::ADVANCE) as f32 * dot
}

/// Noise, made once.
#[derive(Debug)]
pub struct Grain(Vec<i8>);

impl Grain {
    /// For pictures up to `width` pixels wide; `amplitude` steps of luma up and down at most.
    pub fn new(width: usize, amplitude: i8) -> Grain {
        let mut state = 0x2545_F491u32;
        let mut next = || {
            // xorshift32: even enough for grain.
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 8) as i32 % (i32::from(amplitude) + 1)
        };
        // The difference of two even distributions: small values are the most frequent.
        Grain((0..width + 8192).map(|_| (next() - next()) as i8).collect())
    }

    fn line(&self, start: usize, length: usize) -> &[i8] {
        &self.0[start % (self.0.len() - length)..][..length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_outside_the_picture_and_of_odd_measures_touch_nothing_else() {
        let mut canvas = Canvas::new(65, 37);
        assert_eq!((canvas.width(), canvas.height()), (64, 36));
        let before = canvas.clone();
        let ink = Rgb::hex(0xFF8800);
        canvas.fill(rect(-500.0, -500.0, 100.0, 100.0), ink, 1.0);
        canvas.circle((1e9, 1e9), 5.0, ink, 1.0);
        canvas.line((9000.0, -3.0), (9000.0, 800.0), 2.0, ink, 1.0);
        canvas.text((700.0, 0.0), 2.0, "outside", ink);
        canvas.fill(rect(f32::NAN, 0.0, f32::INFINITY, 10.0), ink, 0.0);
        assert_eq!(canvas.planes(), before.planes());
    }

    #[test]
    fn colours_become_limited_range_bt709() {
        let mut canvas = Canvas::new(16, 16);
        for (code, expected) in
            [(0xFFFFFF, [235, 128, 128]), (0x000000, [16, 128, 128]), (0xFF0000, [63, 102, 240])]
        {
            canvas.fill(rect(-10.0, -10.0, 500.0, 500.0), Rgb::hex(code), 1.0);
            let [y, u, v] = canvas.planes();
            assert_eq!([y[100], u[20], v[20]], expected, "{code:06x}");
        }
    }
}
