//! The tunnel role's API.
