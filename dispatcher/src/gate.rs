//! What every API request of a tunnel server passes (step 2).
//!
//! Invariant: a password is verified with argon2id once, not at every poll; what is remembered
//! in between is a keyed hash of user, password and the stored hash together, so that a changed password or
//! a disabled account counts at once.

use crate::{
    attempts::{Counted, What},
    store::AccountId,
};
use anyhow::Context;
use homing_base::{
    crowd::network,
    password,
    throttle::{Throttle, Tolerance},
};
use homing_protocol::secret::Credentials;
use sqlx::SqlitePool;
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

/// How long a verified log-in is remembered after its last use.
const REMEMBERED_FOR: Duration = Duration::from_secs(300);

/// Verified log-ins remembered at once; when full all are forgotten, which costs one argon2id each.
const REMEMBERED: usize = 4096;

/// Passwords being verified at once: each takes 19 MiB and tens of milliseconds of a core.
const VERIFICATIONS: usize = 2;

/// How long a log-in may wait for its turn to be verified. Whoever sprays wrong names makes others wait
/// this long at most; who is remembered does not wait at all.
const VERIFICATION_WAIT: Duration = Duration::from_secs(3);

/// Why somebody did not pass the [`Gate`].
#[derive(Debug)]
pub(crate) enum Refused {
    /// Wrong name, wrong password or disabled; which of them is not told.
    Wrong,
    /// Too many wrong tries: come back later.
    Later(Duration),
    /// The database failed.
    Internal(anyhow::Error),
}

/// Lets API requests in by Basic credentials.
pub(crate) struct Gate {
    pool: SqlitePool,
    /// Random, for this process alone.
    key: [u8; 32],
    remembered: Mutex<HashMap<[u8; 32], Instant>>,
    throttle: Throttle<(IpAddr, String)>,
    verifications: Semaphore,
    counted: Arc<Counted>,
}

impl Gate {
    pub fn new(pool: SqlitePool, counted: Arc<Counted>) -> Self {
        let mut key = [0; 32];
        rand::Rng::fill(&mut rand::rng(), &mut key);
        Gate {
            pool,
            key,
            remembered: Mutex::default(),
            throttle: Throttle::new(Tolerance::LOG_IN),
            verifications: Semaphore::new(VERIFICATIONS),
            counted,
        }
    }

    /// The account that these credentials open.
    pub async fn pass(&self, peer: IpAddr, credentials: &Credentials) -> Result<AccountId, Refused> {
        let found: Option<(i64, String)> =
            sqlx::query_as("SELECT id, password FROM account WHERE name = $1 AND disabled = 0")
                .bind(&credentials.user)
                .fetch_optional(&self.pool)
                .await
                .context("account")
                .map_err(Refused::Internal)?;
        let (id, stored) = found.map_or((None, None), |(id, stored)| (Some(AccountId(id)), Some(stored)));
        let digest = self.digest(credentials, stored.as_deref().unwrap_or_default());
        if let Some(id) = id
            && self.is_remembered(&digest)
        {
            return Ok(id);
        }
        let guesser = (network(peer), credentials.user.chars().take(64).collect());
        let from = network(peer).to_string();
        let wait = self.throttle.wait(&guesser, Instant::now());
        let wait = wait.max(self.counted.wait(What::PasswordByNetwork, &from));
        if !wait.is_zero() {
            return Err(Refused::Later(wait));
        }
        let Ok(permit) = timeout(VERIFICATION_WAIT, self.verifications.acquire()).await else {
            return Err(Refused::Later(VERIFICATION_WAIT));
        };
        let right = password::verify(credentials.password.clone(), stored).await;
        drop(permit);
        match id {
            Some(id) if right => {
                self.throttle.handle_right(&guesser);
                self.remember(digest);
                Ok(id)
            }
            _ => {
                self.throttle.handle_wrong(&guesser, Instant::now());
                self.counted.handle_wrong(What::PasswordByNetwork, &from);
                // A name that nobody has could be anything, a password typed into the wrong field too.
                if id.is_some() {
                    self.counted.handle_wrong(What::PasswordForAccount, &credentials.user);
                }
                Err(Refused::Wrong)
            }
        }
    }

    fn digest(&self, credentials: &Credentials, stored: &str) -> [u8; 32] {
        use hmac::{Hmac, Mac};
        let mut mac = Hmac::<sha2::Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        for part in [credentials.user.as_str(), credentials.password.expose(), stored] {
            // With its length, so that no two logins run together to the same bytes.
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part.as_bytes());
        }
        mac.finalize().into_bytes().into()
    }

    fn is_remembered(&self, digest: &[u8; 32]) -> bool {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(used) = remembered.get_mut(digest).filter(|used| used.elapsed() < REMEMBERED_FOR) else {
            return false;
        };
        *used = Instant::now();
        true
    }

    fn remember(&self, digest: [u8; 32]) {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= REMEMBERED {
            remembered.clear();
        }
        remembered.insert(digest, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        accounts::{Account, create, disable, enable, list, set_password},
        metrics::Metrics,
        store,
    };
    use homing_protocol::Secret;
    use std::path::Path;

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    async fn gate(data: &Path) -> Gate {
        let pool = store::open_database(data).await.unwrap();
        let counted = Counted::open(pool.clone(), Metrics::default()).await.unwrap();
        Gate::new(pool, Arc::new(counted))
    }

    #[tokio::test]
    async fn an_account_passes_with_its_password_until_that_is_changed_or_the_account_disabled() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path();
        let first = create(data, "shop").await.unwrap();
        assert!(create(data, "shop").await.unwrap_err().to_string().contains("already"));
        create(data, "a:b").await.unwrap_err();
        let gate = gate(data).await;
        let pass = async |password: &Secret| {
            gate.pass(PEER, &Credentials::new("shop", password.clone())).await.map_err(|_| ())
        };

        let id = pass(&first).await.unwrap();
        assert_eq!(pass(&first).await, Ok(id), "remembered");
        assert!(pass(&"wrong".into()).await.is_err());

        let second = set_password(data, "shop").await.unwrap();
        assert!(pass(&first).await.is_err(), "a changed password counts at once");
        assert_eq!(pass(&second).await, Ok(id));

        disable(data, "shop").await.unwrap();
        assert!(pass(&second).await.is_err(), "so does disabling");
        let third = set_password(data, "shop").await.unwrap();
        assert!(pass(&third).await.is_err(), "a new password does not enable");
        let expected =
            Account { name: "shop".into(), disabled: true, wrong_passwords: 2, ..Account::default() };
        gate.counted.write().await.unwrap();
        assert_eq!(list(data).await.unwrap(), [expected]);
        enable(data, "shop").await.unwrap();
        assert_eq!(pass(&third).await, Ok(id));
        assert!(disable(data, "nobody").await.unwrap_err().to_string().contains("nobody"));
    }

    #[tokio::test]
    async fn guessing_is_slowed_and_does_not_lock_out_who_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let password = create(folder.path(), "shop").await.unwrap();
        let gate = gate(folder.path()).await;
        let right = Credentials::new("shop", password);
        gate.pass(PEER, &right).await.unwrap();

        let wrong = Credentials::new("shop", "guess");
        let mut refusals = Vec::new();
        for _ in 0..8 {
            refusals.push(gate.pass(PEER, &wrong).await.unwrap_err());
        }
        assert!(matches!(refusals[0], Refused::Wrong));
        assert!(matches!(refusals[7], Refused::Later(wait) if !wait.is_zero()));
        gate.pass(PEER, &right).await.unwrap();

        // Nor does it help to have a network of addresses to guess from.
        let mut slowed = false;
        for address in 0..8 {
            let peer = IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, address]);
            slowed |= matches!(gate.pass(peer, &wrong).await, Err(Refused::Later(_)));
        }
        assert!(slowed);
    }
}
