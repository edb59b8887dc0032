//! RTP packets to access units: single NAL units, STAP-A and FU-A (RFC 6184 §5.6, §5.7.1, §5.8).
//!
//! 1. [`Depacketizer::push`] takes a packet with what [`crate::rtp::Reception`] said of it.
//! 2. NAL units are put together in one growing buffer, once copied, with their lengths.
//! 3. The marker bit ends a picture at once, so that no frame waits for the next one; where a camera
//!    forgets the marker, the next timestamp does.
//! 4. [`Depacketizer::pop`] gives finished pictures.
//!
//! After a loss everything up to the next key frame is dropped and counted: a recording with torn
//! pictures is worse than one that states a gap. Nothing is given out before parameter sets are known.
//!
//! Tolerated: a marker on parameter sets, parameter sets with a timestamp of their own, whole byte
//! streams with start codes in one NAL unit. Not supported: interleaved mode (STAP-B, MTAP, FU-B), which
//! no camera uses; streams that refresh gradually and never send an IDR picture.
//!
//! Invariant: an access unit given out is a complete picture that decodes from the ones given out before.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::{
    NAL_DELIMITER, NAL_FILLER, NAL_IDR, NAL_PPS, NAL_SEI, NAL_SLICE, NAL_SPS, ParameterSets, annexb_nals,
    find_start_code, is_b_slice, nal_type,
};
use crate::rtp::{Arrival, Packet};

/// The largest picture taken; a larger one is dropped like a damaged one. Far above what a camera sends.
pub const MAX_ACCESS_UNIT_BYTES: usize = 8 * 1024 * 1024;

/// Pictures of one group share buffers of this size: one allocation for many frames, none kept per frame.
const ARENA_BYTES: usize = 64 * 1024;

/// Parameter sets that may be waiting to be used; more of them are a fault or an attack.
const MAX_PPS: usize = 32;

/// One picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessUnit {
    /// RTP time, 90 kHz, wrapping: when it is to be shown.
    pub timestamp: u32,
    /// NAL units, each after its length in four bytes.
    pub data: Bytes,
    /// Decoding can begin here.
    pub is_key: bool,
    /// It refers to later pictures, so output order is not decoding order.
    pub has_b_slices: bool,
    /// Set when the parameter sets changed with this picture, and on the first one.
    pub parameter_sets: Option<Arc<ParameterSets>>,
}

/// What came and what was thrown away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Pictures given out.
    pub frames: u64,
    /// Pictures dropped because of a loss before or in them.
    pub dropped_frames: u64,
    /// Packets that contradict RFC 6184.
    pub malformed_packets: u64,
    /// Pictures before the first key frame, or for want of parameter sets.
    pub skipped_frames: u64,
}

/// Puts the pictures of one stream together.
#[derive(Debug)]
pub struct Depacketizer {
    counters: Counters,
    ready: VecDeque<AccessUnit>,
    sets: Option<Arc<ParameterSets>>,
    sets_announced: bool,
    sps: Bytes,
    pps: Vec<Bytes>,
    sets_changed: bool,
    arena: BytesMut,
    picture: Option<Picture>,
    sync: Sync,
}

/// Whether a picture that needs its predecessor may be given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sync {
    NotYet,
    Good,
    Lost,
}

/// The picture being put together; its bytes are in the arena.
#[derive(Debug)]
struct Picture {
    timestamp: u32,
    /// Where the NAL unit of an unfinished FU-A begins.
    fragment_at: Option<usize>,
    is_damaged: bool,
    is_key: bool,
    has_slice: bool,
    has_b_slices: bool,
}

impl Depacketizer {
    /// `sets` from the SDP, if it has them; otherwise the stream must bring them.
    pub fn new(sets: Option<ParameterSets>) -> Self {
        Self {
            counters: Counters::default(),
            ready: VecDeque::new(),
            sps: sets.as_ref().map(|sets| sets.sps().clone()).unwrap_or_default(),
            pps: sets.as_ref().map(|sets| sets.pps().to_vec()).unwrap_or_default(),
            sets: sets.map(Arc::new),
            sets_announced: false,
            sets_changed: false,
            arena: BytesMut::new(),
            picture: None,
            sync: Sync::NotYet,
        }
    }

    /// Totals since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Takes the next packet of the stream.
    pub fn push(&mut self, packet: &Packet, arrival: Arrival) {
        match arrival {
            Arrival::Stale => return,
            Arrival::InOrder => {}
            Arrival::AfterLoss(_) | Arrival::Restarted => self.lose_sync(packet),
        }
        if self.picture.as_ref().is_some_and(|picture| picture.timestamp != packet.timestamp) {
            self.end_picture();
        }
        if self.picture.is_none() {
            self.picture = Some(Picture::new(packet.timestamp));
        }
        if self.take_payload(&packet.payload).is_none() {
            self.counters.malformed_packets += 1;
            self.damage();
        }
        // Some cameras mark parameter sets too; the picture they belong to is still to come.
        if packet.marker
            && self.picture.as_ref().is_some_and(|picture| picture.has_slice || picture.is_damaged)
        {
            self.end_picture();
        }
    }

    /// The next finished picture.
    pub fn pop(&mut self) -> Option<AccessUnit> {
        self.ready.pop_front()
    }

    /// `None`: the payload contradicts the RFC.
    fn take_payload(&mut self, payload: &[u8]) -> Option<()> {
        let (&indicator, body) = payload.split_first()?;
        if indicator & 0x80 != 0 {
            return None; // forbidden_zero_bit
        }
        let kind = indicator & 0x1f;
        let in_fragment = self.picture.as_ref()?.fragment_at.is_some();
        if in_fragment && kind != 28 {
            // The rest of a fragmented NAL unit is missing although no packet is: drop what is there of it.
            self.abandon_fragment();
            self.damage();
        }
        match kind {
            1..=23 => {
                let at = self.begin_nal();
                self.arena.extend_from_slice(payload);
                self.end_nal(at);
            }
            24 => {
                let mut rest = body;
                while !rest.is_empty() {
                    let (size, after) = rest.split_first_chunk::<2>()?;
                    let (nal, after) = after.split_at_checked(usize::from(u16::from_be_bytes(*size)))?;
                    if nal.is_empty() {
                        return None;
                    }
                    let at = self.begin_nal();
                    self.arena.extend_from_slice(nal);
                    self.end_nal(at);
                    rest = after;
                }
            }
            28 => {
                let (&flags, data) = body.split_first()?;
                if flags & 0x80 != 0 {
                    if in_fragment {
                        self.abandon_fragment();
                        self.damage();
                    }
                    let at = self.begin_nal();
                    self.arena.extend_from_slice(&[indicator & 0xe0 | flags & 0x1f]);
                    self.picture.as_mut()?.fragment_at = Some(at);
                } else if !in_fragment {
                    // Its start went missing with the packets before, and was counted then.
                    self.damage();
                    return Some(());
                }
                self.arena.extend_from_slice(data);
                if self.arena.len() > MAX_ACCESS_UNIT_BYTES {
                    self.abandon_fragment();
                    return None;
                }
                if flags & 0x40 != 0
                    && let Some(at) = self.picture.as_mut()?.fragment_at.take()
                {
                    self.end_nal(at);
                }
            }
            _ => return None,
        }
        (self.arena.len() <= MAX_ACCESS_UNIT_BYTES).then_some(())
    }

    fn begin_nal(&mut self) -> usize {
        if self.arena.capacity() == 0 {
            self.arena = BytesMut::with_capacity(ARENA_BYTES);
        }
        let at = self.arena.len();
        self.arena.extend_from_slice(&[0; 4]);
        at
    }

    /// The NAL unit from `at` is complete: keep it, or put it where it belongs.
    fn end_nal(&mut self, at: usize) {
        let nal = &self.arena[at + 4..];
        let kind = nal_type(nal);
        if matches!(kind, NAL_SEI..=NAL_DELIMITER) && find_start_code(nal).is_some() {
            let stream = nal.to_vec();
            self.arena.truncate(at);
            for nal in annexb_nals(&stream) {
                let at = self.begin_nal();
                self.arena.extend_from_slice(nal);
                self.sort_nal(at);
            }
        } else {
            self.sort_nal(at);
        }
    }

    fn sort_nal(&mut self, at: usize) {
        let nal = &self.arena[at + 4..];
        match nal_type(nal) {
            NAL_SPS => {
                if self.sps != nal {
                    self.sps = Bytes::copy_from_slice(nal);
                    self.sets_changed = true;
                }
                self.arena.truncate(at);
            }
            NAL_PPS => {
                if !self.pps.iter().any(|pps| pps == nal) {
                    if self.pps.len() == MAX_PPS {
                        self.pps.remove(0);
                    }
                    self.pps.push(Bytes::copy_from_slice(nal));
                    self.sets_changed = true;
                }
                self.arena.truncate(at);
            }
            NAL_DELIMITER..=NAL_FILLER => self.arena.truncate(at),
            kind => {
                if let Some(picture) = &mut self.picture {
                    picture.has_slice |= matches!(kind, NAL_SLICE..=NAL_IDR);
                    picture.is_key |= kind == NAL_IDR;
                    picture.has_b_slices |= kind == NAL_SLICE && is_b_slice(nal);
                }
                let length = (nal.len() as u32).to_be_bytes(); // bounded by MAX_ACCESS_UNIT_BYTES
                self.arena[at..at + 4].copy_from_slice(&length);
            }
        }
    }

    fn abandon_fragment(&mut self) {
        if let Some(at) = self.picture.as_mut().and_then(|picture| picture.fragment_at.take()) {
            self.arena.truncate(at);
        }
    }

    fn damage(&mut self) {
        if let Some(picture) = &mut self.picture {
            picture.is_damaged = true;
        }
    }

    /// Packets before this one are missing: of the picture in progress, of the next, or whole pictures.
    fn lose_sync(&mut self, packet: &Packet) {
        if self.picture.as_ref().is_some_and(|picture| picture.timestamp == packet.timestamp) {
            self.abandon_fragment();
            self.damage();
        } else {
            self.damage();
            self.end_picture();
            let is_damaged = !begins_picture(&packet.payload);
            self.picture = Some(Picture { is_damaged, ..Picture::new(packet.timestamp) });
        }
        if self.sync == Sync::Good {
            self.sync = Sync::Lost;
        }
    }

    fn end_picture(&mut self) {
        if self.picture.as_ref().is_some_and(|picture| picture.fragment_at.is_some()) {
            self.abandon_fragment();
            self.damage();
        }
        let Some(picture) = self.picture.take() else { return };
        if picture.is_damaged {
            self.arena.clear();
            match self.sync {
                Sync::NotYet => self.counters.skipped_frames += 1,
                Sync::Good | Sync::Lost => {
                    self.counters.dropped_frames += 1;
                    self.sync = Sync::Lost;
                }
            }
            return;
        }
        if !picture.has_slice {
            // Parameter sets or SEI on their own.
            self.arena.clear();
            return;
        }
        self.use_changed_sets();
        let usable = self.sets.is_some() && (picture.is_key || self.sync == Sync::Good);
        if !usable {
            self.arena.clear();
            match self.sync {
                Sync::Lost => self.counters.dropped_frames += 1,
                Sync::NotYet | Sync::Good => self.counters.skipped_frames += 1,
            }
            return;
        }
        self.sync = Sync::Good;
        let parameter_sets = if self.sets_announced { None } else { self.sets.clone() };
        self.sets_announced = true;
        self.counters.frames += 1;
        self.ready.push_back(AccessUnit {
            timestamp: picture.timestamp,
            data: self.arena.split().freeze(),
            is_key: picture.is_key,
            has_b_slices: picture.has_b_slices,
            parameter_sets,
        });
    }

    fn use_changed_sets(&mut self) {
        if !std::mem::take(&mut self.sets_changed) {
            return;
        }
        // Sets that cannot be parsed leave the old ones in place: better a stream with a doubtful
        // description than none.
        if let Ok(sets) = ParameterSets::new(&self.sps, &self.pps) {
            self.pps = sets.pps().to_vec();
            if self.sets.as_deref() != Some(&sets) {
                self.sets = Some(Arc::new(sets));
                self.sets_announced = false;
            }
        }
    }
}

impl Picture {
    fn new(timestamp: u32) -> Self {
        Self {
            timestamp,
            fragment_at: None,
            is_damaged: false,
            is_key: false,
            has_slice: false,
            has_b_slices: false,
        }
    }
}

/// Whether nothing of the picture can have come before this packet (H.264 §7.4.1.2.3): then a loss before it
/// was of other pictures.
fn begins_picture(payload: &[u8]) -> bool {
    match payload {
        [indicator, body @ ..] => match (indicator & 0x1f, body) {
            (NAL_SEI..=NAL_DELIMITER, _) => true,
            (NAL_SLICE..=NAL_IDR, [first, ..]) => first & 0x80 != 0, // first_mb_in_slice is 0
            (24, [_, _, nal @ ..]) => begins_picture(nal),
            (28, [flags, first, ..]) => flags & 0x80 != 0 && first & 0x80 != 0,
            _ => false,
        },
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Packetizer;
    use super::*;
    use crate::rtp::Reception;
    use proptest::prelude::*;

    const SPS: &[u8] = &[0x67, 0x4d, 0x00, 0x1f, 0x95, 0xa8, 0x14, 0x01, 0x6e, 0x40];
    const PPS: &[u8] = &[0x68, 0xee, 0x3c, 0x80];

    fn sets() -> ParameterSets {
        ParameterSets::new(SPS, &[PPS]).unwrap()
    }

    /// A slice that begins a picture; key frames are IDR.
    fn slice(is_key: bool, len: usize) -> Vec<u8> {
        let mut nal = vec![if is_key { 0x65 } else { 0x41 }, 0x9a];
        nal.resize(len.max(3), 0x77);
        nal
    }

    fn avcc(nals: &[&[u8]]) -> Vec<u8> {
        nals.iter().flat_map(|nal| [&(nal.len() as u32).to_be_bytes()[..], nal].concat()).collect()
    }

    fn packets(pictures: &[Vec<Vec<u8>>], max_payload: usize) -> Vec<Packet> {
        let mut packetizer = Packetizer::new(96, 1, 65_530, max_payload);
        let mut packets = Vec::new();
        for (number, nals) in pictures.iter().enumerate() {
            packetizer.packetize(nals.iter().map(Vec::as_slice), number as u32 * 3000, |head, payload| {
                packets.push(Packet::parse(&[head, payload].concat().into()).unwrap());
            });
        }
        packets
    }

    fn receive(sets: Option<ParameterSets>, packets: &[Packet]) -> (Vec<AccessUnit>, Counters) {
        let (mut depacketizer, mut reception) = (Depacketizer::new(sets), Reception::default());
        let mut units = Vec::new();
        for packet in packets {
            let arrival = reception.observe(packet);
            depacketizer.push(packet, arrival);
            units.extend(std::iter::from_fn(|| depacketizer.pop()));
        }
        (units, depacketizer.counters())
    }

    fn raw(sequence: u16, timestamp: u32, marker: bool, payload: &[u8]) -> Packet {
        Packet {
            marker,
            payload_type: 96,
            sequence,
            timestamp,
            ssrc: 1,
            payload: Bytes::copy_from_slice(payload),
        }
    }

    /// Goal: parameter sets from SDP or in band, as single NAL units, aggregated or fragmented, come to the
    /// same; and they are not in the pictures.
    #[test]
    fn parameter_sets_from_anywhere() {
        let idr = slice(true, 40);
        let mut stap = vec![24];
        for nal in [SPS, PPS, &idr] {
            stap.extend((nal.len() as u16).to_be_bytes());
            stap.extend(nal);
        }
        let glued = [SPS, &[0, 0, 0, 1], PPS, &[0, 0, 1], &idr].concat();
        let ways: [(&str, Option<ParameterSets>, Vec<Packet>); 5] = [
            ("SDP", Some(sets()), vec![raw(1, 0, true, &idr)]),
            ("in band", None, vec![raw(1, 0, false, SPS), raw(2, 0, false, PPS), raw(3, 0, true, &idr)]),
            (
                "marked, earlier time",
                None,
                vec![raw(1, 0, true, SPS), raw(2, 1, true, PPS), raw(3, 3, true, &idr)],
            ),
            ("STAP-A", None, vec![raw(1, 0, true, &stap)]),
            ("start codes inside", None, vec![raw(1, 0, true, &glued)]),
        ];
        for (way, from_sdp, packets) in ways {
            let (units, counters) = receive(from_sdp, &packets);
            assert_eq!(units.len(), 1, "{way}");
            assert_eq!(units[0].data, avcc(&[&idr]), "{way}");
            assert_eq!(units[0].parameter_sets.as_deref(), Some(&sets()), "{way}");
            assert!(units[0].is_key);
            assert_eq!(counters, Counters { frames: 1, ..Counters::default() }, "{way}");
        }
    }

    /// Goal: without a marker bit the next timestamp ends the picture.
    #[test]
    fn pictures_without_marker() {
        let (a, b) = (slice(true, 9), slice(false, 9));
        let (units, _) =
            receive(Some(sets()), &[raw(1, 0, false, &a), raw(2, 9, false, &b), raw(3, 18, false, &b)]);
        assert_eq!(
            units.iter().map(|unit| (unit.timestamp, unit.is_key)).collect::<Vec<_>>(),
            [(0, true), (9, false)]
        );
    }

    /// Goal: new parameter sets are announced with the first picture that uses them.
    #[test]
    fn changed_parameter_sets() {
        let other = ParameterSets::from_sprop("Z00AKpWoHgCJ+WbgICAgQA==,aO48gA==").unwrap();
        let key = slice(true, 9);
        let pictures = [
            vec![SPS.to_vec(), PPS.to_vec(), key.clone()],
            vec![SPS.to_vec(), PPS.to_vec(), key.clone()],
            vec![other.sps().to_vec(), other.pps()[0].to_vec(), key],
        ];
        let (units, _) = receive(None, &packets(&pictures, 1400));
        let announced: Vec<_> =
            units.iter().map(|unit| unit.parameter_sets.as_deref().map(ParameterSets::width)).collect();
        assert_eq!(announced, [Some(1280), None, Some(1920)]);
    }

    /// Goal: a lost packet costs the pictures up to the next key frame, which is kept even when the loss was
    /// just before it; all are counted.
    #[test]
    fn loss_drops_up_to_the_next_key_frame() {
        let pictures: Vec<Vec<Vec<u8>>> = (0..9).map(|n| vec![slice(n % 3 == 0, 300)]).collect();
        let all = packets(&pictures, 100);
        assert_eq!(all.len(), 9 * 4);
        // Without its last packet the last picture simply never ends.
        for lost in 0..all.len() - 1 {
            let mut some = all.clone();
            some.remove(lost);
            let (units, counters) = receive(Some(sets()), &some);
            let times: Vec<u32> = units.iter().map(|unit| unit.timestamp / 3000).collect();
            let first_bad = (lost / 4) as u32;
            let next_key = if lost == 0 { 3 } else { first_bad / 3 * 3 + 3 };
            let expected: Vec<u32> = (0..9).filter(|&n| n < first_bad || n >= next_key).collect();
            assert_eq!(times, expected, "packet {lost} lost");
            let missing = 9 - units.len() as u64;
            assert_eq!(counters.dropped_frames + counters.skipped_frames, missing, "packet {lost} lost");
        }
    }

    /// Goal: payloads that lie about sizes are counted, cost their picture, and nothing else.
    #[test]
    fn lying_payloads() {
        let key = slice(true, 9);
        let lies: [&[u8]; 8] = [
            &[],
            &[24, 0, 9, 1],
            &[24, 0, 0],
            &[24, 9],
            &[28],
            &[29, 0x80, 1],
            &[0x80 | 5, 1, 2],
            &[31, 1, 2, 3],
        ];
        for lie in lies {
            let stream = [
                raw(1, 0, true, &key),
                raw(2, 1, true, lie),
                raw(3, 2, true, &slice(false, 9)),
                raw(4, 3, true, &key),
            ];
            let (units, counters) = receive(Some(sets()), &stream);
            assert_eq!(units.iter().map(|unit| unit.timestamp).collect::<Vec<_>>(), [0, 3], "{lie:?}");
            assert_eq!((counters.malformed_packets, counters.dropped_frames), (1, 2), "{lie:?}");
        }
    }

    /// Goal: a NAL unit without end does not grow without end.
    #[test]
    fn endless_fragment_is_bounded() {
        let (mut depacketizer, mut reception) = (Depacketizer::new(Some(sets())), Reception::default());
        let mut payload = vec![0u8; 60_000];
        payload[0] = 28;
        for n in 0..400u16 {
            payload[1] = if n == 0 { 0x85 } else { 0x05 };
            let packet = raw(n, 0, false, &payload);
            let arrival = reception.observe(&packet);
            depacketizer.push(&packet, arrival);
            assert!(depacketizer.arena.capacity() <= 2 * MAX_ACCESS_UNIT_BYTES + ARENA_BYTES);
        }
        assert!(depacketizer.counters().malformed_packets > 0);
    }

    /// Goal: memory of finished frames is shared, not one buffer each.
    #[test]
    fn frames_share_buffers() {
        let pictures: Vec<Vec<Vec<u8>>> = (0..40).map(|n| vec![slice(n == 0, 1000)]).collect();
        let (units, _) = receive(Some(sets()), &packets(&pictures, 1400));
        let adjacent = units
            .windows(2)
            .filter(|w| w[0].data.as_ptr() as usize + w[0].data.len() == w[1].data.as_ptr() as usize);
        assert!(adjacent.count() >= 38);
    }

    proptest! {
        /// Goal: what the packetiser cuts the depacketiser puts together again, whatever the sizes.
        #[test]
        fn round_trip(
            pictures in proptest::collection::vec(proptest::collection::vec(3usize..700, 1..4), 1..8),
            max_payload in 100usize..400,
        ) {
            let pictures: Vec<Vec<Vec<u8>>> = pictures
                .iter()
                .enumerate()
                .map(|(n, sizes)| sizes.iter().map(|&size| slice(n == 0, size)).collect())
                .collect();
            let (units, counters) = receive(Some(sets()), &packets(&pictures, max_payload));
            prop_assert_eq!(units.len(), pictures.len());
            for (unit, nals) in units.iter().zip(&pictures) {
                let nals: Vec<&[u8]> = nals.iter().map(Vec::as_slice).collect();
                prop_assert_eq!(&unit.data[..], &avcc(&nals)[..]);
                prop_assert!(super::super::is_avcc(&unit.data));
            }
            prop_assert_eq!(counters.malformed_packets + counters.dropped_frames, 0);
        }

        /// Goal: any payload bytes, no panic, and only well-formed pictures come out.
        #[test]
        fn arbitrary_payloads(stream in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..40), 0u32..4, any::<bool>(), 1u16..3), 0..40)) {
            let (mut depacketizer, mut reception) = (Depacketizer::new(Some(sets())), Reception::default());
            let mut sequence = 0u16;
            for (payload, timestamp, marker, step) in stream {
                sequence += step;
                let packet = raw(sequence, timestamp, marker, &payload);
                let arrival = reception.observe(&packet);
                depacketizer.push(&packet, arrival);
                while let Some(unit) = depacketizer.pop() {
                    let mut rest = &unit.data[..];
                    while let Some((length, after)) = rest.split_first_chunk::<4>() {
                        rest = &after[u32::from_be_bytes(*length) as usize..];
                    }
                    prop_assert!(rest.is_empty());
                }
            }
        }
    }
}
