//! `homing`: the server side, one subcommand per role and two that run several.

mod cli;
mod config;
mod demo;
mod server;

use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The one place where an error is for a person at a terminal: causes on lines of their own.
            eprintln_error(&error);
            ExitCode::FAILURE
        }
    }
}

#[expect(
    clippy::print_stderr,
    reason = "the last word of a program goes to its terminal, whatever the log filter"
)]
fn eprintln_error(error: &anyhow::Error) {
    eprintln!("homing: {error}");
    for cause in error.chain().skip(1) {
        eprintln!("  because: {cause}");
    }
}
