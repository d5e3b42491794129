//! Scopes: their grammar, what a wildcard covers, what one scope stands for, and who may hand out which.
//!
//! A [`ScopeCatalog`] is compiled from `scopes:` of gateway.yaml. Asking it is the only way to learn whether a key holds
//! a scope, so the data path, `explain` and the management API cannot disagree.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// `family:action`, `family:*`, `*:*` or `*` (contract 3).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Scope(Arc<str>);

/// A text is not a scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a scope: write family:action, family:* or * in lower case, such as models:read")]
pub struct InvalidScope(pub String);

impl Scope {
    /// Parses the grammar of contract 3.
    pub fn parse(text: &str) -> Result<Self, InvalidScope> {
        let word = |s: &str| {
            !s.is_empty() && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
        };
        let ok = text.len() <= 128
            && match text.split_once(':') {
                None => text == "*",
                Some(("*", "*")) => true,
                Some((family, action)) => word(family) && (action == "*" || word(action)),
            };
        if ok { Ok(Self(text.into())) } else { Err(InvalidScope(text.chars().take(80).collect())) }
    }

    /// The scope as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What stands before the colon; `*` for the scope `*`.
    pub fn family(&self) -> &str {
        self.0.split(':').next().unwrap_or("*")
    }

    /// `family:*`, `*:*` or `*`.
    pub fn is_wildcard(&self) -> bool {
        self.0.ends_with('*')
    }

    /// `*` or `*:*`.
    fn is_everything(&self) -> bool {
        matches!(&*self.0, "*" | "*:*")
    }

    /// No wildcard and no alias covers these; they are named in full.
    pub fn is_reserved(&self) -> bool {
        self.family() == "accounts" || &*self.0 == "api-keys:admin"
    }

    /// Whether holding `self` alone, without any catalog, covers `wanted`.
    fn covers(&self, wanted: &Scope) -> bool {
        if wanted.is_reserved() {
            return self == wanted;
        }
        self == wanted
            || self.is_everything()
            || (self.is_wildcard() && !wanted.is_everything() && self.family() == wanted.family())
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl TryFrom<String> for Scope {
    type Error = InvalidScope;
    fn try_from(text: String) -> Result<Self, InvalidScope> {
        Self::parse(&text)
    }
}

impl From<Scope> for String {
    fn from(scope: Scope) -> String {
        scope.0.as_ref().to_owned()
    }
}

/// What each scope of gateway.yaml stands for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScopeCatalog {
    stands_for: BTreeMap<Scope, Vec<Scope>>,
}

/// Everything that a list of scopes amounts to: itself and, transitively, what its members stand for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants(BTreeSet<Scope>);

impl ScopeCatalog {
    /// Builds a catalog from `scopes:`. Cycles are harmless: expansion is a fixed point.
    pub fn new(stands_for: impl IntoIterator<Item = (Scope, Vec<Scope>)>) -> Self {
        Self { stands_for: stands_for.into_iter().collect() }
    }

    /// The aliases and what they stand for, in order of name.
    pub fn aliases(&self) -> impl Iterator<Item = (&Scope, &[Scope])> {
        self.stands_for.iter().map(|(scope, members)| (scope, members.as_slice()))
    }

    /// What `held` amounts to. An alias adds its members when it is held by name or covered by a held wildcard.
    pub fn expand<'a>(&self, held: impl IntoIterator<Item = &'a Scope>) -> Grants {
        let mut grants = Grants(held.into_iter().cloned().collect());
        loop {
            let before = grants.0.len();
            for (alias, members) in &self.stands_for {
                if grants.allows(alias) {
                    // A reserved scope is only ever held by name: no alias smuggles it in.
                    grants.0.extend(members.iter().filter(|member| !member.is_reserved()).cloned());
                }
            }
            if grants.0.len() == before {
                return grants;
            }
        }
    }
}

impl Grants {
    /// Whether a route that needs `wanted` is open.
    pub fn allows(&self, wanted: &Scope) -> bool {
        self.0.contains(wanted) || self.0.iter().any(|held| held.covers(wanted))
    }

    /// Whether a caller with these grants may give away `other`: nothing in `other` is beyond its own.
    pub fn covers(&self, other: &Grants) -> bool {
        other.0.iter().all(|scope| self.allows(scope))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(text: &str) -> Scope {
        Scope::parse(text).unwrap()
    }

    fn scopes(texts: &[&str]) -> Vec<Scope> {
        texts.iter().map(|t| scope(t)).collect()
    }

    fn catalog() -> ScopeCatalog {
        ScopeCatalog::new([
            (scope("models:read"), scopes(&["models:list"])),
            (scope("models:write"), scopes(&["models:create", "models:update"])),
            (scope("models:*"), scopes(&["model_versions:*", "inferences:*"])),
            (scope("evil:alias"), scopes(&["accounts:write", "api-keys:admin"])),
        ])
    }

    fn allows(held: &[&str], wanted: &str) -> bool {
        catalog().expand(&scopes(held)).allows(&scope(wanted))
    }

    #[test]
    fn the_grammar_is_that_of_the_contract() {
        for good in ["models:read", "model_versions:*", "*", "*:*", "api-keys:admin", "a1:b-2"] {
            assert!(Scope::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "models", "Models:read", "models:", ":read", "models:re*", "*:read", "a:b:c", "a b:c", "a:b\n"]
        {
            assert!(Scope::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_alias_opens_what_it_stands_for_and_not_the_reverse() {
        assert!(allows(&["models:read"], "models:list"));
        assert!(!allows(&["models:list"], "models:read"));
        assert!(allows(&["models:*"], "inferences:create"));
        assert!(!allows(&["models:write"], "inferences:create"));
    }

    #[test]
    fn a_wildcard_covers_its_family_and_a_wildcard_route_needs_a_wildcard() {
        assert!(allows(&["models:*"], "models:anything"));
        assert!(!allows(&["models:*"], "model_versions2:read"));
        assert!(allows(&["admin:*"], "admin:*"));
        assert!(!allows(&["admin:read"], "admin:*"));
        assert!(allows(&["*"], "admin:*") && allows(&["*:*"], "admin:*"));
        assert!(!allows(&["admin:*"], "*"));
    }

    #[test]
    fn no_wildcard_and_no_alias_covers_the_reserved_scopes() {
        for held in ["*", "*:*", "accounts:*", "api-keys:*", "evil:alias"] {
            for wanted in ["accounts:read", "accounts:write", "api-keys:admin"] {
                assert!(!allows(&[held], wanted), "{held} must not cover {wanted}");
            }
        }
        assert!(allows(&["accounts:read"], "accounts:read"));
        assert!(allows(&["api-keys:*"], "api-keys:write"));
        assert!(allows(&["*"], "api-keys:write"));
    }

    #[test]
    fn nobody_gives_more_than_they_hold() {
        let catalog = catalog();
        let covers =
            |mine: &[&str], theirs: &[&str]| catalog.expand(&scopes(mine)).covers(&catalog.expand(&scopes(theirs)));
        assert!(covers(&["models:*"], &["models:write", "inferences:read"]));
        assert!(!covers(&["models:read"], &["models:*"]));
        assert!(!covers(&["*"], &["accounts:write"]));
        assert!(!covers(&["models:*"], &["*"]));
        assert!(covers(&["*"], &["*:*"]));
    }
}
