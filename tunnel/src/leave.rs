//! The end in order: new devices and requests are refused for now, streams in use have time to end, then the uplinks are
//! closed one after the other.
//!
//! Closed all at once, thousands of devices would dial in the same second: here again, or at the next server. So they are
//! spread over [`WAVES`], which their own jitter spreads further. A server that nobody uses has nothing to wait for.
//!
//! Invariant: it is over after `drain_s` and [`WAVES`], whatever others do; what a role's stop ends at once it does not
//! hold up.

use crate::{config::Config, devices::Devices};
use homing_base::{Live, Ops, Stop};
use homing_uplink::{EndReason, Uplink};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Over how long uplinks are closed, when there are many.
const WAVES: Duration = Duration::from_secs(3);

/// Between two waves.
const WAVE: Duration = Duration::from_millis(50);

/// Uplinks of a wave, at least: few are closed at once.
const WAVE_LEAST: usize = 20;

/// Between looks at whether streams are in use.
const LOOK: Duration = Duration::from_millis(100);

/// Waits until the role is asked to leave, and leaves.
pub(crate) async fn leave(devices: Arc<Devices>, config: Live<Config>, ops: Ops, stop: Stop) {
    let hold = stop.hold();
    stop.leaving().await;
    tokio::select! {
        () = in_order(&devices, &config, &ops) => (),
        () = stop.cancelled() => (),
    }
    drop(hold);
}

async fn in_order(devices: &Devices, config: &Live<Config>, ops: &Ops) {
    ops.report("tunnel", Err("it is about to stop, and takes no new devices".into()));
    let (began, deadline) = (Instant::now(), config.get().limits.drain());
    let mut told = false;
    loop {
        let streams = in_use(devices);
        if streams == 0 {
            break;
        }
        if began.elapsed() >= deadline {
            tracing::warn!(
                streams,
                drain_s = deadline.as_secs(),
                "streams in use are cut off: they had their time"
            );
            break;
        }
        if !std::mem::replace(&mut told, true) {
            tracing::info!(
                streams,
                drain_s = deadline.as_secs(),
                "about to stop; streams in use have time to end"
            );
        }
        tokio::time::sleep(LOOK).await;
    }
    let mut uplinks: Vec<Uplink> = Vec::new();
    devices.for_each_connected(|connected| uplinks.push(connected.uplink.clone()));
    let waves = usize::try_from(WAVES.as_millis() / WAVE.as_millis()).unwrap_or(1);
    let in_a_wave = uplinks.len().div_ceil(waves).max(WAVE_LEAST);
    tracing::info!(uplinks = uplinks.len(), "closing the uplinks");
    for (index, wave) in uplinks.chunks(in_a_wave).enumerate() {
        if index > 0 {
            tokio::time::sleep(WAVE).await;
        }
        wave.iter().for_each(|uplink| uplink.close(EndReason::Stopped));
    }
}

/// Streams in use of all devices.
fn in_use(devices: &Devices) -> usize {
    let mut streams = 0;
    devices.for_each_connected(|connected| streams += connected.uplink.stats().streams);
    streams
}
