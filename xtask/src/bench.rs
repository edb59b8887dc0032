//! `cargo xtask bench`: builds with optimisation and measures; see `app/benches/bench/main.rs`.

use anyhow::{Context, ensure};
use std::process::Command;

/// Runs the benchmarks whose name is in `only`, or all, and writes docs/performance.md.
///
/// # Errors
/// When something does not build, or a measurement misses its bar.
pub fn run(only: &[String]) -> anyhow::Result<()> {
    // The agent is measured as it is delivered: small profile, stripped. The server's programs are built
    // with the benchmark itself.
    let agent = ["build", "--quiet", "--profile", "agent", "--package", "homing-agent"];
    let status = Command::new("cargo").args(agent).current_dir(crate::root()).status();
    ensure!(status.context("cargo")?.success(), "`cargo {}` failed", agent.join(" "));
    let status = Command::new("cargo")
        .args(["bench", "--quiet", "--package", "homing", "--bench", "bench", "--"])
        .args(only)
        .current_dir(crate::root())
        .status();
    ensure!(status.context("cargo")?.success(), "a benchmark failed or missed its bar");
    Ok(())
}
