//! One stream as fast as it goes: CPU of the tunnel server for each GB, against a bare TLS relay.
//!
//! Measured in turn, several times, as for many cameras; see [`relay`](crate::relay). Device and VMS are one thread on the
//! other core, so MB/s is what both together reach.

use crate::{
    devices::{Camera, World},
    floor::{Bare, LARGE_BUFFERS, Load, count},
    report::Figure,
    whole::{block_on, median},
};
use anyhow::ensure;
use std::{sync::Arc, time::Duration};
use tokio::task::JoinSet;

const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(8);
/// What a GB may cost, as a multiple of the floor.
const BAR: f64 = 1.3;

/// Measures.
pub fn run() -> anyhow::Result<Vec<Figure>> {
    block_on(async {
        let mut watching = JoinSet::new();
        let mut world = World::start(1, Camera::Bulk).await?;
        world.connect_all().await?;
        let load = Load { connections: 1, sending: world.sending.clone(), received: Arc::default() };
        watching.spawn(count(world.watch(world.serials[0]).await?, load.received.clone()));
        let floor = Bare::start(1, LARGE_BUFFERS, Camera::Bulk).await?;

        let (mut ours, mut bare) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
        for round in 1..=ROUNDS {
            for (name, load, process, figures) in [
                ("bare relay", &floor.load, &floor.process, &mut bare),
                ("tunnel server", &load, &world.server, &mut ours),
            ] {
                let measured = load.bulk(process, ROUND).await;
                println!("round {round}: {name} {:.2} CPU-s per GB, {:.0} MB/s", measured[0], measured[1]);
                figures.iter_mut().zip(measured).for_each(|(figures, measured)| figures.push(measured));
            }
        }
        ensure!(world.connected() == 1, "the uplink was lost while measuring");
        watching.shutdown().await;
        world.end().await;
        let ([ours_cpu, ours_speed], [bare_cpu, bare_speed]) = (ours.map(median), bare.map(median));
        Ok(vec![
            Figure::plain("CPU of the relay for each GB of one stream", ours_cpu, "s")
                .against("bare tokio-rustls", bare_cpu)
                .ratio_bar(BAR),
            Figure::plain("throughput of one stream", ours_speed, "MB/s")
                .against("bare tokio-rustls", bare_speed),
        ])
    })
}
