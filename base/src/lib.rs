//! The few things that every role does alike.
//!
//! | module | what |
//! |---|---|
//! | [`config`], [`live`] | TOML with documented defaults, unknown keys refused by name; what of it may change meanwhile |
//! | [`stop`] | one token and one tracker per role: nothing is left behind |
//! | [`listen`], [`http`] | sockets, the accept loop, HTTP with deadlines and optional TLS |
//! | [`client`] | JSON calls from one role to another |
//! | [`onvif`] | calls to a device, over whatever carries them |
//! | [`rtsp`] | a camera's stream, over whatever carries it |
//! | [`tls`] | private CA, leaves that renew themselves, PEM files, fingerprints |
//! | [`vault`], [`password`] | secrets at rest; passwords of people and accounts |
//! | [`throttle`], [`rate`] | who guesses is slowed down; so many a second |
//! | [`crowd`], [`door`] | nobody takes all of a listener; strangers, until they have shown who they are |
//! | [`leave`] | whether somebody who was let in may stay |
//! | [`table`] | lists as spreadsheets export them |
//! | [`database`] | SQLite as every role opens it |
//! | [`ops`] | metrics and health |
//! | [`workers`] | one single-threaded runtime per core |
//! | [`logging`] | structured logs |
//!
//! Not here: anything that only one role needs, and anything of the connection flow.

pub mod client;
pub mod config;
pub mod crowd;
pub mod database;
pub mod door;
pub mod http;
pub mod leave;
pub mod listen;
pub mod live;
pub mod logging;
pub mod onvif;
pub mod ops;
pub mod password;
pub mod rate;
pub mod rtsp;
pub mod stop;
pub mod table;
pub mod throttle;
pub mod tls;
pub mod vault;
pub mod workers;

pub use leave::Leave;
pub use live::Live;
pub use ops::Ops;
pub use stop::Stop;
pub use vault::Vault;
pub use workers::Workers;
