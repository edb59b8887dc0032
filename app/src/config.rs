//! The one configuration file: what all roles share, and a table per role that this process runs.

use crate::cli::client;
use homing_base::{config, logging, vault};
use serde::{Deserialize, Serialize};
use std::{fmt::Write, path::Path};

/// The shared keys, documented; the roles bring their own reference files.
const REFERENCE: &str = include_str!("../homing.toml");

/// The roles' reference files, by the name of their table.
const ROLES: [(&str, &str); 4] = [
    ("dispatcher", homing_dispatcher::REFERENCE),
    ("tunnel", homing_tunnel::REFERENCE),
    ("recording", homing_recording::REFERENCE),
    ("management", homing_management::REFERENCE),
];

/// `homing.toml`. A role runs in this process when its table is there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Threads that devices are spread over; 0 is one per core.
    pub workers: usize,
    /// What is logged and how.
    pub log: Log,
    /// Where devices phone first.
    pub dispatcher: Option<homing_dispatcher::Config>,
    /// Where devices keep their tunnel to.
    pub tunnel: Option<homing_tunnel::Config>,
    /// What records them; needs `management` in the same process.
    pub recording: Option<homing_recording::Config>,
    /// The page and the API.
    pub management: Option<homing_management::Config>,
}

/// What is logged and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Log {
    /// For people or for collectors.
    pub format: logging::Format,
    /// A level, or target=level pairs.
    pub filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Log { format: logging::Format::Text, filter: "info".into() }
    }
}

/// Reads `homing.toml` and the environment (`HOMING_…`).
pub(crate) fn load(path: &Path) -> anyhow::Result<Config> {
    // Keys are handed in beside the configuration, not in it; and an administrator's own variables are for other commands.
    let is_setting = |name: &str| !vault::is_master_key(name) && !client::VARIABLES.contains(&name);
    let settings = std::env::vars().filter(|(name, _)| is_setting(name));
    config::load(Some(path), &reference(), "HOMING", settings)
}

/// Every key of every role with its default, as `homing config` prints it.
pub(crate) fn reference() -> String {
    let mut text = REFERENCE.to_owned();
    for (role, reference) in ROLES {
        text.push_str("\n\n");
        let header = format!("[{role}]");
        if reference.lines().any(|line| line == header) {
            text.push_str(reference);
            continue;
        }
        let _ = writeln!(text, "{header}");
        for line in reference.lines() {
            text.push_str(&scoped(role, line));
            text.push('\n');
        }
    }
    text
}

/// A role's reference file is written as if it were alone; here its tables become the role's.
fn scoped(role: &str, line: &str) -> String {
    let (comment, header) = match line.strip_prefix("# ") {
        Some(rest) => ("# ", rest),
        None => ("", line),
    };
    for (open, close) in [("[[", "]]"), ("[", "]")] {
        if let Some(name) = header.strip_prefix(open).and_then(|rest| rest.trim_end().strip_suffix(close))
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.".contains(c))
        {
            return format!("{comment}{open}{role}.{name}{close}");
        }
    }
    line.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_is_the_default_of_every_role() {
        let reference = config::reference_value(&reference()).unwrap();
        let parsed: Config = toml::Value::Table(reference).try_into().unwrap();
        let expected = Config {
            dispatcher: Some(homing_dispatcher::Config::default()),
            tunnel: Some(homing_tunnel::Config::default()),
            recording: Some(homing_recording::Config::default()),
            management: Some(homing_management::Config::default()),
            ..Config::default()
        };
        assert_eq!(parsed, expected);
    }

    #[test]
    fn a_misspelt_key_of_a_role_is_named_with_its_table_and_the_nearest_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("homing.toml");
        std::fs::write(&path, "[tunnel]\nexternl = \"0.0.0.0:443\"\n").unwrap();
        let error = format!("{:#}", load(&path).unwrap_err());
        assert!(error.contains("unknown key \"externl\" in [tunnel]; did you mean \"external\"?"), "{error}");
    }
}
