//! Keys that are limited to models, datasets or an organization: where the value comes from, and what is refused.

use serde_json::json;

use super::support::{Key, Response, Stand, eventually, wait_for};

fn stand() -> Stand {
    Stand::new()
        .route("* /echo/models/{model_id}", "scope: models:read, resources: { model: path.model_id }")
        .route("GET /echo/datasets/{dataset_id}", "scope: datasets:read, resources: { dataset: path.dataset_id }")
        .route("GET /echo/query", "scope: models:read, resources: { model: query.model }")
        .route("GET /echo/header", "scope: models:read, resources: { model: header.X-Model }")
        .route("POST /echo/chat", "scope: models:predict, resources: { model: body./model }")
        .route("POST /echo/deep", "scope: models:predict, resources: { model: body./a~1b/model }")
        .route("GET /echo/both/{m}/{d}", "scope: models:read, resources: { model: path.m, dataset: path.d }")
        .route("GET /echo/list", "scope: models:read")
        .route("GET /echo/filtered", "scope: models:read, limited_keys: forward")
        .route("GET /echo/authenticated", "access: authenticated")
        .route("GET /echo/jobs", "scope: jobs:read")
        .route("GET /echo/touching", "scope: jobs:read, touches: [model]")
        .route("GET /echo/organizations/{id}", "scope: models:read, organization: path.id, limited_keys: forward")
        .section("limits: { inspect_bytes: 4KiB }")
        .start()
}

/// A key that may do everything here, with model A alone.
fn limited(stand: &Stand) -> Key {
    stand.key().scope("models:*").scope("datasets:read").scope("jobs:read").model("A").model("a.2").create()
}

#[test]
fn a_key_limited_to_models_passes_for_these_and_for_no_other() {
    let stand = stand();
    let key = limited(&stand);
    let free = stand.key().scope("models:*").create();
    for (path, status) in [
        ("/echo/models/A", 200),
        ("/echo/models/%41", 200),
        ("/echo/models/a.2", 200),
        ("/echo/models/B", 403),
        ("/echo/models/a", 403),
        ("/echo/models/A%20", 403),
        ("/echo/models/AA", 403),
        ("/echo/query?model=A", 200),
        ("/echo/query?x=1&model=%41&y", 200),
        ("/echo/query?model=B", 403),
        ("/echo/query", 403),
        ("/echo/query?model=", 403),
        ("/echo/query?Model=A", 403),
        ("/echo/query?model=A&model=A", 400),
        ("/echo/query?model=A&mod%65l=B", 400),
    ] {
        let response = stand.get(path).bearer(&key).send();
        assert_eq!(response.status(), status, "{path}: {}", response.text());
        if status == 403 {
            assert_eq!(response.code(), "resource_not_allowed", "{path}");
        }
        if !path.contains("&mod") {
            stand.get(path).bearer(&free).send().expect_status(200);
        }
    }
}

#[test]
fn a_value_from_a_field_may_come_once() {
    let stand = stand();
    let key = limited(&stand);
    let with = |values: &[&str]| {
        values
            .iter()
            .fold(stand.get("/echo/header").bearer(&key), |r, value| r.header("X-Model", value))
            .send()
            .status()
    };
    assert_eq!(with(&["A"]), 200);
    assert_eq!(with(&["B"]), 403);
    assert_eq!(with(&[]), 403);
    assert_eq!(with(&["A", "A"]), 400);
    assert_eq!(with(&["A", "B"]), 400);
    // Connection must not hide the field from the backend that was decided on.
    let hidden = stand.get("/echo/header").bearer(&key).header("X-Model", "A").header("Connection", "X-Model").send();
    assert!(hidden.status() == 400 || hidden.echoed("x-model") == ["A"] || hidden.echoed("x-model").is_empty());
}

#[test]
fn a_body_that_names_another_model_is_refused_however_it_is_written() {
    let stand = stand();
    let key = limited(&stand);
    for (body, status) in [
        (r#"{"model":"A"}"#, 200),
        (r#" { "stream" : true , "model" : "A" } "#, 200),
        (r#"{"model":"\u0041"}"#, 200),
        (r#"{"mod\u0065l":"A"}"#, 200),
        (r#"{"messages":[{"model":"B","content":"{\"model\":\"B\"}"}],"model":"A"}"#, 200),
        (r#"{"nested":{"model":"B"},"model":"A"}"#, 200),
        (r#"{"model":"B"}"#, 403),
        (r#"{"model":"\u0042"}"#, 403),
        (r#"{"model":"a"}"#, 403),
        (r#"{"model":"A "}"#, 403),
        (r#"{"model":""}"#, 403),
        (r#"{}"#, 403),
        (r#"{"messages":[]}"#, 403),
        (r#"{"model":"A","model":"B"}"#, 400),
        (r#"{"model":"B","model":"A"}"#, 400),
        (r#"{"model":"A","model":"A"}"#, 400),
        (r#"{"model":"A","Model":"B"}"#, 400),
        (r#"{"MODEL":"B","model":"A"}"#, 400),
        (r#"{"model":"A","mod\u0065l":"B"}"#, 400),
        (r#"{"model":"A","\u004dodel":"B"}"#, 400),
        (r#"{"model":["A"]}"#, 400),
        (r#"{"model":{"id":"A"}}"#, 400),
        (r#"{"model":1}"#, 400),
        (r#"{"model":null}"#, 400),
        (r#"[{"model":"A"}]"#, 403),
        (r#""A""#, 403),
        (r#"{"model":"A"} {"model":"B"}"#, 400),
        (r#"{"model":"A"}x"#, 400),
        (r#"{"model":"A""#, 400),
        (r#"{'model':'A'}"#, 400),
        (r#"{"model":"\ud800"}"#, 400),
        ("model=A", 400),
        ("", 400),
        ("\u{feff}{\"model\":\"A\"}", 400),
    ] {
        let response = stand.post("/echo/chat").bearer(&key).header("Content-Type", "text/plain").body(body).send();
        // A member in another case may be called absent (403) where it stands alone; naming both is 400.
        assert_eq!(response.status(), status, "{body}: {}", response.text());
        arrived_whole(&response, body.as_bytes());
    }
    let response = stand.post("/echo/chat").bearer(&key).body(b"{\"model\":\"A\xff\"}").send();
    response.expect_refusal(400, "bad_request");
    // In another case alone: never admitted.
    let response = stand.post("/echo/chat").bearer(&key).body(r#"{"Model":"A"}"#).send();
    assert!(matches!(response.status(), 400 | 403), "{}", response.text());
}

#[track_caller]
fn arrived_whole(response: &Response, body: &[u8]) {
    if response.status() == 200 {
        let echoed = response.json();
        assert_eq!(echoed["body_bytes"], body.len(), "{echoed}");
        assert_eq!(echoed["body_blake3"], blake3::hash(body).to_hex().as_str());
    }
}

#[test]
fn the_pointer_is_followed_with_its_escapes() {
    let stand = stand();
    let key = limited(&stand);
    for (body, status) in [
        (r#"{"a/b":{"model":"A"}}"#, 200),
        (r#"{"a/b":{"model":"B"}}"#, 403),
        (r#"{"a/b":{}}"#, 403),
        (r#"{"a/b":{"model":"A"},"A/B":{"model":"B"}}"#, 400),
        (r#"{"a":{"b":{"model":"A"}}}"#, 403),
        (r#"{"a/b":"A"}"#, 400),
    ] {
        let response = stand.post("/echo/deep").bearer(&key).body(body).send();
        assert!(
            response.status() == status || (status == 400 && response.status() == 403),
            "{body}: {}",
            response.text()
        );
    }
}

#[test]
fn a_body_that_cannot_be_looked_at_is_refused_only_to_keys_that_are_limited() {
    let stand = stand();
    let key = limited(&stand);
    let free = stand.key().scope("models:predict").create();
    let gzip =
        |key: &Key| stand.post("/echo/chat").bearer(key).header("Content-Encoding", "gzip").body(b"\x1f\x8b whatever");
    gzip(&key).send().expect_status(415);
    gzip(&free).send().expect_status(200);

    let body = |bytes: usize| {
        let text = json!({"model": "A", "pad": ""}).to_string();
        text.replace("\"\"", &format!("\"{}\"", "p".repeat(bytes - text.len()))).into_bytes()
    };
    let (at, over) = (body(4096), body(4097));
    arrived_whole(&stand.post("/echo/chat").bearer(&key).body(&at).send().expect_status(200), &at);
    stand.post("/echo/chat").bearer(&key).body(&over).send().expect_refusal(413, "body_too_large");
    stand
        .post("/echo/chat")
        .bearer(&key)
        .chunked(&[&over[..10], &over[10..]], &[])
        .send()
        .expect_refusal(413, "body_too_large");
    let large = vec![b'x'; 3_000_000];
    arrived_whole(&stand.post("/echo/chat").bearer(&free).body(&large).send().expect_status(200), &large);
}

#[test]
fn an_inspected_body_arrives_byte_for_byte_also_when_it_came_in_chunks() {
    let stand = stand();
    let key = limited(&stand);
    let body = b"{\r\n \"model\" :\t\"A\" , \"x\": \"\xe2\x82\xac \\u20ac\" , \"n\": 1.0e+00 }\n\n";
    let chunks: Vec<&[u8]> = body.chunks(7).collect();
    let response = stand.post("/echo/chat").bearer(&key).chunked(&chunks, &[]).send().expect_status(200);
    arrived_whole(&response, body);
    let response = stand.post("/echo/chat").bearer(&key).body(body).send().expect_status(200);
    arrived_whole(&response, body);
}

#[test]
fn a_route_that_cannot_tell_the_model_refuses_limited_keys_unless_it_is_told_to_forward() {
    let stand = stand();
    let key = limited(&stand);
    let data = stand.key().scope("models:read").scope("datasets:read").scope("jobs:read").dataset("d-1").create();
    for (path, model_limited, dataset_limited) in [
        ("/echo/list", 403, 200),
        ("/echo/filtered", 200, 200),
        ("/echo/authenticated", 200, 200),
        ("/echo/jobs", 200, 200),
        ("/echo/touching", 403, 200),
        ("/echo/datasets/d-1", 200, 200),
        ("/echo/datasets/d-2", 200, 403),
        ("/echo/both/A/d-1", 200, 200),
        ("/echo/both/A/d-2", 200, 403),
        ("/echo/both/B/d-1", 403, 200),
    ] {
        let response = stand.get(path).bearer(&key).send();
        assert_eq!(response.status(), model_limited, "limited to models: {path}: {}", response.text());
        let response = stand.get(path).bearer(&data).send();
        assert_eq!(response.status(), dataset_limited, "limited to datasets: {path}: {}", response.text());
    }
}

#[test]
fn the_organization_of_a_key_is_enforced_where_a_route_binds_one_and_told_everywhere() {
    let stand = stand();
    let key = stand.key().scope("models:read").organization("o-1").create();
    let free = stand.key().scope("models:read").create();
    let response = stand.get("/echo/organizations/o-1").bearer(&key).send().expect_status(200);
    assert_eq!(response.echoed_once("x-seeme-organization-id"), "o-1");
    stand.get("/echo/organizations/o-2").bearer(&key).send().expect_refusal(403, "organization_not_allowed");
    stand.get("/echo/organizations/O-1").bearer(&key).send().expect_refusal(403, "organization_not_allowed");
    stand.get("/echo/organizations/o-2").bearer(&free).send().expect_status(200);
    let response = stand.get("/echo/list").bearer(&key).send().expect_status(200);
    assert_eq!(response.echoed_once("x-seeme-organization-id"), "o-1");
}

#[test]
fn each_environment_has_its_own_backend_and_requests_without_a_key_go_to_live() {
    use super::support::Scripted;
    let named =
        |name: &str| Scripted::answering(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()));
    let (live, sandbox) = (named("live"), named("sandbox"));
    let upstreams = format!(
        "upstreams:\n  a: {{ endpoints: [\"http://{}\"] }}\n  b: {{ endpoints: [\"http://{}\"] }}\nenvironments: {{ live: a, test: b }}",
        live.address, sandbox.address
    );
    let stand = Stand::new()
        .section(&upstreams)
        .route("GET /x", "scope: models:read")
        .route("GET /public", "access: public")
        .route("GET /fixed", "scope: models:read, upstream: a")
        .start();
    let keys = [stand.key().create(), stand.key().environment("test").create()];
    assert!(keys[0].secret.starts_with("sm_live_") && keys[1].secret.starts_with("sm_test_"));
    let body = |path: &str, key: &Key| stand.get(path).bearer(key).send().expect_status(200).text();
    assert_eq!(body("/x", &keys[0]), "live");
    assert_eq!(body("/x", &keys[1]), "sandbox");
    assert_eq!(body("/fixed", &keys[1]), "live");
    assert_eq!(stand.get("/public").send().expect_status(200).text(), "live");
}

#[test]
fn bodies_under_inspection_have_a_common_limit_and_give_their_room_back() {
    let stand = Stand::new()
        .route("POST /echo/chat", "scope: models:read, resources: { model: body./model }")
        .section("limits: { inspect_bytes: 4KiB, inspect_total: 4KiB }")
        .start();
    let key = stand.key().model("A").create();
    let request = stand.post("/echo/chat").bearer(&key).body(format!("{{\"model\":\"A\"}}{}", " ".repeat(3000)));
    for _ in 0..5 {
        // One that has begun to send holds the room; the next finds none.
        let mut slow = stand.connect();
        let bytes = request.bytes();
        slow.send(&bytes[..bytes.len() - 10]);
        // Else one of the others could be there first, and this one would be told that no room is left.
        eventually("it is there", std::time::Duration::from_secs(5), || {
            stand.gateway.metric("gateway_requests_in_flight", "") == Some(1.0)
        });
        let refusal = wait_for("no room is left", std::time::Duration::from_secs(5), || {
            let response = request.send();
            (response.status() != 200).then_some(response)
        });
        let refusal = refusal.0.expect_status(503);
        assert!(refusal.number("retry-after") >= 1);
        slow.abort();
        eventually("the room is free again", std::time::Duration::from_secs(5), || request.send().status() == 200);
    }
}
