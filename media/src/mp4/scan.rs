//! Reading our own recording files: the fragments of a file, and how much of it a crash left whole.
//!
//! [`Scanner`] does no I/O: it says which bytes it wants next and takes them, so that a minute file is
//! scanned with a few dozen small reads and none of the video.
//!
//! Not here: a general MP4 reader. What does not look like our own writing ends the scan, and
//! [`Scan::good_len`] says from where on the file is to be cut off.
//!
//! Invariant: every reported fragment lies whole within the file, and its runs within its `mdat`.

use super::SampleEntry;
use super::fragment::{
    FragmentError, KEY, NOT_SYNC, Sample, TFHD_DURATION, TFHD_FLAGS, TRUN_DATA_OFFSET, TRUN_DURATION,
    TRUN_FIRST_FLAGS, TRUN_FLAGS, TRUN_OFFSET, TRUN_SIZE,
};
use crate::aac::AacFormat;
use crate::h264::ParameterSets;
use crate::time::{Ticks, ticks_from_ntp};
use std::sync::Arc;

/// The largest `moov` or `moof` believed.
const MAX_HEAD_BYTES: u64 = 4 * 1024 * 1024;

/// How much is asked for at once: enough for `prft` and the `moof` of an ordinary group of pictures.
const READ_BYTES: u64 = 2048;

/// One whole fragment of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Where its first box (`prft` or `moof`) begins in the file.
    pub offset: u64,
    /// Bytes before its sample data, `mdat`'s head included.
    pub head_len: u32,
    /// Bytes of its sample data.
    pub data_len: u32,
    /// Wall-clock time of the first run's start, from `prft`.
    pub clock: Option<Ticks>,
    /// Its tracks.
    pub runs: Vec<RunInfo>,
}

/// Samples of one track in a fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunInfo {
    /// From 1.
    pub track: u32,
    /// Decode time of the first sample, in the track's timescale.
    pub start: u64,
    /// Where its first sample begins, from the start of the fragment's data.
    pub data_offset: u32,
    /// In decoding order, one after the other.
    pub samples: Vec<Sample>,
}

impl RunInfo {
    /// In the track's timescale.
    pub fn duration(&self) -> u64 {
        self.samples.iter().map(|sample| u64::from(sample.duration)).sum()
    }
}

/// What is in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Bytes of the initialisation segment; 0 when it is not whole, and then nothing else is.
    pub init_len: u64,
    /// Whole fragments in order.
    pub fragments: Vec<Fragment>,
    /// Where the last whole fragment ends. A longer file has a torn tail.
    pub good_len: u64,
}

/// Scans a file of known length. Ask [`Scanner::wants`], read, call [`Scanner::handle`], until it wants nothing.
#[derive(Debug)]
pub struct Scanner {
    file_len: u64,
    at: u64,
    want: u64,
    scan: Scan,
    is_done: bool,
}

impl Scanner {
    /// Starts at the file's beginning.
    pub fn new(file_len: u64) -> Self {
        Self { file_len, at: 0, want: READ_BYTES, scan: Scan::default(), is_done: false }
    }

    /// Offset and length of the bytes to read next; `None`: the scan is complete.
    pub fn wants(&self) -> Option<(u64, usize)> {
        let len = self.want.min(self.file_len.saturating_sub(self.at));
        (!self.is_done && len > 0).then_some((self.at, len as usize))
    }

    /// Takes the bytes that were asked for (or fewer, if the file has shrunk: the end of the scan).
    pub fn handle(&mut self, bytes: &[u8]) {
        if self.wants().is_none_or(|(_, len)| bytes.len() < len) {
            self.is_done = true;
            return;
        }
        let outcome = if self.scan.init_len == 0 { self.init(bytes) } else { self.fragment(bytes) };
        match outcome {
            Outcome::Whole(len) => {
                self.at += len;
                self.scan.good_len = self.at;
                self.want = READ_BYTES;
            }
            Outcome::Need(len) if len > bytes.len() as u64 && len <= self.file_len - self.at => {
                self.want = len
            }
            Outcome::Need(_) | Outcome::Torn => self.is_done = true,
        }
    }

    /// What was found.
    pub fn finish(self) -> Scan {
        self.scan
    }

    fn init(&mut self, bytes: &[u8]) -> Outcome {
        let mut len = 0;
        for expected in [b"ftyp", b"moov"] {
            match box_at(bytes, len) {
                Some((kind, size)) if &kind == expected && size <= MAX_HEAD_BYTES => len += size,
                Some(_) => return Outcome::Torn,
                None => return Outcome::Need(len + 8),
            }
        }
        if len > self.file_len - self.at {
            return Outcome::Torn;
        }
        self.scan.init_len = len;
        Outcome::Whole(len)
    }

    fn fragment(&mut self, bytes: &[u8]) -> Outcome {
        let mut head_len = 0;
        loop {
            match box_at(bytes, head_len) {
                Some((kind, size)) if &kind == b"mdat" => {
                    let head_len = head_len + 8;
                    if head_len - 8 + size > self.file_len - self.at {
                        return Outcome::Torn;
                    }
                    let Some(head) = bytes.get(..head_len as usize) else { return Outcome::Need(head_len) };
                    let Ok(fragment) = parse_fragment_head(head) else { return Outcome::Torn };
                    self.scan.fragments.push(Fragment { offset: self.at, ..fragment });
                    return Outcome::Whole(head_len - 8 + size);
                }
                Some((kind, size))
                    if matches!(&kind, b"prft" | b"moof") && head_len + size <= MAX_HEAD_BYTES =>
                {
                    head_len += size;
                }
                Some(_) => return Outcome::Torn,
                None => return Outcome::Need(head_len + 8),
            }
        }
    }
}

enum Outcome {
    Whole(u64),
    /// So many bytes from the current place.
    Need(u64),
    Torn,
}

/// Kind and size of the box at an offset, if its head is there and sane.
fn box_at(bytes: &[u8], at: u64) -> Option<([u8; 4], u64)> {
    let head = bytes.get(usize::try_from(at).ok()?..)?.first_chunk::<8>()?;
    let [a, b, c, d, kind @ ..] = *head;
    // 0 (to the end of the file) and 1 (64 bits) are never written here: to be taken for torn.
    let size = u64::from(u32::from_be_bytes([a, b, c, d]));
    Some((if size >= 8 { kind } else { *b"\0\0\0\0" }, size.max(8)))
}

/// Parses what [`super::fragment_head`] writes, `mdat`'s head included. The fragment's `offset` is 0.
///
/// # Errors
/// When it is not whole, or contradicts itself.
pub fn parse_fragment_head(head: &[u8]) -> Result<Fragment, FragmentError> {
    let mut fragment =
        Fragment { offset: 0, head_len: head.len() as u32, data_len: 0, clock: None, runs: Vec::new() };
    let mut cursor = Cursor(head);
    let mut moof = None;
    while !cursor.0.is_empty() {
        let size = cursor.peek_u32()? as usize;
        let moof_len = cursor.0.len();
        if cursor.0.get(4..8) == Some(b"mdat") {
            fragment.data_len = size.checked_sub(8).ok_or(FragmentError("mdat is too short"))? as u32;
            break;
        }
        let (kind, mut content) = cursor.boxed()?;
        match kind {
            b"prft" => {
                content.take(8)?;
                fragment.clock = Some(ticks_from_ntp(content.u64()?));
            }
            b"moof" => {
                moof = Some(moof_len);
                while !content.0.is_empty() {
                    if let (b"traf", traf) = content.boxed()? {
                        fragment.runs.push(track_run(traf)?);
                    }
                }
            }
            _ => return Err(FragmentError("an unknown box")),
        }
    }
    // Data offsets count from the beginning of moof.
    let to_data = moof.ok_or(FragmentError("no moof"))? as u32;
    for run in &mut fragment.runs {
        run.data_offset = run.data_offset.checked_sub(to_data).ok_or(FragmentError("data before mdat"))?;
        let end = run.samples.iter().try_fold(run.data_offset, |end, sample| end.checked_add(sample.size));
        if end.is_none_or(|end| end > fragment.data_len) {
            return Err(FragmentError("samples reach over mdat"));
        }
    }
    if fragment.runs.is_empty() {
        return Err(FragmentError("no samples"));
    }
    Ok(fragment)
}

fn track_run(mut traf: Cursor<'_>) -> Result<RunInfo, FragmentError> {
    let mut run = RunInfo { track: 0, start: 0, data_offset: 0, samples: Vec::new() };
    let (mut duration, mut flags) = (0, KEY);
    while !traf.0.is_empty() {
        let (kind, mut content) = traf.boxed()?;
        let box_flags = content.u32()? & 0x00ff_ffff;
        match kind {
            b"tfhd" => {
                run.track = content.u32()?;
                if box_flags & TFHD_DURATION != 0 {
                    duration = content.u32()?;
                }
                if box_flags & TFHD_FLAGS != 0 {
                    flags = content.u32()?;
                }
            }
            b"tfdt" => run.start = content.u64()?,
            b"trun" => {
                let count = content.u32()? as usize;
                if box_flags & (TRUN_DATA_OFFSET | TRUN_SIZE) != TRUN_DATA_OFFSET | TRUN_SIZE {
                    return Err(FragmentError("trun without offset or sizes"));
                }
                run.data_offset = content.u32()?;
                let first = if box_flags & TRUN_FIRST_FLAGS != 0 { Some(content.u32()?) } else { None };
                // Each sample has a size of four bytes at least.
                if count == 0 || count > content.0.len() / 4 {
                    return Err(FragmentError("sample count"));
                }
                run.samples.reserve_exact(count);
                for at in 0..count {
                    let duration = if box_flags & TRUN_DURATION != 0 { content.u32()? } else { duration };
                    let size = content.u32()?;
                    let own = if box_flags & TRUN_FLAGS != 0 { Some(content.u32()?) } else { None };
                    let flags = own.or(first.filter(|_| at == 0)).unwrap_or(flags);
                    let offset = if box_flags & TRUN_OFFSET != 0 { content.u32()?.cast_signed() } else { 0 };
                    let is_key = flags & NOT_SYNC == 0;
                    run.samples.push(Sample { size, duration, offset, is_key });
                }
            }
            _ => {}
        }
    }
    if run.track == 0 || run.samples.is_empty() {
        return Err(FragmentError("a track fragment without track or samples"));
    }
    Ok(run)
}

/// What [`super::init_segment`] was made of.
///
/// # Errors
/// When the bytes are not one of ours.
pub fn parse_init_segment(init: &[u8]) -> Result<Vec<SampleEntry>, FragmentError> {
    let mut entries = Vec::new();
    let mut file = Cursor(init);
    while !file.0.is_empty() {
        let (b"moov", mut moov) = file.boxed()? else { continue };
        while !moov.0.is_empty() {
            let (b"trak", trak) = moov.boxed()? else { continue };
            let mut table = trak;
            for kind in [b"mdia", b"minf", b"stbl", b"stsd"] {
                table = table.find(kind)?;
            }
            table.take(8)?; // version, flags, count
            let (kind, entry) = table.boxed()?;
            entries.push(sample_entry(kind, entry)?);
        }
    }
    if entries.is_empty() { Err(FragmentError("no tracks")) } else { Ok(entries) }
}

fn sample_entry(kind: &[u8; 4], mut entry: Cursor<'_>) -> Result<SampleEntry, FragmentError> {
    let unusable = FragmentError("a sample entry");
    match kind {
        b"avc1" => {
            entry.take(78)?;
            let mut avcc = entry.find(b"avcC")?;
            avcc.take(6)?;
            let sps = avcc.nal()?;
            let count = avcc.take(1)?[0];
            let pps = (0..count).map(|_| avcc.nal()).collect::<Result<Vec<_>, _>>()?;
            let sets = ParameterSets::new(sps, &pps).map_err(|_| unusable)?;
            Ok(SampleEntry::Avc(Arc::new(sets)))
        }
        b"mp4a" => {
            entry.take(28)?;
            let mut esds = entry.find(b"esds")?;
            esds.take(4)?;
            let mut stream = esds.descriptor(3)?;
            stream.take(3)?;
            let mut decoder = stream.descriptor(4)?;
            decoder.take(13)?;
            AacFormat::new(decoder.descriptor(5)?.0).map(SampleEntry::Aac).map_err(|_| unusable)
        }
        b"fLaC" => {
            entry.take(28)?;
            let mut blocks = entry.find(b"dfLa")?;
            let info = blocks.take(8 + 34)?;
            // 20 bits after the block and frame sizes.
            let packed = u32::from_be_bytes([info[18], info[19], info[20], info[21]]);
            Ok(SampleEntry::Flac { sample_rate: packed >> 12 })
        }
        _ => Err(unusable),
    }
}

/// A reader that runs out with an error.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], FragmentError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(FragmentError("cut short"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn peek_u32(&self) -> Result<u32, FragmentError> {
        self.0.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)).ok_or(FragmentError("cut short"))
    }

    fn u32(&mut self) -> Result<u32, FragmentError> {
        let value = self.peek_u32()?;
        self.take(4)?;
        Ok(value)
    }

    fn u64(&mut self) -> Result<u64, FragmentError> {
        Ok(u64::from(self.u32()?) << 32 | u64::from(self.u32()?))
    }

    /// The content of the first box of that kind.
    fn find(&self, wanted: &[u8; 4]) -> Result<Cursor<'a>, FragmentError> {
        let mut rest = Cursor(self.0);
        loop {
            let (kind, content) = rest.boxed()?;
            if kind == wanted {
                return Ok(content);
            }
        }
    }

    /// A NAL unit after its length.
    fn nal(&mut self) -> Result<&'a [u8], FragmentError> {
        let len = self.take(2)?;
        self.take(usize::from(u16::from_be_bytes([len[0], len[1]])))
    }

    /// An MPEG-4 descriptor as it is written here: two bytes of length.
    fn descriptor(&mut self, tag: u8) -> Result<Cursor<'a>, FragmentError> {
        match *self.take(3)? {
            [found, hi, lo] if found == tag && hi & 0x80 != 0 && lo & 0x80 == 0 => {
                Ok(Cursor(self.take(usize::from(hi & 0x7f) << 7 | usize::from(lo))?))
            }
            _ => Err(FragmentError("descriptor")),
        }
    }

    fn boxed(&mut self) -> Result<(&'a [u8; 4], Cursor<'a>), FragmentError> {
        let size = (self.peek_u32()? as usize).checked_sub(8).ok_or(FragmentError("box size"))?;
        let head = self.take(8)?;
        let kind = head.last_chunk().ok_or(FragmentError("cut short"))?;
        Ok((kind, Cursor(self.take(size)?)))
    }
}
