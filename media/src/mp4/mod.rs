//! MP4 (ISO/IEC 14496-12, -14, -15; FLAC by xiph.org's "Encapsulation of FLAC in ISO BMFF"): writing what
//! recordings, live streams and exports consist of, and reading back our own.
//!
//! | what | where |
//! |---|---|
//! | initialisation segment: `ftyp` + `moov` without samples | [`init_segment`] |
//! | fragment: `prft` + `moof` + head of `mdat` | [`fragment_head`], `fragment.rs` |
//! | plain file: `ftyp` + `moov` with sample tables + head of `mdat` | [`PlainBuilder`], `plain.rs` |
//! | reading our fragments, and what a crash left of a file | [`Scanner`], `scan.rs` |
//!
//! A recording file is an initialisation segment followed by fragments; its decode times begin near 0, so
//! that any player opens it, and each fragment's `prft` says which wall-clock time that is. A live stream
//! and played-back fragments have absolute decode times: unix time × timescale.
//!
//! Sample data never passes through here: heads are made from sizes, the caller writes head and data.
//!
//! Not here: files and their names (recording), general MP4 reading.
//!
//! Invariants: video tracks count 1/90,000 s, audio tracks samples; a fragment's data lies behind its head
//! in the order of its runs.

mod boxes;
mod fragment;
mod plain;
mod scan;
#[cfg(test)]
mod tests;

pub use fragment::{FragmentError, Run, Sample, fragment_head};
pub use plain::{PlainBuilder, PlainTrack};
pub use scan::{Fragment, RunInfo, Scan, Scanner, parse_fragment_head, parse_init_segment};

use std::sync::Arc;

use crate::aac::AacFormat;
use crate::flac::FlacEncoder;
use crate::h264::ParameterSets;
use boxes::Boxes;

/// How a track's samples are coded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SampleEntry {
    /// H.264 in AVCC form, lengths of four bytes.
    Avc(Arc<ParameterSets>),
    /// AAC, raw data blocks.
    Aac(AacFormat),
    /// FLAC, mono, 16 bits.
    Flac {
        /// Samples per second.
        sample_rate: u32,
    },
}

impl SampleEntry {
    /// Units per second of the track's times.
    pub fn timescale(&self) -> u32 {
        match self {
            Self::Avc(_) => 90_000,
            Self::Aac(format) => format.sample_rate,
            Self::Flac { sample_rate } => *sample_rate,
        }
    }

    /// For MIME types, RFC 6381.
    pub fn codec(&self) -> String {
        match self {
            Self::Avc(sets) => sets.codec(),
            Self::Aac(format) => format.codec(),
            Self::Flac { .. } => "flac".into(),
        }
    }

    /// Whether it is video.
    pub fn is_video(&self) -> bool {
        matches!(self, Self::Avc(_))
    }
}

/// A track of an initialisation segment; its id is its place in the list, from 1.
pub type Tracks<'a> = &'a [SampleEntry];

/// `video/mp4; codecs="…"`, as Media Source Extensions want it.
pub fn mime(tracks: Tracks<'_>) -> String {
    let codecs: Vec<String> = tracks.iter().map(SampleEntry::codec).collect();
    format!("video/mp4; codecs=\"{}\"", codecs.join(","))
}

/// `ftyp` and a `moov` that announces fragments. Equal tracks give equal bytes.
pub fn init_segment(tracks: Tracks<'_>) -> Vec<u8> {
    let mut out = Boxes::default();
    out.boxed(b"ftyp", |b| b.bytes(b"iso6\0\0\0\0iso6mp41"));
    out.boxed(b"moov", |b| {
        movie_header(b, 0, 0, tracks.len() as u32 + 1);
        for (id, entry) in (1..).zip(tracks) {
            b.boxed(b"trak", |b| {
                track_header(b, id, entry, 0, 0);
                b.boxed(b"mdia", |b| {
                    media_header(b, entry, 0, 0);
                    b.boxed(b"minf", |b| {
                        media_information(b, entry);
                        b.boxed(b"stbl", |b| {
                            sample_description(b, std::slice::from_ref(entry));
                            for table in [b"stts", b"stsc", b"stco"] {
                                b.full(table, 0, 0, |b| b.u32(0));
                            }
                            b.full(b"stsz", 0, 0, |b| b.u64(0));
                        });
                    });
                });
            });
        }
        b.boxed(b"mvex", |b| {
            for id in 1..=tracks.len() as u32 {
                b.full(b"trex", 0, 0, |b| {
                    b.u32(id);
                    b.u32(1);
                    b.bytes(&[0; 12]);
                });
            }
        });
    });
    out.into_bytes()
}

/// The tick rate of a whole movie (`mvhd`).
const MOVIE_TIMESCALE: u32 = 90_000;

/// Seconds from 1904, where MP4 begins, to 1970.
const MP4_TO_UNIX_S: i64 = 2_082_844_800;

/// Times are 64 bits wide (version 1): a day in 1/90,000 s does not fit into 32.
fn movie_header(b: &mut Boxes, created_unix_s: i64, duration: u64, next_track: u32) {
    b.full(b"mvhd", 1, 0, |b| {
        creation_times(b, created_unix_s);
        b.u32(MOVIE_TIMESCALE);
        b.u64(duration);
        b.u32(0x0001_0000); // rate
        b.u16(0x0100); // volume
        b.bytes(&[0; 10]);
        matrix(b);
        b.bytes(&[0; 24]);
        b.u32(next_track);
    });
}

fn track_header(b: &mut Boxes, id: u32, entry: &SampleEntry, created_unix_s: i64, duration: u64) {
    // Enabled, in movie, in preview.
    b.full(b"tkhd", 1, 7, |b| {
        creation_times(b, created_unix_s);
        b.u32(id);
        b.u32(0);
        b.u64(duration);
        b.bytes(&[0; 12]); // reserved, layer, alternate group
        b.u16(if entry.is_video() { 0 } else { 0x0100 });
        b.u16(0);
        matrix(b);
        let (width, height) = match entry {
            SampleEntry::Avc(sets) => (sets.width(), sets.height()),
            _ => (0, 0),
        };
        b.u32(u32::from(width) << 16);
        b.u32(u32::from(height) << 16);
    });
}

fn media_header(b: &mut Boxes, entry: &SampleEntry, created_unix_s: i64, duration: u64) {
    b.full(b"mdhd", 1, 0, |b| {
        creation_times(b, created_unix_s);
        b.u32(entry.timescale());
        b.u64(duration);
        b.u16(0x55c4); // "und"
        b.u16(0);
    });
    b.full(b"hdlr", 0, 0, |b| {
        b.u32(0);
        b.bytes(if entry.is_video() { b"vide" } else { b"soun" });
        b.bytes(&[0; 12]);
        b.bytes(b"Homing\0");
    });
}

fn media_information(b: &mut Boxes, entry: &SampleEntry) {
    if entry.is_video() {
        b.full(b"vmhd", 0, 1, |b| b.u64(0));
    } else {
        b.full(b"smhd", 0, 0, |b| b.u32(0));
    }
    b.boxed(b"dinf", |b| {
        b.full(b"dref", 0, 0, |b| {
            b.u32(1);
            b.full(b"url ", 0, 1, |_| {}); // the data are in this file
        });
    });
}

fn sample_description(b: &mut Boxes, entries: &[SampleEntry]) {
    b.full(b"stsd", 0, 0, |b| {
        b.u32(entries.len() as u32);
        for entry in entries {
            match entry {
                SampleEntry::Avc(sets) => avc1(b, sets),
                SampleEntry::Aac(format) => {
                    audio_entry(b, b"mp4a", u16::from(format.channels), format.sample_rate, |b| {
                        esds(b, format)
                    });
                }
                SampleEntry::Flac { sample_rate } => audio_entry(b, b"fLaC", 1, *sample_rate, |b| {
                    b.full(b"dfLa", 0, 0, |b| {
                        b.bytes(&[0x80, 0, 0, 34]); // the last metadata block, STREAMINFO
                        b.bytes(&FlacEncoder::stream_info(*sample_rate));
                    });
                }),
            }
        }
    });
}

/// ISO/IEC 14496-15 §5.4.2.
fn avc1(b: &mut Boxes, sets: &ParameterSets) {
    b.boxed(b"avc1", |b| {
        b.bytes(&[0, 0, 0, 0, 0, 0, 0, 1]); // data reference 1
        b.bytes(&[0; 16]);
        b.u16(sets.width());
        b.u16(sets.height());
        b.u32(0x0048_0000); // 72 dpi, by custom
        b.u32(0x0048_0000);
        b.u32(0);
        b.u16(1); // frames per sample
        b.bytes(&[0; 32]);
        b.u16(0x0018);
        b.u16(0xffff);
        b.boxed(b"avcC", |b| b.bytes(&sets.avcc()));
    });
}

fn audio_entry(
    b: &mut Boxes,
    kind: &[u8; 4],
    channels: u16,
    sample_rate: u32,
    config: impl FnOnce(&mut Boxes),
) {
    b.boxed(kind, |b| {
        b.bytes(&[0, 0, 0, 0, 0, 0, 0, 1]); // data reference 1
        b.u64(0);
        b.u16(channels.max(1));
        b.u16(16);
        b.u32(0);
        // 16.16 fixed point; a rate that does not fit is in the configuration anyway.
        b.u32(u16::try_from(sample_rate).map_or(0, |rate| u32::from(rate) << 16));
        config(b);
    });
}

/// ISO/IEC 14496-14 §5.6, with the descriptors of 14496-1 §7.2.6.
fn esds(b: &mut Boxes, format: &AacFormat) {
    b.full(b"esds", 0, 0, |b| {
        b.descriptor(3, |b| {
            b.bytes(&[0; 3]);
            b.descriptor(4, |b| {
                b.bytes(&[0x40, 0x15]); // MPEG-4 audio, audio stream
                b.bytes(&[0; 11]); // buffer size and bit rates: unknown
                b.descriptor(5, |b| b.bytes(&format.config));
            });
            b.descriptor(6, |b| b.bytes(&[2]));
        });
    });
}

fn creation_times(b: &mut Boxes, unix_s: i64) {
    let since_1904 = if unix_s == 0 { 0 } else { (unix_s + MP4_TO_UNIX_S).max(0) as u64 };
    b.u64(since_1904);
    b.u64(since_1904);
}

fn matrix(b: &mut Boxes) {
    for value in [0x0001_0000, 0, 0, 0, 0x0001_0000, 0, 0, 0, 0x4000_0000] {
        b.u32(value);
    }
}
