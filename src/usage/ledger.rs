//! What was counted and is not known to be in the store: sums that wait for a number, and numbered batches.
//!
//! Where there is a journal, everything is [noted](Journal::note) there first and then done here. So a batch is handed out only when
//! its number is noted: whoever finds the journal repeats it under that number, and the store counts it once.

use std::collections::VecDeque;
use std::sync::Arc;

use super::counts::{Counts, Name, OTHER, Piece};
use super::journal::{Journal, Record};
use crate::policy::key::Timestamp;
use crate::store::{Counted, ReplicaId, UsageBatch};
use crate::telemetry::Metrics;

/// How much is kept, and in which portions it is sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Distinct counters that are told apart; above, there is one for each key, day and status class.
    pub(super) counts: usize,
    /// Distinct resource ids among those that have no number yet; above, they are not told apart.
    pub(super) resources: usize,
    /// Counters of one batch: a store does a batch in one go, and others wait for it.
    pub(super) batch: usize,
}

impl Bounds {
    pub(super) const USUAL: Self = Self { counts: 1_000_000, resources: 100_000, batch: 10_000 };
}

/// A batch that has its number and is not confirmed. Its content never changes again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frozen {
    pub(super) batch: UsageBatch,
    /// When it got its number, by the journal's clock; nobody asks without one.
    pub(super) at: Timestamp,
}

/// Makes numbered batches of counts: those after `sequence`.
pub(super) fn freeze(
    replica: &ReplicaId,
    sequence: u64,
    counts: Counts,
    size: usize,
    at: Timestamp,
) -> impl Iterator<Item = Frozen> {
    let batch = move |(Piece { counts, last_used }, sequence)| Frozen {
        batch: UsageBatch { replica: replica.clone(), sequence, counts, last_used },
        at,
    };
    counts.cut(size).zip(sequence + 1..).map(batch)
}

/// Everything that is kept.
#[derive(Debug)]
pub(super) struct State {
    /// Under whose name this process counts.
    pub(super) replica: ReplicaId,
    /// The last number it used.
    pub(super) sequence: u64,
    /// Counters of one of its batches.
    pub(super) size: usize,
    /// Not numbered yet.
    pub(super) waiting: Counts,
    /// Oldest first, those of former lives before our own. Only the first may be in the store already, whole or in part.
    pub(super) frozen: VecDeque<Frozen>,
}

impl State {
    /// Distinct counters.
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.frozen.iter().map(|frozen| frozen.batch.counts.len()).sum::<usize>()
    }

    /// The counts as they are kept within the bounds. Totals of keys, days and classes stay right.
    fn bounded(&self, counted: Counts, bounds: &Bounds) -> Counts {
        let (len, resources) = (self.len(), self.waiting.resources());
        if len + counted.len() <= bounds.counts && resources + counted.resources() <= bounds.resources {
            return counted;
        }
        counted.renamed(|so_far, (key, day, counted)| {
            let name: Name = (key, day, counted);
            if self.waiting.contains(&name) || so_far.contains(&name) {
                return Some(name);
            }
            let full = len + so_far.len() >= bounds.counts;
            let (key, day, counted) = name;
            let counted = match counted {
                Counted::Endpoint(_, class) if full => Counted::Endpoint(OTHER.into(), class),
                Counted::Scope(_) if full => return None,
                Counted::Resource(kind, _) if full || resources + so_far.resources() >= bounds.resources => {
                    Counted::Resource(kind, OTHER.into())
                }
                known => known,
            };
            Some((key, day, counted))
        })
    }
}

/// See the module.
pub(super) struct Ledger {
    state: State,
    bounds: Bounds,
    journal: Option<Journal>,
    metrics: Arc<Metrics>,
}

impl Ledger {
    /// Empty, but for what the journal holds of former lives.
    pub(super) fn new(replica: ReplicaId, metrics: Arc<Metrics>, journal: Option<Journal>, bounds: Bounds) -> Self {
        let (waiting, frozen) = (Counts::default(), VecDeque::new());
        let state = State { replica, sequence: 0, size: bounds.batch, waiting, frozen };
        let mut ledger = Self { state, bounds, journal: None, metrics };
        if let Some(journal) = journal {
            ledger.adopt(journal);
        }
        ledger.show();
        ledger
    }

    /// From now on with this journal, and after everything else what it holds of former lives.
    pub(super) fn adopt(&mut self, mut journal: Journal) {
        let (former, stale) = journal.recovered();
        self.metrics.usage_batches_lost.increment(stale);
        // Nobody asked for the time before.
        self.state.frozen.iter_mut().for_each(|frozen| frozen.at = journal.now());
        self.state.frozen.extend(former);
        journal.begin(&self.state);
        self.journal = Some(journal);
        self.show();
    }

    /// Adds what was counted since the last time.
    pub(super) fn take_in(&mut self, counted: Counts) {
        let counted = self.state.bounded(counted, &self.bounds);
        if let Some(journal) = &mut self.journal {
            journal.note(&self.state, || counted.pieces(self.state.size).map(Record::Counted));
        }
        self.state.waiting.merge(counted);
        self.show();
    }

    /// Gives everything that waits its numbers, unless earlier batches are out.
    pub(super) fn freeze(&mut self) {
        if !self.state.frozen.is_empty() || self.state.waiting.is_empty() {
            return;
        }
        let sequence = self.state.sequence + 1;
        let at = self.journal.as_ref().map_or(Timestamp::from_unix_millis(0), Journal::now);
        if let Some(journal) = &mut self.journal {
            let record = || Record::Frozen { sequence, at: at.unix_millis() };
            journal.note(&self.state, || [record()].into_iter());
        }
        let State { replica, sequence, size, waiting, frozen } = &mut self.state;
        frozen.extend(freeze(replica, *sequence, std::mem::take(waiting), *size, at));
        *sequence += frozen.len() as u64;
    }

    /// The batch that is to be sent now.
    pub(super) fn first(&self) -> Option<UsageBatch> {
        self.state.frozen.front().map(|frozen| frozen.batch.clone())
    }

    /// The store has the first batch, if it is still this one.
    pub(super) fn confirm(&mut self, replica: &ReplicaId, sequence: u64) {
        let first = self.state.frozen.front().map(|frozen| &frozen.batch);
        if first.is_none_or(|batch| batch.replica != *replica || batch.sequence != sequence) {
            return;
        }
        let last = self.state.frozen.len() == 1 && self.state.waiting.is_empty();
        match &mut self.journal {
            Some(journal) if last => journal.clear(&self.state),
            Some(journal) => {
                let record = || Record::Confirmed { replica: replica.0.as_ref().to_owned(), sequence };
                journal.note(&self.state, || [record()].into_iter());
            }
            None => {}
        }
        self.state.frozen.pop_front();
        self.show();
    }

    /// Whether the journal has everything that is not in the store.
    pub(super) fn is_kept(&self) -> bool {
        self.journal.as_ref().is_some_and(Journal::is_whole)
    }

    #[cfg(test)]
    pub(super) fn break_journal(&mut self) {
        self.journal.as_mut().unwrap().break_file();
    }

    fn show(&self) {
        self.metrics.usage_pending.set(self.state.len() as f64);
        if let Some(journal) = &self.journal {
            self.metrics.usage_journal_bytes.set(journal.len() as f64);
            self.metrics.usage_journal_failing.set(f64::from(u8::from(!journal.is_whole())));
        }
    }
}
