//! What is sent again when an upstream's HTTP/2 connection is lost, and what never is: as over HTTP/1, for each stream by itself.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::support::http2::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, Http2, RST_STREAM, WINDOW_UPDATE, block, frame, get, request,
};
use super::support::{Exchange, Http2Wire, Scripted, Stand};

/// A stand in front of these, with a public route for every method.
fn before(endpoints: &[SocketAddr], members: &str) -> Stand {
    let urls: Vec<String> = endpoints.iter().map(|address| format!("\"http://{address}\"")).collect();
    let section = format!("upstreams: {{ main: {{ endpoints: [{}], http2: true{members} }} }}", urls.join(", "));
    Stand::new().section(&section).upstream(endpoints[0]).route("* /public/{*rest}", "access: public").start()
}

type Asked = Arc<Mutex<Vec<Exchange>>>;

/// Leaves its connection at each request, the first `times`, as `leave` says; then answers. And what it was asked.
fn leaving(times: usize, leave: impl Fn(&mut Http2Wire<'_>, u32) + Send + Sync + 'static) -> (Scripted, Asked) {
    let asked = Asked::default();
    let seen = asked.clone();
    let upstream = Scripted::start(move |wire| {
        let Some(mut peer) = Http2Wire::accept(wire, &[(4, 1 << 20)]) else { return };
        peer.send(WINDOW_UPDATE, 0, 0, &(1_u32 << 20).to_be_bytes());
        while let Some((stream, request)) = peer.request() {
            let count = {
                let mut seen = seen.lock().unwrap();
                seen.push(request);
                seen.len()
            };
            if count <= times {
                return leave(&mut peer, stream);
            }
            peer.answer(stream, &[(":status", "200")], b"");
        }
    });
    (upstream, asked)
}

#[test]
fn a_request_without_an_answer_is_sent_again_if_its_method_allows_it() {
    for (method, body, status) in [
        ("GET", "", 200),
        ("HEAD", "", 200),
        ("OPTIONS", "", 200),
        ("DELETE", "", 200),
        ("PUT", "", 200),
        ("POST", "", 502),
        ("PATCH", "", 502),
        // A small body is kept until the answer begins, a large one is gone once it was sent.
        ("PUT", "small", 200),
        ("DELETE", "small", 200),
        ("GET", "small", 200),
        ("PUT", &"x".repeat(64 * 1024 + 1), 502),
        ("POST", "small", 502),
        ("PATCH", "small", 502),
    ] {
        let (backend, asked) = leaving(2, |_, _| ());
        let stand = before(&[backend.address], "");
        let request = stand.request(method, "/public/x?a=b").header("X-A", "1");
        let request = if body.is_empty() { request } else { request.body(body) };
        assert_eq!(request.send().status(), status, "{method} {}", body.len());
        let asked = asked.lock().unwrap();
        assert_eq!(asked.len(), if status == 200 { 3 } else { 1 }, "{method} {}", body.len());
        assert!(asked.iter().all(|seen| seen.fields == asked[0].fields && seen.body == body.as_bytes()), "{asked:?}");
    }
}

#[test]
fn there_are_so_many_tries_and_no_more() {
    for (members, tries) in [
        ("", 3),
        (", retries: { attempts: 0 }", 1),
        (", retries: { attempts: 5 }", 6),
        (", retries: { attempts: 5, budget: 0% }", 1),
    ] {
        let (backend, asked) = leaving(usize::MAX, |_, _| ());
        let stand = before(&[backend.address], members);
        stand.get("/public/x").send().expect_refusal(502, "upstream_unreachable");
        assert_eq!(asked.lock().unwrap().len(), tries, "{members}");
    }
}

#[test]
fn once_any_octet_of_an_answer_has_come_nothing_is_sent_again() {
    let interim = block(&[(":status", "103"), ("link", "</a>")]);
    let ok = block(&[(":status", "200")]);
    type Leave = Box<dyn Fn(&mut Http2Wire<'_>, u32) + Send + Sync>;
    let cases: [(&str, Leave); 6] = [
        ("an interim answer", Box::new(move |peer, stream| peer.send(HEADERS, END_HEADERS, stream, &interim))),
        ("a head that goes on", Box::new(move |peer, stream| peer.send(HEADERS, 0, stream, &ok))),
        (
            "the beginning of a frame",
            Box::new(|peer, stream| {
                peer.send_octets(&frame(HEADERS, END_HEADERS, stream, &[0x88])[..9]);
            }),
        ),
        (
            "the first octets of one",
            Box::new(|peer, stream| {
                peer.send_octets(&frame(HEADERS, END_HEADERS, stream, &[0x88])[..4]);
            }),
        ),
        ("a reset of the stream", Box::new(|peer, stream| peer.send(RST_STREAM, 0, stream, &2_u32.to_be_bytes()))),
        ("what is no HTTP/2", Box::new(|peer, _| peer.send(CONTINUATION, END_HEADERS, 1, &[0x88]))),
    ];
    for (what, leave) in cases {
        let (backend, asked) = leaving(usize::MAX, leave);
        let stand = before(&[backend.address], "");
        stand.get("/public/x").send().expect_refusal(502, "upstream_unreachable");
        assert_eq!(asked.lock().unwrap().len(), 1, "{what}");
    }
}

/// One connection with an exchange that has been answered, one whose answer has begun, and one that has heard nothing.
#[test]
fn an_answer_on_one_stream_says_nothing_of_the_others() {
    let asked = AtomicUsize::new(0);
    let upstream = Scripted::start(move |wire| {
        let Some(mut peer) = Http2Wire::accept(wire, &[]) else { return };
        while let Some((stream, request)) = peer.request() {
            asked.fetch_add(1, Ordering::AcqRel);
            match request.field(":path").unwrap() {
                "/public/whole" => peer.answer(stream, &[(":status", "200")], b""),
                "/public/begun" => {
                    peer.send(HEADERS, END_HEADERS, stream, &block(&[(":status", "103"), ("link", "</a>")]));
                }
                _ if asked.load(Ordering::Acquire) == 3 => {
                    // Some of the body of a fourth.
                    peer.send_octets(&frame(DATA, END_STREAM, 1, b"stray")[..9]);
                    return;
                }
                _ => peer.answer(stream, &[(":status", "200")], b"again"),
            }
        }
    });
    let stand = before(&[upstream.address], "");
    let mut client = Http2::open(stand.gateway.public);
    client.exchange(&get("/public/whole")).expect(200);
    let begun = client.start(&get("/public/begun"), true);
    let silent = client.start(&get("/public/silent"), true);
    let mut statuses = HashMap::new();
    while statuses.len() < 2 {
        let frame = client.next().expect("an answer");
        if frame.kind == HEADERS {
            statuses.insert(frame.stream, client.fields(&frame.payload)[0].1.clone());
        }
    }
    assert_eq!((&*statuses[&begun], &*statuses[&silent]), ("502", "200"));
}

/// Two backends, one of which leaves at each forty-seventh request with all that is under way.
#[test]
fn connections_are_lost_under_load_and_only_what_must_not_be_repeated_notices() {
    let received = Arc::<Mutex<HashMap<String, usize>>>::default();
    let backend = |each: usize| {
        let (received, count) = (received.clone(), AtomicUsize::new(0));
        Scripted::start(move |wire| {
            let Some(mut peer) = Http2Wire::accept(wire, &[]) else { return };
            while let Some((stream, request)) = peer.request() {
                let what = format!("{} {}", request.field(":method").unwrap(), request.field(":path").unwrap());
                *received.lock().unwrap().entry(what).or_default() += 1;
                if count.fetch_add(1, Ordering::AcqRel) % each == each - 1 {
                    return;
                }
                peer.answer(stream, &[(":status", "200")], b"");
            }
        })
    };
    let (steady, leaving) = (backend(usize::MAX), backend(47));
    let stand = before(&[steady.address, leaving.address], ", outlier: { failures: 0 }");
    let mut client = Http2::open(stand.gateway.public);
    for round in 0..60 {
        let start = |(number, method): (usize, &&'static str)| {
            let target = format!("/public/{round}-{number}");
            (client.start(&request(method, &target), true), format!("{method} {target}"))
        };
        let methods = ["GET", "GET", "GET", "POST", "GET", "DELETE", "GET", "GET", "POST", "GET"];
        let mut open: HashMap<u32, String> = methods.iter().enumerate().map(start).collect();
        while !open.is_empty() {
            let frame = client.next().expect("an answer");
            if frame.kind == HEADERS {
                let (what, fields) = (open.remove(&frame.stream).unwrap(), client.fields(&frame.payload));
                let times = received.lock().unwrap().get(&what).copied().unwrap_or_default();
                match (what.starts_with("POST"), &*fields[0].1) {
                    (true, "502") => assert!(times <= 1, "{what} came {times} times"),
                    (true, "200") => assert_eq!(times, 1, "{what}"),
                    (_, status) => assert_eq!((status, times > 0), ("200", true), "{what}"),
                }
            }
        }
    }
    let retries = stand.gateway.metric("gateway_upstream_retries_total", "");
    assert!(retries > Some(2.0), "{retries:?}");
}
