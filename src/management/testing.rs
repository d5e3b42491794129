//! What the tests of this folder (and of the command line) share: a configuration, keys, a clock that stands still, and a store
//! that fails on demand. Real stores have their own suite; here only the calls of the management API are answered.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::clock::Clock;
use crate::config::model::Config;
use crate::policy::access::KeyProfile;
use crate::policy::credential::KeyHash;
use crate::policy::instant::Mono;
use crate::policy::key::{Account, AccountId, Day, Environment, KeyId, KeyRecord, OrganizationId, Timestamp};
use crate::policy::quota::{LeaseReply, LeaseRequest, Subject};
use crate::policy::scope::{Scope, ScopeCatalog};
use crate::store::*;

pub(crate) fn scope(text: &str) -> Scope {
    Scope::parse(text).unwrap()
}

pub(crate) fn catalog() -> ScopeCatalog {
    config().scopes
}

pub(crate) fn now() -> Timestamp {
    Timestamp::parse("2026-06-01T12:00:00Z").unwrap()
}

/// A live key of account `u-1`, made in the past, that may do everything that is not reserved.
pub(crate) fn record(id: &str) -> KeyRecord {
    KeyRecord {
        id: KeyId::parse(id).unwrap(),
        name: format!("key {id}"),
        key_prefix: "sm_live_abcd".into(),
        environment: Environment::Live,
        account_id: AccountId::parse("u-1").unwrap(),
        organization_id: None,
        scopes: vec![scope("*")],
        model_ids: None,
        dataset_ids: None,
        allowed_addresses: None,
        expires_at: None,
        disabled: false,
        created_at: Timestamp::parse("2026-05-01T00:00:00Z").unwrap(),
        updated_at: Timestamp::parse("2026-05-01T00:00:00Z").unwrap(),
        created_by: "cli".into(),
        deleted_at: None,
    }
}

pub(crate) fn profile(record: KeyRecord) -> KeyProfile {
    let account = Account::unset(record.account_id.clone());
    let expires_at = record.expires_at;
    config().profile(record, account, expires_at)
}

/// A file with the plans of the contract, two scopes that stand for others, and two routes.
pub(crate) fn config() -> Config {
    let text = r#"
listen: { public: { address: "0.0.0.0:8080" } }
store: { url: "sqlite:gateway.db" }
upstreams: { seeme: { endpoints: ["http://127.0.0.1:9000"] } }
scopes:
  models:read: [models:list]
  models:*: [inferences:*]
routes:
  - { match: GET /api/v1/models, scope: models:list, limited_keys: forward }
  - { match: POST /api/v1/things, scope: things:create }
"#;
    crate::config::parse(Path::new("gateway.yaml"), text, &|_| None).unwrap().0
}

/// A clock that always says [`now`].
pub(crate) struct Stopped;

impl Clock for Stopped {
    fn mono(&self) -> Mono {
        Mono(0)
    }

    fn wall(&self) -> Timestamp {
        now()
    }
}

#[derive(Default)]
pub(crate) struct StubState {
    pub(crate) keys: Vec<StoredKey>,
    pub(crate) accounts: BTreeMap<AccountId, (Account, Version)>,
    pub(crate) events: Vec<(KeyId, Event)>,
    pub(crate) usage: Vec<UsageCount>,
    pub(crate) replicas: Vec<Replica>,
    /// After so many looks at the replicas all of them have acknowledged this.
    pub(crate) acknowledge_after_looks: Option<(u32, Revision)>,
    /// So many replacements are overtaken by somebody else, who changes nothing.
    pub(crate) conflicts: u32,
    /// Nothing works.
    pub(crate) down: bool,
    pub(crate) revision: u64,
}

/// A store in memory.
#[derive(Clone, Default)]
pub(crate) struct StubStore(Arc<Mutex<StubState>>);

impl StubStore {
    pub(crate) fn edit<T>(&self, edit: impl FnOnce(&mut StubState) -> T) -> T {
        edit(&mut self.0.lock().unwrap())
    }

    /// Puts a key in as if it had always been there.
    pub(crate) fn put(&self, record: KeyRecord) {
        let mut hash = [0; 32];
        for (to, from) in hash.iter_mut().zip(record.id.as_str().bytes().rev()) {
            *to = from;
        }
        let secret = SecretRow {
            hash: KeyHash(hash),
            key_prefix: record.key_prefix.clone(),
            expires_at: None,
            last_used_at: None,
        };
        let account = Account::unset(record.account_id.clone());
        self.edit(|state| {
            state.keys.push(StoredKey {
                record,
                account,
                secrets: vec![secret],
                former_use: None,
                version: Version(1),
            });
        });
    }

    /// The record of a key as it is now.
    pub(crate) fn record(&self, id: &str) -> KeyRecord {
        self.edit(|state| state.keys.iter().find(|key| key.record.id.as_str() == id).unwrap().record.clone())
    }

    fn answer<T: Send + 'static>(
        &self,
        answer: impl FnOnce(&mut StubState) -> Result<T, StoreError>,
    ) -> StoreFuture<'_, T> {
        let answer = self
            .edit(|state| if state.down { Err(StoreError::Unavailable("disk full".into())) } else { answer(state) });
        Box::pin(std::future::ready(answer))
    }
}

impl StubState {
    fn next(&mut self) -> Revision {
        self.revision += 1;
        Revision(self.revision)
    }

    fn overtaken(&mut self) -> bool {
        let overtaken = self.conflicts > 0;
        self.conflicts = self.conflicts.saturating_sub(1);
        overtaken
    }
}

impl Store for StubStore {
    fn key(&self, id: KeyId) -> StoreFuture<'_, Option<StoredKey>> {
        self.answer(|state| Ok(state.keys.iter().find(|key| key.record.id == id).cloned()))
    }

    fn keys(&self, filter: KeyFilter) -> StoreFuture<'_, Vec<StoredKey>> {
        self.answer(|state| {
            let wanted = |key: &&StoredKey| {
                filter.id.as_ref().is_none_or(|id| *id == key.record.id)
                    && filter.account_id.as_ref().is_none_or(|account| *account == key.record.account_id)
                    && (filter.include_deleted || key.record.deleted_at.is_none())
            };
            Ok(state.keys.iter().rev().filter(wanted).cloned().collect())
        })
    }

    fn create_key(&self, record: KeyRecord, secret: SecretRow, event: Event) -> StoreFuture<'_, Revision> {
        self.answer(|state| {
            let account = state.accounts.get(&record.account_id).map(|(account, _)| account.clone());
            let account = account.unwrap_or_else(|| Account::unset(record.account_id.clone()));
            state.events.push((record.id.clone(), event));
            state.keys.push(StoredKey {
                record,
                account,
                secrets: vec![secret],
                former_use: None,
                version: Version(1),
            });
            Ok(state.next())
        })
    }

    fn replace_key(&self, record: KeyRecord, expected: Version, event: Option<Event>) -> StoreFuture<'_, Revision> {
        self.answer(|state| {
            let overtaken = state.overtaken();
            let key = state.keys.iter_mut().find(|key| key.record.id == record.id).unwrap();
            if overtaken {
                key.version.0 += 1;
            }
            if key.version != expected {
                return Err(StoreError::Conflict);
            }
            key.version.0 += 1;
            key.record = record.clone();
            state.events.extend(event.map(|event| (record.id, event)));
            Ok(state.next())
        })
    }

    fn rotate_key(&self, _: KeyRecord, _: Version, _: Vec<SecretRow>, _: Event) -> StoreFuture<'_, Revision> {
        unimplemented!("no rotation here")
    }

    fn restore_key(&self, _: KeyCopy) -> StoreFuture<'_, Revision> {
        unreachable!("not a management call")
    }

    fn account(&self, id: AccountId) -> StoreFuture<'_, Option<(Account, Version)>> {
        self.answer(|state| Ok(state.accounts.get(&id).cloned()))
    }

    fn accounts(&self) -> StoreFuture<'_, Vec<Account>> {
        self.answer(|state| Ok(state.accounts.values().map(|(account, _)| account.clone()).collect()))
    }

    fn replace_account(&self, account: Account, expected: Option<Version>) -> StoreFuture<'_, Revision> {
        self.answer(|state| {
            let found = state.accounts.get(&account.id).map(|(_, version)| *version);
            if found != expected || state.overtaken() {
                return Err(StoreError::Conflict);
            }
            let version = Version(found.unwrap_or_default().0 + 1);
            state.accounts.insert(account.id.clone(), (account, version));
            Ok(state.next())
        })
    }

    fn replicas(&self) -> StoreFuture<'_, Vec<Replica>> {
        self.answer(|state| {
            match &mut state.acknowledge_after_looks {
                Some((0, revision)) => state.replicas.iter_mut().for_each(|replica| replica.acknowledged = *revision),
                Some((looks, _)) => *looks -= 1,
                None => {}
            }
            Ok(state.replicas.clone())
        })
    }

    fn usage(&self, key_id: KeyId, from: Day, to: Day) -> StoreFuture<'_, Vec<UsageCount>> {
        self.answer(|state| {
            let wanted = |count: &&UsageCount| count.key_id == key_id && (from..=to).contains(&count.day);
            Ok(state.usage.iter().filter(wanted).cloned().collect())
        })
    }

    fn events(&self, key_id: KeyId) -> StoreFuture<'_, Vec<Event>> {
        self.answer(|state| {
            Ok(state.events.iter().filter(|(id, _)| *id == key_id).map(|(_, event)| event.clone()).collect())
        })
    }

    fn key_by_secret(&self, _: KeyHash) -> StoreFuture<'_, Option<StoredKey>> {
        unreachable!("not a management call")
    }

    fn lease(&self, _: Subject, _: LeaseRequest) -> StoreFuture<'_, LeaseReply> {
        unreachable!("not a management call")
    }

    fn subscribe(&self) -> ChangeFeed {
        unreachable!("not a management call")
    }

    fn register(&self, _: ReplicaId, _: String) -> StoreFuture<'_, Revision> {
        unreachable!("not a management call")
    }

    fn heartbeat(&self, _: ReplicaId) -> StoreFuture<'_, bool> {
        unreachable!("not a management call")
    }

    fn acknowledge(&self, _: ReplicaId, _: Revision) -> StoreFuture<'_, ()> {
        unreachable!("not a management call")
    }

    fn deregister(&self, _: ReplicaId) -> StoreFuture<'_, ()> {
        unreachable!("not a management call")
    }

    fn flush_usage(&self, _: UsageBatch) -> StoreFuture<'_, FlushOutcome> {
        unreachable!("not a management call")
    }

    fn idempotency_claim(&self, _: [u8; 32], _: [u8; 32], _: Duration) -> StoreFuture<'_, IdempotencyClaim> {
        unreachable!("not a management call")
    }

    fn idempotency_finish(&self, _: [u8; 32], _: Option<Vec<u8>>) -> StoreFuture<'_, ()> {
        unreachable!("not a management call")
    }

    fn sweep(&self, _: Duration) -> StoreFuture<'_, ()> {
        unreachable!("not a management call")
    }

    fn ping(&self, _: crate::store::Part) -> StoreFuture<'_, ()> {
        unreachable!("not a management call")
    }
}

/// An organization id.
pub(crate) fn organization(text: &str) -> Option<OrganizationId> {
    OrganizationId::parse(text).ok()
}
