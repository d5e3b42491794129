//! Counters summed up: one number for each key, day and counted thing, and when each secret was last used.
//!
//! Sorted, so that the same counts always make the same batches, in whatever order they came: a batch that was not confirmed has to
//! be repeated as it was, also by a process that knows it from the journal alone. A tree also grows without ever being copied.

use std::collections::BTreeMap;

use crate::policy::credential::KeyHash;
use crate::policy::key::{Day, KeyId, Timestamp};
use crate::store::{Counted, UsageCount};

/// What stands for the rest: under it is counted what is not told apart.
pub(super) const OTHER: &str = "_other";

/// Which requests one number counts. Its order decides what a batch holds; the journal's format relies on it.
pub(super) type Name = (KeyId, Day, Counted);

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Counts {
    counts: BTreeMap<Name, u64>,
    last_used: BTreeMap<KeyHash, Timestamp>,
    /// Distinct resource ids among the counts, without [`OTHER`].
    resources: usize,
}

/// A piece of counts, as batches and the journal have it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) counts: Vec<UsageCount>,
    pub(super) last_used: Vec<(KeyHash, Timestamp)>,
}

impl Counts {
    pub(super) fn add(&mut self, name: Name, count: u64) {
        let id = matches!(&name.2, Counted::Resource(_, id) if &**id != OTHER);
        let sum = self.counts.entry(name).or_insert_with(|| {
            self.resources += usize::from(id);
            0
        });
        *sum += count;
    }

    pub(super) fn used(&mut self, secret: KeyHash, at: Timestamp) {
        let last = self.last_used.entry(secret).or_insert(at);
        *last = at.max(*last);
    }

    pub(super) fn merge(&mut self, other: Self) {
        if self.is_empty() {
            *self = other;
            return;
        }
        other.counts.into_iter().for_each(|(name, count)| self.add(name, count));
        other.last_used.into_iter().for_each(|(secret, at)| self.used(secret, at));
    }

    /// Every counter, under the name that `rename` gives it, if any.
    pub(super) fn renamed(self, rename: impl Fn(&Self, Name) -> Option<Name>) -> Self {
        let mut renamed = Self { last_used: self.last_used, ..Self::default() };
        for (name, count) in self.counts {
            if let Some(name) = rename(&renamed, name) {
                renamed.add(name, count);
            }
        }
        renamed
    }

    pub(super) fn contains(&self, name: &Name) -> bool {
        self.counts.contains_key(name)
    }

    /// Distinct counters.
    pub(super) fn len(&self) -> usize {
        self.counts.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.counts.is_empty() && self.last_used.is_empty()
    }

    /// Distinct resource ids.
    pub(super) fn resources(&self) -> usize {
        self.resources
    }

    /// Everything, in pieces of `size` counters and times of use at most. None is empty.
    pub(super) fn cut(self, size: usize) -> impl Iterator<Item = Piece> {
        pieces(self.counts.into_iter(), self.last_used.into_iter(), size)
    }

    /// A copy of everything, in the same pieces, one at a time.
    pub(super) fn pieces(&self, size: usize) -> impl Iterator<Item = Piece> {
        let counts = self.counts.iter().map(|(name, count)| (name.clone(), *count));
        pieces(counts, self.last_used.iter().map(|(secret, at)| (*secret, *at)), size)
    }
}

fn pieces(
    mut counts: impl Iterator<Item = (Name, u64)>,
    mut last_used: impl Iterator<Item = (KeyHash, Timestamp)>,
    size: usize,
) -> impl Iterator<Item = Piece> {
    let count = |((key_id, day, counted), count)| UsageCount { key_id, day, counted, count };
    std::iter::from_fn(move || {
        let counts: Vec<_> = counts.by_ref().take(size).map(count).collect();
        let last_used: Vec<_> = last_used.by_ref().take(size).collect();
        let empty = counts.is_empty() && last_used.is_empty();
        (!empty).then_some(Piece { counts, last_used })
    })
}

impl From<Piece> for Counts {
    fn from(piece: Piece) -> Self {
        let mut counts = Self::default();
        for UsageCount { key_id, day, counted, count } in piece.counts {
            counts.add((key_id, day, counted), count);
        }
        piece.last_used.into_iter().for_each(|(secret, at)| counts.used(secret, at));
        counts
    }
}
