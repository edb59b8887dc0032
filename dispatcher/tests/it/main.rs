//! The dispatcher in process, on real sockets: steps 2, 4 and 5 of the connection flow, and the
//! whole flow with its neighbours; `foreign.py` is a camera of another make, for tests in `foreign.rs`.

#![allow(clippy::unwrap_used, reason = "a test that finds something else than it expects has failed")]

mod attacks;
mod claims;
mod device;
mod flow;
mod foreign;
mod hostile;
mod operator;
mod orders;
mod passwords;
mod step_2_relay;
mod step_5_dispatch;
mod stranded;
mod world;
