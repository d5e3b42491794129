//! A whole key as it was in another store.

use rusqlite::params;

use crate::policy::key::Timestamp;
use crate::store::record::to_json;
use crate::store::{Change, KeyCopy, Revision, StoreError};

use super::keys::{add_event, add_secret};
use super::usage;
use super::writer::Tx;

pub(super) fn restore(tx: &Tx<'_>, copy: &KeyCopy) -> Result<Revision, StoreError> {
    let record = &copy.key.record;
    let id = record.id.as_str();
    for had in ["secrets", "former_secrets", "events", "usage"] {
        tx.prepare_cached(&format!("DELETE FROM {had} WHERE key_id = ?1"))?.execute([id])?;
    }
    tx.prepare_cached(
        "INSERT INTO keys (id, account_id, created_at, deleted_at, version, record, former_use)
         VALUES (?1, ?2, ?3, ?4, 1, ?5, ?6)
         ON CONFLICT (id) DO UPDATE SET account_id = excluded.account_id, created_at = excluded.created_at,
         deleted_at = excluded.deleted_at, version = version + 1, record = excluded.record,
         former_use = excluded.former_use",
    )?
    .execute(params![
        id,
        record.account_id.as_str(),
        record.created_at.unix_millis(),
        record.deleted_at.map(Timestamp::unix_millis),
        to_json(record)?,
        copy.key.former_use.map(Timestamp::unix_millis)
    ])?;
    let secrets = if record.deleted_at.is_some() { &[][..] } else { &copy.key.secrets };
    for secret in secrets {
        add_secret(tx, &record.id, secret)?;
    }
    for event in &copy.events {
        add_event(tx, &record.id, event)?;
    }
    for count in &copy.usage {
        usage::insert(tx, &record.id, count.day, count.counted.words(), count.count)?;
    }
    tx.announce(&Change::Key(record.id.clone()))
}
