//! Wrong passwords at the page: who guesses is slowed.
//!
//! | who | is slowed |
//! |---|---|
//! | a network | whoever it guesses at |
//! | a session or an API token that gives its user's password again | by its own mistakes alone |
//! | everybody else who tries a user's name | mildly, since many networks may guess at one user |
//!
//! Invariant: nobody keeps a user out of a session that the user has, nor from signing in where the user has signed in
//! lately (docs/decisions/010). The audit log says where that was, so that a restart forgets nothing.

use crate::{accounts::Credential, audit::Audit};
use homing_base::{
    crowd::network,
    throttle::{Throttle, Tolerance},
};
use std::{net::IpAddr, time::Duration};
use tokio::time::Instant;

/// Whoever sits there tries by hand or by program.
const BY_WHO: Tolerance =
    Tolerance { free: 5, first: Duration::from_secs(2), longest: Duration::from_secs(900) };

/// For networks that a user has not signed in from lately.
const BY_USER: Tolerance =
    Tolerance { free: 10, first: Duration::from_secs(1), longest: Duration::from_secs(30) };

/// How long a network is one of a user's.
const LATELY: Duration = Duration::from_secs(30 * 86_400);

/// Who has given wrong passwords lately.
pub(crate) struct Guesses {
    by_network: Throttle<Option<IpAddr>>,
    by_credential: Throttle<Credential>,
    by_user: Throttle<String>,
    audit: Audit,
}

impl Guesses {
    /// Nobody has.
    pub fn new(audit: Audit) -> Self {
        Guesses {
            by_network: Throttle::new(BY_WHO),
            by_credential: Throttle::new(BY_WHO),
            by_user: Throttle::new(BY_USER),
            audit,
        }
    }

    /// How long until a sign-in as this user is looked at; zero: now.
    ///
    /// # Errors
    /// When the audit log cannot be read.
    pub async fn wait(&self, peer: &str, user: &str) -> anyhow::Result<Duration> {
        let (from, now) = (network_of(peer), Instant::now());
        let wait = self.by_network.wait(&from, now);
        let by_user = self.by_user.wait(&user.to_lowercase(), now);
        if by_user <= wait {
            return Ok(wait);
        }
        let known = self.audit.signed_in_from(user, LATELY).await?;
        Ok(if known.iter().any(|known| network_of(known) == from) { wait } else { by_user })
    }

    /// A sign-in was wrong.
    pub fn handle_wrong(&self, peer: &str, user: &str) {
        self.by_network.handle_wrong(&network_of(peer), Instant::now());
        self.by_user.handle_wrong(&user.to_lowercase(), Instant::now());
    }

    /// A sign-in was right.
    pub fn handle_right(&self, peer: &str, user: &str) {
        self.by_network.handle_right(&network_of(peer));
        self.by_user.handle_right(&user.to_lowercase());
    }

    /// How long until a password that is given again is looked at; zero: now. Others cannot prolong it.
    pub fn wait_again(&self, credential: Credential) -> Duration {
        self.by_credential.wait(&credential, Instant::now())
    }

    /// A password that was given again was wrong. It counts for the network as well: who has found many sessions does
    /// not begin anew with each.
    pub fn handle_wrong_again(&self, peer: &str, credential: Credential) {
        self.by_credential.handle_wrong(&credential, Instant::now());
        self.by_network.handle_wrong(&network_of(peer), Instant::now());
    }

    /// A password that was given again was right.
    pub fn handle_right_again(&self, credential: Credential) {
        self.by_credential.handle_right(&credential);
    }
}

/// What [`crate::gate::peer_of`] wrote down, as it is counted.
fn network_of(peer: &str) -> Option<IpAddr> {
    peer.parse().ok().map(network)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFICE: &str = "192.0.2.1";

    async fn guesses(folder: &std::path::Path) -> Guesses {
        let path = folder.join("management.sqlite");
        Guesses::new(Audit::new(homing_base::database::open(&path, crate::MIGRATIONS).await.unwrap()))
    }

    /// From ever new networks.
    fn guess_at_ada(guesses: &Guesses) {
        (0..40).for_each(|host| guesses.handle_wrong(&format!("198.51.100.{host}"), "Ada"));
    }

    #[tokio::test]
    async fn nobody_keeps_a_user_out_where_that_user_signs_in() {
        let folder = tempfile::tempdir().unwrap();
        let guesses = guesses(folder.path()).await;
        guesses.audit.record("Ada", OFFICE, "sign-in", "", "").await.unwrap();
        guesses.audit.record("Bob", "2001:db8::1", "sign-in", "", "").await.unwrap();
        guess_at_ada(&guesses);
        assert_eq!(guesses.wait(OFFICE, "ada").await.unwrap(), Duration::ZERO);
        for stranger in ["203.0.113.9", "2001:db8::1", "198.51.100.1"] {
            assert!(!guesses.wait(stranger, "ada").await.unwrap().is_zero(), "{stranger}");
        }
        // Who guesses there is slowed all the same.
        (0..8).for_each(|_| guesses.handle_wrong(OFFICE, "ada"));
        assert!(!guesses.wait(OFFICE, "ada").await.unwrap().is_zero());
    }

    #[tokio::test]
    async fn a_session_is_slowed_by_its_own_mistakes_alone() {
        let folder = tempfile::tempdir().unwrap();
        let guesses = guesses(folder.path()).await;
        guess_at_ada(&guesses);
        (0..40).for_each(|_| guesses.handle_wrong(OFFICE, "ada"));
        let (own, stolen) = (Credential::Session(1), Credential::Session(2));
        assert_eq!(guesses.wait_again(own), Duration::ZERO);
        (0..8).for_each(|host| guesses.handle_wrong_again(&format!("203.0.113.{host}"), stolen));
        assert!(!guesses.wait_again(stolen).is_zero(), "from whatever network");
        assert_eq!(guesses.wait_again(own), Duration::ZERO);
    }
}
