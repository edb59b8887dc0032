//! 5,000 devices come back at once: CPU of the tunnel server for each, and how long it takes.
//!
//! First they connect for the first time. Then all are cut at once, as when a line fails, and come back as fast as they
//! can, with the TLS sessions that they kept. Then the tunnel server is killed and started again. The floor is a connection of the bare relay with a whole handshake, without the device's certificate.
//! The devices do their own half of the cryptography on the same two cores.

use crate::{
    devices::{Camera, World},
    floor::{Bare, SMALL_BUFFERS},
    report::Figure,
    whole::{block_on, cpu_s},
};
use std::time::Duration;

const DEVICES: u32 = 5000;
/// CPU for each that comes back, in milliseconds.
const BAR_MS: f64 = 0.5;
/// Until all are back, in seconds.
const BAR_S: f64 = 6.0;
/// Until the tunnel server has noticed that all have gone, and has written down what it writes down.
const NOTICED: Duration = Duration::from_secs(30);

/// Measures.
pub fn run() -> anyhow::Result<Vec<Figure>> {
    block_on(async {
        let mut world = World::start(DEVICES, Camera::Video).await?;
        let connect = async |world: &mut World| -> anyhow::Result<(f64, f64)> {
            let cpu = cpu_s(&world.server);
            let took = world.connect_all().await?;
            let told = world.until_told(DEVICES as usize, NOTICED).await?;
            println!("{DEVICES} connected in {took:.1?}, all were told {told:.1?} later");
            let cpu = cpu_s(&world.server) - cpu;
            Ok((took.as_secs_f64(), cpu * 1000.0 / f64::from(DEVICES)))
        };
        let (first_s, first_ms) = connect(&mut world).await?;
        world.cut_all_but(0);
        world.until_told(0, NOTICED).await?;
        let (back_s, back_ms) = connect(&mut world).await?;
        world.crash().await?;
        let (crash_s, crash_ms) = connect(&mut world).await?;
        world.end().await;

        let bare = Bare::start(DEVICES, SMALL_BUFFERS, Camera::Video).await?;
        let bare_ms = cpu_s(&bare.process) * 1000.0 / f64::from(DEVICES);
        Ok(vec![
            Figure::with_bar("CPU for each device that comes back", back_ms, "ms", BAR_MS)
                .against("a new connection of the bare relay", bare_ms),
            Figure::with_bar(format!("until {DEVICES} are back"), back_s, "s", BAR_S),
            Figure::with_bar(
                "CPU for each when the tunnel server is back from a crash",
                crash_ms,
                "ms",
                BAR_MS,
            )
            .against("a new connection of the bare relay", bare_ms),
            Figure::with_bar(format!("until {DEVICES} are back from that"), crash_s, "s", BAR_S),
            Figure::plain("CPU for each that comes for the first time", first_ms, "ms")
                .against("a new connection of the bare relay", bare_ms),
            Figure::plain(format!("until {DEVICES} are there for the first time"), first_s, "s"),
        ])
    })
}
