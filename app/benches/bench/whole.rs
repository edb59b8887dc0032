//! Looking at a process from outside, and running a benchmark's load.

use crate::harness::Process;
use std::{fs, future::Future, time::Duration};

/// Linux counts processor time for /proc in hundredths of a second (USER_HZ).
const TICKS_PER_S: f64 = 100.0;

/// Memory: all that belongs to the process, its share of what it shares included; for [`Process::memory_kb`].
pub const PSS: &str = "Pss";

/// CPU seconds that a process has used so far, all threads, user and kernel.
pub fn cpu_s(process: &Process) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.id())).expect("the process runs");
    // The name, in parentheses, may hold spaces. Behind it: state is field 3, utime 14, stime 15.
    let fields: Vec<&str> = stat.rsplit(')').next().expect("a part").split_whitespace().collect();
    let ticks = |field: usize| fields[field - 3].parse::<f64>().expect("a number");
    (ticks(14) + ticks(15)) / TICKS_PER_S
}

/// CPU seconds that a process uses within a time.
pub async fn cpu_s_within(process: &Process, time: Duration) -> f64 {
    let before = cpu_s(process);
    tokio::time::sleep(time).await;
    cpu_s(process) - before
}

/// A field of /proc/PID/status, in kB.
pub fn status_kb(process: &Process, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id())).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).expect("a number of kB")
}

/// The middle one.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// So many per cent of them are at most that. Sorts them.
pub fn percentile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() * percent / 100).min(values.len() - 1)]
}

/// Runs load: one thread, so that the other core is the measured program's.
pub fn block_on<T>(load: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(load)
}
