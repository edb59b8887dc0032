//! The files that the database does not know yet: those being written and those just finished; and the
//! packed form of a file's table of fragments.
//!
//! 1. The writer publishes a file's fragments here once they are secured on disk.
//! 2. When a file is finished its row goes into the database, and only then it leaves the catalog.
//!
//! So whoever wants to know what is recorded asks the catalog first, then the database, and drops what comes
//! twice: no fragment is missed in between.
//!
//! Invariant: what is in the catalog survives a crash.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use homing_media::time::Ticks;

use crate::fragment::Format;
use crate::store::FileRow;

/// Where a fragment lies in its file, and when it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub start: Ticks,
    pub duration: Ticks,
    pub offset: u64,
    pub len: u64,
    pub is_key: bool,
}

impl Entry {
    pub fn end(&self) -> Ticks {
        self.start + self.duration
    }
}

/// A recorded file with its fragments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    pub camera: i64,
    /// Below the footage folder.
    pub path: String,
    pub init: String,
    /// At least one, in order, each beginning where the one before it ends.
    pub entries: Vec<Entry>,
}

impl File {
    pub fn start(&self) -> Ticks {
        self.entries.first().map_or(0, |entry| entry.start)
    }

    pub fn end(&self) -> Ticks {
        self.entries.last().map_or(0, Entry::end)
    }

    /// For the database.
    pub fn to_row(&self) -> FileRow {
        FileRow {
            camera: self.camera,
            path: self.path.clone(),
            init: self.init.clone(),
            start: self.start(),
            end: self.end(),
            bytes: self.entries.last().map_or(0, |entry| (entry.offset + entry.len) as i64),
            table: pack(&self.entries),
        }
    }

    /// `None`: the row's table is damaged.
    pub fn from_row(row: &FileRow) -> Option<Self> {
        let entries = unpack(row.start, &row.table)?;
        Some(Self { camera: row.camera, path: row.path.clone(), init: row.init.clone(), entries })
    }
}

/// Cheap to clone; all clones are the same catalog.
#[derive(Clone, Debug, Default)]
pub(crate) struct Catalog(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// By camera, start and path.
    files: BTreeMap<(i64, Ticks, String), File>,
    /// How the cameras' streams are and were coded since this process began: a few per camera.
    formats: HashMap<(i64, String), Arc<Format>>,
}

impl Catalog {
    /// Takes note of how a camera's stream is coded. True: it is new.
    pub fn add_format(&self, camera: i64, format: &Arc<Format>) -> bool {
        self.lock().formats.insert((camera, format.id.clone()), format.clone()).is_none()
    }

    /// The format of that name.
    pub fn format(&self, camera: i64, id: &str) -> Option<Arc<Format>> {
        self.lock().formats.get(&(camera, id.to_owned())).cloned()
    }

    /// Adds secured fragments of a file, in order.
    pub fn publish(&self, camera: i64, path: &str, init: &str, secured: &[Entry]) {
        let Some(first) = secured.first() else { return };
        let files = &mut self.lock().files;
        let known =
            files.iter_mut().rev().find(|(key, _)| key.0 == camera && key.2 == path).map(|(_, file)| file);
        match known {
            Some(file) => file.entries.extend_from_slice(secured),
            None => {
                let key = (camera, first.start, path.to_owned());
                let entries = secured.to_vec();
                files.insert(key, File { camera, path: path.to_owned(), init: init.to_owned(), entries });
            }
        }
    }

    /// The files of a camera that hold any of that time, in order.
    pub fn files(&self, camera: i64, start: Ticks, end: Ticks) -> Vec<File> {
        let files = &self.lock().files;
        let of_camera = files.range((camera, Ticks::MIN, String::new())..(camera, end, String::new()));
        of_camera.map(|(_, file)| file).filter(|file| file.end() > start).cloned().collect()
    }

    /// The database knows it now.
    pub fn remove(&self, file: &File) {
        self.lock().files.remove(&(file.camera, file.start(), file.path.clone()));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// First fragment's offset, then per fragment: length with the key flag in the lowest bit, duration; all in LEB128. Starts and
/// offsets follow from what comes before.
fn pack(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::with_capacity(entries.len() * 6 + 4);
    put(&mut out, entries.first().map_or(0, |entry| entry.offset));
    for entry in entries {
        put(&mut out, entry.len << 1 | u64::from(entry.is_key));
        put(&mut out, entry.duration.cast_unsigned());
    }
    out
}

fn unpack(mut start: Ticks, mut table: &[u8]) -> Option<Vec<Entry>> {
    let mut offset = take(&mut table)?;
    let mut entries = Vec::new();
    while !table.is_empty() {
        let packed = take(&mut table)?;
        let duration = Ticks::try_from(take(&mut table)?).ok()?;
        let entry = Entry { start, duration, offset, len: packed >> 1, is_key: packed & 1 == 1 };
        (start, offset) = (start.checked_add(duration)?, offset.checked_add(entry.len)?);
        entries.push(entry);
    }
    (!entries.is_empty()).then_some(entries)
}

fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take(table: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..63).step_by(7) {
        let (&byte, rest) = table.split_first()?;
        *table = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(start: Ticks, count: usize) -> Vec<Entry> {
        let mut entries: Vec<Entry> = Vec::new();
        for n in 0..count {
            let (start, offset) =
                entries.last().map_or((start, 730), |last| (last.end(), last.offset + last.len));
            let len = 100_000 + n as u64 * 777;
            entries.push(Entry { start, duration: 180_000 - n as i64 % 3, offset, len, is_key: n % 4 != 3 });
        }
        entries
    }

    /// Goal: a table comes back from its packed form, which is small; a damaged one is refused.
    #[test]
    fn packed_tables() {
        let file = File {
            camera: 1,
            path: "a".into(),
            init: "i".into(),
            entries: entries(1_700_000_000 * 90_000, 30),
        };
        let row = file.to_row();
        assert!(row.table.len() < 200, "{} bytes for a minute", row.table.len());
        assert_eq!(File::from_row(&row), Some(file));
        let cut = FileRow { table: row.table[..row.table.len() - 1].to_vec(), ..row.clone() };
        assert_eq!(File::from_row(&cut), None);
        assert_eq!(File::from_row(&FileRow { table: vec![0xff; 40], ..row.clone() }), None);
        assert_eq!(File::from_row(&FileRow { table: vec![], ..row }), None);
    }

    /// Goal: a file is found from its first secured fragment until the database has it, for its own camera and time only.
    #[test]
    fn publish_find_remove() {
        let catalog = Catalog::default();
        let all = entries(1_000_000, 4);
        catalog.publish(7, "a", "i", &all[..2]);
        catalog.publish(7, "a", "i", &all[2..]);
        catalog.publish(8, "b", "i", &all);
        let found = catalog.files(7, 0, Ticks::MAX);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].entries, all);
        assert!(catalog.files(7, all[3].end(), Ticks::MAX).is_empty());
        assert!(catalog.files(7, 0, all[0].start).is_empty());
        catalog.remove(&found[0]);
        assert!(catalog.files(7, 0, Ticks::MAX).is_empty());
        assert_eq!(catalog.files(8, 0, Ticks::MAX).len(), 1);
    }
}
