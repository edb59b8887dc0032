//! The recording server's database: hardware, cameras, initialisation segments, the index of recorded
//! files, gaps.
//!
//! Not here: footage, and the files that are still being written (`catalog.rs`). Times are ticks of 1/90,000 s
//! since 1970.
//!
//! Invariant: a row in `file` describes a complete file on disk; it is inserted after the file was secured
//! and deleted after the file was.

use std::path::Path;

use anyhow::Context as _;
use homing_base::{Vault, database, vault::SealedColumn};
use homing_media::time::Ticks;
use homing_protocol::SerialNumber;
use homing_protocol::api::recording::DeviceAddress;
use homing_protocol::secret::Credentials;
use sqlx::{Row as _, SqlitePool, sqlite::SqliteRow};

const MIGRATIONS: &[&str] = &[include_str!("schema.sql")];

/// Whatever is sealed: a new column must be named here, to be sealed anew when keys are rotated.
const SEALED: &[SealedColumn] = &[SealedColumn {
    table: "hardware",
    key: "serial",
    column: "password",
    purpose: |serial| purpose(serial),
}];

/// The cause of a gap of which nothing better is known yet.
pub(crate) const CONNECTING: &str = "connecting";

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Store {
    pool: SqlitePool,
    vault: Vault,
}

/// A row of `hardware`.
#[derive(Clone, Debug)]
pub(crate) struct HardwareRow {
    pub id: i64,
    pub name: String,
    pub device: DeviceAddress,
    pub serial: SerialNumber,
    pub model: String,
    pub credentials: Credentials,
}

/// A row of `camera`.
#[derive(Clone, Debug)]
pub(crate) struct CameraRow {
    pub id: i64,
    pub hardware: i64,
    pub name: String,
    pub stream_url: String,
    /// When it was added.
    pub added: Ticks,
    /// When its hardware was removed; its footage stays until it expires.
    pub deleted: Option<Ticks>,
}

/// What [`Store::add_hardware`] adds.
pub(crate) struct NewHardwareRow<'a> {
    pub name: &'a str,
    pub device: &'a DeviceAddress,
    pub serial: SerialNumber,
    pub model: &'a str,
    pub credentials: &'a Credentials,
    /// Name and stream URL of each channel.
    pub channels: &'a [(String, String)],
}

/// A recorded file, without or with the table of its fragments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileRow {
    pub camera: i64,
    /// Below the footage folder.
    pub path: String,
    pub init: String,
    pub start: Ticks,
    pub end: Ticks,
    pub bytes: i64,
    pub table: Vec<u8>,
}

/// A row of `gap`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GapRow {
    pub start: Ticks,
    /// `None`: still going on.
    pub end: Option<Ticks>,
    pub code: String,
    pub message: String,
}

impl Store {
    pub async fn open(folder: &Path) -> anyhow::Result<Self> {
        let pool = database::open(&folder.join("recording.sqlite"), MIGRATIONS).await?;
        let vault = Vault::open("recording", folder, &pool, SEALED).await?;
        Ok(Self { pool, vault })
    }

    /// Its keys, to be kept while the role runs.
    pub fn vault(&self) -> Vault {
        self.vault.clone()
    }

    pub async fn close(&self) {
        self.pool.close().await;
    }

    // Hardware and cameras

    /// `None`: the device was added before.
    pub async fn add_hardware(&self, new: NewHardwareRow<'_>, now: Ticks) -> anyhow::Result<Option<i64>> {
        let mut transaction = self.pool.begin().await?;
        let inserted = sqlx::query(
            "INSERT INTO hardware (name, device, serial, model, user_name, password) VALUES ($1, $2, $3, $4, $5, $6) \
             ON CONFLICT (serial) DO NOTHING RETURNING id",
        )
        .bind(new.name)
        .bind(serde_json::to_string(new.device)?)
        .bind(new.serial.to_string())
        .bind(new.model)
        .bind(&new.credentials.user)
        .bind(self.vault.seal(&purpose(new.serial), &new.credentials.password))
        .fetch_optional(&mut *transaction)
        .await?;
        let Some(row) = inserted else { return Ok(None) };
        let id: i64 = row.try_get(0)?;
        for (name, stream_url) in new.channels {
            sqlx::query("INSERT INTO camera (hardware, name, stream_url, added) VALUES ($1, $2, $3, $4)")
                .bind(id)
                .bind(name)
                .bind(stream_url)
                .bind(now)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(Some(id))
    }

    /// It is reached another way from now on.
    pub async fn move_hardware(&self, id: i64, device: &DeviceAddress) -> anyhow::Result<()> {
        sqlx::query("UPDATE hardware SET device = $1 WHERE id = $2")
            .bind(serde_json::to_string(device)?)
            .bind(id)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Forgets the hardware and its password; its cameras are kept, as deleted, for their footage.
    pub async fn delete_hardware(&self, id: i64, now: Ticks) -> anyhow::Result<()> {
        let mut transaction = self.pool.begin().await?;
        sqlx::query("UPDATE camera SET deleted = $1 WHERE hardware = $2 AND deleted IS NULL")
            .bind(now)
            .bind(id)
            .execute(&mut *transaction)
            .await?;
        sqlx::query("DELETE FROM hardware WHERE id = $1").bind(id).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(())
    }

    pub async fn hardware(&self) -> anyhow::Result<Vec<HardwareRow>> {
        let rows = sqlx::query(
            "SELECT id, name, device, serial, model, user_name, password FROM hardware ORDER BY id",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(|row| self.hardware_row(row)).collect()
    }

    fn hardware_row(&self, row: &SqliteRow) -> anyhow::Result<HardwareRow> {
        let serial: String = row.try_get(3)?;
        let serial: SerialNumber = serial.parse().context("serial number in the database")?;
        let sealed: Vec<u8> = row.try_get(6)?;
        let device: String = row.try_get(2)?;
        let user: String = row.try_get(5)?;
        Ok(HardwareRow {
            id: row.try_get(0)?,
            name: row.try_get(1)?,
            device: serde_json::from_str(&device).context("device address in the database")?,
            serial,
            model: row.try_get(4)?,
            credentials: Credentials::new(user, self.vault.open_sealed(&purpose(serial), &sealed)?),
        })
    }

    /// Deleted ones too.
    pub async fn cameras(&self) -> anyhow::Result<Vec<CameraRow>> {
        let rows =
            sqlx::query("SELECT id, hardware, name, stream_url, added, deleted FROM camera ORDER BY id")
                .fetch_all(&self.pool)
                .await?;
        let camera = |row: &SqliteRow| -> anyhow::Result<CameraRow> {
            Ok(CameraRow {
                id: row.try_get(0)?,
                hardware: row.try_get(1)?,
                name: row.try_get(2)?,
                stream_url: row.try_get(3)?,
                added: row.try_get(4)?,
                deleted: row.try_get(5)?,
            })
        };
        rows.iter().map(camera).collect()
    }

    /// The device has another user or password than before.
    pub async fn set_credentials(
        &self,
        hardware: i64,
        serial: SerialNumber,
        credentials: &Credentials,
    ) -> anyhow::Result<()> {
        sqlx::query("UPDATE hardware SET user_name = $1, password = $2 WHERE id = $3")
            .bind(&credentials.user)
            .bind(self.vault.seal(&purpose(serial), &credentials.password))
            .bind(hardware)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    pub async fn rename_camera(&self, id: i64, name: &str) -> anyhow::Result<()> {
        sqlx::query("UPDATE camera SET name = $1 WHERE id = $2")
            .bind(name)
            .bind(id)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// A camera whose hardware and footage are gone.
    pub async fn forget_camera(&self, id: i64) -> anyhow::Result<()> {
        let mut transaction = self.pool.begin().await?;
        for statement in [
            "DELETE FROM gap WHERE camera = $1",
            "DELETE FROM init WHERE camera = $1",
            "DELETE FROM camera WHERE id = $1",
        ] {
            sqlx::query(statement).bind(id).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    // Initialisation segments

    pub async fn add_init(&self, camera: i64, id: &str, mime: &str, init: &[u8]) -> anyhow::Result<()> {
        sqlx::query(
            "INSERT INTO init (camera, id, mime, data) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
        )
        .bind(camera)
        .bind(id)
        .bind(mime)
        .bind(init)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// MIME type and bytes.
    pub async fn init(&self, camera: i64, id: &str) -> anyhow::Result<Option<(String, Vec<u8>)>> {
        let row = sqlx::query_as("SELECT mime, data FROM init WHERE camera = $1 AND id = $2")
            .bind(camera)
            .bind(id)
            .fetch_optional(&self.pool)
            .await?;
        Ok(row)
    }

    // Files

    /// All or none.
    pub async fn add_files(&self, files: &[FileRow]) -> anyhow::Result<()> {
        let mut transaction = self.pool.begin().await?;
        for file in files {
            sqlx::query(
                "INSERT INTO file (camera, path, init, start, finish, bytes, fragments) VALUES ($1, $2, $3, $4, $5, $6, $7) \
                 ON CONFLICT (path) DO NOTHING",
            )
            .bind(file.camera)
            .bind(&file.path)
            .bind(&file.init)
            .bind(file.start)
            .bind(file.end)
            .bind(file.bytes)
            .bind(&file.table)
            .execute(&mut *transaction)
            .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// The files that hold any of the time from `start` to `end`, in order, at most `limit`; their tables
    /// only if asked for.
    pub async fn files(
        &self,
        camera: i64,
        start: Ticks,
        end: Ticks,
        with_tables: bool,
        limit: i64,
    ) -> anyhow::Result<Vec<FileRow>> {
        // A file is an hour long at most, so the index on `start` bounds the search.
        let earliest = start.saturating_sub(2 * MAX_FILE);
        let rows = sqlx::query(
            "SELECT path, init, start, finish, bytes, CASE WHEN $5 THEN fragments ELSE x'' END FROM file \
             WHERE camera = $1 AND start >= $2 AND start < $3 AND finish > $4 ORDER BY start LIMIT $6",
        )
        .bind(camera)
        .bind(earliest)
        .bind(end)
        .bind(start)
        .bind(with_tables)
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(|row| file_row(camera, row)).collect()
    }

    /// The oldest files of a camera, or of all.
    pub async fn oldest_files(&self, camera: Option<i64>, limit: i64) -> anyhow::Result<Vec<FileRow>> {
        let rows = sqlx::query(
            "SELECT path, init, start, finish, bytes, x'', camera FROM file WHERE $1 IS NULL OR camera = $1 \
             ORDER BY start LIMIT $2",
        )
        .bind(camera)
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(|row| file_row(row.try_get(6)?, row)).collect()
    }

    pub async fn delete_files(&self, paths: &[String]) -> anyhow::Result<()> {
        let mut transaction = self.pool.begin().await?;
        for path in paths {
            sqlx::query("DELETE FROM file WHERE path = $1").bind(path).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// First and last moment of a camera's footage.
    pub async fn extent(&self, camera: i64) -> anyhow::Result<Option<(Ticks, Ticks)>> {
        // Both ends by the index; MIN and MAX together would read it all.
        let first = sqlx::query_as("SELECT start FROM file WHERE camera = $1 ORDER BY start LIMIT 1");
        let first: Option<(Ticks,)> = first.bind(camera).fetch_optional(&self.pool).await?;
        let last = sqlx::query_as("SELECT finish FROM file WHERE camera = $1 ORDER BY start DESC LIMIT 1");
        let last: Option<(Ticks,)> = last.bind(camera).fetch_optional(&self.pool).await?;
        Ok(first.zip(last).map(|(first, last)| (first.0, last.0)))
    }

    /// Bytes of footage, and its first and last moment, by camera.
    pub async fn totals(&self) -> anyhow::Result<Vec<(i64, i64, Ticks, Ticks)>> {
        let rows =
            sqlx::query_as("SELECT camera, SUM(bytes), MIN(start), MAX(finish) FROM file GROUP BY camera")
                .fetch_all(&self.pool)
                .await?;
        Ok(rows)
    }

    // Gaps

    /// A gap whose end is not known yet. While one is open, its cause counts, for the next follows from it; only
    /// [`CONNECTING`] gives way to whatever is found out.
    pub async fn open_gap(&self, camera: i64, start: Ticks, code: &str, message: &str) -> anyhow::Result<()> {
        let mut transaction = self.pool.begin().await?;
        let known =
            "UPDATE gap SET code = $1, message = $2 WHERE camera = $3 AND finish IS NULL AND code = $4";
        let known = sqlx::query(known).bind(code).bind(message).bind(camera).bind(CONNECTING);
        if known.execute(&mut *transaction).await?.rows_affected() == 0 {
            sqlx::query(
                "INSERT INTO gap (camera, start, code, message) SELECT $1, $2, $3, $4 \
                 WHERE NOT EXISTS (SELECT 1 FROM gap WHERE camera = $1 AND finish IS NULL)",
            )
            .bind(camera)
            .bind(start)
            .bind(code)
            .bind(message)
            .execute(&mut *transaction)
            .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// This process has begun and is not connected yet: what was the cause before ends here.
    pub async fn connecting_gap(&self, camera: i64, now: Ticks) -> anyhow::Result<()> {
        self.close_gap(camera, now).await?;
        self.open_gap(camera, now, CONNECTING, "The recording server was connecting to the camera.").await
    }

    /// There is a picture again.
    pub async fn close_gap(&self, camera: i64, end: Ticks) -> anyhow::Result<()> {
        sqlx::query("UPDATE gap SET finish = $1 WHERE camera = $2 AND finish IS NULL")
            .bind(end)
            .bind(camera)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    pub async fn add_gap(
        &self,
        camera: i64,
        start: Ticks,
        end: Ticks,
        code: &str,
        message: &str,
    ) -> anyhow::Result<()> {
        sqlx::query("INSERT INTO gap (camera, start, finish, code, message) VALUES ($1, $2, $3, $4, $5)")
            .bind(camera)
            .bind(start)
            .bind(end)
            .bind(code)
            .bind(message)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    pub async fn gaps(&self, camera: i64, start: Ticks, end: Ticks) -> anyhow::Result<Vec<GapRow>> {
        let rows = sqlx::query(
            "SELECT start, finish, code, message FROM gap WHERE camera = $1 AND start < $2 AND (finish IS NULL OR finish > $3) \
             ORDER BY start LIMIT 10000",
        )
        .bind(camera)
        .bind(end)
        .bind(start)
        .fetch_all(&self.pool)
        .await?;
        let gap = |row: &SqliteRow| -> anyhow::Result<GapRow> {
            Ok(GapRow {
                start: row.try_get(0)?,
                end: row.try_get(1)?,
                code: row.try_get(2)?,
                message: row.try_get(3)?,
            })
        };
        rows.iter().map(gap).collect()
    }

    /// Gaps that ended before that time.
    pub async fn forget_gaps(&self, before: Ticks) -> anyhow::Result<()> {
        sqlx::query("DELETE FROM gap WHERE finish < $1").bind(before).execute(&self.pool).await?;
        Ok(())
    }
}

/// The longest file: `file_s` is an hour at most, and a file ends with the next key frame after that.
const MAX_FILE: Ticks = 3_600 * homing_media::time::TICKS_PER_SECOND;

fn purpose(serial: impl std::fmt::Display) -> String {
    format!("hardware {serial}")
}

fn file_row(camera: i64, row: &SqliteRow) -> anyhow::Result<FileRow> {
    Ok(FileRow {
        camera,
        path: row.try_get(0)?,
        init: row.try_get(1)?,
        start: row.try_get(2)?,
        end: row.try_get(3)?,
        bytes: row.try_get(4)?,
        table: row.try_get(5)?,
    })
}
