//! Several endpoints of one backend: who gets a request, who is put aside, and when it is back.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::support::{Connection, Flapping, Scripted, Stand, eventually};

const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// Long enough for anything on loopback.
const SOON: Duration = Duration::from_secs(5);

fn section(endpoints: &[SocketAddr], members: &str) -> String {
    let urls: Vec<String> = endpoints.iter().map(|address| format!("\"http://{address}\"")).collect();
    format!("upstreams: {{ main: {{ endpoints: [{}]{members} }} }}", urls.join(", "))
}

/// A stand in front of these, with a public route.
fn before(endpoints: &[SocketAddr], members: &str) -> Stand {
    Stand::new().section(&section(endpoints, members)).upstream(endpoints[0]).start()
}

fn usable(stand: &Stand) -> Option<f64> {
    stand.gateway.metric("gateway_upstream_endpoints_usable", "upstream=\"main\"")
}

/// Sends so many requests in turn, on one connection.
fn send(stand: &Stand, count: usize) {
    let mut connection = stand.connect();
    for _ in 0..count {
        stand.get("/public/x").on(&mut connection).expect_status(200);
    }
}

#[test]
fn requests_are_spread_by_weight_and_a_weight_of_0_gets_none() {
    let backends = [Scripted::answering(HELLO), Scripted::answering(HELLO), Scripted::answering(HELLO)];
    let addresses = [backends[0].address, backends[1].address, backends[2].address];
    let stand = before(&addresses, ", weights: [3, 1, 0]");
    assert_eq!(stand.gateway.metric("gateway_upstream_endpoints", ""), Some(2.0));
    send(&stand, 400);
    let [heavy, light, out] = [0, 1, 2].map(|index: usize| backends[index].requests().len());
    assert!(heavy + light == 400 && (60..=140).contains(&light), "{heavy} and {light}");
    assert_eq!((out, backends[2].connections()), (0, 0));
}

#[test]
fn an_endpoint_that_refuses_is_put_aside_and_no_client_notices() {
    let backend = Scripted::answering(HELLO);
    let refusing = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let stand = before(&[refusing, backend.address], "");
    assert_eq!(usable(&stand), Some(2.0));
    send(&stand, 60);
    assert_eq!(usable(&stand), Some(1.0));
    assert_eq!(stand.gateway.metric("gateway_upstream_ejections_total", ""), Some(1.0));
    let retried = stand.gateway.metric("gateway_upstream_retries_total", "");
    assert_eq!(retried, Some(5.0), "five failures in a row, and no more once it is aside");
}

#[test]
fn an_endpoint_comes_back_when_its_time_is_over_and_goes_at_the_next_failure() {
    let backend = Scripted::answering(HELLO);
    let mut other = Flapping::start();
    let stand = before(&[other.address, backend.address], ", outlier: { failures: 2, eject_for: 1s }");
    other.kill();
    send(&stand, 40);
    assert_eq!(usable(&stand), Some(1.0));
    let back = eventually("it is back", SOON, || usable(&stand) == Some(2.0));
    assert!(back <= Duration::from_secs(2), "{back:?}");
    // Still dead: one failure is enough now.
    eventually("it is put aside again", SOON, || {
        send(&stand, 1);
        usable(&stand) == Some(1.0)
    });
    let retries = stand.gateway.metric("gateway_upstream_retries_total", "");
    assert!(retries <= Some(4.0), "{retries:?}");
    other.revive();
    eventually("it serves again", SOON, || {
        send(&stand, 1);
        !other.received().is_empty()
    });
}

#[test]
fn an_endpoint_that_answers_now_and_then_is_not_put_aside_whatever_it_answers() {
    let failing = Scripted::answering("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n");
    let fine = Scripted::answering(HELLO);
    let stand = before(&[failing.address, fine.address], ", outlier: { failures: 1 }");
    for _ in 0..40 {
        let status = stand.get("/public/x").send().status();
        assert!(matches!(status, 200 | 500), "{status}");
    }
    assert_eq!(usable(&stand), Some(2.0), "a complete answer of any status is no failure");
}

#[test]
fn answers_that_break_off_or_are_none_and_timeouts_put_an_endpoint_aside() {
    for answer in ["nonsense\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", ""] {
        let bad = Scripted::start(move |wire| {
            if wire.request().is_some() {
                wire.send(answer);
                if answer.is_empty() {
                    // Until the gateway loses patience.
                    wire.is_closed_by_gateway();
                }
            }
        });
        let fine = Scripted::answering(HELLO);
        let addresses = [bad.address, fine.address];
        let stand = Stand::new()
            .section(&section(&addresses, ", outlier: { failures: 3 }"))
            .section("timeouts: { response: 200ms }")
            .upstream(bad.address)
            .start();
        for _ in 0..30 {
            let _ = stand.get("/public/x").send();
        }
        assert_eq!(bad.requests().len(), 3, "{answer:?}");
        assert_eq!(usable(&stand), Some(1.0), "{answer:?}");
    }
}

#[test]
fn the_last_usable_endpoint_is_never_put_aside() {
    let refusing = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let alone = before(&[refusing()], ", outlier: { failures: 1 }");
    let both = before(&[refusing(), refusing()], ", outlier: { failures: 1 }");
    for stand in [&alone, &both] {
        for _ in 0..10 {
            stand.get("/public/x").send().expect_refusal(502, "upstream_unreachable");
        }
        assert_eq!(usable(stand), Some(1.0));
    }
    assert_eq!(alone.gateway.metric("gateway_upstream_ejections_total", ""), Some(0.0));
    assert_eq!(both.gateway.metric("gateway_upstream_ejections_total", ""), Some(1.0));
}

#[test]
fn beyond_max_requests_clients_are_told_at_once_and_other_upstreams_do_not_notice() {
    let silent = Scripted::start(|wire| {
        wire.request();
        wire.is_closed_by_gateway();
    });
    let fine = Scripted::answering(HELLO);
    let section = format!(
        "upstreams:
  slow: {{ endpoints: [\"http://{}\"], max_requests: 5 }}
  fine: {{ endpoints: [\"http://{}\"] }}
timeouts: {{ response: 1s }}",
        silent.address, fine.address
    );
    let stand = Stand::new()
        .section(&section)
        .upstream(silent.address)
        .route("GET /slow", "access: public, upstream: slow")
        .route("GET /fine", "access: public, upstream: fine")
        .start();
    let start = Instant::now();
    let mut held: Vec<_> = (0..5).map(|_| stand.get("/slow").start()).collect();
    eventually("five are there", SOON, || silent.requests().len() == 5);
    for _ in 0..20 {
        let asked = Instant::now();
        let refused = stand.get("/slow").send().expect_refusal(503, "upstream_unavailable");
        assert_eq!(refused.expect_header("retry-after"), "1");
        assert!(asked.elapsed() < Duration::from_millis(500), "{:?}", asked.elapsed());
        stand.get("/fine").send().expect_status(200);
    }
    assert!(start.elapsed() < Duration::from_secs(1), "all of it while the five were waiting: {:?}", start.elapsed());
    for connection in &mut held {
        connection.response("GET").expect_refusal(504, "upstream_timeout");
    }
    assert!((1..3).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    assert_eq!(silent.requests().len(), 5);
    // Their places are free again, also those of clients that leave.
    for round in 2..4 {
        let held: Vec<_> = (0..5).map(|_| stand.get("/slow").start()).collect();
        eventually("five more", SOON, || silent.requests().len() == 5 * round);
        held.into_iter().for_each(Connection::abort);
        eventually("they are gone", SOON, || stand.gateway.metric("gateway_requests_in_flight", "") == Some(0.0));
    }
}

/// A backend whose answer to health checks a test can change.
fn checked(healthy: &Arc<AtomicBool>) -> Scripted {
    let healthy = healthy.clone();
    Scripted::start(move |wire| {
        while let Some(request) = wire.request() {
            let is_check = request.head.starts_with("GET /healthz?full ");
            if is_check && !healthy.load(Ordering::Acquire) {
                wire.send("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");
            } else {
                wire.send(HELLO);
            }
        }
    })
}

#[test]
fn an_endpoint_that_says_it_is_not_well_gets_no_requests_until_it_says_it_is() {
    let (first, second) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(true)));
    let backends = [checked(&first), checked(&second)];
    let members = ", health_check: { path: \"/healthz?full\", interval: 100ms }, set_headers: { X-Proof: secret }";
    let stand = before(&[backends[0].address, backends[1].address], members);
    let key = stand.key().create();
    let served = |backend: &Scripted| {
        backend.requests().iter().filter(|request| request.head.starts_with("GET /public/")).count()
    };
    first.store(false, Ordering::Release);
    eventually("it is out", SOON, || usable(&stand) == Some(1.0));
    let before = served(&backends[0]);
    send(&stand, 30);
    assert_eq!(served(&backends[0]), before);
    // Nobody is well: better a guess than a certain refusal.
    second.store(false, Ordering::Release);
    eventually("both are out", SOON, || usable(&stand) == Some(0.0));
    send(&stand, 30);
    assert!(served(&backends[0]) > before && served(&backends[1]) > 30);
    first.store(true, Ordering::Release);
    second.store(true, Ordering::Release);
    eventually("both are back", SOON, || usable(&stand) == Some(2.0));

    let check = backends[0].requests().into_iter().find(|request| request.head.contains("healthz")).unwrap();
    assert_eq!(check.all("host"), [backends[0].address.to_string()]);
    assert_eq!(check.all("x-proof"), ["secret"]);
    assert!(stand.gateway.metric("gateway_upstream_probe_failures_total", "") >= Some(2.0));
    assert_eq!(stand.usage(&key)["total_requests"], 0, "checks are nobody's requests");

    // Without checks nobody could take the verdict back.
    first.store(false, Ordering::Release);
    eventually("it is out again", SOON, || usable(&stand) == Some(1.0));
    let text = std::fs::read_to_string(stand.config()).unwrap();
    std::fs::write(stand.config(), text.replace("health_check: { path: \"/healthz?full\", interval: 100ms }, ", ""))
        .unwrap();
    eventually("it is back without checks", SOON, || usable(&stand) == Some(2.0));
    assert!(!stand.gateway.process.stdout().contains("healthz"));
}

#[test]
fn a_name_is_looked_up_and_all_its_addresses_are_used() {
    let backend = Scripted::answering(HELLO);
    let section = format!("upstreams: {{ main: {{ endpoints: [\"http://localhost:{}\"] }} }}", backend.address.port());
    let stand = Stand::new().section(&section).upstream(backend.address).start();
    // Also where localhost is ::1 as well, on which nobody listens.
    send(&stand, 30);
    let section = "upstreams: { main: { endpoints: [\"http://nowhere.invalid:80\"] } }";
    let stand = Stand::new().section(section).upstream(backend.address).start();
    stand.get("/public/x").send().expect_refusal(502, "upstream_unreachable");
    assert!(stand.gateway.metric("gateway_upstream_dns_failures_total", "upstream=\"main\"") >= Some(1.0));
}
