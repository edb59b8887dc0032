//! Server-sent events for browsers: the whole world first, then every change.
//!
//! Invariant: memory per browser is bounded. One that is too slow for its queue of changes is given a
//! new snapshot instead of what it missed; one that does not read at all is ended by its connection.

use crate::{
    App,
    board::{Board, Change},
    gate, views,
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
use homing_base::{Leave, http::Failure};
use homing_protocol::api::Problem;
use std::{collections::VecDeque, convert::Infallible, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, broadcast};

/// Event streams at once; more are refused with 503, and the page tries again.
pub const STREAMS: usize = 512;

/// Comments that keep proxies from closing a quiet stream.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// State changes as server-sent events
///
/// Begins with `reset` (forget everything), one event for each thing that there is, and `ready`; then
/// changes. Names are `tunnel-server`, `device`, `recording-server`, `hardware`, `camera`, with the
/// thing as in its list, and the same with `-removed` and `{"key": …}` when it is gone. The id of an
/// event is the thing's key.
#[utoipa::path(get, path = "/api/v1/events", tag = "system",
    responses((status = 200, content_type = "text/event-stream"), (status = 503, body = views::Problem)))]
pub async fn stream(State(app): State<App>, headers: axum::http::HeaderMap) -> Result<Response, Failure> {
    let permit = app.streams.clone().try_acquire_owned().map_err(|_| {
        let message = format!("{STREAMS} pages are open already; try again later.");
        Failure::new(StatusCode::SERVICE_UNAVAILABLE, Problem::new("too-many-streams", message))
    })?;
    let leave = gate::leave(&app, &headers);
    let viewer = Viewer::new(app, leave, permit);
    let events = stream::unfold(viewer, async |mut viewer| {
        let event = viewer.next().await?;
        Some((Ok::<_, Infallible>(event), viewer))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

/// One browser's place in the stream of changes.
struct Viewer {
    app: App,
    leave: Leave,
    waiting: VecDeque<Event>,
    changes: broadcast::Receiver<Change>,
    _permit: OwnedSemaphorePermit,
}

impl Viewer {
    fn new(app: App, leave: Leave, permit: OwnedSemaphorePermit) -> Self {
        let (waiting, changes) = snapshot(app.world.board());
        Viewer { app, leave, waiting, changes, _permit: permit }
    }

    /// The next event, or the end: the role stops, or whoever asked may not stay.
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
                () = self.leave.withdrawn() => return None,
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
