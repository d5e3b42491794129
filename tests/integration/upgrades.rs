//! WebSockets: what becomes a tunnel and what does not, what goes through it, and when it ends.

use std::sync::Mutex;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::support::websocket::{AGREED, WS_KEY, agreeing, is_alive, open, parrot, websocket};
use super::support::{Connection, Gateway, Scripted, Stand, before, eventually};

const PROOF: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
const SOON: Duration = Duration::from_secs(5);

#[test]
fn a_websocket_passes_with_what_was_sent_early_on_both_sides() {
    let upstream = Scripted::start(|wire| {
        let Some(request) = wire.request() else { return };
        assert_eq!(request.all("connection"), ["Upgrade"]);
        assert_eq!(request.all("upgrade"), ["websocket"]);
        assert_eq!(request.all("sec-websocket-key"), [WS_KEY]);
        assert!(request.all("te").is_empty(), "for which Connection would have to name it");
        // The first frame right behind the head, in one segment.
        wire.send([AGREED.as_bytes(), b"hello"].concat());
        parrot(wire);
    });
    let (stand, key) = before(&upstream);
    let mut connection = stand.connect();
    let request = websocket(stand.get("/echo/x").bearer(&key).header("TE", "trailers")).bytes();
    connection.send([&request[..], b"GET /echo/smuggled HTTP/1.1\r\nHost: a\r\n\r\n"].concat());
    let head = connection.head();
    assert_eq!(head.status, 101);
    assert_eq!(head.all("connection"), ["Upgrade"]);
    assert_eq!(head.all("upgrade"), ["websocket"]);
    assert_eq!(head.all("sec-websocket-accept"), [PROOF]);
    assert_eq!(head.all("x-request-id").len(), 1);
    assert_eq!(head.all("x-ratelimit-remaining").len(), 1);
    assert!(head.all("content-length").is_empty() && head.all("transfer-encoding").is_empty());
    assert_eq!(connection.take(5).unwrap(), b"hello");
    assert_eq!(connection.take(40).unwrap(), b"GET /echo/smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
    is_alive(&mut connection);
    assert_eq!(upstream.requests().len(), 1, "opaque octets, no second request");
}

#[test]
fn what_is_sent_early_is_held_until_it_is_decided_what_it_is() {
    let (go, wait) = mpsc::channel();
    let wait = Mutex::new(wait);
    let upstream = Scripted::start(move |wire| {
        while wire.request().is_some() {
            wait.lock().unwrap().recv_timeout(SOON).unwrap();
            wire.send(AGREED);
            if let Some(all) = wire.take(500_000) {
                wire.send(all);
            }
        }
    });
    let (stand, key) = before(&upstream);
    // No HTTP at all, and more than is read at once; before the backend has agreed, and in pieces behind the head.
    let frames: Vec<u8> = (0..500_000).map(|at| (at % 251) as u8).collect();
    let mut connection = websocket(stand.get("/echo/x").bearer(&key)).start();
    let sending = std::thread::spawn(move || {
        for piece in frames.chunks(70_000) {
            connection.send(piece);
        }
        (connection, frames)
    });
    go.send(()).unwrap();
    let (mut connection, frames) = sending.join().unwrap();
    assert_eq!(connection.head().status, 101);
    assert_eq!(connection.take(frames.len()).unwrap(), frames);
}

#[test]
fn what_follows_an_upgrade_in_vain_is_judged_as_any_request() {
    let upstream = Scripted::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let (stand, key) = before(&upstream);
    for upgrade in ["websocket", "h2c"] {
        for (behind, status) in [("GET /echo/y HTTP/1.1\r\nHost: a\r\n\r\n", 401), ("\x01\x02 no HTTP\r\n\r\n", 400)] {
            let request = websocket(stand.get("/echo/x").bearer(&key)).bytes();
            let request =
                String::from_utf8(request).unwrap().replace("Upgrade: websocket", &format!("Upgrade: {upgrade}"));
            let mut connection = stand.connect();
            // At once, and once more when the first has been answered.
            connection.send(format!("{request}{behind}"));
            connection.response("GET").expect_status(200);
            connection.response("GET").expect_status(status);
            if status == 401 {
                connection.send(&request);
                connection.response("GET").expect_status(200);
                connection.send(behind);
                connection.response("GET").expect_status(status);
            }
        }
    }
}

#[test]
fn a_websocket_is_charged_counted_and_logged_once() {
    let upstream = agreeing(|wire| {
        wire.take(1000);
        wire.send([7; 3000]);
        wire.is_closed_by_gateway();
    });
    let stand = Stand::new().upstream(upstream.address).start();
    let key = stand.limited_key(60, 1000);
    let mut connection = open(&stand.gateway, &key);
    connection.send([1; 1000]);
    assert_eq!(connection.take(3000).unwrap(), [7; 3000]);
    assert!(stand.gateway.process.stdout().is_empty(), "logged when it ends, not before");
    drop(connection);
    let line = &stand.gateway.request_log(1)[0];
    assert_eq!((&line["status"], &line["code"]), (&101.into(), &Value::Null), "{line}");
    assert_eq!((&line["bytes_in"], &line["bytes_out"]), (&1000.into(), &3000.into()), "{line}");
    assert_eq!(line["route"], "GET /echo/{*rest}", "{line}");
    let usage = stand.usage(&key);
    assert_eq!((&usage["total_requests"], &usage["successful"]), (&1.into(), &1.into()), "{usage}");
    assert_eq!(usage["by_status"]["2xx"], 1, "{usage}");
    let left = stand.get("/echo/x").bearer(&key).start().head();
    assert_eq!(left.all("x-ratelimit-remaining"), ["58"], "one token for the tunnel, one for this");
}

#[test]
fn a_101_that_agrees_to_nothing_that_was_asked_is_a_502_and_no_tunnel() {
    let swap = |from: &str, to: &str| AGREED.replace(from, to);
    for (what, answer) in [
        ("no proof", swap("Sec-WebSocket-Accept", "X-Other")),
        ("a wrong proof", swap(PROOF, "AAAAAAAAAAAAAAAAAAAAAAAAAAA=")),
        ("another protocol", swap("Upgrade: websocket", "Upgrade: h2c")),
        ("no protocol", swap("Upgrade: websocket\r\n", "")),
        ("no Connection", swap("Connection: Upgrade\r\n", "")),
        ("two proofs", swap("\r\n\r\n", &format!("\r\nSec-WebSocket-Accept: {PROOF}\r\n\r\n"))),
        ("a length", swap("\r\n\r\n", "\r\nContent-Length: 5\r\n\r\nhello")),
        ("an extension", swap("\r\n\r\n", "\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n")),
        ("a subprotocol", swap("\r\n\r\n", "\r\nSec-WebSocket-Protocol: chat\r\n\r\n")),
    ] {
        let (ended, was_ended) = mpsc::channel();
        let ended = Mutex::new(ended);
        let upstream = Scripted::start(move |wire| {
            if wire.request().is_some() {
                wire.send(&answer);
                let _ = ended.lock().unwrap().send(wire.is_closed_by_gateway());
            }
        });
        let (stand, key) = before(&upstream);
        let mut connection = websocket(stand.get("/echo/x").bearer(&key)).start();
        connection.response("GET").expect_refusal(502, "upstream_unreachable");
        assert_eq!(was_ended.recv_timeout(SOON), Ok(true), "{what}: that connection is used no more");
        // The client's is, and it still speaks HTTP.
        stand.get("/nowhere").on(&mut connection).expect_refusal(404, "route_not_found");
    }
}

#[test]
fn what_was_offered_may_be_agreed_upon() {
    let chosen = "\r\nSec-WebSocket-Protocol: chat\r\nSec-WebSocket-Extensions: permessage-deflate; x=1\r\n\r\n";
    let upstream = Scripted::start(move |wire| {
        if wire.request().is_some() {
            wire.send(AGREED.replace("\r\n\r\n", chosen));
            parrot(wire);
        }
    });
    let (stand, key) = before(&upstream);
    let offer = |protocols: &str| {
        let request = websocket(stand.get("/echo/x").bearer(&key)).header("Sec-WebSocket-Protocol", protocols);
        request.header("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")
    };
    let mut tunnel = offer("v2, chat").start();
    let head = tunnel.head();
    assert_eq!((head.status, head.all("sec-websocket-protocol")), (101, vec!["chat"]));
    assert_eq!(head.all("sec-websocket-extensions"), ["permessage-deflate; x=1"]);
    is_alive(&mut tunnel);
    offer("v2").send().expect_refusal(502, "upstream_unreachable");
}

#[test]
fn a_101_that_nobody_asked_for_is_a_502() {
    let upstream = agreeing(parrot);
    let (stand, key) = before(&upstream);
    stand.get("/echo/x").bearer(&key).send().expect_refusal(502, "upstream_unreachable");
    // Asked for by a client, but not by the gateway: no key of a WebSocket, no GET.
    let h2c = stand.get("/echo/x").bearer(&key).header("Connection", "Upgrade").header("Upgrade", "h2c");
    h2c.send().expect_refusal(502, "upstream_unreachable");
    let post = websocket(stand.post("/echo/x").bearer(&key)).body("x");
    post.send().expect_refusal(502, "upstream_unreachable");
}

#[test]
fn a_backend_that_does_not_want_one_answers_in_http_and_the_connection_goes_on() {
    let upstream = Scripted::answering(
        "HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\nno",
    );
    let (stand, key) = before(&upstream);
    let mut connection = stand.connect();
    for _ in 0..2 {
        let request = websocket(stand.get("/echo/x").bearer(&key)).bytes();
        // What comes behind it is a request like any other: looked at, and refused for want of a key.
        connection.send([&request[..], b"GET /echo/smuggled HTTP/1.1\r\nHost: a\r\n\r\n"].concat());
        assert_eq!(connection.response("GET").expect_status(426).text(), "no");
        connection.response("GET").expect_refusal(401, "missing_key");
    }
    assert_eq!(upstream.requests().len(), 2);
    assert_eq!(upstream.connections(), 1, "an answered request leaves a connection that can be used again");
}

#[test]
fn what_is_no_websocket_goes_on_without_upgrade_and_a_malformed_one_is_refused() {
    let upstream = Scripted::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let (stand, key) = before(&upstream);
    let ask = |upgrade: &str| {
        let request = stand.get("/echo/x").bearer(&key).header("Upgrade", upgrade);
        request.header("Connection", "Upgrade, HTTP2-Settings").header("HTTP2-Settings", "AAMAAABkAAQAAP__")
    };
    for upgrade in ["h2c", "tls/1.2", "irc/6.9, rta/x11", "websocket/13"] {
        ask(upgrade).send().expect_status(200);
    }
    websocket(stand.post("/echo/x").bearer(&key)).body("hello").send().expect_status(200);
    for request in upstream.requests() {
        for field in ["upgrade", "connection", "http2-settings"] {
            assert!(request.all(field).is_empty(), "{}", request.head);
        }
    }
    let forwarded = upstream.requests().len();
    let with = |name: &str, value: &str| {
        let good = [
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Key", WS_KEY),
            ("Sec-WebSocket-Version", "13"),
        ];
        let request = stand.get("/echo/x").bearer(&key);
        good.iter().fold(request, |request, (n, v)| request.header(n, if *n == name { value } else { v }))
    };
    with("Sec-WebSocket-Key", "too short").send().expect_refusal(400, "bad_request");
    let answer = with("Sec-WebSocket-Version", "1777").send().expect_refusal(426, "websocket_version");
    assert_eq!(answer.header("sec-websocket-version"), Some("13"));
    assert_eq!(answer.header("upgrade"), Some("websocket"));
    let twice = websocket(stand.get("/echo/x").bearer(&key)).header("Sec-WebSocket-Version", "13");
    twice.send().expect_refusal(400, "bad_request");
    assert_eq!(upstream.requests().len(), forwarded, "refused before the backend");
}

#[test]
fn a_websocket_is_refused_as_any_request_is() {
    let upstream = agreeing(parrot);
    let (stand, key) = before(&upstream);
    websocket(stand.get("/echo/x")).send().expect_refusal(401, "missing_key");
    websocket(stand.get("/nowhere").bearer(&key)).send().expect_refusal(404, "route_not_found");
    let other = stand.key().scope("datasets:read").create();
    websocket(stand.get("/echo/x").bearer(&other)).send().expect_refusal(403, "insufficient_scope");
    assert!(upstream.requests().is_empty());
}

#[test]
fn one_side_may_end_its_half_and_the_other_go_on() {
    let upstream = agreeing(|wire| {
        // To its end, then the answer.
        if wire.is_closed_by_gateway() {
            wire.send("heard it all");
        }
    });
    let (stand, key) = before(&upstream);
    let mut connection = open(&stand.gateway, &key);
    connection.send("first");
    connection.end_sending();
    assert_eq!(connection.take(12).unwrap(), b"heard it all");
    assert!(connection.is_closed_by_server());

    let upstream = agreeing(|wire| {
        wire.send("bye");
        wire.end_sending();
        let heard = wire.take(5);
        assert_eq!(heard.as_deref(), Some(&b"after"[..]));
    });
    let (stand, key) = before(&upstream);
    let mut connection = open(&stand.gateway, &key);
    assert_eq!(connection.take(3).unwrap(), b"bye");
    assert!(connection.is_closed_by_server());
    connection.send("after");
    drop(connection);
    assert_eq!(stand.gateway.request_log(1)[0]["bytes_in"], 5);
}

#[test]
fn a_reader_that_is_slow_holds_the_sender_up_and_loses_nothing() {
    const ALL: usize = 20_000_000;
    let upstream = agreeing(|wire| {
        let octets: Vec<u8> = (0..ALL).map(|at| (at % 251) as u8).collect();
        wire.send(octets);
        wire.is_closed_by_gateway();
    });
    let (stand, key) = before(&upstream);
    let mut connection = open(&stand.gateway, &key);
    // Nothing is read until the gateway, too, has nothing more to do.
    let held = eventually_still(&stand.gateway);
    assert!(held < 16 * 1024 * 1024, "{held} bytes held for a reader that does not read");
    let octets = connection.take(ALL).unwrap();
    assert!(octets.iter().enumerate().all(|(at, octet)| *octet == (at % 251) as u8));
}

/// By how much the memory of the process has grown over a moment in which it grew no more.
fn eventually_still(gateway: &Gateway) -> u64 {
    let resident = || gateway.process.resident() * 1024;
    let first = resident();
    let (mut last, mut same) = (first, 0);
    eventually("memory that stands still", SOON, || {
        let now = resident();
        same = if now == last { same + 1 } else { 0 };
        last = now;
        same > 100
    });
    last.saturating_sub(first)
}

#[test]
fn a_tunnel_keeps_its_place_among_the_requests_in_flight_until_it_ends() {
    let upstream = agreeing(parrot);
    let plans = "plans: { one: { requests_per_minute: 60, requests_per_day: 1000, concurrent_requests: 1 } }\ndefault_plan: one";
    let stand = Stand::new().section(plans).upstream(upstream.address).start();
    let key = stand.key().create();
    for _ in 0..2 {
        let mut tunnel = open(&stand.gateway, &key);
        is_alive(&mut tunnel);
        let second = || websocket(stand.get("/echo/x").bearer(&key));
        second().send().expect_refusal(429, "too_many_concurrent");
        drop(tunnel);
        eventually("the place is free", SOON, || {
            let head = second().start().head();
            head.status == 101
        });
        // That one was dropped, too.
        eventually("the place is free again", SOON, || {
            stand.gateway.metric("gateway_requests_in_flight", "") == Some(0.0)
        });
    }
}

#[test]
fn a_tunnel_in_which_nobody_speaks_ends_after_the_idle_time_of_its_route() {
    let upstream = agreeing(parrot);
    let stand = Stand::new()
        .upstream(upstream.address)
        .route("GET /echo/{*rest}", "scope: models:read, timeouts: { idle: 1s }")
        .start();
    let key = stand.key().create();
    let mut tunnel = open(&stand.gateway, &key);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1500) {
        is_alive(&mut tunnel);
        std::thread::sleep(Duration::from_millis(100));
    }
    let quiet = Instant::now();
    assert!(tunnel.is_closed_by_server());
    assert!(quiet.elapsed() > Duration::from_millis(800), "{:?}", quiet.elapsed());
    assert_eq!(stand.gateway.request_log(1)[0]["code"], "idle_timeout");
}

#[test]
fn a_tunnel_lives_through_a_drain_until_its_time_is_over_and_is_counted() {
    let upstream = agreeing(parrot);
    let stand = Stand::new().upstream(upstream.address).section("drain: { timeout: 2s }").start();
    let key = stand.key().create();
    let mut tunnel = open(&stand.gateway, &key);
    is_alive(&mut tunnel);
    let begun = Instant::now();
    stand.gateway.process.terminate();
    eventually("it accepts no more", SOON, || Connection::try_open(stand.gateway.public).is_err());
    is_alive(&mut tunnel);
    assert!(tunnel.is_closed_by_server());
    assert!(begun.elapsed() > Duration::from_millis(1900), "{:?}", begun.elapsed());
    assert_eq!(stand.gateway.request_log(1)[0]["status"], 101);
    let after = stand.another_gateway();
    let reader = stand.key().account(&key.account).scope("api-keys:read").create();
    let usage = after.get(&format!("/api/v1/api-keys/{}/usage", key.id)).bearer(&reader).send().json();
    assert_eq!(usage["successful"], 1, "{usage}");
}

#[test]
fn a_broken_connection_on_either_side_ends_the_other() {
    let upstream = agreeing(parrot);
    let (stand, key) = before(&upstream);
    let (ended, was_ended) = mpsc::channel();
    let ended = Mutex::new(ended);
    let watching = agreeing(move |wire| {
        let _ = ended.lock().unwrap().send(wire.is_closed_by_gateway());
    });
    let other = Stand::new().upstream(watching.address).start();
    let other_key = other.key().create();
    open(&other.gateway, &other_key).abort();
    assert_eq!(was_ended.recv_timeout(SOON), Ok(true));
    // The parrot leaves for good when its thread ends.
    let leaving = agreeing(|wire| drop(wire.take(1)));
    let third = Stand::new().upstream(leaving.address).start();
    let third_key = third.key().create();
    let mut tunnel = open(&third.gateway, &third_key);
    tunnel.send("x");
    assert!(tunnel.is_closed_by_server());
    is_alive(&mut open(&stand.gateway, &key));
}

#[test]
fn the_sample_backend_echoes_frames() {
    let stand = Stand::new().start();
    let key = stand.key().create();
    let mut tunnel = open(&stand.gateway, &key);
    // "Hi" masked with zeros; it comes back unmasked. Then a ping, and a close.
    tunnel.send([0x81, 0x82, 0, 0, 0, 0, b'H', b'i']);
    assert_eq!(tunnel.take(4).unwrap(), [0x81, 2, b'H', b'i']);
    tunnel.send([0x89, 0x81, 1, 2, 3, 4, b'p' ^ 1]);
    assert_eq!(tunnel.take(3).unwrap(), [0x8a, 1, b'p']);
    tunnel.send([0x88, 0x82, 0, 0, 0, 0, 3, 0xe8]);
    assert_eq!(tunnel.take(4).unwrap(), [0x88, 2, 3, 0xe8]);
    assert!(tunnel.is_closed_by_server());
    // Not masked: a client that breaks the rules is told so.
    let mut tunnel = open(&stand.gateway, &key);
    tunnel.send([0x81, 2, b'H', b'i']);
    assert_eq!(tunnel.take(4).unwrap(), [0x88, 2, 3, 0xea]);
}
