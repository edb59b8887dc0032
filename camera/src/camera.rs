//! What the listeners of one camera share: who it is, its stream, who watches, and its faults.
//!
//! [`Handle`] is the tests' view of it: which frames were sent to whom, and faults on demand.

use crate::{
    config::Config,
    source::{Source, Unit},
};
use homing_base::Ops;
use homing_protocol::{
    SerialNumber,
    digest::{DigestGuard, Refusal, Rfc2069Policy, User},
    secret::Credentials,
};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use std::{
    collections::VecDeque,
    fmt,
    net::SocketAddr,
    ops::RangeInclusive,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Viewers that a [`Handle`] remembers; the oldest are forgotten.
const REMEMBERED_SESSIONS: usize = 256;

/// What `/metrics` shows, as `homing_camera_…`.
#[derive(Debug, Default)]
struct Metrics {
    sessions: Counter,
    viewers: Gauge,
    frames: Counter,
}

impl Metrics {
    fn register(ops: &Ops) -> Arc<Metrics> {
        let metrics = Arc::new(Metrics::default());
        ops.register("camera", |registry| {
            registry.register("sessions", "Times that somebody began to watch", metrics.sessions.clone());
            registry.register("viewers", "Who watches now", metrics.viewers.clone());
            registry.register("frames", "Pictures written to viewers", metrics.frames.clone());
        });
        metrics
    }
}

/// One camera.
pub(crate) struct Camera {
    pub name: String,
    pub serial: SerialNumber,
    credentials: Mutex<Credentials>,
    pub source: Arc<Source>,
    /// For `/healthz` and `/metrics` of this camera.
    pub ops: Ops,
    metrics: Arc<Metrics>,
    guard: DigestGuard,
    started: Instant,
    sessions: Mutex<VecDeque<Arc<Session>>>,
    silent: AtomicBool,
    /// Cancelled, and replaced, when all viewers are to be cut.
    cut: Mutex<CancellationToken>,
}

impl Camera {
    pub fn new(config: &Config, credentials: Credentials, source: Arc<Source>) -> Camera {
        let realm = format!("Homing camera {}", config.serial);
        let ops = Ops::new();
        Camera {
            name: config.name.clone(),
            serial: config.serial,
            credentials: Mutex::new(credentials),
            source,
            metrics: Metrics::register(&ops),
            ops,
            guard: DigestGuard::new(&realm, rand::random()),
            started: Instant::now(),
            sessions: Mutex::default(),
            silent: AtomicBool::new(false),
            cut: Mutex::default(),
        }
    }

    /// Checks a request's `Authorization`; RFC 2069 answers are taken over RTSP only, where many
    /// clients know nothing else.
    pub fn check(
        &self,
        rfc2069: Rfc2069Policy,
        method: &str,
        uri: &str,
        authorization: Option<&str>,
    ) -> Result<User, Refusal> {
        let credentials = self.credentials();
        let password = |user: &str| (user == credentials.user).then(|| credentials.password.clone());
        self.guard.clone().rfc2069(rfc2069).check(method, uri, authorization, password, self.uptime_s())
    }

    /// The one user and its password.
    pub fn credentials(&self) -> Credentials {
        self.credentials.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the one user's password until the camera ends; `false` if that is another user, or the password is none.
    pub fn set_password(&self, user: &Credentials) -> bool {
        let mut credentials = self.credentials.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = user.user == credentials.user && !user.password.is_empty();
        if is_known {
            credentials.password = user.password.clone();
        }
        is_known
    }

    /// `WWW-Authenticate` values for a request that was refused.
    pub fn challenges(&self, refusal: Refusal) -> Vec<String> {
        self.guard.challenges(self.uptime_s(), refusal == Refusal::Stale)
    }

    fn uptime_s(&self) -> u64 {
        self.started.elapsed().as_secs()
    }

    /// Notes that somebody watches.
    pub fn begin_session(&self, peer: SocketAddr) -> Arc<Session> {
        self.metrics.sessions.inc();
        self.metrics.viewers.inc();
        let session = Arc::new(Session {
            peer,
            frames: Mutex::default(),
            ended: AtomicBool::new(false),
            metrics: self.metrics.clone(),
        });
        let mut sessions = lock(&self.sessions);
        if sessions.len() == REMEMBERED_SESSIONS {
            sessions.pop_front();
        }
        sessions.push_back(session.clone());
        session
    }

    /// Whether nothing is to be sent, though somebody watches.
    pub fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    /// Cancelled when the connection is to be cut.
    pub fn cut_token(&self) -> CancellationToken {
        lock(&self.cut).clone()
    }
}

impl fmt::Debug for Camera {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Camera")
            .field("name", &self.name)
            .field("serial", &self.serial)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One viewer, from PLAY to the end of its connection.
#[derive(Debug)]
pub(crate) struct Session {
    peer: SocketAddr,
    frames: Mutex<Vec<RangeInclusive<u32>>>,
    ended: AtomicBool,
    metrics: Arc<Metrics>,
}

impl Session {
    /// Notes what was written whole to the connection.
    pub fn sent(&self, unit: &Unit) {
        let Some(frame) = unit.frame else { return };
        self.metrics.frames.inc();
        let mut runs = lock(&self.frames);
        match runs.last_mut() {
            Some(run) if run.end().checked_add(1) == Some(frame) => *run = *run.start()..=frame,
            _ => runs.push(frame..=frame),
        }
    }

    /// Notes that nothing will come any more.
    pub fn end(&self) {
        if !self.ended.swap(true, Ordering::Relaxed) {
            self.metrics.viewers.dec();
        }
    }
}

/// What one viewer was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionReport {
    /// Where it connected from.
    pub peer: SocketAddr,
    /// The frame numbers that were written whole to its connection, as runs without a gap, in order.
    pub frames: Vec<RangeInclusive<u32>>,
    /// Whether its connection has ended.
    pub ended: bool,
}

/// A running camera, as tests and the demo see it: accounting and faults. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle(pub(crate) Arc<Camera>);

impl Handle {
    /// What every viewer was sent, oldest first; at most the last 256 viewers.
    pub fn sessions(&self) -> Vec<SessionReport> {
        let report = |session: &Arc<Session>| SessionReport {
            peer: session.peer,
            frames: lock(&session.frames).clone(),
            ended: session.ended.load(Ordering::Relaxed),
        };
        lock(&self.0.sessions).iter().map(report).collect()
    }

    /// Fault: says nothing more to any viewer, though connections stay and requests are answered, as
    /// when a camera's encoder hangs. `false` goes on, with a key frame.
    pub fn stop_sending(&self, silent: bool) {
        self.0.silent.store(silent, Ordering::Relaxed);
    }

    /// Fault: cuts the connection of everybody who is connected by RTSP now. New ones are welcome.
    pub fn cut(&self) {
        std::mem::take(&mut *lock(&self.0.cut)).cancel();
    }
}
