//! `cargo xtask bench`: builds with optimisation and measures; see `app/benches/bench/main.rs`.

use anyhow::{Context, ensure};
use std::process::Command;

/// Runs the benchmarks whose name is in `only`, or all, and writes docs/performance.md.
///
/// # Errors
/// When something does not build, or a measurement misses its bar.
pub fn run(only: &[String]) -> anyhow::Result<()> {
    // The agent is measured as it is delivered: small profile, stripped.
    for build in [
        vec!["build", "--quiet", "--profile", "agent", "--package", "homing-agent"],
        vec!["build", "--quiet", "--release", "--package", "homing"],
    ] {
        let status = Command::new("cargo").args(&build).current_dir(crate::root()).status();
        ensure!(status.context("cargo")?.success(), "`cargo {}` failed", build.join(" "));
    }
    let status = Command::new("cargo")
        .args(["bench", "--quiet", "--package", "homing", "--bench", "bench", "--"])
        .args(only)
        .current_dir(crate::root())
        .status();
    ensure!(status.context("cargo")?.success(), "a benchmark failed or missed its bar");
    Ok(())
}
