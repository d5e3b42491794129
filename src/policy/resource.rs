//! Models, datasets and organizations: what a route binds or touches, and whether a limited key may go there.
//!
//! Pure: the values come in as text, wherever they were read. Comparison is exact; no case folding, no decoding here.

use std::fmt;

use super::key::{KeyRecord, ResourceId};
use super::rejection::Rejection;
use super::scope::Scope;

/// A kind of resource that a key can be limited to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `model_ids`
    Model,
    /// `dataset_ids`
    Dataset,
}

impl Kind {
    /// Both kinds.
    pub const ALL: [Self; 2] = [Self::Model, Self::Dataset];

    /// `model` or `dataset`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Dataset => "dataset",
        }
    }

    /// Whether a scope of this family is about this kind (contract 2, "Limited keys").
    pub fn owns(self, scope: &Scope) -> bool {
        let family = scope.family();
        match self {
            Self::Model => matches!(family, "models" | "model_versions" | "inferences"),
            Self::Dataset => {
                family == "datasets"
                    || family.starts_with("dataset_")
                    || matches!(family, "annotations" | "post_processors")
            }
        }
    }

    /// The ids that `key` is limited to; `None` is all.
    pub fn limit(self, key: &KeyRecord) -> Option<&[ResourceId]> {
        match self {
            Self::Model => key.model_ids.as_deref(),
            Self::Dataset => key.dataset_ids.as_deref(),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A set of kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Kinds {
    /// Models are in it.
    pub model: bool,
    /// Datasets are in it.
    pub dataset: bool,
}

impl Kinds {
    /// Whether `kind` is in it.
    pub const fn contains(self, kind: Kind) -> bool {
        match kind {
            Kind::Model => self.model,
            Kind::Dataset => self.dataset,
        }
    }

    /// Adds `kind`.
    pub fn insert(&mut self, kind: Kind) {
        match kind {
            Kind::Model => self.model = true,
            Kind::Dataset => self.dataset = true,
        }
    }
}

/// Where a value that a route binds comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValueSource {
    /// `path.NAME`: a variable of the pattern.
    Path(String),
    /// `query.NAME`
    Query(String),
    /// `header.NAME`
    Header(http::HeaderName),
    /// `body./POINTER`: a JSON pointer (RFC 6901), unescaped into its members. Never empty.
    Body(Vec<String>),
}

impl fmt::Display for ValueSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(name) => write!(f, "path.{name}"),
            Self::Query(name) => write!(f, "query.{name}"),
            Self::Header(name) => write!(f, "header.{name}"),
            Self::Body(members) => {
                let escaped = members.iter().map(|member| member.replace('~', "~0").replace('/', "~1"));
                write!(f, "body.{}", escaped.map(|member| format!("/{member}")).collect::<String>())
            }
        }
    }
}

/// What a limited key may do on a route that touches a kind and binds none of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LimitedKeys {
    /// Refuse: the gateway cannot tell which resource is meant.
    #[default]
    Deny,
    /// Forward: the backend filters by the identity headers.
    Forward,
}

/// Whether a key limited to `allowed` may use the resource that the request names.
pub fn check_resource(kind: Kind, allowed: &[ResourceId], named: Option<&str>) -> Result<(), Rejection> {
    match named {
        Some(named) if allowed.iter().any(|id| id.as_str() == named) => Ok(()),
        _ => Err(Rejection::ResourceNotAllowed(kind)),
    }
}
