//! What a connection costs in memory that made one request with a key and is idle: plain, over TLS, and over HTTP/2.
//!
//! `make idle` measures 10,000 of each on a release build; the figures are printed.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use super::servers::Certificates;
use super::support::http2::Http2;
use super::support::{Connection, Layout, Stand, TlsClient, Transport, sized};

/// The goal, in KiB.
const EACH: f64 = 16.0;
/// The h2 library keeps a buffer of 16 KiB to write from, one of 8 to read into and one of 4 for fields, as long as a connection lives:
/// the goal is out of reach with it. This notices what comes on top.
const EACH_OF_HTTP2: f64 = 56.0;
/// The gateway lets a connection rest when it has been idle for a second; the allocator gives back what that frees in its own time.
const REST: Duration = Duration::from_secs(15);

/// None is closed before all are there.
fn layout() -> Layout {
    Stand::new().section("timeouts: { keepalive: 30m }\nlog: off")
}

fn tls(folder: &std::path::Path) -> (Stand, TlsClient) {
    let certificates = Certificates::issue(folder);
    let (certificate, key) = (certificates.server_certificate.display(), certificates.server_key.display());
    let listener = format!("tls: {{ certificate: \"{certificate}\", private_key: {{ file: \"{key}\" }} }}");
    (layout().listener(&listener).start(), TlsClient::new(&certificates.ca))
}

/// Opens so many, each with one answered request, and lets them rest until they cost no more than `goal`. `ask` makes a request on one,
/// and fails if it is not served.
fn measure<C>(what: &str, goal: f64, stand: &Stand, count: usize, open: impl Fn() -> C, ask: impl Fn(&mut C)) {
    let process = &stand.gateway.process;
    let used = || {
        let mut connection = open();
        ask(&mut connection);
        connection
    };
    // What the first ones need is not theirs.
    drop((0..100).map(|_| used()).collect::<Vec<_>>());
    let before = process.resident();
    let mut connections: Vec<C> = (0..count).map(|_| used()).collect();
    let each = || process.resident().saturating_sub(before) as f64 / count as f64;
    let just_used = each();
    let begun = Instant::now();
    let mut rested = just_used;
    while begun.elapsed() < Duration::from_secs(2) || rested > goal && begun.elapsed() < REST {
        std::thread::sleep(Duration::from_millis(200));
        rested = each();
    }
    println!(
        "{what}: {rested:.1} KiB each at rest, {just_used:.1} KiB when just used ({count} connections, {before} KiB before)"
    );
    assert!(stand.gateway.metric("gateway_connections", "") >= Some(count as f64), "they are all open");
    // And each of them serves on.
    connections.iter_mut().step_by(50).for_each(ask);
    assert!(rested <= goal, "{rested:.1} KiB");
}

#[test]
fn a_plain_one_costs_at_most_16_kib() {
    let stand = layout().start();
    let key = stand.key().create();
    let request = stand.get("/echo/x?bytes=2").bearer(&key);
    let ask = |connection: &mut Connection| drop(request.on(connection).expect_status(200));
    measure("HTTP/1.1", EACH, &stand, sized(5_000, 10_000), || stand.connect(), ask);
}

#[test]
fn one_over_tls_costs_at_most_16_kib() {
    let folder = tempfile::tempdir().unwrap();
    let (stand, client) = tls(folder.path());
    let key = stand.key().create();
    let request = stand.get("/echo/x?bytes=2").bearer(&key).bytes();
    let open = || client.connect(stand.gateway.public, &["http/1.1"]).unwrap();
    let ask = |transport: &mut Transport| {
        transport.write_all(&request).unwrap();
        let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
        while !answer.windows(4).rev().skip(2).any(|end| end == b"\r\n\r\n") {
            let read = transport.read(&mut buffer).unwrap();
            assert!(read > 0, "closed");
            answer.extend_from_slice(&buffer[..read]);
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
    };
    measure("HTTP/1.1 over TLS", EACH, &stand, sized(1_000, 10_000), open, ask);
}

#[test]
fn one_of_http2_costs_at_most_56_kib() {
    let stand = layout().start();
    let key = stand.key().create();
    let ask = |client: &mut Http2| drop(client.get("/echo/x?bytes=2", &key).expect(200));
    measure("HTTP/2", EACH_OF_HTTP2, &stand, sized(1_000, 10_000), || Http2::open(stand.gateway.public), ask);
}

#[test]
fn one_of_http2_over_tls_costs_at_most_56_kib() {
    let folder = tempfile::tempdir().unwrap();
    let (stand, client) = tls(folder.path());
    let key = stand.key().create();
    let open = || Http2::open_tls(stand.gateway.public, &client);
    let ask = |client: &mut Http2| drop(client.get("/echo/x?bytes=2", &key).expect(200));
    measure("HTTP/2 over TLS", EACH_OF_HTTP2, &stand, sized(1_000, 10_000), open, ask);
}
