//! What goes on while a part of the store is not there: a ping a second until it is back, and a log that neither misses the
//! end of an outage nor fills up with a store that comes and goes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

use super::breaker::{Breaker, State, Told};
use super::guard::Guard;
use crate::policy::instant::Mono;
use crate::store::Part;

/// The log says at most one thing in this time about a part.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// Runs until the guard is gone; sleeps as long as all is well.
pub(super) async fn keep_watch(guard: Weak<Guard>, woken: Arc<Notify>) {
    loop {
        let Some(there) = guard.upgrade() else { return };
        let now = there.clock().mono();
        let next = there.round(now);
        drop(there);
        match next {
            None => woken.notified().await,
            Some(next) => tokio::select! {
                () = sleep(next.since(now).max(Duration::from_millis(1))) => {}
                () = woken.notified() => {}
            },
        }
    }
}

impl Guard {
    /// Does what is due. Returns when the next thing is.
    fn round(self: &Arc<Self>, now: Mono) -> Option<Mono> {
        let mut next = None;
        let mut wake_at = |at: Mono| next = Some(next.map_or(at, |next: Mono| next.min(at)));
        for (part, breaker) in self.breakers() {
            match breaker.state() {
                State::There => {}
                State::Away => {
                    if breaker.take_probe(now, self.roll()) {
                        self.send_probe(part, now);
                    }
                    wake_at(breaker.probe_at());
                }
                State::Refusing => {
                    if now >= breaker.unwanted_at() {
                        breaker.end(State::Refusing);
                    } else {
                        wake_at(breaker.unwanted_at());
                    }
                }
            }
            if let Some(later) = self.tell(part, breaker, now) {
                wake_at(later);
            }
        }
        next
    }

    /// Writes to the log what has changed since the last line. Too soon after it, returns when it can be said.
    pub(super) fn tell(&self, part: Part, breaker: &Breaker, now: Mono) -> Option<Mono> {
        let mut told = lock(&breaker.told);
        let state = breaker.state();
        if state == told.state {
            return None;
        }
        if let Some(last) = told.at.filter(|last| now.since(*last) < LINE_EVERY) {
            return Some(last.plus(LINE_EVERY));
        }
        (told.state, told.at) = (state, Some(now));
        line(part, state, &told, now.since(breaker.since()));
        None
    }
}

fn line(part: Part, state: State, told: &Told, lasted: Duration) {
    let (part, why) = (part.0, &*told.why);
    match state {
        State::There => tracing::info!(part, ?lasted, "the store is back: keys are looked up and quota is exact again"),
        State::Away if told.refused => {
            tracing::error!(part, %why, "the store refuses this gateway: mend store.username, store.password or its rights");
        }
        State::Away => {
            tracing::warn!(part, %why, "the store is away: cached keys are served, quota follows store.outage")
        }
        State::Refusing if told.refused => {
            tracing::error!(part, %why, "the store lets this gateway charge no quota: mend its rights");
        }
        State::Refusing => tracing::warn!(part, %why, "the store charges no quota: it follows store.outage"),
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
