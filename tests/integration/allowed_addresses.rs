//! `allowed_addresses`: keys that work from some addresses only. Every client here comes from 127.0.0.1.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};

use super::support::{Finished, Key, Request, Response, Stand, eventually, minute_with};

const API: &str = "/api/v1/api-keys";

fn create(stand: &Stand, account: &str, networks: &[&str]) -> Key {
    let mut arguments = vec!["keys", "create", "--json", "--name", "limited", "--account", account];
    arguments.extend(["--scope", "models:read", "--scope", "api-keys:*"]);
    arguments.extend(networks.iter().flat_map(|network| ["--allowed-address", network]));
    Key::of(stand.cli(&arguments).expect_success().json())
}

fn limited(stand: &Stand, networks: &[&str]) -> Key {
    create(stand, &stand.new_account(), networks)
}

fn update(stand: &Stand, key: &Key, options: &[&str]) -> Finished {
    stand.cli(&[&["keys", "update", &key.id, "--json"], options].concat())
}

/// The status of a request, once a change is in force.
fn becomes(stand: &Stand, key: &Key, status: u16) {
    eventually("the change is in force", Duration::from_secs(2), || {
        stand.get("/echo/x").bearer(key).send().status() == status
    });
}

#[test]
fn a_key_works_from_its_addresses_and_from_no_other() {
    let stand = Stand::new().start();
    for (networks, allowed) in [
        (&["127.0.0.0/8"][..], true),
        (&["127.0.0.1"], true),
        (&["192.0.2.0/24", "::ffff:127.0.0.1"], true),
        (&["0.0.0.0/0"], true),
        (&["127.0.0.2"], false),
        (&["192.0.2.0/24", "10.0.0.0/8", "::1", "::/0"], false),
    ] {
        let key = limited(&stand, networks);
        let answer = stand.get("/echo/x").bearer(&key).send();
        if allowed {
            let answer = answer.expect_status(200);
            assert_eq!(answer.echoed("x-seeme-allowed-addresses"), Vec::<String>::new());
            continue;
        }
        let refusal = answer.expect_refusal(403, "address_not_allowed");
        assert_eq!(refusal.head.reason, "Key not allowed from this address");
        assert!(refusal.json()["detail"].as_str().unwrap().contains("127.0.0.1"), "{}", refusal.text());
        assert_eq!(refusal.header("www-authenticate"), None);
        // Management calls are no way around it, and what claims to be the client's address is not believed.
        stand.get(&format!("{API}/current")).bearer(&key).send().expect_refusal(403, "address_not_allowed");
        for claim in ["X-Forwarded-For", "X-Real-IP", "Forwarded"] {
            let value = if claim == "Forwarded" { "for=192.0.2.1" } else { "192.0.2.1" };
            let request = stand.get("/echo/x").bearer(&key).header(claim, value);
            request.send().expect_refusal(403, "address_not_allowed");
        }
        // A public route looks at no key.
        stand.get("/public/x").bearer(&key).send().expect_status(404);
    }
}

#[test]
fn the_address_is_checked_after_the_key_and_before_the_scope_and_costs_nothing() {
    let stand =
        Stand::new().route("GET /echo/{*rest}", "scope: models:read").route("GET /other", "scope: other:read").start();
    let account = stand.new_account();
    stand.cli(&["accounts", "set", &account, "--plan", "free"]).expect_success();
    let key = create(&stand, &account, &["192.0.2.1"]);
    minute_with(15);
    for _ in 0..3 {
        stand.get("/other").bearer(&key).send().expect_refusal(403, "address_not_allowed");
        stand.get("/nowhere").bearer(&key).send().expect_refusal(404, "route_not_found");
    }
    stand.cli(&["keys", "disable", &key.id]).expect_success();
    eventually("disabled", Duration::from_secs(2), || {
        stand.get("/echo/x").bearer(&key).send().code() == "disabled_key"
    });
    stand.cli(&["keys", "enable", &key.id]).expect_success();
    update(&stand, &key, &["--all-addresses"]).expect_success();
    becomes(&stand, &key, 200);
    let left = stand.get("/echo/x").bearer(&key).send().expect_status(200).number("x-ratelimit-remaining");
    assert_eq!(left, 58, "refused requests consumed quota");
}

#[test]
fn a_client_of_ipv4_is_the_same_at_a_listener_of_both_families() {
    let stand = Stand::new().start();
    let both = stand.gateway_with("address: \"127.0.0.1:0\" }, admin", "address: \"[::]:0\" }, admin");
    let (v4, v6) = (limited(&stand, &["127.0.0.1"]), limited(&stand, &["::1"]));
    let ask = |host: &str, key: &Key| -> Response {
        let address: SocketAddr = format!("{host}:{}", both.public.port()).parse().unwrap();
        Request::new(address, "GET", "/echo/x").bearer(key).send()
    };
    ask("127.0.0.1", &v4).expect_status(200);
    ask("[::1]", &v6).expect_status(200);
    ask("127.0.0.1", &v6).expect_refusal(403, "address_not_allowed");
    ask("[::1]", &v4).expect_refusal(403, "address_not_allowed");
}

#[test]
fn addresses_are_set_changed_and_taken_away_by_the_api() {
    let stand = Stand::new().start();
    let caller = stand.key().scope("models:read").scope("api-keys:*").create();
    let create = |addresses: Value| {
        let body = json!({"name": "n", "scopes": ["models:read"], "allowed_addresses": addresses});
        stand.post(API).bearer(&caller).json(&body).send()
    };
    let key = Key::of(create(json!(["192.0.2.7", "10.1.2.3/8"])).expect_status(201).json());
    assert_eq!(key.object["allowed_addresses"], json!(["192.0.2.7/32", "10.0.0.0/8"]));
    stand.get("/echo/x").bearer(&key).send().expect_refusal(403, "address_not_allowed");
    let path = format!("{API}/{}", key.id);
    let change = |method: &str, body: Value| {
        let answer = stand.request(method, &path).bearer(&caller).json(&body).send().expect_status(200);
        answer.json()["allowed_addresses"].clone()
    };
    assert_eq!(change("PATCH", json!({"allowed_addresses": ["127.0.0.1"]})), json!(["127.0.0.1/32"]));
    becomes(&stand, &key, 200);
    // PUT null leaves, PATCH null clears, and what is not named stays.
    assert_eq!(change("PUT", json!({"allowed_addresses": null, "name": "m"})), json!(["127.0.0.1/32"]));
    assert_eq!(change("PUT", json!({"allowed_addresses": ["10.0.0.0/8"]})), json!(["10.0.0.0/8"]));
    becomes(&stand, &key, 403);
    assert_eq!(change("PATCH", json!({"name": "o"})), json!(["10.0.0.0/8"]));
    assert_eq!(change("PATCH", json!({"allowed_addresses": null})), Value::Null);
    becomes(&stand, &key, 200);
    let events = stand.get(&format!("{path}/events")).bearer(&caller).send().expect_status(200).json();
    let changed = |event: &&Value| event["changed"].as_array().unwrap().contains(&json!("allowed_addresses"));
    assert_eq!(events.as_array().unwrap().iter().filter(changed).count(), 3, "{events}");
    for bad in [json!([]), json!("10.0.0.0/8"), json!(["10.0.0.0/33"]), json!(["localhost"]), json!([7])] {
        let refusal = create(bad.clone()).expect_refusal(400, "bad_request");
        assert!(refusal.text().contains("allowed_addresses"), "{bad}: {}", refusal.text());
    }
}

#[test]
fn a_caller_gives_no_key_that_works_from_where_it_does_not_itself() {
    let stand = Stand::new().start();
    let caller = limited(&stand, &["127.0.0.0/8", "10.0.0.0/9", "10.128.0.0/9"]);
    let create = |addresses: Value| {
        let mut body = json!({"name": "n", "scopes": ["models:read"]});
        if !addresses.is_null() {
            body["allowed_addresses"] = addresses;
        }
        stand.post(API).bearer(&caller).json(&body).send()
    };
    let inherited = create(Value::Null).expect_status(201).json();
    assert_eq!(inherited["allowed_addresses"], caller.object["allowed_addresses"]);
    for within in [json!(["127.0.0.1"]), json!(["10.0.0.0/8", "127.0.0.0/9"])] {
        create(within).expect_status(201);
    }
    for beyond in [json!(["0.0.0.0/0"]), json!(["127.0.0.1", "192.0.2.1"]), json!(["126.0.0.0/7"]), json!(["::1"])] {
        let refusal = create(beyond).expect_refusal(403, "grant_exceeds_caller");
        assert!(refusal.text().contains("allowed_addresses"), "{}", refusal.text());
    }
    // Nor by changing one that is within, or itself.
    for id in [inherited["id"].as_str().unwrap(), &caller.id] {
        let request = stand.request("PATCH", &format!("{API}/{id}")).bearer(&caller);
        request.json(&json!({"allowed_addresses": null})).send().expect_refusal(403, "grant_exceeds_caller");
    }
}

#[test]
fn explain_and_show_tell_where_a_key_works_from() {
    let stand = Stand::new().start();
    let key = limited(&stand, &["192.0.2.0/24"]);
    let explain = |more: &[&str]| {
        let arguments = ["explain", "GET", "/echo/x", "--key-id", &key.id];
        stand.cli(&[&arguments[..], more].concat()).expect_success().stdout
    };
    assert!(explain(&["--client", "127.0.0.1"]).contains("403 address_not_allowed"));
    assert!(explain(&["--client", "192.0.2.9"]).contains("allowed: forwarded"));
    assert!(explain(&[]).contains("in force, from 192.0.2.0"));
    let shown = stand.cli(&["keys", "show", &key.id]).expect_success().stdout;
    assert!(shown.lines().any(|line| line.starts_with("addresses") && line.ends_with("192.0.2.0/24")), "{shown}");
    let refused = update(&stand, &key, &["--allowed-address", "nowhere"]).expect_code(64);
    assert!(refused.stderr.contains("--allowed-address"), "{}", refused.stderr);
    update(&stand, &key, &["--allowed-address", "10.0.0.0/8", "--all-addresses"]).expect_code(64);
}
