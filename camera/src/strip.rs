//! The frame number as black and white blocks at the picture's bottom edge, to write and to read back.
//!
//! A test that has exported a recording decodes it and reads the number of every frame: what is
//! missing, doubled or out of order is then known exactly. The browser test does the same from a
//! canvas, with `strip.mjs` beside this file. Pure; reading treats the picture as anything at all and answers `None`
//! rather than guess.
//!
//! # Geometry
//!
//! All measures are fractions of the picture's width `W` and height `H`, so that a scaled picture is
//! read in the same way. The strip lies in the right bottom corner:
//!
//! - left edge `0.4 W`, right edge `W`, top edge `(41/45) H`, bottom edge `H`;
//! - two rows of 24 cells; a cell is `W/40` wide and `(2/45) H` high (16×16 pixels of 640×360);
//! - the centre of cell `i` (0 to 47) is, with `row = i div 24` and `column = i mod 24`,
//!   `x = (0.4 + (column + 0.5) / 40) W`, `y = (14/15) H` for row 0 and `(44/45) H` for row 1;
//! - a white cell is 1 (luma 235), a black cell is 0 (luma 16).
//!
//! | cells | what, most significant bit first |
//! |---|---|
//! | 0–7 | start pattern `1011 0010` ([`START`]) |
//! | 8–39 | the frame number, 32 bits |
//! | 40–47 | CRC-8 of the number's four bytes, first byte first: polynomial 0x07, start value 0xFF |
//!
//! To read: take the mean of the middle half of each cell; the threshold is the middle between the mean
//! of the start pattern's white cells and that of its black ones; refuse a picture where these two
//! lie less than [`MIN_CONTRAST`] apart, where the start pattern does not come out or the CRC differs.

use std::ops::Range;

/// The first eight cells.
pub const START: u8 = 0b1011_0010;
/// Least difference of luma between the start pattern's white and black cells.
pub const MIN_CONTRAST: u32 = 64;
/// Luma of a white cell, of the 16 to 235 that video uses.
pub const WHITE: u8 = 235;
/// Luma of a black cell.
pub const BLACK: u8 = 16;
/// Cells of the strip, in two rows.
pub const CELLS: usize = 48;

const CELLS_PER_ROW: usize = 24;

/// Draws the strip of a frame number into a luma plane of `width` × `height` without padding.
///
/// # Panics
/// If the plane is smaller than that.
pub fn write(luma: &mut [u8], width: usize, height: usize, frame: u32) {
    let bits = encode(frame);
    for cell in 0..CELLS {
        let value = if bits >> (CELLS - 1 - cell) & 1 == 1 { WHITE } else { BLACK };
        let (columns, rows) = area(cell, width, height, 0.0);
        for row in rows {
            luma[row * width..][columns.clone()].fill(value);
        }
    }
}

/// Reads the frame number from a luma plane of `width` × `height` without padding, at any scale.
///
/// `None` where the picture carries no readable strip: nothing is guessed.
pub fn read(luma: &[u8], width: usize, height: usize) -> Option<u32> {
    if width < CELLS || height < CELLS || luma.len() < width.checked_mul(height)? {
        return None;
    }
    let means: [u32; CELLS] = std::array::from_fn(|cell| {
        let (columns, rows) = area(cell, width, height, 0.25);
        let count = (columns.len() * rows.len()) as u32;
        let sum: u32 =
            rows.flat_map(|row| &luma[row * width..][columns.clone()]).map(|y| u32::from(*y)).sum();
        sum / count.max(1)
    });
    let start_mean = |wanted: u8| {
        let cells = (0..8).filter(|cell| START >> (7 - cell) & 1 == wanted);
        cells.map(|cell| means[cell]).sum::<u32>() / 4
    };
    let (white, black) = (start_mean(1), start_mean(0));
    if white < black + MIN_CONTRAST {
        return None;
    }
    let threshold = (white + black) / 2;
    let bits = means.iter().fold(0u64, |bits, mean| bits << 1 | u64::from(*mean > threshold));
    let frame = (bits >> 8) as u32;
    (bits == encode(frame)).then_some(frame)
}

/// The 48 bits of a frame's strip.
fn encode(frame: u32) -> u64 {
    u64::from(START) << 40 | u64::from(frame) << 8 | u64::from(crc8(frame))
}

fn crc8(frame: u32) -> u8 {
    frame.to_be_bytes().into_iter().fold(0xFF, |crc, byte| {
        (0..8).fold(crc ^ byte, |crc: u8, _| if crc & 0x80 == 0 { crc << 1 } else { crc << 1 ^ 0x07 })
    })
}

/// The pixels of a cell, without the given share of it at every side; at least one pixel.
fn area(cell: usize, width: usize, height: usize, margin: f64) -> (Range<usize>, Range<usize>) {
    let (row, column) = (cell / CELLS_PER_ROW, cell % CELLS_PER_ROW);
    let part = |size: usize, origin: f64, step: f64, index: usize| {
        let edge = |at: f64| (size as f64 * (origin + step * at)).round() as usize;
        let start = edge(index as f64 + margin).min(size - 1);
        start..edge(index as f64 + 1.0 - margin).clamp(start + 1, size)
    };
    (part(width, 0.4, 1.0 / 40.0, column), part(height, 41.0 / 45.0, 2.0 / 45.0, row))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cells_are_where_the_document_says() {
        let (width, height) = (640, 360);
        for cell in 0..CELLS {
            let (columns, rows) = area(cell, width, height, 0.0);
            assert_eq!((columns.len(), rows.len()), (16, 16), "cell {cell}");
            let centre_x = (0.4 + ((cell % 24) as f64 + 0.5) / 40.0) * width as f64;
            let centre_y = if cell < 24 { 14.0 / 15.0 } else { 44.0 / 45.0 } * height as f64;
            assert!(((columns.start + 8) as f64 - centre_x).abs() < 1e-6, "cell {cell}");
            assert!(((rows.start + 8) as f64 - centre_y).abs() < 1e-6, "cell {cell}");
        }
        assert_eq!(area(47, width, height, 0.0), (624..640, 344..360), "up to the corner");
    }

    /// The check value of CRC-8 with this polynomial and start value, computed by hand for zero input.
    #[test]
    fn the_check_is_the_documented_crc() {
        let bitwise = |frame: u32| {
            let mut register = 0xFFu8;
            for bit in (0..32).rev() {
                let feedback = register >> 7 ^ (frame >> bit & 1) as u8;
                register = register << 1 ^ if feedback == 1 { 0x07 } else { 0 };
            }
            register
        };
        for frame in [0, 1, 0x1234_5678, u32::MAX] {
            assert_eq!(crc8(frame), bitwise(frame), "{frame:#x}");
        }
    }

    #[test]
    fn pictures_without_a_strip_are_refused() {
        for (luma, why) in [
            (vec![128; 640 * 360], "one grey"),
            (vec![16; 640 * 360], "black"),
            (vec![235; 640 * 360], "white"),
            ((0..640 * 360).map(|i| (i * 31 % 251) as u8).collect(), "a pattern"),
            (vec![0; 640 * 359], "too short"),
        ] {
            assert_eq!(read(&luma, 640, 360), None, "{why}");
        }
        assert_eq!(read(&[], 0, 0), None);
        assert_eq!(read(&[0; 4], usize::MAX, 2), None);
    }

    #[test]
    fn one_wrong_cell_is_noticed() {
        for cell in 0..CELLS {
            let mut luma = vec![90; 640 * 360];
            write(&mut luma, 640, 360, 0x00C0_FFEE);
            let (columns, rows) = area(cell, 640, 360, 0.0);
            for row in rows {
                luma[row * 640..][columns.clone()].iter_mut().for_each(|y| *y = WHITE + BLACK - *y);
            }
            assert_eq!(read(&luma, 640, 360), None, "cell {cell} turned over");
        }
    }

    proptest! {
        #[test]
        fn any_number_is_read_at_any_scale_and_contrast(
            frame: u32, width in 160usize..1000, height in 120usize..700, gain in 0.4f32..1.1, offset in 0.0f32..20.0,
        ) {
            let mut luma = vec![60; 640 * 360];
            write(&mut luma, 640, 360, frame);
            // Scaled by the nearest pixel: the worst that a scaler does.
            let scaled: Vec<u8> = (0..width * height)
                .map(|i| luma[i / width * 360 / height * 640 + i % width * 640 / width])
                .map(|y| (f32::from(y) * gain + offset).min(255.0) as u8)
                .collect();
            prop_assert_eq!(read(&scaled, width, height), Some(frame));
        }

        #[test]
        fn it_is_drawn_into_pictures_of_any_size(frame: u32, width in 160usize..1000, height in 120usize..700) {
            let mut luma = vec![60; width * height];
            write(&mut luma, width, height, frame);
            prop_assert_eq!(read(&luma, width, height), Some(frame));
        }
    }
}
