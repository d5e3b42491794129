//! Contract 6: the management API as its callers see it.

use serde_json::{Value, json};

use super::support::{Key, Request, Response, Stand, wait_for};

const BASE: &str = "/api/v1/api-keys";
const PUBLISHED: &str = "/api/v1/me/apikeys";

struct Office {
    stand: Stand,
    manager: Key,
}

impl Office {
    /// A manager that holds everything but what no wildcard covers.
    fn open() -> Self {
        let stand = Stand::new().start();
        let manager = stand.key().scope("*").scope("api-keys:*").create();
        Self { stand, manager }
    }

    fn call(&self, method: &str, path: &str) -> Request {
        self.stand.request(method, &format!("{BASE}{path}")).bearer(&self.manager)
    }

    fn create(&self, body: Value) -> Key {
        Key::of(self.call("POST", "").json(&body).send().expect_status(201).json())
    }
}

/// The members that the refusal names, in the order in which its detail names them.
fn named(response: &Response) -> String {
    let problem = response.json();
    format!("{} | {}", problem["message"].as_str().unwrap(), problem["detail"].as_str().unwrap())
}

#[test]
fn a_key_is_created_shown_listed_and_works() {
    let office = Office::open();
    let body = json!({"name": "mobile", "scopes": ["models:read"], "model_ids": ["m-1"], "dataset_ids": ["d-1"],
        "organization_id": "o-1", "expires_in_days": 30, "environment": "test"});
    let response = office.call("POST", "").json(&body).send().expect_status(201);
    assert_eq!(response.expect_header("content-type"), "application/json");
    assert_eq!(response.expect_header("cache-control"), "no-store");
    let made = response.json();
    let secret = made["key"].as_str().unwrap();
    assert!(secret.starts_with("sm_test_") && secret.len() == 46, "{secret}");
    for member in ["name", "scopes", "model_ids", "dataset_ids", "organization_id", "environment"] {
        assert_eq!(made[member], body[member], "{member}");
    }
    assert_eq!(made["key_prefix"], secret[..12]);
    assert_eq!(made["account_id"], office.manager.account);
    assert_eq!(made["created_by"], office.manager.id);
    assert_eq!(
        (&made["plan"], &made["disabled"], &made["last_used_at"]),
        (&json!("roomy"), &json!(false), &Value::Null)
    );
    for time in ["created_at", "updated_at", "expires_at"] {
        let text = made[time].as_str().unwrap();
        assert!(text.ends_with('Z') && text.as_bytes()[10] == b'T', "{time}: {text}");
    }

    let id = made["id"].as_str().unwrap();
    let mut shown = made.clone();
    shown.as_object_mut().unwrap().remove("key");
    let get = office.call("GET", &format!("/{id}")).send().expect_status(200);
    assert_eq!(get.json(), shown);
    let list = office.call("GET", "").send().expect_status(200);
    assert_eq!(list.json().as_array().unwrap().first(), Some(&shown), "newest first");
    assert!(!get.text().contains(secret) && !list.text().contains(secret));

    let key = Key::of(made);
    office.stand.get("/any").bearer(&key).send().expect_status(404);
    assert_eq!(office.stand.get("/echo/x").bearer(&key).send().code(), "resource_not_allowed");
}

#[test]
fn what_a_creation_does_not_name_is_the_callers() {
    let office = Office::open();
    let caller = office.create(json!({"name": "c", "scopes": ["models:read", "api-keys:write"], "model_ids": ["m-1"],
        "dataset_ids": ["d-1"], "organization_id": "o-1", "expires_in_days": 3, "environment": "test"}));
    let body = json!({"name": "n", "scopes": ["models:read"], "model_ids": null, "expires_in_days": null});
    let made = office.stand.post(BASE).bearer(&caller).json(&body).send().expect_status(201).json();
    for member in ["model_ids", "dataset_ids", "organization_id", "expires_at", "environment", "account_id"] {
        assert_eq!(made[member], caller.object[member], "{member}");
    }
}

#[test]
fn every_bad_member_of_a_body_is_named_at_once() {
    let office = Office::open();
    let body = json!({"nmae": "typo", "scopes": ["models:read", 7, "Models:Read"], "model_ids": [], "dataset_ids": ["a b"],
        "organization_id": 5, "expires_in_days": "30", "environment": "prod", "foo": null});
    let told = named(&office.call("POST", "").json(&body).send().expect_refusal(400, "bad_request"));
    for member in [
        "name",
        "nmae",
        "scopes[1]",
        "scopes[2]",
        "model_ids",
        "dataset_ids[0]",
        "organization_id",
        "expires_in_days",
        "environment",
        "foo",
    ] {
        assert!(told.contains(member), "{member} is not in {told}");
    }
    for (body, member) in [
        (json!({"scopes": ["a:b"]}), "name"),
        (json!({"name": "", "scopes": ["a:b"]}), "name"),
        (json!({"name": "x".repeat(201), "scopes": ["a:b"]}), "name"),
        (json!({"name": "n"}), "scopes"),
        (json!({"name": "n", "scopes": []}), "scopes"),
        (
            json!({"name": "n", "scopes": ["a:b"], "expires_in_days": 1, "expires_at": "2999-01-01T00:00:00Z"}),
            "expires_at",
        ),
        (json!({"name": "n", "scopes": ["a:b"], "expires_at": "2020-01-01T00:00:00Z"}), "expires_at"),
        (json!({"name": "n", "scopes": ["a:b"], "expires_at": "soon"}), "expires_at"),
        (json!({"name": "n", "scopes": ["a:b"], "expires_in_days": 0}), "expires_in_days"),
    ] {
        let told = named(&office.call("POST", "").json(&body).send().expect_refusal(400, "bad_request"));
        assert!(told.contains(member), "{body}: {told}");
    }
    for body in ["", "null", "[]", "{", "\"x\"", "{\"name\":\"a\",\"name\":\"b\",\"scopes\":[\"a:b\"]}x"] {
        office.call("POST", "").body(body).send().expect_refusal(400, "bad_request");
    }
}

#[test]
fn read_only_members_are_ignored_and_the_content_type_is_not_consulted() {
    let office = Office::open();
    let body = json!({"name": "n", "scopes": ["models:read"], "id": "x", "key": "y", "key_prefix": "z", "account_id": office.manager.account,
        "plan": "enterprise", "created_at": "2020-01-01T00:00:00Z", "last_used_at": null, "created_by": "me"});
    let made =
        office.call("POST", "").header("Content-Type", "text/plain").body(body.to_string()).send().expect_status(201);
    assert_eq!(made.json()["account_id"], office.manager.account);
    assert_ne!(made.json()["id"], "x");
}

#[test]
fn only_what_is_named_changes_null_clears_with_patch_and_leaves_with_put() {
    let office = Office::open();
    let key =
        office.create(json!({"name": "n", "scopes": ["models:read"], "model_ids": ["m-1"], "expires_in_days": 5}));
    let path = format!("/{}", key.id);
    let change = |method: &str, body: Value| office.call(method, &path).json(&body).send().expect_status(200).json();
    let renamed = change("PATCH", json!({"name": "renamed"}));
    assert_eq!((&renamed["name"], &renamed["model_ids"]), (&json!("renamed"), &json!(["m-1"])));
    assert_eq!(renamed["scopes"], json!(["models:read"]));
    let put = change("PUT", json!({"name": "put", "model_ids": null, "expires_at": null}));
    assert_eq!((&put["name"], &put["model_ids"]), (&json!("put"), &json!(["m-1"])));
    assert_eq!(put["expires_at"], key.object["expires_at"]);
    let cleared = change("PATCH", json!({"model_ids": null, "expires_at": null}));
    assert_eq!((&cleared["model_ids"], &cleared["expires_at"]), (&Value::Null, &Value::Null));
    let lists = change("PUT", json!({"scopes": ["a:b", "c:*"], "model_ids": ["m-2", "m-3"]}));
    assert_eq!((&lists["scopes"], &lists["model_ids"]), (&json!(["a:b", "c:*"]), &json!(["m-2", "m-3"])));
    assert!(lists.get("key").is_none());
    let refused = office.call("PATCH", &path).json(&json!({"scopes": [], "colour": 1, "disabled": "no"})).send();
    let told = named(&refused.expect_refusal(400, "bad_request"));
    assert!(["scopes", "colour", "disabled"].iter().all(|member| told.contains(member)), "{told}");

    // What a key has for life: the same value is a round trip, another one is no change that was made.
    let whole = office.call("GET", &path).send().json();
    for method in ["PATCH", "PUT"] {
        office.call(method, &path).json(&whole).send().expect_status(200);
        for (member, other) in [("organization_id", "o-9"), ("environment", "test"), ("account_id", "u-9")] {
            let refused = office.call(method, &path).json(&json!({ member: other })).send();
            assert!(named(&refused.expect_refusal(400, "bad_request")).contains(member));
        }
        let twice = br#"{"scopes":["models:read"],"scopes":["datasets:read"]}"#;
        let refused = office.call(method, &path).body(twice).send().expect_refusal(400, "bad_request");
        assert!(named(&refused).contains("scopes"));
    }
}

#[test]
fn a_key_gives_only_what_it_has() {
    let office = Office::open();
    let caller = office.create(
        json!({"name": "c", "scopes": ["models:read", "jobs:*", "api-keys:write"], "model_ids": ["m-1", "m-2"],
        "organization_id": "o-1", "expires_in_days": 10, "environment": "test"}),
    );
    let create = |body: Value| office.stand.post(BASE).bearer(&caller).json(&body).send();
    let far = "2999-01-01T00:00:00Z";
    for (extra, member) in [
        (json!({"scopes": ["models:write"]}), "scopes"),
        (json!({"scopes": ["models:*"]}), "scopes"),
        (json!({"scopes": ["*"]}), "scopes"),
        (json!({"scopes": ["api-keys:admin"]}), "scopes"),
        (json!({"model_ids": ["m-3"]}), "model_ids"),
        (json!({"model_ids": ["m-1", "m-3"]}), "model_ids"),
        (json!({"organization_id": "o-2"}), "organization_id"),
        (json!({"environment": "live"}), "environment"),
        (json!({"account_id": "somebody-else"}), "account_id"),
        (json!({"expires_at": far}), "expires_at"),
    ] {
        let mut body = json!({"name": "n", "scopes": ["models:read"]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let refusal = create(body.clone()).expect_refusal(403, "grant_exceeds_caller");
        assert!(named(&refusal).contains(member), "{body}: {}", refusal.text());
    }
    let within =
        json!({"name": "n", "scopes": ["models:read", "jobs:cancel"], "model_ids": ["m-2"], "expires_in_days": 9});
    let made = Key::of(create(within).expect_status(201).json());

    // The same for a change: what would result has to lie within.
    let patch =
        |body: Value| office.stand.request("PATCH", &format!("{BASE}/{}", made.id)).bearer(&caller).json(&body).send();
    patch(json!({"model_ids": null})).expect_refusal(403, "grant_exceeds_caller");
    patch(json!({"expires_at": null})).expect_refusal(403, "grant_exceeds_caller");
    patch(json!({"scopes": ["models:read", "datasets:read"]})).expect_refusal(403, "grant_exceeds_caller");
    patch(json!({"name": "renamed"})).expect_status(200);

    // A key that is stronger than the caller can be switched off, and not on again.
    let strong = office.create(json!({"name": "s", "scopes": ["datasets:read"], "organization_id": "o-1"}));
    let on_strong = |body: Value| {
        office.stand.request("PATCH", &format!("{BASE}/{}", strong.id)).bearer(&caller).json(&body).send()
    };
    on_strong(json!({"name": "mine"})).expect_refusal(403, "grant_exceeds_caller");
    on_strong(json!({"disabled": true})).expect_status(200);
    on_strong(json!({"disabled": false})).expect_refusal(403, "grant_exceeds_caller");
}

#[test]
fn no_wildcard_gives_the_administration_of_keys_or_accounts() {
    let office = Office::open();
    for scope in ["api-keys:admin", "accounts:read", "accounts:write"] {
        let body = json!({"name": "n", "scopes": [scope]});
        office.call("POST", "").json(&body).send().expect_refusal(403, "grant_exceeds_caller");
    }
    // A plain `*` covers api-keys:read and write.
    let star = office.stand.key().scope("*").create();
    office.stand.get(BASE).bearer(&star).send().expect_status(200);
}

#[test]
fn the_administrator_of_keys_may_name_another_account() {
    let office = Office::open();
    let admin = office.stand.key().scope("*").scope("api-keys:admin").create();
    let path = format!("{BASE}/{}?account_id={}", office.manager.id, office.manager.account);
    office.stand.get(&path).bearer(&admin).send().expect_status(200);
    office
        .stand
        .get(&format!("{BASE}/{}", office.manager.id))
        .bearer(&admin)
        .send()
        .expect_refusal(404, "key_not_found");
    let query = format!("?account_id={}", admin.account);
    // Without the scope the parameter opens nothing.
    office.call("GET", &format!("/{}{query}", admin.id)).send().expect_refusal(404, "key_not_found");
    let ids: Vec<String> = list(&office.call("GET", &query).send());
    assert!(!ids.contains(&admin.id), "{ids:?}");
}

fn list(response: &Response) -> Vec<String> {
    let keys = response.json();
    keys.as_array().unwrap().iter().map(|key| key["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn anothers_key_is_like_one_that_does_not_exist_whatever_is_asked() {
    let office = Office::open();
    let other = office.stand.key().scope("*").create();
    let absent = "01890000-0000-7000-8000-000000000000";
    for (method, suffix, body) in [
        ("GET", "", None),
        ("GET", "?include=deleted", None),
        ("GET", "?include=nonsense", None),
        ("PATCH", "", Some(json!({"name": "x"}))),
        ("PATCH", "", Some(json!({"scopes": []}))),
        ("PUT", "", Some(json!({"nonsense": 1}))),
        ("DELETE", "", None),
        ("GET", "/usage", None),
        ("GET", "/usage?start_date=nonsense", None),
        ("GET", "/events", None),
    ] {
        let answers = [other.id.as_str(), absent, "not-a-key-id"].map(|id| {
            let call = office.call(method, &format!("/{id}{suffix}"));
            let response = body.as_ref().map_or(call.clone(), |body| call.json(body)).send();
            let mut problem = response.clone().expect_refusal(404, "key_not_found").json();
            problem.as_object_mut().unwrap().remove("request_id");
            (response.head.reason, problem)
        });
        assert_eq!(answers[0], answers[1], "{method} {suffix}");
        assert_eq!(answers[0], answers[2], "{method} {suffix}");
    }
    assert_eq!(list(&office.call("GET", "").send()), std::slice::from_ref(&office.manager.id));
    office.stand.get("/any").bearer(&other).send().expect_status(404);
}

#[test]
fn a_caller_limited_to_an_organization_sees_only_its_keys() {
    let office = Office::open();
    let inside = office.create(json!({"name": "i", "scopes": ["a:b"], "organization_id": "o-1"}));
    let outside = office.create(json!({"name": "o", "scopes": ["a:b"], "organization_id": "o-2"}));
    let free = office.create(json!({"name": "f", "scopes": ["a:b"]}));
    let body = json!({"name": "c", "scopes": ["api-keys:read", "api-keys:write", "a:b"], "organization_id": "o-1"});
    let caller = office.create(body);
    let ids = list(&office.stand.get(BASE).bearer(&caller).send().expect_status(200));
    assert_eq!(ids, [caller.id.clone(), inside.id]);
    for hidden in [&outside, &free] {
        office.stand.get(&format!("{BASE}/{}", hidden.id)).bearer(&caller).send().expect_refusal(404, "key_not_found");
        office
            .stand
            .request("DELETE", &format!("{BASE}/{}", hidden.id))
            .bearer(&caller)
            .send()
            .expect_refusal(404, "key_not_found");
    }
}

#[test]
fn reading_and_writing_have_scopes_of_their_own_and_current_needs_none() {
    let office = Office::open();
    let account = &office.manager.account;
    let reader = office.stand.key().account(account).scope("api-keys:read").create();
    let writer = office.stand.key().account(account).scope("api-keys:write").create();
    let nobody = office.stand.key().account(account).scope("models:read").create();
    let body = json!({"name": "n", "scopes": ["api-keys:write"]});
    for (method, path, needs) in [
        ("GET", String::new(), "api-keys:read"),
        ("GET", format!("/{}", nobody.id), "api-keys:read"),
        ("GET", format!("/{}/usage", nobody.id), "api-keys:read"),
        ("GET", format!("/{}/events", nobody.id), "api-keys:read"),
        ("POST", String::new(), "api-keys:write"),
        ("PATCH", format!("/{}", nobody.id), "api-keys:write"),
        ("PUT", format!("/{}", nobody.id), "api-keys:write"),
        ("DELETE", format!("/{}", nobody.id), "api-keys:write"),
    ] {
        for key in [&reader, &writer, &nobody] {
            if key.object["scopes"][0] == needs {
                continue;
            }
            let call = office.stand.request(method, &format!("{BASE}{path}")).bearer(key).json(&body);
            let refusal = call.send().expect_refusal(403, "insufficient_scope");
            assert_eq!(refusal.head.reason, format!("Missing scope {needs}"), "{method} {path}");
        }
    }
    let current = office.stand.get(&format!("{BASE}/current")).bearer(&nobody).send().expect_status(200).json();
    assert_eq!(current["id"], nobody.id);
    assert_eq!(current["limits"]["minute"]["limit"], 10_000_000);
    assert!(current.get("key").is_none());
    office.stand.get(&format!("{BASE}/current")).send().expect_refusal(401, "missing_key");
    for reserved in ["openapi.json", "advice"] {
        assert_ne!(office.call("GET", &format!("/{reserved}")).send().code(), "key_not_found", "never a key id");
    }
}

#[test]
fn current_tells_what_is_left_of_the_limits() {
    let office = Office::open();
    let key = office.stand.key().plan("free").create();
    super::support::minute_with(10);
    office.stand.get("/any").bearer(&key).send().expect_status(404);
    let current = office.stand.get(&format!("{BASE}/current")).bearer(&key).send().expect_status(200).json();
    assert_eq!(
        (&current["limits"]["minute"]["limit"], &current["limits"]["minute"]["remaining"]),
        (&json!(60), &json!(59))
    );
    assert_eq!(
        (&current["limits"]["day"]["limit"], &current["limits"]["day"]["remaining"]),
        (&json!(1000), &json!(999))
    );
    assert_eq!(current["plan"], "free");
}

#[test]
fn after_a_deletion_the_key_is_gone_and_its_usage_and_events_are_not() {
    let office = Office::open();
    let key = office.create(json!({"name": "n", "scopes": ["models:read"]}));
    office.stand.get("/echo/x").bearer(&key).send().expect_status(200);
    let path = format!("/{}", key.id);
    office.call("DELETE", &path).send().expect_status(200);
    office.call("GET", &path).send().expect_refusal(404, "key_not_found");
    office.call("DELETE", &path).send().expect_refusal(404, "key_not_found");
    office.call("PATCH", &path).json(&json!({"disabled": false})).send().expect_refusal(404, "key_not_found");
    assert!(!list(&office.call("GET", "").send()).contains(&key.id));
    assert!(list(&office.call("GET", "?include=deleted").send()).contains(&key.id));
    assert!(office.call("GET", &format!("{path}?include=deleted")).send().json()["deleted_at"].is_string());
    let usage = office.call("GET", &format!("{path}/usage")).send().expect_status(200).json();
    assert_eq!(usage["total_requests"], 1);
    assert!(usage["last_used_at"].is_string(), "{usage}");
    let shown = office.call("GET", &format!("{path}?include=deleted")).send().json();
    assert_eq!(shown["last_used_at"], usage["last_used_at"]);
    assert_eq!(office.stand.cli(&["keys", "show", &key.id, "--json"]).json()["last_used_at"], usage["last_used_at"]);
    let events = office.call("GET", &format!("{path}/events")).send().expect_status(200).json();
    let actions: Vec<&str> = events.as_array().unwrap().iter().map(|event| event["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["created", "deleted"]);
}

#[test]
fn the_audit_trail_tells_who_did_what_from_where() {
    let office = Office::open();
    let key = office.create(json!({"name": "n", "scopes": ["models:read"]}));
    let path = format!("/{}", key.id);
    office.call("PATCH", &path).json(&json!({"name": "m", "scopes": ["a:b"]})).send().expect_status(200);
    office.call("PATCH", &path).json(&json!({"disabled": true})).send().expect_status(200);
    // Asked again: acknowledged again, and nothing happened that the trail could tell.
    let again = office.call("PATCH", &path).json(&json!({"disabled": true})).send().expect_status(200).json();
    assert_eq!(again["acknowledged"], json!({"replicas": 1, "of": 1, "unreachable": []}));
    office.stand.cli(&["keys", "disable", &key.id]).expect_success();
    office.stand.cli(&["keys", "enable", &key.id]).expect_success();
    let events = office.call("GET", &format!("{path}/events")).send().expect_status(200).json();
    let told: Vec<(&str, &str, &str)> = events
        .as_array()
        .unwrap()
        .iter()
        .map(|event| ["action", "by", "from"].map(|member| event[member].as_str().unwrap()))
        .map(|[action, by, from]| (action, by, from))
        .collect();
    let manager = office.manager.id.as_str();
    assert_eq!(
        told,
        [
            ("created", manager, "127.0.0.1"),
            ("updated", manager, "127.0.0.1"),
            ("disabled", manager, "127.0.0.1"),
            ("enabled", "cli", "cli"),
        ]
    );
    assert_eq!(events[1]["changed"], json!(["name", "scopes"]));
}

#[test]
fn the_published_clients_address_takes_what_the_client_sends() {
    let office = Office::open();
    // Byte for byte what seeme 0.43.2 sends, without a Content-Type.
    let body = br#"{"name":"n","scopes":[],"organization_id":null,"expires_in_days":null}"#;
    let caller = office.create(json!({"name": "c", "scopes": ["models:read", "api-keys:*"]}));
    let made = office.stand.post(PUBLISHED).bearer(&caller).body(body).send().expect_status(201).json();
    assert_eq!(made["scopes"], json!(["models:read", "api-keys:*"]), "empty means the caller's own");
    assert!(made["key"].as_str().is_some());
    let id = made["id"].as_str().unwrap();
    let listed = list(&office.stand.get(PUBLISHED).bearer(&caller).send().expect_status(200));
    assert!(listed.contains(&id.to_owned()));
    office.stand.get(&format!("{PUBLISHED}/{id}")).bearer(&caller).send().expect_status(200);
    let put = json!({"name": "renamed", "scopes": null});
    let changed =
        office.stand.request("PUT", &format!("{PUBLISHED}/{id}")).bearer(&caller).json(&put).send().expect_status(200);
    assert_eq!(changed.json()["name"], "renamed");
    office.stand.request("DELETE", &format!("{PUBLISHED}/{id}")).bearer(&caller).send().expect_status(200);
}

#[test]
fn management_calls_are_charged_to_their_own_rate_and_counted_in_usage() {
    let stand = Stand::new().management("rate: 5/min").start();
    let key = stand.key().scope("api-keys:read").scope("models:read").plan("free").create();
    let (refusal, _) = wait_for("the rate", std::time::Duration::from_secs(5), || {
        let response = stand.get(BASE).bearer(&key).send();
        assert!(response.status() != 200 || response.header("x-ratelimit-limit").is_none(), "not charged to the plan");
        (response.status() != 200).then_some(response)
    });
    let refusal = refusal.expect_refusal(429, "rate_limited");
    let wait = refusal.number("retry-after");
    assert!((1..=60).contains(&wait));
    assert_eq!((refusal.number("x-ratelimit-limit"), refusal.number("x-ratelimit-remaining")), (5, 0));
    assert!(refusal.number("x-ratelimit-reset").abs_diff(super::support::seconds_now() + wait) <= 2);
    assert_eq!(refusal.header("ratelimit-policy"), Some(r#""management";q=5;w=60"#));
    assert_eq!(refusal.header("ratelimit"), Some(format!(r#""management";r=0;t={wait}"#).as_str()));
    assert_eq!(refusal.json()["type"], "https://iana.org/assignments/http-problem-types#quota-exceeded");
    assert_eq!(refusal.json()["violated-policies"], json!(["management"]));
    let counted = || stand.gateway.metric("gateway_requests_total", r#"route="(management)",class="429""#);
    super::support::eventually("the metric", std::time::Duration::from_secs(5), || counted() == Some(1.0));
    super::support::minute_with(10);
    assert_eq!(stand.get("/echo/x").bearer(&key).send().expect_status(200).number("x-ratelimit-remaining"), 59);
    let usage = stand.usage(&key);
    let calls = &usage["by_endpoint"][format!("GET {BASE}")];
    assert!(calls["successful"].as_u64().unwrap() >= 5 && calls["failed"] == 1, "{usage}");
    assert_eq!(usage["by_status"]["429"], 1);
}

#[test]
fn usage_is_told_for_the_days_that_are_asked_for() {
    let office = Office::open();
    let key = office.create(json!({"name": "n", "scopes": ["models:read"]}));
    office.stand.get("/echo/x").bearer(&key).send().expect_status(200);
    let usage = |query: &str| office.call("GET", &format!("/{}/usage{query}", key.id)).send();
    let whole = usage("").expect_status(200).json();
    assert_eq!(whole["by_day"].as_array().unwrap().len(), 1);
    let today = whole["by_day"][0]["date"].as_str().unwrap().to_owned();
    assert_eq!(usage(&format!("?start_date={today}&end_date={today}")).json(), whole);
    let before = usage("?start_date=2024-01-01&end_date=2024-01-31").expect_status(200).json();
    assert_eq!((&before["total_requests"], &before["by_day"]), (&json!(0), &json!([])));
    for bad in [
        "?start_date=2024-13-01",
        "?end_date=yesterday",
        "?start_date=2024-02-01&end_date=2024-01-01",
        "?start_date=a&start_date=b",
    ] {
        usage(bad).expect_refusal(400, "bad_request");
    }
}

#[test]
fn a_body_of_a_management_call_has_a_limit() {
    let office = Office::open();
    let big = json!({"name": "x".repeat(3_000_000), "scopes": ["a:b"]});
    office.call("POST", "").json(&big).send().expect_refusal(413, "body_too_large");
}
