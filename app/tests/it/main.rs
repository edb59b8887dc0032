//! Tests of the whole: real programs, real sockets, real firewalls, real pictures.
//!
//! | module | what |
//! |---|---|
//! | [`tidy`] | the rules of the house, read from the source |
//! | [`browser`] | the page in Chromium, as a newcomer uses it |
//! | [`cli`] | what an administrator types, and what a script calls |
//! | [`frames`] | accounting for every frame, also after a crash |
//! | [`lab`] | the whole in networks of its own |
//! | [`model`] | whatever happens, in whatever order: against a small model |
//! | [`reload`] | SIGHUP and SIGTERM at a real process with a real file |
//! | [`setup`] | `homing tunnel setup` |
//! | [`players`] | the RTSP gateway, watched by ffmpeg, GStreamer and curl |
//! | [`secrets`] | that no log, answer, file or argument shows one |
//! | [`seen`] | metrics and their dashboard, the live view in the terminal, a device's story in the log |
//! | [`system`] | the whole on loopback: mistakes, hostile peers, secrets, the end |
//! | [`webdriver`] | Chromium |
//! | [`harness`] | processes, HTTP, waiting, cleaning up: what every test here uses |
//!
//! Run by `cargo xtask test`, which installs what is needed; one module alone by
//! `cargo xtask test --only lab`.

// Helpers of tests, which clippy does not recognise as tests; a failing test prints what it knows.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout)]

mod browser;
mod cli;
mod frames;
mod harness;
mod lab;
mod model;
mod players;
mod reload;
mod secrets;
mod seen;
mod setup;
mod system;
mod tidy;
mod webdriver;
