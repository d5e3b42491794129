//! `${NAME}` and `${NAME:-default}` in scalars, from the environment, after parsing: a value can never add members.
//!
//! `$${` is a literal `${`. A variable that is unset and has no default is a mistake where it stands; its value is never shown.

use super::raw::{Kind, Node, Position};

/// A variable that cannot be replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mistake {
    /// Where its scalar stands.
    pub(super) at: Position,
    /// The member, such as `listen.public.address`.
    pub(super) place: String,
    /// What is wrong.
    pub(super) what: String,
    /// What to do about it.
    pub(super) mend: String,
}

/// Replaces in every scalar of the tree. Returns what could not be replaced.
pub(super) fn interpolate(node: &mut Node, env: &dyn Fn(&str) -> Option<String>) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    walk(node, "", env, &mut mistakes);
    mistakes
}

fn walk(node: &mut Node, place: &str, env: &dyn Fn(&str) -> Option<String>, mistakes: &mut Vec<Mistake>) {
    match &mut node.kind {
        Kind::Null | Kind::Unset => {}
        Kind::Scalar(text) => match expand(text, env) {
            Ok(Some(expanded)) => *text = expanded,
            Ok(None) => {}
            Err((what, mend)) => {
                mistakes.push(Mistake { at: node.at, place: place.to_owned(), what, mend });
                node.kind = Kind::Unset;
            }
        },
        Kind::Sequence(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                walk(item, &format!("{place}[{index}]"), env, mistakes);
            }
        }
        Kind::Mapping(members) => {
            for member in members {
                let joint = if place.is_empty() { "" } else { "." };
                walk(&mut member.value, &format!("{place}{joint}{}", member.name), env, mistakes);
            }
        }
    }
}

/// The text with its variables replaced; `None` when it has none. The error is what is wrong and what to do about it.
fn expand(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Option<String>, (String, String)> {
    if !text.contains("${") {
        return Ok(None);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            out.push_str(&rest[..at - 1]);
            out.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        out.push_str(&rest[..at]);
        let inside = &rest[at + 2..];
        let Some(end) = inside.find('}') else {
            return Err(("`${` without a closing `}`".to_owned(), "write ${NAME}, or $${ for a literal ${".to_owned()));
        };
        let (name, default) = match inside[..end].split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (&inside[..end], None),
        };
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            let mend = "write ${NAME} or ${NAME:-default}, the name with letters, digits and _";
            return Err((format!("`${{{}}}` is not a variable", &inside[..end]), mend.to_owned()));
        }
        match (env(name).filter(|value| default.is_none() || !value.is_empty()), default) {
            (Some(value), _) => out.push_str(&value),
            (None, Some(default)) => out.push_str(default),
            (None, None) => {
                let mend = format!("set it, or give a default: ${{{name}:-default}}");
                return Err((format!("the environment variable {name} is not set"), mend));
            }
        }
        rest = &inside[end + 1..];
    }
    out.push_str(rest);
    Ok(Some(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> Result<Option<String>, (String, String)> {
        expand(text, &|name| match name {
            "A" => Some("x".to_owned()),
            "EMPTY" => Some(String::new()),
            "NESTED" => Some("${A}".to_owned()),
            _ => None,
        })
    }

    #[test]
    fn variables_are_replaced_and_defaults_apply_where_they_are_unset_or_empty() {
        let text = |text: &str| expanded(text).unwrap().unwrap_or_else(|| text.to_owned());
        assert_eq!(text("a ${A}-${A}"), "a x-x");
        assert_eq!(text("${B:-http://h:1/}"), "http://h:1/");
        assert_eq!(text("${B:-}"), "");
        assert_eq!(text("${EMPTY:-d}${EMPTY}"), "d");
        assert_eq!(text("$${A} $A $"), "${A} $A $");
        assert_eq!(text("${NESTED}"), "${A}", "replaced once, never again");
    }

    #[test]
    fn what_cannot_be_replaced_is_a_mistake() {
        for bad in ["${B}", "${", "${}", "${A B}", "${A", "${-x}"] {
            assert!(expanded(bad).is_err(), "{bad}");
        }
    }
}
