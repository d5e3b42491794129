//! Hands the arguments over and turns the outcome into an exit code. Holds nothing worth testing.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    seeme_gateway::cli::main(std::env::args_os())
}
