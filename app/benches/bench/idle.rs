//! Memory that a tunnel server holds for each uplink that carries nothing.
//!
//! Data of the process (heap and stacks) with 1,000 devices registered, without and with their uplinks.
//! Pages of the program, read in as they are needed, and the kernel's buffers are not in it. The floor
//! is a TLS connection that a bare relay has connected on, with two buffers of 2 kB.

use crate::{
    devices::World,
    floor::{Bare, SMALL_BUFFERS},
    harness::DATA,
    report::Figure,
    whole::block_on,
};
use anyhow::ensure;
use std::time::Duration;

const UPLINKS: u32 = 1000;
/// Until every uplink has been asked for a sign of life, and allocators have settled.
const SETTLE: Duration = Duration::from_secs(25);
/// What an idle uplink may hold, in kB.
const BAR_KB: f64 = 25.0;

/// Measures.
pub fn run() -> anyhow::Result<Vec<Figure>> {
    block_on(async {
        let world = World::start(UPLINKS).await?;
        let before = world.server.memory_kb(DATA);
        world.connect_all().await?;
        tokio::time::sleep(SETTLE).await;
        ensure!(
            world.connected() == UPLINKS as usize,
            "{} of {UPLINKS} uplinks are there",
            world.connected()
        );
        let (with, whole) = (world.server.memory_kb(DATA), world.server.memory_kb("Pss"));
        world.end().await;
        let each = |with: u64, before: u64| (with as f64 - before as f64) / f64::from(UPLINKS);

        let floor = Bare::start(UPLINKS, SMALL_BUFFERS).await?;
        let bare = each(floor.process.memory_kb(DATA), floor.empty_kb);
        Ok(vec![
            Figure::with_bar(format!("each of {UPLINKS} idle uplinks"), each(with, before), "kB", BAR_KB)
                .against("bare tokio-rustls", bare),
            Figure::plain("the whole tunnel server with them", whole as f64 / 1000.0, "MB"),
        ])
    })
}
