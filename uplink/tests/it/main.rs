//! Both ends of an uplink against each other over real sockets, against three other HTTP/2 stacks, against RFC 9113 rule by
//! rule, and against hostile peers.
//!
//! `world` has the server and the device of every test; the other modules are one subject each.

mod conformance;
mod ending;
mod exchange;
mod flood;
mod hostile;
mod identity;
mod node;
mod policy;
mod pressure;
mod proxy;
mod stacks;
mod wire;
mod world;
