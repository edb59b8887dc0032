//! What `/metrics` shows of a recording server, as `homing_recording_…`. No label holds a camera: there are
//! thousands of them; a camera's own figures are in its status.

use std::sync::atomic::{AtomicU64, Ordering};

use homing_base::Ops;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

/// All of them.
pub(crate) struct Metrics {
    pub received_bytes: Counter,
    pub received_packets: Counter,
    pub lost_packets: Counter,
    pub malformed_packets: Counter,
    pub frames: Counter,
    pub dropped_frames: Counter,
    pub connects: Counter,
    pub written_bytes: Counter,
    pub dropped_fragments: Counter,
    pub write_errors: Counter,
    /// Failed writes since the last good one; not shown.
    pub write_errors_now: Streak,
    pub sync_seconds: Histogram,
    pub queued_bytes: Gauge,
    pub cameras_connecting: Gauge,
    pub cameras_recording: Gauge,
    pub cameras_error: Gauge,
    pub viewers: Gauge,
    pub viewer_skipped_frames: Counter,
    pub deleted_files: Counter,
}

/// A count that starts anew.
#[derive(Default)]
pub(crate) struct Streak(AtomicU64);

impl Streak {
    /// The count before.
    pub fn inc(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }

    /// The count before.
    pub fn set(&self, to: u64) -> u64 {
        // Mostly there is nothing to change, and then nothing is written.
        if self.0.load(Ordering::Relaxed) == to { to } else { self.0.swap(to, Ordering::Relaxed) }
    }
}

impl Metrics {
    pub fn register(ops: &Ops) -> Self {
        let metrics = Metrics {
            received_bytes: Counter::default(),
            received_packets: Counter::default(),
            lost_packets: Counter::default(),
            malformed_packets: Counter::default(),
            frames: Counter::default(),
            dropped_frames: Counter::default(),
            connects: Counter::default(),
            written_bytes: Counter::default(),
            dropped_fragments: Counter::default(),
            write_errors: Counter::default(),
            write_errors_now: Streak::default(),
            sync_seconds: Histogram::new([0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0]),
            queued_bytes: Gauge::default(),
            cameras_connecting: Gauge::default(),
            cameras_recording: Gauge::default(),
            cameras_error: Gauge::default(),
            viewers: Gauge::default(),
            viewer_skipped_frames: Counter::default(),
            deleted_files: Counter::default(),
        };
        ops.register("recording", |registry| {
            let counters = [
                ("received_bytes", "Bytes of RTP and RTCP received", &metrics.received_bytes),
                ("received_packets", "RTP packets received", &metrics.received_packets),
                ("lost_packets", "RTP packets that never came", &metrics.lost_packets),
                (
                    "malformed_packets",
                    "RTP packets that contradict their standard",
                    &metrics.malformed_packets,
                ),
                ("frames", "Video frames received whole", &metrics.frames),
                ("dropped_frames", "Video frames dropped after a loss", &metrics.dropped_frames),
                ("connects", "Attempts to connect to cameras", &metrics.connects),
                ("written_bytes", "Bytes of footage written", &metrics.written_bytes),
                (
                    "dropped_fragments",
                    "Fragments not recorded because the disk was too slow or failed",
                    &metrics.dropped_fragments,
                ),
                ("write_errors", "Failed writes of footage", &metrics.write_errors),
                (
                    "viewer_skipped_frames",
                    "Frames that live viewers were too slow for",
                    &metrics.viewer_skipped_frames,
                ),
                ("deleted_files", "Files deleted by retention", &metrics.deleted_files),
            ];
            for (name, help, counter) in counters {
                registry.register(name, help, counter.clone());
            }
            let gauges = [
                ("queued_bytes", "Footage that waits for the disk", &metrics.queued_bytes),
                ("cameras_connecting", "Cameras being connected to", &metrics.cameras_connecting),
                ("cameras_recording", "Cameras that deliver", &metrics.cameras_recording),
                ("cameras_error", "Cameras that are away or refuse", &metrics.cameras_error),
                ("viewers", "Live viewers", &metrics.viewers),
            ];
            for (name, help, gauge) in gauges {
                registry.register(name, help, gauge.clone());
            }
            registry.register("sync_seconds", "Time to secure footage on disk", metrics.sync_seconds.clone());
        });
        metrics
    }
}
