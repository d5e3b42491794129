//! The command line: one file a subcommand, arguments in [`args`].
//!
//! Prints, and turns errors into exit codes: 0 done, 1 failed, 64 usage, 78 configuration (contract 1). Decides nothing.

mod accounts;
pub mod args;
mod check;
mod demo;
mod explain;
mod keys;
mod output;
mod process;
mod routes;
mod run;
pub mod sample_backend;
mod store;
mod trial;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use clap::error::ErrorKind;

use crate::app;
use crate::config::diagnostic::{ConfigError, Diagnostic};
use crate::config::model::Config;
use crate::management::problem::ManagementError;
use crate::store::Store;
use crate::telemetry::{diagnostics, redact};
use args::{Cli, Command};

const FAILED: u8 = 1;
const USAGE: u8 = 64;
const CONFIGURATION: u8 = 78;

/// Why a command did not succeed.
#[derive(Debug, thiserror::Error)]
enum CliError {
    /// The file has mistakes.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The arguments cannot be right, whatever the store holds.
    #[error("{0}")]
    Usage(String),
    /// Anything else, in one line.
    #[error("{0}")]
    Failed(String),
}

/// Runs one command with the process's arguments.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    process::forbid_core_dumps();
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let outcome = dispatch(cli);
    diagnostics::flush();
    match outcome {
        Ok(code) => code,
        Err(CliError::Config(error)) => {
            say(format_args!("{error}\n"));
            ExitCode::from(CONFIGURATION)
        }
        Err(CliError::Usage(message)) => complain(&message, USAGE),
        Err(CliError::Failed(message)) => complain(&message, FAILED),
    }
}

fn complain(message: &str, code: u8) -> ExitCode {
    say(format_args!("error: {}\n", redact::keys(message)));
    ExitCode::from(code)
}

/// The last words. Whether anybody hears them changes nothing.
fn say(words: std::fmt::Arguments<'_>) {
    let _ = io::stderr().write_fmt(words);
}

/// `--help` is an answer; anything else is a mistake. What was typed may hold a key.
fn usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = write!(io::stdout(), "{}", error.render());
            ExitCode::SUCCESS
        }
        _ => {
            say(format_args!("{}", redact::keys(&error.render().to_string())));
            ExitCode::from(USAGE)
        }
    }
}

fn dispatch(cli: Cli) -> Result<ExitCode, CliError> {
    let file = cli.config.as_path();
    match cli.command {
        Command::Run { take_over } => {
            let (config, warnings) = read(file)?;
            process::prepare(config.log_level).map_err(failed)?;
            warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            run::run(config, warnings, take_over).map_err(failed)?;
        }
        Command::Demo => {
            process::prepare(tracing::Level::WARN).map_err(failed)?;
            let (config, warnings) = read(file)?;
            demo::run(config, warnings)?;
        }
        Command::Check { format } => return Ok(check::run(file, format)),
        Command::Routes => routes::run(&load(file)?).map_err(failed)?,
        Command::Explain(args) => {
            let config = load(file)?;
            explain::run(&config, &args, || open(&config))?;
        }
        Command::Keys(command) => {
            let config = load(file)?;
            let store = open(&config)?;
            block_on(keys::run(command, store, config))??;
        }
        Command::Accounts(command) => {
            let config = load(file)?;
            let store = open(&config)?;
            block_on(accounts::run(command, store, config))??;
        }
        Command::Store(command) => store::run(command, file)?,
        Command::SampleBackend { listen } => sample_backend::run(listen).map_err(failed)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The file, without its warnings: those are for `check` and `run`.
fn load(file: &Path) -> Result<Config, CliError> {
    Ok(read(file)?.0)
}

fn read(file: &Path) -> Result<(Config, Vec<Diagnostic>), CliError> {
    Ok(crate::config::load(file, &|name| std::env::var(name).ok())?)
}

fn open(config: &Config) -> Result<Arc<dyn Store>, CliError> {
    app::open(&config.store.url, &config.store.access).map_err(failed)
}

fn block_on<F: Future>(future: F) -> Result<F::Output, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    Ok(runtime.block_on(future))
}

/// An operation that was refused. Its body, query or account came from the arguments.
fn refused(error: ManagementError) -> CliError {
    match error {
        ManagementError::InvalidBody(_) | ManagementError::InvalidQuery(_) | ManagementError::InvalidAccount(_) => {
            CliError::Usage(error.to_string())
        }
        other => failed(other),
    }
}

fn failed(error: impl std::fmt::Display) -> CliError {
    CliError::Failed(error.to_string())
}
