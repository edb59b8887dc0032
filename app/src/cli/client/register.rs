//! `homing register`: step 1 for one device, or for all of a list, a few at a time.
//!
//! A list can be registered again: what is registered already is `same`. So whatever stops it (a network, a mistake in
//! a line) is mended, and the same command goes on.

use super::{
    Failure,
    list::{self, Defaults, Fault, Line},
    server::{Server, read_secret},
    terminal, usage,
};
use crate::cli::print;
use anyhow::Context;
use clap::Args;
use futures_util::{StreamExt, stream};
use homing_base::client::{ApiClient, CallError};
use homing_management::views::{Device, TunnelServer};
use homing_protocol::{Oak, Secret, SerialNumber, api::tunnel::RelayState};
use http::{Method, StatusCode};
use serde::Serialize;
use serde_json::json;
use std::{
    cell::Cell,
    collections::HashSet,
    fs::File,
    path::{Path, PathBuf},
};

/// Lines that are on their way at once: the dispatcher checks each one for a few seconds at most.
const AT_ONCE: usize = 8;

#[derive(Args)]
pub(in crate::cli) struct Options {
    /// Serial number of one device.
    #[arg(required_unless_present = "csv", conflicts_with = "csv")]
    serial: Option<SerialNumber>,
    /// A list as a spreadsheet exports it, - for standard input: serial, oak, user, password, name, description, server.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Checks the list, and sends nothing of it.
    #[arg(long, requires = "csv")]
    dry_run: bool,
    /// A file with the OAK, - for standard input; asked for where left out.
    #[arg(long, value_name = "FILE", conflicts_with = "csv")]
    oak_file: Option<PathBuf>,
    /// The device's user; for a list, of lines that name none.
    #[arg(long, default_value = "root")]
    user: String,
    /// A file with that user's password, - for standard input (after the OAK); asked for where left out.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// What people call it.
    #[arg(long, default_value = "", conflicts_with = "csv")]
    name: String,
    /// Anything worth knowing.
    #[arg(long, default_value = "", conflicts_with = "csv")]
    description: String,
    /// The tunnel server to register it at, where there are several; for a list, of lines that name none.
    #[arg(long, value_name = "NAME")]
    server: Option<String>,
    /// One JSON object a device.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: Server,
}

/// What came of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Outcome {
    /// It is registered.
    Registered,
    /// It is registered, and relayed as soon as the dispatcher can be reached.
    Kept,
    /// It was registered before.
    Same,
    /// Nothing is wrong with the line (`--dry-run`).
    Good,
    /// The line cannot be meant so; nothing was sent.
    Faulty,
    /// The management server, the tunnel server or the dispatcher refused it.
    Refused,
    /// No answer; or not tried, as an earlier line had none.
    Failed,
}

impl Outcome {
    const fn word(self) -> &'static str {
        match self {
            Outcome::Registered => "registered",
            Outcome::Kept => "kept",
            Outcome::Same => "same",
            Outcome::Good => "good",
            Outcome::Faulty => "faulty",
            Outcome::Refused => "refused",
            Outcome::Failed => "failed",
        }
    }

    const fn is_good(self) -> bool {
        matches!(self, Outcome::Registered | Outcome::Kept | Outcome::Same | Outcome::Good)
    }
}

#[derive(Debug, Serialize)]
struct Told {
    line: u64,
    serial: String,
    result: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

impl Told {
    fn new(line: u64, serial: impl ToString, result: Outcome) -> Self {
        Told { line, serial: serial.to_string(), result, code: None, message: None }
    }

    fn because(self, code: impl Into<String>, message: impl Into<String>) -> Self {
        Told { code: Some(code.into()), message: Some(message.into()), ..self }
    }

    fn print(&self, json: bool) {
        print(&match json {
            true => format!("{}\n", serde_json::to_string(self).expect("plain values are JSON")),
            false => {
                let message = self.message.as_deref().unwrap_or_default();
                let line = format!(
                    "line {:<4} {:<12}  {:<10}  {message}",
                    self.line,
                    self.serial,
                    self.result.word()
                );
                format!("{}\n", line.trim_end())
            }
        });
    }
}

pub(super) async fn run(options: Options) -> Result<(), Failure> {
    let client = options.at.client()?;
    match (&options.csv, options.serial) {
        (Some(csv), _) => all(&options, &client, csv).await,
        (None, Some(serial)) => one(&options, &client, serial).await,
        (None, None) => Err(Failure::Usage("name a serial number, or a list with --csv".to_owned())),
    }
}

async fn one(options: &Options, client: &ApiClient, serial: SerialNumber) -> Result<(), Failure> {
    let oak = secret(options.oak_file.as_deref(), "OAK", "--oak-file").map_err(usage)?;
    let oak: Oak = oak.expose().parse().map_err(|error| Failure::Usage(format!("the OAK: {error}")))?;
    let password = secret(options.password_file.as_deref(), "Password of the device", "--password-file");
    let line = Line {
        line: 1,
        serial,
        oak,
        user: options.user.clone(),
        password: password.map_err(usage)?,
        name: options.name.clone(),
        description: options.description.clone(),
        server: options.server.clone(),
    };
    let device = send(client, &line).await?;
    print(&match (options.json, device.relay) {
        (true, _) => format!("{}\n", serde_json::to_string(&device).expect("plain values are JSON")),
        (false, RelayState::Pending) => {
            format!("{serial} is kept at {}: its dispatcher cannot be reached yet\n", device.tunnel_server)
        }
        (false, _) => format!("{serial} is registered at {}: press its button\n", device.tunnel_server),
    });
    Ok(())
}

async fn all(options: &Options, client: &ApiClient, csv: &Path) -> Result<(), Failure> {
    let password = match options.password_file.as_deref() {
        None => Secret::default(),
        Some(file) => secret(Some(file), "Password of the devices", "--password-file").map_err(usage)?,
    };
    let defaults = Defaults { user: options.user.clone(), password, server: options.server.clone() };
    let name = csv.display();
    let lines = match csv == Path::new("-") {
        true => list::read(std::io::stdin(), &defaults),
        false => {
            let file = File::open(csv).with_context(|| format!("cannot open {name}")).map_err(usage)?;
            list::read(file, &defaults)
        }
    };
    let lines = lines.map_err(|error| Failure::Usage(format!("{name}: {error}")))?;
    if lines.is_empty() {
        return Err(Failure::Usage(format!("{name} holds no device")));
    }
    let known: Vec<Device> = client.get("/api/v1/devices").await?;
    let known: HashSet<String> = known.into_iter().map(|device| device.serial).collect();
    let servers: Vec<TunnelServer> = client.get("/api/v1/tunnel-servers").await?;
    let servers: HashSet<String> = servers.into_iter().map(|server| server.name).collect();

    let lost = Cell::new(None::<CallError>);
    let is_lost = Cell::new(false);
    let each = |line: Result<Line, Fault>| {
        let (known, servers, lost, is_lost) = (&known, &servers, &lost, &is_lost);
        async move {
            let line = match check(line, servers) {
                Ok(line) => line,
                Err(fault) => {
                    let told = Told::new(fault.line, fault.serial, Outcome::Faulty);
                    return told.because(fault.column, fault.message);
                }
            };
            let told = |result| Told::new(line.line, line.serial, result);
            if known.contains(&line.serial.to_string()) {
                return told(Outcome::Same);
            }
            if options.dry_run {
                return told(Outcome::Good);
            }
            if is_lost.get() {
                return told(Outcome::Failed).because("not-tried", "not tried");
            }
            match send(client, &line).await {
                Ok(device) if device.relay == RelayState::Pending => told(Outcome::Kept),
                Ok(_) => told(Outcome::Registered),
                Err(CallError::Refused { status, problem, .. })
                    if ![StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&status) =>
                {
                    // Somebody else, or this command a moment ago.
                    let is_same = problem.error.code == "already-registered";
                    let outcome = if is_same { Outcome::Same } else { Outcome::Refused };
                    told(outcome).because(problem.error.code, problem.error.message)
                }
                // What is between us and the server would be the same for all that follow.
                Err(error) => {
                    is_lost.set(true);
                    let told = told(Outcome::Failed).because("no-answer", error.to_string());
                    lost.set(Some(error));
                    told
                }
            }
        }
    };
    let mut counts: Vec<(Outcome, usize)> = Vec::new();
    let mut results = stream::iter(lines).map(each).buffered(AT_ONCE);
    while let Some(told) = results.next().await {
        told.print(options.json);
        match counts.iter_mut().find(|(outcome, _)| *outcome == told.result) {
            Some((_, count)) => *count += 1,
            None => counts.push((told.result, 1)),
        }
    }
    drop(results);
    let summary: Vec<String> =
        counts.iter().map(|(outcome, count)| format!("{count} {}", outcome.word())).collect();
    let summary = summary.join(", ");
    let nothing_done = options.dry_run || !counts.iter().any(|(outcome, _)| outcome.is_good());
    if counts.iter().all(|(outcome, _)| outcome.is_good()) {
        terminal::say(&summary);
        return Ok(());
    }
    let message = format!("{name}: {summary}; mend those, and run it again");
    match (lost.into_inner(), nothing_done) {
        (_, false) => Err(Failure::Partly(message)),
        (Some(error), true) => {
            terminal::say(&summary);
            Err(error.into())
        }
        (None, true) => Err(Failure::Refused(message)),
    }
}

/// A line that names a tunnel server that nobody knows would be refused: said before it is sent.
fn check(line: Result<Line, Fault>, servers: &HashSet<String>) -> Result<Line, Fault> {
    let line = line?;
    let fault = |message: String| Fault {
        line: line.line,
        serial: line.serial.to_string(),
        column: "server",
        message,
    };
    match &line.server {
        Some(server) if !servers.contains(server) => {
            Err(fault(format!("there is no tunnel server called {server:?}")))
        }
        None if servers.len() > 1 => {
            Err(fault("there are several tunnel servers: name one here, or with --server".to_owned()))
        }
        _ => Ok(line),
    }
}

async fn send(client: &ApiClient, line: &Line) -> Result<Device, CallError> {
    let body = json!({
        "tunnel_server": line.server, "serial": line.serial, "oak": line.oak, "user": line.user,
        "password": line.password, "name": line.name, "description": line.description,
    });
    client.send(Method::POST, "/api/v1/devices", &body).await
}

/// From a file, from standard input, or typed.
pub(super) fn secret(file: Option<&Path>, what: &str, option: &str) -> anyhow::Result<Secret> {
    match file {
        Some(file) if file == Path::new("-") => terminal::line(what),
        Some(file) => read_secret(file),
        None => terminal::ask(what, option),
    }
}
