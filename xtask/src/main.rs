//! The chores of this repository: `cargo xtask test` and `cargo xtask bench`.
//!
//! Built before everything else, so it depends on next to nothing; and it is not a place for logic:
//! each step is a command that a developer could type.

// A program for people at a terminal.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod scan;
mod test;
mod tools;

use std::{path::PathBuf, process::ExitCode};

const HELP: &str = "\
cargo xtask test [--only STEP]...    everything that CI runs, stopping at the first step that fails
cargo xtask bench [--only NAME]...   measure against docs/performance.md, and write it anew
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.split_first() {
        Some((chore, rest)) if chore == "test" => only(rest).and_then(|only| test::run(&only)),
        Some((chore, rest)) if chore == "bench" => only(rest).and_then(|only| bench::run(&only)),
        _ => {
            print!("{HELP}\nSteps of test:\n{}", test::list());
            return if arguments.first().is_some_and(|word| word.ends_with("help")) {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(2)
            };
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\n{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The names after each `--only`.
fn only(arguments: &[String]) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match (word.strip_prefix("--only="), word.as_str()) {
            (Some(name), _) => names.push(name.to_owned()),
            (None, "--only") => match words.next() {
                Some(name) => names.push(name.clone()),
                None => anyhow::bail!("--only needs a name\n{HELP}\nSteps of test:\n{}", test::list()),
            },
            _ => anyhow::bail!("what is {word:?}?\n{HELP}\nSteps of test:\n{}", test::list()),
        }
    }
    Ok(names)
}

/// The folder of the workspace, wherever the chore was started.
fn root() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().map_or(manifest.clone(), PathBuf::from)
}
