//! The contract of a store, in words and types.
//!
//! A store keeps keys, accounts, quota ledgers, usage, events and the list of live gateways. It is the **cold path** only: a
//! cache miss, a lease refill, a usage flush, management. Hence `Arc<dyn Store>` and one boxed future per call.
//!
//! What every backend promises (and `store::contract`, the test-suite that runs over all of them, checks):
//!
//! * **Atomic.** Each method happens wholly or not at all, also between processes. [`Store::lease`] charges both windows at once.
//!   But for [`Store::flush_usage`], which may be done in pieces: see [`UsageBatch`].
//! * **Durable.** When a method that creates or changes a key, an account or an event answers `Ok`, the change survives a kill of
//!   the process and a loss of power. Leases and usage survive a kill of the process.
//! * **Honest.** [`StoreError::Unavailable`] means *nothing was done*; [`StoreError::Unknown`] means it may have been. A call that
//!   returns tokens is never repeated by the store itself.
//! * **Ordered changes.** Every change of a key or an account gets a [`Revision`]; [`Store::subscribe`] delivers changes of all
//!   processes in that order (those of one revision in any), within 250 ms, recalls included. A feed that lost something says
//!   [`FeedItem::Lost`] first; one of a store that processes share says now and then that nothing happened (an empty list), so
//!   that a silence of more than [`Store::feed_silence`] means that nobody listens.
//! * **One clock.** Windows, heartbeats and expiry of rows follow the store's clock, never a replica's.
//!
//! A store must not decide anything: no scope, limit or rejection is known here.

#[cfg(test)]
pub(crate) mod contract;
pub mod copy;
mod counted;
mod event;
#[doc(hidden)]
pub mod faulty;
pub mod health;
#[doc(hidden)]
pub mod memory;
mod record;
pub mod redis;
pub mod sqlite;
pub mod time;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::policy::credential::KeyHash;
use crate::policy::key::{Account, AccountId, Day, KeyId, KeyRecord, Timestamp};
use crate::policy::quota::{LeaseReply, LeaseRequest, Minute, Subject};
use crate::policy::resource::Kind;
use crate::policy::scope::Scope;

pub use event::{Action, Event};

/// Usage counts at most so many distinct resource ids per key and day; clients choose them, so there must be an end.
pub const MAX_RESOURCES: usize = 1000;
/// The resource id under which the rest is counted.
pub const OTHER: &str = "_other";

/// What every method returns: a boxed future, so that the trait is object-safe.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Why a call did not succeed. Messages never contain a secret.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The store cannot do it now (down, disk full, read-only). Nothing was done.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// No answer came, or it was lost: it may have been done.
    #[error("the store did not answer: {0}")]
    Unknown(String),
    /// The store lets nobody in, or not us: wrong credentials, a missing permission. Nothing was done, and trying again will not help.
    #[error("the store refuses this gateway: {0}")]
    Refused(String),
    /// The row changed since it was read ([`Store::replace_key`], [`Store::replace_account`]); read it again.
    #[error("changed by somebody else in the meantime")]
    Conflict,
    /// What is stored cannot be understood (a newer schema, a damaged row).
    #[error("the store holds something this version cannot read: {0}")]
    Corrupt(String),
}

/// One of the independent parts of a store, which can be out of reach while the others are there: a master of a cluster. A store
/// that is one piece is `Part(0)`, and keys and accounts always are in that part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Part(pub usize);

/// Something about the store that its operator should know: it works, but not as it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at: a word for a metric's label.
    pub check: &'static str,
    /// What was found and how to mend it, or `None` when all is well.
    pub trouble: Option<String>,
}

/// Position in the change feed. Larger is later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Revision(pub u64);

/// Optimistic version of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Version(pub u64);

/// One secret of a key. A key has one, or two during a rotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretRow {
    /// Its hash.
    pub hash: KeyHash,
    /// Its first 12 characters.
    pub key_prefix: String,
    /// The end of a rotation's grace; `None` for the current secret.
    pub expires_at: Option<Timestamp>,
    /// When a request last carried it (as far as flushed).
    pub last_used_at: Option<Timestamp>,
}

/// A key with all that authentication and management need, read in one go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredKey {
    /// The record.
    pub record: KeyRecord,
    /// Its account; [`Account::unset`] when nobody has set anything.
    pub account: Account,
    /// Its secrets, the current one first; empty once deleted.
    pub secrets: Vec<SecretRow>,
    /// When a secret that it no longer has (deleted, or dropped after a rotation) was last used.
    pub former_use: Option<Timestamp>,
    /// For [`Store::replace_key`].
    pub version: Version,
}

impl StoredKey {
    /// When any secret that it has or had was last used.
    pub fn last_used_at(&self) -> Option<Timestamp> {
        self.secrets.iter().map(|secret| secret.last_used_at).max().flatten().max(self.former_use)
    }
}

/// Which keys to list, newest first.
#[derive(Debug, Clone, Default)]
pub struct KeyFilter {
    /// Only this one.
    pub id: Option<KeyId>,
    /// Only of this account; `None` is all (the command line).
    pub account_id: Option<AccountId>,
    /// Deleted ones too.
    pub include_deleted: bool,
}

/// All that a store keeps of one key, to be put into another store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyCopy {
    /// The record and the secrets. Its account is none of it: accounts are copied by [`Store::replace_account`].
    pub key: StoredKey,
    /// The audit trail, oldest first.
    pub events: Vec<Event>,
    /// What was counted, on all days.
    pub usage: Vec<UsageCount>,
}

/// Something that makes cached state stale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The key's record or secrets changed, or it was deleted.
    Key(KeyId),
    /// A secret came into being: whoever cached "unknown" for it must forget that.
    Secret(KeyHash),
    /// Plan, limits or suspension of the account changed: all its keys are stale.
    Account(AccountId),
    /// Little is left of a window: give unspent tokens back.
    Recall(Subject, Minute),
}

/// What a subscriber receives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FeedItem {
    /// Changes up to and including this revision (recalls carry none of their own).
    Changes(Revision, Vec<Change>),
    /// The feed was interrupted: everything cached is unverified until the next `Restored`.
    Lost,
    /// The feed runs again; whatever was cached before is stale.
    Restored(Revision),
}

/// The receiving end of [`Store::subscribe`].
pub type ChangeFeed = mpsc::UnboundedReceiver<FeedItem>;

/// One life of one gateway process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ReplicaId(pub Arc<str>);

/// A gateway as the others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    /// This life.
    pub id: ReplicaId,
    /// Host name and listen address; a restart with the same name replaces its predecessor.
    pub name: String,
    /// Time since its last heartbeat, by the store's clock.
    pub heartbeat_age: Duration,
    /// The last revision whose changes it has applied.
    pub acknowledged: Revision,
}

/// How an answer counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum StatusClass {
    /// 2xx (and 1xx that ended the exchange).
    #[serde(rename = "2xx")]
    Success,
    /// 3xx
    #[serde(rename = "3xx")]
    Redirect,
    /// 4xx but 429.
    #[serde(rename = "4xx")]
    ClientError,
    /// 5xx
    #[serde(rename = "5xx")]
    ServerError,
    /// 429
    #[serde(rename = "429")]
    RateLimited,
    /// The client went away before the end of the answer.
    #[serde(rename = "client_gone")]
    ClientGone,
}

impl StatusClass {
    /// All classes, in the order they are shown.
    pub const ALL: [Self; 6] =
        [Self::Success, Self::Redirect, Self::ClientError, Self::ServerError, Self::RateLimited, Self::ClientGone];

    /// The class of a status whose answer reached its end.
    pub const fn of(status: u16) -> Self {
        match status {
            429 => Self::RateLimited,
            0..=299 => Self::Success,
            300..=399 => Self::Redirect,
            400..=499 => Self::ClientError,
            _ => Self::ServerError,
        }
    }

    /// As the contract writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "2xx",
            Self::Redirect => "3xx",
            Self::ClientError => "4xx",
            Self::ServerError => "5xx",
            Self::RateLimited => "429",
            Self::ClientGone => "client_gone",
        }
    }

    /// successful = below 400 (contract 7).
    pub const fn is_successful(self) -> bool {
        matches!(self, Self::Success | Self::Redirect)
    }
}

/// What is counted of a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Counted {
    /// Once a request: method and route template, and how it ended.
    Endpoint(Arc<str>, StatusClass),
    /// A scope that opened a route.
    Scope(Scope),
    /// A resource that a route bound.
    Resource(Kind, Arc<str>),
}

/// A number of requests to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageCount {
    /// Of which key.
    pub key_id: KeyId,
    /// The UTC day of admission.
    pub day: Day,
    /// What.
    pub counted: Counted,
    /// How many.
    pub count: u64,
}

/// One flush. The same `(replica, sequence)` counts once, however often it is sent, also after later ones.
///
/// A store may apply a batch in several pieces (it keeps several partitions), each piece exactly once. A call that failed may have
/// applied some of them, so a batch that was not confirmed is repeated **byte for byte, under its own number**, until it is; only then
/// is the next one sent. To give its counts another number would count some of them twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageBatch {
    /// Who counts: one life of one gateway.
    pub replica: ReplicaId,
    /// 1, 2, 3, … without gaps for each replica.
    pub sequence: u64,
    /// What to add.
    pub counts: Vec<UsageCount>,
    /// When secrets were last used; the store keeps the later time.
    pub last_used: Vec<(KeyHash, Timestamp)>,
}

/// What became of a flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlushOutcome {
    /// Added.
    Applied,
    /// It had been added before; nothing was done.
    Duplicate,
    /// Added, but this replica's batches between this sequence and this one are lost to the store. They were confirmed, or this one
    /// would not have come: the store has forgotten them (a failover, a restored backup), and nobody else has them any more. A replica
    /// that the store does not know at all (it flushed nothing for a week) may start at any sequence: [`Self::Applied`].
    AppliedAfterGap(u64),
}

/// State of an idempotency row, after an attempt to claim it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdempotencyClaim {
    /// It is ours: carry the call out, then [`Store::idempotency_finish`].
    Claimed,
    /// Somebody is carrying it out.
    InProgress,
    /// It was carried out; this is the stored (encrypted) answer.
    Finished(Vec<u8>),
    /// The same name was used with another request body.
    Mismatch,
}

/// The store. See the module for what every method promises.
pub trait Store: Send + Sync + 'static {
    /// The key that a secret belongs to, with its account; `None` when no live key has it.
    fn key_by_secret(&self, hash: KeyHash) -> StoreFuture<'_, Option<StoredKey>>;

    /// A key by id, deleted ones included (see `deleted_at`).
    fn key(&self, id: KeyId) -> StoreFuture<'_, Option<StoredKey>>;

    /// Keys, newest first.
    fn keys(&self, filter: KeyFilter) -> StoreFuture<'_, Vec<StoredKey>>;

    /// Stores a new key with its first secret and its first event.
    fn create_key(&self, record: KeyRecord, secret: SecretRow, event: Event) -> StoreFuture<'_, Revision>;

    /// Replaces a record if its version is still `expected`, else [`StoreError::Conflict`]. A record with `deleted_at` loses its
    /// secrets for ever; when they were last used stays. Secrets are otherwise left as they are. Without an event nothing changed:
    /// the revision is for whoever asks again who obeys.
    fn replace_key(&self, record: KeyRecord, expected: Version, event: Option<Event>) -> StoreFuture<'_, Revision>;

    /// [`Self::replace_key`], with secrets: from now on the key has exactly these (during a rotation two, the former with its end).
    /// Those that it has already keep their last use. A secret of another key is a [`StoreError::Conflict`].
    fn rotate_key(
        &self,
        record: KeyRecord,
        expected: Version,
        secrets: Vec<SecretRow>,
        event: Event,
    ) -> StoreFuture<'_, Revision>;

    /// Makes a key what it was in another store. Afterwards its record, its secrets with their ends and last uses, `former_use`, its
    /// events and its usage are the copy's, and nothing else is left of what this store had of that key: usage is set, not added, and
    /// doing it twice is doing it once. (What is flushed late of the use of a former secret may count or not.) A deleted key gets no
    /// secrets, whatever the copy has. A secret of another key is a [`StoreError::Conflict`] and nothing is done. The version begins
    /// or grows, never goes back. Both kinds of change are announced, the key and each secret, because gateways that run on this
    /// store may have cached otherwise.
    fn restore_key(&self, copy: KeyCopy) -> StoreFuture<'_, Revision>;

    /// An account with the version for [`Self::replace_account`]; `None` when nobody has set anything.
    fn account(&self, id: AccountId) -> StoreFuture<'_, Option<(Account, Version)>>;

    /// All accounts that were set, by id.
    fn accounts(&self) -> StoreFuture<'_, Vec<Account>>;

    /// Makes (`expected` `None`: it must not exist) or replaces an account.
    fn replace_account(&self, account: Account, expected: Option<Version>) -> StoreFuture<'_, Revision>;

    /// One call of the lease protocol: charges both windows or neither. Never repeated by the store.
    fn lease(&self, subject: Subject, request: LeaseRequest) -> StoreFuture<'_, LeaseReply>;

    /// Changes from now on; the last ones from before may come too. Each subscriber gets all of them.
    fn subscribe(&self) -> ChangeFeed;

    /// Whoever has heard nothing from the feed for longer than this does not follow it any more.
    fn feed_silence(&self) -> Duration {
        Duration::from_millis(250)
    }

    /// Announces this process; replaces one of the same name. Returns the revision at which its (empty) cache starts. One that is
    /// announced already only changes its name: what it has acknowledged stays what it was.
    fn register(&self, id: ReplicaId, name: String) -> StoreFuture<'_, Revision>;

    /// "I live": every 500 ms. Tells whether the row still exists; if not, register again and drop what was cached.
    fn heartbeat(&self, id: ReplicaId) -> StoreFuture<'_, bool>;

    /// "Everything up to here has been applied": after it no request is served from older state.
    fn acknowledge(&self, id: ReplicaId, revision: Revision) -> StoreFuture<'_, ()>;

    /// A goodbye: the process no longer serves.
    fn deregister(&self, id: ReplicaId) -> StoreFuture<'_, ()>;

    /// All processes that have not said goodbye, however long ago their last heartbeat was (an hour at most).
    fn replicas(&self) -> StoreFuture<'_, Vec<Replica>>;

    /// Adds usage exactly once; [`UsageBatch`] says what the caller owes for it.
    fn flush_usage(&self, batch: UsageBatch) -> StoreFuture<'_, FlushOutcome>;

    /// Usage of a key from one day to another, both included. What a later version counts and this one has no name for is left out.
    fn usage(&self, key_id: KeyId, from: Day, to: Day) -> StoreFuture<'_, Vec<UsageCount>>;

    /// The audit trail of a key, oldest first.
    fn events(&self, key_id: KeyId) -> StoreFuture<'_, Vec<Event>>;

    /// Claims an idempotency row for `ttl`; `request` is the hash of the body.
    fn idempotency_claim(&self, name: [u8; 32], request: [u8; 32], ttl: Duration) -> StoreFuture<'_, IdempotencyClaim>;

    /// Stores the answer of a claimed row, or with `None` frees it again.
    fn idempotency_finish(&self, name: [u8; 32], answer: Option<Vec<u8>>) -> StoreFuture<'_, ()>;

    /// Forgets usage, events and deleted keys older than `retention`, and whatever else is older than it needs to be. Does it in short
    /// pieces; call it every few minutes, from any process.
    fn sweep(&self, retention: Duration) -> StoreFuture<'_, ()>;

    /// Answers if this part of the store answers.
    fn ping(&self, part: Part) -> StoreFuture<'_, ()>;

    /// Which part keeps the ledger of a subject. Costs nothing; asked for every call.
    fn part(&self, subject: &Subject) -> Part {
        let _ = subject;
        Part::default()
    }

    /// Looks whether the store is set up as it should be; asked once, at the start.
    fn findings(&self) -> StoreFuture<'_, Vec<Finding>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }
}
