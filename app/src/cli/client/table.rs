//! Aligned columns that fit a terminal.

use super::terminal;

/// Between two columns.
const GAP: &str = "  ";

/// No column gets narrower than this.
const NARROWEST: usize = 8;

/// The colour of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colour {
    Green,
    Yellow,
    Red,
    Grey,
}

impl Colour {
    const fn code(self) -> &'static str {
        match self {
            Colour::Green => "32",
            Colour::Yellow => "33",
            Colour::Red => "31",
            Colour::Grey => "90",
        }
    }
}

/// A cell: its text, and its colour where the output has colours.
pub(super) struct Cell {
    text: String,
    colour: Option<Colour>,
}

impl Cell {
    pub fn coloured(text: impl Into<String>, colour: Option<Colour>) -> Self {
        Cell { colour, ..Cell::from(text.into()) }
    }
}

impl From<String> for Cell {
    /// Names are other people's: nothing in them may move the cursor.
    fn from(text: String) -> Self {
        let shown = |c: char| if c.is_control() { '\u{fffd}' } else { c };
        Cell { text: text.chars().map(shown).collect(), colour: None }
    }
}

/// The table as lines; columns that nobody has a value for are left out.
pub(super) fn render(heads: &[&str], rows: &[Vec<Cell>]) -> String {
    draw(heads, rows, terminal::width(), terminal::has_colours())
}

/// A row by itself, its empty cells left out.
pub(super) fn line(cells: &[Cell]) -> String {
    let cells = cells.iter().map(|cell| cell.text.as_str()).filter(|text| !text.is_empty());
    cells.collect::<Vec<_>>().join(GAP)
}

/// The same as [`render`], for a given width.
pub(super) fn draw(heads: &[&str], rows: &[Vec<Cell>], width: Option<usize>, colours: bool) -> String {
    let (used, mut widths): (Vec<usize>, Vec<usize>) = natural(heads, rows).into_iter().unzip();
    if let Some(width) = width {
        fit(&mut widths, width);
    }
    let mut text = String::new();
    let mut line = |cells: Vec<(&str, Option<Colour>)>| {
        let last = cells.len() - 1;
        for (index, ((cell, colour), width)) in cells.into_iter().zip(&widths).enumerate() {
            let cut = cut(cell, *width);
            let padding = if index == last { 0 } else { *width - count(&cut) };
            match colour.filter(|_| colours) {
                Some(colour) => text.push_str(&format!("\x1b[{}m{cut}\x1b[0m", colour.code())),
                None => text.push_str(&cut),
            }
            text.push_str(&" ".repeat(padding));
            text.push_str(if index == last { "\n" } else { GAP });
        }
    };
    if used.is_empty() {
        return text;
    }
    line(used.iter().map(|column| (heads[*column], None)).collect());
    for row in rows {
        line(used.iter().map(|column| (row[*column].text.as_str(), row[*column].colour)).collect());
    }
    text
}

/// How many of the columns, from the first on, stay on one line however narrow the screen is.
pub(super) fn columns_that_fit(heads: &[&str], rows: &[Vec<Cell>], width: usize) -> usize {
    let mut taken = 0;
    let too_far = natural(heads, rows).into_iter().find(|(_, natural)| {
        taken += natural.min(&NARROWEST) + if taken > 0 { GAP.len() } else { 0 };
        taken > width
    });
    too_far.map_or(heads.len(), |(column, _)| column.max(1))
}

/// The columns that somebody has a value for, and the width that each would like.
fn natural(heads: &[&str], rows: &[Vec<Cell>]) -> Vec<(usize, usize)> {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| count(&row[column].text));
        cells.chain([count(heads[column])]).max().unwrap_or_default()
    };
    let used = |column: &usize| rows.iter().any(|row| !row[*column].text.is_empty());
    (0..heads.len()).filter(used).map(|column| (column, width(column))).collect()
}

/// Takes from the widest column until all fit.
fn fit(widths: &mut [usize], width: usize) {
    let room = width.saturating_sub(GAP.len() * widths.len().saturating_sub(1));
    while widths.iter().sum::<usize>() > room {
        // The last of the widest: what stands last is a sentence, and its end is missed least.
        let Some(widest) = (0..widths.len()).max_by_key(|index| widths[*index]) else { return };
        if widths[widest] <= NARROWEST {
            return;
        }
        widths[widest] -= 1;
    }
}

/// A line by itself, cut to the width; nothing in it moves the cursor.
pub(super) fn plain(text: &str, width: Option<usize>) -> String {
    let cell = Cell::from(text.to_owned());
    width.map_or_else(|| cell.text.clone(), |width| cut(&cell.text, width))
}

fn cut(text: &str, width: usize) -> String {
    if count(text) <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

fn count(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Vec<Cell>> {
        vec![
            vec![
                Cell::coloured("green", Some(Colour::Green)),
                "Gate".to_owned().into(),
                String::new().into(),
            ],
            vec![
                Cell::coloured("red", Some(Colour::Red)),
                "Yard\x1b[2J, a long name".to_owned().into(),
                String::new().into(),
            ],
        ]
    }

    #[test]
    fn columns_are_aligned_empty_ones_left_out_and_names_harmless() {
        let text = draw(&["STATE", "NAME", "PROBLEM"], &rows(), None, false);
        assert_eq!(text, "STATE  NAME\ngreen  Gate\nred    Yard\u{fffd}[2J, a long name\n");
        assert_eq!(draw(&["A"], &[], None, false), "");
    }

    #[test]
    fn a_terminal_gets_colours_and_no_line_longer_than_it_is_wide() {
        let text = draw(&["STATE", "NAME", "PROBLEM"], &rows(), Some(20), true);
        assert_eq!(
            text,
            "STATE  NAME\n\x1b[32mgreen\x1b[0m  Gate\n\x1b[31mred\x1b[0m    Yard\u{fffd}[2J, a …\n"
        );
    }
}
