//! `${NAME}` and `${NAME:-default}` in scalars, from the environment, after parsing: a value can never add members.
//!
//! `$${` is a literal `${`. A variable that is unset and has no default is a mistake where it stands; its value is never shown.

use super::raw::{Kind, Node, Position};

/// Replaces in every scalar of the tree. Returns the mistakes as position and text.
pub(super) fn interpolate(node: &mut Node, env: &dyn Fn(&str) -> Option<String>) -> Vec<(Position, String)> {
    let mut mistakes = Vec::new();
    walk(node, env, &mut mistakes);
    mistakes
}

fn walk(node: &mut Node, env: &dyn Fn(&str) -> Option<String>, mistakes: &mut Vec<(Position, String)>) {
    match &mut node.kind {
        Kind::Null | Kind::Unset => {}
        Kind::Scalar(text) => match expand(text, env) {
            Ok(Some(expanded)) => *text = expanded,
            Ok(None) => {}
            Err(what) => {
                mistakes.push((node.at, what));
                node.kind = Kind::Unset;
            }
        },
        Kind::Sequence(items) => items.iter_mut().for_each(|item| walk(item, env, mistakes)),
        Kind::Mapping(members) => members.iter_mut().for_each(|member| walk(&mut member.value, env, mistakes)),
    }
}

/// The text with its variables replaced; `None` when it has none.
fn expand(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Option<String>, String> {
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
        let end = inside.find('}').ok_or("`${` without a closing `}`: write ${NAME}, or $${ for a literal ${")?;
        let (name, default) = match inside[..end].split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (&inside[..end], None),
        };
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Err(format!("`${{{}}}` is not a variable: write ${{NAME}} or ${{NAME:-default}}", &inside[..end]));
        }
        match (env(name).filter(|value| default.is_none() || !value.is_empty()), default) {
            (Some(value), _) => out.push_str(&value),
            (None, Some(default)) => out.push_str(default),
            (None, None) => return Err(format!("the environment variable {name} is not set")),
        }
        rest = &inside[end + 1..];
    }
    out.push_str(rest);
    Ok(Some(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> Result<Option<String>, String> {
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
