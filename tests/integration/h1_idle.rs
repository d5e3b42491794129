//! Kept-alive connections that do nothing: a rest loses nothing. What each one costs is in `idle_connections`.

use std::time::{Duration, Instant};

use super::support::{Connection, Stand, eventually};

/// Longer than the gateway waits before it lets a connection rest, by half a second for its sweep.
const REST: Duration = Duration::from_millis(1700);

#[test]
fn a_connection_that_rested_serves_on_as_if_it_had_not() {
    let stand = Stand::new().section("timeouts: { header: 500ms }").start();
    let key = stand.key().create();
    let mut connection = stand.connect();
    for round in 0..3 {
        let body = "x".repeat(100_000 * round);
        let response = stand.post("/echo/x").bearer(&key).body(&body).on(&mut connection).expect_status(200);
        assert_eq!(response.json()["body_bytes"], body.len());
        std::thread::sleep(REST);
    }
    // Two at once, cut where it hurts.
    let octets = [stand.get("/echo/1").bearer(&key).bytes(), stand.get("/echo/2").bearer(&key).bytes()].concat();
    for octet in octets {
        connection.send([octet]);
    }
    for n in 1..=2 {
        assert_eq!(connection.response("GET").expect_status(200).json()["path"], format!("/echo/{n}"));
    }
    std::thread::sleep(REST);
    // A head that does not end is cut off also after a rest.
    connection.send("GET /echo/x HTTP/1.1\r\nHos");
    let start = Instant::now();
    assert!(connection.is_closed_by_server());
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[test]
fn a_connection_that_rests_ends_with_its_client_and_with_the_gateway() {
    let stand = Stand::new().start();
    let mut connections: Vec<Connection> = (0..10).map(|_| stand.connect()).collect();
    for connection in &mut connections {
        stand.get("/nowhere").on(connection).expect_status(404);
    }
    std::thread::sleep(REST);
    drop(connections.split_off(5));
    eventually("those that left are gone", Duration::from_secs(10), || {
        stand.gateway.metric("gateway_connections", "") == Some(5.0)
    });
    let start = Instant::now();
    stand.gateway.process.terminate();
    for connection in &mut connections {
        assert!(connection.is_closed_by_server());
    }
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

#[test]
fn a_head_that_was_begun_behind_another_request_is_cut_off_in_time_too() {
    let stand = Stand::new().section("timeouts: { header: 300ms, keepalive: 60s }").start();
    let mut connection = stand.connect();
    connection.send("GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\nGET /nowhere HTTP/1.1\r\nHost:");
    connection.response("GET").expect_status(404);
    let start = Instant::now();
    assert!(connection.is_closed_by_server());
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn what_follows_a_request_for_an_upgrade_that_was_not_granted_is_served() {
    let stand = Stand::new().start();
    let key = stand.key().create();
    let first = stand.get("/echo/1").bearer(&key).header("Connection", "Upgrade").header("Upgrade", "h2c").bytes();
    let second = stand.get("/echo/2").bearer(&key).bytes();
    for size in [1, 50, 10_000] {
        let mut connection = stand.connect();
        let octets = [first.clone(), second.clone(), first.clone(), second.clone()].concat();
        octets.chunks(size).for_each(|piece| connection.send(piece));
        for n in [1, 2, 1, 2] {
            assert_eq!(connection.response("GET").expect_status(200).json()["path"], format!("/echo/{n}"), "{size}");
        }
    }
    // A refused one behind it is refused in its turn.
    let mut connection = stand.connect();
    connection.send([&first[..], b"GET /x HTTP/1.1\r\n\r\n"].concat());
    connection.response("GET").expect_status(200);
    connection.response("GET").expect_refusal(400, "bad_request");
    assert!(connection.is_closed_by_server());
}
