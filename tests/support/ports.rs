//! Ports that nobody listens on, and that stay free while nobody does.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// From here on, below the ports that the system gives to clients (32768 on Linux): one of those might take the port of a server
/// that is being restarted.
const FIRST: u32 = 10_000;
const COUNT: u32 = 10_000;
/// A node of a cluster listens for the others at its port plus this.
pub(super) const BUS: u16 = 10_000;

static TAKEN: AtomicU32 = AtomicU32::new(0);

/// A free port whose cluster bus port is free, too. Another process may take it before it is used: whoever uses it tries again.
pub(super) fn free_port() -> u16 {
    // Processes begin in different places.
    let start = std::process::id().wrapping_mul(97);
    for _ in 0..COUNT {
        let offset = start.wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = u16::try_from(FIRST + offset).unwrap();
        if [port, port + BUS].iter().all(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return port;
        }
    }
    panic!("no free port from {FIRST} on");
}

/// Polls until `probe` gives a value; panics with `what` when it has not within `limit`.
#[track_caller]
pub(super) fn wait_for<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
