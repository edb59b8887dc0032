//! The command line.

use crate::{config, demo, server};
use anyhow::{Context, ensure};
use clap::{Args, Parser, Subcommand};
use homing_base::logging;
use homing_dispatcher::accounts;
use homing_protocol::SerialNumber;
use std::path::{Path, PathBuf};

/// Cameras that phone home: dispatcher, secure tunnel server, recording and management server.
#[derive(Parser)]
#[command(name = "homing", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Everything with simulated cameras, on loopback, in a temporary folder.
    Demo(demo::Options),
    /// Every role that the configuration file names, in one process.
    Server(File),
    /// The dispatcher alone; or its accounts, manufacturers' lists and audit log.
    Dispatcher {
        #[command(flatten)]
        file: File,
        #[command(subcommand)]
        command: Option<DispatcherCommand>,
    },
    /// The secure tunnel server alone.
    Tunnel(File),
    /// Management and recording server, without the roles that devices reach; or a lost password.
    Management {
        #[command(flatten)]
        file: File,
        #[command(subcommand)]
        command: Option<ManagementCommand>,
    },
    /// A simulated camera, or several that share an encoder: RTSP and ONVIF.
    Camera(Cameras),
    /// Prints the configuration file with every key, its meaning and its default.
    Config,
}

#[derive(Args)]
struct File {
    /// The configuration file.
    #[arg(long, default_value = "/etc/homing/homing.toml", global = true)]
    config: PathBuf,
}

#[derive(Args)]
struct Cameras {
    /// The camera's configuration file; without one, everything is at its default.
    #[arg(long)]
    config: Option<PathBuf>,
    /// So many of them, on consecutive ports and serial numbers.
    #[arg(long, default_value_t = 1)]
    count: u16,
    /// Prints the configuration file with every key, its meaning and its default, and ends.
    #[arg(long)]
    print_config: bool,
}

#[derive(Subcommand)]
enum DispatcherCommand {
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
enum AccountCommand {
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

#[derive(Subcommand)]
enum ManagementCommand {
    /// Gives a user of the page a new password and prints it, once.
    Password {
        /// Its name.
        #[arg(default_value = "admin")]
        name: String,
    },
}

pub(crate) fn run() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Demo(options) => demo::run(options),
        Command::Server(file) => server::run(&file.config, |_| ()),
        Command::Dispatcher { file, command: None } => server::run(&file.config, |config| {
            (config.tunnel, config.recording, config.management) = (None, None, None);
        }),
        Command::Dispatcher { file, command: Some(command) } => {
            runtime()?.block_on(dispatcher(&dispatcher_data(&file.config)?, command))
        }
        Command::Tunnel(file) => server::run(&file.config, |config| {
            (config.dispatcher, config.recording, config.management) = (None, None, None);
        }),
        Command::Management { file, command: None } => server::run(&file.config, |config| {
            (config.dispatcher, config.tunnel) = (None, None);
        }),
        Command::Management { file, command: Some(ManagementCommand::Password { name }) } => {
            let config = config::load(&file.config)?.management;
            let config =
                config.with_context(|| format!("{} has no [management] table", file.config.display()))?;
            let password = runtime()?.block_on(homing_management::reset_password(&config, &name))?;
            print(&format!("{}\n", password.expose()));
            Ok(())
        }
        Command::Camera(options) => cameras(&options),
        Command::Config => {
            print(&config::reference());
            Ok(())
        }
    }
}

fn cameras(options: &Cameras) -> anyhow::Result<()> {
    let reference = homing_camera::config::REFERENCE;
    if options.print_config {
        print(reference);
        return Ok(());
    }
    let file = options.config.as_deref();
    let config: homing_camera::Config =
        homing_base::config::load(file, reference, "HOMING_CAMERA", std::env::vars())?;
    logging::init(logging::Format::Text, "info")?;
    runtime()?.block_on(async {
        let stop = homing_base::Stop::new();
        for config in config.fleet(options.count)? {
            let camera = homing_camera::bind(config).await?;
            let credentials = camera.credentials();
            print(&format!(
                "{}  {}  http://{}  user {}  password {}\n",
                camera.serial(),
                camera.rtsp_url(),
                camera.http_addr(),
                credentials.user,
                credentials.password.expose()
            ));
            stop.spawn(camera.run(stop.clone()));
        }
        server::end_at_signal(stop).await
    })
}

fn dispatcher_data(file: &Path) -> anyhow::Result<PathBuf> {
    let config = config::load(file)?;
    Ok(config.dispatcher.with_context(|| format!("{} has no [dispatcher] table", file.display()))?.data)
}

async fn dispatcher(data: &Path, command: DispatcherCommand) -> anyhow::Result<()> {
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

/// The runtime of a process's main thread; devices live on [`homing_base::Workers`].
pub(crate) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")
}

/// Prints to the terminal or the pipe; a closed pipe ends nothing.
pub(crate) fn print(text: &str) {
    use std::io::Write;
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}
