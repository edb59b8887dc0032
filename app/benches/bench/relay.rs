//! CPU of a tunnel server that relays 200 cameras of 500 kbit/s to a VMS, against a bare TLS relay that
//! carries the same packets in the same bursts.
//!
//! Both stand all the time with all their connections; they are measured in turn, several times, so
//! that whatever else the machine does meets both.

use crate::{
    devices::{Camera, World},
    floor::{Bare, LARGE_BUFFERS, Load, count},
    report::Figure,
    whole::block_on,
};
use anyhow::ensure;
use std::sync::Arc;
use tokio::task::JoinSet;

const CAMERAS: u32 = 200;
/// What a relay may cost, as a multiple of the floor.
const BAR: f64 = 1.25;

/// Measures.
pub fn run() -> anyhow::Result<Vec<Figure>> {
    block_on(async {
        let mut watching = JoinSet::new();
        let mut world = World::start(CAMERAS, Camera::Video).await?;
        world.connect_all().await?;
        let load = Load { connections: CAMERAS, sending: world.sending.clone(), received: Arc::default() };
        for serial in &world.serials {
            watching.spawn(count(world.watch(*serial).await?, load.received.clone()));
        }
        let floor = Bare::start(CAMERAS, LARGE_BUFFERS, Camera::Video).await?;

        let [ours, bare] = load.beside(&world.server, &floor).await?;
        ensure!(world.connected() == CAMERAS as usize, "uplinks were lost while measuring");
        watching.shutdown().await;
        world.end().await;
        let figure = Figure::plain(format!("{CAMERAS} × 500 kbit/s, CPU of the relay"), ours, "% of a core");
        Ok(vec![figure.against("bare tokio-rustls", bare).ratio_bar(BAR)])
    })
}
