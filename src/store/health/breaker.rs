//! The breaker of one part of the store: what is known of it, and who may ask it something.
//!
//! Plain atomics: it is read by every call on every thread, and changes a few times in an outage. Sends and logs nothing.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use super::Kind;
use crate::policy::instant::Mono;

/// While the part is not there, one probe in this time, a tenth more or less.
const PROBE_EVERY_MICROS: u64 = 1_000_000;
/// A probe that nobody wants to carry for this long after it was due: nobody knows of the refusals any more.
const UNWANTED: Duration = Duration::from_secs(4);

/// What is known of a part; the later, the worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
#[repr(u8)]
pub enum State {
    /// It answers.
    #[default]
    There,
    /// It answers, but charges nothing.
    Refusing,
    /// It does not answer.
    Away,
}

/// What was last written to the log about a part.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) state: State,
    pub(super) at: Option<Mono>,
    /// Why the part is not there.
    pub(super) why: String,
    /// The store refuses this gateway: that is no outage but a mistake somebody has to mend.
    pub(super) refused: bool,
}

/// The breaker.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    state: AtomicU8,
    /// Since when it is not there.
    since: AtomicU64,
    next_probe: AtomicU64,
    heard: AtomicU64,
    /// When an answer was first lost, if none has come since; else 0.
    lost: AtomicU64,
    /// When it was last found to be back.
    back: AtomicU64,
    pinging: AtomicBool,
    pub(super) told: Mutex<Told>,
}

impl Breaker {
    pub(super) fn state(&self) -> State {
        match self.state.load(Ordering::Acquire) {
            0 => State::There,
            1 => State::Refusing,
            _ => State::Away,
        }
    }

    /// Since when it is not there.
    pub(super) fn since(&self) -> Mono {
        Mono(self.since.load(Ordering::Acquire))
    }

    /// Whether a call may go out; `Some(true)`: as a probe. `dice` makes any number.
    pub(super) fn permit(&self, kind: Kind, now: Mono, dice: impl FnOnce() -> u64) -> Option<bool> {
        match (self.state(), kind) {
            (State::There, _) | (State::Refusing, Kind::Read | Kind::Other) => Some(false),
            (State::Refusing, Kind::Charge) => self.take_probe(now, dice()).then_some(true),
            (State::Away, _) => None,
        }
    }

    /// Claims the probe of this second.
    pub(super) fn take_probe(&self, now: Mono, dice: u64) -> bool {
        let due = self.next_probe.load(Ordering::Acquire);
        let next = next_probe(now, dice);
        now.0 >= due && self.next_probe.compare_exchange(due, next, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// When the next probe is due.
    pub(super) fn probe_at(&self) -> Mono {
        Mono(self.next_probe.load(Ordering::Acquire))
    }

    /// When a refusing part counts as there again although nobody has tried.
    pub(super) fn unwanted_at(&self) -> Mono {
        self.probe_at().plus(UNWANTED)
    }

    /// It is in a worse state than was known. Returns the state before, if that is news.
    pub(super) fn worsen(&self, to: State, now: Mono, dice: u64) -> Option<State> {
        if self.state() >= to {
            return None;
        }
        self.next_probe.store(next_probe(now, dice), Ordering::Release);
        let before = match self.state.fetch_max(to as u8, Ordering::AcqRel) {
            0 => State::There,
            1 => State::Refusing,
            _ => State::Away,
        };
        if before == State::There {
            self.since.store(now.0, Ordering::Release);
        }
        (before < to).then_some(before)
    }

    /// It is no longer in this state. Returns whether that is news.
    pub(super) fn end(&self, state: State) -> bool {
        let there = State::There as u8;
        self.state.compare_exchange(state as u8, there, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// An answer was lost. Returns whether that makes it an outage: two calls in a row are, one alone, or several that were out
    /// together, may have been a connection that was closed.
    pub(super) fn lost_answer(&self, now: Mono, sent: Mono) -> bool {
        let first = self.lost.compare_exchange(0, now.0.max(1), Ordering::AcqRel, Ordering::Acquire);
        first.is_err_and(|at| sent.0 > at)
    }

    /// A call was answered. Returns whether that ended an outage.
    pub(super) fn answered(&self, now: Mono, sent: Mono, timeout: Duration) -> bool {
        let heard_meanwhile = self.heard_at() > sent;
        self.hear(now);
        self.lost.store(0, Ordering::Release);
        let prompt = now.since(sent) <= timeout || heard_meanwhile;
        let back = prompt && self.end(State::Away);
        if back {
            self.back.store(now.0, Ordering::Release);
        }
        back
    }

    /// Whether a call was sent before the last outage ended: how it fails says nothing about now.
    pub(super) fn is_history(&self, sent: Mono) -> bool {
        sent.0 < self.back.load(Ordering::Acquire)
    }

    /// Something was heard.
    fn hear(&self, now: Mono) {
        self.heard.fetch_max(now.0, Ordering::AcqRel);
    }

    /// When something was last heard.
    pub(super) fn heard_at(&self) -> Mono {
        Mono(self.heard.load(Ordering::Acquire))
    }

    /// Claims the one ping that may be out beside the probes.
    pub(super) fn begin_ping(&self) -> bool {
        !self.pinging.swap(true, Ordering::AcqRel)
    }

    /// The ping is over.
    pub(super) fn end_ping(&self) {
        self.pinging.store(false, Ordering::Release);
    }
}

fn next_probe(now: Mono, dice: u64) -> u64 {
    now.0 + PROBE_EVERY_MICROS - PROBE_EVERY_MICROS / 10 + dice % (PROBE_EVERY_MICROS / 5)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(50);

    #[test]
    fn a_part_that_is_away_is_asked_nothing_and_one_that_refuses_one_charge_a_second() {
        let breaker = Breaker::default();
        assert_eq!(breaker.permit(Kind::Charge, Mono(0), || 7), Some(false));
        assert_eq!(breaker.worsen(State::Refusing, Mono(0), 7), Some(State::There));
        assert_eq!(breaker.worsen(State::Refusing, Mono(1), 7), None);
        let charges: Vec<_> =
            (0..10_000_u64).filter_map(|ms| breaker.permit(Kind::Charge, Mono(ms * 1_000), || ms * 7_919)).collect();
        assert!((8..=11).contains(&charges.len()) && charges.iter().all(|probe| *probe), "{charges:?}");
        assert_eq!(breaker.permit(Kind::Read, Mono(10_000_000), || 7), Some(false));

        assert_eq!(breaker.worsen(State::Away, Mono(10_000_000), 7), Some(State::Refusing));
        assert_eq!(breaker.since(), Mono(0), "it was not there before either");
        for kind in [Kind::Read, Kind::Charge, Kind::Other] {
            assert_eq!(breaker.permit(kind, Mono(20_000_000), || 7), None);
        }
    }

    #[test]
    fn a_prompt_answer_closes_it_and_a_late_one_only_when_others_came_meanwhile() {
        let breaker = Breaker::default();
        breaker.worsen(State::Away, Mono(1), 0);
        assert!(!breaker.answered(Mono(200_000), Mono(100_000), TIMEOUT));
        assert_eq!(breaker.state(), State::Away);
        breaker.hear(Mono(350_000));
        assert!(breaker.answered(Mono(400_000), Mono(300_000), TIMEOUT));
        breaker.worsen(State::Away, Mono(500_000), 0);
        assert!(breaker.answered(Mono(510_000), Mono(500_000), TIMEOUT));
        breaker.worsen(State::Refusing, Mono(600_000), 0);
        assert!(!breaker.answered(Mono(610_000), Mono(600_000), TIMEOUT), "a read says nothing about the ledger");
        assert_eq!(breaker.state(), State::Refusing);
    }

    #[test]
    fn one_lost_answer_is_no_outage_two_in_a_row_are() {
        let breaker = Breaker::default();
        assert!(!breaker.lost_answer(Mono(20), Mono(10)));
        breaker.answered(Mono(30), Mono(25), TIMEOUT);
        assert!(!breaker.lost_answer(Mono(50), Mono(40)));
        assert!(!breaker.lost_answer(Mono(51), Mono(45)), "it was on the same connection");
        assert!(breaker.lost_answer(Mono(60), Mono(55)));
    }
}
