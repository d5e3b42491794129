//! Contract 5: what the backend is told of a request, what it is not told, and what the client is told of its quota.

use super::support::{Key, Response, Scripted, Stand, minute_with};

const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn stand() -> Stand {
    Stand::new()
        .route("* /echo/{*rest}", "scope: models:read")
        .route("* /echo/forwarded/{*rest}", "scope: models:read, forward_authorization: true")
        .route("* /echo/public/{*rest}", "access: public")
        .start()
}

#[test]
fn the_backend_is_told_who_asks() {
    let stand = stand();
    let plain = stand.key().scope("models:read").scope("datasets:read").create();
    let response = stand.get("/echo/x").bearer(&plain).send().expect_status(200);
    assert_eq!(response.echoed_once("x-seeme-key-id"), plain.id);
    assert_eq!(response.echoed_once("x-seeme-account-id"), plain.account);
    assert_eq!(response.echoed_once("x-seeme-environment"), "live");
    assert_eq!(response.echoed_once("x-seeme-plan"), "roomy");
    let scopes = response.echoed_once("x-seeme-scopes");
    assert!(scopes.contains("models:read") && scopes.contains("datasets:read"), "{scopes}");
    for absent in ["x-seeme-organization-id", "x-seeme-model-ids", "x-seeme-dataset-ids"] {
        assert!(response.echoed(absent).is_empty(), "{absent}");
    }

    let limited = stand.key().scope("models:read").dataset("d-1").organization("o-1").environment("test").create();
    let response = stand.get("/echo/x").bearer(&limited).send().expect_status(200);
    assert_eq!(response.echoed_once("x-seeme-dataset-ids"), "d-1");
    assert_eq!(response.echoed_once("x-seeme-organization-id"), "o-1");
    assert_eq!(response.echoed_once("x-seeme-environment"), "test");
}

#[test]
fn the_models_of_a_limited_key_are_told_where_it_may_pass() {
    let stand = Stand::new().route("GET /echo/models", "scope: models:read, limited_keys: forward").start();
    let key = stand.key().model("m-1").model("m-2").create();
    let models = stand.get("/echo/models").bearer(&key).send().expect_status(200).echoed_once("x-seeme-model-ids");
    let ids: Vec<&str> = models.split(',').map(str::trim).collect();
    assert_eq!(ids, ["m-1", "m-2"]);
}

#[test]
fn what_a_client_claims_about_itself_never_arrives() {
    let stand = stand();
    let key = stand.key().create();
    let forged = [
        "X-SeeMe-Key-Id",
        "x-seeme-account-id",
        "X-SEEME-ORGANIZATION-ID",
        "X-SeeMe-Plan",
        "X-SeeMe-Scopes",
        "X-SeeMe-Model-Ids",
        "X-SeeMe-Dataset-Ids",
        "X-SeeMe-Anything",
        "X_SeeMe_Key_Id",
        "x_seeme_scopes",
        "x-seeme_plan",
        "X-RateLimit-Limit",
        "X-RateLimit-Remaining",
        "X_RateLimit_Reset",
        "X-Forwarded-For",
        "X-Forwarded-Proto",
        "X-Forwarded-Host",
        "X-Forwarded-Port",
        "X_Forwarded_For",
        "Forwarded",
        "X-Real-IP",
        "X_Real_IP",
        "X-HTTP-Method-Override",
        "X-Method-Override",
        "X-HTTP-Method",
        "X_HTTP_Method_Override",
        "X-Original-URL",
        "X-Rewrite-URL",
        "X_Original_URL",
        "X-Request-Id",
    ];
    for target in ["/echo/x", "/echo/public/x"] {
        for name in forged {
            let response = stand.get(target).bearer(&key).header(name, "forged-value").send().expect_status(200);
            assert!(!response.text().contains("forged-value"), "{name}: {}", response.text());
        }
    }
}

#[test]
fn naming_our_fields_in_connection_removes_none_of_them() {
    let stand = stand();
    let key = stand.key().create();
    let named = "close, X-SeeMe-Key-Id, X-SeeMe-Account-Id, X-Request-Id, Via, Forwarded, X-Forwarded-For, traceparent, Host, \
                 X-RateLimit-Remaining, X-Private";
    let request = stand.get("/echo/x").bearer(&key).header("Connection", named).header("X-Private", "hop");
    let response = request.send().expect_status(200);
    assert_eq!(response.echoed_once("x-seeme-key-id"), key.id);
    assert_eq!(response.echoed_once("x-seeme-account-id"), key.account);
    for kept in ["x-request-id", "via", "forwarded", "x-forwarded-for", "traceparent", "host", "x-ratelimit-remaining"]
    {
        assert_eq!(response.echoed(kept).len(), 1, "{kept}");
    }
    assert!(response.echoed("x-private").is_empty() && response.echoed("connection").is_empty());
}

#[test]
fn fields_of_one_connection_go_no_further() {
    let stand = stand();
    let key = stand.key().create();
    let response = stand
        .get("/echo/x")
        .bearer(&key)
        .header("Keep-Alive", "timeout=5")
        .header("Proxy-Connection", "keep-alive")
        .header("Upgrade", "websocket")
        .header("Connection", "upgrade")
        .header("TE", "gzip, trailers")
        .send()
        .expect_status(200);
    for gone in ["keep-alive", "proxy-connection", "upgrade"] {
        assert!(response.echoed(gone).is_empty(), "{gone}: {}", response.text());
    }
    assert_eq!(response.echoed_once("te"), "trailers");
    assert_eq!(response.echoed_once("connection"), "te", "nobody behind the backend is to get it");
    let plain = stand.get("/echo/x").bearer(&key).header("Connection", "te").header("TE", "gzip").send();
    assert!(plain.echoed("te").is_empty() && plain.echoed("connection").is_empty(), "{}", plain.text());
}

#[test]
fn no_trailer_can_add_an_identity() {
    let stand = stand();
    let key = stand.key().create();
    let trailers =
        [("X-SeeMe-Account-Id", "forged"), ("X_SeeMe_Key_Id", "forged"), ("Authorization", "forged"), ("X-Sum", "1")];
    let names = "X-SeeMe-Account-Id, X_SeeMe_Key_Id, Authorization, X-Sum";
    let request = stand.post("/echo/x").bearer(&key).header("Trailer", names).chunked(&[b"hello"], &trailers);
    let response = request.send().expect_status(200);
    let echoed = response.json();
    assert_eq!(echoed["body_bytes"], 5);
    assert_eq!(echoed["trailers"]["x-sum"][0], "1", "{echoed}");
    assert!(!echoed["trailers"].to_string().contains("forged"), "{echoed}");
}

#[test]
fn authorization_stops_at_the_gateway_that_checked_it_unless_told_otherwise() {
    let stand = stand();
    let key = stand.key().create();
    let bearer = format!("Bearer {}", key.secret);
    assert!(stand.get("/echo/x").bearer(&key).send().expect_status(200).echoed("authorization").is_empty());
    let kept = stand.get("/echo/forwarded/x").bearer(&key).send().expect_status(200);
    assert_eq!(kept.echoed_once("authorization"), bearer);

    // On a public route nothing was checked: what is no key of ours passes, what looks like one does not.
    let at = |value: &str| {
        stand.get("/echo/public/x").header("Authorization", value).send().expect_status(200).echoed("authorization")
    };
    assert_eq!(at("Bearer session-token"), ["Bearer session-token"]);
    assert_eq!(at("Basic dTpw"), ["Basic dTpw"]);
    assert!(at(&bearer).is_empty());
    assert!(at("bearer SM_LIVE_whatever").is_empty());
    assert!(at("Token sm_test_0123456789ab").is_empty());
}

#[test]
fn a_public_route_tells_no_identity_even_with_a_good_key() {
    let stand = stand();
    let key = stand.key().create();
    let response = stand.get("/echo/public/x").bearer(&key).send().expect_status(200);
    let headers = response.json()["headers"].as_object().unwrap().clone();
    let identity: Vec<_> =
        headers.keys().filter(|name| name.starts_with("x-seeme-") || name.contains("ratelimit")).collect();
    assert!(identity.is_empty(), "{identity:?}");
    assert_eq!(response.header("x-ratelimit-limit"), None);
}

#[test]
fn the_way_a_request_came_is_told() {
    let stand = stand();
    let key = stand.key().create();
    let request = stand.get("/echo/x").bearer(&key).header("Host", "api.example:8443").header("Via", "1.0 proxy");
    let response = request.send().expect_status(200);
    assert_eq!(response.echoed_once("host"), "api.example:8443");
    assert_eq!(response.echoed_once("x-forwarded-for"), "127.0.0.1");
    assert_eq!(response.echoed_once("x-forwarded-proto"), "http");
    assert_eq!(response.echoed_once("x-forwarded-host"), "api.example:8443");
    assert_eq!(response.echoed_once("forwarded"), "for=127.0.0.1;proto=http;host=\"api.example:8443\"");
    let via = response.echoed("via").join(", ");
    assert_eq!(via, "1.0 proxy, 1.1 seeme-gateway");
    assert_eq!(response.echoed_once("x-request-id"), response.expect_header("x-request-id"));
}

#[test]
fn a_trace_goes_on_with_this_request_as_the_parent_and_a_malformed_one_begins_anew() {
    let stand = stand();
    let key = stand.key().create();
    let traced = |fields: &[&str]| {
        let request = fields.iter().fold(stand.get("/echo/x").bearer(&key), |r, field| r.header("traceparent", field));
        request.send().expect_status(200).echoed_once("traceparent")
    };
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parts = |text: &str| text.split('-').map(str::to_owned).collect::<Vec<_>>();
    let on = parts(&traced(&[&format!("00-{trace}-00f067aa0ba902b7-01")]));
    assert_eq!((on[0].as_str(), on[1].as_str(), on.len()), ("00", trace, 4));
    assert!(on[2] != "00f067aa0ba902b7" && on[2].len() == 16);
    for bad in [
        "",
        "00-xyz-00f067aa0ba902b7-01",
        &format!("ff-{trace}-00f067aa0ba902b7-01"),
        &format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
    ] {
        let fresh = parts(&traced(&[bad]));
        assert!(fresh[1] != trace && fresh[1].len() == 32 && fresh[1].bytes().any(|b| b != b'0'), "{bad}: {fresh:?}");
    }
    let good = format!("00-{trace}-00f067aa0ba902b7-01");
    assert!(parts(&traced(&[&good, &good]))[1] != trace, "two of them are none");
}

/// Limit, remaining and seconds left of both windows, as the two structured fields tell them.
fn windows(response: &Response) -> [(u64, u64, u64); 2] {
    let policy = response.expect_header("ratelimit-policy").to_owned();
    let state = response.expect_header("ratelimit").to_owned();
    let number = |text: &str, name: &str| -> u64 {
        let (_, rest) = text.split_once(&format!(";{name}=")).unwrap_or_else(|| panic!("no {name} in {text}"));
        rest.split([';', ',']).next().unwrap().parse().unwrap()
    };
    let member = |text: &str, name: &str| {
        text.split(", ").find(|item| item.starts_with(&format!("\"{name}\""))).unwrap().to_owned()
    };
    [("minute", 60), ("day", 86_400)].map(|(name, seconds)| {
        assert_eq!(number(&member(&policy, name), "w"), seconds);
        (number(&member(&policy, name), "q"), number(&member(&state, name), "r"), number(&member(&state, name), "t"))
    })
}

#[test]
fn both_families_of_rate_limit_fields_agree() {
    let stand = stand();
    let key = stand.key().plan("free").create();
    let minute = minute_with(20);
    let response = stand.get("/echo/x").bearer(&key).send().expect_status(200);
    let [(minute_limit, minute_left, minute_seconds), (day_limit, day_left, day_seconds)] = windows(&response);
    assert_eq!((minute_limit, minute_left), (60, 59));
    assert_eq!((day_limit, day_left), (1000, 999));
    assert!((1..=60).contains(&minute_seconds) && (1..=86_400).contains(&day_seconds));
    // The window with less left is the minute.
    assert_eq!(response.number("x-ratelimit-limit"), 60);
    assert_eq!(response.number("x-ratelimit-remaining"), 59);
    assert_eq!(response.number("x-ratelimit-reset"), (minute + 1) * 60);
    assert_eq!(response.header("retry-after"), None);
    // The backend is told the same.
    assert_eq!(response.echoed_once("x-ratelimit-limit"), "60");
    assert_eq!(response.echoed_once("x-ratelimit-remaining"), "59");
}

#[test]
fn the_window_with_less_left_is_shown_also_when_it_is_the_day() {
    let stand = stand();
    let account = stand.new_account();
    let limits = ["--requests-per-minute", "100", "--requests-per-day", "10"];
    stand.cli(&[&["accounts", "set", &account, "--plan", "enterprise"], &limits[..]].concat()).expect_success();
    let key = stand.key().account(&account).create();
    let minute = minute_with(5);
    let response = stand.get("/echo/x").bearer(&key).send().expect_status(200);
    assert_eq!((response.number("x-ratelimit-limit"), response.number("x-ratelimit-remaining")), (10, 9));
    assert_eq!(response.number("x-ratelimit-reset"), (minute / 1440 + 1) * 86_400);
    assert_eq!(response.echoed_once("x-seeme-plan"), "enterprise");
}

#[test]
fn the_backends_own_rate_limit_fields_and_request_id_are_replaced() {
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-RateLimit-Limit: 1\r\nX-RateLimit-Remaining: 0\r\nX-RateLimit-Reset: 1\r\n\
                  RateLimit: theirs\r\nRateLimit-Policy: theirs\r\nX-Request-Id: theirs\r\nX-Own: kept\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\
                  Keep-Alive: timeout=5\r\n\r\nok";
    let upstream = Scripted::answering(answer);
    let stand = Stand::new().upstream(upstream.address).start();
    let key = stand.key().create();
    let response = stand.get("/echo/x").bearer(&key).send().expect_status(200);
    assert!(response.number("x-ratelimit-limit") > 1 && response.number("x-ratelimit-reset") > 1);
    assert!(!response.expect_header("ratelimit").contains("theirs"));
    assert!(!response.expect_header("ratelimit-policy").contains("theirs"));
    assert_ne!(response.expect_header("x-request-id"), "theirs");
    assert_eq!(response.expect_header("x-own"), "kept");
    assert_eq!((response.header("x-hop"), response.header("keep-alive")), (None, None));
}

#[test]
fn octets_of_path_and_query_are_forwarded_as_they_came() {
    let upstream = Scripted::answering(HELLO);
    let stand = Stand::new().upstream(upstream.address).start();
    let key = stand.key().create();
    let target = "/echo/%61%20b;x=1/~a-b_c.d/%E2%82%AC?q=a%2Fb&x=%zz&empty=&+=|^";
    stand.get(target).bearer(&key).send().expect_status(200);
    stand.get(&format!("http://gateway.example{target}")).bearer(&key).send().expect_status(200);
    for received in upstream.requests() {
        assert!(received.head.starts_with(&format!("GET {target} HTTP/1.1\r\n")), "{}", received.head);
    }
}

#[test]
fn fields_given_twice_arrive_twice_and_in_order() {
    let upstream = Scripted::answering(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nSet-Cookie: a=1\r\nX-Between: x\r\nSet-Cookie: b=2\r\n\r\nok",
    );
    let stand = Stand::new().upstream(upstream.address).start();
    let key: Key = stand.key().create();
    let request = stand.get("/echo/x").bearer(&key).header("X-List", "one").header("X-List", "two");
    let response = request.send().expect_status(200);
    assert_eq!(response.head.all("set-cookie"), ["a=1", "b=2"]);
    assert_eq!(upstream.requests()[0].all("x-list"), ["one", "two"]);
}

#[test]
fn an_admitted_request_is_told_its_quota_also_when_the_backend_fails() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let stand = Stand::new().upstream(closed).start();
    let key = stand.key().plan("free").create();
    let response = stand.get("/echo/x").bearer(&key).send().expect_refusal(502, "upstream_unreachable");
    assert_eq!(response.number("x-ratelimit-limit"), 60);
    assert!(response.expect_header("ratelimit-policy").contains("q=60;w=60"));
    assert_eq!(response.header("retry-after"), None);
    // What was refused before its quota was looked at is told none.
    assert_eq!(stand.get("/nowhere").bearer(&key).send().header("x-ratelimit-limit"), None);
}
