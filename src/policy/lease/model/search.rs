//! The search: breadth first, each state once, and the way to every state to tell how a promise was broken.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use super::story::tell;
use super::*;

/// No scenario has so many states: one that has does not end.
const TOO_MANY: usize = 1_000_000;

/// What a search saw.
#[derive(Debug)]
pub(super) struct Explored {
    pub(super) states: usize,
    pub(super) events: usize,
    pub(super) broken: Option<Broken>,
}

/// A broken promise and the shortest way to it.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) property: Property,
    pub(super) what: String,
    pub(super) story: String,
}

/// Plays all events of a scenario in every order, or until a promise is broken.
pub(super) fn explore(scenario: &Scenario) -> Explored {
    let start = World::new(scenario);
    let origin = start.fingerprint(scenario);
    let mut reached = HashMap::from([(origin, None)]);
    let mut frontier = VecDeque::from([(origin, start)]);
    let mut events = 0;
    while let Some((from, world)) = frontier.pop_front() {
        assert!(reached.len() < TOO_MANY, "a scenario without end: {scenario:?}");
        for action in world.possible(scenario) {
            events += 1;
            let mut next = world.clone();
            let mut found = Findings::new(scenario.only);
            next.act(scenario, action, &mut found);
            if let Some((property, what)) = found.broken {
                let mut actions = way_to(from, &reached);
                actions.push(action);
                let story = tell(scenario, &actions);
                return Explored { states: reached.len(), events, broken: Some(Broken { property, what, story }) };
            }
            let to = next.fingerprint(scenario);
            if let Entry::Vacant(unseen) = reached.entry(to) {
                unseen.insert(Some((from, action)));
                frontier.push_back((to, next));
            }
        }
    }
    Explored { states: reached.len(), events, broken: None }
}

fn way_to(state: u64, reached: &HashMap<u64, Option<(u64, Action)>>) -> Vec<Action> {
    let mut actions: Vec<_> = std::iter::successors(reached[&state], |(before, _)| reached[before]).collect();
    actions.reverse();
    actions.into_iter().map(|(_, action)| action).collect()
}
