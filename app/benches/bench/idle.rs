//! Memory of a tunnel server for each uplink that carries nothing.
//!
//! Memory of the process (PSS) with 5,000 devices registered, without and with their uplinks; the kernel's
//! buffers are not in it. The floor is a TLS connection that a bare relay has connected on, with two buffers
//! of 2 kB.

use crate::{
    devices::{Camera, World},
    floor::{Bare, SMALL_BUFFERS},
    harness::DATA,
    report::Figure,
    whole::{PSS, block_on},
};
use anyhow::ensure;
use std::time::Duration;

const UPLINKS: u32 = 5000;
/// Until every uplink has been asked for a sign of life, and allocators have settled.
const SETTLE: Duration = Duration::from_secs(25);
/// What an idle uplink may hold, in kB.
const BAR_KB: f64 = 16.0;

/// Measures.
pub fn run() -> anyhow::Result<Vec<Figure>> {
    block_on(async {
        let mut world = World::start(UPLINKS, Camera::Video).await?;
        let before = [PSS, DATA].map(|field| world.server.memory_kb(field));
        world.connect_all().await?;
        tokio::time::sleep(SETTLE).await;
        ensure!(
            world.connected() == UPLINKS as usize,
            "{} of {UPLINKS} uplinks are there",
            world.connected()
        );
        let with = [PSS, DATA].map(|field| world.server.memory_kb(field));
        world.end().await;
        let each = |with: u64, before: u64| (with as f64 - before as f64) / f64::from(UPLINKS);

        let floor = Bare::start(UPLINKS, SMALL_BUFFERS, Camera::Video).await?;
        let bare = [PSS, DATA].map(|field| floor.process.memory_kb(field));
        Ok(vec![
            Figure::with_bar(
                format!("each of {UPLINKS} idle uplinks"),
                each(with[0], before[0]),
                "kB",
                BAR_KB,
            )
            .against("bare tokio-rustls", each(bare[0], floor.empty_kb[1])),
            Figure::plain("the same, heap and stacks alone", each(with[1], before[1]), "kB")
                .against("bare tokio-rustls", each(bare[1], floor.empty_kb[0])),
            Figure::plain("the whole tunnel server with them", with[0] as f64 / 1000.0, "MB"),
        ])
    })
}
