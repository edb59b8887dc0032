//! JSON between the roles, one module per role that answers.
//!
//! Field names are the glossary's words; units are in the name or in the field's documentation; times
//! are RFC 3339. Unknown fields are ignored in answers, so that an older client lives with a newer
//! server, and refused in requests, so that a misspelt field is not silently dropped.

pub mod dispatcher;
pub mod recording;
pub mod tunnel;
