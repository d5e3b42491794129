//! A typed reader over the tree that collects every mistake instead of stopping at the first.
//!
//! A reading method returns `None` after it has reported why, so the caller goes on with the next member. It knows YAML's kinds
//! and the units, and no member of the grammar by name.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::time::Duration;

use super::units;
pub(super) use crate::config::diagnostic::shorten;
use crate::config::diagnostic::{Diagnostic, Severity, nearest};
use crate::config::raw::{Kind, Node, Position};

/// Where diagnostics are collected.
pub(super) struct Report {
    file: String,
    found: RefCell<Vec<Diagnostic>>,
}

impl Report {
    pub(super) fn new(file: String) -> Self {
        Self { file, found: RefCell::default() }
    }

    /// Everything reported, in the order of the file, each once, however often the same words were read.
    pub(super) fn finish(self) -> Vec<Diagnostic> {
        let mut found = self.found.into_inner();
        let order = |d: &Diagnostic| (d.line, d.column, d.what.clone(), d.place.clone());
        found.sort_by_cached_key(order);
        found.dedup_by(|a, b| order(a) == order(b));
        found
    }

    /// Whether a value was complained about already: a mistake in a group is told once, not once for each route inside.
    pub(super) fn blames(&self, value: &Value<'_>) -> bool {
        let at = value.at();
        self.found
            .borrow()
            .iter()
            .any(|found| (found.line, found.column, &*found.place) == (at.line, at.column, value.place()))
    }

    pub(super) fn errors(&self) -> usize {
        self.found.borrow().iter().filter(|found| found.severity == Severity::Error).count()
    }

    pub(super) fn add(&self, severity: Severity, at: Position, place: &str, what: String, mend: &str) {
        self.found.borrow_mut().push(Diagnostic {
            file: self.file.clone(),
            line: at.line,
            column: at.column,
            place: place.to_owned(),
            what,
            mend: mend.to_owned(),
            severity,
        });
    }
}

/// A value with its place in the file.
#[derive(Clone)]
pub(super) struct Value<'a> {
    node: &'a Node,
    place: String,
    report: &'a Report,
}

impl<'a> Value<'a> {
    pub(super) fn root(node: &'a Node, report: &'a Report) -> Self {
        Self { node, place: String::new(), report }
    }

    pub(super) fn at(&self) -> Position {
        self.node.at
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    pub(super) fn report(&self) -> &'a Report {
        self.report
    }

    /// Reports a mistake here. Returns `None`, to end a reading function with.
    pub(super) fn mistake<T>(&self, what: impl Into<String>, mend: &str) -> Option<T> {
        // The mistake of an unset variable was reported where it stands; what follows from it is none.
        if self.node.kind != Kind::Unset {
            self.report.add(Severity::Error, self.node.at, &self.place, what.into(), mend);
        }
        None
    }

    pub(super) fn warning(&self, what: impl Into<String>, mend: &str) {
        self.report.add(Severity::Warning, self.node.at, &self.place, what.into(), mend);
    }

    fn kind(&self) -> &'static str {
        match self.node.kind {
            Kind::Null | Kind::Unset => "nothing",
            Kind::Scalar(_) => "a single value",
            Kind::Sequence(_) => "a list",
            Kind::Mapping(_) => "a mapping",
        }
    }

    pub(super) fn is_mapping(&self) -> bool {
        matches!(self.node.kind, Kind::Mapping(_))
    }

    pub(super) fn is_sequence(&self) -> bool {
        matches!(self.node.kind, Kind::Sequence(_))
    }

    /// The text, where there is one; reports nothing.
    pub(super) fn peek(&self) -> Option<&'a str> {
        match &self.node.kind {
            Kind::Scalar(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn text(&self) -> Option<&'a str> {
        self.peek()
            .or_else(|| self.mistake(format!("expected a single value, found {}", self.kind()), "write one value"))
    }

    /// Reads text by `read`; `like` says what is expected, `mend` what to write.
    pub(super) fn parse<T>(&self, like: &str, mend: &str, read: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let text = self.text()?;
        read(text).or_else(|| self.mistake(format!("`{}` is not {like}", shorten(text)), mend))
    }

    /// Reports an error of the grammars in `policy`. Those say in one sentence what is wrong and, after a colon, what to write;
    /// `mend` is for the ones that do not.
    pub(super) fn misread<T>(&self, error: &impl std::fmt::Display, mend: &str) -> Option<T> {
        let told = error.to_string();
        match told.rsplit_once(": ").filter(|(_, how)| how.starts_with("write ")) {
            Some((what, how)) => self.mistake(what, how),
            None => self.mistake(told, mend),
        }
    }

    pub(super) fn duration(&self) -> Option<Duration> {
        self.parse("a duration", "write a number with ms, s, m, h or d, such as 250ms or 10m", units::duration)
    }

    /// A duration that is more than nothing.
    pub(super) fn positive_duration(&self) -> Option<Duration> {
        match self.duration()? {
            Duration::ZERO => self.mistake("must be longer than nothing", "write a duration such as 5s"),
            duration => Some(duration),
        }
    }

    pub(super) fn size(&self) -> Option<u64> {
        self.parse("a size", "write a number of bytes or with KiB, MiB or GiB, such as 64KiB", units::size)
    }

    pub(super) fn rate(&self) -> Option<u32> {
        self.parse("a rate", "write a number per minute, such as 60/min", units::per_minute)
    }

    pub(super) fn count(&self, least: u64, most: u64) -> Option<u64> {
        let like = format!("a whole number from {least} to {most}");
        self.parse(&like, "write digits only, within these bounds", |text| {
            units::count(text).filter(|number| (least..=most).contains(number))
        })
    }

    pub(super) fn flag(&self) -> Option<bool> {
        self.parse("true or false", "write one of the two", |text| match text {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        })
    }

    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.parse("an address", "write IP:PORT, such as 0.0.0.0:8080 or [::]:8080", |text| text.parse().ok())
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        if let Some((_, choice)) = words.iter().find(|(word, _)| *word == text) {
            return Some(*choice);
        }
        let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let mend = match did_you_mean(text, names.iter().copied()) {
            near if near.is_empty() => "write one of these".to_owned(),
            near => near,
        };
        self.mistake(format!("`{}` is not one of {}", shorten(text), names.join(", ")), &mend)
    }

    pub(super) fn items(&self) -> Option<Vec<Value<'a>>> {
        let Kind::Sequence(items) = &self.node.kind else {
            return self
                .mistake(format!("expected a list, found {}", self.kind()), "write [a, b] or a line `- a` for each");
        };
        let item = |(index, node)| Self { node, place: format!("{}[{index}]", self.place), report: self.report };
        Some(items.iter().enumerate().map(item).collect())
    }

    /// The members of a mapping, whatever their names. A name that occurs twice is reported with both places.
    pub(super) fn members(&self) -> Option<Vec<(&'a str, Position, Value<'a>)>> {
        let Kind::Mapping(members) = &self.node.kind else {
            return self.mistake(format!("expected a mapping, found {}", self.kind()), "write `name: value` members");
        };
        let mut read: Vec<(&'a str, Position, Value<'a>)> = Vec::with_capacity(members.len());
        for member in members {
            let place =
                if self.place.is_empty() { member.name.clone() } else { format!("{}.{}", self.place, member.name) };
            if let Some((_, first, _)) = read.iter().find(|(name, ..)| *name == member.name) {
                let what = format!("`{}` is given twice: first in line {}", shorten(&member.name), first.line);
                self.report.add(Severity::Error, member.at, &place, what, "keep one of the two");
                continue;
            }
            read.push((&member.name, member.at, Self { node: &member.value, place, report: self.report }));
        }
        Some(read)
    }

    /// A mapping with known members; any other is a mistake.
    pub(super) fn mapping(&self, known: &[&str]) -> Option<Map<'a>> {
        let members = self.members()?;
        let mut misspelt = Vec::new();
        for (name, at, value) in &members {
            if !known.contains(name) {
                let near = nearest(name, known.iter().copied());
                misspelt.extend(near.map(str::to_owned));
                let mend = match near {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("known here: {}", known.join(", ")),
                };
                let what = format!("unknown member `{}`", shorten(name));
                self.report.add(Severity::Error, *at, &value.place, what, &mend);
            }
        }
        let members = members.into_iter().filter(|(name, ..)| known.contains(name));
        Some(Map { value: self.clone(), members: members.map(|(name, _, value)| (name, value)).collect(), misspelt })
    }

    /// Refuses a member that the grammar has and this build does not enforce: to ignore it would be to promise what is not done.
    pub(super) fn not_yet<T>(&self, mend: &str) -> Option<T> {
        let name = self.place.rsplit('.').next().unwrap_or(&self.place).to_owned();
        self.mistake(format!("`{name}` is not enforced by this build yet"), mend)
    }
}

/// A mapping whose members are known.
pub(super) struct Map<'a> {
    pub(super) value: Value<'a>,
    members: Vec<(&'a str, Value<'a>)>,
    /// Members that are probably there under a wrong name, which was reported.
    misspelt: Vec<String>,
}

impl<'a> Map<'a> {
    /// A member, where it is given. One without a value is a mistake: it looks as if it did something.
    pub(super) fn get(&self, name: &str) -> Option<Value<'a>> {
        let (_, value) = self.members.iter().find(|(known, _)| *known == name)?;
        if value.node.kind == Kind::Null {
            return value.mistake("has no value", "give it one, or remove the member for the default");
        }
        Some(value.clone())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.members.iter().any(|(known, _)| *known == name)
    }

    pub(super) fn require(&self, name: &str, mend: &str) -> Option<Value<'a>> {
        if self.has(name) || self.misspelt.iter().any(|meant| meant == name) {
            return self.get(name);
        }
        self.value.mistake(format!("`{name}` is missing"), mend)
    }

    pub(super) fn read<T>(&self, name: &str, default: T, read: impl FnOnce(&Value<'a>) -> Option<T>) -> T {
        self.get(name).and_then(|value| read(&value)).unwrap_or(default)
    }

    pub(super) fn duration(&self, name: &str, default: Duration) -> Duration {
        self.read(name, default, Value::positive_duration)
    }
}

pub(super) fn did_you_mean<'k>(text: &str, known: impl IntoIterator<Item = &'k str>) -> String {
    nearest(text, known).map_or_else(String::new, |near| format!("did you mean `{near}`?"))
}
