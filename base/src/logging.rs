//! Structured logs to standard error.
//!
//! A level says who should be woken: `error` somebody now, `warn` somebody in the morning, `info` what
//! an operator reads to follow one device's story (fields `serial`, `step`, `peer`), `debug` and
//! `trace` whoever hunts a fault. Secrets are never logged at any level.

use serde::Deserialize;
use std::sync::OnceLock;
use tracing_subscriber::{EnvFilter, Registry, layer::SubscriberExt, reload, util::SubscriberInitExt};

/// What is logged by this process, once that has begun.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

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
    let (filter, handle) = reload::Layer::new(read(filter)?);
    let registry = tracing_subscriber::registry().with(filter);
    let writer = std::io::stderr;
    let begun = match format {
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
    if begun.is_ok() {
        // There is one beginning.
        let _ = FILTER.set(handle);
    }
    Ok(())
}

/// Another filter from now on, where [`init`] has begun the log.
///
/// # Errors
/// When the filter cannot be parsed; then the one before stays.
pub fn set_filter(filter: &str) -> anyhow::Result<()> {
    let filter = read(filter)?;
    match FILTER.get() {
        Some(handle) => Ok(handle.reload(filter)?),
        None => Ok(()),
    }
}

/// Whether a filter can be parsed.
///
/// # Errors
/// When it cannot.
pub fn check_filter(filter: &str) -> anyhow::Result<()> {
    read(filter).map(drop)
}

fn read(filter: &str) -> anyhow::Result<EnvFilter> {
    EnvFilter::try_new(filter).map_err(|error| {
        anyhow::anyhow!("log filter {filter:?}: {error}; use a level such as \"info\", or target=level pairs")
    })
}
