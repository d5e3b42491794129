//! The one thread that writes: group commit with a savepoint per job.

use std::cell::Cell;
use std::fmt;
use std::ops::Deref;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

use rusqlite::Connection;

use crate::store::time::StoreClock;
use crate::store::{Change, Revision, StoreError};

use super::feed::Waker;
use super::task::{Task, answered, spawn, thread_gone};
use super::{changes, error};

/// At most so many jobs share a transaction: other processes want the lock too.
const BATCH: usize = 256;

/// What a commit has to survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Durability {
    /// A kill of the process: the operating system has it.
    Process,
    /// A loss of power: the disk has it.
    Synced,
}

/// What a job may use: the connection inside the transaction, the time, and the change feed.
pub(super) struct Tx<'a> {
    connection: &'a Connection,
    now_micros: u64,
    announced: &'a Cell<bool>,
}

impl Tx<'_> {
    /// The store's clock, read while the write lock is held.
    pub(super) fn now_micros(&self) -> u64 {
        self.now_micros
    }

    /// Adds a change to the feed, to be seen by all processes once this commits.
    pub(super) fn announce(&self, change: &Change) -> Result<Revision, StoreError> {
        self.announced.set(true);
        changes::append(self.connection, self.now_micros, change)
    }
}

impl Deref for Tx<'_> {
    type Target = Connection;
    fn deref(&self) -> &Connection {
        self.connection
    }
}

trait Job: Send {
    fn durability(&self) -> Durability;
    fn perform(&mut self, tx: &Tx<'_>) -> bool;
    fn answer(self: Box<Self>, failure: Option<&StoreError>);
}

struct WriteJob<T, W> {
    durability: Durability,
    task: Task<T, W>,
}

impl<T, W> Job for WriteJob<T, W>
where
    T: Send,
    W: FnOnce(&Tx<'_>) -> Result<T, StoreError> + Send,
{
    fn durability(&self) -> Durability {
        self.durability
    }

    fn perform(&mut self, tx: &Tx<'_>) -> bool {
        self.task.perform(|work| work(tx))
    }

    fn answer(self: Box<Self>, failure: Option<&StoreError>) {
        self.task.answer(failure);
    }
}

/// Hands jobs to the thread; dropping it lets the thread finish what waits, then ends it.
pub(super) struct Writer {
    jobs: Option<Sender<Box<dyn Job>>>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Writer")
    }
}

impl Writer {
    pub(super) fn start(connection: Connection, clock: StoreClock, feed: Waker) -> Result<Self, StoreError> {
        let (jobs, waiting) = mpsc::channel();
        let state = WriterThread { connection, clock, feed, synced: None };
        let thread = spawn("sqlite-writer", move || state.run(&waiting))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Queues `work` and waits for its commit.
    pub(super) async fn run<T, W>(&self, durability: Durability, work: W) -> Result<T, StoreError>
    where
        T: Send + 'static,
        W: FnOnce(&Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let (task, answer) = Task::new(work);
        let jobs = self.jobs.as_ref().ok_or_else(thread_gone)?;
        jobs.send(Box::new(WriteJob { durability, task })).map_err(|_| thread_gone())?;
        answered(answer).await
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // It panicked at worst; there is nothing left to save then.
            let _ = thread.join();
        }
    }
}

struct WriterThread {
    connection: Connection,
    clock: StoreClock,
    feed: Waker,
    /// What `PRAGMA synchronous` is set to; `None` when not known.
    synced: Option<Durability>,
}

impl WriterThread {
    fn run(mut self, waiting: &Receiver<Box<dyn Job>>) {
        let mut batch = Vec::new();
        while let Ok(first) = waiting.recv() {
            batch.push(first);
            batch.extend(waiting.try_iter().take(BATCH - 1));
            let announced = Cell::new(false);
            let failure = self.commit(&mut batch, &announced).err();
            if failure.is_none() && announced.get() {
                self.feed.wake();
            }
            for job in batch.drain(..) {
                job.answer(failure.as_ref());
            }
        }
    }

    /// One transaction around all jobs. `Err` means that none of them happened.
    fn commit(&mut self, batch: &mut [Box<dyn Job>], announced: &Cell<bool>) -> Result<(), StoreError> {
        let durability = batch.iter().map(|job| job.durability()).max().unwrap_or(Durability::Synced);
        self.set_durability(durability)?;
        self.execute("BEGIN IMMEDIATE")?;
        for job in batch {
            if let Err(error) = self.perform(job.as_mut(), announced) {
                self.roll_back();
                return Err(error);
            }
        }
        self.execute("COMMIT").map_err(|commit| {
            self.roll_back();
            error::of_commit(&commit)
        })
    }

    /// One job in its savepoint. `Err` means that the whole transaction is lost, not only the job.
    fn perform(&self, job: &mut dyn Job, announced: &Cell<bool>) -> Result<(), StoreError> {
        self.execute("SAVEPOINT job")?;
        let tx = Tx { connection: &self.connection, now_micros: (self.clock)(), announced };
        let done = job.perform(&tx);
        if self.connection.is_autocommit() {
            // Some errors (disk full, I/O) make SQLite itself roll everything back.
            return Err(StoreError::Unavailable("the transaction had to be given up by the database".into()));
        }
        if !done {
            self.execute("ROLLBACK TO job")?;
        }
        Ok(self.execute("RELEASE job")?)
    }

    fn execute(&self, sql: &str) -> rusqlite::Result<()> {
        self.connection.prepare_cached(sql)?.execute([]).map(drop)
    }

    fn roll_back(&self) {
        if !self.connection.is_autocommit() {
            // A rollback only drops pages from memory; if even that fails, the next BEGIN says so to its callers.
            let _ = self.execute("ROLLBACK");
        }
    }

    /// `synchronous` cannot be changed inside a transaction.
    fn set_durability(&mut self, wanted: Durability) -> Result<(), StoreError> {
        if self.synced != Some(wanted) {
            self.synced = None;
            let level = if wanted == Durability::Synced { "FULL" } else { "NORMAL" };
            self.connection.pragma_update(None, "synchronous", level)?;
            self.synced = Some(wanted);
        }
        Ok(())
    }
}
