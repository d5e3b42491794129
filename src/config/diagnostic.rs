//! A mistake in the file: where it is, what it is, how to mend it.
//!
//! In the operator's terms: places are members of gateway.yaml (`routes[3].match`), never names of this program.

use std::fmt;

use serde::Serialize;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The file does not compile.
    Error,
    /// It compiles, but probably means something else.
    Warning,
}

/// One mistake or warning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// The file as it was named on the command line.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1.
    pub column: usize,
    /// The member, such as `routes[3].match`; empty for the file as a whole.
    pub place: String,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub mend: String,
    /// How bad it is.
    pub severity: Severity,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.what)?;
        if !self.place.is_empty() {
            write!(f, " ({})", self.place)?;
        }
        if self.mend.is_empty() { Ok(()) } else { write!(f, "; {}", self.mend) }
    }
}

/// The file does not compile. Never empty; in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(pub Vec<Diagnostic>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.0.iter().enumerate() {
            write!(f, "{}{diagnostic}", if index == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// The known name that `text` was probably meant to be.
pub(super) fn nearest<'a>(text: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let scored = known.into_iter().map(|name| (strsim::damerau_levenshtein(text, name), name));
    let (distance, name) = scored.min_by_key(|(distance, _)| *distance)?;
    // A third of the letters may be wrong, one at least: `adress` finds `address`, `teapot` finds nothing.
    (distance <= (text.len().max(name.len()) / 3).max(1) && distance < name.len()).then_some(name)
}

/// Enough of a text to recognise it: what stands in the wrong place may be long, or a secret.
pub(super) fn shorten(text: &str) -> String {
    let shown: String = text.chars().take(60).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().count() > 60 { format!("{shown}…") } else { shown }
}
