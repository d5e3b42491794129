//! How a counted thing is written down: three words, the same in every store and in the usage journal.
//!
//! Stored rows outlive a release: what is here may get new kinds, and never another spelling of an old one.

use crate::policy::resource::Kind;
use crate::policy::scope::Scope;

use super::{Counted, StatusClass};

impl Counted {
    /// Kind, name and class; no class (an empty one) but for endpoints.
    pub fn words(&self) -> (&'static str, &str, &'static str) {
        match self {
            Self::Endpoint(endpoint, class) => ("endpoint", endpoint, class.as_str()),
            Self::Scope(scope) => ("scope", scope.as_str(), ""),
            Self::Resource(kind, id) => (kind.as_str(), id, ""),
        }
    }

    /// What [`Self::words`] wrote; `None` for anything else.
    pub fn from_words(kind: &str, name: &str, class: &str) -> Option<Self> {
        Some(match kind {
            "endpoint" => {
                Self::Endpoint(name.into(), StatusClass::ALL.into_iter().find(|known| known.as_str() == class)?)
            }
            "scope" => Self::Scope(Scope::parse(name).ok()?),
            _ => Self::Resource(Kind::ALL.into_iter().find(|known| known.as_str() == kind)?, name.into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_lead_back_to_what_was_counted_and_others_to_nothing() {
        let endpoints = StatusClass::ALL.map(|class| Counted::Endpoint("GET /a/{b}".into(), class));
        let resources = Kind::ALL.map(|kind| Counted::Resource(kind, "m-1".into()));
        let scope = Counted::Scope(Scope::parse("models:read").unwrap());
        for counted in endpoints.into_iter().chain(resources).chain([scope]) {
            let (kind, name, class) = counted.words();
            assert_eq!(Counted::from_words(kind, name, class), Some(counted.clone()), "{counted:?}");
        }
        for (kind, name, class) in [("endpoint", "GET /a", "6xx"), ("scope", "Not A Scope", ""), ("planet", "x", "")] {
            assert_eq!(Counted::from_words(kind, name, class), None, "{kind}");
        }
    }
}
