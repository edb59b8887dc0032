//! What a monitoring system asks a process: `/healthz` and `/metrics`.
//!
//! All roles of one process share one [`Ops`]. Metrics are in the Prometheus text format, named
//! `homing_<role>_<what>_<unit>`; labels have few values (never a serial number). A role that has a
//! listener of its own merges [`Ops::router`] into it.
//!
//! Invariant: a stranger learns whether the process is well, and nothing else. The figures, and what is wrong, are for
//! who sits at this machine and for whom the role lets in.

use crate::http::Failure;
use axum::{
    Router,
    extract::{ConnectInfo, Request},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use homing_protocol::api::Problem;
use prometheus_client::registry::Registry;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// Cheap to clone; all clones are the same process's.
#[derive(Clone, Default)]
pub struct Ops {
    registry: Arc<Mutex<Registry>>,
    health: Arc<Mutex<BTreeMap<&'static str, Result<(), String>>>>,
    warnings: Arc<Mutex<BTreeMap<&'static str, Vec<String>>>>,
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

    /// Says what somebody should look at though the part does its work; nothing takes back what was said.
    pub fn warn(&self, part: &'static str, warnings: Vec<String>) {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).insert(part, warnings);
    }

    /// The metrics as text.
    pub fn metrics(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        prometheus_client::encoding::text::encode(&mut text, &registry)
            .expect("writing to a String does not fail");
        text
    }

    /// 200 `ok`, or 503; with one line a part that is not well, and one a warning, for whom that is meant.
    pub fn health(&self, in_detail: bool) -> (StatusCode, String) {
        let health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let faults: String = health
            .iter()
            .filter_map(|(part, state)| state.as_ref().err().map(|error| format!("{part}: {error}\n")))
            .collect();
        let mut warnings = String::new();
        for (part, of) in
            self.warnings.lock().unwrap_or_else(PoisonError::into_inner).iter().filter(|_| in_detail)
        {
            of.iter().for_each(|warning| warnings.push_str(&format!("warning: {part}: {warning}\n")));
        }
        match (faults.is_empty(), in_detail) {
            (true, _) => (StatusCode::OK, format!("ok\n{warnings}")),
            (false, true) => (StatusCode::SERVICE_UNAVAILABLE, faults + &warnings),
            (false, false) => (StatusCode::SERVICE_UNAVAILABLE, "not well\n".to_owned()),
        }
    }

    /// `GET /healthz` and `GET /metrics`. Who comes from another machine reads no more than a word, unless `admits`
    /// knows the request; `challenge` says how to ask (RFC 9110 §11.6.1).
    pub fn router(
        &self,
        challenge: &'static str,
        admits: impl Fn(&Request) -> bool + Clone + Send + Sync + 'static,
    ) -> Router {
        let may_read = move |request: &Request| is_local(request) || admits(request);
        let (health, metrics) = (self.clone(), self.clone());
        let knows = may_read.clone();
        let healthz = async move |request: Request| health.health(knows(&request));
        let page = async move |request: Request| {
            if may_read(&request) { metrics.page() } else { refused(challenge) }
        };
        Router::new().route("/healthz", get(healthz)).route("/metrics", get(page))
    }

    /// The metrics as an answer.
    pub fn page(&self) -> Response {
        let version = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        ([(header::CONTENT_TYPE, version)], self.metrics()).into_response()
    }
}

/// Whether a request comes from this machine.
pub fn is_local(request: &Request) -> bool {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    peer.is_some_and(|ConnectInfo(peer)| peer.ip().to_canonical().is_loopback())
}

fn refused(challenge: &'static str) -> Response {
    let message = "The figures are for this machine and for who may ask; see docs/operations.md.";
    let failure = Failure::new(StatusCode::UNAUTHORIZED, Problem::new("unauthorised", message));
    let mut response = failure.into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    response
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
        assert_eq!(ops.health(true), (StatusCode::OK, "ok\n".to_owned()));
        ops.warn("tunnel", vec!["look there".to_owned()]);
        assert_eq!(ops.health(true), (StatusCode::OK, "ok\nwarning: tunnel: look there\n".to_owned()));
        assert_eq!(ops.health(false), (StatusCode::OK, "ok\n".to_owned()));
        ops.warn("tunnel", Vec::new());
        ops.report("recording", Err("disk full".into()));
        assert_eq!(ops.health(true), (StatusCode::SERVICE_UNAVAILABLE, "recording: disk full\n".to_owned()));
    }

    /// Goal: from elsewhere a stranger learns whether it is well, and nothing else.
    #[tokio::test]
    async fn figures_and_faults_are_not_for_strangers() {
        let ops = Ops::new();
        ops.report("recording", Err("disk full".into()));
        let router = ops.router("Bearer", |request| request.headers().contains_key("x-known"));
        let ask = async |path: &str, from: [u8; 4], known: bool| {
            let mut request = Request::builder().uri(path);
            if known {
                request = request.header("x-known", "1");
            }
            let mut request = request.body(axum::body::Body::empty()).unwrap();
            request.extensions_mut().insert(ConnectInfo(SocketAddr::from((from, 4711))));
            let response = tower::ServiceExt::oneshot(router.clone(), request).await.unwrap();
            let status = response.status();
            let body = axum::body::to_bytes(response.into_body(), 65536).await.unwrap();
            (status, String::from_utf8(body.to_vec()).unwrap())
        };
        for (from, known, may_read) in
            [([127, 0, 0, 1], false, true), ([192, 0, 2, 1], true, true), ([192, 0, 2, 1], false, false)]
        {
            let (status, body) = ask("/healthz", from, known).await;
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(body.contains("disk full"), may_read, "{from:?} {known}");
            let (status, body) = ask("/metrics", from, known).await;
            assert_eq!(status == StatusCode::OK, may_read, "{from:?} {known}");
            assert_eq!(body.contains("# EOF"), may_read);
        }
    }
}
