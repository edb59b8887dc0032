//! The command line.
//!
//! | module | what |
//! |---|---|
//! | [`client`] | `homing devices`, `register`, …: an administrator, over the management server's API |
//! | [`dispatcher`] | `homing dispatcher …`: accounts, manufacturers' lists, the audit log, on the data folder itself |
//! | [`setup`] | `homing tunnel setup`: a tunnel server's configuration, by questions or flags |
//! | [`plan`] | `homing plan`: bandwidth and storage, reckoned |

pub(crate) mod client;
mod dispatcher;
mod keys;
mod plan;
mod setup;

use crate::{config, demo, server};
use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use dispatcher::DispatcherCommand;
use homing_base::logging;
use std::{path::PathBuf, process::ExitCode};

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
    /// The secure tunnel server alone; or its configuration, by questions.
    Tunnel {
        #[command(flatten)]
        file: File,
        #[command(subcommand)]
        command: Option<TunnelCommand>,
    },
    /// Management and recording server, without the roles that devices reach; or a lost password.
    Management {
        #[command(flatten)]
        file: File,
        #[command(subcommand)]
        command: Option<ManagementCommand>,
    },
    /// A simulated camera, or several that share an encoder: RTSP and ONVIF.
    Camera(Cameras),
    /// New keys for the secrets that the roles have stored; without a restart, where they run.
    RotateKeys(File),
    /// The bandwidth and storage that an installation needs: sites × cameras × bitrate.
    Plan(plan::Options),
    /// Prints the configuration file with every key, its meaning and its default.
    Config,
    #[command(flatten)]
    Client(client::ClientCommand),
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
enum TunnelCommand {
    /// Asks for everything that a tunnel server needs, checks it, writes the configuration file, makes password and CA,
    /// and installs the service; without questions if everything is given (--yes).
    Setup(Box<setup::Options>),
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

pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let ended = match Cli::parse().command {
        Command::Client(command) => return client::run(command),
        Command::Demo(options) => demo::run(options),
        Command::Server(file) => server::run(&file.config, |_| ()),
        Command::Dispatcher { file, command: None } => server::run(&file.config, |config| {
            (config.tunnel, config.recording, config.management) = (None, None, None);
        }),
        Command::Dispatcher { file, command: Some(command) } => dispatcher::run(&file.config, command),
        Command::Tunnel { file, command: Some(TunnelCommand::Setup(options)) } => {
            return setup::run(&file.config, *options);
        }
        Command::Tunnel { file, command: None } => server::run(&file.config, |config| {
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
        Command::RotateKeys(file) => keys::rotate(&file.config),
        Command::Plan(options) => plan::run(&options),
        Command::Config => {
            print(&config::reference());
            Ok(())
        }
    };
    ended.map(|()| ExitCode::SUCCESS)
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

/// The runtime of a process's main thread; devices live on [`homing_base::Workers`].
pub(crate) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")
}

/// Prints to the terminal or the pipe; a closed pipe ends nothing.
pub(crate) fn print(text: &str) {
    use std::io::Write;
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}
