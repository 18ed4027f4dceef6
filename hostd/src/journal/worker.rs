//! The one thread that owns the file.

use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use ledger::api::ContractId;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};

use super::record::{Change, Quarantined, Record, Step, StepLine, StepState};
use super::{JournalError, KEEP_FINISHED, Moment, Probe, now_ms, schema};
use crate::allocator::{self, Allocation, Capacity, Want};
use crate::ports::Space;

type Answer<T> = oneshot::Sender<Result<T, JournalError>>;

/// Writes that share one fsync at most. More would only make the first of them wait longer.
const BATCH: usize = 64;

/// What handles ask.
pub(super) enum Request {
    Apply {
        id: ContractId,
        changes: Vec<Change>,
        answer: Answer<Record>,
    },
    Reserve {
        id: ContractId,
        want: Want,
        capacity: Capacity,
        space: Space,
        changes: Vec<Change>,
        answer: Answer<Record>,
    },
    Record {
        id: ContractId,
        answer: Answer<Option<Record>>,
    },
    Records {
        finished: bool,
        answer: Answer<Vec<Record>>,
    },
    Allocations {
        answer: Answer<Vec<(ContractId, Allocation)>>,
    },
    SetQuarantine {
        found: Vec<Quarantined>,
        answer: Answer<()>,
    },
    Quarantine {
        answer: Answer<Vec<Quarantined>>,
    },
    Setting {
        key: &'static str,
        answer: Answer<Option<String>>,
    },
    SetSetting {
        key: &'static str,
        value: Option<String>,
        answer: Answer<()>,
    },
}

/// An answer that waits for the commit.
type Pending = Box<dyn FnOnce(Result<(), JournalError>) + Send>;

/// Opens the file and starts the thread.
pub(super) fn spawn(path: &Path, queue: mpsc::Receiver<Request>, probe: Probe) -> Result<(), JournalError> {
    let fail = |why: String| JournalError::Open {
        path: path.display().to_string(),
        why,
    };
    // User data and endpoints are in here: for root only, from the first byte.
    let file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| fail(e.to_string()))?;
    file.set_permissions(fs::Permissions::from_mode(0o600))
        .map_err(|e| fail(e.to_string()))?;
    drop(file);
    let mut db = Connection::open(path).map_err(|e| fail(e.to_string()))?;
    let mode: String = db
        .query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))
        .map_err(|e| fail(e.to_string()))?;
    if !mode.eq_ignore_ascii_case("wal") {
        return Err(fail(format!(
            "SQLite keeps journal mode {mode} instead of WAL; use a local file system"
        )));
    }
    db.execute_batch(
        "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA busy_timeout = 5000; PRAGMA cache_size = -1024;",
    )
    .map_err(|e| fail(e.to_string()))?;
    schema::migrate(&mut db)?;
    prune(&db)?;
    std::thread::Builder::new()
        .name("journal".into())
        .spawn(move || Worker { db, queue, probe }.run())
        .map_err(|e| fail(e.to_string()))?;
    Ok(())
}

fn prune(db: &Connection) -> Result<(), JournalError> {
    db.execute(
        "DELETE FROM contracts WHERE finished_ms IS NOT NULL AND id NOT IN
             (SELECT id FROM contracts WHERE finished_ms IS NOT NULL ORDER BY finished_ms DESC LIMIT ?1)",
        params![KEEP_FINISHED as i64],
    )
    .map(drop)
    .map_err(JournalError::sql)
}

struct Worker {
    db: Connection,
    queue: mpsc::Receiver<Request>,
    probe: Probe,
}

impl Worker {
    fn run(mut self) {
        while let Some(first) = self.queue.blocking_recv() {
            let mut batch = vec![first];
            while batch.len() < BATCH
                && let Ok(next) = self.queue.try_recv()
            {
                batch.push(next);
            }
            if let Err(error) = self.serve(batch) {
                tracing::error!(%error, "the journal can't be written; hostd stops");
                return;
            }
        }
    }

    /// Serves a batch. `Err`: the file is lost for us, and nobody gets an answer.
    fn serve(&mut self, batch: Vec<Request>) -> Result<(), JournalError> {
        let writes = batch.iter().any(Request::writes);
        if !writes {
            for request in batch {
                if let Some(pending) = self.handle(request) {
                    pending(Ok(()));
                }
            }
            return Ok(());
        }
        let dead = || JournalError::Sql("stopped by the probe".into());
        self.db
            .execute_batch("BEGIN IMMEDIATE")
            .map_err(JournalError::sql)?;
        let mut pending = Vec::with_capacity(batch.len());
        for request in batch {
            if request.writes() && !(self.probe)(Moment::BeforeCommit) {
                return Err(dead());
            }
            pending.extend(self.handle(request));
        }
        self.db.execute_batch("COMMIT").map_err(JournalError::sql)?;
        for _ in 0..pending.len() {
            if !(self.probe)(Moment::AfterCommit) {
                return Err(dead());
            }
        }
        for answer in pending {
            answer(Ok(()));
        }
        Ok(())
    }

    /// Does one request inside the open transaction; a write's answer waits for the commit.
    fn handle(&mut self, request: Request) -> Option<Pending> {
        match request {
            Request::Apply { id, changes, answer } => self.write(answer, |db| {
                apply(db, id, &changes)?;
                load(db, id)?.ok_or(JournalError::NotOpen(id))
            }),
            Request::Reserve {
                id,
                want,
                capacity,
                space,
                changes,
                answer,
            } => self.write(answer, |db| {
                let taken = allocations(db)?;
                if !taken.iter().any(|(holder, _)| *holder == id) {
                    let taken: Vec<_> = taken.into_iter().map(|(_, allocation)| allocation).collect();
                    let got = allocator::allocate(&capacity, space, &taken, &want)
                        .map_err(JournalError::NoCapacity)?;
                    set(db, id, "allocation", Some(json(&got)))?;
                }
                apply(db, id, &changes)?;
                load(db, id)?.ok_or(JournalError::NotOpen(id))
            }),
            Request::SetQuarantine { found, answer } => self.write(answer, |db| set_quarantine(db, &found)),
            Request::SetSetting { key, value, answer } => self.write(answer, |db| {
                match value {
                    Some(value) => db.execute(
                        "INSERT OR REPLACE INTO settings VALUES (?1, ?2)",
                        params![key, value],
                    ),
                    None => db.execute("DELETE FROM settings WHERE key = ?1", params![key]),
                }
                .map(drop)
                .map_err(JournalError::sql)
            }),
            Request::Record { id, answer } => Self::read(answer, load(&self.db, id)),
            Request::Records { finished, answer } => Self::read(answer, records(&self.db, finished)),
            Request::Allocations { answer } => Self::read(answer, allocations(&self.db)),
            Request::Quarantine { answer } => Self::read(answer, quarantine(&self.db)),
            Request::Setting { key, answer } => Self::read(
                answer,
                self.db
                    .query_row("SELECT value FROM settings WHERE key = ?1", params![key], |row| {
                        row.get(0)
                    })
                    .optional()
                    .map_err(JournalError::sql),
            ),
        }
    }

    fn read<T>(answer: Answer<T>, result: Result<T, JournalError>) -> Option<Pending> {
        let _ = answer.send(result); // whoever asked may have gone
        None
    }

    fn write<T: Send + 'static>(
        &mut self,
        answer: Answer<T>,
        change: impl FnOnce(&Connection) -> Result<T, JournalError>,
    ) -> Option<Pending> {
        let run = || {
            let savepoint = self.db.savepoint().map_err(JournalError::sql)?;
            let value = change(&savepoint)?; // dropped: rolled back to the savepoint
            savepoint.commit().map_err(JournalError::sql)?;
            Ok(value)
        };
        let result = run();
        Some(Box::new(move |committed| {
            let _ = answer.send(committed.and(result)); // whoever asked may have gone
        }))
    }
}

impl Request {
    fn writes(&self) -> bool {
        matches!(
            self,
            Self::Apply { .. } | Self::Reserve { .. } | Self::SetQuarantine { .. } | Self::SetSetting { .. }
        )
    }
}

fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("our types have no maps with keys that aren't text")
}

/// Sets one column; the name is one of ours, never from outside.
fn set(
    db: &Connection,
    id: ContractId,
    column: &'static str,
    value: impl rusqlite::ToSql,
) -> Result<(), JournalError> {
    let changed = db
        .execute(
            &format!("UPDATE contracts SET {column} = ?2 WHERE id = ?1"),
            params![id.0, value],
        )
        .map_err(JournalError::sql)?;
    if changed == 1 {
        Ok(())
    } else {
        Err(JournalError::NotOpen(id))
    }
}

fn apply(db: &Connection, id: ContractId, changes: &[Change]) -> Result<(), JournalError> {
    for change in changes {
        match change {
            Change::Open(contract) => db
                .execute(
                    "INSERT OR IGNORE INTO contracts (id, contract, opened_ms) VALUES (?1, ?2, ?3)",
                    params![id.0, json(contract), now_ms()],
                )
                .map(drop)
                .map_err(JournalError::sql)?,
            Change::Started(step) => db
                .execute(
                    "INSERT INTO steps VALUES (?1, ?2, 'started', 1, ?3, NULL, NULL) ON CONFLICT (contract, step)
                     DO UPDATE SET state = 'started', attempts = attempts + 1, ended_ms = NULL, detail = NULL",
                    params![id.0, step.name(), now_ms()],
                )
                .map(drop)
                .map_err(JournalError::sql)?,
            Change::Done(step) => end(db, id, *step, "done", None)?,
            Change::Failed(step, why) => end(db, id, *step, "failed", Some(why))?,
            Change::Network(wanted) => set(db, id, "network", wanted)?,
            Change::OwnName(name) => set(db, id, "own_name", name)?,
            Change::Spec(spec, adapter) => {
                set(db, id, "spec", json(spec))?;
                set(db, id, "adapter", adapter)?;
            }
            Change::Process(process) => set(db, id, "process", json(process))?,
            Change::Evidence(evidence, endpoint) => {
                set(db, id, "evidence", evidence)?;
                set(db, id, "endpoint", json(endpoint))?;
            }
            Change::Removing(removal) => set(db, id, "removal", json(removal))?,
            Change::Told => set(db, id, "told", true)?,
            Change::Freed => set(db, id, "allocation", None::<String>)?,
            Change::Finished => {
                set(db, id, "finished_ms", now_ms())?;
                // Whoever reads the journal later needs the story, not the developer's data.
                set(db, id, "evidence", None::<Vec<u8>>)?;
            }
        }
    }
    Ok(())
}

fn end(
    db: &Connection,
    id: ContractId,
    step: Step,
    state: &str,
    detail: Option<&String>,
) -> Result<(), JournalError> {
    let changed = db
        .execute(
            "UPDATE steps SET state = ?3, ended_ms = ?4, detail = ?5 WHERE contract = ?1 AND step = ?2",
            params![id.0, step.name(), state, now_ms(), detail],
        )
        .map_err(JournalError::sql)?;
    if changed == 1 {
        Ok(())
    } else {
        Err(JournalError::NotOpen(id))
    }
}

const COLUMNS: &str = "id, contract, opened_ms, allocation, network, spec, adapter, process, evidence, endpoint, \
                       removal, told, finished_ms, own_name";

fn load(db: &Connection, id: ContractId) -> Result<Option<Record>, JournalError> {
    let row = db
        .prepare_cached(&format!("SELECT {COLUMNS} FROM contracts WHERE id = ?1"))
        .and_then(|mut query| query.query_row(params![id.0], raw).optional())
        .map_err(JournalError::sql)?;
    row.map(|raw| complete(db, raw)).transpose()
}

fn records(db: &Connection, finished: bool) -> Result<Vec<Record>, JournalError> {
    let filter = if finished { "" } else { "WHERE finished_ms IS NULL" };
    let mut query = db
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM contracts {filter} ORDER BY opened_ms, id"
        ))
        .map_err(JournalError::sql)?;
    let rows = query
        .query_map([], raw)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(JournalError::sql)?;
    rows.into_iter().map(|raw| complete(db, raw)).collect()
}

/// A row as SQLite has it.
struct Raw {
    id: [u8; 32],
    contract: String,
    opened_ms: i64,
    allocation: Option<String>,
    network: bool,
    spec: Option<String>,
    adapter: Option<String>,
    process: Option<String>,
    evidence: Option<Vec<u8>>,
    endpoint: Option<String>,
    removal: Option<String>,
    told: bool,
    finished_ms: Option<i64>,
    own_name: Option<String>,
}

fn raw(row: &Row<'_>) -> rusqlite::Result<Raw> {
    Ok(Raw {
        id: row.get(0)?,
        contract: row.get(1)?,
        opened_ms: row.get(2)?,
        allocation: row.get(3)?,
        network: row.get(4)?,
        spec: row.get(5)?,
        adapter: row.get(6)?,
        process: row.get(7)?,
        evidence: row.get(8)?,
        endpoint: row.get(9)?,
        removal: row.get(10)?,
        told: row.get(11)?,
        finished_ms: row.get(12)?,
        own_name: row.get(13)?,
    })
}

fn parse<T: DeserializeOwned>(id: ContractId, what: &'static str, text: &str) -> Result<T, JournalError> {
    serde_json::from_str(text).map_err(|e| JournalError::Corrupt {
        what,
        id: id.to_string(),
        why: e.to_string(),
    })
}

fn complete(db: &Connection, raw: Raw) -> Result<Record, JournalError> {
    let id = ledger::api::Bytes(raw.id);
    let mut query = db
        .prepare_cached(
            "SELECT step, state, attempts, started_ms, ended_ms, detail FROM steps WHERE contract = ?1",
        )
        .map_err(JournalError::sql)?;
    let lines = query
        .query_map(params![id.0], |row| {
            let (step, state): (String, String) = (row.get(0)?, row.get(1)?);
            let line = StepLine {
                state: match state.as_str() {
                    "started" => StepState::Started,
                    "done" => StepState::Done,
                    _ => StepState::Failed, // the table's CHECK allows no fourth
                },
                attempts: row.get(2)?,
                started_ms: row.get(3)?,
                ended_ms: row.get(4)?,
                detail: row.get(5)?,
            };
            Ok((step, line))
        })
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(JournalError::sql)?;
    let corrupt = |why: String| JournalError::Corrupt {
        what: "steps",
        id: id.to_string(),
        why,
    };
    let steps = lines
        .into_iter()
        .map(|(name, line)| {
            Ok((
                Step::from_name(&name).ok_or_else(|| corrupt(format!("no step {name}")))?,
                line,
            ))
        })
        .collect::<Result<_, JournalError>>()?;
    let optional = |what: &'static str, text: Option<String>| text.map(|text| (what, text));
    Ok(Record {
        id,
        contract: parse(id, "contract", &raw.contract)?,
        opened_ms: raw.opened_ms,
        allocation: optional("allocation", raw.allocation)
            .map(|(w, t)| parse(id, w, &t))
            .transpose()?,
        network: raw.network,
        own_name: raw.own_name,
        spec: optional("spec", raw.spec)
            .map(|(w, t)| parse(id, w, &t))
            .transpose()?,
        adapter: raw.adapter,
        process: optional("process", raw.process)
            .map(|(w, t)| parse(id, w, &t))
            .transpose()?,
        evidence: raw.evidence,
        endpoint: optional("endpoint", raw.endpoint)
            .map(|(w, t)| parse(id, w, &t))
            .transpose()?,
        removal: optional("removal", raw.removal)
            .map(|(w, t)| parse(id, w, &t))
            .transpose()?,
        told: raw.told,
        finished_ms: raw.finished_ms,
        steps,
    })
}

fn allocations(db: &Connection) -> Result<Vec<(ContractId, Allocation)>, JournalError> {
    let mut query = db
        .prepare_cached("SELECT id, allocation FROM contracts WHERE allocation IS NOT NULL")
        .map_err(JournalError::sql)?;
    let rows = query
        .query_map([], |row| {
            Ok((
                ledger::api::Bytes(row.get::<_, [u8; 32]>(0)?),
                row.get::<_, String>(1)?,
            ))
        })
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(JournalError::sql)?;
    rows.into_iter()
        .map(|(id, text)| Ok((id, parse(id, "allocation", &text)?)))
        .collect()
}

fn quarantine(db: &Connection) -> Result<Vec<Quarantined>, JournalError> {
    let mut query = db
        .prepare_cached("SELECT kind, name, since_ms, detail FROM quarantine ORDER BY kind, name")
        .map_err(JournalError::sql)?;
    let rows = query.query_map([], |row| {
        Ok(Quarantined {
            kind: row.get(0)?,
            name: row.get(1)?,
            since_ms: row.get(2)?,
            detail: row.get(3)?,
        })
    });
    rows.and_then(Iterator::collect).map_err(JournalError::sql)
}

fn set_quarantine(db: &Connection, found: &[Quarantined]) -> Result<(), JournalError> {
    let before = quarantine(db)?;
    db.execute("DELETE FROM quarantine", [])
        .map_err(JournalError::sql)?;
    for object in found {
        let since = before
            .iter()
            .find(|old| old.kind == object.kind && old.name == object.name)
            .map_or(object.since_ms, |old| old.since_ms);
        db.execute(
            "INSERT OR REPLACE INTO quarantine VALUES (?1, ?2, ?3, ?4)",
            params![object.kind, object.name, since, object.detail],
        )
        .map_err(JournalError::sql)?;
    }
    Ok(())
}
