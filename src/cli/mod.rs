//! The command line: one file a subcommand, arguments in [`args`].
//!
//! Prints, and turns errors into exit codes: 0 done, 1 failed, 64 usage, 78 configuration (contract 1). Decides nothing.

pub mod args;
pub mod sample_backend;
