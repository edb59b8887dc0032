//! SQLite as every role opens it: one file, WAL, one writer, durable commits.

use anyhow::Context;
use sqlx::{
    ConnectOptions, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use std::{
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio::sync::Mutex;

/// SQLite has one writer anyway; a few connections let readers go on beside it.
const CONNECTIONS: u32 = 4;

/// How long a statement waits for the writer before it fails.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long everybody else is held up by one try to empty the log, how often it is tried, and the pause between.
const EMPTYING: Duration = Duration::from_millis(50);
const EMPTYING_ATTEMPTS: u32 = 10;
const EMPTYING_PAUSE: Duration = Duration::from_millis(20);

const BUSY: &str = "write-ahead log not emptied: somebody reads the database all the time";

/// Opens (or makes) the database and brings its schema up to date.
///
/// `migrations` are SQL scripts in order; how many have been applied is kept in `PRAGMA user_version`,
/// so a script that was released is never changed, only followed by another.
///
/// # Errors
/// When the file cannot be opened, a script fails, or the file was written by a newer version.
pub async fn open(path: &Path, migrations: &[&str]) -> anyhow::Result<SqlitePool> {
    // SQLite gives its log the same mode as the file.
    std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot open the database {}", path.display()))?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        // Registrations, claims and the index hang on commits that survive a power loss.
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(true)
        // What is deleted is overwritten: credentials are forgotten in the file, too.
        .pragma("secure_delete", "ON");
    let pool = SqlitePoolOptions::new()
        .max_connections(CONNECTIONS)
        .connect_with(options)
        .await
        .with_context(|| format!("cannot open the database {}", path.display()))?;
    migrate(&pool, migrations).await.with_context(|| format!("schema of {}", path.display()))?;
    Ok(pool)
}

/// A pool of one connection, for the transactions that write: they queue up here, where that costs nothing, and leave the
/// connections of `pool` to those who read. SQLite would let each of them occupy one, and look every few milliseconds
/// whether it is its turn.
///
/// Who writes must not begin another one before the first has ended.
pub fn writer(pool: &SqlitePool) -> SqlitePool {
    SqlitePoolOptions::new().max_connections(1).connect_lazy_with(pool.connect_options().as_ref().clone())
}

async fn migrate(pool: &SqlitePool, migrations: &[&str]) -> anyhow::Result<()> {
    let (applied,): (i64,) = sqlx::query_as("PRAGMA user_version").fetch_one(pool).await?;
    let applied = usize::try_from(applied)?;
    anyhow::ensure!(
        applied <= migrations.len(),
        "the database was written by a newer version of Homing (schema {applied}, this program knows {})",
        migrations.len()
    );
    for (index, script) in migrations.iter().enumerate().skip(applied) {
        let mut transaction = pool.begin().await?;
        sqlx::raw_sql(sqlx::AssertSqlSafe((*script).to_owned())).execute(&mut *transaction).await?;
        let version = format!("PRAGMA user_version = {}", index + 1);
        sqlx::raw_sql(sqlx::AssertSqlSafe(version)).execute(&mut *transaction).await?;
        transaction.commit().await?;
    }
    Ok(())
}

/// The write-ahead log of a database, where what was deleted stays until that is used again (in the file itself it is
/// overwritten).
pub struct Log {
    /// Of its own, and impatient: SQLite keeps every writer out while it waits for the last reader.
    options: SqliteConnectOptions,
    connection: Mutex<Option<SqliteConnection>>,
    asked: AtomicU64,
    /// All who had asked before this one have been served, or told that it cannot be done now.
    served: AtomicU64,
    failed: AtomicU64,
}

impl Log {
    /// The log of the database that this pool has open.
    pub fn of(pool: &SqlitePool) -> Self {
        let options = pool.connect_options().as_ref().clone().busy_timeout(EMPTYING);
        let [asked, served, failed] = std::array::from_fn(|_| AtomicU64::new(0));
        Log { options, connection: Mutex::default(), asked, served, failed }
    }

    /// Empties it; whoever asks while that is being done for others is served together with who else asks.
    ///
    /// # Errors
    /// When somebody reads the database all the time, or it cannot be opened once more.
    pub async fn empty(&self) -> anyhow::Result<()> {
        let number = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let mut place = self.connection.lock().await;
        if self.served.load(Ordering::Acquire) >= number {
            return Ok(());
        }
        anyhow::ensure!(self.failed.load(Ordering::Acquire) < number, BUSY);
        let serving = self.asked.load(Ordering::Acquire);
        // Taken out: whatever it was in the middle of when this is cut short ends with it.
        let mut connection = match place.take() {
            Some(connection) => connection,
            None => self.options.connect().await.context("write-ahead log")?,
        };
        for _ in 0..EMPTYING_ATTEMPTS {
            let (is_busy, _, _): (bool, i64, i64) = sqlx::query_as("PRAGMA wal_checkpoint(TRUNCATE)")
                .fetch_one(&mut connection)
                .await
                .context("write-ahead log")?;
            if !is_busy {
                self.served.store(serving, Ordering::Release);
                *place = Some(connection);
                return Ok(());
            }
            tokio::time::sleep(EMPTYING_PAUSE).await;
        }
        self.failed.store(serving, Ordering::Release);
        anyhow::bail!(BUSY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn migrations_run_once_and_a_newer_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.sqlite");
        let first = "CREATE TABLE device (serial TEXT PRIMARY KEY);";
        let second = "ALTER TABLE device ADD COLUMN name TEXT;";
        let pool = open(&path, &[first]).await.unwrap();
        for file in std::fs::read_dir(folder.path()).unwrap() {
            let mode = file.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "nobody else reads it");
        }
        sqlx::query("INSERT INTO device (serial) VALUES ($1)").bind("A").execute(&pool).await.unwrap();
        pool.close().await;

        let pool = open(&path, &[first, second]).await.unwrap();
        let (serial, name): (String, Option<String>) =
            sqlx::query_as("SELECT serial, name FROM device").fetch_one(&pool).await.unwrap();
        assert_eq!((serial.as_str(), name), ("A", None));
        pool.close().await;

        let error = format!("{:#}", open(&path, &[first]).await.unwrap_err());
        assert!(error.contains("newer version"), "{error}");
    }

    #[tokio::test]
    async fn the_log_is_emptied_for_all_who_ask_and_a_reader_holds_up_no_writer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.sqlite");
        let pool = open(&path, &["CREATE TABLE device (serial TEXT PRIMARY KEY);"]).await.unwrap();
        let log = Log::of(&pool);
        let bytes = || std::fs::metadata(folder.path().join("test.sqlite-wal")).unwrap().len();
        let write = async |serial: &str| {
            sqlx::query("INSERT INTO device (serial) VALUES ($1)").bind(serial).execute(&pool).await.unwrap();
        };
        write("A").await;
        assert!(bytes() > 0);
        let (first, second) = tokio::join!(log.empty(), log.empty());
        assert!(first.is_ok() && second.is_ok());
        assert_eq!(bytes(), 0);

        write("B").await;
        let mut reader = pool.begin().await.unwrap();
        let count = sqlx::query_scalar("SELECT count(*) FROM device");
        let count: i64 = count.fetch_one(&mut *reader).await.unwrap();
        assert_eq!(count, 2);
        let began = std::time::Instant::now();
        let (emptied, ()) = tokio::join!(log.empty(), async {
            tokio::time::sleep(EMPTYING / 2).await;
            write("C").await;
            assert!(began.elapsed() < BUSY_TIMEOUT / 2, "{:?}", began.elapsed());
        });
        assert!(emptied.unwrap_err().to_string().contains("reads the database"));
        reader.rollback().await.unwrap();
        log.empty().await.unwrap();
        assert_eq!(bytes(), 0);
    }
}
