//! Figures with their bars, on the terminal and in `docs/performance.md`.
//!
//! Each benchmark owns the lines between its two markers there; everything else in the document is
//! people's.

use crate::harness::root;
use std::{fmt, fs};

/// One measured figure.
pub struct Figure {
    /// What it is of.
    pub what: String,
    /// The figure.
    pub value: f64,
    /// Its unit; empty for a ratio.
    pub unit: &'static str,
    /// What it is compared with, measured in the same run, in the same unit.
    pub floor: Option<(String, f64)>,
    /// The most that the figure (or, with `of_ratio`, its ratio to the floor) may be.
    pub bar: Option<f64>,
    /// Whether the bar is for the ratio.
    pub of_ratio: bool,
}

impl Figure {
    /// A figure with a bar of its own.
    pub fn with_bar(what: impl Into<String>, value: f64, unit: &'static str, bar: f64) -> Figure {
        Figure { what: what.into(), value, unit, floor: None, bar: Some(bar), of_ratio: false }
    }

    /// A figure for the record.
    pub fn plain(what: impl Into<String>, value: f64, unit: &'static str) -> Figure {
        Figure { what: what.into(), value, unit, floor: None, bar: None, of_ratio: false }
    }

    /// The same, beside what it is compared with.
    #[must_use]
    pub fn against(mut self, floor: impl Into<String>, value: f64) -> Figure {
        self.floor = Some((floor.into(), value));
        self
    }

    /// The same; the bar is for the ratio to the floor.
    #[must_use]
    pub fn ratio_bar(mut self, bar: f64) -> Figure {
        (self.bar, self.of_ratio) = (Some(bar), true);
        self
    }

    fn ratio(&self) -> Option<f64> {
        self.floor.as_ref().map(|(_, floor)| self.value / floor)
    }

    /// Whether it is at most its bar; a figure without one is.
    pub fn meets_its_bar(&self) -> bool {
        let judged = if self.of_ratio { self.ratio().unwrap_or(f64::INFINITY) } else { self.value };
        self.bar.is_none_or(|bar| judged <= bar)
    }

    /// Figure, floor, ratio, bar, verdict.
    fn cells(&self) -> [String; 5] {
        let number = |value: f64| match value.abs() {
            100.0.. => format!("{value:.0}"),
            10.0..100.0 => format!("{value:.1}"),
            _ => format!("{value:.2}"),
        };
        let with_unit = |value: f64| format!("{} {}", number(value), self.unit).trim_end().to_owned();
        [
            with_unit(self.value),
            self.floor
                .as_ref()
                .map_or(String::new(), |(name, floor)| format!("{}: {}", name, with_unit(*floor))),
            self.ratio().map_or(String::new(), number),
            self.bar.map_or(String::new(), |bar| if self.of_ratio { number(bar) } else { with_unit(bar) }),
            match (self.bar, self.meets_its_bar()) {
                (None, _) => String::new(),
                (_, true) => "met".to_owned(),
                (_, false) => "**missed**".to_owned(),
            },
        ]
    }
}

/// A line for the terminal.
impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [value, floor, ratio, bar, verdict] = self.cells();
        write!(f, "{}: {value}", self.what)?;
        if !floor.is_empty() {
            write!(f, " ({floor}; ratio {ratio})")?;
        }
        if !bar.is_empty() {
            write!(f, ", bar {bar}: {verdict}")?;
        }
        Ok(())
    }
}

/// Replaces the table of a benchmark in the document.
pub fn write(name: &str, figures: &[Figure]) {
    let file = root().join("docs/performance.md");
    let text = fs::read_to_string(&file).unwrap();
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->"));
    let (before, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("{}: no {begin}", file.display()));
    let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("{}: no {end}", file.display()));
    let mut table = "| | measured | floor | ratio | bar | |\n|---|---|---|---|---|---|\n".to_owned();
    for figure in figures {
        table += &format!("| {} | {} |\n", figure.what, figure.cells().join(" | "));
    }
    fs::write(&file, format!("{before}{begin}{table}{end}{after}")).unwrap();
}
