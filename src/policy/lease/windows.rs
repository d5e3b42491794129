//! What a replica knows of the two windows: the store's clock, what was left, tokens to give back or to pay for.

use crate::policy::instant::Mono;
use crate::policy::key::QuotaLimits;
use crate::policy::quota::{
    DAY_SECONDS, LeaseReply, MINUTE_SECONDS, MINUTES_A_DAY, Minute, QuotaState, Violated, Window, WindowState,
};

const MINUTE_MICROS: u64 = MINUTE_SECONDS * 1_000_000;

/// The day a minute belongs to.
pub(super) const fn day_of(minute: Minute) -> u32 {
    minute / MINUTES_A_DAY
}

/// Microseconds of the epoch at which a minute begins.
pub(super) const fn start_of(minute: Minute) -> u64 {
    minute as u64 * MINUTE_MICROS
}

/// Microseconds of the epoch at which a minute ends.
pub(super) const fn end_of(minute: Minute) -> u64 {
    start_of(minute) + MINUTE_MICROS
}

/// The store's clock as last heard, continued on the replica's monotonic one. Good for headers and guesses; whether a token
/// may be spent is decided by deadlines with a margin, never by this.
#[derive(Debug, Clone, Copy)]
pub(super) struct StoreClock {
    heard: Mono,
    micros: u64,
}

impl StoreClock {
    /// An answer that carried the store's time arrived at `received`.
    pub(super) const fn heard(received: Mono, micros: u64) -> Self {
        Self { heard: received, micros }
    }

    /// The store's time now, in microseconds of the epoch.
    pub(super) const fn micros(self, now: Mono) -> u64 {
        self.micros + now.0.saturating_sub(self.heard.0)
    }

    /// The store's minute now.
    pub(super) const fn minute(self, now: Mono) -> Minute {
        (self.micros(now) / MINUTE_MICROS) as Minute
    }
}

/// What the last answer about a minute said.
#[derive(Debug, Clone, Copy, Hash)]
pub(super) struct Known {
    pub(super) minute: Minute,
    pub(super) minute_left: u32,
    pub(super) day_left: u32,
    pub(super) active: u32,
}

impl Known {
    pub(super) fn of(reply: &LeaseReply) -> Self {
        Self {
            minute: reply.minute,
            minute_left: reply.minute_left,
            day_left: reply.day_left,
            active: reply.active.max(1),
        }
    }
}

/// Remaining never rises within a minute, whatever others give back: a client that saw 3 may rely on having been near the end.
#[derive(Debug, Clone, Copy, Hash, Default)]
pub(super) struct Shown {
    minute: Minute,
    minute_remaining: u32,
    day_remaining: u32,
}

impl Shown {
    /// Lowers both numbers to what was shown before in the same minute, and remembers them.
    pub(super) fn clamp(&mut self, minute: Minute, minute_remaining: u32, day_remaining: u32) -> (u32, u32) {
        let (mut m, mut d) = (minute_remaining, day_remaining);
        if self.minute == minute {
            m = m.min(self.minute_remaining);
            d = d.min(self.day_remaining);
        }
        *self = Self { minute, minute_remaining: m, day_remaining: d };
        (m, d)
    }

    /// Not even one was left: 0 was shown, whatever came back since or is in hand for the next minute.
    pub(super) fn used_up(&mut self, violated: Violated) {
        if violated.minute {
            self.minute_remaining = 0;
        }
        if violated.day {
            self.day_remaining = 0;
        }
    }
}

/// Both windows for the headers. A window that refused shows 0.
pub(crate) fn quota_state(
    limits: QuotaLimits,
    minute: Minute,
    store_micros: u64,
    (minute_remaining, day_remaining): (u32, u32),
    violated: Violated,
) -> QuotaState {
    let window = |window, limit: u32, remaining: u32, reset: u64, violated| {
        let micros_left = (reset * 1_000_000).saturating_sub(store_micros);
        WindowState {
            window,
            limit,
            remaining: if violated { 0 } else { remaining.min(limit) },
            reset,
            seconds_left: micros_left.div_ceil(1_000_000).max(1),
        }
    };
    let minute_reset = (u64::from(minute) + 1) * MINUTE_SECONDS;
    let day_reset = (u64::from(day_of(minute)) + 1) * DAY_SECONDS;
    QuotaState {
        minute: window(Window::Minute, limits.requests_per_minute, minute_remaining, minute_reset, violated.minute),
        day: window(Window::Day, limits.requests_per_day, day_remaining, day_reset, violated.day),
        violated,
    }
}

/// Tokens by the minute they belong to: unspent ones owed to the store, or spent ones that it does not know of. Amounts of
/// minutes that are long over only matter to their day, so they are joined; the list never holds more than a few entries.
#[derive(Debug, Clone, Hash, Default)]
pub(super) struct ByMinute(Vec<(Minute, u32)>);

impl ByMinute {
    pub(super) fn add(&mut self, minute: Minute, tokens: u32) {
        if tokens == 0 {
            return;
        }
        if let Some((_, sum)) = self.0.iter_mut().find(|(of, _)| *of == minute) {
            *sum = sum.saturating_add(tokens);
            return;
        }
        // The minute before the newest may still be the store's current one (an early lease): it stays by itself.
        let over = |of: Minute| of + 1 < minute && day_of(of) == day_of(minute);
        let old: u32 = self.0.iter().filter(|(of, _)| over(*of)).fold(0, |sum, (_, n)| sum.saturating_add(*n));
        let oldest = self.0.iter().map(|(of, _)| *of).filter(|of| over(*of)).min();
        self.0.retain(|(of, _)| !over(*of));
        self.0.extend(oldest.map(|of| (of, old)));
        self.0.push((minute, tokens));
    }

    pub(super) fn take_one(&mut self) -> Option<(Minute, u32)> {
        self.0.pop()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn of(&self, minute: Minute) -> u32 {
        self.0.iter().find(|(of, _)| *of == minute).map_or(0, |(_, n)| *n)
    }

    pub(super) fn of_day(&self, day: u32) -> u32 {
        self.0.iter().filter(|(of, _)| day_of(*of) == day).fold(0, |sum, (_, n)| sum.saturating_add(*n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_minutes_of_a_day_are_joined_but_never_into_one_that_may_still_run() {
        let mut owed = ByMinute::default();
        for minute in 100..200 {
            owed.add(minute, 2);
        }
        assert!(owed.0.len() <= 3, "{owed:?}");
        assert_eq!((owed.of(199), owed.of(198), owed.of_day(0)), (2, 2, 200));
    }

    #[test]
    fn remaining_never_rises_within_a_minute() {
        let mut shown = Shown::default();
        assert_eq!(shown.clamp(7, 10, 90), (10, 90));
        assert_eq!(shown.clamp(7, 12, 80), (10, 80));
        assert_eq!(shown.clamp(8, 60, 95), (60, 95));
    }

    #[test]
    fn a_window_ends_on_the_stores_clock() {
        let limits = QuotaLimits { requests_per_minute: 60, requests_per_day: 1000 };
        let violated = Violated { minute: true, day: false };
        let state = quota_state(limits, 1441, start_of(1441) + 59_500_000, (5, 9), violated);
        assert_eq!((state.minute.remaining, state.minute.reset, state.minute.seconds_left), (0, 1442 * 60, 1));
        assert_eq!((state.day.remaining, state.day.reset), (9, 2 * 86_400));
    }
}
