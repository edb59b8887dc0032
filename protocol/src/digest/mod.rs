//! HTTP authentication, both ends, for HTTP and RTSP alike: Basic (RFC 7617) and Digest (RFC 7616,
//! 2617 and, under a policy, 2069).
//!
//! Pure: no clock and no randomness of its own on the server side, the caller passes both in. The
//! client side ([`ClientAuth`]) answers a camera's challenges on the `http-auth` crate; the server
//! side ([`DigestGuard`]) makes challenges and checks answers without remembering anything.
//!
//! Invariant: a password is never written anywhere but into a Basic header that the policy allows, and
//! responses are compared in constant time.

mod client;
mod server;

pub use client::{ClientAuth, ClientError};
pub use server::{DigestGuard, Refusal, User};

/// Longer header values than this are refused unread.
const MAX_HEADER_BYTES: usize = 8 * 1024;

/// Whether Basic, which shows the password to whoever reads the connection, may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BasicPolicy {
    /// Digest or nothing.
    #[default]
    Refuse,
    /// Basic where there is nothing better: inside TLS, or in a site's own network.
    Allow,
}

/// Whether an answer without `qop` (RFC 2069) is accepted. Replaying it is possible as long as the
/// nonce lives; many RTSP clients and cameras know nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rfc2069Policy {
    /// `qop=auth` is required.
    #[default]
    Refuse,
    /// For RTSP.
    Accept,
}

#[cfg(test)]
mod tests;
