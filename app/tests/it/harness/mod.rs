//! What every test of the whole uses: waiting, processes, HTTP, folders, the demo.
//!
//! Plain threads and blocking sockets, none of the project's own code: a fault there cannot hide a
//! fault here. Invariant: nothing outlives its owner. Each `Drop` ends what it started and then looks
//! whether it is gone; a test that leaves something behind fails.

pub mod demo;
pub mod http;
pub mod process;

pub use demo::Demo;
pub use http::Http;
pub use process::{DATA, Process};

use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// Between two looks at a condition.
const LOOK_AGAIN: Duration = Duration::from_millis(25);

/// Waits until `probe` gives a value, and fails the test with what it said last when `within` is over.
///
/// `what` completes the sentence "within 5 s: …".
#[track_caller]
pub fn wait_for<T, E: std::fmt::Display>(
    what: &str,
    within: Duration,
    mut probe: impl FnMut() -> Result<T, E>,
) -> T {
    let deadline = Instant::now() + within;
    loop {
        match probe() {
            Ok(value) => return value,
            Err(reason) if Instant::now() > deadline => {
                panic!("not within {:.1} s: {what}\n  last seen: {reason}", within.as_secs_f64())
            }
            Err(_) => thread::sleep(LOOK_AGAIN),
        }
    }
}

/// Whole seconds, to keep deadlines short to read.
pub const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A temporary folder that must have gone when its test is over.
///
/// Kept, and its place printed, when the test fails.
pub struct Folder(Option<tempfile::TempDir>);

impl Folder {
    /// A new one.
    pub fn new() -> Self {
        Folder(Some(tempfile::Builder::new().prefix("homing-test-").tempdir().unwrap()))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.as_ref().expect("until dropped").path()
    }

    /// A place inside.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let Some(folder) = self.0.take() else { return };
        if thread::panicking() {
            eprintln!("kept: {}", folder.keep().display());
        } else {
            let path = folder.path().to_owned();
            folder.close().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }
}

/// Runs a command to its end and gives its standard output.
///
/// # Panics
/// With all it said, when it fails.
#[track_caller]
pub fn output(command: &mut std::process::Command) -> Vec<u8> {
    let output = command.stdin(std::process::Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    output.stdout
}

/// The `homing` program.
pub fn homing() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_homing"))
}

/// The `homing-agent` program, which lies beside `homing`.
///
/// Cargo builds the programs of the package under test, and this is another one's; hence the build here,
/// as `cargo xtask test` does it (another choice of packages would build dependencies anew, with other
/// features), and over at once when it has.
pub fn homing_agent() -> PathBuf {
    static BUILT: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    BUILT
        .get_or_init(|| {
            let mut build = std::process::Command::new(env!("CARGO"));
            output(build.args(["test", "--quiet", "--workspace", "--no-run"]).current_dir(root()));
            homing().parent().expect("programs lie in a folder").join("homing-agent")
        })
        .clone()
}

/// Serial number and OAK among the words of a label that an agent has printed.
pub fn label(printed: &str) -> Option<(String, String)> {
    let is_hex = |word: &str| word.chars().all(|c| c.is_ascii_hexdigit());
    let words = || printed.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    let serial = words().find(|word| word.len() == 12 && is_hex(word))?;
    let oak = words()
        .find(|word| word.len() == 14 && word.split('-').all(|part| part.len() == 4 && is_hex(part)))?;
    Some((serial.to_owned(), oak.to_owned()))
}

/// The folder of the workspace.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("app/ lies in the workspace")
}
