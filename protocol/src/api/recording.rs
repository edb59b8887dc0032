//! The recording role's API.
