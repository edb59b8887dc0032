//! `homing-agent`: the site agent as a program.
//!
//! One thread, because a camera's stream needs no more and every further one costs memory.

use anyhow::Context;
use clap::{Parser, Subcommand};
use homing_agent::config::{Config, LogConfig, LogFormat, REFERENCE};
use homing_agent::control;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Makes a camera phone home.
#[derive(Parser)]
#[command(name = "homing-agent", version, about)]
struct Arguments {
    /// Configuration file.
    #[arg(long, short, global = true, default_value = "/etc/homing-agent.toml")]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run until stopped; prints the label first if a person watches.
    Run,
    /// Print serial number, OAK and QR code: the device's label.
    Label,
    /// Press the one-click button of the agent that is running.
    Press,
    /// Print what the agent that is running shows, as JSON.
    Status,
    /// Print the commented default configuration.
    Config,
    /// Factory default: a new key, all tunnel servers forgotten. The label stays.
    Reset,
}

fn main() -> std::process::ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            // Without a log there is nowhere else.
            let _ = writeln!(std::io::stderr(), "homing-agent: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    if let Command::Config = arguments.command {
        return print(REFERENCE);
    }
    let config = Config::load(&arguments.config, std::env::vars())?;
    match arguments.command {
        Command::Run => {
            start_log(&config.log)?;
            Config::warn_if_open_to_others(&arguments.config);
            // For the person who starts it by hand. A log or a journal must not get it: it claims the device.
            if std::io::stdout().is_terminal() {
                print(&control::label(&config)?.to_terminal())?;
            }
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                // Only for name look-ups and short writes to disk.
                .max_blocking_threads(2)
                .thread_stack_size(256 * 1024)
                .build()?;
            runtime.block_on(serve(config))
        }
        Command::Label => print(&control::label(&config)?.to_terminal()),
        Command::Press => control::press(&config),
        Command::Status => print(&format!("{:#}\n", control::status(&config)?)),
        Command::Reset => control::reset(&config),
        Command::Config => unreachable!("done above"),
    }
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let bound = homing_agent::bind(config).await?;
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut running = std::pin::pin!(bound.run(stop.clone()));
    let mut next = async || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tokio::select! {
        ended = &mut running => return ended,
        () = next() => stop.cancel(),
    }
    // The second signal does not wait for connections to close in order.
    tokio::select! {
        ended = running => ended,
        () = next() => Ok(()),
    }
}

fn start_log(log: &LogConfig) -> anyhow::Result<()> {
    let filter: Targets = log.filter.parse().with_context(|| {
        format!("log.filter {:?}: write a level such as \"info\", or target=level pairs", log.filter)
    })?;
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match log.format {
        LogFormat::Text => registry.with(layer.with_ansi(std::io::stderr().is_terminal())).init(),
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).init(),
    }
    Ok(())
}

fn print(text: &str) -> anyhow::Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("cannot print")
}
