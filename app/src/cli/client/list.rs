//! Devices to be registered, as a spreadsheet exports them (step 1): pure.
//!
//! Serial number, OAK, user, password, name, description, tunnel server; all but the first two may be missing. What is
//! wrong with a line is known before anything is sent. `management/web/js/csv.js` reads the same in the browser, and
//! `app/testdata/lists.json` holds both to one behaviour.

use homing_base::table::{self, Column, Table, TableError, Values};
use homing_protocol::{Oak, Secret, SerialNumber};
use std::{collections::HashMap, io::Read};

const SERIAL: usize = 0;
const OAK: usize = 1;
const USER: usize = 2;
const PASSWORD: usize = 3;
const NAME: usize = 4;
const DESCRIPTION: usize = 5;
const SERVER: usize = 6;

const COLUMNS: &[Column] = &[
    table::SERIAL_NUMBERS,
    table::OAKS,
    Column { name: "user", headings: &["user", "username", "login"], needed: false },
    Column { name: "password", headings: &["password", "pass"], needed: false },
    Column { name: "name", headings: &["name", "devicename", "cameraname"], needed: false },
    Column { name: "description", headings: &["description", "location", "note"], needed: false },
    Column { name: "tunnel server", headings: &["server", "tunnelserver", "sts"], needed: false },
];

/// As the API has it.
const NAME_LONGEST: usize = 64;
const DESCRIPTION_LONGEST: usize = 256;

/// What a line takes that does not say it itself.
#[derive(Default)]
pub(super) struct Defaults {
    pub user: String,
    pub password: Secret,
    pub server: Option<String>,
}

/// A device to be registered.
#[derive(Debug)]
pub(super) struct Line {
    pub line: u64,
    pub serial: SerialNumber,
    pub oak: Oak,
    pub user: String,
    pub password: Secret,
    pub name: String,
    pub description: String,
    pub server: Option<String>,
}

/// A line that cannot be meant so.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub line: u64,
    /// The serial number as it was typed.
    pub serial: String,
    /// Which column.
    pub column: &'static str,
    /// What is wrong with it; never repeats a secret.
    pub message: String,
}

/// Every line of a list that holds something.
///
/// # Errors
/// When the list as a whole cannot be used.
pub(super) fn read(input: impl Read, defaults: &Defaults) -> Result<Vec<Result<Line, Fault>>, TableError> {
    let mut table = Table::new(input, COLUMNS)?;
    let mut all = Vec::new();
    let mut lines = HashMap::new();
    while let Some(row) = table.next_row()? {
        let line = row.line;
        let fault = |serial: &str, column, message| Fault {
            line,
            serial: serial.chars().filter(|c| !c.is_control()).take(32).collect(),
            column,
            message,
        };
        all.push(match row.values {
            Err(message) => Err(fault("", "line", message)),
            Ok(values) => match parse(line, &values, defaults) {
                Err((column, message)) => Err(fault(values.get(SERIAL), column, message)),
                Ok(parsed) => match lines.insert(parsed.serial, line) {
                    None => Ok(parsed),
                    Some(first) => {
                        let message = format!("the same serial number as on line {first}");
                        Err(fault(values.get(SERIAL), "serial", message))
                    }
                },
            },
        });
    }
    Ok(all)
}

fn parse(line: u64, values: &Values, defaults: &Defaults) -> Result<Line, (&'static str, String)> {
    let wrong = |column| move |error: homing_protocol::serial::ParseHexError| (column, error.to_string());
    let serial = values.get(SERIAL).parse().map_err(wrong("serial"))?;
    let oak = values.get(OAK).parse().map_err(wrong("oak"))?;
    let or = |column: usize, default: &str| match values.get(column) {
        "" => default.to_owned(),
        given => given.to_owned(),
    };
    let user = or(USER, &defaults.user);
    let password = Secret::new(or(PASSWORD, defaults.password.expose()));
    if user.is_empty() {
        return Err(("user", "it has no user to log in to the device with".to_owned()));
    }
    if password.is_empty() {
        return Err(("password", "it has no password to log in to the device with".to_owned()));
    }
    let text = |column: usize, name: &'static str, longest: usize| {
        let text = values.get(column);
        match text.chars().count() > longest || text.chars().any(char::is_control) {
            true => Err((name, format!("more than {longest} characters, or some that are not printable"))),
            false => Ok(text.to_owned()),
        }
    };
    Ok(Line {
        line,
        serial,
        oak,
        user,
        password,
        name: text(NAME, "name", NAME_LONGEST)?,
        description: text(DESCRIPTION, "description", DESCRIPTION_LONGEST)?,
        server: Some(values.get(SERVER).to_owned())
            .filter(|server| !server.is_empty())
            .or_else(|| defaults.server.clone()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// Goal: the command and the page read a list alike; the page's half is in `app/tests/it/browser.rs`.
    #[test]
    fn lists_are_read_as_the_cases_say() {
        let cases: Value = serde_json::from_str(include_str!("../../../testdata/lists.json")).unwrap();
        for case in cases.as_array().unwrap() {
            let defaults = Defaults {
                user: "root".into(),
                password: case["password"].as_str().unwrap_or_default().into(),
                server: None,
            };
            let read = match read(case["text"].as_str().unwrap().as_bytes(), &defaults) {
                Err(error) => {
                    assert!(case["error"].is_string(), "{}: {error}", case["text"]);
                    continue;
                }
                Ok(read) => read,
            };
            let rows: Vec<Value> = read
                .iter()
                .map(|row| match row {
                    Ok(line) => json!({
                        "line": line.line, "serial": line.serial.to_string(), "oak": line.oak.label(),
                        "user": line.user, "password": line.password.expose(), "name": line.name,
                        "description": line.description, "server": line.server.clone().unwrap_or_default(),
                    }),
                    Err(fault) => json!({"line": fault.line, "fault": fault.column}),
                })
                .collect();
            assert_eq!(json!(rows), case["rows"], "{}", case["text"]);
        }
    }

    #[test]
    fn a_fault_says_what_and_where_and_repeats_no_secret() {
        let text = "00408C702009,0123-4567-89AX,root,sesame\n";
        let read = read(text.as_bytes(), &Defaults::default()).unwrap();
        let fault = read[0].as_ref().unwrap_err();
        assert_eq!((fault.line, fault.column, fault.serial.as_str()), (1, "oak", "00408C702009"));
        assert!(!fault.message.contains("0123") && fault.message.contains("'X'"), "{}", fault.message);
    }
}
