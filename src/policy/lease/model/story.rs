//! How a promise was broken, for people: the events one by one, each with the state that it led to.

use super::world::{Message, Stage};
use super::*;

/// Plays the events once more and tells what happens.
pub(super) fn tell(scenario: &Scenario, actions: &[Action]) -> String {
    let mut world = World::new(scenario);
    let mut story = String::new();
    for action in actions {
        story += &describe(scenario, &world, *action);
        world.act(scenario, *action, &mut Findings::new(None));
        story += &summary(scenario, &world);
    }
    story
}

/// An event, as it meets this state. Minutes are counted from the first.
fn describe(scenario: &Scenario, world: &World, action: Action) -> String {
    let time = world.now as f64 / 1e6;
    let (Action::Execute(n) | Action::Answer(n) | Action::GiveUp(n) | Action::Refuse(n)) = action else {
        return format!("{time:.6} s {action:?}\n");
    };
    let Message { replica, call, stage, .. } = &world.messages[n];
    let of = |minute: Minute| i64::from(minute) - i64::from(scenario.first);
    let LeaseRequest { target, want, need, give_back, seen, .. } = &call.request;
    let (target, back) = (target.map(of), give_back.map(|(minute, tokens)| (of(minute), tokens)));
    let seen = (of(seen.minute), seen.minute_granted, seen.day_granted);
    let mut text = format!("{time:.6} s {action:?} of replica {replica}: target {target:?}, want {want}, need {need}");
    text += &format!(", give back {back:?}, seen {seen:?}\n");
    if let Stage::Executed(reply) | Stage::Delivered(reply) = stage {
        let LeaseReply { granted, minute, minute_left, day_left, soft, .. } = reply;
        let at = (reply.now_micros - scenario.store_micros(0)) as f64 / 1e6;
        text += &format!("    answered at {at:.6} s: {granted} of minute {}", of(*minute));
        text += &format!(", left {minute_left} and {day_left}{}\n", if *soft { ", soft" } else { "" });
    }
    text
}

fn summary(scenario: &Scenario, world: &World) -> String {
    let mut text = String::new();
    for (n, replica) in world.replicas.iter().enumerate() {
        let lease = &replica.lease;
        let stash = |stash: Option<Stash>| stash.map(|stash| (scenario.index(stash.minute), stash.tokens));
        let (grant, early) = (stash(lease.grant), stash(lease.early));
        let owed: Vec<_> = scenario.minutes().map(|minute| lease.owed.of(minute)).collect();
        let asks = if lease.is_asking() { ", asks" } else { "" };
        text += &format!("    {n}: in hand {grant:?}, early {early:?}, owed {owed:?}, {} wait{asks}\n", replica.queue);
    }
    let ledger: Vec<_> = scenario.minutes().map(|minute| world.ledger.of_minute(minute).unwrap_or_default()).collect();
    text + &format!("    ledger (granted, returned) {ledger:?}, spent {:?}, lost {:?}\n", world.spent, world.lost)
}
