//! Is the store there? A breaker that tells a slow store from none.
//!
//! The store counts as down after an answer that says so, after two lost answers in a row, or when nothing at all, a ping
//! included, was heard for `store.timeout` while a call was out. A slow answer among others is no outage, nor is a stall of
//! this very process: only time during which this process was seen running counts as silence. While the store is down one
//! call a second may go out as a probe; a prompt answer to any call ends the outage.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::policy::instant::Mono;

/// While the store is down, one probe in this time, a tenth more or less.
const PROBE_EVERY_MICROS: u64 = 1_000_000;
/// So many lost answers in a row are an outage: one alone may be a connection that was closed.
const LOST_ANSWERS: u32 = 2;

/// Whether a call may go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Permission {
    /// As usual.
    Free,
    /// To see whether the store is back; it must carry nothing that may not be lost.
    Probe,
}

/// The breaker.
#[derive(Debug, Default)]
pub(super) struct Health {
    open: AtomicBool,
    next_probe: AtomicU64,
    heard: AtomicU64,
    lost: AtomicU32,
    pinging: AtomicBool,
}

impl Health {
    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Asks for leave to make a call. `dice` is any number.
    pub(super) fn permit(&self, now: Mono, dice: u64) -> Option<Permission> {
        if !self.is_open() {
            return Some(Permission::Free);
        }
        let due = self.next_probe.load(Ordering::Acquire);
        let next = next_probe(now, dice);
        let won =
            now.0 >= due && self.next_probe.compare_exchange(due, next, Ordering::AcqRel, Ordering::Acquire).is_ok();
        won.then_some(Permission::Probe)
    }

    /// The store is down. Returns whether that is news.
    pub(super) fn open(&self, now: Mono, dice: u64) -> bool {
        if self.is_open() {
            return false;
        }
        self.next_probe.store(next_probe(now, dice), Ordering::Release);
        !self.open.swap(true, Ordering::AcqRel)
    }

    /// An answer was lost. Returns whether that makes it an outage.
    pub(super) fn lost_answer(&self) -> bool {
        self.lost.fetch_add(1, Ordering::AcqRel) + 1 >= LOST_ANSWERS
    }

    /// A call was answered. Returns whether that ended an outage.
    pub(super) fn answered(&self, now: Mono, sent: Mono, timeout: Duration) -> bool {
        let heard_meanwhile = self.heard.load(Ordering::Acquire) > sent.0;
        self.hear(now);
        self.lost.store(0, Ordering::Release);
        let prompt = now.since(sent) <= timeout || heard_meanwhile;
        prompt && self.open.swap(false, Ordering::AcqRel)
    }

    /// Something was heard.
    pub(super) fn hear(&self, now: Mono) {
        self.heard.fetch_max(now.0, Ordering::AcqRel);
    }

    /// When something was last heard.
    pub(super) fn heard_at(&self) -> Mono {
        Mono(self.heard.load(Ordering::Acquire))
    }

    /// Claims the one ping that may be out.
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
    fn while_open_one_probe_a_second_goes_out() {
        let health = Health::default();
        assert_eq!(health.permit(Mono(0), 7), Some(Permission::Free));
        assert!(health.open(Mono(0), 7) && !health.open(Mono(1), 7));
        let probes = (0..10_000_u64).filter(|ms| health.permit(Mono(ms * 1_000), ms * 7_919).is_some()).count();
        assert!((8..=11).contains(&probes), "{probes}");
    }

    #[test]
    fn a_prompt_answer_closes_it_and_a_late_one_only_when_pings_were_answered_meanwhile() {
        let health = Health::default();
        health.open(Mono(1), 0);
        assert!(!health.answered(Mono(200_000), Mono(100_000), TIMEOUT));
        assert!(health.is_open());
        health.hear(Mono(350_000));
        assert!(health.answered(Mono(400_000), Mono(300_000), TIMEOUT));
        health.open(Mono(500_000), 0);
        assert!(health.answered(Mono(510_000), Mono(500_000), TIMEOUT));
    }

    #[test]
    fn one_lost_answer_is_no_outage_two_in_a_row_are() {
        let health = Health::default();
        assert!(!health.lost_answer());
        health.answered(Mono(2), Mono(1), TIMEOUT);
        assert!(!health.lost_answer());
        assert!(health.lost_answer());
    }
}
