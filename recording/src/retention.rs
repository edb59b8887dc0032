//! What is deleted when: footage older than `retention_days`, and the oldest when there is more than
//! `retention_gb_per_camera` or `retention_gb`.
//!
//! Order: the files, then their folders' names are secured, then the rows. A crash in between leaves rows
//! without files, which the next round deletes; the other way round it would leave files that nobody knows.
//!
//! Not here: files that are still being written; they are never deleted.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use homing_base::Stop;
use homing_media::time::{TICKS_PER_SECOND, Ticks};

use crate::config::Config;
use crate::metrics::Metrics;
use crate::now;
use crate::store::{FileRow, Store};

/// How often it is looked at.
const ROUND: Duration = Duration::from_secs(30);

/// Files deleted between two looks at how much there is.
const BATCH: i64 = 64;

/// A deleted camera without footage is remembered for so long: 5 minutes.
const FORGET_AFTER: Ticks = 300 * TICKS_PER_SECOND;

const GIGABYTE: f64 = 1e9;

/// Bytes of finished footage by camera. Cheap to clone; all clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Usage(Arc<Mutex<HashMap<i64, i64>>>);

impl Usage {
    pub fn add(&self, camera: i64, bytes: i64) {
        *self.lock().entry(camera).or_default() += bytes;
    }

    fn of(&self, camera: i64) -> i64 {
        self.lock().get(&camera).copied().unwrap_or(0)
    }

    fn total(&self) -> i64 {
        self.lock().values().sum()
    }

    fn cameras(&self) -> Vec<i64> {
        self.lock().keys().copied().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<i64, i64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Deletes what has expired.
#[derive(Clone)]
pub(crate) struct Retention {
    pub store: Store,
    pub footage: PathBuf,
    pub usage: Usage,
    pub metrics: Arc<Metrics>,
    /// 0: no limit.
    pub age: Ticks,
    pub bytes_per_camera: i64,
    pub bytes: i64,
}

impl Retention {
    pub fn new(config: &Config, store: Store, footage: PathBuf, usage: Usage, metrics: Arc<Metrics>) -> Self {
        Self {
            store,
            footage,
            usage,
            metrics,
            age: Ticks::from(config.retention_days) * 86_400 * TICKS_PER_SECOND,
            bytes_per_camera: (config.retention_gb_per_camera * GIGABYTE) as i64,
            bytes: (config.retention_gb * GIGABYTE) as i64,
        }
    }

    /// Round after round until the role stops.
    pub async fn run(self, stop: Stop) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(ROUND) => {}
            }
            if let Err(error) = self.round(now()).await {
                tracing::error!(error = format!("{error:#}"), "old footage cannot be deleted");
            }
        }
    }

    /// Deletes everything that has expired by now.
    pub async fn round(&self, now: Ticks) -> anyhow::Result<()> {
        if self.age > 0 {
            let limit = now - self.age;
            while self.delete_oldest(None, |file| file.end <= limit, i64::MAX).await? > 0 {}
            self.store.forget_gaps(limit).await?;
        }
        if self.bytes_per_camera > 0 {
            for camera in self.usage.cameras() {
                loop {
                    let excess = self.usage.of(camera) - self.bytes_per_camera;
                    if excess <= 0 || self.delete_oldest(Some(camera), |_| true, excess).await? == 0 {
                        break;
                    }
                }
            }
        }
        if self.bytes > 0 {
            loop {
                let excess = self.usage.total() - self.bytes;
                if excess <= 0 || self.delete_oldest(None, |_| true, excess).await? == 0 {
                    break;
                }
            }
        }
        self.forget_cameras().await
    }

    /// Cameras whose hardware was removed and whose footage is gone.
    async fn forget_cameras(&self) -> anyhow::Result<()> {
        for camera in self.store.cameras().await?.iter().filter(|camera| camera.deleted.is_some()) {
            // Its last file may still be on its way into the index.
            let is_old = camera.deleted.is_some_and(|deleted| now() - deleted > FORGET_AFTER);
            if is_old && self.store.extent(camera.id).await?.is_none() {
                self.store.forget_camera(camera.id).await?;
            }
        }
        Ok(())
    }

    /// Deletes the oldest files that have expired, until `enough` bytes are gone or the batch is done. Gives
    /// their number.
    async fn delete_oldest(
        &self,
        camera: Option<i64>,
        has_expired: impl Fn(&FileRow) -> bool,
        enough: i64,
    ) -> anyhow::Result<usize> {
        let mut gone = 0;
        let mut expired: Vec<FileRow> = self.store.oldest_files(camera, BATCH).await?;
        expired.retain(|file| {
            let is_wanted = gone < enough && has_expired(file);
            gone += if is_wanted { file.bytes } else { 0 };
            is_wanted
        });
        if expired.is_empty() {
            return Ok(0);
        }
        let paths: Vec<String> = expired.iter().map(|file| file.path.clone()).collect();
        let footage = self.footage.clone();
        let to_delete = paths.clone();
        tokio::task::spawn_blocking(move || delete_files(&footage, &to_delete)).await??;
        self.store.delete_files(&paths).await?;
        expired.iter().for_each(|file| self.usage.add(file.camera, -file.bytes));
        self.metrics.deleted_files.inc_by(paths.len() as u64);
        Ok(paths.len())
    }
}

/// Deletes files, and folders that have become empty.
fn delete_files(footage: &Path, paths: &[String]) -> io::Result<()> {
    let mut folders: Vec<PathBuf> = Vec::new();
    for path in paths {
        let path = footage.join(path);
        match std::fs::remove_file(&path) {
            Ok(()) => folders.extend(path.parent().map(Path::to_owned)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    folders.sort_unstable();
    folders.dedup();
    for folder in folders {
        std::fs::File::open(&folder)?.sync_all()?;
        // Fails when something is in it, as it should.
        let _ = std::fs::remove_dir(&folder);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use homing_base::Ops;

    const DAY: Ticks = 86_400 * TICKS_PER_SECOND;
    const NOW: Ticks = 20_000 * DAY;

    struct Footage {
        folder: tempfile::TempDir,
        retention: Retention,
    }

    impl Footage {
        /// Ten files of 100 bytes of each of two cameras, one a day, the newest of today.
        async fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(folder.path()).await.unwrap();
            let metrics = Arc::new(Metrics::register(&Ops::new()));
            let footage = folder.path().join("footage");
            let usage = Usage::default();
            let config = Config { retention_days: 0, ..Config::default() };
            let retention = Retention::new(&config, store, footage.clone(), usage, metrics);
            let mut rows = Vec::new();
            for camera in [1, 2] {
                for day in 0..10 {
                    let path = format!("{camera}/{day}/a.mp4");
                    std::fs::create_dir_all(footage.join(&path).parent().unwrap()).unwrap();
                    std::fs::write(footage.join(&path), [0; 100]).unwrap();
                    let start = NOW - (10 - day) * DAY;
                    let (end, table) = (start + 60 * TICKS_PER_SECOND, vec![]);
                    rows.push(FileRow { camera, path, init: String::new(), start, end, bytes: 100, table });
                    retention.usage.add(camera, 100);
                }
            }
            retention.store.add_files(&rows).await.unwrap();
            Self { folder, retention }
        }

        /// What is left: the same in the index, on disk, and in the sums.
        async fn left(&self) -> Vec<String> {
            let rows = self.retention.store.oldest_files(None, 1000).await.unwrap();
            let paths: Vec<String> = rows.into_iter().map(|row| row.path).collect();
            let footage = self.folder.path().join("footage");
            for camera in [1, 2] {
                let folders = std::fs::read_dir(footage.join(camera.to_string())).map_or(0, Iterator::count);
                let indexed = paths.iter().filter(|path| path.starts_with(&format!("{camera}/"))).count();
                assert_eq!((folders, self.retention.usage.of(camera)), (indexed, 100 * indexed as i64));
            }
            assert!(paths.iter().all(|path| footage.join(path).exists()));
            paths
        }
    }

    /// Goal: what is too old goes, of all cameras, files and folders and rows.
    #[tokio::test]
    async fn by_age() {
        let footage = Footage::new().await;
        let retention = Retention { age: 7 * DAY, ..footage.retention.clone() };
        retention.round(NOW).await.unwrap();
        let left = footage.left().await;
        assert_eq!(left.len(), 14);
        assert!(left.iter().all(|path| !path.contains("/2/")));
    }

    /// Goal: the oldest of each camera goes when it has too much, the others' stays.
    #[tokio::test]
    async fn by_bytes_of_each_camera() {
        let footage = Footage::new().await;
        footage.retention.usage.add(2, -700); // as if it had less
        let retention = Retention { bytes_per_camera: 450, ..footage.retention.clone() };
        retention.round(NOW).await.unwrap();
        footage.retention.usage.add(2, 700);
        let left = footage.left().await;
        assert_eq!(left.iter().filter(|path| path.starts_with("1/")).count(), 4);
        assert_eq!(left.iter().filter(|path| path.starts_with("2/")).count(), 10);
    }

    /// Goal: the oldest of all goes when there is too much in all.
    #[tokio::test]
    async fn by_bytes_of_all() {
        let footage = Footage::new().await;
        let retention = Retention { bytes: 650, ..footage.retention.clone() };
        retention.round(NOW).await.unwrap();
        let left = footage.left().await;
        assert_eq!(left, ["1/7/a.mp4", "2/7/a.mp4", "1/8/a.mp4", "2/8/a.mp4", "1/9/a.mp4", "2/9/a.mp4"]);
    }

    /// Goal: a crash between the files and their rows is made good by the next round.
    #[tokio::test]
    async fn rows_without_files() {
        let footage = Footage::new().await;
        std::fs::remove_dir_all(footage.folder.path().join("footage/1/0")).unwrap();
        let retention = Retention { age: 9 * DAY, ..footage.retention.clone() };
        retention.round(NOW).await.unwrap();
        assert_eq!(footage.left().await.len(), 18);
    }
}
