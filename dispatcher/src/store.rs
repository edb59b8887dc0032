//! Registrations and what has become of them, in one SQLite file (steps 2 and 5).
//!
//! Invariants:
//! - a serial number belongs to one account, until that deletes the registration;
//! - OAK and credentials are stored sealed and bound to their serial number, and are gone from the file
//!   once the device has been dispatched;
//! - each change of a registration takes the next place in its account's sequence, in one transaction, so
//!   that a tunnel server that asks for what comes after `N` misses nothing;
//! - a `PUT` makes a new generation: what was begun under an older one can no longer write.

use crate::{
    audit::{self, Action},
    lists,
};
use anyhow::Context;
use homing_base::{
    Vault, database,
    vault::{self, SealedColumn},
};
use homing_protocol::{
    Oak, Secret, SerialNumber, Step,
    api::{
        ProblemDetail,
        dispatcher::{Changes, NewRegistration, Registration, RegistrationState},
    },
    secret::Credentials,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sqlx::{Sqlite, SqlitePool, Transaction};
use std::{
    collections::HashMap,
    path::Path,
    sync::{Mutex, PoisonError},
};
use tokio::sync::watch;

const MIGRATIONS: &[&str] =
    &[include_str!("schema/1.sql"), include_str!("schema/2.sql"), include_str!("schema/4.sql")];

/// Changes told in one answer; what is left comes with the next question.
const CHANGES_AT_ONCE: u32 = 500;

/// The database's key of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct AccountId(pub i64);

/// Which `PUT` of a serial number; greater is newer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Generation(pub i64);

/// How far an account's changes have come, and how far its tunnel server has acknowledged them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Counts up with every change and with every attempt that ended.
    pub events: u64,
    /// The last `after` that was asked for.
    pub acknowledged: u64,
}

/// What step 5 needs to know, and forgets.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub generation: Generation,
    pub account: AccountId,
    pub serial: SerialNumber,
    pub state: RegistrationState,
    pub servers: Vec<String>,
    pub trust_anchor: String,
    /// The key that it was bound to last, under this or an earlier generation.
    pub fingerprint: Option<String>,
    /// None once dispatched.
    pub secrets: Option<DeviceSecrets>,
}

/// What only the registered device may be shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct DeviceSecrets {
    pub oak: Oak,
    pub credentials: Credentials,
}

/// A state to be entered.
pub(crate) struct Entered {
    pub state: RegistrationState,
    pub step: Step,
    pub fingerprint: Option<String>,
    pub problem: Option<ProblemDetail>,
}

/// What a registration must keep to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Registrations that one account may have.
    pub limit: u32,
    /// Whether every device must be on a manufacturer's list.
    pub listed_only: bool,
}

/// Why a registration is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PutError {
    #[error("claimed by another account since {0}")]
    Claimed(Timestamp),
    #[error("the account has {0} registrations, which is its limit")]
    Limit(u32),
    #[error("the manufacturer's list has another OAK")]
    WrongOak,
    #[error("on no manufacturer's list")]
    Unlisted,
    #[error(transparent)]
    Internal(#[from] anyhow::Error),
}

/// Opens the database in a data folder, which is made where it is missing.
pub(crate) async fn open_database(data: &Path) -> anyhow::Result<SqlitePool> {
    vault::private_folder(data)?;
    database::open(&data.join("dispatcher.sqlite"), MIGRATIONS).await
}

/// What the keys of this role are called where they are handed in.
const ROLE: &str = "dispatcher";

/// Whatever is sealed: a new column must be named here, to be sealed anew when keys are rotated.
const SEALED: &[SealedColumn] = &[
    SealedColumn {
        table: "registration",
        key: "serial",
        column: "secrets",
        purpose: |serial| purpose(serial),
    },
    SealedColumn { table: "listed", key: "serial", column: "oak", purpose: |serial| lists::purpose(serial) },
];

/// The keys, for a command beside the dispatcher that may be running: refresh them in each transaction.
pub(crate) async fn open_vault(data: &Path, pool: &SqlitePool) -> anyhow::Result<Vault> {
    Vault::open_beside(ROLE, data, pool).await
}

pub(crate) struct Store {
    pool: SqlitePool,
    vault: Vault,
    progress: Mutex<HashMap<AccountId, watch::Sender<Progress>>>,
}

type Row = (String, String, String, Option<String>, Option<String>, String, i64);
const ROW: &str = "serial, state, step, fingerprint, problem, since, seq";

impl Store {
    /// Opens database and master key. What was being dispatched when the last process ended waits again.
    pub async fn open(data: &Path) -> anyhow::Result<Store> {
        let pool = open_database(data).await?;
        let vault = Vault::open(ROLE, data, &pool, SEALED).await?;
        let store = Store { pool, vault, progress: Mutex::default() };
        let cut_short: Vec<(i64,)> =
            sqlx::query_as("SELECT generation FROM registration WHERE state = 'dispatching'")
                .fetch_all(&store.pool)
                .await?;
        for (generation,) in cut_short {
            let waiting = Entered {
                state: RegistrationState::Waiting,
                step: Step::Relay,
                fingerprint: None,
                problem: None,
            };
            store.enter(Generation(generation), &[RegistrationState::Dispatching], waiting).await?;
        }
        Ok(store)
    }

    /// Its keys, to be kept while the role runs.
    pub fn vault(&self) -> Vault {
        self.vault.clone()
    }

    pub fn pool(&self) -> &SqlitePool {
        &self.pool
    }

    /// What a manufacturer's list says of a device.
    pub async fn listed(&self, serial: SerialNumber) -> anyhow::Result<Option<lists::Listed>> {
        lists::find(&self.pool, &self.vault, serial).await
    }

    /// Takes a registration, or replaces the account's own earlier one. A refusal of somebody else's claim is
    /// in the audit log, too.
    pub async fn put(
        &self,
        account: AccountId,
        serial: SerialNumber,
        new: &NewRegistration,
        rules: Rules,
    ) -> Result<Generation, PutError> {
        let sealed = self.seal(serial, new).context("sealing").map_err(PutError::Internal)?;
        let generation = self.put_sealed(account, serial, new, sealed, rules).await?;
        self.handle_change(account);
        Ok(generation)
    }

    fn seal(&self, serial: SerialNumber, new: &NewRegistration) -> anyhow::Result<Vec<u8>> {
        let credentials = Credentials::new(new.user.clone(), new.password.clone());
        let secrets = DeviceSecrets { oak: new.oak.clone(), credentials };
        let secrets = Secret::new(serde_json::to_string(&secrets)?);
        Ok(self.vault.seal(&purpose(serial), &secrets))
    }

    async fn put_sealed(
        &self,
        account: AccountId,
        serial: SerialNumber,
        new: &NewRegistration,
        sealed: Vec<u8>,
        rules: Rules,
    ) -> Result<Generation, PutError> {
        let internal = |error: sqlx::Error| PutError::Internal(anyhow::Error::new(error).context("database"));
        let now = Timestamp::now().to_string();
        let mut change = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(internal)?;
        let claim: Option<(i64, String, Option<String>)> =
            sqlx::query_as("SELECT account, claimed, fingerprint FROM registration WHERE serial = $1")
                .bind(serial.to_string())
                .fetch_optional(&mut *change)
                .await
                .map_err(internal)?;
        let is_new = claim.is_none();
        let (claimed, fingerprint) = match claim {
            Some((owner, claimed, _)) if owner != account.0 => {
                let claimed = claimed.parse().context("time of a claim").map_err(PutError::Internal)?;
                audited(&mut change, account, Action::ClaimRefused, serial)
                    .await
                    .map_err(PutError::Internal)?;
                change.commit().await.map_err(internal)?;
                return Err(PutError::Claimed(claimed));
            }
            Some((_, claimed, fingerprint)) => (claimed, fingerprint),
            None => {
                let (count,): (u32,) = sqlx::query_as("SELECT count(*) FROM registration WHERE account = $1")
                    .bind(account.0)
                    .fetch_one(&mut *change)
                    .await
                    .map_err(internal)?;
                if count >= rules.limit {
                    return Err(PutError::Limit(count));
                }
                (now.clone(), None)
            }
        };
        match lists::listed(&mut change, &self.vault, serial).await.map_err(PutError::Internal)? {
            Some(oak) if oak != new.oak => return Err(PutError::WrongOak),
            None if rules.listed_only => return Err(PutError::Unlisted),
            _ => {}
        }
        let action = if is_new { Action::Claimed } else { Action::RegistrationChanged };
        audited(&mut change, account, action, serial).await.map_err(PutError::Internal)?;
        let seq = next_seq(&mut change, account).await?;
        sqlx::query("DELETE FROM registration WHERE serial = $1")
            .bind(serial.to_string())
            .execute(&mut *change)
            .await
            .map_err(internal)?;
        let (generation,): (i64,) = sqlx::query_as(
            "INSERT INTO registration \
             (serial, account, claimed, secrets, servers, trust_anchor, state, step, fingerprint, since, seq) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) RETURNING generation",
        )
        .bind(serial.to_string())
        .bind(account.0)
        .bind(claimed)
        .bind(sealed)
        .bind(to_json(&new.servers))
        .bind(&new.trust_anchor)
        .bind(word(RegistrationState::Waiting))
        .bind(Step::Relay.name())
        .bind(fingerprint)
        .bind(now)
        .bind(seq)
        .fetch_one(&mut *change)
        .await
        .map_err(internal)?;
        change.commit().await.map_err(internal)?;
        Ok(Generation(generation))
    }

    /// The account's registration of that serial number.
    pub async fn get(
        &self,
        account: AccountId,
        serial: SerialNumber,
    ) -> anyhow::Result<Option<Registration>> {
        let row: Option<Row> = sqlx::query_as(sqlx::AssertSqlSafe(format!(
            "SELECT {ROW} FROM registration WHERE serial = $1 AND account = $2"
        )))
        .bind(serial.to_string())
        .bind(account.0)
        .fetch_optional(&self.pool)
        .await
        .context("registration")?;
        row.map(registration).transpose()
    }

    /// Releases the account's claim; `false` if it had none.
    pub async fn delete(&self, account: AccountId, serial: SerialNumber) -> anyhow::Result<bool> {
        let mut change = self.pool.begin_with("BEGIN IMMEDIATE").await.context("database")?;
        let deleted = sqlx::query("DELETE FROM registration WHERE serial = $1 AND account = $2")
            .bind(serial.to_string())
            .bind(account.0)
            .execute(&mut *change)
            .await
            .context("registration")?;
        if deleted.rows_affected() == 0 {
            return Ok(false);
        }
        audited(&mut change, account, Action::Released, serial).await?;
        change.commit().await.context("registration")?;
        self.forget_log().await;
        self.handle_change(account);
        Ok(true)
    }

    /// The account's registrations that changed after `after`, in order.
    pub async fn changes(&self, account: AccountId, after: u64) -> anyhow::Result<Changes> {
        let (newest,): (i64,) = sqlx::query_as("SELECT seq FROM account WHERE id = $1")
            .bind(account.0)
            .fetch_one(&self.pool)
            .await
            .context("account")?;
        // Whoever has seen more than there is has seen another database: begin anew.
        let after = i64::try_from(after).ok().filter(|after| *after <= newest).unwrap_or(0);
        let rows: Vec<Row> = sqlx::query_as(sqlx::AssertSqlSafe(format!(
            "SELECT {ROW} FROM registration WHERE account = $1 AND seq > $2 ORDER BY seq LIMIT $3"
        )))
        .bind(account.0)
        .bind(after)
        .bind(CHANGES_AT_ONCE)
        .fetch_all(&self.pool)
        .await
        .context("changes")?;
        let changes: Vec<Registration> = rows.into_iter().map(registration).collect::<Result<_, _>>()?;
        let last = changes.last().map_or(after as u64, |last| last.seq);
        Ok(Changes { changes, last })
    }

    /// What is registered for a serial number, whoever registered it; nothing while that account is disabled.
    pub async fn job(&self, serial: SerialNumber) -> anyhow::Result<Option<Job>> {
        type JobRow = (i64, i64, String, String, String, Option<String>, Option<Vec<u8>>);
        let row: Option<JobRow> = sqlx::query_as(
            "SELECT generation, account, state, servers, trust_anchor, fingerprint, secrets FROM registration \
             WHERE serial = $1 AND account IN (SELECT id FROM account WHERE disabled = 0)",
        )
        .bind(serial.to_string())
        .fetch_optional(&self.pool)
        .await
        .context("registration")?;
        let Some((generation, account, state, servers, trust_anchor, fingerprint, sealed)) = row else {
            return Ok(None);
        };
        let secrets = match sealed {
            None => None,
            Some(sealed) => {
                let opened = self.vault.open_sealed(&purpose(serial), &sealed)?;
                // The parser's message could quote what it read.
                Some(serde_json::from_str(opened.expose()).map_err(|_| {
                    anyhow::anyhow!("the stored secrets of {serial} were written by another version")
                })?)
            }
        };
        Ok(Some(Job {
            generation: Generation(generation),
            account: AccountId(account),
            serial,
            state: from_word(&state)?,
            servers: from_json(&servers)?,
            trust_anchor,
            fingerprint,
            secrets,
        }))
    }

    /// Enters a state if the registration is in one of `from`, still under that generation; its place in
    /// the account's sequence. The fingerprint is kept where none is given. With `Dispatched` OAK and
    /// credentials are deleted. Nothing is written when nothing would change.
    pub async fn enter(
        &self,
        generation: Generation,
        from: &[RegistrationState],
        entered: Entered,
    ) -> anyhow::Result<Option<u64>> {
        let mut change = self.pool.begin_with("BEGIN IMMEDIATE").await.context("database")?;
        let now: Option<(i64, String, Option<String>, i64, String)> = sqlx::query_as(
            "SELECT account, state, problem, seq, serial FROM registration WHERE generation = $1",
        )
        .bind(generation.0)
        .fetch_optional(&mut *change)
        .await
        .context("registration")?;
        let Some((account, state, problem, seq, serial)) = now else { return Ok(None) };
        let state: RegistrationState = from_word(&state)?;
        if !from.contains(&state) {
            return Ok(None);
        }
        let new_problem = entered.problem.as_ref().map(to_json);
        if state == entered.state && problem == new_problem && entered.fingerprint.is_none() {
            return Ok(Some(seq as u64));
        }
        let account = AccountId(account);
        let seq = next_seq(&mut change, account).await?;
        let forget = entered.state == RegistrationState::Dispatched;
        sqlx::query(
            "UPDATE registration SET state = $2, step = $3, fingerprint = coalesce($4, fingerprint), \
             problem = $5, since = $6, seq = $7, secrets = CASE WHEN $8 THEN NULL ELSE secrets END \
             WHERE generation = $1",
        )
        .bind(generation.0)
        .bind(word(entered.state))
        .bind(entered.step.name())
        .bind(entered.fingerprint)
        .bind(new_problem)
        .bind(Timestamp::now().to_string())
        .bind(seq)
        .bind(forget)
        .execute(&mut *change)
        .await
        .context("registration")?;
        if forget {
            let serial = serial.parse().context("serial number in the database")?;
            audited(&mut change, account, Action::Dispatched, serial).await?;
        }
        change.commit().await.context("registration")?;
        if forget {
            self.forget_log().await;
        }
        self.handle_change(account);
        Ok(Some(seq as u64))
    }

    /// Where an account's changes and acknowledgements are told.
    pub fn progress(&self, account: AccountId) -> watch::Receiver<Progress> {
        self.with_progress(account, watch::Sender::subscribe)
    }

    /// The tunnel server has durably taken everything up to here.
    pub fn acknowledge(&self, account: AccountId, after: u64) {
        self.with_progress(account, |sender| sender.send_modify(|progress| progress.acknowledged = after));
    }

    /// Something has changed for the account, or an attempt has ended.
    pub fn handle_change(&self, account: AccountId) {
        self.with_progress(account, |sender| sender.send_modify(|progress| progress.events += 1));
    }

    fn with_progress<T>(&self, account: AccountId, with: impl FnOnce(&watch::Sender<Progress>) -> T) -> T {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        with(progress.entry(account).or_insert_with(|| watch::Sender::new(Progress::default())))
    }

    /// What was deleted is overwritten in the file by `secure_delete`; this empties the write-ahead log,
    /// where it would stay until that is used again.
    async fn forget_log(&self) {
        // Busy when somebody reads just now: the next one does it.
        if let Err(error) = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&self.pool).await {
            tracing::debug!(%error, "write-ahead log not emptied");
        }
    }
}

/// Tells the audit log what an account has done.
async fn audited(
    change: &mut Transaction<'_, Sqlite>,
    account: AccountId,
    action: Action,
    serial: SerialNumber,
) -> anyhow::Result<()> {
    let (name,): (String,) = sqlx::query_as("SELECT name FROM account WHERE id = $1")
        .bind(account.0)
        .fetch_one(&mut **change)
        .await
        .context("account")?;
    if action == Action::ClaimRefused && audit::was_last(change, &name, action, serial).await? {
        return Ok(());
    }
    audit::write(change, &name, action, Some(serial), "").await
}

async fn next_seq(change: &mut Transaction<'_, Sqlite>, account: AccountId) -> anyhow::Result<i64> {
    let (seq,): (i64,) = sqlx::query_as("UPDATE account SET seq = seq + 1 WHERE id = $1 RETURNING seq")
        .bind(account.0)
        .fetch_one(&mut **change)
        .await
        .context("account")?;
    Ok(seq)
}

fn registration(row: Row) -> anyhow::Result<Registration> {
    let (serial, state, step, fingerprint, problem, since, seq) = row;
    Ok(Registration {
        serial: serial.parse().context("serial number in the database")?,
        state: from_word(&state)?,
        fingerprint,
        problem: problem.as_deref().map(from_json).transpose()?,
        step: step.parse().context("step in the database")?,
        since: since.parse().context("time in the database")?,
        seq: u64::try_from(seq).context("sequence in the database")?,
        next: None,
        contested: None,
    })
}

fn purpose(serial: impl std::fmt::Display) -> String {
    format!("registration {serial}")
}

/// The state's word, the same as in the API.
fn word(state: RegistrationState) -> String {
    to_json(&state).trim_matches('"').to_owned()
}

fn from_word(word: &str) -> anyhow::Result<RegistrationState> {
    from_json(&format!("{word:?}"))
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain values are JSON")
}

fn from_json<T: DeserializeOwned>(json: &str) -> anyhow::Result<T> {
    serde_json::from_str(json).context("value in the database")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounts::create;

    const SERIAL: SerialNumber = SerialNumber::new([0x00, 0x40, 0x8C, 0x70, 0x20, 0x09]);
    const OAK: &str = "0A1B-2C3D-4E5F";
    const PASSWORD: &str = "correct horse battery";

    fn new() -> NewRegistration {
        NewRegistration {
            oak: OAK.parse().unwrap(),
            user: "root".into(),
            password: PASSWORD.into(),
            servers: vec!["sts.example:443".into()],
            trust_anchor: "PEM".into(),
        }
    }

    fn limit(limit: u32) -> Rules {
        Rules { limit, listed_only: false }
    }

    async fn store(data: &Path) -> (Store, AccountId, AccountId) {
        for name in ["a", "b"] {
            create(data, name).await.unwrap();
        }
        (Store::open(data).await.unwrap(), AccountId(1), AccountId(2))
    }

    fn dispatched() -> Entered {
        Entered {
            state: RegistrationState::Dispatched,
            step: Step::Dispatch,
            fingerprint: Some("f1".into()),
            problem: None,
        }
    }

    #[tokio::test]
    async fn step_2_a_claim_holds_against_other_accounts_until_it_is_released() {
        let folder = tempfile::tempdir().unwrap();
        let (store, a, b) = store(folder.path()).await;
        let first = store.put(a, SERIAL, &new(), limit(1)).await.unwrap();
        let refused = store.put(b, SERIAL, &new(), limit(1)).await.unwrap_err();
        assert!(matches!(refused, PutError::Claimed(_)), "{refused}");
        assert_eq!(store.get(b, SERIAL).await.unwrap(), None);
        assert!(!store.delete(b, SERIAL).await.unwrap());
        let other = SerialNumber::new([0, 1, 2, 3, 4, 5]);
        assert!(matches!(store.put(a, other, &new(), limit(1)).await, Err(PutError::Limit(1))));

        let second = store.put(a, SERIAL, &new(), limit(1)).await.unwrap();
        assert!(second > first);
        assert!(store.enter(first, &[RegistrationState::Waiting], dispatched()).await.unwrap().is_none());
        assert!(store.delete(a, SERIAL).await.unwrap());
        assert!(
            store.put(b, SERIAL, &new(), limit(1)).await.unwrap() > second,
            "generations are never used again"
        );
    }

    #[tokio::test]
    async fn step_2_changes_are_told_in_order_and_none_is_missed() {
        let folder = tempfile::tempdir().unwrap();
        let (store, a, b) = store(folder.path()).await;
        let generation = store.put(a, SERIAL, &new(), limit(9)).await.unwrap();
        let all = store.changes(a, 0).await.unwrap();
        assert_eq!((all.changes.len(), all.last), (1, 1));
        assert_eq!(store.changes(a, all.last).await.unwrap().changes, []);
        assert_eq!(store.changes(b, 0).await.unwrap().changes, []);

        store.enter(generation, &[RegistrationState::Waiting], dispatched()).await.unwrap().unwrap();
        let next = store.changes(a, all.last).await.unwrap();
        assert_eq!(next.changes[0].state, RegistrationState::Dispatched);
        assert_eq!(next.changes[0].fingerprint.as_deref(), Some("f1"));
        assert_eq!(store.changes(a, 99).await.unwrap().changes.len(), 1, "asked by another database's count");
    }

    #[tokio::test]
    async fn step_5_nothing_of_a_device_s_secrets_is_in_the_files_and_their_sealed_form_goes_with_dispatch() {
        let folder = tempfile::tempdir().unwrap();
        let (store, a, _) = store(folder.path()).await;
        let generation = store.put(a, SERIAL, &new(), limit(9)).await.unwrap();
        let (sealed,): (Vec<u8>,) =
            sqlx::query_as("SELECT secrets FROM registration").fetch_one(store.pool()).await.unwrap();
        let holds = |needle: &[u8]| {
            let mut found = Vec::new();
            for entry in std::fs::read_dir(folder.path()).unwrap() {
                let path = entry.unwrap().path();
                let bytes = std::fs::read(&path).unwrap();
                if bytes.windows(needle.len()).any(|window| window == needle) {
                    found.push(path);
                }
            }
            found
        };
        let clear = [OAK, "0A1B2C3D4E5F", "0a1b2c3d4e5f", PASSWORD];
        for secret in clear {
            assert_eq!(holds(secret.as_bytes()), Vec::<std::path::PathBuf>::new());
        }
        assert!(!holds(&sealed).is_empty(), "the test can find what is there");
        assert!(store.job(SERIAL).await.unwrap().unwrap().secrets.is_some());

        store.enter(generation, &[RegistrationState::Waiting], dispatched()).await.unwrap().unwrap();
        assert!(store.job(SERIAL).await.unwrap().unwrap().secrets.is_none());
        assert_eq!(holds(&sealed), Vec::<std::path::PathBuf>::new(), "before a checkpoint");
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(store.pool()).await.unwrap();
        assert_eq!(holds(&sealed), Vec::<std::path::PathBuf>::new(), "after a checkpoint");
        for secret in clear {
            assert_eq!(holds(secret.as_bytes()), Vec::<std::path::PathBuf>::new());
        }
    }

    #[tokio::test]
    async fn step_5_a_dispatch_that_was_cut_short_by_a_restart_waits_again() {
        let folder = tempfile::tempdir().unwrap();
        let (store, a, _) = store(folder.path()).await;
        let generation = store.put(a, SERIAL, &new(), limit(9)).await.unwrap();
        let dispatching = Entered { state: RegistrationState::Dispatching, ..dispatched() };
        store.enter(generation, &[RegistrationState::Waiting], dispatching).await.unwrap();
        store.pool().close().await;
        drop(store);

        let store = Store::open(folder.path()).await.unwrap();
        let registration = store.get(a, SERIAL).await.unwrap().unwrap();
        assert_eq!(registration.state, RegistrationState::Waiting);
        let job = store.job(SERIAL).await.unwrap().unwrap();
        assert!(job.secrets.unwrap().credentials.password.matches(PASSWORD));
    }
}
