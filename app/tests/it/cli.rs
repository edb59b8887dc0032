//! The commands of an administrator (`homing devices`, `register`, …) against a running server, as a script calls them.

use crate::harness::{Demo, Folder, Http, Process, homing, output, seconds, wait_for};
use serde_json::{Value, json};
use std::{
    fs,
    io::{self, Write},
    net::TcpListener,
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

/// The goal: what `homing plan` prints is what the page is told, by default and for a wish; and both refuse the same.
#[test]
fn the_plan_is_the_same_by_command_and_by_api() {
    let folder = Folder::new();
    let demo = Demo::start(&folder.join("data"), &["--cameras", "1"]);
    for (flags, query) in [
        (&["plan", "--json"][..], ""),
        (
            &[
                "plan",
                "--json",
                "--sites",
                "3",
                "--resolution",
                "1920x1080",
                "--scene",
                "busy",
                "--audio-kbit",
                "64",
            ],
            "?sites=3&width=1920&height=1080&scene=busy&audio_kbit=64",
        ),
    ] {
        let (code, printed, said) = run(folder.path(), flags, "");
        assert_eq!(code, 0, "{said}");
        let printed: Value = serde_json::from_str(&printed).unwrap();
        assert_eq!(printed, demo.api.json(&format!("/api/v1/plan{query}")).unwrap());
    }
    let (code, _, said) = run(folder.path(), &["plan", "--sites", "0"], "");
    assert!(code == 1 && said.contains("sites is 0"), "{code} {said}");
    let refused = demo.api.json("/api/v1/plan?sites=0").unwrap_err().to_string();
    assert!(refused.contains("sites is 0"), "{refused}");
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
    let confirmed = ["password", serial, "--reason", "its own page", "--own-password-file", "-"];
    assert_eq!(run(home, &confirmed[..4], "").0, 2, "the token alone shows nothing");
    let (code, shown, said) = run(home, &confirmed, &format!("{}\n", demo.text("/password")));
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

/// Ports that are free now.
fn free_ports<const N: usize>() -> [u16; N] {
    let listeners: [TcpListener; N] = std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

/// The goal: a device is moved to another tunnel server, with another account at the dispatcher, and back, by command;
/// it is recorded all the time by the same camera, and what a move leaves behind is released without harm.
#[test]
fn a_device_moves_between_tunnel_servers_and_is_recorded_on() {
    let folder = Folder::new();
    let home = folder.path();
    let demo = Demo::start(&folder.join("data"), &["--cameras", "1"]);
    let spare = &demo.info["cameras"][0];
    let of_spare = |key: &str| spare[key].as_str().unwrap();
    let serial = of_spare("serial");

    // Another tunnel server, and a management server that knows both.
    let dispatcher = home.join("dispatcher.toml");
    write(&dispatcher, &format!("[dispatcher]\ndata = '{}'\n", folder.join("data/dispatcher").display()));
    let mut account =
        command(home, &["dispatcher", "account", "add", "south", "--config", "dispatcher.toml"]);
    let password = String::from_utf8(output(&mut account)).unwrap();
    write(&home.join("anchor.pem"), demo.text("/dispatcher/trust_anchor"));
    let [external, internal, page] = free_ports();
    write(
        &home.join("south.toml"),
        &format!(
            "[tunnel]\nname = 'south'\ndata = '{}'\nexternal = '127.0.0.1:{external}'\n\
             internal = '127.0.0.1:{internal}'\npassword = 'sesame-of-the-south'\n[tunnel.dispatcher]\n\
             address = 'https://{}'\ntrust_anchor = '{}'\naccount = 'south'\npassword = '{}'\n",
            folder.join("south").display(),
            demo.text("/dispatcher/api"),
            folder.join("anchor.pem").display(),
            password.trim(),
        ),
    );
    write(
        &home.join("management.toml"),
        &format!(
            "[recording]\ndata = '{}'\n[management]\ndata = '{}'\nlisten = '127.0.0.1:{page}'\n\
             first_password = 'correct horse'\n[[management.tunnel_servers]]\nname = 'north'\nurl = 'http://{}'\n\
             user = '{}'\npassword = '{}'\n[[management.tunnel_servers]]\nname = 'south'\n\
             url = 'http://127.0.0.1:{internal}'\nuser = 'vms'\npassword = 'sesame-of-the-south'\n",
            folder.join("recording").display(),
            folder.join("management").display(),
            demo.text("/tunnel/internal"),
            demo.text("/tunnel/user"),
            demo.text("/tunnel/password"),
        ),
    );
    let start = |role: &str, file: &str| Process::spawn(role, &mut command(home, &[role, "--config", file]));
    let mut south = start("tunnel", "south.toml");
    let mut management = start("management", "management.toml");
    let url = format!("http://127.0.0.1:{page}");
    let admin = json!({"user": "admin", "password": "correct horse"});
    let signed_in = wait_for("the management server answers", seconds(30), || {
        Http::new(&url).request("POST", "/api/v1/session", Some(&admin))?.success()
    });
    let cookie = signed_in.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    let api = Http::new(&url).header("cookie", cookie).header("x-homing-request", "1");
    let asked = json!({"name": "cli", "current": "correct horse"});
    let token = api.post("/api/v1/tokens", &asked).unwrap()["token"].as_str().unwrap().to_owned();
    fs::create_dir_all(home.join(".config/homing")).unwrap();
    write(&home.join(".config/homing/client.toml"), &format!("url = '{url}'\ntoken = '{token}'\n"));
    wait_for("both tunnel servers are reached", seconds(30), || {
        let servers = api.json("/api/v1/tunnel-servers")?;
        let all = servers.as_array().unwrap().iter().all(|server| server["reachable"] == true);
        if all { Ok(()) } else { Err(io::Error::other(servers.to_string())) }
    });

    // Steps 1 to 8 at the first.
    let typed = format!("{}\n{}\n", of_spare("oak"), of_spare("password"));
    let register = [
        "register",
        serial,
        "--server",
        "north",
        "--oak-file",
        "-",
        "--password-file",
        "-",
        "--name",
        "Gate",
    ];
    let (code, shown, said) = run(home, &register, &typed);
    assert_eq!(code, 0, "{shown}{said}");
    demo.api.post(&format!("/api/v1/simulated-cameras/{serial}/press"), &Value::Null).unwrap();
    let until_at = |server: &str| {
        wait_for(&format!("the device is at {server}"), seconds(60), || {
            let device = api.json(&format!("/api/v1/devices/{serial}"))?;
            let is_there = device["tunnel_server"] == server && device["connected"] == true;
            if is_there { Ok(()) } else { Err(io::Error::other(api.json("/api/v1/devices")?.to_string())) }
        });
    };
    until_at("north");
    let hardware = api.post("/api/v1/hardware", &json!({ "serial": serial })).unwrap();
    let camera = hardware["cameras"][0]["id"].as_i64().unwrap();
    let until_recorded_after = |moment: jiff::Timestamp| {
        wait_for("it is recorded", seconds(60), || {
            let camera = api.json(&format!("/api/v1/cameras/{camera}"))?;
            let last = camera["status"]["last_frame"].as_str().and_then(|at| at.parse().ok());
            let fresh = last.is_some_and(|last: jiff::Timestamp| last > moment);
            if fresh { Ok(()) } else { Err(io::Error::other(camera.to_string())) }
        });
    };
    until_recorded_after(jiff::Timestamp::now());
    let until_moved_from = |server: &str| {
        wait_for(&format!("the device has moved from {server}"), seconds(60), || {
            let (_, shown, _) = run(home, &["devices", "--state", "moved", "--server", server], "");
            if shown.contains("grey Moved") {
                Ok(())
            } else {
                Err(io::Error::other(api.json("/api/v1/devices")?.to_string()))
            }
        });
    };

    // There, and back, and recorded.
    let (code, shown, said) = run(home, &["move", serial, "south"], "");
    assert!(code == 0 && shown.contains("south"), "{code} {shown} {said}");
    until_at("south");
    until_moved_from("north");
    until_recorded_after(jiff::Timestamp::now());
    assert_eq!(api.json("/api/v1/hardware").unwrap()[0]["device"]["server"], "south");

    let (code, shown, said) = run(home, &["move", serial, "--undo"], "");
    assert_eq!(code, 0, "{shown}{said}");
    until_at("north");
    until_moved_from("south");
    let (code, shown, said) = run(home, &["release", serial, "--left-at", "south"], "");
    assert_eq!(code, 0, "{shown}{said}");
    until_recorded_after(jiff::Timestamp::now());
    let devices = api.json("/api/v1/devices").unwrap();
    assert_eq!(devices.as_array().unwrap().len(), 1, "{devices}");
    assert_eq!((&devices[0]["tunnel_server"], devices[0].get("moving")), (&json!("north"), None));
    management.terminate(seconds(10));
    south.terminate(seconds(10));
}
