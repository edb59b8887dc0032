//! Who may watch through the gateway: users of its own, by Digest; guessing is slowed per address.
//!
//! Digest with SHA-256 and MD5, with and without `qop`: players know no better. Basic never, not even in TLS: who offers
//! it is asked for the password in clear by whoever stands in between.

use crate::{
    config::GatewayUser,
    guard::{self, Attempts},
};
use homing_media::rtsp::Request;
use homing_protocol::{
    Secret,
    digest::{DigestGuard, Refusal, Rfc2069Policy},
};
use std::{collections::HashMap, net::IpAddr, time::Duration};
use tokio::time::Instant;

/// What a client is asked for.
const REALM: &str = "Homing RTSP gateway";

/// The gateway's users.
pub(super) struct Door {
    guard: DigestGuard,
    users: HashMap<String, Secret>,
    attempts: Attempts,
    began: Instant,
}

/// Why a request is not let in.
pub(super) enum Denied {
    /// To be answered with 401 and these challenges.
    Challenged {
        challenges: Vec<String>,
        /// Somebody guesses.
        is_wrong: bool,
    },
    /// So many wrong passwords came from this address that it is not looked at for so long.
    TooMany(Duration),
}

impl Door {
    pub fn new(users: &[GatewayUser]) -> Self {
        Door {
            guard: DigestGuard::new(REALM, rand::random()).rfc2069(Rfc2069Policy::Accept),
            users: users.iter().map(|user| (user.name.clone(), user.password.clone())).collect(),
            attempts: Attempts::default(),
            began: Instant::now(),
        }
    }

    /// The user that sends this request.
    pub fn check(&self, peer: IpAddr, request: &Request) -> Result<String, Denied> {
        let now = Instant::now();
        let wait = self.attempts.wait(peer, now);
        if !wait.is_zero() {
            return Err(Denied::TooMany(wait));
        }
        // Far above 0, so that nothing was made before the beginning of time.
        let seconds = 1_000_000 + now.duration_since(self.began).as_secs();
        let authorization = request.headers.get("Authorization");
        let password = |user: &str| self.users.get(user).cloned();
        match self.guard.check(request.method.as_str(), &request.uri, authorization, password, seconds) {
            Ok(user) => {
                self.attempts.handle_right(peer);
                Ok(user.name)
            }
            Err(refusal) => {
                let is_wrong = matches!(refusal, Refusal::Wrong | Refusal::Malformed(_));
                if is_wrong && let guard::Denied::TooMany(wait) = self.attempts.handle_wrong(peer, now) {
                    return Err(Denied::TooMany(wait));
                }
                let challenges = self.guard.challenges(seconds, refusal == Refusal::Stale);
                Err(Denied::Challenged { challenges, is_wrong })
            }
        }
    }
}
