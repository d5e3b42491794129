//! Answers of an upstream that speaks HTTP/2: judged as strictly as those over HTTP/1, each on its own stream.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::time::Duration;

use super::support::http2::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, End, GOAWAY, HEADERS, Http2, PING, RST_STREAM, SETTINGS, block,
    frame, get, literal, request,
};
use super::support::{Http2Wire, Key, Scripted, Stand};

/// Long enough for anything on loopback.
const SOON: Duration = Duration::from_secs(10);
const PROTOCOL_ERROR: u32 = 1;

fn before(upstream: &Scripted) -> (Stand, Key) {
    let sections = format!("upstreams: {{ main: {{ endpoints: [\"http://{}\"], http2: true }} }}", upstream.address);
    let stand = Stand::new().section(&sections).start();
    let key = stand.key().create();
    (stand, key)
}

fn with_key<'a>(mut fields: Vec<(&'a str, &'a str)>, bearer: &'a str) -> Vec<(&'a str, &'a str)> {
    fields.push(("authorization", bearer));
    fields
}

/// Octets of a whole answer with these fields, for this stream.
type Made = Box<dyn Fn(u32) -> Vec<u8> + Send + Sync>;

fn fields(fields: &'static [(&'static str, &'static str)]) -> Made {
    Box::new(move |stream| {
        [frame(HEADERS, END_HEADERS, stream, &block(fields)), frame(DATA, END_STREAM, stream, b"body")].concat()
    })
}

/// Answers `/echo/good` well and every other path with what was made for its number, all on one connection. A wait is answered
/// behind the bad one beside it.
fn judged(bad: Vec<Made>) -> Scripted {
    Scripted::start(move |wire| {
        let Some(mut peer) = Http2Wire::accept(wire, &[]) else { return };
        let (mut waiting, mut refused) = (None, false);
        while let Some(came) = peer.next() {
            if came.kind != HEADERS {
                continue;
            }
            let fields = peer.fields(&came);
            let path = fields.iter().find(|(name, _)| name == ":path").unwrap().1.clone();
            match path.rsplit('/').next().unwrap() {
                "wait" if !refused => waiting = Some(came.stream),
                "wait" => peer.answer(came.stream, &[(":status", "200")], b"waited"),
                "good" => {
                    refused = false;
                    peer.answer(came.stream, &[(":status", "200")], b"good");
                }
                number => {
                    refused = true;
                    peer.send_octets(&bad[number.parse::<usize>().unwrap()](came.stream));
                    if let Some(stream) = waiting.take() {
                        peer.answer(stream, &[(":status", "200")], b"waited");
                    }
                }
            }
        }
    })
}

/// Each of these is a 502 to clients of both versions, while another stream of the same connection is answered.
fn all_are_refused(bad: Vec<(&'static str, Made)>) {
    let (names, made): (Vec<_>, Vec<_>) = bad.into_iter().unzip();
    let upstream = judged(made);
    let (stand, key) = before(&upstream);
    let bearer = format!("Bearer {}", key.secret);
    let mut client = Http2::open(stand.gateway.public);
    client.get("/echo/good", &key).expect(200);
    for (number, name) in names.iter().enumerate() {
        let path = format!("/echo/{number}");
        let waits = client.start(&with_key(get("/echo/wait"), &bearer), true);
        let bad = client.start(&with_key(get(&path), &bearer), true);
        let (mut refused, mut whole) = (None, Vec::new());
        while refused.is_none() || whole.is_empty() {
            let frame = client.next().unwrap_or_else(|| panic!("{name}: the client's connection ended"));
            match frame.kind {
                HEADERS if frame.stream == bad => {
                    let fields = client.fields(&frame.payload);
                    refused = Some(fields[0].1.clone());
                }
                HEADERS => drop(client.fields(&frame.payload)),
                DATA if frame.stream == waits => whole.extend(frame.payload),
                RST_STREAM => panic!("{name}: {frame:?}"),
                _ => {}
            }
        }
        assert_eq!((refused.as_deref(), &*whole), (Some("502"), &b"waited"[..]), "{name}");
        stand.get(&path).bearer(&key).send().expect_refusal(502, "upstream_unreachable");
        client.get("/echo/good", &key).expect(200);
    }
    // Each worker has one: none was lost.
    assert!(upstream.connections() <= 2, "{} connections", upstream.connections());
}

#[test]
fn an_answer_with_fields_that_no_answer_may_have_is_502_and_the_stream_beside_it_is_answered() {
    all_are_refused(vec![
        (":path", fields(&[(":status", "200"), (":path", "/")])),
        (":method", fields(&[(":status", "200"), (":method", "GET")])),
        (":scheme", fields(&[(":scheme", "http"), (":status", "200")])),
        (":authority", fields(&[(":status", "200"), (":authority", "a")])),
        (":protocol", fields(&[(":status", "200"), (":protocol", "a")])),
        ("an unknown one", fields(&[(":status", "200"), (":other", "a")])),
        ("no status", fields(&[("x", "y")])),
        ("two statuses", fields(&[(":status", "200"), (":status", "200")])),
        ("a late status", fields(&[("x", "y"), (":status", "200")])),
        ("two digits", fields(&[(":status", "20")])),
        ("four digits", fields(&[(":status", "2000")])),
        ("a letter", fields(&[(":status", "2x0")])),
        ("a sign", fields(&[(":status", "+20")])),
        ("no digits", fields(&[(":status", "")])),
        ("600", fields(&[(":status", "600")])),
        ("101", fields(&[(":status", "101")])),
        ("Connection", fields(&[(":status", "200"), ("connection", "close")])),
        ("Transfer-Encoding", fields(&[(":status", "200"), ("transfer-encoding", "chunked")])),
        ("Keep-Alive", fields(&[(":status", "200"), ("keep-alive", "1")])),
        ("Upgrade", fields(&[(":status", "200"), ("upgrade", "h2c")])),
        ("Proxy-Connection", fields(&[(":status", "200"), ("proxy-connection", "close")])),
        ("two lengths", fields(&[(":status", "200"), ("content-length", "4"), ("content-length", "4")])),
        ("other lengths", fields(&[(":status", "200"), ("content-length", "4"), ("content-length", "5")])),
        ("a list of lengths", fields(&[(":status", "200"), ("content-length", "4, 4")])),
        ("a length with a sign", fields(&[(":status", "200"), ("content-length", "+4")])),
        ("204 with a length", fields(&[(":status", "204"), ("content-length", "4")])),
        ("a capital", fields(&[(":status", "200"), ("X-Upper", "a")])),
        ("a line feed", fields(&[(":status", "200"), ("x-a", "b\r\nx-c: d")])),
        ("a control", fields(&[(":status", "200"), ("x-a", "b\0")])),
        ("a space in a name", fields(&[(":status", "200"), ("x a", "b")])),
        ("no name", fields(&[(":status", "200"), ("", "b")])),
        ("a padded value", fields(&[(":status", "200"), ("x-a", " b")])),
    ]);
}

#[test]
fn an_answer_that_is_not_as_long_as_announced_or_breaks_at_once_is_502() {
    let head = |stream, fields: &[(&str, &str)]| frame(HEADERS, END_HEADERS, stream, &block(fields));
    let ok = [(":status", "200")];
    let reset = |stream, code: u32| frame(RST_STREAM, 0, stream, &code.to_be_bytes());
    all_are_refused(vec![
        ("too much", fields(&[(":status", "200"), ("content-length", "3")])),
        ("too little", fields(&[(":status", "200"), ("content-length", "5")])),
        (
            "nothing",
            Box::new(move |stream| {
                let announced = [(":status", "200"), ("content-length", "5")];
                frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&announced))
            }),
        ),
        (
            "an interim answer that ends the stream",
            Box::new(|stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&[(":status", "103")]))),
        ),
        (
            "an interim answer with a length",
            Box::new(move |stream| {
                [head(stream, &[(":status", "103"), ("content-length", "4")]), head(stream, &ok)].concat()
            }),
        ),
        ("a head and a reset", Box::new(move |stream| [head(stream, &ok), reset(stream, 2)].concat())),
        (
            "a head, some of the body, and a reset",
            Box::new(move |stream| [head(stream, &ok), frame(DATA, 0, stream, b"half"), reset(stream, 2)].concat()),
        ),
        (
            "the same without an error",
            Box::new(move |stream| {
                let pieces = frame(DATA, 0, stream, b"half").repeat(3);
                [head(stream, &ok), pieces, reset(stream, 0)].concat()
            }),
        ),
        (
            "a head in two frames, malformed in the second",
            Box::new(|stream| {
                let more = block(&[("x-a", "b"), ("X-Upper", "c")]);
                let start = frame(HEADERS, END_STREAM, stream, &block(&[(":status", "200")]));
                [start, frame(CONTINUATION, END_HEADERS, stream, &more)].concat()
            }),
        ),
        (
            "more fields than are taken",
            Box::new(|stream| {
                let large = literal("x-a", "b".repeat(16_000));
                let mut frames = frame(HEADERS, END_STREAM, stream, &block(&[(":status", "200")]));
                frames.extend((0..20).flat_map(|_| frame(CONTINUATION, 0, stream, &large)));
                frames.extend(frame(CONTINUATION, END_HEADERS, stream, &[]));
                frames
            }),
        ),
    ]);
}

/// The head has gone out when the rest comes.
#[test]
fn what_breaks_behind_its_head_is_visibly_broken() {
    let (go, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let upstream = Scripted::start(move |wire| {
        let Some(mut peer) = Http2Wire::accept(wire, &[]) else { return };
        while let Some((stream, request)) = peer.request() {
            let how = request.field(":path").unwrap().rsplit('/').next().unwrap().to_owned();
            let announced = [(":status", "200"), ("content-length", "10")];
            let fields = if how == "short" { &announced[..] } else { &announced[..1] };
            peer.send(HEADERS, END_HEADERS, stream, &block(fields));
            peer.send(DATA, 0, stream, b"half");
            wait.lock().unwrap().recv().unwrap();
            let trailers: &[(&str, &str)] = match &*how {
                "status" => &[(":status", "200")],
                "path" => &[(":path", "/")],
                "upper" => &[("X-Upper", "a")],
                "connection" => &[("connection", "close")],
                _ => &[],
            };
            match trailers {
                [] if how == "short" => peer.send(DATA, END_STREAM, stream, b"5"),
                [] => peer.send_octets(
                    &[frame(DATA, 0, stream, b"more"), frame(RST_STREAM, 0, stream, &2_u32.to_be_bytes())].concat(),
                ),
                trailers => peer.send(HEADERS, END_HEADERS | END_STREAM, stream, &block(trailers)),
            }
        }
    });
    let (stand, key) = before(&upstream);
    let bearer = format!("Bearer {}", key.secret);
    for how in ["status", "path", "upper", "connection", "short", "reset"] {
        let path = format!("/echo/{how}");
        let mut client = Http2::open(stand.gateway.public);
        let stream = client.start(&with_key(get(&path), &bearer), true);
        let head = std::iter::from_fn(|| client.next()).find(|frame| frame.kind == HEADERS).unwrap();
        assert_eq!(client.fields(&head.payload)[0].1, "200", "{how}");
        go.send(()).unwrap();
        let answer = client.answer(stream);
        assert!(matches!(answer.end, End::Reset(_)), "{how}: {answer:?}");
        // HTTP/1: the head comes, and the body has no end.
        let mut connection = stand.get(&path).bearer(&key).start();
        assert_eq!(connection.head().status, 200);
        go.send(()).unwrap();
        let is_whole = match how {
            "short" => connection.take(10).is_some(),
            _ => std::iter::from_fn(|| connection.chunk()).any(|chunk| chunk.is_empty()),
        };
        assert!(!is_whole, "{how}");
    }
}

/// More came with the head than is looked at before it goes out, and less than hyper would write before the body goes on.
#[test]
fn what_breaks_far_behind_its_head_shows_the_head_first() {
    let upstream = Scripted::start(|wire| {
        let Some(mut peer) = Http2Wire::accept(wire, &[]) else { return };
        while let Some((stream, _)) = peer.request() {
            let head = frame(HEADERS, END_HEADERS, stream, &block(&[(":status", "200")]));
            let reset = frame(RST_STREAM, 0, stream, &2_u32.to_be_bytes());
            peer.send_octets(&[head, frame(DATA, 0, stream, b"half").repeat(10), reset].concat());
        }
    });
    let (stand, key) = before(&upstream);
    for _ in 0..5 {
        let mut connection = stand.get("/echo/x").bearer(&key).start();
        assert_eq!(connection.head().status, 200);
        assert!(!std::iter::from_fn(|| connection.chunk()).any(|chunk| chunk.is_empty()), "it looks whole");
        let answer = Http2::open(stand.gateway.public).get("/echo/x", &key);
        assert!(matches!(answer.end, End::Reset(_)), "{answer:?}");
    }
}

#[test]
fn trailers_of_an_upstream_say_nothing_of_framing_or_identity() {
    let upstream = Scripted::start(|wire| {
        let Some(mut peer) = Http2Wire::accept(wire, &[]) else { return };
        while let Some((stream, _)) = peer.request() {
            peer.send(HEADERS, END_HEADERS, stream, &block(&[(":status", "200")]));
            peer.send(DATA, 0, stream, b"ok");
            let trailers = [
                ("x-sum", "1"),
                ("content-length", "5"),
                ("host", "a"),
                ("set-cookie", "a=b"),
                ("authorization", "a"),
                ("x-seeme-key-id", "forged"),
                ("x-ratelimit-limit", "9"),
            ];
            peer.send(HEADERS, END_HEADERS | END_STREAM, stream, &block(&trailers));
        }
    });
    let (stand, key) = before(&upstream);
    let answer = Http2::open(stand.gateway.public).get("/echo/x", &key).expect(200);
    let names: Vec<&str> = answer.trailers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!((names, &*answer.body), (vec!["x-sum"], &b"ok"[..]));
}

#[test]
fn interim_answers_without_end_are_cut_and_a_few_are_fine() {
    let (ended, told) = mpsc::channel();
    let ended = Mutex::new(ended);
    let upstream = Scripted::start(move |wire| {
        let Some(mut peer) = Http2Wire::accept(wire, &[]) else { return };
        while let Some((stream, request)) = peer.request() {
            let interim = frame(HEADERS, END_HEADERS, stream, &block(&[(":status", "103"), ("link", "</a>")]));
            if request.field(":path") == Some("/echo/few") {
                peer.send_octets(&interim.repeat(32));
                peer.answer(stream, &[(":status", "200")], b"ok");
                continue;
            }
            // Whoever does not listen to the reset of his stream loses the connection.
            let sent = (0..1_000_000).take_while(|_| peer.try_send_octets(&interim)).count();
            ended.lock().unwrap().send(sent).unwrap();
            return;
        }
    });
    let (stand, key) = before(&upstream);
    let mut client = Http2::open(stand.gateway.public);
    client.get("/echo/few", &key).expect(200);
    client.get("/echo/many", &key).expect_refusal(502, "upstream_unreachable");
    let sent = told.recv_timeout(SOON).expect("the connection was cut");
    assert!(sent < 1_000_000, "{sent}");
    client.get("/echo/few", &key).expect(200);
}

#[test]
fn an_upstream_connection_that_cannot_be_followed_is_cut_and_its_requests_are_502() {
    let upstream = Scripted::start(|wire| {
        let Some(mut peer) = Http2Wire::accept(wire, &[]) else { return };
        while let Some((stream, request)) = peer.request() {
            match request.field(":path").unwrap() {
                "/echo/table" => peer.send(HEADERS, END_HEADERS, stream, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
                "/echo/push" => peer.send(5, END_HEADERS, stream, &[0, 0, 0, 2, 0x88]),
                "/echo/no_head" => peer.send(DATA, END_STREAM, stream, b"body"),
                "/echo/stray" => peer.send(CONTINUATION, END_HEADERS, stream, &[0x88]),
                "/echo/endless" => {
                    peer.send(HEADERS, 0, stream, &[0x88]);
                    let piece = frame(CONTINUATION, 0, stream, &literal("x-a", "b".repeat(1000)));
                    while peer.try_send_octets(&piece) {}
                }
                _ => peer.answer(stream, &[(":status", "200")], b"ok"),
            }
        }
    });
    let (stand, key) = before(&upstream);
    for path in ["/echo/table", "/echo/push", "/echo/no_head", "/echo/stray", "/echo/endless"] {
        stand.get(path).bearer(&key).send().expect_refusal(502, "upstream_unreachable");
        assert_eq!(stand.get("/echo/x").bearer(&key).send().expect_status(200).text(), "ok", "{path}");
    }
}

#[test]
fn an_upstream_that_does_not_begin_with_its_settings_or_wants_a_push_is_502() {
    let first: [&[u8]; 4] = [
        &frame(SETTINGS, ACK, 0, &[]),
        &frame(PING, 0, 0, &[0; 8]),
        &frame(SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 1]),
        &frame(SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0]),
    ];
    for first in first {
        let octets = [first, &frame(SETTINGS, 0, 0, &[])].concat();
        let upstream = Scripted::start(move |wire| {
            wire.send(&octets);
            let Some(mut peer) = Http2Wire::accept(wire, &[]) else { return };
            while let Some((stream, _)) = peer.request() {
                peer.answer(stream, &[(":status", "200")], b"ok");
            }
        });
        let (stand, key) = before(&upstream);
        stand.get("/echo/x").bearer(&key).send().expect_refusal(502, "upstream_unreachable");
    }
}

#[test]
fn before_an_upstream_has_said_how_many_it_takes_requests_wait_and_none_fails() {
    let (together, most) = (Arc::new(Barrier::new(2)), Arc::new(AtomicUsize::new(0)));
    let (all_there, seen) = (together.clone(), most.clone());
    let first = AtomicUsize::new(0);
    let upstream = Scripted::start(move |wire| {
        if first.fetch_add(1, Ordering::AcqRel) == 0 {
            // Its settings come when all requests are there.
            all_there.wait();
        }
        let Some(mut peer) = Http2Wire::accept(wire, &[(3, 2)]) else { return };
        let mut open: Vec<u32> = Vec::new();
        while let Some(frame) = peer.next() {
            match frame.kind {
                HEADERS => {
                    peer.fields(&frame);
                    open.push(frame.stream);
                    seen.fetch_max(open.len(), Ordering::AcqRel);
                }
                DATA if frame.flags & END_STREAM != 0 => {
                    open.retain(|stream| *stream != frame.stream);
                    peer.answer(frame.stream, &[(":status", "200")], b"ok");
                }
                _ => {}
            }
        }
    });
    let (stand, key) = before(&upstream);
    let bearer = format!("Bearer {}", key.secret);
    let mut client = Http2::open(stand.gateway.public);
    // With bodies that stream: nobody could send them a second time.
    let streams: Vec<u32> =
        (0..12).map(|_| client.start(&with_key(request("POST", "/echo/x"), &bearer), false)).collect();
    client.frame(super::support::http2::PING, 0, 0, &[1; 8]);
    while client.next().expect("a pong").kind != super::support::http2::PING {}
    together.wait();
    streams.iter().for_each(|stream| client.data(*stream, b"body", true));
    let (mut statuses, mut ended) = (Vec::new(), 0);
    while ended < streams.len() {
        let frame = client.next().expect("an answer");
        match frame.kind {
            HEADERS => statuses.push(client.fields(&frame.payload)[0].1.clone()),
            DATA => ended += usize::from(frame.flags & END_STREAM != 0),
            RST_STREAM | GOAWAY => panic!("{frame:?}"),
            _ => {}
        }
    }
    assert_eq!(statuses, vec!["200"; 12]);
    assert!(most.load(Ordering::Acquire) <= 2, "{most:?} at once");
}

#[test]
fn a_malformed_answer_is_told_to_the_upstream_as_a_stream_error() {
    let (told, code) = mpsc::channel();
    let told = Mutex::new(told);
    let upstream = Scripted::start(move |wire| {
        let Some(mut peer) = Http2Wire::accept(wire, &[]) else { return };
        while let Some(frame) = peer.next() {
            match frame.kind {
                HEADERS => peer.answer(frame.stream, &[(":status", "2x0")], b"body"),
                RST_STREAM => {
                    let code = u32::from_be_bytes(frame.payload[..4].try_into().unwrap());
                    told.lock().unwrap().send((frame.stream, code)).unwrap();
                }
                _ => {}
            }
        }
    });
    let (stand, key) = before(&upstream);
    stand.get("/echo/x").bearer(&key).send().expect_refusal(502, "upstream_unreachable");
    assert_eq!(code.recv_timeout(SOON), Ok((1, PROTOCOL_ERROR)));
}
