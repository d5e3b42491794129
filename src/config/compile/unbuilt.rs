//! Members that the grammar has and this build does not enforce: checked like all others, then refused.
//!
//! They are checked so that a file written for a later build shows its mistakes today, and refused because a member that is
//! silently ignored is a promise that nobody keeps.

use super::reader::Value;

/// What a member may hold.
pub(super) enum Shape {
    Text,
    Duration,
    Address,
    /// Text, or `{ file: PATH }`.
    Secret,
    OneOf(&'static [(&'static str, ())]),
    List(&'static Shape),
    Members(&'static [(&'static str, Shape)]),
}

/// Checks a member, then refuses it.
pub(super) fn refuse<T>(value: &Value<'_>, shape: &Shape) -> Option<T> {
    let before = value.report().errors();
    shape.check(value);
    if value.report().errors() == before { value.not_yet("remove it") } else { None }
}

impl Shape {
    fn check(&self, value: &Value<'_>) -> Option<()> {
        match self {
            Self::Text => value.text().map(drop),
            Self::Duration => value.duration().map(drop),
            Self::Address => value.address().map(drop),
            Self::Secret if value.is_mapping() => {
                value.mapping(&["file"])?.require("file", "write { file: PATH }")?.text().map(drop)
            }
            Self::Secret => value.text().map(drop),
            Self::OneOf(words) => value.choice(words),
            Self::List(shape) => {
                for item in value.items()? {
                    shape.check(&item);
                }
                Some(())
            }
            Self::Members(known) => {
                let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
                let map = value.mapping(&names)?;
                for (name, shape) in *known {
                    if let Some(member) = map.get(name) {
                        shape.check(&member);
                    }
                }
                Some(())
            }
        }
    }
}

use Shape::{Address, Duration, List, Members, OneOf, Secret, Text};

pub(super) const AUTHZ: Shape = Members(&[("address", Address)]);
pub(super) const TEXTS: Shape = List(&Text);
pub(super) const IDENTITY: Shape = Members(&[("jwt_key", Secret)]);
pub(super) const TRACING: Shape = Members(&[("otlp", Text), ("sampling", Text)]);
pub(super) const HASHES: Shape = List(&OneOf(&[("blake3", ()), ("sha256", ())]));
pub(super) const INTROSPECT: Shape = Members(&[
    ("path", Text),
    ("account", Text),
    ("organization", Text),
    ("scopes", Text),
    ("grant", List(&Text)),
    ("ttl", Duration),
]);
