//! `homing demo` as a process, and what its `demo.json` says.

use super::{Http, Process, homing, seconds, wait_for};
use jiff::Timestamp;
use serde_json::Value;
use std::{fs, io, path::Path, process::Command, time::Duration};

/// How long the demo may take to be there, built without optimisation on a busy machine.
const START: Duration = seconds(60);

/// A running demo.
pub struct Demo {
    /// Its process.
    pub process: Process,
    /// demo.json.
    pub info: Value,
    /// The management server's API, with the token.
    pub api: Http,
}

impl Demo {
    /// Starts it with its data in `data`, which it may know from an earlier time.
    pub fn start(data: &Path, arguments: &[&str]) -> Demo {
        Demo::start_logging(data, arguments, "info")
    }

    /// Also says what is to be logged: a level, or target=level pairs.
    pub fn start_logging(data: &Path, arguments: &[&str], filter: &str) -> Demo {
        let file = data.join("demo.json");
        let written = || fs::metadata(&file).and_then(|metadata| metadata.modified()).ok();
        // One that an earlier run left is read by this one, and says where that one listened.
        let earlier = written();
        let mut command = Command::new(homing());
        command.args(["demo", "--port", "0", "--log", filter, "--data"]).arg(data).args(arguments);
        let mut process = Process::spawn("homing demo", &mut command);
        let info: Value = wait_for("the demo writes demo.json", START, || {
            if let Some(status) = process.status() {
                panic!("homing demo ended: {status}");
            }
            if written() == earlier {
                return Err(io::Error::other("not yet"));
            }
            let text = fs::read_to_string(&file)?;
            serde_json::from_str(&text).map_err(io::Error::other)
        });
        let api =
            Http::new(info["url"].as_str().expect("url")).bearer(info["token"].as_str().expect("token"));
        wait_for("the demo answers", START, || api.json("/api/v1/devices"));
        Demo { process, info, api }
    }

    /// A string of demo.json, by its JSON pointer.
    #[track_caller]
    pub fn text(&self, pointer: &str) -> &str {
        let value = self.info.pointer(pointer).and_then(Value::as_str);
        value.unwrap_or_else(|| panic!("demo.json has no text {pointer}"))
    }

    /// The first camera that has recorded a frame taken after `after`, once there is one.
    #[track_caller]
    pub fn wait_for_recording(&self, after: Timestamp, within: Duration) -> Value {
        wait_for("a camera records", within, || {
            let cameras = self.api.json("/api/v1/cameras")?;
            let cameras = cameras.as_array().cloned().unwrap_or_default();
            let recorded = cameras.iter().find(|camera| last_frame(camera).is_some_and(|at| at > after));
            recorded.cloned().ok_or_else(|| io::Error::other(format!("cameras: {cameras:?}")))
        })
    }

    /// Waits until this camera has recorded a frame taken after `moment`.
    #[track_caller]
    pub fn wait_until_recorded(&self, camera: i64, moment: Timestamp) {
        let ahead = Duration::try_from(moment.duration_since(Timestamp::now())).unwrap_or_default();
        wait_for(&format!("camera {camera} has recorded until {moment}"), ahead + seconds(30), || {
            let now = self.api.json(&format!("/api/v1/cameras/{camera}"))?;
            let recorded = last_frame(&now).is_some_and(|at| at > moment);
            if recorded { Ok(()) } else { Err(io::Error::other(now.to_string())) }
        });
    }

    /// The recording of a camera between two moments, as one MP4.
    #[track_caller]
    pub fn export(&self, camera: i64, start: Timestamp, end: Timestamp) -> Vec<u8> {
        let path = format!("/api/v1/cameras/{camera}/recording.mp4?start={start}&end={end}");
        let answer = self.api.get(&path).and_then(super::http::Answer::success);
        answer.unwrap_or_else(|error| panic!("{path}: {error}")).body
    }
}

/// When a camera's last frame was taken.
fn last_frame(camera: &Value) -> Option<Timestamp> {
    camera.pointer("/status/last_frame")?.as_str()?.parse().ok()
}
