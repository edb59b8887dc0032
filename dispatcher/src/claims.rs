//! Who has a device (steps 2 and 5): registrations side by side, the claim that one of them becomes, and its way to
//! another account.
//!
//! Anybody with an account may register any serial number; that alone keeps nobody out. A registration becomes the
//! claim when its OAK is proven: by a manufacturer's list in step 2, or by the device in step 5. Then, in the same
//! transaction, the others end as refused.
//!
//! Invariants:
//! - a serial number has at most one claim (a unique index holds it), and a claim goes to another account only by
//!   its owner's offer and that account's proof, or after its owner released it;
//! - at most [`SIDE_BY_SIDE`] unproven registrations of one serial number stand, [`gives_way`] says which go: what a
//!   proof costs does not grow with the number of those who squat;
//! - whoever loses is told why, and what was sealed of its secrets is deleted.

use crate::{
    audit::{self, Action},
    lists,
    store::{
        self, AccountId, DeviceSecrets, Generation, Store, Touched, account_name, from_word, next_seq,
        to_json, word,
    },
};
use anyhow::Context;
use homing_base::throttle::Tolerance;
use homing_protocol::{
    Oak, Secret, SerialNumber, Step,
    api::{
        ProblemDetail, Target,
        dispatcher::{NewRegistration, RegistrationState as State},
    },
    oak::ProofKey,
    secret::Credentials,
};
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};
use sqlx::{Row, Sqlite, Transaction, sqlite::SqliteRow};
use std::{fmt, path::Path, time::Duration};
use tokio::time::Instant;

/// Unproven registrations of one serial number: each costs a key derivation when a device proves its OAK.
pub(crate) const SIDE_BY_SIDE: usize = 8;

/// How often an account may push another one out of these: a crowd that wants to keep the owner out of its own
/// device pays with time, and the owner needs to stand only until the device has come.
pub(crate) const PUSHES: Tolerance =
    Tolerance { free: 0, first: Duration::from_secs(60), longest: Duration::from_secs(24 * 3600) };

/// Attempts on somebody's registration are all counted, and told at most this often: whoever tries again and again
/// does not keep the owner's tunnel server busy.
const TOLD_EVERY: SignedDuration = SignedDuration::from_secs(10);

/// Destinations remembered of an account; when there are more all are forgotten, and told anew.
const DESTINATIONS: u32 = 100;

/// What a registration must keep to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Registrations that the account may have.
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
    #[error("the OAK is known to be another one")]
    WrongOak,
    #[error("on no manufacturer's list")]
    Unlisted,
    #[error("others have registered it, and none of them has done so with more devices")]
    Crowded,
    #[error("it has pushed out others too often")]
    Later(Duration),
    #[error(transparent)]
    Internal(#[from] anyhow::Error),
}

/// One registration of a serial number.
pub(crate) struct Standing {
    pub generation: Generation,
    pub account: AccountId,
    pub state: State,
    claimed: Option<String>,
    fingerprint: Option<String>,
    verifier: Option<Vec<u8>>,
    secrets: Option<Vec<u8>>,
    registered: String,
    attempts: u32,
    attempted: Option<String>,
    target: Target,
}

/// The OAK of a new registration beside the one that was proven last.
struct Compared {
    /// The proven one's verifier.
    sealed: Vec<u8>,
    is_same: bool,
}

impl Standing {
    fn stands(&self) -> bool {
        self.claimed.is_some() || self.contends()
    }

    /// Waits for a proof beside others.
    fn contends(&self) -> bool {
        self.claimed.is_none() && self.secrets.is_some()
    }
}

/// All registrations of a serial number, oldest first; those that went to somebody else are none.
async fn standing(
    change: &mut Transaction<'_, Sqlite>,
    serial: SerialNumber,
) -> anyhow::Result<Vec<Standing>> {
    let rows = sqlx::query(
        "SELECT * FROM registration WHERE serial = $1 AND state != 'transferred' ORDER BY registered, generation",
    )
    .bind(serial.to_string())
    .fetch_all(&mut **change)
    .await
    .context("registrations")?;
    let standing = |row: &SqliteRow| {
        Ok(Standing {
            generation: Generation(row.try_get("generation")?),
            account: AccountId(row.try_get("account")?),
            state: from_word(row.try_get("state")?)?,
            claimed: row.try_get("claimed")?,
            fingerprint: row.try_get("fingerprint")?,
            verifier: row.try_get("verifier")?,
            secrets: row.try_get("secrets")?,
            registered: row.try_get("registered")?,
            attempts: row.try_get("attempts")?,
            attempted: row.try_get("attempted")?,
            target: store::target(row)?,
        })
    };
    rows.iter().map(standing).collect()
}

impl Store {
    /// Takes a registration, or replaces the account's own earlier one. A refusal of somebody else's claim is
    /// in the audit log, and told to its owner.
    pub async fn put(
        &self,
        account: AccountId,
        serial: SerialNumber,
        new: &NewRegistration,
        rules: Rules,
    ) -> Result<Generation, PutError> {
        loop {
            let compared = self.compare(account, serial, &new.oak).await?;
            let mut touched = Touched::of(account);
            let mut change = self.begin().await?;
            let put = self.put_in(&mut change, (account, serial, new), rules, compared, &mut touched).await;
            if matches!(put, Ok(Some(_)) | Err(PutError::Claimed(_))) {
                self.commit(change, touched).await?;
            }
            if let Some(put) = put.transpose() {
                return put;
            }
        }
    }

    /// Whether it is the OAK of a device that was offered to this account; `None` where that cannot be known, and
    /// where nothing was offered. It takes an Argon2id, and is done before anything is locked.
    async fn compare(
        &self,
        account: AccountId,
        serial: SerialNumber,
        oak: &Oak,
    ) -> anyhow::Result<Option<Compared>> {
        let mut change = self.pool().begin().await.context("database")?;
        let rows = standing(&mut change, serial).await?;
        let Some(claim) = rows.into_iter().find(|row| row.claimed.is_some() && row.account != account) else {
            return Ok(None);
        };
        if !is_offered(&mut change, serial, &claim, account).await? {
            return Ok(None);
        }
        change.rollback().await.context("database")?;
        let Some(sealed) = claim.verifier else { return Ok(None) };
        let verifier = self.vault().open_sealed(&verifier_purpose(serial), &sealed)?;
        let oak = oak.clone();
        let key = crate::dispatch::derive(serial, oak).await?;
        Ok(Some(Compared { is_same: verifier.matches(hex(&key.verifier()).expose()), sealed }))
    }

    /// `None` if something else than this was compared, or nothing: the owner may have had its device prove its OAK
    /// meanwhile, or have offered it.
    async fn put_in(
        &self,
        change: &mut Transaction<'_, Sqlite>,
        (account, serial, new): (AccountId, SerialNumber, &NewRegistration),
        rules: Rules,
        compared: Option<Compared>,
        touched: &mut Touched,
    ) -> Result<Option<Generation>, PutError> {
        let now = Timestamp::now();
        let rows = standing(change, serial).await?;
        let claim = rows.iter().find(|row| row.claimed.is_some() && row.account != account);
        if let Some(claim) = claim
            && !is_offered(change, serial, claim, account).await?
        {
            count_attempt(change, claim, now, touched).await?;
            audited(change, account, Action::ClaimRefused, serial, "").await?;
            let since = claim.claimed.as_deref().unwrap_or_default().parse();
            return Err(PutError::Claimed(since.context("time of a claim")?));
        }
        let proven = claim.and_then(|claim| claim.verifier.as_ref());
        if proven != compared.as_ref().map(|compared| &compared.sealed) {
            return Ok(None);
        }
        let own = rows.iter().find(|row| row.account == account);
        if own.is_none() {
            let (count,): (u32,) = sqlx::query_as(
                "SELECT count(*) FROM registration WHERE account = $1 AND state != 'transferred'",
            )
            .bind(account.0)
            .fetch_one(&mut **change)
            .await
            .context("registrations")?;
            if count >= rules.limit {
                return Err(PutError::Limit(rules.limit));
            }
        }
        let listed = lists::listed(change, self.vault(), serial).await?;
        let is_proven = match (&listed, compared) {
            (Some(oak), _) if *oak != new.oak => return Err(PutError::WrongOak),
            (None, _) if rules.listed_only => return Err(PutError::Unlisted),
            (None, Some(Compared { is_same: false, .. })) => return Err(PutError::WrongOak),
            (Some(_), _) | (None, Some(_)) => true,
            (None, None) => false,
        };
        let enters = claim.is_none() && !is_proven && own.is_none_or(|own| !own.stands());
        let mut before = (own.map_or(0, |own| own.attempts), own.and_then(|own| own.attempted.clone()));
        if enters {
            let others: Vec<&Standing> =
                rows.iter().filter(|row| row.contends() && row.account != account).collect();
            self.make_room(change, (account, serial), &others, touched).await?;
            for other in &others {
                count_attempt(change, other, now, touched).await?;
            }
            if let Some(latest) = others.last() {
                before = (before.0 + others.len() as u32, Some(latest.registered.clone()));
            }
        }
        self.audit_destinations(change, account, new).await?;
        let seq = next_seq(change, account).await?;
        if own.is_some_and(|own| own.secrets.is_some()) {
            touched.forgot = true;
        }
        sqlx::query("DELETE FROM registration WHERE serial = $1 AND account = $2")
            .bind(serial.to_string())
            .bind(account.0)
            .execute(&mut **change)
            .await
            .context("registration")?;
        let secrets = secrets_of(account, new);
        let (generation,): (i64,) = sqlx::query_as(
            "INSERT INTO registration (serial, account, registered, claimed, verifier, secrets, servers, \
             trust_anchor, state, step, fingerprint, attempts, attempted, since, seq, voucher) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16) RETURNING generation",
        )
        .bind(serial.to_string())
        .bind(account.0)
        .bind(own.filter(|_| !enters).map_or_else(|| now.to_string(), |own| own.registered.clone()))
        .bind(own.and_then(|own| own.claimed.clone()))
        .bind(own.and_then(|own| own.verifier.clone()))
        .bind(self.vault().seal(&purpose(serial), &Secret::new(to_json(&secrets))))
        .bind(to_json(&new.servers))
        .bind(&new.trust_anchor)
        .bind(word(State::Waiting))
        .bind(Step::Relay.name())
        .bind(own.and_then(|own| own.fingerprint.clone()))
        .bind(before.0)
        .bind(before.1)
        .bind(now.to_string())
        .bind(seq)
        .bind(own.and_then(|own| secrets.voucher(serial, own.fingerprint.as_deref()?)))
        .fetch_one(&mut **change)
        .await
        .context("registration")?;
        let generation = Generation(generation);
        if own.is_some() {
            audited(change, account, Action::RegistrationChanged, serial, "").await?;
        } else if !is_proven {
            audited(change, account, Action::Registered, serial, "").await?;
        }
        if is_proven {
            self.settle(change, serial, generation, &new.oak, None, touched).await?;
        }
        Ok(Some(generation))
    }

    /// What was sealed of a registration: of this account's, and for this destination.
    pub fn open_secrets(
        &self,
        (account, serial): (AccountId, SerialNumber),
        target: &Target,
        sealed: &[u8],
    ) -> anyhow::Result<DeviceSecrets> {
        let opened = self.vault().open_sealed(&purpose(serial), sealed)?;
        // The parser's message could quote what it read.
        let secrets: DeviceSecrets = serde_json::from_str(opened.expose())
            .map_err(|_| anyhow::anyhow!("the stored secrets of {serial} were written by another version"))?;
        let bound_to = bound_to(account, &target.servers, &target.trust_anchor);
        anyhow::ensure!(
            secrets.bound_to.as_ref().is_none_or(|sealed| *sealed == bound_to),
            "the stored secrets of {serial} belong to another registration: has somebody changed the database?"
        );
        Ok(secrets)
    }

    /// A place for one more beside the others, where somebody has to give way for it.
    async fn make_room(
        &self,
        change: &mut Transaction<'_, Sqlite>,
        (account, serial): (AccountId, SerialNumber),
        others: &[&Standing],
        touched: &mut Touched,
    ) -> Result<(), PutError> {
        if others.len() < SIDE_BY_SIDE {
            return Ok(());
        }
        let mut rivals = Vec::new();
        for other in others {
            rivals.push((contested_by(change, other.account).await?, other.state == State::Refused));
        }
        let leaves = gives_way(contested_by(change, account).await? + 1, &rivals).ok_or(PutError::Crowded)?;
        let now = Instant::now();
        let wait = self.pushes.wait(&(account, serial), now);
        if !wait.is_zero() {
            return Err(PutError::Later(wait));
        }
        self.pushes.handle_wrong(&(account, serial), now);
        let message = format!(
            "{serial} is registered by many accounts, and none has proven its OAK: this registration gave way to \
             another; register it again when the device is about to phone home"
        );
        refuse(change, others[leaves], "contested", message, touched).await?;
        Ok(())
    }

    /// Step 5: the device has proven the OAK of this registration, which has the claim from now on, and is being
    /// dispatched. Its place in the account's sequence; `None` when it was replaced, deleted or beaten meanwhile.
    pub async fn prove(
        &self,
        serial: SerialNumber,
        generation: Generation,
        oak: &Oak,
        key: Option<&ProofKey>,
    ) -> anyhow::Result<Option<u64>> {
        let mut change = self.begin().await?;
        let rows = standing(&mut change, serial).await?;
        let may = [State::Waiting, State::Refused, State::Returned];
        let Some(row) = rows.iter().find(|row| row.generation == generation && may.contains(&row.state))
        else {
            return Ok(None);
        };
        if let Some(claim) = rows.iter().find(|other| other.claimed.is_some() && other.account != row.account)
            && !is_offered(&mut change, serial, claim, row.account).await?
        {
            return Ok(None);
        }
        let mut touched = Touched::of(row.account);
        let verifier = key.map(|key| self.vault().seal(&verifier_purpose(serial), &hex(&key.verifier())));
        self.settle(&mut change, serial, generation, oak, verifier, &mut touched).await?;
        let seq = next_seq(&mut change, row.account).await?;
        sqlx::query(
            "UPDATE registration SET state = $2, step = $3, problem = NULL, since = $4, seq = $5 \
             WHERE generation = $1",
        )
        .bind(generation.0)
        .bind(word(State::Dispatching))
        .bind(Step::PhoneHome.name())
        .bind(Timestamp::now().to_string())
        .bind(seq)
        .execute(&mut *change)
        .await
        .context("registration")?;
        self.commit(change, touched).await?;
        Ok(Some(seq as u64))
    }

    /// The OAK of this registration is proven: it has the claim; who had it (and offered it) or stood beside it has
    /// not.
    async fn settle(
        &self,
        change: &mut Transaction<'_, Sqlite>,
        serial: SerialNumber,
        winner: Generation,
        oak: &Oak,
        verifier: Option<Vec<u8>>,
        touched: &mut Touched,
    ) -> anyhow::Result<()> {
        let rows = standing(change, serial).await?;
        let Some(winner) = rows.iter().find(|row| row.generation == winner) else { return Ok(()) };
        let now = Timestamp::now();
        let (mut from, mut refused) = (None, 0);
        for other in rows.iter().filter(|row| row.account != winner.account) {
            match &other.secrets {
                _ if other.claimed.is_some() => {
                    hand_over(change, serial, other, &winner.target, touched).await?;
                    from = Some(other);
                }
                Some(sealed) => {
                    let sealed = self.open_secrets((other.account, serial), &other.target, sealed)?;
                    let same = sealed.oak == *oak;
                    let (code, message) = if same { claimed(serial, now) } else { wrong_oak(serial) };
                    refuse(change, other, code, message, touched).await?;
                    refused += 1;
                }
                None => {}
            }
        }
        let key = from.and_then(|from| from.fingerprint.clone());
        let voucher = match (&winner.secrets, &key) {
            (Some(sealed), Some(key)) => {
                self.open_secrets((winner.account, serial), &winner.target, sealed)?.voucher(serial, key)
            }
            _ => None,
        };
        sqlx::query(
            "UPDATE registration SET claimed = coalesce(claimed, $2), verifier = coalesce($3, $4, verifier), \
             fingerprint = coalesce($5, fingerprint), voucher = CASE WHEN $5 IS NULL THEN voucher ELSE $6 END \
             WHERE generation = $1",
        )
        .bind(winner.generation.0)
        .bind(now.to_string())
        .bind(verifier)
        .bind(from.and_then(|from| from.verifier.clone()))
        .bind(key)
        .bind(voucher)
        .execute(&mut **change)
        .await
        .context("registration")?;
        match from {
            Some(from) => {
                let detail = format!("from {}", account_name(change, from.account).await?);
                audited(change, winner.account, Action::Transferred, serial, &detail).await
            }
            None if winner.claimed.is_none() => {
                let detail = if refused > 0 { format!("{refused} others refused") } else { String::new() };
                audited(change, winner.account, Action::Claimed, serial, &detail).await
            }
            None => Ok(()),
        }
    }

    /// New places that an account sends devices to are in the audit log: a stolen account shows itself by them.
    async fn audit_destinations(
        &self,
        change: &mut Transaction<'_, Sqlite>,
        account: AccountId,
        new: &NewRegistration,
    ) -> anyhow::Result<()> {
        sqlx::query(
            "DELETE FROM destination WHERE account = $1 AND \
             (SELECT count(*) FROM destination WHERE account = $1) > $2",
        )
        .bind(account.0)
        .bind(DESTINATIONS)
        .execute(&mut **change)
        .await
        .context("destination")?;
        let anchor = format!("trust anchor {}", hex(&Sha256::digest(new.trust_anchor.as_bytes())).expose());
        for what in new.servers.iter().chain([&anchor]) {
            let added =
                sqlx::query("INSERT INTO destination (account, what) VALUES ($1, $2) ON CONFLICT DO NOTHING")
                    .bind(account.0)
                    .bind(what)
                    .execute(&mut **change)
                    .await
                    .context("destination")?;
            if added.rows_affected() == 1 {
                let name = account_name(change, account).await?;
                audit::write(change, &name, Action::DestinationUsed, None, what).await?;
            }
        }
        Ok(())
    }
}

/// Whether the owner of a claim has offered it to this account.
async fn is_offered(
    change: &mut Transaction<'_, Sqlite>,
    serial: SerialNumber,
    claim: &Standing,
    account: AccountId,
) -> anyhow::Result<bool> {
    Ok(crate::offers::taker(change, serial).await? == Some((claim.account, account)))
}

/// The owner's registration ends as a signpost to where the device belongs now.
async fn hand_over(
    change: &mut Transaction<'_, Sqlite>,
    serial: SerialNumber,
    from: &Standing,
    to: &Target,
    touched: &mut Touched,
) -> anyhow::Result<()> {
    sqlx::query("DELETE FROM offer WHERE serial = $1")
        .bind(serial.to_string())
        .execute(&mut **change)
        .await
        .context("offer")?;
    let seq = next_seq(change, from.account).await?;
    sqlx::query(
        "UPDATE registration SET state = $2, next = $3, claimed = NULL, verifier = NULL, secrets = NULL, \
         problem = NULL, since = $4, seq = $5 WHERE generation = $1",
    )
    .bind(from.generation.0)
    .bind(word(State::Transferred))
    .bind(to_json(to))
    .bind(Timestamp::now().to_string())
    .bind(seq)
    .execute(&mut **change)
    .await
    .context("registration")?;
    touched.add(from.account);
    touched.forgot = true;
    Ok(())
}

/// Takes a claim away from its account, whoever that is: for a device that changed hands without its owner's doing, or
/// one that somebody has forged. What the account is told, and who did it and why, is in the audit log. Gives the
/// account's name.
///
/// # Errors
/// When nobody has claimed the device, or the data folder cannot be used.
pub async fn release(data: &Path, serial: SerialNumber, reason: &str) -> anyhow::Result<String> {
    let pool = store::open_database(data).await?;
    let mut change = pool.begin_with("BEGIN IMMEDIATE").await?;
    let rows = standing(&mut change, serial).await?;
    let claim = rows.iter().find(|row| row.claimed.is_some());
    let claim = claim.with_context(|| format!("nobody has claimed {serial} here"))?;
    let message = format!(
        "the dispatcher's operator has released {serial}: whoever holds its label may register it, and so may you"
    );
    // A dispatcher that runs tells it with the next answer about changes.
    refuse(&mut change, claim, "released-by-operator", message, &mut Touched::default()).await?;
    sqlx::query(
        "UPDATE registration SET claimed = NULL, verifier = NULL, fingerprint = NULL WHERE generation = $1",
    )
    .bind(claim.generation.0)
    .execute(&mut *change)
    .await
    .context("registration")?;
    let owner = account_name(&mut change, claim.account).await?;
    let detail = format!("{owner}: {reason}");
    audit::write(&mut change, audit::OPERATOR, Action::Released, Some(serial), &detail).await?;
    change.commit().await?;
    pool.close().await;
    Ok(owner)
}

/// A registration that lost: it says why, and its secrets are of no use any more.
async fn refuse(
    change: &mut Transaction<'_, Sqlite>,
    row: &Standing,
    code: &str,
    message: String,
    touched: &mut Touched,
) -> anyhow::Result<()> {
    let problem = ProblemDetail { code: code.to_owned(), message, step: Some(Step::Relay) };
    let seq = next_seq(change, row.account).await?;
    sqlx::query(
        "UPDATE registration SET state = $2, problem = $3, secrets = NULL, since = $4, seq = $5 \
         WHERE generation = $1",
    )
    .bind(row.generation.0)
    .bind(word(State::Refused))
    .bind(to_json(&problem))
    .bind(Timestamp::now().to_string())
    .bind(seq)
    .execute(&mut **change)
    .await
    .context("registration")?;
    touched.add(row.account);
    touched.forgot = true;
    Ok(())
}

/// Somebody else has tried to register this device.
async fn count_attempt(
    change: &mut Transaction<'_, Sqlite>,
    row: &Standing,
    now: Timestamp,
    touched: &mut Touched,
) -> anyhow::Result<()> {
    sqlx::query("UPDATE registration SET attempts = attempts + 1, attempted = $2 WHERE generation = $1")
        .bind(row.generation.0)
        .bind(now.to_string())
        .execute(&mut **change)
        .await
        .context("registration")?;
    let last: Option<Timestamp> = row.attempted.as_deref().and_then(|last| last.parse().ok());
    if last.is_none_or(|last| now.duration_since(last).abs() >= TOLD_EVERY) {
        let seq = next_seq(change, row.account).await?;
        sqlx::query("UPDATE registration SET seq = $2 WHERE generation = $1")
            .bind(row.generation.0)
            .bind(seq)
            .execute(&mut **change)
            .await
            .context("registration")?;
        touched.add(row.account);
    }
    Ok(())
}

/// Unproven registrations of an account that others have registered, too.
async fn contested_by(change: &mut Transaction<'_, Sqlite>, account: AccountId) -> anyhow::Result<u32> {
    let (count,): (u32,) = sqlx::query_as(
        "SELECT count(*) FROM registration AS mine \
         WHERE mine.account = $1 AND mine.claimed IS NULL AND mine.secrets IS NOT NULL AND EXISTS ( \
         SELECT 1 FROM registration AS other WHERE other.serial = mine.serial AND other.account != mine.account \
         AND other.claimed IS NULL AND other.secrets IS NOT NULL)",
    )
    .bind(account.0)
    .fetch_one(&mut **change)
    .await
    .context("registrations")?;
    Ok(count)
}

/// Which of those who have registered a serial number (how many registrations of theirs are contested, and whether a
/// device has refuted this one; oldest first) leaves for a newcomer; `None`: the newcomer does.
///
/// Whoever squats many devices gives way first, so that a crowd has to make an account for each device that it wants
/// to keep from its owner. Among equals goes who was refuted, then who stands longest: the owner, who registers when
/// the device is about to phone, is in.
fn gives_way(newcomer: u32, others: &[(u32, bool)]) -> Option<usize> {
    let most = others.iter().map(|(contested, _)| *contested).max()?;
    if newcomer > most {
        return None;
    }
    let refuted = others.iter().position(|other| *other == (most, true));
    refuted.or_else(|| others.iter().position(|(contested, _)| *contested == most))
}

/// Code and message for whoever is too late.
pub(crate) fn claimed(serial: SerialNumber, since: Timestamp) -> (&'static str, String) {
    // Date alone: who the other owner is, and when exactly, is not this one's business.
    let date = since.strftime("%Y-%m-%d");
    let message = format!(
        "{serial} is claimed by another account since {date}: its owner must delete it there first, or offer it"
    );
    ("claimed-by-another-account", message)
}

/// Code and message for an OAK that is known to be another one.
pub(crate) fn wrong_oak(serial: SerialNumber) -> (&'static str, String) {
    ("wrong-oak", format!("the OAK is not that of {serial}: look at its label"))
}

/// Tells the audit log what an account has done to a device. What it does again and again is told once.
pub(crate) async fn audited(
    change: &mut Transaction<'_, Sqlite>,
    account: AccountId,
    action: Action,
    serial: SerialNumber,
    detail: &str,
) -> anyhow::Result<()> {
    let name = account_name(change, account).await?;
    if matches!(action, Action::ClaimRefused | Action::RegistrationChanged)
        && audit::was_last(change, &name, action, serial).await?
    {
        return Ok(());
    }
    audit::write(change, &name, action, Some(serial), detail).await
}

/// What is sealed of a registration.
fn secrets_of(account: AccountId, new: &NewRegistration) -> DeviceSecrets {
    DeviceSecrets {
        oak: new.oak.clone(),
        credentials: Credentials::new(new.user.clone(), new.password.clone()),
        voucher_key: new.voucher_key.clone(),
        bound_to: Some(bound_to(account, &new.servers, &new.trust_anchor)),
    }
}

/// Names account and destination in short.
fn bound_to(account: AccountId, servers: &[String], trust_anchor: &str) -> String {
    let named = to_json(&(account.0, servers, trust_anchor));
    hex(&Sha256::digest(named.as_bytes())).expose().to_owned()
}

pub(crate) fn purpose(serial: impl fmt::Display) -> String {
    format!("registration {serial}")
}

pub(crate) fn verifier_purpose(serial: impl fmt::Display) -> String {
    format!("verifier {serial}")
}

fn hex(bytes: &[u8]) -> Secret {
    Secret::new(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

#[cfg(test)]
mod tests;
