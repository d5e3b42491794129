//! The limiter over a store of ledgers: exactness, fairness, slowness, outage, and what it costs.

mod outage;
mod sqlite;
mod store;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::*;
use crate::policy::key::Environment;
use crate::store::Part;
use crate::store::health::State;
use store::{LedgerStore, Mood};

const FREE: QuotaLimits = QuotaLimits { requests_per_minute: 60, requests_per_day: 1_000 };
const LARGE: QuotaLimits = QuotaLimits { requests_per_minute: 1_000_000, requests_per_day: 100_000_000 };

/// `store.timeout`
const TIMEOUT: Duration = Duration::from_millis(50);

fn limiter_with(store: &Arc<LedgerStore>, outage: OutageQuota) -> Arc<Limiter> {
    let guard = Guard::new(store.clone(), store.clock.clone(), TIMEOUT, Handle::current());
    let limiter = Arc::new(Limiter::new(guard, outage));
    store.tell_recalls_to(&limiter);
    limiter
}

fn limiters(store: &Arc<LedgerStore>, n: usize) -> Vec<Arc<Limiter>> {
    (0..n).map(|_| limiter_with(store, OutageQuota::LocalShare)).collect()
}

fn subject(id: &str) -> Subject {
    Subject::new("account", Environment::Live, id)
}

type Answer = Result<QuotaState, LimitError>;

async fn burst(limiters: &[Arc<Limiter>], subject: &Subject, n: usize, cost: u32, limits: QuotaLimits) -> Vec<Answer> {
    let mut requests = JoinSet::new();
    for i in 0..n {
        let (limiter, subject) = (limiters[i % limiters.len()].clone(), subject.clone());
        requests.spawn(async move { limiter.charge(&subject, cost, limits).await.map(|(state, _)| state) });
    }
    requests.join_all().await
}

fn admitted(answers: &[Answer]) -> usize {
    answers.iter().filter(|answer| answer.is_ok()).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_requests_over_three_gateways_admit_exactly_sixty() {
    for round in 0..10 {
        let store = LedgerStore::new();
        let answers = burst(&limiters(&store, 3), &subject("a"), 1_000, 1, FREE).await;
        assert_eq!(admitted(&answers), 60, "round {round}");
        let refused = |answer: &&Answer| matches!(answer, Err(LimitError::Rejected(Rejection::RateLimited(_))));
        assert_eq!(answers.iter().filter(refused).count(), 940, "the rest is refused, none is left without an answer");
        assert_eq!(store.outstanding(&subject("a")), 60);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn dear_requests_are_charged_in_full_or_not_at_all() {
    let store = LedgerStore::new();
    let answers = burst(&limiters(&store, 3), &subject("a"), 100, 7, FREE).await;
    assert_eq!(admitted(&answers), 8, "8 x 7 = 56");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn at_four_fifths_of_the_limit_nobody_is_refused() {
    let store = LedgerStore::new();
    let limits = QuotaLimits { requests_per_minute: 300, requests_per_day: 50_000 };
    let limiters = limiters(&store, 3);
    for batch in 0..24 {
        let answers = burst(&limiters[batch % 3..=batch % 3], &subject("a"), 10, 1, limits).await;
        assert_eq!(admitted(&answers), 10, "batch {batch}: {answers:?}");
    }
}

#[tokio::test]
async fn a_thousand_requests_a_second_need_few_calls() {
    let store = LedgerStore::new();
    let limiters = limiters(&store, 1);
    for _ in 0..3_000 {
        store.clock.advance(Duration::from_millis(1));
        limiters[0].charge(&subject("a"), 1, LARGE).await.unwrap();
        tokio::task::yield_now().await;
    }
    let calls = store.calls.load(Ordering::SeqCst);
    assert!(calls <= 150, "{calls} calls for 3000 requests");
}

#[tokio::test]
async fn a_denied_subject_costs_the_store_nothing_and_a_new_minute_opens_it() {
    let store = LedgerStore::new();
    let limiters = limiters(&store, 1);
    assert_eq!(admitted(&burst(&limiters, &subject("a"), 100, 1, FREE).await), 60);
    store.clock.advance(Duration::from_millis(400));
    burst(&limiters, &subject("a"), 1, 1, FREE).await;
    let calls = store.calls.load(Ordering::SeqCst);
    assert_eq!(admitted(&burst(&limiters, &subject("a"), 500, 1, FREE).await), 0);
    assert_eq!(store.calls.load(Ordering::SeqCst), calls);
    store.clock.advance(Duration::from_secs(60));
    assert_eq!(admitted(&burst(&limiters, &subject("a"), 100, 1, FREE).await), 60);
}

#[tokio::test]
async fn a_slow_answer_is_no_outage_and_still_deposits_its_tokens() {
    let store = LedgerStore::new();
    let limiter = limiter_with(&store, OutageQuota::Allow);
    store.set(Mood::Slow(Duration::from_millis(400)));
    assert_eq!(limiter.charge(&subject("a"), 1, FREE).await, Err(LimitError::StoreUnavailable));
    assert!(limiter.shared.guard.is_well(), "pings are answered: it is slow, not gone");
    let entry = limiter.shared.entry(&subject("a"), Mono(0), FREE);
    let answered = entry.answered.notified();
    store.set(Mood::Slow(Duration::from_secs(60)));
    answered.await;
    assert!(limiter.charge(&subject("a"), 1, FREE).await.is_ok(), "on the token of the late answer");
    assert_eq!(limiter.stats().outage_admissions.get(), 0);
}

#[tokio::test]
async fn a_silent_store_is_waited_for_once_then_the_local_share_rules_and_is_paid_back() {
    let store = LedgerStore::new();
    let limiter = limiter_with(&store, OutageQuota::LocalShare);
    limiter.set_live_replicas(3);
    assert!(limiter.charge(&subject("a"), 1, FREE).await.is_ok());
    store.set(Mood::Silent);
    let started = Instant::now();
    assert!(limiter.charge(&subject("a"), 1, FREE).await.is_ok());
    let waited = started.elapsed();
    assert!(waited >= Duration::from_millis(45) && waited < PATIENCE, "{waited:?}");
    assert_eq!(limiter.shared.guard.state(Part(0)), State::Away);

    let rest = burst(std::slice::from_ref(&limiter), &subject("a"), 100, 1, FREE).await;
    assert_eq!(admitted(&rest), 59 / 3 - 1, "a third of what was left");
    assert!(rest.iter().all(|answer| !matches!(answer, Err(LimitError::StoreUnavailable))));

    store.set(Mood::Well);
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        if limiter.shared.guard.is_well() && store.outstanding(&subject("a")) >= 20 {
            break;
        }
    }
    let spent = 1 + 59 / 3;
    let lost_or_held = store.outstanding(&subject("a")) - spent;
    assert!(lost_or_held <= 2, "the debt was told: {}", store.outstanding(&subject("a")));
}

#[tokio::test]
async fn a_full_disk_lets_known_subjects_go_on_and_is_noticed_at_once_when_it_ends() {
    let store = LedgerStore::new();
    let limiter = limiter_with(&store, OutageQuota::LocalShare);
    store.set(Mood::Down);
    let one = std::slice::from_ref(&limiter);
    assert_eq!(admitted(&burst(one, &subject("a"), 200, 1, FREE).await), 60, "alone: the whole limit is its share");
    let calls = store.calls.load(Ordering::SeqCst);
    assert!(calls <= 2, "{calls} calls: no hammering");
    store.set(Mood::Well);
    let started = Instant::now();
    while !limiter.shared.guard.is_well() {
        assert!(started.elapsed() < Duration::from_secs(2));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(admitted(&burst(one, &subject("a"), 10, 1, FREE).await), 0, "what was admitted meanwhile is paid for");
}

#[tokio::test]
async fn reject_and_allow_do_what_they_say_and_reject_recovers() {
    let store = LedgerStore::new();
    store.set(Mood::Down);
    let reject = limiter_with(&store, OutageQuota::Reject);
    assert_eq!(reject.charge(&subject("a"), 1, FREE).await, Err(LimitError::StoreUnavailable));
    let allow = limiter_with(&store, OutageQuota::Allow);
    assert_eq!(admitted(&burst(&[allow], &subject("b"), 200, 1, FREE).await), 200);

    store.set(Mood::Well);
    let started = Instant::now();
    while reject.charge(&subject("a"), 1, FREE).await.is_err() {
        assert!(started.elapsed() < Duration::from_secs(2), "a probe a second must have found it");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn shutting_down_gives_every_token_back() {
    let store = LedgerStore::new();
    let limiters = limiters(&store, 2);
    for _ in 0..20 {
        store.clock.advance(Duration::from_millis(5));
        burst(&limiters, &subject("a"), 2, 1, LARGE).await;
    }
    assert!(store.outstanding(&subject("a")) > 40, "they hold more than they spent");
    for limiter in &limiters {
        limiter.shut_down(Duration::from_secs(5)).await;
        assert_eq!(limiter.charge(&subject("a"), 1, LARGE).await, Err(LimitError::StoreUnavailable));
    }
    assert_eq!(store.outstanding(&subject("a")), 40);
}

#[tokio::test]
async fn without_recalls_an_idle_stash_goes_back_by_itself() {
    let store = LedgerStore::new();
    let limiter = limiter_with(&store, OutageQuota::LocalShare);
    for _ in 0..20 {
        store.clock.advance(Duration::from_millis(5));
        limiter.charge(&subject("a"), 1, LARGE).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert!(store.outstanding(&subject("a")) > 20);
    limiter.feed_lost();
    let started = Instant::now();
    while store.outstanding(&subject("a")) > 20 {
        assert!(started.elapsed() < Duration::from_secs(3), "{} tokens are out", store.outstanding(&subject("a")));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_client_that_goes_away_while_it_waits_spends_nothing() {
    let store = LedgerStore::new();
    let limiter = limiter_with(&store, OutageQuota::LocalShare);
    store.set(Mood::Slow(Duration::from_millis(30)));
    {
        let subject = subject("a");
        let mut request = std::pin::pin!(limiter.charge(&subject, 50, FREE));
        assert!(tokio::time::timeout(Duration::from_millis(5), &mut request).await.is_err());
    }
    store.set(Mood::Well);
    let answers = burst(std::slice::from_ref(&limiter), &subject("a"), 100, 1, FREE).await;
    assert_eq!(admitted(&answers), 60);
}

#[tokio::test]
async fn looking_at_the_state_charges_nothing() {
    let store = LedgerStore::new();
    let limiters = limiters(&store, 2);
    // Three: not enough to look like a burst, for which the first gateway would take more than it spends.
    assert_eq!(admitted(&burst(&limiters[..1], &subject("a"), 3, 1, FREE).await), 3);
    let state = limiters[1].peek(&subject("a"), FREE).await.unwrap();
    assert_eq!((state.minute.limit, state.minute.remaining, state.day.remaining), (60, 57, 997));
    let calls = store.calls.load(Ordering::SeqCst);
    limiters[1].peek(&subject("a"), FREE).await.unwrap();
    assert_eq!(store.calls.load(Ordering::SeqCst), calls, "known by now");
    store.set(Mood::Down);
    assert_eq!(limiters[1].peek(&subject("b"), FREE).await, Err(LimitError::StoreUnavailable));
}

#[tokio::test]
async fn idle_subjects_are_forgotten() {
    let store = LedgerStore::new();
    let limiter = limiter_with(&store, OutageQuota::LocalShare);
    limiter.charge(&subject("a"), 1, FREE).await.unwrap();
    store.clock.advance(Duration::from_secs(200));
    let started = Instant::now();
    while !limiter.shared.shard(&subject("a")).is_empty() {
        assert!(started.elapsed() < Duration::from_secs(4));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    limiter.charge(&subject("a"), 1, FREE).await.unwrap();
}

/// Prints what a request costs that finds a token. Run with optimisation:
/// `CARGO_PROFILE_DEV_OPT_LEVEL=3 cargo test --lib limit::tests::cost -- --ignored --nocapture`
#[tokio::test]
#[ignore = "a measurement, not a check"]
async fn cost_of_the_fast_path() {
    let store = LedgerStore::new();
    let limiter = limiter_with(&store, OutageQuota::LocalShare);
    let subject = subject("0190a5b2-7c3e-7d4f-8a1b-2c3d4e5f6a7b");
    let limits = QuotaLimits { requests_per_minute: 2_000_000_000, requests_per_day: 2_000_000_000 };
    const N: u32 = 1_000_000;
    let started = Instant::now();
    (0..N).for_each(|_| {
        std::hint::black_box(limiter.shared.clock.mono());
    });
    println!("{:?} of it for the clock", started.elapsed() / N);
    for _ in 0..5 {
        let started = Instant::now();
        for i in 0..N {
            limiter.charge(&subject, 1, limits).await.unwrap();
            if i % 1024 == 0 {
                tokio::task::yield_now().await;
            }
        }
        let took = started.elapsed() / N;
        println!("{took:?} a request, {} waited in all", limiter.stats().waited.get());
    }
}
