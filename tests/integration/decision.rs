//! Contract 4: every row of the decision, what its refusal looks like, and the order of the checks.

use std::time::Duration;

use super::support::{Connection, Key, Response, Stand, eventually, minute_with};

fn stand() -> Stand {
    Stand::new()
        .route("GET /echo/{*rest}", "scope: models:read")
        .route("POST /echo/{*rest}", "scope: models:write, body_bytes: 1KiB")
        .route("GET /any", "access: authenticated")
        .route("GET /either", "access: { any_scope: [models:read, models:list] }")
        .route("GET /both", "access: { all_scopes: [models:read, models:list] }")
        .route("GET|POST /public/{*rest}", "access: public")
        .route("GET /models/{id}", "scope: models:read, resources: { model: path.id }")
        .route("GET /datasets/{id}", "scope: datasets:read, resources: { dataset: path.id }")
        .route("GET /organizations/{id}", "scope: models:read, organization: path.id")
        .section("limits: { header_bytes: 8KiB, header_count: 20, uri_bytes: 1KiB }")
        .start()
}

/// What every refusal has, whatever it is about.
#[track_caller]
fn refused(response: &Response, status: u16, code: &str, reason: &str) {
    let problem = response.json();
    assert_eq!((response.status(), problem["code"].as_str()), (status, Some(code)), "{}", response.text());
    assert_eq!(response.head.reason, reason);
    assert_eq!(response.head.version, "HTTP/1.1");
    assert_eq!(response.expect_header("content-type"), "application/problem+json");
    assert_eq!(response.number("content-length") as usize, response.body.len());
    assert_eq!(problem["status"], status);
    assert_eq!(problem["message"], reason);
    assert!(problem["title"].as_str().is_some_and(|title| !title.is_empty()), "{problem}");
    assert!(problem["type"].as_str().is_some_and(|kind| kind.contains(':')), "{problem}");
    assert!(problem["detail"].as_str().is_some_and(|detail| detail.len() > 10), "{problem}");
    assert_eq!(problem["request_id"], response.expect_header("x-request-id"));
}

#[test]
fn each_refusal_has_its_status_code_reason_phrase_and_challenge() {
    let stand = stand();
    let key = stand.key().scope("models:read").model("m-1").create();
    let data = stand.key().scope("datasets:read").dataset("d-1").create();
    let member = stand.key().scope("models:read").organization("o-1").create();
    let plain = "Bearer realm=\"seeme\"";
    let invalid = "Bearer realm=\"seeme\", error=\"invalid_token\"";

    let response = stand.get("/nowhere").bearer(&key).send();
    refused(&response, 404, "route_not_found", "No such route");
    assert_eq!((response.header("www-authenticate"), response.header("allow")), (None, None));

    let response = stand.request("DELETE", "/echo/x").bearer(&key).send();
    refused(&response, 405, "method_not_allowed", "Method not allowed");
    assert_eq!(response.expect_header("allow"), "GET, HEAD, POST");

    let response = stand.post("/echo/x").bearer(&key).body([b'x'; 1025]).send();
    refused(&response, 413, "body_too_large", "Request body too large");

    let response = stand.get("/echo/x").send();
    refused(&response, 401, "missing_key", "API key required");
    assert_eq!(response.expect_header("www-authenticate"), plain);

    let response = stand.get("/echo/x").token("not-a-key").send();
    refused(&response, 401, "invalid_key", "Invalid API key");
    assert_eq!(response.expect_header("www-authenticate"), invalid);

    let response = stand.post("/echo/x").bearer(&key).send();
    refused(&response, 403, "insufficient_scope", "Missing scope models:write");
    let challenge = "Bearer realm=\"seeme\", error=\"insufficient_scope\", scope=\"models:write\"";
    assert_eq!(response.expect_header("www-authenticate"), challenge);

    let response = stand.get("/models/m-2").bearer(&key).send();
    refused(&response, 403, "resource_not_allowed", "Key not allowed for this model");
    assert_eq!(response.header("www-authenticate"), None);

    let response = stand.get("/datasets/d-2").bearer(&data).send();
    refused(&response, 403, "resource_not_allowed", "Key not allowed for this dataset");

    let response = stand.get("/organizations/o-2").bearer(&member).send();
    refused(&response, 403, "organization_not_allowed", "Key not allowed for this organization");
}

#[test]
fn a_message_that_is_not_well_formed_is_refused_before_anything_else() {
    let stand = stand();
    let line = "GET /echo/x HTTP/1.1\r\n";
    for (what, request) in [
        ("no Host", format!("{line}\r\n")),
        ("two Hosts", format!("{line}Host: a\r\nHost: a\r\n\r\n")),
        ("an empty Host", format!("{line}Host:\r\n\r\n")),
        ("a Host with a user", format!("{line}Host: u@a\r\n\r\n")),
        ("a Host with a path", format!("{line}Host: a/b\r\n\r\n")),
        ("a Host with a bad port", format!("{line}Host: a:99999\r\n\r\n")),
        ("another Host in the target", "GET http://b/echo/x HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        ("a target that is no path", "GET * HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        ("CONNECT", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n".to_owned()),
        ("two lengths", format!("{line}Host: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx")),
        ("a length that is none", format!("{line}Host: a\r\nContent-Length: -1\r\n\r\nx")),
        ("a signed length", format!("{line}Host: a\r\nContent-Length: +1\r\n\r\nx")),
        ("an unknown coding", format!("{line}Host: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n")),
        ("a space before the colon", format!("{line}Host: a\r\nX-A : b\r\n\r\n")),
        ("a folded field", format!("{line}Host: a\r\nX-A: b\r\n c\r\n\r\n")),
        ("a NUL in a field", format!("{line}Host: a\r\nX-A: b\0c\r\n\r\n")),
        ("a bare CR in a field", format!("{line}Host: a\r\nX-A: b\rc\r\n\r\n")),
    ] {
        let mut connection = stand.connect();
        connection.send(&request);
        let response = connection.response("GET");
        assert_eq!(response.status(), 400, "{what}: {}", response.text());
        assert_eq!(response.code(), "bad_request", "{what}");
        assert!(connection.is_closed_by_server(), "{what}: nothing more is read from such a connection");
    }
    assert_eq!(stand.gateway.metric("gateway_panics_total", ""), Some(0.0));
}

#[test]
fn framing_in_two_ways_never_lets_a_second_request_slip_through() {
    let stand = stand();
    let key = stand.key().scope("models:*").create();
    let smuggled = "GET /public/smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let head = format!(
        "POST /echo/x HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n",
        key.secret,
        smuggled.len() + 5,
    );
    let mut connection = stand.connect();
    connection.send(format!("{head}0\r\n\r\n{smuggled}"));
    let first = connection.response("POST");
    // RFC 9112 section 6.3: either refused, or Transfer-Encoding alone counts and the connection closes.
    assert!(matches!(first.status(), 200 | 400), "{}", first.text());
    let second = connection.try_response("GET");
    assert!(second.is_err(), "the bytes after an ambiguous message were served: {second:?}");
}

#[test]
fn a_head_beyond_its_limits_is_431_or_414_and_says_so() {
    let stand = stand();
    let at_the_limit = format!("/public/{}", "u".repeat(1024 - 8));
    assert_eq!(stand.get(&at_the_limit).send().status(), 404, "the backend's own 404");
    let response = stand.get(&format!("{at_the_limit}u")).send();
    refused(&response, 414, "uri_too_long", "Request target too long");
    let response = stand.get(&format!("/public/x?{}", "q".repeat(1024))).send();
    refused(&response, 414, "uri_too_long", "Request target too long");

    let response = stand.get("/public/x").header("X-Long", &"v".repeat(8192)).send();
    refused(&response, 431, "headers_too_large", "Request head too large");
    let many = (0..21).fold(stand.get("/public/x"), |request, n| request.header(&format!("X-{n}"), "v"));
    refused(&many.send(), 431, "headers_too_large", "Request head too large");
    let few = (0..19).fold(stand.get("/public/x"), |request, n| request.header(&format!("X-{n}"), "v"));
    assert_eq!(few.send().status(), 404);
}

#[test]
fn a_head_far_beyond_all_limits_is_refused_too_and_never_buffered_without_end() {
    let stand = stand();
    let mut connection = stand.connect();
    let piece = format!("X-Long: {}\r\n", "v".repeat(8000));
    connection.send("GET /public/x HTTP/1.1\r\nHost: a\r\n");
    // Until the gateway has had enough: it answers, or closes.
    for _ in 0..100 {
        if connection.try_send(&piece).is_err() {
            break;
        }
    }
    if let Ok(response) = connection.try_response("GET") {
        assert_eq!(response.status(), 431);
    }
    stand.get("/public/x").send().expect_status(404);
}

#[test]
fn the_checks_come_in_the_order_of_the_contract() {
    let stand = stand();
    let reader = stand.key().scope("models:read").model("m-1").create();
    let long = format!("/nowhere?{}", "q".repeat(2000));
    let big = [b'x'; 2000];
    // Each request fails every check from the named one on.
    stand.get(&long).header("Host", "a b").send().expect_refusal(400, "bad_request");
    stand.get(&long).send().expect_refusal(414, "uri_too_long");
    stand.post("/nowhere").body(big).send().expect_refusal(404, "route_not_found");
    stand.request("PUT", "/echo/x").body(big).send().expect_refusal(405, "method_not_allowed");
    stand.post("/echo/x").body(big).send().expect_refusal(413, "body_too_large");
    let twice = stand.post("/echo/x").token("a").token("b");
    twice.clone().body(big).send().expect_refusal(413, "body_too_large");
    twice.send().expect_refusal(400, "bad_request");
    stand.post("/echo/x").send().expect_refusal(401, "missing_key");
    stand.post("/echo/x").token("sm_live_mistyped").send().expect_refusal(401, "invalid_key");
    stand.post("/echo/x").bearer(&reader).send().expect_refusal(403, "insufficient_scope");
    let outsider = stand.key().scope("datasets:read").model("m-1").organization("o-1").create();
    stand.get("/models/m-2").bearer(&outsider).send().expect_refusal(403, "insufficient_scope");
    stand.get("/organizations/o-2").bearer(&outsider).send().expect_refusal(403, "insufficient_scope");
}

#[test]
fn who_a_key_is_comes_before_what_it_may() {
    let stand = stand();
    let key = stand.key().scope("models:read").create();
    stand.cli(&["accounts", "suspend", &key.account]).expect_success();
    stand.cli(&["keys", "disable", &key.id]).expect_success();
    let wrong_scope = stand.post("/echo/x").bearer(&key);
    // The account comes before the key's own switch, and both before the scope.
    wrong_scope.send().expect_refusal(401, "account_suspended");
    stand.cli(&["accounts", "resume", &key.account]).expect_success();
    eventually("the account is resumed", Duration::from_secs(2), || wrong_scope.send().code() == "disabled_key");
    let response = stand.get("/echo/x").bearer(&key).send();
    refused(&response, 401, "disabled_key", "API key disabled");
    assert!(response.text().contains("re-enable it in Settings > API Keys"), "{}", response.text());
    assert_eq!(response.expect_header("www-authenticate"), "Bearer realm=\"seeme\", error=\"invalid_token\"");
    stand.cli(&["keys", "delete", &key.id]).expect_success();
    eventually("the key is deleted", Duration::from_secs(2), || wrong_scope.send().code() == "invalid_key");
}

#[test]
fn a_used_up_quota_is_refused_last_and_with_the_violated_window() {
    let stand = stand();
    let key = stand.key().scope("models:read").model("m-1").plan("free").create();
    minute_with(20);
    let allowed = stand.get("/any").bearer(&key);
    let mut connection = stand.connect();
    for _ in 0..60 {
        allowed.on(&mut connection).expect_status(404);
    }
    let response = allowed.send();
    refused(&response, 429, "rate_limited", "Rate limit of 60 requests per minute reached");
    assert_eq!(response.json()["violated-policies"], serde_json::json!(["minute"]));
    assert!((1..=60).contains(&response.number("retry-after")));
    // What else is wrong is told first, quota or not.
    stand.get("/models/m-2").bearer(&key).send().expect_refusal(403, "resource_not_allowed");
    stand.post("/echo/x").bearer(&key).send().expect_refusal(403, "insufficient_scope");
    stand.get("/nowhere").bearer(&key).send().expect_refusal(404, "route_not_found");
}

#[test]
fn a_refused_request_consumes_no_quota() {
    let stand = stand();
    let key = stand.key().scope("models:read").model("m-1").organization("o-1").plan("free").create();
    minute_with(20);
    let mut connection = stand.connect();
    let before = stand.get("/any").bearer(&key).on(&mut connection).number("x-ratelimit-remaining");
    for _ in 0..5 {
        stand.get("/nowhere").bearer(&key).on(&mut connection).expect_status(404);
        stand.request("DELETE", "/echo/x").bearer(&key).on(&mut connection).expect_status(405);
        stand.post("/echo/x").bearer(&key).on(&mut connection).expect_status(403);
        stand.get("/models/m-2").bearer(&key).on(&mut connection).expect_status(403);
        stand.get("/organizations/o-2").bearer(&key).on(&mut connection).expect_status(403);
        stand.post("/echo/x").bearer(&key).body([0; 2000]).on(&mut connection).expect_status(413);
    }
    let after = stand.get("/any").bearer(&key).on(&mut connection).number("x-ratelimit-remaining");
    assert_eq!(after, before - 1);
}

#[test]
fn the_scheme_is_compared_without_case_and_padding_around_the_key_is_ignored() {
    let stand = stand();
    let key = stand.key().create();
    for scheme in ["Bearer", "bearer", "BEARER", "bEaReR"] {
        stand.get("/echo/x").header("Authorization", &format!("{scheme} {}", key.secret)).send().expect_status(200);
    }
    stand.get("/echo/x").header("Authorization", &format!("Bearer   {}  ", key.secret)).send().expect_status(200);
    for value in [key.secret.clone(), format!("Basic {}", key.secret), format!("Bearer{}", key.secret), "Bearer".into()]
    {
        let response = stand.get("/echo/x").header("Authorization", &value).send();
        assert_eq!(response.status(), 401, "{value}");
    }
}

#[test]
fn two_credentials_are_refused_even_when_both_are_good() {
    let stand = stand();
    let key = stand.key().create();
    let response = stand.get("/echo/x").bearer(&key).bearer(&key).send();
    refused(&response, 400, "bad_request", "More than one Authorization field");
    let joined = format!("Bearer {}, Bearer {}", key.secret, key.secret);
    stand.get("/echo/x").header("Authorization", &joined).send().expect_refusal(400, "bad_request");
    stand.get("/public/x").bearer(&key).bearer(&key).send().expect_refusal(400, "bad_request");
}

#[test]
fn a_key_is_never_taken_from_the_query_a_cookie_or_another_field() {
    let stand = stand();
    let key = stand.key().create();
    let secret = &key.secret;
    for target in
        [format!("/echo/x?access_token={secret}"), format!("/echo/x?api_key={secret}"), format!("/echo/x?{secret}")]
    {
        stand.get(&target).send().expect_refusal(401, "missing_key");
    }
    for name in ["X-Api-Key", "Api-Key", "Proxy-Authorization", "Cookie"] {
        stand.get("/echo/x").header(name, &format!("Bearer {secret}")).send().expect_refusal(401, "missing_key");
    }
    // Nor from a form body, for which the route has room.
    stand.post("/echo/x").body(format!("access_token={secret}")).send().expect_refusal(401, "missing_key");
}

#[test]
fn a_key_with_one_character_changed_is_unknown_without_a_look_up() {
    let stand = stand();
    let key = stand.key().create();
    let looked_up = || stand.gateway.metric("gateway_key_lookups_total", "").unwrap_or_default();
    stand.get("/echo/x").bearer(&key).send().expect_status(200);
    let before = looked_up();
    for at in [8, 20, key.secret.len() - 1] {
        let mut bytes = key.secret.clone().into_bytes();
        bytes[at] = if bytes[at] == b'a' { b'b' } else { b'a' };
        let mistyped = String::from_utf8(bytes).unwrap();
        stand.get("/echo/x").token(&mistyped).send().expect_refusal(401, "invalid_key");
    }
    assert_eq!(looked_up(), before);
}

#[test]
fn any_of_several_scopes_opens_and_all_of_several_are_needed_where_it_says_so() {
    let stand = stand();
    let list = stand.key().scope("models:list").create();
    let read = stand.key().scope("models:read").create();
    let both = stand.key().scope("models:read").scope("models:list").create();
    let other = stand.key().scope("jobs:read").create();
    for (key, either, all) in [(&list, 404, 403), (&read, 404, 403), (&both, 404, 404), (&other, 403, 403)] {
        assert_eq!(stand.get("/either").bearer(key).send().status(), either, "{:?}", key.object["scopes"]);
        assert_eq!(stand.get("/both").bearer(key).send().status(), all, "{:?}", key.object["scopes"]);
    }
    let reason = |path: &str, key: &Key| stand.get(path).bearer(key).send().head.reason;
    assert_eq!(reason("/either", &other), "Missing scope models:read or models:list");
    assert_eq!(reason("/both", &other), "Missing scope models:read and models:list");
    assert_eq!(reason("/both", &list), "Missing scope models:read");
}

#[test]
fn wildcards_open_what_they_cover() {
    let stand = stand();
    for scope in ["*", "*:*", "models:*"] {
        let key = stand.key().scope(scope).create();
        stand.get("/echo/x").bearer(&key).send().expect_status(200);
        stand.post("/echo/x").bearer(&key).send().expect_status(200);
    }
    let other = stand.key().scope("model:*").create();
    stand.get("/echo/x").bearer(&other).send().expect_refusal(403, "insufficient_scope");
}

#[test]
fn a_public_route_asks_for_nothing_and_an_authenticated_one_for_any_key() {
    let stand = stand();
    let key = stand.key().scope("nothing:known").create();
    // 404 is the backend's: the request got through.
    stand.get("/public/x").send().expect_status(404);
    stand.get("/public/x").token("anything").send().expect_status(404);
    stand.cli(&["keys", "disable", &key.id]).expect_success();
    stand.get("/public/x").bearer(&key).send().expect_status(404);
    stand.get("/any").bearer(&key).send().expect_refusal(401, "disabled_key");
    stand.get("/any").send().expect_refusal(401, "missing_key");
}

#[test]
fn every_answer_has_a_request_id_of_its_own_whoever_made_the_answer() {
    let stand = stand();
    let key = stand.key().create();
    let requests = [
        stand.get("/echo/x").bearer(&key),
        stand.get("/echo/x?header=X-Request-Id:theirs").bearer(&key),
        stand.get("/echo/x").bearer(&key).header("X-Request-Id", "chosen"),
        stand.get("/echo/x"),
        stand.get("/nowhere"),
        stand.get("/a//b"),
        stand.get("/api/v1/api-keys").bearer(&key),
        stand.get("/api/v1/api-keys/current").bearer(&key),
    ];
    let mut ids: Vec<String> =
        requests.iter().map(|request| request.send().expect_header("x-request-id").to_owned()).collect();
    assert!(ids.iter().all(|id| id.len() >= 16 && id != "chosen" && id != "theirs"), "{ids:?}");
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), requests.len());
}

#[test]
fn head_is_answered_without_a_body_refused_or_not() {
    let stand = stand();
    let key = stand.key().create();
    let mut connection = stand.connect();
    for (request, status) in [
        (stand.request("HEAD", "/echo/x"), 401),
        (stand.request("HEAD", "/nowhere"), 404),
        (stand.request("HEAD", "/echo/x").bearer(&key), 200),
        (stand.request("HEAD", "/api/v1/api-keys/current").bearer(&key), 200),
    ] {
        let response = request.on(&mut connection);
        assert_eq!(response.status(), status, "{request:?}");
        assert!(response.head.all("content-length").iter().all(|length| *length != "0"), "{response:?}");
    }
    // The connection is still in step: no body went over it.
    stand.get("/echo/x").bearer(&key).on(&mut connection).expect_status(200);
}

#[test]
fn http_1_0_is_served_and_closed() {
    let stand = stand();
    let key = stand.key().create();
    let mut connection = Connection::open(stand.gateway.public);
    connection.send(format!("GET /echo/x HTTP/1.0\r\nAuthorization: Bearer {}\r\n\r\n", key.secret));
    let response = connection.response("GET").expect_status(200);
    assert_eq!(response.echoed_once("via"), "1.0 seeme-gateway");
    assert!(connection.is_closed_by_server());
}

#[test]
fn an_unreachable_backend_is_502_with_a_problem() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let stand = Stand::new().upstream(closed).start();
    let key = stand.key().create();
    let response = stand.get("/echo/x").bearer(&key).send();
    refused(&response, 502, "upstream_unreachable", "Upstream unreachable");
}
