//! Access units to RTP packets, for a sender (the simulated camera): packetization mode 1, single NAL
//! units and FU-A (RFC 6184 §6.3).
//!
//! Not here: aggregation. Parameter sets go as packets of their own, which every receiver takes.

use crate::rtp;

/// Numbers the packets of one RTP stream.
#[derive(Clone, Debug)]
pub struct Packetizer {
    payload_type: u8,
    ssrc: u32,
    sequence: u16,
    max_payload: usize,
}

impl Packetizer {
    /// `max_payload` bytes after the RTP header at most, 100 at least; 1,400 suits Ethernet, and over a tunnel
    /// larger ones (16,000) cost less.
    pub fn new(payload_type: u8, ssrc: u32, first_sequence: u16, max_payload: usize) -> Self {
        Self { payload_type, ssrc, sequence: first_sequence, max_payload: max_payload.clamp(100, 65_000) }
    }

    /// The sequence number that the next packet will have (for RTP-Info).
    pub fn next_sequence(&self) -> u16 {
        self.sequence
    }

    /// Cuts the NAL units (without start codes) of one access unit into packets. `emit` gets each packet's
    /// head (RTP header, FU header if any) and its payload, to be sent one after the other; nothing is copied.
    pub fn packetize<'a>(
        &mut self,
        nals: impl IntoIterator<Item = &'a [u8]>,
        timestamp: u32,
        mut emit: impl FnMut(&[u8], &[u8]),
    ) {
        let mut nals = nals.into_iter().filter(|nal| !nal.is_empty()).peekable();
        while let Some(nal) = nals.next() {
            let is_last = nals.peek().is_none();
            if nal.len() <= self.max_payload {
                emit(&self.header(is_last, timestamp), nal);
                continue;
            }
            let (indicator, kind) = (nal[0] & 0xe0 | 28, nal[0] & 0x1f);
            let mut rest = &nal[1..];
            let mut flags = 0x80;
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(rest.len().min(self.max_payload - 2));
                if after.is_empty() {
                    flags |= 0x40;
                }
                let mut head = [0; rtp::HEADER_LEN + 2];
                head[..rtp::HEADER_LEN].copy_from_slice(&self.header(is_last && after.is_empty(), timestamp));
                head[rtp::HEADER_LEN] = indicator;
                head[rtp::HEADER_LEN + 1] = flags | kind;
                emit(&head, piece);
                flags = 0;
                rest = after;
            }
        }
    }

    fn header(&mut self, marker: bool, timestamp: u32) -> [u8; rtp::HEADER_LEN] {
        let header = rtp::header(marker, self.payload_type, self.sequence, timestamp, self.ssrc);
        self.sequence = self.sequence.wrapping_add(1);
        header
    }
}
