//! The target that an upstream sees: leading segments taken away, others put before (`strip_prefix`, `add_prefix`).
//!
//! After matching, so routes, scopes and logs know the client's path only. Whole segments are compared, decoded, as routes do;
//! the octets of the rest and the query stay what they were.

use super::path::decode_segment;

/// The new target, if it differs. `strip`: decoded segments; a path that does not begin with all of them keeps what it has.
/// `add`: empty, or whole segments as they go over the wire.
pub fn rewrite(target: &str, strip: &[String], add: &str) -> Option<String> {
    let (path, query) = target.split_at(target.find('?').unwrap_or(target.len()));
    let rest = without(path, strip).unwrap_or(path);
    if add.is_empty() && rest.len() == path.len() {
        return None;
    }
    let root = if add.is_empty() && rest.is_empty() { "/" } else { "" };
    Some([add, root, rest, query].concat())
}

/// What is left of the path behind these segments.
fn without<'p>(path: &'p str, strip: &[String]) -> Option<&'p str> {
    let mut rest = path;
    for expected in strip {
        let after = rest.strip_prefix('/')?;
        let (segment, behind) = after.split_at(after.find('/').unwrap_or(after.len()));
        if decode_segment(segment).ok()? != expected.as_str() {
            return None;
        }
        rest = behind;
    }
    Some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::path::RequestPath;
    use proptest::prelude::*;

    fn rewritten(target: &str, strip: &str, add: &str) -> String {
        rewrite(target, &decoded(strip), add).unwrap_or_else(|| target.to_owned())
    }

    /// The segments of a prefix; none of an empty one.
    fn decoded(prefix: &str) -> Vec<String> {
        prefix.split('/').skip(1).map(|segment| decode_segment(segment).unwrap().into_owned()).collect()
    }

    #[test]
    fn whole_segments_go_and_the_octets_of_the_rest_stay() {
        for (target, strip, add, expected) in [
            ("/api/v1/m%2D1?a=%20b", "/api", "", "/v1/m%2D1?a=%20b"),
            ("/api/v1/x", "/api/v1", "/v2", "/v2/x"),
            ("/api?q", "/api", "", "/?q"),
            ("/api", "/api", "/v2", "/v2"),
            ("/api/", "/api", "", "/"),
            ("/api/", "/api", "/v2", "/v2/"),
            ("/%61pi/x", "/api", "", "/x"),
            ("/apis/x", "/api", "", "/apis/x"),
            ("/ap", "/api", "", "/ap"),
            ("/x/api/y", "/api", "", "/x/api/y"),
            ("/API/x", "/api", "", "/API/x"),
            ("/x?/api/", "", "/a%20b", "/a%20b/x?/api/"),
            ("/", "", "/v2", "/v2/"),
            ("/?", "/api", "", "/?"),
        ] {
            assert_eq!(rewritten(target, strip, add), expected, "{target} - {strip} + {add}");
        }
    }

    proptest! {
        /// Adding what was taken away gives the same segments and the same rest, octet for octet.
        #[test]
        fn what_was_stripped_can_be_added_again(
            prefix in "(/[a-z%20]{0}[a-z]{1,3}){1,3}", rest in "(/[a-z]{1,2}(%20)?){0,3}/?", query in "(\\?[a-z/?&=]{0,6})?",
        ) {
            let target = format!("{prefix}{rest}{query}");
            let stripped = rewritten(&target, &prefix, "");
            prop_assert!(stripped.starts_with('/') && stripped.ends_with(&query));
            prop_assert_eq!(rewritten(&target, &prefix, &prefix), target);
        }

        /// No rewriting makes a path that the gateway would have refused.
        #[test]
        fn a_good_path_stays_a_good_path(
            path in "(/[a-z.;%/]{0,4}){1,4}", strip in "(/[a-z]{1,2}){0,2}", add in "(/[a-z]{1,2}){0,2}",
        ) {
            if RequestPath::parse(&path).is_ok() {
                let new = rewritten(&path, &strip, &add);
                prop_assert!(RequestPath::parse(&new).is_ok(), "{} of {}", new, path);
            }
        }
    }
}
