//! RTP and RTCP packets (RFC 3550): parsing, loss accounting, sender reports, receiver reports.
//!
//! Not here: payload formats (`h264`, `aac`, `g711`), and what a timestamp means in wall-clock time (`time`).
//! RTP here always travels over a byte stream, so packets come in order; a gap in the sequence numbers means
//! that the sender threw packets away, or that the camera's own network did.
//!
//! Invariant: no length field of a packet is believed before it is compared with what is there.

use bytes::{BufMut, Bytes, BytesMut};

/// Length of an RTP header without contributing sources and extension.
pub const HEADER_LEN: usize = 12;

/// A parsed RTP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// By payload format: the last packet of a video frame.
    pub marker: bool,
    /// 0 to 127, as in the SDP's `m=` line.
    pub payload_type: u8,
    /// Rises by one per packet, wraps.
    pub sequence: u16,
    /// In units of the payload's clock rate, from a random start, wraps.
    pub timestamp: u32,
    /// The source; a new one means that the sender started anew.
    pub ssrc: u32,
    /// Without contributing sources, extension and padding; may be empty.
    pub payload: Bytes,
}

/// Why bytes are no RTP or RTCP packet. Skip the packet and count it; the connection is still good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RtpError {
    /// Shorter than the fixed header.
    #[error("RTP packet of {0} bytes is shorter than its header")]
    TooShort(usize),
    /// Not version 2.
    #[error("RTP version {0}, expected 2")]
    Version(u8),
    /// Contributing sources or extension reach over the end.
    #[error("RTP header claims {claimed} bytes, the packet has {actual}")]
    HeaderOverrun {
        /// By the packet's own account.
        claimed: usize,
        /// Really there.
        actual: usize,
    },
    /// The padding is zero bytes or more than there are.
    #[error("RTP padding of {0} bytes does not fit the packet")]
    Padding(u8),
    /// An RTCP packet's length field reaches over the end.
    #[error("RTCP packet claims {claimed} bytes, {actual} are left")]
    RtcpOverrun {
        /// By the packet's own account.
        claimed: usize,
        /// Really there.
        actual: usize,
    },
}

impl Packet {
    /// Parses one packet; the payload is a slice of `raw`. RFC 3550 §5.1, §5.3.1.
    ///
    /// # Errors
    /// When the packet's own account of its sizes does not fit `raw`.
    pub fn parse(raw: &Bytes) -> Result<Self, RtpError> {
        let actual = raw.len();
        let Some(head) = raw.first_chunk::<HEADER_LEN>() else {
            return Err(RtpError::TooShort(actual));
        };
        if head[0] >> 6 != 2 {
            return Err(RtpError::Version(head[0] >> 6));
        }
        let mut start = HEADER_LEN + 4 * usize::from(head[0] & 0x0f);
        if head[0] & 0x10 != 0 {
            let Some(&[_, _, hi, lo]) = raw.get(start..start + 4) else {
                return Err(RtpError::HeaderOverrun { claimed: start + 4, actual });
            };
            start += 4 + 4 * usize::from(u16::from_be_bytes([hi, lo]));
        }
        if start > actual {
            return Err(RtpError::HeaderOverrun { claimed: start, actual });
        }
        let mut end = actual;
        if head[0] & 0x20 != 0 {
            let padding = raw[actual - 1];
            if padding == 0 || usize::from(padding) > actual - start {
                return Err(RtpError::Padding(padding));
            }
            end -= usize::from(padding);
        }
        Ok(Self {
            marker: head[1] & 0x80 != 0,
            payload_type: head[1] & 0x7f,
            sequence: u16::from_be_bytes([head[2], head[3]]),
            timestamp: u32::from_be_bytes([head[4], head[5], head[6], head[7]]),
            ssrc: u32::from_be_bytes([head[8], head[9], head[10], head[11]]),
            payload: raw.slice(start..end),
        })
    }
}

/// The fixed header of a packet to be sent.
pub fn header(marker: bool, payload_type: u8, sequence: u16, timestamp: u32, ssrc: u32) -> [u8; HEADER_LEN] {
    let mut head = [0; HEADER_LEN];
    head[0] = 0x80;
    head[1] = u8::from(marker) << 7 | payload_type & 0x7f;
    head[2..4].copy_from_slice(&sequence.to_be_bytes());
    head[4..8].copy_from_slice(&timestamp.to_be_bytes());
    head[8..12].copy_from_slice(&ssrc.to_be_bytes());
    head
}

/// What a packet's sequence number says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// The next one, or the first of all.
    InOrder,
    /// So many packets before this one are missing.
    AfterLoss(u16),
    /// Seen before, or too late to be of use: ignore it.
    Stale,
    /// The source changed or began anew; what came before and what comes now do not belong together.
    Restarted,
}

/// Counts what arrived from one source and what did not (RFC 3550 §6.4.1, appendix A.3).
#[derive(Clone, Debug, Default)]
pub struct Reception {
    source: Option<Source>,
    /// Packets that arrived in order, over all sources.
    pub packets: u64,
    /// Packets that never came.
    pub lost: u64,
    last_report: Option<SenderReport>,
    /// Expected and lost at the last receiver report, for `fraction lost`.
    reported: (u64, u64),
}

#[derive(Clone, Debug)]
struct Source {
    ssrc: u32,
    sequence: u16,
    cycles: u32,
}

/// A jump of more than this many packets, either way, is a restart and not a loss (appendix A.1, MAX_DROPOUT).
const MAX_DROPOUT: i16 = 3000;

impl Reception {
    /// Judges a packet and counts it.
    pub fn observe(&mut self, packet: &Packet) -> Arrival {
        let arrival = match &mut self.source {
            None => {
                self.begin(packet);
                Arrival::InOrder
            }
            Some(source) if source.ssrc != packet.ssrc => {
                self.begin(packet);
                Arrival::Restarted
            }
            Some(source) => {
                let step = packet.sequence.wrapping_sub(source.sequence).cast_signed();
                if !(-MAX_DROPOUT..=MAX_DROPOUT).contains(&step) {
                    self.begin(packet);
                    Arrival::Restarted
                } else if step <= 0 {
                    Arrival::Stale
                } else {
                    if packet.sequence < source.sequence {
                        source.cycles = source.cycles.wrapping_add(1);
                    }
                    source.sequence = packet.sequence;
                    let missing = step.unsigned_abs() - 1;
                    self.lost += u64::from(missing);
                    if missing == 0 { Arrival::InOrder } else { Arrival::AfterLoss(missing) }
                }
            }
        };
        if arrival != Arrival::Stale {
            self.packets += 1;
        }
        arrival
    }

    fn begin(&mut self, packet: &Packet) {
        self.source = Some(Source { ssrc: packet.ssrc, sequence: packet.sequence, cycles: 0 });
        self.last_report = None;
    }

    /// Takes note of a sender report, which the next receiver report has to mention.
    pub fn sender_report(&mut self, report: SenderReport) {
        if self.source.as_ref().is_some_and(|source| source.ssrc == report.ssrc) {
            self.last_report = Some(report);
        }
    }

    /// A receiver report with the SDES that must go with it (§6.1). `None`: nothing was received yet.
    ///
    /// `since_report_65536ths` is the time since the last sender report came, in 1/65,536 s. Jitter is
    /// reported as 0: over TCP it says nothing about the network.
    pub fn receiver_report(
        &mut self,
        reporter: u32,
        cname: &str,
        since_report_65536ths: u32,
    ) -> Option<Bytes> {
        let source = self.source.as_ref()?;
        let (expected, lost) = (self.packets + self.lost, self.lost);
        let (interval, interval_lost) = (expected - self.reported.0, lost - self.reported.1);
        self.reported = (expected, lost);
        let fraction = (interval_lost * 256).checked_div(interval).unwrap_or(0).min(255);
        let mut out = BytesMut::with_capacity(64 + cname.len());
        out.put_slice(&[0x81, 201, 0, 7]);
        out.put_u32(reporter);
        out.put_u32(source.ssrc);
        // 8 bits of fraction, 24 of cumulative loss.
        out.put_u32((fraction as u32) << 24 | lost.min(0x7f_ffff) as u32);
        out.put_u32(source.cycles << 16 | u32::from(source.sequence));
        out.put_u32(0);
        match &self.last_report {
            Some(report) => {
                out.put_u32((report.ntp >> 16) as u32);
                out.put_u32(since_report_65536ths);
            }
            None => out.put_u64(0),
        }
        put_sdes(&mut out, reporter, cname);
        Some(out.freeze())
    }
}

/// An empty receiver report and the BYE of a source (§6.6).
pub fn goodbye(ssrc: u32) -> [u8; 16] {
    let mut out = [0; 16];
    for (at, packet_type, count) in [(0, 201, 0), (8, 203, 1)] {
        out[at..at + 4].copy_from_slice(&[0x80 | count, packet_type, 0, 1]);
        out[at + 4..at + 8].copy_from_slice(&ssrc.to_be_bytes());
    }
    out
}

/// Source description with the canonical name only; §6.5.
fn put_sdes(out: &mut BytesMut, ssrc: u32, cname: &str) {
    let cname = &cname.as_bytes()[..cname.len().min(255)];
    // SSRC, item type, length, text, at least one zero, to a multiple of four.
    let words = (4 + 2 + cname.len()) / 4 + 1;
    out.put_slice(&[0x81, 202]);
    out.put_u16(words as u16);
    let start = out.len();
    out.put_u32(ssrc);
    out.put_slice(&[1, cname.len() as u8]);
    out.put_slice(cname);
    out.put_bytes(0, start + 4 * words - out.len());
}

/// The part of a sender report that ties RTP time to the sender's wall clock (§6.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SenderReport {
    /// Whose.
    pub ssrc: u32,
    /// NTP time, 32.32 fixed point seconds since 1900; the sender's clock, which may be wrong by years.
    pub ntp: u64,
    /// The RTP timestamp of the same moment.
    pub rtp: u32,
}

impl SenderReport {
    /// A sender report with SDES, for a source that has sent so much.
    pub fn encode(&self, packets: u32, octets: u32, cname: &str) -> Bytes {
        let mut out = BytesMut::with_capacity(64 + cname.len());
        out.put_slice(&[0x80, 200, 0, 6]);
        out.put_u32(self.ssrc);
        out.put_u64(self.ntp);
        out.put_u32(self.rtp);
        out.put_u32(packets);
        out.put_u32(octets);
        put_sdes(&mut out, self.ssrc, cname);
        out.freeze()
    }
}

/// What matters in a compound RTCP packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rtcp {
    /// The last sender report in it.
    pub sender_report: Option<SenderReport>,
    /// The source says that it ends (§6.6).
    pub bye: bool,
}

impl Rtcp {
    /// Parses a compound packet; unknown packet types in it are skipped.
    ///
    /// # Errors
    /// When a length field does not fit, or the version is not 2.
    pub fn parse(mut raw: &[u8]) -> Result<Self, RtpError> {
        let mut rtcp = Self::default();
        while !raw.is_empty() {
            let Some(&[flags, packet_type, hi, lo]) = raw.first_chunk::<4>() else {
                return Err(RtpError::RtcpOverrun { claimed: 4, actual: raw.len() });
            };
            if flags >> 6 != 2 {
                return Err(RtpError::Version(flags >> 6));
            }
            let claimed = 4 + 4 * usize::from(u16::from_be_bytes([hi, lo]));
            let Some((packet, rest)) = raw.split_at_checked(claimed) else {
                return Err(RtpError::RtcpOverrun { claimed, actual: raw.len() });
            };
            match packet_type {
                200 => {
                    let Some(body) = packet[4..].first_chunk::<16>() else {
                        return Err(RtpError::RtcpOverrun { claimed: 20, actual: claimed });
                    };
                    let word =
                        |at: usize| u32::from_be_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]]);
                    let ntp = u64::from(word(4)) << 32 | u64::from(word(8));
                    // Cameras without a clock send 0, which ties nothing to anything.
                    rtcp.sender_report =
                        Some(SenderReport { ssrc: word(0), ntp, rtp: word(12) }).filter(|_| ntp != 0);
                }
                203 => rtcp.bye = true,
                _ => {}
            }
            raw = rest;
        }
        Ok(rtcp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet(sequence: u16) -> Packet {
        Packet { marker: false, payload_type: 96, sequence, timestamp: 0, ssrc: 7, payload: Bytes::new() }
    }

    /// Goal: header, contributing sources, extension and padding are taken off, nothing else.
    #[test]
    fn parses_every_part() {
        let mut raw = header(true, 96, 65_535, 0xdead_beef, 0x0102_0304).to_vec();
        raw[0] |= 0x20 | 0x10 | 2;
        raw.extend([0; 8]);
        raw.extend([0xbe, 0xde, 0, 1, 9, 9, 9, 9]);
        raw.extend(b"video");
        raw.extend([0, 0, 3]);
        let packet = Packet::parse(&raw.clone().into()).unwrap();
        assert_eq!((packet.marker, packet.payload_type, packet.sequence), (true, 96, 65_535));
        assert_eq!((packet.timestamp, packet.ssrc), (0xdead_beef, 0x0102_0304));
        assert_eq!(&packet.payload[..], b"video");
        // Cut anywhere, it is an error or a shorter payload, never a panic.
        for at in 0..raw.len() {
            let _ = Packet::parse(&Bytes::copy_from_slice(&raw[..at]));
        }
    }

    /// Goal: every lie about a size has its own error.
    #[test]
    fn lying_sizes() {
        let with = |first: u8, rest: &[u8]| {
            let mut raw = header(false, 0, 1, 2, 3).to_vec();
            raw[0] = first;
            raw.extend(rest);
            Packet::parse(&raw.into())
        };
        assert_eq!(Packet::parse(&Bytes::from_static(&[0x80; 11])), Err(RtpError::TooShort(11)));
        assert_eq!(with(0x40, b""), Err(RtpError::Version(1)));
        assert_eq!(with(0x8f, b""), Err(RtpError::HeaderOverrun { claimed: 72, actual: 12 }));
        assert_eq!(with(0x90, b"ab"), Err(RtpError::HeaderOverrun { claimed: 16, actual: 14 }));
        let claimed = 16 + 4 * 0xffff;
        assert_eq!(with(0x90, &[0, 0, 0xff, 0xff]), Err(RtpError::HeaderOverrun { claimed, actual: 16 }));
        assert_eq!(with(0xa0, &[1, 0]), Err(RtpError::Padding(0)));
        assert_eq!(with(0xa0, &[1, 4]), Err(RtpError::Padding(4)));
        assert_eq!(with(0xa0, &[1, 2]).unwrap().payload.len(), 0);
        assert_eq!(Rtcp::parse(&[0x80, 200, 0, 9, 1]), Err(RtpError::RtcpOverrun { claimed: 40, actual: 5 }));
        assert_eq!(Rtcp::parse(&[0x80, 200, 0, 0]), Err(RtpError::RtcpOverrun { claimed: 20, actual: 4 }));
        assert_eq!(Rtcp::parse(&[0x80]), Err(RtpError::RtcpOverrun { claimed: 4, actual: 1 }));
    }

    /// Goal: loss, wrap, repetition and restart are told apart and counted.
    #[test]
    fn accounts_for_every_packet() {
        let mut reception = Reception::default();
        assert_eq!(reception.observe(&packet(65_534)), Arrival::InOrder);
        assert_eq!(reception.observe(&packet(65_535)), Arrival::InOrder);
        assert_eq!(reception.observe(&packet(2)), Arrival::AfterLoss(2));
        assert_eq!(reception.observe(&packet(2)), Arrival::Stale);
        assert_eq!(reception.observe(&packet(0)), Arrival::Stale);
        assert_eq!(reception.observe(&packet(3)), Arrival::InOrder);
        assert_eq!((reception.packets, reception.lost), (4, 2));
        let report = reception.receiver_report(0xaa, "homing", 0).unwrap();
        // Extended highest sequence number: one cycle, 3.
        assert_eq!(report[16..20], [0, 1, 0, 3]);
        assert_eq!(report[12..16], [85, 0, 0, 2]);
        assert_eq!(reception.observe(&packet(20_000)), Arrival::Restarted);
        let other = Packet { ssrc: 8, ..packet(20_001) };
        assert_eq!(reception.observe(&other), Arrival::Restarted);
    }

    /// Goal: reports survive the wire, and ours are well-formed compounds.
    #[test]
    fn reports_round_trip() {
        let report = SenderReport { ssrc: 7, ntp: 0xe000_0000_8000_0000, rtp: 90_000 };
        for cname in ["", "a", "ab", "abc", "abcd", "a long canonical name"] {
            let raw = report.encode(10, 1000, cname);
            assert_eq!(Rtcp::parse(&raw).unwrap(), Rtcp { sender_report: Some(report), bye: false });
            let mut reception = Reception::default();
            reception.observe(&packet(1));
            reception.sender_report(report);
            let rr = reception.receiver_report(9, cname, 65_536).unwrap();
            assert_eq!(Rtcp::parse(&rr).unwrap(), Rtcp::default());
            assert_eq!(rr[24..32], [0, 0, 0x80, 0, 0, 1, 0, 0]);
        }
        assert!(Rtcp::parse(&[0x80, 203, 0, 0]).unwrap().bye);
        assert_eq!(Rtcp::parse(&goodbye(7)).unwrap(), Rtcp { sender_report: None, bye: true });
    }

    proptest! {
        /// Goal: no bytes make the parsers panic, and a payload lies within its packet.
        #[test]
        fn arbitrary_bytes(raw in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Rtcp::parse(&raw);
            if let Ok(packet) = Packet::parse(&raw.clone().into()) {
                prop_assert!(packet.payload.len() + HEADER_LEN <= raw.len());
            }
        }
    }
}
