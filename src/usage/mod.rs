//! Counts every request that carries a known key, and writes the counters to the store exactly once.
//!
//! ```text
//!  request ─▶ tallies ──▶ sums ──────▶ numbered batches ──▶ store
//!             (pending)   (counts)     (ledger)
//!                           └──── journal, where there is one ────▶ the next process
//! ```
//!
//! * A request adds one to a tally in memory and goes on. Counting never waits.
//! * Every `usage.flush` all that was counted gets the next numbers of this replica, in batches. A batch is sent until the store says
//!   that it is in, and counts once however often it arrives; then comes the next one.
//! * With `usage.journal` what was counted is also appended to a file every [`JOURNAL_PERIOD`]. The next process sends what the
//!   killed one did not, under the numbers it would have had. See [`journal`].
//!
//! # In an outage of the store
//!
//! Nothing is lost, and memory does not grow with requests but with **distinct** (key, day, endpoint, status class) and distinct
//! scopes and resource ids of keys: tallies are summed up at every flush, and let go of the keys they hold. At most 1,000,000
//! counters are told apart; above, endpoints fold into `_other`, resource ids too, and scopes are not counted, so that there is one
//! counter for each key, day and class, and all totals stay right.
//!
//! A counter takes 110 bytes where keys and endpoints are few, and 300 when key and resource id are its own (measured by
//! `memory_of_a_full_ledger…`): a full ledger takes 300 MB at most, and as a journal 100 MB. Tallies of one interval come on top, a
//! hundred-odd bytes each.

mod counts;
pub mod journal;
mod ledger;
mod pending;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::store::{FlushOutcome, ReplicaId, Store, StoreError, UsageBatch};
use crate::telemetry::Metrics;

use journal::Journal;
use ledger::{Bounds, Ledger};
use pending::Shards;

pub use pending::Hit;

/// How often what was counted is to be [written down](Usage::write_down): a kill loses 100 ms at most, and writing takes a moment too.
pub const JOURNAL_PERIOD: Duration = Duration::from_millis(90);

/// The counters of this process.
pub struct Usage {
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    replica: ReplicaId,
    pending: Arc<Shards>,
    /// With a journal its lock is held while a file is written: then only threads that may block take it.
    ledger: Arc<Mutex<Ledger>>,
    has_journal: AtomicBool,
    /// One flush at a time.
    flushing: tokio::sync::Mutex<()>,
}

impl Usage {
    /// Counters that are flushed under this replica's name, after whatever the journal holds of former ones.
    pub fn new(store: Arc<dyn Store>, metrics: Arc<Metrics>, replica: ReplicaId, journal: Option<Journal>) -> Self {
        Self::bounded(store, metrics, replica, journal, Bounds::USUAL)
    }

    fn bounded(
        store: Arc<dyn Store>,
        metrics: Arc<Metrics>,
        replica: ReplicaId,
        journal: Option<Journal>,
        bounds: Bounds,
    ) -> Self {
        let has_journal = AtomicBool::new(journal.is_some());
        let ledger = Ledger::new(replica.clone(), metrics.clone(), journal, bounds);
        let (pending, ledger) = (Arc::<Shards>::default(), Arc::new(Mutex::new(ledger)));
        Self { store, metrics, replica, pending, ledger, has_journal, flushing: tokio::sync::Mutex::default() }
    }

    /// Counts one request.
    pub fn count(&self, hit: Hit<'_>) {
        self.pending.count(&hit);
    }

    /// Whether there is a journal.
    pub fn has_journal(&self) -> bool {
        self.has_journal.load(Ordering::Acquire)
    }

    /// From now on with a journal, to be [written](Self::write_down) every [`JOURNAL_PERIOD`]; what it holds of former lives is sent too.
    pub async fn adopt(&self, journal: Journal) {
        self.has_journal.store(true, Ordering::Release);
        if let Err(error) = self.on_ledger(|ledger| ledger.adopt(journal)).await {
            tracing::error!(%error, "usage is counted without its journal");
        }
    }

    /// There will be a journal, and there is none yet: a kill would lose what is not flushed.
    pub fn await_journal(&self) {
        self.metrics.usage_journal_failing.set(1.0);
    }

    /// Sums up what was counted so far, and writes it to the journal. Does not wait for the store.
    pub async fn write_down(&self) -> Result<(), StoreError> {
        let pending = self.pending.clone();
        self.on_ledger(move |ledger| ledger.take_in(pending.drain())).await
    }

    /// Whether everything that was [written down](Self::write_down) survives this process.
    pub async fn is_kept(&self) -> bool {
        self.on_ledger(|ledger| ledger.is_kept()).await.unwrap_or(false)
    }

    /// Writes what is counted so far to the store. `Ok` means all of it is there.
    pub async fn flush(&self) -> Result<(), StoreError> {
        let _one_at_a_time = self.flushing.lock().await;
        self.write_down().await?;
        self.send().await?;
        self.on_ledger(Ledger::freeze).await?;
        self.send().await
    }

    /// Sends all numbered batches, one after the other.
    async fn send(&self) -> Result<(), StoreError> {
        while let Some(batch) = self.on_ledger(|ledger| ledger.first()).await? {
            let UsageBatch { replica, sequence, .. } = &batch;
            let (replica, sequence) = (replica.clone(), *sequence);
            match self.store.flush_usage(batch).await {
                Ok(outcome) => self.note(outcome, sequence),
                Err(error) => {
                    self.metrics.usage_flush_failures.increment(1);
                    return Err(error);
                }
            }
            self.on_ledger(move |ledger| ledger.confirm(&replica, sequence)).await?;
        }
        Ok(())
    }

    fn note(&self, outcome: FlushOutcome, sequence: u64) {
        self.metrics.usage_flushes.increment(1);
        if let FlushOutcome::AppliedAfterGap(last) = outcome {
            let lost = sequence.saturating_sub(last + 1);
            self.metrics.usage_batches_lost.increment(lost);
            tracing::warn!(
                lost,
                remembered = last,
                written = sequence,
                "the store has forgotten batches of usage that it had confirmed: a failover, or a restored backup"
            );
        }
    }

    /// Works on the ledger, on a thread that may block where that is to be feared.
    async fn on_ledger<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Ledger) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let ledger = self.ledger.clone();
        let work = move || work(&mut ledger.lock().unwrap_or_else(PoisonError::into_inner));
        if !self.has_journal() {
            return Ok(work());
        }
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|error| StoreError::Unavailable(format!("usage cannot be written down: {error}")))
    }
}

impl std::fmt::Debug for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Usage").field("replica", &self.replica).finish_non_exhaustive()
    }
}
