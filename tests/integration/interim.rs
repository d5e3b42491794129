//! Interim answers (1xx): passed on in their order, to clients that can be told.

use std::sync::Mutex;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::support::{Scripted, Stand, before};

const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n";
const FINAL: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const SOON: Duration = Duration::from_secs(5);

#[test]
fn an_interim_answer_comes_at_once_and_before_the_final_one() {
    let (go, wait) = mpsc::channel();
    let wait = Mutex::new(wait);
    let upstream = Scripted::start(move |wire| {
        while wire.request().is_some() {
            for interim in [HINTS, "HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 102 Processing\r\n\r\n"] {
                wire.send(interim);
                if wait.lock().unwrap().recv_timeout(SOON).is_err() {
                    return;
                }
            }
            wire.send(FINAL);
        }
    });
    let (stand, key) = before(&upstream);
    let mut connection = stand.connect();
    for _ in 0..3 {
        connection.send(stand.get("/echo/x").bearer(&key).bytes());
        // The backend goes on only when the client has what was sent before.
        let head = connection.head();
        assert_eq!((head.status, head.all("link")), (103, vec!["</a.css>; rel=preload"]));
        assert!(head.all("x-ratelimit-remaining").is_empty() && head.all("x-request-id").is_empty());
        go.send(()).unwrap();
        // A 100 that nobody asked this backend for is not passed on.
        go.send(()).unwrap();
        assert_eq!(connection.head().status, 102);
        go.send(()).unwrap();
        let response = connection.response("GET").expect_status(200);
        assert!(response.interim.is_empty() && response.text() == "ok");
    }
}

#[test]
fn the_order_holds_when_everything_comes_at_once_and_requests_are_pipelined() {
    let upstream = Scripted::answering([HINTS.repeat(3).as_str(), FINAL].concat());
    let (stand, key) = before(&upstream);
    let request = stand.get("/echo/x").bearer(&key).bytes();
    for _ in 0..20 {
        let mut connection = stand.connect();
        connection.send(request.repeat(10));
        for _ in 0..10 {
            let response = connection.response("GET").expect_status(200);
            assert_eq!(response.interim, [103, 103, 103]);
            assert_eq!(response.text(), "ok");
        }
    }
}

#[test]
fn an_interim_answer_waits_behind_a_large_answer_that_is_read_slowly() {
    let body = "x".repeat(3_000_000);
    let large = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let upstream = Scripted::start(move |wire| {
        while wire.request().is_some() {
            wire.send(HINTS);
            wire.send(&large);
        }
    });
    let (stand, key) = before(&upstream);
    let mut connection = stand.connect();
    connection.send(stand.get("/echo/x").bearer(&key).bytes().repeat(4));
    for _ in 0..4 {
        let response = connection.response("GET").expect_status(200);
        assert_eq!((response.interim, response.body.len()), (vec![103], body.len()));
    }
}

#[test]
fn a_client_of_http_1_0_is_told_nothing_beside_its_answer() {
    let upstream = Scripted::answering([HINTS, FINAL].concat());
    let (stand, key) = before(&upstream);
    let request = String::from_utf8(stand.get("/echo/x").bearer(&key).bytes()).unwrap();
    // Several times, so that both kinds of client meet on a connection to the backend.
    for _ in 0..8 {
        let mut connection = stand.connect();
        connection.send(request.replace("HTTP/1.1", "HTTP/1.0"));
        let response = connection.response("GET").expect_status(200);
        assert!(response.interim.is_empty() && response.text() == "ok");
        // Nor is the next one, who can be told, told of what was meant for the one before.
        let response = stand.get("/echo/x").bearer(&key).send().expect_status(200);
        assert_eq!(response.interim, [103]);
    }
    assert!(upstream.connections() <= 2, "one for each worker");
}

#[test]
fn interim_answers_do_not_make_the_wait_for_the_answer_longer() {
    let upstream = Scripted::start(|wire| {
        if wire.request().is_some() {
            while !wire.is_closed() {
                wire.send(HINTS);
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    });
    let stand = Stand::new()
        .upstream(upstream.address)
        .route("GET /echo/{*rest}", "scope: models:read, timeouts: { response: 1s }")
        .start();
    let key = stand.key().create();
    let begun = Instant::now();
    let mut connection = stand.get("/echo/x").bearer(&key).start();
    let response = connection.response("GET");
    assert!(response.interim.len() > 5, "{:?}", response.interim);
    response.expect_refusal(504, "upstream_timeout");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[test]
fn a_backend_that_sends_interim_answers_without_end_is_a_502() {
    let upstream = Scripted::start(|wire| {
        if wire.request().is_some() {
            let many = HINTS.repeat(1000);
            while !wire.is_closed() {
                wire.send(&many);
            }
        }
    });
    let (stand, key) = before(&upstream);
    let mut connection = stand.get("/echo/x").bearer(&key).start();
    let response = connection.response("GET");
    assert!(response.interim.len() <= 100, "{}", response.interim.len());
    response.expect_refusal(502, "upstream_unreachable");
}

#[test]
fn a_backend_that_refuses_early_reaches_a_client_that_expects_100_and_its_body_is_no_request() {
    let upstream = Scripted::start(|wire| {
        while let Some(head) = wire.head() {
            match head.starts_with("POST ") {
                true => wire.send("HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno"),
                false => wire.send(FINAL),
            }
        }
    });
    let (stand, key) = before(&upstream);
    let mut connection = stand.connect();
    let post = stand.post("/echo/x").bearer(&key).header("Expect", "100-continue").header("Content-Length", "44");
    connection.send(post.bytes());
    let response = connection.response("POST").expect_status(401);
    assert_eq!(response.text(), "no");
    // Whether the gateway wants the body still or closes: it is never taken for a request.
    let _ = connection.try_send("GET /echo/smuggled HTTP/1.1\r\nHost: gateway\r\n\r\n");
    let after = connection.try_response("GET").map(|response| response.status());
    assert!(after.is_err(), "{after:?}");
    stand.get("/echo/x").bearer(&key).send().expect_status(200);
}
