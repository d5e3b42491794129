//! Who obeys a change already: waits a moment for the gateways to acknowledge a revision, and says which have not.
//!
//! A gateway acknowledges once nothing is served from older state. One that vanished without a goodbye may still be running,
//! cut off and serving what it cached; it is counted, and so never reported as obeying, until its cached keys have run out.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::store::{Replica, ReplicaId, Revision, Store};

/// How long an answer waits for the gateways (contract 6).
pub const PATIENCE: Duration = Duration::from_millis(500);
/// A gateway with a younger heartbeat is alive (contract 6).
const ALIVE: Duration = Duration::from_secs(2);
/// A gateway serves cached keys from when it last heard of the store, which may be this much later than its last heartbeat.
const SINCE_HEARTBEAT: Duration = Duration::from_secs(1);
/// Acknowledgements of other processes can only be seen by looking.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The member `acknowledged` of an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Acknowledged {
    /// Gateways that obey.
    pub replicas: usize,
    /// Gateways that should.
    pub of: usize,
    /// The names of the others.
    pub unreachable: Vec<String>,
}

impl Acknowledged {
    /// Counts. `lost_within`: how long a gateway that cannot be reached may go on serving cached keys. Whoever is in `counted` once
    /// stays: nobody obeys because a call has waited for it.
    pub fn count(
        replicas: &[Replica],
        revision: Revision,
        lost_within: Duration,
        counted: &mut HashSet<ReplicaId>,
    ) -> Self {
        let within = ALIVE.max(lost_within + SINCE_HEARTBEAT);
        counted
            .extend(replicas.iter().filter(|replica| replica.heartbeat_age < within).map(|replica| replica.id.clone()));
        let counted: Vec<_> = replicas.iter().filter(|replica| counted.contains(&replica.id)).collect();
        let missing = counted.iter().filter(|replica| replica.acknowledged < revision);
        let unreachable: Vec<String> = missing.map(|replica| replica.name.clone()).collect();
        Self { replicas: counted.len() - unreachable.len(), of: counted.len(), unreachable }
    }

    /// Whether all obey.
    pub fn is_complete(&self) -> bool {
        self.unreachable.is_empty()
    }

    /// As contract 6 writes it.
    pub fn to_json(&self) -> Value {
        json!({"replicas": self.replicas, "of": self.of, "unreachable": self.unreachable})
    }
}

/// Waits until all gateways have acknowledged `revision`, but not longer than `patience`.
pub async fn wait(store: &dyn Store, revision: Revision, lost_within: Duration, patience: Duration) -> Acknowledged {
    let (mut last, mut counted) = (None, HashSet::new());
    let all = async {
        loop {
            // The change is made; a store that cannot be asked about the gateways only means that nobody can tell.
            if let Ok(replicas) = store.replicas().await {
                let now = Acknowledged::count(&replicas, revision, lost_within, &mut counted);
                let done = now.is_complete();
                last = Some(now);
                if done {
                    return;
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let _out_of_patience = tokio::time::timeout(patience, all).await;
    last.unwrap_or_else(|| Acknowledged { unreachable: vec!["store".to_owned()], ..Acknowledged::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::management::testing::StubStore;

    const SERVE_CACHED: Duration = Duration::from_secs(60);

    fn replica(name: &str, age_ms: u64, acknowledged: u64) -> Replica {
        Replica {
            id: ReplicaId(name.into()),
            name: name.to_owned(),
            heartbeat_age: Duration::from_millis(age_ms),
            acknowledged: Revision(acknowledged),
        }
    }

    #[test]
    fn the_living_and_the_lately_lost_are_counted() {
        let replicas =
            [replica("ok", 100, 7), replica("late", 1999, 6), replica("lost", 60_999, 6), replica("gone", 61_000, 6)];
        let found = Acknowledged::count(&replicas, Revision(7), SERVE_CACHED, &mut HashSet::new());
        let unreachable = vec!["late".to_owned(), "lost".to_owned()];
        assert_eq!(found, Acknowledged { replicas: 1, of: 3, unreachable });
        assert!(!found.is_complete());
    }

    #[test]
    fn the_living_are_counted_even_when_cached_keys_are_not_served_at_all() {
        let mut counted = HashSet::new();
        let both = |ages: [u64; 2]| [replica("a", ages[0], 1), replica("b", ages[1], 1)];
        let found = Acknowledged::count(&both([1999, 2000]), Revision(2), Duration::ZERO, &mut counted);
        assert_eq!((found.of, found.unreachable), (1, vec!["a".to_owned()]));
        // A little later in the same call: it has not obeyed in between.
        let found = Acknowledged::count(&both([2400, 2401]), Revision(2), Duration::ZERO, &mut counted);
        assert_eq!((found.of, found.unreachable), (1, vec!["a".to_owned()]));
    }

    #[test]
    fn without_any_gateway_there_is_nobody_to_wait_for() {
        assert!(Acknowledged::count(&[], Revision(1), SERVE_CACHED, &mut HashSet::new()).is_complete());
    }

    #[tokio::test]
    async fn it_returns_as_soon_as_the_last_one_has_acknowledged() {
        let store = StubStore::default();
        store.edit(|state| state.replicas = vec![replica("a", 0, 5), replica("b", 0, 4)]);
        store.edit(|state| state.acknowledge_after_looks = Some((2, Revision(5))));
        let found = wait(&store, Revision(5), SERVE_CACHED, Duration::from_secs(60)).await;
        assert_eq!(found, Acknowledged { replicas: 2, of: 2, unreachable: vec![] });
    }

    #[tokio::test]
    async fn out_of_patience_it_names_who_is_missing() {
        let store = StubStore::default();
        store.edit(|state| state.replicas = vec![replica("a", 0, 5), replica("b", 0, 4)]);
        let found = wait(&store, Revision(5), SERVE_CACHED, Duration::from_millis(30)).await;
        assert_eq!(found.to_json(), json!({"replicas": 1, "of": 2, "unreachable": ["b"]}));
    }

    #[tokio::test]
    async fn a_store_that_cannot_be_asked_is_no_acknowledgement() {
        let store = StubStore::default();
        store.edit(|state| state.down = true);
        assert!(!wait(&store, Revision(5), SERVE_CACHED, Duration::from_millis(30)).await.is_complete());
    }
}
