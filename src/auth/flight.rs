//! One load for all requests that ask for the same key at the same time.
//!
//! A load is a task of its own: it does not end with the request that began it, and a slow answer still enters the cache. Whatever
//! becomes of it, even a panic, its flight ends with it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::{Authenticator, Found, StoreUnavailable, profile, under};
use crate::config::model::Config;
use crate::policy::credential::KeyHash;
use crate::store::Part;
use crate::store::health::{Kind, Leave};

/// Keys are in this part.
pub(super) const KEYS: Part = Part(0);
/// Loads that a change may overtake before the result is used for this request alone, uncached.
const ATTEMPTS: usize = 3;
/// A call is waited for this long; later its answer is of no use.
const CALL_LIVES: Duration = Duration::from_secs(3);
/// The same, once the store was seen away.
const CALL_LIVES_IN_OUTAGE: Duration = Duration::from_secs(1);

type Answer = Result<Found, StoreUnavailable>;

/// A load that is under way, as the index knows it.
pub(super) struct Flight {
    /// The epoch in which it began.
    epoch: u64,
    answer: watch::Receiver<Option<Answer>>,
}

impl Authenticator {
    /// Waits for the load of this key, beginning it if need be. Does not wait at all while the store is away.
    pub(super) async fn load_once(self: &Arc<Self>, hash: KeyHash, patience: Duration, config: &Arc<Config>) -> Answer {
        let answer = match self.join(hash, config) {
            Some(mut answer) => match timeout(patience, answer.wait_for(Option::is_some)).await {
                Ok(Ok(told)) => told.clone().unwrap_or(Err(StoreUnavailable)),
                Ok(Err(_)) | Err(_) => Err(StoreUnavailable),
            },
            None => Err(StoreUnavailable),
        };
        if answer.is_err() {
            self.metrics.lookups.error.increment(1);
        }
        // Whoever began the load may have come before a reload.
        answer.map(|found| found.map(|profile| under(config, profile)))
    }

    /// The flight that is under way, or a new one; `None`: the store is away.
    fn join(self: &Arc<Self>, hash: KeyHash, config: &Arc<Config>) -> Option<watch::Receiver<Option<Answer>>> {
        let mut index = self.index();
        let epoch = index.epoch;
        // One that began before the last change must not be trusted by whoever comes now.
        if let Some(flight) = index.flights.get(&hash).filter(|flight| flight.epoch == epoch) {
            return Some(flight.answer.clone());
        }
        let now = self.clock.mono();
        // One may have landed since the cache was looked at.
        if let Some(found) = self.cached(&hash, now, config) {
            self.metrics.lookups.hit.increment(1);
            return Some(watch::channel(Some(Ok(found))).1);
        }
        let leave = self.guard.permit(KEYS, Kind::Read, now)?;
        let (tell, answer) = watch::channel(None);
        index.flights.insert(hash, Flight { epoch, answer: answer.clone() });
        drop(index);
        let landing = Landing { auth: self.clone(), config: config.clone(), hash, tell };
        self.guard.control().spawn(async move {
            let answer = landing.load(leave).await;
            landing.tell(answer);
        });
        Some(answer)
    }
}

/// Where a load ends: who waits is told, once, and nobody joins any more.
struct Landing {
    auth: Arc<Authenticator>,
    config: Arc<Config>,
    hash: KeyHash,
    tell: watch::Sender<Option<Answer>>,
}

impl Landing {
    async fn load(&self, leave: Leave) -> Answer {
        let auth = &self.auth;
        let (mut leave, mut found) = (Some(leave), None);
        for _ in 0..ATTEMPTS {
            let again = || auth.guard.permit(KEYS, Kind::Read, auth.clock.mono());
            let leave = leave.take().or_else(again).ok_or(StoreUnavailable)?;
            let (epoch, asked) = (auth.index().epoch, auth.clock.mono());
            let call = auth.guard.store().key_by_secret(self.hash);
            let watched = auth.guard.watch(leave, call, CALL_LIVES_IN_OUTAGE, || self.tell(Err(StoreUnavailable)));
            let stored = match timeout(CALL_LIVES, watched).await {
                Ok(Ok(stored)) => stored,
                Ok(Err(error)) => {
                    tracing::debug!(%error, "a key could not be looked up");
                    return Err(StoreUnavailable);
                }
                Err(_) => return Err(StoreUnavailable),
            };
            auth.contact(auth.clock.mono());
            found = stored.map(|stored| profile(&self.config, stored, self.hash));
            let mut index = auth.index();
            if index.epoch == epoch {
                auth.insert(&mut index, self.hash, found.clone(), asked, &self.config);
                break;
            }
        }
        let outcome = if found.is_some() { &auth.metrics.lookups.found } else { &auth.metrics.lookups.unknown };
        outcome.increment(1);
        Ok(found)
    }

    fn tell(&self, answer: Answer) {
        let mut index = self.auth.index();
        let ours = |flight: &Flight| flight.answer.same_channel(&self.tell.subscribe());
        if index.flights.get(&self.hash).is_some_and(ours) {
            index.flights.remove(&self.hash);
        }
        drop(index);
        self.tell.send_if_modified(|told| {
            let first = told.is_none();
            told.get_or_insert(answer);
            first
        });
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.tell(Err(StoreUnavailable));
    }
}
