//! Monotonic time as a plain number, so that pure code can calculate with it. Where it comes from is `clock`'s business.

use std::time::Duration;

/// A monotonic instant, in microseconds since the process started. Never goes backwards, never follows a clock change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mono(pub u64);

impl Mono {
    /// Time from `earlier` to `self`; zero if it is the other way round.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// This instant plus a duration.
    pub const fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by.as_micros() as u64))
    }
}
