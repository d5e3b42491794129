//! The file, its tables, and how older files are brought up to date.
//!
//! Times named `*_at` in rows of the gateway's records are milliseconds of the Unix epoch, those named `*_micros` are the store's
//! clock. Records are kept as JSON beside the columns that are searched, so that a new member needs no new column.
//!
//! **Rollouts.** Gateways of two versions may share a file: a program uses one that a newer program has brought up to date, as long
//! as all that was done to it since is [`Migration::additive`]. `user_version` says how far the file is, `meta.min_reader` which
//! version is the oldest that may still use it.

use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension};

use crate::store::{Finding, StoreError};

/// `PRAGMA application_id`: "SeMe". It tells our file from another program's.
const APPLICATION_ID: i32 = 0x5365_4d65;

/// A step from one version of the file to the next.
struct Migration {
    sql: &'static str,
    /// Whether programs that do not know of this step go on working beside those that do: they name the columns that they read and
    /// write, keep members of records that they do not know, and pass over what they have no name for. So a table, an index, a
    /// column with a default and a member that only informs are additive. A member that narrows what a key may do is not, even if
    /// no table changes: a gateway that ignores it lets too much through. Then `sql` may be empty.
    additive: bool,
}

/// Each brings a file from version `index` to `index + 1`. Never change one that was released; append, also for a new member of a
/// record, so that older programs know that there is something they do not know.
const MIGRATIONS: &[Migration] = &[
    Migration {
        additive: false,
        sql: "
    CREATE TABLE keys (
        id TEXT PRIMARY KEY, account_id TEXT NOT NULL, created_at INTEGER NOT NULL, deleted_at INTEGER,
        version INTEGER NOT NULL, record TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX keys_by_account ON keys (account_id, created_at, id);
    CREATE INDEX keys_by_age ON keys (created_at, id);
    CREATE INDEX keys_deleted ON keys (deleted_at) WHERE deleted_at IS NOT NULL;
    CREATE TABLE secrets (
        hash BLOB PRIMARY KEY, key_id TEXT NOT NULL, key_prefix TEXT NOT NULL, expires_at INTEGER, last_used_at INTEGER
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX secrets_by_key ON secrets (key_id);
    CREATE TABLE accounts (id TEXT PRIMARY KEY, version INTEGER NOT NULL, account TEXT NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE events (
        number INTEGER PRIMARY KEY AUTOINCREMENT, key_id TEXT NOT NULL, at INTEGER NOT NULL, event TEXT NOT NULL
    ) STRICT;
    CREATE INDEX events_by_key ON events (key_id, number);
    CREATE INDEX events_by_age ON events (at);
    -- AUTOINCREMENT: a revision is never used twice, also after its row was pruned.
    CREATE TABLE changes (
        revision INTEGER PRIMARY KEY AUTOINCREMENT, at_micros INTEGER NOT NULL,
        kind TEXT NOT NULL, id TEXT NOT NULL, minute INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE ledgers (
        subject TEXT PRIMARY KEY, last_minute INTEGER NOT NULL, ledger BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE replicas (
        id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, heartbeat_micros INTEGER NOT NULL, acknowledged INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE usage (
        key_id TEXT NOT NULL, day INTEGER NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, class TEXT NOT NULL,
        count INTEGER NOT NULL, PRIMARY KEY (key_id, day, kind, name, class)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX usage_by_age ON usage (day);
    CREATE TABLE flushes (
        replica TEXT PRIMARY KEY, sequence INTEGER NOT NULL, at_micros INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE idempotency (
        name BLOB PRIMARY KEY, request BLOB NOT NULL, expires_micros INTEGER NOT NULL, answer BLOB
    ) STRICT, WITHOUT ROWID;
",
    },
    // When a secret that the key has no more was last used.
    // The secrets are remembered for a while, for uses that are flushed late.
    Migration {
        additive: false,
        sql: "
    ALTER TABLE keys ADD COLUMN former_use INTEGER;
    CREATE TABLE former_secrets (
        hash BLOB PRIMARY KEY, key_id TEXT NOT NULL, at_micros INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX former_secrets_by_age ON former_secrets (at_micros);
",
    },
    // Since then a program asks whether it may use a newer file; those before refuse every newer one.
    Migration {
        additive: false,
        sql: "CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;",
    },
    // `allowed_addresses` of keys and `concurrent_requests` of accounts: a gateway that ignores them lets too much through.
    Migration { additive: false, sql: "" },
];

/// Makes the folders and the file when absent, readable for the owner alone, and returns the absolute path.
pub(super) fn prepare_file(path: &Path) -> Result<PathBuf, StoreError> {
    let failed = |what: &Path, error: io::Error| StoreError::Unavailable(format!("{}: {error}", what.display()));
    // Absolute, so that no name is special to SQLite (`:memory:`) and none moves with the working directory.
    let path = std::path::absolute(path).map_err(|error| failed(path, error))?;
    if let Some(folder) = path.parent() {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|error| failed(folder, error))?;
    }
    // SQLite gives the files beside it (-wal, -shm) the same mode.
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
        Ok(_) => Ok(path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(path),
        Err(error) => Err(failed(&path, error)),
    }
}

/// A connection that waits for locks.
pub(super) fn connect(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)
        .map_err(|error| StoreError::Unavailable(format!("{}: {error}", path.display())))?;
    connection.busy_handler(Some(wait_for_lock))?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// Locks are held for well under a millisecond (a sync to disk aside), so ask again soon, and give up after about ten seconds.
/// SQLite's own handler sleeps up to 100 ms at a time, which a waiting request would feel.
fn wait_for_lock(tries: i32) -> bool {
    std::thread::sleep(if tries < 20 { Duration::from_micros(100) } else { Duration::from_millis(1) });
    tries < 10_000
}

/// Switches to WAL and applies the migrations that are missing.
pub(super) fn migrate(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let named = |error: StoreError| match error {
        StoreError::Corrupt(text) => StoreError::Corrupt(format!("{}: {text}", path.display())),
        StoreError::Unavailable(text) => StoreError::Unavailable(format!("{}: {text}", path.display())),
        other => other,
    };
    use_wal(connection).map_err(named)?;
    if version_of_now(connection).map_err(named)? >= MIGRATIONS.len() {
        return Ok(());
    }
    connection.execute_batch("BEGIN IMMEDIATE").map_err(|error| named(error.into()))?;
    // Another process may have done it while this one waited for the lock: `apply` looks again.
    let outcome = apply(connection).and_then(|()| Ok(connection.execute_batch("COMMIT")?));
    if outcome.is_err() && !connection.is_autocommit() {
        connection.execute_batch("ROLLBACK").map_err(|error| named(error.into()))?;
    }
    outcome.map_err(named)
}

fn use_wal(connection: &Connection) -> Result<(), StoreError> {
    // The switch does not call the busy handler where waiting could deadlock; two processes may start at the same time.
    let mut tries = 0;
    let mode: String = loop {
        match connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0)) {
            Err(error) if is_busy(&error) && wait_for_lock(tries) => tries += 1,
            other => break other?,
        }
    };
    if mode != "wal" {
        return Err(StoreError::Unavailable(format!(
            "the file system allows no write-ahead log (journal mode stays `{mode}`); keep the file on a local disk"
        )));
    }
    // After a burst the log shrinks again.
    let _: i64 = connection.pragma_update_and_check(None, "journal_size_limit", 16 << 20, |row| row.get(0))?;
    Ok(())
}

fn is_busy(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked};
    matches!(error.sqlite_error_code(), Some(DatabaseBusy | DatabaseLocked))
}

/// [`version`] of one moment: another process may be at work on the file, and what it reads belongs together.
fn version_of_now(connection: &Connection) -> Result<usize, StoreError> {
    version(&*connection.unchecked_transaction()?)
}

/// The version of the tables, which may be later than any known here; an error if this program must not touch them.
fn version(connection: &Connection) -> Result<usize, StoreError> {
    let application: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if application != APPLICATION_ID && (application != 0 || version != 0 || tables != 0) {
        return Err(StoreError::Corrupt("an SQLite file of another program; name another file".into()));
    }
    let known = MIGRATIONS.len();
    match usize::try_from(version) {
        Ok(version) if version <= known || min_reader(connection)?.is_some_and(|oldest| oldest <= known) => Ok(version),
        _ => Err(StoreError::Corrupt(format!(
            "written by a newer seeme-gateway (schema {version}, of which this one, with schema {known}, knows too little); \
             run that version, or name another file"
        ))),
    }
}

/// The oldest version whose programs may use the file; `None` when it does not say.
fn min_reader(connection: &Connection) -> Result<Option<usize>, StoreError> {
    if !connection.table_exists(None, "meta")? {
        return Ok(None);
    }
    let oldest: Option<i64> =
        connection.query_row("SELECT value FROM meta WHERE name = 'min_reader'", [], |row| row.get(0)).optional()?;
    Ok(oldest.and_then(|oldest| usize::try_from(oldest).ok()))
}

fn apply(connection: &Connection) -> Result<(), StoreError> {
    let version = version(connection)?;
    if version >= MIGRATIONS.len() {
        return Ok(());
    }
    for (index, migration) in MIGRATIONS.iter().enumerate().skip(version) {
        connection.execute_batch(migration.sql)?;
        connection.pragma_update(None, "user_version", index as i64 + 1)?;
    }
    let oldest = MIGRATIONS.iter().rposition(|migration| !migration.additive).map_or(0, |index| index + 1);
    connection.execute("REPLACE INTO meta (name, value) VALUES ('min_reader', ?1)", [oldest as i64])?;
    Ok(connection.pragma_update(None, "application_id", APPLICATION_ID)?)
}

/// What an operator should know about the file.
pub(super) fn findings(connection: &Connection) -> Result<Vec<Finding>, StoreError> {
    let (version, known) = (version(connection)?, MIGRATIONS.len());
    let trouble = (version > known).then(|| {
        format!(
            "a newer seeme-gateway (schema {version}, this one has {known}) uses the file as well; \
             finish the rollout, for this one does not see what is new in it"
        )
    });
    Ok(vec![Finding { check: "schema", trouble }])
}
