//! The page in Chromium, as a newcomer uses it: the unregistered camera of the demo, from its label to
//! live picture and playback, without a reload.

use crate::{
    harness::{Demo, Folder, seconds, wait_for},
    webdriver::Browser,
};
use homing_camera::scene::Timing;
use jiff::Timestamp;
use serde_json::Value;
use std::io;

/// Pictures a second of the demo's cameras.
const TIMING: Timing = Timing { fps: 8 };
/// The video of a camera's page.
const VIDEO: &str = "[data-testid=video]";

/// The goal: sign in; register the spare camera with what its label says; press; watch its state
/// change; add it by the wizard; see live pixels move; click into the timeline and see an older frame;
/// back to live with one click.
#[test]
fn a_newcomer_registers_presses_adds_watches_and_plays_back() {
    let folder = Folder::new();
    let browser = Browser::start(1280, 900);
    let demo = Demo::start(&folder.join("data"), &["--cameras", "2"]);
    let spare = demo.info["cameras"][1].clone();
    let of_spare = |key: &str| spare[key].as_str().expect("text").to_owned();
    let serial = of_spare("serial");

    // Nothing is shown to who has not signed in; a wrong password says so.
    browser.open(demo.text("/url"));
    browser.enter("[data-testid=user]", demo.text("/user"));
    browser.enter("[data-testid=password]", "not the password");
    browser.click("[data-testid=sign-in]");
    browser.wait_for_text("[data-testid=sign-in-error]", "not correct", seconds(10));
    let _ = browser.complaints();
    browser.sign_in(demo.text("/url"), demo.text("/user"), demo.text("/password"));
    browser.run("window.sameVisit = true", &[]).unwrap();

    // The demo's own camera comes by itself: its state changes while we look.
    let first = demo.info["cameras"][0]["serial"].as_str().expect("text").to_owned();
    browser.wait_for_text(&format!("[data-testid=state-{first}]"), "Connected", seconds(60));

    // Step 1, from the label.
    browser.click("[data-testid=open-labels]");
    let label = format!("[data-testid=label-{serial}]");
    assert_eq!(browser.text(&format!("{label} [data-testid=label-serial]")), serial);
    let oak = browser.text(&format!("{label} [data-testid=label-oak]"));
    assert_eq!(oak, of_spare("oak"));
    browser.click("[data-testid=register-device]");
    browser.enter("[data-testid=serial]", &serial.to_lowercase());
    browser.enter("[data-testid=oak]", "0000-0000-000");
    browser.enter("[data-testid=device-password]", &of_spare("password"));
    browser.enter("[data-testid=device-name]", "Mine");
    browser.wait_for_text("[data-testid=register-dialog]", "11 digits where there should be 12", seconds(5));
    browser.enter("[data-testid=oak]", &oak);
    browser.click("[data-testid=register-submit]");
    let state = format!("[data-testid=state-{serial}]");
    browser.wait_for_text(&state, "Not connected", seconds(10));

    // Steps 3 to 7, watched.
    browser.click("[data-testid=open-labels]");
    browser.click(&format!("{label} [data-testid=press]"));
    browser.wait_for_text(&state, "Ready to add", seconds(30));

    // Step 8.
    browser.click("[data-testid=add-hardware]");
    browser.click("[data-testid=add-next]");
    browser.click(&format!("[data-testid=pick-{serial}]"));
    browser.click("[data-testid=add-selected]");
    browser.wait_for_text("[data-testid=add-results]", "Added", seconds(20));
    browser.click("[data-testid=add-finish]");
    browser.wait_for_text(&state, "Connected", seconds(10));

    // Live: the picture moves, and is of now.
    let live = wait_for("a live picture", seconds(20), || browser.frame(VIDEO));
    let later = wait_for("the picture moves", seconds(5), || {
        browser.frame(VIDEO).and_then(|frame| (frame > live).then_some(frame).ok_or_else(|| frozen(frame)))
    });
    assert_live(later);

    // Playback: an older frame, and it moves too.
    let earlier = later;
    wait_for("enough is recorded to go back to", seconds(30), || {
        let now = TIMING.frame_at(Timestamp::now().as_microsecond());
        if now > earlier + 15 * TIMING.fps { Ok(()) } else { Err("not yet") }
    });
    // From ten minutes to half of one, so that the middle is within what was recorded.
    for _ in 0..4 {
        browser.click("[aria-label='Zoom in']");
    }
    // What is clicked at, in the middle of the scale; the scale moves on with the time.
    let range = browser.run(
        "const scale = document.querySelector('[data-testid=timeline]');
         return ['aria-valuemin', 'aria-valuemax'].map((end) => Number(scale.getAttribute(end)));",
        &[],
    );
    let [begin_s, end_s]: [i64; 2] = serde_json::from_value(range.unwrap()).unwrap();
    let clicked = TIMING.frame_at((begin_s + end_s) * 1_000_000 / 2);
    assert!(clicked + 10 * TIMING.fps < now(), "the scale is too narrow: {begin_s} to {end_s}");
    browser.click_at("[data-testid=timeline]", 0.5);
    let old = wait_for("the timeline leads to the frame that was clicked at", seconds(15), || {
        let is_clicked = |frame: &u32| frame.abs_diff(clicked) <= 3 * TIMING.fps;
        browser.frame(VIDEO).and_then(|frame| Some(frame).filter(is_clicked).ok_or_else(|| frozen(frame)))
    });
    wait_for("playback moves", seconds(10), || {
        browser.frame(VIDEO).and_then(|frame| {
            let plays = frame > old && frame < now() - 2 * TIMING.fps;
            plays.then_some(()).ok_or_else(|| frozen(frame))
        })
    });
    browser.click("[data-testid=live]");
    wait_for("live again", seconds(15), || {
        browser
            .frame(VIDEO)
            .and_then(|frame| (frame + 2 * TIMING.fps > now()).then_some(()).ok_or_else(|| frozen(frame)))
    });

    assert_eq!(browser.run("return window.sameVisit === true", &[]).unwrap(), true, "the page was reloaded");
    let complaints = browser.complaints();
    assert!(complaints.is_empty(), "the page's scripts complained: {complaints:#?}");
    if let Some(pictures) = std::env::var_os("HOMING_TEST_PICTURES") {
        browser.screenshot(&std::path::Path::new(&pictures).join("camera.png"));
    }
}

/// The goal: a list from a spreadsheet is looked at before anything is sent; a mistake is corrected in its line, what
/// the server refuses is corrected and repeated, and no OAK or password stays in the page. Then the password of a device
/// is shown, for a reason and to who signs for it.
#[test]
fn a_list_is_previewed_corrected_registered_and_a_password_shown() {
    let folder = Folder::new();
    let browser = Browser::start(1280, 900);
    let demo = Demo::start(&folder.join("data"), &["--cameras", "1"]);
    let spare = demo.info["cameras"][0].clone();
    let of_spare = |key: &str| spare[key].as_str().expect("text").to_owned();
    let (serial, oak, password) = (of_spare("serial"), of_spare("oak"), of_spare("password"));
    browser.sign_in(demo.text("/url"), demo.text("/user"), demo.text("/password"));

    // The page reads a list as the command does.
    let cases: Value = serde_json::from_str(include_str!("../../testdata/lists.json")).unwrap();
    let script = "const base = document.querySelector('script[type=module]').src;
         const { readList } = await import(new URL('csv.js', base).href);
         return arguments[0].map((list) => {
             const given = ({ line, fault, serial, oak, user, password, name, description, server }) =>
                 fault ? { line, fault: fault.column } : { line, serial, oak, user, password, name, description, server };
             try { return readList(list.text, { user: 'root', password: list.password ?? '' }).map(given); }
             catch { return 'refused'; }
         });";
    let script = format!(
        "return (async (...args) => {{ {} }})(...arguments)",
        script.replace("arguments[0]", "args[0]")
    );
    let read = browser.run(&script, std::slice::from_ref(&cases)).unwrap();
    for (case, read) in cases.as_array().unwrap().iter().zip(read.as_array().unwrap()) {
        let expected = if case["error"].is_string() { &Value::from("refused") } else { &case["rows"] };
        assert_eq!(read, expected, "{}", case["text"]);
    }

    // A file with a mistake, a wrong OAK that only the dispatcher could know, and the spare camera.
    let list = folder.join("devices.csv");
    let text = format!(
        "\u{feff}Name;Serial number;OAK;User;Password\r\nYard;02484D0000;0123-4567-89AB;root;sesame-1\r\n\
         Mine;{serial};{oak};{};{password}\r\nShed;02484D0000E1;0123-4567-89AB;root;sesame-2\r\n",
        of_spare("user"),
    );
    std::fs::write(&list, text).unwrap();
    browser.run("location.hash = '#/register-list'", &[]).unwrap();
    browser.choose_file("[data-testid=list-file]", &list);
    browser.wait_for_text("[data-testid=list-summary]", "3 lines, 1 to correct", seconds(10));
    browser.wait_for_text("[data-testid=list-line-2]", "10 digits where there should be 12", seconds(5));
    assert_eq!(demo.api.json("/api/v1/devices").unwrap().as_array().unwrap().len(), 0, "nothing is sent yet");
    pictures(&browser, "list-preview");
    browser.click("[data-testid=list-correct-2]");
    pictures(&browser, "list-line");
    browser.enter("[data-testid=line-serial]", "02:48:4d:00:00:e0");
    browser.click("[data-testid=line-save]");
    browser.wait_for_text("[data-testid=list-register]", "Register 3", seconds(5));
    // While we looked, somebody else registered one: it is no failure.
    let taken = serde_json::json!({"serial": "02484D0000E1", "oak": "0123-4567-89AB", "user": "root", "password": "x"});
    demo.api.post("/api/v1/devices", &taken).unwrap();
    browser.click("[data-testid=list-register]");
    browser.wait_for_text("[data-testid=list-summary]", "3 registered", seconds(20));
    browser.wait_for_text("[data-testid=list-line-3]", "Registered", seconds(5));
    browser.wait_for_text("[data-testid=list-line-4]", "Was registered", seconds(5));
    pictures(&browser, "list-done");
    let page = browser.run("return document.documentElement.outerHTML", &[]).unwrap();
    let page = page.as_str().expect("text");
    assert!(
        page.contains(&serial) && !page.contains("sesame") && !page.contains(&oak),
        "a secret stays in the page"
    );

    // A device's page, its menu by keyboard, and its password.
    browser.run(&format!("location.hash = '#/device/{serial}'"), &[]).unwrap();
    browser.click("[data-testid=device-more]");
    pictures(&browser, "device-menu");
    browser.click("[data-testid=show-password]");
    browser.enter("[data-testid=password-reason]", "its own page");
    browser.enter("[data-testid=own-password]", "not the password");
    browser.click("[data-testid=password-dialog-submit]");
    browser.wait_for_text("[data-testid=password-dialog]", "not correct", seconds(10));
    let complaints = browser.complaints();
    // That it was registered before, and the password that was not right.
    assert!(complaints.iter().all(|line| line.contains("409") || line.contains("403")), "{complaints:#?}");
    browser.enter("[data-testid=own-password]", demo.text("/password"));
    pictures(&browser, "password-dialog");
    browser.click("[data-testid=password-dialog-submit]");
    browser.wait_for_text("[data-testid=shown-password]", &password, seconds(10));
    let audit = demo.api.json("/api/v1/audit").unwrap();
    assert_eq!((&audit[0]["action"], &audit[0]["detail"]), (&"show-password".into(), &"its own page".into()));
    let complaints = browser.complaints();
    assert!(complaints.is_empty(), "the page's scripts complained: {complaints:#?}");
}

/// The goal: a tunnel server is tested before it is added, and what is wrong is said beside what to do; then it is used,
/// renamed and removed. A device's page has its round trip, rate and history, and a site is entered with its upstream.
#[test]
fn a_tunnel_server_is_tested_added_renamed_and_removed_and_a_site_entered() {
    let folder = Folder::new();
    let browser = Browser::start(1280, 900);
    let demo = Demo::start(&folder.join("data"), &["--cameras", "2"]);
    browser.sign_in(demo.text("/url"), demo.text("/user"), demo.text("/password"));
    let internal = demo.text("/tunnel/internal");
    let port = internal.rsplit(':').next().expect("a port");

    // The test of what is entered: each mistake by its name, without anything being saved.
    browser.run("location.hash = '#/services'", &[]).unwrap();
    browser.click("[data-testid=add-server]");
    let begun = browser.run("return document.querySelector('[data-testid=server-url]').value", &[]).unwrap();
    assert_eq!(begun, "https://");
    browser.enter("[data-testid=server-name]", "North");
    let tested = "[data-testid=server-tested]";
    for (url, said) in [
        ("10.1.2.3:8081", "cannot be read"),
        ("http://nowhere.invalid:8081", "not known"),
        ("http://127.0.0.1:9", "Nothing listens"),
        // The page itself, which the demo has without TLS.
        (&demo.text("/url").replacen("http://", "https://", 1), "does not speak HTTPS"),
        (&format!("http://localhost:{port}"), "It wants credentials"),
        (&format!("https://localhost:{port}"), "not trusted yet"),
    ] {
        if said == "It wants credentials" {
            browser.click("[data-testid=server-uses-credentials]");
        }
        browser.enter("[data-testid=server-url]", url);
        browser.click("[data-testid=server-test]");
        browser.wait_for_text(tested, said, seconds(20));
    }
    pictures(&browser, "server-test-bad");
    browser.click("[data-testid=server-trust]");
    browser.wait_for_text(tested, "It wants credentials", seconds(20));
    browser.click("[data-testid=server-uses-credentials]");
    browser.enter("[data-testid=server-user]", demo.text("/tunnel/user"));
    browser.enter("[data-testid=server-password]", demo.text("/tunnel/password"));
    browser.click("[data-testid=server-test]");
    browser.wait_for_text(tested, "It works", seconds(20));
    pictures(&browser, "server-test-good");
    browser.click("[data-testid=server-save]");
    browser.wait_for_text("[data-testid=tunnel-page]", "Reachable", seconds(20));
    pictures(&browser, "server-page");

    browser.click("[data-testid=server-more]");
    browser.click("[data-testid=edit-server]");
    browser.enter("[data-testid=server-name]", "South");
    browser.click("[data-testid=server-save]");
    browser.wait_for_text("[data-testid=tunnel-page] h1", "South", seconds(20));
    browser.wait_for_text("[data-testid=tunnel-page]", "Reachable", seconds(20));
    browser.click("[data-testid=server-more]");
    browser.click("[data-testid=remove-server]");
    browser.click("[data-testid=confirm]");
    browser.wait_for_text("[data-testid=sites]", "Sites", seconds(20));

    // A site, with the camera that came by itself.
    let serial = demo.info["cameras"][0]["serial"].as_str().expect("text").to_owned();
    browser.wait_for_text(&format!("[data-testid=state-{serial}]"), "Connected", seconds(60));
    browser.click("[data-testid=add-site]");
    browser.enter("[data-testid=site-name]", "Shop");
    browser.enter("[data-testid=site-upstream]", "much");
    browser.click("[data-testid=site-save]");
    browser.wait_for_text("[data-testid=site-dialog]", "A number of Mbit/s", seconds(5));
    browser.enter("[data-testid=site-upstream]", "10");
    browser.click(&format!("[data-testid=site-device-{serial}]"));
    pictures(&browser, "site-dialog");
    browser.click("[data-testid=site-save]");
    browser.wait_for_text("[data-testid=site-Shop]", "Shop", seconds(10));
    // It says what the tunnel server is configured to warn at.
    browser.click("[data-testid=site-Shop]");
    browser.wait_for_text("[data-testid=site-dialog]", "You are warned above 80 %", seconds(5));
    browser.click("[data-testid=site-save]");
    browser.wait_for_text("[data-testid=site-Shop]", "Shop", seconds(10));
    pictures(&browser, "services");

    // How it is connected, and was.
    browser.run(&format!("location.hash = '#/device/{serial}'"), &[]).unwrap();
    browser.wait_for_text("[data-testid=round-trip]", "ms", seconds(20));
    browser.wait_for_text("[data-testid=rate]", "bit/s in", seconds(20));
    browser.wait_for_text("[data-testid=device-history]", "stands", seconds(20));
    browser.wait_for_text("[data-testid=device-page]", "Shop", seconds(20));
    pictures(&browser, "device");
    let complaints = browser.complaints();
    assert!(complaints.is_empty(), "the page's scripts complained: {complaints:#?}");
}

/// What the page looks like now, on a desk and on a phone, in both colours; for people, who ask for it.
fn pictures(browser: &Browser, name: &str) {
    let Some(folder) = std::env::var_os("HOMING_TEST_PICTURES") else { return };
    for (kind, width, height) in [("desk", 1280, 900), ("phone", 390, 844)] {
        browser.resize(width, height);
        for theme in ["light", "dark"] {
            let script = "document.documentElement.dataset.theme = arguments[0]";
            browser.run(script, &[theme.into()]).unwrap();
            browser.screenshot(&std::path::Path::new(&folder).join(format!("{name}-{kind}-{theme}.png")));
        }
    }
    browser.resize(1280, 900);
}

fn now() -> u32 {
    TIMING.frame_at(Timestamp::now().as_microsecond())
}

fn frozen(frame: u32) -> io::Error {
    io::Error::other(format!("frame {frame} is shown; now it is {}", now()))
}

#[track_caller]
fn assert_live(frame: u32) {
    let behind = now() - frame;
    assert!(behind <= 2 * TIMING.fps, "the live picture is {behind} frames behind");
}
