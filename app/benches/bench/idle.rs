//! Memory that a tunnel server holds for each uplink that carries nothing.
//!
//! PSS of the process with 1,000 devices registered, without and with their uplinks; the kernel's
//! buffers are not in it.

use crate::{devices::World, report::Figure, whole::block_on};
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
        let before = world.server.memory_kb();
        world.connect_all().await?;
        tokio::time::sleep(SETTLE).await;
        ensure!(
            world.connected() == UPLINKS as usize,
            "{} of {UPLINKS} uplinks are there",
            world.connected()
        );
        let with = world.server.memory_kb();
        world.end().await;
        let each = (with as f64 - before as f64) / f64::from(UPLINKS);
        Ok(vec![
            Figure::with_bar(format!("each of {UPLINKS} idle uplinks"), each, "kB", BAR_KB),
            Figure::plain("the whole tunnel server with them", with as f64 / 1000.0, "MB"),
        ])
    })
}
