//! How fast a subject asks: the λ that sizes its leases. An estimate only; exactness never depends on it.

use crate::policy::instant::Mono;

/// A measurement is folded in after this long.
const FOLD_MICROS: u64 = 200_000;
/// Half of the estimate is younger than about this.
const MEMORY_MICROS: u64 = 1_000_000;
/// A burst of at least so many counts before its interval is over.
const BURST: u64 = 4;
/// A burst is judged over no less than this.
const BURST_MICROS: u64 = 100_000;

/// Tokens asked for, as a rate in thousandths of a token per second.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Demand {
    since: Mono,
    count: u64,
    rate: u64,
}

impl Demand {
    /// A rate that was found and does not change as of `now`.
    #[cfg(test)]
    pub(super) fn steady(now: Mono, rate: u64) -> Self {
        Self { since: now, count: 0, rate }
    }

    /// Counts a request.
    pub(super) fn record(&mut self, now: Mono, cost: u32) {
        let elapsed = now.0.saturating_sub(self.since.0);
        if elapsed >= FOLD_MICROS {
            self.rate = self.folded(elapsed);
            self.since = now;
            self.count = 0;
        }
        self.count += u64::from(cost);
    }

    /// The rate as of now, in thousandths of a token per second.
    pub(super) fn milli_per_second(&self, now: Mono) -> u64 {
        let elapsed = now.0.saturating_sub(self.since.0);
        if elapsed >= FOLD_MICROS {
            self.folded(elapsed)
        } else if self.count >= BURST {
            self.rate.max(per_second(self.count, elapsed.max(BURST_MICROS)))
        } else {
            self.rate
        }
    }

    /// Tokens that will be asked for within `micros`, rounded up to the next whole one when at least half is due.
    pub(super) fn within(&self, now: Mono, micros: u64) -> u32 {
        let tokens = (self.milli_per_second(now).saturating_mul(micros) + 500_000_000) / 1_000_000_000;
        u32::try_from(tokens).unwrap_or(u32::MAX)
    }

    fn folded(&self, elapsed: u64) -> u64 {
        let weight = elapsed.min(MEMORY_MICROS);
        let latest = per_second(self.count, elapsed);
        (self.rate * (MEMORY_MICROS - weight) + latest * weight) / MEMORY_MICROS
    }
}

fn per_second(count: u64, micros: u64) -> u64 {
    count.saturating_mul(1_000_000_000) / micros
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_rate_is_found_and_forgotten_again() {
        let mut demand = Demand::default();
        for i in 0..3_000_u64 {
            demand.record(Mono(i * 1_000), 1);
        }
        let rate = demand.milli_per_second(Mono(3_000_000));
        assert!((900_000..1_100_000).contains(&rate), "{rate}");
        assert_eq!(demand.within(Mono(3_000_000), 6_000), 6);
        assert!(demand.milli_per_second(Mono(60_000_000)) < 20_000);
    }

    #[test]
    fn a_burst_counts_before_its_interval_is_over() {
        let mut demand = Demand::default();
        for _ in 0..50 {
            demand.record(Mono(10_000_000), 1);
        }
        assert!(demand.milli_per_second(Mono(10_001_000)) >= 400_000);
    }
}
