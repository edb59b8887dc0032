//! The audit log: who did what to which device, in the order in which it was done (steps 2 and 5).
//!
//! Invariants:
//! - an entry is written in the transaction of the change that it tells of: neither is there without the other.
//!   A list is taken in parts, so it has two: one before the first part, one with what came of it;
//! - what one account is refused again and again is told once, so that nobody fills the log by asking;
//! - entries are never changed or deleted (triggers of the schema refuse it), and are numbered without a gap;
//! - each holds the hash of itself and of the one before. Whoever alters the file with other means must alter
//!   every later hash too; a hash that was noted elsewhere (the log of the process tells each, and
//!   `homing dispatcher audit` the last) then no longer fits.
//!
//! No secret is in it.

use crate::store;
use anyhow::{Context, ensure};
use homing_protocol::SerialNumber;
use jiff::Timestamp;
use serde::Serialize;
use sha2::{Digest, Sha256};
use sqlx::{Sqlite, Transaction};
use std::{fmt, path::Path};

/// Who works with the commands of this machine.
pub(crate) const OPERATOR: &str = "operator";

/// Entries read at once.
const PAGE: i64 = 1000;

/// What was done. The word is in the database and in what people read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    AccountCreated,
    AccountChanged,
    AccountEnabled,
    AccountDisabled,
    PasswordSet,
    ListOpened,
    ListImported,
    OakShown,
    Registered,
    RegistrationChanged,
    RegistrationDeleted,
    DestinationUsed,
    Claimed,
    ClaimRefused,
    /// A claim is bound to another key than before.
    KeyChanged,
    Offered,
    OfferWithdrawn,
    Transferred,
    Released,
    Dispatched,
    Arrived,
}

impl Action {
    fn word(self) -> &'static str {
        match self {
            Action::AccountCreated => "account-created",
            Action::AccountChanged => "account-changed",
            Action::AccountEnabled => "account-enabled",
            Action::AccountDisabled => "account-disabled",
            Action::PasswordSet => "password-set",
            Action::ListOpened => "list-opened",
            Action::ListImported => "list-imported",
            Action::OakShown => "oak-shown",
            Action::Registered => "registered",
            Action::RegistrationChanged => "registration-changed",
            Action::RegistrationDeleted => "registration-deleted",
            Action::DestinationUsed => "destination-used",
            Action::Claimed => "claimed",
            Action::ClaimRefused => "claim-refused",
            Action::KeyChanged => "key-changed",
            Action::Offered => "offered",
            Action::OfferWithdrawn => "offer-withdrawn",
            Action::Transferred => "transferred",
            Action::Released => "released",
            Action::Dispatched => "dispatched",
            Action::Arrived => "arrived",
        }
    }
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Its number, from 1.
    pub id: i64,
    /// When, RFC 3339.
    pub at: String,
    /// The account's name, or `operator` for whoever used a command on the dispatcher's machine.
    pub actor: String,
    /// What was done, as a word for programs.
    pub action: String,
    /// Which device, if it was about one.
    pub serial: Option<String>,
    /// What else there is to say; empty if nothing.
    pub detail: String,
    /// Of this entry and all before, hexadecimal.
    pub hash: String,
}

impl Entry {
    fn expected_hash(&self, before: &str) -> String {
        let mut hash = Sha256::new();
        let serial = self.serial.as_deref().unwrap_or_default();
        // With their lengths, so that no two entries run together to the same bytes.
        for part in [before, &self.id.to_string(), &self.at, &self.actor, &self.action, serial, &self.detail]
        {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A line for people.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Entry { id, at, actor, action, detail, .. } = self;
        let serial = self.serial.as_deref().unwrap_or("-");
        write!(f, "{id:>8}  {at:.19}Z  {actor:<20} {action:<20} {serial:<14} {detail}")
    }
}

type Row = (i64, String, String, String, Option<String>, String, String);
const ROW: &str = "id, at, actor, action, serial, detail, hash";

fn entry((id, at, actor, action, serial, detail, hash): Row) -> Entry {
    Entry { id, at, actor, action, serial, detail, hash }
}

/// Adds an entry to what `change` does. It must have begun as a writer (`BEGIN IMMEDIATE`), or two could get
/// the same number.
pub(crate) async fn write(
    change: &mut Transaction<'_, Sqlite>,
    actor: &str,
    action: Action,
    serial: Option<SerialNumber>,
    detail: &str,
) -> anyhow::Result<()> {
    let last: Option<(i64, String)> = sqlx::query_as("SELECT id, hash FROM audit ORDER BY id DESC LIMIT 1")
        .fetch_optional(&mut **change)
        .await
        .context("audit log")?;
    let (id, before) = last.unwrap_or_default();
    let mut entry = Entry {
        id: id + 1,
        at: Timestamp::now().to_string(),
        actor: actor.to_owned(),
        action: action.word().to_owned(),
        serial: serial.map(|serial| serial.to_string()),
        detail: detail.to_owned(),
        hash: String::new(),
    };
    entry.hash = entry.expected_hash(&before);
    sqlx::query(sqlx::AssertSqlSafe(format!(
        "INSERT INTO audit ({ROW}) VALUES ($1, $2, $3, $4, $5, $6, $7)"
    )))
    .bind(entry.id)
    .bind(&entry.at)
    .bind(&entry.actor)
    .bind(&entry.action)
    .bind(&entry.serial)
    .bind(&entry.detail)
    .bind(&entry.hash)
    .execute(&mut **change)
    .await
    .context("audit log")?;
    tracing::info!(
        id = entry.id,
        actor,
        action = entry.action,
        serial = entry.serial,
        hash = entry.hash,
        "audit"
    );
    Ok(())
}

/// Whether the last entry about a device is that this actor did just this.
pub(crate) async fn was_last(
    change: &mut Transaction<'_, Sqlite>,
    actor: &str,
    action: Action,
    serial: SerialNumber,
) -> anyhow::Result<bool> {
    let last: Option<(String, String)> =
        sqlx::query_as("SELECT actor, action FROM audit WHERE serial = $1 ORDER BY id DESC LIMIT 1")
            .bind(serial.to_string())
            .fetch_optional(&mut **change)
            .await
            .context("audit log")?;
    Ok(last.is_some_and(|(who, what)| who == actor && what == action.word()))
}

/// Reads the whole log, checks every hash, and passes on the entries of that device, or all; gives the number
/// of entries and the last hash.
///
/// # Errors
/// When the data folder cannot be used, or from which entry on the log was altered.
pub async fn read(
    data: &Path,
    serial: Option<SerialNumber>,
    mut each: impl FnMut(&Entry),
) -> anyhow::Result<(i64, String)> {
    let pool = store::open_database(data).await?;
    let serial = serial.map(|serial| serial.to_string());
    let (mut count, mut hash) = (0, String::new());
    loop {
        let rows: Vec<Row> = sqlx::query_as(sqlx::AssertSqlSafe(format!(
            "SELECT {ROW} FROM audit WHERE id > $1 ORDER BY id LIMIT {PAGE}"
        )))
        .bind(count)
        .fetch_all(&pool)
        .await
        .context("audit log")?;
        if rows.is_empty() {
            pool.close().await;
            return Ok((count, hash));
        }
        for entry in rows.into_iter().map(entry) {
            let is_next = entry.id == count + 1 && entry.hash == entry.expected_hash(&hash);
            ensure!(
                is_next,
                "the audit log was altered: entry {} does not follow from what is before it",
                entry.id
            );
            (count, hash) = (entry.id, entry.hash.clone());
            if serial.is_none() || serial == entry.serial {
                each(&entry);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounts;

    async fn all(data: &Path) -> anyhow::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        read(data, None, |entry| entries.push(entry.clone())).await?;
        Ok(entries)
    }

    /// Goal: what was done is told in order, and can neither be changed nor deleted by SQL.
    #[tokio::test]
    async fn the_log_only_grows() {
        let folder = tempfile::tempdir().unwrap();
        accounts::create(folder.path(), "shop").await.unwrap();
        accounts::set_password(folder.path(), "shop").await.unwrap();
        accounts::disable(folder.path(), "shop").await.unwrap();
        let entries = all(folder.path()).await.unwrap();
        let actions: Vec<&str> = entries.iter().map(|entry| entry.action.as_str()).collect();
        assert_eq!(actions, ["account-created", "password-set", "account-disabled"]);
        assert!(entries.iter().all(|entry| entry.actor == OPERATOR && entry.detail == "shop"));

        let pool = store::open_database(folder.path()).await.unwrap();
        for statement in ["DELETE FROM audit WHERE id = 3", "UPDATE audit SET detail = 'x' WHERE id = 1"] {
            let refused = sqlx::query(statement).execute(&pool).await.unwrap_err().to_string();
            assert!(refused.contains("only grows"), "{refused}");
        }
    }

    /// Goal: whoever gets past the triggers is found out, whichever entry and field is changed or missing.
    #[tokio::test]
    async fn an_altered_log_is_recognised() {
        for alter in [
            "UPDATE audit SET detail = 'somebody else' WHERE id = 2",
            "UPDATE audit SET actor = 'x' WHERE id = 1",
            "UPDATE audit SET at = '2020-01-01T00:00:00Z' WHERE id = 3",
            "UPDATE audit SET serial = '00408C702009' WHERE id = 1",
            "DELETE FROM audit WHERE id = 2",
            "DELETE FROM audit WHERE id = 1",
        ] {
            let folder = tempfile::tempdir().unwrap();
            for name in ["a", "b", "c"] {
                accounts::create(folder.path(), name).await.unwrap();
            }
            let pool = store::open_database(folder.path()).await.unwrap();
            for trigger in ["audit_is_not_changed", "audit_is_not_deleted"] {
                sqlx::query(sqlx::AssertSqlSafe(format!("DROP TRIGGER {trigger}")))
                    .execute(&pool)
                    .await
                    .unwrap();
            }
            assert_eq!(all(folder.path()).await.unwrap().len(), 3);
            sqlx::query(alter).execute(&pool).await.unwrap();
            let found = all(folder.path()).await.unwrap_err().to_string();
            assert!(found.contains("was altered: entry"), "{alter}: {found}");
        }
    }
}
