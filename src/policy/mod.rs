//! The decisions of the gateway, as pure functions and types.
//!
//! Nothing in here knows tokio, files, sockets, a clock, randomness or metrics: `now` is an argument, every input is a
//! value. That is what makes the rules testable by property and the lease protocol explorable state by state.

pub mod access;
pub mod cors;
pub mod credential;
pub mod forwarded;
pub mod headers;
pub mod instant;
pub mod key;
pub mod lease;
pub mod network;
pub mod path;
pub mod pattern;
pub mod quota;
mod quota_fields;
pub mod rejection;
pub mod resource;
pub mod retry;
pub mod rewrite;
pub mod route;
pub mod scope;
pub mod table;
pub mod values;
pub mod websocket;
