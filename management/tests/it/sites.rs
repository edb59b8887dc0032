//! Sites as an administrator enters them, at tunnel servers that come and go.

use crate::fake::{DEADLINE, FakeTunnel, Site, serial};
use axum::{
    Json, Router,
    extract::{Path, State},
    http::{Method, StatusCode},
    routing::{get, put},
};
use homing_base::Stop;
use homing_protocol::api::tunnel::{self, SiteChange, SiteState};
use serde_json::{Value, json};
use std::time::Duration;

fn path(name: &str) -> String {
    format!("/api/v1/sites/{name}")
}

fn with_limit(limit_mbit: f64) -> SiteChange {
    SiteChange { upstream_mbit: Some(10.0), limit_mbit: Some(limit_mbit), devices: vec![serial(1)] }
}

fn knows(tunnel: &FakeTunnel, sites: &[(&str, &SiteChange)]) -> bool {
    tunnel.sites.lock().unwrap().iter().map(|(name, site)| (name.as_str(), site)).eq(sites.iter().copied())
}

/// What a tunnel server answers about sites.
pub fn routes() -> Router<FakeTunnel> {
    Router::new()
        .route("/api/v1/sites", get(sites))
        .route("/api/v1/sites/{name}", put(put_site).delete(remove_site))
}

async fn sites(State(tunnel): State<FakeTunnel>) -> Json<Vec<tunnel::Site>> {
    let sites = tunnel.sites.lock().unwrap();
    let site = |(name, site): (&String, &SiteChange)| tunnel::Site {
        name: name.clone(),
        upstream_mbit: site.upstream_mbit,
        limit_mbit: site.limit_mbit,
        devices: site.devices.clone(),
        bps: 1_000_000,
        minute_bps: 1_000_000,
        warn_percent: 70,
        state: SiteState::Room,
    };
    Json(sites.iter().map(site).collect())
}

async fn put_site(
    State(tunnel): State<FakeTunnel>,
    Path(name): Path<String>,
    Json(site): Json<SiteChange>,
) -> StatusCode {
    tunnel.sites.lock().unwrap().insert(name, site);
    StatusCode::NO_CONTENT
}

async fn remove_site(State(tunnel): State<FakeTunnel>, Path(name): Path<String>) -> StatusCode {
    match tunnel.sites.lock().unwrap().remove(&name) {
        Some(_) => StatusCode::NO_CONTENT,
        None => StatusCode::NOT_FOUND,
    }
}

impl Site {
    async fn enter(&self, name: &str, site: &SiteChange) -> (StatusCode, Value) {
        self.call(Method::PUT, &path(name), Some(json!(site))).await
    }

    async fn until_knows(&self, tunnel: &FakeTunnel, sites: &[(&str, &SiteChange)]) {
        let waiting = async {
            while !knows(tunnel, sites) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let waited = tokio::time::timeout(DEADLINE, waiting).await;
        waited.unwrap_or_else(|_| panic!("{:?}, not {sites:?}", tunnel.sites.lock().unwrap()));
    }

    async fn until_reachable(&self, name: &str, reachable: bool) {
        self.until_server(name, |server| server["reachable"] == reachable).await;
    }

    /// Which tunnel servers are still to be told, by the list's word.
    async fn until_untold(&self, untold: Value) {
        let waiting = async {
            while self.get("/api/v1/sites").await[0]["untold"] != untold {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(DEADLINE, waiting).await.unwrap_or_else(|_| panic!("not {untold}"));
    }
}

/// Goal: a tunnel server that is away keeps nobody else from being told, is named, and catches up with everything when it
/// is back, removals too, also where it has lost what it was told.
#[tokio::test]
async fn a_tunnel_server_that_was_away_learns_of_sites_when_it_is_back() {
    let site = Site::start_with_two().await;
    let nothing = (StatusCode::NO_CONTENT, Value::String(String::new()));
    let untold = (StatusCode::ACCEPTED, json!({"untold": ["sts"]}));
    let (shop, changed, mill) = (with_limit(5.0), with_limit(6.0), with_limit(7.0));
    assert_eq!(site.enter("Shop", &shop).await, nothing);
    assert!(knows(&site.tunnel, &[("Shop", &shop)]) && knows(&site.second, &[("Shop", &shop)]));

    site.stop_tunnel().await;
    site.until_reachable("sts", false).await;
    assert_eq!(site.enter("Shop", &changed).await, untold);
    assert!(knows(&site.second, &[("Shop", &changed)]), "the other one is told all the same");
    let listed = site.get("/api/v1/sites").await;
    let told = json!({"name": "Shop", "upstream_mbit": 10.0, "limit_mbit": 6.0, "devices": [serial(1).to_string()],
        "bps": 1_000_000, "minute_bps": 1_000_000, "warn_percent": 70, "state": "room", "untold": ["sts"]});
    assert_eq!(listed, json!([told]));
    site.restart_tunnel().await;
    site.until_knows(&site.tunnel, &[("Shop", &changed)]).await;
    site.until_untold(json!([])).await;

    site.stop_tunnel().await;
    site.until_reachable("sts", false).await;
    assert_eq!(site.enter("Mill", &mill).await, untold);
    assert_eq!(site.call(Method::DELETE, &path("Shop"), None).await, untold);
    assert_eq!(site.call(Method::DELETE, &path("Shop"), None).await.0, StatusCode::NOT_FOUND);
    assert!(knows(&site.second, &[("Mill", &mill)]));
    site.restart_tunnel().await;
    site.until_knows(&site.tunnel, &[("Mill", &mill)]).await;

    site.stop_tunnel().await;
    site.until_reachable("sts", false).await;
    site.tunnel.sites.lock().unwrap().clear();
    site.restart_tunnel().await;
    site.until_knows(&site.tunnel, &[("Mill", &mill)]).await;
    assert!(knows(&site.second, &[("Mill", &mill)]));
    site.end().await;
}

/// Goal: one that is added later has the sites of the others, and they have those that it brings; one that is renamed is
/// named by its new name, and one that is removed is waited for no more.
#[tokio::test]
async fn a_tunnel_server_that_is_added_later_has_the_sites_of_the_others() {
    let site = Site::start().await;
    let (shop, own) = (with_limit(5.0), with_limit(9.0));
    assert_eq!(site.enter("Shop", &shop).await.0, StatusCode::NO_CONTENT);
    let north = FakeTunnel::new("north", "home");
    north.sites.lock().unwrap().insert("Harbour".into(), own.clone());
    // It brings a device that was entered at another site here.
    let harbour = SiteChange { devices: Vec::new(), ..own };
    let stop = Stop::new();
    let url = format!("http://127.0.0.1:{}", north.serve(0, stop.clone()).await);
    let named = |name: &str| json!({"name": name, "url": url, "user": "vms", "password": "sesame"});
    let servers = "/api/v1/tunnel-servers";
    let (status, answer) = site.call(Method::POST, servers, Some(named("North"))).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    let both = [("Harbour", &harbour), ("Shop", &shop)];
    site.until_knows(&north, &both).await;
    site.until_knows(&site.tunnel, &both).await;

    assert!(stop.drain(DEADLINE).await);
    site.until_reachable("North", false).await;
    let (status, answer) = site.call(Method::PUT, &format!("{servers}/North"), Some(named("South"))).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let untold = site.enter("Shop", &with_limit(6.0)).await;
    let still_south = (StatusCode::ACCEPTED, json!({"untold": ["South"]}));
    assert_eq!(untold, still_south);
    assert_eq!(
        site.call(Method::DELETE, &path("Harbour"), None).await,
        still_south,
        "it was not reached under that name"
    );
    assert_eq!(site.call(Method::DELETE, &format!("{servers}/South"), None).await.0, StatusCode::NO_CONTENT);
    assert_eq!(site.enter("Shop", &with_limit(7.0)).await.0, StatusCode::NO_CONTENT);
    site.end().await;
}
