//! Experiment 14: a backend that hangs with its sockets open (SIGSTOP) costs its own routes their answers, and nobody else's.
//!
//! The frame is that of all experiments: Redis, ten keys of which one is over its limit, an open loop of 500 requests a second on
//! 50 connections for the route that is well. Times are printed; what is asserted is who got what.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::servers::RedisServer;
use super::support::{
    Key, Load, PATIENCE, Process, Shot, Stand, count, eventually, percentile, print_seconds, seconds, statuses,
};

const TIMEOUT: Duration = Duration::from_secs(1);
const MAX_REQUESTS: usize = 20;
const SOON: Duration = Duration::from_secs(10);

/// The sample backend in a process of its own, which can be stopped.
struct Backend {
    process: Process,
    address: SocketAddr,
}

impl Backend {
    fn start(name: &str, stand: &std::path::Path) -> Self {
        let mut process = Process::start(name, stand, &["sample-backend", "--listen", "127.0.0.1:0"]);
        let address = process.await_output("its address", |process| {
            process.stdout().lines().find_map(|line| line.strip_prefix("sample backend on http://")?.parse().ok())
        });
        Self { process, address }
    }

    /// Connections to it that are open on the other side, as the kernel counts them: it need not have accepted them.
    fn connections(&self) -> usize {
        let port = format!(":{:04X}", self.address.port());
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let established = |line: &&str| {
            let mut words = line.split_whitespace().skip(2);
            words.next().is_some_and(|remote| remote.ends_with(&port)) && words.next() == Some("01")
        };
        table.lines().filter(established).count()
    }
}

/// Those of a span that began and ended in it.
fn within(shots: &[Shot], from: Instant, to: Instant) -> Vec<Shot> {
    shots.iter().filter(|shot| shot.sent >= from && shot.answered <= to).cloned().collect()
}

fn p99(shots: &[Shot]) -> Duration {
    percentile(shots.iter().map(Shot::took).collect(), 99)
}

#[test]
fn a_backend_that_hangs_takes_504s_a_bounded_number_at_a_time_and_other_routes_go_on() {
    let (redis, folder) = (RedisServer::start(), tempfile::tempdir().unwrap());
    let [hanging, fine] = ["hanging", "fine"].map(|name| Backend::start(name, folder.path()));
    let section = format!(
        "upstreams:
  hanging: {{ endpoints: [\"http://{}\"], max_requests: {MAX_REQUESTS} }}
  fine: {{ endpoints: [\"http://{}\"] }}
timeouts: {{ response: 1s }}",
        hanging.address, fine.address
    );
    let stand = Stand::new()
        .shared_store(&format!("url: \"{}\"{PATIENCE}", redis.url()))
        .section(&section)
        .upstream(fine.address)
        .route("GET /echo/hanging", "scope: models:read, upstream: hanging")
        .route("GET /echo/fine", "scope: models:read, upstream: fine")
        .start();
    let mut keys: Vec<Key> = (0..9).map(|_| stand.key().create()).collect();
    keys.push(stand.limited_key(60, 1000));
    let gateway = &stand.gateway;
    let load = |target: &str| Load::on(&[gateway]).connections(50).target(target);
    let others = load("/echo/fine?bytes=2").keys(&keys).rate(500.0).start();
    let asking = load("/echo/hanging?bytes=2").keys(&keys[..9]).rate(100.0).start();
    let weight = || (gateway.process.resident(), gateway.process.files());

    let begun = Instant::now();
    std::thread::sleep(seconds(2, 20));
    let (steady, kept) = (weight(), hanging.connections());
    hanging.process.signal(Signal::STOP);
    let (stopped, mut most) = (Instant::now(), 0);
    while stopped.elapsed() < seconds(4, 20) {
        most = most.max(hanging.connections());
        std::thread::sleep(Duration::from_millis(20));
    }
    hanging.process.signal(Signal::CONT);
    let lifted = Instant::now();
    let ask = stand.get("/echo/hanging?bytes=2").bearer(&keys[0]);
    let recovery = eventually("it is served again", SOON, || ask.send().status() == 200);
    let recovered = Instant::now();
    std::thread::sleep(seconds(2, 10));
    let (asking, others, ended) = (asking.stop(), others.stop(), Instant::now());

    let during = within(&asking, stopped, lifted);
    let timed_out: Vec<Duration> = during.iter().filter(|shot| shot.status() == 504).map(Shot::took).collect();
    let (before, meanwhile) = (within(&others, begun, stopped), within(&others, stopped, lifted));
    print_seconds("the backend that hangs", &asking);
    print_seconds("the other one", &others);
    println!(
        "504 after {:.1?} to {:.1?} (timeout {TIMEOUT:?}); {most} connections at the most for {MAX_REQUESTS} requests, {kept} were kept \
         before; served again {recovery:.1?} after",
        timed_out.iter().min().unwrap(),
        timed_out.iter().max().unwrap(),
    );
    println!(
        "other route: p99 {:.2?} before, {:.2?} meanwhile ({:.2}x); KiB and descriptors {steady:?} before, {:?} after",
        p99(&before),
        p99(&meanwhile),
        p99(&meanwhile).as_secs_f64() / p99(&before).as_secs_f64(),
        weight(),
    );

    // Its own routes: told in time, or at once where it has as many as it may.
    assert!(timed_out.len() > MAX_REQUESTS && timed_out.iter().all(|took| *took >= TIMEOUT), "{:?}", statuses(&during));
    assert_eq!(count(&during, |status| !matches!(status, 503 | 504)), 0, "{:?}", statuses(&during));
    let codes = ["upstream_timeout", "upstream_unavailable"].map(Some);
    assert!(during.iter().all(|shot| codes.contains(&shot.answer.as_ref().unwrap().code.as_deref())));
    assert!(count(&during, |status| status == 503) > 0, "more was asked than may wait");
    assert!(most <= MAX_REQUESTS + kept, "{most} connections, {kept} before");
    for span in [(begun, stopped), (recovered, ended)] {
        let outside = within(&asking, span.0, span.1);
        assert_eq!(statuses(&outside), [(200, outside.len())]);
    }
    // Everybody else: as if nothing were.
    assert!(
        others.iter().all(|shot| shot.status() == 200 || (shot.key == 9 && shot.status() == 429)),
        "{:?}",
        statuses(&others)
    );
    assert!(count(&others, |status| status == 429) > 0, "one key is over its limit");
    assert!(meanwhile.len() > 500);
    eventually("its descriptors are given back", SOON, || weight().1 <= steady.1 + 50);
    assert!(weight().0 <= steady.0 + 50 * 1024, "{steady:?}, then {:?}", weight());
}
