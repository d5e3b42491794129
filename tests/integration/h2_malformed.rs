//! A field that is malformed on its octets is an error of its stream and of nothing else (RFC 9113 section 8.1.1).

use super::support::http2::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, End, GOAWAY, HEADERS, Http2, PING, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, block, frame, get, request,
};
use super::support::{Key, Scripted, Stand};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const FRAME_SIZE_ERROR: u32 = 6;
const COMPRESSION_ERROR: u32 = 9;

const MALFORMED: [(&str, &str); 15] = [
    ("X-Upper", "a"),
    ("x a", "b"),
    ("x:a", "b"),
    ("x\r\ny", "a"),
    ("x\u{7f}", "a"),
    ("", "a"),
    ("", ""),
    ("x-a", "b\nc"),
    ("x-a", "b\r\nx-c: d"),
    ("x-a", "b\0c"),
    ("x-a", "\u{1}"),
    ("x-a", "\u{7f}"),
    (":status", "a"),
    (":unknown", "a"),
    ("content-length", ""),
];

fn before() -> (Scripted, Stand, Key, String) {
    let upstream = Scripted::answering(OK);
    let stand = Stand::new().upstream(upstream.address).start();
    let key = stand.key().create();
    let bearer = format!("Bearer {}", key.secret);
    (upstream, stand, key, bearer)
}

/// A literal that the table keeps.
fn kept(name: &str, value: &str) -> Vec<u8> {
    let mut octets = vec![0x40, name.len() as u8];
    octets.extend(name.as_bytes());
    octets.push(value.len() as u8);
    octets.extend(value.as_bytes());
    octets
}

#[test]
fn a_malformed_field_resets_its_stream_and_the_connection_serves_on() {
    let (upstream, stand, key, bearer) = before();
    let mut client = Http2::open(stand.gateway.public);
    let mut open = request("POST", "/echo/open");
    open.push(("authorization", &bearer));
    // One that is under way all the time.
    let under_way = client.start(&open, false);
    for field in MALFORMED {
        let mut fields = get("/echo/x");
        fields.push(("authorization", &bearer));
        fields.insert(if field.0.starts_with(':') { 0 } else { fields.len() }, field);
        let answer = client.exchange(&fields);
        assert_eq!((answer.status(), answer.end), (0, End::Reset(PROTOCOL_ERROR)), "{field:?}");
    }
    client.get("/echo/x", &key).expect(200);
    client.data(under_way, b"body", true);
    client.answer(under_way).expect(200);
    assert_eq!(upstream.requests().len(), 2, "{:?}", upstream.requests());
}

#[test]
fn the_tables_of_both_sides_stay_in_step_behind_a_malformed_field() {
    let (upstream, stand, _key, bearer) = before();
    for field in MALFORMED.into_iter().filter(|field| *field != ("", "")) {
        let mut client = Http2::open(stand.gateway.public);
        // A table in which all four fields have just room (RFC 7541 sections 4.1 and 6.3): it shows when one is longer on one side.
        let fields = [("authorization", bearer.as_str()), ("x-kept", "1"), field, ("x-after", "2")];
        let room: usize = fields.iter().map(|(name, value)| name.len() + value.len() + 32).sum();
        let table = vec![0x3f, (room - 31) as u8 | 0x80, ((room - 31) >> 7) as u8];
        let usual = [table, block(&get("/echo/x")), kept("authorization", &bearer), kept("x-kept", "1")].concat();
        let first = client.start_block(&usual, true);
        client.answer(first).expect(200);
        // Fills places in the table with what cannot be read, between two that can.
        let bad = [block(&get("/echo/x")), kept(field.0, field.1), kept("x-after", "2")].concat();
        let second = client.start_block(&bad, true);
        assert_eq!(client.answer(second).end, End::Reset(PROTOCOL_ERROR), "{field:?}");
        // x-after, x-kept and authorization by their places.
        let third = client.start_block(&[block(&get("/echo/x")), vec![0xbe, 0xc0, 0xc1]].concat(), true);
        client.answer(third).expect(200);
        let received = upstream.requests().pop().unwrap();
        assert_eq!((received.all("x-after"), received.all("x-kept")), (vec!["2"], vec!["1"]), "{field:?}");
        // And the one between: as malformed as it was.
        let fourth = client.start_block(&[block(&get("/echo/x")), vec![0xc1, 0xbf]].concat(), true);
        assert_eq!(client.answer(fourth).end, End::Reset(PROTOCOL_ERROR), "{field:?}");
    }
}

#[test]
fn a_connection_is_ended_with_the_code_of_its_error() {
    let (upstream, stand, _key, bearer) = before();
    let mut fields = get("/echo/x");
    fields.push(("authorization", &bearer));
    let head = |stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&fields));
    for (octets, code) in [
        (head(3), PROTOCOL_ERROR),
        (head(1), PROTOCOL_ERROR),
        (frame(SETTINGS, 0, 0, &[0; 5]), FRAME_SIZE_ERROR),
        (frame(SETTINGS, ACK, 0, &[0; 6]), FRAME_SIZE_ERROR),
        (frame(PING, 0, 0, &[0; 7]), FRAME_SIZE_ERROR),
        (frame(RST_STREAM, 0, 3, &[0; 5]), FRAME_SIZE_ERROR),
        (frame(WINDOW_UPDATE, 0, 0, &[0; 3]), FRAME_SIZE_ERROR),
        (frame(GOAWAY, 0, 0, &[0; 7]), FRAME_SIZE_ERROR),
        (frame(SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0]), FLOW_CONTROL_ERROR),
        (frame(HEADERS, END_HEADERS, 5, &[&block(&fields)[..], &[0x20]].concat()), COMPRESSION_ERROR),
        (frame(HEADERS, END_HEADERS, 5, &[0x20, 0x20, 0x20, 0x82]), COMPRESSION_ERROR),
    ] {
        let mut client = Http2::open(stand.gateway.public);
        client.send(head(3));
        client.answer(3).expect(200);
        client.send(&octets);
        assert_eq!(client.last_word(), Some(code), "{octets:?}");
    }
    assert_eq!(upstream.requests().len(), 11);
}

#[test]
fn where_the_octets_are_cut_makes_no_difference() {
    let (upstream, stand, key, bearer) = before();
    let mut client = Http2::open(stand.gateway.public);
    let mut fields = get("/echo/x");
    fields.extend([("authorization", bearer.as_str()), ("x-a", "b\nc"), ("x-b", "d")]);
    let whole = block(&fields);
    for cut in [1, 30, whole.len() - 3] {
        let stream = client.next_stream();
        let octets = [
            frame(HEADERS, END_STREAM, stream, &whole[..cut]),
            frame(CONTINUATION, 0, stream, &[]),
            frame(CONTINUATION, END_HEADERS, stream, &whole[cut..]),
        ]
        .concat();
        for piece in octets.chunks(11) {
            client.send(piece);
            // So that it is likely to be read by itself; nothing hangs on that.
            std::thread::yield_now();
        }
        assert_eq!(client.answer(stream).end, End::Reset(PROTOCOL_ERROR), "{cut}");
        client.get("/echo/x", &key).expect(200);
    }
    assert_eq!(upstream.requests().len(), 3);
}

#[test]
fn malformed_trailers_reset_their_stream() {
    let (upstream, stand, key, bearer) = before();
    let mut client = Http2::open(stand.gateway.public);
    for trailer in [(":path", "/admin"), ("X-Upper", "a"), ("x-a", "b\nc"), ("", "a")] {
        let mut fields = request("POST", "/echo/x");
        fields.push(("authorization", &bearer));
        let stream = client.start(&fields, false);
        client.frame(DATA, 0, stream, b"abc");
        client.frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&[trailer]));
        let answer = client.answer(stream);
        assert!(answer.status() != 200 && answer.end != End::Closed, "{trailer:?}: {answer:?}");
    }
    client.get("/echo/x", &key).expect(200);
    assert_eq!(upstream.requests().len(), 1, "{:?}", upstream.requests());
}

#[test]
fn a_peer_that_sends_nothing_but_malformed_requests_is_cut() {
    let (upstream, stand, ..) = before();
    let mut client = Http2::open(stand.gateway.public);
    let mut fields = get("/echo/x");
    fields.push(("X-Upper", "a"));
    let heads = block(&fields);
    let head = |stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &heads);
    let sent = (0..20_000)
        .take_while(|_| {
            let stream = client.next_stream();
            client.try_send(head(stream)).is_ok()
        })
        .count();
    let word = client.last_word();
    assert!(word.is_none_or(|code| code != 0), "{word:?} after {sent}");
    assert!(upstream.requests().is_empty());
}
