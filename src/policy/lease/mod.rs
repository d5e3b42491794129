//! The replica's side of the lease protocol: one quota subject on one replica, as a pure state machine.
//!
//! The store hands out tokens that may be spent inside **one minute of its own clock** ([`super::quota::Ledger`] charges minute
//! and day for them at once). A replica spends them without asking again, so Σ admitted ≤ limit holds whatever crashes, is
//! late or is lost: at worst tokens are forgotten, never invented.
//!
//! | state | is | leaves by |
//! |---|---|---|
//! | cold | no tokens, nothing known | a request must wait for a call |
//! | asking | one call is out; there is never a second | the answer, or the end of patience: its tokens are forgotten |
//! | granted | a [`Stash`] with a deadline | spending, the deadline, a recall |
//! | prefetch | granted, and a call is out because the stash runs low | as asking; requests go on meanwhile |
//! | early | a second stash, for the next minute, so that nobody waits at :00 | its start |
//! | recalled | everything went back; single tokens for 100 ms | time |
//! | lapsed | unspent tokens are owed to the day | the next call carries them, or one of its own within 2 s |
//! | denied | refuses locally until the minute ends, without calls but for one second look (and an early lease) | the deadline, or other limits |
//!
//! The caller feeds in requests ([`SubjectLease::take`]), answers ([`SubjectLease::on_reply`]) and time, and after each input asks
//! [`SubjectLease::wants_call`] whether a call is due; [`SubjectLease::start_call`] makes it. Nothing here sends, sleeps or
//! reads a clock. Deadlines come from the monotonic instant at which the call was **sent**: the store's clock can only have
//! been later than that when it answered. 500 ppm cover the drift between the two clocks for the rest of the minute.

mod call;
mod demand;
mod outage;
mod windows;

#[cfg(test)]
mod model;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::time::Duration;

use super::instant::Mono;
use super::key::QuotaLimits;
use super::quota::{Minute, QuotaState, Seen, Violated};

pub use call::{Call, CallId, Failure, Purpose, Waiting};
pub use outage::Outage;
pub(crate) use windows::quota_state;

use call::{Outstanding, Rule};
use demand::Demand;
use outage::{Alone, LocalShare};
use windows::{ByMinute, Known, Shown, StoreClock, day_of};

/// After a recall only single tokens are asked for, for this long.
const SINGLE_AFTER_RECALL: Duration = Duration::from_millis(100);
/// Lapsed tokens go back with the next call, or by themselves after this long.
const RETURN_WITHIN: Duration = Duration::from_secs(2);
/// While recalls cannot be heard, an unused stash is given back after this long.
const IDLE_RETURN: Duration = Duration::from_millis(500);
/// A subject without tokens and debts is forgotten after this long. Longer than a minute: what was seen repairs a ledger.
const FORGET_AFTER: Duration = Duration::from_secs(150);

/// Tokens of one minute.
#[derive(Debug, Clone, Copy, Hash)]
struct Stash {
    minute: Minute,
    tokens: u32,
    /// Not to be spent before.
    start: Mono,
    /// Not to be spent from here on.
    deadline: Mono,
    known: Known,
}

/// A hard refusal by the store.
#[derive(Debug, Clone, Copy, Hash)]
struct Denial {
    minute: Minute,
    until: Mono,
    /// Requests that cost less may still find something.
    cost: u32,
}

/// Refusals that returned tokens may undo.
#[derive(Debug, Clone, Copy, Hash)]
struct Soft {
    since: Mono,
    last: Mono,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It may pass; its tokens are spent. The minute they belong to, for [`SubjectLease::put_back`].
    Admit(QuotaState, Minute),
    /// A window is used up; nothing was charged.
    Deny(QuotaState),
    /// Only the store can tell.
    Wait,
}

/// One quota subject on one replica. See the module.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct SubjectLease {
    limits: QuotaLimits,
    demand: Demand,
    clock: Option<StoreClock>,
    known: Option<Known>,
    shown: Shown,
    grant: Option<Stash>,
    early: Option<Stash>,
    /// Tokens in the stash right after the last deposit: the `n` that prefetching is measured by.
    size: u32,
    /// At or below so many tokens the next lease is asked for.
    low_mark: u32,
    /// From when in this minute an early lease may be asked for: this long before the deadline, to not ask all at once.
    early_at: Mono,
    jitter: u64,
    /// The minute for which an early lease was last asked.
    early_asked: Minute,
    denied: Option<Denial>,
    /// The minute in which a denial was already looked at twice.
    second_look: Minute,
    soft: Option<Soft>,
    retry_at: Mono,
    single_until: Mono,
    owed: ByMinute,
    return_due: Option<Mono>,
    debts: ByMinute,
    local: Option<LocalShare>,
    alone: Alone,
    seen: [Seen; 2],
    /// The last minute in which this replica has counted itself active.
    counted: Option<Minute>,
    call: Option<Outstanding>,
    calls_made: u64,
    last_used: Mono,
    stopped: bool,
    rule: Rule,
}

impl SubjectLease {
    /// A subject that nothing is known of yet.
    pub fn new(now: Mono, limits: QuotaLimits) -> Self {
        Self {
            limits,
            demand: Demand::default(),
            clock: None,
            known: None,
            shown: Shown::default(),
            grant: None,
            early: None,
            size: 0,
            low_mark: 0,
            early_at: Mono(0),
            jitter: 0,
            early_asked: 0,
            denied: None,
            second_look: 0,
            soft: None,
            retry_at: Mono(0),
            single_until: Mono(0),
            owed: ByMinute::default(),
            return_due: None,
            debts: ByMinute::default(),
            local: None,
            alone: Alone::default(),
            seen: [Seen::default(); 2],
            counted: None,
            call: None,
            calls_made: 0,
            last_used: now,
            stopped: false,
            rule: Rule::Correct,
        }
    }

    /// A request arrives: `limits` are those in force for its key, `cost` what it needs at once. It is charged in full or not
    /// at all.
    pub fn take(&mut self, now: Mono, cost: u32, limits: QuotaLimits) -> Decision {
        self.note_request(now, cost);
        self.decide(now, cost, limits)
    }

    /// A request arrives that has to queue behind others: it counts as demand, nothing else.
    pub fn note_request(&mut self, now: Mono, cost: u32) {
        self.last_used = now;
        self.demand.record(now, cost);
    }

    /// Decides a request that was noted before: the first look of [`Self::take`], or again after an answer.
    pub fn decide(&mut self, now: Mono, cost: u32, limits: QuotaLimits) -> Decision {
        if limits != self.limits {
            self.change_limits(now, limits);
        }
        self.advance(now);
        if let Some(stash) = &mut self.grant
            && stash.tokens >= cost
        {
            stash.tokens -= cost;
            let minute = stash.minute;
            return Decision::Admit(self.state(now, Violated::default()), minute);
        }
        match self.denial(now, cost) {
            Some(denial) => Decision::Deny(self.refusal(now, denial, cost)),
            None => Decision::Wait,
        }
    }

    /// An admitted request was never carried out: nobody was there any more to hear of it.
    pub fn put_back(&mut self, now: Mono, minute: Minute, cost: u32) {
        match &mut self.grant {
            Some(stash) if stash.minute == minute => stash.tokens += cost,
            // After the end there is no later call to go along with.
            _ => self.owe(minute, cost, if self.stopped { now } else { now.plus(RETURN_WITHIN) }),
        }
    }

    /// Both windows, without charging anything. `None` before the store has answered in the current minute.
    pub fn peek(&mut self, now: Mono, limits: QuotaLimits) -> Option<QuotaState> {
        if limits != self.limits {
            self.change_limits(now, limits);
        }
        self.advance(now);
        let current = self.clock?.minute(now);
        self.known.filter(|known| known.minute == current)?;
        Some(match self.denial(now, 1) {
            Some(denial) => self.refusal(now, denial, 1),
            None => self.state(now, Violated::default()),
        })
    }

    /// The store asks for the tokens of a minute: others need them more.
    pub fn on_recall(&mut self, now: Mono, minute: Minute) {
        self.advance(now);
        self.single_until = now.plus(SINGLE_AFTER_RECALL);
        if self.grant.is_some_and(|stash| stash.minute == minute) {
            self.surrender_grant(now);
        }
    }

    /// Time passes: tokens lapse; an idle stash goes back while recalls cannot be heard.
    pub fn tick(&mut self, now: Mono, recalls_are_heard: bool) {
        self.advance(now);
        if !recalls_are_heard && now.since(self.last_used) >= IDLE_RETURN {
            self.surrender_grant(now);
        }
    }

    /// Gives everything back and asks for nothing any more. The tokens leave with the calls that follow.
    pub fn shut_down(&mut self, now: Mono) {
        self.stopped = true;
        self.surrender_grant(now);
        self.surrender_early(now);
        self.settle_at_once(now);
    }

    /// Nothing would be lost by forgetting this subject.
    pub fn is_idle(&self, now: Mono) -> bool {
        let holds = self.grant.is_some_and(|stash| stash.tokens > 0) || self.early.is_some();
        !holds
            && self.owed.is_empty()
            && self.debts.is_empty()
            && self.call.is_none()
            && (self.stopped || now.since(self.last_used) >= FORGET_AFTER)
    }

    /// Tokens in hand.
    #[cfg(test)]
    fn unspent(&self) -> u32 {
        [self.grant, self.early].iter().flatten().map(|stash| stash.tokens).sum()
    }

    /// Lets tokens lapse and an early lease begin.
    fn advance(&mut self, now: Mono) {
        if self.grant.is_some_and(|stash| now >= stash.deadline)
            && let Some(over) = self.grant.take()
        {
            self.owe(over.minute, over.tokens, now.plus(RETURN_WITHIN));
        }
        if self.grant.is_none()
            && self.early.is_some_and(|stash| now >= stash.start)
            && let Some(begun) = self.early.take()
        {
            if now < begun.deadline {
                self.known = Some(begun.known);
                self.resize(now, begun.tokens);
                self.early_at = Mono(begun.deadline.0.saturating_sub(self.jitter));
                self.grant = Some(begun);
            } else {
                self.owe(begun.minute, begun.tokens, now.plus(RETURN_WITHIN));
            }
        }
    }

    fn denial(&self, now: Mono, cost: u32) -> Option<Denial> {
        self.denied.filter(|denial| now < denial.until && cost >= denial.cost)
    }

    /// A plan changed, or keys with different limits share the subject. Tokens that were granted under a larger limit must not
    /// be spent under a smaller one; the other way round they may.
    fn change_limits(&mut self, now: Mono, limits: QuotaLimits) {
        let lower = limits.requests_per_minute < self.limits.requests_per_minute
            || limits.requests_per_day < self.limits.requests_per_day;
        self.limits = limits;
        self.denied = None;
        self.soft = None;
        self.known = None;
        self.shown = Shown::default();
        if lower {
            self.surrender_grant(now);
            self.surrender_early(now);
        } else if let Some(stash) = &mut self.grant {
            // What is left under the new limit is not known; the old number is a lower bound.
            self.known = Some(stash.known);
        }
    }

    fn surrender_grant(&mut self, now: Mono) {
        if let Some(stash) = self.grant.take() {
            self.owe(stash.minute, stash.tokens, now);
        }
        // Nothing is fetched ahead until a request asks again.
        self.size = 0;
    }

    fn surrender_early(&mut self, now: Mono) {
        if let Some(stash) = self.early.take() {
            self.owe(stash.minute, stash.tokens, now);
        }
    }

    fn owe(&mut self, minute: Minute, tokens: u32, due: Mono) {
        if tokens > 0 {
            self.owed.add(minute, tokens);
            self.return_due = Some(self.return_due.map_or(due, |at| at.min(due)));
        }
    }

    /// What goes along with a later call usually: there may be none any more.
    fn settle_at_once(&mut self, now: Mono) {
        if !self.owed.is_empty() || !self.debts.is_empty() {
            self.return_due = Some(now);
        }
    }

    /// The windows that cannot bear this cost, as far as the replica knows.
    fn violated(&self, minute: Minute, cost: u32) -> Violated {
        let Some(known) = self.known.filter(|known| known.minute == minute) else {
            return Violated { minute: true, day: false };
        };
        let own = self.grant.map_or(0, |stash| stash.tokens);
        let day = known.day_left.saturating_add(own) < cost;
        let minute = known.minute_left.saturating_add(own) < cost;
        // Neither is short by now (tokens came back since): the denial stands until it is over, and a minute is what it lasts.
        Violated { minute: minute || !day, day }
    }

    /// Both windows for a request that is refused.
    fn refusal(&mut self, now: Mono, denial: Denial, cost: u32) -> QuotaState {
        let violated = self.violated(denial.minute, cost);
        let state = self.state(now, violated);
        if cost == 1 {
            self.shown.used_up(violated);
        }
        state
    }

    /// Remaining = left for anybody at the last answer + what this replica has in hand or on its way back.
    fn state(&mut self, now: Mono, violated: Violated) -> QuotaState {
        let minute = self
            .grant
            .map(|stash| stash.minute)
            .or_else(|| self.clock.map(|clock| clock.minute(now)))
            .unwrap_or_default();
        let micros = self.clock.map_or(0, |clock| clock.micros(now));
        let known = self.known.filter(|known| day_of(known.minute) == day_of(minute));
        let held = self.grant.map_or(0, |stash| stash.tokens);
        let minute_left = match known {
            Some(known) if known.minute == minute => known.minute_left,
            _ => self.limits.requests_per_minute,
        };
        let day_left = known.map_or(self.limits.requests_per_day, |known| known.day_left);
        let (mut own_minute, mut own_day) = (held, held.saturating_add(self.early.map_or(0, |stash| stash.tokens)));
        if !self.owed.is_empty() {
            own_minute = own_minute.saturating_add(self.owed.of(minute));
            own_day = own_day.saturating_add(self.owed.of_day(day_of(minute)));
        }
        if let Some((of, tokens)) = self.call.as_ref().and_then(Outstanding::giving_back) {
            own_minute = own_minute.saturating_add(if of == minute { tokens } else { 0 });
            own_day = own_day.saturating_add(if day_of(of) == day_of(minute) { tokens } else { 0 });
        }
        let remaining =
            self.shown.clamp(minute, minute_left.saturating_add(own_minute), day_left.saturating_add(own_day));
        quota_state(self.limits, minute, micros, remaining, violated)
    }
}
