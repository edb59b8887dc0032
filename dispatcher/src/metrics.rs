//! What the dispatcher counts, `homing_dispatcher_*`.

use homing_base::Ops;
use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge};

type Label = [(&'static str, &'static str); 1];

/// Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Metrics {
    waiting: Gauge,
    arrivals: Counter,
    refused: Family<Label, Counter>,
    dispatches: Family<Label, Counter>,
    postponed: Counter,
    noted: Family<Label, Counter>,
    requests: Family<Label, Counter>,
    wrong: Family<Label, Counter>,
}

impl Metrics {
    pub fn register(ops: &Ops) -> Self {
        let metrics = Metrics::default();
        ops.register("dispatcher", |registry| {
            registry.register("devices", "Devices connected now", metrics.waiting.clone());
            registry.register("arrivals", "Devices that phoned home", metrics.arrivals.clone());
            let refused = "Connections of devices refused, by reason";
            registry.register("refused", refused, metrics.refused.clone());
            registry.register("dispatches", "Attempts of step 5, by result", metrics.dispatches.clone());
            let postponed = "Attempts of step 5 put off because of earlier failures";
            registry.register("postponed", postponed, metrics.postponed.clone());
            let noted = "Devices dispatched that were noted, by what was odd about them";
            registry.register("noted", noted, metrics.noted.clone());
            registry.register("api_requests", "API requests, by result", metrics.requests.clone());
            let wrong = "Wrong OAKs, proofs and passwords, by what they are counted by";
            registry.register("wrong_secrets", wrong, metrics.wrong.clone());
        });
        metrics
    }

    pub fn arrived(&self) {
        self.arrivals.inc();
        self.waiting.inc();
    }

    pub fn left(&self) {
        self.waiting.dec();
    }

    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&[("reason", reason)]).inc();
    }

    pub fn dispatched(&self, result: &'static str) {
        self.dispatches.get_or_create(&[("result", result)]).inc();
    }

    pub fn postponed(&self) {
        self.postponed.inc();
    }

    pub fn noted(&self, what: &'static str) {
        self.noted.get_or_create(&[("what", what)]).inc();
    }

    pub fn request(&self, result: &'static str) {
        self.requests.get_or_create(&[("result", result)]).inc();
    }

    pub fn wrong(&self, what: &'static str) {
        self.wrong.get_or_create(&[("what", what)]).inc();
    }
}
