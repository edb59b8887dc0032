//! `homing dispatcher …`: what a dispatcher's operator does on its data folder, while it runs or not.

use super::{print, runtime};
use crate::config;
use anyhow::{Context, ensure};
use clap::Subcommand;
use homing_dispatcher::accounts;
use homing_protocol::SerialNumber;
use serde::Serialize;
use std::{
    fmt::Display,
    num::ParseIntError,
    path::{Path, PathBuf},
    str::FromStr,
};

#[derive(Subcommand)]
pub(super) enum DispatcherCommand {
    /// The accounts with which tunnel servers register devices.
    #[command(subcommand)]
    Account(AccountCommand),
    /// Takes a manufacturer's list: serial number, OAK, model; as a spreadsheet exports it.
    Import {
        /// The list, or `-` for standard input.
        list: PathBuf,
        /// Stops at the first faulty line instead of leaving it out.
        #[arg(long)]
        strict: bool,
    },
    /// Shows the OAK of a listed device whose label is lost; that it was shown is in the audit log.
    Oak {
        /// Its serial number.
        serial: SerialNumber,
        /// Why, for the audit log.
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Takes a claim away from the account that has it, so that whoever holds the label can register the device.
    Release {
        /// Its serial number.
        serial: SerialNumber,
        /// Why, for the audit log.
        #[arg(long)]
        reason: String,
    },
    /// Lists who gave wrong OAKs, proofs and passwords lately, most often first.
    Attempts {
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Prints the audit log, and checks that nobody has altered it.
    Audit {
        /// Of one device only.
        #[arg(long)]
        serial: Option<SerialNumber>,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
pub(super) enum AccountCommand {
    /// Makes an account and prints its password, once.
    Add {
        /// Its name.
        name: String,
    },
    /// Gives an account a new password and prints it, once.
    Password {
        /// Its name.
        name: String,
    },
    /// Says what an account may do; what is not given stays.
    Limit {
        /// Its name.
        name: String,
        /// Devices that it may register; `default`: as configured.
        #[arg(long)]
        devices: Option<OrDefault>,
        /// Registrations that it may send in a minute; `default`: as configured.
        #[arg(long)]
        per_minute: Option<OrDefault>,
        /// The only tunnel servers that it may send devices to, `host` or `host:port`; may be given several times.
        #[arg(long = "server", conflicts_with = "any_server")]
        servers: Vec<String>,
        /// It may send devices to any tunnel server.
        #[arg(long)]
        any_server: bool,
    },
    /// Refuses an account from now on; its devices stay claimed.
    Disable {
        /// Its name.
        name: String,
    },
    /// Takes that back.
    Enable {
        /// Its name.
        name: String,
    },
    /// Lists accounts, with their limits and what was wrong lately.
    List {
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
}

/// A number, or `default`.
#[derive(Clone, Copy)]
pub(super) struct OrDefault(Option<u32>);

impl FromStr for OrDefault {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        if text == "default" {
            Ok(OrDefault(None))
        } else {
            text.parse().map(|number| OrDefault(Some(number)))
        }
    }
}

pub(super) fn run(file: &Path, command: DispatcherCommand) -> anyhow::Result<()> {
    let config = config::load(file)?.dispatcher;
    let data = config.with_context(|| format!("{} has no [dispatcher] table", file.display()))?.data;
    runtime()?.block_on(carry_out(&data, command))
}

async fn carry_out(data: &Path, command: DispatcherCommand) -> anyhow::Result<()> {
    match command {
        DispatcherCommand::Account(command) => account(data, command).await,
        DispatcherCommand::Import { list, strict } => import(data, &list, strict).await,
        DispatcherCommand::Oak { serial, reason } => {
            let oak = homing_dispatcher::lists::show(data, serial, &reason).await?;
            print(&format!("{}\n", oak.label()));
            Ok(())
        }
        DispatcherCommand::Release { serial, reason } => {
            let owner = homing_dispatcher::release(data, serial, &reason).await?;
            print(&format!("{serial} is no longer claimed by {owner}\n"));
            Ok(())
        }
        DispatcherCommand::Attempts { json } => {
            let attempts = homing_dispatcher::attempts::list(data).await?;
            attempts.iter().for_each(|one| line(one, json));
            Ok(())
        }
        DispatcherCommand::Audit { serial, json } => {
            let shown = |entry: &homing_dispatcher::audit::Entry| line(entry, json);
            let (count, hash) = homing_dispatcher::audit::read(data, serial, shown).await?;
            if !json {
                print(&format!("{count} entries, none altered; the last hash is {hash}\n"));
            }
            Ok(())
        }
    }
}

async fn account(data: &Path, command: AccountCommand) -> anyhow::Result<()> {
    match command {
        AccountCommand::Add { name } => {
            let password = accounts::create(data, &name).await?;
            print(&format!("{}\n", password.expose()));
        }
        AccountCommand::Password { name } => {
            let password = accounts::set_password(data, &name).await?;
            print(&format!("{}\n", password.expose()));
        }
        AccountCommand::Limit { name, devices, per_minute, servers, any_server } => {
            let change = accounts::ChangeAccount {
                disabled: None,
                devices: devices.map(|devices| devices.0),
                per_minute: per_minute.map(|per_minute| per_minute.0),
                servers: (any_server || !servers.is_empty()).then_some((!any_server).then_some(servers)),
            };
            accounts::change(data, &name, change).await?;
        }
        AccountCommand::Disable { name } => accounts::disable(data, &name).await?,
        AccountCommand::Enable { name } => accounts::enable(data, &name).await?,
        AccountCommand::List { json } => {
            accounts::list(data).await?.iter().for_each(|account| line(account, json));
        }
    }
    Ok(())
}

fn line<T: Serialize + Display>(of: &T, json: bool) {
    print(&match json {
        true => format!("{}\n", serde_json::to_string(of).expect("plain values are JSON")),
        false => format!("{of}\n"),
    });
}

async fn import(data: &Path, list: &Path, strict: bool) -> anyhow::Result<()> {
    use homing_dispatcher::lists::{self, OnFault};
    let on_fault = if strict { OnFault::Stop } else { OnFault::Skip };
    let name = list.display().to_string();
    let imported = match list == Path::new("-") {
        true => lists::import(data, &name, std::io::stdin(), on_fault).await,
        false => {
            let file = std::fs::File::open(list).with_context(|| format!("cannot open {name}"))?;
            lists::import(data, &name, file, on_fault).await
        }
    }?;
    for (line, fault) in &imported.faults {
        print(&format!("line {line}: {fault}\n"));
    }
    let more = imported.faulty - imported.faults.len() as u64;
    if more > 0 {
        print(&format!("and {more} faulty lines more\n"));
    }
    let lists::Imported { new, changed, same, faulty, .. } = imported;
    print(&format!("{new} new, {changed} changed, {same} the same, {faulty} faulty\n"));
    ensure!(
        faulty == 0,
        "{name} has faulty lines{}",
        if strict { ": stopped at the first" } else { "; all others were taken" }
    );
    Ok(())
}
