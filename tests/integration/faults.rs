//! What goes wrong between a client and a backend: who leaves, stalls, breaks off or answers too early, and what the other
//! one sees of it.

use std::net::TcpListener;
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use super::support::{Scripted, Stand, Wire, before, eventually};

const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// Long enough for anything on loopback.
const SOON: Duration = Duration::from_secs(5);

#[test]
fn a_client_that_leaves_is_noticed_by_the_backend() {
    let (gone, noticed) = mpsc::channel();
    let gone = Mutex::new(gone);
    let upstream = Scripted::start(move |wire| {
        if wire.request().is_some() {
            wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n");
            gone.lock().unwrap().send(wire.is_closed_by_gateway()).unwrap();
        }
    });
    let (stand, key) = before(&upstream);
    let mut connection = stand.get("/echo/x").bearer(&key).start();
    connection.head();
    assert_eq!(connection.chunk().unwrap(), b"ok");
    connection.abort();
    assert_eq!(noticed.recv_timeout(SOON), Ok(true));

    // Before the head of the answer, too.
    let (upstream, there, noticed) = Scripted::never_answering();
    let (stand, key) = before(&upstream);
    let connection = stand.get("/echo/x").bearer(&key).start();
    there.recv_timeout(SOON).unwrap();
    connection.abort();
    assert_eq!(noticed.recv_timeout(SOON), Ok(true));
}

#[test]
fn a_request_body_that_breaks_off_does_not_look_complete_to_the_backend() {
    let (ended, whole) = mpsc::channel();
    let ended = Mutex::new(ended);
    let upstream = Scripted::start(move |wire| {
        let whole = wire.request().is_some();
        ended.lock().unwrap().send(whole).unwrap();
    });
    let (stand, key) = before(&upstream);
    for bytes in [
        stand.post("/echo/x").bearer(&key).body("0123456789").bytes(),
        stand.post("/echo/x").bearer(&key).chunked(&[b"01234", b"56789"], &[]).bytes(),
    ] {
        let mut connection = stand.connect();
        connection.send(&bytes[..bytes.len() - 9]);
        eventually("the request is on its way", SOON, || {
            stand.gateway.metric("gateway_requests_in_flight", "") >= Some(1.0)
        });
        connection.abort();
        assert_eq!(whole.recv_timeout(SOON), Ok(false));
    }
}

#[test]
fn a_response_that_breaks_off_does_not_look_complete_to_the_client() {
    for answer in [
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
    ] {
        let upstream = Scripted::start(move |wire: &mut Wire| {
            if wire.request().is_some() {
                wire.send(answer);
            }
        });
        let (stand, key) = before(&upstream);
        let mut connection = stand.connect();
        let response = stand.get("/echo/x").bearer(&key).on(&mut connection);
        assert!(!response.complete, "{answer}: {response:?}");
        assert!(response.body.len() <= 5);
    }
}

#[test]
fn a_backend_that_does_not_answer_in_time_is_504() {
    let upstream = Scripted::start(|wire| {
        wire.request();
        wire.is_closed_by_gateway();
    });
    let stand = Stand::new()
        .upstream(upstream.address)
        .route("GET /slow", "access: public, timeouts: { response: 300ms }")
        .start();
    let start = Instant::now();
    stand.get("/slow").send().expect_refusal(504, "upstream_timeout");
    assert!((Duration::from_millis(300)..Duration::from_secs(3)).contains(&start.elapsed()), "{:?}", start.elapsed());
}

#[test]
fn a_response_that_stalls_is_cut_off_and_does_not_look_complete() {
    let upstream = Scripted::start(|wire| {
        wire.request();
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello");
        wire.is_closed_by_gateway();
    });
    let stand = Stand::new()
        .upstream(upstream.address)
        .route("GET /stalls", "access: public, timeouts: { idle: 300ms }")
        .start();
    let response = stand.get("/stalls").send();
    assert!(!response.complete && response.body == b"hello");
}

#[test]
fn a_request_body_that_stalls_is_408() {
    let stand = Stand::new().section("timeouts: { body_idle: 300ms }").start();
    let key = stand.key().create();
    let mut connection = stand.connect();
    let bytes = stand.post("/echo/x").bearer(&key).body("0123456789").bytes();
    connection.send(&bytes[..bytes.len() - 5]);
    connection.response("POST").expect_refusal(408, "request_timeout");
}

#[test]
fn a_head_that_does_not_end_and_a_connection_that_does_nothing_are_closed() {
    let stand = Stand::new().section("timeouts: { header: 300ms, keepalive: 300ms }").start();
    let mut slow = stand.connect();
    slow.send("GET /echo/x HTTP/1.1\r\nHost:");
    let mut idle = stand.connect();
    idle.send("GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n");
    idle.response("GET").expect_status(404);
    let mut silent = stand.connect();
    let mut dripping = stand.connect();
    let start = Instant::now();
    // Bytes that keep coming do not make a head that takes too long any shorter.
    while dripping.try_send("G").is_ok() {
        assert!(start.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(20));
    }
    let start = Instant::now();
    for (what, connection) in [("slow head", &mut slow), ("kept alive", &mut idle), ("never used", &mut silent)] {
        assert!(connection.is_closed_by_server() || what == "slow head", "{what}");
    }
    // The sweep runs twice a second.
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

#[test]
fn a_slow_client_that_makes_progress_is_served() {
    let stand = Stand::new().section("timeouts: { body_idle: 500ms }").start();
    let key = stand.key().create();
    let bytes = stand.post("/echo/x").bearer(&key).body("0123456789").bytes();
    let mut connection = stand.connect();
    let (head, body) = bytes.split_at(bytes.len() - 10);
    connection.send(head);
    for byte in body {
        connection.send([*byte]);
        // The pace of this client is the test's subject: slower than the limit in all, faster in each step.
        std::thread::sleep(Duration::from_millis(80));
    }
    connection.response("POST").expect_status(200);
}

#[test]
fn a_refused_connection_is_502_and_the_next_request_finds_a_backend_that_came_up() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let stand = Stand::new().upstream(address).start();
    let key = stand.key().create();
    let mut connection = stand.connect();
    for _ in 0..3 {
        stand.get("/echo/x").bearer(&key).on(&mut connection).expect_refusal(502, "upstream_unreachable");
    }
    let listener = TcpListener::bind(address).unwrap();
    let server = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = [0; 8192];
        let _ = stream.read(&mut buffer).unwrap();
        stream.write_all(HELLO.as_bytes()).unwrap();
    });
    stand.get("/echo/x").bearer(&key).on(&mut connection).expect_status(200);
    server.join().unwrap();
}

#[test]
fn an_answer_that_is_not_http_is_502() {
    for answer in ["SSH-2.0-OpenSSH\r\n\r\n", "HTTP/1.1 abc OK\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"]
    {
        let upstream = Scripted::start(move |wire: &mut Wire| {
            wire.request();
            wire.send(answer);
        });
        let (stand, key) = before(&upstream);
        stand.get("/echo/x").bearer(&key).send().expect_refusal(502, "upstream_unreachable");
        assert_eq!(upstream.requests().len(), 1, "{answer:?}: it was received, so it is not sent again");
    }
}

#[test]
fn a_get_survives_that_the_backend_closes_a_kept_connection() {
    let upstream = Scripted::start(|wire| {
        if wire.request().is_some() {
            wire.send(HELLO);
        }
    });
    let (stand, key) = before(&upstream);
    let mut connection = stand.connect();
    for _ in 0..100 {
        stand.get("/echo/x").bearer(&key).on(&mut connection).expect_status(200);
    }
}

#[test]
fn an_answer_in_two_framings_is_never_passed_on_in_both() {
    for (answer, statuses) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", [200, 502]),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!", [502, 502]),
        ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", [502, 502]),
    ] {
        let upstream = Scripted::answering(answer);
        let (stand, key) = before(&upstream);
        let response = stand.get("/echo/x").bearer(&key).send();
        assert!(statuses.contains(&response.status()), "{answer}: {response:?}");
        if response.status() == 200 {
            assert!(response.complete && response.body == b"ok");
            assert!(response.header("content-length").is_none() || response.header("transfer-encoding").is_none());
        }
    }
}

#[test]
fn a_backend_that_answers_before_it_has_the_whole_body_is_heard() {
    let upstream = Scripted::start(|wire| {
        if wire.head().is_some() {
            wire.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno");
            wire.is_closed_by_gateway();
        }
    });
    let (stand, key) = before(&upstream);
    let mut connection = stand.connect();
    let bytes = stand.post("/echo/x").bearer(&key).body(vec![b'x'; 4_000_000]).bytes();
    // A client that gives up sending once it is answered; one that is cut off meanwhile still finds the answer.
    let _ = connection.try_send(&bytes);
    let response = connection.response("POST").expect_status(403);
    assert_eq!(response.text(), "no");
}

#[test]
fn a_post_is_sent_once_also_when_the_kept_connection_closes_under_it() {
    // Answers one request on each connection, then closes without a word: the next request may meet the close.
    let upstream = Scripted::start(|wire| {
        if wire.request().is_some() {
            wire.send(HELLO);
        }
    });
    let (stand, key) = before(&upstream);
    let mut connection = stand.connect();
    for count in 1..=50 {
        let response = stand.post("/echo/x").bearer(&key).body(format!("{count}")).on(&mut connection);
        // Found closed in time: sent on another one. Closed under it: 502, never a second time.
        assert!(matches!(response.status(), 200 | 502), "{}", response.text());
    }
    let mut bodies: Vec<_> = upstream.requests().into_iter().map(|request| request.body).collect();
    let sent = bodies.len();
    bodies.sort();
    bodies.dedup();
    assert_eq!(bodies.len(), sent, "a request arrived twice");
}

#[test]
fn a_post_that_was_received_and_not_answered_is_not_sent_again() {
    let upstream = Scripted::start(|wire| {
        if wire.request().is_some() {
            wire.send(HELLO);
            // The second request on the kept connection is read and dropped.
            wire.request();
        }
    });
    let (stand, key) = before(&upstream);
    let mut connection = stand.connect();
    stand.post("/echo/x").bearer(&key).body("1").on(&mut connection).expect_status(200);
    stand.post("/echo/x").bearer(&key).body("2").on(&mut connection).expect_refusal(502, "upstream_unreachable");
    let bodies: Vec<_> = upstream.requests().into_iter().map(|request| request.body).collect();
    assert_eq!(bodies, [b"1", b"2"]);
}

#[test]
fn a_client_that_is_still_sending_a_refused_body_sees_the_answer() {
    let stand = Stand::new().section("limits: { body_bytes: 1MiB }").start();
    let key = stand.key().create();
    for request in [stand.post("/echo/x"), stand.post("/echo/x").bearer(&key), stand.post("/nowhere").bearer(&key)] {
        let bytes = request.body(vec![b'x'; 8_000_000]).bytes();
        let mut connection = stand.connect();
        // As clients do that listen only after they have sent it all: no reset, no broken pipe.
        connection.send(&bytes);
        let response = connection.response("POST");
        assert!((400..500).contains(&response.status()) && !response.code().is_empty(), "{response:?}");
        assert_eq!(response.header("connection"), Some("close"));
        drop(connection);
    }
}

#[test]
fn a_client_that_is_still_sending_sees_an_answer_that_came_late() {
    let large = vec![b'x'; 8_000_000];
    let chunks: Vec<&[u8]> = large.chunks(100_000).collect();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refusing = Stand::new().upstream(closed).start();
    let limited = Stand::new().section("limits: { body_bytes: 1MiB }").start();
    let early = Scripted::start(|wire| {
        if wire.head().is_some() {
            wire.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno");
            wire.is_closed_by_gateway();
        }
    });
    let deciding = Stand::new().upstream(early.address).start();
    for (stand, status) in [(&refusing, 502), (&limited, 413), (&deciding, 403)] {
        let key = stand.key().create();
        for _ in 0..5 {
            let request = stand.post("/echo/x").bearer(&key);
            let bytes = request.chunked(&chunks, &[]).bytes();
            let mut connection = stand.connect();
            connection.send(&bytes);
            connection.response("POST").expect_status(status);
        }
    }
}

#[test]
fn a_backend_that_answers_and_reads_no_more_holds_up_nobody_else() {
    let upstream = Scripted::start(|wire| {
        while let Some(head) = wire.head() {
            wire.send(HELLO);
            if head.starts_with("POST ") {
                // Answered in full, the connection open, and not one more octet read.
                wire.wait_without_reading(Duration::from_secs(10));
            }
        }
    });
    let (stand, key) = before(&upstream);
    // More than the sockets between them hold.
    for bytes in [20_000_000, 30_000_000] {
        let mut uploading = stand.connect();
        let upload = stand.post("/echo/x").bearer(&key).body(vec![b'x'; bytes]).bytes();
        let sending = std::thread::spawn(move || {
            let _ = uploading.try_send(&upload);
            uploading.response("POST").status()
        });
        assert_eq!(sending.join().unwrap(), 200, "{bytes} bytes");
        let start = Instant::now();
        for _ in 0..4 {
            stand.get("/echo/x").bearer(&key).send().expect_status(200);
        }
        assert!(start.elapsed() < Duration::from_secs(2), "{bytes} bytes: {:?}", start.elapsed());
    }
}
