//! What the way to the shared store does: it is slow, it swallows everything, it breaks in the middle of answers.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::Duration;

use super::fleet::{Fleet, PATIENCE, RECOVERY, assert_all_answered, of_key, slower};
use super::redis_outage::{Silence, hung};
use super::servers::{FaultProxy, Namespace, RedisServer, Reply};
use super::support::{Key, Load, count, eventually, minute_with, seconds, statuses};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_slow_store_is_exact_and_one_too_slow_for_its_timeout_is_an_outage() {
    let redis = RedisServer::start();
    let proxy = FaultProxy::to(redis.port());
    let fleet = Fleet::start(&format!("redis://127.0.0.1:{}", proxy.port()), 3, "local_share");
    let (large, small) = (fleet.key(20_000), fleet.key(60));
    let opened = fleet.metrics("gateway_store_breaker_opened_total");

    proxy.latency(Duration::from_millis(10), Duration::from_millis(10));
    fleet.introduce(&[&large]);
    fleet.assert_quota_is_exact();
    minute_with(12);
    let load = Load::on(&fleet.gateways()).keys([&large, &small]).connections(12).rate(150.0).start();
    std::thread::sleep(SECOND * 3 / 2);
    assert_eq!(fleet.metrics("gateway_store_breaker_opened_total"), opened, "slow is not away");
    assert_eq!(fleet.metrics("gateway_outage_admissions_total"), [0.0; 3]);

    proxy.latency(SECOND / 4, SECOND / 4);
    fleet.await_outage(1.0, RECOVERY);
    fleet.assert_readyz_says("ready (degraded");
    std::thread::sleep(SECOND * 2);
    proxy.latency(Duration::ZERO, Duration::ZERO);
    fleet.await_outage(0.0, RECOVERY);
    std::thread::sleep(SECOND);
    let shots = load.stop();

    assert_all_answered(&shots);
    let (of_large, of_small) = (of_key(&shots, 0), of_key(&shots, 1));
    assert_eq!(statuses(&of_large), [(200, of_large.len())], "a cached key is served all the time");
    assert_eq!(count(&of_small, |status| status == 503), 0);
    assert!(count(&of_small, |status| status == 200) < 120, "{:?}", statuses(&of_small));
    // 250 ms for a lease, and a wide margin for the machine.
    assert_eq!(slower(&shots, SECOND * 2), 0);
    fleet.assert_quota_is_exact();
    fleet.assert_usage(&large, 3, &of_large);
    fleet.assert_usage(&small, 0, &of_small);
}

#[test]
fn a_store_behind_a_partition_is_a_store_that_hangs_and_connections_to_it_are_given_up() {
    let network = match Namespace::create() {
        Ok(network) => network,
        Err(why) => return eprintln!("skipped: no network of its own to cut off ({why})"),
    };
    let redis = RedisServer::start_in(&network);
    let before = RefCell::new(BTreeSet::new());
    hung(
        &redis.url(),
        seconds(4, 20),
        Silence::Whole,
        || {
            *before.borrow_mut() = connections(&redis);
            network.cut_off();
        },
        || {
            network.join_again();
            // What had been sent into the void is not waited for: dead sockets are replaced.
            // At least the one that listens and the one that is used, of three gateways; one that nobody uses may be alive still.
            eventually("new connections", RECOVERY, || connections(&redis).difference(&before.borrow()).count() >= 6);
        },
    );
}

/// The connections of the gateways; the harness logs in as somebody else.
fn connections(redis: &RedisServer) -> BTreeSet<String> {
    let Ok(Reply::Bulk(list)) = redis.connect().and_then(|mut c| c.command(&["CLIENT", "LIST"])) else {
        return BTreeSet::new();
    };
    let list = String::from_utf8_lossy(&list).into_owned();
    let theirs = list.lines().filter(|line| line.contains(" user=default "));
    theirs.filter_map(|line| Some(line.split_once(' ')?.0.to_owned())).collect()
}

#[test]
fn a_link_that_breaks_in_the_middle_of_answers_never_gives_a_key_the_answer_of_another() {
    let redis = RedisServer::start();
    let proxy = FaultProxy::to(redis.port());
    // Keys are read again and again.
    let url = format!("redis://127.0.0.1:{}", proxy.port());
    let fleet = Fleet::start_with(&url, 1, "local_share", "cache: { ttl: 50ms }");
    let keys: Vec<Key> = (1..=20).map(|number| fleet.key(1_000 * number)).collect();
    minute_with(12);
    let load = Load::on(&fleet.gateways()).keys(&keys).connections(16).rate(500.0).start();
    for bytes in [1, 300, 700, 1_100, 1_900, 3_100] {
        let connections = proxy.connections();
        proxy.cut_replies_after(bytes);
        eventually("connections are cut and replaced", PATIENCE, || proxy.connections() >= connections + 3);
        proxy.stop_cutting();
        fleet.await_outage(0.0, PATIENCE);
        std::thread::sleep(SECOND / 4);
    }
    std::thread::sleep(SECOND / 2);
    let shots = load.stop();

    assert_all_answered(&shots);
    assert!(shots.len() > 2_000, "{}", shots.len());
    for shot in &shots {
        let Some([limit, remaining, _]) = shot.answer.as_ref().unwrap().window else { continue };
        assert_eq!(limit, 1_000 * (shot.key as i64 + 1), "{shot:?}");
        assert!((0..limit).contains(&remaining), "{shot:?}");
    }
    // A link that is back for a moment lets the gateway follow changes again, for which it must forget what it has cached.
    assert!(count(&shots, |status| status == 200) > shots.len() / 2, "{:?}", statuses(&shots));
    for (number, key) in keys.iter().enumerate() {
        // A 503 for a key that could not be looked up is nobody's.
        let served = count(&of_key(&shots, number), |status| status == 200);
        let usage = fleet.usage(key, served);
        assert_eq!(usage["by_status"]["2xx"], served, "{usage}");
    }
}
