//! Places with one Internet connection: what they use of it, and limits.
//!
//! Tunnel servers keep and enforce them; every one is told of every site, so that a device that moves stays at its site.

use super::{Body, Path, passed_through};
use crate::{App, gate::Caller, views};
use axum::{Json, extract::State, http::StatusCode};
use homing_base::http::Failure;
use homing_protocol::{
    SerialNumber,
    api::{
        Problem,
        tunnel::{Site, SiteChange, SiteState},
    },
};
use std::{collections::BTreeMap, time::Duration};

/// A tunnel server that is slow does not hold up the others.
const DEADLINE: Duration = Duration::from_secs(3);

/// All sites
///
/// With what their devices use now, summed over the tunnel servers.
#[utoipa::path(get, path = "/api/v1/sites", tag = "devices", responses((status = 200, body = [views::Site])))]
pub async fn list(State(app): State<App>) -> Json<Vec<views::Site>> {
    let asking = app.servers.all().into_iter().map(|server| async move {
        let told = tokio::time::timeout(DEADLINE, server.sites()).await;
        told.ok().and_then(Result::ok).unwrap_or_default()
    });
    let told = futures_util::future::join_all(asking).await.concat();
    let mut sites: BTreeMap<String, views::Site> = BTreeMap::new();
    for site in told {
        match sites.get_mut(&site.name) {
            None => {
                sites.insert(site.name.clone(), view(site));
            }
            Some(known) => {
                known.bps += site.bps;
                known.minute_bps += site.minute_bps;
                let share = f64::from(known.warn_percent) / 100.0 * 1e6;
                if known.upstream_mbit.is_some_and(|upstream| known.minute_bps as f64 >= upstream * share) {
                    known.state = SiteState::Full;
                }
            }
        }
    }
    Json(sites.into_values().collect())
}

/// Enter a site, or change it
///
/// Its devices are those that are named; one that was at another site is there no more.
#[utoipa::path(put, path = "/api/v1/sites/{name}", tag = "devices", request_body = views::SiteChange,
    params(("name" = String, Path, description = "Its name")),
    responses((status = 204, description = "Entered"), (status = 400, body = views::Problem),
        (status = 409, body = views::Problem), (status = 502, body = views::Problem)))]
pub async fn put(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
    Body(asked): Body<views::SiteChange>,
) -> Result<StatusCode, Failure> {
    let devices = asked.devices.iter().map(|serial| serial.parse::<SerialNumber>());
    let devices = devices.collect::<Result<Vec<_>, _>>().map_err(|error| {
        Failure::new(StatusCode::BAD_REQUEST, Problem::new("bad-serial", error.to_string()))
    })?;
    let site = SiteChange { upstream_mbit: asked.upstream_mbit, limit_mbit: asked.limit_mbit, devices };
    let detail = format!(
        "upstream {:?} Mbit/s, limit {:?} Mbit/s, {} devices",
        site.upstream_mbit,
        site.limit_mbit,
        site.devices.len()
    );
    app.record(&caller, "change-site", &name, &detail).await?;
    for server in app.servers.all() {
        server.put_site(&name, &site).await.map_err(passed_through)?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Forget a site
///
/// Its devices stay registered, and are at none.
#[utoipa::path(delete, path = "/api/v1/sites/{name}", tag = "devices",
    params(("name" = String, Path, description = "Its name")),
    responses((status = 204, description = "Forgotten"), (status = 404, body = views::Problem),
        (status = 502, body = views::Problem)))]
pub async fn remove(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<StatusCode, Failure> {
    app.record(&caller, "remove-site", &name, "").await?;
    let mut known = false;
    for server in app.servers.all() {
        match server.remove_site(&name).await {
            Ok(()) => known = true,
            Err(homing_base::client::CallError::Refused { status: StatusCode::NOT_FOUND, .. }) => (),
            Err(error) => return Err(passed_through(error)),
        }
    }
    match known {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Failure::not_found(format!("There is no site called {name:?}."))),
    }
}

fn view(site: Site) -> views::Site {
    views::Site {
        name: site.name,
        upstream_mbit: site.upstream_mbit,
        limit_mbit: site.limit_mbit,
        devices: site.devices.iter().map(ToString::to_string).collect(),
        bps: site.bps,
        minute_bps: site.minute_bps,
        warn_percent: site.warn_percent,
        state: site.state,
    }
}
