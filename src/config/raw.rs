//! YAML as a tree with positions. The only file that names `serde_yaml`.
//!
//! Every scalar is kept as text as it was written, so that `1.10`, `off` and `007` mean what the member makes of them, not what
//! YAML guesses. Nothing is interpreted here; duplicate members are kept for the reader to report with both places.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_yaml::options::{DuplicateKeyPolicy, MergeKeyPolicy};
use serde_yaml::{Location, Spanned};

/// Line and column, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub(super) line: usize,
    pub(super) column: usize,
}

/// A value of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) at: Position,
    pub(super) kind: Kind,
}

/// What a value is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing, `~` or `null`.
    Null,
    /// A value that could not be interpolated. The mistake was reported, so readers stay silent about it.
    Unset,
    /// Text as written; escapes of quoted text resolved.
    Scalar(String),
    Sequence(Vec<Node>),
    Mapping(Vec<Member>),
}

/// A member of a mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) at: Position,
    pub(super) value: Node,
}

/// The text is not YAML.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SyntaxError {
    pub(super) at: Position,
    pub(super) what: String,
    /// Empty where nothing better is known than to look there.
    pub(super) mend: &'static str,
}

/// What the parser says in words for programmers: how that begins, what it means (empty: just that), and how to mend it.
const TROUBLES: [(&str, &str, &str); 6] = [
    ("recursive references", "an alias (`*`) stands inside its own anchor (`&`)", "write out what is meant there"),
    ("budget breached: Depth", "nested too deep", DEEP),
    ("budget breached", "too many values; those of an alias (`*`) count wherever it stands", "use fewer aliases"),
    ("recursion limit", "nested too deep", DEEP),
    ("tabs disallowed", "", "indent with spaces"),
    ("alias references unknown", "", "quote a text that begins with `*`, or write the anchor (`&`) before it"),
];
const DEEP: &str = "no member is as deep as this: look for brackets that are not closed";

/// Deeper than anything the grammar knows; bounds the recursion of everything that walks the tree.
const MAX_DEPTH: usize = 40;
/// Aliases multiply; this is far more than any real file has.
const MAX_NODES: usize = 200_000;

/// Reads one YAML document.
pub(super) fn parse(text: &str) -> Result<Node, SyntaxError> {
    let options = serde_yaml::options! {
        duplicate_keys: DuplicateKeyPolicy::LastWins, // hands all of them over
        merge_keys: MergeKeyPolicy::AsOrdinary,       // `<<` is an unknown member like any other
        reject_non_finite_typeless_float: false,      // only its text counts
        with_snippet: false,
        budget: serde_yaml::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: MAX_NODES * 2,
        },
    };
    let tree: Spanned<Raw> = serde_yaml::from_str_with_options(text, options).map_err(|error| {
        let at = error.location().map_or(Position { line: 1, column: 1 }, position);
        let said = first_line(&error.to_string());
        match TROUBLES.into_iter().find(|(begin, ..)| said.starts_with(begin)) {
            Some((_, "", mend)) => SyntaxError { at, what: said, mend },
            Some((_, what, mend)) => SyntaxError { at, what: what.to_owned(), mend },
            None => SyntaxError { at, what: said, mend: "" },
        }
    })?;
    convert(tree, text)
}

/// The parser's words, without the place (which the diagnostic gives) and advice for programmers.
fn first_line(message: &str) -> String {
    let line = message.lines().next().unwrap_or("not YAML");
    let line = line.split_once(" at line ").map_or(line, |(words, _)| words);
    line.split_once("; use ").map_or(line, |(words, _)| words).trim_end_matches('.').to_owned()
}

fn position(location: Location) -> Position {
    let number = |value: u64| usize::try_from(value).unwrap_or(usize::MAX).max(1);
    Position { line: number(location.line()), column: number(location.column()) }
}

/// What serde hands over, before positions and texts are settled.
enum Raw {
    Null,
    Text(String),
    /// YAML took it for a number or a boolean; its text stands in the source.
    Plain,
    Sequence(Vec<Spanned<Raw>>),
    Mapping(Vec<(Spanned<Raw>, Spanned<Raw>)>),
}

fn convert(raw: Spanned<Raw>, source: &str) -> Result<Node, SyntaxError> {
    let at = position(raw.referenced);
    let kind = match raw.value {
        Raw::Null => Kind::Null,
        Raw::Text(text) => Kind::Scalar(text),
        Raw::Plain => Kind::Scalar(source_text(raw.defined, source).unwrap_or_default().trim().to_owned()),
        Raw::Sequence(items) => {
            Kind::Sequence(items.into_iter().map(|item| convert(item, source)).collect::<Result<_, _>>()?)
        }
        Raw::Mapping(members) => {
            let mut converted = Vec::with_capacity(members.len());
            for (name, value) in members {
                let name = convert(name, source)?;
                let Kind::Scalar(text) = name.kind else {
                    let what = "a member needs a name".to_owned();
                    return Err(SyntaxError { at: name.at, what, mend: "write NAME: VALUE" });
                };
                converted.push(Member { name: text, at: name.at, value: convert(value, source)? });
            }
            Kind::Mapping(converted)
        }
    };
    Ok(Node { at, kind })
}

fn source_text(location: Location, source: &str) -> Option<&str> {
    let start = usize::try_from(location.span().byte_offset()?).ok()?;
    let length = usize::try_from(location.span().byte_len()?).ok()?;
    source.get(start..start.checked_add(length)?)
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_i128<E>(self, _: i128) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_u128<E>(self, _: u128) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_str<E>(self, text: &str) -> Result<Raw, E> {
        Ok(Raw::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Raw, E> {
        Ok(Raw::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Raw::Sequence(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = access.next_entry()? {
            members.push(member);
        }
        Ok(Raw::Mapping(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn show(node: &Node, out: &mut String) {
        match &node.kind {
            Kind::Null | Kind::Unset => *out += &format!("{}:{} null\n", node.at.line, node.at.column),
            Kind::Scalar(text) => *out += &format!("{}:{} {text:?}\n", node.at.line, node.at.column),
            Kind::Sequence(items) => items.iter().for_each(|item| show(item, out)),
            Kind::Mapping(members) => {
                for member in members {
                    *out += &format!("{}:{} {:?}: ", member.at.line, member.at.column, member.name);
                    show(&member.value, out);
                }
            }
        }
    }

    #[test]
    fn every_scalar_keeps_its_text_and_its_place() {
        let text = "a: 1.10\nb: {c: off, d: 007}\n# comment\ne:\n  - yes\n  - \"x\\ty\" # tail\n  - 'it''s'\nf:\ng: 0x1F\nh: &x 1e3\ni: *x\nä: 2_000\na: twice\nj: .inf\nk: 99999999999999999999999999\nl: -5\n";
        let mut shown = String::new();
        show(&parse(text).unwrap(), &mut shown);
        insta::assert_snapshot!(shown);
    }

    #[test]
    fn what_is_not_yaml_is_told_with_its_place() {
        let mut told = String::new();
        for bad in [
            "a: [1, 2",
            "a:\n\t- b",
            "a: {match: GET /x/{y}, z: 1}",
            "",
            "a: 'x",
            "{a: 1}: 2",
            "--- 1\n--- 2",
            "a: *b",
            "a: b: c",
        ] {
            match parse(bad) {
                Ok(node) => told += &format!("{bad:?} -> {node:?}\n"),
                Err(error) => told += &format!("{bad:?} {}:{} {}\n", error.at.line, error.at.column, error.what),
            }
        }
        insta::assert_snapshot!(told);
        assert!(parse(&"[".repeat(100)).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[ -~\n\t&*!|>'\"{}:,#\\[\\]-]{0,60}") {
            let _ = parse(&text);
        }
    }
}
