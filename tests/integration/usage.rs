//! Contract 7: what the gateway counted is what the client saw, to the last request.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::support::{Connection, Gateway, Key, Process, Stand, eventually};

/// The client's own count: by endpoint, then by class.
#[derive(Debug, Default, Clone)]
struct Count(BTreeMap<String, BTreeMap<&'static str, u64>>);

impl Count {
    fn add(&mut self, endpoint: &str, class: &'static str) {
        *self.0.entry(endpoint.to_owned()).or_default().entry(class).or_default() += 1;
    }

    fn all(&self, classes: &[&str]) -> u64 {
        self.0.values().flatten().filter(|(class, _)| classes.contains(class)).map(|(_, count)| count).sum()
    }

    fn check(&self, usage: &Value) {
        let all = ["2xx", "3xx", "4xx", "5xx", "429", "client_gone"];
        let successful = self.all(&["2xx", "3xx"]);
        let total = self.all(&all);
        assert_eq!(usage["total_requests"], total, "{usage}\n{self:?}");
        assert_eq!(usage["successful"], successful, "{usage}\n{self:?}");
        assert_eq!(usage["failed"], total - successful, "{usage}\n{self:?}");
        for class in all {
            assert_eq!(usage["by_status"][class], self.all(&[class]), "{class}: {usage}\n{self:?}");
        }
        for (endpoint, classes) in &self.0 {
            let total: u64 = classes.values().sum();
            let successful: u64 =
                classes.iter().filter(|(class, _)| ["2xx", "3xx"].contains(class)).map(|(_, n)| n).sum();
            let expected = json!({"total": total, "successful": successful, "failed": total - successful});
            assert_eq!(usage["by_endpoint"][endpoint], expected, "{endpoint}: {usage}");
        }
        assert_eq!(usage["by_endpoint"].as_object().unwrap().len(), self.0.len(), "{usage}");
        // A run over midnight counts on two days.
        let days = usage["by_day"].as_array().unwrap();
        let of_days = |member: &str| days.iter().map(|day| day[member].as_u64().unwrap()).sum::<u64>();
        assert_eq!(
            (of_days("total"), of_days("successful"), of_days("failed")),
            (total, successful, total - successful)
        );
        assert!(days.len() <= 2 && days.iter().all(|day| day["date"].as_str().unwrap().len() == 10), "{usage}");
        assert!(usage["last_used_at"].is_string(), "{usage}");
    }
}

fn stand() -> Stand {
    Stand::new()
        .route("* /echo/{*rest}", "scope: models:read")
        .route("GET /api/v1/models/{id}", "scope: models:read, resources: { model: path.id }")
        .route("POST /echo/secret", "scope: models:write")
        .section("usage: { flush: 1s }")
        .start()
}

/// Sends `rounds` times every kind of request over the gateways in turn, counting what comes back.
fn mixed(gateways: &[&Gateway], key: &Key, rounds: usize, count: &mut Count) {
    let tail = "/echo/{*rest}";
    let mut connections: Vec<_> = gateways.iter().map(|gateway| gateway.connect()).collect();
    for round in 0..rounds {
        let index = round % gateways.len();
        let (gateway, connection) = (gateways[index], &mut connections[index]);
        for (method, path, endpoint, class, status) in [
            ("GET", "/echo/x", tail, "2xx", 200),
            ("HEAD", "/echo/x", tail, "2xx", 200),
            ("DELETE", "/echo/x", tail, "2xx", 200),
            ("GET", "/echo/moved?status=302", tail, "3xx", 302),
            ("GET", "/echo/gone?status=404", tail, "4xx", 404),
            ("GET", "/echo/broken?status=500", tail, "5xx", 500),
            ("POST", "/echo/secret", "/echo/secret", "4xx", 403),
        ] {
            let response = gateway.request(method, path).bearer(key).on(connection);
            assert_eq!(response.status(), status, "{method} {path}: {}", response.text());
            count.add(&format!("{method} {endpoint}"), class);
        }
    }
}

/// A client that leaves while the backend still sends.
fn leave(gateway: &Gateway, key: &Key, times: usize, count: &mut Count) {
    for _ in 0..times {
        let request = gateway.get("/echo/slow?bytes=100000000&chunk_delay_ms=20&chunk_bytes=1000").bearer(key);
        let mut connection = request.start();
        assert_eq!(connection.head().status, 200);
        connection.abort();
        count.add("GET /echo/{*rest}", "client_gone");
    }
}

fn flown(gateway: &Gateway) {
    eventually("no request in flight", Duration::from_secs(10), || {
        gateway.metric("gateway_requests_in_flight", "") == Some(0.0)
    });
}

#[test]
fn five_hundred_mixed_requests_are_counted_exactly_as_the_client_saw_them() {
    let stand = stand();
    let key = stand.key().scope("models:read").create();
    let mut count = Count::default();
    mixed(&[&stand.gateway], &key, 70, &mut count);
    leave(&stand.gateway, &key, 10, &mut count);
    // What a known key is refused for before its key is looked at counts too, where a route was found.
    flown(&stand.gateway);
    count.check(&stand.usage(&key));
}

#[test]
fn refusals_for_the_quota_are_counted_apart() {
    let stand = stand();
    let account = stand.new_account();
    stand
        .cli(&[
            "accounts",
            "set",
            &account,
            "--plan",
            "enterprise",
            "--requests-per-minute",
            "1000",
            "--requests-per-day",
            "20",
        ])
        .expect_success();
    let key = stand.key().account(&account).scope("models:read").create();
    let mut count = Count::default();
    let mut connection = stand.connect();
    for _ in 0..50 {
        let status = stand.get("/echo/x").bearer(&key).on(&mut connection).status();
        count.add("GET /echo/{*rest}", if status == 429 { "429" } else { "2xx" });
    }
    // A run over midnight gets a second day's quota; the count is exact all the same.
    assert!(count.all(&["429"]) >= 10, "{count:?}");
    flown(&stand.gateway);
    count.check(&stand.usage(&key));
}

#[test]
fn two_processes_count_together() {
    let stand = stand();
    let second = stand.another_gateway();
    let key = stand.key().scope("models:read").create();
    let mut count = Count::default();
    mixed(&[&stand.gateway, &second], &key, 30, &mut count);
    leave(&second, &key, 3, &mut count);
    flown(&stand.gateway);
    flown(&second);
    // The process that is asked writes its own counters at once, the other at its next flush: a second at most.
    let expected = count.all(&["2xx", "3xx", "4xx", "5xx", "client_gone"]);
    eventually("the other process flushes", Duration::from_secs(4), || stand.usage(&key)["total_requests"] == expected);
    count.check(&stand.usage(&key));
}

#[test]
fn nothing_is_lost_when_a_gateway_is_told_to_stop() {
    let mut stand = stand();
    let key = stand.key().scope("models:read").create();
    let mut count = Count::default();
    mixed(&[&stand.gateway], &key, 10, &mut count);
    let second = stand.another_gateway();
    let first = std::mem::replace(&mut stand.gateway, second);
    mixed(&[&first], &key, 1, &mut count);
    let ended = first.process.stop();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    count.check(&stand.usage(&key));
    // And the command line tells the same.
    let told = stand.cli(&["keys", "usage", &key.id, "--json"]).expect_success().json();
    count.check(&told);
}

#[test]
fn a_gateway_that_is_killed_loses_at_most_one_flush_interval() {
    let mut stand = stand();
    let key = stand.key().scope("models:read").create();
    let mut count = Count::default();
    mixed(&[&stand.gateway], &key, 10, &mut count);
    flown(&stand.gateway);
    eventually("the flush", Duration::from_secs(4), || {
        stand.cli(&["keys", "usage", &key.id, "--json"]).expect_success().json()["total_requests"] == 70
    });
    let second = stand.another_gateway();
    drop(std::mem::replace(&mut stand.gateway, second));
    count.check(&stand.usage(&key));
}

/// A stand whose gateways flush only when they are told to stop, or asked.
fn journaled() -> Stand {
    Stand::new().section("usage: { flush: 1h, journal: data/usage.journal }").start()
}

/// What one client saw.
#[derive(Debug, Default)]
struct Seen {
    begun: u64,
    answered: Vec<Instant>,
}

/// Sends as fast as it can until the gateway is gone.
fn load(gateway: SocketAddr, key: &Key) -> Seen {
    let (mut seen, mut connection) = (Seen::default(), Connection::open(gateway));
    let request = format!("GET /echo/x HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n", key.secret);
    loop {
        seen.begun += 1;
        let answer = connection.try_send(&request).and_then(|()| connection.try_response("GET"));
        match answer {
            Ok(response) if response.complete => assert_eq!(response.status(), 200),
            _ => return seen,
        }
        seen.answered.push(Instant::now());
    }
}

/// What ended this long before a kill is in the journal: 100 ms are promised, as much again is for a busy machine.
const WRITTEN_DOWN: Duration = Duration::from_millis(200);

#[test]
fn a_kill_under_load_loses_a_moment_with_a_journal_and_nothing_counts_twice() {
    let mut stand = journaled();
    let key = stand.key().scope("models:read").create();
    let mut counted = 0;
    for round in 0..3 {
        let gateway = stand.gateway.public;
        let (seen, killed) = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..4).map(|_| scope.spawn(|| load(gateway, &key))).collect();
            // Any moment of the rhythm in which the journal is written.
            std::thread::sleep(Duration::from_millis(700 + 37 * round));
            let killed = Instant::now();
            stand.gateway.process.signal(Signal::KILL);
            (clients.into_iter().map(|client| client.join().unwrap()).collect::<Vec<_>>(), killed)
        });
        let before = |at: &&Instant| **at + WRITTEN_DOWN <= killed;
        let sum = |of: &dyn Fn(&Seen) -> u64| seen.iter().map(of).sum::<u64>();
        let (begun, answered) = (sum(&|seen| seen.begun), sum(&|seen| seen.answered.len() as u64));
        let safe = sum(&|seen| seen.answered.iter().filter(before).count() as u64);
        stand.gateway.process.wait();
        // The next one finds the journal, and sends what is in it when it is asked.
        stand.gateway = stand.another_gateway();
        let usage = stand.usage(&key)["total_requests"].as_u64().unwrap();
        let added = usage - counted;
        println!(
            "{begun} begun, {answered} answered, {safe} of them {WRITTEN_DOWN:?} before the kill; {added} counted"
        );
        assert!(answered > 100, "that was no load");
        assert!(added >= safe, "{added} of {safe} counted: more than a moment is lost");
        assert!(added <= begun, "{added} of {begun} counted: something counts twice");
        counted = usage;
    }
    // And once more, now that the store has everything.
    stand.gateway.process.signal(Signal::KILL);
    stand.gateway.process.wait();
    stand.gateway = stand.another_gateway();
    assert_eq!(stand.usage(&key)["total_requests"], counted);
}

#[test]
fn what_the_store_did_not_take_at_the_end_is_sent_at_the_next_start() {
    let mut stand = journaled();
    let key = stand.key().scope("models:read").create();
    let mut connection = stand.connect();
    for _ in 0..25 {
        stand.get("/echo/x").bearer(&key).on(&mut connection).expect_status(200);
    }
    // Somebody holds the store's lock for longer than a goodbye takes.
    let holder = rusqlite::Connection::open(stand.store()).unwrap();
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    stand.gateway.process.terminate();
    let goodbye = "the next start sends it from the journal";
    stand.gateway.process.await_output(goodbye, |process| process.stderr().contains(goodbye).then_some(()));
    holder.execute_batch("COMMIT").unwrap();
    let ended = stand.gateway.process.wait();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    stand.gateway = stand.another_gateway();
    assert_eq!(stand.usage(&key)["total_requests"], 25);
}

#[test]
fn two_gateways_do_not_share_a_journal() {
    let stand = journaled();
    let mut second = Process::start("second", stand.folder(), &["run", "-c", stand.config().to_str().unwrap()]);
    let ended = second.wait();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("in use by another gateway (usage.journal)"), "{}", ended.stderr);
    assert!(stand.folder().join("data/usage.journal").exists());
}

#[test]
fn refusals_before_the_key_was_looked_at_count_for_the_key_they_carried() {
    let stand = stand();
    let key = stand.key().scope("models:read").create();
    stand.get("/nowhere").bearer(&key).send().expect_status(404);
    stand.request("TRACE", "/echo/x").bearer(&key).send().expect_status(405);
    stand.cli(&["keys", "disable", &key.id]).expect_success();
    eventually("disabled", Duration::from_secs(2), || stand.get("/echo/x").bearer(&key).send().status() == 401);
    let usage = stand.usage(&key);
    assert_eq!(usage["failed"], usage["by_status"]["4xx"], "{usage}");
    assert!(usage["failed"].as_u64().unwrap() >= 3, "{usage}");
}
