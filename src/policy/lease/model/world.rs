//! The state of everything, which events are possible in it, and what each does.

use super::replica::Replica;
use super::*;

/// An event. Numbers are those of a replica or, for a call on its way, of its place in [`World::messages`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Arrive(usize),
    Leave(usize),
    PutBack(usize),
    /// A call is carried out at the store.
    Execute(usize),
    /// An answer arrives: the one that is awaited, one that is too late, or the same once more.
    Answer(usize),
    GiveUp(usize),
    /// A call fails and was not carried out.
    Refuse(usize),
    Recall(usize),
    Tick(usize),
    IdleReturn(usize),
    Crash(usize),
    ShutDown(usize),
    /// The store loses its memory.
    Forget,
    /// Time goes on to the next instant of interest.
    Pass,
}

/// Where a call is.
#[derive(Debug, Clone)]
pub(super) enum Stage {
    Sent,
    Executed(LeaseReply),
    Delivered(LeaseReply),
}

/// A call on its way.
#[derive(Debug, Clone)]
pub(super) struct Message {
    pub(super) replica: usize,
    pub(super) call: Call,
    pub(super) sent: Mono,
    pub(super) stage: Stage,
    /// The caller waits for the answer.
    pub(super) awaited: bool,
    /// The caller is dead.
    pub(super) orphan: bool,
}

#[derive(Debug, Clone)]
pub(super) struct World {
    /// The true time, from the start of the first minute.
    pub(super) now: u64,
    pub(super) ledger: Ledger,
    pub(super) replicas: [Replica; REPLICAS],
    pub(super) messages: Vec<Message>,
    pub(super) left: Budget,
    /// Counted only where they are limited.
    pub(super) calls_made: u8,
    /// Tokens spent, by minute.
    pub(super) spent: [u32; MINUTES],
    /// Tokens that nobody will ever know of again, by minute.
    pub(super) lost: [u32; MINUTES],
}

impl World {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let now = scenario.instants[0];
        Self {
            now,
            ledger: Ledger::default(),
            replicas: std::array::from_fn(|n| Replica::new(scenario, n, now)),
            messages: Vec::new(),
            left: scenario.budget,
            calls_made: 0,
            spent: [0; MINUTES],
            lost: [0; MINUTES],
        }
    }

    /// What can happen next.
    pub(super) fn possible(&self, scenario: &Scenario) -> Vec<Action> {
        let left = &self.left;
        let mut actions = Vec::with_capacity(16);
        if scenario.edges.is_some_and(|calls| self.calls_made >= calls) {
            return actions;
        }
        let mut add = |yes: bool, action| {
            if yes {
                actions.push(action);
            }
        };
        for (n, message) in self.messages.iter().enumerate() {
            match message.stage {
                Stage::Sent => {
                    add(true, Action::Execute(n));
                    add(message.awaited && left.refusals > 0, Action::Refuse(n));
                }
                Stage::Executed(_) | Stage::Delivered(_) => add(true, Action::Answer(n)),
            }
            add(message.awaited && left.give_ups > 0, Action::GiveUp(n));
        }
        for (n, replica) in self.replicas.iter().enumerate() {
            let runs = !replica.lease.stopped;
            add(runs && n < scenario.callers && left.requests > 0, Action::Arrive(n));
            add(replica.queue > 0 && left.leaves > 0, Action::Leave(n));
            add(replica.admitted.is_some() && left.put_backs > 0, Action::PutBack(n));
            add(replica.recall.is_some(), Action::Recall(n));
            add(replica.feels_time(scenario.mono(n, self.now), scenario.cost), Action::Tick(n));
            add(replica.lease.grant.is_some() && left.idle_returns > 0, Action::IdleReturn(n));
            add(left.crashes > 0, Action::Crash(n));
            add(runs && left.stops > 0, Action::ShutDown(n));
        }
        add(left.losses > 0, Action::Forget);
        add(self.next_instant(scenario).is_some() && self.on_the_way() <= left.delays, Action::Pass);
        actions
    }

    /// Calls that are out.
    pub(super) fn on_the_way(&self) -> u8 {
        self.messages.iter().filter(|message| message.awaited).count() as u8
    }

    /// The next instant at which something may be different.
    pub(super) fn next_instant(&self, scenario: &Scenario) -> Option<u64> {
        let end = *scenario.instants.last()?;
        let mut next = scenario.instants.iter().copied().find(|at| *at > self.now)?;
        if scenario.edges.is_none() {
            return Some(next);
        }
        for (n, replica) in self.replicas.iter().enumerate() {
            let lease = &replica.lease;
            let edges = [
                lease.grant.map(|stash| stash.deadline),
                lease.early.map(|stash| stash.start),
                lease.denied.map(|denial| denial.until),
                lease.return_due,
                Some(lease.retry_at).filter(|_| replica.queue > 0),
            ];
            for edge in edges.into_iter().flatten() {
                let at = scenario.truth(n, edge);
                for at in [at.saturating_sub(1), at] {
                    if at > self.now && at < next && at < end {
                        next = at;
                    }
                }
            }
        }
        Some(next)
    }
}
