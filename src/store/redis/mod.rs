//! The shared store: Redis 6.2 or newer, or Valkey; one server, a master that sentinels name, or a cluster.
//!
//! ```text
//!  any thread ──call──▶ a task on the control runtime ──▶ topology: who has this slot ──▶ a lane (one connection a worker)
//!  subscribers ◀─items── one listener for each master: CLIENT TRACKING ON BCAST, or a channel
//! ```
//!
//! * **One call, one script.** Each method of the store is one Lua script (a usage batch is one for each partition), so it happens
//!   wholly or not at all. Scripts that belong together share a hash tag; one program serves all three topologies.
//! * **Nothing is repeated** unless the server itself says that it did nothing (see [`client`]). A lost answer is
//!   [`StoreError::Unknown`], and its tokens are forgotten.
//! * **Revisions** follow the server's clock, so that they never fall back, also after a failover or FLUSHALL.
//!
//! # Keys in Redis
//!
//! All under `store.prefix` (here `sm:`). HASH is the BLAKE3 hash of a secret, in hexadecimal; secrets themselves are nowhere.
//!
//! | name | kind | holds |
//! |---|---|---|
//! | `sm:{reg}:key:ID` | hash | `record` (the key object as JSON), `version`, `secrets` (JSON: `hash`, `key_prefix`, `expires_at` in ms), `former` (hashes it had), `former_use` (ms) |
//! | `sm:{reg}:secret:HASH` | string | the key's id |
//! | `sm:{reg}:acct:ID` | hash | `account` (JSON), `version` |
//! | `sm:aux{reg}:keys`, `…:keys:ACCOUNT` | sorted set | key ids by `created_at` (ms) |
//! | `sm:aux{reg}:gone` | sorted set | ids of deleted keys by `deleted_at` (ms) |
//! | `sm:aux{reg}:accts` | sorted set | ids of accounts |
//! | `sm:aux{reg}:events:ID` | list | events as JSON, oldest first |
//! | `sm:aux{reg}:used` | hash | HASH → when last used (ms) |
//! | `sm:aux{reg}:rev`, `…:schema`, `…:replicas`, `…:flushed:REPLICA` | | the last revision; version of this table; gateways; last usage batch |
//! | `sm:rl:{SUBJECT}` | string, 72 bytes | the quota ledger, see [`Ledger`](crate::policy::quota::Ledger) |
//! | `sm:rc:{SUBJECT}` | string | recall marker: the minute |
//! | `sm:u:{uNN}:k:ID:DAY` | hash | usage: `eN:CLASS`, `sSCOPE`, `mMODEL`, `dDATASET` → count; NN = CRC16(ID) mod 64 |
//! | `sm:u:{uNN}:days:ID`, `…:names`, `…:endpoints`, `…:applied:REPLICA` | | days with usage; endpoint → N; the last N; the last piece added |
//! | `sm:idem:{NAME}` | hash | an idempotency row |
//!
//! Names under `sm:{reg}:` and `sm:rc:` are tracked: a program in any language that writes a key record is obeyed at once, without
//! telling anybody. In one `MULTI` (a test runs these very lines):
//!
//! ```text
//! HSET sm:{reg}:key:k-1 version 1 record '{"id":"k-1","name":"ci","key_prefix":"sm_live_abcd","environment":"live","account_id":"u-1","scopes":["models:read"],"disabled":false,"created_at":"2026-11-26T00:00:00Z","updated_at":"2026-11-26T00:00:00Z","created_by":"backend"}' secrets '[{"hash":"HASH","key_prefix":"sm_live_abcd"}]'
//! SET sm:{reg}:secret:HASH k-1
//! ZADD sm:aux{reg}:keys 1795651200000 k-1
//! ZADD sm:aux{reg}:keys:u-1 1795651200000 k-1
//! ```
//!
//! Whoever changes a record adds one to `version`, so that nobody overwrites what he has not read. Keys and accounts are in one slot on purpose: a key is
//! read with its account in one step, and a change of several rows is one script. They are read on a cache miss only; what is
//! frequent, ledgers and usage, is spread over all masters.

mod check;
mod client;
mod connect;
mod feed;
mod ledger;
mod names;
mod node;
mod registry;
mod rows;
mod script;
mod sweep;
mod topology;
mod usage;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Handle, Runtime};
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::policy::credential::KeyHash;
use crate::policy::key::{Account, AccountId, Day, KeyId, KeyRecord};
use crate::policy::quota::{LeaseReply, LeaseRequest, Subject};

use super::{
    ChangeFeed, Event, Finding, FlushOutcome, IdempotencyClaim, KeyCopy, KeyFilter, Part, Replica, ReplicaId, Revision,
    SecretRow, Store, StoreError, StoreFuture, StoredKey, UsageBatch, UsageCount, Version,
};
use client::Client;
use feed::Hub;
use names::{Names, slot};
use node::Node;
use registry::Expected;
use script::Invocation;
use topology::Topology;

pub use connect::{Address, Password, RedisConfig, Servers, Tls};

/// What a call waits for the servers to be found out, at the start.
const FOUND: Duration = Duration::from_secs(2);

/// See the module.
pub struct RedisStore {
    names: Names,
    client: Client,
    topology: Arc<Topology>,
    hub: Arc<Hub>,
    checked: OnceCell<()>,
    /// Drives all connections, where nobody has lent a runtime for that.
    own: Option<Runtime>,
}

impl std::fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisStore").field("prefix", &self.names.prefix()).finish_non_exhaustive()
    }
}

impl RedisStore {
    /// Begins to connect and returns at once, with a thread of its own for the connections. Whether the servers can be reached, and
    /// are fit, the first call says.
    pub fn open(config: RedisConfig) -> Result<Arc<Self>, StoreError> {
        let own = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .thread_name("redis")
            .build()
            .map_err(|error| StoreError::Unavailable(format!("cannot start a thread for the store: {error}")))?;
        let mut store = Self::begin(config, own.handle());
        store.own = Some(own);
        Ok(Arc::new(store))
    }

    /// [`Self::open`] on a runtime that lives as long as the process: the one from which the store is watched. Then a silence of
    /// the server is told from a stall of the thread that would have heard it.
    pub fn open_on(config: RedisConfig, runtime: &Handle) -> Arc<Self> {
        Arc::new(Self::begin(config, runtime))
    }

    fn begin(config: RedisConfig, runtime: &Handle) -> Self {
        let names = Names::new(&config.prefix);
        let config = Arc::new(config);
        let entered = runtime.enter();
        let topology = Topology::start(config.clone(), &names);
        let hub = Hub::start(&config, &names, &topology);
        drop(entered);
        let client = Client::new(topology.clone(), runtime.clone());
        Self { names, client, topology, hub, checked: OnceCell::new(), own: None }
    }

    /// The master of keys and accounts, if it is known.
    fn registry_node(&self) -> Result<Arc<Node>, StoreError> {
        self.topology.registry()
    }

    /// [`Self::registry_node`], waiting a moment for sentinels or the cluster to say who it is.
    async fn registry_node_soon(&self) -> Result<Arc<Node>, StoreError> {
        let mut changes = self.topology.changes();
        drop(timeout(FOUND, changes.wait_for(|_| self.topology.registry().is_ok())).await);
        self.registry_node()
    }

    fn idempotency_call(&self, what: &str, name: &[u8; 32]) -> Invocation {
        Invocation::new(&script::IDEMPOTENCY, vec![self.names.idempotency(name)]).arg(what)
    }

    /// Any server of a part.
    fn node_of(&self, part: Part) -> Result<Arc<Node>, StoreError> {
        let view = self.topology.view();
        let found = view.masters.iter().find(|node| node.part() == part).cloned();
        // A part that nobody keeps any more is as well as the one that took over: that of the keys, for want of a better one.
        found.map_or_else(|| self.registry_node(), Ok)
    }
}

impl Drop for RedisStore {
    fn drop(&mut self) {
        if let Some(runtime) = self.own.take() {
            // The last handle may go in async code, which must not block.
            runtime.shutdown_background();
        }
    }
}

impl Store for RedisStore {
    fn key_by_secret(&self, hash: KeyHash) -> StoreFuture<'_, Option<StoredKey>> {
        Box::pin(self.read_by_secret(hash))
    }

    fn key(&self, id: KeyId) -> StoreFuture<'_, Option<StoredKey>> {
        Box::pin(async move { self.read_by_id(&id).await })
    }

    fn keys(&self, filter: KeyFilter) -> StoreFuture<'_, Vec<StoredKey>> {
        Box::pin(self.list(filter))
    }

    fn create_key(&self, record: KeyRecord, secret: SecretRow, event: Event) -> StoreFuture<'_, Revision> {
        Box::pin(async move {
            // A secret that is somebody's is a conflict too: a new key has none of its own.
            self.put(&record, Expected::Nothing, Some(&[secret]), &[event]).await
        })
    }

    fn replace_key(&self, record: KeyRecord, expected: Version, event: Option<Event>) -> StoreFuture<'_, Revision> {
        Box::pin(async move { self.put(&record, Expected::Version(expected), None, event.as_slice()).await })
    }

    fn rotate_key(
        &self,
        record: KeyRecord,
        expected: Version,
        secrets: Vec<SecretRow>,
        event: Event,
    ) -> StoreFuture<'_, Revision> {
        Box::pin(async move { self.put(&record, Expected::Version(expected), Some(&secrets), &[event]).await })
    }

    fn restore_key(&self, copy: KeyCopy) -> StoreFuture<'_, Revision> {
        Box::pin(async move {
            let KeyCopy { key, events, usage } = copy;
            let expected = Expected::Anything(key.former_use);
            let revision = self.put(&key.record, expected, Some(&key.secrets), &events).await?;
            // In other slots, so not in one step: a copy that was interrupted is made again.
            self.replace_usage(&key.record.id, &usage).await?;
            Ok(revision)
        })
    }

    fn account(&self, id: AccountId) -> StoreFuture<'_, Option<(Account, Version)>> {
        Box::pin(async move { self.read_account(&id).await })
    }

    fn accounts(&self) -> StoreFuture<'_, Vec<Account>> {
        Box::pin(self.list_accounts())
    }

    fn replace_account(&self, account: Account, expected: Option<Version>) -> StoreFuture<'_, Revision> {
        Box::pin(async move { self.put_account(&account, expected).await })
    }

    fn lease(&self, subject: Subject, request: LeaseRequest) -> StoreFuture<'_, LeaseReply> {
        Box::pin(async move { self.lease_once(&subject, &request).await })
    }

    fn subscribe(&self) -> ChangeFeed {
        self.hub.subscribe()
    }

    fn feed_silence(&self) -> Duration {
        feed::SILENCE
    }

    fn register(&self, id: ReplicaId, name: String) -> StoreFuture<'_, Revision> {
        Box::pin(async move {
            self.ready().await?;
            let revision: u64 = self.client.call(self.replica_call("register", &id.0).arg(name)).await?;
            Ok(Revision(revision))
        })
    }

    fn heartbeat(&self, id: ReplicaId) -> StoreFuture<'_, bool> {
        Box::pin(async move { Ok(self.client.call::<u8>(self.replica_call("heartbeat", &id.0)).await? > 0) })
    }

    fn acknowledge(&self, id: ReplicaId, revision: Revision) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            self.client.call::<u8>(self.replica_call("acknowledge", &id.0).arg(revision.0)).await.map(drop)
        })
    }

    fn deregister(&self, id: ReplicaId) -> StoreFuture<'_, ()> {
        Box::pin(async move { self.client.call::<u8>(self.replica_call("deregister", &id.0)).await.map(drop) })
    }

    fn replicas(&self) -> StoreFuture<'_, Vec<Replica>> {
        Box::pin(self.list_replicas())
    }

    fn flush_usage(&self, batch: UsageBatch) -> StoreFuture<'_, FlushOutcome> {
        Box::pin(self.flush(batch))
    }

    fn usage(&self, key_id: KeyId, from: Day, to: Day) -> StoreFuture<'_, Vec<UsageCount>> {
        Box::pin(self.read_usage(key_id, from, to))
    }

    fn events(&self, key_id: KeyId) -> StoreFuture<'_, Vec<Event>> {
        Box::pin(async move { self.read_events(&key_id).await })
    }

    fn idempotency_claim(&self, name: [u8; 32], request: [u8; 32], ttl: Duration) -> StoreFuture<'_, IdempotencyClaim> {
        Box::pin(async move {
            let call = self.idempotency_call("claim", &name).arg(&request[..]).arg(ttl.as_millis() as u64);
            let mut answer = self.client.call::<Vec<Vec<u8>>>(call).await?.into_iter();
            match answer.next().as_deref() {
                Some(b"claimed") => Ok(IdempotencyClaim::Claimed),
                Some(b"in progress") => Ok(IdempotencyClaim::InProgress),
                Some(b"finished") => Ok(IdempotencyClaim::Finished(answer.next().unwrap_or_default())),
                Some(b"mismatch") => Ok(IdempotencyClaim::Mismatch),
                _ => Err(StoreError::Corrupt("an idempotency row".to_owned())),
            }
        })
    }

    fn idempotency_finish(&self, name: [u8; 32], answer: Option<Vec<u8>>) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            let call = match &answer {
                Some(answer) => self.idempotency_call("answer", &name).arg(&answer[..]),
                None => self.idempotency_call("release", &name),
            };
            self.client.call::<Vec<String>>(call).await.map(drop)
        })
    }

    fn sweep(&self, retention: Duration) -> StoreFuture<'_, ()> {
        Box::pin(self.sweep_all(retention))
    }

    fn ping(&self, part: Part) -> StoreFuture<'_, ()> {
        Box::pin(async move { self.client.ask(self.node_of(part)?, redis::cmd("PING")).await.map(drop) })
    }

    fn part(&self, subject: &Subject) -> Part {
        self.topology.master(slot(&self.names.ledger(subject))).map_or(Part(0), |node| node.part())
    }

    fn findings(&self) -> StoreFuture<'_, Vec<Finding>> {
        Box::pin(self.look_around())
    }
}
