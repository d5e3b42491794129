//! The clock of stores that live on this machine.
//!
//! All processes that share one embedded store share the machine's clock, so it is the store's clock too. A store reads it once
//! per call, after it has the write lock; nothing else in `store` may ask for the time. (Redis has its own: `TIME`.)

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::policy::key::Timestamp;

/// Microseconds of the Unix epoch; tests bring their own.
pub type StoreClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The machine's clock.
pub fn machine_clock() -> StoreClock {
    Arc::new(machine_micros)
}

#[allow(
    clippy::disallowed_methods,
    reason = "this is the store's clock; `clock::Clock` has no microseconds of wall time"
)]
fn machine_micros() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64
}

/// The same instant as the rest of the gateway writes it.
pub(crate) const fn timestamp(micros: u64) -> Timestamp {
    Timestamp::from_unix_millis((micros / 1000) as i64)
}
