//! Reading a journal: what is left of the lives of gateways that wrote it.

use std::collections::VecDeque;
use std::io::{self, BufRead};

use super::record::{self, Record};
use crate::policy::key::Timestamp;
use crate::store::ReplicaId;
use crate::usage::counts::Counts;
use crate::usage::ledger::{Frozen, freeze};

/// What came of reading.
#[derive(Debug, Default)]
pub(super) struct Replay {
    /// Batches that the store did not confirm, oldest first. Counts that had no number have got the next ones of **their** replica:
    /// should they have been sent after all, by a process that could not write that down, then under these numbers or later ones.
    pub(super) frozen: VecDeque<Frozen>,
    /// The line at which reading stopped, because it makes no sense.
    pub(super) damaged: Option<usize>,
    /// The last line has no end: its writer was killed.
    pub(super) torn: bool,
}

/// A replica, the last number it used, and what it counted since.
struct Life {
    replica: ReplicaId,
    sequence: u64,
    size: usize,
    waiting: Counts,
}

impl Replay {
    /// Reads all records. The first line has been read.
    pub(super) fn read(file: &mut impl BufRead, now: Timestamp) -> io::Result<Self> {
        let (mut replay, mut life) = (Self::default(), None);
        let (mut line, mut number) = (Vec::new(), 1);
        loop {
            line.clear();
            if file.read_until(b'\n', &mut line)? == 0 {
                break;
            }
            number += 1;
            if line.pop() != Some(b'\n') {
                replay.torn = true;
                break;
            }
            if record::read(&line).and_then(|record| replay.apply(record, &mut life, now)).is_none() {
                replay.damaged = Some(number);
                break;
            }
        }
        replay.end(life, now);
        Ok(replay)
    }

    /// `None`: it cannot follow what was before.
    fn apply(&mut self, record: Record, life: &mut Option<Life>, now: Timestamp) -> Option<()> {
        match record {
            Record::Life { replica, sequence, size } => {
                let next = Life { replica: ReplicaId(replica.into()), sequence, size, waiting: Counts::default() };
                let former = life.replace(next);
                self.end(former, now);
            }
            Record::Counted(piece) => life.as_mut()?.waiting.merge(piece.into()),
            Record::Frozen { sequence, at } => {
                let life = life.as_mut()?;
                if sequence != life.sequence + 1 {
                    return None;
                }
                self.freeze(life, Timestamp::from_unix_millis(at));
            }
            Record::Confirmed { replica, sequence } => {
                self.frozen.retain(|Frozen { batch, .. }| *batch.replica.0 != *replica || batch.sequence != sequence);
            }
        }
        Some(())
    }

    fn end(&mut self, life: Option<Life>, now: Timestamp) {
        if let Some(mut life) = life {
            self.freeze(&mut life, now);
        }
    }

    fn freeze(&mut self, life: &mut Life, at: Timestamp) {
        let before = self.frozen.len();
        let waiting = std::mem::take(&mut life.waiting);
        self.frozen.extend(freeze(&life.replica, life.sequence, waiting, life.size.max(1), at));
        life.sequence += (self.frozen.len() - before) as u64;
    }
}
