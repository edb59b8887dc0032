//! What Homing's programs say to each other, and nothing else.
//!
//! Pure: no socket, no clock, no task. Everything here is a value with a way to write it and a way to
//! read it back, and reading treats its input as hostile.
//!
//! | module | what |
//! |---|---|
//! | [`step`] | the eight steps of the connection flow |
//! | [`serial`], [`oak`] | the two numbers on a device's label, and the proof of the second |
//! | [`device`] | a registered device's state, as an administrator sees it |
//! | [`secret`] | a string that cannot be printed |
//! | [`digest`] | HTTP Basic and Digest authentication, both ends |
//! | [`soap`], [`onvif`] | the ONVIF messages that a device answers |
//! | [`api`] | JSON between the roles, one module per role that answers |

pub mod api;
pub mod device;
pub mod digest;
pub mod label;
pub mod oak;
pub mod onvif;
pub mod secret;
pub mod serial;
pub mod soap;
pub mod step;
pub mod voucher;

pub use device::DeviceState;
pub use label::Label;
pub use oak::Oak;
pub use secret::Secret;
pub use serial::SerialNumber;
pub use step::Step;
