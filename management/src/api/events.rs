//! Server-sent events for browsers: the whole world first, then every change.
//!
//! Invariant: memory per browser is bounded. One that is too slow for its queue of changes is given a
//! new snapshot instead of what it missed; one that does not read at all is ended by its connection.

use crate::{
    App,
    board::{Board, Change},
    gate::Caller,
    views,
};
use axum::{
    extract::State,
    http::StatusCode,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::stream;
use homing_base::http::Failure;
use homing_protocol::{Secret, api::Problem};
use std::{collections::VecDeque, convert::Infallible, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, broadcast};

/// Event streams at once; more are refused with 503, and the page tries again.
pub const STREAMS: usize = 512;

/// Comments that keep proxies from closing a quiet stream.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How often an open stream's session is looked at: signed out elsewhere ends it, an open page counts
/// as use.
const RECHECK: Duration = Duration::from_secs(5);

/// State changes as server-sent events
///
/// Begins with `reset` (forget everything), one event for each thing that there is, and `ready`; then
/// changes. Names are `tunnel-server`, `device`, `recording-server`, `hardware`, `camera`, with the
/// thing as in its list, and the same with `-removed` and `{"key": …}` when it is gone. The id of an
/// event is the thing's key.
#[utoipa::path(get, path = "/api/v1/events", tag = "system",
    responses((status = 200, content_type = "text/event-stream"), (status = 503, body = views::Problem)))]
pub async fn stream(
    State(app): State<App>,
    caller: Caller,
    headers: axum::http::HeaderMap,
) -> Result<Response, Failure> {
    let permit = app.streams.clone().try_acquire_owned().map_err(|_| {
        let message = format!("{STREAMS} pages are open already; try again later.");
        Failure::new(StatusCode::SERVICE_UNAVAILABLE, Problem::new("too-many-streams", message))
    })?;
    let session = app
        .cookie
        .read(&headers)
        .filter(|_| matches!(caller.identity.by, crate::accounts::Credential::Session(_)))
        .map(Secret::new);
    let viewer = Viewer::new(app, session, permit);
    let events = stream::unfold(viewer, async |mut viewer| {
        let event = viewer.next().await?;
        Some((Ok::<_, Infallible>(event), viewer))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

/// One browser's place in the stream of changes.
struct Viewer {
    app: App,
    session: Option<Secret>,
    waiting: VecDeque<Event>,
    changes: broadcast::Receiver<Change>,
    recheck: tokio::time::Interval,
    _permit: OwnedSemaphorePermit,
}

impl Viewer {
    fn new(app: App, session: Option<Secret>, permit: OwnedSemaphorePermit) -> Self {
        let (waiting, changes) = snapshot(app.world.board());
        let recheck = tokio::time::interval_at(tokio::time::Instant::now() + RECHECK, RECHECK);
        Viewer { app, session, waiting, changes, recheck, _permit: permit }
    }

    /// The next event, or the end: the role stops, or the session has ended.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Some(event);
            }
            tokio::select! {
                change = self.changes.recv() => match change {
                    Ok(change) => return Some(event(&change)),
                    Err(broadcast::error::RecvError::Lagged(_)) => {
                        (self.waiting, self.changes) = snapshot(self.app.world.board());
                    }
                    Err(broadcast::error::RecvError::Closed) => return None,
                },
                _ = self.recheck.tick() => {
                    if let Some(session) = &self.session {
                        // A database that does not answer ends the stream as well: deny by default.
                        self.app.accounts.session(session.expose()).await.ok().flatten()?;
                    }
                }
                () = self.app.stop.cancelled() => return None,
            }
        }
    }
}

fn snapshot(board: &Board) -> (VecDeque<Event>, broadcast::Receiver<Change>) {
    let (things, changes) = board.subscribe();
    let mut events = VecDeque::with_capacity(things.len() + 2);
    events.push_back(Event::default().event("reset").data("{}"));
    events.extend(things.iter().map(event));
    events.push_back(Event::default().event("ready").data("{}"));
    (events, changes)
}

fn event(change: &Change) -> Event {
    // Server names are an administrator's: no line end may end the field.
    let key: String = change.key.chars().filter(|c| !c.is_control()).collect();
    match &change.json {
        Some(json) => Event::default().event(change.kind.name()).id(key).data(json),
        None => {
            let gone = serde_json::json!({ "key": key }).to_string();
            Event::default().event(format!("{}-removed", change.kind.name())).id(key).data(gone)
        }
    }
}
