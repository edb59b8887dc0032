//! The page in Chromium, as a newcomer uses it: the unregistered camera of the demo, from its label to
//! live picture and playback, without a reload.

use crate::{
    harness::{Demo, Folder, seconds, wait_for},
    webdriver::Browser,
};
use homing_camera::scene::Timing;
use jiff::Timestamp;
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
