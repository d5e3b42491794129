//! The limiter: turns a [`Grant`] into a [`Permit`] by charging the quota of its subject, or says why not.
//!
//! The rules are [`policy::lease`](crate::policy::lease); this room gives them a map of subjects, a clock and a store.
//!
//! * A request that finds a token pays one uncontended lock and awaits nothing.
//! * A request that finds none waits for the one call that is out, first come first served, 250 ms at most. The call itself
//!   is a task on the control runtime and outlives the request: a slow answer still deposits its tokens.
//! * While the store is not there (see [`store::health`](crate::store::health)) nobody waits: `store.outage.quota` decides at once.
//!
//! A permit is evidence: only [`Limiter::admit`] makes one. This room must not know HTTP, routes or scopes.

pub mod address;
mod calls;
mod entry;
mod in_flight;
mod stats;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::clock::Clock;
use crate::config::model::OutageQuota;
use crate::policy::access::{Grant, KeyProfile};
use crate::policy::instant::Mono;
use crate::policy::key::QuotaLimits;
use crate::policy::lease::{Decision, Outage, Purpose};
use crate::policy::quota::{Minute, QuotaState, Subject};
use crate::policy::rejection::Rejection;
use crate::store::Change;
use crate::store::health::Guard;

pub use stats::{Counter, LimiterStats};

use entry::{Entry, Outcome};
use in_flight::{InFlight, Place};

/// A request waits this long for a call; then it is told to come back.
const PATIENCE: Duration = Duration::from_millis(250);
/// Independent locks for the map of subjects.
const SHARDS: usize = 64;

/// Leave to forward a request: its quota is charged. Made by [`Limiter::admit`] and nothing else.
#[derive(Debug)]
pub struct Permit {
    grant: Grant,
    quota: Option<QuotaState>,
    /// Of the tokens that were charged.
    minute: Option<Minute>,
    cost: u32,
    /// Free again with the permit, which lives as long as the request.
    _place: Option<Place>,
}

impl Permit {
    /// What was granted.
    pub fn grant(&self) -> &Grant {
        &self.grant
    }

    /// Both windows after this request; `None` on a route without a key.
    pub fn quota(&self) -> Option<&QuotaState> {
        self.quota.as_ref()
    }

    /// Tokens that were charged.
    pub fn cost(&self) -> u32 {
        self.cost
    }
}

/// Why there is no permit.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LimitError {
    /// A window is used up, or all places of the account are taken.
    #[error("a limit of the plan is reached")]
    Rejected(Rejection),
    /// Neither the store nor `store.outage.quota` can say yes or no (503 `store_unavailable`).
    #[error("the store cannot be asked for a lease")]
    StoreUnavailable,
}

/// The limiter of one gateway process.
pub struct Limiter {
    shared: Arc<Shared>,
    in_flight: Arc<InFlight>,
}

type Shard = Mutex<HashMap<Subject, Arc<Entry>>>;

struct Shared {
    guard: Arc<Guard>,
    clock: Arc<dyn Clock>,
    outage_quota: ArcSwap<OutageQuota>,
    shards: Box<[Shard]>,
    live_replicas: AtomicU32,
    recalls_are_heard: AtomicBool,
    stopped: AtomicBool,
    stats: LimiterStats,
}

impl Limiter {
    /// A limiter over the store behind `guard`; `outage_quota` is `store.outage.quota`. A housekeeping task lives on the guard's control
    /// runtime as long as the limiter does.
    pub fn new(guard: Arc<Guard>, outage_quota: OutageQuota) -> Self {
        let shared = Arc::new(Shared {
            clock: guard.clock().clone(),
            guard,
            outage_quota: ArcSwap::from_pointee(outage_quota),
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            live_replicas: AtomicU32::new(1),
            recalls_are_heard: AtomicBool::new(true),
            stopped: AtomicBool::new(false),
            stats: LimiterStats::default(),
        });
        shared.guard.control().spawn(calls::keep_house(Arc::downgrade(&shared)));
        Self { shared, in_flight: Arc::default() }
    }

    /// Charges the request, waits for a lease if need be, or refuses. A refused request costs nothing.
    pub async fn admit(&self, grant: Grant) -> Result<Permit, LimitError> {
        let Some(profile) = grant.profile() else {
            return Ok(Permit { grant, quota: None, minute: None, cost: 0, _place: None });
        };
        let place = match &profile.in_flight {
            None => None,
            Some(limit) => match self.in_flight.enter(limit) {
                Some(place) => Some(place),
                // Boxed: rare, and it may have to ask.
                None => return Err(Box::pin(self.too_many(profile, limit.most)).await),
            },
        };
        let cost = grant.route().cost.max(1);
        let (state, minute) = self.charge(&profile.subject, cost, profile.limits).await?;
        Ok(Permit { grant, quota: Some(state), minute: Some(minute), cost, _place: place })
    }

    /// The request was not forwarded after all: it costs nothing.
    pub fn take_back(&self, permit: &Permit) {
        if let (Some(profile), Some(minute)) = (permit.grant.profile(), permit.minute) {
            let now = self.shared.clock.mono();
            self.shared.put_back(&self.shared.entry(&profile.subject, now, profile.limits), now, minute, permit.cost);
        }
    }

    async fn too_many(&self, profile: &KeyProfile, most: u32) -> LimitError {
        LimitError::Rejected(Rejection::TooManyConcurrent(most, self.state_of(profile).await.ok()))
    }

    async fn charge(
        &self,
        subject: &Subject,
        cost: u32,
        limits: QuotaLimits,
    ) -> Result<(QuotaState, Minute), LimitError> {
        let outcome = match self.shared.first_look(subject, cost, limits) {
            FirstLook::Decided(outcome) => outcome,
            FirstLook::Queued(ticket) => ticket.wait().await,
        };
        match outcome {
            Outcome::Admitted(state, minute) => Ok((state, minute)),
            Outcome::Denied(state) => Err(LimitError::Rejected(Rejection::RateLimited(state))),
            Outcome::Unavailable => {
                self.shared.stats.unavailable.add(1);
                Err(LimitError::StoreUnavailable)
            }
        }
    }

    /// Both windows of a key without charging anything; asks the store if it was not heard in this minute.
    pub async fn state_of(&self, profile: &KeyProfile) -> Result<QuotaState, LimitError> {
        self.peek(&profile.subject, profile.limits).await
    }

    async fn peek(&self, subject: &Subject, limits: QuotaLimits) -> Result<QuotaState, LimitError> {
        let shared = &self.shared;
        let deadline = Instant::now() + PATIENCE;
        let entry = shared.entry(subject, shared.clock.mono(), limits);
        loop {
            // Registered before the state is looked at: an answer in between is not missed.
            let mut answered = std::pin::pin!(entry.answered.notified());
            answered.as_mut().enable();
            {
                let now = shared.clock.mono();
                let mut inner = entry.lock();
                if let Some(state) = inner.lease.peek(now, limits) {
                    return Ok(state);
                }
                let asked = inner.lease.is_asking() || shared.begin_call(&entry, &mut inner, now, Purpose::Settle);
                if !asked || !shared.is_there(&entry) {
                    return Err(LimitError::StoreUnavailable);
                }
            }
            if timeout_at(deadline, answered).await.is_err() {
                return Err(LimitError::StoreUnavailable);
            }
        }
    }

    /// A change from the feed. Plans and limits need nothing here: they come with each request, and a request with other
    /// limits forgets denials and gives tokens back.
    pub fn on_change(&self, change: &Change) {
        let Change::Recall(subject, minute) = change else { return };
        let Some(entry) = self.shared.shard(subject).get(subject).cloned() else { return };
        self.shared.stats.recalls.add(1);
        let now = self.shared.clock.mono();
        let mut inner = entry.lock();
        inner.lease.on_recall(now, *minute);
        self.shared.drive(&entry, &mut inner, now);
    }

    /// Recalls are not heard any more: idle tokens go back by themselves from now on.
    pub fn feed_lost(&self) {
        self.shared.recalls_are_heard.store(false, Ordering::Relaxed);
    }

    /// Recalls are heard again.
    pub fn feed_restored(&self) {
        self.shared.recalls_are_heard.store(true, Ordering::Relaxed);
    }

    /// `store.outage.quota` is another one from now on.
    pub fn set_outage_quota(&self, outage_quota: OutageQuota) {
        self.shared.outage_quota.store(Arc::new(outage_quota));
    }

    /// Gateways that are alive, this one included: what `local_share` divides by.
    pub fn set_live_replicas(&self, n: u32) {
        self.shared.live_replicas.store(n.max(1), Ordering::Relaxed);
    }

    /// Gives all tokens back and admits nothing any more. Returns when the store has confirmed, or after `patience`.
    pub async fn shut_down(&self, patience: Duration) {
        let shared = &self.shared;
        shared.stopped.store(true, Ordering::Release);
        let deadline = Instant::now() + patience;
        let entries: Vec<Arc<Entry>> =
            shared.shards.iter().flat_map(|shard| lock(shard).values().cloned().collect::<Vec<_>>()).collect();
        for entry in &entries {
            let now = shared.clock.mono();
            let mut inner = entry.lock();
            inner.lease.shut_down(now);
            inner.serve_without_store(now, None);
            shared.drive(entry, &mut inner, now);
        }
        for entry in &entries {
            loop {
                let mut answered = std::pin::pin!(entry.answered.notified());
                answered.as_mut().enable();
                if entry.lock().lease.is_idle(shared.clock.mono()) {
                    break;
                }
                if timeout_at(deadline, answered).await.is_err() {
                    return;
                }
            }
        }
    }

    /// How many requests may at most be admitted in the current minute without a grant, now that the store is not there. Grows as
    /// more subjects ask; 0 while the store is there.
    pub async fn outage_bound(&self) -> f64 {
        let shared = &self.shared;
        match **shared.outage_quota.load() {
            OutageQuota::Reject => return 0.0,
            _ if shared.guard.is_well() => return 0.0,
            OutageQuota::Allow => return f64::INFINITY,
            OutageQuota::LocalShare => {}
        }
        let mut bound = 0;
        for shard in &shared.shards {
            // There may be very many subjects; the other tasks of this runtime are in more of a hurry.
            tokio::task::yield_now().await;
            let entries: Vec<Arc<Entry>> = lock(shard).values().cloned().collect();
            let alone = entries.iter().filter(|entry| !shared.is_there(entry));
            bound += alone.map(|entry| u64::from(entry.lock().lease.local_bound(shared.clock.mono()))).sum::<u64>();
        }
        bound as f64
    }

    /// What happened so far.
    pub fn stats(&self) -> &LimiterStats {
        &self.shared.stats
    }
}

enum FirstLook {
    Decided(Outcome),
    Queued(Ticket),
}

impl Shared {
    /// The fast path: a token in hand, or a denial in force, decides without waiting.
    fn first_look(self: &Arc<Self>, subject: &Subject, cost: u32, limits: QuotaLimits) -> FirstLook {
        loop {
            let now = self.clock.mono();
            let entry = self.entry(subject, now, limits);
            let mut inner = entry.lock();
            if inner.retired {
                continue;
            }
            let outcome = match inner.take(now, cost, limits) {
                Decision::Admit(state, minute) => Outcome::Admitted(state, minute),
                Decision::Deny(state) => {
                    self.stats.denied.add(1);
                    Outcome::Denied(state)
                }
                Decision::Wait if self.stopped.load(Ordering::Acquire) => Outcome::Unavailable,
                Decision::Wait => {
                    let told = inner.enqueue(cost, limits);
                    self.stats.waited.add(1);
                    self.drive(&entry, &mut inner, now);
                    drop(inner);
                    return FirstLook::Queued(Ticket { shared: self.clone(), entry, told, cost });
                }
            };
            self.drive(&entry, &mut inner, now);
            return FirstLook::Decided(outcome);
        }
    }

    fn shard(&self, subject: &Subject) -> MutexGuard<'_, HashMap<Subject, Arc<Entry>>> {
        lock(&self.shards[(subject.spread() >> 32) as usize % SHARDS])
    }

    fn entry(&self, subject: &Subject, now: Mono, limits: QuotaLimits) -> Arc<Entry> {
        let mut shard = self.shard(subject);
        if let Some(entry) = shard.get(subject) {
            return entry.clone();
        }
        let entry = Arc::new(Entry::new(subject.clone(), now, limits));
        shard.insert(subject.clone(), entry.clone());
        entry
    }

    /// Tokens that were taken in this minute and not used.
    fn put_back(self: &Arc<Self>, entry: &Arc<Entry>, now: Mono, minute: Minute, cost: u32) {
        let mut inner = entry.lock();
        inner.lease.put_back(now, minute, cost);
        self.drive(entry, &mut inner, now);
    }

    /// How to decide without the store; `None`: not at all.
    fn outage(&self) -> Option<Outage> {
        let unlimited = match **self.outage_quota.load() {
            OutageQuota::Reject => return None,
            OutageQuota::LocalShare => false,
            OutageQuota::Allow => true,
        };
        let wall_micros = u64::try_from(self.clock.wall().unix_millis()).unwrap_or(0) * 1_000;
        Some(Outage { unlimited, replicas: self.live_replicas.load(Ordering::Relaxed), wall_micros })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A place in the queue. Dropped with an unread admission in it (the client went away), it puts the tokens back.
struct Ticket {
    shared: Arc<Shared>,
    entry: Arc<Entry>,
    told: oneshot::Receiver<Outcome>,
    cost: u32,
}

impl Ticket {
    async fn wait(mut self) -> Outcome {
        match timeout_at(Instant::now() + PATIENCE, &mut self.told).await {
            Ok(told) => told.unwrap_or(Outcome::Unavailable),
            Err(_) => {
                // An answer may have come this very moment; after `close` none can.
                self.told.close();
                self.told.try_recv().unwrap_or(Outcome::Unavailable)
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.told.close();
        if let Ok(Outcome::Admitted(_, minute)) = self.told.try_recv() {
            self.shared.put_back(&self.entry, self.shared.clock.mono(), minute, self.cost);
        }
    }
}
