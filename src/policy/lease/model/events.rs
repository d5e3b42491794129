//! What each event does: to the lease of a replica, to the calls on the network, to the ledger.

use super::replica::Replica;
use super::world::{Action, Message, Stage, World};
use super::*;
use crate::policy::lease::demand::Demand;

impl World {
    /// Lets an event happen and checks what must hold then.
    pub(super) fn act(&mut self, scenario: &Scenario, action: Action, found: &mut Findings) {
        match action {
            Action::Execute(n) => self.execute(scenario, n, found),
            Action::Answer(n) => self.answer(scenario, n, found),
            Action::GiveUp(n) => self.give_up(scenario, n, found),
            Action::Refuse(n) => {
                self.left.refusals -= 1;
                let message = self.messages.remove(n);
                let now = scenario.mono(message.replica, self.now);
                self.replicas[message.replica].lease.on_failure(now, message.call.id, Failure::NotDone);
                self.drive(scenario, message.replica, found);
            }
            Action::Crash(n) => self.crash(scenario, n),
            Action::Forget => {
                self.left.losses -= 1;
                self.ledger = Ledger::default();
            }
            Action::Pass => {
                self.left.delays -= self.on_the_way();
                self.now = self.next_instant(scenario).unwrap_or(self.now);
            }
            Action::Arrive(n)
            | Action::Leave(n)
            | Action::PutBack(n)
            | Action::Recall(n)
            | Action::Tick(n)
            | Action::IdleReturn(n)
            | Action::ShutDown(n) => {
                self.act_at(scenario, action, n, found);
                self.drive(scenario, n, found);
            }
        }
        for (n, replica) in self.replicas.iter_mut().enumerate() {
            let now = scenario.mono(n, self.now);
            replica.lease.demand = Demand::steady(now, scenario.rate[n]);
        }
        if self.left.repeats == 0 {
            self.messages.retain(|message| message.awaited || matches!(message.stage, Stage::Sent));
        }
        self.check(scenario, found);
    }

    /// What happens at one replica and not on the network.
    fn act_at(&mut self, scenario: &Scenario, action: Action, n: usize, found: &mut Findings) {
        let now = scenario.mono(n, self.now);
        let replica = &mut self.replicas[n];
        match action {
            Action::Arrive(_) => {
                self.left.requests -= 1;
                // Whoever waits is not overtaken; `drive` looks at the first of them.
                match replica.queue {
                    0 => match replica.lease.take(now, scenario.cost, scenario.limits) {
                        Decision::Wait => replica.queue = 1,
                        decided => self.note(scenario, n, decided, found),
                    },
                    _ => replica.queue += 1,
                }
            }
            Action::Leave(_) => {
                self.left.leaves -= 1;
                replica.queue -= 1;
            }
            Action::PutBack(_) => {
                self.left.put_backs -= 1;
                if let Some(minute) = replica.admitted.take() {
                    replica.lease.put_back(now, minute, scenario.cost);
                    self.spent[scenario.index(minute)] -= scenario.cost;
                }
            }
            Action::Recall(_) => {
                if let Some(minute) = replica.recall.take() {
                    replica.lease.on_recall(now, minute);
                }
            }
            Action::IdleReturn(_) => {
                self.left.idle_returns -= 1;
                replica.lease.last_used = Mono(0);
                replica.lease.tick(now, false);
            }
            Action::ShutDown(_) => {
                self.left.stops -= 1;
                replica.queue = 0;
                replica.lease.shut_down(now);
            }
            _ => replica.lease.tick(now, true),
        }
    }

    fn execute(&mut self, scenario: &Scenario, n: usize, found: &mut Findings) {
        let message = &mut self.messages[n];
        let mut request = message.call.request;
        scenario.mistake.in_request(&mut request);
        let reply = self.ledger.lease(scenario.store_micros(self.now), &request);
        if reply.recall {
            for replica in &mut self.replicas {
                replica.recall = Some(reply.minute);
            }
        }
        message.stage = Stage::Executed(reply);
        if message.awaited {
            let (minute, day) = self.replicas[message.replica].watch.told(scenario, reply.minute);
            let (seen, told) = (reply.seen, message.call.request.seen);
            // What the caller did not tell cannot be known; it must not use what it gets then (see the limits).
            let repaired = (told.minute != reply.minute || seen.minute_granted >= minute + reply.granted)
                && (told.day != seen.day || seen.day_granted >= day + reply.granted);
            found.require(Property::Repaired, repaired, || format!("{reply:?} although {minute}, {day} were known"));
        } else {
            self.lost[scenario.index(reply.minute)] += reply.granted;
        }
        if message.orphan {
            self.messages.remove(n);
        }
    }

    fn answer(&mut self, scenario: &Scenario, n: usize, found: &mut Findings) {
        let message = self.messages[n].clone();
        let (Stage::Executed(reply) | Stage::Delivered(reply)) = message.stage else { return };
        let r = message.replica;
        let now = scenario.mono(r, self.now);
        let before = if message.awaited { 0 } else { self.fingerprint(scenario) };
        let replica = &mut self.replicas[r];
        replica.lease.on_reply(now, message.call.id, &reply, EARLY_MICROS);
        scenario.mistake.in_answer(&mut replica.lease, now, message.awaited, &reply);
        if message.awaited {
            replica.watch.hear(scenario, message.sent, now, &message.call.request, &reply);
            self.messages[n].awaited = false;
            self.messages[n].stage = Stage::Delivered(reply);
            self.drive(scenario, r, found);
        } else {
            found.require(Property::Ignored, before == self.fingerprint(scenario), || format!("{reply:?} was not"));
            self.left.repeats -= 1;
            self.messages.remove(n);
        }
    }

    fn give_up(&mut self, scenario: &Scenario, n: usize, found: &mut Findings) {
        self.left.give_ups -= 1;
        let message = &mut self.messages[n];
        message.awaited = false;
        if let Stage::Executed(reply) = &message.stage {
            self.lost[scenario.index(reply.minute)] += reply.granted;
        }
        let (r, call) = (message.replica, message.call);
        let now = scenario.mono(r, self.now);
        let lease = &mut self.replicas[r].lease;
        lease.on_failure(now, call.id, Failure::Unknown);
        scenario.mistake.in_give_up(lease, now, &call.request);
        self.drive(scenario, r, found);
    }

    fn crash(&mut self, scenario: &Scenario, r: usize) {
        self.left.crashes -= 1;
        for minute in scenario.minutes() {
            self.lost[scenario.index(minute)] += self.replicas[r].held(minute);
        }
        for message in self.messages.iter_mut().filter(|message| message.replica == r) {
            if let Stage::Executed(reply) = &message.stage
                && message.awaited
            {
                self.lost[scenario.index(reply.minute)] += reply.granted;
            }
            (message.awaited, message.orphan) = (false, true);
        }
        self.messages.retain(|message| !message.orphan || matches!(message.stage, Stage::Sent));
        self.replicas[r] = Replica::new(scenario, r, self.now);
    }

    /// After anything happened at a replica: answers who can be answered and makes the call that is due, as `limit` does.
    fn drive(&mut self, scenario: &Scenario, n: usize, found: &mut Findings) {
        let now = scenario.mono(n, self.now);
        while self.replicas[n].queue > 0 {
            match self.replicas[n].lease.decide(now, scenario.cost, scenario.limits) {
                Decision::Wait => break,
                decided => {
                    self.replicas[n].queue -= 1;
                    self.note(scenario, n, decided, found);
                }
            }
        }
        let replica = &mut self.replicas[n];
        let waiting = replica.waiting(scenario.cost);
        if let Some(purpose) = replica.lease.wants_call(now, waiting) {
            let out = self.messages.iter().any(|message| message.replica == n && message.awaited);
            self.calls_made += u8::from(scenario.edges.is_some());
            let call = replica.lease.start_call(now, purpose, waiting, false);
            let more = replica.lease.wants_call(now, waiting);
            found.require(Property::Calls, !out && more.is_none(), || format!("a second call: {call:?}"));
            let idle = call.request.want == 0 && call.request.give_back.is_none();
            found.require(Property::Calls, !idle, || format!("a call for nothing: {call:?}"));
            // An early lease is about the next minute.
            let asks = call.request.want > 0 && purpose != Purpose::Early;
            let silent = asks && now < replica.watch.silent_until;
            found.require(Property::Silence, !silent, || format!("{purpose:?} although refused: {call:?}"));
            // By replica, so that what happens at one and at another is the same in either order.
            let place = self.messages.partition_point(|message| message.replica <= n);
            let message = Message { replica: n, call, sent: now, stage: Stage::Sent, awaited: true, orphan: false };
            self.messages.insert(place, message);
        }
        let forgotten = replica.queue > 0 && !replica.lease.is_asking() && replica.lease.retry_at <= now;
        found.require(Property::NobodyForgotten, !forgotten, || format!("waits for nothing: {replica:?}"));
    }

    fn note(&mut self, scenario: &Scenario, n: usize, decided: Decision, found: &mut Findings) {
        let replica = &mut self.replicas[n];
        match decided {
            Decision::Admit(state, minute) => {
                let truth = scenario.minute(self.now);
                found.require(Property::OwnMinute, minute == truth, || {
                    format!("a token of minute {} in {}", scenario.index(minute), scenario.index(truth))
                });
                self.spent[scenario.index(minute)] += scenario.cost;
                if self.left.put_backs > 0 {
                    replica.admitted = Some(minute);
                }
                replica.watch.show(&state, found);
            }
            Decision::Deny(state) => {
                let zero = state.shown().remaining == 0 && (state.violated.minute || state.violated.day);
                found.require(Property::Remaining, zero, || format!("refused with {state:?}"));
                // A request that costs more may be refused while there is something left for others.
                if scenario.cost == 1 {
                    replica.watch.show(&state, found);
                }
            }
            Decision::Wait => {}
        }
    }
}
