//! Registrations on disk: one SQLite file, passwords and OAKs sealed by the master key.
//!
//! Invariant: a secret leaves this module only as [`Secrets`], and only for one device at a time. What a function here
//! has answered survives a power loss.

use crate::{
    moves::Errand,
    passwords::Password,
    record::{Record, Standing},
};
use anyhow::Context;
use homing_base::{Vault, database, vault::SealedColumn};
use homing_protocol::{Oak, Secret, SerialNumber, Step, api::tunnel::RelayState, secret::Credentials};
use serde::Serialize;
use sqlx::{Row, SqliteConnection, SqlitePool, sqlite::SqliteRow};
use std::path::Path;

const MIGRATIONS: &[&str] = &["
CREATE TABLE registration (
    serial      TEXT PRIMARY KEY,
    name        TEXT NOT NULL,
    description TEXT NOT NULL,
    user        TEXT NOT NULL,
    password    BLOB NOT NULL, -- sealed
    oak         BLOB NOT NULL, -- sealed
    relay       TEXT NOT NULL,
    step        INTEGER NOT NULL,
    seq         INTEGER NOT NULL,
    fingerprint TEXT,
    problem     TEXT           -- JSON
) STRICT;
-- Claims that the dispatcher is still to release.
CREATE TABLE release (serial TEXT PRIMARY KEY) STRICT;
-- How far the dispatcher's changes are stored here, and therefore acknowledged.
CREATE TABLE acknowledged (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), seq INTEGER NOT NULL) STRICT;
INSERT INTO acknowledged VALUES (1, 0);
",
"
ALTER TABLE registration ADD COLUMN adopted INTEGER NOT NULL DEFAULT 0; -- another tunnel server vouched for the key
ALTER TABLE registration ADD COLUMN contested TEXT; -- JSON
ALTER TABLE registration ADD COLUMN errand TEXT;    -- JSON
",
"
ALTER TABLE registration ADD COLUMN password_state TEXT NOT NULL DEFAULT 'unknown';
-- Passwords that devices are being told; until one has taken it, the old one is kept in its registration.
CREATE TABLE proposed_password (serial TEXT PRIMARY KEY, password BLOB NOT NULL) STRICT; -- sealed
",
"
CREATE TABLE site (name TEXT PRIMARY KEY, site TEXT NOT NULL) STRICT; -- JSON
",
"
-- What the dispatcher signs its word about our devices' keys with.
CREATE TABLE voucher_key (name TEXT PRIMARY KEY, key BLOB NOT NULL) STRICT; -- sealed
",
"
ALTER TABLE registration ADD COLUMN access TEXT; -- JSON
"];

/// Whatever is sealed: a new column must be named here, to be sealed anew when keys are rotated.
const SEALED: &[SealedColumn] = &[
    SealedColumn {
        table: "registration",
        key: "serial",
        column: "password",
        purpose: |serial| password_purpose(serial),
    },
    SealedColumn {
        table: "proposed_password",
        key: "serial",
        column: "password",
        purpose: |serial| proposed_purpose(serial),
    },
    SealedColumn {
        table: "registration",
        key: "serial",
        column: "oak",
        purpose: |serial| oak_purpose(serial),
    },
    SealedColumn { table: "voucher_key", key: "name", column: "key", purpose: |_| VOUCHER_KEY.to_owned() },
];

/// What the key is sealed for by which the dispatcher's vouchers are known.
const VOUCHER_KEY: &str = "voucher key";

/// Characters of it: 190 bits.
const VOUCHER_KEY_LENGTH: usize = 32;

/// What a registration keeps secret.
#[derive(Clone, Debug)]
pub(crate) struct Secrets {
    /// The key on its label.
    pub oak: Oak,
    /// The device's own user and password.
    pub credentials: Credentials,
}

/// The store; cheap to clone.
#[derive(Clone)]
pub(crate) struct Registrations {
    pool: SqlitePool,
    vault: Vault,
}

impl Registrations {
    /// Opens `tunnel.sqlite` in a folder, or makes it.
    pub async fn open(folder: &Path) -> anyhow::Result<Self> {
        let pool = database::open(&folder.join("tunnel.sqlite"), MIGRATIONS).await?;
        let vault = Vault::open("tunnel", folder, &pool, SEALED).await?;
        Ok(Registrations { pool, vault })
    }

    /// The database, for what has no secrets.
    pub fn pool(&self) -> SqlitePool {
        self.pool.clone()
    }

    /// What the dispatcher signs its word about our devices' keys with: made at the first start.
    pub async fn voucher_key(&self) -> anyhow::Result<Secret> {
        let made = self.vault.seal(VOUCHER_KEY, &homing_base::password::generate(VOUCHER_KEY_LENGTH));
        sqlx::query("INSERT OR IGNORE INTO voucher_key VALUES ('dispatcher', $1)")
            .bind(made)
            .execute(&self.pool)
            .await
            .context("voucher key")?;
        let row = sqlx::query("SELECT key FROM voucher_key").fetch_one(&self.pool).await;
        self.vault.open_sealed(VOUCHER_KEY, row.context("voucher key")?.try_get("key")?)
    }

    /// Its keys, to be kept while the role runs.
    pub fn vault(&self) -> Vault {
        self.vault.clone()
    }

    /// Every registration.
    pub async fn all(&self) -> anyhow::Result<Vec<Record>> {
        let rows = sqlx::query("SELECT * FROM registration").fetch_all(&self.pool).await;
        rows.context("registrations")?.iter().map(record).collect()
    }

    /// Stores a new registration. One that is still to be released is wanted again: it is released no more.
    pub async fn insert(&self, record: &Record, secrets: &Secrets) -> anyhow::Result<()> {
        let mut transaction = self.pool.begin().await.context("registrations")?;
        sqlx::query("DELETE FROM release WHERE serial = $1")
            .bind(record.serial.to_string())
            .execute(&mut *transaction)
            .await?;
        sqlx::query(
            "INSERT INTO registration (serial, name, description, user, password, oak, relay, step, seq, access)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        )
        .bind(record.serial.to_string())
        .bind(&record.name)
        .bind(&record.description)
        .bind(&record.user)
        .bind(self.seal_password(record.serial, &secrets.credentials.password))
        .bind(self.seal_oak(record.serial, &secrets.oak))
        .bind(relay_word(record.standing.relay))
        .bind(i64::from(record.standing.step.number()))
        .bind(sql_integer(record.standing.seq))
        .bind(serde_json::to_string(&record.access)?)
        .execute(&mut *transaction)
        .await?;
        let standing = std::iter::once((record.serial, &record.standing));
        save_standings(&mut transaction, standing).await.context("registrations")?;
        transaction.commit().await.context("registrations")
    }

    /// Replaces what people have entered.
    pub async fn replace(&self, record: &Record, secrets: &Secrets) -> anyhow::Result<()> {
        sqlx::query(
            "UPDATE registration SET name = $2, description = $3, user = $4, password = $5, oak = $6, access = $7
             WHERE serial = $1",
        )
        .bind(record.serial.to_string())
        .bind(&record.name)
        .bind(&record.description)
        .bind(&record.user)
        .bind(self.seal_password(record.serial, &secrets.credentials.password))
        .bind(self.seal_oak(record.serial, &secrets.oak))
        .bind(serde_json::to_string(&record.access)?)
        .execute(&self.pool)
        .await
        .context("registrations")?;
        Ok(())
    }

    /// Forgets a registration; with `release` the dispatcher is still to be told.
    pub async fn remove(&self, serial: SerialNumber, release: bool) -> anyhow::Result<()> {
        let mut transaction = self.pool.begin().await.context("registrations")?;
        sqlx::query("DELETE FROM registration WHERE serial = $1")
            .bind(serial.to_string())
            .execute(&mut *transaction)
            .await?;
        sqlx::query("DELETE FROM proposed_password WHERE serial = $1")
            .bind(serial.to_string())
            .execute(&mut *transaction)
            .await?;
        if release {
            sqlx::query("INSERT OR IGNORE INTO release VALUES ($1)")
                .bind(serial.to_string())
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await.context("registrations")
    }

    /// Stores how far registrations have come; with `acknowledged`, all of it up to there in one piece.
    pub async fn save(
        &self,
        standings: &[(SerialNumber, Standing)],
        acknowledged: Option<u64>,
    ) -> anyhow::Result<()> {
        let mut transaction = self.pool.begin().await.context("registrations")?;
        let standings = standings.iter().map(|(serial, standing)| (*serial, standing));
        save_standings(&mut transaction, standings).await.context("registrations")?;
        if let Some(seq) = acknowledged {
            sqlx::query("UPDATE acknowledged SET seq = $1")
                .bind(sql_integer(seq))
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await.context("registrations")
    }

    /// The secrets of one registration.
    pub async fn secrets(&self, serial: SerialNumber) -> anyhow::Result<Option<Secrets>> {
        let row = sqlx::query("SELECT user, password, oak FROM registration WHERE serial = $1")
            .bind(serial.to_string())
            .fetch_optional(&self.pool)
            .await
            .context("registrations")?;
        let Some(row) = row else { return Ok(None) };
        let oak = self.vault.open_sealed(&oak_purpose(serial), row.try_get("oak")?)?;
        let oak = oak.expose().parse().with_context(|| format!("stored OAK of {serial}"))?;
        let password = self.vault.open_sealed(&password_purpose(serial), row.try_get("password")?)?;
        let credentials = Credentials::new(row.try_get::<String, _>("user")?, password);
        Ok(Some(Secrets { oak, credentials }))
    }

    /// Keeps a password that the device is about to be told, beside the one that it has.
    pub async fn propose_password(&self, serial: SerialNumber, new: &Secret) -> anyhow::Result<()> {
        sqlx::query("INSERT OR REPLACE INTO proposed_password VALUES ($1, $2)")
            .bind(serial.to_string())
            .bind(self.vault.seal(&proposed_purpose(&serial.to_string()), new))
            .execute(&self.pool)
            .await
            .context("registrations")?;
        Ok(())
    }

    /// The password that the device may have been told.
    pub async fn proposed_password(&self, serial: SerialNumber) -> anyhow::Result<Option<Secret>> {
        let row = sqlx::query("SELECT password FROM proposed_password WHERE serial = $1")
            .bind(serial.to_string())
            .fetch_optional(&self.pool)
            .await
            .context("registrations")?;
        let Some(row) = row else { return Ok(None) };
        let purpose = proposed_purpose(&serial.to_string());
        self.vault.open_sealed(&purpose, row.try_get("password")?).map(Some)
    }

    /// The device has not been told, and will not be.
    pub async fn forget_proposed(&self, serial: SerialNumber) -> anyhow::Result<()> {
        let forgotten =
            sqlx::query("DELETE FROM proposed_password WHERE serial = $1").bind(serial.to_string());
        forgotten.execute(&self.pool).await.context("registrations")?;
        Ok(())
    }

    /// The device has taken its new password: the old one is forgotten.
    pub async fn adopt_password(&self, serial: SerialNumber, new: &Secret) -> anyhow::Result<()> {
        let mut transaction = self.pool.begin().await.context("registrations")?;
        sqlx::query("UPDATE registration SET password = $2, password_state = $3 WHERE serial = $1")
            .bind(serial.to_string())
            .bind(self.seal_password(serial, new))
            .bind(Password::Own.word())
            .execute(&mut *transaction)
            .await
            .context("registrations")?;
        sqlx::query("DELETE FROM proposed_password WHERE serial = $1")
            .bind(serial.to_string())
            .execute(&mut *transaction)
            .await
            .context("registrations")?;
        transaction.commit().await.context("registrations")
    }

    /// Claims that the dispatcher is still to release.
    pub async fn to_release(&self) -> anyhow::Result<Vec<SerialNumber>> {
        let rows = sqlx::query("SELECT serial FROM release").fetch_all(&self.pool).await;
        rows.context("registrations")?
            .iter()
            .map(|row| Ok(row.try_get::<String, _>("serial")?.parse()?))
            .collect()
    }

    /// The dispatcher has released a claim.
    pub async fn released(&self, serial: SerialNumber) -> anyhow::Result<()> {
        let forgotten = sqlx::query("DELETE FROM release WHERE serial = $1").bind(serial.to_string());
        forgotten.execute(&self.pool).await.context("registrations")?;
        Ok(())
    }

    /// Up to where the dispatcher's changes are stored.
    pub async fn acknowledged(&self) -> anyhow::Result<u64> {
        let row = sqlx::query("SELECT seq FROM acknowledged").fetch_one(&self.pool).await;
        Ok(row.context("registrations")?.try_get::<i64, _>("seq")?.try_into()?)
    }

    /// Waits for what is being written and closes the file.
    #[cfg(test)]
    pub async fn close(&self) {
        self.pool.close().await;
    }

    fn seal_password(&self, serial: SerialNumber, password: &Secret) -> Vec<u8> {
        self.vault.seal(&password_purpose(serial), password)
    }

    fn seal_oak(&self, serial: SerialNumber, oak: &Oak) -> Vec<u8> {
        self.vault.seal(&oak_purpose(serial), &Secret::new(oak.label()))
    }
}

fn password_purpose(serial: impl std::fmt::Display) -> String {
    format!("password of {serial}")
}

fn proposed_purpose(serial: &str) -> String {
    format!("proposed password of {serial}")
}

fn oak_purpose(serial: impl std::fmt::Display) -> String {
    format!("OAK of {serial}")
}

/// A [`Standing`] in the table's columns.
#[derive(Serialize)]
struct StandingRow {
    serial: SerialNumber,
    relay: &'static str,
    step: u8,
    seq: i64,
    fingerprint: Option<String>,
    problem: Option<String>,
    adopted: bool,
    contested: Option<String>,
    errand: Option<String>,
    password_state: &'static str,
}

impl StandingRow {
    fn new(serial: SerialNumber, standing: &Standing) -> serde_json::Result<Self> {
        let errand = (standing.errand != Errand::default()).then_some(&standing.errand);
        Ok(StandingRow {
            serial,
            relay: relay_word(standing.relay),
            step: standing.step.number(),
            seq: sql_integer(standing.seq),
            fingerprint: standing.fingerprint.map(|fingerprint| fingerprint.to_string()),
            problem: standing.problem.as_ref().map(serde_json::to_string).transpose()?,
            adopted: standing.adopted,
            contested: standing.contested.as_ref().map(serde_json::to_string).transpose()?,
            errand: errand.map(serde_json::to_string).transpose()?,
            password_state: standing.password.word(),
        })
    }
}

/// By one statement: one for each would wake SQLite's thread and its caller once more for each.
async fn save_standings<'a>(
    connection: &mut SqliteConnection,
    standings: impl Iterator<Item = (SerialNumber, &'a Standing)>,
) -> anyhow::Result<()> {
    let rows: Result<Vec<_>, _> =
        standings.map(|(serial, standing)| StandingRow::new(serial, standing)).collect();
    let update = sqlx::query(
        "UPDATE registration SET relay = new.value->>'relay', step = new.value->>'step', seq = new.value->>'seq',
             fingerprint = new.value->>'fingerprint', problem = new.value->>'problem',
             adopted = new.value->>'adopted', contested = new.value->>'contested',
             errand = new.value->>'errand', password_state = new.value->>'password_state'
         FROM json_each($1) AS new WHERE registration.serial = new.value->>'serial'",
    );
    update.bind(serde_json::to_string(&rows?)?).execute(connection).await?;
    Ok(())
}

fn record(row: &SqliteRow) -> anyhow::Result<Record> {
    let serial: SerialNumber = row.try_get::<String, _>("serial")?.parse()?;
    let read = || -> anyhow::Result<Record> {
        let step = u8::try_from(row.try_get::<i64, _>("step")?)?;
        let fingerprint: Option<String> = row.try_get("fingerprint")?;
        let problem: Option<String> = row.try_get("problem")?;
        let contested: Option<String> = row.try_get("contested")?;
        let errand: Option<String> = row.try_get("errand")?;
        let access: Option<String> = row.try_get("access")?;
        Ok(Record {
            serial,
            name: row.try_get("name")?,
            description: row.try_get("description")?,
            user: row.try_get("user")?,
            access: access.map(|text| serde_json::from_str(&text)).transpose()?.unwrap_or_default(),
            standing: Standing {
                relay: relay_state(&row.try_get::<String, _>("relay")?)?,
                step: Step::from_number(step).with_context(|| format!("step {step}"))?,
                seq: row.try_get::<i64, _>("seq")?.try_into()?,
                fingerprint: fingerprint.map(|text| text.parse()).transpose()?,
                adopted: row.try_get("adopted")?,
                problem: problem.map(|text| serde_json::from_str(&text)).transpose()?,
                contested: contested.map(|text| serde_json::from_str(&text)).transpose()?,
                password: Password::from_word(&row.try_get::<String, _>("password_state")?),
                errand: errand.map(|text| serde_json::from_str(&text)).transpose()?.unwrap_or_default(),
            },
        })
    };
    read().with_context(|| format!("stored registration of {serial}"))
}

/// SQLite's integers are signed.
fn sql_integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

const RELAY_WORDS: [(RelayState, &str); 5] = [
    (RelayState::Pending, "pending"),
    (RelayState::Waiting, "waiting"),
    (RelayState::Dispatching, "dispatching"),
    (RelayState::Dispatched, "dispatched"),
    (RelayState::Refused, "refused"),
];

/// The word that stands in the database and in messages.
pub(crate) fn relay_word(state: RelayState) -> &'static str {
    RELAY_WORDS.iter().find(|(known, _)| *known == state).map_or("pending", |(_, word)| word)
}

fn relay_state(word: &str) -> anyhow::Result<RelayState> {
    let known = RELAY_WORDS.iter().find(|(_, known)| *known == word);
    known.map(|(state, _)| *state).with_context(|| format!("relay state {word:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use homing_protocol::api::{Problem, Target};
    use homing_uplink::Fingerprint;

    fn record(serial: &str) -> Record {
        Record {
            serial: serial.parse().unwrap(),
            name: "Entrance".into(),
            description: "above the door".into(),
            user: "root".into(),
            access: Default::default(),
            standing: Standing::registered(),
        }
    }

    fn secrets() -> Secrets {
        Secrets {
            oak: "0123-4567-89AB".parse().unwrap(),
            credentials: Credentials::new("root", "open sesame"),
        }
    }

    async fn open(folder: &Path) -> Registrations {
        Registrations::open(folder).await.unwrap()
    }

    #[tokio::test]
    async fn what_was_stored_is_there_after_a_restart_and_its_secrets_are_not_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = record("00408C000001");
        let store = open(folder.path()).await;
        store.insert(&first, &secrets()).await.unwrap();
        first.standing.fingerprint = Some(Fingerprint([7; 32]));
        first.standing.step = Step::Dispatch;
        first.standing.problem = Some(Problem::at(Step::Dispatch, "wrong-oak", "The OAK is wrong.").error);
        let target = Target { servers: vec!["sts.example:8443".into()], trust_anchor: String::new() };
        first.standing.errand.send(target, Some("other".into()), false, jiff::Timestamp::UNIX_EPOCH);
        first.standing.errand.forget.push("old.example:8443".into());
        first.standing.adopted = true;
        store.save(&[(first.serial, first.standing.clone())], Some(42)).await.unwrap();
        first.name = "Exit".into();
        first.access.add_credentials = true;
        first.access.ports.pop();
        store.replace(&first, &secrets()).await.unwrap();
        store.close().await;

        let store = open(folder.path()).await;
        assert_eq!(store.all().await.unwrap(), std::slice::from_ref(&first));
        assert_eq!(store.acknowledged().await.unwrap(), 42);
        let kept = store.secrets(first.serial).await.unwrap().unwrap();
        assert_eq!((kept.oak, kept.credentials), (secrets().oak, secrets().credentials));
        store.close().await;
        for file in std::fs::read_dir(folder.path()).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            for secret in [&b"open sesame"[..], b"0123-4567-89AB", b"0123456789AB"] {
                assert!(!bytes.windows(secret.len()).any(|window| window == secret));
            }
        }
    }

    #[tokio::test]
    async fn a_removed_registration_is_released_unless_it_is_registered_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path()).await;
        let (one, two) = (record("00408C000001"), record("00408C000002"));
        for record in [&one, &two] {
            store.insert(record, &secrets()).await.unwrap();
            store.remove(record.serial, true).await.unwrap();
        }
        assert!(store.all().await.unwrap().is_empty());
        assert!(store.secrets(one.serial).await.unwrap().is_none());
        store.insert(&one, &secrets()).await.unwrap();
        assert_eq!(store.to_release().await.unwrap(), [two.serial]);
        store.released(two.serial).await.unwrap();
        assert!(store.to_release().await.unwrap().is_empty());
    }
}
