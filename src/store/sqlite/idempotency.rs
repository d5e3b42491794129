//! Idempotency rows: who carries a call out, and what it answered.

use std::time::Duration;

use rusqlite::{OptionalExtension, params};

use crate::store::{IdempotencyClaim, StoreError};

use super::writer::Tx;

pub(super) fn claim(
    tx: &Tx<'_>,
    name: &[u8; 32],
    request: &[u8; 32],
    ttl: Duration,
) -> Result<IdempotencyClaim, StoreError> {
    let now = tx.now_micros();
    let row = tx
        .prepare_cached("SELECT request, answer FROM idempotency WHERE name = ?1 AND expires_micros > ?2")?
        .query_row(params![name, now as i64], |row| Ok((row.get::<_, [u8; 32]>(0)?, row.get(1)?)))
        .optional()?;
    Ok(match row {
        Some((stored, _)) if stored != *request => IdempotencyClaim::Mismatch,
        Some((_, Some(answer))) => IdempotencyClaim::Finished(answer),
        Some((_, None)) => IdempotencyClaim::InProgress,
        None => {
            let expires = now.saturating_add(ttl.as_micros() as u64);
            tx.prepare_cached("REPLACE INTO idempotency (name, request, expires_micros) VALUES (?1, ?2, ?3)")?
                .execute(params![name, request, expires as i64])?;
            IdempotencyClaim::Claimed
        }
    })
}

pub(super) fn finish(tx: &Tx<'_>, name: &[u8; 32], answer: Option<&[u8]>) -> Result<(), StoreError> {
    match answer {
        Some(answer) => {
            tx.prepare_cached("UPDATE idempotency SET answer = ?2 WHERE name = ?1")?.execute(params![name, answer])?
        }
        None => tx.prepare_cached("DELETE FROM idempotency WHERE name = ?1")?.execute([name])?,
    };
    Ok(())
}
