//! The streams that come from devices now: one for each device and path, however many watch it.
//!
//! # A stream's life
//!
//! 1. The first who asks for a path opens it ([`Streams::watch`]): RTSP through the uplink with the device's registered
//!    user and password, described and set up (`upstream.rs`). Those who come meanwhile wait for the same.
//! 2. The first who plays starts it. What comes goes into its [`Hub`], where all viewers read.
//! 3. So long after the last viewer has gone as `linger_ms` says, it ends; at once when the device or its uplink does.
//!    Its viewers are told and closed: a new stream has other sequence numbers and times, and players connect again by
//!    themselves. Whoever asks next opens it anew.
//!
//! Invariant: a path has one stream at a time, none without a viewer for longer than `linger_ms`, and no more in all and
//! of one device than configured.

use super::{hub::Hub, upstream, url};
use crate::{
    config,
    metrics::Metrics,
    reach::{ReachError, TunnelHandle},
    rtsp::NoRtsp,
};
use bytes::Bytes;
use homing_base::{Stop, rtsp::SessionError};
use homing_protocol::{SerialNumber, onvif::device::path_of};
use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

/// From the first question until a stream is described and set up; players wait little longer.
const OPEN_DEADLINE: Duration = Duration::from_secs(30);

/// What is known of all streams.
pub(super) struct Streams {
    pub tunnel: TunnelHandle,
    pub limits: config::Gateway,
    pub metrics: Arc<Metrics>,
    pub stop: Stop,
    map: Mutex<HashMap<Key, Shared>>,
}

type Key = (SerialNumber, String);

struct Shared {
    stream: Arc<Stream>,
    viewers: usize,
}

/// One stream.
pub(super) struct Stream {
    pub serial: SerialNumber,
    /// The camera's path and query.
    pub path: String,
    /// What the device is asked for.
    pub url: String,
    pub state: watch::Sender<State>,
    /// Somebody plays.
    pub play: Notify,
    /// The last viewer may have gone.
    pub left: Notify,
}

/// How far a stream is.
#[derive(Clone)]
pub(super) enum State {
    Opening,
    Ready(Arc<Offer>),
    Failed(Refusal),
}

/// What a stream offers.
pub(super) struct Offer {
    /// As the camera wrote it.
    pub sdp: Bytes,
    /// Which track each `m=` section is; none: the camera did not set it up.
    pub sections: Vec<Option<usize>>,
    /// Of each track, whether it is video.
    pub tracks: Vec<bool>,
    pub hub: Arc<Hub>,
}

/// Why there is no stream, for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// RTSP status.
    pub status: u16,
    /// What is wrong, and what to check.
    pub words: String,
}

impl From<ReachError> for Refusal {
    fn from(error: ReachError) -> Self {
        let status = match &error {
            ReachError::NotRegistered(_) => 404,
            ReachError::NotConnected { .. } => 503,
            ReachError::Rtsp { kind: NoRtsp::Unsupported, .. } => 501,
            error => error.status().as_u16(),
        };
        Refusal { status, words: error.to_string() }
    }
}

impl Refusal {
    /// What the device said, or did not. Its refusal of *our* password is no business of the client's: 401 would have it
    /// asked for another one.
    pub fn by_device(serial: SerialNumber, error: &SessionError) -> Self {
        let status = match error {
            SessionError::Status { status, .. } if (402..600).contains(status) && *status != 454 => *status,
            SessionError::Timeout { .. } => 504,
            _ => 502,
        };
        let words = match error {
            SessionError::WrongCredentials => {
                format!(
                    "The device {serial} refuses the user and password that it is registered with; correct them."
                )
            }
            error => format!("The device {serial}: {error}."),
        };
        Refusal { status, words }
    }
}

impl Streams {
    pub fn new(
        tunnel: TunnelHandle,
        limits: config::Gateway,
        metrics: Arc<Metrics>,
        stop: Stop,
    ) -> Arc<Self> {
        Arc::new(Streams { tunnel, limits, metrics, stop, map: Mutex::default() })
    }

    /// Joins the stream of a device at a path (empty: what the device names first), opening it if nobody watches yet.
    pub async fn watch(self: &Arc<Self>, serial: SerialNumber, path: &str) -> Result<Watching, Refusal> {
        let stopping = || Refusal { status: 503, words: "The tunnel server is stopping.".to_owned() };
        // Who watches has time to end; nobody begins.
        if self.stop.is_leaving() {
            return Err(stopping());
        }
        let opening = async {
            let (path, url) = if path.is_empty() {
                let told = self.tunnel.first_stream(serial).await?;
                let url = url::bare(&told).ok_or_else(|| Refusal {
                    status: 502,
                    words: format!("The device {serial} names a stream address that is unusable."),
                })?;
                (path_of(&url), url)
            } else {
                (path.to_owned(), url::at_device(serial, path))
            };
            let guest = self.enter(serial, path, url)?;
            let mut state = guest.stream.state.subscribe();
            // It is there until its task has ended, which leaves it ready or failed.
            let known = state.wait_for(|state| !matches!(state, State::Opening)).await;
            match known.as_deref().cloned() {
                Ok(State::Ready(offer)) => Ok(Watching { guest, offer }),
                Ok(State::Failed(refusal)) => Err(refusal),
                _ => Err(stopping()),
            }
        };
        timeout(OPEN_DEADLINE, opening).await.unwrap_or_else(|_| {
            let words = format!("The device {serial} did not answer within {} s.", OPEN_DEADLINE.as_secs());
            Err(Refusal { status: 504, words })
        })
    }

    fn enter(self: &Arc<Self>, serial: SerialNumber, path: String, url: String) -> Result<Guest, Refusal> {
        let mut map = self.map();
        let (all, of_it) = (map.len(), map.keys().filter(|(of, _)| *of == serial).count());
        let stream = match map.entry((serial, path)) {
            Entry::Occupied(mut there) => {
                there.get_mut().viewers += 1;
                Arc::clone(&there.get().stream)
            }
            Entry::Vacant(_) if all >= self.limits.streams || of_it >= self.limits.streams_per_device => {
                let words = "The gateway has as many streams as it may have; its administrator can raise the limit \
                             ([tunnel.gateway] streams, streams_per_device).";
                tracing::warn!(%serial, all, of_it, "no stream is opened: the gateway has as many as it may have");
                return Err(Refusal { status: 453, words: words.to_owned() });
            }
            Entry::Vacant(free) => {
                let stream = Arc::new(Stream {
                    serial,
                    path: free.key().1.clone(),
                    url,
                    state: watch::Sender::new(State::Opening),
                    play: Notify::new(),
                    left: Notify::new(),
                });
                free.insert(Shared { stream: Arc::clone(&stream), viewers: 1 });
                let task = upstream::run(Arc::clone(self), Arc::clone(&stream));
                match self.tunnel.worker(serial) {
                    Some(worker) => self.stop.spawn_on(task, &worker),
                    None => self.stop.spawn(task),
                };
                stream
            }
        };
        Ok(Guest { streams: Arc::clone(self), stream })
    }

    /// Whether nobody watches this stream.
    pub fn is_idle(&self, stream: &Arc<Stream>) -> bool {
        self.map()
            .get(&(stream.serial, stream.path.clone()))
            .is_none_or(|there| !Arc::ptr_eq(&there.stream, stream) || there.viewers == 0)
    }

    /// Takes a stream out, so that the next viewer opens it anew; with `if_idle` only if nobody watches it.
    pub fn retire(&self, stream: &Arc<Stream>, if_idle: bool) -> bool {
        let mut map = self.map();
        let Entry::Occupied(there) = map.entry((stream.serial, stream.path.clone())) else { return true };
        if !Arc::ptr_eq(&there.get().stream, stream) {
            return true;
        }
        if if_idle && there.get().viewers > 0 {
            return false;
        }
        there.remove();
        true
    }

    fn map(&self) -> MutexGuard<'_, HashMap<Key, Shared>> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among a stream's viewers, given back when it is dropped.
struct Guest {
    streams: Arc<Streams>,
    stream: Arc<Stream>,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut map = self.streams.map();
        let there = map.get_mut(&(self.stream.serial, self.stream.path.clone()));
        if let Some(there) = there.filter(|there| Arc::ptr_eq(&there.stream, &self.stream)) {
            there.viewers -= 1;
            if there.viewers == 0 {
                self.stream.left.notify_one();
            }
        }
    }
}

/// A stream that somebody watches.
pub(super) struct Watching {
    guest: Guest,
    pub offer: Arc<Offer>,
}

impl Watching {
    /// Has the device play, if it does not yet.
    pub fn play(&self) {
        self.guest.stream.play.notify_one();
    }
}
