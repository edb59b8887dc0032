//! `homing dispatcher …`: what a dispatcher's operator does on its data folder, while it runs or not.

use super::{print, runtime};
use crate::config;
use anyhow::{Context, ensure};
use clap::Subcommand;
use homing_dispatcher::accounts;
use homing_protocol::SerialNumber;
use std::path::{Path, PathBuf};

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
    /// Refuses an account from now on; its devices stay claimed.
    Disable {
        /// Its name.
        name: String,
    },
    /// Lists accounts.
    List,
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
        DispatcherCommand::Audit { serial, json } => {
            let shown = |entry: &homing_dispatcher::audit::Entry| {
                print(&match json {
                    true => format!("{}\n", serde_json::to_string(entry).expect("plain values are JSON")),
                    false => format!("{entry}\n"),
                });
            };
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
        AccountCommand::Disable { name } => accounts::disable(data, &name).await?,
        AccountCommand::List => {
            for account in accounts::list(data).await? {
                print(&format!("{account}\n"));
            }
        }
    }
    Ok(())
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
