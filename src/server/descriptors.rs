//! How many connections the descriptors of the process allow.
//!
//! Each client connection may need one more to an upstream, and a gateway that has none left for those would fail the very requests
//! it has accepted. So places are counted before descriptors run out, and some are kept for everything else.

use rustix::process::{Resource, getrlimit, setrlimit};

/// For the store, logs, the admin listener and clients that are told to go away.
const OTHERS: u64 = 48;
/// A worker's listener and event loop.
const A_WORKER: u64 = 4;
/// More connections to upstreams than this are not set aside: most clients are idle most of the time.
const UPSTREAMS: u64 = 4096;

/// Raises the soft limit to the hard one, as far as the system lets us, and returns it. `None`: there is no limit.
pub(super) fn raise() -> Option<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        let _ = setrlimit(Resource::Nofile, limit);
    }
    getrlimit(Resource::Nofile).current
}

/// Client connections that so many descriptors allow.
pub(super) fn places(descriptors: Option<u64>, workers: usize) -> usize {
    let Some(descriptors) = descriptors else { return usize::MAX };
    let left = descriptors.saturating_sub(OTHERS + A_WORKER * workers as u64);
    usize::try_from(left - (left / 2).min(UPSTREAMS)).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::places;

    #[test]
    fn half_of_few_descriptors_is_kept_for_upstreams_and_a_part_of_many() {
        assert_eq!(places(Some(256), 2), 100);
        assert_eq!(places(Some(20_000), 2), 15_848);
        assert_eq!(places(Some(1_048_576), 16), 1_044_368);
        assert_eq!(places(Some(10), 2), 1);
        assert_eq!(places(None, 2), usize::MAX);
    }
}
