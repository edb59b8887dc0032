//! Secrets at rest: AES-256-GCM under data keys, which a role's one master key wraps.
//!
//! | what | where |
//! |---|---|
//! | master key | a systemd credential, the environment, or a file beside the database: `vault/master.rs` |
//! | data keys, each wrapped by the master key | table `data_key` of the role's own database, so that a copy of it and the master key are enough to restore |
//! | sealed values | columns of that database, which the role names as [`SealedColumn`]s |
//!
//! A sealed value is `2 ‖ data key ‖ nonce ‖ ciphertext ‖ tag` and bound to a purpose (`"registration 00408C702009"`), so
//! that one row's secret cannot be moved into another's. Version 1 had no data key: the master key itself sealed.
//!
//! **Rotation**, while the role runs (`vault/rotate.rs`): a new master key and a new data key; everything is sealed anew in
//! the background, in small transactions; then the old data key is destroyed.
//!
//! Invariants: what was sealed can be opened at every instant, a crash included; a data key is destroyed only when no value
//! in the database names it.

mod files;
mod master;
mod rotate;

pub use files::{claim_folder, private_folder, refuse_readable_by_others, write_private};
pub use master::is_master_key;
pub use rotate::{is_requested, request_rotation};

use anyhow::{Context, bail, ensure};
use arc_swap::ArcSwap;
use aws_lc_rs::aead::LessSafeKey;
use homing_protocol::Secret;
use master::{KeyBytes, KeyId, Masters};
use sqlx::{SqliteConnection, SqlitePool};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

const KEY_LENGTH: usize = 32;

/// Sealed by the master key itself, before there were data keys.
const VERSION_WITHOUT_DATA_KEY: u8 = 1;

/// Sealed by the data key that is named behind it.
const VERSION: u8 = 2;

/// The master key of version 1, as one of the data keys.
const LEGACY: KeyId = [0; 8];

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS data_key (
    id      BLOB NOT NULL,
    number  INTEGER NOT NULL, -- the greatest is the one that seals
    master  BLOB NOT NULL,    -- which master key wraps it here; two during a rotation
    wrapped BLOB NOT NULL,
    PRIMARY KEY (id, master)
) STRICT";

/// A column whose values are sealed: what has to be sealed anew after a rotation.
#[derive(Clone, Copy, Debug)]
pub struct SealedColumn {
    /// Its table.
    pub table: &'static str,
    /// A TEXT column that identifies the row, or a few of them.
    pub key: &'static str,
    /// The BLOB column; NULL where there is nothing.
    pub column: &'static str,
    /// What a value is sealed for, from the row's key.
    pub purpose: fn(&str) -> String,
}

/// Seals and opens; cheap to clone, holds keys in memory.
#[derive(Clone)]
pub struct Vault {
    shared: Arc<Shared>,
}

struct Shared {
    role: &'static str,
    folder: PathBuf,
    pool: SqlitePool,
    columns: &'static [SealedColumn],
    ring: ArcSwap<Ring>,
}

/// Data keys, unwrapped.
struct Ring {
    current: KeyId,
    keys: HashMap<KeyId, LessSafeKey>,
}

type KeyRow = (Vec<u8>, i64, Vec<u8>, Vec<u8>);

impl Vault {
    /// Opens the keys of a role's database, or makes them; finishes a rotation that was cut short. For the process that
    /// holds the role's folder ([`claim_folder`]), which then should run [`Vault::keep`].
    ///
    /// `columns` are all that hold sealed values.
    ///
    /// # Errors
    /// When there is no master key that opens them, or it can be read by others; says what to check.
    pub async fn open(
        role: &'static str,
        folder: &Path,
        pool: &SqlitePool,
        columns: &'static [SealedColumn],
    ) -> anyhow::Result<Vault> {
        Self::open_as(role, folder, pool, columns, true).await
    }

    /// The same for a process beside it, such as a command: makes keys where there are none yet, but changes none.
    ///
    /// # Errors
    /// See [`Vault::open`].
    pub async fn open_beside(role: &'static str, folder: &Path, pool: &SqlitePool) -> anyhow::Result<Vault> {
        Self::open_as(role, folder, pool, &[], false).await
    }

    async fn open_as(
        role: &'static str,
        folder: &Path,
        pool: &SqlitePool,
        columns: &'static [SealedColumn],
        is_owner: bool,
    ) -> anyhow::Result<Vault> {
        let opening = async {
            // One process at a time, key file included.
            let mut change = pool.begin_with("BEGIN IMMEDIATE").await?;
            sqlx::raw_sql(SCHEMA).execute(&mut *change).await?;
            let mut masters = Masters::find(role, folder)?;
            if key_rows(&mut change).await?.is_empty() {
                rotate::make_keys(role, &mut masters, &mut change).await?;
            } else if is_owner {
                rotate::settle(role, &mut masters, &mut change).await?;
            }
            let ring = Ring::read(role, &masters, &mut change).await?;
            change.commit().await?;
            anyhow::Ok(ring)
        };
        let ring = opening.await.with_context(|| format!("keys of the {role}'s stored secrets"))?;
        let (folder, pool) = (folder.to_owned(), pool.clone());
        Ok(Vault {
            shared: Arc::new(Shared { role, folder, pool, columns, ring: ArcSwap::from_pointee(ring) }),
        })
    }

    /// Makes sure that what this transaction can read can be opened, and that what it seals counts: for processes beside
    /// the one that may rotate the keys meanwhile. The transaction must be the writing one.
    ///
    /// # Errors
    /// See [`Vault::open`].
    pub async fn refresh(&self, change: &mut SqliteConnection) -> anyhow::Result<()> {
        let rows = key_rows(change).await?;
        let ring = self.shared.ring.load();
        let newest = rows.iter().max_by_key(|(_, number, ..)| *number).map(|(id, ..)| id.as_slice());
        if newest != Some(&ring.current) {
            let masters = Masters::find(self.shared.role, &self.shared.folder)?;
            let ring = Ring::read(self.shared.role, &masters, change).await?;
            self.shared.ring.store(Arc::new(ring));
        }
        Ok(())
    }

    /// Encrypts a secret for a purpose. Store it soon: after a rotation the data key lives for a minute at least.
    pub fn seal(&self, purpose: &str, secret: &Secret) -> Vec<u8> {
        let ring = self.shared.ring.load();
        let key = ring.keys.get(&ring.current).expect("the current key is one of them");
        let mut sealed = ring.prefix().to_vec();
        sealed.extend_from_slice(&master::encrypt(key, purpose, secret.expose().as_bytes()));
        sealed
    }

    /// Decrypts what [`Vault::seal`] made for the same purpose.
    ///
    /// # Errors
    /// When the value was made with another key or for another purpose, or was changed.
    pub fn open_sealed(&self, purpose: &str, sealed: &[u8]) -> anyhow::Result<Secret> {
        let ring = self.shared.ring.load();
        let open = || {
            let (&version, rest) = sealed.split_first()?;
            let (key, rest) = match version {
                VERSION_WITHOUT_DATA_KEY => (LEGACY, rest),
                VERSION => {
                    let (key, rest) = rest.split_first_chunk::<{ LEGACY.len() }>()?;
                    (*key, rest)
                }
                _ => return None,
            };
            let plain = master::decrypt(ring.keys.get(&key)?, purpose, rest)?;
            std::str::from_utf8(&plain).ok().map(Secret::new)
        };
        open().with_context(|| {
            format!(
                "the stored secret of {purpose} cannot be decrypted: was the master key replaced, or a part of \
                 the database restored from elsewhere?"
            )
        })
    }
}

impl Ring {
    /// Unwraps what is in the database.
    async fn read(role: &str, masters: &Masters, connection: &mut SqliteConnection) -> anyhow::Result<Ring> {
        let (mut keys, mut newest) = (HashMap::new(), None);
        let rows = key_rows(connection).await?;
        for (id, number, ..) in &rows {
            let id = key_id(id)?;
            let key = unwrap(role, masters, &rows, id)?;
            keys.insert(id, master::aes(&key));
            newest = newest.max(Some((*number, id)));
        }
        let (_, current) = newest.context("there is no data key in the database")?;
        Ok(Ring { current, keys })
    }

    /// What values begin with that the current key has sealed.
    fn prefix(&self) -> [u8; 1 + LEGACY.len()] {
        prefix(self.current)
    }
}

fn prefix(key: KeyId) -> [u8; 1 + LEGACY.len()] {
    let mut prefix = [VERSION; 1 + LEGACY.len()];
    prefix[1..].copy_from_slice(&key);
    prefix
}

async fn key_rows(connection: &mut SqliteConnection) -> anyhow::Result<Vec<KeyRow>> {
    let rows = sqlx::query_as("SELECT id, number, master, wrapped FROM data_key ORDER BY number");
    Ok(rows.fetch_all(connection).await?)
}

fn key_id(bytes: &[u8]) -> anyhow::Result<KeyId> {
    bytes.try_into().ok().context("a key's name in the database is damaged")
}

/// A data key, by whichever master key at hand opens it.
fn unwrap(role: &str, masters: &Masters, rows: &[KeyRow], id: KeyId) -> anyhow::Result<KeyBytes> {
    let mut wrapped_by_ours = false;
    for (_, _, master, wrapped) in rows.iter().filter(|(of, ..)| *of == id) {
        let Some(master) = masters.get(key_id(master)?) else { continue };
        wrapped_by_ours = true;
        if let Some(key) = master.unwrap(role, id, wrapped) {
            return Ok(key);
        }
    }
    ensure!(!wrapped_by_ours, "a data key in the database was altered: restore the database from a backup");
    if masters.current.is_none() {
        bail!(
            "the master key is missing: put back the file master.key of this folder, or hand in the key (a systemd \
             credential or the environment); without it the stored secrets cannot be read"
        );
    }
    bail!(
        "the master key is not the one of this database: put back the one that belongs to it, or hand that in as the \
         old one beside the new"
    )
}

#[cfg(test)]
mod tests;
