//! Fuzzing, bounded: every file of a corpus as it is, then mutations of them, against properties that must hold for any octets.
//!
//! `cargo test` runs a few thousand rounds of each target; `make fuzz` as many as it is told (`SEEME_FUZZ_ROUNDS`), from another
//! seed each time (`SEEME_FUZZ_SEED` repeats a run). What fails is shown and kept in a file; moved into the corpus, it is tried first
//! ever after. Deterministic and without a fuzzing engine, so that it runs wherever the tests do.

// The bans are for the product: a test fails by panicking.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

mod credential;
mod headers;
mod http1;
mod mutation;
mod path;
mod proxy_header;
mod reference;
mod yaml;
