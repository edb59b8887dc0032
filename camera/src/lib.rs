//! The simulated camera.

pub mod scene;
pub mod strip;
