//! The tallies that requests add to: the only part of usage on the data path.
//!
//! A request takes one lock, rarely contended, finds its tally by addresses and adds one. What a tally means (endpoint, scopes that
//! were used) is worked out when the tallies are [drained](Shards::drain). Nothing here may allocate, call or wait for a request
//! that is like one before it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustc_hash::FxHashMap;

use super::counts::{Counts, OTHER};
use crate::policy::access::{KeyProfile, Values};
use crate::policy::credential::{KeyHash, looks_like_key};
use crate::policy::key::{Day, ResourceId, Timestamp};
use crate::policy::resource::Kind;
use crate::policy::route::Route;
use crate::store::{Counted, StatusClass};

/// Locks, so that workers rarely meet.
const SHARDS: usize = 16;
/// Distinct tallies that may wait in one shard; above, endpoints fold into `_other` and totals stay right.
const MAX_TALLIES: usize = 1_000_000 / SHARDS;
/// Distinct resources that may wait in one shard; above, they are not told apart.
const MAX_RESOURCES: usize = 100_000 / SHARDS;
/// The endpoint of requests that reached no route.
const NO_ROUTE: &str = "(no route)";

/// One request that has ended.
#[derive(Debug)]
pub struct Hit<'a> {
    /// The key it carried.
    pub key: &'a Arc<KeyProfile>,
    /// The secret it was presented with.
    pub secret: Option<KeyHash>,
    /// When it began: its day is the day of its admission.
    pub at: Timestamp,
    /// Method and route template, if it reached a route.
    pub endpoint: Option<&'a Arc<str>>,
    /// How it ended.
    pub class: StatusClass,
    /// The route that admitted it, and what it named.
    pub admitted: Option<(&'a Arc<Route>, &'a Values)>,
}

/// Which requests are counted together. Addresses stand for what they point to, which the tally keeps alive.
#[derive(PartialEq, Eq, Hash)]
struct TallyKey {
    key: usize,
    endpoint: usize,
    admitted: bool,
    class: StatusClass,
    day: Day,
}

struct Tally {
    key: Arc<KeyProfile>,
    secret: Option<KeyHash>,
    endpoint: Option<Arc<str>>,
    /// Whose scopes were used.
    route: Option<Arc<Route>>,
    count: u64,
    last: Timestamp,
}

struct Resources {
    key: Arc<KeyProfile>,
    named: HashMap<Arc<str>, u64>,
}

#[derive(Default)]
struct Pending {
    /// Keyed by addresses, never by what a client sent: the fast hash cannot be attacked.
    tallies: FxHashMap<TallyKey, Tally>,
    /// Of each key; the ids inside come from clients, so they are hashed the slow way.
    resources: FxHashMap<(usize, Day, Kind), Resources>,
    distinct_resources: usize,
}

/// All tallies of this process.
#[derive(Default)]
pub(super) struct Shards([Mutex<Pending>; SHARDS]);

impl Shards {
    /// Counts one request.
    pub(super) fn count(&self, hit: &Hit<'_>) {
        // Allocations of one size class lie 16 bytes apart at least; the bits above tell keys apart.
        let address = Arc::as_ptr(hit.key) as usize;
        let mut pending = lock(&self.0[(address >> 6) % SHARDS]);
        pending.add(hit, address);
        if let Some((_, values)) = hit.admitted {
            pending.add_resources(hit, address, values);
        }
    }

    /// Takes everything, summed up.
    pub(super) fn drain(&self) -> Counts {
        let mut counts = Counts::default();
        for shard in &self.0 {
            // Made outside the lock, and as large as the last one was: requests shall not pay for its growing again.
            let (tallies, resources) = {
                let pending = lock(shard);
                (pending.tallies.len(), pending.resources.len())
            };
            let mut taken = Pending::with_room(tallies, resources);
            std::mem::swap(&mut *lock(shard), &mut taken);
            taken.sum_up(&mut counts);
        }
        counts
    }
}

impl Pending {
    fn with_room(tallies: usize, resources: usize) -> Self {
        let (tallies, resources) = (HashMap::with_capacity_and_hasher(tallies, <_>::default()), resources);
        let resources = HashMap::with_capacity_and_hasher(resources, <_>::default());
        Self { tallies, resources, distinct_resources: 0 }
    }

    fn add(&mut self, hit: &Hit<'_>, address: usize) {
        let day = hit.at.day();
        let endpoint = hit.endpoint.map_or(0, |endpoint| Arc::as_ptr(endpoint).cast::<u8>() as usize);
        let mut key = TallyKey { key: address, endpoint, admitted: hit.admitted.is_some(), class: hit.class, day };
        let full = self.tallies.len() >= MAX_TALLIES && !self.tallies.contains_key(&key);
        if full {
            (key.endpoint, key.admitted) = (1, false);
        }
        let tally = self.tallies.entry(key).or_insert_with(|| Tally {
            key: hit.key.clone(),
            secret: hit.secret,
            endpoint: if full { Some(OTHER.into()) } else { hit.endpoint.cloned() },
            route: hit.admitted.filter(|_| !full).map(|(route, _)| route.clone()),
            count: 0,
            last: hit.at,
        });
        tally.count += 1;
        tally.last = tally.last.max(hit.at);
    }

    /// Only what could be an id: a value that a client made up must not become a row of the store, a key least of all, and a key
    /// is a well-formed id.
    fn add_resources(&mut self, hit: &Hit<'_>, address: usize, values: &Values) {
        for kind in Kind::ALL {
            let Some(id) = values.of(kind) else { continue };
            let of_key = self.resources.entry((address, hit.at.day(), kind));
            let named = &mut of_key.or_insert_with(|| Resources { key: hit.key.clone(), named: HashMap::new() }).named;
            if let Some(count) = named.get_mut(id) {
                *count += 1;
            } else if ResourceId::parse(id).is_ok() && !looks_like_key(id.as_bytes()) {
                let full = self.distinct_resources >= MAX_RESOURCES;
                *named.entry(if full { OTHER.into() } else { id.into() }).or_default() += 1;
                self.distinct_resources += 1;
            }
        }
    }

    fn sum_up(self, counts: &mut Counts) {
        for (key, tally) in self.tallies {
            let id = &tally.key.record.id;
            let scopes = tally.route.iter().flat_map(|route| route.access.scopes());
            for scope in scopes.filter(|scope| tally.key.grants.allows(scope)) {
                counts.add((id.clone(), key.day, Counted::Scope(scope.clone())), tally.count);
            }
            let endpoint = tally.endpoint.unwrap_or_else(|| NO_ROUTE.into());
            counts.add((id.clone(), key.day, Counted::Endpoint(endpoint, key.class)), tally.count);
            if let Some(secret) = tally.secret {
                counts.used(secret, tally.last);
            }
        }
        for ((_, day, kind), Resources { key, named }) in self.resources {
            for (resource, count) in named {
                counts.add((key.record.id.clone(), day, Counted::Resource(kind, resource)), count);
            }
        }
    }
}

fn lock(shard: &Mutex<Pending>) -> MutexGuard<'_, Pending> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}
