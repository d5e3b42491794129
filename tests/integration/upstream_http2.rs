//! HTTP/2 to the upstream: what goes out, what comes back, and what is sent again when the upstream says goodbye.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::time::Duration;

use super::support::http2::{
    CANCEL, DATA, END_HEADERS, END_STREAM, End, GOAWAY, HEADERS, Http2, RST_STREAM, block, frame, request,
};
use super::support::{Http2Wire, Key, Scripted, Stand, eventually};

/// Long enough for anything on loopback.
const SOON: Duration = Duration::from_secs(10);

const REFUSED_STREAM: [u8; 4] = 7_u32.to_be_bytes();

fn before(upstream: &Scripted) -> (Stand, Key) {
    let sections = format!("upstreams: {{ main: {{ endpoints: [\"http://{}\"], http2: true }} }}", upstream.address);
    let stand = Stand::new().section(&sections).start();
    let key = stand.key().create();
    (stand, key)
}

#[test]
fn a_request_of_http1_goes_out_with_its_host_as_the_authority_and_comes_back() {
    let upstream = Scripted::start(|wire| {
        let Some(mut peer) = Http2Wire::accept(wire, &[]) else { return };
        while let Some((stream, request)) = peer.request() {
            assert_eq!(request.field(":scheme"), Some("http"));
            assert_eq!(request.field(":authority"), Some("gateway.example"));
            assert_eq!((request.field("host"), request.field("connection")), (None, None));
            assert_eq!(request.field("te"), Some("trailers"));
            assert_eq!(request.body, b"hello");
            assert!(request.field("x-seeme-key-id").is_some());
            let path = request.field(":path").unwrap().to_owned();
            peer.send(HEADERS, END_HEADERS, stream, &block(&[(":status", "201"), ("x-path", &path)]));
            peer.send(DATA, 0, stream, b"wor");
            peer.send(DATA, 0, stream, b"ld");
            let trailers = [("x-checksum", "1"), ("x-seeme-key-id", "forged"), ("content-length", "5")];
            peer.send(HEADERS, END_HEADERS | END_STREAM, stream, &block(&trailers));
        }
    });
    let (stand, key) = before(&upstream);
    for _ in 0..3 {
        let request = stand.post("/echo/a%20b?c=d").bearer(&key).header("TE", "trailers").body("hello");
        let response = request.header("Connection", "close, te").send().expect_status(201);
        assert_eq!(response.text(), "world");
        assert_eq!(response.header("x-path"), Some("/echo/a%20b?c=d"));
    }
    let mut client = Http2::open(stand.gateway.public);
    let bearer = format!("Bearer {}", key.secret);
    let mut fields = super::support::http2::request("POST", "/echo/x");
    fields.extend([("authorization", bearer.as_str()), ("te", "trailers")]);
    let stream = client.start(&fields, false);
    client.data(stream, b"hello", true);
    let answer = client.answer(stream).expect(201);
    assert_eq!(answer.trailer("x-checksum"), Some("1"));
    assert_eq!((answer.trailer("x-seeme-key-id"), answer.trailer("content-length")), (None, None));
    // All on one connection of each worker.
    assert!(upstream.connections() <= 2, "{}", upstream.connections());
}

#[test]
fn more_requests_than_the_upstream_allows_at_once_open_more_connections() {
    let (asked, all_there) = (Arc::new(AtomicUsize::new(0)), Arc::new(Barrier::new(4)));
    let (counted, together) = (asked.clone(), all_there.clone());
    let upstream = Scripted::start(move |wire| {
        let Some(mut peer) = Http2Wire::accept(wire, &[(3, 2)]) else { return };
        let mut held = Vec::new();
        while let Some((stream, request)) = peer.request() {
            if request.field(":path") == Some("/echo/first") {
                peer.answer(stream, &[(":status", "200")], b"ok");
                continue;
            }
            held.push(stream);
            counted.fetch_add(1, Ordering::AcqRel);
            if held.len() == 2 {
                together.wait();
                held.drain(..).for_each(|stream| peer.answer(stream, &[(":status", "200")], b"ok"));
            }
        }
    });
    let (stand, key) = before(&upstream);
    // One connection, so one worker, so one pool.
    let mut client = Http2::open(stand.gateway.public);
    client.get("/echo/first", &key).expect(200);
    let bearer = format!("Bearer {}", key.secret);
    let mut fields = super::support::http2::get("/echo/x");
    fields.push(("authorization", &bearer));
    // One after the other: what a new connection allows is known once its settings are there.
    for count in 1..=6 {
        client.start(&fields, true);
        eventually("the request at the upstream", SOON, || asked.load(Ordering::Acquire) == count);
    }
    all_there.wait();
    let mut answered = 0;
    while answered < 6 {
        let frame = client.next().expect("an answer");
        answered += usize::from(frame.kind == DATA && frame.flags & END_STREAM != 0);
    }
    assert_eq!(upstream.connections(), 3);
}

/// Answers what `refuse` does not take; counts what it was asked.
fn refusing(
    refuse: impl Fn(&mut Http2Wire<'_>, u32, usize) -> bool + Send + Sync + 'static,
) -> (Scripted, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let upstream = Scripted::start(move |wire| {
        let Some(mut peer) = Http2Wire::accept(wire, &[]) else { return };
        while let Some((stream, _)) = peer.request() {
            let count = counted.fetch_add(1, Ordering::AcqRel);
            if !refuse(&mut peer, stream, count) {
                peer.answer(stream, &[(":status", "200")], b"ok");
            }
        }
    });
    (upstream, asked)
}

#[test]
fn a_refused_stream_goes_out_again_on_another_connection() {
    let (upstream, asked) = refusing(|peer, stream, count| {
        if count == 1 {
            peer.send(RST_STREAM, 0, stream, &REFUSED_STREAM);
        }
        count == 1
    });
    let (stand, key) = before(&upstream);
    let mut client = Http2::open(stand.gateway.public);
    client.get("/echo/x", &key).expect(200);
    client.get("/echo/x", &key).expect(200);
    assert_eq!((asked.load(Ordering::Acquire), upstream.connections()), (3, 2));
}

#[test]
fn a_stream_above_the_last_of_a_goaway_goes_out_again_and_one_below_it_does_not() {
    let (upstream, asked) = refusing(|peer, stream, count| match count {
        // Left with the stream before as the last: this one was not processed.
        1 => {
            peer.send(GOAWAY, 0, 0, &[&(stream - 2).to_be_bytes()[..], &[0; 4]].concat());
            true
        }
        // Left with this very stream as the last, and then without a word: it may have been processed.
        3 => {
            peer.send(GOAWAY, 0, 0, &[&stream.to_be_bytes()[..], &[0; 4]].concat());
            peer.send(RST_STREAM, 0, stream, &2_u32.to_be_bytes());
            true
        }
        _ => false,
    });
    let (stand, key) = before(&upstream);
    let mut client = Http2::open(stand.gateway.public);
    client.get("/echo/x", &key).expect(200);
    client.get("/echo/x", &key).expect(200);
    assert_eq!(asked.load(Ordering::Acquire), 3);
    client.get("/echo/x", &key).expect_refusal(502, "upstream_unreachable");
    assert_eq!(asked.load(Ordering::Acquire), 4, "sent again though it may have been processed");
    client.get("/echo/x", &key).expect(200);
}

#[test]
fn an_upload_that_its_client_gives_up_is_cancelled_at_the_upstream() {
    let (ended, wait) = mpsc::channel();
    let ended = Mutex::new(ended);
    let upstream = Scripted::start(move |wire| {
        let Some(mut peer) = Http2Wire::accept(wire, &[]) else { return };
        while let Some(frame) = peer.next() {
            if matches!(frame.kind, DATA | RST_STREAM) {
                ended.lock().unwrap().send((frame.kind, frame.payload)).unwrap();
            }
        }
    });
    let (stand, key) = before(&upstream);
    let bearer = format!("Bearer {}", key.secret);
    let mut client = Http2::open(stand.gateway.public);
    let stream = client.start(&[request("POST", "/echo/x"), vec![("authorization", &bearer)]].concat(), false);
    client.data(stream, b"half", false);
    assert_eq!(wait.recv_timeout(SOON), Ok((DATA, b"half".to_vec())));
    client.frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes());
    assert_eq!(wait.recv_timeout(SOON), Ok((RST_STREAM, CANCEL.to_be_bytes().to_vec())));
}

#[test]
fn an_answer_that_breaks_off_is_never_one_that_ended() {
    let upstream = Scripted::start(|wire| {
        let Some(mut peer) = Http2Wire::accept(wire, &[]) else { return };
        while let Some((stream, _)) = peer.request() {
            peer.send(HEADERS, END_HEADERS, stream, &block(&[(":status", "200")]));
            peer.send(DATA, 0, stream, b"half");
            peer.send(RST_STREAM, 0, stream, &2_u32.to_be_bytes());
        }
    });
    let (stand, key) = before(&upstream);
    let answer = Http2::open(stand.gateway.public).get("/echo/x", &key);
    // Depending on how far it came: nothing, a part, or a refusal in its place.
    assert!(answer.status() == 502 || matches!(answer.end, End::Reset(_)), "{answer:?}");
    let mut connection = stand.get("/echo/x").bearer(&key).start();
    let response = connection.try_response("GET");
    assert!(!response.as_ref().is_ok_and(|r| r.complete && r.status() == 200), "{response:?}");
}

#[test]
fn a_server_that_does_not_speak_http2_is_a_502() {
    let upstream = Scripted::answering("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    let (stand, key) = before(&upstream);
    stand.get("/echo/x").bearer(&key).send().expect_refusal(502, "upstream_unreachable");
}

#[test]
fn an_answer_that_is_given_up_without_an_error_is_not_taken_for_a_whole_one() {
    let upstream = Scripted::start(|wire| {
        let Some(mut peer) = Http2Wire::accept(wire, &[]) else { return };
        while let Some((stream, _)) = peer.request() {
            peer.send(HEADERS, END_HEADERS, stream, &block(&[(":status", "200")]));
            peer.send(DATA, 0, stream, b"abc");
            std::thread::sleep(Duration::from_millis(50));
            peer.send(RST_STREAM, 0, stream, &0_u32.to_be_bytes());
        }
    });
    let (stand, key) = before(&upstream);
    let response = stand.get("/echo/x").bearer(&key).send();
    assert!(!response.complete, "{response:?}");
}

#[test]
fn what_no_final_answer_may_be_is_502() {
    let upstream = Scripted::start(|wire| {
        let Some(mut peer) = Http2Wire::accept(wire, &[]) else { return };
        while let Some((stream, request)) = peer.request() {
            let status = request.field(":path").unwrap().rsplit('/').next().unwrap().to_owned();
            peer.answer(stream, &[(":status", &status)], b"body");
        }
    });
    let (stand, key) = before(&upstream);
    for status in ["600", "999", "204"] {
        stand.get(&format!("/echo/{status}")).bearer(&key).send().expect_refusal(502, "upstream_unreachable");
    }
}

#[test]
fn a_205_and_a_304_have_no_content() {
    let upstream = Scripted::start(|wire| {
        let Some(mut peer) = Http2Wire::accept(wire, &[]) else { return };
        while let Some((stream, request)) = peer.request() {
            let (status, how) = request.field(":path").unwrap()["/echo/".len()..].split_once('/').unwrap();
            let head = frame(HEADERS, END_HEADERS, stream, &block(&[(":status", status)]));
            let body = frame(DATA, END_STREAM, stream, if how == "none" { b"" } else { b"body" });
            // Together, so that the body is there when the head goes out.
            peer.send_octets(&[head, body].concat());
        }
    });
    let (stand, key) = before(&upstream);
    for status in [205, 304] {
        let (none, body) = (format!("/echo/{status}/none"), format!("/echo/{status}/body"));
        let response = stand.get(&none).bearer(&key).send().expect_status(status);
        assert!(response.complete && response.body.is_empty());
        assert!(Http2::open(stand.gateway.public).get(&none, &key).expect(status).body.is_empty());
        stand.get(&body).bearer(&key).send().expect_refusal(502, "upstream_unreachable");
        Http2::open(stand.gateway.public).get(&body, &key).expect_refusal(502, "upstream_unreachable");
    }
}
