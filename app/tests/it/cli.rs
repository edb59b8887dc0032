//! The commands of an administrator (`homing devices`, `register`, …) against a running server, as a script calls them.

use crate::harness::{Demo, Folder, Process, homing, seconds};
use serde_json::Value;
use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output, Stdio},
};

/// `homing` at a home of its own, with nothing in the environment.
fn command(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(homing());
    command.args(arguments).env_clear().env("HOME", home).current_dir(home);
    command
}

/// Runs it, `typed` as its standard input.
#[track_caller]
fn run(home: &Path, arguments: &[&str], typed: &str) -> (i32, String, String) {
    let mut child = command(home, arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn write(file: &Path, text: &str) {
    fs::write(file, text).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
}

/// The goal: an administrator registers hundreds from a spreadsheet, sees what came of each line, mends and repeats;
/// looks, shows a password for a reason, and releases; and a script can tell by the exit code how it went.
#[test]
fn an_administrator_and_a_script_work_by_commands() {
    let folder = Folder::new();
    let home = folder.path();
    let demo = Demo::start(&folder.join("data"), &["--cameras", "1"]);
    let spare = &demo.info["cameras"][0];
    let of_spare = |key: &str| spare[key].as_str().unwrap();
    let (serial, url) = (of_spare("serial"), demo.text("/url"));

    // Which server, and who one is there: nothing, something that is not there, a wrong token.
    let (code, _, said) = run(home, &["devices"], "");
    assert!(code == 2 && said.contains("HOMING_URL") && said.contains("client.toml"), "{code} {said}");
    let (code, _, said) = run(home, &["devices", "--url", url], "");
    assert!(code == 2 && said.contains("--token-file"), "{code} {said}");
    let (code, _, said) =
        run(home, &["devices", "--url", "http://127.0.0.1:9", "--token-file", "-"], "homing_x\n");
    assert!(code == 3 && said.contains("cannot be reached") && said.contains("firewall"), "{code} {said}");
    let (code, _, said) = run(home, &["devices", "--url", url, "--token-file", "-"], "homing_x\n");
    assert!(code == 4 && said.contains("Users and access") && !said.contains("homing_x"), "{code} {said}");

    // Most convenient: kept once, for its owner alone.
    fs::create_dir_all(home.join(".config/homing")).unwrap();
    let kept = home.join(".config/homing/client.toml");
    write(&kept, &format!("url = {url:?}\ntoken = {:?}\n", demo.text("/token")));
    let (code, shown, said) = run(home, &["devices"], "");
    assert_eq!((code, shown.as_str()), (0, ""), "{said}");

    // A list, with mistakes: good lines are registered, the others named with what is wrong.
    let list = home.join("list.csv");
    let of_nobody = "02484D0000F1";
    let text = format!(
        "Name;Serial number;OAK;User;Password\r\nMine;{serial};{};{};{}\r\nShort;02484D0000;0123-4567-89AB;root;x\r\n\
         Far;{of_nobody};0123-4567-89AB;root;x\r\nNone;02484D0000F2;;root;x\r\n",
        of_spare("oak"),
        of_spare("user"),
        of_spare("password"),
    );
    fs::write(&list, text).unwrap();
    let (code, shown, _) = run(home, &["register", "--csv", "list.csv", "--dry-run"], "");
    assert_eq!(code, 1, "{shown}");
    assert_eq!(shown.matches(" good").count(), 2, "{shown}");
    let (code, shown, said) = run(home, &["register", "--csv", "list.csv"], "");
    assert_eq!(code, 5, "{shown}{said}");
    let lines: Vec<&str> = shown.lines().collect();
    for (line, parts) in lines.iter().zip([
        &["line 2 ", serial, " registered"][..],
        &["line 3 ", "02484D0000 ", " faulty ", "10 digits where there should be 12"],
        &["line 4 ", of_nobody, " registered"],
        &["line 5 ", "02484D0000F2", " faulty "],
    ]) {
        assert!(parts.iter().all(|part| line.contains(part)), "{line:?} {parts:?}");
    }
    assert!(said.contains("2 registered") && said.contains("2 faulty"), "{said}");

    // Mended, it goes on where it was; a script reads an object a line.
    let text =
        format!("serial,oak,password\n{serial},{},x\n02484D0000F3,0123-4567-89AB,x\n", of_spare("oak"));
    let (code, shown, said) = run(home, &["register", "--csv", "-", "--json"], &text);
    assert_eq!(code, 0, "{shown}{said}");
    let told: Vec<Value> = shown.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&told[0]["result"], &told[1]["result"]), (&"same".into(), &"registered".into()), "{shown}");
    assert_eq!((&told[0]["line"], &told[1]["serial"]), (&2.into(), &"02484D0000F3".into()));

    // One at a time, its secrets from standard input; what is wrong with it is the server's word.
    let one = ["register", "02:48:4d:00:00:f4", "--oak-file", "-", "--password-file", "-", "--name", "Gate"];
    let (code, shown, said) = run(home, &one, "0123-4567-89AB\nx\n");
    assert!(code == 0 && shown.contains("02484D0000F4 is registered"), "{code} {shown} {said}");
    let (code, _, said) = run(home, &one, "0123-4567-89AB\nx\n");
    assert!(code == 1 && said.contains("(already-registered)"), "{code} {said}");
    let (code, _, said) = run(home, &["register", "02484D0000F5"], "");
    assert!(code == 2 && said.contains("--oak-file"), "{code} {said}");

    // Looking: a table, filtered, and every change as it happens.
    let (_, shown, _) = run(home, &["devices"], "");
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[0].starts_with("STATE") && lines.len() == 5, "{shown}");
    let column = lines[0].find("SERIAL").unwrap();
    assert!(lines[1..].iter().all(|line| line[column..].starts_with("02484D0000")), "{shown}");
    assert!(!shown.contains('\x1b'), "colours are for terminals: {shown:?}");
    let (_, shown, _) = run(home, &["devices", "gate", "--json"], "");
    let gate: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&gate["name"], &gate["state"]), (&"Gate".into(), &"red".into()));
    assert_eq!(run(home, &["devices", "--state", "green", "--json"], "").1, "");
    let mut watching =
        Process::spawn("homing devices", &mut command(home, &["devices", "--watch", &serial[6..]]));
    watching.wait_for_line("red Not connected", seconds(20));
    demo.api.post(&format!("/api/v1/simulated-cameras/{serial}/press"), &Value::Null).unwrap();
    let ready = watching.wait_for_line("yellow Ready to add", seconds(60));
    assert!(ready.contains(serial) && ready.contains("7 tunnel"), "{ready}");
    watching.kill();

    // Its password, for a reason that is written down.
    assert_eq!(run(home, &["password", serial], "").0, 2);
    let (code, shown, said) = run(home, &["password", serial, "--reason", "its own page"], "");
    assert_eq!(code, 0, "{said}");
    assert_eq!(shown, format!("{} {}\n", of_spare("user"), of_spare("password")));
    let audit = demo.api.json("/api/v1/audit").unwrap();
    assert_eq!((&audit[0]["action"], &audit[0]["detail"]), (&"show-password".into(), &"its own page".into()));

    let (code, _, said) = run(home, &["move", serial, "nowhere"], "");
    assert!(code == 1 && said.contains("no tunnel server called \"nowhere\""), "{code} {said}");
    let (code, _, said) = run(home, &["move", serial, "--undo"], "");
    assert!(code == 1 && said.contains("(not-moving)"), "{code} {said}");

    let (code, shown, said) = run(home, &["release", of_nobody, "02484D0000F9"], "");
    assert!(
        code == 5 && shown.contains(of_nobody) && said.contains("1 of 2 not released"),
        "{code} {shown} {said}"
    );
    let (code, _, said) = run(home, &["release", of_nobody], "");
    assert!(code == 1 && said.contains("No device with serial number"), "{code} {said}");
}
