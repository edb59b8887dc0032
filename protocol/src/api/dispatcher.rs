//! The dispatcher role's API.
