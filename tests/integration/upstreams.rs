//! Several endpoints of one backend: who gets a request, who is put aside, and when it is back.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use super::support::{Flapping, Scripted, Stand, eventually};

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
            while wire.request().is_some() {
                wire.send(answer);
                if answer.is_empty() {
                    // Until the gateway loses patience.
                    wire.is_closed_by_gateway();
                }
                return;
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
