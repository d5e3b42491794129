//! `concurrent_requests`: how many requests of an account may be in flight at once, from admission to the end of the answer.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use super::support::{Connection, Key, Scripted, Stand, Wire, eventually, minute_with};

const PLANS: &str = "plans:
  three: { requests_per_minute: 60, requests_per_day: 1000, concurrent_requests: 3 }
  many: { requests_per_minute: 60, requests_per_day: 1000 }
  enterprise: custom
default_plan: many";

/// Ends the answers that wait.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<usize>, Condvar)>);

impl Gate {
    fn let_out(&self, count: usize) {
        *self.0.0.lock().unwrap() += count;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        let guard = self.0.0.lock().unwrap();
        let wait = self.0.1.wait_timeout_while(guard, Duration::from_secs(20), |open| *open == 0);
        *wait.unwrap().0 -= 1;
    }
}

/// A path with `hold` gets a head and one event, and no end before the gate lets it out; any other a short answer. One with
/// `before` gets nothing until then.
fn backend(gate: &Gate) -> Scripted {
    let gate = gate.clone();
    Scripted::start(move |wire: &mut Wire| {
        while let Some(request) = wire.request() {
            let target = request.head.split(' ').nth(1).unwrap();
            let held = target.contains("hold");
            if target.contains("before") {
                gate.pass();
            }
            if held {
                wire.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
                wire.send("9\r\ndata: 1\n\n\r\n");
                gate.pass();
                wire.send("0\r\n\r\n");
            } else {
                wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            }
        }
    })
}

fn stand(gate: &Gate) -> (Scripted, Stand) {
    let backend = backend(gate);
    let stand = Stand::new().section(PLANS).upstream(backend.address).start();
    (backend, stand)
}

/// A request whose answer has begun and does not end.
fn open(stand: &Stand, key: &Key) -> Connection {
    let mut connection = stand.get("/echo/hold").bearer(key).start();
    assert_eq!(connection.head().status, 200);
    assert_eq!(connection.chunk().unwrap(), b"data: 1\n\n");
    connection
}

#[test]
fn the_fourth_of_three_at_once_is_refused_and_costs_nothing() {
    let gate = Gate::default();
    let (backend, stand) = stand(&gate);
    let key = stand.key().plan("three").create();
    minute_with(20);
    let mut held: Vec<Connection> = (0..3).map(|_| open(&stand, &key)).collect();
    for _ in 0..5 {
        let refusal = stand.get("/echo/x").bearer(&key).send().expect_refusal(429, "too_many_concurrent");
        assert_eq!(refusal.head.reason, "Limit of 3 concurrent requests reached");
        assert_eq!(refusal.number("retry-after"), 1);
        assert_eq!((refusal.number("x-ratelimit-limit"), refusal.number("x-ratelimit-remaining")), (60, 57));
        assert!(refusal.expect_header("ratelimit").contains("\"minute\";r=57;"), "{refusal:?}");
    }
    assert_eq!(backend.requests().len(), 3, "a refused request was forwarded");
    // The end of one answer makes room for one.
    gate.let_out(3);
    for connection in &mut held {
        assert_eq!(connection.chunk().unwrap(), b"");
    }
    let answer = stand.get("/echo/x").bearer(&key).send().expect_status(200);
    assert_eq!(answer.number("x-ratelimit-remaining"), 56, "refused requests consumed quota");
    assert_eq!(stand.gateway.metric("gateway_refusals_total", "code=\"too_many_concurrent\""), Some(5.0));
    let usage = || stand.usage(&key)["by_status"].clone();
    eventually("all are counted", Duration::from_secs(5), || usage()["429"] == 5 && usage()["2xx"] == 4);
}

#[test]
fn a_client_that_goes_away_leaves_its_place_to_others() {
    let gate = Gate::default();
    let (backend, stand) = stand(&gate);
    let key = stand.key().plan("three").create();
    minute_with(15);
    let refused = || stand.get("/echo/x").bearer(&key).send().expect_refusal(429, "too_many_concurrent");
    let free = || {
        eventually("the places are free", Duration::from_secs(5), || {
            let answer = stand.get("/echo/x").bearer(&key).send();
            answer.status() == 200 || (answer.code() != "too_many_concurrent" && panic!("{}", answer.text()))
        });
    };
    for abort in [true, false] {
        let held: Vec<Connection> = (0..3).map(|_| open(&stand, &key)).collect();
        refused();
        held.into_iter().for_each(|connection| if abort { connection.abort() } else { drop(connection) });
        free();
        // Before the head of the answer too.
        let before = backend.requests().len();
        let waiting: Vec<Connection> = (0..3).map(|_| stand.get("/echo/hold/before").bearer(&key).start()).collect();
        eventually("all are with the backend", Duration::from_secs(5), || backend.requests().len() == before + 3);
        refused();
        drop(waiting);
        free();
    }
    gate.let_out(1_000);
}

#[test]
fn places_belong_to_the_account_whatever_its_windows_are_charged_to() {
    for subject in ["account", "key", "organization"] {
        let gate = Gate::default();
        let backend = backend(&gate);
        let quota = format!("quota: {{ subject: {subject} }}");
        let stand = Stand::new().section(PLANS).section(&quota).upstream(backend.address).start();
        let first = stand.key().plan("three").organization("o-1").create();
        let second = stand.key().account(&first.account).organization("o-2").create();
        let test = stand.key().account(&first.account).environment("test").create();
        let other = stand.key().plan("three").create();
        let _held = (open(&stand, &first), open(&stand, &second), open(&stand, &first));
        for key in [&first, &second] {
            stand.get("/echo/x").bearer(key).send().expect_refusal(429, "too_many_concurrent");
        }
        // Test keys have places of their own; other accounts have theirs.
        for key in [&test, &other] {
            stand.get("/echo/x").bearer(key).send().expect_status(200);
        }
        // Management calls and public routes are not charged to the plan, and take no place.
        stand.get("/api/v1/api-keys/current").bearer(&first).send().expect_status(200);
        stand.get("/public/x").bearer(&first).send().expect_status(200);
        gate.let_out(3);
    }
}

#[test]
fn a_refusal_for_another_reason_gives_the_place_back() {
    let gate = Gate::default();
    let (_backend, stand) = stand(&gate);
    let account = stand.new_account();
    let limits = ["--requests-per-minute", "5", "--requests-per-day", "1000", "--concurrent-requests", "1"];
    stand.cli(&[&["accounts", "set", &account, "--plan", "enterprise"], &limits[..]].concat()).expect_success();
    let key = stand.key().account(&account).create();
    minute_with(20);
    let mut connection = stand.connect();
    let request = stand.get("/echo/x").bearer(&key);
    for _ in 0..5 {
        request.on(&mut connection).expect_status(200);
    }
    for _ in 0..3 {
        request.on(&mut connection).expect_refusal(429, "rate_limited");
    }
}

#[test]
fn an_account_has_a_limit_of_its_own_which_is_shown_and_obeyed_at_once() {
    let gate = Gate::default();
    let (_backend, stand) = stand(&gate);
    let account = stand.new_account();
    let set = |more: &[&str]| {
        let limits = ["--requests-per-minute", "1000", "--requests-per-day", "1000", "--json"];
        let all = [&["accounts", "set", &account, "--plan", "enterprise"], &limits[..], more].concat();
        stand.cli(&all).expect_success().json()["concurrent_requests"].clone()
    };
    assert_eq!(set(&["--concurrent-requests", "1"]), 1);
    let key = stand.key().account(&account).create();
    let current = || {
        let answer = stand.get("/api/v1/api-keys/current").bearer(&key).send().expect_status(200).json();
        answer["limits"]["concurrent_requests"].clone()
    };
    assert_eq!(current(), 1);
    let held = open(&stand, &key);
    stand.get("/echo/x").bearer(&key).send().expect_refusal(429, "too_many_concurrent");
    // Raised while one is in flight: that one keeps its place. Then lowered below what is taken.
    assert_eq!(set(&["--concurrent-requests", "2"]), 2);
    let status = || stand.get("/echo/x").bearer(&key).send().status();
    eventually("the new limit is in force", Duration::from_secs(2), || status() == 200);
    let second = open(&stand, &key);
    stand.get("/echo/x").bearer(&key).send().expect_refusal(429, "too_many_concurrent");
    assert_eq!(set(&["--concurrent-requests", "1"]), 1);
    assert_eq!(current(), 1);
    stand.get("/echo/x").bearer(&key).send().expect_refusal(429, "too_many_concurrent");
    // And none at all.
    assert!(set(&[]).is_null());
    assert!(current().is_null());
    eventually("there is no limit", Duration::from_secs(2), || status() == 200);
    drop((held, second));
    gate.let_out(2);
}

#[test]
fn many_clients_at_once_never_have_more_than_the_limit_in_flight() {
    let gate = Gate::default();
    let (backend, stand) = stand(&gate);
    let key = stand.key().plan("three").create();
    let refused = AtomicUsize::new(0);
    let ask = || {
        // On connections of their own, so on both workers.
        let answer = stand.get("/echo/hold/before").bearer(&key).send();
        if answer.status() == 200 {
            return 1;
        }
        answer.expect_refusal(429, "too_many_concurrent");
        refused.fetch_add(1, Ordering::SeqCst);
        0
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..40).map(|_| scope.spawn(ask)).collect();
        eventually("37 are refused", Duration::from_secs(10), || refused.load(Ordering::SeqCst) == 37);
        eventually("the others are with the backend", Duration::from_secs(10), || backend.requests().len() >= 3);
        gate.let_out(6);
        assert_eq!(clients.into_iter().map(|client| client.join().unwrap()).sum::<usize>(), 3);
    });
    assert_eq!(backend.requests().len(), 3);
}
