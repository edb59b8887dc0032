//! Making keys, replacing them while the role runs, and destroying what is old.
//!
//! 1. A new master key is written beside the old one (`master.key.next`).
//! 2. In one transaction every data key is wrapped by both, and a new data key is made, which seals from here.
//! 3. The new master key's file takes the old one's place.
//! 4. What the old master key has wrapped is deleted.
//! 5. Every value is sealed anew, some hundred in a transaction, and only where nobody has changed it meanwhile.
//! 6. When no value in the database names it any more, an old data key is deleted.
//!
//! Cut short after any of them, [`super::Vault::open`] finds a master key that opens every data key, and goes on. A master
//! key that was handed in is not ours to replace: then steps 1, 3 and 4 are its owner's, who hands in both and restarts
//! the role.
//!
//! Invariant: a step writes what the next needs before it takes away what the last needed.

use super::master::{self, KeyBytes, KeyId, Master, Masters};
use super::{
    KEY_LENGTH, KeyRow, LEGACY, Ring, SCHEMA, SealedColumn, Shared, VERSION_WITHOUT_DATA_KEY, Vault, files,
};
use super::{key_id, key_rows, prefix, unwrap};
use crate::{Stop, database::Log};
use anyhow::Context;
use sqlx::{AssertSqlSafe, Row, SqliteConnection, SqlitePool};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::time::Instant;

/// A file in the role's folder: whoever can write there may ask for a rotation.
const REQUEST: &str = "rotate-key";

/// How often the request is looked for.
const LOOK: Duration = Duration::from_secs(1);

/// From the making of a new data key to the destruction of the old: what was sealed under the old one has long been
/// stored (a transaction waits 10 s at most) or will never be.
const GRACE: Duration = Duration::from_secs(60);

/// After a failure, or where a value cannot be read.
const RETRY: Duration = Duration::from_secs(600);

/// Values sealed anew in one transaction: others that write wait some milliseconds.
const ROWS_AT_ONCE: u32 = 250;

/// Where a rotation can be cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    KeyWritten,
    Wrapped,
    Renamed,
    Unwrapped,
}

/// Asks the role that runs on this folder, or will, for new keys.
///
/// # Errors
/// When the folder cannot be written to.
pub fn request_rotation(folder: &Path) -> anyhow::Result<()> {
    files::write_private(&folder.join(REQUEST), b"")
}

/// Whether the role has not taken the request yet.
pub fn is_requested(folder: &Path) -> bool {
    folder.join(REQUEST).exists()
}

/// The first keys of a database. If there was a master key already, it may have sealed values by itself.
pub(super) async fn make_keys(
    role: &str,
    masters: &mut Masters,
    change: &mut SqliteConnection,
) -> anyhow::Result<()> {
    match &masters.current {
        Some(master) => insert(role, change, &[master], LEGACY, 0, &master.bytes).await?,
        None => {
            let master = Master::generate();
            let file = masters.file.as_ref().context("no place for a master key")?;
            files::write_private(file, &master.bytes)?;
            masters.current = Some(master);
        }
    }
    let master = masters.current.as_ref().context("no master key")?;
    insert(role, change, &[master], new_id(), 1, &master::random_key()).await
}

/// Brings database and master key together where a rotation was cut short, or another master key was handed in.
pub(super) async fn settle(
    role: &str,
    masters: &mut Masters,
    change: &mut SqliteConnection,
) -> anyhow::Result<()> {
    let rows = key_rows(change).await?;
    let wraps = |master: &Master| rows.iter().any(|(_, _, by, _)| *by == master.id);
    if let Some(file) = masters.file.clone() {
        match masters.others.iter().position(wraps) {
            Some(next) => {
                rename(&file)?;
                let next = masters.others.swap_remove(next);
                masters.others.extend(masters.current.replace(next));
            }
            None => drop(std::fs::remove_file(master::next(&file))),
        }
    }
    let Some(current) = &masters.current else { return Ok(()) };
    if !wraps(current) && masters.others.iter().any(wraps) {
        for id in data_keys(&rows)? {
            let (key, number) = (unwrap(role, masters, &rows, id)?, number_of(&rows, id));
            insert(role, change, &[current], id, number, &key).await?;
        }
        let number = rows.iter().map(|(_, number, ..)| number + 1).max().unwrap_or(1);
        insert(role, change, &[current], new_id(), number, &master::random_key()).await?;
        tracing::info!(role, "another master key was handed in: stored secrets are sealed anew");
    }
    if wraps(current) || masters.others.iter().any(wraps) {
        drop_other_wraps(change, current.id).await?;
    }
    Ok(())
}

async fn drop_other_wraps(change: &mut SqliteConnection, master: KeyId) -> anyhow::Result<()> {
    let deleted = sqlx::query("DELETE FROM data_key WHERE master <> $1").bind(master.as_slice());
    deleted.execute(change).await?;
    Ok(())
}

async fn insert(
    role: &str,
    change: &mut SqliteConnection,
    masters: &[&Master],
    id: KeyId,
    number: i64,
    key: &KeyBytes,
) -> anyhow::Result<()> {
    debug_assert_eq!(key.len(), KEY_LENGTH);
    for master in masters {
        sqlx::query("INSERT OR REPLACE INTO data_key (id, number, master, wrapped) VALUES ($1, $2, $3, $4)")
            .bind(id.as_slice())
            .bind(number)
            .bind(master.id.as_slice())
            .bind(master.wrap(role, id, key))
            .execute(&mut *change)
            .await?;
    }
    Ok(())
}

fn new_id() -> KeyId {
    rand::random()
}

fn data_keys(rows: &[KeyRow]) -> anyhow::Result<Vec<KeyId>> {
    let mut ids = rows.iter().map(|(id, ..)| key_id(id)).collect::<anyhow::Result<Vec<_>>>()?;
    ids.dedup();
    Ok(ids)
}

fn number_of(rows: &[KeyRow], id: KeyId) -> i64 {
    rows.iter().find(|(of, ..)| *of == id).map_or(0, |(_, number, ..)| *number)
}

fn rename(file: &Path) -> anyhow::Result<()> {
    let renamed = std::fs::rename(master::next(file), file).and_then(|()| {
        let folder = file.parent().unwrap_or(Path::new("."));
        std::fs::File::open(folder)?.sync_all()
    });
    renamed.with_context(|| format!("cannot replace {}", file.display()))
}

impl Vault {
    /// Watches for requests, and retires old data keys in the background, until the role stops.
    pub async fn keep(self, stop: Stop) {
        let role = self.shared.role;
        let mut retire_at = Instant::now();
        loop {
            if is_requested(&self.shared.folder) {
                match self.rotate().await {
                    Ok(()) => retire_at = Instant::now(),
                    Err(error) => {
                        tracing::error!(role, error = format!("{error:#}"), "keys not rotated");
                    }
                }
                // One that cannot be carried out is not tried for ever.
                let _ = std::fs::remove_file(self.shared.folder.join(REQUEST));
            }
            let now = Instant::now();
            if self.shared.has_old_keys() && now >= retire_at {
                retire_at = now + self.retire_reporting().await;
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => (),
                () = stop.cancelled() => return,
            }
        }
    }

    /// Until when to wait with the next try.
    async fn retire_reporting(&self) -> Duration {
        let role = self.shared.role;
        let sealed = match self.shared.seal_anew().await {
            Ok(sealed) => sealed,
            Err(error) => {
                tracing::error!(role, error = format!("{error:#}"), "stored secrets not sealed anew yet");
                return RETRY;
            }
        };
        if sealed.anew > 0 {
            tracing::info!(role, secrets = sealed.anew, "stored secrets sealed anew");
            return GRACE;
        }
        match self.shared.destroy_unused().await {
            Ok(true) => tracing::info!(role, "the old data key is destroyed: nothing used it any more"),
            Ok(false) => tracing::error!(
                role,
                unreadable = sealed.unreadable,
                "an old data key is kept: stored secrets still name it and cannot be sealed anew"
            ),
            Err(error) => tracing::error!(role, error = format!("{error:#}"), "old data key not destroyed"),
        }
        RETRY
    }

    /// A new master key, where it is ours to replace, and a new data key, which seals from here.
    ///
    /// # Errors
    /// When a file or the database cannot be written; then nothing has changed, or the next start goes on.
    pub async fn rotate(&self) -> anyhow::Result<()> {
        self.rotate_through(Stage::Unwrapped).await
    }

    /// Seals everything anew and destroys old data keys at once; `true` if only the current one is left. For when nobody
    /// else seals.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn retire_old_keys(&self) -> anyhow::Result<bool> {
        self.shared.seal_anew().await?;
        self.shared.destroy_unused().await
    }

    pub(super) async fn rotate_through(&self, last: Stage) -> anyhow::Result<()> {
        let shared = &self.shared;
        let mut masters = Masters::find(shared.role, &shared.folder)?;
        let next = match &masters.file {
            Some(file) => {
                let next = Master::generate();
                files::write_private(&master::next(file), &next.bytes)?;
                Some(next)
            }
            None => None,
        };
        if last == Stage::KeyWritten {
            return Ok(());
        }
        let ring = shared.wrap_all(&masters, next.as_ref()).await?;
        shared.ring.store(Arc::new(ring));
        tracing::info!(
            role = shared.role,
            "a new data key seals; stored secrets are sealed anew in the background"
        );
        let (Some(next), Some(file)) = (next, &masters.file) else {
            tracing::info!(
                role = shared.role,
                "the master key was handed in: to replace it, too, hand in a new one with the old beside it, and restart"
            );
            return Ok(());
        };
        if last == Stage::Wrapped {
            return Ok(());
        }
        rename(file)?;
        if last == Stage::Renamed {
            return Ok(());
        }
        let mut change = shared.pool.begin_with("BEGIN IMMEDIATE").await?;
        drop_other_wraps(&mut change, next.id).await?;
        change.commit().await?;
        masters.current = Some(next);
        empty_log(&shared.pool).await;
        Ok(())
    }
}

/// What became of a pass over every value.
#[derive(Default)]
pub(super) struct Sealed {
    anew: u64,
    unreadable: u64,
}

impl Shared {
    fn has_old_keys(&self) -> bool {
        self.ring.load().keys.len() > 1
    }

    /// Step 2.
    async fn wrap_all(&self, masters: &Masters, next: Option<&Master>) -> anyhow::Result<Ring> {
        let mut change = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::raw_sql(SCHEMA).execute(&mut *change).await?;
        let rows = key_rows(&mut change).await?;
        for id in data_keys(&rows)? {
            let key = unwrap(self.role, masters, &rows, id)?;
            insert(
                self.role,
                &mut change,
                &next.into_iter().collect::<Vec<_>>(),
                id,
                number_of(&rows, id),
                &key,
            )
            .await?;
        }
        let number = rows.iter().map(|(_, number, ..)| number + 1).max().unwrap_or(1);
        let both: Vec<&Master> = masters.current.iter().chain(next).collect();
        insert(self.role, &mut change, &both, new_id(), number, &master::random_key()).await?;
        let ring = Ring::read(self.role, masters, &mut change).await?;
        change.commit().await?;
        Ok(ring)
    }

    /// Seals every value anew that the current data key has not sealed.
    pub(super) async fn seal_anew(self: &Arc<Self>) -> anyhow::Result<Sealed> {
        let mut all = Sealed::default();
        for column in self.columns {
            let place = || format!("{}.{}", column.table, column.column);
            self.seal_column_anew(column, &mut all).await.with_context(place)?;
        }
        Ok(all)
    }

    pub(super) async fn seal_column_anew(
        self: &Arc<Self>,
        of: &SealedColumn,
        all: &mut Sealed,
    ) -> anyhow::Result<()> {
        let SealedColumn { table, key, column, purpose } = of;
        let vault = Vault { shared: Arc::clone(self) };
        let select = format!(
            "SELECT {key}, {column} FROM {table} WHERE {key} > $1 AND {column} IS NOT NULL \
             AND substr({column}, 1, {}) <> $2 ORDER BY {key} LIMIT {ROWS_AT_ONCE}",
            self.ring.load().prefix().len()
        );
        // What somebody has replaced meanwhile stays.
        let update = format!("UPDATE {table} SET {column} = $1 WHERE {key} = $2 AND {column} = $3");
        let mut last = String::new();
        loop {
            let began = Instant::now();
            let rows = sqlx::query(AssertSqlSafe(select.clone()))
                .bind(last.clone())
                .bind(self.ring.load().prefix().to_vec())
                .fetch_all(&self.pool)
                .await?;
            let keys: Vec<String> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
            // Several rows may have one key: a page that is full ends before the last one.
            let is_full = rows.len() == ROWS_AT_ONCE as usize && keys.first() != keys.last();
            let end = if is_full { keys.partition_point(|key| Some(key) < keys.last()) } else { keys.len() };
            let mut sealed = Vec::with_capacity(end);
            for (row, key) in rows.iter().zip(keys).take(end) {
                let before: Vec<u8> = row.try_get(1)?;
                last.clone_from(&key);
                match vault.open_sealed(&purpose(&key), &before) {
                    Ok(secret) => sealed.push((vault.seal(&purpose(&key), &secret), key, before)),
                    Err(error) => {
                        all.unreadable += 1;
                        tracing::error!(
                            role = self.role,
                            table,
                            error = format!("{error:#}"),
                            "not sealed anew"
                        );
                    }
                }
            }
            if rows.is_empty() {
                return Ok(());
            }
            all.anew += sealed.len() as u64;
            let mut change = self.pool.begin_with("BEGIN IMMEDIATE").await?;
            for (after, key, before) in sealed {
                let update = sqlx::query(AssertSqlSafe(update.clone())).bind(after).bind(key).bind(before);
                update.execute(&mut *change).await?;
            }
            change.commit().await?;
            // Others have at least half of the time.
            tokio::time::sleep(began.elapsed()).await;
        }
    }

    /// Destroys the data keys that no value names; `true` if only the current one is left.
    async fn destroy_unused(&self) -> anyhow::Result<bool> {
        let ring = self.ring.load_full();
        let mut left = false;
        for id in ring.keys.keys().copied().filter(|id| *id != ring.current) {
            if self.is_used(id).await? {
                left = true;
                continue;
            }
            let mut change = self.pool.begin_with("BEGIN IMMEDIATE").await?;
            sqlx::query("DELETE FROM data_key WHERE id = $1")
                .bind(id.as_slice())
                .execute(&mut *change)
                .await?;
            let ring = Ring::read(self.role, &Masters::find(self.role, &self.folder)?, &mut change).await?;
            change.commit().await?;
            self.ring.store(Arc::new(ring));
        }
        empty_log(&self.pool).await;
        Ok(!left)
    }

    /// Whether any value names the key. For a data key every BLOB in the database is looked at: a column that was forgotten
    /// among [`SealedColumn`]s keeps its key instead of losing its secrets.
    async fn is_used(&self, id: KeyId) -> anyhow::Result<bool> {
        let begins = if id == LEGACY { vec![VERSION_WITHOUT_DATA_KEY] } else { prefix(id).to_vec() };
        let columns: Vec<(String, String)> = if id == LEGACY {
            self.columns.iter().map(|of| (of.table.to_owned(), of.column.to_owned())).collect()
        } else {
            sqlx::query_as(
                "SELECT t.name, c.name FROM sqlite_schema t, pragma_table_info(t.name) c \
                 WHERE t.type = 'table' AND c.type = 'BLOB' AND t.name <> 'data_key'",
            )
            .fetch_all(&self.pool)
            .await?
        };
        for (table, column) in columns {
            let any = format!(
                "SELECT EXISTS (SELECT 1 FROM \"{table}\" WHERE substr(\"{column}\", 1, {}) = $1)",
                begins.len()
            );
            let any = sqlx::query_scalar(AssertSqlSafe(any)).bind(&begins);
            if any.fetch_one(&self.pool).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// What was deleted is still in SQLite's log until that is emptied; a reader may stand in the way, then it is later.
async fn empty_log(pool: &SqlitePool) {
    if let Err(error) = Log::of(pool).empty().await {
        tracing::debug!(error = format!("{error:#}"), "log not emptied yet");
    }
}
