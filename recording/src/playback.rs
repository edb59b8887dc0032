//! What was recorded, and pieces of it: the timeline, and one group of pictures at a time for a player.
//!
//! Not here: export (`export.rs`), HTTP (`api.rs`).
//!
//! Invariant: whoever asks while recording goes on sees only what is secured on disk, and never misses a file
//! that is on its way from the catalog to the database.

use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use homing_media::mp4::{Fragment, Run, fragment_head, parse_fragment_head};
use homing_media::time::{TICKS_PER_SECOND, Ticks, rescale};
use homing_protocol::api::recording::{Timeline, TimelineGap, TimelineRange};

use crate::catalog::{Catalog, Entry, File};
use crate::store::{CONNECTING, GapRow, Store};
use crate::writer::timestamp;

/// Footage interrupted for less is one range: rounding between sessions.
const SEAM: Ticks = TICKS_PER_SECOND / 10;

/// While a camera records, the last seconds are not secured yet; that is no gap.
const UNSECURED: Ticks = 60 * TICKS_PER_SECOND;

/// Connecting for less than this is not worth a cause of its own.
const BRIEFLY: Ticks = 10 * TICKS_PER_SECOND;

/// Files that one question concerns at most; a year of minute files.
pub(crate) const MAX_FILES: i64 = 600_000;

/// Reads what was recorded. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Playback {
    pub store: Store,
    pub catalog: Catalog,
    pub footage: PathBuf,
}

/// One group of pictures for a player.
pub(crate) struct Group {
    pub start: Ticks,
    pub end: Ticks,
    pub init: String,
    /// Where the next group begins.
    pub next: Option<Ticks>,
    /// Fragments with absolute decode times.
    pub bytes: Vec<u8>,
}

impl Playback {
    /// The files that hold any of that time, in order.
    pub async fn files(
        &self,
        camera: i64,
        start: Ticks,
        end: Ticks,
        limit: i64,
    ) -> anyhow::Result<Vec<File>> {
        // The catalog first: a file leaves it only when the database has it.
        let recent = self.catalog.files(camera, start, end);
        let rows = self.store.files(camera, start, end, true, limit).await?;
        let mut files: Vec<File> = rows.iter().filter_map(File::from_row).collect();
        files.extend(recent.into_iter().filter(|file| !rows.iter().any(|row| row.path == file.path)));
        files.sort_by_key(File::start);
        files.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        Ok(files)
    }

    /// Times of footage without its tables: start and end of each file, in order.
    async fn spans(&self, camera: i64, start: Ticks, end: Ticks) -> anyhow::Result<Vec<(Ticks, Ticks)>> {
        let recent = self.catalog.files(camera, start, end);
        let rows = self.store.files(camera, start, end, false, MAX_FILES).await?;
        let mut spans: Vec<(Ticks, Ticks)> = rows.iter().map(|row| (row.start, row.end)).collect();
        let unknown = recent.iter().filter(|file| !rows.iter().any(|row| row.path == file.path));
        spans.extend(unknown.map(|file| (file.start(), file.end())));
        spans.sort_unstable();
        Ok(spans)
    }

    /// First and last moment of a camera's footage.
    pub async fn extent(&self, camera: i64) -> anyhow::Result<Option<(Ticks, Ticks)>> {
        let recent = self.catalog.files(camera, Ticks::MIN, Ticks::MAX);
        let recent = recent.iter().map(|file| (file.start(), file.end()));
        let stored = self.store.extent(camera).await?;
        Ok(recent.chain(stored).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))))
    }

    /// What was recorded between two moments, and why not where not. `exists` is the time in which the camera
    /// should have been recorded; `plays_since`: from that moment on pictures arrive, and the last
    /// seconds of them are on their way to the disk.
    pub async fn timeline(
        &self,
        camera: i64,
        start: Ticks,
        end: Ticks,
        exists: (Ticks, Ticks),
        plays_since: Option<Ticks>,
    ) -> anyhow::Result<Timeline> {
        let spans = self.spans(camera, start, end).await?;
        let causes = self.store.gaps(camera, start, end).await?;
        let first = self.extent(camera).await?.map(|extent| extent.0);
        let ranges = merge(&spans, start, end);
        // What is still to come is no gap.
        let until = end.min(exists.1).min(crate::now());
        let gaps = gaps(&ranges, start.max(exists.0), until, plays_since);
        let gaps = gaps.into_iter().flat_map(|gap| explain(gap, &causes, first)).collect();
        let range =
            |&(start, end): &(Ticks, Ticks)| TimelineRange { start: timestamp(start), end: timestamp(end) };
        Ok(Timeline {
            start: timestamp(start),
            end: timestamp(end),
            ranges: ranges.iter().map(range).collect(),
            gaps,
        })
    }

    /// The group of pictures that holds that moment, or else the next one after it; `None`: there is none.
    pub async fn group(&self, camera: i64, time: Ticks) -> anyhow::Result<Option<Group>> {
        let files = self.files(camera, time, Ticks::MAX, 3).await?;
        for (at, file) in files.iter().enumerate() {
            let Some((group, next)) = group_at(&file.entries, time) else { continue };
            let next = next.or_else(|| files.get(at + 1).map(File::start));
            let (Some(first), Some(last)) = (group.first(), group.last()) else { continue };
            let (start, end) = (first.start, last.end());
            let (path, group) = (self.footage.join(&file.path), group.to_vec());
            let bytes = tokio::task::spawn_blocking(move || read_group(&path, &group)).await??;
            return Ok(Some(Group { start, end, init: file.init.clone(), next, bytes }));
        }
        Ok(None)
    }

    /// The next moment with footage after that one.
    pub async fn next_after(&self, camera: i64, time: Ticks) -> anyhow::Result<Option<Ticks>> {
        let files = self.files(camera, time, Ticks::MAX, 1).await?;
        Ok(files.first().map(|file| file.start().max(time)))
    }
}

/// Neighbours joined, cut to the asked-for time.
fn merge(spans: &[(Ticks, Ticks)], start: Ticks, end: Ticks) -> Vec<(Ticks, Ticks)> {
    let mut ranges: Vec<(Ticks, Ticks)> = Vec::new();
    for &(from, to) in spans {
        let (from, to) = (from.max(start), to.min(end));
        match ranges.last_mut() {
            Some(last) if from - last.1 <= SEAM => last.1 = last.1.max(to),
            _ if from < to => ranges.push((from, to)),
            _ => {}
        }
    }
    ranges
}

/// What is left over.
fn gaps(
    ranges: &[(Ticks, Ticks)],
    start: Ticks,
    end: Ticks,
    plays_since: Option<Ticks>,
) -> Vec<(Ticks, Ticks)> {
    let mut gaps = Vec::new();
    let mut at = start;
    for &(from, to) in ranges {
        if from - at > SEAM {
            gaps.push((at, from));
        }
        at = at.max(to);
    }
    // For longer than that nothing waits: then it is a gap after all.
    let waits_from = plays_since.map(|since| since.max(at)).filter(|from| end - from < UNSECURED);
    let tail_end = waits_from.unwrap_or(end).min(end);
    if tail_end - at > SEAM {
        gaps.push((at, tail_end));
    }
    gaps
}

/// A gap in parts, each with its cause. What nothing is known of belongs to the cause before it; a short while of
/// connecting does, too.
fn explain((start, end): (Ticks, Ticks), causes: &[GapRow], first: Option<Ticks>) -> Vec<TimelineGap> {
    let is_expired = first.is_some_and(|first| end <= first + SEAM);
    let unknown = if is_expired {
        ("expired", "Older footage was deleted to make room.")
    } else {
        ("unknown", "Nothing is known of this gap.")
    };
    let mut parts: Vec<(Ticks, Ticks, (&str, &str))> = Vec::new();
    let mut at = start;
    for cause in causes.iter().filter(|cause| cause.start < end && cause.end.is_none_or(|to| to > start)) {
        let from = cause.start.clamp(at, end);
        let to = cause.end.unwrap_or(end).clamp(from, end);
        if from - at > SEAM && parts.is_empty() {
            parts.push((at, from, unknown));
        }
        let is_brief = cause.code == CONNECTING && to - from < BRIEFLY;
        match parts.last_mut() {
            Some(last) if is_brief => last.1 = to,
            Some(last) => {
                last.1 = from;
                parts.push((from, to, (&cause.code, &cause.message)));
            }
            None => parts.push((at, to, (&cause.code, &cause.message))),
        }
        at = to;
    }
    match parts.last_mut() {
        Some(last) => last.1 = end,
        None => parts.push((start, end, unknown)),
    }
    let gap = |(start, end, (code, message)): (Ticks, Ticks, (&str, &str))| TimelineGap {
        start: timestamp(start),
        end: timestamp(end),
        code: code.to_owned(),
        message: message.to_owned(),
    };
    parts.into_iter().filter(|part| part.0 < part.1).map(gap).collect()
}

/// The group (a key fragment and those that depend on it) that is shown at that time, or the first after it;
/// and where the next one begins in this file.
fn group_at(entries: &[Entry], time: Ticks) -> Option<(&[Entry], Option<Ticks>)> {
    let keys: Vec<usize> = (0..entries.len()).filter(|&at| entries[at].is_key).collect();
    for (n, &key) in keys.iter().enumerate() {
        let next = keys.get(n + 1).copied();
        let group = &entries[key..next.unwrap_or(entries.len())];
        if group.last().is_some_and(|last| last.end() > time) {
            return Some((group, next.map(|next| entries[next].start)));
        }
    }
    None
}

/// Reads a fragment's head and gives its parsed form; its data follows.
pub(crate) fn read_head(file: &std::fs::File, entry: &Entry) -> io::Result<Fragment> {
    // One read for most heads.
    let mut head = vec![0; (entry.len as usize).min(4096)];
    file.read_exact_at(&mut head, entry.offset)?;
    let len = match head_len(&head) {
        Some(len) => len,
        None => {
            head.resize(entry.len as usize, 0);
            file.read_exact_at(&mut head, entry.offset)?;
            head_len(&head)
                .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a fragment without mdat"))?
        }
    };
    parse_fragment_head(&head[..len]).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Bytes up to and with the head of `mdat`, if that is there.
fn head_len(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let head = bytes.get(at..at + 8)?;
        if &head[4..] == b"mdat" {
            return Some(at + 8);
        }
        at += (u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize).max(8);
    }
}

/// Wall-clock time of the file's decode time 0, by one of its fragments.
pub(crate) fn base_of(fragment: &Fragment, entry: &Entry) -> Ticks {
    let start = fragment.runs.iter().find(|run| run.track == 1).map_or(0, |run| run.start);
    fragment.clock.unwrap_or(entry.start) - start.cast_signed()
}

fn read_group(path: &Path, group: &[Entry]) -> io::Result<Vec<u8>> {
    let file = std::fs::File::open(path)?;
    let rate = audio_rate(&file)?;
    let mut out = Vec::new();
    for entry in group {
        let fragment = read_head(&file, entry)?;
        let base = base_of(&fragment, entry);
        let runs: Vec<Run<'_>> = fragment
            .runs
            .iter()
            .map(|run| {
                let scale = if run.track == 1 { 90_000 } else { rate };
                let start = run.start.cast_signed() + rescale(base, 90_000, scale);
                Run { track: run.track, start: start.max(0).cast_unsigned(), samples: &run.samples }
            })
            .collect();
        let sequence = (entry.start / TICKS_PER_SECOND) as u32;
        out.extend_from_slice(&fragment_head(sequence, None, &runs));
        let at = out.len();
        out.resize(at + fragment.data_len as usize, 0);
        file.read_exact_at(&mut out[at..], entry.offset + u64::from(fragment.head_len))?;
    }
    Ok(out)
}

/// The timescale of the file's audio track; anything where there is none.
fn audio_rate(file: &std::fs::File) -> io::Result<u32> {
    let entries = crate::export::read_init(file)?;
    Ok(entries.get(1).map_or(90_000, homing_media::mp4::SampleEntry::timescale))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(start: Ticks, is_key: bool) -> Entry {
        Entry { start, duration: 10, offset: 0, len: 1, is_key }
    }

    /// Goal: ranges and gaps cover the asked-for time; a seam is no gap, the unsecured tail neither.
    #[test]
    fn ranges_and_gaps() {
        let s = TICKS_PER_SECOND;
        let spans = [(0, 60 * s), (60 * s, 120 * s), (120 * s + 100, 130 * s), (200 * s, 260 * s)];
        let ranges = merge(&spans, 10 * s, 250 * s);
        assert_eq!(ranges, [(10 * s, 130 * s), (200 * s, 250 * s)]);
        assert_eq!(gaps(&ranges, 0, 255 * s, None), [(0, 10 * s), (130 * s, 200 * s), (250 * s, 255 * s)]);
        assert_eq!(gaps(&ranges, 0, 255 * s, Some(0)).len(), 2);
        assert_eq!(
            gaps(&ranges, 0, 255 * s, Some(253 * s))[2],
            (250 * s, 253 * s),
            "away before it played again"
        );
        assert_eq!(gaps(&ranges, 0, 400 * s, Some(0))[2], (250 * s, 400 * s), "the disk does not take it");
        assert_eq!(gaps(&[], 5, 5, None), []);
    }

    /// Goal: a gap is explained by what began it; where footage was deleted that is said.
    #[test]
    fn causes() {
        let s = TICKS_PER_SECOND;
        let row = |start: Ticks, end: Option<Ticks>, code: &str| GapRow {
            start: start * s,
            end: end.map(|end| end * s),
            code: code.into(),
            message: String::new(),
        };
        let parts =
            |from: Ticks, to: Ticks, causes: &[GapRow], first: Option<Ticks>| -> Vec<(i64, i64, String)> {
                let gaps = explain((from * s, to * s), causes, first.map(|first| first * s));
                gaps.into_iter().map(|gap| (gap.start.as_second(), gap.end.as_second(), gap.code)).collect()
            };
        let part = |from, to, code: &str| (from, to, code.to_owned());
        let stop = [row(100, Some(150), "server-stopped"), row(150, Some(153), CONNECTING)];
        assert_eq!(parts(100, 153, &stop, None), [part(100, 153, "server-stopped")]);
        let outage = [row(100, Some(150), "server-stopped"), row(150, None, "wrong-credentials")];
        assert_eq!(
            parts(100, 400, &outage, None),
            [part(100, 150, "server-stopped"), part(150, 400, "wrong-credentials")]
        );
        assert_eq!(parts(160, 200, &outage, None), [part(160, 200, "wrong-credentials")]);
        let new = [row(0, Some(2), CONNECTING)];
        assert_eq!(parts(0, 2, &new, Some(2)), [part(0, 2, CONNECTING)]);
        assert_eq!(parts(0, 50, &outage, Some(50)), [part(0, 50, "expired")]);
        assert_eq!(parts(50, 90, &outage, Some(0)), [part(50, 90, "unknown")]);
    }

    /// Goal: a player gets whole groups of pictures, the one at its moment or the first after.
    #[test]
    fn groups() {
        let entries = [entry(0, true), entry(10, false), entry(20, true), entry(30, true)];
        let starts = |time| group_at(&entries, time).map(|(group, next)| (group[0].start, group.len(), next));
        assert_eq!(starts(-5), Some((0, 2, Some(20))));
        assert_eq!(starts(15), Some((0, 2, Some(20))));
        assert_eq!(starts(20), Some((20, 1, Some(30))));
        assert_eq!(starts(39), Some((30, 1, None)));
        assert_eq!(starts(40), None);
    }
}
