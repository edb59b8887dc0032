//! `homing tunnel setup`, as an installer types it and as a script calls it.

use crate::harness::{Folder, Http, Process, homing, output, root, seconds, wait_for};
use std::{
    fs,
    io::Write,
    net::TcpListener,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// Runs the command, `typed` as its standard input: exit code, what it printed, what it said.
#[track_caller]
fn set_up(folder: &Path, arguments: &[&str], typed: &str) -> (i32, String, String) {
    let mut command = Command::new(homing());
    command.env_clear();
    set_up_by(command, folder, arguments, typed)
}

/// The same by a command that runs the program.
#[track_caller]
fn set_up_by(mut command: Command, folder: &Path, arguments: &[&str], typed: &str) -> (i32, String, String) {
    command.args(["tunnel", "setup", "--config"]).arg(folder.join("etc/homing.toml"));
    command.arg("--data").arg(folder.join("data")).args(arguments).current_dir(folder);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It may have ended before it has read.
    let _ = child.stdin.take().unwrap().write_all(typed.as_bytes());
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// A port of this machine that nobody listens on now.
fn free() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A file that is its owner's alone.
fn secret(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.display().to_string()
}

/// A dispatcher that runs, its CA's file, and the password of the account `shop`.
fn dispatcher(folder: &Path) -> (Process, String, PathBuf, String) {
    let (external, api) = (free(), free());
    let data = folder.join("dispatcher");
    let text = format!(
        "[dispatcher]\nexternal = '127.0.0.1:{external}'\napi = '127.0.0.1:{api}'\nnames = ['127.0.0.1']\ndata = '{}'\n",
        data.display()
    );
    let config = secret(folder, "dispatcher.toml", &text);
    let mut account = Command::new(homing());
    let account = output(account.args(["dispatcher", "account", "add", "shop", "--config", &config]));
    let mut run = Command::new(homing());
    let running = Process::spawn("dispatcher", run.args(["dispatcher", "--config", &config]));
    wait_for("the dispatcher listens", seconds(30), || std::net::TcpStream::connect(("127.0.0.1", api)));
    let password = String::from_utf8(account).unwrap().trim().to_owned();
    (running, format!("127.0.0.1:{api}"), data.join("dispatcher-ca.pem"), password)
}

/// The goal: who answers question by question is told at once what cannot be, and what each answer is for; then the file is
/// there, for its owner alone, with a CA and a password that is shown once; and a server runs with it.
#[test]
fn an_installer_answers_questions_and_the_server_runs() {
    let folder = Folder::new();
    let home = folder.path();
    let (_dispatcher, api, ca, account) = dispatcher(home);
    let (external, internal, rtsp) = (free(), free(), free());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    let typed = [
        "somewhere",                      // external: no address
        "192.0.2.77:8443",                // not of this machine
        &taken.to_string(),               // in use
        &format!("127.0.0.1:{external}"), // good
        &format!("127.0.0.1:{external}"), // internal: the same
        &format!("127.0.0.1:{internal}"), // good
        "http://127.0.0.1",               // public: no address of a device
        &format!("localhost:{external}"), // good, and leads back
        &format!("127.0.0.1:{internal}"), // RTSP gateway: the same
        &format!("127.0.0.1:{rtsp}"),     // good
        "",                               // inside TLS: off
        "perhaps",                        // whether user and password are asked for
        "",                               // yes
        "",                               // user: as suggested
        "too short",                      // password
        "",                               // a new one
        &api,                             // dispatcher
        "gone.pem",                       // its CA: no such file
        ca.to_str().unwrap(),             // good
        "shop",                           // account
        "not the password",               // refused by the dispatcher
        "shop",
        &account,
        "",
    ]
    .join("\n");
    let (code, printed, said) = set_up(home, &["--name", "harbour", "--no-service"], &typed);
    assert_eq!(code, 0, "{printed}{said}");
    for expected in [
        "an IP address and a port are wanted",
        "192.0.2.77 is not an address of this machine, which has",
        &format!("port {} of 127.0.0.1 is taken by another program", taken.port()),
        "same IP address and port",
        "at least 16 characters",
        "always uses TLS",
        &format!("the internal address is 127.0.0.1:{internal}, which is the same IP address and port"),
        "without a password",
        "yes or no",
        "cannot read gone.pem",
        "it does not know this account and password",
        "Several with commas",
    ] {
        assert!(said.contains(expected), "{expected:?} is not in {said}");
    }
    assert!(!said.contains("Warning") && !printed.contains("Warning"), "{said}{printed}");
    assert!(!said.contains(&account) && !printed.contains(&account), "{said}{printed}");
    let password = printed.lines().find_map(|line| line.strip_prefix("The password of vms is ")).unwrap();
    assert!(
        printed.contains(&format!("forward TCP localhost:{external} to 127.0.0.1:{external}")),
        "{printed}"
    );
    assert!(printed.contains(&format!("internal address http://127.0.0.1:{internal}")), "{printed}");
    assert!(printed.contains(&format!("players watch rtsp://127.0.0.1:{rtsp}/SERIAL")), "{printed}");

    let file = home.join("etc/homing.toml");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(home.join("data/tunnel-ca.pem").is_file());
    let mut command = Command::new(homing());
    let mut server = Process::spawn("tunnel", command.args(["tunnel", "--config"]).arg(&file));
    let asked = |password: &str| {
        let http = Http::new(&format!("http://127.0.0.1:{internal}")).basic("vms", password);
        http.json("/api/v1/server")
    };
    let server_says = wait_for("the server answers", seconds(30), || asked(password));
    assert_eq!(server_says["name"], "harbour", "{server_says}");
    assert!(asked("another").is_err());
    let gateway = format!("rtsp://127.0.0.1:{rtsp}/");
    let options = output(Command::new("curl").args(["--silent", "--show-error", "--include", &gateway]));
    assert!(options.starts_with(b"RTSP/1.0 200 OK"), "{}", String::from_utf8_lossy(&options));

    // While it runs, what is written is known, its ports are its own, and its address leads back.
    let (code, printed, said) = set_up(home, &["--yes"], "");
    assert_eq!(code, 0, "{printed}{said}");
    assert!(printed.contains("says all this already") && !printed.contains(password), "{printed}");
    assert!(!printed.contains("Warning"), "{printed}");
    assert!(server.terminate(seconds(10)).success());
}

/// The goal: a script gives everything by flags, and by the exit code and one sentence it knows what was wrong. What is
/// merely doubtful is a warning. A file that is there is replaced only by who says so, and its secrets are not shown.
#[test]
fn a_script_sets_up_by_flags_and_nothing_is_overwritten_unasked() {
    let folder = Folder::new();
    let home = folder.path();
    let (external, internal) = (format!("127.0.0.1:{}", free()), format!("127.0.0.1:{}", free()));
    let account = secret(home, "account", "battery\n");
    let password = secret(home, "password", "correct-horse-0815\n");
    let nowhere = format!("127.0.0.1:{}", free());
    let all = |more: &[&'static str]| {
        let mut flags = vec!["--yes", "--external", &external, "--internal", &internal, "--public", &nowhere];
        flags.extend(["--dispatcher", &nowhere, "--dispatcher-ca", "web", "--account", "shop"]);
        flags.extend(["--account-password-file", &account, "--password-file", &password]);
        flags.extend(more);
        let flags: Vec<String> = flags.into_iter().map(str::to_owned).collect();
        flags
    };
    let call = |flags: &[String]| {
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        set_up(home, &flags, "")
    };
    let with = |flag: &str, value: &str| {
        let mut flags = all(&[]);
        let at = flags.iter().position(|one| one == flag).unwrap();
        flags[at + 1] = value.to_owned();
        flags
    };
    let file = home.join("etc/homing.toml");

    // Nothing is asked, so something is missing.
    let (code, _, said) = set_up(home, &["--yes", "--external", &external, "--internal", &internal], "");
    assert!(
        code == 2 && (said.contains("--public is wanted") || said.contains("--dispatcher is wanted")),
        "{code} {said}"
    );
    let (code, _, said) = set_up(home, &[], "\n");
    assert!(code == 2 && said.contains("standard input has ended"), "{code} {said}");
    for (flags, expected) in [
        (with("--internal", &external), "same IP address and port"),
        (with("--external", "192.0.2.77:8443"), "not an address of this machine"),
        (with("--public", "a:1,b:2,c:3,d:4,e:5"), "at most 4"),
        (with("--password-file", "no-such-file"), "no-such-file"),
        (with("--password-file", &account), "at least 16 characters"),
    ] {
        let (code, _, said) = call(&flags);
        assert!(code == 1 && said.contains(expected), "{code} {said}");
        assert!(!file.exists(), "{said}");
    }

    // The firewall and the dispatcher may come later.
    let (code, printed, said) = call(&all(&[]));
    assert_eq!(code, 0, "{printed}{said}");
    assert!(printed.contains("Warning: the public address") && printed.contains("hairpin NAT"), "{printed}");
    assert!(printed.contains("Warning: the dispatcher could not be asked"), "{printed}");
    assert!(!printed.contains("correct-horse") && !said.contains("correct-horse"), "known to who gave it");
    let written = fs::read_to_string(&file).unwrap();
    assert!(
        written.contains("password = \"correct-horse-0815\"") && written.contains("battery"),
        "{written}"
    );

    // Again: nothing to do. Otherwise: refused with what would change, unless told.
    let (code, printed, _) = call(&all(&[]));
    assert!(code == 0 && printed.contains("says all this already"), "{code} {printed}");
    let another = secret(home, "another", "tr0ub4dor-and-3-more\n");
    let mut changed = with("--password-file", &another);
    changed.extend(["--user".to_owned(), "nvr".to_owned()]);
    let (code, _, said) = call(&changed);
    assert!(
        code == 1 && said.contains("--replace") && said.contains("tunnel.user: \"vms\" becomes \"nvr\""),
        "{code} {said}"
    );
    assert!(said.contains("tunnel.password changes") && !said.contains("tr0ub4dor"), "{said}");
    assert_eq!(fs::read_to_string(&file).unwrap(), written);
    changed.push("--replace".to_owned());
    let (code, printed, said) = call(&changed);
    assert_eq!(code, 0, "{printed}{said}");
    assert_eq!(fs::read_to_string(home.join("etc/homing.toml.before")).unwrap(), written);
    assert!(fs::read_to_string(&file).unwrap().contains("user = \"nvr\""));

    // A file of other roles is not lost.
    fs::write(&file, "[dispatcher]\nnames = ['a']\n").unwrap();
    let (code, _, said) = call(&changed);
    assert!(code == 1 && said.contains("for other roles, too"), "{code} {said}");
}

/// The goal: what the VMS needs is set by flags alone: on every address, names without which no certificate would fit are
/// insisted on, and a client that trusts the CA believes them; the RTSP gateway is there, plain and inside TLS; and a server
/// that asks for no password is told of by setup and at every start.
#[test]
fn a_script_sets_how_the_vms_is_served() {
    let folder = Folder::new();
    let home = folder.path();
    let account = secret(home, "account", "battery\n");
    let [external, internal, rtsp, rtsps] = [(); 4].map(|()| free());
    let (outside, everywhere) = (format!("127.0.0.1:{external}"), format!("0.0.0.0:{internal}"));
    let (rtsp, rtsps) = (format!("127.0.0.1:{rtsp}"), format!("127.0.0.1:{rtsps}"));
    let call = |more: &[&str]| {
        let mut flags =
            vec!["--yes", "--external", &outside, "--internal", &everywhere, "--public", &outside];
        flags.extend(["--dispatcher", "127.0.0.1:9", "--dispatcher-ca", "web", "--account", "shop"]);
        flags.extend(["--account-password-file", &account]);
        flags.extend(more);
        set_up(home, &flags, "")
    };
    let file = home.join("etc/homing.toml");
    for (flags, refused, expected) in [
        (&[][..], 2, "--name-inside is wanted"),
        (&["--name-inside", "https://sts.inside"], 1, "without a port"),
        (&["--name-inside", "0.0.0.0"], 1, "no address that anybody could call"),
        (&["--name-inside", "sts.inside", "--rtsp", &outside], 1, "the external address is"),
        (
            &["--name-inside", "sts.inside", "--rtsp", &rtsp, "--rtsps", &rtsp],
            1,
            "the RTSP gateway's address",
        ),
        (&["--credentials", "--no-credentials"], 2, "cannot be used with"),
    ] {
        let (code, _, said) = call(flags);
        assert!(code == refused && said.contains(expected), "{flags:?}: {code} {said}");
        assert!(!file.exists(), "{said}");
    }

    let open = ["--name-inside", "sts.inside,192.0.2.8", "--no-credentials"];
    let (code, printed, said) = call(&open);
    assert_eq!(code, 0, "{printed}{said}");
    let told = format!("credentials = false: whoever reaches {everywhere}");
    assert!(printed.contains(&format!("Warning: [tunnel.vms] {told}")), "{printed}");
    assert!(
        printed.contains(&format!("https://sts.inside:{internal}, without user and password")),
        "{printed}"
    );
    assert!(!printed.contains("The password of"), "{printed}");
    for _ in 0..2 {
        let mut command = Command::new(homing());
        let mut server = Process::spawn("tunnel", command.args(["tunnel", "--config"]).arg(&file));
        server.wait_for_line("tunnel server runs", seconds(30));
        let warned = server.logged().into_iter().find(|line| line.contains(&told));
        assert!(warned.as_ref().is_some_and(|line| line.contains(" WARN ")), "{warned:?}");
        let by_name = |name: &str| {
            let resolved = format!("{name}:{internal}:127.0.0.1");
            let mut curl = Command::new("curl");
            curl.args(["--silent", "--show-error", "--fail", "--cacert"])
                .arg(home.join("data/tunnel-ca.pem"));
            curl.args(["--resolve", &resolved, &format!("https://{name}:{internal}/api/v1/server")]);
            curl.output().unwrap()
        };
        let answer = by_name("sts.inside");
        assert!(answer.status.success(), "{answer:?}");
        let stranger = by_name("another.inside");
        assert!(String::from_utf8_lossy(&stranger.stderr).contains("another.inside"), "{stranger:?}");
        assert!(server.terminate(seconds(10)).success());
    }

    // Players sign in even then, with a password that is made; and all of it can be taken back.
    let gateway = [&open[..], &["--rtsp", &rtsp, "--rtsps", &rtsps, "--replace"]].concat();
    let (code, printed, said) = call(&gateway);
    assert_eq!(code, 0, "{printed}{said}");
    assert!(printed.contains("The password of vms is "), "{printed}");
    assert!(printed.contains(&format!("let the VMS in to TCP {rtsps}")), "{printed}");
    let mut command = Command::new(homing());
    let mut server = Process::spawn("tunnel", command.args(["tunnel", "--config"]).arg(&file));
    server.wait_for_line("RTSP gateway runs", seconds(30));
    assert!(server.terminate(seconds(10)).success());
    let (code, printed, said) = call(&["--credentials", "--rtsp", "", "--rtsps", "off", "--replace"]);
    assert_eq!(code, 0, "{printed}{said}");
    assert!(!printed.contains("Warning: [tunnel.vms]"), "{printed}");
    let written = fs::read_to_string(&file).unwrap();
    assert!(!written.contains("rtsp") && !written.contains("credentials"), "{written}");
    assert!(written.contains("names = [\"sts.inside\", \"192.0.2.8\"]"), "{written}");
}

/// A machine that systemd runs, whose `/etc` and `/run` are the folder's; its systemctl and systemd-sysusers write into
/// `calls` how they were called.
struct Machine<'a> {
    home: &'a Path,
}

impl Machine<'_> {
    /// Whom systemd-sysusers makes there; who is not root has no user but his own to give.
    const USER: u32 = 4711;

    fn new(home: &Path) -> Machine<'_> {
        for folder in ["bin", "etc", "run/systemd/system"] {
            fs::create_dir_all(home.join(folder)).unwrap();
        }
        fs::write(home.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
        let machine = Machine { home };
        let id = if rustix::process::geteuid().is_root() { Self::USER } else { 0 };
        machine.program("systemd-sysusers", &format!("echo homing:x:{id}:{id}::/:/bin/false >> /etc/passwd"));
        machine.program("systemctl", "");
        machine
    }

    fn program(&self, name: &str, does: &str) {
        let path = self.home.join("bin").join(name);
        let calls = self.home.join("calls");
        let script = format!("#!/bin/sh\necho {name} \"$@\" >> '{}'\n{does}\n", calls.display());
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[track_caller]
    fn set_up(&self, typed: &str) -> (i32, String, String) {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]);
        if !rustix::process::geteuid().is_root() {
            command.arg("--map-root-user");
        }
        let script = r#"mount --bind etc /etc && mount --bind run /run && exec "$@""#;
        command.args(["sh", "-c", script, "sh"]).arg(homing());
        let path = std::env::var("PATH").unwrap();
        command.env_clear().env("PATH", format!("{}:{path}", self.home.join("bin").display()));
        set_up_by(command, self.home, &[], typed)
    }

    /// What was called, and forgets it.
    fn called(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.home.join("calls")).unwrap_or_default();
        let _ = fs::remove_file(self.home.join("calls"));
        calls.lines().map(str::to_owned).collect()
    }
}

/// The goal: an installer is asked whether the service is to be installed. No leaves the machine as it is; yes makes the
/// user, gives it the files and starts the service; and where systemd refuses, its words are shown, and what was made
/// before is not lost.
#[test]
fn an_installer_takes_the_service_or_leaves_it() {
    let folder = Folder::new();
    let home = folder.path();
    let machine = Machine::new(home);
    let unit = home.join("etc/systemd/system/homing@.service");
    let external = format!("127.0.0.1:{}", free());
    let internal = format!("0.0.0.0:{}", free());
    let first = [
        &external,
        &internal,
        "sts.inside:8081", // name inside: no port
        "sts.inside",
        &external, // public
        "",        // RTSP gateway: off
        "",        // inside TLS: off
        "no",      // user and password; then there is nothing to ask about them
        "127.0.0.1:9",
        "web",
        "shop",
        "battery",
        "perhaps", // the service
        "no",
    ];
    let (code, printed, said) = machine.set_up(&first.join("\n"));
    assert_eq!(code, 0, "{printed}{said}");
    for expected in
        ["Name inside", "without a port", "Warning: [tunnel.vms] credentials = false", "yes or no"]
    {
        assert!(said.contains(expected), "{expected:?} is not in {said}");
    }
    assert!(printed.contains("https://sts.inside:") && printed.contains("To start it: homing"), "{printed}");
    assert_eq!(machine.called(), [""; 0]);
    assert!(!unit.exists());

    // Again, with nothing but what the file says, until the last question.
    let again = format!("{}yes\n", "\n".repeat(11));
    let (code, printed, said) = machine.set_up(&again);
    assert_eq!(code, 0, "{printed}{said}");
    assert!(printed.contains("says all this already"), "{printed}");
    assert!(printed.contains("It runs: journalctl -u homing@tunnel"), "{printed}");
    let calls = [
        "systemd-sysusers /etc/sysusers.d/homing.conf",
        "systemctl daemon-reload",
        "systemctl enable homing@tunnel.service",
        "systemctl restart homing@tunnel.service",
    ];
    assert_eq!(machine.called(), calls);
    assert!(fs::read_to_string(&unit).unwrap().contains("User=homing"), "{}", unit.display());
    assert_eq!(
        fs::read_to_string(home.join("etc/sysusers.d/homing.conf")).unwrap(),
        fs::read_to_string(root().join("systemd/homing.conf")).unwrap()
    );
    let own = rustix::process::geteuid();
    let user = if own.is_root() { Machine::USER } else { own.as_raw() };
    let config = fs::metadata(home.join("etc/homing.toml")).unwrap();
    assert_eq!((config.uid(), config.mode() & 0o777), (own.as_raw(), 0o640));
    for entry in ["data", "data/tunnel-ca.pem"].map(|name| fs::metadata(home.join(name)).unwrap()) {
        assert_eq!(entry.uid(), user);
    }
    if own.is_root() {
        assert_eq!(config.gid(), Machine::USER, "the service reads it");
    }

    machine.program("systemctl", r#"[ "$1" != restart ] || { echo Job failed. >&2; exit 1; }"#);
    let (code, printed, said) = machine.set_up(&again);
    assert_eq!(code, 1, "{printed}{said}");
    assert_eq!(machine.called(), calls);
    assert!(said.contains("not installed: systemctl restart homing@tunnel.service: Job failed."), "{said}");
    assert!(printed.contains("To start it: homing") && !printed.contains("It runs"), "{printed}");
}

/// The goal: the units of the repository are such as systemd takes, with little that a service could do beyond its work;
/// and setup installs one that names this program, its file, its folder and every role's master key.
#[test]
fn units_are_well_formed_and_hardened() {
    let folder = Folder::new();
    let home = folder.path();
    let units = home.join("units");
    let account = secret(home, "account", "battery\n");
    let (external, internal) = (format!("127.0.0.1:{}", free()), format!("127.0.0.1:{}", free()));
    let flags = [
        "--yes",
        "--external",
        &external,
        "--internal",
        &internal,
        "--public",
        &external,
        "--dispatcher",
        "127.0.0.1:9",
        "--dispatcher-ca",
        "web",
        "--account",
        "shop",
        "--account-password-file",
        &account,
        "--service",
        "--units",
        units.to_str().unwrap(),
    ];
    let (code, printed, said) = set_up(home, &flags, "");
    assert_eq!(code, 0, "{printed}{said}");
    assert!(printed.contains("homing@.service is installed"), "{printed}");
    let unit = fs::read_to_string(units.join("homing@.service")).unwrap();
    let start = format!(
        "ExecStart=\"{}\" %i --config \"{}\"",
        homing().display(),
        home.join("etc/homing.toml").display()
    );
    assert!(unit.contains(&start), "{start}\n{unit}");
    assert!(unit.contains(&format!("ReadWritePaths=\"{}\"", home.join("data").display())), "{unit}");
    for role in ["dispatcher", "tunnel", "recording", "management"] {
        for key in [format!("homing-{role}-master-key\n"), format!("homing-{role}-master-key-old\n")] {
            assert!(unit.contains(&format!("LoadCredential={key}")), "{key}{unit}");
        }
    }
    fs::copy(units.join("homing@.service"), units.join("homing@tunnel.service")).unwrap();

    // As they are in packages, with a program that is there.
    let agent = fs::read_to_string(root().join("systemd/homing-agent.service")).unwrap();
    fs::write(units.join("homing-agent.service"), agent.replace("/usr/local/bin/homing-agent", "/bin/true"))
        .unwrap();
    for name in ["homing@tunnel.service", "homing-agent.service"] {
        let unit = units.join(name);
        let verified = Command::new("systemd-analyze").arg("verify").arg(&unit).output().unwrap();
        let complaints = String::from_utf8_lossy(&verified.stderr);
        assert!(verified.status.success() && complaints.is_empty(), "{name}: {complaints}");
        // 0 is nothing that it may do, 10 is everything.
        let mut security = Command::new("systemd-analyze");
        output(security.args(["security", "--offline=true", "--threshold=20"]).arg(&unit));
    }
}
