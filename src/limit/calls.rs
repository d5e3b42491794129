//! Calls to the store: made when the lease says so, watched while they are out, and what follows from their end.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::entry::{Entry, Inner};
use super::{Shared, lock};
use crate::policy::instant::Mono;
use crate::policy::lease::{Call, Failure, Purpose};
use crate::store::StoreError;
use crate::store::health::{Kind, Leave, State};

/// A call is waited for this long; later its tokens are lost.
const CALL_LIVES: Duration = Duration::from_secs(3);
/// Once the store was seen away, calls without an answer make room for others after this long.
const CALL_LIVES_IN_OUTAGE: Duration = Duration::from_secs(1);
/// How often time is told to the leases.
const HOUSEKEEPING: Duration = Duration::from_millis(500);
/// One round of housekeeping makes at most so many calls: an outage that ends must not end in a flood.
const CALLS_A_ROUND: u32 = 1_000;

impl Shared {
    /// After anything happened to an entry: answers who can be answered and makes the call that is due.
    pub(super) fn drive(self: &Arc<Self>, entry: &Arc<Entry>, inner: &mut Inner, now: Mono) -> bool {
        if inner.somebody_waits() {
            self.stats.denied.add(inner.serve(now));
        }
        let due = inner.lease.wants_call(now, inner.waiting());
        let began = due.is_some_and(|purpose| self.begin_call(entry, inner, now, purpose));
        if inner.somebody_waits() && !self.is_there(entry) {
            self.serve_without_store(inner, now);
        }
        if inner.somebody_waits() && !inner.lease.is_asking() && !inner.timer_armed {
            inner.timer_armed = true;
            let after = inner.lease.retry_at().since(now).max(Duration::from_millis(1));
            self.guard.control().spawn(self.clone().drive_later(entry.clone(), after));
        }
        began
    }

    /// Whether the part of the store that keeps this subject's ledger charges it.
    pub(super) fn is_there(&self, entry: &Entry) -> bool {
        self.guard.state(self.guard.store().part(&entry.subject)) == State::There
    }

    /// Makes a call on the control runtime. `false`: the store is not there and no probe is due.
    pub(super) fn begin_call(
        self: &Arc<Self>,
        entry: &Arc<Entry>,
        inner: &mut Inner,
        now: Mono,
        purpose: Purpose,
    ) -> bool {
        let part = self.guard.store().part(&entry.subject);
        let Some(leave) = self.guard.permit(part, Kind::Charge, now) else { return false };
        let call = inner.lease.start_call(now, purpose, inner.waiting(), leave.is_probe());
        self.stats.calls.add(1);
        self.stats.returned.add(call.request.give_back.map_or(0, |(_, tokens)| tokens));
        self.guard.control().spawn(self.clone().carry_out(entry.clone(), call, leave));
        true
    }

    async fn carry_out(self: Arc<Self>, entry: Arc<Entry>, call: Call, leave: Leave) {
        let lease = self.guard.store().lease(entry.subject.clone(), call.request);
        let on_outage = || {
            self.serve_without_store(&mut entry.lock(), self.clock.mono());
            entry.answered.notify_waiters();
        };
        let answer = timeout(CALL_LIVES, self.guard.watch(leave, lease, CALL_LIVES_IN_OUTAGE, on_outage)).await;
        let now = self.clock.mono();
        let mut inner = entry.lock();
        match answer {
            Ok(Ok(reply)) => {
                self.stats.granted.add(reply.granted);
                inner.lease.on_reply(now, call.id, &reply, self.guard.roll());
            }
            Ok(Err(error)) => {
                self.stats.failed_calls.add(1);
                on_error(&mut inner, now, &call, &error);
            }
            Err(_) => {
                self.stats.failed_calls.add(1);
                inner.lease.on_failure(now, call.id, Failure::Unknown);
            }
        }
        self.drive(&entry, &mut inner, now);
        drop(inner);
        entry.answered.notify_waiters();
    }

    fn serve_without_store(&self, inner: &mut Inner, now: Mono) {
        let (admitted, denied) = inner.serve_without_store(now, self.outage());
        self.stats.outage_admissions.add(admitted);
        self.stats.denied.add(denied);
    }

    async fn drive_later(self: Arc<Self>, entry: Arc<Entry>, after: Duration) {
        sleep(after).await;
        let now = self.clock.mono();
        let mut inner = entry.lock();
        inner.timer_armed = false;
        self.drive(&entry, &mut inner, now);
    }

    /// Lets time pass for all subjects, sends what is owed and forgets who has been idle for long.
    async fn round(self: &Arc<Self>) {
        let recalls_are_heard = self.recalls_are_heard.load(Ordering::Relaxed);
        let (mut calls, mut subjects) = (0, 0);
        for shard in &self.shards {
            // There may be very many subjects; the other tasks of this runtime are in more of a hurry.
            tokio::task::yield_now().await;
            let entries: Vec<Arc<Entry>> = lock(shard).values().cloned().collect();
            subjects += entries.len() as u64;
            for entry in entries {
                let now = self.clock.mono();
                let mut inner = entry.lock();
                inner.lease.tick(now, recalls_are_heard);
                if inner.lease.is_idle(now) && !inner.somebody_waits() {
                    inner.retired = true;
                    drop(inner);
                    lock(shard).remove(&entry.subject);
                } else if calls < CALLS_A_ROUND {
                    calls += u32::from(self.drive(&entry, &mut inner, now));
                }
            }
        }
        self.stats.subjects.set(subjects);
    }
}

fn on_error(inner: &mut Inner, now: Mono, call: &Call, error: &StoreError) {
    match error {
        StoreError::Unavailable(_) | StoreError::Refused(_) => {
            inner.lease.on_failure(now, call.id, Failure::NotDone);
        }
        StoreError::Unknown(_) => inner.lease.on_failure(now, call.id, Failure::Unknown),
        // Only this subject is affected: the store itself is well.
        StoreError::Conflict | StoreError::Corrupt(_) => {
            inner.lease.on_failure(now, call.id, Failure::NotDone);
            inner.serve_without_store(now, None);
        }
    }
}

/// Runs until the limiter is gone.
pub(super) async fn keep_house(shared: Weak<Shared>) {
    let mut ticks = interval(HOUSEKEEPING);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        shared.round().await;
    }
}
