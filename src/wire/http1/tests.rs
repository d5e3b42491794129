//! What the gate lets pass by itself: hyper behind it refuses some of the same, so only here does a hole in the gate show.

use std::sync::Arc;

use http::Method;

use super::{Answers, Exchange, Gate, Messages, RequestLimits, Requests};

/// What passes of these octets, read at once; none when nothing will any more.
fn passed<M: Messages>(gate: &mut Gate<M>, octets: &str) -> (String, bool) {
    let count = gate.sift(octets.as_bytes());
    let mut out = octets.as_bytes()[..count].to_vec();
    gate.hand_over(|ready| {
        out.extend_from_slice(ready);
        ready.len()
    });
    (String::from_utf8(out).unwrap(), gate.is_shut())
}

fn requests() -> Gate<Requests> {
    Gate::new(Requests::new(RequestLimits { head: 8192, fields: 100, target: 1024 }))
}

fn answers(upgrade: bool) -> (Gate<Answers>, Arc<Exchange>) {
    let exchange = Arc::new(Exchange::default());
    exchange.begin(&Method::GET, upgrade);
    exchange.wrote();
    (Gate::new(Answers::new(exchange.clone())), exchange)
}

#[test]
fn a_request_that_came_whole_passes_where_it_was_read_and_a_part_of_a_head_waits() {
    let whole = "GET /x HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut gate = requests();
    assert_eq!(gate.sift(whole.as_bytes()), whole.len());
    assert!(gate.is_between());
    let (first, rest) = whole.split_at(20);
    assert_eq!(passed(&mut gate, first), (String::new(), false));
    assert!(gate.holds_head() && !gate.is_between());
    assert_eq!(passed(&mut gate, rest), (whole.to_owned(), false));
    assert!(gate.is_between());
}

#[test]
fn in_the_place_of_what_is_refused_stands_a_head_that_no_client_can_send() {
    let good = "GET /x HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut gate = requests();
    let (out, shut) = passed(&mut gate, &format!("{good}PUT /y?z HTTP/1.1\r\nHost: b c\r\n\r\n{good}"));
    assert_eq!(out, format!("{good}GET / HTTP/1.1\r\n\r\n"));
    assert!(shut && gate.take_refused().is_some_and(|refused| refused.path == "/y"));
    let mut gate = requests();
    assert_eq!(passed(&mut gate, "HEAD /y HTTP/1.1\r\n\r\n"), ("HEAD / HTTP/1.1\r\n\r\n".to_owned(), true));
    assert_eq!(
        passed(&mut requests(), "GET / HTTP/1.1\r\n\r\n").0,
        "GET / HTTP/1.1\r\n\r\n",
        "the stand-in itself is one"
    );
}

#[test]
fn a_chunk_passes_up_to_the_octet_that_is_wrong() {
    let head = "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (good, bad) in [
        ("", "+5\r\nhello"),
        ("", "-5\r\nhello"),
        ("", " 5\r\nhello"),
        ("0", "x5\r\nhello"),
        ("5 ", "\r\nhello"),
        ("5", "\nhello"),
        ("5\r\nhello", "\n0\r\n\r\n"),
        ("5;a=\"b", "\r\n\"\r\nhello"),
        ("8", "0000000000000000\r\n"),
        ("0\r\nX", " : y\r\n\r\n"),
        ("0\r\nX: y\r\n", " z\r\n\r\n"),
    ] {
        let mut gate = requests();
        assert_eq!(passed(&mut gate, head).0, head);
        let (out, shut) = passed(&mut gate, &format!("{good}{bad}"));
        assert!(shut && gate.is_broken(), "{bad:?}");
        assert!(out.starts_with(good) && out.len() < good.len() + bad.len(), "{out:?} of {good:?} {bad:?}");
    }
}

#[test]
fn one_switch_of_protocols_passes_where_it_was_asked_for_and_what_follows_is_no_http() {
    let switch = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n\u{1}\u{2}no HTTP\n";
    let (mut gate, exchange) = answers(true);
    assert_eq!(passed(&mut gate, switch), (switch.to_owned(), false));
    assert!(!exchange.is_spoilt());
    let (mut gate, exchange) = answers(false);
    assert_eq!(passed(&mut gate, switch), (String::new(), true));
    assert!(exchange.is_spoilt());
    // Another answer instead of the switch is one like any other.
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let (mut gate, _) = answers(true);
    assert_eq!(passed(&mut gate, &format!("{answer}x")), (answer.to_owned(), true));
}

#[test]
fn an_answer_passes_only_after_something_of_its_request_was_written() {
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let exchange = Arc::new(Exchange::default());
    exchange.begin(&Method::GET, false);
    assert_eq!(passed(&mut Gate::new(Answers::new(exchange.clone())), answer), (String::new(), true));
    let (mut gate, exchange) = answers(false);
    assert_eq!(passed(&mut gate, answer), (answer.to_owned(), false));
    exchange.begin(&Method::HEAD, false);
    exchange.wrote();
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n";
    assert_eq!(passed(&mut gate, &format!("{head}ok")), (head.to_owned(), true));
    assert!(exchange.is_spoilt());
}

#[test]
fn what_follows_a_request_for_an_upgrade_waits_until_that_is_answered() {
    let asks = "GET /x HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\n\r\n";
    let next = "GET /y HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut gate = requests();
    assert_eq!(passed(&mut gate, &format!("{asks}{next}")), (asks.to_owned(), false));
    assert_eq!(gate.waits(), Some(next.len()));
    gate.settle();
    assert_eq!(passed(&mut gate, ""), (next.to_owned(), false));
    let mut gate = requests();
    assert_eq!(passed(&mut gate, &format!("{asks}\u{1}\n")).0, asks);
    gate.open();
    assert_eq!(passed(&mut gate, "\r"), ("\u{1}\n\r".to_owned(), false));
}
