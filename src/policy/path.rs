//! The path of a request target: accepted or refused, and its decoded segments.
//!
//! Strict because an upstream may normalise what we do not: what two parties could read differently is refused
//! (contract 4, first row). Never rewrites: the octets received are what is forwarded.

use super::rejection::Rejection;

/// An accepted path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestPath<'a> {
    segments: Vec<std::borrow::Cow<'a, str>>,
}

impl<'a> RequestPath<'a> {
    /// Checks and splits the path part of a request target (without the query).
    pub fn parse(raw: &'a str) -> Result<Self, Rejection> {
        if !raw.starts_with('/') {
            return Err(Rejection::bad_request("Path must start with /"));
        }
        Ok(Self { segments: raw[1..].split('/').map(Into::into).collect() })
    }

    /// The decoded segments; a trailing slash is an empty last one.
    pub fn segments(&self) -> &[std::borrow::Cow<'a, str>] {
        &self.segments
    }
}
