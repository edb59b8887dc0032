//! Places with one Internet connection, as they were entered; and that every tunnel server knows of them.
//!
//! Tunnel servers measure sites and enforce limits (`docs/decisions/022-sites-are-the-tunnel-servers.md`). What was entered
//! is kept here, and one task for each tunnel server tells it what it lacks: when it begins to be watched, each time it is
//! reached again, and after each change. A site that was removed is remembered as such, for those who were away.
//!
//! A site that only a tunnel server knows was entered there, or before sites were kept here: it is taken over when that
//! tunnel server is reached, and the others are told.
//!
//! Invariant: a device is at one site at most; and nobody but its task changes the sites of a tunnel server, so that an
//! older word never overtakes a newer one.

use crate::tunnels::TunnelServer;
use anyhow::Context;
use homing_base::{Stop, client::CallError, http::Failure};
use homing_protocol::{
    SerialNumber,
    api::{
        Problem,
        tunnel::{SITES_MAX, SiteChange},
    },
};
use http::StatusCode;
use sqlx::{Row, SqlitePool};
use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{Mutex, watch};

/// Who enters a site waits so long for tunnel servers to be told.
const DEADLINE: Duration = Duration::from_secs(3);

/// Until a tunnel server is told again that can be reached, and could not be told everything.
const RETRY: Duration = Duration::from_secs(15);

/// By name. None: it was removed.
type Kept = BTreeMap<String, Option<SiteChange>>;

/// The sites. Cheap to clone.
#[derive(Clone)]
pub struct Sites {
    inner: Arc<Inner>,
}

struct Inner {
    pool: SqlitePool,
    /// As in the database.
    kept: Mutex<Kept>,
    /// Counts changes of `kept`.
    version: watch::Sender<u64>,
    /// By the name of the tunnel server.
    known: watch::Sender<BTreeMap<String, Known>>,
}

/// What a tunnel server has of them, as far as is known.
#[derive(Clone, Default)]
struct Known {
    /// None: it was never reached.
    sites: Option<BTreeMap<String, SiteChange>>,
    /// The last one that was told, or tried to.
    version: u64,
}

impl Sites {
    /// As they were left.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn open(pool: SqlitePool) -> anyhow::Result<Self> {
        let mut kept = Kept::new();
        for row in sqlx::query("SELECT name, site FROM site").fetch_all(&pool).await.context("sites")? {
            let (name, json): (String, Option<String>) = (row.try_get("name")?, row.try_get("site")?);
            let site = json.map(|json| serde_json::from_str(&json)).transpose();
            let site = site.with_context(|| format!("site {name}"))?;
            kept.insert(name, site);
        }
        let (version, known) = (watch::Sender::new(0), watch::Sender::default());
        Ok(Sites { inner: Arc::new(Inner { pool, kept: Mutex::new(kept), version, known }) })
    }

    /// All of them, by name.
    pub async fn all(&self) -> BTreeMap<String, SiteChange> {
        let kept = self.inner.kept.lock().await;
        kept.iter().filter_map(|(name, site)| Some((name.clone(), site.clone()?))).collect()
    }

    /// Enters a site, or changes it. Devices that were at another site are at this one now.
    ///
    /// # Errors
    /// What is wrong with it; when there are too many, or it cannot be stored.
    pub async fn put(&self, name: &str, mut site: SiteChange) -> Result<(), Failure> {
        site.check(name).map_err(Failure::bad_request)?;
        site.devices.sort_unstable();
        site.devices.dedup();
        let mut kept = self.inner.kept.lock().await;
        let is_new = kept.get(name).is_none_or(Option::is_none);
        if is_new && kept.values().flatten().count() >= SITES_MAX {
            let message = format!("{SITES_MAX} sites are as many as there can be.");
            return Err(Failure::new(StatusCode::CONFLICT, Problem::new("too-many", message)));
        }
        let mut changed = Kept::new();
        for (other, losing) in kept.iter().filter(|(other, _)| *other != name) {
            let Some(losing) = losing else { continue };
            let stays = |serial: &&SerialNumber| site.devices.binary_search(serial).is_err();
            let devices: Vec<SerialNumber> = losing.devices.iter().filter(stays).copied().collect();
            if devices.len() < losing.devices.len() {
                changed.insert(other.clone(), Some(SiteChange { devices, ..losing.clone() }));
            }
        }
        changed.insert(name.to_owned(), Some(site));
        Ok(self.store(&mut kept, changed).await?)
    }

    /// Forgets a site. False if there is none.
    ///
    /// # Errors
    /// When that cannot be stored.
    pub async fn remove(&self, name: &str) -> anyhow::Result<bool> {
        let mut kept = self.inner.kept.lock().await;
        if kept.get(name).is_none_or(Option::is_none) {
            return Ok(false);
        }
        self.store(&mut kept, Kept::from([(name.to_owned(), None)])).await?;
        Ok(true)
    }

    /// Waits until these tunnel servers were told of every change that there is, or could not be; not for long.
    pub async fn settle(&self, servers: &[TunnelServer]) {
        let version = *self.inner.version.borrow();
        let is_told = |known: &BTreeMap<String, Known>| {
            let told =
                |server: &TunnelServer| known.get(server.name()).is_some_and(|one| one.version >= version);
            servers.iter().all(told)
        };
        // Who has not been told by then is named by `untold`.
        let _ = tokio::time::timeout(DEADLINE, self.inner.known.subscribe().wait_for(is_told)).await;
    }

    /// Names of those of these tunnel servers that do not know a site as it is, or not of its removal, as far as is known.
    pub fn untold(&self, name: &str, site: Option<&SiteChange>, servers: &[TunnelServer]) -> Vec<String> {
        let known = self.inner.known.borrow();
        let is_untold = |server: &&TunnelServer| {
            let sites = known.get(server.name()).and_then(|one| one.sites.as_ref());
            sites.is_none_or(|sites| sites.get(name) != site)
        };
        servers.iter().filter(is_untold).map(|server| server.name().to_owned()).collect()
    }

    /// Tells a tunnel server of all sites, and of every change, until it is watched no more.
    pub async fn keep_told(self, server: TunnelServer, stop: Stop) {
        let (mut changed, mut reached) = (self.inner.version.subscribe(), server.reached());
        // Of another that had its name, perhaps.
        self.inner.known.send_modify(|known| drop(known.remove(server.name())));
        let mut said = String::new();
        loop {
            changed.mark_unchanged();
            reached.mark_unchanged();
            let told = tokio::select! {
                told = self.tell(&server) => told,
                () = stop.cancelled() => return,
            };
            let problem = told.err().map(|error| format!("{error:#}")).unwrap_or_default();
            let is_told = problem.is_empty();
            if !is_told && said != problem {
                tracing::warn!(
                    tunnel = server.name(),
                    problem,
                    "tunnel server not told of all sites; trying again"
                );
            }
            said = problem;
            tokio::select! {
                _ = changed.changed() => (),
                _ = reached.changed() => (),
                () = tokio::time::sleep(RETRY), if !is_told => (),
                () = stop.cancelled() => return,
            }
        }
    }

    /// Tells a tunnel server what it lacks. A site that it refuses does not keep it from the others.
    async fn tell(&self, server: &TunnelServer) -> anyhow::Result<()> {
        let tried = *self.inner.version.borrow();
        let told = match server.sites().await {
            Err(error) => Err(error.into()),
            Ok(sites) => {
                let entered = sites.into_iter().map(|site| {
                    let devices = site.devices;
                    let (upstream_mbit, limit_mbit) = (site.upstream_mbit, site.limit_mbit);
                    (site.name, SiteChange { upstream_mbit, limit_mbit, devices })
                });
                let mut there: BTreeMap<String, SiteChange> = entered.collect();
                let kept = self.take_over(server, &there).await?;
                let told = align(server, &mut there, &kept).await;
                self.inner.known.send_modify(|known| {
                    known.entry(server.name().to_owned()).or_default().sites = Some(there);
                });
                told.map_err(anyhow::Error::from)
            }
        };
        self.inner.known.send_modify(|known| {
            known.entry(server.name().to_owned()).or_default().version = tried;
        });
        told
    }

    /// Keeps sites that a tunnel server has, and nobody has entered here. All that are kept come back.
    async fn take_over(
        &self,
        server: &TunnelServer,
        there: &BTreeMap<String, SiteChange>,
    ) -> anyhow::Result<Kept> {
        let mut kept = self.inner.kept.lock().await;
        let at_a_site = kept.values().flatten().flat_map(|site| &site.devices);
        let mut placed: HashSet<SerialNumber> = at_a_site.copied().collect();
        let mut new = Kept::new();
        for (name, site) in there.iter().filter(|(name, _)| !kept.contains_key(*name)) {
            let mut site = site.clone();
            site.devices.retain(|serial| placed.insert(*serial));
            tracing::info!(tunnel = server.name(), site = name, "site taken over from a tunnel server");
            new.insert(name.clone(), Some(site));
        }
        if !new.is_empty() {
            self.store(&mut kept, new).await?;
        }
        Ok(kept.clone())
    }

    async fn store(&self, kept: &mut Kept, changed: Kept) -> anyhow::Result<()> {
        let mut transaction = self.inner.pool.begin().await.context("sites")?;
        for (name, site) in &changed {
            sqlx::query("INSERT OR REPLACE INTO site VALUES ($1, $2)")
                .bind(name)
                .bind(site.as_ref().map(serde_json::to_string).transpose()?)
                .execute(&mut *transaction)
                .await
                .context("sites")?;
        }
        transaction.commit().await.context("sites")?;
        kept.extend(changed);
        self.inner.version.send_modify(|version| *version += 1);
        Ok(())
    }
}

/// Makes `there`, what a tunnel server has, what is kept.
async fn align(
    server: &TunnelServer,
    there: &mut BTreeMap<String, SiteChange>,
    kept: &Kept,
) -> Result<(), CallError> {
    let mut refused = Ok(());
    for (name, site) in kept {
        let told = match site {
            Some(site) if there.get(name) == Some(site) => continue,
            Some(site) => server.put_site(name, site).await,
            None if there.contains_key(name) => server.remove_site(name).await,
            None => continue,
        };
        match (told, site) {
            (Ok(()), Some(site)) => drop(there.insert(name.clone(), site.clone())),
            (Ok(()), None) => drop(there.remove(name)),
            (Err(error @ CallError::Refused { .. }), _) => refused = Err(error),
            (Err(error), _) => return Err(error),
        }
    }
    refused
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serial(last: u8) -> SerialNumber {
        SerialNumber::new([0, 0x40, 0x8C, 0, 0, last])
    }

    fn with(devices: &[u8]) -> SiteChange {
        let devices = devices.iter().map(|last| serial(*last)).collect();
        SiteChange { upstream_mbit: Some(2.5), limit_mbit: None, devices }
    }

    /// Goal: what was entered is there after a restart, each device at the site that it was entered at last.
    #[tokio::test]
    async fn what_was_entered_outlives_a_restart_and_a_device_is_at_one_site() {
        let folder = tempfile::tempdir().unwrap();
        let sites = Sites::open(crate::open_database(folder.path()).await.unwrap()).await.unwrap();
        sites.put("Shop", with(&[2, 1, 2])).await.unwrap();
        sites.put("Mill", with(&[2, 3])).await.unwrap();
        sites.put("Barn", with(&[4])).await.unwrap();
        assert!(sites.remove("Barn").await.unwrap());
        assert!(!sites.remove("Barn").await.unwrap(), "it is gone already");
        assert_eq!(sites.put(" ", with(&[])).await.unwrap_err().status, StatusCode::BAD_REQUEST);

        let expected = [("Mill", with(&[2, 3])), ("Shop", with(&[1]))];
        let expected: BTreeMap<String, SiteChange> =
            expected.map(|(name, site)| (name.to_owned(), site)).into();
        assert_eq!(sites.all().await, expected);
        let again = Sites::open(crate::open_database(folder.path()).await.unwrap()).await.unwrap();
        assert_eq!(again.all().await, expected);
        assert!(again.inner.kept.lock().await["Barn"].is_none(), "its removal is known");
    }
}
