//! The calls of a subject: when one is due, how much it asks for, and what becomes of the answer.

use std::time::Duration;

use super::windows::{Known, Shown, StoreClock, day_of, end_of, start_of};
use super::{Denial, RETURN_WITHIN, Soft, Stash, SubjectLease};
use crate::policy::instant::Mono;
use crate::policy::quota::{LeaseReply, LeaseRequest, Minute, Seen};

/// A lease lasts for about this much traffic.
const LEASE_MICROS: u64 = 1_000_000;
/// Of slow subjects it lasts longer, for so many tokens at most: where a replica sees two requests a second, a lease a second
/// would be a call for every other request.
const SLOW_LEASE_MICROS: u64 = 2_000_000;
/// See [`SLOW_LEASE_MICROS`].
const SLOW_LEASE: u32 = 20;
/// An early lease is for this much traffic: enough for the first calls of the minute, little enough to be fair.
const EARLY_MICROS: u64 = 50_000;
/// The part of the minute in which early leases are asked for, each replica at its own point.
const EARLY_SPAN_MICROS: u64 = 500_000;
/// Below this rate (thousandths per second) nobody is spared by an early lease.
const EARLY_RATE: u64 = 20_000;
/// A prefetch must be under way when what is left covers only this much traffic.
const PREFETCH_MICROS: u64 = 6_000;
/// A soft denial is asked again after this, …
const SOFT_RETRY: Duration = Duration::from_millis(3);
/// … for this long in all.
const SOFT_FOR: Duration = Duration::from_millis(15);
/// Soft denials further apart than this have nothing to do with each other.
const SOFT_MEMORY: Duration = Duration::from_millis(50);
/// The first hard denial of a minute is looked at once more after this long: some change feeds take 250 ms to carry a recall,
/// and what other replicas then give back must not stay unused for the rest of the minute.
const SECOND_LOOK_AFTER: Duration = Duration::from_millis(300);
/// The clocks of store and replica may drift apart by this fraction: one in 2,000, 500 ppm.
const DRIFT: u64 = 2_000;

/// Tells calls of one subject apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallId(u64);

/// What a call is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Requests wait.
    Refill,
    /// The stash runs low.
    Prefetch,
    /// The next minute is near.
    Early,
    /// Tokens go back, debts are told.
    Settle,
}

/// A call to be made now, exactly once.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// To hand back with the answer.
    pub id: CallId,
    /// What to ask.
    pub request: LeaseRequest,
}

/// The requests that wait for this subject.
#[derive(Debug, Clone, Copy, Default)]
pub struct Waiting {
    /// Cost of the first in the queue; 0: nobody waits.
    pub first: u32,
    /// Cost of all.
    pub total: u32,
}

/// Why a call brought nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It was certainly not carried out: what it carried is still owed.
    NotDone,
    /// It may have been carried out. What it asked for, gave back and debited is forgotten: a return that counts twice would
    /// admit too much, a debit that counts twice would charge for nothing.
    Unknown,
}

/// A call that has not been answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outstanding {
    id: CallId,
    sent: Mono,
    purpose: Purpose,
    /// The cost that a refusal of this call is about.
    cost: u32,
    request: LeaseRequest,
}

impl Outstanding {
    pub(super) fn giving_back(&self) -> Option<(Minute, u32)> {
        self.request.give_back
    }

    /// All but the number of the call.
    #[cfg(test)]
    pub(super) fn without_id(&self) -> (Mono, Purpose, u32, LeaseRequest) {
        (self.sent, self.purpose, self.cost, self.request)
    }
}

/// How deadlines are made. Only the first is right; the others are the negative controls of the simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    Correct,
    #[cfg(test)]
    FromReceive,
    #[cfg(test)]
    Late(u64),
}

impl Rule {
    /// The first instant at which a token must no longer be spent whose window has `left` to run by the store's clock.
    #[cfg_attr(not(test), expect(unused_variables, reason = "only the wrong rules look at it"))]
    fn deadline(self, sent: Mono, received: Mono, left: u64) -> Mono {
        match self {
            Self::Correct => Mono(sent.0 + left - left.div_ceil(DRIFT)),
            #[cfg(test)]
            Self::FromReceive => Mono(received.0 + left + left / DRIFT),
            #[cfg(test)]
            Self::Late(by) => Mono(sent.0 + left + by),
        }
    }
}

impl SubjectLease {
    /// Whether a call is due. There is never more than one at a time.
    pub fn wants_call(&self, now: Mono, waiting: Waiting) -> Option<Purpose> {
        if self.call.is_some() {
            return None;
        }
        let tokens = self.grant.map_or(0, |stash| stash.tokens);
        let asks = !self.stopped && now >= self.retry_at;
        if asks && waiting.first > tokens && self.denial(now, waiting.first).is_none() {
            return Some(Purpose::Refill);
        }
        if self.return_due.is_some_and(|due| now >= due) {
            return Some(Purpose::Settle);
        }
        if !asks {
            return None;
        }
        let stash = self.grant.as_ref()?;
        if self.size > 1
            && tokens <= self.low_mark
            && now >= self.single_until
            && self.denied.is_none_or(|denial| now >= denial.until)
            && self.lease_size(now) > 1
        {
            return Some(Purpose::Prefetch);
        }
        if now >= self.early_at
            && self.early.is_none()
            && self.early_asked != stash.minute + 1
            && self.demand.milli_per_second(now) >= EARLY_RATE
        {
            return Some(Purpose::Early);
        }
        None
    }

    /// When to ask [`Self::wants_call`] again although nothing happened.
    pub fn retry_at(&self) -> Mono {
        self.retry_at
    }

    /// Makes the call that is due. A `probe` (the store was last seen down) carries nothing that may not be lost.
    pub fn start_call(&mut self, now: Mono, purpose: Purpose, waiting: Waiting, probe: bool) -> Call {
        let clock_minute = self.clock.map(|clock| clock.minute(now));
        let target = match purpose {
            Purpose::Early => self.grant.map(|stash| stash.minute + 1),
            _ => None,
        };
        let tokens = self.grant.map_or(0, |stash| stash.tokens);
        let (want, need) = match purpose {
            Purpose::Refill => {
                let need = waiting.first.saturating_sub(tokens).max(1);
                (self.lease_size(now).max(waiting.total.saturating_sub(tokens)).max(need), need)
            }
            Purpose::Prefetch => (self.lease_size(now), 1),
            Purpose::Early => (self.demand.within(now, EARLY_MICROS).max(1), 1),
            Purpose::Settle => (0, 0),
        };
        let minute = target.or(clock_minute).unwrap_or_default();
        let first = want > 0 && self.counted.is_none_or(|counted| counted < minute);
        let (give_back, debit) = if probe { (None, None) } else { (self.owed.take_one(), self.debts.take_one()) };
        if self.owed.is_empty() && self.debts.is_empty() {
            self.return_due = None;
        }
        if purpose == Purpose::Early {
            self.early_asked = minute;
        }
        let request = LeaseRequest {
            target,
            want,
            need,
            limits: self.limits,
            first,
            give_back,
            debit,
            seen: self.seen_of(minute),
        };
        self.calls_made += 1;
        let id = CallId(self.calls_made);
        let cost = need.saturating_add(if purpose == Purpose::Refill { tokens } else { 0 });
        self.call = Some(Outstanding { id, sent: now, purpose, cost, request });
        Call { id, request }
    }

    /// The store answered. `jitter` is any number: it places this replica's early lease. Answers of calls that are not out any
    /// more, duplicates among them, change nothing.
    pub fn on_reply(&mut self, received: Mono, id: CallId, reply: &LeaseReply, jitter: u64) {
        let Some(call) = self.call.filter(|call| call.id == id) else { return };
        self.call = None;
        if self.local.take().is_some() {
            // What was shown was this replica's share; from here on it is the truth again.
            self.shown = Shown::default();
        }
        self.jitter = jitter % EARLY_SPAN_MICROS;
        if call.request.first {
            self.counted = Some(reply.minute);
        }
        self.clock = Some(StoreClock::heard(received, reply.now_micros));
        let unrepaired = self.knows_more_than(reply);
        self.remember(reply.seen);
        if unrepaired && reply.granted > 0 {
            // These tokens may be among those of before: they are neither spent nor given back. The next call tells more.
            return;
        }
        let deadline = self.rule.deadline(call.sent, received, end_of(reply.minute).saturating_sub(reply.now_micros));
        let until_start = start_of(reply.minute).saturating_sub(reply.now_micros);
        if call.request.limits != self.limits {
            // Granted under limits that are no longer in force.
            self.owe(reply.minute, reply.granted, received);
            return;
        }
        if until_start > 0 {
            self.deposit_early(received, reply, until_start, deadline);
            return;
        }
        if self.known.is_none_or(|known| known.minute <= reply.minute) {
            // An answer to a call that only returns does not say how many replicas are active.
            let active = if reply.active == 0 { self.known.map_or(1, |known| known.active) } else { reply.active };
            self.known = Some(Known { active, ..Known::of(reply) });
        }
        self.deposit(received, reply, deadline);
        if reply.granted > 0 {
            self.soft = None;
            self.keep_only_what_waits(received, call, reply);
        } else if call.purpose != Purpose::Settle && call.purpose != Purpose::Early {
            self.on_denial(received, call.cost, reply, deadline);
        }
    }

    /// No answer will come.
    pub fn on_failure(&mut self, now: Mono, id: CallId, failure: Failure) {
        let Some(call) = self.call.filter(|call| call.id == id) else { return };
        self.call = None;
        if failure == Failure::NotDone {
            if let Some((minute, tokens)) = call.request.give_back {
                self.owe(minute, tokens, now.plus(RETURN_WITHIN));
            }
            if let Some((minute, tokens)) = call.request.debit {
                self.debts.add(minute, tokens);
                self.return_due.get_or_insert(now.plus(RETURN_WITHIN));
            }
        }
        if self.stopped {
            self.settle_at_once(now);
        }
    }

    /// Whether a call is out.
    pub fn is_asking(&self) -> bool {
        self.call.is_some()
    }

    /// Whether a ledger that lost its memory answered without having been repaired: the call told it of another minute than the
    /// one that the store was in by then.
    fn knows_more_than(&self, reply: &LeaseReply) -> bool {
        let seen = self.seen_of(reply.minute);
        let before = |granted: u32| granted.saturating_sub(reply.granted);
        before(reply.seen.minute_granted) < seen.minute_granted || before(reply.seen.day_granted) < seen.day_granted
    }

    fn deposit_early(&mut self, received: Mono, reply: &LeaseReply, until_start: u64, deadline: Mono) {
        let start = Mono(received.0 + until_start + until_start.div_ceil(DRIFT));
        if self.stopped {
            self.owe(reply.minute, reply.granted, received);
        } else if reply.granted > 0 {
            let stash = Stash { minute: reply.minute, tokens: reply.granted, start, deadline, known: Known::of(reply) };
            self.early = Some(stash);
        }
    }

    /// Puts tokens of the store's current minute into the stash.
    fn deposit(&mut self, received: Mono, reply: &LeaseReply, deadline: Mono) {
        if self.grant.is_some_and(|stash| stash.minute < reply.minute)
            && let Some(over) = self.grant.take()
        {
            self.owe(over.minute, over.tokens, received.plus(RETURN_WITHIN));
        }
        let too_late = received >= deadline || self.grant.is_some_and(|stash| stash.minute > reply.minute);
        if self.stopped || too_late {
            self.owe(reply.minute, reply.granted, received);
            return;
        }
        // The store itself says that this minute has begun: an early lease of it needs no further margin.
        let early = self.early.take_if(|stash| stash.minute <= reply.minute);
        let begun = early.filter(|stash| stash.minute == reply.minute).map_or(0, |stash| stash.tokens);
        if let Some(over) = early.filter(|stash| stash.minute < reply.minute) {
            // Its whole minute passed unnoticed: the process was suspended.
            self.owe(over.minute, over.tokens, received.plus(RETURN_WITHIN));
        }
        let mut stash = self.grant.take().filter(|stash| stash.minute == reply.minute).unwrap_or(Stash {
            minute: reply.minute,
            tokens: 0,
            start: received,
            deadline,
            known: Known::of(reply),
        });
        stash.tokens = stash.tokens.saturating_add(reply.granted).saturating_add(begun);
        // Both are safe; a fresher answer left less room for drift.
        stash.deadline = stash.deadline.max(deadline);
        stash.known = Known::of(reply);
        self.early_at = Mono(stash.deadline.0.saturating_sub(self.jitter));
        if reply.granted > 0 {
            self.resize(received, if reply.scarce { 1 } else { stash.tokens });
        }
        self.grant = Some(stash);
    }

    /// Notes how large the stash is now, and the mark max(0.3·n, λ·6 ms) below which it is low.
    pub(super) fn resize(&mut self, now: Mono, size: u32) {
        self.size = size;
        self.low_mark = ((u64::from(size) * 3 / 10) as u32).max(self.demand.within(now, PREFETCH_MICROS));
    }

    /// A grant that was on its way when the recall came goes back too, but for the request it was asked for.
    fn keep_only_what_waits(&mut self, received: Mono, call: Outstanding, reply: &LeaseReply) {
        let recalled_meanwhile = received < self.single_until && call.sent < self.recalled_at();
        let Some(stash) = &mut self.grant else { return };
        if recalled_meanwhile && stash.tokens > call.request.need {
            let surplus = stash.tokens - call.request.need;
            stash.tokens = call.request.need;
            let minute = reply.minute;
            self.owe(minute, surplus, received);
        }
    }

    pub(super) fn recalled_at(&self) -> Mono {
        Mono(self.single_until.0.saturating_sub(super::SINGLE_AFTER_RECALL.as_micros() as u64))
    }

    fn on_denial(&mut self, received: Mono, cost: u32, reply: &LeaseReply, deadline: Mono) {
        if reply.soft {
            let since =
                self.soft.filter(|soft| received.since(soft.last) < SOFT_MEMORY).map_or(received, |soft| soft.since);
            self.soft = Some(Soft { since, last: received });
            if received.since(since) < SOFT_FOR {
                self.retry_at = received.plus(SOFT_RETRY);
                return;
            }
        }
        self.soft = None;
        let mut until = deadline;
        if self.second_look != reply.minute {
            self.second_look = reply.minute;
            until = until.min(received.plus(SECOND_LOOK_AFTER));
        }
        self.denied = Some(Denial { minute: reply.minute, until, cost: cost.max(1) });
    }

    /// n = min(λ·min(1 s, 0.9·time left), max(1, remaining/(2·active))); up to 20 tokens for 2 s instead of 1 s.
    fn lease_size(&self, now: Mono) -> u32 {
        if now < self.single_until {
            return 1;
        }
        let left = self.clock.map_or(LEASE_MICROS, |clock| end_of(clock.minute(now)) - clock.micros(now));
        let traffic = |micros: u64| self.demand.within(now, micros.min(left * 9 / 10));
        let traffic = traffic(LEASE_MICROS).max(traffic(SLOW_LEASE_MICROS).min(SLOW_LEASE));
        let share = match (self.known, self.clock) {
            (Some(known), Some(clock)) if known.minute == clock.minute(now) => {
                (known.minute_left.min(known.day_left) / (2 * known.active)).max(1)
            }
            _ => u32::MAX,
        };
        traffic.min(share)
    }

    fn remember(&mut self, seen: Seen) {
        let slot = &mut self.seen[(seen.minute % 2) as usize];
        if slot.minute == seen.minute {
            slot.minute_granted = slot.minute_granted.max(seen.minute_granted);
            slot.day_granted = slot.day_granted.max(seen.day_granted);
        } else {
            *slot = seen;
        }
    }

    /// What to repair a forgetful ledger with when asking about `minute`.
    fn seen_of(&self, minute: Minute) -> Seen {
        let day = day_of(minute);
        let of_day = |seen: &&Seen| seen.day == day;
        let day_granted = self.seen.iter().filter(of_day).map(|seen| seen.day_granted).max().unwrap_or(0);
        let minute_granted = self.seen.iter().find(|seen| seen.minute == minute).map_or(0, |seen| seen.minute_granted);
        Seen { minute, minute_granted, day, day_granted }
    }
}
