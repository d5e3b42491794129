//! Contract: keys, accounts, events and idempotency rows.

use std::sync::Arc;
use std::time::Duration;

use super::{CREATED, account_id, at, create, event, hash, key_id, record, secret};
use crate::policy::key::Account;
use crate::store::{
    Action, Change, IdempotencyClaim, KeyFilter, Part, ReplicaId, SecretRow, Store, StoreError, UsageBatch, Version,
};

pub(crate) async fn a_created_key_is_found_by_its_secret_and_by_its_id(store: Arc<dyn Store>) {
    create(&*store, "k1", "a1").await;
    create(&*store, "k2", "a1").await;
    let found = store.key_by_secret(hash("k1")).await.unwrap().unwrap();
    assert_eq!(found.record, record("k1", "a1"));
    assert_eq!(found.secrets, [secret("k1")]);
    assert_eq!(found.account, Account::unset(account_id("a1")));
    assert_eq!(store.key(key_id("k1")).await.unwrap().unwrap(), found);
    assert!(store.key_by_secret(hash("nobody")).await.unwrap().is_none());
    assert!(store.key(key_id("k3")).await.unwrap().is_none());
    assert_eq!(store.events(key_id("k1")).await.unwrap(), [event(Action::Created)]);
    store.ping(Part(0)).await.unwrap();
}

pub(crate) async fn an_id_or_a_secret_that_exists_is_a_conflict_and_nothing_is_done(store: Arc<dyn Store>) {
    create(&*store, "k1", "a1").await;
    let same_id = store.create_key(record("k1", "a2"), secret("other"), event(Action::Created)).await;
    assert!(matches!(same_id, Err(StoreError::Conflict)), "{same_id:?}");
    let same_secret = store.create_key(record("k2", "a2"), secret("k1"), event(Action::Created)).await;
    assert!(matches!(same_secret, Err(StoreError::Conflict)), "{same_secret:?}");
    assert!(store.key(key_id("k2")).await.unwrap().is_none(), "half a key was stored");
    assert!(store.key_by_secret(hash("other")).await.unwrap().is_none(), "a secret was stored without its key");
    assert!(store.events(key_id("k2")).await.unwrap().is_empty());
    assert_eq!(store.events(key_id("k1")).await.unwrap().len(), 1);
}

pub(crate) async fn a_key_is_replaced_only_at_the_version_that_was_read(store: Arc<dyn Store>) {
    create(&*store, "k1", "a1").await;
    let read = store.key(key_id("k1")).await.unwrap().unwrap();
    let mut changed = read.record.clone();
    // A limit that is taken away does not come back as something that a later version left.
    (changed.disabled, changed.allowed_addresses) = (true, None);
    store.replace_key(changed.clone(), read.version, Some(event(Action::Disabled))).await.unwrap();
    let again = store.replace_key(read.record.clone(), read.version, Some(event(Action::Enabled))).await;
    assert!(matches!(again, Err(StoreError::Conflict)), "{again:?}");
    let absent = store.replace_key(record("k9", "a1"), Version(1), Some(event(Action::Updated))).await;
    assert!(matches!(absent, Err(StoreError::Conflict)), "{absent:?}");

    let now = store.key_by_secret(hash("k1")).await.unwrap().unwrap();
    assert_eq!((now.record, now.secrets), (changed, read.secrets));
    assert_ne!(now.version, read.version);
    let actions: Vec<_> = store.events(key_id("k1")).await.unwrap().into_iter().map(|event| event.action).collect();
    assert_eq!(actions, [Action::Created, Action::Disabled]);
}

pub(crate) async fn a_deleted_key_loses_its_secrets_and_stays_readable(store: Arc<dyn Store>) {
    create(&*store, "k1", "a1").await;
    let read = store.key(key_id("k1")).await.unwrap().unwrap();
    let mut deleted = read.record.clone();
    deleted.deleted_at = Some(at(CREATED + 5));
    store.replace_key(deleted.clone(), read.version, Some(event(Action::Deleted))).await.unwrap();

    assert!(store.key_by_secret(hash("k1")).await.unwrap().is_none());
    let kept = store.key(key_id("k1")).await.unwrap().unwrap();
    assert_eq!((kept.record, kept.secrets.len()), (deleted.clone(), 0));
    assert_eq!(store.events(key_id("k1")).await.unwrap().len(), 2);
    assert!(store.keys(KeyFilter::default()).await.unwrap().is_empty());
    assert_eq!(store.keys(KeyFilter { include_deleted: true, ..KeyFilter::default() }).await.unwrap().len(), 1);

    deleted.deleted_at = None;
    store.replace_key(deleted, kept.version, Some(event(Action::Updated))).await.unwrap();
    assert!(store.key_by_secret(hash("k1")).await.unwrap().is_none(), "a deleted secret came back");
}

pub(crate) async fn when_a_key_was_last_used_survives_its_secrets(store: Arc<dyn Store>) {
    create(&*store, "k1", "a1").await;
    let read = || async { store.key(key_id("k1")).await.unwrap().unwrap() };
    let flush = |sequence, id: &str, used| {
        let last_used = vec![(hash(id), at(CREATED + used))];
        store.flush_usage(UsageBatch { replica: ReplicaId("r1".into()), sequence, counts: Vec::new(), last_used })
    };
    flush(1, "k1", 50).await.unwrap();
    let key = read().await;
    store.rotate_key(key.record, key.version, vec![secret("new")], event(Action::Rotated)).await.unwrap();
    let key = read().await;
    assert_eq!((key.secrets[0].last_used_at, key.last_used_at()), (None, Some(at(CREATED + 50))));
    flush(2, "new", 40).await.unwrap();
    assert_eq!(read().await.last_used_at(), Some(at(CREATED + 50)), "the later time wins");
    flush(3, "new", 70).await.unwrap();
    let mut deleted = read().await;
    deleted.record.deleted_at = Some(at(CREATED + 90));
    store.replace_key(deleted.record, deleted.version, Some(event(Action::Deleted))).await.unwrap();
    assert_eq!(read().await.last_used_at(), Some(at(CREATED + 70)));
    flush(4, "new", 80).await.unwrap();
    flush(5, "k1", 75).await.unwrap();
    let listed = store.keys(KeyFilter { include_deleted: true, ..KeyFilter::default() }).await.unwrap();
    assert_eq!(listed[0].last_used_at(), Some(at(CREATED + 80)), "a use that was flushed late");
    assert!(store.key_by_secret(hash("new")).await.unwrap().is_none());
}

pub(crate) async fn a_replacement_without_an_event_is_a_change_all_the_same(store: Arc<dyn Store>) {
    let mut feed = store.subscribe();
    create(&*store, "k1", "a1").await;
    super::changes(&mut feed, 2).await;
    let read = store.key(key_id("k1")).await.unwrap().unwrap();
    let revision = store.replace_key(read.record, read.version, None).await.unwrap();
    assert_eq!(super::changes(&mut feed, 1).await, (revision, vec![Change::Key(key_id("k1"))]));
    assert_eq!(store.events(key_id("k1")).await.unwrap().len(), 1);
}

pub(crate) async fn a_rotated_key_has_two_secrets_until_the_former_is_dropped(store: Arc<dyn Store>) {
    let mut feed = store.subscribe();
    create(&*store, "k1", "a1").await;
    create(&*store, "k2", "a1").await;
    let read = store.key(key_id("k1")).await.unwrap().unwrap();
    // Meanwhile a request is counted: its time of use must survive, though the rotation read the row before.
    let last_used = vec![(hash("k1"), at(CREATED + 9))];
    let replica = ReplicaId("r1".into());
    store.flush_usage(UsageBatch { replica, sequence: 1, counts: Vec::new(), last_used }).await.unwrap();
    let former = SecretRow { expires_at: Some(at(CREATED + 86_400_000)), ..secret("k1") };
    let rotate = |secrets, version| store.rotate_key(read.record.clone(), version, secrets, event(Action::Rotated));

    let taken = rotate(vec![secret("k2"), former.clone()], read.version).await;
    assert!(matches!(taken, Err(StoreError::Conflict)), "{taken:?}");
    super::changes(&mut feed, 4).await;
    let revision = rotate(vec![secret("new"), former.clone()], read.version).await.unwrap();
    let (of, told) = super::changes(&mut feed, 2).await;
    let both = [Change::Key(key_id("k1")), Change::Secret(hash("new"))];
    assert!(of == revision && both.iter().all(|change| told.contains(change)), "{told:?}");
    let stale = rotate(vec![secret("newer")], read.version).await;
    assert!(matches!(stale, Err(StoreError::Conflict)), "{stale:?}");

    let rotated = store.key_by_secret(hash("k1")).await.unwrap().unwrap();
    let former = SecretRow { last_used_at: Some(at(CREATED + 9)), ..former };
    assert_eq!(rotated.secrets, [secret("new"), former]);
    assert_eq!(store.key_by_secret(hash("new")).await.unwrap().unwrap(), rotated);

    rotate(vec![secret("new")], rotated.version).await.unwrap();
    assert!(store.key_by_secret(hash("k1")).await.unwrap().is_none());
    assert_eq!(store.key_by_secret(hash("new")).await.unwrap().unwrap().secrets, [secret("new")]);
    assert_eq!(store.key_by_secret(hash("k2")).await.unwrap().unwrap().record.id, key_id("k2"));
}

pub(crate) async fn keys_are_listed_newest_first_and_by_account(store: Arc<dyn Store>) {
    for (id, account, age) in [("k2", "a1", 20), ("k1", "a1", 30), ("k4", "a1", 10), ("k3", "a1", 10), ("k5", "a2", 0)]
    {
        let mut record = record(id, account);
        record.created_at = at(CREATED - age);
        store.create_key(record, secret(id), event(Action::Created)).await.unwrap();
    }
    let ids = |keys: Vec<crate::store::StoredKey>| -> Vec<String> {
        keys.into_iter().map(|key| key.record.id.to_string()).collect()
    };
    assert_eq!(ids(store.keys(KeyFilter::default()).await.unwrap()), ["k5", "k4", "k3", "k2", "k1"]);
    let of_one = KeyFilter { account_id: Some(account_id("a1")), ..KeyFilter::default() };
    assert_eq!(ids(store.keys(of_one).await.unwrap()), ["k4", "k3", "k2", "k1"]);
    let of_nobody = KeyFilter { account_id: Some(account_id("a3")), ..KeyFilter::default() };
    assert!(store.keys(of_nobody).await.unwrap().is_empty());
    for (account, found) in [(None, &["k5"][..]), (Some("a2"), &["k5"]), (Some("a1"), &[])] {
        let one = KeyFilter { id: Some(key_id("k5")), account_id: account.map(account_id), include_deleted: true };
        assert_eq!(ids(store.keys(one).await.unwrap()), found, "{account:?}");
    }
}

pub(crate) async fn an_account_is_made_once_replaced_by_version_and_comes_with_its_keys(store: Arc<dyn Store>) {
    create(&*store, "k1", "a1").await;
    assert!(store.account(account_id("a1")).await.unwrap().is_none());
    let mut account = Account::unset(account_id("a1"));
    account.plan = Some("pro".into());
    account.requests_per_day = Some(u32::MAX);
    account.concurrent_requests = Some(20);
    store.replace_account(account.clone(), None).await.unwrap();
    let twice = store.replace_account(account.clone(), None).await;
    assert!(matches!(twice, Err(StoreError::Conflict)), "{twice:?}");

    let (read, version) = store.account(account_id("a1")).await.unwrap().unwrap();
    assert_eq!(read, account);
    assert_eq!(store.key_by_secret(hash("k1")).await.unwrap().unwrap().account, account);
    // A limit that is taken away does not come back as something that a later version left.
    (account.suspended, account.concurrent_requests) = (true, None);
    store.replace_account(account.clone(), Some(version)).await.unwrap();
    let stale = store.replace_account(read, Some(version)).await;
    assert!(matches!(stale, Err(StoreError::Conflict)), "{stale:?}");
    let absent = store.replace_account(Account::unset(account_id("a2")), Some(Version(1))).await;
    assert!(matches!(absent, Err(StoreError::Conflict)), "{absent:?}");

    assert!(store.key(key_id("k1")).await.unwrap().unwrap().account.suspended);
    store.replace_account(Account::unset(account_id("a0")), None).await.unwrap();
    assert_eq!(store.accounts().await.unwrap(), [Account::unset(account_id("a0")), account]);
}

const HOUR: Duration = Duration::from_secs(3600);

pub(crate) async fn an_idempotency_row_is_claimed_once_and_keeps_its_answer(store: Arc<dyn Store>) {
    let (name, request) = ([1; 32], [2; 32]);
    let claim = |request| store.idempotency_claim(name, request, HOUR);
    let many = (0..8).map(|_| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.idempotency_claim(name, request, HOUR).await.unwrap() })
    });
    let mut claimed = 0;
    for claim in many.collect::<Vec<_>>() {
        match claim.await.unwrap() {
            IdempotencyClaim::Claimed => claimed += 1,
            other => assert_eq!(other, IdempotencyClaim::InProgress),
        }
    }
    assert_eq!(claimed, 1);
    assert_eq!(claim([3; 32]).await.unwrap(), IdempotencyClaim::Mismatch);
    store.idempotency_finish(name, Some(vec![9; 3])).await.unwrap();
    assert_eq!(claim(request).await.unwrap(), IdempotencyClaim::Finished(vec![9; 3]));
    assert_eq!(claim([3; 32]).await.unwrap(), IdempotencyClaim::Mismatch);
}

pub(crate) async fn an_idempotency_row_is_free_again_when_released_or_expired(store: Arc<dyn Store>) {
    let claim = |name, ttl| store.idempotency_claim([name; 32], [2; 32], ttl);
    assert_eq!(claim(1, HOUR).await.unwrap(), IdempotencyClaim::Claimed);
    store.idempotency_finish([1; 32], None).await.unwrap();
    assert_eq!(claim(1, HOUR).await.unwrap(), IdempotencyClaim::Claimed);
    assert_eq!(claim(2, Duration::ZERO).await.unwrap(), IdempotencyClaim::Claimed);
    assert_eq!(claim(2, HOUR).await.unwrap(), IdempotencyClaim::Claimed);
    assert_eq!(claim(2, HOUR).await.unwrap(), IdempotencyClaim::InProgress);
}
