//! Which tunnel servers there are: those of the configuration file, and those that were added on the page, kept in the
//! database with sealed passwords.
//!
//! Invariant: one that is here is watched by one task and told of sites by another, is known to [`World`], and the
//! recording role has been told the way to its devices under the same name. Changes are carried out one at a time.

use crate::{
    config::TunnelServer as Entered,
    recording::Recording,
    sites::Sites,
    tunnels::TunnelServer,
    world::{Facts, World},
};
use anyhow::Context;
use homing_base::{Stop, Vault, http::Failure, vault::SealedColumn};
use homing_protocol::api::recording::Way;
use sqlx::{Row, SqlitePool, sqlite::SqliteRow};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

const SEALED: &[SealedColumn] =
    &[SealedColumn { table: "tunnel_server", key: "name", column: "password", purpose }];

/// The tunnel servers. Cheap to clone.
#[derive(Clone)]
pub struct Servers {
    inner: Arc<Inner>,
}

struct Inner {
    pool: SqlitePool,
    vault: Vault,
    world: World,
    recording: Recording,
    sites: Sites,
    known: Mutex<BTreeMap<String, Known>>,
    /// One change at a time.
    changing: tokio::sync::Mutex<()>,
}

struct Known {
    entered: Entered,
    configured: bool,
    server: TunnelServer,
    /// Of its watcher and of who tells it of sites; none before the role runs.
    watch: Option<Stop>,
}

impl Servers {
    /// Those that were configured, and those that were added.
    ///
    /// # Errors
    /// When the database cannot be read, or an address cannot be used.
    pub async fn open(
        folder: &Path,
        pool: SqlitePool,
        configured: &[Entered],
        world: World,
        recording: Recording,
        sites: Sites,
    ) -> anyhow::Result<Self> {
        let vault = Vault::open("management", folder, &pool, SEALED).await?;
        let mut known = BTreeMap::new();
        for entered in configured {
            known.insert(entered.name.clone(), Known::new(entered.clone(), true)?);
        }
        let rows = sqlx::query("SELECT * FROM tunnel_server").fetch_all(&pool).await;
        for row in rows.context("tunnel servers")? {
            let entered = entered(&vault, &row)?;
            // The file has the last word.
            if !known.contains_key(&entered.name) {
                known.insert(entered.name.clone(), Known::new(entered, false)?);
            }
        }
        for one in known.values() {
            world.set_tunnel(&one.entered.name, Facts::of(&one.entered, one.configured));
            let told = recording.set_way(&one.entered.name, &way(&one.entered)?).await;
            told.map_err(|failure| anyhow::anyhow!("{}", failure.problem.error.message))?;
        }
        let changing = tokio::sync::Mutex::new(());
        let known = Mutex::new(known);
        Ok(Servers { inner: Arc::new(Inner { pool, vault, world, recording, sites, known, changing }) })
    }

    /// Its keys, to be kept while the role runs.
    pub fn vault(&self) -> Vault {
        self.inner.vault.clone()
    }

    /// Watches all of them until the role stops.
    pub fn start(&self, stop: &Stop) {
        for known in self.lock().values_mut() {
            known.watch(&self.inner, stop);
        }
    }

    /// One, by its name.
    pub fn get(&self, name: &str) -> Option<TunnelServer> {
        self.lock().get(name).map(|known| known.server.clone())
    }

    /// All of them.
    pub fn all(&self) -> Vec<TunnelServer> {
        self.lock().values().map(|known| known.server.clone()).collect()
    }

    /// What was entered about one, with its password, and whether it stands in the configuration file.
    pub fn entered(&self, name: &str) -> Option<(Entered, bool)> {
        self.lock().get(name).map(|known| (known.entered.clone(), known.configured))
    }

    /// Adds one; the name is free.
    ///
    /// # Errors
    /// When it cannot be stored, or the recording role does not take it.
    pub async fn add(&self, entered: Entered, stop: &Stop) -> Result<(), Failure> {
        let _changing = self.inner.changing.lock().await;
        self.store(None, &entered).await?;
        self.begin(entered, stop).await
    }

    /// Changes one that was added; its name as well. What is recorded through it goes on under the new name.
    ///
    /// # Errors
    /// As [`Servers::add`].
    pub async fn change(&self, name: &str, entered: Entered, stop: &Stop) -> Result<(), Failure> {
        let _changing = self.inner.changing.lock().await;
        self.store(Some(name), &entered).await?;
        let new = entered.name.clone();
        self.end(name);
        self.begin(entered, stop).await?;
        if new != name {
            for hardware in self.inner.world.hardware_at(name) {
                self.inner.recording.follow(hardware, &new).await;
            }
            self.inner.recording.forget_way(name).await?;
            self.inner.world.remove_tunnel(name);
        }
        Ok(())
    }

    /// Removes one that was added. Its devices stay registered there.
    ///
    /// # Errors
    /// When it cannot be stored.
    pub async fn remove(&self, name: &str) -> Result<(), Failure> {
        let _changing = self.inner.changing.lock().await;
        let removed = sqlx::query("DELETE FROM tunnel_server WHERE name = $1").bind(name);
        removed.execute(&self.inner.pool).await.context("tunnel servers")?;
        self.end(name);
        self.inner.recording.forget_way(name).await?;
        self.inner.world.remove_tunnel(name);
        Ok(())
    }

    /// Asks one for everything anew, and does not wait for the next attempt where it could not be reached.
    pub fn refresh(&self, name: &str, stop: &Stop) {
        if let Some(known) = self.lock().get_mut(name) {
            known.watch(&self.inner, stop);
        }
    }

    async fn store(&self, before: Option<&str>, entered: &Entered) -> anyhow::Result<()> {
        let mut transaction = self.inner.pool.begin().await.context("tunnel servers")?;
        sqlx::query("DELETE FROM tunnel_server WHERE name = $1")
            .bind(before)
            .execute(&mut *transaction)
            .await
            .context("tunnel servers")?;
        sqlx::query("INSERT INTO tunnel_server VALUES ($1, $2, $3, $4, $5, $6, $7)")
            .bind(&entered.name)
            .bind(&entered.description)
            .bind(&entered.url)
            .bind(&entered.external)
            .bind(&entered.user)
            .bind(self.inner.vault.seal(&purpose(&entered.name), &entered.password))
            .bind(&entered.trust_anchor)
            .execute(&mut *transaction)
            .await
            .context("tunnel servers")?;
        transaction.commit().await.context("tunnel servers")
    }

    async fn begin(&self, entered: Entered, stop: &Stop) -> Result<(), Failure> {
        let (name, mut known) = (entered.name.clone(), Known::new(entered, false)?);
        self.inner.recording.set_way(&name, &way(&known.entered)?).await?;
        self.inner.world.set_tunnel(&name, Facts::of(&known.entered, false));
        known.watch(&self.inner, stop);
        self.lock().insert(name, known);
        Ok(())
    }

    fn end(&self, name: &str) {
        if let Some(watch) = self.lock().remove(name).and_then(|known| known.watch) {
            watch.stop();
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.inner.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn new(entered: Entered, configured: bool) -> anyhow::Result<Self> {
        Ok(Known { server: TunnelServer::new(&entered)?, entered, configured, watch: None })
    }

    /// A watcher of its own, and who tells it of sites, instead of those that it had.
    fn watch(&mut self, inner: &Inner, stop: &Stop) {
        if let Some(before) = self.watch.take() {
            before.stop();
        }
        let own = stop.child();
        stop.spawn(self.server.clone().watch(inner.world.clone(), inner.recording.clone(), own.clone()));
        stop.spawn(inner.sites.clone().keep_told(self.server.clone(), own.clone()));
        self.watch = Some(own);
    }
}

fn way(entered: &Entered) -> anyhow::Result<Way> {
    Ok(Way {
        url: entered.url.clone(),
        user: entered.user.clone(),
        password: entered.password.clone(),
        trust_anchor: entered.trust_anchor_pem()?.unwrap_or_default(),
    })
}

fn entered(vault: &Vault, row: &SqliteRow) -> anyhow::Result<Entered> {
    let name: String = row.try_get("name")?;
    let password = vault.open_sealed(&purpose(&name), row.try_get("password")?)?;
    Ok(Entered {
        name,
        description: row.try_get("description")?,
        url: row.try_get("url")?,
        external: row.try_get("external")?,
        user: row.try_get("user")?,
        password,
        trust_anchor: row.try_get("trust_anchor")?,
    })
}

fn purpose(name: &str) -> String {
    format!("password of the tunnel server {name}")
}
