//! From the hash of a secret to a key profile: cache, single flight, and the rule that nothing stale comes back.
//!
//! * A known key is served from memory for `cache.ttl`, an unknown one for `cache.negative_ttl`.
//! * A change of a key or its account removes it at once. A load that **began** before a change never enters the cache:
//!   it is repeated (`flight`), and requests that come after the change never join it.
//! * While the change feed is lost or silent, a cached key is asked for again, at most every `cache.recheck_without_push`; while the store itself
//!   cannot be asked, keys already known are served for `store.outage.serve_cached_keys_for`, others are a 503. Nobody waits
//!   for a store that is known to be away ([`store::health`](crate::store::health)).
//!
//! * A profile follows from a configuration: for a request under another one it is worked out anew, without asking the store.
//!
//! Decides nothing about a key: that is [`crate::policy::access::Authenticated::check`].

mod flight;
mod front;
mod watch;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use front::Front;
pub use watch::{Ended, KeyWatch};

use flight::Flight;
use moka::Expiry;
use moka::sync::Cache;
use rustc_hash::FxBuildHasher;
use watch::Watchers;

use crate::clock::Clock;
use crate::config::model::Config;
use crate::policy::access::KeyProfile;
use crate::policy::credential::KeyHash;
use crate::policy::instant::Mono;
use crate::policy::key::{AccountId, KeyId};
use crate::store::health::Guard;
use crate::store::{Change, FeedItem, StoredKey};
use crate::telemetry::Metrics;

/// How long a request waits for a slow store (contract 4).
const PATIENCE: Duration = Duration::from_millis(250);

/// The store could not say whether a key exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreUnavailable;

type Found = Option<Arc<KeyProfile>>;

#[derive(Clone)]
enum Cached {
    Known(Arc<Known>),
    /// To be remembered for so long.
    Unknown(Duration),
}

/// A known key, and when the store vouched for it.
struct Known {
    profile: Arc<KeyProfile>,
    /// When the store last vouched for it.
    verified: AtomicU64,
    /// After a failed re-check: not before then again.
    next_check: AtomicU64,
    /// How long it is kept.
    lifetime: Duration,
}

/// Which cached keys a change concerns.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Tag {
    Key(KeyId),
    Account(AccountId),
}

/// Everything that an insert and an invalidation must agree on, under one lock.
#[derive(Default)]
struct Index {
    /// Grows with each change: a load compares it before and after.
    epoch: u64,
    hashes: HashMap<Tag, Vec<KeyHash>>,
    flights: HashMap<KeyHash, Flight>,
}

/// Looks keys up.
pub struct Authenticator {
    guard: Arc<Guard>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    cache: Cache<KeyHash, Cached, FxBuildHasher>,
    index: Mutex<Index>,
    watchers: Watchers,
    /// Grows after every removal from the cache: copies from before it count no more.
    generation: AtomicU64,
    feed_up: AtomicBool,
    /// A feed that has said nothing for this long is not believed to be followed.
    feed_silence: Duration,
    /// When the change feed last said anything, if only that nothing happened.
    feed_heard: AtomicU64,
    /// When the store last answered anything.
    last_contact: AtomicU64,
}

/// Entries stay longer than their TTL so that an outage of the store can be bridged; freshness is judged on reading.
struct Lifetimes;

impl Expiry<KeyHash, Cached> for Lifetimes {
    #[allow(clippy::disallowed_types, reason = "moka's signature")]
    fn expire_after_create(&self, _: &KeyHash, value: &Cached, _: std::time::Instant) -> Option<Duration> {
        Some(match value {
            Cached::Known(known) => known.lifetime,
            Cached::Unknown(lifetime) => *lifetime,
        })
    }

    #[allow(clippy::disallowed_types, reason = "moka's signature")]
    fn expire_after_update(
        &self,
        key: &KeyHash,
        value: &Cached,
        at: std::time::Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        self.expire_after_create(key, value, at)
    }
}

impl Authenticator {
    /// An empty cache over the store behind `guard`, for so many keys.
    pub fn new(guard: Arc<Guard>, capacity: u64, metrics: Arc<Metrics>) -> Self {
        let cache = Cache::builder().max_capacity(capacity).expire_after(Lifetimes);
        // BLAKE3 has made the keys uniform already: a slower hash would defend against nothing.
        let cache = cache.build_with_hasher(FxBuildHasher);
        let clock = guard.clock().clone();
        let (start, feed_silence) = (clock.mono().0, guard.store().feed_silence());
        Self {
            feed_silence,
            guard,
            clock,
            metrics,
            cache,
            index: Mutex::default(),
            watchers: Watchers::default(),
            generation: AtomicU64::new(0),
            feed_up: AtomicBool::new(true),
            feed_heard: AtomicU64::new(start),
            last_contact: AtomicU64::new(start),
        }
    }

    /// The key with this secret as `config` sees it, or `None`. Waits for the store at most 250 ms.
    pub async fn look_up(
        self: &Arc<Self>,
        hash: KeyHash,
        front: &Front,
        config: &Arc<Config>,
    ) -> Result<Found, StoreUnavailable> {
        let now = self.clock.mono();
        // Read before the cache: what is found after it and copied under it was there when it was current.
        let generation = self.generation.load(Ordering::Acquire);
        let usable = |known: &Arc<Known>| known.is_under(config) && self.is_fresh(known, now, config);
        if let Some(known) = front.get(&hash, generation).filter(usable) {
            self.metrics.lookups.hit.increment(1);
            return Ok(Some(known.profile.clone()));
        }
        match self.cache.get(&hash) {
            Some(Cached::Known(known)) if self.is_fresh(&known, now, config) => {
                self.metrics.lookups.hit.increment(1);
                let known = self.under(config, hash, known);
                let profile = known.profile.clone();
                front.put(hash, generation, known);
                Ok(Some(profile))
            }
            Some(Cached::Unknown(_)) => {
                self.metrics.lookups.hit_unknown.increment(1);
                Ok(None)
            }
            Some(Cached::Known(known)) => {
                match Box::pin(self.load_once(hash, self.recheck_patience(config), config)).await {
                    Ok(found) => Ok(found),
                    Err(StoreUnavailable) if self.may_serve_without_store(now, config) => {
                        known.next_check.store(now.plus(Duration::from_secs(1)).0, Ordering::Relaxed);
                        Ok(Some(self.under(config, hash, known).profile.clone()))
                    }
                    Err(StoreUnavailable) => Err(StoreUnavailable),
                }
            }
            None => Box::pin(self.load_once(hash, PATIENCE, config)).await,
        }
    }

    /// Whether a key is known here, so that a look-up will not ask the store.
    pub fn is_known(&self, hash: &KeyHash, front: &Front, config: &Config) -> bool {
        let now = self.clock.mono();
        front.get(hash, self.generation.load(Ordering::Acquire)).is_some_and(|known| self.is_fresh(&known, now, config))
            || matches!(self.cached(hash, now, config), Some(Some(_)))
    }

    /// What the cache holds of a key, if that is fresh.
    fn cached(&self, hash: &KeyHash, now: Mono, config: &Config) -> Option<Found> {
        match self.cache.get(hash)? {
            Cached::Known(known) => self.is_fresh(&known, now, config).then(|| Some(known.profile.clone())),
            Cached::Unknown(_) => Some(None),
        }
    }

    /// The same key under this configuration. The cache takes it over if it is the newer one.
    fn under(&self, config: &Config, hash: KeyHash, known: Arc<Known>) -> Arc<Known> {
        if known.is_under(config) {
            return known;
        }
        let reworked = Arc::new(Known {
            profile: under(config, known.profile.clone()),
            verified: AtomicU64::new(known.verified.load(Ordering::Relaxed)),
            next_check: AtomicU64::new(known.next_check.load(Ordering::Relaxed)),
            lifetime: config.known_keys_are_kept_for(),
        });
        if config.revision > known.profile.revision {
            // A change removes under this lock: what it removed must not come back.
            let _index = self.index();
            if matches!(self.cache.get(&hash), Some(Cached::Known(there)) if Arc::ptr_eq(&there, &known)) {
                self.cache.insert(hash, Cached::Known(reworked.clone()));
            }
        }
        reworked
    }

    fn is_fresh(&self, known: &Known, now: Mono, config: &Config) -> bool {
        let age = now.since(Mono(known.verified.load(Ordering::Relaxed)));
        // Unheard changes can concern whatever was verified before the feed fell silent: that is asked for again at once.
        let heard = Mono(self.feed_heard.load(Ordering::Acquire));
        let rechecked = known.verified.load(Ordering::Relaxed) > heard.0 && age < config.cache.recheck_without_push;
        let trusted = age < config.cache.ttl && (self.hears_changes(now) || rechecked);
        trusted || (now.0 < known.next_check.load(Ordering::Relaxed) && self.may_serve_without_store(now, config))
    }

    /// Whether changes of other processes arrive. A process that was stopped for a while finds, when it wakes, that it has not
    /// heard anything for as long.
    fn hears_changes(&self, now: Mono) -> bool {
        let silence = now.since(Mono(self.feed_heard.load(Ordering::Acquire)));
        self.feed_up.load(Ordering::Acquire) && silence < self.feed_silence
    }

    fn may_serve_without_store(&self, now: Mono, config: &Config) -> bool {
        let silence = now.since(Mono(self.last_contact.load(Ordering::Relaxed)));
        silence < config.store.serve_cached_keys_for
    }

    /// A key in hand is not held up longer than a store that is gone takes to be recognised.
    fn recheck_patience(&self, config: &Config) -> Duration {
        if self.hears_changes(self.clock.mono()) { PATIENCE } else { config.store.timeout.min(PATIENCE) }
    }

    /// Takes in what the store said when it was asked at `asked`, or a little later.
    fn insert(&self, index: &mut Index, hash: KeyHash, found: Found, asked: Mono, config: &Config) {
        let Some(profile) = found else {
            return self.cache.insert(hash, Cached::Unknown(config.cache.negative_ttl));
        };
        for tag in [Tag::Key(profile.record.id.clone()), Tag::Account(profile.record.account_id.clone())] {
            let hashes = index.hashes.entry(tag).or_default();
            if !hashes.contains(&hash) {
                hashes.push(hash);
            }
        }
        let known = Known {
            profile,
            verified: AtomicU64::new(asked.0),
            next_check: AtomicU64::new(0),
            lifetime: config.known_keys_are_kept_for(),
        };
        self.cache.insert(hash, Cached::Known(Arc::new(known)));
    }

    /// Applies what the change feed says. When this returns, no later request is served from older state.
    pub fn apply(&self, item: &FeedItem) {
        let now = self.clock.mono();
        match item {
            // Only this says that nothing else is on its way: a change may have lain there while the process was stopped.
            FeedItem::Changes(_, changes) if changes.is_empty() => {
                self.contact(now);
                self.feed_heard.store(now.0, Ordering::Release);
            }
            FeedItem::Changes(_, changes) => {
                let mut index = self.index();
                index.epoch += 1;
                for change in changes {
                    match change {
                        Change::Key(id) => self.forget(&mut index, &Tag::Key(id.clone())),
                        Change::Account(id) => self.forget(&mut index, &Tag::Account(id.clone())),
                        Change::Secret(hash) => self.cache.invalidate(hash),
                        Change::Recall(..) => {}
                    }
                }
                self.generation.fetch_add(1, Ordering::AcqRel);
                self.watchers.tell(changes);
            }
            FeedItem::Lost => self.feed_up.store(false, Ordering::Release),
            FeedItem::Restored(_) => {
                let mut index = self.index();
                index.epoch += 1;
                index.hashes.clear();
                self.cache.invalidate_all();
                self.generation.fetch_add(1, Ordering::AcqRel);
                self.contact(now);
                self.feed_heard.store(now.0, Ordering::Release);
                self.feed_up.store(true, Ordering::Release);
                self.watchers.tell_all();
            }
        }
    }

    /// Waits until keys can be looked up. What is cached is thrown away only then: until then it is better than nothing.
    pub async fn until_readable(&self) {
        self.guard.until_readable(flight::KEYS).await;
    }

    fn forget(&self, index: &mut Index, tag: &Tag) {
        for hash in index.hashes.remove(tag).unwrap_or_default() {
            self.cache.invalidate(&hash);
        }
    }

    /// Notes that the store has answered something.
    pub fn contact(&self, now: Mono) {
        self.last_contact.fetch_max(now.0, Ordering::Relaxed);
    }

    /// Every few seconds: drops index entries of evicted keys and updates the gauge.
    pub fn maintain(&self) {
        self.cache.run_pending_tasks();
        self.metrics.cached_keys.set(self.cache.entry_count() as f64);
        let mut index = self.index();
        index.hashes.retain(|_, hashes| {
            hashes.retain(|hash| self.cache.contains_key(hash));
            !hashes.is_empty()
        });
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn is_under(&self, config: &Config) -> bool {
        self.profile.revision == config.revision
    }
}

/// What the store said of a key, as this configuration sees it.
fn profile(config: &Config, stored: StoredKey, hash: KeyHash) -> Arc<KeyProfile> {
    let secret_expires_at = stored.secrets.iter().find(|secret| secret.hash == hash).and_then(|s| s.expires_at);
    if let Some(note) = config.quota.note(&stored.account) {
        tracing::warn!("{note}");
    }
    Arc::new(config.profile(stored.record, stored.account, secret_expires_at))
}

/// A profile that may come from another configuration, as this one sees it.
fn under(config: &Config, profile: Arc<KeyProfile>) -> Arc<KeyProfile> {
    if profile.revision == config.revision {
        return profile;
    }
    Arc::new(config.profile(profile.record.clone(), profile.account.clone(), profile.secret_expires_at))
}

impl std::fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authenticator").field("cached", &self.cache.entry_count()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod outage_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod watch_tests;
