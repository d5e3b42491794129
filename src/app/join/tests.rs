//! Joining a store that is not there yet.
