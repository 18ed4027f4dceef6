//! The journal: what hostd has started, done and holds. The last state that counts is the one in here.
//!
//! One SQLite file (WAL, `synchronous=FULL`), one thread that owns it, any number of handles:
//!
//! ```text
//! actor ─┐  apply(id, changes)                 ┌ transaction ┐
//! actor ─┼────────▶ queue (256) ────▶ thread ──┤  savepoint each ├─ fsync ─▶ answers: the new Record
//! CLI   ─┘                                     └─────────────┘
//! ```
//!
//! - A write is answered only when it is on disk. Writes that wait together share one fsync.
//! - A change of one contract is all or nothing (a savepoint); a bad one doesn't take its neighbours along.
//! - Capacity is given out inside the thread (`reserve`), from the allocations in this very file.
//! - When the file can't be written any more, every call answers [`JournalError::Gone`] and hostd stops: without a
//!   journal nothing may be changed. VMs run on.
//! - Finished contracts stay for `explain` until [`KEEP_FINISHED`] newer ones have finished.

mod record;
mod schema;
mod worker;

use std::path::Path;
use std::sync::Arc;

use ledger::api::ContractId;
use tokio::sync::{mpsc, oneshot};

pub use self::record::{Change, Maintenance, Quarantined, Record, Removal, Step, StepLine, StepState};
use self::worker::Request;
use crate::allocator::{Allocation, Capacity, Refusal, Want};
use crate::ports::Space;

/// Finished contracts that are kept.
pub const KEEP_FINISHED: usize = 1000;

/// Requests that wait for the thread. Each actor waits for its answer, so this is reached only by more actors than
/// that at once; they then wait in turn.
const QUEUE: usize = 256;

/// Why the journal could not.
#[derive(Clone, Debug, thiserror::Error)]
pub enum JournalError {
    /// The file can't be opened.
    #[error("cannot open the journal {path}: {why}")]
    Open {
        /// Path.
        path: String,
        /// What SQLite said.
        why: String,
    },
    /// The file is from a newer hostd.
    #[error(
        "the journal has schema {found}, this hostd knows {known}; run the hostd that wrote it, or a newer one"
    )]
    Newer {
        /// In the file.
        found: i64,
        /// In this program.
        known: usize,
    },
    /// SQLite failed.
    #[error("the journal failed: {0}")]
    Sql(String),
    /// What is in the file makes no sense.
    #[error("the journal's {what} of contract {id} can't be read: {why}")]
    Corrupt {
        /// Column.
        what: &'static str,
        /// Which contract.
        id: String,
        /// Why.
        why: String,
    },
    /// A change of a contract that isn't open.
    #[error("contract {0} isn't in the journal")]
    NotOpen(ContractId),
    /// Capacity can't be given out: every reason.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    NoCapacity(Vec<Refusal>),
    /// The thread has ended.
    #[error("the journal is closed; hostd must not change anything any more")]
    Gone,
}

impl JournalError {
    fn sql(error: rusqlite::Error) -> Self {
        Self::Sql(error.to_string())
    }
}

/// When a write reaches the disk; tests die here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Nothing of it is on disk.
    BeforeCommit,
    /// It is on disk, and nobody has been told yet.
    AfterCommit,
}

/// Called around each write. `false`: the process is dead from here on; the thread ends without an answer.
pub type Probe = Arc<dyn Fn(Moment) -> bool + Send + Sync>;

/// A handle. Clones share the thread; it ends when the last one is dropped.
#[derive(Clone)]
pub struct Journal {
    requests: mpsc::Sender<Request>,
}

impl Journal {
    /// Opens or makes the file.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        Self::open_with(path, Arc::new(|_| true))
    }

    /// As `open`, with a probe around each write.
    pub fn open_with(path: &Path, probe: Probe) -> Result<Self, JournalError> {
        let (requests, queue) = mpsc::channel(QUEUE);
        worker::spawn(path, queue, probe)?;
        Ok(Self { requests })
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, JournalError>>) -> Request,
    ) -> Result<T, JournalError> {
        let (answer, mut wait) = oneshot::channel();
        self.requests
            .send(request(answer))
            .await
            .map_err(|_| JournalError::Gone)?;
        // A request sent while the thread ends may stay in the queue, unread, as long as there are handles.
        let answered = tokio::select! {
            biased;
            answered = &mut wait => answered.ok(),
            () = self.requests.closed() => wait.try_recv().ok(),
        };
        answered.ok_or(JournalError::Gone)?
    }

    /// Makes the changes, in order, in one transaction; answers the record as it is on disk then.
    pub async fn apply(&self, id: ContractId, changes: Vec<Change>) -> Result<Record, JournalError> {
        self.ask(|answer| Request::Apply { id, changes, answer }).await
    }

    /// Gives the contract its share of the host, and makes the changes, in one transaction. A contract that has a share
    /// keeps it.
    pub async fn reserve(
        &self,
        id: ContractId,
        want: Want,
        capacity: Capacity,
        space: Space,
        changes: Vec<Change>,
    ) -> Result<Record, JournalError> {
        self.ask(|answer| Request::Reserve {
            id,
            want,
            capacity,
            space,
            changes,
            answer,
        })
        .await
    }

    /// One contract.
    pub async fn record(&self, id: ContractId) -> Result<Option<Record>, JournalError> {
        self.ask(|answer| Request::Record { id, answer }).await
    }

    /// All contracts that aren't finished.
    pub async fn open_records(&self) -> Result<Vec<Record>, JournalError> {
        self.ask(|answer| Request::Records {
            finished: false,
            answer,
        })
        .await
    }

    /// All contracts, finished ones too, oldest first.
    pub async fn all_records(&self) -> Result<Vec<Record>, JournalError> {
        self.ask(|answer| Request::Records {
            finished: true,
            answer,
        })
        .await
    }

    /// What is given out.
    pub async fn allocations(&self) -> Result<Vec<(ContractId, Allocation)>, JournalError> {
        self.ask(|answer| Request::Allocations { answer }).await
    }

    /// Replaces the list of unknown objects; those seen before keep their date.
    pub async fn set_quarantine(&self, found: Vec<Quarantined>) -> Result<(), JournalError> {
        self.ask(|answer| Request::SetQuarantine { found, answer }).await
    }

    /// Unknown objects.
    pub async fn quarantine(&self) -> Result<Vec<Quarantined>, JournalError> {
        self.ask(|answer| Request::Quarantine { answer }).await
    }

    async fn setting(&self, key: &'static str) -> Result<Option<String>, JournalError> {
        self.ask(|answer| Request::Setting { key, answer }).await
    }

    /// Whether the host takes no new contracts: the operator drains it, or it is in maintenance.
    pub async fn draining(&self) -> Result<bool, JournalError> {
        Ok(self.setting("draining").await?.is_some() || self.setting("maintenance").await?.is_some())
    }

    /// Since when the host is in maintenance, and why; `None`: it isn't.
    pub async fn maintenance(&self) -> Result<Option<Maintenance>, JournalError> {
        let text = self.setting("maintenance").await?;
        // Only a file edited by hand can't be read; what it meant still holds.
        Ok(text.map(|text| {
            serde_json::from_str(&text).unwrap_or(Maintenance {
                reason: text,
                since_ms: 0,
            })
        }))
    }

    /// Puts the host into maintenance, or ends that.
    pub async fn set_maintenance(&self, maintenance: Option<&Maintenance>) -> Result<(), JournalError> {
        let value = maintenance.map(|maintenance| serde_json::json!(maintenance).to_string());
        self.ask(|answer| Request::SetSetting {
            key: "maintenance",
            value,
            answer,
        })
        .await
    }

    /// Where the appliance's update is.
    pub async fn update(&self) -> Result<crate::update::State, JournalError> {
        let text = self.setting("update").await?.unwrap_or_else(|| "{}".to_owned());
        serde_json::from_str(&text).map_err(|error| JournalError::Corrupt {
            what: "update",
            id: "(none)".into(),
            why: error.to_string(),
        })
    }

    /// Writes down where the appliance's update is.
    pub async fn set_update(&self, state: &crate::update::State) -> Result<(), JournalError> {
        let value = Some(serde_json::json!(state).to_string());
        self.ask(|answer| Request::SetSetting {
            key: "update",
            value,
            answer,
        })
        .await
    }

    /// Drains the host, or no more.
    pub async fn set_draining(&self, draining: bool) -> Result<(), JournalError> {
        let value = draining.then(|| "yes".to_owned());
        self.ask(|answer| Request::SetSetting {
            key: "draining",
            value,
            answer,
        })
        .await
    }
}

/// Milliseconds since the Unix epoch, by this machine's clock: for people to read, never for decisions.
pub fn now_ms() -> i64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
