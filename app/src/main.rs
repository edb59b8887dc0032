//! `homing`: the server side, one subcommand per role and two that run several.

mod cli;
mod config;
mod demo;
mod reload;
mod server;

use std::process::ExitCode;

/// An idle connection holds buffers of which it has touched a page or none. This allocator keeps blocks
/// of one size together, so that they are not laid over pages that others have touched; measured by
/// `cargo xtask bench --only idle`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc 3: milliseconds until freed pages go back to the system.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Checking a password takes 19 MiB for a moment; with the delay, which only ends when more is freed, they
/// would stay.
#[expect(unsafe_code, reason = "the allocator's options have no other interface")]
fn give_memory_back_at_once() {
    // SAFETY: sets an atomic integer, which the allocator reads whenever it frees pages.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, 0) }
}

fn main() -> ExitCode {
    give_memory_back_at_once();
    match cli::run() {
        Ok(code) => code,
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
