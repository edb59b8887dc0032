//! kill -9 at any moment, and files as a power failure leaves them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::child;
use crate::ffmpeg;
use crate::recorder::{Recorder, wait_for};
use crate::source::{GROUP, Script, Source, assert_consecutive};

/// Not a test but the process that the tests below kill; alone it does nothing.
#[test]
fn child_process() {
    child::run_if_asked();
}

/// Goal: kill -9 costs at most the group of pictures in progress; everything before it is there after the next
/// start, again and again, and the gap says why.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_loses_one_group_at_most() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let source = Source::start(Script { sound: true, ..Script::default() }).await;
    let mut recorded_before = 0;
    for (round, wait_ms) in [1_300, 2_150, 1_730].into_iter().enumerate() {
        let sent_before = source.sent();
        // Added once: the camera would take another try for a second recorder.
        let added = usize::from(round == 0);
        let mut child = child::start(
            &["--exact", "crash::child_process", "--nocapture"],
            folder.path(),
            &source.url,
            added,
        );
        wait_for(|| async { (source.sent() > sent_before + 2 * GROUP).then_some(()) }).await;
        tokio::time::sleep(Duration::from_millis(wait_ms)).await; // any moment will do
        // Standing still first, it can be asked for what it had read: what is still on its way is not lost by it.
        stand_still(&child);
        let read = source.read_by_stopped_recorder();
        child.kill().unwrap();
        child.wait().unwrap();

        // On the next start everything is repaired. What is looked at records nothing itself.
        source.mute(true);
        let copy = Arc::new(tempfile::tempdir().unwrap());
        copy_folder(folder.path(), copy.path());
        let recorder = Recorder::open(copy).await;
        let camera = 1;
        let timeline = recorder.timeline(camera).await;
        let last = timeline.ranges[round];
        let file = recorder.export(camera, last.start, last.end).await;
        ffmpeg::decodes(&file);
        let pictures = assert_consecutive(&file);
        let received = read.until - read.before;
        assert!(
            pictures <= received && received <= pictures + GROUP,
            "{pictures} of {received} in round {round}"
        );
        assert_eq!(source.connections(), 2 + round, "the try and one for each round");
        let whole = recorder.export(camera, timeline.ranges[0].start, last.end).await;
        let total = ffmpeg::pictures(&whole).len();
        assert_eq!(total, recorded_before + pictures, "what was there before the kill is still there");
        recorded_before = total;
        // It grows: a server that comes back within a picture or two has none to show yet. Pictures whose
        // first one was late are placed late, so that their end may even be still to come.
        let gaps = || async { recorder.timeline(camera).await.gaps };
        let gap = wait_for(|| async { gaps().await.into_iter().find(|gap| gap.start == last.end) }).await;
        assert_eq!(gap.code, "server-crashed");
        recorder.stop().await;
        source.mute(false);
    }
    source.end().await;
}

/// Goal: whatever a power failure leaves of the open file (cut anywhere, zeros at its end), the server starts, keeps
/// every whole fragment, and what it keeps decodes.
#[tokio::test(flavor = "multi_thread")]
async fn torn_files_are_repaired() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let source = Source::start(Script { speed: 20, sound: true, ..Script::default() }).await;
    let mut child =
        child::start(&["--exact", "crash::child_process", "--nocapture"], folder.path(), &source.url, 1);
    wait_for(|| async { (source.sent() > 80).then_some(()) }).await;
    child.kill().unwrap();
    child.wait().unwrap();
    source.end().await;
    let footage = folder.path().join("footage/1");
    let newest = newest_file(&footage);
    let whole = std::fs::read(&newest).unwrap();

    let mut least = usize::MAX;
    let mut tears = [0, 1, 9, 700, 5_000, whole.len() / 2, whole.len() - 100, whole.len()];
    tears.sort_unstable();
    for tear in tears {
        for zeros in [0, 3_000] {
            let copy = Arc::new(tempfile::tempdir().unwrap());
            copy_folder(folder.path(), copy.path());
            let torn = newest_file(&copy.path().join("footage/1"));
            let mut content = whole[..whole.len() - tear].to_vec();
            content.resize(content.len() + zeros, 0);
            std::fs::write(&torn, content).unwrap();
            let recorder = Recorder::open(copy).await;
            let timeline = recorder.timeline(1).await;
            if timeline.ranges.is_empty() {
                assert!(tear >= whole.len() / 2, "{tear} bytes less, and nothing is left");
                recorder.stop().await;
                continue;
            }
            let file = recorder.export_all(1).await;
            ffmpeg::decodes(&file);
            let pictures = assert_consecutive(&file);
            assert_eq!(pictures % GROUP, 0, "whole groups only");
            assert!(pictures <= least, "the more is torn off, the less is left");
            least = pictures;
            recorder.stop().await;
        }
    }
}

/// Stops it while every thread of it sleeps: then what it has read is handled. In the middle of something it may have read
/// more, by as much as a busy machine has kept it from its work.
fn stand_still(child: &Child) {
    let pid = Pid::from_child(child);
    loop {
        let before = threads(child);
        if before.values().all(|(state, _)| *state == 'S') {
            kill_process(pid, Signal::STOP).unwrap();
            // It stands still once the kernel says so: until then it may still read.
            let mut after = threads(child);
            while after.values().any(|(state, _)| *state != 'T') {
                std::thread::yield_now();
                after = threads(child);
            }
            // Each was only woken to be stopped.
            let slept_on = |(tid, (_, switches)): (&u32, &(char, u64))| {
                before.get(tid).is_some_and(|(_, before)| *switches == before + 1)
            };
            if after.iter().all(slept_on) {
                return;
            }
            kill_process(pid, Signal::CONT).unwrap();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// State of each thread, and how often it has been off its processor.
fn threads(child: &Child) -> BTreeMap<u32, (char, u64)> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
    tasks
        .filter_map(|task| {
            let task = task.unwrap();
            // One that has ended since is no thread any more.
            let status = std::fs::read_to_string(task.path().join("status")).ok()?;
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            let switches = |name| field(name).unwrap().parse::<u64>().unwrap();
            let state = field("State:")?.chars().next()?;
            let switches = switches("voluntary_ctxt_switches:") + switches("nonvoluntary_ctxt_switches:");
            Some((task.file_name().to_str()?.parse().ok()?, (state, switches)))
        })
        .collect()
}

fn newest_file(camera: &Path) -> std::path::PathBuf {
    let mut files: Vec<_> = std::fs::read_dir(camera)
        .unwrap()
        .flat_map(|day| std::fs::read_dir(day.unwrap().path()).unwrap())
        .map(|file| file.unwrap().path())
        .collect();
    files.sort();
    files.pop().unwrap()
}

fn copy_folder(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}
