//! Servers that die, are promoted, hand slots over, forget scripts, or become read-only.

use std::sync::Arc;
use std::time::Duration;

use super::super::names::Partition;
use super::support::{Cluster, RedisServer, Sentinels};
use super::{RedisStore, at, config, open, with_cluster, with_sentinels};
use crate::policy::key::Day;
use crate::store::contract::{ask, create, hash, key_id, subject};
use crate::store::{Counted, FlushOutcome, Part, ReplicaId, StatusClass, Store, StoreError, UsageBatch, UsageCount};

/// Until it succeeds; a store that does not come back fails the test.
async fn soon<T, F: Future<Output = Result<T, StoreError>>>(mut call: impl FnMut() -> F) -> T {
    let again = async {
        loop {
            match call().await {
                Ok(value) => return value,
                Err(StoreError::Unavailable(_) | StoreError::Unknown(_)) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(other) => panic!("{other:?}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), again).await.expect("the store comes back")
}

async fn lease(store: &Arc<RedisStore>, of: &str) -> Result<u32, StoreError> {
    Ok(store.lease(subject(of), ask(1, 1_000, 10_000)).await?.seen.day_granted)
}

#[tokio::test]
async fn a_server_that_forgot_the_scripts_is_told_them_in_the_same_call() {
    let server = RedisServer::start();
    let store = open(at(&server)).await;
    create(&*store, "k1", "a1").await;
    server.cli(&["SCRIPT", "FLUSH"]);
    assert!(store.key_by_secret(hash("k1")).await.unwrap().is_some());
    assert_eq!(lease(&store, "a1").await.unwrap(), 1);
}

#[tokio::test]
async fn a_server_that_became_a_replica_or_is_full_did_nothing() {
    let server = RedisServer::start();
    let other = RedisServer::start();
    let store = open(at(&server)).await;
    server.cli(&["REPLICAOF", "127.0.0.1", &other.port().to_string()]);
    let error = lease(&store, "a1").await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    server.cli(&["REPLICAOF", "NO", "ONE"]);
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let error = lease(&store, "a1").await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(soon(|| lease(&store, "a1")).await, 1);
}

#[tokio::test]
async fn a_restarted_server_is_reached_again_within_two_seconds() {
    let server = RedisServer::start();
    let store = open(at(&server)).await;
    lease(&store, "a1").await.unwrap();
    server.kill();
    let error = soon_fails(&store).await;
    assert!(matches!(error, StoreError::Unavailable(_) | StoreError::Unknown(_)), "{error:?}");
    server.restart();
    tokio::time::timeout(Duration::from_secs(2), soon(|| lease(&store, "a1"))).await.expect("within two seconds");
}

async fn soon_fails(store: &Arc<RedisStore>) -> StoreError {
    loop {
        if let Err(error) = lease(store, "a1").await {
            return error;
        }
    }
}

#[tokio::test]
async fn after_a_failover_the_new_master_is_written_to() {
    let sentinels = Sentinels::start();
    let store = open(config(with_sentinels(&sentinels))).await;
    let before = create(&*store, "k1", "a1").await;
    // What the master has not handed on dies with it: wait for the replicas.
    sentinels.master().cli(&["WAIT", "2", "5000"]);
    let old = sentinels.kill_master();
    sentinels.await_new_master(old);
    soon(|| lease(&store, "a1")).await;
    assert!(soon(|| store.key_by_secret(hash("k1"))).await.is_some());
    let after = create(&*store, "k2", "a1").await;
    assert!(after > before);
    assert_ne!(store.registry_node().unwrap().address.port, old);
}

#[tokio::test]
async fn a_slot_that_moves_under_load_loses_no_call_and_counts_each_once() {
    let cluster = Cluster::start();
    let store = open(config(with_cluster(&cluster))).await;
    let slot = cluster.slot_of(&store.names.ledger(&subject("a1")));
    let from = cluster.master_of(slot);
    let to = cluster.masters().into_iter().find(|&master| master != from).unwrap();
    let calls = {
        let store = store.clone();
        tokio::spawn(async move {
            let mut granted = 0;
            for _ in 0..300 {
                granted = lease(&store, "a1").await.expect("a slot that moves is followed");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            granted
        })
    };
    let moved = tokio::task::spawn_blocking(move || {
        cluster.begin_move(from, to, slot);
        cluster.move_keys(from, to, slot);
        cluster.end_move(from, to, slot);
        cluster
    });
    let cluster = moved.await.unwrap();
    assert_eq!(calls.await.unwrap(), 300, "a call was lost or ran twice");
    assert_eq!(cluster.master_of(slot), to);
}

#[tokio::test]
async fn a_dead_master_takes_its_part_with_it_and_no_other() {
    // By default a cluster stops altogether while a slot has no master; the README advises against it.
    let cluster = Cluster::start_with(&["--cluster-require-full-coverage", "no"]);
    let store = open(config(with_cluster(&cluster))).await;
    let registry = cluster.master_of(cluster.slot_of(&store.names.registry()));
    // Two subjects: one beside the keys, one on a master of its own.
    let of = |wanted: bool| {
        let lives =
            |n: &usize| cluster.master_of(cluster.slot_of(&store.names.ledger(&subject(&format!("a{n}"))))) == registry;
        let number = (0..).find(|n| lives(n) == wanted).unwrap();
        format!("a{number}")
    };
    let (beside, apart) = (of(true), of(false));
    assert_eq!(store.part(&subject(&beside)), Part(0));
    assert_ne!(store.part(&subject(&apart)), Part(0));
    lease(&store, &apart).await.unwrap();
    let slot = cluster.slot_of(&store.names.ledger(&subject(&apart)));
    let dead = cluster.master_of(slot);
    cluster.kill(dead);
    let mut failed = 0;
    while lease(&store, &apart).await.is_err() {
        lease(&store, &beside).await.expect("another part goes on");
        failed += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(failed > 0, "nobody noticed that a master is dead");
    assert_ne!(cluster.await_new_master(slot, dead), dead);
}

#[tokio::test]
async fn keys_and_usage_wait_while_their_slot_is_on_its_way_and_then_are_whole() {
    let cluster = Cluster::start();
    let store = open(config(with_cluster(&cluster))).await;
    create(&*store, "k1", "a1").await;
    let count = |count| UsageCount { key_id: key_id("k1"), day: Day(20_000), counted: predicted(), count };
    let batch = move |sequence, n| UsageBatch {
        replica: ReplicaId("r1".into()),
        sequence,
        counts: vec![count(n)],
        last_used: Vec::new(),
    };
    store.flush_usage(batch(1, 5)).await.unwrap();
    let usage = store.names.usage(Partition::of(&key_id("k1")));
    let moves: Vec<_> = [store.names.registry(), usage]
        .iter()
        .map(|name| {
            let slot = cluster.slot_of(name);
            let from = cluster.master_of(slot);
            (slot, from, cluster.masters().into_iter().find(|&master| master != from).unwrap())
        })
        .collect();
    for &(slot, from, to) in &moves {
        cluster.begin_move(from, to, slot);
    }
    let (asked, flushed) = (store.clone(), store.clone());
    let found = tokio::spawn(async move { asked.key_by_secret(hash("k1")).await });
    let added = tokio::spawn(async move { flushed.flush_usage(batch(2, 7)).await });
    for &(slot, from, to) in &moves {
        cluster.move_keys(from, to, slot);
    }
    // Everything is at one of the two by now, and neither serves it.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!found.is_finished() && !added.is_finished(), "half of what belongs together was served");
    for &(slot, from, to) in &moves {
        cluster.end_move(from, to, slot);
    }
    assert!(found.await.unwrap().unwrap().is_some());
    assert_eq!(added.await.unwrap().unwrap(), FlushOutcome::Applied);
    assert_eq!(store.usage(key_id("k1"), Day(0), Day(30_000)).await.unwrap(), [count(12)]);
}

fn predicted() -> Counted {
    Counted::Endpoint("POST /api/v1/inferences/{model_id}".into(), StatusClass::Success)
}
