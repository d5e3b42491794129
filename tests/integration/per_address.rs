//! `limits.per_address`: how often one address may try keys that do not exist, and ask public routes.

use std::time::Duration;

use super::support::{Layout, Response, Stand, eventually};

/// Long enough for anything on loopback.
const SOON: Duration = Duration::from_secs(5);

fn layout() -> Layout {
    Stand::new().route("GET /echo/public", "access: public").route("GET /echo/any", "access: authenticated")
}

/// A key of the right shape that nobody has made: the same for each test, its checksum right.
fn unknown_key(stand: &Stand) -> String {
    let key = stand.key().create();
    let gone = key.secret.clone();
    stand.cli(&["keys", "delete", &key.id]).expect_success();
    gone
}

fn expect_too_many(answer: Response, limit: u64, name: &str) {
    let answer = answer.expect_refusal(429, "rate_limited");
    let wait = answer.number("retry-after");
    assert!((1..=60).contains(&wait), "{wait}");
    assert_eq!(answer.number("x-ratelimit-limit"), limit);
    assert_eq!(answer.number("x-ratelimit-remaining"), 0);
    assert_eq!(answer.expect_header("ratelimit-policy"), format!("\"{name}\";q={limit};w=60"));
    assert_eq!(answer.expect_header("ratelimit"), format!("\"{name}\";r=0;t={wait}"));
    assert_eq!(answer.json()["violated-policies"], serde_json::json!([name]));
}

#[test]
fn an_address_that_tries_too_many_keys_is_refused_before_the_store_is_asked() {
    let stand = layout()
        .listener("trusted_proxies: [127.0.0.0/8]")
        .section("limits: { per_address: { failed_auth: 4/min } }\ncache: { negative_ttl: 1ms }")
        .start();
    let (known, fresh, unknown) = (stand.key().create(), stand.key().create(), unknown_key(&stand));
    let from =
        |address: &str, token: &str| stand.get("/echo/any").token(token).header("X-Forwarded-For", address).send();
    from("192.0.2.1", &known.secret).expect_status(200);
    // Unknown and mistyped ones count, on whatever path.
    from("192.0.2.1", &unknown).expect_refusal(401, "invalid_key");
    from("192.0.2.1", "sm_live_mistyped").expect_refusal(401, "invalid_key");
    from("192.0.2.1", "no-key-at-all").expect_refusal(401, "invalid_key");
    let elsewhere = stand.get("/nowhere").token(&unknown).header("X-Forwarded-For", "192.0.2.1");
    elsewhere.send().expect_refusal(404, "route_not_found");
    let asked = || stand.gateway.metric("gateway_key_lookups_total", "unknown");
    let before = asked();
    for token in [&unknown, "sm_live_mistyped", "no-key-at-all", &fresh.secret] {
        expect_too_many(from("192.0.2.1", token), 4, "failed-auth");
    }
    elsewhere.send().expect_refusal(404, "route_not_found");
    assert_eq!(asked(), before, "nobody asked the store");
    // Who is known here is let in, who shows no key is told so, and other addresses are not concerned.
    from("192.0.2.1", &known.secret).expect_status(200);
    stand.get("/echo/any").header("X-Forwarded-For", "192.0.2.1").send().expect_refusal(401, "missing_key");
    from("192.0.2.2", &fresh.secret).expect_status(200);
    from("192.0.2.2", &unknown).expect_refusal(401, "invalid_key");
    stand.get("/echo/public").token(&unknown).header("X-Forwarded-For", "192.0.2.1").send().expect_status(200);
}

#[test]
fn management_calls_with_keys_that_do_not_exist_count_too() {
    let stand = layout().section("limits: { per_address: { failed_auth: 2/min } }").start();
    let unknown = unknown_key(&stand);
    for _ in 0..2 {
        stand.get("/api/v1/api-keys").token(&unknown).send().expect_refusal(401, "invalid_key");
    }
    expect_too_many(stand.get("/api/v1/api-keys").token(&unknown).send(), 2, "failed-auth");
}

#[test]
fn an_address_asks_public_routes_only_so_often() {
    let stand = layout()
        .listener("trusted_proxies: [127.0.0.0/8]")
        .section("limits: { per_address: { public: 3/min } }")
        .start();
    let key = stand.key().scope("models:read").create();
    let from = |address: &str| stand.get("/echo/public").header("X-Forwarded-For", address).send();
    // Several addresses of one IPv6 subscriber are one.
    for (n, address) in ["2001:db8::1", "2001:db8::2", "2001:db8::3", "192.0.2.1", "192.0.2.1"].into_iter().enumerate()
    {
        from(address).expect_status(200);
        assert!(n < 5);
    }
    expect_too_many(from("2001:db8::4"), 3, "address");
    from("2001:db8:0:1::1").expect_status(200);
    from("192.0.2.1").expect_status(200);
    expect_too_many(from("192.0.2.1"), 3, "address");
    // Where a key is asked for, the plan's own limits are the only ones.
    for _ in 0..5 {
        stand.get("/echo/any").bearer(&key).header("X-Forwarded-For", "192.0.2.1").send().expect_status(200);
    }
    eventually("refusals are counted", SOON, || {
        stand.gateway.metric("gateway_refusals_total", "rate_limited") == Some(2.0)
    });
}

#[test]
fn absent_there_is_no_limit() {
    let stand = layout().start();
    let mut connection = stand.connect();
    for _ in 0..100 {
        stand.get("/echo/public").on(&mut connection).expect_status(200);
        stand.get("/echo/any").token("sm_live_mistyped").on(&mut connection).expect_refusal(401, "invalid_key");
    }
}
