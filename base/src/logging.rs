//! Structured logs to standard error.
//!
//! A level says who should be woken: `error` somebody now, `warn` somebody in the morning, `info` what
//! an operator reads to follow one device's story (fields `serial`, `step`, `peer`), `debug` and
//! `trace` whoever hunts a fault. Secrets are never logged at any level.

use serde::Deserialize;
use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people: one line an event, coloured on a terminal.
    #[default]
    Text,
    /// For log collectors: one JSON object a line.
    Json,
}

/// Starts logging; `filter` is a level or `tracing-subscriber` directives (`info,homing_tunnel=debug`).
/// A second call in one process changes nothing.
///
/// # Errors
/// When the filter cannot be parsed.
pub fn init(format: Format, filter: &str) -> anyhow::Result<()> {
    use std::io::IsTerminal;
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        anyhow::anyhow!("log filter {filter:?}: {error}; use a level such as \"info\", or target=level pairs")
    })?;
    let registry = tracing_subscriber::registry().with(filter);
    let writer = std::io::stderr;
    let _ = match format {
        Format::Text => registry
            .with(
                tracing_subscriber::fmt::layer()
                    .with_writer(writer)
                    .with_ansi(std::io::stderr().is_terminal()),
            )
            .try_init(),
        Format::Json => registry
            .with(tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(writer))
            .try_init(),
    };
    Ok(())
}
