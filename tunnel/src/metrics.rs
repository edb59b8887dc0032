//! What the tunnel server counts, as `homing_tunnel_…` (see [`homing_base::Ops`]).
//!
//! Bytes are counted by the uplinks themselves and summed when somebody looks, so that moving them costs nothing here.

use crate::{
    devices::Devices,
    history::{END_CODES, end_code},
};
use homing_base::Ops;
use homing_protocol::api::tunnel::Statistics;
use homing_uplink::{EndReason, UplinkStats};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
    },
};
use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

/// Why a connection did not become an uplink.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Refused {
    /// A word: `unknown-key`, `tls`, …
    pub reason: &'static str,
}

/// What was too much on the internal address.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Limited {
    /// `requests-per-device`, …
    pub limit: &'static str,
}

/// What a request through the proxy came to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Answered {
    /// `2xx`, `4xx`, …
    pub status: &'static str,
}

/// Why an uplink ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Ended {
    /// A word, as in the history: `device-closed`, `silent`, …
    pub reason: &'static str,
}

/// Seconds: from a machine in the same rack to a satellite.
const ROUND_TRIPS: [f64; 9] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

/// Seconds that uplinks stood: from a device that cannot stay to one that never left.
const DURATIONS: [f64; 8] = [1.0, 10.0, 60.0, 600.0, 3600.0, 21_600.0, 86_400.0, 604_800.0];

/// The counters that are kept as things happen.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// Uplinks admitted since the start.
    pub uplinks_admitted: Counter,
    /// Uplinks that have ended, by reason.
    pub ended: Family<Ended, Counter>,
    /// How long they stood.
    pub stood: Histogram,
    /// Of PINGs, at every look.
    pub round_trip: Histogram,
    /// Connections refused, by reason.
    pub refused: Family<Refused, Counter>,
    /// Connections and requests beyond a limit on the internal address.
    pub limited: Family<Limited, Counter>,
    /// Requests through the proxy, by class of status.
    pub proxied: Family<Answered, Counter>,
    /// 1 while the dispatcher answers.
    pub dispatcher_reachable: Gauge,
    /// RTSP clients that are connected to the gateway.
    pub gateway_connections: Gauge,
    /// Those to whom something plays.
    pub gateway_viewers: Gauge,
    /// Streams from devices that they share.
    pub gateway_streams: Gauge,
    /// Bytes kept of them, and waiting for viewers that are slow.
    pub gateway_queued_bytes: Gauge,
    /// Bytes that viewers were sent.
    pub gateway_sent_bytes: Counter,
    /// Packets that viewers missed who were too slow.
    pub gateway_dropped_packets: Counter,
    /// What RTSP clients were refused, by status.
    gateway_refused: Family<Answered, Counter>,
    /// Of uplinks that have ended.
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            uplinks_admitted: Counter::default(),
            ended: Family::default(),
            stood: Histogram::new(DURATIONS),
            round_trip: Histogram::new(ROUND_TRIPS),
            refused: Family::default(),
            limited: Family::default(),
            proxied: Family::default(),
            dispatcher_reachable: Gauge::default(),
            gateway_connections: Gauge::default(),
            gateway_viewers: Gauge::default(),
            gateway_streams: Gauge::default(),
            gateway_queued_bytes: Gauge::default(),
            gateway_sent_bytes: Counter::default(),
            gateway_dropped_packets: Counter::default(),
            gateway_refused: Family::default(),
            bytes_in: AtomicU64::default(),
            bytes_out: AtomicU64::default(),
        }
    }
}

impl Metrics {
    /// Registers everything with the process.
    pub fn register(self: &Arc<Self>, ops: &Ops, devices: &Arc<Devices>) {
        // From the start, so that the first one is seen as a change.
        for reason in END_CODES {
            drop(self.ended.get_or_create(&Ended { reason }));
        }
        for reason in ["unknown-key", "not-trusted", "too-many-from-network", "full"] {
            drop(self.refused.get_or_create(&Refused { reason }));
        }
        for status in ["2xx", "4xx", "5xx"] {
            drop(self.proxied.get_or_create(&Answered { status }));
        }
        let looker = Looker { metrics: Arc::clone(self), devices: Arc::downgrade(devices) };
        ops.register("tunnel", |registry| {
            registry.register("uplinks_admitted", "Uplinks admitted", self.uplinks_admitted.clone());
            registry.register("uplinks_ended", "Uplinks that have ended, by reason", self.ended.clone());
            registry.register(
                "uplink_duration_seconds",
                "How long uplinks stood that have ended",
                self.stood.clone(),
            );
            registry.register(
                "round_trip_seconds",
                "Round-trip times of PINGs to devices, every few seconds each",
                self.round_trip.clone(),
            );
            registry.register("refused", "Connections refused", self.refused.clone());
            registry.register("limited", "Beyond a limit on the internal address", self.limited.clone());
            registry.register("proxy_requests", "Requests through the proxy", self.proxied.clone());
            registry.register(
                "dispatcher_reachable",
                "1 while the dispatcher answers",
                self.dispatcher_reachable.clone(),
            );
            for (name, help, gauge) in [
                ("gateway_connections", "RTSP clients that are connected", &self.gateway_connections),
                ("gateway_viewers", "RTSP clients to whom something plays", &self.gateway_viewers),
                ("gateway_streams", "Streams from devices that RTSP clients share", &self.gateway_streams),
                (
                    "gateway_queued_bytes",
                    "Bytes kept of streams for RTSP clients, and waiting for those that are slow",
                    &self.gateway_queued_bytes,
                ),
            ] {
                registry.register(name, help, gauge.clone());
            }
            for (name, help, counter) in [
                ("gateway_sent_bytes", "Bytes sent to RTSP clients", &self.gateway_sent_bytes),
                (
                    "gateway_dropped_packets",
                    "RTP packets that RTSP clients missed who were too slow",
                    &self.gateway_dropped_packets,
                ),
            ] {
                registry.register(name, help, counter.clone());
            }
            registry.register(
                "gateway_refused",
                "Requests of RTSP clients that were refused, by class of status; 401 counts wrong passwords only",
                self.gateway_refused.clone(),
            );
            registry.register_collector(Box::new(looker));
        });
    }

    /// A connection was refused.
    pub fn refuse(&self, reason: &'static str) {
        self.refused.get_or_create(&Refused { reason }).inc();
    }

    /// Counts what is beyond a limit on the internal address.
    pub fn limited(&self, limit: &'static str) -> Counter {
        self.limited.get_or_create_owned(&Limited { limit })
    }

    /// A request through the proxy was answered.
    pub fn proxied(&self, status: http::StatusCode) {
        self.proxied.get_or_create(&Answered { status: class(status.as_u16()) }).inc();
    }

    /// A request of an RTSP client was refused.
    pub fn gateway_refuse(&self, status: u16) {
        self.gateway_refused.get_or_create(&Answered { status: class(status) }).inc();
    }

    /// What is carried, in all.
    pub fn statistics(&self, devices: &Devices) -> Statistics {
        let (registered, pending) = devices.counts();
        let mut sum = Statistics {
            registered: registered as u64,
            pending: pending as u64,
            connected: devices.count_connected() as u64,
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
            ..Statistics::default()
        };
        devices.for_each_connected(|connected| {
            let stats = connected.uplink.stats();
            sum.bytes_in += stats.bytes_in;
            sum.bytes_out += stats.bytes_out;
            sum.streams += stats.streams as u64;
            sum.uplinks += 1;
        });
        sum
    }

    /// An uplink has ended: its bytes stay counted.
    pub fn uplink_ended(&self, stats: &UplinkStats, reason: &EndReason) {
        self.ended.get_or_create(&Ended { reason: end_code(reason) }).inc();
        self.stood.observe(stats.connected_since.elapsed().unwrap_or_default().as_secs_f64());
        self.bytes_in.fetch_add(stats.bytes_in, Ordering::Relaxed);
        self.bytes_out.fetch_add(stats.bytes_out, Ordering::Relaxed);
    }
}

fn class(status: u16) -> &'static str {
    match status / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    }
}

/// Sums up when somebody looks.
struct Looker {
    metrics: Arc<Metrics>,
    devices: Weak<Devices>,
}

impl fmt::Debug for Looker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Looker")
    }
}

impl Collector for Looker {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(devices) = self.devices.upgrade() else { return Ok(()) };
        let sum = self.metrics.statistics(&devices);
        let (declared, full, limited) = devices.sites().counts();
        for (name, help, value) in [
            ("sites_declared", "Sites whose upstream was declared", declared as u64),
            ("sites_full", "Sites that use nearly all of their declared upstream", full as u64),
            ("sites_limited", "Sites with a limit", limited as u64),
            ("uplinks", "Uplinks that stand", sum.uplinks),
            ("streams", "Streams in use through uplinks", sum.streams),
            ("registrations", "Registered devices", sum.registered),
            ("relay_pending", "Registrations still to be relayed", sum.pending),
        ] {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        for (name, help, value) in [
            ("uplink_received_bytes", "Bytes received from devices", sum.bytes_in),
            ("uplink_sent_bytes", "Bytes sent to devices", sum.bytes_out),
        ] {
            let counter = ConstCounter::new(value);
            let metric = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            counter.encode(metric)?;
        }
        Ok(())
    }
}
