//! Contract: usage counters and the sweep.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::{CREATED, at, create, event, hash, key_id, record, secret};
use crate::policy::key::Day;
use crate::policy::resource::Kind;
use crate::policy::scope::Scope;
use crate::store::time::{machine_clock, timestamp};
use crate::store::{
    Action, Counted, FlushOutcome, KeyFilter, MAX_RESOURCES, OTHER, ReplicaId, StatusClass, Store, UsageBatch,
    UsageCount,
};

const DAY: Day = Day(20_000);

fn count(day: Day, counted: Counted, count: u64) -> UsageCount {
    UsageCount { key_id: key_id("k1"), day, counted, count }
}

fn endpoint(class: StatusClass) -> Counted {
    Counted::Endpoint("POST /api/v1/inferences/{model_id}".into(), class)
}

fn batch(replica: &str, sequence: u64, counts: Vec<UsageCount>) -> UsageBatch {
    UsageBatch { replica: ReplicaId(replica.into()), sequence, counts, last_used: Vec::new() }
}

/// What was counted of `k1` on all days, added up.
async fn totals(store: &dyn Store) -> HashMap<Counted, u64> {
    let mut totals = HashMap::new();
    for count in store.usage(key_id("k1"), Day(i32::MIN), Day(i32::MAX)).await.unwrap() {
        *totals.entry(count.counted).or_default() += count.count;
    }
    totals
}

pub(crate) async fn a_batch_counts_once_however_often_it_is_sent(store: Arc<dyn Store>) {
    let things: Vec<_> = StatusClass::ALL
        .into_iter()
        .map(endpoint)
        .chain([Counted::Scope(Scope::parse("models:predict").unwrap())])
        .chain([Counted::Resource(Kind::Model, "m-1".into()), Counted::Resource(Kind::Dataset, "m-1".into())])
        .collect();
    let counts = || things.iter().zip(1..).map(|(thing, n)| count(DAY, thing.clone(), n)).collect::<Vec<_>>();
    let flush = |replica: &'static str, sequence| store.flush_usage(batch(replica, sequence, counts()));
    let times = |times: u64| -> HashMap<_, _> { things.iter().cloned().zip((1..).map(|n| times * n)).collect() };
    let (applied, duplicate) = (FlushOutcome::Applied, FlushOutcome::Duplicate);
    let mut added = 0;
    for (replica, sequence, outcome) in [
        ("r1", 1, applied),
        ("r1", 1, duplicate),
        ("r1", 2, applied),
        ("r1", 2, duplicate),
        ("r1", 1, duplicate),
        ("r2", 1, applied),
        ("r1", 2, duplicate),
        ("r2", 2, applied),
        ("r1", 3, applied),
    ] {
        added += u64::from(outcome == applied);
        assert_eq!(flush(replica, sequence).await.unwrap(), outcome, "{replica} {sequence}");
        assert_eq!(totals(&*store).await, times(added), "{replica} {sequence}");
    }
    // At the same time, too.
    let outcomes = tokio::join!(flush("r1", 4), flush("r1", 4), flush("r1", 4), flush("r2", 3));
    let mut of_r1 = [outcomes.0.unwrap(), outcomes.1.unwrap(), outcomes.2.unwrap()];
    of_r1.sort_by_key(|outcome| *outcome == duplicate);
    assert_eq!((of_r1, outcomes.3.unwrap()), ([applied, duplicate, duplicate], applied));
    assert_eq!(totals(&*store).await, times(added + 2));
}

pub(crate) async fn a_batch_after_a_gap_counts_and_the_gap_is_told(store: Arc<dyn Store>) {
    let flush = |replica: &'static str, sequence| {
        store.flush_usage(batch(replica, sequence, vec![count(DAY, endpoint(StatusClass::Success), 1)]))
    };
    let (applied, duplicate) = (FlushOutcome::Applied, FlushOutcome::Duplicate);
    let mut added = 0;
    for (replica, sequence, outcome) in [
        ("r1", 1, applied),
        ("r1", 4, FlushOutcome::AppliedAfterGap(1)),
        // What is behind the gap counts no more: nobody knows whether it had been counted.
        ("r1", 4, duplicate),
        ("r1", 3, duplicate),
        ("r1", 2, duplicate),
        ("r1", 5, applied),
        // A replica that is not known may begin anywhere; from then on it is.
        ("r2", 7, applied),
        ("r2", 7, duplicate),
        ("r2", 8, applied),
        ("r2", 10, FlushOutcome::AppliedAfterGap(8)),
    ] {
        added += u64::from(outcome != duplicate);
        assert_eq!(flush(replica, sequence).await.unwrap(), outcome, "{replica} {sequence}");
        assert_eq!(totals(&*store).await.into_values().sum::<u64>(), added, "{replica} {sequence}");
    }
}

pub(crate) async fn usage_is_asked_by_day_both_ends_included(store: Arc<dyn Store>) {
    let counts = (0..5).map(|n| count(Day(DAY.0 + n), endpoint(StatusClass::Success), 1)).collect();
    store.flush_usage(batch("r1", 1, counts)).await.unwrap();
    let found = store.usage(key_id("k1"), Day(DAY.0 + 1), Day(DAY.0 + 3)).await.unwrap();
    assert_eq!(found.iter().map(|count| count.day.0 - DAY.0).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(store.usage(key_id("k2"), DAY, Day(DAY.0 + 9)).await.unwrap().is_empty());
}

pub(crate) async fn resource_ids_are_bounded_and_totals_stay_right(store: Arc<dyn Store>) {
    let resource = |n: usize| Counted::Resource(Kind::Model, format!("m-{n}").into());
    let counts = |from: usize, to| (from..to).map(|n| count(DAY, resource(n), 2)).collect::<Vec<_>>();
    store.flush_usage(batch("r1", 1, counts(0, MAX_RESOURCES - 10))).await.unwrap();
    // Ten more fit, thirty do not; one that is known already still counts under its name.
    let more = counts(MAX_RESOURCES - 10, MAX_RESOURCES + 30);
    store.flush_usage(batch("r1", 2, more)).await.unwrap();
    store.flush_usage(batch("r1", 3, counts(0, 1))).await.unwrap();

    let totals = totals(&*store).await;
    assert_eq!(totals.len(), MAX_RESOURCES + 1);
    assert_eq!(totals.get(&Counted::Resource(Kind::Model, OTHER.into())), Some(&60));
    assert_eq!(totals.get(&resource(0)), Some(&4));
    // The next day has room again.
    store.flush_usage(batch("r1", 4, vec![count(Day(DAY.0 + 1), resource(5000), 1)])).await.unwrap();
    assert!(store.usage(key_id("k1"), Day(DAY.0 + 1), Day(DAY.0 + 1)).await.unwrap()[0].counted == resource(5000));
}

pub(crate) async fn the_later_time_of_use_wins(store: Arc<dyn Store>) {
    create(&*store, "k1", "a1").await;
    assert_eq!(store.key(key_id("k1")).await.unwrap().unwrap().last_used_at(), None);
    for (sequence, used, expected) in [(1, 50, 50), (2, 40, 50), (3, 70, 70)] {
        let mut flush = batch("r1", sequence, Vec::new());
        flush.last_used = vec![(hash("k1"), at(CREATED + used)), (hash("nobody"), at(CREATED))];
        store.flush_usage(flush).await.unwrap();
        let key = store.key(key_id("k1")).await.unwrap().unwrap();
        assert_eq!(key.last_used_at(), Some(at(CREATED + expected)));
    }
}

pub(crate) async fn a_sweep_forgets_what_is_old_and_nothing_else(store: Arc<dyn Store>) {
    let now = timestamp(machine_clock()());
    let retention = Duration::from_secs(400 * 86_400);
    for (id, deleted_at) in [("k1", None), ("old", Some(at(CREATED))), ("fresh", Some(now))] {
        let mut created = record(id, "a1");
        created.created_at = at(CREATED);
        let mut made = event(Action::Created);
        made.at = now;
        store.create_key(created.clone(), secret(id), made).await.unwrap();
        if deleted_at.is_some() {
            let version = store.key(key_id(id)).await.unwrap().unwrap().version;
            created.deleted_at = deleted_at;
            store.replace_key(created, version, Some(event(Action::Deleted))).await.unwrap();
        }
    }
    // Enough old rows for several pieces.
    let old = |n: i32| count(Day(now.day().0 - 401 - n), endpoint(StatusClass::Success), 1);
    let mut counts: Vec<_> = (0..1200).map(old).collect();
    counts.push(count(now.day(), endpoint(StatusClass::Success), 7));
    counts.push(count(Day(now.day().0 - 399), endpoint(StatusClass::Success), 5));
    store.flush_usage(batch("r1", 1, counts)).await.unwrap();
    store.register(ReplicaId("r1".into()), "host".into()).await.unwrap();

    store.sweep(retention).await.unwrap();

    assert_eq!(totals(&*store).await.into_values().sum::<u64>(), 12);
    let mut kept: Vec<_> = store
        .keys(KeyFilter { include_deleted: true, ..KeyFilter::default() })
        .await
        .unwrap()
        .into_iter()
        .map(|key| key.record.id.to_string())
        .collect();
    kept.sort();
    assert_eq!(kept, ["fresh", "k1"]);
    assert!(store.key_by_secret(hash("k1")).await.unwrap().is_some(), "a living secret was swept");
    assert_eq!(store.events(key_id("k1")).await.unwrap().len(), 1);
    assert!(store.heartbeat(ReplicaId("r1".into())).await.unwrap(), "a living gateway was swept");
    let again = store.flush_usage(batch("r1", 1, Vec::new())).await.unwrap();
    assert_eq!(again, FlushOutcome::Duplicate, "a batch could count twice");
}
