//! The routes: the Internet Computer's HTTP interface, the long-poll, metrics.
//!
//! | request | answer |
//! |---|---|
//! | `GET /api/v2/status` | CBOR: root key, health |
//! | `POST /api/{v2,v3}/canister/ID/query` | CBOR, signed by the node key |
//! | `POST /api/v2/canister/ID/call` | 202; the caller polls read_state |
//! | `POST /api/{v3,v4}/canister/ID/call` | the certificate over the answer |
//! | `POST /api/{v2,v3}/{canister,subnet}/ID/read_state` | a certificate over the paths asked for |
//! | `GET /dc/v1/wait?after=H&timeout_ms=N` | `{"height": H}` |
//! | `GET /metrics` | Prometheus text |
//!
//! An envelope that isn't authentic or well-formed is HTTP status 400 with the reason as text, as on the Internet
//! Computer; everything about the call itself is a reject inside an answer.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Path, Query, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use candid::Principal;
use ic_transport_types::{EnvelopeContent, ReadStateResponse, RejectCode, RequestId, TransportCallResponse};
use serde::Deserialize;
use tokio::sync::{Semaphore, oneshot};

use super::certify::{Outcome, cbor, status_cbor};
use super::clock::wall;
use super::engine::{Call, Job, Metrics, QUEUE, Shared};
use super::envelope::{Verified, verify};
use super::tree::Path as TreePath;

/// The largest body. The largest honest calls carry 64 KiB of user data or evidence, and a little more.
const BODY_MAX: usize = 256 * 1024;

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a synchronous call is held before the caller is told to poll (the Internet Computer's figure).
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest long-poll.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Requests worked on at once that cost CPU: queries, certificates, signature checks. More wait in their connections.
const WORKERS: usize = 16;

/// Calls of one caller that may wait for the engine: with the whole queue to himself he would keep everybody else out.
const CALLER_QUEUE: usize = QUEUE / 4;

/// Limits on read_state (the specification's maximum for paths, and this ledger's depth).
const PATHS_MAX: usize = 1_000;
const LABELS_MAX: usize = 8;

/// What the handlers share.
pub(super) struct App {
    shared: Arc<Shared>,
    queue: SyncSender<Job>,
    workers: Arc<Semaphore>,
    callers: Arc<Callers>,
}

/// How many calls of each caller wait.
#[derive(Debug, Default)]
struct Callers(Mutex<HashMap<Principal, usize>>);

impl Callers {
    fn counts(&self) -> MutexGuard<'_, HashMap<Principal, usize>> {
        // Whole entries go in and out: the map is consistent whatever happened.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place in the queue, kept until the returned value is dropped; `None`: the caller has all that he may have.
    fn take(self: &Arc<Self>, caller: Principal) -> Option<Place> {
        let mut counts = self.counts();
        let count = counts.entry(caller).or_default();
        if *count >= CALLER_QUEUE {
            return None;
        }
        *count += 1;
        Some(Place {
            callers: self.clone(),
            caller,
        })
    }
}

/// See [`Callers::take`].
#[derive(Debug)]
pub(super) struct Place {
    callers: Arc<Callers>,
    caller: Principal,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Entry::Occupied(mut count) = self.callers.counts().entry(self.caller) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// All routes.
pub(super) fn router(shared: Arc<Shared>, queue: SyncSender<Job>) -> Router {
    let app = Arc::new(App {
        shared,
        queue,
        workers: Arc::new(Semaphore::new(WORKERS)),
        callers: Arc::default(),
    });
    Router::new()
        .route("/api/v2/status", get(status))
        .route("/api/{version}/canister/{id}/query", post(query))
        .route("/api/{version}/canister/{id}/call", post(call))
        .route(
            "/api/{version}/canister/{id}/read_state",
            post(read_state_of_canister),
        )
        .route(
            "/api/{version}/subnet/{id}/read_state",
            post(read_state_of_subnet),
        )
        .route("/dc/v1/wait", get(wait))
        .route("/metrics", get(metrics))
        .fallback(|method: Method, uri: axum::http::Uri| async move {
            Fault(
                StatusCode::NOT_FOUND,
                format!("{method} {}: there is no such thing here", uri.path()),
            )
        })
        .with_state(app)
}

/// An answer outside of the interface's own: a status and the reason as text.
struct Fault(StatusCode, String);

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        (
            self.0,
            [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
            self.1,
        )
            .into_response()
    }
}

fn bad(reason: impl Into<String>) -> Fault {
    Fault(StatusCode::BAD_REQUEST, reason.into())
}

fn cbor_response(body: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, "application/cbor")], body).into_response()
}

impl App {
    /// Reads a body within its limits and authenticates it, off the async threads.
    async fn authenticate(self: &Arc<Self>, body: Body) -> Result<Verified, Fault> {
        let bytes: Bytes = tokio::time::timeout(BODY_TIMEOUT, to_bytes(body, BODY_MAX))
            .await
            .map_err(|_| {
                Fault(
                    StatusCode::REQUEST_TIMEOUT,
                    format!("the body took longer than {BODY_TIMEOUT:?}"),
                )
            })?
            .map_err(|error| {
                Fault(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("at most {BODY_MAX} bytes of body: {error}"),
                )
            })?;
        let verified = self
            .work(move |shared| verify(&bytes, shared.signer.canister, wall()))
            .await?
            .map_err(|error| bad(error.to_string()));
        if verified.is_err() {
            Metrics::count(&self.shared.metrics.refused_envelopes);
        }
        verified
    }

    /// Runs something that takes CPU time.
    async fn work<T: Send + 'static>(
        self: &Arc<Self>,
        job: impl FnOnce(&Shared) -> T + Send + 'static,
    ) -> Result<T, Fault> {
        let stopped = || {
            Fault(
                StatusCode::SERVICE_UNAVAILABLE,
                "the ledger is stopping".to_owned(),
            )
        };
        let permit = self
            .workers
            .clone()
            .acquire_owned()
            .await
            .map_err(|_| stopped())?;
        let shared = self.shared.clone();
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            job(&shared)
        })
        .await
        .map_err(|_| stopped())
    }

    /// The reject for a call or query that is for somebody else.
    fn foreign(&self, canister: Principal) -> Outcome {
        Outcome::rejected(
            RejectCode::DestinationInvalid,
            "IC0301",
            format!(
                "canister {canister} not found; this node has only {}",
                self.shared.signer.canister
            ),
        )
    }
}

fn canister_of_url(id: &str) -> Result<Principal, Fault> {
    Principal::from_text(id).map_err(|error| bad(format!("{id} in the URL is not a principal: {error}")))
}

fn version(text: &str, allowed: &[&str]) -> Result<(), Fault> {
    if allowed.contains(&text) {
        return Ok(());
    }
    Err(Fault(
        StatusCode::NOT_FOUND,
        format!(
            "version {text} is not served here; served: {}",
            allowed.join(", ")
        ),
    ))
}

async fn status(State(app): State<Arc<App>>) -> Response {
    cbor_response(status_cbor(
        &app.shared.signer.root_key,
        *app.shared.height.borrow(),
    ))
}

async fn query(
    State(app): State<Arc<App>>,
    Path((api, id)): Path<(String, String)>,
    body: Body,
) -> Result<Response, Fault> {
    version(&api, &["v2", "v3"])?;
    let effective = canister_of_url(&id)?;
    let Verified { content, id } = app.authenticate(body).await?;
    let EnvelopeContent::Query {
        sender,
        canister_id,
        method_name,
        arg,
        ..
    } = content
    else {
        return Err(bad("request_type must be `query` here"));
    };
    if canister_id != effective {
        return Err(bad(format!(
            "the URL names {effective}, the request {canister_id}"
        )));
    }
    Metrics::count(&app.shared.metrics.queries);
    let foreign = (canister_id != app.shared.signer.canister).then(|| app.foreign(canister_id));
    let response = app
        .work(move |shared| {
            let outcome = foreign.unwrap_or_else(|| shared.query(sender, &method_name, &arg));
            cbor(&shared.signer.query_response(id, wall(), outcome))
        })
        .await?;
    Ok(cbor_response(response))
}

async fn call(
    State(app): State<Arc<App>>,
    Path((api, id)): Path<(String, String)>,
    body: Body,
) -> Result<Response, Fault> {
    version(&api, &["v2", "v3", "v4"])?;
    let effective = canister_of_url(&id)?;
    let Verified { content, id } = app.authenticate(body).await?;
    let EnvelopeContent::Call {
        sender,
        canister_id,
        method_name,
        arg,
        ingress_expiry,
        ..
    } = content
    else {
        return Err(bad("request_type must be `call` here"));
    };
    if canister_id != effective {
        return Err(bad(format!(
            "the URL names {effective}, the request {canister_id}"
        )));
    }
    if canister_id != app.shared.signer.canister {
        return Ok(not_replicated(app.foreign(canister_id)));
    }
    let reject = |why: &str| {
        Metrics::count(&app.shared.metrics.busy);
        let outcome = Outcome::rejected(RejectCode::SysTransient, "IC0515", why);
        Ok(not_replicated(outcome))
    };
    let busy = || reject("the ledger is busy: try again");
    let (full, full_of_caller) = {
        let answers = app.shared.answers();
        (answers.full(), answers.full_of(&sender))
    };
    if full {
        return busy();
    }
    if full_of_caller {
        return reject("too many calls of this caller in the last minutes: try again later");
    }
    let Some(place) = app.callers.take(sender) else {
        return reject("too many calls of this caller are waiting: try again when some are answered");
    };
    let (answer, answered) = oneshot::channel();
    let job = Call {
        request: id,
        sender,
        method: method_name,
        argument: arg,
        expiry: ingress_expiry,
        answer,
        _place: place,
    };
    match app.queue.try_send(Job::Call(job)) {
        Ok(()) => {}
        Err(TrySendError::Full(_)) => return busy(),
        Err(TrySendError::Disconnected(_)) => {
            return Err(Fault(
                StatusCode::SERVICE_UNAVAILABLE,
                "the ledger is stopping".to_owned(),
            ));
        }
    }
    match tokio::time::timeout(CALL_TIMEOUT, answered).await {
        Ok(Ok(certificate)) if api != "v2" => {
            Ok(cbor_response(cbor(&TransportCallResponse::Replied { certificate })))
        }
        // v2 callers poll; by now the answer is there.
        Ok(Ok(_)) | Err(_) => Ok(StatusCode::ACCEPTED.into_response()),
        Ok(Err(_)) => Err(Fault(
            StatusCode::SERVICE_UNAVAILABLE,
            "the ledger stopped before it could answer; the call may have happened: send the same request again"
                .to_owned(),
        )),
    }
}

fn not_replicated(outcome: Outcome) -> Response {
    match outcome {
        Outcome::Rejected(reject) => {
            cbor_response(cbor(&TransportCallResponse::NonReplicatedRejection(reject)))
        }
        Outcome::Replied(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn read_state_of_canister(
    State(app): State<Arc<App>>,
    Path((api, id)): Path<(String, String)>,
    body: Body,
) -> Result<Response, Fault> {
    version(&api, &["v2", "v3"])?;
    let canister = canister_of_url(&id)?;
    if canister != app.shared.signer.canister {
        return Err(bad(format!(
            "canister {canister} not found; this node has only {}",
            app.shared.signer.canister
        )));
    }
    read_state(app, body).await
}

async fn read_state_of_subnet(
    State(app): State<Arc<App>>,
    Path((api, id)): Path<(String, String)>,
    body: Body,
) -> Result<Response, Fault> {
    version(&api, &["v2", "v3"])?;
    let subnet = canister_of_url(&id)?;
    if subnet != app.shared.signer.subnet {
        return Err(bad(format!(
            "subnet {subnet} not found; this node is {}",
            app.shared.signer.subnet
        )));
    }
    read_state(app, body).await
}

async fn read_state(app: Arc<App>, body: Body) -> Result<Response, Fault> {
    let EnvelopeContent::ReadState { sender, paths, .. } = app.authenticate(body).await?.content else {
        return Err(bad("request_type must be `read_state` here"));
    };
    if paths.len() > PATHS_MAX || paths.iter().any(|path| path.len() > LABELS_MAX) {
        return Err(bad(format!(
            "at most {PATHS_MAX} paths of at most {LABELS_MAX} labels"
        )));
    }
    let paths: Vec<TreePath> = paths
        .iter()
        .map(|path| path.iter().map(|label| label.as_bytes().to_vec()).collect())
        .collect();
    let requests = allowed(&paths, sender, &app.shared)?;
    Metrics::count(&app.shared.metrics.read_states);
    let certificate = app
        .work(move |shared| {
            let state = shared.read()?;
            let canister = shared.canister_state(&state);
            drop(state);
            let outcomes = requests
                .iter()
                .map(|(request, outcome)| (*request, outcome.as_ref()));
            Some(
                shared
                    .signer
                    .sign(shared.signer.tree(wall(), &canister, outcomes))
                    .certificate(&paths),
            )
        })
        .await?
        .ok_or_else(|| {
            Fault(
                StatusCode::SERVICE_UNAVAILABLE,
                "the ledger is stopping".to_owned(),
            )
        })?;
    Ok(cbor_response(cbor(&ReadStateResponse { certificate })))
}

/// Checks each path against what the specification lets a caller read; the answer is the requests that are known.
fn allowed(
    paths: &[TreePath],
    sender: Principal,
    shared: &Shared,
) -> Result<Vec<(RequestId, Arc<Outcome>)>, Fault> {
    let forbidden = |what: &str| Fault(StatusCode::FORBIDDEN, what.to_owned());
    let mut requests: Vec<(RequestId, Arc<Outcome>)> = Vec::new();
    let mut asked = None;
    for path in paths {
        let labels: Vec<&[u8]> = path.iter().map(Vec::as_slice).collect();
        match labels.as_slice() {
            [b"time"] | [b"subnet" | b"canister_ranges" | b"api_boundary_nodes", ..] => {}
            [
                b"canister",
                id,
                b"certified_data" | b"controllers" | b"module_hash",
            ]
            | [b"canister", id, b"metadata", _]
                if *id == shared.signer.canister.as_slice() => {}
            [b"request_status", id, ..] => {
                let id: [u8; 32] = (*id).try_into().map_err(|_| bad("a request id has 32 bytes"))?;
                if asked.replace(id).is_some_and(|before| before != id) {
                    return Err(bad("one read_state may ask about one request"));
                }
                let request = RequestId::new(&id);
                if let Some(known) = shared.answers().get(&request) {
                    if known.sender != sender {
                        return Err(forbidden("only the sender of a request may read its answer"));
                    }
                    if requests.is_empty() {
                        requests.push((request, known.outcome.clone()));
                    }
                }
            }
            _ => return Err(forbidden("this path can't be read, or not as a whole")),
        }
    }
    Ok(requests)
}

#[derive(Deserialize)]
struct Wait {
    after: u64,
    #[serde(default)]
    timeout_ms: u64,
}

async fn wait(
    State(app): State<Arc<App>>,
    parameters: Result<Query<Wait>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Fault> {
    let Query(Wait { after, timeout_ms }) = parameters.map_err(|error| {
        bad(format!(
            "expected /dc/v1/wait?after=HEIGHT&timeout_ms=MILLISECONDS: {}",
            error.body_text()
        ))
    })?;
    let mut height = app.shared.height.subscribe();
    let timeout = Duration::from_millis(timeout_ms).min(WAIT_MAX);
    let _ = tokio::time::timeout(timeout, height.wait_for(|height| *height > after)).await;
    let height = *app.shared.height.borrow();
    Ok((
        [(header::CONTENT_TYPE, "application/json")],
        format!("{{\"height\":{height}}}"),
    )
        .into_response())
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    use std::fmt::Write;
    use std::sync::atomic::Ordering::Relaxed;
    let m = &app.shared.metrics;
    let mut text = String::new();
    for (name, kind, help, value) in [
        (
            "ledgerd_height",
            "gauge",
            "Durable blocks.",
            *app.shared.height.borrow(),
        ),
        (
            "ledgerd_answers",
            "gauge",
            "Answers kept until their requests expire.",
            app.shared.answers().len() as u64,
        ),
        (
            "ledgerd_log_bytes",
            "gauge",
            "Size of the log.",
            m.log_bytes.load(Relaxed),
        ),
        (
            "ledgerd_calls_total",
            "counter",
            "Calls executed.",
            m.calls.load(Relaxed),
        ),
        (
            "ledgerd_repeated_total",
            "counter",
            "Calls that came again and were not executed.",
            m.repeated.load(Relaxed),
        ),
        (
            "ledgerd_queries_total",
            "counter",
            "Queries.",
            m.queries.load(Relaxed),
        ),
        (
            "ledgerd_read_states_total",
            "counter",
            "read_state requests.",
            m.read_states.load(Relaxed),
        ),
        (
            "ledgerd_refused_total",
            "counter",
            "Envelopes that weren't authentic.",
            m.refused_envelopes.load(Relaxed),
        ),
        (
            "ledgerd_busy_total",
            "counter",
            "Calls turned away because the queue, or their caller's part of it, was full.",
            m.busy.load(Relaxed),
        ),
        (
            "ledgerd_commits_total",
            "counter",
            "Records made durable; calls per commit is the group commit's gain.",
            m.commits.load(Relaxed),
        ),
    ] {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_has_a_part_of_the_queue_and_gets_it_back() {
        let callers = Arc::new(Callers::default());
        let (one, other) = (Principal::from_slice(&[1]), Principal::from_slice(&[2]));
        let mut places: Vec<Place> = std::iter::from_fn(|| callers.take(one)).collect();
        assert_eq!(places.len(), CALLER_QUEUE);
        let others = callers.take(other);
        assert!(others.is_some());
        places.pop();
        assert!(
            callers
                .take(one)
                .is_some_and(|_place| callers.take(one).is_none())
        );
        drop((places, others));
        assert!(callers.counts().is_empty());
    }
}
