//! What must hold after every event.

use super::world::{Stage, World};
use super::*;
use crate::policy::lease::windows::day_of;

/// The promises, by the numbers of the design.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Property {
    /// I1: no more is admitted in a minute than its limit.
    MinuteLimit,
    /// I2: nor in a day.
    DayLimit,
    /// I3: a request is admitted inside the minute of its token, by the store's clock.
    OwnMinute,
    /// I4: never more is returned than granted, and never more is out than the limit.
    Ledger,
    /// I5, I6: every token that the ledger counts as out was spent, is in hand, is on its way or was lost, and in one place.
    Accounted,
    /// I7: answers of calls that are not out add nothing.
    Ignored,
    /// I10: a ledger that lost its memory knows as much as every replica that called it since.
    Repaired,
    /// I11: a refusal is looked at once more, then the store is left alone until the minute is over.
    Silence,
    /// I12: Remaining does not rise within a minute, and is 0 when refused.
    Remaining,
    /// I15: a replica that was shut down keeps nothing.
    NothingKept,
    /// There is never a second call while one is out, and none for nothing.
    Calls,
    /// A request waits for a call that is out or for an instant that comes.
    NobodyForgotten,
}

/// The first promise that was broken.
#[derive(Debug)]
pub(super) struct Findings {
    only: Option<Property>,
    pub(super) broken: Option<(Property, String)>,
}

impl Findings {
    pub(super) fn new(only: Option<Property>) -> Self {
        Self { only, broken: None }
    }

    pub(super) fn require(&mut self, property: Property, holds: bool, what: impl FnOnce() -> String) {
        if !holds && self.broken.is_none() && self.only.is_none_or(|only| only == property) {
            self.broken = Some((property, what()));
        }
    }
}

impl World {
    /// The promises about a state; those about an event are checked where it happens.
    pub(super) fn check(&self, scenario: &Scenario, found: &mut Findings) {
        let limits = scenario.limits;
        // What one replica spent before the store forgot, another that calls first cannot tell it.
        let unknowable = self.left.losses < scenario.budget.losses && scenario.callers > 1;
        let [first_day, last_day] = [scenario.first, scenario.first + MINUTES as Minute - 1].map(day_of);
        for day in first_day..=last_day {
            let (mut spent_of_day, mut out_of_day) = (0, 0);
            for minute in scenario.minutes().filter(|minute| day_of(*minute) == day) {
                let spent = self.spent[scenario.index(minute)];
                found.require(Property::MinuteLimit, unknowable || spent <= limits.requests_per_minute, || {
                    format!("{spent} admitted in minute {}", scenario.index(minute))
                });
                let out = spent + self.unspent(scenario, minute);
                let counters = self.ledger.of_minute(minute);
                self.check_window(scenario, counters, limits.requests_per_minute, out, found);
                spent_of_day += spent;
                out_of_day += out;
            }
            found.require(Property::DayLimit, unknowable || spent_of_day <= limits.requests_per_day, || {
                format!("{spent_of_day} admitted on day {}", day - first_day)
            });
            self.check_window(scenario, self.ledger.of_day(day), limits.requests_per_day, out_of_day, found);
        }
        for replica in self.replicas.iter().filter(|replica| replica.lease.stopped && !replica.lease.is_asking()) {
            let lease = &replica.lease;
            let kept = lease.unspent() > 0 || !lease.owed.is_empty();
            found.require(Property::NothingKept, !kept, || format!("kept after the end: {lease:?}"));
        }
    }

    fn check_window(
        &self,
        scenario: &Scenario,
        counters: Option<(u32, u32)>,
        limit: u32,
        out: u32,
        found: &mut Findings,
    ) {
        let Some((granted, returned)) = counters else { return };
        found.require(Property::Ledger, returned <= granted, || format!("{returned} returned of {granted}"));
        if self.left.losses == scenario.budget.losses {
            let charged = granted.saturating_sub(returned);
            found.require(Property::Ledger, charged <= limit, || format!("{charged} of {limit} are out"));
            found.require(Property::Accounted, charged == out, || format!("{charged} are charged, {out} known of"));
        }
    }

    /// Tokens of a minute that were granted and neither spent nor credited: in hand, owed, on their way or lost.
    fn unspent(&self, scenario: &Scenario, minute: Minute) -> u32 {
        let of_minute = |tokens: Option<(Minute, u32)>| tokens.filter(|(of, _)| *of == minute).map_or(0, |(_, n)| n);
        let held: u32 = self.replicas.iter().map(|replica| replica.held(minute)).sum();
        let on_the_way: u32 = self
            .messages
            .iter()
            .map(|message| match &message.stage {
                Stage::Sent => of_minute(message.call.request.give_back),
                Stage::Executed(reply) if message.awaited => of_minute(Some((reply.minute, reply.granted))),
                Stage::Executed(_) | Stage::Delivered(_) => 0,
            })
            .sum();
        held + on_the_way + self.lost[scenario.index(minute)]
    }
}
