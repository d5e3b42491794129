//! `listen.public.proxy_protocol`: the first octets of a connection say who its client is.

use std::time::{Duration, Instant};

use super::support::{Connection, Response, Stand, eventually};

/// Long enough for anything on loopback.
const SOON: Duration = Duration::from_secs(5);
const PUBLIC: &str = "access: public";
const LINE: &str = "PROXY TCP4 192.0.2.1 198.51.100.1 4711 443\r\n";
const ASK: &str = "GET /echo/x HTTP/1.1\r\nHost: a\r\n\r\n";

fn stand(members: &str) -> Stand {
    Stand::new()
        .listener(&format!("proxy_protocol: true{members}"))
        .route("GET /echo/x", PUBLIC)
        .section("timeouts: { handshake: 500ms }")
        .start()
}

/// A header of version 2.
fn version_2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[command, family], &(rest.len() as u16).to_be_bytes(), rest].concat()
}

fn ask(stand: &Stand, header: &[u8], request: &str) -> Response {
    let mut connection = stand.connect();
    connection.send([header, request.as_bytes()].concat());
    connection.response("GET").expect_status(200)
}

#[test]
fn the_client_is_whom_the_header_names_in_the_fields_and_in_the_log() {
    let stand = stand("");
    let v6 = [&[0x20, 1, 0xd, 0xb8][..], &[0; 11], &[7], &[0; 16], &[0, 1, 0, 2], &[4, 0, 3, 0, 0, 0]].concat();
    for (header, client) in [
        (LINE.as_bytes().to_vec(), "192.0.2.1"),
        (b"PROXY TCP6 2001:db8::7 ::1 1 2\r\n".to_vec(), "2001:db8::7"),
        (version_2(0x21, 0x11, &[192, 0, 2, 3, 198, 51, 100, 1, 0, 1, 0, 2]), "192.0.2.3"),
        (version_2(0x21, 0x21, &v6), "2001:db8::7"),
        // Whoever speaks for himself is the peer.
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        (version_2(0x20, 0, &[]), "127.0.0.1"),
    ] {
        let answer = ask(&stand, &header, ASK);
        assert_eq!(answer.echoed_once("x-forwarded-for"), client);
        let id = answer.expect_header("x-request-id").to_owned();
        eventually("the line of the request", SOON, || {
            let log = stand.gateway.process.stdout();
            let line = log.lines().find(|line| line.contains(&id)).map(ToOwned::to_owned);
            line.is_some_and(|line| serde_json::from_str::<serde_json::Value>(&line).unwrap()["client"] == client)
        });
    }
}

#[test]
fn a_header_in_pieces_is_read_and_a_kept_connection_has_one() {
    let stand = stand("");
    let mut connection = stand.connect();
    for byte in LINE.bytes() {
        connection.send([byte]);
    }
    for _ in 0..3 {
        connection.send(ASK);
        assert_eq!(connection.response("GET").expect_status(200).echoed_once("x-forwarded-for"), "192.0.2.1");
    }
    // A second header is no request.
    connection.send([LINE, ASK].concat());
    connection.response("GET").expect_status(400);
}

#[test]
fn a_connection_without_a_good_header_is_closed_without_an_answer_and_counted() {
    let stand = stand("");
    let refused = || stand.gateway.metric("gateway_proxy_headers_refused_total", "").unwrap();
    for (count, bytes) in [
        ASK.as_bytes().to_vec(),
        b"PROXY TCP4 192.0.2.1 198.51.100.1 4711\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 443\n".to_vec(),
        version_2(0x31, 0x11, &[0; 12]),
        version_2(0x21, 0x11, &[0; 11]),
        b"\x16\x03\x01\x02\x00\x01".to_vec(),
    ]
    .into_iter()
    .enumerate()
    {
        let mut connection = stand.connect();
        connection.send([&bytes[..], ASK.as_bytes()].concat());
        assert!(connection.is_closed_by_server(), "{bytes:?}");
        eventually("it is counted", SOON, || refused() == (count + 1) as f64);
    }
    // Too late is missing, also when a piece of it came.
    let (mut silent, mut slow) = (stand.connect(), stand.connect());
    let start = Instant::now();
    slow.send("PROXY TCP4 ");
    assert!(silent.is_closed_by_server() && slow.is_closed_by_server());
    assert!((Duration::from_millis(400)..SOON).contains(&start.elapsed()), "{:?}", start.elapsed());
    eventually("they are counted", SOON, || refused() == 8.0);
}

#[test]
fn where_proxies_are_named_a_header_of_anybody_else_changes_nothing() {
    let asked = "GET /echo/x HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n";
    let strange = stand(", trusted_proxies: [10.0.0.0/8]");
    assert_eq!(ask(&strange, LINE.as_bytes(), asked).echoed_once("x-forwarded-for"), "127.0.0.1");
    let trusted = stand(", trusted_proxies: [127.0.0.0/8, 10.0.0.0/8]");
    assert_eq!(ask(&trusted, LINE.as_bytes(), asked).echoed_once("x-forwarded-for"), "192.0.2.1");
    // A balancer in front of a proxy: the one names the other, that one its client.
    let line = LINE.replace("192.0.2.1", "10.0.0.7");
    let answer = ask(&trusted, line.as_bytes(), asked);
    assert_eq!(answer.echoed_once("x-forwarded-for"), "203.0.113.9, 10.0.0.7");
}

#[test]
fn connections_are_counted_for_the_client_and_not_for_the_balancer() {
    let stand = Stand::new()
        .listener("proxy_protocol: true")
        .route("GET /echo/x", PUBLIC)
        .section("limits: { connections_per_address: 2 }")
        .start();
    let open = |last: u8| {
        let mut connection = stand.connect();
        connection.send(format!("{}{ASK}", LINE.replace("192.0.2.1", &format!("192.0.2.{last}"))));
        let status = connection.response("GET").status();
        (connection, status)
    };
    let mut kept: Vec<(Connection, u16)> = (0..8).map(|n| open(n % 4)).collect();
    assert!(kept.iter().all(|(_, status)| *status == 200));
    assert_eq!(open(1).1, 503);
    kept.remove(1);
    eventually("a place of this client is free", SOON, || open(1).1 == 200);
    assert_eq!(open(2).1, 503);
}

#[test]
fn a_drain_does_not_wait_for_headers_that_do_not_come() {
    let stand = Stand::new()
        .listener("proxy_protocol: true")
        .route("GET /echo/x", PUBLIC)
        .section("timeouts: { handshake: 60s }")
        .start();
    let mut silent = stand.connect();
    ask(&stand, LINE.as_bytes(), ASK);
    let start = Instant::now();
    let Stand { gateway, .. } = stand;
    assert_eq!(gateway.process.stop().code, Some(0));
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    assert!(silent.is_closed_by_server());
}
