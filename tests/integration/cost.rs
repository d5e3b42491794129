//! `cost` of a route: a request takes so many tokens of both windows at once, or none.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::support::{Connection, Gateway, Key, Layout, Stand, minute_with};

fn layout() -> Layout {
    Stand::new()
        .route("GET /echo/{*rest}", "scope: models:read")
        .route("GET /echo/five", "scope: models:read, cost: 5")
        .route("GET /echo/seven", "scope: models:read, cost: 7")
        .route("GET /echo/hundred", "scope: models:read, cost: 100")
}

/// Sends so many requests to each target over eight connections at once; returns the tokens that were admitted.
fn spend(gateways: &[&Gateway], key: &Key, each: usize, targets: &[(&str, usize)]) -> usize {
    let (next, spent) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for index in 0..8 {
            let (next, spent, gateway) = (&next, &spent, gateways[index % gateways.len()]);
            scope.spawn(move || {
                let mut connection: Connection = gateway.connect();
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= each * targets.len() {
                        return;
                    }
                    let (target, cost) = targets[at % targets.len()];
                    let response = gateway.get(&format!("/echo/{target}?bytes=2")).bearer(key).on(&mut connection);
                    match response.status() {
                        200 => spent.fetch_add(cost, Ordering::Relaxed),
                        429 => 0,
                        other => panic!("{other}: {}", response.text()),
                    };
                }
            });
        }
    });
    spent.into_inner()
}

#[test]
fn a_request_takes_its_cost_of_both_windows_and_says_what_is_left() {
    let stand = layout().start();
    let key = stand.limited_key(60, 100);
    minute_with(20);
    let ask = |target: &str| stand.get(&format!("/echo/{target}")).bearer(&key).send();
    for (target, minute, day) in [("five", 55, 95), ("x", 54, 94), ("seven", 47, 87), ("five", 42, 82)] {
        let answer = ask(target).expect_status(200);
        assert_eq!(answer.number("x-ratelimit-remaining"), minute, "{target}");
        let fields = answer.expect_header("ratelimit");
        assert!(fields.contains(&format!("\"minute\";r={minute};")), "{fields}");
        assert!(fields.contains(&format!("\"day\";r={day};")), "{fields}");
        // The backend is told the same.
        assert_eq!(answer.echoed_once("x-ratelimit-remaining"), minute.to_string());
    }
}

#[test]
fn whole_costs_are_admitted_and_what_is_left_is_for_cheaper_requests() {
    for gateways in [1, 3] {
        let stand = layout().start();
        let others: Vec<Gateway> = (1..gateways).map(|_| stand.another_gateway()).collect();
        let all: Vec<&Gateway> = std::iter::once(&stand.gateway).chain(&others).collect();
        let key = stand.limited_key(60, 1000);
        minute_with(25);
        // 8 x 7 = 56: a ninth does not fit, and takes nothing of what is left.
        assert_eq!(spend(&all, &key, 100, &[("seven", 7)]), 56, "{gateways} gateways");
        stand.get("/echo/five").bearer(&key).send().expect_refusal(429, "rate_limited");
        assert_eq!(spend(&all, &key, 50, &[("x", 1)]), 4, "{gateways} gateways");
        // All costs at once: whatever the order, no more than the limit, and the cheap ones leave nothing.
        let key = stand.limited_key(60, 1000);
        minute_with(25);
        let spent = spend(&all, &key, 100, &[("seven", 7), ("x", 1), ("five", 5)]);
        assert_eq!(spent, 60, "{gateways} gateways");
    }
}

#[test]
fn the_day_is_charged_the_same_and_refuses_what_does_not_fit_whole() {
    let stand = layout().start();
    let key = stand.limited_key(1000, 12);
    minute_with(20);
    assert_eq!(spend(&[&stand.gateway], &key, 10, &[("five", 5)]), 10);
    let refusal = stand.get("/echo/five").bearer(&key).send().expect_refusal(429, "rate_limited");
    assert_eq!(refusal.json()["violated-policies"], serde_json::json!(["day"]));
    assert_eq!(spend(&[&stand.gateway], &key, 10, &[("x", 1)]), 2);
}

#[test]
fn a_cost_above_the_plan_is_never_admitted_and_the_check_says_so() {
    let stand = layout().start();
    let key = stand.key().plan("free").create();
    minute_with(15);
    for _ in 0..3 {
        let refusal = stand.get("/echo/hundred").bearer(&key).send().expect_refusal(429, "rate_limited");
        assert_eq!(refusal.json()["violated-policies"], serde_json::json!(["minute"]));
    }
    assert_eq!(spend(&[&stand.gateway], &key, 80, &[("x", 1)]), 60, "the refused ones took something");
    let check = stand.cli(&["check"]).expect_success();
    let told = format!("{}{}", check.stdout, check.stderr);
    assert!(
        told.contains("`GET /echo/hundred` in line") && told.contains("more than the 60 of the plan `free`"),
        "{told}"
    );
}
