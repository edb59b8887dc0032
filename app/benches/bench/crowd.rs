//! 20,000 idle uplinks at one tunnel server for ten minutes: whether all stay, whether it says the truth
//! about them, and what they hold.
//!
//! Server and devices need a file descriptor for each; where the limit on those is lower, so is the number.

use crate::{
    devices::{Camera, World},
    report::Figure,
    whole::{PSS, block_on, cpu_s},
};
use rustix::process::{Resource, getrlimit, setrlimit};
use std::time::Duration;

const UPLINKS: u32 = 20_000;
/// Descriptors for everything else.
const OTHER_FILES: u64 = 100;
const MINUTES: u32 = 10;
/// Devices that fall off at the end, and the time within which that is known: a TCP connection that ends is told at once.
const CUT: usize = 100;
const KNOWN_WITHIN: Duration = Duration::from_secs(10);
/// The tunnel server with all of them, in MB.
const BAR_MB: f64 = 300.0;

/// Measures.
pub fn run() -> anyhow::Result<Vec<Figure>> {
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, files)?;
    let room = files.maximum.unwrap_or(u64::MAX).saturating_sub(OTHER_FILES);
    let uplinks = UPLINKS.min(u32::try_from(room).unwrap_or(u32::MAX));
    if uplinks < UPLINKS {
        println!("{uplinks} instead of {UPLINKS}: that is what the limit on open files allows (ulimit -n)");
    }
    block_on(async {
        let mut world = World::start(uplinks, Camera::Video).await?;
        let before = world.server.memory_kb(PSS);
        let took = world.connect_all().await?;
        println!("{uplinks} connected in {took:.1?}");
        let all = uplinks as usize;
        world.until_told(all, KNOWN_WITHIN).await?;
        let cpu = cpu_s(&world.server);
        let mut untrue = 0;
        for minute in 1..=MINUTES {
            tokio::time::sleep(Duration::from_secs(60)).await;
            let (told, stand) = (world.told_connected().await?, world.connected());
            untrue = untrue.max(told.abs_diff(stand));
            println!("minute {minute}: {stand} uplinks stand, {told} are said to");
        }
        let cpu = (cpu_s(&world.server) - cpu) / f64::from(MINUTES * 60);
        let lost = all - world.connected();
        let with = world.server.memory_kb(PSS);
        world.cut_all_but(all - CUT);
        let known = world.until_told(all - CUT - lost, KNOWN_WITHIN).await?;
        world.end().await;
        Ok(vec![
            Figure::with_bar(format!("of {uplinks} uplinks lost in {MINUTES} minutes"), lost as f64, "", 0.0),
            Figure::with_bar("most devices of which it said what was not so", untrue as f64, "", 0.0),
            Figure::with_bar("the whole tunnel server with them", with as f64 / 1000.0, "MB", BAR_MB),
            Figure::plain("each of them", (with as f64 - before as f64) / f64::from(uplinks), "kB"),
            Figure::plain("CPU, pings included", 100.0 * cpu, "% of a core"),
            Figure::plain(format!("{CUT} are cut: until it says so"), known.as_secs_f64(), "s"),
        ])
    })
}
