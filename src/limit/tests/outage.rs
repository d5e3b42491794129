//! What is admitted without the store, part by part, in simulated time.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::store::BASE;
use super::*;
use crate::clock::SimulatedClock;
use crate::store::faulty::{Fault, FaultyStore, Method};
use crate::store::memory::MemoryStore;

struct Simulation {
    clock: Arc<SimulatedClock>,
    store: Arc<FaultyStore>,
    limiters: Vec<Arc<Limiter>>,
}

/// Gateways on one store, one second into a minute. The ledgers of subjects named `1…` are in another part.
fn simulation(gateways: usize, outage: OutageQuota) -> Simulation {
    let clock = SimulatedClock::shared(BASE);
    let stores_clock = clock.clone();
    let memory = MemoryStore::with_clock(Arc::new(move || stores_clock.wall_micros()));
    let part_one = |s: &Subject| Part(usize::from([subject("1"), subject("1-b")].contains(s)));
    let store = FaultyStore::in_parts(memory, part_one);
    let limiters = (0..gateways).map(|_| {
        let guard = Guard::new(store.clone(), clock.clone(), TIMEOUT, Handle::current());
        let limiter = Arc::new(Limiter::new(guard, outage));
        limiter.set_live_replicas(gateways as u32);
        limiter
    });
    Simulation { limiters: limiters.collect(), clock, store }
}

impl Simulation {
    fn minute(&self) -> u64 {
        self.clock.wall_micros() / 60_000_000
    }
}

#[tokio::test(start_paused = true)]
async fn a_part_that_is_away_is_decided_locally_while_the_others_stay_exact() {
    let s = simulation(3, OutageQuota::LocalShare);
    s.store.inject_into(Part(1), Fault::Hold);
    // Each gateway meets the silence once.
    for limiter in &s.limiters {
        limiter.charge(&subject("1"), 1, FREE).await.unwrap();
    }
    let well = burst(&s.limiters, &subject("0"), 1_000, 1, FREE).await;
    assert_eq!(admitted(&well), 60, "exact");
    let started = Instant::now();
    let alone = burst(&s.limiters, &subject("1"), 1_000, 1, FREE).await;
    assert_eq!(admitted(&alone), 60 - 3, "a third each");
    let other = burst(&s.limiters[..1], &subject("1-b"), 1_000, 1, FREE).await;
    assert_eq!((admitted(&other), started.elapsed()), (20, Duration::ZERO), "and nobody waits");
    for limiter in &s.limiters[1..] {
        assert_eq!(limiter.outage_bound().await, 20.0);
        assert_eq!((limiter.stats().outage_admissions.get(), limiter.shared.guard.opened()), (20, 1));
    }
    assert_eq!(s.limiters[0].outage_bound().await, 40.0, "of two subjects, and none of the other part");
    s.store.heal();
    sleep(Duration::from_millis(1_200)).await;
    assert!(s.limiters.iter().all(|limiter| limiter.shared.guard.is_well()));
    assert_eq!(s.limiters[0].outage_bound().await, 0.0);
    // The next round of housekeeping tells the store what was admitted.
    sleep(Duration::from_millis(600)).await;
    let paid = burst(&s.limiters, &subject("1"), 100, 1, FREE).await;
    assert_eq!(admitted(&paid), 0, "all of it was charged");
}

/// The promise of the metric and of the README, over three windows of an outage.
#[tokio::test(start_paused = true)]
async fn no_gateway_admits_more_without_a_grant_than_its_bound_and_all_together_no_more_than_the_limit() {
    let subjects: Vec<Subject> = (0..10).map(|i| subject(&format!("s{i}"))).collect();
    let s = simulation(3, OutageQuota::LocalShare);
    // Unevenly known: the first gateway has used up most of the first subjects, the third knows none of them.
    for subject in &subjects[..5] {
        assert_eq!(admitted(&burst(&s.limiters[..1], subject, 50, 1, FREE).await), 50);
        assert_eq!(admitted(&burst(&s.limiters[1..2], subject, 2, 1, FREE).await), 2);
    }
    sleep(Duration::from_secs(20)).await;
    s.store.inject_everywhere(Fault::Hold);
    let mut windows: Vec<Window> = Vec::new();
    for _ in 0..200 {
        if windows.last().is_none_or(|window| window.minute != s.minute()) {
            windows.push(Window { minute: s.minute(), admitted: 0, alone: [0; 3] });
        }
        let window = windows.last_mut().unwrap();
        for (limiter, alone) in s.limiters.iter().zip(&mut window.alone) {
            let before = limiter.stats().outage_admissions.get();
            let mut requests = JoinSet::new();
            for subject in subjects.iter().cycle().take(70) {
                let (limiter, subject) = (limiter.clone(), subject.clone());
                requests.spawn(async move { limiter.charge(&subject, 1, FREE).await.is_ok() });
            }
            window.admitted += requests.join_all().await.into_iter().filter(|admitted| *admitted).count();
            *alone += limiter.stats().outage_admissions.get() - before;
            assert!(*alone as f64 <= limiter.outage_bound().await, "{alone}");
        }
        sleep(Duration::from_millis(997)).await;
    }
    let [first, second, third, last] = windows.as_slice() else { panic!("{windows:?}") };
    // What was granted before the outage was spent, too: 52 of 60 for five of the subjects.
    assert!(first.admitted + 5 * 52 <= 10 * 60 + 5 * 52 * 2 / 3, "{first:?}");
    assert!(first.alone.iter().all(|alone| *alone > 50), "{first:?}");
    assert!(second.admitted == 10 * 60 && third.admitted == 10 * 60, "{windows:?}");
    assert!(last.admitted <= 10 * 60, "{last:?}");
}

#[derive(Debug)]
struct Window {
    minute: u64,
    admitted: usize,
    alone: [u64; 3],
}

#[tokio::test(start_paused = true)]
async fn more_gateways_than_the_limit_admit_one_each() {
    let s = simulation(100, OutageQuota::LocalShare);
    s.store.inject_everywhere(Fault::Unavailable);
    assert_eq!(admitted(&burst(&s.limiters, &subject("a"), 1_000, 1, FREE).await), 100, "max(60, 100)");
}

#[tokio::test(start_paused = true)]
async fn the_bound_is_nothing_under_reject_and_everything_under_allow() {
    let (reject, allow) = (simulation(1, OutageQuota::Reject), simulation(1, OutageQuota::Allow));
    for (s, answered, bound) in [(&reject, 0, 0.0), (&allow, 200, f64::INFINITY)] {
        assert_eq!(s.limiters[0].outage_bound().await, 0.0);
        s.store.inject_everywhere(Fault::Hold);
        assert_eq!(admitted(&burst(&s.limiters, &subject("a"), 200, 1, FREE).await), answered);
        assert_eq!(s.limiters[0].outage_bound().await, bound);
        let started = Instant::now();
        assert_eq!(admitted(&burst(&s.limiters, &subject("b"), 200, 1, FREE).await), answered);
        assert_eq!(started.elapsed(), Duration::ZERO, "decided at once");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_out_when_the_store_went_away_does_not_keep_its_subject_waiting_once_it_is_back() {
    let s = simulation(1, OutageQuota::LocalShare);
    s.store.inject_everywhere(Fault::Hold);
    s.limiters[0].charge(&subject("a"), 1, FREE).await.unwrap();
    s.store.heal();
    sleep(Duration::from_millis(1_300)).await;
    let started = Instant::now();
    for _ in 0..30 {
        s.limiters[0].charge(&subject("a"), 1, FREE).await.unwrap();
    }
    assert_eq!(started.elapsed(), Duration::ZERO);
    assert_eq!(s.limiters[0].stats().outage_admissions.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_state_of_a_subject_is_not_waited_for_in_an_outage() {
    let s = simulation(1, OutageQuota::LocalShare);
    s.store.inject_everywhere(Fault::Hold);
    let started = Instant::now();
    assert_eq!(s.limiters[0].peek(&subject("a"), FREE).await, Err(LimitError::StoreUnavailable));
    assert!(started.elapsed() <= TIMEOUT + Duration::from_millis(10), "{:?}", started.elapsed());
    let calls = s.store.calls(Method::Lease);
    assert_eq!(s.limiters[0].peek(&subject("b"), FREE).await, Err(LimitError::StoreUnavailable));
    assert_eq!(s.store.calls(Method::Lease), calls);
}
