//! What the dispatcher's operator asks: accounts, and who guesses. The same by command: `homing dispatcher account`,
//! `homing dispatcher attempts`.

use super::{Api, Body, Operator, Path, Refusals, internal};
use crate::{
    accounts::{self, AccountError, ChangeAccount},
    attempts::Attempts,
};
use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use homing_base::http::Failure;
use homing_protocol::{Secret, api::Problem};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

/// An account to make.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewAccount {
    /// 1 to 64 letters, digits or any of - _ . @
    name: String,
}

/// An account with its password, which is told once.
#[derive(Serialize, ToSchema)]
pub(super) struct WithPassword {
    /// Its name.
    name: String,
    /// Its password.
    password: Secret,
}

/// All accounts
#[utoipa::path(get, path = "/api/v1/accounts", tag = "operator", security(("operator" = [])),
    responses((status = 200, body = [accounts::Account]), Refusals))]
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    _: Operator,
) -> Result<Json<Vec<accounts::Account>>, Response> {
    api.counted.write().await.map_err(internal)?;
    Ok(Json(accounts::all(api.store.pool(), None).await.map_err(internal)?))
}

/// Make an account
///
/// Its password is in the answer, and nowhere else.
#[utoipa::path(post, path = "/api/v1/accounts", tag = "operator", security(("operator" = [])),
    request_body = NewAccount,
    responses((status = 201, body = WithPassword), (status = 409, body = Problem, description = "`taken`"), Refusals))]
pub(super) async fn add(
    State(api): State<Arc<Api>>,
    _: Operator,
    Body(new): Body<NewAccount>,
) -> Result<(StatusCode, Json<WithPassword>), Response> {
    let password = accounts::make(api.store.writer(), &new.name).await.map_err(refused)?;
    Ok((StatusCode::CREATED, Json(WithPassword { name: new.name, password })))
}

/// One account
#[utoipa::path(get, path = "/api/v1/accounts/{name}", tag = "operator", security(("operator" = [])),
    params(("name" = String, Path)),
    responses((status = 200, body = accounts::Account), (status = 404, body = Problem), Refusals))]
pub(super) async fn one(
    State(api): State<Arc<Api>>,
    _: Operator,
    Path(name): Path,
) -> Result<Json<accounts::Account>, Response> {
    api.counted.write().await.map_err(internal)?;
    let account = accounts::all(api.store.pool(), Some(&name)).await.map_err(internal)?.pop();
    account.map(Json).ok_or_else(|| refused(AccountError::Unknown(name)))
}

/// Disable or enable an account, or change its limits
#[utoipa::path(patch, path = "/api/v1/accounts/{name}", tag = "operator", security(("operator" = [])),
    params(("name" = String, Path)), request_body = ChangeAccount,
    responses((status = 200, body = accounts::Account), (status = 404, body = Problem), Refusals))]
pub(super) async fn change(
    state: State<Arc<Api>>,
    operator: Operator,
    Path(name): Path,
    Body(change): Body<ChangeAccount>,
) -> Result<Json<accounts::Account>, Response> {
    accounts::set(state.store.writer(), &name, change).await.map_err(refused)?;
    one(state, operator, Path(name)).await
}

/// Give an account a new password
///
/// It is in the answer, and nowhere else; the old one opens nothing from now on.
#[utoipa::path(post, path = "/api/v1/accounts/{name}/password", tag = "operator", security(("operator" = [])),
    params(("name" = String, Path)),
    responses((status = 200, body = WithPassword), (status = 404, body = Problem), Refusals))]
pub(super) async fn password(
    State(api): State<Arc<Api>>,
    _: Operator,
    Path(name): Path,
) -> Result<Json<WithPassword>, Response> {
    let password = accounts::new_password(api.store.writer(), &name).await.map_err(refused)?;
    Ok(Json(WithPassword { name, password }))
}

/// Wrong OAKs, proofs and passwords lately, greatest first
#[utoipa::path(get, path = "/api/v1/attempts", tag = "operator", security(("operator" = [])),
    responses((status = 200, body = [Attempts]), Refusals))]
pub(super) async fn attempts(
    State(api): State<Arc<Api>>,
    _: Operator,
) -> Result<Json<Vec<Attempts>>, Response> {
    Ok(Json(api.counted.list().await.map_err(internal)?))
}

fn refused(error: AccountError) -> Response {
    let message = error.to_string();
    match error {
        AccountError::Unusable | AccountError::Limits(_) => super::bad_request(message),
        AccountError::Taken(_) => {
            Failure::new(StatusCode::CONFLICT, Problem::new("taken", message)).into_response()
        }
        AccountError::Unknown(_) => Failure::not_found(message).into_response(),
        AccountError::Internal(error) => internal(error),
    }
}
