//! What a query costs, printed: run it with `--ignored --nocapture`.

use super::support::RedisServer;
use super::{at, open};
use crate::policy::key::Day;
use crate::store::contract::key_id;
use crate::store::{Counted, ReplicaId, StatusClass, Store, UsageBatch, UsageCount};

#[tokio::test]
#[ignore = "a measurement"]
#[allow(clippy::disallowed_methods, reason = "measures")]
async fn what_a_query_over_a_month_costs() {
    let server = RedisServer::start();
    let store = open(at(&server)).await;
    // 31 days, ten endpoints, six ways to end: as many counters as a busy key has.
    let counts = (0..31).flat_map(|day| {
        (0..10).flat_map(move |endpoint| {
            StatusClass::ALL.map(|class| UsageCount {
                key_id: key_id("k1"),
                day: Day(20_000 + day),
                counted: Counted::Endpoint(format!("GET /api/v1/models/{endpoint}/{{model_id}}").into(), class),
                count: 1,
            })
        })
    });
    let batch =
        UsageBatch { replica: ReplicaId("r1".into()), sequence: 1, counts: counts.collect(), last_used: vec![] };
    store.flush_usage(batch).await.unwrap();
    let mut times = Vec::new();
    for _ in 0..200 {
        let start = std::time::Instant::now();
        let found = store.usage(key_id("k1"), Day(20_000), Day(20_030)).await.unwrap();
        times.push(start.elapsed());
        assert_eq!(found.len(), 31 * 10 * 6);
    }
    times.sort();
    println!("31 days of 60 counters: p50 {:?}, p99 {:?}", times[100], times[198]);
}
