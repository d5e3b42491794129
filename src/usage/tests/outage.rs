//! A store that is away for an hour, and more distinct counters than are kept.

use super::*;
use crate::policy::resource::Kind;
use crate::usage::counts::{Counts, Name};
use crate::usage::ledger::Ledger;

/// A minute of traffic, in distinct counters: 5 keys and 4 models.
const DISTINCT: f64 = 5.0 * (1.0 + 1.0 + 4.0);

/// An hour in which no flush succeeds, at one a second.
async fn hour(f: &mut Fixture, ticks: usize) -> u64 {
    f.store.inject(Method::FlushUsage, Fault::Unavailable);
    let mut sent = 0;
    for second in 0..3600_usize {
        for n in 0..ticks {
            for key in 0..5 {
                f.request_of(key, &format!("m-{}", (second + n) % 4), DAY.start());
                sent += 1;
            }
            if f.usage().has_journal() {
                f.usage().write_down().await.unwrap();
            }
        }
        assert!(f.usage().flush().await.is_err());
        if second % 60 == 59 {
            // The first batch is frozen, the rest waits in sums: no counter is there more than twice.
            let pending = f.metric("gateway_usage_pending");
            assert!(pending <= 2.0 * DISTINCT, "after {second} s: {pending}");
            (0..5).for_each(|key| f.read_key_again(key));
        }
    }
    sent
}

#[tokio::test]
async fn an_hour_without_the_store_loses_nothing_counts_once_and_takes_no_more_memory() {
    let mut f = Fixture::new();
    let key = Arc::downgrade(&f.keys[0]);
    let sent = hour(&mut f, 1).await;
    assert!(key.upgrade().is_none(), "counters keep no key alive");
    f.store.inject_times(Method::FlushUsage, Fault::LoseReply, 2);
    assert!(f.usage().flush().await.is_err());
    assert!(f.usage().flush().await.is_err());
    f.usage().flush().await.unwrap();
    assert_eq!(f.requests_stored().await, sent);
    assert_eq!(f.metric("gateway_usage_pending"), 0.0);
}

#[tokio::test]
async fn an_hour_without_the_store_is_in_the_journal_to_the_last_request() {
    let mut f = Fixture::with(true, Bounds::USUAL);
    let sent = hour(&mut f, 3).await;
    f.kill_and_start();
    f.store.heal();
    f.usage().flush().await.unwrap();
    assert_eq!(f.requests_stored().await, sent);
}

#[tokio::test]
async fn past_the_bound_nothing_is_told_apart_and_totals_stay_right() {
    for journal in [false, true] {
        let mut f = Fixture::with(journal, Bounds { counts: 40, resources: 20, batch: 7 });
        f.store.inject(Method::FlushUsage, Fault::Unavailable);
        for n in 0..600_usize {
            let day = Day(DAY.0 + (n / 100) as i32);
            f.request_of(n % 5, &format!("m-{n}"), day.start());
            assert!(f.usage().flush().await.is_err());
        }
        // One counter a key and day is the least that totals need: 5 keys and 6 days, and as many for resources.
        assert!(f.metric("gateway_usage_pending") <= 40.0 + 60.0, "{}", f.metric("gateway_usage_pending"));
        if journal {
            f.kill_and_start();
        }
        f.store.heal();
        f.usage().flush().await.unwrap();
        let stored = f.stored().await;
        for key in &f.keys {
            for day in 0..6 {
                let sum = |wanted: fn(&Counted) -> bool| {
                    let of_day = stored.iter().filter(|((id, at, counted), _)| {
                        (id, at.0) == (&key.record.id, DAY.0 + day) && wanted(counted)
                    });
                    of_day.map(|(_, count)| count).sum::<u64>()
                };
                assert_eq!(sum(|counted| matches!(counted, Counted::Endpoint(..))), 20, "{} {day}", key.record.id);
                assert_eq!(sum(|counted| matches!(counted, Counted::Resource(..))), 20, "{} {day}", key.record.id);
            }
        }
        let other = |counted: &Counted| match counted {
            Counted::Endpoint(name, _) | Counted::Resource(_, name) => &**name == "_other",
            Counted::Scope(_) => false,
        };
        assert!(stored.keys().any(|(.., counted)| matches!(counted, Counted::Endpoint(..)) && other(counted)));
        assert!(stored.keys().filter(|(.., counted)| !other(counted)).count() <= 40, "{stored:?}");
        // There is room again, and everything is told apart again.
        f.request("m-new", DAY.start());
        f.usage().flush().await.unwrap();
        assert!(
            f.stored()
                .await
                .keys()
                .any(|(.., counted)| matches!(counted, Counted::Resource(_, id) if &**id == "m-new"))
        );
    }
}

/// Bytes of this process that are in memory.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Fills a ledger with a million counters. Run each of the two in a process of its own.
#[allow(clippy::disallowed_methods, reason = "measures")]
fn measure_full_ledger(name: impl Fn(usize) -> Name) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("usage.journal");
    let open = || Some(Journal::open(&path, HandClock::new()).unwrap());
    let metrics = Arc::new(Metrics::new());
    let bounds = Bounds { resources: usize::MAX, ..Bounds::USUAL };
    let mut ledger = Ledger::new(ReplicaId("r1".into()), metrics.clone(), open(), bounds);
    let (before, start) = (resident(), std::time::Instant::now());
    for chunk in 0..100 {
        let mut counts = Counts::default();
        (0..10_000).for_each(|n| counts.add(name(chunk * 10_000 + n), 1));
        ledger.take_in(counts);
    }
    println!("{} bytes a counter that waits; {:?} for all", (resident() - before) / 1_000_000, start.elapsed());
    println!("{} bytes a counter in the journal", std::fs::metadata(&path).unwrap().len() / 1_000_000);
    let start = std::time::Instant::now();
    ledger.freeze();
    println!("{} bytes a counter in batches; {:?} for all", (resident() - before) / 1_000_000, start.elapsed());
    assert!(ledger.is_kept());
    drop(ledger);
    let start = std::time::Instant::now();
    let ledger = Ledger::new(ReplicaId("r2".into()), metrics, open(), bounds);
    println!("{:?} to find them in the journal at the next start", start.elapsed());
    assert_eq!(ledger.first().unwrap().counts.len(), 10_000);
}

fn key_name(n: usize) -> KeyId {
    KeyId::parse(&format!("01a20716-aace-71f6-900d-{n:012x}")).unwrap()
}

#[test]
#[ignore = "a measurement"]
fn memory_of_a_full_ledger_of_few_names() {
    let endpoints: Vec<Arc<str>> = (0..10).map(|n| format!("POST /api/v1/models/{{id}}/{n}").into()).collect();
    let keys: Vec<_> = (0..100_000).map(key_name).collect();
    measure_full_ledger(|n| {
        let endpoint = endpoints[n % 10].clone();
        (keys[n / 10].clone(), DAY, Counted::Endpoint(endpoint, StatusClass::Success))
    });
}

#[test]
#[ignore = "a measurement"]
fn memory_of_a_full_ledger_of_names_of_their_own() {
    measure_full_ledger(|n| (key_name(n), DAY, Counted::Resource(Kind::Model, key_name(n).as_str().into())));
}
