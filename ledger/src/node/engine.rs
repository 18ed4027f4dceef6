//! The one thread that changes the ledger: it takes calls from a bounded queue, executes as many as are waiting, makes
//! them durable with one sync, signs one certificate over all their answers, and answers.
//!
//! The state is behind a lock that the engine holds from the first change until the sync has returned, so that no
//! query ever shows what a crash could take back. When the sync fails the process ends: nobody can know then what is on
//! the medium, and start-up finds out.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use candid::Principal;
use ic_transport_types::{RejectCode, RequestId};
use serde_bytes::ByteBuf;
use tokio::sync::{oneshot, watch};

use super::answers::{Answers, key};
use super::certify::{CanisterState, Outcome, Signer, request_path, tips};
use super::clock::{Clock, wall};
use super::http::Place;
use super::store::{Answer, Record, Store, StoreError};
use crate::protocol::{MethodKind, Reject, State, method_kind};

/// Calls that may wait for the engine. With the largest body (see `http`) that is 64 MiB; more answer "busy".
pub(crate) const QUEUE: usize = 256;

/// Calls of one commit: what can have queued up while the commit before was syncing.
const BATCH: usize = QUEUE;

/// The engine looks at the clock at least this often, in case the wall clock was set forward.
const TICK_MAX: Duration = Duration::from_secs(60);

/// And after a deadline at most this often, in case one stays due.
const TICK_MIN: Duration = Duration::from_millis(5);

/// The query that the node answers by itself.
const TIP_CERTIFICATE: &str = "icrc3_get_tip_certificate";

/// An authentic call on its way to the engine.
pub(crate) struct Call {
    pub(crate) request: RequestId,
    pub(crate) sender: Principal,
    pub(crate) method: String,
    pub(crate) argument: Vec<u8>,
    pub(crate) expiry: u64,
    /// Gets the certificate over the answer, once it is durable.
    pub(crate) answer: oneshot::Sender<Vec<u8>>,
    /// Its place among the caller's calls.
    pub(crate) _place: Place,
}

/// What runs in the engine's queue.
pub(crate) enum Job {
    Call(Call),
    /// No more: finish what came before and end.
    Stop,
}

/// Counters for `/metrics`.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) calls: AtomicU64,
    pub(crate) repeated: AtomicU64,
    pub(crate) queries: AtomicU64,
    pub(crate) read_states: AtomicU64,
    pub(crate) refused_envelopes: AtomicU64,
    pub(crate) busy: AtomicU64,
    pub(crate) commits: AtomicU64,
    pub(crate) log_bytes: AtomicU64,
}

impl Metrics {
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// What the engine and the HTTP side share.
pub(crate) struct Shared {
    pub(crate) state: RwLock<State>,
    /// Short sections without waiting, hence a plain mutex.
    pub(crate) answers: Mutex<Answers>,
    pub(crate) signer: Signer,
    pub(crate) clock: Clock,
    pub(crate) interface: String,
    /// The durable height; long-polls follow it.
    pub(crate) height: watch::Sender<u64>,
    pub(crate) metrics: Metrics,
}

impl Shared {
    /// The state, for reading. A poisoned lock means that the engine died; what it held is not read any more.
    pub(crate) fn read(&self) -> Option<RwLockReadGuard<'_, State>> {
        self.state.read().ok()
    }

    pub(crate) fn answers(&self) -> MutexGuard<'_, Answers> {
        // The map stays consistent whatever its holders did: they insert and remove whole entries.
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The canister's part of the state tree.
    pub(crate) fn canister_state(&self, state: &State) -> CanisterState {
        CanisterState {
            certified_data: tips(state).digest().to_vec(),
            interface: self.interface.clone(),
        }
    }

    /// Runs a query on the durable state.
    pub(crate) fn query(&self, sender: Principal, method: &str, argument: &[u8]) -> Outcome {
        match self.read() {
            // As on the Internet Computer, only a query can have a certificate of the state that it sees.
            Some(state) if method == TIP_CERTIFICATE => {
                let (canister, tips) = (self.canister_state(&state), tips(&state));
                drop(state);
                let certificate = self.signer.tip_certificate(wall(), &canister, &tips);
                Outcome::Replied(candid::encode_one(Some(certificate)).unwrap_or_default())
            }
            Some(state) => self.query_on(&state, sender, method, argument),
            None => stopping(),
        }
    }

    fn query_on(&self, state: &State, sender: Principal, method: &str, argument: &[u8]) -> Outcome {
        match state.query(sender, method, argument, self.clock.at(wall())) {
            Ok(reply) => Outcome::Replied(reply),
            Err(reject) => self.rejected(&reject),
        }
    }

    fn rejected(&self, reject: &Reject) -> Outcome {
        let code = match reject {
            Reject::UnknownMethod { .. } => "IC0536",
            Reject::Malformed { .. } => "IC0503",
        };
        Outcome::rejected(
            RejectCode::CanisterError,
            code,
            format!("canister {}: {reject}", self.signer.canister),
        )
    }
}

fn stopping() -> Outcome {
    Outcome::rejected(
        RejectCode::SysFatal,
        "IC0508",
        "the ledger is stopping after an internal error",
    )
}

/// The engine; `run` is its thread.
pub(crate) struct Engine {
    pub(crate) shared: Arc<Shared>,
    pub(crate) store: Store,
    pub(crate) queue: Receiver<Job>,
}

/// A call with its outcome, before it is answered.
struct Executed {
    call: Call,
    outcome: Arc<Outcome>,
    /// To be written: executed just now, and the outcome could have been another one.
    fresh: bool,
}

impl Engine {
    /// Works until it is told to stop, all clients of the queue are gone, or the log can't be written.
    pub(crate) fn run(mut self) -> Result<(), StoreError> {
        loop {
            let mut stop = false;
            let mut batch = Vec::new();
            let mut take = |job| match job {
                Job::Call(call) => batch.push(call),
                Job::Stop => stop = true,
            };
            match self.queue.recv_timeout(self.idle()) {
                Ok(job) => take(job),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            for _ in 1..BATCH {
                match self.queue.try_recv() {
                    Ok(job) => take(job),
                    Err(_) => break,
                }
            }
            self.commit(batch)?;
            if stop {
                return Ok(());
            }
        }
    }

    /// How long there is nothing to do without a call.
    fn idle(&self) -> Duration {
        let deadline = self.shared.read().and_then(|state| state.next_deadline());
        let wait = deadline.map_or(TICK_MAX, |deadline| self.shared.clock.until(deadline, wall()));
        wait.clamp(TICK_MIN, TICK_MAX)
    }

    /// Executes, makes durable, certifies, answers.
    fn commit(&mut self, batch: Vec<Call>) -> Result<(), StoreError> {
        let shared = self.shared.clone();
        let wall_now = wall();
        let now = shared.clock.at(wall_now);
        shared.answers().prune(wall_now);

        let (executed, canister, height) = {
            // Poisoned: this thread panicked while it held the lock, so this thread isn't here.
            let mut state = shared.state.write().unwrap_or_else(PoisonError::into_inner);
            state.tick(now);
            let mut executed: Vec<Executed> = Vec::with_capacity(batch.len());
            for call in batch {
                executed.push(self.execute(&mut state, call, now, wall_now, &executed));
            }
            let record = Record {
                blocks: state
                    .take_blocks()
                    .iter()
                    .map(|block| ByteBuf::from(block.to_bytes()))
                    .collect(),
                answers: executed
                    .iter()
                    .filter(|done| done.fresh)
                    .map(|Executed { call, outcome, .. }| {
                        Answer::new(call.request.as_slice(), call.sender, call.expiry, outcome)
                    })
                    .collect(),
            };
            if record != Record::default() {
                self.store.append(&record)?;
                Metrics::count(&shared.metrics.commits);
                shared.metrics.log_bytes.store(self.store.size, Ordering::Relaxed);
            }
            (executed, shared.canister_state(&state), state.height())
        };

        if !executed.is_empty() {
            let mut answers = shared.answers();
            for Executed { call, outcome, .. } in &executed {
                answers.insert(key(&call.request), call.sender, call.expiry, outcome.clone());
            }
        }
        shared
            .height
            .send_if_modified(|known| std::mem::replace(known, height) != height);
        if executed.is_empty() {
            return Ok(());
        }
        let outcomes = executed
            .iter()
            .map(|done| (done.call.request, done.outcome.as_ref()));
        let signed = shared
            .signer
            .sign(shared.signer.tree(wall(), &canister, outcomes));
        for Executed { call, .. } in executed {
            // A caller that went away finds the answer by read_state.
            let _ = call
                .answer
                .send(signed.certificate(&[request_path(call.request)]));
        }
        Ok(())
    }

    fn execute(
        &self,
        state: &mut State,
        call: Call,
        now: u64,
        wall_now: u64,
        batch: &[Executed],
    ) -> Executed {
        let shared = &self.shared;
        let known = shared
            .answers()
            .get(&call.request)
            .map(|known| known.outcome.clone());
        let known = known.or_else(|| {
            batch
                .iter()
                .find(|done| done.call.request == call.request)
                .map(|done| done.outcome.clone())
        });
        if let Some(outcome) = known {
            Metrics::count(&shared.metrics.repeated);
            return Executed {
                call,
                outcome,
                fresh: false,
            };
        }
        Metrics::count(&shared.metrics.calls);
        if call.expiry <= wall_now {
            let outcome = Outcome::rejected(
                RejectCode::SysTransient,
                "IC0515",
                "expired while it waited: send it again",
            );
            return Executed {
                call,
                outcome: Arc::new(outcome),
                fresh: false,
            };
        }
        let (outcome, fresh) = match method_kind(&call.method) {
            // What a reply says depends on the state, so it must be the same after a crash.
            Some(MethodKind::Update) => match state.call(call.sender, &call.method, &call.argument, now) {
                Ok(reply) => (Outcome::Replied(reply), true),
                Err(reject) => (shared.rejected(&reject), false),
            },
            // Queries may be called as updates, for a certified answer. They change nothing, so nothing is kept.
            Some(MethodKind::Query) => (
                shared.query_on(state, call.sender, &call.method, &call.argument),
                false,
            ),
            None => {
                let reject = Reject::UnknownMethod {
                    method: call.method.chars().take(64).collect(),
                    kind: MethodKind::Update,
                };
                (shared.rejected(&reject), false)
            }
        };
        Executed {
            call,
            outcome: Arc::new(outcome),
            fresh,
        }
    }
}
