//! The scenarios: small worlds, each about one kind of trouble, that must hold in every order of events.

use super::search::{Explored, explore};
use super::*;

/// A minute in the middle of a day.
const NOON: Minute = 20_000 * 1_440 + 720;
/// The last minute of a day.
const BEFORE_MIDNIGHT: Minute = 20_000 * 1_440 + 1_439;
/// In tokens per 1,000 seconds: too few for leases of several tokens, and enough for early ones and for fetching ahead.
const QUIET: u64 = 1_000;
const BUSY: u64 = 50_000;
/// Shortly before the end of a minute, in the margin after the deadlines, and in the next one before and after early leases begin.
const AROUND_A_MINUTE: &[u64] = &[MINUTE - 300_000, MINUTE - 10, MINUTE, MINUTE + 1_000];
/// The same for leases as old as the minute, whose deadlines need the largest margin.
const A_WHOLE_MINUTE: &[u64] = &[0, MINUTE - 10, MINUTE, MINUTE + 1_000];
const TWO_MINUTES: &[u64] = &[MINUTE - 300_000, MINUTE - 10, MINUTE, 2 * MINUTE - 300_000, 2 * MINUTE - 10, 2 * MINUTE];
/// The pace of a refusal: soft, asked again, hard, looked at again, left alone, over.
const A_REFUSAL: &[u64] = &[0, 3_000, 16_000, 320_000, 700_000, MINUTE - 10, MINUTE];

/// At one instant, and nothing goes wrong.
pub(super) const CALM: Scenario = Scenario {
    limits: limits(2, 100),
    cost: 1,
    first: NOON,
    instants: &[0],
    edges: None,
    drift: [400, -400],
    rate: [QUIET; REPLICAS],
    budget: Budget {
        requests: 4,
        delays: 0,
        leaves: 0,
        put_backs: 0,
        give_ups: 0,
        repeats: 0,
        refusals: 0,
        idle_returns: 0,
        crashes: 0,
        stops: 0,
        losses: 0,
    },
    callers: REPLICAS,
    rule: Rule::Correct,
    mistake: Mistake::None,
    only: None,
};
const CALM_BUDGET: Budget = CALM.budget;
/// Leases of several tokens, which can be recalled.
const HOARDING: Scenario = Scenario { limits: limits(4, 100), rate: [BUSY; REPLICAS], ..CALM };
/// Early leases, deadlines and drifting clocks, late answers.
pub(super) const CHANGE_OF_MINUTE: Scenario = Scenario {
    limits: limits(3, 5),
    rate: [BUSY; REPLICAS],
    instants: AROUND_A_MINUTE,
    budget: Budget { requests: 3, delays: 1, ..CALM_BUDGET },
    ..CALM
};
const CHANGE_OF_DAY: Scenario = Scenario { first: BEFORE_MIDNIGHT, limits: limits(3, 4), ..CHANGE_OF_MINUTE };

const fn limits(requests_per_minute: u32, requests_per_day: u32) -> QuotaLimits {
    QuotaLimits { requests_per_minute, requests_per_day }
}

/// Explores all of it. `at_least` so many states must have been reached: less would mean that the search does not search.
fn holds(name: &str, scenario: Scenario, at_least: usize) {
    let Explored { states, events, broken } = explore(&scenario);
    println!("{name}: {states} states, {events} events");
    if let Some(broken) = broken {
        panic!("{name}: {:?}: {}\n{}", broken.property, broken.what, broken.story);
    }
    assert!(states >= at_least, "{name}: only {states} states");
}

#[test]
fn no_call_that_is_lost_late_repeated_or_refused_admits_beyond_a_limit() {
    let budget = Budget { give_ups: 1, repeats: 1, refusals: 1, leaves: 1, ..CALM_BUDGET };
    holds("calls, single tokens", Scenario { budget, ..CALM }, 30_000);
    let budget = Budget { requests: 3, leaves: 0, ..budget };
    holds("calls, leases of several tokens", Scenario { budget, ..HOARDING }, 18_000);
}

#[test]
fn requests_that_go_away_and_idle_stashes_leave_no_token_behind() {
    let budget = Budget { requests: 3, leaves: 1, put_backs: 1, idle_returns: 1, ..CALM_BUDGET };
    holds("gone, at one instant", Scenario { budget, ..HOARDING }, 25_000);
    let budget = Budget { requests: 2, put_backs: 1, ..CHANGE_OF_MINUTE.budget };
    holds("gone, around a minute", Scenario { budget, ..CHANGE_OF_MINUTE }, 10_000);
    let budget = Budget { requests: 4, ..budget };
    let last_of_day = Scenario { limits: limits(3, 3), instants: &[MINUTE - 300_000], ..CHANGE_OF_MINUTE };
    holds("gone, the last of a day", Scenario { budget, ..last_of_day }, 7_000);
}

#[test]
fn tokens_are_spent_in_their_minute_however_clocks_drift_and_answers_lag() {
    holds("deadlines, around a minute", CHANGE_OF_MINUTE, 18_000);
    let budget = Budget { delays: 2, ..CHANGE_OF_MINUTE.budget };
    holds("deadlines, a whole minute", Scenario { instants: A_WHOLE_MINUTE, budget, ..CHANGE_OF_MINUTE }, 40_000);
    holds("deadlines, at every deadline", Scenario { edges: Some(5), ..CHANGE_OF_MINUTE }, 15_000);
    let instants = &[MINUTE - 300_000, 2 * MINUTE];
    holds("deadlines, a minute slept through", Scenario { instants, budget, ..CHANGE_OF_DAY }, 12_000);
}

#[test]
fn minutes_share_their_day_and_a_new_day_begins_with_nothing_spent() {
    let budget = Budget { delays: 0, ..CHANGE_OF_DAY.budget };
    let one_day = Scenario { limits: limits(3, 4), instants: TWO_MINUTES, budget, ..CHANGE_OF_MINUTE };
    holds("days, two minutes", one_day, 15_000);
    let budget = Budget { leaves: 1, ..CHANGE_OF_DAY.budget };
    holds("days, midnight", Scenario { budget, ..CHANGE_OF_DAY }, 50_000);
}

#[test]
fn a_refusal_is_looked_at_once_more_and_then_costs_no_call_until_the_minute_ends() {
    let refused = Scenario { instants: A_REFUSAL, ..CALM };
    holds("refused after a recall", Scenario { limits: limits(4, 100), rate: [BUSY, QUIET], ..refused }, 50_000);
    let budget = Budget { requests: 3, delays: 1, ..CALM_BUDGET };
    holds("refused while a grant is under way", Scenario { instants: &[0, 1_000], budget, ..HOARDING }, 2_500);
    let budget = Budget { requests: 5, ..CALM_BUDGET };
    holds("refused without one", Scenario { budget, ..refused }, 20_000);
}

#[test]
fn a_crash_loses_tokens_and_invents_none() {
    let budget = Budget { crashes: 1, ..CALM_BUDGET };
    holds("crash, at one instant", Scenario { budget, ..HOARDING }, 8_000);
    let budget = Budget { requests: 2, crashes: 1, ..CHANGE_OF_DAY.budget };
    holds("crash, around midnight", Scenario { budget, ..CHANGE_OF_DAY }, 8_000);
}

#[test]
fn after_a_shut_down_no_unspent_token_is_charged() {
    let budget = Budget { requests: 3, put_backs: 1, refusals: 1, stops: 2, ..CALM_BUDGET };
    holds("shut down, at one instant", Scenario { budget, ..HOARDING }, 30_000);
    let budget = Budget { requests: 2, delays: 1, put_backs: 0, refusals: 0, ..budget };
    holds("shut down, around a minute", Scenario { budget, ..CHANGE_OF_MINUTE }, 20_000);
}

#[test]
fn a_ledger_that_lost_its_memory_learns_from_its_callers_what_they_had() {
    let budget = Budget { requests: 2, losses: 1, ..CHANGE_OF_MINUTE.budget };
    holds("lost memory, two replicas", Scenario { budget, ..CHANGE_OF_MINUTE }, 12_000);
    // One replica alone knows everything: even now nothing is admitted twice.
    let budget = Budget { requests: 5, ..budget };
    holds("lost memory, one replica", Scenario { callers: 1, budget, ..CHANGE_OF_MINUTE }, 18_000);
    let budget = Budget { requests: 4, put_backs: 1, ..budget };
    holds("lost memory, one replica around midnight", Scenario { callers: 1, budget, ..CHANGE_OF_DAY }, 25_000);
}

#[test]
fn requests_that_cost_more_are_charged_in_full_or_not_at_all() {
    let costly = Scenario { limits: limits(5, 7), cost: 2, ..CHANGE_OF_MINUTE };
    let budget = Budget { requests: 3, give_ups: 1, repeats: 1, ..CALM_BUDGET };
    holds("cost 2, at one instant", Scenario { instants: &[0], budget, ..costly }, 1_200);
    holds("cost 2, around a minute", Scenario { budget: Budget { requests: 2, ..costly.budget }, ..costly }, 2_000);
}
