//! The head of a plain MP4 file whose samples lie elsewhere: `ftyp`, `moov` with sample tables, and the head
//! of `mdat`; so that a server can send head and slices of recording files as one file of known length.
//!
//! 1. [`PlainBuilder::new`] with the tracks; 2. [`PlainBuilder::chunk`] for each run of samples, in the order
//!    in which their bytes will follow; 3. [`PlainBuilder::finish`].
//!
//! Invariant: the tables are built run-length coded as they come, so that a day of video costs a few bytes
//! per sample and not a structure each.

use super::boxes::Boxes;
use super::fragment::Sample;
use super::{
    MOVIE_TIMESCALE, SampleEntry, media_header, media_information, movie_header, sample_description,
    track_header,
};
use crate::time::{TICKS_PER_SECOND, Ticks, rescale};

/// Collects sample tables.
#[derive(Debug)]
pub struct PlainBuilder {
    tracks: Vec<PlainTrack>,
    data_len: u64,
}

/// One track's tables.
#[derive(Debug, Default)]
pub struct PlainTrack {
    entries: Vec<SampleEntry>,
    /// Decode time of the first sample, absolute, in the track's timescale.
    start: Option<i64>,
    /// Decode time after the last sample.
    end: i64,
    /// Least and greatest presentation time.
    shown: Option<(i64, i64)>,
    times: Vec<(u32, u32)>,
    offsets: Vec<(u32, i32)>,
    sizes: Vec<u32>,
    keys: Vec<u32>,
    /// First chunk (from 1), samples per chunk, entry (from 1).
    chunk_runs: Vec<(u32, u32, u32)>,
    chunks: Vec<u64>,
}

impl PlainBuilder {
    /// For so many tracks; their ids are 1 and so on.
    pub fn new(tracks: usize) -> Self {
        Self { tracks: (0..tracks).map(|_| PlainTrack::default()).collect(), data_len: 0 }
    }

    /// Appends samples, whose bytes come next in the data. `start` is the decode time of the first one,
    /// absolute (unix time × timescale). A gap after the last sample of before is filled by that sample's
    /// duration, so that the file's timeline is true; an overlap shortens it.
    ///
    /// All entries of a track must have one timescale.
    pub fn chunk(&mut self, track: usize, entry: &SampleEntry, start: i64, samples: &[Sample]) {
        let Some(table) = self.tracks.get_mut(track).filter(|_| !samples.is_empty()) else { return };
        table.add(entry, start, samples, self.data_len);
        self.data_len += samples.iter().map(|sample| u64::from(sample.size)).sum::<u64>();
    }

    /// Bytes of sample data so far.
    pub fn data_len(&self) -> u64 {
        self.data_len
    }

    /// The file's beginning up to and with the head of `mdat`. It is shown from `from` (wall-clock ticks) on,
    /// which should be a video frame's time, since players differ in how they begin within a frame:
    /// samples before it are in the file, since decoding needs them, but an edit list hides them; where a
    /// track begins later, it is delayed. Tracks without samples are left out.
    pub fn finish(self, from: Ticks) -> Vec<u8> {
        let mut out = Boxes::default();
        out.boxed(b"ftyp", |b| b.bytes(b"isom\0\0\0\0isomiso2avc1mp41"));
        let created = from.div_euclid(TICKS_PER_SECOND);
        let tracks: Vec<&PlainTrack> = self.tracks.iter().filter(|track| !track.sizes.is_empty()).collect();
        let duration = tracks.iter().map(|track| track.shown_until(from)).max().unwrap_or(0);
        let mut offset_tables = Vec::new();
        out.boxed(b"moov", |b| {
            movie_header(b, created, duration, tracks.len() as u32 + 1);
            for (id, track) in (1..).zip(tracks) {
                b.boxed(b"trak", |b| {
                    track_header(b, id, &track.entries[0], created, track.shown_until(from));
                    track.edit_list(b, from);
                    b.boxed(b"mdia", |b| {
                        media_header(b, &track.entries[0], created, track.times_total());
                        b.boxed(b"minf", |b| {
                            media_information(b, &track.entries[0]);
                            b.boxed(b"stbl", |b| {
                                offset_tables.push((track.sample_table(b), track.chunks.len()))
                            });
                        });
                    });
                });
            }
        });
        let is_large = self.data_len + 8 > u64::from(u32::MAX);
        let head_len = out.len() as u64 + if is_large { 16 } else { 8 };
        for (at, count) in offset_tables {
            out.add_u64s(at, count, head_len);
        }
        if is_large {
            out.u32(1);
            out.bytes(b"mdat");
            out.u64(self.data_len + 16);
        } else {
            out.u32(self.data_len as u32 + 8);
            out.bytes(b"mdat");
        }
        out.into_bytes()
    }
}

impl PlainTrack {
    fn add(&mut self, entry: &SampleEntry, start: i64, samples: &[Sample], data_offset: u64) {
        let entry_at = match self.entries.iter().position(|known| known == entry) {
            Some(at) => at,
            None => {
                self.entries.push(entry.clone());
                self.entries.len() - 1
            }
        };
        match self.start {
            None => (self.start, self.end) = (Some(start), start),
            Some(_) => self.stretch_last(start),
        }
        let chunk = self.chunks.len() as u32 + 1;
        self.chunks.push(data_offset);
        let per_chunk = (samples.len() as u32, entry_at as u32 + 1);
        if self.chunk_runs.last().is_none_or(|run| (run.1, run.2) != per_chunk) {
            self.chunk_runs.push((chunk, per_chunk.0, per_chunk.1));
        }
        for sample in samples {
            self.sizes.push(sample.size);
            if sample.is_key {
                self.keys.push(self.sizes.len() as u32);
            }
            count(&mut self.times, sample.duration);
            count(&mut self.offsets, sample.offset);
            let shown = self.end + i64::from(sample.offset);
            let until = shown + i64::from(sample.duration);
            self.shown =
                Some(self.shown.map_or((shown, until), |(from, to)| (from.min(shown), to.max(until))));
            self.end += i64::from(sample.duration);
        }
    }

    /// Makes the last sample end where the next one begins.
    fn stretch_last(&mut self, next: i64) {
        let Some((n, last)) = self.times.last_mut() else { return };
        let wanted = (i64::from(*last) + next - self.end).clamp(1, i64::from(u32::MAX));
        let change = wanted - i64::from(*last);
        if change == 0 {
            return;
        }
        *n -= 1;
        if *n == 0 {
            self.times.pop();
        }
        count(&mut self.times, wanted as u32);
        self.end += change;
        self.shown = self.shown.map(|(from, to)| (from, to + change));
    }

    fn times_total(&self) -> u64 {
        self.times.iter().map(|&(n, duration)| u64::from(n) * u64::from(duration)).sum()
    }

    fn timescale(&self) -> u32 {
        self.entries[0].timescale()
    }

    /// When it is over, in movie ticks after `from`.
    fn shown_until(&self, from: Ticks) -> u64 {
        let until = self.shown.map_or(0, |(_, to)| to);
        (rescale(until, self.timescale(), MOVIE_TIMESCALE) - from).max(0) as u64
    }

    /// §8.6.6: wait until the first sample is due, then begin at the place of the media that is due.
    fn edit_list(&self, b: &mut Boxes, from: Ticks) {
        let (Some(start), Some((shown_from, shown_to))) = (self.start, self.shown) else { return };
        let from_media = rescale(from, MOVIE_TIMESCALE, self.timescale());
        let delay = rescale(shown_from, self.timescale(), MOVIE_TIMESCALE) - from;
        // Media time 0 is the first decode time, and the presentation may begin after or before it.
        let begin = shown_from.max(from_media);
        if delay <= 0 && begin == start {
            return;
        }
        let playing = rescale(shown_to - begin, self.timescale(), MOVIE_TIMESCALE) + 1;
        b.boxed(b"edts", |b| {
            b.full(b"elst", 1, 0, |b| {
                b.u32(if delay > 0 { 2 } else { 1 });
                if delay > 0 {
                    b.u64(delay as u64);
                    b.u64(u64::MAX); // media time -1: nothing
                    b.u32(0x0001_0000);
                }
                b.u64(playing.max(0) as u64);
                b.u64((begin - start).cast_unsigned());
                b.u32(0x0001_0000);
            });
        });
    }

    /// Gives the place of the chunk offsets.
    fn sample_table(&self, b: &mut Boxes) -> usize {
        sample_description(b, &self.entries);
        b.full(b"stts", 0, 0, |b| {
            b.u32(self.times.len() as u32);
            for &(n, duration) in &self.times {
                b.u32(n);
                b.u32(duration);
            }
        });
        if self.offsets.iter().any(|&(_, offset)| offset != 0) {
            b.full(b"ctts", 1, 0, |b| {
                b.u32(self.offsets.len() as u32);
                for &(n, offset) in &self.offsets {
                    b.u32(n);
                    b.u32(offset.cast_unsigned());
                }
            });
        }
        if self.keys.len() < self.sizes.len() {
            b.full(b"stss", 0, 0, |b| {
                b.u32(self.keys.len() as u32);
                self.keys.iter().for_each(|&key| b.u32(key));
            });
        }
        b.full(b"stsc", 0, 0, |b| {
            b.u32(self.chunk_runs.len() as u32);
            for &(chunk, samples, entry) in &self.chunk_runs {
                b.u32(chunk);
                b.u32(samples);
                b.u32(entry);
            }
        });
        b.full(b"stsz", 0, 0, |b| {
            b.u32(0);
            b.u32(self.sizes.len() as u32);
            self.sizes.iter().for_each(|&size| b.u32(size));
        });
        let mut at = 0;
        b.full(b"co64", 0, 0, |b| {
            b.u32(self.chunks.len() as u32);
            at = b.len();
            self.chunks.iter().for_each(|&offset| b.u64(offset));
        });
        at
    }
}

/// Run-length coding.
fn count<T: PartialEq>(runs: &mut Vec<(u32, T)>, value: T) {
    match runs.last_mut() {
        Some((n, last)) if *last == value => *n += 1,
        _ => runs.push((1, value)),
    }
}
