//! What became of each device's connections, on disk: since when, from where, until when, why it ended; and the last
//! error of each device, with its step.
//!
//! It has a file of its own, `history.sqlite`, as nothing else depends on it: what happens is gathered for a second and
//! written together, so that thousands of devices that come back at once cost one commit.
//!
//! Invariant: at most [`CONNECTIONS_KEPT`] connections of a device are kept, and [`PENDING_MAX`] entries are in memory.
//! A crash loses a second of it, and what stood then is shown as ended at a time that is not known.

use anyhow::Context;
use homing_base::{Stop, database};
use homing_protocol::{
    SerialNumber,
    api::tunnel::{Connection, PastProblem},
};
use homing_uplink::{EndReason, UplinkStats};
use jiff::Timestamp;
use sqlx::{Row, SqliteConnection, SqlitePool, sqlite::SqliteRow};
use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::Notify;

/// Connections that are kept of each device.
const CONNECTIONS_KEPT: i64 = 50;

/// What happens within this time is written together.
const GATHER: Duration = Duration::from_secs(1);

/// Entries that wait to be written; beyond, the newest are lost. Ten times the devices of a large server.
const PENDING_MAX: usize = 200_000;

const MIGRATIONS: &[&str] = &["
CREATE TABLE connection (
    id        INTEGER PRIMARY KEY,
    serial    TEXT NOT NULL,
    since_ms  INTEGER NOT NULL,
    until_ms  INTEGER,          -- unknown after a crash
    peer      TEXT NOT NULL,
    dialled   TEXT,
    code      TEXT,             -- why it ended; none while it stands
    reason    TEXT,
    bytes_in  INTEGER NOT NULL DEFAULT 0,
    bytes_out INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX connection_of ON connection (serial, id);
CREATE TABLE last_problem (serial TEXT PRIMARY KEY, problem TEXT NOT NULL) STRICT; -- JSON
"];

/// One uplink of a device, from its beginning to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Session(i64);

/// What is remembered of a device when the server starts.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    /// When its last connection ended.
    pub since: Option<Timestamp>,
    /// Its last error.
    pub problem: Option<PastProblem>,
}

/// The connections of all devices.
pub(crate) struct History {
    pool: SqlitePool,
    pending: Mutex<Vec<Entry>>,
    wake: Notify,
    /// One writer at a time, so that who asks sees all that has happened before.
    writing: tokio::sync::Mutex<()>,
    next: AtomicI64,
    /// Uplinks whose end is still to be written.
    standing: AtomicUsize,
}

enum Entry {
    Began {
        session: Session,
        serial: SerialNumber,
        since: Timestamp,
        peer: SocketAddr,
        dialled: Option<String>,
    },
    Ended {
        session: Session,
        until: Timestamp,
        code: &'static str,
        reason: String,
        bytes: (u64, u64),
    },
    Problem {
        serial: SerialNumber,
        problem: PastProblem,
    },
    Forgotten {
        serial: SerialNumber,
    },
}

impl History {
    /// Opens `history.sqlite` in a folder, or makes it.
    pub async fn open(folder: &Path) -> anyhow::Result<Self> {
        let pool = database::open(&folder.join("history.sqlite"), MIGRATIONS).await?;
        let reason = "The tunnel server ended without notice; when the uplink ended is not known.";
        sqlx::query("UPDATE connection SET code = 'server-crashed', reason = $1 WHERE code IS NULL")
            .bind(reason)
            .execute(&pool)
            .await
            .context("history of connections")?;
        let (last,): (i64,) = sqlx::query_as("SELECT coalesce(max(id), 0) FROM connection")
            .fetch_one(&pool)
            .await
            .context("history of connections")?;
        Ok(History {
            pool,
            pending: Mutex::default(),
            wake: Notify::new(),
            writing: tokio::sync::Mutex::new(()),
            next: AtomicI64::new(last + 1),
            standing: AtomicUsize::new(0),
        })
    }

    /// What is known of every device from before.
    pub async fn remembered(&self) -> anyhow::Result<HashMap<SerialNumber, Remembered>> {
        let mut all: HashMap<SerialNumber, Remembered> = HashMap::new();
        // SQLite takes `until_ms` from the row that has the greatest id.
        let rows = sqlx::query("SELECT serial, max(id), until_ms FROM connection GROUP BY serial");
        for row in rows.fetch_all(&self.pool).await.context("history of connections")? {
            let serial = row.try_get::<String, _>("serial")?.parse()?;
            all.entry(serial).or_default().since = timestamp(&row, "until_ms")?;
        }
        let rows = sqlx::query("SELECT serial, problem FROM last_problem").fetch_all(&self.pool).await;
        for row in rows.context("history of connections")? {
            let serial = row.try_get::<String, _>("serial")?.parse()?;
            all.entry(serial).or_default().problem =
                serde_json::from_str(&row.try_get::<String, _>("problem")?).ok();
        }
        Ok(all)
    }

    /// Step 7: an uplink stands.
    pub fn began(&self, serial: SerialNumber, peer: SocketAddr, dialled: Option<String>) -> Session {
        let session = Session(self.next.fetch_add(1, Ordering::Relaxed));
        self.standing.fetch_add(1, Ordering::AcqRel);
        self.note(Entry::Began { session, serial, since: Timestamp::now(), peer, dialled });
        session
    }

    /// It has ended.
    pub fn ended(&self, session: Session, reason: &EndReason, stats: &UplinkStats) {
        let bytes = (stats.bytes_in, stats.bytes_out);
        let (code, reason) = (end_code(reason), reason.to_string());
        self.note(Entry::Ended { session, until: Timestamp::now(), code, reason, bytes });
        self.standing.fetch_sub(1, Ordering::AcqRel);
        self.wake.notify_one();
    }

    /// What went wrong last.
    pub fn problem(&self, serial: SerialNumber, problem: PastProblem) {
        self.note(Entry::Problem { serial, problem });
    }

    /// Nothing of a device is kept that is no longer registered.
    pub fn forget(&self, serial: SerialNumber) {
        self.note(Entry::Forgotten { serial });
    }

    /// The connections of a device, the newest first; what has happened before is in it.
    pub async fn of(&self, serial: SerialNumber) -> anyhow::Result<Vec<Connection>> {
        self.write().await?;
        let rows = sqlx::query("SELECT * FROM connection WHERE serial = $1 ORDER BY id DESC")
            .bind(serial.to_string())
            .fetch_all(&self.pool)
            .await;
        rows.context("history of connections")?.iter().map(connection).collect()
    }

    /// Writes what happens, until the role has stopped and every uplink has ended.
    pub async fn run(&self, stop: &Stop) {
        loop {
            self.wake.notified().await;
            if !stop.is_stopped() {
                tokio::select! {
                    () = tokio::time::sleep(GATHER) => (),
                    () = stop.cancelled() => (),
                }
            }
            if let Err(error) = self.write().await {
                // Nothing hangs on it: devices go on.
                tracing::error!(error = format!("{error:#}"), "the history of connections was not stored");
            }
            if stop.is_stopped() && self.standing.load(Ordering::Acquire) == 0 {
                return;
            }
        }
    }

    /// Wakes [`History::run`] to look whether it is over.
    pub async fn end_with(&self, stop: &Stop) {
        stop.cancelled().await;
        self.wake.notify_one();
    }

    fn note(&self, entry: Entry) {
        let mut pending = self.pending();
        if pending.len() < PENDING_MAX {
            pending.push(entry);
        }
        drop(pending);
        self.wake.notify_one();
    }

    async fn write(&self) -> anyhow::Result<()> {
        let _writing = self.writing.lock().await;
        let entries = std::mem::take(&mut *self.pending());
        if entries.is_empty() {
            return Ok(());
        }
        let mut transaction = self.pool.begin().await.context("history of connections")?;
        let mut longer = BTreeSet::new();
        for entry in entries {
            if let Entry::Began { serial, .. } = &entry {
                longer.insert(*serial);
            }
            write_entry(&mut transaction, entry).await.context("history of connections")?;
        }
        for serial in longer {
            sqlx::query(
                "DELETE FROM connection WHERE serial = $1 AND id <=
                 (SELECT id FROM connection WHERE serial = $1 ORDER BY id DESC LIMIT 1 OFFSET $2)",
            )
            .bind(serial.to_string())
            .bind(CONNECTIONS_KEPT)
            .execute(&mut *transaction)
            .await
            .context("history of connections")?;
        }
        transaction.commit().await.context("history of connections")
    }

    fn pending(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn write_entry(connection: &mut SqliteConnection, entry: Entry) -> anyhow::Result<()> {
    let query = match entry {
        Entry::Began { session, serial, since, peer, dialled } => sqlx::query(
            "INSERT INTO connection (id, serial, since_ms, peer, dialled) VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(session.0)
        .bind(serial.to_string())
        .bind(since.as_millisecond())
        .bind(peer.to_string())
        .bind(dialled),
        Entry::Ended { session, until, code, reason, bytes } => sqlx::query(
            "UPDATE connection SET until_ms = $2, code = $3, reason = $4, bytes_in = $5, bytes_out = $6
             WHERE id = $1",
        )
        .bind(session.0)
        .bind(until.as_millisecond())
        .bind(code)
        .bind(reason)
        .bind(i64::try_from(bytes.0).unwrap_or(i64::MAX))
        .bind(i64::try_from(bytes.1).unwrap_or(i64::MAX)),
        Entry::Problem { serial, problem } => {
            sqlx::query("INSERT OR REPLACE INTO last_problem VALUES ($1, $2)")
                .bind(serial.to_string())
                .bind(serde_json::to_string(&problem)?)
        }
        Entry::Forgotten { serial } => {
            sqlx::query("DELETE FROM last_problem WHERE serial = $1")
                .bind(serial.to_string())
                .execute(&mut *connection)
                .await?;
            sqlx::query("DELETE FROM connection WHERE serial = $1").bind(serial.to_string())
        }
    };
    query.execute(connection).await?;
    Ok(())
}

fn connection(row: &SqliteRow) -> anyhow::Result<Connection> {
    Ok(Connection {
        since: timestamp(row, "since_ms")?.context("a connection without beginning")?,
        until: timestamp(row, "until_ms")?,
        peer: row.try_get("peer")?,
        dialled: row.try_get("dialled")?,
        code: row.try_get("code")?,
        reason: row.try_get("reason")?,
        bytes_in: row.try_get::<i64, _>("bytes_in")?.try_into()?,
        bytes_out: row.try_get::<i64, _>("bytes_out")?.try_into()?,
    })
}

fn timestamp(row: &SqliteRow, column: &str) -> anyhow::Result<Option<Timestamp>> {
    let milliseconds: Option<i64> = row.try_get(column)?;
    Ok(milliseconds.map(Timestamp::from_millisecond).transpose()?)
}

/// All that [`end_code`] says.
pub(crate) const END_CODES: [&str; 8] = [
    "device-closed",
    "silent",
    "broken",
    "protocol-error",
    "flooded",
    "replaced",
    "server-stopped",
    "server-closed",
];

/// Why an uplink ended, in a word: for programs and as a metric's label.
pub(crate) fn end_code(reason: &EndReason) -> &'static str {
    match reason {
        EndReason::PeerClosed => "device-closed",
        EndReason::Silent { .. } => "silent",
        EndReason::Io(_) => "broken",
        EndReason::Protocol(_) => "protocol-error",
        EndReason::Flooded { .. } => "flooded",
        EndReason::Replaced => "replaced",
        EndReason::Stopped => "server-stopped",
        EndReason::Closed(_) => "server-closed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    fn serial(last: u8) -> SerialNumber {
        SerialNumber::new([0, 0x40, 0x8C, 0, 0, last])
    }

    fn stats(bytes_in: u64) -> UplinkStats {
        UplinkStats { connected_since: SystemTime::now(), bytes_in, bytes_out: 7, rtt: None, streams: 0 }
    }

    /// Goal: what is kept of a device is bounded, the newest is kept, and another device's is untouched.
    #[tokio::test]
    async fn the_last_connections_of_each_device_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::open(folder.path()).await.unwrap();
        let peer: SocketAddr = "192.0.2.1:4000".parse().unwrap();
        history.began(serial(2), peer, None);
        for count in 0..60 {
            let session = history.began(serial(1), peer, Some("sts.example:8443".into()));
            history.ended(session, &EndReason::Silent { seconds: 25 }, &stats(count));
            // Some in one commit, some in several.
            if count % 7 == 0 {
                history.write().await.unwrap();
            }
        }
        let kept = history.of(serial(1)).await.unwrap();
        assert_eq!(kept.len(), 50);
        assert_eq!((kept[0].bytes_in, kept[49].bytes_in), (59, 10), "the newest first");
        assert_eq!(kept[0].code.as_deref(), Some("silent"));
        assert_eq!(kept[0].reason.as_deref(), Some("nothing came from the other end for 25 s"));
        assert_eq!((kept[0].peer.as_str(), kept[0].bytes_out), ("192.0.2.1:4000", 7));
        assert!(kept[0].until.unwrap() >= kept[0].since);
        assert_eq!(history.of(serial(2)).await.unwrap().len(), 1);
        history.forget(serial(1));
        assert!(history.of(serial(1)).await.unwrap().is_empty());
    }

    /// Goal: after a crash nothing is shown as standing, and numbers are not used twice.
    #[tokio::test]
    async fn what_stood_at_a_crash_is_ended_and_what_went_wrong_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let peer: SocketAddr = "192.0.2.1:4000".parse().unwrap();
        let history = History::open(folder.path()).await.unwrap();
        let session = history.began(serial(1), peer, None);
        history.ended(session, &EndReason::PeerClosed, &stats(1));
        history.began(serial(2), peer, None);
        let detail = homing_protocol::api::Problem::new("uplink-lost", "It went away.").error;
        let problem = PastProblem { at: Timestamp::UNIX_EPOCH, problem: detail };
        history.problem(serial(1), problem.clone());
        history.write().await.unwrap();
        history.pool.close().await;

        let history = History::open(folder.path()).await.unwrap();
        let before = history.remembered().await.unwrap();
        assert!(before[&serial(1)].since.is_some() && before[&serial(2)].since.is_none());
        assert_eq!(before[&serial(1)].problem.as_ref(), Some(&problem));
        let again = history.began(serial(2), peer, None);
        assert_ne!(again, session);
        let kept = history.of(serial(2)).await.unwrap();
        assert_eq!(kept[0].code, None);
        assert_eq!((kept[1].code.as_deref(), kept[1].until), (Some("server-crashed"), None));
    }
}
