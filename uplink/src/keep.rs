//! Keeps one uplink up for ever: dial, serve, wait, again.
//!
//! Uplinks to several servers are held in parallel by several [`Keep`]s, which know nothing of each other, so that
//! losing one server loses nothing (ONVIF Uplink 26.06 §5.3). Flow steps 4 (phone home), 6 (connect), 7 (tunnel).

use crate::backoff::{Backoff, BackoffSettings};
use crate::dial::{DialError, Dialer};
use crate::serve::{ServeSettings, Service};
use rand::Rng as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// State of an uplink as a device reports it (ONVIF `UplinkStatus`), with the error text that goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UplinkState {
    /// No connection; tried again later.
    Offline {
        /// Why the last attempt or connection ended; none before the first.
        error: Option<String>,
        /// How long until the next attempt, from when this state began; none if there is no next one.
        retry_in: Option<Duration>,
    },
    /// On its way.
    Connecting {
        /// Why the last attempt or connection ended.
        error: Option<String>,
    },
    /// Up.
    Connected {
        /// Since when.
        since: SystemTime,
    },
}

impl UplinkState {
    /// The last error, if the uplink is not up.
    pub fn error(&self) -> Option<&str> {
        match self {
            Self::Offline { error, .. } | Self::Connecting { error } => error.as_deref(),
            Self::Connected { .. } => None,
        }
    }

    /// Whether it is up.
    pub fn is_connected(&self) -> bool {
        matches!(self, Self::Connected { .. })
    }
}

/// One uplink that is to be up always; [`run`](Self::run) it in a task of its own.
pub struct Keep<S> {
    dialer: Dialer,
    service: Arc<S>,
    /// Limits of the uplink.
    pub serve: ServeSettings,
    /// Intervals between attempts.
    pub backoff: BackoffSettings,
    /// Notify it to try at once instead of waiting, when the network came back, say.
    pub wake: Arc<Notify>,
    state: watch::Sender<UplinkState>,
}

impl<S: Service> Keep<S> {
    /// An uplink that is not tried yet, and its state.
    pub fn new(dialer: Dialer, service: Arc<S>) -> (Self, watch::Receiver<UplinkState>) {
        let (state, receiver) = watch::channel(UplinkState::Offline { error: None, retry_in: None });
        let keep = Self {
            dialer,
            service,
            serve: ServeSettings::default(),
            backoff: BackoffSettings::default(),
            wake: Arc::new(Notify::new()),
            state,
        };
        (keep, receiver)
    }

    /// Keeps the uplink up until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::new(self.backoff);
        let mut error = None;
        loop {
            self.state.send_replace(UplinkState::Connecting { error });
            let Some((ended, retry_after)) = self.attempt(&stop, &mut backoff).await else { break };
            // Who asks for time gets it, up to the longest interval, and from each of its devices another one.
            let asked = retry_after.unwrap_or_default().min(self.backoff.max / 2);
            let interval = backoff.next_interval().max(asked.mul_f64(1.0 + rand::rng().random::<f64>()));
            tracing::info!(address = %self.dialer.address, error = %ended, retry_in_ms = interval.as_millis() as u64, "no uplink");
            error = Some(ended);
            self.state.send_replace(UplinkState::Offline { error: error.clone(), retry_in: Some(interval) });
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                () = self.wake.notified() => {}
                () = stop.cancelled() => break,
            }
        }
        self.state.send_replace(UplinkState::Offline { error: None, retry_in: None });
    }

    /// Dials and serves once; why it ended, and when the server wants to be asked again; none when told to stop.
    async fn attempt(
        &self,
        stop: &CancellationToken,
        backoff: &mut Backoff,
    ) -> Option<(String, Option<Duration>)> {
        let dialed = match stop.run_until_cancelled(self.dialer.dial()).await? {
            Ok(dialed) => dialed,
            Err(error) => {
                let retry_after = match &error {
                    DialError::Refused { retry_after, .. } => *retry_after,
                    _ => None,
                };
                return Some((error.to_string(), retry_after));
            }
        };
        let began = Instant::now();
        tracing::info!(address = %self.dialer.address, peer = %dialed.peer_addr(), "uplink connected");
        self.state.send_replace(UplinkState::Connected { since: SystemTime::now() });
        let reason = dialed.serve(Arc::clone(&self.service), self.serve.clone(), stop.clone()).await;
        backoff.handle_connection_end(began.elapsed());
        (!stop.is_cancelled()).then(|| (reason.to_string(), None))
    }
}
