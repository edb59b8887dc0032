//! Dispatcher accounts: who may register devices here, how many, and where it may send them (step 2).
//!
//! The functions that take a data folder are for the command line, and work on the database while the dispatcher runs;
//! those on a pool are the operator's API. What they change counts at once.

use crate::{
    audit::{self, Action},
    store::{self, AccountId, from_json, to_json},
};
use anyhow::Context;
use homing_base::password;
use homing_protocol::Secret;
use serde::{Deserialize, Deserializer, Serialize};
use sqlx::{Row, SqlitePool};
use std::{fmt, path::Path};

/// Characters of a password that is made here, 5.8 bits each.
const PASSWORD_LENGTH: usize = 24;

/// Addresses that an account's devices may be sent to.
const SERVERS_MOST: usize = 64;

/// One account, as its operator sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Account {
    /// Its name.
    pub name: String,
    /// Whether it is refused.
    pub disabled: bool,
    /// How many devices it has registered.
    pub registrations: u32,
    /// Its limits.
    #[serde(flatten)]
    pub limits: Limits,
    /// Wrong and corrected OAKs lately.
    pub wrong_oaks: u32,
    /// Wrong passwords lately.
    pub wrong_passwords: u32,
}

/// What an account may do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Limits {
    /// Devices that it may register; none: as the dispatcher's configuration says.
    #[serde(default)]
    pub devices: Option<u32>,
    /// Registrations that it may send in a minute; none: as the dispatcher's configuration says.
    #[serde(default)]
    pub per_minute: Option<u32>,
    /// Tunnel servers that it may send devices to, `host` or `host:port`; none: any. What is registered stays.
    #[serde(default)]
    pub servers: Option<Vec<String>>,
}

/// What is to be different; whatever is not given stays.
#[derive(Clone, Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeAccount {
    /// Whether it is refused from now on. Its devices stay claimed, and are not sent to it.
    #[serde(default)]
    pub disabled: Option<bool>,
    /// As in [`Limits`]; `null`: as configured.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>, minimum = 1)]
    pub devices: Option<Option<u32>>,
    /// As in [`Limits`]; `null`: as configured.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>, minimum = 1)]
    pub per_minute: Option<Option<u32>>,
    /// As in [`Limits`]; `null`: any.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<Vec<String>>)]
    pub servers: Option<Option<Vec<String>>>,
}

fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// Why an account is not made or changed.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// Choose another name.
    #[error("an account's name has 1 to 64 letters, digits or any of - _ . @")]
    Unusable,
    /// Choose another name.
    #[error("there is an account {0:?} already")]
    Taken(String),
    /// Look at the list.
    #[error("there is no account {0:?}")]
    Unknown(String),
    /// Says which limit, and what it may be.
    #[error("{0}")]
    Limits(String),
    /// The database or the data folder.
    #[error(transparent)]
    Internal(#[from] anyhow::Error),
}

impl From<sqlx::Error> for AccountError {
    fn from(error: sqlx::Error) -> Self {
        AccountError::Internal(anyhow::Error::new(error).context("accounts"))
    }
}

/// A line of the list.
impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Account { name, disabled, registrations, limits, wrong_oaks, wrong_passwords } = self;
        write!(f, "{name:<24} {registrations:>6}")?;
        match limits.devices {
            Some(devices) => write!(f, " of {devices:<6} registered")?,
            None => write!(f, "{:10} registered", "")?,
        }
        if let Some(rate) = limits.per_minute {
            write!(f, "  {rate} a minute")?;
        }
        if let Some(servers) = &limits.servers {
            write!(f, "  to {}", servers.join(", "))?;
        }
        if *wrong_oaks > 0 || *wrong_passwords > 0 {
            write!(f, "  wrong lately: {wrong_oaks} OAKs, {wrong_passwords} passwords")?;
        }
        if *disabled { write!(f, "  disabled") } else { Ok(()) }
    }
}

/// Whether an account may be called so.
pub(crate) fn is_usable(name: &str) -> bool {
    let usable = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@');
    (1..=64).contains(&name.len()) && name.chars().all(usable)
}

/// Makes an account; gives its password back, which is stored nowhere in clear.
///
/// # Errors
/// When the name is taken or unusable, or the data folder cannot be used.
pub async fn create(data: &Path, name: &str) -> Result<Secret, AccountError> {
    let pool = store::open_database(data).await?;
    let made = make(&pool, name).await;
    pool.close().await;
    made
}

/// Gives an account a new password.
///
/// # Errors
/// When there is no such account.
pub async fn set_password(data: &Path, name: &str) -> Result<Secret, AccountError> {
    let pool = store::open_database(data).await?;
    let secret = new_password(&pool, name).await;
    pool.close().await;
    secret
}

/// Refuses an account from now on; its devices stay claimed, and are not sent to it.
///
/// # Errors
/// When there is no such account.
pub async fn disable(data: &Path, name: &str) -> Result<(), AccountError> {
    change(data, name, ChangeAccount { disabled: Some(true), ..ChangeAccount::default() }).await
}

/// Takes that back.
///
/// # Errors
/// When there is no such account.
pub async fn enable(data: &Path, name: &str) -> Result<(), AccountError> {
    change(data, name, ChangeAccount { disabled: Some(false), ..ChangeAccount::default() }).await
}

/// Changes what is given.
///
/// # Errors
/// When there is no such account, or a limit cannot be.
pub async fn change(data: &Path, name: &str, change: ChangeAccount) -> Result<(), AccountError> {
    let pool = store::open_database(data).await?;
    let changed = set(&pool, name, change).await;
    pool.close().await;
    changed
}

/// All accounts, by name.
///
/// # Errors
/// When the data folder cannot be used.
pub async fn list(data: &Path) -> Result<Vec<Account>, AccountError> {
    let pool = store::open_database(data).await?;
    let all = all(&pool, None).await;
    pool.close().await;
    Ok(all?)
}

pub(crate) async fn make(pool: &SqlitePool, name: &str) -> Result<Secret, AccountError> {
    if !is_usable(name) {
        return Err(AccountError::Unusable);
    }
    let secret = password::generate(PASSWORD_LENGTH);
    let hash = password::hash(secret.clone()).await?;
    let mut change = pool.begin_with("BEGIN IMMEDIATE").await?;
    let made = sqlx::query("INSERT INTO account (name, password) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .bind(name)
        .bind(hash)
        .execute(&mut *change)
        .await?;
    if made.rows_affected() != 1 {
        return Err(AccountError::Taken(name.to_owned()));
    }
    audit::write(&mut change, audit::OPERATOR, Action::AccountCreated, None, name).await?;
    change.commit().await?;
    Ok(secret)
}

pub(crate) async fn new_password(pool: &SqlitePool, name: &str) -> Result<Secret, AccountError> {
    let secret = password::generate(PASSWORD_LENGTH);
    let hash = password::hash(secret.clone()).await?;
    let mut change = pool.begin_with("BEGIN IMMEDIATE").await?;
    let changed = sqlx::query("UPDATE account SET password = $2 WHERE name = $1")
        .bind(name)
        .bind(hash)
        .execute(&mut *change)
        .await?;
    if changed.rows_affected() != 1 {
        return Err(AccountError::Unknown(name.to_owned()));
    }
    audit::write(&mut change, audit::OPERATOR, Action::PasswordSet, None, name).await?;
    change.commit().await?;
    Ok(secret)
}

pub(crate) async fn set(pool: &SqlitePool, name: &str, asked: ChangeAccount) -> Result<(), AccountError> {
    let refuse = |why: String| Err(AccountError::Limits(why));
    if asked.devices == Some(Some(0)) || asked.per_minute == Some(Some(0)) {
        return refuse("a limit is at least 1; disable the account instead".to_owned());
    }
    if let Some(Some(servers)) = &asked.servers {
        if !(1..=SERVERS_MOST).contains(&servers.len()) {
            return refuse(format!("give 1 to {SERVERS_MOST} tunnel servers, or null for any"));
        }
        let bad = |server: &&String| {
            server.contains('/')
                || format!("https://{server}/").parse::<homing_uplink::UplinkAddress>().is_err()
        };
        if let Some(server) = servers.iter().find(bad) {
            let shown: String = server.chars().take(100).collect();
            return refuse(format!(
                "{shown:?} is no address of a tunnel server: write it as host or host:port"
            ));
        }
    }
    let mut change = pool.begin_with("BEGIN IMMEDIATE").await?;
    let Some(Account { disabled, mut limits, .. }) = all(&mut *change, Some(name)).await?.pop() else {
        return Err(AccountError::Unknown(name.to_owned()));
    };
    let before = limits.clone();
    limits.devices = asked.devices.unwrap_or(limits.devices);
    limits.per_minute = asked.per_minute.unwrap_or(limits.per_minute);
    limits.servers = asked.servers.unwrap_or(limits.servers);
    sqlx::query(
        "UPDATE account SET disabled = $2, devices = $3, per_minute = $4, servers = $5 WHERE name = $1",
    )
    .bind(name)
    .bind(asked.disabled.unwrap_or(disabled))
    .bind(limits.devices)
    .bind(limits.per_minute)
    .bind(limits.servers.as_ref().map(to_json))
    .execute(&mut *change)
    .await?;
    match asked.disabled {
        Some(true) if !disabled => {
            audit::write(&mut change, audit::OPERATOR, Action::AccountDisabled, None, name).await?;
        }
        Some(false) if disabled => {
            audit::write(&mut change, audit::OPERATOR, Action::AccountEnabled, None, name).await?;
        }
        _ => {}
    }
    if limits != before {
        let detail = format!("{name}: {}", to_json(&limits));
        audit::write(&mut change, audit::OPERATOR, Action::AccountChanged, None, &detail).await?;
    }
    change.commit().await?;
    Ok(())
}

/// All accounts, or one.
pub(crate) async fn all<'a>(
    from: impl sqlx::SqliteExecutor<'a>,
    name: Option<&str>,
) -> anyhow::Result<Vec<Account>> {
    let rows = sqlx::query(
        "SELECT name, disabled, devices, per_minute, servers, \
         (SELECT count(*) FROM registration WHERE account = account.id AND state != 'transferred') AS registrations, \
         (SELECT count FROM attempt WHERE what = 'oak-by-account' AND who = name) AS wrong_oaks, \
         (SELECT count FROM attempt WHERE what = 'password-for-account' AND who = name) AS wrong_passwords \
         FROM account WHERE $1 IS NULL OR name = $1 ORDER BY name",
    )
    .bind(name)
    .fetch_all(from)
    .await
    .context("accounts")?;
    let account = |row: &sqlx::sqlite::SqliteRow| {
        let servers: Option<&str> = row.try_get("servers")?;
        Ok(Account {
            name: row.try_get("name")?,
            disabled: row.try_get("disabled")?,
            registrations: row.try_get("registrations")?,
            limits: Limits {
                devices: row.try_get("devices")?,
                per_minute: row.try_get("per_minute")?,
                servers: servers.map(from_json).transpose()?,
            },
            wrong_oaks: row.try_get::<Option<u32>, _>("wrong_oaks")?.unwrap_or_default(),
            wrong_passwords: row.try_get::<Option<u32>, _>("wrong_passwords")?.unwrap_or_default(),
        })
    };
    rows.iter().map(account).collect()
}

/// Name and limits of an account that has passed the gate.
pub(crate) async fn limits(pool: &SqlitePool, account: AccountId) -> anyhow::Result<(String, Limits)> {
    let row = sqlx::query("SELECT name, devices, per_minute, servers FROM account WHERE id = $1")
        .bind(account.0)
        .fetch_one(pool)
        .await
        .context("account")?;
    let servers: Option<&str> = row.try_get("servers")?;
    let limits = Limits {
        devices: row.try_get("devices")?,
        per_minute: row.try_get("per_minute")?,
        servers: servers.map(from_json).transpose()?,
    };
    Ok((row.try_get("name")?, limits))
}

impl Limits {
    /// Whether devices may be sent there (`host:port`).
    pub(crate) fn allow(&self, server: &str) -> bool {
        let host = server.rsplit_once(':').map_or(server, |(host, _)| host);
        self.servers.as_ref().is_none_or(|servers| {
            servers.iter().any(|one| one.eq_ignore_ascii_case(server) || one.eq_ignore_ascii_case(host))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn limits_are_set_and_taken_back_and_everything_is_audited() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path();
        create(data, "shop").await.unwrap();
        let asked = |json: &str| serde_json::from_str::<ChangeAccount>(json).unwrap();
        let set = async |json: &str| change(data, "shop", asked(json)).await;
        set(r#"{"devices": 5, "per_minute": 10, "servers": ["sts.example", "sts2.example:8443"]}"#)
            .await
            .unwrap();
        let account = list(data).await.unwrap().remove(0);
        assert!(account.limits.allow("STS.example:443") && account.limits.allow("sts2.example:8443"));
        assert!(!account.limits.allow("sts2.example:443") && !account.limits.allow("other:443"));
        assert_eq!(
            account.to_string().trim_end(),
            "shop                          0 of 5      registered  10 a minute  to \
            sts.example, sts2.example:8443"
        );
        set(r#"{"disabled": true}"#).await.unwrap();
        set(r#"{"devices": null, "servers": null}"#).await.unwrap();
        let account = list(data).await.unwrap().remove(0);
        let limits = Limits { per_minute: Some(10), ..Limits::default() };
        assert_eq!((account.disabled, account.limits), (true, limits));
        for wrong in
            [r#"{"devices": 0}"#, r#"{"per_minute": 0}"#, r#"{"servers": []}"#, r#"{"servers": ["a b"]}"#]
        {
            assert!(matches!(set(wrong).await, Err(AccountError::Limits(_))), "{wrong}");
        }
        let unknown = change(data, "nobody", asked("{}")).await;
        assert!(matches!(unknown, Err(AccountError::Unknown(_))));
        let mut told = Vec::new();
        audit::read(data, None, |entry| told.push(entry.action.clone())).await.unwrap();
        assert_eq!(told, ["account-created", "account-changed", "account-disabled", "account-changed"]);
    }
}
