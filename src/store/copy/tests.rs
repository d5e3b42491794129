//! Copies between stores of different kinds, of a store in use, and of stores that fail.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::policy::scope::Scope;
use crate::store::contract::{CREATED, account_id, at, create, event, hash, key_id, record, secret};
use crate::store::faulty::{Fault, FaultyStore, Method};
use crate::store::memory::MemoryStore;
use crate::store::sqlite::SqliteStore;
use crate::store::{Action, Event, ReplicaId, SecretRow, StatusClass, StoredKey, UsageBatch, Version};

/// Nobody looks.
fn quietly(_: Progress) {}

fn dynamic(store: &Arc<impl Store>) -> Arc<dyn Store> {
    Arc::clone(store) as Arc<dyn Store>
}

fn count(id: &str, day: i32, counted: Counted, count: u64) -> UsageCount {
    UsageCount { key_id: key_id(id), day: Day(day), counted, count }
}

fn endpoint() -> Counted {
    Counted::Endpoint("GET /a".into(), StatusClass::Success)
}

/// Three keys: one in the middle of a rotation, one deleted, one never used; two accounts.
async fn fill(store: &dyn Store) {
    for id in ["k1", "k2", "k3"] {
        create(store, id, "a1").await;
    }
    let mut set = Account::unset(account_id("a1"));
    (set.plan, set.suspended, set.concurrent_requests) = (Some("pro".into()), true, Some(20));
    store.replace_account(set, None).await.unwrap();
    store.replace_account(Account::unset(account_id("a2")), None).await.unwrap();
    let counts = vec![
        count("k1", 1, endpoint(), 5),
        count("k1", 2, endpoint(), 6),
        count("k1", 2, Counted::Scope(Scope::parse("models:read").unwrap()), 7),
        count("k1", 2, Counted::Resource(crate::policy::resource::Kind::Model, "m-1".into()), 8),
        count("k2", 2, endpoint(), 9),
    ];
    let last_used = vec![(hash("k1"), at(CREATED + 5)), (hash("k2"), at(CREATED + 6))];
    store.flush_usage(UsageBatch { replica: ReplicaId("r".into()), sequence: 1, counts, last_used }).await.unwrap();
    let key = store.key(key_id("k1")).await.unwrap().unwrap();
    let former = SecretRow { expires_at: Some(at(4_102_444_800_000)), ..secret("k1") };
    store.rotate_key(key.record, key.version, vec![secret("new"), former], event(Action::Rotated)).await.unwrap();
    let mut key = store.key(key_id("k2")).await.unwrap().unwrap();
    key.record.deleted_at = Some(at(CREATED + 7));
    store.replace_key(key.record, key.version, Some(event(Action::Deleted))).await.unwrap();
}

async fn filled() -> Arc<MemoryStore> {
    let store = MemoryStore::new();
    fill(&*store).await;
    store
}

type Whole = (Vec<Account>, Vec<(StoredKey, Vec<Event>, BTreeMap<String, u64>)>);

/// All that can be copied, in an order and with versions that do not depend on the store.
async fn whole(store: &dyn Store) -> Whole {
    let mut keys = Vec::new();
    for key in store.keys(everything()).await.unwrap() {
        let copy = read(store, &key.record.id, CopyError::Read).await.unwrap().unwrap();
        let name = |count: &UsageCount| format!("{:?} {:?}", count.day, count.counted);
        let usage = copy.usage.iter().map(|count| (name(count), count.count)).collect();
        keys.push((StoredKey { version: Version(0), ..copy.key }, copy.events, usage));
    }
    (store.accounts().await.unwrap(), keys)
}

#[tokio::test]
async fn everything_arrives_in_another_kind_of_store_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let source = filled().await;
    let backup: Arc<dyn Store> = SqliteStore::open(&folder.path().join("backup.db")).unwrap();
    let restored: Arc<dyn Store> = MemoryStore::new();
    let expected = Copied { keys: 3, deleted_keys: 1, accounts: 2, events: 5, requests: 20, other_keys: 0 };
    for _ in 0..2 {
        assert_eq!(copy(&dynamic(&source), &backup, quietly).await.unwrap(), expected);
        assert_eq!(whole(&*backup).await, whole(&*source).await);
        assert_eq!(copy(&backup, &restored, quietly).await.unwrap(), expected);
        assert_eq!(whole(&*restored).await, whole(&*source).await);
    }
    for (hash, owner) in [(hash("new"), Some("k1")), (hash("k1"), Some("k1")), (hash("k2"), None)] {
        let found = restored.key_by_secret(hash).await.unwrap();
        assert_eq!(found.map(|key| key.record.id), owner.map(key_id));
    }
}

#[tokio::test]
async fn what_the_target_has_of_a_copied_key_is_replaced_and_the_rest_stays() {
    let (source, target) = (filled().await, MemoryStore::new());
    create(&*target, "other", "a9").await;
    target.replace_account(Account::unset(account_id("a9")), None).await.unwrap();
    target.replace_account(Account { suspended: true, ..Account::unset(account_id("a2")) }, None).await.unwrap();
    target.create_key(record("k1", "a9"), secret("old"), event(Action::Created)).await.unwrap();
    let copied = copy(&dynamic(&source), &dynamic(&target), quietly).await.unwrap();
    assert_eq!((copied.keys, copied.other_keys), (3, 1));
    let (accounts, keys) = whole(&*target).await;
    assert!(target.key_by_secret(hash("other")).await.unwrap().is_some());
    assert!(target.key_by_secret(hash("old")).await.unwrap().is_none());
    let (expected_accounts, expected_keys) = whole(&*source).await;
    assert!(expected_accounts.iter().all(|account| accounts.contains(account)) && accounts.len() == 3);
    assert!(expected_keys.iter().all(|key| keys.contains(key)) && keys.len() == 4);
}

#[tokio::test]
async fn progress_counts_each_key_once_in_both_steps() {
    let (source, target): (Arc<dyn Store>, Arc<dyn Store>) = (MemoryStore::new(), MemoryStore::new());
    let total = 3 * AT_ONCE + 1;
    for n in 0..total {
        create(&*source, &format!("k{n}"), "a1").await;
    }
    let mut told = Vec::new();
    copy(&source, &target, |progress| told.push(progress)).await.unwrap();
    let copied = (1..=total).map(|done| Progress::Copied(done, total));
    let expected: Vec<_> = copied.chain((1..=total).map(|done| Progress::Checked(done, total))).collect();
    assert_eq!(told, expected);
}

#[tokio::test]
async fn a_copy_that_failed_half_way_says_where_and_is_completed_by_another() {
    for (at_source, method, fault, expected) in [
        (true, Method::Accounts, Fault::Unavailable, "cannot read the accounts from the source"),
        (true, Method::Keys, Fault::Unavailable, "cannot read the keys from the source"),
        (true, Method::Usage, Fault::LoseReply, "cannot read key k1 from the source"),
        (false, Method::ReplaceAccount, Fault::LoseReply, "cannot write account a1 to the target"),
        (false, Method::RestoreKey, Fault::LoseReply, "cannot write key k1 to the target"),
        (false, Method::RestoreKey, Fault::LoseRequest, "cannot write key k1 to the target"),
        (false, Method::Events, Fault::Unavailable, "cannot read key k1 back from the target"),
        (false, Method::Replicas, Fault::Unavailable, "cannot read the gateways back from the target"),
    ] {
        let (source, target) = (FaultyStore::new(filled().await), FaultyStore::new(MemoryStore::new()));
        if at_source { &source } else { &target }.inject_times(method, fault, 1);
        let error = copy(&dynamic(&source), &dynamic(&target), quietly).await.unwrap_err().to_string();
        assert!(error.starts_with(expected), "{method:?}: {error}");
        let copied = copy(&dynamic(&source), &dynamic(&target), quietly).await.unwrap();
        assert_eq!((copied.keys, copied.requests), (3, 20));
        assert_eq!(whole(&*target).await, whole(&*source).await);
    }
}

#[tokio::test]
async fn a_secret_of_another_key_ends_the_copy() {
    let (source, target) = (filled().await, MemoryStore::new());
    target.create_key(record("k9", "a1"), secret("k3"), event(Action::Created)).await.unwrap();
    let error = copy(&dynamic(&source), &dynamic(&target), quietly).await.unwrap_err().to_string();
    assert!(error.starts_with("a secret of key k3 belongs to another key of the target"), "{error}");
    assert_eq!(target.key_by_secret(hash("k3")).await.unwrap().unwrap().record.id, key_id("k9"));
}

/// Copies into a store that `change` meddles with, as soon as all is copied.
async fn meddled(target: &Arc<MemoryStore>, change: impl Fn(&MemoryStore)) -> Result<Copied, String> {
    let meddle = |progress| {
        if progress == Progress::Copied(3, 3) {
            change(target);
        }
    };
    copy(&dynamic(&filled().await), &dynamic(target), meddle).await.map_err(|error| error.to_string())
}

/// A store in memory has done what it is asked when the call returns.
fn at_once<T>(_done: crate::store::StoreFuture<'_, T>) {}

#[tokio::test]
async fn what_does_not_arrive_is_an_error_that_names_the_first() {
    let less = |change: fn(&mut KeyCopy)| {
        move |target: &MemoryStore| {
            let mut k1 = KeyCopy { key: stored("k1"), events: vec![event(Action::Created); 2], usage: Vec::new() };
            k1.usage = vec![
                count("k1", 1, endpoint(), 11),
                count("k1", 2, Counted::Scope(Scope::parse("models:read").unwrap()), 7),
                count("k1", 2, Counted::Resource(crate::policy::resource::Kind::Model, "m-1".into()), 8),
            ];
            change(&mut k1);
            at_once(target.restore_key(k1));
        }
    };
    assert!(meddled(&MemoryStore::new(), less(|_| {})).await.is_ok(), "as it was copied");
    for (change, expected) in [
        ((|k1| k1.key.secrets.clear()) as fn(&mut KeyCopy), "secrets: 0 instead of 1"),
        (|k1| drop(k1.events.pop()), "events: 1 instead of 2"),
        (|k1| k1.usage[0].count -= 1, "requests: 10 instead of 11"),
        (|k1| k1.usage[0].count += 1, "requests: 12 instead of 11"),
        (|k1| k1.usage[1].count -= 1, "uses of scopes: 6 instead of 7"),
        (|k1| drop(k1.usage.pop()), "uses of models and datasets: 0 instead of 8"),
        (|k1| k1.key.record.disabled = true, "its record has been changed since"),
    ] {
        let error = meddled(&MemoryStore::new(), less(change)).await.unwrap_err();
        assert_eq!(error, format!("key k1 is not in the target as it was copied: {expected}"));
    }
    let forget = |target: &MemoryStore| at_once(target.sweep(Duration::ZERO));
    let error = meddled(&MemoryStore::new(), forget).await.unwrap_err();
    assert_eq!(error, "key k1 is not in the target as it was copied: events: 0 instead of 2");
    let resume = |target: &MemoryStore| {
        at_once(target.replace_account(Account::unset(account_id("a1")), Some(Version(1))));
    };
    let error = meddled(&MemoryStore::new(), resume).await.unwrap_err();
    assert_eq!(error, "account a1 is not in the target as it was copied: it has been changed since");
}

fn stored(id: &str) -> StoredKey {
    let (record, account) = (record(id, "a1"), Account::unset(account_id("a1")));
    StoredKey { record, account, secrets: vec![secret("new")], former_use: None, version: Version(0) }
}

#[tokio::test]
async fn gateways_that_run_on_the_target_may_count_while_it_is_checked() {
    let count = |target: &MemoryStore| {
        let (replica, counts) = (ReplicaId("r1".into()), vec![count("k1", 9, endpoint(), 3)]);
        at_once(target.flush_usage(UsageBatch { replica, sequence: 1, counts, last_used: Vec::new() }));
    };
    let target = MemoryStore::new();
    let error = meddled(&target, count).await.unwrap_err();
    assert!(error.ends_with("requests: 14 instead of 11"), "nobody runs there: {error}");
    let target = MemoryStore::new();
    target.register(ReplicaId("r1".into()), "host".into()).await.unwrap();
    assert_eq!(meddled(&target, count).await.unwrap().requests, 20);
    let target = MemoryStore::new();
    target.register(ReplicaId("r1".into()), "host".into()).await.unwrap();
    let error = meddled(&target, |target| at_once(target.sweep(Duration::ZERO))).await.unwrap_err();
    assert!(error.ends_with("events: 0 instead of 2"), "less is an error all the same: {error}");
}

/// A copy of one key that stands still after the first call of `method` at its source, while `change` is at work.
async fn interrupted(method: Method, change: impl AsyncFn(&MemoryStore)) -> Arc<MemoryStore> {
    let (inner, target) = (MemoryStore::new(), MemoryStore::new());
    create(&*inner, "k1", "a1").await;
    let source = FaultyStore::new(Arc::clone(&inner) as Arc<dyn Store>);
    source.inject_times(method, Fault::Hold, 1);
    let (from, to) = (dynamic(&source), dynamic(&target));
    let copying = tokio::spawn(async move { copy(&from, &to, quietly).await });
    while source.calls(method) == 0 {
        tokio::task::yield_now().await;
    }
    change(&inner).await;
    source.release();
    copying.await.unwrap().unwrap();
    target
}

#[tokio::test]
async fn a_key_is_copied_as_it_is_at_one_moment() {
    let disable = async |source: &MemoryStore| {
        let mut key = source.key(key_id("k1")).await.unwrap().unwrap();
        key.record.disabled = true;
        source.replace_key(key.record, key.version, Some(event(Action::Disabled))).await.unwrap();
    };
    let target = interrupted(Method::Events, disable).await;
    assert!(target.key(key_id("k1")).await.unwrap().unwrap().record.disabled, "it has the event of it");
    assert_eq!(target.events(key_id("k1")).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_key_that_is_forgotten_meanwhile_is_passed_over() {
    let forget = async |source: &MemoryStore| {
        let mut key = source.key(key_id("k1")).await.unwrap().unwrap();
        key.record.deleted_at = Some(at(CREATED));
        source.replace_key(key.record, key.version, None).await.unwrap();
        source.sweep(Duration::ZERO).await.unwrap();
    };
    assert_eq!(whole(&*interrupted(Method::Key, forget).await).await, (Vec::new(), Vec::new()));
}
