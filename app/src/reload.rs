//! SIGHUP: the configuration file is read again, and what may change does, while every connection stands.
//!
//! Each role says itself what that is (`MAY_CHANGE`). Whatever else differs is named in the log with "needs a restart", so
//! that nobody believes that it has changed. A file that cannot be read, or is wrong, changes nothing.

use crate::{config, config::Config, server::Server};
use homing_base::{Stop, live::Reloaded, logging, stop};
use serde::{Serialize, de::DeserializeOwned};
use std::path::PathBuf;

/// What a running process needs to read its file again.
pub(crate) struct Reload {
    file: PathBuf,
    choose: fn(&mut Config),
    /// The file as it was read last.
    before: Config,
    dispatcher: Option<homing_dispatcher::Reloader>,
    tunnel: Option<homing_tunnel::Reloader>,
    /// Keys of `[tunnel]` that this process has told itself elsewhere.
    kept: &'static [&'static str],
}

/// What a reading came to: keys with their tables.
#[derive(Default)]
struct Outcome {
    changed: Vec<String>,
    restart: Vec<String>,
}

impl Outcome {
    fn note<C>(&mut self, table: &str, reloaded: Reloaded<C>) {
        let full = |key: String| format!("{table}.{key}");
        self.changed.extend(reloaded.changed.into_iter().map(full));
        self.restart.extend(reloaded.restart.into_iter().map(full));
    }

    /// A table of which nothing may change.
    fn compare<C: Serialize + DeserializeOwned>(
        &mut self,
        table: &str,
        before: &Option<C>,
        now: &Option<C>,
    ) -> anyhow::Result<()> {
        match (before, now) {
            (Some(before), Some(now)) => self.note(table, Reloaded::of(before, before, now, &[])?),
            (None, None) => (),
            _ => self.restart.push(table.to_owned()),
        }
        Ok(())
    }
}

impl Reload {
    /// `before` as the file was read at the start.
    pub fn new(file: PathBuf, choose: fn(&mut Config), before: Config, server: &Server) -> Self {
        // Management in this process was told the tunnel server's password, unless the file says whom it asks.
        let told = before.management.as_ref().is_some_and(|management| management.tunnel_servers.is_empty());
        Reload {
            file,
            choose,
            dispatcher: server.dispatcher.as_ref().map(homing_dispatcher::Bound::reloader),
            tunnel: server.tunnel.as_ref().map(homing_tunnel::Bound::reloader),
            kept: if told { &["user", "password"] } else { &[] },
            before,
        }
    }

    /// Reads the file at every SIGHUP, until the process stops.
    pub async fn at_hangups(mut self, stop: Stop) {
        let mut hangups = match stop::hangups() {
            Ok(hangups) => hangups,
            Err(error) => {
                return tracing::error!(%error, "SIGHUP cannot be heard: a restart reads the configuration");
            }
        };
        loop {
            tokio::select! {
                heard = hangups.recv() => if heard.is_none() { return },
                () = stop.leaving() => return,
            }
            let file = self.file.display().to_string();
            match self.reload() {
                Ok(Outcome { changed, restart }) => {
                    tracing::info!(file, ?changed, "the configuration was read again");
                    for key in restart {
                        tracing::warn!(
                            file,
                            key,
                            "this has changed in the configuration, and needs a restart"
                        );
                    }
                }
                Err(error) => tracing::error!(
                    file,
                    error = format!("{error:#}"),
                    "the configuration is not taken over; the one before goes on"
                ),
            }
        }
    }

    fn reload(&mut self) -> anyhow::Result<Outcome> {
        let mut now = config::load(&self.file)?;
        (self.choose)(&mut now);
        let (before, mut outcome) = (&self.before, Outcome::default());
        logging::check_filter(&now.log.filter)?;
        // The roles first: they may refuse.
        match (&self.tunnel, &before.tunnel, &now.tunnel) {
            (Some(reloader), Some(before), Some(now)) => {
                outcome.note("tunnel", reloader.reload(before, now, self.kept)?);
            }
            (_, before, now) => outcome.compare("tunnel", before, now)?,
        }
        match (&self.dispatcher, &before.dispatcher, &now.dispatcher) {
            (Some(reloader), Some(before), Some(now)) => {
                outcome.note("dispatcher", reloader.reload(before, now)?);
            }
            (_, before, now) => outcome.compare("dispatcher", before, now)?,
        }
        outcome.compare("recording", &before.recording, &now.recording)?;
        outcome.compare("management", &before.management, &now.management)?;
        outcome.note("log", Reloaded::of(&before.log, &before.log, &now.log, &["filter"])?);
        logging::set_filter(&now.log.filter)?;
        if before.workers != now.workers {
            outcome.restart.push("workers".to_owned());
        }
        // What needs a restart is named again next time.
        self.before = merged(before, &now, &outcome.changed)?;
        Ok(outcome)
    }
}

/// The file as it counts: `before`, with what has changed.
fn merged(before: &Config, now: &Config, changed: &[String]) -> anyhow::Result<Config> {
    let keys: Vec<&str> = changed.iter().map(String::as_str).collect();
    Ok(Reloaded::of(before, before, now, &keys)?.config)
}
