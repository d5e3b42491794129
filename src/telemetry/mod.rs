//! What operators see: metrics, the access log, and what may never be seen in either.
//!
//! Handles are resolved once and kept; nothing here looks a metric up by name per request. Labels are bounded: route
//! templates, upstream names, codes of the contract. Never a key, a path or a value that a client made.

pub mod access_log;
mod catalogue;
pub mod diagnostics;
pub mod names;
mod outlet;
pub mod redact;
pub mod trace;

pub use names::Metrics;
