//! The simulated camera against programs that are not ours, against clients that misbehave, and
//! against the clock.

#![allow(clippy::unwrap_used)]

mod harness;
mod http;
mod peers;
mod rtsp;
