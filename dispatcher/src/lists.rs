//! Manufacturers' lists: the OAK of every device that left the factory (step 2).
//!
//! With them a registration is checked before the device has ever phoned: a wrong OAK is refused at once, and
//! whoever lost a label can be helped. A device that is on no list proves its OAK itself, unless the
//! configuration says that every device is on one.
//!
//! A list is a table as spreadsheets export it ([`homing_base::table`]): serial number, OAK, model, key (the last two may
//! be missing; a key is the hexadecimal SHA-256 of the device's public key, DER SubjectPublicKeyInfo). Lines are taken
//! in the order of the file, the last one counts.
//!
//! Invariant: OAKs are sealed in the database, each bound to its serial number.

use crate::{
    audit::{self, Action},
    store,
};
use anyhow::{Context, bail};
use homing_base::{
    Vault,
    table::{self, Column, Table, TableError, Values},
};
use homing_protocol::{Oak, Secret, SerialNumber};
use homing_uplink::Fingerprint;
use jiff::Timestamp;
use sqlx::{QueryBuilder, Sqlite, SqliteExecutor, SqlitePool, Transaction};
use std::{collections::HashMap, io::Read, path::Path};

/// Lines taken in one transaction: others that write wait tens of milliseconds at most.
const LINES_AT_ONCE: usize = 1000;

/// Faults that are told one by one; what is more is only counted.
const FAULTS_TOLD: usize = 100;

/// Characters of a model's name.
const MODEL_LONGEST: usize = 100;

const SERIAL: usize = 0;
const OAK: usize = 1;
const MODEL: usize = 2;
const KEY: usize = 3;
const COLUMNS: &[Column] = &[
    table::SERIAL_NUMBERS,
    table::OAKS,
    Column { name: "model", headings: &["model", "product"], needed: false },
    Column { name: "key", headings: &["key", "fingerprint", "publickey", "sha256"], needed: false },
];

/// What to do with a line that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFault {
    /// Name it and go on.
    Skip,
    /// Name it and take nothing of what comes after it.
    Stop,
}

/// What came of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Devices that were not known.
    pub new: u64,
    /// Devices that got another OAK or model.
    pub changed: u64,
    /// Devices that were known so.
    pub same: u64,
    /// Lines that could not be read.
    pub faulty: u64,
    /// The first hundred of them: number of the line, and what is wrong with it.
    pub faults: Vec<(u64, String)>,
}

struct Line {
    serial: SerialNumber,
    oak: Oak,
    model: String,
    key: Option<Fingerprint>,
}

/// What a list says of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub oak: Oak,
    /// The key of its certificate, where the list has one.
    pub key: Option<Fingerprint>,
}

/// Takes a list; `name` is what the audit log calls it.
///
/// # Errors
/// When the list cannot be read, or the data folder cannot be used. What was taken before stays.
pub async fn import(data: &Path, name: &str, list: impl Read, on_fault: OnFault) -> anyhow::Result<Imported> {
    let pool = store::open_database(data).await?;
    let vault = store::open_vault(data, &pool).await?;
    let unreadable = |error: TableError| anyhow::Error::new(error).context(format!("list {name}"));
    let mut list = Table::new(list, COLUMNS).map_err(unreadable)?;

    let mut change = pool.begin_with("BEGIN IMMEDIATE").await?;
    audit::write(&mut change, audit::OPERATOR, Action::ListOpened, None, name).await?;
    change.commit().await?;

    let mut imported = Imported::default();
    let mut chunk = Vec::with_capacity(LINES_AT_ONCE);
    while let Some(row) = list.next_row().map_err(unreadable)? {
        match row.values.and_then(|values| parse(&values)) {
            Ok(line) => chunk.push(line),
            Err(fault) => {
                imported.faulty += 1;
                if imported.faults.len() < FAULTS_TOLD {
                    imported.faults.push((row.line, fault));
                }
                if on_fault == OnFault::Stop {
                    break;
                }
            }
        }
        if chunk.len() == LINES_AT_ONCE {
            take(&pool, &vault, std::mem::take(&mut chunk), &mut imported).await?;
        }
    }
    take(&pool, &vault, chunk, &mut imported).await?;

    let Imported { new, changed, same, faulty, .. } = &imported;
    let detail = format!("{name}: {new} new, {changed} changed, {same} the same, {faulty} faulty");
    let mut change = pool.begin_with("BEGIN IMMEDIATE").await?;
    audit::write(&mut change, audit::OPERATOR, Action::ListImported, None, &detail).await?;
    change.commit().await?;
    pool.close().await;
    Ok(imported)
}

/// Shows the OAK of a listed device to the dispatcher's operator; who asked, and why, is in the audit log.
///
/// # Errors
/// When the device is on no list, or the data folder cannot be used.
pub async fn show(data: &Path, serial: SerialNumber, reason: &str) -> anyhow::Result<Oak> {
    let pool = store::open_database(data).await?;
    let vault = store::open_vault(data, &pool).await?;
    let mut change = pool.begin_with("BEGIN IMMEDIATE").await?;
    vault.refresh(&mut change).await?;
    let Some(oak) = listed(&mut change, &vault, serial).await? else {
        bail!("{serial} is on no list that was imported here");
    };
    audit::write(&mut change, audit::OPERATOR, Action::OakShown, Some(serial), reason).await?;
    change.commit().await?;
    pool.close().await;
    Ok(oak)
}

/// The OAK that a list gives for a device.
pub(crate) async fn listed(
    change: &mut Transaction<'_, Sqlite>,
    vault: &Vault,
    serial: SerialNumber,
) -> anyhow::Result<Option<Oak>> {
    Ok(find(&mut **change, vault, serial).await?.map(|listed| listed.oak))
}

/// What a list says of a device.
pub(crate) async fn find(
    database: impl SqliteExecutor<'_>,
    vault: &Vault,
    serial: SerialNumber,
) -> anyhow::Result<Option<Listed>> {
    let row: Option<(Vec<u8>, Option<String>)> =
        sqlx::query_as("SELECT oak, key FROM listed WHERE serial = $1")
            .bind(serial.to_string())
            .fetch_optional(database)
            .await
            .context("list")?;
    row.map(|(sealed, key)| Ok(Listed { oak: open(vault, serial, &sealed)?, key: parse_stored(key)? }))
        .transpose()
}

fn parse_stored(key: Option<String>) -> anyhow::Result<Option<Fingerprint>> {
    key.map(|key| key.parse().context("key in the database")).transpose()
}

async fn take(
    pool: &SqlitePool,
    vault: &Vault,
    lines: Vec<Line>,
    imported: &mut Imported,
) -> anyhow::Result<()> {
    // The last line of a device counts, and SQL takes a row once.
    let lines: HashMap<SerialNumber, Line> = lines.into_iter().map(|line| (line.serial, line)).collect();
    if lines.is_empty() {
        return Ok(());
    }
    let mut change = pool.begin_with("BEGIN IMMEDIATE").await.context("list")?;
    vault.refresh(&mut change).await?;
    let known = known(&mut change, vault, lines.keys().copied()).await?;
    let mut writes = Vec::with_capacity(lines.len());
    for line in lines.into_values() {
        match known.get(&line.serial) {
            Some((listed, model))
                if listed.oak == line.oak && listed.key == line.key && *model == line.model =>
            {
                imported.same += 1;
            }
            Some(_) => {
                imported.changed += 1;
                writes.push(line);
            }
            None => {
                imported.new += 1;
                writes.push(line);
            }
        }
    }
    if !writes.is_empty() {
        let now = Timestamp::now().to_string();
        let mut insert =
            QueryBuilder::new("INSERT OR REPLACE INTO listed (serial, oak, model, key, imported) ");
        insert.push_values(writes, |mut row, line| {
            row.push_bind(line.serial.to_string())
                .push_bind(seal(vault, line.serial, &line.oak))
                .push_bind(line.model)
                .push_bind(line.key.map(|key| key.to_string()))
                .push_bind(now.clone());
        });
        insert.build().execute(&mut *change).await.context("list")?;
    }
    change.commit().await.context("list")
}

async fn known(
    change: &mut Transaction<'_, Sqlite>,
    vault: &Vault,
    serials: impl Iterator<Item = SerialNumber>,
) -> anyhow::Result<HashMap<SerialNumber, (Listed, String)>> {
    let mut select = QueryBuilder::new("SELECT serial, oak, model, key FROM listed WHERE serial IN (");
    let mut places = select.separated(", ");
    for serial in serials {
        places.push_bind(serial.to_string());
    }
    select.push(")");
    let rows: Vec<(String, Vec<u8>, String, Option<String>)> =
        select.build_query_as().fetch_all(&mut **change).await.context("list")?;
    rows.into_iter()
        .map(|(serial, sealed, model, key)| {
            let serial = serial.parse().context("serial number in the database")?;
            let listed = Listed { oak: open(vault, serial, &sealed)?, key: parse_stored(key)? };
            Ok((serial, (listed, model)))
        })
        .collect()
}

fn parse(values: &Values) -> Result<Line, String> {
    let (serial, oak) = (values.get(SERIAL), values.get(OAK));
    if oak.is_empty() {
        return Err("it has no OAK: serial number, OAK, model, key".to_owned());
    }
    let serial = serial.parse().map_err(|error: homing_protocol::serial::ParseHexError| error.to_string())?;
    // The message names what was typed only by its length and the character that does not belong.
    let oak = oak.parse().map_err(|error: homing_protocol::serial::ParseHexError| error.to_string())?;
    let model = values.get(MODEL);
    if model.chars().count() > MODEL_LONGEST || model.chars().any(char::is_control) {
        return Err(format!(
            "the model has more than {MODEL_LONGEST} characters, or some that are not printable"
        ));
    }
    let key = match values.get(KEY) {
        "" => None,
        key => Some(key.replace(':', "").parse().map_err(|error| format!("the key: {error}"))?),
    };
    Ok(Line { serial, oak, model: model.to_owned(), key })
}

pub(crate) fn purpose(serial: impl std::fmt::Display) -> String {
    format!("listed {serial}")
}

fn seal(vault: &Vault, serial: SerialNumber, oak: &Oak) -> Vec<u8> {
    vault.seal(&purpose(serial), &Secret::new(oak.label()))
}

fn open(vault: &Vault, serial: SerialNumber, sealed: &[u8]) -> anyhow::Result<Oak> {
    let label = vault.open_sealed(&purpose(serial), sealed)?;
    label.expose().parse().context("OAK in the database")
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn import_text(data: &Path, text: &str, on_fault: OnFault) -> Imported {
        import(data, "test.csv", text.as_bytes(), on_fault).await.unwrap()
    }

    /// Goal: what spreadsheets export is taken, faulty lines are named with their numbers, and a second time
    /// changes only what is different.
    #[tokio::test]
    async fn lists_as_they_come() {
        let folder = tempfile::tempdir().unwrap();
        let text = "Serial number;OAK;Model\r\n\
            00:40:8c:70:20:09;0a1b2c3d4e5f;Dome 1\r\n\
            \"0040-8C70-200A\"; 0A1B-2C3D-4E60 \r\n\
            00408C70200;0A1B2C3D4E5F;Dome 1\r\n\
            00408C70200B\r\n\
            00408C70200C;0A1B-2C3D-4E6X;Dome 1\r\n";
        let imported = import_text(folder.path(), text, OnFault::Skip).await;
        assert_eq!((imported.new, imported.changed, imported.same, imported.faulty), (2, 0, 0, 3));
        let lines: Vec<u64> = imported.faults.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [4, 5, 6], "{:?}", imported.faults);

        let text = "00408C702009,0A1B-2C3D-4E5F,Dome 1\n00408C70200A,FFFF-FFFF-FFFF,Dome 2\n";
        let imported = import_text(folder.path(), text, OnFault::Skip).await;
        assert_eq!((imported.new, imported.changed, imported.same, imported.faulty), (0, 1, 1, 0));
        let serial = "00408C70200A".parse().unwrap();
        assert_eq!(show(folder.path(), serial, "lost label").await.unwrap().label(), "FFFF-FFFF-FFFF");
        let unknown = "000000000001".parse().unwrap();
        assert!(show(folder.path(), unknown, "").await.unwrap_err().to_string().contains("on no list"));

        let mut told = Vec::new();
        audit::read(folder.path(), None, |entry| told.push(format!("{} {}", entry.action, entry.detail)))
            .await
            .unwrap();
        assert_eq!(
            told,
            [
                "list-opened test.csv",
                "list-imported test.csv: 2 new, 0 changed, 0 the same, 3 faulty",
                "list-opened test.csv",
                "list-imported test.csv: 0 new, 1 changed, 1 the same, 0 faulty",
                "oak-shown lost label",
            ]
        );
    }

    /// Goal: a list may have each device's key, as tools print it; what is no key is named.
    #[tokio::test]
    async fn a_list_may_have_keys() {
        let folder = tempfile::tempdir().unwrap();
        let key = ["AB"; 32].join(":");
        let text = format!("00408C702009,0A1B2C3D4E5F,Dome,{key}\n00408C70200A,0A1B2C3D4E5F,Dome,AB:CD\n");
        let imported = import_text(folder.path(), &text, OnFault::Skip).await;
        assert_eq!((imported.new, imported.faulty), (1, 1));
        assert!(imported.faults[0].1.contains("key"), "{:?}", imported.faults);
        let store = store::Store::open(folder.path()).await.unwrap();
        let listed = store.listed("00408C702009".parse().unwrap()).await.unwrap().unwrap();
        assert_eq!(listed.key, Some(Fingerprint([0xAB; 32])));
        let without = import_text(folder.path(), "00408C702009,0A1B2C3D4E5F,Dome\n", OnFault::Skip).await;
        assert_eq!(without.changed, 1, "the last line counts");
    }

    /// Goal: asked to, the import stops at the first faulty line; what stood before it is taken.
    #[tokio::test]
    async fn it_stops_where_it_is_asked_to() {
        let folder = tempfile::tempdir().unwrap();
        let text = "00408C702009,0A1B2C3D4E5F\nnonsense\n00408C70200A,0A1B2C3D4E5F\n";
        let imported = import_text(folder.path(), text, OnFault::Stop).await;
        assert_eq!((imported.new, imported.faulty), (1, 1));
    }

    /// Goal: no OAK of a list lies readable in the database.
    #[tokio::test]
    async fn listed_oaks_are_sealed() {
        let folder = tempfile::tempdir().unwrap();
        let text: String = (1..=3000).map(|n| format!("{n:012X},0A1B-2C3D-4E5F,Dome\n")).collect();
        assert_eq!(import_text(folder.path(), &text, OnFault::Skip).await.new, 3000);
        for entry in std::fs::read_dir(folder.path()).unwrap() {
            let path = entry.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            for clear in ["0A1B-2C3D-4E5F", "0A1B2C3D4E5F", "0a1b2c3d4e5f"] {
                assert!(
                    !bytes.windows(clear.len()).any(|window| window == clear.as_bytes()),
                    "{}",
                    path.display()
                );
            }
        }
    }
}
