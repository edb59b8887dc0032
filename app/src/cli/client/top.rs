//! `homing top`: devices with their rates and round-trip times, as they are now, the busiest first.
//!
//! Plain ANSI on the alternate screen, so that it works over ssh and leaves the terminal as it was. What is shown is made
//! by [`View::draw`], which is pure; keys change the view ([`View::press`]), and nothing else.

use super::{
    Failure,
    devices::{State, ago},
    read_secret,
    server::Server,
    table::{self, Cell},
    terminal, usage,
};
use crate::cli::print;
use clap::{Args, ValueEnum};
use homing_base::client::{ApiClient, Auth, CallError};
use homing_management::views::{Device, Figures, Site};
use homing_protocol::{
    api::tunnel::{self, SiteState},
    secret::Credentials,
};
use http::StatusCode;
use jiff::Timestamp;
use std::{
    collections::HashMap,
    io::{IsTerminal, Read, stdin, stdout},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::sync::mpsc;

#[derive(Args)]
pub(in crate::cli) struct Options {
    /// Only those whose serial number, name, site or server holds this.
    find: Option<String>,
    /// What stands first.
    #[arg(long, value_enum, default_value_t = Sort::Rate)]
    sort: Sort,
    /// Seconds between two looks.
    #[arg(long, value_name = "S", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    every: u64,
    /// Shows it once, and ends; for scripts, and where there is no terminal.
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    at: Server,
    /// A tunnel server's internal address instead, https://host:port: for who has another VMS. Then --ca is its tunnel-ca.pem.
    #[arg(long, value_name = "URL", conflicts_with_all = ["url", "token_file"])]
    tunnel: Option<String>,
    /// The internal address's user.
    #[arg(long, value_name = "NAME", default_value = "vms", requires = "tunnel")]
    user: String,
    /// A file with that user's password, - for standard input.
    #[arg(long, value_name = "FILE", requires = "tunnel")]
    password_file: Option<PathBuf>,
}

/// Who is asked.
enum Source {
    Management(ApiClient),
    Tunnel(ApiClient),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sort {
    /// What sends most.
    Rate,
    /// What takes longest to answer.
    Rtt,
    /// What was away longest, then what is connected for the shortest time.
    State,
    /// By name.
    Name,
}

impl Sort {
    const ALL: [Sort; 4] = [Sort::Rate, Sort::Rtt, Sort::State, Sort::Name];

    fn word(self) -> &'static str {
        match self {
            Sort::Rate => "rate",
            Sort::Rtt => "rtt",
            Sort::State => "state",
            Sort::Name => "name",
        }
    }

    fn next(self) -> Self {
        let at = Sort::ALL.iter().position(|sort| *sort == self).unwrap_or_default();
        Sort::ALL[(at + 1) % Sort::ALL.len()]
    }
}

/// What was found at one look.
#[derive(Default)]
struct Look {
    devices: Vec<Device>,
    figures: HashMap<(String, String), Figures>,
    /// Which sites are full, and how full.
    full: Vec<String>,
}

/// What is shown of it, and how.
struct View {
    peer: String,
    look: Look,
    /// Why the last look brought nothing.
    problem: Option<String>,
    find: String,
    /// The filter is being typed.
    typing: bool,
    sort: Sort,
    reversed: bool,
    /// Rows that are above the screen.
    above: usize,
}

/// What a key leads to.
#[derive(Debug, PartialEq, Eq)]
enum Pressed {
    Quit,
    Draw,
    Nothing,
}

pub(super) async fn run(options: Options) -> Result<(), Failure> {
    let source = options.source()?;
    let mut view = View {
        peer: source.client().peer().to_owned(),
        look: source.look().await?,
        problem: None,
        find: options.find.unwrap_or_default(),
        typing: false,
        sort: options.sort,
        reversed: false,
        above: 0,
    };
    if options.once || !stdout().is_terminal() || !stdin().is_terminal() {
        print(&view.draw(None, terminal::width(), terminal::has_colours(), Timestamp::now()));
        return Ok(());
    }
    let _screen = terminal::Screen::begin().map_err(|error| usage(error.into()))?;
    let mut keys = keys();
    let mut ticks = tokio::time::interval(Duration::from_secs(options.every));
    ticks.tick().await;
    loop {
        let (columns, rows) = terminal::size();
        let text = view.draw(Some(rows), Some(columns), terminal::has_colours(), Timestamp::now());
        print(&on_screen(&text));
        tokio::select! {
            _ = ticks.tick() => match source.look().await {
                Ok(look) => (view.look, view.problem) = (look, None),
                Err(failure @ Failure::NotAuthorised(_)) => return Err(failure),
                Err(failure) => view.problem = Some(failure.to_string()),
            },
            key = keys.recv() => match key.map(|key| view.press(key)) {
                None | Some(Pressed::Quit) => return Ok(()),
                Some(Pressed::Draw | Pressed::Nothing) => (),
            },
        }
    }
}

impl Options {
    fn source(&self) -> Result<Source, Failure> {
        let Some(url) = &self.tunnel else { return self.at.client().map(Source::Management) };
        let password = match &self.password_file {
            Some(file) if file == Path::new("-") => Some(terminal::line("the internal address's password")),
            Some(file) => Some(read_secret(file)),
            None => None,
        };
        let auth = match password.transpose().map_err(usage)? {
            Some(password) => Auth::Basic(Credentials::new(self.user.clone(), password)),
            None => Auth::Nobody,
        };
        let trust = self.at.trust().map_err(usage)?;
        ApiClient::new("tunnel server", url, &auth, trust.as_deref()).map(Source::Tunnel).map_err(usage)
    }
}

impl Source {
    fn client(&self) -> &ApiClient {
        let (Source::Management(client) | Source::Tunnel(client)) = self;
        client
    }

    async fn look(&self) -> Result<Look, Failure> {
        match self {
            Source::Management(client) => {
                let devices: Vec<Device> = client.get("/api/v1/devices").await?;
                let figures: Vec<Figures> = client.get("/api/v1/figures").await?;
                let sites: Vec<Site> = client.get("/api/v1/sites").await?;
                let full = sites.iter().filter(|site| site.state == SiteState::Full);
                let full = full.map(|site| uses(&site.name, site.minute_bps, site.upstream_mbit));
                let by =
                    |figures: Figures| ((figures.tunnel_server.clone(), figures.serial.clone()), figures);
                Ok(Look { devices, figures: figures.into_iter().map(by).collect(), full: full.collect() })
            }
            Source::Tunnel(client) => {
                let devices = client.get::<Vec<tunnel::Device>>("/api/v1/devices").await;
                let devices = devices.map_err(not_let_in)?;
                let sites: Vec<tunnel::Site> = client.get("/api/v1/sites").await?;
                let full = sites.iter().filter(|site| site.state == SiteState::Full);
                let full = full.map(|site| uses(&site.name, site.minute_bps, site.upstream_mbit));
                let connected = devices.iter().filter(|device| device.connected);
                Ok(Look {
                    figures: connected.map(figures_of).collect(),
                    full: full.collect(),
                    devices: devices.iter().map(at_another_vms).collect(),
                })
            }
        }
    }
}

/// Whether it was added at another VMS is not known here: as if it were.
fn at_another_vms(device: &tunnel::Device) -> Device {
    Device { site: device.site.clone(), ..Device::new("", device, Some(0)) }
}

/// By server and serial number, as [`Look::figures`] has them.
fn figures_of(device: &tunnel::Device) -> ((String, String), Figures) {
    let figures = Figures {
        serial: device.serial.to_string(),
        tunnel_server: String::new(),
        rtt_ms: device.rtt_ms,
        bytes_in: device.bytes_in,
        bytes_out: device.bytes_out,
        bps_in: device.bps_in,
        bps_out: device.bps_out,
    };
    ((String::new(), figures.serial.clone()), figures)
}

/// At a tunnel server there are no tokens.
fn not_let_in(error: CallError) -> Failure {
    match error {
        CallError::Refused { status: StatusCode::UNAUTHORIZED, peer, .. } => Failure::NotAuthorised(format!(
            "{peer} wants user and password of its internal address: --user and --password-file, as [tunnel] of its \
             configuration has them"
        )),
        other => other.into(),
    }
}

fn uses(name: &str, minute_bps: u64, upstream_mbit: Option<f64>) -> String {
    format!("{name} uses {} of its {} Mbit/s", rate(minute_bps), upstream_mbit.unwrap_or_default())
}

/// Keys as they are pressed. The thread ends with the process: a read from a terminal cannot be taken back.
fn keys() -> mpsc::Receiver<u8> {
    let (sender, receiver) = mpsc::channel(64);
    std::thread::spawn(move || {
        for byte in stdin().lock().bytes() {
            if byte.is_err() || sender.blocking_send(byte.unwrap_or_default()).is_err() {
                return;
            }
        }
    });
    receiver
}

/// From the upper left corner, each line to its end, and nothing below.
fn on_screen(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    format!("\x1b[H{}\x1b[K\x1b[J", lines.join("\x1b[K\r\n"))
}

const HEADS: [&str; 10] =
    ["STATE", "SERIAL", "NAME", "SERVER", "SITE", "IN", "OUT", "RTT", "SINCE", "PROBLEM"];

/// Lines around the table: two above, the table's heads.
const LINES_AROUND: usize = 3;

impl View {
    fn press(&mut self, key: u8) -> Pressed {
        if self.typing {
            match key {
                b'\r' | b'\n' => self.typing = false,
                0x1b => (self.typing, self.find) = (false, String::new()),
                0x7f | 0x08 => {
                    self.find.pop();
                }
                0x03 => return Pressed::Quit,
                b' '..=b'~' if self.find.len() < 64 => self.find.push(char::from(key)),
                _ => return Pressed::Nothing,
            }
            self.above = 0;
            return Pressed::Draw;
        }
        match key {
            b'q' | 0x03 => return Pressed::Quit,
            b's' => self.sort = self.sort.next(),
            b'r' => self.reversed = !self.reversed,
            b'/' => self.typing = true,
            // Arrows end with these letters, after an escape and a bracket.
            b'j' | b'B' => self.above += 1,
            b'k' | b'A' => self.above = self.above.saturating_sub(1),
            b' ' => self.above += 20,
            b'g' => self.above = 0,
            _ => return Pressed::Nothing,
        }
        Pressed::Draw
    }

    fn figures(&self, device: &Device) -> Option<&Figures> {
        self.look.figures.get(&(device.tunnel_server.clone(), device.serial.clone()))
    }

    fn wanted(&self) -> Vec<&Device> {
        let find = self.find.to_lowercase();
        let holds = |device: &&Device| {
            let site = device.site.clone().unwrap_or_default();
            [&device.serial, &device.name, &device.tunnel_server, &site]
                .iter()
                .any(|text| text.to_lowercase().contains(&find))
        };
        let mut wanted: Vec<&Device> = self.look.devices.iter().filter(holds).collect();
        wanted.sort_by(|a, b| a.name.cmp(&b.name).then(a.serial.cmp(&b.serial)));
        let (bps, rtt) = (
            |device: &&Device| self.figures(device).map(|figures| figures.bps_in),
            |device: &&Device| self.figures(device).and_then(|figures| figures.rtt_ms),
        );
        match self.sort {
            Sort::Rate => wanted.sort_by_key(|device| std::cmp::Reverse(bps(device))),
            Sort::Rtt => wanted.sort_by_key(|device| std::cmp::Reverse(rtt(device))),
            Sort::State => wanted.sort_by_key(|device| (device.connected, device.since)),
            Sort::Name => (),
        }
        if self.reversed {
            wanted.reverse();
        }
        wanted
    }

    /// At most `rows` lines, where that is given.
    fn draw(&self, rows: Option<usize>, width: Option<usize>, colours: bool, now: Timestamp) -> String {
        let wanted = self.wanted();
        let connected = wanted.iter().filter(|device| device.connected).count();
        let sum = |of: fn(&Figures) -> u64| -> u64 {
            wanted.iter().filter_map(|device| self.figures(device)).map(of).sum()
        };
        let full = &self.look.full;
        let head = format!(
            "{connected} of {} devices connected, {} in, {} out; {}{}",
            wanted.len(),
            rate(sum(|figures| figures.bps_in)),
            rate(sum(|figures| figures.bps_out)),
            if full.is_empty() {
                "every site has room".to_owned()
            } else {
                format!("FULL: {}", full.join(", "))
            },
            self.problem.as_ref().map_or(String::new(), |problem| format!("; not now: {problem}")),
        );
        let keys = match self.typing {
            true => format!("filter: {}_", self.find),
            false => {
                let find =
                    if self.find.is_empty() { String::new() } else { format!(" only \"{}\",", self.find) };
                let order = if self.reversed { ", reversed" } else { "" };
                format!(
                    "{}:{find} by {}{order} (q quit, s sort, r reverse, / filter, j k scroll)",
                    self.peer,
                    self.sort.word()
                )
            }
        };
        let table: Vec<Vec<Cell>> = wanted.iter().map(|device| self.row(device, now)).collect();
        let room = rows.map_or(table.len(), |rows| rows.saturating_sub(LINES_AROUND));
        let above = self.above.min(table.len().saturating_sub(room.max(1)));
        let shown = &table[above..table.len().min(above + room)];
        let mut text = String::new();
        for line in [head, keys].iter().take(if rows.is_some() { 2 } else { 1 }) {
            text.push_str(&table::plain(line, width));
            text.push('\n');
        }
        // A line that wraps would push the others off the screen.
        let columns = width.map_or(HEADS.len(), |width| table::columns_that_fit(&HEADS, shown, width));
        text + &table::draw(&HEADS[..columns], shown, width, colours)
    }

    fn row(&self, device: &Device, now: Timestamp) -> Vec<Cell> {
        let figures = self.figures(device);
        let of = |of: fn(&Figures) -> u64| figures.map_or_else(String::new, |figures| rate(of(figures)));
        let rtt = figures.and_then(|figures| figures.rtt_ms);
        vec![
            Cell::coloured(device.word.clone(), Some(State::of(device).colour())),
            device.serial.clone().into(),
            device.name.clone().into(),
            device.tunnel_server.clone().into(),
            device.site.clone().unwrap_or_default().into(),
            of(|figures| figures.bps_in).into(),
            of(|figures| figures.bps_out).into(),
            rtt.map_or_else(String::new, |rtt| format!("{rtt} ms")).into(),
            device.since.map_or_else(String::new, |since| ago(now.duration_since(since))).into(),
            device.problem.as_ref().map_or_else(String::new, |problem| problem.message.clone()).into(),
        ]
    }
}

/// `512 kbit/s`, `4.0 Mbit/s`.
fn rate(bps: u64) -> String {
    match bps {
        0..1_000_000 => format!("{} kbit/s", bps / 1000),
        1_000_000.. => format!("{:.1} Mbit/s", bps as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn view() -> View {
        let device = |serial: &str, name: &str, connected: bool| -> Device {
            serde_json::from_value(json!({
                "serial": serial, "name": name, "description": "", "user": "root", "site": "Shop",
                "state": if connected { "green" } else { "red" }, "word": if connected { "Connected" } else { "Not connected" },
                "connected": connected, "step": "tunnel", "step_number": 7, "relay": "dispatched", "tunnel_server": "sts",
                "bytes_in": 0, "bytes_out": 0, "own_password": false, "bps_in": 0, "bps_out": 0,
            }))
            .unwrap()
        };
        let figures = |serial: &str, bps_in: u64, rtt_ms: u32| {
            let figures = Figures {
                serial: serial.into(),
                tunnel_server: "sts".into(),
                rtt_ms: Some(rtt_ms),
                bytes_in: 0,
                bytes_out: 0,
                bps_in,
                bps_out: 1000,
            };
            (("sts".to_owned(), serial.to_owned()), figures)
        };
        let devices =
            vec![device("A1", "Gate", true), device("A2", "Yard", true), device("A3", "Barn\x1b[2J", false)];
        let figures = [figures("A1", 512_000, 30), figures("A2", 4_000_000, 12)].into_iter().collect();
        View {
            peer: "https://vms".into(),
            look: Look { devices, figures, full: Vec::new() },
            problem: None,
            find: String::new(),
            typing: false,
            sort: Sort::Rate,
            reversed: false,
            above: 0,
        }
    }

    fn order(view: &View) -> Vec<&str> {
        view.wanted().iter().map(|device| device.serial.as_str()).collect()
    }

    #[test]
    fn keys_sort_filter_and_quit() {
        let mut view = view();
        assert_eq!(order(&view), ["A2", "A1", "A3"], "the busiest first, who is away last");
        view.press(b's');
        assert_eq!((view.sort, order(&view)), (Sort::Rtt, vec!["A1", "A2", "A3"]));
        view.press(b's');
        assert_eq!(order(&view)[0], "A3", "by state");
        view.press(b's');
        view.press(b'r');
        assert_eq!(order(&view), ["A2", "A1", "A3"], "by name, reversed");
        for key in *b"/gaq\x7f" {
            assert_eq!(view.press(key), Pressed::Draw, "a letter of the filter");
        }
        assert_eq!((view.find.as_str(), order(&view)), ("ga", vec!["A1"]));
        view.press(b'\r');
        assert_eq!(view.press(b'q'), Pressed::Quit);
        view.press(b'/');
        view.press(0x1b);
        assert_eq!(order(&view).len(), 3, "escape clears it");
    }

    #[test]
    fn it_fits_the_screen_and_names_move_no_cursor() {
        let view = view();
        let text = view.draw(Some(5), Some(60), false, Timestamp::UNIX_EPOCH);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5, "{text}");
        assert!(lines.iter().all(|line| line.chars().count() <= 60), "{text}");
        assert!(lines[0].starts_with("2 of 3 devices connected, 4.5 Mbit/s in, 2 kbit/s out;"), "{text}");
        let all = view.draw(None, None, false, Timestamp::UNIX_EPOCH);
        assert!(all.contains("4.0 Mbit/s") && all.contains("12 ms") && all.contains("Shop"), "{all}");
        assert!(!all.contains('\x1b'), "{all}");
        assert_eq!(on_screen("a\nb\n"), "\x1b[Ha\x1b[K\r\nb\x1b[K\x1b[J");
    }
}
