//! The secure tunnel server: what devices keep their tunnel to, and through which everything central reaches them.
//! Steps 1, 2, 6 and 7 of `docs/connection-flow.md`.
//!
//! ```text
//!            step 1                     step 2, changes
//!  VMS ──▶ api.rs ──▶ relay.rs ──────────────────────────▶ dispatcher.rs ──▶ dispatcher
//!   │                    │
//!   │                 devices.rs (memory, events) ── record.rs (pure) ── registrations.rs (disk)
//!   │                    │
//!   ├────▶ proxy.rs ─▶ reach.rs ─▶ uplink ◀── uplinks.rs ◀── device (steps 6, 7)
//!   │         └─ splice.rs ▲  └─ rtsp.rs ─ rtsp_over_http.rs
//!   └────▶ gateway ────────┘
//! ```
//!
//! A move to another tunnel server: `handover.rs` (what is asked), `moves.rs` (pure), `errands.rs` (what the device is
//! told). A device's own password instead of a factory default: `passwords.rs`. How devices are and were connected:
//! `figures.rs` (rates), `history.rs` (on disk). Devices that share an Internet connection, and a limit: `sites.rs`. What
//! a VMS is asked and told of them: `callbacks.rs`. What waits for a client's socket: `outbox.rs`.
//!
//! | to | use |
//! |---|---|
//! | run one | [`Config`], [`bind`], [`Bound::run`] |
//! | try what one would run on | [`setup`]; `public.rs`: whether public addresses lead here |
//! | reach devices in the same process | [`Bound::handle`], [`TunnelHandle`] |
//! | reach them from another process | the internal address: `protocol/src/api/tunnel.rs`, the forward proxy (`proxy.rs`) |
//!
//! Not here: what is done with a device once it is reached, and who among people may reach it.

mod api;
mod callbacks;
mod config;
mod copies;
mod devices;
mod dispatcher;
mod errands;
mod events;
mod figures;
mod gateway;
mod guard;
mod handover;
mod history;
mod leave;
mod locks;
mod metrics;
mod moves;
mod orders;
mod outbox;
mod passwords;
mod proxy;
mod public;
mod reach;
mod record;
mod registrations;
mod relay;
mod reload;
mod rtsp;
mod rtsp_over_http;
mod server;
pub mod setup;
mod sites;
mod splice;
mod uplinks;

pub use config::{
    Bandwidth, Callbacks, Config, Dispatcher, Gateway, GatewayUser, Limits, MAY_CHANGE, Plain, REFERENCE,
    Unanswered, Vms,
};
pub use events::{Event, EventId, Events, NoEventId};
pub use reach::{ReachError, RtspLink, TunnelHandle};
pub use reload::Reloader;
pub use rtsp::{NoRtsp, RtspStream};
pub use rtsp_over_http::RtspOverHttp;
pub use server::{Bound, bind};
