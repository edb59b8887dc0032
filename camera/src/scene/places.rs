//! The four places that cameras look at: what stands there and what moves.
//!
//! Each has two halves: `*_set` paints what changes with the light only, once per background, and
//! `*_life` what moves, in every picture. Positions are functions of time: nothing is remembered
//! from picture to picture.

use super::canvas::{Canvas, Rect, Rgb, rect};
use super::light::{Light, random};
use serde::{Deserialize, Serialize};
use std::f32::consts::TAU;

/// What a camera looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// Shops, a pavement, a road with cars.
    Street,
    /// A quay with a crane, ships that pass, a lighthouse.
    Harbour,
    /// A warehouse with loading doors, a fork-lift truck.
    Depot,
    /// Wind turbines over fields, somebody on the path.
    Hills,
}

impl Place {
    /// Every place.
    pub const ALL: [Place; 4] = [Place::Street, Place::Harbour, Place::Depot, Place::Hills];
}

/// Everything that a place's painting depends on.
#[derive(Clone, Copy)]
pub struct View {
    /// The light.
    pub light: Light,
    /// Makes this camera's place differ from another's.
    pub seed: u32,
    /// The camera's own hue, in turns.
    pub hue: f32,
    /// Seconds; whole days are left out, so that motion stays smooth in an `f32`.
    pub time: f32,
}

impl View {
    fn on(&self, code: u32) -> Rgb {
        self.light.on(Rgb::hex(code))
    }

    /// A wall or coat in a colour of this camera, in this light.
    fn own(&self, turn: f32, saturation: f32, lightness: f32) -> Rgb {
        self.light.on(Rgb::hsl(self.hue + turn, saturation, lightness))
    }

    fn random(&self, index: u32) -> f32 {
        random(self.seed, index)
    }

    /// Position of something that crosses the picture again and again, −`margin` to width + `margin`.
    fn crossing(&self, width: f32, margin: f32, speed: f32, offset: f32) -> f32 {
        let span = width + 2.0 * margin;
        let at = (self.time * speed.abs() + offset * span).rem_euclid(span);
        if speed < 0.0 { width + margin - at } else { at - margin }
    }
}

const LAMP: Rgb = Rgb::hex(0xFFDFA3);
const WINDOW: Rgb = Rgb::hex(0xFFD58A);

/// Paints what does not move.
pub fn paint_set(place: Place, canvas: &mut Canvas, view: &View) {
    match place {
        Place::Street => street_set(canvas, view),
        Place::Harbour => harbour_set(canvas, view),
        Place::Depot => depot_set(canvas, view),
        Place::Hills => hills_set(canvas, view),
    }
}

/// Paints what moves.
pub fn paint_life(place: Place, canvas: &mut Canvas, view: &View) {
    match place {
        Place::Street => street_life(canvas, view),
        Place::Harbour => harbour_life(canvas, view),
        Place::Depot => depot_life(canvas, view),
        Place::Hills => hills_life(canvas, view),
    }
}

fn street_set(canvas: &mut Canvas, view: &View) {
    let (width, lamps) = (canvas.points(), view.light.lamps());
    view.light.paint_sky(canvas, 250.0);
    skyline(canvas, view, 250.0);
    let mut x = -20.0;
    for house in 0..12 {
        if x > width {
            break;
        }
        let (w, h) = (78.0 + 46.0 * view.random(house), 112.0 + 66.0 * view.random(house + 20));
        let top = 252.0 - h;
        let wall = view.own(0.09 * (house % 3) as f32, 0.24, 0.46 + 0.16 * view.random(house + 40));
        canvas.fill(rect(x, top, w, h), wall, 1.0);
        canvas.fill(rect(x - 2.0, top - 5.0, w + 4.0, 7.0), wall.mix(Rgb::hex(0), 0.35), 1.0);
        canvas.fill(rect(x + w - 5.0, top + 2.0, 5.0, h - 2.0), Rgb::hex(0), 0.12);
        let (columns, rows) = (((w - 14.0) / 24.0) as u32, ((h - 62.0) / 30.0) as u32);
        let gap = (w - columns as f32 * 14.0) / (columns + 1) as f32;
        for index in 0..columns * rows {
            let (column, row) = ((index % columns) as f32, (index / columns) as f32);
            let pane = rect(x + gap + column * (14.0 + gap), top + 14.0 + row * 30.0, 14.0, 19.0);
            window(canvas, view, pane, view.random(100 + house * 31 + index) < 0.55);
        }
        shop(canvas, view, rect(x + 6.0, 210.0, w - 12.0, 42.0), house);
        x += w;
    }
    canvas.fill(rect(0.0, 252.0, width, 22.0), view.on(0xB4B2AC), 1.0);
    canvas.fill(rect(0.0, 272.0, width, 3.0), view.on(0x8B8983), 1.0);
    canvas.fill(rect(0.0, 275.0, width, 90.0), view.on(0x55585E), 1.0);
    for dash in 0..(width / 56.0) as u32 + 1 {
        canvas.fill(rect(dash as f32 * 56.0 + 10.0, 299.0, 28.0, 2.6), view.on(0xE6E2D2), 0.8);
    }
    for lamp in 0..(width / 190.0) as u32 + 1 {
        street_lamp(canvas, view, 60.0 + lamp as f32 * 190.0, lamps);
    }
}

fn window(canvas: &mut Canvas, view: &View, pane: Rect, occupied: bool) {
    let glass = view.light.on(Rgb::hex(0x9FC3D8)).mix(Rgb::hex(0x151B2E), 0.35 * view.light.lamps());
    let lit = if occupied { view.light.lamps() } else { 0.0 };
    canvas.fill(rect(pane.x - 1.5, pane.y - 1.5, pane.w + 3.0, pane.h + 3.0), view.on(0xEDEAE3), 0.75);
    canvas.fill(pane, glass.mix(WINDOW, lit), 1.0);
    canvas.fill(rect(pane.x + pane.w / 2.0 - 0.6, pane.y, 1.2, pane.h), view.on(0xEDEAE3), 0.6);
}

fn shop(canvas: &mut Canvas, view: &View, front: Rect, index: u32) {
    let glass = view.light.on(Rgb::hex(0x6F8FA3)).mix(WINDOW, view.light.lamps() * 0.95);
    canvas.fill(front, view.on(0x4A4038), 1.0);
    canvas.fill(rect(front.x + 4.0, front.y + 12.0, front.w - 28.0, front.h - 18.0), glass, 1.0);
    canvas.fill(rect(front.x + front.w - 19.0, front.y + 11.0, 14.0, front.h - 11.0), glass, 0.8);
    for item in 0..((front.w - 36.0) / 12.0) as u32 {
        let (x, h) = (front.x + 8.0 + item as f32 * 12.0, 5.0 + 8.0 * view.random(500 + index * 17 + item));
        let ink = view.own(0.2 + view.random(700 + index * 17 + item), 0.4, 0.45);
        canvas.fill(rect(x, front.y + front.h - 6.0 - h, 7.0, h), ink, 0.85);
    }
    let stripes = (front.w / 9.0) as u32 + 1;
    for stripe in 0..stripes {
        let ink = if stripe % 2 == 0 { view.own(0.17 * index as f32, 0.6, 0.5) } else { view.on(0xF3EFE6) };
        let w = front.w / stripes as f32;
        let x = front.x + stripe as f32 * w;
        canvas.fill(rect(x, front.y - 4.0, w, 13.0), ink, 1.0);
        canvas.circle((x + w / 2.0, front.y + 9.0), w / 2.0, ink, 1.0);
    }
}

fn street_lamp(canvas: &mut Canvas, view: &View, x: f32, lamps: f32) {
    let pole = view.on(0x33373D);
    canvas.line((x, 270.0), (x, 166.0), 3.0, pole, 1.0);
    canvas.line((x, 166.0), (x + 20.0, 160.0), 2.4, pole, 1.0);
    canvas.rounded(rect(x + 14.0, 158.0, 16.0, 5.0), 2.0, pole, 1.0);
    canvas.fill(rect(x + 16.0, 163.0, 12.0, 1.8), LAMP, 0.25 + 0.75 * lamps);
    canvas.glow((x + 22.0, 166.0), (60.0, 60.0), LAMP, 0.65 * lamps);
    canvas.glow((x + 22.0, 266.0), (92.0, 26.0), LAMP, 0.5 * lamps);
}

fn street_life(canvas: &mut Canvas, view: &View) {
    let width = canvas.points();
    clouds(canvas, view, 48.0);
    person(canvas, view, view.crossing(width, 30.0, 21.0, 0.35), 266.0, 36.0, 1.0, 0.45);
    person(canvas, view, view.crossing(width, 30.0, -17.0, 0.6), 269.0, 38.0, -1.0, 0.05);
    car(canvas, view, view.crossing(width, 240.0, -74.0, 0.1), 292.0, -1.0, view.own(0.5, 0.55, 0.5));
    car(canvas, view, view.crossing(width, 330.0, 62.0, 0.55), 321.0, 1.0, view.own(0.02, 0.6, 0.46));
}

/// A car whose wheels stand at `y`.
fn car(canvas: &mut Canvas, view: &View, x: f32, y: f32, direction: f32, paint: Rgb) {
    let at = |dx: f32| x + dx * direction;
    let span = |from: f32, to: f32, top: f32, bottom: f32| {
        rect(at(from).min(at(to)), y + top, (to - from).abs(), bottom - top)
    };
    canvas.glow((x, y), (52.0, 7.0), Rgb::hex(0), 0.9);
    canvas.rounded(span(-40.0, 40.0, -20.0, -5.0), 5.0, paint, 1.0);
    canvas.rounded(span(-27.0, 19.0, -33.0, -14.0), 8.0, paint, 1.0);
    let glass = view.on(0xA9CBDD).mix(Rgb::hex(0x1C2536), 0.4);
    canvas.rounded(span(-23.0, -5.0, -30.0, -20.0), 4.0, glass, 1.0);
    canvas.rounded(span(-2.0, 15.0, -30.0, -20.0), 4.0, glass, 1.0);
    canvas.fill(span(-38.0, 38.0, -13.0, -11.5), Rgb::hex(0xFFFFFF), 0.22);
    for wheel in [-24.0, 24.0] {
        canvas.circle((at(wheel), y - 6.0), 7.5, Rgb::hex(0x17181B), 1.0);
        canvas.circle((at(wheel), y - 6.0), 3.6, view.on(0xB9BDC4), 1.0);
    }
    let lamps = view.light.lamps();
    canvas.circle((at(38.0), y - 13.0), 2.6, Rgb::hex(0xFFF4D0), 0.5 + 0.5 * lamps);
    canvas.circle((at(-38.5), y - 14.0), 2.2, Rgb::hex(0xD8332B), 0.9);
    canvas.glow((at(84.0), y - 6.0), (58.0, 15.0), LAMP, 0.8 * lamps);
    canvas.glow((at(-41.0), y - 13.0), (16.0, 11.0), Rgb::hex(0xFF3B2E), 0.7 * lamps);
}

/// Somebody who walks, the feet at `y`.
fn person(canvas: &mut Canvas, view: &View, x: f32, y: f32, height: f32, direction: f32, coat: f32) {
    let unit = height / 36.0;
    let stride = (view.time * 1.05 * TAU).sin();
    let bob = (view.time * 2.1 * TAU).cos().abs() * 0.8 * unit;
    let (hip, neck) = (y - 16.0 * unit - bob, y - 28.0 * unit - bob);
    let (trousers, jacket, skin) = (view.on(0x2C3550), view.own(coat, 0.45, 0.5), view.on(0xE3B08C));
    canvas.glow((x, y), (11.0 * unit, 3.0 * unit), Rgb::hex(0), 0.8);
    for swing in [-stride, stride] {
        let lift = (swing * direction).max(0.0) * 1.2 * unit;
        let foot = (x + swing * 7.0 * unit, y - lift);
        let knee = ((x + foot.0) / 2.0 + direction * 1.6 * unit, y - 8.5 * unit - bob);
        canvas.line((x, hip), knee, 4.0 * unit, trousers, 1.0);
        canvas.line(knee, foot, 3.2 * unit, trousers, 1.0);
        canvas.line(foot, (foot.0 + direction * 2.4 * unit, foot.1), 2.4 * unit, view.on(0x1E1A18), 1.0);
    }
    let hand = |swing: f32| (x + swing * 6.0 * unit, hip + 1.0 * unit);
    canvas.line((x, neck + 2.0 * unit), hand(stride), 2.8 * unit, jacket.mix(Rgb::hex(0), 0.25), 1.0);
    canvas.line((x, neck + 2.5 * unit), (x, hip), 7.5 * unit, jacket, 1.0);
    canvas.line((x, neck + 2.0 * unit), hand(-stride), 2.8 * unit, jacket.mix(Rgb::hex(0), 0.1), 1.0);
    canvas.circle((x + direction * 0.6 * unit, neck - 3.6 * unit), 3.7 * unit, skin, 1.0);
    canvas.circle((x - direction * 0.5 * unit, neck - 4.8 * unit), 3.5 * unit, view.on(0x3B2A20), 1.0);
}

/// Clouds that drift; few and soft, they cost bits.
fn clouds(canvas: &mut Canvas, view: &View, y: f32) {
    let width = canvas.points();
    let ink = view.light.low().mix(view.on(0xFFFFFF), 0.6);
    for cloud in 0..3 {
        let speed = 3.0 + 2.0 * view.random(900 + cloud);
        let x = view.crossing(width, 90.0, speed, view.random(910 + cloud));
        let y = y + 28.0 * (view.random(920 + cloud) - 0.5);
        for puff in 0..4 {
            let radius = 15.0 + 14.0 * view.random(930 + cloud * 5 + puff);
            let at = (x + puff as f32 * 24.0 - 36.0, y - radius * 0.25);
            canvas.glow(at, (radius * 2.3, radius * 1.1), ink, 0.75);
        }
    }
}

/// Houses far away.
fn skyline(canvas: &mut Canvas, view: &View, ground: f32) {
    let width = canvas.points();
    let wall = view.light.far(Rgb::hex(0x6D7F95), 0.45);
    let mut x = 0.0;
    for house in 0..40 {
        if x > width {
            break;
        }
        let (w, h) = (16.0 + 26.0 * view.random(300 + house), 40.0 + 110.0 * view.random(340 + house));
        canvas.fill(rect(x, ground - h, w, h), wall, 1.0);
        for light in 0..5 {
            let at = (
                x + 3.0 + (w - 8.0) * view.random(400 + house * 7 + light),
                ground - h + 8.0 + 15.0 * light as f32,
            );
            canvas.fill(rect(at.0, at.1, 2.4, 3.0), WINDOW, 0.75 * view.light.lamps());
        }
        x += w + 2.0;
    }
}

fn hill(canvas: &mut Canvas, view: &View, base: f32, swell: f32, index: u32, ink: Rgb) {
    let turns = [0, 1, 2].map(|wave| TAU * view.random(600 + index * 3 + wave));
    let top = move |x: f32| {
        base - swell
            * ((x / 97.0 + turns[0]).sin()
                + 0.6 * (x / 53.0 + turns[1]).sin()
                + 0.3 * (x / 23.0 + turns[2]).sin())
    };
    let bounds = rect(0.0, base - 2.0 * swell, canvas.points(), 360.0);
    canvas.below(bounds, ink, top);
}

fn harbour_set(canvas: &mut Canvas, view: &View) {
    let width = canvas.points();
    view.light.paint_sky(canvas, 196.0);
    hill(canvas, view, 182.0, 9.0, 1, view.light.far(Rgb::hex(0x5F7D86), 0.55));
    hill(canvas, view, 192.0, 5.0, 2, view.light.far(Rgb::hex(0x4C7367), 0.3));
    let (near, far) = (view.on(0x1F5673), view.light.low().mix(view.on(0x3F8FB0), 0.55));
    canvas.blend_rows(
        rect(0.0, 196.0, width, 170.0),
        |y| far.mix(near, ((y - 196.0) / 90.0).min(1.0)),
        |_, y, _| {
            if y > 196.0 { 1.0 } else { 0.0 }
        },
    );
    lighthouse(canvas, view, width * 0.13);
    canvas.fill(rect(0.0, 282.0, width, 80.0), view.on(0x8C8A86), 1.0);
    canvas.fill(rect(0.0, 282.0, width, 4.0), view.on(0xC9C3B4), 1.0);
    canvas.fill(rect(0.0, 288.0, width, 5.0), view.on(0x6C6B69), 1.0);
    for bollard in 0..(width / 80.0) as u32 + 1 {
        let x = 30.0 + bollard as f32 * 80.0;
        canvas.rounded(rect(x, 273.0, 8.0, 11.0), 3.0, view.on(0x2B2D31), 1.0);
        canvas.rounded(rect(x - 2.0, 271.0, 12.0, 5.0), 2.5, view.on(0x2B2D31), 1.0);
    }
    containers(canvas, view, width - 216.0, 306.0);
    crane(canvas, view, width * 0.55);
    let lamps = view.light.lamps();
    for x in [width * 0.29, width * 0.79] {
        let pole = view.on(0x3A3E44);
        canvas.line((x, 306.0), (x, 216.0), 3.0, pole, 1.0);
        canvas.rounded(rect(x - 11.0, 212.0, 22.0, 5.0), 2.0, pole, 1.0);
        canvas.fill(rect(x - 9.0, 217.0, 18.0, 1.8), LAMP, 0.25 + 0.75 * lamps);
        canvas.glow((x, 222.0), (70.0, 60.0), LAMP, 0.6 * lamps);
        canvas.glow((x, 304.0), (120.0, 26.0), LAMP, 0.55 * lamps);
    }
}

fn lighthouse(canvas: &mut Canvas, view: &View, x: f32) {
    canvas.ellipse((x, 205.0), (46.0, 10.0), view.on(0x4F5A50), 1.0);
    canvas.convex(
        &[(x - 6.0, 120.0), (x + 6.0, 120.0), (x + 10.0, 200.0), (x - 10.0, 200.0)],
        view.on(0xF2EEE6),
        1.0,
    );
    for band in [134.0, 164.0] {
        let (top, bottom) = (6.0 + (band - 120.0) / 20.0, 6.0 + (band - 106.0) / 20.0);
        let corners =
            [(x - top, band), (x + top, band), (x + bottom, band + 14.0), (x - bottom, band + 14.0)];
        canvas.convex(&corners, view.on(0xC8372F), 1.0);
    }
    canvas.fill(rect(x - 8.0, 117.0, 16.0, 3.0), view.on(0x2F3338), 1.0);
    canvas.fill(rect(x - 5.0, 108.0, 10.0, 9.0), view.on(0xFFF0C2), 1.0);
    canvas.convex(&[(x, 101.0), (x + 7.0, 108.0), (x - 7.0, 108.0)], view.on(0xC8372F), 1.0);
}

fn containers(canvas: &mut Canvas, view: &View, left: f32, floor: f32) {
    for index in 0..9 {
        let (column, row) = ((index % 4) as f32, (index / 4) as f32);
        if view.random(800 + index) < 0.12 && row > 0.0 {
            continue;
        }
        let area = rect(left + column * 52.0 + row * 3.0, floor - 23.0 - row * 24.0, 50.0, 23.0);
        let wall = view.own(0.23 * index as f32, 0.5, 0.45);
        canvas.fill(area, wall, 1.0);
        for rib in 1..10 {
            canvas.fill(rect(area.x + rib as f32 * 5.0, area.y + 2.0, 1.2, 19.0), Rgb::hex(0), 0.2);
        }
        canvas.fill(rect(area.x, area.y, 50.0, 1.6), Rgb::hex(0xFFFFFF), 0.3);
    }
}

fn crane(canvas: &mut Canvas, view: &View, x: f32) {
    let steel = view.own(0.08, 0.42, 0.44);
    for leg in [-22.0, 22.0] {
        canvas.line((x + leg, 306.0), (x + leg * 0.7, 128.0), 5.0, steel, 1.0);
    }
    for brace in 0..4 {
        let (a, b) = (300.0 - brace as f32 * 42.0, 262.0 - brace as f32 * 42.0);
        let side = if brace % 2 == 0 { 1.0 } else { -1.0 };
        canvas.line((x - side * 20.0, a), (x + side * 18.0, b), 1.8, steel, 1.0);
    }
    canvas.line((x - 150.0, 122.0), (x + 84.0, 122.0), 6.0, steel, 1.0);
    canvas.line((x, 92.0), (x - 138.0, 120.0), 1.6, steel, 1.0);
    canvas.line((x, 92.0), (x + 80.0, 120.0), 1.6, steel, 1.0);
    canvas.line((x, 128.0), (x, 92.0), 5.0, steel, 1.0);
    canvas.fill(rect(x + 60.0, 125.0, 24.0, 14.0), view.on(0x555A61), 1.0);
    canvas.rounded(rect(x - 14.0, 125.0, 18.0, 14.0), 2.0, view.on(0xE8E4DA), 1.0);
}

fn harbour_life(canvas: &mut Canvas, view: &View) {
    let (width, lamps) = (canvas.points(), view.light.lamps());
    clouds(canvas, view, 62.0);
    for glint in 0..16 {
        let drift = (view.time * 0.35 + view.random(1100 + glint) * TAU).sin();
        let (x, y) =
            (view.random(1120 + glint) * width + drift * 9.0, 204.0 + 70.0 * view.random(1140 + glint));
        let ink = view.light.low().mix(Rgb::hex(0xFFFFFF), 0.3);
        canvas.line((x, y), (x + 10.0 + (y - 200.0) * 0.3, y), 1.3, ink, 0.25 + 0.25 * drift.abs());
    }
    let beam = (view.time * 0.9).sin().max(0.0).powi(6);
    canvas.glow(
        (width * 0.13, 112.0),
        (34.0 + 40.0 * beam, 22.0 + 12.0 * beam),
        LAMP,
        (0.15 + 0.85 * lamps) * beam,
    );
    ship(canvas, view, view.crossing(width, 170.0, 8.0, 0.45), 226.0);
    let boat = view.crossing(width, 60.0, -19.0, 0.2);
    sail_boat(canvas, view, boat, 252.0 + (view.time * 1.7).sin());
    let (hook, drop) =
        (width * 0.55 - 70.0 + 55.0 * (view.time * 0.14).sin(), 190.0 + 26.0 * (view.time * 0.21).sin());
    canvas.line((hook, 124.0), (hook, drop), 1.4, view.on(0x24272B), 1.0);
    canvas.fill(rect(hook - 25.0, drop, 50.0, 21.0), view.own(0.46, 0.5, 0.48), 1.0);
    canvas.fill(rect(hook - 25.0, drop, 50.0, 1.6), Rgb::hex(0xFFFFFF), 0.3);
    person(canvas, view, view.crossing(width, 30.0, 19.0, 0.1), 318.0, 42.0, 1.0, 0.4);
    for gull in 0..2 {
        let phase = view.time * (0.16 + 0.05 * gull as f32) + gull as f32 * 2.4;
        let (x, y) = (width * (0.5 + 0.42 * phase.sin()), 84.0 + 26.0 * (phase * 1.7).cos());
        let flap = (view.time * 5.0 + gull as f32).sin() * 3.0;
        for side in [-1.0, 1.0] {
            canvas.line((x, y), (x + side * 8.0, y - 3.0 + flap), 1.7, view.on(0xF6F6F4), 1.0);
        }
    }
}

fn ship(canvas: &mut Canvas, view: &View, x: f32, y: f32) {
    let hull = view.own(0.0, 0.45, 0.3);
    for index in 0..18 {
        let (column, row) = ((index % 9) as f32, (index / 9) as f32);
        let ink = view.own(0.31 * index as f32, 0.45, 0.5);
        canvas.fill(rect(x - 62.0 + column * 15.0, y - 27.0 - row * 8.0, 14.0, 7.4), ink, 1.0);
    }
    canvas.fill(rect(x - 92.0, y - 48.0, 24.0, 30.0), view.on(0xEFEDE8), 1.0);
    canvas.fill(rect(x - 96.0, y - 50.0, 32.0, 6.0), view.on(0xF8F6F2), 1.0);
    canvas.fill(rect(x - 90.0, y - 43.0, 20.0, 3.6), view.on(0x3B4A58).mix(WINDOW, view.light.lamps()), 1.0);
    canvas.fill(rect(x - 86.0, y - 60.0, 9.0, 11.0), view.own(0.0, 0.6, 0.5), 1.0);
    canvas.convex(
        &[(x - 104.0, y - 20.0), (x + 104.0, y - 20.0), (x + 88.0, y + 3.0), (x - 98.0, y + 3.0)],
        hull,
        1.0,
    );
    canvas.fill(rect(x - 98.0, y - 1.0, 187.0, 4.0), view.on(0x8E2F2A), 1.0);
    for porthole in 0..9 {
        canvas.circle((x - 76.0 + porthole as f32 * 18.0, y - 11.0), 1.7, WINDOW, view.light.lamps());
    }
    canvas.line((x - 110.0, y + 4.5), (x + 96.0, y + 4.5), 1.6, view.light.low(), 0.55);
}

fn sail_boat(canvas: &mut Canvas, view: &View, x: f32, y: f32) {
    canvas.convex(&[(x - 2.0, y - 44.0), (x - 2.0, y - 8.0), (x - 22.0, y - 8.0)], view.on(0xF8F4EA), 1.0);
    canvas.convex(
        &[(x + 1.0, y - 40.0), (x + 14.0, y - 8.0), (x + 1.0, y - 8.0)],
        view.own(0.5, 0.55, 0.6),
        1.0,
    );
    canvas.line((x - 0.5, y - 46.0), (x - 0.5, y - 4.0), 1.5, view.on(0x5A4632), 1.0);
    canvas.convex(
        &[(x - 24.0, y - 6.0), (x + 20.0, y - 6.0), (x + 13.0, y + 3.0), (x - 19.0, y + 3.0)],
        view.on(0xA9532F),
        1.0,
    );
}

fn depot_set(canvas: &mut Canvas, view: &View) {
    let (width, lamps) = (canvas.points(), view.light.lamps());
    view.light.paint_sky(canvas, 250.0);
    skyline(canvas, view, 250.0);
    let (hall, wall) = (rect(width * 0.1, 92.0, width * 0.8, 156.0), view.own(0.0, 0.14, 0.66));
    canvas.fill(hall, wall, 1.0);
    for rib in 0..(hall.w / 9.0) as u32 {
        canvas.fill(rect(hall.x + rib as f32 * 9.0, hall.y + 22.0, 1.2, hall.h - 22.0), Rgb::hex(0), 0.09);
    }
    canvas.fill(rect(hall.x - 6.0, hall.y - 8.0, hall.w + 12.0, 30.0), view.own(0.0, 0.5, 0.36), 1.0);
    canvas.fill(rect(hall.x - 6.0, hall.y + 18.0, hall.w + 12.0, 4.0), view.on(0xF2EEE4), 0.9);
    let doors = 4;
    let pitch = hall.w / doors as f32;
    for door in 0..doors {
        let x = hall.x + pitch * (door as f32 + 0.5) - 38.0;
        let open = door == 1 || door == 3;
        canvas.fill(rect(x - 5.0, 154.0, 86.0, 94.0), view.on(0xE3C23C), 1.0);
        canvas.fill(rect(x, 160.0, 76.0, 88.0), view.on(0xBFC4C9), 1.0);
        let inside = view.on(0x3A3F47).mix(Rgb::hex(0xE8C98F), 0.75 * lamps);
        if open {
            canvas.fill(rect(x, 176.0, 76.0, 72.0), inside, 1.0);
            containers_small(canvas, view, x + 8.0, door as u32);
        }
        for slat in 0..(if open { 2 } else { 11 }) {
            canvas.fill(rect(x, 160.0 + slat as f32 * 8.0, 76.0, 1.4), Rgb::hex(0), 0.22);
        }
        let number = (door + 1).to_string();
        canvas.text((x + 30.0, 120.0), 3.0, &number, view.on(0xF2EEE4));
        canvas.rounded(rect(x + 30.0, 146.0, 16.0, 4.0), 1.5, LAMP, 0.35 + 0.65 * lamps);
        canvas.glow((x + 38.0, 152.0), (46.0, 34.0), LAMP, 0.6 * lamps);
        canvas.glow((x + 38.0, 262.0), (72.0, 26.0), LAMP, 0.5 * lamps);
    }
    canvas.blend_rows(
        rect(0.0, 248.0, width, 120.0),
        |y| view.on(0x85878A).mix(view.on(0x6A6C70), (y - 248.0) / 90.0),
        |_, y, size| ((y - 248.0) / size + 0.5).clamp(0.0, 1.0),
    );
    for line in 0..doors + 1 {
        let (top, foot) =
            (hall.x + pitch * line as f32, width * 0.5 + (hall.x + pitch * line as f32 - width * 0.5) * 1.5);
        canvas.line((top, 252.0), (foot, 360.0), 3.0, view.on(0xE3C23C), 0.75);
    }
}

fn containers_small(canvas: &mut Canvas, view: &View, left: f32, door: u32) {
    for index in 0..6 {
        let (column, row) = ((index % 3) as f32, (index / 3) as f32);
        let size = 15.0 + 4.0 * view.random(1300 + door * 9 + index);
        let area = rect(left + column * 21.0, 248.0 - 20.0 * row - size, size, size);
        canvas.fill(area, view.on(0xB58552), 1.0);
        canvas.fill(rect(area.x, area.y + size * 0.42, size, 2.4), view.on(0xD9BE93), 0.8);
    }
}

fn depot_life(canvas: &mut Canvas, view: &View) {
    let width = canvas.points();
    clouds(canvas, view, 48.0);
    let leg = (view.time / 22.0).rem_euclid(2.0);
    let there = leg < 1.0;
    let share = if there { leg } else { 2.0 - leg };
    let eased = share * share * (3.0 - 2.0 * share);
    fork_lift(canvas, view, width * (0.12 + 0.66 * eased), 292.0, if there { 1.0 } else { -1.0 });
    person(canvas, view, view.crossing(width, 40.0, 18.0, 0.3), 276.0, 44.0, 1.0, 0.12);
    person(canvas, view, view.crossing(width, 40.0, -22.0, 0.75), 322.0, 52.0, -1.0, 0.55);
}

fn fork_lift(canvas: &mut Canvas, view: &View, x: f32, y: f32, direction: f32) {
    let at = |dx: f32| x + dx * direction;
    let span = |from: f32, to: f32, top: f32, bottom: f32| {
        rect(at(from).min(at(to)), y + top, (to - from).abs(), bottom - top)
    };
    let paint = view.on(0xF0A825);
    canvas.glow((at(8.0), y), (60.0, 8.0), Rgb::hex(0), 0.9);
    canvas.line((at(-18.0), y - 26.0), (at(-12.0), y - 56.0), 2.6, view.on(0x2B2E33), 1.0);
    canvas.line((at(12.0), y - 22.0), (at(6.0), y - 56.0), 2.6, view.on(0x2B2E33), 1.0);
    canvas.rounded(span(-17.0, 10.0, -60.0, -55.0), 2.0, paint, 1.0);
    canvas.circle((at(-4.0), y - 43.0), 5.0, view.on(0xE3B08C), 1.0);
    canvas.rounded(span(-10.0, 2.0, -38.0, -22.0), 4.0, view.own(0.6, 0.6, 0.5), 1.0);
    canvas.rounded(span(-26.0, 16.0, -26.0, -6.0), 4.0, paint, 1.0);
    canvas.rounded(span(-28.0, -14.0, -32.0, -6.0), 4.0, view.on(0x3B3F46), 1.0);
    for (wheel, radius) in [(-17.0, 7.0), (9.0, 8.5)] {
        canvas.circle((at(wheel), y - radius), radius, Rgb::hex(0x18191C), 1.0);
        canvas.circle((at(wheel), y - radius), radius * 0.45, view.on(0xC4C8CE), 1.0);
    }
    canvas.line((at(21.0), y - 2.0), (at(21.0), y - 58.0), 3.4, view.on(0x30343A), 1.0);
    canvas.line((at(21.0), y - 9.0), (at(52.0), y - 9.0), 2.6, view.on(0x30343A), 1.0);
    canvas.fill(span(24.0, 54.0, -13.0, -10.0), view.on(0x9A6B3A), 1.0);
    canvas.fill(span(26.0, 52.0, -37.0, -13.0), view.on(0xB58552), 1.0);
    canvas.fill(span(26.0, 52.0, -27.0, -24.0), view.on(0xD9BE93), 0.8);
    let blink = (view.time * 1.4 * TAU).sin().max(0.0);
    canvas.circle((at(-4.0), y - 62.0), 2.4, Rgb::hex(0xFF9B21), 1.0);
    canvas.glow(
        (at(-4.0), y - 62.0),
        (26.0, 20.0),
        Rgb::hex(0xFF9B21),
        blink * (0.35 + 0.5 * view.light.lamps()),
    );
}

fn hills_set(canvas: &mut Canvas, view: &View) {
    let width = canvas.points();
    view.light.paint_sky(canvas, 232.0);
    for (index, (base, swell, ink, haze)) in [
        (196.0, 14.0, 0x7C98A8, 0.6),
        (218.0, 12.0, 0x6F9A86, 0.4),
        (244.0, 9.0, 0x76A25E, 0.15),
        (272.0, 7.0, 0x5F8F46, 0.0),
    ]
    .into_iter()
    .enumerate()
    {
        hill(canvas, view, base, swell, index as u32, view.light.far(Rgb::hex(ink), haze));
        if index == 2 {
            farm(canvas, view, width * 0.76, 246.0);
        }
        for tree in 0..index as u32 * 5 {
            let x = view.random(1500 + tree + 40 * index as u32) * width;
            let size = (5.0 + 3.0 * index as f32) * (0.8 + 0.5 * view.random(1600 + tree));
            let y = base + 2.0 + 10.0 * view.random(1700 + tree);
            let leaf =
                view.light.far(Rgb::hsl(view.hue * 0.15 + 0.26, 0.33, 0.3), 0.28 - 0.09 * index as f32);
            canvas.line((x, y), (x, y - size), size * 0.22, view.on(0x4D3B2C), 1.0);
            canvas.circle((x, y - size * 1.4), size * 0.8, leaf, 1.0);
            canvas.circle((x - size * 0.5, y - size), size * 0.55, leaf, 1.0);
            canvas.circle((x + size * 0.5, y - size), size * 0.55, leaf.mix(Rgb::hex(0), 0.1), 1.0);
        }
    }
    for tower in TURBINES {
        let (x, foot, size) = (width * tower.0, tower.1, tower.2);
        let steel = view.light.far(Rgb::hex(0xF1F3F5), 0.12);
        canvas.line((x, foot), (x, foot - size), size * 0.045, steel, 1.0);
    }
    let path = view.on(0xD2C19B);
    canvas.blend(rect(0.0, 290.0, width, 60.0), path, |x, y, size| {
        let middle = 309.0 + 5.0 * (x / 120.0).sin();
        ((8.0 - (y - middle).abs()) / size + 0.5).clamp(0.0, 1.0)
    });
}

/// Place (part of the width), foot and height in points.
const TURBINES: [(f32, f32, f32); 3] = [(0.2, 246.0, 132.0), (0.4, 226.0, 92.0), (0.57, 214.0, 66.0)];

fn farm(canvas: &mut Canvas, view: &View, x: f32, y: f32) {
    canvas.fill(rect(x - 36.0, y - 30.0, 60.0, 32.0), view.on(0xB5473A), 1.0);
    canvas.convex(
        &[(x - 42.0, y - 29.0), (x - 24.0, y - 48.0), (x + 12.0, y - 48.0), (x + 30.0, y - 29.0)],
        view.on(0x5B4A44),
        1.0,
    );
    canvas.fill(rect(x - 12.0, y - 20.0, 16.0, 22.0), view.on(0xF0E9DD), 1.0);
    window(canvas, view, rect(x - 30.0, y - 22.0, 9.0, 9.0), true);
    window(canvas, view, rect(x + 10.0, y - 22.0, 9.0, 9.0), true);
    canvas.rounded(rect(x + 32.0, y - 52.0, 20.0, 54.0), 8.0, view.on(0xB9C0C6), 1.0);
    canvas.fill(rect(x + 32.0, y - 36.0, 20.0, 1.6), Rgb::hex(0), 0.2);
}

fn hills_life(canvas: &mut Canvas, view: &View) {
    let width = canvas.points();
    clouds(canvas, view, 60.0);
    for (index, tower) in TURBINES.into_iter().enumerate() {
        let hub = (width * tower.0, tower.1 - tower.2);
        let steel = view.light.far(Rgb::hex(0xFBFBFC), 0.08);
        let turn = view.time * (0.16 + 0.03 * index as f32) + index as f32 * 0.13;
        for blade in 0..3 {
            let angle = (turn + blade as f32 / 3.0) * TAU;
            let (dx, dy) = (angle.cos() * tower.2 * 0.5, angle.sin() * tower.2 * 0.5);
            canvas.line(hub, (hub.0 + dx * 0.45, hub.1 + dy * 0.45), tower.2 * 0.04, steel, 1.0);
            canvas.line(hub, (hub.0 + dx, hub.1 + dy), tower.2 * 0.022, steel, 1.0);
        }
        canvas.circle(hub, tower.2 * 0.035, steel, 1.0);
        let beacon = (view.time * 0.5 * TAU).sin().max(0.0).powi(4) * view.light.lamps();
        canvas.glow(hub, (14.0, 14.0), Rgb::hex(0xFF4A3A), beacon);
    }
    let walker = view.crossing(width, 60.0, 16.0, 0.25);
    let path = |x: f32| 311.0 + 5.0 * (x / 120.0).sin();
    dog(canvas, view, walker + 34.0, path(walker + 34.0) + 2.0);
    person(canvas, view, walker, path(walker), 44.0, 1.0, 0.5);
}

fn dog(canvas: &mut Canvas, view: &View, x: f32, y: f32) {
    let coat = view.on(0x8A5A33);
    let trot = (view.time * 2.2 * TAU).sin();
    for (leg, swing) in [(-6.0, trot), (-5.0, -trot), (6.0, -trot), (7.0, trot)] {
        canvas.line((x + leg, y - 7.0), (x + leg + swing * 2.6, y), 1.7, coat, 1.0);
    }
    canvas.line((x - 6.0, y - 9.0), (x + 6.0, y - 9.5), 6.0, coat, 1.0);
    canvas.line((x + 7.0, y - 10.0), (x + 10.0, y - 14.0), 3.4, coat, 1.0);
    canvas.line((x + 10.0, y - 14.5), (x + 14.0, y - 13.5), 3.6, coat, 1.0);
    canvas.line((x - 8.0, y - 11.0), (x - 12.0, y - 16.0 + trot), 1.6, coat, 1.0);
}
