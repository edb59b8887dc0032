//! A configuration that can change while its role runs: read where it is needed, replaced as a whole.
//!
//! Which keys may change is the role's to say, as a list of names ([`Reloaded::of`]): everything else stays as it was at
//! the start, and is named, so that nobody believes that it has changed.
//!
//! Invariant: what [`Live::get`] gives has passed the role's check, and differs from the start in keys that may change.

use anyhow::Context;
use arc_swap::ArcSwap;
use serde::{Serialize, de::DeserializeOwned};
use std::sync::Arc;
use toml::{Table, Value};

/// Cheap to clone; all clones are the same.
#[derive(Debug)]
pub struct Live<C>(Arc<ArcSwap<C>>);

impl<C> Clone for Live<C> {
    fn clone(&self) -> Self {
        Live(Arc::clone(&self.0))
    }
}

impl<C> Live<C> {
    /// As it is at the start.
    pub fn new(config: C) -> Self {
        Live(Arc::new(ArcSwap::from_pointee(config)))
    }

    /// As it is now.
    pub fn get(&self) -> Arc<C> {
        self.0.load_full()
    }

    /// From now on.
    pub fn set(&self, config: C) {
        self.0.store(Arc::new(config));
    }
}

/// What a new configuration comes to for a role that runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Reloaded<C> {
    /// As it runs, with what may change.
    pub config: C,
    /// Keys that change now: `limits.uplinks`.
    pub changed: Vec<String>,
    /// Keys that differ, and need a restart.
    pub restart: Vec<String>,
}

impl<C: Serialize + DeserializeOwned> Reloaded<C> {
    /// Compares two readings of the file, and takes what has changed there into `running`, as far as `may_change` has
    /// it: `limits`, with all that is in it, or `limits.uplinks`. What the process has filled in itself (`running` is
    /// not what the file says then) stays as long as the file does not change there.
    ///
    /// # Errors
    /// When a configuration cannot be compared, which a test should find.
    pub fn of(running: &C, before: &C, now: &C, may_change: &[&str]) -> anyhow::Result<Self> {
        let table = |config: &C| Table::try_from(config).context("configuration");
        let (mut running, before, now) = (table(running)?, table(before)?, table(now)?);
        let may_change = |key: &str| {
            may_change.iter().any(|name| {
                key.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            })
        };
        let mut keys = Vec::new();
        differences(&before, &now, "", &mut keys);
        let (changed, restart): (Vec<_>, Vec<_>) = keys.into_iter().partition(|key| may_change(key));
        for key in &changed {
            copy(&now, &mut running, key);
        }
        let config = Value::Table(running).try_into().context("configuration")?;
        Ok(Reloaded { config, changed, restart })
    }
}

fn differences(before: &Table, now: &Table, place: &str, keys: &mut Vec<String>) {
    let names = before.keys().chain(now.keys().filter(|name| !before.contains_key(*name)));
    for name in names {
        let key = if place.is_empty() { name.clone() } else { format!("{place}.{name}") };
        match (before.get(name), now.get(name)) {
            (Some(Value::Table(before)), Some(Value::Table(now))) => differences(before, now, &key, keys),
            (before, now) if before != now => keys.push(key),
            _ => (),
        }
    }
}

/// Copies one key of `from` to the same place in `to`, or removes it there.
fn copy(from: &Table, to: &mut Table, key: &str) {
    match key.split_once('.') {
        Some((table, rest)) => {
            if let (Some(Value::Table(from)), Some(Value::Table(to))) = (from.get(table), to.get_mut(table)) {
                copy(from, to, rest);
            }
        }
        None => match from.get(key) {
            Some(value) => drop(to.insert(key.to_owned(), value.clone())),
            None => drop(to.remove(key)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Config {
        external: String,
        password: String,
        token: Option<String>,
        limits: Limits,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Limits {
        uplinks: u32,
        streams: u32,
    }

    /// Goal: what may change does, what may not is named, and what the process filled in itself is kept.
    #[test]
    fn what_may_change_changes_and_what_may_not_is_named() {
        let before = Config {
            external: "a:1".into(),
            password: String::new(),
            token: None,
            limits: Limits { uplinks: 1, streams: 2 },
        };
        let running = Config { password: "made by us".into(), ..before.clone() };
        let now = Config {
            external: "b:1".into(),
            token: Some("t".into()),
            limits: Limits { uplinks: 9, streams: 2 },
            ..before.clone()
        };
        let may_change = ["password", "token", "limits"];
        let reloaded = Reloaded::of(&running, &before, &now, &may_change).unwrap();
        assert_eq!(reloaded.changed, ["limits.uplinks", "token"]);
        assert_eq!(reloaded.restart, ["external"]);
        let expected = Config { external: "a:1".into(), password: "made by us".into(), ..now.clone() };
        assert_eq!(reloaded.config, expected);

        let only = Reloaded::of(&running, &before, &now, &["limits.streams"]).unwrap();
        assert_eq!((only.changed, only.config), (Vec::new(), running));
        let back = Reloaded::of(&expected, &now, &before, &may_change).unwrap();
        assert_eq!(back.config.token, None);
    }
}
