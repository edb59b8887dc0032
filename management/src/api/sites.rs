//! Places with one Internet connection: what they use of it, and limits.
//!
//! What was entered is kept by [`crate::sites`], which tells every tunnel server, also one that is away now, or added later;
//! they measure and enforce, so that a device that moves stays at its site.

use super::{Body, Path};
use crate::{App, gate::Caller, views};
use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use homing_base::http::Failure;
use homing_protocol::{
    SerialNumber,
    api::{
        Problem,
        tunnel::{SiteChange, SiteState},
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
    let servers = app.servers.all();
    let asking = servers.iter().map(|server| async move {
        let told = tokio::time::timeout(DEADLINE, server.sites()).await;
        told.ok().and_then(Result::ok).unwrap_or_default()
    });
    let told = futures_util::future::join_all(asking).await.concat();
    let kept = app.sites.all().await.into_iter().map(|(name, site)| {
        let untold = app.sites.untold(&name, Some(&site), &servers);
        (name.clone(), view(name, site, untold))
    });
    let mut sites: BTreeMap<String, views::Site> = kept.collect();
    for site in told {
        let Some(known) = sites.get_mut(&site.name) else { continue };
        known.bps += site.bps;
        known.minute_bps += site.minute_bps;
        let is_first = known.warn_percent.is_none();
        let warn_percent = known.warn_percent.unwrap_or(site.warn_percent).min(site.warn_percent);
        known.warn_percent = Some(warn_percent);
        let share = f64::from(warn_percent) / 100.0 * 1e6;
        let is_full = |upstream| known.minute_bps as f64 >= upstream * share;
        if site.state == SiteState::Full || !is_first && known.upstream_mbit.is_some_and(is_full) {
            known.state = SiteState::Full;
        } else if known.state == SiteState::Unknown {
            known.state = site.state;
        }
    }
    Json(sites.into_values().collect())
}

/// Enter a site, or change it
///
/// Its devices are those that are named; one that was at another site is there no more. It is entered also where tunnel
/// servers cannot be told now: they are told as soon as they can be.
#[utoipa::path(put, path = "/api/v1/sites/{name}", tag = "devices", request_body = views::SiteChange,
    params(("name" = String, Path, description = "Its name")),
    responses((status = 204, description = "Entered, and every tunnel server was told"),
        (status = 202, description = "Entered, and some are still to be told", body = views::Untold),
        (status = 400, body = views::Problem), (status = 409, body = views::Problem)))]
pub async fn put(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
    Body(asked): Body<views::SiteChange>,
) -> Result<Response, Failure> {
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
    app.sites.put(&name, site).await?;
    Ok(told(&app, &name).await)
}

/// Forget a site
///
/// Its devices stay registered, and are at none.
#[utoipa::path(delete, path = "/api/v1/sites/{name}", tag = "devices",
    params(("name" = String, Path, description = "Its name")),
    responses((status = 204, description = "Forgotten, and every tunnel server was told"),
        (status = 202, description = "Forgotten, and some are still to be told", body = views::Untold),
        (status = 404, body = views::Problem)))]
pub async fn remove(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Response, Failure> {
    app.record(&caller, "remove-site", &name, "").await?;
    match app.sites.remove(&name).await? {
        true => Ok(told(&app, &name).await),
        false => Err(Failure::not_found(format!("There is no site called {name:?}."))),
    }
}

/// Whom it is still to be told.
async fn told(app: &App, name: &str) -> Response {
    let servers = app.servers.all();
    app.sites.settle(&servers).await;
    let untold = app.sites.untold(name, app.sites.all().await.get(name), &servers);
    match untold.is_empty() {
        true => StatusCode::NO_CONTENT.into_response(),
        false => (StatusCode::ACCEPTED, Json(views::Untold { untold })).into_response(),
    }
}

/// Before any tunnel server has told what it measures.
fn view(name: String, site: SiteChange, untold: Vec<String>) -> views::Site {
    views::Site {
        name,
        upstream_mbit: site.upstream_mbit,
        limit_mbit: site.limit_mbit,
        devices: site.devices.iter().map(ToString::to_string).collect(),
        bps: 0,
        minute_bps: 0,
        warn_percent: None,
        state: SiteState::Unknown,
        untold,
    }
}
