//! A store in memory, for tests: the contract without a disk. One process only; nothing survives it.
//!
//! Simple on purpose: one mutex, and every method is done before its future is returned.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::future::ready;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::policy::credential::KeyHash;
use crate::policy::key::{Account, AccountId, Day, KeyId, KeyRecord, Timestamp};
use crate::policy::quota::{LeaseReply, LeaseRequest, Ledger, Subject};

use super::time::{StoreClock, machine_clock, timestamp};
use super::{
    Change, ChangeFeed, Counted, Event, FeedItem, FlushOutcome, IdempotencyClaim, KeyCopy, KeyFilter, MAX_RESOURCES,
    OTHER, Part, Replica, ReplicaId, Revision, SecretRow, Store, StoreError, StoreFuture, StoredKey, UsageBatch,
    UsageCount, Version,
};

/// See the module.
pub struct MemoryStore {
    state: Mutex<State>,
    clock: StoreClock,
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryStore")
    }
}

#[derive(Default)]
struct State {
    keys: BTreeMap<KeyId, KeyRow>,
    accounts: BTreeMap<AccountId, (Account, Version)>,
    ledgers: HashMap<Subject, Ledger>,
    replicas: BTreeMap<Arc<str>, ReplicaRow>,
    flushes: HashMap<ReplicaId, u64>,
    usage: HashMap<(KeyId, Day, Counted), u64>,
    idempotency: HashMap<[u8; 32], IdempotencyRow>,
    revision: Revision,
    subscribers: Vec<UnboundedSender<FeedItem>>,
}

struct KeyRow {
    record: KeyRecord,
    secrets: Vec<SecretRow>,
    former_use: Option<Timestamp>,
    former_secrets: Vec<KeyHash>,
    version: Version,
    events: Vec<Event>,
}

impl KeyRow {
    /// Has exactly these from now on, and remembers when the others were last used.
    fn keep_secrets(&mut self, kept: Vec<SecretRow>) {
        for gone in self.secrets.iter().filter(|known| kept.iter().all(|secret| secret.hash != known.hash)) {
            self.former_use = self.former_use.max(gone.last_used_at);
            self.former_secrets.push(gone.hash);
        }
        self.secrets = kept;
    }
}

struct ReplicaRow {
    name: String,
    heartbeat_micros: u64,
    acknowledged: Revision,
}

struct IdempotencyRow {
    request: [u8; 32],
    answer: Option<Vec<u8>>,
    expires_micros: u64,
}

impl MemoryStore {
    /// An empty store on the machine's clock.
    pub fn new() -> Arc<Self> {
        Self::with_clock(machine_clock())
    }

    /// An empty store on another clock.
    pub fn with_clock(clock: StoreClock) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), clock })
    }

    fn now(&self) -> u64 {
        (self.clock)()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T: Send + 'static>(&self, work: impl FnOnce(&mut State) -> Result<T, StoreError>) -> StoreFuture<'_, T> {
        let outcome = work(&mut self.state());
        Box::pin(ready(outcome))
    }
}

impl State {
    fn publish(&mut self, changes: Vec<Change>) -> Revision {
        let recall = matches!(changes.as_slice(), [Change::Recall(..)]);
        self.revision.0 += u64::from(!recall);
        let item = FeedItem::Changes(self.revision, changes);
        self.subscribers.retain(|subscriber| subscriber.send(item.clone()).is_ok());
        self.revision
    }

    fn stored(&self, row: &KeyRow) -> StoredKey {
        let account = self.accounts.get(&row.record.account_id).map(|(account, _)| account.clone());
        let account = account.unwrap_or_else(|| Account::unset(row.record.account_id.clone()));
        let (record, secrets) = (row.record.clone(), row.secrets.clone());
        StoredKey { record, account, secrets, former_use: row.former_use, version: row.version }
    }

    fn secrets(&mut self) -> impl Iterator<Item = &mut SecretRow> {
        self.keys.values_mut().flat_map(|row| &mut row.secrets)
    }

    /// The count with its resource id folded away when the key has too many of them on that day.
    fn bounded(&self, count: &UsageCount) -> Counted {
        let Counted::Resource(kind, _) = &count.counted else { return count.counted.clone() };
        if self.usage.contains_key(&(count.key_id.clone(), count.day, count.counted.clone())) {
            return count.counted.clone();
        }
        let is_id = |counted: &Counted| matches!(counted, Counted::Resource(_, id) if &**id != OTHER);
        let of_day =
            |(id, day, counted): &&(KeyId, Day, Counted)| *id == count.key_id && *day == count.day && is_id(counted);
        let full = self.usage.keys().filter(of_day).count() >= MAX_RESOURCES;
        if full { Counted::Resource(*kind, OTHER.into()) } else { count.counted.clone() }
    }

    fn flush(&mut self, batch: &UsageBatch) -> FlushOutcome {
        let outcome = match self.flushes.get(&batch.replica) {
            Some(&last) if batch.sequence <= last => return FlushOutcome::Duplicate,
            Some(&last) if batch.sequence > last + 1 => FlushOutcome::AppliedAfterGap(last),
            _ => FlushOutcome::Applied,
        };
        for count in &batch.counts {
            let counted = self.bounded(count);
            *self.usage.entry((count.key_id.clone(), count.day, counted)).or_default() += count.count;
        }
        for &(hash, at) in &batch.last_used {
            if let Some(secret) = self.secrets().find(|secret| secret.hash == hash) {
                secret.last_used_at = secret.last_used_at.max(Some(at));
            }
            if let Some(row) = self.keys.values_mut().find(|row| row.former_secrets.contains(&hash)) {
                row.former_use = row.former_use.max(Some(at));
            }
        }
        self.flushes.insert(batch.replica.clone(), batch.sequence);
        outcome
    }
}

impl Store for MemoryStore {
    fn key_by_secret(&self, hash: KeyHash) -> StoreFuture<'_, Option<StoredKey>> {
        self.with(|state| {
            let row = state.keys.values().find(|row| row.secrets.iter().any(|secret| secret.hash == hash));
            Ok(row.map(|row| state.stored(row)))
        })
    }

    fn key(&self, id: KeyId) -> StoreFuture<'_, Option<StoredKey>> {
        self.with(|state| Ok(state.keys.get(&id).map(|row| state.stored(row))))
    }

    fn keys(&self, filter: KeyFilter) -> StoreFuture<'_, Vec<StoredKey>> {
        self.with(|state| {
            let listed = |record: &KeyRecord| {
                filter.id.as_ref().is_none_or(|id| *id == record.id)
                    && (filter.include_deleted || record.deleted_at.is_none())
                    && filter.account_id.as_ref().is_none_or(|id| *id == record.account_id)
            };
            let rows = state.keys.values().filter(|row| listed(&row.record));
            let mut keys: Vec<StoredKey> = rows.map(|row| state.stored(row)).collect();
            keys.sort_by(|a, b| (b.record.created_at, &b.record.id).cmp(&(a.record.created_at, &a.record.id)));
            Ok(keys)
        })
    }

    fn create_key(&self, record: KeyRecord, secret: SecretRow, event: Event) -> StoreFuture<'_, Revision> {
        self.with(|state| {
            if state.keys.contains_key(&record.id) || state.secrets().any(|other| other.hash == secret.hash) {
                return Err(StoreError::Conflict);
            }
            let changes = vec![Change::Secret(secret.hash), Change::Key(record.id.clone())];
            let id = record.id.clone();
            let secrets = vec![secret];
            let row = KeyRow {
                record,
                secrets,
                former_use: None,
                former_secrets: Vec::new(),
                version: Version(1),
                events: vec![event],
            };
            state.keys.insert(id, row);
            Ok(state.publish(changes))
        })
    }

    fn replace_key(&self, record: KeyRecord, expected: Version, event: Option<Event>) -> StoreFuture<'_, Revision> {
        self.with(|state| {
            let row = state.keys.get_mut(&record.id).filter(|row| row.version == expected);
            let row = row.ok_or(StoreError::Conflict)?;
            if record.deleted_at.is_some() {
                row.keep_secrets(Vec::new());
            }
            row.version.0 += 1;
            row.events.extend(event);
            row.record = record.clone();
            Ok(state.publish(vec![Change::Key(record.id)]))
        })
    }

    fn rotate_key(
        &self,
        record: KeyRecord,
        expected: Version,
        secrets: Vec<SecretRow>,
        event: Event,
    ) -> StoreFuture<'_, Revision> {
        self.with(|state| {
            let ours = |id: &KeyId, hash| state.keys[id].secrets.iter().find(|secret| secret.hash == hash).cloned();
            let taken =
                |secret: &SecretRow| state.keys.keys().any(|id| *id != record.id && ours(id, secret.hash).is_some());
            let current = state.keys.get(&record.id).map(|row| row.version);
            if current != Some(expected) || secrets.iter().any(taken) {
                return Err(StoreError::Conflict);
            }
            let mut changes = vec![Change::Key(record.id.clone())];
            let mut next = Vec::new();
            for mut secret in secrets {
                match ours(&record.id, secret.hash) {
                    Some(known) => secret.last_used_at = known.last_used_at,
                    None => changes.push(Change::Secret(secret.hash)),
                }
                next.push(secret);
            }
            if let Some(row) = state.keys.get_mut(&record.id) {
                row.version.0 += 1;
                row.events.push(event);
                row.record = record;
                row.keep_secrets(next);
            }
            Ok(state.publish(changes))
        })
    }

    fn restore_key(&self, copy: KeyCopy) -> StoreFuture<'_, Revision> {
        self.with(|state| {
            let KeyCopy { key: StoredKey { record, mut secrets, former_use, .. }, events, usage } = copy;
            if record.deleted_at.is_some() {
                secrets.clear();
            }
            let others = || state.keys.values().filter(|row| row.record.id != record.id).flat_map(|row| &row.secrets);
            if secrets.iter().any(|secret| others().any(|other| other.hash == secret.hash)) {
                return Err(StoreError::Conflict);
            }
            let id = record.id.clone();
            state.usage.retain(|(of, _, _), _| *of != id);
            for UsageCount { day, counted, count, .. } in usage {
                *state.usage.entry((id.clone(), day, counted)).or_default() += count;
            }
            let mut changes: Vec<Change> = secrets.iter().map(|secret| Change::Secret(secret.hash)).collect();
            changes.push(Change::Key(id.clone()));
            let version = Version(state.keys.get(&id).map_or(1, |row| row.version.0 + 1));
            state.keys.insert(id, KeyRow { record, secrets, former_use, former_secrets: Vec::new(), version, events });
            Ok(state.publish(changes))
        })
    }

    fn account(&self, id: AccountId) -> StoreFuture<'_, Option<(Account, Version)>> {
        self.with(|state| Ok(state.accounts.get(&id).cloned()))
    }

    fn accounts(&self) -> StoreFuture<'_, Vec<Account>> {
        self.with(|state| Ok(state.accounts.values().map(|(account, _)| account.clone()).collect()))
    }

    fn replace_account(&self, account: Account, expected: Option<Version>) -> StoreFuture<'_, Revision> {
        self.with(|state| {
            let current = state.accounts.get(&account.id).map(|&(_, version)| version);
            if current != expected {
                return Err(StoreError::Conflict);
            }
            let (id, next) = (account.id.clone(), Version(current.map_or(1, |version| version.0 + 1)));
            state.accounts.insert(id.clone(), (account, next));
            Ok(state.publish(vec![Change::Account(id)]))
        })
    }

    fn lease(&self, subject: Subject, request: LeaseRequest) -> StoreFuture<'_, LeaseReply> {
        self.with(|state| {
            let reply = state.ledgers.entry(subject.clone()).or_default().lease(self.now(), &request);
            if reply.recall {
                state.publish(vec![Change::Recall(subject, reply.minute)]);
            }
            Ok(reply)
        })
    }

    fn subscribe(&self) -> ChangeFeed {
        let (sender, receiver) = unbounded_channel();
        self.state().subscribers.push(sender);
        receiver
    }

    fn register(&self, id: ReplicaId, name: String) -> StoreFuture<'_, Revision> {
        self.with(|state| {
            let acknowledged = state.replicas.get(&id.0).map_or(state.revision, |row| row.acknowledged);
            state.replicas.retain(|_, row| row.name != name);
            state.replicas.insert(id.0, ReplicaRow { name, heartbeat_micros: self.now(), acknowledged });
            Ok(acknowledged)
        })
    }

    fn heartbeat(&self, id: ReplicaId) -> StoreFuture<'_, bool> {
        self.with(|state| {
            let row = state.replicas.get_mut(&id.0);
            Ok(row.map(|row| row.heartbeat_micros = self.now()).is_some())
        })
    }

    fn acknowledge(&self, id: ReplicaId, revision: Revision) -> StoreFuture<'_, ()> {
        self.with(|state| {
            if let Some(row) = state.replicas.get_mut(&id.0) {
                row.acknowledged = row.acknowledged.max(revision);
            }
            Ok(())
        })
    }

    fn deregister(&self, id: ReplicaId) -> StoreFuture<'_, ()> {
        self.with(|state| {
            state.replicas.remove(&id.0);
            Ok(())
        })
    }

    fn replicas(&self) -> StoreFuture<'_, Vec<Replica>> {
        self.with(|state| {
            let now = self.now();
            let shown = |(id, row): (&Arc<str>, &ReplicaRow)| Replica {
                id: ReplicaId(Arc::clone(id)),
                name: row.name.clone(),
                heartbeat_age: Duration::from_micros(now.saturating_sub(row.heartbeat_micros)),
                acknowledged: row.acknowledged,
            };
            let mut replicas: Vec<Replica> = state.replicas.iter().map(shown).collect();
            replicas.retain(|replica| replica.heartbeat_age <= Duration::from_secs(3600));
            replicas.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(replicas)
        })
    }

    fn flush_usage(&self, batch: UsageBatch) -> StoreFuture<'_, FlushOutcome> {
        self.with(|state| Ok(state.flush(&batch)))
    }

    fn usage(&self, key_id: KeyId, from: Day, to: Day) -> StoreFuture<'_, Vec<UsageCount>> {
        self.with(|state| {
            let asked = state.usage.iter().filter(|((id, day, _), _)| *id == key_id && (from..=to).contains(day));
            let count = |((key_id, day, counted), &count): (&(KeyId, Day, Counted), &u64)| UsageCount {
                key_id: key_id.clone(),
                day: *day,
                counted: counted.clone(),
                count,
            };
            let mut counts: Vec<UsageCount> = asked.map(count).collect();
            counts.sort_by_key(|count| count.day);
            Ok(counts)
        })
    }

    fn events(&self, key_id: KeyId) -> StoreFuture<'_, Vec<Event>> {
        self.with(|state| Ok(state.keys.get(&key_id).map(|row| row.events.clone()).unwrap_or_default()))
    }

    fn idempotency_claim(&self, name: [u8; 32], request: [u8; 32], ttl: Duration) -> StoreFuture<'_, IdempotencyClaim> {
        self.with(|state| {
            let now = self.now();
            Ok(match state.idempotency.get(&name).filter(|row| row.expires_micros > now) {
                Some(row) if row.request != request => IdempotencyClaim::Mismatch,
                Some(IdempotencyRow { answer: Some(answer), .. }) => IdempotencyClaim::Finished(answer.clone()),
                Some(_) => IdempotencyClaim::InProgress,
                None => {
                    let expires_micros = now.saturating_add(ttl.as_micros() as u64);
                    state.idempotency.insert(name, IdempotencyRow { request, answer: None, expires_micros });
                    IdempotencyClaim::Claimed
                }
            })
        })
    }

    fn idempotency_finish(&self, name: [u8; 32], answer: Option<Vec<u8>>) -> StoreFuture<'_, ()> {
        self.with(|state| {
            match (answer, state.idempotency.get_mut(&name)) {
                (None, _) => drop(state.idempotency.remove(&name)),
                (answer, Some(row)) => row.answer = answer,
                (_, None) => {}
            }
            Ok(())
        })
    }

    fn sweep(&self, retention: Duration) -> StoreFuture<'_, ()> {
        self.with(|state| {
            let now = self.now();
            let oldest = timestamp(now.saturating_sub(retention.as_micros().try_into().unwrap_or(u64::MAX)));
            state.usage.retain(|(_, day, _), _| *day >= oldest.day());
            state.keys.retain(|_, row| row.record.deleted_at.is_none_or(|at| at >= oldest));
            state.keys.values_mut().for_each(|row| row.events.retain(|event| event.at >= oldest));
            state.idempotency.retain(|_, row| row.expires_micros > now);
            Ok(())
        })
    }

    fn ping(&self, _: Part) -> StoreFuture<'_, ()> {
        self.with(|_| Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::contract::{Stand, store_contract};

    store_contract!(Stand { store: MemoryStore::new(), _keep: Box::new(()) });
}
