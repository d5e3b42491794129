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
