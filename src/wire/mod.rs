//! What can be said about octets before anybody parses them.
//!
//! Pure: no socket, no clock, no task.

pub mod frames;
pub mod heads;
pub mod hpack;
