//! The audit log, and certificates that end.

use super::Query;
use crate::{App, audit, views};
use axum::{Json, extract::State};
use homing_base::http::Failure;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Which part of the log.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Page {
    /// Entries older than this one; the newest where left out.
    before: Option<i64>,
    /// At most so many; 200 are the most.
    limit: Option<u32>,
}

/// Who did what, when, from where.
#[derive(Serialize, ToSchema)]
pub struct AuditEntry {
    /// Ascending.
    id: i64,
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    user: String,
    /// The address that it was done from.
    peer: String,
    /// In kebab case: `register-device`.
    #[schema(example = "register-device")]
    action: String,
    /// A serial number, a user's name, a camera's number.
    object: String,
    detail: String,
}

/// The audit log, newest first
#[utoipa::path(get, path = "/api/v1/audit", tag = "system", params(Page),
    responses((status = 200, body = [AuditEntry]), (status = 401, body = views::Problem)))]
pub async fn list(
    State(app): State<App>,
    Query(page): Query<Page>,
) -> Result<Json<Vec<AuditEntry>>, Failure> {
    let entries = app.audit.entries(page.before, page.limit.unwrap_or(audit::PAGE)).await?;
    let view = |entry: audit::Entry| AuditEntry {
        id: entry.id,
        at: entry.at,
        user: entry.user,
        peer: entry.peer,
        action: entry.action,
        object: entry.object,
        detail: entry.detail,
    };
    Ok(Json(entries.into_iter().map(view).collect()))
}

/// Certificates, the one that ends first before the others
///
/// Those of this server and of every tunnel server. `advice` says what to do where somebody has to do something: for 30
/// days before the end of what Homing does not renew by itself.
#[utoipa::path(get, path = "/api/v1/certificates", tag = "system",
    responses((status = 200, body = [views::Certificate])))]
pub async fn certificates(State(app): State<App>) -> Json<Vec<views::Certificate>> {
    Json(app.certificates.all(Timestamp::now()))
}
