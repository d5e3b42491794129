//! The one place where time comes from.
//!
//! Everything else takes `now` as a value or asks a [`Clock`]; clippy.toml bans `Instant::now` and `SystemTime::now` elsewhere.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::policy::instant::Mono;
use crate::policy::key::Timestamp;

/// A source of time; tests bring their own.
pub trait Clock: Send + Sync + 'static {
    /// Monotonic time, for timeouts, leases and durations.
    fn mono(&self) -> Mono;
    /// Wall-clock time, for expiry, events and logs.
    fn wall(&self) -> Timestamp;
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock whose monotonic zero is now.
    #[allow(clippy::disallowed_methods, reason = "this is the clock")]
    pub fn shared() -> Arc<dyn Clock> {
        Arc::new(Self { start: Instant::now() })
    }
}

impl Clock for SystemClock {
    fn mono(&self) -> Mono {
        Mono(self.start.elapsed().as_micros() as u64)
    }

    #[allow(clippy::disallowed_methods, reason = "this is the clock")]
    fn wall(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_unix_millis(since.as_millis() as i64)
    }
}

/// Tokio's clock: under `start_paused` time passes when every task waits for it, or when a test says so.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct SimulatedClock {
    start: tokio::time::Instant,
    wall_at_start: u64,
}

#[cfg(test)]
impl SimulatedClock {
    /// A clock whose monotonic zero is now, when the wall clock shows so many microseconds of the epoch.
    pub(crate) fn shared(wall_at_start: u64) -> Arc<Self> {
        Arc::new(Self { start: tokio::time::Instant::now(), wall_at_start })
    }

    /// The wall clock in microseconds, as a store reads it.
    pub(crate) fn wall_micros(&self) -> u64 {
        self.wall_at_start + self.mono().0
    }
}

#[cfg(test)]
impl Clock for SimulatedClock {
    fn mono(&self) -> Mono {
        Mono(self.start.elapsed().as_micros() as u64)
    }

    fn wall(&self) -> Timestamp {
        Timestamp::from_unix_millis((self.wall_micros() / 1_000) as i64)
    }
}
