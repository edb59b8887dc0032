//! HPACK (RFC 7541), the header compression of HTTP/2, as a client needs it; pure.
//!
//! We send plain literals and use no table of ours. A device may use one of up to [`TABLE_MAX`]: our settings ask it not
//! to (so that an uplink keeps none), but a device that does so all the same is understood.
//!
//! Invariant: whatever comes, the table is within [`TABLE_MAX`] bytes as the standard counts them (§4.1), and a header
//! list within the limit given.

use super::huffman;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use std::collections::VecDeque;

/// The default size of a table, which is the most that we allow.
pub(super) const TABLE_MAX: usize = 4096;

/// Counted for each entry beside its name and value (§4.1).
const ENTRY: usize = 32;

/// Appendix A; the first is number 1.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// A header block that cannot be decoded ends its connection (RFC 9113 §4.3: COMPRESSION_ERROR).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Undecodable;

/// A decoded header list of a response or of trailers.
#[derive(Debug, Default)]
pub(super) struct HeaderList {
    pub status: Option<StatusCode>,
    pub headers: HeaderMap,
    /// What is wrong with it (RFC 9113 §8.1.1); its stream is broken, its connection is not.
    pub malformed: Option<&'static str>,
    size: usize,
}

/// The other end's table.
#[derive(Debug)]
pub(super) struct Decoder {
    /// The newest first.
    entries: VecDeque<(Bytes, Bytes)>,
    size: usize,
    size_max: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { entries: VecDeque::new(), size: 0, size_max: TABLE_MAX }
    }
}

impl Decoder {
    /// Decodes one block; what is longer than `list_max` (as §4.1 counts) is decoded for the table's sake, and left out.
    pub fn decode(&mut self, mut block: &[u8], list_max: usize) -> Result<HeaderList, Undecodable> {
        let mut list = HeaderList::default();
        let mut began = false;
        while let Some(&first) = block.first() {
            if first & 0x80 != 0 {
                let index = integer(&mut block, 7)?;
                let (name, value) = self.entry(index)?;
                list.add(&name, &value, list_max);
            } else if first & 0xE0 == 0x20 {
                // Only at the beginning of a block (§4.2).
                let size = integer(&mut block, 5)?;
                if began || size > TABLE_MAX {
                    return Err(Undecodable);
                }
                self.size_max = size;
                self.evict(0);
                continue;
            } else {
                let is_indexed = first & 0x40 != 0;
                let index = integer(&mut block, if is_indexed { 6 } else { 4 })?;
                let name = if index == 0 { string(&mut block)? } else { self.entry(index)?.0 };
                let value = string(&mut block)?;
                list.add(&name, &value, list_max);
                if is_indexed {
                    self.insert(name, value);
                }
            }
            began = true;
        }
        Ok(list)
    }

    fn entry(&self, index: usize) -> Result<(Bytes, Bytes), Undecodable> {
        let of_static = index.checked_sub(1).ok_or(Undecodable)?;
        if let Some(&(name, value)) = STATIC.get(of_static) {
            return Ok((Bytes::from_static(name.as_bytes()), Bytes::from_static(value.as_bytes())));
        }
        self.entries.get(of_static - STATIC.len()).cloned().ok_or(Undecodable)
    }

    fn insert(&mut self, name: Bytes, value: Bytes) {
        let size = name.len() + value.len() + ENTRY;
        self.evict(size);
        if size <= self.size_max {
            self.size += size;
            self.entries.push_front((name, value));
        }
    }

    /// Makes room for `size` more, or empties the table if there is not so much (§4.4).
    fn evict(&mut self, size: usize) {
        while self.size + size > self.size_max {
            let Some((name, value)) = self.entries.pop_back() else { break };
            self.size -= name.len() + value.len() + ENTRY;
        }
        if self.entries.is_empty() {
            self.entries = VecDeque::new();
        }
    }
}

impl HeaderList {
    fn add(&mut self, name: &[u8], value: &[u8], list_max: usize) {
        self.size += name.len() + value.len() + ENTRY;
        if self.size > list_max {
            self.malformed = Some("its header list is longer than may be");
        }
        if self.malformed.is_none() {
            self.malformed = self.put(name, value).err();
        }
    }

    /// RFC 9113 §8.2 and §8.3.
    fn put(&mut self, name: &[u8], value: &[u8]) -> Result<(), &'static str> {
        if name == b":status" {
            if self.status.is_some() || !self.headers.is_empty() {
                return Err("its :status is not alone and first");
            }
            self.status = Some(StatusCode::from_bytes(value).map_err(|_| "its :status is no number")?);
            return Ok(());
        }
        // Refuses capital letters, and every other pseudo-header.
        let name = HeaderName::from_lowercase(name).map_err(|_| "it has a header whose name is none")?;
        if matches!(
            name.as_str(),
            "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade"
        ) {
            return Err("it has a header that concerns an HTTP/1.1 connection");
        }
        let value = HeaderValue::from_bytes(value).map_err(|_| "it has a header whose value is none")?;
        self.headers.try_append(name, value).map_err(|_| "it has too many headers")?;
        Ok(())
    }
}

/// An integer with a prefix of so many bits (§5.1). None of ours is over a few thousand.
fn integer(block: &mut &[u8], bits: u32) -> Result<usize, Undecodable> {
    let mut next = || {
        let (&byte, rest) = block.split_first().ok_or(Undecodable)?;
        *block = rest;
        Ok(byte)
    };
    let mask = (1_u32 << bits) - 1;
    let mut value = u32::from(next()?) & mask;
    if value == mask {
        for shift in [0, 7, 14, 21] {
            let byte = next()?;
            value += u32::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Ok(value as usize);
            }
        }
        return Err(Undecodable);
    }
    Ok(value as usize)
}

/// A string (§5.2).
fn string(block: &mut &[u8]) -> Result<Bytes, Undecodable> {
    let is_coded = block.first().ok_or(Undecodable)? & 0x80 != 0;
    let length = integer(block, 7)?;
    let (string, rest) = block.split_at_checked(length).ok_or(Undecodable)?;
    *block = rest;
    if !is_coded {
        return Ok(Bytes::copy_from_slice(string));
    }
    let mut text = Vec::with_capacity(length * 8 / 5);
    if huffman::decode(string, &mut text) { Ok(text.into()) } else { Err(Undecodable) }
}

/// Appends one header: whole from the static table, or its name from there, or plain. Secrets are marked, so that
/// nobody on the way puts them into a table (§7.1.3).
pub(super) fn encode(name: &str, value: &[u8], is_secret: bool, block: &mut Vec<u8>) {
    let of_name = STATIC.iter().position(|entry| entry.0 == name);
    let whole = STATIC.iter().position(|entry| entry.0 == name && entry.1.as_bytes() == value);
    if let Some(index) = whole.filter(|_| !value.is_empty()) {
        return encode_integer(0x80, 7, index + 1, block);
    }
    let kind = if is_secret { 0x10 } else { 0 };
    encode_integer(kind, 4, of_name.map_or(0, |index| index + 1), block);
    if of_name.is_none() {
        encode_integer(0, 7, name.len(), block);
        block.extend_from_slice(name.as_bytes());
    }
    encode_integer(0, 7, value.len(), block);
    block.extend_from_slice(value);
}

/// Tells the other end that our table is empty, as it is to hear whenever it has changed its limit (§4.2).
pub(super) fn encode_no_table(block: &mut Vec<u8>) {
    encode_integer(0x20, 5, 0, block);
}

fn encode_integer(kind: u8, bits: u32, value: usize, block: &mut Vec<u8>) {
    let mask = (1_usize << bits) - 1;
    if value < mask {
        block.push(kind | value as u8);
        return;
    }
    block.push(kind | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        block.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    block.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAX: usize = 32 * 1024;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    /// Goal: three responses that share a table, plain and coded: RFC 7541 C.5 and C.6, whose tables have 256 bytes.
    #[test]
    fn the_examples_of_the_standard_are_decoded() {
        let plain = [
            "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d546e1768747470733a2f2f7777772e6578616d706c652e636f6d",
            "4803333037c1c0bf",
            "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d4153444a4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b2076657273696f6e3d31",
        ];
        let coded = [
            "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3",
            "4883640effc1c0bf",
            "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
        ];
        for blocks in [plain, coded] {
            let mut decoder = Decoder { size_max: 256, ..Decoder::default() };
            let lists = blocks.map(|block| decoder.decode(&hex(block), MAX).unwrap());
            let of = |list: &HeaderList, name: &str| {
                list.headers.get(name).map(|value| value.to_str().unwrap().to_owned())
            };
            for (list, status) in lists.iter().zip([302, 307, 200]) {
                assert_eq!(list.malformed, None);
                assert_eq!(list.status.unwrap().as_u16(), status);
                assert_eq!(of(list, "cache-control").as_deref(), Some("private"));
                assert_eq!(of(list, "location").as_deref(), Some("https://www.example.com"));
            }
            assert_eq!(of(&lists[2], "date").as_deref(), Some("Mon, 21 Oct 2013 20:13:22 GMT"));
            let cookie = "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";
            assert_eq!(of(&lists[2], "set-cookie").as_deref(), Some(cookie));
            // As C.5.3 and C.6.3 end.
            assert_eq!((decoder.size, decoder.entries.len()), (215, 3));
        }
    }

    /// Goal: integers as in RFC 7541 C.1, and no overflow.
    #[test]
    fn integers_are_those_of_the_standard() {
        let mut block = Vec::new();
        encode_integer(0, 5, 10, &mut block);
        encode_integer(0, 5, 1337, &mut block);
        encode_integer(0, 8, 42, &mut block);
        assert_eq!(block, [10, 0x1F, 0x9A, 0x0A, 42]);
        let mut left = block.as_slice();
        assert_eq!(
            (integer(&mut left, 5), integer(&mut left, 5), integer(&mut left, 8)),
            (Ok(10), Ok(1337), Ok(42))
        );
        assert_eq!(integer(&mut [0xFF; 20].as_slice(), 7), Err(Undecodable));
    }

    /// Goal: what breaks RFC 9113 §8.2 is malformed, and says why.
    #[test]
    fn malformed_lists_are_told_apart() {
        let decode = |headers: &[(&str, &str)]| {
            let mut block = Vec::new();
            headers.iter().for_each(|(name, value)| encode(name, value.as_bytes(), false, &mut block));
            Decoder::default().decode(&block, 200).unwrap().malformed
        };
        assert_eq!(decode(&[(":status", "200"), ("a", "b")]), None);
        for wrong in [
            vec![("a", "b"), (":status", "200")],
            vec![(":status", "200"), (":status", "200")],
            vec![(":status", "20x")],
            vec![(":path", "/")],
            vec![(":status", "200"), ("Server", "x")],
            vec![(":status", "200"), ("transfer-encoding", "chunked")],
            vec![(":status", "200"), ("a", "b\r\nc: d")],
            vec![
                (":status", "200"),
                ("a", "0123456789"),
                ("b", "0123456789"),
                ("c", "0123456789"),
                ("d", "0123456789"),
            ],
        ] {
            assert!(decode(&wrong).is_some(), "{wrong:?}");
        }
    }

    fn is_within_limits(decoder: &Decoder) -> bool {
        let counted: usize =
            decoder.entries.iter().map(|(name, value)| name.len() + value.len() + ENTRY).sum();
        counted == decoder.size && decoder.size <= decoder.size_max && decoder.size_max <= TABLE_MAX
    }

    proptest! {
        /// Goal: nothing makes it panic, and its table stays within the limit.
        #[test]
        fn garbage_neither_panics_nor_grows(blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20)) {
            let mut decoder = Decoder::default();
            for block in blocks {
                let _ = decoder.decode(&block, MAX);
                prop_assert!(is_within_limits(&decoder));
            }
        }

        /// Goal: as above, with blocks that fill the table.
        #[test]
        fn the_table_never_grows_past_its_limit(
            entries in prop::collection::vec((0_usize..70, prop::collection::vec(any::<u8>(), 0..600)), 0..100),
            resized in 0_usize..5000,
        ) {
            let mut decoder = Decoder::default();
            for (index, value) in entries {
                let mut block = Vec::new();
                encode_integer(0x40, 6, index, &mut block);
                if index == 0 {
                    block.extend([1, b'n']);
                }
                encode_integer(0x80, 7, huffman::encode(&value).len(), &mut block);
                block.extend(huffman::encode(&value));
                let _ = decoder.decode(&block, MAX);
                prop_assert!(is_within_limits(&decoder));
            }
            let mut block = Vec::new();
            encode_integer(0x20, 5, resized, &mut block);
            prop_assert_eq!(decoder.decode(&block, MAX).is_ok(), resized <= TABLE_MAX);
            prop_assert!(is_within_limits(&decoder));
        }

        /// Goal: what we encode is what is decoded.
        #[test]
        fn what_is_encoded_is_decoded(
            headers in prop::collection::vec(("[a-z][a-z0-9-]{0,20}", "[ -~]{0,200}"), 0..20),
            secret in any::<bool>(),
        ) {
            let headers: Vec<_> = headers.into_iter()
                .filter(|(name, _)| !matches!(name.as_str(), "connection" | "upgrade" | "keep-alive"))
                .collect();
            let mut block = Vec::new();
            encode_no_table(&mut block);
            encode(":status", b"200", false, &mut block);
            headers.iter().for_each(|(name, value)| encode(name, value.as_bytes(), secret, &mut block));
            let list = Decoder::default().decode(&block, MAX).unwrap();
            prop_assert_eq!(list.malformed, None);
            let mut sent = HeaderMap::new();
            for (name, value) in &headers {
                sent.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
            }
            prop_assert_eq!(list.headers, sent);
        }
    }
}
