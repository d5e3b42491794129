//! The embedded store: one SQLite file in WAL mode, shared by every process of one machine.
//!
//! ```text
//!  async callers ──jobs──▶ writer thread   BEGIN IMMEDIATE … many jobs, a savepoint each … COMMIT, then the answers
//!                ──jobs──▶ reader threads  one snapshot per read
//!  subscribers   ◀─items── feed thread     PRAGMA data_version every 10 ms, or woken at once by the own writer
//! ```
//!
//! * No tokio thread ever waits for SQLite, only for a oneshot answer.
//! * **Group commit.** The writer takes all that waits into one transaction. A job that fails undoes its own savepoint only; a
//!   commit that fails fails every job in it, because none of them happened. Answers leave after the commit.
//! * **Durability** as [`super`] promises it: a batch with a change of a key, an account or an event is synced to disk
//!   (`synchronous=FULL`); leases, usage and heartbeats are left to the operating system (`NORMAL`), which survives a kill.
//! * **A lock held by another process is waited for** (10 s): busy is not an outage. A full disk, a read-only file or an I/O error
//!   is [`StoreError::Unavailable`], with nothing done, until the cause is gone; nothing has to be restarted for that.
//! * A call whose future is dropped after it was sent is carried out all the same.
//!
//! [`SqliteStore::open`] and dropping the last handle block for a moment; both belong to the start and the end of a process.
//! The file must be on a local disk: WAL needs memory shared between the processes.

mod changes;
mod error;
mod feed;
mod idempotency;
mod keys;
mod quota;
mod reader;
mod replicas;
mod restore;
mod schema;
mod sweep;
mod task;
mod usage;
mod writer;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use tokio::time::timeout;

use crate::policy::credential::KeyHash;
use crate::policy::key::{Account, AccountId, Day, KeyId, KeyRecord};
use crate::policy::quota::{LeaseReply, LeaseRequest, Subject};

use super::time::{StoreClock, machine_clock};
use super::{
    ChangeFeed, Event, Finding, FlushOutcome, IdempotencyClaim, KeyCopy, KeyFilter, Part, Replica, ReplicaId, Revision,
    SecretRow, Store, StoreError, StoreFuture, StoredKey, UsageBatch, UsageCount, Version,
};
use feed::Feed;
use reader::Readers;
use writer::{Durability, Tx, Writer};

/// A ping that has not met a free reader after this long is answered all the same.
const BUSY: Duration = Duration::from_millis(10);

/// See the module.
#[derive(Debug)]
pub struct SqliteStore {
    // In this order they are dropped: the writer ends first, for it wakes the feed.
    writer: Writer,
    readers: Readers,
    feed: Feed,
    path: PathBuf,
}

impl SqliteStore {
    /// Opens the file, making it (mode 0600) and its folders when absent, and brings its tables up to date.
    pub fn open(path: &Path) -> Result<Arc<Self>, StoreError> {
        Self::open_with_clock(path, machine_clock())
    }

    /// [`Self::open`] under another clock.
    #[doc(hidden)]
    pub fn open_with_clock(path: &Path, clock: StoreClock) -> Result<Arc<Self>, StoreError> {
        let path = schema::prepare_file(path)?;
        let connection = schema::connect(&path)?;
        schema::migrate(&connection, &path)?;
        let feed = Feed::start(schema::connect(&path)?)?;
        let readers = Readers::start(vec![schema::connect(&path)?, schema::connect(&path)?], Arc::clone(&clock))?;
        let writer = Writer::start(connection, clock, feed.waker())?;
        Ok(Arc::new(Self { writer, readers, feed, path }))
    }

    /// The file, as an absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> StoreFuture<'_, T> {
        Box::pin(self.readers.run(|connection, _now| work(connection)))
    }

    /// Synced to disk before it is answered.
    fn record<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> StoreFuture<'_, T> {
        Box::pin(self.writer.run(Durability::Synced, work))
    }

    /// Survives a kill of the process, not a loss of power.
    fn note<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> StoreFuture<'_, T> {
        Box::pin(self.writer.run(Durability::Process, work))
    }
}

impl Store for SqliteStore {
    fn key_by_secret(&self, hash: KeyHash) -> StoreFuture<'_, Option<StoredKey>> {
        self.read(move |connection| keys::by_secret(connection, hash))
    }

    fn key(&self, id: KeyId) -> StoreFuture<'_, Option<StoredKey>> {
        self.read(move |connection| keys::by_id(connection, &id))
    }

    fn keys(&self, filter: KeyFilter) -> StoreFuture<'_, Vec<StoredKey>> {
        self.read(move |connection| keys::list(connection, &filter))
    }

    fn create_key(&self, record: KeyRecord, secret: SecretRow, event: Event) -> StoreFuture<'_, Revision> {
        self.record(move |tx| keys::create(tx, &record, &secret, &event))
    }

    fn replace_key(&self, record: KeyRecord, expected: Version, event: Option<Event>) -> StoreFuture<'_, Revision> {
        self.record(move |tx| keys::replace(tx, &record, expected, event.as_ref()))
    }

    fn rotate_key(
        &self,
        record: KeyRecord,
        expected: Version,
        secrets: Vec<SecretRow>,
        event: Event,
    ) -> StoreFuture<'_, Revision> {
        self.record(move |tx| keys::rotate(tx, &record, expected, &secrets, &event))
    }

    fn restore_key(&self, copy: KeyCopy) -> StoreFuture<'_, Revision> {
        self.record(move |tx| restore::restore(tx, &copy))
    }

    fn account(&self, id: AccountId) -> StoreFuture<'_, Option<(Account, Version)>> {
        self.read(move |connection| keys::account(connection, &id))
    }

    fn accounts(&self) -> StoreFuture<'_, Vec<Account>> {
        self.read(keys::accounts)
    }

    fn replace_account(&self, account: Account, expected: Option<Version>) -> StoreFuture<'_, Revision> {
        self.record(move |tx| keys::replace_account(tx, &account, expected))
    }

    fn lease(&self, subject: Subject, request: LeaseRequest) -> StoreFuture<'_, LeaseReply> {
        self.note(move |tx| quota::lease(tx, &subject, &request))
    }

    fn subscribe(&self) -> ChangeFeed {
        self.feed.subscribe()
    }

    fn register(&self, id: ReplicaId, name: String) -> StoreFuture<'_, Revision> {
        self.note(move |tx| replicas::register(tx, &id, &name))
    }

    fn heartbeat(&self, id: ReplicaId) -> StoreFuture<'_, bool> {
        self.note(move |tx| replicas::heartbeat(tx, &id))
    }

    fn acknowledge(&self, id: ReplicaId, revision: Revision) -> StoreFuture<'_, ()> {
        self.note(move |tx| replicas::acknowledge(tx, &id, revision))
    }

    fn deregister(&self, id: ReplicaId) -> StoreFuture<'_, ()> {
        self.note(move |tx| replicas::deregister(tx, &id))
    }

    fn replicas(&self) -> StoreFuture<'_, Vec<Replica>> {
        Box::pin(self.readers.run(replicas::list))
    }

    fn flush_usage(&self, batch: UsageBatch) -> StoreFuture<'_, FlushOutcome> {
        self.note(move |tx| usage::flush(tx, &batch))
    }

    fn usage(&self, key_id: KeyId, from: Day, to: Day) -> StoreFuture<'_, Vec<UsageCount>> {
        self.read(move |connection| usage::between(connection, &key_id, from, to))
    }

    fn events(&self, key_id: KeyId) -> StoreFuture<'_, Vec<Event>> {
        self.read(move |connection| keys::events(connection, &key_id))
    }

    fn idempotency_claim(&self, name: [u8; 32], request: [u8; 32], ttl: Duration) -> StoreFuture<'_, IdempotencyClaim> {
        self.record(move |tx| idempotency::claim(tx, &name, &request, ttl))
    }

    fn idempotency_finish(&self, name: [u8; 32], answer: Option<Vec<u8>>) -> StoreFuture<'_, ()> {
        self.record(move |tx| idempotency::finish(tx, &name, answer.as_deref()))
    }

    fn sweep(&self, retention: Duration) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            for stale in sweep::ALL {
                // One transaction per piece, so that leases get their turn in between.
                while self.note(move |tx| stale.delete_some(tx, retention)).await? {}
            }
            Ok(())
        })
    }

    fn findings(&self) -> StoreFuture<'_, Vec<Finding>> {
        self.read(schema::findings)
    }

    /// A store that lives in this very process is busy at worst, never away: what it cannot do it says.
    fn ping(&self, _: Part) -> StoreFuture<'_, ()> {
        let look = self.read(|connection| Ok(connection.query_row("SELECT 1", [], |_| Ok(()))?));
        Box::pin(async move { timeout(BUSY, look).await.unwrap_or(Ok(())) })
    }
}
