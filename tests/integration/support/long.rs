//! Two sizes of the same test: one that takes seconds, and the numbers of the promise itself with `SEEME_TEST_LONG=1`.

use std::time::Duration;

/// Whether the full numbers are wanted.
pub(crate) fn is_long() -> bool {
    std::env::var_os("SEEME_TEST_LONG").is_some_and(|value| value == "1")
}

/// One of two sizes.
pub(crate) fn sized<T>(usual: T, long: T) -> T {
    if is_long() { long } else { usual }
}

/// One of two times, in seconds.
pub(crate) fn seconds(usual: u64, long: u64) -> Duration {
    Duration::from_secs(sized(usual, long))
}

/// A member of the section `store`, for tests that are about no outage: where compilers and other tests have the processors, a
/// server may not get to run for 50 ms, and that is one.
pub(crate) const PATIENCE: &str = ", timeout: 2s";
