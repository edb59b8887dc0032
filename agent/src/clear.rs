//! Passwords in clear (HTTP Basic, RFC 7617) on their way to a camera: found, so that they do not go onto the site's
//! network, where whoever answers in the camera's place would ask for them.
//!
//! Not here: RTSP within HTTP, whose inner requests are coded (`proxy.rs` sees the outer ones). Invariant: of a request
//! nothing is passed on before its whole head has been seen.

use bytes::{Bytes, BytesMut};
use std::io;

/// Longest head of a request.
const HEAD_MAX: usize = 64 * 1024;

/// Whether the value of an `Authorization` header shows the password.
pub fn is_basic(value: &[u8]) -> bool {
    value.trim_ascii_start().get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"basic"))
}

/// Follows an RTSP client's requests and packets (RFC 2326 §10.12).
#[derive(Default)]
pub struct Watch {
    /// The beginning of a request.
    held: BytesMut,
    /// Still to come of a packet or a request's body.
    rest: usize,
}

impl Watch {
    /// Takes what has come, and gives what may be passed on; `Err` is a head with a password in clear.
    ///
    /// # Errors
    /// An endless head.
    pub fn handle_chunk(&mut self, chunk: Bytes) -> io::Result<Result<Bytes, Bytes>> {
        if self.held.is_empty() && self.rest >= chunk.len() {
            self.rest -= chunk.len();
            return Ok(Ok(chunk));
        }
        self.held.extend_from_slice(&chunk);
        let mut passed = 0;
        while let Some(first) = self.held.get(passed) {
            let here = &self.held[passed..];
            if self.rest > 0 {
                let part = self.rest.min(here.len());
                (passed, self.rest) = (passed + part, self.rest - part);
            } else if *first == b'$' {
                let Some(length) = here.get(2..4) else { break };
                self.rest = 4 + usize::from(u16::from_be_bytes([length[0], length[1]]));
            } else if !first.is_ascii_alphabetic() {
                // Between requests, or no RTSP at all.
                passed += 1;
            } else {
                let Some(end) = here.windows(4).position(|window| window == b"\r\n\r\n") else {
                    if here.len() > HEAD_MAX {
                        return Err(io::Error::other("an endless RTSP request"));
                    }
                    break;
                };
                let fields = || here[..end].split(|byte| *byte == b'\n').filter_map(field);
                let of = |wanted: &'static [u8]| {
                    fields()
                        .filter(move |(name, _)| name.eq_ignore_ascii_case(wanted))
                        .map(|(_, value)| value)
                };
                if of(b"Authorization").any(is_basic) {
                    return Ok(Err(Bytes::copy_from_slice(&here[..end + 2])));
                }
                let length =
                    of(b"Content-Length").find_map(|value| std::str::from_utf8(value).ok()?.parse().ok());
                self.rest = (end + 4).saturating_add(length.unwrap_or(0));
            }
        }
        Ok(Ok(self.held.split_to(passed).freeze()))
    }
}

fn field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    Some((line[..colon].trim_ascii(), line[colon + 1..].trim_ascii()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &[u8] = b"\r\nOPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n$\x01\x00\x04\r\n\r\nSET_PARAMETER rtsp://c/ RTSP/1.0\r\n\
        Authorization: Digest username=\"basic\"\r\nContent-Length: 26\r\n\r\nX\r\nAuthorization: Basic x\r\n\r\n$\x00\x00\x00\
        DESCRIBE rtsp://c/ RTSP/1.0\r\nCSeq: 3\r\n\r\n";
    const BAD: &[u8] =
        b"DESCRIBE rtsp://c/ RTSP/1.0\r\nCSeq: 4\r\nauthorization:bAsIc cm9vdDpzZXNhbWU=\r\n\r\n";

    proptest! {
        /// Goal: however the bytes are cut, all of what may pass does, and nothing of what may not.
        #[test]
        fn a_password_in_clear_is_found_wherever_it_is_cut(cuts in proptest::collection::vec(0..GOOD.len() + BAD.len(), 0..8)) {
            let all = [GOOD, BAD].concat();
            let mut cuts = cuts;
            cuts.sort_unstable();
            cuts.push(all.len());
            let (mut watch, mut passed, mut begin, mut found) = (Watch::default(), Vec::new(), 0, false);
            for end in cuts {
                match watch.handle_chunk(Bytes::copy_from_slice(&all[begin..end])).unwrap() {
                    Ok(bytes) => passed.extend_from_slice(&bytes),
                    Err(head) => {
                        prop_assert!(head.starts_with(b"DESCRIBE") && end == all.len());
                        found = true;
                    }
                }
                begin = end;
            }
            prop_assert!(found);
            prop_assert!(GOOD.starts_with(&passed));
        }

        #[test]
        fn anything_is_passed_or_held_in_bounds(chunks in proptest::collection::vec(any::<Vec<u8>>(), 0..20)) {
            let mut watch = Watch::default();
            for chunk in chunks {
                prop_assert!(watch.handle_chunk(chunk.into()).is_ok());
            }
        }
    }

    #[test]
    fn what_is_whole_is_passed_at_once() {
        let mut watch = Watch::default();
        assert_eq!(watch.handle_chunk(GOOD.into()).unwrap().unwrap(), GOOD);
        assert!(watch.handle_chunk(vec![b'a'; HEAD_MAX + 1].into()).is_err());
    }
}
