//! Counts every request that carries a known key, and writes the counters to the store exactly once.
//!
//! A request adds to a map in memory and goes on. Every `usage.flush` the map is frozen into a numbered batch; a batch is
//! sent until the store says it is in, and counts once however often it arrives. Counting never waits, a store outage loses
//! nothing: memory grows with *distinct* counters only, and past [`MAX_PENDING`] endpoints fold into one.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, PoisonError};

use crate::policy::credential::KeyHash;
use crate::policy::key::{Day, KeyId, Timestamp};
use crate::store::{Counted, FlushOutcome, ReplicaId, Store, StoreError, UsageBatch, UsageCount};
use crate::telemetry::Metrics;

const SHARDS: usize = 16;
/// Distinct counters that may wait; above, endpoints fold into `_other` and totals stay right.
const MAX_PENDING: usize = 1_000_000;
/// The endpoint that stands for the rest.
const OTHER: &str = "_other";

#[derive(Default)]
struct Pending {
    counts: HashMap<(KeyId, Day, Counted), u64>,
    last_used: HashMap<KeyHash, Timestamp>,
}

/// The counters of this process.
pub struct Usage {
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    replica: ReplicaId,
    shards: Vec<Mutex<Pending>>,
    hasher: std::collections::hash_map::RandomState,
    /// One flush at a time: the batch that the store has not confirmed yet, and the last number used.
    flushing: tokio::sync::Mutex<Flushing>,
}

#[derive(Default)]
struct Flushing {
    sequence: u64,
    unconfirmed: Option<UsageBatch>,
}

impl Usage {
    /// Empty counters, flushed under this replica's name.
    pub fn new(store: Arc<dyn Store>, metrics: Arc<Metrics>, replica: ReplicaId) -> Self {
        Self {
            store,
            metrics,
            replica,
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: std::collections::hash_map::RandomState::new(),
            flushing: tokio::sync::Mutex::default(),
        }
    }

    /// Counts one request. `counted` holds its endpoint and what else it used.
    pub fn count(
        &self,
        key: &KeyId,
        day: Day,
        secret: Option<(KeyHash, Timestamp)>,
        counted: impl IntoIterator<Item = Counted>,
    ) {
        let shard = &self.shards[(self.hasher.hash_one(key) as usize) % SHARDS];
        let mut pending = shard.lock().unwrap_or_else(PoisonError::into_inner);
        for what in counted {
            let folded = pending.counts.len() >= MAX_PENDING / SHARDS;
            let what = match what {
                Counted::Endpoint(_, class) if folded => Counted::Endpoint(OTHER.into(), class),
                _ if folded => continue,
                what => what,
            };
            *pending.counts.entry((key.clone(), day, what)).or_default() += 1;
        }
        if let Some((hash, at)) = secret {
            let last = pending.last_used.entry(hash).or_insert(at);
            *last = at.max(*last);
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
        let (mut counts, mut last_used) = (Vec::new(), Vec::new());
        for shard in &self.shards {
            let pending = std::mem::take(&mut *shard.lock().unwrap_or_else(PoisonError::into_inner));
            counts.extend(pending.counts.into_iter().map(|((key_id, day, counted), count)| UsageCount {
                key_id,
                day,
                counted,
                count,
            }));
            last_used.extend(pending.last_used);
        }
        self.metrics.usage_pending.set(counts.len() as f64);
        if counts.is_empty() && last_used.is_empty() {
            return None;
        }
        Some(UsageBatch { replica: self.replica.clone(), sequence, counts, last_used })
    }

    /// The batch stays unconfirmed, under its number, until the store has it.
    async fn send(&self, flushing: &mut Flushing, batch: UsageBatch) -> Result<(), StoreError> {
        flushing.sequence = batch.sequence;
        flushing.unconfirmed = Some(batch.clone());
        match self.store.flush_usage(batch).await {
            Ok(FlushOutcome::Applied | FlushOutcome::Duplicate) => {
                flushing.unconfirmed = None;
                self.metrics.usage_flushes.increment(1);
                self.metrics.usage_pending.set(0.0);
                Ok(())
            }
            Ok(FlushOutcome::Gap(last)) => {
                // The store lost its marker (a failover): go on from where it stands. Nothing confirmed is sent twice.
                if let Some(batch) = &mut flushing.unconfirmed {
                    batch.sequence = last + 1;
                    flushing.sequence = batch.sequence;
                }
                self.metrics.usage_flush_failures.increment(1);
                Err(StoreError::Unknown("a usage batch is missing in the store".to_owned()))
            }
            Err(error) => {
                self.metrics.usage_flush_failures.increment(1);
                Err(error)
            }
        }
    }
}

impl std::fmt::Debug for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Usage").field("replica", &self.replica).finish_non_exhaustive()
    }
}
