//! Bodies, streams, trailers, aborts and timeouts between a client and a backend, both of which do as they are told here.

use std::net::TcpListener;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::support::{Connection, Key, Scripted, Stand, Wire, eventually};

const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// Long enough for anything on loopback.
const SOON: Duration = Duration::from_secs(5);

fn before(upstream: &Scripted) -> (Stand, Key) {
    let stand = Stand::new().upstream(upstream.address).start();
    let key = stand.key().create();
    (stand, key)
}

/// A signal from the test to a script, once or several times.
fn signal() -> (mpsc::Sender<()>, Arc<Mutex<mpsc::Receiver<()>>>) {
    let (sender, receiver) = mpsc::channel();
    (sender, Arc::new(Mutex::new(receiver)))
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at % 251) as u8).collect()
}

#[test]
fn a_body_with_a_length_arrives_whole_and_with_its_length() {
    let stand = Stand::new().start();
    let key = stand.key().create();
    for bytes in [0, 1, 1000, 3_000_000] {
        let body = pattern(bytes);
        let response = stand.post("/echo/x").bearer(&key).body(&body).send().expect_status(200);
        let echoed = response.json();
        assert_eq!(echoed["body_bytes"], bytes);
        assert_eq!(echoed["body_blake3"], blake3::hash(&body).to_hex().as_str());
        assert_eq!(response.echoed_once("content-length"), bytes.to_string());
        assert!(response.echoed("transfer-encoding").is_empty());
    }
}

#[test]
fn a_chunked_body_arrives_whole_and_chunked() {
    let stand = Stand::new().start();
    let key = stand.key().create();
    let body = pattern(300_000);
    let chunks: Vec<&[u8]> = body.chunks(7001).collect();
    let response = stand.post("/echo/x").bearer(&key).chunked(&chunks, &[]).send().expect_status(200);
    assert_eq!(response.json()["body_blake3"], blake3::hash(&body).to_hex().as_str());
    assert_eq!(response.echoed_once("transfer-encoding"), "chunked");
    assert!(response.echoed("content-length").is_empty());
}

#[test]
fn a_response_with_a_length_and_one_in_chunks_come_back_as_they_are() {
    let stand = Stand::new().start();
    let key = stand.key().create();
    let response = stand.get("/echo/x?bytes=5000000").bearer(&key).send().expect_status(200);
    assert_eq!((response.body.len(), response.number("content-length")), (5_000_000, 5_000_000));
    let body = pattern(1_000_000);
    let response =
        stand.post("/echo/x?reflect=1").bearer(&key).chunked(&[&body[..500_000], &body[500_000..]], &[]).send();
    assert!(response.complete && response.body == body);
    assert_eq!(response.header("transfer-encoding"), Some("chunked"));
}

#[test]
fn a_request_body_is_streamed_and_not_collected_first() {
    let (first_seen, seen) = mpsc::channel();
    let first_seen = Mutex::new(first_seen);
    let upstream = Scripted::start(move |wire| {
        if wire.head().is_some() && wire.take(5).is_some() {
            first_seen.lock().unwrap().send(()).unwrap();
            if wire.take(5).is_some() {
                wire.send(HELLO);
            }
        }
    });
    let (stand, key) = before(&upstream);
    let mut connection = stand.connect();
    let bytes = stand.post("/echo/x").bearer(&key).body("0123456789").bytes();
    let half = bytes.len() - 5;
    connection.send(&bytes[..half]);
    seen.recv_timeout(SOON).expect("the first half reaches the backend before the second is sent");
    connection.send(&bytes[half..]);
    connection.response("POST").expect_status(200);
}

#[test]
fn events_come_one_by_one_as_they_are_sent() {
    let (go, wait) = signal();
    let upstream = Scripted::start(move |wire| {
        if wire.request().is_some() {
            wire.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
            for _ in 0..3 {
                wire.send("9\r\ndata: x\n\n\r\n");
                if wait.lock().unwrap().recv_timeout(SOON).is_err() {
                    return;
                }
            }
            wire.send("0\r\n\r\n");
        }
    });
    let (stand, key) = before(&upstream);
    let mut connection = stand.get("/echo/x").bearer(&key).start();
    let head = connection.head();
    assert_eq!(head.all("content-type"), ["text/event-stream"]);
    for _ in 0..3 {
        // The backend sends the next only after this one was received.
        assert_eq!(connection.chunk().unwrap(), b"data: x\n\n");
        go.send(()).unwrap();
    }
    assert_eq!(connection.chunk().unwrap(), b"");
}

#[test]
fn a_response_that_ends_with_its_connection_is_passed_on_whole() {
    let upstream = Scripted::start(|wire| {
        if wire.request().is_some() {
            wire.send("HTTP/1.1 200 OK\r\n\r\nuntil the end");
        }
    });
    let (stand, key) = before(&upstream);
    let mut connection = stand.connect();
    let response = stand.get("/echo/x").bearer(&key).on(&mut connection);
    assert!(response.complete);
    assert_eq!(response.text(), "until the end");
}

#[test]
fn trailers_pass_in_both_directions() {
    let stand = Stand::new().start();
    let key = stand.key().create();
    let request = stand.post("/echo/x?trailer=1").bearer(&key).header("TE", "trailers").header("Trailer", "X-Sum");
    let response = request.chunked(&[b"hello"], &[("X-Sum", "abc")]).send().expect_status(200);
    assert_eq!(response.json()["trailers"]["x-sum"][0], "abc");
    let sum = blake3::hash(&response.body).to_hex().to_string();
    assert!(response.complete);
    let trailers: Vec<_> = response.trailers.iter().map(|(n, v)| (n.to_lowercase(), v.clone())).collect();
    assert_eq!(trailers, [("x-checksum".to_owned(), sum)]);
}

#[test]
fn head_204_and_304_have_no_body_and_leave_the_connection_in_step() {
    let upstream = Scripted::start(|wire| {
        while let Some(request) = wire.request() {
            match request.head.split(' ').next().unwrap() {
                "HEAD" => wire.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
                "DELETE" => wire.send("HTTP/1.1 204 No Content\r\n\r\n"),
                "PUT" => wire.send("HTTP/1.1 304 Not Modified\r\nETag: \"1\"\r\nContent-Length: 500\r\n\r\n"),
                _ => wire.send(HELLO),
            }
        }
    });
    let (stand, key) = before(&upstream);
    let mut connection = stand.connect();
    for _ in 0..3 {
        let head = stand.request("HEAD", "/echo/x").bearer(&key).on(&mut connection).expect_status(200);
        assert_eq!(head.number("content-length"), 1000);
        let none = stand.request("DELETE", "/echo/x").bearer(&key).on(&mut connection).expect_status(204);
        assert_eq!((none.header("content-length"), none.header("transfer-encoding")), (None, None));
        let unchanged = stand.request("PUT", "/echo/x").bearer(&key).body("x").on(&mut connection).expect_status(304);
        assert_eq!(unchanged.expect_header("etag"), "\"1\"");
        assert_eq!(stand.get("/echo/x").bearer(&key).on(&mut connection).expect_status(200).text(), "ok");
    }
    assert_eq!(upstream.connections(), 1, "none of them cost the connection to the backend");
}

#[test]
fn a_client_that_expects_100_is_told_to_continue_only_when_its_body_is_wanted() {
    let stand = Stand::new().start();
    let key = stand.key().create();
    let expecting = |request: super::support::Request| {
        let bytes = request.header("Expect", "100-continue").header("Content-Length", "5").bytes();
        let mut connection = stand.connect();
        connection.send(bytes);
        connection
    };
    let mut connection = expecting(stand.post("/echo/x").bearer(&key));
    assert_eq!(connection.head().status, 100);
    connection.send("hello");
    let response = connection.response("POST").expect_status(200);
    assert_eq!(response.json()["body_bytes"], 5);
    assert!(response.echoed("expect").is_empty(), "the gateway has answered it");

    let mut connection = expecting(stand.post("/echo/x"));
    let response = connection.response("POST").expect_refusal(401, "missing_key");
    assert_eq!(response.interim, [] as [u16; 0]);
}

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
    let (gone, noticed) = mpsc::channel();
    let (arrived, there) = mpsc::channel();
    let ends = Mutex::new((arrived, gone));
    let upstream = Scripted::start(move |wire| {
        if wire.request().is_some() {
            let ends = ends.lock().unwrap();
            ends.0.send(()).unwrap();
            ends.1.send(wire.is_closed_by_gateway()).unwrap();
        }
    });
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
    let bytes = stand.post("/echo/x").bearer(&key).body(pattern(10)).bytes();
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
    for answer in
        ["SSH-2.0-OpenSSH\r\n\r\n", "HTTP/1.1 abc OK\r\n\r\n", "", "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"]
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
fn an_interim_answer_of_the_backend_does_not_disturb_the_final_one() {
    let upstream = Scripted::answering(format!("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n{HELLO}"));
    let (stand, key) = before(&upstream);
    let response = stand.get("/echo/x").bearer(&key).send().expect_status(200);
    assert_eq!(response.text(), "ok");
}

/// Fails now and then: a request that was written when the close arrived is 502 today. Contract 2 has it sent again
/// (`retries`, which this build refuses as not enforced yet).
#[test]
#[ignore = "waits for `upstreams.X.retries`"]
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
fn a_client_of_http_1_0_gets_a_chunked_answer_without_chunks() {
    let upstream = Scripted::answering("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
    let (stand, key) = before(&upstream);
    let mut connection = stand.connect();
    connection.send(format!("GET /echo/x HTTP/1.0\r\nHost: a\r\nAuthorization: Bearer {}\r\n\r\n", key.secret));
    let response = connection.response("GET").expect_status(200);
    assert_eq!((response.text().as_str(), response.header("transfer-encoding")), ("hello", None));
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

#[test]
fn a_chunked_body_that_grows_too_large_is_413() {
    let stand = Stand::new().section("limits: { body_bytes: 1KiB }").start();
    let key = stand.key().create();
    let chunk = [b'x'; 1000];
    stand.post("/echo/x").bearer(&key).chunked(&[&chunk], &[]).send().expect_status(200);
    let response = stand.post("/echo/x").bearer(&key).chunked(&[&chunk, &chunk], &[]).send();
    response.expect_refusal(413, "body_too_large");
}

#[test]
fn a_connection_serves_on_after_a_refused_small_body() {
    let stand = Stand::new().start();
    let key = stand.key().create();
    let mut connection = stand.connect();
    for _ in 0..5 {
        stand.post("/echo/x").body("small").on(&mut connection).expect_refusal(401, "missing_key");
        stand.post("/nowhere").body("small").on(&mut connection).expect_refusal(404, "route_not_found");
        let response = stand.post("/echo/x").bearer(&key).body("hello").on(&mut connection).expect_status(200);
        assert_eq!(response.json()["body_bytes"], 5);
    }
}

#[test]
fn requests_that_come_at_once_are_answered_in_their_order() {
    let stand = Stand::new().start();
    let key = stand.key().create();
    let mut connection: Connection = stand.connect();
    let numbers: Vec<u32> = (0..10).collect();
    let bytes: Vec<u8> = numbers.iter().flat_map(|n| stand.get(&format!("/echo/{n}")).bearer(&key).bytes()).collect();
    connection.send(bytes);
    for n in numbers {
        assert_eq!(connection.response("GET").expect_status(200).json()["path"], format!("/echo/{n}"));
    }
}

#[test]
fn connections_to_the_backend_are_used_again() {
    let upstream = Scripted::answering(HELLO);
    let (stand, key) = before(&upstream);
    let mut kept = stand.connect();
    for _ in 0..100 {
        stand.get("/echo/x").bearer(&key).on(&mut kept).expect_status(200);
    }
    assert_eq!(upstream.connections(), 1);
    for _ in 0..100 {
        stand.get("/echo/x").bearer(&key).send().expect_status(200);
    }
    // One for each of the two workers.
    assert!(upstream.connections() <= 3, "{}", upstream.connections());
}

#[test]
fn a_large_body_flows_through_without_being_held() {
    let stand = Stand::new().start();
    let key = stand.key().create();
    let resident = || -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", stand.gateway.process.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    stand.get("/echo/x?bytes=1000000").bearer(&key).send().expect_status(200);
    let before = resident();
    let bytes = 64 << 20;
    let response = stand.get(&format!("/echo/x?bytes={bytes}")).bearer(&key).send().expect_status(200);
    assert_eq!(response.body.len(), bytes);
    let response = stand.post("/echo/x").bearer(&key).body(&response.body).send().expect_status(200);
    assert_eq!(response.json()["body_bytes"], bytes);
    let grown = resident().saturating_sub(before);
    assert!(grown < 16 * 1024, "resident memory grew by {grown} KiB for 64 MiB up and down");
}

#[test]
fn a_client_that_reads_slowly_holds_the_backend_back_and_nothing_is_lost() {
    let stand = Stand::new().start();
    let key = stand.key().create();
    let bytes = 20_000_000;
    let mut connection = stand.get(&format!("/echo/x?bytes={bytes}")).bearer(&key).start();
    let head = connection.head();
    assert_eq!(head.all("content-length"), [bytes.to_string()]);
    let mut whole = blake3::Hasher::new();
    for _ in 0..20 {
        whole.update(&connection.take(bytes / 20).expect("a twentieth"));
    }
    let again = stand.get(&format!("/echo/x?bytes={bytes}")).bearer(&key).send();
    assert_eq!(whole.finalize(), blake3::hash(&again.body));
}
