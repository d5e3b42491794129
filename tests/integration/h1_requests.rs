//! Octets of requests: what RFC 9110, RFC 9112 and RFC 3986 do not allow, and what has been used to smuggle, is refused however it
//! is cut into reads and whatever stands before it; what they allow passes.

use super::support::{Connection, Key, Response, Scripted, Stand};

const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// Behind every refused message: must never be served.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
const GOOD: &str = "GET /good HTTP/1.1\r\nHost: a\r\n\r\n";

fn stand() -> (Stand, Scripted) {
    let upstream = Scripted::answering(HELLO);
    let stand = Stand::new()
        .upstream(upstream.address)
        .route("* /{*rest}", "access: public")
        .section("limits: { header_bytes: 8KiB, header_count: 20, uri_bytes: 1KiB }")
        .start();
    (stand, upstream)
}

/// Targets of what the backend received whole.
fn targets(upstream: &Scripted) -> Vec<String> {
    upstream.requests().iter().map(|request| request.head.split(' ').nth(1).unwrap().to_owned()).collect()
}

/// In how many pieces octets are sent.
#[derive(Debug, Clone, Copy)]
enum Pace {
    AtOnce,
    ByOctet,
}

fn send(connection: &mut Connection, octets: &[u8], pace: Pace) {
    match pace {
        Pace::AtOnce => drop(connection.try_send(octets)),
        // The gateway may answer and close before it was sent everything.
        Pace::ByOctet => {
            let _ = octets.iter().all(|octet| connection.try_send([*octet]).is_ok());
        }
    }
}

/// The answer to a message that must be refused, sent alone or behind a good one; the connection must end with it.
fn refused(stand: &Stand, octets: &[u8], behind: bool, pace: Pace) -> Response {
    let mut connection = stand.connect();
    let before = if behind { GOOD } else { "" };
    let whole = [before.as_bytes(), octets, SMUGGLED.as_bytes()].concat();
    send(&mut connection, &whole, pace);
    if behind {
        connection.response("GET").expect_status(200);
    }
    let method = if octets.starts_with(b"HEAD ") { "HEAD" } else { "GET" };
    let response = connection
        .try_response(method)
        .unwrap_or_else(|error| panic!("{error}, behind: {behind}, {pace:?}: {:?}", String::from_utf8_lossy(octets)));
    let text = String::from_utf8_lossy(octets);
    assert!(connection.is_closed_by_server(), "behind: {behind}, {pace:?}: open after {text:?}");
    response
}

fn expect_refusals(cases: &[(impl AsRef<[u8]>, u16, &str)]) {
    let (stand, upstream) = stand();
    for (octets, status, code) in cases {
        let octets = octets.as_ref();
        for (behind, pace) in
            [(false, Pace::AtOnce), (true, Pace::AtOnce), (false, Pace::ByOctet), (true, Pace::ByOctet)]
        {
            let response = refused(&stand, octets, behind, pace);
            let text = String::from_utf8_lossy(&octets[..octets.len().min(300)]);
            assert_eq!(response.status(), *status, "behind: {behind}, {pace:?}: {text:?}: {}", response.text());
            assert_eq!(response.header("connection"), Some("close"), "{text:?}");
            if !octets.starts_with(b"HEAD ") {
                assert_eq!(response.code(), *code, "{text:?}");
                assert_eq!(response.expect_header("content-type"), "application/problem+json");
            }
        }
    }
    let unexpected: Vec<_> = targets(&upstream).into_iter().filter(|target| target != "/good").collect();
    assert!(unexpected.is_empty(), "the backend received {unexpected:?}");
    assert_eq!(upstream.requests().len(), cases.len() * 2, "each good request once");
}

fn all_bad(cases: &[impl AsRef<[u8]>]) {
    let cases: Vec<_> = cases.iter().map(|octets| (octets, 400, "bad_request")).collect();
    expect_refusals(&cases);
}

/// A GET with these field lines beside Host.
fn get(fields: &str) -> String {
    format!("GET /x HTTP/1.1\r\nHost: a\r\n{fields}\r\n")
}

/// A POST with these framing fields and whatever follows the head.
fn post(fields: &str, rest: &str) -> String {
    format!("POST /x HTTP/1.1\r\nHost: a\r\n{fields}\r\n{rest}")
}

fn chunked(rest: &str) -> String {
    post("Transfer-Encoding: chunked\r\n", rest)
}

#[test]
fn a_message_framed_in_two_ways_or_in_an_unknown_one_is_refused() {
    all_bad(&[
        // CL.TE, TE.CL, both ways round.
        post("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\nG"),
        post("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", "5c\r\nGPOST / HTTP/1.1\r\n\r\n0\r\n\r\n"),
        post("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        // TE.TE
        post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding: chunked\r\nTransfer-encoding: x\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding: identity\r\n", ""),
        post("Transfer-Encoding: gzip\r\n", ""),
        post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding: chunked, gzip\r\n", ""),
        post("Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding: chunked;q=1\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding: chunked,\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding: ,chunked\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding:\r\n", ""),
        post("Transfer-Encoding: \u{b}chunked\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding: \u{c}chunked\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding\u{a0}: chunked\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding\t: chunked\r\n", "0\r\n\r\n"),
        post(" Transfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        post("X: x\r\n Transfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        post("X: x\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        post("X: x\rTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding: chunked\r\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding: chunked\0\r\n", "0\r\n\r\n"),
        "POST /x HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
        "POST /x HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            .to_owned(),
    ]);
}

#[test]
fn a_length_that_is_not_one_number_is_refused() {
    let bad = [
        "Content-Length: 5\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 0\r\nContent-Length: 5\r\n",
        "Content-Length: 5, 5\r\n",
        "Content-Length: 5,\r\n",
        "Content-Length: 5 5\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: -5\r\n",
        "Content-Length: -0\r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length: 5.0\r\n",
        "Content-Length: 5;\r\n",
        "Content-Length: \"5\"\r\n",
        "Content-Length: five\r\n",
        "Content-Length: 1e1\r\n",
        "Content-Length: 5_0\r\n",
        "Content-Length:\r\n",
        "Content-Length: \r\n",
        "Content-Length: \u{ff15}\r\n",
        "Content-Length: 18446744073709551615\r\n",
        "Content-Length: 18446744073709551621\r\n",
        "Content-Length: 9223372036854775808\r\n",
        "Content-Length: 99999999999999999999999999\r\n",
        "Content-Length : 5\r\n",
        "Content-Length: 5\r\n\t\r\n",
        "Content-Length: 5\0\r\n",
        "Content-Length: \u{b}5\r\n",
    ];
    all_bad(&bad.map(|fields| post(fields, "hello")));
    // Also where no body is expected.
    all_bad(&[get("Content-Length: x\r\n"), "HEAD /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n".to_owned()]);
}

#[test]
fn a_host_that_is_missing_doubled_malformed_or_not_that_of_the_target_is_refused() {
    let host = |value: &str| format!("GET /x HTTP/1.1\r\nHost: {value}\r\n\r\n");
    let mut cases = vec![
        "GET /x HTTP/1.1\r\n\r\n".to_owned(),
        "GET /x HTTP/1.1\r\nX: y\r\n\r\n".to_owned(),
        "GET http://a/x HTTP/1.1\r\n\r\n".to_owned(),
        "GET /x HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n".to_owned(),
        "GET /x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_owned(),
        "GET /x HTTP/1.1\r\nHost: a\r\nhOST: b\r\n\r\n".to_owned(),
        "GET /x HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n".to_owned(),
        "GET /x HTTP/1.1\r\nHost : a\r\n\r\n".to_owned(),
        "GET /x HTTP/1.1\r\n Host: a\r\n\r\n".to_owned(),
        "GET /x HTTP/1.1\r\nHost: a\r\n b\r\n\r\n".to_owned(),
        "GET http://a/x HTTP/1.1\r\nHost: b\r\n\r\n".to_owned(),
        "GET http://a:80/x HTTP/1.1\r\nHost: a:81\r\n\r\n".to_owned(),
        "GET http://u@a/x HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "GET http://u@a/x HTTP/1.1\r\nHost: u@a\r\n\r\n".to_owned(),
        "GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "GET http://a:port/x HTTP/1.1\r\nHost: a:port\r\n\r\n".to_owned(),
        "GET ftp://a/x HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "GET http:/x HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "GET http://a/x HTTP/1.0\r\nHost: b\r\n\r\n".to_owned(),
        // Nobody has secured this connection (RFC 9110 section 7.4).
        "GET https://a/x HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "GET HTTPS://a/x HTTP/1.0\r\n\r\n".to_owned(),
    ];
    cases.extend(
        [
            "",
            " ",
            "a b",
            "a, b",
            "a/b",
            "a\\b",
            "a#b",
            "a?b",
            "@a",
            "user@a",
            "user:pw@a",
            "a:x",
            "a:-80",
            "a:+80",
            "a:65536",
            "a:80:80",
            ":80",
            "[::1",
            "::1",
            "[]",
            "[::1]x",
            "[fe80::1%25eth0]",
            "[1.2.3.4]",
            "a%4",
            "a%zz",
            "a\0b",
            "a\tb",
            "a\u{7f}",
            "http://a",
            "<a>",
            "a\"",
            "a^b",
            "a`b",
            "a{b}",
            "a|b",
            "caf\u{e9}",
        ]
        .map(host),
    );
    all_bad(&cases);
}

#[test]
fn a_target_in_a_form_or_with_octets_that_no_target_has_is_refused() {
    let line = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut cases: Vec<Vec<u8>> = [
        "/a#b",
        "/a?b#c",
        "/#",
        "/a\\b",
        "/a<b",
        "/a>b",
        "/a`b",
        "/a\"b",
        "/a?<",
        "/a?b>c",
        "/a?\"",
        "/a?b\\c",
        "/a?b`c",
        "http://a/b?c\\d",
        "/a\tb",
        "/a\u{b}b",
        "/a\0b",
        "/a\u{7f}b",
        "/caf\u{e9}",
        "/a?caf\u{e9}",
        "/\u{ff0e}\u{ff0e}/b",
        "a",
        "a/b",
        "*",
        "?a",
        "a:80",
        "a.example:443",
        "@",
        "//",
        "/../a",
        "",
        "http://a/b#c",
        "http://a\\b/",
        "http://a/\u{e9}",
        "/a\u{1}",
        "/a\u{1b}[0m",
    ]
    .map(|target| line(target).into_bytes())
    .into();
    cases.push(b"GET /a\x80b HTTP/1.1\r\nHost: a\r\n\r\n".to_vec());
    cases.push(b"GET /a\xffb HTTP/1.1\r\nHost: a\r\n\r\n".to_vec());
    for (method, target) in
        [("POST", "*"), ("CONNECT", "a:443"), ("CONNECT", "/x"), ("CONNECT", "*"), ("OPTIONS", "a:80")]
    {
        cases.push(format!("{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes());
    }
    all_bad(&cases);
}

#[test]
fn a_request_line_that_is_not_three_words_is_refused() {
    let lines = [
        "GET  /x HTTP/1.1",
        "GET /x  HTTP/1.1",
        "GET /x HTTP/1.1 ",
        " GET /x HTTP/1.1",
        "\tGET /x HTTP/1.1",
        "GET\t/x HTTP/1.1",
        "GET /x\tHTTP/1.1",
        "GET /x y HTTP/1.1",
        "GET /x",
        "GET /x ",
        "GET",
        "GET  HTTP/1.1",
        "/x HTTP/1.1",
        "G@T /x HTTP/1.1",
        "GET: /x HTTP/1.1",
        "G\u{1}T /x HTTP/1.1",
        "G\u{e9}T /x HTTP/1.1",
        "(GET) /x HTTP/1.1",
        "GET /x http/1.1",
        "GET /x Http/1.1",
        "GET /x HTTP/1",
        "GET /x HTTP/1.",
        "GET /x HTTP/.1",
        "GET /x HTTP/1.10",
        "GET /x HTTP/11.1",
        "GET /x HTTP/1.1.1",
        "GET /x HTTP/+1.1",
        "GET /x HTTP/1,1",
        "GET /x HTTP 1.1",
        "GET /x HTTPS/1.1",
        "GET /x XTTP/1.1",
        "GET /x HTTP/a.b",
        "GET /x \u{b}HTTP/1.1",
        "GET /x HTTP/1.1\u{b}",
    ];
    let mut cases: Vec<String> = lines.map(|line| format!("{line}\r\nHost: a\r\n\r\n")).into();
    cases.push("\r\n\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n".to_owned());
    cases.push("\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n".to_owned());
    cases.push("\rGET /x HTTP/1.1\r\nHost: a\r\n\r\n".to_owned());
    cases.push(format!("{} /x HTTP/1.1\r\nHost: a\r\n\r\n", "M".repeat(65)));
    cases.push(format!("{} /x HTTP/1.1\r\nHost: a\r\n\r\n", "M".repeat(6000)));
    all_bad(&cases);
    // No HTTP at all, and not a line of it.
    all_bad(&[b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), b"\x00\x00\x00\x01".to_vec()]);
}

#[test]
fn a_version_that_is_not_spoken_is_505() {
    let versions = ["HTTP/0.9", "HTTP/1.2", "HTTP/1.9", "HTTP/2.0", "HTTP/2.1", "HTTP/3.0", "HTTP/9.9", "HTTP/0.0"];
    let line = |version: &str| (format!("GET /x {version}\r\nHost: a\r\n\r\n"), 505, "version_not_supported");
    expect_refusals(&versions.map(line));
}

#[test]
fn lines_that_end_in_anything_but_carriage_return_and_line_feed_are_refused() {
    all_bad(&[
        "GET /x HTTP/1.1\nHost: a\n\n",
        "GET /x HTTP/1.1\nHost: a\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: a\n\r\n",
        "GET /x HTTP/1.1\r\nHost: a\r\n\n",
        "GET /x HTTP/1.1\r\nHost: a\r\r\n\r\n",
        "GET /x HTTP/1.1\rHost: a\r\r",
        "GET /x HTTP/1.1\r\rHost: a\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: a\r\nX: y\rZ: w\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: a\r\nX: y\nZ: w\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: a\r\nX: y\n\r\n",
        "GET /x HTTP/1.1\r\nHost: a\r\n\r\r\n",
        "GET /x HTTP/1.1\r\n\nHost: a\r\n\r\n",
        "GET /x HTTP/1.1\n\r\nHost: a\r\n\r\n",
    ]);
}

#[test]
fn a_field_that_is_not_a_token_a_colon_and_a_value_is_refused() {
    let lines = [
        "X : y",
        "X\t: y",
        " X: y",
        "\tX: y",
        ": y",
        ":",
        "X",
        "X y",
        "X y: z",
        "X(: y",
        "X@: y",
        "X[]: y",
        "X,Y: z",
        "\"X\": y",
        "X\u{e9}: y",
        "X\0: y",
        "X: a\0b",
        "X: a\u{1}b",
        "X: a\u{8}",
        "X: \u{b}",
        "X: a\u{c}b",
        "X: a\u{1b}b",
        "X: a\u{7f}b",
        "X: a\rb",
        "X: a\r",
        "X: a\r\n b",
        "X: a\r\n\tb",
        "X:\r\n y",
        "=: y",
        "{X}: y",
        "X/Y: z",
        "X;Y: z",
        "GET /y HTTP/1.1",
    ];
    all_bad(&lines.map(|line| get(&format!("{line}\r\n"))));
    // As the first field, where a folded line has nothing to belong to.
    all_bad(&["GET /x HTTP/1.1\r\n X: y\r\nHost: a\r\n\r\n", "GET /x HTTP/1.1\r\n\t\r\nHost: a\r\n\r\n"]);
}

#[test]
fn limits_are_exact_and_say_which_one_was_passed() {
    let (stand, upstream) = stand();
    let status = |octets: &str| {
        let mut connection = stand.connect();
        connection.send(octets);
        connection.response("GET").status()
    };
    let target = |length: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "t".repeat(length - 1));
    assert_eq!(status(&target(1024)), 200);
    let head = |length: usize| {
        let head = get("X: \r\n");
        get(&format!("X: {}\r\n", "v".repeat(length - head.len())))
    };
    assert_eq!(head(8192).len(), 8192);
    assert_eq!(status(&head(8192)), 200);
    let count = |fields: usize| get(&"X: y\r\n".repeat(fields - 1));
    assert_eq!(status(&count(20)), 200);
    assert_eq!(upstream.requests().len(), 3);
    // A line that has not ended is long enough already.
    assert_eq!(status(&format!("GET /{}", "t".repeat(3000))), 414);
    assert_eq!(status(&"t".repeat(3000)), 400);
    assert_eq!(status(&format!("GET /x HTTP/1.1\r\nHost: a\r\nX: {}", "v".repeat(9000))), 431);
    assert_eq!(status(&format!("GET /x HTTP/1.1\r\nHost: a\r\n{}", "X: y\r\n".repeat(2000))), 431);
    drop((stand, upstream));
    expect_refusals(&[
        (target(1025), 414, "uri_too_long"),
        (target(5000), 414, "uri_too_long"),
        (target(20_000), 414, "uri_too_long"),
        (format!("GET /x?{} HTTP/1.1\r\nHost: a\r\n\r\n", "q".repeat(1024)), 414, "uri_too_long"),
        (head(8193), 431, "headers_too_large"),
        (head(70_000), 431, "headers_too_large"),
        (count(21), 431, "headers_too_large"),
        (count(150), 431, "headers_too_large"),
        (format!("HEAD /{} HTTP/1.1\r\nHost: a\r\n\r\n", "t".repeat(2000)), 414, "uri_too_long"),
    ]);
}

#[test]
fn an_expectation_other_than_100_continue_is_417() {
    let post = |expect: &str| (post(&format!("{expect}Content-Length: 5\r\n"), ""), 417, "expectation_failed");
    expect_refusals(&[
        post("Expect: 100-continue, x\r\n"),
        post("Expect: 200-ok\r\n"),
        post("Expect: \r\n"),
        post("Expect: 100-continued\r\n"),
        post("Expect: 100-continue\r\nExpect: x\r\n"),
        post("Expect: \"100-continue\"\r\n"),
    ]);
}

#[test]
fn a_chunk_that_two_readers_could_measure_differently_is_refused() {
    let bad = [
        "-1\r\nx\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "5\t\r\nhello\r\n0\r\n\r\n",
        "\t5\r\nhello\r\n0\r\n\r\n",
        "5 5\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        "g\r\nhello\r\n0\r\n\r\n",
        "5g\r\nhello\r\n0\r\n\r\n",
        "5_0\r\nhello\r\n0\r\n\r\n",
        "5.0\r\nhello\r\n0\r\n\r\n",
        "5,\r\nhello\r\n0\r\n\r\n",
        "\"5\"\r\nhello\r\n0\r\n\r\n",
        "5\0\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "ffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "8000000000000000\r\nhello\r\n0\r\n\r\n",
        "00000000000000005\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "5\r\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\r0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhellohello\r\n0\r\n\r\n",
        "5\r\nhell\r\n0\r\n\r\nxx",
        "5\r\nhello\r\n\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\n\n",
        "5\r\nhello\r\n0\n\r\n",
        "5\r\nhello\r\n0\r\n\rX",
        "5\r\nhello\r\n-0\r\n\r\n",
        "5\r\nhello\r\n0x0\r\n\r\n",
        "5\r\nhello\r\n0 \r\n\r\n",
    ];
    all_bad(&bad.map(chunked));
}

#[test]
fn chunk_extensions_are_bounded_and_judged_by_their_grammar() {
    let bad = [
        // Funky chunks: where does the line end?
        "5;a\nhello\r\n0\r\n\r\n",
        "5;\nhello\r\n0\r\n\r\n",
        "5;a\rbc\r\nhello\r\n0\r\n\r\n",
        "5;a=\"b\nc\"\r\nhello\r\n0\r\n\r\n",
        "5;a=\"b\r\nhello\r\n0\r\n\r\n",
        "5;a=\"\r\n\"\r\nhello\r\n0\r\n\r\n",
        "2;\nxx\r\n4c\r\n0\r\n\r\nGET /y HTTP/1.1\r\n",
        "5\nxxxx;\r\nhello\r\n0\r\n\r\n",
        "5;\r\nhello\r\n0\r\n\r\n",
        "5;=b\r\nhello\r\n0\r\n\r\n",
        "5;a=\r\nhello\r\n0\r\n\r\n",
        "5;a=b=c\r\nhello\r\n0\r\n\r\n",
        "5;a b\r\nhello\r\n0\r\n\r\n",
        "5;a \r\nhello\r\n0\r\n\r\n",
        "5;a;\r\nhello\r\n0\r\n\r\n",
        "5;a=\"b\"c\r\nhello\r\n0\r\n\r\n",
        "5;a=\"b\\\r\"\r\nhello\r\n0\r\n\r\n",
        "5;a\0\r\nhello\r\n0\r\n\r\n",
        "5;\"a\"=b\r\nhello\r\n0\r\n\r\n",
        "5;a=\u{e9}\r\nhello\r\n0\r\n\r\n",
        "5 a\r\nhello\r\n0\r\n\r\n",
    ];
    all_bad(&bad.map(chunked));
    all_bad(&[chunked(&format!("5;a={}", "b".repeat(9000)))]);
    all_bad(&[chunked(&format!("{}0\r\n\r\n", format!("1;a={}\r\nx\r\n", "b".repeat(1000)).repeat(10)))]);
}

#[test]
fn trailers_are_judged_like_fields() {
    let bad = [
        "0\r\nX\r\n\r\n",
        "0\r\nX : y\r\n\r\n",
        "0\r\n X: y\r\n\r\n",
        "0\r\n: y\r\n\r\n",
        "0\r\nX: y\n\r\n",
        "0\r\nX: y\r\n\n",
        "0\r\nX: y\0\r\n\r\n",
        "0\r\nX: y\r\n z\r\n\r\n",
        "0\r\nX: y\rZ\r\n\r\n",
        "0\r\nX(: y\r\n\r\n",
        "0\r\nGET /y HTTP/1.1\r\n\r\n",
    ];
    all_bad(&bad.map(chunked));
    let (stand, upstream) = stand();
    for rest in [format!("0\r\nX: {}\r\n\r\n", "y".repeat(9000)), format!("0\r\n{}\r\n", "X: y\r\n".repeat(21))] {
        for pace in [Pace::AtOnce, Pace::ByOctet] {
            let response = refused(&stand, chunked(&rest).as_bytes(), false, pace);
            assert!(matches!(response.status(), 400 | 431), "{}", response.text());
        }
    }
    assert_eq!(upstream.requests().len(), 0);
}

#[test]
fn what_is_unusual_and_lawful_passes_however_it_is_cut() {
    let (stand, upstream) = stand();
    let head = |fields: &str| format!("GET /x HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    let cases = [
        format!("\r\n{}", head("")),
        head("X:\r\n"),
        head("X: \r\n"),
        head("X:y\r\n"),
        head("X:\t y \t\r\n"),
        head("X: a\tb c\r\n"),
        head("!#$%&'*+-.^_`|~09: y\r\n"),
        head("X: \u{e9}\u{20ac}\r\n"),
        head("Content-Length: 0\r\n"),
        post("Content-Length: 5\r\n", "hello"),
        post("Content-Length: 05\r\n", "hello"),
        post("Content-Length:5\t\r\n", "hello"),
        post("content-length: 5\r\n", "\r\n\r\n\0"),
        post("TRANSFER-ENCODING: CHUNKED\r\n", "0\r\n\r\n"),
        post("Transfer-Encoding:chunked \r\n", "0\r\n\r\n"),
        chunked("5\r\nhello\r\n0\r\n\r\n"),
        chunked("0005\r\nhello\r\n0\r\n\r\n"),
        chunked("A\r\n0123456789\r\na\r\n0123456789\r\n000\r\n\r\n"),
        chunked("5;a\r\nhello\r\n0;b\r\n\r\n"),
        chunked("5;a=b;c=\"d;e\\\"\\\\f\"\r\nhello\r\n0\r\n\r\n"),
        chunked("5 ; a = b\r\nhello\r\n0\r\n\r\n"),
        chunked("5\r\n\r\n0\r\n\r\n0\r\n\r\n"),
        chunked("5\r\nhello\r\n0\r\nX-Sum: 1\r\nY:\r\n\r\n"),
        "OPTIONS /x HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "BREW /x HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "M-SEARCH /x HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "get /x HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "GET /x HTTP/1.1\r\nhost:a:\r\n\r\n".to_owned(),
        "GET /x HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n".to_owned(),
        "GET /x HTTP/1.1\r\nHost: A_b.example:65535\r\n\r\n".to_owned(),
        "GET /x HTTP/1.1\r\nHost: a%41\r\n\r\n".to_owned(),
        "GET http://a/x HTTP/1.1\r\nHost: A\r\n\r\n".to_owned(),
        "GET HTTP://a:80/x HTTP/1.1\r\nHost: a:80\r\n\r\n".to_owned(),
        "DELETE /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi".to_owned(),
        "GET /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi".to_owned(),
        "GET /x?a=b|c&d=[e]^{f}?~'i HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "GET /x/[a]{b}|c^d HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        head("Expect: 100-continue\r\n"),
        head("Connection: keep-alive\r\n"),
    ];
    for octets in &cases {
        for pace in [Pace::AtOnce, Pace::ByOctet] {
            let mut connection = stand.connect();
            send(&mut connection, octets.as_bytes(), pace);
            send(&mut connection, GOOD.as_bytes(), pace);
            for _ in 0..2 {
                let response = connection.response("GET");
                assert_eq!(response.status(), 200, "{pace:?}: {octets:?}: {}", response.text());
            }
        }
    }
    // All at once on one connection, cut anywhere.
    let whole = cases.concat();
    for size in [1, 7, 64, 1000, whole.len()] {
        let mut connection = stand.connect();
        whole.as_bytes().chunks(size).for_each(|piece| connection.send(piece));
        for octets in &cases {
            assert_eq!(connection.response("GET").status(), 200, "pieces of {size}: {octets:?}");
        }
    }
    assert_eq!(upstream.requests().len(), cases.len() * 9);
    assert!(!targets(&upstream).iter().any(|target| target.contains("http")), "targets go on in origin form");
}

#[test]
fn http_1_0_may_come_without_a_host_and_its_expectation_is_ignored() {
    let (stand, upstream) = stand();
    for octets in [
        "GET /x HTTP/1.0\r\n\r\n",
        "GET /x HTTP/1.0\r\nHost: a\r\n\r\n",
        "POST /x HTTP/1.0\r\nExpect: other\r\nContent-Length: 2\r\n\r\nhi",
    ] {
        let mut connection = stand.connect();
        connection.send(octets);
        let response = connection.response("GET").expect_status(200);
        assert_eq!(response.interim, [] as [u16; 0]);
        assert!(connection.is_closed_by_server());
    }
    assert!(upstream.requests().iter().all(|request| request.all("host").len() == 1));
}

#[test]
fn an_asterisk_asks_about_no_route_and_trace_is_never_forwarded() {
    let (stand, upstream) = stand();
    stand.request("OPTIONS", "*").send().expect_refusal(404, "route_not_found");
    stand.request("TRACE", "/x").send().expect_refusal(405, "method_not_allowed");
    stand.request("CONNECT", "a:443").send().expect_refusal(400, "bad_request");
    assert_eq!(upstream.requests().len(), 0);
}

#[test]
fn a_body_that_breaks_while_it_is_forwarded_never_looks_whole_and_nothing_follows_it() {
    let (stand, upstream) = stand();
    let mut connection = stand.connect();
    connection.send(chunked("5\r\nhello\r\n"));
    // Its head is on its way: what comes now cannot be refused as a whole.
    while upstream.connections() == 0 {
        std::thread::yield_now();
    }
    connection.send(format!("zz\r\n{SMUGGLED}"));
    connection.response("POST").expect_refusal(400, "bad_request");
    assert!(connection.is_closed_by_server());
    assert_eq!(upstream.requests().len(), 0);
}

#[test]
fn the_log_tells_of_a_refused_head_what_could_be_read_and_never_a_key() {
    let (stand, _upstream) = stand();
    let key = "sm_live_0123456789abcdefghijABCDEFGHIJ01234567";
    let octets = format!("PUT /models/{key}?x={key} HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n");
    refused(&stand, octets.as_bytes(), false, Pace::AtOnce);
    let line = super::support::wait_for("the line", std::time::Duration::from_secs(10), || {
        stand.gateway.process.stdout().lines().find(|line| line.contains("\"status\":400")).map(str::to_owned)
    });
    let line: serde_json::Value = serde_json::from_str(&line.0).unwrap();
    assert_eq!((line["method"].as_str(), line["path"].as_str()), (Some("PUT"), Some("/models/[redacted-key]")));
    assert_eq!(line["code"], "bad_request");
}

/// Requests that the gateway refuses before it has read their bodies: what follows is never taken for a request.
#[test]
fn a_refusal_never_lets_an_unread_body_become_a_request() {
    let upstream = Scripted::answering(HELLO);
    let stand = Stand::new().upstream(upstream.address).start();
    let key: Key = stand.key().create();
    let inner = format!("GET /echo/smuggled HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\n\r\n", key.secret);
    let length = inner.len();
    let chunks = format!("{length:x}\r\n{inner}\r\n0\r\n\r\n");
    let large = format!("{inner}{}", " ".repeat(100_000));
    for (what, octets) in [
        (
            "0.CL, refused for want of a key",
            format!("POST /echo/x HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{inner}"),
        ),
        ("the same of a GET", format!("GET /echo/x HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{inner}")),
        ("the same of a HEAD", format!("HEAD /echo/x HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{inner}")),
        ("no such route", format!("POST /nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{inner}")),
        (
            "too large to be discarded",
            format!("POST /echo/x HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{large}", large.len()),
        ),
        ("chunks", format!("POST /echo/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}")),
        (
            "Expect",
            format!(
                "POST /echo/x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n{inner}"
            ),
        ),
        (
            "Expect of a GET",
            format!(
                "GET /echo/x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n{inner}"
            ),
        ),
        (
            "Expect and chunks",
            format!(
                "POST /echo/x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"
            ),
        ),
        (
            "Expect with noise",
            format!(
                "POST /echo/x HTTP/1.1\r\nHost: a\r\nExpect: y 100-continue\r\nContent-Length: {length}\r\n\r\n{inner}"
            ),
        ),
        (
            "preflight with a body",
            format!("OPTIONS /echo/x HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{inner}"),
        ),
    ] {
        for pace in [Pace::AtOnce, Pace::ByOctet] {
            if octets.len() > 10_000 && matches!(pace, Pace::ByOctet) {
                continue;
            }
            let mut connection = stand.connect();
            connection.set_patience(std::time::Duration::from_secs(3));
            send(&mut connection, octets.as_bytes(), pace);
            let response = connection.response(octets.split(' ').next().unwrap());
            assert!((400..500).contains(&response.status()), "{what}: {response:?}");
            // Closed, or the body was read as a body and the next request is served as what it is.
            connection.set_patience(std::time::Duration::from_millis(300));
            let _ = connection.try_send("GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n");
            if let Ok(next) = connection.try_response("GET") {
                assert_eq!(next.status(), 404, "{what}: {next:?}");
                assert!(connection.try_response("GET").is_err(), "{what}");
            }
        }
    }
    assert_eq!(targets(&upstream), [] as [&str; 0]);
}

#[test]
fn published_ways_to_smuggle_show_the_backend_only_what_was_authorized() {
    let upstream = Scripted::answering(HELLO);
    let stand = Stand::new().upstream(upstream.address).start();
    let key = stand.key().create();
    let bearer = format!("Host: a\r\nAuthorization: Bearer {}\r\n", key.secret);
    let smuggled = "GET /echo/admin HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut attacks = vec![
        // CL.0: a backend that takes no body from a GET would see a request in it; it stays a body of that length.
        (format!("POST /echo/x HTTP/1.1\r\n{bearer}Content-Length: {}\r\n\r\n{smuggled}", smuggled.len()), true),
        (format!("GET /echo/x HTTP/1.1\r\n{bearer}Content-Length: {}\r\n\r\n{smuggled}", smuggled.len()), true),
        // Header names that a backend might fold into framing ones.
        (format!("POST /echo/x HTTP/1.1\r\n{bearer}Content_Length: 40\r\nContent-Length: 2\r\n\r\nhi{smuggled}"), true),
        (
            format!(
                "POST /echo/x HTTP/1.1\r\n{bearer}Transfer_Encoding: chunked\r\nContent-Length: 2\r\n\r\nhi{smuggled}"
            ),
            true,
        ),
        (
            format!(
                "POST /echo/x HTTP/1.1\r\n{bearer}Connection: Content-Length\r\nContent-Length: {}\r\n\r\n{smuggled}",
                smuggled.len()
            ),
            true,
        ),
        (
            format!(
                "POST /echo/x HTTP/1.1\r\n{bearer}Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
            true,
        ),
        (format!("GET /echo/x HTTP/1.1\r\n{bearer}Connection: Authorization, Host\r\n\r\n"), true),
        // A request in the trailers, in an extension, behind the last chunk.
        (
            format!("POST /echo/x HTTP/1.1\r\n{bearer}Transfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n{smuggled}"),
            true,
        ),
        (format!("POST /echo/x HTTP/1.1\r\n{bearer}Transfer-Encoding: chunked\r\n\r\n0\r\n{smuggled}"), false),
        (
            format!(
                "POST /echo/x HTTP/1.1\r\n{bearer}Transfer-Encoding: chunked\r\n\r\n2;\nxx\r\n4c\r\n0\r\n\r\n{smuggled}"
            ),
            false,
        ),
        (
            format!(
                "POST /echo/x HTTP/1.1\r\n{bearer}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"
            ),
            false,
        ),
    ];
    attacks.push((format!("POST /echo/x HTTP/1.1\r\n{bearer}Content-Length: 0\r\n\r\n{smuggled}"), true));
    let mut authorized = 0;
    for (octets, passes) in attacks {
        for pace in [Pace::AtOnce, Pace::ByOctet] {
            let mut connection = stand.connect();
            connection.set_patience(std::time::Duration::from_millis(500));
            send(&mut connection, octets.as_bytes(), pace);
            let response = connection.response("POST");
            assert_eq!(response.status() == 200, passes, "{octets:?}: {response:?}");
            // What a client truly sends as a second request is judged as one: it has no key.
            while let Ok(next) = connection.try_response("GET") {
                assert_eq!(next.status(), 401, "{octets:?}");
            }
            authorized += usize::from(passes);
        }
    }
    assert_eq!(targets(&upstream), vec!["/echo/x"; authorized]);
    for request in upstream.requests() {
        assert!(request.all("content-length").len() + request.all("transfer-encoding").len() <= 1, "{}", request.head);
    }
}
