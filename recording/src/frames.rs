//! Packets of a session to frames with wall-clock times.
//!
//! 1. Each packet goes to its track, which counts it and puts frames together (`homing_media`).
//! 2. A video frame gets its time from the camera's RTP clock, tied to the wall clock.
//! 3. An audio frame gets its time from the video's clock where sender reports tie the two together, else
//!    from its own arrival; G.711 becomes FLAC here.
//!
//! Not here: I/O, storing, live. Invariant: nothing panics whatever the packets hold; what cannot be used is
//! counted in [`Counts`].

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use homing_media::aac::AacDepacketizer;
use homing_media::flac::{FlacEncoder, MAX_BLOCK};
use homing_media::g711::Law;
use homing_media::h264::{Depacketizer, ParameterSets};
use homing_media::mp4::SampleEntry;
use homing_media::rtp::{Arrival, Packet, Reception, Rtcp};
use homing_media::sdp::{Codec, Track};
use homing_media::time::{TICKS_PER_SECOND, Ticks, Unwrapper, WallClock, rescale, ticks_from_ntp};

use crate::rtsp::SetUpTrack;

/// G.711 is coded in blocks of so many samples, 40 ms: a packet or two. Smaller ones cost more in heads than
/// in sound, larger ones delay live.
const FLAC_BLOCK: usize = 320;

/// An audio frame that begins earlier than the end of the one before, by more than this, is dropped: the
/// camera sent it twice, or the clocks were tied together anew.
const AUDIO_OVERLAP: Ticks = TICKS_PER_SECOND / 50;

/// Without a better idea frames are taken to be so far apart.
const DEFAULT_INTERVAL: Ticks = TICKS_PER_SECOND / 25;

/// A picture.
#[derive(Clone, Debug)]
pub(crate) struct VideoFrame {
    /// When it is shown.
    pub time: Ticks,
    /// How long it is shown, as far as one can know when it has just come: the interval before it.
    pub likely_duration: Ticks,
    pub is_key: bool,
    pub has_b_slices: bool,
    /// One of the clocks jumped before this frame.
    pub is_jump: bool,
    /// Pictures were lost before this one.
    pub after_loss: bool,
    /// Set when they changed with this frame, and on the first.
    pub parameter_sets: Option<Arc<ParameterSets>>,
    /// AVCC.
    pub data: Bytes,
}

/// A piece of sound.
#[derive(Clone, Debug)]
pub(crate) struct AudioFrame {
    /// Time of its first sample: unix time × sample rate.
    pub start: i64,
    /// Samples.
    pub samples: u32,
    pub data: Bytes,
}

/// One of the two.
pub(crate) enum Frame {
    Video(VideoFrame),
    Audio(AudioFrame),
}

/// Totals of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub packets: u64,
    pub lost_packets: u64,
    pub malformed_packets: u64,
    pub frames: u64,
    pub dropped_frames: u64,
}

/// Makes frames of a session's packets.
pub(crate) struct Assembler {
    video: Video,
    audio: Option<Audio>,
    malformed: u64,
    ready: VecDeque<Frame>,
}

struct Channels {
    rtp: u8,
    rtcp: u8,
}

struct Video {
    channels: Channels,
    clock_rate: u32,
    reception: Reception,
    depacketizer: Depacketizer,
    unwrapper: Unwrapper,
    clock: WallClock,
    /// Camera's NTP time minus media time, in ticks, from its last sender report.
    ntp_offset: Option<Ticks>,
    last: Option<Ticks>,
    interval: Ticks,
    dropped: u64,
}

struct Audio {
    channels: Channels,
    entry: SampleEntry,
    clock_rate: u32,
    reception: Reception,
    decoder: AudioDecoder,
    unwrapper: Unwrapper,
    /// Used until sender reports of both tracks have come.
    clock: WallClock,
    ntp_offset: Option<Ticks>,
    /// End of the last frame, in samples.
    end: Option<i64>,
    /// Always empty between packets; kept for its memory.
    decoded: Vec<Decoded>,
}

enum AudioDecoder {
    Aac { depacketizer: AacDepacketizer, frame_samples: u32 },
    G711 { law: Law, encoder: FlacEncoder, block: Vec<i16>, block_at: i64 },
}

/// Media time of the first sample, samples, bytes.
type Decoded = (i64, u32, Bytes);

impl Assembler {
    /// For a session's tracks; `not_before` is the end of what is recorded of this camera.
    pub fn new(tracks: &[SetUpTrack], not_before: Ticks) -> Option<Self> {
        let mut video = None;
        let mut audio = None;
        for SetUpTrack { track, rtp_channel, rtcp_channel } in tracks {
            let channels = Channels { rtp: *rtp_channel, rtcp: *rtcp_channel };
            match &track.codec {
                Codec::H264(sets) => {
                    video = video.or(Some(Video::new(channels, track, sets.clone(), not_before)))
                }
                Codec::Aac(_) | Codec::G711(_) => audio = audio.or(Audio::new(channels, track, not_before)),
                Codec::Unsupported(_) => {}
            }
        }
        Some(Self { video: video?, audio, malformed: 0, ready: VecDeque::new() })
    }

    /// How the audio frames are coded.
    pub fn audio_entry(&self) -> Option<&SampleEntry> {
        self.audio.as_ref().map(|audio| &audio.entry)
    }

    /// Takes a packet that came at that time; then [`Assembler::pop`] until there is nothing.
    pub fn push(&mut self, channel: u8, payload: &Bytes, now: Ticks) {
        if channel == self.video.channels.rtp {
            match Packet::parse(payload) {
                Ok(packet) => self.video.push(&packet, now, &mut self.ready),
                Err(_) => self.malformed += 1,
            }
        } else if channel == self.video.channels.rtcp {
            self.video.report(payload);
        } else if let Some(audio) = &mut self.audio {
            if channel == audio.channels.rtp {
                match Packet::parse(payload) {
                    Ok(packet) => audio.push(&packet, now, &self.video, &mut self.ready),
                    Err(_) => self.malformed += 1,
                }
            } else if channel == audio.channels.rtcp {
                audio.report(payload);
            }
        }
    }

    pub fn pop(&mut self) -> Option<Frame> {
        self.ready.pop_front()
    }

    pub fn counts(&self) -> Counts {
        let video = self.video.depacketizer.counters();
        let audio = self.audio.as_ref();
        Counts {
            packets: self.video.reception.packets + audio.map_or(0, |audio| audio.reception.packets),
            lost_packets: self.video.reception.lost + audio.map_or(0, |audio| audio.reception.lost),
            malformed_packets: self.malformed
                + video.malformed_packets
                + audio.map_or(0, |audio| match &audio.decoder {
                    AudioDecoder::Aac { depacketizer, .. } => depacketizer.malformed_packets(),
                    AudioDecoder::G711 { .. } => 0,
                }),
            frames: video.frames,
            dropped_frames: video.dropped_frames,
        }
    }

    /// Receiver reports, each with its channel: some cameras end sessions that send none.
    pub fn receiver_reports(&mut self) -> Vec<(u8, Bytes)> {
        // Any number will do as our own source: we send nothing.
        const OURS: u32 = 0x484f_4d45;
        let audio = self.audio.as_mut().map(|audio| (audio.channels.rtcp, &mut audio.reception));
        [Some((self.video.channels.rtcp, &mut self.video.reception)), audio]
            .into_iter()
            .flatten()
            .filter_map(|(channel, reception)| Some((channel, reception.receiver_report(OURS, "homing", 0)?)))
            .collect()
    }
}

impl Video {
    fn new(channels: Channels, track: &Track, sets: Option<ParameterSets>, not_before: Ticks) -> Self {
        let stated = track.frame_rate.map(|rate| (TICKS_PER_SECOND as f32 / rate) as Ticks);
        Self {
            channels,
            clock_rate: if track.clock_rate == 0 { 90_000 } else { track.clock_rate },
            reception: Reception::default(),
            depacketizer: Depacketizer::new(sets),
            unwrapper: Unwrapper::default(),
            clock: WallClock::new(not_before),
            ntp_offset: None,
            last: None,
            interval: stated.unwrap_or(DEFAULT_INTERVAL),
            dropped: 0,
        }
    }

    fn push(&mut self, packet: &Packet, now: Ticks, ready: &mut VecDeque<Frame>) {
        let arrival = self.reception.observe(packet);
        self.depacketizer.push(packet, arrival);
        while let Some(unit) = self.depacketizer.pop() {
            let media = rescale(self.unwrapper.unwrap(unit.timestamp), self.clock_rate, 90_000);
            let placed = self.clock.place(media, now);
            if let Some(last) = self.last {
                let interval = placed.time - last;
                if !placed.is_jump && interval > 0 {
                    self.interval = interval;
                }
            }
            self.last = Some(self.last.map_or(placed.time, |last| last.max(placed.time)));
            let dropped = self.depacketizer.counters().dropped_frames;
            ready.push_back(Frame::Video(VideoFrame {
                time: placed.time,
                likely_duration: self.interval.min(10 * TICKS_PER_SECOND),
                is_key: unit.is_key,
                has_b_slices: unit.has_b_slices,
                is_jump: placed.is_jump,
                after_loss: dropped != std::mem::replace(&mut self.dropped, dropped),
                parameter_sets: unit.parameter_sets,
                data: unit.data,
            }));
        }
    }

    fn report(&mut self, raw: &[u8]) {
        self.ntp_offset =
            ntp_offset(raw, &mut self.reception, &self.unwrapper, self.clock_rate).or(self.ntp_offset);
    }
}

/// What a sender report says: NTP time minus media time, in ticks.
fn ntp_offset(
    raw: &[u8],
    reception: &mut Reception,
    unwrapper: &Unwrapper,
    clock_rate: u32,
) -> Option<Ticks> {
    let report = Rtcp::parse(raw).ok()?.sender_report?;
    reception.sender_report(report);
    let media = rescale(unwrapper.peek(report.rtp)?, clock_rate, 90_000);
    Some(ticks_from_ntp(report.ntp) - media)
}

impl Audio {
    fn new(channels: Channels, track: &Track, not_before: Ticks) -> Option<Self> {
        let (entry, decoder) = match &track.codec {
            Codec::Aac(format) => {
                let depacketizer = AacDepacketizer::new(format.clone()).ok()?;
                let decoder = AudioDecoder::Aac { depacketizer, frame_samples: format.frame_samples };
                (SampleEntry::Aac(format.clone()), decoder)
            }
            Codec::G711(law) => {
                let sample_rate = if track.clock_rate == 0 { 8_000 } else { track.clock_rate };
                let encoder = FlacEncoder::new(sample_rate);
                let decoder = AudioDecoder::G711 { law: *law, encoder, block: Vec::new(), block_at: 0 };
                (SampleEntry::Flac { sample_rate }, decoder)
            }
            _ => return None,
        };
        let clock_rate = if track.clock_rate == 0 { entry.timescale() } else { track.clock_rate };
        Some(Self {
            channels,
            entry,
            clock_rate,
            reception: Reception::default(),
            decoder,
            unwrapper: Unwrapper::default(),
            clock: WallClock::new(not_before),
            ntp_offset: None,
            end: None,
            decoded: Vec::new(),
        })
    }

    fn report(&mut self, raw: &[u8]) {
        self.ntp_offset =
            ntp_offset(raw, &mut self.reception, &self.unwrapper, self.clock_rate).or(self.ntp_offset);
    }

    fn push(&mut self, packet: &Packet, now: Ticks, video: &Video, ready: &mut VecDeque<Frame>) {
        let arrival = self.reception.observe(packet);
        if arrival == Arrival::Stale {
            return;
        }
        let mut decoded = std::mem::take(&mut self.decoded);
        self.decoder.decode(packet, arrival, &mut self.unwrapper, &mut decoded);
        for (media, samples, data) in decoded.drain(..) {
            self.emit(media, samples, data, now, video, ready);
        }
        self.decoded = decoded;
    }

    fn emit(
        &mut self,
        media: i64,
        samples: u32,
        data: Bytes,
        now: Ticks,
        video: &Video,
        ready: &mut VecDeque<Frame>,
    ) {
        let media_90k = rescale(media, self.clock_rate, 90_000);
        // Always asked, so that it is ready when the reports fail to come.
        let by_arrival = self.clock.place(media_90k, now).time - media_90k;
        let tied = match (self.ntp_offset, video.ntp_offset, video.clock.offset()) {
            (Some(audio), Some(of_video), Some(offset)) => Some(offset + audio - of_video),
            _ => None,
        };
        // A camera whose reports are nonsense would put sound minutes away from its picture.
        let tied = tied.filter(|tied| (tied - by_arrival).abs() < 5 * TICKS_PER_SECOND);
        let rate = self.entry.timescale();
        let start = rescale(media, self.clock_rate, rate) + rescale(tied.unwrap_or(by_arrival), 90_000, rate);
        let overlap = self.end.map_or(0, |end| end - start);
        if overlap > rescale(AUDIO_OVERLAP, 90_000, rate) {
            return;
        }
        self.end = Some(start + i64::from(samples));
        ready.push_back(Frame::Audio(AudioFrame { start, samples, data }));
    }
}

impl AudioDecoder {
    fn decode(
        &mut self,
        packet: &Packet,
        arrival: Arrival,
        unwrapper: &mut Unwrapper,
        out: &mut Vec<Decoded>,
    ) {
        match self {
            Self::Aac { depacketizer, frame_samples } => {
                depacketizer.push(packet, arrival);
                while let Some(frame) = depacketizer.pop() {
                    out.push((unwrapper.unwrap(frame.timestamp), *frame_samples, frame.data));
                }
            }
            Self::G711 { law, encoder, block, block_at } => {
                let media = unwrapper.unwrap(packet.timestamp);
                if !block.is_empty() && media != *block_at + block.len() as i64 {
                    // Sound is missing in between: what there is goes out at its own time.
                    flush(encoder, block, *block_at, out);
                }
                if block.is_empty() {
                    *block_at = media;
                }
                law.decode_into(&packet.payload, block);
                if block.len() >= FLAC_BLOCK {
                    flush(encoder, block, *block_at, out);
                }
            }
        }
    }
}

fn flush(encoder: &mut FlacEncoder, block: &mut Vec<i16>, mut at: i64, out: &mut Vec<Decoded>) {
    for piece in block.chunks(MAX_BLOCK) {
        out.push((at, piece.len() as u32, encoder.encode(piece).into()));
        at += piece.len() as i64;
    }
    block.clear();
}
