//! The threads that read, each with its own connection; one snapshot per read.

use std::fmt;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rusqlite::Connection;

use crate::store::StoreError;
use crate::store::time::StoreClock;

use super::task::{Task, answered, spawn, thread_gone};

type Job = Box<dyn FnOnce(&Connection, u64) + Send>;

/// Hands reads to whichever thread is free; dropping it ends them.
pub(super) struct Readers {
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl fmt::Debug for Readers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Readers({})", self.threads.len())
    }
}

impl Readers {
    pub(super) fn start(connections: Vec<Connection>, clock: StoreClock) -> Result<Self, StoreError> {
        let (jobs, waiting) = mpsc::channel::<Job>();
        let waiting = Arc::new(Mutex::new(waiting));
        let mut threads = Vec::new();
        for connection in connections {
            connection.pragma_update(None, "query_only", true)?;
            let (waiting, clock) = (Arc::clone(&waiting), Arc::clone(&clock));
            threads.push(spawn("sqlite-reader", move || {
                while let Some(job) = next(&waiting) {
                    job(&connection, clock());
                }
            })?);
        }
        Ok(Self { jobs: Some(jobs), threads })
    }

    /// Runs `work`, which gets the connection and the store's clock, inside one read transaction.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection, u64) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (mut task, answer) = Task::new(work);
        let job: Job = Box::new(move |connection, now| {
            task.perform(|work| {
                let snapshot = connection.unchecked_transaction()?;
                work(&snapshot, now)
            });
            task.answer(None);
        });
        let jobs = self.jobs.as_ref().ok_or_else(thread_gone)?;
        jobs.send(job).map_err(|_| thread_gone())?;
        answered(answer).await
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // It panicked at worst; there is nothing left to save then.
            let _ = thread.join();
        }
    }
}

/// One thread waits in `recv`, the others for the lock; either way a free one takes the next job.
fn next(waiting: &Mutex<Receiver<Job>>) -> Option<Job> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}
