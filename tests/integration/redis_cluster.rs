//! Three gateways on a cluster: exact limits while slots move, while a master dies, and usage that is exact afterwards.

use std::time::Duration;

use super::servers::Cluster;
use super::support::{
    Gateway, Key, Load, PATIENCE, Shot, Stand, Tally, count, eventually, minute_with, seconds, sized, statuses,
    wait_for,
};

const SOON: Duration = Duration::from_secs(15);
const DAY: usize = 10_000_000;

struct Three {
    tally: Tally,
    /// Before the folder in which they write goes.
    others: Vec<Gateway>,
    stand: Stand,
    cluster: Cluster,
}

impl Three {
    fn start() -> Self {
        let (cluster, tally) = (Cluster::start_with(&["--cluster-require-full-coverage", "no"]), Tally::start());
        let members = ", outage: { serve_cached_keys_for: 10m }";
        let store = format!("url: \"{}\"{members}{}", cluster.url(), PATIENCE);
        let stand = Stand::new().upstream(tally.address()).section("log: off").shared_store(&store).start();
        let others = (0..2).map(|_| stand.another_gateway()).collect();
        let three = Self { tally, stand, others, cluster };
        eventually("three gateways", SOON, || {
            three.all().iter().all(|gateway| gateway.metric("gateway_replicas", "") == Some(3.0))
        });
        three
    }

    fn all(&self) -> Vec<&Gateway> {
        std::iter::once(&self.stand.gateway).chain(&self.others).collect()
    }

    /// The slot of the quota of a key.
    fn slot(&self, key: &Key) -> u16 {
        self.cluster.slot_of(&format!("sm:rl:{{account:live:{}}}", key.account))
    }

    /// A key whose quota is kept by this master.
    fn key_on(&self, master: usize, limit: usize) -> Key {
        loop {
            let key = self.stand.limited_key(limit, DAY);
            if self.cluster.master_of(self.slot(&key)) == master {
                // The ledger is where we think it is.
                self.stand.get("/echo/x").bearer(&key).send().expect_status(200);
                let name = format!("sm:rl:{{account:live:{}}}", key.account);
                assert_eq!(self.cluster.node(master).cli(&["EXISTS", &name]), "1", "no {name}");
                return key;
            }
        }
    }

    /// As the store has it, after each of the gateways has written what it has.
    fn usage(&self, key: &Key) -> u64 {
        let reader = self.stand.key().account(&key.account).scope("api-keys:read").create();
        let path = format!("/api/v1/api-keys/{}/usage", key.id);
        let read = |gateway: &Gateway| {
            let ask = || Some(gateway.get(&path).bearer(&reader).send()).filter(|answer| answer.status() == 200);
            wait_for("usage can be read", SOON, ask).0.json()["total_requests"].as_u64().unwrap()
        };
        // Each writes what it has before it answers: the last one tells all.
        self.all().into_iter().fold(0, |_, gateway| read(gateway))
    }
}

fn answered(shots: &[Shot], key: usize) -> u64 {
    shots.iter().filter(|shot| shot.key == key && shot.status() != 0).count() as u64
}

#[test]
fn a_cluster_admits_the_limit_and_not_one_more() {
    let three = Three::start();
    for limit in [60, 300, 5000] {
        for round in 0..sized(1, 5) {
            let key = three.stand.limited_key(limit, DAY);
            minute_with(20);
            let requests = sized(limit + 1000, 10_000);
            let shots = Load::on(&three.all()).keys([&key]).connections(sized(100, 300)).send(requests);
            let told = statuses(&shots);
            assert_eq!(told, [(200, limit), (429, requests - limit)], "limit {limit}, round {round}");
            assert_eq!(three.tally.of(&key.account), limit);
            println!("cluster, limit {limit}, round {round}: {told:?}");
        }
    }
}

#[test]
fn slots_that_move_under_load_admit_nothing_twice_and_refuse_nobody() {
    let three = Three::start();
    let limit = 2000;
    let keys: Vec<_> = (0..3).map(|master| three.key_on(master, limit)).collect();
    minute_with(25);
    let running = Load::on(&three.all()).keys(&keys).connections(30).rate(sized(300.0, 600.0)).start();
    let mut moves = 0;
    for _ in 0..sized(2, 6) {
        for key in &keys {
            let slot = three.slot(key);
            let from = three.cluster.master_of(slot);
            three.cluster.move_slots(from, (from + 1) % 3, [slot]);
            moves += 1;
            let at = running.begun();
            wait_for("some more", SOON, || (running.begun() > at + 20).then_some(()));
        }
    }
    let shots = running.stop();
    println!("cluster, {moves} slots moved under load: {:?}", statuses(&shots));
    for (number, key) in keys.iter().enumerate() {
        let windows = three.tally.windows(&key.account);
        assert!(windows.values().all(|&admitted| admitted <= limit), "{windows:?}");
        // One came when the key was made.
        assert_eq!(three.usage(key), 1 + answered(&shots, number));
    }
    assert_eq!(statuses(&shots), [(200, shots.len())]);
}

#[test]
fn while_the_slot_of_the_keys_moves_a_key_is_served_or_waited_for_and_never_unknown() {
    let three = Three::start();
    let key = three.key_on(0, 2000);
    let running = Load::on(&three.all()).keys([&key]).connections(10).rate(sized(100.0, 300.0)).start();
    let slot = three.cluster.slot_of("{reg}");
    for _ in 0..sized(3, 12) {
        let from = three.cluster.master_of(slot);
        three.cluster.move_slots(from, (from + 1) % 3, [slot]);
        let at = running.begun();
        wait_for("some more", SOON, || (running.begun() > at + 20).then_some(()));
    }
    let shots = running.stop();
    println!("cluster, the slot of the keys moved under load: {:?}", statuses(&shots));
    // 503: its slot took longer than a request is patient. A 401 would be a lie.
    assert_eq!(count(&shots, |status| !matches!(status, 200 | 503)), 0, "{:?}", statuses(&shots));
    assert_eq!(three.usage(&key), 1 + count(&shots, |status| status == 200) as u64);
}

#[test]
fn a_master_that_dies_takes_no_quota_beyond_the_bound_and_no_usage_with_it() {
    let three = Three::start();
    let registry = three.cluster.master_of(three.cluster.slot_of("{reg}"));
    let dying = (registry + 1) % 3;
    let limit = 3000;
    let keys: Vec<_> = (0..3).map(|master| three.key_on(master, limit)).collect();
    let others: Vec<usize> = (0..3).filter(|&number| number != dying).collect();
    minute_with(30);
    let running = Load::on(&three.all()).keys(&keys).connections(30).rate(sized(150.0, 300.0)).start();
    std::thread::sleep(seconds(2, 4));
    // What a master had confirmed and not handed on is lost with it: here nothing.
    let mut master = three.cluster.node(dying).connect().unwrap();
    master.command(&["SET", &tagged(&three.cluster, dying), "x"]).unwrap();
    assert_eq!(master.command(&["WAIT", "1", "1000"]).unwrap().number(), Some(1));
    three.cluster.kill(dying);
    let slot = three.slot(&keys[dying]);
    three.cluster.await_new_master(slot, dying);
    let back = eventually("the store is whole again", SOON, || {
        three.all().iter().all(|gateway| gateway.metric("gateway_store_outage", "") == Some(0.0))
    });
    std::thread::sleep(seconds(2, 4));
    let shots = running.stop();
    println!("cluster, a master killed: {:?}; well again {back:?} after it was replaced", statuses(&shots));
    for &number in &others {
        let failed = shots.iter().filter(|shot| shot.key == number && shot.status() != 200).count();
        assert_eq!(failed, 0, "a key of a master that lives: {:?}", statuses(&shots));
    }
    let lost: f64 = three.all().iter().filter_map(|g| g.metric("gateway_usage_batches_lost_total", "")).sum();
    for (number, key) in keys.iter().enumerate() {
        let windows = three.tally.windows(&key.account);
        println!(
            "key {number}: admitted {windows:?}, usage {}, answered {}",
            three.usage(key),
            answered(&shots, number)
        );
        // In an outage max(limit, replicas) beside what was granted before.
        let most = if number == dying { 2 * limit } else { limit };
        assert!(windows.values().all(|&admitted| admitted <= most), "{windows:?}");
        assert_eq!(three.usage(key), 1 + answered(&shots, number), "{lost} batches lost");
    }
    assert_eq!(count(&shots, |status| status == 500), 0);
}

/// A name whose slot this master has.
fn tagged(cluster: &Cluster, master: usize) -> String {
    (0..)
        .map(|number| format!("mark:{number}"))
        .find(|name| cluster.master_of(cluster.slot_of(name)) == master)
        .unwrap()
}
