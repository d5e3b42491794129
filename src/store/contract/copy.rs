//! Contract: a key that comes from another store.

use std::collections::HashMap;
use std::sync::Arc;

use super::{CREATED, account_id, at, changes, create, event, hash, key_id, record, secret};
use crate::policy::key::{Account, Day};
use crate::policy::resource::Kind;
use crate::policy::scope::Scope;
use crate::store::{
    Action, Change, Counted, Event, FlushOutcome, KeyCopy, KeyFilter, ReplicaId, SecretRow, StatusClass, Store,
    StoreError, StoredKey, UsageBatch, UsageCount, Version,
};

/// Far in the future: no store has a reason to forget a secret that ends then.
const LATER: i64 = 4_102_444_800_000;

fn counts(id: &str, times: u64) -> Vec<UsageCount> {
    let endpoint = |class| Counted::Endpoint("POST /api/v1/inferences/{model_id}".into(), class);
    let counted = StatusClass::ALL.into_iter().map(endpoint).chain([
        Counted::Scope(Scope::parse("models:predict").unwrap()),
        Counted::Resource(Kind::Model, "m-1".into()),
        Counted::Resource(Kind::Dataset, "m-1".into()),
    ]);
    let count = |(counted, n): (Counted, u64)| UsageCount {
        key_id: key_id(id),
        day: Day(20_000 + n as i32 % 3),
        counted,
        count: n * times,
    };
    counted.zip(1..).map(count).collect()
}

/// A key in the middle of a rotation that has been used before it and since.
fn copy(id: &str) -> KeyCopy {
    let former = SecretRow {
        expires_at: Some(at(LATER)),
        last_used_at: Some(at(CREATED + 7)),
        ..secret(&format!("{id} former"))
    };
    let current = SecretRow { last_used_at: Some(at(CREATED + 9)), key_prefix: "sm_live_wxyz".into(), ..secret(id) };
    let key = StoredKey {
        record: record(id, "a1"),
        account: Account { suspended: true, concurrent_requests: Some(20), ..Account::unset(account_id("a1")) },
        secrets: vec![current, former],
        former_use: Some(at(CREATED + 5)),
        version: Version(7),
    };
    let rotated = Event { by: "k9".into(), changed: vec!["name".into(), "scopes".into()], ..event(Action::Rotated) };
    let events = vec![event(Action::Created), rotated, event(Action::Other("quarantined".into()))];
    KeyCopy { key, events, usage: counts(id, 1) }
}

fn deleted(id: &str) -> KeyCopy {
    let mut deleted = copy(id);
    deleted.key.record.deleted_at = Some(at(CREATED + 11));
    deleted
}

fn summed(usage: Vec<UsageCount>) -> HashMap<(Day, Counted), u64> {
    let mut sums = HashMap::new();
    for count in usage {
        *sums.entry((count.day, count.counted)).or_default() += count.count;
    }
    sums
}

/// That the store has this of the key, and no more. Returns the version.
async fn expect(store: &dyn Store, expected: &KeyCopy) -> Version {
    let id = &expected.key.record.id;
    let key = store.key(id.clone()).await.unwrap().unwrap();
    let account = Account::unset(account_id("a1"));
    assert_eq!(key, StoredKey { account, version: key.version, ..expected.key.clone() });
    assert_eq!(store.events(id.clone()).await.unwrap(), expected.events);
    let usage = store.usage(id.clone(), Day(i32::MIN), Day(i32::MAX)).await.unwrap();
    assert_eq!(summed(usage), summed(expected.usage.clone()));
    for secret in &expected.key.secrets {
        assert_eq!(store.key_by_secret(secret.hash).await.unwrap().unwrap(), key);
    }
    let listed = store.keys(KeyFilter { include_deleted: true, ..KeyFilter::default() }).await.unwrap();
    assert_eq!(listed.iter().filter(|listed| listed.record.id == *id).collect::<Vec<_>>(), [&key]);
    key.version
}

pub(crate) async fn a_key_is_restored_whole_and_only_once_however_often(store: Arc<dyn Store>) {
    store.restore_key(copy("k1")).await.unwrap();
    let first = expect(&*store, &copy("k1")).await;
    assert!(store.account(account_id("a1")).await.unwrap().is_none(), "accounts are not part of it");
    store.restore_key(copy("k1")).await.unwrap();
    assert!(expect(&*store, &copy("k1")).await.0 > first.0);
    // It is a key as any other from then on.
    let last_used = vec![(hash("k1"), at(CREATED + 20)), (hash("k1 former"), at(CREATED + 30))];
    let batch = UsageBatch { replica: ReplicaId("r1".into()), sequence: 1, counts: counts("k1", 1), last_used };
    assert_eq!(store.flush_usage(batch).await.unwrap(), FlushOutcome::Applied);
    let key = store.key(key_id("k1")).await.unwrap().unwrap();
    assert_eq!(key.secrets.iter().map(|secret| secret.last_used_at).max().flatten(), Some(at(CREATED + 30)));
    let usage = store.usage(key_id("k1"), Day(i32::MIN), Day(i32::MAX)).await.unwrap();
    assert_eq!(summed(usage), summed(counts("k1", 2)));
    store.replace_key(key.record, key.version, Some(event(Action::Updated))).await.unwrap();
    let last = store.events(key_id("k1")).await.unwrap().pop().unwrap();
    assert_eq!(last, event(Action::Updated), "later events come after those that were copied");
}

pub(crate) async fn what_the_store_had_of_a_restored_key_is_gone(store: Arc<dyn Store>) {
    let mut old = record("k1", "a2");
    (old.created_at, old.disabled) = (at(CREATED - 5), true);
    store.create_key(old, secret("old"), event(Action::Created)).await.unwrap();
    create(&*store, "k2", "a1").await;
    let replica = ReplicaId("r1".into());
    let last_used = vec![(hash("old"), at(CREATED + 99))];
    let counts = [counts("k1", 100), counts("k2", 1)].concat();
    let batch = UsageBatch { replica, sequence: 1, counts: counts.clone(), last_used };
    store.flush_usage(batch.clone()).await.unwrap();
    let had = store.key(key_id("k1")).await.unwrap().unwrap();

    store.restore_key(copy("k1")).await.unwrap();
    let version = expect(&*store, &copy("k1")).await;
    assert!(version.0 > had.version.0, "{version:?} after {:?}", had.version);
    assert!(store.key_by_secret(hash("old")).await.unwrap().is_none(), "a secret is left");
    let stale = store.replace_key(had.record, had.version, None).await;
    assert!(matches!(stale, Err(StoreError::Conflict)), "{stale:?}");
    let of_a2 = KeyFilter { account_id: Some(account_id("a2")), include_deleted: true, ..KeyFilter::default() };
    assert!(store.keys(of_a2).await.unwrap().is_empty(), "it is listed under its former account");
    // Nobody else lost anything, and what was counted is not counted again.
    assert!(store.key_by_secret(hash("k2")).await.unwrap().is_some());
    assert_eq!(store.events(key_id("k2")).await.unwrap().len(), 1);
    let usage = store.usage(key_id("k2"), Day(i32::MIN), Day(i32::MAX)).await.unwrap();
    assert_eq!(summed(usage), summed(counts[counts.len() / 2..].to_vec()));
    assert_eq!(store.flush_usage(batch).await.unwrap(), FlushOutcome::Duplicate);

    // With less than before: the rest goes as well.
    let mut less = copy("k1");
    less.key.secrets.pop();
    less.key.former_use = None;
    less.events.pop();
    less.usage.truncate(1);
    store.restore_key(less.clone()).await.unwrap();
    expect(&*store, &less).await;
    assert!(store.key_by_secret(hash("k1 former")).await.unwrap().is_none());
}

pub(crate) async fn a_deleted_key_is_restored_deleted_and_without_secrets(store: Arc<dyn Store>) {
    let expected = |copy: KeyCopy| KeyCopy { key: StoredKey { secrets: Vec::new(), ..copy.key }, ..copy };
    for had in [false, true] {
        let id = format!("had-{had}");
        if had {
            store.restore_key(copy(&id)).await.unwrap();
        }
        store.restore_key(deleted(&id)).await.unwrap();
        expect(&*store, &expected(deleted(&id))).await;
        assert!(store.key_by_secret(hash(&id)).await.unwrap().is_none());
        assert!(store.keys(KeyFilter::default()).await.unwrap().is_empty());
    }
    // And back: a backup from before the deletion.
    store.restore_key(copy("had-true")).await.unwrap();
    expect(&*store, &copy("had-true")).await;
}

pub(crate) async fn a_secret_of_another_key_is_not_taken_and_nothing_is_done(store: Arc<dyn Store>) {
    create(&*store, "k2", "a1").await;
    store.restore_key(copy("k1")).await.unwrap();
    let version = expect(&*store, &copy("k1")).await;
    for id in ["k1", "k3"] {
        let mut taking = copy(id);
        taking.key.record.name = "thief".into();
        taking.key.secrets[1].hash = hash("k2");
        taking.usage = counts(id, 5);
        taking.events.clear();
        let outcome = store.restore_key(taking).await;
        assert!(matches!(outcome, Err(StoreError::Conflict)), "{outcome:?}");
    }
    assert_eq!(expect(&*store, &copy("k1")).await, version);
    assert_eq!(store.key_by_secret(hash("k2")).await.unwrap().unwrap().record.id, key_id("k2"));
    assert!(store.key(key_id("k3")).await.unwrap().is_none(), "half a key was stored");
    assert!(store.key_by_secret(hash("k3")).await.unwrap().is_none());
    assert!(store.usage(key_id("k3"), Day(i32::MIN), Day(i32::MAX)).await.unwrap().is_empty());
}

pub(crate) async fn a_restored_key_is_announced_with_each_of_its_secrets(store: Arc<dyn Store>) {
    let mut feed = store.subscribe();
    for _ in 0..2 {
        let revision = store.restore_key(copy("k1")).await.unwrap();
        let (told_at, told) = changes(&mut feed, 3).await;
        assert_eq!(told_at, revision);
        for change in [Change::Key(key_id("k1")), Change::Secret(hash("k1")), Change::Secret(hash("k1 former"))] {
            assert!(told.contains(&change), "{change:?} is not in {told:?}");
        }
    }
}
