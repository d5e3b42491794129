//! How many requests of an account are in flight here, for `concurrent_requests`.
//!
//! A [`Place`] is held from admission until the answer has ended, however it ends: it lives in the permit, the permit in the
//! request's record. Counted in this process alone and without the store: each gateway gives an account all its places. Only
//! accounts that have such a limit are counted, and one without a request in flight is forgotten.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::policy::quota::{InFlightLimit, Subject};

use super::SHARDS;

/// The places that are taken, by account.
pub(super) struct InFlight {
    shards: Box<[Mutex<HashMap<Subject, u32>>]>,
}

/// One place among those of an account; free again when dropped.
pub(super) struct Place {
    among: Arc<InFlight>,
    account: Subject,
}

impl Default for InFlight {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }
}

impl InFlight {
    /// Takes a place, if the account has one left.
    pub(super) fn enter(self: &Arc<Self>, limit: &InFlightLimit) -> Option<Place> {
        let account = &limit.account;
        let mut shard = self.shard(account);
        match shard.get_mut(account) {
            Some(taken) if *taken >= limit.most => return None,
            Some(taken) => *taken += 1,
            // A limit is 1 at least.
            None => drop(shard.insert(account.clone(), 1)),
        }
        Some(Place { among: self.clone(), account: account.clone() })
    }

    fn shard(&self, account: &Subject) -> MutexGuard<'_, HashMap<Subject, u32>> {
        let shard = &self.shards[(account.spread() >> 32) as usize % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut shard = self.among.shard(&self.account);
        match shard.get_mut(&self.account) {
            Some(taken) if *taken > 1 => *taken -= 1,
            _ => drop(shard.remove(&self.account)),
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Place({:?})", self.account)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::key::Environment;

    fn limit(id: &str, most: u32) -> InFlightLimit {
        InFlightLimit { account: Subject::new("account", Environment::Live, id), most }
    }

    #[test]
    fn places_are_taken_up_to_the_limit_and_free_again_when_dropped() {
        let places = Arc::new(InFlight::default());
        let held: Vec<Place> = (0..3).map(|_| places.enter(&limit("a", 3)).unwrap()).collect();
        assert!(places.enter(&limit("a", 3)).is_none());
        assert!(places.enter(&limit("b", 1)).is_some(), "another account");
        // The limit was raised, and lowered below what is taken.
        let fourth = places.enter(&limit("a", 4)).unwrap();
        assert!(places.enter(&limit("a", 2)).is_none());
        drop((held, fourth));
        assert!(places.enter(&limit("a", 1)).is_some());
        assert!(places.shards.iter().all(|shard| shard.lock().unwrap().is_empty()), "forgotten");
    }

    #[test]
    fn many_threads_never_hold_more_than_the_limit() {
        let places = Arc::new(InFlight::default());
        let inside = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        let Some(place) = places.enter(&limit("a", 3)) else { continue };
                        let now = inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        assert!(now < 3, "{now}");
                        inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                        drop(place);
                    }
                });
            }
        });
        assert!(places.shards.iter().all(|shard| shard.lock().unwrap().is_empty()));
    }
}
