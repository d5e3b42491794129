//! Counts every request that carries a known key, and writes the counters to the store exactly once.
//!
//! A request adds one to a tally in memory and goes on; what the tally means (endpoint, scopes that were used) is worked out
//! when it is written. Every `usage.flush` the tallies are frozen into a numbered batch; a batch is sent until the store says it
//! is in, and counts once however often it arrives. Counting never waits. A store outage loses nothing: memory grows with
//! *distinct* tallies only, and past [`MAX_TALLIES`] endpoints fold into one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustc_hash::FxHashMap;

use crate::policy::access::{KeyProfile, Values};
use crate::policy::credential::{KeyHash, looks_like_key};
use crate::policy::key::{Day, KeyId, ResourceId, Timestamp};
use crate::policy::resource::Kind;
use crate::policy::route::Route;
use crate::store::{Counted, FlushOutcome, ReplicaId, StatusClass, Store, StoreError, UsageBatch, UsageCount};
use crate::telemetry::Metrics;

/// Locks, so that workers rarely meet.
const SHARDS: usize = 16;
/// Distinct tallies that may wait in one shard; above, endpoints fold into `_other` and totals stay right.
const MAX_TALLIES: usize = 1_000_000 / SHARDS;
/// Distinct resources that may wait in one shard; above, they are not told apart.
const MAX_RESOURCES: usize = 100_000 / SHARDS;
/// What stands for the rest.
const OTHER: &str = "_other";
/// The endpoint of requests that reached no route.
const NO_ROUTE: &str = "(no route)";

/// One request that has ended.
#[derive(Debug)]
pub struct Hit<'a> {
    /// The key it carried.
    pub key: &'a Arc<KeyProfile>,
    /// The secret it was presented with.
    pub secret: Option<KeyHash>,
    /// When it began: its day is the day of its admission.
    pub at: Timestamp,
    /// Method and route template, if it reached a route.
    pub endpoint: Option<&'a Arc<str>>,
    /// How it ended.
    pub class: StatusClass,
    /// The route that admitted it, and what it named.
    pub admitted: Option<(&'a Arc<Route>, &'a Values)>,
}

/// Which requests are counted together. Addresses stand for what they point to, which the tally keeps alive.
#[derive(PartialEq, Eq, Hash)]
struct TallyKey {
    key: usize,
    endpoint: usize,
    admitted: bool,
    class: StatusClass,
    day: Day,
}

struct Tally {
    key: Arc<KeyProfile>,
    secret: Option<KeyHash>,
    endpoint: Option<Arc<str>>,
    /// Whose scopes were used.
    route: Option<Arc<Route>>,
    count: u64,
    last: Timestamp,
}

struct Resources {
    key: Arc<KeyProfile>,
    named: HashMap<Arc<str>, u64>,
}

#[derive(Default)]
struct Pending {
    /// Keyed by addresses, never by what a client sent: the fast hash cannot be attacked.
    tallies: FxHashMap<TallyKey, Tally>,
    /// Of each key; the ids inside come from clients, so they are hashed the slow way.
    resources: FxHashMap<(usize, Day, Kind), Resources>,
    distinct_resources: usize,
}

/// The counters of this process.
pub struct Usage {
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    replica: ReplicaId,
    shards: Vec<Mutex<Pending>>,
    /// One flush at a time.
    flushing: tokio::sync::Mutex<Flushing>,
}

/// The batch that the store has not confirmed yet, and the last number used.
#[derive(Default)]
struct Flushing {
    sequence: u64,
    unconfirmed: Option<UsageBatch>,
}

impl Usage {
    /// Empty counters, flushed under this replica's name.
    pub fn new(store: Arc<dyn Store>, metrics: Arc<Metrics>, replica: ReplicaId) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { store, metrics, replica, shards, flushing: tokio::sync::Mutex::default() }
    }

    /// Counts one request.
    pub fn count(&self, hit: Hit<'_>) {
        // Allocations of one size class lie 16 bytes apart at least; the bits above tell keys apart.
        let address = Arc::as_ptr(hit.key) as usize;
        let mut pending = lock(&self.shards[(address >> 6) % SHARDS]);
        pending.add(&hit, address);
        if let Some((_, values)) = hit.admitted {
            pending.add_resources(&hit, address, values);
        }
    }

    /// Writes what is counted so far. `Ok` means all of it is in the store.
    pub async fn flush(&self) -> Result<(), StoreError> {
        let mut flushing = self.flushing.lock().await;
        if let Some(batch) = flushing.unconfirmed.clone() {
            self.send(&mut flushing, batch).await?;
        }
        match self.freeze(flushing.sequence + 1) {
            Some(batch) => self.send(&mut flushing, batch).await,
            None => Ok(()),
        }
    }

    /// Takes everything that waits, as one batch.
    fn freeze(&self, sequence: u64) -> Option<UsageBatch> {
        let mut counts: HashMap<(KeyId, Day, Counted), u64> = HashMap::new();
        let mut last_used: HashMap<KeyHash, Timestamp> = HashMap::new();
        for shard in &self.shards {
            let pending = std::mem::take(&mut *lock(shard));
            for (key, tally) in pending.tallies {
                let (id, endpoint) = (&tally.key.record.id, tally.endpoint.unwrap_or_else(|| NO_ROUTE.into()));
                let scopes = tally.route.iter().flat_map(|route| route.access.scopes());
                let used = scopes.filter(|scope| tally.key.grants.allows(scope)).cloned().map(Counted::Scope);
                for counted in used.chain([Counted::Endpoint(endpoint, key.class)]) {
                    *counts.entry((id.clone(), key.day, counted)).or_default() += tally.count;
                }
                if let Some(secret) = tally.secret {
                    let last = last_used.entry(secret).or_insert(tally.last);
                    *last = tally.last.max(*last);
                }
            }
            for ((_, day, kind), Resources { key, named }) in pending.resources {
                for (resource, count) in named {
                    let counted = Counted::Resource(kind, resource);
                    *counts.entry((key.record.id.clone(), day, counted)).or_default() += count;
                }
            }
        }
        self.metrics.usage_pending.set(counts.len() as f64);
        if counts.is_empty() {
            return None;
        }
        let counts =
            counts.into_iter().map(|((key_id, day, counted), count)| UsageCount { key_id, day, counted, count });
        let (counts, last_used) = (counts.collect(), last_used.into_iter().collect());
        Some(UsageBatch { replica: self.replica.clone(), sequence, counts, last_used })
    }

    /// The batch stays unconfirmed, under its number, until the store has it.
    async fn send(&self, flushing: &mut Flushing, batch: UsageBatch) -> Result<(), StoreError> {
        let batch_sequence = batch.sequence;
        flushing.sequence = batch_sequence;
        flushing.unconfirmed = Some(batch.clone());
        match self.store.flush_usage(batch).await {
            Ok(outcome) => {
                if let FlushOutcome::AppliedAfterGap(last) = outcome {
                    let lost = batch_sequence - 1 - last;
                    tracing::warn!(
                        lost,
                        last,
                        next = batch_sequence,
                        "the store has forgotten usage that it had confirmed"
                    );
                    self.metrics.usage_batches_lost.increment(lost);
                }
                flushing.unconfirmed = None;
                self.metrics.usage_flushes.increment(1);
                self.metrics.usage_pending.set(0.0);
                Ok(())
            }
            Err(error) => {
                self.metrics.usage_flush_failures.increment(1);
                Err(error)
            }
        }
    }
}

impl Pending {
    fn add(&mut self, hit: &Hit<'_>, address: usize) {
        let day = hit.at.day();
        let endpoint = hit.endpoint.map_or(0, |endpoint| Arc::as_ptr(endpoint).cast::<u8>() as usize);
        let mut key = TallyKey { key: address, endpoint, admitted: hit.admitted.is_some(), class: hit.class, day };
        let full = self.tallies.len() >= MAX_TALLIES && !self.tallies.contains_key(&key);
        if full {
            (key.endpoint, key.admitted) = (1, false);
        }
        let tally = self.tallies.entry(key).or_insert_with(|| Tally {
            key: hit.key.clone(),
            secret: hit.secret,
            endpoint: if full { Some(OTHER.into()) } else { hit.endpoint.cloned() },
            route: hit.admitted.filter(|_| !full).map(|(route, _)| route.clone()),
            count: 0,
            last: hit.at,
        });
        tally.count += 1;
        tally.last = tally.last.max(hit.at);
    }

    /// Only what could be an id: a value that a client made up must not become a row of the store, a key least of all, and a key
    /// is a well-formed id.
    fn add_resources(&mut self, hit: &Hit<'_>, address: usize, values: &Values) {
        for kind in Kind::ALL {
            let Some(id) = values.of(kind) else { continue };
            let of_key = self.resources.entry((address, hit.at.day(), kind));
            let named = &mut of_key.or_insert_with(|| Resources { key: hit.key.clone(), named: HashMap::new() }).named;
            if let Some(count) = named.get_mut(id) {
                *count += 1;
            } else if ResourceId::parse(id).is_ok() && !looks_like_key(id.as_bytes()) {
                let full = self.distinct_resources >= MAX_RESOURCES;
                *named.entry(if full { OTHER.into() } else { id.into() }).or_default() += 1;
                self.distinct_resources += 1;
            }
        }
    }
}

fn lock(shard: &Mutex<Pending>) -> MutexGuard<'_, Pending> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Usage").field("replica", &self.replica).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
