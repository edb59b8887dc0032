//! Live: one stream from the camera, any number of viewers.
//!
//! 1. The camera's session publishes each picture as it comes, with the sound since the one before.
//! 2. The [`Hub`] keeps the current group of pictures, so that a viewer sees something at once, and passes
//!    everything on to the viewers' queues.
//! 3. [`serve`] is one viewer's WebSocket: `start`, the initialisation segment, the current group, then a
//!    fragment per picture.
//!
//! No picture is held back to learn how long it lasts: it is taken to last as long as the one before, and the
//! next one's decode time says better. A fragment's bytes are put together once, when the first viewer needs
//! them, and shared.
//!
//! A viewer that does not keep up loses its place in the queue: it goes on with the current group of pictures
//! and is told how many frames it has missed. It never slows the camera or another viewer.
//!
//! Not here: what is recorded, and who may watch.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use homing_base::{Leave, Stop};
use homing_media::h264::{ParameterSets, Reordering};
use homing_media::mp4::{Run, Sample, SampleEntry, fragment_head, init_segment, mime};
use homing_media::time::{TICKS_PER_SECOND, Ticks, rescale};
use homing_protocol::api::ProblemDetail;
use homing_protocol::api::recording::LiveMessage;
use tokio::sync::broadcast;

use crate::frames::{AudioFrame, VideoFrame};
use crate::metrics::Metrics;
use crate::writer::timestamp;

/// Fragments that may wait for a viewer; then it skips. 64 are 2 s at 30 frames a second.
const QUEUE: usize = 64;

/// A group of pictures larger than this is not kept for new viewers: they wait for the next key frame.
const GROUP_BYTES: usize = 8 * 1024 * 1024;

/// Sound goes with the next picture, or alone when so much has gathered.
const AUDIO_ALONE: Ticks = 6 * TICKS_PER_SECOND / 100;

/// A camera that announced sound and sends none for so long is played without: a player would wait for it.
const AUDIO_PATIENCE: Ticks = 3 * TICKS_PER_SECOND;

/// For a viewer to take a message.
const SEND_DEADLINE: Duration = Duration::from_secs(20);

/// How often a silent connection is checked.
const PING: Duration = Duration::from_secs(20);

/// One camera's live stream.
pub(crate) struct Hub {
    camera: i64,
    state: Mutex<State>,
    events: broadcast::Sender<Event>,
}

struct State {
    start: Option<Arc<Start>>,
    waiting: Waiting,
    /// Since the last key frame.
    group: Vec<Arc<Item>>,
    group_bytes: usize,
    sequence: u64,
    pending_audio: Vec<AudioFrame>,
    last_audio: Option<Ticks>,
    audio_since: Ticks,
    sets: Option<Arc<ParameterSets>>,
    has_b_slices: bool,
    last_decode: Ticks,
}

#[derive(Clone)]
struct Waiting {
    code: String,
    reason: String,
}

/// What viewers are told.
#[derive(Clone)]
enum Event {
    Item(Arc<Item>),
    Waiting(Waiting),
}

/// How the stream is coded.
struct Start {
    mime: String,
    init: Bytes,
    audio: Option<SampleEntry>,
    sets: Arc<ParameterSets>,
    has_b_slices: bool,
}

/// A picture with sound, or sound alone.
struct Item {
    start: Arc<Start>,
    sequence: u64,
    time: Ticks,
    /// Picture, decode time, duration.
    video: Option<(VideoFrame, Ticks)>,
    audio: Vec<AudioFrame>,
    fragment: OnceLock<Bytes>,
}

impl Hub {
    pub fn new(camera: i64) -> Self {
        Self {
            camera,
            state: Mutex::new(State {
                start: None,
                waiting: Waiting { code: "connecting".into(), reason: "Connecting to the camera.".into() },
                group: Vec::new(),
                group_bytes: 0,
                sequence: 0,
                pending_audio: Vec::new(),
                last_audio: None,
                audio_since: 0,
                sets: None,
                has_b_slices: false,
                last_decode: Ticks::MIN,
            }),
            events: broadcast::Sender::new(QUEUE),
        }
    }

    /// Passes a picture on. `audio` is how the session's sound is coded.
    pub fn publish_video(&self, frame: VideoFrame, audio: Option<&SampleEntry>) {
        let mut state = self.lock();
        if let Some(sets) = &frame.parameter_sets {
            state.sets = Some(sets.clone());
        }
        state.has_b_slices |= frame.has_b_slices;
        if frame.is_key {
            state.begin_group(&frame, audio);
        }
        let Some(start) = state.start.clone() else { return };
        let decode = state.decode_time(&frame, start.has_b_slices);
        let audio = std::mem::take(&mut state.pending_audio);
        self.pass(&mut state, start, frame.time, Some((frame, decode)), audio);
    }

    /// Passes sound on, with the next picture as a rule.
    pub fn publish_audio(&self, frame: AudioFrame) {
        let mut state = self.lock();
        let Some(start) = state.start.clone() else { return };
        let Some(rate) = start.audio.as_ref().map(SampleEntry::timescale) else {
            // Seen, so that the next group of pictures has it again.
            state.last_audio = Some(state.last_decode);
            return;
        };
        state.last_audio = Some(rescale(frame.start, rate, 90_000));
        state.pending_audio.push(frame);
        let first = state.pending_audio[0].start;
        let end = state.pending_audio.last().map_or(first, |last| last.start + i64::from(last.samples));
        if end - first >= rescale(AUDIO_ALONE, 90_000, rate) {
            let audio = std::mem::take(&mut state.pending_audio);
            self.pass(&mut state, start, rescale(first, rate, 90_000), None, audio);
        }
    }

    fn pass(
        &self,
        state: &mut State,
        start: Arc<Start>,
        time: Ticks,
        video: Option<(VideoFrame, Ticks)>,
        audio: Vec<AudioFrame>,
    ) {
        let audio = if start.audio.is_some() { audio } else { Vec::new() };
        state.sequence += 1;
        state.group_bytes += video.as_ref().map_or(0, |(frame, _)| frame.data.len());
        let item = Item { start, sequence: state.sequence, time, video, audio, fragment: OnceLock::new() };
        let item = Arc::new(item);
        if state.group_bytes > GROUP_BYTES {
            // Those who watch go on; new viewers wait for the next key frame.
            state.group = Vec::new();
        } else {
            state.group.push(item.clone());
        }
        // An error means that nobody watches.
        let _ = self.events.send(Event::Item(item));
    }

    /// The camera delivers nothing, for that reason.
    pub fn wait(&self, problem: &ProblemDetail) {
        let mut state = self.lock();
        let waiting = Waiting { code: problem.code.clone(), reason: problem.message.clone() };
        state.waiting = waiting.clone();
        state.start = None;
        state.sets = None;
        state.has_b_slices = false;
        state.last_audio = None;
        state.last_decode = Ticks::MIN;
        (state.group, state.pending_audio) = (Vec::new(), Vec::new());
        let _ = self.events.send(Event::Waiting(waiting));
    }

    /// What a viewer gets at once, and what comes then. Nothing is missed in between.
    fn subscribe(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let state = self.lock();
        let events = self.events.subscribe();
        let at_once = match state.start {
            Some(_) => state.group.iter().cloned().map(Event::Item).collect(),
            None => vec![Event::Waiting(state.waiting.clone())],
        };
        (at_once, events)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// A key frame: everything about the stream may change here, and only here.
    fn begin_group(&mut self, frame: &VideoFrame, audio: Option<&SampleEntry>) {
        (self.group, self.group_bytes) = (Vec::new(), 0);
        let Some(sets) = self.sets.clone() else { return };
        if self.start.is_none() {
            self.audio_since = frame.time;
        }
        let heard = self.last_audio.unwrap_or(self.audio_since);
        let audio = audio.filter(|_| frame.time - heard <= AUDIO_PATIENCE);
        let is_same = self.start.as_ref().is_some_and(|start| {
            start.sets == sets && start.has_b_slices == self.has_b_slices && start.audio.as_ref() == audio
        });
        if !is_same {
            self.start = Some(Arc::new(Start::new(sets, self.has_b_slices, audio.cloned())));
        }
    }

    /// Decode times must rise; without reordered frames they are the times of showing.
    fn decode_time(&mut self, frame: &VideoFrame, has_b_slices: bool) -> Ticks {
        let wanted = if has_b_slices && self.last_decode > Ticks::MIN {
            frame.time.min(self.last_decode + frame.likely_duration)
        } else {
            frame.time
        };
        self.last_decode = wanted.max(self.last_decode.saturating_add(1));
        self.last_decode
    }
}

impl Start {
    fn new(sets: Arc<ParameterSets>, has_b_slices: bool, audio: Option<SampleEntry>) -> Self {
        // No B slice was seen: promise the decoder that none comes, so that it shows each picture at once.
        // Should one come, the next key frame brings another `start` without the promise.
        let prompt =
            (!has_b_slices && sets.reordering() == Reordering::Unstated).then(|| sets.without_reordering());
        let shown = prompt.flatten().map_or_else(|| sets.clone(), Arc::new);
        let mut entries = vec![SampleEntry::Avc(shown)];
        entries.extend(audio.clone());
        Self { mime: mime(&entries), init: init_segment(&entries).into(), audio, sets, has_b_slices }
    }
}

impl Item {
    fn is_key(&self) -> bool {
        self.video.as_ref().is_some_and(|(frame, _)| frame.is_key)
    }

    fn fragment(&self) -> Bytes {
        self.fragment.get_or_init(|| self.make_fragment()).clone()
    }

    fn make_fragment(&self) -> Bytes {
        let video = self.video.as_ref().map(|(frame, decode)| {
            let sample = Sample {
                size: frame.data.len() as u32,
                duration: frame.likely_duration.clamp(1, 10 * TICKS_PER_SECOND) as u32,
                offset: (frame.time - decode) as i32,
                is_key: frame.is_key,
            };
            (*decode, [sample])
        });
        let audio: Vec<Sample> = self
            .audio
            .iter()
            .map(|frame| Sample {
                size: frame.data.len() as u32,
                duration: frame.samples,
                offset: 0,
                is_key: true,
            })
            .collect();
        let audio_start = self.audio.first().map_or(0, |frame| frame.start);
        let mut runs = Vec::with_capacity(2);
        if let Some((decode, samples)) = &video {
            runs.push(Run { track: 1, start: decode.max(&0).cast_unsigned(), samples });
        }
        runs.push(Run { track: 2, start: audio_start.max(0).cast_unsigned(), samples: &audio });
        let mut out = fragment_head(self.sequence as u32, None, &runs);
        if let Some((frame, _)) = &self.video {
            out.extend_from_slice(&frame.data);
        }
        self.audio.iter().for_each(|frame| out.extend_from_slice(&frame.data));
        out.into()
    }
}

/// Serves one viewer until it goes, is too slow to be served at all, may not watch any more, or the role stops.
pub(crate) async fn serve(
    socket: WebSocket,
    hub: Arc<Hub>,
    metrics: Arc<Metrics>,
    leave: Option<Leave>,
    stop: Stop,
) {
    metrics.viewers.inc();
    let (mut sink, mut incoming) = socket.split();
    let is_alive = AtomicBool::new(true);
    let watching = async {
        let mut viewer = Viewer { camera: hub.camera, start: None, last: None };
        let mut ping = tokio::time::interval(PING);
        let mut messages = Vec::new();
        let (at_once, mut events) = hub.subscribe();
        at_once.iter().for_each(|event| viewer.take(event, &mut messages));
        loop {
            for message in messages.drain(..) {
                match tokio::time::timeout(SEND_DEADLINE, sink.send(message)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) | Err(_) => return,
                }
            }
            tokio::select! {
                event = events.recv() => match event {
                    Ok(event) => viewer.take(&event, &mut messages),
                    Err(broadcast::error::RecvError::Closed) => return,
                    Err(broadcast::error::RecvError::Lagged(_)) => {
                        let (at_once, again) = hub.subscribe();
                        events = again;
                        let skipped = viewer.skip(&at_once, &mut messages);
                        metrics.viewer_skipped_frames.inc_by(skipped);
                        at_once.iter().for_each(|event| viewer.take(event, &mut messages));
                    }
                },
                _ = ping.tick() => {
                    if !is_alive.swap(false, Ordering::Relaxed) {
                        return;
                    }
                    messages.push(Message::Ping(Bytes::new()));
                }
            }
        }
    };
    // Whatever a viewer says shows that it lives; there is nothing else it could say.
    let listening = async {
        while let Some(Ok(_)) = incoming.next().await {
            is_alive.store(true, Ordering::Relaxed);
        }
    };
    let withdrawn = async {
        match leave {
            Some(mut leave) => leave.withdrawn().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = watching => {}
        () = listening => {}
        () = withdrawn => {}
        () = stop.cancelled() => {}
    }
    metrics.viewers.dec();
}

/// What one viewer has been told.
struct Viewer {
    camera: i64,
    start: Option<Arc<Start>>,
    /// Sequence number of the last item.
    last: Option<u64>,
}

impl Viewer {
    fn take(&mut self, event: &Event, messages: &mut Vec<Message>) {
        match event {
            Event::Waiting(waiting) => {
                (self.start, self.last) = (None, None);
                let reason = waiting.reason.clone();
                messages.push(text(&LiveMessage::Waiting { code: waiting.code.clone(), reason }));
            }
            Event::Item(item) => {
                if self.last.is_some_and(|last| item.sequence <= last) {
                    return;
                }
                if !self.start.as_ref().is_some_and(|start| Arc::ptr_eq(start, &item.start)) {
                    if !item.is_key() {
                        return;
                    }
                    self.start = Some(item.start.clone());
                    let (mime, time) = (item.start.mime.clone(), timestamp(item.time));
                    messages.push(text(&LiveMessage::Start { camera: self.camera, mime, time }));
                    messages.push(Message::Binary(item.start.init.clone()));
                }
                self.last = Some(item.sequence);
                messages.push(Message::Binary(item.fragment()));
            }
        }
    }

    /// The viewer goes on with these events; gives how many items it misses.
    fn skip(&mut self, at_once: &[Event], messages: &mut Vec<Message>) -> u64 {
        let next = at_once.iter().find_map(|event| match event {
            Event::Item(item) => Some(item.sequence),
            Event::Waiting(_) => None,
        });
        let Some(next) = next else {
            // The group is not kept: wait for a key frame.
            self.start = None;
            return 0;
        };
        let Some(last) = self.last else { return 0 };
        let frames = next.saturating_sub(last + 1);
        if frames > 0 {
            messages.push(text(&LiveMessage::Skipped { frames }));
        }
        frames
    }
}

fn text(message: &LiveMessage) -> Message {
    let json = serde_json::to_string(message).expect("strings and numbers are JSON");
    Message::Text(json.into())
}
