//! What the negative controls plant, beside the product's code and not in it.

use super::*;
use crate::policy::lease::windows::start_of;

/// A mistake that the protocol must not make. Wrong deadlines are a [`Rule`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mistake {
    None,
    /// What an unanswered call gave back is given back once more.
    ReturnTwice,
    /// The tokens of an answer that arrives again are put into the stash again.
    DepositTwice,
    /// A ledger is not told what callers have seen.
    IgnoreSeen,
    /// A replica does not remember what it was told.
    RememberNothing,
    /// An early lease is spent as soon as it is there.
    SpendEarly,
    /// The start of an early lease has no margin for a clock that is fast.
    StartExactly,
}

impl Mistake {
    /// A call reaches the store.
    pub(super) fn in_request(self, request: &mut LeaseRequest) {
        if self == Self::IgnoreSeen {
            request.seen = Seen::default();
        }
    }

    /// An answer reached the caller.
    pub(super) fn in_answer(self, lease: &mut SubjectLease, now: Mono, awaited: bool, reply: &LeaseReply) {
        match (self, awaited) {
            (Self::RememberNothing, true) => lease.seen = Default::default(),
            (Self::DepositTwice, false) => {
                if let Some(stash) = &mut lease.grant {
                    stash.tokens += reply.granted;
                }
            }
            (Self::SpendEarly | Self::StartExactly, true) => {
                if let Some(early) = &mut lease.early {
                    let wait = start_of(early.minute).saturating_sub(reply.now_micros);
                    early.start = if self == Self::SpendEarly { now } else { Mono(now.0 + wait) };
                }
            }
            _ => {}
        }
    }

    /// A caller gave a call up.
    pub(super) fn in_give_up(self, lease: &mut SubjectLease, now: Mono, request: &LeaseRequest) {
        if self == Self::ReturnTwice
            && let Some((minute, tokens)) = request.give_back
        {
            lease.owe(minute, tokens, now);
        }
    }
}
