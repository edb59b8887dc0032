//! Export: any stretch of a recording as one plain MP4 that everything opens, of a length that is known before the
//! first byte, so that a browser shows progress and can go on where it was interrupted.
//!
//! 1. The heads of the fragments concerned are read (a few hundred bytes each), and sample tables made of them.
//! 2. The answer is the file's head followed by slices of the recording files, read as they are sent.
//!
//! The timeline is true to the wall clock: a gap lengthens the picture before it. The first group of pictures
//! is in the file from its key frame on, and an edit list hides what was not asked for.
//!
//! Invariant: the same question about time that has passed gives the same bytes, as long as the footage is kept.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use homing_media::mp4::{PlainBuilder, Sample, SampleEntry, parse_init_segment};
use homing_media::time::{TICKS_PER_SECOND, Ticks, rescale};
use sha2::{Digest as _, Sha256};

use crate::catalog::File;
use crate::playback::{Playback, base_of, read_head};

/// The longest export: its sample tables are made in memory, about 100 MB for a day with sound.
pub(crate) const LONGEST: Ticks = 24 * 3_600 * TICKS_PER_SECOND;

/// Read and sent at once.
const PIECE_BYTES: u64 = 256 * 1024;

/// An initialisation segment is shorter than this.
const INIT_BYTES: usize = 64 * 1024;

/// A file to be sent: its head, then slices of others.
#[derive(Debug)]
pub(crate) struct Export {
    pub head: Bytes,
    slices: Vec<Slice>,
    pub len: u64,
    /// Time of its first and after its last picture.
    pub start: Ticks,
    pub end: Ticks,
    pub etag: String,
}

#[derive(Clone, Debug)]
struct Slice {
    path: Arc<PathBuf>,
    /// Where it begins in the export.
    at: u64,
    offset: u64,
    len: u64,
}

impl Playback {
    /// Prepares an export of the time from `start` to `end`; `None`: there is no picture in it.
    pub async fn export(&self, camera: i64, start: Ticks, end: Ticks) -> anyhow::Result<Option<Export>> {
        let files = self.files(camera, start, end, crate::playback::MAX_FILES).await?;
        let footage = self.footage.clone();
        tokio::task::spawn_blocking(move || prepare(&footage, &files, start, end)).await?
    }
}

/// What is being put together.
struct Preparation {
    start: Ticks,
    end: Ticks,
    builder: PlainBuilder,
    slices: Vec<Slice>,
    /// Times of showing of the first picture within the asked-for time, and the end of the last.
    shown: Option<(Ticks, Ticks)>,
}

fn prepare(footage: &Path, files: &[File], start: Ticks, end: Ticks) -> anyhow::Result<Option<Export>> {
    let builder = PlainBuilder::new(2);
    let mut preparation = Preparation { start, end, builder, slices: Vec::new(), shown: None };
    for file in files {
        let path = Arc::new(footage.join(&file.path));
        match preparation.add_file(file, &path) {
            Ok(()) => {}
            // Deleted by retention since we asked: a gap.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(anyhow::Error::new(error).context(format!("reading {}", path.display())));
            }
        }
    }
    Ok(preparation.finish())
}

impl Preparation {
    fn add_file(&mut self, file: &File, path: &Arc<PathBuf>) -> io::Result<()> {
        let open = std::fs::File::open(path.as_path())?;
        let formats = read_init(&open)?;
        // Decoding begins with the last key frame at or before the start.
        let is_before = |at: &usize| file.entries[*at].is_key && file.entries[*at].start <= self.start;
        let first = (0..file.entries.len()).rev().find(is_before).unwrap_or(0);
        let end = self.end;
        for entry in file.entries[first..].iter().take_while(|entry| entry.start < end) {
            let fragment = read_head(&open, entry)?;
            let base = base_of(&fragment, entry);
            for run in &fragment.runs {
                let track = run.track as usize - 1;
                let Some(format) = formats.get(track) else { continue };
                let rate = format.timescale();
                let from = run.start.cast_signed() + rescale(base, 90_000, rate);
                let data = entry.offset + u64::from(fragment.head_len) + u64::from(run.data_offset);
                let wanted = self.wanted(track, from, rate, &run.samples);
                if wanted.is_empty() {
                    continue;
                }
                let skipped = &run.samples[..wanted.start];
                let from = from + skipped.iter().map(|sample| i64::from(sample.duration)).sum::<i64>();
                let offset = data + skipped.iter().map(|sample| u64::from(sample.size)).sum::<u64>();
                self.add_run(track, format, from, &run.samples[wanted], path, offset);
            }
        }
        Ok(())
    }

    /// Pictures from the key frame before the start on, since the others need it; sound only from the start on.
    /// Both up to the end.
    fn wanted(&self, track: usize, from: i64, rate: u32, samples: &[Sample]) -> Range<usize> {
        let (start, end) = (rescale(self.start, 90_000, rate), rescale(self.end, 90_000, rate));
        let mut at = from;
        let mut wanted = 0..0;
        for (n, sample) in samples.iter().enumerate() {
            // By the time of decoding: reordered pictures at the end would be undecodable otherwise.
            if at >= end {
                break;
            }
            if track == 1 && at + i64::from(sample.duration) <= start {
                wanted.start = n + 1;
            }
            wanted.end = n + 1;
            at += i64::from(sample.duration);
        }
        wanted.start..wanted.end.max(wanted.start)
    }

    fn add_run(
        &mut self,
        track: usize,
        format: &SampleEntry,
        from: i64,
        samples: &[Sample],
        path: &Arc<PathBuf>,
        offset: u64,
    ) {
        if track == 0 {
            let mut at = from;
            for sample in samples {
                let shown = at + i64::from(sample.offset);
                if shown >= self.start {
                    let until = shown + i64::from(sample.duration);
                    self.shown =
                        Some(self.shown.map_or((shown, until), |(a, b)| (a.min(shown), b.max(until))));
                }
                at += i64::from(sample.duration);
            }
        }
        let at = self.builder.data_len();
        self.builder.chunk(track, format, from, samples);
        let len = self.builder.data_len() - at;
        match self.slices.last_mut() {
            // Sound follows its pictures in the file, mostly.
            Some(last) if Arc::ptr_eq(&last.path, path) && last.offset + last.len == offset => {
                last.len += len
            }
            _ => self.slices.push(Slice { path: path.clone(), at, offset, len }),
        }
    }

    fn finish(mut self) -> Option<Export> {
        let (start, end) = self.shown?;
        let data_len = self.builder.data_len();
        let head = self.builder.finish(start);
        let head_len = head.len() as u64;
        self.slices.iter_mut().for_each(|slice| slice.at += head_len);
        let etag =
            Sha256::digest(&head).iter().take(16).map(|byte| format!("{byte:02x}")).collect::<String>();
        let etag = format!("\"{etag}\"");
        Some(Export { head: head.into(), slices: self.slices, len: head_len + data_len, start, end, etag })
    }
}

/// How the tracks of a recording file are coded.
pub(crate) fn read_init(file: &std::fs::File) -> io::Result<Vec<SampleEntry>> {
    let mut bytes = vec![0; 4096];
    loop {
        let got = file.read_at(&mut bytes, 0)?;
        let whole = init_len(&bytes[..got]);
        match whole {
            Some(len) if len <= got => {
                return parse_init_segment(&bytes[..len])
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error));
            }
            Some(len) if len <= INIT_BYTES && got == bytes.len() => bytes.resize(len, 0),
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a recording without initialisation segment",
                ));
            }
        }
    }
}

/// `ftyp` and `moov`.
fn init_len(bytes: &[u8]) -> Option<usize> {
    let size = |at: usize| Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?) as usize);
    let ftyp = size(0)?;
    ftyp.checked_add(size(ftyp)?)
}

impl Export {
    /// The bytes of a range, as they are read from disk. An error ends the answer short, which the client
    /// notices by the announced length.
    pub fn stream(self, range: Range<u64>) -> impl Stream<Item = io::Result<Bytes>> + Send {
        let export = Arc::new(self);
        futures_util::stream::unfold(range.start, move |at| {
            let (export, end) = (export.clone(), range.end);
            async move {
                if at >= end {
                    return None;
                }
                let read = tokio::task::spawn_blocking(move || export.read(at, end)).await;
                match read.unwrap_or_else(|error| Err(io::Error::other(error))) {
                    Ok(piece) => {
                        let next = at + piece.len() as u64;
                        Some((Ok(piece), next))
                    }
                    Err(error) => {
                        tracing::warn!(%error, "an export ends early: its footage cannot be read any more");
                        Some((Err(error), end))
                    }
                }
            }
        })
    }

    /// A piece from `at` on, at least one byte.
    fn read(&self, at: u64, end: u64) -> io::Result<Bytes> {
        if let Some(head) = self.head.get(at as usize..).filter(|head| !head.is_empty()) {
            let len = (head.len() as u64).min(end - at) as usize;
            return Ok(self.head.slice(at as usize..at as usize + len));
        }
        let after = self.slices.partition_point(|slice| slice.at <= at);
        let slice = self.slices.get(after.wrapping_sub(1)).ok_or(io::ErrorKind::UnexpectedEof)?;
        let within = at - slice.at;
        let len = PIECE_BYTES.min(slice.len - within).min(end - at);
        let mut piece = vec![0; len as usize];
        std::fs::File::open(slice.path.as_path())?.read_exact_at(&mut piece, slice.offset + within)?;
        Ok(piece.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: any range of an export is the same bytes as that part of the whole, across head and slices.
    #[test]
    fn ranges_of_slices() {
        let folder = tempfile::tempdir().unwrap();
        let path = Arc::new(folder.path().join("file"));
        std::fs::write(path.as_path(), (0..200u8).collect::<Vec<u8>>()).unwrap();
        let slices = vec![
            Slice { path: path.clone(), at: 10, offset: 50, len: 20 },
            Slice { path, at: 30, offset: 5, len: 7 },
        ];
        let export = Export {
            head: Bytes::from_static(b"0123456789"),
            slices,
            len: 37,
            start: 0,
            end: 0,
            etag: String::new(),
        };
        let read = |from: u64, to: u64| {
            let (mut at, mut bytes) = (from, Vec::new());
            while at < to {
                let piece = export.read(at, to).unwrap();
                at += piece.len() as u64;
                bytes.extend_from_slice(&piece);
            }
            bytes
        };
        let whole = read(0, 37);
        assert_eq!(
            whole,
            [b"0123456789".as_slice(), &(50..70).collect::<Vec<u8>>(), &(5..12).collect::<Vec<u8>>()]
                .concat()
        );
        for from in 0..37 {
            for to in from..=37 {
                assert_eq!(read(from, to), whole[from as usize..to as usize], "{from}..{to}");
            }
        }
    }
}
