//! Quotas are exact: what a plan admits in a minute is admitted, not one more, whoever asks and however many at once.

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::support::{Connection, Gateway, Key, Request, Stand, eventually, minute_with};

/// Sends `requests` over `connections` at once, spread over the gateways; returns how many were admitted and how many
/// refused with 429. Anything else fails.
fn storm(gateways: &[&Gateway], key: &Key, connections: usize, requests: usize) -> (usize, usize) {
    let (next, admitted, refused) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let together = Barrier::new(connections);
    thread::scope(|scope| {
        for index in 0..connections {
            let (next, admitted, refused, together) = (&next, &admitted, &refused, &together);
            let gateway = gateways[index % gateways.len()];
            scope.spawn(move || {
                let request: Request = gateway.get("/echo/x?bytes=2").bearer(key);
                let mut connection: Connection = gateway.connect();
                together.wait();
                while next.fetch_add(1, Ordering::Relaxed) < requests {
                    let response = request.on(&mut connection);
                    match response.status() {
                        200 => admitted.fetch_add(1, Ordering::Relaxed),
                        429 => refused.fetch_add(1, Ordering::Relaxed),
                        other => panic!("{other}: {}", response.text()),
                    };
                }
            });
        }
    });
    (admitted.into_inner(), refused.into_inner())
}

#[test]
fn a_thousand_requests_over_64_connections_on_a_free_account_admit_exactly_60() {
    let stand = Stand::new().start();
    for round in 0..2 {
        let key = stand.key().plan("free").create();
        minute_with(20);
        assert_eq!(storm(&[&stand.gateway], &key, 64, 1000), (60, 940), "round {round}");
    }
}

#[test]
fn three_processes_on_one_store_admit_exactly_60_together_round_after_round() {
    let stand = Stand::new().start();
    let (second, third) = (stand.another_gateway(), stand.another_gateway());
    let gateways = [&stand.gateway, &second, &third];
    for round in 0..4 {
        let key = stand.key().plan("free").create();
        minute_with(20);
        assert_eq!(storm(&gateways, &key, 64, 1000), (60, 940), "round {round}");
    }
}

#[test]
fn several_keys_of_one_account_share_its_quota_and_test_keys_have_counters_of_their_own() {
    let stand = Stand::new().start();
    let live = stand.key().plan("free").create();
    let other = stand.key().account(&live.account).create();
    let test = stand.key().account(&live.account).environment("test").create();
    minute_with(20);
    assert_eq!(storm(&[&stand.gateway], &live, 4, 40), (40, 0));
    assert_eq!(storm(&[&stand.gateway], &other, 4, 40), (20, 20));
    assert_eq!(storm(&[&stand.gateway], &test, 4, 70), (60, 10));
}

#[test]
fn remaining_counts_down_to_zero_and_then_comes_429_until_the_reset() {
    let stand = Stand::new().start();
    let key = stand.key().plan("free").create();
    let minute = minute_with(20);
    let mut connection = stand.connect();
    let request = stand.get("/echo/x").bearer(&key);
    for left in (0..60).rev() {
        let response = request.on(&mut connection).expect_status(200);
        assert_eq!(response.number("x-ratelimit-remaining"), left);
        assert_eq!(response.number("x-ratelimit-reset"), (minute + 1) * 60);
    }
    for _ in 0..3 {
        let response = request.on(&mut connection).expect_refusal(429, "rate_limited");
        assert_eq!(response.number("x-ratelimit-remaining"), 0);
        assert_eq!(response.number("x-ratelimit-limit"), 60);
        assert_eq!(response.number("x-ratelimit-reset"), (minute + 1) * 60);
        let wait = response.number("retry-after");
        assert!((1..=60).contains(&wait), "{wait}");
        assert!(response.expect_header("ratelimit").contains("\"minute\";r=0;"), "{response:?}");
        assert_eq!(response.json()["violated-policies"], serde_json::json!(["minute"]));
    }
}

#[test]
fn the_day_is_charged_with_the_minute_and_refuses_when_it_is_used_up() {
    let stand = Stand::new().start();
    let account = stand.new_account();
    set_limits(&stand, &account, 100, 7);
    let key = stand.key().account(&account).create();
    minute_with(20);
    assert_eq!(storm(&[&stand.gateway], &key, 8, 40), (7, 33));
    let response = stand.get("/echo/x").bearer(&key).send().expect_refusal(429, "rate_limited");
    assert_eq!(response.json()["violated-policies"], serde_json::json!(["day"]));
    assert_eq!(response.head.reason, "Rate limit of 7 requests per day reached");
    assert_eq!((response.number("x-ratelimit-limit"), response.number("x-ratelimit-remaining")), (7, 0));
    assert!(response.number("retry-after") <= 86_400);
}

fn set_limits(stand: &Stand, account: &str, minute: u32, day: u32) {
    let (minute, day) = (minute.to_string(), day.to_string());
    let limits = ["--requests-per-minute", &minute, "--requests-per-day", &day];
    stand.cli(&[&["accounts", "set", account, "--plan", "enterprise"], &limits[..]].concat()).expect_success();
}

#[test]
fn a_plan_that_is_raised_inside_a_window_keeps_the_count() {
    let stand = Stand::new().start();
    let second = stand.another_gateway();
    let key = stand.key().plan("free").create();
    minute_with(25);
    assert_eq!(storm(&[&stand.gateway, &second], &key, 8, 100), (60, 40));
    set_limits(&stand, &key.account, 100, 1000);
    eventually("the new plan is in force", Duration::from_secs(2), || {
        // A refused request is free, so asking does not disturb what is counted; an admitted one is counted below.
        let state = stand.get("/api/v1/api-keys/current").bearer(&key).send().json();
        let there = second.get("/api/v1/api-keys/current").bearer(&key).send().json();
        state["limits"]["minute"]["limit"] == 100 && there["limits"]["minute"]["limit"] == 100
    });
    assert_eq!(storm(&[&stand.gateway, &second], &key, 8, 100), (40, 60));
    // And lowered below what was used: nothing more.
    set_limits(&stand, &key.account, 50, 1000);
    assert_eq!(storm(&[&stand.gateway, &second], &key, 8, 20), (0, 20));
}

#[test]
fn a_costly_route_takes_its_cost_and_is_refused_when_less_is_left() {
    let stand = Stand::new()
        .route("GET /echo/{*rest}", "scope: models:read")
        .route("GET /echo/costly", "scope: models:read, cost: 25")
        .start();
    let key = stand.key().plan("free").create();
    minute_with(20);
    let costly = || stand.get("/echo/costly").bearer(&key).send();
    assert_eq!(costly().expect_status(200).number("x-ratelimit-remaining"), 35);
    assert_eq!(costly().expect_status(200).number("x-ratelimit-remaining"), 10);
    costly().expect_refusal(429, "rate_limited");
    // What is left is still there for cheaper requests.
    assert_eq!(storm(&[&stand.gateway], &key, 4, 20), (10, 10));
}

#[test]
fn a_suspended_account_is_refused_before_its_quota_is_looked_at() {
    let stand = Stand::new().start();
    let key = stand.key().plan("free").create();
    let request = stand.get("/echo/x").bearer(&key);
    stand.cli(&["accounts", "suspend", &key.account]).expect_success();
    eventually("suspended", Duration::from_secs(2), || request.send().status() == 401);
    assert_eq!(storm_of_refusals(&stand, &key, 100), 100);
    stand.cli(&["accounts", "resume", &key.account]).expect_success();
    eventually("resumed", Duration::from_secs(2), || request.send().status() == 200);
    let left = request.send().expect_status(200).number("x-ratelimit-remaining");
    assert!(left >= 50, "refused requests consumed quota: {left} left");
}

fn storm_of_refusals(stand: &Stand, key: &Key, requests: usize) -> usize {
    let mut connection = stand.connect();
    let request = stand.get("/echo/x").bearer(key);
    (0..requests).filter(|_| request.on(&mut connection).expect_status(401).code() == "account_suspended").count()
}

#[test]
fn public_routes_have_no_quota() {
    let stand = Stand::new().route("GET /echo/{*rest}", "access: public").start();
    let key = stand.key().plan("free").create();
    let mut connection = stand.connect();
    for _ in 0..100 {
        let response = stand.get("/echo/x").bearer(&key).on(&mut connection).expect_status(200);
        assert_eq!(response.header("x-ratelimit-limit"), None);
    }
}

/// Holds the write lock of the store, as another process that writes would.
fn lock(stand: &Stand) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open(stand.store()).unwrap();
    connection.busy_timeout(Duration::from_secs(5)).unwrap();
    connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    connection
}

#[test]
fn a_store_that_is_busy_for_a_moment_delays_a_request_and_refuses_none() {
    let stand = Stand::new().start();
    let key = stand.key().plan("free").create();
    minute_with(10);
    let held = lock(&stand);
    let request = stand.get("/echo/x").bearer(&key);
    let mut connection = request.start();
    eventually("the request waits", Duration::from_secs(5), || {
        stand.gateway.metric("gateway_requests_in_flight", "") == Some(1.0)
    });
    drop(held);
    connection.response("GET").expect_status(200);
}

#[test]
fn a_store_that_stays_busy_is_no_outage_nobody_is_admitted_without_a_grant() {
    let stand = Stand::new().start();
    let key = stand.key().plan("free").create();
    let busy = stand.key().create();
    minute_with(20);
    // So many at once that the gateway holds tokens for more.
    storm(&[&stand.gateway], &busy, 8, 400);
    let held = lock(&stand);
    let start = std::time::Instant::now();
    let refusal = stand.get("/echo/x").bearer(&key).send().expect_refusal(503, "store_unavailable");
    let waited = start.elapsed();
    assert!((Duration::from_millis(200)..Duration::from_millis(1500)).contains(&waited), "{waited:?}");
    assert!(refusal.number("retry-after") >= 1);
    assert_eq!(refusal.header("www-authenticate"), None, "never 401 or 403");
    // A key whose tokens were granted before is served from them.
    stand.get("/echo/x").bearer(&busy).send().expect_status(200);
    stand.gateway.admin("/readyz").expect_status(200);
    drop(held);
    eventually("the store answers again", Duration::from_secs(2), || {
        stand.get("/echo/x").bearer(&key).send().status() == 200
    });
}
