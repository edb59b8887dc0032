//! Boxes as nested closures: each writes its content, the size is filled in afterwards.

/// A growing buffer of boxes.
#[derive(Default)]
pub(super) struct Boxes(Vec<u8>);

impl Boxes {
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// A box of less than 4 GiB.
    pub fn boxed(&mut self, kind: &[u8; 4], content: impl FnOnce(&mut Self)) {
        let at = self.len();
        self.u32(0);
        self.bytes(kind);
        content(self);
        let size = (self.len() - at) as u32;
        self.patch_u32(at, size);
    }

    /// A box with version and flags.
    pub fn full(&mut self, kind: &[u8; 4], version: u8, flags: u32, content: impl FnOnce(&mut Self)) {
        self.boxed(kind, |b| {
            b.u32(u32::from(version) << 24 | flags);
            content(b);
        });
    }

    /// An MPEG-4 descriptor of less than 16 KiB.
    pub fn descriptor(&mut self, tag: u8, content: impl FnOnce(&mut Self)) {
        self.bytes(&[tag, 0, 0]);
        let at = self.len();
        content(self);
        let size = self.len() - at;
        self.0[at - 2] = 0x80 | (size >> 7 & 0x7f) as u8;
        self.0[at - 1] = (size & 0x7f) as u8;
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub fn u16(&mut self, value: u16) {
        self.bytes(&value.to_be_bytes());
    }

    pub fn u32(&mut self, value: u32) {
        self.bytes(&value.to_be_bytes());
    }

    pub fn u64(&mut self, value: u64) {
        self.bytes(&value.to_be_bytes());
    }

    pub fn patch_u32(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }

    /// Adds to `count` 64-bit values from `at` on.
    pub fn add_u64s(&mut self, at: usize, count: usize, addend: u64) {
        for value in self.0[at..at + 8 * count].chunks_exact_mut(8) {
            let sum = value.iter().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte)) + addend;
            value.copy_from_slice(&sum.to_be_bytes());
        }
    }
}
