//! The tunnel server as a whole, in process, over real sockets on loopback: steps 1, 2, 6 and 7.
//!
//! `world` sets a tunnel server up with a scripted dispatcher (`dispatcher`) and devices made of the uplink crate
//! (`device`); the other modules are a subject each.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod access;
mod callbacks;
mod camera;
mod certificates;
mod cgi;
mod device;
mod dispatcher;
mod events;
mod gateway;
mod handover;
mod hostile;
mod leave;
mod limits;
mod orders;
mod over_http;
mod passwords;
mod player;
mod pressure;
mod pressure_internal;
mod pressure_rtsp;
mod programs;
mod proxy;
mod public;
mod register;
mod reload;
mod resume;
mod rtsp_over_http;
mod scenario;
mod secrets;
mod sites;
mod state;
mod tunnel;
mod wire;
mod world;
