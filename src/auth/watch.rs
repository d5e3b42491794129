//! Keys whose answers last: a tunnel ends soon after its key does, not when its client likes.
//!
//! Whoever holds a [`KeyWatch`] is told of each change of its key and account, and looks again besides, as a request would: when
//! changes of other processes may not arrive, when the cached copy has grown old, and at the time at which the key expires.
//! The rules are those of [`Authenticator::look_up`]; the answers are kept nowhere.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use super::{Authenticator, Front, StoreUnavailable, Tag};
use crate::config::model::Config;
use crate::policy::access::{Grant, KeyProfile};
use crate::policy::credential::KeyHash;
use crate::policy::key::Timestamp;
use crate::policy::rejection::Rejection;
use crate::store::Change;

/// After a look-up that the store did not answer.
const AGAIN: Duration = Duration::from_millis(250);
/// The shortest wait for the time at which a key expires: the two clocks need not agree to the millisecond.
const A_MOMENT: Duration = Duration::from_millis(10);

/// Why a key that was good is no longer.
#[derive(Debug, Clone, PartialEq)]
pub enum Ended {
    /// It would be refused now.
    Rejected(Rejection),
    /// The store has been away for longer than known keys are served without it.
    StoreUnavailable,
}

/// Everybody who watches, by what a change may name.
#[derive(Default)]
pub(super) struct Watchers(Mutex<Registry>);

#[derive(Default)]
struct Registry {
    next: u64,
    by_tag: HashMap<Tag, HashMap<u64, Arc<Notify>>>,
}

impl Watchers {
    /// Tells those whom these changes may concern.
    pub(super) fn tell(&self, changes: &[Change]) {
        let registry = self.lock();
        if registry.by_tag.is_empty() {
            return;
        }
        for change in changes {
            let tag = match change {
                Change::Key(id) => Tag::Key(id.clone()),
                Change::Account(id) => Tag::Account(id.clone()),
                Change::Secret(_) | Change::Recall(..) => continue,
            };
            registry.by_tag.get(&tag).into_iter().flat_map(HashMap::values).for_each(|one| one.notify_one());
        }
    }

    /// Tells everybody.
    pub(super) fn tell_all(&self) {
        self.lock().by_tag.values().flat_map(HashMap::values).for_each(|one| one.notify_one());
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.lock().by_tag.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among the watchers; given up when dropped.
pub struct KeyWatch {
    auth: Arc<Authenticator>,
    hash: KeyHash,
    tags: [Tag; 2],
    id: u64,
    told: Arc<Notify>,
}

impl Authenticator {
    /// Watches the key with this secret.
    pub fn watch(self: &Arc<Self>, hash: KeyHash, profile: &KeyProfile) -> KeyWatch {
        let tags = [Tag::Key(profile.record.id.clone()), Tag::Account(profile.record.account_id.clone())];
        let told = Arc::new(Notify::new());
        let mut registry = self.watchers.lock();
        let id = registry.next;
        registry.next += 1;
        for tag in &tags {
            registry.by_tag.entry(tag.clone()).or_default().insert(id, told.clone());
        }
        drop(registry);
        KeyWatch { auth: self.clone(), hash, tags, id, told }
    }
}

impl KeyWatch {
    /// Until the key would no longer be given this grant under what `config` says is in force then. Looks at once, too: it may have
    /// changed before the watch began.
    pub async fn ended(&self, grant: &Grant, front: &Front, config: impl Fn() -> Arc<Config>) -> Ended {
        loop {
            let rest = match self.check(grant, front, &config()).await {
                Ok(rest) => rest,
                Err(ended) => return ended,
            };
            // Told or not, it is time to look.
            let _ = timeout(rest, self.told.notified()).await;
        }
    }

    /// How long the grant may be relied on without another look.
    pub async fn check(&self, grant: &Grant, front: &Front, config: &Arc<Config>) -> Result<Duration, Ended> {
        let auth = &self.auth;
        match auth.look_up(self.hash, front, config).await {
            Ok(Some(profile)) => {
                let (now, expiry) = (auth.clock.wall(), profile.expires_at());
                grant.renew(profile, now).map_err(Ended::Rejected)?;
                let left = expiry.map_or(Duration::MAX, |at| until(now, at).max(A_MOMENT));
                Ok(left.min(config.cache.recheck_without_push))
            }
            Ok(None) => Err(Ended::Rejected(Rejection::InvalidKey)),
            Err(StoreUnavailable) if auth.may_serve_without_store(auth.clock.mono(), config) => Ok(AGAIN),
            Err(StoreUnavailable) => Err(Ended::StoreUnavailable),
        }
    }
}

fn until(now: Timestamp, at: Timestamp) -> Duration {
    Duration::from_millis(at.unix_millis().saturating_sub(now.unix_millis()).max(0) as u64)
}

impl Drop for KeyWatch {
    fn drop(&mut self) {
        let mut registry = self.auth.watchers.lock();
        for tag in &self.tags {
            if let Some(watching) = registry.by_tag.get_mut(tag) {
                watching.remove(&self.id);
                if watching.is_empty() {
                    registry.by_tag.remove(tag);
                }
            }
        }
    }
}

impl std::fmt::Debug for KeyWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyWatch").field("id", &self.id).finish_non_exhaustive()
    }
}
