//! One subject in memory: its lease and the requests that wait for it, first come first served.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

use crate::policy::instant::Mono;
use crate::policy::key::QuotaLimits;
use crate::policy::lease::{Decision, Outage, SubjectLease, Waiting};
use crate::policy::quota::{Minute, QuotaState, Subject};

/// What a waiting request is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It may pass, on a token of this minute.
    Admitted(QuotaState, Minute),
    /// A window is used up.
    Denied(QuotaState),
    /// Nobody can tell.
    Unavailable,
}

struct Waiter {
    cost: u32,
    limits: QuotaLimits,
    tell: oneshot::Sender<Outcome>,
}

/// A subject.
pub(super) struct Entry {
    pub(super) subject: Subject,
    inner: Mutex<Inner>,
    /// Rings after every answer (and failure): for those who wait for knowledge rather than for tokens.
    pub(super) answered: Notify,
}

/// What the lock protects.
pub(super) struct Inner {
    pub(super) lease: SubjectLease,
    queue: VecDeque<Waiter>,
    queued_cost: u32,
    /// A timer for the next try after a soft denial is running.
    pub(super) timer_armed: bool,
    /// No longer in the map: look the subject up again.
    pub(super) retired: bool,
}

impl Entry {
    pub(super) fn new(subject: Subject, now: Mono, limits: QuotaLimits) -> Self {
        let inner = Inner {
            lease: SubjectLease::new(now, limits),
            queue: VecDeque::new(),
            queued_cost: 0,
            timer_armed: false,
            retired: false,
        };
        Self { subject, inner: Mutex::new(inner), answered: Notify::new() }
    }

    /// Never held across an await or anything that blocks. A panic elsewhere cannot leave a lease half changed in a way that
    /// grants tokens, so a poisoned lock is used on.
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// The first look at a request: nobody overtakes those who wait already.
    pub(super) fn take(&mut self, now: Mono, cost: u32, limits: QuotaLimits) -> Decision {
        if self.queue.is_empty() {
            self.lease.take(now, cost, limits)
        } else {
            self.lease.note_request(now, cost);
            Decision::Wait
        }
    }

    pub(super) fn enqueue(&mut self, cost: u32, limits: QuotaLimits) -> oneshot::Receiver<Outcome> {
        let (tell, told) = oneshot::channel();
        self.queue.push_back(Waiter { cost, limits, tell });
        self.queued_cost = self.queued_cost.saturating_add(cost);
        told
    }

    /// Answers those at the head of the queue for whom there is an answer. Returns how many were refused.
    pub(super) fn serve(&mut self, now: Mono) -> u32 {
        let mut denied = 0;
        while let Some(first) = self.queue.front() {
            if first.tell.is_closed() {
                self.pop();
                continue;
            }
            match self.lease.decide(now, first.cost, first.limits) {
                Decision::Wait => break,
                Decision::Admit(state, minute) => self.tell_first(now, Outcome::Admitted(state, minute)),
                Decision::Deny(state) => {
                    denied += 1;
                    self.tell_first(now, Outcome::Denied(state));
                }
            }
        }
        denied
    }

    /// Answers the whole queue without the store; `None`: with "nobody can tell". Returns how many were admitted and refused.
    pub(super) fn serve_without_store(&mut self, now: Mono, outage: Option<Outage>) -> (u32, u32) {
        let (mut admitted, mut denied) = (0, 0);
        while let Some(first) = self.queue.front() {
            if first.tell.is_closed() {
                self.pop();
                continue;
            }
            let decision = match (self.lease.decide(now, first.cost, first.limits), outage) {
                (Decision::Wait, Some(outage)) => {
                    let decision = self.lease.take_local(now, first.cost, outage);
                    admitted += u32::from(matches!(decision, Decision::Admit(..)));
                    decision
                }
                (decision, _) => decision,
            };
            match decision {
                Decision::Admit(state, minute) => self.tell_first(now, Outcome::Admitted(state, minute)),
                Decision::Deny(state) => {
                    denied += 1;
                    self.tell_first(now, Outcome::Denied(state));
                }
                Decision::Wait => self.tell_first(now, Outcome::Unavailable),
            }
        }
        (admitted, denied)
    }

    pub(super) fn somebody_waits(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Who waits, for the size of the next lease.
    pub(super) fn waiting(&self) -> Waiting {
        Waiting { first: self.queue.front().map_or(0, |first| first.cost), total: self.queued_cost }
    }

    fn pop(&mut self) -> Option<Waiter> {
        let waiter = self.queue.pop_front()?;
        self.queued_cost = self.queued_cost.saturating_sub(waiter.cost);
        Some(waiter)
    }

    fn tell_first(&mut self, now: Mono, outcome: Outcome) {
        let Some(waiter) = self.pop() else { return };
        // The request may have gone away this very moment: its tokens are not spent.
        if let Err(Outcome::Admitted(_, minute)) = waiter.tell.send(outcome) {
            self.lease.put_back(now, minute, waiter.cost);
        }
    }
}
