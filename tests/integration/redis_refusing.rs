//! The shared store answers but takes no writes: its memory is full, or it has become a replica. Keys are looked up all the same.

use std::time::Duration;

use super::fleet::{Fleet, PATIENCE, RECOVERY, assert_all_answered, of_key};
use super::servers::{RedisServer, Reply};
use super::support::{Load, count, eventually, minute_with, statuses};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_store_whose_memory_is_full_is_read_on_and_quota_is_shared_out() {
    let redis = RedisServer::start();
    refusing(
        &redis,
        || {
            redis.cli(&["CONFIG", "SET", "maxmemory", "8mb"]);
            let mut connection = redis.connect().unwrap();
            let filler = "x".repeat(1_000_000);
            let full = (0..100).any(|number| {
                let set = connection.command(&["SET", &format!("filler:{number}"), &filler]).unwrap();
                matches!(set, Reply::Error(error) if error.starts_with("OOM"))
            });
            assert!(full);
            // The fillers' own buffers are free again; of what is left nothing may be.
            redis.cli(&["CONFIG", "SET", "maxmemory", "6mb"]);
        },
        || drop(redis.cli(&["CONFIG", "SET", "maxmemory", "0"])),
    );
}

#[test]
fn a_master_that_becomes_a_replica_is_noticed_and_read_on_until_it_is_a_master_again() {
    // They follow each other at once; usual is five seconds later.
    let [redis, other] = [(); 2].map(|()| RedisServer::start_with(&["--repl-diskless-sync-delay", "0"]));
    let port = redis.port().to_string();
    refusing(
        &redis,
        || {
            // A failover: the other one has everything, and takes over.
            other.cli(&["REPLICAOF", "127.0.0.1", &port]);
            eventually("it follows", PATIENCE, || {
                other.info("replication", "master_link_status").as_deref() == Some("up")
            });
            other.cli(&["REPLICAOF", "NO", "ONE"]);
            redis.cli(&["REPLICAOF", "127.0.0.1", &other.port().to_string()]);
        },
        || drop(redis.cli(&["REPLICAOF", "NO", "ONE"])),
    );
}

fn refusing(redis: &RedisServer, begin: impl FnOnce(), heal: impl FnOnce()) {
    let fleet = Fleet::start(&redis.url(), 3, "local_share");
    let (large, small, unmet) = (fleet.key(20_000), fleet.key(60), fleet.key(100));
    minute_with(15);
    fleet.introduce(&[&large, &small]);
    let load = Load::on(&fleet.gateways()).keys([&large, &small]).connections(12).rate(150.0).start();
    std::thread::sleep(SECOND / 2);
    let lines = || fleet.gateways().iter().map(|gateway| gateway.process.stderr().lines().count()).sum::<usize>();
    let written = lines();

    begin();
    fleet.await_outage(1.0, RECOVERY);
    fleet.assert_readyz_says("ready (degraded");
    for gateway in fleet.gateways() {
        gateway.get("/echo/x?bytes=2").bearer(&unmet).send().expect_status(200);
        gateway.get("/echo/x").token(&format!("{}x", unmet.secret)).send().expect_refusal(401, "invalid_key");
    }
    std::thread::sleep(SECOND * 5 / 2);
    let written = lines() - written;
    let opened = fleet.metrics("gateway_store_breaker_opened_total");
    let admitted = fleet.metrics("gateway_outage_admissions_total");
    heal();
    fleet.await_outage(0.0, RECOVERY);
    std::thread::sleep(SECOND);
    let shots = load.stop();

    assert_all_answered(&shots);
    let (of_large, of_small) = (of_key(&shots, 0), of_key(&shots, 1));
    assert_eq!(statuses(&of_large), [(200, of_large.len())], "a key is served all the time");
    assert_eq!(count(&of_small, |status| status == 503), 0);
    // G tokens had been granted when it began: L + G(R-1)/R, and that is less than 2L.
    assert!(count(&of_small, |status| status == 200) < 120 - 3, "{:?}", statuses(&of_small));
    assert!(opened.iter().all(|opened| *opened == 1.0) && admitted.iter().all(|count| *count > 0.0), "{opened:?}");
    // About three seconds, three gateways.
    assert!(written <= 3 * 4, "{written} lines: {}", fleet.stand.gateway.process.stderr());
    fleet.assert_quota_is_exact();
    fleet.assert_usage(&large, 3, &of_large);
    fleet.assert_usage(&small, 3, &of_small);
    fleet.assert_usage(&unmet, 3, &[]);
}
