//! Registrations and what has become of them, in one SQLite file (steps 2 and 5).
//!
//! Who of several accounts has a device is decided in `claims.rs` and `offers.rs`; here is what both stand on.
//!
//! Invariants:
//! - OAK and credentials are stored sealed and bound to their serial number, and are gone from the file
//!   once the device has been dispatched;
//! - each change of a registration takes the next place in its account's sequence, in one transaction, so
//!   that a tunnel server that asks for what comes after `N` misses nothing;
//! - a `PUT` makes a new generation: what was begun under an older one can no longer write.

use crate::{
    audit::Action,
    claims::{self, PUSHES, audited},
    lists,
};
use anyhow::Context;
use homing_base::{
    Vault,
    database::{self, Log},
    throttle::Throttle,
    vault::{self, SealedColumn},
};
use homing_protocol::{
    Oak, Secret, SerialNumber, Step,
    api::{
        ProblemDetail, Target,
        dispatcher::{Changes, Contested, Registration, RegistrationState},
    },
    secret::Credentials,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sqlx::{Row, Sqlite, SqlitePool, Transaction, sqlite::SqliteRow};
use std::{
    collections::HashMap,
    path::Path,
    sync::{Mutex, PoisonError},
};
use tokio::sync::watch;

const MIGRATIONS: &[&str] = &[
    include_str!("schema/1.sql"),
    include_str!("schema/2.sql"),
    include_str!("schema/3.sql"),
    include_str!("schema/4.sql"),
    include_str!("schema/5.sql"),
];

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
    pub target: Target,
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
    /// With which the tunnel server knows its own registration again.
    #[serde(default)]
    pub voucher_key: Secret,
    /// Whose registration it is and where it sends the device: in another row it is of no use. None in what was
    /// written before there was this.
    #[serde(default)]
    pub bound_to: Option<String>,
}

impl DeviceSecrets {
    /// What the tunnel server believes that it is its device's key by; none where it has not asked for one.
    pub fn voucher(&self, serial: SerialNumber, fingerprint: &str) -> Option<String> {
        let key = &self.voucher_key;
        (!key.is_empty()).then(|| homing_protocol::voucher::voucher(key, serial, fingerprint))
    }
}

/// A state to be entered.
pub(crate) struct Entered {
    pub state: RegistrationState,
    pub step: Step,
    pub fingerprint: Option<String>,
    pub problem: Option<ProblemDetail>,
}

/// What a change did, besides what it was made for.
#[derive(Default)]
pub(crate) struct Touched {
    /// Whose tunnel servers have something to be told.
    pub accounts: Vec<AccountId>,
    /// Secrets were deleted.
    pub forgot: bool,
}

impl Touched {
    pub fn of(account: AccountId) -> Self {
        Touched { accounts: vec![account], forgot: false }
    }

    pub fn add(&mut self, account: AccountId) {
        if !self.accounts.contains(&account) {
            self.accounts.push(account);
        }
    }
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
        purpose: |serial| claims::purpose(serial),
    },
    SealedColumn {
        table: "registration",
        key: "serial",
        column: "verifier",
        purpose: |serial| claims::verifier_purpose(serial),
    },
    SealedColumn { table: "listed", key: "serial", column: "oak", purpose: |serial| lists::purpose(serial) },
];

/// The keys, for a command beside the dispatcher that may be running: refresh them in each transaction.
pub(crate) async fn open_vault(data: &Path, pool: &SqlitePool) -> anyhow::Result<Vault> {
    Vault::open_beside(ROLE, data, pool).await
}

pub(crate) struct Store {
    pool: SqlitePool,
    writer: SqlitePool,
    log: Log,
    vault: Vault,
    progress: Mutex<HashMap<AccountId, watch::Sender<Progress>>>,
    /// Who has pushed out whom, in `claims.rs`.
    pub(crate) pushes: Throttle<(AccountId, SerialNumber)>,
}

const ROW: &str = "serial, state, step, fingerprint, voucher, problem, since, seq, next, attempts, attempted";

impl Store {
    /// Opens database and master key. What was being dispatched when the last process ended waits again.
    pub async fn open(data: &Path) -> anyhow::Result<Store> {
        let pool = open_database(data).await?;
        let vault = Vault::open(ROLE, data, &pool, SEALED).await?;
        let (writer, log) = (database::writer(&pool), Log::of(&pool));
        let store =
            Store { pool, writer, log, vault, progress: Mutex::default(), pushes: Throttle::new(PUSHES) };
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
        let returned: Vec<(i64,)> =
            sqlx::query_as("SELECT generation FROM registration WHERE state = 'returned'")
                .fetch_all(&store.pool)
                .await?;
        for (generation,) in returned {
            store.nobody_has_returned(Generation(generation)).await?;
        }
        store.sweep().await?;
        Ok(store)
    }

    pub fn pool(&self) -> &SqlitePool {
        &self.pool
    }

    /// For transactions that write, those of others' tables as well.
    pub fn writer(&self) -> &SqlitePool {
        &self.writer
    }

    pub fn vault(&self) -> &Vault {
        &self.vault
    }

    /// What a manufacturer's list says of a device.
    pub async fn listed(&self, serial: SerialNumber) -> anyhow::Result<Option<lists::Listed>> {
        lists::find(&self.pool, &self.vault, serial).await
    }

    /// A transaction that writes.
    pub async fn begin(&self) -> anyhow::Result<Transaction<'static, Sqlite>> {
        self.writer.begin_with("BEGIN IMMEDIATE").await.context("database")
    }

    /// Makes a change last, and tells of it.
    pub async fn commit(&self, change: Transaction<'static, Sqlite>, touched: Touched) -> anyhow::Result<()> {
        change.commit().await.context("database")?;
        if touched.forgot
            && let Err(error) = self.log.empty().await
        {
            tracing::warn!(error = format!("{error:#}"), "what was deleted is not gone from the disk yet");
        }
        touched.accounts.into_iter().for_each(|account| self.handle_change(account));
        Ok(())
    }

    /// The account's registration of that serial number.
    pub async fn get(
        &self,
        account: AccountId,
        serial: SerialNumber,
    ) -> anyhow::Result<Option<Registration>> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!(
            "SELECT {ROW} FROM registration WHERE serial = $1 AND account = $2"
        )))
        .bind(serial.to_string())
        .bind(account.0)
        .fetch_optional(&self.pool)
        .await
        .context("registration")?;
        row.as_ref().map(registration).transpose()
    }

    /// Deletes the account's registration, and with it its claim; `false` if it had none.
    pub async fn delete(&self, account: AccountId, serial: SerialNumber) -> anyhow::Result<bool> {
        let mut change = self.begin().await?;
        let deleted: Option<(String, bool)> = sqlx::query_as(
            "DELETE FROM registration WHERE serial = $1 AND account = $2 RETURNING state, claimed IS NOT NULL",
        )
        .bind(serial.to_string())
        .bind(account.0)
        .fetch_optional(&mut *change)
        .await
        .context("registration")?;
        let Some((state, is_claim)) = deleted else { return Ok(false) };
        // Where a device went that is somebody else's now is only forgotten.
        if state != word(RegistrationState::Transferred) {
            let action = if is_claim { Action::Released } else { Action::RegistrationDeleted };
            audited(&mut change, account, action, serial, "").await?;
        }
        sqlx::query("DELETE FROM offer WHERE serial = $1 AND owner = $2")
            .bind(serial.to_string())
            .bind(account.0)
            .execute(&mut *change)
            .await
            .context("offer")?;
        self.commit(change, Touched { accounts: vec![account], forgot: true }).await?;
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
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "SELECT {ROW} FROM registration WHERE account = $1 AND seq > $2 ORDER BY seq LIMIT $3"
        )))
        .bind(account.0)
        .bind(after)
        .bind(CHANGES_AT_ONCE)
        .fetch_all(&self.pool)
        .await
        .context("changes")?;
        let changes: Vec<Registration> = rows.iter().map(registration).collect::<Result<_, _>>()?;
        let last = changes.last().map_or(after as u64, |last| last.seq);
        Ok(Changes { changes, last })
    }

    /// What a device with this serial number may be dispatched by, in the order in which that is tried: the claim,
    /// after whom its owner offered it to; or, as long as nobody has proven an OAK, all who registered it, oldest
    /// first. Nothing for accounts that are disabled.
    pub async fn jobs(&self, serial: SerialNumber) -> anyhow::Result<Vec<Job>> {
        let mut read = self.pool.begin().await.context("database")?;
        let rows = sqlx::query(
            "SELECT generation, account, state, registration.servers, trust_anchor, fingerprint, secrets, \
             claimed IS NOT NULL AS is_claim, disabled FROM registration JOIN account ON account.id = account \
             WHERE serial = $1 AND (claimed IS NOT NULL OR secrets IS NOT NULL) \
             ORDER BY claimed IS NOT NULL, registered, generation",
        )
        .bind(serial.to_string())
        .fetch_all(&mut *read)
        .await
        .context("registration")?;
        let taker = crate::offers::taker(&mut read, serial).await?;
        let (mut jobs, mut claim) = (Vec::new(), None);
        for row in &rows {
            let (account, is_disabled) = (AccountId(row.try_get("account")?), row.try_get("disabled")?);
            if row.try_get("is_claim")? {
                claim = Some((account, is_disabled));
            }
            if is_disabled {
                continue;
            }
            let sealed: Option<Vec<u8>> = row.try_get("secrets")?;
            let target = target(row)?;
            let secrets = sealed.map(|sealed| self.open_secrets((account, serial), &target, &sealed));
            jobs.push(Job {
                generation: Generation(row.try_get("generation")?),
                account,
                serial,
                state: from_word(row.try_get("state")?)?,
                secrets: secrets.transpose()?,
                target,
                fingerprint: row.try_get("fingerprint")?,
            });
        }
        if let Some((owner, is_disabled)) = claim {
            let taker = taker.filter(|(by, _)| *by == owner).map(|(_, taker)| taker);
            jobs.retain(|job| !is_disabled && (job.account == owner || Some(job.account) == taker));
        }
        Ok(jobs)
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
        let mut change = self.begin().await?;
        let row = sqlx::query("SELECT * FROM registration WHERE generation = $1")
            .bind(generation.0)
            .fetch_optional(&mut *change)
            .await
            .context("registration")?;
        let Some(row) = row else { return Ok(None) };
        let state: RegistrationState = from_word(row.try_get("state")?)?;
        let (problem, seq): (Option<String>, i64) = (row.try_get("problem")?, row.try_get("seq")?);
        if !from.contains(&state) {
            return Ok(None);
        }
        let new_problem = entered.problem.as_ref().map(to_json);
        if state == entered.state && problem == new_problem && entered.fingerprint.is_none() {
            return Ok(Some(seq as u64));
        }
        let account = AccountId(row.try_get("account")?);
        let serial = row.try_get::<&str, _>("serial")?.parse().context("serial number in the database")?;
        let (sealed, known): (Option<Vec<u8>>, Option<String>) =
            (row.try_get("secrets")?, row.try_get("fingerprint")?);
        let voucher = match (&entered.fingerprint, sealed) {
            (Some(key), Some(sealed)) => {
                self.open_secrets((account, serial), &target(&row)?, &sealed)?.voucher(serial, key)
            }
            _ => None,
        };
        if let (Some(key), Some(known)) = (&entered.fingerprint, known)
            && *key != known
        {
            audited(&mut change, account, Action::KeyChanged, serial, &format!("to {key}")).await?;
        }
        let seq = next_seq(&mut change, account).await?;
        // Who has only come by, and has left, was dispatched before.
        let forget = entered.state == RegistrationState::Dispatched && state != RegistrationState::Returned;
        sqlx::query(
            "UPDATE registration SET state = $2, step = $3, fingerprint = coalesce($4, fingerprint), \
             problem = $5, since = $6, seq = $7, secrets = CASE WHEN $8 THEN NULL ELSE secrets END, \
             voucher = CASE WHEN $4 IS NULL THEN voucher ELSE $9 END WHERE generation = $1",
        )
        .bind(generation.0)
        .bind(word(entered.state))
        .bind(entered.step.name())
        .bind(entered.fingerprint)
        .bind(new_problem)
        .bind(Timestamp::now().to_string())
        .bind(seq)
        .bind(forget)
        .bind(voucher)
        .execute(&mut *change)
        .await
        .context("registration")?;
        if forget {
            audited(&mut change, account, Action::Dispatched, serial, "").await?;
        }
        self.commit(change, Touched { accounts: vec![account], forgot: forget }).await?;
        Ok(Some(seq as u64))
    }

    /// Whoever had come back is gone before its registration was relayed again: it is dispatched, as before.
    pub async fn nobody_has_returned(&self, generation: Generation) -> anyhow::Result<()> {
        let dispatched = Entered {
            state: RegistrationState::Dispatched,
            step: Step::Dispatch,
            fingerprint: None,
            problem: None,
        };
        self.enter(generation, &[RegistrationState::Returned], dispatched).await.map(drop)
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
}

pub(crate) async fn account_name(
    change: &mut Transaction<'_, Sqlite>,
    account: AccountId,
) -> anyhow::Result<String> {
    let (name,): (String,) = sqlx::query_as("SELECT name FROM account WHERE id = $1")
        .bind(account.0)
        .fetch_one(&mut **change)
        .await
        .context("account")?;
    Ok(name)
}

pub(crate) async fn next_seq(
    change: &mut Transaction<'_, Sqlite>,
    account: AccountId,
) -> anyhow::Result<i64> {
    let (seq,): (i64,) = sqlx::query_as("UPDATE account SET seq = seq + 1 WHERE id = $1 RETURNING seq")
        .bind(account.0)
        .fetch_one(&mut **change)
        .await
        .context("account")?;
    Ok(seq)
}

fn registration(row: &SqliteRow) -> anyhow::Result<Registration> {
    let time = |text: &str| text.parse::<Timestamp>().context("time in the database");
    let (attempts, last): (u32, Option<&str>) = (row.try_get("attempts")?, row.try_get("attempted")?);
    let contested = last.map(|last| anyhow::Ok(Contested { attempts, last: time(last)? })).transpose()?;
    let problem: Option<&str> = row.try_get("problem")?;
    let next: Option<&str> = row.try_get("next")?;
    Ok(Registration {
        serial: row.try_get::<&str, _>("serial")?.parse().context("serial number in the database")?,
        state: from_word(row.try_get("state")?)?,
        fingerprint: row.try_get("fingerprint")?,
        voucher: row.try_get("voucher")?,
        problem: problem.map(from_json).transpose()?,
        step: row.try_get::<&str, _>("step")?.parse().context("step in the database")?,
        since: time(row.try_get("since")?)?,
        seq: u64::try_from(row.try_get::<i64, _>("seq")?).context("sequence in the database")?,
        next: next.map(from_json).transpose()?,
        contested,
    })
}

/// Where a registration sends its device.
pub(crate) fn target(row: &SqliteRow) -> anyhow::Result<Target> {
    Ok(Target { servers: from_json(row.try_get("servers")?)?, trust_anchor: row.try_get("trust_anchor")? })
}

/// The state's word, the same as in the API.
pub(crate) fn word(state: RegistrationState) -> String {
    to_json(&state).trim_matches('"').to_owned()
}

pub(crate) fn from_word(word: &str) -> anyhow::Result<RegistrationState> {
    from_json(&format!("{word:?}"))
}

pub(crate) fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain values are JSON")
}

pub(crate) fn from_json<T: DeserializeOwned>(json: &str) -> anyhow::Result<T> {
    serde_json::from_str(json).context("value in the database")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{accounts::create, claims::Rules};
    use homing_protocol::api::dispatcher::NewRegistration;

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
            voucher_key: Default::default(),
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
        assert!(store.jobs(SERIAL).await.unwrap()[0].secrets.is_some());

        let oak: Oak = OAK.parse().unwrap();
        store.prove(SERIAL, generation, &oak, Some(&oak.proof_key(SERIAL))).await.unwrap().unwrap();
        store.enter(generation, &[RegistrationState::Dispatching], dispatched()).await.unwrap().unwrap();
        assert!(store.jobs(SERIAL).await.unwrap()[0].secrets.is_none());
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
        let job = &store.jobs(SERIAL).await.unwrap()[0];
        assert!(job.secrets.as_ref().unwrap().credentials.password.matches(PASSWORD));
    }
}
