//! The indexer: one task that writes into the database what the recording threads and tasks have to report,
//! in the order in which it happened, many reports to a transaction where there are many.
//!
//! Nobody waits for it, and it waits for nobody but the database. Invariant: a file leaves the [`Catalog`] only
//! after its row is in the database.

use std::sync::Arc;

use homing_media::time::Ticks;
use homing_protocol::{SerialNumber, secret::Credentials};
use tokio::sync::mpsc::Receiver;

use crate::catalog::{Catalog, File};
use crate::fragment::Format;
use crate::retention::Usage;
use crate::store::{FileRow, Store};

/// Reports that may wait for the database. When it is full the writer waits (the database is on the same
/// disk), and reports of gaps are dropped with a warning.
pub(crate) const QUEUE: usize = 4096;

/// Files that go into one transaction.
const BATCH: usize = 256;

/// Something to remember.
#[derive(Debug)]
pub(crate) enum Note {
    /// A camera's stream is coded in a way that is new.
    Format(i64, Arc<Format>),
    /// A file is finished and secured.
    Finished(File),
    /// From that moment on there is no picture.
    GapBegan { camera: i64, at: Ticks, code: String, message: String },
    /// From that moment on there is one again.
    GapEnded { camera: i64, at: Ticks },
    /// A gap that is over.
    Gap { camera: i64, start: Ticks, end: Ticks, code: &'static str, message: &'static str },
    /// A device has another user or password than before.
    Credentials { hardware: i64, serial: SerialNumber, credentials: Credentials },
    /// Nobody has anything more to report.
    End,
}

/// Works until it is told to end.
pub(crate) async fn run(mut notes: Receiver<Note>, store: Store, catalog: Catalog, usage: Usage) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut is_over = false;
    while !is_over && notes.recv_many(&mut batch, BATCH).await > 0 {
        let mut finished: Vec<File> = Vec::new();
        for note in batch.drain(..) {
            match note {
                Note::Finished(file) => finished.push(file),
                Note::End => is_over = true,
                other => {
                    if let Err(error) = remember(&store, other).await {
                        tracing::error!(error = format!("{error:#}"), "a note about a recording is lost");
                    }
                }
            }
        }
        add_files(&store, &catalog, &usage, &finished).await;
    }
}

async fn remember(store: &Store, note: Note) -> anyhow::Result<()> {
    match note {
        Note::Format(camera, format) => store.add_init(camera, &format.id, &format.mime, &format.init).await,
        Note::Credentials { hardware, serial, credentials } => {
            store.set_credentials(hardware, serial, &credentials).await
        }
        Note::GapBegan { camera, at, code, message } => store.open_gap(camera, at, &code, &message).await,
        Note::GapEnded { camera, at } => store.close_gap(camera, at).await,
        Note::Gap { camera, start, end, code, message } => {
            store.add_gap(camera, start, end, code, message).await
        }
        Note::Finished(_) | Note::End => Ok(()),
    }
}

async fn add_files(store: &Store, catalog: &Catalog, usage: &Usage, finished: &[File]) {
    if finished.is_empty() {
        return;
    }
    let rows: Vec<FileRow> = finished.iter().map(File::to_row).collect();
    match store.add_files(&rows).await {
        Ok(()) => {
            rows.iter().for_each(|row| usage.add(row.camera, row.bytes));
            finished.iter().for_each(|file| catalog.remove(file));
        }
        // They stay in the catalog, are shown and played; the next start finds them on disk.
        Err(error) => tracing::error!(
            files = finished.len(),
            error = format!("{error:#}"),
            "finished files cannot be entered in the index"
        ),
    }
}
