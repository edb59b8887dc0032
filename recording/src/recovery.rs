//! What is done before recording begins: files that were open when the last process ended are found, cut
//! back to their last whole fragment, and entered in the index.
//!
//! Not here: files that the database knows; they were complete when they were entered.
//!
//! Invariant: nothing that is whole is ever deleted or cut.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use homing_media::flac::FlacEncoder;
use homing_media::h264::is_avcc;
use homing_media::mp4::{Fragment, SampleEntry, Scan, Scanner, mime, parse_init_segment};
use homing_media::time::{TICKS_PER_SECOND, Ticks};

use crate::catalog::{Entry, File};
use crate::fragment::init_id;
use crate::retention::Usage;
use crate::store::{CameraRow, Store};
use crate::writer::timestamp;

/// After a power failure the last fragments may have their length but not their content: so many are looked
/// into. More cannot have been written in one sync interval.
const SUSPECTS: usize = 8;

/// An unindexed file begins at the earliest so long before the end of the indexed ones: files are indexed in order,
/// and last an hour at most.
const MARGIN: Ticks = 7_200 * TICKS_PER_SECOND;

/// What was found of one file.
struct Found {
    file: File,
    mime: String,
    init: Vec<u8>,
}

/// Repairs the footage of all cameras; gives the end of what is recorded of each, and counts what there is.
pub(crate) async fn run(
    footage: &Path,
    store: &Store,
    cameras: &[CameraRow],
    usage: &Usage,
) -> anyhow::Result<Vec<(i64, Ticks)>> {
    let totals = store.totals().await?;
    let mut ends = Vec::new();
    for camera in cameras {
        let known = totals.iter().find(|total| total.0 == camera.id);
        if let Some(&(_, bytes, _, _)) = known {
            usage.add(camera.id, bytes);
        }
        let since = known.map_or(Ticks::MIN, |total| total.3 - MARGIN);
        let known_end = known.map_or(Ticks::MIN, |total| total.3);
        let indexed: HashSet<String> = store
            .files(camera.id, since, Ticks::MAX, false, i64::MAX)
            .await?
            .into_iter()
            .map(|row| row.path)
            .collect();
        let (folder, id) = (footage.to_owned(), camera.id);
        let found =
            tokio::task::spawn_blocking(move || repair_camera(&folder, id, since, &indexed)).await??;
        let mut rows = Vec::new();
        for found in found {
            store.add_init(camera.id, &found.file.init, &found.mime, &found.init).await?;
            rows.push(found.file.to_row());
        }
        if !rows.is_empty() {
            store.add_files(&rows).await?;
            tracing::info!(
                camera = camera.id,
                files = rows.len(),
                "files left open were repaired and indexed"
            );
        }
        rows.iter().for_each(|row| usage.add(camera.id, row.bytes));
        let end = rows.iter().map(|row| row.end).max().unwrap_or(known_end).max(known_end);
        if end > Ticks::MIN {
            ends.push((camera.id, end));
        }
    }
    Ok(ends)
}

fn repair_camera(
    footage: &Path,
    camera: i64,
    since: Ticks,
    indexed: &HashSet<String>,
) -> io::Result<Vec<Found>> {
    let folder = footage.join(camera.to_string());
    let first_day =
        if since == Ticks::MIN { String::new() } else { timestamp(since).strftime("%Y-%m-%d").to_string() };
    let mut found = Vec::new();
    for day in names(&folder)?.into_iter().filter(|day| *day >= first_day) {
        for name in names(&folder.join(&day))?.into_iter().filter(|name| name.ends_with(".mp4")) {
            let path = format!("{camera}/{day}/{name}");
            if indexed.contains(&path) {
                continue;
            }
            match repair_file(&footage.join(&path), camera, &path) {
                Ok(Some(file)) => found.push(file),
                Ok(None) => {
                    tracing::info!(path, "a file without a whole fragment is deleted");
                    fs::remove_file(footage.join(&path))?;
                }
                Err(error) => {
                    tracing::error!(path, %error, "a file left open cannot be repaired; it is left alone")
                }
            }
        }
    }
    Ok(found)
}

/// Sorted; none where there is no such folder.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

/// `None`: there is nothing whole in it.
fn repair_file(full: &Path, camera: i64, path: &str) -> io::Result<Option<Found>> {
    let file = fs::OpenOptions::new().read(true).write(true).open(full)?;
    let len = file.metadata()?.len();
    let scan = scan(&file, len)?;
    let mut init = vec![0; scan.init_len as usize];
    file.read_exact_at(&mut init, 0)?;
    let Ok(entries) = parse_init_segment(&init) else { return Ok(None) };
    let damaged = scan
        .fragments
        .iter()
        .enumerate()
        .skip(scan.fragments.len().saturating_sub(SUSPECTS))
        .find(|(_, fragment)| !is_whole(&file, fragment, &entries))
        .map(|(at, _)| at);
    let fragments = &scan.fragments[..damaged.unwrap_or(scan.fragments.len())];
    let Some(last) = fragments.last() else { return Ok(None) };
    let good_len = last.offset + u64::from(last.head_len) + u64::from(last.data_len);
    if good_len < len {
        tracing::warn!(path, cut = len - good_len, "a torn tail is cut off");
        file.set_len(good_len)?;
    }
    // Whole or not, it may not have been secured before the crash.
    file.sync_all()?;
    let table = table(fragments);
    let file = File { camera, path: path.to_owned(), init: init_id(&init), entries: table };
    Ok((!file.entries.is_empty()).then(|| Found { file, mime: mime(&entries), init }))
}

fn scan(mut file: &fs::File, len: u64) -> io::Result<Scan> {
    let mut scanner = Scanner::new(len);
    let mut bytes = Vec::new();
    while let Some((at, len)) = scanner.wants() {
        file.seek(SeekFrom::Start(at))?;
        bytes.clear();
        file.take(len as u64).read_to_end(&mut bytes)?;
        scanner.handle(&bytes);
    }
    Ok(scanner.finish())
}

/// Whether a fragment's samples have the content that was written: a crash of the machine may leave a file
/// with its length, and zeros where blocks did not reach the disk.
fn is_whole(file: &fs::File, fragment: &Fragment, entries: &[SampleEntry]) -> bool {
    let mut sample_bytes = Vec::new();
    fragment.runs.iter().all(|run| {
        let mut at = fragment.offset + u64::from(fragment.head_len) + u64::from(run.data_offset);
        run.samples.iter().all(|sample| {
            sample_bytes.resize(sample.size as usize, 0);
            let is_read = file.read_exact_at(&mut sample_bytes, at).is_ok();
            at += u64::from(sample.size);
            is_read
                && match entries.get(run.track as usize - 1) {
                    Some(SampleEntry::Avc(_)) => is_avcc(&sample_bytes) && !has_hole(&sample_bytes),
                    Some(SampleEntry::Flac { .. }) => FlacEncoder::is_whole(&sample_bytes),
                    _ => !has_hole(&sample_bytes),
                }
        })
    })
}

/// No coded picture or sound holds so many zeros in a row: H.264 forbids three (§7.4.1.1).
fn has_hole(sample: &[u8]) -> bool {
    const HOLE: usize = 64;
    let mut zeros = 0;
    sample.iter().any(|&byte| {
        zeros = if byte == 0 { zeros + 1 } else { 0 };
        zeros >= HOLE
    })
}

fn table(fragments: &[Fragment]) -> Vec<Entry> {
    let mut table: Vec<Entry> = Vec::with_capacity(fragments.len());
    for fragment in fragments {
        let (Some(start), Some(video)) = (fragment.clock, fragment.runs.iter().find(|run| run.track == 1))
        else {
            break;
        };
        if let Some(last) = table.last_mut() {
            // They follow each other by construction; the packed table relies on it.
            last.duration = (start - last.start).max(1);
        }
        table.push(Entry {
            start,
            duration: video.duration() as Ticks,
            offset: fragment.offset,
            len: u64::from(fragment.head_len) + u64::from(fragment.data_len),
            is_key: video.samples.first().is_some_and(|sample| sample.is_key),
        });
    }
    table
}
