//! From a TOML file and the environment to a [`Config`]: overrides, unknown keys with the nearest known
//! one, and the reference file as the list of what is known.

use super::{Config, REFERENCE};
use anyhow::{Context, bail};
use std::path::Path;
use toml::{Table, Value};

/// What names of environment variables begin with.
const PREFIX: &str = "HOMING_AGENT_";

/// Below this similarity (0 to 1) a known key is no suggestion for an unknown one.
const SIMILAR_ENOUGH: f64 = 0.6;

/// More entries than this in a list come from a mistake.
const LIST_MAX: usize = 64;

pub(super) fn load(
    path: &Path,
    environment: impl Iterator<Item = (String, String)>,
) -> anyhow::Result<Config> {
    let text = std::fs::read_to_string(path).with_context(|| {
        format!("cannot read {}; \"homing-agent config\" prints one to begin with", path.display())
    })?;
    // A syntax error of the parser shows the line, which may be the one with the password.
    let mut table: Table = text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(0, |span| text[..span.start].lines().count().max(1));
        anyhow::anyhow!("{}, line {line}: {}", path.display(), error.message())
    })?;
    let mut config = from_table(&mut table, environment).with_context(|| path.display().to_string())?;
    for dispatcher in &mut config.dispatchers {
        let anchor = &mut dispatcher.trust_anchor;
        if !anchor.is_empty() && !anchor.contains("-----BEGIN") {
            // Beside the configuration, from wherever the agent is started.
            let beside = path.parent().unwrap_or(Path::new("")).join(&*anchor);
            *anchor = beside.display().to_string();
        }
    }
    Ok(config)
}

fn from_table(
    table: &mut Table,
    environment: impl Iterator<Item = (String, String)>,
) -> anyhow::Result<Config> {
    let known = known_keys();
    for (name, text) in environment {
        if let Some(keys) = name.strip_prefix(PREFIX) {
            let keys = keys.to_ascii_lowercase();
            let keys: Vec<&str> = keys.split("__").collect();
            override_one(table, Some(&known), &keys, text).with_context(|| name.clone())?;
        }
    }
    refuse_unknown_keys(table, &known, "")?;
    Value::Table(std::mem::take(table))
        .try_into()
        .map_err(|error: toml::de::Error| anyhow::anyhow!("{}", error.message()))
}

/// The reference file with every key switched on.
fn known_keys() -> Table {
    let text: Vec<&str> = REFERENCE
        .lines()
        .map(|line| if line.starts_with("##") { "" } else { line.strip_prefix("# ").unwrap_or(line) })
        .collect();
    text.join("\n").parse().expect("a test reads the reference file")
}

/// Sets one key from the environment. `known` says of which type it is; everything but numbers, truth
/// values and lists is text.
fn override_one(table: &mut Table, known: Option<&Table>, keys: &[&str], text: String) -> anyhow::Result<()> {
    let Some((key, rest)) = keys.split_first() else { bail!("no key") };
    let reference = known.and_then(|known| known.get(*key));
    if rest.is_empty() {
        let value = match reference {
            Some(Value::Integer(_) | Value::Boolean(_) | Value::Array(_)) => format!("value = {text}")
                .parse::<Table>()
                .ok()
                .and_then(|mut parsed| parsed.remove("value"))
                .unwrap_or(Value::String(text)),
            _ => Value::String(text),
        };
        table.insert((*key).to_owned(), value);
        return Ok(());
    }
    let (entry, known) = match reference {
        Some(Value::Array(list)) => {
            let Some(index) = rest[0].parse::<usize>().ok().filter(|index| *index < LIST_MAX) else {
                bail!("{key} is a list: write {key}__0__… for its first entry");
            };
            let entry = table.entry(*key).or_insert_with(|| Value::Array(Vec::new()));
            let Value::Array(entries) = entry else { bail!("{key} is a list") };
            if entries.len() <= index {
                entries.resize(index + 1, Value::Table(Table::new()));
            }
            let known = list.first().and_then(Value::as_table);
            return match &mut entries[index] {
                Value::Table(entry) => override_one(entry, known, &rest[1..], text),
                _ => bail!("{key} is a list of tables"),
            };
        }
        Some(Value::Table(known)) => (table.entry(*key), Some(known)),
        _ => (table.entry(*key), None),
    };
    match entry.or_insert_with(|| Value::Table(Table::new())) {
        Value::Table(inside) => override_one(inside, known, rest, text),
        _ => bail!("{key} is a value, not a table"),
    }
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
                for given in given.iter().filter_map(Value::as_table) {
                    refuse_unknown_keys(given, known, &deeper)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// For whoever has started the log, which needs the configuration.
pub(super) fn warn_if_open_to_others(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode());
    if mode & 0o044 != 0 {
        tracing::warn!(path = %path.display(), "other users can read the cameras' password in the configuration; run chmod 600 on it");
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CameraConfig, DispatcherConfig, LogFormat};
    use super::*;

    fn from_text(text: &str, environment: &[(&str, &str)]) -> anyhow::Result<Config> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("agent.toml");
        std::fs::write(&path, text)?;
        load(&path, environment.iter().map(|(name, value)| (name.to_string(), value.to_string())))
    }

    fn message(text: &str, environment: &[(&str, &str)]) -> String {
        format!("{:#}", from_text(text, environment).unwrap_err())
    }

    /// Every key of the reference file exists, every key that exists is in the reference file, and its
    /// value there is the default.
    #[test]
    fn the_reference_file_is_the_default() {
        assert_eq!(from_text(REFERENCE, &[]).unwrap(), Config::default(), "switched off, nothing is set");
        let mut known = known_keys();
        let parse = |table: Table| Value::Table(table).try_into::<Config>().unwrap();
        let config = parse(known.clone());
        assert_eq!(config.cameras, [CameraConfig::default()]);
        assert_eq!(config.dispatchers, [DispatcherConfig::default()]);
        let count = |table: &Table, key: &str| table[key][0].as_table().unwrap().len();
        assert_eq!((count(&known, "cameras"), count(&known, "dispatchers")), (6, 2));
        for list in ["cameras", "dispatchers"] {
            known.remove(list);
        }
        assert_eq!(parse(known.clone()), Config::default());
        // Serde names the fields it knows when it meets an unknown one: a field without its reference.
        for (place, table) in [
            ("", &known),
            ("page", known["page"].as_table().unwrap()),
            ("log", known["log"].as_table().unwrap()),
        ] {
            let line = if place.is_empty() { String::new() } else { format!("[{place}]\n") };
            let error = toml::from_str::<Config>(&format!("{line}zzz = 1")).unwrap_err().to_string();
            let fields: Vec<&str> =
                error.split('`').skip(3).step_by(2).filter(|name| !name.contains(' ')).collect();
            assert!(fields.len() > 1, "{error}");
            for field in fields {
                let listed = table.contains_key(field) || ["cameras", "dispatchers"].contains(&field);
                assert!(listed, "{place}.{field} is not in the reference file");
            }
        }
    }

    #[test]
    fn file_then_environment() {
        let config = from_text(
            "fallback_s = 7\n[[cameras]]\nrtsp = \"rtsp://a:b@c/\"\n[page]\nhost_names = [\"x\"]",
            &[
                ("HOMING_AGENT_FALLBACK_S", "9"),
                ("HOMING_AGENT_PAGE__LISTEN", "0.0.0.0:1"),
                ("HOMING_AGENT_CAMERAS__0__PASSWORD", "12345"),
                ("HOMING_AGENT_CAMERAS__1__RTSP", "rtsp://second/"),
                ("HOMING_AGENT_LOG__FORMAT", "json"),
                ("HOMING_AGENT_SERIAL", "00:40:8c:70:20:09"),
                ("HOMING_OTHER", "x"),
            ],
        )
        .unwrap();
        assert_eq!((config.fallback_s, config.press_window_s), (9, 1800));
        assert_eq!(config.page.listen.to_string(), "0.0.0.0:1");
        assert_eq!(config.page.host_names, ["x"]);
        assert_eq!(config.cameras.len(), 2);
        assert!(config.cameras[0].password.matches("12345"), "digits stay text where text is wanted");
        assert!(config.cameras[0].rtsp.matches("rtsp://a:b@c/"));
        assert_eq!(config.log.format, LogFormat::Json);
        assert_eq!(config.serial.unwrap().to_string(), "00408C702009");
    }

    #[test]
    fn a_trust_anchor_is_looked_for_beside_the_configuration() {
        let anchor = |given: &str| {
            let config = from_text(&format!("[[dispatchers]]\ntrust_anchor = {given:?}"), &[]).unwrap();
            config.dispatchers[0].trust_anchor.clone()
        };
        let beside = anchor("ca.pem");
        assert!(beside.starts_with('/') && beside.ends_with("/ca.pem"), "{beside}");
        for as_it_is in ["", "/etc/ca.pem", "-----BEGIN CERTIFICATE-----"] {
            assert_eq!(anchor(as_it_is), as_it_is);
        }
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_known_one() {
        assert!(
            message("press_windows = 1", &[])
                .ends_with("unknown key \"press_windows\"; did you mean \"press_window_s\"?")
        );
        assert!(message("[[cameras]]\nrstp = \"x\"", &[]).contains("in [cameras]; did you mean \"rtsp\"?"));
        assert!(message("[pgae]", &[]).contains("did you mean \"page\"?"));
        assert!(message("", &[("HOMING_AGENT_DATTA", "x")]).contains("did you mean \"data\"?"));
        assert!(message("", &[("HOMING_AGENT_CAMERAS__X", "x")]).contains("cameras__0__"));
        assert!(message("zzz = 1", &[]).ends_with("unknown key \"zzz\""));
    }

    #[test]
    fn no_error_shows_a_password() {
        for text in [
            "[[cameras]]\nrtsp = \"rtsp://a:geheim@h/\" x",
            "[[cameras]]\nrtsp = rtsp://a:geheim@h/",
            "[[cameras]]\npassword = \"geheim\"\nname = 1",
            "oak = \"geheim\"",
        ] {
            let message = message(text, &[]);
            assert!(!message.contains("geheim") && message.contains("agent.toml"), "{message}");
        }
    }
}
