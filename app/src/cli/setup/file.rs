//! The configuration file that is written: what was answered, with a word to each, and what differs from one that is there.
//!
//! Not here: reading it ([`crate::config`]). Invariant: written as a whole or not at all, for its owner alone; a file that
//! was replaced is kept beside it; a difference shows no secret.

use anyhow::Context;
use homing_tunnel::Config;
use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};
use toml::{Table, Value};

/// Keys that are always written, with what they are for.
const TOLD: [(&str, &str); 7] = [
    ("name", "What it is called on the page and in logs."),
    ("external", "Where devices dial in."),
    ("internal", "Where the VMS asks."),
    ("public", "What devices are told to dial."),
    ("user", "User and password of the internal address."),
    ("password", ""),
    ("data", "Database, master key and private CA: back it up as a whole."),
];

/// Keys whose values are nobody's business.
const SECRET: [&str; 2] = ["password", "users"];

/// The file's text.
///
/// # Errors
/// When a value cannot be written as TOML.
pub(super) fn text(config: &Config) -> anyhow::Result<String> {
    let mut table = Table::try_from(config).context("configuration")?;
    let defaults = Table::try_from(Config::default()).context("configuration")?;
    let mut text = String::from(
        "# Written by `homing tunnel setup`. `homing config` prints every key with its meaning.\n[tunnel]\n",
    );
    for (key, meaning) in TOLD {
        if let Some(value) = table.remove(key) {
            if !meaning.is_empty() {
                text.push_str(&format!("\n# {meaning}\n"));
            }
            text.push_str(&format!("{key} = {value}\n"));
        }
    }
    let (tables, values): (Vec<_>, Vec<_>) = table.into_iter().partition(|(_, value)| value.is_table());
    for (key, value) in values.into_iter().filter(|(key, value)| defaults.get(key) != Some(value)) {
        text.push_str(&format!("{key} = {value}\n"));
    }
    for (name, value) in tables {
        let (Value::Table(mut inside), Some(Value::Table(defaults))) = (value, defaults.get(&name)) else {
            continue;
        };
        if name != "dispatcher" {
            inside.retain(|key, value| defaults.get(key) != Some(value));
        }
        if inside.is_empty() {
            continue;
        }
        // With its whole path, as tables of tables need it.
        let path = Table::from_iter([(
            "tunnel".to_owned(),
            Value::Table(Table::from_iter([(name, Value::Table(inside))])),
        )]);
        text.push_str(&format!("\n{}", toml::to_string(&path).context("configuration")?));
    }
    Ok(text)
}

/// What differs, a line a key: `tunnel.external: "…" becomes "…"`.
pub(super) fn differences(before: &Config, after: &Config) -> anyhow::Result<Vec<String>> {
    let (before, after) = (Table::try_from(before)?, Table::try_from(after)?);
    let mut found = Vec::new();
    compare("tunnel", &before, &after, &mut found);
    Ok(found)
}

fn compare(place: &str, before: &Table, after: &Table, found: &mut Vec<String>) {
    for (key, now) in after {
        match (before.get(key), now) {
            (Some(Value::Table(before)), Value::Table(now)) => {
                compare(&format!("{place}.{key}"), before, now, found)
            }
            (Some(then), now) if then == now => (),
            _ if SECRET.contains(&key.as_str()) => found.push(format!("{place}.{key} changes")),
            (then, now) => {
                let shown = |value: &Value| match value.as_str() {
                    Some(text) if text.contains('\n') => "(PEM)".to_owned(),
                    _ => value.to_string(),
                };
                let then = then.map_or_else(|| "nothing".to_owned(), shown);
                found.push(format!("{place}.{key}: {then} becomes {}", shown(now)));
            }
        }
    }
}

/// Writes it, mode 0600; one that is there is kept as `FILE.before`, whose place is given back.
///
/// # Errors
/// When the folder cannot be written to.
pub(super) fn write(file: &Path, text: &str) -> anyhow::Result<Option<PathBuf>> {
    let failed =
        || format!("cannot write {}: run it as root, or give another file with --config", file.display());
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).with_context(failed)?;
    let beside = |ending: &str| {
        let mut name = file.as_os_str().to_owned();
        name.push(ending);
        PathBuf::from(name)
    };
    let partial = beside(".partial");
    let _ = fs::remove_file(&partial);
    let mut new =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial).with_context(failed)?;
    new.write_all(text.as_bytes()).and_then(|()| new.sync_all()).with_context(failed)?;
    let kept = file.exists().then(|| beside(".before"));
    if let Some(kept) = &kept {
        fs::rename(file, kept).with_context(failed)?;
    }
    fs::rename(&partial, file).with_context(failed)?;
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use homing_tunnel::GatewayUser;

    fn answered() -> Config {
        let mut config = Config {
            public: vec!["sts.example:8443".into(), "[2001:db8::1]:8443".into()],
            password: "pass\"word".into(),
            ..Config::default()
        };
        config.dispatcher.account = "shop".into();
        config.dispatcher.trust_anchor =
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into();
        config.limits.uplinks = 500;
        config.gateway.rtsp = "0.0.0.0:8554".into();
        config.gateway.users = vec![GatewayUser { name: "player".into(), password: "geheim".into() }];
        config
    }

    /// Goal: what is written is read as what was meant, and holds no more than that.
    #[test]
    fn what_is_written_is_what_was_answered() {
        let config = answered();
        let text = text(&config).unwrap();
        let mut read: Table = text.parse().unwrap();
        let tunnel = read.remove("tunnel").unwrap();
        assert_eq!(tunnel.as_table().unwrap()["limits"].as_table().unwrap().len(), 1, "{text}");
        assert!(!text.contains("default_passwords"), "{text}");
        assert_eq!(tunnel.try_into::<Config>().unwrap(), config);
    }

    #[test]
    fn differences_name_keys_and_show_no_secret() {
        let (before, mut after) = (answered(), answered());
        assert!(differences(&before, &after).unwrap().is_empty());
        after.internal = "10.0.0.1:8081".parse().unwrap();
        after.password = "another".into();
        after.dispatcher.trust_anchor = String::new();
        let found = differences(&before, &after).unwrap().join("\n");
        assert!(found.contains("tunnel.internal: \"127.0.0.1:8081\" becomes \"10.0.0.1:8081\""), "{found}");
        assert!(found.contains("tunnel.password changes") && !found.contains("another"), "{found}");
        assert!(found.contains("tunnel.dispatcher.trust_anchor: (PEM) becomes \"\""), "{found}");
    }

    #[test]
    fn a_file_that_was_there_is_kept() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("etc/homing.toml");
        assert_eq!(write(&file, "one").unwrap(), None);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let kept = write(&file, "two").unwrap().unwrap();
        assert_eq!(
            (fs::read_to_string(&file).unwrap(), fs::read_to_string(kept).unwrap()),
            ("two".into(), "one".into())
        );
    }
}
