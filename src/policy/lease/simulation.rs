//! Two or three replicas against the real ledger on a network that delays, loses and repeats answers, with clocks that drift,
//! recalls that come late and replicas that die. A checker that knows the true time watches every admission.
//!
//! The same worlds with a wrong deadline rule must make the checker bark; a simulation that never barks proves nothing.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use super::*;
use crate::policy::quota::{LeaseReply, LeaseRequest, Ledger};

const MINUTE: u64 = 60_000_000;
const START: u64 = 30_000_000 * MINUTE;

/// xorshift64*: the worlds must be the same on every machine.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % n
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Clone, Copy)]
struct World {
    seed: u64,
    replicas: usize,
    limits: QuotaLimits,
    minutes: u64,
    /// Mean time between requests of one replica in even and odd minutes.
    gap: [u64; 2],
    cost: u32,
    /// Every fourth request, or so, costs this.
    dear: u32,
    /// A recall takes up to this long.
    recall: u64,
    lossy: bool,
    crashes: bool,
    rule: Rule,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival(usize),
    Execute(usize, u64),
    Answer(usize, u64),
    GiveUp(usize, u64),
    Recall(usize, Minute),
    Tick(usize),
    Crash(usize),
}

struct Node {
    lease: SubjectLease,
    drift_ppm: i64,
    offset: u64,
    queue: Vec<u32>,
    life: u64,
}

impl Node {
    fn mono(&self, truth: u64) -> Mono {
        let drift = (truth as i64 * self.drift_ppm / 1_000_000) as u64;
        Mono((truth + self.offset).wrapping_add(drift))
    }
}

#[derive(Debug, Default)]
struct Findings {
    admitted: BTreeMap<Minute, u32>,
    admitted_of_day: BTreeMap<u32, u32>,
    denied: BTreeMap<Minute, u32>,
    offered: BTreeMap<Minute, u32>,
    wrong_minute: u32,
    calls: u32,
    remaining_rose: u32,
}

struct Simulation {
    world: World,
    dice: Dice,
    ledger: Ledger,
    nodes: Vec<Node>,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    requests: BTreeMap<u64, (Call, u64)>,
    replies: BTreeMap<u64, LeaseReply>,
    sequence: u64,
    found: Findings,
    shown: BTreeMap<(usize, u64, u64), u32>,
}

impl Simulation {
    fn run(world: World) -> Findings {
        let mut dice = Dice(world.seed | 1);
        for _ in 0..8 {
            dice.below(2);
        }
        let nodes = (0..world.replicas)
            .map(|_| Node {
                lease: new_lease(world),
                drift_ppm: dice.below(801) as i64 - 400,
                offset: dice.below(1_000_000_000) + 1_000_000_000,
                queue: Vec::new(),
                life: 0,
            })
            .collect();
        let mut simulation = Self {
            world,
            dice,
            ledger: Ledger::default(),
            nodes,
            events: BinaryHeap::new(),
            requests: BTreeMap::new(),
            replies: BTreeMap::new(),
            sequence: 0,
            found: Findings::default(),
            shown: BTreeMap::new(),
        };
        for node in 0..world.replicas {
            simulation.at(1_000 * node as u64, Event::Arrival(node));
            simulation.at(5_000, Event::Tick(node));
            if world.crashes {
                simulation.at(7_000_000 * (node as u64 + 1), Event::Crash(node));
            }
        }
        while let Some(Reverse((time, _, event))) = simulation.events.pop() {
            if time >= world.minutes * MINUTE {
                break;
            }
            simulation.step(time, event);
        }
        simulation.found
    }

    fn at(&mut self, time: u64, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((time, self.sequence, event)));
    }

    fn step(&mut self, time: u64, event: Event) {
        match event {
            Event::Arrival(node) => {
                let gap = self.world.gap[(time / MINUTE % 2) as usize];
                let next = time + 1 + self.dice.below(2 * gap);
                self.at(next, Event::Arrival(node));
                *self.found.offered.entry(store_minute(time)).or_default() += 1;
                self.request(time, node);
            }
            Event::Execute(node, id) => {
                let Some((call, _)) = self.requests.get(&id).copied() else { return };
                let reply = self.ledger.lease(START + time, &call.request);
                self.replies.insert(id, reply);
                if reply.recall {
                    for other in 0..self.nodes.len() {
                        let delay = 200 + self.dice.below(self.world.recall);
                        self.at(time + delay, Event::Recall(other, reply.minute));
                    }
                }
                let lost = self.world.lossy && self.dice.chance(3);
                let late = self.world.lossy && self.dice.chance(5);
                let delay = 100 + self.dice.below(if late { 400_000 } else { 1_500 });
                if !lost {
                    self.at(time + delay, Event::Answer(node, id));
                    if self.world.lossy && self.dice.chance(10) {
                        self.at(time + 2 * delay, Event::Answer(node, id));
                    }
                }
            }
            Event::Answer(node, id) => {
                let jitter = self.dice.below(1 << 30);
                let (Some((call, life)), Some(reply)) = (self.requests.get(&id).copied(), self.replies.get(&id)) else {
                    return;
                };
                let node_state = &mut self.nodes[node];
                if node_state.life == life {
                    let now = node_state.mono(time);
                    node_state.lease.on_reply(now, call.id, reply, jitter);
                    self.serve(time, node);
                }
            }
            Event::GiveUp(node, id) => {
                let Some((call, life)) = self.requests.get(&id).copied() else { return };
                if self.nodes[node].life == life {
                    let now = self.nodes[node].mono(time);
                    self.nodes[node].lease.on_failure(now, call.id, Failure::Unknown);
                    self.serve(time, node);
                }
            }
            Event::Recall(node, minute) => {
                let now = self.nodes[node].mono(time);
                self.nodes[node].lease.on_recall(now, minute);
                self.serve(time, node);
            }
            Event::Tick(node) => {
                let now = self.nodes[node].mono(time);
                self.nodes[node].lease.tick(now, true);
                self.serve(time, node);
                self.at(time + 3_000, Event::Tick(node));
            }
            Event::Crash(node) => {
                self.nodes[node].lease = new_lease(self.world);
                self.nodes[node].life += 1;
                self.nodes[node].queue.clear();
                let next = time + 5_000_000 + self.dice.below(30_000_000);
                self.at(next, Event::Crash(node));
            }
        }
    }

    fn request(&mut self, time: u64, node: usize) {
        let World { cost, dear, limits, .. } = self.world;
        let cost = if dear != cost && self.dice.chance(25) { dear } else { cost };
        let now = self.nodes[node].mono(time);
        let Node { lease, queue, .. } = &mut self.nodes[node];
        if queue.is_empty() {
            match lease.take(now, cost, limits) {
                Decision::Wait => queue.push(cost),
                decided => self.note(time, node, cost, decided),
            }
        } else {
            lease.note_request(now, cost);
            queue.push(cost);
        }
        self.serve(time, node);
    }

    fn serve(&mut self, time: u64, node: usize) {
        let now = self.nodes[node].mono(time);
        while let Some(cost) = self.nodes[node].queue.first().copied() {
            match self.nodes[node].lease.decide(now, cost, self.world.limits) {
                Decision::Wait => break,
                decided => {
                    self.nodes[node].queue.remove(0);
                    self.note(time, node, cost, decided);
                }
            }
        }
        let waiting = Waiting {
            first: self.nodes[node].queue.first().copied().unwrap_or(0),
            total: self.nodes[node].queue.iter().sum(),
        };
        let lease = &mut self.nodes[node].lease;
        if let Some(purpose) = lease.wants_call(now, waiting) {
            let call = lease.start_call(now, purpose, waiting, false);
            assert!(lease.wants_call(now, waiting).is_none(), "a second call while one is out");
            self.found.calls += 1;
            self.sequence += 1;
            let id = self.sequence;
            self.requests.insert(id, (call, self.nodes[node].life));
            let late = self.world.lossy && self.dice.chance(5);
            let delay = 100 + self.dice.below(if late { 300_000 } else { 1_500 });
            if !(self.world.lossy && self.dice.chance(2)) {
                self.at(time + delay, Event::Execute(node, id));
            }
            self.at(time + 3_000_000, Event::GiveUp(node, id));
        }
    }

    fn note(&mut self, time: u64, node: usize, cost: u32, decided: Decision) {
        let minute = store_minute(time);
        match decided {
            Decision::Admit(state, of) => {
                *self.found.admitted.entry(minute).or_default() += cost;
                *self.found.admitted_of_day.entry(minute / 1440).or_default() += cost;
                self.found.wrong_minute += u32::from(of != minute);
                let key = (node, self.nodes[node].life, state.minute.reset);
                let before = self.shown.insert(key, state.minute.remaining);
                self.found.remaining_rose += u32::from(before.is_some_and(|before| before < state.minute.remaining));
            }
            Decision::Deny(state) => {
                assert!(state.violated.minute || state.violated.day);
                assert_eq!(state.shown().remaining, 0);
                *self.found.denied.entry(minute).or_default() += 1;
            }
            Decision::Wait => unreachable!("not decided"),
        }
    }
}

fn new_lease(world: World) -> SubjectLease {
    SubjectLease { rule: world.rule, ..SubjectLease::new(Mono(0), world.limits) }
}

fn store_minute(time: u64) -> Minute {
    ((START + time) / MINUTE) as Minute
}

fn world(seed: u64) -> World {
    World {
        seed,
        replicas: 2 + (seed % 2) as usize,
        limits: QuotaLimits { requests_per_minute: 300, requests_per_day: 1_000_000 },
        minutes: 3,
        gap: [400_000, 60_000],
        cost: 1,
        dear: 1,
        recall: 3_000,
        lossy: false,
        crashes: false,
        rule: Rule::Correct,
    }
}

fn over(found: &Findings, world: World) -> u32 {
    found.admitted.values().map(|n| n.saturating_sub(world.limits.requests_per_minute)).sum()
}

#[test]
fn nothing_is_admitted_beyond_a_window_whatever_is_late_lost_repeated_or_dead() {
    for seed in 1..26 {
        let cost = if seed % 5 == 0 { 3 } else { 1 };
        let world = World {
            lossy: true,
            recall: 40_000,
            crashes: seed % 3 == 0,
            cost,
            dear: if seed % 2 == 0 { 5 } else { cost },
            gap: [[400_000, 4_000], [5_000, 80_000], [2_000, 2_000]][(seed % 3) as usize],
            limits: [
                QuotaLimits { requests_per_minute: 60, requests_per_day: 130 },
                QuotaLimits { requests_per_minute: 3, requests_per_day: 1_000 },
                QuotaLimits { requests_per_minute: 20_000, requests_per_day: 1_000_000 },
                QuotaLimits { requests_per_minute: 300, requests_per_day: 700 },
            ][(seed % 4) as usize],
            ..world(seed * 7919)
        };
        let found = Simulation::run(world);
        assert_eq!(over(&found, world), 0, "seed {seed}: {found:?}");
        for (day, admitted) in &found.admitted_of_day {
            assert!(*admitted <= world.limits.requests_per_day, "seed {seed}, day {day}: {found:?}");
        }
        assert_eq!((found.wrong_minute, found.remaining_rose), (0, 0), "seed {seed}: {found:?}");
    }
}

#[test]
fn the_checker_barks_at_wrong_deadlines() {
    for rule in [Rule::FromReceive, Rule::Late(100_000)] {
        let wrong: u32 = (1..4)
            .map(|seed| {
                let gap = [700, 700];
                let limits = QuotaLimits { requests_per_minute: 1_000_000, requests_per_day: 100_000_000 };
                let found =
                    Simulation::run(World { rule, gap, limits, minutes: 2, lossy: true, ..world(seed * 104_729) });
                found.wrong_minute
            })
            .sum();
        assert!(wrong > 0, "{rule:?} went unnoticed");
    }
}

#[test]
fn at_or_below_the_limit_nobody_is_refused_and_above_it_nothing_is_lost() {
    for seed in 1..16 {
        let below = World { gap: [800_000, 750_000], replicas: 3, minutes: 4, ..world(seed * 31) };
        let found = Simulation::run(below);
        assert!(found.denied.is_empty(), "seed {seed}: refused although below the limit: {found:?}");

        let above = World { gap: [20_000, 30_000], replicas: 3, ..world(seed * 37) };
        // With a change feed as slow as the contract allows, too: the second look finds what came back late.
        let above = World { recall: [3_000, 250_000][(seed % 2) as usize], ..above };
        let found = Simulation::run(above);
        for (minute, admitted) in &found.admitted {
            assert_eq!(*admitted, 300, "seed {seed}, minute {minute}: {found:?}");
        }
    }
}

#[test]
fn dear_requests_among_cheap_ones_are_charged_whole_and_leave_nothing_unused() {
    for seed in 1..16 {
        // Two tokens a request on average: 150 of the 300 of a minute.
        let below = World { dear: 5, gap: [2_400_000, 2_300_000], replicas: 3, minutes: 4, ..world(seed * 43) };
        let found = Simulation::run(below);
        assert!(found.denied.is_empty(), "seed {seed}: refused although below the limit: {found:?}");

        let above = World { dear: 5, gap: [20_000, 30_000], replicas: 3, ..world(seed * 47) };
        let found = Simulation::run(above);
        for (minute, admitted) in &found.admitted {
            assert_eq!(*admitted, 300, "seed {seed}, minute {minute}: {found:?}");
        }
    }
}

#[test]
fn a_request_needs_few_calls_when_the_limit_is_far() {
    let limits = QuotaLimits { requests_per_minute: 100_000, requests_per_day: 100_000_000 };
    let world = World { gap: [1_000, 1_000], replicas: 1, limits, minutes: 2, ..world(4711) };
    let found = Simulation::run(world);
    let offered: u32 = found.offered.values().sum();
    assert!(found.denied.is_empty());
    assert!(found.calls * 50 <= offered, "{} calls for {offered} requests", found.calls);
}

#[test]
fn a_small_account_at_its_limit_needs_a_call_for_every_third_request() {
    let (mut calls, mut offered) = (0, 0);
    for seed in 1..9 {
        // Three replicas, five a second together or a little more: all of 300 a minute.
        let found = Simulation::run(World { gap: [600_000, 545_000], replicas: 3, minutes: 4, ..world(seed * 41) });
        calls += found.calls;
        offered += found.offered.values().sum::<u32>();
    }
    assert!(calls * 3 <= offered, "{calls} calls for {offered} requests");
}

#[test]
fn a_ledger_that_forgets_is_repaired_from_what_replicas_remember() {
    let limits = QuotaLimits { requests_per_minute: 10, requests_per_day: 100 };
    let now = Mono(5_000_000);
    let mut lease = SubjectLease::new(now, limits);
    let mut ledger = Ledger::default();
    let waiting = Waiting { first: 1, total: 1 };
    for _ in 0..10 {
        while lease.take(now, 1, limits) == Decision::Wait {
            let call = lease.start_call(now, Purpose::Refill, waiting, false);
            let reply = ledger.lease(START, &call.request);
            lease.on_reply(now, call.id, &reply, 0);
        }
    }
    let mut forgetful = Ledger::default();
    let call = lease.start_call(now, Purpose::Refill, waiting, false);
    assert_eq!(forgetful.lease(START, &call.request).granted, 0);
    let ignorant = LeaseRequest { seen: Seen::default(), ..call.request };
    assert_eq!(Ledger::default().lease(START, &ignorant).granted, 1, "without its memory it would have granted");
}
