//! What people and programs see of hostd: HTTP and JSON on a unix socket.
//!
//! | path | answers |
//! |---|---|
//! | `GET /healthz` | 200 while the process works (liveness) |
//! | `GET /readyz` | 200 when new contracts can be served, 503 with the reasons when not |
//! | `GET /openapi.json` | this table as an OpenAPI document |
//! | `GET /metrics` | Prometheus |
//! | `GET /v1/status` | the host at a glance |
//! | `GET /v1/contracts?all=` | contracts here; with `all` the finished ones too |
//! | `GET /v1/contracts/{id}` | everything about one: generated configs, steps with times |
//! | `GET /v1/contracts/{id}/vm` | its VM's counters |
//! | `GET /v1/contracts/{id}/console?follow=&tail=` | its console log |
//! | `GET /v1/contracts/{id}/evidence` | what the ledger found in its evidence |
//! | `POST /v1/contracts/{id}/end` | the operator's explicit word: ends the contract |
//! | `POST /v1/power-off` | the machine goes down: every contract ends, every VM stops within its deadline |
//! | `POST /v1/drain` | takes no new contracts, or takes them again |
//! | `POST /v1/maintenance` | the same with a reason that is kept, shown and logged |
//! | `GET /v1/update` | the appliance's image: what runs, what is staged, how the last update ended |
//! | `POST /v1/update/check`, `stage`, `apply`, `rollback` | the operator's words about updates |
//! | `GET /v1/money` | escrow, what accrued, balance, reputation |
//! | `GET /v1/events?after=` | the log's last events |
//! | `GET /v1/inventory` | the machine |
//! | `GET /v1/doctor` | checks with findings and fixes |
//! | `GET /v1/support-bundle` | a tar of all that is not secret |
//!
//! `{id}` may be any unique beginning of a contract id of at least 4 digits. The socket's mode (0660) and group decide who
//! may speak; there is no other authentication, and no TCP.

mod bundle;
mod console;
pub mod metrics;
pub mod model;
pub mod money;
mod update;
mod view;

use std::path::Path;
use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Path as UrlPath, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use tokio::net::UnixListener;
use tokio::sync::watch;
use utoipa::OpenApi;

use self::model::{
    ContractLine, DrainRequest, EndRequest, EventList, EvidenceView, Explanation, MaintenanceRequest, Money,
    Problem, Status, VmInfo,
};
use self::money::Accounts;
use crate::config::Config;
use crate::events::Events;
use crate::inventory::{Inventory, Probe};
use crate::journal::{JournalError, Maintenance, now_ms};
use crate::storage::Store;
use crate::supervisor::{CommandError, Ctx, Handle};
use crate::update::{UpdateError, Updater};
use crate::{daemon, doctor};

/// Whether this host and its offering are known to the ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registration {
    /// Whether the ledger knows this host.
    pub registered: bool,
    /// The offering, once published.
    pub offering: Option<u64>,
    /// Why not yet.
    pub trouble: Option<String>,
}

/// What the handlers share.
pub struct App {
    /// The supervisor's world.
    pub ctx: Arc<Ctx>,
    /// The supervisor.
    pub handle: Handle,
    /// The config.
    pub config: Config,
    /// The machine, as it was at the start.
    pub inventory: Inventory,
    /// Since when, ms since the Unix epoch.
    pub started_ms: i64,
    /// This host's principal.
    pub host_principal: String,
    /// Registration with the ledger.
    pub registration: watch::Receiver<Registration>,
    /// Images and disks.
    pub store: Store,
    /// Who is paid.
    pub provider: candid::Principal,
    /// What the ledger said of the provider's accounts.
    pub accounts: Accounts,
    /// The log's last events.
    pub events: Events,
    /// Updates of the appliance.
    pub update: Arc<Updater>,
}

impl App {
    /// Looks at the machine anew.
    async fn metrics(&self, status: &Status) -> String {
        let endorsements = self.ctx.endorsements.look().await;
        let now = crate::endorsements::now();
        self.ctx.metrics.render(status, &endorsements, now)
    }

    async fn doctor(&self) -> Result<serde_json::Value, ApiError> {
        let ledger = daemon::ledger_fact(&self.config, &*self.ctx.host.ledger).await;
        let adapters = self.ctx.adapters().into_iter();
        let vmms = adapters
            .map(|(vmm, support)| (vmm.name().to_owned(), support))
            .collect();
        let space = match self.store.space().await {
            Ok(space) => Probe::Known(space),
            Err(error) => Probe::Unknown(error.to_string()),
        };
        let inputs = daemon::doctor_inputs(
            &self.config,
            vmms,
            ledger,
            self.store.at_rest().clone(),
            space,
            Some(&self.ctx.facts.domain),
            self.ctx.endorsements.look().await,
        );
        let failed = |why: String| ApiError {
            code: StatusCode::INTERNAL_SERVER_ERROR,
            text: why,
        };
        let examined = tokio::task::spawn_blocking(move || doctor::examine(&doctor::gather(inputs))).await;
        serde_json::to_value(examined.map_err(|e| failed(e.to_string()))?).map_err(|e| failed(e.to_string()))
    }
}

/// A value's name as our JSON spells it (for enums without data).
fn kebab<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        _ => String::new(),
    }
}

/// An answer that isn't 200.
#[derive(Debug)]
pub struct ApiError {
    code: StatusCode,
    text: String,
}

impl ApiError {
    fn bad(text: &str) -> Self {
        Self {
            code: StatusCode::BAD_REQUEST,
            text: text.to_owned(),
        }
    }

    fn missing(text: &str) -> Self {
        Self {
            code: StatusCode::NOT_FOUND,
            text: text.to_owned(),
        }
    }
}

impl From<JournalError> for ApiError {
    fn from(error: JournalError) -> Self {
        Self {
            code: StatusCode::INTERNAL_SERVER_ERROR,
            text: error.to_string(),
        }
    }
}

impl From<UpdateError> for ApiError {
    fn from(error: UpdateError) -> Self {
        let code = match error {
            UpdateError::Refused(_) => StatusCode::CONFLICT,
            UpdateError::Slots(_) => StatusCode::BAD_GATEWAY,
            UpdateError::Journal(error) => return error.into(),
        };
        Self {
            code,
            text: error.to_string(),
        }
    }
}

impl From<CommandError> for ApiError {
    fn from(error: CommandError) -> Self {
        let code = match error {
            CommandError::NotHere(_) => StatusCode::NOT_FOUND,
            CommandError::Busy | CommandError::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            CommandError::Refused(_) => StatusCode::CONFLICT,
        };
        Self {
            code,
            text: error.to_string(),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.code, Json(Problem { error: self.text })).into_response()
    }
}

type Shared = State<Arc<App>>;

#[derive(OpenApi)]
#[openapi(
    info(title = "hostd", description = "One host of a provider, over its unix socket"),
    paths(
        healthz,
        readyz,
        prometheus,
        status,
        contracts,
        explain,
        vm,
        console::console,
        end,
        power_off,
        drain,
        maintenance,
        update::status,
        update::check,
        update::stage,
        update::apply,
        update::rollback,
        money_report,
        events,
        evidence,
        inventory,
        doctor_report,
        bundle::support_bundle
    )
)]
struct Document;

/// The OpenAPI document.
pub fn openapi() -> String {
    Document::openapi().to_pretty_json().unwrap_or_default() // our types serialize
}

/// The whole API.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route(
            "/openapi.json",
            get(|| async { ([(header::CONTENT_TYPE, "application/json")], openapi()) }),
        )
        .route("/metrics", get(prometheus))
        .route("/v1/status", get(status))
        .route("/v1/contracts", get(contracts))
        .route("/v1/contracts/{id}", get(explain))
        .route("/v1/contracts/{id}/vm", get(vm))
        .route("/v1/contracts/{id}/console", get(console::console))
        .route("/v1/contracts/{id}/end", post(end))
        .route("/v1/contracts/{id}/evidence", get(evidence))
        .route("/v1/power-off", post(power_off))
        .route("/v1/drain", post(drain))
        .route("/v1/maintenance", post(maintenance))
        .route("/v1/update", get(update::status))
        .route("/v1/update/check", post(update::check))
        .route("/v1/update/stage", post(update::stage))
        .route("/v1/update/apply", post(update::apply))
        .route("/v1/update/rollback", post(update::rollback))
        .route("/v1/money", get(money_report))
        .route("/v1/events", get(events))
        .route("/v1/inventory", get(inventory))
        .route("/v1/doctor", get(doctor_report))
        .route("/v1/support-bundle", get(bundle::support_bundle))
        .layer(DefaultBodyLimit::max(16 * 1024)) // operators' words; no body here is larger
        .with_state(app)
}

/// Makes the socket: 0660, and its group if one is named. A dead hostd's socket is replaced.
pub fn listen(path: &Path, group: Option<&str>) -> std::io::Result<UnixListener> {
    use std::os::unix::fs::{PermissionsExt, chown};
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // Nobody else may connect in the moment before the mode is set.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    let listener = listener?;
    if let Some(group) = group {
        let found = nix::unistd::Group::from_name(group).map_err(std::io::Error::from)?;
        let found = found
            .ok_or_else(|| std::io::Error::other(format!("there is no group {group} (host.socket_group)")))?;
        chown(path, None, Some(found.gid.as_raw()))?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// Liveness.
#[utoipa::path(get, path = "/healthz", responses((status = 200, description = "the process works", body = String)))]
async fn healthz() -> &'static str {
    "ok\n"
}

/// Readiness.
#[utoipa::path(get, path = "/readyz", responses(
    (status = 200, description = "new contracts can be served", body = String),
    (status = 503, description = "the reasons why not, one a line", body = String)))]
async fn readyz(State(app): Shared) -> Result<Response, ApiError> {
    let status = app.status().await?;
    Ok(if status.ready {
        "ready\n".into_response()
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            status.not_ready.join("\n") + "\n",
        )
            .into_response()
    })
}

/// Prometheus metrics.
#[utoipa::path(get, path = "/metrics", responses((status = 200, body = String)))]
async fn prometheus(State(app): Shared) -> Result<Response, ApiError> {
    let text = app.metrics(&app.status().await?).await;
    Ok((
        [(
            header::CONTENT_TYPE,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        )],
        text,
    )
        .into_response())
}

/// The host at a glance.
#[utoipa::path(get, path = "/v1/status", responses((status = 200, body = Status)))]
async fn status(State(app): Shared) -> Result<Json<Status>, ApiError> {
    Ok(Json(app.status().await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    #[serde(default)]
    all: bool,
}

/// Contracts on this host.
#[utoipa::path(get, path = "/v1/contracts",
    params(("all" = Option<bool>, Query, description = "finished ones too")),
    responses((status = 200, body = Vec<ContractLine>)))]
async fn contracts(
    State(app): Shared,
    Query(query): Query<ListQuery>,
) -> Result<Json<Vec<ContractLine>>, ApiError> {
    Ok(Json(app.lines(query.all).await?))
}

/// Everything about one contract.
#[utoipa::path(get, path = "/v1/contracts/{id}", params(("id" = String, Path)),
    responses((status = 200, body = Explanation), (status = 404, body = Problem)))]
async fn explain(State(app): Shared, UrlPath(id): UrlPath<String>) -> Result<Json<Explanation>, ApiError> {
    let record = app.find(&id).await?;
    Ok(Json(app.explain(&record).await?))
}

/// A contract's VM with its counters.
#[utoipa::path(get, path = "/v1/contracts/{id}/vm", params(("id" = String, Path)),
    responses((status = 200, body = VmInfo), (status = 404, body = Problem)))]
async fn vm(State(app): Shared, UrlPath(id): UrlPath<String>) -> Result<Json<VmInfo>, ApiError> {
    let record = app.find(&id).await?;
    Ok(Json(app.vm(&record).await))
}

/// Ends a contract by the operator's explicit word: the ledger is told, the VM stopped, the disk wiped.
#[utoipa::path(post, path = "/v1/contracts/{id}/end", params(("id" = String, Path)), request_body = EndRequest,
    responses((status = 202, description = "journalled; it is being removed"), (status = 404, body = Problem),
        (status = 409, body = Problem)))]
async fn end(
    State(app): Shared,
    UrlPath(id): UrlPath<String>,
    Json(request): Json<EndRequest>,
) -> Result<StatusCode, ApiError> {
    let reason = request.reason.trim();
    if reason.is_empty() || reason.chars().count() > 400 {
        return Err(ApiError::bad(
            "reason: tell the developer why, in 1–400 characters",
        ));
    }
    // One that the journal doesn't know must be named in full.
    let id = match (id.parse(), app.find(&id).await) {
        (_, Ok(record)) => record.id,
        (Ok(id), Err(_)) => id,
        (Err(_), Err(error)) => return Err(error),
    };
    app.handle.end(id, reason.to_owned()).await?;
    Ok(StatusCode::ACCEPTED)
}

/// Ends every contract because the machine goes down. Answers when no VM runs any more.
#[utoipa::path(post, path = "/v1/power-off",
    responses((status = 200, description = "no VM runs any more", body = Status), (status = 503, body = Problem)))]
async fn power_off(State(app): Shared) -> Result<Json<Status>, ApiError> {
    app.handle.power_off().await?;
    Ok(Json(app.status().await?))
}

/// Drains the host, or ends the drain.
#[utoipa::path(post, path = "/v1/drain", request_body = DrainRequest, responses((status = 200, body = Status)))]
async fn drain(State(app): Shared, Json(request): Json<DrainRequest>) -> Result<Json<Status>, ApiError> {
    if let (false, Some(maintenance)) = (request.draining, app.ctx.journal.maintenance().await?) {
        return Err(CommandError::Refused(format!(
            "the host is in maintenance ({}); end that first: hostd maintenance --end",
            maintenance.reason
        ))
        .into());
    }
    app.ctx.journal.set_draining(request.draining).await?;
    tracing::info!(draining = request.draining, "the operator's word");
    app.ctx.heartbeat_now.notify_one();
    Ok(Json(app.status().await?))
}

/// Puts the host into maintenance with a reason, or ends that (and a drain with it).
#[utoipa::path(post, path = "/v1/maintenance", request_body = MaintenanceRequest,
    responses((status = 200, body = Status), (status = 400, body = Problem)))]
async fn maintenance(
    State(app): Shared,
    Json(request): Json<MaintenanceRequest>,
) -> Result<Json<Status>, ApiError> {
    let reason = request.reason.as_deref().map(str::trim);
    if reason.is_some_and(|reason| reason.is_empty() || reason.chars().count() > 400) {
        return Err(ApiError::bad("reason: say why, in 1–400 characters"));
    }
    let journal = &app.ctx.journal;
    match reason {
        Some(reason) => {
            let maintenance = Maintenance {
                reason: reason.to_owned(),
                since_ms: now_ms(),
            };
            journal.set_maintenance(Some(&maintenance)).await?;
            tracing::warn!(reason, "the operator's word: maintenance");
        }
        None => {
            journal.set_maintenance(None).await?;
            tracing::info!("the operator's word: maintenance is over");
        }
    }
    app.ctx.heartbeat_now.notify_one();
    Ok(Json(app.status().await?))
}

/// What this host earns. What the ledger doesn't say is unknown, with the reason.
#[utoipa::path(get, path = "/v1/money", responses((status = 200, body = Money)))]
async fn money_report(State(app): Shared) -> Json<Money> {
    Json(app.money().await)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventsQuery {
    #[serde(default)]
    after: u64,
}

/// The log's last events.
#[utoipa::path(get, path = "/v1/events",
    params(("after" = Option<u64>, Query, description = "only those with a number above this")),
    responses((status = 200, body = EventList)))]
async fn events(State(app): Shared, Query(query): Query<EventsQuery>) -> Json<EventList> {
    Json(EventList {
        started_ms: app.started_ms,
        events: app.events.after(query.after),
    })
}

/// What the ledger found in a contract's evidence.
#[utoipa::path(get, path = "/v1/contracts/{id}/evidence", params(("id" = String, Path)),
    responses((status = 200, body = EvidenceView), (status = 404, body = Problem)))]
async fn evidence(State(app): Shared, UrlPath(id): UrlPath<String>) -> Result<Json<EvidenceView>, ApiError> {
    let record = app.find(&id).await?;
    Ok(Json(app.evidence(&record).await))
}

/// The machine, as it was when hostd started.
#[utoipa::path(get, path = "/v1/inventory", responses((status = 200, body = Object)))]
async fn inventory(State(app): Shared) -> Json<Inventory> {
    Json(app.inventory.clone())
}

/// Checks of the machine, with findings and fixes.
#[utoipa::path(get, path = "/v1/doctor", responses((status = 200, body = Object)))]
async fn doctor_report(State(app): Shared) -> Result<Json<serde_json::Value>, ApiError> {
    Ok(Json(app.doctor().await?))
}
