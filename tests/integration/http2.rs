//! HTTP/2 in front: how it begins, what an exchange looks like, how a connection ends.

use std::time::Duration;

use super::support::http2::{self, DATA, END_STREAM, End, GOAWAY, Http2};
use super::support::{Scripted, Stand, eventually};

/// Long enough for anything on loopback.
const SOON: Duration = Duration::from_secs(10);

#[test]
fn a_request_by_prior_knowledge_is_authorized_forwarded_and_answered() {
    let stand = Stand::new().start();
    let key = stand.key().create();
    let mut client = Http2::open(stand.gateway.public);
    let answer = client.get("/echo/x?a=1", &key).expect(200);
    let echoed = answer.json();
    assert_eq!((&echoed["path"], &echoed["query"]), (&"/echo/x".into(), &"a=1".into()));
    assert_eq!(answer.echoed("host"), ["gateway.example"]);
    assert_eq!(answer.echoed("x-forwarded-host"), ["gateway.example"]);
    assert_eq!(answer.echoed("x-forwarded-proto"), ["http"]);
    assert_eq!(answer.echoed("via"), ["2 seeme-gateway"]);
    assert_eq!(answer.echoed("x-seeme-key-id").join(","), key.id);
    assert!(answer.header("x-ratelimit-remaining").is_some() && answer.header("x-request-id").is_some());
    // The connection serves on, and what was refused on it costs nobody anything.
    let refused = client.exchange(&http2::get("/echo/x")).expect_refusal(401, "missing_key");
    assert_eq!(refused.end, End::Stream);
    assert_eq!(refused.header("content-type"), Some("application/problem+json"));
    assert!(refused.header("connection").is_none());
    client.get("/echo/y", &key).expect(200);
}

#[test]
fn requests_on_one_connection_do_not_wait_for_each_other() {
    let stand = Stand::new().start();
    let key = stand.key().create();
    let bearer = format!("Bearer {}", key.secret);
    let mut client = Http2::open(stand.gateway.public);
    let start = |client: &mut Http2, path: &str| {
        let mut fields = http2::get(path);
        fields.push(("authorization", &bearer));
        client.start(&fields, true)
    };
    let slow = start(&mut client, "/echo/x?delay_ms=1500");
    let quick: Vec<u32> = (0..20).map(|_| start(&mut client, "/echo/x")).collect();
    let mut order = Vec::new();
    while order.len() < 21 {
        let frame = client.next().expect("answers");
        if frame.kind == DATA && frame.flags & END_STREAM != 0 {
            order.push(frame.stream);
        }
    }
    assert_eq!(order.pop(), Some(slow));
    assert!(quick.iter().all(|stream| order.contains(stream)));
}

#[test]
fn a_gateway_that_drains_says_goodbye_and_finishes_what_it_has_begun() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let upstream = Scripted::start(move |wire| {
        if wire.request().is_some() {
            let _ = wait.lock().unwrap().recv();
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let mut stand = Stand::new().upstream(upstream.address).start();
    let key = stand.key().create();
    let mut client = Http2::open(stand.gateway.public);
    let stream = client.start_get("/echo/x", &key);
    eventually("the request at the upstream", SOON, || upstream.requests().len() == 1);
    stand.gateway.process.terminate();
    while client.next().expect("GOAWAY").kind != GOAWAY {}
    go.send(()).unwrap();
    let answer = client.answer(stream).expect(200);
    assert_eq!(answer.body, b"ok");
    client.last_word();
    assert_eq!(stand.gateway.process.wait().code, Some(0));
}

#[test]
fn a_client_that_is_idle_too_long_is_told_goodbye_before_its_connection_ends() {
    let stand = Stand::new().section("timeouts: { keepalive: 1s }").start();
    let key = stand.key().create();
    let mut client = Http2::open(stand.gateway.public);
    client.get("/echo/x", &key).expect(200);
    assert_eq!(client.last_word(), Some(0));
    // One that does not say that it has heard it is told its last request all the same.
    let mut client = Http2::open(stand.gateway.public);
    client.is_attentive = false;
    client.get("/echo/x", &key).expect(200);
    let words: Vec<Vec<u8>> = std::iter::from_fn(|| client.next())
        .filter(|frame| frame.kind == GOAWAY)
        .map(|frame| frame.payload[..4].to_vec())
        .collect();
    assert_eq!(words, [[0x7f, 0xff, 0xff, 0xff], [0, 0, 0, 1]]);
}

#[test]
fn the_octets_of_a_preface_may_come_one_by_one_and_a_method_that_begins_like_it_is_http1() {
    let stand = Stand::new().start();
    let mut slow = super::support::Transport::plain(stand.gateway.public);
    for octet in &seeme_gateway::wire::frames::PREFACE[..20] {
        std::io::Write::write_all(&mut slow, &[*octet]).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    std::io::Write::write_all(&mut slow, &seeme_gateway::wire::frames::PREFACE[20..]).unwrap();
    std::io::Write::write_all(&mut slow, &http2::frame(http2::SETTINGS, 0, 0, &[])).unwrap();
    let mut head = [0; 9];
    std::io::Read::read_exact(&mut slow, &mut head).unwrap();
    assert_eq!(head[3], http2::SETTINGS);
    for (method, pause) in [("POST", false), ("PROPFIND", false), ("PRI", true), ("P", true)] {
        let mut connection = stand.connect();
        let request = format!("{method} /nowhere HTTP/1.1\r\nHost: a\r\n\r\n");
        let (first, rest) = request.split_at(if pause { 1 } else { request.len() });
        connection.send(first);
        if pause {
            std::thread::sleep(Duration::from_millis(20));
        }
        connection.send(rest);
        assert_eq!(connection.response(method).status(), 404, "{method}");
    }
}

/// Its sending ends, and is told of, when its connection does.
fn answering_more_than_fits() -> (Scripted, std::sync::mpsc::Receiver<()>) {
    let (freed, wait) = std::sync::mpsc::channel();
    let freed = std::sync::Mutex::new(freed);
    let upstream = Scripted::start(move |wire| {
        if wire.request().is_some() {
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n");
            wire.send(vec![b'x'; 50_000_000]);
            freed.lock().unwrap().send(()).unwrap();
        }
    });
    (upstream, wait)
}

#[test]
fn a_client_that_makes_no_room_for_an_answer_loses_its_stream_and_frees_the_backend() {
    let (upstream, freed) = answering_more_than_fits();
    let stand = Stand::new().section("timeouts: { idle: 300ms }").upstream(upstream.address).start();
    let key = stand.key().create();
    let mut client = Http2::open(stand.gateway.public);
    let stream = client.start_get("/echo/x", &key);
    freed.recv_timeout(SOON).expect("the backend is free");
    let last = std::iter::from_fn(|| client.next()).find(|frame| frame.kind == http2::RST_STREAM);
    assert_eq!(last.map(|frame| frame.stream), Some(stream));
}

#[test]
fn an_answer_that_its_client_makes_no_room_for_ends_with_its_key() {
    let (upstream, freed) = answering_more_than_fits();
    let stand = Stand::new().upstream(upstream.address).start();
    let key = stand.key().create();
    let bearer = format!("Bearer {}", key.secret);
    let mut client = Http2::open(stand.gateway.public);
    let mut fields = http2::get("/echo/x");
    fields.push(("authorization", &bearer));
    client.start(&fields, true);
    eventually("the request at the upstream", SOON, || !upstream.requests().is_empty());
    stand.cli(&["keys", "delete", &key.id]).expect_success();
    freed.recv_timeout(SOON).expect("the backend is free");
}

#[test]
fn an_upload_that_is_given_up_without_an_error_is_not_forwarded_as_a_whole_one() {
    let (ended, wait) = std::sync::mpsc::channel();
    let ended = std::sync::Mutex::new(ended);
    let upstream = Scripted::start(move |wire| {
        // None: the connection ended before the body did.
        let whole = wire.request().is_some();
        ended.lock().unwrap().send(whole).unwrap();
    });
    let stand = Stand::new().upstream(upstream.address).start();
    let key = stand.key().create();
    let bearer = format!("Bearer {}", key.secret);
    let mut client = Http2::open(stand.gateway.public);
    let mut fields = http2::request("POST", "/echo/x");
    fields.push(("authorization", &bearer));
    let stream = client.start(&fields, false);
    client.data(stream, b"half", false);
    eventually("the connection to the upstream", SOON, || upstream.connections() == 1);
    client.frame(http2::RST_STREAM, 0, stream, &0_u32.to_be_bytes());
    assert!(!wait.recv_timeout(SOON).expect("the backend is free"));
}
