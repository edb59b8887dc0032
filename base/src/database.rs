//! SQLite as every role opens it: one file, WAL, one writer, durable commits.

use anyhow::Context;
use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use std::{os::unix::fs::OpenOptionsExt, path::Path, time::Duration};

/// SQLite has one writer anyway; a few connections let readers go on beside it.
const CONNECTIONS: u32 = 4;

/// How long a statement waits for the writer before it fails.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

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
}
