//! Usage counters, each batch exactly once.
//!
//! A row per key, day and counted thing. Endpoints and scopes are bounded by the configuration, resource ids are chosen by clients:
//! of these a key has at most [`MAX_RESOURCES`] a day, and the rest is counted under [`OTHER`].

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, params};

use crate::policy::key::{Day, KeyId};
use crate::policy::resource::Kind;
use crate::store::{Counted, FlushOutcome, MAX_RESOURCES, OTHER, StoreError, UsageBatch, UsageCount};

use super::writer::Tx;

pub(super) fn flush(tx: &Tx<'_>, batch: &UsageBatch) -> Result<FlushOutcome, StoreError> {
    let last: Option<i64> = tx
        .prepare_cached("SELECT sequence FROM flushes WHERE replica = ?1")?
        .query_row([&*batch.replica.0], |row| row.get(0))
        .optional()?;
    // Without a row the replica is new, or its row was swept because it had nothing to flush for days.
    let outcome = match last.map(|last| last as u64) {
        Some(last) if batch.sequence <= last => return Ok(FlushOutcome::Duplicate),
        Some(last) if batch.sequence > last + 1 => FlushOutcome::AppliedAfterGap(last),
        _ => FlushOutcome::Applied,
    };
    let mut resources = Resources { tx, known: HashMap::new() };
    for count in &batch.counts {
        add(tx, count, &mut resources)?;
    }
    for (hash, at) in &batch.last_used {
        tx.prepare_cached(
            "UPDATE secrets SET last_used_at = ?2 WHERE hash = ?1 AND (last_used_at IS NULL OR last_used_at < ?2)",
        )?
        .execute(params![hash.0, at.unix_millis()])?;
        super::keys::used_formerly(tx, *hash, *at)?;
    }
    tx.prepare_cached("REPLACE INTO flushes (replica, sequence, at_micros) VALUES (?1, ?2, ?3)")?.execute(params![
        &*batch.replica.0,
        batch.sequence as i64,
        tx.now_micros() as i64
    ])?;
    Ok(outcome)
}

fn add(tx: &Tx<'_>, count: &UsageCount, resources: &mut Resources<'_>) -> Result<(), StoreError> {
    let (kind, mut name, class) = count.counted.words();
    if let Counted::Resource(kind, id) = &count.counted {
        name = resources.name(count, *kind, id)?;
    }
    insert(tx, &count.key_id, count.day, (kind, name, class), count.count)
}

pub(super) fn insert(
    tx: &Tx<'_>,
    key_id: &KeyId,
    day: Day,
    (kind, name, class): (&str, &str, &str),
    count: u64,
) -> Result<(), StoreError> {
    tx.prepare_cached(
        "INSERT INTO usage (key_id, day, kind, name, class, count) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT DO UPDATE SET count = count + excluded.count",
    )?
    .execute(params![key_id.as_str(), day.0, kind, name, class, count as i64])?;
    Ok(())
}

/// How many resource ids each key has on each day, as far as this batch had to ask.
struct Resources<'a> {
    tx: &'a Tx<'a>,
    known: HashMap<(KeyId, Day), usize>,
}

impl Resources<'_> {
    /// The name to count `id` under.
    fn name<'i>(&mut self, count: &UsageCount, kind: Kind, id: &'i str) -> Result<&'i str, StoreError> {
        let row = params![count.key_id.as_str(), count.day.0, kind.as_str(), id];
        let known = "SELECT 1 FROM usage WHERE key_id = ?1 AND day = ?2 AND kind = ?3 AND name = ?4";
        if id == OTHER || self.tx.prepare_cached(known)?.exists(row)? {
            return Ok(id);
        }
        let key = (count.key_id.clone(), count.day);
        let so_far = match self.known.get(&key) {
            Some(&so_far) => so_far,
            None => self.count(count)?,
        };
        let fits = so_far < MAX_RESOURCES;
        self.known.insert(key, so_far + usize::from(fits));
        Ok(if fits { id } else { OTHER })
    }

    fn count(&self, count: &UsageCount) -> Result<usize, StoreError> {
        let mut statement = self.tx.prepare_cached(
            "SELECT count(*) FROM usage WHERE key_id = ?1 AND day = ?2 AND kind IN ('model', 'dataset') AND name <> ?3",
        )?;
        let found: i64 = statement.query_row(params![count.key_id.as_str(), count.day.0, OTHER], |row| row.get(0))?;
        Ok(found as usize)
    }
}

pub(super) fn between(
    connection: &Connection,
    key_id: &KeyId,
    from: Day,
    to: Day,
) -> Result<Vec<UsageCount>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT day, kind, name, class, count FROM usage WHERE key_id = ?1 AND day BETWEEN ?2 AND ?3
         ORDER BY day, kind, name, class",
    )?;
    let rows = statement.query_map(params![key_id.as_str(), from.0, to.0], |row| {
        let (kind, name, class) = (row.get::<_, String>(1)?, row.get::<_, String>(2)?, row.get::<_, String>(3)?);
        Ok((Day(row.get(0)?), kind, name, class, row.get::<_, i64>(4)? as u64))
    })?;
    let mut counts = Vec::new();
    for row in rows {
        let (day, kind, name, class, count) = row?;
        if let Some(counted) = Counted::from_words(&kind, &name, &class) {
            counts.push(UsageCount { key_id: key_id.clone(), day, counted, count });
        }
    }
    Ok(counts)
}
