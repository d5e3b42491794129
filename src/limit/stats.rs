//! What the limiter counts for `/metrics`. Plain numbers: their names and labels belong to `telemetry`.
//!
//! Nothing here is touched on the fast path: a request that finds a token changes no shared counter.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows, or a gauge. Relaxed: nobody orders anything by it.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, n: u32) {
        self.0.fetch_add(u64::from(n), Ordering::Relaxed);
    }

    pub(super) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }
}

/// The limiter's counters.
#[derive(Debug, Default)]
pub struct LimiterStats {
    /// Calls made to the store.
    pub calls: Counter,
    /// Calls that were not answered in time or with an error.
    pub failed_calls: Counter,
    /// Tokens granted.
    pub granted: Counter,
    /// Tokens given back.
    pub returned: Counter,
    /// Recalls obeyed.
    pub recalls: Counter,
    /// Requests that had to wait for a call.
    pub waited: Counter,
    /// Requests refused.
    pub denied: Counter,
    /// Requests admitted without the store.
    pub outage_admissions: Counter,
    /// Requests that got neither yes nor no.
    pub unavailable: Counter,
    /// Subjects in memory.
    pub subjects: Counter,
}
