//! Contract: the change feed and the list of gateways.

use std::sync::Arc;
use std::time::Duration;

use super::{account_id, changes, create, event, hash, key_id};
use crate::policy::key::Account;
use crate::store::{Action, Change, Replica, ReplicaId, Revision, Store};

pub(crate) async fn every_change_reaches_every_subscriber_in_order(store: Arc<dyn Store>) {
    let (mut one, mut two) = (store.subscribe(), store.subscribe());
    let mut expected = Vec::new();
    for n in 0..20 {
        let id = account_id(&format!("a{n}"));
        store.replace_account(Account::unset(id.clone()), None).await.unwrap();
        expected.push(Change::Account(id));
    }
    assert_eq!(changes(&mut one, 20).await.1, expected);
    assert_eq!(changes(&mut two, 20).await.1, expected);
}

pub(crate) async fn a_change_is_delivered_with_the_revision_its_method_returned(store: Arc<dyn Store>) {
    let mut feed = store.subscribe();
    let mut last = Revision(0);
    let created = create(&*store, "k1", "a1").await;
    let both = [Change::Secret(hash("k1")), Change::Key(key_id("k1"))];
    let (revision, told) = changes(&mut feed, 2).await;
    assert!(revision == created && both.iter().all(|change| told.contains(change)), "{told:?}");

    let key = store.key(key_id("k1")).await.unwrap().unwrap();
    let replaced = store.replace_key(key.record, key.version, Some(event(Action::Updated))).await.unwrap();
    assert_eq!(changes(&mut feed, 1).await, (replaced, vec![Change::Key(key_id("k1"))]));

    let set = store.replace_account(Account::unset(account_id("a1")), None).await.unwrap();
    assert_eq!(changes(&mut feed, 1).await, (set, vec![Change::Account(account_id("a1"))]));
    for revision in [created, replaced, set] {
        assert!(revision > last, "{revision:?} after {last:?}");
        last = revision;
    }
}

fn replica(id: &str) -> ReplicaId {
    ReplicaId(id.into())
}

/// The one gateway that is listed.
async fn only(store: &dyn Store) -> Replica {
    let mut replicas = store.replicas().await.unwrap();
    assert_eq!(replicas.len(), 1, "{replicas:?}");
    replicas.remove(0)
}

pub(crate) async fn a_replica_is_listed_until_it_says_goodbye(store: Arc<dyn Store>) {
    assert!(!store.heartbeat(replica("r1")).await.unwrap(), "nobody registered it");
    let changed = create(&*store, "k1", "a1").await;
    assert_eq!(store.register(replica("r1"), "host:8080".into()).await.unwrap(), changed);
    let listed = only(&*store).await;
    assert_eq!((listed.id, listed.name.as_str(), listed.acknowledged), (replica("r1"), "host:8080", changed));
    assert!(listed.heartbeat_age < Duration::from_secs(5), "{:?}", listed.heartbeat_age);
    assert!(store.heartbeat(replica("r1")).await.unwrap());
    store.deregister(replica("r1")).await.unwrap();
    assert!(store.replicas().await.unwrap().is_empty());
    assert!(!store.heartbeat(replica("r1")).await.unwrap());
}

pub(crate) async fn a_replica_of_the_same_name_replaces_its_predecessor(store: Arc<dyn Store>) {
    store.register(replica("r1"), "host:8080".into()).await.unwrap();
    store.register(replica("r2"), "host:8080".into()).await.unwrap();
    assert_eq!(only(&*store).await.id, replica("r2"));
    assert!(!store.heartbeat(replica("r1")).await.unwrap());
    store.register(replica("r3"), "other:8080".into()).await.unwrap();
    assert_eq!(store.replicas().await.unwrap().len(), 2);
}

pub(crate) async fn a_replica_that_takes_another_name_has_acknowledged_no_more_than_before(store: Arc<dyn Store>) {
    let first = store.register(replica("r1"), "host:8080".into()).await.unwrap();
    create(&*store, "k1", "a1").await;
    assert_eq!(store.register(replica("r1"), "host:8080~r1".into()).await.unwrap(), first);
    let listed = only(&*store).await;
    assert_eq!((listed.name.as_str(), listed.acknowledged), ("host:8080~r1", first));
    // Its old name is free for another one, which starts where the store is now.
    assert!(store.register(replica("r2"), "host:8080".into()).await.unwrap() > first);
    assert!(store.heartbeat(replica("r1")).await.unwrap() && store.heartbeat(replica("r2")).await.unwrap());
}

pub(crate) async fn an_acknowledgement_never_goes_back(store: Arc<dyn Store>) {
    store.register(replica("r1"), "host:8080".into()).await.unwrap();
    let first = create(&*store, "k1", "a1").await;
    let second = create(&*store, "k2", "a1").await;
    for (acknowledged, expected) in [(first, first), (second, second), (first, second)] {
        store.acknowledge(replica("r1"), acknowledged).await.unwrap();
        assert_eq!(only(&*store).await.acknowledged, expected);
    }
    // Of a gateway that was forgotten meanwhile: harmless.
    store.acknowledge(replica("r9"), second).await.unwrap();
}
