//! The rows of the change feed: written by jobs, read by [`super::feed`].

use rusqlite::{Connection, params};

use crate::policy::credential::KeyHash;
use crate::policy::key::{AccountId, KeyId};
use crate::policy::quota::Subject;
use crate::store::{Change, Revision, StoreError};

/// A row, before anybody understood it.
struct Row {
    revision: u64,
    kind: String,
    id: String,
    minute: u32,
}

/// What a look into the table found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Page {
    /// Everything after the asked revision, in order; the flag says that the revision counts for acknowledgements.
    Rows(Vec<(Revision, Change)>),
    /// Some of it is gone already, or is not understood. The feed stands here now.
    Missed(Revision),
}

/// Adds a change and returns its revision.
pub(super) fn append(connection: &Connection, now_micros: u64, change: &Change) -> Result<Revision, StoreError> {
    let (kind, id, minute) = match change {
        Change::Key(id) => ("key", id.to_string(), 0),
        Change::Secret(hash) => ("secret", hash.to_hex(), 0),
        Change::Account(id) => ("account", id.to_string(), 0),
        Change::Recall(subject, minute) => ("recall", subject.as_str().to_owned(), *minute),
    };
    connection
        .prepare_cached("INSERT INTO changes (at_micros, kind, id, minute) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![now_micros as i64, kind, id, minute])?;
    Ok(Revision(connection.last_insert_rowid() as u64))
}

/// The revision of the last change ever made, pruned or not.
pub(super) fn newest(connection: &Connection) -> Result<Revision, StoreError> {
    let mut statement = connection.prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = 'changes'")?;
    let mut rows = statement.query([])?;
    let newest = rows.next()?.map_or(Ok(0), |row| row.get::<_, i64>(0))?;
    Ok(Revision(newest as u64))
}

/// What came after `last`. Revisions have no holes, so a hole is a change that was pruned before it was read.
pub(super) fn after(connection: &Connection, last: Revision) -> Result<Page, StoreError> {
    let snapshot = connection.unchecked_transaction()?;
    let newest = newest(&snapshot)?;
    let mut statement = snapshot
        .prepare_cached("SELECT revision, kind, id, minute FROM changes WHERE revision > ?1 ORDER BY revision")?;
    let rows = statement.query_map([last.0 as i64], |row| {
        Ok(Row { revision: row.get::<_, i64>(0)? as u64, kind: row.get(1)?, id: row.get(2)?, minute: row.get(3)? })
    })?;
    let mut found = Vec::new();
    let mut expected = last.0;
    for row in rows {
        let row = row?;
        expected += 1;
        match understand(&row) {
            Some(change) if row.revision == expected => found.push((Revision(row.revision), change)),
            _ => return Ok(Page::Missed(newest)),
        }
    }
    // Unequal when rows at the end are pruned, or when the file was replaced by an older copy.
    Ok(if expected == newest.0 { Page::Rows(found) } else { Page::Missed(newest) })
}

/// `None` for a kind that a later version wrote.
fn understand(row: &Row) -> Option<Change> {
    Some(match row.kind.as_str() {
        "key" => Change::Key(KeyId::parse(&row.id).ok()?),
        "account" => Change::Account(AccountId::parse(&row.id).ok()?),
        "secret" => Change::Secret(KeyHash(*blake3::Hash::from_hex(&row.id).ok()?.as_bytes())),
        "recall" => Change::Recall(Subject::from_stored(&row.id), row.minute),
        _ => return None,
    })
}
