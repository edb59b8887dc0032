//! The whole in networks of its own: namespaces, real routing, real firewalls.
//!
//! ```text
//! site ── router ── internet ── firewall 1 ── tunnel server ── firewall 2 ── central
//! 192.168.1.10   masquerades,   dispatcher      forwards one       lets the VMS      10.2.0.10
//! camera, agent  drops all inbound              port inwards       in                recording, management
//! ```
//!
//! or one of the two other layouts of docs/network.md, whose rules are loaded as they stand there.
//!
//! | module | what |
//! |---|---|
//! | [`layout`] | where the tunnel server stands: cables, routes, rules, walls |
//! | [`topology`] | namespaces, addresses, rules; watched for connections towards the site |
//! | [`camera`] | the camera in the site, which is not ours, and what it says it sent |
//! | [`pictures`] | what a recording holds, slice by slice |
//! | [`world`] | every program of the picture, each in its place |
//! | [`flow`] | the eight steps, a minute of recording, a new public address |
//! | [`layouts`] | the eight steps in each layout, and what the line carries |
//! | [`self_test`] | the lab by itself: its walls stand, its watch sees |
//!
//! Needs root. A test holds its [`topology::Lab`] first, so that it goes last.

pub mod camera;
mod flow;
pub mod layout;
mod layouts;
pub mod pictures;
mod self_test;
pub mod topology;
mod world;

pub use topology::Host;
