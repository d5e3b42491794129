//! gRPC through the gateway: trailers, streams in both directions, and refusals that its clients understand.

use super::support::http2::{CANCEL, DATA, END_HEADERS, END_STREAM, End, HEADERS, Http2, block, request};
use super::support::{Http2Wire, Key, Scripted, Stand};

/// Echoes each message as it comes, then says that all went well.
fn echo() -> Scripted {
    Scripted::start(|wire| {
        let Some(mut peer) = Http2Wire::accept(wire, &[]) else { return };
        while let Some(frame) = peer.next() {
            match frame.kind {
                HEADERS => {
                    let fields = peer.fields(&frame);
                    assert!(fields.contains(&("te".to_owned(), "trailers".to_owned())), "{fields:?}");
                    let head = [(":status", "200"), ("content-type", "application/grpc")];
                    peer.send(HEADERS, END_HEADERS, frame.stream, &block(&head));
                }
                DATA => {
                    if !frame.payload.is_empty() {
                        peer.send(DATA, 0, frame.stream, &frame.payload);
                    }
                    if frame.flags & END_STREAM != 0 {
                        let trailers = block(&[("grpc-status", "0"), ("grpc-message", "fine")]);
                        peer.send(HEADERS, END_HEADERS | END_STREAM, frame.stream, &trailers);
                    }
                }
                _ => {}
            }
        }
    })
}

fn before(upstream: &Scripted) -> (Stand, Key) {
    let sections = format!("upstreams: {{ main: {{ endpoints: [\"http://{}\"], http2: true }} }}", upstream.address);
    let stand = Stand::new()
        .section(&sections)
        .route("POST /pkg.Service/{method}", "scope: models:read")
        .route("POST /other.Service/{method}", "scope: datasets:read")
        .start();
    let key = stand.key().scope("models:read").create();
    (stand, key)
}

fn call<'a>(path: &'a str, bearer: Option<&'a str>) -> Vec<(&'a str, &'a str)> {
    let mut fields = request("POST", path);
    fields.extend([("te", "trailers"), ("content-type", "application/grpc+proto")]);
    fields.extend(bearer.map(|bearer| ("authorization", bearer)));
    fields
}

/// A message: not compressed, so long (the five octets of gRPC).
fn message(text: &str) -> Vec<u8> {
    [&[0][..], &(text.len() as u32).to_be_bytes(), text.as_bytes()].concat()
}

#[test]
fn messages_go_both_ways_while_the_call_is_open_and_the_status_comes_in_trailers() {
    let upstream = echo();
    let (stand, key) = before(&upstream);
    let bearer = format!("Bearer {}", key.secret);
    let mut client = Http2::open(stand.gateway.public);
    let stream = client.start(&call("/pkg.Service/Chat", Some(&bearer)), false);
    for text in ["one", "two", "three"] {
        client.data(stream, &message(text), false);
        // Before the next one is sent.
        let echoed = loop {
            let frame = client.next().expect("the echo");
            if frame.kind == HEADERS {
                client.fields(&frame.payload);
            }
            if frame.kind == DATA {
                break frame.payload;
            }
        };
        assert_eq!(echoed, message(text));
    }
    client.data(stream, &[], true);
    let answer = client.answer(stream);
    assert_eq!(answer.end, End::Stream);
    // Its head came before; what is left are the trailers.
    assert_eq!(answer.header("grpc-status"), Some("0"), "{answer:?}");
}

#[test]
fn a_unary_call_has_its_head_its_message_and_its_trailers() {
    let upstream = echo();
    let (stand, key) = before(&upstream);
    let bearer = format!("Bearer {}", key.secret);
    let mut client = Http2::open(stand.gateway.public);
    let stream = client.start(&call("/pkg.Service/Get", Some(&bearer)), false);
    client.data(stream, &message("x"), true);
    let answer = client.answer(stream).expect(200);
    assert_eq!(answer.body, message("x"));
    assert_eq!((answer.trailer("grpc-status"), answer.trailer("grpc-message")), (Some("0"), Some("fine")));
    assert!(answer.header("x-ratelimit-remaining").is_some());
}

#[test]
fn a_refusal_is_a_status_of_grpc_in_a_head_that_is_also_the_end() {
    let upstream = echo();
    let (stand, key) = before(&upstream);
    let small = stand.limited_key(1, 100);
    let bearer = |key: &Key| format!("Bearer {}", key.secret);
    let (good, small, unknown) = (bearer(&key), bearer(&small), format!("{}x", bearer(&key)));
    let mut client = Http2::open(stand.gateway.public);
    super::support::minute_with(5);
    let first = client.start(&call("/pkg.Service/Get", Some(&small)), false);
    client.data(first, &message("x"), true);
    client.answer(first).expect(200);
    for (path, bearer, status, code) in [
        ("/pkg.Service/Get", None, "16", "missing_key"),
        ("/pkg.Service/Get", Some(&unknown), "16", "invalid_key"),
        ("/other.Service/Get", Some(&good), "7", "insufficient_scope"),
        ("/nobody.Service/Get", Some(&good), "12", "route_not_found"),
        ("/pkg.Service/..", Some(&good), "3", "bad_request"),
        ("/pkg.Service/Get", Some(&small), "8", "rate_limited"),
    ] {
        let stream = client.start(&call(path, bearer.map(String::as_str)), false);
        let answer = client.answer(stream).expect(200);
        assert_eq!(answer.header("grpc-status"), Some(status), "{code}: {answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/grpc"));
        assert!(answer.header("grpc-message").is_some_and(|words| !words.is_empty()));
        assert!(answer.body.is_empty() && answer.trailers.is_empty(), "{answer:?}");
        assert_eq!(answer.header("x-ratelimit-remaining").is_some(), code == "rate_limited", "{answer:?}");
        assert!(stand.gateway.metric("gateway_refusals_total", code).is_some_and(|count| count > 0.0), "{code}");
    }
    // Counted as what they were.
    assert!(stand.gateway.metric("gateway_requests_total", "class=\"4xx\"").is_some_and(|count| count >= 5.0));
}

#[test]
fn an_upstream_that_is_not_there_is_unavailable() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let sections = format!("upstreams: {{ main: {{ endpoints: [\"http://{gone}\"], http2: true }} }}");
    let stand = Stand::new().section(&sections).route("POST /pkg.Service/{method}", "scope: models:read").start();
    let key = stand.key().scope("models:read").create();
    let bearer = format!("Bearer {}", key.secret);
    let mut client = Http2::open(stand.gateway.public);
    let stream = client.start(&call("/pkg.Service/Get", Some(&bearer)), true);
    let answer = client.answer(stream).expect(200);
    assert_eq!(answer.header("grpc-status"), Some("14"), "{answer:?}");
    assert!(answer.header("x-ratelimit-remaining").is_some());
}

#[test]
fn a_call_whose_key_goes_ends_with_a_status_and_what_is_no_grpc_does_not_look_whole() {
    for (kind, is_grpc) in [("application/grpc+proto", true), ("text/plain", false)] {
        let upstream = Scripted::start(move |wire| {
            let Some(mut peer) = Http2Wire::accept(wire, &[]) else { return };
            while let Some(frame) = peer.next() {
                if frame.kind == HEADERS {
                    let head = block(&[(":status", "200"), ("content-type", kind)]);
                    peer.send(HEADERS, END_HEADERS, frame.stream, &head);
                    peer.send(DATA, 0, frame.stream, &message("one"));
                }
            }
        });
        let (stand, key) = before(&upstream);
        let bearer = format!("Bearer {}", key.secret);
        let mut client = Http2::open(stand.gateway.public);
        let stream = client.start(&call("/pkg.Service/Watch", Some(&bearer)), true);
        loop {
            let frame = client.next().expect("a message");
            match frame.kind {
                HEADERS => drop(client.fields(&frame.payload)),
                DATA => break,
                _ => {}
            }
        }
        stand.cli(&["keys", "disable", &key.id]).expect_success();
        let rest = client.answer(stream);
        if is_grpc {
            // Its head came before; what is left are the trailers.
            let status = rest.fields.iter().find(|(name, _)| name == "grpc-status");
            assert_eq!((status.map(|(_, value)| value.as_str()), rest.end), (Some("16"), End::Stream), "{rest:?}");
        } else {
            assert_eq!(rest.end, End::Reset(CANCEL), "{rest:?}");
        }
        assert_eq!(stand.gateway.request_log(1)[0]["status"], 401);
    }
}
