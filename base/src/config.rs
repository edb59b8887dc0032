//! Configuration: one TOML file, every key documented in a reference file that is also the default.
//!
//! A reference file shows every key with its default, commented out (`# key = value`), under its
//! table's header, with a comment that says what it does. It is the documentation, the list of known
//! keys, and (by the caller's test through [`reference_value`]) held equal to `Config::default()`.
//!
//! Environment: `HOMING_TUNNEL__EXTERNAL=0.0.0.0:8443` overrides `external` in `[tunnel]`; two
//! underscores separate tables. What the key is by default says how a value is read: digits stay text where
//! text is wanted.
//!
//! Invariant: no error repeats a value or a line of the file; it may be a password.

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;
use std::path::Path;
use toml::{Table, Value};

/// Below this similarity (0 to 1) a known key is no suggestion for an unknown one.
const SIMILAR_ENOUGH: f64 = 0.6;

/// Reads a configuration file and the environment's overrides.
///
/// `reference` is the reference file's text, `prefix` the environment's (`"HOMING"`), `environment`
/// is `std::env::vars()` outside tests.
///
/// # Errors
/// Names the file, the key and the nearest known key.
pub fn load<C: DeserializeOwned>(
    path: Option<&Path>,
    reference: &str,
    prefix: &str,
    environment: impl Iterator<Item = (String, String)>,
) -> anyhow::Result<C> {
    let known = reference_value(reference)?;
    let mut table = Table::new();
    if let Some(path) = path {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!(
                "cannot read the configuration file {}: give another with --config; \"homing config\" prints \
                 one to begin with",
                path.display()
            )
        })?;
        table = text.parse().map_err(|error: toml::de::Error| {
            let line = error.span().map_or(0, |span| text[..span.start].lines().count().max(1));
            anyhow::anyhow!("{} is not TOML, line {line}: {}", path.display(), error.message())
        })?;
        // By itself first, so that an error names where the mistake is.
        refuse_unknown_keys(&table, &known, "").with_context(|| path.display().to_string())?;
        read::<C>(table.clone()).with_context(|| path.display().to_string())?;
    }
    override_from_environment(&mut table, &known, prefix, environment)?;
    refuse_unknown_keys(&table, &known, "").context("environment")?;
    read(table).context("environment")
}

fn read<C: DeserializeOwned>(table: Table) -> anyhow::Result<C> {
    Value::Table(table).try_into().map_err(|error: toml::de::Error| {
        // Its last line names the key; of a value, only what it is and what is wanted.
        let text = error.to_string();
        let key =
            text.lines().find_map(|line| line.strip_prefix("in `")).map(|key| key.trim_end_matches('`'));
        let message = error.message();
        let message =
            match message.strip_prefix("invalid type: ").and_then(|rest| rest.split_once(", expected ")) {
                Some((_, expected)) => format!("write {}", in_plain_words(expected)),
                None => message.to_owned(),
            };
        match key {
            Some(key) => anyhow::anyhow!("{key}: {message}"),
            None => anyhow::anyhow!("{message}"),
        }
    })
}

/// What serde calls a type, as an administrator would.
fn in_plain_words(expected: &str) -> &str {
    match expected {
        "usize" | "u64" | "u32" | "u16" | "u8" => "a whole number, without quotes",
        "f64" | "f32" => "a number, without quotes",
        "a boolean" => "true or false, without quotes",
        "a string" | "path string" => "text in quotes",
        "socket address" => "an address with its port in quotes, such as \"0.0.0.0:8443\"",
        "a sequence" => "a list, such as [\"one\", \"two\"]",
        other => other,
    }
}

/// The reference file with every key switched on: its values are the defaults.
///
/// # Errors
/// When the reference file is not well formed, which a test should find.
pub fn reference_value(reference: &str) -> anyhow::Result<Table> {
    let mut switched_on = String::with_capacity(reference.len());
    for line in reference.lines() {
        // `# key = …` and `# [table]` are keys; `#  text` and `## text` are prose.
        let key = line.strip_prefix("# ").filter(|rest| {
            let name = rest.split(['=', ' ']).next().unwrap_or_default();
            let is_key = !name.is_empty()
                && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
                && rest[name.len()..].trim_start().starts_with('=');
            is_key || (rest.starts_with('[') && rest.trim_end().ends_with(']'))
        });
        switched_on.push_str(key.unwrap_or(line));
        switched_on.push('\n');
    }
    switched_on.parse().context("reference configuration")
}

fn override_from_environment(
    table: &mut Table,
    known: &Table,
    prefix: &str,
    environment: impl Iterator<Item = (String, String)>,
) -> anyhow::Result<()> {
    for (name, text) in environment {
        let Some(path) = name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('_')) else { continue };
        let keys: Vec<String> = path.split("__").map(str::to_ascii_lowercase).collect();
        let Some((last, tables)) = keys.split_last() else { continue };
        let mut inside = &mut *table;
        let mut reference = Some(known);
        for key in tables {
            reference = reference.and_then(|known| known.get(key)).and_then(Value::as_table);
            let entry = inside.entry(key.clone()).or_insert_with(|| Value::Table(Table::new()));
            let Value::Table(deeper) = entry else {
                bail!("{name} (environment): {key} is a value, not a table")
            };
            inside = deeper;
        }
        let value = match reference.and_then(|known| known.get(last)) {
            Some(Value::String(_)) => Value::String(text),
            _ => format!("value = {text}")
                .parse::<Table>()
                .ok()
                .and_then(|mut parsed| parsed.remove("value"))
                .unwrap_or(Value::String(text)),
        };
        inside.insert(last.clone(), value);
    }
    Ok(())
}

fn refuse_unknown_keys(given: &Table, known: &Table, place: &str) -> anyhow::Result<()> {
    for (key, value) in given {
        let Some(reference) = known.get(key) else {
            let nearest = known
                .keys()
                .map(|candidate| (strsim::jaro_winkler(candidate, key), candidate))
                .max_by(|a, b| a.0.total_cmp(&b.0))
                .filter(|(similarity, _)| *similarity >= SIMILAR_ENOUGH);
            let hint = nearest.map_or(String::new(), |(_, name)| format!("; did you mean {name:?}?"));
            let within = if place.is_empty() { String::new() } else { format!(" in [{place}]") };
            bail!("unknown key {key:?}{within}{hint}");
        };
        let deeper = if place.is_empty() { key.clone() } else { format!("{place}.{key}") };
        match (value, reference) {
            (Value::Table(given), Value::Table(known)) => refuse_unknown_keys(given, known, &deeper)?,
            (Value::Array(given), Value::Array(known)) => {
                let Some(Value::Table(known)) = known.first() else { continue };
                for (index, entry) in given.iter().enumerate() {
                    if let Value::Table(entry) = entry {
                        refuse_unknown_keys(entry, known, &format!("{deeper}.{index}"))?;
                    }
                }
            }
            _ => (),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    const REFERENCE: &str = "\
## What the tunnel server is called.
# name = \"sts\"

[tunnel]
# Where devices dial in. This is prose = not a key.
# external = \"0.0.0.0:8443\"
# limit = 5
";

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Config {
        name: String,
        tunnel: Tunnel,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Tunnel {
        external: String,
        limit: u32,
    }

    impl Default for Config {
        fn default() -> Self {
            Config { name: "sts".into(), tunnel: Tunnel::default() }
        }
    }

    impl Default for Tunnel {
        fn default() -> Self {
            Tunnel { external: "0.0.0.0:8443".into(), limit: 5 }
        }
    }

    fn from_text(text: &str, environment: &[(&str, &str)]) -> anyhow::Result<Config> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("homing.toml");
        std::fs::write(&path, text)?;
        let environment = environment.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        load(Some(&path), REFERENCE, "HOMING", environment)
    }

    #[test]
    fn the_reference_is_the_default() {
        let reference: Config = Value::Table(reference_value(REFERENCE).unwrap()).try_into().unwrap();
        assert_eq!(reference, Config::default());
        assert_eq!(from_text("", &[]).unwrap(), Config::default());
    }

    #[test]
    fn file_then_environment() {
        let config = from_text(
            "name = \"a\"\n[tunnel]\nlimit = 7",
            &[("HOMING_TUNNEL__LIMIT", "9"), ("HOMING_TUNNEL__EXTERNAL", "[::]:1"), ("OTHER", "x")],
        )
        .unwrap();
        assert_eq!(config.name, "a");
        assert_eq!(config.tunnel, Tunnel { external: "[::]:1".into(), limit: 9 });
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_known_one() {
        let message = |text, environment: &[_]| format!("{:#}", from_text(text, environment).unwrap_err());
        assert!(
            message("[tunnel]\nexternl = \"x\"", &[])
                .contains("unknown key \"externl\" in [tunnel]; did you mean \"external\"?")
        );
        assert!(message("[tunel]\n", &[]).contains("did you mean \"tunnel\"?"));
        assert!(message("zzz = 1", &[]).ends_with("unknown key \"zzz\""));
        assert!(message("", &[("HOMING_NAM", "x")]).contains("did you mean \"name\"?"));
        assert!(message("limit = ", &[]).contains("is not TOML"));
    }

    #[test]
    fn an_error_names_the_key_and_what_to_write_and_shows_no_value() {
        let message = |text, environment: &[_]| format!("{:#}", from_text(text, environment).unwrap_err());
        let wrong = message("[tunnel]\nlimit = \"geheim\"", &[]);
        assert!(
            wrong.ends_with("homing.toml: tunnel.limit: write a whole number, without quotes"),
            "{wrong}"
        );
        for text in ["[tunnel]\nexternal = geheim", "name = \"geheim\" x", "[tunnel]\nlimit = \"geheim\""] {
            assert!(!message(text, &[]).contains("geheim"), "{}", message(text, &[]));
        }
        let number = message("name = 4711", &[]);
        assert!(number.contains("name: write text in quotes") && !number.contains("4711"), "{number}");
        assert!(message("\nlimit = ", &[]).contains("line 2"));

        // From the environment, digits are text where text is wanted, and the file is not blamed.
        assert_eq!(from_text("", &[("HOMING_NAME", "4711")]).unwrap().name, "4711");
        let wrong = message("", &[("HOMING_TUNNEL__LIMIT", "geheim")]);
        assert!(wrong.starts_with("environment: tunnel.limit") && !wrong.contains("geheim"), "{wrong}");
    }
}
