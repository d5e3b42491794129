//! A store of nothing but ledgers, in memory, that can be slow, silent or down.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use crate::clock::{Clock, SystemClock};
use crate::limit::Limiter;
use crate::policy::credential::KeyHash;
use crate::policy::instant::Mono;
use crate::policy::key::{Account, AccountId, Day, KeyId, KeyRecord, Timestamp};
use crate::policy::quota::{LeaseReply, LeaseRequest, Ledger, Subject};
use crate::store::{
    Change, ChangeFeed, Event, FlushOutcome, IdempotencyClaim, KeyCopy, KeyFilter, Replica, ReplicaId, Revision,
    SecretRow, Store, StoreError, StoreFuture, StoredKey, UsageBatch, UsageCount, Version,
};

/// One second into a minute of the store: a test has 59 s before the window changes.
pub(super) const BASE: u64 = 29_500_000 * 60_000_000 + 1_000_000;

/// Real time, shifted at will.
pub(super) struct TestClock {
    real: Arc<dyn Clock>,
    shift: AtomicU64,
}

impl TestClock {
    pub(super) fn advance(&self, by: Duration) {
        self.shift.fetch_add(by.as_micros() as u64, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn mono(&self) -> Mono {
        Mono(self.real.mono().0 + self.shift.load(Ordering::SeqCst))
    }

    fn wall(&self) -> Timestamp {
        Timestamp::from_unix_millis(((BASE + self.mono().0) / 1_000) as i64)
    }
}

/// How the store behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    Well,
    /// Leases take this long; pings are answered at once.
    Slow(Duration),
    /// Refuses at once: the disk is full.
    Down,
    /// Answers nothing at all.
    Silent,
}

pub(super) struct LedgerStore {
    pub(super) clock: Arc<TestClock>,
    ledgers: Mutex<HashMap<Subject, Ledger>>,
    mood: Mutex<Mood>,
    mood_changed: Notify,
    pub(super) calls: AtomicU64,
    limiters: Mutex<Vec<Weak<Limiter>>>,
}

impl LedgerStore {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            clock: Arc::new(TestClock { real: SystemClock::shared(), shift: AtomicU64::new(0) }),
            ledgers: Mutex::default(),
            mood: Mutex::new(Mood::Well),
            mood_changed: Notify::new(),
            calls: AtomicU64::new(0),
            limiters: Mutex::default(),
        })
    }

    pub(super) fn tell_recalls_to(&self, limiter: &Arc<Limiter>) {
        self.limiters.lock().unwrap().push(Arc::downgrade(limiter));
    }

    pub(super) fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
        self.mood_changed.notify_waiters();
    }

    fn mood(&self) -> Mood {
        *self.mood.lock().unwrap()
    }

    /// Granted and not returned in the current minute.
    pub(super) fn outstanding(&self, subject: &Subject) -> u32 {
        let mut ledger = self.ledgers.lock().unwrap().get(subject).copied().unwrap_or_default();
        let limits = crate::policy::key::QuotaLimits { requests_per_minute: u32::MAX, requests_per_day: u32::MAX };
        let nothing = LeaseRequest {
            target: None,
            want: 0,
            need: 0,
            limits,
            first: false,
            give_back: None,
            debit: None,
            seen: crate::policy::quota::Seen::default(),
        };
        u32::MAX - ledger.lease(self.now(), &nothing).minute_left
    }

    fn now(&self) -> u64 {
        BASE + self.clock.mono().0
    }

    async fn while_silent(&self) {
        loop {
            let changed = self.mood_changed.notified();
            if self.mood() != Mood::Silent {
                return;
            }
            changed.await;
        }
    }

    fn recall(&self, subject: &Subject, minute: u32) {
        for limiter in self.limiters.lock().unwrap().iter().filter_map(Weak::upgrade) {
            let change = Change::Recall(subject.clone(), minute);
            tokio::spawn(async move { limiter.on_change(&change) });
        }
    }
}

impl Store for LedgerStore {
    fn lease(&self, subject: Subject, request: LeaseRequest) -> StoreFuture<'_, LeaseReply> {
        Box::pin(async move {
            self.calls.fetch_add(1, Ordering::SeqCst);
            self.while_silent().await;
            match self.mood() {
                Mood::Down => return Err(StoreError::Unavailable("disk full".to_owned())),
                Mood::Slow(by) => tokio::time::sleep(by).await,
                Mood::Well | Mood::Silent => tokio::task::yield_now().await,
            }
            let now = self.now();
            let reply = self.ledgers.lock().unwrap().entry(subject.clone()).or_default().lease(now, &request);
            if reply.recall {
                self.recall(&subject, reply.minute);
            }
            Ok(reply)
        })
    }

    fn ping(&self, _: crate::store::Part) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            self.while_silent().await;
            if self.mood() == Mood::Down { Err(StoreError::Unavailable("disk full".to_owned())) } else { Ok(()) }
        })
    }

    fn key_by_secret(&self, _: KeyHash) -> StoreFuture<'_, Option<StoredKey>> {
        unimplemented!("ledgers only")
    }
    fn key(&self, _: KeyId) -> StoreFuture<'_, Option<StoredKey>> {
        unimplemented!("ledgers only")
    }
    fn keys(&self, _: KeyFilter) -> StoreFuture<'_, Vec<StoredKey>> {
        unimplemented!("ledgers only")
    }
    fn create_key(&self, _: KeyRecord, _: SecretRow, _: Event) -> StoreFuture<'_, Revision> {
        unimplemented!("ledgers only")
    }
    fn replace_key(&self, _: KeyRecord, _: Version, _: Option<Event>) -> StoreFuture<'_, Revision> {
        unimplemented!("ledgers only")
    }
    fn rotate_key(&self, _: KeyRecord, _: Version, _: Vec<SecretRow>, _: Event) -> StoreFuture<'_, Revision> {
        unimplemented!("ledgers only")
    }
    fn restore_key(&self, _: KeyCopy) -> StoreFuture<'_, Revision> {
        unimplemented!("ledgers only")
    }
    fn account(&self, _: AccountId) -> StoreFuture<'_, Option<(Account, Version)>> {
        unimplemented!("ledgers only")
    }
    fn accounts(&self) -> StoreFuture<'_, Vec<Account>> {
        unimplemented!("ledgers only")
    }
    fn replace_account(&self, _: Account, _: Option<Version>) -> StoreFuture<'_, Revision> {
        unimplemented!("ledgers only")
    }
    fn subscribe(&self) -> ChangeFeed {
        unimplemented!("ledgers only")
    }
    fn register(&self, _: ReplicaId, _: String) -> StoreFuture<'_, Revision> {
        unimplemented!("ledgers only")
    }
    fn heartbeat(&self, _: ReplicaId) -> StoreFuture<'_, bool> {
        unimplemented!("ledgers only")
    }
    fn acknowledge(&self, _: ReplicaId, _: Revision) -> StoreFuture<'_, ()> {
        unimplemented!("ledgers only")
    }
    fn deregister(&self, _: ReplicaId) -> StoreFuture<'_, ()> {
        unimplemented!("ledgers only")
    }
    fn replicas(&self) -> StoreFuture<'_, Vec<Replica>> {
        unimplemented!("ledgers only")
    }
    fn flush_usage(&self, _: UsageBatch) -> StoreFuture<'_, FlushOutcome> {
        unimplemented!("ledgers only")
    }
    fn usage(&self, _: KeyId, _: Day, _: Day) -> StoreFuture<'_, Vec<UsageCount>> {
        unimplemented!("ledgers only")
    }
    fn events(&self, _: KeyId) -> StoreFuture<'_, Vec<Event>> {
        unimplemented!("ledgers only")
    }
    fn idempotency_claim(&self, _: [u8; 32], _: [u8; 32], _: Duration) -> StoreFuture<'_, IdempotencyClaim> {
        unimplemented!("ledgers only")
    }
    fn idempotency_finish(&self, _: [u8; 32], _: Option<Vec<u8>>) -> StoreFuture<'_, ()> {
        unimplemented!("ledgers only")
    }
    fn sweep(&self, _: Duration) -> StoreFuture<'_, ()> {
        unimplemented!("ledgers only")
    }
}
