//! Clients that take their time, on purpose or not; and those that say no more and wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::support::http2::{Http2, get};
use super::support::{Load, Scripted, Stand, count, eventually};

const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// Long enough for anything on loopback.
const SOON: Duration = Duration::from_secs(5);

#[test]
fn five_hundred_heads_that_do_not_end_are_gone_in_time_and_everybody_else_is_served() {
    let limit = Duration::from_secs(1);
    let stand = Stand::new().section("timeouts: { header: 1s }").start();
    let key = stand.key().scope("models:read").create();
    let load = Load::on(&[&stand.gateway]).keys([&key]).connections(10).rate(200.0).start();
    let start = Instant::now();
    let mut slow: Vec<_> = (0..500).map(|_| Some(stand.connect())).collect();
    for connection in slow.iter_mut().flatten() {
        connection.send("GET /echo/x HTTP/1.1\r\nHost: a\r\nX-Slow: ");
    }
    // An octet now and then does not buy time.
    while slow.iter().any(Option::is_some) {
        assert!(start.elapsed() < limit + Duration::from_secs(3), "some are still there after {:?}", start.elapsed());
        for slot in &mut slow {
            if slot.as_mut().is_some_and(|connection| connection.try_send("x").is_err()) {
                *slot = None;
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(start.elapsed() > limit);
    let shots = load.stop();
    assert_eq!(count(&shots, |status| status != 200), 0, "of {}", shots.len());
    eventually("their places are free", SOON, || stand.gateway.metric("gateway_connections", "") <= Some(1.0));
}

#[test]
fn a_client_that_takes_next_to_nothing_of_its_answer_is_let_go() {
    let stand = Stand::new().section("timeouts: { idle: 1s }").start();
    let key = stand.key().scope("models:read").create();
    let mut slow = stand.get("/echo/x?bytes=50000000").bearer(&key).start();
    slow.receive_little();
    slow.head();
    let start = Instant::now();
    // Octets taken one by one make no room worth mentioning.
    for _ in 0..5 {
        assert!(slow.take(1).is_some());
        std::thread::sleep(Duration::from_millis(100));
    }
    eventually("it is let go", Duration::from_secs(10), || {
        stand.gateway.metric("gateway_requests_in_flight", "") == Some(0.0)
    });
    assert!(start.elapsed() > Duration::from_millis(900), "{:?}", start.elapsed());
    assert!(slow.ends_with_a_reset(), "what it did not take is not kept for it");
    // And one that takes its time, but takes, is served to the end.
    let mut steady = stand.get("/echo/x?bytes=12000000").bearer(&key).start();
    steady.head();
    for _ in 0..12 {
        assert!(steady.take(1_000_000).is_some());
        std::thread::sleep(Duration::from_millis(150));
    }
}

/// Routes of the sample backend, one of them with this limit of its own on the client that takes nothing.
fn with_a_limit_of_its_own(usual: &str, own: &str) -> Stand {
    Stand::new()
        .section(&format!("timeouts: {{ idle: {usual} }}"))
        .route("GET /echo/usual", "access: public")
        .route("GET /echo/own", &format!("access: public, timeouts: {{ idle: {own} }}"))
        .start()
}

/// More than the sockets on the way hold.
const LARGE: &str = "bytes=30000000";

#[test]
fn the_route_says_how_long_a_client_may_take_nothing_of_its_answer() {
    let stand = with_a_limit_of_its_own("5m", "500ms");
    let mut slow = stand.get(&format!("/echo/own?{LARGE}")).start();
    slow.receive_little();
    slow.head();
    let in_flight = || stand.gateway.metric("gateway_requests_in_flight", "");
    eventually("it is let go", SOON, || in_flight() == Some(0.0));
    let mut streams = Http2::open(stand.gateway.public);
    streams.start(&get(&format!("/echo/own?{LARGE}")), true);
    eventually("the stream is there", SOON, || in_flight() == Some(1.0));
    eventually("the stream is let go", SOON, || in_flight() == Some(0.0));

    let stand = with_a_limit_of_its_own("1s", "1m");
    let ask = |route: &str| {
        let mut slow = stand.get(&format!("/echo/{route}?{LARGE}")).start();
        slow.head();
        slow
    };
    let (mut usual, mut own) = (ask("usual"), ask("own"));
    let mut streams = Http2::open(stand.gateway.public);
    streams.start(&get(&format!("/echo/own?{LARGE}")), true);
    let in_flight = || stand.gateway.metric("gateway_requests_in_flight", "");
    eventually("all are there", SOON, || in_flight() == Some(3.0));
    eventually("the usual one is let go", SOON, || in_flight() == Some(2.0));
    // Two sweeps more.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(in_flight(), Some(2.0));
    assert!(own.take(30_000_000).is_some(), "the other one gets all of its answer");
    assert!(usual.take(30_000_000).is_none());
    // The connection's next request has its own route.
    own.send(stand.get(&format!("/echo/usual?{LARGE}")).bytes());
    own.head();
    eventually("it is let go, too", SOON, || in_flight() == Some(1.0));
}

#[test]
fn a_client_that_says_no_more_gets_its_answer_and_then_the_end() {
    let upstream = Scripted::start(|wire| {
        while let Some(request) = wire.request() {
            if request.head.contains("/slow") {
                std::thread::sleep(Duration::from_millis(400));
            }
            wire.send(HELLO);
        }
    });
    let stand = Stand::new().upstream(upstream.address).start();
    let get = "GET /public/x HTTP/1.1\r\nHost: a\r\n\r\n";
    let slow = get.replace("/x", "/slow");
    let post = "POST /public/x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
    let chunks = "POST /public/slow HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    // Not granted: the answer is as any other.
    let upgrade = slow.replace("\r\n\r\n", "\r\nUpgrade: h2c\r\n\r\n");
    let websocket = "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let websocket = slow.replace("\r\n\r\n", websocket);
    for (bytes, answers) in [
        (get.to_owned(), 1),
        (slow.clone(), 1),
        (post.to_owned(), 1),
        (chunks.to_owned(), 1),
        (format!("{get}{slow}"), 2),
        (format!("{slow}{get}{post}"), 3),
        (upgrade.clone(), 1),
        (websocket.clone(), 1),
        (format!("{upgrade}{websocket}{slow}"), 3),
        ("GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 1),
    ] {
        let mut connection = stand.connect();
        connection.send(&bytes);
        connection.end_sending();
        let start = Instant::now();
        for _ in 0..answers {
            let answer = connection.response("GET");
            assert!(answer.complete && matches!(answer.status(), 200 | 404), "{bytes:?}: {answer:?}");
        }
        assert!(connection.is_closed_by_server(), "{bytes:?}");
        assert!(start.elapsed() < SOON, "{bytes:?}: {:?}", start.elapsed());
    }
}

#[test]
fn an_answer_that_has_begun_is_sent_to_the_end_however_it_pauses() {
    let upstream = Scripted::start(|wire| {
        if wire.request().is_some() {
            wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n");
            // Longer than a client that has got nothing is waited for.
            std::thread::sleep(Duration::from_millis(2500));
            wire.send("2\r\nok\r\n0\r\n\r\n");
        }
    });
    let stand = Stand::new().upstream(upstream.address).start();
    let mut connection = stand.get("/public/x").start();
    connection.end_sending();
    let answer = connection.response("GET").expect_status(200);
    assert!(answer.complete && answer.body == b"okok");
}

#[test]
fn a_client_that_closes_is_soon_noticed_by_a_backend_that_does_not_answer() {
    let (upstream, there, noticed) = Scripted::never_answering();
    let stand = Stand::new().upstream(upstream.address).start();
    let connection = stand.get("/public/x").start();
    there.recv_timeout(SOON).unwrap();
    let start = Instant::now();
    drop(connection);
    assert_eq!(noticed.recv_timeout(SOON), Ok(true));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    eventually("the log says who left", SOON, || stand.gateway.process.stdout().contains("\"status\":499"));
}

#[test]
fn an_end_in_the_middle_of_a_message_is_no_end_of_it() {
    let whole = Arc::new(AtomicBool::new(false));
    let seen = whole.clone();
    let upstream = Scripted::start(move |wire| {
        if wire.request().is_some() {
            seen.store(true, Ordering::Release);
            wire.send(HELLO);
        }
    });
    let stand = Stand::new().upstream(upstream.address).start();
    for bytes in [
        "GET /public/x HTTP/1.1\r\nHost:",
        "GET /public/x HTTP/1.1\r\nHost: a\r\n",
        "POST /public/x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhell",
        "POST /public/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "POST /public/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
    ] {
        let mut connection = stand.connect();
        connection.send(bytes);
        connection.end_sending();
        let start = Instant::now();
        if let Ok(answer) = connection.try_response("GET") {
            assert!(answer.status() >= 400, "{bytes:?}: {answer:?}");
        }
        assert!(start.elapsed() < SOON, "{bytes:?}: {:?}", start.elapsed());
        assert!(!whole.load(Ordering::Acquire), "{bytes:?}");
    }
}
