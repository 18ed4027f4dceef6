//! The operator's words about updates of the appliance.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::model::{ApplyRequest, Problem, RollbackRequest, StageRequest, Staging};
use super::{ApiError, App, Shared};
use crate::daemon;
use crate::update::{Checked, UpdateError, UpdateStatus, Version};

impl App {
    /// Contracts that hold something of the host.
    async fn open_contracts(&self) -> Result<u64, ApiError> {
        Ok(self.ctx.journal.open_records().await?.len() as u64)
    }
}

/// The appliance's image and its update.
#[utoipa::path(get, path = "/v1/update", responses((status = 200, body = UpdateStatus),
    (status = 409, description = "this isn't the appliance", body = Problem)))]
pub(super) async fn status(State(app): Shared) -> Result<Json<UpdateStatus>, ApiError> {
    match app.update.status().await? {
        Some(status) => Ok(Json(status)),
        None => Err(UpdateError::Refused(
            "this isn't the appliance: its system is updated by its distribution".into(),
        )
        .into()),
    }
}

/// What the source offers.
#[utoipa::path(post, path = "/v1/update/check", responses((status = 200, body = Checked),
    (status = 409, body = Problem), (status = 502, description = "the source, or its signature", body = Problem)))]
pub(super) async fn check(State(app): Shared) -> Result<Json<Checked>, ApiError> {
    Ok(Json(app.update.check().await?))
}

/// Begins to fill the free slot; `GET /v1/update` says how it goes.
#[utoipa::path(post, path = "/v1/update/stage", request_body = StageRequest,
    responses((status = 202, body = Staging), (status = 409, body = Problem), (status = 502, body = Problem)))]
pub(super) async fn stage(
    State(app): Shared,
    Json(request): Json<StageRequest>,
) -> Result<(StatusCode, Json<Staging>), ApiError> {
    let version = app.update.stage(request.version, request.allow_older).await?;
    Ok((StatusCode::ACCEPTED, Json(Staging { version })))
}

/// Reboots into the staged version.
#[utoipa::path(post, path = "/v1/update/apply", request_body = ApplyRequest,
    responses((status = 202, body = Staging), (status = 409, body = Problem)))]
pub(super) async fn apply(
    State(app): Shared,
    Json(request): Json<ApplyRequest>,
) -> Result<(StatusCode, Json<Staging>), ApiError> {
    let vms = app.open_contracts().await?;
    let version = app.update.apply(vms, request.force_with_vms, tell(&app)).await?;
    Ok((StatusCode::ACCEPTED, Json(Staging { version })))
}

/// Goes back to the version before, and reboots.
#[utoipa::path(post, path = "/v1/update/rollback", request_body = RollbackRequest,
    responses((status = 202, body = Staging), (status = 400, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn rollback(
    State(app): Shared,
    Json(request): Json<RollbackRequest>,
) -> Result<(StatusCode, Json<Staging>), ApiError> {
    let reason = request.reason.trim();
    if reason.is_empty() || reason.chars().count() > 400 {
        return Err(ApiError::bad("reason: say why, in 1–400 characters"));
    }
    let vms = app.open_contracts().await?;
    let version: Version = app
        .update
        .roll_back(reason, vms, request.force_with_vms, tell(&app))
        .await?;
    Ok((StatusCode::ACCEPTED, Json(Staging { version })))
}

/// The ledger hears of it before the machine goes.
async fn tell(app: &Arc<App>) {
    daemon::tell_ledger(&app.ctx, &app.update).await;
}
