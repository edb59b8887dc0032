//! The management server as its peers and users see it: over real sockets, with a scripted tunnel
//! server and a scripted recording role.

#![allow(clippy::unwrap_used)] // in a test it is the assertion

mod door;
mod fake;
mod flow;
mod moves;
mod servers;
mod sites;
