//! Tables, and how an older file becomes a newer one.
//!
//! `PRAGMA user_version` says which of [`MIGRATIONS`] a file has seen. A file from a newer hostd is refused: an older
//! one could not read what it must not lose.

use rusqlite::Connection;

use super::JournalError;

/// Applied in order, each in a transaction of its own. Never edit one that was released; append.
const MIGRATIONS: &[&str] = &[
    "
CREATE TABLE contracts (
    id          BLOB PRIMARY KEY CHECK (length(id) = 32),
    contract    TEXT NOT NULL,              -- the ledger's Contract, JSON
    opened_ms   INTEGER NOT NULL,
    allocation  TEXT,                       -- Allocation, JSON; NULL: holds nothing of the host
    network     INTEGER NOT NULL DEFAULT 0, -- whether its network shall exist
    spec        TEXT,                       -- VmSpec, JSON
    adapter     TEXT,
    process     TEXT,                       -- VmmProcess, JSON
    evidence    BLOB,
    endpoint    TEXT,                       -- Endpoint, JSON
    removal     TEXT,                       -- Removal, JSON: the mark that allows destruction
    told        INTEGER NOT NULL DEFAULT 0,
    finished_ms INTEGER
) STRICT;
CREATE TABLE steps (
    contract    BLOB NOT NULL REFERENCES contracts (id) ON DELETE CASCADE,
    step        TEXT NOT NULL,
    state       TEXT NOT NULL CHECK (state IN ('started', 'done', 'failed')),
    attempts    INTEGER NOT NULL,
    started_ms  INTEGER NOT NULL,
    ended_ms    INTEGER,
    detail      TEXT,
    PRIMARY KEY (contract, step)
) STRICT, WITHOUT ROWID;
CREATE TABLE quarantine (
    kind        TEXT NOT NULL,
    name        TEXT NOT NULL,
    since_ms    INTEGER NOT NULL,
    detail      TEXT NOT NULL,
    PRIMARY KEY (kind, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE settings (
    key         TEXT PRIMARY KEY,
    value       TEXT NOT NULL
) STRICT, WITHOUT ROWID;
",
    "
ALTER TABLE contracts ADD COLUMN own_name TEXT; -- the tenant's own DNS name, while it is proved
",
];

/// Brings the file up to date.
pub(super) fn migrate(db: &mut Connection) -> Result<(), JournalError> {
    let found: i64 = db
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .map_err(JournalError::sql)?;
    let known = MIGRATIONS.len();
    let applied = usize::try_from(found).ok().filter(|applied| *applied <= known);
    let applied = applied.ok_or(JournalError::Newer { found, known })?;
    for (number, migration) in (1i64..).zip(MIGRATIONS).skip(applied) {
        let transaction = db.transaction().map_err(JournalError::sql)?;
        transaction.execute_batch(migration).map_err(JournalError::sql)?;
        transaction
            .pragma_update(None, "user_version", number)
            .map_err(JournalError::sql)?;
        transaction.commit().map_err(JournalError::sql)?;
    }
    Ok(())
}
