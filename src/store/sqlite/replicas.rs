//! The gateways that share the file: who lives, and up to which change each has caught up.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};

use crate::store::{Replica, ReplicaId, Revision, StoreError};

use super::changes;
use super::writer::Tx;

/// Silent for longer than this is as good as a goodbye.
pub(super) const FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);

pub(super) fn register(tx: &Tx<'_>, id: &ReplicaId, name: &str) -> Result<Revision, StoreError> {
    let known = tx
        .prepare_cached("SELECT acknowledged FROM replicas WHERE id = ?1")?
        .query_row([&*id.0], |row| row.get::<_, i64>(0))
        .optional()?;
    let acknowledged = known.map_or_else(|| changes::newest(tx), |known| Ok(Revision(known as u64)))?;
    // REPLACE removes a row with the same id as well as one with the same name.
    tx.prepare_cached("REPLACE INTO replicas (id, name, heartbeat_micros, acknowledged) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![&*id.0, name, tx.now_micros() as i64, acknowledged.0 as i64])?;
    Ok(acknowledged)
}

pub(super) fn heartbeat(tx: &Tx<'_>, id: &ReplicaId) -> Result<bool, StoreError> {
    let found = tx
        .prepare_cached("UPDATE replicas SET heartbeat_micros = ?2 WHERE id = ?1")?
        .execute(params![&*id.0, tx.now_micros() as i64])?;
    Ok(found > 0)
}

pub(super) fn acknowledge(tx: &Tx<'_>, id: &ReplicaId, revision: Revision) -> Result<(), StoreError> {
    tx.prepare_cached("UPDATE replicas SET acknowledged = max(acknowledged, ?2) WHERE id = ?1")?
        .execute(params![&*id.0, revision.0 as i64])?;
    Ok(())
}

pub(super) fn deregister(tx: &Tx<'_>, id: &ReplicaId) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM replicas WHERE id = ?1")?.execute([&*id.0])?;
    Ok(())
}

pub(super) fn list(connection: &Connection, now_micros: u64) -> Result<Vec<Replica>, StoreError> {
    let mut statement =
        connection.prepare_cached("SELECT id, name, heartbeat_micros, acknowledged FROM replicas ORDER BY name")?;
    let rows = statement.query_map([], |row| {
        let heartbeat = row.get::<_, i64>(2)? as u64;
        Ok(Replica {
            id: ReplicaId(row.get::<_, String>(0)?.into()),
            name: row.get(1)?,
            heartbeat_age: Duration::from_micros(now_micros.saturating_sub(heartbeat)),
            acknowledged: Revision(row.get::<_, i64>(3)? as u64),
        })
    })?;
    let known = rows.filter(|row| row.as_ref().map_or(true, |replica| replica.heartbeat_age <= FORGOTTEN_AFTER));
    Ok(known.collect::<Result<_, _>>()?)
}
