//! Bandwidth and storage of an installation that is only planned: the page's side of `homing plan`.

use super::Query;
use crate::{
    plan::{Plan, Wish},
    views,
};
use axum::Json;
use homing_base::http::Failure;

/// What lines and disks an installation needs
///
/// Nothing is changed or looked up: the answer is reckoned from the parameters. What is left out is as in the example of
/// 50 sites with four cameras each, 500 kbit/s. With `width` and `height`, and without `kbit`, the bitrate is estimated.
#[utoipa::path(get, path = "/api/v1/plan", tag = "system", params(Wish),
    responses((status = 200, body = Plan), (status = 400, body = views::Problem)))]
pub async fn reckon(Query(wish): Query<Wish>) -> Result<Json<Plan>, Failure> {
    wish.plan().map(Json).map_err(|error| Failure::bad_request(error.to_string()))
}
