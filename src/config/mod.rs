//! gateway.yaml: from text to [`model::Config`], with every mistake at once.
//!
//! `raw` reads YAML into a tree with positions (the only file that names `serde_yaml`), `compile` turns the tree into the model
//! and collects [`diagnostic::Diagnostic`]s. Nothing below `cli` prints; nothing here touches the network or the store.

pub mod certificates;
mod compile;
pub mod diagnostic;
mod interpolate;
pub mod model;
pub mod profile;
mod raw;
pub mod redis_url;
pub mod reload;
pub mod store_url;
#[cfg(test)]
mod tests;

use std::path::Path;

use diagnostic::{ConfigError, Diagnostic, Severity};
use model::Config;

/// Reads and compiles a file. `env` answers `${NAME}`. The second part of the answer are warnings.
pub fn load(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<(Config, Vec<Diagnostic>), ConfigError> {
    compile_file(path, std::fs::read(path), env)
}

/// Compiles what was read from the file `path`, or tells why it could not be read.
pub fn compile_file(
    path: &Path,
    read: std::io::Result<Vec<u8>>,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<(Config, Vec<Diagnostic>), ConfigError> {
    match read {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => parse(path, &text, env),
            Err(error) => {
                let line =
                    error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
                Err(single(path, raw::Position { line, column: 1 }, "the file is not UTF-8", "save it as UTF-8"))
            }
        },
        Err(error) => {
            let start = raw::Position { line: 1, column: 1 };
            let what = format!("the file cannot be read: {error}");
            Err(single(path, start, &what, "name another with --config or $SEEME_GATEWAY_CONFIG"))
        }
    }
}

/// Compiles `text` as if it stood in the file `path`.
pub fn parse(
    path: &Path,
    text: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<(Config, Vec<Diagnostic>), ConfigError> {
    let mut root = raw::parse(text).map_err(|error| {
        let line = text.lines().nth(error.at.line - 1).unwrap_or_default();
        // The most common ones: `{ match: GET /x/{id} }` and `name:{ … }`.
        let (braces, glued) = (line.matches('{').count() > 1, line.contains(":{"));
        let mend = match (glued, braces) {
            (true, _) => {
                "a name, a colon and a blank stand before {, as in `name: { … }`; a path with braces inside { … } must be quoted"
            }
            (false, true) => "a path with braces inside { … } must be quoted",
            (false, false) => "",
        };
        let mend = if error.mend.is_empty() { mend } else { error.mend };
        single(path, error.at, &format!("not YAML: {}", error.what), mend)
    })?;
    let mistakes = interpolate::interpolate(&mut root, env);
    match compile::compile(path, &root, mistakes) {
        (Some(mut config), warnings) => {
            config.digest = *blake3::hash(text.as_bytes()).as_bytes();
            Ok((config, warnings))
        }
        (None, found) => Err(ConfigError(found)),
    }
}

fn single(path: &Path, at: raw::Position, what: &str, mend: &str) -> ConfigError {
    ConfigError(vec![Diagnostic {
        file: path.display().to_string(),
        line: at.line,
        column: at.column,
        place: String::new(),
        what: what.to_owned(),
        mend: mend.to_owned(),
        severity: Severity::Error,
    }])
}
