//! Clients that take their time, on purpose or not.
