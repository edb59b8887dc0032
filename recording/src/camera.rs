//! One camera's life: connect, play, record and show, and again after every end.
//!
//! 1. Connect through whatever leads to the device, on the runtime that its tunnel lives on.
//! 2. RTSP session; its frames go to the hub (live) at once, and as fragments to the writer.
//! 3. When it ends, the gap is noted with its cause, viewers are told, and it is tried again: at once the
//!    first time, then at growing, jittered intervals, and at once whenever the device is said to be back.
//!
//! Not here: what an RTSP message looks like, how files are written.
//!
//! Invariant: a camera has one session at a time, and recordings of one camera never overlap.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use homing_base::rtsp::{Event, Session, SessionError};
use homing_base::{Stop, Workers};
use homing_media::time::{TICKS_PER_SECOND, Ticks};
use homing_protocol::api::ProblemDetail;
use homing_protocol::api::recording::{Camera as CameraView, CameraState, CameraStatus, DeviceAddress};
use homing_protocol::secret::Credentials;
use homing_protocol::{SerialNumber, Step};
use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::sync::mpsc::Sender;

use crate::catalog::Catalog;
use crate::connect::{ConnectError, Connectors};
use crate::fragment::{Fragment, Fragmenter, Interruption, InterruptionCause};
use crate::frames::{Assembler, Counts, Frame};
use crate::index::Note;
use crate::live::Hub;
use crate::metrics::Metrics;
use crate::now;
use crate::rtsp::{self, OpenError};
use crate::writer::{Dropped, Writer, timestamp};

/// Before the second try after a loss.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A session that lasted so long was a good one: the pauses begin anew.
const STABLE: Duration = Duration::from_secs(30);

/// From the first byte of the session to the first whole key frame. A camera that sends one every 30 s exists.
const FIRST_FRAME: Duration = Duration::from_secs(60);

/// RTSP's own port, RFC 2326 §3.2.
pub(crate) const RTSP_PORT: u16 = 554;

/// What all cameras share.
pub(crate) struct Shared {
    pub connectors: Connectors,
    pub workers: Workers,
    pub writer: Writer,
    pub catalog: Catalog,
    pub notes: Sender<Note>,
    pub metrics: Arc<Metrics>,
    /// The longest fragment.
    pub fragment_length: Ticks,
}

/// One camera.
pub(crate) struct Camera {
    pub id: i64,
    pub hardware: i64,
    pub serial: SerialNumber,
    pub added: Ticks,
    pub hub: Arc<Hub>,
    device: Mutex<DeviceAddress>,
    stream_url: String,
    credentials: Mutex<Credentials>,
    name: Mutex<String>,
    status: Mutex<Status>,
    /// Ticks; 0 before the first.
    last_frame: AtomicI64,
    bitrate_bps: AtomicU64,
    /// Time of the last session's first picture.
    session_began: AtomicI64,
    /// End of what is recorded, or about to be.
    recorded_until: AtomicI64,
    wake: Notify,
    stop: Stop,
}

#[derive(Clone)]
struct Status {
    state: CameraState,
    since: Timestamp,
    problem: Option<ProblemDetail>,
}

/// What a camera is made of.
pub(crate) struct NewCamera {
    pub id: i64,
    pub hardware: i64,
    pub serial: SerialNumber,
    pub name: String,
    pub device: DeviceAddress,
    pub stream_url: String,
    pub credentials: Credentials,
    pub added: Ticks,
    /// The end of what is recorded of it.
    pub recorded_until: Ticks,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Session(#[from] OpenError),
    #[error("the camera plays, but sent no whole key frame within {} s; shorten its key frame interval (GOV length)", FIRST_FRAME.as_secs())]
    NoKeyFrame,
    #[error("asked to end")]
    Stopped,
}

impl Ended {
    fn problem(&self) -> ProblemDetail {
        match self {
            Self::Connect(error) => error.problem(),
            Self::Session(error) => error.problem(),
            Self::NoKeyFrame => {
                ProblemDetail { code: "no-key-frame".into(), message: self.to_string(), step: None }
            }
            Self::Stopped => ProblemDetail { code: "stopped".into(), message: self.to_string(), step: None },
        }
    }
}

impl Camera {
    /// Not started yet.
    pub fn new(new: NewCamera, stop: &Stop, metrics: &Metrics) -> Arc<Self> {
        metrics.cameras_connecting.inc();
        Arc::new(Self {
            id: new.id,
            hardware: new.hardware,
            serial: new.serial,
            added: new.added,
            hub: Arc::new(Hub::new(new.id)),
            device: Mutex::new(new.device),
            stream_url: new.stream_url,
            credentials: Mutex::new(new.credentials),
            name: Mutex::new(new.name),
            status: Mutex::new(Status {
                state: CameraState::Connecting,
                since: Timestamp::now(),
                problem: None,
            }),
            last_frame: AtomicI64::new(0),
            bitrate_bps: AtomicU64::new(0),
            session_began: AtomicI64::new(0),
            recorded_until: AtomicI64::new(new.recorded_until),
            wake: Notify::new(),
            stop: stop.child(),
        })
    }

    /// Begins its life on the next worker.
    pub fn start(self: &Arc<Self>, shared: &Arc<Shared>) {
        let (camera, shared) = (self.clone(), shared.clone());
        let worker = shared.workers.next();
        self.stop.spawn_on(async move { camera.live(&shared).await }, &worker);
    }

    /// Ends it; its footage stays.
    pub fn end(&self) {
        self.stop.stop();
    }

    /// The device is said to be reachable again: no more waiting.
    pub fn try_now(&self) {
        self.wake.notify_one();
    }

    /// From the next attempt on it is looked for there.
    pub fn follow(&self, device: DeviceAddress) {
        *self.device.lock().unwrap_or_else(PoisonError::into_inner) = device;
    }

    fn device(&self) -> DeviceAddress {
        self.device.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn rename(&self, name: &str) {
        name.clone_into(&mut self.name.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub fn name(&self) -> String {
        self.name.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn is_recording(&self) -> bool {
        self.status().state == CameraState::Recording
    }

    /// Time of the first picture of the session that plays now.
    pub fn plays_since(&self) -> Option<Ticks> {
        self.is_recording().then(|| self.session_began.load(Ordering::Relaxed))
    }

    pub fn view(&self) -> CameraView {
        let status = self.status().clone();
        let last_frame = self.last_frame.load(Ordering::Relaxed);
        let is_recording = status.state == CameraState::Recording;
        CameraView {
            id: self.id,
            hardware: self.hardware,
            serial: self.serial,
            name: self.name(),
            status: CameraStatus {
                state: status.state,
                since: status.since,
                problem: status.problem,
                bitrate_bps: if is_recording { self.bitrate_bps.load(Ordering::Relaxed) } else { 0 },
                last_frame: (last_frame != 0).then(|| timestamp(last_frame)),
            },
        }
    }

    fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_state(&self, state: CameraState, problem: Option<ProblemDetail>, metrics: &Metrics) {
        let gauge = |state| match state {
            CameraState::Connecting => &metrics.cameras_connecting,
            CameraState::Recording => &metrics.cameras_recording,
            CameraState::Error => &metrics.cameras_error,
        };
        let mut status = self.status();
        if status.state != state {
            gauge(status.state).dec();
            gauge(state).inc();
            (status.state, status.since) = (state, Timestamp::now());
        }
        status.problem = problem;
    }

    /// Until it is ended.
    async fn live(self: Arc<Self>, shared: &Arc<Shared>) {
        let mut pause = FIRST_PAUSE;
        while !self.stop.is_stopped() {
            let begun = tokio::time::Instant::now();
            shared.metrics.connects.inc();
            let ended = self.session_at_home(shared).await;
            if self.stop.is_stopped() {
                break;
            }
            let problem = ended.problem();
            let was_recording = self.is_recording();
            if was_recording {
                tracing::warn!(camera = self.id, serial = %self.serial, problem = problem.message, "recording interrupted");
            } else {
                tracing::info!(camera = self.id, serial = %self.serial, problem = problem.message, "no stream");
            }
            self.gap_began(shared, &problem);
            self.hub.wait(&problem);
            self.set_state(CameraState::Error, Some(problem), &shared.metrics);
            if was_recording && begun.elapsed() >= STABLE {
                pause = FIRST_PAUSE;
            }
            // Half to whole: cameras that were lost together do not come back together.
            let jittered = pause.mul_f64(rand::random_range(0.5..1.0));
            tokio::select! {
                () = tokio::time::sleep(jittered) => pause = (pause * 2).min(LONGEST_PAUSE),
                () = self.wake.notified() => pause = FIRST_PAUSE,
                () = self.stop.cancelled() => break,
            }
        }
        let (code, message) = ("server-stopped", "The recording server was stopped.");
        self.gap_began(shared, &ProblemDetail { code: code.into(), message: message.into(), step: None });
        let state = self.status().state;
        self.set_state(CameraState::Connecting, None, &shared.metrics);
        shared.metrics.cameras_connecting.dec();
        tracing::debug!(camera = self.id, ?state, "ended");
    }

    fn gap_began(&self, shared: &Shared, problem: &ProblemDetail) {
        let at = match self.recorded_until.load(Ordering::Relaxed) {
            Ticks::MIN => self.added,
            end => end,
        };
        let (code, message) = (problem.code.clone(), problem.message.clone());
        self.note(shared, Note::GapBegan { camera: self.id, at, code, message });
    }

    fn note(&self, shared: &Shared, note: Note) {
        if shared.notes.try_send(note).is_err() {
            tracing::warn!(camera = self.id, "the cause of a gap is lost: the database does not keep up");
        }
    }

    /// The device takes this user and password.
    fn learn(&self, shared: &Shared, credentials: Credentials) {
        tracing::info!(camera = self.id, serial = %self.serial, "the device's password was changed; learnt from its tunnel server");
        *self.credentials.lock().unwrap_or_else(PoisonError::into_inner) = credentials.clone();
        let (hardware, serial) = (self.hardware, self.serial);
        self.note(shared, Note::Credentials { hardware, serial, credentials });
    }

    /// A session on the runtime that the device's tunnel lives on.
    async fn session_at_home(self: &Arc<Self>, shared: &Arc<Shared>) -> Ended {
        let Some(home) = shared.connectors.runtime(&self.device()) else {
            return self.session(shared).await;
        };
        let (camera, shared) = (self.clone(), shared.clone());
        let session = self.stop.spawn_on(async move { camera.session(&shared).await }, &home);
        session.await.unwrap_or(Ended::Stopped)
    }

    /// Through a tunnel RTSP has the standard port, whatever it is at the site.
    fn rtsp_port(&self) -> u16 {
        let stated = match self.device() {
            DeviceAddress::Tunnel { .. } => None,
            _ => url::Url::parse(&self.stream_url).ok().and_then(|url| url.port()),
        };
        stated.unwrap_or(RTSP_PORT)
    }

    async fn session(&self, shared: &Shared) -> Ended {
        let open = async |credentials| {
            let port = self.rtsp_port();
            let stream = shared.connectors.connect(&self.device(), port).await?;
            Ok::<_, Ended>(rtsp::open(stream, &self.stream_url, credentials).await?)
        };
        let opened = async {
            let mine = self.credentials.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let opened = open(mine.clone()).await;
            let Err(Ended::Session(OpenError::Session(SessionError::WrongCredentials))) = opened else {
                return opened;
            };
            // Its tunnel server knows if they were changed.
            let now = shared.connectors.credentials(&self.device()).await.filter(|now| *now != mine);
            let Some(now) = now else { return opened };
            let opened = open(now.clone()).await?;
            self.learn(shared, now);
            Ok(opened)
        };
        let (mut session, tracks) = tokio::select! {
            opened = opened => match opened {
                Ok(opened) => opened,
                Err(ended) => return ended,
            },
            () = self.stop.cancelled() => return Ended::Stopped,
        };
        let not_before = self.recorded_until.load(Ordering::Relaxed);
        let Some(assembler) = Assembler::new(&tracks, not_before) else {
            return OpenError::NoVideo("its description has no video".into()).into();
        };
        tracing::debug!(camera = self.id, step = %Step::Add, tracks = tracks.len(), "playing");
        let mut play = Play::new(self, shared, assembler);
        let ended = tokio::select! {
            ended = play.run(&mut session) => ended,
            () = self.stop.cancelled() => Ended::Stopped,
        };
        play.end();
        session.close().await;
        ended
    }
}

/// What is known while a session plays.
struct Play<'a> {
    camera: &'a Camera,
    shared: &'a Shared,
    assembler: Assembler,
    fragmenter: Fragmenter,
    counted: Counts,
    bytes: u64,
    /// Fragments are being dropped, since the end of the last good one.
    dropping: bool,
    has_frames: bool,
}

impl<'a> Play<'a> {
    fn new(camera: &'a Camera, shared: &'a Shared, assembler: Assembler) -> Self {
        let fragmenter = Fragmenter::new(shared.fragment_length, assembler.audio_entry().cloned());
        Self {
            camera,
            shared,
            assembler,
            fragmenter,
            counted: Counts::default(),
            bytes: 0,
            dropping: false,
            has_frames: false,
        }
    }

    async fn run(&mut self, session: &mut Session) -> Ended {
        let deadline = tokio::time::Instant::now() + FIRST_FRAME;
        // The clock is read once per read from the network, not once per packet.
        let mut arrived = now();
        loop {
            if !session.has_buffered() {
                arrived = Ticks::MIN;
            }
            match session.next().await {
                Ok(Event::Packet(packet)) => {
                    if arrived == Ticks::MIN {
                        arrived = now();
                    }
                    self.bytes += packet.payload.len() as u64;
                    self.assembler.push(packet.channel, &packet.payload, arrived);
                    drop(packet);
                    while let Some(frame) = self.assembler.pop() {
                        self.frame(frame);
                    }
                }
                Ok(Event::Tick) => {
                    for (channel, report) in self.assembler.receiver_reports() {
                        if let Err(error) = session.send(channel, report).await {
                            return OpenError::from(error).into();
                        }
                    }
                    self.count();
                    if !self.has_frames && tokio::time::Instant::now() > deadline {
                        return Ended::NoKeyFrame;
                    }
                }
                Err(error) => return OpenError::from(error).into(),
            }
        }
    }

    fn frame(&mut self, frame: Frame) {
        let camera = self.camera;
        match frame {
            Frame::Audio(frame) => {
                camera.hub.publish_audio(frame.clone());
                self.fragmenter.push_audio(frame);
            }
            Frame::Video(frame) => {
                if !self.has_frames {
                    self.has_frames = true;
                    camera.session_began.store(frame.time, Ordering::Relaxed);
                    camera.set_state(CameraState::Recording, None, &self.shared.metrics);
                    camera.note(self.shared, Note::GapEnded { camera: camera.id, at: frame.time });
                    tracing::info!(camera = camera.id, serial = %camera.serial, "recording");
                }
                camera.last_frame.store(frame.time, Ordering::Relaxed);
                camera.hub.publish_video(frame.clone(), self.assembler.audio_entry());
                let (fragment, interruption) = self.fragmenter.push_video(frame);
                if let Some(fragment) = fragment {
                    self.record(fragment);
                }
                if let Some(interruption) = interruption {
                    self.interrupted(interruption);
                }
            }
        }
    }

    fn record(&mut self, fragment: Fragment) {
        let camera = self.camera;
        let (start, end) = (fragment.start, fragment.end());
        let bits = fragment.data_len() as u64 * 8;
        camera
            .bitrate_bps
            .store(bits * TICKS_PER_SECOND as u64 / fragment.duration.max(1) as u64, Ordering::Relaxed);
        match self.shared.writer.append(camera.id, fragment) {
            Ok(()) => {
                if std::mem::take(&mut self.dropping) {
                    camera.note(self.shared, Note::GapEnded { camera: camera.id, at: start });
                }
            }
            Err(dropped) => {
                self.shared.metrics.dropped_fragments.inc();
                if !std::mem::replace(&mut self.dropping, true) {
                    let (code, message) = match dropped {
                        Dropped::QueueFull => ("disk-too-slow", "The disk did not keep up with the cameras."),
                        Dropped::Failed => {
                            ("disk-failed", "Footage could not be secured on disk; recording has stopped.")
                        }
                    };
                    tracing::error!(camera = camera.id, code, "footage is not recorded");
                    let (code, message) = (code.to_owned(), message.to_owned());
                    camera.note(self.shared, Note::GapBegan { camera: camera.id, at: start, code, message });
                }
            }
        }
        camera.recorded_until.fetch_max(end, Ordering::Relaxed);
    }

    fn interrupted(&self, interruption: Interruption) {
        let (code, message) = match interruption.cause {
            InterruptionCause::PacketsLost => ("packets-lost", "Packets from the camera were lost."),
            InterruptionCause::ClockJumped => {
                ("clock-jumped", "The clock of the camera or of the server was set.")
            }
            InterruptionCause::NoFrames => ("no-frames", "The camera sent no pictures."),
        };
        let Interruption { start, end, .. } = interruption;
        self.camera.note(self.shared, Note::Gap { camera: self.camera.id, start, end, code, message });
    }

    /// Adds to the metrics what has come since the last time.
    fn count(&mut self) {
        let metrics = &self.shared.metrics;
        let counts = self.assembler.counts();
        let before = std::mem::replace(&mut self.counted, counts);
        metrics.received_bytes.inc_by(std::mem::take(&mut self.bytes));
        metrics.received_packets.inc_by(counts.packets - before.packets);
        metrics.lost_packets.inc_by(counts.lost_packets - before.lost_packets);
        metrics.malformed_packets.inc_by(counts.malformed_packets - before.malformed_packets);
        metrics.frames.inc_by(counts.frames - before.frames);
        metrics.dropped_frames.inc_by(counts.dropped_frames - before.dropped_frames);
        metrics.queued_bytes.set(self.shared.writer.queued_bytes() as i64);
    }

    /// What was collected is recorded, and the file ended.
    fn end(&mut self) {
        if let Some(fragment) = self.fragmenter.finish(None) {
            self.record(fragment);
        }
        self.shared.writer.close(self.camera.id);
        self.count();
    }
}
