//! Tables as spreadsheets export them: manufacturers' lists, devices to be registered.
//!
//! Comma, semicolon or tab between the columns, whichever stands first; UTF-8, with a byte order mark or without; lines
//! end in LF or CR LF; values may be in quotes (RFC 4180). A heading is recognised by its first column's name, wherever
//! that stands, and says then which column is which; without one they stand in their own order.
//!
//! Not here: what the values mean. `management/web/js/csv.js` reads the same in the browser; `app/testdata/lists.json`
//! holds both to one behaviour.

use csv::{ReaderBuilder, StringRecord, Terminator, Trim};
use std::io::{BufRead, BufReader, Chain, Read};

/// One column, by the names that its heading may have.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// What it is called in messages.
    pub name: &'static str,
    /// In lower case, letters and digits only. One with more than four may be a part of the heading.
    pub headings: &'static [&'static str],
    /// Whether a table without it is of no use.
    pub needed: bool,
}

/// Serial numbers, in lists of devices.
pub const SERIAL_NUMBERS: Column =
    Column { name: "serial number", headings: &["serial", "mac", "macaddress"], needed: true };

/// OAKs, in lists of devices.
pub const OAKS: Column = Column { name: "OAK", headings: &["oak", "ownerauthenticationkey"], needed: true };

impl Column {
    fn is_called(&self, heading: &str) -> bool {
        let bare: String = heading.to_lowercase().chars().filter(|c| c.is_alphanumeric()).collect();
        self.headings.iter().any(|known| bare == *known || (known.len() > 4 && bare.contains(known)))
    }
}

/// Why a table cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The file.
    #[error("cannot be read to its end: {0}")]
    Io(#[from] std::io::Error),
    /// It has a heading, and not all that is needed.
    #[error("its heading names no column for the {0}; call one {1:?}")]
    Lacks(&'static str, &'static str),
}

/// A table that is being read. The first column is the one that its heading is recognised by.
pub struct Table<R> {
    /// With a line's end after the last line, which may lack it.
    reader: csv::Reader<Chain<BufReader<R>, &'static [u8]>>,
    columns: &'static [Column],
    /// Where each column stands.
    places: Vec<Option<usize>>,
    record: StringRecord,
    is_first: bool,
}

/// A line of a table that holds something.
#[derive(Debug)]
pub struct Row<'a> {
    /// Its number in the file, the first is 1.
    pub line: u64,
    /// Its values, or what is wrong with the line as such.
    pub values: Result<Values<'a>, String>,
}

/// The values of a line.
#[derive(Debug)]
pub struct Values<'a> {
    record: &'a StringRecord,
    places: &'a [Option<usize>],
}

impl<'a> Values<'a> {
    /// The value of a column, without spaces around it; empty where the line or the table has none.
    pub fn get(&self, column: usize) -> &'a str {
        self.places
            .get(column)
            .copied()
            .flatten()
            .and_then(|place| self.record.get(place))
            .unwrap_or_default()
    }
}

impl<R: Read> Table<R> {
    /// Looks at how the table is written.
    ///
    /// # Errors
    /// When nothing can be read.
    pub fn new(input: R, columns: &'static [Column]) -> Result<Self, TableError> {
        let mut input = BufReader::new(input);
        let delimiter = delimiter(input.fill_buf()?);
        // A carriage return is trimmed: as a part of the line's end it would make the numbers of lines wrong.
        let reader = ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .trim(Trim::All)
            .terminator(Terminator::Any(b'\n'))
            .delimiter(delimiter)
            .from_reader(input.chain(&b"\n"[..]));
        let places = (0..columns.len()).map(Some).collect();
        Ok(Table { reader, columns, places, record: StringRecord::new(), is_first: true })
    }

    /// The next line that holds something and is no heading.
    ///
    /// # Errors
    /// When the table cannot be read on; a line that is no text is a [`Row`] that says so.
    pub fn next_row(&mut self) -> Result<Option<Row<'_>>, TableError> {
        loop {
            let read = self.reader.read_record(&mut self.record);
            let line = match read {
                Ok(false) => return Ok(None),
                // Where it began is not told: empty lines before it were passed over.
                Ok(true) => {
                    let inside = self.record.as_slice().bytes().filter(|byte| *byte == b'\n').count() as u64;
                    self.reader.position().line().saturating_sub(1 + inside)
                }
                Err(error) => {
                    let line = error.position().map_or(0, csv::Position::line);
                    return match error.into_kind() {
                        csv::ErrorKind::Io(error) => Err(error.into()),
                        _ => Ok(Some(Row { line, values: Err("it is not text in UTF-8".to_owned()) })),
                    };
                }
            };
            // What spreadsheets write for themselves, and lines of delimiters alone.
            if self.record.iter().all(str::is_empty) || self.record.get(0) == Some("sep=") {
                continue;
            }
            if std::mem::take(&mut self.is_first) && self.take_heading()? {
                continue;
            }
            return Ok(Some(Row { line, values: Ok(Values { record: &self.record, places: &self.places }) }));
        }
    }

    /// Whether the line is a heading; then it says what stands where.
    fn take_heading(&mut self) -> Result<bool, TableError> {
        let key = self.columns.first();
        if !key.is_some_and(|key| self.record.iter().any(|cell| key.is_called(cell))) {
            return Ok(false);
        }
        let mut places = vec![None; self.columns.len()];
        for (place, cell) in self.record.iter().enumerate() {
            // The first column that is called so, and each column once.
            let column = self.columns.iter().position(|column| column.is_called(cell));
            if let Some(column) = column.filter(|column| places[*column].is_none()) {
                places[column] = Some(place);
            }
        }
        let lacking =
            self.columns.iter().zip(&places).find(|(column, place)| column.needed && place.is_none());
        if let Some((column, _)) = lacking {
            return Err(TableError::Lacks(column.name, column.headings.first().copied().unwrap_or_default()));
        }
        self.places = places;
        Ok(true)
    }
}

/// Whatever stands first of those that may, outside quotes.
fn delimiter(begin: &[u8]) -> u8 {
    let mut quoted = false;
    let outside = begin.iter().copied().filter(|byte| {
        quoted ^= *byte == b'"';
        !quoted
    });
    outside.take_while(|byte| *byte != b'\n').find(|byte| b",;\t".contains(byte)).unwrap_or(b',')
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[Column] = &[
        Column { name: "serial number", headings: &["serial", "mac"], needed: true },
        Column { name: "OAK", headings: &["oak"], needed: true },
        Column { name: "name", headings: &["name"], needed: false },
    ];

    fn read(text: &[u8]) -> Result<Vec<(u64, Vec<String>)>, String> {
        let mut table = Table::new(text, COLUMNS).map_err(|error| error.to_string())?;
        let mut all = Vec::new();
        while let Some(row) = table.next_row().map_err(|error| error.to_string())? {
            let values = match row.values {
                Ok(values) => (0..3).map(|column| values.get(column).to_owned()).collect(),
                Err(fault) => vec![fault],
            };
            all.push((row.line, values));
        }
        Ok(all)
    }

    fn row(line: u64, values: [&str; 3]) -> (u64, Vec<String>) {
        (line, values.map(str::to_owned).to_vec())
    }

    #[test]
    fn tables_are_read_as_spreadsheets_export_them() {
        for (text, expected) in [
            ("1,2,a\n3,4\n", vec![row(1, ["1", "2", "a"]), row(2, ["3", "4", ""])]),
            (
                "\u{feff}Name;OAK;Serial number\r\na;2;1\r\n;;\r\nb;4;3",
                vec![row(2, ["1", "2", "a"]), row(4, ["3", "4", "b"])],
            ),
            ("\"MAC\"\t\"oak\"\n1\t2\n", vec![row(2, ["1", "2", ""])]),
            ("sep=;\n1;2;\"a;b\"\n", vec![row(2, ["1", "2", "a;b"])]),
            ("\"a,b\";2\n", vec![row(1, ["a,b", "2", ""])]),
            ("Serial,Colour,OAK\n1,blue,2\n", vec![row(2, ["1", "2", ""])]),
            ("1,2,\"a \"\"b\"\"\"\n", vec![row(1, ["1", "2", "a \"b\""])]),
            ("1,2\n\n3,4\n", vec![row(1, ["1", "2", ""]), row(3, ["3", "4", ""])]),
            ("", vec![]),
        ] {
            assert_eq!(read(text.as_bytes()).unwrap(), expected, "{text:?}");
        }
    }

    #[test]
    fn a_heading_that_lacks_a_column_and_a_line_that_is_no_text_are_told() {
        let error = read(b"serial;name\n1;a\n").unwrap_err();
        assert_eq!(error, "its heading names no column for the OAK; call one \"oak\"");
        let rows = read(b"1,2\n\xff,2\n3,4\n").unwrap();
        assert_eq!(rows[1], (2, vec!["it is not text in UTF-8".to_owned()]));
        assert_eq!(rows.len(), 3);
    }
}
