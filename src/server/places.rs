//! Places for connections: how many there are for the process and for one client, counted over all workers.
//!
//! A place is given up when it is dropped, also when the connection's task is aborted or panics. What becomes of a connection
//! without one is `turn_away`'s business.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::policy::instant::Mono;
use crate::policy::network::subscriber;
use crate::telemetry::Metrics;

/// Between two complaints about the same trouble.
const SILENCE: Duration = Duration::from_secs(1);

/// Connections of the whole process.
pub(super) struct Counts {
    /// As many as descriptors allow, whatever the configuration says.
    most: usize,
    all: AtomicUsize,
    by_address: Mutex<HashMap<IpAddr, usize>>,
    /// Connections that are being told to go away.
    pub(super) leaving: AtomicUsize,
    complained: AtomicU64,
    metrics: Arc<Metrics>,
}

impl Counts {
    /// None yet, and never more than `most`.
    pub(super) fn new(most: usize, metrics: Arc<Metrics>) -> Self {
        Self {
            most,
            all: AtomicUsize::new(0),
            by_address: Mutex::default(),
            leaving: AtomicUsize::new(0),
            complained: AtomicU64::new(0),
            metrics,
        }
    }

    /// Whether it is time to complain in the log again: under a flood each line would be one of thousands.
    pub(super) fn may_complain(&self, now: Mono) -> bool {
        let last = self.complained.load(Ordering::Relaxed);
        (last == 0 || now.since(Mono(last)) >= SILENCE)
            && self.complained.compare_exchange(last, now.0.max(1), Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    fn by_address(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.by_address.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One more in `count`, unless there are `limit` already. Exact: a place that is taken and found too many is never counted.
pub(super) fn take_one(count: &AtomicUsize, limit: usize) -> bool {
    let more = |count| (count < limit).then_some(count + 1);
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
}

/// A place among the connections of the process, and of one client once [`Place::claim`]ed.
pub(super) struct Place {
    counts: Arc<Counts>,
    client: Option<IpAddr>,
}

impl Place {
    /// One of `limit` places of the process; `None`: all are taken.
    pub(super) fn take(counts: &Arc<Counts>, limit: usize) -> Option<Self> {
        if !take_one(&counts.all, limit.min(counts.most)) {
            return None;
        }
        counts.metrics.connections_total.increment(1);
        counts.metrics.connections.increment(1.0);
        Some(Self { counts: counts.clone(), client: None })
    }

    /// One of this client's `limit` places; false: he has them all.
    pub(super) fn claim(&mut self, client: IpAddr, limit: usize) -> bool {
        let client = subscriber(client);
        let mut by_address = self.counts.by_address();
        let count = by_address.entry(client).or_default();
        if *count >= limit {
            return false;
        }
        *count += 1;
        drop(by_address);
        self.client = Some(client);
        true
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let counts = &self.counts;
        if std::thread::panicking() {
            counts.metrics.panics.increment(1);
        }
        counts.metrics.connections.decrement(1.0);
        counts.all.fetch_sub(1, Ordering::Relaxed);
        let Some(client) = self.client else { return };
        let mut by_address = counts.by_address();
        if let Some(count) = by_address.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(most: usize) -> Arc<Counts> {
        Arc::new(Counts::new(most, Arc::new(Metrics::new())))
    }

    #[test]
    fn there_are_never_more_than_the_limit_nor_fewer_also_when_all_come_and_go_at_once() {
        let counts = counts(1000);
        let open = AtomicUsize::new(0);
        let client = |n: usize| IpAddr::from([192, 0, 2, (n % 3) as u8]);
        std::thread::scope(|scope| {
            for n in 0..8 {
                let (counts, open) = (&counts, &open);
                scope.spawn(move || {
                    for _ in 0..2000 {
                        // Eight at most come at once: a ninth place is never asked for, so nobody may be refused.
                        let mut place = Place::take(counts, 8).expect("a place for each");
                        assert!(open.fetch_add(1, Ordering::Relaxed) < 8);
                        assert!(place.claim(client(n), 3));
                        open.fetch_sub(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(counts.all.load(Ordering::Relaxed), 0);
        assert!(counts.by_address().is_empty());
    }

    #[test]
    fn descriptors_are_a_limit_too_and_a_subscriber_is_one_client() {
        let counts = counts(2);
        let (mut one, mut other) = (Place::take(&counts, 5).unwrap(), Place::take(&counts, 5).unwrap());
        assert!(Place::take(&counts, 5).is_none());
        assert!(one.claim("2001:db8::1".parse().unwrap(), 1));
        assert!(!other.claim("2001:db8::2".parse().unwrap(), 1));
        assert!(other.claim("2001:db8:0:1::2".parse().unwrap(), 1));
        drop(one);
        assert!(Place::take(&counts, 5).unwrap().claim("2001:db8::3".parse().unwrap(), 1));
    }

    #[test]
    fn the_log_hears_of_it_once_a_second() {
        let counts = counts(1);
        let said: Vec<bool> =
            [1, 2, 1_000_000, 1_000_001, 1_500_000, 2_000_001].map(|at| counts.may_complain(Mono(at))).into();
        assert_eq!(said, [true, false, false, true, false, true]);
    }
}
