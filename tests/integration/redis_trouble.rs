//! A Redis that forgets: emptied, without its scripts, or evicting what it should keep. Limits stay limits, and nobody is answered 500.

use std::time::Duration;

use super::servers::{RedisServer, Reply};
use super::support::{
    Gateway, Key, Load, PATIENCE, Shot, Stand, Tally, count, eventually, minute_with, seconds, sized, statuses,
    wait_for,
};

const SOON: Duration = Duration::from_secs(10);
const DAY: usize = 10_000_000;

struct Three {
    tally: Tally,
    /// Before the folder in which they write goes.
    others: Vec<Gateway>,
    stand: Stand,
    redis: RedisServer,
}

impl Three {
    fn on(redis: RedisServer) -> Self {
        let tally = Tally::start();
        let stand = Stand::new().upstream(tally.address()).section("log: off");
        let stand = stand.shared_store(&format!("url: \"{}\"{}", redis.url(), PATIENCE)).start();
        let others = (0..2).map(|_| stand.another_gateway()).collect();
        let three = Self { tally, stand, others, redis };
        eventually("three gateways", SOON, || {
            three.all().iter().all(|gateway| gateway.metric("gateway_replicas", "") == Some(3.0))
        });
        three
    }

    fn all(&self) -> Vec<&Gateway> {
        std::iter::once(&self.stand.gateway).chain(&self.others).collect()
    }

    /// Names of ours with what they hold, for RESTORE.
    fn dump(&self, wanted: impl Fn(&str) -> bool) -> Vec<(String, Vec<u8>)> {
        let mut connection = self.redis.connect().unwrap();
        let names = connection.command(&["KEYS", "sm:*"]).unwrap();
        let names = names.list().iter().map(Reply::text).filter(|name| wanted(name));
        let dump = |name: String| match connection.command(&["DUMP", &name]).unwrap() {
            Reply::Bulk(bytes) => (name, bytes),
            other => panic!("{name}: {other:?}"),
        };
        names.map(dump).collect()
    }

    /// FLUSHALL, and in the same instant everything back but for the quota: as after a restore from a backup.
    fn forget_quota(&self) {
        let mut connection = self.redis.connect().unwrap();
        let kept = self.dump(|name| !name.contains(":rl:") && !name.contains(":rc:"));
        connection.command(&["MULTI"]).unwrap();
        connection.command(&["FLUSHALL"]).unwrap();
        for (name, bytes) in &kept {
            connection.command(&[&b"RESTORE"[..], name.as_bytes(), b"0", bytes, b"REPLACE"]).unwrap();
        }
        let done = connection.command(&["EXEC"]).unwrap();
        assert!(done.list().iter().all(|reply| !matches!(reply, Reply::Error(_))), "{done:?}");
    }
}

/// What every answer must look like, whatever has happened to the store.
fn sound(shots: &[Shot], allowed: &[u16]) {
    for shot in shots {
        assert!(allowed.contains(&shot.status()), "{shot:?} of {:?}", statuses(shots));
        let answer = shot.answer.as_ref().unwrap();
        if let Some([limit, remaining, _]) = answer.window {
            assert!((0..=limit).contains(&remaining), "{shot:?}");
        }
        if let Some(seconds) = answer.retry_after.filter(|_| answer.status == 429) {
            assert!((1..=60).contains(&seconds), "{shot:?}");
        }
    }
}

fn no_panic(three: &Three) {
    for gateway in three.all() {
        assert_eq!(gateway.metric("gateway_panics_total", ""), Some(0.0), "{}", gateway.process.stderr());
    }
}

#[test]
fn an_emptied_store_knows_no_key_and_answers_no_error() {
    let three = Three::on(RedisServer::start());
    let keys: Vec<_> = (0..3).map(|_| three.stand.key().create()).collect();
    let running = Load::on(&three.all()).keys(&keys).rate(300.0).start();
    wait_for("some load", SOON, || (running.begun() > 200).then_some(()));
    three.redis.cli(&["FLUSHALL"]);
    eventually("the keys are gone everywhere", SOON, || {
        three.all().iter().all(|gateway| gateway.get("/echo/x").bearer(&keys[0]).send().status() == 401)
    });
    let at = running.begun();
    wait_for("some more", SOON, || (running.begun() > at + 200).then_some(()));
    let shots = running.stop();
    sound(&shots, &[200, 401]);
    println!("FLUSHALL under load: {:?}", statuses(&shots));
    // And it can be used again, as if it were new.
    let key = three.stand.key().create();
    for gateway in three.all() {
        gateway.get("/echo/x").bearer(&key).send().expect_status(200);
    }
    no_panic(&three);
}

#[test]
fn scripts_that_the_server_has_forgotten_are_sent_again_and_nobody_notices() {
    let three = Three::on(RedisServer::start());
    let key = three.stand.limited_key(3000, DAY);
    minute_with(sized(10, 1));
    let running = Load::on(&three.all()).keys([&key]).rate(sized(200.0, 500.0)).start();
    for _ in 0..sized(10, 200) {
        three.redis.cli(&["SCRIPT", "FLUSH"]);
        let at = running.begun();
        wait_for("some more", SOON, || (running.begun() > at + sized(30, 60)).then_some(()));
    }
    let shots = running.stop();
    sound(&shots, sized(&[200], &[200, 429]));
    assert!(three.tally.windows(&key.account).values().all(|&admitted| admitted <= 3000));
    println!("SCRIPT FLUSH under load: {:?}", statuses(&shots));
    no_panic(&three);
}

#[test]
fn quota_that_the_store_has_forgotten_is_what_the_gateways_remember() {
    let three = Three::on(RedisServer::start());
    let limit = 600;
    for round in 0..sized(2, 10) {
        let key = three.stand.limited_key(limit, DAY);
        minute_with(sized(15, 15));
        let load = Load::on(&three.all()).keys([&key]).connections(30);
        let running = load.rate(300.0).start();
        let most = 450 + 30 * (round % 3);
        wait_for("a part of the quota", SOON, || (three.tally.of(&key.account) >= most).then_some(()));
        three.forget_quota();
        let at = running.begun();
        wait_for("the rest of it", SOON * 2, || (running.begun() > at + 2 * limit).then_some(()));
        let shots = running.stop();
        let admitted = three.tally.windows(&key.account);
        println!(
            "quota forgotten after {most} of {limit}, round {round}: admitted {admitted:?}; {:?}",
            statuses(&shots)
        );
        sound(&shots, &[200, 429]);
        assert!(count(&shots, |status| status == 429) > 0, "{:?}", statuses(&shots));
        // The most that one gateway remembers is not what the others got since it was last told: a sixth each of what was left.
        assert!(admitted.values().all(|&admitted| admitted <= limit + limit / 6), "{admitted:?}");
    }
    no_panic(&three);
}

#[test]
fn a_server_that_evicts_is_found_at_the_start_and_costs_one_more_window_at_most() {
    let redis = RedisServer::start_with(&["--maxmemory", "16mb", "--maxmemory-policy", "allkeys-lru"]);
    let three = Three::on(redis);
    for gateway in three.all() {
        eventually("the finding", SOON, || gateway.metric("gateway_store_findings", "eviction") == Some(1.0));
    }
    let limit = 300;
    let key = three.stand.limited_key(limit, DAY);
    minute_with(sized(15, 15));
    let running = Load::on(&three.all()).keys([&key]).rate(200.0).start();
    let filler = "x".repeat(1000);
    let mut connection = three.redis.connect().unwrap();
    // Somebody puts keys and accounts back when they are gone, so that only the quota is forgotten.
    let kept = three.dump(|name| name.starts_with("sm:{reg}:"));
    let ledger = format!("sm:rl:{{account:live:{}}}", key.account);
    let end = std::time::Instant::now() + seconds(4, 14);
    let mut forgotten = 0;
    for number in 0.. {
        if std::time::Instant::now() >= end {
            break;
        }
        connection.command(&["SET", &format!("filler:{number}"), &filler]).unwrap();
        for (name, bytes) in &kept {
            if number % 20 == 0 && connection.command(&["EXISTS", name]).unwrap() == Reply::Integer(0) {
                connection.command(&[&b"RESTORE"[..], name.as_bytes(), b"0", bytes, b"REPLACE"]).unwrap();
            }
        }
        if number % 20 == 0 {
            // A server that is full, not one that is flooded.
            std::thread::sleep(Duration::from_millis(2));
            forgotten += u32::from(connection.command(&["EXISTS", &ledger]).unwrap() == Reply::Integer(0));
        }
    }
    let shots = running.stop();
    let evicted = three.redis.info("stats", "evicted_keys").unwrap();
    let admitted = three.tally.windows(&key.account);
    println!(
        "{evicted} names evicted, the ledger was gone {forgotten} times: admitted {admitted:?} of {limit}; {:?}",
        statuses(&shots)
    );
    assert_ne!(evicted, "0", "nothing was evicted");
    // The key itself may be evicted all the same.
    sound(&shots, &[200, 401, 429]);
    assert!(count(&shots, |status| status == 200) > 100, "{:?}", statuses(&shots));
    assert!(admitted.values().all(|&admitted| admitted <= 2 * limit), "{admitted:?}");
    no_panic(&three);
}

/// Where Debian's package has it, on any processor.
fn faketime() -> Option<String> {
    let folders = std::fs::read_dir("/usr/lib").ok()?.flatten();
    let library = folders.map(|folder| folder.path().join("faketime/libfaketime.so.1")).find(|path| path.exists())?;
    Some(library.display().to_string())
}

#[test]
fn a_gateway_whose_clock_jumps_admits_by_the_clock_of_the_store() {
    let Some(library) = faketime() else {
        println!("SKIPPED: no libfaketime below /usr/lib (Debian package faketime)");
        return;
    };
    let (redis, tally) = (RedisServer::start(), Tally::start());
    let stand = Stand::new().upstream(tally.address()).section("log: off");
    let stand = stand.shared_store(&format!("url: \"{}\"{}", redis.url(), PATIENCE)).start();
    let jump = stand.folder().join("jump");
    let set = |offset: &str| std::fs::write(&jump, offset).unwrap();
    set("+0");
    let variables = [
        ("LD_PRELOAD", library.as_str()),
        ("FAKETIME_TIMESTAMP_FILE", jump.to_str().unwrap()),
        ("FAKETIME_NO_CACHE", "1"),
        // The monotonic clock does not jump when a wall clock is set.
        ("DONT_FAKE_MONOTONIC", "1"),
    ];
    let jumping = Gateway::start_in("jumping", stand.folder(), stand.config(), &variables);
    let gateways = [&stand.gateway, &jumping];
    let limit = 300;
    let key = stand.limited_key(limit, DAY);
    let (expired, lasting) = (expiring(&stand, 600), expiring(&stand, 3 * 3600));
    let running = Load::on(&gateways).keys([&key]).rate(sized(60.0, 30.0)).start();
    let of_key = |key: &Key| jumping.get("/echo/x").bearer(key).send().status();
    for offset in ["+2", "-2", "+3600", "-3600", "+0"] {
        set(offset);
        // It does jump: a key that has ten minutes left has expired an hour later, by this gateway's clock, and has not before.
        let expected = if offset == "+3600" { 401 } else { 200 };
        eventually("the clock has jumped", SOON, || of_key(&expired) == expected);
        assert_eq!(of_key(&lasting), 200, "{offset}");
        std::thread::sleep(seconds(1, 25));
    }
    let shots = running.stop();
    let admitted = tally.windows(&key.account);
    println!("clock jumps of 2 s and 1 h: admitted {admitted:?} of {limit}; {:?}", statuses(&shots));
    sound(&shots, &[200, 429]);
    assert!(admitted.values().all(|&admitted| admitted <= limit), "{admitted:?}");
    let now = super::support::seconds_now();
    // Windows are those of the store, whose clock did not jump.
    assert!(admitted.keys().all(|&reset| reset % 60 == 0 && reset <= now + 60), "{admitted:?}");
    assert_eq!(jumping.metric("gateway_panics_total", ""), Some(0.0));
}

fn expiring(stand: &Stand, seconds: u64) -> Key {
    let at = seeme_gateway::policy::key::Timestamp::from_unix_millis(
        i64::try_from((super::support::seconds_now() + seconds) * 1000).unwrap(),
    );
    stand.key().expires_at(&at.to_string()).create()
}
