//! The states one by one, against the real ledger where an answer is needed.

use super::*;
use crate::policy::quota::{LeaseReply, Ledger};

const MINUTE: u64 = 60_000_000;
const START: u64 = 29_000_000 * MINUTE;
const LIMITS: QuotaLimits = QuotaLimits { requests_per_minute: 60, requests_per_day: 1_000 };

/// One replica, one ledger, one clock; answers are immediate unless a test says otherwise.
struct Bench {
    lease: SubjectLease,
    ledger: Ledger,
    now: u64,
    calls: u32,
}

impl Bench {
    fn new() -> Self {
        Self { lease: SubjectLease::new(Mono(0), LIMITS), ledger: Ledger::default(), now: 0, calls: 0 }
    }

    fn mono(&self) -> Mono {
        Mono(self.now)
    }

    fn answer(&mut self, call: &Call) -> LeaseReply {
        self.calls += 1;
        self.ledger.lease(START + self.now, &call.request)
    }

    fn settle(&mut self, waiting: Waiting) {
        while let Some(purpose) = self.lease.wants_call(self.mono(), waiting) {
            let call = self.lease.start_call(self.mono(), purpose, waiting, false);
            let reply = self.answer(&call);
            self.lease.on_reply(self.mono(), call.id, &reply, 0);
            if purpose == Purpose::Refill {
                break;
            }
        }
    }

    fn request(&mut self, cost: u32) -> Decision {
        let mut decision = self.lease.take(self.mono(), cost, LIMITS);
        for _ in 0..20 {
            if decision != Decision::Wait {
                break;
            }
            self.settle(Waiting { first: cost, total: cost });
            decision = self.lease.decide(self.mono(), cost, LIMITS);
            if decision == Decision::Wait {
                self.now += 3_000;
            }
        }
        self.settle(Waiting::default());
        decision
    }

    fn admitted(&mut self, cost: u32) -> bool {
        matches!(self.request(cost), Decision::Admit(..))
    }

    fn returned(&self) -> u32 {
        u32::from_le_bytes(self.ledger.to_bytes()[8..12].try_into().unwrap())
    }

    /// Ten requests a millisecond apart, so that the next leases hold several tokens.
    fn warm_up(&mut self) {
        for _ in 0..10 {
            self.now += 1_000;
            assert!(self.admitted(1));
        }
        assert!(self.lease.unspent() > 1, "{:?}", self.lease);
    }
}

#[test]
fn exactly_the_limit_is_admitted_and_then_no_call_is_made_until_the_minute_ends() {
    let mut bench = Bench::new();
    let admitted = (0..100).filter(|_| bench.admitted(1)).count();
    assert_eq!(admitted, 60);
    bench.now = 1_000_000;
    assert!(!bench.admitted(1), "the second look after a recall, if one is due");
    let calls = bench.calls;
    for _ in 0..1_000 {
        let Decision::Deny(state) = bench.request(1) else { panic!("admitted beyond the limit") };
        assert_eq!((state.minute.remaining, state.violated.minute, state.violated.day), (0, true, false));
    }
    assert_eq!(bench.calls, calls, "a denied subject costs the store nothing");
    bench.now = MINUTE;
    assert!(bench.admitted(1), "a new minute");
}

#[test]
fn remaining_counts_down_and_the_windows_are_the_stores() {
    let mut bench = Bench::new();
    for used in 1..=20 {
        let Decision::Admit(state, _) = bench.request(1) else { panic!("refused") };
        assert_eq!((state.minute.remaining, state.day.remaining), (60 - used, 1_000 - used));
        assert_eq!(state.minute.reset, START / 1_000_000 + 60);
    }
}

#[test]
fn a_cost_is_charged_in_full_or_not_at_all() {
    let mut bench = Bench::new();
    let admitted = (0..20).filter(|_| bench.admitted(7)).count();
    assert_eq!(admitted, 8, "8 x 7 = 56; the ninth would need 63");
    assert!(bench.admitted(4), "what is left is for requests that cost less");
    assert!(!bench.admitted(1));
}

#[test]
fn a_cost_above_the_limit_is_refused_not_awaited() {
    let mut bench = Bench::new();
    assert!(matches!(bench.request(61), Decision::Deny(_)));
    assert!(bench.admitted(1));
}

#[test]
fn a_recall_gives_everything_back_in_one_call_and_asks_for_single_tokens_for_a_while() {
    let mut bench = Bench::new();
    bench.warm_up();
    let (held, calls) = (bench.lease.unspent(), bench.calls);
    let minute = bench.lease.grant.unwrap().minute;
    bench.lease.on_recall(bench.mono(), minute);
    assert_eq!(bench.lease.unspent(), 0);
    bench.settle(Waiting::default());
    assert_eq!((bench.calls, bench.returned()), (calls + 1, held));
    assert!(bench.admitted(1));
    assert_eq!(bench.lease.unspent(), 0, "one token at a time");
    bench.now += 150_000;
    bench.request(1);
    assert!(bench.lease.unspent() > 0);
}

#[test]
fn a_recall_overtakes_a_grant() {
    let mut bench = Bench::new();
    bench.warm_up();
    let waiting = Waiting { first: 30, total: 30 };
    let call = bench.lease.start_call(bench.mono(), Purpose::Refill, waiting, false);
    let mut reply = bench.answer(&call);
    let more = 40 - reply.granted;
    reply.granted += more;
    (reply.seen.minute_granted, reply.seen.day_granted) =
        (reply.seen.minute_granted + more, reply.seen.day_granted + more);
    let minute = reply.minute;
    bench.now += 500;
    bench.lease.on_recall(bench.mono(), minute);
    bench.lease.on_reply(bench.mono(), call.id, &reply, 0);
    assert_eq!(bench.lease.unspent(), call.request.need, "only what a request waits for");
}

#[test]
fn lapsed_tokens_are_owed_to_the_day() {
    let mut bench = Bench::new();
    bench.warm_up();
    let held = bench.lease.unspent();
    bench.now = MINUTE + 1_000;
    bench.lease.tick(bench.mono(), true);
    assert!(bench.lease.wants_call(bench.mono(), Waiting::default()).is_none(), "no hurry");
    let Decision::Admit(state, _) = bench.request(1) else { panic!("refused") };
    assert_eq!(bench.returned(), held, "they went along with the next call");
    assert_eq!(state.day.remaining, 1_000 - 11);
}

#[test]
fn lapsed_tokens_go_back_by_themselves_within_two_seconds() {
    let mut bench = Bench::new();
    bench.warm_up();
    bench.now = MINUTE;
    bench.lease.tick(bench.mono(), true);
    bench.now += 2_000_000;
    assert_eq!(bench.lease.wants_call(bench.mono(), Waiting::default()), Some(Purpose::Settle));
}

#[test]
fn a_lost_answer_is_forgotten_and_never_asked_twice() {
    let mut bench = Bench::new();
    bench.warm_up();
    bench.lease.shut_down(bench.mono());
    let call = bench.lease.start_call(bench.mono(), Purpose::Settle, Waiting::default(), false);
    assert!(call.request.give_back.is_some());
    bench.lease.on_failure(bench.mono(), call.id, Failure::Unknown);
    assert!(bench.lease.is_idle(bench.mono()), "neither tokens nor a return are remembered");
}

#[test]
fn what_was_certainly_not_done_is_done_later() {
    let mut bench = Bench::new();
    bench.warm_up();
    let held = bench.lease.unspent();
    bench.lease.shut_down(bench.mono());
    let call = bench.lease.start_call(bench.mono(), Purpose::Settle, Waiting::default(), false);
    bench.lease.on_failure(bench.mono(), call.id, Failure::NotDone);
    bench.settle(Waiting::default());
    assert_eq!(bench.returned(), held);
    assert!(bench.lease.is_idle(bench.mono()));
}

#[test]
fn a_duplicate_and_a_late_answer_add_nothing_to_spend() {
    let mut bench = Bench::new();
    let waiting = Waiting { first: 1, total: 5 };
    let call = bench.lease.start_call(bench.mono(), Purpose::Refill, waiting, false);
    let reply = bench.answer(&call);
    bench.now += 300_000;
    bench.lease.on_reply(bench.mono(), call.id, &reply, 0);
    assert_eq!(bench.lease.unspent(), 5, "late, but in its minute");
    bench.lease.on_reply(bench.mono(), call.id, &reply, 0);
    assert_eq!(bench.lease.unspent(), 5);

    let call = bench.lease.start_call(bench.mono(), Purpose::Refill, waiting, false);
    let reply = bench.answer(&call);
    bench.now = MINUTE + 1;
    bench.lease.on_reply(bench.mono(), call.id, &reply, 0);
    bench.lease.tick(bench.mono(), true);
    assert_eq!(bench.lease.unspent(), 0, "after the deadline it is only owed");
    assert_eq!(bench.lease.owed.of(reply.minute), 5 + reply.granted);
}

#[test]
fn a_busy_subject_asks_early_for_the_next_minute_and_does_not_wait_at_its_start() {
    let limits = QuotaLimits { requests_per_minute: 100_000, requests_per_day: 10_000_000 };
    let mut bench = Bench::new();
    let mut waited = 0;
    for i in 0..62_000 {
        bench.now = i * 1_000;
        if bench.lease.take(bench.mono(), 1, limits) == Decision::Wait {
            waited += u32::from(i > 59_900);
            bench.settle(Waiting { first: 1, total: 1 });
            assert!(matches!(bench.lease.decide(bench.mono(), 1, limits), Decision::Admit(..)));
        }
        bench.settle(Waiting::default());
    }
    assert!(waited <= 1, "{waited} requests waited around the change of the minute");
    assert!(bench.calls < 600, "{}", bench.calls);
}

#[test]
fn other_limits_forget_a_denial_and_lower_ones_give_tokens_back() {
    let mut bench = Bench::new();
    while bench.admitted(1) {}
    let more = QuotaLimits { requests_per_minute: 300, ..LIMITS };
    assert_eq!(bench.lease.take(bench.mono(), 1, more), Decision::Wait, "the store may know better");
    bench.settle(Waiting { first: 1, total: 20 });
    assert!(bench.lease.unspent() > 1);
    assert!(!matches!(bench.lease.take(bench.mono(), 1, LIMITS), Decision::Admit(..)));
    assert_eq!(bench.lease.unspent(), 0);
}

#[test]
fn while_recalls_cannot_be_heard_an_idle_stash_goes_back() {
    let mut bench = Bench::new();
    bench.warm_up();
    bench.now += 600_000;
    bench.lease.tick(bench.mono(), true);
    assert!(bench.lease.unspent() > 0);
    bench.lease.tick(bench.mono(), false);
    assert_eq!(bench.lease.unspent(), 0);
    assert_eq!(bench.lease.wants_call(bench.mono(), Waiting::default()), Some(Purpose::Settle));
}

#[test]
fn an_outage_spends_tokens_then_the_local_share_and_pays_afterwards() {
    let mut bench = Bench::new();
    bench.warm_up();
    let outage = Outage { unlimited: false, replicas: 3, wall_micros: 0 };
    let left = bench.lease.known.unwrap().minute_left;
    let mut in_hand = 0;
    while matches!(bench.lease.take(bench.mono(), 1, LIMITS), Decision::Admit(..)) {
        in_hand += 1;
    }
    assert!(in_hand > 0);
    let local = |bench: &mut Bench| {
        (0..200).filter(|_| matches!(bench.lease.take_local(bench.mono(), 1, outage), Decision::Admit(..))).count()
    };
    assert_eq!(local(&mut bench), left as usize / 3, "the share of what was left");
    bench.now = MINUTE + 1;
    bench.lease.tick(bench.mono(), true);
    assert_eq!(local(&mut bench), 20, "a third of the limit in a window that the store never spoke of");

    bench.settle(Waiting::default());
    let Decision::Admit(state, _) = bench.request(1) else { panic!("refused") };
    assert_eq!(state.minute.remaining, 60 - 20 - 1);
    assert_eq!(u64::from(state.day.remaining), 1_000 - 10 - in_hand - u64::from(left) / 3 - 20 - 1);
}

#[test]
fn without_any_knowledge_a_share_is_at_least_one_and_the_wall_clock_tells_the_window() {
    let mut bench = Bench::new();
    let outage = Outage { unlimited: false, replicas: 500, wall_micros: START + 1_000_000 };
    let Decision::Admit(state, _) = bench.lease.take_local(bench.mono(), 1, outage) else { panic!("refused") };
    assert_eq!((state.minute.remaining, state.minute.reset), (0, START / 1_000_000 + 60));
    assert!(matches!(bench.lease.take_local(bench.mono(), 1, outage), Decision::Deny(_)));
    let allow = Outage { unlimited: true, ..outage };
    assert!(matches!(bench.lease.take_local(bench.mono(), 1, allow), Decision::Admit(..)));
}

#[test]
fn a_probe_carries_nothing_that_may_be_lost() {
    let mut bench = Bench::new();
    bench.warm_up();
    let minute = bench.lease.grant.unwrap().minute;
    bench.lease.on_recall(bench.mono(), minute);
    let call = bench.lease.start_call(bench.mono(), Purpose::Settle, Waiting::default(), true);
    assert_eq!((call.request.give_back, call.request.debit), (None, None));
    bench.lease.on_failure(bench.mono(), call.id, Failure::Unknown);
    assert!(bench.lease.owed.of(minute) > 0);
}

#[test]
fn a_day_that_is_used_up_refuses_by_the_day() {
    let limits = QuotaLimits { requests_per_minute: 60, requests_per_day: 10 };
    let mut bench = Bench::new();
    for _ in 0..10 {
        if bench.lease.take(bench.mono(), 1, limits) == Decision::Wait {
            bench.settle(Waiting { first: 1, total: 1 });
            assert!(matches!(bench.lease.decide(bench.mono(), 1, limits), Decision::Admit(..)));
        }
    }
    while bench.lease.decide(bench.mono(), 1, limits) == Decision::Wait {
        bench.settle(Waiting { first: 1, total: 1 });
        bench.now += 3_000;
    }
    let Decision::Deny(state) = bench.lease.decide(bench.mono(), 1, limits) else { panic!("admitted") };
    assert_eq!((state.violated.minute, state.violated.day), (false, true));
    assert_eq!((state.shown().remaining, state.shown().limit), (0, 10));
    assert!(state.retry_after() > 60);
}

#[test]
fn an_unused_permit_can_be_put_back() {
    let mut bench = Bench::new();
    let Decision::Admit(_, minute) = bench.request(5) else { panic!("refused") };
    bench.lease.put_back(bench.mono(), minute, 5);
    assert_eq!((0..100).filter(|_| bench.admitted(1)).count(), 60);
}

#[test]
fn what_is_put_back_after_the_end_goes_back_at_once() {
    let mut bench = Bench::new();
    let Decision::Admit(_, minute) = bench.request(1) else { panic!("refused") };
    bench.lease.shut_down(bench.mono());
    assert_eq!(bench.lease.wants_call(bench.mono(), Waiting::default()), None, "there is nothing to give back");
    bench.lease.put_back(bench.mono(), minute, 1);
    bench.settle(Waiting::default());
    assert_eq!(bench.returned(), 1);
    assert!(bench.lease.is_idle(bench.mono()));
}

#[test]
fn after_a_refusal_remaining_stays_at_zero_whatever_comes_back() {
    let mut bench = Bench::new();
    let Decision::Admit(_, minute) = bench.request(1) else { panic!("refused") };
    while bench.admitted(1) {}
    // Unlike what was put back before it, this the last answer did not know of.
    bench.lease.known.as_mut().unwrap().minute_left = 2;
    bench.lease.shown = Shown::default();
    let Decision::Deny(state) = bench.request(1) else { panic!("admitted") };
    assert_eq!((state.minute.remaining, state.violated.minute), (0, true));
    bench.lease.put_back(bench.mono(), minute, 1);
    let Decision::Admit(state, _) = bench.request(1) else { panic!("refused") };
    assert_eq!(state.minute.remaining, 0);
}

/// The replica calls so close to the end of a minute that it tells of the next, while the store, which lost its memory, is still
/// in the old one.
#[test]
fn what_a_forgetful_ledger_grants_without_having_been_told_is_not_spent() {
    let mut bench = Bench::new();
    while bench.admitted(1) {}
    bench.ledger = Ledger::default();
    // The replica's clock is ahead: it takes the minute for over, and the denial is.
    bench.now = MINUTE - 10;
    bench.lease.clock = Some(StoreClock::heard(bench.mono(), START + MINUTE));
    let waiting = Waiting { first: 1, total: 1 };
    assert_eq!(bench.lease.take(bench.mono(), 1, LIMITS), Decision::Wait);
    let call = bench.lease.start_call(bench.mono(), Purpose::Refill, waiting, false);
    let reply = bench.answer(&call);
    assert!(reply.granted > 0, "the store cannot know");
    bench.lease.on_reply(bench.mono(), call.id, &reply, 0);
    assert_eq!(bench.lease.decide(bench.mono(), 1, LIMITS), Decision::Wait);
    let call = bench.lease.start_call(bench.mono(), Purpose::Refill, waiting, false);
    assert_eq!(bench.answer(&call).granted, 0, "now it was told");
}

#[test]
fn an_early_lease_whose_minute_passed_unnoticed_is_owed() {
    let mut bench = Bench::new();
    bench.warm_up();
    let call = bench.lease.start_call(bench.mono(), Purpose::Early, Waiting::default(), false);
    let reply = bench.answer(&call);
    // The process is suspended meanwhile.
    bench.now = 2 * MINUTE;
    bench.lease.on_reply(bench.mono(), call.id, &reply, 0);
    let early = bench.lease.early.unwrap();
    let call = bench.lease.start_call(bench.mono(), Purpose::Refill, Waiting { first: 1, total: 1 }, false);
    let reply = bench.answer(&call);
    bench.lease.on_reply(bench.mono(), call.id, &reply, 0);
    assert_eq!(bench.lease.owed.of(early.minute), early.tokens);
}

/// One replica holds tokens and has nothing to do; another wants all that is left, and the recall between them takes `delay`.
/// Returns what was admitted in all before the first refusal, and within two seconds.
fn one_hoards_the_other_wants(delay: u64) -> (u32, u32) {
    let mut bench = Bench::new();
    bench.warm_up();
    let newcomer = SubjectLease::new(bench.mono(), LIMITS);
    let mut hoarder = std::mem::replace(&mut bench.lease, newcomer);
    let (mut admitted, mut at_first_refusal, mut recall_due, mut waits) = (10, None, None, false);
    while bench.now < 2_000_000 {
        bench.now += 1_000;
        if recall_due.take_if(|due| *due <= bench.now).is_some() {
            std::mem::swap(&mut bench.lease, &mut hoarder);
            bench.lease.on_recall(bench.mono(), (START / MINUTE) as Minute);
            bench.settle(Waiting::default());
            std::mem::swap(&mut bench.lease, &mut hoarder);
        }
        let now = bench.mono();
        match if waits { bench.lease.decide(now, 1, LIMITS) } else { bench.lease.take(now, 1, LIMITS) } {
            Decision::Wait => waits = true,
            Decision::Admit(..) => (admitted, waits) = (admitted + 1, false),
            Decision::Deny(_) => {
                at_first_refusal.get_or_insert(admitted);
                waits = false;
            }
        }
        let waiting = Waiting { first: waits.into(), total: waits.into() };
        if let Some(purpose) = bench.lease.wants_call(now, waiting) {
            let call = bench.lease.start_call(now, purpose, waiting, false);
            let reply = bench.answer(&call);
            if reply.recall {
                recall_due = Some(bench.now + delay);
            }
            bench.lease.on_reply(now, call.id, &reply, 0);
        }
    }
    (at_first_refusal.unwrap(), admitted)
}

#[test]
fn a_prompt_recall_spares_everybody_a_refusal_and_a_slow_one_loses_nothing() {
    assert_eq!(one_hoards_the_other_wants(12_000), (60, 60));
    let (before, in_all) = one_hoards_the_other_wants(150_000);
    assert!(before < 60);
    assert_eq!(in_all, 60, "found at the second look");
}
