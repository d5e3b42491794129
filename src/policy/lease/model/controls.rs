//! Negative controls: each plants a mistake, and the search must find what it breaks. A search that finds nothing proves
//! nothing.

use super::scenarios::{CALM, CHANGE_OF_MINUTE};
use super::search::explore;
use super::*;

/// The search must find this promise broken, whatever else the mistake breaks before.
fn breaks(property: Property, scenario: Scenario) {
    let explored = explore(&Scenario { only: Some(property), ..scenario });
    let broken = explored.broken.unwrap_or_else(|| panic!("went unnoticed in {} states", explored.states));
    assert_eq!(broken.property, property);
    println!("{property:?} after {} states: {}\n{}", explored.states, broken.what, broken.story);
}

#[test]
fn a_deadline_from_the_instant_of_receipt_spends_tokens_of_a_minute_that_is_over() {
    breaks(Property::OwnMinute, Scenario { rule: Rule::FromReceive, ..CHANGE_OF_MINUTE });
}

#[test]
fn a_deadline_that_is_late_spends_tokens_of_a_minute_that_is_over() {
    breaks(Property::OwnMinute, Scenario { rule: Rule::Late(100_000), ..CHANGE_OF_MINUTE });
}

#[test]
fn a_deadline_without_a_margin_spends_tokens_of_a_minute_that_is_over_where_the_clock_is_slow() {
    breaks(Property::OwnMinute, Scenario { rule: Rule::Late(0), ..CHANGE_OF_MINUTE });
    let steady = Scenario { rule: Rule::Late(0), drift: [0, 0], ..CHANGE_OF_MINUTE };
    assert!(explore(&steady).broken.is_none(), "the drift alone makes it wrong");
}

#[test]
fn an_early_lease_that_is_spent_before_its_minute_is_found() {
    breaks(Property::OwnMinute, Scenario { mistake: Mistake::SpendEarly, ..CHANGE_OF_MINUTE });
}

#[test]
fn an_early_lease_that_starts_without_a_margin_is_spent_before_its_minute_where_the_clock_is_fast() {
    breaks(Property::OwnMinute, Scenario { mistake: Mistake::StartExactly, ..CHANGE_OF_MINUTE });
    let steady = Scenario { mistake: Mistake::StartExactly, drift: [0, 0], ..CHANGE_OF_MINUTE };
    assert!(explore(&steady).broken.is_none(), "the drift alone makes it wrong");
}

#[test]
fn a_return_that_is_sent_again_after_an_unknown_failure_admits_beyond_the_limit() {
    let budget = Budget { requests: 5, put_backs: 1, idle_returns: 1, give_ups: 1, ..CALM.budget };
    let scenario = Scenario { mistake: Mistake::ReturnTwice, callers: 1, budget, ..CALM };
    breaks(Property::MinuteLimit, scenario);
    breaks(Property::Accounted, scenario);
}

#[test]
fn a_repeated_answer_that_is_deposited_again_admits_beyond_the_limit() {
    let budget = Budget { repeats: 1, ..CALM.budget };
    let scenario = Scenario { mistake: Mistake::DepositTwice, budget, ..CALM };
    breaks(Property::MinuteLimit, scenario);
    breaks(Property::Ignored, scenario);
}

#[test]
fn a_forgetful_ledger_that_is_not_told_what_was_seen_grants_it_again() {
    let budget = Budget { losses: 1, ..CALM.budget };
    let scenario = Scenario { mistake: Mistake::IgnoreSeen, callers: 1, budget, ..CALM };
    breaks(Property::Repaired, scenario);
}

#[test]
fn a_replica_that_does_not_remember_what_it_saw_admits_beyond_the_limit_of_a_forgetful_ledger() {
    let budget = Budget { losses: 1, ..CALM.budget };
    let scenario = Scenario { mistake: Mistake::RememberNothing, callers: 1, budget, ..CALM };
    breaks(Property::MinuteLimit, scenario);
    breaks(Property::Repaired, scenario);
}
