//! Keys, secrets, accounts and events between their types and what the scripts read and write.

use redis::{FromRedisValue, Value};
use serde::{Deserialize, Serialize};

use crate::policy::credential::KeyHash;
use crate::policy::key::{Account, KeyRecord, Timestamp};
use crate::store::record::{from_json, to_json};
use crate::store::{SecretRow, StoreError, StoredKey, Version};

/// A secret as it stands in the row of its key. Members that are absent must not be `null`: Lua would take that for a value.
#[derive(Serialize, Deserialize)]
struct Secret {
    hash: String,
    key_prefix: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<i64>,
    /// Only written: for a secret that comes with its past. It is kept apart from the row, which does not change with every use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_used_at: Option<i64>,
}

/// The secrets of a key, as its row keeps them.
pub(super) fn secrets_to_json(secrets: &[SecretRow]) -> Result<String, StoreError> {
    let rows: Vec<Secret> = secrets
        .iter()
        .map(|secret| Secret {
            hash: secret.hash.to_hex(),
            key_prefix: secret.key_prefix.clone(),
            expires_at: secret.expires_at.map(Timestamp::unix_millis),
            last_used_at: secret.last_used_at.map(Timestamp::unix_millis),
        })
        .collect();
    to_json(&rows)
}

/// A row of a key, as `read` in registry.lua puts it together.
pub(super) struct Row(Value);

impl FromRedisValue for Row {
    fn from_redis_value(value: Value) -> Result<Self, redis::ParsingError> {
        Ok(Self(value))
    }
}

impl Row {
    /// `None` when there is no such key.
    pub(super) fn into_key(self) -> Result<Option<StoredKey>, StoreError> {
        if matches!(self.0, Value::Nil | Value::Boolean(false)) {
            return Ok(None);
        }
        type Parts = (String, String, u64, String, Vec<i64>, i64, String);
        let (id, record, version, secrets, uses, former_use, account): Parts = redis::from_redis_value(self.0)
            .map_err(|error| StoreError::Corrupt(format!("a damaged key row: {error}")))?;
        let record: KeyRecord = from_json(&format!("key {id}"), &record)?;
        if record.id.as_str() != id {
            return Err(StoreError::Corrupt(format!("the row of key {id} holds the record of key {}", record.id)));
        }
        let account = match account.as_str() {
            "" => Account::unset(record.account_id.clone()),
            text => from_json(&format!("account {}", record.account_id), text)?,
        };
        let rows: Vec<Secret> = from_json(&format!("key {id}"), &secrets)?;
        let mut secrets = Vec::with_capacity(rows.len());
        for (row, used) in rows.into_iter().zip(uses) {
            let hash = blake3::Hash::from_hex(&row.hash)
                .map_err(|_| StoreError::Corrupt(format!("key {id}: a secret's hash is not 64 hexadecimal digits")))?;
            secrets.push(SecretRow {
                hash: KeyHash(*hash.as_bytes()),
                key_prefix: row.key_prefix,
                expires_at: row.expires_at.map(Timestamp::from_unix_millis),
                last_used_at: used_at(used),
            });
        }
        // The current one, which has no end, first; then the one that lives longest.
        secrets.sort_by_key(|secret| (secret.expires_at.is_some(), std::cmp::Reverse(secret.expires_at)));
        Ok(Some(StoredKey { record, account, secrets, former_use: used_at(former_use), version: Version(version) }))
    }
}

/// 0 stands for never.
fn used_at(millis: i64) -> Option<Timestamp> {
    (millis > 0).then(|| Timestamp::from_unix_millis(millis))
}
