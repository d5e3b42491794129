//! The values that a request names for the dimensions its route binds: from path, query, header and body.
//!
//! A value that two parties could read differently is refused, because the backend acts on its own reading: a parameter or a
//! field given twice, a JSON member that occurs twice when case is folded, or only under another case. Pure: whoever calls has the
//! body already, if [`needs_body`] asked for it.

use std::fmt;

use http::header::CONTENT_ENCODING;
use http::{HeaderMap, HeaderName};
use percent_encoding::percent_decode_str;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::access::{Scoped, Values};
use super::rejection::Rejection;
use super::resource::{Kind, ValueSource};
use super::route::Match;

/// Whether the body must be held and handed to [`bound_values`]: only for keys limited in a dimension that the route takes from
/// it. A compressed body cannot be inspected and is refused here, before it is read.
pub fn needs_body(found: &Match, scoped: &Scoped, headers: &HeaderMap) -> Result<bool, Rejection> {
    let needed = scoped.must_inspect(&found.route, |source| matches!(source, ValueSource::Body(_)));
    if needed && headers.contains_key(CONTENT_ENCODING) {
        return Err(Rejection::UnsupportedEncoding);
    }
    Ok(needed)
}

/// Collects the values. `query` is what follows `?`, undecoded; `body` is looked at only where [`needs_body`] says so.
pub fn bound_values(
    found: &Match,
    scoped: &Scoped,
    query: Option<&str>,
    headers: &HeaderMap,
    body: Option<&[u8]>,
) -> Result<Values, Rejection> {
    let bindings = &found.route.bindings;
    let body = needs_body(found, scoped, headers)?.then(|| body.unwrap_or_default());
    let limit = |kind: Kind| scoped.profile().is_some_and(|profile| kind.limit(&profile.record).is_some());
    let in_organization = scoped.profile().is_some_and(|profile| profile.record.organization_id.is_some());
    let value = |source: Option<&ValueSource>, limited: bool| match source {
        None => Ok(None),
        Some(ValueSource::Path(name)) => Ok(found.variable(name).map(str::to_owned)),
        Some(ValueSource::Query(name)) => from_query(query.unwrap_or_default(), name),
        Some(ValueSource::Header(name)) => from_headers(headers, name),
        Some(ValueSource::Body(pointer)) => match body {
            Some(body) if limited => from_body(body, pointer),
            _ => Ok(None),
        },
    };
    Ok(Values {
        model: value(bindings.model.as_ref(), limit(Kind::Model))?,
        dataset: value(bindings.dataset.as_ref(), limit(Kind::Dataset))?,
        organization: value(bindings.organization.as_ref(), in_organization)?,
    })
}

/// A parameter of the query, decoded as forms are.
fn from_query(query: &str, name: &str) -> Result<Option<String>, Rejection> {
    let mut found = None;
    for pair in query.split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        // A name that cannot be decoded cannot be the one that is bound.
        if decode_form(key).is_none_or(|key| key != name) {
            continue;
        }
        if found.is_some() {
            return Err(Rejection::bad_request("Query parameter given twice"));
        }
        found = Some(decode_form(value).ok_or(Rejection::bad_request("Query parameter is not UTF-8"))?);
    }
    Ok(found)
}

fn decode_form(text: &str) -> Option<String> {
    let spaced = text.replace('+', " ");
    percent_decode_str(&spaced).decode_utf8().ok().map(|text| text.into_owned())
}

/// A header field. Backends that turn `-` into `_` would merge a field of the other spelling with it, so that one counts too.
fn from_headers(headers: &HeaderMap, name: &HeaderName) -> Result<Option<String>, Rejection> {
    let same = |other: &HeaderName| {
        let (a, b) = (name.as_str().bytes(), other.as_str().bytes());
        a.len() == b.len() && a.zip(b).all(|(a, b)| a == b || (matches!(a, b'-' | b'_') && matches!(b, b'-' | b'_')))
    };
    let mut found = None;
    for (other, value) in headers.iter().filter(|(other, _)| same(other)) {
        if found.is_some() || other != name {
            return Err(Rejection::bad_request("Header field given twice"));
        }
        let text = std::str::from_utf8(value.as_bytes());
        found = Some(text.map_err(|_| Rejection::bad_request("Header field is not UTF-8"))?.to_owned());
    }
    Ok(found)
}

/// The text at a JSON pointer; `None` when there is nothing.
fn from_body(body: &[u8], pointer: &[String]) -> Result<Option<String>, Rejection> {
    let bad = || Rejection::bad_request("Body is not the JSON that this key needs");
    // The parser skips what is off the pointer's path without looking at its encoding.
    let text = std::str::from_utf8(body).map_err(|_| Rejection::bad_request("Body is not UTF-8"))?;
    let mut parser = serde_json::Deserializer::from_str(text);
    let found = Step { rest: pointer }.deserialize(&mut parser).map_err(|_| bad())?;
    parser.end().map_err(|_| bad())?;
    match found {
        Found::Absent => Ok(None),
        Found::Text(text) => Ok(Some(text)),
        Found::Ambiguous => Err(Rejection::bad_request("Body names a member twice or in another case")),
        Found::NotText => Err(Rejection::bad_request("Body has no string where the resource is named")),
    }
}

#[derive(Debug, PartialEq)]
enum Found {
    Absent,
    Text(String),
    NotText,
    /// A member on the path occurs twice, or only in another case: parsers differ on which one counts.
    Ambiguous,
}

/// Follows the rest of a pointer and skips everything else. Recursion is bounded by the pointer, and by the parser's own limit.
struct Step<'p> {
    rest: &'p [String],
}

impl<'de> DeserializeSeed<'de> for Step<'_> {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Step<'_> {
    /// Neither a string nor something with members.
    fn scalar(&self) -> Found {
        if self.rest.is_empty() { Found::NotText } else { Found::Absent }
    }
}

impl<'de> Visitor<'de> for Step<'_> {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Found, E> {
        Ok(self.scalar())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Found, E> {
        Ok(self.scalar())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Found, E> {
        Ok(self.scalar())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Found, E> {
        Ok(self.scalar())
    }

    fn visit_unit<E: Error>(self) -> Result<Found, E> {
        Ok(self.scalar())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Found, E> {
        Ok(if self.rest.is_empty() { Found::Text(text.to_owned()) } else { Found::Absent })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Found, A::Error> {
        let mut found = self.scalar();
        let wanted = self.rest.split_first().and_then(|(index, rest)| Some((array_index(index)?, rest)));
        for index in 0usize.. {
            let more = match wanted {
                Some((at, rest)) if at == index => {
                    items.next_element_seed(Step { rest })?.map(|item| found = item).is_some()
                }
                _ => items.next_element::<IgnoredAny>()?.is_some(),
            };
            if !more {
                break;
            }
        }
        Ok(found)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Found, A::Error> {
        let Some((wanted, rest)) = self.rest.split_first() else {
            while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(Found::NotText);
        };
        let (mut found, mut seen) = (Found::Absent, 0);
        while let Some(name) = members.next_key::<String>()? {
            seen += usize::from(folds_to(&name, wanted));
            if name == *wanted && seen == 1 {
                found = members.next_value_seed(Step { rest })?;
            } else {
                if seen == 1 && folds_to(&name, wanted) {
                    found = Found::Ambiguous;
                }
                members.next_value::<IgnoredAny>()?;
            }
        }
        Ok(if seen > 1 { Found::Ambiguous } else { found })
    }
}

/// An array index as RFC 6901 writes it.
fn array_index(token: &str) -> Option<usize> {
    let plain = token == "0" || (!token.starts_with('0') && token.bytes().all(|byte| byte.is_ascii_digit()));
    if plain { token.parse().ok() } else { None }
}

/// Whether a parser that folds case could take `name` for `wanted`. Besides ASCII there are two letters that Unicode folds to
/// ASCII ones, and Go's encoding/json does so.
fn folds_to(name: &str, wanted: &str) -> bool {
    let fold = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    };
    name.chars().map(fold).eq(wanted.chars().map(fold))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(body: &str, pointer: &[&str]) -> Result<Option<String>, Rejection> {
        from_body(body.as_bytes(), &pointer.iter().map(|member| (*member).to_owned()).collect::<Vec<_>>())
    }

    fn model(body: &str) -> Result<Option<String>, Rejection> {
        read(body, &["model"])
    }

    #[test]
    fn a_pointer_finds_the_string_it_names() {
        let text = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(model(r#"{"x":[{"model":"no"}],"model":"a"}"#), text("a"));
        assert_eq!(model(r#"{"mod\u0065l":"\u0061"}"#), text("a"));
        assert_eq!(read(r#"{"a":{"b":[1,{"c":"x"}]}}"#, &["a", "b", "1", "c"]), text("x"));
        assert_eq!(read(r#"{"a/b":{"m~n":"x"}}"#, &["a/b", "m~n"]), text("x"));
        assert_eq!(model(" {\"model\": \"\"} \n"), text(""));
    }

    #[test]
    fn what_is_absent_is_absent() {
        for body in ["{}", "[]", "1", "null", r#""model""#, r#"{"models":"a"}"#] {
            assert_eq!(model(body), Ok(None), "{body}");
        }
        assert_eq!(read(r#"{"a":"x"}"#, &["a", "b"]), Ok(None));
        assert_eq!(read(r#"{"a":["x"]}"#, &["a", "01"]), Ok(None));
    }

    #[test]
    fn what_parsers_could_read_differently_is_refused() {
        for body in [
            r#"{"model":"a","model":"b"}"#,
            r#"{"model":"a","Model":"b"}"#,
            r#"{"MODEL":"b","model":"a"}"#,
            r#"{"model":"a","\u006dodel":"a"}"#,
            r#"{"Model":"b"}"#,
            r#"{"model":1}"#,
            r#"{"model":null}"#,
            r#"{"model":["a"]}"#,
            r#"{"model":{"model":"a"}}"#,
            "\u{feff}{\"model\":\"a\"}",
            r#"{"model":"a"} {"model":"b"}"#,
            r#"{"model":"a""#,
            r#"{"model":"a",}"#,
            r#"{'model':'a'}"#,
            "{\"model\":\"a\n\"}",
            "",
        ] {
            assert!(matches!(model(body), Err(Rejection::BadRequest(_))), "{body:?}");
        }
        assert!(from_body(b"{\"x\":\"\xff\",\"model\":\"a\"}", &["model".to_owned()]).is_err());
        assert!(read(r#"{"A":{"b":"x"},"a":{"b":"y"}}"#, &["a", "b"]).is_err());
        assert!(read("{\"task\":\"x\",\"ta\u{17f}k\":\"y\"}", &["task"]).is_err());
    }

    #[test]
    fn deep_nesting_neither_overflows_nor_hides_a_value() {
        let deep = format!("{{\"x\":{}{},\"model\":\"a\"}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(matches!(model(&deep), Ok(Some(_)) | Err(Rejection::BadRequest(_))));
        let on_path = "{\"model\":".repeat(100_000);
        assert!(model(&on_path).is_err());
    }

    #[test]
    fn a_query_parameter_is_decoded_and_given_once() {
        assert_eq!(from_query("a=1&m%6Fdel=x+y%21&b", "model"), Ok(Some("x y!".to_owned())));
        assert_eq!(from_query("models=1", "model"), Ok(None));
        assert_eq!(from_query("model", "model"), Ok(Some(String::new())));
        assert!(from_query("model=a&model=a", "model").is_err());
        assert!(from_query("model=a&%6dodel=b", "model").is_err());
        assert!(from_query("model=%ff", "model").is_err());
    }

    #[test]
    fn a_header_field_is_given_once_in_one_spelling() {
        let name = HeaderName::from_static("x-model");
        let headers = |fields: &[(&str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
            }
            headers
        };
        assert_eq!(from_headers(&headers(&[("X-Model", "a"), ("x-models", "b")]), &name), Ok(Some("a".to_owned())));
        assert_eq!(from_headers(&headers(&[]), &name), Ok(None));
        for bad in
            [&[("x-model", "a"), ("x-model", "a")][..], &[("x-model", "a"), ("x_model", "b")], &[("x_model", "b")]]
        {
            assert!(from_headers(&headers(bad), &name).is_err(), "{bad:?}");
        }
    }

    proptest! {
        /// Whatever is accepted is what two independent readings agree on.
        #[test]
        fn an_accepted_value_is_what_every_parser_reads(body in r#"\{("(a|A|b|\\u0061)":("x"|"y"|1|\{"a":"z"\}),?){0,3}\}"#) {
            if let Ok(found) = read(&body, &["a"]) {
                let last: serde_json::Value = serde_json::from_str(&body).unwrap();
                prop_assert_eq!(found.as_deref(), last.get("a").and_then(|value| value.as_str()));
                let folded = last.as_object().unwrap().keys().filter(|key| key.eq_ignore_ascii_case("a")).count();
                prop_assert_eq!(folded, usize::from(found.is_some()));
            }
        }
    }
}
