//! `cargo xtask test`: what CI runs, step by step.
//!
//! Invariant: a step that cannot do its work fails. The one exception is told apart loudly: the
//! database of security advisories lives on the Internet, and a machine without it checks the rest.

use crate::{root, scan, tools};
use anyhow::{Context, bail, ensure};
use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Where cargo-deny fetches advisories from; see deny.toml.
const ADVISORIES: &str = "https://github.com/RustSec/advisory-db";
/// How long the host of the advisories may take to answer.
const ADVISORIES_DEADLINE_S: &str = "20";

/// Tests counted over all test binaries.
#[derive(Default)]
struct Tally {
    passed: u32,
    failed: u32,
}

type Work = fn(&mut Tally) -> anyhow::Result<()>;

/// Name, what it does, how. Cheap ones first, so that a slip is told within seconds; nothing is built
/// twice: clippy, page and docs work on metadata, all tests on one build.
const STEPS: &[(&str, &str, Work)] = &[
    ("tools", "what the tests need on this machine", |_| {
        tools::ensure_debian_packages()?;
        tools::ensure_open_rtsp()
    }),
    ("fmt", "layout of the code", |_| cargo(&["fmt", "--all", "--check"])),
    ("page", "types of the page's scripts", |_| page()),
    ("clippy", "lints", |_| {
        cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"])
    }),
    ("docs", "documentation of the code", |_| docs()),
    ("deny", "licences, advisories, banned crates", |_| deny()),
    ("build", "everything that the tests run", |_| cargo(&["test", "--quiet", "--workspace", "--no-run"])),
    ("tidy", "the rules of the house", |tally| whole("tidy::", tally)),
    ("unit", "unit and property tests, and every role by itself", |tally| {
        let mut arguments = vec!["test", "--workspace", "--no-fail-fast", "--"];
        for name in WHOLE {
            arguments.extend(["--skip", name]);
        }
        tests(&arguments, tally)
    }),
    ("system", "the whole, on loopback", |tally| whole("system::", tally)),
    ("model", "random lives of devices, against a model", |tally| whole("model::", tally)),
    ("secrets", "that nothing shows one", |tally| whole("secrets::", tally)),
    ("scan", "what scanners of others find", |_| scan::run()),
    ("frames", "accounting for every frame", |tally| whole("frames::", tally)),
    ("players", "the RTSP gateway, with players of others", |tally| whole("players::", tally)),
    ("lab", "the whole, in networks of its own", |tally| whole("lab::", tally)),
    ("browser", "the page, in Chromium", |tally| whole("browser::", tally)),
];

/// Modules of the tests of the whole, `app/tests/it/`, each a step of its own.
const WHOLE: [&str; 8] =
    ["tidy::", "system::", "model::", "secrets::", "frames::", "players::", "lab::", "browser::"];

/// The steps, for the help.
pub fn list() -> String {
    STEPS.iter().map(|(name, purpose, _)| format!("  {name:<8} {purpose}\n")).collect()
}

/// Runs the steps named in `only`, or all of them.
///
/// # Errors
/// Names the first step that failed; those after it did not run.
pub fn run(only: &[String]) -> anyhow::Result<()> {
    for name in only {
        ensure!(STEPS.iter().any(|(known, ..)| known == name), "no step {name:?}. Steps:\n{}", list());
    }
    let mut tally = Tally::default();
    let mut done: Vec<(&str, Duration)> = Vec::new();
    let started = Instant::now();
    let chosen = || STEPS.iter().filter(|(name, ..)| only.is_empty() || only.iter().any(|o| o == name));
    let mut failure = None;
    for (name, purpose, work) in chosen() {
        println!("\n── {name}: {purpose}");
        let step_started = Instant::now();
        let outcome = work(&mut tally);
        done.push((name, step_started.elapsed()));
        println!("── {name}: {:.1} s", step_started.elapsed().as_secs_f64());
        if let Err(error) = outcome {
            failure = Some((*name, error));
            break;
        }
    }
    println!();
    for (name, took) in &done {
        let mark = if failure.as_ref().is_some_and(|(failed, _)| failed == name) { "FAILED" } else { "ok" };
        println!("{name:<8} {:>7.1} s  {mark}", took.as_secs_f64());
    }
    for (name, ..) in chosen().skip(done.len()) {
        println!("{name:<8}        –    did not run");
    }
    println!("{:<8} {:>7.1} s", "all", started.elapsed().as_secs_f64());
    println!("{} passed, {} failed", tally.passed, tally.failed);
    match failure {
        Some((name, error)) => {
            Err(error.context(format!("step {name} failed; again: cargo xtask test --only {name}")))
        }
        None => Ok(()),
    }
}

fn cargo(arguments: &[&str]) -> anyhow::Result<()> {
    command(Command::new("cargo").args(arguments))
}

fn command(command: &mut Command) -> anyhow::Result<()> {
    let status = command.current_dir(root()).stdin(Stdio::null()).status();
    let status = status.with_context(|| format!("cannot start {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

fn docs() -> anyhow::Result<()> {
    command(
        Command::new("cargo")
            .args(["doc", "--quiet", "--workspace", "--no-deps"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )
}

/// One module of the tests of the whole. Every crate's test binary is asked (choosing packages would
/// change the features that dependencies are built with, and build them anew).
fn whole(module: &'static str, tally: &mut Tally) -> anyhow::Result<()> {
    let before = tally.passed;
    tests(&["test", "--quiet", "--workspace", "--no-fail-fast", "--test", "it", "--", module], tally)?;
    ensure!(tally.passed > before, "there is not a single test in {module}");
    Ok(())
}

/// Runs `cargo test …`, shows what it prints, and counts.
fn tests(arguments: &[&str], tally: &mut Tally) -> anyhow::Result<()> {
    let mut child = Command::new("cargo")
        .args(arguments)
        .current_dir(root())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let output = child.stdout.take().context("no output to read")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("output of cargo test")?;
        let line = String::from_utf8_lossy(&line);
        if let Some((passed, failed)) = counts(&line) {
            tally.passed += passed;
            tally.failed += failed;
            // Binaries without a test of this step say nothing.
            if passed + failed == 0 {
                continue;
            }
        }
        if !(line.is_empty() || line == "running 0 tests") {
            println!("{line}");
        }
    }
    let status = child.wait().context("cargo test")?;
    ensure!(status.success(), "cargo {}: {status}", arguments.join(" "));
    Ok(())
}

/// Passed and failed of `test result: ok. 3 passed; 0 failed; 0 ignored; …`.
fn counts(line: &str) -> Option<(u32, u32)> {
    let rest = line.strip_prefix("test result: ")?;
    let number = |word: &str| {
        let before = rest.split(word).next()?;
        before.rsplit(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty())?.parse().ok()
    };
    Some((number(" passed")?, number(" failed")?))
}

/// `npm ci && tsc --noEmit` in management/web.
fn page() -> anyhow::Result<()> {
    let folder = root().join("management/web");
    for file in ["package.json", "package-lock.json", "tsconfig.json"] {
        ensure!(
            folder.join(file).is_file(),
            "management/web/{file} is missing: nothing checks the page's types"
        );
    }
    let lock = std::fs::read_to_string(folder.join("package-lock.json")).context("package-lock.json")?;
    if lock.contains("\"resolved\"") {
        bail!(
            "management/web/package-lock.json names the registry that it was made with: make it again with \
             `npm install --package-lock-only --omit-lockfile-registry-resolved`"
        );
    }
    let npm = ["ci", "--no-audit", "--no-fund", "--loglevel=error", "--omit-lockfile-registry-resolved"];
    let status = Command::new("npm").args(npm).current_dir(&folder).stdin(Stdio::null()).status();
    ensure!(status.context("cannot start npm")?.success(), "npm ci failed in management/web");
    let compiler = folder.join("node_modules/.bin/tsc");
    let status = Command::new(&compiler).arg("--noEmit").current_dir(&folder).stdin(Stdio::null()).status();
    ensure!(status.context("cannot start tsc")?.success(), "the page's scripts do not type-check");
    Ok(())
}

/// Licences, bans and sources always; advisories where their database can be fetched.
fn deny() -> anyhow::Result<()> {
    let program = tools::cargo_deny()?;
    let reachable = Command::new("timeout")
        .args([ADVISORIES_DEADLINE_S, "git", "ls-remote", "--quiet", ADVISORIES, "HEAD"])
        .env("GIT_TERMINAL_PROMPT", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    let mut check = Command::new(program);
    check.args(["--log-level", "warn", "check", "--hide-inclusion-graph", "licenses", "bans", "sources"]);
    if reachable {
        check.arg("advisories");
    } else {
        println!("WARNING: {ADVISORIES} cannot be reached from here:");
        println!("WARNING: known security holes in dependencies were NOT looked for. The rest is checked.");
    }
    command(&mut check)
}

#[cfg(test)]
mod tests {
    use super::counts;

    #[test]
    fn results_are_counted() {
        let line = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 5 filtered out; finished in 0.1s";
        assert_eq!(counts(line), Some((12, 3)));
        assert_eq!(counts("test result: ok. 0 passed; 0 failed; 1 ignored"), Some((0, 0)));
        assert_eq!(counts("test it::works ... ok"), None);
    }
}
