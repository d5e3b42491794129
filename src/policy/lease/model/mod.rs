//! Every order of events within a bound, not a sample of them: two [`SubjectLease`]s against the real [`Ledger`].
//!
//! A [`Scenario`] says which events there are and how many of each; `search` plays them in every order, breadth first, and
//! visits a state once however it was reached. After each event the promises of [`Property`] are checked, and the first broken
//! one is reported with the shortest way to it.
//!
//! Time is one of the events: it moves to the next of a few instants, so that anything may happen before and after each. The
//! first instant of a minute shows a deadline that is too late, the last of the one before an early start; a scenario may stop
//! at every deadline, too. What is too late or too early by the store's clock is judged by the true time, which no replica knows.
//!
//! What the model makes simpler than it is: all requests of a scenario cost the same, the rate of a subject is given (it only
//! sizes leases, see `demand`), limits do not change, and there is no outage (whose admissions are not exact by design).
//!
//! The negative controls plant a mistake that the protocol must not make and demand that the search finds what it breaks.

mod controls;
mod events;
mod fingerprint;
mod mistake;
mod properties;
mod replica;
mod scenarios;
mod search;
mod story;
mod world;

use super::*;
use crate::policy::quota::{LeaseReply, LeaseRequest, Ledger};

use mistake::Mistake;
use properties::{Findings, Property};
use world::{Action, World};

const REPLICAS: usize = 2;
/// As many minutes as can be leased from in a scenario.
const MINUTES: usize = 4;
const MINUTE: u64 = 60_000_000;
/// Early leases are asked for so long before the end of a minute.
const EARLY_MICROS: u64 = 400_000;

/// How many events of each kind there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Budget {
    /// Requests arrive, at any replica.
    requests: u8,
    /// Time goes on while a call is out, counted for each call and each step of time.
    delays: u8,
    /// A waiting request goes away.
    leaves: u8,
    /// An admitted request turns out to have gone away.
    put_backs: u8,
    /// A caller gives a call up, which may or may not be carried out, now or later.
    give_ups: u8,
    /// An answer arrives that nobody waits for: after its call was given up, or a second time.
    repeats: u8,
    /// A call fails and is certainly not carried out.
    refusals: u8,
    /// An idle stash goes back because recalls cannot be heard.
    idle_returns: u8,
    /// A replica dies and starts again with nothing.
    crashes: u8,
    /// A replica shuts down in order.
    stops: u8,
    /// The store loses its memory.
    losses: u8,
}

/// A world to explore.
#[derive(Debug, Clone, Copy)]
struct Scenario {
    limits: QuotaLimits,
    /// What each request costs.
    cost: u32,
    /// The first minute, in which time 0 lies; the others follow.
    first: Minute,
    /// Instants at which things happen, in microseconds from the start of the first minute. It ends with the last.
    instants: &'static [u64],
    /// Time stops at deadlines and the like, too, and the microsecond before. Calls can then follow each other without end
    /// shortly before a minute is over; what comes after so many is not looked at.
    edges: Option<u8>,
    /// The replicas' monotonic clocks run so much too fast, in parts per million.
    drift: [i64; REPLICAS],
    /// What the replicas believe to be the rate of requests, in thousandths per second.
    rate: [u64; REPLICAS],
    budget: Budget,
    /// So many replicas have requests, the first ones.
    callers: usize,
    rule: Rule,
    mistake: Mistake,
    /// Check nothing but this.
    only: Option<Property>,
}

impl Scenario {
    /// The monotonic clock of a replica at a true time.
    fn mono(&self, replica: usize, truth: u64) -> Mono {
        let drift = truth as i64 * self.drift[replica] / 1_000_000;
        Mono((truth + offset(replica)).saturating_add_signed(drift))
    }

    /// The first true time at which a replica's clock shows at least `mono`.
    fn truth(&self, replica: usize, mono: Mono) -> u64 {
        let shown = mono.0.saturating_sub(offset(replica));
        let mut truth = (shown as i128 * 1_000_000 / i128::from(1_000_000 + self.drift[replica])) as u64;
        while truth > 0 && self.mono(replica, truth - 1) >= mono {
            truth -= 1;
        }
        while self.mono(replica, truth) < mono {
            truth += 1;
        }
        truth
    }

    fn store_micros(&self, truth: u64) -> u64 {
        u64::from(self.first) * MINUTE + truth
    }

    fn minute(&self, truth: u64) -> Minute {
        self.first + (truth / MINUTE) as Minute
    }

    fn index(&self, minute: Minute) -> usize {
        (minute - self.first) as usize
    }

    fn minutes(&self) -> impl Iterator<Item = Minute> + use<> {
        let first = self.first;
        (0..MINUTES).map(move |n| first + n as Minute)
    }
}

/// The replicas were started at different times.
fn offset(replica: usize) -> u64 {
    1_000_000_000 + 5_555_555_555 * replica as u64
}
