//! Seen from outside: metrics and their dashboard, the live view in the terminal, and a device's story in the log.

use crate::harness::{Demo, Folder, homing, root, seconds, wait_for};
use jiff::Timestamp;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::PermissionsExt,
    process::{Command, Output, Stdio},
};

/// The goal: every metric that the dashboard shows exists and none has a label for a device; `homing top` shows the device
/// with its rate and its round-trip time; whoever greps the log for its serial number reads its steps in order.
#[test]
fn metrics_terminal_and_log_tell_the_same_story() {
    let folder = Folder::new();
    let demo = Demo::start(&folder.join("data"), &["--cameras", "2"]);
    let serial = demo.info["cameras"][0]["serial"].as_str().unwrap().to_owned();
    demo.wait_for_recording(Timestamp::now(), seconds(90));

    let metrics = String::from_utf8(demo.api.get("/metrics").unwrap().body).unwrap();
    let typed: BTreeSet<&str> =
        metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let dashboard = fs::read_to_string(root().join("docs/grafana/homing.json")).unwrap();
    let shown = shown(&serde_json::from_str(&dashboard).unwrap());
    assert!(shown.len() >= 15, "{shown:?}");
    for name in &shown {
        let endings = ["", "_total", "_bucket", "_sum", "_count"];
        let known =
            endings.iter().any(|ending| name.strip_suffix(ending).is_some_and(|base| typed.contains(base)));
        assert!(known, "{name} is on the dashboard, and is no metric: {typed:?}");
    }
    assert!(!metrics.contains(&serial), "a device's serial number is in the metrics");

    let top = |arguments: &[&str], secret: &str| -> io::Result<Output> {
        let mut command = Command::new(homing());
        let mut child = command
            .args(["top", "--once"])
            .args(arguments)
            .env_clear()
            .env("HOME", folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        io::Write::write_all(&mut child.stdin.take().unwrap(), secret.as_bytes())?;
        child.wait_with_output()
    };
    let internal = format!("http://{}", demo.text("/tunnel/internal"));
    let at_tunnel = ["--tunnel", &internal, "--user", demo.text("/tunnel/user"), "--password-file", "-"];
    let at_management = ["--url", demo.text("/url"), "--token-file", "-"];
    let shows_it = |arguments: &[&str], secret: &str| {
        let output = top(arguments, secret)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().find(|line| line.contains(&serial)).unwrap_or_default();
        let is_there = line.contains("Connected") && line.contains("bit/s") && line.contains(" ms");
        if output.status.success() && is_there && !text.contains('\x1b') {
            Ok(())
        } else {
            Err(io::Error::other(text))
        }
    };
    wait_for("top shows the device with its figures", seconds(20), || {
        shows_it(&at_management, demo.text("/token"))
    });
    wait_for("so it does at a tunnel server alone", seconds(20), || {
        shows_it(&at_tunnel, demo.text("/tunnel/password"))
    });
    let refused = top(&at_tunnel, "guess").unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(4), "{said}");
    assert!(said.contains("--password-file") && !said.contains("guess"), "{said}");

    // At a terminal, which script(1) is: it draws on a screen of its own, and q gives the old one back.
    let password = folder.join("password");
    fs::write(&password, demo.text("/tunnel/password")).unwrap();
    fs::set_permissions(&password, fs::Permissions::from_mode(0o600)).unwrap();
    let live = format!(
        "{} top --tunnel {internal} --user {} --password-file {}",
        homing().display(),
        demo.text("/tunnel/user"),
        password.display()
    );
    let mut terminal = Command::new("script");
    terminal.args(["--quiet", "--return", "--flush", "--command", &live, "/dev/null"]).env("TERM", "xterm");
    let mut terminal = terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut screen = terminal.stdout.take().unwrap();
    let (mut drawn, mut chunk) = (String::new(), [0; 4096]);
    while !(drawn.contains(&serial) && drawn.contains("q quit")) {
        let count = io::Read::read(&mut screen, &mut chunk).unwrap();
        assert!(count > 0 && drawn.matches("\x1b[H").count() < 10, "{drawn}");
        drawn.push_str(&String::from_utf8_lossy(&chunk[..count]));
    }
    assert!(drawn.contains("\x1b[?1049h"), "{drawn}");
    io::Write::write_all(&mut terminal.stdin.take().unwrap(), b"q").unwrap();
    io::Read::read_to_string(&mut screen, &mut drawn).unwrap();
    assert!(terminal.wait().unwrap().success() && drawn.trim_end().ends_with("\x1b[?1049l"), "{drawn:?}");

    let story: Vec<String> =
        demo.process.logged().into_iter().filter(|line| line.contains(&serial)).collect();
    let mut rest = story.iter();
    for chapter in
        ["registered", "registration taken", "device phones home", "uplink stands", "hardware added"]
    {
        assert!(rest.any(|line| line.contains(chapter)), "{chapter} is missing, or too early: {story:#?}");
    }
    for chapter in [
        "relayed",
        "device dispatched",
        "step=5 dispatch",
        "waiting at the dispatcher",
        "dialling the tunnel server",
    ] {
        assert!(story.iter().any(|line| line.contains(chapter)), "{chapter} is missing: {story:#?}");
    }
}

/// Names of metrics in the expressions of a dashboard.
fn shown(dashboard: &Value) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    for target in panels.filter_map(|panel| panel["targets"].as_array()).flatten() {
        let expression = target["expr"].as_str().unwrap();
        let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        names.extend(words.filter(|word| word.starts_with("homing_")).map(str::to_owned));
    }
    names
}
