//! The small grammars of a route: `match`, `access`, value sources and kinds.

use http::{HeaderName, Method};

use super::plans::{scope, scope_list};
use super::reader::{Map, Value, did_you_mean, shorten};
use crate::policy::pattern::Pattern;
use crate::policy::resource::{Kind, Kinds, ValueSource};
use crate::policy::route::{Access, Methods};

const KNOWN_METHODS: [&str; 7] = ["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"];

/// Methods and path of `match`, the path still relative to its group.
pub(super) fn methods_and_path<'a>(value: &Value<'a>) -> Option<(Methods, &'a str)> {
    let text = value.text()?;
    let Some((methods, path)) = well_spaced(value, text)?.split_once(' ') else {
        let mend = "write METHOD PATH, such as GET /api/v1/models, or \"* /path\" for every method";
        return value.mistake(format!("`{}` is not a match", shorten(text)), mend);
    };
    let path = path.trim_start();
    if methods == "*" {
        return Some((Methods::Any, path));
    }
    let mut named: Vec<Method> = Vec::new();
    for name in methods.split('|') {
        if name == "*" {
            let mend = format!("write \"* {}\" for every method, or only the names", shorten(path));
            return value.mistake("`*` stands in a list of methods, and means all of them", &mend);
        }
        let method = method(value, name)?;
        if named.contains(&method) {
            return value.mistake(format!("{method} is named twice"), "name each method once");
        }
        named.push(method);
    }
    Some((Methods::Named(named), path))
}

/// The text, unless blanks stand where they would cut a list of methods in two.
fn well_spaced<'a>(value: &Value<'a>, text: &'a str) -> Option<&'a str> {
    if text.starts_with(' ') {
        return value.mistake("begins with a blank", &format!("write {}", shorten(text.trim())));
    }
    let (methods, path) = text.split_at(text.find('/').unwrap_or(text.len()));
    if methods.contains(" |") || methods.contains("| ") {
        let joined = methods.split('|').map(str::trim).filter(|name| !name.is_empty());
        let joined = joined.collect::<Vec<_>>().join("|");
        let mend = format!("write {} {}", shorten(&joined), shorten(path));
        return value.mistake("there are blanks around `|`", &mend);
    }
    Some(text)
}

/// A method by name. Unknown ones may be meant (`PROPFIND`), but not where they look like a mistyped known one. Methods are
/// case-sensitive, and none that anybody registered is more than upper-case letters and `-`: whatever else stands here was
/// meant as something else.
pub(super) fn method(value: &Value<'_>, name: &str) -> Option<Method> {
    const LIKE: &str = "write its name in upper-case letters, such as GET";
    if name == "CONNECT" {
        return value.mistake("CONNECT has no path, so no route can match it", "remove it");
    }
    if name == "TRACE" {
        return value.mistake("TRACE shows a client what others have sent, and is never forwarded", "remove it");
    }
    if name.is_empty() {
        return value.mistake("a method is missing", "write METHOD PATH, several methods as GET|PUT");
    }
    let near = match did_you_mean(&name.to_ascii_uppercase(), KNOWN_METHODS) {
        _ if KNOWN_METHODS.contains(&name) => String::new(),
        near => near,
    };
    let letters = name.starts_with(|c: char| c.is_ascii_uppercase())
        && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-');
    match Method::from_bytes(name.as_bytes()) {
        Ok(method) if letters && near.is_empty() => Some(method),
        _ => value.mistake(format!("`{}` is not a method", shorten(name)), if near.is_empty() { LIKE } else { &near }),
    }
}

/// `access` or its shorthand `scope`. `Some(None)`: neither is there.
pub(super) fn access(map: &Map<'_>) -> Option<Option<Access>> {
    match (map.get("access"), map.get("scope")) {
        (None, None) if map.has("access") || map.has("scope") => None,
        (None, None) => Some(None),
        (Some(_), Some(scope)) => scope.mistake(
            "`scope` and `access` are both given",
            "scope: X is short for access: { any_scope: [X] }; keep one",
        ),
        (None, Some(value)) if value.is_sequence() => value
            .mistake("`scope` takes one scope", "write access: { any_scope: [...] } or access: { all_scopes: [...] }"),
        (None, Some(value)) => Some(Some(Access::AnyScope(vec![scope(&value)?]))),
        (Some(value), None) if value.is_mapping() => {
            let map = value.mapping(&["any_scope", "all_scopes"])?;
            match (map.get("any_scope"), map.get("all_scopes")) {
                (Some(scopes), None) => Some(Some(Access::AnyScope(scope_list(&scopes)?))),
                (None, Some(scopes)) => Some(Some(Access::AllScopes(scope_list(&scopes)?))),
                (Some(_), Some(_)) => value.mistake("`any_scope` and `all_scopes` are both given", "keep one"),
                (None, None) => value.mistake("names no scope", "write { any_scope: [...] } or { all_scopes: [...] }"),
            }
        }
        (Some(value), None) => {
            let text = value.text()?;
            match text {
                "public" => Some(Some(Access::Public)),
                "authenticated" => Some(Some(Access::Authenticated)),
                _ if text.contains(':') => {
                    value.mistake(format!("`{}` is not an access", shorten(text)), "a scope is written scope: X")
                }
                _ => {
                    let mend = match did_you_mean(text, ["public", "authenticated"]) {
                        near if near.is_empty() => {
                            "write public, authenticated, { any_scope: [...] } or { all_scopes: [...] }".to_owned()
                        }
                        near => near,
                    };
                    value.mistake(format!("`{}` is not an access", shorten(text)), &mend)
                }
            }
        }
    }
}

/// `path.NAME`, `query.NAME`, `header.NAME` or `body./POINTER`.
pub(super) fn source(value: &Value<'_>) -> Option<ValueSource> {
    const LIKE: &str = "write path.NAME, query.NAME, header.NAME or body./POINTER";
    let text = value.text()?;
    let Some((from, name)) = text.split_once('.').filter(|(_, name)| !name.is_empty()) else {
        return value.mistake(format!("`{}` does not say where the value comes from", shorten(text)), LIKE);
    };
    match from {
        "path" => Some(ValueSource::Path(name.to_owned())),
        "query" => Some(ValueSource::Query(name.to_owned())),
        "header" => match HeaderName::from_bytes(name.as_bytes()) {
            Ok(name) => Some(ValueSource::Header(name)),
            Err(_) => value.mistake(
                format!("`{}` is not the name of a header field", shorten(name)),
                "write header.NAME, such as header.X-Organization",
            ),
        },
        "body" => pointer(value, name).map(ValueSource::Body),
        _ => {
            let mend = match did_you_mean(from, ["path", "query", "header", "body"]) {
                near if near.is_empty() => LIKE.to_owned(),
                near => near,
            };
            value.mistake(format!("`{}` is not a place of a request", shorten(from)), &mend)
        }
    }
}

/// A JSON pointer (RFC 6901), unescaped into its members.
fn pointer(value: &Value<'_>, text: &str) -> Option<Vec<String>> {
    let Some(rest) = text.strip_prefix('/') else {
        return value
            .mistake(format!("`{}` is not a JSON pointer", shorten(text)), &format!("write body./{}", shorten(text)));
    };
    let member = |member: &str| {
        let well_escaped = member.split('~').skip(1).all(|after| after.starts_with(['0', '1']));
        well_escaped.then(|| member.replace("~1", "/").replace("~0", "~"))
    };
    match rest.split('/').map(member).collect::<Option<Vec<_>>>() {
        Some(members) if members.len() <= 16 => Some(members),
        Some(_) => value.mistake("the JSON pointer is deeper than 16 members", "bind a value nearer to the top"),
        None => value.mistake(format!("`{}` is not a JSON pointer", shorten(text)), "write ~0 for ~ and ~1 for /"),
    }
}

/// A `path.NAME` needs a variable of that name. One that stands in a group is told once, with the first route that lacks it.
pub(super) fn check_source(value: &Value<'_>, source: &ValueSource, pattern: &Pattern) {
    let ValueSource::Path(name) = source else { return };
    if pattern.variables().any(|variable| **variable == **name) || value.report().blames(value) {
        return;
    }
    let known: Vec<&str> = pattern.variables().map(|variable| &**variable).collect();
    let near = did_you_mean(name, known.iter().copied());
    let mend = match known.as_slice() {
        _ if !near.is_empty() => near,
        [] => "it has no variables: write {name} in the path".to_owned(),
        known => format!("its variables: {}", known.join(", ")),
    };
    value.mistake::<()>(format!("`{}` is not a variable of {}", shorten(name), pattern.template()), &mend);
}

/// A list of kinds.
pub(super) fn kinds(value: &Value<'_>) -> Option<Kinds> {
    let mut kinds = Kinds::default();
    for item in value.items()? {
        if let Some(kind) = item.choice(&[("model", Kind::Model), ("dataset", Kind::Dataset)]) {
            kinds.insert(kind);
        }
    }
    Some(kinds)
}
