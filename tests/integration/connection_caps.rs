//! How many connections there may be, and what becomes of those beyond it: also where files run out.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use super::support::{Connection, Load, Scripted, Stand, count, eventually};

/// Long enough for anything on loopback.
const SOON: Duration = Duration::from_secs(5);
const ASK: &str = "GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n";

/// The status of an answer on a connection that stays open; 0: there was none.
fn ask(connection: &mut Connection) -> u16 {
    let asked = connection.try_send(ASK).and_then(|()| connection.try_response("GET"));
    asked.map_or(0, |answer| answer.status())
}

#[test]
fn beyond_the_limit_a_client_is_told_and_a_free_place_is_taken_at_once() {
    let stand = Stand::new().section("limits: { connections: 5 }").start();
    let mut open: Vec<Connection> = (0..5).map(|_| stand.connect()).collect();
    assert!(open.iter_mut().all(|connection| ask(connection) == 404));
    for _ in 0..50 {
        let mut one = stand.connect();
        one.send(ASK);
        let refused = one.response("GET").expect_refusal(503, "overloaded");
        assert_eq!((refused.header("retry-after"), refused.header("connection")), (Some("1"), Some("close")));
        assert_eq!(refused.expect_header("x-request-id"), refused.json()["request_id"].as_str().unwrap());
        assert!(refused.complete && one.is_closed_by_server());
    }
    // Who does not speak HTTP/1 would not understand it.
    for other in [&b"\x16\x03\x01\x00\x05hello"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut one = stand.connect();
        one.send(other);
        assert!(one.is_closed_by_server());
    }
    assert!(open.iter_mut().all(|connection| ask(connection) == 404), "who was there is served");
    assert_eq!(stand.gateway.metric("gateway_connections", ""), Some(5.0));
    assert_eq!(stand.gateway.metric("gateway_connections_refused_total", ""), Some(52.0));
    open.pop();
    eventually("a place is free", SOON, || ask(&mut stand.connect()) == 404);
    let complaints = stand.gateway.process.stderr().matches("connections are turned away").count();
    assert!((1..10).contains(&complaints), "{complaints}");
}

#[test]
fn many_who_say_nothing_beyond_the_limit_cost_few_descriptors() {
    let stand = Stand::new().section("limits: { connections: 5 }").start();
    let _open: Vec<Connection> = (0..5).map(|_| stand.connect()).collect();
    eventually("they are accepted", SOON, || stand.gateway.metric("gateway_connections", "") == Some(5.0));
    let before = stand.gateway.process.files();
    let mut silent: Vec<Connection> = (0..200).map(|_| stand.connect()).collect();
    eventually("all were turned away", SOON, || {
        stand.gateway.metric("gateway_connections_refused_total", "") == Some(200.0)
    });
    assert!(stand.gateway.process.files() <= before + 20, "{} then {}", before, stand.gateway.process.files());
    assert!(silent.iter_mut().all(Connection::is_closed_by_server));
}

#[test]
fn an_address_never_has_more_than_its_places_over_all_workers_while_connections_come_and_go() {
    let stand = Stand::new().section("limits: { connections_per_address: 10 }").start();
    let address = stand.gateway.public;
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(move || {
                for _ in 0..20 {
                    let status = Connection::try_open(address).map_or(0, |mut connection| ask(&mut connection));
                    assert!(matches!(status, 404 | 503 | 0), "{status}");
                }
            });
        }
    });
    // All of them are gone, so all places are there, and not one more.
    eventually("all are gone", SOON, || stand.gateway.metric("gateway_connections", "") == Some(0.0));
    let mut open: Vec<Connection> = (0..10).map(|_| stand.connect()).collect();
    assert!(open.iter_mut().all(|connection| ask(connection) == 404));
    assert_eq!(ask(&mut stand.connect()), 503);
}

/// Opens so many connections, asks on each, and keeps those that were answered 404 and those that were not answered.
fn flood(address: SocketAddr, clients: usize) -> (usize, Vec<Connection>) {
    let mut open = Vec::new();
    let mut served = 0;
    for _ in 0..clients {
        let Ok(mut connection) = Connection::try_open(address) else { continue };
        connection.set_patience(Duration::from_millis(100));
        match ask(&mut connection) {
            404 => served += 1,
            503 => continue,
            _ => {}
        }
        open.push(connection);
    }
    (served, open)
}

#[test]
fn with_few_descriptors_a_thousand_clients_take_nothing_from_those_who_were_there() {
    let stand = Stand::new().start();
    let key = stand.key().scope("models:read").create();
    let gateway = stand.gateway_limited("--nofile=256");
    assert!(gateway.process.stderr().contains("limits.connections is 20000"), "{}", gateway.process.stderr());
    let load = Load::on(&[&gateway]).keys([&key]).connections(20).rate(200.0).start();
    eventually("all connections of the load are there", SOON, || load.begun() > 100);
    let (start, before) = (Instant::now(), gateway.process.cpu());
    let (served, open) = flood(gateway.public, 1000);
    assert!((50..=100).contains(&served), "{served} of the flood were let in");
    // Half a core, over the flood and a while in which it stays.
    std::thread::sleep(Duration::from_secs(1));
    let (used, elapsed) = (gateway.process.cpu() - before, start.elapsed());
    assert!(used < elapsed / 2, "{used:?} of {elapsed:?}");
    assert!(gateway.process.files() <= 256);
    drop(open);
    let free = eventually("a new client is served", SOON, || ask(&mut gateway.connect()) == 404);
    assert!(free <= Duration::from_secs(1), "{free:?}");
    let shots = load.stop();
    assert_eq!(count(&shots, |status| status != 200), 0, "of {}", shots.len());
    let lines = gateway.process.stderr().matches(" WARN connections are turned away").count();
    assert!(lines as u64 <= start.elapsed().as_secs() + 2, "{lines} lines in {:?}", start.elapsed());
}

#[test]
fn when_descriptors_run_out_accepting_rests_and_goes_on_when_there_are_some() {
    // A public route: nobody has kept a file for the store here, as a gateway does that finds few at its start.
    let stand = Stand::new().route("GET /echo/x", "access: public").start();
    let gateway = &stand.gateway;
    let pid = Pid::from_raw(i32::try_from(gateway.process.pid()).unwrap()).unwrap();
    let whole = Rlimit { current: Some(1024), maximum: Some(1024) };
    let limit = |files: u64| prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(files), ..whole }).unwrap();
    let mut established = stand.connect();
    stand.get("/echo/x").on(&mut established).expect_status(200);
    // Fewer than the places that were counted at the start: somebody else has taken them.
    limit(gateway.process.files() as u64 + 10);
    let mut clients: Vec<Connection> = (0..60).map(|_| stand.connect()).collect();
    let failed = || stderr_lines(gateway, "accept failed");
    eventually("accepts fail", SOON, || failed() > 0);
    let (start, before) = (Instant::now(), gateway.process.cpu());
    for _ in 0..20 {
        stand.get("/echo/x").on(&mut established).expect_status(200);
        std::thread::sleep(Duration::from_millis(50));
    }
    let (used, elapsed) = (gateway.process.cpu() - before, start.elapsed());
    assert!(used < elapsed / 2, "{used:?} of {elapsed:?}");
    assert!(failed() as u64 <= elapsed.as_secs() + 3, "{} lines in {elapsed:?}", failed());
    limit(1024);
    let start = Instant::now();
    assert!(clients.iter_mut().all(|client| ask(client) == 404));
    assert!(start.elapsed() <= Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(gateway.metric("gateway_accept_errors_total", "") > Some(0.0));
}

#[test]
fn a_request_without_a_descriptor_for_its_upstream_is_503_costs_nothing_and_is_not_held_against_the_backend() {
    // Each request needs a connection of its own.
    let answer = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
    let backends = [Scripted::answering(answer), Scripted::answering(answer)];
    let endpoints = backends.each_ref().map(|backend| format!("\"http://{}\"", backend.address)).join(", ");
    let outlier = "outlier: { failures: 1, eject_for: 1h }, retries: { attempts: 0 }";
    let stand =
        Stand::new().section(&format!("upstreams: {{ main: {{ endpoints: [{endpoints}], {outlier} }} }}")).start();
    let key = stand.limited_key(1000, 5);
    let pid = Pid::from_raw(i32::try_from(stand.gateway.process.pid()).unwrap()).unwrap();
    let limit = |files: u64| {
        let limit = Rlimit { current: Some(files), maximum: Some(1024) };
        prlimit(Some(pid), Resource::Nofile, limit).unwrap();
    };
    let mut connection = stand.connect();
    let ask = stand.get("/echo/x").bearer(&key);
    ask.on(&mut connection).expect_status(200);
    limit(3);
    for _ in 0..10 {
        let refused = ask.on(&mut connection).expect_refusal(503, "overloaded");
        assert_eq!((refused.header("retry-after"), refused.header("x-ratelimit-remaining")), (Some("1"), None));
    }
    limit(1024);
    // All that the plan has but for the first one.
    for _ in 0..4 {
        ask.on(&mut connection).expect_status(200);
    }
    ask.on(&mut connection).expect_refusal(429, "rate_limited");
    assert_eq!(backends.iter().map(Scripted::connections).sum::<usize>(), 5);
    let metric = |name: &str, labels: &str| stand.gateway.metric(name, labels);
    assert_eq!(metric("gateway_upstream_errors_total", "code=\"overloaded\""), Some(10.0));
    assert_eq!(metric("gateway_upstream_ejections_total", "").unwrap_or_default(), 0.0);
    assert_eq!(metric("gateway_upstream_endpoints_usable", ""), Some(2.0));
}

fn stderr_lines(gateway: &super::support::Gateway, what: &str) -> usize {
    gateway.process.stderr().matches(what).count()
}
