//! One stream of pictures and sound, drawn and encoded once for all cameras with equal [`Settings`].
//!
//! # Life of a source
//!
//! 1. [`Source::shared`] gives the one source of these settings, or makes it: it encodes a single
//!    picture to learn the parameter sets, so that DESCRIBE can be answered before anybody watches.
//! 2. The first [`Source::watch`] starts a thread of its own (an encoder on a runtime's worker would
//!    hold up every connection there); later ones join it.
//! 3. The thread sleeps until the next picture or packet of sound is due, makes it into RTP packets
//!    *once*, with their interleaved framing, and passes it to all watchers as one shared [`Unit`].
//! 4. When nobody watches, the thread ends at the next picture; it starts again with the next watcher.
//!
//! Frame numbers go on by time whether or not anybody watches: frame `n` is due at `n / fps` seconds
//! after [`crate::scene::EPOCH_MS`]. While the thread runs they rise by exactly one; it is late rather
//! than leaving one out, up to `MAX_LATE_US`.
//!
//! A new watcher starts at a key frame that is made for it ([`Watch::ask_for_key`]), as real cameras
//! do: the picture is there within a frame's time, and not up to a key frame interval old, as it would
//! be from a cache. Everyone else of the source gets this additional key frame too.
//!
//! Invariant: a watcher that does not keep up loses units ([`Lagged`]); nobody waits for it.

use crate::{
    audio,
    encoder::Encoder,
    scene::{EPOCH_MS, Place, Scene, Timing},
};
use bytes::{BufMut, Bytes, BytesMut};
use homing_media::{
    h264::{Packetizer, ParameterSets, annexb_nals},
    rtp, rtsp,
};
use std::{
    collections::HashMap,
    sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError, Weak},
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::broadcast;

/// RTP payload type of the pictures: the first dynamic one.
pub const VIDEO_PAYLOAD_TYPE: u8 = 96;
/// RTP payload type of the sound: PCMU (RFC 3551 §6).
pub const AUDIO_PAYLOAD_TYPE: u8 = 0;
/// Clock of the pictures' RTP timestamps.
pub const VIDEO_CLOCK_HZ: u64 = 90_000;

/// The interleaved channel that a track's packets are framed for; for another they are copied.
pub const fn usual_channel(track: Track) -> u8 {
    match track {
        Track::Video => 0,
        Track::Audio => 2,
    }
}

/// Units that wait for a watcher: about 7 s. One that is further behind loses the oldest and is told.
const QUEUE_UNITS: usize = 256;

/// A thread that is later than this, since the machine is overloaded or was asleep, leaves frames out.
const MAX_LATE_US: i64 = 2_000_000;

/// Payload of a packet, in bytes: what fits Ethernet, as cameras send it even over TCP.
const MAX_PAYLOAD_BYTES: usize = 1400;

/// At least so long between two key frames that watchers asked for, so that a hundred that come at
/// once do not turn every picture into one.
const KEY_PAUSE_US: i64 = 1_000_000;

/// What a stream looks and sounds like. Equal settings share one encoder.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// Shown in the picture; picks its colours.
    pub name: String,
    /// What the camera looks at; `None`: by its name.
    pub place: Option<Place>,
    /// In pixels, even.
    pub width: usize,
    /// In pixels, even.
    pub height: usize,
    /// Frames per second.
    pub fps: u32,
    /// Frames from one key frame to the next.
    pub key_interval: u32,
    /// Bits per second of the pictures.
    pub bitrate_bps: u32,
    /// Whether there is sound.
    pub audio: bool,
}

/// Pictures or sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Track {
    /// H.264.
    Video,
    /// G.711 µ-law.
    Audio,
}

/// One picture or one packet of sound, ready to be written to any number of connections.
#[derive(Debug)]
pub struct Unit {
    /// Which of the two.
    pub track: Track,
    /// The picture's number; `None` for sound.
    pub frame: Option<u32>,
    /// Whether a decoder can start here. Always, with sound.
    pub is_key: bool,
    /// When it was taken, in microseconds of Unix time.
    pub taken_us: i64,
    /// The same in the track's clock.
    pub rtp_time: u32,
    /// Sequence number of its first packet.
    pub sequence: u16,
    /// What the next packet of sound will have, for RTP-Info: sequence number and timestamp.
    pub next_audio: (u16, u32),
    /// How many RTP packets it is.
    pub packets: u32,
    /// Bytes of payload in them, for sender reports.
    pub octets: u32,
    /// The packets, each with the interleaved head for [`usual_channel`].
    framed: Bytes,
}

impl Unit {
    /// The packets with interleaved heads for this channel. Copies only for an unusual channel.
    pub fn framed(&self, channel: u8) -> Bytes {
        if channel == usual_channel(self.track) {
            return self.framed.clone();
        }
        let mut copy = BytesMut::from(&self.framed[..]);
        let mut at = 0;
        while let Some(&[_, _, high, low]) = copy.get(at..at + 4) {
            copy[at + 1] = channel;
            at += 4 + usize::from(u16::from_be_bytes([high, low]));
        }
        copy.freeze()
    }
}

/// Sources by their settings, so that equal cameras of one process share one.
static SOURCES: LazyLock<Mutex<HashMap<Settings, Weak<Source>>>> = LazyLock::new(Mutex::default);

/// A stream that can be watched.
#[derive(Debug)]
pub struct Source {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the source and its thread share.
#[derive(Debug)]
struct Shared {
    settings: Settings,
    parameter_sets: ParameterSets,
    units: broadcast::Sender<Arc<Unit>>,
    state: Mutex<State>,
    changed: Condvar,
    /// Of pictures and sound; the same for all viewers, each of which has a connection of its own.
    ssrc: (u32, u32),
}

#[derive(Debug, Default)]
struct State {
    watchers: usize,
    running: bool,
    key_wanted: bool,
    ended: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source {
    /// The source of these settings: the one that there is, or a new one.
    ///
    /// Takes some ten milliseconds of computing for a new one.
    ///
    /// # Errors
    /// When the encoder refuses the settings.
    pub fn shared(settings: &Settings) -> anyhow::Result<Arc<Source>> {
        // Held while a source is made: a hundred equal cameras that start at once make one, not a hundred.
        let mut sources = SOURCES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = sources.get(settings).and_then(Weak::upgrade) {
            return Ok(source);
        }
        sources.retain(|_, source| source.strong_count() > 0);
        let source = Arc::new(Source::new(settings.clone())?);
        sources.insert(settings.clone(), Arc::downgrade(&source));
        Ok(source)
    }

    fn new(settings: Settings) -> anyhow::Result<Source> {
        let parameter_sets =
            Encoder::parameter_sets(settings.bitrate_bps, settings.fps, settings.width, settings.height)?;
        let shared = Shared {
            parameter_sets,
            units: broadcast::Sender::new(QUEUE_UNITS),
            state: Mutex::default(),
            changed: Condvar::new(),
            ssrc: (rand::random(), rand::random()),
            settings,
        };
        Ok(Source { shared: Arc::new(shared), thread: Mutex::default() })
    }

    /// What it looks and sounds like.
    pub fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    /// For SDP.
    pub fn parameter_sets(&self) -> &ParameterSets {
        &self.shared.parameter_sets
    }

    /// The RTP source identifier of a track.
    pub fn ssrc(&self, track: Track) -> u32 {
        match track {
            Track::Video => self.shared.ssrc.0,
            Track::Audio => self.shared.ssrc.1,
        }
    }

    /// Starts to watch. Units come until the [`Watch`] is dropped.
    pub fn watch(self: &Arc<Self>) -> Watch {
        let units = self.shared.units.subscribe();
        let must_start = {
            let mut state = self.shared.state();
            state.watchers += 1;
            !std::mem::replace(&mut state.running, true)
        };
        if must_start {
            self.start();
        }
        Watch { source: self.clone(), units }
    }

    fn start(&self) {
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new()
            .name("camera-source".into())
            .spawn(move || Production::new(&shared).run())
            .inspect_err(|error| tracing::error!(%error, "no thread for a camera's pictures"))
            .ok();
        if thread.is_none() {
            self.shared.state().running = false;
        }
        let before =
            std::mem::replace(&mut *self.thread.lock().unwrap_or_else(PoisonError::into_inner), thread);
        // It has said that it does not run any more, so that this takes no time.
        before.map(JoinHandle::join);
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.shared.state().ended = true;
        self.shared.changed.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // At most the time of one picture, a few milliseconds.
        thread.map(JoinHandle::join);
    }
}

/// So many units were lost, since the watcher did not take them in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} units behind")]
pub struct Lagged(pub u64);

/// One watcher of a source.
#[derive(Debug)]
pub struct Watch {
    source: Arc<Source>,
    units: broadcast::Receiver<Arc<Unit>>,
}

impl Watch {
    /// The next unit; waits for ever if the source's thread has died.
    ///
    /// # Errors
    /// When this watcher was too slow. The next call goes on with what there still is.
    pub async fn next(&mut self) -> Result<Arc<Unit>, Lagged> {
        match self.units.recv().await {
            Ok(unit) => Ok(unit),
            Err(broadcast::error::RecvError::Lagged(units)) => Err(Lagged(units)),
            // The sender lives in the source, which this watcher holds.
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }

    /// Asks for a key frame soon: the next frame, or later if there was one on request within a second.
    pub fn ask_for_key(&self) {
        self.source.shared.state().key_wanted = true;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.source.shared.state().watchers -= 1;
    }
}

/// The thread's own state while it runs.
struct Production<'a> {
    shared: &'a Shared,
    clock: Clock,
    timing: Timing,
    scene: Scene,
    video: Packetizer,
    audio_sequence: u16,
    next_frame: u32,
    /// The first sample of the next packet of sound.
    next_sample: u64,
    is_first: bool,
    /// The last key frame that somebody asked for.
    last_wanted_us: i64,
}

/// Wall-clock time that runs evenly, whatever small steps the machine's clock makes.
struct Clock {
    start: Instant,
    start_us: i64,
}

impl Clock {
    fn new() -> Clock {
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Clock { start: Instant::now(), start_us: unix.as_micros() as i64 }
    }

    fn now_us(&self) -> i64 {
        self.start_us + self.start.elapsed().as_micros() as i64
    }

    /// Goes along where the machine's clock is far ahead, such as after the machine slept. Never goes
    /// back: no frame number comes twice.
    fn follow(&mut self) {
        let machine = Clock::new();
        if machine.start_us - self.now_us() > MAX_LATE_US {
            *self = machine;
        }
    }
}

/// The first sample of the packet of sound that is being heard at a time.
fn first_sample_at(unix_us: i64) -> u64 {
    let samples = (unix_us - EPOCH_MS * 1000).max(0) as u64 * audio::RATE_HZ / 1_000_000;
    samples / audio::PACKET_SAMPLES * audio::PACKET_SAMPLES
}

/// When a sample of sound is due, in microseconds of Unix time.
fn sample_due_us(sample: u64) -> i64 {
    EPOCH_MS * 1000 + (sample * 1_000_000 / audio::RATE_HZ) as i64
}

impl<'a> Production<'a> {
    fn new(shared: &'a Shared) -> Self {
        let settings = &shared.settings;
        let (clock, timing) = (Clock::new(), Timing { fps: settings.fps });
        let now_us = clock.now_us();
        Production {
            shared,
            timing,
            scene: Scene::new(&settings.name, settings.place, settings.width, settings.height, timing),
            video: Packetizer::new(VIDEO_PAYLOAD_TYPE, shared.ssrc.0, rand::random(), MAX_PAYLOAD_BYTES),
            audio_sequence: rand::random(),
            next_frame: timing.frame_at(now_us) + 1,
            next_sample: first_sample_at(now_us),
            is_first: true,
            last_wanted_us: i64::MIN,
            clock,
        }
    }

    fn run(mut self) {
        let settings = &self.shared.settings;
        let mut encoder = match Encoder::new(settings.bitrate_bps, settings.fps) {
            Ok(encoder) => encoder,
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), camera = settings.name, "no pictures");
                self.shared.state().running = false;
                return;
            }
        };
        while self.sleep_until_due() {
            self.leave_out_what_is_too_late();
            // A packet of sound is due when its last sample is.
            let sound_us = sample_due_us(self.next_sample + audio::PACKET_SAMPLES);
            if settings.audio && sound_us <= self.timing.due_us(self.next_frame) {
                self.send_sound();
            } else if let Err(error) = self.send_picture(&mut encoder) {
                tracing::error!(error = format!("{error:#}"), camera = settings.name, "picture lost");
            }
        }
    }

    /// Sleeps until something is due. `false`: nobody watches any more, and the state says that the
    /// thread has ended.
    fn sleep_until_due(&self) -> bool {
        let mut due_us = self.timing.due_us(self.next_frame);
        if self.shared.settings.audio {
            due_us = due_us.min(sample_due_us(self.next_sample + audio::PACKET_SAMPLES));
        }
        let mut state = self.shared.state();
        loop {
            if state.ended || state.watchers == 0 {
                state.running = false;
                return false;
            }
            let wait = Duration::from_micros((due_us - self.clock.now_us()).max(0) as u64);
            if wait.is_zero() {
                return true;
            }
            let waited = self.shared.changed.wait_timeout(state, wait);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn leave_out_what_is_too_late(&mut self) {
        self.clock.follow();
        let now_us = self.clock.now_us();
        if now_us - self.timing.due_us(self.next_frame) > MAX_LATE_US {
            let frame = self.timing.frame_at(now_us);
            let camera = &self.shared.settings.name;
            tracing::warn!(camera, left_out = frame - self.next_frame, "too slow: frames left out");
            self.next_frame = frame;
            self.next_sample = first_sample_at(now_us);
        }
    }

    fn send_picture(&mut self, encoder: &mut Encoder) -> anyhow::Result<()> {
        let frame = self.next_frame;
        self.next_frame = frame.wrapping_add(1);
        let taken_us = self.timing.due_us(frame);
        let is_key = self.takes_key(frame, taken_us);

        let picture = self.scene.draw(frame);
        let stream = encoder.encode(picture, is_key, (taken_us / 1000) as u64)?;
        let rtp_time = (u64::from(frame) * VIDEO_CLOCK_HZ / u64::from(self.timing.fps)) as u32;
        let sequence = self.video.next_sequence();
        let mut framing = Framing::new(Track::Video, stream.len());
        self.video.packetize(annexb_nals(stream), rtp_time, |head, payload| framing.put(head, payload));
        let next_audio = (self.audio_sequence, self.next_sample as u32);
        self.publish(framing, Some(frame), is_key, taken_us, rtp_time, sequence, next_audio);
        Ok(())
    }

    /// Whether this frame becomes a key frame: the first, by the interval, or since somebody asked.
    fn takes_key(&mut self, frame: u32, taken_us: i64) -> bool {
        let mut state = self.shared.state();
        let pause_over = taken_us.saturating_sub(self.last_wanted_us) >= KEY_PAUSE_US;
        let is_first = std::mem::take(&mut self.is_first);
        // The first one is made for the watcher that started the thread, whether it has asked yet or not.
        let granted = is_first || state.key_wanted && pause_over;
        if granted {
            self.last_wanted_us = taken_us;
        }
        let is_key = granted || frame.is_multiple_of(self.shared.settings.key_interval);
        if is_key {
            state.key_wanted = false;
        }
        is_key
    }

    fn send_sound(&mut self) {
        let first = self.next_sample;
        self.next_sample += audio::PACKET_SAMPLES;
        let sequence = self.audio_sequence;
        self.audio_sequence = sequence.wrapping_add(1);
        let payload = audio::packet(first);
        let rtp_time = first as u32;
        let mut framing = Framing::new(Track::Audio, payload.len());
        framing
            .put(&rtp::header(false, AUDIO_PAYLOAD_TYPE, sequence, rtp_time, self.shared.ssrc.1), &payload);
        let next_audio = (self.audio_sequence, self.next_sample as u32);
        self.publish(framing, None, true, sample_due_us(first), rtp_time, sequence, next_audio);
    }

    #[allow(clippy::too_many_arguments)] // the fields of the one value that is made here
    fn publish(
        &self,
        framing: Framing,
        frame: Option<u32>,
        is_key: bool,
        taken_us: i64,
        rtp_time: u32,
        sequence: u16,
        next_audio: (u16, u32),
    ) {
        let Framing { track, packets, octets, framed } = framing;
        let framed = framed.freeze();
        let unit =
            Unit { track, frame, is_key, taken_us, rtp_time, sequence, next_audio, packets, octets, framed };
        // Fails only when nobody watches any more, which the thread notices by itself.
        let _ = self.shared.units.send(Arc::new(unit));
    }
}

/// RTP packets one after the other, each with its interleaved head.
struct Framing {
    track: Track,
    packets: u32,
    octets: u32,
    framed: BytesMut,
}

impl Framing {
    fn new(track: Track, payload_bytes: usize) -> Framing {
        // 20 bytes of heads per packet.
        let capacity = payload_bytes + (payload_bytes / MAX_PAYLOAD_BYTES + 4) * 20;
        Framing { track, packets: 0, octets: 0, framed: BytesMut::with_capacity(capacity) }
    }

    fn put(&mut self, head: &[u8], payload: &[u8]) {
        let length = head.len() + payload.len();
        let interleaved = rtsp::interleaved_head(usual_channel(self.track), length)
            .expect("packets are far shorter than 64 kB");
        self.framed.put_slice(&interleaved);
        self.framed.put_slice(head);
        self.framed.put_slice(payload);
        self.packets += 1;
        self.octets += (length - rtp::HEADER_LEN) as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(name: &str) -> Settings {
        Settings {
            name: name.into(),
            place: None,
            width: 320,
            height: 180,
            fps: 25,
            key_interval: 50,
            bitrate_bps: 200_000,
            audio: true,
        }
    }

    async fn next(watch: &mut Watch) -> Arc<Unit> {
        tokio::time::timeout(Duration::from_secs(5), watch.next()).await.expect("a unit in time").unwrap()
    }

    /// Goal: equal cameras cost one encoder, and it runs only while somebody watches.
    #[tokio::test]
    async fn equal_cameras_share_a_source_that_runs_while_watched() {
        let source = Source::shared(&settings("shared")).unwrap();
        assert!(Arc::ptr_eq(&source, &Source::shared(&settings("shared")).unwrap()));
        assert!(!Arc::ptr_eq(&source, &Source::shared(&settings("other")).unwrap()));
        assert!(!source.shared.state().running);

        let (mut one, mut two) = (source.watch(), source.watch());
        let (from_one, from_two) = (next(&mut one).await, next(&mut two).await);
        assert!(Arc::ptr_eq(&from_one, &from_two), "made once for both");
        drop((one, two));
        let deadline = Instant::now() + Duration::from_secs(5);
        while source.shared.state().running {
            assert!(Instant::now() < deadline, "the thread goes on without a watcher");
            tokio::task::yield_now().await;
        }
        next(&mut source.watch()).await;

        let shared = Arc::downgrade(&source.shared);
        drop(source);
        assert_eq!(shared.strong_count(), 0, "the thread has ended with its source");
    }

    /// Goal: numbers, timestamps and sequence numbers are complete and agree with the time, over an
    /// interruption too.
    #[tokio::test]
    async fn numbers_rise_by_one_and_go_on_by_time() {
        let source = Source::shared(&settings("numbers")).unwrap();
        let mut before: Option<u32> = None;
        for _ in 0..2 {
            let mut watch = source.watch();
            let (mut sequence, mut sample, mut last) = (None, None, None);
            let mut pictures = 0;
            while pictures < 12 {
                let unit = next(&mut watch).await;
                if unit.track == Track::Audio {
                    assert!(sample.is_none_or(|expected| unit.rtp_time == expected));
                    sample = Some(unit.rtp_time + audio::PACKET_SAMPLES as u32);
                    continue;
                }
                let frame = unit.frame.unwrap();
                assert!(last.is_none_or(|last| frame == last + 1), "{frame} after {last:?}");
                assert!(sequence.is_none_or(|expected| unit.sequence == expected));
                // The second time the thread may not yet have ended, and then goes on.
                let is_first = last.is_none() && before.is_none();
                assert_eq!(unit.is_key, is_first || frame % 50 == 0 || last.is_none() && unit.is_key);
                assert_eq!(unit.rtp_time, (u64::from(frame) * 90_000 / 25) as u32);
                let late_us = Clock::new().now_us() - unit.taken_us;
                assert!((0..1_500_000).contains(&late_us), "taken {late_us} µs ago");
                sequence = Some(unit.sequence.wrapping_add(unit.packets as u16));
                last = Some(frame);
                pictures += 1;
            }
            assert!(before.is_none_or(|before| last.unwrap() >= before + 12));
            before = last;
        }
    }

    /// Goal: a newcomer has a key frame at once, and a hundred newcomers do not make everything one.
    #[tokio::test]
    async fn key_frames_on_request_come_soon_and_not_too_often() {
        let source =
            Source::shared(&Settings { key_interval: u32::MAX, audio: false, ..settings("keys") }).unwrap();
        let mut watch = source.watch();
        let (mut last_key_us, mut keys, mut late) = (None, 0, 0);
        for _ in 0..70 {
            watch.ask_for_key();
            let unit = next(&mut watch).await;
            let since_us = last_key_us.map(|last| unit.taken_us - last);
            if unit.is_key {
                assert!(since_us.is_none_or(|since| since >= KEY_PAUSE_US), "{since_us:?}");
                (last_key_us, late) = (Some(unit.taken_us), 0);
                keys += 1;
            }
            // Counted in pictures, not in time: a busy machine leaves some out.
            late += usize::from(since_us.is_some_and(|since| since > KEY_PAUSE_US) && !unit.is_key);
            assert!(last_key_us.is_some() && late <= 2, "{late} pictures after the pause");
        }
        assert!(keys >= 2, "{keys} key frames");
    }

    /// Goal: a watcher that sleeps is told how much it lost; the others are not held up.
    #[tokio::test]
    async fn who_does_not_keep_up_is_told() {
        let source = Source::shared(&Settings { fps: 30, ..settings("slow") }).unwrap();
        let (mut slow, mut quick) = (source.watch(), source.watch());
        for _ in 0..QUEUE_UNITS + 10 {
            next(&mut quick).await;
        }
        assert!(matches!(slow.next().await, Err(Lagged(units)) if units >= 10));
        assert!(slow.next().await.is_ok(), "and can go on");
    }

    #[test]
    fn another_channel_is_written_into_every_head() {
        let mut framing = Framing::new(Track::Video, 10);
        framing.put(&[1; 12], b"one");
        framing.put(&[2; 12], b"three");
        let Framing { track, packets, octets, framed } = framing;
        let unit = Unit {
            track,
            frame: Some(1),
            is_key: true,
            taken_us: 0,
            rtp_time: 0,
            sequence: 0,
            next_audio: (0, 0),
            packets,
            octets,
            framed: framed.freeze(),
        };
        assert_eq!((unit.packets, unit.octets), (2, 8));
        let (usual, moved) = (unit.framed(0), unit.framed(6));
        assert_eq!(usual.len(), 4 + 15 + 4 + 17);
        let changed: Vec<usize> = (0..usual.len()).filter(|at| usual[*at] != moved[*at]).collect();
        assert_eq!(changed, [1, 20]);
        assert_eq!((moved[1], moved[20]), (6, 6));
    }
}
