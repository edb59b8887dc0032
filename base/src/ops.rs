//! What a monitoring system asks a process: `/healthz` and `/metrics`.
//!
//! All roles of one process share one [`Ops`]. Metrics are in the Prometheus text format, named
//! `homing_<role>_<what>_<unit>`; labels have few values (never a serial number). A role that has a
//! listener of its own merges [`Ops::router`] into it; both pages tell nothing that a stranger could
//! use, but are served only on internal addresses.

use axum::{
    Router,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use prometheus_client::registry::Registry;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// Cheap to clone; all clones are the same process's.
#[derive(Clone, Default)]
pub struct Ops {
    registry: Arc<Mutex<Registry>>,
    health: Arc<Mutex<BTreeMap<&'static str, Result<(), String>>>>,
}

impl Ops {
    /// Nothing registered, nothing unhealthy.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers a role's metrics under `homing_<role>`.
    pub fn register(&self, role: &'static str, register: impl FnOnce(&mut Registry)) {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        register(registry.sub_registry_with_prefix(format!("homing_{role}")));
    }

    /// Says how a part of the process is: `Err` holds what is wrong and what to check.
    pub fn report(&self, part: &'static str, state: Result<(), String>) {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).insert(part, state);
    }

    /// The metrics as text.
    pub fn metrics(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        prometheus_client::encoding::text::encode(&mut text, &registry)
            .expect("writing to a String does not fail");
        text
    }

    /// 200 `ok`, or 503 with one line a part that is not well.
    pub fn health(&self) -> (StatusCode, String) {
        let health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let faults: String = health
            .iter()
            .filter_map(|(part, state)| state.as_ref().err().map(|error| format!("{part}: {error}\n")))
            .collect();
        if faults.is_empty() {
            (StatusCode::OK, "ok\n".to_owned())
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, faults)
        }
    }

    /// `GET /healthz` and `GET /metrics`.
    pub fn router(&self) -> Router {
        let (health, metrics) = (self.clone(), self.clone());
        Router::new().route("/healthz", get(async move || health.health())).route(
            "/metrics",
            get(async move || {
                let version = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                ([(header::CONTENT_TYPE, version)], metrics.metrics()).into_response()
            }),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;

    #[test]
    fn two_roles_share_a_page_and_one_fault_makes_it_unhealthy() {
        let ops = Ops::new();
        let devices = Counter::<u64>::default();
        ops.register("tunnel", |registry| {
            registry.register("uplinks", "Uplinks accepted", devices.clone());
        });
        devices.inc();
        assert!(ops.metrics().contains("homing_tunnel_uplinks_total 1"), "{}", ops.metrics());

        ops.report("recording", Ok(()));
        assert_eq!(ops.health(), (StatusCode::OK, "ok\n".to_owned()));
        ops.report("recording", Err("disk full".into()));
        assert_eq!(ops.health(), (StatusCode::SERVICE_UNAVAILABLE, "recording: disk full\n".to_owned()));
    }
}
