//! What a request of HTTP/2 must be (RFC 9113 section 8): the malformed is refused, and never forwarded in any form.

use super::support::http2::{DATA, END_HEADERS, END_STREAM, End, HEADERS, Http2, RST_STREAM, block, get, request};
use super::support::{Key, Scripted, Stand};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const PROTOCOL_ERROR: u32 = 1;

fn before() -> (Scripted, Stand, Key) {
    let upstream = Scripted::answering(OK);
    let stand = Stand::new().upstream(upstream.address).start();
    let key = stand.key().create();
    (upstream, stand, key)
}

/// The fields of a request that would pass, with some changed (an empty value: left out) and some added.
fn changed(key: &Key, changes: &[(&str, &str)]) -> Vec<(String, String)> {
    let bearer = format!("Bearer {}", key.secret);
    let mut fields: Vec<(String, String)> =
        get("/echo/x").into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    fields.push(("authorization".to_owned(), bearer));
    for (name, value) in changes {
        fields.retain(|(known, _)| !known.starts_with(':') || known != name);
        if !value.is_empty() {
            let place = if name.starts_with(':') { 0 } else { fields.len() };
            fields.insert(place, ((*name).to_owned(), (*value).to_owned()));
        }
    }
    fields
}

fn borrowed(fields: &[(String, String)]) -> Vec<(&str, &str)> {
    fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

#[test]
fn what_the_gateway_itself_refuses_is_a_400_and_the_connection_serves_on() {
    let (upstream, stand, key) = before();
    let mut client = Http2::open(stand.gateway.public);
    let long = "a".repeat(20_000);
    for (changes, status) in [
        (&[("host", "other.example")][..], 400),
        (&[(":authority", ""), ("x", "y")], 400),
        (&[(":authority", ""), ("host", "a.example"), ("host", "a.example")], 400),
        (&[(":authority", "user@gateway.example")], 400),
        (&[(":authority", "gateway.example:99999")], 400),
        (&[(":path", "/echo/x#fragment")], 400),
        (&[(":path", "/echo/x?a#b")], 400),
        (&[(":path", "#")], 400),
        (&[(":path", "/echo/../x")], 400),
        (&[(":path", "/echo/%2e%2e/x")], 400),
        (&[(":path", "/echo/a%2Fb")], 400),
        (&[(":path", "/echo/a\\b")], 400),
        (&[(":path", "/echo/a\"b")], 400),
        (&[(":path", "/echo/x?a\\b")], 400),
        (&[(":path", "/echo/x?a`b")], 400),
        (&[(":path", "/echo//x")], 400),
        (&[(":scheme", "ftp")], 400),
        (&[(":scheme", "ftp"), (":authority", ""), ("host", "gateway.example")], 400),
        (&[("x-padded", " a")], 400),
        (&[("x-padded", "a\t")], 400),
        (&[("content-length", "0"), ("content-length", "0")], 400),
        (&[(":path", &format!("/echo/{long}"))], 414),
        (&[("x-a", &long), ("x-b", &long), ("x-c", &long), ("x-d", &long)], 431),
    ] {
        let fields = changed(&key, changes);
        let answer = client.exchange(&borrowed(&fields));
        assert_eq!(answer.status(), status, "{changes:?}: {answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{changes:?}");
        assert!(answer.header("connection").is_none(), "{changes:?}");
    }
    // `Host` alone, or the same twice over, is fine.
    for changes in [&[(":authority", ""), ("host", "gateway.example")][..], &[("host", "gateway.example")], &[]] {
        client.exchange(&borrowed(&changed(&key, changes))).expect(200);
    }
    assert_eq!(upstream.requests().len(), 3);
}

#[test]
fn what_is_malformed_resets_its_stream_or_ends_the_connection_and_is_not_forwarded() {
    let (upstream, stand, key) = before();
    for changes in [
        &[("connection", "close")][..],
        &[("transfer-encoding", "chunked")],
        &[("keep-alive", "1")],
        &[("proxy-connection", "keep-alive")],
        &[("upgrade", "websocket")],
        &[("te", "gzip")],
        &[("te", "trailers, gzip")],
        &[("X-Upper", "a")],
        &[("x a", "b")],
        &[("x:a", "b")],
        &[("", "a")],
        &[("x-a", "b\r\nx-c: d")],
        &[("x-a", "b\nc")],
        &[("x-a", "b\0c")],
        &[("x\r\ny", "a")],
        &[(":method", "GET /admin HTTP/1.1\r\nX:")],
        &[(":method", "")],
        &[(":path", "")],
        &[(":path", "/echo/x y")],
        &[(":path", "/echo/x?a\"b")],
        &[(":path", "/echo/x?<a>")],
        &[(":path", "/echo/x HTTP/1.1\r\nX: y")],
        &[(":scheme", "")],
        &[(":authority", "a b")],
        &[(":status", "200")],
        &[(":protocol", "websocket")],
        &[(":unknown", "a")],
        &[("content-length", "5")],
        &[("content-length", "-1")],
        &[("content-length", "1, 1")],
        &[("content-length", "1"), ("content-length", "2")],
    ] {
        let fields = changed(&key, changes);
        let answer = Http2::open(stand.gateway.public).exchange(&borrowed(&fields));
        let refused = matches!(answer.status(), 0 | 400) && (answer.status() == 400 || answer.end != End::Stream);
        assert!(refused, "{changes:?}: {answer:?}");
    }
    assert!(upstream.requests().is_empty(), "{:?}", upstream.requests());
}

#[test]
fn pseudo_fields_come_first_and_once() {
    let (upstream, stand, key) = before();
    let bearer = format!("Bearer {}", key.secret);
    let usual = [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "gateway.example"),
        (":path", "/echo/x"),
        ("authorization", &bearer),
    ];
    let late = [usual[0], usual[1], usual[4], usual[2], usual[3]];
    let mut fields = vec![late.to_vec()];
    for twice in 0..4 {
        let mut both = usual.to_vec();
        both.insert(0, usual[twice]);
        fields.push(both);
    }
    for fields in fields {
        let answer = Http2::open(stand.gateway.public).exchange(&fields);
        assert_eq!((answer.status(), answer.end), (0, End::Reset(PROTOCOL_ERROR)), "{fields:?}");
    }
    assert!(upstream.requests().is_empty());
}

#[test]
fn connect_in_both_its_forms_is_refused() {
    let (upstream, stand, key) = before();
    let bearer = format!("Bearer {}", key.secret);
    let mut client = Http2::open(stand.gateway.public);
    let plain = [(":method", "CONNECT"), (":authority", "127.0.0.1:22"), ("authorization", bearer.as_str())];
    let answer = client.exchange(&plain);
    assert!((400..500).contains(&answer.status()), "{answer:?}");
    let mut extended = request("CONNECT", "/echo/x");
    extended.insert(1, (":protocol", "websocket"));
    extended.push(("authorization", &bearer));
    let answer = client.exchange(&extended);
    assert!(answer.status() == 0 && answer.end != End::Stream, "{answer:?}");
    assert!(upstream.requests().is_empty());
}

#[test]
fn a_body_that_is_not_as_long_as_announced_reaches_no_upstream_as_a_whole_request() {
    let (upstream, stand, key) = before();
    let bearer = format!("Bearer {}", key.secret);
    for (announced, sent) in [("3", &b"four"[..]), ("5", b"four")] {
        let mut client = Http2::open(stand.gateway.public);
        let mut fields = request("POST", "/echo/x");
        fields.extend([("authorization", bearer.as_str()), ("content-length", announced)]);
        let stream = client.start(&fields, false);
        client.data(stream, sent, true);
        let answer = client.answer(stream);
        assert!(answer.status() != 200, "{answer:?}");
    }
    assert!(upstream.requests().is_empty(), "{:?}", upstream.requests());
}

#[test]
fn cookies_are_joined_trailers_filtered_and_a_body_without_a_length_is_chunked() {
    let (upstream, stand, key) = before();
    let bearer = format!("Bearer {}", key.secret);
    let mut client = Http2::open(stand.gateway.public);
    let mut fields = request("POST", "/echo/x");
    fields.extend([("authorization", bearer.as_str()), ("cookie", "a=1"), ("cookie", "b=2"), ("trailer", "x-sum")]);
    let stream = client.start(&fields, false);
    client.data(stream, b"ab", false);
    client.data(stream, b"c", false);
    let trailers = block(&[("x-sum", "1"), ("x-seeme-key-id", "forged"), ("authorization", "x")]);
    client.frame(HEADERS, END_HEADERS | END_STREAM, stream, &trailers);
    client.answer(stream).expect(200);
    let received = &upstream.requests()[0];
    assert_eq!(received.all("cookie"), ["a=1; b=2"]);
    assert_eq!(received.all("transfer-encoding"), ["chunked"]);
    assert!(received.all("content-length").is_empty());
    let body = String::from_utf8_lossy(&received.body).into_owned();
    assert!(body.contains("ab") && body.contains('c') && !body.contains("forged"), "{body}");
    assert!(received.head.starts_with("POST /echo/x HTTP/1.1\r\n"), "{}", received.head);
    assert_eq!(received.all("host"), ["gateway.example"]);
}

#[test]
fn trailers_with_pseudo_fields_or_connection_fields_are_malformed() {
    let (upstream, stand, key) = before();
    let bearer = format!("Bearer {}", key.secret);
    for trailer in [(":path", "/admin"), ("connection", "close"), ("transfer-encoding", "chunked"), ("X-Upper", "a")] {
        let mut client = Http2::open(stand.gateway.public);
        let mut fields = request("POST", "/echo/x");
        fields.push(("authorization", &bearer));
        let stream = client.start(&fields, false);
        client.data(stream, b"abc", false);
        client.frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&[trailer]));
        let answer = client.answer(stream);
        assert!(answer.status() != 200, "{trailer:?}: {answer:?}");
    }
    assert!(upstream.requests().is_empty(), "{:?}", upstream.requests());
}

#[test]
fn hop_by_hop_fields_of_an_upstream_never_appear() {
    let upstream = Scripted::answering(
        "HTTP/1.1 200 OK\r\nConnection: keep-alive, x-hop\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\nUpgrade: h2c\r\n\
         Proxy-Connection: keep-alive\r\nTransfer-Encoding: chunked\r\nX-Kept: 1\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    );
    let stand = Stand::new().upstream(upstream.address).start();
    let key = stand.key().create();
    let answer = Http2::open(stand.gateway.public).get("/echo/x", &key).expect(200);
    for name in ["connection", "keep-alive", "x-hop", "upgrade", "proxy-connection", "transfer-encoding"] {
        assert!(answer.header(name).is_none(), "{name}: {answer:?}");
    }
    assert_eq!((answer.header("x-kept"), &*answer.body), (Some("1"), &b"ok"[..]));
}

#[test]
fn an_upstream_that_breaks_off_is_a_reset_and_never_an_end() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nnonsense\r\n",
    ] {
        let upstream = Scripted::start(move |wire| {
            wire.request();
            wire.send(answer);
        });
        let stand = Stand::new().upstream(upstream.address).start();
        let key = stand.key().create();
        let got = Http2::open(stand.gateway.public).get("/echo/x", &key);
        // What is broken before it goes out is a refusal.
        assert!(got.status() == 502 || matches!(got.end, End::Reset(_)), "{answer:?}: {got:?}");
    }
}

#[test]
fn a_refusal_is_told_before_the_body_is_read_and_the_connection_serves_on() {
    let (upstream, stand, key) = before();
    let mut client = Http2::open(stand.gateway.public);
    let stream = client.start(&request("POST", "/echo/x"), false);
    let answer = client.answer(stream).expect_refusal(401, "missing_key");
    assert_eq!(answer.end, End::Stream);
    // Told that nobody reads it; what is still sent is no error of the connection.
    client.data(stream, b"late", true);
    client.get("/echo/x", &key).expect(200);
    assert_eq!(upstream.requests().len(), 1);
}

#[test]
fn a_client_that_gives_a_request_up_ends_it_at_the_upstream_too() {
    let (gone, told) = std::sync::mpsc::channel();
    let gone = std::sync::Mutex::new(gone);
    let upstream = Scripted::start(move |wire| {
        if wire.request().is_some() {
            let _ = gone.lock().unwrap().send(wire.is_closed_by_gateway());
        }
    });
    let stand = Stand::new().upstream(upstream.address).start();
    let key = stand.key().create();
    let bearer = format!("Bearer {}", key.secret);
    let mut client = Http2::open(stand.gateway.public);
    let mut fields = get("/echo/x");
    fields.push(("authorization", &bearer));
    let stream = client.start(&fields, true);
    super::support::eventually("the request at the upstream", std::time::Duration::from_secs(10), || {
        upstream.requests().len() == 1
    });
    client.frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes());
    assert!(told.recv_timeout(std::time::Duration::from_secs(10)).unwrap());
}

#[test]
fn frames_of_no_meaning_and_padding_change_nothing() {
    let (_upstream, stand, key) = before();
    let bearer = format!("Bearer {}", key.secret);
    let mut client = Http2::open(stand.gateway.public);
    client.frame(0xbe, 0xff, 0, b"who knows");
    let mut fields = request("POST", "/echo/x");
    fields.push(("authorization", &bearer));
    let mut head = vec![3];
    head.extend([0, 0, 0, 0, 16]);
    head.extend(block(&fields));
    head.extend([0; 3]);
    client.frame(HEADERS, END_HEADERS | 0x8 | 0x20, 1, &head);
    client.frame(DATA, END_STREAM | 0x8, 1, &[&[2][..], b"abc", &[0; 2]].concat());
    assert_eq!(client.answer(1).status(), 200);
}
