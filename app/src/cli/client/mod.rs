//! `homing devices`, `top`, `register`, `release`, `move`, `password`, `offer`: an administrator at a terminal, or a script,
//! over the management server's API.
//!
//! | module | what |
//! |---|---|
//! | [`server`] | which management server, and who one is there |
//! | [`devices`] | the table of devices, and how it changes |
//! | [`top`] | how much devices send, as it changes |
//! | [`register`], [`list`] | step 1, for one device or for a list of them |
//! | [`change`] | what is done to a device that is registered |
//! | [`table`], [`terminal`] | columns that fit; what is typed without being shown |
//!
//! Invariant: no secret is an argument of the process, where others on the machine could read it. Exit codes are those
//! of [`Failure::code`]; `docs/operations.md` lists them.

mod change;
mod devices;
mod list;
mod register;
mod server;
mod table;
pub(super) mod terminal;
mod top;

pub(crate) use server::VARIABLES;
pub(super) use server::read_secret;

use clap::Subcommand;
use homing_base::client::CallError;
use http::StatusCode;
use std::process::ExitCode;

#[derive(Subcommand)]
pub(super) enum ClientCommand {
    /// Lists the devices of a management server, with their states and what is wrong with them.
    Devices(devices::Options),
    /// Shows devices with their rates and round-trip times as they change; q ends it.
    Top(top::Options),
    /// Registers a device, or all of a list (--csv), at a management server.
    Register(register::Options),
    /// Releases devices: their claims end, and whoever holds the label can register them.
    Release(change::Release),
    /// Sends a device to another tunnel server of the same management server, or has it stay.
    Move(change::Move),
    /// Shows a device's user and password; who asked, and why, is in the audit log.
    Password(change::Password),
    /// Offers a device to another owner's account at the dispatcher.
    Offer(change::Offer),
}

/// Why a command did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// What was asked for cannot be meant: told before anything is sent.
    #[error("{0}")]
    Usage(String),
    /// The management server, or whom it asked, refused.
    #[error("{0}")]
    Refused(String),
    /// No answer.
    #[error("{0}")]
    Unreachable(String),
    /// The token is not, or no longer, good for this.
    #[error("{0}")]
    NotAuthorised(String),
    /// Some of several were done; what was not has been said already.
    #[error("{0}")]
    Partly(String),
}

impl Failure {
    /// The exit code: 1 refused, 2 usage (as of clap), 3 unreachable, 4 not authorised, 5 partly done.
    fn code(&self) -> u8 {
        match self {
            Failure::Refused(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Unreachable(_) => 3,
            Failure::NotAuthorised(_) => 4,
            Failure::Partly(_) => 5,
        }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match &error {
            CallError::Unreachable { .. } | CallError::Unexpected { .. } => {
                Failure::Unreachable(error.to_string())
            }
            CallError::Refused { status: StatusCode::UNAUTHORIZED, peer, .. } => {
                Failure::NotAuthorised(format!(
                    "{peer} does not know the API token: make one on its page (Users and access), and check that \
                     it is of this server"
                ))
            }
            CallError::Refused { status: StatusCode::FORBIDDEN, .. } => {
                Failure::NotAuthorised(error.to_string())
            }
            CallError::Refused { problem, .. } => {
                Failure::Refused(format!("{} ({})", problem.error.message, problem.error.code))
            }
        }
    }
}

/// A fault of this machine, or of what was typed.
fn usage(error: anyhow::Error) -> Failure {
    Failure::Usage(format!("{error:#}"))
}

/// Carries a command out, and says on standard error why it did not go well.
pub(super) fn run(command: ClientCommand) -> anyhow::Result<ExitCode> {
    let ended = super::runtime()?.block_on(async {
        match command {
            ClientCommand::Devices(options) => devices::run(options).await,
            ClientCommand::Top(options) => top::run(options).await,
            ClientCommand::Register(options) => register::run(options).await,
            ClientCommand::Release(options) => change::release(options).await,
            ClientCommand::Move(options) => change::send(options).await,
            ClientCommand::Password(options) => change::password(options).await,
            ClientCommand::Offer(options) => change::offer(options).await,
        }
    });
    Ok(match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            terminal::say(&format!("homing: {failure}"));
            ExitCode::from(failure.code())
        }
    })
}
