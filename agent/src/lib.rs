//! The site agent: makes any RTSP or ONVIF camera phone home, or runs on the camera itself.
//!
//! ```text
//!   button, page ──▶ run.rs ◀──events, commands──▶ state.rs (pure: when to phone, where to)
//!                      │ dials dispatchers, keeps uplinks to tunnel servers (crate homing-uplink)
//!                      ▼
//!   requests ──▶ service.rs ─┬─▶ OAK proof (dispatchers only)
//!                            ├─▶ onvif.rs ──▶ store.rs (trust anchors, uplinks)
//!                            ├─▶ vapix.rs: the OAK, for the camera's administrator
//!                            ├─▶ rtsp.rs ───▶ camera, RTSP over TCP (tunnel servers only)
//!                            └─▶ proxy.rs ──▶ camera, HTTP (tunnel servers only)
//! ```
//!
//! Flow steps: 3 (press), 4 (phone-home), 6 (connect) are carried out here; 5 (dispatch) and 7 (tunnel)
//! are answered.
//!
//! Guessing its password is slow everywhere: `guesses.rs`.
//!
//! Nothing listens but the page with the button, on loopback unless told otherwise. What tells or changes
//! anything needs the camera's own user and password. Many agents can run in one process: nothing is
//! global.
//!
//! Not here: video (it passes through), and anything that only servers need.

mod camera;
mod clear;
pub mod config;
pub mod control;
mod files;
mod guesses;
mod identity;
mod onvif;
mod page;
mod password;
mod proxy;
mod rtsp;
mod run;
mod service;
mod state;
pub mod status;
mod store;
mod vapix;

pub use config::{CameraConfig, Config, DispatcherConfig};
pub use homing_protocol::Label;
pub use run::{Bound, bind};
pub use status::Status;
