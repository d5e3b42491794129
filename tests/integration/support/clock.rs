//! Waiting: for a condition with a deadline, and for a minute with enough of it left.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Polls until `probe` gives a value; panics with `what` when it has not within `limit`. Returns how long it took, too.
pub(crate) fn wait_for<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> (T, Duration) {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return (found, start.elapsed());
        }
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Polls until it holds.
pub(crate) fn eventually(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) -> Duration {
    wait_for(what, limit, || holds().then_some(())).1
}

/// Seconds since the epoch.
pub(crate) fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Waits until at least `seconds` are left of the UTC minute, and tells which minute it is. Quota windows are UTC minutes:
/// a round of requests that crosses the boundary would be counted in two.
pub(crate) fn minute_with(seconds: u64) -> u64 {
    loop {
        let now = seconds_now();
        if 60 - now % 60 >= seconds {
            return now / 60;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
