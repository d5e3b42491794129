//! The path of a request target: accepted or refused, and its decoded segments.
//!
//! Strict because an upstream may normalise what we do not: what two parties could read differently is refused
//! (contract 4, first row). Never rewrites: the octets received are what is forwarded.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use super::rejection::Rejection;

/// An accepted path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestPath<'a> {
    segments: Vec<Cow<'a, str>>,
}

impl<'a> RequestPath<'a> {
    /// Checks and splits the path part of a request target (without the query). Only an encoded segment is copied.
    ///
    /// `*` (as in `OPTIONS *`) is about no route, and nothing is forwarded that no route matches.
    pub fn parse(raw: &'a str) -> Result<Self, Rejection> {
        if raw == "*" {
            return Err(Rejection::RouteNotFound);
        }
        let Some(rest) = raw.strip_prefix('/') else {
            return Err(Rejection::bad_request("Path must start with /"));
        };
        let mut segments = Vec::with_capacity(8);
        let mut rest = Some(rest);
        while let Some(path) = rest {
            // Octet by octet: segments are short, and what `split` brings along for long ones costs more.
            let end = path.bytes().position(|byte| byte == b'/');
            let segment = end.map_or(path, |end| &path[..end]);
            segments.push(decode_segment(segment).map_err(Rejection::bad_request)?);
            rest = end.map(|end| &path[end + 1..]);
        }
        // Only the last one may be empty, which is a trailing slash; but not by way of parameters, which some servers drop.
        let inner = segments.len() - 1;
        if segments[..inner].iter().any(|segment| segment.is_empty())
            || segments.iter().any(|segment| segment.starts_with(';'))
        {
            return Err(Rejection::bad_request("Empty path segment"));
        }
        Ok(Self { segments })
    }

    /// The decoded segments; a trailing slash is an empty last one. There is always at least one.
    pub fn segments(&self) -> &[Cow<'a, str>] {
        &self.segments
    }
}

/// What stands before path parameters (`;x`): servers that know them strip them before they look at dots and emptiness.
fn stem(segment: &str) -> &str {
    segment.split(';').next().unwrap_or(segment)
}

/// Decodes one segment, or says in words fit for a reason phrase why it is refused. Patterns decode their literals with it too,
/// so that a route which no request could reach is a mistake in the file.
pub(super) fn decode_segment(raw: &str) -> Result<Cow<'_, str>, &'static str> {
    // Nearly every segment: nothing to decode, nothing hidden.
    if raw
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'%' | b'\\' | b'#' | b'?' | b'"' | b'<' | b'>' | b'`'))
    {
        let is_dots = raw.starts_with('.') && matches!(stem(raw), "." | "..");
        return if is_dots { Err("Dot segment in path") } else { Ok(Cow::Borrowed(raw)) };
    }
    let mut encoded = false;
    for (at, byte) in raw.bytes().enumerate() {
        match byte {
            b'%' => {
                encoded = true;
                let digits = raw.as_bytes().get(at + 1..at + 3).unwrap_or_default();
                match digits {
                    [a, b] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => {}
                    _ => return Err("Bad percent-encoding in path"),
                }
            }
            b'\\' => return Err("Backslash in path"),
            b'#' => return Err("Fragment in request target"),
            b'?' => return Err("Query in path"),
            b'"' | b'<' | b'>' | b'`' => return Err("Forbidden octet in path"),
            0..=b' ' | 0x7f => return Err("Control character or space in path"),
            _ => {}
        }
    }
    let segment = if encoded {
        percent_decode_str(raw).decode_utf8().map_err(|_| "Path is not UTF-8")?
    } else {
        Cow::Borrowed(raw)
    };
    if segment.bytes().any(|byte| byte == b'/' || byte == b'\\') {
        return Err("Encoded slash or backslash in path");
    }
    // C1 controls (U+0080 to U+009F) are two bytes each, so the loop above cannot see them.
    if segment.chars().any(char::is_control) {
        return Err("Control character or space in path");
    }
    if matches!(stem(&segment), "." | "..") {
        return Err("Dot segment in path");
    }
    Ok(segment)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn segments(raw: &str) -> Vec<String> {
        RequestPath::parse(raw).unwrap().segments().iter().map(|segment| segment.to_string()).collect()
    }

    #[test]
    fn a_path_is_its_decoded_segments() {
        assert_eq!(segments("/"), [""]);
        assert_eq!(segments("/a/b"), ["a", "b"]);
        assert_eq!(segments("/a/"), ["a", ""]);
        assert_eq!(segments("/m%2D1/%C3%A4%20b"), ["m-1", "ä b"]);
        assert_eq!(segments("/a;v=1/..x/..."), ["a;v=1", "..x", "..."]);
        assert_eq!(segments("/%252e%252e/%252F"), ["%2e%2e", "%2F"], "decoded once, never twice");
    }

    #[test]
    fn what_two_parties_could_read_differently_is_refused() {
        for bad in [
            "",
            "a",
            "/.",
            "/..",
            "/a/../b",
            "/a/./b",
            "/%2e%2e/a",
            "/.%2E",
            "/..;x/a",
            "/.;/a",
            "/%2e%2e%3bx/a",
            "/..;",
            "//",
            "//a",
            "/a//b",
            "/a//",
            "/;x/a",
            "/a/;x",
            "/a/%3bx",
            "/a/%2F",
            "/a%2fb",
            "/a%5Cb",
            "/a\\b",
            "/a%00",
            "/a%0d%0a",
            "/a%7f",
            "/a\u{7f}",
            "/a\tb",
            "/a b",
            "/a%C2%85",
            "/a%",
            "/a%4",
            "/a%zz",
            "/a%+1",
            "/a#b",
            "/a?b",
            "/a\"b",
            "/a<b>",
            "/a`b",
            "/%ff",
            "/%C3",
            "http://x/a",
        ] {
            assert!(matches!(RequestPath::parse(bad), Err(Rejection::BadRequest(_))), "{bad:?}");
        }
    }

    #[test]
    fn nothing_is_copied_when_nothing_is_encoded() {
        let path = RequestPath::parse("/api/v1/models/m-1").unwrap();
        assert!(path.segments().iter().all(|segment| matches!(segment, Cow::Borrowed(_))));
    }

    proptest! {
        #[test]
        fn no_path_that_is_accepted_can_climb_or_split_again(raw in "/[a.%2eEfF5cC;/\\\\ä#\u{1}-]{0,12}") {
            if let Ok(path) = RequestPath::parse(&raw) {
                let (last, inner) = path.segments().split_last().unwrap();
                prop_assert!(inner.iter().all(|segment| !stem(segment).is_empty()));
                for segment in inner.iter().chain([last]) {
                    prop_assert!(!matches!(stem(segment), "." | ".."));
                    prop_assert!(!segment.contains(['/', '\\']) && !segment.chars().any(char::is_control));
                }
            }
        }
    }
}
