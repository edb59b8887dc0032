//! `homing devices`: where every device stands.

use super::{
    Failure,
    server::Server,
    table::{self, Cell, Colour},
    terminal,
};
use crate::cli::print;
use clap::{Args, ValueEnum};
use homing_base::client::ApiClient;
use homing_management::{sse, views::Device};
use http_body_util::BodyExt;
use jiff::Timestamp;
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    io::{IsTerminal, stdout},
    time::Duration,
};

/// Changes within this time are drawn together.
const TOGETHER: Duration = Duration::from_millis(200);

/// The server's comments come far more often: a stream that is silent for so long is dead.
const SILENCE: Duration = Duration::from_secs(60);

#[derive(Args)]
pub(in crate::cli) struct Options {
    /// Only those whose serial number or name holds this.
    find: Option<String>,
    /// Only those in this state.
    #[arg(long, value_enum)]
    state: Option<State>,
    /// Only those at this tunnel server.
    #[arg(long, value_name = "NAME")]
    server: Option<String>,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
    /// Goes on: every change as it happens, until it is interrupted.
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    at: Server,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum State {
    /// Registered, not connected.
    Red,
    /// Connected, not added to a recording server.
    Yellow,
    /// Added and connected.
    Green,
    /// Added, and not connected now.
    Offline,
    /// Gone to another tunnel server.
    Moved,
}

impl State {
    pub fn of(device: &Device) -> Self {
        match (device.state.as_str(), device.connected) {
            ("green", true) => State::Green,
            ("green", false) => State::Offline,
            ("yellow", _) => State::Yellow,
            ("grey", _) => State::Moved,
            _ => State::Red,
        }
    }

    pub const fn colour(self) -> Colour {
        match self {
            State::Red | State::Offline => Colour::Red,
            State::Yellow => Colour::Yellow,
            State::Green => Colour::Green,
            State::Moved => Colour::Grey,
        }
    }
}

impl Options {
    fn wants(&self, device: &Device) -> bool {
        let found = self.find.as_deref().is_none_or(|find| {
            let digits: String = find.chars().filter(char::is_ascii_alphanumeric).collect();
            device.name.to_lowercase().contains(&find.to_lowercase())
                || (!digits.is_empty() && device.serial.contains(&digits.to_uppercase()))
        });
        found
            && self.state.is_none_or(|state| state == State::of(device))
            && self.server.as_ref().is_none_or(|server| *server == device.tunnel_server)
    }

    fn show(&self, devices: &[&Device]) -> String {
        match self.json {
            true => devices.iter().map(|device| json(device)).collect(),
            false => table_of(devices, Timestamp::now()),
        }
    }
}

pub(super) async fn run(options: Options) -> Result<(), Failure> {
    let client = options.at.client()?;
    if options.watch {
        return watch(&options, &client).await;
    }
    let devices: Vec<Device> = client.get("/api/v1/devices").await?;
    let wanted: Vec<&Device> = devices.iter().filter(|device| options.wants(device)).collect();
    print(&options.show(&wanted));
    if wanted.is_empty() {
        terminal::say(if devices.is_empty() { "no device is registered" } else { "no device is like that" });
    }
    Ok(())
}

/// At a terminal the table stands still and changes; elsewhere every change is a line.
async fn watch(options: &Options, client: &ApiClient) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Removed {
        key: String,
    }
    let mut stream = client.stream("/api/v1/events").await?.into_body();
    let lost = |cause: &str| Failure::Unreachable(format!("{}: its event stream {cause}", client.peer()));
    let table = !options.json && stdout().is_terminal();
    let mut parser = sse::Parser::default();
    let mut devices: BTreeMap<String, Device> = BTreeMap::new();
    let (mut is_ready, mut is_new) = (false, false);
    loop {
        let wait = if is_new { TOGETHER } else { SILENCE };
        let frame = match tokio::time::timeout(wait, stream.frame()).await {
            Err(_) if is_new => {
                let wanted: Vec<&Device> = devices.values().filter(|device| options.wants(device)).collect();
                // Clears the screen first.
                print(&format!("\x1b[H\x1b[2J{}", options.show(&wanted)));
                is_new = false;
                continue;
            }
            Err(_) => return Err(lost("went silent")),
            Ok(None) => return Err(lost("ended; is the API token still good?")),
            Ok(Some(frame)) => frame.map_err(|error| lost(&format!("broke: {error}")))?,
        };
        let Ok(bytes) = frame.into_data() else { continue };
        for event in parser.feed(&bytes).map_err(|error| lost(&format!("cannot be read: {error}")))? {
            let strange = |error: serde_json::Error| lost(&format!("is not of this version: {error}"));
            match event.name.as_str() {
                "reset" => devices.clear(),
                "ready" => is_ready = true,
                "device" => {
                    let device: Device = serde_json::from_str(&event.data).map_err(strange)?;
                    let key = format!("{}/{}", device.tunnel_server, device.serial);
                    if !table && options.wants(&device) {
                        print(&if options.json { json(&device) } else { line(&device) });
                    }
                    devices.insert(key, device);
                }
                "device-removed" => {
                    let removed: Removed = serde_json::from_str(&event.data).map_err(strange)?;
                    let gone = devices.remove(&removed.key).filter(|device| options.wants(device));
                    if let Some(device) = gone.filter(|_| !table) {
                        print(&match options.json {
                            true => format!("{}\n", serde_json::json!({ "removed": device.serial })),
                            false => format!("{}  {}  released\n", Timestamp::now(), device.serial),
                        });
                    }
                }
                _ => continue,
            }
            is_new = table && is_ready;
        }
    }
}

fn json(device: &Device) -> String {
    format!("{}\n", serde_json::to_string(device).expect("plain values are JSON"))
}

/// A change, for a log.
fn line(device: &Device) -> String {
    let cells = row(device, Timestamp::now());
    let line = [Timestamp::now().to_string(), format!("{}\n", table::line(&cells))];
    line.join("  ")
}

const HEADS: [&str; 9] = ["STATE", "SERIAL", "NAME", "SERVER", "STEP", "SINCE", "PEER", "RTT", "PROBLEM"];

fn table_of(devices: &[&Device], now: Timestamp) -> String {
    let rows: Vec<Vec<Cell>> = devices.iter().map(|device| row(device, now)).collect();
    table::render(&HEADS, &rows)
}

fn row(device: &Device, now: Timestamp) -> Vec<Cell> {
    let state = State::of(device);
    let problem = device.problem.as_ref().map(|problem| problem.message.clone());
    let moving = device.moving.as_ref().map(|moving| {
        let to = moving.tunnel_server.clone().unwrap_or_else(|| moving.servers.join(","));
        let why = moving.problem.as_ref().map_or(String::new(), |problem| format!(": {}", problem.message));
        if state == State::Moved { format!("is at {to}{why}") } else { format!("goes to {to}{why}") }
    });
    let contested = device
        .contested
        .as_ref()
        .map(|contested| format!("others tried to register it, {} times", contested.attempts));
    let problems: Vec<String> = [problem, moving, contested].into_iter().flatten().collect();
    vec![
        Cell::coloured(format!("{} {}", device.state, device.word), Some(state.colour())),
        device.serial.clone().into(),
        device.name.clone().into(),
        device.tunnel_server.clone().into(),
        format!("{} {}", device.step_number, device.step).into(),
        device.since.map_or_else(String::new, |since| ago(now.duration_since(since))).into(),
        device.peer.clone().unwrap_or_default().into(),
        device.rtt_ms.map_or_else(String::new, |rtt| format!("{rtt} ms")).into(),
        problems.join("; ").into(),
    ]
}

/// `3 min`: how long, in one unit.
pub(super) fn ago(duration: jiff::SignedDuration) -> String {
    let seconds = duration.as_secs().max(0);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_one_unit() {
        let told = |seconds| ago(jiff::SignedDuration::from_secs(seconds));
        assert_eq!(
            [told(-5), told(59), told(119), told(7200), told(172_800)],
            ["0 s", "59 s", "1 min", "2 h", "2 d"]
        );
    }
}
