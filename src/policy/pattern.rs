//! The path pattern of a route: literals, `{name}` and `{*rest}`.

use std::borrow::Cow;
use std::sync::Arc;

use super::path::decode_segment;

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

/// Why a text is not a pattern, in words that mend it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPattern {
    /// It does not begin with a slash.
    #[error("a path begins with `/`")]
    NoSlash,
    /// Two slashes in a row.
    #[error("an empty segment (`//`) matches nothing: requests with one are refused")]
    EmptySegment,
    /// A brace in the wrong place.
    #[error("`{0}` mixes text and braces: a variable is a whole segment, such as /{{name}}/")]
    MixedSegment(String),
    /// What is between the braces is not a name.
    #[error("`{0}` is not a variable: write {{name}} with letters, digits and _")]
    BadName(String),
    /// `{*rest}` is followed by something.
    #[error("`{0}` takes the whole tail, so it must be the last segment")]
    TailNotLast(String),
    /// `*` as in a glob.
    #[error("`{0}` is not a wildcard: write {{name}} for one segment or {{*rest}} for the tail")]
    Glob(String),
    /// Two variables of one name.
    #[error("the variable `{0}` occurs twice")]
    DuplicateName(String),
    /// A literal that the gateway would refuse in a request.
    #[error("no request can have the segment `{0}` ({1})")]
    Unreachable(String, &'static str),
}

impl Pattern {
    /// Parses `/api/v1/models/{model_id}` or `/static/{*rest}`. Literals may be percent-encoded; they are compared decoded.
    pub fn parse(text: &str) -> Result<Self, InvalidPattern> {
        let rest = text.strip_prefix('/').ok_or(InvalidPattern::NoSlash)?;
        let raw: Vec<&str> = rest.split('/').collect();
        let mut segments = Vec::with_capacity(raw.len());
        for (at, segment) in raw.iter().enumerate() {
            let last = at + 1 == raw.len();
            if segment.is_empty() && !last {
                return Err(InvalidPattern::EmptySegment);
            }
            let segment = parse_segment(segment)?;
            match &segment {
                Segment::Tail(name) if !last => return Err(InvalidPattern::TailNotLast(format!("{{*{name}}}"))),
                Segment::Tail(name) | Segment::Variable(name) if names(&segments).any(|known| known == name) => {
                    return Err(InvalidPattern::DuplicateName(name.to_string()));
                }
                _ => segments.push(segment),
            }
        }
        Ok(Self { template: text.into(), segments })
    }

    /// As written, groups resolved: `/api/v1/models/{model_id}`.
    pub fn template(&self) -> &Arc<str> {
        &self.template
    }

    /// Its segments.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The names of its variables, from left to right.
    pub fn variables(&self) -> impl Iterator<Item = &Arc<str>> {
        names(&self.segments)
    }

    /// Whether both match exactly the same paths: the same literals and kinds of variables, whatever their names.
    pub fn same_shape(&self, other: &Self) -> bool {
        self.segments.len() == other.segments.len()
            && self.segments.iter().zip(&other.segments).all(|pair| match pair {
                (Segment::Literal(a), Segment::Literal(b)) => a == b,
                (Segment::Variable(_), Segment::Variable(_)) | (Segment::Tail(_), Segment::Tail(_)) => true,
                _ => false,
            })
    }

    /// The values that a path which this pattern matches gives to its variables.
    pub(super) fn capture(&self, path: &[Cow<'_, str>]) -> Vec<(Arc<str>, String)> {
        let mut values = Vec::new();
        for (at, segment) in self.segments.iter().enumerate() {
            match segment {
                Segment::Literal(_) => {}
                Segment::Variable(name) => values.push((name.clone(), path[at].to_string())),
                Segment::Tail(name) => values.push((name.clone(), path[at..].join("/"))),
            }
        }
        values
    }
}

fn names(segments: &[Segment]) -> impl Iterator<Item = &Arc<str>> {
    segments.iter().filter_map(|segment| match segment {
        Segment::Literal(_) => None,
        Segment::Variable(name) | Segment::Tail(name) => Some(name),
    })
}

fn parse_segment(raw: &str) -> Result<Segment, InvalidPattern> {
    if let Some(inside) = raw.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
        let (tail, name) = match inside.strip_prefix('*') {
            Some(name) => (true, name),
            None => (false, inside),
        };
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if name.is_empty() || name.len() > 64 || !name.bytes().all(word) {
            return Err(InvalidPattern::BadName(raw.to_owned()));
        }
        return Ok(if tail { Segment::Tail(name.into()) } else { Segment::Variable(name.into()) });
    }
    if raw.contains(['{', '}']) {
        return Err(InvalidPattern::MixedSegment(raw.to_owned()));
    }
    if matches!(raw, "*" | "**") {
        return Err(InvalidPattern::Glob(raw.to_owned()));
    }
    match decode_segment(raw) {
        Ok(literal) => Ok(Segment::Literal(literal.into())),
        Err(why) => Err(InvalidPattern::Unreachable(raw.to_owned(), why)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_literals_variables_and_a_tail() {
        let pattern = Pattern::parse("/a%20b/{id}/{*rest}").unwrap();
        assert_eq!(&**pattern.template(), "/a%20b/{id}/{*rest}");
        assert_eq!(
            pattern.segments(),
            [Segment::Literal("a b".into()), Segment::Variable("id".into()), Segment::Tail("rest".into())]
        );
        assert_eq!(Pattern::parse("/").unwrap().segments(), [Segment::Literal("".into())]);
        assert_eq!(Pattern::parse("/a/").unwrap().segments().len(), 2);
    }

    #[test]
    fn every_mistake_says_how_to_mend_it() {
        let mut told = String::new();
        for bad in
            ["a", "", "//a", "/a//", "/x{id}", "/{id", "/{}", "/{a-b}", "/{*r}/x", "/*", "/{a}/{a}", "/..", "/a?b"]
        {
            told += &format!("{bad}: {}\n", Pattern::parse(bad).unwrap_err());
        }
        insta::assert_snapshot!(told, @r"
        a: a path begins with `/`
        : a path begins with `/`
        //a: an empty segment (`//`) matches nothing: requests with one are refused
        /a//: an empty segment (`//`) matches nothing: requests with one are refused
        /x{id}: `x{id}` mixes text and braces: a variable is a whole segment, such as /{name}/
        /{id: `{id` mixes text and braces: a variable is a whole segment, such as /{name}/
        /{}: `{}` is not a variable: write {name} with letters, digits and _
        /{a-b}: `{a-b}` is not a variable: write {name} with letters, digits and _
        /{*r}/x: `{*r}` takes the whole tail, so it must be the last segment
        /*: `*` is not a wildcard: write {name} for one segment or {*rest} for the tail
        /{a}/{a}: the variable `a` occurs twice
        /..: no request can have the segment `..` (Dot segment in path)
        /a?b: no request can have the segment `a?b` (Query in path)
        ");
    }

    #[test]
    fn shapes_ignore_names_but_not_literals() {
        let same = |a: &str, b: &str| Pattern::parse(a).unwrap().same_shape(&Pattern::parse(b).unwrap());
        assert!(same("/a/{x}", "/%61/{y}"));
        assert!(same("/{*a}", "/{*b}"));
        assert!(!same("/a/{x}", "/a/{*x}"));
        assert!(!same("/a", "/a/"));
    }
}
