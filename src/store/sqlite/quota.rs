//! Quota ledgers: one row per subject, one lease call per job. The arithmetic is [`Ledger::lease`].

use rusqlite::{OptionalExtension, params};

use crate::policy::quota::{LeaseReply, LeaseRequest, Ledger, Subject};
use crate::store::{Change, StoreError};

use super::writer::Tx;

pub(super) fn lease(tx: &Tx<'_>, subject: &Subject, request: &LeaseRequest) -> Result<LeaseReply, StoreError> {
    let mut ledger = load(tx, subject)?;
    let reply = ledger.lease(tx.now_micros(), request);
    tx.prepare_cached("REPLACE INTO ledgers (subject, last_minute, ledger) VALUES (?1, ?2, ?3)")?.execute(params![
        subject.as_str(),
        reply.minute,
        ledger.to_bytes()
    ])?;
    if reply.recall {
        tx.announce(&Change::Recall(subject.clone(), reply.minute))?;
    }
    Ok(reply)
}

fn load(tx: &Tx<'_>, subject: &Subject) -> Result<Ledger, StoreError> {
    let mut statement = tx.prepare_cached("SELECT ledger FROM ledgers WHERE subject = ?1")?;
    let bytes: Option<Vec<u8>> = statement.query_row([subject.as_str()], |row| row.get(0)).optional()?;
    match bytes {
        None => Ok(Ledger::default()),
        Some(bytes) => Ledger::from_bytes(&bytes)
            .ok_or_else(|| StoreError::Corrupt(format!("the quota ledger of {subject:?} has {} bytes", bytes.len()))),
    }
}
