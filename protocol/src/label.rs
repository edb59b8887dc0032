//! The device's label: serial number and OAK as text and as a QR code.
//!
//! Whoever holds it may claim the device, so it is printed for whoever has the data folder, and shown on
//! the page only to who has the camera's password.

use crate::{Oak, SerialNumber};
use qrcode::{Color, QrCode};
use std::fmt::Write;

/// What stands on the label.
#[derive(Clone, Debug)]
pub struct Label {
    /// The serial number.
    pub serial: SerialNumber,
    /// The owner authentication key.
    pub oak: Oak,
}

/// Modules of white around a code, as ISO/IEC 18004 wants them.
const QUIET: usize = 4;

impl Label {
    /// What the QR code says: `homing:00408C702009;0A1B-2C3D-4E5F`.
    pub fn code(&self) -> String {
        format!("homing:{};{}", self.serial, self.oak.label())
    }

    /// For a terminal: half-block characters, dark on light whatever the terminal's colours are.
    pub fn to_terminal(&self) -> String {
        let (size, dark) = self.modules();
        let mut text = format!("Serial number  {}\nOAK            {}\n\n", self.serial, self.oak.label());
        for row in (0..size).step_by(2) {
            text.push_str("\x1b[30;107m");
            for column in 0..size {
                text.push(match (dark(column, row), dark(column, row + 1)) {
                    (false, false) => ' ',
                    (true, false) => '▀',
                    (false, true) => '▄',
                    (true, true) => '█',
                });
            }
            text.push_str("\x1b[0m\n");
        }
        text
    }

    /// For a page.
    pub fn to_svg(&self) -> String {
        let (size, dark) = self.modules();
        let mut path = String::new();
        for row in 0..size {
            for column in (0..size).filter(|column| dark(*column, row)) {
                write!(path, "M{column} {row}h1v1h-1z").expect("writing to a string");
            }
        }
        format!(
            r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}" role="img" aria-label="QR code of the label" shape-rendering="crispEdges"><path fill="#fff" d="M0 0h{size}v{size}H0z"/><path fill="#000" d="{path}"/></svg>"##
        )
    }

    /// The side of the code with its quiet zone, and which modules are dark.
    fn modules(&self) -> (usize, impl Fn(usize, usize) -> bool) {
        let code = QrCode::new(self.code()).expect("a label fits into a QR code");
        let width = code.width();
        let dark = move |column: usize, row: usize| {
            let inside = |at: usize| at.checked_sub(QUIET).filter(|at| *at < width);
            inside(column).zip(inside(row)).is_some_and(|at| code[at] == Color::Dark)
        };
        (width + 2 * QUIET, dark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_says_both_numbers_and_draws_them() {
        let label = Label { serial: "00408C702009".parse().unwrap(), oak: "0A1B-2C3D-4E5F".parse().unwrap() };
        assert_eq!(label.code(), "homing:00408C702009;0A1B-2C3D-4E5F");
        let text = label.to_terminal();
        assert!(text.contains("00408C702009") && text.contains("0A1B-2C3D-4E5F"));
        let (size, dark) = label.modules();
        // The finder pattern in the corner, the quiet zone around it.
        assert!(dark(QUIET, QUIET) && dark(QUIET + 6, QUIET) && !dark(QUIET + 1, QUIET + 1));
        assert!(!dark(QUIET - 1, QUIET) && !dark(size - 1, size - 1));
        assert_eq!(text.lines().skip(3).count(), size.div_ceil(2));
        assert!(label.to_svg().starts_with("<svg"));
        assert!(!format!("{label:?}").contains("0A1B"), "only on purpose");
    }
}
