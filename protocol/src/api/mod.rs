//! JSON between the roles, one module per role that answers.
//!
//! Field names are the glossary's words; units are in the name or in the field's documentation; times
//! are RFC 3339. Unknown fields are ignored in answers, so that an older client lives with a newer
//! server, and refused in requests, so that a misspelt field is not silently dropped.

pub mod dispatcher;
pub mod recording;
pub mod tunnel;

use crate::Step;
use serde::{Deserialize, Serialize};

/// The body of every answer that is not a success: `{"error": {"code": …, "message": …, "step": …}}`.
///
/// The message is for the person who can act on it and never holds a secret; programs decide by the
/// code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Problem {
    /// What is wrong.
    pub error: ProblemDetail,
}

/// The inside of a [`Problem`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ProblemDetail {
    /// A word for programs, in kebab case: `wrong-oak`, `claimed-by-another-account`.
    pub code: String,
    /// A sentence for people: what happened, with whom, and what to check.
    pub message: String,
    /// The step of the connection flow that failed, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<Step>,
}

/// A certificate that somebody relies on, and when it ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Expiry {
    /// Whose, for people: `certificate of the external address`.
    pub what: String,
    /// When it ends.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub expires: jiff::Timestamp,
    /// Whether Homing renews it by itself. What somebody else issued is warned about for 30 days.
    pub renews: bool,
}

/// Where a device shall dial, and whom it shall trust there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Public addresses of one tunnel server, `host:port`, best first; 1 to 4.
    pub servers: Vec<String>,
    /// PEM of the trust anchors for them; empty: the public web's, for addresses that are DNS names.
    pub trust_anchor: String,
}

impl Problem {
    /// A problem outside the connection flow.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Problem { error: ProblemDetail { code: code.to_owned(), message: message.into(), step: None } }
    }

    /// A problem in a step of the connection flow.
    pub fn at(step: Step, code: &str, message: impl Into<String>) -> Self {
        Problem { error: ProblemDetail { code: code.to_owned(), message: message.into(), step: Some(step) } }
    }
}
