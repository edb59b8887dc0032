//! 20,000 idle uplinks for ten minutes: whether all stay, whether their tunnel server says the truth about
//! them, and what they hold.
//!
//! A tunnel server needs a file descriptor for each, and so does the process of its devices. Where the limit on those
//! is too low for one, several tunnel servers share them. Each is looked after by a process of its own, started as
//! `bench crowd-part UPLINKS`: prints a line once all are connected, holds them from the moment it is told
//! to, and prints what came of it.

use crate::{
    devices::{Camera, World},
    report::Figure,
    whole::{PSS, block_on, cpu_s},
};
use anyhow::Context;
use rustix::process::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio},
    time::Duration,
};

const UPLINKS: u32 = 20_000;
/// Descriptors for everything else.
const OTHER_FILES: u64 = 100;
const MINUTES: u32 = 10;
/// Devices of each tunnel server that fall off at the end, and the time within which that is known: a TCP connection that
/// ends is told at once.
const CUT: usize = 100;
const KNOWN_WITHIN: Duration = Duration::from_secs(10);
/// All tunnel servers with all of them, in MB.
const BAR_MB: f64 = 300.0;
/// What a part says once all its devices are connected.
const CONNECTED: &str = "connected";

/// What came of one tunnel server's share.
#[derive(Serialize, Deserialize)]
struct Held {
    lost: usize,
    /// The most devices in any minute of which it said what was not so.
    untrue: usize,
    /// The tunnel server before the first connected, and with all of them.
    memory_kb: [u64; 2],
    /// Cores.
    cpu: f64,
    /// Until it was said that some were cut.
    known: Duration,
}

/// Measures.
pub fn run() -> anyhow::Result<Vec<Figure>> {
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, files)?;
    let room = files.maximum.unwrap_or(u64::MAX).saturating_sub(OTHER_FILES);
    let servers = u64::from(UPLINKS).div_ceil(room.max(1)) as u32;
    let share = UPLINKS.div_ceil(servers);
    println!(
        "{servers} tunnel server(s) with {share} uplinks each: the limit on open files has room for {room}"
    );

    let mut parts = (0..servers).map(|_| Part::start(share)).collect::<anyhow::Result<Vec<_>>>()?;
    for part in &mut parts {
        let line = part.line()?;
        anyhow::ensure!(line == CONNECTED, "a part said {line:?}");
    }
    println!("all are connected");
    for part in &mut parts {
        writeln!(part.begin)?;
    }
    let mut held = Vec::new();
    for part in &mut parts {
        held.push(serde_json::from_str::<Held>(&part.line()?)?);
        anyhow::ensure!(part.process.wait()?.success(), "a part failed at its end");
    }

    let sum = |of: fn(&Held) -> f64| held.iter().map(of).sum::<f64>();
    let (lost, untrue) = (sum(|part| part.lost as f64), sum(|part| part.untrue as f64));
    let [before, with] = [sum(|part| part.memory_kb[0] as f64), sum(|part| part.memory_kb[1] as f64)];
    let known = held.iter().map(|part| part.known).max().unwrap_or_default();
    let uplinks = share * servers;
    let whole = match servers {
        1 => "the whole tunnel server with them".to_owned(),
        _ => format!("the {servers} tunnel servers that share them, together"),
    };
    Ok(vec![
        Figure::with_bar(format!("of {uplinks} uplinks lost in {MINUTES} minutes"), lost, "", 0.0),
        Figure::with_bar("most devices of which was said what was not so", untrue, "", 0.0),
        Figure::with_bar(whole, with / 1000.0, "MB", BAR_MB),
        Figure::plain("each of them", (with - before) / f64::from(uplinks), "kB"),
        Figure::plain("CPU, pings included", 100.0 * sum(|part| part.cpu), "% of a core"),
        Figure::plain(format!("{CUT} of each server are cut: until it says so"), known.as_secs_f64(), "s"),
    ])
}

/// A process that holds one tunnel server and its share. It ends when its input does.
struct Part {
    process: Child,
    begin: ChildStdin,
    said: BufReader<ChildStdout>,
}

impl Part {
    fn start(uplinks: u32) -> anyhow::Result<Part> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["crowd-part", &uplinks.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn()?;
        let begin = process.stdin.take().context("its input")?;
        let said = BufReader::new(process.stdout.take().context("its output")?);
        Ok(Part { process, begin, said })
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        anyhow::ensure!(self.said.read_line(&mut line)? > 0, "a part ended early");
        Ok(line.trim_end().to_owned())
    }
}

/// The process of a part.
pub fn main(arguments: &[String]) -> ExitCode {
    let [uplinks] = arguments else {
        eprintln!("crowd-part UPLINKS");
        return ExitCode::from(2);
    };
    match block_on(hold(uplinks.parse().expect("a number"))) {
        Ok(held) => {
            println!("{}", serde_json::to_string(&held).expect("JSON"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn hold(uplinks: u32) -> anyhow::Result<Held> {
    let mut world = World::start(uplinks, Camera::Video).await?;
    let before = world.server.memory_kb(PSS);
    let took = world.connect_all().await?;
    eprintln!("{uplinks} connected in {took:.1?}");
    let all = uplinks as usize;
    world.until_told(all, KNOWN_WITHIN).await?;
    println!("{CONNECTED}");
    let told = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await??;
    anyhow::ensure!(told > 0, "the benchmark has ended");

    let cpu = cpu_s(&world.server);
    let mut untrue = 0;
    for minute in 1..=MINUTES {
        tokio::time::sleep(Duration::from_secs(60)).await;
        let wrong = world.told_wrongly().await?;
        untrue = untrue.max(wrong);
        eprintln!(
            "minute {minute}: {} uplinks stand, of {wrong} devices the list is wrong",
            world.connected()
        );
    }
    let cpu = (cpu_s(&world.server) - cpu) / f64::from(MINUTES * 60);
    let lost = all - world.connected();
    let with = world.server.memory_kb(PSS);
    world.cut_all_but(all - CUT);
    let known = world.until_told(all - CUT - lost, KNOWN_WITHIN).await?;
    world.end().await;
    Ok(Held { lost, untrue, memory_kb: [before, with], cpu, known })
}
