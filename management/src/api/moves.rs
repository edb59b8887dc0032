//! Sending a device to another tunnel server of ours, and offering it to another owner.
//!
//! A move is carried out by the two tunnel servers; what is done here is to tell both, in this order:
//!
//! 1. the target is asked where devices dial it, whom they trust there, and for its dispatcher account;
//! 2. the old one is told to send the device there (and to offer the claim, where the accounts differ);
//! 3. the old one, which leaves the device's password alone from now on, gives the registration with its secrets and the
//!    device's key (`handover`);
//! 4. the target registers it, and admits exactly that key.
//!
//! Invariant: a device is never sent to a server that does not know it: when 3 or 4 fails, 2 is taken back. The device
//! keeps its tunnel at the old one until it has reached the target; both have its registration until somebody
//! deletes the old one.

use super::{Body, Path, devices, passed_through};
use crate::{App, gate::Caller, tunnels::TunnelServer, views};
use axum::{Json, extract::State, http::StatusCode};
use homing_base::{client::CallError, http::Failure};
use homing_protocol::{
    SerialNumber,
    api::{
        Problem, Target,
        dispatcher::Offer,
        tunnel::{self, ChangeDevice, MoveState},
    },
};
use serde::Deserialize;
use utoipa::ToSchema;

/// Where a device shall go.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveTo {
    /// Name of another tunnel server of this management server.
    tunnel_server: String,
    /// The device stays where it is as well, and holds a tunnel to both. To end that, unregister it at one of them.
    #[serde(default)]
    keep: bool,
}

/// Move a device to another tunnel server
///
/// Offline devices go when they come back. The present tunnel stands until the device has reached the other server.
#[utoipa::path(put, path = "/api/v1/devices/{serial}/move", tag = "devices", request_body = MoveTo,
    params(("serial" = String, Path, description = "Serial number")),
    responses((status = 200, body = views::Device), (status = 404, body = views::Problem),
        (status = 409, body = views::Problem), (status = 502, body = views::Problem)))]
pub async fn begin(
    State(app): State<App>,
    caller: Caller,
    Path(serial): Path<String>,
    Body(asked): Body<MoveTo>,
) -> Result<Json<views::Device>, Failure> {
    let (serial, device) = devices::registered(&app, &serial)?;
    let old = devices::tunnel_server(&app, Some(&device.tunnel_server))?;
    let new = devices::tunnel_server(&app, Some(&asked.tunnel_server))?;
    if new.name() == old.name() {
        let message = format!("{serial} is at {:?} already.", new.name());
        return Err(conflict("already-there", message));
    }
    let there = app.world.registrations(serial).into_iter().find(|known| known.tunnel_server == new.name());
    let is_half_kept = |there: &views::Device| {
        let keeps = device.moving.as_ref().is_some_and(|moving| moving.keep);
        asked.keep && keeps && there.moving.is_none()
    };
    if there.as_ref().is_some_and(is_half_kept) {
        let here = order(&new, &old, true).await?;
        app.world.device(new.name(), new.begin_move(serial, &here).await.map_err(passed_through)?);
        return Ok(Json(devices::registered(&app, &serial.to_string())?.1));
    }
    if device.moving.is_some() {
        let message = format!("{serial} is being moved already; undo that first.");
        return Err(conflict("already-moving", message));
    }
    if there.is_some() {
        let message = format!(
            "{serial} has a registration at {:?} still, from an earlier move: undo that, or release what is left there.",
            new.name()
        );
        return Err(conflict("already-registered", message));
    }
    let sent = send(&app, serial, &old, &new, asked.keep).await;
    let detail = match &sent {
        Ok(()) if asked.keep => format!("kept by {} and {}", old.name(), new.name()),
        Ok(()) => format!("from {} to {}", old.name(), new.name()),
        Err(failure) => {
            format!("from {} to {} failed: {}", old.name(), new.name(), failure.problem.error.message)
        }
    };
    app.record(&caller, "move-device", &serial.to_string(), &detail).await?;
    sent?;
    Ok(Json(devices::registered(&app, &serial.to_string())?.1))
}

/// Undo a move
///
/// A device that has not gone yet stays; one that is there already is sent back.
#[utoipa::path(delete, path = "/api/v1/devices/{serial}/move", tag = "devices",
    params(("serial" = String, Path, description = "Serial number")),
    responses((status = 200, body = views::Device), (status = 404, body = views::Problem),
        (status = 409, body = views::Problem), (status = 502, body = views::Problem)))]
pub async fn undo(
    State(app): State<App>,
    caller: Caller,
    Path(serial): Path<String>,
) -> Result<Json<views::Device>, Failure> {
    let (serial, _) = devices::registered(&app, &serial)?;
    let all = app.world.registrations(serial);
    let from = all.iter().find(|device| device.moving.is_some());
    let Some((from, moving)) = from.and_then(|device| Some((device, device.moving.as_ref()?))) else {
        return Err(conflict("not-moving", format!("{serial} is not being moved.")));
    };
    if moving.keep {
        let message =
            format!("{serial} is kept by two tunnel servers: unregister it at the one that it shall leave.");
        return Err(conflict("kept-by-both", message));
    }
    let there = all.iter().find(|device| Some(&device.tunnel_server) == moving.tunnel_server.as_ref());
    let has_gone = moving.state == MoveState::Moved || there.is_some_and(|there| there.connected);
    let old = devices::tunnel_server(&app, Some(&from.tunnel_server))?;
    let new = there.map(|there| devices::tunnel_server(&app, Some(&there.tunnel_server))).transpose()?;
    let undone = call_back(&app, serial, &old, new.as_ref(), has_gone).await;
    let detail = match &undone {
        Ok(()) if has_gone => format!("back to {}", old.name()),
        Ok(()) => format!("stays at {}", old.name()),
        Err(failure) => format!("failed: {}", failure.problem.error.message),
    };
    app.record(&caller, "undo-move", &serial.to_string(), &detail).await?;
    undone?;
    Ok(Json(devices::registered(&app, &serial.to_string())?.1))
}

/// Offer a device to another owner
///
/// Until the other owner registers it, with the OAK on its label, nothing changes. An offer ends after seven days.
#[utoipa::path(put, path = "/api/v1/devices/{serial}/offer", tag = "devices", request_body = NewOffer,
    params(("serial" = String, Path, description = "Serial number")),
    responses((status = 204, description = "Offered"), (status = 404, body = views::Problem),
        (status = 409, body = views::Problem), (status = 502, body = views::Problem)))]
pub async fn offer(
    State(app): State<App>,
    caller: Caller,
    Path(serial): Path<String>,
    Body(asked): Body<NewOffer>,
) -> Result<StatusCode, Failure> {
    let (serial, device) = devices::registered(&app, &serial)?;
    let server = devices::tunnel_server(&app, Some(&device.tunnel_server))?;
    let offer = Offer { to: asked.account.trim().to_owned() };
    if offer.to.is_empty() {
        return Err(Failure::bad_request("Name the other owner's dispatcher account."));
    }
    let offered = server.offer(serial, &offer).await;
    let to: String = offer.to.chars().filter(|c| !c.is_control()).take(64).collect();
    let detail = match &offered {
        Ok(()) => format!("to {to}"),
        Err(error) => format!("to {to} failed: {error}"),
    };
    app.record(&caller, "offer-device", &serial.to_string(), &detail).await?;
    offered.map_err(passed_through)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Whom a device is offered to.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewOffer {
    /// Name of the other owner's account at the dispatcher.
    account: String,
}

/// Withdraw an offer
#[utoipa::path(delete, path = "/api/v1/devices/{serial}/offer", tag = "devices",
    params(("serial" = String, Path, description = "Serial number")),
    responses((status = 204, description = "Withdrawn"), (status = 404, body = views::Problem),
        (status = 502, body = views::Problem)))]
pub async fn withdraw_offer(
    State(app): State<App>,
    caller: Caller,
    Path(serial): Path<String>,
) -> Result<StatusCode, Failure> {
    let (serial, device) = devices::registered(&app, &serial)?;
    let server = devices::tunnel_server(&app, Some(&device.tunnel_server))?;
    server.withdraw_offer(serial).await.map_err(passed_through)?;
    app.record(&caller, "withdraw-offer", &serial.to_string(), "").await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The four steps of the module's head. A device that `old` shall `keep` is then the same for `new`, the other way round.
async fn send(
    app: &App,
    serial: SerialNumber,
    old: &TunnelServer,
    new: &TunnelServer,
    keep: bool,
) -> Result<(), Failure> {
    let to = order(old, new, keep).await?;
    app.world.device(old.name(), old.begin_move(serial, &to).await.map_err(passed_through)?);
    let registered = async { new.register(&old.handover(serial).await?).await };
    match registered.await {
        Ok(device) if keep => {
            app.world.device(new.name(), device);
            // Where this fails both have it all the same: whoever reads so asks for it once more.
            let here = order(new, old, keep).await?;
            app.world.device(new.name(), new.begin_move(serial, &here).await.map_err(passed_through)?);
            Ok(())
        }
        Ok(device) => {
            app.world.device(new.name(), device);
            Ok(())
        }
        Err(error) => {
            let taken_back = old.undo_move(serial).await;
            if let Ok(device) = &taken_back {
                app.world.device(old.name(), device.clone());
            }
            Err(with_trace(passed_through(error), taken_back, old))
        }
    }
}

/// The device stays at `old`, or comes back the same way: `new` is told to send it there. Where it has not gone yet,
/// `new` forgets it after that: a registration that moves on does not end the claim that the two share.
async fn call_back(
    app: &App,
    serial: SerialNumber,
    old: &TunnelServer,
    new: Option<&TunnelServer>,
    has_gone: bool,
) -> Result<(), Failure> {
    let Some(new) = new else {
        app.world.device(old.name(), old.undo_move(serial).await.map_err(passed_through)?);
        return Ok(());
    };
    let to = order(new, old, false).await?;
    app.world.device(new.name(), new.begin_move(serial, &to).await.map_err(passed_through)?);
    match old.undo_move(serial).await {
        Ok(device) => app.world.device(old.name(), device),
        Err(error) => {
            let taken_back = new.undo_move(serial).await;
            if let Ok(device) = &taken_back {
                app.world.device(new.name(), device.clone());
            }
            return Err(with_trace(passed_through(error), taken_back, new));
        }
    };
    if has_gone {
        take_password(serial, old, new).await.map_err(passed_through)?;
    } else {
        new.unregister(serial).await.map_err(passed_through)?;
        app.world.device_removed(new.name(), serial);
    }
    Ok(())
}

/// The device may have got another password where it was.
async fn take_password(
    serial: SerialNumber,
    to: &TunnelServer,
    from: &TunnelServer,
) -> Result<(), CallError> {
    let (ours, theirs) = (to.handover(serial).await?, from.handover(serial).await?);
    if ours.user == theirs.user && ours.password == theirs.password {
        return Ok(());
    }
    let change = ChangeDevice {
        user: Some(theirs.user),
        password: Some(theirs.password),
        own_password: theirs.own_password,
        ..ChangeDevice::default()
    };
    to.change(serial, &change).await.map(drop)
}

/// What `from` has to be told to send a device to `to`.
async fn order(from: &TunnelServer, to: &TunnelServer, keep: bool) -> Result<tunnel::Move, Failure> {
    let target = to.server().await.map_err(passed_through)?;
    let here = from.server().await.map_err(passed_through)?;
    if target.public.is_empty() {
        let message =
            format!("{:?} does not say where devices dial it; set public in its [tunnel].", to.name());
        return Err(conflict("no-public-address", message));
    }
    Ok(tunnel::Move {
        target: Target { servers: target.public, trust_anchor: target.trust_anchor },
        account: Some(target.account).filter(|account| *account != here.account),
        keep,
    })
}

/// A refusal, with what is left behind if it could not be taken back.
fn with_trace(
    mut failure: Failure,
    taken_back: Result<tunnel::Device, CallError>,
    old: &TunnelServer,
) -> Failure {
    if let Err(error) = taken_back {
        failure.problem.error.message += &format!(
            " And {:?} could not be told that the device stays: {error}. Undo the move as soon as it answers.",
            old.name()
        );
    }
    failure
}

fn conflict(code: &str, message: String) -> Failure {
    Failure::new(StatusCode::CONFLICT, Problem::new(code, message))
}
