//! Bodies, streams and trailers between a client and a backend when all goes well.

use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::support::{Connection, Scripted, Stand, before};

const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// Long enough for anything on loopback.
const SOON: Duration = Duration::from_secs(5);

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
fn the_answer_of_a_backend_that_speaks_1_0_is_told_in_the_gateways_own_version() {
    let upstream = Scripted::start(|wire| {
        if wire.request().is_some() {
            wire.send("HTTP/1.0 200 OK\r\n\r\nold");
        }
    });
    let (stand, key) = before(&upstream);
    let answer = stand.get("/echo/x").bearer(&key).send().expect_status(200);
    assert_eq!((answer.head.version.as_str(), answer.text().as_str()), ("HTTP/1.1", "old"));
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
fn an_interim_answer_of_the_backend_does_not_disturb_the_final_one() {
    let upstream = Scripted::answering(format!("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n{HELLO}"));
    let (stand, key) = before(&upstream);
    let response = stand.get("/echo/x").bearer(&key).send().expect_status(200);
    assert_eq!(response.text(), "ok");
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
    let resident = || stand.gateway.process.resident();
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

#[test]
fn an_options_request_goes_as_far_as_it_may_and_no_further() {
    let upstream = Scripted::answering("HTTP/1.1 204 No Content\r\n\r\n");
    let stand = Stand::new().route("OPTIONS|GET /a", "access: public").upstream(upstream.address).start();
    let last = stand.request("OPTIONS", "/a").header("Max-Forwards", "0").send().expect_status(204);
    assert_eq!(last.expect_header("allow"), "OPTIONS, GET, HEAD");
    assert!(upstream.requests().is_empty());
    for (method, sent, seen) in [("OPTIONS", "3", "2"), ("OPTIONS", "x", "x"), ("GET", "0", "0")] {
        stand.request(method, "/a").header("Max-Forwards", sent).send().expect_status(204);
        assert_eq!(upstream.requests().last().unwrap().all("max-forwards"), [seen], "{method} {sent}");
    }
}

#[test]
fn the_body_of_a_get_in_chunks_goes_on() {
    let upstream = Scripted::answering("HTTP/1.1 204 No Content\r\n\r\n");
    let (stand, key) = before(&upstream);
    let mut connection = stand.connect();
    let head = format!("GET /echo/x HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\n", key.secret);
    connection.send(format!("{head}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"));
    assert_eq!(connection.response("GET").status(), 204);
    assert_eq!(upstream.requests()[0].body, b"5\r\nhello\r\n0\r\n\r\n");
}

#[test]
fn an_answer_that_breaks_off_ends_with_a_reset_for_a_client_of_http_1_0() {
    let upstream = Scripted::start(|wire| {
        if wire.request().is_some() {
            wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    });
    let (stand, key) = before(&upstream);
    let mut connection = stand.connect();
    connection.send(format!("GET /echo/x HTTP/1.0\r\nHost: a\r\nAuthorization: Bearer {}\r\n\r\n", key.secret));
    connection.head();
    assert!(connection.ends_with_a_reset());
}
