//! A worker's own short list of the keys it serves over and over.
//!
//! The shared cache keeps books on every read to know what to evict; for a key that comes a thousand times a second that is most
//! of what a look-up costs. An entry here counts only as long as the shared cache has not changed since it was copied, so it
//! can never outlive a revocation.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustc_hash::FxHashMap;

use super::Known;
use crate::policy::credential::KeyHash;

/// Keys at most; then the list starts anew.
const CAPACITY: usize = 1024;

/// The list. Belongs to one worker, so its lock is never contended.
#[derive(Default)]
pub struct Front(Mutex<FxHashMap<KeyHash, (u64, Arc<Known>)>>);

impl Front {
    /// The key, if it was copied in this generation of the shared cache.
    pub(super) fn get(&self, hash: &KeyHash, generation: u64) -> Option<Arc<Known>> {
        self.lock().get(hash).filter(|(copied, _)| *copied == generation).map(|(_, known)| known.clone())
    }

    /// Copies a key that was found in the shared cache after this generation was read.
    pub(super) fn put(&self, hash: KeyHash, generation: u64, known: Arc<Known>) {
        let mut keys = self.lock();
        if keys.len() >= CAPACITY {
            keys.clear();
        }
        keys.insert(hash, (generation, known));
    }

    fn lock(&self) -> MutexGuard<'_, FxHashMap<KeyHash, (u64, Arc<Known>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Front {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Front")
    }
}
