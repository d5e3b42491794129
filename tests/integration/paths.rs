//! Which request targets are accepted, and which route they find.

use super::support::{Scripted, Stand};

const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[test]
fn what_two_parties_could_read_differently_is_refused_and_never_forwarded() {
    let upstream = Scripted::answering(HELLO);
    let stand = Stand::new().upstream(upstream.address).route("* /{*rest}", "access: public").start();
    for bad in [
        "/a/./b",
        "/a/../b",
        "/..",
        "/.",
        "/a/..",
        "/a/.",
        "/a/%2e/b",
        "/a/%2E%2e/b",
        "/a/.%2e",
        "/a/..;/b",
        "/a/.;x=1/b",
        "/a/%2e%2e;x/b",
        "/a//b",
        "//a",
        "//",
        "/a/;x/b",
        "/a/;x",
        "/a\\b",
        "/a%5Cb",
        "/a%5cb",
        "/a%2Fb",
        "/a%2fb",
        "/..%2f",
        "/%2e%2e%2f",
        "/a%00b",
        "/a%0ab",
        "/a%0d%0aX:%20y",
        "/a%7fb",
        "/a%c2%85b",
        "/a%",
        "/a%4",
        "/a%zz",
        "/a%4g",
        "/a%ff",
        "/a%c0%ae",
        "/a%ed%a0%80",
    ] {
        let response = stand.get(bad).send();
        assert_eq!(response.status(), 400, "{bad}: {}", response.text());
        assert_eq!(response.code(), "bad_request", "{bad}: {}", response.text());
    }
    assert_eq!(upstream.requests().len(), 0);
}

#[test]
fn a_fragment_in_the_target_is_refused() {
    let upstream = Scripted::answering(HELLO);
    let stand = Stand::new().upstream(upstream.address).route("* /{*rest}", "access: public").start();
    for target in ["/a#b", "/a?b#c", "/#"] {
        stand.get(target).send().expect_refusal(400, "bad_request");
    }
    assert_eq!(upstream.requests().len(), 0);
}

#[test]
fn unusual_but_unambiguous_paths_pass_with_their_octets() {
    let upstream = Scripted::answering(HELLO);
    let stand = Stand::new().upstream(upstream.address).route("* /{*rest}", "access: public").start();
    let good = [
        "/",
        "/a",
        "/a/",
        "/a/b/",
        "/.a",
        "/...",
        "/a..b",
        "/a;x=1",
        "/a;..",
        "/%20",
        "/a%3fb",
        "/a%23b",
        "/%e2%82%ac",
        "/~a",
        "/a:b@c",
        "/a,b;c=d",
        "/%252e%252e/",
        "/a?b=../..//",
        "/a?%",
        "/a?",
    ];
    let mut connection = stand.connect();
    for path in good {
        let response = stand.get(path).on(&mut connection);
        assert_eq!(response.status(), 200, "{path}: {}", response.text());
    }
    let targets: Vec<String> =
        upstream.requests().iter().map(|request| request.head.split(' ').nth(1).unwrap().to_owned()).collect();
    assert_eq!(targets, good);
}

#[test]
fn the_leftmost_literal_wins_then_the_name_then_the_tail_then_the_method() {
    let stand = Stand::new()
        .route("* /echo/{*rest}", "scope: a:tail")
        .route("GET /echo/{name}", "scope: a:name")
        .route("* /echo/literal", "scope: a:literal")
        .route("GET /echo/{name}/b", "scope: a:named-b")
        .route("GET /echo/a/{name}", "scope: a:a-named")
        .route("POST /echo/{name}", "scope: a:post")
        .route("HEAD /echo/head", "scope: a:head")
        .route("GET /echo/head", "scope: a:get")
        .start();
    let key = stand.key().scope("b:none").create();
    for (method, path, needed) in [
        ("GET", "/echo/x", "a:name"),
        ("HEAD", "/echo/x", "a:name"),
        ("POST", "/echo/x", "a:post"),
        ("PUT", "/echo/x", "a:tail"),
        ("GET", "/echo/", "a:tail"),
        ("GET", "/echo/x/", "a:tail"),
        ("GET", "/echo/x/y/z", "a:tail"),
        ("GET", "/echo/literal", "a:literal"),
        ("GET", "/echo/%6citeral", "a:literal"),
        ("GET", "/echo/Literal", "a:name"),
        ("GET", "/echo/a/b", "a:a-named"),
        ("GET", "/echo/c/b", "a:named-b"),
        ("GET", "/echo/head", "a:get"),
        ("HEAD", "/echo/head", "a:head"),
    ] {
        let response = stand.request(method, path).bearer(&key).send();
        assert_eq!(response.head.reason, format!("Missing scope {needed}"), "{method} {path}");
    }
    stand.get("/echo").bearer(&key).send().expect_refusal(404, "route_not_found");
}

#[test]
fn a_trailing_slash_is_a_path_of_its_own_and_a_group_has_none() {
    let stand =
        Stand::new().route("GET /echo/exact", "access: public").route("GET /echo/slash/", "access: public").start();
    stand.get("/echo/exact").send().expect_status(200);
    stand.get("/echo/exact/").send().expect_refusal(404, "route_not_found");
    stand.get("/echo/slash/").send().expect_status(200);
    stand.get("/echo/slash").send().expect_refusal(404, "route_not_found");
}

#[test]
fn the_allow_field_lists_what_the_path_takes() {
    let stand = Stand::new()
        .route("GET /a/{id}", "access: public")
        .route("POST|DELETE /a/b", "access: public")
        .route("PATCH /c", "access: public")
        .start();
    let allow = |method: &str, path: &str| {
        let response = stand.request(method, path).send().expect_refusal(405, "method_not_allowed");
        response.expect_header("allow").to_owned()
    };
    assert_eq!(allow("PUT", "/a/x"), "GET, HEAD");
    assert_eq!(allow("PUT", "/a/b"), "DELETE, GET, HEAD, POST");
    assert_eq!(allow("GET", "/c"), "PATCH");
    assert_eq!(allow("TRACE", "/c"), "PATCH");
    assert_eq!(allow("BREW", "/c"), "PATCH");
}

#[test]
fn the_star_never_includes_connect_and_trace() {
    let stand = Stand::new().route("* /echo/{*rest}", "access: public").start();
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "PROPFIND"] {
        assert_eq!(stand.request(method, "/echo/x").send().status(), 200, "{method}");
    }
    stand.request("TRACE", "/echo/x").send().expect_refusal(405, "method_not_allowed");
    assert!(matches!(stand.request("CONNECT", "/echo/x").send().status(), 400 | 405));
}

#[test]
fn management_paths_win_over_routes() {
    let stand = Stand::new().route("* /{*rest}", "access: public").start();
    stand.get("/api/v1/api-keys").send().expect_refusal(401, "missing_key");
    stand.get("/api/v1/me/apikeys").send().expect_refusal(401, "missing_key");
    stand.get("/api/v1/%61pi-keys").send().expect_refusal(401, "missing_key");
    stand.request("PUT", "/api/v1/api-keys").send().expect_refusal(405, "method_not_allowed");
    stand.get("/api/v1/api-keys/a/b/c").send().expect_refusal(404, "route_not_found");
    // Another path: the catch-all route serves it, and the backend does not know it.
    assert_eq!(stand.get("/api/v1/api-keysx").send().json()["code"].as_str(), None);
}
