//! Users, their sessions and their API tokens, in the management database.
//!
//! Invariant: what admits somebody (a session's id, an API token) is 256 random bits that are stored
//! as SHA-256 only and shown once; a stolen database opens no door. Passwords are argon2id.
//!
//! Not here: cookies, headers and status codes (`gate`), and slowing down who guesses (`guesses`).

use anyhow::Context;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use homing_base::password;
use homing_protocol::Secret;
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use sqlx::SqlitePool;
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// Characters; length is what makes a password strong.
pub const SHORTEST_PASSWORD: usize = 10;

/// Characters of a user's or a token's name.
const LONGEST_NAME: usize = 64;

/// What API tokens begin with, so that people and secret scanners recognise them.
const TOKEN_PREFIX: &str = "homing_";

/// A use is written down at most so often: not every request shall be a write.
const USED_RESOLUTION: Duration = Duration::from_secs(60);

/// A session that was used later than this from now has seen another clock: it would live longer than it may.
const CLOCK_SLACK: Duration = Duration::from_secs(300);

/// How long sessions live.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// Without use.
    pub idle: Duration,
    /// Whatever happens.
    pub absolute: Duration,
}

/// Users, sessions and tokens. Cheap to clone.
#[derive(Clone)]
pub struct Accounts {
    database: SqlitePool,
    lifetimes: Lifetimes,
    /// Told whenever somebody may have lost a session or a token.
    withdrawals: Arc<watch::Sender<()>>,
}

/// Who sends a request, once that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user's number.
    pub user: i64,
    /// The user's name.
    pub name: String,
    /// How that was shown.
    pub by: Credential,
}

/// What a request was admitted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Credential {
    /// A browser's cookie: another site could make the browser send it.
    Session(i64),
    /// A bearer token: only who knows it can send it.
    Token(i64),
}

/// A user as others may see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Number.
    pub id: i64,
    /// Name.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// When somebody last signed in as this user.
    pub signed_in: Option<Timestamp>,
}

/// A session as its user may see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Number; not what admits.
    pub id: i64,
    /// When it began.
    pub created: Timestamp,
    /// When it was last used, to the minute.
    pub used: Timestamp,
    /// The address it began from.
    pub peer: String,
    /// What the browser called itself.
    pub browser: String,
}

/// A token as its user may see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Number; not what admits.
    pub id: i64,
    /// What it is for.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// When it was last used, to the minute.
    pub used: Option<Timestamp>,
}

/// Why an account cannot be changed so. The message is for who asked.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// Too short, too long, empty, with control characters.
    #[error("{0}")]
    Unsuitable(String),
    /// The name is in use.
    #[error("a user called {0:?} exists already")]
    Taken(String),
    /// There is no such thing, or it is somebody else's.
    #[error("there is no such {0}")]
    Unknown(&'static str),
    /// Nobody could sign in any more.
    #[error("the last user cannot be removed")]
    LastUser,
    /// The password that was given as the present one is not.
    #[error("the current password is not correct")]
    WrongPassword,
    /// The database.
    #[error(transparent)]
    Internal(#[from] anyhow::Error),
}

impl From<sqlx::Error> for AccountError {
    fn from(error: sqlx::Error) -> Self {
        AccountError::Internal(anyhow::Error::new(error).context("management database"))
    }
}

impl Accounts {
    /// On a database with the management schema.
    pub fn new(database: SqlitePool, lifetimes: Lifetimes) -> Self {
        Accounts { database, lifetimes, withdrawals: Arc::default() }
    }

    /// Changes whenever somebody may have lost what let them in.
    pub fn withdrawals(&self) -> watch::Receiver<()> {
        self.withdrawals.subscribe()
    }

    // Users

    /// Whether nobody was ever made.
    pub async fn is_empty(&self) -> anyhow::Result<bool> {
        let (users,): (i64,) = sqlx::query_as("SELECT COUNT(*) FROM user")
            .fetch_one(&self.database)
            .await
            .context("management database")?;
        Ok(users == 0)
    }

    /// Everybody, by name.
    pub async fn users(&self) -> Result<Vec<User>, AccountError> {
        let rows: Vec<(i64, String, i64, Option<i64>)> =
            sqlx::query_as("SELECT id, name, created_ms, signed_in_ms FROM user ORDER BY name")
                .fetch_all(&self.database)
                .await?;
        let user = |(id, name, created, signed_in): (i64, String, i64, Option<i64>)| User {
            id,
            name,
            created: moment(created),
            signed_in: signed_in.map(moment),
        };
        Ok(rows.into_iter().map(user).collect())
    }

    /// Makes a user.
    ///
    /// # Errors
    /// [`AccountError::Unsuitable`] and [`AccountError::Taken`].
    pub async fn add_user(&self, name: &str, password: Secret) -> Result<User, AccountError> {
        let name = suitable_name(name, "a user's name")?;
        suitable_password(&password)?;
        let hash = password::hash(password).await?;
        let created = now_ms();
        let inserted: Option<(i64,)> = sqlx::query_as(
            "INSERT INTO user (name, password, created_ms) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING id",
        )
        .bind(name)
        .bind(hash)
        .bind(created)
        .fetch_optional(&self.database)
        .await?;
        let (id,) = inserted.ok_or_else(|| AccountError::Taken(name.to_owned()))?;
        Ok(User { id, name: name.to_owned(), created: moment(created), signed_in: None })
    }

    /// Removes a user with all sessions and tokens; the name is returned.
    ///
    /// # Errors
    /// [`AccountError::LastUser`] and [`AccountError::Unknown`].
    pub async fn remove_user(&self, id: i64) -> Result<String, AccountError> {
        // One statement decides and acts, so that two administrators cannot remove each other at once.
        let removed: Option<(String,)> = sqlx::query_as(
            "DELETE FROM user WHERE id = $1 AND (SELECT COUNT(*) FROM user) > 1 RETURNING name",
        )
        .bind(id)
        .fetch_optional(&self.database)
        .await?;
        self.withdrawals.send_replace(());
        match removed {
            Some((name,)) => Ok(name),
            None if self.users().await?.iter().any(|user| user.id == id) => Err(AccountError::LastUser),
            None => Err(AccountError::Unknown("user")),
        }
    }

    /// Sets a password and ends the user's sessions, all but `keep`; the name is returned.
    ///
    /// # Errors
    /// [`AccountError::Unsuitable`] and [`AccountError::Unknown`].
    pub async fn set_password(
        &self,
        id: i64,
        password: Secret,
        keep: Option<i64>,
    ) -> Result<String, AccountError> {
        suitable_password(&password)?;
        let hash = password::hash(password).await?;
        let mut transaction = self.database.begin().await?;
        let changed: Option<(String,)> =
            sqlx::query_as("UPDATE user SET password = $1 WHERE id = $2 RETURNING name")
                .bind(hash)
                .bind(id)
                .fetch_optional(&mut *transaction)
                .await?;
        let (name,) = changed.ok_or(AccountError::Unknown("user"))?;
        sqlx::query("DELETE FROM session WHERE user = $1 AND id <> $2")
            .bind(id)
            .bind(keep.unwrap_or(0))
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        self.withdrawals.send_replace(());
        Ok(name)
    }

    /// The user with this name and password, if there is one. Takes as long when there is none.
    pub async fn check(&self, name: &str, password: Secret) -> Result<Option<(i64, String)>, AccountError> {
        let found: Option<(i64, String, String)> =
            sqlx::query_as("SELECT id, name, password FROM user WHERE name = $1")
                .bind(name)
                .fetch_optional(&self.database)
                .await?;
        let stored = found.as_ref().map(|(_, _, stored)| stored.clone());
        let admitted = password::verify(password, stored).await;
        Ok(found.filter(|_| admitted).map(|(id, name, _)| (id, name)))
    }

    // Sessions

    /// Begins a session; the secret goes into the cookie and is not seen again.
    pub async fn begin_session(&self, user: i64, peer: &str, browser: &str) -> Result<Secret, AccountError> {
        let (secret, hash) = draw("");
        let now = now_ms();
        let browser: String = browser.chars().filter(|c| !c.is_control()).take(200).collect();
        sqlx::query(
            "INSERT INTO session (hash, user, created_ms, used_ms, peer, browser) VALUES ($1, $2, $3, $3, $4, $5)",
        )
        .bind(hash)
        .bind(user)
        .bind(now)
        .bind(peer)
        .bind(browser)
        .execute(&self.database)
        .await?;
        sqlx::query("UPDATE user SET signed_in_ms = $1 WHERE id = $2")
            .bind(now)
            .bind(user)
            .execute(&self.database)
            .await?;
        Ok(secret)
    }

    /// Whose session this is, if it is one and has not ended. Counts as use.
    pub async fn session(&self, secret: &str) -> Result<Option<Identity>, AccountError> {
        let now = now_ms();
        let found: Option<(i64, i64, String, i64)> = sqlx::query_as(
            "SELECT session.id, user.id, user.name, session.used_ms FROM session JOIN user ON user.id = session.user
             WHERE session.hash = $1 AND session.used_ms > $2 AND session.created_ms > $3
             AND session.used_ms <= $4",
        )
        .bind(hash(secret))
        .bind(now - millis(self.lifetimes.idle))
        .bind(now - millis(self.lifetimes.absolute))
        .bind(now + millis(CLOCK_SLACK))
        .fetch_optional(&self.database)
        .await?;
        let Some((id, user, name, used)) = found else { return Ok(None) };
        if now - used > millis(USED_RESOLUTION) {
            sqlx::query("UPDATE session SET used_ms = $1 WHERE id = $2")
                .bind(now)
                .bind(id)
                .execute(&self.database)
                .await?;
        }
        Ok(Some(Identity { user, name, by: Credential::Session(id) }))
    }

    /// A user's sessions, the latest used first.
    pub async fn sessions(&self, user: i64) -> Result<Vec<Session>, AccountError> {
        let rows: Vec<(i64, i64, i64, String, String)> = sqlx::query_as(
            "SELECT id, created_ms, used_ms, peer, browser FROM session WHERE user = $1 ORDER BY used_ms DESC, id DESC",
        )
        .bind(user)
        .fetch_all(&self.database)
        .await?;
        let session = |(id, created, used, peer, browser)| Session {
            id,
            created: moment(created),
            used: moment(used),
            peer,
            browser,
        };
        Ok(rows.into_iter().map(session).collect())
    }

    /// Ends one of the user's sessions.
    ///
    /// # Errors
    /// [`AccountError::Unknown`] when it is not the user's.
    pub async fn end_session(&self, user: i64, id: i64) -> Result<(), AccountError> {
        let ended = sqlx::query("DELETE FROM session WHERE id = $1 AND user = $2")
            .bind(id)
            .bind(user)
            .execute(&self.database)
            .await?;
        self.withdrawals.send_replace(());
        if ended.rows_affected() == 0 { Err(AccountError::Unknown("session")) } else { Ok(()) }
    }

    /// Forgets sessions that have ended by themselves.
    pub async fn sweep(&self) -> Result<(), AccountError> {
        let now = now_ms();
        sqlx::query("DELETE FROM session WHERE used_ms <= $1 OR created_ms <= $2 OR used_ms > $3")
            .bind(now - millis(self.lifetimes.idle))
            .bind(now - millis(self.lifetimes.absolute))
            .bind(now + millis(CLOCK_SLACK))
            .execute(&self.database)
            .await?;
        Ok(())
    }

    // Tokens

    /// Makes an API token for a user; the secret is shown once.
    ///
    /// # Errors
    /// [`AccountError::Unsuitable`] for its name.
    pub async fn add_token(&self, user: i64, name: &str) -> Result<(Token, Secret), AccountError> {
        let name = suitable_name(name, "a token's name")?;
        let (secret, hash) = draw(TOKEN_PREFIX);
        let created = now_ms();
        let (id,): (i64,) = sqlx::query_as(
            "INSERT INTO token (hash, user, name, created_ms) VALUES ($1, $2, $3, $4) RETURNING id",
        )
        .bind(hash)
        .bind(user)
        .bind(name)
        .bind(created)
        .fetch_one(&self.database)
        .await?;
        Ok((Token { id, name: name.to_owned(), created: moment(created), used: None }, secret))
    }

    /// Whose token this is, if it is one.
    pub async fn token(&self, secret: &str) -> Result<Option<Identity>, AccountError> {
        let found: Option<(i64, i64, String, Option<i64>)> = sqlx::query_as(
            "SELECT token.id, user.id, user.name, token.used_ms FROM token JOIN user ON user.id = token.user
             WHERE token.hash = $1",
        )
        .bind(hash(secret))
        .fetch_optional(&self.database)
        .await?;
        let Some((id, user, name, used)) = found else { return Ok(None) };
        let now = now_ms();
        if used.is_none_or(|used| now - used > millis(USED_RESOLUTION)) {
            sqlx::query("UPDATE token SET used_ms = $1 WHERE id = $2")
                .bind(now)
                .bind(id)
                .execute(&self.database)
                .await?;
        }
        Ok(Some(Identity { user, name, by: Credential::Token(id) }))
    }

    /// A user's tokens, oldest first.
    pub async fn tokens(&self, user: i64) -> Result<Vec<Token>, AccountError> {
        let rows: Vec<(i64, String, i64, Option<i64>)> =
            sqlx::query_as("SELECT id, name, created_ms, used_ms FROM token WHERE user = $1 ORDER BY id")
                .bind(user)
                .fetch_all(&self.database)
                .await?;
        let token = |(id, name, created, used): (i64, String, i64, Option<i64>)| Token {
            id,
            name,
            created: moment(created),
            used: used.map(moment),
        };
        Ok(rows.into_iter().map(token).collect())
    }

    /// Withdraws one of the user's tokens; its name is returned.
    ///
    /// # Errors
    /// [`AccountError::Unknown`] when it is not the user's.
    pub async fn remove_token(&self, user: i64, id: i64) -> Result<String, AccountError> {
        let removed: Option<(String,)> =
            sqlx::query_as("DELETE FROM token WHERE id = $1 AND user = $2 RETURNING name")
                .bind(id)
                .bind(user)
                .fetch_optional(&self.database)
                .await?;
        self.withdrawals.send_replace(());
        removed.map(|(name,)| name).ok_or(AccountError::Unknown("token"))
    }
}

/// 256 random bits as text, and what is stored of them.
fn draw(prefix: &str) -> (Secret, Vec<u8>) {
    let mut random = [0u8; 32];
    rand::Rng::fill(&mut rand::rng(), &mut random);
    let text = format!("{prefix}{}", URL_SAFE_NO_PAD.encode(random));
    let hash = hash(&text);
    (Secret::new(text), hash)
}

/// No salt and no stretching: the input is 256 random bits.
fn hash(secret: &str) -> Vec<u8> {
    Sha256::digest(secret.as_bytes()).to_vec()
}

fn suitable_name<'a>(name: &'a str, what: &str) -> Result<&'a str, AccountError> {
    let name = name.trim();
    if name.is_empty() || name.chars().count() > LONGEST_NAME || name.chars().any(char::is_control) {
        return Err(AccountError::Unsuitable(format!("{what} has 1 to {LONGEST_NAME} characters")));
    }
    Ok(name)
}

fn suitable_password(password: &Secret) -> Result<(), AccountError> {
    let length = password.expose().chars().count();
    if length < SHORTEST_PASSWORD {
        return Err(AccountError::Unsuitable(format!(
            "a password has at least {SHORTEST_PASSWORD} characters; three or four words are easy to remember"
        )));
    }
    if length > 256 {
        return Err(AccountError::Unsuitable("a password has at most 256 characters".to_owned()));
    }
    Ok(())
}

pub(crate) fn now_ms() -> i64 {
    Timestamp::now().as_millisecond()
}

pub(crate) fn moment(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Lifetimes =
        Lifetimes { idle: Duration::from_secs(3600), absolute: Duration::from_secs(7200) };

    async fn accounts(folder: &tempfile::TempDir, lifetimes: Lifetimes) -> Accounts {
        let path = folder.path().join("management.sqlite");
        Accounts::new(homing_base::database::open(&path, crate::MIGRATIONS).await.unwrap(), lifetimes)
    }

    #[tokio::test]
    async fn a_session_admits_until_it_is_ended_or_the_password_changes() {
        let folder = tempfile::tempdir().unwrap();
        let accounts = accounts(&folder, LONG).await;
        let user = accounts.add_user("Ada", "correct horse".into()).await.unwrap();
        assert_eq!(accounts.check("ada", "correct horse".into()).await.unwrap().unwrap().1, "Ada");
        assert!(accounts.check("Ada", "Correct horse".into()).await.unwrap().is_none());
        assert!(accounts.check("Bob", "correct horse".into()).await.unwrap().is_none());

        let first = accounts.begin_session(user.id, "127.0.0.1", "test").await.unwrap();
        let second = accounts.begin_session(user.id, "127.0.0.1", "test").await.unwrap();
        let third = accounts.begin_session(user.id, "127.0.0.1", "test").await.unwrap();
        let id = |identity: Option<Identity>| match identity.unwrap().by {
            Credential::Session(id) => id,
            other => panic!("{other:?}"),
        };
        let first_id = id(accounts.session(first.expose()).await.unwrap());
        let second_id = id(accounts.session(second.expose()).await.unwrap());
        assert!(accounts.session("nonsense").await.unwrap().is_none());

        accounts.end_session(user.id, first_id).await.unwrap();
        assert!(accounts.session(first.expose()).await.unwrap().is_none());
        assert!(accounts.end_session(user.id + 1, second_id).await.is_err());

        accounts.set_password(user.id, "another horse".into(), Some(second_id)).await.unwrap();
        assert!(accounts.session(second.expose()).await.unwrap().is_some());
        assert!(accounts.session(third.expose()).await.unwrap().is_none());
        assert!(accounts.check("ada", "correct horse".into()).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_clock_that_is_set_back_prolongs_no_session() {
        let folder = tempfile::tempdir().unwrap();
        let accounts = accounts(&folder, LONG).await;
        let user = accounts.add_user("Ada", "correct horse".into()).await.unwrap();
        for (back, admits) in [(Duration::from_secs(60), true), (Duration::from_secs(600), false)] {
            let session = accounts.begin_session(user.id, "127.0.0.1", "test").await.unwrap();
            // As if it had been used before the clock was set back.
            sqlx::query("UPDATE session SET used_ms = used_ms + $1, created_ms = created_ms + $1")
                .bind(millis(back))
                .execute(&accounts.database)
                .await
                .unwrap();
            assert_eq!(accounts.session(session.expose()).await.unwrap().is_some(), admits, "{back:?}");
            accounts.sweep().await.unwrap();
        }
        assert!(accounts.sessions(user.id).await.unwrap().is_empty(), "what has ended is forgotten");
    }

    #[tokio::test]
    async fn sessions_end_by_themselves() {
        for lifetimes in [
            Lifetimes { idle: Duration::ZERO, absolute: Duration::from_secs(60) },
            Lifetimes { idle: Duration::from_secs(60), absolute: Duration::ZERO },
        ] {
            let folder = tempfile::tempdir().unwrap();
            let accounts = accounts(&folder, lifetimes).await;
            let user = accounts.add_user("ada", "correct horse".into()).await.unwrap();
            let session = accounts.begin_session(user.id, "::1", "test").await.unwrap();
            assert!(accounts.session(session.expose()).await.unwrap().is_none(), "{lifetimes:?}");
            accounts.sweep().await.unwrap();
            assert!(accounts.sessions(user.id).await.unwrap().is_empty(), "what has ended is forgotten");
        }
    }

    #[tokio::test]
    async fn the_database_holds_nothing_that_admits() {
        let folder = tempfile::tempdir().unwrap();
        let accounts = accounts(&folder, LONG).await;
        let user = accounts.add_user("ada", "correct horse".into()).await.unwrap();
        let session = accounts.begin_session(user.id, "::1", "test").await.unwrap();
        let (token, secret) = accounts.add_token(user.id, "script").await.unwrap();
        assert_eq!(accounts.token(secret.expose()).await.unwrap().unwrap().by, Credential::Token(token.id));
        accounts.database.close().await;

        let mut files = 0;
        for entry in std::fs::read_dir(folder.path()).unwrap() {
            let content = std::fs::read(entry.unwrap().path()).unwrap();
            files += 1;
            for secret in [session.expose(), secret.expose(), "correct horse"] {
                assert!(!content.windows(secret.len()).any(|window| window == secret.as_bytes()));
            }
        }
        assert!(files > 0);
    }

    #[tokio::test]
    async fn the_last_user_stays_and_names_are_unique() {
        let folder = tempfile::tempdir().unwrap();
        let accounts = accounts(&folder, LONG).await;
        assert!(accounts.is_empty().await.unwrap());
        let ada = accounts.add_user(" ada ", "correct horse".into()).await.unwrap();
        let taken = accounts.add_user("ADA", "correct horse".into()).await;
        assert!(matches!(taken, Err(AccountError::Taken(_))));
        assert!(matches!(accounts.add_user("bob", "short".into()).await, Err(AccountError::Unsuitable(_))));
        assert!(matches!(
            accounts.add_user("  ", "correct horse".into()).await,
            Err(AccountError::Unsuitable(_))
        ));
        assert!(matches!(accounts.remove_user(ada.id).await, Err(AccountError::LastUser)));
        let bob = accounts.add_user("bob", "correct horse".into()).await.unwrap();
        let (_, token) = accounts.add_token(ada.id, "script").await.unwrap();
        assert_eq!(accounts.remove_user(ada.id).await.unwrap(), "ada");
        assert!(accounts.token(token.expose()).await.unwrap().is_none());
        assert!(matches!(accounts.remove_user(ada.id).await, Err(AccountError::Unknown(_))));
        assert!(matches!(accounts.remove_user(bob.id).await, Err(AccountError::LastUser)));
    }
}
