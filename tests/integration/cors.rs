//! Web pages of other origins: what a browser is told before and with every answer, refusals included.

use std::time::Duration;

use super::support::{Request, Response, Scripted, Stand, eventually, minute_with};

const APP: &str = "https://app.seeme.ai";
const CORS: &str = "cors: { allowed_origins: [\"https://app.seeme.ai\", \"http://localhost:3000\"] }";
const EXPOSED: &str = "X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset, RateLimit, RateLimit-Policy, Retry-After, \
                       X-Request-Id";

fn stand() -> Stand {
    Stand::new().section(CORS).start()
}

fn preflight(stand: &Stand, target: &str, origin: &str) -> Request {
    stand
        .request("OPTIONS", target)
        .header("Origin", origin)
        .header("Access-Control-Request-Method", "DELETE")
        .header("Access-Control-Request-Headers", "authorization,content-type")
}

/// The names of all CORS fields of an answer.
fn cors_fields(response: &Response) -> Vec<String> {
    let names = response.head.headers.iter().map(|(name, _)| name.to_lowercase());
    names.filter(|name| name.starts_with("access-control-")).collect()
}

fn varies_by_origin(response: &Response) -> bool {
    response.head.all("vary").iter().flat_map(|list| list.split(',')).any(|name| name.trim() == "Origin")
}

/// Told to a page of an allowed origin.
#[track_caller]
fn expect_shared(response: &Response) {
    assert_eq!(response.expect_header("access-control-allow-origin"), APP);
    assert_eq!(response.expect_header("access-control-expose-headers"), EXPOSED);
    assert_eq!(response.header("access-control-allow-credentials"), None);
    assert!(varies_by_origin(response), "{response:?}");
}

#[test]
fn a_preflight_of_an_allowed_origin_is_answered_without_a_key_and_without_the_backend() {
    let backend = Scripted::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let stand = Stand::new().section(CORS).upstream(backend.address).start();
    let mut connection = stand.connect();
    for target in ["/echo/x", "/public/x", "/nowhere", "/api/v1/api-keys", "/api/v1/me/apikeys/k-1"] {
        let answer = preflight(&stand, target, APP).on(&mut connection).expect_status(204);
        assert_eq!(answer.expect_header("access-control-allow-origin"), APP);
        assert_eq!(
            answer.expect_header("access-control-allow-methods"),
            "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"
        );
        assert_eq!(
            answer.expect_header("access-control-allow-headers"),
            "Authorization, Content-Type, Idempotency-Key, If-Match"
        );
        assert!(answer.number("access-control-max-age") > 0);
        let varied = answer.head.all("vary").join(", ");
        assert_eq!(varied, "Origin, Access-Control-Request-Method, Access-Control-Request-Headers");
        assert!(!answer.expect_header("x-request-id").is_empty());
        for absent in ["content-length", "transfer-encoding", "access-control-allow-credentials", "connection"] {
            assert_eq!(answer.header(absent), None, "{absent}");
        }
    }
    assert!(backend.requests().is_empty(), "a preflight was forwarded");
}

#[test]
fn what_is_malformed_is_refused_before_a_preflight_is_answered() {
    let stand = stand();
    let refusal = preflight(&stand, "/echo/../x", APP).send().expect_refusal(400, "bad_request");
    expect_shared(&refusal);
    preflight(&stand, &format!("/echo/{}", "x".repeat(20_000)), APP).send().expect_refusal(414, "uri_too_long");
}

#[test]
fn a_preflight_with_a_body_does_not_leave_it_to_the_next_request() {
    let stand = stand();
    let mut connection = stand.connect();
    preflight(&stand, "/echo/x", APP).body("GET /smuggled HTTP/1.1\r\n\r\n").on(&mut connection).expect_status(204);
    stand.get("/nowhere").on(&mut connection).expect_refusal(404, "route_not_found");
}

#[test]
fn a_preflight_of_another_origin_goes_on_as_any_request_and_is_told_nothing() {
    let stand = Stand::new()
        .section(CORS)
        .route("GET /echo/{*rest}", "scope: models:read")
        .route("* /public/{*rest}", "access: public")
        .route("* /any", "access: authenticated")
        .start();
    for origin in ["https://evil.example", "null", "https://app.seeme.ai.evil.example", "HTTPS://APP.SEEME.AI"] {
        for (target, status) in
            [("/nowhere", 404), ("/echo/x", 405), ("/any", 401), ("/public/x", 404), ("/api/v1/api-keys", 405)]
        {
            let answer = preflight(&stand, target, origin).send();
            assert_eq!(answer.status(), status, "{target}: {}", answer.text());
            assert_eq!(cors_fields(&answer), Vec::<String>::new(), "{origin} {target}");
            assert!(varies_by_origin(&answer), "{answer:?}");
        }
    }
}

#[test]
fn every_answer_names_the_allowed_origin_refusals_included() {
    let stand = stand();
    let key = stand.key().plan("free").scope("models:read").create();
    let other = stand.key().scope("other:read").create();
    let from_app = |request: Request| request.header("Origin", APP).send();
    minute_with(15);
    let answer = from_app(stand.get("/echo/x").bearer(&key)).expect_status(200);
    expect_shared(&answer);
    assert_eq!(answer.number("x-ratelimit-remaining"), 59);
    expect_shared(&from_app(stand.get("/api/v1/api-keys/current").bearer(&key)).expect_status(200));
    expect_shared(&from_app(stand.get("/nowhere")).expect_refusal(404, "route_not_found"));
    expect_shared(&from_app(stand.request("DELETE", "/any")).expect_refusal(405, "method_not_allowed"));
    expect_shared(&from_app(stand.get("/echo/x")).expect_refusal(401, "missing_key"));
    expect_shared(&from_app(stand.get("/echo/x").bearer(&other)).expect_refusal(403, "insufficient_scope"));
    expect_shared(&from_app(stand.get("/api/v1/api-keys").bearer(&other)).expect_refusal(403, "insufficient_scope"));
    let mut connection = stand.connect();
    let request = stand.get("/echo/x").bearer(&key).header("Origin", APP);
    let refused = (0..61).map(|_| request.on(&mut connection)).find(|answer| answer.status() == 429).unwrap();
    expect_shared(&refused);
    assert!(refused.number("retry-after") > 0);
}

#[test]
fn a_page_of_another_origin_and_no_page_at_all_are_told_nothing_but_that_it_depends() {
    let stand = stand();
    let key = stand.key().create();
    for request in [stand.get("/echo/x").bearer(&key), stand.get("/nowhere")] {
        for request in [request.clone(), request.header("Origin", "https://evil.example")] {
            let answer = request.send();
            assert_eq!(cors_fields(&answer), Vec::<String>::new());
            assert!(varies_by_origin(&answer), "{answer:?}");
        }
    }
}

#[test]
fn the_backends_own_fields_are_replaced_and_its_vary_stays() {
    let backend = Scripted::answering(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nAccess-Control-Allow-Origin: *\r\nVary: Accept-Encoding\r\n\
         Access-Control-Allow-Credentials: true\r\nAccess-Control-Expose-Headers: X-Secret\r\n\r\nok",
    );
    let stand = Stand::new().section(CORS).upstream(backend.address).start();
    let key = stand.key().create();
    for request in [stand.get("/public/x"), stand.get("/echo/x").bearer(&key)] {
        let answer = request.clone().header("Origin", APP).send().expect_status(200);
        expect_shared(&answer);
        assert_eq!(answer.head.all("vary"), ["Accept-Encoding", "Origin"]);
        let answer = request.header("Origin", "https://evil.example").send().expect_status(200);
        assert_eq!(cors_fields(&answer), Vec::<String>::new());
        assert_eq!(answer.text(), "ok");
    }
}

#[test]
fn without_cors_the_backend_answers_for_itself() {
    let backend = Scripted::answering(
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nAccess-Control-Allow-Origin: https://theirs.example\r\n\r\n",
    );
    let stand = Stand::new().upstream(backend.address).start();
    let answer = preflight(&stand, "/public/x", APP).send().expect_status(200);
    assert_eq!(answer.expect_header("access-control-allow-origin"), "https://theirs.example");
    assert_eq!(answer.header("vary"), None);
    let refused = preflight(&stand, "/echo/x", APP).send().expect_refusal(401, "missing_key");
    assert_eq!(cors_fields(&refused), Vec::<String>::new());
}

#[test]
fn a_preflight_costs_nothing_and_is_counted_for_a_key_that_comes_with_it() {
    let stand = stand();
    let key = stand.key().plan("free").create();
    minute_with(15);
    for _ in 0..5 {
        preflight(&stand, "/echo/x", APP).bearer(&key).send().expect_status(204);
    }
    let answer = stand.get("/echo/x").bearer(&key).header("Origin", APP).send().expect_status(200);
    assert_eq!(answer.number("x-ratelimit-remaining"), 59);
    eventually("all are counted", Duration::from_secs(5), || stand.usage(&key)["total_requests"] == 6);
}
