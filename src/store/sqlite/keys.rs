//! Keys, their secrets, accounts and the audit trail.

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::policy::credential::KeyHash;
use crate::policy::key::{Account, AccountId, KeyId, KeyRecord, Timestamp};
use crate::store::record::{from_json, merge_unknown, to_json};
use crate::store::{Change, Event, KeyFilter, Revision, SecretRow, StoreError, StoredKey, Version};

use super::writer::Tx;

const KEY_COLUMNS: &str =
    "k.record, k.version, k.former_use, a.account FROM keys k LEFT JOIN accounts a ON a.id = k.account_id";

pub(super) fn by_secret(connection: &Connection, hash: KeyHash) -> Result<Option<StoredKey>, StoreError> {
    let mut statement = connection.prepare_cached("SELECT key_id FROM secrets WHERE hash = ?1")?;
    let id: Option<String> = statement.query_row([&hash.0[..]], |row| row.get(0)).optional()?;
    id.map_or(Ok(None), |id| by_text_id(connection, &id))
}

pub(super) fn by_id(connection: &Connection, id: &KeyId) -> Result<Option<StoredKey>, StoreError> {
    by_text_id(connection, id.as_str())
}

fn by_text_id(connection: &Connection, id: &str) -> Result<Option<StoredKey>, StoreError> {
    let mut statement = connection.prepare_cached(&format!("SELECT {KEY_COLUMNS} WHERE k.id = ?1"))?;
    let row = statement.query_row([id], KeyRow::read).optional()?;
    row.map(|row| row.into_key(connection)).transpose()
}

pub(super) fn list(connection: &Connection, filter: &KeyFilter) -> Result<Vec<StoredKey>, StoreError> {
    let of_account = if filter.account_id.is_some() { "k.account_id = ?1" } else { "?1 IS NULL" };
    let one = if filter.id.is_some() { "AND k.id = ?2" } else { "AND ?2 IS NULL" };
    let alive = if filter.include_deleted { "" } else { "AND k.deleted_at IS NULL" };
    let sql = format!("SELECT {KEY_COLUMNS} WHERE {of_account} {one} {alive} ORDER BY k.created_at DESC, k.id DESC");
    let mut statement = connection.prepare_cached(&sql)?;
    let account_id = filter.account_id.as_ref().map(AccountId::as_str);
    let id = filter.id.as_ref().map(KeyId::as_str);
    let rows = statement.query_map([account_id, id], KeyRow::read)?;
    rows.map(|row| row?.into_key(connection)).collect()
}

struct KeyRow {
    record: String,
    version: i64,
    former_use: Option<i64>,
    account: Option<String>,
}

impl KeyRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self { record: row.get(0)?, version: row.get(1)?, former_use: row.get(2)?, account: row.get(3)? })
    }

    fn into_key(self, connection: &Connection) -> Result<StoredKey, StoreError> {
        let record: KeyRecord = from_json("key", &self.record)?;
        let account = match self.account {
            Some(text) => from_json("account", &text)?,
            None => Account::unset(record.account_id.clone()),
        };
        let secrets = secrets_of(connection, &record.id)?;
        let former_use = self.former_use.map(Timestamp::from_unix_millis);
        Ok(StoredKey { record, account, secrets, former_use, version: Version(self.version as u64) })
    }
}

/// The current one, which has no end, first; then the one that lives longest.
fn secrets_of(connection: &Connection, id: &KeyId) -> Result<Vec<SecretRow>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT hash, key_prefix, expires_at, last_used_at FROM secrets WHERE key_id = ?1
         ORDER BY expires_at IS NOT NULL, expires_at DESC",
    )?;
    let rows = statement.query_map([id.as_str()], |row| {
        Ok(SecretRow {
            hash: KeyHash(row.get(0)?),
            key_prefix: row.get(1)?,
            expires_at: row.get::<_, Option<i64>>(2)?.map(Timestamp::from_unix_millis),
            last_used_at: row.get::<_, Option<i64>>(3)?.map(Timestamp::from_unix_millis),
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn create(
    tx: &Tx<'_>,
    record: &KeyRecord,
    secret: &SecretRow,
    event: &Event,
) -> Result<Revision, StoreError> {
    tx.prepare_cached(
        "INSERT INTO keys (id, account_id, created_at, deleted_at, version, record) VALUES (?1, ?2, ?3, ?4, 1, ?5)",
    )?
    .execute(params![
        record.id.as_str(),
        record.account_id.as_str(),
        record.created_at.unix_millis(),
        record.deleted_at.map(Timestamp::unix_millis),
        to_json(record)?
    ])?;
    add_secret(tx, &record.id, secret)?;
    add_event(tx, &record.id, event)?;
    tx.announce(&Change::Key(record.id.clone()))
}

pub(super) fn add_secret(tx: &Tx<'_>, id: &KeyId, secret: &SecretRow) -> Result<Revision, StoreError> {
    tx.prepare_cached(
        "INSERT INTO secrets (hash, key_id, key_prefix, expires_at, last_used_at) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![
        secret.hash.0,
        id.as_str(),
        secret.key_prefix,
        secret.expires_at.map(Timestamp::unix_millis),
        secret.last_used_at.map(Timestamp::unix_millis)
    ])?;
    tx.announce(&Change::Secret(secret.hash))
}

/// The key remembers when it was last used.
fn drop_secret(tx: &Tx<'_>, id: &KeyId, secret: &SecretRow) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM secrets WHERE hash = ?1")?.execute([secret.hash.0])?;
    tx.prepare_cached("REPLACE INTO former_secrets (hash, key_id, at_micros) VALUES (?1, ?2, ?3)")?
        .execute(params![secret.hash.0, id.as_str(), tx.now_micros() as i64])?;
    secret.last_used_at.map_or(Ok(()), |used| used_formerly(tx, secret.hash, used))
}

/// A secret that its key no longer has was used then.
pub(super) fn used_formerly(tx: &Tx<'_>, hash: KeyHash, used: Timestamp) -> Result<(), StoreError> {
    tx.prepare_cached(
        "UPDATE keys SET former_use = ?2 WHERE id = (SELECT key_id FROM former_secrets WHERE hash = ?1)
         AND (former_use IS NULL OR former_use < ?2)",
    )?
    .execute(params![hash.0, used.unix_millis()])?;
    Ok(())
}

pub(super) fn replace(
    tx: &Tx<'_>,
    record: &KeyRecord,
    expected: Version,
    event: Option<&Event>,
) -> Result<Revision, StoreError> {
    let stored: Option<String> = tx
        .prepare_cached("SELECT record FROM keys WHERE id = ?1 AND version = ?2")?
        .query_row(params![record.id.as_str(), expected.0 as i64], |row| row.get(0))
        .optional()?;
    let stored = stored.ok_or(StoreError::Conflict)?;
    tx.prepare_cached(
        "UPDATE keys SET account_id = ?2, deleted_at = ?3, record = ?4, version = version + 1 WHERE id = ?1",
    )?
    .execute(params![
        record.id.as_str(),
        record.account_id.as_str(),
        record.deleted_at.map(Timestamp::unix_millis),
        merge_unknown("key", &stored, record)?
    ])?;
    if record.deleted_at.is_some() {
        for secret in secrets_of(tx, &record.id)? {
            drop_secret(tx, &record.id, &secret)?;
        }
    }
    if let Some(event) = event {
        add_event(tx, &record.id, event)?;
    }
    tx.announce(&Change::Key(record.id.clone()))
}

pub(super) fn rotate(
    tx: &Tx<'_>,
    record: &KeyRecord,
    expected: Version,
    secrets: &[SecretRow],
    event: &Event,
) -> Result<Revision, StoreError> {
    let revision = replace(tx, record, expected, Some(event))?;
    for known in secrets_of(tx, &record.id)? {
        if !secrets.iter().any(|secret| secret.hash == known.hash) {
            drop_secret(tx, &record.id, &known)?;
        }
    }
    let mut last = revision;
    for secret in secrets {
        let known = tx
            .prepare_cached("UPDATE secrets SET expires_at = ?3 WHERE hash = ?1 AND key_id = ?2")?
            .execute(params![secret.hash.0, record.id.as_str(), secret.expires_at.map(Timestamp::unix_millis)])?;
        if known == 0 {
            last = add_secret(tx, &record.id, secret)?;
        }
    }
    Ok(last)
}

pub(super) fn add_event(tx: &Tx<'_>, id: &KeyId, event: &Event) -> Result<(), StoreError> {
    tx.prepare_cached("INSERT INTO events (key_id, at, event) VALUES (?1, ?2, ?3)")?.execute(params![
        id.as_str(),
        event.at.unix_millis(),
        to_json(event)?
    ])?;
    Ok(())
}

pub(super) fn events(connection: &Connection, id: &KeyId) -> Result<Vec<Event>, StoreError> {
    let mut statement = connection.prepare_cached("SELECT event FROM events WHERE key_id = ?1 ORDER BY number")?;
    let rows = statement.query_map([id.as_str()], |row| row.get::<_, String>(0))?;
    rows.map(|text| from_json("event", &text?)).collect()
}

pub(super) fn account(connection: &Connection, id: &AccountId) -> Result<Option<(Account, Version)>, StoreError> {
    let mut statement = connection.prepare_cached("SELECT account, version FROM accounts WHERE id = ?1")?;
    let row =
        statement.query_row([id.as_str()], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?))).optional()?;
    row.map(|(text, version)| Ok((from_json("account", &text)?, Version(version as u64)))).transpose()
}

pub(super) fn accounts(connection: &Connection) -> Result<Vec<Account>, StoreError> {
    let mut statement = connection.prepare_cached("SELECT account FROM accounts ORDER BY id")?;
    let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
    rows.map(|text| from_json("account", &text?)).collect()
}

pub(super) fn replace_account(
    tx: &Tx<'_>,
    account: &Account,
    expected: Option<Version>,
) -> Result<Revision, StoreError> {
    let id = account.id.as_str();
    let stored: Option<(String, i64)> = tx
        .prepare_cached("SELECT account, version FROM accounts WHERE id = ?1")?
        .query_row([id], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    match (stored, expected) {
        (None, None) => tx
            .prepare_cached("INSERT INTO accounts (id, version, account) VALUES (?1, 1, ?2)")?
            .execute(params![id, to_json(account)?])?,
        (Some((text, version)), Some(expected)) if version as u64 == expected.0 => tx
            .prepare_cached("UPDATE accounts SET account = ?2, version = version + 1 WHERE id = ?1")?
            .execute(params![id, merge_unknown("account", &text, account)?])?,
        _ => return Err(StoreError::Conflict),
    };
    tx.announce(&Change::Account(account.id.clone()))
}
