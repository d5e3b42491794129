//! The contract over SQLite, and what only a file can be asked.

mod disk;
mod processes;
mod rollout;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tempfile::TempDir;

use super::SqliteStore;
use crate::store::contract::{Stand, store_contract};
use crate::store::time::StoreClock;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn open(folder: &TempDir) -> Arc<SqliteStore> {
    SqliteStore::open(&folder.path().join("gateway.db")).unwrap()
}

/// A clock that stands where it is put.
fn hand_clock() -> (Arc<AtomicU64>, StoreClock) {
    let hand = Arc::new(AtomicU64::new(1_700_000_000_000_000));
    let clock = Arc::clone(&hand);
    (hand, Arc::new(move || clock.load(Ordering::SeqCst)))
}

fn open_at(path: &Path, clock: &StoreClock) -> Arc<SqliteStore> {
    SqliteStore::open_with_clock(path, Arc::clone(clock)).unwrap()
}

fn stand() -> Stand {
    let folder = folder();
    Stand { store: open(&folder), _keep: Box::new(folder) }
}

store_contract!(stand());
