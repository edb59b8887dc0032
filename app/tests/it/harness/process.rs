//! A program under test: its log is kept and read, and it does not outlive its test.
//!
//! Invariant: a line of level ERROR (or a panic) in its log fails the test, unless the test announced
//! it; what a program complains about is part of what it does.

use super::wait_for;
use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process_group};
use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};

/// A log longer than this many lines loses its oldest; a test at level trace stays in memory.
const LINES_KEPT: usize = 400_000;
/// Lines of a log that a failing test shows.
const LINES_SHOWN: usize = 40;

/// A line, and whether it was printed (standard output) or logged (standard error).
type Line = (Stream, String);

#[derive(Clone, Copy, PartialEq)]
enum Stream {
    Printed,
    Logged,
}

/// A running program.
pub struct Process {
    name: String,
    child: Child,
    group: Pid,
    ended: Option<ExitStatus>,
    log: Arc<Mutex<Vec<Line>>>,
    readers: Vec<JoinHandle<()>>,
    announced: Vec<String>,
}

/// Memory: heap and stacks, without the program's own pages, which are shared with whoever else runs it and
/// are read in as they are needed.
pub const DATA: &str = "Pss_Anon";

impl Process {
    /// Starts it; `name` is how tests' messages call it. Its standard output is part of its log.
    pub fn spawn(name: &str, command: &mut Command) -> Process {
        let started = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .env("NO_COLOR", "1")
            // A group of its own: whatever it starts is found and ended with it.
            .process_group(0)
            .spawn();
        let mut child = started.unwrap_or_else(|error| panic!("{name}: cannot start {command:?}: {error}"));
        let group = Pid::from_child(&child);
        let log = Arc::<Mutex<Vec<Line>>>::default();
        let readers = vec![
            follow(Stream::Printed, child.stdout.take().expect("piped"), log.clone()),
            follow(Stream::Logged, child.stderr.take().expect("piped"), log.clone()),
        ];
        Process { name: name.to_owned(), child, group, ended: None, log, readers, announced: Vec::new() }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// All lines it has printed and logged so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().iter().map(|(_, line)| line.clone()).collect()
    }

    /// What it has logged so far, without what it has printed for people at a terminal.
    pub fn logged(&self) -> Vec<String> {
        let log = self.log.lock().unwrap();
        log.iter().filter(|(stream, _)| *stream == Stream::Logged).map(|(_, line)| line.clone()).collect()
    }

    /// The first line that holds `part`, once there is one.
    #[track_caller]
    pub fn wait_for_line(&mut self, part: &str, within: Duration) -> String {
        let what = format!("{} prints {part:?}", self.name);
        wait_for(&what, within, || {
            if let Some((_, line)) = self.log.lock().unwrap().iter().find(|(_, line)| line.contains(part)) {
                return Ok(line.clone());
            }
            if let Some(status) = self.status() {
                panic!("{} ended ({status}) before it printed {part:?}", self.name);
            }
            Err(format!("{} lines without it", self.log.lock().unwrap().len()))
        })
    }

    /// Announces that lines of level ERROR which hold `part` are what this test is about.
    pub fn announce_error(&mut self, part: &str) {
        self.announced.push(part.to_owned());
    }

    /// How it ended, or that it still runs.
    pub fn status(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().unwrap();
        }
        self.ended
    }

    /// Asks it to end (SIGTERM) and waits for that.
    #[track_caller]
    pub fn terminate(&mut self, within: Duration) -> ExitStatus {
        if self.status().is_none() {
            kill_process(self.group, Signal::TERM).unwrap();
        }
        let what = format!("{} ends after SIGTERM", self.name);
        wait_for(&what, within, || self.status().ok_or("it still runs"))
    }

    /// Ends it and waits until what it started, which ends by itself, has ended too.
    pub fn end_with_children(&mut self, within: Duration) {
        self.terminate(within);
        let group = self.group;
        wait_for(&format!("all of {} has ended", self.name), within, || {
            if test_kill_process_group(group).is_err() { Ok(()) } else { Err("some still run") }
        });
    }

    /// Ends it at once (SIGKILL): power loss, as far as a process can tell.
    pub fn kill(&mut self) {
        if self.status().is_none() {
            let _ = kill_process_group(self.group, Signal::KILL);
            self.ended = Some(self.child.wait().unwrap());
        }
    }

    /// A field of its smaps_rollup, in kB of 1000 bytes; 0 when it has ended. [`DATA`] is one, `Pss` is all that belongs
    /// to it.
    pub fn memory_kb(&self, field: &str) -> u64 {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.id())).unwrap_or_default();
        let of = rollup.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let kib = of.and_then(|rest| rest.split_whitespace().next()).map_or(0, |n| n.parse::<u64>().unwrap());
        kib * 1024 / 1000
    }

    /// Lines of level ERROR, and panics, that the test did not announce.
    fn complaints(&self) -> Vec<String> {
        let errors = self.log().into_iter().filter(|line| is_error(line));
        errors.filter(|line| !self.is_announced(line)).collect()
    }

    fn is_announced(&self, line: &str) -> bool {
        self.announced.iter().any(|part| line.contains(part))
    }
}

/// Whether a line was logged at level ERROR (text or JSON), or tells of a panic.
fn is_error(line: &str) -> bool {
    let level_of_text = line.split_whitespace().nth(1) == Some("ERROR");
    level_of_text || line.contains(r#""level":"ERROR""#) || line.contains("' panicked at ")
}

fn follow(of: Stream, stream: impl Read + Send + 'static, log: Arc<Mutex<Vec<Line>>>) -> JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n') {
            let Ok(line) = line else { return };
            let mut log = log.lock().unwrap();
            if log.len() == LINES_KEPT {
                log.drain(..LINES_KEPT / 2);
            }
            log.push((of, String::from_utf8_lossy(&line).into_owned()));
        }
    })
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        // What it may have started itself holds its pipes open; end that too, but do not pass over it.
        let left_behind = test_kill_process_group(self.group).is_ok();
        let _ = kill_process_group(self.group, Signal::KILL);
        if !left_behind {
            for reader in self.readers.drain(..) {
                let _ = reader.join();
            }
        }
        if thread::panicking() {
            let log = self.log();
            eprintln!("── the last {} of {} lines of {}:", LINES_SHOWN.min(log.len()), log.len(), self.name);
            for line in &log[log.len().saturating_sub(LINES_SHOWN)..] {
                eprintln!("   {line}");
            }
            return;
        }
        assert!(!left_behind, "{} left processes behind", self.name);
        let complaints = self.complaints();
        assert!(
            complaints.is_empty(),
            "{} logged errors that this test did not announce:\n{}",
            self.name,
            complaints.join("\n")
        );
    }
}

/// The goal: the harness itself notices what it is there for.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::seconds;

    fn shell(script: &str) -> Process {
        Process::spawn("sh", Command::new("sh").args(["-c", script]))
    }

    fn failure(test: impl FnOnce() + std::panic::UnwindSafe) -> String {
        let payload = std::panic::catch_unwind(test).expect_err("it should have failed");
        payload.downcast_ref::<String>().cloned().unwrap_or_default()
    }

    #[test]
    fn an_error_in_a_log_fails_the_test_unless_it_was_announced() {
        let log = r#"echo "2026-01-01T00:00:00Z ERROR homing: step=5 dispatch: broken""#;
        let message = failure(move || {
            let mut process = shell(log);
            wait_for("end", seconds(5), || process.status().ok_or("runs"));
        });
        assert!(message.contains("did not announce") && message.contains("step=5"), "{message}");

        let mut process = shell(log);
        process.announce_error("step=5");
        wait_for("end", seconds(5), || process.status().ok_or("runs"));
    }

    #[test]
    fn a_process_left_behind_fails_the_test() {
        let message = failure(|| {
            let mut process = shell("sleep 60 & exit 0");
            wait_for("end", seconds(5), || process.status().ok_or("runs"));
        });
        assert!(message.contains("left processes behind"), "{message}");
    }

    #[test]
    fn a_line_is_awaited_and_an_early_end_is_told() {
        let mut process = shell("echo one; echo two; exec sleep 60");
        assert_eq!(process.wait_for_line("tw", seconds(5)), "two");
        let message = failure(|| {
            shell("exit 3").wait_for_line("never", seconds(5));
        });
        assert!(message.contains("ended (exit status: 3)"), "{message}");
        process.terminate(seconds(5));
    }
}
