//! The event stream, and going on with it: see `protocol/src/api/tunnel.rs`.
//!
//! Invariant: an id is sent only when everything up to it was sent: while the snapshot is under way there is none, so that
//! who loses the stream then begins with another.

use super::{Api, Guarded};
use crate::events::{Event, EventId, Events};
use axum::{
    extract::{Query, State},
    response::{Sse, sse},
};
use futures_util::Stream;
use homing_base::Stop;
use homing_protocol::api::tunnel::Reset;
use http::HeaderMap;
use serde::{Deserialize, Serialize};
use std::{convert::Infallible, time::Duration};

/// A comment on a stream that has nothing to tell, so that both ends notice when the other has gone.
const KEEPALIVE: Duration = Duration::from_secs(10);

const LAST_EVENT_ID: &str = "last-event-id";

#[derive(Deserialize, utoipa::IntoParams)]
pub(super) struct After {
    /// The last event's id that was seen; the header `Last-Event-ID` counts before it.
    after: Option<String>,
}

/// Everything that happens to devices
///
/// `reset`, one `device` each and `ready`, or `resumed`; then `device` and `removed`, each with its id.
#[utoipa::path(get, path = "/api/v1/events", params(After),
    responses((status = 200, body = String, content_type = "text/event-stream"), Guarded))]
pub(super) async fn events(
    State(api): State<Api>,
    Query(After { after }): Query<After>,
    headers: HeaderMap,
) -> Sse<impl Stream<Item = Result<sse::Event, Infallible>>> {
    let by_header = headers.get(LAST_EVENT_ID).and_then(|value| value.to_str().ok());
    // Browsers send an empty one before they have seen any.
    let after = by_header.or(after.as_deref()).filter(|after| !after.is_empty());
    let resumed = after
        .and_then(|after| after.parse::<EventId>().ok())
        .and_then(|after| api.devices.subscribe_after(after));
    let telling = match resumed {
        Some(events) => Telling { events, next: Next::Resumed },
        None => {
            let missed = after.is_some();
            Telling { events: api.devices.subscribe(), next: Next::Reset { missed } }
        }
    };
    let stop = api.stop.clone();
    let stream = futures_util::stream::unfold((telling, stop), |(mut telling, stop)| async move {
        let event = telling.next(&stop).await?;
        Some((Ok(event), (telling, stop)))
    });
    Sse::new(stream).keep_alive(sse::KeepAlive::new().interval(KEEPALIVE))
}

/// One reader's place.
struct Telling {
    events: Events,
    next: Next,
}

#[derive(Clone, Copy)]
enum Next {
    Resumed,
    Reset { missed: bool },
    There,
    Change,
}

impl Telling {
    async fn next(&mut self, stop: &Stop) -> Option<sse::Event> {
        match self.next {
            Next::Resumed => {
                self.next = Next::Change;
                event("resumed", &serde_json::json!({}))
            }
            Next::Reset { missed } => {
                self.next = Next::There;
                event("reset", &Reset { missed })
            }
            Next::There => match self.events.next_there() {
                Some(device) => event("device", &*device),
                None => {
                    self.next = Next::Change;
                    Some(event("ready", &serde_json::json!({}))?.id(self.events.id().to_string()))
                }
            },
            Next::Change => {
                let change = tokio::select! {
                    change = self.events.next() => change?,
                    () = stop.cancelled() => return None,
                };
                let told = match change {
                    Event::Device(device) => event("device", &*device),
                    Event::Site(site) => event("site", &*site),
                    Event::Removed(serial) => event("removed", &serde_json::json!({ "serial": serial })),
                };
                Some(told?.id(self.events.id().to_string()))
            }
        }
    }
}

fn event(name: &str, data: &impl Serialize) -> Option<sse::Event> {
    sse::Event::default().event(name).json_data(data).ok()
}
