//! `listen.public.trusted_proxies`: whose word on the client is believed, and what becomes of the fields it is written in.

use std::time::Duration;

use serde_json::Value;

use super::support::{Layout, Request, Response, Stand, eventually};

/// Long enough for anything on loopback.
const SOON: Duration = Duration::from_secs(5);

fn layout() -> Layout {
    Stand::new().route("GET /echo/x", "access: public")
}

fn behind_a_proxy() -> Stand {
    layout().listener("trusted_proxies: [127.0.0.0/8, 10.0.0.0/8]").start()
}

fn ask(stand: &Stand, fields: &[(&str, &str)]) -> Response {
    let request = fields.iter().fold(stand.get("/echo/x"), |request, (name, value)| request.header(name, value));
    request.send().expect_status(200)
}

/// The client as the log has it.
fn logged(stand: &Stand, answer: &Response) -> String {
    let id = answer.expect_header("x-request-id").to_owned();
    let mut client = None;
    eventually("the line of the request", SOON, || {
        let log = stand.gateway.process.stdout();
        let line =
            log.lines().find(|line| line.contains(&id)).and_then(|line| serde_json::from_str::<Value>(line).ok());
        client = line.and_then(|line| Some(line["client"].as_str()?.to_owned()));
        client.is_some()
    });
    client.unwrap()
}

#[test]
fn of_a_trusted_proxy_the_client_is_the_last_hop_that_is_not_trusted() {
    let stand = behind_a_proxy();
    for (name, value, client) in [
        ("X-Forwarded-For", "203.0.113.9, 192.0.2.1, 10.0.0.2", "192.0.2.1"),
        ("X-Forwarded-For", "192.0.2.1:4711", "192.0.2.1"),
        ("X-Forwarded-For", "[2001:db8::7]:4711", "2001:db8::7"),
        ("X-Forwarded-For", "192.0.2.1, _hidden", "127.0.0.1"),
        ("X-Forwarded-For", "nonsense", "127.0.0.1"),
        ("Forwarded", "for=203.0.113.9, for=\"[2001:db8::7]:4711\";proto=https, for=10.0.0.2", "2001:db8::7"),
        ("Forwarded", "for=\"192.0.2.1", "127.0.0.1"),
        ("X_Forwarded_For", "192.0.2.1", "127.0.0.1"),
        ("X-Real-IP", "192.0.2.1", "127.0.0.1"),
    ] {
        let answer = ask(&stand, &[(name, value)]);
        assert_eq!(logged(&stand, &answer), client, "{name}: {value}");
    }
    // Each request for itself: one connection of a proxy carries those of many clients.
    let mut connection = stand.connect();
    for client in ["192.0.2.1", "192.0.2.2"] {
        let answer = stand.get("/echo/x").header("X-Forwarded-For", client).on(&mut connection).expect_status(200);
        assert_eq!(logged(&stand, &answer), client);
    }
    let answer = stand.get("/echo/x").on(&mut connection).expect_status(200);
    assert_eq!(logged(&stand, &answer), "127.0.0.1");
}

#[test]
fn the_fields_of_a_trusted_proxy_are_added_to_and_those_of_anybody_else_are_set_anew() {
    let fields = [
        ("X-Forwarded-For", "192.0.2.1"),
        ("X-Forwarded-For", "10.0.0.2"),
        ("Forwarded", "for=\"forged\""),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "api.example"),
        ("X-Forwarded-Port", "8443"),
        ("X_Forwarded_Port", "forged"),
        ("X-Real-IP", "forged"),
    ];
    let answer = ask(&behind_a_proxy(), &fields);
    for (name, value) in [
        ("x-forwarded-for", "192.0.2.1, 10.0.0.2, 127.0.0.1"),
        ("forwarded", "for=192.0.2.1;proto=https;host=\"api.example\""),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "api.example"),
        ("x-forwarded-port", "8443"),
    ] {
        assert_eq!(answer.echoed_once(name), value);
    }
    assert!(!answer.text().contains("forged"));

    let answer = ask(&behind_a_proxy(), &[("Forwarded", "for=192.0.2.1;proto=https")]);
    let hop = "for=127.0.0.1;proto=http;host=\"gateway.example\"";
    assert_eq!(answer.echoed_once("forwarded"), format!("for=192.0.2.1;proto=https, {hop}"));
    assert_eq!(answer.echoed_once("x-forwarded-for"), "192.0.2.1");
    assert_eq!(answer.echoed_once("x-forwarded-proto"), "https", "as the other family says");

    for elsewhere in [layout().start(), layout().listener("trusted_proxies: [10.0.0.0/8]").start()] {
        let answer = ask(&elsewhere, &fields);
        assert_eq!(answer.echoed_once("x-forwarded-for"), "127.0.0.1");
        assert_eq!(answer.echoed_once("forwarded"), hop);
        assert_eq!(answer.echoed_once("x-forwarded-proto"), "http");
        assert_eq!(answer.echoed_once("x-forwarded-host"), "gateway.example");
        assert!(answer.echoed("x-forwarded-port").is_empty() && !answer.text().contains("forged"));
        assert_eq!(logged(&elsewhere, &answer), "127.0.0.1");
    }
}

#[test]
fn a_trusted_proxy_may_ask_for_a_target_of_https_and_nobody_else_where_no_tls_is() {
    let ask = |stand: &Stand| stand.request("GET", "https://gateway.example/echo/x").send();
    ask(&behind_a_proxy()).expect_status(200);
    for elsewhere in [layout().start(), layout().listener("trusted_proxies: [10.0.0.0/8]").start()] {
        ask(&elsewhere).expect_refusal(400, "bad_request");
    }
}

#[test]
fn an_event_says_from_where_the_client_came_and_not_which_proxy_passed_it_on() {
    let stand = behind_a_proxy();
    let key = stand.key().scope("api-keys:write").scope("api-keys:read").create();
    let from = |request: Request| request.bearer(&key).header("X-Forwarded-For", "192.0.2.1, 10.0.0.2");
    let body = serde_json::json!({ "name": "x", "scopes": ["api-keys:read"] });
    let made = from(stand.post("/api/v1/api-keys")).json(&body).send().expect_status(201).json();
    let events = from(stand.get(&format!("/api/v1/api-keys/{}/events", made["id"].as_str().unwrap()))).send();
    assert!(events.text().contains("192.0.2.1") && !events.text().contains("10.0.0.2"), "{}", events.text());
}

#[test]
fn a_client_cannot_have_the_word_of_its_proxy_removed() {
    let stand = behind_a_proxy();
    let named = "close, X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host, Forwarded";
    let said = [("X-Forwarded-For", "192.0.2.1"), ("X-Forwarded-Proto", "https"), ("Connection", named)];
    let answer = ask(&stand, &said);
    assert_eq!(answer.echoed_once("x-forwarded-for"), "192.0.2.1, 127.0.0.1");
    assert_eq!(answer.echoed_once("x-forwarded-proto"), "https");
}
