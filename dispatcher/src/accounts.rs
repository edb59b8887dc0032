//! Dispatcher accounts: who may register devices here (step 2).
//!
//! The functions are for the command line and work on the database while the dispatcher runs. `Gate` is
//! what every API request passes.
//!
//! Invariant: a password is verified with argon2id once, not at every poll; what is remembered
//! in between is a keyed hash of user, password and the stored hash together, so that a changed password or
//! a disabled account counts at once.

use crate::{
    audit::{self, Action},
    store::{self, AccountId},
};
use anyhow::{Context, ensure};
use homing_base::{
    crowd::network,
    password,
    throttle::{Throttle, Tolerance},
};
use homing_protocol::{Secret, secret::Credentials};
use sqlx::SqlitePool;
use std::{
    collections::HashMap,
    fmt,
    net::IpAddr,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

/// Characters of a password that is made here, 5.8 bits each.
const PASSWORD_LENGTH: usize = 24;

/// How long a verified log-in is remembered after its last use.
const REMEMBERED_FOR: Duration = Duration::from_secs(300);

/// Verified log-ins remembered at once; when full all are forgotten, which costs one argon2id each.
const REMEMBERED: usize = 4096;

/// Passwords being verified at once: each takes 19 MiB and tens of milliseconds of a core.
const VERIFICATIONS: usize = 2;

/// How long a log-in may wait for its turn to be verified. Whoever sprays wrong names makes others wait
/// this long at most; who is remembered does not wait at all.
const VERIFICATION_WAIT: Duration = Duration::from_secs(3);

/// One account, as `list` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its name.
    pub name: String,
    /// Whether it was disabled.
    pub disabled: bool,
    /// How many devices it has registered.
    pub registrations: u32,
}

/// A line of the list: name, devices, and whether it is disabled.
impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disabled = if self.disabled { "  disabled" } else { "" };
        write!(f, "{:<24} {:>6} registered{disabled}", self.name, self.registrations)
    }
}

/// Makes an account; gives its password back, which is stored nowhere in clear.
///
/// # Errors
/// When the name is taken or unusable, or the data folder cannot be used.
pub async fn create(data: &Path, name: &str) -> anyhow::Result<Secret> {
    let usable = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@');
    ensure!(
        (1..=64).contains(&name.len()) && name.chars().all(usable),
        "an account's name has 1 to 64 letters, digits or any of - _ . @"
    );
    let pool = store::open_database(data).await?;
    let secret = password::generate(PASSWORD_LENGTH);
    let hash = password::hash(secret.clone()).await?;
    let mut change = pool.begin_with("BEGIN IMMEDIATE").await?;
    let made = sqlx::query("INSERT INTO account (name, password) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .bind(name)
        .bind(hash)
        .execute(&mut *change)
        .await?;
    ensure!(made.rows_affected() == 1, "there is an account {name:?} already");
    audit::write(&mut change, audit::OPERATOR, Action::AccountCreated, None, name).await?;
    change.commit().await?;
    pool.close().await;
    Ok(secret)
}

/// Gives an account a new password and enables it.
///
/// # Errors
/// When there is no such account.
pub async fn set_password(data: &Path, name: &str) -> anyhow::Result<Secret> {
    let secret = password::generate(PASSWORD_LENGTH);
    let hash = password::hash(secret.clone()).await?;
    change(data, name, Some(hash), false).await?;
    Ok(secret)
}

/// Refuses an account from now on; its devices stay claimed, and are not sent to it.
///
/// # Errors
/// When there is no such account.
pub async fn disable(data: &Path, name: &str) -> anyhow::Result<()> {
    change(data, name, None, true).await
}

async fn change(data: &Path, name: &str, hash: Option<String>, disabled: bool) -> anyhow::Result<()> {
    let pool = store::open_database(data).await?;
    let mut change = pool.begin_with("BEGIN IMMEDIATE").await?;
    let changed =
        sqlx::query("UPDATE account SET password = coalesce($2, password), disabled = $3 WHERE name = $1")
            .bind(name)
            .bind(hash)
            .bind(disabled)
            .execute(&mut *change)
            .await?;
    ensure!(changed.rows_affected() == 1, "there is no account {name:?}");
    let action = if disabled { Action::AccountDisabled } else { Action::PasswordSet };
    audit::write(&mut change, audit::OPERATOR, action, None, name).await?;
    change.commit().await?;
    pool.close().await;
    Ok(())
}

/// All accounts, by name.
///
/// # Errors
/// When the data folder cannot be used.
pub async fn list(data: &Path) -> anyhow::Result<Vec<Account>> {
    let pool = store::open_database(data).await?;
    let rows: Vec<(String, bool, u32)> = sqlx::query_as(
        "SELECT name, disabled, (SELECT count(*) FROM registration WHERE account = account.id) \
         FROM account ORDER BY name",
    )
    .fetch_all(&pool)
    .await?;
    pool.close().await;
    let account = |(name, disabled, registrations)| Account { name, disabled, registrations };
    Ok(rows.into_iter().map(account).collect())
}

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
}

impl Gate {
    pub fn new(pool: SqlitePool) -> Self {
        let mut key = [0; 32];
        rand::Rng::fill(&mut rand::rng(), &mut key);
        Gate {
            pool,
            key,
            remembered: Mutex::default(),
            throttle: Throttle::new(Tolerance::LOG_IN),
            verifications: Semaphore::new(VERIFICATIONS),
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
        let wait = self.throttle.wait(&guesser, Instant::now());
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

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[tokio::test]
    async fn an_account_passes_with_its_password_until_that_is_changed_or_the_account_disabled() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path();
        let first = create(data, "shop").await.unwrap();
        assert!(create(data, "shop").await.unwrap_err().to_string().contains("already"));
        create(data, "a:b").await.unwrap_err();
        let gate = Gate::new(store::open_database(data).await.unwrap());
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
        let accounts = list(data).await.unwrap();
        assert_eq!(accounts, [Account { name: "shop".into(), disabled: true, registrations: 0 }]);
        assert!(disable(data, "nobody").await.unwrap_err().to_string().contains("nobody"));
    }

    #[tokio::test]
    async fn guessing_is_slowed_and_does_not_lock_out_who_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let password = create(folder.path(), "shop").await.unwrap();
        let gate = Gate::new(store::open_database(folder.path()).await.unwrap());
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
