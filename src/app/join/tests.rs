//! Joining a store that is not there yet, in simulated time.

use std::future::pending;

use super::*;
use crate::store::faulty::{Fault, FaultyStore, Method};
use crate::store::memory::MemoryStore;

fn id() -> ReplicaId {
    ReplicaId("r1".into())
}

async fn join(store: &FaultyStore, stop: impl Future<Output = ()>) -> (Result<(), StartError>, Duration) {
    let began = Instant::now();
    let outcome = register(store, &id(), "host/address", stop).await;
    (outcome, began.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_store_that_comes_later_is_waited_for() {
    let store = FaultyStore::new(MemoryStore::new());
    store.inject_times(Method::Register, Fault::Unavailable, 10);
    let (outcome, waited) = join(&store, pending()).await;
    outcome.unwrap();
    assert_eq!(waited, Duration::from_secs(5));
    assert!(store.heartbeat(id()).await.unwrap(), "it is registered");

    // One that accepts connections and says nothing.
    store.inject_times(Method::Register, Fault::Hold, 2);
    let (outcome, waited) = join(&store, pending()).await;
    outcome.unwrap();
    assert_eq!(waited, 2 * (ATTEMPT + RETRY));
}

#[tokio::test(start_paused = true)]
async fn the_wait_ends_after_half_a_minute_or_when_the_process_is_to_stop() {
    let store = FaultyStore::new(MemoryStore::new());
    store.inject(Method::Register, Fault::LoseReply);
    let (outcome, waited) = join(&store, pending()).await;
    assert!(matches!(outcome, Err(StartError::Store(StoreError::Unknown(_)))), "{outcome:?}");
    assert_eq!(waited, PATIENCE);

    store.inject(Method::Register, Fault::Hold);
    let (outcome, waited) = join(&store, sleep(Duration::from_secs(7))).await;
    assert!(matches!(outcome, Err(StartError::Stopped)), "{outcome:?}");
    assert_eq!(waited, Duration::from_secs(7));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_refuses_is_not_waited_for() {
    let store = FaultyStore::new(MemoryStore::new());
    store.inject(Method::Register, Fault::Refused);
    let (outcome, waited) = join(&store, pending()).await;
    assert!(matches!(outcome, Err(StartError::Store(StoreError::Refused(_)))), "{outcome:?}");
    assert_eq!(waited, Duration::ZERO);
}
