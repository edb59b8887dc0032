//! Tunnel servers: add, edit, rename, remove, refresh, test; and what they know of devices that changes all the time.

use super::{Body, Path, devices, passed_through};
use crate::{
    App,
    config::TunnelServer as Entered,
    gate::Caller,
    probe::{self, Tested},
    tunnels::TunnelServer,
    views,
};
use axum::{Json, extract::State, http::StatusCode};
use homing_base::http::Failure;
use homing_protocol::{
    Secret,
    api::{Problem, tunnel},
};
use serde::Deserialize;
use std::time::Duration;
use utoipa::ToSchema;

/// Characters of a name.
const NAME_MAX: usize = 64;

/// Characters of a description.
const DESCRIPTION_MAX: usize = 256;

/// Bytes of a trust anchor: some certificates.
const ANCHOR_MAX: usize = 32 * 1024;

/// Tunnel servers at one management server.
const SERVERS_MAX: usize = 200;

/// A tunnel server that is slow does not hold up what the others tell.
const DEADLINE: Duration = Duration::from_secs(3);

/// A tunnel server as it is entered in its dialog.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTunnelServer {
    /// What it is called here; at most 64 characters, no slash.
    #[schema(example = "North")]
    name: String,
    /// Anything worth knowing.
    #[serde(default)]
    description: String,
    /// Its internal address.
    #[schema(example = "https://10.1.2.3:8081")]
    url: String,
    /// What devices dial, `host:port`; compared with what it says itself.
    #[serde(default)]
    external_address: String,
    /// Its user; empty: it asks for none.
    #[serde(default)]
    user: String,
    /// That user's password; left out in an edit or a test: the one that is stored.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    password: Option<Secret>,
    /// PEM of what its certificate is trusted by, with `https`; empty: the public web's. Left out in an edit or a
    /// test: the one that is stored.
    #[serde(default)]
    trust_anchor: Option<String>,
}

/// A test of what stands in the dialog.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TestTunnelServer {
    /// What is entered.
    server: NewTunnelServer,
    /// The tunnel server that is edited, whose password and trust anchor are used where none is entered.
    #[serde(default)]
    of: Option<String>,
}

impl NewTunnelServer {
    /// `testing`: what is missing shows when the server asks for it.
    fn entered(self, stored: Option<&Entered>, testing: bool) -> Result<Entered, Failure> {
        let wrong = |what: &str| {
            Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, Problem::new("unsuitable", what)))
        };
        let name = self.name.trim().to_owned();
        if name.is_empty() || name.chars().count() > NAME_MAX || name.contains(['/', '\\']) {
            return wrong("A name has 1 to 64 characters, and no slash.");
        }
        let description = self.description.trim().to_owned();
        if description.chars().count() > DESCRIPTION_MAX
            || [&name, &description].iter().any(|text| text.chars().any(char::is_control))
        {
            return wrong("A description has at most 256 characters, in one line.");
        }
        if self.user.contains(':') || self.user.len() > 256 {
            return wrong("A user's name holds no colon.");
        }
        // Another address must not be sent a password that was meant for this one.
        let same = |stored: &&Entered| stored.url == self.url.trim() && stored.user == self.user;
        let password = match self.password {
            Some(password) => password,
            None if self.user.is_empty() => Secret::default(),
            None => match stored.filter(same) {
                Some(stored) => stored.password.clone(),
                None if testing => Secret::default(),
                None if stored.is_some() => {
                    return wrong("The password is wanted again: the address or the user is another.");
                }
                None => return wrong("A user needs a password; or use no credentials."),
            },
        };
        let anchor = self.trust_anchor.or_else(|| stored.map(|stored| stored.trust_anchor.clone()));
        let trust_anchor = anchor.unwrap_or_default().trim().to_owned();
        if trust_anchor.len() > ANCHOR_MAX
            || (!trust_anchor.is_empty() && !trust_anchor.starts_with("-----BEGIN"))
        {
            return wrong("A trust anchor is PEM text: it begins with -----BEGIN CERTIFICATE-----.");
        }
        Ok(Entered {
            name,
            description,
            url: self.url.trim().trim_end_matches('/').to_owned(),
            external: self.external_address.trim().to_owned(),
            user: self.user,
            password,
            trust_anchor,
        })
    }
}

/// All tunnel servers
#[utoipa::path(get, path = "/api/v1/tunnel-servers", tag = "devices",
    responses((status = 200, body = [views::TunnelServer])))]
pub async fn list(State(app): State<App>) -> Json<Vec<views::TunnelServer>> {
    Json(app.world.tunnel_servers())
}

/// Add a tunnel server
///
/// It is kept whether or not it can be reached now; `test` says whether it can.
#[utoipa::path(post, path = "/api/v1/tunnel-servers", tag = "devices", request_body = NewTunnelServer,
    responses((status = 201, body = views::TunnelServer), (status = 409, body = views::Problem),
        (status = 422, body = views::Problem)))]
pub async fn add(
    State(app): State<App>,
    caller: Caller,
    Body(asked): Body<NewTunnelServer>,
) -> Result<(StatusCode, Json<views::TunnelServer>), Failure> {
    let entered = asked.entered(None, false)?;
    refuse_taken(&app, &entered, None)?;
    if app.servers.all().len() >= SERVERS_MAX {
        let message = format!("{SERVERS_MAX} tunnel servers are as many as there can be.");
        return Err(conflict("too-many", message));
    }
    refuse_unusable(&entered)?;
    let name = entered.name.clone();
    app.record(&caller, "add-tunnel-server", &name, &entered.url).await?;
    app.servers.add(entered, &app.stop).await?;
    Ok((StatusCode::CREATED, Json(view(&app, &name)?)))
}

/// Edit or rename a tunnel server
///
/// What is recorded through it goes on under its new name. One that stands in the configuration file is changed there.
#[utoipa::path(put, path = "/api/v1/tunnel-servers/{name}", tag = "devices", request_body = NewTunnelServer,
    params(("name" = String, Path, description = "Its name")),
    responses((status = 200, body = views::TunnelServer), (status = 404, body = views::Problem),
        (status = 409, body = views::Problem), (status = 422, body = views::Problem)))]
pub async fn change(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
    Body(asked): Body<NewTunnelServer>,
) -> Result<Json<views::TunnelServer>, Failure> {
    let before = changeable(&app, &name)?;
    let entered = asked.entered(Some(&before), false)?;
    refuse_taken(&app, &entered, Some(&name))?;
    refuse_unusable(&entered)?;
    let new = entered.name.clone();
    let detail = if new == name { entered.url.clone() } else { format!("renamed to {new}; {}", entered.url) };
    app.record(&caller, "change-tunnel-server", &name, &detail).await?;
    app.servers.change(&name, entered, &app.stop).await?;
    Ok(Json(view(&app, &new)?))
}

/// Remove a tunnel server
///
/// Its devices stay registered there. Refused while something is recorded through it.
#[utoipa::path(delete, path = "/api/v1/tunnel-servers/{name}", tag = "devices",
    params(("name" = String, Path, description = "Its name")),
    responses((status = 204, description = "Removed"), (status = 404, body = views::Problem),
        (status = 409, body = views::Problem)))]
pub async fn remove(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<StatusCode, Failure> {
    changeable(&app, &name)?;
    app.refresh_hardware().await;
    let used = app.world.hardware_at(&name).len();
    if used > 0 {
        let message = format!(
            "{used} of its devices are added to a recording server: remove their hardware, or move them to another \
             tunnel server first."
        );
        return Err(conflict("still-used", message));
    }
    app.record(&caller, "remove-tunnel-server", &name, "").await?;
    app.servers.remove(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Ask a tunnel server for everything anew
#[utoipa::path(post, path = "/api/v1/tunnel-servers/{name}/refresh", tag = "devices",
    params(("name" = String, Path, description = "Its name")),
    responses((status = 202, description = "It is asked"), (status = 404, body = views::Problem)))]
pub async fn refresh(State(app): State<App>, Path(name): Path<String>) -> Result<StatusCode, Failure> {
    view(&app, &name)?;
    app.servers.refresh(&name, &app.stop);
    Ok(StatusCode::ACCEPTED)
}

/// Test what is entered for a tunnel server
///
/// Nothing is stored. Says which step failed, and what to do about it.
#[utoipa::path(post, path = "/api/v1/tunnel-servers/test", tag = "devices", request_body = TestTunnelServer,
    responses((status = 200, body = Tested), (status = 422, body = views::Problem)))]
pub async fn test(
    State(app): State<App>,
    caller: Caller,
    Body(asked): Body<TestTunnelServer>,
) -> Result<Json<Tested>, Failure> {
    let stored = asked.of.and_then(|name| app.servers.entered(&name)).map(|(entered, _)| entered);
    let entered = asked.server.entered(stored.as_ref(), true)?;
    // It makes this machine dial where the caller says: whoever looks for that finds it here.
    app.record(&caller, "test-tunnel-server", &entered.name, &entered.url).await?;
    Ok(Json(probe::test(&entered).await))
}

/// What changes all the time
///
/// Rates, round-trip times and bytes of every device that is connected, as they are now.
#[utoipa::path(get, path = "/api/v1/figures", tag = "devices",
    responses((status = 200, body = [views::Figures])))]
pub async fn figures(State(app): State<App>) -> Json<Vec<views::Figures>> {
    let asking = app.servers.all().into_iter().map(|server| async move {
        let told = tokio::time::timeout(DEADLINE, server.figures()).await;
        let told = told.ok().and_then(Result::ok).unwrap_or_default();
        let view = |told: tunnel::Figures| views::Figures {
            serial: told.serial.to_string(),
            tunnel_server: server.name().to_owned(),
            rtt_ms: told.rtt_ms,
            bytes_in: told.bytes_in,
            bytes_out: told.bytes_out,
            bps_in: told.bps_in,
            bps_out: told.bps_out,
        };
        told.into_iter().map(view).collect::<Vec<_>>()
    });
    Json(futures_util::future::join_all(asking).await.concat())
}

/// A device's last connections
///
/// The newest first, at most 50 of each tunnel server that it is registered at, with the reasons for which they ended. Those
/// of a tunnel server that is away are left out, unless it is the only one.
#[utoipa::path(get, path = "/api/v1/devices/{serial}/history", tag = "devices",
    params(("serial" = String, Path, description = "Serial number")),
    responses((status = 200, body = [views::Connection]), (status = 404, body = views::Problem),
        (status = 502, body = views::Problem)))]
pub async fn history(
    State(app): State<App>,
    Path(serial): Path<String>,
) -> Result<Json<Vec<views::Connection>>, Failure> {
    let (serial, _) = devices::registered(&app, &serial)?;
    let asking = app.world.registrations(serial).into_iter().map(async |known| {
        let server = devices::tunnel_server(&app, Some(&known.tunnel_server))?;
        let told =
            tokio::time::timeout(DEADLINE, server.history(serial)).await.map_err(|_| silent(&server))?;
        let view = |connection| views::Connection { tunnel_server: server.name().to_owned(), connection };
        Ok(told.map_err(passed_through)?.into_iter().map(view).collect::<Vec<_>>())
    });
    let told: Vec<Result<_, Failure>> = futures_util::future::join_all(asking).await;
    let nobody = told.iter().all(Result::is_err);
    let mut all = Vec::new();
    for told in told {
        match told {
            Ok(told) => all.extend(told),
            Err(failure) if nobody => return Err(failure),
            Err(_) => (),
        }
    }
    all.sort_by_key(|one| std::cmp::Reverse(one.connection.since));
    Ok(Json(all))
}

fn silent(server: &TunnelServer) -> Failure {
    let message =
        format!("The tunnel server {:?} did not answer within {} s.", server.name(), DEADLINE.as_secs());
    Failure::new(StatusCode::BAD_GATEWAY, Problem::new("tunnel-server-silent", message))
}

/// What was entered about one that was added here.
fn changeable(app: &App, name: &str) -> Result<Entered, Failure> {
    match app.servers.entered(name) {
        None => Err(Failure::not_found(format!("There is no tunnel server called {name:?}."))),
        Some((_, true)) => {
            let message = format!(
                "The tunnel server {name:?} stands in the configuration file; change it there, and restart."
            );
            Err(conflict("in-configuration", message))
        }
        Some((entered, false)) => Ok(entered),
    }
}

/// Two of one name could not be told apart, and two ways to one would show its devices twice.
fn refuse_taken(app: &App, entered: &Entered, itself: Option<&str>) -> Result<(), Failure> {
    let known = app.world.tunnel_servers();
    let mut others = known.iter().filter(|known| Some(known.name.as_str()) != itself);
    let taken = others.find(|known| known.name == entered.name || known.url == entered.url);
    let message = match taken {
        None => return Ok(()),
        Some(known) if known.name == entered.name => {
            format!("There is a tunnel server called {:?} already.", known.name)
        }
        Some(known) => format!("{} is the internal address of {:?} already.", entered.url, known.name),
    };
    Err(conflict("taken", message))
}

fn refuse_unusable(entered: &Entered) -> Result<(), Failure> {
    let usable = probe::check_address(&entered.url)
        .and_then(|()| TunnelServer::new(entered).map_err(|error| format!("{error:#}.")));
    usable.map(|_| ()).map_err(|message| {
        Failure::new(StatusCode::UNPROCESSABLE_ENTITY, Problem::new("bad-address", message))
    })
}

fn view(app: &App, name: &str) -> Result<views::TunnelServer, Failure> {
    let mut known = app.world.tunnel_servers().into_iter();
    known
        .find(|known| known.name == name)
        .ok_or_else(|| Failure::not_found(format!("There is no tunnel server called {name:?}.")))
}

fn conflict(code: &str, message: String) -> Failure {
    Failure::new(StatusCode::CONFLICT, Problem::new(code, message))
}
