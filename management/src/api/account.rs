//! Signing in and out; users, their sessions and their API tokens.

use super::{Body, Path, account_failure};
use crate::{
    App,
    accounts::{AccountError, Credential},
    gate::{self, Caller},
    views,
};
use axum::{
    Json,
    extract::{ConnectInfo, FromRequestParts, State},
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use homing_base::http::Failure;
use homing_protocol::{Secret, api::Problem};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, time::Duration};
use utoipa::ToSchema;

/// How long a sign-in waits for its turn at the password hash before it is told to come back.
const HASHING_PATIENCE: Duration = Duration::from_secs(5);

/// Name and password.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignIn {
    user: String,
    #[schema(value_type = String)]
    password: Secret,
}

/// Who one is.
#[derive(Serialize, ToSchema)]
pub struct Whoami {
    /// The user's number.
    id: i64,
    /// The user's name.
    user: String,
    /// The present session's number, where it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<i64>,
    /// The server's version.
    version: &'static str,
    /// Whether there are simulated cameras to try things out with.
    simulated_cameras: bool,
}

/// The address that a request comes from.
pub struct Peer(String);

impl<S: Sync> FromRequestParts<S> for Peer {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(Peer(gate::peer_of(parts.extensions.get::<ConnectInfo<SocketAddr>>())))
    }
}

/// Sign in
///
/// Begins a session; its cookie is `HttpOnly` and `SameSite=Strict`. Wrong attempts slow down the network
/// that they come from; from networks that the user has not signed in from lately, attempts at one user as well.
#[utoipa::path(post, path = "/api/v1/session", tag = "account", request_body = SignIn, security(()),
    responses((status = 200, body = Whoami), (status = 401, body = views::Problem),
        (status = 429, body = views::Problem, description = "Too many wrong attempts; see Retry-After")))]
pub async fn sign_in(
    State(app): State<App>,
    Peer(peer): Peer,
    headers: HeaderMap,
    Body(asked): Body<SignIn>,
) -> Result<Response, Failure> {
    if gate::from_another_site(&headers) {
        return Err(gate::cross_site());
    }
    let user = asked.user.trim();
    let wait = app.guesses.wait(&peer, user).await?;
    if !wait.is_zero() {
        return Ok(too_many(wait));
    }
    // Argon2 takes 19 MiB and tens of milliseconds; a flood of sign-ins must not take the machine.
    let permit = tokio::time::timeout(HASHING_PATIENCE, app.hashing.acquire()).await;
    let Ok(Ok(_permit)) = permit else { return Ok(too_many(HASHING_PATIENCE)) };
    let admitted = app.accounts.check(user, asked.password).await.map_err(account_failure)?;
    let Some((id, name)) = admitted else {
        app.guesses.handle_wrong(&peer, user);
        app.metrics.sign_ins_refused.inc();
        let shown: String = user.chars().filter(|c| !c.is_control()).take(64).collect();
        app.audit.record(&shown, &peer, "sign-in-refused", "", "").await?;
        let problem = Problem::new("wrong-user-or-password", "User name or password is not correct.");
        return Err(Failure::new(StatusCode::UNAUTHORIZED, problem));
    };
    app.guesses.handle_right(&peer, user);
    let browser = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let secret = app.accounts.begin_session(id, &peer, browser).await.map_err(account_failure)?;
    app.audit.record(&name, &peer, "sign-in", "", "").await?;
    let mut response = Json(app.whoami(id, name, None)).into_response();
    response.headers_mut().insert(header::SET_COOKIE, app.cookie.set(&secret));
    Ok(response)
}

/// Who am I
#[utoipa::path(get, path = "/api/v1/session", tag = "account",
    responses((status = 200, body = Whoami), (status = 401, body = views::Problem)))]
pub async fn whoami(State(app): State<App>, caller: Caller) -> Json<Whoami> {
    let session = match caller.identity.by {
        Credential::Session(id) => Some(id),
        Credential::Token(_) => None,
    };
    Json(app.whoami(caller.identity.user, caller.identity.name, session))
}

/// Sign out
///
/// Ends the session that this request came with.
#[utoipa::path(delete, path = "/api/v1/session", tag = "account",
    responses((status = 204, description = "Signed out"), (status = 400, body = views::Problem)))]
pub async fn sign_out(State(app): State<App>, caller: Caller) -> Result<Response, Failure> {
    let Credential::Session(id) = caller.identity.by else {
        return Err(Failure::bad_request("A token has no session to end; remove the token instead."));
    };
    app.accounts.end_session(caller.identity.user, id).await.map_err(account_failure)?;
    app.record(&caller, "sign-out", "", "").await?;
    let mut response = StatusCode::NO_CONTENT.into_response();
    response.headers_mut().insert(header::SET_COOKIE, app.cookie.clear());
    Ok(response)
}

/// One of the caller's sessions.
#[derive(Serialize, ToSchema)]
pub struct Session {
    id: i64,
    #[schema(value_type = String, format = DateTime)]
    created: Timestamp,
    /// When it was last used, to the minute.
    #[schema(value_type = String, format = DateTime)]
    used: Timestamp,
    /// The address it began from.
    peer: String,
    /// What the browser called itself.
    browser: String,
    /// Whether it is the one that asks.
    present: bool,
}

/// The caller's sessions
#[utoipa::path(get, path = "/api/v1/sessions", tag = "account", responses((status = 200, body = [Session])))]
pub async fn sessions(State(app): State<App>, caller: Caller) -> Result<Json<Vec<Session>>, Failure> {
    let sessions = app.accounts.sessions(caller.identity.user).await.map_err(account_failure)?;
    let view = |session: crate::accounts::Session| Session {
        present: caller.identity.by == Credential::Session(session.id),
        id: session.id,
        created: session.created,
        used: session.used,
        peer: session.peer,
        browser: session.browser,
    };
    Ok(Json(sessions.into_iter().map(view).collect()))
}

/// End one of the caller's sessions
#[utoipa::path(delete, path = "/api/v1/sessions/{id}", tag = "account",
    params(("id" = i64, Path, description = "Session")),
    responses((status = 204, description = "Ended"), (status = 404, body = views::Problem)))]
pub async fn end_session(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<i64>,
) -> Result<StatusCode, Failure> {
    app.accounts.end_session(caller.identity.user, id).await.map_err(account_failure)?;
    app.record(&caller, "end-session", &id.to_string(), "").await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Somebody who may sign in.
#[derive(Serialize, ToSchema)]
pub struct User {
    id: i64,
    name: String,
    #[schema(value_type = String, format = DateTime)]
    created: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    signed_in: Option<Timestamp>,
}

impl From<crate::accounts::User> for User {
    fn from(user: crate::accounts::User) -> Self {
        User { id: user.id, name: user.name, created: user.created, signed_in: user.signed_in }
    }
}

/// A user to add.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewUser {
    name: String,
    /// At least 10 characters.
    #[schema(value_type = String)]
    password: Secret,
    /// The caller's own password.
    #[serde(default)]
    #[schema(value_type = String)]
    current: Option<Secret>,
}

/// All users
#[utoipa::path(get, path = "/api/v1/users", tag = "account", responses((status = 200, body = [User])))]
pub async fn users(State(app): State<App>) -> Result<Json<Vec<User>>, Failure> {
    let users = app.accounts.users().await.map_err(account_failure)?;
    Ok(Json(users.into_iter().map(Into::into).collect()))
}

/// Add a user
///
/// The caller's own password is needed.
#[utoipa::path(post, path = "/api/v1/users", tag = "account", request_body = NewUser,
    responses((status = 201, body = User), (status = 403, body = views::Problem), (status = 409, body = views::Problem), (status = 422, body = views::Problem)))]
pub async fn add_user(
    State(app): State<App>,
    caller: Caller,
    Body(asked): Body<NewUser>,
) -> Result<(StatusCode, Json<User>), Failure> {
    confirm(&app, &caller, asked.current).await?;
    let user = app.accounts.add_user(&asked.name, asked.password).await.map_err(account_failure)?;
    app.record(&caller, "add-user", &user.name, "").await?;
    Ok((StatusCode::CREATED, Json(user.into())))
}

/// The caller, once more.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Confirmation {
    /// The caller's own password.
    #[serde(default)]
    #[schema(value_type = String)]
    current: Option<Secret>,
}

/// Remove a user
///
/// With all sessions and tokens. The last user cannot be removed. The caller's own password is needed: who finds a
/// browser open, or a token, must not be able to lock everybody else out.
#[utoipa::path(delete, path = "/api/v1/users/{id}", tag = "account", request_body = Confirmation,
    params(("id" = i64, Path, description = "User")),
    responses((status = 204, description = "Removed"), (status = 403, body = views::Problem),
        (status = 409, body = views::Problem)))]
pub async fn remove_user(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<i64>,
    asked: Option<Json<Confirmation>>,
) -> Result<StatusCode, Failure> {
    confirm(&app, &caller, asked.unwrap_or_default().0.current).await?;
    let name = app.accounts.remove_user(id).await.map_err(account_failure)?;
    app.record(&caller, "remove-user", &name, "").await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A new password.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPassword {
    /// At least 10 characters.
    #[schema(value_type = String)]
    password: Secret,
    /// The caller's own present password.
    #[serde(default)]
    #[schema(value_type = String)]
    current: Option<Secret>,
}

/// Set a password
///
/// Ends the user's other sessions. The caller's own present password is needed, so that an unattended browser or a
/// stolen token opens no way in that stays.
#[utoipa::path(put, path = "/api/v1/users/{id}/password", tag = "account", request_body = NewPassword,
    params(("id" = i64, Path, description = "User")),
    responses((status = 204, description = "Set"), (status = 403, body = views::Problem), (status = 422, body = views::Problem)))]
pub async fn set_password(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<i64>,
    Body(asked): Body<NewPassword>,
) -> Result<StatusCode, Failure> {
    confirm(&app, &caller, asked.current).await?;
    let keep = match caller.identity.by {
        Credential::Session(session) if id == caller.identity.user => Some(session),
        _ => None,
    };
    let name = app.accounts.set_password(id, asked.password, keep).await.map_err(account_failure)?;
    app.record(&caller, "set-password", &name, "").await?;
    Ok(StatusCode::NO_CONTENT)
}

/// One of the caller's API tokens.
#[derive(Serialize, ToSchema)]
pub struct Token {
    id: i64,
    name: String,
    #[schema(value_type = String, format = DateTime)]
    created: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    used: Option<Timestamp>,
    /// The token itself: only in the answer that makes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    token: Option<Secret>,
}

impl Token {
    fn new(token: crate::accounts::Token, secret: Option<Secret>) -> Self {
        Token { id: token.id, name: token.name, created: token.created, used: token.used, token: secret }
    }
}

/// A token to make.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// What it is for.
    name: String,
    /// The caller's own password.
    #[serde(default)]
    #[schema(value_type = String)]
    current: Option<Secret>,
}

/// The caller's API tokens
#[utoipa::path(get, path = "/api/v1/tokens", tag = "account", responses((status = 200, body = [Token])))]
pub async fn tokens(State(app): State<App>, caller: Caller) -> Result<Json<Vec<Token>>, Failure> {
    let tokens = app.accounts.tokens(caller.identity.user).await.map_err(account_failure)?;
    Ok(Json(tokens.into_iter().map(|token| Token::new(token, None)).collect()))
}

/// Make an API token
///
/// It is in this answer and nowhere else: keep it. The caller's own password is needed.
#[utoipa::path(post, path = "/api/v1/tokens", tag = "account", request_body = NewToken,
    responses((status = 201, body = Token), (status = 403, body = views::Problem), (status = 422, body = views::Problem)))]
pub async fn add_token(
    State(app): State<App>,
    caller: Caller,
    Body(asked): Body<NewToken>,
) -> Result<(StatusCode, Json<Token>), Failure> {
    confirm(&app, &caller, asked.current).await?;
    let (token, secret) =
        app.accounts.add_token(caller.identity.user, &asked.name).await.map_err(account_failure)?;
    app.record(&caller, "add-token", &token.name, "").await?;
    Ok((StatusCode::CREATED, Json(Token::new(token, Some(secret)))))
}

/// Withdraw an API token
#[utoipa::path(delete, path = "/api/v1/tokens/{id}", tag = "account",
    params(("id" = i64, Path, description = "Token")),
    responses((status = 204, description = "Withdrawn"), (status = 404, body = views::Problem)))]
pub async fn remove_token(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<i64>,
) -> Result<StatusCode, Failure> {
    let name = app.accounts.remove_token(caller.identity.user, id).await.map_err(account_failure)?;
    app.record(&caller, "remove-token", &name, "").await?;
    Ok(StatusCode::NO_CONTENT)
}

impl App {
    fn whoami(&self, id: i64, user: String, session: Option<i64>) -> Whoami {
        let simulated_cameras = !self.simulated.is_empty();
        Whoami { id, user, session, version: env!("CARGO_PKG_VERSION"), simulated_cameras }
    }
}

/// Whether the caller still is who signed in: before anything that opens a way in, or shows a secret. Wrong passwords
/// slow the session or token that gave them (`guesses.rs`).
///
/// # Errors
/// 403 `wrong-password`, 429 `too-many-attempts`.
pub(super) async fn confirm(app: &App, caller: &Caller, current: Option<Secret>) -> Result<(), Failure> {
    let Some(current) = current.filter(|current| !current.is_empty()) else {
        let message =
            "Give your own password as well, as current: this must not be done by who finds a browser open.";
        return Err(Failure::new(StatusCode::FORBIDDEN, Problem::new("wrong-password", message)));
    };
    let wait = app.guesses.wait_again(caller.identity.by);
    if !wait.is_zero() {
        return Err(attempts(wait));
    }
    let permit = tokio::time::timeout(HASHING_PATIENCE, app.hashing.acquire()).await;
    let Ok(Ok(_permit)) = permit else { return Err(attempts(HASHING_PATIENCE)) };
    let right = app.accounts.check(&caller.identity.name, current).await.map_err(account_failure)?;
    if right.is_none() {
        app.guesses.handle_wrong_again(&caller.peer, caller.identity.by);
        app.record(caller, "confirm-refused", "", "").await?;
        return Err(account_failure(AccountError::WrongPassword));
    }
    app.guesses.handle_right_again(caller.identity.by);
    Ok(())
}

fn attempts(wait: Duration) -> Failure {
    let message = format!("Too many wrong attempts. Try again in {} s.", wait.as_secs().max(1));
    Failure::new(StatusCode::TOO_MANY_REQUESTS, Problem::new("too-many-attempts", message))
}

fn too_many(wait: Duration) -> Response {
    let seconds = wait.as_secs().max(1);
    let mut response = attempts(wait).into_response();
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    response
}
