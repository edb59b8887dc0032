//! The head of a movie fragment: `prft`, `moof`, and the first eight bytes of `mdat`.
//!
//! A fragment holds one frame (live) or a group of pictures (recording) of one track or of both.

use super::boxes::Boxes;
use crate::time::{Ticks, ntp_from_ticks};

/// One sample's description; its bytes are the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Bytes.
    pub size: u32,
    /// In the track's timescale.
    pub duration: u32,
    /// Presentation time minus decode time, in the track's timescale; negative where frames are reordered.
    pub offset: i32,
    /// Decoding can begin here. True for all audio.
    pub is_key: bool,
}

/// Consecutive samples of one track.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run<'a> {
    /// From 1.
    pub track: u32,
    /// Decode time of the first sample, in the track's timescale.
    pub start: u64,
    /// At least one.
    pub samples: &'a [Sample],
}

/// Why bytes are no fragment of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a fragment of a recording: {0}")]
pub struct FragmentError(pub(super) &'static str);

pub(super) const KEY: u32 = 0x0200_0000; // depends on no other
pub(super) const NOT_SYNC: u32 = 0x0001_0000;
const DELTA: u32 = 0x0100_0000 | NOT_SYNC; // depends on others

pub(super) const TFHD_DURATION: u32 = 0x8;
pub(super) const TFHD_FLAGS: u32 = 0x20;
const TFHD_BASE_IS_MOOF: u32 = 0x2_0000;

pub(super) const TRUN_DATA_OFFSET: u32 = 0x1;
pub(super) const TRUN_FIRST_FLAGS: u32 = 0x4;
pub(super) const TRUN_DURATION: u32 = 0x100;
pub(super) const TRUN_SIZE: u32 = 0x200;
pub(super) const TRUN_FLAGS: u32 = 0x400;
pub(super) const TRUN_OFFSET: u32 = 0x800;

/// `moof` and the head of the `mdat` that follows; the samples' bytes come after it, run by run.
///
/// `sequence` rises within a file or stream. With `clock` a `prft` box (ISO/IEC 14496-12 §8.16.5) comes
/// first: the wall-clock time of the first run's start.
///
/// Together the samples must be smaller than 4 GiB; a run without samples is left out.
pub fn fragment_head(sequence: u32, clock: Option<Ticks>, runs: &[Run<'_>]) -> Vec<u8> {
    let mut out = Boxes::default();
    let runs = runs.iter().filter(|run| !run.samples.is_empty());
    if let (Some(clock), Some(first)) = (clock, runs.clone().next()) {
        out.full(b"prft", 1, 0, |b| {
            b.u32(first.track);
            b.u64(ntp_from_ticks(clock));
            b.u64(first.start);
        });
    }
    let moof = out.len();
    let mut data_offsets = Vec::with_capacity(2);
    let mut data_len = 0u32;
    out.boxed(b"moof", |b| {
        b.full(b"mfhd", 0, 0, |b| b.u32(sequence));
        for run in runs {
            let at = track_fragment(b, run);
            data_offsets.push((at, data_len));
            data_len += run.samples.iter().map(|sample| sample.size).sum::<u32>();
        }
    });
    let to_data = (out.len() - moof) as u32 + 8;
    for (at, before) in data_offsets {
        out.patch_u32(at, to_data + before);
    }
    out.u32(data_len + 8);
    out.bytes(b"mdat");
    out.into_bytes()
}

/// Gives the place of the data offset.
fn track_fragment(b: &mut Boxes, run: &Run<'_>) -> usize {
    let first = run.samples[0];
    let same_duration = run.samples.iter().all(|sample| sample.duration == first.duration);
    let rest = &run.samples[1..];
    let rest_is_key = rest.first().map_or(first.is_key, |second| second.is_key);
    let flags_differ = rest.iter().any(|sample| sample.is_key != rest_is_key);
    let has_offsets = run.samples.iter().any(|sample| sample.offset != 0);

    let mut flags = TRUN_DATA_OFFSET | TRUN_SIZE;
    if flags_differ {
        flags |= TRUN_FLAGS;
    } else if first.is_key != rest_is_key {
        flags |= TRUN_FIRST_FLAGS;
    }
    if !same_duration {
        flags |= TRUN_DURATION;
    }
    if has_offsets {
        flags |= TRUN_OFFSET;
    }
    let sample_flags = |is_key| if is_key { KEY } else { DELTA };

    let mut data_offset_at = 0;
    b.boxed(b"traf", |b| {
        let header = TFHD_BASE_IS_MOOF | TFHD_FLAGS | if same_duration { TFHD_DURATION } else { 0 };
        b.full(b"tfhd", 0, header, |b| {
            b.u32(run.track);
            if same_duration {
                b.u32(first.duration);
            }
            b.u32(sample_flags(rest_is_key));
        });
        b.full(b"tfdt", 1, 0, |b| b.u64(run.start));
        b.full(b"trun", 1, flags, |b| {
            b.u32(run.samples.len() as u32);
            data_offset_at = b.len();
            b.u32(0);
            if flags & TRUN_FIRST_FLAGS != 0 {
                b.u32(sample_flags(first.is_key));
            }
            for sample in run.samples {
                if !same_duration {
                    b.u32(sample.duration);
                }
                b.u32(sample.size);
                if flags_differ {
                    b.u32(sample_flags(sample.is_key));
                }
                if has_offsets {
                    b.u32(sample.offset.cast_unsigned());
                }
            }
        });
    });
    data_offset_at
}
