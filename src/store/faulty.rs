//! A store that fails on command, for tests of whoever stands above it.
//!
//! Wraps any store. Each method can be made to fail, to lose its reply or to wait; every call is counted; the feed can be cut; a store
//! that is one piece can be taken for several parts. What it does is decided when the future is first polled.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::policy::credential::KeyHash;
use crate::policy::key::{Account, AccountId, Day, KeyId, KeyRecord};
use crate::policy::quota::{LeaseReply, LeaseRequest, Subject};

use super::{
    ChangeFeed, Event, FeedItem, Finding, FlushOutcome, IdempotencyClaim, KeyCopy, KeyFilter, Part, Replica, ReplicaId,
    Revision, SecretRow, Store, StoreError, StoreFuture, StoredKey, UsageBatch, UsageCount, Version,
};

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is done: [`StoreError::Unavailable`].
    Unavailable,
    /// Nothing is done: [`StoreError::Refused`].
    Refused,
    /// Nothing is done, but the caller cannot know: [`StoreError::Unknown`].
    LoseRequest,
    /// It is done, but the caller cannot know: [`StoreError::Unknown`].
    LoseReply,
    /// It is done this much later.
    DelayRequest(Duration),
    /// It is done at once and answered this much later.
    DelayReply(Duration),
    /// It is done once [`FaultyStore::release`] is called.
    Hold,
}

/// See the module.
pub struct FaultyStore {
    inner: Arc<dyn Store>,
    control: Mutex<Control>,
    released: watch::Sender<u64>,
    feeds: Arc<Mutex<Feeds>>,
    split: Option<fn(&Subject) -> Part>,
}

#[derive(Debug, Default)]
struct Control {
    /// Of one method, with the number of calls it still applies to.
    faults: HashMap<Method, (Fault, u64)>,
    everywhere: Option<Fault>,
    parts: HashMap<usize, Fault>,
    calls: HashMap<Method, u64>,
}

#[derive(Debug, Default)]
struct Feeds {
    senders: Vec<mpsc::UnboundedSender<FeedItem>>,
    cut: bool,
}

impl fmt::Debug for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyStore").field("control", &self.control).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FaultyStore {
    /// A store that behaves, until told otherwise.
    pub fn new(inner: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self::over(inner, None))
    }

    /// The same, with the ledgers spread over parts that can fail on their own.
    pub fn in_parts(inner: Arc<dyn Store>, split: fn(&Subject) -> Part) -> Arc<Self> {
        Arc::new(Self::over(inner, Some(split)))
    }

    fn over(inner: Arc<dyn Store>, split: Option<fn(&Subject) -> Part>) -> Self {
        let (released, _) = watch::channel(0);
        Self { inner, control: Mutex::default(), released, feeds: Arc::default(), split }
    }

    /// From now on every call of `method` goes wrong.
    pub fn inject(&self, method: Method, fault: Fault) {
        self.inject_times(method, fault, u64::MAX);
    }

    /// The next `times` calls of `method` go wrong.
    pub fn inject_times(&self, method: Method, fault: Fault, times: u64) {
        lock(&self.control).faults.insert(method, (fault, times));
    }

    /// From now on every call goes wrong that has no fault of its own: an outage.
    pub fn inject_everywhere(&self, fault: Fault) {
        lock(&self.control).everywhere = Some(fault);
    }

    /// From now on every call to this part goes wrong that has no fault of its own.
    pub fn inject_into(&self, part: Part, fault: Fault) {
        lock(&self.control).parts.insert(part.0, fault);
    }

    /// Everything works again. Calls that are held or delayed go on as they were.
    pub fn heal(&self) {
        let mut control = lock(&self.control);
        control.faults.clear();
        control.everywhere = None;
        control.parts.clear();
    }

    /// Lets all calls go on that are held now.
    pub fn release(&self) {
        self.released.send_modify(|count| *count += 1);
    }

    /// How often a method was called, with whatever outcome.
    pub fn calls(&self, method: Method) -> u64 {
        lock(&self.control).calls.get(&method).copied().unwrap_or(0)
    }

    /// Subscribers get `Lost`, and no changes until [`Self::restore_feed`].
    pub fn cut_feed(&self) {
        let mut feeds = lock(&self.feeds);
        feeds.cut = true;
        feeds.send(&FeedItem::Lost);
    }

    /// Subscribers get `Restored` with this revision, then changes again.
    pub fn restore_feed(&self, revision: Revision) {
        let mut feeds = lock(&self.feeds);
        feeds.cut = false;
        feeds.send(&FeedItem::Restored(revision));
    }

    /// Sends an item to all subscribers, as if it had happened.
    pub fn feed(&self, item: &FeedItem) {
        lock(&self.feeds).send(item);
    }

    fn begin(&self, method: Method, part: Part) -> Option<Fault> {
        let mut control = lock(&self.control);
        *control.calls.entry(method).or_default() += 1;
        match control.faults.get_mut(&method) {
            Some((fault, times)) if *times > 0 => {
                *times -= 1;
                Some(fault.clone())
            }
            _ => control.parts.get(&part.0).or(control.everywhere.as_ref()).cloned(),
        }
    }

    fn pass<'a, T: Send + 'a>(
        &'a self,
        method: Method,
        part: Part,
        call: impl FnOnce(&'a dyn Store) -> StoreFuture<'a, T> + Send + 'a,
    ) -> StoreFuture<'a, T> {
        Box::pin(async move {
            let fault = self.begin(method, part);
            let lost = || StoreError::Unknown(format!("injected into {method:?}"));
            match &fault {
                Some(Fault::Unavailable) => return Err(StoreError::Unavailable(format!("injected into {method:?}"))),
                Some(Fault::Refused) => return Err(StoreError::Refused(format!("injected into {method:?}"))),
                Some(Fault::LoseRequest) => return Err(lost()),
                Some(Fault::DelayRequest(delay)) => tokio::time::sleep(*delay).await,
                Some(Fault::Hold) => {
                    // Fails only when the sender is gone, which `self` owns.
                    let _ = self.released.subscribe().changed().await;
                }
                Some(Fault::LoseReply | Fault::DelayReply(_)) | None => {}
            }
            let outcome = call(&*self.inner).await;
            match fault {
                Some(Fault::LoseReply) => Err(lost()),
                Some(Fault::DelayReply(delay)) => {
                    tokio::time::sleep(delay).await;
                    outcome
                }
                _ => outcome,
            }
        })
    }
}

impl Feeds {
    fn send(&mut self, item: &FeedItem) {
        self.senders.retain(|sender| sender.send(item.clone()).is_ok());
    }
}

/// Writes the delegating methods, and the names by which they are told apart.
macro_rules! faulty_methods {
    ($($variant:ident $method:ident($($argument:ident: $kind:ty),*) -> $answer:ty;)*) => {
        /// A method of [`Store`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(missing_docs, reason = "each is named like its method")]
        pub enum Method { Lease, Ping, $($variant),* }

        impl Store for FaultyStore {
            $(fn $method(&self, $($argument: $kind),*) -> StoreFuture<'_, $answer> {
                self.pass(Method::$variant, Part(0), move |inner| inner.$method($($argument),*))
            })*

            fn feed_silence(&self) -> Duration {
                self.inner.feed_silence()
            }

            fn lease(&self, subject: Subject, request: LeaseRequest) -> StoreFuture<'_, LeaseReply> {
                let part = self.part(&subject);
                self.pass(Method::Lease, part, move |inner| inner.lease(subject, request))
            }

            fn ping(&self, part: Part) -> StoreFuture<'_, ()> {
                self.pass(Method::Ping, part, move |inner| inner.ping(part))
            }

            fn part(&self, subject: &Subject) -> Part {
                self.split.map_or_else(|| self.inner.part(subject), |split| split(subject))
            }

            /// Needs a tokio runtime around it: a task passes the inner feed on.
            fn subscribe(&self) -> ChangeFeed {
                let (sender, receiver) = mpsc::unbounded_channel();
                let mut inner = self.inner.subscribe();
                lock(&self.feeds).senders.push(sender.clone());
                let feeds = Arc::clone(&self.feeds);
                tokio::spawn(async move {
                    while let Some(item) = inner.recv().await {
                        let feeds = lock(&feeds);
                        if !feeds.cut && sender.send(item).is_err() {
                            return;
                        }
                    }
                });
                receiver
            }
        }
    };
}

faulty_methods! {
    KeyBySecret key_by_secret(hash: KeyHash) -> Option<StoredKey>;
    Key key(id: KeyId) -> Option<StoredKey>;
    Keys keys(filter: KeyFilter) -> Vec<StoredKey>;
    CreateKey create_key(record: KeyRecord, secret: SecretRow, event: Event) -> Revision;
    ReplaceKey replace_key(record: KeyRecord, expected: Version, event: Option<Event>) -> Revision;
    RotateKey rotate_key(record: KeyRecord, expected: Version, secrets: Vec<SecretRow>, event: Event) -> Revision;
    RestoreKey restore_key(copy: KeyCopy) -> Revision;
    Account account(id: AccountId) -> Option<(Account, Version)>;
    Accounts accounts() -> Vec<Account>;
    ReplaceAccount replace_account(account: Account, expected: Option<Version>) -> Revision;
    Register register(id: ReplicaId, name: String) -> Revision;
    Heartbeat heartbeat(id: ReplicaId) -> bool;
    Acknowledge acknowledge(id: ReplicaId, revision: Revision) -> ();
    Deregister deregister(id: ReplicaId) -> ();
    Replicas replicas() -> Vec<Replica>;
    FlushUsage flush_usage(batch: UsageBatch) -> FlushOutcome;
    Usage usage(key_id: KeyId, from: Day, to: Day) -> Vec<UsageCount>;
    Events events(key_id: KeyId) -> Vec<Event>;
    IdempotencyClaim idempotency_claim(name: [u8; 32], request: [u8; 32], ttl: Duration) -> IdempotencyClaim;
    IdempotencyFinish idempotency_finish(name: [u8; 32], answer: Option<Vec<u8>>) -> ();
    Sweep sweep(retention: Duration) -> ();
    Findings findings() -> Vec<Finding>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Change;
    use crate::store::contract::{Stand, account_id, store_contract};
    use crate::store::memory::MemoryStore;

    store_contract!(Stand { store: FaultyStore::new(MemoryStore::new()), _keep: Box::new(()) });

    async fn set(store: &FaultyStore, id: &str) -> Result<Revision, StoreError> {
        store.replace_account(Account::unset(account_id(id)), None).await
    }

    #[tokio::test]
    async fn a_lost_request_does_nothing_and_a_lost_reply_does_it() {
        let store = FaultyStore::new(MemoryStore::new());
        store.inject_times(Method::ReplaceAccount, Fault::LoseRequest, 1);
        assert!(matches!(set(&store, "a1").await, Err(StoreError::Unknown(_))));
        assert!(store.account(account_id("a1")).await.unwrap().is_none());
        store.inject_times(Method::ReplaceAccount, Fault::LoseReply, 1);
        assert!(matches!(set(&store, "a1").await, Err(StoreError::Unknown(_))));
        assert!(store.account(account_id("a1")).await.unwrap().is_some());
        set(&store, "a2").await.unwrap();
        assert_eq!(store.calls(Method::ReplaceAccount), 3);
    }

    #[tokio::test]
    async fn an_outage_is_everywhere_until_it_is_healed() {
        let store = FaultyStore::new(MemoryStore::new());
        store.inject_everywhere(Fault::Unavailable);
        assert!(matches!(store.ping(Part(0)).await, Err(StoreError::Unavailable(_))));
        assert!(matches!(set(&store, "a1").await, Err(StoreError::Unavailable(_))));
        store.heal();
        set(&store, "a1").await.unwrap();
    }

    #[tokio::test]
    async fn a_held_call_is_done_when_it_is_released() {
        let store = FaultyStore::new(MemoryStore::new());
        store.inject(Method::Ping, Fault::Hold);
        let mut ping = store.ping(Part(0));
        let early = tokio::time::timeout(Duration::from_millis(20), &mut ping).await;
        assert!(early.is_err(), "{early:?}");
        store.release();
        ping.await.unwrap();
    }

    #[tokio::test]
    async fn a_cut_feed_drops_changes_between_lost_and_restored() {
        let store = FaultyStore::new(MemoryStore::new());
        let mut feed = store.subscribe();
        set(&store, "a1").await.unwrap();
        assert_eq!(feed.recv().await, Some(FeedItem::Changes(Revision(1), vec![Change::Account(account_id("a1"))])));
        store.cut_feed();
        set(&store, "a2").await.unwrap();
        assert_eq!(feed.recv().await, Some(FeedItem::Lost));
        // The task that passes items on gets its turn, so that it meets the cut.
        tokio::task::yield_now().await;
        store.restore_feed(Revision(2));
        assert_eq!(feed.recv().await, Some(FeedItem::Restored(Revision(2))));
        set(&store, "a3").await.unwrap();
        assert_eq!(feed.recv().await, Some(FeedItem::Changes(Revision(3), vec![Change::Account(account_id("a3"))])));
    }
}
