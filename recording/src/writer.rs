//! The one thread that writes footage.
//!
//! 1. [`Writer::append`] puts a fragment into a bounded queue; it never waits.
//! 2. The thread appends it to the camera's open file with one gathered write, and begins a new file when it
//!    is time and a key frame comes, when the format changed, or when the stream was interrupted.
//! 3. At the latest `sync_ms` after the first unsecured write, all files written to since are secured
//!    (fdatasync), and what they hold is published in the [`Catalog`].
//! 4. A finished file goes to the indexer (`index.rs`), which gives it a row in the database.
//!
//! A file is an initialisation segment and fragments; its decode times begin near 0 and each fragment's `prft`
//! box says which wall-clock time that is, so that the index can be made again from the files alone
//! (`recovery.rs`).
//!
//! Invariants: footage that is published is on disk. After a failed fdatasync nothing more is written, since
//! the kernel has forgotten which pages were bad and a second try would claim success; that is said loudly.
//! After a failed write (a full disk) the file is cut back to its last whole fragment.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, IoSlice, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use homing_base::Ops;
use homing_media::mp4::{Run, fragment_head};
use homing_media::time::{TICKS_PER_SECOND, Ticks, nanos_from_ticks, rescale};
use jiff::Timestamp;

use crate::catalog::{Catalog, Entry, File};
use crate::fragment::{Format, Fragment};
use crate::index::Note;
use crate::metrics::Metrics;

/// Fragments that may wait, whatever their size; when it is full, fragments are dropped and the gap is
/// shown. The size limit (`queue_mb`) is normally reached first.
const QUEUE_FRAGMENTS: usize = 8192;

/// A file is ended after this long even without a key frame, so that a search by start time is bounded.
const LONGEST_FILE: Ticks = 3_600 * TICKS_PER_SECOND;

/// The name of this part in `/healthz`.
const HEALTH: &str = "recording";

/// What the thread is told.
enum Command {
    Append {
        camera: i64,
        fragment: Box<Fragment>,
    },
    /// End the camera's file.
    Close {
        camera: i64,
    },
    /// Secure everything and end.
    Stop,
}

/// How the writer works.
pub(crate) struct Settings {
    pub footage: PathBuf,
    pub file_length: Ticks,
    pub sync_interval: Duration,
    pub queue_bytes: usize,
}

/// Why a fragment is not recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dropped {
    /// The disk does not keep up.
    QueueFull,
    /// The writer has stopped after an error.
    Failed,
}

/// The cameras' end of the queue; cheap to clone.
#[derive(Clone)]
pub(crate) struct Writer {
    queue: SyncSender<Command>,
    state: Arc<State>,
    queue_bytes: usize,
}

#[derive(Default)]
struct State {
    queued_bytes: AtomicUsize,
    failed: AtomicBool,
}

impl Writer {
    /// Starts the thread; finished files go to `notes`.
    pub fn start(
        settings: Settings,
        catalog: Catalog,
        notes: tokio::sync::mpsc::Sender<Note>,
        metrics: Arc<Metrics>,
        ops: Ops,
    ) -> io::Result<(Self, std::thread::JoinHandle<()>)> {
        let (queue, commands) = sync_channel(QUEUE_FRAGMENTS);
        let state = Arc::<State>::default();
        let queue_bytes = settings.queue_bytes;
        let thread = Thread {
            settings,
            catalog,
            notes,
            metrics,
            ops,
            state: state.clone(),
            open: HashMap::new(),
            unsecured_since: None,
            new_folders: Vec::new(),
            failing: HashSet::new(),
        };
        let handle =
            std::thread::Builder::new().name("footage".into()).spawn(move || thread.run(&commands))?;
        Ok((Self { queue, state, queue_bytes }, handle))
    }

    /// Records a fragment.
    pub fn append(&self, camera: i64, fragment: Fragment) -> Result<(), Dropped> {
        if self.state.failed.load(Ordering::Relaxed) {
            return Err(Dropped::Failed);
        }
        let len = fragment.data_len();
        // A fragment larger than the whole queue is taken when the queue is empty.
        let before = self.state.queued_bytes.fetch_add(len, Ordering::Relaxed);
        if before > 0 && before + len > self.queue_bytes {
            self.state.queued_bytes.fetch_sub(len, Ordering::Relaxed);
            return Err(Dropped::QueueFull);
        }
        match self.queue.try_send(Command::Append { camera, fragment: Box::new(fragment) }) {
            Ok(()) => Ok(()),
            Err(error) => {
                self.state.queued_bytes.fetch_sub(len, Ordering::Relaxed);
                Err(if matches!(error, TrySendError::Full(_)) { Dropped::QueueFull } else { Dropped::Failed })
            }
        }
    }

    /// The camera's stream is over for now: its file is finished. Never waits.
    pub fn close(&self, camera: i64) {
        // Full for so long that this fails: the file is ended by the next fragment, which is no continuation.
        let _ = self.queue.try_send(Command::Close { camera });
    }

    /// Ends the thread once everything appended before is secured. Blocks while the queue is full.
    pub fn stop(&self) {
        let _ = self.queue.send(Command::Stop);
    }

    /// Bytes that wait for the disk.
    pub fn queued_bytes(&self) -> usize {
        self.state.queued_bytes.load(Ordering::Relaxed)
    }
}

struct Thread {
    settings: Settings,
    catalog: Catalog,
    notes: tokio::sync::mpsc::Sender<Note>,
    metrics: Arc<Metrics>,
    ops: Ops,
    state: Arc<State>,
    open: HashMap<i64, Open>,
    unsecured_since: Option<Instant>,
    /// Folders with new names in them that are not secured yet.
    new_folders: Vec<PathBuf>,
    /// Cameras whose last fragment could not be written.
    failing: HashSet<i64>,
}

/// A file being written.
struct Open {
    file: fs::File,
    path: String,
    format: Arc<Format>,
    /// Wall-clock time of decode time 0.
    base: Ticks,
    len: u64,
    sequence: u32,
    entries: Vec<Entry>,
    /// So many of the entries are published.
    published: usize,
}

impl Thread {
    fn run(mut self, commands: &Receiver<Command>) {
        loop {
            let command = match self.unsecured_since {
                None => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(since) => {
                    commands.recv_timeout(self.settings.sync_interval.saturating_sub(since.elapsed()))
                }
            };
            match command {
                Ok(Command::Append { camera, fragment }) => {
                    let len = fragment.data_len();
                    self.append(camera, &fragment);
                    self.state.queued_bytes.fetch_sub(len, Ordering::Relaxed);
                }
                Ok(Command::Close { camera }) => self.close(camera),
                Err(RecvTimeoutError::Timeout) => self.secure(),
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.unsecured_since.is_some_and(|since| since.elapsed() >= self.settings.sync_interval) {
                self.secure();
            }
        }
        let cameras: Vec<i64> = self.open.keys().copied().collect();
        cameras.into_iter().for_each(|camera| self.close(camera));
    }

    fn has_failed(&self) -> bool {
        self.state.failed.load(Ordering::Relaxed)
    }

    fn append(&mut self, camera: i64, fragment: &Fragment) {
        if self.has_failed() {
            return;
        }
        if self.open.get(&camera).is_some_and(|open| open.must_end(fragment, self.settings.file_length)) {
            self.close(camera);
        }
        let written = match self.open.get_mut(&camera) {
            Some(open) => open.append(fragment),
            None => self.begin(camera, fragment).and_then(|mut open| {
                let written = open.append(fragment);
                self.open.insert(camera, open);
                written
            }),
        };
        match written {
            Ok(bytes) => {
                self.metrics.written_bytes.inc_by(bytes);
                self.unsecured_since.get_or_insert_with(Instant::now);
                if !self.failing.is_empty() && self.failing.remove(&camera) {
                    let _ = self.notes.blocking_send(Note::GapEnded { camera, at: fragment.start });
                }
                if self.metrics.write_errors_now.set(0) > 0 {
                    tracing::info!("footage is being written again");
                    self.ops.report(HEALTH, Ok(()));
                }
            }
            Err(error) => self.write_failed(camera, fragment.start, &error),
        }
    }

    /// A full disk, mostly. The next fragment tries again with a new file.
    fn write_failed(&mut self, camera: i64, at: Ticks, error: &io::Error) {
        self.metrics.write_errors.inc();
        if self.failing.insert(camera) {
            let message = format!("Footage could not be written to disk: {error}.");
            let _ =
                self.notes.blocking_send(Note::GapBegan { camera, at, code: "disk-failed".into(), message });
        }
        if self.metrics.write_errors_now.inc() == 0 {
            let folder = self.settings.footage.display();
            tracing::error!(camera, %error, "footage cannot be written to {folder}; recording goes on when it can be");
            self.ops.report(
                HEALTH,
                Err(format!("footage cannot be written to {folder} ({error}): free some space")),
            );
        }
        self.close(camera);
    }

    /// A new file in the folder of its camera and day.
    fn begin(&mut self, camera: i64, fragment: &Fragment) -> io::Result<Open> {
        let audio_start = fragment.format.audio_rate().filter(|_| !fragment.audio.is_empty());
        let audio_start = audio_start.map(|rate| rescale(fragment.audio_start, rate, 90_000));
        let base = audio_start.map_or(fragment.start, |audio| audio.min(fragment.start));
        let path = file_path(camera, fragment.start);
        let full = self.settings.footage.join(&path);
        let folder = full.parent().unwrap_or(&self.settings.footage).to_owned();
        if !folder.is_dir() {
            fs::create_dir_all(&folder)?;
            // The new folders' own names, too.
            self.new_folders.extend(folder.ancestors().skip(1).take(2).map(Path::to_owned));
        }
        if self.catalog.add_format(camera, &fragment.format) {
            let _ = self.notes.blocking_send(Note::Format(camera, fragment.format.clone()));
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).open(&full)?;
        self.new_folders.push(folder);
        file.write_all(&fragment.format.init)?;
        Ok(Open {
            file,
            path,
            format: fragment.format.clone(),
            base,
            len: fragment.format.init.len() as u64,
            sequence: 0,
            entries: Vec::new(),
            published: 0,
        })
    }

    /// Secures everything that was written, and publishes it.
    fn secure(&mut self) {
        if self.unsecured_since.take().is_none() || self.has_failed() {
            return;
        }
        let begun = Instant::now();
        let mut folders = std::mem::take(&mut self.new_folders);
        folders.sort_unstable();
        folders.dedup();
        for folder in folders {
            if let Err(error) = fs::File::open(&folder).and_then(|folder| folder.sync_all()) {
                return self.sync_failed(&folder, &error);
            }
        }
        for (camera, open) in &mut self.open {
            let unsecured = &open.entries[open.published..];
            if unsecured.is_empty() {
                continue;
            }
            if let Err(error) = open.file.sync_data() {
                let path = self.settings.footage.join(&open.path);
                return self.sync_failed(&path, &error);
            }
            self.catalog.publish(*camera, &open.path, &open.format.id, unsecured);
            open.published = open.entries.len();
        }
        self.metrics.sync_seconds.observe(begun.elapsed().as_secs_f64());
    }

    fn sync_failed(&self, path: &Path, error: &io::Error) {
        self.state.failed.store(true, Ordering::Relaxed);
        let path = path.display();
        tracing::error!(
            %path, %error,
            "footage could not be secured on disk: recording has STOPPED; check the disk, then restart"
        );
        let message = format!(
            "recording has stopped: {path} could not be secured on disk ({error}); check the disk, then restart"
        );
        self.ops.report(HEALTH, Err(message));
    }

    /// Ends a camera's file, and has it indexed.
    fn close(&mut self, camera: i64) {
        if self.open.get(&camera).is_some_and(|open| open.published < open.entries.len()) {
            self.secure();
        }
        let Some(open) = self.open.remove(&camera) else { return };
        if open.entries.is_empty() {
            // Its first write failed.
            let _ = fs::remove_file(self.settings.footage.join(&open.path));
            return;
        }
        if open.published == open.entries.len() {
            let Open { path, format, entries, .. } = open;
            let file = File { camera, path, init: format.id.clone(), entries };
            // The indexer ends after this thread.
            let _ = self.notes.blocking_send(Note::Finished(file));
        }
    }
}

impl Open {
    fn must_end(&self, fragment: &Fragment, file_length: Ticks) -> bool {
        let start = self.entries.first().map_or(fragment.start, |entry| entry.start);
        let age = fragment.start - start;
        // A fragment in between may have been dropped.
        let is_adjacent = self.entries.last().is_none_or(|last| last.end() == fragment.start);
        !fragment.is_continuation
            || !is_adjacent
            || fragment.format.id != self.format.id
            || age >= file_length && fragment.is_key
            || age >= LONGEST_FILE
    }

    /// Gives the bytes written.
    fn append(&mut self, fragment: &Fragment) -> io::Result<u64> {
        let rate = self.format.audio_rate().unwrap_or(90_000);
        let runs = [
            Run { track: 1, start: (fragment.start - self.base).max(0) as u64, samples: &fragment.video },
            Run {
                track: 2,
                start: (fragment.audio_start - rescale(self.base, 90_000, rate)).max(0) as u64,
                samples: &fragment.audio,
            },
        ];
        let head = fragment_head(self.sequence, Some(fragment.start), &runs);
        let len = (head.len() + fragment.data_len()) as u64;
        if let Err(error) = self.write(&head, fragment) {
            // Back to the last whole fragment; if even that fails, recovery does it at the next start.
            let _ = self.file.set_len(self.len);
            return Err(error);
        }
        self.entries.push(Entry {
            start: fragment.start,
            duration: fragment.duration,
            offset: self.len,
            len,
            is_key: fragment.is_key,
        });
        self.len += len;
        self.sequence += 1;
        Ok(len)
    }

    fn write(&mut self, head: &[u8], fragment: &Fragment) -> io::Result<()> {
        let mut slices: Vec<IoSlice<'_>> =
            std::iter::once(head).chain(fragment.data.iter().map(AsRef::as_ref)).map(IoSlice::new).collect();
        let mut rest = &mut slices[..];
        while !rest.is_empty() {
            match self.file.write_vectored(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut rest, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// `7/2026-01-31/23-59-59.123456.mp4`, UTC: sorted by name is sorted by time.
pub(crate) fn file_path(camera: i64, start: Ticks) -> String {
    let time = timestamp(start).strftime("%Y-%m-%d/%H-%M-%S%.6f");
    format!("{camera}/{time}.mp4")
}

/// The time of a tick.
pub(crate) fn timestamp(ticks: Ticks) -> Timestamp {
    Timestamp::from_nanosecond(nanos_from_ticks(ticks)).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: file names sort by time, and hold the camera and the day.
    #[test]
    fn file_names() {
        let path = file_path(7, 1_700_000_000 * TICKS_PER_SECOND + 45_000);
        assert_eq!(path, "7/2023-11-14/22-13-20.500000.mp4");
    }
}
