//! What a replica admits on its own while the store is out of reach (`store.outage.quota`, contract 2).
//!
//! Tokens in hand come first, to their deadline. Then, under `local_share`, this replica's part of what was left when the
//! store was last heard, and of the whole limit in later windows; under `allow`, everything. What was admitted so is a debt
//! that the store is told of as soon as it answers. `reject` admits nothing and needs nothing from here.

use super::windows::{StoreClock, day_of, quota_state};
use super::{Decision, SubjectLease};
use crate::policy::instant::Mono;
use crate::policy::key::QuotaLimits;
use crate::policy::quota::{Minute, Violated};

/// The circumstances of an outage.
#[derive(Debug, Clone, Copy)]
pub struct Outage {
    /// `allow`: admit without limit. Otherwise `local_share`.
    pub unlimited: bool,
    /// Gateways alive when last heard, at least 1.
    pub replicas: u32,
    /// The machine's own clock, in microseconds of the epoch: used only if the store was never heard.
    pub wall_micros: u64,
}

/// This replica's part of both windows while the store is away.
#[derive(Debug, Clone, Copy)]
pub(super) struct LocalShare {
    limits: QuotaLimits,
    minute: Minute,
    minute_share: u32,
    minute_spent: u32,
    day_share: u32,
    day_spent: u32,
}

/// Tokens that this replica has admitted on its own in a minute, over all outages that fell into it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Alone {
    minute: Minute,
    spent: u32,
}

impl Alone {
    fn of(self, minute: Minute) -> u32 {
        if self.minute == minute { self.spent } else { 0 }
    }
}

impl SubjectLease {
    /// Decides a request that [`Self::take`] left waiting, without the store. Never [`Decision::Wait`].
    pub fn take_local(&mut self, now: Mono, cost: u32, outage: Outage) -> Decision {
        let clock = *self.clock.get_or_insert(StoreClock::heard(now, outage.wall_micros));
        let minute = clock.minute(now);
        let mut share = self.local_share(minute, outage.replicas.max(1));
        let minute_left = share.minute_share.saturating_sub(share.minute_spent);
        let day_left = share.day_share.saturating_sub(share.day_spent);
        let violated = Violated { minute: minute_left < cost, day: day_left < cost };
        let admit = outage.unlimited || !(violated.minute || violated.day);
        if admit {
            share.minute_spent = share.minute_spent.saturating_add(cost);
            share.day_spent = share.day_spent.saturating_add(cost);
            self.alone = Alone { minute, spent: self.alone.of(minute).saturating_add(cost) };
            self.debts.add(minute, cost);
            self.return_due = Some(now);
        }
        self.local = Some(share);
        let (of_minute, of_day) = if outage.unlimited {
            (self.limits.requests_per_minute, self.limits.requests_per_day)
        } else {
            (share.minute_share, share.day_share)
        };
        let remaining = self.shown.clamp(
            minute,
            of_minute.saturating_sub(share.minute_spent),
            of_day.saturating_sub(share.day_spent),
        );
        let violated = if admit { Violated::default() } else { violated };
        let state = quota_state(self.limits, minute, clock.micros(now), remaining, violated);
        if admit { Decision::Admit(state, minute) } else { Decision::Deny(state) }
    }

    /// The most that this replica can have admitted on its own by the end of the current minute, should the store stay away.
    /// 0 for a subject that needs no decision without the store.
    pub fn local_bound(&self, now: Mono) -> u32 {
        let Some(minute) = self.clock.map(|clock| clock.minute(now)) else { return 0 };
        let left = self.local.filter(|share| share.minute == minute).map_or(0, |share| {
            let of_minute = share.minute_share.saturating_sub(share.minute_spent);
            of_minute.min(share.day_share.saturating_sub(share.day_spent))
        });
        self.alone.of(minute).saturating_add(left)
    }

    /// The share of this window, begun if the last one is over: first ⌊left/R⌋ of what the store last said about it, else
    /// ⌊limit/R⌋ and at least 1. However often the store comes and goes within a minute, it is never more than the latter.
    fn local_share(&self, minute: Minute, replicas: u32) -> LocalShare {
        let fair = |limit: u32| (limit / replicas).max(1).min(limit);
        let limits = self.limits;
        let known = self.known.filter(|known| day_of(known.minute) == day_of(minute));
        let begun = self.local.filter(|share| day_of(share.minute) == day_of(minute));
        if let Some(share) = begun
            && (share.minute, share.limits) == (minute, limits)
        {
            return share;
        }
        let of_minute = fair(limits.requests_per_minute);
        let minute_left = known.filter(|known| known.minute == minute).map(|known| known.minute_left / replicas);
        // What the store has not been told of is still in its number.
        let day_left = known.map(|known| (known.day_left / replicas).saturating_sub(self.untold_of(minute)));
        LocalShare {
            limits,
            minute,
            minute_share: minute_left.unwrap_or(of_minute).min(of_minute.saturating_sub(self.alone.of(minute))),
            minute_spent: 0,
            day_share: begun
                .filter(|share| share.limits == limits)
                .map_or_else(|| day_left.unwrap_or(fair(limits.requests_per_day)), |share| share.day_share),
            day_spent: begun.map_or(0, |share| share.day_spent),
        }
    }

    fn untold_of(&self, minute: Minute) -> u32 {
        self.debts.of_day(day_of(minute))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::lease::{Failure, Purpose, Waiting};
    use crate::policy::quota::Ledger;

    const START: u64 = 29_000_000 * 60_000_000;
    const LIMITS: QuotaLimits = QuotaLimits { requests_per_minute: 60, requests_per_day: 1_000 };
    const OUTAGE: Outage = Outage { unlimited: false, replicas: 2, wall_micros: START };

    fn admitted(lease: &mut SubjectLease, now: u64, limits: QuotaLimits) -> u32 {
        let mut admits = || {
            let decision = lease.take(Mono(now), 1, limits);
            decision == Decision::Wait && matches!(lease.take_local(Mono(now), 1, OUTAGE), Decision::Admit(..))
        };
        (0..200).map(|_| u32::from(admits())).sum()
    }

    /// The store answers a call that carries nothing: a probe.
    fn probe(lease: &mut SubjectLease, ledger: &mut Ledger, now: u64) {
        let call = lease.start_call(Mono(now), Purpose::Settle, Waiting::default(), true);
        let reply = ledger.lease(START + now, &call.request);
        lease.on_reply(Mono(now), call.id, &reply, 0);
    }

    #[test]
    fn the_bound_is_the_share_from_the_first_request_to_the_end_of_the_minute() {
        let mut lease = SubjectLease::new(Mono(0), LIMITS);
        assert_eq!(lease.local_bound(Mono(1)), 0, "it has not been asked");
        assert!(matches!(lease.take_local(Mono(1), 1, OUTAGE), Decision::Admit(..)));
        assert_eq!(lease.local_bound(Mono(1)), 30);
        assert_eq!(admitted(&mut lease, 2, LIMITS), 29);
        assert_eq!(lease.local_bound(Mono(3)), 30);
        assert_eq!(lease.local_bound(Mono(60_000_001)), 0, "a new minute, in which nobody has asked");
    }

    #[test]
    fn an_outage_that_comes_back_before_its_admissions_are_told_gives_no_second_share() {
        let (mut lease, mut ledger) = (SubjectLease::new(Mono(0), LIMITS), Ledger::default());
        let mut alone = 0;
        for second in 1..=10 {
            probe(&mut lease, &mut ledger, second * 1_000_000);
            alone += admitted(&mut lease, second * 1_000_000 + 500_000, LIMITS);
            assert_eq!((alone, lease.local_bound(Mono(second * 1_000_000 + 500_000))), (30, 30));
        }
        let call = lease.start_call(Mono(20_000_000), Purpose::Settle, Waiting::default(), false);
        assert_eq!(call.request.debit.map(|(_, tokens)| tokens), Some(alone));
        lease.on_failure(Mono(20_000_000), call.id, Failure::NotDone);
        assert_eq!(lease.untold_of((START / 60_000_000) as Minute), alone);
    }

    #[test]
    fn two_keys_with_different_limits_do_not_renew_the_share_of_their_subject() {
        let mut lease = SubjectLease::new(Mono(0), LIMITS);
        let other = QuotaLimits { requests_per_minute: 61, requests_per_day: 1_000 };
        let mut alone = 0;
        for _ in 0..10 {
            alone += admitted(&mut lease, 1_000, LIMITS) + admitted(&mut lease, 2_000, other);
        }
        assert_eq!(alone, 30);
    }
}
