//! Chromium for tests: the few commands of WebDriver that they need, over plain HTTP and JSON.
//!
//! <https://www.w3.org/TR/webdriver2/>. An element is named by a CSS selector each time it is used, since
//! the page replaces its elements while it lives.

use crate::harness::{Folder, Http, Process, seconds, wait_for};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use std::{fs, io, path::Path, process::Command, time::Duration};

/// How an element is written in WebDriver's JSON.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
/// Reads a frame number from a canvas (`camera/src/strip.rs` describes it).
pub const STRIP: &str = include_str!("../../../camera/src/strip.mjs");
/// How long the page may take to show what was asked for.
const PATIENCE: Duration = seconds(20);

/// A browser with one window.
pub struct Browser {
    http: Http,
    session: String,
    driver: Process,
    /// Below the driver, so that it is removed after the browser has ended.
    _profile: Folder,
}

impl Browser {
    /// Starts one whose window has this size in CSS pixels.
    pub fn start(width: u32, height: u32) -> Browser {
        let profile = Folder::new();
        let mut driver = Process::spawn(
            "chromedriver",
            Command::new("chromedriver").arg("--port=0").env("TMPDIR", profile.path()),
        );
        let line = driver.wait_for_line("started successfully on port", seconds(20));
        let port = line.rsplit(' ').next().expect("a last word").trim_end_matches('.').to_owned();
        let http = Http::new(&format!("http://127.0.0.1:{port}"));
        let arguments = [
            // Tests run as root, in containers without user namespaces or much shared memory.
            "--no-sandbox".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--headless=new".to_owned(),
            "--disable-gpu".to_owned(),
            "--mute-audio".to_owned(),
            "--autoplay-policy=no-user-gesture-required".to_owned(),
            format!("--user-data-dir={}", profile.path().display()),
            format!("--window-size={width},{height}"),
        ];
        let capabilities = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let answer = http.post("/session", &capabilities).expect("a browser");
        let session = answer["value"]["sessionId"].as_str().expect("a session").to_owned();
        Browser { http, session: format!("/session/{session}"), driver, _profile: profile }
    }

    /// Goes to a page.
    #[track_caller]
    pub fn open(&self, url: &str) {
        self.post("/url", &json!({"url": url})).unwrap();
    }

    /// Signs in at the management server's page.
    #[track_caller]
    pub fn sign_in(&self, url: &str, user: &str, password: &str) {
        self.open(url);
        self.enter("[data-testid=user]", user);
        self.enter("[data-testid=password]", password);
        self.click("[data-testid=sign-in]");
        self.text("[data-testid=tree]");
    }

    /// Clicks an element, once it is there and can be clicked.
    #[track_caller]
    pub fn click(&self, selector: &str) {
        wait_for(&format!("click on {selector}"), PATIENCE, || {
            self.post(&format!("/element/{}/click", self.element(selector)?), &json!({}))
        });
    }

    /// Clicks inside an element: so far across its width (0 to 1), in the middle of its height.
    #[track_caller]
    pub fn click_at(&self, selector: &str, across: f64) {
        wait_for(&format!("click in {selector}"), PATIENCE, || {
            let element = self.element(selector)?;
            let place = self.get(&format!("/element/{element}/rect"))?;
            // Offsets are from the element's centre.
            let x = (place["width"].as_f64().unwrap_or_default() * (across - 0.5)).round();
            let actions = json!([
                {"type": "pointerMove", "duration": 0, "origin": {ELEMENT: element}, "x": x, "y": 0},
                {"type": "pointerDown", "button": 0},
                {"type": "pointerUp", "button": 0},
            ]);
            self.post(
                "/actions",
                &json!({"actions": [{"type": "pointer", "id": "mouse", "actions": actions}]}),
            )
        });
    }

    /// Replaces what stands in an input.
    #[track_caller]
    pub fn enter(&self, selector: &str, text: &str) {
        wait_for(&format!("type into {selector}"), PATIENCE, || {
            let element = self.element(selector)?;
            self.post(&format!("/element/{element}/clear"), &json!({}))?;
            self.post(&format!("/element/{element}/value"), &json!({"text": text}))
        });
    }

    /// Chooses a file, as in the dialog that a browser shows for it.
    #[track_caller]
    pub fn choose_file(&self, selector: &str, file: &Path) {
        wait_for(&format!("choose a file at {selector}"), PATIENCE, || {
            let element = self.element(selector)?;
            self.post(&format!("/element/{element}/value"), &json!({"text": file}))
        });
    }

    /// Waits until an element is there, and gives its visible text.
    #[track_caller]
    pub fn text(&self, selector: &str) -> String {
        let text = wait_for(&format!("{selector} is on the page"), PATIENCE, || {
            self.get(&format!("/element/{}/text", self.element(selector)?))
        });
        text.as_str().expect("text").to_owned()
    }

    /// Waits until an element's text holds `part`.
    #[track_caller]
    pub fn wait_for_text(&self, selector: &str, part: &str, within: Duration) {
        wait_for(&format!("{selector} says {part:?}"), within, || {
            let text = self.get(&format!("/element/{}/text", self.element(selector)?))?;
            let text = text.as_str().unwrap_or_default();
            if text.contains(part) { Ok(()) } else { Err(io::Error::other(format!("it says {text:?}"))) }
        });
    }

    /// Runs the body of a JavaScript function and gives what it returns.
    ///
    /// # Errors
    /// When it throws.
    pub fn run(&self, script: &str, arguments: &[Value]) -> io::Result<Value> {
        self.post("/execute/sync", &json!({"script": script, "args": arguments}))
    }

    /// The frame number in the picture that a video element shows now, as people see it.
    ///
    /// # Errors
    /// When there is no picture, or no number that can be read.
    pub fn frame(&self, video: &str) -> io::Result<u32> {
        let script = format!(
            "{STRIP}
            const video = document.querySelector(arguments[0]);
            if (!video || video.readyState < 2) return null;
            const canvas = document.createElement('canvas');
            [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
            const context = canvas.getContext('2d');
            context.drawImage(video, 0, 0);
            return readStrip(context.getImageData(0, 0, canvas.width, canvas.height));"
        );
        let frame = self.run(&script.replace("export function", "function"), &[json!(video)])?;
        let frame = frame.as_u64().and_then(|frame| u32::try_from(frame).ok());
        frame.ok_or_else(|| io::Error::other("no readable picture"))
    }

    /// Gives what the page is seen in this size, as a telephone would; windows do not get that narrow.
    pub fn resize(&self, width: u32, height: u32) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        let command = json!({"cmd": "Emulation.setDeviceMetricsOverride", "params": size});
        self.post("/goog/cdp/execute", &command).unwrap();
    }

    /// Saves a picture of the window.
    pub fn screenshot(&self, file: &Path) {
        let picture = self.get("/screenshot").unwrap();
        fs::write(file, STANDARD.decode(picture.as_str().expect("base64")).unwrap()).unwrap();
    }

    /// What scripts complained about (level SEVERE) since last asked.
    pub fn complaints(&self) -> Vec<String> {
        let log = self.post("/se/log", &json!({"type": "browser"})).unwrap();
        let entries = log.as_array().cloned().unwrap_or_default();
        let severe = entries.iter().filter(|entry| entry["level"] == "SEVERE");
        severe.map(|entry| entry["message"].as_str().unwrap_or_default().to_owned()).collect()
    }

    fn element(&self, selector: &str) -> io::Result<String> {
        let found = self.post("/element", &json!({"using": "css selector", "value": selector}))?;
        found[ELEMENT].as_str().map(str::to_owned).ok_or_else(|| io::Error::other("no element"))
    }

    fn post(&self, path: &str, body: &Value) -> io::Result<Value> {
        Ok(self.http.post(&format!("{}{path}", self.session), body)?["value"].take())
    }

    fn get(&self, path: &str) -> io::Result<Value> {
        Ok(self.http.json(&format!("{}{path}", self.session))?["value"].take())
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let place = std::env::temp_dir().join(format!("homing-browser-{}.png", std::process::id()));
            if let Ok(picture) = self.get("/screenshot") {
                let picture = STANDARD.decode(picture.as_str().unwrap_or_default()).unwrap_or_default();
                if fs::write(&place, picture).is_ok() {
                    eprintln!("the page as it was: {}", place.display());
                }
            }
        }
        // Ends the browser; its driver then has nothing left to end.
        let _ = self.http.request("DELETE", &self.session, None);
        self.driver.end_with_children(seconds(10));
    }
}

/// The goal: the client does what it says, on a page that is known.
#[test]
fn a_page_is_driven_and_seen() {
    let folder = Folder::new();
    let browser = Browser::start(800, 600);
    browser.open(
        "data:text/html,<body style='background:lime'><input id=a><button \
         onclick='b.textContent=a.value.toUpperCase()'>go</button><p id=b>",
    );
    browser.enter("input", "hello");
    browser.click("button");
    browser.wait_for_text("p", "HELLO", seconds(5));
    assert_eq!(browser.run("return arguments[0] + innerWidth", &[json!(1)]).unwrap(), json!(801));
    assert!(browser.run("throw new Error('no')", &[]).is_err());
    browser.screenshot(&folder.join("page.png"));
    assert!(fs::read(folder.join("page.png")).unwrap().starts_with(b"\x89PNG"));
    assert!(browser.complaints().is_empty());
    browser.run("setTimeout(() => { throw new Error('noticed') })", &[]).unwrap();
    wait_for("the page's own errors are seen", seconds(5), || {
        browser.complaints().into_iter().find(|line| line.contains("noticed")).ok_or("nothing")
    });
}
