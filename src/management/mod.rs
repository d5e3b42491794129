//! The management API: keys, their usage and their events (contract 6 and 7), and the rules that it shares with the command line.
//!
//! A request passes through these rooms in this order:
//!
//! | room | does |
//! |---|---|
//! | [`call`] | method and path to a [`Call`](call::Call), or 404, 405 |
//! | [`rate`] | `management.rate` of the calling key |
//! | [`api`] | the call carried out, as status and JSON; the only room that a transport needs |
//! | [`object`] | a body as one JSON object |
//! | [`body`] | JSON to types that cannot be wrong |
//! | [`grant`] | nobody gives more than they have |
//! | [`keys`], [`accounts`] | the operations on the store; the command line starts here |
//! | [`acknowledge`] | who obeys a change already |
//! | [`view`], [`usage`] | what is shown |
//! | [`audit`] | what is logged of a change |
//! | [`problem`] | what went wrong |
//!
//! Nothing here knows HTTP messages, connections or terminals, and no route's scope is decided here.

pub mod accounts;
pub mod acknowledge;
pub mod api;
pub mod audit;
pub mod body;
pub mod call;
pub mod grant;
pub mod keys;
pub mod object;
pub mod problem;
pub mod rate;
pub mod usage;
pub mod view;

#[cfg(test)]
pub(crate) mod testing;
