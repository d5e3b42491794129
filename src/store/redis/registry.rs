//! Keys, accounts, events and gateways: everything that is one atomic script in the slot of the registry.

use std::collections::HashSet;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::RedisStore;
use super::names::Names;
use super::rows::{Row, secrets_to_json};
use super::script::{self, Invocation, Script};
use crate::policy::credential::KeyHash;
use crate::policy::key::{Account, AccountId, KeyId, KeyRecord, Timestamp};
use crate::store::record::{from_json, merge_unknown, to_json};
use crate::store::{Event, KeyFilter, Replica, ReplicaId, Revision, SecretRow, StoreError, StoredKey, Version};

/// Rows of one page: a few milliseconds of the server's time.
const PAGE: usize = 200;
/// A gateway silent for longer than this is as good as gone.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);

/// What must be there already for a key to be written.
pub(super) enum Expected {
    Nothing,
    Version(Version),
    /// Whatever it is: the key's past is replaced too, with this former use.
    Anything(Option<Timestamp>),
}

impl RedisStore {
    /// A call of a script of the registry; its first argument is the prefix.
    pub(super) fn registry_call(&self, script: &'static Script) -> Invocation {
        let names = vec![self.names.aux("rev"), Names::never(&self.names.aux(""))];
        Invocation::new(script, names).arg(self.names.prefix())
    }

    pub(super) async fn read_by_secret(&self, hash: KeyHash) -> Result<Option<StoredKey>, StoreError> {
        self.ready().await?;
        let found =
            self.client.call::<Row>(self.registry_call(&script::BY_SECRET).arg(hash.to_hex())).await?.into_key()?;
        // A name that points at a key which does not have the secret opens nothing.
        Ok(found.filter(|key| key.secrets.iter().any(|secret| secret.hash == hash)))
    }

    pub(super) async fn read_by_id(&self, id: &KeyId) -> Result<Option<StoredKey>, StoreError> {
        self.ready().await?;
        self.client.call::<Row>(self.registry_call(&script::BY_ID).arg(id.as_str())).await?.into_key()
    }

    /// Page by page: a key that is made meanwhile may be missing, and none comes twice.
    pub(super) async fn list(&self, filter: KeyFilter) -> Result<Vec<StoredKey>, StoreError> {
        if let Some(id) = &filter.id {
            let found = self.read_by_id(id).await?;
            return Ok(found.into_iter().filter(|key| listed(key, &filter)).collect());
        }
        self.ready().await?;
        let account = filter.account_id.as_ref().map_or("", AccountId::as_str);
        let (mut keys, mut seen, mut first) = (Vec::new(), HashSet::new(), 0);
        loop {
            let page = self.registry_call(&script::PAGE).arg(account).arg(first).arg(first + PAGE - 1);
            let (ids, rows) = self.client.call::<(usize, Vec<Row>)>(page).await?;
            for row in rows {
                match row.into_key() {
                    Ok(Some(key)) if listed(&key, &filter) && seen.insert(key.record.id.clone()) => keys.push(key),
                    Ok(_) => {}
                    // The others are none the worse for it.
                    Err(error) => tracing::error!(%error, "a key is left out of a list"),
                }
            }
            if ids < PAGE {
                return Ok(keys);
            }
            first += PAGE;
        }
    }

    /// Writes a key, its secrets (`None` leaves them) and what happened to it.
    pub(super) async fn put(
        &self,
        record: &KeyRecord,
        expected: Expected,
        secrets: Option<&[SecretRow]>,
        events: &[Event],
    ) -> Result<Revision, StoreError> {
        self.ready().await?;
        let text = match expected {
            Expected::Version(version) => self.merged("key", record.id.as_str(), "record", version, record).await?,
            Expected::Nothing | Expected::Anything(_) => to_json(record)?,
        };
        let past = match expected {
            Expected::Anything(former_use) => former_use.map_or(0, Timestamp::unix_millis).to_string(),
            Expected::Nothing | Expected::Version(_) => String::new(),
        };
        let secrets = secrets.map_or(Ok(String::new()), secrets_to_json)?;
        let deleted = record.deleted_at.map_or_else(String::new, |at| at.unix_millis().to_string());
        let mut call = self
            .registry_call(&script::PUT)
            .arg(record.id.as_str())
            .arg(match expected {
                Expected::Nothing => "none".to_owned(),
                Expected::Version(version) => version.0.to_string(),
                Expected::Anything(_) => "any".to_owned(),
            })
            .arg(text)
            .arg(record.created_at.unix_millis())
            .arg(record.account_id.as_str())
            .arg(deleted)
            .arg(secrets)
            .arg(past);
        for event in events {
            call = call.arg(to_json(event)?);
        }
        self.revision_of(call).await
    }

    pub(super) async fn put_account(
        &self,
        account: &Account,
        expected: Option<Version>,
    ) -> Result<Revision, StoreError> {
        self.ready().await?;
        let id = account.id.as_str();
        let (expected, text) = match expected {
            None => ("none".to_owned(), to_json(account)?),
            Some(version) => (version.0.to_string(), self.merged("acct", id, "account", version, account).await?),
        };
        self.revision_of(self.registry_call(&script::PUT_ACCOUNT).arg(id).arg(expected).arg(text)).await
    }

    /// What to write over a row of this version: members that only a later gateway knows stay. The script that writes it looks at
    /// the version again.
    async fn merged<T: Serialize + DeserializeOwned>(
        &self,
        kind: &str,
        id: &str,
        field: &str,
        expected: Version,
        new: &T,
    ) -> Result<String, StoreError> {
        match self.row(kind, id, field).await? {
            Some((stored, version)) if version == expected => merge_unknown(field, &stored, new),
            _ => Err(StoreError::Conflict),
        }
    }

    async fn row(&self, kind: &str, id: &str, field: &str) -> Result<Option<(String, Version)>, StoreError> {
        let call = self.registry_call(&script::ROW).arg(kind).arg(id).arg(field);
        let (text, version): (Option<String>, Option<u64>) = self.client.call(call).await?;
        Ok(text.map(|text| (text, Version(version.unwrap_or(0)))))
    }

    async fn revision_of(&self, call: Invocation) -> Result<Revision, StoreError> {
        let answer: String = self.client.call(call).await?;
        // The only word that a script answers instead of a number.
        answer.parse().map(Revision).map_err(|_| StoreError::Conflict)
    }

    pub(super) async fn read_account(&self, id: &AccountId) -> Result<Option<(Account, Version)>, StoreError> {
        self.ready().await?;
        let row = self.row("acct", id.as_str(), "account").await?;
        row.map(|(text, version)| Ok((from_json("account", &text)?, version))).transpose()
    }

    pub(super) async fn list_accounts(&self) -> Result<Vec<Account>, StoreError> {
        self.ready().await?;
        let (mut accounts, mut first) = (Vec::new(), 0);
        loop {
            let page = self.registry_call(&script::ACCOUNTS).arg(first).arg(first + PAGE - 1);
            let (ids, texts) = self.client.call::<(usize, Vec<String>)>(page).await?;
            for text in texts {
                accounts.push(from_json("account", &text)?);
            }
            if ids < PAGE {
                return Ok(accounts);
            }
            first += PAGE;
        }
    }

    pub(super) async fn read_events(&self, id: &KeyId) -> Result<Vec<Event>, StoreError> {
        self.ready().await?;
        let texts: Vec<String> = self.client.call(self.registry_call(&script::EVENTS).arg(id.as_str())).await?;
        texts.iter().map(|text| from_json("event", text)).collect()
    }

    pub(super) fn replica_call(&self, what: &str, id: &str) -> Invocation {
        self.registry_call(&script::REPLICAS).arg(what).arg(id)
    }

    pub(super) async fn list_replicas(&self) -> Result<Vec<Replica>, StoreError> {
        let call = self.replica_call("list", &FORGOTTEN_AFTER.as_micros().to_string());
        let rows: Vec<(String, String, u64, u64)> = self.client.call(call).await?;
        let replica = |(id, name, age, acknowledged): (String, String, u64, u64)| Replica {
            id: ReplicaId(id.into()),
            name,
            heartbeat_age: Duration::from_micros(age),
            acknowledged: Revision(acknowledged),
        };
        let mut replicas: Vec<Replica> = rows.into_iter().map(replica).collect();
        replicas.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(replicas)
    }

    /// When secrets were last used; the last piece marks the batch as written. Returns the sequence that was written before.
    pub(super) async fn write_uses(
        &self,
        replica: &ReplicaId,
        sequence: u64,
        uses: &[(KeyHash, Timestamp)],
        kept: Duration,
    ) -> Result<Option<u64>, StoreError> {
        let mut pieces = uses.chunks(PIECE).peekable();
        loop {
            let piece = pieces.next().unwrap_or_default();
            let last = pieces.peek().is_none();
            let mark = if last { sequence.to_string() } else { String::new() };
            let mut call = self.registry_call(&script::USED).arg(&*replica.0).arg(mark).arg(kept.as_secs());
            for (hash, at) in piece {
                call = call.arg(hash.to_hex()).arg(at.unix_millis());
            }
            let before: String = self.client.call(call).await?;
            if last {
                return Ok(before.parse().ok());
            }
        }
    }
}

/// Uses of one script: a few milliseconds of the server's time.
const PIECE: usize = 2000;

fn listed(key: &StoredKey, filter: &KeyFilter) -> bool {
    (filter.include_deleted || key.record.deleted_at.is_none())
        && filter.account_id.as_ref().is_none_or(|account| *account == key.record.account_id)
}
