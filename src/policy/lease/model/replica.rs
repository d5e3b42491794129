//! One replica: its lease, those who wait at it, and what an observer beside it remembers.

use std::hash::{Hash, Hasher};

use super::*;
use crate::policy::lease::demand::Demand;
use crate::policy::lease::windows::end_of;

#[derive(Debug, Clone)]
pub(super) struct Replica {
    pub(super) lease: SubjectLease,
    pub(super) queue: u32,
    /// A recall is on its way.
    pub(super) recall: Option<Minute>,
    /// The token of the last admission, as long as it may be put back.
    pub(super) admitted: Option<Minute>,
    pub(super) watch: Watch,
}

/// What the observer of one replica has seen since its start.
#[derive(Debug, Clone, Default)]
pub(super) struct Watch {
    /// The end of the minute last shown to a client, and the Remaining of both windows.
    shown: (u64, u32, u32),
    /// Hard refusals in a minute.
    refused: (Minute, u8),
    /// Nothing is to be asked for before.
    pub(super) silent_until: Mono,
    /// The highest counters in answers that arrived.
    told: [Seen; MINUTES],
}

impl Replica {
    pub(super) fn new(scenario: &Scenario, n: usize, truth: u64) -> Self {
        let now = scenario.mono(n, truth);
        let mut lease = SubjectLease { rule: scenario.rule, ..SubjectLease::new(now, scenario.limits) };
        lease.demand = Demand::steady(now, scenario.rate[n]);
        Self { lease, queue: 0, recall: None, admitted: None, watch: Watch::default() }
    }

    /// Tokens of a minute in hand or owed.
    pub(super) fn held(&self, minute: Minute) -> u32 {
        let stashes = [self.lease.grant, self.lease.early];
        let in_hand: u32 =
            stashes.iter().flatten().filter(|stash| stash.minute == minute).map(|stash| stash.tokens).sum();
        in_hand + self.lease.owed.of(minute)
    }

    /// Time has passed that makes a difference to this replica.
    pub(super) fn feels_time(&self, now: Mono, cost: u32) -> bool {
        let lease = &self.lease;
        lease.grant.is_some_and(|stash| now >= stash.deadline)
            || lease.early.is_some_and(|stash| now >= stash.start)
            || lease.wants_call(now, self.waiting(cost)).is_some()
    }

    pub(super) fn waiting(&self, cost: u32) -> Waiting {
        Waiting { first: self.queue.min(1) * cost, total: self.queue * cost }
    }
}

impl Watch {
    /// A client is shown both windows.
    pub(super) fn show(&mut self, state: &QuotaState, found: &mut Findings) {
        let (minute, day) = (state.minute.remaining, state.day.remaining);
        let (reset, minute_before, day_before) = self.shown;
        let rose = reset == state.minute.reset && (minute > minute_before || day > day_before);
        found.require(Property::Remaining, !rose, || format!("Remaining rose: {:?} to {minute}, {day}", self.shown));
        self.shown = (state.minute.reset, minute, day);
    }

    /// An answer arrives at the caller that waits for it.
    pub(super) fn hear(
        &mut self,
        scenario: &Scenario,
        sent: Mono,
        received: Mono,
        request: &LeaseRequest,
        reply: &LeaseReply,
    ) {
        if scenario.budget.losses > 0 {
            let told = &mut self.told[scenario.index(reply.minute)];
            told.minute_granted = told.minute_granted.max(reply.seen.minute_granted);
            told.day_granted = told.day_granted.max(reply.seen.day_granted);
        }
        let early = request.target.is_some();
        if early || request.want == 0 || reply.granted > 0 || reply.soft {
            return;
        }
        let before = if self.refused.0 == reply.minute { self.refused.1 } else { 0 };
        self.refused = (reply.minute, before.saturating_add(1).min(2));
        let left = end_of(reply.minute) - reply.now_micros;
        let deadline = Mono(sent.0 + left - left.div_ceil(2_000));
        let second_look = received.plus(Duration::from_millis(300));
        self.silent_until = if before == 0 { deadline.min(second_look) } else { deadline };
    }

    /// As a part of a state; `ahead` tells instants apart.
    pub(super) fn hash_with<H: Hasher>(&self, ahead: impl Fn(Mono) -> u64, state: &mut H) {
        (self.shown, self.refused, ahead(self.silent_until)).hash(state);
        for told in &self.told {
            (told.minute_granted, told.day_granted).hash(state);
        }
    }

    /// What this replica was told of a minute and of its day.
    pub(super) fn told(&self, scenario: &Scenario, minute: Minute) -> (u32, u32) {
        let day = windows::day_of(minute);
        let of_day = scenario.minutes().filter(|of| windows::day_of(*of) == day);
        let day_granted = of_day.map(|of| self.told[scenario.index(of)].day_granted).max();
        (self.told[scenario.index(minute)].minute_granted, day_granted.unwrap_or(0))
    }
}
