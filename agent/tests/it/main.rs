//! The agent as a whole, in process: against a dispatcher and tunnel servers played on the other end of
//! `homing-uplink`, and against small cameras.

// Everything here is a test, its helpers too.
#![allow(clippy::unwrap_used)]

mod camera;
mod flow;
mod page;
mod world;
