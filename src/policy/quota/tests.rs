//! The ledger under random histories: what must hold whatever is lost, late or out of order.
//!
//! The model is two replicas that keep the protocol: they spend only what they were granted, return each token at most once, and
//! forget the tokens of a lost reply. That they do is tested with [`crate::policy::lease`].

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

/// Shortly before a UTC midnight, so that histories cross both kinds of boundary.
const START: u64 = (20_000 * DAY_SECONDS - 3 * MINUTE_SECONDS) * 1_000_000;
const LIMITS: QuotaLimits = QuotaLimits { requests_per_minute: 12, requests_per_day: 40 };

fn ask(want: u32) -> LeaseRequest {
    LeaseRequest {
        target: None,
        want,
        need: want.min(1),
        limits: LIMITS,
        first: false,
        give_back: None,
        debit: None,
        seen: Seen::default(),
    }
}

fn minute_of(micros: u64) -> Minute {
    (micros / 1_000_000 / MINUTE_SECONDS) as Minute
}

/// What happens to a call on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Answered,
    RequestLost,
    ReplyLost,
}

#[derive(Debug, Clone)]
enum Step {
    /// A call; tokens of the chosen minute (counted back from the newest) are given back with it.
    Call {
        replica: usize,
        want: u32,
        need: u32,
        early: bool,
        give_back: Option<(usize, u32)>,
        first: bool,
        fate: Fate,
    },
    Spend {
        replica: usize,
        tokens: u32,
    },
    /// The store's clock moves, forwards or backwards.
    Clock {
        micros: i64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let fate = prop_oneof![6 => Just(Fate::Answered), 1 => Just(Fate::RequestLost), 1 => Just(Fate::ReplyLost)];
    let give_back = prop::option::of((0usize..3, 1u32..8));
    let call = (0usize..2, 0u32..10, 0u32..4, prop::bool::weighted(0.2), give_back, any::<bool>(), fate);
    let call = call.prop_map(|(replica, want, need, early, give_back, first, fate)| Step::Call {
        replica,
        want,
        need,
        early,
        give_back,
        first,
        fate,
    });
    let clock = prop_oneof![
        5 => 0i64..2_000_000,
        3 => 0i64..70_000_000,
        1 => -70_000_000i64..0,
        1 => -400_000_000i64..0,
    ];
    prop_oneof![
        6 => call,
        3 => (0usize..2, 1u32..6).prop_map(|(replica, tokens)| Step::Spend { replica, tokens }),
        2 => clock.prop_map(|micros| Step::Clock { micros }),
    ]
}

#[derive(Default)]
struct ModelReplica {
    /// Unspent tokens by minute.
    stash: HashMap<Minute, u32>,
    seen: Seen,
}

struct Model {
    limits: QuotaLimits,
    ledger: Ledger,
    now: u64,
    replicas: [ModelReplica; 2],
    spent: HashMap<Minute, u32>,
}

impl Model {
    fn new(limits: QuotaLimits) -> Self {
        Self { limits, ledger: Ledger::default(), now: START, replicas: Default::default(), spent: HashMap::new() }
    }

    fn run(limits: QuotaLimits, steps: &[Step]) {
        let mut model = Self::new(limits);
        for step in steps {
            match step {
                Step::Clock { micros } => model.now = model.now.saturating_add_signed(*micros),
                Step::Spend { replica, tokens } => model.spend(*replica, *tokens),
                Step::Call { .. } => model.call(step),
            }
            model.check();
        }
    }

    /// At any later time too: the bound must not hang on the deadline, which only the replica keeps.
    fn spend(&mut self, replica: usize, tokens: u32) {
        if let Some((minute, stash)) = self.replicas[replica].stash.iter_mut().max_by_key(|(minute, _)| **minute) {
            let spent = tokens.min(*stash);
            *stash -= spent;
            *self.spent.entry(*minute).or_default() += spent;
        }
    }

    fn call(&mut self, step: &Step) {
        let &Step::Call { replica, want, need, early, give_back, first, fate } = step else { return };
        let caller = &mut self.replicas[replica];
        let mut minutes: Vec<_> = caller.stash.keys().copied().collect();
        minutes.sort_unstable_by(|a, b| b.cmp(a));
        let give_back = give_back.and_then(|(back, tokens)| {
            let minute = *minutes.get(back)?;
            let stash = caller.stash.get_mut(&minute)?;
            let returned = tokens.min(*stash);
            // Gone from here whatever becomes of the call: a return is never sent twice.
            *stash -= returned;
            (returned > 0).then_some((minute, returned))
        });
        let target = early.then(|| minute_of(self.now) + 1);
        let (limits, seen) = (self.limits, caller.seen);
        let request = LeaseRequest { target, need: need.min(want), first, give_back, limits, seen, ..ask(want) };
        if fate == Fate::RequestLost {
            return;
        }
        let stored = Ledger::from_bytes(&self.ledger.to_bytes()).unwrap();
        assert_eq!(stored, self.ledger);
        let current = self.ledger.current_minute(self.now);
        let reply = self.ledger.lease(self.now, &request);
        assert!(reply.granted == 0 || reply.granted >= request.need, "too few to be of use: {reply:?}");
        assert!(reply.granted <= want, "more than asked for: {reply:?}");
        assert!(!(reply.recall && reply.minute > current), "an early lease recalls nothing");
        if fate == Fate::Answered {
            let caller = &mut self.replicas[replica];
            *caller.stash.entry(reply.minute).or_default() += reply.granted;
            caller.seen = reply.seen;
        }
    }

    fn check(&self) {
        let mut minutes: HashMap<Minute, u32> = self.spent.clone();
        for replica in &self.replicas {
            for (&minute, &tokens) in &replica.stash {
                *minutes.entry(minute).or_default() += tokens;
            }
        }
        let mut days: HashMap<u32, u32> = HashMap::new();
        for (&minute, &tokens) in &minutes {
            assert!(tokens <= self.limits.requests_per_minute, "minute {minute}: {tokens} spent or spendable");
            *days.entry(minute / MINUTES_A_DAY).or_default() += tokens;
        }
        for (day, tokens) in days {
            assert!(tokens <= self.limits.requests_per_day, "day {day}: {tokens} spent or spendable");
        }
        for (granted, returned) in self.ledger.minutes.iter().map(|m| (m.granted, m.returned)) {
            assert!(returned <= granted);
        }
    }
}

fn any_ledger() -> impl Strategy<Value = Ledger> {
    let minute = (any::<u32>(), any::<u32>(), any::<u32>(), any::<u32>(), any::<u64>());
    let minute = minute.prop_map(|(minute, granted, returned, active, recall)| MinuteSlot {
        minute,
        granted,
        returned,
        active,
        recall,
    });
    let day = (any::<u32>(), any::<u32>(), any::<u32>()).prop_map(|(day, granted, returned)| DaySlot {
        day,
        granted,
        returned,
    });
    ([minute.clone(), minute], [day.clone(), day]).prop_map(|(minutes, days)| Ledger { minutes, days })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_history_spends_more_than_either_limit(
        requests_per_minute in 1u32..20, requests_per_day in 1u32..60, steps in prop::collection::vec(step(), 1..80),
    ) {
        Model::run(QuotaLimits { requests_per_minute, requests_per_day }, &steps);
    }

    #[test]
    fn no_token_is_lost_while_nothing_is_lost(wants in prop::collection::vec((0usize..2, 1u32..10), 60)) {
        // All of it within one minute, everything answered: the last token can be had by asking for single ones.
        let mut model = Model::new(LIMITS);
        for (replica, want) in wants {
            let first = !model.replicas[replica].stash.contains_key(&minute_of(START));
            let fate = Fate::Answered;
            model.call(&Step::Call { replica, want, need: 1, early: false, give_back: None, first, fate });
        }
        let granted: u32 = model.replicas.iter().flat_map(|replica| replica.stash.values()).sum();
        prop_assert_eq!(granted, LIMITS.requests_per_minute);
    }

    #[test]
    fn repair_never_lowers_a_counter_and_reaches_what_callers_saw(
        granted in 0u32..20, seen in 0u32..20, day_seen in 0u32..50,
    ) {
        let mut ledger = Ledger::default();
        ledger.lease(START, &LeaseRequest { debit: Some((minute_of(START), granted)), ..ask(0) });
        let minute = minute_of(START);
        let seen = Seen { minute, minute_granted: seen, day: minute / MINUTES_A_DAY, day_granted: day_seen };
        let reply = ledger.lease(START, &LeaseRequest { seen, ..ask(0) });
        prop_assert_eq!(reply.seen.minute_granted, granted.max(seen.minute_granted));
        prop_assert_eq!(reply.seen.day_granted, granted.max(seen.day_granted));
    }

    #[test]
    fn a_ledger_reads_back_as_it_was_written(ledger in any_ledger()) {
        prop_assert_eq!(Ledger::from_bytes(&ledger.to_bytes()), Some(ledger));
    }

    #[test]
    fn no_request_makes_it_panic(
        ledger in any_ledger(), now in any::<u64>(), want in any::<u32>(), need in any::<u32>(),
        per_minute in any::<u32>(), per_day in any::<u32>(), debit in prop::option::of(any::<(u32, u32)>()),
        target in prop::option::of(any::<u32>()), give_back in prop::option::of(any::<(u32, u32)>()), first in any::<bool>(),
    ) {
        let limits = QuotaLimits { requests_per_minute: per_minute, requests_per_day: per_day };
        let seen = Seen { minute: now as u32, minute_granted: want, day: 1, day_granted: need };
        let mut ledger = ledger;
        let reply = ledger.lease(now, &LeaseRequest { target, want, need, limits, first, give_back, debit, seen });
        prop_assert!(reply.granted <= want);
    }
}

#[test]
fn bytes_of_another_length_are_no_ledger() {
    assert_eq!(Ledger::from_bytes(&[0; 71]), None);
    assert_eq!(Ledger::from_bytes(&[0; 73]), None);
    assert_eq!(Ledger::from_bytes(&[0; 72]), Some(Ledger::default()));
}

#[test]
fn both_windows_are_charged_or_neither() {
    let mut ledger = Ledger::default();
    let limits = QuotaLimits { requests_per_minute: 60, requests_per_day: 3 };
    let one = LeaseRequest { limits, ..ask(1) };
    let left: Vec<_> =
        (0..4).map(|_| ledger.lease(START, &one)).map(|r| (r.granted, r.minute_left, r.day_left)).collect();
    assert_eq!(left, [(1, 59, 2), (1, 58, 1), (1, 57, 0), (0, 57, 0)]);
    // The next minute is of the same day, the fourth of another.
    assert_eq!(ledger.lease(START + 60_000_000, &one).granted, 0);
    assert_eq!(ledger.lease(START + 180_000_000, &one).granted, 1);
}

#[test]
fn a_cost_is_granted_whole_or_not_at_all() {
    let mut ledger = Ledger::default();
    let heavy = LeaseRequest { need: 5, ..ask(5) };
    assert_eq!(ledger.lease(START, &heavy).granted, 5);
    assert_eq!(ledger.lease(START, &heavy).granted, 5);
    let refused = ledger.lease(START, &heavy);
    assert_eq!((refused.granted, refused.minute_left), (0, 2));
    assert_eq!(ledger.lease(START, &ask(1)).granted, 1, "a cheaper request still fits");
}

#[test]
fn a_late_return_is_credited_to_the_day_and_once_at_most() {
    let mut ledger = Ledger::default();
    let first = ledger.lease(START, &ask(6));
    assert_eq!(first.granted, 6);
    let back = LeaseRequest { give_back: Some((first.minute, 4)), ..ask(0) };
    let later = ledger.lease(START + 60_000_000, &back);
    assert_eq!((later.minute_left, later.day_left), (12, 38));
    let forged = LeaseRequest { give_back: Some((first.minute, 100)), ..ask(0) };
    assert_eq!(ledger.lease(START + 60_000_000, &forged).day_left, 40, "never more than was granted");
    let other_day = ledger.lease(START + 180_000_000, &LeaseRequest { give_back: Some((first.minute, 1)), ..ask(0) });
    assert_eq!(other_day.day_left, 40, "yesterday's tokens are not today's");
    // Two days on the same slots are in use again.
    let two_days_on = START + 2 * DAY_SECONDS * 1_000_000;
    let used = ledger.lease(two_days_on, &ask(6)).day_left;
    let too_late = ledger.lease(two_days_on, &LeaseRequest { give_back: Some((first.minute, 1)), ..ask(0) });
    assert_eq!((too_late.minute_left, too_late.day_left), (6, used));
}

#[test]
fn a_clock_that_goes_back_opens_no_window_twice() {
    let mut ledger = Ledger::default();
    let now = START + 60_000_000;
    assert_eq!(ledger.lease(now, &LeaseRequest { need: 12, ..ask(12) }).granted, 12);
    for back in [1, 60_000_000, 120_000_000, 3_600_000_000] {
        let (minute, before) = (minute_of(now), ledger);
        let reply = ledger.lease(now - back, &ask(0));
        assert!(reply.minute + 1 >= minute, "{back} µs back: minute {}", reply.minute);
        assert_eq!(ledger.lease(now, &ask(1)).granted, 0, "{back} µs back");
        ledger = before;
    }
}

#[test]
fn a_target_that_is_over_or_too_far_off_gets_nothing() {
    let mut ledger = Ledger::default();
    let minute = minute_of(START);
    for (target, granted) in [(minute - 1, 0), (minute, 1), (minute + 1, 1), (minute + 2, 0)] {
        let reply = ledger.lease(START, &LeaseRequest { target: Some(target), ..ask(1) });
        assert_eq!(reply.granted, granted, "target {}", i64::from(target) - i64::from(minute));
        assert_eq!(reply.granted > 0, reply.minute == target);
    }
}

#[test]
fn little_left_recalls_once_and_makes_refusals_soft_for_a_moment() {
    let mut ledger = Ledger::default();
    // A stash of many tokens is out; then single requests use up the rest.
    assert!(ledger.lease(START, &LeaseRequest { want: 6, ..ask(6) }).granted > 1);
    let mut recalls = Vec::new();
    for n in 0..12 {
        let reply = ledger.lease(START + n, &ask(1));
        if reply.recall {
            recalls.push((n, reply.soft));
        }
    }
    assert_eq!(recalls.len(), 1, "{recalls:?}");
    assert!(recalls[0].1);
    let at = START + recalls[0].0;
    let refused = |ledger: &mut Ledger, now| {
        let reply = ledger.lease(now, &ask(1));
        assert_eq!(reply.granted, 0);
        reply.soft
    };
    assert!(refused(&mut ledger, at + RECALL_ANSWER_MICROS - 1), "returns may be under way");
    assert!(!refused(&mut ledger, at + RECALL_ANSWER_MICROS), "nobody answered: refused for good");
}

#[test]
fn a_debit_is_charged_above_the_limit_and_to_both_windows() {
    let mut ledger = Ledger::default();
    let reply = ledger.lease(START, &LeaseRequest { debit: Some((minute_of(START), 15)), ..ask(1) });
    assert_eq!((reply.granted, reply.minute_left, reply.day_left), (0, 0, 25));
    assert_eq!((reply.seen.minute_granted, reply.seen.day_granted), (15, 15));
    // Of a minute that the ledger does not have any more: to the day alone; of another day: to nothing.
    let late = |minute| LeaseRequest { debit: Some((minute, 5)), ..ask(0) };
    let reply = ledger.lease(START, &late(minute_of(START) - 7));
    assert_eq!((reply.seen.minute_granted, reply.seen.day_granted), (15, 20));
    let reply = ledger.lease(START, &late(minute_of(START) - 2 * MINUTES_A_DAY));
    assert_eq!((reply.seen.minute_granted, reply.seen.day_granted), (15, 20));
}
