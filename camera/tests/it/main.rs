//! The simulated camera against programs that are not ours, against clients that misbehave, and
//! against the clock.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod cost;
mod harness;
mod http;
mod peers;
mod rtsp;
