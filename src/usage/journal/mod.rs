//! `usage.journal`: a file that keeps what was counted until the store has it, so that a kill of the process loses 100 ms at most.
//!
//! Every step of the [`Ledger`](super::ledger::Ledger) is appended as one [record](record::Record): what was counted, which of it got
//! a number, which number the store has confirmed. The next process on the same file [reads](replay) them and sends what is left under
//! the replica and the numbers it would have had, so that it counts once. When all is confirmed the file is emptied.
//!
//! * **A kill of the process, not a loss of power**: nothing is synced. What a torn or a damaged file still tells is used.
//! * **One process.** A lock on `PATH.lock` is held as long as the journal is open.
//! * **Bounded.** Past [`Bounds::compact`] the file is written anew with the sums alone, beside itself, which takes a moment for
//!   hundreds of thousands of counters; it never grows past [`Bounds::most`].
//! * **It may fail** (a full disk). Then counting goes on in memory, the file stays as it was, and every few seconds it is tried to
//!   write it anew. What it still says is old by then, and harmless: everything in it has a number that the store has seen, or is
//!   sent with the next one of its replica, which the store takes for a repetition if it was used.
//!
//! Everything here blocks. It must not be called by whoever serves requests, and nothing in the file may be or contain a key.

mod file;
mod record;
mod replay;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::counts::Piece;
use super::ledger::{Frozen, State};
use crate::clock::Clock;
use crate::policy::instant::Mono;
use crate::policy::key::Timestamp;
use crate::store::ReplicaId;

use file::{beside, keep_copy, lock, make, options};
pub(super) use record::Record;
use replay::Replay;

/// A journal that could not be written is tried again after this time.
const RETRY: Duration = Duration::from_secs(5);
/// One that has grown too large takes a while to be written, and is smaller only when the store takes something.
const RETRY_TOO_LARGE: Duration = Duration::from_secs(60);
/// The same trouble is told once in this time.
const REMINDER: Duration = Duration::from_secs(60);
/// A store keeps for a week which batches it has; an older one could count twice, and is not sent again.
const STALE_SECONDS: i64 = 4 * 86_400;

/// Why a gateway does not start with this journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process has it.
    #[error(
        "the usage journal {0} is in use by another gateway (usage.journal); stop that one, or give each a file of its own"
    )]
    Locked(PathBuf),
    /// Some other file.
    #[error("{0} is not a usage journal (usage.journal); name another file")]
    Foreign(PathBuf),
    /// A later format.
    #[error(
        "the usage journal {0} was written by a newer seeme-gateway (usage.journal); run that version, or name another file"
    )]
    Newer(PathBuf),
    /// Anything else.
    #[error(
        "cannot open the usage journal {0} (usage.journal): {1}; name a file that can be written, or remove the member"
    )]
    Io(PathBuf, io::Error),
}

/// How large the file may get, in bytes.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// Past this it is written anew with what matters; and again when it has doubled.
    compact: u64,
    /// Never past this.
    most: u64,
}

const BOUNDS: Bounds = Bounds { compact: 64 << 20, most: 256 << 20 };

/// See the module.
pub struct Journal {
    path: PathBuf,
    clock: Arc<dyn Clock>,
    bounds: Bounds,
    file: File,
    len: u64,
    /// Past this length it is written anew.
    compact_past: u64,
    /// It does not hold everything: to be written anew, from then on.
    retry_at: Option<Mono>,
    told_at: Option<Mono>,
    recovered: VecDeque<Frozen>,
    _lock: File,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("path", &self.path).field("len", &self.len).finish_non_exhaustive()
    }
}

impl Journal {
    /// Opens or makes the file and its folders, locks it and reads what a former process left.
    pub fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<Self, JournalError> {
        let failed = |error| JournalError::Io(path.to_owned(), error);
        let path = make(path).map_err(failed)?;
        let lock = lock(&path)?;
        // Only now: whoever had the lock may have replaced the file.
        let file = options().open(&path).map_err(failed)?;
        let replay = read(&file, &path, clock.wall())?;
        if let Some(line) = replay.damaged {
            keep_copy(&path, line);
        }
        if replay.torn {
            tracing::info!(path = %path.display(), "the last record of the usage journal was torn off by a kill");
        }
        Ok(Self {
            len: 0,
            compact_past: BOUNDS.compact,
            bounds: BOUNDS,
            retry_at: None,
            told_at: None,
            recovered: replay.frozen,
            path,
            clock,
            file,
            _lock: lock,
        })
    }

    /// What former lives left to be sent, and the number of batches that are too old for that.
    pub(super) fn recovered(&mut self) -> (VecDeque<Frozen>, u64) {
        let oldest = self.now().plus_seconds(-STALE_SECONDS);
        let mut recent = std::mem::take(&mut self.recovered);
        let all = recent.len();
        recent.retain(|frozen| frozen.at >= oldest);
        let stale = all - recent.len();
        let path = self.path.display();
        if !recent.is_empty() {
            let counters: usize = recent.iter().map(|frozen| frozen.batch.counts.len()).sum();
            tracing::info!(%path, batches = recent.len(), counters, "usage of a former gateway is sent from its journal");
        }
        if stale > 0 {
            tracing::error!(
                %path,
                batches = stale,
                "usage of a former gateway is dropped: it is more than four days old, and the store may no longer know whether it has it"
            );
        }
        (recent, stale as u64)
    }

    /// The time that batches are marked with.
    pub(super) fn now(&self) -> Timestamp {
        self.clock.wall()
    }

    /// Bytes of the file.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Whether it holds everything that was noted.
    pub(super) fn is_whole(&self) -> bool {
        self.retry_at.is_none()
    }

    /// Begins a life: the file holds this state and nothing else.
    pub(super) fn begin(&mut self, state: &State) {
        if let Err(error) = self.rewrite(state, std::iter::empty()) {
            self.fail(&error);
        }
    }

    /// Adds what is about to be done to `state`.
    pub(super) fn note<I: Iterator<Item = Record>>(&mut self, state: &State, records: impl Fn() -> I) {
        if let Some(retry_at) = self.retry_at {
            if self.clock.mono() >= retry_at {
                self.mend(state, records());
            }
            return;
        }
        match records().try_for_each(|record| self.append(&record)) {
            Ok(()) if self.len > self.compact_past => {
                if let Err(error) = self.rewrite(state, records()) {
                    // What there is holds everything, and has room left.
                    self.compact_past = (self.len + self.bounds.compact / 4).min(self.bounds.most);
                    self.tell(&error);
                }
            }
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::FileTooLarge => self.mend(state, records()),
            Err(error) => self.fail(&error),
        }
    }

    /// Everything is in the store.
    pub(super) fn clear(&mut self, state: &State) {
        let emptied = self.file.set_len(0).and_then(|()| {
            self.len = 0;
            let mut text = record::MAGIC.to_vec();
            record::write(&life(&state.replica, state.sequence, state.size), &mut text)?;
            self.write(&text)
        });
        match emptied {
            Ok(()) => self.recover(),
            Err(error) => self.fail(&error),
        }
    }

    fn append(&mut self, record: &Record) -> io::Result<()> {
        let mut line = Vec::new();
        record::write(record, &mut line)?;
        self.write(&line)
    }

    /// A failure may leave a torn record at the end; nothing is appended after it.
    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        check_length(self.len + text.len() as u64, self.bounds.most)?;
        self.file.write_all(text)?;
        self.len += text.len() as u64;
        Ok(())
    }

    fn mend(&mut self, state: &State, records: impl Iterator<Item = Record>) {
        match self.rewrite(state, records) {
            Ok(()) => self.recover(),
            Err(error) => self.fail(&error),
        }
    }

    /// Replaces the file by one that holds `state` and `records` and nothing else. A failure changes nothing.
    fn rewrite(&mut self, state: &State, records: impl Iterator<Item = Record>) -> io::Result<()> {
        let path = beside(&self.path, ".new");
        let written = write_anew(&path, state, records, self.bounds.most)
            .and_then(|written| fs::rename(&path, &self.path).map(|()| written));
        match written {
            Ok((file, len)) => {
                (self.file, self.len) = (file, len);
                self.compact_past = self.bounds.compact.max(2 * len).min(self.bounds.most);
                Ok(())
            }
            Err(error) => {
                let _ = fs::remove_file(&path);
                Err(error)
            }
        }
    }

    fn fail(&mut self, error: &io::Error) {
        let wait = if error.kind() == ErrorKind::FileTooLarge { RETRY_TOO_LARGE } else { RETRY };
        self.retry_at = Some(self.clock.mono().plus(wait));
        self.tell(error);
    }

    fn recover(&mut self) {
        if self.retry_at.take().is_some() {
            tracing::info!(path = %self.path.display(), "the usage journal is written again");
        }
    }

    fn tell(&mut self, error: &io::Error) {
        let now = self.clock.mono();
        if self.told_at.is_some_and(|told| now.since(told) < REMINDER) {
            return;
        }
        self.told_at = Some(now);
        let path = self.path.display();
        if self.is_whole() {
            tracing::warn!(%path, %error, "the usage journal cannot be made smaller; it is written on");
        } else {
            tracing::error!(
                %path,
                %error,
                "the usage journal cannot be written; counting goes on, and a kill would lose what the store has not got yet"
            );
        }
    }
}

/// The records that make a state.
fn records(state: &State) -> impl Iterator<Item = Record> {
    let frozen = state.frozen.iter().flat_map(|Frozen { batch, at }| {
        let (counts, last_used) = (batch.counts.clone(), batch.last_used.clone());
        let size = counts.len().max(last_used.len());
        [
            life(&batch.replica, batch.sequence - 1, size),
            Record::Counted(Piece { counts, last_used }),
            Record::Frozen { sequence: batch.sequence, at: at.unix_millis() },
        ]
    });
    let waiting = state.waiting.pieces(state.size).map(Record::Counted);
    frozen.chain([life(&state.replica, state.sequence, state.size)]).chain(waiting)
}

fn life(replica: &ReplicaId, sequence: u64, size: usize) -> Record {
    Record::Life { replica: replica.0.as_ref().to_owned(), sequence, size }
}

fn write_anew(path: &Path, state: &State, more: impl Iterator<Item = Record>, most: u64) -> io::Result<(File, u64)> {
    // One that a killed process left is of no use.
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = options().create_new(true).open(path)?;
    let mut len = record::MAGIC.len() as u64;
    file.write_all(record::MAGIC)?;
    let mut line = Vec::new();
    for record in records(state).chain(more) {
        line.clear();
        record::write(&record, &mut line)?;
        len += line.len() as u64;
        check_length(len, most)?;
        file.write_all(&line)?;
    }
    Ok((file, len))
}

fn check_length(len: u64, most: u64) -> io::Result<()> {
    if len <= most {
        return Ok(());
    }
    Err(io::Error::new(ErrorKind::FileTooLarge, format!("it would grow past {} MiB", most >> 20)))
}

/// Reads what former lives left.
fn read(file: &File, path: &Path, now: Timestamp) -> Result<Replay, JournalError> {
    let failed = |error| JournalError::Io(path.to_owned(), error);
    let mut file = BufReader::new(file);
    let mut first = Vec::new();
    file.by_ref().take(record::MAGIC.len() as u64).read_to_end(&mut first).map_err(failed)?;
    if first == record::MAGIC {
        return Replay::read(&mut file, now).map_err(failed);
    }
    if record::MAGIC.starts_with(&first) {
        return Ok(Replay { torn: !first.is_empty(), ..Replay::default() });
    }
    if first.iter().all(|byte| *byte == 0) {
        // What some file systems make of a file that was written just before the power failed.
        return Ok(Replay { damaged: Some(1), ..Replay::default() });
    }
    let newer = first.starts_with(record::ANY_VERSION);
    Err(if newer { JournalError::Newer(path.to_owned()) } else { JournalError::Foreign(path.to_owned()) })
}
