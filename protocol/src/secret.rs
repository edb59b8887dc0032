//! A string that cannot be printed.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

/// A password, token or key as text.
///
/// It has no `Display`, its `Debug` shows nothing, and its memory is overwritten when it goes. It is
/// serialised in clear, because that is how it reaches the peer that needs it: put it into messages
/// that travel over TLS, never into anything that is logged or stored unencrypted.
#[derive(Clone, Default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = String, format = Password))]
pub struct Secret(String);

impl Secret {
    /// Takes the string over.
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }

    /// The secret itself. Every call is a place where it could leak: keep them few.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Compares in a time that depends on the lengths alone.
    pub fn matches(&self, candidate: &str) -> bool {
        self.0.as_bytes().ct_eq(candidate.as_bytes()).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.matches(&other.0)
    }
}

impl Eq for Secret {}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Secret(text)
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Secret(text.to_owned())
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Secret)
    }
}

/// User name and password of a device, an account or a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// The user's name; not secret.
    pub user: String,
    /// The password.
    pub password: Secret,
}

impl Credentials {
    /// Both at once.
    pub fn new(user: impl Into<String>, password: impl Into<Secret>) -> Self {
        Credentials { user: user.into(), password: password.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_of_anything_around_it_shows_nothing() {
        let credentials = Credentials::new("root", "sesame");
        assert_eq!(format!("{credentials:?}"), r#"Credentials { user: "root", password: (secret) }"#);
        assert!(credentials.password.matches("sesame"));
        assert!(!credentials.password.matches("sesam"));
        assert!(!credentials.password.matches(""));
    }
}
