//! Is the store there? One answer for everybody who asks it something: authentication, the limiter, heartbeats, management.
//!
//! The [`Guard`] stands before the store. Leave to make a call is asked for ([`Guard::permit`]), the call is watched while it is
//! out ([`Guard::watch`]), and from how calls end follows what each [`Part`](crate::store::Part) of the store is:
//!
//! | state | is | so | ends by |
//! |---|---|---|---|
//! | [`There`](State::There) | it answers | calls go out | |
//! | [`Refusing`](State::Refusing) | it answers, but a charge of its ledger was refused (disk or memory full, read-only) | reads go on; one charge a second goes out as a probe; quota follows `store.outage.quota` | a charge that is done, or nobody wanting one for five seconds |
//! | [`Away`](State::Away) | nothing at all was heard for `store.timeout` while a call was out, a ping included; or a read was refused; or two answers in a row were lost | nobody waits and nothing goes out, but one ping a second | a prompt answer to anything |
//!
//! A slow answer among others is no outage, nor is a stall of this very process: only time during which this process was seen
//! running counts as silence. Nobody has to ask for an outage to end: the guard sends the pings itself.
//!
//! [`Guarded`] is the store for everybody who has no use for the details: in an outage its calls fail at once. This room must not
//! know what a call is about, only whether it is answered.

mod breaker;
mod guard;
mod guarded;
mod watchman;

#[cfg(test)]
mod tests;

pub use breaker::State;
pub use guard::{Guard, Leave};
pub use guarded::Guarded;

/// What a call says about the store when it is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A read of one record: a part that refuses it can do nothing.
    Read,
    /// A charge of the quota ledger: a part that refuses it may still be read.
    Charge,
    /// Anything else; it may concern several parts. Whether this one is there is found out by a ping.
    Other,
}
