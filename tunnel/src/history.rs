//! What became of each device's connections, on disk: since when, from where, until when, why it ended; and the last
//! error of each device, with its step.
//!
//! It has a file of its own, `history.sqlite`, as nothing else depends on it: what happens is gathered for a second and
//! written together, so that thousands of devices that come back at once cost one commit, and a statement for each kind of
//! thing that happened.
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
use serde::Serialize;
use sqlx::{Row, SqlitePool, sqlite::SqliteRow};
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
    Began(Began),
    Ended(Ended),
    Problem(Wrong),
    Forgotten(SerialNumber),
}

#[derive(Serialize)]
struct Began {
    id: i64,
    serial: SerialNumber,
    since_ms: i64,
    peer: SocketAddr,
    dialled: Option<String>,
}

#[derive(Serialize)]
struct Ended {
    id: i64,
    until_ms: i64,
    code: &'static str,
    reason: String,
    bytes_in: i64,
    bytes_out: i64,
}

#[derive(Serialize)]
struct Wrong {
    serial: SerialNumber,
    problem: PastProblem,
}

/// What has happened, sorted by what is to be done: forgetting comes first, and what is to be forgotten is not in it.
#[derive(Default)]
struct Batch {
    forgotten: BTreeSet<SerialNumber>,
    began: Vec<Began>,
    ended: Vec<Ended>,
    wrong: Vec<Wrong>,
}

impl Batch {
    fn of(entries: Vec<Entry>) -> Batch {
        let mut batch = Batch::default();
        // From the newest: what happened before a device was forgotten is forgotten with it.
        for entry in entries.into_iter().rev() {
            match entry {
                Entry::Began(began) if !batch.forgotten.contains(&began.serial) => batch.began.push(began),
                Entry::Problem(wrong) if !batch.forgotten.contains(&wrong.serial) => batch.wrong.push(wrong),
                Entry::Began(_) | Entry::Problem(_) => {}
                Entry::Ended(ended) => batch.ended.push(ended),
                Entry::Forgotten(serial) => drop(batch.forgotten.insert(serial)),
            }
        }
        // The last problem of a device is the one that stays.
        batch.wrong.reverse();
        batch
    }

    /// One statement for all rows: each of its own would wake SQLite's thread and its caller once more.
    fn statements(&self) -> anyhow::Result<Vec<(&'static str, String)>> {
        let longer: BTreeSet<_> = self.began.iter().map(|began| began.serial).collect();
        let all = [
            (self.forgotten.len(), FORGET_CONNECTIONS, serde_json::to_string(&self.forgotten)?),
            (self.forgotten.len(), FORGET_PROBLEMS, serde_json::to_string(&self.forgotten)?),
            (self.began.len(), BEGIN, serde_json::to_string(&self.began)?),
            (self.ended.len(), END, serde_json::to_string(&self.ended)?),
            (self.wrong.len(), REMEMBER, serde_json::to_string(&self.wrong)?),
            (longer.len(), SHORTEN, serde_json::to_string(&longer)?),
        ];
        Ok(all.into_iter().filter(|(rows, ..)| *rows > 0).map(|(_, sql, rows)| (sql, rows)).collect())
    }
}

const FORGET_CONNECTIONS: &str = "DELETE FROM connection WHERE serial IN (SELECT value FROM json_each($1))";
const FORGET_PROBLEMS: &str = "DELETE FROM last_problem WHERE serial IN (SELECT value FROM json_each($1))";
const BEGIN: &str = "
INSERT INTO connection (id, serial, since_ms, peer, dialled)
SELECT value->>'id', value->>'serial', value->>'since_ms', value->>'peer', value->>'dialled' FROM json_each($1)";
const END: &str = "
UPDATE connection SET until_ms = ended.value->>'until_ms', code = ended.value->>'code',
    reason = ended.value->>'reason', bytes_in = ended.value->>'bytes_in', bytes_out = ended.value->>'bytes_out'
FROM json_each($1) AS ended WHERE connection.id = ended.value->>'id'";
const REMEMBER: &str = "
INSERT OR REPLACE INTO last_problem SELECT value->>'serial', value->'problem' FROM json_each($1)";
/// To [`CONNECTIONS_KEPT`].
const SHORTEN: &str = "
DELETE FROM connection WHERE id IN (
    SELECT id FROM (
        SELECT id, row_number() OVER (PARTITION BY serial ORDER BY id DESC) AS place FROM connection
        WHERE serial IN (SELECT value FROM json_each($1)))
    WHERE place > $2)";

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
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.standing.fetch_add(1, Ordering::AcqRel);
        let since_ms = Timestamp::now().as_millisecond();
        self.note(Entry::Began(Began { id, serial, since_ms, peer, dialled }));
        Session(id)
    }

    /// It has ended.
    pub fn ended(&self, session: Session, reason: &EndReason, stats: &UplinkStats) {
        let bytes = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.note(Entry::Ended(Ended {
            id: session.0,
            until_ms: Timestamp::now().as_millisecond(),
            code: end_code(reason),
            reason: reason.to_string(),
            bytes_in: bytes(stats.bytes_in),
            bytes_out: bytes(stats.bytes_out),
        }));
        self.standing.fetch_sub(1, Ordering::AcqRel);
        self.wake.notify_one();
    }

    /// What went wrong last.
    pub fn problem(&self, serial: SerialNumber, problem: PastProblem) {
        self.note(Entry::Problem(Wrong { serial, problem }));
    }

    /// Nothing of a device is kept that is no longer registered.
    pub fn forget(&self, serial: SerialNumber) {
        self.note(Entry::Forgotten(serial));
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
        for (sql, rows) in Batch::of(entries).statements()? {
            let query = sqlx::query(sql).bind(rows).bind(CONNECTIONS_KEPT);
            query.execute(&mut *transaction).await.context("history of connections")?;
        }
        transaction.commit().await.context("history of connections")
    }

    fn pending(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
        let line_in = bytes_in;
        UplinkStats {
            connected_since: SystemTime::now(),
            bytes_in,
            bytes_out: 7,
            line_in,
            rtt: None,
            streams: 0,
        }
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

    /// Goal: what is written together is the same as what is written one by one, in whatever order it happened.
    #[tokio::test]
    async fn forgotten_and_registered_again_within_a_second_it_is_a_new_device() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::open(folder.path()).await.unwrap();
        let peer: SocketAddr = "192.0.2.1:4000".parse().unwrap();
        let problem = |message: &str| PastProblem {
            at: Timestamp::UNIX_EPOCH,
            problem: homing_protocol::api::Problem::new("uplink-lost", message).error,
        };
        let old = history.began(serial(1), peer, None);
        history.problem(serial(1), problem("The old one's."));
        history.problem(serial(2), problem("Its first."));
        history.forget(serial(1));
        history.ended(old, &EndReason::PeerClosed, &stats(1));
        let new = history.began(serial(1), peer, None);
        history.ended(new, &EndReason::PeerClosed, &stats(u64::MAX));
        history.problem(serial(2), problem("Its last."));
        let kept = history.of(serial(1)).await.unwrap();
        assert_eq!(kept.len(), 1);
        assert_eq!((kept[0].code.as_deref(), kept[0].bytes_in), (Some("device-closed"), i64::MAX as u64));
        let remembered = history.remembered().await.unwrap();
        assert_eq!(remembered[&serial(1)].problem, None);
        assert_eq!(remembered[&serial(2)].problem, Some(problem("Its last.")));
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
