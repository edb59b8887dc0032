//! The simulated camera.

pub mod audio;
pub mod encoder;
pub mod scene;
pub mod source;
pub mod strip;
