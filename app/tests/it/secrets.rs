//! Secrets stay where they belong: the whole flow with its mistakes at level trace, and then every secret of it is looked
//! for, in every notation, in everything that anybody gets to see.
//!
//! The demo is a process of its own with one log for all roles, agents and libraries: nothing here can make it see less
//! than an administrator would.

use crate::{
    harness::{Demo, Folder, Http, seconds},
    system::press,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// With characters that URLs, forms and JSON write differently.
const AWKWARD: &str = "Geheim&Wort/5150 +ü";

/// Shorter ones are found everywhere by accident.
const SHORTEST: usize = 12;

/// Logged by each at level trace or debug; a crate that is not heard would hide what it says.
const HEARD: [&str; 9] = [
    "homing_dispatcher",
    "homing_tunnel",
    "homing_recording",
    "homing_management",
    "homing_agent",
    "homing_uplink",
    "hyper",
    "h2",
    "sqlx",
];

/// What is looked for, and what it is.
struct Secrets(Vec<(String, String)>);

impl Secrets {
    /// A text, as it is written in all the places where text is.
    fn add(&mut self, what: &str, secret: &str) {
        let percent = |space: &str, also: &[u8]| -> String {
            let written = |byte: u8| match byte {
                b' ' => space.to_owned(),
                byte if byte.is_ascii_alphanumeric() || also.contains(&byte) => char::from(byte).to_string(),
                byte => format!("%{byte:02X}"),
            };
            secret.bytes().map(written).collect()
        };
        let json = serde_json::to_string(secret).expect("text is JSON");
        let mut forms = vec![
            secret.to_owned(),
            percent("+", b"-._*"),
            percent("%20", b"-._~"),
            percent("%20", b"-._~/&+"),
            json.trim_matches('"').to_owned(),
            secret.replace('&', "&amp;"),
            format!("{secret:?}").trim_matches('"').to_owned(),
            STANDARD.encode(secret),
        ];
        forms.sort();
        forms.dedup();
        self.0.extend(
            forms.into_iter().filter(|form| form.len() >= SHORTEST).map(|form| (what.to_owned(), form)),
        );
    }

    /// User and password, as HTTP Basic has them, too.
    fn add_password(&mut self, what: &str, user: &str, password: &str) {
        self.add(what, password);
        self.0.push((format!("{what}, Basic"), STANDARD.encode(format!("{user}:{password}"))));
    }

    /// An OAK, with and without dashes.
    fn add_oak(&mut self, what: &str, oak: &str) {
        let plain = oak.replace('-', "");
        for oak in [oak.to_owned(), oak.to_lowercase(), plain.to_lowercase(), plain] {
            self.add(what, &oak);
        }
    }

    /// A key's bytes.
    fn add_key(&mut self, what: &str, key: &[u8]) {
        let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        let list = format!("{key:?}");
        for form in [hex.to_uppercase(), hex, STANDARD.encode(key), list.trim_matches(['[', ']']).to_owned()]
        {
            self.0.push((what.to_owned(), form));
        }
    }

    /// A PEM file's private key: each of its lines that is not the same for all keys.
    fn add_pem(&mut self, what: &str, pem: &str) {
        // Agents keep theirs within JSON.
        let pem = pem.replace("\\n", "\n");
        let (_, key) = pem.split_once("PRIVATE KEY-----").expect("a private key");
        let (key, _) = key.split_once("-----END").expect("its end");
        for line in key.lines().filter(|line| line.len() >= 40).skip(1) {
            self.0.push((what.to_owned(), line.to_owned()));
        }
        let der: String = key.lines().collect();
        self.add_key(what, &STANDARD.decode(der).expect("PEM is base64"));
    }

    /// The first that is in there: what it is, never the secret itself.
    fn found_in(&self, bytes: &[u8]) -> Option<&str> {
        let is_in = |secret: &str| bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        self.0.iter().find(|(_, secret)| is_in(secret)).map(|(what, _)| what.as_str())
    }

    /// As fast as a log of a hundred thousand lines wants it.
    fn found_in_text<'a>(&self, text: &'a str) -> Option<(&str, &'a str)> {
        let at =
            self.0.iter().find_map(|(what, secret)| text.find(secret.as_str()).map(|at| (what.as_str(), at)));
        at.map(|(what, at)| (what, text[..at].rsplit('\n').next().unwrap_or_default()))
    }
}

/// Goal: what looks for secrets finds them in each notation, so that its silence means something.
#[test]
fn a_planted_secret_is_found_in_every_notation() {
    let mut secrets = Secrets(Vec::new());
    secrets.add_password("password", "root", AWKWARD);
    secrets.add_oak("OAK", "0A1B-2C3D-4E5F");
    secrets.add_key("key", &[7, 250, 3, 9, 100, 101, 102, 103, 104, 1, 2, 3, 4, 5, 6, 7]);
    for line in [
        "TRACE homing_tunnel: Geheim&Wort/5150 +ü".to_owned(),
        "/admin/dispatch.cgi?pass=Geheim%26Wort%2F5150%20%2B%C3%BC&x".to_owned(),
        "pass=Geheim%26Wort%2F5150+%2B%C3%BC".to_owned(),
        format!("authorization: Basic {}", STANDARD.encode(format!("root:{AWKWARD}"))),
        "oak=0a1b2c3d4e5f".to_owned(),
        "oak=0A1B-2C3D-4E5F".to_owned(),
        "key 07fa03096465666768010203040506".to_owned() + "07",
        "[7, 250, 3, 9, 100, 101, 102, 103, 104, 1, 2, 3, 4, 5, 6, 7]".to_owned(),
    ] {
        assert!(secrets.found_in_text(&format!("a\n{line}\nb")).is_some(), "{line}");
        assert!(secrets.found_in(line.as_bytes()).is_some(), "{line}");
    }
    assert!(secrets.found_in_text("a device of root's").is_none());
}

/// Goal: not even at level trace does a password, an OAK, a token, a session or a key reach the log, through the whole flow
/// and its mistakes; nor an answer to a mistake, the metrics, or the program's arguments; and none lies readable in a folder.
#[test]
fn secrets_are_never_shown_nor_stored_readable() {
    let folder = Folder::new();
    let data = folder.join("data");
    let demo = Demo::start_logging(&data, &["--cameras", "2"], "trace");
    demo.wait_for_recording(jiff::Timestamp::now(), seconds(90));
    let mut secrets = Secrets(Vec::new());
    let mut answers: Vec<(String, Vec<u8>)> = Vec::new();
    secrets.add_password("a wrong password", "root", AWKWARD);
    secrets.add_oak("a wrong OAK", "BADC-0FFE-E000");

    // The page's own doors, with a right and a wrong password.
    let page = Http::new(demo.text("/url"));
    for password in [AWKWARD, demo.text("/password")] {
        let asked = json!({"user": demo.text("/user"), "password": password});
        let answer = page.request("POST", "/api/v1/session", Some(&asked)).unwrap();
        if let Some(cookie) = answer.header("set-cookie").and_then(|cookie| cookie.split([';', '=']).nth(1)) {
            secrets.add("a session", cookie);
            let session = page.clone().header("cookie", cookie.to_owned()).header("x-homing-request", "1");
            let asked = json!({"name": "test", "current": AWKWARD});
            let refused = session.request("POST", "/api/v1/tokens", Some(&asked)).unwrap();
            answers.push(("a token with a wrong password".into(), refused.body));
        }
        answers.push(("sign in".into(), answer.body));
    }
    let token = page.clone().sign_in(demo.text("/user"), demo.text("/password"));
    let made =
        token.post("/api/v1/tokens", &json!({"name": "more", "current": demo.text("/password")})).unwrap();
    secrets.add("a token", made["token"].as_str().expect("a token"));

    // Registrations with everything wrong, and one that is right with an awkward password.
    let spare = demo.info["cameras"][1].clone();
    let text = |key: &str| spare[key].as_str().expect("text").to_owned();
    let entry =
        |serial: &str, oak: &str| json!({"serial": serial, "oak": oak, "user": "root", "password": AWKWARD});
    let mut unknown_key = entry(&text("serial"), &text("oak"));
    unknown_key["pass"] = json!(AWKWARD);
    for (what, asked) in [
        ("a wrong OAK", entry(&text("serial"), "BADC-0FFE-E000")),
        ("an OAK that is none", entry(&text("serial"), &format!("BADC-0FFE-E000 {AWKWARD}"))),
        ("a password as a serial number", entry(AWKWARD, &text("oak"))),
        ("a key that does not exist", unknown_key),
        ("a list where a text is wanted", json!({"serial": [AWKWARD], "password": {"x": AWKWARD}})),
        ("a text where an object is wanted", json!(AWKWARD)),
    ] {
        let answer = demo.api.request("POST", "/api/v1/devices", Some(&asked)).unwrap();
        assert!(what == "a wrong OAK" || answer.status >= 400, "{what}: {}", answer.status);
        answers.push((what.to_owned(), answer.body));
    }
    press(&text("press"));
    // Directly at the tunnel server, with secrets where they do not belong.
    let internal = Http::new(&format!("http://{}", demo.text("/tunnel/internal")));
    let known = internal.clone().basic(demo.text("/tunnel/user"), demo.text("/tunnel/password"));
    known.json("/api/v1/devices").unwrap();
    let query = "pass=Geheim%26Wort%2F5150%20%2B%C3%BC&oak=BADC0FFEE000";
    for (what, http) in
        [("known", &known), ("wrong", &internal.clone().basic("root", AWKWARD)), ("nobody", &internal)]
    {
        for path in ["/admin/dispatch.cgi?action=register&", "/api/v1/devices?", "/nowhere?"] {
            let answer = http.request("GET", &format!("{path}{query}"), None).unwrap();
            answers.push((format!("{what}, {path}"), answer.body));
        }
        let answer =
            http.request("POST", "/api/v1/devices", Some(&entry("nonsense", "BADC-0FFE-E000"))).unwrap();
        answers.push((format!("{what}, nonsense"), answer.body));
    }
    answers.push(("metrics".into(), demo.api.get("/metrics").unwrap().body));

    for pointer in ["/password", "/token", "/tunnel/password"] {
        secrets.add(pointer, demo.text(pointer));
    }
    secrets.add_password("tunnel", demo.text("/tunnel/user"), demo.text("/tunnel/password"));
    for camera in demo.info["cameras"].as_array().expect("cameras") {
        let text = |key: &str| camera[key].as_str().expect("text").to_owned();
        secrets.add_oak("a camera's OAK", &text("oak"));
        secrets.add_password("a camera's password", &text("user"), &text("password"));
    }
    let files = files_in(&data);
    let mut keys = 0;
    for file in &files {
        let name = file.strip_prefix(&data).unwrap().display().to_string();
        if name.ends_with("master.key") {
            secrets.add_key(&name, &fs::read(file).unwrap());
            keys += 1;
        } else if let Ok(pem) = fs::read_to_string(file)
            && pem.contains("PRIVATE KEY-----")
        {
            secrets.add_pem(&name, &pem);
            keys += 1;
        }
    }
    assert!(keys >= 5, "master keys, CA keys and devices' keys: {keys} in {files:?}");

    let log = demo.process.logged().join("\n");
    for target in HEARD {
        let heard = [format!("TRACE {target}"), format!("DEBUG {target}"), format!(" {target}::")];
        assert!(heard.iter().any(|heard| log.contains(heard)), "nothing of {target} is in the log");
    }
    if let Some((what, before)) = secrets.found_in_text(&log) {
        panic!("{what} is in the log, behind: {before}");
    }
    for (what, answer) in &answers {
        // What a sign-in answers with is meant for who signed in; it holds no secret either.
        assert_eq!(secrets.found_in(answer), None, "in the answer to: {what}");
    }
    for argument in ["cmdline", "environ"] {
        let seen = fs::read(format!("/proc/{}/{argument}", demo.process.id())).unwrap();
        assert!(!seen.is_empty());
        assert_eq!(secrets.found_in(&seen), None, "in the program's {argument}");
    }
    for file in
        files.iter().filter(|file| ["sqlite", "sqlite-wal", "sqlite-shm"].iter().any(|end| is_a(file, end)))
    {
        let name = file.strip_prefix(&data).unwrap().display();
        assert_eq!(secrets.found_in(&fs::read(file).unwrap_or_default()), None, "readable in {name}");
    }
}

fn is_a(file: &Path, extension: &str) -> bool {
    file.extension().is_some_and(|known| known == extension)
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for entry in entries.filter_map(Result::ok) {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files_in(&entry.path())),
            _ => found.push(entry.path()),
        }
    }
    found
}
