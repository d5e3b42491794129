//! The path pattern of a route: literals, `{name}` and `{*rest}`.

use std::sync::Arc;

/// One segment of a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// This text, decoded.
    Literal(Arc<str>),
    /// `{name}`: one non-empty segment.
    Variable(Arc<str>),
    /// `{*rest}`: the tail, which may be empty.
    Tail(Arc<str>),
}

/// A compiled pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    template: Arc<str>,
    segments: Vec<Segment>,
}

impl Pattern {
    /// As written, groups resolved: `/api/v1/models/{model_id}`.
    pub fn template(&self) -> &Arc<str> {
        &self.template
    }

    /// Its segments.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }
}
