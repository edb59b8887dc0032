//! The audit log: who did what, when and from where. Append only, held so by triggers in the schema.
//!
//! What is written down is decided where it is done (`api/`); a secret is never part of it.

use crate::accounts::{moment, now_ms};
use anyhow::Context;
use jiff::Timestamp;
use sqlx::SqlitePool;
use std::time::Duration;

/// The most entries that one question is answered with.
pub const PAGE: u32 = 200;

/// The log. Cheap to clone.
#[derive(Clone)]
pub struct Audit {
    database: SqlitePool,
}

/// One thing that somebody did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Ascending.
    pub id: i64,
    /// When.
    pub at: Timestamp,
    /// Who, by name.
    pub user: String,
    /// From which address.
    pub peer: String,
    /// What, in kebab case: `register-device`.
    pub action: String,
    /// To what: a serial number, a user's name.
    pub object: String,
    /// How it went, or what is worth knowing.
    pub detail: String,
}

impl Audit {
    /// On a database with the management schema.
    pub fn new(database: SqlitePool) -> Self {
        Audit { database }
    }

    /// Writes an entry. An error is returned, because what cannot be audited should not be done.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn record(
        &self,
        user: &str,
        peer: &str,
        action: &str,
        object: &str,
        detail: &str,
    ) -> anyhow::Result<()> {
        sqlx::query(
            "INSERT INTO audit (at_ms, user, peer, action, object, detail) VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(now_ms())
        .bind(user)
        .bind(peer)
        .bind(action)
        .bind(object)
        .bind(detail)
        .execute(&self.database)
        .await
        .context("audit log")?;
        tracing::info!(user, peer, action, object, detail, "audit");
        Ok(())
    }

    /// Entries before `before` (or the newest), newest first, at most [`PAGE`].
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn entries(&self, before: Option<i64>, limit: u32) -> anyhow::Result<Vec<Entry>> {
        let rows: Vec<(i64, i64, String, String, String, String, String)> = sqlx::query_as(
            "SELECT id, at_ms, user, peer, action, object, detail FROM audit WHERE id < $1 ORDER BY id DESC LIMIT $2",
        )
        .bind(before.unwrap_or(i64::MAX))
        .bind(i64::from(limit.min(PAGE)))
        .fetch_all(&self.database)
        .await
        .context("audit log")?;
        let entry = |(id, at, user, peer, action, object, detail)| Entry {
            id,
            at: moment(at),
            user,
            peer,
            action,
            object,
            detail,
        };
        Ok(rows.into_iter().map(entry).collect())
    }

    /// The addresses that a user has signed in from lately; any case.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn signed_in_from(&self, user: &str, lately: Duration) -> anyhow::Result<Vec<String>> {
        let since = now_ms() - i64::try_from(lately.as_millis()).unwrap_or(i64::MAX / 2);
        // As the index is: sign_ins.sql.
        sqlx::query_scalar(
            "SELECT DISTINCT peer FROM audit
             WHERE action = 'sign-in' AND user = $1 COLLATE NOCASE AND at_ms > $2 LIMIT 1000",
        )
        .bind(user)
        .bind(since)
        .fetch_all(&self.database)
        .await
        .context("audit log")
    }

    /// Deletes what is older than `keep`.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn sweep(&self, keep: Duration) -> anyhow::Result<()> {
        // Never below a day: the schema refuses that, and a mistaken setting must not stop the sweep.
        let keep = keep.max(Duration::from_secs(2 * 86_400));
        let before = now_ms() - i64::try_from(keep.as_millis()).unwrap_or(i64::MAX / 2);
        sqlx::query("DELETE FROM audit WHERE at_ms < $1")
            .bind(before)
            .execute(&self.database)
            .await
            .context("audit log")?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn entries_can_be_added_and_aged_out_but_neither_changed_nor_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("management.sqlite");
        let database = homing_base::database::open(&path, crate::MIGRATIONS).await.unwrap();
        let audit = Audit::new(database.clone());
        for index in 0..3 {
            audit.record("ada", "::1", "register-device", &index.to_string(), "").await.unwrap();
        }
        let entries = audit.entries(None, 2).await.unwrap();
        assert_eq!(entries.iter().map(|entry| entry.object.as_str()).collect::<Vec<_>>(), ["2", "1"]);
        assert_eq!(audit.entries(Some(entries[1].id), 9).await.unwrap()[0].object, "0");

        for forbidden in ["UPDATE audit SET user = 'bob'", "DELETE FROM audit"] {
            let error = sqlx::query(forbidden).execute(&database).await.unwrap_err().to_string();
            assert!(error.contains("append only"), "{forbidden}: {error}");
        }
        sqlx::query(
            "INSERT INTO audit (at_ms, user, peer, action, object, detail) VALUES (1, '', '', '', '', '')",
        )
        .execute(&database)
        .await
        .unwrap();
        audit.sweep(Duration::from_secs(86_400 * 400)).await.unwrap();
        assert_eq!(audit.entries(None, 9).await.unwrap().len(), 3);
    }
}
