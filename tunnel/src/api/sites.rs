//! Places with one Internet connection, in JSON: see `tunnel/src/sites.rs`.

use super::{Api, Guarded, OneDevice, read};
use axum::{
    Json,
    body::Body,
    extract::{Path, State},
};
use homing_base::http::Failure;
use homing_protocol::api::{
    Problem,
    tunnel::{SITES_MAX, Site, SiteChange},
};
use http::{HeaderMap, StatusCode};

/// All sites
#[utoipa::path(get, path = "/api/v1/sites", responses((status = 200, body = Vec<Site>), Guarded))]
pub(super) async fn all(State(api): State<Api>) -> Json<Vec<Site>> {
    Json(api.devices.sites().all())
}

/// Enters a site, or changes it
#[utoipa::path(put, path = "/api/v1/sites/{name}", params(("name" = String, Path, description = "Its name")),
    request_body = SiteChange, responses((status = 204), (status = 409, description = "There are too many", body = Problem),
        (status = 415, description = "Not JSON", body = Problem), OneDevice, Guarded))]
pub(super) async fn put(
    State(api): State<Api>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Failure> {
    let site: SiteChange = read(&headers, body).await?;
    site.check(&name).map_err(Failure::bad_request)?;
    let all = api.devices.sites().all();
    if all.len() >= SITES_MAX && all.iter().all(|site| site.name != name) {
        let message = format!("{SITES_MAX} sites are as many as a tunnel server takes.");
        return Err(Failure::new(StatusCode::CONFLICT, Problem::new("too-many", message)));
    }
    tracing::info!(
        site = name, upstream_mbit = ?site.upstream_mbit, limit_mbit = ?site.limit_mbit, devices = site.devices.len(),
        "site entered"
    );
    api.devices.put_site(&name, site).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Forgets a site; its devices are at none
#[utoipa::path(delete, path = "/api/v1/sites/{name}", params(("name" = String, Path, description = "Its name")),
    responses((status = 204), OneDevice, Guarded))]
pub(super) async fn remove(State(api): State<Api>, Path(name): Path<String>) -> Result<StatusCode, Failure> {
    match api.devices.remove_site(&name).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Failure::not_found(format!("There is no site called {name:?}."))),
    }
}
