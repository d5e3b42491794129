//! What a command prints: text for people or one JSON document on stdout, warnings on stderr.
//!
//! Commands build an [`Output`] and nothing is printed before they have succeeded, so `--json` never mixes with anything else.

use std::io::{self, Write};

use serde_json::Value;

use crate::management::acknowledge::Acknowledged;

/// Everything that a command has to say.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Output {
    /// For stdout, with its last line end.
    pub(super) text: String,
    /// For stderr, one line each.
    pub(super) warnings: Vec<String>,
}

impl Output {
    /// For people.
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), warnings: Vec::new() }
    }

    /// For programs.
    pub(super) fn json(value: &Value) -> Self {
        Self::text(format!("{value:#}\n"))
    }

    /// One of both.
    pub(super) fn either(as_json: bool, value: impl FnOnce() -> Value, text: impl FnOnce() -> String) -> Self {
        if as_json { Self::json(&value()) } else { Self::text(text()) }
    }

    /// Writes it. A closed pipe is an error and no panic: a secret that nobody saw must not look like success.
    pub(super) fn print(&self) -> io::Result<()> {
        for warning in &self.warnings {
            writeln!(io::stderr(), "warning: {warning}")?;
        }
        let mut stdout = io::stdout();
        stdout.write_all(self.text.as_bytes())?;
        stdout.flush()
    }
}

/// `1 route`, `2 routes`.
pub(super) fn counted(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Columns aligned by their widest cell; the first row is the heading.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// Names and values below each other.
pub(super) fn block(rows: &[(&str, String)]) -> String {
    table(&rows.iter().map(|(name, value)| vec![(*name).to_owned(), value.clone()]).collect::<Vec<_>>())
}

/// Who obeys a change, in one line.
pub(super) fn acknowledgement(acknowledged: &Acknowledged) -> String {
    let Acknowledged { replicas, of, unreachable } = acknowledged;
    match (of, unreachable.is_empty()) {
        (0, true) => "No gateway runs on this store.\n".to_owned(),
        (_, true) => format!("{replicas} of {of} gateways obey.\n"),
        (_, false) => {
            format!("{replicas} of {of} gateways obey; not confirmed within 500ms: {}.\n", unreachable.join(", "))
        }
    }
}

/// `-` for nothing.
pub(super) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_lines_end_without_spaces() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let text = table(&[row(["ID", "NAME", "X"]), row(["1", "ä long name", ""]), row(["22", "n", "x"])]);
        assert_eq!(text, "ID  NAME         X\n1   ä long name\n22  n            x\n");
    }

    #[test]
    fn an_acknowledgement_names_who_is_missing() {
        let line = |replicas, of, unreachable: &[&str]| {
            let unreachable = unreachable.iter().map(ToString::to_string).collect();
            acknowledgement(&Acknowledged { replicas, of, unreachable })
        };
        assert_eq!(line(0, 0, &[]), "No gateway runs on this store.\n");
        assert_eq!(line(3, 3, &[]), "3 of 3 gateways obey.\n");
        assert_eq!(line(1, 2, &["a:1"]), "1 of 2 gateways obey; not confirmed within 500ms: a:1.\n");
    }
}
