//! Octets of a backend's answers: what is no answer, or could be read as another one, becomes a 502 or breaks off visibly, and its
//! connection is never used again; what is lawful passes, however it is cut.

use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use super::support::{Key, Response, Scripted, Stand, Wire};

const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const SOON: Duration = Duration::from_secs(10);

/// A backend that answers `/echo/case` with the octets of a case, and everything else well.
struct Bench {
    stand: Stand,
    key: Key,
    upstream: Scripted,
    case: Arc<Mutex<(Vec<u8>, bool)>>,
    closed: mpsc::Receiver<bool>,
}

impl Bench {
    fn new() -> Self {
        let case = Arc::new(Mutex::new((Vec::new(), false)));
        let (ended, closed) = mpsc::channel();
        let (shared, ended) = (case.clone(), Mutex::new(ended));
        let upstream = Scripted::start(move |wire: &mut Wire| {
            while let Some(request) = wire.request() {
                if !request.head.contains("/echo/case") {
                    wire.send(HELLO);
                    continue;
                }
                let (octets, by_octet) = shared.lock().unwrap().clone();
                match by_octet {
                    false => wire.send(&octets),
                    true => octets.iter().for_each(|octet| wire.send([*octet])),
                }
                let _ = ended.lock().unwrap().send(wire.is_closed_by_gateway());
                return;
            }
        });
        let stand = Stand::new().upstream(upstream.address).start();
        let key = stand.key().create();
        Self { stand, key, upstream, case, closed }
    }

    /// The answer that a client gets, and whether the gateway has closed the connection by then or soon after.
    fn ask(&self, method: &str, octets: &[u8], by_octet: bool) -> Response {
        *self.case.lock().unwrap() = (octets.to_vec(), by_octet);
        let connections = self.upstream.connections();
        let mut connection = self.stand.connect();
        let response = self.stand.request(method, "/echo/case").bearer(&self.key).on(&mut connection);
        let text = String::from_utf8_lossy(octets).into_owned();
        assert_eq!(self.closed.recv_timeout(SOON), Ok(true), "left open after {text:?}");
        // Nobody meets what was left of it.
        for _ in 0..2 {
            let next = self.stand.get("/echo/next").bearer(&self.key).send().expect_status(200);
            assert_eq!(next.text(), "ok", "after {text:?}");
        }
        assert!(self.upstream.connections() <= connections + 3, "{text:?}");
        response
    }

    /// Refused, whole, however it comes.
    fn refuses(&self, method: &str, octets: impl AsRef<[u8]>) {
        let octets = octets.as_ref();
        for by_octet in [false, true] {
            let text = String::from_utf8_lossy(&octets[..octets.len().min(200)]).into_owned();
            let response = self.ask(method, octets, by_octet);
            assert_eq!(response.status(), 502, "by octet: {by_octet}: {text:?}: {}", response.text());
            assert!(method == "HEAD" || response.code() == "upstream_unreachable", "{text:?}");
        }
    }

    /// Refused when it comes at once; broken off when its head has gone on.
    fn breaks(&self, octets: impl AsRef<[u8]>) {
        let octets = octets.as_ref();
        let text = String::from_utf8_lossy(&octets[..octets.len().min(200)]).into_owned();
        let response = self.ask("GET", octets, false);
        assert_eq!(response.status(), 502, "{text:?}: {}", response.text());
        let response = self.ask("GET", octets, true);
        assert!(response.status() == 502 || !response.complete, "{text:?}: {response:?}");
    }
}

#[test]
fn a_status_line_that_is_none_is_502() {
    let bench = Bench::new();
    for line in [
        "HTTP/1.1 99 X",
        "HTTP/1.1 099 X",
        "HTTP/1.1 000 X",
        "HTTP/1.1 600 X",
        "HTTP/1.1 999 X",
        "HTTP/1.1 1000 X",
        "HTTP/1.1 20 X",
        "HTTP/1.1 2000 X",
        "HTTP/1.1 2 X",
        "HTTP/1.1 -200 X",
        "HTTP/1.1 +20 X",
        "HTTP/1.1 0x1 X",
        "HTTP/1.1 20a X",
        "HTTP/1.1 abc X",
        "HTTP/1.1  200 X",
        "HTTP/1.1 200\tX",
        "HTTP/1.1\t200 X",
        "HTTP/1.1 200X",
        "HTTP/1.1 ",
        "HTTP/1.1",
        " HTTP/1.1 200 X",
        "HTTP/1.2 200 X",
        "HTTP/2.0 200 X",
        "HTTP/2 200 X",
        "HTTP/0.9 200 X",
        "HTTP/1 200 X",
        "http/1.1 200 X",
        "HTTPS/1.1 200 X",
        "ICY 200 OK",
        "200 OK",
        "SSH-2.0-OpenSSH",
        "GET / HTTP/1.1",
        "HTTP/1.1 200 a\0b",
        "HTTP/1.1 200 a\u{1}b",
        "HTTP/1.1 200 a\rb",
        "",
    ] {
        bench.refuses("GET", format!("{line}\r\nContent-Length: 2\r\n\r\nok"));
    }
    bench.refuses("GET", "hello, I am no HTTP at all\n");
    bench.refuses("GET", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n");
}

#[test]
fn a_field_that_is_malformed_is_502() {
    let bench = Bench::new();
    for line in [
        "X : y",
        " X: y",
        "\tX: y",
        ": y",
        "X",
        "X y: z",
        "X(: y",
        "X\u{e9}: y",
        "X\0: y",
        "X: a\0b",
        "X: a\u{1}b",
        "X: a\u{7f}b",
        "X: a\rb",
        "X: a\r\n b",
        "X: a\r\n\tb",
        "X: a\nY: b",
        "X: a\r\r",
        "Set-Cookie: a=1\rSet-Cookie: b=2",
    ] {
        bench.refuses("GET", format!("HTTP/1.1 200 OK\r\n{line}\r\nContent-Length: 2\r\n\r\nok"));
    }
    for octets in [
        "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\nok",
        "HTTP/1.1 200 OK\n\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\n Content-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\rContent-Length: 2\r\r",
        "\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ] {
        bench.refuses("GET", octets);
    }
}

#[test]
fn an_answer_framed_in_two_ways_or_in_an_unknown_one_is_502() {
    let bench = Bench::new();
    for fields in [
        "Content-Length: 2\r\nContent-Length: 2\r\n",
        "Content-Length: 2\r\nContent-Length: 3\r\n",
        "Content-Length: 2, 2\r\n",
        "Content-Length: 2,3\r\n",
        "Content-Length: x\r\n",
        "Content-Length: -2\r\n",
        "Content-Length: +2\r\n",
        "Content-Length: 0x2\r\n",
        "Content-Length: 2 2\r\n",
        "Content-Length:\r\n",
        "Content-Length: 18446744073709551616\r\n",
        "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 2\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding:\r\n",
        "Transfer-Encoding: \u{b}chunked\r\n",
    ] {
        bench.refuses("GET", format!("HTTP/1.1 200 OK\r\n{fields}\r\n2\r\nok\r\n0\r\n\r\n"));
        bench.refuses("HEAD", format!("HTTP/1.1 200 OK\r\n{fields}\r\n"));
    }
    bench.refuses("GET", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n");
    bench.refuses("GET", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    bench.refuses("GET", "HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nok");
    bench.refuses("GET", "HTTP/1.1 205 Reset Content\r\nContent-Length: 2\r\n\r\nok");
    // Its framing is one of those that a 205 may have (RFC 9110 section 15.3.6); its content is not.
    bench.breaks("HTTP/1.1 205 Reset Content\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n");
    bench.breaks("HTTP/1.1 205 Reset Content\r\n\r\nok");
}

#[test]
fn an_answer_whose_chunks_are_malformed_is_502_or_breaks_off() {
    let bench = Bench::new();
    for chunks in [
        "zz\r\nok\r\n0\r\n\r\n",
        "-2\r\nok\r\n0\r\n\r\n",
        "0x2\r\nok\r\n0\r\n\r\n",
        " 2\r\nok\r\n0\r\n\r\n",
        "2 \r\nok\r\n0\r\n\r\n",
        "\r\nok\r\n0\r\n\r\n",
        "2\nok\r\n0\r\n\r\n",
        "2\r\nok\n0\r\n\r\n",
        "2\r\nok0\r\n\r\n",
        "2\r\nokok\r\n0\r\n\r\n",
        "2\r\nok\r\nzz\r\n\r\n",
        "2\r\nok\r\n0\n\r\n",
        "2\r\nok\r\n0\r\n\n",
        "2;a\nok\r\n0\r\n\r\n",
        "2;a=\"\r\nok\r\n0\r\n\r\n",
        "ffffffffffffffff\r\nok\r\n0\r\n\r\n",
        "11111111111111111\r\nok\r\n0\r\n\r\n",
        "2\r\nok\r\n0\r\nX : y\r\n\r\n",
        "2\r\nok\r\n0\r\nX\r\n\r\n",
        "2\r\nok\r\n0\r\nX: a\0\r\n\r\n",
    ] {
        bench.breaks(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"));
    }
    bench.breaks(format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;{}\r\nok\r\n0\r\n\r\n",
        "a".repeat(9000)
    ));
}

#[test]
fn an_interim_answer_that_nobody_asked_for_or_one_without_end_is_502() {
    let bench = Bench::new();
    for octets in [
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n".to_owned(),
        "HTTP/1.1 101 Switching Protocols\r\n\r\n".to_owned(),
        format!("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n{HELLO}"),
        format!("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 101 X\r\n\r\n{HELLO}"),
        format!("{}{HELLO}", "HTTP/1.1 100 Continue\r\n\r\n".repeat(100)),
        format!("HTTP/1.1 103 Early Hints\r\nContent-Length: 2\r\n\r\nok{HELLO}"),
        format!("HTTP/1.1 100 Continue\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HELLO}"),
        format!("HTTP/1.1 100 Continue\r\n\r\n\r\n{HELLO}"),
    ] {
        bench.refuses("GET", octets);
    }
}

#[test]
fn a_head_without_end_is_502() {
    let bench = Bench::new();
    let large = format!("HTTP/1.1 200 OK\r\nX: {}\r\nContent-Length: 2\r\n\r\nok", "y".repeat(300_000));
    let many = format!("HTTP/1.1 200 OK\r\n{}Content-Length: 2\r\n\r\nok", "X: y\r\n".repeat(200));
    for octets in [large, many] {
        assert_eq!(bench.ask("GET", octets.as_bytes(), false).status(), 502);
    }
    // And nothing but a beginning.
    assert_eq!(bench.ask("GET", "HTTP/1.1 200 OK\r\nX: y".repeat(20_000).as_bytes(), false).status(), 502);
}

#[test]
fn octets_behind_an_answer_are_nobodys_answer() {
    let bench = Bench::new();
    let poison = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\npoisoned";
    for (method, octets, body) in [
        ("GET", format!("{HELLO}{poison}"), "ok"),
        ("GET", format!("{HELLO}\r\n"), "ok"),
        ("GET", format!("{HELLO}x"), "ok"),
        ("GET", format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n{poison}"), "ok"),
        ("GET", format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n{poison}"), ""),
        ("GET", format!("HTTP/1.1 204 No Content\r\n\r\n{poison}"), ""),
        ("GET", format!("HTTP/1.1 304 Not Modified\r\nContent-Length: 8\r\n\r\n{poison}"), ""),
        ("HEAD", format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok{poison}"), ""),
        ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n".to_owned(), ""),
    ] {
        for by_octet in [false, true] {
            let response = bench.ask(method, octets.as_bytes(), by_octet);
            assert!(response.status() < 400 && response.complete, "{octets:?}: {response:?}");
            assert_eq!(response.text(), body, "{octets:?}");
        }
    }
}

/// Response queue poisoning: a second answer that comes while the connection waits for its next request.
#[test]
fn an_answer_that_comes_between_two_requests_is_nobodys() {
    let (ended, closed) = mpsc::channel();
    let ended = Mutex::new(ended);
    let upstream = Scripted::start(move |wire| {
        if wire.request().is_some() {
            wire.send(HELLO);
            // Late, when the gateway has put the connection aside.
            std::thread::sleep(Duration::from_millis(50));
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\npoisoned");
            ended.lock().unwrap().send(wire.is_closed_by_gateway()).unwrap();
        }
    });
    let stand = Stand::new().upstream(upstream.address).start();
    let key = stand.key().create();
    let mut connection = stand.connect();
    for _ in 0..5 {
        let response = stand.get("/echo/x").bearer(&key).on(&mut connection).expect_status(200);
        assert_eq!(response.text(), "ok");
        assert_eq!(closed.recv_timeout(SOON), Ok(true));
    }
    assert_eq!(upstream.connections(), 5);
}

#[test]
fn what_is_unusual_and_lawful_passes() {
    let upstream_answers: Vec<(&str, String, &str)> = vec![
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length:2\r\n\r\nok".to_owned(), "ok"),
        ("GET", "HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok".to_owned(), "ok"),
        ("GET", "HTTP/1.1 200 \r\nContent-Length: 02\r\n\r\nok".to_owned(), "ok"),
        ("GET", "HTTP/1.1 200 C'est tr\u{e8}s bien\r\nContent-Length: 2\r\n\r\nok".to_owned(), "ok"),
        ("GET", "HTTP/1.1 599 Odd\r\nContent-Length: 2\r\n\r\nok".to_owned(), "ok"),
        ("GET", "HTTP/1.1 299 Odd\r\nX:\r\nY: \tz\t\r\nZ: \u{e9}\r\nContent-Length: 2\r\n\r\nok".to_owned(), "ok"),
        ("GET", "HTTP/1.1 200 OK\r\nTRANSFER-ENCODING: Chunked\r\n\r\n2;a=\"b;c\"\r\nok\r\n00\r\nX: y\r\n\r\n".to_owned(), "ok"),
        ("GET", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned(), "ok"),
        ("GET", "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n".to_owned(), ""),
        ("GET", "HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n".to_owned(), ""),
        ("GET", "HTTP/1.1 205 Reset Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(), ""),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n".to_owned(), ""),
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n".to_owned(), ""),
        ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(), ""),
    ];
    for by_octet in [false, true] {
        let answers = upstream_answers.clone();
        let next = Mutex::new(answers.into_iter().map(|(_, octets, _)| octets));
        let upstream = Scripted::start(move |wire: &mut Wire| {
            while wire.request().is_some() {
                let octets = next.lock().unwrap().next().unwrap();
                match by_octet {
                    false => wire.send(&octets),
                    true => octets.bytes().for_each(|octet| wire.send([octet])),
                }
            }
        });
        let stand = Stand::new().upstream(upstream.address).start();
        let key = stand.key().create();
        let mut connection = stand.connect();
        for (method, octets, body) in &upstream_answers {
            let response = stand.request(method, "/echo/x").bearer(&key).on(&mut connection);
            assert!(response.status() != 502 && response.complete, "{octets:?}: {response:?}");
            assert_eq!(response.text(), *body, "{octets:?}");
            assert_eq!(upstream.connections(), 1, "{octets:?} cost the connection");
            // A 204 has no length on the way out (RFC 9110 section 8.6).
            assert!(response.status() != 204 || response.header("content-length").is_none(), "{response:?}");
        }
    }
}

#[test]
fn an_answer_that_ends_with_its_connection_is_legal_in_both_versions() {
    for octets in
        ["HTTP/1.0 200 OK\r\n\r\nok", "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok", "HTTP/1.1 200 OK\r\n\r\nok"]
    {
        let upstream = Scripted::start(move |wire: &mut Wire| {
            if wire.request().is_some() {
                wire.send(octets);
            }
        });
        let stand = Stand::new().upstream(upstream.address).start();
        let key = stand.key().create();
        for _ in 0..2 {
            let response = stand.get("/echo/x").bearer(&key).send().expect_status(200);
            assert!(response.complete && response.text() == "ok", "{octets:?}: {response:?}");
        }
    }
}
