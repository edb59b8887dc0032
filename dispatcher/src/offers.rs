//! A claim goes to another account when both sides want it: the owner offers the device, the other registers it with
//! the right OAK (step 2; the claim moves in `claims.rs`). Then the device comes, by whatever way (step 5 or a move
//! from one tunnel server to the other).
//!
//! Invariant: an offer changes nothing by itself, and says nothing about which accounts exist.

use crate::{
    audit::Action,
    claims::audited,
    store::{AccountId, Store, Touched, next_seq, word},
};
use anyhow::Context;
use homing_protocol::{
    SerialNumber, Step,
    api::dispatcher::{Registration, RegistrationState as State},
};
use jiff::{SignedDuration, Timestamp};
use sqlx::{Sqlite, Transaction};

/// How long an offer stands.
const OFFERED_FOR: SignedDuration = SignedDuration::from_hours(7 * 24);

/// How long the account that a device went from is told where it went.
const SIGNPOST_FOR: SignedDuration = SignedDuration::from_hours(30 * 24);

/// Why a device is not offered, or has not arrived.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OfferError {
    #[error("not registered by this account")]
    NotRegistered,
    #[error("its OAK is not proven yet")]
    Unproven,
    #[error("the claim is bound to another key, or to none")]
    OtherKey,
    #[error(transparent)]
    Internal(#[from] anyhow::Error),
}

impl Store {
    /// Offers a device to an account, in place of whom it was offered to before.
    pub async fn offer(&self, owner: AccountId, serial: SerialNumber, taker: &str) -> Result<(), OfferError> {
        let mut change = self.begin().await?;
        let now = Timestamp::now();
        if taker_of(&mut change, serial, now).await?.is_some_and(|(by, to)| by == owner && to == taker) {
            return Ok(());
        }
        claim(&mut change, owner, serial).await?;
        sqlx::query("INSERT OR REPLACE INTO offer (serial, owner, taker, ends) VALUES ($1, $2, $3, $4)")
            .bind(serial.to_string())
            .bind(owner.0)
            .bind(taker)
            .bind(in_seconds(now + OFFERED_FOR))
            .execute(&mut *change)
            .await
            .context("offer")?;
        audited(&mut change, owner, Action::Offered, serial, &format!("to {taker}")).await?;
        Ok(self.commit(change, Touched::default()).await?)
    }

    /// Withdraws it; nothing to withdraw is as good.
    pub async fn withdraw_offer(&self, owner: AccountId, serial: SerialNumber) -> Result<(), OfferError> {
        let mut change = self.begin().await?;
        claim(&mut change, owner, serial).await?;
        let withdrawn = sqlx::query("DELETE FROM offer WHERE serial = $1 AND owner = $2")
            .bind(serial.to_string())
            .bind(owner.0)
            .execute(&mut *change)
            .await
            .context("offer")?;
        if withdrawn.rows_affected() == 1 {
            audited(&mut change, owner, Action::OfferWithdrawn, serial, "").await?;
        }
        Ok(self.commit(change, Touched::default()).await?)
    }

    /// The device is at the account's tunnel server, with the key that the claim is bound to: nothing secret of it is
    /// needed here any more.
    pub async fn arrived(
        &self,
        account: AccountId,
        serial: SerialNumber,
        fingerprint: &str,
    ) -> Result<Registration, OfferError> {
        let mut change = self.begin().await?;
        let (state, bound) = claim(&mut change, account, serial).await?;
        if !bound.is_some_and(|bound| bound.eq_ignore_ascii_case(fingerprint)) {
            return Err(OfferError::OtherKey);
        }
        // A dispatch under way ends the same, in a moment.
        if state != word(State::Dispatched) && state != word(State::Dispatching) {
            let seq = next_seq(&mut change, account).await?;
            sqlx::query(
                "UPDATE registration SET state = $3, step = $4, problem = NULL, secrets = NULL, since = $5, \
                 seq = $6 WHERE serial = $1 AND account = $2",
            )
            .bind(serial.to_string())
            .bind(account.0)
            .bind(word(State::Dispatched))
            .bind(Step::Dispatch.name())
            .bind(Timestamp::now().to_string())
            .bind(seq)
            .execute(&mut *change)
            .await
            .context("registration")?;
            audited(&mut change, account, Action::Arrived, serial, "").await?;
            let touched = Touched { accounts: vec![account], forgot: true };
            self.commit(change, touched).await?;
        } else {
            change.rollback().await.context("registration")?;
        }
        self.get(account, serial).await?.ok_or(OfferError::NotRegistered)
    }

    /// Forgets what has had its time.
    pub async fn sweep(&self) -> anyhow::Result<()> {
        let now = Timestamp::now();
        let mut change = self.begin().await?;
        sqlx::query("DELETE FROM offer WHERE ends <= $1").bind(in_seconds(now)).execute(&mut *change).await?;
        sqlx::query("DELETE FROM registration WHERE state = $1 AND since <= $2")
            .bind(word(State::Transferred))
            .bind(in_seconds(now - SIGNPOST_FOR))
            .execute(&mut *change)
            .await?;
        self.commit(change, Touched::default()).await
    }
}

/// State and key of an account's claim.
async fn claim(
    change: &mut Transaction<'_, Sqlite>,
    account: AccountId,
    serial: SerialNumber,
) -> Result<(String, Option<String>), OfferError> {
    let found: Option<(String, Option<String>, bool)> = sqlx::query_as(
        "SELECT state, fingerprint, claimed IS NOT NULL FROM registration \
         WHERE serial = $1 AND account = $2 AND state != 'transferred'",
    )
    .bind(serial.to_string())
    .bind(account.0)
    .fetch_optional(&mut **change)
    .await
    .context("registration")?;
    match found {
        None => Err(OfferError::NotRegistered),
        Some((_, _, false)) => Err(OfferError::Unproven),
        Some((state, fingerprint, true)) => Ok((state, fingerprint)),
    }
}

/// Who has offered a device to which account, where that exists.
pub(crate) async fn taker(
    change: &mut Transaction<'_, Sqlite>,
    serial: SerialNumber,
) -> anyhow::Result<Option<(AccountId, AccountId)>> {
    let Some((owner, taker)) = taker_of(change, serial, Timestamp::now()).await? else { return Ok(None) };
    let taker: Option<(i64,)> = sqlx::query_as("SELECT id FROM account WHERE name = $1")
        .bind(taker)
        .fetch_optional(&mut **change)
        .await
        .context("account")?;
    Ok(taker.map(|(taker,)| (owner, AccountId(taker))))
}

async fn taker_of(
    change: &mut Transaction<'_, Sqlite>,
    serial: SerialNumber,
    now: Timestamp,
) -> anyhow::Result<Option<(AccountId, String)>> {
    let offer: Option<(i64, String)> =
        sqlx::query_as("SELECT owner, taker FROM offer WHERE serial = $1 AND ends > $2")
            .bind(serial.to_string())
            .bind(in_seconds(now))
            .fetch_optional(&mut **change)
            .await
            .context("offer")?;
    Ok(offer.map(|(owner, taker)| (AccountId(owner), taker)))
}

/// Times that the database compares as text are all as long.
fn in_seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
